// The page's one state, what it needs from the engine, and what happened to it. Owns `app`; views read it and call `go`. Views
// never call each other. Read next: main.js, which draws.
import { Engine } from "./engine.js";
import { FIRST, editsOf, fromLink, isPatch, toLink } from "./state.js";

export const app = {
  state: { ...FIRST, edits: [] },
  engine: new Engine(),
  /** What the open model is (the answer to `about`), and its labels by token id. */
  about: null,
  labels: [],
  /** The tokens of both texts, once known: { id, label, breaks }. */
  tokens: [],
  tokensB: [],
  /** What is wrong, by where it comes from; shown above the page. */
  errors: new Map(),
  /** The request that runs, and how far it is. */
  running: null,
  /** What `verify` said of each device: null, or { ok, share, json }. */
  verified: new Map(),
  /** How far an edit reaches: null is what suits the hook. */
  scope: null,
  /** How many entries of the browser's history are ours, so that undo does not leave the page. */
  depth: 0,
  draw: () => {},
  open: async () => {},
};

/** Failed requests, by their JSON: they are not asked again. */
const failed = new Map();

/** Changes the state. `replace` is for sliders: one entry of the history for a whole pull. */
export function go(changes, { replace = false } = {}) {
  const before = toLink(app.state), state = { ...app.state, ...changes };
  const link = toLink(state);
  if (link === before) return;
  const reopen = state.model !== app.state.model || state.device !== app.state.device;
  app.state = state;
  if (replace) history.replaceState({ depth: app.depth }, "", `#${link}`);
  else history.pushState({ depth: ++app.depth }, "", `#${link}`);
  app.errors.delete("link");
  if (reopen) app.open();
  else refresh();
}

/** Takes the state from the address: at the start, after Back, after a link was pasted. */
export function fromAddress() {
  let state;
  try {
    state = fromLink(location.hash);
    app.errors.delete("link");
  } catch (error) {
    app.errors.set("link", `${error.message}; nothing was run`);
    app.draw();
    return false;
  }
  app.depth = history.state?.depth ?? 0;
  const reopen = !app.about || state.model !== app.state.model || state.device !== app.state.device;
  app.state = state;
  if (reopen) app.open();
  else refresh();
  return true;
}

/** The hook of the state in the dictionary, by any tool's name. */
export function hookOf(name) {
  const hooks = app.about?.hooks ?? [];
  return hooks.find((hook) => hook.name === name) ?? hooks.find((hook) => Object.values(hook.names).some((names) => names.includes(name)));
}

/** `vector` [pos, dim], `heads` [pos, head, dim], `square` [head, pos, key], `scalar` [pos, one] or `vocab`. */
export function kindOf(hook) {
  if (hook.shape.at(-1) === "V") return "vocab";
  if (hook.axes.includes("key")) return "square";
  if (hook.axes.includes("head")) return "heads";
  return hook.axes.at(-1) === "one" ? "scalar" : "vector";
}

/** The state with what the model decides filled in: hook, positions, head. `null` where the texts are not known yet, or where it
 *  cannot be. */
export const whole = () => (impossible() ? null : resolved());

function resolved() {
  const { state, about, tokens } = app;
  if (!about || !tokens.length) return null;
  const hook = state.hook === null ? hookOf(`blocks.${about.model.n_layer - 1}.hook_resid_post`) : hookOf(state.hook);
  if (!hook) return null;
  const pos = state.pos ?? tokens.length - 1;
  return { ...state, hook: hook.name, pos, head: hook.axes.includes("head") ? state.head ?? 0 : state.head, row: hook, kind: kindOf(hook) };
}

/** What of the state does not exist in this model and text; null if all does. */
export function impossible() {
  const { state, about, tokens } = app;
  if (!about || !tokens.length) return null;
  if (state.hook !== null && !hookOf(state.hook)) return `${about.model.name} has no hook ${JSON.stringify(state.hook)}`;
  const s = resolved(), sizes = Object.fromEntries(s.row.axes.map((axis, i) => [axis, axis === "pos" || axis === "key" ? tokens.length : s.row.sizes[i]]));
  for (const [name, most] of [["pos", tokens.length], ["key", tokens.length], ["head", sizes.head ?? about.model.n_head], ["dim", sizes.dim ?? Infinity]]) {
    if (state[name] !== null && state[name] >= most) return `${name}=${state[name]} does not exist: ${s.hook} has ${most} here`;
  }
  return null;
}

/** The run before edits, and the one after them (null without edits). */
export function runs() {
  const { state } = app;
  const before = { texts: [state.a] };
  const edits = editsOf(state);
  if (!edits.length) return { before, after: null };
  return { before, after: { texts: [state.a], edits, ...(edits.some(isPatch) ? { source: state.b } : {}) } };
}

/** The values of the chosen hook that a view needs, as a tap. `what` is row, map, layers or heads. */
export function tapOf(s, what) {
  if (what === "map") return s.kind === "square" ? { hook: s.hook, head: [s.head] } : { hook: s.hook };
  if (what === "heads") return { hook: s.hook };
  if (what === "layers") return { hook: s.hook.replace(/^blocks\.\d+\./, "blocks.*."), pos: [s.pos] };
  return s.kind === "square" ? { hook: s.hook, head: [s.head], pos: [s.pos] } : { hook: s.hook, pos: [s.pos] };
}

