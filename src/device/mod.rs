//! What the forward pass asks of a device: a dozen coarse operations on matrices. Owns the trait, the types that cross
//! it, and how a device is chosen. A backend knows this file and nothing above it; `model.rs` knows this file and no backend.
//!
//! Every tensor is a matrix [rows, cols] of f32 (the reference keeps f64). A batch is not padded: the texts' tokens stand
//! below one another as rows, and only attention needs to know where one text ends.
//! Read next: `reference.rs`, where each operation is a plain loop.

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

pub use crate::model::config::Activation;
pub use op::Op;
use std::collections::BTreeSet;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

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

/// Bytes that stay where they are for as long as somebody holds them: a mapped file, or the binary itself.
pub trait Bytes: Send + Sync {
    /// All of them.
    fn bytes(&self) -> &[u8];

    /// Tells the owner that `range` will hardly be read again, so that its memory may go to others meanwhile.
    fn release(&self, _range: Range<usize>) {}

    /// False once somebody has changed them, as far as the owner can tell.
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

/// A range of somebody's [`Bytes`].
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
        assert!(range.start <= range.end && range.end <= owner.bytes().len(), "a blob lies within its owner");
        Blob { owner, range }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }

    /// [`Bytes::release`] of this range.
    pub fn release(&self) {
        self.owner.release(self.range.clone());
    }
}

/// A weight as the checkpoint stores it: a matrix [rows, cols] in row-major order, a vector being one row.
#[derive(Clone)]
pub struct StoredWeight {
    /// The name in the checkpoint, for messages and labels.
    pub name: String,
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
    /// Element `i` in storage order, widened to f64 without loss.
    pub fn to_f64(&self) -> Vec<f64> {
        self.to_f32().into_iter().map(f64::from).collect()
    }

    /// All elements in storage order, widened to f32 without loss.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.cols];
        self.widen(0, &mut values);
        values
    }

    /// Elements `first ..` in storage order, widened to f32 without loss, into the whole of `out`.
    pub fn widen(&self, first: usize, out: &mut [f32]) {
        let bytes = &self.blob.bytes()[first * self.dtype.size()..][..out.len() * self.dtype.size()];
        // Checkpoints are little-endian and need not be aligned: read byte groups, not casts.
        let (pairs, fours) = (bytes.as_chunks::<2>().0, bytes.as_chunks::<4>().0);
        match self.dtype {
            Dtype::F32 => out.iter_mut().zip(fours).for_each(|(y, b)| *y = f32::from_le_bytes(*b)),
            Dtype::F16 => out.iter_mut().zip(pairs).for_each(|(y, b)| *y = half::f16::from_le_bytes(*b).to_f32()),
            Dtype::Bf16 => out.iter_mut().zip(pairs).for_each(|(y, b)| *y = half::bf16::from_le_bytes(*b).to_f32()),
        }
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

/// A rectangle of a tensor: some rows, in order, and a range of columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Row ranges, ascending and not empty.
    pub rows: Vec<Range<usize>>,
    /// Columns.
    pub cols: Range<usize>,
}

impl Window {
    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.rows.iter().map(|r| r.len()).sum()
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.n_rows() * self.cols.len()
    }

    /// True when it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True when it holds all values of a matrix of this shape, in their order.
    pub(crate) fn is_all(&self, shape: [usize; 2]) -> bool {
        let next = self.rows.iter().try_fold(0, |next, rows| (rows.start == next).then_some(rows.end));
        self.cols == (0..shape[1]) && next == Some(shape[0])
    }

    pub(crate) fn assert_within(&self, shape: [usize; 2]) {
        let inside = |r: &Range<usize>, n: usize| r.start < r.end && r.end <= n;
        assert!(
            self.rows.iter().all(|r| inside(r, shape[0])) && inside(&self.cols, shape[1]),
            "{self:?} lies within {shape:?}"
        );
    }
}

/// A change of the values in a window. `values` hold one row, which every row of the window gets, or the whole window in
/// row-major order.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
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

/// How many numbers one tensor may hold on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A tensor that kernels read or write whole.
    pub whole: usize,
    /// One that is only ever visited some rows at a time: logits.
    pub in_parts: usize,
}

