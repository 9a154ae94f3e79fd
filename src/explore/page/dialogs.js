// The dialogs: which model, whether the device is right, and the keys.
import { byId, make, show } from "./draw.js";
import { app, go, notify, verifyKey } from "./app.js";
import { chosen, downloaded, forgetAll, listed, megabytes, needs } from "./models.js";
import { toLink } from "./state.js";

/** Files that were chosen by hand, by the model's name in links. They are asked for again after the page was reloaded. */
export const given = new Map();
let stop = null, hub = null;

export function startDialogs() {
  for (const [button, dialog] of [["model", "model-dialog"], ["verify", "verify-dialog"], ["help", "help-dialog"]]) {
    byId(button).addEventListener("click", () => byId(dialog).showModal());
  }
  byId("open-demo").addEventListener("click", () => use("demo"));
  for (const input of ["folder", "files"]) {
    byId(input).addEventListener("change", () => {
      try {
        const { name, files } = chosen(byId(input).files);
        given.set(`folder:${name}`, files);
        use(`folder:${name}`);
      } catch (error) {
        note(error.message);
      }
      byId(input).value = "";
    });
  }
  byId("hub-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    byId("hub-go").hidden = true;
    note("asking the hub…");
    try {
      hub = await listed(byId("hub").value);
      const { config, bytes, name, files } = hub, [layers, heads, width] = [config.n_layer, config.n_head, config.n_embd];
      note(`${name}: ${config.model_type ?? "?"}, ${layers} layers, ${heads} heads, ${width} dimensions; ${files.length} files, ${megabytes(bytes)}. It needs about ${needs(bytes)}.`);
      byId("hub-go").textContent = `Download ${megabytes(bytes)}`;
      byId("hub-go").hidden = false;
      byId("hub-go").focus();
    } catch (error) {
      note(error.message);
    }
  });
  byId("hub-go").addEventListener("click", () => use(hub.given, false));
  byId("hub-stop").addEventListener("click", stopDownload);
  byId("forget").addEventListener("click", async () => {
    try {
      await forgetAll();
      note("Stored models are removed.");
    } catch (error) {
      note(error.message);
    }
  });
  byId("verify-go").addEventListener("click", verify);
  byId("speed-go").addEventListener("click", measure);
  byId("keys").replaceChildren(...[
    ["arrows", "move in a view, a list, the tokens"], ["Shift + arrows", "the token attended to; ten steps in a grid"], ["Home End", "first, last"], ["Enter", "one level down: text, where, what, edits"], ["Esc", "one level up; no key token"],
    ["/", "search hooks"], ["g", "go to a dimension"], ["[ ]", "head before, head after"], ["b", "second text"], ["0", "zero the selection"], ["s", "scale it"], ["=", "set it"], ["+", "add to it"], ["p", "patch it from the second text"], ["f", "freeze it"],
    ["Ctrl+Z", "undo edits and selections"], ["c", "copy the command"], ["l", "copy the link"], ["?", "these keys"],
  ].map(([key, what]) => make("tr", {}, make("th", { scope: "row" }, key), make("td", {}, what))));
}

const note = (text) => (byId("hub-note").textContent = text);

function use(model, close = true) {
  if (close) byId("model-dialog").close();
  if (model === app.state.model) {
    // The address may be a link that was refused.
    if (app.errors.delete("link")) history.replaceState({ depth: app.depth }, "", `#${toLink(app.state)}`);
    return app.open();
  }
  go({ model, hook: null, pos: null, head: null, key: null, dim: null, ask: null, answer: null, edits: [], view: "" });
}

/** Ends the download that runs, if one does; what came is kept. */
export function stopDownload() {
  stop?.abort();
}

/** The files of a model on the hub: those that are stored, and what is missing. */
export async function fromHub(name) {
  const progress = byId("hub-progress"), mine = new AbortController();
  stop = mine;
  byId("hub-stop").hidden = progress.hidden = false;
  byId("hub-go").hidden = true;
  const start = performance.now();
  let first = null;
  try {
    const model = hub?.given === name ? hub : await listed(name, mine.signal);
    hub = model;
    return await downloaded(model, (done, of) => {
      first ??= done;
      progress.value = done / of;
      const speed = (done - first) / (performance.now() - start);
      const left = speed > 0 && done < of ? `, about ${Math.ceil((of - done) / speed / 1000)} s left` : "";
      note(`${megabytes(done)} of ${megabytes(of)}${left}`);
    }, mine.signal);
  } catch (error) {
    if (stop === mine) byId("hub-go").hidden = !hub;
    throw error.name === "AbortError" ? new Error("The download was cancelled; what came is kept, and it goes on from there.") : error;
  } finally {
    // Another download may have begun.
    if (stop === mine) {
      byId("hub-stop").hidden = progress.hidden = true;
      stop = null;
    }
  }
}

