//! The oracle: every operation as a plain loop in f64, in the paper's order. It exists to be believed; never optimise it.
//! Sources: Radford et al. 2019 (GPT-2), Ba et al. 2016 (LayerNorm), Hendrycks & Gimpel 2016 (GELU).

use super::{Activation, Device, DeviceError, DeviceInfo, Edit, Heads, Limits, MASKED, StoredWeight, Window};
use std::ops::Range;

/// A matrix [rows, cols] of f64, row-major.
pub struct Tensor {
    rows: usize,
    cols: usize,
    data: Vec<f64>,
}

impl Tensor {
    fn from_fn(rows: usize, cols: usize, value: impl Fn(usize, usize) -> f64) -> Tensor {
        let mut data = Vec::with_capacity(rows * cols);
        for r in 0..rows {
            for c in 0..cols {
                data.push(value(r, c));
            }
        }
        Tensor { rows, cols, data }
    }

    fn at(&self, row: usize, col: usize) -> f64 {
        self.data[row * self.cols + col]
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.data[row * self.cols..][..self.cols]
    }
}

/// The device `reference`.
pub struct Reference;

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
        // erfc rather than 1 + erf: the same function, exact in the tail.
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

impl Device for Reference {
    type Tensor = Tensor;
    type Weight = Tensor;
    type Staged = Vec<f32>;

    fn info(&self) -> DeviceInfo {
        DeviceInfo { kind: "reference", name: "plain loops".into(), detail: "f64, one thread".into(), software: false }
    }

    fn limits(&self) -> Limits {
        Limits::NONE
    }

    fn load(&self, w: &StoredWeight) -> Result<Tensor, DeviceError> {
        Ok(Tensor { rows: w.rows, cols: w.cols, data: w.to_f64() })
    }

    fn shape(&self, x: &Tensor) -> [usize; 2] {
        [x.rows, x.cols]
    }

    fn empty(&self, rows: usize, cols: usize) -> Tensor {
        Tensor::from_fn(rows, cols, |_, _| 0.0)
    }

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
        let mut y = self.empty(x.rows, w.cols);
        // k outside n, since that is how w lies in memory: every sum still runs over k from first to last.
        for t in 0..x.rows {
            let sums = &mut y.data[t * w.cols..][..w.cols];
            for k in 0..w.rows {
                sums.iter_mut().zip(w.row(k)).for_each(|(sum, w)| *sum += x.at(t, k) * w);
            }
            sums.iter_mut().zip(bias.row(0)).for_each(|(sum, bias)| *sum += bias);
        }
        y
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

    fn attention(&self, qkv: &Tensor, texts: &[Range<usize>], heads: Heads) -> Tensor {
        let mut z = self.empty(qkv.rows, qkv.cols / 3);
        for text in texts {
            let pattern = self.attention_pattern(&self.attention_scores(qkv, text.clone(), heads));
            self.attention_mix(&pattern, qkv, text.clone(), heads, &mut z);
        }
        z
    }

    fn attention_scores(&self, qkv: &Tensor, text: Range<usize>, heads: Heads) -> Tensor {
        let (n_pos, n_embd) = (text.len(), qkv.cols / 3);
        let head_dim = n_embd / heads.n_head;
        Tensor::from_fn(heads.n_head * n_pos, n_pos, |row, key| {
            let (head, query) = (row / n_pos, row % n_pos);
            if key > query {
                return f64::from(MASKED);
            }
            let q = &qkv.row(text.start + query)[head * head_dim..][..head_dim];
            let k = &qkv.row(text.start + key)[n_embd + head * head_dim..][..head_dim];
            heads.scale * q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>()
        })
    }

    fn attention_pattern(&self, scores: &Tensor) -> Tensor {
        let mut pattern = Tensor::from_fn(scores.rows, scores.cols, |_, _| 0.0);
        for r in 0..scores.rows {
            let highest = scores.row(r).iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exps: Vec<f64> = scores.row(r).iter().map(|s| (s - highest).exp()).collect();
            let total: f64 = exps.iter().sum();
            for (c, e) in exps.iter().enumerate() {
                pattern.data[r * scores.cols + c] = e / total;
            }
        }
        pattern
    }

    fn attention_mix(&self, pattern: &Tensor, qkv: &Tensor, text: Range<usize>, heads: Heads, z: &mut Tensor) {
        let (n_pos, n_embd) = (text.len(), qkv.cols / 3);
        let head_dim = n_embd / heads.n_head;
        for query in 0..n_pos {
            for c in 0..n_embd {
                let row = (c / head_dim) * n_pos + query;
                let mixed = (0..n_pos).map(|key| pattern.at(row, key) * qkv.at(text.start + key, 2 * n_embd + c)).sum();
                z.data[(text.start + query) * n_embd + c] = mixed;
            }
        }
    }

    fn activation(&self, x: &Tensor, f: Activation) -> Tensor {
        Tensor::from_fn(x.rows, x.cols, |r, c| activate(x.at(r, c), f))
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        assert_eq!([a.rows, a.cols], [b.rows, b.cols]);
        Tensor::from_fn(a.rows, a.cols, |r, c| a.at(r, c) + b.at(r, c))
    }

    fn unembed(&self, x: &Tensor, rows: Range<usize>, table: &Tensor) -> Tensor {
        assert_eq!(x.cols, table.cols);
        Tensor::from_fn(rows.len(), table.rows, |r, v| {
            x.row(rows.start + r).iter().zip(table.row(v)).map(|(a, b)| a * b).sum()
        })
    }

    fn edit(&self, x: &mut Tensor, window: &Window, edit: &Edit) {
        window.assert_within([x.rows, x.cols]);
        let mut i = 0;
        for row in window.rows.iter().flat_map(|r| r.clone()) {
            for col in window.cols.clone() {
                let value = &mut x.data[row * x.cols + col];
                *value = match edit {
                    Edit::Zero => 0.0,
                    Edit::Scale(factor) => *value * f64::from(*factor),
                    Edit::Add(values) => *value + f64::from(values[i % values.len()]),
                    Edit::Replace(values) => f64::from(values[i % values.len()]),
                };
                i += 1;
            }
        }
    }

    fn copy_out(&self, x: &Tensor, window: &Window) -> Vec<f32> {
        window.assert_within([x.rows, x.cols]);
        let rows = window.rows.iter().flat_map(|r| r.clone());
        rows.flat_map(|row| window.cols.clone().map(move |col| x.at(row, col) as f32)).collect()
    }

    fn submit(&self) {}

    async fn settle(&self, _running: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn read(&self, staged: Vec<f32>) -> Result<Vec<f32>, DeviceError> {
        Ok(staged)
    }
}
