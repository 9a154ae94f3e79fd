// WHAT: the values of the chosen hook: the exact number, all layers at a token, all tokens, heads, tables; and which heads look from
// the chosen token to the key.
import { bar, byId, image, make, show } from "./draw.js";
import { app, go, known, look, notify, runs, tapOf, viewOf, viewsOf, whole } from "./app.js";
import { Grid, palette } from "./grid.js";
import { exact, largest, softmax } from "./numbers.js";
import { COMPARES, toCommand } from "./state.js";
import { drawExports } from "./export.js";

let pairGrid, grid, gridBox, built = "";
let pair = null, shown = null, refocus = false;

/** For the tests. */
export const grids = {};

export function startWhat() {
  pairGrid = new Grid(byId("pair-grid"), {
    name: "Heads: layers down, heads across",
    pick: (row, column) => go({ hook: `blocks.${row}.attn.hook_pattern`, head: column, dim: null }),
    say: (row, column) => (pair ? `head ${row}.${column}: ${exact(pair.values[row * pair.columns + column])}` : ""),
  });
  gridBox = make("div");
  grids.pairGrid = pairGrid;
  grid = new Grid(gridBox, { name: "Values", pick: (...cell) => shown?.pick(...cell), say: (...cell) => shown?.say(...cell) ?? "" });
  grids.view = grid;
  for (const name of ["head", "dim"]) {
    byId(name).addEventListener("change", () => {
      const value = byId(name).valueAsNumber, most = Number(byId(name).max);
      const is = Number.isInteger(value) && value >= 0 && value <= most;
      byId(name).setAttribute("aria-invalid", `${!is}`);
      if (is) go({ [name]: value });
      else notify(`${name} runs from 0 to ${most}`);
    });
  }
}

/** The values of a tap before, after, or the difference, as the state says: { values, shape, before } or undefined. */
function valuesOf(s, what) {
  const { before, after } = runs(), tap = tapOf(s, what);
  const of = (run) => known(look(run, tap))?.arrays;
  const old = of(before), now = after ? of(after) : old;
  const chosen = !after || s.compare === "before" ? old : now;
  if (!chosen || (after && s.compare === "difference" && !old)) return undefined;
  const names = Object.keys(chosen);
  const join = (arrays) => {
    if (!arrays) return null;
    if (names.length === 1) return arrays[names[0]].values;
    const all = new Float32Array(names.reduce((n, name) => n + arrays[name].values.length, 0));
    let at = 0;
    for (const name of names) all.set(arrays[name].values, at), (at += arrays[name].values.length);
    return all;
  };
  const values = join(chosen), then = after ? join(old) : null;
  const difference = Boolean(after && s.compare === "difference");
  return { values: difference ? values.map((x, i) => x - then[i]) : values, before: then, difference, names, shape: chosen[names[0]].shape };
}

/** The chosen number: where it is, and what it is before and after. The strongest of a row is taken where none is chosen. */
export function chosenNumber(s) {
  const { before, after } = runs(), tap = tapOf(s, "row");
  const of = (run) => run && known(look(run, tap))?.arrays[s.hook]?.values;
  const old = of(before), now = after ? of(after) : old;
  const row = now ?? old;
  if (!row) return null;
  let from = 0, length = row.length;
  if (s.kind === "heads") (length = row.length / app.about.model.n_head), (from = s.head * length);
  if (s.kind === "square") length = s.pos + 1;
  const part = row.subarray(from, from + length);
  const asked = s.kind === "square" ? s.key : s.kind === "scalar" ? 0 : s.dim;
  const at = asked ?? largest(part, 1, s.kind === "vocab" || s.kind === "square" ? (x) => x : Math.abs)[0] ?? 0;
  const value = (values) => (values ? (s.kind === "square" && at > s.pos ? (s.hook.endsWith("scores") ? -Infinity : 0) : values[from + at]) : undefined);
  const place = s.kind === "square" ? { key: at } : s.kind === "scalar" ? {} : { dim: at };
  return { s: { ...s, ...place }, at, before: value(old), after: after ? value(now) : undefined, ready: Boolean(now) };
}

