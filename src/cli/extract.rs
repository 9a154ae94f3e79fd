//! `actscope extract`: writes activations of one or more texts to a file, or prints a summary. Owns the forecast of
//! `--dry-run`. Read next: `run.rs`.

use super::edits::EditArgs;
use super::gradient::{Asked, Both, GradientArgs, Side, with_gradients};
use super::run::{NanArgs, RunArgs, SiteArgs, TokenArgs, refuse_to_overwrite};
use super::texts::{Length, TextArgs};
use super::{Failure, ModelArgs, check, n_hooks, size};
use crate::analysis::gradients::{self, GradientOptions};
use crate::batch::{self, Batch};
use crate::config::Config;
use crate::hooks::capture::{ArrayKey, ArraySink, Capture, Sink};
use crate::hooks::non_number::NonNumber;
use crate::hooks::request::Hooks;
use crate::hooks::site::{Axis, Site};
use crate::model::token_select::{self, Word};
use crate::model::tokenizer::Token;
use crate::model::windows::{DocumentWindow, Windows};
use crate::output::rows::{Joined, Mean, MeanRow, RowSink, Whole};
use crate::output::summary::Summary;
use crate::output::{self, Output, Pool, Provenance, Record, Rows, Scratch};
use crate::session::{Error, Model, Progress, Session};
use crate::verify::sample::Sample;
use clap::{Args, ValueEnum};
use ndarray::{ArrayD, ArrayViewD};
use serde_json::json;
use std::cell::RefCell;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Arguments of `actscope extract`.
#[derive(Args)]
pub(crate) struct Extract {
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sites: SiteArgs,
    #[command(flatten)]
    token: TokenArgs,
    /// One row per word instead of one per token; with --token, the words that contain a chosen token
    #[arg(long)]
    words: bool,
    /// The row of a word with several tokens
    #[arg(long, value_enum, default_value_t = PoolArg::Mean, requires = "words")]
    pool: PoolArg,
    /// One row per hook: the mean over all chosen tokens of all texts
    #[arg(long, conflicts_with = "words")]
    mean: bool,
    /// Run longer texts in windows of N tokens that begin STRIDE tokens apart (N / 2 if STRIDE is not given), and take
    /// every token from the window where it has most context
    #[arg(long, value_name = "N[:STRIDE]", conflicts_with = "truncate")]
    window: Option<Windows>,
    /// Output file: .safetensors, .npz, .npy (one hook), .json, .jsonl, .csv, or .parquet in a build with that feature
    /// [default: a summary on the terminal]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    edits: EditArgs,
    #[command(flatten)]
    gradient: GradientArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    nan: NanArgs,
    /// Compute the model's fingerprint from every byte of the weights, not only from their headers
    #[arg(long)]
    hash: bool,
    /// Compare a sample of the values with the reference, and write nothing if they differ by more than rounding
    #[arg(long)]
    check: bool,
    /// Print the hooks, their shapes and sizes, and the memory that the run needs; run nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PoolArg {
    /// The mean of its tokens' rows
    Mean,
    /// The row of its last token
    Last,
}

/// The texts that are run, and how the rows of the run map to those of the output.
struct Plan {
    /// The tokens of every text, of any length.
    tokens: Vec<Vec<Token>>,
    /// The recorded positions of every text; `None` for all.
    kept: Option<Vec<Vec<usize>>>,
    words: Option<Vec<Vec<Word>>>,
    pool: Pool,
    /// True if each array has one row, the mean over all recorded tokens.
    one_row: bool,
    windows: Option<Windows>,
    /// The windows, which are then the texts of the batch; empty without --window.
    pieces: Vec<DocumentWindow>,
    lengths: Vec<usize>,
    batch: Batch,
}

