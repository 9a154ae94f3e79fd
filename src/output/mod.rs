//! Output files. Owns the choice of format by extension, and guarantees that a file appears complete or not at all.
//! Each format is one file here. Read next: `store.rs`, then `npz.rs` or `safetensors.rs`.

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

use crate::hooks::capture::{ArrayKey, ArraySink, Arrays, Sink, StepSink};
use crate::hooks::request::EditRecord;
use crate::hooks::site::Site;
use crate::model::process::Process;
use crate::model::token_select::Word;
use crate::model::tokenizer::Token;
use crate::model::windows::Windows;
use crate::session::Session;
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

/// Provenance: what a reader needs to compute the values again.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// The model's name as given.
    pub model: String,
    /// [`crate::model::checkpoint::Checkpoint::fingerprint`], or that of every byte.
    pub fingerprint: String,
    /// How the weights were processed.
    pub process: Process,
    /// A description of the device.
    pub device: String,
    /// The edits of the run; empty for an unedited run.
    pub edits: Vec<EditRecord>,
}

impl Provenance {
    /// Of a run of a session with these edits.
    pub fn new(session: &Session, edits: Vec<EditRecord>) -> Provenance {
        let model = session.model();
        Provenance {
            model: model.name().into(),
            fingerprint: model.checkpoint().fingerprint(),
            process: model.checkpoint().process(),
            device: session.device().to_string(),
            edits,
        }
    }
}

/// Everything about one run's arrays that is known before the run.
#[derive(Debug)]
pub struct Record<'a> {
    /// The tokens of every text.
    pub tokens: &'a [Vec<Token>],
    /// The texts as given; `None` if ids were given.
    pub texts: &'a [String],
    /// What each row of a text stands for.
    pub rows: Rows<'a>,
    /// How texts were split into windows, if they were.
    pub windows: Option<Windows>,
    /// The provenance.
    pub provenance: &'a Provenance,
    /// How the texts were generated, as JSON, if they were.
    pub generation: Option<String>,
    /// What the gradients are of, if there are any.
    pub gradient: Option<Value>,
    /// The arrays' lengths, if they were laid out before the texts' lengths were known.
    pub reserved: Option<Reserved>,
}

/// Lengths of arrays that were laid out before the texts' lengths were known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Tokens of the longest text.
    pub positions: usize,
    /// The largest number of recorded positions of a text.
    pub rows: usize,
}

/// What each row of a text's values stands for.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Its tokens.
    All,
    /// Its tokens at these positions, for every text.
    Positions(&'a [Vec<usize>]),
    /// Words, for every text, and how their tokens were pooled.
    Words(&'a [Vec<Word>], Pool),
    /// One row in total: the mean over the tokens at these positions of every text, or over all tokens.
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

/// The label of a row.
struct RowLabel {
    /// The position of its token, or of a word's first token.
    position: usize,
    /// The token; `None` for a word.
    id: Option<u32>,
    /// The token's or the word's text.
    text: String,
}

/// The version of TransformerLens whose names and definitions of hooks we use.
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

    /// The label of row `slot` of a text.
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

    /// The label of row `slot` of a text in display form, for use between quotes.
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

    /// The integer tables that accompany the arrays, by name: `input_ids` and `attention_mask`, [batch, pos]; the
    /// recorded `positions`, or each word's first and last token (`word_first`, `word_last`), [batch, n], padded with
    /// -1.
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

    /// The text of every word, text by text; `None` if rows are tokens.
    fn word_texts(&self) -> Option<Value> {
        let Rows::Words(words, _) = self.rows else { return None };
        Some(words.iter().map(|of_text| of_text.iter().map(|word| word.text.as_str()).collect::<Value>()).collect())
    }

    /// The text of every token, text by text.
    fn token_texts(&self) -> Value {
        self.tokens.iter().map(|of_text| of_text.iter().map(Token::text).collect::<Value>()).collect()
    }

    /// Provenance and texts as pairs of strings, the same in every format. `text` is the text itself, or a JSON array
    /// of several texts; it is absent if ids were given.
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
        if !self.provenance.process.is_none() {
            pairs.push(("process", self.provenance.process.to_string()));
        }
        if !self.provenance.edits.is_empty() {
            pairs.push(("edits", json!(self.provenance.edits).to_string()));
        }
        pairs.extend(self.gradient.as_ref().map(|gradient| ("gradient", gradient.to_string())));
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
    /// `.json`: nested lists; NaN and infinities are strings.
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
    /// The extension is unknown.
    #[error("cannot tell the format of {path}: its name must end in {known}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The known extensions, as a phrase.
        known: &'static str,
    },
    /// This build does not support the format.
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
    /// The format holds only one array.
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
        /// The error of the operating system or of the format's library.
        detail: String,
    },
}

