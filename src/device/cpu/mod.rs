//! The device `cpu`: f32 on all cores, with the widest vectors that the processor has. Owns the choice of the loop for each
//! operation, and the forms of a weight. A weight is read where the checkpoint is mapped into memory, until it is used often
//! enough to pay for packing it.
//! Read next: `microkernel.rs`, the innermost loop; `products.rs` around it; `attention.rs`; `row_wise.rs` with its `simd_loops.rs`.

mod attention;
mod buffers;
mod cache_size;
mod microkernel;
#[cfg(not(target_arch = "wasm32"))]
mod probe;
mod products;
mod row_wise;
mod simd_loops;
mod widen;

pub use attention::Cache;
use buffers::RowsView;
pub use buffers::{Memory, Tensor};

use super::host_pool::HostPool;
use super::{
    Activation, Change, Device, DeviceError, DeviceInfo, DeviceKind, Epilogue, Heads, LOGITS_CHUNK, MASKED, Op,
    Operands, Queries, RowsOf, StoredWeight, TensorLimits, Window,
};
use crate::device::workers::Workers;
use attention::Qkv;
use products::{BiasAndEpilogue, Panels};
use pulp::Arch;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// A weight [rows, cols]: as the checkpoint stores it, and in the forms that operations have needed so far.
#[derive(Clone, Debug)]
pub struct Weight(Arc<Forms>);

/// The forms of a [`Weight`]. A product and its gradient read different ones.
#[derive(Debug)]
pub struct Forms {
    stored: StoredWeight,
    vector: OnceLock<Vec<f32>>,
    panels: OnceLock<Panels>,
    transposed: OnceLock<Panels>,
    /// True after the first product that read it in place.
    used: AtomicBool,
}

impl std::ops::Deref for Weight {
    type Target = Forms;

    fn deref(&self) -> &Forms {
        &self.0
    }
}

impl Forms {
    /// The elements of a gain or a bias.
    fn vector(&self) -> &[f32] {
        self.vector.get_or_init(|| self.stored.to_f32())
    }

    /// Packed as [rows, cols].
    fn panels(&self, workers: &Workers) -> &Panels {
        self.panels.get_or_init(|| self.packed(|stored| Panels::new(workers, stored)))
    }

    /// Packed as its transpose [cols, rows].
    fn transposed(&self, workers: &Workers) -> &Panels {
        self.transposed.get_or_init(|| self.packed(|stored| Panels::transposed(workers, stored)))
    }

    fn packed(&self, pack: impl FnOnce(&StoredWeight) -> Panels) -> Panels {
        let panels = pack(&self.stored);
        self.stored.blob.release();
        panels
    }
}

/// Values that were tapped.
#[derive(Debug)]
pub enum Staged {
    /// All values of a tensor: its memory, which is shared and not copied.
    All(Arc<Memory>),
    /// A copy of some values.
    Part(Vec<f32>),
}

/// The device `cpu`.
#[derive(Debug)]
pub struct Cpu {
    workers: Workers,
}

impl Cpu {
    /// A device with the widest vectors that this processor has, on as many threads as the process may run at a time.
    pub fn new() -> Cpu {
        Cpu::with(Arch::new())
    }

    /// One device for every kind of vectors that this processor has, the widest first, so that all of them can be tested.
    pub fn all() -> Vec<Cpu> {
        let best = Cpu::new();
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        return vec![best];
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        Cpu::with_narrower(best)
    }

    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn with_narrower(best: Cpu) -> Vec<Cpu> {
        let mut all = vec![best];
        #[cfg(target_arch = "x86_64")]
        if matches!(all[0].workers.arch, Arch::V4(_)) {
            all.extend(pulp::x86::V3::try_new().map(|v3| Cpu::with(Arch::V3(v3))));
        }
        if !matches!(all[0].workers.arch, Arch::Scalar) {
            all.push(Cpu::with(Arch::Scalar));
        }
        all
    }

    fn with(arch: Arch) -> Cpu {
        Cpu { workers: Workers::new(arch) }
    }

    fn tensor(&self, rows: usize, cols: usize, fill: impl FnOnce(&mut [f32])) -> Tensor {
        Tensor::filled(&self.workers.memory, rows, cols, fill)
    }

