// Files of what is shown, made here: values as .npz or .safetensors, the picture as .png or .svg. Names say when values are edited.
import { byId, make } from "./draw.js";
import { app, notify, runs, viewOf, whole } from "./app.js";
import { editsOf } from "./state.js";

const bytes = (...parts) => new Blob(parts);
const ascii = (text) => new TextEncoder().encode(text);

/** A safetensors file of f32 arrays: { name: { shape, values } }. */
function safetensors(arrays, metadata) {
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

/** One array as numpy writes it; `dtype` is numpy's name of the values' type. */
function npy({ shape, values, dtype = "<f4" }) {
  const tuple = `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
  let text = `{'descr': '${dtype}', 'fortran_order': False, 'shape': ${tuple}, }`;
  text += `${" ".repeat(63 - ((10 + text.length) % 64))}\n`;
  const file = new Uint8Array(10 + text.length + values.byteLength);
  file.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, text.length & 255, text.length >> 8]);
  file.set(ascii(text), 10);
  file.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), 10 + text.length);
  return file;
}

/** A .npz file of f32 arrays, a zip of .npy files that are not compressed. As in the program's files, the array `metadata_json` has the
 *  bytes of a JSON object. */
function npz(arrays, metadata) {
  const parts = [], ends = [], json = ascii(JSON.stringify(metadata));
  let at = 0;
  for (const [name, array] of Object.entries({ metadata_json: { shape: [json.length], values: json, dtype: "|u1" }, ...arrays })) {
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

/** What is shown, whole: the hook's values of the run that is shown, or by how much the edits change them. */
async function arraysNow(s) {
  const { before, after } = runs(), difference = after && s.compare === "difference";
  const ask = (run) => app.engine.ask({ do: "look", run, taps: [{ hook: s.hook }] });
  const { json, arrays } = await ask(after && s.compare !== "before" ? after : before);
  if (!difference) return { arrays, edits: json.edits };
  const old = (await ask(before)).arrays;
  // What is the same differs by 0, minus infinity of masked scores too.
  const less = ([name, { shape, values }]) => [name, { shape, values: values.map((value, i) => (value === old[name].values[i] ? 0 : value - old[name].values[i])) }];
  return { arrays: Object.fromEntries(Object.entries(arrays).map(less)), edits: json.edits };
}

function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  notify(`saved ${name}`);
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
  const key = JSON.stringify([s.hook, viewOf(s), s.compare, Boolean(runs().after)]);
  if (key === drawn) return;
  drawn = key;
  const formats = ["npz", "safetensors", "png", "svg"].filter((format) => viewOf(s) !== "table" || !["png", "svg"].includes(format));
  byId("exports").replaceChildren(make("span", { class: "note" }, "Save as"), ...formats.map((format) =>
    make("button", { type: "button", "data-format": format, onclick: () => write(format).catch((error) => notify(error.message)) }, `.${format}`)));
}

/** Saves what is shown in a format. All that says what it is, is taken before values are waited for: the state may change meanwhile. */
async function write(format) {
  const s = whole();
  if (!s) return notify("there is nothing to save yet");
  const edits = runs().after && s.compare !== "before" ? editsOf(s) : [];
  const name = `${s.hook}${edits.length ? (s.compare === "difference" ? ".difference" : ".edited") : ""}.${format}`;
  const { model, device, version } = app.about;
  if (format === "npz" || format === "safetensors") {
    const metadata = { actscope_version: version, model: s.model, model_fingerprint: model.fingerprint, device: device.text, text: s.a, ...(edits.length ? { compare: s.compare } : {}) };
    const { arrays, edits: made } = await arraysNow(s);
    return save((format === "npz" ? npz : safetensors)(arrays, made.length ? { ...metadata, edits: JSON.stringify(made) } : metadata), name);
  }
  const canvas = picture();
  if (!canvas) return;
  if (format === "png") canvas.toBlob((blob) => save(blob, name));
  else {
    const { width, height } = canvas, title = `${s.hook}, ${s.model}, ${JSON.stringify(s.a)}${edits.length ? `, ${s.compare === "difference" ? "changed" : "edited"}: ${edits.join(" ")}` : ""}`;
    save(new Blob([`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}"><title>${escaped(title)}</title><image width="${width}" height="${height}" href="${canvas.toDataURL()}"/></svg>`], { type: "image/svg+xml" }), name);
  }
}
