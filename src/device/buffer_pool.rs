//! Memory for values on the host: those of captures and of the `cpu` device. Vectors that are no longer used wait here for
//! the next value of about the same size, since touching fresh pages costs more than writing the values: without this, a run
//! with many taps would spend most of its time in the kernel.
//! Owns that memory. A device has one pool, and dropping the device and its captures frees it.

use std::sync::{Mutex, PoisonError};

/// Elements that are kept at most: 256 MB.
const KEPT: usize = 64 << 20;

/// Elements that are kept besides, in pages that the system may take back while they wait: 3 GB, which is every activation of
/// one text of 1,024 tokens in gpt2.
const LENT: usize = 768 << 20;

/// Both together.
const MOST: usize = KEPT + if cfg!(target_os = "linux") { LENT } else { 0 };

/// A vector with fewer elements is not worth keeping: the allocator is as fast.
const WORTH_KEEPING: usize = 16 << 10;

/// Vectors that wait to be used again; the one that was given back last is at the end.
#[derive(Debug, Default)]
pub struct BufferPool(Mutex<Vec<Kept>>);

#[derive(Debug)]
struct Kept {
    vector: Vec<f32>,
    lent: bool,
}

impl BufferPool {
    /// `len` elements with any values.
    pub fn vector(&self, len: usize) -> Vec<f32> {
        let mut vector = self.kept(len).unwrap_or_else(|| vec![0.0; len]);
        vector.resize(len, 0.0);
        vector
    }

    /// `len` zeros.
    pub fn zeros(&self, len: usize) -> Vec<f32> {
        let again = |mut vector: Vec<f32>| {
            vector.clear();
            vector.resize(len, 0.0);
            vector
        };
        self.kept(len).map_or_else(|| vec![0.0; len], again)
    }

    /// Of the vectors that are large enough and not much larger, the one that was given back last.
    fn kept(&self, len: usize) -> Option<Vec<f32>> {
        if len < WORTH_KEEPING {
            return None;
        }
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = free.iter().rposition(|kept| (len..=len + len / 4).contains(&kept.vector.capacity()))?;
        Some(free.remove(fitting).vector)
    }

    /// Takes back memory that is no longer used.
    pub fn give_back(&self, vector: Vec<f32>) {
        if !(WORTH_KEEPING..=MOST).contains(&vector.capacity()) {
            return;
        }
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(Kept { vector, lent: false });
        // What has waited longest is lent to the system, and what has waited longer still is freed.
        let (mut all, mut stay) = (0, free.len());
        for (i, kept) in free.iter_mut().enumerate().rev() {
            all += kept.vector.capacity();
            if all > MOST {
                break;
            }
            if all > KEPT && !kept.lent {
                kept.lent = pages::lend(&mut kept.vector);
            }
            if all > KEPT && !kept.lent {
                break;
            }
            stay = i;
        }
        let gone: Vec<_> = free.drain(..stay).collect();
        // Freeing large vectors takes the system a while: other threads need not wait for it.
        drop(free);
        drop(gone);
    }
}

/// What the system is told about the pages of a vector.
#[cfg(target_os = "linux")]
mod pages {
    use rustix::mm::{Advice, madvise};

    /// Allows the system to take the pages until they are written to. The vector then holds its old values or zeros.
    pub(crate) fn lend(vector: &mut Vec<f32>) -> bool {
        let (page, begin) = (rustix::param::page_size(), vector.as_mut_ptr());
        let skip = begin.align_offset(page);
        let bytes = (4 * vector.capacity()).saturating_sub(4 * skip) / page * page;
        // SAFETY: the pages lie within the vector's own memory, to which this function has the only reference. Afterwards they
        // hold their old values or zeros; both are valid f32.
        bytes == 0 || unsafe { madvise(begin.add(skip).cast(), bytes, Advice::LinuxFree) }.is_ok()
    }
}

#[cfg(not(target_os = "linux"))]
mod pages {
    pub(super) fn lend(_: &mut Vec<f32>) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_bounded() {
        let free = BufferPool::default();
        let len = 3 * WORTH_KEEPING + 7;
        let mut first = free.vector(len);
        first.fill(5.0);
        let at = first.as_ptr();
        free.give_back(first);
        let second = free.vector(len - 3);
        assert_eq!((second.as_ptr(), second.len()), (at, len - 3));
        free.give_back(second);
        let third = free.zeros(len - 5);
        assert_eq!((third.as_ptr(), third), (at, vec![0.0; len - 5]));
        free.give_back(vec![1.0; WORTH_KEEPING - 1]);
        assert_eq!(free.0.lock().unwrap().len(), 0, "small ones are not kept");

        // Beyond what is kept, memory is lent to the system where that can be, and beyond that it goes.
        let lent = (MOST - KEPT) / (KEPT / 4);
        (0..lent + 6).for_each(|_| free.give_back(Vec::with_capacity(KEPT / 4)));
        let kept: Vec<bool> = free.0.lock().unwrap().iter().map(|kept| kept.lent).collect();
        assert_eq!(kept, [vec![true; lent], vec![false; 4]].concat());
        free.give_back(Vec::with_capacity(MOST + 1));
        assert_eq!(free.0.lock().unwrap().len(), lent + 4, "what is too large is not kept");
    }

    #[test]
    fn what_was_lent_can_be_used() {
        let free = BufferPool::default();
        free.give_back(vec![1.0; KEPT / 2]);
        free.give_back(vec![2.0; KEPT]);
        let mut again = free.vector(KEPT / 2);
        again.fill(3.0);
        assert!(again.iter().all(|v| *v == 3.0));
        assert_eq!(free.vector(KEPT)[KEPT - 1], 2.0, "what was given back last is as it was");
    }
}
