//! Are the numbers right on this machine? Owns the four questions of `Session::verify`, each answered by a comparison with the
//! reference, and their result: every kernel on awkward inputs (`kernels.rs`), every hook of whole runs on real text
//! (`hooks.rs`), every operation of such runs by itself (`lockstep.rs`), and whether a run in pieces is the run in one
//! (`pieces.rs`, against the device itself). `sample.rs` compares one run's values with the
//! reference before they are written. Prints nothing and touches no file.
//! Read next: `hooks.rs`.

pub mod cases;
pub mod hooks;
pub mod kernels;
pub mod list;
pub mod lockstep;
pub mod measure;
pub mod pieces;
pub mod sample;

use crate::batch::Batch;
use crate::device::{Device, DeviceInfo};
use crate::hooks::request::Hooks;
use crate::model::checkpoint::Checkpoint;
use crate::model::forward::RunError;
use crate::model::params::Params;
use crate::model::tokenizer::{Tokenizer, TokenizerError};
use crate::session::{Error, Session, on_engine};
use hooks::HookRow;
use kernels::{KernelRow, Suite};
use lockstep::Steps;
use pieces::{InPieces, PieceRow};
use sample::{Checked, Sample};
use serde::Deserialize;
use std::collections::HashMap;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Cases of the list.
    Kernels,
    /// Whole runs.
    Hooks,
    /// Operations side by side.
    Lockstep,
    /// Runs in pieces.
    Pieces,
}

/// Hears which stage runs, and how many of how many steps of it are done.
pub type Tell<'a> = &'a dyn Fn(Stage, usize, usize);

/// The answers to all four questions.
#[derive(Clone, Debug)]
pub struct Verification {
    /// The device under test.
    pub device: DeviceInfo,
    /// Every kernel, in the order in which they were run.
    pub kernels: Vec<KernelRow>,
    /// Every hook, in the order of a run.
    pub hooks: Vec<HookRow>,
    /// Every operation of such runs.
    pub steps: Steps,
    /// The same runs in pieces.
    pub pieces: InPieces,
    /// The texts of the runs, as tokens: how many of each.
    pub tokens: Vec<usize>,
    /// The first text of each batch.
    pub first_texts: Vec<usize>,
    /// Whether PyTorch's errors, which the rows of `hooks` carry, were measured on this very model and these texts. Else they
    /// are the demo model's, for orientation, and nothing is judged by them.
    pub torch_is_of_this_model: bool,
}

impl Verification {
    /// True when nothing is off.
    pub fn ok(&self) -> bool {
        self.kernels.iter().all(KernelRow::ok)
            && self.hooks.iter().all(HookRow::ok)
            && self.steps.mismatches.is_empty()
            && self.pieces.ok()
    }
}

impl Verification {
    /// Which text a hook is furthest off in, counted through all batches.
    pub fn text_of(&self, hook: &HookRow) -> usize {
        self.first_texts[hook.batch] + hook.worst.text
    }

    /// Which text the two runs are furthest apart in, counted through all batches.
    pub fn text_of_piece(&self, row: &PieceRow) -> usize {
        self.first_texts[row.batch] + row.worst.text
    }
}

/// The texts, and PyTorch's error on them with the demo model. Made by `tools/goldens/make.py verify`.
#[derive(Deserialize)]
struct Demo {
    texts: Vec<String>,
    torch_f32_error: HashMap<String, f64>,
}

fn demo() -> Demo {
    serde_json::from_str(include_str!("demo.json")).expect("a file of this crate, which a test reads")
}

/// Multiply-adds that one run through the reference may cost: a few seconds.
const REFERENCE_WORK: usize = 4_000_000_000;

