//! What the forward pass asks of a device: [`Device`], the types that cross it, and how a device is opened. `op.rs` has the
//! operations. A backend knows this folder and nothing above it; `model/forward.rs` knows this folder and no backend.
//!
//! Every tensor is a matrix [rows, cols] of f32 (the reference keeps f64). A batch is not padded: the texts' tokens stand
//! below one another as rows, and only attention needs to know where one text ends.
//! Read next: `op.rs` for the operations, then `reference.rs`, where each is a plain loop.

pub mod buffer_pool;
pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod lockstep;
mod op;
#[cfg(not(target_arch = "wasm32"))]
pub mod probe;
pub mod reference;
pub mod rounded;

pub use crate::config::Activation;
use buffer_pool::BufferPool;
use half::slice::HalfFloatSliceExt;
pub(crate) use op::Epilogue;
pub use op::{Op, OpKind, Operands, Operations, Queries, RowsOf};
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

/// What can be shared with other threads: `Send + Sync`. On wasm32, where wgpu's types are neither, it asks for nothing.
#[cfg(not(target_arch = "wasm32"))]
pub trait Shareable: Send + Sync {}
#[cfg(not(target_arch = "wasm32"))]
impl<T: Send + Sync + ?Sized> Shareable for T {}

/// What can be shared with other threads: `Send + Sync`. On wasm32, where wgpu's types are neither, it asks for nothing.
#[cfg(target_arch = "wasm32")]
pub trait Shareable {}
#[cfg(target_arch = "wasm32")]
impl<T: ?Sized> Shareable for T {}

/// How the numbers of a weight are stored, in a checkpoint or on a device.
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
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

/// Bytes that stay where they are for as long as a [`Blob`] holds them: a mapped file, or a part of the binary.
pub trait Bytes: Send + Sync {
    /// All of them.
    fn bytes(&self) -> &[u8];

    /// How many there are.
    fn size(&self) -> usize {
        self.bytes().len()
    }

    /// Tells the owner that `range` will probably not be read again, so that its memory may be used for something else.
    fn release(&self, _range: Range<usize>) {}

    /// False once another program has changed them, as far as the owner can tell.
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
    /// `range` of `owner`'s bytes.
    ///
    /// # Panics
    /// When the range is not within the bytes: the checkpoint reader checks it first.
    pub fn new(owner: Arc<dyn Bytes>, range: Range<usize>) -> Blob {
        assert!(range.start <= range.end && range.end <= owner.size(), "a blob lies within its owner");
        Blob { owner, range }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.range.len()
    }

    /// [`Bytes::release`] of this range.
    pub fn release(&self) {
        self.owner.release(self.range.clone());
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({:?})", self.range)
    }
}

/// Which part of the model a weight belongs to. It says where in a run an operation stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The token and position embeddings.
    #[default]
    Embedding,
    /// Block `0 ..`.
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
    /// How its numbers are stored.
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

    /// The elements as they lie in the checkpoint, where f32 can be read there.
    pub fn in_place(&self) -> Option<&[f32]> {
        match self.dtype {
            Dtype::F32 if cfg!(target_endian = "little") => bytemuck::try_cast_slice(self.blob.bytes()).ok(),
            _ => None,
        }
    }

    /// Elements `first ..` in storage order, widened to f32 without loss, into the whole of `out`.
    pub fn widen(&self, first: usize, out: &mut [f32]) {
        let bytes = &self.blob.bytes()[first * self.dtype.size()..][..out.len() * self.dtype.size()];
        // Checkpoints are little-endian and need not be aligned: read byte groups, not casts.
        let (pairs, fours) = (bytes.as_chunks::<2>().0, bytes.as_chunks::<4>().0);
        match self.dtype {
            Dtype::F32 => out.iter_mut().zip(fours).for_each(|(y, b)| *y = f32::from_le_bytes(*b)),
            // All at once where they are aligned: that takes the processor's own instructions.
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

    /// The bits of half-precision elements `first ..` in storage order, into the whole of `out`.
    pub(crate) fn half_bits(&self, first: usize, out: &mut [u16]) {
        let bytes = &self.blob.bytes()[first * 2..][..out.len() * 2];
        out.iter_mut().zip(bytes.as_chunks::<2>().0).for_each(|(y, b)| *y = u16::from_le_bytes(*b));
    }

    /// The same numbers, rounded to another way of storing them; `None` where a finite one would become infinite.
    pub fn converted(&self, dtype: Dtype) -> Option<StoredWeight> {
        let values = self.to_f32();
        let fits = |rounded: fn(f32) -> f32| values.iter().all(|x| rounded(*x).is_finite() || !x.is_finite());
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F16 if !fits(|x| half::f16::from_f32(x).to_f32()) => return None,
            Dtype::F16 => values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
            Dtype::Bf16 if !fits(|x| half::bf16::from_f32(x).to_f32()) => return None,
            Dtype::Bf16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        };
        self.blob.release();
        let range = 0..bytes.len();
        Some(StoredWeight { name: self.name.clone(), dtype, blob: Blob::new(Arc::new(bytes), range), ..*self })
    }
}

