//! The device for machines without a GPU: f32, all workers, the widest vectors that the processor has. Owns which loop runs
//! where. Weights stay where the checkpoint is mapped until they are worth packing.
//! Read next: `tile.rs`, the innermost loop; `product.rs` around it; `attention.rs`; `ops.rs`, everything row by row.

mod attention;
mod buffers;
mod microkernel;
#[cfg(not(target_arch = "wasm32"))]
mod probe;
mod products;
mod row_wise;
mod workers;

pub use buffers::{Memory, Tensor};

use super::{Activation, Device, DeviceError, DeviceInfo, Dtype, Edit, Heads, Limits, StoredWeight, Window};
use products::{Finish, Panels, RowsView, Then};
use pulp::Arch;
use std::cell::{Cell, OnceCell};
use std::ops::Range;
use std::rc::Rc;
use workers::Workers;

/// A weight [rows, cols]: where the checkpoint has it, and in the forms that operations asked for so far.
pub struct Weight {
    weight: StoredWeight,
    vector: OnceCell<Vec<f32>>,
    panels: OnceCell<Panels>,
    used: Cell<bool>,
}

impl Weight {
    /// A gain or a bias.
    fn vector(&self) -> &[f32] {
        self.vector.get_or_init(|| self.weight.to_f32())
    }

    /// Packed as [rows, cols], or as its transpose; no weight is used both ways.
    fn panels(&self, pack: impl FnOnce(&StoredWeight) -> Panels) -> &Panels {
        self.panels.get_or_init(|| {
            let panels = pack(&self.weight);
            self.weight.blob.release();
            panels
        })
    }

    /// The numbers as they lie in the checkpoint, where they can be used so.
    fn in_place(&self) -> Option<&[f32]> {
        match self.weight.dtype {
            Dtype::F32 if cfg!(target_endian = "little") => bytemuck::try_cast_slice(self.weight.blob.bytes()).ok(),
            _ => None,
        }
    }
}

/// Values that were tapped.
pub enum Staged {
    /// A whole tensor's.
    All(Rc<Memory>),
    /// A copy of some.
    Part(Vec<f32>),
}

/// The device `cpu`.
pub struct Cpu {
    workers: Workers,
}

impl Cpu {
    /// With the widest vectors that this processor has, on as many threads as the process may.
    pub fn new() -> Cpu {
        Cpu::with(Arch::new())
    }

    /// One for every kind of vectors that this processor has, the widest first, so that all of them can be tested.
    pub fn all() -> Vec<Cpu> {
        let mut all = vec![Cpu::new()];
        #[cfg(target_arch = "x86_64")]
        if matches!(all[0].workers.arch, Arch::V4(_)) {
            all.extend(pulp::x86::V3::try_new().map(|v3| Cpu::with(Arch::V3(v3))));
        }
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if !matches!(all[0].workers.arch, Arch::Scalar) {
            all.push(Cpu::with(Arch::Scalar));
        }
        all
    }

    fn with(arch: Arch) -> Cpu {
        Cpu { workers: Workers::new(arch) }
    }

    /// A tensor of `cols` columns whose every row `op` makes from x's.
    fn map_rows(&self, x: &Tensor, cols: usize, op: impl row_wise::RowOp) -> Tensor {
        let mut y = Tensor::new(x.rows, cols);
        row_wise::map_rows(&self.workers, x, x.cols, &mut y, cols, op);
        y
    }

