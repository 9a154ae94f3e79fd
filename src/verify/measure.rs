//! The error of a result: per element for single operations, per token for whole runs. For both, a NaN, or an infinity
//! in the wrong place, is an infinite error. Read next: `hooks.rs`.

use crate::hooks::site::Site;
use ndarray::{ArrayViewD, Axis as NdAxis};

/// The worst element of a comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Off {
    /// Its error divided by its tolerance; more than 1 is a mismatch.
    pub share: f64,
    /// Its index.
    pub at: usize,
    /// Its value.
    pub got: f32,
    /// Its expected value.
    pub want: f32,
}

/// The element with the largest `|got - want| / (atol + rtol |want|)`. If `want` is NaN or infinite, `got` must be the
/// same.
pub fn elements(got: &[f32], want: &[f32], atol: f64, rtol: f64) -> Off {
    assert_eq!(got.len(), want.len(), "results of one operation have one shape");
    let mut worst = Off { share: 0.0, at: 0, got: 0.0, want: 0.0 };
    for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
        let share = match (got.is_finite(), want.is_finite()) {
            (true, true) => {
                let off = (f64::from(got) - f64::from(want)).abs();
                if off == 0.0 { 0.0 } else { off / (atol + rtol * f64::from(want).abs()) }
            }
            _ if got == want || got.is_nan() && want.is_nan() => 0.0,
            _ => f64::INFINITY,
        };
        if share > worst.share {
            worst = Off { share, at, got, want };
        }
    }
    worst
}

/// The token at which two runs differ most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenError {
    /// `||got - want|| / ||want||` at that token.
    pub error: f64,
    /// The text.
    pub text: usize,
    /// The position in it.
    pub position: usize,
}

/// The largest relative error over tokens: max `||got - want|| / ||want||`. The norms cover all values of the hook at a
/// token (for scores and patterns: its query row in every head). Masked scores must be -inf on both sides, padding
/// zero. The same measure as in tools/goldens/compare.py.
pub fn tokens<T: Copy + Into<f64>>(site: Site, got: ArrayViewD<'_, f32>, want: ArrayViewD<'_, T>) -> TokenError {
    assert_eq!(got.shape(), want.shape(), "{site}");
    let token_axis = 1 + site.pos_axis();
    let mut worst = TokenError::default();
    for (text, (got, want)) in got.axis_iter(NdAxis(0)).zip(want.axis_iter(NdAxis(0))).enumerate() {
        let rows = got.axis_iter(NdAxis(token_axis - 1)).zip(want.axis_iter(NdAxis(token_axis - 1)));
        for (position, (got, want)) in rows.enumerate() {
            let (mut apart, mut size) = (0.0, 0.0);
            for (g, w) in got.iter().zip(&want) {
                let (g, w) = (f64::from(*g), (*w).into());
                if w == f64::NEG_INFINITY && g == f64::NEG_INFINITY {
                    continue;
                }
                apart += (g - w) * (g - w);
                size += w * w;
            }
            // A NaN or an infinity on either side makes `apart` NaN or infinite, which counts as an infinite error.
            let error = if apart.is_finite() {
                apart.sqrt() / if size == 0.0 { 1.0 } else { size.sqrt() }
            } else {
                f64::INFINITY
            };
            if error > worst.error {
                worst = TokenError { error, text, position };
            }
        }
    }
    worst
}
