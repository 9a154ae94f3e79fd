//! `.safetensors`: one F32 tensor per hook under its full name, `input_ids` and `attention_mask` (I64 [batch, pos]), with
//! chosen positions also `positions` (I64 [batch, n], -1 where a text has fewer).

use super::Record;
use ndarray::ArrayD;
use safetensors::{Dtype, View};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

/// A tensor for the `safetensors` crate: it asks for the bytes when it writes them.
enum Tensor<'a> {
    Floats(&'a ArrayD<f32>),
    Longs(ArrayD<i64>),
}

impl View for &Tensor<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Tensor::Floats(_) => Dtype::F32,
            Tensor::Longs(_) => Dtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Tensor::Floats(array) => array.shape(),
            Tensor::Longs(array) => array.shape(),
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        fn bytes<T: bytemuck::Pod>(array: &ArrayD<T>) -> Cow<'_, [u8]> {
            let values = array.as_slice().expect("captured arrays are in standard order");
            // The format is little-endian; so is every machine that actscope is built for.
            const { assert!(cfg!(target_endian = "little")) };
            Cow::Borrowed(bytemuck::cast_slice(values))
        }
        match self {
            Tensor::Floats(array) => bytes(array),
            Tensor::Longs(array) => bytes(array),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Tensor::Floats(array) => 4 * array.len(),
            Tensor::Longs(array) => 8 * array.len(),
        }
    }
}

/// Writes to `path`, tensor by tensor: the whole file is never in memory at once.
pub(super) fn write(record: &Record<'_>, path: &Path) -> Result<(), String> {
    let (ids, mask) = record.ids_and_mask();
    let mut tensors: Vec<(String, Tensor<'_>)> = vec![
        ("input_ids".into(), Tensor::Longs(ids.into_dyn())),
        ("attention_mask".into(), Tensor::Longs(mask.into_dyn())),
    ];
    if let Some(positions) = record.position_table() {
        tensors.push(("positions".into(), Tensor::Longs(positions.into_dyn())));
    }
    tensors.extend(record.capture.iter().map(|(site, array)| (site.name(), Tensor::Floats(array))));
    let metadata: HashMap<String, String> =
        record.metadata().into_iter().map(|(key, value)| (key.to_string(), value)).collect();
    let views: Vec<(&str, &Tensor<'_>)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|e| e.to_string())
}