    /// A tensor of `cols` columns. `op` computes each of its rows from the same row of x.
    fn map_rows(&self, x: &Tensor, cols: usize, op: impl row_wise::RowOp) -> Tensor {
        self.tensor(x.rows, cols, |y| row_wise::map_rows(&self.workers, x, x.cols, y, cols, op))
    }

    fn embed(&self, table: &Weight, ids: &[u32]) -> Tensor {
        let cols = table.stored.cols;
        self.tensor(ids.len(), cols, |y| {
            for (row, &id) in y.chunks_exact_mut(cols).zip(ids) {
                table.stored.widen(id as usize * cols, row);
            }
        })
    }

    fn layer_norm(&self, x: &Tensor, gain: &Weight, bias: &Weight, eps: f64) -> Tensor {
        let (gain, bias) = (gain.vector(), bias.vector());
        assert!(gain.len() == x.cols && bias.len() == x.cols);
        self.map_rows(x, x.cols, row_wise::LayerNorm { gain, bias, eps })
    }

    fn layer_norm_normalize(&self, x: &Tensor, scale: &Tensor) -> Tensor {
        assert_eq!([scale.rows, scale.cols], [x.rows, 1]);
        self.map_rows(x, x.cols, row_wise::LayerNormNormalize { scales: scale })
    }

    fn gain_bias(&self, x: &Tensor, gain: &Weight, bias: &Weight) -> Tensor {
        let (gain, bias) = (gain.vector(), bias.vector());
        assert!(gain.len() == x.cols && bias.len() == x.cols);
        self.map_rows(x, x.cols, row_wise::GainBias { gain, bias })
    }

    fn linear(&self, x: &Tensor, w: &Weight, bias: &Weight, epilogue: Epilogue<'_, Tensor>) -> Tensor {
        let [k, n] = [w.stored.rows, w.stored.cols];
        assert!(x.cols == k && bias.stored.cols == n);
        if let Epilogue::Add(a) = epilogue {
            assert_eq!([a.rows, a.cols], [x.rows, n]);
        }
        let after = BiasAndEpilogue { bias: bias.vector(), epilogue };
        // Packing all weights writes as much new memory as the model has. That does not pay for a single short run, so the
        // first product of few rows reads the weight in place.
        let few = x.rows <= products::MOST_FROM_CHECKPOINT;
        self.tensor(x.rows, n, |y| match w.stored.as_mapped_f32() {
            Some(values) if few && w.panels.get().is_none() && !w.used.swap(true, Ordering::Relaxed) => {
                products::product_from_checkpoint(&self.workers, RowsView::of(x), values, n, after, y);
            }
            _ => {
                let panels = w.panels(&self.workers);
                products::product(&self.workers, RowsView::of(x), panels, &[0..k], Some(after), y);
            }
        })
    }

    fn linear_by_head(&self, z: &Tensor, w: &Weight, n_head: usize) -> Tensor {
        assert_eq!(z.cols, w.stored.rows);
        let head_dim = z.cols / n_head;
        let heads: Vec<_> = (0..n_head).map(|head| head * head_dim..(head + 1) * head_dim).collect();
        let panels = w.panels(&self.workers);
        self.tensor(z.rows, n_head * w.stored.cols, |y| {
            products::product(&self.workers, RowsView::of(z), panels, &heads, None, y);
        })
    }

    fn sum_heads(&self, parts: &Tensor, bias: &Weight, n_head: usize) -> Tensor {
        let bias = bias.vector();
        assert_eq!(parts.cols, n_head * bias.len());
        self.map_rows(parts, bias.len(), row_wise::SumParts { bias })
    }

    fn attention(&self, qkv: &Tensor, cache: Option<&Cache>, texts: &[Queries], heads: Heads) -> Tensor {
        self.tensor(qkv.rows, qkv.cols / 3, |z| {
            attention::attention(&self.workers, Qkv::new(qkv, cache), texts, heads, z);
        })
    }

    fn attention_scores(&self, qkv: &Tensor, cache: Option<&Cache>, text: &Queries, heads: Heads) -> Tensor {
        self.tensor(heads.n_head * text.rows.len(), text.n_keys, |scores| {
            attention::scores(&self.workers, Qkv::new(qkv, cache), text, heads, scores);
        })
    }

