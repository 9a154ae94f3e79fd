//! Generation: the prompt in one go, and a token of one or several texts after it. Owns what is run and what a token must read
//! at least: every weight once, however many texts there are.

use super::time::{Budget, Timing};
use super::{LeftOut, forward};
use crate::batch::Batch;
use crate::config::Config;
use crate::device::Device;
use crate::hooks::capture::Sink;
use crate::hooks::layout::Layout;
use crate::hooks::request::{Hooks, Select};
use crate::hooks::site::Site;
use crate::model::checkpoint::Checkpoint;
use crate::model::forward::{KvCache, Run, RunError};
use crate::model::params::Params;
use ndarray::ArrayViewD;
use std::time::Instant;

/// Seconds for all rows,
const BUDGET: f64 = 12.0;

/// and for one run.
const LONGEST: f64 = 1.8;

/// Tokens of a prompt.
pub const PROMPT: usize = 16;

/// Texts that are generated together.
pub const TEXTS: [usize; 2] = [1, 8];

/// One step of generation.
#[derive(Clone, Copy, Debug)]
pub struct GenerateRow {
    /// Texts that are run together.
    pub texts: usize,
    /// Tokens of each that are run: those of the prompt, or one.
    pub tokens: usize,
    /// How long it takes, logits of every text's last token on the host.
    pub timing: Timing,
    /// Bytes of weights that it reads at least.
    pub bytes: u64,
}

/// How many rows there are.
pub(super) fn count() -> usize {
    2 * TEXTS.len()
}

/// Drops what it is given.
struct Nowhere;

impl Sink for Nowhere {
    fn put(&mut self, _: Site, _: usize, _: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        Ok(())
    }
}

/// Bytes of the weights that every token reads: all but the position embeddings, whose rows are few.
fn bytes_of_weights(checkpoint: &Checkpoint) -> u64 {
    let Config { n_positions, n_embd, .. } = *checkpoint.config();
    let share = (n_positions * n_embd) as f64 / checkpoint.parameters() as f64;
    (checkpoint.file_bytes() as f64 * (1.0 - share)) as u64
}

/// Times all rows; `step` is told after each.
pub(super) async fn measure<D: Device>(
    dev: &D,
    params: &Params<D>,
    checkpoint: &Checkpoint,
    left_out: &mut Vec<LeftOut>,
    step: &mut dyn FnMut(),
) -> Result<Vec<GenerateRow>, RunError> {
    let config = params.config();
    let (mut budget, mut rows) = (Budget::new(BUDGET, LONGEST, left_out), Vec::new());
    let bytes = bytes_of_weights(checkpoint);
    for texts in TEXTS {
        let prompt = PROMPT.min(config.n_positions - 1);
        let mut cache = KvCache::new(dev, config, &vec![prompt + 1; texts]);
        for (first, tokens) in [(0, prompt), (prompt, 1)] {
            step();
            let ids = forward::ids(tokens, config);
            let batch = Batch::continued(&vec![&ids; texts], &vec![first; texts], config);
            let batch = batch.expect("ids of this vocabulary");
            let mut hooks = Hooks::new(config);
            let last = Select::all().positions(vec![vec![tokens - 1]; texts]);
            hooks.tap_at(Site::Unembed, last).expect("a site of every model");
            let layout = Layout::new(&hooks, &batch)?;
            let row = format!("generation, {texts} texts, {tokens} tokens of each");
            // Every run writes the same positions of the cache again.
            let run = async |runs: usize| {
                let begin = Instant::now();
                for _ in 0..runs {
                    let run = Run { cache: Some(&mut cache), ..Run::new(&layout, 0..texts) };
                    crate::model::forward::forward(dev, params, run, &mut Nowhere, None).await?;
                }
                Ok::<f64, RunError>(begin.elapsed().as_secs_f64())
            };
            if let Ok(timing) = budget.time(&row, 0.0, run).await? {
                rows.push(GenerateRow { texts, tokens, timing, bytes });
            }
        }
    }
    Ok(rows)
}
