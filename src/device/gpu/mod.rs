//! The device `gpu`: wgpu on Metal, Vulkan and DirectX 12, with the kernels of `shaders/`. Owns the choice of kernel
//! for each operation, and the parameters of its dispatch. Operations only record work. Only `read`, `settle`, timing,
//! autotuning and bounds checks wait for the device.
//! Read next: `kernels.rs` for the table of kernels, `encoder.rs` for recording and submitting, `buffers.rs` for
//! memory.

mod adapter;
mod attention;
pub mod autotune;
mod bind_groups;
#[cfg(feature = "mutants")]
mod bounds_check;
mod buffers;
mod encoder;
mod errors;
mod gradients;
pub mod kernels;
#[cfg(feature = "mutants")]
pub mod mutants;
mod pipeline_cache;
mod poll;
#[cfg(not(target_arch = "wasm32"))]
mod probe;
pub mod products;
mod timestamps;
pub mod unroll;

pub use adapter::{AdapterInfo, list as adapters, no_adapter};
pub use attention::Cache;
use attention::Qkv;
pub use buffers::{Tensor, Weight};
pub use timestamps::Span;

use super::host_pool::HostPool;
use super::{
    Activation, AdapterFilter, Change, Counters, Device, DeviceCache, DeviceError, DeviceInfo, Epilogue, Heads,
    LOGITS_CHUNK, Op, Operands, Queries, RowsOf, StoredWeight, TensorLimits, Window,
};
use autotune::Tuning;
use bind_groups::{BindGroups, Binding, PipelineKey};
use buffers::{Placed, Pool, Readback, Staging, WeightLayout};
use encoder::{Encoder, Variant};
use errors::ErrorSlot;
use kernels::{Family, Kernel};
use pipeline_cache::PipelineCache;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// The most workgroups that one dimension of a dispatch may have.
const MAX_GROUPS: usize = 65_535;

/// The target time of one submit, by the speed that autotuning measured. Windows resets a GPU that works for two seconds.
const SECONDS_OF_A_SUBMIT: f64 = 0.2;

/// After an error, how long to wait for a report of its cause, such as a lost device.
const PATIENCE: Duration = Duration::from_secs(1);

/// Storage bindings must begin at multiples of this many bytes.
const BINDING_STEP: usize = 256;

/// The device `gpu`.
#[derive(Debug)]
pub struct Gpu {
    info: DeviceInfo,
    family: Family,
    /// The subgroup size of the matrix kernels, where the adapter has cooperative matrices.
    matrices: Option<u32>,
    tuning: Tuning,
    device: wgpu::Device,
    queue: wgpu::Queue,
    max_binding: u64,
    max_buffer: u64,
    tensors: Arc<Pool>,
    staging: Arc<Pool>,
    readback: Readback,
    encoder: Encoder,
    bind_groups: BindGroups<PipelineKey>,
    /// The work of one submit at most, as [`Gpu::work`] counts it.
    most_work: f64,
    fault: ErrorSlot,
    rows_table: attention::RowsTable,
}

/// A recorded copy: the part of a staging buffer that will hold its values.
#[derive(Debug)]
pub struct Staged {
    staging: Arc<Staging>,
    at: u64,
    len: usize,
}

impl Gpu {
    /// Opens the best adapter; with `hardware_only`, no software adapter.
    ///
    /// # Errors
    /// [`DeviceError::NoAdapter`] or [`DeviceError::Request`].
    pub async fn open(hardware_only: bool) -> Result<Gpu, DeviceError> {
        Gpu::open_among(&AdapterFilter::default(), hardware_only).await
    }

