//! Reads the size of the second-level cache from the processor. Read next: `products.rs`, whose pieces fit that cache.

use std::sync::OnceLock;

/// Bytes of second-level cache per thread, if the processor does not report it: a common size.
const USUAL: usize = 1 << 20;

/// Bytes of the second-level cache that one thread has for itself.
pub(crate) fn second_level() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| told().filter(|size| (128 << 10..=64 << 20).contains(size)).unwrap_or(USUAL))
}

/// Intel's leaf 4 and AMD's leaf 0x8000_001D list the caches in the same form.
#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe, reason = "`cpuid` has become a safe function in newer versions of Rust")]
fn told() -> Option<usize> {
    use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};
    // SAFETY: every processor of this architecture has the instruction, and leaves that it lacks are zeros or those of another
    // leaf, which `second_level` takes for a size only where it could be one.
    let of = |leaf: u32, i: u32| unsafe { __cpuid_count(leaf, i) };
    // SAFETY: as above.
    let last = |first: u32| unsafe { __cpuid(first) }.eax;
    let leaf = [(0x8000_0000, 0x8000_001d), (0, 4)]
        .into_iter()
        .find_map(|(first, leaf)| (last(first) >= leaf && of(leaf, 0).eax & 31 != 0).then_some(leaf))?;
    (0..16).map(|i| of(leaf, i)).take_while(|cache| cache.eax & 31 != 0).find_map(
        |CpuidResult { eax, ebx, ecx, .. }| {
            let (is_data, level, sharing) = (eax & 31 != 2, eax >> 5 & 7, (eax >> 14 & 0xfff) + 1);
            let [ways, partitions, line] = [ebx >> 22, ebx >> 12 & 0x3ff, ebx & 0xfff].map(|n| n as usize + 1);
            let size = ways * partitions * line * (ecx as usize + 1);
            // Hyperthreads share a cache of their core.
            (is_data && level == 2).then_some(size / sharing as usize)
        },
    )
}

#[cfg(not(target_arch = "x86_64"))]
fn told() -> Option<usize> {
    None
}
