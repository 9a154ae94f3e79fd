//! What went wrong on the device, kept until somebody asks. wgpu reports from callbacks, on any thread, and operations return
//! no `Result`.

use crate::device::DeviceError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Clone, Debug, Default)]
pub(super) struct Fault(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    /// The first: it is the cause, what follows are its consequences.
    first: Option<String>,
    /// Whatever else is said of a lost device, that it is lost is the cause; but wgpu says so last.
    lost: Option<String>,
}

impl Fault {
    /// Keeps an error of wgpu's, or of our own.
    pub(super) fn keep(&self, detail: &str) {
        self.kept().first.get_or_insert_with(|| one_line(detail));
    }

    /// Keeps that the device is gone.
    pub(super) fn lost(&self, message: &str) {
        let detail =
            if message.is_empty() { "the device was lost".into() } else { format!("the device was lost: {message}") };
        self.kept().lost.get_or_insert(one_line(&detail));
    }

    /// Forgets what went wrong with something that is given up; that the device is lost stays.
    pub(super) fn forget(&self) {
        self.kept().first = None;
    }

    /// True once anything went wrong.
    pub(super) fn any(&self) -> bool {
        let kept = self.kept();
        kept.lost.is_some() || kept.first.is_some()
    }

    /// A result, or the fault there was: what comes after one is not to be believed.
    pub(super) fn or<T>(&self, result: Result<T, String>) -> Result<T, DeviceError> {
        let kept = self.kept();
        match (kept.lost.clone().or_else(|| kept.first.clone()), result) {
            (Some(detail), _) => Err(DeviceError::Fault { detail }),
            (None, Err(detail)) => Err(DeviceError::Fault { detail: one_line(&detail) }),
            (None, Ok(value)) => Ok(value),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// wgpu's messages are little trees of lines.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
