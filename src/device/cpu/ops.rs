//! The loops of the `cpu` device: matrix products through `gemm`, rows in parallel through `rayon`, attention block by
//! block. Owns no types that live longer than a call.

use super::{Activation, Heads, Tensor};
use crate::device::MASKED;
use rayon::prelude::*;
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};
use std::ops::Range;

/// Below this many values a loop is done before a second thread would have woken up.
const WORTH_SHARING: usize = 1 << 15;

/// Queries that share one block of scores: 64 rows of up to n_ctx f32 stay in the second-level cache.
const QUERY_BLOCK: usize = 64;

/// A matrix that lies in somebody's memory with any strides.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl<'a> View<'a> {
    /// Rows that lie one after the other.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> View<'a> {
        View { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    pub fn rows(self, rows: Range<usize>) -> View<'a> {
        assert!(rows.start < rows.end && rows.end <= self.rows);
        View { data: &self.data[rows.start * self.row_stride..], rows: rows.len(), ..self }
    }

    pub fn cols(self, cols: Range<usize>) -> View<'a> {
        assert!(cols.start < cols.end && cols.end <= self.cols);
        View { data: &self.data[cols.start * self.col_stride..], cols: cols.len(), ..self }
    }

    pub fn transposed(self) -> View<'a> {
        View {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// One past the last element that the view reaches.
    fn reach(&self) -> usize {
        (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride + 1
    }
}

/// `out += a . b`, out having rows of `stride`.
pub fn matmul_add(a: View<'_>, b: View<'_>, out: &mut [f32], stride: usize, threads: usize) {
    matmul(a, b, out, stride, true, 1.0, threads);
}

fn matmul(a: View<'_>, b: View<'_>, out: &mut [f32], stride: usize, add: bool, factor: f32, threads: usize) {
    assert_eq!(a.cols, b.rows);
    assert!(a.reach() <= a.data.len() && b.reach() <= b.data.len() && (a.rows - 1) * stride + b.cols <= out.len());
    let sharing = if threads > 1 && a.rows * a.cols * b.cols > WORTH_SHARING {
        gemm::Parallelism::Rayon(threads)
    } else {
        gemm::Parallelism::None
    };
    // SAFETY: the three assertions above bound every element that gemm reads or writes, and `out` is exclusively ours.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            factor,
            false,
            false,
            false,
            sharing,
        );
    }
}

/// A tensor whose every row is `row`.
pub fn filled_rows(rows: usize, row: &[f32]) -> Tensor {
    Tensor { rows, cols: row.len(), data: row.repeat(rows) }
}

/// A tensor of `cols` columns whose rows are made from x's, by all threads where that pays. `f` finds zeros in the output.
pub fn map_rows(x: &Tensor, cols: usize, f: impl Fn(&[f32], &mut [f32]) + Sync) -> Tensor {
    let mut y = Tensor::zeros(x.rows, cols);
    if x.data.len() < WORTH_SHARING {
        y.data.chunks_exact_mut(cols).zip(x.data.chunks_exact(x.cols)).for_each(|(out, row)| f(row, out));
    } else {
        y.data.par_chunks_exact_mut(cols).zip(x.data.par_chunks_exact(x.cols)).for_each(|(out, row)| f(row, out));
    }
    y
}

/// Sum in eight lanes, so that the error grows with n / 8 and the compiler can use vectors.
fn sum(values: impl ExactSizeIterator<Item = f32> + Clone) -> f32 {
    let mut lanes = [0.0f32; 8];
    for (i, v) in values.enumerate() {
        lanes[i % 8] += v;
    }
    lanes.iter().sum()
}

/// Mean and `sqrt(var + eps)` of a row; the variance around the mean, in a second pass, as its formula says.
pub fn mean_and_scale(row: &[f32], eps: f64) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = sum(row.iter().copied()) / n;
    let variance = sum(row.iter().map(|x| (x - mean) * (x - mean))) / n;
    (mean, (variance + eps as f32).sqrt())
}

/// Softmax of a row in place. Masked entries become 0.
pub fn softmax(row: &mut [f32]) {
    let highest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|s| *s = (*s - highest).exp());
    let total = sum(row.iter().copied());
    row.iter_mut().for_each(|s| *s /= total);
}

