//! The settings of a command that come from environment variables. Owns all reading of them, except one variable that `main.rs`
//! reads. The library reads none and gets these settings as arguments. Read next: `run.rs`.

use crate::device::Adapters;
use crate::hub::Hub;

/// The settings.
pub(super) struct Environment {
    /// `HF_*` and proxies.
    pub hub: Hub,
    /// `WGPU_ADAPTER_NAME` and `WGPU_BACKEND`.
    pub adapters: Adapters,
    /// False with `ACTSCOPE_TUNING=off`: no autotuning, and nothing is cached.
    pub tuning: bool,
}

/// Reads the variables.
pub(super) fn read() -> Environment {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Environment {
        hub: Hub::new(std::env::vars_os()),
        adapters: Adapters { name: set("WGPU_ADAPTER_NAME"), backends: set("WGPU_BACKEND") },
        tuning: set("ACTSCOPE_TUNING").is_none_or(|value| value != "off"),
    }
}
