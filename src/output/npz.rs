//! `.npz`: one float32 array per hook under its full name, `input_ids` and `attention_mask` (int64 [batch, pos]), with
//! chosen positions also `positions`, and `metadata_json`, the UTF-8 bytes of a JSON object:
//! `json.loads(bytes(f["metadata_json"]))`.

use super::Record;
use ndarray::Array1;
use ndarray_npy::NpzWriter;
use serde_json::{Map, Value};
use std::io::{Seek, Write};
use std::mem::ManuallyDrop;
use zip::CompressionMethod;
use zip::write::SimpleFileOptions;

pub(super) fn write(record: &Record<'_>, out: &mut (impl Write + Seek)) -> Result<(), String> {
    // Beyond 4 GiB an entry needs zip64, which has to be said before it is written; numpy says it always.
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    // Dropped without being finished, the zip writer finishes by itself and complains on stderr when it cannot. After an
    // error it is left as it is: the file is thrown away.
    let mut npz = ManuallyDrop::new(NpzWriter::new_with_options(out, options));
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
    ManuallyDrop::into_inner(npz).finish().map_err(said)?;
    Ok(())
}
