//! Memory of the `cpu` device: tensors whose buffers go back to a pool when they are dropped, so that a run touches no
//! fresh pages after its first block, and numbers aligned to a cache line for what is packed. Computes nothing.

use std::cell::RefCell;
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

/// Buffers that nobody uses at the moment, the one that was given back last at the end.
#[derive(Clone, Default)]
pub struct Pool(Rc<RefCell<Vec<Vec<f32>>>>);

/// Numbers that a pool keeps for later: 256 MB.
const KEPT: usize = 64 << 20;

impl Pool {
    /// A tensor whose values are whatever the memory held.
    pub fn tensor(&self, rows: usize, cols: usize) -> Tensor {
        let len = rows * cols;
        let mut free = self.0.borrow_mut();
        // The one given back last is most likely still in a cache.
        let fitting = free.iter().rposition(|b| (len..=2 * len).contains(&b.len()));
        let data = fitting.map_or_else(|| vec![0.0; len], |i| free.remove(i));
        Tensor { rows, cols, data, pool: self.clone() }
    }
}

/// A matrix [rows, cols] of f32, row-major.
pub struct Tensor {
    pub(super) rows: usize,
    pub(super) cols: usize,
    data: Vec<f32>,
    pool: Pool,
}

impl Tensor {
    /// From the first number of a row on.
    pub fn row(&self, row: usize) -> &[f32] {
        &self[row * self.cols..]
    }
}

impl Deref for Tensor {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[..self.rows * self.cols]
    }
}

impl DerefMut for Tensor {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.rows * self.cols]
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        let mut free = self.pool.0.borrow_mut();
        free.push(std::mem::take(&mut self.data));
        // What has lain there longest goes, so that texts of many lengths do not each leave their buffers behind.
        while free.len() > 1 && free.iter().map(Vec::len).sum::<usize>() > KEPT {
            free.remove(0);
        }
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
