// Files of what is shown, made here: values as .npz or .safetensors, the picture as .png or .svg. Names say when values are edited.
import { announce, byId, make } from "./draw.js";
import { app, runs, viewOf } from "./app.js";
import { editsOf } from "./state.js";

const bytes = (...parts) => new Blob(parts);
const ascii = (text) => new TextEncoder().encode(text);

/** A safetensors file of f32 arrays: { name: { shape, values } }. */
export function safetensors(arrays, metadata) {
  const header = { __metadata__: metadata };
  let at = 0;
  for (const [name, { shape, values }] of Object.entries(arrays)) {
    header[name] = { dtype: "F32", shape, data_offsets: [at, (at += values.byteLength)] };
  }
  let text = JSON.stringify(header);
  text += " ".repeat((8 - (ascii(text).length % 8)) % 8);
  const head = ascii(text), length = new DataView(new ArrayBuffer(8));
  length.setBigUint64(0, BigInt(head.length), true);
  return bytes(length.buffer, head, ...Object.values(arrays).map(({ values }) => values));
}

let table;
function crc32(data) {
  table ??= Uint32Array.from({ length: 256 }, (_, n) => {
    for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
    return n;
  });
  let crc = ~0;
  for (const byte of data) crc = table[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** One array as numpy writes it. */
function npy({ shape, values }) {
  const tuple = `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
  let text = `{'descr': '<f4', 'fortran_order': False, 'shape': ${tuple}, }`;
  text += `${" ".repeat(63 - ((10 + text.length) % 64))}\n`;
  const file = new Uint8Array(10 + text.length + values.byteLength);
  file.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, text.length & 255, text.length >> 8]);
  file.set(ascii(text), 10);
  file.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), 10 + text.length);
  return file;
}

/** A .npz file: a zip of .npy files, not compressed. */
export function npz(arrays) {
  const parts = [], ends = [];
  let at = 0;
  for (const [name, array] of Object.entries(arrays)) {
    const file = npy(array), path = ascii(`${name}.npy`), crc = crc32(file);
    const head = (size, signature, fields) => {
      const view = new DataView(new ArrayBuffer(size));
      view.setUint32(0, signature, true);
      fields.forEach(([offset, value, wide]) => (wide ? view.setUint32(offset, value, true) : view.setUint16(offset, value, true)));
      return view.buffer;
    };
    const common = (o) => [[o, 20], [o + 10, crc, true], [o + 14, file.length, true], [o + 18, file.length, true], [o + 22, path.length]];
    parts.push(head(30, 0x04034b50, common(4)), path, file);
    ends.push(head(46, 0x02014b50, [[4, 20], ...common(6), [42, at, true]]), path);
    at += 30 + path.length + file.length;
  }
  const size = ends.reduce((sum, part) => sum + part.byteLength, 0), n = ends.length / 2;
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  for (const [offset, value] of [[8, n], [10, n]]) end.setUint16(offset, value, true);
  end.setUint32(12, size, true);
  end.setUint32(16, at, true);
  return bytes(...parts, ...ends, end.buffer);
}

/** What is shown, whole: the hook's values of the run that is shown. */
async function arraysNow(s) {
  const { before, after } = runs(), run = after && s.compare !== "before" ? after : before;
  const { json, arrays } = await app.engine.ask({ do: "look", run, taps: [{ hook: s.hook }] });
  return { arrays, edits: json.edits };
}

function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  announce(`saved ${name}`);
}

/** The picture that is shown: the grid, or the heads side by side. */
function picture() {
  const canvases = [...byId("view").querySelectorAll("canvas:not(.ramp canvas)")];
  if (canvases.length < 2) return canvases[0];
  const side = 128, across = Math.ceil(Math.sqrt(canvases.length));
  const whole = make("canvas", { width: across * side, height: Math.ceil(canvases.length / across) * side }), context = whole.getContext("2d");
  context.imageSmoothingEnabled = false;
  canvases.forEach((canvas, i) => context.drawImage(canvas, (i % across) * side, Math.floor(i / across) * side, side - 4, side - 4));
  return whole;
}

const escaped = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

let drawn = "";

export function drawExports(s) {
  const key = JSON.stringify([s.hook, viewOf(s)]);
  if (key === drawn) return;
  drawn = key;
  const name = (ending) => `${s.hook}${runs().after && app.state.compare !== "before" ? ".edited" : ""}.${ending}`;
  const metadata = (edits) => ({ actscope_version: app.about.version, model: app.state.model, model_fingerprint: app.about.model.fingerprint, device: app.about.device.text, text: app.state.a, ...(edits.length ? { edits: JSON.stringify(edits) } : {}) });
  const formats = {
    npz: async () => save(npz((await arraysNow(s)).arrays), name("npz")),
    safetensors: async () => {
      const { arrays, edits } = await arraysNow(s);
      save(safetensors(arrays, metadata(edits)), name("safetensors"));
    },
    png: async () => picture()?.toBlob((blob) => save(blob, name("png"))),
    svg: async () => {
      const canvas = picture();
      if (!canvas) return;
      const { width, height } = canvas, title = `${s.hook}, ${app.state.model}, ${JSON.stringify(app.state.a)}${editsOf(app.state).length ? `, edited: ${editsOf(app.state).join(" ")}` : ""}`;
      save(new Blob([`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}"><title>${escaped(title)}</title><image width="${width}" height="${height}" href="${canvas.toDataURL()}"/></svg>`], { type: "image/svg+xml" }), name("svg"));
    },
  };
  byId("exports").replaceChildren(...Object.entries(formats).filter(([format]) => viewOf(s) !== "table" || !["png", "svg"].includes(format)).map(([format, write]) =>
    make("button", { type: "button", "data-format": format, onclick: () => write().catch((error) => announce(error.message)) }, `.${format}`)));
}
