//! Ctrl-C for a command that ends by itself and keeps what it has. The first one is heard; a second one ends the process at once.

use std::sync::atomic::{AtomicBool, Ordering};

static LISTENS: AtomicBool = AtomicBool::new(false);
static HAPPENED: AtomicBool = AtomicBool::new(false);

/// From now on the first interrupt does not end the process.
pub(super) fn listen() {
    LISTENS.store(true, Ordering::Relaxed);
}

/// True once the user has asked for an end.
pub(super) fn happened() -> bool {
    HAPPENED.load(Ordering::Relaxed)
}

/// For the thread that gets signals: true where the command ends by itself.
#[cfg(unix)]
pub(super) fn is_heard() -> bool {
    LISTENS.load(Ordering::Relaxed) && !HAPPENED.swap(true, Ordering::Relaxed)
}

/// Ends the process as the interrupt would have, once everything is done.
pub(super) fn follow() {
    #[cfg(unix)]
    if happened() {
        let _ = signal_hook::low_level::emulate_default_handler(signal_hook::consts::SIGINT);
    }
}
