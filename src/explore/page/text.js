// The texts, and the tokens of the first as a list: choose one, or with Shift the one that it attends to.
import { announce, byId, make } from "./draw.js";
import { app, go, known, look, runs, tapOf, whole } from "./app.js";

let drawn = "";
let nextIsKey = false;
/** The token that was brought into view last. */
let scrolledTo = null;
/** What waits for the end of typing, by field. */
const typing = new Map();

export function startText() {
  for (const name of ["a", "b"]) {
    const take = () => {
      if (!typing.has(name)) return;
      clearTimeout(typing.get(name));
      typing.delete(name);
      go(name === "a" ? { a: byId("a").value, pos: null, key: null, ask: null } : { b: byId("b").value });
    };
    byId(name).addEventListener("input", () => {
      clearTimeout(typing.get(name));
      typing.set(name, setTimeout(take, 250));
    });
    // Whoever leaves the field has ended typing.
    byId(name).addEventListener("change", take);
  }
  const list = byId("tokens");
  // Shift and a click would also mark the text from the last place to here.
  list.addEventListener("mousedown", (event) => {
    if (!event.shiftKey) return;
    event.preventDefault();
    list.focus();
  });
  list.addEventListener("click", (event) => {
    const token = event.target.closest(".tok");
    if (token) choose(Number(token.dataset.at), event.shiftKey || nextIsKey);
  });
  list.addEventListener("keydown", (event) => {
    const s = whole();
    if (!s || event.ctrlKey || event.metaKey || event.altKey) return;
    const n = app.tokens.length, key = event.shiftKey;
    const now = key ? s.key ?? s.pos : s.pos;
    const to = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: n - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(Math.max(0, Math.min(n - 1, to)), key);
  });
  byId("as-key").addEventListener("click", () => {
    nextIsKey = !nextIsKey;
    byId("as-key").setAttribute("aria-pressed", nextIsKey);
  });
}

function choose(at, asKey) {
  // A position in an earlier text is none in this one.
  if (app.read.a !== app.state.a) return;
  nextIsKey = false;
  byId("as-key").setAttribute("aria-pressed", false);
  go(asKey ? { key: at } : { pos: at, ask: null });
  announce(`${asKey ? "key" : "token"} ${at}, ${app.tokens[at].label}`);
}

export function drawText() {
  const { state, tokens } = app, s = whole();
  for (const name of ["a", "b"]) if (document.activeElement !== byId(name) && !typing.has(name) && byId(name).value !== state[name]) byId(name).value = state[name];
  if (state.b) byId("source").open = true;
  const list = byId("tokens"), key = JSON.stringify(tokens);
  if (key !== drawn) {
    drawn = key;
    list.replaceChildren(...tokens.flatMap(({ label, breaks }, at) => [
      make("span", { class: "tok", role: "option", id: `token-${at}`, "data-at": at, "aria-selected": "false" }, label), ...(breaks ? [make("br")] : []),
    ]));
  }
  if (!s) return;
  const [shades, note] = shadesOf(s);
  tokens.forEach((_, at) => {
    const token = byId(`token-${at}`);
    token.setAttribute("aria-selected", `${at === s.pos}`);
    token.classList.toggle("key", at === s.key);
    token.style.setProperty("--shade", shades[at] || 0);
  });
  list.setAttribute("aria-activedescendant", `token-${s.pos}`);
  const chosen = byId(`token-${s.pos}`), at = chosen.offsetTop - list.offsetTop;
  if (chosen !== scrolledTo && list.clientHeight) {
    scrolledTo = chosen;
    // Only the list scrolls, never the page.
    if (at < list.scrollTop || at + chosen.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = at - list.clientHeight / 2;
  }
  byId("key-note").hidden = s.key !== null || tokens.length < 2;
  byId("token-note").textContent = `Token ${s.pos}, counted from 0${s.key === null ? "" : `, attending to ${s.key}`}. ${note}`;
  const { b } = state, n = app.tokensB.length;
  byId("b-note").textContent = !b ? "Patching takes values from this text's run." : n === tokens.length ? `${n} tokens, as many as the first text.` : `${n} tokens; the first text has ${tokens.length}, so choose single positions to patch.`;
}

/** What the tokens are shaded by: attention of the chosen head, or how unexpected each is. */
function shadesOf(s) {
  const { before, after } = runs();
  if (s.kind === "square") {
    const row = known(look(after ?? before, tapOf(s, "row")))?.arrays[s.hook];
    if (row && s.hook.endsWith("pattern")) return [[...row.values].map((w) => Math.sqrt(Math.max(0, w))), `Shaded by what head ${s.head} attends to from here.`];
  }
  const where = known({ do: "where", run: after ?? before, top: 5 }) ?? known({ do: "where", run: before, top: 5 });
  if (!where) return [[], ""];
  const { shape, values } = where.arrays.next, n = shape[1], last = (shape[0] - 1) * n;
  const most = Math.log(app.about.model.vocab_size);
  return [app.tokens.map((_, at) => (at ? Math.min(1, -Math.log(values[last + at - 1]) / most) : 0)), "Shaded by how unexpected each token is."];
}
