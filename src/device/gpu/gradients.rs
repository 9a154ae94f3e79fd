//! The operations of gradients that have kernels of their own. Those of attention are in `attention.rs`, because they run its
//! kernels. Read next: `shaders/layer_norm_gradient.wgsl`.

use super::buffers::{Tensor, Weight, WeightLayout};
use super::encoder::Variant;
use super::kernels::{self, function_override, weight_override};
use super::{Gpu, all, elements, grid, whole};
use crate::device::Activation;

impl Gpu {
    pub(super) fn layer_norm_gradient(&self, x: &Tensor, dy: &Tensor, gain: &Weight, eps: f64) -> Tensor {
        assert_eq!([gain.cols, dy.rows, dy.cols], [x.cols, x.rows, x.cols]);
        let y = self.empty(x.rows, x.cols);
        let params = kernels::LayerNorm { rows: x.rows as u32, cols: x.cols as u32, eps: eps as f32 };
        let bindings = [all(x), all(dy), self.vector(gain), all(&y)];
        let variant = self.either(&kernels::LAYER_NORM_GRADIENT, &kernels::LAYER_NORM_GRADIENT_BROADCAST);
        self.encoder.dispatch(variant, &params, &bindings, grid(x.rows));
        y
    }

    pub(super) fn layer_norm_scale_gradient(&self, x: &Tensor, scale: &Tensor, dscale: &Tensor) -> Tensor {
        assert_eq!([scale.rows, scale.cols, dscale.rows, dscale.cols], [x.rows, 1, x.rows, 1]);
        let y = self.empty(x.rows, x.cols);
        let params = kernels::Rows { rows: x.rows as u32, cols: x.cols as u32 };
        let bindings = [all(x), all(scale), all(dscale), all(&y)];
        let variant = self.either(&kernels::LAYER_NORM_SCALE_GRADIENT, &kernels::LAYER_NORM_SCALE_GRADIENT_BROADCAST);
        self.encoder.dispatch(variant, &params, &bindings, grid(x.rows));
        y
    }

    pub(super) fn layer_norm_normalize_scale_gradient(&self, y: &Tensor, scale: &Tensor, dy: &Tensor) -> Tensor {
        assert_eq!([scale.rows, scale.cols, dy.rows, dy.cols], [y.rows, 1, y.rows, y.cols]);
        let dscale = self.empty(y.rows, 1);
        let params = kernels::Rows { rows: y.rows as u32, cols: y.cols as u32 };
        let bindings = [all(y), all(scale), all(dy), all(&dscale)];
        let variant = self.either(
            &kernels::LAYER_NORM_NORMALIZE_SCALE_GRADIENT,
            &kernels::LAYER_NORM_NORMALIZE_SCALE_GRADIENT_BROADCAST,
        );
        self.encoder.dispatch(variant, &params, &bindings, grid(y.rows));
        dscale
    }

    pub(super) fn gain_bias_gradient(&self, x: &Tensor, gain: &Weight) -> Tensor {
        assert_eq!(gain.cols, x.cols);
        let y = self.empty(x.rows, x.cols);
        let params = kernels::GainBiasGradient { n: x.len() as u32, cols: x.cols as u32 };
        let bindings = [all(x), self.vector(gain), all(&y)];
        self.encoder.dispatch((&kernels::GAIN_BIAS_GRADIENT).into(), &params, &bindings, elements(x.len()));
        y
    }

    pub(super) fn linear_by_head_gradient(&self, dy: &Tensor, w: &Weight, n_head: usize) -> Tensor {
        assert_eq!(dy.cols, n_head * w.cols);
        let y = self.empty(dy.rows, w.rows);
        let (weight, placed) = (self.uncut(w, WeightLayout::Rows), self.place(w, WeightLayout::Rows));
        let params = kernels::LinearByHeadGradient {
            n: y.len() as u32,
            rows_of_w: w.rows as u32,
            head_dim: (w.rows / n_head) as u32,
            cols: w.cols as u32,
            dy_stride: dy.cols as u32,
            w_stride: placed.stride as u32,
        };
        let variant = Variant::new(&kernels::LINEAR_BY_HEAD_GRADIENT, &[weight_override(placed.dtype)]);
        self.encoder.dispatch(variant, &params, &[all(dy), weight, all(&y)], elements(y.len()));
        y
    }

    pub(super) fn sum_heads_gradient(&self, x: &Tensor, n_head: usize) -> Tensor {
        let y = self.empty(x.rows, n_head * x.cols);
        let params = kernels::SumHeadsGradient { n: y.len() as u32, cols: x.cols as u32, n_head: n_head as u32 };
        self.encoder.dispatch((&kernels::SUM_HEADS_GRADIENT).into(), &params, &[all(x), all(&y)], elements(y.len()));
        y
    }

    pub(super) fn activation_gradient(&self, x: &Tensor, dy: &Tensor, f: Activation) -> Tensor {
        assert_eq!([dy.rows, dy.cols], [x.rows, x.cols]);
        let y = self.empty(x.rows, x.cols);
        let variant = Variant::new(&kernels::ACTIVATION_GRADIENT, &[function_override(f)]);
        let params = kernels::Elements { n: x.len() as u32 };
        self.encoder.dispatch(variant, &params, &[all(x), all(dy), all(&y)], elements(x.len()));
        y
    }

    pub(super) fn attention_pattern_gradient(&self, pattern: &Tensor, dy: &Tensor) -> Tensor {
        assert_eq!([dy.rows, dy.cols], [pattern.rows, pattern.cols]);
        let y = self.empty(pattern.rows, pattern.cols);
        let params = kernels::Rows { rows: pattern.rows as u32, cols: pattern.cols as u32 };
        let bindings = [all(pattern), all(dy), all(&y)];
        let variant = self.either(&kernels::ATTENTION_PATTERN_GRADIENT, &kernels::ATTENTION_PATTERN_GRADIENT_BROADCAST);
        self.encoder.dispatch(variant, &params, &bindings, grid(pattern.rows));
        y
    }

    /// The product with a weight whose rows are split among several bindings: those of each binding are multiplied with their
    /// columns of x, and the results added up.
    pub(super) fn product_with_cut(&self, x: &Tensor, w: &Weight) -> Tensor {
        let placed = self.place(w, WeightLayout::Rows);
        let parts = placed.chunks.iter().map(|chunk| {
            let columns = self.empty(x.rows, chunk.rows.len());
            for rows in self.bindable(0..x.rows, x.cols) {
                let (source, before) = self.some_rows(x, &rows);
                let params = kernels::CopyWindow {
                    n: (rows.len() * columns.cols) as u32,
                    first_col: before + chunk.rows.start as u32,
                    cols: columns.cols as u32,
                    x_stride: x.cols as u32,
                    y_first: (rows.start * columns.cols) as u32,
                    y_stride: columns.cols as u32,
                };
                self.copy(source, &params, all(&columns));
            }
            self.product_with_part(&columns, whole(&chunk.buffer), placed, w.cols)
        });
        parts.reduce(|sum, part| self.add(&sum, &part)).expect("a weight has rows")
    }
}
