// WHERE: layers x positions of the stream (norm, logit lens); a sweep: what happens when each head is zeroed, or each place is patched
// from the second text; or an attribution: what each head, or each token, adds to a logit.
import { byId, show } from "./draw.js";
import { answerOf, app, attributionRequests, editedHooks, go, known, runs, sweepRefusal, sweepRequest, whole } from "./app.js";
import { Grid } from "./grid.js";
import { whereCommand } from "./state.js";
import { grids } from "./what.js";

let grid;

export function startWhere() {
  grid = new Grid(byId("where-grid"), { name: "Where: layers down, tokens across", pick, say });
  grids.where = grid;
  byId("where-kind").addEventListener("change", () => go({ where: byId("where-kind").value }));
}

/** What is drawn: rows are stages (the input of block 0, then the output of each block), or blocks in a sweep. */
let shown = null;

function stageHook(stage) {
  return stage === 0 ? "blocks.0.hook_resid_pre" : `blocks.${stage - 1}.hook_resid_post`;
}

/** The stage that a hook belongs to: what is before the blocks to the input, what is after them to the last block's output. */
function stageOf(hook) {
  if (hook.name === "blocks.0.hook_resid_pre") return 0;
  if (hook.layer === null) return hook.name.startsWith("hook_") ? 0 : app.about.model.n_layer;
  return hook.layer + 1;
}

function pick(row, column) {
  if (!shown) return;
  if (shown.sweep === "parts") go(shown.parts[column].target(row));
  else if (shown.sweep === "tokens") go({ key: column });
  else if (shown.sweep === "zero") go({ hook: `blocks.${row}.attn.hook_z`, head: column, dim: null });
  // What is patched is chosen, and the prediction that the sweep is about stays.
  else if (shown.sweep === "patch") go({ hook: `blocks.${row}.hook_resid_pre`, pos: column, ask: whole().ask, dim: null });
  else go({ hook: stageHook(row), pos: column, ask: null });
}

function say(row, column) {
  if (!shown) return "";
  const { values, columns, sweep, compared } = shown, value = values[row * columns + column], s = whole();
  if (sweep === "zero") return `head ${row}.${column}: log p changes by ${show(value)} when it is zeroed`;
  if (sweep === "patch") return `layer ${row}, “${app.tokens[column].label}” (${column}): log p changes by ${show(value)} when patched from B${s.where === "fast" ? ", by the gradient" : ""}`;
  if (sweep === "parts") return `layer ${row}, ${shown.parts[column].name}: adds ${show(value)}${compared}`;
  if (sweep === "tokens") return `“${app.tokens[column].label}” (${column}), ${TOKEN_ROWS[row][1]}: ${show(value)}${compared}`;
  const what = { norm: "norm", next: "p(token that follows)", entropy: "entropy", rank: "rank of the token that follows" }[s.where];
  return `${row === 0 ? "input" : `layer ${row - 1}`}, “${app.tokens[column].label}” (${column}): ${what} ${Number.isNaN(value) ? "does not exist, nothing follows" : written(value)}${compared}`;
}

/** A value of WHERE as text: ranks are whole numbers. */
const written = (value, digits) => (whole().where === "rank" ? `${value}` : show(value, digits));

