//! Weights under TransformerLens's names and in its shapes: `blocks.3.attn.W_Q` [H, D, d], `unembed.W_U` [D, V]. Owns the names
//! and how each is cut from the checkpoint's matrices; computes nothing, and needs no device.

use crate::config::Config;
use crate::model::checkpoint::{Checkpoint, WeightsError};
use ndarray::{ArrayD, IxDyn};
use wildmatch::WildMatch;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    TokenEmbedding,
    PositionEmbedding,
    Unembedding,
    UnembeddingBias,
    /// 0, 1, 2: queries, keys, values.
    Qkv(usize),
    QkvBias(usize),
    Output,
    /// As the checkpoint has it.
    Stored(&'static str),
}

/// A weight under TransformerLens's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedWeight {
    /// The name.
    pub name: String,
    /// The shape.
    pub shape: Vec<usize>,
    layer: usize,
    kind: Kind,
}

/// Every weight of a model, in the order of a run.
pub fn all(config: &Config) -> Vec<NamedWeight> {
    let Config { n_embd: d_model, n_head, n_inner, vocab_size, n_positions, .. } = *config;
    let d_head = config.head_dim();
    let mut all = Vec::new();
    let mut add = |name: String, shape: &[usize], layer: usize, kind: Kind| {
        all.push(NamedWeight { name, shape: shape.to_vec(), layer, kind });
    };
    add("embed.W_E".into(), &[vocab_size, d_model], 0, Kind::TokenEmbedding);
    add("pos_embed.W_pos".into(), &[n_positions, d_model], 0, Kind::PositionEmbedding);
    for layer in 0..config.n_layer {
        let mut of_block =
            |name: &str, shape: &[usize], kind: Kind| add(format!("blocks.{layer}.{name}"), shape, layer, kind);
        of_block("ln1.w", &[d_model], Kind::Stored("ln_1.weight"));
        of_block("ln1.b", &[d_model], Kind::Stored("ln_1.bias"));
        for (n, letter) in ["Q", "K", "V"].into_iter().enumerate() {
            of_block(&format!("attn.W_{letter}"), &[n_head, d_model, d_head], Kind::Qkv(n));
            of_block(&format!("attn.b_{letter}"), &[n_head, d_head], Kind::QkvBias(n));
        }
        of_block("attn.W_O", &[n_head, d_head, d_model], Kind::Output);
        of_block("attn.b_O", &[d_model], Kind::Stored("attn.c_proj.bias"));
        of_block("ln2.w", &[d_model], Kind::Stored("ln_2.weight"));
        of_block("ln2.b", &[d_model], Kind::Stored("ln_2.bias"));
        of_block("mlp.W_in", &[d_model, n_inner], Kind::Stored("mlp.c_fc.weight"));
        of_block("mlp.b_in", &[n_inner], Kind::Stored("mlp.c_fc.bias"));
        of_block("mlp.W_out", &[n_inner, d_model], Kind::Stored("mlp.c_proj.weight"));
        of_block("mlp.b_out", &[d_model], Kind::Stored("mlp.c_proj.bias"));
    }
    add("ln_final.w".into(), &[d_model], 0, Kind::Stored("ln_f.weight"));
    add("ln_final.b".into(), &[d_model], 0, Kind::Stored("ln_f.bias"));
    add("unembed.W_U".into(), &[d_model, vocab_size], 0, Kind::Unembedding);
    add("unembed.b_U".into(), &[vocab_size], 0, Kind::UnembeddingBias);
    all
}

/// The weights that a name or a glob matches; empty if there is none. `W_E`, `W_pos`, `W_U` and `b_U` are also known without their
/// module, and keep the short name then.
pub fn find(pattern: &str, config: &Config) -> Vec<NamedWeight> {
    let glob = WildMatch::new(pattern);
    let found: Vec<NamedWeight> = all(config).into_iter().filter(|weight| glob.matches(&weight.name)).collect();
    if !found.is_empty() {
        return found;
    }
    let short = |weight: &NamedWeight| weight.name.split_once('.').is_some_and(|(_, short)| short == pattern);
    let found = all(config).into_iter().filter(short);
    found.map(|weight| NamedWeight { name: pattern.into(), ..weight }).collect()
}

