// The one state of the page, and its two other forms: the link (the address's fragment, which browsers never send) and the
// command line. Owns both grammars. Uses only draw.js's quoting for shells.
import { shell } from "./draw.js";

/** What a state is when nothing is said. `null` is for what the model decides: the last block's output, the last token. `ask` is the token
 *  whose prediction is shown, where it is not the chosen one; `answer` is the id of the token that sweeps and attributions are about. */
export const FIRST = Object.freeze({
  model: "demo", device: "", a: "The cat sat on the mat.", b: "",
  hook: null, pos: null, head: null, key: null, dim: null, ask: null, answer: null,
  view: "", where: "norm", compare: "after", edits: [],
});

const DEVICES = ["", "gpu", "cpu", "reference"];
const VIEWS = ["", "layers", "map", "table", "heads"];
const WHERES = ["norm", "next", "entropy", "rank", "zero", "patch", "fast", "parts", "tokens"];
export const COMPARES = ["after", "before", "difference"];
const PLACES = ["head", "pos", "key", "dim", "ask", "answer"];

/** Percent-encoding that leaves what is readable and safe in a fragment as it stands. */
const encode = (text) =>
  encodeURIComponent(text).replace(/%(3D|2C|3A|40|2F|20)/g, (_, code) => ({ "3D": "=", "2C": ",", "3A": ":", 40: "@", "2F": "/", 20: "+" })[code]);
const decode = (text) => decodeURIComponent(text.replaceAll("+", " "));

/** The link's fragment, without its #. */
export function toLink(state) {
  const parts = [];
  const add = (name, value) => parts.push(`${name}=${encode(value)}`);
  add("model", state.model);
  if (state.device !== FIRST.device) add("device", state.device);
  add("a", state.a);
  if (state.b !== FIRST.b) add("b", state.b);
  if (state.hook !== null) add("hook", state.hook);
  const places = PLACES.filter((name) => state[name] !== null);
  if (places.length) add("at", places.map((name) => `${name}=${state[name]}`).join(","));
  for (const name of ["view", "where", "compare"]) if (state[name] !== FIRST[name]) add(name, state[name]);
  for (const { text, on } of state.edits) add(on ? "edit" : "off", text);
  return parts.join("&");
}

/** The state of a fragment; `model` is the one of a link that names none. Throws an Error that says what cannot be read: half a link
 *  would show something else than was linked to. */
export function fromLink(fragment, model = FIRST.model) {
  const state = { ...FIRST, model, edits: [] }, seen = new Set();
  for (const part of fragment.replace(/^#/, "").split("&").filter(Boolean)) {
    const split = part.indexOf("=");
    if (split < 1) throw new Error(`the link has ${JSON.stringify(part)}, which is not name=value`);
    const name = part.slice(0, split);
    let value;
    try {
      value = decode(part.slice(split + 1));
    } catch {
      throw new Error(`the link's ${name} is not percent-encoded text`);
    }
    if (name === "edit" || name === "off") {
      state.edits.push({ text: value, on: name === "edit" });
      continue;
    }
    if (seen.has(name)) throw new Error(`the link has ${name} twice`);
    seen.add(name);
    const known = { device: DEVICES, view: VIEWS, where: WHERES, compare: COMPARES }[name];
    if (known && !known.includes(value)) throw new Error(`the link's ${name} is ${JSON.stringify(value)}, and it is one of ${known.filter(Boolean).join(", ")}`);
    if (known || ["model", "a", "b", "hook"].includes(name)) state[name] = value;
    else if (name === "at") {
      for (const place of value.split(",")) {
        const match = /^(head|pos|key|dim|ask|answer)=(\d{1,9})$/.exec(place);
        if (!match) throw new Error(`the link's at has ${JSON.stringify(place)}, and it is a list such as head=4,pos=5,key=1,dim=42`);
        if (state[match[1]] !== null) throw new Error(`the link's at has ${match[1]} twice`);
        state[match[1]] = Number(match[2]);
      }
    } else throw new Error(`the link has ${JSON.stringify(name)}, which this version does not know`);
  }
  return state;
}

/** The edits that are made. */
export const editsOf = (state) => state.edits.filter((edit) => edit.on).map((edit) => edit.text);
export const isPatch = (edit) => /:\s*patch\s*$/.test(edit);

/** The arguments that name the edits, with the text that they take values from. */
function editArguments(state) {
  const edits = editsOf(state);
  return [...edits.flatMap((edit) => ["--edit", edit]), ...(edits.some(isPatch) ? ["--source", state.b] : [])];
}

/** The arguments that name the model and the device; `given` are those of the program that serves the page, if one does. */
function modelArguments(state, given) {
  const model = ["-m", state.model.startsWith("folder:") ? `./${state.model.slice(7)}` : state.model];
  return given ?? [...model, ...(state.device ? ["--device", state.device] : [])];
}

/** The command that prints the numbers of a sweep or of an attribution; null for what has none. */
export function whereCommand(state, answer, given) {
  const question = ["--answer", `id:${answer}`, "--metric-token", `${state.ask}`, "--json"];
  const edits = state.compare === "before" ? [] : editArguments(state), texts = ["--clean", state.b, "--corrupt", state.a];
  const words = {
    zero: ["ablate", "--at", "z", "--by", "layer,head", "--metric", "logprob", ...question, "--", state.a],
    patch: ["patch", ...texts, "--at", "resid_pre", "--by", "layer,pos", "--metric", "logprob", ...question],
    fast: ["patch", "--fast", ...texts, "--at", "resid_pre", "--by", "layer,pos", "--metric", "logprob", ...question],
    parts: ["attribute", "--by", "head", ...edits, ...question, "--", state.a],
    tokens: ["attribute", "--method", "integrated", ...edits, ...question, "--", state.a],
  }[state.where];
  return words ? `actscope ${[words[0], ...modelArguments(state, given), ...words.slice(1)].map(shell).join(" ")}` : null;
}

/** The command that writes a continuation. */
export function generateCommand(state, { n, temperature, seed }, edited, given) {
  const words = ["generate", ...modelArguments(state, given), "-n", `${n}`, "--temperature", `${temperature}`, ...(temperature > 0 ? ["--seed", `${seed}`] : [])];
  return `actscope ${[...words, ...(edited ? editArguments(state) : []), "--", state.a].map(shell).join(" ")}`;
}

/** The command that prints what is shown at a hook and a token, and where in its JSON the chosen number is. `axes` are the
 *  hook's. */
export function toCommand(state, axes, given) {
  const words = ["extract", ...modelArguments(state, given)];
  words.push("--hook", state.hook, "--token", `${state.pos}`, ...(state.compare === "before" ? [] : editArguments(state)), "--json", "--", state.a);
  const at = { pos: 0, head: state.head, key: state.key, dim: state.dim, one: 0 };
  const place = axes.map((axis) => at[axis]);
  const full = place.every((i) => i !== null);
  return { command: `actscope ${words.map(shell).join(" ")}`, place: full ? `.hooks["${state.hook}"][0]${place.map((i) => `[${i}]`).join("")}` : null };
}
