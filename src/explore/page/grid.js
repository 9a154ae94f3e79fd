// A grid of values on a canvas: layers x positions, positions x dimensions, queries x keys, layers x heads. Owns drawing,
// pointing, and the keys that move the chosen cell. Numbers are never read from pixels. Read next: what.js.
import { announce, colours, cssColour, dark, drawUpwards, image, make, ramp, sized } from "./draw.js";
import { clip } from "./numbers.js";

// Differences are purple to orange, so that none looks like a value.
const DELTA = {
  light: ramp([45, 0, 75], [128, 115, 172], [216, 218, 235], [250, 250, 250], [254, 224, 182], [224, 130, 20], [127, 59, 8]),
  dark: ramp([216, 200, 250], [140, 120, 200], [60, 50, 100], [28, 34, 42], [100, 60, 20], [214, 130, 40], [254, 214, 150]),
};
const NOT_A_NUMBER = 0xffff00ff; // magenta
const HIDDEN = -Infinity;

/** Colours of a kind of values: `signed`, `delta`, or `weight` (0 to 1, by a root, so that small ones are seen). */
export const palette = (kind) => (kind === "delta" ? DELTA[dark.matches ? "dark" : "light"] : colours()[kind]);

export class Grid {
  /** In `box`; `name` is what screen readers call it, `pick(row, column, event)` is told a choice, `say(row, column)` is what a
   *  cell is in words. */
  constructor(box, { name, pick, say }) {
    this.pick = pick;
    this.say = say;
    this.name = name;
    this.canvas = make("canvas", { class: "grid", tabindex: 0, role: "application", "aria-roledescription": "grid of values", "aria-label": name });
    this.read = make("p", { class: "read" });
    this.legend = make("p", { class: "note legend" });
    box.append(this.canvas, this.read, this.legend);
    this.canvas.addEventListener("pointermove", (event) => this.#hover(this.#cell(event)));
    this.canvas.addEventListener("pointerleave", () => this.#hover(null));
    this.canvas.addEventListener("click", (event) => {
      const cell = this.#cell(event);
      if (cell) this.pick(...cell, event);
    });
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.clear("No values yet");
  }

  /** Draws `rows` x `columns` values in row-major order. `kind` as in `palette`; `scale` fixes the end of the colours;
   *  `chosen` [row, column], either may be null; `edited` is a set of rows with a mark; `bands` draws a line before every n-th
   *  column; `rowWord` and `columnWord` stand before their
   *  numbers. */
  draw(what) {
    this.what = what;
    const { rows, columns, values, kind } = what;
    const width = Math.max(120, this.canvas.parentElement.clientWidth);
    const measure = this.canvas.getContext("2d");
    const font = '11px system-ui, "DejaVu Sans", sans-serif';
    measure.font = font;
    // What rows and columns are is said where there is room: before the number of each.
    const named = (names, word) => names?.map((name) => (word && /^\d+$/.test(name) ? `${word} ${name}` : name));
    const rowNames = width >= 480 ? named(what.rowNames, what.rowWord) : what.rowNames;
    const longest = (names, most) => (names ? Math.min(most, 10 + Math.max(0, ...names.slice(0, 80).map((t) => measure.measureText(t).width))) : 0);
    const left = longest(rowNames, 100);
    let cellWidth = (width - left) / columns;
    if (what.square) cellWidth = Math.min(cellWidth, what.most ?? 56);
    else cellWidth = Math.min(cellWidth, what.wide ?? 96);
    const cellHeight = what.square ? cellWidth : Math.max(1, Math.min(what.tall ?? 22, (what.height ?? 320) / rows));
    const spelled = named(what.columnNames, what.columnWord);
    const columnNames = what.columnWord && spelled.some((name) => measure.measureText(name).width > cellWidth - 4) ? what.columnNames : spelled;
    const top = columnNames && cellWidth >= 13 ? (cellWidth >= 44 ? 18 : longest(columnNames, 80)) : 0;
    const right = cellWidth * columns, bottom = cellHeight * rows;
    const context = sized(this.canvas, width, top + bottom + 3);
    this.at = { left, top, cellWidth, cellHeight };

    const found = clip(values);
    const scale = what.scale ?? (kind === "weight" ? found.most || 1 : found.at);
    const exponent = what.exponent ?? 1;
    const index = (x) => (kind === "weight" ? Math.round(255 * Math.min(1, Math.max(0, x / scale)) ** exponent) : Math.round(127.5 + 127.5 * Math.max(-1, Math.min(1, x / scale))));
    // Several values that share a pixel are shown as their largest, so that thin lines stay.
    const ratio = devicePixelRatio || 1;
    const across = Math.min(columns, Math.max(1, Math.floor(right * ratio))), down = Math.min(rows, Math.max(1, Math.floor(bottom * ratio)));
    const colours = palette(kind), drawn = new Uint32Array(across * down), hidden = cssColour("--page");
    const strongest = new Float64Array(across * down).fill(-1);
    const none = [];
    for (let r = 0; r < rows; r++) {
      const y = Math.floor((r * down) / rows);
      for (let c = 0; c < columns; c++) {
        const x = Math.floor((c * across) / columns), i = y * across + x, value = values[r * columns + c];
        if (value === HIDDEN) {
          if (strongest[i] < 0) none.push(i);
          continue;
        }
        const size = Number.isNaN(value) ? Infinity : Math.abs(value);
        if (size > strongest[i]) {
          strongest[i] = size;
          drawn[i] = Number.isNaN(value) ? (what.blank ? 0 : NOT_A_NUMBER) : colours[index(value)];
        }
      }
    }
    const picture = make("canvas", { width: across, height: down });
    const pixels = new ImageData(new Uint8ClampedArray(drawn.buffer), across, down);
    picture.getContext("2d").putImageData(pixels, 0, 0);
    context.fillStyle = hidden;
    context.fillRect(left, top, right, bottom);
    context.drawImage(picture, left, top, right, bottom);

    context.font = font;
    context.textBaseline = "middle";
    context.fillStyle = cssColour("--soft");
    if (rowNames) {
      context.textAlign = "right";
      const every = Math.max(1, Math.ceil(12 / cellHeight));
      for (let r = 0; r < rows; r += every) context.fillText(short(context, rowNames[r], left - 8), left - 5, top + (r + 0.5) * cellHeight);
    }
    if (top) {
      for (let c = 0; c < columns; c++) {
        const middle = left + (c + 0.5) * cellWidth, name = short(context, columnNames[c], cellWidth >= 44 ? cellWidth - 4 : top - 6);
        if (cellWidth >= 44) {
          context.textAlign = "center";
          context.fillText(name, middle, top / 2);
        } else {
          drawUpwards(context, name, middle, top - 5);
        }
      }
    }
    if (what.bands) {
      context.fillStyle = cssColour("--line");
      for (let c = what.bands; c < columns; c += what.bands) context.fillRect(left + c * cellWidth - 0.5, top, 1, bottom);
    }
    if (what.words && cellWidth >= 44 && cellHeight >= 15) {
      context.textAlign = "center";
      for (let r = 0; r < rows; r++) {
        for (let c = 0; c < columns; c++) {
          const value = values[r * columns + c];
          if (value === HIDDEN) continue;
          const deep = kind === "weight" ? index(value) > 150 : Math.abs(index(value) - 127.5) > 90;
          context.fillStyle = deep === dark.matches ? "#0b1520" : deep ? "#fff" : cssColour("--ink");
          context.fillText(short(context, what.words(r, c), cellWidth - 4), left + (c + 0.5) * cellWidth, top + (r + 0.5) * cellHeight);
        }
      }
    }
    // Rows that an edit changes have a striped edge.
    for (const r of what.edited ?? []) {
      context.fillStyle = cssColour("--edited");
      for (let y = 0; y < cellHeight; y += 4) context.fillRect(left - 4, top + r * cellHeight + y, 3, Math.min(2, cellHeight - y));
    }
    this.#ring(context, what.chosen);
    const beyond = found.beyond && scale === found.at ? `; ${found.beyond} beyond, the largest ${shown(found.most)}` : "";
    const notNumbers = found.notNumbers && !what.blank && values.some(Number.isNaN) ? "; NaN is magenta" : "";
    const pooled = across < columns || down < rows ? `; a pixel is the strongest of ${Math.ceil(rows / down)} x ${Math.ceil(columns / across)}` : "";
    const from = kind === "weight" ? "0" : `-${shown(scale)}`;
    this.legend.replaceChildren(make("span", { class: `ramp ${kind}`, "aria-hidden": "true" }), ` ${from} to ${shown(scale)}${beyond}${pooled}${notNumbers}${what.note ? `. ${what.note}` : ""}`);
    paintRamp(this.legend.querySelector(".ramp"), colours);
    const [row, column] = what.chosen ?? [];
    this.canvas.setAttribute("aria-label", row == null || column == null ? this.name : `${this.name}. ${this.say(row, column)}`);
    this.#hover(null);
  }

  /** Shows a sentence in place of values. */
  clear(text) {
    this.what = null;
    sized(this.canvas, 1, 1);
    this.canvas.setAttribute("aria-label", `${this.name}. ${text}`);
    this.legend.replaceChildren();
    this.read.textContent = text;
  }

  #ring(context, chosen) {
    if (!chosen) return;
    const { left, top, cellWidth, cellHeight } = this.at, { rows, columns } = this.what, [row, column] = chosen;
    const box = [left + (column ?? 0) * cellWidth, top + (row ?? 0) * cellHeight, column == null ? cellWidth * columns : cellWidth, row == null ? cellHeight * rows : cellHeight];
    if (row == null && column == null) return;
    const grow = Math.max(0, (6 - Math.min(box[2], box[3])) / 2);
    const ring = [box[0] - grow, box[1] - grow, box[2] + 2 * grow, box[3] + 2 * grow];
    context.lineWidth = 3.5;
    context.strokeStyle = cssColour("--card");
    context.strokeRect(...ring);
    context.lineWidth = 1.75;
    context.strokeStyle = cssColour("--ink");
    context.strokeRect(...ring);
  }

  #cell(event) {
    if (!this.what) return null;
    const box = this.canvas.getBoundingClientRect(), { left, top, cellWidth, cellHeight } = this.at;
    const column = Math.floor((event.clientX - box.left - left) / cellWidth), row = Math.floor((event.clientY - box.top - top) / cellHeight);
    return row >= 0 && column >= 0 && row < this.what.rows && column < this.what.columns ? [row, column] : null;
  }

