//! The device for machines without a GPU: f32, all cores. Owns which loop runs where; matrix products are the `gemm`
//! crate's, which picks its kernels for the processor it finds. Weights stored as f32 are used straight from the map.
//! Read next: `ops.rs`, the loops themselves.

mod ops;

use super::{Activation, Device, DeviceError, DeviceInfo, Dtype, Edit, Heads, Limits, Weight, Window};
use rayon::prelude::*;
use std::ops::Range;

/// A matrix [rows, cols] of f32, row-major.
pub struct Tensor {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

impl Tensor {
    fn zeros(rows: usize, cols: usize) -> Tensor {
        Tensor { rows, cols, data: vec![0.0; rows * cols] }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }

    fn view(&self) -> ops::View<'_> {
        ops::View::new(&self.data, self.rows, self.cols)
    }
}

/// A weight [rows, cols]: in place in the checkpoint where it is f32 and aligned, else widened once.
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Data,
}

enum Data {
    InPlace(super::Blob),
    Owned(Vec<f32>),
}

impl Matrix {
    fn data(&self) -> &[f32] {
        match &self.data {
            // Checked when it was loaded, and a blob does not move.
            Data::InPlace(blob) => bytemuck::cast_slice(blob.bytes()),
            Data::Owned(values) => values,
        }
    }

    fn view(&self) -> ops::View<'_> {
        ops::View::new(self.data(), self.rows, self.cols)
    }
}

/// The device `cpu`.
pub struct Cpu {
    threads: usize,
}

impl Cpu {
    /// Uses as many threads as the process may.
    pub fn new() -> Cpu {
        Cpu { threads: rayon::current_num_threads() }
    }
}

impl Default for Cpu {
    fn default() -> Cpu {
        Cpu::new()
    }
}

