//! Measures the adapter: its limits with two kernels of their own, and the time of recorded work. Owns the sizes of
//! these measurements; `timestamps.rs` has the device's clock.
//! Read next: `../probe.rs`, the trait.

use super::kernels::{self, Family};
use super::{Gpu, all};
use crate::device::probe::{Measured, Probes};
use crate::device::{Change, Device, DeviceError, Window};
use std::time::Instant;

/// Workgroups of 256 invocations. They fill the largest GPU several times.
const GROUPS: u32 = 1024;

/// Bytes to read, which is more than caches hold.
const MOST_BYTES: u64 = 256 << 20;

impl Measured for Gpu {
    async fn seconds(&self, record: impl FnOnce()) -> Result<f64, DeviceError> {
        self.submit();
        self.settle(0).await?;
        self.start_clock();
        let start = Instant::now();
        record();
        self.submit();
        self.settle(0).await?;
        let by_host = start.elapsed().as_secs_f64();
        let spans = self.stop_clock().await?;
        Ok(spans.first().zip(spans.last()).map_or(by_host, |(first, last)| last.end - first.begin))
    }

    async fn seconds_of_kernels(&self, record: impl AsyncFnOnce()) -> Result<Vec<(&'static str, f64)>, DeviceError> {
        self.submit();
        self.settle(0).await?;
        if !self.start_clock_of_kernels() {
            return Ok(Vec::new());
        }
        record().await;
        self.submit();
        self.settle(0).await?;
        self.stop_clock_of_kernels().await
    }

    fn settings(&self) -> String {
        match self.family {
            Family::Tiles => format!(
                "tiles for up to 16, 32, 128, 512 and more rows, one for all weights or one each for c_attn, attn.c_proj, c_fc and \
                 mlp.c_proj: {}; at most {:.0} GFLOP in a submit",
                self.tiles_by_rows(),
                1e-9 * self.most_work
            ),
            Family::Broadcast => String::new(),
        }
    }

    fn clock(&self) -> &'static str {
        if self.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            "the adapter's timestamps"
        } else {
            "the host's clock, submitting and waiting included: this adapter has no timestamps"
        }
    }

    fn probes(&self) -> Probes<'_> {
        let invocations = 256 * GROUPS;
        let (sums, more_sums) = (self.empty(1, invocations as usize), self.empty(1, invocations as usize));
        // Weyl's sequence, in [0, 1). The values differ, because memory with equal values may be faster to read.
        let row: Vec<f32> = (1..=4096).map(|i| (i as f32 * 0.618_034).fract()).collect();
        let bytes = self.max_binding.min(self.max_buffer).min(MOST_BYTES);
        let shape = [bytes as usize / 4 / row.len(), row.len()];
        let values = self.edit(&self.empty(shape[0], shape[1]), &Window::all(shape), &Change::Replace(row));
        let rounds = if self.info.software { 1 << 6 } else { 1 << 11 };
        Probes {
            arithmetic: Box::new(move || {
                let params = kernels::ProbeArithmetic { rounds, factor: 0.999, addend: 0.001 };
                let kernel = &kernels::PROBE_ARITHMETIC;
                self.encoder.dispatch(kernel.into(), &params, &[all(&sums)], [GROUPS, 1, 1]);
                // A round is four steps of three vectors of four elements. A multiply-add is two operations.
                2.0 * 48.0 * f64::from(rounds) * f64::from(invocations)
            }),
            reading: Box::new(move || {
                let params = kernels::ProbeReading { n: (values.len() / 4) as u32, invocations };
                let bindings = [all(&values), all(&more_sums)];
                self.encoder.dispatch((&kernels::PROBE_READING).into(), &params, &bindings, [GROUPS, 1, 1]);
                4.0 * values.len() as f64
            }),
        }
    }
}
