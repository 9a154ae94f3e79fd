// Numbers: the shortest text of an f32, probabilities from logits, and what a list of values has. Uses nothing else.

/** The shortest decimal that is this f32 again when it is read as one. */
export function exact(value) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "inf" : "-inf";
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === value) return String(short);
  }
  return String(Number(value.toPrecision(9)));
}

/** Probabilities of logits, in f64. */
export function softmax(logits) {
  let max = -Infinity;
  for (const x of logits) if (x > max) max = x;
  const p = new Float64Array(logits.length);
  let sum = 0;
  for (let i = 0; i < p.length; i++) sum += p[i] = Math.exp(logits[i] - max);
  for (let i = 0; i < p.length; i++) p[i] /= sum;
  return p;
}

/** KL(p || q) in nats. */
export function divergence(p, q) {
  let sum = 0;
  for (let i = 0; i < p.length; i++) if (p[i] > 0) sum += p[i] * Math.log(p[i] / q[i]);
  return sum;
}

/** The indices of the `n` largest, largest first; of equals the smaller index first. */
export function largest(values, n, key = (x) => x) {
  const best = [];
  for (let i = 0; i < values.length; i++) {
    const k = key(values[i]);
    const size = Number.isNaN(k) ? Infinity : k;
    if (best.length === n && !(size > best[n - 1].size)) continue;
    let at = best.length;
    while (at > 0 && best[at - 1].size < size) at--;
    best.splice(at, 0, { i, size });
    if (best.length > n) best.pop();
  }
  return best.map((b) => b.i);
}

/** The size that 99 % of the values do not exceed, by a histogram, the largest size, and how many lie beyond. */
export function clip(values) {
  let most = 0, count = 0, notNumbers = 0;
  for (const x of values) {
    const size = Math.abs(x);
    if (size === Infinity || Number.isNaN(size)) { notNumbers++; continue; }
    count++;
    if (size > most) most = size;
  }
  if (most === 0) return { at: 1, most: 0, beyond: 0, notNumbers };
  const bins = new Uint32Array(1024);
  for (const x of values) if (Number.isFinite(x)) bins[Math.min(1023, Math.floor((Math.abs(x) / most) * 1024))]++;
  let below = 0, bin = 0;
  while (bin < 1024 && (below += bins[bin]) < 0.99 * count) bin++;
  const at = Math.min(most, ((bin + 1) / 1024) * most);
  let beyond = 0;
  for (const x of values) if (Number.isFinite(x) && Math.abs(x) > at) beyond++;
  return { at, most, beyond, notNumbers };
}
