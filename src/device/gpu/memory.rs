//! Buffers: tensors that come from a pool and go back to it, weights, and the staging buffers through which values reach
//! the host. Owns no kernel and records nothing.
//!
//! Pooled buffers are written by dispatches and copies only, in the order in which they are recorded, so a tensor may be
//! dropped while work that reads it is still queued: whoever gets its buffer next writes it later in the same order.

use crate::device::{DeviceError, Dtype, Weight};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

/// Buffers that nobody uses at the moment, of one usage.
pub(super) struct Pool {
    device: wgpu::Device,
    usage: wgpu::BufferUsages,
    label: &'static str,
    free: RefCell<VecDeque<wgpu::Buffer>>,
}

impl Pool {
    pub(super) fn new(device: &wgpu::Device, usage: wgpu::BufferUsages, label: &'static str) -> Rc<Pool> {
        Rc::new(Pool { device: device.clone(), usage, label, free: RefCell::default() })
    }

    /// A buffer of at least `bytes`: the smallest free one that is not more than twice as large, or a new one.
    fn take(self: &Rc<Pool>, bytes: u64) -> Pooled {
        let size = size_class(bytes);
        let mut free = self.free.borrow_mut();
        let fits = free
            .iter()
            .enumerate()
            .filter(|(_, b)| (size..=2 * size).contains(&b.size()))
            .min_by_key(|(_, b)| b.size());
        let buffer = match fits.map(|(i, _)| i).and_then(|i| free.remove(i)) {
            Some(buffer) => buffer,
            None => self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(self.label),
                size,
                usage: self.usage,
                mapped_at_creation: false,
            }),
        };
        Pooled { buffer, pool: self.clone() }
    }
}

/// A pool's buffer; goes back when dropped.
pub(super) struct Pooled {
    buffer: wgpu::Buffer,
    pool: Rc<Pool>,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let mut free = self.pool.free.borrow_mut();
        free.push_back(self.buffer.clone());
        // What has lain there longest goes, so that texts of many lengths do not each leave their buffers behind.
        while free.len() > 1 && free.iter().map(wgpu::Buffer::size).sum::<u64>() > FREE_BYTES {
            free.pop_front();
        }
    }
}

/// Bytes that a pool keeps for later.
const FREE_BYTES: u64 = 256 << 20;

/// Four sizes per power of two, so that sizes that nearly agree share buffers; at least a page.
fn size_class(bytes: u64) -> u64 {
    let step = (bytes.max(4096).next_power_of_two() / 8).max(1024);
    bytes.max(4096).next_multiple_of(step)
}

/// A matrix [rows, cols] of f32 in a pooled buffer, row-major, without padding.
pub struct Tensor {
    pub(super) rows: usize,
    pub(super) cols: usize,
    memory: Pooled,
}

impl Tensor {
    pub(super) fn new(pool: &Rc<Pool>, rows: usize, cols: usize) -> Tensor {
        Tensor { rows, cols, memory: pool.take(4 * (rows * cols) as u64) }
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.memory.buffer
    }

    pub(super) fn len(&self) -> usize {
        self.rows * self.cols
    }
}

/// Some rows of a weight in a buffer of their own.
pub(super) struct Chunk {
    pub(super) buffer: wgpu::Buffer,
    pub(super) rows: Range<usize>,
}

/// A weight [rows, cols] in as many buffers as the adapter's largest binding demands, cut by rows. Every row is padded to a
/// multiple of 8 numbers, so that a `vec4<u32>` never holds numbers of two rows. Vectors are f32 whatever the file has.
pub struct Matrix {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
    pub(super) chunks: Vec<Chunk>,
}

/// Bytes that go through the queue at once: what an upload may cost in host memory beyond the weight itself.
const UPLOAD_STEP: usize = 8 << 20;