  #hover(cell) {
    if (!this.what) return;
    const [row, column] = cell ?? this.what?.chosen ?? [];
    this.read.textContent = row == null || column == null ? " " : this.say(row, column);
  }

  #key(event) {
    if (!this.what || event.ctrlKey || event.metaKey || event.altKey) return;
    const { rows, columns } = this.what, far = event.shiftKey ? 10 : 1;
    let [row, column] = [this.what.chosen?.[0] ?? 0, this.what.chosen?.[1] ?? 0];
    switch (event.key) {
      case "ArrowLeft": column -= far; break;
      case "ArrowRight": column += far; break;
      case "ArrowUp": row -= far; break;
      case "ArrowDown": row += far; break;
      case "Home": column = 0; break;
      case "End": column = columns - 1; break;
      case "PageUp": row = 0; break;
      case "PageDown": row = rows - 1; break;
      default: return;
    }
    event.preventDefault();
    event.stopPropagation();
    row = Math.max(0, Math.min(rows - 1, row));
    column = Math.max(0, Math.min(columns - 1, column));
    this.pick(row, column, event);
    announce(this.say(row, column));
  }
}

function paintRamp(span, colours) {
  const canvas = image(256, 1, Uint8Array.from({ length: 256 }, (_, i) => i), colours);
  span.replaceChildren(canvas);
}

const shown = (x) => Number(x.toPrecision(3)).toString();

/** A text cut off so that it is at most this wide. */
function short(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && context.measureText(`${text.slice(0, end)}…`).width > width) end--;
  return `${text.slice(0, end)}…`;
}
