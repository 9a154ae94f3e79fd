//! The limits of the processor, measured: multiply-adds in registers, and reading memory, with the widest vectors and on all
//! threads. Owns the two loops.

use super::Cpu;
use crate::device::DeviceError;
use crate::device::probe::{Measured, Probes};
use pulp::{Simd, WithSimd};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Sums that do not wait for one another: more than a multiply-add takes cycles times how many begin in each, and few enough
/// for 16 registers.
const CHAINS: usize = 12;

/// Multiply-adds of each chain in one piece of work.
const STEPS: usize = 1 << 21;

/// Numbers that are read: 256 MiB.
const NUMBERS: usize = 64 << 20;

/// Places at which one thread reads at a time: with one alone a core waits more than memory does.
const STREAMS: usize = 4;

struct MultiplyAdd;

impl WithSimd for MultiplyAdd {
    /// How many floating-point operations that were.
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> usize {
        let (factor, addend) = (simd.splat_f32s(black_box(0.999)), simd.splat_f32s(black_box(0.001)));
        let mut sums = [simd.splat_f32s(black_box(1.0)); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(*sum, factor, addend);
            }
        }
        black_box(sums.into_iter().map(|sum| simd.reduce_sum_f32s(sum)).sum::<f32>());
        2 * CHAINS * STEPS * S::F32_LANES
    }
}

struct Read<'a>(&'a [f32]);

impl WithSimd for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut sums = [simd.splat_f32s(0.0); STREAMS];
        let (vectors, _) = S::as_simd_f32s(self.0);
        let n = vectors.len() / STREAMS;
        for i in 0..n {
            for (stream, sum) in sums.iter_mut().enumerate() {
                *sum = simd.add_f32s(*sum, vectors[stream * n + i]);
            }
        }
        black_box(sums.into_iter().map(|sum| simd.reduce_sum_f32s(sum)).sum::<f32>());
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
        // Written, not only taken: pages that nobody has written to are all the same one.
        let numbers = vec![1.0f32; NUMBERS];
        let workers = &self.workers;
        let (arch, part) = (workers.arch, NUMBERS.div_ceil(workers.threads));
        Probes {
            arithmetic: Box::new(move || {
                let done = AtomicUsize::new(0);
                workers.each(workers.threads, |_| {
                    done.fetch_add(arch.dispatch(MultiplyAdd), Ordering::Relaxed);
                });
                done.into_inner() as f64
            }),
            reading: Box::new(move || {
                let parts: Vec<_> = numbers.chunks(part).collect();
                workers.each(parts.len(), |i| arch.dispatch(Read(parts[i])));
                (4 * NUMBERS) as f64
            }),
        }
    }
}
