//! Buffers: tensors in pooled buffers, weights, and the staging buffers through which values reach the host. Owns the
//! pool, the layouts of weights and their upload. Owns no kernel and records nothing.
//!
//! Only dispatches and copies write pooled buffers, in the order in which they are recorded. So a tensor may be dropped
//! while queued work still reads it: the next owner of its buffer writes it later in the same order.
//! Read next: `encoder.rs`, which records the work.

use super::bind_groups::{BindGroups, LastUse, PipelineKey};
use crate::device::host_pool::HostPool;
use crate::device::workers::Workers;
use crate::device::{DeviceError, Dtype, StoredWeight};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Free buffers of one usage, for reuse.
#[derive(Debug)]
pub(super) struct Pool {
    device: wgpu::Device,
    usage: wgpu::BufferUsages,
    label: &'static str,
    free: Mutex<VecDeque<PoolBuffer>>,
    bind_groups: BindGroups<PipelineKey>,
}

impl Pool {
    pub(super) fn new(
        device: &wgpu::Device,
        usage: wgpu::BufferUsages,
        label: &'static str,
        bind_groups: &BindGroups<PipelineKey>,
    ) -> Arc<Pool> {
        let (device, bind_groups) = (device.clone(), bind_groups.clone());
        Arc::new(Pool { device, usage, label, free: Mutex::default(), bind_groups })
    }

    /// A buffer of at least `bytes`: the smallest free buffer that is at most twice as large, or a new one. Of several
    /// equal ones it takes the one that was returned last, so that every block of a run gets the same buffers.
    fn take(self: &Arc<Pool>, bytes: u64) -> Pooled {
        let size = size_class(bytes);
        let mut free = self.free.lock();
        let fits = free
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, b)| (size..=2 * size).contains(&b.buffer.size()))
            .min_by_key(|(_, b)| b.buffer.size());
        let own = match fits.map(|(i, _)| i).and_then(|i| free.remove(i)) {
            Some(own) => own,
            None => {
                let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some(self.label),
                    size,
                    usage: self.usage,
                    mapped_at_creation: false,
                });
                PoolBuffer { buffer, last_use: LastUse::default() }
            }
        };
        Pooled { own, pool: self.clone() }
    }
}

/// A buffer of a pool. It keeps its last use when it goes from one tensor to the next.
#[derive(Clone, Debug)]
struct PoolBuffer {
    buffer: wgpu::Buffer,
    last_use: LastUse,
}

/// A buffer of a pool. It returns to the pool when it is dropped.
#[derive(Debug)]
pub(super) struct Pooled {
    own: PoolBuffer,
    pool: Arc<Pool>,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock();
        free.push_back(self.own.clone());
        // Frees the buffer that has been free the longest, so that buffers do not pile up where texts have many
        // lengths.
        while free.len() > 1 && free.iter().map(|b| b.buffer.size()).sum::<u64>() > FREE_BYTES {
            free.pop_front();
            self.pool.bind_groups.clear();
        }
    }
}

/// The most bytes of free buffers in a pool.
const FREE_BYTES: u64 = 256 << 20;

/// Rounds up to one of four sizes per power of two, so that similar sizes share buffers. The smallest size is a page.
fn size_class(bytes: u64) -> u64 {
    let step = (bytes.max(4096).next_power_of_two() / 8).max(1024);
    bytes.max(4096).next_multiple_of(step)
}

/// A matrix [rows, cols] of f32 in a pooled buffer, row-major, without padding. Clones share the buffer.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(super) rows: usize,
    pub(super) cols: usize,
    memory: Arc<Pooled>,
}

impl Tensor {
    pub(super) fn new(pool: &Arc<Pool>, rows: usize, cols: usize) -> Tensor {
        Tensor { rows, cols, memory: Arc::new(pool.take(4 * (rows * cols) as u64)) }
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.memory.own.buffer
    }

    pub(super) fn last_use(&self) -> &LastUse {
        &self.memory.own.last_use
    }

    pub(super) fn len(&self) -> usize {
        self.rows * self.cols
    }
}

/// How the elements of a weight are laid out on the device. Each operation asks for the layout that its kernel reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WeightLayout {
    /// One row of f32, whatever the type in the checkpoint.
    Vector,
    /// Row by row, each padded to a multiple of 8 elements, so that no `vec4<u32>` has elements of two rows. The rows
    /// are split among several buffers where one would be larger than the adapter's largest binding.
    Rows,
    /// In panels of [`PANEL`] columns, one after the other, each of them row by row. The last panel is padded with
    /// zeros.
    Panels,
}

