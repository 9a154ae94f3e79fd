//! Weights as TransformerLens processes them before it runs a model: LayerNorm's gain and bias folded into what reads it,
//! everything that writes to the residual stream centred, the unembedding centred, the values' bias folded into the
//! output's. Owns [`Process`] (which steps) and the arithmetic of each. The model computes the same; single activations
//! differ, as docs/attribution.md lists.
//!
//! Steps are always in TransformerLens's order (`ProcessWeights`), in f64, and each weight is rounded to f32 once, at the
//! end. Read next: `checkpoint.rs`, which has the weights as they are stored, and asks for a processed one when it is first read.

use crate::config::Config;
use crate::device::{Blob, StoredWeight};
use crate::model::weights_error::WeightsError;
use std::fmt;
use std::str::FromStr;

/// Which steps of the processing are done.
///
/// ```
/// use actscope::model::process::Process;
///
/// assert_eq!("tl".parse::<Process>()?, "fold-ln,center-writing,center-unembed,fold-value".parse()?);
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// The gain and bias of every LayerNorm go into the weights that read it, whose columns are then centred over D.
    pub fold_ln: bool,
    /// Everything that is added to the residual stream is centred over D: the next LayerNorm would remove its mean.
    pub center_writing: bool,
    /// The unembedding is centred over the vocabulary: a softmax does not see a shift of all logits.
    pub center_unembed: bool,
    /// The values' bias goes into the bias of attention's output: each row of a pattern adds up to 1.
    pub fold_value: bool,
}

impl Process {
    /// All steps: what TransformerLens does unless it is told otherwise.
    pub const ALL: Process = Process { fold_ln: true, center_writing: true, center_unembed: true, fold_value: true };

    /// No step: weights as they are stored.
    pub const NONE: Process =
        Process { fold_ln: false, center_writing: false, center_unembed: false, fold_value: false };

    /// The names of the steps, in their order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let all = [
            ("fold-ln", self.fold_ln),
            ("center-writing", self.center_writing),
            ("center-unembed", self.center_unembed),
            ("fold-value", self.fold_value),
        ];
        all.into_iter().filter(|(_, done)| *done).map(|(name, _)| name)
    }

    /// True where nothing is done.
    pub fn is_none(&self) -> bool {
        *self == Process::NONE
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().collect::<Vec<_>>().join(","))
    }
}

impl serde::Serialize for Process {
    /// As it is written: step names with commas between them.
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl FromStr for Process {
    type Err = String;

    /// Reads step names with commas between them, in any order; `tl` is all of them.
    fn from_str(written: &str) -> Result<Process, String> {
        let mut steps = Process::NONE;
        for name in written.split(',').map(str::trim) {
            match name {
                "fold-ln" => steps.fold_ln = true,
                "center-writing" => steps.center_writing = true,
                "center-unembed" => steps.center_unembed = true,
                "fold-value" => steps.fold_value = true,
                "tl" => steps = Process::ALL,
                _ => {
                    return Err(format!(
                        "{name:?} is none of fold-ln, center-writing, center-unembed, fold-value, tl (all four)"
                    ));
                }
            }
        }
        Ok(steps)
    }
}

/// The names that the unembedding and its bias have in processed checkpoints.
pub(super) const HEAD: &str = "lm_head.weight";
pub(super) const HEAD_BIAS: &str = "lm_head.bias";

/// The names of the weights that differ after these steps.
pub(super) fn changed(config: &Config, steps: Process) -> Vec<String> {
    let Process { fold_ln, center_writing, center_unembed, fold_value } = steps;
    let mut names = Vec::new();
    for layer in 0..config.n_layer {
        let of_block = [
            ("ln_1.weight", fold_ln),
            ("ln_1.bias", fold_ln),
            ("attn.c_attn.weight", fold_ln),
            ("attn.c_attn.bias", fold_ln || fold_value),
            ("attn.c_proj.weight", center_writing),
            ("attn.c_proj.bias", center_writing || fold_value),
            ("ln_2.weight", fold_ln),
            ("ln_2.bias", fold_ln),
            ("mlp.c_fc.weight", fold_ln),
            ("mlp.c_fc.bias", fold_ln),
            ("mlp.c_proj.weight", center_writing),
            ("mlp.c_proj.bias", center_writing),
        ];
        names.extend(of_block.iter().filter(|(_, changed)| *changed).map(|(name, _)| format!("h.{layer}.{name}")));
    }
    let others = [
        ("wte.weight", center_writing),
        ("wpe.weight", center_writing),
        ("ln_f.weight", fold_ln),
        ("ln_f.bias", fold_ln),
        // The token embedding and the unembedding are no longer the same.
        (HEAD, fold_ln || center_writing || center_unembed),
        (HEAD_BIAS, fold_ln),
    ];
    names.extend(others.iter().filter(|(_, changed)| *changed).map(|(name, _)| name.to_string()));
    names
}

/// The weights as they are stored, from which the steps compute.
pub(super) trait RawWeights {
    /// The model's shape.
    fn config(&self) -> &Config;

