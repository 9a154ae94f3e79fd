//! What leaves the program as a file. Owns the choice of format by extension and the promise that a file appears whole or
//! not at all; each format is one file here.

pub mod arrays;
mod csv;
mod json;
mod jsonl;
mod npy;
mod npz;
#[cfg(feature = "parquet")]
mod parquet;
pub mod rows;
mod safetensors;
mod store;
pub mod summary;
mod table;
mod unfinished;

use crate::hooks::capture::{Arrays, Sink, StepSink};
use crate::hooks::request::EditRecord;
use crate::hooks::site::Site;
use crate::model::token_select::Word;
use crate::model::tokenizer::Token;
use crate::model::windows::Windows;
use ndarray::{Array2, ArrayViewD};
use npz::Npz;
use rows::RowSink;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, ErrorKind, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
pub use store::bytes_of;
use store::{Layout, Store};
use thiserror::Error;
use unfinished::Unfinished;

pub use json::{Nested, number, write as write_json};
pub use unfinished::abandon;

/// Where the numbers come from: what a reader needs to make them again.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// The model's name as asked for.
    pub model: String,
    /// [`crate::model::checkpoint::Checkpoint::fingerprint`].
    pub fingerprint: String,
    /// The device in words.
    pub device: String,
    /// What was changed on the way; nothing where the run is the model's own.
    pub edits: Vec<EditRecord>,
}

/// Everything that belongs to one run's arrays, known before they are.
pub struct Record<'a> {
    /// The tokens of every text.
    pub tokens: &'a [Vec<Token>],
    /// The texts as given; none where ids were given.
    pub texts: &'a [String],
    /// What the rows of every text are.
    pub rows: Rows<'a>,
    /// How texts were cut into windows, where they were.
    pub windows: Option<Windows>,
    /// Where it comes from.
    pub provenance: &'a Provenance,
    /// How the texts were generated, where they were: JSON.
    pub generation: Option<String>,
    /// Positions of the arrays, and of those the recorded ones, where texts may have ended before them.
    pub reserved: Option<Reserved>,
}

/// How long arrays are that were laid out before the texts were known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Tokens of the longest text.
    pub positions: usize,
    /// Recorded positions of the text that has most.
    pub rows: usize,
}

/// What the rows of a text's values are.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// Its tokens.
    All,
    /// Its tokens at these positions, for every text.
    Positions(&'a [Vec<usize>]),
    /// Words, for every text, and how their tokens were pooled.
    Words(&'a [Vec<Word>], Pool),
    /// One row for all of it: the mean over the tokens at these positions of every text, or over all tokens.
    Mean(Option<&'a [Vec<usize>]>),
}

/// How the tokens of a word become one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The mean over the word's tokens.
    Mean,
    /// The last token's values.
    Last,
}

impl Pool {
    fn name(self) -> &'static str {
        match self {
            Pool::Mean => "mean",
            Pool::Last => "last",
        }
    }
}

/// What a row is called.
struct RowLabel {
    /// The position of its token, or of a word's first.
    position: usize,
    /// The token; `None` for a word.
    id: Option<u32>,
    /// The token's or the word's text.
    text: String,
}

/// Names and definitions of hooks follow this version of TransformerLens.
pub const HOOK_DEFINITIONS: &str = "transformer_lens>=4";