/// The values of a tensor where certain rows and certain columns cross, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Row ranges, ascending, none of them empty.
    pub rows: Vec<Range<usize>>,
    /// Column ranges, ascending, none of them empty.
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

    /// True when it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every row, in order.
    pub(crate) fn each_row(&self) -> impl Iterator<Item = usize> {
        self.rows.iter().flat_map(Range::clone)
    }

    /// Every column, in order.
    pub(crate) fn each_col(&self) -> impl Iterator<Item = usize> + Clone {
        self.cols.iter().flat_map(Range::clone)
    }

    /// True when it holds all values of a tensor of this shape, in their order.
    pub(crate) fn is_all(&self, shape: [usize; 2]) -> bool {
        covers(&self.rows, shape[0]) && covers(&self.cols, shape[1])
    }

    /// # Panics
    /// When a range is empty or not within a tensor of this shape.
    pub(crate) fn assert_within(&self, shape: [usize; 2]) {
        let inside = |ranges: &[Range<usize>], n: usize| ranges.iter().all(|r| r.start < r.end && r.end <= n);
        assert!(inside(&self.rows, shape[0]) && inside(&self.cols, shape[1]), "{self:?} lies within {shape:?}");
    }
}

/// True when ranges hold every number below `n`, in order.
fn covers(ranges: &[Range<usize>], n: usize) -> bool {
    ranges.iter().try_fold(0, |next, range| (range.start == next).then_some(range.end)) == Some(n)
}

/// A change of the values in a window. `values` hold one row, which every row of the window gets, or the whole window in
/// row-major order.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Set to zero.
    Zero,
    /// Multiply.
    Scale(f32),
    /// Add values.
    Add(Vec<f32>),
    /// Put values in place.
    Replace(Vec<f32>),
}

/// How attention is cut into heads, and what its scores are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Number of heads; the tensor [T, 3D] of queries, keys and values gives their width.
    pub n_head: usize,
    /// Factor on every score.
    pub scale: f64,
}

/// How many elements one tensor may have on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorLimits {
    /// A tensor that kernels bind whole.
    pub whole: usize,
    /// A tensor that kernels bind some rows at a time: logits.
    pub in_parts: usize,
}

impl TensorLimits {
    /// As large as memory allows.
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

/// What kind of machine a device is, for messages, provenance and bug reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Which backend.
    pub kind: DeviceKind,
    /// The adapter or processor in words.
    pub name: String,
    /// Graphics API and driver, or what does the arithmetic.
    pub detail: String,
    /// True for a software adapter: a GPU driver that computes on the CPU.
    pub software: bool,
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.kind, self.name, self.detail)
    }
}

/// Why a device could not be opened, or what went wrong on it.
#[derive(Clone, Debug, Error)]
pub enum DeviceError {
    /// No adapter answers.
    #[error("no GPU adapter was found ({detail})")]
    NoAdapter {
        /// What the graphics API said.
        detail: String,
    },
    /// This build has no gpu device.
    #[error("this build of actscope has no gpu device (the cargo feature `gpu`); the cpu device computes the same")]
    NotBuilt,
    /// The adapter is there but gives no device.
    #[error("the GPU adapter {adapter:?} gives no device: {detail}")]
    Request {
        /// The adapter's name.
        adapter: String,
        /// What the graphics API said.
        detail: String,
    },
    /// A weight that no buffer of this adapter can hold.
    #[error("the weight {name:?} needs {bytes} bytes in one binding and this adapter binds at most {limit}")]
    TooLarge {
        /// The tensor's name.
        name: String,
        /// Bytes needed.
        bytes: u64,
        /// Bytes possible.
        limit: u64,
    },
    /// The device failed while it was working: out of memory, lost, or a fault in a kernel.
    #[error("the GPU failed while running: {detail}")]
    Fault {
        /// What the graphics API said.
        detail: String,
    },
}

/// A backend. Its operations return no `Result`: a fault of the device is kept and comes out of the next [`Device::read`] or
/// [`Device::settle`]. Shapes are right whenever the checkpoint passed `model/checkpoint.rs`; operations assert them.
pub trait Device: Shareable {
    /// A matrix [rows, cols] on the device. No operation changes one. A clone shares its memory; dropping the last clone gives
    /// the memory back.
    type Tensor: Clone + Shareable;
    /// A weight on the device, in the form that its kernels read.
    type Weight: Shareable;
    /// The keys and values of one layer, for several texts.
    type Cache: Shareable;
    /// Values on their way to the host.
    type Staged: Shareable;

    /// What this device is.
    fn info(&self) -> DeviceInfo;

