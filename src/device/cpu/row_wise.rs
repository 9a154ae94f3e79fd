//! What the `cpu` device computes row by row: LayerNorm, softmax, activation functions, and the dot products of a few
//! rows. Owns no memory; `buffers.rs` has the tensors.
//!
//! SIMD vectors are used explicitly, so that the speed does not depend on what the compiler vectorizes; `simd_loops.rs` has the loops.
//! `pulp` compiles these functions once for each kind of processor, but only if they are inlined. A closure would not be, so no
//! function that takes `simd` is called from one.
//! Read next: `simd_loops.rs`, then `mod.rs`, which calls these functions.

use super::buffers::RowsView;
use super::microkernel::{CacheLevel, prefetch, unroll, zeros};
use super::simd_loops::{Itself, LANES, Plus, Term, add, add_up, in_place, map, max, sum, terms, update};
use super::widen::Element;
use crate::config::Activation;
use crate::device::workers::Workers;
use crate::device::{LOGITS_CHUNK, MASKED, Window};
use pulp::{Simd, WithSimd};
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LOG2_E};
use std::marker::PhantomData;

/// With fewer values than this, one thread finishes before a second one would have woken up.
const WORTH_SHARING: usize = 1 << 15;

/// Computes one row of a result from one row of a tensor.
pub(crate) trait RowOp: Copy + Sync {
    /// Computes row `i` from `x` into `y`. `y` may hold any values before.
    fn row<S: Simd>(self, simd: S, i: usize, x: &[f32], y: &mut [f32]);
}

/// Applies `op` to all rows, on all threads where that is faster.
pub(crate) fn map_rows(workers: &Workers, x: &[f32], x_cols: usize, y: &mut [f32], y_cols: usize, op: impl RowOp) {
    let rows = x.len() / x_cols;
    let each = if x.len() < WORTH_SHARING { rows } else { rows.div_ceil(4 * workers.threads) };
    let arch = workers.arch;
    workers.each_piece(y, each * y_cols, |i, y| {
        let x = &x[i * each * x_cols..][..y.len() / y_cols * x_cols];
        arch.dispatch(SomeRows { first: i * each, x, x_cols, y, y_cols, op });
    });
}

/// `y = a + b`.
pub(crate) fn sum_of(workers: &Workers, a: &[f32], b: &[f32], y: &mut [f32]) {
    let (n, arch) = (y.len(), workers.arch);
    let each = if n < WORTH_SHARING { n } else { n.div_ceil(4 * workers.threads) };
    workers.each_piece(y, each, |i, y| arch.dispatch(SumOf { a: &a[i * each..], b: &b[i * each..], y }));
}

/// One task of [`sum_of`].
struct SumOf<'a> {
    a: &'a [f32],
    b: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for SumOf<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        map(simd, Plus {}, [self.a, self.b], self.y);
    }
}

/// A copy of values.
pub(crate) fn copy(workers: &Workers, x: &[f32]) -> Vec<f32> {
    let (n, mut copy) = (x.len(), workers.memory.vector(x.len()));
    let each = if n < WORTH_SHARING { n } else { n.div_ceil(4 * workers.threads) };
    workers.each_piece(&mut copy, each, |i, copy| copy.copy_from_slice(&x[i * each..][..copy.len()]));
    copy
}

/// Copies the values of a window of x. All threads copy a large one, because most of the time goes into the first touch
/// of fresh memory.
pub(crate) fn copy_window(workers: &Workers, x: &[f32], x_cols: usize, window: &Window) -> Vec<f32> {
    let (width, n) = (window.n_cols(), window.len());
    let mut values = workers.memory.vector(n);
    let mut rest = values.as_mut_slice();
    for rows in &window.rows {
        let (out, later) = rest.split_at_mut(rows.len() * width);
        rest = later;
        let each = if n < WORTH_SHARING { rows.len() } else { rows.len().div_ceil(4 * workers.threads) };
        workers.each_piece(out, each * width, |i, out| {
            let x = x[(rows.start + i * each) * x_cols..].chunks(x_cols);
            for (x, mut out) in x.zip(out.chunks_exact_mut(width)) {
                for cols in &window.cols {
                    let (part, later) = out.split_at_mut(cols.len());
                    part.copy_from_slice(&x[cols.clone()]);
                    out = later;
                }
            }
        });
    }
    values
}

