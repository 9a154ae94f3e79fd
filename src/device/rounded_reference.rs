//! The reference with every result rounded to f32. Its error is what f32 storage alone costs. `verify` derives its bounds from
//! that error for models whose error in PyTorch is not known. Owns no arithmetic.
//! Read next: `reference.rs`, which computes.

use super::host_pool::HostPool;
use super::reference::{Cache, Reference, Tensor};
use super::{Device, DeviceError, DeviceInfo, Heads, Op, Operands, Queries, StoredWeight, TensorLimits, Window};
use std::sync::Arc;

/// The device.
#[derive(Debug, Default)]
pub struct RoundedReference(Reference);

impl Device for RoundedReference {
    type Tensor = Tensor;
    type Weight = Tensor;
    type Cache = Cache;
    type Staged = Vec<f32>;

    fn info(&self) -> DeviceInfo {
        DeviceInfo { detail: "f64, every result rounded to f32".into(), ..self.0.info() }
    }

    fn tensor_limits(&self) -> TensorLimits {
        self.0.tensor_limits()
    }

    fn host_memory(&self) -> &Arc<HostPool> {
        self.0.host_memory()
    }

    fn load(&self, weight: &StoredWeight) -> Result<Tensor, DeviceError> {
        self.0.load(weight)
    }

    fn upload(&self, shape: [usize; 2], values: Vec<f32>) -> Tensor {
        self.0.upload(shape, values)
    }

    fn shape(&self, x: &Tensor) -> [usize; 2] {
        self.0.shape(x)
    }

    fn run(&self, op: &Op, Operands { tensors, weights, cache }: Operands<'_, RoundedReference>) -> Tensor {
        let exact = self.0.run(op, Operands { tensors, weights, cache });
        let shape = self.0.shape(&exact);
        self.0.upload(shape, self.0.copy_out(&exact, &Window::all(shape)))
    }

    fn new_cache(&self, capacities: &[usize], n_embd: usize, heads: Heads) -> Cache {
        self.0.new_cache(capacities, n_embd, heads)
    }

    fn append(&self, cache: &mut Cache, qkv: &Tensor, texts: &[Queries]) {
        self.0.append(cache, qkv, texts);
    }

    fn copy_out(&self, x: &Tensor, window: &Window) -> Vec<f32> {
        self.0.copy_out(x, window)
    }

    fn submit(&self) {}

    async fn settle(&self, _running: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    async fn read(&self, staged: Vec<f32>) -> Result<Vec<f32>, DeviceError> {
        Ok(staged)
    }
}