    fn attention_mix(
        &self,
        pattern: &Tensor,
        qkv: &Tensor,
        cache: Option<&Cache>,
        text: &Queries,
        heads: Heads,
    ) -> Tensor {
        assert_eq!([pattern.rows, pattern.cols], [heads.n_head * text.rows.len(), text.n_keys]);
        self.tensor(text.rows.len(), qkv.cols / 3, |z| {
            attention::mix(&self.workers, pattern, Qkv::new(qkv, cache), text, heads, z);
        })
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        assert_eq!([a.rows, a.cols], [b.rows, b.cols]);
        self.tensor(a.rows, a.cols, |y| row_wise::sum_of(&self.workers, a, b, y))
    }

    fn unembed(&self, x: &Tensor, table: &Weight) -> Tensor {
        assert_eq!(x.cols, table.stored.cols);
        self.tensor(x.rows, table.stored.rows, |y| {
            if x.rows <= products::tile_shape(self.workers.arch).0 {
                products::dots(&self.workers, RowsView::of(x), &table.stored, 1, y);
            } else {
                let panels = table.transposed(&self.workers);
                products::product(&self.workers, RowsView::of(x), panels, &[0..x.cols], None, y);
            }
        })
    }

    fn argmax(&self, logits: &Tensor) -> Tensor {
        let chunks = logits.cols.div_ceil(LOGITS_CHUNK);
        self.tensor(logits.rows, 3 * chunks, |y| row_wise::argmax(&self.workers, logits, logits.cols, y))
    }

    fn gather_rows(&self, x: &[&Tensor], parts: &[RowsOf]) -> Tensor {
        let cols = x[0].cols;
        assert!(x.iter().all(|x| x.cols == cols), "rows of one length");
        let n_rows = parts.iter().map(|(_, rows)| rows.len()).sum();
        self.tensor(n_rows, cols, |mut y| {
            for (of, rows) in parts {
                let (part, later) = y.split_at_mut(rows.len() * cols);
                part.copy_from_slice(&x[*of][rows.start * cols..rows.end * cols]);
                y = later;
            }
        })
    }

    fn edit(&self, x: &Tensor, window: &Window, change: &Change) -> Tensor {
        window.assert_within([x.rows, x.cols]);
        self.tensor(x.rows, x.cols, |y| {
            y.copy_from_slice(x);
            let mut i = 0;
            for row in window.each_row() {
                for cols in &window.cols {
                    let slots = &mut y[row * x.cols..][cols.clone()];
                    // If the change has one row for all rows of the window, `i` wraps to its first value.
                    let here = |values: &'_ [f32]| i % values.len()..i % values.len() + cols.len();
                    match change {
                        Change::Zero => slots.fill(0.0),
                        Change::Scale(factor) => slots.iter_mut().filter(|v| **v != MASKED).for_each(|v| *v *= factor),
                        Change::Add(values) => {
                            slots.iter_mut().zip(&values[here(values)]).for_each(|(v, add)| *v += add);
                        }
                        Change::Replace(values) => slots.copy_from_slice(&values[here(values)]),
                    }
                    i += cols.len();
                }
            }
        })
    }
}

/// The operations of gradients.
impl Cpu {
    fn layer_norm_gradient(&self, x: &Tensor, dy: &Tensor, gain: &Weight, eps: f64) -> Tensor {
        let gain = gain.vector();
        assert_eq!([gain.len(), dy.rows, dy.cols], [x.cols, x.rows, x.cols]);
        self.map_rows(x, x.cols, row_wise::LayerNormGradient { dy, gain, eps })
    }

    fn layer_norm_scale_gradient(&self, x: &Tensor, scale: &Tensor, dscale: &Tensor) -> Tensor {
        assert_eq!([scale.rows, scale.cols, dscale.rows, dscale.cols], [x.rows, 1, x.rows, 1]);
        self.map_rows(x, x.cols, row_wise::LayerNormScaleGradient { scales: scale, dscales: dscale })
    }

    fn layer_norm_normalize_scale_gradient(&self, y: &Tensor, scale: &Tensor, dy: &Tensor) -> Tensor {
        assert_eq!([scale.rows, scale.cols, dy.rows, dy.cols], [y.rows, 1, y.rows, y.cols]);
        self.map_rows(y, 1, row_wise::LayerNormNormalizeScaleGradient { dy, scales: scale })
    }

