//! Bind groups that are used again: a run of GPT-2 binds what the run before bound, since its tensors come from a pool. Owns
//! those that are kept. They hold their buffers, so whoever gives up a buffer for good clears them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// A part of a buffer: bytes `offset .. offset + size`.
#[derive(Clone, Copy)]
pub(super) struct Binding<'a> {
    pub(super) buffer: &'a wgpu::Buffer,
    pub(super) offset: u64,
    pub(super) size: u64,
    /// Made for one dispatch: nobody will bind it again.
    pub(super) once: bool,
}

/// A pipeline by name and settings, and what is bound to it.
type Key<P> = (P, Vec<(wgpu::Buffer, u64, u64)>);

/// At most so many are kept: eight for each block of the largest GPT-2, several times.
const MOST: usize = 4096;

/// Bind groups for pipelines that are told apart by `P`.
pub(super) struct BindGroups<P>(Rc<RefCell<HashMap<Key<P>, wgpu::BindGroup>>>);

impl<P: std::hash::Hash + Eq> BindGroups<P> {
    /// The kept one, or what `make` makes.
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
        let mut kept = self.0.borrow_mut();
        if kept.len() == MOST {
            kept.clear();
        }
        kept.entry((pipeline, parts.collect())).or_insert_with(make).clone()
    }
}

impl<P> BindGroups<P> {
    /// Lets go of all of them, and with them of buffers that nobody else holds.
    pub(super) fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}

impl<P> Clone for BindGroups<P> {
    fn clone(&self) -> BindGroups<P> {
        BindGroups(self.0.clone())
    }
}

impl<P> Default for BindGroups<P> {
    fn default() -> BindGroups<P> {
        BindGroups(Rc::default())
    }
}
