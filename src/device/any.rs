//! The three backends behind one type: what a session runs on. All that is above the devices is compiled once for it, and not once for
//! each backend. Owns the dispatch of every method to the backend, and the enums that hold a backend's values. A value belongs to the
//! device that made it; handing it to another is a fault of the caller, which panics.
//! Read next: `mod.rs`, the trait.

use super::cpu::{self, Cpu};
#[cfg(feature = "gpu")]
use super::gpu::{self, Gpu};
use super::host_pool::HostPool;
use super::reference::{self, Reference};
use super::{
    Counters, Device, DeviceError, DeviceInfo, Heads, Op, Operands, Queries, StoredWeight, TensorLimits, Window,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Any of the three devices.
#[derive(Debug)]
#[allow(
    missing_docs,
    clippy::large_enum_variant,
    reason = "the variants are named after their devices; a session has one"
)]
pub enum AnyDevice {
    Reference(Reference),
    Cpu(Cpu),
    #[cfg(feature = "gpu")]
    Gpu(Gpu),
}

/// A value of one of the backends.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the variants are named after their devices")]
pub enum OneOf<R, C, G> {
    Reference(R),
    Cpu(C),
    Gpu(G),
}

/// A build without a GPU has no values of one.
#[cfg(not(feature = "gpu"))]
mod gpu {
    pub(super) type Tensor = std::convert::Infallible;
    pub(super) type Weight = Tensor;
    pub(super) type Cache = Tensor;
    pub(super) type Staged = Tensor;
}

type Tensor = OneOf<reference::Tensor, cpu::Tensor, gpu::Tensor>;
type Weight = OneOf<reference::Tensor, cpu::Weight, gpu::Weight>;
type Cache = OneOf<reference::Cache, cpu::Cache, gpu::Cache>;
type Staged = OneOf<Vec<f32>, cpu::Staged, gpu::Staged>;

/// Wraps and unwraps the values of one backend.
trait Backend: Device {
    fn tensor(x: Self::Tensor) -> Tensor;
    fn of_tensor(x: &Tensor) -> &Self::Tensor;
    fn weight(w: Self::Weight) -> Weight;
    fn of_weight(w: &Weight) -> &Self::Weight;
    fn cache(cache: Self::Cache) -> Cache;
    fn of_cache(cache: &Cache) -> &Self::Cache;
    fn of_cache_mut(cache: &mut Cache) -> &mut Self::Cache;
    fn staged(staged: Self::Staged) -> Staged;
    fn of_staged(staged: Staged) -> Self::Staged;
}

macro_rules! backend {
    ($device:ident) => {
        impl Backend for $device {
            fn tensor(x: Self::Tensor) -> Tensor {
                OneOf::$device(x)
            }

            fn of_tensor(x: &Tensor) -> &Self::Tensor {
                let OneOf::$device(x) = x else { foreign() };
                x
            }

            fn weight(w: Self::Weight) -> Weight {
                OneOf::$device(w)
            }

            fn of_weight(w: &Weight) -> &Self::Weight {
                let OneOf::$device(w) = w else { foreign() };
                w
            }

            fn cache(cache: Self::Cache) -> Cache {
                OneOf::$device(cache)
            }

            fn of_cache(cache: &Cache) -> &Self::Cache {
                let OneOf::$device(cache) = cache else { foreign() };
                cache
            }

            fn of_cache_mut(cache: &mut Cache) -> &mut Self::Cache {
                let OneOf::$device(cache) = cache else { foreign() };
                cache
            }

            fn staged(staged: Self::Staged) -> Staged {
                OneOf::$device(staged)
            }

            fn of_staged(staged: Staged) -> Self::Staged {
                let OneOf::$device(staged) = staged else { foreign() };
                staged
            }
        }
    };
}

backend!(Reference);
backend!(Cpu);
#[cfg(feature = "gpu")]
backend!(Gpu);

fn foreign() -> ! {
    unreachable!("a value belongs to the device that made it")
}

/// Runs `$body` with the backend inside the enum.
macro_rules! on {
    ($any:expr, $dev:ident => $body:expr) => {
        match $any {
            AnyDevice::Reference($dev) => $body,
            AnyDevice::Cpu($dev) => $body,
            #[cfg(feature = "gpu")]
            AnyDevice::Gpu($dev) => $body,
        }
    };
}

fn load<B: Backend>(dev: &B, weight: &StoredWeight) -> Result<Weight, DeviceError> {
    dev.load(weight).map(B::weight)
}

fn upload<B: Backend>(dev: &B, shape: [usize; 2], values: Vec<f32>) -> Tensor {
    B::tensor(dev.upload(shape, values))
}

fn shape<B: Backend>(dev: &B, x: &Tensor) -> [usize; 2] {
    dev.shape(B::of_tensor(x))
}

