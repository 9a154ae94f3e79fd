// What the views share: number formatting, elements, colours, pixels, and copying. Uses no view and no data, so that the
// explorer (src/explore/page) has it too.

/** A number as people and programs read it: five digits, a plain minus sign. */
function show(value, digits = 5) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "inf" : "-inf";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-4 ? value.toExponential(digits - 1) : value.toPrecision(digits);
}

/** A number of the stream: what is coarse says so. */
function showKept(kept) {
  if (!kept) return "not kept";
  if (kept.off === 0) return show(kept.value);
  // Show decimals down to the first digit of the possible error.
  const decimals = Math.max(0, Math.min(20, -Math.floor(Math.log10(kept.off))));
  return `${kept.value.toFixed(decimals)} ±\u00a0${kept.off.toFixed(decimals)}`;
}

/** An element with attributes, properties and children; text is only ever text. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

const byId = (id) => document.getElementById(id);

/** A token so that its spaces are seen. */
const tokenText = (label, attributes = {}) => make("span", { class: "token-text", ...attributes }, label);

/** A cell with a bar; `share` is of the longest, signed ones start in the middle. */
function bar(share, signed = false) {
  const length = Number.isFinite(share) ? Math.min(Math.abs(share), 1) : 0;
  return make("td", { class: `bar${signed ? " signed" : ""}${share < 0 ? " minus" : ""}`, "aria-hidden": "true" }, make("i", { "--length": length }));
}

const dark = matchMedia("(prefers-color-scheme: dark)");

/** 256 colours between some [r, g, b]. */
function ramp(...stops) {
  const colours = new Uint32Array(256);
  const bytes = new Uint8ClampedArray(colours.buffer);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1), low = Math.min(Math.floor(at), stops.length - 2);
    for (let c = 0; c < 3; c++) bytes[4 * i + c] = stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c]);
    bytes[4 * i + 3] = 255;
  }
  return colours;
}

// Weights go from the page's background colour to a strong one. Signed values go from blue over the background to red
// (RdBu reversed).
const RAMPS = {
  light: { weight: ramp([247, 249, 252], [158, 202, 235], [33, 113, 190], [8, 40, 97]), signed: ramp([5, 48, 97], [67, 147, 195], [209, 229, 240], [250, 250, 250], [253, 219, 199], [214, 96, 77], [103, 0, 31]) },
  dark: { weight: ramp([25, 32, 41], [30, 82, 140], [72, 164, 226], [240, 249, 214]), signed: ramp([146, 202, 250], [58, 128, 190], [30, 66, 100], [28, 34, 42], [105, 42, 42], [205, 90, 78], [252, 190, 172]) },
};
const colours = () => RAMPS[dark.matches ? "dark" : "light"];
/** A colour of the sheet, asked for once in each scheme: asking makes the browser style the whole page. */
function cssColour(name) {
  const key = name + dark.matches;
  if (!cssColour.known.has(key)) cssColour.known.set(key, getComputedStyle(document.documentElement).getPropertyValue(name));
  return cssColour.known.get(key);
}
cssColour.known = new Map();

/** Sets a canvas to its size on the page in device pixels; returns its context, in CSS pixels. */
function sized(canvas, width, height) {
  const ratio = devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.imageSmoothingEnabled = false;
  return context;
}

/** An image of `width` x `height` pixels, each an index into 256 colours. */
function image(width, height, indices, palette) {
  const canvas = make("canvas", { width, height });
  const pixels = new ImageData(width, height);
  const words = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < words.length; i++) words[i] = palette[indices[i]];
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

/** Draws text that runs upwards from (x, y). */
function drawUpwards(context, text, x, y) {
  context.save();
  context.translate(x, y);
  context.rotate(-Math.PI / 2);
  context.textAlign = "left";
  context.fillText(text, 0, 0);
  context.restore();
}

/** For a POSIX shell; plain words stay as they are. */
const shell = (word) => (/^[\w.,/:=@%+-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

/** Copies text; where the browser forbids the clipboard to files, by way of a selection. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { class: "unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
  return true;
}

/** Tells screen readers. */
function announce(text) {
  byId("status").textContent = text;
}
