//! `actscope generate`: the model continues texts, and its activations are written to a file. Owns the text on stdout.
//! Read next: `../analysis/generate.rs`, which generates.

use super::extract::Forecast;
use super::report::arguments as report_arguments;
use super::run::{EditedRunArgs, SiteArgs, TokenArgs};
use super::texts::TextArgs;
use super::{Failure, ModelArgs, interrupt, lens, n_hooks, size};
use crate::analysis::generate::{Generated, Generation, NewToken, StopReason, TextSoFar, Told};
use crate::analysis::lens::{Prediction, sites};
use crate::analysis::sampling::Sampling;
use crate::batch::Batch;
use crate::hooks::capture::StepSink;
use crate::hooks::layout::Layout;
use crate::hooks::request::{EditRecord, Hooks};
use crate::model::tokenizer::Token;
use crate::output::{self, Output, Place, Provenance, Record, Reserved, Rows};
use crate::plot::lens::LensTable;
use crate::plot::terminal::Terminal;
use crate::plot::{Heading, Picture};
use crate::report::{self, About};
use crate::session::{Model, Session};
use clap::Args;
use serde::Serialize;
use std::hash::{BuildHasher, Hasher};
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Arguments of `actscope generate`.
#[derive(Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// The largest number of new tokens of each text
    #[arg(short, long = "new-tokens", value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    /// 0 takes the likeliest token each time; 1 draws from the model's own distribution; above 1 is more random
    #[arg(long, value_name = "F", default_value_t = 0.0)]
    temperature: f64,
    /// Draw from the K likeliest tokens only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the smallest set of likeliest tokens whose probabilities reach P
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Draw from tokens that are at least P times as likely as the likeliest token
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Make tokens that already occur in the text less likely; 1 changes nothing
    #[arg(long, value_name = "F", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// The same seed gives the same text on the same device [default: a random seed, which is printed]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Texts for each prompt
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// End a text when its new tokens contain TEXT. Repeatable
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Print the N likeliest tokens at each step, with their probabilities
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    alternatives: usize,
    /// Print the logit lens of each step: the token that each layer would predict
    #[arg(long)]
    lens: bool,
    #[command(flatten)]
    sites: SiteArgs,
    #[command(flatten)]
    token: TokenArgs,
    /// Output file for the activations of prompt and new tokens: .safetensors, .npz, .npy (one hook), .json, .jsonl or
    /// .csv; or .html for a page of a single text, as `report` writes it
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    edited: EditedRunArgs,
    /// Print the hooks, their shapes and sizes, and the memory that the run needs; run nothing
    #[arg(long)]
    dry_run: bool,
}

/// The JSON of a run.
#[derive(Serialize)]
struct Document {
    texts: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    prompt_ids: Vec<u32>,
    /// Prompt and new tokens.
    ids: Vec<u32>,
    /// The new tokens' text; null without a tokenizer.
    text: Option<String>,
    logprobs: Vec<f64>,
    stop: StopReason,
    #[serde(skip_serializing_if = "Option::is_none")]
    alternatives: Option<Vec<Vec<Alternative>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lens: Option<Vec<lens::Row>>,
}

#[derive(Serialize)]
struct Alternative {
    id: u32,
    token: String,
    probability: f64,
}

impl Generate {
    /// Runs the command. Checks the whole request before any weight is loaded.
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.out.is_none() && (!self.sites.is_empty() || !self.token.is_empty()) {
            return Err(Failure::Usage(
                "--hook, --layer and --token choose what a file holds; name it with --out, such as -o run.safetensors"
                    .into(),
            ));
        }
        let input = self.texts.read(&self.model)?;
        let is_page = |path: &&PathBuf| ["html", "htm"].contains(&output::extension(path).as_str());
        let page = self.out.as_ref().filter(is_page).map(|path| Place::create(path)).transpose()?;
        let output = match &page {
            None => self.out.as_deref().map(Output::create).transpose()?,
            Some(_) if !self.sites.is_empty() || !self.token.is_empty() => {
                return Err(Failure::Usage(
                    "a page shows what `report` shows; leave out --hook, --layer and --token".into(),
                ));
            }
            Some(_) => None,
        };
        let files = self.model.open()?;
        if let Some(path) = output.as_ref().map(Output::path).or(page.as_ref().map(Place::path)) {
            self.texts.refuse_to_overwrite(path, &files, &self.edited.edits)?;
        }
        let prompts = self.texts.batch(&input, &files, &self.model)?;
        let generation = self.generation(&files)?;
        let whole = generation.texts(&prompts, &files)?;
        if let (Some(_), n @ 2..) = (&page, whole.texts().len()) {
            return Err(Failure::Usage(format!(
                "a page shows one text, and {n} are generated; give one prompt and one sample"
            )));
        }
        self.say_limits(&prompts, &whole, &files);
        let mut hooks = if output.is_some() { self.sites.hooks(&files, &self.model)? } else { files.hooks() };
        let tokens_of = |text: usize| -> Vec<Token> {
            prompts.ids_of(text / generation.samples).iter().map(|id| files.token(*id)).collect()
        };
        let n_texts = whole.texts().len();
        let prompt_tokens: Vec<Vec<Token>> = (0..n_texts).map(tokens_of).collect();
        let longest: Vec<usize> = whole.texts().iter().map(|text| text.len()).collect();
        let positions = self.token.positions_of_growing(&prompt_tokens, &longest, &self.model)?;
        if let Some(positions) = &positions {
            hooks.at_positions(positions);
        }
        hooks.check_batch(&whole)?;
        if let Some(output) = &output {
            output.check(hooks.shapes(&whole).len())?;
        }

