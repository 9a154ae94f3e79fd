//! `.json`, and `extract --json`: one object with the same content as the other formats, arrays as nested lists. JSON has
//! no -inf: masked attention scores are null.

use super::Record;
use crate::hooks::capture::Arrays;
use crate::hooks::site::Site;
use ndarray::{ArrayViewD, Axis};
use serde::ser::{Error, Serialize, SerializeMap, SerializeSeq, Serializer};
use std::io::Write;

/// An array as nested lists.
pub struct Nested<'a>(pub ArrayViewD<'a, f32>);

impl Serialize for Nested<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.0.ndim() == 0 {
            // serde_json writes every number that is not finite as null.
            return to.serialize_some(&self.0.first());
        }
        let mut list = to.serialize_seq(Some(self.0.len_of(Axis(0))))?;
        for part in self.0.axis_iter(Axis(0)) {
            list.serialize_element(&Nested(part))?;
        }
        list.end()
    }
}

/// One hook of all texts.
struct Hook<'a> {
    arrays: &'a dyn Arrays,
    site: Site,
    texts: usize,
}

impl Serialize for Hook<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(Some(self.texts))?;
        for text in 0..self.texts {
            let values = self.arrays.of_text(self.site, text).map_err(S::Error::custom)?;
            list.serialize_element(&Nested(values.view()))?;
        }
        list.end()
    }
}

/// All hooks under their names.
struct Hooks<'a>(&'a dyn Arrays);

impl Serialize for Hooks<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        for (site, shape) in self.0.shapes() {
            map.serialize_entry(&site.name(), &Hook { arrays: self.0, site, texts: shape[0] })?;
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
            // These two are lists here, not strings that hold lists.
            if key != "tokens" && key != "text" {
                map.serialize_entry(key, &value)?;
            }
        }
        map.serialize_entry("text", record.texts)?;
        map.serialize_entry("tokens", &record.token_texts())?;
        let (ids, mask) = record.ids_and_mask();
        map.serialize_entry("input_ids", &rows(&ids))?;
        map.serialize_entry("attention_mask", &rows(&mask))?;
        if let Some(positions) = record.positions {
            map.serialize_entry("positions", positions)?;
        }
        map.serialize_entry("hooks", &Hooks(self.1))?;
        map.end()
    }
}

fn rows(table: &ndarray::Array2<i64>) -> Vec<Vec<i64>> {
    table.outer_iter().map(|row| row.to_vec()).collect()
}

/// Writes arrays, and what belongs to them, as one JSON object.
///
/// # Errors
/// Those of `out` and of `arrays`.
pub fn write(record: &Record<'_>, arrays: &dyn Arrays, out: &mut impl Write) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, &Document(record, arrays))?;
    out.write_all(b"\n")
}
