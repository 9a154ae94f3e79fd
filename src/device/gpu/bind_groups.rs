//! Caches bind groups. Tensors come from a pool, so a run of GPT-2 binds the same buffers as the run before. Owns the
//! cache, and what is bound: a part of a buffer, with the buffer's last use. A bind group keeps its buffers alive, so the cache
//! is cleared when a buffer is to be freed.
//! Read next: `encoder.rs`, which uses it.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The last compute pass that bound a buffer, and whether the last dispatch to bind it writes it. The encoder counts
/// barriers from this, at the cost of one atomic swap for each binding of a dispatch.
#[derive(Clone, Debug, Default)]
pub(super) struct LastUse(Arc<AtomicU64>);

impl LastUse {
    /// Records that a dispatch of pass number `pass` (1 or more) binds the buffer. Returns true if the dispatch must wait for an
    /// earlier one of that pass: if the last one writes the buffer, or if this one does.
    pub(super) fn bind(&self, pass: u64, writes: bool) -> bool {
        let last = self.0.swap(2 * pass + u64::from(writes), Ordering::Relaxed);
        last / 2 == pass && (last % 2 == 1 || writes)
    }
}

/// The most overrides and constants that a kernel has.
pub(super) const MOST_SETTINGS: usize = 8;

/// A pipeline: the name of its kernel, and the values of its overrides and constants.
pub(super) type PipelineKey = (&'static str, [u32; MOST_SETTINGS]);

/// A part of a buffer: bytes `offset .. offset + size`.
#[derive(Clone, Copy)]
pub(super) struct Binding<'a> {
    pub(super) buffer: &'a wgpu::Buffer,
    pub(super) offset: u64,
    pub(super) size: u64,
    /// True if the buffer was made for one dispatch, so that it will not be bound again.
    pub(super) once: bool,
    /// The last use of a tensor's buffer. `None` for other buffers: no dispatch writes them, so none waits for them.
    pub(super) last_use: Option<&'a LastUse>,
}

/// A pipeline by name and settings, and what is bound to it.
type Key<P> = (P, Vec<(wgpu::Buffer, u64, u64)>);

/// The most cached bind groups: eight for each block of the largest GPT-2, several times over.
const MOST: usize = 4096;

/// Bind groups of pipelines. `P` identifies a pipeline.
#[derive(Debug)]
pub(super) struct BindGroups<P>(Arc<Mutex<HashMap<Key<P>, wgpu::BindGroup>>>);

impl<P: std::hash::Hash + Eq> BindGroups<P> {
    /// The cached bind group, or a new one from `make`.
    pub(super) fn get(
        &self,
        pipeline: P,
        bindings: &[Binding<'_>],
        make: impl FnOnce() -> wgpu::BindGroup,
    ) -> wgpu::BindGroup {
        if bindings.iter().any(|binding| binding.once) {
            return make();
        }
        let parts = bindings.iter().map(|part| (part.buffer.clone(), part.offset, part.size));
        let mut cached = self.0.lock();
        if cached.len() == MOST {
            cached.clear();
        }
        cached.entry((pipeline, parts.collect())).or_insert_with(make).clone()
    }
}

impl<P> BindGroups<P> {
    /// Drops all cached bind groups, and with them the buffers that have no other owner.
    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}

impl<P> Clone for BindGroups<P> {
    fn clone(&self) -> BindGroups<P> {
        BindGroups(self.0.clone())
    }
}

impl<P> Default for BindGroups<P> {
    fn default() -> BindGroups<P> {
        BindGroups(Arc::default())
    }
}
