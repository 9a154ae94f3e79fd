//! The binary: everything is in the library's `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Without a session directory (containers, remote shells) Mesa's device-selection layer writes an error about Wayland to
    // stderr whenever adapters are listed. It only chooses among several GPUs of a desktop, so it is left out there.
    #[cfg(target_os = "linux")]
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: nothing else runs yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
    actscope::cli::main()
}
