//! The native part of the Python module `actscope`: the library's session, pictures and errors for `py_src/actscope`, which
//! owns everything that a user sees. Arguments here are plain (token ids, tuples, arrays); Python makes them.
//! Read next: `session.rs`.

mod attribute;
mod error;
mod generate;
mod heads;
mod interrupt;
mod picture;
mod recorded;
mod session;
mod sweep;

use actscope::device::{AdapterFilter, gpu};
use pyo3::prelude::*;

/// The adapters that the environment allows, by wgpu's variables.
fn allowed() -> AdapterFilter {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    AdapterFilter { name: set("WGPU_ADAPTER_NAME"), backends: set("WGPU_BACKEND") }
}

/// GPU adapters in order of preference: name, driver, kind, and whether it is a program on the CPU.
fn adapters() -> Vec<(String, String, String, bool)> {
    let adapters = pollster::block_on(gpu::adapters(&allowed()));
    adapters.into_iter().map(|a| (a.info.name, a.info.detail, a.device_type, a.info.software)).collect()
}

/// The devices of this machine, in words.
fn this_machine() -> String {
    let gpus: Vec<String> =
        adapters().into_iter().map(|(name, detail, ..)| format!("gpu: {name} ({detail})")).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let gpus = if gpus.is_empty() { "no GPU adapter".to_string() } else { gpus.join(", ") };
    format!("this machine has {gpus}, and cpu: {threads} threads")
}

/// GPU adapters in order of preference: name, driver, kind, and whether it is a program on the CPU.
#[pyfunction(name = "adapters")]
fn py_adapters(py: Python<'_>) -> Vec<(String, String, String, bool)> {
    py.detach(adapters)
}

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add("Error", m.py().get_type::<error::Error>())?;
    m.add_class::<session::Session>()?;
    m.add_class::<picture::Picture>()?;
    m.add_function(wrap_pyfunction!(picture::heatmap, m)?)?;
    m.add_function(wrap_pyfunction!(picture::attention, m)?)?;
    m.add_function(wrap_pyfunction!(sweep::sweep, m)?)?;
    m.add_function(wrap_pyfunction!(sweep::sweep_fast, m)?)?;
    m.add_function(wrap_pyfunction!(sweep::sweep_picture, m)?)?;
    m.add_function(wrap_pyfunction!(attribute::attribute, m)?)?;
    m.add_function(wrap_pyfunction!(attribute::grad, m)?)?;
    m.add_function(wrap_pyfunction!(attribute::edges, m)?)?;
    m.add_function(wrap_pyfunction!(attribute::edge_circuit, m)?)?;
    m.add_function(wrap_pyfunction!(attribute::bars, m)?)?;
    m.add_function(wrap_pyfunction!(heads::random_repeats, m)?)?;
    m.add_function(wrap_pyfunction!(heads::head_kinds, m)?)?;
    m.add_function(wrap_pyfunction!(heads::circuit, m)?)?;
    m.add_function(wrap_pyfunction!(generate::longest, m)?)?;
    m.add_function(wrap_pyfunction!(generate::generate, m)?)?;
    m.add_function(wrap_pyfunction!(generate::lens_hooks, m)?)?;
    m.add_function(wrap_pyfunction!(generate::score, m)?)?;
    m.add_function(wrap_pyfunction!(py_adapters, m)?)?;
    Ok(())
}
