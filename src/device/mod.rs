//! The interface between the forward pass and a backend. Owns the trait [`Device`], the types of its methods, and the
//! opening of a device. Backends use this folder and nothing above it except the configuration. `model/forward.rs` uses
//! this folder and no single backend.
//!
//! Every tensor is a matrix [rows, cols] of f32 (f64 on the reference device). A batch is not padded: the rows of a
//! tensor are the tokens of all texts, one text after the other. Only attention needs to know where a text ends.
//! Read next: `op.rs` for the operations, then `reference.rs`, where each is a plain loop.

mod any;
pub mod cpu;
mod derivative;
#[cfg(feature = "gpu")]
pub mod gpu;
#[doc(hidden)]
pub mod host_pool;
#[cfg(feature = "gpu")]
mod instant;
#[doc(hidden)]
pub mod lockstep;
mod op;
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
pub mod probe;
pub mod reference;
#[doc(hidden)]
pub mod rounded_reference;
pub(crate) mod tape;
mod workers;

pub use crate::config::Activation;
pub use any::{AnyDevice, OneOf};
use half::slice::HalfFloatSliceExt;
use host_pool::HostPool;
pub(crate) use op::Epilogue;
pub use op::{LOGITS_CHUNK, Op, OpKind, Operands, Operations, Queries, RowsOf};
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use thiserror::Error;

/// What can be shared with other threads: `Send + Sync`. On wasm32, where wgpu's types are neither, it asks for
/// nothing.
#[cfg(not(target_arch = "wasm32"))]
pub trait Shareable: Send + Sync {}
#[cfg(not(target_arch = "wasm32"))]
impl<T: Send + Sync + ?Sized> Shareable for T {}

/// What can be shared with other threads: `Send + Sync`. On wasm32, where wgpu's types are neither, it asks for
/// nothing.
#[cfg(target_arch = "wasm32")]
pub trait Shareable {}
#[cfg(target_arch = "wasm32")]
impl<T: ?Sized> Shareable for T {}

/// A future behind a pointer: one that can be sent to another thread, except on wasm32 (see [`Shareable`]).
#[cfg(not(target_arch = "wasm32"))]
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A future behind a pointer: one that can be sent to another thread, except on wasm32 (see [`Shareable`]).
#[cfg(target_arch = "wasm32")]
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The type of the elements of a weight, in a checkpoint or on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

/// Bytes whose address does not change while a [`Blob`] refers to them: a mapped file, or a part of the binary.
pub trait Bytes: Send + Sync {
    /// All bytes.
    fn bytes(&self) -> &[u8];

    /// The number of bytes.
    fn size(&self) -> usize {
        self.bytes().len()
    }

    /// Says that `range` will probably not be read again, so that the system may reuse its memory.
    fn release(&self, _range: Range<usize>) {}

    /// False if the owner can tell that another program has changed the bytes.
    fn unchanged(&self) -> bool {
        true
    }
}

impl Bytes for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

impl Bytes for &'static [u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A range of [`Bytes`], and the owner that keeps them alive.
#[derive(Clone)]
pub struct Blob {
    owner: Arc<dyn Bytes>,
    range: Range<usize>,
}

impl Blob {
    /// The bytes `range` of `owner`.
    ///
    /// # Panics
    /// If the range is not within the bytes. The checkpoint reader checks that before.
    pub fn new(owner: Arc<dyn Bytes>, range: Range<usize>) -> Blob {
        assert!(range.start <= range.end && range.end <= owner.size(), "a blob lies within its owner");
        Blob { owner, range }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }

    /// The number of bytes.
    pub fn size(&self) -> usize {
        self.range.len()
    }

    /// A range of these bytes, with the same owner.
    ///
    /// # Panics
    /// If the range is not within these bytes.
    pub(crate) fn part(&self, range: Range<usize>) -> Blob {
        assert!(range.end <= self.size(), "a part lies within its whole");
        Blob::new(self.owner.clone(), self.range.start + range.start..self.range.start + range.end)
    }

    /// [`Bytes::release`] of this range.
    pub fn release(&self) {
        self.owner.release(self.range.clone());
    }
}

impl From<Vec<u8>> for Blob {
    /// All of these bytes.
    fn from(bytes: Vec<u8>) -> Blob {
        let range = 0..bytes.len();
        Blob::new(Arc::new(bytes), range)
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({:?})", self.range)
    }
}

