// A sweep's page: the metric of every changed run as a heat map, by cell and in order of strength. Owns what is chosen (`state`);
// every part is drawn from it. The last two axes are rows and columns, the axes before them choose one of several maps.

const { axes, shape, labels, metric } = data;
const nCells = shape.reduce((product, n) => product * n, 1);
const nCols = shape.at(-1) ?? 1, nRows = shape.at(-2) ?? 1, nPanels = nCells / (nRows * nCols) || 0;
const isPatch = data.command === "patch";
const SHOWN = {
  normalized: ["normalized", data.noise ? "0: as clean, -1: as corrupt" : "0: as corrupt, 1: as clean"],
  effect: ["effect", `${metric} of the changed run minus that of the unchanged one`],
  values: [metric, `${metric} of the changed run`],
  effect_standard_error: ["standard error", `of the mean effect over ${data.n} ${isPatch ? "pairs" : "texts"}`],
  exact: ["exact", `${metric} where the changed run is run, and not estimated`],
  p: ["p", "how often chance alone gives an effect at least as large"],
};
const state = { show: "", cell: 0, at: null };
const numbers = {};
let grid = { left: 0, top: 0, width: 1, height: 1 };

const panelOf = (cell) => Math.floor(cell / (nRows * nCols));
/** The place of a cell along every axis. */
function places(cell) {
  const found = [];
  for (const n of shape.toReversed()) {
    found.unshift(cell % n);
    cell = Math.floor(cell / n);
  }
  return found;
}

/** A place along an axis in words: positions with their token. */
function label(axis, place) {
  const text = `${labels[axis][place]}`;
  if (axes[axis] !== "pos" && axes[axis] !== "key") return text;
  if (!data.texts) return `${place}`;
  const [clean, corrupt] = [data.texts[0].tokens[place], data.texts.at(-1).tokens[place]];
  const differs = clean.id !== corrupt.id;
  return differs ? `${place} ${clean.label}/${corrupt.label}` : `${place} ${clean.label}`;
}
const words = (cell) => places(cell).map((place, axis) => `${axes[axis]} ${label(axis, place)}`).join(", ") || "the only cell";

/** Chooses something and draws what depends on it. */
function choose(change) {
  Object.assign(state, change);
  drawMap();
  drawCell();
  if ("show" in change) drawStrongest();
  if ("cell" in change) announce(`${words(state.cell)}: ${SHOWN[state.show][0]} ${show(numbers[state.show][state.cell])}`);
}

const differs = (place) => data.texts?.length > 1 && data.texts[0].tokens[place]?.id !== data.texts[1].tokens[place]?.id;

function drawTexts() {
  const lines = (data.texts ?? []).map(({ name, tokens }) => {
    const spans = tokens.map((token, place) =>
      make("span", { class: `tok${differs(place) ? " key" : ""}`, title: `position ${place}, id ${token.id}`, "data-place": place }, token.label));
    return make("p", { class: "text" }, make("small", {}, `${name} `), ...spans);
  });
  byId("texts").replaceChildren(...lines);
  byId("texts-note").textContent = data.texts
    ? data.texts.length > 1 ? "Tokens that differ are underlined. Where texts have different lengths, those that line up are shown." : ""
    : `${data.n} ${isPatch ? "pairs" : "texts"}; every number is a mean over them.`;
  const own = [["clean", data.clean], ["corrupt", data.corrupt], ["unchanged", data.base]].filter(([, value]) => value !== null);
  byId("own").replaceChildren(...own.flatMap(([name, value]) => [make("dt", {}, `${metric}, ${name}`), make("dd", { id: `own-${name}` }, show(value))]));
}

function makeControls() {
  byId("shows").append(...Object.keys(SHOWN).filter((name) => numbers[name]).map((name) =>
    make("label", {}, make("input", { type: "radio", name: "show", value: name, checked: name === state.show, onchange: () => choose({ show: name }) }), make("span", {}, SHOWN[name][0]))));
  const leading = axes.slice(0, -2);
  byId("panels").hidden = nPanels < 2;
  byId("panels-legend").textContent = leading.join(", ");
  if (nPanels > 1) byId("panels").append(...Array.from({ length: nPanels }, (_, panel) => {
    const name = places(panel * nRows * nCols).slice(0, leading.length).map((place, axis) => label(axis, place)).join(", ");
    const to = () => choose({ cell: panel * nRows * nCols + (state.cell % (nRows * nCols)) });
    return make("label", {}, make("input", { type: "radio", name: "panel", value: panel, onchange: to }), make("span", {}, name));
  }));
  const canvas = byId("map");
  canvas.addEventListener("pointermove", (event) => point(cellAt(event)));
  canvas.addEventListener("pointerleave", () => point(null));
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (cell !== null) choose({ cell });
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const here = state.cell % (nRows * nCols), clamp = (i, n) => Math.min(Math.max(i, 0), n - 1);
    const row = clamp(Math.floor(here / nCols) + step[0], nRows), col = clamp((here % nCols) + step[1], nCols);
    choose({ cell: state.cell - here + row * nCols + col });
  });
  dark.addEventListener("change", drawMap);
  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(drawMap, 100);
  });
}