/// One task of [`map_rows`]: some rows.
struct SomeRows<'a, Op> {
    first: usize,
    x: &'a [f32],
    x_cols: usize,
    y: &'a mut [f32],
    y_cols: usize,
    op: Op,
}

impl<Op: RowOp> WithSimd for SomeRows<'_, Op> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let rows = self.x.chunks_exact(self.x_cols).zip(self.y.chunks_exact_mut(self.y_cols));
        for (i, (x, y)) in rows.enumerate() {
            self.op.row(simd, self.first + i, x, y);
        }
    }
}

/// `(x - mean) / scale * gain + bias`.
#[derive(Clone, Copy)]
pub(crate) struct LayerNorm<'a> {
    pub gain: &'a [f32],
    pub bias: &'a [f32],
    pub eps: f64,
}

impl RowOp for LayerNorm<'_> {
    #[inline(always)]
    fn row<S: Simd>(self, simd: S, _: usize, x: &[f32], y: &mut [f32]) {
        let (mean, scale) = mean_and_scale(simd, x, self.eps);
        map(simd, Normed { mean, scale }, [x, self.gain, self.bias], y);
    }
}

/// `sqrt(var + eps)`.
#[derive(Clone, Copy)]
pub(crate) struct LayerNormScale {
    pub eps: f64,
}

impl RowOp for LayerNormScale {
    #[inline(always)]
    fn row<S: Simd>(self, simd: S, _: usize, x: &[f32], y: &mut [f32]) {
        y[0] = mean_and_scale(simd, x, self.eps).1;
    }
}

/// `(x - mean) / scale`, with one scale per row.
#[derive(Clone, Copy)]
pub(crate) struct LayerNormNormalize<'a> {
    pub scales: &'a [f32],
}

impl RowOp for LayerNormNormalize<'_> {
    #[inline(always)]
    fn row<S: Simd>(self, simd: S, i: usize, x: &[f32], y: &mut [f32]) {
        let (mean, scale) = (mean_and_scale(simd, x, 0.0).0, self.scales[i]);
        map(simd, Scaled { mean, scale }, [x], y);
    }
}

/// `x * gain + bias`.
#[derive(Clone, Copy)]
pub(crate) struct GainBias<'a> {
    pub gain: &'a [f32],
    pub bias: &'a [f32],
}

impl RowOp for GainBias<'_> {
    #[inline(always)]
    fn row<S: Simd>(self, simd: S, _: usize, x: &[f32], y: &mut [f32]) {
        map(simd, TimesPlus {}, [x, self.gain, self.bias], y);
    }
}

/// Adds up parts of a row, each as wide as the bias, from first to last, and then the bias.
#[derive(Clone, Copy)]
pub(crate) struct SumParts<'a> {
    pub bias: &'a [f32],
}

impl RowOp for SumParts<'_> {
    #[inline(always)]
    fn row<S: Simd>(self, simd: S, _: usize, x: &[f32], y: &mut [f32]) {
        y.fill(0.0);
        for part in x.chunks_exact(self.bias.len()) {
            add(simd, y, part);
        }
        add(simd, y, self.bias);
    }
}

/// The softmax of a row.
#[derive(Clone, Copy)]
pub(crate) struct SoftmaxOf;

impl RowOp for SoftmaxOf {
    #[inline(always)]
    fn row<S: Simd>(self, simd: S, _: usize, x: &[f32], y: &mut [f32]) {
        y.copy_from_slice(x);
        softmax(simd, y);
    }
}

impl RowOp for Activation {
    #[inline(always)]
    fn row<S: Simd>(self, simd: S, _: usize, x: &[f32], y: &mut [f32]) {
        map(simd, Activated(self), [x], y);
    }
}

/// The gradient of [`LayerNorm`] by its input, from the rows of dy.
#[derive(Clone, Copy)]
pub(crate) struct LayerNormGradient<'a> {
    pub dy: &'a [f32],
    pub gain: &'a [f32],
    pub eps: f64,
}

impl RowOp for LayerNormGradient<'_> {
    #[inline(always)]
    fn row<S: Simd>(self, simd: S, i: usize, x: &[f32], y: &mut [f32]) {
        let n = x.len();
        let (mean, scale) = mean_and_scale(simd, x, self.eps);
        map(simd, Times {}, [&self.dy[i * n..(i + 1) * n], self.gain], y);
        let mean_dy = sum(simd, Itself {}, [y]) / n as f32;
        // The mean of dy times the normalized value, whose own mean is 0. A division takes several times as long as a product.
        let by_scale = 1.0 / scale;
        let along = sum(simd, Along { mean, by_scale, mean_dy }, [x, y]) / n as f32;
        update(simd, Across { mean, by_scale, mean_dy, along }, y, x);
    }
}

