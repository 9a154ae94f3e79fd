//! Weights as TransformerLens processes them before it runs a model: LayerNorm's gain and bias folded into what reads it,
//! everything that writes to the residual stream centred, the unembedding centred, the values' bias folded into the
//! output's. Owns [`Process`] (which steps) and the arithmetic of each. The model computes the same; single activations
//! differ, as docs/attribution.md lists.
//!
//! Steps are always in TransformerLens's order (`ProcessWeights`), in f64, and each weight is rounded to f32 once, at the
//! end. A weight is computed when it is first read. Read next: `checkpoint.rs`, which has the weights as they are stored.

use crate::device::{Blob, Bytes, Dtype, StoredWeight};
use crate::model::checkpoint::{Checkpoint, WeightsError};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

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

/// The weights that differ from those of `raw` after these steps. Nothing is computed yet.
///
/// # Errors
/// [`WeightsError::Missing`] for a checkpoint that lacks a weight.
pub(super) fn weights(raw: &Arc<Checkpoint>, steps: Process) -> Result<Vec<StoredWeight>, WeightsError> {
    let Process { fold_ln, center_writing, center_unembed, fold_value } = steps;
    let config = raw.config();
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
    let weight = |name: String| {
        let (rows, cols) = match name.as_str() {
            HEAD => (config.vocab_size, config.n_embd),
            HEAD_BIAS => (1, config.vocab_size),
            name => {
                let stored = raw.tensor(name)?;
                (stored.rows, stored.cols)
            }
        };
        let size = 4 * rows * cols;
        let processed = Processed { raw: raw.clone(), steps, name: name.clone(), size, values: OnceLock::new() };
        let blob = Blob::new(Arc::new(processed), 0..size);
        Ok(StoredWeight { name, part: Default::default(), dtype: Dtype::F32, rows, cols, blob })
    };
    names.into_iter().map(weight).collect()
}

/// One processed weight: little-endian f32 bytes, computed at first use.
struct Processed {
    raw: Arc<Checkpoint>,
    steps: Process,
    name: String,
    size: usize,
    values: OnceLock<Vec<u8>>,
}

impl Bytes for Processed {
    fn bytes(&self) -> &[u8] {
        self.values.get_or_init(|| {
            let values = Values { raw: &self.raw, steps: self.steps }.of(&self.name);
            values.into_iter().flat_map(|v| (v as f32).to_le_bytes()).collect()
        })
    }

    fn size(&self) -> usize {
        self.size
    }

    fn unchanged(&self) -> bool {
        self.raw.check_unchanged().is_ok()
    }
}

/// Computes weights after the steps, in f64.
struct Values<'a> {
    raw: &'a Checkpoint,
    steps: Process,
}

impl Values<'_> {
    fn of(&self, name: &str) -> Vec<f64> {
        let Process { fold_ln, center_writing, center_unembed, .. } = self.steps;
        let width = self.raw.config().n_embd;
        let mut values = match name {
            HEAD => self.folded_head(),
            HEAD_BIAS => self.folded_head_bias(),
            "ln_f.weight" => vec![1.0; width],
            "ln_f.bias" => vec![0.0; width],
            _ => match name.strip_prefix("h.").and_then(|rest| rest.split_once('.')) {
                Some((layer, part)) => self.of_block(layer, part),
                None => self.stored(name),
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
        values
    }

    /// A weight as the checkpoint has it. Those that exist are known when a processed checkpoint is made.
    fn stored(&self, name: &str) -> Vec<f64> {
        self.raw.tensor(name).expect("the raw checkpoint has the weights that are processed").to_f64()
    }

    fn of_block(&self, layer: &str, part: &str) -> Vec<f64> {
        let Process { fold_ln, center_writing, fold_value, .. } = self.steps;
        let width = self.raw.config().n_embd;
        let stored = |part: &str| self.stored(&format!("h.{layer}.{part}"));
        // The LayerNorm that a matrix reads.
        let norm = if part.starts_with("attn.") { "ln_1" } else { "ln_2" };
        match part {
            "ln_1.weight" | "ln_2.weight" => vec![1.0; width],
            "ln_1.bias" | "ln_2.bias" => vec![0.0; width],
            "attn.c_attn.weight" | "mlp.c_fc.weight" if fold_ln => {
                let (mut weight, gain) = (stored(part), stored(&format!("{norm}.weight")));
                let cols = weight.len() / width;
                weight.chunks_mut(cols).zip(&gain).for_each(|(row, g)| row.iter_mut().for_each(|w| *w *= g));
                center_columns(&mut weight, cols);
                weight
            }
            "attn.c_attn.bias" | "mlp.c_fc.bias" => {
                let mut bias = self.folded_bias(layer, part, norm);
                if part == "attn.c_attn.bias" && fold_value {
                    bias[2 * width..].fill(0.0);
                }
                bias
            }
            "attn.c_proj.weight" | "mlp.c_proj.weight" if center_writing => {
                let mut weight = stored(part);
                center_rows(&mut weight, width);
                weight
            }
            "attn.c_proj.bias" | "mlp.c_proj.bias" => {
                let mut bias = stored(part);
                if center_writing {
                    center_rows(&mut bias, width);
                }
                if part == "attn.c_proj.bias" && fold_value {
                    let values = self.folded_bias(layer, "attn.c_attn.bias", "ln_1").split_off(2 * width);
                    let output = self.of_block(layer, "attn.c_proj.weight");
                    for (row, v) in output.chunks(width).zip(&values) {
                        bias.iter_mut().zip(row).for_each(|(b, w)| *b += v * w);
                    }
                    if center_writing {
                        center_rows(&mut bias, width);
                    }
                }
                bias
            }
            _ => stored(part),
        }
    }

    /// A bias, with the bias of the LayerNorm before it sent through the weight as stored.
    fn folded_bias(&self, layer: &str, part: &str, norm: &str) -> Vec<f64> {
        let stored = |part: &str| self.stored(&format!("h.{layer}.{part}"));
        let mut bias = stored(part);
        if self.steps.fold_ln {
            let weight = stored(&part.replace("bias", "weight"));
            let (cols, beta) = (bias.len(), stored(&format!("{norm}.bias")));
            for (row, beta) in weight.chunks(cols).zip(&beta) {
                bias.iter_mut().zip(row).for_each(|(b, w)| *b += beta * w);
            }
        }
        bias
    }

    /// The unembedding [V, D] as stored.
    fn head(&self) -> Vec<f64> {
        self.raw.unembedding().expect("the raw checkpoint has a token embedding").to_f64()
    }

    fn folded_head(&self) -> Vec<f64> {
        let mut head = self.head();
        if self.steps.fold_ln {
            let gain = self.stored("ln_f.weight");
            head.chunks_mut(gain.len()).for_each(|row| row.iter_mut().zip(&gain).for_each(|(w, g)| *w *= g));
        }
        head
    }

    fn folded_head_bias(&self) -> Vec<f64> {
        let beta = self.stored("ln_f.bias");
        self.head().chunks(beta.len()).map(|row| row.iter().zip(&beta).map(|(w, b)| w * b).sum()).collect()
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