/** A hook's axes by name and size. */
const sizesOf = (s) => s.row.axes.map((axis, i) => (axis === "one" ? "1" : `${axis === "pos" || axis === "key" ? app.tokens.length : s.row.sizes[i]} ${{ pos: "positions", key: "keys", head: "heads", dim: s.kind === "vocab" ? "tokens of the vocabulary" : "dimensions" }[axis]}`)).join(" x ");

const NAMES = { layers: "Layers", map: "Map", table: "Table", heads: "Heads" };

export function drawWhat() {
  const s = whole();
  if (!s) return;
  const { after } = runs(), box = byId("what");
  box.classList.toggle("edited", Boolean(after));
  byId("what-title").textContent = s.hook;
  byId("formula").textContent = `${sizesOf(s)}: ${s.row.formula}`;
  segments(byId("compare"), after ? COMPARES.map((name) => [name, name]) : [], s.compare, (compare) => go({ compare }));
  segments(byId("views"), viewsOf(s).map((view) => [view, NAMES[view]]), viewOf(s), (view) => go({ view }));
  const hasHead = s.row.axes.includes("head"), hasDim = s.row.axes.includes("dim");
  byId("head-field").hidden = !hasHead;
  byId("dim-field").hidden = !hasDim;
  byId("dim-name").textContent = s.kind === "vocab" ? "Token id" : "Dimension";
  const number = chosenNumber(s);
  fill("head", s.head, app.about.model.n_head - 1);
  if (hasDim) fill("dim", number?.s.dim ?? s.dim, s.row.sizes.at(-1) - 1);
  drawNumber(number, after);
  drawPair(s);
  drawView(s);
  drawExports(s);
}

function fill(name, value, most) {
  const input = byId(name);
  input.max = most;
  if (document.activeElement !== input && value !== null && value !== undefined && input.valueAsNumber !== value) input.value = value;
  input.setAttribute("aria-invalid", "false");
}

/** Buttons side by side of which one is pressed. */
export function segments(box, list, chosen, choose) {
  const key = JSON.stringify([list, chosen]);
  if (box.dataset.drawn === key) return;
  box.dataset.drawn = key;
  const focused = box.contains(document.activeElement);
  box.replaceChildren(...list.map(([value, name]) => make("button", { type: "button", "data-value": value, "aria-pressed": `${value === chosen}`, onclick: () => choose(value) }, name)));
  if (focused) box.querySelector('[aria-pressed="true"]')?.focus();
}

function drawNumber(number, after) {
  const out = byId("number");
  if (!number) {
    out.textContent = "…";
    byId("number-name").textContent = "";
    return;
  }
  const { s, before } = number;
  const difference = Boolean(after) && s.compare === "difference";
  const side = after && s.compare === "before" ? before : after ? number.after : before;
  const value = difference && (side === undefined || before === undefined) ? undefined : difference ? Math.fround(side - before) : side;
  const at = s.row.axes.filter((axis) => axis !== "one").map((axis) => s[axis]).join(", ");
  out.textContent = value === undefined ? "…" : exact(value);
  out.classList.toggle("waiting", value === undefined);
  const was = after && s.compare === "after" && before !== undefined ? `, before ${exact(before)}` : "";
  const label = s.kind === "vocab" ? ` for “${app.labels[s.dim]}”` : "";
  const key = s.kind === "square" ? ` to “${app.tokens[s.key]?.label}”` : "";
  byId("number-name").textContent = `${s.hook}[${at}] at “${app.tokens[s.pos].label}”${key}${label}${was}`;
}

