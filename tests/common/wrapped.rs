//! A device that wraps another: it records the operations, and may change their results.
#![allow(unreachable_pub, reason = "a module of tests has no public surface")]

use actscope::device::host_pool::HostPool;
use actscope::device::{
    Device, DeviceError, DeviceInfo, Heads, Op, Operands, Queries, StoredWeight, TensorLimits, Window,
};
use std::sync::{Arc, Mutex};

/// Another device's operations, each carried out by `run`.
#[derive(Debug)]
pub struct Wrapped<D: Device, F> {
    inner: D,
    run: F,
    append: Append<D>,
    log: Mutex<Vec<&'static str>>,
}

type Append<D> = fn(&D, &mut <D as Device>::Cache, &<D as Device>::Tensor, &[Queries]);

impl<D: Device, F: Fn(&D, &Op, Operands<'_, D>) -> D::Tensor + Send + Sync> Wrapped<D, F> {
    pub fn new(inner: D, run: F) -> Wrapped<D, F> {
        Wrapped { inner, run, append: D::append, log: Mutex::default() }
    }

    /// With another way to append keys and values to a cache.
    #[allow(dead_code, reason = "not every test that wraps a device changes it")]
    pub fn appending(self, append: Append<D>) -> Wrapped<D, F> {
        Wrapped { append, ..self }
    }

    /// All loads, operations and copies, in order.
    #[allow(dead_code, reason = "not every test that wraps a device reads it")]
    pub fn log(&self) -> Vec<&'static str> {
        self.log.lock().unwrap().clone()
    }

    fn note(&self, what: &'static str) {
        self.log.lock().unwrap().push(what);
    }
}

impl<D: Device, F: Fn(&D, &Op, Operands<'_, D>) -> D::Tensor + Send + Sync> Device for Wrapped<D, F> {
    type Tensor = D::Tensor;
    type Weight = D::Weight;
    type Cache = D::Cache;
    type Staged = D::Staged;

    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }

    fn tensor_limits(&self) -> TensorLimits {
        self.inner.tensor_limits()
    }

    fn host_memory(&self) -> &Arc<HostPool> {
        self.inner.host_memory()
    }

    fn load(&self, weight: &StoredWeight) -> Result<D::Weight, DeviceError> {
        self.note("load");
        self.inner.load(weight)
    }

    fn upload(&self, shape: [usize; 2], values: Vec<f32>) -> D::Tensor {
        self.inner.upload(shape, values)
    }

    fn shape(&self, x: &D::Tensor) -> [usize; 2] {
        self.inner.shape(x)
    }

    fn run(&self, op: &Op, Operands { tensors, weights, cache }: Operands<'_, Self>) -> D::Tensor {
        self.note(op.kind().name());
        (self.run)(&self.inner, op, Operands { tensors, weights, cache })
    }

    fn new_cache(&self, capacities: &[usize], n_embd: usize, heads: Heads) -> D::Cache {
        self.inner.new_cache(capacities, n_embd, heads)
    }

    fn append(&self, cache: &mut D::Cache, qkv: &D::Tensor, texts: &[Queries]) {
        (self.append)(&self.inner, cache, qkv, texts);
    }

    fn copy_out(&self, x: &D::Tensor, window: &Window) -> D::Staged {
        self.note("copy_window");
        self.inner.copy_out(x, window)
    }

    fn submit(&self) {
        self.inner.submit();
    }

    async fn settle(&self, running: usize) -> Result<(), DeviceError> {
        self.inner.settle(running).await
    }

    async fn read(&self, staged: D::Staged) -> Result<Vec<f32>, DeviceError> {
        self.inner.read(staged).await
    }
}
