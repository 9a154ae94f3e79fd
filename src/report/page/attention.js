// Attention: a small map for every head of a block, one large map with the weight under the pointer, and tables of the
// keys that the chosen token attends to and of the queries that attend to it. Read next: draw.js.

/** The block that is shown, and where pointer positions on the large map lie. */
let shown = { block: -1, head: -1, attention: null };
let map = { left: 0, top: 0, cell: 1, drawn: "" };
/** The cell that the arrow keys or the pointer are at, and the tokens of the text that show it. */
let at = null;
let pointed = [];

/** Weights are drawn by a root of them, the square root in short texts: then the weight that each of all tokens would have,
    were none special, takes a quarter of the colours (down to the root 0.3), and a tenth is still seen. */
const shadeExponent = Math.min(0.5, Math.max(0.3, Math.log(4) / Math.log(Math.max(nPos, 2))));
const shadeOf = (weight) => Math.max(0, Math.min(1, weight)) ** shadeExponent;

/** A head's pattern as `side` x `side` colour indices. Where several weights share a pixel the strongest is shown, so that
    thin diagonals stay. Weights that are not kept are drawn as their mean. */
function pixelsOf(attention, head, side) {
  const pixels = new Uint8Array(side * side);
  for (let query = 0; query < nPos; query++) {
    const { keys, weights, others, rest } = attention.row(head, query);
    const start = Math.floor((query * side) / nPos) * side;
    if (others) {
      const index = Math.round(255 * shadeOf(rest / others));
      const end = start + Math.floor((query * side) / nPos);
      for (let i = start; i <= end; i++) if (pixels[i] < index) pixels[i] = index;
    }
    for (let i = 0; i < keys.length; i++) {
      const index = Math.round(255 * shadeOf(weights[i])), pixel = start + Math.floor((keys[i] * side) / nPos);
      if (pixels[pixel] < index) pixels[pixel] = index;
    }
  }
  return pixels;
}

async function drawAttention() {
  const block = blockOf(state.stage);
  const attention = await Attention.load(block);
  // The user may have chosen another one during unpacking.
  if (block !== blockOf(state.stage)) return;
  const changed = shown.block !== block;
  shown = { block, head: state.head, attention };
  byId("attention-title").textContent = `Attention, block ${block}`;
  if (changed) drawHeads();
  drawMap();
  drawKeys();
  drawLookers();
  shadeText();
}

/** A radio button with its pattern, for every head. */
function drawHeads() {
  const side = Math.min(nPos, 56);
  for (let head = 0; head < model.n_head; head++) {
    const canvas = byId("heads").children[head].querySelector("canvas");
    canvas.width = canvas.height = 112;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image(side, side, pixelsOf(shown.attention, head, side), colours().weight), 0, 0, 112, 112);
    byId("heads").children[head].querySelector("span").textContent = `${shown.block}.${head}`;
  }
}

function makeHeads() {
  const heads = Array.from({ length: model.n_head }, (_, head) =>
    make("label", {},
      make("input", { type: "radio", name: "head", value: head, checked: head === state.head, "aria-label": `head ${head}`, onchange: () => choose({ head }) }),
      make("span", { "aria-hidden": "true" }), make("canvas", { "aria-hidden": "true" })));
  byId("heads").replaceChildren(...heads);
}

