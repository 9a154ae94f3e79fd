// The page: the selection (`state`), the text, the logit lens, and the page's facts about the run. data.js has the
// values, draw.js what the views share, stream.js and attention.js one view each. Every view is drawn from `state`
// alone. Read next: stream.js.

/** What is shown. `stage` counts the residual stream's stages: see data.js. */
const state = { token: nPos - 1, stage: model.n_layer, dimension: 0, head: 0, shade: "attention" };

/** Chooses something and draws what depends on it. Resolves when all of it is drawn. */
async function choose(change) {
  const before = { ...state };
  Object.assign(state, change);
  drawChosen();
  drawStream();
  if (state.token !== before.token) drawLens();
  const value = showKept(streamValue(state.stage, state.token, state.dimension));
  if ("token" in change || "stage" in change || "dimension" in change) {
    announce(`Token ${state.token} ${quoted(state.token)}, ${place(state.stage)}, dimension ${state.dimension}: ${value}`);
  } else if ("head" in change) {
    announce(`Head ${state.head} of block ${blockOf(state.stage)}`);
  }
  await drawAttention();
}

/** The text, and the controls that hold what is chosen. */
function makeText() {
  const spans = tokens.flatMap(({ id, label, breaks }, position) => {
    const written = data.prompt !== null && position >= data.prompt;
    const token = make("span", { class: written ? "tok written" : "tok", role: "option", id: `token-${position}`, "aria-selected": "false", tabindex: -1, title: `position ${position}, id ${id}` }, label);
    return [token, ...Array.from({ length: breaks }, () => make("br"))];
  });
  const text = byId("text");
  text.replaceChildren(...spans);
  const positionOf = (event) => event.target.closest?.(".tok")?.id.slice("token-".length);
  text.addEventListener("click", (event) => {
    const position = positionOf(event);
    if (position !== undefined) choose({ token: Number(position) });
  });
  text.addEventListener("keydown", (event) => {
    const to = { ArrowRight: state.token + 1, ArrowLeft: state.token - 1, Home: 0, End: nPos - 1, ArrowDown: beside(1), ArrowUp: beside(-1) }[event.key];
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    chooseToken(to);
  });
}

/** Chooses a token and brings it into view, with the focus where it was in the text already. */
function chooseToken(position) {
  const token = clamp(position, nPos);
  const inText = byId("text").contains(document.activeElement);
  choose({ token });
  const element = byId(`token-${token}`);
  if (inText) element.focus({ preventScroll: true });
  element.scrollIntoView({ block: "nearest" });
}

/** The token above or below the chosen one on the page. */
function beside(lines) {
  const box = (position) => byId(`token-${position}`).getBoundingClientRect();
  const here = box(state.token);
  let best = state.token, nearest = Infinity, line = null;
  for (let p = state.token + lines; p >= 0 && p < nPos; p += lines) {
    const there = box(p);
    if (Math.abs(there.bottom - here.bottom) < 4) continue;
    line ??= there.bottom;
    if (Math.abs(there.bottom - line) > 4) break;
    const off = Math.abs(there.left - here.left);
    if (off < nearest) [best, nearest] = [p, off];
  }
  return best;
}

function makeControls() {
  byId("layers").append(...Array.from({ length: nStages }, (_, stage) =>
    make("label", {}, make("input", { type: "radio", name: "layer", value: stage, "aria-label": place(stage), onchange: () => choose({ stage }) }), make("span", { "aria-hidden": "true" }, stageName(stage)))));
  byId("previous").addEventListener("click", () => chooseToken(state.token - 1));
  byId("next").addEventListener("click", () => chooseToken(state.token + 1));
  byId("shade").addEventListener("change", (event) => {
    state.shade = event.target.value;
    shadeText();
  });
  makeHeads();
  listenToStrip();
  listenToMap();
  const redraw = () => {
    drawStream();
    shown.block = -1;
    drawAttention();
  };
  dark.addEventListener("change", redraw);
  let waiting;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(redraw, 100);
  });
}

function drawChosen() {
  const { token, stage, dimension, head } = state;
  for (const old of document.querySelectorAll('.tok[aria-selected="true"]')) {
    old.setAttribute("aria-selected", "false");
    old.tabIndex = -1;
  }
  const chosen = byId(`token-${token}`);
  chosen.setAttribute("aria-selected", "true");
  chosen.tabIndex = 0;
  byId("token-label").textContent = tokens[token].label;
  byId("token-facts").textContent = `token ${token} of ${nPos}, id ${tokens[token].id}`;
  byId("previous").disabled = token === 0;
  byId("next").disabled = token === nPos - 1;
  document.querySelector(`input[name="layer"][value="${stage}"]`).checked = true;
  document.querySelector(`input[name="head"][value="${head}"]`).checked = true;
  const input = byId("dimension");
  if (input.valueAsNumber !== dimension) input.value = dimension;
  input.setAttribute("aria-invalid", "false");
}

/** What each token is shaded by now, so that only what differs is styled anew. */
const shadesNow = new Float32Array(nPos);

