//! A checkpoint of gpt2-small's shape with random weights, made in memory: speed does not depend on what the weights are, so
//! nobody has to download any. Owns its config and its bytes.

use crate::config::Config;
use crate::model::checkpoint::{Checkpoint, WeightsError, names_and_shapes};
use rayon::prelude::*;
use serde_json::{Map, json};
use std::sync::Arc;

/// What it is called on the command line.
pub const NAME: &str = "random";

const CONFIG: &str =
    r#"{"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}"#;

/// Makes it: 498 MB.
///
/// # Errors
/// None that is known; the checkpoint is read and checked as any other.
pub fn gpt2_small() -> Result<Checkpoint, WeightsError> {
    let config = Config::from_json(CONFIG).map_err(|source| WeightsError::Config { folder: NAME.into(), source })?;
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
    Checkpoint::from_bytes(NAME, CONFIG, Arc::new(file))
}

/// Number `i` of uniform ones with deviation 0.02, which is how GPT-2 is initialised (config.json's `initializer_range`).
fn random(i: usize) -> [u8; 4] {
    // Steele et al. 2014, splitmix64: each state gives its number by itself, so that many threads can share the work.
    let z = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let uniform = ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
    (0.02 * 12f32.sqrt() * uniform).to_le_bytes()
}