export const look = (run, tap) => ({ do: "look", run, taps: [tap] });

/** The view that is shown: the chosen one where this kind of hook has it. */
export function viewOf(s) {
  const views = viewsOf(s);
  return views.includes(s.view) ? s.view : views[0];
}
export function viewsOf(s) {
  if (s.kind === "square") return ["heads", "map", "table"];
  if (s.kind === "vocab") return ["table"];
  if (s.kind === "scalar") return ["map", "layers", "table"].filter((view) => view !== "layers" || s.hook.startsWith("blocks."));
  return s.hook.startsWith("blocks.") ? ["layers", "map", "table"] : ["map", "table"];
}

/** The sweep that WHERE shows, if it shows one. The answer is the likeliest token of the unchanged run. */
export function sweepRequest(s) {
  if (s.where !== "zero" && s.where !== "patch") return null;
  if (s.where === "patch" && !s.b) return null;
  const { before } = runs(), next = app.engine.known({ do: "next", run: before, pos: s.pos });
  if (!next) return null;
  const { values } = next.arrays.logits;
  const answer = values.indexOf(Math.max(...values));
  const run = s.where === "patch" ? { texts: [s.a], source: s.b } : { texts: [s.a] };
  const [site, axes] = s.where === "patch" ? ["resid_pre", ["layer", "pos"]] : ["z", ["layer", "head"]];
  return { do: "sweep", run, site, axes, metric: "logprob", pos: s.pos, answer };
}

/** Every request that the page needs now, the most wanted first. */
function wanted() {
  const s = whole();
  if (!s || impossible()) return [];
  const { before, after } = runs(), both = after ? [after, before] : [before];
  const list = [];
  if (s.key !== null) for (const run of both) list.push({ do: "pair", run, query: s.pos, key: s.key });
  for (const run of both) list.push({ do: "next", run, pos: s.pos });
  for (const run of both) list.push(look(run, tapOf(s, "row")));
  for (const run of both) list.push({ do: "where", run, top: 5 });
  const view = viewOf(s);
  if (["map", "layers", "heads"].includes(view)) for (const run of both) list.push(look(run, tapOf(s, view)));
  const sweep = sweepRequest(s);
  if (sweep) list.push(sweep);
  return list;
}

/** An answer that is there, or undefined. */
export const known = (request) => app.engine.known(request);
export const failure = (request) => failed.get(JSON.stringify(request));

let pumping = false;

/** Asks for what is wanted, one request at a time: what the state no longer needs is never asked for. */
async function pump() {
  if (pumping) return;
  pumping = true;
  try {
    for (;;) {
      const next = app.about && wanted().find((request) => !known(request) && !failed.has(JSON.stringify(request)));
      if (!next) break;
      app.running = { request: next, done: 0, of: 0 };
      app.draw();
      try {
        await app.engine.ask(next, (what, done, of) => {
          app.running = { request: next, what, done, of };
          app.draw();
        });
      } catch (error) {
        if (error.ended || /device was lost/.test(error.message)) {
          app.about = null;
          app.errors.set("engine", `The engine stopped: ${error.message}. The selection is kept; open the model again to go on.`);
          break;
        }
        failed.set(JSON.stringify(next), error.message);
      }
    }
  } finally {
    pumping = false;
    app.running = null;
    app.draw();
  }
}

/** Asks for the tokens of both texts, then for all else. */
let texts = "";
export async function refresh() {
  const { state, about } = app;
  if (!about) return app.draw();
  const key = JSON.stringify([state.a, state.b]);
  if (key !== texts) {
    texts = key;
    const ask = async (text, name) => {
      app.errors.delete(name);
      if (!text) return [];
      try {
        return (await app.engine.ask({ do: "tokens", texts: [text] })).json.texts[0];
      } catch (error) {
        app.errors.set(name, error.message);
        return [];
      }
    };
    const tokens = await ask(state.a, "text"), tokensB = await ask(state.b, "second text");
    if (key !== texts) return;
    Object.assign(app, { tokens, tokensB });
    if (!state.a) app.errors.set("text", "The text is empty: type one above.");
  }
  const wrong = impossible();
  if (wrong) app.errors.set("selection", `${wrong}; nothing was run`);
  else app.errors.delete("selection");
  app.draw();
  pump();
}

/** Called when another model or device is open. */
export function reopened(about, labels) {
  Object.assign(app, { about, labels, tokens: [], tokensB: [] });
  texts = "";
  failed.clear();
  app.errors.delete("engine");
}

/** True when everything that the page needs is there. */
export const settled = () => Boolean(app.about) && !pumping && !wanted().some((request) => !known(request) && !failed.has(JSON.stringify(request)));
/** What failed of what is wanted. */
export const failures = () => [...new Set(wanted().map(failure).filter(Boolean))];
