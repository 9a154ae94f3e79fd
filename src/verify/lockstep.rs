//! Whole runs in which every operation of the device is compared with the reference's. Owns the list of mismatches.
//! Read next: `../device/lockstep.rs`, which runs the two side by side.

use super::hooks::{both_ways, run};
use super::{Stage, Tell};
use crate::batch::Batch;
use crate::device::Device;
use crate::device::lockstep::{Lockstep, Step};
use crate::model::forward::RunError;
use crate::model::params::Params;

/// The result of comparing the operations of whole runs.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    /// How many operations were compared.
    pub compared: usize,
    /// The operations with a mismatch, in order, each operation of a layer once.
    pub mismatches: Vec<Step>,
    /// The operation with the largest error relative to its tolerance.
    pub worst: Option<Step>,
}

/// Runs the batches with both requests (see [`super::hooks`]) on the device and the reference.
///
/// # Errors
/// [`RunError`] when the device fails.
pub async fn check<D: Device>(
    dev: &D,
    params: &Params<D>,
    batches: &[Batch],
    tell: Tell<'_>,
) -> Result<Steps, RunError> {
    let mut steps = Steps::default();
    // All runs share one device and one set of weights, because the reference's weights take twice the memory of f32.
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