    /// How large tensors may be here.
    fn tensor_limits(&self) -> TensorLimits;

    /// Memory for values on the host: what [`Device::read`] returns comes from it and may be given back to it.
    fn host_memory(&self) -> &Arc<BufferPool>;

    /// Brings a weight to the device.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] where the device cannot bind it.
    fn load(&self, weight: &StoredWeight) -> Result<Self::Weight, DeviceError>;

    /// A tensor of this shape with these values, row by row.
    fn upload(&self, shape: [usize; 2], values: Vec<f32>) -> Self::Tensor;

    /// [rows, cols] of a tensor.
    fn shape(&self, x: &Self::Tensor) -> [usize; 2];

    /// Carries out one operation. [`Operations`] has a method for each.
    fn run(&self, op: &Op, operands: Operands<'_, Self>) -> Self::Tensor;

    /// Room for the keys and values of one layer: `capacities[i]` positions of text `i`, each with `n_embd` numbers.
    fn new_cache(&self, capacities: &[usize], n_embd: usize, heads: Heads) -> Self::Cache;

    /// Writes the keys and values of a tensor qkv [T, 3D] into a cache: the rows of every text in `texts`, at the positions
    /// of its queries.
    fn append(&self, cache: &mut Self::Cache, qkv: &Self::Tensor, texts: &[Queries]);

    /// Records a copy of a window of a tensor.
    fn copy_out(&self, x: &Self::Tensor, window: &Window) -> Self::Staged;

    /// Starts everything recorded so far, copies included.
    fn submit(&self);

    /// Waits until at most `running` submits are still running, so that the queue never grows longer than that.
    ///
    /// # Errors
    /// [`DeviceError::Fault`] when anything on the device went wrong up to here.
    fn settle(&self, running: usize) -> impl Future<Output = Result<(), DeviceError>>;

    /// The values of a copy, row-major. Waits for the [`Device::submit`] that came after it.
    ///
    /// # Errors
    /// [`DeviceError::Fault`] when anything on the device went wrong up to here.
    fn read(&self, staged: Self::Staged) -> impl Future<Output = Result<Vec<f32>, DeviceError>>;

    /// Every kernel that this device may choose on this machine, by the name that messages give it; none where operations
    /// have no kernels to choose from. `verify` insists that each has run.
    fn kernels(&self) -> Vec<String> {
        Vec::new()
    }

    /// The kernels that were recorded since the last call.
    fn kernels_run(&self) -> BTreeSet<&'static str> {
        BTreeSet::new()
    }
}

/// A store for what a device found out about its machine: a tile configuration, compiled pipelines. A device works without
/// one, and with one that loses values.
pub trait DeviceCache: Shareable {
    /// The value stored under a name.
    fn get(&self, name: &str) -> Option<Vec<u8>>;

    /// Stores a value, if that is possible.
    fn put(&self, name: &str, value: &[u8]);
}

/// Which device to open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The GPU where there is a hardware adapter, else the CPU.
    #[default]
    Auto,
    /// The best adapter, even a software one.
    Gpu,
    /// All cores, f32.
    Cpu,
    /// Plain loops in f64: slow and right.
    Reference,
}

/// Any of the three devices.
#[derive(Debug)]
#[allow(
    missing_docs,
    clippy::large_enum_variant,
    reason = "the variants are named after their devices; a session has one"
)]
pub enum AnyDevice {
    Reference(reference::Reference),
    Cpu(cpu::Cpu),
    #[cfg(feature = "gpu")]
    Gpu(gpu::Gpu),
}

/// Opens a device.
///
/// # Errors
/// [`DeviceError`] when [`Choice::Gpu`] finds none. [`Choice::Auto`] always finds one.
pub async fn open(choice: Choice) -> Result<AnyDevice, DeviceError> {
    match choice {
        Choice::Reference => Ok(AnyDevice::Reference(reference::Reference::default())),
        Choice::Cpu => Ok(AnyDevice::Cpu(cpu::Cpu::new())),
        #[cfg(feature = "gpu")]
        Choice::Gpu => Ok(AnyDevice::Gpu(gpu::Gpu::open(false).await?)),
        #[cfg(not(feature = "gpu"))]
        Choice::Gpu => Err(DeviceError::NotBuilt),
        #[cfg(feature = "gpu")]
        Choice::Auto => match gpu::Gpu::open(true).await {
            Ok(gpu) => Ok(AnyDevice::Gpu(gpu)),
            Err(_) => Ok(AnyDevice::Cpu(cpu::Cpu::new())),
        },
        #[cfg(not(feature = "gpu"))]
        Choice::Auto => Ok(AnyDevice::Cpu(cpu::Cpu::new())),
    }
}

/// Stands for minus infinity in attention scores, which WGSL has no literal for. Leaves the program as -inf.
pub const MASKED: f32 = f32::MIN;
