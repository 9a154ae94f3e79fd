// The page's one state, what it needs from the engine, and what happened to it. Owns `app`; views read it and call `go`. Views
// never call each other. Read next: main.js, which draws.
import { announce, byId } from "./draw.js";
import { Engine } from "./engine.js";
import { largest } from "./numbers.js";
import { FIRST, editsOf, fromLink, isPatch, toLink } from "./state.js";

export const app = {
  state: { ...FIRST, edits: [] },
  engine: new Engine(),
  /** What the open model is (the answer to `about`), and its labels by token id. */
  about: null,
  labels: [],
  /** What the program that serves the page has, if one does: { model, device, arguments }. */
  served: null,
  /** The tokens of both texts, once known: { id, label, breaks }; and which texts they are of. */
  tokens: [],
  tokensB: [],
  read: { a: null, b: null },
  /** What is wrong, by where it comes from; shown above the page. */
  errors: new Map(),
  /** The request that runs, and since when. */
  running: null,
  /** What `verify` said, by device and model (`verifyKey`): { ok, share, json }. */
  verified: new Map(),
  /** How far an edit reaches: null is what suits the hook. */
  scope: null,
  /** How many entries of the browser's history are ours, so that undo does not leave the page. */
  depth: 0,
  draw: () => {},
  /** Shows how far a request is: what is done, how many steps of how many, since when. */
  tell: () => {},
  open: async () => {},
};

/** Failed requests, by their JSON: they are not asked again. */
const failed = new Map();

/** Changes the state. `replace` is for sliders: one entry of the history for a whole pull. */
export function go(changes, { replace = false } = {}) {
  const before = toLink(app.state), state = { ...app.state, ...changes };
  const link = toLink(state);
  if (link === before) return;
  // A link that was refused at the start has opened no model.
  const refused = app.errors.delete("link") && !app.about;
  const reopen = refused || state.model !== app.state.model || state.device !== app.state.device;
  app.state = state;
  if (replace) history.replaceState({ depth: app.depth }, "", `#${link}`);
  else history.pushState({ depth: ++app.depth }, "", `#${link}`);
  if (reopen) app.open();
  else refresh();
}

