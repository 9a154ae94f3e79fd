//! Whole runs with the reference beside the device, operation by operation. Owns the list of mismatches. Read next:
//! `../device/lockstep.rs`, where the two run and are compared.

use super::hooks::{both_ways, run};
use super::{Stage, Tell};
use crate::batch::Batch;
use crate::device::Device;
use crate::device::lockstep::{Lockstep, Step};
use crate::model::forward::RunError;
use crate::model::params::Params;

/// The operations of whole runs, compared.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    /// Operations that were compared.
    pub compared: usize,
    /// Those with a mismatch, in order, each operation of a layer once.
    pub mismatches: Vec<Step>,
    /// The one that comes nearest to what is allowed, or exceeds it most.
    pub worst: Option<Step>,
}

/// Runs the batches both ways (see [`super::hooks`]), each with the reference beside the device.
///
/// # Errors
/// [`RunError`] when the device failed.
pub async fn check<D: Device>(
    dev: &D,
    params: &Params<D>,
    batches: &[Batch],
    tell: Tell<'_>,
) -> Result<Steps, RunError> {
    let mut steps = Steps::default();
    // One device and one set of weights for all runs: the reference's are twice as large as f32.
    let (side_by_side, weights) = (Lockstep::new(dev), params.for_device());
    for (n, batch) in batches.iter().enumerate() {
        for (i, hooks) in both_ways(params.config()).iter().enumerate() {
            tell(Stage::Lockstep, 2 * n + i, 2 * batches.len());
            run(&side_by_side, &weights, batch, hooks).await?;
        }
    }
    side_by_side.finish().await?.into_iter().for_each(|step| steps.add(step));
    tell(Stage::Lockstep, 2 * batches.len(), 2 * batches.len());
    Ok(steps)
}

impl Steps {
    fn add(&mut self, step: Step) {
        self.compared += 1;
        if step.share > 1.0 && !self.mismatches.iter().any(|s| s.kind == step.kind && s.part == step.part) {
            self.mismatches.push(step.clone());
        }
        if self.worst.as_ref().is_none_or(|worst| worst.share < step.share) {
            self.worst = Some(step);
        }
    }
}
