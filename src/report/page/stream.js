// The residual stream at the chosen token: the value of one dimension, all values as a strip per layer, and the
// dimensions and neurons of largest magnitude. Read next: attention.js.

/** Where pointer positions on the strip lie; set when it is drawn. */
let strip = { left: 0, width: 1, row: 1 };

function drawStream() {
  const { token, stage, dimension } = state;
  const hook = stageHook(stage);
  const value = streamValue(stage, token, dimension);
  byId("value").textContent = showKept(value);
  byId("value-name").textContent = `${hook}[${token}, ${dimension}] at ${quoted(token)}, ${place(stage)}`;
  showCommand("value", `prints all ${model.n_embd} numbers of this token and layer; this one is hooks["${hook}"][0][0][${dimension}]`, command("extract", "--hook", hook, "--token", `${token}`, "--json"));
  drawLayers();
  drawStrip();
  drawStrongest();
}

const place = (stage) => (stage === 0 ? "entering block 0" : stage <= model.n_layer ? `layer ${stage - 1}` : "after ln_f");

function drawLayers() {
  const { token, stage, dimension } = state;
  const stages = Array.from({ length: nStages }, (_, i) => i);
  const values = stages.map((s) => streamValue(s, token, dimension));
  const most = Math.max(...values.slice(0, -1).map((v) => Math.abs(v?.value ?? 0)).filter(Number.isFinite), 0);
  byId("by-layer-dimension").textContent = `dimension ${dimension}`;
  const rows = stages.map((s) => {
    const mid = s >= 1 && s <= model.n_layer ? show(midNorm(s - 1, token), 4) : "";
    return make("tr", { class: s === stage ? "selected" : null, "data-stage": s },
      make("th", { scope: "row" }, make("button", { type: "button", onclick: () => choose({ stage: s }), "aria-label": place(s), "aria-pressed": `${s === stage}` }, stageName(s))),
      make("td", { class: "number" }, mid),
      make("td", { class: "number" }, show(stageNorm(s, token), 4)),
      make("td", { class: "number value" }, showKept(values[s])),
      bar((values[s]?.value ?? 0) / (most || 1), true));
  });
  refill(byId("by-layer").tBodies[0], rows);
  showCommand("norms", "prints these norms", command("extract", "--hook", "blocks.*.hook_resid_mid", "--hook", "blocks.*.hook_resid_post", "--token", `${token}`));
}

/** New rows for a table; a button that has the focus keeps it. */
function refill(body, rows) {
  const buttons = [...body.querySelectorAll("button")];
  const focused = buttons.indexOf(document.activeElement);
  body.replaceChildren(...rows);
  if (focused >= 0) body.querySelectorAll("button")[focused]?.focus();
}

