//! How fast is this machine, and how much of what it could do is done? Owns the measuring behind `actscope bench` and the
//! benches: the limits of the device, every operation that costs (`operations.rs`), whole runs (`forward.rs`), and generation
//! (`generate.rs`), each within
//! a budget of time (`time.rs`), so that slow devices answer too. What does not fit the budget is named, not dropped. Prints
//! nothing.
//! Read next: `operations.rs`.

pub mod forward;
pub mod generate;
pub mod memory;
pub mod operations;
pub mod random;
pub mod time;

use crate::device::DeviceError;
use crate::device::probe::{Measured, Work};
use crate::model::checkpoint::Checkpoint;
use crate::model::forward::RunError;
use crate::model::params::Params;
use forward::ForwardRow;
use generate::GenerateRow;
use operations::OperationRow;
use std::sync::Arc;

/// Numbers of tokens that everything is measured at.
pub const TOKENS: [usize; 5] = [1, 8, 64, 256, 1024];

/// Tokens up to which time may stay the same with more of them: it goes into reading weights. Beyond, it grows with them.
const FEW: usize = 64;

/// What the device can do at most, as measured.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Floating-point operations a second, one multiply-add counting as two.
    pub arithmetic: f64,
    /// Bytes read a second.
    pub reading: f64,
}

/// A row that would have taken too long, or too much.
#[derive(Clone, Debug)]
pub struct LeftOut {
    /// Which.
    pub row: String,
    /// Why, with the figure.
    pub why: String,
}

/// All that was measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// What nothing below can pass.
    pub limits: Limits,
    /// Operations by themselves.
    pub operations: Vec<OperationRow>,
    /// Whole runs.
    pub forwards: Vec<ForwardRow>,
    /// Generation.
    pub generation: Vec<GenerateRow>,
    /// What is missing from both.
    pub left_out: Vec<LeftOut>,
}

/// Measures a device, with `checkpoint` for the whole runs. `progress` is told how many of how many steps are done.
///
/// # Errors
/// [`RunError`] when the device failed.
pub async fn bench<D: Measured>(
    dev: &D,
    checkpoint: Arc<Checkpoint>,
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
    let params = Params::new(checkpoint.clone(), None);
    let forwards = forward::measure(dev, &params, &mut left_out, &mut step).await?;
    let generation = generate::measure(dev, &params, &checkpoint, &mut left_out, &mut step).await?;
    // Once more: on a machine that others use too, the limits change.
    let after = limits(dev).await?;
    let limits =
        Limits { arithmetic: before.arithmetic.max(after.arithmetic), reading: before.reading.max(after.reading) };
    Ok(Report { limits, operations, forwards, generation, left_out })
}

/// Measures what the device can do at most.
///
/// # Errors
/// [`DeviceError::Fault`] when the device failed.
pub async fn limits<D: Measured>(dev: &D) -> Result<Limits, DeviceError> {
    let probes = dev.probes();
    Ok(Limits { arithmetic: best(dev, &probes.arithmetic).await?, reading: best(dev, &probes.reading).await? })
}

/// The highest of several rates: a limit is what was reached once.
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
