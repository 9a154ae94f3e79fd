//! What the commands that run a model share: the arguments for device, weights, hooks, tokens and NaN, the progress
//! bar, and the check that no output replaces an input file. Read next: `extract.rs`, which uses all of them.

use super::edits::EditArgs;
use super::environment::{self, Environment};
use super::lists::{self, Part};
use super::texts::TextArgs;
use super::{DeviceArg, Failure, ModelArgs, WeightsArg};
use crate::cache::CacheFolder;
use crate::device::DeviceCache;
use crate::hooks::capture::Capture;
use crate::hooks::non_number::NonNumber;
use crate::hooks::request::{HookError, Hooks, Select};
use crate::hooks::site::{self, Site};
use crate::indices::Item;
use crate::model::process::Process;
use crate::model::token_select::{self, Selection, Selector};
use crate::model::tokenizer::Token;
use crate::options::Options;
use crate::session::{Model, Progress, Session};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::BTreeSet;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The device and the weights of a run.
#[derive(Args)]
pub(super) struct RunArgs {
    /// The device to compute on
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    device: DeviceArg,
    /// Precision of the weights during the run
    #[arg(long, value_enum, default_value_t = WeightsArg::Stored)]
    weights: WeightsArg,
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// The edits of a run, its device and its weights.
#[derive(Args)]
pub(super) struct EditedRunArgs {
    #[command(flatten)]
    pub edits: EditArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

/// How the weights are processed before the run.
#[derive(Args)]
pub(super) struct ProcessArgs {
    /// Process the weights as TransformerLens does, in f64: a list of fold-ln,center-writing,center-unembed,fold-value,
    /// or tl for all four. The processed weights are f32
    #[arg(long, value_name = "STEPS")]
    process: Option<Process>,
}

impl ProcessArgs {
    /// The model with its weights processed; the same model without --process.
    pub(super) fn apply(&self, files: Model) -> Result<Model, Failure> {
        Ok(files.processed(self.process.unwrap_or_default())?)
    }
}

impl RunArgs {
    /// Loads the model onto the device, and prints the device's name on stderr.
    pub(crate) fn session(&self, files: Model, model: &ModelArgs) -> Result<Session, Failure> {
        let session = self.process.apply(files)?.on(options(self.device, self.weights))?;
        let device = session.device();
        model.say(format_args!("device: {device}"));
        if device.software {
            model.say(format_args!(
                "note: this is a software adapter, which computes on the CPU; --device cpu is faster"
            ));
        }
        Ok(session)
    }

    /// The option that names the device, for a command that is printed; empty for `auto`.
    pub(crate) fn of_device(&self) -> Vec<String> {
        let named = self.device.to_possible_value().filter(|_| !matches!(self.device, DeviceArg::Auto));
        named.map_or_else(Vec::new, |value| vec!["--device".into(), value.get_name().into()])
    }

    /// The options that change the weights, for a command that is printed; empty if the weights are as stored.
    pub(crate) fn of_weights(&self) -> Vec<String> {
        let said = Some(self.weights).filter(|weights| *weights != WeightsArg::Stored);
        let precision = said.map(|weights| weights.name().to_string());
        let steps = self.process.process.map(|process| process.to_string());
        let option = |(name, value): (&str, Option<String>)| value.map(|value| [name.to_string(), value]);
        [("--weights", precision), ("--process", steps)].into_iter().filter_map(option).flatten().collect()
    }
}

/// The options with which all commands load a model onto a device. What a device learns about this machine is cached in
/// the user's cache folder.
pub(super) fn options(device: DeviceArg, weights: WeightsArg) -> Options {
    let Environment { adapters, tuning, .. } = environment::read();
    let cache = tuning.then(|| Arc::new(CacheFolder::of_user()) as Arc<dyn DeviceCache>);
    Options { device: device.into(), adapters, weights: weights.dtype(), autotune: tuning, cache }
}

/// The hooks to record.
#[derive(Args)]
pub(super) struct SiteArgs {
    /// Hooks by name; `*` matches any characters, so '*' alone is every hook. Repeatable
    #[arg(short = 'k', long, value_name = "PATTERN")]
    hook: Vec<String>,
    /// Layers: N >= 0 is the output of block N, -1 the output of the final LayerNorm, -2 the output of the last block
    /// but one; also lists (1,3), ranges (1..3, without 3), and `all`. Repeatable
    #[arg(short, long, value_name = "N", allow_hyphen_values = true)]
    layer: Vec<String>,
}

impl SiteArgs {
    /// True if no hooks are requested.
    pub(crate) fn is_empty(&self) -> bool {
        self.hook.is_empty() && self.layer.is_empty()
    }

