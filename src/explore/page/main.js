// The page: it opens the model and the device, draws every view when something changed, and gives keys to the view that has the
// focus. Read next: app.js (the state and what it needs), state.js (link and command), grid.js, what.js.
import { byId, copy, make } from "./draw.js";
import { app, failures, fromAddress, go, notify, refresh, reopened, runs, settled, whole } from "./app.js";
import { drawDialogs, fromHub, given, startDialogs, stopDownload } from "./dialogs.js";
import { SERVED } from "./engine.js";
import { add, drawEdits, opOf, startEdits } from "./edits.js";
import { drawHooks, shortName, startHooks } from "./hooks.js";
import { demo, fits, runsOnGpu } from "./models.js";
import { drawNext, startNext } from "./next.js";
import { fromLink, toLink } from "./state.js";
import { drawText, startText } from "./text.js";
import { commandNow, chosenNumber, drawWhat, grids, startWhat } from "./what.js";
import { drawWhere, startWhere } from "./where.js";

let opening = 0;

/** What is open: a link that changes neither keeps it. */
app.open = async () => {
  const mine = ++opening, { model } = app.state;
  stopDownload();
  app.about = null;
  app.errors.delete("model");
  app.draw();
  try {
    const about = await (SERVED ? openServed(app.state) : openHere(app.state, () => mine === opening));
    if (mine !== opening) return;
    const { labels } = (await app.engine.ask({ do: "labels" })).json;
    if (mine !== opening) return;
    reopened(about, labels);
    if (byId("model-dialog").open) byId("model-dialog").close();
  } catch (error) {
    if (mine !== opening) return;
    app.errors.set("model", error.message);
  }
  await refresh();
};

/** Opens a model in this page; `isWanted` is false once another was chosen. */
async function openHere({ model, device }, isWanted) {
  if (device === "gpu" && !(await navigator.gpu?.requestAdapter().catch(() => null))) throw new Error("This browser gives this page no GPU by WebGPU: choose the device CPU, which computes the same.");
  const gpu = device === "gpu" || (device === "" && (await adapter()));
  runsOnGpu(gpu);
  let files;
  if (model === "demo") files = await demo();
  else if (model.startsWith("folder:")) {
    files = given.get(model);
    if (!files) throw new Error(`The link is of the folder ${JSON.stringify(model.slice(7))} on a disk: choose it again with the button above. Nothing was uploaded, so the page does not have it.`);
  } else files = await fromHub(model);
  if (!isWanted()) return null;
  byId("model").textContent = `Opening ${model}`;
  fits(files);
  const since = performance.now();
  const open = (device) => app.engine.open(model, files, device, (what, done, of) => app.tell(what, done, of, since));
  try {
    return await open(gpu ? "gpu" : device || "cpu");
  } catch (error) {
    // Nothing was asked of a GPU by name: the CPU computes the same.
    if (device !== "" || !gpu || !isWanted()) throw error;
    runsOnGpu(false);
    fits(files);
    notify(`WebGPU did not open (${error.message}). The model runs on the CPU, which computes the same`);
    return open("cpu");
  }
}

/** The program that serves the page has one model on one device: a link of others is refused. */
async function openServed({ model, device }) {
  const { served } = app;
  if (model !== served.model) throw new Error(`This page has the model ${served.model}, and the link is of ${model}: start actscope explore -m ${model}. Nothing was run.`);
  if (device && device !== served.kind) throw new Error(`This page runs on ${served.device}, and the link is of the device ${device}: start actscope explore --device ${device}. Nothing was run.`);
  return app.engine.open(model, [], device);
}

/** Whether the browser has a GPU for us that is no program itself: those are slower than WebAssembly. */
async function adapter() {
  const found = await navigator.gpu?.requestAdapter().catch(() => null);
  return Boolean(found) && !found.info?.isFallbackAdapter && !/swiftshader|llvmpipe/i.test(`${found.info?.architecture} ${found.info?.description}`);
}

let asked = false;
app.draw = () => {
  // For the tests: what is on the page is of an earlier state until it is drawn.
  document.documentElement.dataset.ready = "no";
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    draw();
  });
};

function draw() {
  const { about, state } = app, s = whole();
  byId("model").textContent = about ? `${state.model}` : ["model", "engine", "link"].some((name) => app.errors.has(name)) ? "Open a model" : "Loading the model";
  byId("device").value = SERVED ? "" : state.device;
  // What is there is of an earlier text or model until the new one is read.
  document.querySelector("main").classList.toggle("stale", !s);
  if (!app.running && about) byId("running").hidden = true;
  byId("version").textContent = about ? `actscope ${about.version}, ${about.device.text}.` : "";
  const messages = [...new Set([...app.errors.values(), ...failures()])];
  byId("message").hidden = !messages.length;
  byId("message").textContent = messages.join(" ");
  for (const part of [drawText, drawHooks, drawWhere, drawWhat, drawNext, drawEdits, drawDialogs]) part();
  if (s) {
    const parts = [s.row.layer === null ? "" : `layer ${s.row.layer}`, shortName(s.hook), s.row.axes.includes("head") ? `head ${s.head}` : ""].filter(Boolean);
    const token = (at) => make("span", { class: "token-text" }, app.tokens[at].label);
    byId("crumbs").replaceChildren(parts.join(" › "), " › ", token(s.pos), ...(s.key === null ? [] : [" › ", token(s.key)]));
    const now = commandNow();
    byId("command-line").textContent = now ? `${now.command}${now.place ? `    # the number is ${now.place}` : ""}` : "";
  }
  const quiet = settled() || messages.length > 0;
  document.documentElement.dataset.ready = quiet && !app.running ? "" : "no";
}