/// The texts on which a model is tried: one batch of several, long and short, and one short text alone, which takes the kernels
/// for few rows. Large models get shorter ones, since the reference is slow. A model without a tokenizer that
/// works gets ids from all over its vocabulary instead.
///
/// # Errors
/// [`TokenizerError`] where the tokenizer cannot cut them.
pub(crate) fn texts(checkpoint: &Checkpoint, text: Option<&Tokenizer>) -> Result<[Vec<Vec<u32>>; 2], TokenizerError> {
    let config = checkpoint.config();
    let mut texts: Vec<Vec<u32>> = match text {
        Some(text) => demo().texts.iter().map(|t| text.encode(t)).collect::<Result<_, _>>()?,
        None => [80, 2, 9, 7].map(|n| (0..n).map(|i| i * 7919 + n).collect()).into(),
    };
    let mut afford = (REFERENCE_WORK / checkpoint.parameters()).max(16);
    let share = afford / 4;
    // The first text is the longest: it gets what the others leave.
    for (i, text) in texts.iter_mut().enumerate().rev() {
        text.truncate(if i == 0 { afford } else { share }.min(config.n_positions));
        text.iter_mut().for_each(|id| *id %= config.vocab_size as u32);
        afford -= text.len().min(afford - 1);
    }
    let alone = texts.pop().into_iter().collect::<Vec<_>>();
    Ok([texts, alone])
}

impl Session {
    /// Are the numbers right on this machine? Compares the device with the reference, on this model and in general. `tell`
    /// hears how far that is.
    ///
    /// # Errors
    /// [`enum@Error`] when the device failed. What is wrong with its numbers stands in the result.
    pub async fn verify_async(&self, tell: Tell<'_>) -> Result<Verification, Error> {
        let model = self.model();
        let [several, alone] = texts(model.checkpoint(), model.tokenizer().ok())?;
        let batches = [model.batch(&several)?, model.batch(&alone)?];
        let (engine, _turn) = self.engine().await;
        on_engine!(engine, (dev, params) => Ok(verify(dev, params, batches, model.is_demo(), tell).await?))
    }

    /// [`Session::verify_async`], waiting.
    ///
    /// # Errors
    /// As [`Session::verify_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn verify(&self) -> Result<Verification, Error> {
        pollster::block_on(self.verify_async(&|_, _, _| {}))
    }

    /// Compares a sample of a run of `hooks` on `batch` on this device with the reference. `progress` hears how many of how
    /// many parts are done.
    ///
    /// # Errors
    /// [`enum@Error`] when the device failed. What is wrong with its numbers stands in the result.
    pub async fn check_async(
        &self,
        batch: &Batch,
        hooks: &Hooks,
        sample: Sample,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Checked, Error> {
        let (engine, _turn) = self.engine().await;
        on_engine!(engine, (dev, params) => Ok(sample.check(dev, params, batch, hooks, progress).await?))
    }

    /// [`Session::check_async`], waiting.
    ///
    /// # Errors
    /// As [`Session::check_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn check(&self, batch: &Batch, hooks: &Hooks, sample: Sample) -> Result<Checked, Error> {
        pollster::block_on(self.check_async(batch, hooks, sample, &|_, _| {}))
    }
}

/// Puts all four questions to a device that holds a model.
///
/// # Errors
/// [`RunError`] when the device failed, which is an answer too, but no comparison.
pub(crate) async fn verify<D: Device>(
    dev: &D,
    params: &Params<D>,
    batches: [Batch; 2],
    torch_is_of_this_model: bool,
    tell: Tell<'_>,
) -> Result<Verification, RunError> {
    let known = demo().torch_f32_error;
    // Where a device may be set up in several ways on one machine, each of them belongs here.
    let variants = [dev];
    let kernels = Suite::new().check(&variants, tell).await?;
    let mut hooks = hooks::check(dev, params, &batches, tell).await?;
    for row in &mut hooks {
        row.torch = known.get(&row.site.name()).copied();
        row.judge(torch_is_of_this_model);
    }
    let steps = lockstep::check(dev, params, &batches, tell).await?;
    let pieces = pieces::check(dev, params, &batches, &hooks, tell).await?;
    let first_texts = vec![0, batches[0].texts().len()];
    let tokens = batches.iter().flat_map(|batch| batch.texts()).map(|text| text.len()).collect();
    Ok(Verification { device: dev.info(), kernels, hooks, steps, pieces, tokens, first_texts, torch_is_of_this_model })
}
