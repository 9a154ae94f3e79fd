//! Caches bind groups. Tensors come from a pool, so a run of GPT-2 binds the same buffers as the run before. Owns the
//! cache. A bind group keeps its buffers alive, so the cache is cleared when a buffer is to be freed.
//! Read next: `encoder.rs`, which uses it.

use super::buffers::LastUse;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

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