/// `(x - mean) / (n scale) * dscale`, with one scale and one dscale per row.
#[derive(Clone, Copy)]
pub(crate) struct LayerNormScaleGradient<'a> {
    pub scales: &'a [f32],
    pub dscales: &'a [f32],
}

impl RowOp for LayerNormScaleGradient<'_> {
    #[inline(always)]
    fn row<S: Simd>(self, simd: S, i: usize, x: &[f32], y: &mut [f32]) {
        let mean = mean_and_scale(simd, x, 0.0).0;
        let factor = self.dscales[i] / (x.len() as f32 * self.scales[i]);
        map(simd, OffTimes { mean, factor }, [x], y);
    }
}

/// `-sum(y dy) / scale`, with one scale per row.
#[derive(Clone, Copy)]
pub(crate) struct LayerNormNormalizeScaleGradient<'a> {
    pub dy: &'a [f32],
    pub scales: &'a [f32],
}

impl RowOp for LayerNormNormalizeScaleGradient<'_> {
    #[inline(always)]
    fn row<S: Simd>(self, simd: S, i: usize, x: &[f32], y: &mut [f32]) {
        let dy = &self.dy[i * x.len()..(i + 1) * x.len()];
        y[0] = -sum(simd, Times {}, [x, dy]) / self.scales[i];
    }
}

/// `x * gain`.
#[derive(Clone, Copy)]
pub(crate) struct GainBiasGradient<'a> {
    pub gain: &'a [f32],
}

impl RowOp for GainBiasGradient<'_> {
    #[inline(always)]
    fn row<S: Simd>(self, simd: S, _: usize, x: &[f32], y: &mut [f32]) {
        map(simd, Times {}, [x, self.gain], y);
    }
}

/// A row several times, one after the other.
#[derive(Clone, Copy)]
pub(crate) struct Repeat;

impl RowOp for Repeat {
    #[inline(always)]
    fn row<S: Simd>(self, _: S, _: usize, x: &[f32], y: &mut [f32]) {
        y.chunks_exact_mut(x.len()).for_each(|y| y.copy_from_slice(x));
    }
}

/// `f'(x) dy`.
#[derive(Clone, Copy)]
pub(crate) struct ActivationGradient<'a> {
    pub f: Activation,
    pub dy: &'a [f32],
}

impl RowOp for ActivationGradient<'_> {
    #[inline(always)]
    fn row<S: Simd>(self, simd: S, i: usize, x: &[f32], y: &mut [f32]) {
        let dy = &self.dy[i * x.len()..(i + 1) * x.len()];
        map(simd, DerivativeTimes(self.f), [x, dy], y);
    }
}

/// `p (dp - sum(p dp))`: the gradient of a softmax by its input, from its result p.
#[derive(Clone, Copy)]
pub(crate) struct SoftmaxGradient<'a> {
    pub dy: &'a [f32],
}

impl RowOp for SoftmaxGradient<'_> {
    #[inline(always)]
    fn row<S: Simd>(self, simd: S, i: usize, x: &[f32], y: &mut [f32]) {
        let dy = &self.dy[i * x.len()..(i + 1) * x.len()];
        let mean = sum(simd, Times {}, [x, dy]);
        map(simd, TimesOff { mean }, [x, dy], y);
    }
}

/// Softmax of one row in place.
pub(crate) struct Softmax<'a>(pub &'a mut [f32]);

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        softmax(simd, self.0);
    }
}