/** All dimensions, a row a stage, each stage with its own scale: a few dimensions of GPT-2 are in the thousands. */
function drawStrip() {
  const canvas = byId("strip");
  const width = byId("strip-box").clientWidth, left = 36;
  const row = Math.min(18, Math.max(7, Math.floor(300 / nStages)));
  const context = sized(canvas, width, row * nStages);
  strip = { left, width: width - left, row };
  const n = Math.min(model.n_embd, Math.round(strip.width * (devicePixelRatio || 1)));
  const pixels = new Uint8Array(n * nStages);
  for (let stage = 0; stage < nStages; stage++) {
    const values = streamRow(stage, state.token);
    const sizes = values.map(Math.abs).filter(Number.isFinite).sort();
    const scale = sizes[Math.floor(0.99 * (sizes.length - 1))] || sizes[sizes.length - 1] || 1;
    for (let x = 0; x < n; x++) {
      // If several dimensions share a pixel, show the one with the largest magnitude.
      let strongest = 0;
      for (let d = Math.floor((x * model.n_embd) / n); d < Math.floor(((x + 1) * model.n_embd) / n); d++) {
        if (Math.abs(values[d]) > Math.abs(strongest)) strongest = values[d];
      }
      pixels[stage * n + x] = Math.round(127.5 + 127.5 * Math.max(-1, Math.min(1, strongest / scale)));
    }
  }
  const drawn = image(n, nStages, pixels, colours().signed);
  context.fillStyle = cssColour("--soft");
  context.font = `${Math.min(11, row)}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (let stage = 0; stage < nStages; stage++) {
    context.drawImage(drawn, 0, stage, n, 1, left, stage * row, strip.width, row - 1);
    if (row >= 10 || stage % 4 === 0) context.fillText(stageName(stage), left - 6, stage * row + row / 2);
  }
  // The chosen value.
  const x = left + ((state.dimension + 0.5) / model.n_embd) * strip.width, size = Math.max(4, strip.width / model.n_embd);
  context.strokeStyle = cssColour("--ink");
  context.lineWidth = 2;
  context.strokeRect(x - size / 2 - 1, state.stage * row - 0.5, size + 2, row);
  const part = kept.stream.as === "strongest" ? ` Only the ${kept.stream.n} strongest dimensions are kept for a text of this length.` : "";
  byId("strip-note").textContent = `All ${model.n_embd} dimensions at ${quoted(state.token)}, a row a layer, red above and blue below zero. Each row has its own scale: the deepest colour begins at its 99th percentile. Click, or use the arrow keys (Shift: ten at a time).${part}`;
  readStrip(null);
  showCommand("heatmap", "draws all tokens and dimensions of this layer", command("heatmap", "--hook", stageHook(state.stage), "--dims", "all", "-o", "heatmap.png"));
}

/** What is under the pointer. */
function readStrip(at) {
  byId("strip-read").textContent = at
    ? `${place(at.stage)}, dimension ${at.dimension}: ${showKept(streamValue(at.stage, state.token, at.dimension))}`
    : "Point at a cell to read it";
}

function stripPlace(event) {
  const box = byId("strip").getBoundingClientRect();
  const x = (event.clientX - box.left - strip.left) / strip.width, y = (event.clientY - box.top) / strip.row;
  return { stage: clamp(Math.floor(y), nStages), dimension: clamp(Math.floor(x * model.n_embd), model.n_embd) };
}

const clamp = (i, n) => Math.max(0, Math.min(n - 1, i));

function drawStrongest() {
  const { token, stage, dimension } = state;
  const hook = stageHook(stage), block = blockOf(stage);
  const values = streamRow(stage, token);
  const order = Array.from(values.keys()).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]) || a - b).slice(0, kept.neurons);
  const rows = order.map((d) =>
    make("tr", { class: d === dimension ? "selected" : null },
      make("td", { class: "number" }, make("button", { type: "button", onclick: () => choose({ dimension: d }), "aria-label": `dimension ${d}` }, `${d}`)),
      make("td", { class: "number" }, showKept(streamValue(stage, token, d))),
      bar(values[d] / Math.abs(values[order[0]] || 1), true)));
  byId("strongest").caption.textContent = `Strongest dimensions, ${place(stage)}`;
  refill(byId("strongest").tBodies[0], rows);
  showCommand("stream", "prints norm, range and strongest dimensions", command("extract", "--hook", hook, "--token", `${token}`));

  const neurons = strongestNeurons(block, token);
  byId("neurons").caption.textContent = `Strongest neurons, block ${block}`;
  byId("neurons").tBodies[0].replaceChildren(...neurons.map(([neuron, value]) =>
    make("tr", {}, make("td", { class: "number" }, `${neuron}`), make("td", { class: "number" }, show(value)), bar(value / Math.abs(neurons[0][1] || 1), true))));
  showCommand("neurons", "prints range and strongest neurons", command("extract", "--hook", `blocks.${block}.mlp.hook_post`, "--token", `${token}`));
}

function listenToStrip() {
  const canvas = byId("strip");
  canvas.addEventListener("pointermove", (event) => readStrip(stripPlace(event)));
  canvas.addEventListener("pointerleave", () => readStrip(null));
  canvas.addEventListener("click", (event) => choose(stripPlace(event)));
  canvas.addEventListener("keydown", (event) => {
    const far = event.shiftKey ? 10 : 1;
    const [right, down] = { ArrowRight: [far, 0], ArrowLeft: [-far, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key] ?? [0, 0];
    if (!right && !down) return;
    event.preventDefault();
    choose({ dimension: clamp(state.dimension + right, model.n_embd), stage: clamp(state.stage + down, nStages) });
  });
  const input = byId("dimension");
  input.max = model.n_embd - 1;
  input.addEventListener("input", () => {
    const dimension = input.valueAsNumber;
    const is = Number.isInteger(dimension) && dimension >= 0 && dimension < model.n_embd;
    input.setAttribute("aria-invalid", `${!is}`);
    if (is) choose({ dimension });
    else announce(`Dimensions run from 0 to ${model.n_embd - 1}`);
  });
}
