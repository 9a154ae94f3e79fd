//! The outputs of `patch`, `ablate`, `attribute`, `edges`, `heads` and `circuits`: a file, a picture, the terminal, or JSON on
//! stdout. Owns the choice by extension, the provenance in every form, and the form of numbers in JSON.

use super::{Failure, ModelArgs, size};
use crate::hooks::request::EditRecord;
use crate::output::arrays::{self, Named};
use crate::output::{self, OutputError, Place};
use crate::plot::terminal::Terminal;
use crate::plot::{File, Picture};
use crate::session::{Model, Session};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;

/// An output file, by its kind. It is created before anything is computed, so that a wrong name is an error at once.
pub(super) enum Target {
    Picture(File),
    Numbers(Place),
    Page(Place),
}

impl Target {
    /// Creates a file of numbers or a picture, by its extension.
    ///
    /// # Errors
    /// The extension is unknown, or the file cannot be created.
    pub(super) fn create(path: &Path) -> Result<Target, Failure> {
        Ok(match output::extension(path).as_str() {
            "png" | "svg" => Target::Picture(File::create(path)?),
            "json" | "csv" | "npz" | "safetensors" => Target::Numbers(Place::create(path)?),
            _ => {
                let known = ".json, .csv, .npz, .safetensors, .png or .svg";
                return Err(OutputError::Format { path: path.into(), known }.into());
            }
        })
    }

    /// [`Target::create`] for results that can also be a page.
    pub(super) fn create_or_page(path: &Path) -> Result<Target, Failure> {
        match output::extension(path).as_str() {
            "html" | "htm" => Ok(Target::Page(Place::create(path)?)),
            "png" | "svg" | "json" | "csv" | "npz" | "safetensors" => Target::create(path),
            _ => {
                let known = ".json, .csv, .npz, .safetensors, .png, .svg or .html";
                Err(OutputError::Format { path: path.into(), known }.into())
            }
        }
    }

    /// [`Target::create`] for results that have no picture.
    pub(super) fn create_numbers(path: &Path) -> Result<Target, Failure> {
        match output::extension(path).as_str() {
            "json" | "csv" | "npz" | "safetensors" => Ok(Target::Numbers(Place::create(path)?)),
            _ => Err(OutputError::Format { path: path.into(), known: ".json, .csv, .npz or .safetensors" }.into()),
        }
    }

    /// The file's path.
    pub(super) fn path(&self) -> &Path {
        match self {
            Target::Picture(file) => file.path(),
            Target::Numbers(place) | Target::Page(place) => place.path(),
        }
    }
}

/// The results of a command, in every form of output.
pub(super) trait Findings {
    /// Everything, as JSON.
    fn json(&self) -> &Map<String, Value>;

    /// The keys of the JSON that files of arrays leave out of their metadata, because [`Findings::arrays`] has the
    /// values.
    fn array_keys(&self) -> &[&str];

    /// The numbers as arrays.
    fn arrays(&self) -> Vec<Named>;

    /// Writes the numbers as a table with a header.
    fn table(&self, table: &mut csv::Writer<&mut dyn Write>) -> std::io::Result<()>;

    /// The picture; `None` if these results have no picture.
    fn picture(&self) -> Option<Box<dyn Picture>>;

    /// The page as HTML.
    ///
    /// # Errors
    /// For results that have no page.
    fn page(&self) -> std::io::Result<Vec<u8>> {
        Err(std::io::Error::from(std::io::ErrorKind::Unsupported))
    }

    /// Prints the results on the terminal: the picture, unless a command has another form.
    fn print(&self, terminal: &Terminal, out: &mut dyn Write) -> std::io::Result<()> {
        self.picture().map_or(Ok(()), |picture| picture.print(terminal, out))
    }
}