/// Columns of a panel.
pub(super) const PANEL: usize = 32;

/// Some rows of a weight in a buffer of their own.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) buffer: wgpu::Buffer,
    pub(super) rows: Range<usize>,
}

/// A weight [rows, cols]. The first operation that uses it uploads it, in the layout that its kernel reads.
#[derive(Clone, Debug)]
pub struct Weight(Arc<Layouts>);

/// What the clones of a [`Weight`] share.
#[derive(Debug)]
pub struct Layouts {
    pub(super) name: String,
    pub(super) rows: usize,
    pub(super) cols: usize,
    dtype: Dtype,
    /// The weight on the host, as long as it may have to be uploaded.
    source: Mutex<Option<StoredWeight>>,
    /// One for each [`WeightLayout`]. A product and its gradient read different layouts only in the broadcast family.
    placed: [OnceLock<Placed>; 3],
    bind_groups: BindGroups<PipelineKey>,
}

impl std::ops::Deref for Weight {
    type Target = Layouts;

    fn deref(&self) -> &Layouts {
        &self.0
    }
}

impl Drop for Layouts {
    fn drop(&mut self) {
        if self.placed.iter().any(|placed| placed.get().is_some()) {
            self.bind_groups.clear();
        }
    }
}

/// A weight on the device.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) dtype: Dtype,
    /// Elements from one row to the next, or from one panel to the next in [`WeightLayout::Panels`].
    pub(super) stride: usize,
    pub(super) chunks: Vec<Chunk>,
}

/// Bytes that the queue receives at a time. An upload needs about this much host memory beyond the weight itself.
const UPLOAD_STEP: usize = 8 << 20;

impl Weight {
    /// A weight that is not uploaded yet.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] where one row does not fit a binding.
    pub(super) fn new(
        weight: &StoredWeight,
        max_binding: u64,
        bind_groups: &BindGroups<PipelineKey>,
    ) -> Result<Weight, DeviceError> {
        let (name, bytes) = (weight.name.clone(), (padded(weight.cols) * weight.dtype.size()) as u64);
        if bytes > max_binding {
            return Err(DeviceError::TooLarge { name, bytes, limit: max_binding });
        }
        let (rows, cols, placed) = (weight.rows, weight.cols, Default::default());
        let source = Mutex::new(Some(weight.clone()));
        Ok(Weight(Arc::new(Layouts {
            name,
            rows,
            cols,
            dtype: weight.dtype,
            source,
            placed,
            bind_groups: bind_groups.clone(),
        })))
    }

    /// The weight on the device, uploaded in this layout. With `only`, no other layout will be needed, so the host's copy is dropped.
    ///
    /// # Panics
    /// When it was placed in another layout with `only`.
    pub(super) fn place(
        &self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        max_binding: u64,
        layout: WeightLayout,
        only: bool,
    ) -> &Placed {
        self.placed[layout as usize].get_or_init(|| {
            let mut source = self.source.lock();
            let weight = source.as_ref().unwrap_or_else(|| panic!("{:?}: an operation reads one layout", self.name));
            let placed = Placed::upload(&Upload { device, queue }, max_binding, weight, layout);
            weight.blob.release();
            if only {
                *source = None;
            }
            placed
        })
    }

    /// True if its rows are split among several bindings in [`WeightLayout::Rows`].
    pub(super) fn is_cut(&self, max_binding: u64) -> bool {
        self.rows > rows_of_chunk(max_binding, padded(self.cols) * self.dtype.size())
    }
}

/// The most rows of `row_bytes` bytes in one [`Chunk`]: what one binding can hold, and no more than one dispatch of the
/// unembedding can cover. It has a workgroup for each 32 rows of the table or more, and at most 65,535 of them in one dimension.
fn rows_of_chunk(max_binding: u64, row_bytes: usize) -> usize {
    (max_binding as usize / row_bytes).clamp(1, 32 * 65_535)
}

/// The number of columns with padding.
fn padded(cols: usize) -> usize {
    cols.next_multiple_of(8)
}