    fn multiply(&self, x: &Tensor, w: &Weight, bias: &Weight, then: Then<'_>) -> Tensor {
        let [k, n] = [w.weight.rows, w.weight.cols];
        assert!(x.cols == k && bias.weight.cols == n);
        let mut y = Tensor::new(x.rows, n);
        let finish = Finish { bias: Some(bias.vector()), then };
        // Packing takes as much fresh memory as the model has weights: too dear for what may be the only run, unless it is long.
        let few = x.rows <= products::MOST_IN_PLACE;
        match w.in_place() {
            Some(values) if few && w.panels.get().is_none() && !w.used.replace(true) => {
                products::product_in_place(&self.workers, RowsView::of(x), values, n, finish, &mut y);
            }
            _ => {
                let panels = w.panels(|w| Panels::new(&self.workers, w));
                products::product(&self.workers, RowsView::of(x), panels, &[0..k], finish, &mut y);
            }
        }
        y
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
    type Staged = Staged;

    fn info(&self) -> DeviceInfo {
        let vectors = match self.workers.arch {
            #[cfg(target_arch = "x86_64")]
            Arch::V4(_) => "AVX-512",
            #[cfg(target_arch = "x86_64")]
            Arch::V3(_) => "AVX2",
            #[cfg(target_arch = "aarch64")]
            Arch::Neon(_) => "NEON",
            _ => "no vectors",
        };
        DeviceInfo {
            kind: "cpu",
            name: format!("{}, {} threads", std::env::consts::ARCH, self.workers.threads),
            detail: format!("f32, {vectors}"),
            software: false,
        }
    }

    fn limits(&self) -> Limits {
        Limits::NONE
    }

    fn load(&self, w: &StoredWeight) -> Result<Weight, DeviceError> {
        let (vector, panels, used) = Default::default();
        Ok(Weight { weight: w.clone(), vector, panels, used })
    }

    fn shape(&self, x: &Tensor) -> [usize; 2] {
        [x.rows, x.cols]
    }

    fn empty(&self, rows: usize, cols: usize) -> Tensor {
        Tensor::new(rows, cols)
    }

    fn embed(&self, table: &Weight, ids: &[u32]) -> Tensor {
        let cols = table.weight.cols;
        let mut y = Tensor::new(ids.len(), cols);
        for (row, &id) in y.chunks_exact_mut(cols).zip(ids) {
            table.weight.widen(id as usize * cols, row);
        }
        y
    }

    fn layer_norm(&self, x: &Tensor, gain: &Weight, bias: &Weight, eps: f64) -> Tensor {
        let (gain, bias) = (gain.vector(), bias.vector());
        assert!(gain.len() == x.cols && bias.len() == x.cols);
        self.map_rows(x, x.cols, row_wise::LayerNorm { gain, bias, eps })
    }

    fn layer_norm_scale(&self, x: &Tensor, eps: f64) -> Tensor {
        self.map_rows(x, 1, row_wise::Scale { eps })
    }

    fn layer_norm_normalize(&self, x: &Tensor, scale: &Tensor) -> Tensor {
        assert_eq!([scale.rows, scale.cols], [x.rows, 1]);
        self.map_rows(x, x.cols, row_wise::Normalize { scales: scale })
    }

    fn gain_bias(&self, x: &Tensor, gain: &Weight, bias: &Weight) -> Tensor {
        let (gain, bias) = (gain.vector(), bias.vector());
        assert!(gain.len() == x.cols && bias.len() == x.cols);
        self.map_rows(x, x.cols, row_wise::GainBias { gain, bias })
    }

    fn linear(&self, x: &Tensor, w: &Weight, bias: &Weight) -> Tensor {
        self.multiply(x, w, bias, Then::Nothing)
    }

    fn linear_activation(&self, x: &Tensor, w: &Weight, bias: &Weight, f: Activation) -> Tensor {
        self.multiply(x, w, bias, Then::Activation(f))
    }

    fn linear_add(&self, a: &Tensor, x: &Tensor, w: &Weight, bias: &Weight) -> Tensor {
        assert_eq!([a.rows, a.cols], [x.rows, w.weight.cols]);
        self.multiply(x, w, bias, Then::Add(a))
    }

    fn linear_by_head(&self, z: &Tensor, w: &Weight, n_head: usize) -> Tensor {
        assert_eq!(z.cols, w.weight.rows);
        let head_dim = z.cols / n_head;
        let heads: Vec<_> = (0..n_head).map(|head| head * head_dim..(head + 1) * head_dim).collect();
        let panels = w.panels(|w| Panels::new(&self.workers, w));
        let mut y = Tensor::new(z.rows, n_head * w.weight.cols);
        let finish = Finish { bias: None, then: Then::Nothing };
        products::product(&self.workers, RowsView::of(z), panels, &heads, finish, &mut y);
        y
    }

    fn sum_heads(&self, parts: &Tensor, bias: &Weight, n_head: usize) -> Tensor {
        let bias = bias.vector();
        assert_eq!(parts.cols, n_head * bias.len());
        self.map_rows(parts, bias.len(), row_wise::SumParts { bias })
    }

    fn attention(&self, qkv: &Tensor, texts: &[Range<usize>], heads: Heads) -> Tensor {
        let mut z = Tensor::new(qkv.rows, qkv.cols / 3);
        attention::attention(&self.workers, qkv, texts, heads, &mut z);
        z
    }

    fn attention_scores(&self, qkv: &Tensor, text: Range<usize>, heads: Heads) -> Tensor {
        let mut scores = Tensor::new(heads.n_head * text.len(), text.len());
        attention::scores(&self.workers, qkv, text, heads, &mut scores);
        scores
    }

    fn attention_pattern(&self, scores: &Tensor) -> Tensor {
        self.map_rows(scores, scores.cols, row_wise::SoftmaxOf)
    }

    fn attention_mix(&self, pattern: &Tensor, qkv: &Tensor, text: Range<usize>, heads: Heads, z: &mut Tensor) {
        assert_eq!([pattern.rows, pattern.cols], [heads.n_head * text.len(), text.len()]);
        attention::mix(&self.workers, pattern, qkv, text, heads, z);
    }

    fn activation(&self, x: &Tensor, f: Activation) -> Tensor {
        self.map_rows(x, x.cols, f)
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        assert_eq!([a.rows, a.cols], [b.rows, b.cols]);
        let mut y = Tensor::new(a.rows, a.cols);
        row_wise::sum_of(&self.workers, a, b, &mut y);
        y
    }

    fn unembed(&self, x: &Tensor, rows: Range<usize>, table: &Weight) -> Tensor {
        assert_eq!(x.cols, table.weight.cols);
        let mut y = Tensor::new(rows.len(), table.weight.rows);
        let of_text = RowsView { data: x.row(rows.start), n: rows.len(), stride: x.cols };
        if rows.len() <= products::tile_shape(self.workers.arch).0 {
            products::dots(&self.workers, of_text, &table.weight, &mut y);
        } else {
            let panels = table.panels(|table| Panels::transposed(&self.workers, table));
            let finish = Finish { bias: None, then: Then::Nothing };
            products::product(&self.workers, of_text, panels, &[0..x.cols], finish, &mut y);
        }
        y
    }

    fn edit(&self, x: &mut Tensor, window: &Window, edit: &Edit) {
        window.assert_within([x.rows, x.cols]);
        let width = window.cols.len();
        for (i, row) in window.rows.iter().flat_map(|r| r.clone()).enumerate() {
            let (first, cols) = (row * x.cols, &window.cols);
            let slots = &mut x[first + cols.start..first + cols.end];
            // `i * width` wraps to 0 for values that hold one row for all.
            let of_row = |values: &'_ [f32]| i * width % values.len();
            match edit {
                Edit::Zero => slots.fill(0.0),
                Edit::Scale(factor) => slots.iter_mut().for_each(|v| *v *= factor),
                Edit::Add(values) => slots.iter_mut().zip(&values[of_row(values)..]).for_each(|(v, add)| *v += add),
                Edit::Replace(values) => slots.copy_from_slice(&values[of_row(values)..][..width]),
            }
        }
    }

    fn copy_out(&self, x: &Tensor, window: &Window) -> Staged {
        window.assert_within([x.rows, x.cols]);
        match window.is_all([x.rows, x.cols]) {
            true => Staged::All(x.share()),
            false => Staged::Part(row_wise::copy_window(&self.workers, x, x.cols, window)),
        }
    }

    fn submit(&self) {}

    async fn settle(&self, _running: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn read(&self, staged: Staged) -> Result<Vec<f32>, DeviceError> {
        Ok(match staged {
            Staged::All(memory) => Memory::take(memory),
            Staged::Part(values) => values,
        })
    }
}