impl Extract {
    /// Runs the command. Checks the whole request before any weight is loaded.
    pub(super) fn run(self) -> Result<(), Failure> {
        let input = self.texts.read(&self.model)?;
        let output = self.out.as_deref().map(Output::create).transpose()?;
        let files = self.model.open()?;
        if let Some(output) = &output {
            self.texts.refuse_to_overwrite(output.path(), &files, &self.edits)?;
            refuse_to_overwrite(output.path(), &files, self.gradient.files())?;
        }
        if self.gradient.any() && (self.window.is_some() || self.check || self.words || self.mean) {
            return Err(Failure::Usage(
                "--grad gives one gradient for each value of whole texts; leave out --window, --words, --mean and --check"
                    .into(),
            ));
        }
        let length = if self.window.is_some() { Length::Any } else { Length::Context };
        let ids = self.texts.ids(&input, &files, length, &self.model)?;
        let plan = self.plan(&files, ids)?;
        let mut hooks = self.sites.hooks(&files, &self.model)?;
        plan.narrow(&mut hooks)?;
        let shapes = plan.shapes(&hooks, files.config());
        if let Some(output) = &output {
            output.check(shapes.len() * if self.gradient.any() { 2 } else { 1 })?;
        }
        let edits = match plan.windows {
            Some(windows) => {
                let run = (plan.tokens.as_slice(), plan.pieces.as_slice(), &plan.batch);
                self.edits.plan_of_windows(&self.texts, &files, run, windows, &self.model)?
            }
            None => self.edits.plan(&self.texts, &files, &plan.batch, &self.model)?,
        };
        let asked = self.gradient.asked(&files, &plan.batch, self.edits.any(), &self.model)?;
        let weight_bytes = files.checkpoint().file_bytes();
        let mut forecast = Forecast { weight_bytes, ..Forecast::of(&shapes) };
        if let Some(asked) = &asked {
            forecast = Forecast { weight_bytes, ..Forecast::of(&with_gradients(&shapes)) };
            let checkpoint = self.gradient.checkpoint;
            let tape = gradients::tape_bytes(files.config(), &plan.batch, &hooks, &asked.target, checkpoint)?;
            forecast.tape_bytes = Some(tape);
        }
        if self.dry_run && output.is_none() {
            return self.model.forecast(&forecast, None);
        }

        let session = self.run.session(files, &self.model)?;
        let edits =
            if self.dry_run { Vec::new() } else { self.model.edit(&edits, &session, &plan.batch, &mut hooks)? };
        let mut provenance = Provenance::new(&session, edits);
        if self.hash && !self.dry_run {
            let fingerprint = session.model().checkpoint().fingerprint_of_every_byte();
            provenance.fingerprint = fingerprint.map_err(crate::session::Error::from)?;
        }
        let mut record = plan.record(input.texts(), &provenance);
        record.gradient = asked.as_ref().map(|asked| asked.record.clone());

        let run = |sink: &mut dyn Sink| self.run_with_progress(&session, &plan, &hooks, sink);
        let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
        if let (None, Some(asked)) = (&output, &asked) {
            if self.model.json {
                let empty = || Capture::empty(&hooks, &plan.batch);
                let mut both = Both { values: empty()?, gradients: empty()? };
                self.differentiate(&session, &plan, &hooks, asked, &mut both)?;
                output::write_json(&record, &both, &mut stdout)?;
            } else {
                let token = |id| session.model().token(id);
                let mut summary = Summary::new(&record, &token, forecast.shapes.clone());
                self.differentiate(&session, &plan, &hooks, asked, &mut summary)?;
                summary.write(&mut stdout)?;
            }
            return Ok(stdout.flush()?);
        }
        match output {
            Some(output) if self.dry_run => {
                let size = output.size(&record, forecast.shapes.clone())?;
                return self.model.forecast(&forecast, Some((output.path(), size)));
            }
            Some(output) => {
                let path = output.path().display().to_string();
                let mut writing = output.begin(&record, forecast.shapes.clone())?;
                if let Some(asked) = &asked {
                    self.differentiate(&session, &plan, &hooks, asked, &mut writing)?
                } else if plan.is_plain() {
                    run(&mut writing)?
                } else {
                    plan.through(&mut writing, run)?
                }
                let bytes = writing.finish()?;
                self.model.say(format_args!("wrote {path}: {}, {}", n_hooks(shapes.len()), size(bytes)));
                if self.model.json {
                    let named = |(array, shape): &(ArrayKey, Vec<usize>)| json!({"name": array.name(), "shape": shape});
                    let hooks: Vec<_> = forecast.shapes.iter().map(named).collect();
                    writeln!(stdout, "{}", json!({"file": path, "bytes": bytes, "hooks": hooks}))?;
                }
            }
            None if self.model.json && plan.is_plain() => {
                let mut capture = Capture::empty(&hooks, &plan.batch)?;
                run(&mut capture)?;
                output::write_json(&record, &capture, &mut stdout)?;
            }
            None if self.model.json => {
                let temporary =
                    |e| Failure::Run(format!("cannot store the values in the folder for temporary files: {e}"));
                let mut scratch = Scratch::create(shapes).map_err(temporary)?;
                plan.through(&mut scratch, run)?;
                output::write_json(&record, scratch.arrays(), &mut stdout)?;
            }
            None => {
                let token = |id| session.model().token(id);
                let mut summary = Summary::new(&record, &token, shapes);
                plan.through(&mut summary, run)?;
                summary.write(&mut stdout)?;
            }
        }
        stdout.flush()?;
        Ok(())
    }

