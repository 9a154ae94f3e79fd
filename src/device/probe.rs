//! [`Measured`]: what a benchmark needs from a device beside the operations, which is timing and work that shows the limits of the
//! device. Owns the trait; `cpu/probe.rs` and `gpu/probe.rs` implement it, and `any.rs` for either. Ordinary runs do not use it.
//! Read next: `src/bench/mod.rs`.

use super::{Device, DeviceError};
use std::future::Future;

/// A piece of work. A call does or records it once, and returns the number of its operations or bytes.
pub type Work<'a> = Box<dyn Fn() -> f64 + 'a>;

/// Work that measures one limit of the device each.
pub struct Probes<'a> {
    /// Multiply-adds of values in registers, on all cores. One multiply-add counts as two operations.
    pub arithmetic: Work<'a>,
    /// Reading more memory than the caches hold, from front to back.
    pub reading: Work<'a>,
}

impl std::fmt::Debug for Probes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probes").finish_non_exhaustive()
    }
}

/// A device whose speed can be measured.
pub trait Measured: Device {
    /// Waits for all earlier work. Then calls `record`, and returns the seconds that its work takes, measured with the
    /// clock that [`Measured::clock`] names.
    ///
    /// # Errors
    /// [`DeviceError::Fault`] if the device has failed up to now.
    fn seconds(&self, record: impl FnOnce()) -> impl Future<Output = Result<f64, DeviceError>>;

    /// What was chosen for this adapter, in words. Empty where nothing is chosen.
    fn settings(&self) -> String {
        String::new()
    }

    /// The clock of [`Measured::seconds`], in words.
    fn clock(&self) -> &'static str;

    /// Like [`Measured::seconds`], but for each dispatch: its kernel and the seconds that it takes alone. Empty for a
    /// device without kernels, or without a clock of its own.
    ///
    /// # Errors
    /// [`DeviceError::Fault`] if the device has failed up to now.
    fn seconds_of_kernels(
        &self,
        _record: impl AsyncFnOnce(),
    ) -> impl Future<Output = Result<Vec<(&'static str, f64)>, DeviceError>> {
        std::future::ready(Ok(Vec::new()))
    }

    /// Work that shows the limits of this device.
    fn probes(&self) -> Probes<'_>;
}
