//! Whole runs, with nothing tapped but the last value, with every block's output tapped, and with everything:
//! cargo bench --bench forward
//!
//! On the demo model, or on the one that ACTSCOPE_MODEL names. Throughput is tokens per second.

use actscope::{Choice, Files};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const TOKENS: [usize; 4] = [8, 64, 256, 1024];

fn forward(c: &mut Criterion) {
    let model = std::env::var("ACTSCOPE_MODEL").unwrap_or_else(|_| "demo".into());
    for choice in [Choice::Cpu, Choice::Gpu] {
        let session = match Files::open(&model).and_then(|files| files.on(choice, None)) {
            Ok(session) => session,
            Err(e) => {
                eprintln!("no figures for {choice:?}: {e}");
                continue;
            }
        };
        let (info, config) = (session.device(), session.files().config().clone());
        let mut group =
            c.benchmark_group(format!("{} {} {}", info.kind, info.name.replace('/', " "), model.replace('/', " ")));
        group.sample_size(10);
        for t in TOKENS.into_iter().filter(|t| *t <= config.n_positions) {
            let ids: Vec<u32> =
                (0..t as u32).map(|i| i.wrapping_mul(7919).wrapping_add(13) % config.vocab_size as u32).collect();
            let batch = session.files().batch(&[ids]).expect("ids of this vocabulary");
            group.throughput(Throughput::Elements(t as u64));
            for (name, pattern) in
                [("last", "ln_final.hook_out"), ("every block", "*.hook_resid_post"), ("everything", "*")]
            {
                let mut hooks = session.files().hooks();
                hooks.tap(pattern).and_then(|hooks| hooks.tap("ln_final.hook_out")).expect("hooks of every GPT-2");
                group.bench_function(BenchmarkId::new(name, t), |b| {
                    b.iter(|| session.run(&batch, &hooks).expect("a run"))
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, forward);
criterion_main!(benches);
