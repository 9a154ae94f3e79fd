// The engine: what answers requests, so that the page never waits. It is a worker with the WebAssembly in it, or the server that the
// page came from. Owns both ways and the cache of answers.

/** Bytes of answers that are kept; the oldest go first. */
const CACHE_BYTES = 150e6;

/** True where `actscope explore` serves the page: it has the model, and computes. */
export const SERVED = document.querySelector('meta[name="engine"]')?.content === "server";

export class Engine {
  #way = null;
  /** Why there is no open model, if there was one. */
  #ended = null;
  /** How often a model was opened: an answer of an earlier one is not kept. */
  #opened = 0;
  /** Answers by request, oldest first, of the open model. */
  #answers = new Map();
  #bytes = 0;

  #call(message, tell) {
    this.#way ??= SERVED ? new Server() : new InWorker((why) => this.#end(why));
    return this.#way.call(message, tell);
  }

  /** WebAssembly cannot go on after a panic or without memory: what waits is told, and the next call starts another worker. */
  #end(why) {
    const way = this.#way;
    this.#way = null;
    this.forget();
    this.#ended = why;
    way?.end(why);
  }

  /** Opens a model: files are { name, blob }; a server has its own. Resolves to what the model is. */
  async open(name, files, device, tell) {
    this.forget();
    this.#opened++;
    this.#ended = null;
    return this.#call({ kind: "open", name, files, device }, tell);
  }

  /** Answers a request, from the cache where it was asked before: { json, arrays: { name: { shape, values } } }. `again` asks anew,
   *  and keeps nothing. */
  async ask(request, tell, { again = false } = {}) {
    if (this.#ended !== null) throw Object.assign(new Error(this.#ended), { ended: true });
    const known = again ? undefined : this.known(request);
    if (known) return known;
    const key = JSON.stringify(request), opened = this.#opened;
    const answer = await this.#call({ kind: "ask", request: key }, tell);
    if (!again && opened === this.#opened && this.#ended === null) this.#keep(key, answer);
    return answer;
  }

  #keep(key, answer) {
    answer.bytes = 1000 + Object.values(answer.arrays).reduce((sum, { values }) => sum + values.byteLength, 0);
    // The same request may have been asked twice at a time.
    this.#bytes += answer.bytes - (this.#answers.get(key)?.bytes ?? 0);
    this.#answers.delete(key);
    this.#answers.set(key, answer);
    for (const [old, { bytes }] of this.#answers) {
      if (this.#bytes <= CACHE_BYTES || old === key) break;
      this.#answers.delete(old);
      this.#bytes -= bytes;
    }
  }

  /** The answer to a request if it is there. */
  known(request) {
    const key = JSON.stringify(request), answer = this.#answers.get(key);
    if (answer) this.#answers.delete(key), this.#answers.set(key, answer);
    return answer;
  }

  /** Ends a request that nobody needs any more, where that is possible: the worker hears nothing while it computes. Its caller is told
   *  by an error with `cancelled`. */
  cancel(request) {
    this.#way?.cancel(JSON.stringify(request));
  }

  /** Every kernel's text, for the tests. */
  kernels() {
    return this.#call({ kind: "kernels" });
  }

  /** The bytes that WebAssembly has taken from the browser, which are never given back. For the tests. */
  memory() {
    return this.#call({ kind: "memory" });
  }

  /** Ends the worker as a lost device would. For the tests. */
  fail(why) {
    this.#call({ kind: "kernels" }).catch(() => {});
    this.#end(why);
  }

  /** How many answers are kept, and their bytes. For the tests. */
  kept() {
    return { answers: this.#answers.size, bytes: this.#bytes };
  }

  forget() {
    this.#answers.clear();
    this.#bytes = 0;
  }
}

/** The way to a worker. It answers one message after the other. */
class InWorker {
  #calls = new Map();
  #id = 0;

  /** `ended` hears why the worker can answer no more. */
  constructor(ended) {
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => {
      const call = this.#calls.get(data.id);
      if (data.progress) return call?.tell?.(...data.progress);
      if (data.fatal) return ended(data.fatal);
      this.#calls.delete(data.id);
      if (data.error !== undefined) call?.reject(new Error(data.error));
      else call?.resolve(data.answer);
    };
    this.worker.onerror = (event) => ended(event.message || "the worker could not be started");
  }

  call(message, tell) {
    const id = ++this.#id;
    return new Promise((resolve, reject) => {
      this.#calls.set(id, { resolve, reject, tell });
      this.worker.postMessage({ id, ...message });
    });
  }

  cancel() {}

  end(why) {
    this.worker.terminate();
    for (const call of this.#calls.values()) call.reject(Object.assign(new Error(why), { ended: true }));
    this.#calls.clear();
  }
}

/** The way to `actscope explore`. An answer is a stream: lines of JSON with progress, a line with the answer, and the values of its
 *  arrays, f32 with the least byte first. */
class Server {
  #running = new Map();

  async call({ kind, request }, tell) {
    if (kind === "open") return (await this.#ask('{"do":"about"}', tell)).json;
    if (kind !== "ask") throw new Error(`a server does not answer ${kind}`);
    return this.#ask(request, tell);
  }

  async #ask(request, tell) {
    const stop = new AbortController();
    this.#running.set(request, stop);
    try {
      const response = await fetch(new URL("ask", import.meta.url), { method: "POST", body: request, signal: stop.signal });
      if (!response.ok) throw new Error(`the server answers ${response.status}: ${await response.text()}`);
      return await this.#read(response.body.getReader(), tell);
    } catch (error) {
      if (error.name === "AbortError") throw Object.assign(new Error("the request was cancelled"), { cancelled: true });
      if (!(error instanceof TypeError)) throw error;
      throw Object.assign(new Error("the program that serves this page does not answer; start actscope explore again"), { ended: true });
    } finally {
      if (this.#running.get(request) === stop) this.#running.delete(request);
    }
  }

  async #read(reader, tell) {
    let rest = new Uint8Array(0);
    for (;;) {
      const end = rest.indexOf(10);
      if (end < 0) {
        const { value, done } = await reader.read();
        if (done) throw new TypeError("the answer was cut off");
        const joined = new Uint8Array(rest.length + value.length);
        joined.set(rest);
        joined.set(value, rest.length);
        rest = joined;
        continue;
      }
      const line = JSON.parse(new TextDecoder().decode(rest.subarray(0, end)));
      rest = rest.subarray(end + 1);
      if (line.progress) tell?.(...line.progress);
      else if (line.error !== undefined) throw new Error(line.error);
      else return { json: line.answer, arrays: await this.#arrays(line.arrays, rest, reader) };
    }
  }

  async #arrays(list, rest, reader) {
    const sizes = list.map(([, shape]) => shape.reduce((n, side) => n * side, 1));
    const bytes = new Uint8Array(4 * sizes.reduce((sum, n) => sum + n, 0));
    let at = 0;
    for (let piece = rest; ; ) {
      if (at + piece.length > bytes.length) throw new Error("the answer has more values than its shapes say");
      bytes.set(piece, at);
      at += piece.length;
      const { value, done } = await reader.read();
      if (done) break;
      piece = value;
    }
    if (at < bytes.length) throw new TypeError("the answer was cut off");
    let from = 0;
    return Object.fromEntries(list.map(([name, shape], i) => {
      // A view of its own part, since a file of one array takes no more than that.
      const values = new Float32Array(bytes.buffer, 4 * from, sizes[i]);
      from += sizes[i];
      return [name, { shape, values }];
    }));
  }

  cancel(request) {
    this.#running.get(request)?.abort();
  }

  end() {
    for (const stop of this.#running.values()) stop.abort();
  }
}