function cellAt(event) {
  const box = byId("map").getBoundingClientRect();
  const col = Math.floor((event.clientX - box.left - grid.left) / grid.width), row = Math.floor((event.clientY - box.top - grid.top) / grid.height);
  return col < 0 || row < 0 || col >= nCols || row >= nRows ? null : panelOf(state.cell) * nRows * nCols + row * nCols + col;
}

function point(cell) {
  if (state.at === cell) return;
  state.at = cell;
  requestAnimationFrame(drawMap);
}

/** The largest size of a number that is one; outliers are clipped as in the terminal's picture. */
function largest(values) {
  let most = 0;
  for (const value of values) if (Number.isFinite(value)) most = Math.max(most, Math.abs(value));
  return most || 1;
}

function drawMap() {
  const canvas = byId("map"), values = numbers[state.show], panel = panelOf(state.cell);
  const signed = state.show !== "p" && state.show !== "effect_standard_error";
  const most = state.show === "p" ? 1 : largest(values), palette = signed ? colours().signed : colours().weight;
  const rowAxis = axes.length - 2, colAxis = axes.length - 1;
  const rowLabel = (row) => (rowAxis < 0 ? "" : label(rowAxis, row)), colLabel = (col) => (colAxis < 0 ? "" : label(colAxis, col));
  const measure = make("canvas").getContext("2d");
  const font = "12px system-ui, sans-serif";
  measure.font = font;
  const widest = (n, of) => Math.min(180, Math.max(0, ...Array.from({ length: Math.min(n, 400) }, (_, i) => measure.measureText(of(i)).width)));
  const left = widest(nRows, rowLabel) + 12, below = widest(nCols, colLabel) + 14, top = 4;
  const room = byId("map-scroll").clientWidth - left - 8;
  grid = { left, top, width: Math.min(44, Math.max(room / nCols, 3)), height: Math.min(24, Math.max(600 / nRows, 3)) };
  const width = Math.ceil(left + grid.width * nCols + 8), height = Math.ceil(top + grid.height * nRows + below);
  canvas.style.width = `${width}px`;
  const context = sized(canvas, width, height);
  const indices = Uint8Array.from({ length: nRows * nCols }, (_, i) => {
    const value = values[panel * nRows * nCols + i];
    const share = Math.max(-1, Math.min(1, Number.isFinite(value) ? value / most : 0));
    return Math.round(signed ? 127.5 + 127.5 * share : 255 * share);
  });
  context.drawImage(image(nCols, nRows, indices, palette), left, top, grid.width * nCols, grid.height * nRows);
  context.font = font;
  context.fillStyle = cssColour("--soft");
  const every = (n, size) => Math.max(1, Math.ceil(13 / size));
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (let row = 0; row < nRows; row += every(nRows, grid.height)) context.fillText(rowLabel(row), left - 6, top + (row + 0.5) * grid.height, 180);
  for (let col = 0; col < nCols; col += every(nCols, grid.width)) {
    context.save();
    context.translate(left + (col + 0.5) * grid.width, top + nRows * grid.height + 6);
    context.rotate(-Math.PI / 2);
    context.fillText(colLabel(col), 0, 0, 180);
    context.restore();
  }
  for (const [cell, name, line] of [[state.cell, "--ink", 2], [state.at, "--soft", 1]]) {
    if (cell === null || panelOf(cell) !== panel) continue;
    const here = cell % (nRows * nCols);
    context.strokeStyle = cssColour(name);
    context.lineWidth = line;
    context.strokeRect(left + (here % nCols) * grid.width, top + Math.floor(here / nCols) * grid.height, grid.width, grid.height);
  }
  byId("map-title").textContent = `${data.at.join(", ")}: ${data.how}`;
  byId("map-note").textContent = `${SHOWN[state.show][0]}: ${SHOWN[state.show][1]}. Rows: ${axes[rowAxis] ?? "one"}; columns: ${axes[colAxis] ?? "one"}. Click a cell, or move with the arrow keys.`;
  const read = state.at ?? state.cell;
  byId("read").textContent = `${words(read)}: ${SHOWN[state.show][0]} ${show(numbers[state.show][read])}`;
  const scale = byId("map-scale"), bar = sized(scale, scale.clientWidth, 10);
  bar.drawImage(image(256, 1, Uint8Array.from({ length: 256 }, (_, i) => i), palette), 0, 0, scale.clientWidth, 10);
  const ticks = signed ? [-most, 0, most] : [0, most / 2, most];
  byId("map-ticks").replaceChildren(...ticks.map((value, i) => make("span", { "--at": i / 2 }, show(value, 3))));
  const chosen = document.querySelector(`input[name="panel"][value="${panel}"]`);
  if (chosen) chosen.checked = true;
  const place = axes.findIndex((axis) => axis === "pos");
  for (const token of document.querySelectorAll("#texts .tok")) token.classList.toggle("pointed", place >= 0 && Number(token.dataset.place) === places(state.cell)[place]);
}

