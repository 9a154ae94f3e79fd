//! The device `reference`: every operation as a plain loop in f64, in the order of operations of the paper. The other devices
//! are compared with it, so it is kept simple and never optimised. Owns what each operation means.
//! Sources: Radford et al. 2019 (GPT-2), Ba et al. 2016 (LayerNorm), Hendrycks & Gimpel 2016 (GELU).

use super::host_pool::HostPool;
use super::{
    Activation, Change, Device, DeviceError, DeviceInfo, DeviceKind, Heads, LOGITS_CHUNK, MASKED, Op, Operands,
    Queries, RowsOf, StoredWeight, TensorLimits, Window,
};
use std::sync::Arc;

/// A matrix [rows, cols] of f64, row-major.
#[derive(Clone, Debug)]
pub struct Tensor(Arc<Matrix>);

/// The numbers of a [`Tensor`].
#[derive(Clone, Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f64>,
}

impl std::ops::Deref for Tensor {
    type Target = Matrix;

    fn deref(&self) -> &Matrix {
        &self.0
    }
}

impl Tensor {
    fn new(rows: usize, cols: usize, data: Vec<f64>) -> Tensor {
        assert_eq!(data.len(), rows * cols);
        Tensor(Arc::new(Matrix { rows, cols, data }))
    }

    fn from_fn(rows: usize, cols: usize, value: impl Fn(usize, usize) -> f64) -> Tensor {
        let mut data = Vec::with_capacity(rows * cols);
        for r in 0..rows {
            for c in 0..cols {
                data.push(value(r, c));
            }
        }
        Tensor::new(rows, cols, data)
    }
}

#[cfg(test)]
impl Tensor {
    /// A matrix of these f64 values, for tests that need more digits than [`Device::upload`] takes.
    pub(super) fn of([rows, cols]: [usize; 2], data: Vec<f64>) -> Tensor {
        Tensor::new(rows, cols, data)
    }

    /// Its values.
    pub(super) fn values(&self) -> &[f64] {
        &self.data
    }
}

impl Matrix {
    fn at(&self, row: usize, col: usize) -> f64 {
        self.data[row * self.cols + col]
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.data[row * self.cols..][..self.cols]
    }
}

/// The device `reference`.
#[derive(Debug, Default)]
pub struct Reference {
    host_memory: Arc<HostPool>,
}

/// Keys and values of every text: for each position one row `[k | v]`, with D elements each.
#[derive(Debug)]
pub struct Cache {
    n_embd: usize,
    texts: Vec<Vec<f64>>,
    capacities: Vec<usize>,
}

/// The keys and values of one text: rows of a cache, or columns of the tensor that has the queries.
struct KeysAndValues<'a> {
    qkv: &'a Matrix,
    cache: Option<&'a Cache>,
    text: &'a Queries,
}

impl KeysAndValues<'_> {
    /// The row `[k | v]` of a position.
    fn row(&self, position: usize) -> &[f64] {
        let n_embd = self.qkv.cols / 3;
        match self.cache {
            Some(cache) => &cache.texts[self.text.text][position * 2 * n_embd..][..2 * n_embd],
            None => &self.qkv.row(self.text.rows.start + position)[n_embd..],
        }
    }
}

fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

fn variance(x: &[f64]) -> f64 {
    let m = mean(x);
    x.iter().map(|v| (v - m) * (v - m)).sum::<f64>() / x.len() as f64
}

fn activate(x: f64, f: Activation) -> f64 {
    let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
    match f {
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        // erfc(-x) is 1 + erf(x) without the cancellation at negative x.
        Activation::GeluErf => 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2),
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Activation::Silu => x * sigmoid(x),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
    }
}