impl Placed {
    fn upload(to: &Upload<'_>, max_binding: u64, weight: &StoredWeight, layout: WeightLayout) -> Placed {
        let dtype = if layout == WeightLayout::Vector { Dtype::F32 } else { weight.dtype };
        let widened = (dtype != weight.dtype).then(|| weight.to_f32());
        let bytes = widened.as_deref().map_or(weight.blob.bytes(), bytemuck::cast_slice);
        if layout == WeightLayout::Panels {
            let (stride, panel_bytes) = (weight.rows * PANEL, weight.rows * PANEL * dtype.size());
            let buffer = to.buffer(&weight.name, weight.cols.div_ceil(PANEL) * panel_bytes);
            to.panels(&buffer, bytes, weight.cols * dtype.size(), PANEL * dtype.size(), panel_bytes);
            return Placed { dtype, stride, chunks: vec![Chunk { buffer, rows: 0..weight.rows }] };
        }
        let stride = padded(weight.cols);
        let row_bytes = stride * dtype.size();
        let rows_at_once = rows_of_chunk(max_binding, row_bytes);
        let chunk = |first: usize| {
            let rows = first..weight.rows.min(first + rows_at_once);
            let buffer = to.buffer(&weight.name, rows.len() * row_bytes);
            let file_row = weight.cols * dtype.size();
            to.rows(&buffer, &bytes[rows.start * file_row..], rows.len(), file_row, row_bytes);
            Chunk { buffer, rows }
        };
        let chunks = (0..weight.rows).step_by(rows_at_once).map(chunk).collect();
        Placed { dtype, stride, chunks }
    }
}

/// Writes values of the host to buffers of the device.
struct Upload<'a> {
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
}

impl Upload<'_> {
    fn buffer(&self, name: &str, bytes: usize) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(name),
            size: bytes as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    /// Writes rows of `from` bytes into a buffer whose rows have `to` bytes.
    fn rows(&self, buffer: &wgpu::Buffer, bytes: &[u8], rows: usize, from: usize, to: usize) {
        let step = (UPLOAD_STEP / to).clamp(1, rows);
        for first in (0..rows).step_by(step) {
            let n = step.min(rows - first);
            let part = &bytes[first * from..(first + n) * from];
            if from == to {
                self.write(buffer, first * to, part);
            } else {
                let mut padded = vec![0u8; n * to];
                padded
                    .chunks_exact_mut(to)
                    .zip(part.chunks_exact(from))
                    .for_each(|(slot, row)| slot[..from].copy_from_slice(row));
                self.write(buffer, first * to, &padded);
            }
        }
    }

    /// Writes rows of `row` bytes as panels. A row of a panel has `panel` bytes, a whole panel `panel_bytes`.
    fn panels(&self, buffer: &wgpu::Buffer, bytes: &[u8], row: usize, panel: usize, panel_bytes: usize) {
        let n_panels = row.div_ceil(panel);
        let step = (UPLOAD_STEP / panel_bytes).clamp(1, n_panels);
        for first in (0..n_panels).step_by(step) {
            let n = step.min(n_panels - first);
            let columns = first * panel..row.min((first + n) * panel);
            let mut packed = vec![0u8; n * panel_bytes];
            for (k, whole_row) in bytes.chunks_exact(row).enumerate() {
                for (i, part) in whole_row[columns.clone()].chunks(panel).enumerate() {
                    packed[i * panel_bytes + k * panel..][..part.len()].copy_from_slice(part);
                }
            }
            self.write(buffer, first * panel_bytes, &packed);
        }
    }

    fn write(&self, buffer: &wgpu::Buffer, at: usize, bytes: &[u8]) {
        self.queue.write_buffer(buffer, at as u64, bytes);
        if bytes.len() >= UPLOAD_STEP / 2 {
            // The queue holds a copy until the write is done. An empty submit starts the write, and polling frees the
            // copies of finished writes.
            self.queue.submit([]);
            let _ = self.device.poll(wgpu::PollType::Poll);
        }
    }
}

/// One staging buffer. Copies fill it, it is mapped after their submit, read, and then returned to its pool.
#[derive(Debug)]
pub(super) struct Staging {
    memory: Pooled,
    parts: Mutex<Parts>,
    mapping: Mutex<Option<Mapping>>,
}

/// What a staging buffer holds.
#[derive(Debug, Default)]
struct Parts {
    /// The bytes that are reserved.
    filled: u64,
    /// The first byte and the number of values of each part that was not read yet.
    of: Vec<(u64, usize)>,
    /// The values of these parts, once they have been copied out of the buffer.
    values: Vec<Vec<f32>>,
}