/// The path of a file that will appear complete or not at all. It is written in a temporary folder beside the path and
/// then renamed.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    folder: Unfinished,
}

impl Place {
    /// Makes the temporary folder, so that errors occur before anything is computed. A symbolic link is followed, and
    /// its target is replaced.
    ///
    /// # Errors
    /// [`OutputError::Write`] for a folder or a file that cannot be written.
    pub fn create(path: &Path) -> Result<Place, OutputError> {
        let fail = |detail: String| OutputError::Write { path: path.into(), detail };
        let path = match std::fs::read_link(path) {
            // Resolve all links, or one step if the target does not exist.
            Ok(to) => path.canonicalize().unwrap_or_else(|_| path.parent().unwrap_or(Path::new("")).join(to)),
            Err(_) => path.to_path_buf(),
        };
        if path.exists() && !path.is_file() {
            return Err(fail("it exists and is not a file".into()));
        }
        if path.exists() {
            // A read-only file is not replaced.
            File::options().append(true).open(&path).map_err(|e| fail(e.to_string()))?;
        }
        let beside = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !beside.is_dir() {
            let what = if beside.exists() { "is not a folder" } else { "does not exist" };
            return Err(fail(format!("the folder {} {what}; make it, or name another", beside.display())));
        }
        // The error's own text would name the temporary folder, which means nothing to the user.
        let folder = Unfinished::create(beside)
            .map_err(|e| fail(format!("no file can be made in its folder {}: {}", beside.display(), e.kind())))?;
        Ok(Place { path, folder })
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls `write` with a temporary path, moves the file to its place, and returns its size in bytes. `write` must
    /// have closed the file when it returns. An existing file is replaced; its permissions are preserved.
    ///
    /// # Errors
    /// [`OutputError::Write`]; then no file remains.
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

/// An output file that is not yet written: its format and its [`Place`].
#[derive(Debug)]
pub struct Output {
    format: Format,
    place: Place,
}

impl Output {
    /// Chooses the format by the extension and makes the [`Place`].
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

    /// Refuses more hooks than the format can hold.
    ///
    /// # Errors
    /// [`OutputError::Several`].
    pub fn check(&self, hooks: usize) -> Result<(), OutputError> {
        match self.format {
            Format::Npy if hooks != 1 => Err(OutputError::Several { path: self.place.path.clone(), hooks }),
            _ => Ok(()),
        }
    }

    /// The size of the file in bytes; `None` if it depends on the values (text formats and .parquet).
    ///
    /// # Errors
    /// [`OutputError::Write`] for a file larger than readers accept.
    pub fn size(
        &self,
        record: &Record<'_>,
        shapes: Vec<(impl Into<ArrayKey>, Vec<usize>)>,
    ) -> Result<Option<u64>, OutputError> {
        let shapes = arrays_of(shapes);
        Ok(match self.format {
            Format::Safetensors => Some(safetensors::layout(record, shapes, 0).map_err(|e| self.place.failed(e))?.size),
            Format::Npz => Some(Npz::new(record, shapes.clone(), 0).layout(shapes).size),
            Format::Npy => Some(npy::layout(shapes).size),
            Format::Json | Format::Jsonl | Format::Csv | Format::Parquet => None,
        })
    }

    /// Begins the file for arrays of these shapes. It allocates the disk space that they need, so that a full disk is
    /// an error before anything is computed.
    ///
    /// # Errors
    /// [`OutputError::Write`]; then no file remains.
    pub fn begin<'a>(
        self,
        record: &'a Record<'a>,
        shapes: Vec<(impl Into<ArrayKey>, Vec<usize>)>,
    ) -> Result<Writing<'a>, OutputError> {
        let shapes = arrays_of(shapes);
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
            // The format is written from front to back, hook by hook, so the values go to a temporary file until all
            // are there.
            Format::Json | Format::Jsonl | Format::Csv | Format::Parquet => {
                (create(VALUES, &Layout::bare(shapes), false)?, Body::Text)
            }
        };
        Ok(Writing { output: self, record, store, body })
    }
}