impl Record<'_> {
    /// `input_ids` and `attention_mask`, [batch, pos], padded on the right with zeros.
    fn ids_and_mask(&self) -> (Array2<i64>, Array2<i64>) {
        let reserved = self.reserved.map_or(0, |reserved| reserved.positions);
        let shape = (self.tokens.len(), self.tokens.iter().map(Vec::len).max().unwrap_or(0).max(reserved));
        let (mut ids, mut mask) = (Array2::zeros(shape), Array2::zeros(shape));
        for i in 0..shape.0 {
            for (p, token) in self.tokens[i].iter().enumerate() {
                ids[[i, p]] = i64::from(token.id);
                mask[[i, p]] = 1;
            }
        }
        (ids, mask)
    }

    /// How many rows a text has.
    fn n_rows(&self, text: usize) -> usize {
        match self.rows {
            Rows::All => self.tokens[text].len(),
            Rows::Positions(positions) => positions[text].len(),
            Rows::Words(words, _) => words[text].len(),
            Rows::Mean(_) => usize::from(text == 0),
        }
    }

    /// How many tokens the mean is over.
    fn n_mean(&self, positions: Option<&[Vec<usize>]>) -> usize {
        let of_text = |text: usize| positions.map_or(self.tokens[text].len(), |positions| positions[text].len());
        (0..self.tokens.len()).map(of_text).sum()
    }

    /// What row `slot` of a text is.
    fn row(&self, text: usize, slot: usize) -> RowLabel {
        let of_token = |position: usize| {
            let token = &self.tokens[text][position];
            RowLabel { position, id: Some(token.id), text: token.text() }
        };
        match self.rows {
            Rows::All => of_token(slot),
            Rows::Positions(positions) => of_token(positions[text][slot]),
            Rows::Words(words, _) => {
                let Word { text, tokens } = &words[text][slot];
                RowLabel { position: tokens.start, id: None, text: text.clone() }
            }
            Rows::Mean(positions) => {
                RowLabel { position: 0, id: None, text: format!("mean of {} tokens", self.n_mean(positions)) }
            }
        }
    }

    /// What row `slot` of a text is, as it is shown between quotes.
    fn row_label(&self, text: usize, slot: usize) -> String {
        let of_token = |position: usize| self.tokens[text][position].label();
        match self.rows {
            Rows::All => of_token(slot),
            Rows::Positions(positions) => of_token(positions[text][slot]),
            Rows::Words(words, _) => {
                let bytes = Some(words[text][slot].text.clone().into_bytes());
                Token { id: 0, bytes }.label()
            }
            Rows::Mean(positions) => format!("mean of {} tokens", self.n_mean(positions)),
        }
    }

    /// The tables of whole numbers that go with the arrays, by name: `input_ids` and `attention_mask`, [batch, pos]; the
    /// kept `positions`, or each word's first and last token (`word_first`, `word_last`), [batch, n], padded with -1.
    fn tables(&self) -> Vec<(&'static str, Array2<i64>)> {
        let (ids, mask) = self.ids_and_mask();
        let mut tables = vec![("input_ids", ids), ("attention_mask", mask)];
        let rows = |text: usize| match self.rows {
            Rows::Mean(positions) => positions.map_or(0, |positions| positions[text].len()),
            _ => self.n_rows(text),
        };
        let mut add = |name, of: &dyn Fn(usize, usize) -> usize| {
            let widest = (0..self.tokens.len()).map(rows).max().unwrap_or(0);
            let widest = widest.max(self.reserved.map_or(0, |reserved| reserved.rows));
            let at = |(text, n): (usize, usize)| if n < rows(text) { of(text, n) as i64 } else { -1 };
            tables.push((name, Array2::from_shape_fn((self.tokens.len(), widest), at)));
        };
        match self.rows {
            Rows::All | Rows::Mean(None) => {}
            Rows::Positions(positions) | Rows::Mean(Some(positions)) => add("positions", &|text, n| positions[text][n]),
            Rows::Words(words, _) => {
                add("word_first", &|text, n| words[text][n].tokens.start);
                add("word_last", &|text, n| words[text][n].tokens.end - 1);
            }
        }
        tables
    }

    /// The text of every word, text by text; `None` where rows are tokens.
    fn word_texts(&self) -> Option<Value> {
        let Rows::Words(words, _) = self.rows else { return None };
        Some(words.iter().map(|of_text| of_text.iter().map(|word| word.text.as_str()).collect::<Value>()).collect())
    }

    /// The text of every token, text by text.
    fn token_texts(&self) -> Value {
        self.tokens.iter().map(|of_text| of_text.iter().map(Token::text).collect::<Value>()).collect()
    }

    /// Provenance and texts as pairs of strings, the same in every format. `text` is the text itself, or a JSON array of
    /// several; it is absent where ids were given.
    fn metadata(&self) -> Vec<(&'static str, String)> {
        let mut pairs = vec![
            ("tokens", self.token_texts().to_string()),
            ("model", self.provenance.model.clone()),
            ("model_fingerprint", self.provenance.fingerprint.clone()),
            ("device", self.provenance.device.clone()),
            ("actscope_version", env!("CARGO_PKG_VERSION").to_string()),
            ("hook_definitions", HOOK_DEFINITIONS.to_string()),
        ];
        if let (Some(words), Rows::Words(_, pool)) = (self.word_texts(), self.rows) {
            pairs.extend([("words", words.to_string()), ("pool", pool.name().into())]);
        }
        if let Rows::Mean(positions) = self.rows {
            pairs.push(("mean", format!("over {} tokens", self.n_mean(positions))));
        }
        if !self.provenance.edits.is_empty() {
            pairs.push(("edits", json!(self.provenance.edits).to_string()));
        }
        pairs.extend(self.windows.map(|windows| ("window", windows.to_string())));
        pairs.extend(self.generation.clone().map(|generation| ("generation", generation)));
        match self.texts {
            [] => {}
            [text] => pairs.push(("text", text.clone())),
            several => pairs.push(("text", json!(several).to_string())),
        }
        pairs
    }
}

