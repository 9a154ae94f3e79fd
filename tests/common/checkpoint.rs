//! Generated checkpoints: any config, with random weights from a seed, or with a sparse file in place of weights.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use serde_json::{Map, Value, json};
use std::path::Path;

/// A `config.json` with 40 tokens and 16 positions unless `fields` say otherwise.
pub fn config(n_embd: usize, n_head: usize, n_layer: usize, fields: &[(&str, Value)]) -> Value {
    let mut config = json!({"model_type": "gpt2", "n_embd": n_embd, "n_head": n_head, "n_layer": n_layer,
        "vocab_size": 40, "n_positions": 16});
    fields.iter().for_each(|(name, value)| config[*name] = value.clone());
    config
}

/// Names and shapes of the tensors that a config calls for.
pub fn tensors(config: &Value) -> Vec<(String, Vec<usize>)> {
    let size = |field: &str| config[field].as_u64().unwrap() as usize;
    let (d, v, n) = (size("n_embd"), size("vocab_size"), size("n_positions"));
    let m = config["n_inner"].as_u64().map_or(4 * d, |m| m as usize);
    let mut all = vec![("wte.weight".to_string(), vec![v, d]), ("wpe.weight".into(), vec![n, d])];
    for layer in 0..size("n_layer") {
        let mut biased = |name: &str, shape: &[usize]| {
            all.push((format!("h.{layer}.{name}.weight"), shape.to_vec()));
            all.push((format!("h.{layer}.{name}.bias"), vec![shape[shape.len() - 1]]));
        };
        biased("ln_1", &[d]);
        biased("attn.c_attn", &[d, 3 * d]);
        biased("attn.c_proj", &[d, d]);
        biased("ln_2", &[d]);
        biased("mlp.c_fc", &[d, m]);
        biased("mlp.c_proj", &[m, d]);
    }
    all.extend([("ln_f.weight".into(), vec![d]), ("ln_f.bias".into(), vec![d])]);
    if config["tie_word_embeddings"] == json!(false) {
        all.push(("lm_head.weight".into(), vec![v, d]));
    }
    all
}

/// Pseudorandom values, the same for the same seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// From -1 to 1.
    pub fn float(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }
}

/// A safetensors header, and where the values end; `dtype` receives a tensor's index.
fn header(config: &Value, dtype: impl Fn(usize) -> &'static str) -> (Vec<u8>, usize) {
    let (mut header, mut end) = (Map::new(), 0);
    for (i, (name, shape)) in tensors(config).into_iter().enumerate() {
        let start = end;
        end += shape.iter().product::<usize>() * if dtype(i) == "F32" { 4 } else { 2 };
        header.insert(name, json!({"dtype": dtype(i), "shape": shape, "data_offsets": [start, end]}));
    }
    let mut header = Value::from(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    ([&(header.len() as u64).to_le_bytes()[..], &header].concat(), end)
}

/// The bytes of a `model.safetensors` with random weights, scaled so that nothing explodes.
pub fn random(config: &Value, dtype: impl Fn(usize) -> &'static str, seed: u64) -> Vec<u8> {
    let (mut file, end) = header(config, &dtype);
    file.reserve(end);
    each_random(config, seed, |i, x| match dtype(i) {
        "F32" => file.extend(x.to_le_bytes()),
        "F16" => file.extend(half::f16::from_f32(x).to_le_bytes()),
        _ => file.extend(half::bf16::from_f32(x).to_le_bytes()),
    });
    file
}

/// The checkpoint that [`random`] makes, as F32, with every weight off by up to four rounding errors of an f32.
pub fn random_nudged(config: &Value, dtype: impl Fn(usize) -> &'static str, seed: u64, nudge: u64) -> Vec<u8> {
    let mut file = header(config, |_| "F32").0;
    let mut random = Random(nudge);
    each_random(config, seed, |i, x| {
        let stored = match dtype(i) {
            "F32" => x,
            "F16" => half::f16::from_f32(x).to_f32(),
            _ => half::bf16::from_f32(x).to_f32(),
        };
        let nudged = f64::from(stored) * (1.0 + 4.0 * f64::from(f32::EPSILON * random.float()));
        file.extend((nudged as f32).to_le_bytes());
    });
    file
}

/// Every random weight with its tensor's index.
fn each_random(config: &Value, seed: u64, mut take: impl FnMut(usize, f32)) {
    let mut random = Random(seed);
    for (i, (name, shape)) in tensors(config).into_iter().enumerate() {
        let (centre, spread) = match shape.as_slice() {
            [_] if name.contains("ln_") && name.ends_with("weight") => (1.0, 0.5),
            [_] => (0.0, 0.3),
            shape => (0.0, if name.starts_with('w') { 1.0 } else { 2.0 / (shape[0] as f32).sqrt() }),
        };
        (0..shape.iter().product()).for_each(|_| take(i, centre + spread * random.float()));
    }
}

/// A checkpoint with random weights in `folder`.
pub fn write(folder: &Path, config: &Value, seed: u64) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("model.safetensors"), random(config, |_| "F32", seed)).unwrap();
}

/// A checkpoint whose weights (BF16, all zero) are one hole in a sparse file.
pub fn write_sparse(folder: &Path, config: &Value) {
    let (head, end) = header(config, |_| "BF16");
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let weights = folder.join("model.safetensors");
    std::fs::write(&weights, &head).unwrap();
    std::fs::File::options().write(true).open(weights).unwrap().set_len((head.len() + end) as u64).unwrap();
}