    /// The weight of this name.
    async fn weight(&self, name: &str) -> Result<StoredWeight, WeightsError>;

    /// The unembedding [V, D], which may be the token embedding.
    async fn unembedding(&self) -> Result<StoredWeight, WeightsError>;
}

/// Computes a weight after these steps, from those of `raw`: little-endian f32 elements.
///
/// # Errors
/// Those of `raw`.
pub(super) async fn weight<R: RawWeights>(raw: &R, steps: Process, name: &str) -> Result<Blob, WeightsError> {
    let values = Values { raw, steps }.of(name).await?;
    Ok(values.into_iter().flat_map(|v| (v as f32).to_le_bytes()).collect::<Vec<u8>>().into())
}

/// Computes weights after the steps, in f64.
struct Values<'a, R> {
    raw: &'a R,
    steps: Process,
}

impl<R: RawWeights> Values<'_, R> {
    async fn of(&self, name: &str) -> Result<Vec<f64>, WeightsError> {
        let Process { fold_ln, center_writing, center_unembed, .. } = self.steps;
        let width = self.raw.config().n_embd;
        let mut values = match name {
            HEAD => self.folded_head().await?,
            HEAD_BIAS => self.folded_head_bias().await?,
            "ln_f.weight" => vec![1.0; width],
            "ln_f.bias" => vec![0.0; width],
            _ => match name.strip_prefix("h.").and_then(|rest| rest.split_once('.')) {
                Some((layer, part)) => self.of_block(layer, part).await?,
                None => self.stored(name).await?,
            },
        };
        match name {
            HEAD if fold_ln => center_rows(&mut values, width),
            "wte.weight" | "wpe.weight" if center_writing => center_rows(&mut values, width),
            _ => {}
        }
        match name {
            HEAD if center_unembed => center_columns(&mut values, width),
            HEAD_BIAS if center_unembed => center_rows(&mut values, self.raw.config().vocab_size),
            _ => {}
        }
        Ok(values)
    }

    /// A weight as the checkpoint has it.
    async fn stored(&self, name: &str) -> Result<Vec<f64>, WeightsError> {
        Ok(self.raw.weight(name).await?.to_f64())
    }

    /// A weight of a block as the checkpoint has it.
    async fn stored_in(&self, layer: &str, part: &str) -> Result<Vec<f64>, WeightsError> {
        self.stored(&format!("h.{layer}.{part}")).await
    }

    async fn of_block(&self, layer: &str, part: &str) -> Result<Vec<f64>, WeightsError> {
        let Process { fold_ln, center_writing, fold_value, .. } = self.steps;
        let width = self.raw.config().n_embd;
        // The LayerNorm that a matrix reads.
        let norm = if part.starts_with("attn.") { "ln_1" } else { "ln_2" };
        Ok(match part {
            "ln_1.weight" | "ln_2.weight" => vec![1.0; width],
            "ln_1.bias" | "ln_2.bias" => vec![0.0; width],
            "attn.c_attn.weight" | "mlp.c_fc.weight" if fold_ln => {
                let gain = self.stored_in(layer, &format!("{norm}.weight")).await?;
                let mut weight = self.stored_in(layer, part).await?;
                let cols = weight.len() / width;
                weight.chunks_mut(cols).zip(&gain).for_each(|(row, g)| row.iter_mut().for_each(|w| *w *= g));
                center_columns(&mut weight, cols);
                weight
            }
            "attn.c_attn.bias" | "mlp.c_fc.bias" => {
                let mut bias = self.folded_bias(layer, part, norm).await?;
                if part == "attn.c_attn.bias" && fold_value {
                    bias[2 * width..].fill(0.0);
                }
                bias
            }
            "attn.c_proj.weight" | "mlp.c_proj.weight" => self.written(layer, part).await?,
            "attn.c_proj.bias" | "mlp.c_proj.bias" => {
                let mut bias = self.written(layer, part).await?;
                if part == "attn.c_proj.bias" && fold_value {
                    let values = self.folded_bias(layer, "attn.c_attn.bias", "ln_1").await?.split_off(2 * width);
                    let output = self.written(layer, "attn.c_proj.weight").await?;
                    for (row, v) in output.chunks(width).zip(&values) {
                        bias.iter_mut().zip(row).for_each(|(b, w)| *b += v * w);
                    }
                    if center_writing {
                        center_rows(&mut bias, width);
                    }
                }
                bias
            }
            _ => self.stored_in(layer, part).await?,
        })
    }

    /// A weight or a bias that writes to the residual stream, centred where it is asked for.
    async fn written(&self, layer: &str, part: &str) -> Result<Vec<f64>, WeightsError> {
        let mut values = self.stored_in(layer, part).await?;
        if self.steps.center_writing {
            center_rows(&mut values, self.raw.config().n_embd);
        }
        Ok(values)
    }

    /// A bias, with the bias of the LayerNorm before it sent through the weight as stored.
    async fn folded_bias(&self, layer: &str, part: &str, norm: &str) -> Result<Vec<f64>, WeightsError> {
        let mut bias = self.stored_in(layer, part).await?;
        if self.steps.fold_ln {
            let weight = self.stored_in(layer, &part.replace("bias", "weight")).await?;
            let (cols, beta) = (bias.len(), self.stored_in(layer, &format!("{norm}.bias")).await?);
            for (row, beta) in weight.chunks(cols).zip(&beta) {
                bias.iter_mut().zip(row).for_each(|(b, w)| *b += beta * w);
            }
        }
        Ok(bias)
    }

    /// The unembedding [V, D] as stored.
    async fn head(&self) -> Result<Vec<f64>, WeightsError> {
        Ok(self.raw.unembedding().await?.to_f64())
    }

    async fn folded_head(&self) -> Result<Vec<f64>, WeightsError> {
        let mut head = self.head().await?;
        if self.steps.fold_ln {
            let gain = self.stored("ln_f.weight").await?;
            head.chunks_mut(gain.len()).for_each(|row| row.iter_mut().zip(&gain).for_each(|(w, g)| *w *= g));
        }
        Ok(head)
    }

    async fn folded_head_bias(&self) -> Result<Vec<f64>, WeightsError> {
        let (beta, head) = (self.stored("ln_f.bias").await?, self.head().await?);
        Ok(head.chunks(beta.len()).map(|row| row.iter().zip(&beta).map(|(w, b)| w * b).sum()).collect())
    }
}