/** The edit that makes the chosen cell's run, where one edit does. */
function edit(cell) {
  if (!data.cell) return null;
  const at = Object.fromEntries(places(cell).map((place, axis) => [axes[axis], place]));
  const site = data.cell.sites[at.site ?? 0];
  const hook = site.replace("{i}", at.layer ?? "*");
  const select = ["pos", "head", "dim", "key"].filter((axis) => axis in at).map((axis) => `${axis}=${at[axis]}`).join(",");
  return `${hook}${select && `@${select}`}:${data.cell.op}`;
}

function drawCell() {
  const { cell } = state;
  byId("cell-title").textContent = words(cell);
  const facts = Object.keys(SHOWN).filter((name) => numbers[name]).map((name) => [name, SHOWN[name][0], show(numbers[name][cell], 7)]);
  if (numbers.ci) facts.push(["ci", "95 % interval of the mean", `${show(numbers.ci[2 * cell], 7)} to ${show(numbers.ci[2 * cell + 1], 7)}`]);
  byId("cell").replaceChildren(...facts.flatMap(([name, what, value]) => [make("dt", {}, what), make("dd", { id: `cell-${name}` }, value)]));
  const written = edit(cell);
  const line = document.querySelector('[data-command="cell"]');
  line.hidden = written === null;
  if (written !== null) showCommand("cell", "runs this cell alone and prints the logits that it was measured by", `actscope extract --json --hook unembed.hook_out --edit ${shell(written)} ${data.cell.arguments}`);
}

function drawStrongest() {
  const most = 20, values = numbers.effect;
  const order = Array.from({ length: nCells }, (_, i) => i).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]) || a - b).slice(0, most);
  const columns = Object.keys(SHOWN).filter((name) => numbers[name]);
  const head = [...axes.map((axis) => make("th", { scope: "col" }, axis)), ...columns.map((name) => make("th", { scope: "col", class: "number" }, SHOWN[name][0])), make("th", { "aria-hidden": "true" })];
  byId("strongest").tHead.replaceChildren(make("tr", {}, ...head));
  const longest = Math.abs(values[order[0]]) || 1;
  byId("strongest").tBodies[0].replaceChildren(...order.map((cell) =>
    make("tr", {},
      ...places(cell).map((place, axis) => make("td", {}, axis === axes.length - 1 ? make("button", { type: "button", "data-cell": cell, onclick: () => choose({ cell }) }, label(axis, place)) : label(axis, place))),
      ...columns.map((name) => make("td", { class: "number" }, show(numbers[name][cell]))), bar(values[cell] / longest, true))));
  byId("strongest-note").textContent = nCells > most ? `The ${most} largest effects of ${nCells} cells.` : "";
}

function drawAbout() {
  byId("model").textContent = model.name;
  byId("facts").textContent = `${data.command} · ${data.at.join(", ")} by ${axes.join(", ") || "nothing"} · ${metric} · ${nCells} changed run${nCells === 1 ? "" : "s"}${data.n > 1 ? ` for each of ${data.n} ${isPatch ? "pairs" : "texts"}` : ""}`;
  const facts = [
    ["Numbers", "Every number of every cell, as f32. JSON, CSV and npz have them in f64."],
    ["Names", `Hooks are named and defined as in ${data.definitions}.`],
    ["Model", `${model.name}${model.process && `, its weights processed (${model.process})`}, fingerprint ${model.fingerprint}`],
    ["Computed on", data.device],
    ...(data.edits ?? []).map(({ edit }) => ["Edited", edit]),
    ["Made by", `actscope ${data.version}`],
  ];
  byId("about").replaceChildren(...facts.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
}

async function start() {
  drawAbout();
  drawTexts();
  if (typeof DecompressionStream === "undefined") {
    byId("views").textContent = "This browser is too old to unpack the page's data: it takes Chrome or Edge 103, Firefox 113, Safari 16.4, or later.";
    return;
  }
  for (const name of data.arrays) numbers[name] = floats(await unpack(name));
  state.show = numbers.normalized ? "normalized" : "effect";
  const sizes = numbers.effect.map(Math.abs);
  state.cell = Math.max(0, sizes.indexOf(Math.max(...sizes.filter(Number.isFinite))));
  makeControls();
  choose({ show: state.show });
  document.documentElement.dataset.ready = "";
}

start();