export function drawWhere() {
  const s = whole(), box = byId("where");
  byId("where-kind").value = app.state.where;
  if (!s) return;
  const { before, after } = runs();
  const labels = app.tokens.map(({ label }) => label), layers = app.about.model.n_layer;
  const command = answerOf(s) === undefined ? null : whereCommand(s, answerOf(s), app.served?.arguments);
  byId("where-command").hidden = command === null;
  byId("where-command").textContent = command ?? "";
  if (s.where === "parts" || s.where === "tokens") return drawAttribution(s, box);
  if (["zero", "patch", "fast"].includes(s.where)) {
    const refusal = sweepRefusal(s), request = sweepRequest(s), answer = request && known(request)?.json;
    box.classList.toggle("waiting", !answer && !refusal);
    // A sweep is of the run without edits.
    box.classList.remove("edited");
    if (refusal) {
      shown = null;
      grid.clear(refusal);
      return;
    }
    if (!answer) return;
    const [rows, columns] = answer.shape;
    const values = Float32Array.from(answer.values, (value) => value - answer.unchanged);
    shown = { values, columns, sweep: s.where === "zero" ? "zero" : "patch", compared: "" };
    const ours = s.where === "zero" ? /attn\.hook_/.test(s.hook) : /hook_resid_pre$/.test(s.hook);
    grid.name = s.where === "zero" ? "Effect of zeroing each head: layers down, heads across" : "Effect of patching from B: layers down, tokens across";
    grid.draw({
      rows, columns, values, kind: "delta", chosen: ours ? [s.row.layer, s.where === "zero" ? s.head : s.pos] : null,
      rowNames: Array.from({ length: rows }, (_, i) => `${i}`), rowWord: "layer", columnNames: s.where === "zero" ? Array.from({ length: columns }, (_, i) => `${i}`) : labels, columnWord: s.where === "zero" ? "head" : "",
      words: (r, c) => show(values[r * columns + c], 2),
      note: `Change of log p(“${named(request.answer)}”) after “${app.tokens[s.ask].label}” (${s.ask})${s.answer === null ? ", the unedited text's likeliest next token" : ""}, n = 1${s.where === "fast" ? ". Estimated from one gradient: each place's difference of values times the gradient there; no cell was run" : ""}`,
    });
    return;
  }
  const answers = { before: known({ do: "where", run: before, top: 5 }), after: after && known({ do: "where", run: after, top: 5 }) };
  const difference = Boolean(after) && s.compare === "difference";
  const wanted = after && s.compare !== "before" ? answers.after : answers.before;
  const ready = wanted && (!difference || answers.before);
  // Until the edited run is there, the other stands in its place, greyed; a difference has nothing in its place.
  const now = ready ? wanted : difference ? undefined : answers.before;
  box.classList.toggle("waiting", !ready);
  box.classList.toggle("edited", Boolean(after));
  if (!now) return;
  const { shape: [rows, columns], values: all } = now.arrays[s.where];
  const old = answers.before?.arrays[s.where].values;
  const values = difference ? all.map((value, i) => value - old[i]) : all;
  shown = { values, columns, compared: difference ? " more than before" : "" };
  grid.name = "Where: layers down, tokens across";
  const changed = editedHooks(), edited = new Set(app.about.hooks.filter(({ name }) => changed.has(name)).map(stageOf));
  // Norms grow with the layers, so each row of them would look alike on one scale; the first token's is often far larger.
  grid.draw({
    rows, columns, values, kind: difference ? "delta" : "weight", exponent: s.where === "next" ? 0.5 : s.where === "rank" ? 0.35 : 0.7,
    scale: difference ? undefined : s.where === "next" ? 1 : s.where === "entropy" ? Math.log(app.about.model.vocab_size) : undefined,
    chosen: [stageOf(s.row), s.pos], blank: true, tall: 26, height: Math.max(220, Math.min(420, rows * 16)), edited,
    rowNames: Array.from({ length: rows }, (_, i) => (i > 0 ? `${i - 1}` : byId("where-grid").clientWidth < 480 ? "in" : "input")), rowWord: "layer", columnNames: labels,
    words: (r, c) => (Number.isNaN(values[r * columns + c]) ? "" : written(values[r * columns + c], 3)),
    note: layers > 0 && s.where === "next" ? "By the logit lens: the stream through ln_f and the unembedding" : "",
  });
}

const named = (id) => app.labels[id] ?? `#${id}`;

/** The rows of what each token adds: the request's name, and what it is. */
const TOKEN_ROWS = [["direct", "what heads bring from there to the chosen token, directly"], ["integrated", "integrated gradients from zero embeddings"]];

