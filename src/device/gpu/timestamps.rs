//! When the device works, by its own clock: a timestamp at both ends of every compute pass, gathered by submit. Owns the
//! queries; whoever asks turns it on and off. Ordinary runs have none of it.

use super::Gpu;
use super::buffers::{Pool, Staging};
use crate::device::DeviceError;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

/// What one submit kept the device busy with: seconds since the first pass that the clock saw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Its first pass begins.
    pub begin: f64,
    /// Its last pass ends.
    pub end: f64,
}

/// Passes that one clock sees.
const PASSES: u32 = wgpu::QUERY_SET_MAX_QUERIES / 2;

impl Gpu {
    /// Begins to note when the device works; false where the adapter has no clock.
    pub fn start_clock(&self) -> bool {
        let clock = Clock::new(&self.device);
        let has_one = clock.is_some();
        *self.recording.clock.borrow_mut() = clock;
        has_one
    }

    /// Stops that, and gives back what was noted, submit by submit; nothing where there is no clock.
    ///
    /// # Errors
    /// [`DeviceError::Fault`] when anything on the device went wrong up to here.
    pub async fn stop_clock(&self) -> Result<Vec<Span>, DeviceError> {
        let Some(clock) = self.recording.clock.take() else { return Ok(Vec::new()) };
        self.outcome(clock.read(&self.device, &self.queue, &self.staging).await)
    }
}

pub(super) struct Clock {
    queries: wgpu::QuerySet,
    /// The next query that nobody has used.
    next: Cell<u32>,
    missed: Cell<bool>,
    /// The queries of each submit.
    submits: RefCell<Vec<Range<u32>>>,
}

impl Clock {
    /// None where the device was opened without the feature.
    pub(super) fn new(device: &wgpu::Device) -> Option<Clock> {
        device.features().contains(wgpu::Features::TIMESTAMP_QUERY).then(|| Clock {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("clock"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * PASSES,
            }),
            next: Cell::new(0),
            missed: Cell::new(false),
            submits: RefCell::default(),
        })
    }

    /// What a pass is to write.
    pub(super) fn pass(&self) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        let begin = self.next.get();
        if begin == 2 * PASSES {
            self.missed.set(true);
            return None;
        }
        self.next.set(begin + 2);
        Some(wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(begin),
            end_of_pass_write_index: Some(begin + 1),
        })
    }

    /// The passes since the last submit belong to the one that is being sent.
    pub(super) fn submitted(&self) {
        let mut submits = self.submits.borrow_mut();
        let begin = submits.last().map_or(0, |last| last.end);
        if begin < self.next.get() {
            submits.push(begin..self.next.get());
        }
    }

    /// Every submit that had a pass, in order.
    pub(super) async fn read(
        self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        pool: &Rc<Pool>,
    ) -> Result<Vec<Span>, String> {
        if self.missed.get() {
            return Err(format!("more than {PASSES} passes are more than one clock sees"));
        }
        let n = self.next.get();
        if n == 0 {
            return Ok(Vec::new());
        }
        let bytes = 8 * u64::from(n);
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("clock"),
            size: bytes,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let staging = Staging::new(pool, bytes);
        let at = staging.reserve(bytes).expect("a new staging buffer has the room it was made for");
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.resolve_query_set(&self.queries, 0..n, &resolved, 0);
        encoder.copy_buffer_to_buffer(&resolved, 0, staging.buffer(), at, bytes);
        staging.map(queue.submit([encoder.finish()]));
        // Staging buffers hold f32; these are the halves of u64.
        let halves = staging.read(device, at, 2 * n as usize).await?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&halves);
        let period = 1e-9 * f64::from(queue.get_timestamp_period());
        let seconds = |query: u32| ticks[query as usize].wrapping_sub(ticks[0]) as i64 as f64 * period;
        let submits = self.submits.into_inner();
        Ok(submits.iter().map(|of| Span { begin: seconds(of.start), end: seconds(of.end - 1) }).collect())
    }
}