/// The part of the model that a weight belongs to. Messages use it to say where in a run an operation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The token and position embeddings.
    #[default]
    Embedding,
    /// A block, counted from 0.
    Block(usize),
    /// The final LayerNorm and the unembedding.
    Head,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::Embedding => write!(f, "before the blocks"),
            Part::Block(layer) => write!(f, "in block {layer}"),
            Part::Head => write!(f, "after the blocks"),
        }
    }
}

/// A weight as the checkpoint stores it: a matrix [rows, cols] in row-major order. A vector is a matrix of one row.
#[derive(Clone, Debug)]
pub struct StoredWeight {
    /// The name in the checkpoint, for messages and labels.
    pub name: String,
    /// The part of the model it belongs to; `model/params.rs` sets it.
    pub part: Part,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Rows: 1 for vectors, input features for Conv1D weights, tokens or positions for embeddings.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// `rows * cols * dtype.size()` bytes.
    pub blob: Blob,
}

impl StoredWeight {
    /// All elements in storage order, widened to f64 without loss.
    pub fn to_f64(&self) -> Vec<f64> {
        self.to_f32().into_iter().map(f64::from).collect()
    }

    /// All elements in storage order, widened to f32 without loss.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.cols];
        self.widen(0, &mut values);
        values
    }

    /// The elements in the memory of the checkpoint, or `None` unless they are aligned f32 values in the processor's
    /// byte order.
    pub fn as_mapped_f32(&self) -> Option<&[f32]> {
        match self.dtype {
            Dtype::F32 if cfg!(target_endian = "little") => bytemuck::try_cast_slice(self.blob.bytes()).ok(),
            _ => None,
        }
    }

    /// Fills `out` with the elements from `first` on, in storage order, widened to f32 without loss.
    pub fn widen(&self, first: usize, out: &mut [f32]) {
        let bytes = &self.blob.bytes()[first * self.dtype.size()..][..out.len() * self.dtype.size()];
        // Checkpoints are little-endian and need not be aligned, so this reads groups of bytes.
        let (pairs, fours) = (bytes.as_chunks::<2>().0, bytes.as_chunks::<4>().0);
        match self.dtype {
            Dtype::F32 => out.iter_mut().zip(fours).for_each(|(y, b)| *y = f32::from_le_bytes(*b)),
            // Where the elements are aligned, `half` converts them with instructions of the processor.
            Dtype::F16 => match bytemuck::try_cast_slice::<u8, half::f16>(bytes) {
                Ok(halves) if cfg!(target_endian = "little") => halves.convert_to_f32_slice(out),
                _ => out.iter_mut().zip(pairs).for_each(|(y, b)| *y = half::f16::from_le_bytes(*b).to_f32()),
            },
            Dtype::Bf16 => {
                let widened = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                out.iter_mut().zip(pairs).for_each(|(y, b)| *y = widened(b));
            }
        }
    }

    /// Fills `out` with the bits of the half-precision elements from `first` on, in storage order.
    pub(crate) fn half_bits(&self, first: usize, out: &mut [u16]) {
        let bytes = &self.blob.bytes()[first * 2..][..out.len() * 2];
        out.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(y, b)| *y = u16::from_le_bytes(*b));
    }

    /// The same weight with its elements rounded to another type. `None` if a finite element would become infinite.
    pub fn converted(&self, dtype: Dtype) -> Option<StoredWeight> {
        let values = self.to_f32();
        let fits = |rounded: fn(f32) -> f32| values.iter().all(|x| rounded(*x).is_finite() || !x.is_finite());
        let bytes = match dtype {
            Dtype::F32 => bytes_of(&values, f32::to_le_bytes),
            Dtype::F16 if !fits(|x| half::f16::from_f32(x).to_f32()) => return None,
            Dtype::F16 => bytes_of(&values, |x| half::f16::from_f32(x).to_le_bytes()),
            Dtype::Bf16 if !fits(|x| half::bf16::from_f32(x).to_f32()) => return None,
            Dtype::Bf16 => bytes_of(&values, |x| half::bf16::from_f32(x).to_le_bytes()),
        };
        self.blob.release();
        Some(StoredWeight { name: self.name.clone(), dtype, blob: bytes.into(), ..*self })
    }
}