/// The derivative of [`activate`].
fn slope(x: f64, f: Activation) -> f64 {
    let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
    // The derivative of x sigmoid(a x).
    let of_sigmoid = |a: f64| {
        let s = sigmoid(a * x);
        s + a * x * s * sigmoid(-a * x)
    };
    match f {
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let (inner, of_inner) = (root * (x + 0.044715 * x.powi(3)), root * (1.0 + 3.0 * 0.044715 * x * x));
            // 1 - tanh² is 1 / cosh², without cancellation. From 350 on it is below 1e-303, and cosh² would overflow.
            let rest = if inner.abs() > 350.0 { 0.0 } else { inner.cosh().powi(-2) * of_inner };
            sigmoid(2.0 * inner) + 0.5 * x * rest
        }
        Activation::GeluErf => {
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            0.5 * libm::erfc(-x / std::f64::consts::SQRT_2) + x * density
        }
        // 0 at 0, as in PyTorch.
        Activation::Relu => {
            if x <= 0.0 {
                0.0
            } else {
                1.0
            }
        }
        Activation::Silu => of_sigmoid(1.0),
        Activation::QuickGelu => of_sigmoid(1.702),
    }
}

impl Reference {
    fn embed(&self, table: &Tensor, ids: &[u32]) -> Tensor {
        Tensor::from_fn(ids.len(), table.cols, |t, c| table.at(ids[t] as usize, c))
    }

    fn layer_norm(&self, x: &Tensor, gain: &Tensor, bias: &Tensor, eps: f64) -> Tensor {
        let normalized = self.layer_norm_normalize(x, &self.layer_norm_scale(x, eps));
        self.gain_bias(&normalized, gain, bias)
    }

    fn layer_norm_scale(&self, x: &Tensor, eps: f64) -> Tensor {
        Tensor::from_fn(x.rows, 1, |t, _| (variance(x.row(t)) + eps).sqrt())
    }

    fn layer_norm_normalize(&self, x: &Tensor, scale: &Tensor) -> Tensor {
        assert_eq!([scale.rows, scale.cols], [x.rows, 1]);
        let means: Vec<f64> = (0..x.rows).map(|t| mean(x.row(t))).collect();
        Tensor::from_fn(x.rows, x.cols, |t, c| (x.at(t, c) - means[t]) / scale.at(t, 0))
    }

    fn gain_bias(&self, x: &Tensor, gain: &Tensor, bias: &Tensor) -> Tensor {
        assert!(gain.cols == x.cols && bias.cols == x.cols);
        Tensor::from_fn(x.rows, x.cols, |t, c| x.at(t, c) * gain.at(0, c) + bias.at(0, c))
    }

    fn linear(&self, x: &Tensor, w: &Tensor, bias: &Tensor) -> Tensor {
        assert!(x.cols == w.rows && bias.cols == w.cols);
        let mut y = vec![0.0; x.rows * w.cols];
        // The loop over k is outside the loop over columns, because w is stored row by row. Every sum still runs over k
        // from first to last.
        for t in 0..x.rows {
            let sums = &mut y[t * w.cols..][..w.cols];
            for k in 0..w.rows {
                sums.iter_mut().zip(w.row(k)).for_each(|(sum, w)| *sum += x.at(t, k) * w);
            }
            sums.iter_mut().zip(bias.row(0)).for_each(|(sum, bias)| *sum += bias);
        }
        Tensor::new(x.rows, w.cols, y)
    }

    fn argmax(&self, logits: &Tensor) -> Tensor {
        let chunks = logits.cols.div_ceil(LOGITS_CHUNK);
        let of_chunk = |t: usize, chunk: usize| {
            let first = chunk * LOGITS_CHUNK;
            let values = &logits.row(t)[first..logits.cols.min(first + LOGITS_CHUNK)];
            let counted = |x: f64| if x > f64::from(MASKED) { x } else { f64::from(MASKED) };
            let mut best = 0;
            for (i, x) in values.iter().enumerate() {
                if counted(*x) > counted(values[best]) {
                    best = i;
                }
            }
            let largest = counted(values[best]);
            [largest, (first + best) as f64, values.iter().map(|x| (x - largest).exp()).sum()]
        };
        Tensor::from_fn(logits.rows, 3 * chunks, |t, c| of_chunk(t, c / 3)[c % 3])
    }

    fn linear_by_head(&self, z: &Tensor, w: &Tensor, n_head: usize) -> Tensor {
        assert_eq!(z.cols, w.rows);
        let head_dim = z.cols / n_head;
        Tensor::from_fn(z.rows, n_head * w.cols, |t, c| {
            let (head, n) = (c / w.cols, c % w.cols);
            (head * head_dim..(head + 1) * head_dim).map(|k| z.at(t, k) * w.at(k, n)).sum()
        })
    }

