//! A checkpoint's weights on a device. Owns the loading of each weight, its conversion to another precision, and which
//! weights belong to which block. Computes nothing but the logits, whose bias is a weight that few checkpoints have.
//! Read next: `forward.rs`, which uses the weights.

use crate::config::Config;
use crate::device::{Device, DeviceError, Dtype, Operations, Part, StoredWeight};
use crate::model::checkpoint::{Checkpoint, WeightsError};
use std::sync::{Arc, OnceLock};
use thiserror::Error;

/// Why a weight could not be loaded onto the device.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The checkpoint lacks the weight, or cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The weight has values outside the range of the requested precision.
    #[error("the weight {name:?} has values beyond {dtype:?}'s range")]
    Overflow {
        /// The tensor's name.
        name: String,
        /// The requested precision.
        dtype: Dtype,
    },
    /// The device cannot hold the weight.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A weight with its bias: a LayerNorm's gain [1, n], or a Conv1D [in, out].
#[derive(Debug)]
pub struct Biased<M> {
    pub(crate) weight: M,
    pub(crate) bias: M,
}

/// One block's weights.
#[derive(Debug)]
pub struct Block<M> {
    pub(crate) ln_1: Biased<M>,
    pub(crate) c_attn: Biased<M>,
    pub(crate) attn_c_proj: Biased<M>,
    pub(crate) ln_2: Biased<M>,
    pub(crate) c_fc: Biased<M>,
    pub(crate) mlp_c_proj: Biased<M>,
}

/// What gives a token's logit: the product with its row of the unembedding, and its bias.
#[derive(Clone, Debug)]
pub(crate) struct Direction {
    pub row: Vec<f32>,
    pub bias: f32,
}

impl Direction {
    /// The logit of a row [D] of the final LayerNorm's output, in f64.
    pub(crate) fn logit(&self, x: impl Iterator<Item = f32>) -> f64 {
        x.zip(&self.row).map(|(x, u)| f64::from(x) * f64::from(*u)).sum::<f64>() + f64::from(self.bias)
    }

    /// The direction and the bias of this logit, or of this logit less another one, in f64.
    pub(crate) fn less(&self, other: Option<&Direction>) -> (Vec<f64>, f64) {
        let (mut row, mut bias): (Vec<f64>, _) =
            (self.row.iter().map(|v| f64::from(*v)).collect(), f64::from(self.bias));
        if let Some(other) = other {
            row.iter_mut().zip(&other.row).for_each(|(u, other)| *u -= f64::from(*other));
            bias -= f64::from(other.bias);
        }
        (row, bias)
    }
}

/// A checkpoint's weights on a device. Each is loaded when a run first needs it, so a run that ends early does not load
/// the rest. Devices with the same type of weights share them: a device and one that wraps it.
pub struct Params<D: Device> {
    checkpoint: Arc<Checkpoint>,
    precision: Option<Dtype>,
    wte: OnceLock<D::Weight>,
    wpe: OnceLock<D::Weight>,
    blocks: Vec<OnceLock<Block<D::Weight>>>,
    ln_f: OnceLock<Biased<D::Weight>>,
    lm_head: OnceLock<Option<D::Weight>>,
    /// The unembedding's bias behind a gain of ones, where there is a bias.
    lm_head_bias: OnceLock<Option<Biased<D::Weight>>>,
}

impl<D: Device> Params<D> {
    /// Stores the checkpoint and loads nothing yet. With `precision`, matrices are converted to it when they are
    /// loaded.
    pub fn new(checkpoint: Arc<Checkpoint>, precision: Option<Dtype>) -> Params<D> {
        let blocks = (0..checkpoint.config().n_layer).map(|_| OnceLock::new()).collect();
        let (wte, wpe, ln_f, lm_head, lm_head_bias) = Default::default();
        Params { checkpoint, precision, wte, wpe, blocks, ln_f, lm_head, lm_head_bias }
    }

    /// The same weights for another device; none of them is loaded yet.
    pub fn for_device<E: Device>(&self) -> Params<E> {
        Params::new(self.checkpoint.clone(), self.precision)
    }

    /// The sizes and switches of `config.json`.
    pub fn config(&self) -> &Config {
        self.checkpoint.config()
    }

    /// A token's direction in the unembedding, in the device's precision, as host values.
    pub(crate) async fn direction(&self, id: u32) -> Result<Direction, LoadError> {
        let id = id as usize;
        let bias = self.checkpoint.unembedding_bias_async().await?.map_or(0.0, |bias| {
            let mut value = [0.0];
            bias.widen(id, &mut value);
            value[0]
        });
        let row = self.checkpoint.rows_async(self.checkpoint.unembedding_name_async().await?, id..id + 1).await?;
        let is_matrix = self.config().vocab_size > 1;
        Ok(Direction { row: self.rounded(row.to_f32(), is_matrix), bias })
    }

    /// A weight by Hugging Face's name, in the device's precision, as host values in storage order.
    pub(crate) async fn host(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        Ok(self.widened(&self.checkpoint.tensor_async(name).await?))
    }

    /// A weight by Hugging Face's name, as the checkpoint stores it. [`Params::widened`] has its values.
    pub(crate) async fn stored(&self, name: &str) -> Result<StoredWeight, LoadError> {
        Ok(self.checkpoint.tensor_async(name).await?)
    }

    /// The values of a weight, in the device's precision, in storage order.
    pub(crate) fn widened(&self, weight: &StoredWeight) -> Vec<f32> {
        self.rounded(weight.to_f32(), weight.rows > 1)
    }