/** Whether verify said yes, by how much. */
async function verify() {
  const progress = byId("verify-progress"), button = byId("verify-go");
  if (!app.about || isReference()) return;
  const key = verifyKey(app.about);
  button.disabled = true;
  progress.hidden = false;
  byId("verify-note").textContent = "Every kernel and every hook is compared with plain loops in f64. This takes a while.";
  try {
    const { json } = await app.engine.ask({ do: "verify" }, (what, done, of) => {
      progress.value = of ? done / of : 0;
      byId("verify-note").textContent = `${what}: ${done} of ${of}`;
    }, { again: true });
    const share = Math.max(...json.kernels.map((row) => Number(row.share_of_allowed)), ...json.hooks.map((row) => Number(row.error) / row.allowed));
    app.verified.set(key, { ok: json.ok, share: Number.isNaN(share) ? Infinity : share, json });
    notify(json.ok ? "verified" : "verification failed");
  } catch (error) {
    app.verified.set(key, { ok: false, share: Infinity, json: null, why: error.message });
  }
  button.disabled = false;
  progress.hidden = true;
  app.draw();
}

/** Measured speeds, by device, model and number of tokens, so that devices stand below one another. */
const speeds = new Map();

/** Runs the text again and again for two seconds, at least 5 times, after a run that warms up. */
async function measure() {
  const { about, state, tokens } = app, button = byId("speed-go");
  if (!about || !tokens.length) return notify("There is nothing to measure yet");
  const request = { do: "look", run: { texts: [state.a] }, taps: [{ hook: "blocks.*.hook_resid_post" }] };
  const times = [];
  button.disabled = true;
  try {
    await app.engine.ask(request, undefined, { again: true });
    for (const start = performance.now(); times.length < 5 || performance.now() - start < 2000; ) {
      const before = performance.now();
      await app.engine.ask(request, undefined, { again: true });
      times.push(performance.now() - before);
    }
    times.sort((a, b) => a - b);
    speeds.set(`${verifyKey(about)} ${tokens.length}`, { device: about.device.text, model: state.model, tokens: tokens.length, times });
  } catch (error) {
    notify(error.message);
  }
  button.disabled = false;
  byId("speeds").hidden = !speeds.size;
  const cell = (text) => make("td", { class: "number" }, text);
  byId("speeds").tBodies[0].replaceChildren(...[...speeds.values()].map(({ device, model, tokens, times }) => make("tr", {},
    make("td", {}, device), make("td", {}, model), cell(`${tokens}`), cell(show(times[times.length >> 1], 3)), cell(show(times[0], 3)), cell(`${times.length}`))));
}

const isReference = () => app.about?.device.kind === "reference";

let drawn = null;

export function drawDialogs() {
  const { about } = app, found = about && app.verified.get(verifyKey(about));
  const button = byId("verify");
  byId("verify-go").hidden = isReference();
  button.textContent = isReference() ? "The reference" : !found ? "Not verified" : found.ok ? `Verified, ${show(found.share, 2)} of allowed` : "Verify FAILED";
  button.className = !found ? "" : found.ok ? "good" : "bad";
  if (about) {
    const { model } = about;
    byId("model-facts").textContent = `${app.state.model}: ${model.n_layer} layers, ${model.n_head} heads, ${model.n_embd} dimensions, ${model.vocab_size} tokens, ${(model.parameters / 1e6).toFixed(1)} million parameters, texts of ${model.n_positions} tokens at most. Fingerprint ${model.fingerprint.slice(0, 16)}. Runs on ${about.device.text}.${model.notes.length ? ` ${model.notes.join(" ")}` : ""}`;
  }
  const now = found ?? (isReference() ? "reference" : null);
  if (drawn === now) return;
  drawn = now;
  if (!found) {
    byId("verify-note").textContent = isReference() ? "The reference is plain loops in f64, which the other devices are compared with. It always agrees with itself: choose the device that you use." : "";
    return byId("verify-table").replaceChildren();
  }
  const { json } = found;
  byId("verify-note").textContent = found.why ?? (json.ok
    ? `All ${json.kernels.length} kernels and ${json.hooks.length} hooks are within their bounds on ${about.device.text}; ${json.operations_compared} operations of whole runs were compared.`
    : `${json.first_fault}. ${app.served ? "Start actscope explore --device cpu" : "Choose the device CPU"}, which computes the same.`);
  if (!json) return byId("verify-table").replaceChildren();
  const table = (caption, heading, rows) => make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...heading.map((name, i) => make("th", { scope: "col", class: i ? "number" : null }, name)))), make("tbody", {}, ...rows));
  const mark = (ok) => make("td", { class: `number ${ok ? "good" : "bad"}` }, ok ? "ok" : "OFF");
  const number = (text) => make("td", { class: "number" }, text);
  byId("verify-table").replaceChildren(
    table("Kernels, against plain loops in f64", ["kernel", "cases", "share of allowed", ""], json.kernels.map((row) => make("tr", {}, make("td", {}, row.kernel), number(`${row.cases}`), number(show(Number(row.share_of_allowed), 3)), mark(row.ok)))),
    table("Hooks of whole runs", ["hook", "error", "allowed", ""], json.hooks.map((row) => make("tr", {}, make("td", {}, row.hook), number(show(Number(row.error), 2)), number(show(row.allowed, 2)), mark(row.ok)))));
}
