//! Checks that this machine computes correct values. Owns the four checks of `Session::verify` and their result. Three
//! compare the device with the reference: every kernel on awkward inputs (`kernels.rs`), every hook of whole runs on
//! real text (`hooks.rs`), and every single operation of such runs (`lockstep.rs`). The fourth compares runs in pieces
//! with whole runs of the same device (`pieces.rs`). `sample.rs` compares a sample of one run's values with the
//! reference before they are written. Prints nothing and uses no file. Read next: `hooks.rs`.

#[doc(hidden)]
pub mod cases;
pub mod hooks;
pub mod kernels;
#[doc(hidden)]
pub mod list;
pub mod lockstep;
pub mod measure;
pub mod pieces;
pub mod sample;
mod summary;

use crate::batch::Batch;
use crate::device::{Device, DeviceInfo};
use crate::hooks::request::Hooks;
use crate::model::checkpoint::Checkpoint;
use crate::model::forward::RunError;
use crate::model::params::Params;
use crate::model::tokenizer::{Tokenizer, TokenizerError};
use crate::session::{Error, Session};
use hooks::HookRow;
use kernels::{KernelRow, Suite};
use lockstep::Steps;
use pieces::{InPieces, PieceRow};
use sample::{Checked, Sample};
use serde::Deserialize;
use std::collections::HashMap;

/// The check that is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Single kernels on the cases of the list.
    Kernels,
    /// Hooks of whole runs.
    Hooks,
    /// Single operations of whole runs.
    Lockstep,
    /// Runs in pieces.
    Pieces,
}

/// A progress callback. It receives the stage, the number of its finished steps, and their total.
pub type Tell<'a> = &'a dyn Fn(Stage, usize, usize);

/// The results of all four checks.
#[derive(Clone, Debug)]
pub struct Verification {
    /// The device under test.
    pub device: DeviceInfo,
    /// One row per kernel, in the order in which they ran.
    pub kernels: Vec<KernelRow>,
    /// One row per hook, in run order.
    pub hooks: Vec<HookRow>,
    /// The comparison of single operations.
    pub steps: Steps,
    /// The comparison of runs in pieces.
    pub pieces: InPieces,
    /// The number of tokens of each text.
    pub tokens: Vec<usize>,
    /// The index of the first text of each batch.
    pub first_texts: Vec<usize>,
    /// Whether PyTorch's errors in the rows of `hooks` were measured on this model and these texts. If not, they are
    /// the demo model's, for orientation only, and do not affect the result.
    pub torch_is_of_this_model: bool,
}

impl Verification {
    /// True when all checks passed.
    pub fn ok(&self) -> bool {
        self.kernels.iter().all(KernelRow::ok)
            && self.hooks.iter().all(HookRow::ok)
            && self.steps.mismatches.is_empty()
            && self.pieces.ok()
    }
}

impl Verification {
    /// The text with a hook's largest error, counted through all batches.
    pub fn text_of(&self, hook: &HookRow) -> usize {
        self.first_texts[hook.batch] + hook.worst.text
    }

    /// The text in which the two runs differ most, counted through all batches.
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

/// The most multiply-adds of one run on the reference: a few seconds.
const REFERENCE_WORK: usize = 4_000_000_000;

/// The texts of the checks: one batch of several texts, long and short, and one short text alone, which selects the
/// kernels for few rows. Large models get shorter texts, because the reference is slow. A model without a working
/// tokenizer gets ids from across its vocabulary instead.
///
/// # Errors
/// [`TokenizerError`] when the tokenizer cannot encode the texts.
pub(crate) fn texts(checkpoint: &Checkpoint, text: Option<&Tokenizer>) -> Result<[Vec<Vec<u32>>; 2], TokenizerError> {
    let config = checkpoint.config();
    let mut texts: Vec<Vec<u32>> = match text {
        Some(text) => demo().texts.iter().map(|t| text.encode(t)).collect::<Result<_, _>>()?,
        None => [80, 2, 9, 7].map(|n| (0..n).map(|i| i * 7919 + n).collect()).into(),
    };
    let mut afford = (REFERENCE_WORK / checkpoint.parameters()).max(16);
    let share = afford / 4;
    // The first text is the longest: it gets the tokens that the others leave.
    for (i, text) in texts.iter_mut().enumerate().rev() {
        text.truncate(if i == 0 { afford } else { share }.min(config.n_positions));
        text.iter_mut().for_each(|id| *id %= config.vocab_size as u32);
        afford -= text.len().min(afford - 1);
    }
    let alone = texts.pop().into_iter().collect::<Vec<_>>();
    Ok([texts, alone])
}

impl Session {
    /// Checks that this device computes correct values, by comparison with the reference: single kernels, and runs of
    /// this model. `tell` receives the progress.
    ///
    /// # Errors
    /// [`enum@Error`] when the device fails. Mismatches are not errors: the result lists them.
    pub async fn verify_async(&self, tell: Tell<'_>) -> Result<Verification, Error> {
        let model = self.model();
        let [several, alone] = texts(model.checkpoint(), model.tokenizer().ok())?;
        let batches = [model.batch(&several)?, model.batch(&alone)?];
        let (dev, params, _turn) = self.engine().await;
        Ok(verify(dev, params, batches, model.is_demo(), tell).await?)
    }

    /// Blocking form of [`Session::verify_async`].
    ///
    /// # Errors
    /// As [`Session::verify_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn verify(&self) -> Result<Verification, Error> {
        pollster::block_on(self.verify_async(&|_, _, _| {}))
    }

    /// Runs `hooks` on `batch` on this device and compares a sample of the values with the reference. `progress`
    /// receives the number of finished parts and their total.
    ///
    /// # Errors
    /// [`enum@Error`] when the device fails. Mismatches are not errors: the result lists them.
    pub async fn check_async(
        &self,
        batch: &Batch,
        hooks: &Hooks,
        sample: Sample,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Checked, Error> {
        let (dev, params, _turn) = self.engine().await;
        Ok(sample.check(dev, params, batch, hooks, progress).await?)
    }

    /// Blocking form of [`Session::check_async`].
    ///
    /// # Errors
    /// As [`Session::check_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn check(&self, batch: &Batch, hooks: &Hooks, sample: Sample) -> Result<Checked, Error> {
        pollster::block_on(self.check_async(batch, hooks, sample, &|_, _| {}))
    }
}

/// Runs all four checks on a device with a model.
///
/// # Errors
/// [`RunError`] when the device fails.
pub(crate) async fn verify<D: Device>(
    dev: &D,
    params: &Params<D>,
    batches: [Batch; 2],
    torch_is_of_this_model: bool,
    tell: Tell<'_>,
) -> Result<Verification, RunError> {
    let known = demo().torch_f32_error;
    // A device that can be configured in several ways on one machine needs each of them here.
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
