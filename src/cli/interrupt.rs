//! Signals and Ctrl-C. Owns what happens when the user or the system ends the process: unfinished files are deleted first.
//! A command that can stop early and keep its results calls `listen`. Then the first Ctrl-C only sets a flag, which the
//! command polls with `happened`, and the second one ends the process. Read next: `../output/unfinished.rs`.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

static LISTENS: AtomicBool = AtomicBool::new(false);
static HAPPENED: AtomicBool = AtomicBool::new(false);

/// From now on the first interrupt does not end the process.
pub(super) fn listen() {
    LISTENS.store(true, Ordering::Relaxed);
}

/// True once an interrupt came after [`listen`].
pub(super) fn happened() -> bool {
    HAPPENED.load(Ordering::Relaxed)
}

/// Records an interrupt, if the command listens and this is the first one. Returns true if it did.
fn noted() -> bool {
    LISTENS.load(Ordering::Relaxed) && !HAPPENED.swap(true, Ordering::Relaxed)
}

/// Deletes unfinished files and clears the line of a progress bar.
fn tidy_up() {
    crate::output::abandon();
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = stderr.write_all(b"\r\x1b[K");
    }
}

/// Ends the process as a recorded interrupt would have ended it, so that the parent process sees it. Returns if there
/// was none.
pub(super) fn follow() {
    #[cfg(unix)]
    if happened() {
        let _ = signal_hook::low_level::emulate_default_handler(signal_hook::consts::SIGINT);
    }
    #[cfg(windows)]
    if happened() {
        std::process::exit(windows_sys::Win32::Foundation::STATUS_CONTROL_C_EXIT);
    }
}

/// From now on a signal that ends the process first deletes unfinished files. Then the signal's default action ends the
/// process, so that the parent process sees the signal (a shell shows 130 and 143).
///
/// SIGBUS means that a mapped file was shortened while it was read (`checkpoint.rs` says when). Then the process prints
/// a message and ends with exit code 1.
#[cfg(unix)]
pub(super) fn end_tidily() {
    use signal_hook::consts::{SIGBUS, SIGHUP, SIGINT, SIGTERM};
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM, SIGBUS]) else { return };
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if signal == SIGINT && noted() {
                continue;
            }
            tidy_up();
            if signal == SIGBUS {
                let _ = writeln!(
                    std::io::stderr(),
                    "actscope: a file became shorter while it was being read, so the run cannot go on; fetch or copy the \
                     checkpoint again, and do not change it during a run"
                );
                signal_hook::low_level::exit(1);
            }
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    });
    // The thread that read beyond the file's end would repeat the read if this handler returned. It waits here until
    // the thread above has ended the process.
    let wait = || {
        std::thread::sleep(std::time::Duration::from_secs(5));
        signal_hook::low_level::exit(1);
    };
    // SAFETY: sleeping and `_exit` are allowed in signal handlers.
    let _ = unsafe { signal_hook::low_level::register(SIGBUS, wait) };
}

/// From now on Ctrl-C, Ctrl-Break and a closed console window first delete unfinished files. Then the default handler
/// ends the process with `STATUS_CONTROL_C_EXIT`.
#[cfg(windows)]
pub(super) fn end_tidily() {
    use windows_sys::Win32::System::Console::{CTRL_C_EVENT, SetConsoleCtrlHandler};
    use windows_sys::core::BOOL;

    /// Returns 0 for the next handler, which is the default one.
    unsafe extern "system" fn on_event(event: u32) -> BOOL {
        if event == CTRL_C_EVENT && noted() {
            return 1;
        }
        tidy_up();
        0
    }
    // SAFETY: Windows calls the handler on a thread of its own, where locks and files may be used. The handler lives as
    // long as the process. If the call fails, Ctrl-C ends the process and leaves unfinished files.
    let _ = unsafe { SetConsoleCtrlHandler(Some(on_event), 1) };
}

#[cfg(not(any(unix, windows)))]
pub(super) fn end_tidily() {}
