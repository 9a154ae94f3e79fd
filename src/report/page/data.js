// The values of a report's run: what gather.rs packed. Read next: page.js.
const { kept } = data;
const nPos = tokens.length;

// Stages of the residual stream: 0 is the input of the first block, 1 + l the output of block l, the last is after
// ln_f.
const nStages = model.n_layer + 2;
const stageHook = (stage) =>
  stage === 0 ? "blocks.0.hook_resid_pre" : stage <= model.n_layer ? `blocks.${stage - 1}.hook_resid_post` : "ln_final.hook_out";
const stageName = (stage) => (stage === 0 ? "in" : stage <= model.n_layer ? `${stage - 1}` : "ln_f");
/** The block whose neurons and heads belong to a stage. */
const blockOf = (stage) => Math.min(Math.max(stage - 1, 0), model.n_layer - 1);

const found = {};

/** Unpacks all but the attention patterns, which come layer by layer when they are looked at. */
async function unpackAll() {
  const names = ["stream", "norms", "neurons", "neurons.places", "lens.ids", "lens.probabilities", "lens.entropy", "lens.rank", "lens.next", "labels"];
  if (kept.stream.as === "8-bit") names.push("stream.scales");
  if (kept.stream.as === "strongest") names.push("stream.places");
  const bytes = Object.fromEntries(await Promise.all(names.map(async (name) => [name, await unpack(name)])));
  const nRows = nStages * nPos;
  if (kept.stream.as === "8-bit") {
    found.codes = new Int8Array(bytes.stream.buffer);
    found.scales = new Rows(bytes["stream.scales"], nRows);
  } else {
    found.stream = new Rows(bytes.stream, nRows);
    if (kept.stream.as === "strongest") found.streamPlaces = whole(bytes["stream.places"]);
  }
  found.norms = new Rows(bytes.norms, nStages + model.n_layer);
  found.neurons = new Rows(bytes.neurons, model.n_layer * nPos);
  found.neuronPlaces = whole(bytes["neurons.places"]);
  found.lensIds = whole(bytes["lens.ids"]);
  found.lensProbabilities = new Rows(bytes["lens.probabilities"], (model.n_layer + 1) * nPos);
  found.lensEntropy = new Rows(bytes["lens.entropy"], model.n_layer + 1);
  found.lensRank = whole(bytes["lens.rank"]);
  found.lensNext = new Rows(bytes["lens.next"], model.n_layer + 1);
  found.labels = JSON.parse(new TextDecoder().decode(bytes.labels));
}

/** One number of the stream and how far off it may be (0: f16's own rounding only), or null where it is not kept. */
function streamValue(stage, position, dimension) {
  const row = stage * nPos + position;
  if (kept.stream.as === "f16") return { value: found.stream.at(row, row * model.n_embd + dimension), off: 0 };
  if (kept.stream.as === "8-bit") {
    const code = found.codes[row * model.n_embd + dimension];
    const blocks = Math.ceil(model.n_embd / kept.stream.block);
    const scale = found.scales.at(row, row * blocks + Math.floor(dimension / kept.stream.block));
    return code === -128 ? { value: NaN, off: 0 } : { value: code * scale, off: scale / 2 };
  }
  const n = Math.min(kept.stream.n, model.n_embd);
  const place = found.streamPlaces.subarray(row * n, (row + 1) * n).indexOf(dimension);
  return place < 0 ? null : { value: found.stream.at(row, row * n + place), off: 0 };
}

/** All dimensions of a stage at a position; 0 where a number is not kept. */
function streamRow(stage, position) {
  const row = stage * nPos + position;
  if (kept.stream.as === "f16") return found.stream.slice(row, row * model.n_embd, model.n_embd);
  const values = new Float32Array(model.n_embd);
  for (let dimension = 0; dimension < model.n_embd; dimension++) values[dimension] = streamValue(stage, position, dimension)?.value ?? 0;
  return values;
}

/** Norms: of every stage, and of resid_mid in every block. */
const stageNorm = (stage, position) => found.norms.at(stage, stage * nPos + position);
const midNorm = (layer, position) => found.norms.at(nStages + layer, (nStages + layer) * nPos + position);

/** The strongest neurons of a block at a position, strongest first: [place, value]. */
function strongestNeurons(layer, position) {
  const row = layer * nPos + position;
  return Array.from({ length: kept.neurons }, (_, i) => [found.neuronPlaces[row * kept.neurons + i], found.neurons.at(row, row * kept.neurons + i)]);
}

/** What the lens reads after a stage (not ln_f): the likeliest tokens, entropy, and the true next token's lot. */
function lensReading(stage, position) {
  const row = stage * nPos + position;
  const likeliest = Array.from({ length: kept.lens }, (_, i) => {
    const id = found.lensIds[row * kept.lens + i];
    return { id, label: found.labels[id], probability: found.lensProbabilities.at(row, row * kept.lens + i) };
  });
  const entropy = found.lensEntropy.at(stage, row);
  return { likeliest, entropy, rank: found.lensRank[row], next: found.lensNext.at(stage, row) };
}

/** Attention of one block: call `load` once, then `row` for what a query of a head looks at. */
class Attention {
  static loaded = new Map();
  static async load(layer) {
    if (!Attention.loaded.has(layer)) Attention.loaded.set(layer, new Attention().#unpack(layer));
    return Attention.loaded.get(layer);
  }
  async #unpack(layer) {
    const [weights, places] = await Promise.all([
      unpack(`attention.${layer}`),
      kept.attention.as === "strongest" ? unpack(`attention.${layer}.places`) : null,
    ]);
    this.weights = new Rows(weights, model.n_head * nPos);
    this.places = places && whole(places);
    return this;
  }
  /** { keys, weights }, ascending by key; `rest` is the weight of the keys that are not kept, of which there are `others`. */
  row(head, query) {
    const most = this.places ? kept.attention.n : nPos;
    // The number of values before the row of query q in a head: 1 + 2 + ... up to `most`, then `most` each.
    const before = (q) => (q < most ? (q * (q + 1)) / 2 : (most * (most + 1)) / 2 + (q - most) * most);
    const length = Math.min(most, query + 1), start = head * before(nPos) + before(query);
    const weights = this.weights.slice(head * nPos + query, start, length);
    const keys = new Uint32Array(length);
    // Keys are stored as distances from the previous key.
    for (let i = 0, key = 0; i < length; i++) keys[i] = this.places ? (key += this.places[start + i]) : i;
    const others = query + 1 - length;
    let rest = others ? 1 : 0;
    if (others) for (let i = 0; i < length; i++) rest -= weights[i];
    return { keys, weights, others, rest: Math.max(0, rest) };
  }
}
