//! Host memory for the values of captures and of the `cpu` device. Owns a pool of vectors that are no longer used, for the next
//! value of about the same size. The reason is page faults: the system zeroes a page when it is first written, which takes
//! longer than writing the values. Without the pool, a run with many taps would spend most of its time in the system.
//! A device has one pool, which is freed with the device and its captures.

use std::sync::{Mutex, PoisonError};

/// The most elements that the pool keeps for itself: 256 MB.
const KEPT: usize = 64 << 20;

/// The most elements that it keeps besides those, in pages that the system may take while they are unused: 3 GB, which is
/// every activation of one text of 1,024 tokens in gpt2.
const LENT: usize = 768 << 20;

/// The most elements altogether. Only on Linux can pages be lent to the system.
const MOST: usize = KEPT + if cfg!(target_os = "linux") { LENT } else { 0 };

/// Vectors with fewer elements (8 kB) are not kept, because the allocator is as fast as the pool for one of them. The limit is not
/// higher, because a short text with all hooks has hundreds of vectors, whose memory the allocator would return to the system.
const WORTH_KEEPING: usize = 2 << 10;

/// The unused vectors.
#[derive(Debug, Default)]
pub struct HostPool(Mutex<Free>);

#[derive(Debug, Default)]
struct Free {
    /// In the order in which they were given back.
    vectors: Vec<Kept>,
    /// Elements of all of them.
    elements: usize,
}

#[derive(Debug)]
struct Kept {
    vector: Vec<f32>,
    /// True if the system may take its pages.
    lent: bool,
}

impl HostPool {
    /// A vector of `len` elements with arbitrary values.
    pub fn vector(&self, len: usize) -> Vec<f32> {
        let mut vector = self.kept(len).unwrap_or_else(|| zeros(len));
        vector.resize(len, 0.0);
        vector
    }

    /// A vector of `len` zeros.
    pub fn zeros(&self, len: usize) -> Vec<f32> {
        let again = |mut vector: Vec<f32>| {
            vector.clear();
            vector.resize(len, 0.0);
            vector
        };
        self.kept(len).map_or_else(|| zeros(len), again)
    }

    /// Takes an unused vector that is large enough, but not much larger: the one that was given back last.
    fn kept(&self, len: usize) -> Option<Vec<f32>> {
        if len < WORTH_KEEPING {
            return None;
        }
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |kept: &Kept| (len..=len + len / 4).contains(&kept.vector.capacity());
        let fitting = free.vectors.iter().rposition(fits)?;
        let Kept { vector, .. } = free.vectors.remove(fitting);
        free.elements -= vector.capacity();
        Some(vector)
    }

    /// Puts a vector that is no longer used into the pool, or frees it if the pool does not keep vectors of its size.
    pub fn give_back(&self, vector: Vec<f32>) {
        if !(WORTH_KEEPING..=MOST).contains(&vector.capacity()) {
            return;
        }
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.elements += vector.capacity();
        free.vectors.push(Kept { vector, lent: false });
        if free.elements <= KEPT {
            return;
        }
        // From the last vector to the first: beyond KEPT elements, vectors are lent to the system. Beyond MOST, or where
        // lending fails, they are freed.
        let (mut all, mut stay) = (0, free.vectors.len());
        for (i, kept) in free.vectors.iter_mut().enumerate().rev() {
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
        let freed: Vec<_> = free.vectors.drain(..stay).collect();
        free.elements -= freed.iter().map(|kept| kept.vector.capacity()).sum::<usize>();
        // Frees them after the lock, because the system takes a while to free large vectors.
        drop(free);
        drop(freed);
    }
}

/// Zeros in memory that is fresh from the allocator, with large pages where the vector is large.
pub(super) fn zeros<T: bytemuck::Zeroable + Clone>(len: usize) -> Vec<T> {
    let mut values = bytemuck::zeroed_vec(len);
    pages::large(&mut values);
    values
}

/// What the system is told about pages.
#[cfg(target_os = "linux")]
pub(crate) mod pages {
    use rustix::mm::{Advice, madvise};

    /// The common size of a large page in bytes.
    pub(crate) const LARGE: usize = 2 << 20;

    /// From this many bytes on, memory has large pages.
    const WORTH_LARGE: usize = 2 * LARGE;

    /// Asks for large pages under memory that was not yet written. The system zeroes one of them faster than the small ones in its
    /// place, and the processor finds their addresses sooner. Where the system refuses, the pages stay small.
    pub(crate) fn large<T>(values: &mut [T]) {
        let bytes = size_of_val(values);
        if bytes < WORTH_LARGE {
            return;
        }
        let (page, begin) = (rustix::param::page_size(), values.as_mut_ptr().cast::<u8>());
        let skip = begin.align_offset(page);
        // SAFETY: the pages lie within the values, whose bits the advice does not change.
        let _ = unsafe { madvise(begin.add(skip).cast(), (bytes - skip) / page * page, Advice::LinuxHugepage) };
    }

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
pub(crate) mod pages {
    /// Memory is aligned as usual where no large pages are asked for.
    pub(crate) const LARGE: usize = 64;

    pub(crate) fn large<T>(_: &mut [T]) {}

    pub(super) fn lend(_: &mut Vec<f32>) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_bounded() {
        let free = HostPool::default();
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
        assert_eq!(free.0.lock().unwrap().vectors.len(), 0, "small ones are not kept");

        // Beyond what is kept, memory is lent to the system where that can be, and beyond that it goes.
        let lent = (MOST - KEPT) / (KEPT / 4);
        (0..lent + 6).for_each(|_| free.give_back(Vec::with_capacity(KEPT / 4)));
        let kept: Vec<bool> = free.0.lock().unwrap().vectors.iter().map(|kept| kept.lent).collect();
        assert_eq!(kept, [vec![true; lent], vec![false; 4]].concat());
        free.give_back(Vec::with_capacity(MOST + 1));
        let free = free.0.lock().unwrap();
        assert_eq!(free.vectors.len(), lent + 4, "what is too large is not kept");
        assert_eq!(free.elements, free.vectors.iter().map(|kept| kept.vector.capacity()).sum::<usize>());
    }

    #[test]
    fn what_was_lent_can_be_used() {
        let free = HostPool::default();
        free.give_back(vec![1.0; KEPT / 2]);
        free.give_back(vec![2.0; KEPT]);
        let mut again = free.vector(KEPT / 2);
        again.fill(3.0);
        assert!(again.iter().all(|v| *v == 3.0));
        assert_eq!(free.vector(KEPT)[KEPT - 1], 2.0, "what was given back last is as it was");
    }
}
