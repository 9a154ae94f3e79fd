// WHERE: layers x positions of the stream (norm, logit lens), or a sweep: what happens when each head is zeroed, or each place is
// patched from the second text.
import { byId, show } from "./draw.js";
import { app, go, known, runs, sweepRefusal, sweepRequest, whole } from "./app.js";
import { Grid } from "./grid.js";
import { editsOf } from "./state.js";

let grid;

export function startWhere() {
  grid = new Grid(byId("where-grid"), { name: "Where: layers down, tokens across", pick, say });
  byId("where-kind").addEventListener("change", () => go({ where: byId("where-kind").value }));
}

/** What is drawn: rows are stages (the input of block 0, then the output of each block), or blocks in a sweep. */
let shown = null;

function stageHook(stage) {
  return stage === 0 ? "blocks.0.hook_resid_pre" : `blocks.${stage - 1}.hook_resid_post`;
}

function pick(row, column) {
  if (!shown) return;
  if (shown.sweep === "zero") go({ hook: `blocks.${row}.attn.hook_z`, head: column, dim: null });
  else if (shown.sweep === "patch") go({ hook: `blocks.${row}.hook_resid_pre`, pos: column, dim: null });
  else go({ hook: stageHook(row), pos: column });
}

function say(row, column) {
  if (!shown) return "";
  const { values, columns, sweep, compared } = shown, value = values[row * columns + column], s = whole();
  if (sweep === "zero") return `head ${row}.${column}: log p changes by ${show(value)} when it is zeroed`;
  if (sweep === "patch") return `block ${row}, “${app.tokens[column].label}” (${column}): log p changes by ${show(value)} when patched from B`;
  const what = { norm: "norm", next: "p(token that follows)", entropy: "entropy", rank: "rank of the token that follows" }[s.where];
  return `${row === 0 ? "input" : `layer ${row - 1}`}, “${app.tokens[column].label}” (${column}): ${what} ${Number.isNaN(value) ? "does not exist, nothing follows" : show(value)}${compared}`;
}

export function drawWhere() {
  const s = whole(), box = byId("where");
  byId("where-kind").value = app.state.where;
  if (!s) return;
  const { before, after } = runs();
  const labels = app.tokens.map(({ label }) => label), layers = app.about.model.n_layer;
  const edited = editsOf(s).map((edit) => Number(/^blocks\.(\d+)\./.exec(edit)?.[1] ?? NaN)).filter(Number.isInteger);
  if (s.where === "zero" || s.where === "patch") {
    const refusal = sweepRefusal(s), request = sweepRequest(s), answer = request && known(request)?.json;
    box.classList.toggle("waiting", !answer && !refusal);
    if (refusal) {
      shown = null;
      grid.clear(refusal);
      return;
    }
    if (!answer) return;
    const [rows, columns] = answer.shape;
    const values = Float32Array.from(answer.values, (value) => value - answer.unchanged);
    shown = { values, columns, sweep: s.where, compared: "" };
    const ours = s.where === "zero" ? /attn\.hook_/.test(s.hook) : /hook_resid_pre$/.test(s.hook);
    grid.name = s.where === "zero" ? "Effect of zeroing each head: layers down, heads across" : "Effect of patching from B: layers down, tokens across";
    grid.draw({
      rows, columns, values, kind: "delta", chosen: ours ? [s.row.layer, s.where === "zero" ? s.head : s.pos] : null,
      rowNames: Array.from({ length: rows }, (_, i) => `${i}`), columnNames: s.where === "zero" ? Array.from({ length: columns }, (_, i) => `${i}`) : labels,
      words: (r, c) => show(values[r * columns + c], 2),
      note: `Change of log p(“${app.labels[request.answer] ?? `#${request.answer}`}”), the unedited text's likeliest next token, n = 1`,
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
  const first = /^blocks\.0\.hook_resid_pre$/.test(s.hook) ? 0 : s.row.layer === null ? (s.hook.startsWith("hook_") ? 0 : rows - 1) : s.row.layer + 1;
  // Norms grow with the layers, so each row of them would look alike on one scale; the first token's is often far larger.
  grid.draw({
    rows, columns, values, kind: difference ? "delta" : "weight", exponent: s.where === "next" ? 0.5 : s.where === "rank" ? 0.35 : 0.7,
    scale: difference ? undefined : s.where === "next" ? 1 : s.where === "entropy" ? Math.log(app.about.model.vocab_size) : undefined,
    chosen: [first, s.pos], blank: true, tall: 26, height: Math.max(220, Math.min(420, rows * 16)), edited: edited.map((layer) => layer + 1),
    rowNames: Array.from({ length: rows }, (_, i) => (i === 0 ? "in" : `${i - 1}`)), columnNames: labels,
    words: (r, c) => (Number.isNaN(values[r * columns + c]) ? "" : show(values[r * columns + c], 3)),
    note: layers > 0 && s.where === "next" ? "By the logit lens: the stream through ln_f and the unembedding" : "",
  });
}