    fn sum_heads(&self, parts: &Tensor, bias: &Tensor, n_head: usize) -> Tensor {
        assert_eq!(parts.cols, n_head * bias.cols);
        Tensor::from_fn(parts.rows, bias.cols, |t, n| {
            (0..n_head).map(|head| parts.at(t, head * bias.cols + n)).sum::<f64>() + bias.at(0, n)
        })
    }

    fn attention(&self, qkv: &Tensor, cache: Option<&Cache>, texts: &[Queries], heads: Heads) -> Tensor {
        let n_embd = qkv.cols / 3;
        let mut z = vec![0.0; qkv.rows * n_embd];
        for text in texts {
            let pattern = self.attention_pattern(&self.attention_scores(qkv, cache, text, heads));
            let of_text = self.attention_mix(&pattern, KeysAndValues { qkv, cache, text }, heads);
            z[text.rows.start * n_embd..][..of_text.data.len()].copy_from_slice(&of_text.data);
        }
        Tensor::new(qkv.rows, n_embd, z)
    }

    fn attention_scores(&self, qkv: &Tensor, cache: Option<&Cache>, text: &Queries, heads: Heads) -> Tensor {
        let (n_queries, head_dim) = (text.rows.len(), qkv.cols / 3 / heads.n_head);
        let keys = KeysAndValues { qkv, cache, text };
        Tensor::from_fn(heads.n_head * n_queries, text.n_keys, |row, key| {
            let (head, query) = (row / n_queries, row % n_queries);
            if key > text.first_position() + query {
                return f64::from(MASKED);
            }
            let q = &qkv.row(text.rows.start + query)[head * head_dim..][..head_dim];
            let k = &keys.row(key)[head * head_dim..][..head_dim];
            heads.scale * q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>()
        })
    }

    fn attention_pattern(&self, scores: &Tensor) -> Tensor {
        let mut pattern = Vec::with_capacity(scores.data.len());
        for r in 0..scores.rows {
            let highest = scores.row(r).iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<f64> = scores.row(r).iter().map(|s| (s - highest).exp()).collect();
            let total: f64 = exps.iter().sum();
            pattern.extend(exps.iter().map(|e| e / total));
        }
        Tensor::new(scores.rows, scores.cols, pattern)
    }

    fn attention_mix(&self, pattern: &Tensor, values: KeysAndValues<'_>, heads: Heads) -> Tensor {
        let (text, n_embd) = (values.text, values.qkv.cols / 3);
        let (n_queries, head_dim) = (text.rows.len(), n_embd / heads.n_head);
        assert_eq!([pattern.rows, pattern.cols], [heads.n_head * n_queries, text.n_keys]);
        Tensor::from_fn(n_queries, n_embd, |query, c| {
            let row = (c / head_dim) * n_queries + query;
            (0..text.n_keys).map(|key| pattern.at(row, key) * values.row(key)[n_embd + c]).sum()
        })
    }

    fn activation(&self, x: &Tensor, f: Activation) -> Tensor {
        Tensor::from_fn(x.rows, x.cols, |r, c| activate(x.at(r, c), f))
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        assert_eq!([a.rows, a.cols], [b.rows, b.cols]);
        Tensor::from_fn(a.rows, a.cols, |r, c| a.at(r, c) + b.at(r, c))
    }

    fn unembed(&self, x: &Tensor, table: &Tensor) -> Tensor {
        assert_eq!(x.cols, table.cols);
        Tensor::from_fn(x.rows, table.rows, |r, v| x.row(r).iter().zip(table.row(v)).map(|(a, b)| a * b).sum())
    }

    fn gather_rows(&self, x: &[&Tensor], parts: &[RowsOf]) -> Tensor {
        let cols = x[0].cols;
        let rows = || parts.iter().flat_map(|(of, rows)| rows.clone().map(|row| x[*of].row(row)));
        Tensor::new(rows().count(), cols, rows().flatten().copied().collect())
    }

