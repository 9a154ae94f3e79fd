//! Long work beside Python: the GIL is released, Ctrl-C ends the work, and a Python function hears how far it is. Owns how
//! often Python is asked.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long Ctrl-C may wait before it is noticed.
const SIGNALS: Duration = Duration::from_millis(30);
/// When progress is first told, and how often then.
const PATIENCE: Duration = Duration::from_secs(1);
const TOLD: Duration = Duration::from_millis(100);

/// Hears the progress of a run that holds no GIL, and ends it where Python has an exception.
pub struct Watch {
    start: Instant,
    asked: Cell<Instant>,
    told: Cell<Option<Instant>>,
    progress: Option<Py<PyAny>>,
    error: RefCell<Option<PyErr>>,
}

impl Watch {
    /// `progress(done, of)` is called from the second second on.
    pub fn new(progress: Option<Py<PyAny>>) -> Watch {
        let now = Instant::now();
        Watch { start: now, asked: Cell::new(now), told: Cell::new(None), progress, error: RefCell::new(None) }
    }

    /// What the library calls after each step.
    pub fn hear(&self, done: usize, of: usize) -> ControlFlow<()> {
        let now = Instant::now();
        if now - self.asked.get() < SIGNALS {
            return ControlFlow::Continue(());
        }
        self.asked.set(now);
        let tell = now - self.start > PATIENCE && self.told.get().is_none_or(|told| now - told > TOLD || done == of);
        let heard = Python::attach(|py| {
            py.check_signals()?;
            if let (true, Some(progress)) = (tell, &self.progress) {
                self.told.set(Some(now));
                progress.call1(py, (done, of))?;
            }
            Ok(())
        });
        match heard {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => {
                self.error.replace(Some(e));
                ControlFlow::Break(())
            }
        }
    }

    /// The exception that ended the run.
    pub fn error(self) -> Option<PyErr> {
        self.error.into_inner()
    }
}

/// Does work that cannot be ended on a thread of its own, and gives up waiting on Ctrl-C.
///
/// # Errors
/// The exception of a signal handler, which is `KeyboardInterrupt` for Ctrl-C.
pub fn apart<T: Send + 'static>(py: Python<'_>, work: impl FnOnce() -> T + Send + 'static) -> PyResult<T> {
    let (give, mut take) = channel();
    std::thread::Builder::new().name("actscope".into()).spawn(move || {
        // Without a receiver the wait was given up.
        let _ = give.send(work());
    })?;
    loop {
        let result;
        (result, take) = py.detach(move || (take.recv_timeout(SIGNALS), take));
        match result {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err("a thread of actscope ended without a result; please report this"));
            }
        }
    }
}