    /// [`Gpu::open`] on the best of some adapters.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub async fn open_among(adapters: &AdapterFilter, hardware_only: bool) -> Result<Gpu, DeviceError> {
        Ok(Gpu::new(adapter::open(adapters, hardware_only, None).await?))
    }

    /// Opens the best adapter with the kernels of `family`.
    ///
    /// # Errors
    /// As [`Gpu::open`], and [`DeviceError::NoAdapter`] where the adapter cannot run these kernels.
    pub async fn open_as(family: Family) -> Result<Gpu, DeviceError> {
        Ok(Gpu::new(adapter::open(&AdapterFilter::default(), false, Some(family)).await?))
    }

    /// Opens the best adapter so that the device may choose `kernel`.
    ///
    /// # Errors
    /// As [`Gpu::open_as`].
    pub async fn open_for(kernel: &Kernel) -> Result<Gpu, DeviceError> {
        let gpu = Gpu::open_as(kernel.family.unwrap_or(Family::Tiles)).await?;
        if gpu.tuning.has(kernel) {
            return Ok(gpu);
        }
        match gpu.tiles().into_iter().find(|tile| tile.has(kernel)) {
            Some(tile) => Ok(Gpu { tuning: Tuning::all(tile), ..gpu }),
            None => Err(DeviceError::NoAdapter { detail: format!("{} cannot run {}", gpu.info, kernel.name) }),
        }
    }

    /// Opens the best adapter once with each family of kernels that it can run, and once with the matrix kernels where
    /// it has them, so that all kernels can be checked on one machine.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub async fn families() -> Result<Vec<Gpu>, DeviceError> {
        let mut all = vec![Gpu::open(false).await?];
        if all[0].family != Family::Tiles {
            all.push(Gpu::open_as(Family::Tiles).await?);
        }
        if all.iter().any(|gpu| gpu.matrices.is_some()) {
            all.push(Gpu::open_for(&kernels::LINEAR_MATRICES).await?);
        }
        Ok(all)
    }

    /// Opens the best adapter once with each tile that it can run.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub async fn with_each_tile() -> Result<Vec<Gpu>, DeviceError> {
        let mut all = Vec::new();
        for tile in Gpu::open_as(Family::Tiles).await?.tiles() {
            all.push(Gpu { tuning: Tuning::all(tile), ..Gpu::open_as(Family::Tiles).await? });
        }
        Ok(all)
    }

    /// Loads the pipelines that `cache` has for this adapter and driver. When the device is dropped, it stores them
    /// with those that it compiled. Only Vulkan has such pipelines; elsewhere this does nothing.
    pub async fn with_cached_pipelines(mut self, cache: Arc<dyn DeviceCache>) -> Gpu {
        self.encoder.pipeline_cache = PipelineCache::open(&self.device, cache).await;
        self
    }

    fn new(opened: adapter::Opened) -> Gpu {
        let adapter::Opened { adapter, device, queue, family, matrices } = opened;
        let fault = ErrorSlot::default();
        let on_error = fault.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| match e {
            wgpu::Error::OutOfMemory { .. } => on_error.record("it is out of memory"),
            e => on_error.record(&e.to_string()),
        }));
        // Dropping the device calls this too. The fault then has no reader.
        let on_lost = fault.clone();
        device.set_device_lost_callback(move |_, message| on_lost.lost(&message));
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let staging_usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let bind_groups = BindGroups::default();
        let info = adapter::describe(&adapter);
        Gpu {
            family,
            matrices,
            tuning: Tuning::DEFAULT,
            // Kernels compute indices in u32, and Metal passes them the size of a binding in a u32.
            max_binding: device.limits().max_storage_buffer_binding_size.min(1 << 31),
            // The pool rounds sizes up, to the next power of two at most.
            max_buffer: 1 << device.limits().max_buffer_size.max(1).ilog2(),
            tensors: Pool::new(&device, usage, "tensor", &bind_groups),
            readback: Readback::new(info.software),
            staging: Pool::new(&device, staging_usage, "staging", &bind_groups),
            encoder: Encoder::new(&device, &queue, bind_groups.clone()),
            most_work: SECONDS_OF_A_SUBMIT * autotune::SLOW,
            bind_groups,
            device,
            queue,
            fault,
            info,
            rows_table: attention::RowsTable::default(),
        }
    }

    /// Destroys the device, so that all further work fails, as after a reset of the GPU. For tests.
    #[doc(hidden)]
    pub fn destroy(&self) {
        self.device.destroy();
    }

    /// Returns `result`, or the recorded fault if there is one.
    fn outcome<T>(&self, result: Result<T, String>) -> Result<T, DeviceError> {
        if result.is_err() || self.fault.any() {
            // wgpu reports a lost device when it is polled and has no more work.
            let _ = self.device.poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(PATIENCE) });
        }
        self.fault.or(result)
    }

    /// A binding that has these rows of a tensor, and the number of its elements before the first row. Bindings can
    /// only begin at multiples of [`BINDING_STEP`].
    fn some_rows<'a>(&self, x: &'a Tensor, rows: &Range<usize>) -> (Binding<'a>, u32) {
        let start = 4 * rows.start * x.cols;
        let offset = start / BINDING_STEP * BINDING_STEP;
        let size = (4 * rows.end * x.cols - offset) as u64;
        (Binding { offset: offset as u64, size, ..all(x) }, ((start - offset) / 4) as u32)
    }

    /// Splits rows of a tensor with `cols` columns, so that each part fits one binding.
    fn bindable(&self, rows: Range<usize>, cols: usize) -> impl Iterator<Item = Range<usize>> {
        let step = ((self.max_binding as usize - BINDING_STEP) / (4 * cols)).max(1);
        let end = rows.end;
        rows.step_by(step).map(move |first| first..end.min(first + step))
    }

    /// The weight on the device, in the layout that a kernel reads.
    fn place<'a>(&self, w: &'a Weight, layout: WeightLayout) -> &'a Placed {
        // Where invocations broadcast, a product and its gradient read different layouts.
        w.place(&self.device, &self.queue, self.max_binding, layout, self.family == Family::Tiles)
    }

    /// The single buffer of a weight that its operations do not split by rows.
    fn uncut<'a>(&self, w: &'a Weight, layout: WeightLayout) -> Binding<'a> {
        let chunks = &self.place(w, layout).chunks;
        if chunks.len() > 1 || chunks[0].buffer.size() > self.max_binding {
            let (name, most) = (&w.name, self.max_binding);
            self.fault
                .record(&format!("the weight {name:?} is larger than one binding of this adapter ({most} bytes)"));
        }
        whole(&chunks[0].buffer)
    }

    /// A vector: a bias or a gain.
    fn vector<'a>(&self, w: &'a Weight) -> Binding<'a> {
        self.uncut(w, WeightLayout::Vector)
    }

    /// Whichever of two kernels belongs to this device's family.
    fn either(&self, tiles: &'static Kernel, broadcast: &'static Kernel) -> Variant {
        match self.family {
            Family::Tiles => tiles.into(),
            Family::Broadcast => broadcast.into(),
        }
    }

    /// A new buffer with these values from the host.
    fn uploaded<T: bytemuck::Pod>(&self, label: &str, values: &[T]) -> wgpu::Buffer {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes.len() as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.queue.write_buffer(&buffer, 0, bytes);
        buffer
    }
}