function drawPair(s) {
  byId("pair-box").hidden = s.key === null;
  if (s.key === null) return;
  const { before, after } = runs();
  const of = (run) => run && known({ do: "pair", run, query: s.pos, key: s.key })?.arrays.pair;
  const old = of(before), difference = Boolean(after) && s.compare === "difference";
  const now = difference && !old ? undefined : after && s.compare !== "before" ? of(after) : old;
  byId("pair-title").textContent = `Which head looks from “${app.tokens[s.pos].label}” (${s.pos}) to “${app.tokens[s.key].label}” (${s.key})?`;
  byId("pair-box").classList.toggle("waiting", !now);
  if (!now) return;
  const [rows, columns] = now.shape;
  const values = difference ? now.values.map((x, i) => x - old.values[i]) : now.values;
  pair = { values, columns };
  const here = /^blocks\.(\d+)\.attn\./.exec(s.hook);
  const best = Array.from({ length: rows }, (_, r) => values.subarray(r * columns, (r + 1) * columns)).map((row) => largest(row, 1)[0]);
  pairGrid.draw({
    rows, columns, values, kind: difference ? "delta" : "weight", exponent: 0.5, scale: difference ? undefined : 1, tall: 24, height: 300, wide: 84,
    chosen: here && s.head !== null ? [Number(here[1]), s.head] : null,
    rowNames: Array.from({ length: rows }, (_, i) => `${i}`), rowWord: "layer", columnNames: Array.from({ length: columns }, (_, i) => `${i}`), columnWord: "head",
    words: (r, c) => show(values[r * columns + c], 3),
    note: s.key > s.pos ? "No token attends to a later one" : difference ? "" : `Strongest head of each layer, as layer.head: ${best.map((h, l) => `${l}.${h}`).slice(0, 48).join(" ")}`,
  });
}

function drawView(s) {
  const view = viewOf(s), box = byId("view");
  // Another view takes the focus along, since the element that had it is gone.
  if (built !== view) {
    refocus ||= box.contains(document.activeElement);
    built = view;
    box.replaceChildren(...(view === "map" || view === "layers" ? [gridBox] : []));
  }
  const found = valuesOf(s, view === "table" ? "row" : view);
  box.classList.toggle("waiting", !found);
  if (!found) return;
  if (view === "table") drawTable(box, s, found);
  else if (view === "heads") drawHeads(box, s, found);
  else if (view === "layers") drawLayers(s, found);
  else drawMap(s, found);
  if (refocus) box.querySelector('canvas.grid, button[aria-pressed="true"]')?.focus();
  refocus = false;
}

/** Every layer's row at the chosen token. */
function drawLayers(s, { values, names, difference }) {
  const rows = names.length, columns = values.length / rows, per = s.kind === "heads" ? columns / app.about.model.n_head : columns;
  const layer = names.indexOf(s.hook), dim = chosenNumber(s)?.s.dim;
  shown = {
    pick: (row, column) => go({ hook: names[row], ...(s.kind === "heads" ? { head: Math.floor(column / per), dim: column % per } : s.kind === "scalar" ? {} : { dim: column }) }),
    say: (row, column) => `${names[row]}${s.kind === "heads" ? `, head ${Math.floor(column / per)}` : ""}, ${s.kind === "scalar" ? "" : `dimension ${column % per}: `}${exact(values[row * columns + column])}`,
  };
  grid.name = `All layers at “${app.tokens[s.pos].label}”: layers down, dimensions across`;
  grid.draw({
    rows, columns, values, kind: difference ? "delta" : "signed", bands: s.kind === "heads" ? per : 0, height: 260,
    chosen: [layer, s.kind === "scalar" ? 0 : dim === undefined ? null : (s.kind === "heads" ? s.head * per : 0) + dim],
    rowNames: names.map((name) => /\d+/.exec(name)[0]), rowWord: "layer",
  });
}

