//! Times whole runs that capture nothing, the hidden states, or everything, on `cpu` and `gpu`:
//! `cargo bench --bench forward`
//!
//! The model is gpt2-small's shape with random weights, or the one that the environment variable ACTSCOPE_MODEL names.
//! Throughput is in tokens per second. Read next: `src/bench/forward.rs`, which defines the three kinds of runs.

use actscope::Model;
use actscope::batch::Batch;
use actscope::bench::forward::{Taps, ids};
use actscope::bench::{TOKENS, random};
use actscope::cache::CacheFolder;
use actscope::device::cpu::Cpu;
use actscope::device::gpu::Gpu;
use actscope::device::probe::Measured;
use actscope::hooks::capture::Capture;
use actscope::hooks::layout::Layout;
use actscope::model::checkpoint::Checkpoint;
use actscope::model::forward::{self, Run};
use actscope::model::params::Params;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::sync::Arc;

fn bench<D: Measured>(c: &mut Criterion, dev: &D, name: &str, checkpoint: &Arc<Checkpoint>) {
    let (info, config, params) = (dev.info(), checkpoint.config(), Params::new(checkpoint.clone(), None));
    let mut group =
        c.benchmark_group(format!("{} {} {}", info.kind, info.name.replace('/', " "), name.replace('/', " ")));
    group.sample_size(10);
    for t in TOKENS.into_iter().filter(|t| *t <= config.n_positions) {
        let batch = Batch::new(&[ids(t, config)], config).expect("ids of this vocabulary");
        group.throughput(Throughput::Elements(t as u64));
        for taps in Taps::ALL {
            let hooks = taps.hooks(config, &batch);
            let layout = Layout::new(&hooks, &batch).expect("a request of this model");
            let run = || {
                let mut capture = Capture::empty(&hooks, &batch).expect("a request of this model");
                let run = forward::forward(dev, &params, Run::new(&layout, 0..1), &mut capture, None);
                pollster::block_on(run).expect("a run");
                capture
            };
            group.bench_function(BenchmarkId::new(taps.name(), t), |b| b.iter(run));
        }
    }
    group.finish();
}

fn forward(c: &mut Criterion) {
    let (name, checkpoint) = match std::env::var("ACTSCOPE_MODEL") {
        Ok(name) => (name.clone(), Model::open(&name).expect("ACTSCOPE_MODEL names a model").checkpoint().clone()),
        Err(_) => (random::NAME.into(), Arc::new(random::gpt2_small().expect("the random checkpoint is valid"))),
    };
    bench(c, &Cpu::new(), &name, &checkpoint);
    let gpu = async { Gpu::open(false).await?.autotuned(Some(&CacheFolder::of_user())).await };
    match pollster::block_on(gpu) {
        Ok(gpu) => bench(c, &gpu, &name, &checkpoint),
        Err(e) => eprintln!("the device gpu is not measured: {e}"),
    }
}

criterion_group!(benches, forward);
criterion_main!(benches);