/// A whole tensor. The pool's buffer may be larger.
fn all(x: &Tensor) -> Binding<'_> {
    Binding { size: 4 * x.len() as u64, last_use: Some(x.last_use()), ..whole(x.buffer()) }
}

/// A whole buffer that is no tensor's.
fn whole(buffer: &wgpu::Buffer) -> Binding<'_> {
    Binding { buffer, offset: 0, size: buffer.size(), once: false, last_use: None }
}

/// A whole buffer that was uploaded for one dispatch.
fn once(buffer: &wgpu::Buffer) -> Binding<'_> {
    Binding { once: true, ..whole(buffer) }
}

/// The dimensions of a dispatch of at least `n` workgroups. It has a second dimension where one is too small. Kernels
/// number the workgroups row by row and ignore those after the last.
fn grid(n: usize) -> [u32; 3] {
    [n.min(MAX_GROUPS) as u32, n.div_ceil(MAX_GROUPS) as u32, 1]
}

/// Enough workgroups of 64 invocations for `n` elements.
fn elements(n: usize) -> [u32; 3] {
    grid(n.div_ceil(64))
}

impl Gpu {
    /// A new tensor. Its values are arbitrary.
    fn empty(&self, rows: usize, cols: usize) -> Tensor {
        Tensor::new(&self.tensors, rows, cols)
    }

