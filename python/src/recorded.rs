//! Recorded values as numpy arrays, without a copy. Owns the memory of such an array, which goes back to the session's pool when
//! Python drops the array. Without that every run would write to fresh pages, which the system zeroes first: with all hooks of a
//! short text that takes as long as the run.

use actscope::device::buffer_pool::BufferPool;
use ndarray::ArrayD;
use numpy::{PyArray, PyArrayDyn};
use pyo3::prelude::*;
use std::sync::{Arc, Weak};

/// What an array's memory belongs to.
#[pyclass(frozen)]
struct Recorded {
    array: ArrayD<f32>,
    memory: Weak<BufferPool>,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.upgrade() {
            memory.give_back(std::mem::take(&mut self.array).into_raw_vec_and_offset().0);
        }
    }
}

/// The array for Python. `memory` is the pool of the session that recorded it.
pub fn to_numpy<'py>(
    py: Python<'py>,
    array: ArrayD<f32>,
    memory: &Arc<BufferPool>,
) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let owner = Bound::new(py, Recorded { array, memory: Arc::downgrade(memory) })?;
    let array = &owner.get().array;
    // SAFETY: the numpy array keeps `owner` alive, which neither moves nor changes the values until it is dropped, and gives no
    // other reference to them.
    Ok(unsafe { PyArray::borrow_from_array(array, owner.clone().into_any()) })
}