terms! { simd:
    /// `(x - mean)^2`.
    SquareOff { mean } [x] = {
        let off = simd.sub_f32s(x, mean);
        simd.mul_f32s(off, off)
    };
    /// `e^(x - less)`.
    PowerAbove { less } [x] = exp(simd, simd.sub_f32s(x, less));
    /// `x * factor`.
    TimesFactor { factor } [x] = simd.mul_f32s(x, factor);
    /// `(x - mean) / scale`.
    Scaled { mean, scale } [x] = simd.div_f32s(simd.sub_f32s(x, mean), scale);
    /// `(x - mean) / scale * gain + bias`.
    Normed { mean, scale } [x, gain, bias] = {
        let scaled = simd.div_f32s(simd.sub_f32s(x, mean), scale);
        simd.add_f32s(simd.mul_f32s(scaled, gain), bias)
    };
    /// `(x - mean) * factor`.
    OffTimes { mean, factor } [x] = simd.mul_f32s(simd.sub_f32s(x, mean), factor);
    /// `a * b`.
    Times {} [a, b] = simd.mul_f32s(a, b);
    /// `a * b + c`.
    TimesPlus {} [a, b, c] = simd.add_f32s(simd.mul_f32s(a, b), c);
    /// `a * (b - mean)`.
    TimesOff { mean } [a, b] = simd.mul_f32s(a, simd.sub_f32s(b, mean));
    /// The normalized value of x times `dy - mean_dy`.
    Along { mean, by_scale, mean_dy } [x, dy] = {
        simd.mul_f32s(simd.mul_f32s(simd.sub_f32s(x, mean), by_scale), simd.sub_f32s(dy, mean_dy))
    };
    /// `(dy - mean_dy - normalized * along) * by_scale`.
    Across { mean, by_scale, mean_dy, along } [dy, x] = {
        let normalized = simd.mul_f32s(simd.sub_f32s(x, mean), by_scale);
        let rest = simd.sub_f32s(simd.sub_f32s(dy, mean_dy), simd.mul_f32s(normalized, along));
        simd.mul_f32s(rest, by_scale)
    };
}

/// The dot products of `M` stored rows of a table with `N` rows of x of the same length. All of them are computed together, because
/// the additions within one sum wait for one another. Of half-precision rows, the lower elements of [`LANES`] words are multiplied
/// first, then the upper ones; [`lower_and_upper`] reorders x to match. Each sum takes `V` vectors, which hold [`LANES`] values.
pub(crate) struct Dots<'a, E, const N: usize, const M: usize, const V: usize> {
    /// The rows of the table, one after the other.
    pub rows: &'a [u8],
    /// The rows of x: the first one from its first column on, the second one after `x_stride` elements, and so on.
    pub x: &'a [f32],
    pub x_stride: usize,
    /// The length of a row.
    pub k: usize,
    /// Prefetches what lies this many words behind what it reads; nothing if it is 0.
    pub ahead: usize,
    pub of: PhantomData<E>,
}

impl<E: Element, const N: usize, const M: usize, const V: usize> WithSimd for Dots<'_, E, N, M, V> {
    type Output = [[f32; N]; M];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> [[f32; N]; M] {
        let Dots { rows, x, x_stride, k, ahead, .. } = self;
        let (whole, bytes) = (k / (LANES * E::PER_WORD), 4 * k / E::PER_WORD);
        assert!(V * S::F32_LANES == LANES && x.len() >= (N - 1) * x_stride + k && rows.len() >= M * bytes);
        let mut sums: [[[S::f32s; V]; N]; M] = zeros();
        let (mut stored, mut values) = ([rows.as_ptr(); M], [x.as_ptr(); N]);
        unroll!(m of 0 1 2 3 < M, { stored[m] = stored[m].wrapping_add(m * bytes); });
        unroll!(n of 0 1 2 3 4 5 6 7 < N, { values[n] = values[n].wrapping_add(n * x_stride); });
        for i in 0..whole {
            let word = i * LANES;
            if ahead > 0 {
                unroll!(m of 0 1 2 3 < M, {
                    prefetch(stored[m].cast::<f32>().wrapping_add(word + ahead), CacheLevel::First);
                });
            }
            unroll!(lane of 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 < V, {
                let at = lane * S::F32_LANES;
                // SAFETY: `whole` counts what all rows have, as the assertion checks, and the reads are unaligned ones.
                unsafe {
                    let mut of_rows: [[S::f32s; 2]; M] = zeros();
                    unroll!(m of 0 1 2 3 < M, {
                        let words = stored[m].add(4 * (word + at)).cast::<S::u32s>().read_unaligned();
                        of_rows[m] = E::widen(simd, words);
                    });
                    unroll!(n of 0 1 2 3 4 5 6 7 < N, {
                        let x = values[n].add(E::PER_WORD * word + at);
                        let lower = x.cast::<S::f32s>().read_unaligned();
                        unroll!(m of 0 1 2 3 < M, {
                            sums[m][n][lane] = simd.mul_add_e_f32s(of_rows[m][0], lower, sums[m][n][lane]);
                        });
                        if E::PER_WORD == 2 {
                            let upper = x.add(LANES).cast::<S::f32s>().read_unaligned();
                            unroll!(m of 0 1 2 3 < M, {
                                sums[m][n][lane] = simd.mul_add_e_f32s(of_rows[m][1], upper, sums[m][n][lane]);
                            });
                        }
                    });
                }
            });
        }
        let mut dots: [[f32; N]; M] = zeros();
        unroll!(m of 0 1 2 3 < M, {
            unroll!(n of 0 1 2 3 4 5 6 7 < N, {
                dots[m][n] = add_up(simd, sums[m][n]);
                for i in whole * LANES * E::PER_WORD..k {
                    dots[m][n] += E::at(&rows[m * bytes..], i) * x[n * x_stride + i];
                }
            });
        });
        dots
    }
}