/** The large map: queries down, keys across, with the tokens beside it where there is room. */
function drawMap() {
  const { head, attention } = shown;
  const canvas = byId("map"), width = byId("map-box").clientWidth;
  at = null;
  // Another token is another row of the same map.
  const drawn = [shown.block, head, width, devicePixelRatio, dark.matches].join();
  if (map.drawn === drawn) return drawCross();
  const font = '12px ui-monospace, "DejaVu Sans Mono", monospace';
  const measure = canvas.getContext("2d");
  measure.font = font;
  const longest = Math.min(110, 10 + Math.max(...tokens.slice(0, 60).map((t) => measure.measureText(t.label).width)));
  const labelled = (width - longest) / nPos >= 13;
  const margin = labelled ? longest : 0;
  const side = Math.floor(width - margin);
  const context = sized(canvas, width, side + margin);
  map = { left: margin, top: margin, cell: side / nPos, drawn };
  const pixels = Math.min(nPos, Math.round(side * (devicePixelRatio || 1)));
  context.drawImage(image(pixels, pixels, pixelsOf(attention, head, pixels), colours().weight), margin, margin, side, side);
  if (labelled) {
    context.font = font;
    context.textBaseline = "middle";
    context.fillStyle = cssColour("--ink");
    for (let i = 0; i < nPos; i++) {
      const middle = margin + (i + 0.5) * map.cell, label = short(context, tokens[i].label, margin - 8);
      context.textAlign = "right";
      context.fillText(label, margin - 6, middle);
      drawUpwards(context, label, middle, margin - 6);
    }
  }
  if (map.cell >= 46) {
    // For few tokens, show the weights themselves.
    context.textAlign = "center";
    context.font = "12px system-ui, sans-serif";
    for (let query = 0; query < nPos; query++) {
      const { keys, weights } = attention.row(head, query);
      keys.forEach((key, i) => {
        const strong = shadeOf(weights[i]) > 0.62;
        context.fillStyle = strong === dark.matches ? "#0b1520" : "#fff";
        context.fillText(weights[i].toFixed(3), margin + (key + 0.5) * map.cell, margin + (query + 0.5) * map.cell);
      });
    }
  }
  canvas.setAttribute("aria-label", `Attention pattern of head ${head}, block ${shown.block}, ${nPos} by ${nPos} tokens`);
  const merged = pixels < nPos ? ` Here ${(nPos / pixels).toFixed(1)} tokens share a pixel, which shows the strongest of them.` : "";
  const missing = kept.attention.as === "strongest" ? ` Only the ${kept.attention.n} strongest weights of every row are stored; the others are drawn as their mean.` : "";
  byId("map-note").textContent = `Rows look at columns. Click a row to choose its token; with the keyboard, arrows move and Enter chooses.${merged}${missing}`;
  drawCross();
  drawScale();
}

/** A label cut to a width. */
function short(context, label, width) {
  if (context.measureText(label).width <= width) return label;
  const characters = [...label];
  while (characters.length && context.measureText(`${characters.join("")}…`).width > width) characters.pop();
  return `${characters.join("")}…`;
}

function drawScale() {
  const canvas = byId("map-scale"), width = canvas.clientWidth || 200;
  const context = sized(canvas, width, 10);
  context.drawImage(image(256, 1, Uint8Array.from({ length: 256 }, (_, i) => i), colours().weight), 0, 0, width, 10);
  byId("map-ticks").replaceChildren(...[0, 0.01, 0.1, 0.5, 1].map((weight) => make("span", { "--at": shadeOf(weight) }, `${weight}`)));
}

/** What lies over the map: the chosen token's row, and lines through the cell under the pointer. Drawn alone when the pointer
    moves, so that even a large map follows it. */
function drawCross() {
  const canvas = byId("map-cross"), box = byId("map");
  const ratio = devicePixelRatio || 1;
  if (canvas.width !== box.width || canvas.height !== box.height) {
    canvas.width = box.width;
    canvas.height = box.height;
    canvas.style.height = box.style.height;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, box.width, box.height);
  const { left, top, cell } = map, side = cell * nPos;
  context.strokeStyle = cssColour("--accent");
  context.lineWidth = 1.5;
  context.strokeRect(left, top + state.token * cell - 0.5, side, Math.max(cell, 2) + 1);
  if (at) {
    context.strokeStyle = cssColour("--soft");
    context.lineWidth = 1;
    context.strokeRect(left, top + at.query * cell, side, Math.max(cell, 1));
    context.strokeRect(left + at.key * cell, top, Math.max(cell, 1), side);
  }
  readMap();
}

/** The weight of one cell in words. */
function weightAt(query, key) {
  if (key > query) return "0, since no token looks ahead";
  const { keys, weights, others, rest } = shown.attention.row(shown.head, query);
  const i = keys.indexOf(key);
  if (i >= 0) return show(weights[i]);
  return `not kept: one of ${others} that share ${show(rest, 2)}, at most ${show(Math.min(...weights), 2)} each`;
}