/** Every token's row of a hook; of scores and patterns every query of a head. */
function drawMap(s, { values, difference }) {
  const n = app.tokens.length, labels = app.tokens.map(({ label }) => label);
  if (s.kind === "square") {
    const masked = values.slice();
    for (let q = 0; q < n; q++) for (let k = q + 1; k < n; k++) masked[q * n + k] = -Infinity;
    shown = {
      pick: (pos, key) => go({ pos, key }),
      say: (q, k) => `“${labels[q]}” (${q}) to “${labels[k]}” (${k}): ${k > q ? "no token looks ahead" : exact(values[q * n + k])}`,
    };
    grid.name = `Head ${s.head}: queries down, keys across`;
    const weights = s.hook.endsWith("pattern");
    grid.draw({
      rows: n, columns: n, values: masked, kind: difference ? "delta" : weights ? "weight" : "signed", exponent: 0.5, scale: weights && !difference ? 1 : undefined, square: true,
      chosen: [s.pos, s.key], rowNames: labels, columnNames: labels, words: (r, c) => show(values[r * n + c], 3),
    });
    return;
  }
  const columns = values.length / n, per = s.kind === "heads" ? columns / app.about.model.n_head : columns, dim = chosenNumber(s)?.s.dim;
  shown = {
    pick: (pos, column) => go({ pos, ...(s.kind === "heads" ? { head: Math.floor(column / per), dim: column % per } : s.kind === "scalar" ? {} : { dim: column }) }),
    say: (pos, column) => `“${labels[pos]}” (${pos})${s.kind === "heads" ? `, head ${Math.floor(column / per)}` : ""}, ${s.kind === "scalar" ? "" : `dimension ${column % per}: `}${exact(values[pos * columns + column])}`,
  };
  grid.name = `${s.hook}: tokens down, dimensions across`;
  grid.draw({
    rows: n, columns, values, kind: difference ? "delta" : "signed", bands: s.kind === "heads" ? per : 0, height: Math.min(520, Math.max(200, n * 20)),
    chosen: [s.pos, s.kind === "scalar" ? 0 : dim === undefined ? null : (s.kind === "heads" ? s.head * per : 0) + dim], rowNames: labels,
  });
}

/** A small map of every head; choosing one opens it. */
function drawHeads(box, s, { values, difference }) {
  const n = app.tokens.length, heads = app.about.model.n_head, side = Math.min(n, 64);
  const weights = s.hook.endsWith("pattern"), colours = palette(difference ? "delta" : weights ? "weight" : "signed");
  let most = weights && !difference ? 1 : 0;
  if (!most) for (const x of values) if (Number.isFinite(x) && Math.abs(x) > most) most = Math.abs(x);
  const old = box.querySelector(".heads");
  const buttons = Array.from({ length: heads }, (_, head) => {
    const strongest = new Float32Array(side * side);
    for (let q = 0; q < n; q++) {
      for (let k = 0; k <= q; k++) {
        const i = Math.floor((q * side) / n) * side + Math.floor((k * side) / n), x = values[(head * n + q) * n + k];
        if (Math.abs(x) > Math.abs(strongest[i])) strongest[i] = x;
      }
    }
    const pixels = Uint8Array.from(strongest, (x) => (weights && !difference ? Math.round(255 * Math.sqrt(Math.max(0, Math.min(1, x)))) : Math.round(127.5 + 127.5 * Math.max(-1, Math.min(1, x / (most || 1))))));
    const canvas = image(side, side, pixels, colours);
    return make("button", { type: "button", "data-head": head, "aria-pressed": `${head === s.head}`, onclick: () => go({ head, view: head === whole().head ? "map" : "heads" }) }, canvas, `head ${head}`);
  });
  const focused = old?.contains(document.activeElement);
  const note = n > side ? `Each pixel is the strongest of ${Math.ceil(n / side)} x ${Math.ceil(n / side)} weights. ` : "";
  box.replaceChildren(make("div", { class: "heads" }, ...buttons), make("p", { class: "note" }, `${note}Queries down, keys across. Choose a head, and again to see it large.`));
  if (focused) box.querySelector('[aria-pressed="true"]')?.focus();
}

/** How many rows a table has. */
const ROWS = 20;
let order = "strongest";

