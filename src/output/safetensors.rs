//! `.safetensors`: one F32 tensor per hook under its full name, in run order, `input_ids` and `attention_mask` (I64
//! [batch, pos]), with chosen positions also `positions` (I64 [batch, n], -1 where a text has fewer). Owns the layout and the header.
//! Read next: `store.rs`, which fills it.
//!
//! The format: the length of the header (u64), the header (JSON, padded with spaces), the tensors without gaps.

use super::Record;
use super::store::Layout;
use crate::hooks::capture::ArrayKey;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value, json};

/// The largest header that readers accept (the limit of the `safetensors` crate and of Python's package).
const MAX_HEADER: usize = 100_000_000;

/// A header while its tensors are listed. Tensors of 8-byte types come first, so that all are aligned.
pub(super) struct Header {
    entries: Map<String, Value>,
    /// Bytes of the tensors so far.
    end: usize,
}

impl Header {
    pub(super) fn new(metadata: Map<String, Value>) -> Header {
        Header { entries: Map::from_iter([("__metadata__".to_string(), Value::from(metadata))]), end: 0 }
    }

    pub(super) fn add(&mut self, name: String, dtype: Dtype, shape: &[usize], bytes: usize) {
        let data_offsets = (self.end, self.end.saturating_add(bytes));
        self.entries.insert(name, json!(TensorInfo { dtype, shape: shape.to_vec(), data_offsets }));
        self.end = data_offsets.1;
    }

    /// The bytes before the first tensor: the header's length, and the header, padded to at least `least` bytes.
    ///
    /// # Errors
    /// A sentence, if readers would not accept it.
    pub(super) fn bytes(self, least: usize) -> Result<Vec<u8>, String> {
        let mut head = Value::from(self.entries).to_string().into_bytes();
        head.resize(head.len().next_multiple_of(8).max(least), b' ');
        if head.len() > MAX_HEADER {
            return Err(format!(
                "its header, which lists every token, would have {} bytes, and readers of .safetensors take at most \
                 {MAX_HEADER}; write .npz, or fewer texts to one file",
                head.len()
            ));
        }
        Ok([&(head.len() as u64).to_le_bytes()[..], &head].concat())
    }
}

/// The layout, with a header of at least this many bytes.
pub(super) fn layout(
    record: &Record<'_>,
    shapes: Vec<(ArrayKey, Vec<usize>)>,
    header_bytes: usize,
) -> Result<Layout, String> {
    let metadata: Map<String, Value> = record.metadata().into_iter().map(|(k, v)| (k.into(), v.into())).collect();
    let mut header = Header::new(metadata);
    let mut between = Vec::new();
    for (name, table) in record.tables() {
        let bytes: Vec<u8> = table.iter().flat_map(|n| n.to_le_bytes()).collect();
        header.add(name.into(), Dtype::I64, table.shape(), bytes.len());
        between.extend(bytes);
    }
    let before = between.len() as u64;
    let Layout { mut places, size, .. } = Layout::bare(shapes);
    for (array, place) in &places {
        header.add(array.name(), Dtype::F32, &place.shape, place.bytes() as usize);
    }

    let mut head = header.bytes(header_bytes)?;
    let start = head.len() as u64;
    places.values_mut().for_each(|place| place.start = place.start.saturating_add(start + before));
    head.extend(between);
    Ok(Layout { between: vec![(0, head)], places, size: size.saturating_add(start + before) })
}

/// Bytes of the header of a layout.
pub(super) fn header_bytes(layout: &Layout) -> usize {
    let head = layout.between.first().and_then(|(_, bytes)| bytes.first_chunk());
    head.map_or(0, |length| u64::from_le_bytes(*length) as usize)
}
