//! Memory of the `cpu` device: tensors, whose memory is used again, so that a run touches no fresh pages after its first block;
//! numbers aligned to a cache line for what is packed; a matrix that many write. Computes nothing.

use crate::device::buffer_pool;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::rc::Rc;

/// Numbers that begin on a cache line, so that no vector load crosses one.
#[derive(Default)]
pub struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([f32; 16]);

impl Aligned {
    /// `len` numbers, all zero. Its pages are first touched by whoever writes to them.
    pub fn zeros(len: usize) -> Aligned {
        Aligned { lines: bytemuck::zeroed_vec(len.div_ceil(16)), len }
    }

    /// Makes it at least `len` long; what it held may be lost.
    pub fn at_least(&mut self, len: usize) -> &mut [f32] {
        if self.len < len {
            *self = Aligned::zeros(len);
        }
        &mut self[..len]
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// A matrix [rows, cols] of f32, row-major. Whoever taps all of it gets its memory, not a copy, if nobody else wants it any more
/// by then; whoever writes to it meanwhile writes to a copy.
pub struct Tensor {
    pub(super) rows: usize,
    pub(super) cols: usize,
    data: Rc<Memory>,
}

impl Tensor {
    /// One whose values are whatever the memory held.
    pub fn new(rows: usize, cols: usize) -> Tensor {
        Tensor { rows, cols, data: Rc::new(Memory(buffer_pool::vector(rows * cols))) }
    }

    /// From the first number of a row on.
    pub fn row(&self, row: usize) -> &[f32] {
        &self[row * self.cols..]
    }

    /// All of its values, as they are now.
    pub fn share(&self) -> Rc<Memory> {
        self.data.clone()
    }
}

impl Deref for Tensor {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data.0
    }
}

impl DerefMut for Tensor {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut Rc::make_mut(&mut self.data).0
    }
}

/// A tensor's numbers. Their memory goes back when nobody has them any more.
pub struct Memory(Vec<f32>);

impl Memory {
    /// The numbers: themselves if nobody else has them, else a copy.
    pub fn take(this: Rc<Memory>) -> Vec<f32> {
        let mut memory = Rc::unwrap_or_clone(this);
        std::mem::take(&mut memory.0)
    }
}

impl Clone for Memory {
    fn clone(&self) -> Memory {
        let mut copy = buffer_pool::vector(self.0.len());
        copy.copy_from_slice(&self.0);
        Memory(copy)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        buffer_pool::give_back(std::mem::take(&mut self.0));
    }
}

/// A matrix that several threads write, each in cells of its own.
#[derive(Clone, Copy)]
pub struct Shared<'a> {
    pub(super) data: *mut f32,
    pub(super) stride: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: every task is given cells of its own, and the borrow lasts as long as the tasks.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(data: &'a mut [f32], stride: usize, rows: usize, cols: usize) -> Shared<'a> {
        assert!(rows > 0 && cols <= stride && (rows - 1) * stride + cols <= data.len());
        Shared { data: data.as_mut_ptr(), stride, of: PhantomData }
    }

    /// # Safety
    /// The row and the columns are within the matrix, and nobody else has these cells at the moment.
    pub unsafe fn row(&self, row: usize, cols: Range<usize>) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride + cols.start), cols.len()) }
    }
}
