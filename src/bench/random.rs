//! A checkpoint of any shape with random weights, made in memory; gpt2-small's for benchmarks. Speed does not depend on the values of the
//! weights, so a benchmark needs no download. Owns its config and its bytes.
//! Read next: `src/model/checkpoint.rs`, which reads it.

use crate::config::Config;
use crate::model::checkpoint::{Checkpoint, WeightsError, names_and_shapes};
use rayon::prelude::*;
use serde_json::{Map, json};
use std::sync::Arc;

/// The name of this model on the command line.
pub const NAME: &str = "random";

const CONFIG: &str =
    r#"{"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}"#;

/// Makes the checkpoint, which takes 498 MB of memory.
///
/// # Errors
/// [`WeightsError`] as for any checkpoint. None is expected.
pub fn gpt2_small() -> Result<Checkpoint, WeightsError> {
    checkpoint(CONFIG)
}

/// Makes a checkpoint for a config.json.
///
/// # Errors
/// [`WeightsError`] for a config that no GPT-2 has.
pub fn checkpoint(config_json: &str) -> Result<Checkpoint, WeightsError> {
    let config =
        Config::from_json(config_json).map_err(|source| WeightsError::Config { folder: NAME.into(), source })?;
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in names_and_shapes(&config) {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}));
    }
    let mut header = serde_json::Value::from(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
    let begin = file.len();
    file.resize(begin + end, 0);
    file[begin..].par_chunks_exact_mut(4).enumerate().for_each(|(i, bytes)| bytes.copy_from_slice(&random(i)));
    Checkpoint::from_bytes(NAME, config_json, Arc::new(file))
}

/// Element `i` of a uniform distribution whose standard deviation is 0.02, as GPT-2's initial weights have
/// (`initializer_range` in config.json).
fn random(i: usize) -> [u8; 4] {
    // splitmix64 (Steele et al. 2014). A value depends only on `i`, so threads can compute them in parallel.
    let z = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let uniform = ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
    (0.02 * 12f32.sqrt() * uniform).to_le_bytes()
}
