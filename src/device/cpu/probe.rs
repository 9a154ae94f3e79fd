//! Measures the limits of the processor: multiply-adds in registers and reading memory, with the device's vectors and
//! on all threads. Owns the two loops. Read next: `../probe.rs`, the trait, and `src/bench/mod.rs`, which uses it.

use super::Cpu;
use super::microkernel::{unroll, zeros};
use crate::device::DeviceError;
use crate::device::probe::{Measured, Probes};
use pulp::{Simd, WithSimd};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Independent sums. They must be more than the latency of a multiply-add in cycles times the multiply-adds that begin
/// per cycle, and few enough for 16 registers.
const CHAINS: usize = 12;

/// Multiply-adds per sum in one task.
const STEPS: usize = 1 << 21;

/// f32 values to read: 256 MiB.
const N_VALUES: usize = 64 << 20;

/// Places at which one thread reads at the same time. With a single one, the core is slower than the memory.
const STREAMS: usize = 4;

struct MultiplyAdd;

impl WithSimd for MultiplyAdd {
    /// The number of floating-point operations.
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> usize {
        let (factor, addend) = (simd.splat_f32s(black_box(0.999)), simd.splat_f32s(black_box(0.001)));
        let (one, mut sums): (_, [S::f32s; CHAINS]) = (simd.splat_f32s(black_box(1.0)), zeros());
        unroll!(i of 0 1 2 3 4 5 6 7 8 9 10 11 < CHAINS, { sums[i] = one; });
        for _ in 0..STEPS {
            unroll!(i of 0 1 2 3 4 5 6 7 8 9 10 11 < CHAINS, {
                sums[i] = simd.mul_add_e_f32s(sums[i], factor, addend);
            });
        }
        let mut total = zeros();
        unroll!(i of 0 1 2 3 4 5 6 7 8 9 10 11 < CHAINS, { total = simd.add_f32s(total, sums[i]); });
        black_box(simd.reduce_sum_f32s(total));
        2 * CHAINS * STEPS * S::F32_LANES
    }
}

struct Read<'a>(&'a [f32]);

impl WithSimd for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut sums: [S::f32s; STREAMS] = zeros();
        let (vectors, _) = S::as_simd_f32s(self.0);
        let n = vectors.len() / STREAMS;
        for i in 0..n {
            unroll!(stream of 0 1 2 3 < STREAMS, {
                sums[stream] = simd.add_f32s(sums[stream], vectors[stream * n + i]);
            });
        }
        let mut total = zeros();
        unroll!(stream of 0 1 2 3 < STREAMS, { total = simd.add_f32s(total, sums[stream]); });
        black_box(simd.reduce_sum_f32s(total));
    }
}

impl Measured for Cpu {
    async fn seconds(&self, record: impl FnOnce()) -> Result<f64, DeviceError> {
        let start = Instant::now();
        record();
        Ok(start.elapsed().as_secs_f64())
    }

    fn clock(&self) -> &'static str {
        "the host's clock"
    }

    fn probes(&self) -> Probes<'_> {
        // Zeros would not do: the system maps pages that were never written to one shared page.
        let values = vec![1.0f32; N_VALUES];
        let workers = &self.workers;
        let (arch, part) = (workers.arch, N_VALUES.div_ceil(workers.threads));
        Probes {
            arithmetic: Box::new(move || {
                let done = AtomicUsize::new(0);
                workers.each(workers.threads, |_| {
                    done.fetch_add(arch.dispatch(MultiplyAdd), Ordering::Relaxed);
                });
                done.into_inner() as f64
            }),
            reading: Box::new(move || {
                let parts: Vec<_> = values.chunks(part).collect();
                workers.each(parts.len(), |i| arch.dispatch(Read(parts[i])));
                (4 * N_VALUES) as f64
            }),
        }
    }
}
