//! The most memory that this process has had at once, where the system tells it: Linux's /proc/self. Owns no memory.

/// Begins anew: what comes after counts. Where the system refuses, what was before counts too.
pub fn forget_peak() {
    // 5 is for the peak of what is resident: man 5 proc.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Bytes; `None` where the system does not say.
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(1024 * line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}
