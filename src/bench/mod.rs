//! The measurements of `actscope bench`: how fast a device is, and how close that is to its limits. Owns the limits, and
//! the order of the rest: the expensive operations (`operations.rs`), whole runs (`forward.rs`) and generation
//! (`generate.rs`), by default on a model with random weights (`random.rs`). Each of these three has a time budget
//! (`time.rs`), so that slow devices finish too. Rows that do not fit it are listed in the report. Prints nothing.
//! Read next: `operations.rs`.

pub mod forward;
pub mod generate;
pub mod memory;
pub mod operations;
pub mod random;
pub mod time;

use crate::device::probe::{Measured, Work};
use crate::device::{DeviceError, Dtype};
use crate::model::checkpoint::Checkpoint;
use crate::model::forward::RunError;
use crate::model::params::Params;
use forward::{ForwardRow, KernelTime};
use generate::GenerateRow;
use operations::OperationRow;
use std::sync::Arc;

/// The numbers of tokens of the measured operations and runs.
pub const TOKENS: [usize; 5] = [1, 8, 64, 256, 1024];

/// Up to this many tokens, the time may not grow with them, because most of it goes into reading weights. With more
/// tokens it grows.
const FEW: usize = 64;

/// The measured limits of a device.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Floating-point operations per second. A multiply-add counts as two.
    pub arithmetic: f64,
    /// Bytes read per second.
    pub reading: f64,
}

/// A row that was not measured, because it would take too much time or memory.
#[derive(Clone, Debug)]
pub struct LeftOut {
    /// The name of the row.
    pub row: String,
    /// The reason, with the time or size.
    pub why: String,
}

/// All results of a benchmark.
#[derive(Clone, Debug)]
pub struct Report {
    /// The limits of the device.
    pub limits: Limits,
    /// Single operations.
    pub operations: Vec<OperationRow>,
    /// Whole runs.
    pub forwards: Vec<ForwardRow>,
    /// Kernels of whole runs.
    pub kernels: Vec<KernelTime>,
    /// Generation.
    pub generation: Vec<GenerateRow>,
    /// The rows that were not measured.
    pub left_out: Vec<LeftOut>,
}

/// Measures a device. `checkpoint` is the model of the whole runs and of generation, whose weights are converted to `weights` if that
/// is given. `progress` is called with the number of steps that are done and the number of all steps.
///
/// # Errors
/// [`RunError`] if the device fails.
pub async fn bench<D: Measured>(
    dev: &D,
    checkpoint: Arc<Checkpoint>,
    weights: Option<Dtype>,
    progress: &dyn Fn(usize, usize),
) -> Result<Report, RunError> {
    let steps = 1 + operations::OPERATIONS.len() + forward::count(checkpoint.config()) + generate::count();
    let mut done = 0;
    let mut step = || {
        done += 1;
        progress(done, steps);
    };
    let mut left_out = Vec::new();
    let before = limits(dev).await?;
    step();
    let operations = operations::measure(dev, &mut left_out, &mut step).await?;
    let params = Params::new(checkpoint.clone(), weights);
    let forwards = forward::measure(dev, &params, &mut left_out, &mut step).await?;
    let kernels = forward::measure_kernels(dev, &params).await?;
    let bytes_read = generate::bytes_of_weights(&checkpoint, weights);
    let generation = generate::measure(dev, &params, bytes_read, &mut left_out, &mut step).await?;
    // The limits are measured twice, because they change on a machine that runs other work too.
    let after = limits(dev).await?;
    let limits =
        Limits { arithmetic: before.arithmetic.max(after.arithmetic), reading: before.reading.max(after.reading) };
    Ok(Report { limits, operations, forwards, kernels, generation, left_out })
}

/// Measures the limits of a device.
///
/// # Errors
/// [`DeviceError::Fault`] if the device fails.
pub async fn limits<D: Measured>(dev: &D) -> Result<Limits, DeviceError> {
    let probes = dev.probes();
    Ok(Limits { arithmetic: best(dev, &probes.arithmetic).await?, reading: best(dev, &probes.reading).await? })
}

/// The highest rate of several attempts.
async fn best<D: Measured>(dev: &D, work: &Work<'_>) -> Result<f64, DeviceError> {
    const TRIES: usize = 7;
    let mut best: f64 = 0.0;
    for _ in 0..TRIES {
        let mut amount = 0.0;
        let seconds = dev.seconds(|| amount = work()).await?;
        best = best.max(amount / seconds);
    }
    Ok(best)
}
