// The dictionary of hooks as a tree with a search over every tool's names.
import { announce, byId, make } from "./draw.js";
import { app, editedHooks, go, whole } from "./app.js";

let drawn = "";
/** The element that was brought into view last. */
let scrolledTo = null;

export function startHooks() {
  byId("search").addEventListener("input", () => drawHooks());
  byId("search").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "ArrowDown") return;
    const first = byId("hooks").querySelector(".hook");
    event.preventDefault();
    if (!first) return;
    if (event.key === "Enter") choose(first.dataset.hook);
    byId("hooks").focus();
  });
  byId("hooks").addEventListener("click", (event) => {
    const hook = event.target.closest(".hook");
    if (hook) choose(hook.dataset.hook);
  });
  byId("hooks").addEventListener("keydown", (event) => {
    const all = [...byId("hooks").querySelectorAll(".hook")], at = all.findIndex((hook) => hook.getAttribute("aria-selected") === "true");
    const to = { ArrowDown: at + 1, ArrowUp: Math.max(0, at - 1), Home: 0, End: all.length - 1, PageDown: at + 20, PageUp: Math.max(0, at - 20) }[event.key];
    if (to === undefined || !all.length) return;
    event.preventDefault();
    const hook = all[Math.min(to, all.length - 1)];
    choose(hook.dataset.hook);
    hook.scrollIntoView({ block: "nearest" });
  });
}

function choose(name) {
  go({ hook: name, dim: null });
  announce(name);
}

/** Whether a hook is what was searched for: every word is in one of its names or in its formula. */
function found(hook, words) {
  const text = [hook.name, hook.formula, ...Object.values(hook.names).flat()].join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

/** The short name of a hook within its block. */
export const shortName = (name) => name.replace(/^blocks\.\d+\./, "");

export function drawHooks() {
  const { about } = app, s = whole();
  if (!about) return;
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const key = JSON.stringify([about.model.name, about.model.n_layer, words]);
  if (key !== drawn) {
    drawn = key;
    const groups = new Map();
    for (const hook of about.hooks) {
      if (words.length && !found(hook, words)) continue;
      const group = hook.layer === null ? (hook.name.startsWith("hook_") ? "Embedding" : "Output") : `Block ${hook.layer}`;
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push(hook);
    }
    const rows = [...groups].map(([group, hooks]) =>
      make("div", { role: "group", "aria-label": group },
        make("div", { class: "group", "aria-hidden": "true" }, group),
        ...hooks.map((hook) => make("div", {
          class: "hook", role: "treeitem", id: `hook-${hook.name}`, "data-hook": hook.name, "aria-selected": "false",
          title: [hook.formula, ...Object.entries(hook.names).map(([tool, names]) => `${tool}: ${names.join(", ")}`)].join("\n"),
        }, make("span", {}, shortName(hook.name)), make("small", {}, hook.shape.join(" "))))));
    byId("hooks").replaceChildren(...(rows.length ? rows : [make("p", { class: "note" }, "No hook has such a name, in TransformerLens, Hugging Face, nnsight or nnterp.")]));
  }
  const list = byId("hooks"), edited = editedHooks();
  for (const hook of list.querySelectorAll(".hook")) {
    const is = hook.dataset.hook === s?.hook;
    if ((hook.getAttribute("aria-selected") === "true") !== is) hook.setAttribute("aria-selected", is);
    hook.classList.toggle("changed", edited.has(hook.dataset.hook));
    if (is && scrolledTo !== hook && list.clientHeight) {
      scrolledTo = hook;
      // Only the list scrolls, never the page.
      if (hook.offsetTop < list.scrollTop + list.offsetTop || hook.offsetTop > list.scrollTop + list.offsetTop + list.clientHeight - 30) list.scrollTop = hook.offsetTop - list.offsetTop - list.clientHeight / 2;
    }
  }
  // The search may leave out the chosen hook.
  const chosen = list.querySelector('[aria-selected="true"]');
  if (chosen) list.setAttribute("aria-activedescendant", chosen.id);
  else list.removeAttribute("aria-activedescendant");
}
