//! The operations that cost, at gpt2-small's shapes, on `cpu` and `gpu`: cargo bench --bench kernels
//!
//! The list and its inputs are `actscope bench`'s (`src/bench/operations.rs`), and so is the clock: the adapter's own where it has
//! one. Throughput is floating-point operations (one multiply-add counts as two), so criterion's Gelem/s reads GFLOP/s, and the
//! bytes that must be moved. The device stands in the group's name.

use actscope::bench::TOKENS;
use actscope::bench::operations::OPERATIONS;
use actscope::cache::CacheFolder;
use actscope::device::cpu::Cpu;
use actscope::device::gpu::Gpu;
use actscope::device::probe::Measured;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::time::Duration;

/// Runs that are sent at once: a queue should not grow without end.
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
        Err(e) => eprintln!("no gpu figures: {e}"),
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