/// The first `cols` columns of x with every range of `k` columns in the order in which [`Dots`] needs it for half-precision tables.
pub(crate) fn lower_and_upper<'a>(x: RowsView<'_>, k: usize, cols: usize, to: &'a mut Vec<f32>) -> RowsView<'a> {
    to.reserve(x.n * cols);
    for row in 0..x.n {
        for values in x.row(row)[..cols].chunks_exact(k) {
            let (pairs, rest) = values.as_chunks::<{ 2 * LANES }>();
            for pairs in pairs {
                to.extend(pairs.iter().step_by(2).chain(pairs[1..].iter().step_by(2)));
            }
            to.extend(rest);
        }
    }
    RowsView { data: to, n: x.n, stride: cols }
}

/// [`crate::device::Op::Argmax`] of logits [rows, cols].
pub(crate) fn argmax(workers: &Workers, logits: &[f32], cols: usize, y: &mut [f32]) {
    let (arch, chunks) = (workers.arch, cols.div_ceil(LOGITS_CHUNK));
    let all = y.len() / 3;
    let each = if logits.len() < WORTH_SHARING { all } else { all.div_ceil(4 * workers.threads) };
    workers.each_piece(y, 3 * each, |i, y| {
        for (chunk, out) in (i * each..).zip(y.chunks_exact_mut(3)) {
            let (row, first) = (chunk / chunks, chunk % chunks * LOGITS_CHUNK);
            let values = &logits[row * cols + first..row * cols + cols.min(first + LOGITS_CHUNK)];
            let (largest, place, sum) = arch.dispatch(LargestAndSum(values));
            out.copy_from_slice(&[largest, (first + place) as f32, sum]);
        }
    });
}

/// The largest of at most [`LOGITS_CHUNK`] values and [`MASKED`], its first place, and the sum of `e^(value - largest)`.
struct LargestAndSum<'a>(&'a [f32]);

impl WithSimd for LargestAndSum<'_> {
    type Output = (f32, usize, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (f32, usize, f32) {
        let largest = max(simd, self.0, MASKED, false);
        let mut powers = [0.0; LOGITS_CHUNK];
        let powers = &mut powers[..self.0.len()];
        powers.copy_from_slice(self.0);
        in_place(simd, PowerAbove { less: largest }, powers);
        (largest, self.0.iter().position(|x| *x == largest).unwrap_or(0), sum(simd, Itself {}, [powers]))
    }
}

/// Mean and `sqrt(var + eps)` of a row. The variance takes a second pass, which is more exact than a difference of
/// squares.
#[inline(always)]
fn mean_and_scale<S: Simd>(simd: S, row: &[f32], eps: f64) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = sum(simd, Itself {}, [row]) / n;
    let variance = sum(simd, SquareOff { mean }, [row]) / n;
    (mean, (variance + eps as f32).sqrt())
}

/// Softmax in place. Masked entries become 0 and change no bit of the others.
#[inline(always)]
fn softmax<S: Simd>(simd: S, row: &mut [f32]) {
    let highest = max(simd, row, f32::NEG_INFINITY, true);
    in_place(simd, PowerAbove { less: highest }, row);
    // A division takes several times as long as a product.
    let factor = 1.0 / sum(simd, Itself {}, [row]);
    in_place(simd, TimesFactor { factor }, row);
}