    /// A new tensor of zeros.
    fn zeros(&self, rows: usize, cols: usize) -> Tensor {
        let y = self.empty(rows, cols);
        self.encoder.clear(y.buffer(), 4 * y.len() as u64);
        y
    }

    fn embed(&self, table: &Weight, ids: &[u32]) -> Tensor {
        let y = self.empty(ids.len(), table.cols);
        let ids_buffer = self.uploaded("ids", ids);
        let placed = self.place(table, WeightLayout::Rows);
        let variant = Variant::new(&kernels::EMBED, &[kernels::weight_override(placed.dtype)]);
        for chunk in &placed.chunks {
            let params = kernels::Embed {
                n_ids: ids.len() as u32,
                cols: table.cols as u32,
                w_stride: placed.stride as u32,
                first: chunk.rows.start as u32,
                n_rows: chunk.rows.len() as u32,
            };
            let bindings = [once(&ids_buffer), whole(&chunk.buffer), all(&y)];
            self.encoder.dispatch(variant, &params, &bindings, grid(ids.len()));
        }
        y
    }

    fn layer_norm(&self, x: &Tensor, gain: &Weight, bias: &Weight, eps: f64) -> Tensor {
        assert!(gain.cols == x.cols && bias.cols == x.cols);
        let y = self.empty(x.rows, x.cols);
        let params = kernels::LayerNorm { rows: x.rows as u32, cols: x.cols as u32, eps: eps as f32 };
        let bindings = [all(x), self.vector(gain), self.vector(bias), all(&y)];
        let variant = self.either(&kernels::LAYER_NORM, &kernels::LAYER_NORM_BROADCAST);
        self.encoder.dispatch(variant, &params, &bindings, grid(x.rows));
        y
    }

    fn layer_norm_scale(&self, x: &Tensor, eps: f64) -> Tensor {
        let scale = self.empty(x.rows, 1);
        let params = kernels::LayerNorm { rows: x.rows as u32, cols: x.cols as u32, eps: eps as f32 };
        let variant = self.either(&kernels::LAYER_NORM_SCALE, &kernels::LAYER_NORM_SCALE_BROADCAST);
        self.encoder.dispatch(variant, &params, &[all(x), all(&scale)], grid(x.rows));
        scale
    }

    fn layer_norm_normalize(&self, x: &Tensor, scale: &Tensor) -> Tensor {
        assert_eq!([scale.rows, scale.cols], [x.rows, 1]);
        let y = self.empty(x.rows, x.cols);
        let params = kernels::Rows { rows: x.rows as u32, cols: x.cols as u32 };
        let bindings = [all(x), all(scale), all(&y)];
        let variant = self.either(&kernels::LAYER_NORM_NORMALIZE, &kernels::LAYER_NORM_NORMALIZE_BROADCAST);
        self.encoder.dispatch(variant, &params, &bindings, grid(x.rows));
        y
    }

    fn gain_bias(&self, x: &Tensor, gain: &Weight, bias: &Weight) -> Tensor {
        assert!(gain.cols == x.cols && bias.cols == x.cols);
        let y = self.empty(x.rows, x.cols);
        let params = kernels::GainBias { n: x.len() as u32, cols: x.cols as u32 };
        let bindings = [all(x), self.vector(gain), self.vector(bias), all(&y)];
        self.encoder.dispatch((&kernels::GAIN_BIAS).into(), &params, &bindings, elements(x.len()));
        y
    }

