//! Whole runs of a model, which capture nothing, the hidden states, or everything. Owns the definition of these three
//! kinds, and their timing. The captured values are copied to the host and stay in memory, as for a caller of the
//! library.
//! Read next: `generate.rs`, for runs with a cache of keys and values.

use super::time::{Budget, Timing, median};
use super::{FEW, LeftOut, TOKENS, memory};
use crate::batch::Batch;
use crate::config::Config;
use crate::device::Counters;
use crate::device::probe::Measured;
use crate::hooks::capture::Capture;
use crate::hooks::layout::Layout;
use crate::hooks::request::{Hooks, Select};
use crate::hooks::site::Site;
use crate::model::forward::{self, Run, RunError};
use crate::model::params::Params;
use std::sync::Arc;
use std::time::Instant;

/// Seconds for all runs.
const BUDGET: f64 = 24.0;

/// The most seconds for one run.
const LONGEST: f64 = 1.8;

/// The most bytes that a run may copy to the host.
const MOST_BYTES: usize = 1 << 30;

/// What a run captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taps {
    /// Only the last token's last hidden state, so that the run goes through all blocks.
    None,
    /// The `n_layer + 1` hidden states that transformers returns: the input of the first block, the outputs of all
    /// blocks but the last, and the output of the final LayerNorm.
    HiddenStates,
    /// Every hook, including the logits. Only this kind computes logits, and stores scores and patterns of attention.
    Everything,
}

impl Taps {
    /// All kinds, from the fewest captured values to the most.
    pub const ALL: [Taps; 3] = [Taps::None, Taps::HiddenStates, Taps::Everything];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Taps::None => "none",
            Taps::HiddenStates => "hidden states",
            Taps::Everything => "everything",
        }
    }

    /// The request for the texts of `batch`.
    pub fn hooks(self, config: &Config, batch: &Batch) -> Hooks {
        let all = |sites: Vec<Site>| Hooks::whole(config, &sites);
        match self {
            Taps::None => {
                let mut hooks = Hooks::new(config);
                let last = batch.texts().iter().map(|text| vec![text.len() - 1]).collect();
                hooks.tap_at(Site::LnFinalOut, Select::all().positions(last)).expect("a site of every model");
                hooks
            }
            Taps::HiddenStates => {
                let blocks = (0..config.n_layer - 1).map(Site::ResidPost);
                all([Site::ResidPre(0)].into_iter().chain(blocks).chain([Site::LnFinalOut]).collect())
            }
            Taps::Everything => all(Site::all(config.n_layer).collect()),
        }
    }
}

/// One kind of run at one number of tokens.
#[derive(Clone, Debug)]
pub struct ForwardRow {
    /// What the run captures.
    pub taps: Taps,
    /// Length of the text in tokens.
    pub tokens: usize,
    /// The time of one run.
    pub timing: Timing,
    /// The time divided by that of a run with [`Taps::None`]: the median over batches that time both in turn.
    pub times_untapped: f64,
    /// Bytes copied to the host.
    pub bytes: usize,
    /// What one run records and submits.
    pub counters: Counters,
    /// The peak memory of the process during these runs in bytes, weights included. `None` if the system does not
    /// report it.
    pub peak: Option<u64>,
}

/// `n` token ids. They are the same in every call.
pub fn ids(n: usize, config: &Config) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + 13) % config.vocab_size) as u32).collect()
}

/// The numbers of tokens for which the model has enough positions.
fn tokens(config: &Config) -> impl Iterator<Item = usize> {
    TOKENS.into_iter().filter(|tokens| *tokens <= config.n_positions)
}

/// The number of rows.
pub(super) fn count(config: &Config) -> usize {
    tokens(config).count() * Taps::ALL.len()
}