/** One line is changed, nothing else: a run tells of every block. */
app.tell = (what, done, of, since) => {
  const gone = (performance.now() - since) / 1000, left = done > 0 ? (gone / done) * (of - done) : 0;
  // What is over at once would only flicker.
  if (gone < 0.5) return;
  byId("running").hidden = false;
  byId("running").textContent = `${what}: ${of >= 1e6 ? `${Math.round(done / 1e6)} of ${Math.round(of / 1e6)} MB` : `${done} of ${of}`}${left >= 1 ? `, about ${Math.ceil(left)} s left` : ""}`;
};

const PANES = [["Text", "Text"], ["Where", "Where"], ["What", "What"], ["Touch", "Next, edits"]];
function startPanes() {
  byId("tabs").replaceChildren(...PANES.map(([pane, name]) => make("button", { type: "button", "data-tab": pane, onclick: () => showPane(pane) }, name)));
  showPane("Text");
}
function showPane(pane) {
  document.body.dataset.pane = pane;
  for (const tab of byId("tabs").children) tab.setAttribute("aria-pressed", `${tab.dataset.tab === pane}`);
  // A canvas that was hidden has no width yet.
  app.draw();
}

async function copied(what, text) {
  notify((await copy(text)) ? `${what} copied` : "This browser does not let pages copy");
}
const copyLink = () => copied("Link", location.href.replace(/#.*/, "") + `#${toLink(app.state)}`);
const copyCommand = () => copied("Command", commandNow()?.command ?? "");
function undo() {
  if (app.depth > 0) history.back();
  else notify("There is nothing to undo");
}

/** The levels, by which Enter goes down and Esc up. */
const LEVELS = ["#tokens", "#where-grid canvas", "#pair-grid canvas", "#view canvas.grid, #view button[aria-pressed='true']", "#ops button"];
/** Gives the focus to the nearest level on this way (1 is down, -1 up) that is on the page. */
function toLevel(from, way) {
  for (let level = from + way; level >= 0 && level < LEVELS.length; level += way) {
    const found = [...document.querySelectorAll(LEVELS[level])].find((element) => element.getClientRects().length);
    if (found) return found.focus();
  }
}

function keys(event) {
  const { target, key } = event;
  if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "z" && !target.matches("textarea, input:not([type='range'], [type='checkbox'])")) {
    event.preventDefault();
    return undo();
  }
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (target.matches("input, textarea, select") || !whole()) return;
  const s = whole(), heads = app.about.model.n_head;
  // Letters act only in a view, so that speech and other keyboards do not change things by chance.
  const inView = target.closest("#tokens, #hooks, #where, #what, .side") !== null;
  const level = LEVELS.findIndex((selector) => target.matches(selector) || target.closest(selector.split(" ")[0]));
  const act = {
    "/": () => byId("search").focus(), g: () => byId("dim").focus(), c: copyCommand, l: copyLink, "?": () => byId("help-dialog").showModal(),
    b: () => ((byId("source").open = true), byId("b").focus()),
    "[": () => go({ head: Math.max(0, (s.head ?? 0) - 1) }), "]": () => go({ head: Math.min(heads - 1, (s.head ?? 0) + 1) }),
    Enter: () => level >= 0 && toLevel(level, 1),
    Escape: () => (s.key !== null && level === 0 ? go({ key: null }) : toLevel(Math.max(level, 1), -1)),
  }[key] ?? (opOf(key) && (() => add(opOf(key))));
  if (!act || (!inView && key !== "Escape")) return;
  if (key === "Enter" && target.matches("button, summary")) return;
  event.preventDefault();
  act();
}

const DEVICES = [["", "automatic"], ["gpu", "WebGPU"], ["cpu", "CPU (WebAssembly)"], ["reference", "reference (f64)"]];

async function start() {
  if (SERVED) {
    try {
      app.served = await (await fetch(new URL("served.json", import.meta.url))).json();
    } catch (error) {
      app.errors.set("engine", `The program that serves this page does not answer (${error.message}); start actscope explore again.`);
      return draw();
    }
    document.body.classList.add("served");
    byId("device").disabled = true;
    byId("privacy").textContent = "What you type is computed by the program that serves this page, on this machine, and goes nowhere else.";
  }
  byId("device").replaceChildren(...(app.served ? [["", app.served.device]] : DEVICES).map(([value, name]) => make("option", { value }, name)));
  byId("device").addEventListener("change", () => go({ device: byId("device").value }));
  byId("link").addEventListener("click", copyLink);
  byId("command").addEventListener("click", copyCommand);
  byId("undo").addEventListener("click", undo);
  addEventListener("keydown", keys);
  addEventListener("popstate", fromAddress);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => app.draw());
  new ResizeObserver(() => app.draw()).observe(document.body);
  for (const part of [startText, startHooks, startWhere, startWhat, startNext, startEdits, startDialogs, startPanes]) part();
  fromAddress();
}

// For the tests.
window.explorer = { app, go, toLink, fromLink, whole, runs, commandNow, chosenNumber, grids };

start();
