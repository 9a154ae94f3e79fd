//! The first thing that went wrong on the device, kept until somebody asks. wgpu reports from callbacks, on any thread, and
//! operations return no `Result`.

use crate::device::DeviceError;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Clone, Default)]
pub(super) struct Fault(Arc<Mutex<Option<String>>>);

impl Fault {
    /// Keeps the first: it is the cause, what follows are its consequences.
    pub(super) fn keep(&self, detail: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(detail);
    }

    /// A result, or the first fault there was: what comes after one is not to be believed.
    pub(super) fn or<T>(&self, result: Result<T, String>) -> Result<T, DeviceError> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (kept, result) {
            (Some(detail), _) | (None, Err(detail)) => Err(DeviceError::Fault { detail }),
            (None, Ok(value)) => Ok(value),
        }
    }
}
