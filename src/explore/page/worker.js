// The worker: it holds the WebAssembly, one open model, and answers one message after the other.
import init, { Files, kernel_sources, open, why_it_ended } from "./actscope_web.js";

const ready = init();
let explorer = null;

const reply = (id, answer, transfer = []) => postMessage({ id, answer }, transfer);

const handle = {
  async open({ id, name, files, device }) {
    explorer?.free();
    explorer = null;
    const held = new Files();
    for (const { name: file, blob } of files) held.add(file, blob);
    explorer = await open(name, held, device);
    reply(id, (await asked(explorer, { do: "about" }, () => {})).json);
  },
  async ask({ id, request }) {
    if (!explorer) throw new Error("no model is open");
    let last = 0;
    const { json, arrays } = await asked(explorer, JSON.parse(request), (...progress) => {
      if (performance.now() - last < 50) return;
      last = performance.now();
      postMessage({ id, progress });
    });
    reply(id, { json, arrays }, Object.values(arrays).map(({ values }) => values.buffer));
  },
  async kernels({ id }) {
    reply(id, JSON.parse(kernel_sources()));
  },
  async memory({ id }) {
    reply(id, (await ready).memory.buffer.byteLength);
  },
};

async function asked(explorer, request, tell) {
  const [json, arrays] = await explorer.ask(JSON.stringify(request), tell);
  return { json: JSON.parse(json), arrays: Object.fromEntries(arrays.map(([name, shape, values]) => [name, { shape, values }])) };
}

let turn = Promise.resolve();
onmessage = ({ data }) => {
  turn = turn.then(async () => {
    try {
      await ready;
      await handle[data.kind](data);
    } catch (error) {
      if (error instanceof WebAssembly.RuntimeError) fatal(error);
      else postMessage({ id: data.id, error: error.message ?? String(error) });
    }
  });
};

/** A panic, or memory that is used up, leaves promises that never settle, so the page must hear of it here. */
function fatal(error) {
  postMessage({ fatal: why_it_ended() || error.message });
}
addEventListener("error", (event) => {
  event.preventDefault();
  fatal(event.error ?? event);
});
addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  fatal(event.reason);
});
