//! The settings that come from environment variables. Owns all reading of these variables, except one that `main.rs`
//! reads. The library reads no environment variable; it gets the settings as arguments. Read next: `run.rs`.

use crate::device::AdapterFilter;
use crate::hub::Hub;

/// The settings that come from environment variables.
pub(super) struct Environment {
    /// From `HF_*` and the variables of proxies.
    pub hub: Hub,
    /// From `WGPU_ADAPTER_NAME` and `WGPU_BACKEND`.
    pub adapters: AdapterFilter,
    /// False with `ACTSCOPE_TUNING=off`: kernels are not autotuned, and nothing is cached.
    pub tuning: bool,
}

/// Reads the variables.
pub(super) fn read() -> Environment {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Environment {
        hub: Hub::new(std::env::vars_os()),
        adapters: AdapterFilter { name: set("WGPU_ADAPTER_NAME"), backends: set("WGPU_BACKEND") },
        tuning: set("ACTSCOPE_TUNING").is_none_or(|value| value != "off"),
    }
}