/// The bytes of every value, one after the other, in large pages: a token of generation reads all of a table once.
fn bytes_of<const N: usize>(values: &[f32], bytes: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    let mut all = host_pool::zeros(N * values.len());
    all.as_chunks_mut::<N>().0.iter_mut().zip(values).for_each(|(out, x)| *out = bytes(*x));
    all
}

/// A selection of a tensor: the values at the intersections of some rows and some columns, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Ranges of rows, ascending and not empty.
    pub rows: Vec<Range<usize>>,
    /// Ranges of columns, ascending and not empty.
    pub cols: Vec<Range<usize>>,
}

impl Window {
    /// All values of a tensor of this shape.
    pub fn all([rows, cols]: [usize; 2]) -> Window {
        let range = |n: usize| if n == 0 { Vec::new() } else { vec![0..n] };
        Window { rows: range(rows), cols: range(cols) }
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.rows.iter().map(ExactSizeIterator::len).sum()
    }

    /// Number of columns.
    pub fn n_cols(&self) -> usize {
        self.cols.iter().map(ExactSizeIterator::len).sum()
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.n_rows() * self.n_cols()
    }

    /// True if it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All rows, in order.
    pub(crate) fn each_row(&self) -> impl Iterator<Item = usize> {
        self.rows.iter().flat_map(Range::clone)
    }

    /// All columns, in order.
    pub(crate) fn each_col(&self) -> impl Iterator<Item = usize> + Clone {
        self.cols.iter().flat_map(Range::clone)
    }

    /// Its ranges of columns, each with the number of the window's columns before it.
    #[cfg(feature = "gpu")]
    pub(crate) fn col_ranges(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        self.cols.iter().scan(0, |next, cols| {
            let before = *next;
            *next += cols.len();
            Some((cols.clone(), before))
        })
    }

    /// True if it has all values of a tensor of this shape, in their order.
    pub(crate) fn is_all(&self, shape: [usize; 2]) -> bool {
        covers(&self.rows, shape[0]) && covers(&self.cols, shape[1])
    }

    /// Checks that the window is within a tensor of this shape.
    ///
    /// # Panics
    /// If a range is empty or not within the shape.
    pub(crate) fn assert_within(&self, shape: [usize; 2]) {
        let inside = |ranges: &[Range<usize>], n: usize| ranges.iter().all(|r| r.start < r.end && r.end <= n);
        assert!(inside(&self.rows, shape[0]) && inside(&self.cols, shape[1]), "{self:?} lies within {shape:?}");
    }
}

/// True if the ranges cover `0..n`, in order.
fn covers(ranges: &[Range<usize>], n: usize) -> bool {
    ranges.iter().try_fold(0, |next, range| (range.start == next).then_some(range.end)) == Some(n)
}

/// A change of the values in a window. Its values are either the whole window in row-major order, or one row that
/// applies to every row of the window.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Sets the values to zero.
    Zero,
    /// Multiplies the values by a factor. [`MASKED`] stays as it is.
    Scale(f32),
    /// Adds to the values.
    Add(Vec<f32>),
    /// Replaces the values.
    Replace(Vec<f32>),
}

/// The heads of attention, and the factor of their scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Number of heads. Their width follows from the tensor qkv [T, 3D].
    pub n_head: usize,
    /// The factor of every score.
    pub scale: f64,
}

/// The most elements of one tensor on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorLimits {
    /// The limit of tensors that kernels bind whole.
    pub whole: usize,
    /// The limit of tensors that kernels bind a range of rows at a time, such as logits.
    pub in_parts: usize,
}

impl TensorLimits {
    /// No limit but memory.
    pub const NONE: TensorLimits = TensorLimits { whole: usize::MAX, in_parts: usize::MAX };
}

/// The three backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Plain loops in f64.
    Reference,
    /// All cores, f32.
    Cpu,
    /// wgpu: Metal, Vulkan, DirectX 12, WebGPU.
    Gpu,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceKind::Reference => "reference",
            DeviceKind::Cpu => "cpu",
            DeviceKind::Gpu => "gpu",
        })
    }
}

/// A description of a device, for messages, provenance and bug reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The backend.
    pub kind: DeviceKind,
    /// The name of the adapter or processor.
    pub name: String,
    /// The graphics API and driver, or the type of the arithmetic.
    pub detail: String,
    /// True for a software adapter: a GPU driver that computes on the CPU.
    pub software: bool,
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.kind, self.name, self.detail)
    }
}