    fn sum_heads(&self, parts: &Tensor, bias: &Weight, n_head: usize) -> Tensor {
        assert_eq!(parts.cols, n_head * bias.cols);
        let y = self.empty(parts.rows, bias.cols);
        let params = kernels::SumHeads { n: y.len() as u32, cols: y.cols as u32, n_head: n_head as u32 };
        let bindings = [all(parts), self.vector(bias), all(&y)];
        self.encoder.dispatch((&kernels::SUM_HEADS).into(), &params, &bindings, elements(y.len()));
        y
    }

    fn attention_pattern(&self, scores: &Tensor) -> Tensor {
        let pattern = self.empty(scores.rows, scores.cols);
        let params = kernels::Rows { rows: scores.rows as u32, cols: scores.cols as u32 };
        let bindings = [all(scores), all(&pattern)];
        let variant = self.either(&kernels::ATTENTION_PATTERN, &kernels::ATTENTION_PATTERN_BROADCAST);
        self.encoder.dispatch(variant, &params, &bindings, grid(scores.rows));
        pattern
    }

    fn activation(&self, x: &Tensor, f: Activation) -> Tensor {
        let y = self.empty(x.rows, x.cols);
        let variant = Variant::new(&kernels::ACTIVATION, &[kernels::function_override(f)]);
        let params = kernels::Elements { n: x.len() as u32 };
        self.encoder.dispatch(variant, &params, &[all(x), all(&y)], elements(x.len()));
        y
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        assert_eq!([a.rows, a.cols], [b.rows, b.cols]);
        let y = self.empty(a.rows, a.cols);
        let params = kernels::Elements { n: a.len() as u32 };
        self.encoder.dispatch((&kernels::ADD).into(), &params, &[all(a), all(b), all(&y)], elements(a.len()));
        y
    }

    fn unembed(&self, x: &Tensor, table: &Weight) -> Tensor {
        assert_eq!(x.cols, table.cols);
        let y = self.empty(x.rows, table.rows);
        for rows in self.bindable(0..x.rows, table.rows) {
            self.unembed_part(x, table, &y, rows);
        }
        y
    }

    fn gather_rows(&self, x: &[&Tensor], parts: &[RowsOf]) -> Tensor {
        let cols = x[0].cols;
        assert!(x.iter().all(|x| x.cols == cols), "rows of one length");
        let y = self.empty(parts.iter().map(|(_, rows)| rows.len()).sum(), cols);
        let mut at = 0;
        // Rows that follow one another in the same tensor are one part.
        for same in parts.chunk_by(|(of, rows), (next, more)| of == next && rows.end == more.start) {
            let rows = same[0].1.start..same[same.len() - 1].1.end;
            let n = rows.len();
            self.copy_rows(x[same[0].0], rows, &y, at);
            at += n;
        }
        y
    }

    /// Copies rows of x to the rows of y from `at` on, by dispatches, which unlike copies do not end the compute pass.
    fn copy_rows(&self, x: &Tensor, rows: Range<usize>, y: &Tensor, at: usize) {
        for part in self.bindable(rows.clone(), x.cols) {
            let first = at + part.start - rows.start;
            let (source, first_col) = self.some_rows(x, &part);
            let (target, y_first) = self.some_rows(y, &(first..first + part.len()));
            let (n, stride) = ((part.len() * x.cols) as u32, x.cols as u32);
            let params =
                kernels::CopyWindow { n, first_col, cols: stride, x_stride: stride, y_first, y_stride: stride };
            self.copy(source, &params, target);
        }
    }

    fn copy(&self, source: Binding<'_>, params: &kernels::CopyWindow, target: Binding<'_>) {
        self.encoder.dispatch((&kernels::COPY_WINDOW).into(), params, &[source, target], elements(params.n as usize));
    }

