//! Times the expensive operations at gpt2-small's shapes, on `cpu` and `gpu`: `cargo bench --bench kernels`
//!
//! The list, the inputs and the clock are those of `actscope bench`; the clock is the adapter's own if it has one.
//! Throughput is in floating-point operations (a multiply-add counts as two), so criterion's Gelem/s means GFLOP/s, and
//! in bytes to move. The name of the group names the device. Read next: `src/bench/operations.rs`.

use actscope::bench::TOKENS;
use actscope::bench::operations::OPERATIONS;
use actscope::cache::CacheFolder;
use actscope::device::cpu::Cpu;
use actscope::device::gpu::Gpu;
use actscope::device::probe::Measured;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

/// The most runs that are submitted together. It limits the length of the device's queue.
const AT_ONCE: u64 = 100;

fn bench<D: Measured>(c: &mut Criterion, dev: &D) {
    let info = dev.info();
    let mut group = c.benchmark_group(format!("{} {}", info.kind, info.name.replace('/', " ")));
    group.sample_size(10);
    for operation in OPERATIONS {
        let on_device = pollster::block_on(operation.on(dev)).expect("gpt2's weights fit everywhere");
        for t in TOKENS {
            let mut run = on_device.with_inputs(t);
            let (elements, bytes) = (operation.flops(t) as u64, operation.bytes(t) as u64);
            group.throughput(Throughput::ElementsAndBytes { elements, bytes });
            group.bench_function(BenchmarkId::new(operation.name, t), |b| {
                b.iter_custom(|runs| {
                    let parts = (0..runs).step_by(AT_ONCE as usize).map(|done| AT_ONCE.min(runs - done) as usize);
                    let seconds = |n| pollster::block_on(dev.seconds(|| run(n))).expect("the device works");
                    Duration::from_secs_f64(parts.map(seconds).sum())
                })
            });
        }
    }
    group.finish();
}

fn kernels(c: &mut Criterion) {
    bench(c, &Cpu::new());
    let gpu = async { Gpu::open(false).await?.autotuned(Some(&CacheFolder::of_user())).await };
    match pollster::block_on(gpu) {
        Ok(gpu) => bench(c, &gpu),
        Err(e) => eprintln!("the device gpu is not measured: {e}"),
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
