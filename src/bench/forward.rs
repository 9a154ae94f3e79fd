//! Whole runs of a model: nothing tapped, the hidden states, everything. Owns what those three are, and their timing. What is
//! tapped is brought to the host and kept in memory, as a library's caller has it.

use super::time::{Budget, Timing, median};
use super::{FEW, LeftOut, TOKENS, memory};
use crate::batch::Batch;
use crate::config::Config;
use crate::device::probe::Measured;
use crate::hooks::capture::Capture;
use crate::hooks::layout::Layout;
use crate::hooks::request::{Hooks, Select};
use crate::hooks::site::Site;
use crate::model::forward::{self, Run, RunError};
use crate::model::params::Params;
use std::sync::Arc;
use std::time::Instant;

/// Seconds for all of them,
const BUDGET: f64 = 24.0;

/// and for one.
const LONGEST: f64 = 1.8;

/// Bytes that a run may bring to the host.
const MOST_BYTES: usize = 1 << 30;

/// What a run is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taps {
    /// The last token's last hidden state: the least that makes a run go through all blocks.
    None,
    /// The `n_layer + 1` hidden states that transformers gives: what goes into the first block, what comes out of each but the
    /// last, and of the final LayerNorm.
    HiddenStates,
    /// Every hook, the logits with them. Attention then runs in steps, and the unembedding runs at all.
    Everything,
}

impl Taps {
    /// From little to much.
    pub const ALL: [Taps; 3] = [Taps::None, Taps::HiddenStates, Taps::Everything];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Taps::None => "none",
            Taps::HiddenStates => "hidden states",
            Taps::Everything => "everything",
        }
    }

    /// The request, for texts of these lengths.
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
    /// What was tapped.
    pub taps: Taps,
    /// Length of the one text.
    pub tokens: usize,
    /// How long it takes.
    pub timing: Timing,
    /// How much longer than with nothing tapped: the median over batches of both in turn.
    pub times_untapped: f64,
    /// Bytes brought to the host.
    pub bytes: usize,
    /// The most memory that the process had during these runs, weights and all; `None` where the system does not say.
    pub peak: Option<u64>,
}

/// `n` token ids, the same every time.
pub fn ids(n: usize, config: &Config) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + 13) % config.vocab_size) as u32).collect()
}

/// The numbers of tokens that a model has positions for.
fn tokens(config: &Config) -> impl Iterator<Item = usize> {
    TOKENS.into_iter().filter(|tokens| *tokens <= config.n_positions)
}

/// How many rows there are.
pub(super) fn count(config: &Config) -> usize {
    tokens(config).count() * Taps::ALL.len()
}

/// Times all of them; `step` is told after each.
pub(super) async fn measure<D: Measured>(
    dev: &D,
    params: &Params<D>,
    left_out: &mut Vec<LeftOut>,
    step: &mut dyn FnMut(),
) -> Result<Vec<ForwardRow>, RunError> {
    let config = params.config();
    let (mut budget, mut rows) = (Budget::new(BUDGET, LONGEST, left_out), Vec::new());
    // Seconds for each token, of each kind of run.
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
            // Brings the weights to the device; the second time they are packed.
            run(&untapped, 2).await?;
        }
        for (i, taps) in Taps::ALL.into_iter().enumerate() {
            step();
            let row = format!("run of {tokens} tokens, {} tapped", taps.name());
            let hooks = taps.hooks(config, &batch);
            let numbers = |(_, shape): (Site, Vec<usize>)| shape.iter().product::<usize>();
            let bytes = 4 * hooks.shapes(&batch).into_iter().map(numbers).sum::<usize>();
            if bytes > MOST_BYTES {
                budget.leave_out(&row, format!("it brings {:.2} GB to the host", 1e-9 * bytes as f64));
                continue;
            }
            if let Err(e) = forward::check_size(dev, config, &batch, &hooks) {
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
                // The first batch was for warming up.
                let times_untapped = median(&mut times_untapped[1..]);
                rows.push(ForwardRow { taps, tokens, timing, times_untapped, bytes, peak: memory::peak() });
            }
        }
    }
    Ok(rows)
}
