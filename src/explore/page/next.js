// NEXT: the next token's distribution before and after the edits, and how far they are apart.
import { byId, make, show } from "./draw.js";
import { answerOf, app, go, known, notify, runs, whole } from "./app.js";
import { divergence, largest, softmax } from "./numbers.js";
import { editsOf, generateCommand } from "./state.js";

export function startNext() {
  byId("continue").addEventListener("click", carryOn);
  byId("ask-here").addEventListener("click", () => go({ ask: null }));
  byId("answer").addEventListener("change", () => {
    const written = byId("answer").value, id = idOf(written);
    byId("answer").setAttribute("aria-invalid", `${id === undefined}`);
    if (id === undefined) notify(`${written} is no token of this vocabulary`);
    else go({ answer: id });
  });
}

/** The id of a token that is named by its text, with or without its space, or as id:123; null for none, undefined for one that is not
 *  there. */
function idOf(written) {
  if (!written.trim()) return null;
  const [, number] = /^id:(\d+)$/.exec(written.trim()) ?? [];
  const id = number !== undefined ? Number(number) : [written, ` ${written.trim()}`, written.trim()].map((text) => app.labels.indexOf(text)).find((at) => at >= 0);
  return id !== undefined && id < app.about.model.vocab_size ? id : undefined;
}

/** Both distributions: { before, after }, each undefined until it is known. */
function distributions(s) {
  const { before, after } = runs();
  const of = (run) => {
    const answer = run && known({ do: "next", run, pos: s.ask });
    return answer && (answer.p ??= softmax(answer.arrays.logits.values));
  };
  return { before: of(before), after: of(after), edited: Boolean(after) };
}

export function drawNext() {
  const s = whole();
  if (continuedOf !== JSON.stringify(runs())) byId("continued").hidden = true;
  if (!s) return;
  const { before, after, edited } = distributions(s), body = byId("next").tBodies[0];
  const token = (at) => `“${app.tokens[at].label}” (${at})`;
  byId("next-note").textContent = `After ${token(s.ask)}${s.ask < app.tokens.length - 1 ? `; really next is “${app.tokens[s.ask + 1].label}”` : ""}`;
  byId("ask-here").hidden = s.ask === s.pos;
  byId("ask-here").textContent = `Ask after ${token(s.pos)} instead`;
  if (!before) return byId("next").classList.add("waiting");
  byId("next").className = `${edited ? "wide" : ""}${edited && !after ? " waiting" : ""}`;
  const really = app.tokens[s.ask + 1]?.id;
  const ids = new Set(largest(before, 8));
  if (after) for (const id of largest(after, 8)) ids.add(id);
  if (really !== undefined) ids.add(really);
  if (s.answer !== null) ids.add(s.answer);
  const order = [...ids].sort((a, b) => (after ?? before)[b] - (after ?? before)[a]);
  const most = Math.max(...order.map((id) => Math.max(before[id], after?.[id] ?? 0)));
  const heading = ["token", ...(edited ? ["before", "after", "Δ"] : ["p"]), ""];
  byId("next").tHead.replaceChildren(make("tr", {}, ...heading.map((name, i) => make("th", { scope: "col", class: i ? "number" : null }, name))));
  body.replaceChildren(...order.map((id) => make("tr", { "data-id": id, class: id === really ? "selected" : null },
    make("td", {}, make("span", { class: "token-text" }, app.labels[id] ?? `#${id}`), id === really ? make("span", { class: "unseen" }, " (really next)") : ""),
    make("td", { class: "number before" }, show(before[id], 3)),
    ...(edited ? [make("td", { class: "number after" }, after ? show(after[id], 3) : "…"), make("td", { class: "number" }, after ? change(after[id] - before[id]) : "…")] : []),
    make("td", { class: "bar", "aria-hidden": "true" }, make("i", { class: edited ? "was" : null, "--length": before[id] / most }), ...(after ? [make("i", { class: "now", "--length": after[id] / most })] : [])))));
  const answer = answerOf(s);
  if (document.activeElement !== byId("answer")) byId("answer").value = s.answer === null ? "" : app.labels[s.answer] ?? `id:${s.answer}`;
  byId("answer").placeholder = answer === undefined ? "" : `${app.labels[answer] ?? `id:${answer}`}, the likeliest`;
  byId("next-facts").textContent = facts(s, before, after, edited);
  const old = likeliest(before), now = after && likeliest(after);
  byId("likeliest").replaceChildren("next ", make("span", { class: "token-text" }, old), ...(edited ? [" → ", make("span", { class: "token-text" }, now ?? "…")] : []));
}