/// The columns of q (0), k (1) or v (2) of one head in qkv, for one text.
fn part<'a>(qkv: &'a Tensor, text: &Range<usize>, heads: Heads, head: usize, which: usize) -> View<'a> {
    let n_embd = qkv.cols / 3;
    let head_dim = n_embd / heads.n_head;
    let start = which * n_embd + head * head_dim;
    qkv.view().rows(text.clone()).cols(start..start + head_dim)
}

/// Scores of some queries of one head with the first `n_keys` keys, masked, into `out` [queries, n_keys].
pub fn scores(
    qkv: &Tensor,
    text: &Range<usize>,
    heads: Heads,
    head: usize,
    queries: Range<usize>,
    n_keys: usize,
    out: &mut [f32],
) {
    let q = part(qkv, text, heads, head, 0).rows(queries.clone());
    let k = part(qkv, text, heads, head, 1).rows(0..n_keys);
    matmul(q, k.transposed(), out, n_keys, false, heads.scale as f32, 1);
    for (query, row) in queries.zip(out.chunks_exact_mut(n_keys)) {
        row[(query + 1).min(n_keys)..].fill(MASKED);
    }
}

/// z of some queries of one head, into `out`, whose rows are those of z from this head's first column on: pattern
/// [queries, n_keys] . v.
pub fn mix(
    pattern: View<'_>,
    qkv: &Tensor,
    text: &Range<usize>,
    heads: Heads,
    head: usize,
    out: &mut [f32],
    threads: usize,
) {
    let v = part(qkv, text, heads, head, 2).rows(0..pattern.cols);
    matmul(pattern, v, out, qkv.cols / 3, false, 1.0, threads);
}

/// Causal attention of one text. Each task takes a block of queries with all heads: its rows of z are its own, keys after
/// the block are never looked at, and one block of scores is all that is ever stored.
pub fn attention(qkv: &Tensor, text: Range<usize>, heads: Heads, z: &mut Tensor) {
    let n_embd = z.cols;
    let of_text = &mut z.data[text.start * n_embd..text.end * n_embd];
    let task = |(block, rows): (usize, &mut [f32])| {
        let queries = block * QUERY_BLOCK..(block * QUERY_BLOCK + rows.len() / n_embd);
        let n_keys = queries.end;
        let mut pattern = vec![0.0; queries.len() * n_keys];
        for head in 0..heads.n_head {
            scores(qkv, &text, heads, head, queries.clone(), n_keys, &mut pattern);
            pattern.chunks_exact_mut(n_keys).for_each(softmax);
            mix(
                View::new(&pattern, queries.len(), n_keys),
                qkv,
                &text,
                heads,
                head,
                &mut rows[head * n_embd / heads.n_head..],
                1,
            );
        }
    };
    // Later blocks have more keys; starting with them leaves the short ones to fill the gaps at the end.
    if text.len() <= QUERY_BLOCK {
        of_text.chunks_mut(QUERY_BLOCK * n_embd).enumerate().for_each(task);
    } else {
        of_text.par_chunks_mut(QUERY_BLOCK * n_embd).enumerate().rev().for_each(task);
    }
}

/// The scalar function. `x sigmoid(2u)` is `0.5 x (1 + tanh u)` without the cancellation near -1, and `erfc` spares
/// `1 + erf` the same.
pub fn activation(f: Activation) -> fn(f32) -> f32 {
    fn sigmoid(x: f32) -> f32 {
        1.0 / (1.0 + (-x).exp())
    }
    match f {
        Activation::GeluTanh => |x| x * sigmoid(2.0 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * (x + 0.044_715 * x * x * x)),
        Activation::GeluErf => |x| 0.5 * x * libm::erfcf(-x * FRAC_1_SQRT_2),
        // Not `max`, which would turn NaN into 0.
        Activation::Relu => |x| if x < 0.0 { 0.0 } else { x },
        Activation::Silu => |x| x * sigmoid(x),
        Activation::QuickGelu => |x| x * sigmoid(1.702 * x),
    }
}