/// Times all rows. Calls `step` before each.
pub(super) async fn measure<D: Measured>(
    dev: &D,
    params: &Params<D>,
    left_out: &mut Vec<LeftOut>,
    step: &mut dyn FnMut(),
) -> Result<Vec<ForwardRow>, RunError> {
    let config = params.config();
    let (mut budget, mut rows) = (Budget::new(BUDGET, LONGEST, left_out), Vec::new());
    // Seconds per token, for each kind of run.
    let mut costs = [0.0f64; Taps::ALL.len()];
    for (n, tokens) in tokens(config).enumerate() {
        let batch = Batch::new(&[ids(tokens, config)], config).expect("ids of this vocabulary");
        let run = async |hooks: &Hooks, runs: usize| {
            let begin = Instant::now();
            for _ in 0..runs {
                let layout = Layout::new(hooks, &batch)?;
                let mut capture = Capture::unchecked(hooks, &batch, Arc::downgrade(dev.host_memory()))?;
                forward::forward(dev, params, Run::new(&layout, 0..1), &mut capture, None).await?;
            }
            Ok::<f64, RunError>(begin.elapsed().as_secs_f64())
        };
        let untapped = Taps::None.hooks(config, &batch);
        if n == 0 {
            // The first run uploads the weights. The second one packs them on the device `cpu`.
            run(&untapped, 2).await?;
        }
        for (i, taps) in Taps::ALL.into_iter().enumerate() {
            step();
            let row = format!("run of {tokens} tokens, {} tapped", taps.name());
            let hooks = taps.hooks(config, &batch);
            let elements = |(_, shape): (Site, Vec<usize>)| shape.iter().product::<usize>();
            let bytes = 4 * hooks.shapes(&batch).into_iter().map(elements).sum::<usize>();
            if bytes > MOST_BYTES {
                budget.leave_out(&row, format!("it copies {:.2} GB to the host", 1e-9 * bytes as f64));
                continue;
            }
            if let Err(e) = forward::check_size(dev, params, &batch, &hooks) {
                budget.leave_out(&row, e.to_string());
                continue;
            }
            memory::forget_peak();
            let mut times_untapped = Vec::new();
            let both = async |runs: usize| {
                let alone = if taps == Taps::None { None } else { Some(run(&untapped, runs).await?) };
                let tapped = run(&hooks, runs).await?;
                times_untapped.push(tapped / alone.unwrap_or(tapped));
                Ok::<f64, RunError>(tapped)
            };
            let expected = if tokens > FEW { costs[i].max(costs[0]) * tokens as f64 } else { 0.0 };
            let timed = budget.time(&row, expected, both).await?;
            costs[i] = timed.map_or_else(|once| once, |timing| timing.seconds) / tokens as f64;
            if let Ok(timing) = timed {
                dev.take_counters();
                run(&hooks, 1).await?;
                let counters = dev.take_counters();
                // The first batch was the warm-up.
                let times_untapped = median(&mut times_untapped[1..]);
                let peak = memory::peak();
                rows.push(ForwardRow { taps, tokens, timing, times_untapped, bytes, counters, peak });
            }
        }
    }
    Ok(rows)
}

/// The dispatches of one kernel in a run.
#[derive(Clone, Debug)]
pub struct KernelTime {
    /// Length of the text in tokens.
    pub tokens: usize,
    /// The kernel.
    pub kernel: &'static str,
    /// The number of dispatches.
    pub dispatches: usize,
    /// Their seconds together, each in a compute pass of its own.
    pub seconds: f64,
}

/// The numbers of tokens for which [`measure_kernels`] has rows.
const KERNEL_TOKENS: [usize; 3] = [1, 64, 1024];

/// Times each kernel of a run with hidden states and the last token's logits. Empty where the device has no clock for
/// that.
pub(super) async fn measure_kernels<D: Measured>(dev: &D, params: &Params<D>) -> Result<Vec<KernelTime>, RunError> {
    let config = params.config();
    let mut rows: Vec<KernelTime> = Vec::new();
    for tokens in KERNEL_TOKENS.into_iter().filter(|tokens| *tokens <= config.n_positions) {
        if dev.info().software && tokens > FEW {
            continue;
        }
        let batch = Batch::new(&[ids(tokens, config)], config).expect("ids of this vocabulary");
        let mut hooks = Hooks::new(config);
        let last = Select::all().positions(vec![vec![tokens - 1]]);
        hooks.tap_at(Site::Unembed, last).expect("a site of every model");
        let layout = Layout::new(&hooks, &batch)?;
        let mut ended = Ok(());
        let mut times = Vec::new();
        // The first run is the warm-up.
        for _ in 0..2 {
            let run = async || {
                let mut capture = Capture::unchecked(&hooks, &batch, Arc::downgrade(dev.host_memory()))?;
                forward::forward(dev, params, Run::new(&layout, 0..1), &mut capture, None).await
            };
            times = dev.seconds_of_kernels(async || ended = run().await).await?;
            std::mem::replace(&mut ended, Ok(()))?;
        }
        for (kernel, seconds) in times {
            match rows.iter_mut().find(|row| row.tokens == tokens && row.kernel == kernel) {
                Some(row) => (row.dispatches, row.seconds) = (row.dispatches + 1, row.seconds + seconds),
                None => rows.push(KernelTime { tokens, kernel, dispatches: 1, seconds }),
            }
        }
    }
    Ok(rows)
}
