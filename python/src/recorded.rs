//! Recorded values as numpy arrays, without a copy. Owns the memory of such an array, which goes back to the session's pool when
//! Python drops the array. Without that every run would write to fresh pages, which the system zeroes first: with all hooks of a
//! short text that takes as long as the run.

use actscope::device::host_pool::HostPool;
use actscope::hooks::capture::Capture;
use actscope::hooks::site::Site;
use ndarray::ArrayD;
use numpy::{PyArray, PyArrayDyn};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::{Arc, Weak};

/// What an array's memory belongs to.
#[pyclass(frozen)]
struct Recorded {
    array: ArrayD<f32>,
    memory: Weak<HostPool>,
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
    memory: &Arc<HostPool>,
) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
    let owner = Bound::new(py, Recorded { array, memory: Arc::downgrade(memory) })?;
    let array = &owner.get().array;
    // SAFETY: the numpy array keeps `owner` alive, which neither moves nor changes the values until it is dropped, and gives no
    // other reference to them.
    Ok(unsafe { PyArray::borrow_from_array(array, owner.clone().into_any()) })
}

/// Arrays by hook, and the address at which each left the library.
pub type ArraysOut<'py> = (Bound<'py, PyDict>, Bound<'py, PyDict>);

/// What was recorded, as `shown` makes it of each array.
pub fn arrays_out<'py>(
    py: Python<'py>,
    mut capture: Capture,
    memory: &Arc<HostPool>,
    shown: impl Fn(Site, ArrayD<f32>) -> ArrayD<f32>,
) -> PyResult<ArraysOut<'py>> {
    let (arrays, addresses) = (PyDict::new(py), PyDict::new(py));
    let sites: Vec<Site> = capture.iter().map(|(site, _)| site).collect();
    for site in sites {
        let Some(array) = capture.take(site) else { continue };
        let (name, array) = (site.name(), shown(site, array));
        addresses.set_item(&name, array.as_ptr() as usize)?;
        arrays.set_item(&name, to_numpy(py, array, memory)?)?;
    }
    Ok((arrays, addresses))
}
