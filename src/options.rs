//! How a model is brought to a device. Owns [`Options`]. The library does what is said here and nothing else: it reads no
//! environment variable and writes no folder by itself.

use crate::device::{Choice, DeviceCache, Dtype};
use std::fmt;
use std::sync::Arc;

/// How a model is brought to a device.
///
/// ```
/// use actscope::{Choice, Options};
///
/// let options = Options { device: Choice::Cpu, ..Options::default() };
/// # let _ = options;
/// ```
#[derive(Clone)]
pub struct Options {
    /// Which device.
    pub device: Choice,
    /// The precision to which matrices are converted; `None` leaves them as they are stored.
    pub weights: Option<Dtype>,
    /// Whether a GPU's tile configuration is chosen by timing, which takes a second at most unless the cache has its result.
    /// Without it, products take the default configuration.
    pub autotune: bool,
    /// Where a device stores what it found out about this machine: tile configurations and compiled pipelines. Without one,
    /// nothing is stored. [`crate::cache::CacheFolder`] is one.
    pub cache: Option<Arc<dyn DeviceCache>>,
}

impl Default for Options {
    /// The device that suits this machine, weights as they are stored, autotuned, nothing cached.
    fn default() -> Options {
        Options { device: Choice::Auto, weights: None, autotune: true, cache: None }
    }
}

impl From<Choice> for Options {
    /// This device, all else as by default.
    fn from(device: Choice) -> Options {
        Options { device, ..Options::default() }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { device, weights, autotune, cache } = self;
        f.debug_struct("Options")
            .field("device", device)
            .field("weights", weights)
            .field("autotune", autotune)
            .field("cache", &cache.is_some())
            .finish()
    }
}
