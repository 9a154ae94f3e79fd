//! Memory for the values that leave a device: vectors that captures let go of, for the next captures. Fresh pages cost more
//! than what is written to them: whoever runs text after text with many taps waits for the system as long as for the model.
//! Owns that memory, which all threads share; knows nothing of what it held.

use std::sync::{Mutex, PoisonError};

/// Numbers that are kept at most: 256 MB.
const KEPT: usize = 64 << 20;

/// Numbers below which a vector is not worth keeping: the allocator does as well.
const WORTH_KEEPING: usize = 16 << 10;

/// Vectors that nobody uses at the moment, the one that was given back last at the end.
struct Free(Mutex<Vec<Vec<f32>>>);

static FREE: Free = Free(Mutex::new(Vec::new()));

/// `len` numbers, whatever they are.
pub fn vector(len: usize) -> Vec<f32> {
    FREE.vector(len)
}

/// Takes back memory that is not needed any more.
pub fn give_back(vector: Vec<f32>) {
    FREE.give_back(vector);
}

impl Free {
    fn vector(&self, len: usize) -> Vec<f32> {
        let kept = || {
            let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let fitting = free.iter().rposition(|v| (len..=len + len / 4).contains(&v.capacity()))?;
            Some(free.remove(fitting))
        };
        let mut vector = (len >= WORTH_KEEPING).then(kept).flatten().unwrap_or_else(|| vec![0.0; len]);
        vector.resize(len, 0.0);
        vector
    }

    fn give_back(&self, vector: Vec<f32>) {
        if !(WORTH_KEEPING..=KEPT).contains(&vector.capacity()) {
            return;
        }
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(vector);
        // What has lain there longest goes.
        let mut all: usize = free.iter().map(Vec::capacity).sum();
        let go = free.iter().take_while(|v| {
            let goes = all > KEPT;
            all -= v.capacity() * usize::from(goes);
            goes
        });
        let go = go.count();
        let gone: Vec<_> = free.drain(..go).collect();
        // The system takes its time with large vectors; nobody else need wait for that.
        drop(free);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_bounded() {
        let free = Free(Mutex::default());
        let len = 3 * WORTH_KEEPING + 7;
        let mut first = free.vector(len);
        first.fill(5.0);
        let at = first.as_ptr();
        free.give_back(first);
        let second = free.vector(len - 3);
        assert_eq!((second.as_ptr(), second.len()), (at, len - 3));
        free.give_back(vec![1.0; WORTH_KEEPING - 1]);
        assert_eq!(free.0.lock().unwrap().len(), 0, "small ones are not kept");

        (0..6).for_each(|_| free.give_back(vec![0.0; KEPT / 4]));
        free.give_back(vec![0.0; KEPT + 1]);
        let kept: Vec<usize> = free.0.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(kept, [KEPT / 4; 4]);
    }
}