#[derive(Debug)]
struct Mapping {
    index: wgpu::SubmissionIndex,
    done: futures_channel::oneshot::Receiver<Result<(), wgpu::BufferAsyncError>>,
}

/// The host's side of readbacks: the memory for values, and the threads that copy them out of staging buffers. One thread
/// copies at a fraction of the speed of memory, and much slower where the system has to provide fresh pages.
#[derive(Debug)]
pub(super) struct Readback {
    pub(super) memory: Arc<HostPool>,
    threads: Workers,
}

/// The most threads that copy. More are no faster.
const COPYING_THREADS: usize = 8;

/// Values that a thread copies at a time.
const COPIED_AT_ONCE: usize = 64 << 10;

impl Readback {
    /// `alone`: only the caller's thread copies, as on a software adapter, which computes on the processor's threads.
    pub(super) fn new(alone: bool) -> Readback {
        let mut threads = Workers::new(pulp::Arch::new());
        threads.threads = if alone { 1 } else { threads.threads.min(COPYING_THREADS) };
        Readback { memory: Arc::default(), threads }
    }

    /// The values of each part.
    fn copy(&self, from: &[f32], parts: &[(u64, usize)]) -> Vec<Vec<f32>> {
        let mut values: Vec<_> = parts.iter().map(|(_, len)| self.memory.vector(*len)).collect();
        // Each piece is locked once, by the one thread that copies it.
        let pieces: Vec<_> = values
            .iter_mut()
            .zip(parts)
            .flat_map(|(values, (at, len))| {
                let first = *at as usize / 4;
                values.chunks_mut(COPIED_AT_ONCE).zip(from[first..first + len].chunks(COPIED_AT_ONCE)).map(Mutex::new)
            })
            .collect();
        self.threads.each(pieces.len(), |i| {
            let (to, from) = &mut *pieces[i].lock();
            to.copy_from_slice(from);
        });
        drop(pieces);
        values
    }
}

impl Staging {
    /// A staging buffer with room for at least `bytes`.
    pub(super) fn new(pool: &Arc<Pool>, bytes: u64) -> Arc<Staging> {
        const LEAST: u64 = 1 << 20;
        Arc::new(Staging { memory: pool.take(bytes.max(LEAST)), parts: Mutex::default(), mapping: Mutex::new(None) })
    }

    /// Reserves room for `len` values and returns their first byte, or `None` if they do not fit.
    pub(super) fn reserve(&self, len: usize) -> Option<u64> {
        let mut parts = self.parts.lock();
        let start = parts.filled;
        // Mapped ranges must begin at multiples of 8.
        let end = (start + 4 * len as u64).next_multiple_of(8);
        (end <= self.memory.own.buffer.size()).then(|| {
            parts.filled = end;
            parts.of.push((start, len));
            start
        })
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.memory.own.buffer
    }

    /// Requests the mapping. Must be called right after the submit `index`, which fills this buffer.
    pub(super) fn map(&self, index: wgpu::SubmissionIndex) {
        let (tell, done) = futures_channel::oneshot::channel();
        self.memory.own.buffer.map_async(wgpu::MapMode::Read, ..self.parts.lock().filled, move |result| {
            // There is no receiver if the run was dropped.
            let _ = tell.send(result);
        });
        *self.mapping.lock() = Some(Mapping { index, done });
    }

    /// Returns the `len` values that were reserved at byte `start`. The first call copies all parts of the buffer to the
    /// host.
    pub(super) async fn read(
        &self,
        device: &wgpu::Device,
        readback: &Readback,
        start: u64,
        len: usize,
    ) -> Result<Vec<f32>, String> {
        let mapping = self.mapping.lock().take();
        if let Some(Mapping { index, done }) = mapping {
            super::poll::wait(device, index)?;
            done.await.map_err(|_| "the readback was dropped".to_string())?.map_err(|e| e.to_string())?;
            let mut parts = self.parts.lock();
            let view = self.memory.own.buffer.get_mapped_range(..parts.filled).map_err(|e| e.to_string())?;
            parts.values = readback.copy(bytemuck::cast_slice(&view), &parts.of);
        }
        let mut parts = self.parts.lock();
        let at = parts.of.iter().position(|part| *part == (start, len)).filter(|at| *at < parts.values.len());
        let at = at.ok_or("the readback failed before")?;
        parts.of.swap_remove(at);
        Ok(parts.values.swap_remove(at))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.memory.own.buffer.unmap();
    }
}
