//! What a device can do at most, and how long it takes for what it does: beside the operations, what a bench asks of it. Owns
//! the trait; `cpu/probe.rs` and `gpu/probe.rs` have the work. Nothing of a run comes through here.
//! Read next: `src/bench/mod.rs`.

use super::{Device, DeviceError};
use std::future::Future;

/// A piece of work: when called it is done, or recorded, once; gives back how many operations or bytes that are.
pub type Work<'a> = Box<dyn Fn() -> f64 + 'a>;

/// Work that does one thing and nothing else.
pub struct Probes<'a> {
    /// Multiply-adds of numbers that never leave their registers, on everything the device has; one counts as two operations.
    pub arithmetic: Work<'a>,
    /// Reading more memory than caches hold, front to back.
    pub reading: Work<'a>,
}

/// A device whose speed can be measured.
pub trait Measured: Device {
    /// How many seconds the device takes for what `record` does or records, by the clock that [`Measured::clock`] names. Waits
    /// for what was recorded before, first.
    ///
    /// # Errors
    /// [`DeviceError::Fault`] when anything on the device went wrong up to here.
    fn seconds(&self, record: impl FnOnce()) -> impl Future<Output = Result<f64, DeviceError>>;

    /// Whose clock that is, in words.
    fn clock(&self) -> &'static str;

    /// The work that shows the limits of this device.
    fn probes(&self) -> Probes<'_>;
}
