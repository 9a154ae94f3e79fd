//! A checkpoint's weights on a device, each brought there when a run first needs it: a run that ends early never pays for
//! the rest. Owns what belongs to which block; computes nothing. Read next: `model.rs`, which does.

use crate::device::{Device, DeviceError, Dtype, StoredWeight};
use crate::model::checkpoint::{Checkpoint, WeightsError};
use crate::model::config::Config;
use std::cell::OnceCell;
use std::rc::Rc;
use thiserror::Error;

/// Why a weight could not be brought to the device.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The checkpoint lacks it.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Asked for in a precision that cannot hold it.
    #[error("the weight {name:?} has values beyond {dtype:?}'s range; keep it as stored, or use bf16 or f32")]
    Overflow {
        /// The tensor's name.
        name: String,
        /// The precision asked for.
        dtype: Dtype,
    },
    /// The device cannot hold it.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A weight with its bias: a LayerNorm's gain [1, n], or a Conv1D [in, out].
pub struct Biased<M> {
    pub(crate) weight: M,
    pub(crate) bias: M,
}

/// One block's weights.
pub struct Block<M> {
    pub(crate) ln_1: Biased<M>,
    pub(crate) c_attn: Biased<M>,
    pub(crate) attn_c_proj: Biased<M>,
    pub(crate) ln_2: Biased<M>,
    pub(crate) c_fc: Biased<M>,
    pub(crate) mlp_c_proj: Biased<M>,
}

/// A checkpoint's weights on a device. Each is brought there when a run first needs it, so a run that ends early never
/// pays for the rest.
pub struct Params<D: Device> {
    checkpoint: Rc<Checkpoint>,
    precision: Option<Dtype>,
    wte: OnceCell<D::Weight>,
    wpe: OnceCell<D::Weight>,
    blocks: Vec<OnceCell<Block<D::Weight>>>,
    ln_f: OnceCell<Biased<D::Weight>>,
    lm_head: OnceCell<Option<D::Weight>>,
}

impl<D: Device> Params<D> {
    /// Holds the checkpoint; loads nothing yet. With `precision`, matrices are converted to it on their way.
    pub fn new(checkpoint: Rc<Checkpoint>, precision: Option<Dtype>) -> Params<D> {
        let blocks = (0..checkpoint.config().n_layer).map(|_| OnceCell::new()).collect();
        let (wte, wpe, ln_f, lm_head) = Default::default();
        Params { checkpoint, precision, wte, wpe, blocks, ln_f, lm_head }
    }

    /// The same weights for another device, none of them brought there yet.
    pub fn for_device<E: Device>(&self) -> Params<E> {
        Params::new(self.checkpoint.clone(), self.precision)
    }

    /// Sizes and switches.
    pub fn config(&self) -> &Config {
        self.checkpoint.config()
    }

    fn load(&self, dev: &D, name: &str) -> Result<D::Weight, LoadError> {
        self.bring(dev, self.checkpoint.tensor(name)?)
    }

    fn bring(&self, dev: &D, weight: &StoredWeight) -> Result<D::Weight, LoadError> {
        match self.precision {
            Some(dtype) if weight.rows > 1 && weight.dtype != dtype => {
                let overflow = || LoadError::Overflow { name: weight.name.clone(), dtype };
                Ok(dev.load(&weight.converted(dtype).ok_or_else(overflow)?)?)
            }
            _ => Ok(dev.load(weight)?),
        }
    }

    fn biased(&self, dev: &D, name: &str) -> Result<Biased<D::Weight>, LoadError> {
        Ok(Biased {
            weight: self.load(dev, &format!("{name}.weight"))?,
            bias: self.load(dev, &format!("{name}.bias"))?,
        })
    }

    pub(crate) fn block(&self, dev: &D, layer: usize) -> Result<&Block<D::Weight>, LoadError> {
        once(&self.blocks[layer], || {
            let part = |name: &str| self.biased(dev, &format!("h.{layer}.{name}"));
            Ok(Block {
                ln_1: part("ln_1")?,
                c_attn: part("attn.c_attn")?,
                attn_c_proj: part("attn.c_proj")?,
                ln_2: part("ln_2")?,
                c_fc: part("mlp.c_fc")?,
                mlp_c_proj: part("mlp.c_proj")?,
            })
        })
    }

    pub(crate) fn wte(&self, dev: &D) -> Result<&D::Weight, LoadError> {
        once(&self.wte, || self.load(dev, "wte.weight"))
    }

    pub(crate) fn wpe(&self, dev: &D) -> Result<&D::Weight, LoadError> {
        once(&self.wpe, || self.load(dev, "wpe.weight"))
    }

    pub(crate) fn ln_f(&self, dev: &D) -> Result<&Biased<D::Weight>, LoadError> {
        once(&self.ln_f, || self.biased(dev, "ln_f"))
    }

    pub(crate) fn unembedding(&self, dev: &D) -> Result<&D::Weight, LoadError> {
        let untied =
            once(&self.lm_head, || self.checkpoint.untied_unembedding().map(|w| self.bring(dev, w)).transpose())?;
        match untied {
            Some(lm_head) => Ok(lm_head),
            None => self.wte(dev),
        }
    }
}

/// `OnceCell::get_or_try_init`, which is not stable yet.
fn once<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T, LoadError>) -> Result<&T, LoadError> {
    match cell.get() {
        Some(value) => Ok(value),
        None => {
            let value = make()?;
            Ok(cell.get_or_init(|| value))
        }
    }
}
