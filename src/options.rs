//! The options with which a model is loaded onto a device. Owns [`Options`]. The library reads no environment variable
//! and writes no folder by itself: all such choices are made here. Read next: `device/mod.rs`.

use crate::device::{AdapterFilter, Choice, DeviceCache, Dtype};
use std::fmt;
use std::sync::Arc;

/// The options with which a model is loaded onto a device.
///
/// ```
/// use actscope::{Choice, Options};
///
/// let options = Options { device: Choice::Cpu, ..Options::default() };
/// # let _ = options;
/// ```
#[derive(Clone)]
pub struct Options {
    /// The device.
    pub device: Choice,
    /// Which GPU adapters count.
    pub adapters: AdapterFilter,
    /// The precision to which matrices are converted; `None` leaves them as stored in the checkpoint.
    pub weights: Option<Dtype>,
    /// Whether a GPU's tile configuration is chosen by timing. This takes up to a second, unless the cache has the
    /// result. If false, matrix products use the default configuration.
    pub autotune: bool,
    /// Where a device stores results that are specific to this machine: tile configurations and compiled pipelines.
    /// With `None`, nothing is stored. [`crate::cache::CacheFolder`] is an implementation.
    pub cache: Option<Arc<dyn DeviceCache>>,
}

impl Default for Options {
    /// [`Choice::Auto`] among all adapters, weights as stored, autotuning on, no cache.
    fn default() -> Options {
        Options { device: Choice::Auto, adapters: AdapterFilter::default(), weights: None, autotune: true, cache: None }
    }
}

impl From<Choice> for Options {
    /// This device, with all other options at their defaults.
    fn from(device: Choice) -> Options {
        Options { device, ..Options::default() }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { device, adapters, weights, autotune, cache } = self;
        f.debug_struct("Options")
            .field("device", device)
            .field("adapters", adapters)
            .field("weights", weights)
            .field("autotune", autotune)
            .field("cache", &cache.is_some())
            .finish()
    }
}
