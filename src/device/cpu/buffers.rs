//! Memory of the `cpu` device. Owns [`Tensor`], whose memory comes from a pool, so that a run touches no fresh pages
//! after its first block; [`Aligned`] memory for packed operands; [`RowsView`], rows to read; and [`Shared`],
//! a matrix that several threads write.
//! Computes nothing.
//! Read next: `../host_pool.rs`, the pool.

use crate::device::host_pool::{HostPool, pages};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Weak};

/// f32 values that begin on a cache line, so that no load of an aligned vector crosses one.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    /// Memory that holds the values, from `first` on. It has the alignment of f32 on purpose: the allocator zeroes memory of a
    /// larger alignment by writing to it, so its pages would exist before large pages can be requested.
    values: Vec<f32>,
    first: usize,
    len: usize,
}

/// Elements of a cache line.
const LINE: usize = 16;

impl Aligned {
    /// `len` zeros. Their pages are not touched before the first write.
    pub(crate) fn zeros(len: usize) -> Aligned {
        Aligned::at(len, len, LINE)
    }

    /// [`Aligned::zeros`] in large pages, for what is read again and again: with small pages, products of 256 tokens took 1.4 times as
    /// long on a virtual machine. Zeros that begin elsewhere than on a large page would have small ones up to the first and after the
    /// last. The rest that does not fill a large page gets a whole one if it fills half.
    pub(crate) fn in_large_pages(len: usize) -> Aligned {
        let page = pages::LARGE / size_of::<f32>();
        let room = if len % page < page / 2 { len } else { len.next_multiple_of(page) };
        Aligned::at(len, room, if room < page { LINE } else { page })
    }

    /// `len` zeros in memory for `room`, the first of them at an address that is a multiple of the size of `alignment` elements.
    fn at(len: usize, room: usize, alignment: usize) -> Aligned {
        let mut values = vec![0.0; room + alignment - 1];
        pages::large(&mut values);
        let first = values.as_ptr().align_offset(alignment * size_of::<f32>()).min(alignment - 1);
        Aligned { values, first, len }
    }

    /// The first `len` elements. Grows if it is shorter, and then loses its values.
    pub(crate) fn at_least(&mut self, len: usize) -> &mut [f32] {
        if self.len < len {
            *self = Aligned::in_large_pages(len);
        }
        &mut self[..len]
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.first..][..self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.first..][..self.len]
    }
}

/// A matrix [rows, cols] of f32, row-major. Clones share its memory, and so does a [`Memory`] on its way to the host.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(super) rows: usize,
    pub(super) cols: usize,
    data: Arc<Memory>,
}

impl Tensor {
    /// A tensor that `fill` fills. `fill` must write every element: they have arbitrary values before.
    pub fn filled(pool: &Arc<HostPool>, rows: usize, cols: usize, fill: impl FnOnce(&mut [f32])) -> Tensor {
        let mut values = pool.vector(rows * cols);
        fill(&mut values);
        Tensor::of(pool, rows, cols, values)
    }

    /// A tensor with these values.
    pub fn of(pool: &Arc<HostPool>, rows: usize, cols: usize, values: Vec<f32>) -> Tensor {
        assert_eq!(values.len(), rows * cols);
        Tensor { rows, cols, data: Arc::new(Memory { values, pool: Arc::downgrade(pool) }) }
    }

    /// The elements from the start of a row to the end of the tensor.
    pub fn row(&self, row: usize) -> &[f32] {
        &self[row * self.cols..]
    }

    /// A reference to the tensor's memory.
    pub fn share(&self) -> Arc<Memory> {
        self.data.clone()
    }
}

impl Deref for Tensor {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data.values
    }
}

/// A view of the rows of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct RowsView<'a> {
    pub data: &'a [f32],
    pub n: usize,
    /// Elements from the start of one row to the start of the next.
    pub stride: usize,
}

impl<'a> RowsView<'a> {
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..]
    }

    /// All rows of a tensor.
    pub(crate) fn of(x: &'a Tensor) -> RowsView<'a> {
        RowsView { data: x, n: x.rows, stride: x.cols }
    }

    /// The number of elements of `data` that rows of `cols` columns need.
    pub(super) fn reach(&self, cols: usize) -> usize {
        (self.n - 1) * self.stride + cols
    }
}

/// The elements of a tensor. Their memory returns to the pool when the last reference is dropped.
#[derive(Debug)]
pub struct Memory {
    values: Vec<f32>,
    pool: Weak<HostPool>,
}

impl Memory {
    /// The vector of the elements, if this is the only reference.
    ///
    /// # Errors
    /// The reference itself, if there are others.
    pub fn take(this: Arc<Memory>) -> Result<Vec<f32>, Arc<Memory>> {
        Arc::try_unwrap(this).map(|mut memory| std::mem::take(&mut memory.values))
    }

    /// The elements.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.give_back(std::mem::take(&mut self.values));
        }
    }
}

/// A matrix that several threads write. Each thread writes its own cells.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    pub(super) data: *mut f32,
    pub(super) stride: usize,
    of: PhantomData<&'a mut [f32]>,
}

// SAFETY: `row` requires that no two threads use a cell at the same time, and the borrow outlives the tasks.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(data: &'a mut [f32], stride: usize, rows: usize, cols: usize) -> Shared<'a> {
        assert!(rows > 0 && cols <= stride && (rows - 1) * stride + cols <= data.len());
        Shared { data: data.as_mut_ptr(), stride, of: PhantomData }
    }

    /// # Safety
    /// The row and the columns must be within the matrix, and no other reference to these cells may exist.
    pub(crate) unsafe fn row(&self, row: usize, cols: Range<usize>) -> &'a mut [f32] {
        // SAFETY: the caller promises that the cells are within the matrix and not borrowed elsewhere.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride + cols.start), cols.len()) }
    }
}
