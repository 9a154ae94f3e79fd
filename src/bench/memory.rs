//! The peak memory of this process, where the system reports it (Linux, in /proc/self). Owns no memory.
//! Read next: `forward.rs`, which reports it.

/// Resets the peak. If the system refuses, the peak still includes the time before.
pub fn forget_peak() {
    // 5 resets the peak of the resident set size: man 5 proc.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The peak in bytes, or `None` if the system does not report it.
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}
