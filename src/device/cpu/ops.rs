//! What the `cpu` device does row by row: LayerNorm, softmax, activation functions. Plain loops, written so that the compiler
//! makes vectors of them: sums in [`LANES`] lanes, no calls, no early exits. All of them are forced into functions that are
//! compiled for each kind of processor (`pulp`), which a closure would not be.

use crate::config::Activation;
use crate::device::MASKED;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LOG2_E};

/// Below this many values a loop is done before a second thread would have woken up.
const WORTH_SHARING: usize = 1 << 15;

/// Partial sums side by side: the error of a sum grows with n / LANES. The same on every processor, so that they agree.
const LANES: usize = 16;

/// Makes one row of a result from one row of a tensor.
pub trait RowOp: Copy + Sync {
    /// `i` is the row's number. What `y` holds before is not defined.
    fn row(self, i: usize, x: &[f32], y: &mut [f32]);
}

/// Does `op` for all rows, by all threads where that pays.
pub fn map_rows(arch: Arch, x: &[f32], x_cols: usize, y: &mut [f32], y_cols: usize, op: impl RowOp) {
    let each = if x.len() < WORTH_SHARING {
        x.len() / x_cols
    } else {
        (x.len() / x_cols).div_ceil(4 * rayon::current_num_threads())
    };
    let some = |(n, (x, y)): (usize, (&[f32], &mut [f32]))| {
        arch.dispatch(SomeRows { first: n * each, x, x_cols, y, y_cols, op })
    };
    match x.len() < WORTH_SHARING {
        true => some((0, (x, y))),
        false => x.par_chunks(each * x_cols).zip(y.par_chunks_mut(each * y_cols)).enumerate().for_each(some),
    }
}

/// Some rows of [`map_rows`].
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
    fn with_simd<S: Simd>(self, _: S) {
        let rows = self.x.chunks_exact(self.x_cols).zip(self.y.chunks_exact_mut(self.y_cols));
        for (i, (x, y)) in rows.enumerate() {
            self.op.row(self.first + i, x, y);
        }
    }
}

/// `(x - mean) / scale * gain + bias`.
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    pub gain: &'a [f32],
    pub bias: &'a [f32],
    pub eps: f64,
}

impl RowOp for LayerNorm<'_> {
    #[inline(always)]
    fn row(self, _: usize, x: &[f32], y: &mut [f32]) {
        let (mean, scale) = mean_and_scale(x, self.eps);
        for (((y, x), g), b) in y.iter_mut().zip(x).zip(self.gain).zip(self.bias) {
            *y = (x - mean) / scale * g + b;
        }
    }
}

/// `sqrt(var + eps)`.
#[derive(Clone, Copy)]
pub struct Scale {
    pub eps: f64,
}

impl RowOp for Scale {
    #[inline(always)]
    fn row(self, _: usize, x: &[f32], y: &mut [f32]) {
        y[0] = mean_and_scale(x, self.eps).1;
    }
}

/// `(x - mean) / scale`, a scale for every row.
#[derive(Clone, Copy)]
pub struct Normalize<'a> {
    pub scales: &'a [f32],
}

impl RowOp for Normalize<'_> {
    #[inline(always)]
    fn row(self, i: usize, x: &[f32], y: &mut [f32]) {
        let (mean, scale) = (mean_and_scale(x, 0.0).0, self.scales[i]);
        y.iter_mut().zip(x).for_each(|(y, x)| *y = (x - mean) / scale);
    }
}

/// `x * gain + bias`.
#[derive(Clone, Copy)]
pub struct GainBias<'a> {
    pub gain: &'a [f32],
    pub bias: &'a [f32],
}

impl RowOp for GainBias<'_> {
    #[inline(always)]
    fn row(self, _: usize, x: &[f32], y: &mut [f32]) {
        for (((y, x), g), b) in y.iter_mut().zip(x).zip(self.gain).zip(self.bias) {
            *y = x * g + b;
        }
    }
}

/// Parts as wide as the bias added up, one after the other, and the bias last.
#[derive(Clone, Copy)]
pub struct SumParts<'a> {
    pub bias: &'a [f32],
}

impl RowOp for SumParts<'_> {
    #[inline(always)]
    fn row(self, _: usize, x: &[f32], y: &mut [f32]) {
        y.fill(0.0);
        for part in x.chunks_exact(self.bias.len()) {
            y.iter_mut().zip(part).for_each(|(y, p)| *y += p);
        }
        y.iter_mut().zip(self.bias).for_each(|(y, b)| *y += b);
    }
}