    fn gain_bias_gradient(&self, x: &Tensor, gain: &Weight) -> Tensor {
        let gain = gain.vector();
        assert_eq!(gain.len(), x.cols);
        self.map_rows(x, x.cols, row_wise::GainBiasGradient { gain })
    }

    fn linear_by_head_gradient(&self, dy: &Tensor, w: &Weight, n_head: usize) -> Tensor {
        let [n_rows, cols] = [w.stored.rows, w.stored.cols];
        assert_eq!(dy.cols, n_head * cols);
        self.tensor(dy.rows, n_rows, |y| {
            let x = RowsView::of(dy);
            products::dots(&self.workers, x, &w.stored, n_head, y);
        })
    }

    fn activation_gradient(&self, x: &Tensor, dy: &Tensor, f: Activation) -> Tensor {
        assert_eq!([dy.rows, dy.cols], [x.rows, x.cols]);
        self.map_rows(x, x.cols, row_wise::ActivationGradient { f, dy })
    }

    fn attention_pattern_gradient(&self, pattern: &Tensor, dy: &Tensor) -> Tensor {
        assert_eq!([dy.rows, dy.cols], [pattern.rows, pattern.cols]);
        self.map_rows(pattern, pattern.cols, row_wise::SoftmaxGradient { dy })
    }

    fn attention_mix_gradient(&self, dz: &Tensor, qkv: &Tensor, text: &Queries, heads: Heads) -> Tensor {
        let n_pos = text.rows.len();
        assert!(text.n_keys == n_pos && dz.rows == n_pos && qkv.cols == 3 * dz.cols);
        self.tensor(heads.n_head * n_pos, n_pos, |dpattern| {
            attention::mix_gradient(&self.workers, dz, qkv, text, heads, dpattern);
        })
    }

    fn attention_mix_values_gradient(&self, pattern: &Tensor, dz: &Tensor, text: &Queries, heads: Heads) -> Tensor {
        let n_pos = text.rows.len();
        assert_eq!([pattern.rows, pattern.cols, dz.rows], [heads.n_head * n_pos, n_pos, n_pos]);
        self.tensor(n_pos, 3 * dz.cols, |y| {
            attention::values_gradient(&self.workers, pattern, dz, text, heads, y);
        })
    }

    fn attention_scores_gradient(&self, dscores: &Tensor, qkv: &Tensor, text: &Queries, heads: Heads) -> Tensor {
        let n_pos = text.rows.len();
        assert_eq!([dscores.rows, dscores.cols, text.n_keys], [heads.n_head * n_pos, n_pos, n_pos]);
        self.tensor(n_pos, qkv.cols, |y| {
            attention::scores_gradient(&self.workers, dscores, qkv, text, heads, y);
        })
    }
}

impl Default for Cpu {
    fn default() -> Cpu {
        Cpu::new()
    }
}

impl Device for Cpu {
    type Tensor = Tensor;
    type Weight = Weight;
    type Cache = Cache;
    type Staged = Staged;

    fn info(&self) -> DeviceInfo {
        let vectors = match self.workers.arch {
            #[cfg(target_arch = "x86_64")]
            Arch::V4(_) => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Arch::V3(_) => "AVX2",
            #[cfg(target_arch = "aarch64")]
            Arch::Neon(_) => "NEON",
            #[cfg(target_arch = "wasm32")]
            Arch::Simd128(_) => "SIMD128",
            _ => "no vectors",
        };
        DeviceInfo {
            kind: DeviceKind::Cpu,
            name: match self.workers.threads {
                1 => format!("{}, 1 thread", std::env::consts::ARCH),
                n => format!("{}, {n} threads", std::env::consts::ARCH),
            },
            detail: format!("f32, {vectors}"),
            software: false,
        }
    }

    fn tensor_limits(&self) -> TensorLimits {
        TensorLimits::NONE
    }

    fn logit_rows_per_pass(&self) -> usize {
        products::tile_shape(self.workers.arch).0
    }

    fn host_memory(&self) -> &Arc<HostPool> {
        &self.workers.memory
    }