    /// The plan for texts with these ids.
    fn plan(&self, files: &Model, ids: Vec<Vec<u32>>) -> Result<Plan, Failure> {
        let config = files.config();
        if let Some(Windows { size, .. }) = self.window
            && size > config.n_positions
        {
            return Err(Failure::Usage(format!(
                "--window {size} is more than the {} positions of this model; {} is the most",
                config.n_positions, config.n_positions
            )));
        }
        // The ids are checked here, because an error of a batch of windows would name the window instead of the text.
        let whole = match self.window {
            Some(_) => batch::check_ids(&ids, config).map(|()| None).map_err(Error::from)?,
            None => Some(files.batch(&ids)?),
        };
        let tokens: Vec<Vec<Token>> = ids.iter().map(|ids| ids.iter().map(|id| files.token(*id)).collect()).collect();
        let mut kept = self.token.positions(&tokens, &self.model)?;
        let pool = if self.pool == PoolArg::Last { Pool::Last } else { Pool::Mean };
        let words = if self.words { Some(words(files, &tokens, kept.as_deref())?) } else { None };
        if let Some(words) = &words {
            let positions = |word: &Word| match pool {
                Pool::Mean => word.tokens.clone(),
                Pool::Last => word.tokens.end - 1..word.tokens.end,
            };
            kept = Some(words.iter().map(|words| words.iter().flat_map(positions).collect()).collect());
        }
        let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
        let (pieces, batch) = match (self.window, whole) {
            (Some(windows), _) => {
                let pieces = windows.plan(&lengths, kept.as_deref());
                let of_piece = |piece: &DocumentWindow| &ids[piece.document][piece.tokens.clone()];
                let batch = files.batch(&pieces.iter().map(of_piece).collect::<Vec<_>>())?;
                self.model.say(format_args!("{} windows of at most {} tokens", pieces.len(), windows.size));
                (pieces, batch)
            }
            (None, Some(batch)) => (Vec::new(), batch),
            (None, None) => (Vec::new(), files.batch(&ids)?),
        };
        Ok(Plan { tokens, kept, words, pool, one_row: self.mean, windows: self.window, pieces, lengths, batch })
    }

    /// Runs with a progress bar.
    ///
    /// # Errors
    /// A value is NaN or infinite and --allow-nan is not given, or --check finds a difference from the reference.
    fn run_with_progress(
        &self,
        session: &Session,
        plan: &Plan,
        hooks: &Hooks,
        sink: &mut dyn Sink,
    ) -> Result<(), Failure> {
        let batch = &plan.batch;
        let sample = self.check.then(|| Sample::new(session.model().config(), batch, hooks));
        let mut watched = Watched { sink, first: None, goes_on: self.nan.allow_nan, sample };
        let run = async |told: Progress<'_>| session.run_into_async(batch, hooks, &mut watched, Some(told)).await;
        let result: Result<(), Error> = self.model.with_progress("blocks", run);
        let found = watched.first.map(|found| plan.in_document(found));
        self.nan
            .judge(found.as_ref().map(|(found, _)| found), |_| found.as_ref().map_or(0, |(_, position)| *position))?;
        result?;
        match watched.sample {
            Some(sample) => {
                let what = if plan.windows.is_some() { "window" } else { "text" };
                check::hold(sample, session, batch, hooks, &self.model, what)
            }
            None => Ok(()),
        }
    }
}