impl Matrix {
    pub(super) fn upload(
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        max_binding: u64,
        weight: &Weight,
    ) -> Result<Matrix, DeviceError> {
        let dtype = if weight.rows == 1 { Dtype::F32 } else { weight.dtype };
        let stride = weight.cols.next_multiple_of(8);
        let row_bytes = stride * dtype.size();
        // At most as many rows as one dimension of a dispatch has tiles for, 64 rows each.
        let rows_at_once = (max_binding as usize / row_bytes).min(weight.rows).min(64 * 65_535);
        if rows_at_once == 0 {
            return Err(DeviceError::TooLarge {
                name: weight.name.clone(),
                bytes: row_bytes as u64,
                limit: max_binding,
            });
        }
        let widened = (dtype != weight.dtype).then(|| weight.to_f32());
        let bytes = widened.as_deref().map_or(weight.blob.bytes(), bytemuck::cast_slice);
        let mut chunks = Vec::new();
        for first in (0..weight.rows).step_by(rows_at_once) {
            let rows = first..weight.rows.min(first + rows_at_once);
            let buffer = device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(&weight.name),
                size: (rows.len() * row_bytes) as u64,
                usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            write_rows(
                device,
                queue,
                &buffer,
                &bytes[rows.start * weight.cols * dtype.size()..],
                rows.len(),
                weight.cols * dtype.size(),
                row_bytes,
            );
            chunks.push(Chunk { buffer, rows });
        }
        weight.blob.release();
        Ok(Matrix { name: weight.name.clone(), dtype, rows: weight.rows, cols: weight.cols, stride, chunks })
    }
}

/// Writes rows of `from` bytes into a buffer whose rows have `to` bytes.
fn write_rows(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    buffer: &wgpu::Buffer,
    bytes: &[u8],
    rows: usize,
    from: usize,
    to: usize,
) {
    let step = (UPLOAD_STEP / to).clamp(1, rows);
    for first in (0..rows).step_by(step) {
        let n = step.min(rows - first);
        let part = &bytes[first * from..(first + n) * from];
        if from == to {
            queue.write_buffer(buffer, (first * to) as u64, part);
        } else {
            let mut padded = vec![0u8; n * to];
            padded
                .chunks_exact_mut(to)
                .zip(part.chunks_exact(from))
                .for_each(|(slot, row)| slot[..from].copy_from_slice(row));
            queue.write_buffer(buffer, (first * to) as u64, &padded);
        }
        if n * to >= UPLOAD_STEP / 2 {
            // The queue keeps a copy until the write is done: let it begin, and collect what has finished.
            queue.submit([]);
            let _ = device.poll(wgpu::PollType::Poll);
        }
    }
}

/// One staging buffer: filled by copies, mapped after the submit that does them, read, given back.
pub(super) struct Staging {
    memory: Pooled,
    filled: Cell<u64>,
    mapping: RefCell<Option<Mapping>>,
}

struct Mapping {
    index: wgpu::SubmissionIndex,
    done: futures_channel::oneshot::Receiver<Result<(), wgpu::BufferAsyncError>>,
}

impl Staging {
    /// Room for at least `bytes`.
    pub(super) fn new(pool: &Rc<Pool>, bytes: u64) -> Rc<Staging> {
        const LEAST: u64 = 1 << 20;
        Rc::new(Staging { memory: pool.take(bytes.max(LEAST)), filled: Cell::new(0), mapping: RefCell::new(None) })
    }

    /// Reserves `bytes`; `None` when they do not fit.
    pub(super) fn reserve(&self, bytes: u64) -> Option<u64> {
        let start = self.filled.get();
        // Mapped ranges begin at multiples of 8.
        let end = (start + bytes).next_multiple_of(8);
        (end <= self.memory.buffer.size()).then(|| {
            self.filled.set(end);
            start
        })
    }

    pub(super) fn buffer(&self) -> &wgpu::Buffer {
        &self.memory.buffer
    }

    /// Asks for the map, right after the submit `index` that fills this buffer.
    pub(super) fn map(&self, index: wgpu::SubmissionIndex) {
        let (tell, done) = futures_channel::oneshot::channel();
        self.memory.buffer.map_async(wgpu::MapMode::Read, ..self.filled.get(), move |result| {
            // Nobody listens when the run was given up.
            let _ = tell.send(result);
        });
        *self.mapping.borrow_mut() = Some(Mapping { index, done });
    }

    /// The values from byte `start` on.
    pub(super) async fn read(&self, device: &wgpu::Device, start: u64, len: usize) -> Result<Vec<f32>, String> {
        let mapping = self.mapping.borrow_mut().take();
        if let Some(Mapping { index, done }) = mapping {
            super::record::wait(device, index)?;
            done.await.map_err(|_| "the readback was dropped".to_string())?.map_err(|e| e.to_string())?;
        }
        let view = self.memory.buffer.get_mapped_range(start..start + 4 * len as u64).map_err(|e| e.to_string())?;
        Ok(bytemuck::cast_slice(&view).to_vec())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.memory.buffer.unmap();
    }
}