    /// Three numbers for each chunk of the columns.
    fn argmax(&self, logits: &Tensor) -> Tensor {
        let chunks = logits.cols.div_ceil(LOGITS_CHUNK);
        let y = self.empty(logits.rows, 3 * chunks);
        for rows in self.bindable(0..logits.rows, logits.cols) {
            let (source, x_first) = self.some_rows(logits, &rows);
            let (target, y_first) = self.some_rows(&y, &rows);
            let n = rows.len() * chunks;
            let params = kernels::Argmax {
                n: n as u32,
                cols: logits.cols as u32,
                chunks: chunks as u32,
                chunk: LOGITS_CHUNK as u32,
                x_first,
                y_first,
            };
            let variant = self.either(&kernels::ARGMAX, &kernels::ARGMAX_BROADCAST);
            self.encoder.dispatch(variant, &params, &[source, target], grid(n));
        }
        y
    }

    fn edit(&self, x: &Tensor, window: &Window, change: &Change) -> Tensor {
        window.assert_within([x.rows, x.cols]);
        let y = self.empty(x.rows, x.cols);
        self.copy_rows(x, 0..x.rows, &y, 0);
        let (kind, factor, values): (u32, f32, &[f32]) = match change {
            Change::Zero => (0, 0.0, &[0.0]),
            Change::Scale(factor) => (1, *factor, &[0.0]),
            Change::Add(values) => (2, 0.0, values),
            Change::Replace(values) => (3, 0.0, values),
        };
        let width = window.n_cols();
        // Values of more bytes than one binding has are uploaded with the rows that they are for.
        let in_parts = size_of_val(values) as u64 > self.max_binding;
        let all_values = (!in_parts).then(|| self.uploaded("edit values", values));
        let mut rows_before = 0;
        for rows in window.rows.iter().flat_map(|rows| self.bindable(rows.clone(), x.cols)) {
            let (target, before) = self.some_rows(&y, &rows);
            let (buffer, n_values, first_value) = match &all_values {
                Some(all_values) => (all_values.clone(), values.len(), rows_before * width),
                None => {
                    let part = &values[rows_before * width..][..rows.len() * width];
                    (self.uploaded("edit values", part), part.len(), 0)
                }
            };
            for (cols, cols_before) in window.col_ranges() {
                let n = rows.len() * cols.len();
                let params = kernels::Edit {
                    n: n as u32,
                    first_col: before + cols.start as u32,
                    cols: cols.len() as u32,
                    x_stride: x.cols as u32,
                    kind,
                    factor,
                    n_values: n_values as u32,
                    first_value: (first_value + cols_before) as u32,
                    values_stride: width as u32,
                };
                let bindings = [once(&buffer), target];
                self.encoder.dispatch((&kernels::EDIT).into(), &params, &bindings, elements(n));
            }
            rows_before += rows.len();
        }
        y
    }
}