    fn layer_norm_gradient(&self, x: &Tensor, dy: &Tensor, gain: &Tensor, eps: f64) -> Tensor {
        let scale = self.layer_norm_scale(x, eps);
        let normalized = self.layer_norm_normalize(x, &scale);
        let by_normalized = self.gain_bias_gradient(dy, gain);
        let by_scale = self.layer_norm_normalize_scale_gradient(&normalized, &scale, &by_normalized);
        let directly = self.layer_norm_normalize(&by_normalized, &scale);
        self.add(&directly, &self.layer_norm_scale_gradient(x, &scale, &by_scale))
    }

    fn layer_norm_scale_gradient(&self, x: &Tensor, scale: &Tensor, dscale: &Tensor) -> Tensor {
        assert_eq!([scale.rows, scale.cols, dscale.rows, dscale.cols], [x.rows, 1, x.rows, 1]);
        let means: Vec<f64> = (0..x.rows).map(|t| mean(x.row(t))).collect();
        Tensor::from_fn(x.rows, x.cols, |t, c| {
            (x.at(t, c) - means[t]) / (x.cols as f64 * scale.at(t, 0)) * dscale.at(t, 0)
        })
    }

    fn layer_norm_normalize_scale_gradient(&self, y: &Tensor, scale: &Tensor, dy: &Tensor) -> Tensor {
        assert_eq!([scale.rows, scale.cols, dy.rows, dy.cols], [y.rows, 1, y.rows, y.cols]);
        Tensor::from_fn(y.rows, 1, |t, _| {
            -y.row(t).iter().zip(dy.row(t)).map(|(y, dy)| y * dy).sum::<f64>() / scale.at(t, 0)
        })
    }

    fn gain_bias_gradient(&self, x: &Tensor, gain: &Tensor) -> Tensor {
        assert_eq!(gain.cols, x.cols);
        Tensor::from_fn(x.rows, x.cols, |t, c| x.at(t, c) * gain.at(0, c))
    }

    fn linear_by_head_gradient(&self, dy: &Tensor, w: &Tensor, n_head: usize) -> Tensor {
        assert_eq!(dy.cols, n_head * w.cols);
        let head_dim = w.rows / n_head;
        Tensor::from_fn(dy.rows, w.rows, |t, k| {
            let head = &dy.row(t)[k / head_dim * w.cols..][..w.cols];
            head.iter().zip(w.row(k)).map(|(dy, w)| dy * w).sum()
        })
    }

    fn sum_heads_gradient(&self, x: &Tensor, n_head: usize) -> Tensor {
        Tensor::from_fn(x.rows, n_head * x.cols, |t, c| x.at(t, c % x.cols))
    }

    fn activation_gradient(&self, x: &Tensor, dy: &Tensor, f: Activation) -> Tensor {
        assert_eq!([dy.rows, dy.cols], [x.rows, x.cols]);
        Tensor::from_fn(x.rows, x.cols, |r, c| slope(x.at(r, c), f) * dy.at(r, c))
    }

    fn attention_pattern_gradient(&self, pattern: &Tensor, dy: &Tensor) -> Tensor {
        assert_eq!([dy.rows, dy.cols], [pattern.rows, pattern.cols]);
        let mean = |r: usize| pattern.row(r).iter().zip(dy.row(r)).map(|(p, dp)| p * dp).sum::<f64>();
        let means: Vec<f64> = (0..pattern.rows).map(mean).collect();
        Tensor::from_fn(pattern.rows, pattern.cols, |r, c| pattern.at(r, c) * (dy.at(r, c) - means[r]))
    }

    fn attention_mix_gradient(&self, dz: &Tensor, qkv: &Tensor, text: &Queries, heads: Heads) -> Tensor {
        let (n_pos, n_embd) = (text.rows.len(), dz.cols);
        assert!(text.n_keys == n_pos && dz.rows == n_pos && qkv.cols == 3 * n_embd);
        let head_dim = n_embd / heads.n_head;
        Tensor::from_fn(heads.n_head * n_pos, n_pos, |row, key| {
            let (head, query) = (row / n_pos, row % n_pos);
            let cols = head * head_dim..(head + 1) * head_dim;
            let value = &qkv.row(text.rows.start + key)[2 * n_embd..][cols.clone()];
            if key > query { 0.0 } else { dz.row(query)[cols].iter().zip(value).map(|(a, b)| a * b).sum() }
        })
    }