impl Extract {
    /// Runs with a progress bar, and passes values and gradients to one sink.
    ///
    /// # Errors
    /// A value or a gradient is NaN or infinite and --allow-nan is not given.
    fn differentiate(
        &self,
        session: &Session,
        plan: &Plan,
        hooks: &Hooks,
        asked: &Asked,
        sink: &mut dyn ArraySink,
    ) -> Result<(), Failure> {
        let to = RefCell::new(sink);
        let goes_on = self.nan.allow_nan;
        let sides = [false, true].map(|is_gradient| Side { to: &to, is_gradient });
        let [mut values, mut gradients] = sides;
        let mut values = Watched { sink: &mut values, first: None, goes_on, sample: None };
        let mut gradients = Watched { sink: &mut gradients, first: None, goes_on, sample: None };
        let run = async |told: Progress<'_>| {
            let (batch, target) = (&plan.batch, &asked.target);
            let options = GradientOptions { recompute: self.gradient.checkpoint, ..GradientOptions::default() };
            session.gradients_into_async(batch, hooks, target, options, &mut values, &mut gradients, Some(told)).await
        };
        let result: Result<Vec<f64>, Error> = self.model.with_progress("blocks, forward and backward", run);
        for (found, what) in [(values.first, ""), (gradients.first, "the gradient by ")] {
            let found = found.map(|found| plan.in_document(found));
            let position = |_: &NonNumber| found.as_ref().map_or(0, |(_, position)| *position);
            self.nan.judge_named(found.as_ref().map(|(found, _)| found), what, position)?;
        }
        for (text, value) in result?.into_iter().enumerate() {
            self.model.say(format_args!("text {text}: the metric is {value}"));
        }
        Ok(())
    }
}

/// The arrays that a run would record, and the memory that it would need.
pub(super) struct Forecast {
    pub shapes: Vec<(ArrayKey, Vec<usize>)>,
    pub weight_bytes: u64,
    /// Bytes of the keys and values of all texts.
    pub cache_bytes: Option<u64>,
    /// Bytes of the values that are stored for the backward pass.
    pub tape_bytes: Option<u64>,
}

impl Forecast {
    /// A forecast for arrays of these shapes.
    pub(crate) fn of(shapes: &[(impl Into<ArrayKey> + Copy, Vec<usize>)]) -> Forecast {
        let shapes = shapes.iter().map(|(array, shape)| ((*array).into(), shape.clone())).collect();
        Forecast { shapes, weight_bytes: 0, cache_bytes: None, tape_bytes: None }
    }
}

