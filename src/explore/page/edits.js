// EDITS: the edits in order, each with its text, a slider where it has a number, and whether it is made; and the keys that make one of
// the selection.
import { announce, byId, make } from "./draw.js";
import { app, go, notify, runs, whole } from "./app.js";
import { segments } from "./what.js";

const OPS = [["0", "Zero", "zero"], ["s", "Scale", "scale=0.5"], ["=", "Set", "set=0"], ["+", "Add", "add=1"], ["p", "Patch from B", "patch"], ["f", "Freeze", "freeze"]];
const NUMBER = /:\s*(scale|add|set)=([^=]*)$/;

export function startEdits() {
  byId("ops").replaceChildren(...OPS.map(([key, name, op]) => make("button", { type: "button", "data-op": op.split("=")[0], title: `${name} (${key})`, onclick: () => add(op) }, name)));
  byId("edit-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("edit-text").value.trim();
    if (!text) return;
    byId("edit-text").value = "";
    go({ edits: [...app.state.edits, { text, on: true }] });
  });
}

/** Whether an edit of the selection is for this token or for every token. */
const everywhere = (s) => (app.scope ?? (s.kind === "square" || s.kind === "heads" ? "every" : "here")) === "every";

/** Where an edit of the selection is made: SITE[@SELECT]. A head's attention is changed at what it writes. */
function target(s, op) {
  const every = everywhere(s), select = [];
  let site = s.hook;
  if (s.kind === "square") {
    select.push(`head=${s.head}`);
    if (every && ["zero", "scale", "patch", "freeze"].includes(op.split("=")[0])) site = s.hook.replace(/attn\.hook_.*$/, "attn.hook_z");
    else if (!every) select.push(`pos=${s.pos}`, ...(s.key === null ? [] : [`key=${s.key}`]));
  } else {
    if (s.kind === "heads") select.push(`head=${s.head}`);
    if (!every) select.push(`pos=${s.pos}`);
    if (s.dim !== null && s.kind !== "scalar") select.push(`dim=${s.dim}`);
  }
  return `${site}${select.length ? `@${select.join(",")}` : ""}`;
}

/** Adds an edit of the selection. */
export function add(op) {
  const s = whole();
  if (!s) return;
  if (op === "patch" && !s.b) {
    byId("source").open = true;
    byId("b").focus();
    notify("Patching takes values from a second text: type one");
    return;
  }
  const text = `${target(s, op)}:${op}`;
  go({ edits: [...app.state.edits, { text, on: true }] });
  announce(`edited: ${text}`);
}

/** The key of an operation, or undefined. */
export const opOf = (key) => OPS.find(([name]) => name === key)?.[2];

let drawn = "";

export function drawEdits() {
  const { state } = app, s = whole(), { after } = runs();
  if (s) {
    byId("edit-target").replaceChildren("Selection: ", make("code", {}, target(s, "zero")));
    segments(byId("scope"), [["here", s.kind === "square" ? "only here" : "this token"], ["every", "every token"]], everywhere(s) ? "every" : "here", (scope) => ((app.scope = scope), app.draw()));
  }
  const made = state.edits.filter((edit) => edit.on).length;
  byId("edited").hidden = !state.edits.length;
  byId("edited").textContent = `EDITED ${made}${made < state.edits.length ? ` of ${state.edits.length}` : ""}`;
  byId("bar").classList.toggle("edited", Boolean(after));
  document.title = `${after ? "edited: " : ""}${s ? `${s.hook} · ` : ""}actscope explorer`;
  // A row's slider is one of an operation, so another operation needs another row.
  const list = byId("edits"), shape = JSON.stringify(state.edits.map((edit) => [edit.on, NUMBER.exec(edit.text)?.[1]]));
  if (shape !== drawn) {
    drawn = shape;
    list.replaceChildren(...state.edits.map((_, n) => row(n)));
  }
  state.edits.forEach(({ text }, n) => {
    const item = list.children[n], written = item.querySelector("textarea");
    if (document.activeElement !== written && written.value !== text) written.value = text;
    const slider = item.querySelector('input[type="range"]'), number = item.querySelector('input[type="number"]');
    if (!slider) return;
    const value = Number(NUMBER.exec(text)[2]);
    // A number that was typed may lie beyond the slider's ends.
    if (Math.abs(value) > slider.max) (slider.max = Math.abs(value)), (slider.min = -slider.max), (slider.step = slider.max / 40);
    if (document.activeElement !== slider) slider.value = value;
    if (document.activeElement !== number) number.value = value;
  });
}

const change = (n, edit, options) => go({ edits: app.state.edits.map((old, i) => (i === n ? { ...old, ...edit } : old)) }, options);

function row(n) {
  const { text, on } = app.state.edits[n], value = NUMBER.exec(text);
  const tools = [
    make("label", { class: "field" }, make("input", { type: "checkbox", checked: on, "aria-label": "make this edit", onchange: (event) => change(n, { on: event.target.checked }) })),
  ];
  if (value) {
    const set = (to, replace) => Number.isFinite(to) && change(n, { text: app.state.edits[n].text.replace(NUMBER, `:${value[1]}=${to}`) }, { replace });
    const most = value[1] === "scale" ? 2 : Math.max(10, 4 * Math.abs(Number(value[2])) || 0);
    let pulling = false;
    tools.push(
      make("input", { type: "range", min: -most, max: most, step: most / 40, "aria-label": value[1], value: value[2], oninput: (event) => (set(event.target.valueAsNumber, pulling), (pulling = true)), onchange: () => (pulling = false) }),
      make("input", { type: "number", step: "any", "aria-label": value[1], value: value[2], onchange: (event) => set(event.target.valueAsNumber) }));
  }
  const move = (by) => {
    const edits = [...app.state.edits];
    edits.splice(n + by, 0, ...edits.splice(n, 1));
    drawn = "";
    go({ edits });
  };
  tools.push(
    make("button", { type: "button", "aria-label": "earlier", title: "earlier", disabled: n === 0, onclick: () => move(-1) }, "↑"),
    make("button", { type: "button", "aria-label": "later", title: "later", disabled: n === app.state.edits.length - 1, onclick: () => move(1) }, "↓"),
    make("button", { type: "button", "aria-label": "remove this edit", title: "remove", onclick: () => ((drawn = ""), go({ edits: app.state.edits.filter((_, i) => i !== n) })) }, "×"));
  return make("li", { class: on ? null : "off" },
    make("textarea", {
      rows: text.length > 30 ? 2 : 1, "aria-label": "the edit", spellcheck: "false", onchange: (event) => change(n, { text: event.target.value.trim() }),
      onkeydown: (event) => event.key === "Enter" && (event.preventDefault(), event.target.blur()),
    }, text),
    make("div", { class: "row" }, ...tools));
}