/// A format, chosen by a file's extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.safetensors`: one tensor per hook, metadata as strings.
    Safetensors,
    /// `.npz`: one array per hook, metadata as the UTF-8 bytes of a JSON object in `metadata_json`.
    Npz,
    /// `.npy`: the array of one hook.
    Npy,
    /// `.json`: nested lists; what is no number as a string.
    Json,
    /// `.jsonl`: one object per hook, text, position and head.
    Jsonl,
    /// `.csv`: one row per hook, text, position and head.
    Csv,
    /// `.parquet`: the same rows; in builds with the feature `parquet`.
    Parquet,
}

/// Why a file could not be written.
#[derive(Debug, Error)]
pub enum OutputError {
    /// The extension names no format.
    #[error("cannot tell the format of {path}: its name must end in {known}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The extensions there are, in words.
        known: &'static str,
    },
    /// The format is known, but not to this build.
    #[error(
        "{path}: this actscope was built without the feature `{feature}`; build it with --features {feature}, or write {instead}"
    )]
    Feature {
        /// The file.
        path: PathBuf,
        /// The Cargo feature.
        feature: &'static str,
        /// Another format.
        instead: &'static str,
    },
    /// The format holds one array.
    #[error("{path} can hold one array, and {hooks} hooks were asked for; name one, or write .npz or .safetensors")]
    Several {
        /// The file.
        path: PathBuf,
        /// How many.
        hooks: usize,
    },
    /// The file or its folder cannot be written.
    #[error("cannot write {path}: {detail}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system or the format's library said.
        detail: String,
    },
}

/// The place of a file that will be there whole or not at all: it is written in a folder of its own beside its place and
/// renamed.
pub struct Place {
    path: PathBuf,
    folder: Unfinished,
}