impl ModelArgs {
    /// Prints a forecast: shapes, bytes of the values, memory, and the size of the output file if it is known.
    pub(super) fn forecast(&self, forecast: &Forecast, file: Option<(&Path, Option<u64>)>) -> Result<(), Failure> {
        let Forecast { ref shapes, weight_bytes, cache_bytes, tape_bytes } = *forecast;
        let total: u64 = shapes.iter().map(|(_, shape)| output::bytes_of(shape)).sum();
        let mut out = std::io::stdout().lock();
        if self.json {
            let list: Vec<_> = shapes
                .iter()
                .map(|(array, shape)| json!({"name": array.name(), "shape": shape, "bytes": output::bytes_of(shape)}))
                .collect();
            let file_bytes = file.and_then(|(_, bytes)| bytes);
            let mut all =
                json!({"hooks": list, "bytes": total, "weight_bytes": weight_bytes, "file_bytes": file_bytes});
            if let Some(bytes) = cache_bytes {
                all["cache_bytes"] = bytes.into();
            }
            if let Some(bytes) = tape_bytes {
                all["tape_bytes"] = bytes.into();
            }
            writeln!(out, "{all}")?;
            return Ok(());
        }
        let width = shapes.iter().map(|(array, _)| array.name().len()).max().unwrap_or(0);
        for (array, shape) in shapes {
            let bytes = size(output::bytes_of(shape));
            writeln!(out, "{:width$}  {:<22} {bytes:>12}", array.name(), format!("{shape:?}"))?;
        }
        let (n, of_weights) = (n_hooks(shapes.len()), size(weight_bytes));
        writeln!(out, "{n}, {} ({total} bytes) of values; weights of {of_weights}", size(total))?;
        if let Some(bytes) = cache_bytes {
            writeln!(out, "keys and values of all texts: {} ({bytes} bytes)", size(bytes))?;
        }
        if let Some(bytes) = tape_bytes {
            writeln!(out, "values stored for the backward pass: about {} ({bytes} bytes)", size(bytes))?;
        }
        match file {
            Some((path, Some(bytes))) => writeln!(out, "{}: {} ({bytes} bytes)", path.display(), size(bytes))?,
            Some((path, None)) => {
                let values = "as text, so its size depends on the values; during the run the values need disk space of their own";
                writeln!(out, "{}: {values}", path.display())?;
            }
            None => {}
        }
        Ok(())
    }
}

/// The words of every text; with `kept`, those that contain a position of `kept`.
fn words(files: &Model, tokens: &[Vec<Token>], kept: Option<&[Vec<usize>]>) -> Result<Vec<Vec<Word>>, Failure> {
    files.tokenizer()?;
    let of_text = |(text, tokens): (usize, &Vec<Token>)| {
        let mut words = token_select::words(tokens);
        if let Some(kept) = kept {
            words.retain(|word| kept[text].iter().any(|position| word.tokens.contains(position)));
        }
        if words.is_empty() {
            return Err(Failure::Run(format!("text {text} holds no word, only white space; leave --words out")));
        }
        Ok(words)
    };
    tokens.iter().enumerate().map(of_text).collect()
}

impl Plan {
    /// True if the rows of the batch are the rows of the output.
    fn is_plain(&self) -> bool {
        self.windows.is_none() && self.mean().is_none() && !self.one_row
    }

    /// The words whose tokens are averaged; `None` if no word's tokens are.
    fn mean(&self) -> Option<&[Vec<Word>]> {
        self.words.as_deref().filter(|_| self.pool == Pool::Mean)
    }

    /// Restricts a request to the recorded positions.
    ///
    /// # Errors
    /// [`Failure::Usage`] for a hook of pairs of tokens, if rows are words or a mean.
    fn narrow(&self, hooks: &mut Hooks) -> Result<(), Failure> {
        if let (Some(site), Some(_)) = (hooks.sites().find(|site| site.is_square()), &self.words) {
            return Err(Failure::Usage(format!(
                "{site} is about pairs of tokens, and --words gives rows of words; leave one of the two out"
            )));
        }
        if let (Some(site), true) = (hooks.sites().find(|site| site.is_square()), self.one_row) {
            return Err(Failure::Usage(format!(
                "{site} is about pairs of tokens, and --mean averages over tokens; leave one of the two out"
            )));
        }
        if self.windows.is_some() {
            let within =
                |piece: &DocumentWindow| piece.kept.iter().map(|position| position - piece.tokens.start).collect();
            hooks.at_positions(&self.pieces.iter().map(within).collect::<Vec<_>>());
        } else if let Some(kept) = &self.kept {
            hooks.at_positions(kept);
        }
        Ok(())
    }

