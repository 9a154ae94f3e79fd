//! The binary. All of its code is in the library's `cli`; read `cli/mod.rs` next.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Without a session directory (containers, remote shells), Mesa's device-selection layer writes an error about
    // Wayland to stderr when adapters are listed. The layer only chooses among several GPUs of a desktop, so it is
    // disabled here.
    #[cfg(target_os = "linux")]
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: nothing else runs yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
    actscope::cli::main()
}