impl Limits {
    /// As large as memory allows.
    pub const NONE: Limits = Limits { whole: usize::MAX, in_parts: usize::MAX };
}

/// What kind of machine a device is, for messages, provenance and bug reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// `reference`, `cpu` or `gpu`.
    pub kind: &'static str,
    /// The adapter or processor in words.
    pub name: String,
    /// Graphics API and driver, or what does the arithmetic.
    pub detail: String,
    /// True for a GPU adapter that is really a program on the CPU.
    pub software: bool,
}

impl std::fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} ({})", self.kind, self.name, self.detail)
    }
}

/// Why a device cannot be had, or what went wrong on it.
#[derive(Clone, Debug, Error)]
pub enum DeviceError {
    /// No adapter answers.
    #[error(
        "no GPU adapter was found ({detail}); install a Vulkan, Metal or DirectX 12 driver (for a software one on Debian: apt install mesa-vulkan-drivers), or use --device cpu"
    )]
    NoAdapter {
        /// What the graphics API said.
        detail: String,
    },
    /// This build has no gpu device.
    #[error("this build of actscope has no gpu device (the cargo feature `gpu`); the cpu device computes the same")]
    NotBuilt,
    /// The adapter is there but gives no device.
    #[error("the GPU adapter {adapter:?} gives no device: {detail}; try --device cpu")]
    Request {
        /// The adapter's name.
        adapter: String,
        /// What the graphics API said.
        detail: String,
    },
    /// A weight that no buffer of this adapter can hold.
    #[error(
        "the weight {name:?} needs {bytes} bytes in one binding and this adapter binds at most {limit}; try --device cpu"
    )]
    TooLarge {
        /// The tensor's name.
        name: String,
        /// Bytes needed.
        bytes: u64,
        /// Bytes possible.
        limit: u64,
    },
    /// The device failed while it was working: out of memory, lost, or a fault in a kernel.
    #[error(
        "the GPU failed while running: {detail}; close other programs that use it, give it fewer or shorter texts, or use --device cpu"
    )]
    Fault {
        /// What the graphics API said.
        detail: String,
    },
}

/// The operations of GPT-2. Shapes are stated per method, asserted in each, and are right whenever the checkpoint passed
/// `weights.rs`. Operations return no `Result`: a fault of the device is kept and comes out of the next [`Device::read`].
pub trait Device {
    /// A matrix [rows, cols] on the device. Dropping it gives its memory back.
    type Tensor;
    /// A weight on the device, in whatever form its kernels want.
    type Weight;
    /// Values on their way to the host.
    type Staged;

    /// What this device is.
    fn info(&self) -> DeviceInfo;

    /// How large tensors may be here.
    fn limits(&self) -> Limits;

    /// Brings a weight to the device.
    ///
    /// # Errors
    /// [`DeviceError::TooLarge`] where the device cannot bind it.
    fn load(&self, weight: &StoredWeight) -> Result<Self::Weight, DeviceError>;

    /// [rows, cols] of a tensor.
    fn shape(&self, x: &Self::Tensor) -> [usize; 2];

    /// A tensor [rows, cols] whose values are whatever the memory held.
    fn empty(&self, rows: usize, cols: usize) -> Self::Tensor;

    /// `y[t] = table[ids[t]]`, table [N, D] -> [T, D].
    fn embed(&self, table: &Self::Weight, ids: &[u32]) -> Self::Tensor;

    /// `(x - mean) / sqrt(var + eps) * gain + bias` per row of x [T, D]; biased variance.
    fn layer_norm(&self, x: &Self::Tensor, gain: &Self::Weight, bias: &Self::Weight, eps: f64) -> Self::Tensor;

    /// `sqrt(var + eps)` per row: [T, D] -> [T, 1].
    fn layer_norm_scale(&self, x: &Self::Tensor, eps: f64) -> Self::Tensor;

    /// `(x - mean) / scale` per row: x [T, D], scale [T, 1] -> [T, D].
    fn layer_norm_normalize(&self, x: &Self::Tensor, scale: &Self::Tensor) -> Self::Tensor;

    /// `x * gain + bias` per column: [T, D] -> [T, D].
    fn gain_bias(&self, x: &Self::Tensor, gain: &Self::Weight, bias: &Self::Weight) -> Self::Tensor;