fn arrays_of(shapes: Vec<(impl Into<ArrayKey>, Vec<usize>)>) -> Vec<(ArrayKey, Vec<usize>)> {
    shapes.into_iter().map(|(array, shape)| (array.into(), shape)).collect()
}

/// The known extensions, as a phrase.
const KNOWN: &str = ".safetensors, .npz, .npy, .json, .jsonl, .csv or .parquet";

/// Text for XML and HTML.
#[cfg(any(feature = "plot", feature = "report"))]
pub(crate) fn escape_xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A file name's extension in lower case; empty if it has none.
pub fn extension(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).unwrap_or_default()
}

/// The file, in the temporary folder.
const PART: &str = "part";

/// A temporary file of values, to be written to the output at the end.
const VALUES: &str = "values";

/// An [`Output`] that is being written: a sink for the run that fills it.
#[derive(Debug)]
pub struct Writing<'a> {
    /// Fields drop in order: the file is closed first, then the output's temporary folder is deleted. Windows deletes no
    /// folder with an open file.
    store: Store,
    output: Output,
    record: &'a Record<'a>,
    body: Body,
}

/// What remains to be written once all values are there.
#[derive(Debug)]
enum Body {
    /// Nothing.
    Whole,
    /// Nothing, unless the record changes: then a header of this many bytes.
    Safetensors { header: usize },
    /// The checksums and the central directory.
    Npz(Npz),
    /// Everything.
    Text,
}

impl ArraySink for Writing<'_> {
    fn put_array(&mut self, array: ArrayKey, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        let put = self.store.put_array(array, text, values);
        // The run passes this error on as an I/O error, which must still name the file.
        put.map_err(|e| std::io::Error::new(e.kind(), self.output.place.failed(e)))
    }
}

impl Sink for Writing<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.put_array(site.into(), text, values)
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

/// A run's values in a temporary file, which is deleted with this value. For output that is printed from front to back
/// and may be larger than memory.
#[derive(Debug)]
pub struct Scratch {
    /// Fields drop in order: the file is closed first, then the folder is deleted.
    store: Store,
    _folder: Unfinished,
}

impl Scratch {
    /// Makes a file for arrays of these shapes in the system's folder for temporary files.
    ///
    /// # Errors
    /// Those of the file.
    pub fn create(shapes: Vec<(impl Into<ArrayKey>, Vec<usize>)>) -> std::io::Result<Scratch> {
        let shapes = arrays_of(shapes);
        let folder = Unfinished::create(&std::env::temp_dir())?;
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
    /// Replaces the record by one that became known during the run. It must have the same texts and the same shapes,
    /// and its tokens and metadata must not be longer than those of the record with which the file was begun.
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

    /// Completes the file, moves it to its place, and returns its size in bytes. An existing file is replaced; its
    /// permissions are preserved.
    ///
    /// # Errors
    /// [`OutputError::Write`]; then no file remains.
    pub fn finish(self) -> Result<u64, OutputError> {
        let Writing { output, record, mut store, body } = self;
        let Output { format, place } = output;
        // The closure owns the store, so that its file is closed before its folder is deleted.
        place.fill(move |part| match body {
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

/// Writes a file through a buffer and flushes it.
pub(crate) fn buffered(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    write(&mut out)?;
    out.flush()
}