function drawTable(box, s, { values, before, difference }) {
  const n = app.tokens.length, heads = app.about.model.n_head;
  const per = s.kind === "heads" ? values.length / heads : s.kind === "square" ? s.pos + 1 : values.length;
  const from = s.kind === "heads" ? s.head * per : 0, part = values.subarray(from, from + per);
  const chosen = chosenNumber(s)?.at ?? 0, signed = s.kind !== "vocab" || difference;
  const places = order === "strongest" ? largest(part, ROWS, signed ? Math.abs : (x) => x) : Array.from({ length: Math.min(ROWS, per) }, (_, i) => Math.max(0, Math.min(per - ROWS, chosen - ROWS / 2)) + i);
  const label = s.kind === "square" ? (i) => app.tokens[i].label : s.kind === "vocab" ? (i) => app.labels[i] : null;
  const p = s.kind === "vocab" && !difference ? softmax(part) : null;
  const most = Math.max(...places.map((i) => Math.abs(part[i])).filter(Number.isFinite), 0) || 1;
  const choose = (i) => go(s.kind === "square" ? { key: i } : { dim: i });
  const rows = places.map((i) => make("tr", { class: i === chosen ? "selected" : null },
    make("td", { class: "number" }, make("button", { type: "button", onclick: () => choose(i) }, `${i}`)),
    ...(label ? [make("td", {}, make("span", { class: "token-text" }, label(i)))] : []),
    make("td", { class: "number value" }, show(part[i])),
    ...(before ? [make("td", { class: "number" }, show(before[from + i]))] : []),
    ...(p ? [make("td", { class: "number" }, show(p[i], 3))] : []),
    bar(part[i] / most, signed)));
  const what = s.kind === "square" ? "key" : s.kind === "vocab" ? "id" : "dimension";
  const heading = [what, ...(label ? ["token"] : []), difference ? "difference" : "value", ...(before ? ["before"] : []), ...(p ? ["p"] : []), ""];
  const sum = part.reduce((a, x) => (Number.isFinite(x) ? { n: a.n + 1, total: a.total + x, squares: a.squares + x * x, low: Math.min(a.low, x), high: Math.max(a.high, x) } : a), { n: 0, total: 0, squares: 0, low: Infinity, high: -Infinity });
  const focused = box.contains(document.activeElement) ? document.activeElement.textContent : null;
  box.replaceChildren(
    make("div", { class: "row" }, ...["strongest", "in order"].map((name) => make("button", { type: "button", "aria-pressed": `${order === name}`, onclick: () => ((order = name), drawWhat()) }, name))),
    make("table", { class: "values" }, make("caption", {}, `${per} values at “${app.tokens[s.pos].label}”${s.kind === "heads" || s.kind === "square" ? `, head ${s.head}` : ""}`),
      make("thead", {}, make("tr", {}, ...heading.map((name, i) => make("th", { scope: "col", class: name === "token" ? null : "number" }, name)))), make("tbody", {}, ...rows)),
    histogram(part), make("p", { class: "note" }, `Norm ${show(Math.sqrt(sum.squares))}, mean ${show(sum.total / sum.n)}, from ${show(sum.low)} to ${show(sum.high)}; the histogram has ${sum.n} values in 60 bins.`));
  if (focused) [...box.querySelectorAll("button")].find((button) => button.textContent === focused)?.focus();
}

function histogram(values) {
  let low = Infinity, high = -Infinity;
  for (const x of values) if (Number.isFinite(x)) (low = Math.min(low, x)), (high = Math.max(high, x));
  const bins = new Float64Array(60), canvas = make("canvas", { width: 600, height: 80, class: "histogram", role: "img", "aria-label": `Histogram from ${show(low, 3)} to ${show(high, 3)}` });
  for (const x of values) if (Number.isFinite(x)) bins[Math.min(59, Math.floor(((x - low) / (high - low || 1)) * 60))]++;
  const most = Math.max(...bins), context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
  bins.forEach((count, i) => count && context.fillRect(i * 10, 80 - Math.max(1, (78 * count) / most), 9, 80));
  return canvas;
}

/** The command for what is shown. */
export function commandNow() {
  const s = whole(), number = s && chosenNumber(s);
  return number ? toCommand(number.s, s.row.axes, app.served?.arguments) : null;
}