/** Shades the tokens by what was asked for. */
function shadeText() {
  const { token, stage, dimension, shade } = state;
  const shades = new Float32Array(nPos);
  let signed = false, note = "";
  if (shade === "attention" && shown.attention) {
    const { keys, weights } = shown.attention.row(shown.head, token);
    keys.forEach((key, i) => (shades[key] = shadeOf(weights[i])));
    note = `How much ${quoted(token)} attends to each token in head ${shown.block}.${shown.head}.`;
  } else if (shade === "dimension") {
    signed = true;
    const values = tokens.map((_, p) => streamValue(stage, p, dimension)?.value ?? 0);
    // As in the strip, clip outliers, so that they do not make all other values pale.
    const sizes = values.map(Math.abs).filter(Number.isFinite).sort((a, b) => a - b);
    const scale = sizes[Math.floor(0.95 * (sizes.length - 1))] || sizes[sizes.length - 1] || 1;
    values.forEach((value, p) => (shades[p] = value / scale));
    note = `Dimension ${dimension}, ${place(stage)}: red above, blue below zero, deepest from ±${show(scale, 3)} on.`;
  } else if (shade === "surprise") {
    for (let p = 1; p < nPos; p++) shades[p] = -Math.log(lensReading(model.n_layer, p - 1).next) / Math.log(model.vocab_size);
    note = "How little the model expected each token: -ln p, deepest at or beyond a blind guess. The first is expected by nothing.";
  }
  byId("shade-note").textContent = note;
  for (let p = 0; p < nPos; p++) {
    const size = Math.round(1000 * Math.min(1, Math.abs(shades[p]) || 0));
    // One number encodes the colour (by sign) and its strength.
    const shade = size + (signed && size ? (shades[p] > 0 ? 2000 : 4000) : 0);
    if (shadesNow[p] === shade) continue;
    shadesNow[p] = shade;
    const element = byId(`token-${p}`);
    element.style.setProperty("--shade", size / 1000);
    element.classList.toggle("plus", shade >= 2000 && shade < 4000);
    element.classList.toggle("minus", shade >= 4000);
  }
}

function drawLens() {
  const { token } = state, next = tokens[token + 1];
  byId("lens-note").replaceChildren(
    "What the model would say comes after ", tokenText(tokens[token].label), " if it stopped after each layer: the stream through ln_f and the unembedding (nostalgebraist 2020). ",
    ...(next ? ["The token that really comes next is ", tokenText(next.label), "; where it is listed it has a frame."] : ["This is the last token of the text."]),
    " Entropy in nats; rank 1 is the likeliest.");
  const rows = Array.from({ length: model.n_layer + 1 }, (_, stage) => {
    const { likeliest, entropy, rank, next: probability } = lensReading(stage, token);
    const cells = likeliest.map((t) => {
      const really = next?.id === t.id;
      const text = make("span", { class: "unseen" }, really ? " (really next)" : "");
      return make("td", { class: really ? "true" : null }, tokenText(t.label, { "--shade": t.probability }), make("small", {}, show(t.probability, 3)), text);
    });
    return make("tr", {}, make("th", { scope: "row" }, stageName(stage)), ...cells, make("td", { class: "number" }, show(entropy, 3)),
      make("td", { class: "number" }, next ? show(probability, 3) : ""), make("td", { class: "number" }, next ? `${rank}` : ""));
  });
  document.querySelector("#lens .likeliest").colSpan = kept.lens;
  byId("lens").tBodies[0].replaceChildren(...rows);
  showCommand("lens", "prints the lens of the whole text, every number", command("lens", "--json"));
}

/** What is kept, and how; where it comes from. */
function drawAbout() {
  byId("model").textContent = model.name;
  byId("facts").textContent = `${model.n_layer} layers · ${model.n_head} heads · ${model.n_embd} dimensions · ${model.n_inner} neurons a layer · ${nPos} token${nPos === 1 ? "" : "s"}`;
  const stream = {
    "f16": "Every dimension of every token and layer, as f16 (11 significant bits: the fourth digit may be off by one).",
    "8-bit": `Every dimension of every token and layer, in 8 bits: ${kept.stream.block} neighbours share a scale, and ± says how far a number may be off. \`actscope extract\` writes all numbers exactly.`,
    "strongest": `The ${kept.stream.n} strongest dimensions of every token and layer, as f16. All others are left out; \`actscope extract\` writes them.`,
  }[kept.stream.as];
  const attention = kept.attention.as === "f16"
    ? "Every weight of every head, as f16."
    : `The ${kept.attention.n} strongest weights of every head and token, as f16, and what all others share. \`actscope extract\` writes all.`;
  const facts = [
    ["Residual stream", stream],
    ["Attention", attention],
    ["Neurons", `The ${kept.neurons} strongest of every token and block, as f16, of blocks.*.mlp.hook_post.`],
    ["Logit lens", `The ${kept.lens} likeliest tokens of every token and layer, entropy, and the true next token's probability as f16, its rank exactly.`],
    ["Names", `Hooks are named and defined as in ${data.definitions}.`],
    ["Commands", data.arguments === null
      ? "None: no command can make this run's edits, which are objects of Python, or are of a text that grew or of other texts."
      : "For a POSIX shell (sh, bash, zsh). They print or draw the same numbers in full f32."],
    ...(data.prompt === null ? [] : [["Written", `The model wrote the tokens from position ${data.prompt} on; they are underlined. The numbers are those of one run over the whole text, edited as it was while it was written.`]]),
    ["Model", `${model.name}${model.process && `, its weights processed (${model.process})`}, fingerprint ${model.fingerprint}`],
    ["Computed on", data.device],
    ["Made by", `actscope ${data.version}`],
  ];
  byId("about").replaceChildren(...facts.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
}

async function start() {
  drawAbout();
  makeText();
  if (typeof DecompressionStream === "undefined") {
    byId("views").textContent = "This browser is too old to unpack the page's data: it takes Chrome or Edge 103, Firefox 113, Safari 16.4, or later.";
    return;
  }
  await unpackAll();
  makeControls();
  const values = streamRow(state.stage, state.token).map(Math.abs);
  state.dimension = values.indexOf(Math.max(...values.filter((size) => !Number.isNaN(size))));
  drawLens();
  await choose({ dimension: clamp(state.dimension, model.n_embd) });
  document.documentElement.dataset.ready = "";
}

start();