impl Device for Cpu {
    type Tensor = Tensor;
    type Matrix = Matrix;
    type Staged = Vec<f32>;

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            kind: "cpu",
            name: format!("{}, {} threads", std::env::consts::ARCH, self.threads),
            detail: "f32, crate gemm".into(),
            software: false,
        }
    }

    fn limits(&self) -> Limits {
        Limits::NONE
    }

    fn load(&self, w: &Weight) -> Result<Matrix, DeviceError> {
        let in_place = w.dtype == Dtype::F32
            && cfg!(target_endian = "little")
            && bytemuck::try_cast_slice::<u8, f32>(w.blob.bytes()).is_ok();
        let data = if in_place {
            Data::InPlace(w.blob.clone())
        } else {
            let values = w.to_f32();
            w.blob.release();
            Data::Owned(values)
        };
        Ok(Matrix { rows: w.rows, cols: w.cols, data })
    }

    fn shape(&self, x: &Tensor) -> [usize; 2] {
        [x.rows, x.cols]
    }

    fn empty(&self, rows: usize, cols: usize) -> Tensor {
        Tensor::zeros(rows, cols)
    }

    fn rows(&self, table: &Matrix, ids: &[u32]) -> Tensor {
        let mut y = Tensor::zeros(ids.len(), table.cols);
        for (row, &id) in y.data.chunks_exact_mut(table.cols).zip(ids) {
            row.copy_from_slice(&table.data()[id as usize * table.cols..][..table.cols]);
        }
        y
    }

    fn layer_norm(&self, x: &Tensor, gain: &Matrix, bias: &Matrix, eps: f64) -> Tensor {
        assert!(gain.cols == x.cols && bias.cols == x.cols);
        ops::map_rows(x, x.cols, |row, out| {
            let (mean, scale) = ops::mean_and_scale(row, eps);
            for (((y, x), g), b) in out.iter_mut().zip(row).zip(gain.data()).zip(bias.data()) {
                *y = (x - mean) / scale * g + b;
            }
        })
    }

    fn layer_norm_scale(&self, x: &Tensor, eps: f64) -> Tensor {
        ops::map_rows(x, 1, |row, out| out[0] = ops::mean_and_scale(row, eps).1)
    }

    fn layer_norm_normalize(&self, x: &Tensor, scale: &Tensor) -> Tensor {
        assert_eq!([scale.rows, scale.cols], [x.rows, 1]);
        let mut y = Tensor::zeros(x.rows, x.cols);
        for ((out, row), scale) in y.data.chunks_exact_mut(x.cols).zip(x.data.chunks_exact(x.cols)).zip(&scale.data) {
            let mean = ops::mean_and_scale(row, 0.0).0;
            out.iter_mut().zip(row).for_each(|(y, x)| *y = (x - mean) / scale);
        }
        y
    }

    fn gain_bias(&self, x: &Tensor, gain: &Matrix, bias: &Matrix) -> Tensor {
        assert!(gain.cols == x.cols && bias.cols == x.cols);
        ops::map_rows(x, x.cols, |row, out| {
            for (((y, x), g), b) in out.iter_mut().zip(row).zip(gain.data()).zip(bias.data()) {
                *y = x * g + b;
            }
        })
    }

    fn linear(&self, x: &Tensor, w: &Matrix, bias: &Matrix) -> Tensor {
        assert!(x.cols == w.rows && bias.cols == w.cols);
        let mut y = ops::filled_rows(x.rows, bias.data());
        ops::matmul_add(x.view(), w.view(), &mut y.data, w.cols, self.threads);
        y
    }

    fn linear_by_head(&self, z: &Tensor, w: &Matrix, n_head: usize) -> Tensor {
        assert_eq!(z.cols, w.rows);
        let head_dim = z.cols / n_head;
        let mut y = Tensor::zeros(z.rows, n_head * w.cols);
        for head in 0..n_head {
            let dims = head * head_dim..(head + 1) * head_dim;
            let (z_head, w_head) = (z.view().cols(dims.clone()), w.view().rows(dims));
            ops::matmul_add(z_head, w_head, &mut y.data[head * w.cols..], n_head * w.cols, self.threads);
        }
        y
    }

    fn sum_heads(&self, parts: &Tensor, bias: &Matrix, n_head: usize) -> Tensor {
        assert_eq!(parts.cols, n_head * bias.cols);
        ops::map_rows(parts, bias.cols, |row, out| {
            for part in row.chunks_exact(bias.cols) {
                out.iter_mut().zip(part).for_each(|(y, p)| *y += p);
            }
            out.iter_mut().zip(bias.data()).for_each(|(y, b)| *y += b);
        })
    }

    fn attention(&self, qkv: &Tensor, texts: &[Range<usize>], heads: Heads) -> Tensor {
        let mut z = Tensor::zeros(qkv.rows, qkv.cols / 3);
        for text in texts {
            ops::attention(qkv, text.clone(), heads, &mut z);
        }
        z
    }

    fn attention_scores(&self, qkv: &Tensor, text: Range<usize>, heads: Heads) -> Tensor {
        let n_pos = text.len();
        let mut scores = Tensor::zeros(heads.n_head * n_pos, n_pos);
        let of_heads = scores.data.par_chunks_exact_mut(n_pos * n_pos).enumerate();
        of_heads.for_each(|(head, out)| ops::scores(qkv, &text, heads, head, 0..n_pos, n_pos, out));
        scores
    }

    fn attention_pattern(&self, scores: &Tensor) -> Tensor {
        ops::map_rows(scores, scores.cols, |row, out| {
            out.copy_from_slice(row);
            ops::softmax(out);
        })
    }

    fn attention_mix(&self, pattern: &Tensor, qkv: &Tensor, text: Range<usize>, heads: Heads, z: &mut Tensor) {
        let n_pos = text.len();
        assert_eq!([pattern.rows, pattern.cols], [heads.n_head * n_pos, n_pos]);
        let head_dim = z.cols / heads.n_head;
        for head in 0..heads.n_head {
            let of_head = pattern.view().rows(head * n_pos..(head + 1) * n_pos);
            let out = &mut z.data[text.start * z.cols + head * head_dim..];
            ops::mix(of_head, qkv, &text, heads, head, out, self.threads);
        }
    }

    fn activation(&self, x: &Tensor, f: Activation) -> Tensor {
        let f = ops::activation(f);
        ops::map_rows(x, x.cols, |row, out| out.iter_mut().zip(row).for_each(|(y, x)| *y = f(*x)))
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        assert_eq!([a.rows, a.cols], [b.rows, b.cols]);
        let data = a.data.iter().zip(&b.data).map(|(a, b)| a + b).collect();
        Tensor { rows: a.rows, cols: a.cols, data }
    }

    fn unembed(&self, x: &Tensor, rows: Range<usize>, table: &Matrix) -> Tensor {
        assert_eq!(x.cols, table.cols);
        let mut y = Tensor::zeros(rows.len(), table.rows);
        ops::matmul_add(x.view().rows(rows), table.view().transposed(), &mut y.data, table.rows, self.threads);
        y
    }

    fn edit(&self, x: &mut Tensor, window: &Window, edit: &Edit) {
        window.assert_within([x.rows, x.cols]);
        let width = window.cols.len();
        for (i, row) in window.rows.iter().flat_map(|r| r.clone()).enumerate() {
            let slots = &mut x.data[row * x.cols..][window.cols.clone()];
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

    fn copy_out(&self, x: &Tensor, window: &Window) -> Vec<f32> {
        window.assert_within([x.rows, x.cols]);
        let mut values = Vec::with_capacity(window.len());
        for rows in &window.rows {
            if window.cols == (0..x.cols) {
                values.extend_from_slice(&x.data[rows.start * x.cols..rows.end * x.cols]);
            } else {
                rows.clone().for_each(|row| values.extend_from_slice(&x.row(row)[window.cols.clone()]));
            }
        }
        values
    }

    fn submit(&self) {}

    async fn settle(&self, _running: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn read(&self, staged: Vec<f32>) -> Result<Vec<f32>, DeviceError> {
        Ok(staged)
    }
}
