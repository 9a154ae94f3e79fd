//! `.json`, and `extract --json`: one object with the same content as the other formats, arrays as nested lists. JSON
//! has only finite numbers; other values are the strings "NaN", "Infinity" and "-Infinity" (masked scores). Read next: `mod.rs`.

use super::Record;
use crate::hooks::capture::{ArrayKey, Arrays};
use ndarray::{ArrayViewD, Axis};
use serde::ser::{Error, Serialize, SerializeMap, SerializeSeq, Serializer};
use std::io::Write;

/// An array as nested lists.
#[derive(Debug)]
pub struct Nested<'a>(pub ArrayViewD<'a, f32>);

impl Serialize for Nested<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.0.ndim() == 0 {
            return number(self.0.first().unwrap_or(&f32::NAN), to);
        }
        let mut list = to.serialize_seq(Some(self.0.len_of(Axis(0))))?;
        for part in self.0.axis_iter(Axis(0)) {
            list.serialize_element(&Nested(part))?;
        }
        list.end()
    }
}

/// A number, or a string for a value that is not finite.
///
/// # Errors
/// Those of `to`.
pub fn number<S: Serializer>(value: &f32, to: S) -> Result<S::Ok, S::Error> {
    match *value {
        v if v.is_finite() => to.serialize_f32(v),
        v if v.is_nan() => to.serialize_str("NaN"),
        v if v > 0.0 => to.serialize_str("Infinity"),
        _ => to.serialize_str("-Infinity"),
    }
}

/// One array of all texts.
struct Hook<'a> {
    arrays: &'a dyn Arrays,
    array: ArrayKey,
    texts: usize,
}

impl Serialize for Hook<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(Some(self.texts))?;
        for text in 0..self.texts {
            let values = self.arrays.of_text(self.array, text).map_err(S::Error::custom)?;
            list.serialize_element(&Nested(values.view()))?;
        }
        list.end()
    }
}

/// All arrays under their names.
struct Hooks<'a>(&'a dyn Arrays);

impl Serialize for Hooks<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        for (array, shape) in self.0.shapes() {
            map.serialize_entry(&array.name(), &Hook { arrays: self.0, array, texts: shape[0] })?;
        }
        map.end()
    }
}

struct Document<'a>(&'a Record<'a>, &'a dyn Arrays);

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let record = self.0;
        let mut map = to.serialize_map(None)?;
        for (key, value) in record.metadata() {
            // Here these are JSON lists, not strings that contain lists.
            if !["tokens", "text", "words", "edits", "gradient"].contains(&key) {
                map.serialize_entry(key, &value)?;
            }
        }
        if !record.provenance.edits.is_empty() {
            map.serialize_entry("edits", &record.provenance.edits)?;
        }
        if let Some(gradient) = &record.gradient {
            map.serialize_entry("gradient", gradient)?;
        }
        map.serialize_entry("text", record.texts)?;
        map.serialize_entry("tokens", &record.token_texts())?;
        if let Some(words) = record.word_texts() {
            map.serialize_entry("words", &words)?;
        }
        for (name, table) in record.tables() {
            // Ids and mask are padded as in the other formats; lists of positions are not.
            let padded = matches!(name, "input_ids" | "attention_mask");
            map.serialize_entry(name, &rows(&table, padded))?;
        }
        map.serialize_entry("hooks", &Hooks(self.1))?;
        map.end()
    }
}

fn rows(table: &ndarray::Array2<i64>, padded: bool) -> Vec<Vec<i64>> {
    let row = |row: ndarray::ArrayView1<'_, i64>| row.iter().copied().filter(|n| padded || *n >= 0).collect();
    table.outer_iter().map(row).collect()
}

/// Writes arrays and their record as one JSON object.
///
/// # Errors
/// Those of `out` and of `arrays`.
pub fn write(record: &Record<'_>, arrays: &dyn Arrays, out: &mut impl Write) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, &Document(record, arrays))?;
    out.write_all(b"\n")
}