    /// Rounds values to the device's precision, which is that of matrices.
    fn rounded(&self, mut values: Vec<f32>, is_matrix: bool) -> Vec<f32> {
        match self.precision.filter(|_| is_matrix) {
            Some(Dtype::F16) => values.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32()),
            Some(Dtype::Bf16) => values.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32()),
            Some(Dtype::F32) | None => {}
        }
        values
    }

    async fn load<E: Device<Weight = D::Weight>>(
        &self,
        dev: &E,
        name: &str,
        part: Part,
    ) -> Result<D::Weight, LoadError> {
        self.bring(dev, self.checkpoint.tensor_async(name).await?, part)
    }

    fn bring<E: Device<Weight = D::Weight>>(
        &self,
        dev: &E,
        weight: StoredWeight,
        part: Part,
    ) -> Result<D::Weight, LoadError> {
        let weight = match self.precision {
            Some(dtype) if weight.rows > 1 && weight.dtype != dtype => {
                let overflow = || LoadError::Overflow { name: weight.name.clone(), dtype };
                weight.converted(dtype).ok_or_else(overflow)?
            }
            _ => weight,
        };
        Ok(dev.load(&StoredWeight { part, ..weight })?)
    }

    async fn biased<E: Device<Weight = D::Weight>>(
        &self,
        dev: &E,
        name: &str,
        part: Part,
    ) -> Result<Biased<D::Weight>, LoadError> {
        Ok(Biased {
            weight: self.load(dev, &format!("{name}.weight"), part).await?,
            bias: self.load(dev, &format!("{name}.bias"), part).await?,
        })
    }

    /// The weights of block `layer`.
    pub(crate) async fn block<E: Device<Weight = D::Weight>>(
        &self,
        dev: &E,
        layer: usize,
    ) -> Result<&Block<D::Weight>, LoadError> {
        let part = async |name: &str| self.biased(dev, &format!("h.{layer}.{name}"), Part::Block(layer)).await;
        once(&self.blocks[layer], async || {
            Ok(Block {
                ln_1: part("ln_1").await?,
                c_attn: part("attn.c_attn").await?,
                attn_c_proj: part("attn.c_proj").await?,
                ln_2: part("ln_2").await?,
                c_fc: part("mlp.c_fc").await?,
                mlp_c_proj: part("mlp.c_proj").await?,
            })
        })
        .await
    }

    /// The token embedding [V, D].
    pub(crate) async fn wte<E: Device<Weight = D::Weight>>(&self, dev: &E) -> Result<&D::Weight, LoadError> {
        once(&self.wte, async || self.load(dev, "wte.weight", Part::Embedding).await).await
    }

    /// The position embedding [n_ctx, D].
    pub(crate) async fn wpe<E: Device<Weight = D::Weight>>(&self, dev: &E) -> Result<&D::Weight, LoadError> {
        once(&self.wpe, async || self.load(dev, "wpe.weight", Part::Embedding).await).await
    }

    /// The final LayerNorm.
    pub(crate) async fn ln_f<E: Device<Weight = D::Weight>>(&self, dev: &E) -> Result<&Biased<D::Weight>, LoadError> {
        once(&self.ln_f, async || self.biased(dev, "ln_f", Part::Head).await).await
    }

    /// The logits of rows [T, D] of the final LayerNorm's output.
    pub(crate) async fn logits<E: Device<Weight = D::Weight>>(
        &self,
        dev: &E,
        x: &E::Tensor,
    ) -> Result<E::Tensor, LoadError> {
        let logits = dev.unembed(x, self.unembedding(dev).await?);
        let bias = once(&self.lm_head_bias, async || {
            let Some(bias) = self.checkpoint.unembedding_bias_async().await? else { return Ok(None) };
            let ones: Vec<u8> = std::iter::repeat_n(1.0f32.to_le_bytes(), bias.cols).flatten().collect();
            let (name, blob) = ("a gain of ones".into(), ones.into());
            let gain = StoredWeight { name, dtype: Dtype::F32, blob, ..bias.clone() };
            let (weight, bias) = (self.bring(dev, gain, Part::Head)?, self.bring(dev, bias, Part::Head)?);
            Ok(Some(Biased { weight, bias }))
        });
        Ok(match bias.await? {
            Some(Biased { weight, bias }) => dev.gain_bias(&logits, weight, bias),
            None => logits,
        })
    }

    /// True where logits have a bias, so that they must fit into one binding.
    pub(crate) fn has_unembedding_bias(&self) -> bool {
        self.checkpoint.has_unembedding_bias()
    }

    /// The unembedding [V, D]: `lm_head`, or the token embedding if the two are tied.
    pub(crate) async fn unembedding<E: Device<Weight = D::Weight>>(&self, dev: &E) -> Result<&D::Weight, LoadError> {
        let lm_head = once(&self.lm_head, async || {
            if self.checkpoint.is_untied_async().await? {
                self.load(dev, "lm_head.weight", Part::Head).await.map(Some)
            } else {
                Ok(None)
            }
        });
        match lm_head.await? {
            Some(lm_head) => Ok(lm_head),
            None => self.wte(dev).await,
        }
    }
}

impl<D: Device> std::fmt::Debug for Params<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Params").field("config", self.config()).finish_non_exhaustive()
    }
}

/// Returns the value of a cell; if it is empty, sets it to the result of `make`.
async fn once<T>(cell: &OnceLock<T>, make: impl AsyncFnOnce() -> Result<T, LoadError>) -> Result<&T, LoadError> {
    match cell.get() {
        Some(value) => Ok(value),
        None => {
            let value = make().await?;
            Ok(cell.get_or_init(|| value))
        }
    }
}