/** A change of a probability: four decimals, or its power of ten. */
const change = (x) => `${x < 0 ? "-" : "+"}${Math.abs(x) >= 0.00005 || x === 0 ? Math.abs(x).toFixed(4) : Math.abs(x).toExponential(0)}`;

const likeliest = (p) => {
  const [id] = largest(p, 1);
  return `${app.labels[id] ?? `#${id}`} ${show(p[id], 2)}`;
};

function facts(s, before, after, edited) {
  const { before: old, after: now } = runs();
  const loss = (run) => run && known({ do: "where", run, top: 5 })?.json.loss;
  const entropy = (p) => -p.reduce((sum, x) => sum + (x > 0 ? x * Math.log(x) : 0), 0);
  const said = [`entropy ${show(entropy(before), 4)}${after ? ` → ${show(entropy(after), 4)}` : ""} nats`];
  if (edited) said.push(after ? `KL ${show(divergence(before, after), 4)} nats` : `computing ${editsOf(s).at(-1).split(":").at(-1)}`);
  const [a, b] = [loss(old), loss(now)];
  if (typeof a === "number") said.push(`loss of the text ${show(a, 5)}${typeof b === "number" ? ` → ${show(b, 5)}` : ""} nats`);
  if (edited) said.push("n = 1, no interval");
  return said.join("; ");
}

/** The runs that what is written there is of. */
let continuedOf = "";

/** How much is written, and how tokens are chosen; null where a field has no such number. */
function sampling() {
  const fields = { n: byId("new-tokens"), temperature: byId("temperature"), seed: byId("seed") };
  const values = {};
  for (const [name, input] of Object.entries(fields)) {
    const value = input.valueAsNumber, is = input.validity.valid && Number.isFinite(value) && (name === "temperature" || Number.isInteger(value));
    input.setAttribute("aria-invalid", `${!is}`);
    values[name] = is ? value : null;
  }
  return Object.values(values).includes(null) ? null : values;
}

/** A continuation without edits and one with them, each with the command that writes it, and to go on with. */
async function carryOn() {
  const s = whole(), out = byId("continued"), chosen = sampling();
  if (!s) return;
  if (!chosen) return notify("That is not a number of tokens, a temperature or a seed");
  const { before, after } = runs(), started = performance.now(), { a } = s;
  continuedOf = JSON.stringify({ before, after });
  out.hidden = false;
  out.replaceChildren(make("p", {}, "writing…"));
  const parts = [];
  for (const [name, run] of [["before", before], ["after", after]]) {
    if (!run) continue;
    const heading = after ? [make("b", {}, `${name}: `)] : [];
    try {
      const request = { do: "generate", run, ...chosen };
      const { json } = known(request) ?? (await app.engine.ask(request, (what, done, of) => app.tell(what, done, of, started)));
      const take = json.text ? [make("p", {}, make("button", { type: "button", onclick: () => go({ a: `${a}${json.text}`, pos: null, key: null, ask: null }) }, "Take it into the text"))] : [];
      parts.push(make("p", {}, ...heading, make("span", { class: "token-text" }, json.new.map(({ label }) => label).join(""))), ...take,
        make("p", { class: "note" }, make("code", {}, generateCommand(s, chosen, name === "after", app.served?.arguments))));
    } catch (error) {
      parts.push(make("p", {}, ...heading, error.message));
    }
  }
  out.replaceChildren(...parts);
  byId("running").hidden = true;
}