function readMap() {
  const { query, key } = at ?? {};
  byId("map-read").textContent = at ? `${quoted(query)} (${query}) → ${quoted(key)} (${key}): ${weightAt(query, key)}` : "Point at a cell to read it";
  for (const token of pointed) token.classList.remove("pointed", "key");
  pointed = at ? [byId(`token-${query}`), byId(`token-${key}`)] : [];
  pointed[0]?.classList.add("pointed");
  pointed[1]?.classList.add("key");
}

/** Tokens with weights as a table, strongest first; returns how many are not listed and the sum of their weights. */
function fillWeights(id, pairs, caption) {
  const most = 12, order = pairs.sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  const rows = order.slice(0, most).map(([position, weight]) =>
    make("tr", {}, make("td", { class: "number" }, `${position}`), make("td", {}, tokenText(tokens[position].label)), make("td", { class: "number" }, show(weight)), bar(weight / (order[0][1] || 1))));
  byId(id).caption.replaceChildren(`Head ${shown.block}.${shown.head}: `, ...caption);
  byId(id).tBodies[0].replaceChildren(...rows);
  return { more: order.length - rows.length, left: order.slice(most).reduce((sum, pair) => sum + pair[1], 0) };
}

/** What the chosen token looks at. */
function drawKeys() {
  const { block, head, attention } = shown;
  const { keys, weights, others, rest } = attention.row(head, state.token);
  const pairs = Array.from(keys, (key, i) => [key, weights[i]]);
  const { more, left } = fillWeights("keys-table", pairs, [tokenText(tokens[state.token].label), ` (${state.token}) looks at`]);
  byId("keys-note").textContent = more + others > 0 ? `${more + others} more tokens share ${show(left + rest, 3)}.` : "";
  showCommand("attention", "draws this head", command("attention", "--layer", `${block}`, "--head", `${head}`, "-o", "attention.png"));
  showCommand("pattern", `prints what this token looks at in all heads; this head is hooks["blocks.${block}.attn.hook_pattern"][0][${head}][0]`, command("extract", "--hook", `blocks.${block}.attn.hook_pattern`, "--token", `${state.token}`, "--json"));
}

/** The tokens that look at the chosen one. */
function drawLookers() {
  const pairs = [];
  for (let query = state.token; query < nPos; query++) {
    const { keys, weights } = shown.attention.row(shown.head, query);
    const i = keys.length === query + 1 ? state.token : keys.indexOf(state.token);
    if (i >= 0) pairs.push([query, weights[i]]);
  }
  const { more } = fillWeights("lookers-table", pairs, ["who looks at ", tokenText(tokens[state.token].label), ` (${state.token})`]);
  const missing = nPos - state.token - pairs.length;
  byId("lookers-note").textContent = [more ? `${more} more look at it with less.` : "", missing ? `The weights of ${missing} others are not stored: they are small in their rows.` : ""].join(" ");
}

function mapPlace(event) {
  const box = byId("map").getBoundingClientRect();
  const key = Math.floor((event.clientX - box.left - map.left) / map.cell), query = Math.floor((event.clientY - box.top - map.top) / map.cell);
  return key < 0 || query < 0 || key >= nPos || query >= nPos ? null : { query, key };
}

function listenToMap() {
  const canvas = byId("map");
  let asked = false;
  const point = (to) => {
    at = to;
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      if (shown.attention) drawCross();
    });
  };
  canvas.addEventListener("pointermove", (event) => point(mapPlace(event)));
  canvas.addEventListener("pointerleave", () => point(null));
  canvas.addEventListener("click", (event) => {
    const to = mapPlace(event);
    if (to) choose({ token: to.query });
  });
  canvas.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key] ?? [0, 0];
    if (event.key === "Enter" && at) return choose({ token: at.query });
    if (!right && !down) return;
    event.preventDefault();
    at = at ? { query: clamp(at.query + down, nPos), key: clamp(at.key + right, nPos) } : { query: state.token, key: state.token };
    drawCross();
    announce(byId("map-read").textContent);
  });
}