/// e^x, exact to one unit in the last place. 0 where it would be below the smallest normal number; NaN stays NaN.
/// Source: the reduction and polynomial of Cephes' `expf` (Moshier).
#[inline(always)]
fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // Adding `round` rounds to an integer, which then stands in the lowest bits.
    let round = simd.splat_f32s(12_582_912.0); // 1.5 * 2^23
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(LOG2_E), round);
    let n = simd.sub_f32s(shifted, round);
    let mut r = x;
    const PARTS_OF_LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    unroll!(i of 0 1 < 2, { r = simd.mul_add_e_f32s(n, simd.splat_f32s(-PARTS_OF_LN_2[i]), r); });
    const COEFFICIENTS: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    let mut p = simd.splat_f32s(COEFFICIENTS[0]);
    unroll!(i of 1 2 3 4 5 < 6, { p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(COEFFICIENTS[i])); });
    let y = simd.add_f32s(simd.mul_add_e_f32s(p, simd.mul_f32s(r, r), r), simd.splat_f32s(1.0));
    // The shift drops the bits of `round` itself.
    let n = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    let power = simd.transmute_f32s_u32s(simd.add_u32s(n, simd.splat_u32s(1f32.to_bits())));
    let y = simd.mul_f32s(y, power);
    let too_low = simd.less_than_f32s(x, simd.splat_f32s(-87.3));
    let y = simd.select_f32s(too_low, simd.splat_f32s(0.0), y);
    let too_high = simd.greater_than_f32s(x, simd.splat_f32s(88.3));
    simd.select_f32s(too_high, simd.splat_f32s(f32::INFINITY), y)
}

/// `x sigmoid(-y)`.
#[inline(always)]
fn times_sigmoid<S: Simd>(simd: S, x: S::f32s, minus_y: S::f32s) -> S::f32s {
    simd.div_f32s(x, simd.add_f32s(simd.splat_f32s(1.0), exp(simd, minus_y)))
}

/// The activation function of x.
#[derive(Clone, Copy)]
pub(crate) struct Activated(pub Activation);

impl Term<1> for Activated {
    #[inline(always)]
    fn of<S: Simd>(self, simd: S, [x]: [S::f32s; 1]) -> S::f32s {
        activate(simd, self.0, x)
    }
}

/// The activation function of `a + b`.
#[derive(Clone, Copy)]
pub(crate) struct ActivatedSum(pub Activation);

impl Term<2> for ActivatedSum {
    #[inline(always)]
    fn of<S: Simd>(self, simd: S, [a, b]: [S::f32s; 2]) -> S::f32s {
        activate(simd, self.0, simd.add_f32s(a, b))
    }
}

/// The derivative of the activation function at x, times dy.
#[derive(Clone, Copy)]
struct DerivativeTimes(Activation);

impl Term<2> for DerivativeTimes {
    #[inline(always)]
    fn of<S: Simd>(self, simd: S, [x, dy]: [S::f32s; 2]) -> S::f32s {
        simd.mul_f32s(slope(simd, self.0, x), dy)
    }
}

/// `x sigmoid(2u)` equals `0.5 x (1 + tanh u)` but has no cancellation where tanh u is near -1. `erfc` avoids the same
/// cancellation of `1 + erf`.
#[inline(always)]
fn activate<S: Simd>(simd: S, f: Activation, x: S::f32s) -> S::f32s {
    match f {
        Activation::GeluTanh => {
            const MINUS_2U: f32 = -2.0 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
            let (linear, cubic) = (simd.splat_f32s(MINUS_2U), simd.splat_f32s(MINUS_2U * 0.044_715));
            times_sigmoid(simd, x, simd.mul_f32s(x, simd.mul_add_e_f32s(simd.mul_f32s(x, x), cubic, linear)))
        }
        Activation::GeluErf => {
            let mut x = x;
            let lanes: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut x));
            lanes.iter_mut().for_each(|x| *x *= 0.5 * libm::erfcf(-*x * FRAC_1_SQRT_2));
            x
        }
        // `max` would turn NaN into 0.
        Activation::Relu => {
            let zero = simd.splat_f32s(0.0);
            simd.select_f32s(simd.less_than_f32s(x, zero), zero, x)
        }
        Activation::Silu => times_sigmoid(simd, x, simd.neg_f32s(x)),
        Activation::QuickGelu => times_sigmoid(simd, x, simd.mul_f32s(x, simd.splat_f32s(-1.702))),
    }
}