impl Place {
    /// Makes the folder to write in, so that this can fail before anything is computed. A symbolic link is followed: what it
    /// points to is replaced.
    ///
    /// # Errors
    /// [`OutputError::Write`] for a folder or a file that cannot be written.
    pub fn create(path: &Path) -> Result<Place, OutputError> {
        let fail = |detail: String| OutputError::Write { path: path.into(), detail };
        let path = match std::fs::read_link(path) {
            // To where it leads in the end, or at least one step where it leads nowhere.
            Ok(to) => path.canonicalize().unwrap_or_else(|_| path.parent().unwrap_or(Path::new("")).join(to)),
            Err(_) => path.to_path_buf(),
        };
        if path.exists() && !path.is_file() {
            return Err(fail("it is there and is no file".into()));
        }
        if path.exists() {
            // A file that may not be written is not replaced either.
            File::options().append(true).open(&path).map_err(|e| fail(e.to_string()))?;
        }
        let beside = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !beside.is_dir() {
            let what = if beside.exists() { "is no folder" } else { "does not exist" };
            return Err(fail(format!("the folder {} {what}; make it, or name another", beside.display())));
        }
        // The error's own text names the folder in which the file would have been written, which is our affair.
        let folder = Unfinished::create(beside)
            .map_err(|e| fail(format!("its folder {} takes no new file: {}", beside.display(), e.kind())))?;
        Ok(Place { path, folder })
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets `write` write the file, closed when it returns, and puts it in its place; gives back its size in bytes. A file
    /// that was there before is replaced and keeps its permissions.
    ///
    /// # Errors
    /// [`OutputError::Write`]; then nothing is left behind.
    pub fn fill(self, write: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<u64, OutputError> {
        let part = self.part(PART);
        let put = || {
            write(&part)?;
            if let Ok(old) = std::fs::metadata(&self.path) {
                std::fs::set_permissions(&part, old.permissions())?;
            }
            let bytes = std::fs::metadata(&part)?.len();
            std::fs::rename(&part, &self.path)?;
            Ok(bytes)
        };
        put().map_err(|e: std::io::Error| self.failed(e))
    }

    fn part(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn failed(&self, detail: impl ToString) -> OutputError {
        OutputError::Write { path: self.path.clone(), detail: detail.to_string() }
    }
}

/// A record's file to be: its format and its [`Place`].
pub struct Output {
    format: Format,
    place: Place,
}

impl Output {
    /// Chooses the format by the extension and makes the place.
    ///
    /// # Errors
    /// [`OutputError`] for an unknown extension or a folder that cannot be written.
    pub fn create(path: &Path) -> Result<Output, OutputError> {
        let format = match extension(path).as_str() {
            "safetensors" => Format::Safetensors,
            "npz" => Format::Npz,
            "npy" => Format::Npy,
            "json" => Format::Json,
            "jsonl" => Format::Jsonl,
            "csv" => Format::Csv,
            "parquet" if cfg!(feature = "parquet") => Format::Parquet,
            "parquet" => return Err(OutputError::Feature { path: path.into(), feature: "parquet", instead: ".csv" }),
            _ => return Err(OutputError::Format { path: path.into(), known: KNOWN }),
        };
        Ok(Output { format, place: Place::create(path)? })
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// Says no to more hooks than the format holds.
    ///
    /// # Errors
    /// [`OutputError::Several`].
    pub fn check(&self, hooks: usize) -> Result<(), OutputError> {
        match self.format {
            Format::Npy if hooks != 1 => Err(OutputError::Several { path: self.place.path.clone(), hooks }),
            _ => Ok(()),
        }
    }

    /// How many bytes the file will have; `None` where that depends on the values (the formats of text, and .parquet).
    ///
    /// # Errors
    /// [`OutputError::Write`] for a file that no reader would take.
    pub fn size(&self, record: &Record<'_>, shapes: Vec<(Site, Vec<usize>)>) -> Result<Option<u64>, OutputError> {
        Ok(match self.format {
            Format::Safetensors => Some(safetensors::layout(record, shapes, 0).map_err(|e| self.place.failed(e))?.size),
            Format::Npz => Some(Npz::new(record, shapes.clone(), 0).layout(shapes).size),
            Format::Npy => Some(npy::layout(shapes).size),
            Format::Json | Format::Jsonl | Format::Csv | Format::Parquet => None,
        })
    }

    /// Begins the file for arrays of these shapes. Takes the room on the disk that they need, so that a full disk says so
    /// before anything is computed.
    ///
    /// # Errors
    /// [`OutputError::Write`]; then nothing is left behind.
    pub fn begin<'a>(
        self,
        record: &'a Record<'a>,
        shapes: Vec<(Site, Vec<usize>)>,
    ) -> Result<Writing<'a>, OutputError> {
        let create = |name: &str, layout: &Layout, sums: bool| {
            let failed = |e: std::io::Error| match e.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                    self.place.failed(format!("it takes {} bytes, and {e}", layout.size))
                }
                _ => self.place.failed(e),
            };
            Store::create(&self.place.part(name), layout, sums).map_err(failed)
        };
        let (store, body) = match self.format {
            Format::Safetensors => {
                let layout = safetensors::layout(record, shapes, 0).map_err(|e| self.place.failed(e))?;
                let header = safetensors::header_bytes(&layout);
                (create(PART, &layout, false)?, Body::Safetensors { header })
            }
            Format::Npz => {
                let npz = Npz::new(record, shapes.clone(), 0);
                (create(PART, &npz.layout(shapes), true)?, Body::Npz(npz))
            }
            Format::Npy => (create(PART, &npy::layout(shapes), false)?, Body::Whole),
            // Written from front to back, hook by hook: the values wait in a file of their own until all are there.
            Format::Json | Format::Jsonl | Format::Csv | Format::Parquet => {
                (create(VALUES, &Layout::bare(shapes), false)?, Body::Text)
            }
        };
        Ok(Writing { output: self, record, store, body })
    }
}

/// The extensions there are, in words.
const KNOWN: &str = ".safetensors, .npz, .npy, .json, .jsonl, .csv or .parquet";

/// Text for XML and HTML.
pub(crate) fn escape_xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A file name's extension in small letters; empty where it has none.
pub fn extension(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).unwrap_or_default()
}

/// The file, in the folder of its own.
const PART: &str = "part";

/// Values that wait for their place in the file.
const VALUES: &str = "values";