    fn attention_mix_values_gradient(&self, pattern: &Tensor, dz: &Tensor, text: &Queries, heads: Heads) -> Tensor {
        let (n_pos, n_embd) = (text.rows.len(), dz.cols);
        assert_eq!([pattern.rows, pattern.cols, dz.rows], [heads.n_head * n_pos, n_pos, n_pos]);
        let head_dim = n_embd / heads.n_head;
        Tensor::from_fn(n_pos, 3 * n_embd, |key, c| match c.checked_sub(2 * n_embd) {
            Some(c) => {
                let head = c / head_dim;
                (0..n_pos).map(|query| pattern.at(head * n_pos + query, key) * dz.at(query, c)).sum()
            }
            None => 0.0,
        })
    }

    fn attention_scores_gradient(&self, dscores: &Tensor, qkv: &Tensor, text: &Queries, heads: Heads) -> Tensor {
        let (n_pos, n_embd) = (text.rows.len(), qkv.cols / 3);
        assert_eq!([dscores.rows, dscores.cols], [heads.n_head * n_pos, n_pos]);
        let head_dim = n_embd / heads.n_head;
        Tensor::from_fn(n_pos, 3 * n_embd, |row, c| {
            let (which, c) = (c / n_embd, c % n_embd);
            let first = c / head_dim * n_pos;
            let other = |position: usize, which: usize| qkv.at(text.rows.start + position, which * n_embd + c);
            match which {
                0 => heads.scale * (0..n_pos).map(|key| dscores.at(first + row, key) * other(key, 1)).sum::<f64>(),
                1 => {
                    heads.scale * (0..n_pos).map(|query| dscores.at(first + query, row) * other(query, 0)).sum::<f64>()
                }
                _ => 0.0,
            }
        })
    }

    fn edit(&self, x: &Tensor, window: &Window, change: &Change) -> Tensor {
        window.assert_within([x.rows, x.cols]);
        let mut data = x.data.clone();
        let mut i = 0;
        for row in window.each_row() {
            for col in window.each_col() {
                let value = &mut data[row * x.cols + col];
                *value = match change {
                    Change::Zero => 0.0,
                    Change::Scale(_) if *value == f64::from(MASKED) => *value,
                    Change::Scale(factor) => *value * f64::from(*factor),
                    Change::Add(values) => *value + f64::from(values[i % values.len()]),
                    Change::Replace(values) => f64::from(values[i % values.len()]),
                };
                i += 1;
            }
        }
        Tensor::new(x.rows, x.cols, data)
    }
}