impl NamedWeight {
    /// Its values.
    ///
    /// # Errors
    /// [`WeightsError`] if the tensor cannot be read.
    pub async fn values_async(&self, checkpoint: &Checkpoint) -> Result<ArrayD<f32>, WeightsError> {
        let config = checkpoint.config();
        let (n_embd, n_head, d_head, layer) = (config.n_embd, config.n_head, config.head_dim(), self.layer);
        let read = async |name: &str| checkpoint.tensor_async(name).await.map(|weight| weight.to_f32());
        let of_block = async |name: &str| read(&format!("h.{layer}.{name}")).await;
        let values = match self.kind {
            Kind::TokenEmbedding => read("wte.weight").await?,
            Kind::PositionEmbedding => read("wpe.weight").await?,
            Kind::Unembedding => {
                let rows = checkpoint.unembedding_async().await?.to_f32();
                let n_vocab = config.vocab_size;
                (0..n_embd).flat_map(|d| (0..n_vocab).map(move |v| (d, v))).map(|(d, v)| rows[v * n_embd + d]).collect()
            }
            Kind::UnembeddingBias => match checkpoint.unembedding_bias_async().await? {
                Some(bias) => bias.to_f32(),
                None => vec![0.0; config.vocab_size],
            },
            // c_attn is [D, 3 D], its columns q, k, v, each head by head.
            Kind::Qkv(n) => {
                let matrix = of_block("attn.c_attn.weight").await?;
                let columns = |h: usize, d: usize| {
                    let start = d * 3 * n_embd + n * n_embd + h * d_head;
                    matrix[start..start + d_head].to_vec()
                };
                (0..n_head).flat_map(|h| (0..n_embd).map(move |d| (h, d))).flat_map(|(h, d)| columns(h, d)).collect()
            }
            Kind::QkvBias(n) => of_block("attn.c_attn.bias").await?[n * n_embd..(n + 1) * n_embd].to_vec(),
            // c_proj is [H d, D], head by head.
            Kind::Output => of_block("attn.c_proj.weight").await?,
            Kind::Stored(name) if name.starts_with("ln_f") => read(name).await?,
            Kind::Stored(name) => of_block(name).await?,
        };
        Ok(ArrayD::from_shape_vec(IxDyn(&self.shape), values).expect("a weight has the shape that its name says"))
    }

    /// Blocking form of [`NamedWeight::values_async`].
    ///
    /// # Errors
    /// As [`NamedWeight::values_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn values(&self, checkpoint: &Checkpoint) -> Result<ArrayD<f32>, WeightsError> {
        pollster::block_on(self.values_async(checkpoint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Queries by hand, from the stored matrix: x . W_Q[h] + b_Q[h] is the part of x . c_attn + bias that is head h's.
    #[test]
    fn heads_are_cut_where_the_model_cuts_them() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/untied_erf");
        let checkpoint = Checkpoint::open(folder.as_ref()).unwrap();
        let config = checkpoint.config();
        let get = |name: &str| find(name, config).remove(0).values(&checkpoint).unwrap();
        let (d_model, d_head) = (config.n_embd, config.head_dim());
        let c_attn = checkpoint.tensor("h.1.attn.c_attn.weight").unwrap().to_f32();
        for (n, letter) in ["Q", "K", "V"].into_iter().enumerate() {
            let w = get(&format!("blocks.1.attn.W_{letter}"));
            assert_eq!(w.shape(), [config.n_head, d_model, d_head]);
            assert_eq!(w[[2, 5, 3]], c_attn[5 * 3 * d_model + n * d_model + 2 * d_head + 3]);
        }
        let c_proj = checkpoint.tensor("h.0.attn.c_proj.weight").unwrap().to_f32();
        assert_eq!(get("blocks.0.attn.W_O")[[1, 2, 7]], c_proj[(d_head + 2) * d_model + 7]);
        let head = checkpoint.tensor("lm_head.weight").unwrap().to_f32();
        assert_eq!(get("W_U")[[4, 9]], head[9 * d_model + 4], "the untied head, as [D, V]");
        assert_eq!(
            (find("W_U", config)[0].name.as_str(), find("*W_U", config)[0].name.as_str()),
            ("W_U", "unembed.W_U")
        );
        assert!(find("blocks.1.attn.W_X", config).is_empty());
        assert_eq!(find("blocks.*.attn.W_?", config).len(), 4 * config.n_layer);
    }
}