/// An [`Output`] that is being written: a sink for the run that fills it.
pub struct Writing<'a> {
    output: Output,
    record: &'a Record<'a>,
    store: Store,
    body: Body,
}

/// What is left to do once all values are there.
enum Body {
    /// Nothing.
    Whole,
    /// Nothing, unless the record changes: then a header of so many bytes.
    Safetensors { header: usize },
    /// Checksums and the directory.
    Npz(Npz),
    /// Everything.
    Text,
}

impl Sink for Writing<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        // The error travels through the run as one of the system's; it must not lose the file's name on its way.
        self.store.put(site, text, values).map_err(|e| std::io::Error::new(e.kind(), self.output.place.failed(e)))
    }
}

impl RowSink for Writing<'_> {
    fn put_rows(&mut self, site: Site, text: usize, first: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        let put = self.store.put_rows(site, text, first, values);
        put.map_err(|e| std::io::Error::new(e.kind(), self.output.place.failed(e)))
    }
}

impl StepSink for Writing<'_> {
    fn fill_keys(
        &mut self,
        site: Site,
        text: usize,
        row: usize,
        keys: Range<usize>,
        value: f32,
    ) -> std::io::Result<()> {
        let filled = self.store.fill_keys(site, text, row, keys, value);
        filled.map_err(|e| std::io::Error::new(e.kind(), self.output.place.failed(e)))
    }
}

/// Values of a run on the disk, in a file that goes with them: for what is printed from front to back and may be larger than
/// memory.
pub struct Scratch {
    store: Store,
    _folder: tempfile::TempDir,
}

impl Scratch {
    /// Room for arrays of these shapes in the system's folder for temporary files.
    ///
    /// # Errors
    /// Those of the file.
    pub fn create(shapes: Vec<(Site, Vec<usize>)>) -> std::io::Result<Scratch> {
        let folder = tempfile::tempdir()?;
        let store = Store::create(&folder.path().join(VALUES), &Layout::bare(shapes), false)?;
        Ok(Scratch { store, _folder: folder })
    }

    /// The values.
    pub fn arrays(&self) -> &dyn Arrays {
        &self.store
    }
}

impl RowSink for Scratch {
    fn put_rows(&mut self, site: Site, text: usize, first: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.store.put_rows(site, text, first, values)
    }
}

impl<'a> Writing<'a> {
    /// Replaces the record with one that is known now: of the same texts, whose tokens and metadata are no longer than those of
    /// the record that the file was begun with, and whose arrays have the same shapes.
    ///
    /// # Errors
    /// [`OutputError::Write`].
    pub fn with_record(mut self, record: &'a Record<'a>) -> Result<Writing<'a>, OutputError> {
        let shapes = self.store.shapes();
        let between = match &mut self.body {
            Body::Safetensors { header } => {
                let layout = safetensors::layout(record, shapes, *header).map_err(|e| self.output.place.failed(e))?;
                assert_eq!(safetensors::header_bytes(&layout), *header, "the record fits where it was begun");
                layout.between
            }
            Body::Npz(npz) => {
                *npz = Npz::new(record, shapes.clone(), npz.metadata_bytes());
                npz.layout(shapes).between
            }
            Body::Whole | Body::Text => Vec::new(),
        };
        let mut write = between.iter();
        let written = write.try_for_each(|(at, bytes)| self.store.write_at(*at, bytes));
        written.map_err(|e| self.output.place.failed(e))?;
        self.record = record;
        Ok(self)
    }

    /// Ends the file and puts it in its place; gives back its size in bytes. A file that was there before is replaced and
    /// keeps its permissions.
    ///
    /// # Errors
    /// [`OutputError::Write`]; then nothing is left behind.
    pub fn finish(self) -> Result<u64, OutputError> {
        let Writing { output, record, mut store, body } = self;
        let Output { format, place } = output;
        place.fill(|part| match body {
            Body::Whole | Body::Safetensors { .. } => Ok(()),
            Body::Npz(npz) => npz.finish(&mut store),
            Body::Text => buffered(part, |out| match format {
                Format::Csv => csv::write(record, &store, out),
                Format::Jsonl => jsonl::write(record, &store, out),
                #[cfg(feature = "parquet")]
                Format::Parquet => parquet::write(record, &store, out),
                _ => json::write(record, &store, out),
            }),
        })
    }
}

/// Writes a file through a buffer, to its last byte.
pub(crate) fn buffered(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    write(&mut out)?;
    out.flush()
}
