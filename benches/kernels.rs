//! The operations that cost, at gpt2-small's shapes, on `cpu` and `gpu`: cargo bench --bench kernels
//!
//! Throughput is floating-point operations (one multiply-add counts as two), so criterion's Gelem/s reads GFLOP/s; for
//! element-wise operations it is bytes moved. Inputs are random. A figure includes recording, submitting and waiting, as a
//! run of one operation does; the adapter stands in the group's name.

use actscope::device::cpu::Cpu;
use actscope::device::gpu::Gpu;
use actscope::device::{Activation, Blob, Device, Dtype, Edit, Heads, Weight, Window};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::sync::Arc;

const TOKENS: [usize; 4] = [1, 8, 64, 256];
const N_EMBD: usize = 768;
const N_HEAD: usize = 12;

fn numbers(n: usize) -> Vec<f32> {
    let mut state = 1u32;
    let next = |_| {
        // Numerical Recipes' linear congruential generator: speed does not depend on quality here.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as f32 / u32::MAX as f32 - 0.5
    };
    (0..n).map(next).collect()
}

fn tensor<D: Device>(dev: &D, rows: usize, cols: usize) -> D::Tensor {
    let mut x = dev.empty(rows, cols);
    dev.edit(&mut x, &Window { rows: vec![0..rows], cols: 0..cols }, &Edit::Replace(numbers(rows * cols)));
    x
}

fn matrix<D: Device>(dev: &D, rows: usize, cols: usize) -> D::Matrix {
    let bytes: Vec<u8> = numbers(rows * cols).iter().flat_map(|v| v.to_le_bytes()).collect();
    let blob = Blob::new(Arc::new(bytes), 0..4 * rows * cols);
    dev.load(&Weight { name: "bench".into(), dtype: Dtype::F32, rows, cols, blob })
        .expect("gpt2's weights fit everywhere")
}

/// Waits until everything recorded is done.
fn wait<D: Device>(dev: &D, y: &D::Tensor) {
    let staged = dev.copy_out(y, &Window { rows: vec![0..1], cols: 0..1 });
    dev.submit();
    pollster::block_on(dev.read(staged)).expect("the device works");
}

fn bench<D: Device>(c: &mut Criterion, dev: &D) {
    let info = dev.info();
    let mut group = c.benchmark_group(format!("{} {}", info.kind, info.name.replace('/', " ")));
    group.sample_size(10);
    for t in TOKENS {
        for (name, k, n) in [
            ("linear c_attn", N_EMBD, 3 * N_EMBD),
            ("linear c_fc", N_EMBD, 4 * N_EMBD),
            ("linear c_proj", 4 * N_EMBD, N_EMBD),
        ] {
            let (x, w, bias) = (tensor(dev, t, k), matrix(dev, k, n), matrix(dev, 1, n));
            group.throughput(Throughput::Elements((2 * t * k * n) as u64));
            group.bench_function(BenchmarkId::new(name, t), |b| b.iter(|| wait(dev, &dev.linear(&x, &w, &bias))));
        }
        let table = matrix(dev, 50_257, N_EMBD);
        let x = tensor(dev, t, N_EMBD);
        group.throughput(Throughput::Elements((2 * t * N_EMBD * 50_257) as u64));
        group.bench_function(BenchmarkId::new("unembed", t), |b| b.iter(|| wait(dev, &dev.unembed(&x, 0..t, &table))));

        let qkv = tensor(dev, t, 3 * N_EMBD);
        let heads = Heads { n_head: N_HEAD, scale: 0.125 };
        // Two products over the lower half of [t, t], each of n_embd / n_head dimensions in every head.
        group.throughput(Throughput::Elements((2 * t * (t + 1) * N_EMBD) as u64));
        group.bench_function(BenchmarkId::new("attention", t), |b| {
            b.iter(|| wait(dev, &dev.attention(&qkv, &[0..t], heads)))
        });

        let (gain, bias) = (matrix(dev, 1, N_EMBD), matrix(dev, 1, N_EMBD));
        group.throughput(Throughput::Bytes((8 * t * N_EMBD) as u64));
        group.bench_function(BenchmarkId::new("layer_norm", t), |b| {
            b.iter(|| wait(dev, &dev.layer_norm(&x, &gain, &bias, 1e-5)))
        });
        let pre = tensor(dev, t, 4 * N_EMBD);
        group.throughput(Throughput::Bytes((8 * t * 4 * N_EMBD) as u64));
        group.bench_function(BenchmarkId::new("activation", t), |b| {
            b.iter(|| wait(dev, &dev.activation(&pre, Activation::GeluTanh)))
        });
    }
    group.finish();
}

fn kernels(c: &mut Criterion) {
    bench(c, &Cpu::new());
    match pollster::block_on(Gpu::open(false)) {
        Ok(gpu) => bench(c, &gpu),
        Err(e) => eprintln!("no gpu figures: {e}"),
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