    /// The request for all given hooks and layers, or for the output of the final LayerNorm if none is given.
    pub(crate) fn hooks(&self, files: &Model, model: &ModelArgs) -> Result<Hooks, Failure> {
        let n_layer = files.config().n_layer;
        let mut hooks = files.hooks();
        for pattern in &self.hook {
            hooks.tap(pattern)?;
            if let Some(trap) = site::trap(pattern, n_layer) {
                model.say(format_args!("note: {trap}"));
            }
        }
        let mut layers: Vec<i64> = Vec::new();
        for part in lists::parts("layer", &self.layer)? {
            match part {
                Part::All => layers.extend((0..n_layer as i64).chain([-1])),
                Part::Item(Item::Index(layer)) => layers.push(layer),
                Part::Item(item) => {
                    let existing = lists::existing("layer", item, n_layer)?;
                    match item {
                        // -1 is the output of the final LayerNorm here too, as in transformers' tuple of hidden states.
                        Item::Span(Some(from), None) if from < 0 => layers.extend(from..0),
                        _ => layers.extend(existing.map(|layer| layer as i64)),
                    }
                }
            }
        }
        if self.hook.is_empty() && layers.is_empty() {
            layers.push(-1);
        }
        for layer in layers {
            hooks.tap_at(Site::from_layer(layer, n_layer).map_err(HookError::from)?, Select::all())?;
        }
        Ok(hooks)
    }
}

/// The tokens to record.
#[derive(Args)]
pub(super) struct TokenArgs {
    /// Tokens to keep: an index, a negative index, a range a..b, or a word or phrase such as "cathedral", which keeps
    /// all of its tokens (`first:cathedral` or `last:cathedral` keeps one). Write digits that are text in quotes:
    /// '"5"'. Repeatable
    #[arg(short, long, value_name = "TOKEN", allow_hyphen_values = true)]
    token: Vec<String>,
}

impl TokenArgs {
    /// True if no tokens are chosen.
    pub(crate) fn is_empty(&self) -> bool {
        self.token.is_empty()
    }

    /// The positions that --token selects in texts that grow from their prompts; text i has at most `longest[i]`
    /// tokens. Non-negative indices may select new tokens; words and negative indices refer to the prompt. `None`
    /// without --token.
    pub(crate) fn positions_of_growing(
        &self,
        prompts: &[Vec<Token>],
        longest: &[usize],
        model: &ModelArgs,
    ) -> Result<Option<Vec<Vec<usize>>>, Failure> {
        if self.is_empty() {
            return Ok(None);
        }
        let in_prompt = |written: &&String| match Selector::parse(written) {
            Selector::Item(Item::Index(i)) => i < 0,
            Selector::Item(Item::Span(from, to)) => [from, to].into_iter().flatten().any(|i| i < 0),
            Selector::Text(..) => true,
        };
        let (of_prompt, of_all): (Vec<_>, Vec<_>) = self.token.iter().partition(in_prompt);
        let [of_prompt, of_all] = [of_prompt, of_all].map(|list| list.into_iter().cloned().collect::<Vec<String>>());
        let mut all = Vec::new();
        for (text, (tokens, longest)) in prompts.iter().zip(longest).enumerate() {
            let mut positions = BTreeSet::new();
            if !of_prompt.is_empty() {
                let selection = token_select::select(&of_prompt, tokens, text)?;
                selection.notes.iter().for_each(|note| model.say(format_args!("note: --token {note}")));
                positions.extend(selection.positions);
            }
            if !of_all.is_empty() {
                let mut all = tokens.clone();
                all.resize(*longest, Token { id: 0, bytes: None });
                positions.extend(token_select::select(&of_all, &all, text)?.positions);
            }
            all.push(positions.into_iter().collect());
        }
        Ok(Some(all))
    }

