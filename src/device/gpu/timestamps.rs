//! Timestamps: the device's own clock at the begin and the end of every compute pass, grouped by submit or by kernel.
//! Owns the queries. They are off unless [`Gpu::start_clock`] turns them on, so ordinary runs write none.
//! Read next: `probe.rs`, which measures with them.

use super::Gpu;
use super::buffers::{Pool, Readback, Staging};
use crate::device::DeviceError;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;

/// The time in which one submit ran, in seconds since the first recorded pass began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// When its first pass began.
    pub begin: f64,
    /// When its last pass ended.
    pub end: f64,
}

/// The most passes that can be recorded.
const PASSES: u32 = wgpu::QUERY_SET_MAX_QUERIES / 2;

impl Gpu {
    /// Starts to record timestamps. Returns false where the adapter has none.
    pub fn start_clock(&self) -> bool {
        self.start(false)
    }

    /// Starts to record timestamps for [`Gpu::stop_clock_of_kernels`]: each dispatch gets a pass of its own, which makes
    /// the whole slower. Returns false where the adapter has none.
    pub fn start_clock_of_kernels(&self) -> bool {
        self.start(true)
    }

    fn start(&self, by_kernel: bool) -> bool {
        let clock = Timestamps::new(&self.device, by_kernel);
        let has_one = clock.is_some();
        self.encoder.set_timestamps(clock);
        has_one
    }

    /// Stops recording, and returns one span per submit, or an empty list where the adapter has no timestamps.
    ///
    /// # Errors
    /// [`DeviceError::Fault`] when anything on the device went wrong up to here.
    pub async fn stop_clock(&self) -> Result<Vec<Span>, DeviceError> {
        let Some(clock) = self.encoder.set_timestamps(None) else { return Ok(Vec::new()) };
        let submits = clock.used.lock().submits.clone();
        let ticks = self.outcome(clock.read(&self.device, &self.queue, &self.staging, &self.readback).await)?;
        let of =
            |submit: &Range<u32>| Span { begin: ticks[submit.start as usize], end: ticks[submit.end as usize - 1] };
        Ok(submits.iter().map(of).collect())
    }

    /// Stops recording, and returns the kernel and the seconds of each dispatch, in order.
    ///
    /// # Errors
    /// As [`Gpu::stop_clock`].
    pub async fn stop_clock_of_kernels(&self) -> Result<Vec<(&'static str, f64)>, DeviceError> {
        let Some(clock) = self.encoder.set_timestamps(None) else { return Ok(Vec::new()) };
        let kernels = std::mem::take(&mut clock.used.lock().kernels);
        let ticks = self.outcome(clock.read(&self.device, &self.queue, &self.staging, &self.readback).await)?;
        Ok(kernels.into_iter().zip(ticks.chunks(2).map(|pass| pass[1] - pass[0])).collect())
    }
}

#[derive(Debug)]
pub(super) struct Timestamps {
    queries: wgpu::QuerySet,
    /// True if each dispatch gets a pass of its own.
    pub(super) by_kernel: bool,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    /// The first unused query.
    next: u32,
    /// True if a pass found no unused query.
    missed: bool,
    /// The first kernel of each pass.
    kernels: Vec<&'static str>,
    /// The queries of each submit.
    submits: Vec<Range<u32>>,
}

impl Timestamps {
    /// `None` where the adapter has no timestamps.
    pub(super) fn new(device: &wgpu::Device, by_kernel: bool) -> Option<Timestamps> {
        device.features().contains(wgpu::Features::TIMESTAMP_QUERY).then(|| Timestamps {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * PASSES,
            }),
            by_kernel,
            used: Mutex::default(),
        })
    }

    /// The timestamps of the next pass, or `None` if no queries are left. `kernel` is the pass's first.
    pub(super) fn pass(&self, kernel: &'static str) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        let mut used = self.used.lock();
        let begin = used.next;
        if begin == 2 * PASSES {
            used.missed = true;
            return None;
        }
        used.next = begin + 2;
        used.kernels.push(kernel);
        Some(wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(begin),
            end_of_pass_write_index: Some(begin + 1),
        })
    }

    /// Assigns the passes since the last submit to the submit that is being sent.
    pub(super) fn submitted(&self) {
        let mut used = self.used.lock();
        let begin = used.submits.last().map_or(0, |last| last.end);
        if begin < used.next {
            let end = used.next;
            used.submits.push(begin..end);
        }
    }

    /// The begin and the end of every pass, in seconds since the first one began.
    pub(super) async fn read(
        self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        pool: &Arc<Pool>,
        readback: &Readback,
    ) -> Result<Vec<f64>, String> {
        let Used { next: n, missed, .. } = self.used.into_inner();
        if missed {
            return Err(format!(
                "there were more than {PASSES} compute passes, which is more than timestamps can be recorded for"
            ));
        }
        if n == 0 {
            return Ok(Vec::new());
        }
        let bytes = 8 * u64::from(n);
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("timestamps"),
            size: bytes,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let staging = Staging::new(pool, bytes);
        // Staging buffers hold f32 values. Two of them have the bits of one u64.
        let at = staging.reserve(2 * n as usize).expect("a new staging buffer has the room it was made for");
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.resolve_query_set(&self.queries, 0..n, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, staging.buffer(), at, bytes);
        staging.map(queue.submit([encoder.finish()]));
        let halves = staging.read(device, readback, at, 2 * n as usize).await?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&halves);
        let period = 1e-9 * f64::from(queue.get_timestamp_period());
        Ok(ticks.iter().map(|tick| tick.wrapping_sub(ticks[0]) as i64 as f64 * period).collect())
    }
}
