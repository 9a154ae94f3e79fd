//! Generation: a run of the prompt, and a run of one further token, for one or several texts, and of one token after a
//! long text. Owns these runs, their timing, and the least number of bytes that each must read, which is every weight
//! once, whatever the number of texts.
//! Read next: `src/analysis/generate.rs`, the generation that users run.

use super::time::{Budget, Timing};
use super::{LeftOut, forward};
use crate::batch::Batch;
use crate::config::Config;
use crate::device::{Counters, Device, Dtype};
use crate::hooks::capture::Sink;
use crate::hooks::layout::Layout;
use crate::hooks::request::Hooks;
use crate::hooks::site::Site;
use crate::model::checkpoint::Checkpoint;
use crate::model::forward::{KvCache, Run, RunError};
use crate::model::params::Params;
use ndarray::ArrayViewD;
use std::time::Instant;

/// Seconds for all rows.
const BUDGET: f64 = 12.0;

/// The most seconds for one run.
const LONGEST: f64 = 1.8;

/// Tokens of a prompt.
pub const PROMPT: usize = 16;

/// The numbers of texts that are generated together.
const TEXTS: [usize; 2] = [1, 8];

/// One kind of run of generation.
#[derive(Clone, Copy, Debug)]
pub struct GenerateRow {
    /// The number of texts.
    pub texts: usize,
    /// Positions of each text that were run before.
    pub before: usize,
    /// Tokens per text: those of the prompt, or one.
    pub tokens: usize,
    /// The time of one run, until the likeliest next token of every text is known.
    pub timing: Timing,
    /// What one run records and submits.
    pub counters: Counters,
    /// The least number of bytes of weights to read.
    pub bytes: u64,
}

/// The number of rows.
pub(super) fn count() -> usize {
    2 * TEXTS.len() + 1
}

/// A sink that drops its values.
struct Nowhere;

impl Sink for Nowhere {
    fn put(&mut self, _: Site, _: usize, _: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        Ok(())
    }
}

/// Bytes of the weights that every run reads, in this precision: all except the position embeddings, of which a run reads few rows.
pub(super) fn bytes_of_weights(checkpoint: &Checkpoint, weights: Option<Dtype>) -> u64 {
    let Config { n_positions, n_embd, .. } = *checkpoint.config();
    let all = checkpoint.parameters();
    let share = (n_positions * n_embd) as f64 / all as f64;
    let bytes = weights.map_or(checkpoint.file_bytes(), |dtype| (all * dtype.size()) as u64);
    (bytes as f64 * (1.0 - share)) as u64
}

/// Times all rows, whose runs read `bytes` of weights. Calls `step` before each.
pub(super) async fn measure<D: Device>(
    dev: &D,
    params: &Params<D>,
    bytes: u64,
    left_out: &mut Vec<LeftOut>,
    step: &mut dyn FnMut(),
) -> Result<Vec<GenerateRow>, RunError> {
    let config = params.config();
    let (mut budget, mut rows) = (Budget::new(BUDGET, LONGEST, left_out), Vec::new());
    let (prompt, long) = (PROMPT.min(config.n_positions - 1), config.n_positions - 1);
    for (texts, runs) in
        [(TEXTS[0], &[(0, prompt), (prompt, 1), (long, 1)][..]), (TEXTS[1], &[(0, prompt), (prompt, 1)][..])]
    {
        let mut cache = KvCache::new(dev, config, &vec![if texts == 1 { long + 1 } else { prompt + 1 }; texts]);
        let (mut filled, mut seconds_of_token) = (0, f64::INFINITY);
        for (first, tokens) in runs.iter().copied() {
            step();
            let ids = forward::ids(tokens, config);
            let batch = Batch::continued(&vec![&ids; texts], &vec![first; texts], config);
            let batch = batch.expect("ids of this vocabulary");
            let mut hooks = Hooks::new(config);
            hooks.argmax = true;
            let layout = Layout::new(&hooks, &batch)?;
            let row = format!("generation, {texts} texts, {tokens} tokens of each after {first}");
            if first > filled {
                let seconds = first as f64 * seconds_of_token;
                if seconds > LONGEST {
                    budget.leave_out(&row, format!("running the {first} tokens before it takes about {seconds:.1} s"));
                    continue;
                }
                let ids = forward::ids(first, config);
                let batch = Batch::continued(&vec![&ids; texts], &vec![0; texts], config);
                let batch = batch.expect("ids of this vocabulary");
                let layout = Layout::new(&hooks, &batch)?;
                let run = Run { cache: Some(&mut cache), ..Run::new(&layout, 0..texts) };
                crate::model::forward::forward(dev, params, run, &mut Nowhere, None).await?;
            }
            // Every run writes the same positions of the cache.
            let mut run = async |runs: usize| {
                let begin = Instant::now();
                for _ in 0..runs {
                    let run = Run { cache: Some(&mut cache), ..Run::new(&layout, 0..texts) };
                    crate::model::forward::forward(dev, params, run, &mut Nowhere, None).await?;
                }
                Ok::<f64, RunError>(begin.elapsed().as_secs_f64())
            };
            let timed = budget.time(&row, 0.0, &mut run).await?;
            filled = first + tokens;
            let seconds = timed.map_or_else(|once| once, |timing| timing.seconds);
            seconds_of_token = seconds_of_token.min(seconds / tokens as f64);
            if let Ok(timing) = timed {
                dev.take_counters();
                run(1).await?;
                rows.push(GenerateRow { texts, before: first, tokens, timing, counters: dev.take_counters(), bytes });
            }
        }
    }
    Ok(rows)
}