/// `s(y) + x y' s(y) s(-y)`, s being the sigmoid: the derivative of `x s(y)`.
#[inline(always)]
fn slope_of_sigmoid<S: Simd>(simd: S, x: S::f32s, y: S::f32s, slope_of_y: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    let e = exp(simd, simd.neg_f32s(y));
    let s = simd.div_f32s(one, simd.add_f32s(one, e));
    // s(-y) is e^-y s(y), and 1 where e^-y is infinite.
    let finite = simd.less_than_f32s(e, simd.splat_f32s(f32::INFINITY));
    let other = simd.select_f32s(finite, simd.mul_f32s(e, s), one);
    simd.mul_f32s(s, simd.mul_add_e_f32s(simd.mul_f32s(x, slope_of_y), other, one))
}

/// The derivative of [`activate`].
#[inline(always)]
fn slope<S: Simd>(simd: S, f: Activation, x: S::f32s) -> S::f32s {
    match f {
        Activation::GeluTanh => {
            const LINEAR: f32 = 2.0 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
            // Beyond 15 the slope is 0 or 1, and x^3 stays finite within. `min` and `max` would lose NaN.
            let (low, high) = (simd.splat_f32s(-15.0), simd.splat_f32s(15.0));
            let x = simd.select_f32s(simd.less_than_f32s(x, low), low, x);
            let x = simd.select_f32s(simd.greater_than_f32s(x, high), high, x);
            let (linear, squares) = (simd.splat_f32s(LINEAR), simd.mul_f32s(x, x));
            let y = simd.mul_f32s(x, simd.mul_add_e_f32s(squares, simd.splat_f32s(LINEAR * 0.044_715), linear));
            let of_y = simd.mul_add_e_f32s(squares, simd.splat_f32s(LINEAR * 3.0 * 0.044_715), linear);
            slope_of_sigmoid(simd, x, y, of_y)
        }
        Activation::GeluErf => {
            const DENSITY: f32 = 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
            let half_square = simd.mul_f32s(simd.mul_f32s(x, x), simd.splat_f32s(-0.5));
            let density = simd.mul_f32s(exp(simd, half_square), simd.splat_f32s(DENSITY));
            let mut below = x;
            let lanes: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut below));
            lanes.iter_mut().for_each(|x| *x = 0.5 * libm::erfcf(-*x * FRAC_1_SQRT_2));
            // Where the density is 0, x may be so large that its square is infinite.
            let nothing = simd.less_than_f32s(half_square, simd.splat_f32s(-87.3));
            simd.select_f32s(nothing, below, simd.mul_add_e_f32s(x, density, below))
        }
        Activation::Relu => {
            let zero = simd.splat_f32s(0.0);
            simd.select_f32s(simd.greater_than_f32s(x, zero), simd.splat_f32s(1.0), zero)
        }
        Activation::Silu => slope_of_sigmoid(simd, x, x, simd.splat_f32s(1.0)),
        Activation::QuickGelu => {
            let factor = simd.splat_f32s(1.702);
            slope_of_sigmoid(simd, x, simd.mul_f32s(x, factor), factor)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;

    /// [`exp`] of many values.
    struct Exp<'a>(&'a mut [f32]);

    impl WithSimd for Exp<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (whole, rest) = S::as_mut_simd_f32s(self.0);
            assert!(rest.is_empty());
            for x in whole {
                *x = exp(simd, *x);
            }
        }
    }

    /// The largest error of a million values is 0.69 * 2^-23. With 0.1666 in place of 1/6 it is 33 * 2^-23.
    #[test]
    fn exp_is_exact_to_the_last_place() {
        for cpu in Cpu::all() {
            let exp = |mut values: Vec<f32>| {
                cpu.workers.arch.dispatch(Exp(&mut values));
                values
            };
            let unit = 2f64.powi(-23);
            let x: Vec<f32> = (0..1_000_000).map(|i| -87.2 + 175.4 * i as f32 / 1e6).collect();
            let worst = x.iter().zip(exp(x.clone())).map(|(x, y)| {
                let want = f64::from(*x).exp();
                (f64::from(y) - want).abs() / (unit * want)
            });
            let worst = worst.fold(0.0, f64::max);
            assert!(worst <= 1.0, "{worst}");
            let some = [0.0, MASKED, f32::NEG_INFINITY, 1e3].repeat(4);
            assert_eq!(exp(some), [1.0, 0.0, 0.0, f32::INFINITY].repeat(4));
            assert!(exp(vec![f32::NAN; 16]).iter().all(|y| y.is_nan()));
        }
    }
}