/// Writes findings to `target`, or without one to the terminal. With --json, writes JSON to stdout instead of the
/// terminal, and beside the file.
pub(super) fn deliver(found: &dyn Findings, target: Option<Target>, model: &ModelArgs) -> Result<(), Failure> {
    let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
    let path = target.as_ref().map(|target| target.path().display().to_string());
    let written = match target {
        Some(Target::Picture(file)) => match found.picture() {
            Some(picture) => Some(file.write(&*picture)?),
            None => None,
        },
        Some(Target::Numbers(place)) => {
            let extension = output::extension(place.path());
            Some(place.fill(|part| output::buffered(part, |out| write(found, &extension, out)))?)
        }
        Some(Target::Page(place)) => Some(place.fill(|part| std::fs::write(part, found.page()?))?),
        None if !model.json => {
            found.print(&Terminal::of_stdout(), &mut stdout)?;
            None
        }
        None => None,
    };
    if let (Some(path), Some(bytes)) = (path, written) {
        model.say(format_args!("wrote {path}: {}", size(bytes)));
    }
    if model.json {
        serde_json::to_writer(&mut stdout, found.json()).map_err(std::io::Error::from)?;
        writeln!(stdout)?;
    }
    stdout.flush()?;
    Ok(())
}

fn write(found: &dyn Findings, extension: &str, out: &mut impl Write) -> std::io::Result<()> {
    match extension {
        "json" => {
            serde_json::to_writer(&mut *out, found.json())?;
            return writeln!(out);
        }
        "csv" => {
            let out: &mut dyn Write = out;
            let mut table = csv::Writer::from_writer(out);
            found.table(&mut table)?;
            return table.flush();
        }
        _ => {}
    }
    let metadata = found.json().iter().filter(|(key, _)| !found.array_keys().contains(&key.as_str()));
    let metadata: Map<String, Value> = metadata.map(|(key, value)| (key.clone(), value.clone())).collect();
    match extension {
        "npz" => arrays::write_npz(&found.arrays(), &metadata, out),
        _ => arrays::write_safetensors(&found.arrays(), &metadata, out),
    }
}

/// The part of the provenance that describes the model.
pub(super) fn model_provenance(model: &Model) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("model".into(), json!(model.name()));
    map.insert("model_fingerprint".into(), json!(model.checkpoint().fingerprint()));
    if !model.checkpoint().process().is_none() {
        map.insert("process".into(), json!(model.checkpoint().process()));
    }
    map.insert("actscope_version".into(), json!(env!("CARGO_PKG_VERSION")));
    map
}

/// The provenance of a run: what a reader needs to compute its numbers again.
pub(super) fn provenance(session: &Session, edits: &[EditRecord]) -> Map<String, Value> {
    let mut map = model_provenance(session.model());
    map.insert("device".into(), json!(session.device().to_string()));
    map.insert("hook_definitions".into(), json!(output::HOOK_DEFINITIONS));
    if !edits.is_empty() {
        map.insert("edits".into(), json!(edits));
    }
    map
}

/// Checks results of gradients. One NaN or infinity makes the other values wrong too.
///
/// # Errors
/// [`Failure::Run`] if a value is not finite. `what` names the values.
pub(super) fn check_finite<'a>(what: &str, values: impl IntoIterator<Item = &'a f64>) -> Result<(), Failure> {
    if values.into_iter().all(|value| value.is_finite()) {
        Ok(())
    } else {
        Err(Failure::Run(format!(
            "{what} holds a NaN or an infinity, so it is unreliable; `actscope extract -k '*'` names the first hook that holds one"
        )))
    }
}

/// A number in JSON. NaN and infinities are strings, as in the other outputs.
pub(super) fn number(value: f64) -> Value {
    match value {
        v if v.is_finite() => json!(v),
        v if v.is_nan() => json!("NaN"),
        v if v > 0.0 => json!("Infinity"),
        _ => json!("-Infinity"),
    }
}

/// Values in row-major order as nested lists of this shape.
pub(super) fn nested(values: &[Value], shape: &[usize]) -> Value {
    match shape {
        [] => values.first().cloned().unwrap_or(Value::Null),
        [_] => Value::from(values.to_vec()),
        [n, rest @ ..] => {
            let step = values.len() / n.max(&1);
            (0..*n).map(|i| nested(&values[i * step..(i + 1) * step], rest)).collect()
        }
    }
}
