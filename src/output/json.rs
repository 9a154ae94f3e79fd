//! `.json`, and `extract --json`: one object with the same content as the other formats, arrays as nested lists. JSON has
//! no -inf: masked attention scores are null.

use super::Record;
use ndarray::{ArrayViewD, Axis};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
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

/// All hooks under their names.
struct Hooks<'a>(&'a Record<'a>);

impl Serialize for Hooks<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        for (site, array) in self.0.capture.iter() {
            map.serialize_entry(&site.name(), &Nested(array.view()))?;
        }
        map.end()
    }
}

struct Document<'a>(&'a Record<'a>);

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
        map.serialize_entry("hooks", &Hooks(record))?;
        map.end()
    }
}

fn rows(table: &ndarray::Array2<i64>) -> Vec<Vec<i64>> {
    table.outer_iter().map(|row| row.to_vec()).collect()
}

/// Writes the record as one JSON object.
///
/// # Errors
/// Those of `out`.
pub fn write(record: &Record<'_>, out: &mut impl Write) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, &Document(record))?;
    out.write_all(b"\n")
}