/// The softmax of a row.
#[derive(Clone, Copy)]
pub struct SoftmaxOf;

impl RowOp for SoftmaxOf {
    #[inline(always)]
    fn row(self, _: usize, x: &[f32], y: &mut [f32]) {
        y.copy_from_slice(x);
        softmax(y);
    }
}

impl RowOp for Activation {
    #[inline(always)]
    fn row(self, _: usize, x: &[f32], y: &mut [f32]) {
        y.copy_from_slice(x);
        activation(self, y);
    }
}

/// Softmax of one row in place.
pub struct Softmax<'a>(pub &'a mut [f32]);

impl WithSimd for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        softmax(self.0);
    }
}

/// One row of scores in place: those that the query may see are scaled, the others masked.
pub struct ScaleAndMask<'a> {
    pub row: &'a mut [f32],
    pub n_seen: usize,
    pub scale: f32,
}

impl WithSimd for ScaleAndMask<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (seen, masked) = self.row.split_at_mut(self.n_seen);
        seen.iter_mut().for_each(|s| *s *= self.scale);
        masked.fill(MASKED);
    }
}

#[inline(always)]
fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        lanes.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += f(*x));
    }
    lanes.iter_mut().zip(rest).for_each(|(sum, x)| *sum += f(*x));
    lanes.iter().sum()
}

/// The scalar product of two rows.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((whole_a, rest_a), (whole_b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in whole_a.iter().zip(whole_b) {
        lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    lanes.iter_mut().zip(rest_a.iter().zip(rest_b)).for_each(|(sum, (a, b))| *sum += a * b);
    lanes.iter().sum()
}

/// Mean and `sqrt(var + eps)` of a row; the variance around the mean, in a second pass, as its formula says.
#[inline(always)]
fn mean_and_scale(row: &[f32], eps: f64) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = sum(row, |x| x) / n;
    let variance = sum(row, |x| (x - mean) * (x - mean)) / n;
    (mean, (variance + eps as f32).sqrt())
}

/// Masked entries become 0 and change no bit of the others.
#[inline(always)]
fn softmax(row: &mut [f32]) {
    let highest = max(row);
    row.iter_mut().for_each(|s| *s = exp(*s - highest));
    let total = sum(row, |x| x);
    row.iter_mut().for_each(|s| *s /= total);
}

/// The largest; NaN where there is one.
#[inline(always)]
fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if a > b || a.is_nan() { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        lanes.iter_mut().zip(chunk).for_each(|(most, x)| *most = larger(*most, *x));
    }
    lanes.iter_mut().zip(rest).for_each(|(most, x)| *most = larger(*most, *x));
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// e^x, to one unit in the last place; 0 below the smallest normal number. NaN stays NaN.
/// Source: the reduction and polynomial of Cephes' `expf` (Moshier).
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding it rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + c;
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    let y = (p * r * r + r + 1.0) * power;
    let y = if x < -87.3 { 0.0 } else { y };
    if x > 88.3 { f32::INFINITY } else { y }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The activation function, in place. `x sigmoid(2u)` is `0.5 x (1 + tanh u)` without the cancellation near -1, and `erfc`
/// spares `1 + erf` the same.
#[inline(always)]
pub fn activation(f: Activation, values: &mut [f32]) {
    let values = values.iter_mut();
    match f {
        Activation::GeluTanh => values.for_each(|x| {
            *x *= sigmoid(2.0 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * (*x + 0.044_715 * *x * *x * *x));
        }),
        Activation::GeluErf => values.for_each(|x| *x *= 0.5 * libm::erfcf(-*x * FRAC_1_SQRT_2)),
        // Not `max`, which would turn NaN into 0.
        Activation::Relu => values.for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x }),
        Activation::Silu => values.for_each(|x| *x *= sigmoid(*x)),
        Activation::QuickGelu => values.for_each(|x| *x *= sigmoid(1.702 * *x)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worst of a million numbers is off by 0.68 of 2^-23; seen red: 33 with 0.1666 for 1/6.
    #[test]
    fn exp_is_exact_to_the_last_place() {
        let unit = 2f64.powi(-23);
        let worst = (0..1_000_000).map(|i| -87.2 + 175.4 * i as f32 / 1e6).map(|x| {
            let want = f64::from(x).exp();
            (f64::from(exp(x)) - want).abs() / (unit * want)
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= 1.0, "{worst}");
        assert_eq!([exp(0.0), exp(MASKED), exp(f32::NEG_INFINITY), exp(1e3)], [1.0, 0.0, 0.0, f32::INFINITY]);
        assert!(exp(f32::NAN).is_nan());
    }
}
