// The data of a page: JSON, and named parts in the byte layouts that src/report/pack.rs writes. All of it is in the page; nothing is loaded
// from a network. And the commands that print it.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const { tokens, model } = data;

/** The bytes of a named part, whose element goes, since it is needed once. */
async function unpack(name) {
  const element = document.getElementById(`data-${name}`);
  const text = atob(element.textContent);
  element.remove();
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The value of every f16. */
const HALF = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits >> 15 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
});

/** Rows of f16, each row with a power of two of its own (pack.rs, Rows). */
class Rows {
  constructor(bytes, count) {
    const numbers = (bytes.length - count) / 2;
    this.exponents = new Int8Array(bytes.buffer, 0, count);
    this.upper = bytes.subarray(count, count + numbers);
    this.lower = bytes.subarray(count + numbers);
  }
  /** Number `i` of all, which is in row `row`. */
  at(row, i) {
    return HALF[(this.upper[i] << 8) | this.lower[i]] * 2 ** this.exponents[row];
  }
  /** `length` numbers from `start` on, all in row `row`. */
  slice(row, start, length) {
    const numbers = new Float32Array(length);
    for (let i = 0; i < length; i++) numbers[i] = this.at(row, start + i);
    return numbers;
  }
}

/** Whole numbers (pack.rs, whole). */
function whole(bytes) {
  const n = bytes.length / 4;
  return Uint32Array.from({ length: n }, (_, i) => bytes[i] + bytes[n + i] * 0x100 + bytes[2 * n + i] * 0x10000 + bytes[3 * n + i] * 0x1000000);
}

/** Numbers of 32 bits (pack.rs, floats). */
const floats = (bytes) => new Float32Array(whole(bytes).buffer);

const quoted = (position) => `“${tokens[position].label}”`;

/** A command about this text: `words` say what is wanted, the rest names the model and the text. */
const command = (...words) => `actscope ${words.map(shell).join(" ")} ${data.arguments}`;

/** Fills a line of the page with a command and its button. */
function showCommand(name, what, text) {
  const line = document.querySelector(`[data-command="${name}"]`);
  line.hidden = data.arguments === null;
  if (line.hidden) return;
  const button = make("button", { type: "button", "aria-label": `Copy the command: ${what}` }, "Copy");
  button.addEventListener("click", async () => {
    const done = await copy(text);
    announce(done ? "Command copied" : "This browser does not let pages copy; the command is selected");
    if (done) button.textContent = "Copied";
    else getSelection().selectAllChildren(line.querySelector("code"));
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  // Restore the focus of the pressed button after the line is rebuilt.
  const focused = line.contains(document.activeElement);
  line.replaceChildren(make("code", { title: what }, text), button);
  if (focused) button.focus();
}
