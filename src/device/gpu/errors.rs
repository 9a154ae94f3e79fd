//! Records errors of the device until they are read. wgpu reports them from callbacks, on any thread, and operations
//! return no `Result`. Owns [`ErrorSlot`], and which of several errors is reported.
//! Read next: `Gpu::outcome` in `mod.rs`, which returns the recorded error.

use crate::device::DeviceError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Clone, Debug, Default)]
pub(super) struct ErrorSlot(Arc<Mutex<Recorded>>);

#[derive(Debug, Default)]
struct Recorded {
    /// The first error. Later ones are its consequences.
    first: Option<String>,
    /// The loss of the device. It is the cause of all other errors, but wgpu reports it last.
    lost: Option<String>,
}

impl ErrorSlot {
    /// Records an error, unless there is an earlier one.
    pub(super) fn record(&self, detail: &str) {
        self.recorded().first.get_or_insert_with(|| one_line(detail));
    }

    /// Records that the device is lost.
    pub(super) fn lost(&self, message: &str) {
        let detail =
            if message.is_empty() { "the device was lost".into() } else { format!("the device was lost: {message}") };
        self.recorded().lost.get_or_insert(one_line(&detail));
    }

    /// Discards the recorded error of work that was given up. The loss of the device stays recorded.
    pub(super) fn forget(&self) {
        self.recorded().first = None;
    }

    /// True if an error is recorded.
    pub(super) fn any(&self) -> bool {
        let recorded = self.recorded();
        recorded.lost.is_some() || recorded.first.is_some()
    }

    /// Returns `result`, or the recorded error, because results after an error cannot be trusted.
    pub(super) fn or<T>(&self, result: Result<T, String>) -> Result<T, DeviceError> {
        let recorded = self.recorded();
        match (recorded.lost.clone().or_else(|| recorded.first.clone()), result) {
            (Some(detail), _) => Err(DeviceError::Fault { detail }),
            (None, Err(detail)) => Err(DeviceError::Fault { detail: one_line(&detail) }),
            (None, Ok(value)) => Ok(value),
        }
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Joins the lines of wgpu's messages, which have several.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