/** What each head and MLP, or each token, adds to the logit of the unedited text's likeliest next token. */
function drawAttribution(s, box) {
  const { before, after } = runs(), difference = Boolean(after) && s.compare === "difference";
  const of = (run) => {
    const requests = Object.entries(attributionRequests(s, run)).map(([name, request]) => [name, known(request)?.json]);
    return requests.length && requests.every(([, answer]) => answer) ? Object.fromEntries(requests) : null;
  };
  const old = of(before), now = after && s.compare !== "before" ? of(after) : old;
  box.classList.toggle("waiting", !now || (difference && !old));
  box.classList.toggle("edited", Boolean(after));
  if (!now || (difference && !old)) return;
  const parts = s.where === "parts", heads = app.about.model.n_head, layers = app.about.model.n_layer;
  const names = parts ? null : TOKEN_ROWS.map(([name]) => name);
  const rows = parts ? layers : names.length, columns = parts ? heads + 2 : app.tokens.length;
  const read = (answers) => (parts ? gridOf(answers.direct, layers, heads) : Float32Array.from(names.flatMap((name) => answers[name].values.slice(0, columns))));
  const then = difference ? read(old) : null, values = then ? read(now).map((x, i) => x - then[i]) : read(now);
  const columnsOf = [
    ...Array.from({ length: heads }, (_, head) => ({ name: `head ${head}`, target: (layer) => ({ hook: `blocks.${layer}.attn.hook_z`, head, dim: null }) })),
    { name: "the bias of attention", target: (layer) => ({ hook: `blocks.${layer}.hook_attn_out`, dim: null }) },
    { name: "the MLP", target: (layer) => ({ hook: `blocks.${layer}.hook_mlp_out`, dim: null }) },
  ];
  shown = { values, columns, sweep: s.where, parts: columnsOf, compared: difference ? " more than before" : "" };
  const site = s.row.layer === null ? null : /attn\.hook_/.test(s.hook) ? s.head : /hook_attn_out$/.test(s.hook) ? heads : /hook_mlp_out$/.test(s.hook) ? heads + 1 : null;
  const asked = `the logit of “${named(answerOf(s))}” after “${app.tokens[s.ask].label}” (${s.ask})`;
  grid.name = parts ? `What each head and MLP adds to ${asked}: layers down` : `What each token adds to ${asked}`;
  grid.draw({
    rows, columns, values, kind: difference ? "delta" : "signed", tall: 26,
    chosen: parts ? (site === null ? null : [s.row.layer, site]) : [null, s.key],
    rowNames: parts ? Array.from({ length: rows }, (_, i) => `${i}`) : names, rowWord: parts ? "layer" : "",
    columnNames: parts ? [...Array.from({ length: heads }, (_, i) => `${i}`), "b_O", "MLP"] : app.tokens.map(({ label }) => label), columnWord: parts ? "head" : "",
    words: (r, c) => show(values[r * columns + c], 2),
    note: parts ? partsNote(now.direct, asked) : tokensNote(now, asked),
  });
}

/** Heads, the attention's bias and the MLP of every layer, in the grid's order. */
function gridOf({ labels, values }, layers, heads) {
  const grid = new Float32Array(layers * (heads + 2));
  labels.forEach((label, i) => {
    const [, layer, head, bias] = /^blocks\.(\d+)\.(?:attn\.hook_result\[(\d+)\]|(attn\.b_O)|hook_mlp_out)$/.exec(label) ?? [];
    if (layer !== undefined) grid[Number(layer) * (heads + 2) + (head !== undefined ? Number(head) : bias ? heads : heads + 1)] = values[i];
  });
  return grid;
}

/** What has no place in the grid, so that the sum can be checked. */
function partsNote({ labels, values, total, remainder }, asked) {
  const others = labels.flatMap((label, i) => (label.startsWith("blocks.") ? [] : [`${label} ${show(values[i], 4)}`]));
  return `The parts of ${asked}, ${show(total, 6)}: the grid, ${others.join(", ")}, remainder ${show(remainder, 2)}`;
}

function tokensNote({ direct, integrated }, asked) {
  return `Of ${asked}. Direct: ${show(direct.total, 6)} in all, ${show(direct.values.at(-1), 4)} of it not brought by a head. Integrated gradients: ${show(integrated.total, 6)} more than with zero embeddings, remainder ${show(integrated.remainder, 2)}. A click chooses the token attended to`;
}