/// Why a device could not be opened, or how it failed.
#[derive(Clone, Debug, Error)]
pub enum DeviceError {
    /// No adapter was found.
    #[error("no GPU adapter was found ({detail})")]
    NoAdapter {
        /// What the graphics API said.
        detail: String,
    },
    /// No adapter has the name or the backend that an [`AdapterFilter`] asks for.
    #[error("no GPU adapter has {filter}")]
    NoMatch {
        /// What was asked for.
        filter: String,
    },
    /// This build has no device `gpu`.
    #[error("this build of actscope has no gpu device (the cargo feature `gpu`); the cpu device computes the same")]
    NotBuilt,
    /// The adapter refused to open a device.
    #[error("the GPU adapter {adapter:?} refused to open a device: {detail}")]
    Request {
        /// The adapter's name.
        adapter: String,
        /// What the graphics API said.
        detail: String,
    },
    /// A row of a weight does not fit one binding of this adapter.
    #[error("the weight {name:?} needs {bytes} bytes in one binding and this adapter binds at most {limit}")]
    TooLarge {
        /// The weight's name.
        name: String,
        /// Bytes that the row needs.
        bytes: u64,
        /// Bytes that a binding can have.
        limit: u64,
    },
    /// The device failed during a run: it is out of memory, was lost, or reported an error.
    #[error("the GPU failed while running: {detail}")]
    Fault {
        /// What the graphics API said.
        detail: String,
    },
}

/// A backend. Its operations return no `Result`. An error of the device is recorded, and the next [`Device::read`] or
/// [`Device::settle`] returns it. Operations assert their shapes, which are right for every checkpoint that
/// `model/checkpoint.rs` accepts.
pub trait Device: Shareable {
    /// A matrix [rows, cols] on the device. No operation changes it. Clones share its memory, which is freed with the
    /// last clone.
    type Tensor: Clone + Shareable;
    /// A weight, in the forms that the device's operations read. Clones share its memory.
    type Weight: Clone + Shareable;
    /// The keys and values of one layer, for several texts.
    type Cache: Shareable;
    /// A recorded copy of values to the host.
    type Staged: Shareable;

    /// Describes the device.
    fn info(&self) -> DeviceInfo;

    /// The largest sizes of tensors.
    fn tensor_limits(&self) -> TensorLimits;

    /// The most rows of logits for which one pass over the table gives each row bit for bit what a run of that row alone gives.
    fn logit_rows_per_pass(&self) -> usize {
        1
    }

    /// The pool of host memory that the results of [`Device::read`] come from. They may be returned to it.
    fn host_memory(&self) -> &Arc<HostPool>;

    /// Makes a weight of a checkpoint usable on the device. The device may upload it later.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] if the device cannot bind it.
    fn load(&self, weight: &StoredWeight) -> Result<Self::Weight, DeviceError>;

    /// A tensor of this shape with these values, in row-major order.
    fn upload(&self, shape: [usize; 2], values: Vec<f32>) -> Self::Tensor;

    /// The shape [rows, cols] of a tensor.
    fn shape(&self, x: &Self::Tensor) -> [usize; 2];

    /// Runs or records one operation. [`Operations`] has a method for each operation.
    fn run(&self, op: &Op, operands: Operands<'_, Self>) -> Self::Tensor;

    /// An empty cache for the keys and values of one layer, with room for `capacities[i]` positions of text `i`. A key
    /// has `n_embd` elements, and so has a value.
    fn new_cache(&self, capacities: &[usize], n_embd: usize, heads: Heads) -> Self::Cache;

    /// Writes keys and values of the tensor qkv [T, 3D] into a cache: for every text in `texts` its rows, at the
    /// positions of its queries.
    fn append(&self, cache: &mut Self::Cache, qkv: &Self::Tensor, texts: &[Queries]);

    /// Records a copy of a window of a tensor.
    fn copy_out(&self, x: &Self::Tensor, window: &Window) -> Self::Staged;

    /// Submits everything recorded so far, copies included.
    fn submit(&self);

    /// [`Device::submit`], unless so little is recorded that the device would rather wait for more. Returns true if it
    /// submitted.
    fn submit_if_enough(&self) -> bool {
        self.submit();
        true
    }

    /// Waits until at most `running` submits are unfinished. Limits the length of the queue.
    ///
    /// # Errors
    /// [`DeviceError::Fault`] if the device has failed up to now.
    fn settle(&self, running: usize) -> impl Future<Output = Result<(), DeviceError>>;

    /// The values of a copy, in row-major order. Waits for the [`Device::submit`] that followed it.
    ///
    /// # Errors
    /// [`DeviceError::Fault`] if the device has failed up to now.
    fn read(&self, staged: Self::Staged) -> impl Future<Output = Result<Vec<f32>, DeviceError>>;

    /// The names of all kernels that this device may choose on this machine. Empty for devices without kernels.
    /// `verify` fails unless each of them has run.
    fn kernels(&self) -> Vec<String> {
        Vec::new()
    }

    /// The kernels that were recorded since the last call.
    fn take_kernels_run(&self) -> BTreeSet<&'static str> {
        BTreeSet::new()
    }