    fn load(&self, w: &StoredWeight) -> Result<Weight, DeviceError> {
        let (vector, panels, transposed, used) = Default::default();
        Ok(Weight(Arc::new(Forms { stored: w.clone(), vector, panels, transposed, used })))
    }

    fn upload(&self, [rows, cols]: [usize; 2], values: Vec<f32>) -> Tensor {
        Tensor::of(&self.workers.memory, rows, cols, values)
    }

    fn shape(&self, x: &Tensor) -> [usize; 2] {
        [x.rows, x.cols]
    }

    fn run(&self, op: &Op, Operands { tensors: x, weights: w, cache }: Operands<'_, Cpu>) -> Tensor {
        match op {
            Op::Embed { ids } => self.embed(w[0], ids),
            Op::LayerNorm { eps } => self.layer_norm(x[0], w[0], w[1], *eps),
            Op::LayerNormScale { eps } => self.map_rows(x[0], 1, row_wise::LayerNormScale { eps: *eps }),
            Op::LayerNormNormalize {} => self.layer_norm_normalize(x[0], x[1]),
            Op::GainBias {} => self.gain_bias(x[0], w[0], w[1]),
            Op::Linear {} => self.linear(x[0], w[0], w[1], Epilogue::None),
            Op::LinearActivation { f } => self.linear(x[0], w[0], w[1], Epilogue::Activation(*f)),
            Op::LinearAdd {} => self.linear(x[1], w[0], w[1], Epilogue::Add(x[0])),
            Op::LinearOfNorm { eps, f } => {
                let normed = self.layer_norm(x[0], w[0], w[1], *eps);
                self.linear(&normed, w[2], w[3], f.map_or(Epilogue::None, Epilogue::Activation))
            }
            Op::LinearByHead { n_head } => self.linear_by_head(x[0], w[0], *n_head),
            Op::SumHeads { n_head } => self.sum_heads(x[0], w[0], *n_head),
            Op::Attention { texts, heads } => self.attention(x[0], cache, texts, *heads),
            Op::AttentionScores { text, heads } => self.attention_scores(x[0], cache, text, *heads),
            Op::AttentionPattern {} => self.map_rows(x[0], x[0].cols, row_wise::SoftmaxOf),
            Op::AttentionMix { text, heads } => self.attention_mix(x[0], x[1], cache, text, *heads),
            Op::Activation { f } => self.map_rows(x[0], x[0].cols, *f),
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
            Op::SumHeadsGradient { n_head } => self.map_rows(x[0], n_head * x[0].cols, row_wise::Repeat),
            Op::ActivationGradient { f } => self.activation_gradient(x[0], x[1], *f),
            Op::AttentionPatternGradient {} => self.attention_pattern_gradient(x[0], x[1]),
            Op::AttentionMixGradient { text, heads } => self.attention_mix_gradient(x[0], x[1], text, *heads),
            Op::AttentionMixValuesGradient { text, heads } => {
                self.attention_mix_values_gradient(x[0], x[1], text, *heads)
            }
            Op::AttentionScoresGradient { text, heads } => self.attention_scores_gradient(x[0], x[1], text, *heads),
        }
    }

    fn new_cache(&self, capacities: &[usize], n_embd: usize, heads: Heads) -> Cache {
        Cache::new(self.workers.arch, capacities, n_embd, heads.n_head)
    }

    fn append(&self, cache: &mut Cache, qkv: &Tensor, texts: &[Queries]) {
        cache.append(&self.workers, qkv, texts);
    }

    fn copy_out(&self, x: &Tensor, window: &Window) -> Staged {
        window.assert_within([x.rows, x.cols]);
        if window.is_all([x.rows, x.cols]) {
            Staged::All(x.share())
        } else {
            Staged::Part(row_wise::copy_window(&self.workers, x, x.cols, window))
        }
    }

    fn submit(&self) {}

    async fn settle(&self, _running: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn read(&self, staged: Staged) -> Result<Vec<f32>, DeviceError> {
        Ok(match staged {
            Staged::All(memory) => {
                Memory::take(memory).unwrap_or_else(|shared| row_wise::copy(&self.workers, shared.values()))
            }
            Staged::Part(values) => values,
        })
    }
}