    /// Shapes of the output's arrays.
    fn shapes(&self, hooks: &Hooks, config: &Config) -> Vec<(Site, Vec<usize>)> {
        if self.is_plain() {
            return hooks.shapes(&self.batch);
        }
        if self.one_row {
            let row = |site: Site| (site, [&[1][..], &site.shape(config, 1)].concat());
            return hooks.sites().map(row).collect();
        }
        let most = |lists: &dyn Fn(usize) -> usize| (0..self.tokens.len()).map(lists).max().unwrap_or(0);
        let longest = most(&|text| self.lengths[text]);
        let rows = most(&|text| match (self.mean(), &self.kept) {
            (Some(words), _) => words[text].len(),
            (None, Some(kept)) => kept[text].len(),
            (None, None) => self.lengths[text],
        });
        let shape = |site: Site| {
            let axes = site.axes().iter().map(|axis| if *axis == Axis::Pos { rows } else { axis.len(config, longest) });
            (site, std::iter::once(self.tokens.len()).chain(axes).collect())
        };
        hooks.sites().map(shape).collect()
    }

    fn record<'a>(&'a self, texts: &'a [String], provenance: &'a Provenance) -> Record<'a> {
        let rows = match (&self.words, &self.kept) {
            (_, kept) if self.one_row => Rows::Mean(kept.as_deref()),
            (Some(words), _) => Rows::Words(words, self.pool),
            (None, Some(kept)) => Rows::Positions(kept),
            (None, None) => Rows::All,
        };
        Record {
            tokens: &self.tokens,
            texts,
            rows,
            windows: self.windows,
            provenance,
            generation: None,
            gradient: None,
            reserved: None,
        }
    }

    /// Calls `run` with a sink that assembles the rows of the output and passes them to `target`.
    fn through(
        &self,
        target: &mut dyn RowSink,
        run: impl FnOnce(&mut dyn Sink) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if self.one_row {
            let mut rows = MeanRow::default();
            run(&mut rows)?;
            return rows.put(target).map_err(|e| Failure::Run(e.to_string()));
        }
        let mut mean;
        let to: &mut dyn RowSink = match self.mean() {
            Some(words) => {
                mean = Mean::new(words, target);
                &mut mean
            }
            None => target,
        };
        match self.windows {
            Some(_) => run(&mut Joined { pieces: &self.pieces, lengths: &self.lengths, to }),
            None => run(&mut Whole(to)),
        }
    }

    /// Converts the text of a value found in the batch to a text of the output, and returns its position there too.
    fn in_document(&self, mut found: NonNumber) -> (NonNumber, usize) {
        let slot = found.slot();
        if self.windows.is_some() {
            let piece = &self.pieces[found.text];
            found.text = piece.document;
            return (found, piece.kept[slot]);
        }
        let position = self.kept.as_ref().map_or(slot, |kept| kept[found.text][slot]);
        (found, position)
    }
}

/// Passes values on. Stores the first one that is NaN or infinite, and the sample that --check compares.
struct Watched<'a> {
    sink: &'a mut dyn Sink,
    first: Option<NonNumber>,
    /// True if the run continues after a NaN or an infinity.
    goes_on: bool,
    sample: Option<Sample>,
}

impl Sink for Watched<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.watch(site, text, &values)?;
        self.sink.put(site, text, values)
    }

    fn give(&mut self, site: Site, text: usize, values: ArrayD<f32>) -> std::io::Result<Option<ArrayD<f32>>> {
        self.watch(site, text, &values.view())?;
        self.sink.give(site, text, values)
    }
}

impl Watched<'_> {
    /// # Errors
    /// A value is NaN or infinite and the run must not continue. The user's message is built from `first`, not from
    /// this error.
    fn watch(&mut self, site: Site, text: usize, values: &ArrayViewD<'_, f32>) -> std::io::Result<()> {
        let is_earlier = self.first.as_ref().is_none_or(|first| site < first.site);
        if let Some(found) = is_earlier.then(|| NonNumber::find(site, text, values)).flatten() {
            self.first = Some(found);
            if !self.goes_on {
                return Err(std::io::Error::other("a value is not a number"));
            }
        }
        if let Some(sample) = &mut self.sample {
            sample.see(site, text, values.view());
        }
        Ok(())
    }
}