        let rows: Vec<&[u32]> = (0..n_texts).map(|text| prompts.ids_of(text / generation.samples)).collect();
        let rows = files.batch(&rows)?;
        let plan = self.edited.edits.plan_of_growing(&self.texts, &files, (&whole, &rows), &self.model)?;

        if self.dry_run {
            let cache_bytes = Some(generation.cache_bytes(&whole, files.config()));
            let weight_bytes = files.checkpoint().file_bytes();
            let forecast = Forecast { weight_bytes, cache_bytes, ..Forecast::of(&hooks.shapes(&whole)) };
            return self.model.forecast(&forecast, None);
        }

        let session = self.edited.run.session(files, &self.model)?;
        let edits = self.model.edit_growing(&plan, &session, (&whole, &rows), &mut hooks)?;
        interrupt::listen();
        let mut stream = Stream::new(&self, &session, &prompts, n_texts);
        // The page is written after the run, and needs the edits too.
        let of_page = page.map(|place| (place, edits.clone()));
        let written = match output {
            None => self.generate(&session, &prompts, &generation, &hooks, &mut (), &mut stream)?,
            Some(output) => {
                let file = FileOf { session: &session, generation: &generation, whole: &whole, positions, edits };
                file.write(&self, output, &hooks, |sink| {
                    self.generate(&session, &prompts, &generation, &hooks, sink, &mut stream)
                })?
            }
        };
        // First, since stdout may be closed.
        if let (Some((place, edits)), [text]) = (of_page, written.as_slice()) {
            self.page(place, &session, text, (&whole, &hooks), edits)?;
        }
        stream.finish(&written)?;
        if self.model.json {
            let texts = written.iter().map(|text| self.entry(&session, text)).collect();
            let mut stdout = std::io::stdout().lock();
            serde_json::to_writer(&mut stdout, &Document { texts }).map_err(std::io::Error::from)?;
            writeln!(stdout)?;
        } else {
            self.tables(&session, &written)?;
        }
        interrupt::follow();
        Ok(())
    }

    fn generation(&self, files: &Model) -> Result<Generation, Failure> {
        let draws = self.temperature != 0.0;
        let seed =
            self.seed.unwrap_or_else(|| if draws { std::hash::RandomState::new().build_hasher().finish() } else { 0 });
        if draws && self.seed.is_none() {
            self.model.say(format_args!("seed: {seed}"));
        }
        let filters = self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        if !draws && (filters || self.samples > 1) {
            self.model.say(format_args!(
                "note: temperature 0 takes the likeliest token each time, so filters and samples make no difference; \
                 --temperature 1 draws"
            ));
        }
        if !self.stop.is_empty() {
            files.tokenizer()?;
        }
        let generation = Generation {
            new_tokens: self.n as usize,
            samples: self.samples as usize,
            sampling: Sampling {
                temperature: self.temperature,
                top_k: self.top_k,
                top_p: self.top_p,
                min_p: self.min_p,
                repetition_penalty: self.repetition_penalty,
                seed,
            },
            end_of_text: files.end_of_text(),
            stop_texts: self.stop.clone(),
            alternatives: self.alternatives,
            lens: if self.lens { lens::TOP } else { 0 },
        };
        generation.check().map_err(crate::session::Error::from)?;
        Ok(generation)
    }

    /// Prints a note for each text that reaches the end of the model's context before it has all new tokens.
    fn say_limits(&self, prompts: &Batch, whole: &Batch, files: &Model) {
        for (text, prompt) in prompts.texts().iter().enumerate() {
            let room = whole.texts()[text * self.samples as usize].len() - prompt.len();
            if room < self.n as usize {
                self.model.say(format_args!(
                    "note: text {text} has {} tokens and the model {} positions, so it gets at most {room} new tokens",
                    prompt.len(),
                    files.config().n_positions
                ));
            }
        }
    }

    fn generate(
        &self,
        session: &Session,
        prompts: &Batch,
        generation: &Generation,
        hooks: &Hooks,
        sink: &mut dyn StepSink,
        stream: &mut Stream<'_>,
    ) -> Result<Vec<Generated>, Failure> {
        let mut tell = |told: Told<'_>| {
            stream.hear(told);
            if stream.failed.is_some() || interrupt::happened() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        let written = session.generate_async(prompts, generation, hooks, sink, &mut tell, None);
        Ok(pollster::block_on(written)?)
    }

    /// Writes the page of a generated text. Its activations come from a new run over the whole text, with the same edits.
    fn page(
        &self,
        place: Place,
        session: &Session,
        text: &Generated,
        (whole, hooks): (&Batch, &Hooks),
        edits: Vec<EditRecord>,
    ) -> Result<(), Failure> {
        let model = session.model();
        let batch = model.batch(&[&text.ids])?;
        let layout = Layout::new(hooks, whole)?;
        let mut edited = model.hooks();
        for (site, select, edit) in layout.edits_of_prefix(0, text.ids.len()) {
            edited.edit_at(site, select, edit)?;
        }
        let page = self.model.with_progress("steps of the page", async |told| {
            report::gather(session, &batch, &edited, report::LARGEST, Some(told)).await
        })?;
        if let Some(found) = &page.non_number {
            self.model.say(format_args!(
                "note: {} holds {} at position {}, and values computed from it are unreliable",
                found.site,
                found.what(),
                found.slot()
            ));
        }
        let provenance = Provenance::new(session, edits);
        let tokens: Vec<Token> = text.ids.iter().map(|id| model.token(*id)).collect();
        // No `report` command makes the page of an edited text: its --edit counts negative positions from the end of
        // the whole text, and here they count from the end of the prompt.
        let arguments =
            (!self.edited.edits.any()).then(|| report_arguments(&self.model, &self.edited.run, &[], &text.ids));
        let about = About {
            files: model,
            tokens: &tokens,
            arguments: arguments.as_deref(),
            provenance: &provenance,
            prompt_tokens: Some(text.prompt_tokens),
        };
        let path = place.path().display().to_string();
        let bytes = place.fill(|part| output::buffered(part, |out| page.write(&about, out)))?;
        self.model.say(format_args!("wrote {path}: {} tokens, {}", tokens.len(), size(bytes)));
        page.coarsened().iter().for_each(|what| self.model.say(format_args!("note: {what}")));
        Ok(())
    }

    fn entry(&self, session: &Session, text: &Generated) -> Entry {
        let alternatives = |token: &NewToken| {
            let told = |(id, probability): &(u32, f64)| Alternative {
                id: *id,
                token: session.model().token(*id).text(),
                probability: *probability,
            };
            token.alternatives.iter().map(told).collect::<Vec<_>>()
        };
        Entry {
            prompt_ids: text.ids[..text.prompt_tokens].to_vec(),
            ids: text.ids.clone(),
            text: decoded(session, text.new_ids()),
            logprobs: text.new.iter().map(|token| token.logprob).collect(),
            stop: text.stop,
            alternatives: (self.alternatives > 0).then(|| text.new.iter().map(alternatives).collect()),
            lens: self.lens.then(|| {
                let rows = sites(session.model().config().n_layer).enumerate();
                rows.map(|(row, site)| lens::numbers(session, site, &predictions(text, row))).collect()
            }),
        }
    }

    /// Prints the tables that --alternatives and --lens ask for.
    fn tables(&self, session: &Session, written: &[Generated]) -> Result<(), Failure> {
        let (terminal, mut out) = (Terminal::of_stdout(), std::io::BufWriter::new(std::io::stdout().lock()));
        let label = |id: u32| session.model().token(id).label();
        for (n, text) in written.iter().enumerate().filter(|_| self.alternatives > 0) {
            writeln!(out, "\n{}the likeliest tokens at each step", heading(written, n))?;
            for token in &text.new {
                let told = |(id, p): &(u32, f64)| format!("{:.3} \"{}\"", p, label(*id));
                let others: Vec<String> = token.alternatives.iter().map(told).collect();
                writeln!(
                    out,
                    "  {:<20} {:.3}   {}",
                    format!("\"{}\"", label(token.id)),
                    token.logprob.exp(),
                    others.join("  ")
                )?;
            }
        }
        for (n, text) in written.iter().enumerate().filter(|(_, text)| self.lens && !text.new.is_empty()) {
            let n_layer = session.model().config().n_layer;
            let read = &text.ids[text.prompt_tokens - 1..text.ids.len() - 1];
            let table = LensTable {
                heading: Heading {
                    text: read.iter().map(|id| session.model().token(*id)).collect(),
                    what: format!("{}logit lens of {}", heading(written, n), session.model().name()),
                },
                rows: sites(n_layer)
                    .enumerate()
                    .map(|(row, site)| (lens::name(site, n_layer), lens::cells(session, &predictions(text, row))))
                    .collect(),
            };
            writeln!(out)?;
            table.print(&terminal, &mut out)?;
        }
        out.flush()?;
        Ok(())
    }
}

