//! What leaves the program as a file. Owns the choice of format by extension and the promise that a file appears whole or
//! not at all; each format is one file here.

mod csv;
mod json;
mod npz;
mod safetensors;
pub mod summary;

use crate::batch::Batch;
use crate::hooks::Capture;
use crate::text::Token;
use ndarray::Array2;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use thiserror::Error;

/// Where the numbers come from: what a reader needs to make them again.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// The model's name as asked for.
    pub model: String,
    /// [`crate::weights::Checkpoint::fingerprint`].
    pub fingerprint: String,
    /// The device in words.
    pub device: String,
}

/// One run's result with everything that belongs to it.
pub struct Record<'a> {
    /// The arrays.
    pub capture: &'a Capture,
    /// The token ids.
    pub batch: &'a Batch,
    /// The tokens of every text.
    pub tokens: &'a [Vec<Token>],
    /// The texts as given; none where ids were given.
    pub texts: &'a [String],
    /// The positions kept of every text, where not all were.
    pub positions: Option<&'a [Vec<usize>]>,
    /// Where it comes from.
    pub provenance: &'a Provenance,
}

/// Names and definitions of hooks follow this version of TransformerLens.
pub const HOOK_DEFINITIONS: &str = "transformer_lens>=4";

impl Record<'_> {
    /// `input_ids` and `attention_mask`, [batch, pos], padded on the right with zeros.
    fn ids_and_mask(&self) -> (Array2<i64>, Array2<i64>) {
        let shape = (self.batch.texts().len(), self.batch.n_pos());
        let (mut ids, mut mask) = (Array2::zeros(shape), Array2::zeros(shape));
        for i in 0..shape.0 {
            for (p, id) in self.batch.ids_of(i).iter().enumerate() {
                ids[[i, p]] = i64::from(*id);
                mask[[i, p]] = 1;
            }
        }
        (ids, mask)
    }

    /// The kept positions, [batch, n], padded with -1; `None` where all were kept.
    fn position_table(&self) -> Option<Array2<i64>> {
        let positions = self.positions?;
        let widest = positions.iter().map(Vec::len).max().unwrap_or(0);
        Some(Array2::from_shape_fn((positions.len(), widest), |(i, n)| positions[i].get(n).map_or(-1, |p| *p as i64)))
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
    /// `.json`: nested lists; -inf as null.
    Json,
    /// `.csv`: one row per hook, text, head and position.
    Csv,
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
    /// The file or its folder cannot be written.
    #[error("cannot write {path}: {detail}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system or the format's library said.
        detail: String,
    },
}

/// The place of a file that will be there whole, once [`Place::fill`] is done, or not at all: it is written in a folder of
/// its own beside its place and renamed.
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
        let folder = Unfinished::create(beside).map_err(|e| fail(e.to_string()))?;
        Ok(Place { path, folder })
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets `write` write the file and puts it in its place; gives back its size in bytes. A file that was there before is
    /// replaced and keeps its permissions.
    ///
    /// # Errors
    /// [`OutputError::Write`]; then nothing is left behind.
    pub fn fill(self, write: impl FnOnce(&Path) -> Result<(), String>) -> Result<u64, OutputError> {
        let fail = |detail: String| OutputError::Write { path: self.path.clone(), detail };
        let failed = |e: std::io::Error| fail(e.to_string());
        let part = self.folder.path().join("part");
        // Made and closed: it tells what permissions a new file gets here.
        let of_new = File::create(&part).and_then(|file| file.metadata()).map_err(failed)?.permissions();
        write(&part).map_err(fail)?;
        let permissions = std::fs::metadata(&self.path).map_or(of_new, |old| old.permissions());
        std::fs::set_permissions(&part, permissions).map_err(failed)?;
        let bytes = std::fs::metadata(&part).map_err(failed)?.len();
        std::fs::rename(&part, &self.path).map_err(failed)?;
        Ok(bytes)
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
            "json" => Format::Json,
            "csv" => Format::Csv,
            _ => return Err(OutputError::Format { path: path.into(), known: ".safetensors, .npz, .json or .csv" }),
        };
        Ok(Output { format, place: Place::create(path)? })
    }

    /// Where it will be.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// Writes the record; gives back the file's size in bytes.
    ///
    /// # Errors
    /// [`OutputError::Write`]; then nothing is left behind.
    pub fn write(self, record: &Record<'_>) -> Result<u64, OutputError> {
        self.place.fill(|part| match self.format {
            Format::Safetensors => safetensors::write(record, part),
            Format::Npz => buffered(part, |out| npz::write(record, out)),
            Format::Json => buffered(part, |out| json::write(record, out).map_err(|e| e.to_string())),
            Format::Csv => buffered(part, |out| csv::write(record, out).map_err(|e| e.to_string())),
        })
    }
}

/// A file name's extension in small letters; empty where it has none.
pub fn extension(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).unwrap_or_default()
}

/// Writes a file through a buffer, to its last byte.
pub(crate) fn buffered(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> Result<(), String>,
) -> Result<(), String> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(|e| e.to_string())?);
    write(&mut out)?;
    out.flush().map_err(|e| e.to_string())
}

/// The folder of a file that is not finished. It goes when it is dropped, and when [`abandon`] is called.
struct Unfinished(tempfile::TempDir);

static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

impl Unfinished {
    fn create(beside: &Path) -> std::io::Result<Unfinished> {
        // Locked until it is in the list, so that a signal finds it there.
        let mut all = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix(".actscope-").tempdir_in(beside)?;
        all.push(folder.path().into());
        Ok(Unfinished(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).retain(|folder| folder != self.0.path());
    }
}

/// Takes away what is half-written: for whoever is about to end the process. No new file can be begun afterwards.
pub fn abandon() {
    let all = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
    for folder in all.iter() {
        // Nothing can be done about a folder that will not go.
        let _ = std::fs::remove_dir_all(folder);
    }
    std::mem::forget(all);
}

pub use json::{Nested, write as write_json};