    /// The positions that --token selects in every text; `None` without it. Prints a note for an ambiguous selector.
    pub(crate) fn positions(
        &self,
        tokens: &[Vec<Token>],
        model: &ModelArgs,
    ) -> Result<Option<Vec<Vec<usize>>>, Failure> {
        if self.token.is_empty() {
            return Ok(None);
        }
        let of_text = |(i, tokens): (usize, &Vec<Token>)| token_select::select(&self.token, tokens, i);
        let selections: Vec<Selection> = tokens.iter().enumerate().map(of_text).collect::<Result<_, _>>()?;
        for (text, selection) in selections.iter().enumerate() {
            let which = if tokens.len() == 1 { String::new() } else { format!("text {text}: ") };
            selection.notes.iter().for_each(|note| model.say(format_args!("note: {which}--token {note}")));
        }
        Ok(Some(selections.into_iter().map(|selection| selection.positions).collect()))
    }
}

impl TextArgs {
    /// Checks that the output does not replace a file that the run reads: the model's, the texts' or the edits'.
    pub(super) fn refuse_to_overwrite(&self, path: &Path, files: &Model, edits: &EditArgs) -> Result<(), Failure> {
        refuse_to_overwrite(path, files, self.files().chain(edits.files()))
    }
}

/// Checks that the output at `path` does not replace an input: the model's files, or `others`.
///
/// # Errors
/// [`Failure::Usage`] if it would.
pub(super) fn refuse_to_overwrite(
    path: &Path,
    files: &Model,
    others: impl Iterator<Item = PathBuf>,
) -> Result<(), Failure> {
    let Ok(path) = path.canonicalize() else { return Ok(()) };
    let same = |input: &PathBuf| input.canonicalize().is_ok_and(|input| input == path);
    match files.paths().into_iter().chain(others).find(same) {
        Some(input) => {
            Err(Failure::Usage(format!("--out {} is a file that this run reads; choose another name", input.display())))
        }
        None => Ok(()),
    }
}

/// What happens on NaN and infinities.
#[derive(Args)]
pub(super) struct NanArgs {
    /// Continue if a value is NaN or infinite. Otherwise such a value ends the run with exit code 1, and no file is
    /// written
    #[arg(long)]
    pub allow_nan: bool,
}

impl NanArgs {
    /// Reports the place of the first NaN or infinity, even with -q. `position` gives its token's position in the text.
    ///
    /// # Errors
    /// [`Failure::Run`] unless such values are allowed.
    pub(crate) fn judge(
        &self,
        found: Option<&NonNumber>,
        position: impl FnOnce(&NonNumber) -> usize,
    ) -> Result<(), Failure> {
        self.judge_named(found, "", position)
    }

    /// [`NanArgs::judge`] for values whose name is `what` followed by the hook's name.
    pub(crate) fn judge_named(
        &self,
        found: Option<&NonNumber>,
        what: &str,
        position: impl FnOnce(&NonNumber) -> usize,
    ) -> Result<(), Failure> {
        let Some(found) = found else { return Ok(()) };
        let place = format!(
            "{what}{} holds {} at text {}, position {}, and values computed from it are unreliable",
            found.site,
            found.what(),
            found.text,
            position(found)
        );
        if !self.allow_nan {
            return Err(Failure::Run(format!("{place}; nothing was written; use --allow-nan to continue anyway")));
        }
        let _ = writeln!(std::io::stderr(), "note: {place}");
        Ok(())
    }

    /// [`NanArgs::judge`] for a capture of whole texts, or of the given positions of one text.
    pub(crate) fn judge_capture(&self, capture: &Capture, positions: Option<&[usize]>) -> Result<(), Failure> {
        let position = |found: &NonNumber| positions.map_or(found.slot(), |positions| positions[found.slot()]);
        self.judge(NonNumber::find_in(capture).as_ref(), position)
    }
}

impl ModelArgs {
    /// Calls `run` with a progress bar on stderr, which appears after a second. `run` reports the number of finished
    /// steps; `steps` names them.
    pub(super) fn with_progress<T>(&self, steps: &str, run: impl AsyncFnOnce(Progress<'_>) -> T) -> T {
        const SHOWN_AFTER: Duration = Duration::from_secs(1);
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {elapsed} elapsed, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(steps.to_string());
        let start = Instant::now();
        let told = |done: usize, of: usize| {
            if bar.is_hidden() && !self.quiet && start.elapsed() > SHOWN_AFTER {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
            bar.set_length(of as u64);
            bar.set_position(done as u64);
            ControlFlow::Continue(())
        };
        let result = pollster::block_on(run(&told));
        bar.finish_and_clear();
        result
    }
}
