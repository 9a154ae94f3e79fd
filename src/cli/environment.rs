//! What the environment sets for a command. Owns the only place where the command line reads variables (main.rs reads one of its own); the library gets what it
//! needs from here. Read next: `run.rs`.

use crate::device::Adapters;
use crate::hub::Hub;

/// The environment's settings.
pub(super) struct Environment {
    /// `HF_*` and proxies.
    pub hub: Hub,
    /// `WGPU_ADAPTER_NAME` and `WGPU_BACKEND`.
    pub adapters: Adapters,
    /// False with `ACTSCOPE_TUNING=off`: no autotuning, and nothing is cached.
    pub tuning: bool,
}

/// Reads the environment.
pub(super) fn read() -> Environment {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    Environment {
        hub: Hub::new(std::env::vars_os()),
        adapters: Adapters { name: set("WGPU_ADAPTER_NAME"), backends: set("WGPU_BACKEND") },
        tuning: set("ACTSCOPE_TUNING").is_none_or(|value| value != "off"),
    }
}