impl Gpu {
    /// Records one operation.
    fn record(&self, op: &Op, Operands { tensors: x, weights: w, cache }: Operands<'_, Gpu>) -> Tensor {
        match op {
            Op::Embed { ids } => self.embed(w[0], ids),
            Op::LayerNorm { eps } => self.layer_norm(x[0], w[0], w[1], *eps),
            Op::LayerNormScale { eps } => self.layer_norm_scale(x[0], *eps),
            Op::LayerNormNormalize {} => self.layer_norm_normalize(x[0], x[1]),
            Op::GainBias {} => self.gain_bias(x[0], w[0], w[1]),
            Op::Linear {} => self.product(x[0], w[0], w[1], Epilogue::None),
            Op::LinearActivation { f } => self.product(x[0], w[0], w[1], Epilogue::Activation(*f)),
            Op::LinearAdd {} => self.product(x[1], w[0], w[1], Epilogue::Add(x[0])),
            Op::LinearOfNorm { eps, f } => self.product_of_norm(x[0], [w[0], w[1]], [w[2], w[3]], *eps, *f),
            Op::LinearByHead { n_head } => self.product_by_head(x[0], w[0], *n_head),
            Op::SumHeads { n_head } => self.sum_heads(x[0], w[0], *n_head),
            Op::Attention { texts, heads } => self.attention(Qkv::new(x[0], cache), texts, *heads),
            Op::AttentionScores { text, heads } => self.attention_scores(Qkv::new(x[0], cache), text, *heads),
            Op::AttentionPattern {} => self.attention_pattern(x[0]),
            Op::AttentionMix { text, heads } => self.attention_mix(x[0], Qkv::new(x[1], cache), text, *heads),
            Op::Activation { f } => self.activation(x[0], *f),
            Op::Add {} => self.add(x[0], x[1]),
            Op::Unembed {} => self.unembed(x[0], w[0]),
            Op::Argmax {} => self.argmax(x[0]),
            Op::GatherRows { parts } => self.gather_rows(x, parts),
            Op::Edit { window, change } => self.edit(x[0], window, change),
            Op::LayerNormGradient { eps } => self.layer_norm_gradient(x[0], x[1], w[0], *eps),
            Op::LayerNormScaleGradient {} => self.layer_norm_scale_gradient(x[0], x[1], x[2]),
            Op::LayerNormNormalizeScaleGradient {} => self.layer_norm_normalize_scale_gradient(x[0], x[1], x[2]),
            Op::GainBiasGradient {} => self.gain_bias_gradient(x[0], w[0]),
            Op::LinearByHeadGradient { n_head } => self.linear_by_head_gradient(x[0], w[0], *n_head),
            Op::SumHeadsGradient { n_head } => self.sum_heads_gradient(x[0], *n_head),
            Op::ActivationGradient { f } => self.activation_gradient(x[0], x[1], *f),
            Op::AttentionPatternGradient {} => self.attention_pattern_gradient(x[0], x[1]),
            Op::AttentionMixGradient { text, heads } => self.attention_mix_gradient(x[0], x[1], text, *heads),
            Op::AttentionMixValuesGradient { text, heads } => {
                self.attention_mix_values_gradient(x[0], x[1], text, *heads)
            }
            Op::AttentionScoresGradient { text, heads } => self.attention_scores_gradient(x[0], x[1], text, *heads),
        }
    }
}

/// A rough number of floating-point operations: those of products, and some for each element of a result, since other
/// operations are limited by memory.
fn work(op: &Op, Operands { tensors: x, weights: w, .. }: Operands<'_, Gpu>, y: &Tensor) -> f64 {
    const OF_AN_ELEMENT: usize = 64;
    let steps = match op {
        Op::Linear {} | Op::LinearActivation { .. } | Op::LinearAdd {} => 2 * w[0].rows,
        Op::LinearOfNorm { .. } => 2 * w[2].rows,
        Op::LinearByHead { n_head } => 2 * w[0].rows / n_head,
        Op::Unembed {} | Op::LinearByHeadGradient { .. } => 2 * w[0].cols,
        Op::Attention { texts, .. } => 4 * texts.iter().map(|text| text.n_keys).max().unwrap_or(0),
        Op::AttentionScores { heads, .. } => 2 * x[0].cols / (3 * heads.n_head),
        Op::AttentionMixGradient { heads, .. } => 2 * x[0].cols / heads.n_head,
        Op::AttentionMix { text, .. }
        | Op::AttentionMixValuesGradient { text, .. }
        | Op::AttentionScoresGradient { text, .. } => 2 * text.n_keys,
        _ => 0,
    };
    (steps + OF_AN_ELEMENT) as f64 * y.len() as f64
}

impl Device for Gpu {
    type Tensor = Tensor;
    type Weight = Weight;
    type Cache = Cache;
    type Staged = Staged;

    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn kernels(&self) -> Vec<String> {
        let mine = kernels::ALL.iter().filter(|kernel| self.family.has(kernel) && self.tuning.has(kernel));
        mine.map(|kernel| kernel.name.to_string()).collect()
    }

