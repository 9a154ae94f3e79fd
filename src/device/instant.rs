//! The clock of autotuning: the standard library's, or in a browser, where that one panics, the one of `web-time`.
//! Read next: `gpu/autotune.rs`.

#[cfg(not(target_arch = "wasm32"))]
pub(super) use std::time::Instant;
#[cfg(target_arch = "wasm32")]
pub(super) use web_time::Instant;
