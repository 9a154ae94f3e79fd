//! `.npz`: one float32 array per hook under its full name, `input_ids` and `attention_mask` (int64 [batch, pos]), with
//! chosen positions also `positions`, and `metadata_json`, the UTF-8 bytes of a JSON object:
//! `json.loads(bytes(f["metadata_json"]))`.

use super::Record;
use ndarray::Array1;
use ndarray_npy::NpzWriter;
use serde_json::{Map, Value};
use std::io::{Seek, Write};

pub(super) fn write(record: &Record<'_>, out: &mut (impl Write + Seek)) -> Result<(), String> {
    let mut npz = NpzWriter::new(out);
    let said = |e: ndarray_npy::WriteNpzError| e.to_string();
    let (ids, mask) = record.ids_and_mask();
    npz.add_array("input_ids", &ids).map_err(said)?;
    npz.add_array("attention_mask", &mask).map_err(said)?;
    if let Some(positions) = record.position_table() {
        npz.add_array("positions", &positions).map_err(said)?;
    }
    let metadata: Map<String, Value> =
        record.metadata().into_iter().map(|(key, value)| (key.into(), value.into())).collect();
    npz.add_array("metadata_json", &Array1::from(Value::from(metadata).to_string().into_bytes())).map_err(said)?;
    for (site, array) in record.capture.iter() {
        npz.add_array(site.name(), array).map_err(said)?;
    }
    npz.finish().map_err(said)?;
    Ok(())
}