    fn take_kernels_run(&self) -> BTreeSet<&'static str> {
        self.encoder.take_kernels_run()
    }

    fn take_counters(&self) -> Counters {
        self.encoder.take_counters()
    }

    fn host_memory(&self) -> &Arc<HostPool> {
        &self.readback.memory
    }

    fn tensor_limits(&self) -> TensorLimits {
        let whole = self.max_binding.min(self.max_buffer) as usize / 4;
        TensorLimits { whole, in_parts: self.max_buffer as usize / 4 }
    }

    fn logit_rows_per_pass(&self) -> usize {
        products::FEW_ROWS
    }

    fn load(&self, weight: &StoredWeight) -> Result<Weight, DeviceError> {
        Weight::new(weight, self.max_binding, &self.bind_groups)
    }

    fn shape(&self, x: &Tensor) -> [usize; 2] {
        [x.rows, x.cols]
    }

    fn upload(&self, [rows, cols]: [usize; 2], values: Vec<f32>) -> Tensor {
        assert_eq!(values.len(), rows * cols);
        let x = self.empty(rows, cols);
        // Only recorded work may write a pooled buffer.
        let from = self.uploaded("upload", &values);
        self.encoder.copy(&from, 0, 4 * values.len() as u64, x.buffer(), 0);
        x
    }

    fn run(&self, op: &Op, operands: Operands<'_, Gpu>) -> Tensor {
        let y = self.record(op, operands);
        self.encoder.add_work(work(op, operands, &y), self.most_work);
        y
    }

    fn new_cache(&self, capacities: &[usize], n_embd: usize, _heads: Heads) -> Cache {
        Cache::new(self, capacities, n_embd)
    }

    fn append(&self, cache: &mut Cache, qkv: &Tensor, texts: &[Queries]) {
        cache.append(self, qkv, texts);
    }

    fn copy_out(&self, x: &Tensor, window: &Window) -> Staged {
        window.assert_within([x.rows, x.cols]);
        let (staging, mut at) = self.encoder.staging(window.len(), &self.staging);
        let staged = Staged { staging: staging.clone(), at, len: window.len() };
        for rows in &window.rows {
            if window.cols == [0..x.cols] {
                // Whole rows are contiguous, so a copy is enough.
                let part = 4 * (rows.len() * x.cols) as u64;
                self.encoder.copy_out(x, 4 * (rows.start * x.cols) as u64, part, staging.buffer(), at);
                at += part;
                continue;
            }
            for rows in self.bindable(rows.clone(), x.cols) {
                let (source, before) = self.some_rows(x, &rows);
                let gathered = self.empty(rows.len(), window.n_cols());
                for (cols, cols_before) in window.col_ranges() {
                    let params = kernels::CopyWindow {
                        n: (rows.len() * cols.len()) as u32,
                        first_col: before + cols.start as u32,
                        cols: cols.len() as u32,
                        x_stride: x.cols as u32,
                        y_first: cols_before as u32,
                        y_stride: gathered.cols as u32,
                    };
                    self.copy(source, &params, all(&gathered));
                }
                let part = 4 * gathered.len() as u64;
                self.encoder.copy_out(&gathered, 0, part, staging.buffer(), at);
                at += part;
            }
        }
        staged
    }

    fn submit(&self) {
        self.encoder.submit();
    }

    /// A submit has a fixed cost, and in a browser a round trip. So this submits only if half of `Gpu::most_work` is recorded.
    /// Submits then tend to end where blocks end.
    fn submit_if_enough(&self) -> bool {
        let is_enough = self.encoder.work() >= 0.5 * self.most_work;
        if is_enough {
            self.submit();
        }
        is_enough
    }

    async fn settle(&self, running: usize) -> Result<(), DeviceError> {
        self.outcome(self.encoder.settle(running).await)
    }

    async fn read(&self, staged: Staged) -> Result<Vec<f32>, DeviceError> {
        self.outcome(staged.staging.read(&self.device, &self.readback, staged.at, staged.len).await)
    }
}