fn run<B: Backend>(dev: &B, op: &Op, Operands { tensors, weights, cache }: Operands<'_, AnyDevice>) -> Tensor {
    let tensors: Vec<&B::Tensor> = tensors.iter().map(|x| B::of_tensor(x)).collect();
    let weights: Vec<&B::Weight> = weights.iter().map(|w| B::of_weight(w)).collect();
    let operands = Operands { tensors: &tensors, weights: &weights, cache: cache.map(B::of_cache) };
    B::tensor(dev.run(op, operands))
}

fn new_cache<B: Backend>(dev: &B, capacities: &[usize], n_embd: usize, heads: Heads) -> Cache {
    B::cache(dev.new_cache(capacities, n_embd, heads))
}

fn append<B: Backend>(dev: &B, cache: &mut Cache, qkv: &Tensor, texts: &[Queries]) {
    dev.append(B::of_cache_mut(cache), B::of_tensor(qkv), texts);
}

fn copy_out<B: Backend>(dev: &B, x: &Tensor, window: &Window) -> Staged {
    B::staged(dev.copy_out(B::of_tensor(x), window))
}

async fn read<B: Backend>(dev: &B, staged: Staged) -> Result<Vec<f32>, DeviceError> {
    dev.read(B::of_staged(staged)).await
}

impl Device for AnyDevice {
    type Tensor = Tensor;
    type Weight = Weight;
    type Cache = Cache;
    type Staged = Staged;

    fn info(&self) -> DeviceInfo {
        on!(self, dev => dev.info())
    }

    fn tensor_limits(&self) -> TensorLimits {
        on!(self, dev => dev.tensor_limits())
    }

    fn logit_rows_per_pass(&self) -> usize {
        on!(self, dev => dev.logit_rows_per_pass())
    }

    fn host_memory(&self) -> &Arc<HostPool> {
        on!(self, dev => dev.host_memory())
    }

    fn load(&self, weight: &StoredWeight) -> Result<Weight, DeviceError> {
        on!(self, dev => load(dev, weight))
    }

    fn upload(&self, shape: [usize; 2], values: Vec<f32>) -> Tensor {
        on!(self, dev => upload(dev, shape, values))
    }

    fn shape(&self, x: &Tensor) -> [usize; 2] {
        on!(self, dev => shape(dev, x))
    }

    fn run(&self, op: &Op, operands: Operands<'_, Self>) -> Tensor {
        on!(self, dev => run(dev, op, operands))
    }

    fn new_cache(&self, capacities: &[usize], n_embd: usize, heads: Heads) -> Cache {
        on!(self, dev => new_cache(dev, capacities, n_embd, heads))
    }

    fn append(&self, cache: &mut Cache, qkv: &Tensor, texts: &[Queries]) {
        on!(self, dev => append(dev, cache, qkv, texts))
    }

    fn copy_out(&self, x: &Tensor, window: &Window) -> Staged {
        on!(self, dev => copy_out(dev, x, window))
    }

    fn submit(&self) {
        on!(self, dev => dev.submit())
    }

    fn submit_if_enough(&self) -> bool {
        on!(self, dev => dev.submit_if_enough())
    }

    async fn settle(&self, running: usize) -> Result<(), DeviceError> {
        on!(self, dev => dev.settle(running).await)
    }

    async fn read(&self, staged: Staged) -> Result<Vec<f32>, DeviceError> {
        on!(self, dev => read(dev, staged).await)
    }

    fn kernels(&self) -> Vec<String> {
        on!(self, dev => dev.kernels())
    }

    fn take_kernels_run(&self) -> BTreeSet<&'static str> {
        on!(self, dev => dev.take_kernels_run())
    }

    fn take_counters(&self) -> Counters {
        on!(self, dev => dev.take_counters())
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod measured {
    use super::super::probe::{Measured, Probes};
    use super::*;

    /// Runs `$body` with the backend inside the enum. Panics for the reference, whose speed is never measured.
    macro_rules! fast {
        ($any:expr, $dev:ident => $body:expr) => {
            match $any {
                AnyDevice::Reference(_) => unreachable!("the reference's speed is not measured"),
                AnyDevice::Cpu($dev) => $body,
                #[cfg(feature = "gpu")]
                AnyDevice::Gpu($dev) => $body,
            }
        };
    }

    impl Measured for AnyDevice {
        async fn seconds(&self, record: impl FnOnce()) -> Result<f64, DeviceError> {
            fast!(self, dev => dev.seconds(record).await)
        }

        async fn seconds_of_kernels(
            &self,
            record: impl AsyncFnOnce(),
        ) -> Result<Vec<(&'static str, f64)>, DeviceError> {
            fast!(self, dev => dev.seconds_of_kernels(record).await)
        }

        fn settings(&self) -> String {
            fast!(self, dev => dev.settings())
        }

        fn clock(&self) -> &'static str {
            fast!(self, dev => dev.clock())
        }

        fn probes(&self) -> Probes<'_> {
            fast!(self, dev => dev.probes())
        }
    }
}