/** Takes the state from the address: at the start, after Back, after a link was pasted. */
export function fromAddress() {
  let state;
  try {
    state = fromLink(location.hash, app.served?.model);
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

let fading = 0;
/** Says what an action came to, to all: `announce` tells screen readers alone. */
export function notify(text) {
  announce(text);
  byId("notice").textContent = text;
  byId("notice").hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => (byId("notice").hidden = true), 5000);
}

/** The hook of the state in the dictionary, by any tool's name. */
function hookOf(name) {
  const hooks = app.about?.hooks ?? [];
  return hooks.find((hook) => hook.name === name) ?? hooks.find((hook) => Object.values(hook.names).some((names) => names.includes(name)));
}

/** `vector` [pos, dim], `heads` [pos, head, dim], `square` [head, pos, key], `scalar` [pos, one] or `vocab`. */
function kindOf(hook) {
  if (hook.shape.at(-1) === "V") return "vocab";
  if (hook.axes.includes("key")) return "square";
  if (hook.axes.includes("head")) return "heads";
  return hook.axes.at(-1) === "one" ? "scalar" : "vector";
}

/** The state with what the model decides filled in: hook, positions, head. `null` where the texts are not known yet, or where it
 *  cannot be. */
export const whole = () => (impossible() ? null : resolved());

/** True while the tokens that are there are those of the text. */
const isRead = () => app.read.a === app.state.a && app.tokens.length > 0;

function resolved() {
  const { state, about, tokens } = app;
  if (!about || !isRead()) return null;
  const hook = state.hook === null ? hookOf(`blocks.${about.model.n_layer - 1}.hook_resid_post`) : hookOf(state.hook);
  if (!hook) return null;
  const pos = state.pos ?? tokens.length - 1;
  return { ...state, hook: hook.name, pos, ask: state.ask ?? pos, head: hook.axes.includes("head") ? state.head ?? 0 : state.head, row: hook, kind: kindOf(hook) };
}

/** What of the state does not exist in this model and text; null if all does. Nothing is run then, since half a state would show
 *  something else than was asked for. */
export function impossible() {
  const { state, about, tokens } = app;
  if (!about || !isRead()) return null;
  if (state.hook !== null && !hookOf(state.hook)) return `${about.model.name} has no hook ${JSON.stringify(state.hook)}`;
  const s = resolved(), n = tokens.length, { n_head, vocab_size } = about.model, dims = s.row.sizes[s.row.axes.indexOf("dim")] ?? Infinity;
  const counted = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
  for (const [name, most, why] of [
    ...["pos", "key", "ask"].map((name) => [name, n, `the text has ${counted(n, "token")}, so ${name} goes to ${n - 1}; change the number or the text`]),
    ["answer", vocab_size, `the vocabulary ends at ${vocab_size - 1}; change the number`],
    ["head", n_head, `this model has ${counted(n_head, "head")}, so head goes to ${n_head - 1}; change the number`],
    ["dim", dims, `${s.hook} has ${counted(dims, "dimension")}, so dim goes to ${dims - 1}; change the number`],
  ]) {
    if (state[name] !== null && state[name] >= most) return `${name}=${state[name]} does not exist: ${why}`;
  }
  const check = checkRequest();
  return (check && failure(check)) ?? null;
}

/** Whether the edits can be made, and at which hooks; asked before anything is run. */
function checkRequest() {
  const { after } = runs();
  return after && { do: "check", run: after };
}

let changed = new Set();

/** The hooks that the edits change, by name. While the check of new edits is not answered, those of the edits before it. */
export function editedHooks() {
  const check = checkRequest(), answer = check && known(check);
  if (answer) changed = new Set(answer.json.sites.flat());
  else if (!check || failure(check)) changed = new Set();
  return changed;
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

/** Why WHERE cannot show the sweep that is chosen; null if it can, undefined while the second text is being read. */
export function sweepRefusal(s) {
  if (!patches(s)) return null;
  if (!s.b) return "Give a second text first: its values are put in the place of the first text's.";
  if (app.read.b !== s.b) return undefined;
  const [n, m] = [app.tokens.length, app.tokensB.length];
  return n === m || !m ? null : `Tokens are patched one for one, and the first text has ${n} of them, the second ${m}: give a second text of ${n} tokens.`;
}

const patches = (s) => s.where === "patch" || s.where === "fast";

/** The token that sweeps and attributions are about: the chosen one, or the unchanged run's likeliest. Undefined until that is known. */
export function answerOf(s) {
  if (s.answer !== null) return s.answer;
  const next = known({ do: "next", run: runs().before, pos: s.ask });
  return next && largest(next.arrays.logits.values, 1)[0];
}

/** The sweep that WHERE shows, if it shows one. */
export function sweepRequest(s) {
  if ((s.where !== "zero" && !patches(s)) || sweepRefusal(s) !== null) return null;
  const answer = answerOf(s);
  if (answer === undefined) return null;
  const run = patches(s) ? { texts: [s.a], source: s.b } : { texts: [s.a] };
  const [site, axes] = patches(s) ? ["resid_pre", ["layer", "pos"]] : ["z", ["layer", "head"]];
  return { do: "sweep", run, site, axes, metric: "logprob", pos: s.ask, answer, ...(s.where === "fast" ? { fast: true } : {}) };
}

/** As many points as the command line takes. */
const STEPS = 50;

/** The attributions of a run that WHERE shows, by name, if it shows some. */
export function attributionRequests(s, run) {
  const answer = s.where === "parts" || s.where === "tokens" ? answerOf(s) : undefined;
  if (answer === undefined || !run) return {};
  const ask = (by, method) => ({ do: "attribute", run, pos: s.ask, answer, by, method });
  return s.where === "parts" ? { direct: ask("head", "direct") } : { direct: ask("position", "direct"), integrated: ask("position", { integrated: STEPS }) };
}

/** Every request that the page needs now, the most wanted first. */
function wanted() {
  const s = whole();
  if (!s) return [];
  const { before, after } = runs(), both = after ? [after, before] : [before], check = checkRequest();
  // First, and one at a time: nothing else is run before it is answered.
  const list = check ? [check] : [];
  if (s.key !== null) for (const run of both) list.push({ do: "pair", run, query: s.pos, key: s.key });
  for (const run of both) list.push({ do: "next", run, pos: s.ask });
  for (const run of both) list.push(look(run, tapOf(s, "row")));
  for (const run of both) list.push({ do: "where", run, top: 5 });
  const view = viewOf(s);
  if (["map", "layers", "heads"].includes(view)) for (const run of both) list.push(look(run, tapOf(s, view)));
  const sweep = sweepRequest(s);
  if (sweep) list.push(sweep);
  for (const run of both) list.push(...Object.values(attributionRequests(s, run)));
  return list;
}

/** An answer that is there, or undefined. */
export const known = (request) => app.engine.known(request);
const failure = (request) => failed.get(JSON.stringify(request));

let pumping = false;

/** Asks for what is wanted, one request at a time: what the state no longer needs is never asked for. */
async function pump() {
  if (pumping) return;
  pumping = true;
  try {
    for (;;) {
      const next = app.about && wanted().find((request) => !known(request) && !failed.has(JSON.stringify(request)));
      if (!next) break;
      const since = performance.now(), { about } = app;
      app.running = { request: next, since };
      app.draw();
      try {
        await app.engine.ask(next, (what, done, of) => app.tell(what, done, of, since));
      } catch (error) {
        // What happened to a model that is no longer open says nothing of this one.
        if (error.cancelled || about !== app.about) continue;
        if (error.ended || /device was lost/.test(error.message)) {
          app.about = null;
          app.errors.set("engine", `The engine stopped: ${error.message}.${app.served ? "" : " The selection is kept; open the model again to go on."}`);
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

let reading = 0;

/** Asks for the tokens of both texts, then for all else. */
export async function refresh() {
  const { state, about } = app;
  if (!about) return app.draw();
  if (state.a !== app.read.a || state.b !== app.read.b) {
    // Until the tokens are those of the text, what is shown is greyed.
    app.draw();
    const mine = ++reading;
    const ask = async (text) => {
      if (!text) return { tokens: [] };
      try {
        return { tokens: (await app.engine.ask({ do: "tokens", texts: [text] })).json.texts[0] };
      } catch (error) {
        return { tokens: [], error: error.message };
      }
    };
    const a = await ask(state.a), b = await ask(state.b);
    if (mine !== reading || about !== app.about) return;
    Object.assign(app, { tokens: a.tokens, tokensB: b.tokens, read: { a: state.a, b: state.b } });
    for (const [name, error] of [["text", state.a ? a.error : "The text is empty: type one above."], ["second text", b.error]]) {
      if (error) app.errors.set(name, error);
      else app.errors.delete(name);
    }
  }
  app.draw();
  // What runs for an earlier state is ended where it can be.
  if (app.running && !wanted().some((request) => JSON.stringify(request) === JSON.stringify(app.running.request))) app.engine.cancel(app.running.request);
  pump();
}

/** Called when another model or device is open. */
export function reopened(about, labels) {
  Object.assign(app, { about, labels, tokens: [], tokensB: [], read: { a: null, b: null } });
  failed.clear();
  app.errors.delete("engine");
}

/** True when everything that the page needs is there. */
export const settled = () =>
  Boolean(app.about) && app.read.a === app.state.a && app.read.b === app.state.b && !pumping && !wanted().some((request) => !known(request) && !failed.has(JSON.stringify(request)));
/** What failed of what is wanted, and what cannot be. */
export const failures = () => {
  const wrong = impossible();
  return [...(wrong ? [`${wrong}; nothing was run`] : []), ...new Set(wanted().map(failure).filter(Boolean))];
};
/** What a verification is of. */
export const verifyKey = ({ device, model }) => `${device.text} ${model.fingerprint}`;