    /// `x . w + bias`: x [T, K], w [K, N] as Conv1D stores it, bias [1, N] -> [T, N].
    fn linear(&self, x: &Self::Tensor, w: &Self::Weight, bias: &Self::Weight) -> Self::Tensor;

    /// `f(x . w + bias)`: as [`Device::linear`] and [`Device::activation`], in one go where a device can.
    fn linear_activation(
        &self,
        x: &Self::Tensor,
        w: &Self::Weight,
        bias: &Self::Weight,
        f: Activation,
    ) -> Self::Tensor {
        self.activation(&self.linear(x, w, bias), f)
    }

    /// `a + x . w + bias`: as [`Device::linear`] and [`Device::add`], in one go where a device can.
    fn linear_add(&self, a: &Self::Tensor, x: &Self::Tensor, w: &Self::Weight, bias: &Self::Weight) -> Self::Tensor {
        self.add(a, &self.linear(x, w, bias))
    }

    /// Each head's own part of `z . w`: z [T, H d], w [H d, N] -> [T, H N], head by head.
    fn linear_by_head(&self, z: &Self::Tensor, w: &Self::Weight, n_head: usize) -> Self::Tensor;

    /// The parts of [`Device::linear_by_head`] added up, plus bias: [T, H N] -> [T, N].
    fn sum_heads(&self, parts: &Self::Tensor, bias: &Self::Weight, n_head: usize) -> Self::Tensor;

    /// Causal softmax attention of every text (`texts` are row ranges) in one go: qkv [T, 3D] -> z [T, D]. The pattern is
    /// never stored.
    fn attention(&self, qkv: &Self::Tensor, texts: &[Range<usize>], heads: Heads) -> Self::Tensor;

    /// `scale * q . k` of one text of P tokens, [`MASKED`] where the key comes after the query: -> [H P, P].
    fn attention_scores(&self, qkv: &Self::Tensor, text: Range<usize>, heads: Heads) -> Self::Tensor;

    /// Softmax of every row.
    fn attention_pattern(&self, scores: &Self::Tensor) -> Self::Tensor;

    /// `z[text] = pattern . v`, head by head: pattern [H P, P], qkv [T, 3D], z [T, D].
    fn attention_mix(
        &self,
        pattern: &Self::Tensor,
        qkv: &Self::Tensor,
        text: Range<usize>,
        heads: Heads,
        z: &mut Self::Tensor,
    );

    /// The activation function, element by element.
    fn activation(&self, x: &Self::Tensor, f: Activation) -> Self::Tensor;

    /// `a + b`, element by element.
    fn add(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor;

    /// `x[rows] . tableᵀ`: x [T, D], table [V, D] -> [rows, V].
    fn unembed(&self, x: &Self::Tensor, rows: Range<usize>, table: &Self::Weight) -> Self::Tensor;

    /// Changes a window of x in place.
    fn edit(&self, x: &mut Self::Tensor, window: &Window, edit: &Edit);

    /// Records a copy of a window, as it is at this point of the run.
    fn copy_out(&self, x: &Self::Tensor, window: &Window) -> Self::Staged;

    /// Lets everything recorded so far begin, copies included.
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

    /// The kernels that were recorded since this was last asked.
    fn kernels_run(&self) -> BTreeSet<&'static str> {
        BTreeSet::new()
    }
}

/// What a device found out about its machine and wants to know the next time. Nothing depends on it being kept.
pub trait Keep {
    /// What was kept under a name.
    fn get(&self, name: &str) -> Option<Vec<u8>>;

    /// Keeps a value, if that is possible.
    fn put(&self, name: &str, value: &[u8]);
}

/// Which device a person wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The GPU where there is a hardware adapter, else the CPU.
    #[default]
    Auto,
    /// The best adapter, even if it is a program on the CPU.
    Gpu,
    /// All cores, f32.
    Cpu,
    /// Plain loops in f64: slow and right.
    Reference,
}

/// Any of the three devices.
#[allow(missing_docs, clippy::large_enum_variant)] // the variants are named after their devices; there is one of it
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
        Choice::Reference => Ok(AnyDevice::Reference(reference::Reference)),
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