    /// What was recorded and submitted since the last call.
    fn take_counters(&self) -> Counters {
        Counters::default()
    }
}

/// What a device has recorded and submitted. Devices that compute at once count nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counters {
    /// Submits.
    pub submits: usize,
    /// Command buffers that are sent to the graphics API. A compute pass counts as two, since the barriers before it have one of
    /// their own. A submit adds two more. Consecutive copies count as one.
    pub command_buffers: usize,
    /// Compute passes.
    pub passes: usize,
    /// Dispatches.
    pub dispatches: usize,
    /// Dispatches that wait for an earlier dispatch of their pass.
    pub barriers: usize,
    /// Copies from buffer to buffer.
    pub copies: usize,
}

impl Counters {
    /// Adds what else was counted.
    pub fn add(&mut self, more: Counters) {
        self.submits += more.submits;
        self.command_buffers += more.command_buffers;
        self.passes += more.passes;
        self.dispatches += more.dispatches;
        self.barriers += more.barriers;
        self.copies += more.copies;
    }
}

/// A store for what a device learns about its machine: a tile configuration, compiled pipelines. A device also works
/// without one, or with one that loses values.
pub trait DeviceCache: Shareable {
    /// The value stored under a name.
    fn get(&self, name: &str) -> Option<Vec<u8>>;

    /// Stores a value. Failures are ignored.
    fn put(&self, name: &str, value: &[u8]);
}

/// The device to open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The GPU if there is a hardware adapter, else the CPU.
    #[default]
    Auto,
    /// The best adapter, even a software one.
    Gpu,
    /// All cores, f32.
    Cpu,
    /// Plain loops in f64. Slow and accurate.
    Reference,
}

/// Which GPU adapters count. The default is all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdapterFilter {
    /// Those whose name contains this, in upper or lower case.
    pub name: Option<String>,
    /// Those of these backends: a list such as `vulkan,dx12`, in wgpu's words.
    pub backends: Option<String>,
}

/// Opens a device, on the best of all adapters.
///
/// # Errors
/// [`DeviceError`] if the device cannot be opened, which is only possible with [`Choice::Gpu`].
pub async fn open(choice: Choice) -> Result<AnyDevice, DeviceError> {
    open_among(choice, &AdapterFilter::default()).await
}

/// [`open()`] on the best of some adapters.
///
/// # Errors
/// As [`open()`].
#[cfg_attr(not(feature = "gpu"), allow(unused_variables, reason = "without a GPU there is no adapter"))]
pub async fn open_among(choice: Choice, adapters: &AdapterFilter) -> Result<AnyDevice, DeviceError> {
    match choice {
        Choice::Reference => Ok(AnyDevice::Reference(reference::Reference::default())),
        Choice::Cpu => Ok(AnyDevice::Cpu(cpu::Cpu::new())),
        #[cfg(feature = "gpu")]
        Choice::Gpu => Ok(AnyDevice::Gpu(gpu::Gpu::open_among(adapters, false).await?)),
        #[cfg(not(feature = "gpu"))]
        Choice::Gpu => Err(DeviceError::NotBuilt),
        #[cfg(feature = "gpu")]
        Choice::Auto => match gpu::Gpu::open_among(adapters, true).await {
            Ok(gpu) => Ok(AnyDevice::Gpu(gpu)),
            Err(_) => Ok(AnyDevice::Cpu(cpu::Cpu::new())),
        },
        #[cfg(not(feature = "gpu"))]
        Choice::Auto => Ok(AnyDevice::Cpu(cpu::Cpu::new())),
    }
}

/// The score of a masked key. It stands for minus infinity, for which WGSL has no literal. Outputs have -inf in its
/// place.
pub const MASKED: f32 = f32::MIN;
