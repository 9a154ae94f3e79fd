//! The index of a sharded checkpoint, `model.safetensors.index.json`: which files hold the weights.

use crate::file_kind::Kind;
use crate::model::weights_error::WeightsError;
use std::collections::BTreeSet;
use std::path::Path;

/// The shard files that an index names, without duplicates, all in the index's folder. `index` is the index's path, for
/// messages.
///
/// # Errors
/// [`WeightsError::Index`] when the index is invalid or names a file outside its folder.
pub fn shards(index: &Path, text: &str) -> Result<Vec<String>, WeightsError> {
    let fail = |detail: String| WeightsError::Index { file: index.display().to_string(), detail };
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| match Kind::of(text.as_bytes()) {
        Some(kind) => WeightsError::Kind { file: index.display().to_string(), kind: kind.to_string() },
        None => fail(format!("not JSON: {e}")),
    })?;
    let map = value.get("weight_map").and_then(|m| m.as_object()).ok_or_else(|| fail("it has no weight_map".into()))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let file = file.as_str().ok_or_else(|| fail(format!("the entry of {tensor:?} is not a file name")))?;
        // A shard must be in the index's folder. Otherwise a checkpoint could make us read any file.
        let plain = Path::new(file).file_name().is_some_and(|name| name == file) && !file.contains(['/', '\\']);
        if !plain {
            return Err(fail(format!(
                "the tensor {tensor:?} is said to be in {file:?}, which is not a file of this folder"
            )));
        }
        names.insert(file.to_string());
    }
    if names.is_empty() {
        return Err(fail("its weight_map is empty".into()));
    }
    Ok(names.into_iter().collect())
}