/// Subtracts from every row of `cols` values its mean.
fn center_rows(values: &mut [f64], cols: usize) {
    for row in values.chunks_mut(cols) {
        let mean = row.iter().sum::<f64>() / cols as f64;
        row.iter_mut().for_each(|v| *v -= mean);
    }
}

/// Subtracts from every column its mean.
fn center_columns(values: &mut [f64], cols: usize) {
    let mut means = vec![0.0; cols];
    for row in values.chunks(cols) {
        means.iter_mut().zip(row).for_each(|(mean, v)| *mean += v);
    }
    let rows = (values.len() / cols) as f64;
    for row in values.chunks_mut(cols) {
        row.iter_mut().zip(&means).for_each(|(v, sum)| *v -= sum / rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_by_name() {
        let steps: Process = "fold-value, fold-ln".parse().unwrap();
        assert_eq!(steps.to_string(), "fold-ln,fold-value", "in their own order");
        assert!(Process::NONE.to_string().is_empty() && Process::NONE.is_none());
        for wrong in ["", "fold", "tl,", "Fold-ln"] {
            assert!(wrong.parse::<Process>().unwrap_err().contains("none of fold-ln"), "{wrong}");
        }
    }

    #[test]
    fn means_of_rows_and_columns() {
        let mut values = [1.0, 2.0, 3.0, 6.0];
        center_rows(&mut values, 2);
        assert_eq!(values, [-0.5, 0.5, -1.5, 1.5]);
        let mut values = [1.0, 2.0, 3.0, 6.0];
        center_columns(&mut values, 2);
        assert_eq!(values, [-1.0, -2.0, 1.0, 2.0]);
    }
}
