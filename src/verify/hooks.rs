//! Whole runs on real text: compares every hook of a device with the reference, at the token with the largest error.
//! Owns the bound above which a hook is a mismatch.
//!
//! Every batch runs twice: once with all hooks tapped, so that attention and LayerNorm run in steps, and once with only
//! the hooks that split no fused kernel. Read next: `measure.rs`, for the error.

use super::measure::{self, TokenError};
use super::{Stage, Tell};
use crate::batch::Batch;
use crate::config::Config;
use crate::device::Device;
use crate::device::reference::Reference;
use crate::device::rounded_reference::RoundedReference;
use crate::hooks::capture::Capture;
use crate::hooks::layout::Layout;
use crate::hooks::request::Hooks;
use crate::hooks::site::Site;
use crate::model::forward::{self, Run, RunError};
use crate::model::params::Params;
use std::sync::Arc;

/// The bound of the numeric policy, relative to a token's norm. An error up to it is rounding in another order, for
/// every hook.
pub const ROUNDING: f64 = 4e-6;

/// A hook's error may be this many times PyTorch's own f32 error.
pub const TIMES_TORCH: f64 = 4.0;

/// When PyTorch's error is unknown, a hook's error may be this many times the error of exact operations with results
/// rounded to f32. PyTorch's own error is up to 4.6 times that on the fixtures, and [`TIMES_TORCH`] times that is
/// allowed.
pub const TIMES_ROUNDED: f64 = 16.0;

/// The result for one hook.
#[derive(Clone, Copy, Debug)]
pub struct HookRow {
    /// The hook.
    pub site: Site,
    /// The worst relative error over tokens, and where.
    pub worst: TokenError,
    /// The batch that `worst` counts its texts in.
    pub batch: usize,
    /// The same error for a run with exact operations whose results are rounded to f32.
    pub rounded: f64,
    /// The same error for PyTorch's f32 run on a CPU, on this model or on the demo: see
    /// [`super::Verification::torch_is_of_this_model`].
    pub torch: Option<f64>,
    /// How large `worst` may be.
    pub allowed: f64,
}

impl HookRow {
    /// True when the error is within the bound.
    pub fn ok(&self) -> bool {
        self.worst.error <= self.allowed
    }

    /// Sets the bound: by [`TIMES_TORCH`] if PyTorch's error was measured on this model, else by [`TIMES_ROUNDED`], but
    /// at least [`ROUNDING`].
    pub(super) fn judge(&mut self, by_torch: bool) {
        self.allowed = match self.torch.filter(|_| by_torch) {
            Some(torch) => ROUNDING.max(TIMES_TORCH * torch),
            None => ROUNDING.max(TIMES_ROUNDED * self.rounded),
        };
    }
}

/// True for hooks whose taps make a fused kernel run in steps.
fn splits(site: Site) -> bool {
    use Site::{AttnOut, AttnScores, MlpOut, MlpPre, Pattern};
    use Site::{Ln1Normalized, Ln1Scale, Ln2Normalized, Ln2Scale, LnFinalNormalized, LnFinalScale};
    matches!(site, AttnScores(_) | Pattern(_) | Site::Result(_) | AttnOut(_) | MlpPre(_) | MlpOut(_))
        || matches!(site, Ln1Scale(_) | Ln1Normalized(_) | Ln2Scale(_) | Ln2Normalized(_))
        || matches!(site, LnFinalScale | LnFinalNormalized)
}

/// The two requests: all hooks, and all hooks that split no fused kernel.
pub(super) fn both_ways(config: &Config) -> [Hooks; 2] {
    let all: Vec<Site> = Site::all(config.n_layer).collect();
    let fused: Vec<Site> = all.iter().copied().filter(|site| !splits(*site)).collect();
    [Hooks::whole(config, &all), Hooks::whole(config, &fused)]
}

/// One run over a whole batch.
pub(super) async fn run<D: Device>(
    dev: &D,
    params: &Params<D>,
    batch: &Batch,
    hooks: &Hooks,
) -> Result<Capture, RunError> {
    let layout = Layout::new(hooks, batch)?;
    let mut capture = Capture::unchecked(hooks, batch, Arc::downgrade(dev.host_memory()))?;
    forward::forward(dev, params, Run::new(&layout, 0..batch.texts().len()), &mut capture, None).await?;
    Ok(capture)
}

/// Runs every request on a device. The weights are loaded for these runs and freed afterwards, because the next device
/// needs as much memory.
pub(super) async fn runs<D: Device, E: Device>(
    dev: &E,
    params: &Params<D>,
    asked: &[(Batch, Hooks)],
    tell: &dyn Fn(usize),
) -> Result<Vec<Capture>, RunError> {
    let weights = params.for_device();
    let mut captures = Vec::new();
    for (batch, hooks) in asked {
        tell(captures.len());
        captures.push(run(dev, &weights, batch, hooks).await?);
    }
    Ok(captures)
}

/// Checks every hook of the model on all batches.
///
/// # Errors
/// [`RunError`] when the device fails.
pub async fn check<D: Device>(
    dev: &D,
    params: &Params<D>,
    batches: &[Batch],
    tell: Tell<'_>,
) -> Result<Vec<HookRow>, RunError> {
    let [all, fused] = both_ways(params.config());
    let asked: Vec<_> = batches.iter().map(|batch| (batch.clone(), all.clone())).collect();
    let said = |done: usize| tell(Stage::Hooks, done, 4 * batches.len());
    let expected = runs(&Reference::default(), params, &asked, &said).await?;
    let floor = runs(&RoundedReference::default(), params, &asked, &|done| said(batches.len() + done)).await?;
    let mut rows: Vec<HookRow> = Vec::new();
    for (n, batch) in batches.iter().enumerate() {
        said(2 * (batches.len() + n));
        let got = [run(dev, params, batch, &all).await?, run(dev, params, batch, &fused).await?];
        for (at, (site, want)) in expected[n].iter().enumerate() {
            let error = |capture: &Capture| capture.get(site).map(|got| measure::tokens(site, got, want.view()));
            if rows.len() == at {
                let worst = TokenError::default();
                rows.push(HookRow { site, worst, batch: n, rounded: 0.0, torch: None, allowed: ROUNDING });
            }
            let row = &mut rows[at];
            row.rounded = row.rounded.max(error(&floor[n]).map_or(0.0, |e| e.error));
            for worst in got.iter().filter_map(error) {
                if worst.error > row.worst.error {
                    (row.worst, row.batch) = (worst, n);
                }
            }
        }
    }
    said(4 * batches.len());
    Ok(rows)
}