impl Device for Reference {
    type Tensor = Tensor;
    type Weight = Tensor;
    type Cache = Cache;
    type Staged = Vec<f32>;

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            kind: DeviceKind::Reference,
            name: "plain loops".into(),
            detail: "f64, one thread".into(),
            software: false,
        }
    }

    fn tensor_limits(&self) -> TensorLimits {
        TensorLimits::NONE
    }

    fn host_memory(&self) -> &Arc<HostPool> {
        &self.host_memory
    }

    fn load(&self, w: &StoredWeight) -> Result<Tensor, DeviceError> {
        Ok(Tensor::new(w.rows, w.cols, w.to_f64()))
    }

    fn upload(&self, [rows, cols]: [usize; 2], values: Vec<f32>) -> Tensor {
        Tensor::new(rows, cols, values.into_iter().map(f64::from).collect())
    }

    fn shape(&self, x: &Tensor) -> [usize; 2] {
        [x.rows, x.cols]
    }

    fn run(&self, op: &Op, Operands { tensors: x, weights: w, cache }: Operands<'_, Reference>) -> Tensor {
        match op {
            Op::Embed { ids } => self.embed(w[0], ids),
            Op::LayerNorm { eps } => self.layer_norm(x[0], w[0], w[1], *eps),
            Op::LayerNormScale { eps } => self.layer_norm_scale(x[0], *eps),
            Op::LayerNormNormalize {} => self.layer_norm_normalize(x[0], x[1]),
            Op::GainBias {} => self.gain_bias(x[0], w[0], w[1]),
            Op::Linear {} => self.linear(x[0], w[0], w[1]),
            Op::LinearActivation { f } => self.activation(&self.linear(x[0], w[0], w[1]), *f),
            Op::LinearAdd {} => self.add(x[0], &self.linear(x[1], w[0], w[1])),
            Op::LinearOfNorm { eps, f } => {
                let y = self.linear(&self.layer_norm(x[0], w[0], w[1], *eps), w[2], w[3]);
                f.map_or_else(|| y.clone(), |f| self.activation(&y, f))
            }
            Op::LinearByHead { n_head } => self.linear_by_head(x[0], w[0], *n_head),
            Op::SumHeads { n_head } => self.sum_heads(x[0], w[0], *n_head),
            Op::Attention { texts, heads } => self.attention(x[0], cache, texts, *heads),
            Op::AttentionScores { text, heads } => self.attention_scores(x[0], cache, text, *heads),
            Op::AttentionPattern {} => self.attention_pattern(x[0]),
            Op::AttentionMix { text, heads } => {
                self.attention_mix(x[0], KeysAndValues { qkv: x[1], cache, text }, *heads)
            }
            Op::Activation { f } => self.activation(x[0], *f),
            Op::Add {} => self.add(x[0], x[1]),
            Op::Unembed {} => self.unembed(x[0], w[0]),
            Op::Argmax {} => self.argmax(x[0]),
            Op::GatherRows { parts } => self.gather_rows(x, parts),
            Op::Edit { window, change } => self.edit(x[0], window, change),
            Op::LayerNormGradient { eps } => self.layer_norm_gradient(x[0], x[1], w[0], *eps),
            Op::LayerNormScaleGradient {} => self.layer_norm_scale_gradient(x[0], x[1], x[2]),
            Op::LayerNormNormalizeScaleGradient {} => self.layer_norm_normalize_scale_gradient(x[0], x[1], x[2]),
            Op::GainBiasGradient {} => self.gain_bias_gradient(x[0], w[0]),
            Op::LinearByHeadGradient { n_head } => self.linear_by_head_gradient(x[0], w[0], *n_head),
            Op::SumHeadsGradient { n_head } => self.sum_heads_gradient(x[0], *n_head),
            Op::ActivationGradient { f } => self.activation_gradient(x[0], x[1], *f),
            Op::AttentionPatternGradient {} => self.attention_pattern_gradient(x[0], x[1]),
            Op::AttentionMixGradient { text, heads } => self.attention_mix_gradient(x[0], x[1], text, *heads),
            Op::AttentionMixValuesGradient { text, heads } => {
                self.attention_mix_values_gradient(x[0], x[1], text, *heads)
            }
            Op::AttentionScoresGradient { text, heads } => self.attention_scores_gradient(x[0], x[1], text, *heads),
        }
    }

    fn new_cache(&self, capacities: &[usize], n_embd: usize, _heads: Heads) -> Cache {
        Cache { n_embd, texts: vec![Vec::new(); capacities.len()], capacities: capacities.to_vec() }
    }

    fn append(&self, cache: &mut Cache, qkv: &Tensor, texts: &[Queries]) {
        for text in texts {
            assert!(text.n_keys <= cache.capacities[text.text], "a cache has room for every position");
            let rows = &mut cache.texts[text.text];
            rows.truncate(text.first_position() * 2 * cache.n_embd);
            text.rows.clone().for_each(|row| rows.extend_from_slice(&qkv.row(row)[cache.n_embd..]));
            assert_eq!(rows.len(), text.n_keys * 2 * cache.n_embd, "positions are appended in order");
        }
    }

    fn copy_out(&self, x: &Tensor, window: &Window) -> Vec<f32> {
        window.assert_within([x.rows, x.cols]);
        window.each_row().flat_map(|row| window.each_col().map(move |col| x.at(row, col) as f32)).collect()
    }

    fn submit(&self) {}

    async fn settle(&self, _running: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn read(&self, staged: Vec<f32>) -> Result<Vec<f32>, DeviceError> {
        Ok(staged)
    }
}
