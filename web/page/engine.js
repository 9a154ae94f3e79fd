// The engine: a worker with the WebAssembly in it, so that the page never waits. Owns the messages, which are one at a time,
// and the cache of answers.

/** Bytes of answers that are kept; the oldest go first. */
const CACHE_BYTES = 150e6;

export class Engine {
  #worker = null;
  /** Why there is no open model, if there was one. */
  #ended = null;
  #calls = new Map();
  #id = 0;
  /** Answers by request, oldest first, of the open model. */
  #answers = new Map();
  #bytes = 0;

  #start() {
    this.#worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }) => {
      const call = this.#calls.get(data.id);
      if (data.progress) return call?.tell?.(...data.progress);
      if (data.fatal) return this.#end(data.fatal);
      this.#calls.delete(data.id);
      if (data.error !== undefined) call?.reject(new Error(data.error));
      else call?.resolve(data.answer);
    };
    this.#worker.onerror = (event) => this.#end(event.message || "the worker could not be started");
  }

  /** WebAssembly cannot go on after a panic: what waits is told, and the next call starts another worker. */
  #end(why) {
    this.close();
    this.#ended = why;
    const calls = [...this.#calls.values()];
    this.#calls.clear();
    for (const call of calls) call.reject(Object.assign(new Error(why), { ended: true }));
  }

  #call(message, tell) {
    if (!this.#worker) this.#start();
    const id = ++this.#id;
    return new Promise((resolve, reject) => {
      this.#calls.set(id, { resolve, reject, tell });
      this.#worker.postMessage({ id, ...message });
    });
  }

  /** Opens a model: files are { name, blob }. Resolves to what the model is. */
  async open(name, files, device, tell) {
    this.forget();
    this.#ended = null;
    return this.#call({ kind: "open", name, files, device }, tell);
  }

  /** Answers a request, from the cache where it was asked before: { json, arrays: { name: { shape, values } } }. */
  async ask(request, tell) {
    if (this.#ended !== null) throw Object.assign(new Error(this.#ended), { ended: true });
    const key = JSON.stringify(request);
    const answer = await this.#call({ kind: "ask", request: key }, tell);
    answer.bytes = 1000 + Object.values(answer.arrays).reduce((sum, { values }) => sum + values.byteLength, 0);
    this.#answers.set(key, answer);
    this.#bytes += answer.bytes;
    for (const [old, { bytes }] of this.#answers) {
      if (this.#bytes <= CACHE_BYTES || old === key) break;
      this.#answers.delete(old);
      this.#bytes -= bytes;
    }
    return answer;
  }

  /** The answer to a request if it is there. */
  known(request) {
    const key = JSON.stringify(request), answer = this.#answers.get(key);
    if (answer) this.#answers.delete(key), this.#answers.set(key, answer);
    return answer;
  }

  /** Every kernel's text, for the tests. */
  kernels() {
    return this.#call({ kind: "kernels" });
  }

  /** Ends the worker as a lost device would. For the tests. */
  fail(why) {
    this.#call({ kind: "kernels" }).catch(() => {});
    this.#end(why);
  }

  forget() {
    this.#answers.clear();
    this.#bytes = 0;
  }

  close() {
    this.#worker?.terminate();
    this.#worker = null;
    this.forget();
  }
}