/// The beginning of a table's heading, which names the text if there are several.
fn heading(written: &[Generated], n: usize) -> String {
    match written {
        [_] => String::new(),
        _ => format!("text {}, sample {}: ", written[n].prompt, written[n].sample),
    }
}

/// The predictions of one row of the lens, one for each new token.
fn predictions(text: &Generated, row: usize) -> Vec<Prediction> {
    text.new.iter().map(|token| token.lens[row].clone()).collect()
}

/// The text of token ids; `None` without a tokenizer.
fn decoded(session: &Session, ids: &[u32]) -> Option<String> {
    session.model().tokenizer().ok()?.decode(ids).ok()
}

/// Prints generated text on stdout. A single text is printed token by token. Several texts are printed in order, each
/// once it has ended.
struct Stream<'a> {
    session: &'a Session,
    prints: bool,
    single: bool,
    is_terminal: bool,
    texts: Vec<Written>,
    /// How many texts have been printed.
    printed: usize,
    samples: usize,
    /// The error that ended printing.
    failed: Option<std::io::Error>,
}

#[derive(Clone, Default)]
struct Written {
    text: TextSoFar,
    ended: bool,
}

impl<'a> Stream<'a> {
    fn new(command: &Generate, session: &'a Session, prompts: &Batch, n_texts: usize) -> Stream<'a> {
        let is_terminal = std::io::stdout().is_terminal();
        let mut stream = Stream {
            session,
            prints: !command.model.json,
            single: n_texts == 1,
            is_terminal,
            texts: vec![Written::default(); n_texts],
            printed: 0,
            samples: command.samples as usize,
            failed: None,
        };
        // On a terminal the prompt is printed first. A script gets the new text only.
        if stream.prints && stream.single && is_terminal {
            let prompt = stream.text(prompts.ids_of(0));
            stream.print(&prompt);
        }
        stream
    }

    fn text(&self, ids: &[u32]) -> String {
        decoded(self.session, ids).unwrap_or_else(|| ids.iter().map(|id| format!("#{id} ")).collect())
    }

    fn print(&mut self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        let shown = if self.is_terminal { shown(text) } else { text.into() };
        let done = stdout.write_all(shown.as_bytes()).and_then(|()| stdout.flush());
        self.failed = self.failed.take().or(done.err());
    }

    fn hear(&mut self, told: Told<'_>) {
        let is_end = told.stop == Some(StopReason::EndOfText);
        let written = &mut self.texts[told.text];
        if !is_end {
            written.text.push(told.token.id);
        }
        written.ended = told.stop.is_some();
        if self.single && self.prints {
            self.print_new(told.stop.is_some());
        }
        while self.prints && !self.single && self.texts.get(self.printed).is_some_and(|text| text.ended) {
            self.print_block();
        }
    }

    /// Prints the new part of the single text. Bytes of an incomplete character are printed only if `is_all`.
    fn print_new(&mut self, is_all: bool) {
        let mut text = std::mem::take(&mut self.texts[0].text);
        let new = text.take(is_all, |ids| self.text(ids));
        self.texts[0].text = text;
        if !new.is_empty() {
            self.print(&new);
        }
    }

    fn print_block(&mut self) {
        let n = self.printed;
        let text = self.text(self.texts[n].text.ids());
        let which = format!("--- text {}, sample {}\n{text}\n", n / self.samples, n % self.samples);
        self.printed += 1;
        self.print(&which);
    }

    /// Prints the rest of all texts.
    ///
    /// # Errors
    /// The first error of printing.
    fn finish(mut self, written: &[Generated]) -> Result<(), Failure> {
        if self.prints && self.single {
            self.print_new(true);
            self.print("\n");
        }
        while self.prints && !self.single && self.printed < written.len() {
            self.print_block();
        }
        self.failed.map_or(Ok(()), |e| Err(e.into()))
    }
}

/// A text with control characters escaped, except line breaks and tabs, so that it is safe on a terminal.
fn shown(text: &str) -> String {
    let safe = |c: char| c == '\n' || c == '\t' || !crate::model::token::is_control(c);
    text.chars().map(|c| if safe(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}

/// What is needed to write the file of activations.
struct FileOf<'a> {
    session: &'a Session,
    generation: &'a Generation,
    /// The texts at their greatest possible length.
    whole: &'a Batch,
    positions: Option<Vec<Vec<usize>>>,
    edits: Vec<EditRecord>,
}

impl FileOf<'_> {
    /// Writes the file while `run` generates. The metadata is first written at its greatest possible length, because
    /// the layout of the file is fixed before the run.
    fn write(
        &self,
        command: &Generate,
        output: Output,
        hooks: &Hooks,
        run: impl FnOnce(&mut dyn StepSink) -> Result<Vec<Generated>, Failure>,
    ) -> Result<Vec<Generated>, Failure> {
        let (model, path) = (self.session.model(), output.path().display().to_string());
        let shapes = hooks.shapes(self.whole);
        let provenance = Provenance::new(self.session, self.edits.clone());
        let n_texts = self.whole.texts().len();
        let longest_token =
            (0..model.config().vocab_size as u32).filter_map(|id| model.token(id).bytes.map(|bytes| bytes.len())).max();
        // The longest token in JSON: a control character takes more bytes than any other character.
        let longest = Token { id: u32::MAX, bytes: longest_token.map(|bytes| vec![1; bytes]) };
        let lengths: Vec<usize> = self.whole.texts().iter().map(|text| text.len()).collect();
        let reserved = Reserved {
            positions: self.whole.n_pos(),
            rows: match &self.positions {
                Some(lists) => lists.iter().map(Vec::len).max().unwrap_or(0),
                None => self.whole.n_pos(),
            },
        };
        let tokens: Vec<Vec<Token>> = lengths.iter().map(|n| vec![longest.clone(); *n]).collect();
        let a_text = |n: &usize| "\u{1}".repeat(n * (longest_token.unwrap_or(0) + 8));
        let texts: Vec<String> = match model.tokenizer() {
            Ok(_) => lengths.iter().map(a_text).collect(),
            Err(_) => Vec::new(),
        };
        let everything = self.positions.as_ref().map_or(Rows::All, |lists| Rows::Positions(lists));
        let longest_stops = vec![(usize::MAX, StopReason::Interrupted); n_texts];
        let begun = Record {
            tokens: &tokens,
            texts: &texts,
            rows: everything,
            windows: None,
            provenance: &provenance,
            generation: Some(self.generation.settings(&longest_stops)),
            gradient: None,
            reserved: Some(reserved),
        };
        let mut writing = output.begin(&begun, shapes.clone())?;
        let written = run(&mut writing)?;

        let of_run = |text: &Generated| text.ids[..text.run].iter().map(|id| model.token(*id)).collect();
        let tokens: Vec<Vec<Token>> = written.iter().map(of_run).collect();
        let texts: Vec<String> =
            written.iter().filter_map(|text| decoded(self.session, &text.ids[..text.run])).collect();
        let reached: Option<Vec<Vec<usize>>> = self.positions.as_ref().map(|lists| {
            let of_text = |(list, text): (&Vec<usize>, &Generated)| {
                list.iter().copied().filter(|position| *position < text.run).collect()
            };
            lists.iter().zip(&written).map(of_text).collect()
        });
        let stops: Vec<(usize, StopReason)> = written.iter().map(|text| (text.prompt_tokens, text.stop)).collect();
        let record = Record {
            tokens: &tokens,
            texts: &texts,
            rows: reached.as_ref().map_or(Rows::All, |lists| Rows::Positions(lists)),
            windows: None,
            provenance: &provenance,
            generation: Some(self.generation.settings(&stops)),
            gradient: None,
            reserved: Some(reserved),
        };
        let bytes = writing.with_record(&record)?.finish()?;
        command.model.say(format_args!("wrote {path}: {}, {}", n_hooks(shapes.len()), size(bytes)));
        Ok(written)
    }
}
