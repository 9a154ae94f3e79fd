//! The GPU device: wgpu on Metal, Vulkan and DirectX 12, with the kernels of `shaders/`. Owns which kernel an operation
//! takes, and its parameters. Nothing here waits for the device but `read`, `settle` and the trial of tiles.
//! Read next: `kernels.rs` for the table of kernels, `record.rs` for how work is sent, `memory.rs` for buffers.

mod adapter;
mod attention;
#[cfg(feature = "mutants")]
mod audit;
pub mod autotune;
mod bind_groups;
mod buffers;
mod encoder;
mod errors;
pub mod kernels;
#[cfg(feature = "mutants")]
pub mod mutants;
mod pipeline_cache;
#[cfg(not(target_arch = "wasm32"))]
mod probe;
pub mod products;
mod timestamps;
pub mod unroll;

pub use adapter::{AdapterInfo, list as adapters};
pub use buffers::{Tensor, Weight};
pub use timestamps::Span;

use super::{Activation, Device, DeviceError, DeviceInfo, Edit, Heads, Keep, Limits, StoredWeight, Window};
use attention::{HeadShape, Qkv};
use autotune::Tuning;
use bind_groups::{BindGroups, Binding};
use buffers::{Layout, Placed, Pool, Staging};
use encoder::{PipelineKey, Recording, Variant};
use errors::Fault;
use kernels::{Epilogue, Family, Kernel, TextRows};
use pipeline_cache::PipelineCache;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// The most workgroups that one dimension of a dispatch may have.
const MAX_GROUPS: usize = 65_535;

/// Storage bindings begin at multiples of this many bytes.
const BINDING_STEP: usize = 256;

/// The device `gpu`.
pub struct Gpu {
    info: DeviceInfo,
    family: Family,
    /// Lanes of the subgroups that multiply matrices, where the adapter has those.
    matrices: Option<u32>,
    tuning: Tuning,
    device: wgpu::Device,
    queue: wgpu::Queue,
    max_binding: u64,
    max_buffer: u64,
    tensors: Rc<Pool>,
    staging: Rc<Pool>,
    recording: Recording,
    bind_groups: BindGroups<PipelineKey>,
    fault: Fault,
    rows_table: attention::RowsTable,
}

/// Values on their way: where in a staging buffer they will be.
pub struct Staged {
    staging: Rc<Staging>,
    at: u64,
    len: usize,
}

impl Gpu {
    /// Opens the best adapter; with `hardware_only`, none that is a program on the CPU.
    ///
    /// # Errors
    /// [`DeviceError::NoAdapter`] or [`DeviceError::Request`].
    pub async fn open(hardware_only: bool) -> Result<Gpu, DeviceError> {
        Ok(Gpu::new(adapter::open(hardware_only, None).await?))
    }

    /// Opens the best adapter to run a certain family of kernels on it.
    ///
    /// # Errors
    /// As [`Gpu::open`]; where the adapter cannot run them, [`DeviceError::NoAdapter`].
    pub async fn open_as(family: Family) -> Result<Gpu, DeviceError> {
        Ok(Gpu::new(adapter::open(false, Some(family)).await?))
    }

    /// Opens the best adapter so that a certain kernel is among those it may choose.
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

    /// The best adapter once with each family of kernels that it can run, and with its matrices, so that all can be checked on
    /// one machine.
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

    /// The best adapter once with each tile configuration that it has.
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

    /// The device with the pipelines that `keep` has for this adapter and driver. When the device is dropped, those that it
    /// compiled anew are kept too. Only where the backend hands pipelines out, which is Vulkan.
    pub async fn keeping_pipelines(mut self, keep: Rc<dyn Keep>) -> Gpu {
        self.recording.pipeline_cache = PipelineCache::open(&self.device, keep).await;
        self
    }

    fn new(opened: adapter::Opened) -> Gpu {
        let adapter::Opened { adapter, device, queue, family, matrices } = opened;
        let fault = Fault::default();
        let on_error = fault.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| match e {
            wgpu::Error::OutOfMemory { .. } => on_error.keep("it is out of memory"),
            e => on_error.keep(&e.to_string()),
        }));
        // Dropping the device "loses" it too; then nobody asks any more.
        let on_lost = fault.clone();
        device.set_device_lost_callback(move |_, message| on_lost.lost(&message));
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let staging_usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let bind_groups = BindGroups::default();
        Gpu {
            info: adapter::describe(&adapter),
            family,
            matrices,
            tuning: Tuning::DEFAULT,
            // Kernels count in u32, and Metal tells them a binding's size in one.
            max_binding: device.limits().max_storage_buffer_binding_size.min(1 << 31),
            // Pooled sizes are rounded up, at most to a power of two.
            max_buffer: 1 << device.limits().max_buffer_size.max(1).ilog2(),
            tensors: Pool::new(&device, usage, "tensor", &bind_groups),
            staging: Pool::new(&device, staging_usage, "staging", &bind_groups),
            recording: Recording::new(&device, &queue, bind_groups.clone()),
            bind_groups,
            device,
            queue,
            fault,
            rows_table: attention::RowsTable::default(),
        }
    }

    /// Ends the device, as a driver does that resets its GPU: whatever runs on it fails from here on. For tests of that.
    #[doc(hidden)]
    pub fn destroy(&self) {
        self.device.destroy();
    }

    /// A result, unless something went wrong up to here.
    fn outcome<T>(&self, result: Result<T, String>) -> Result<T, DeviceError> {
        if result.is_err() || self.fault.any() {
            // That the device is lost is only told to those who poll.
            let _ = self.device.poll(wgpu::PollType::Poll);
        }
        self.fault.or(result)
    }

    /// Some rows of a tensor, and how many numbers of the binding come before them: bindings begin at coarse steps.
    fn some_rows<'a>(&self, x: &'a Tensor, rows: &Range<usize>) -> (Binding<'a>, u32) {
        let start = 4 * rows.start * x.cols;
        let offset = start / BINDING_STEP * BINDING_STEP;
        let size = (4 * rows.end * x.cols - offset) as u64;
        (Binding { buffer: x.buffer(), offset: offset as u64, size, once: false }, ((start - offset) / 4) as u32)
    }

    /// Cuts rows so that each part of a tensor of `cols` columns fits one binding.
    fn bindable(&self, rows: Range<usize>, cols: usize) -> impl Iterator<Item = Range<usize>> {
        let step = ((self.max_binding as usize - BINDING_STEP) / (4 * cols)).max(1);
        let end = rows.end;
        rows.step_by(step).map(move |first| first..end.min(first + step))
    }

    /// A weight as an operation's kernel reads it.
    fn place<'a>(&self, w: &'a Weight, layout: Layout) -> &'a Placed {
        w.place(&self.device, &self.queue, self.max_binding, layout)
    }

    /// The one buffer of a weight that operations do not cut.
    fn uncut<'a>(&self, w: &'a Weight, layout: Layout) -> Binding<'a> {
        let chunks = &self.place(w, layout).chunks;
        if chunks.len() > 1 || chunks[0].buffer.size() > self.max_binding {
            let (name, most) = (&w.name, self.max_binding);
            self.fault.keep(&format!("the weight {name:?} is larger than one binding of this adapter ({most} bytes)"));
        }
        whole(&chunks[0].buffer)
    }

    /// A vector: a bias or a gain.
    fn vector<'a>(&self, w: &'a Weight) -> Binding<'a> {
        self.uncut(w, Layout::Vector)
    }

    /// The kernel of this device's family.
    fn either(&self, tiles: &'static Kernel, broadcast: &'static Kernel) -> Variant {
        match self.family {
            Family::Tiles => tiles.into(),
            Family::Broadcast => broadcast.into(),
        }
    }

    /// Small numbers from the host, in a buffer that only this run uses.
    fn uploaded<T: bytemuck::Pod>(&self, label: &str, values: &[T]) -> wgpu::Buffer {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes.len() as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.queue.write_buffer(&buffer, 0, bytes);
        buffer
    }
}

/// A tensor, without what the pool's buffer has beyond it.
fn all(x: &Tensor) -> Binding<'_> {
    Binding { buffer: x.buffer(), offset: 0, size: 4 * x.len() as u64, once: false }
}

fn whole(buffer: &wgpu::Buffer) -> Binding<'_> {
    Binding { buffer, offset: 0, size: buffer.size(), once: false }
}

/// What was uploaded for one dispatch.
fn once(buffer: &wgpu::Buffer) -> Binding<'_> {
    Binding { once: true, ..whole(buffer) }
}

/// `n` workgroups in one line, folded where one dimension does not hold them; kernels number them row by row and ignore
/// those beyond the last.
fn grid(n: usize) -> [u32; 3] {
    [n.min(MAX_GROUPS) as u32, n.div_ceil(MAX_GROUPS) as u32, 1]
}

/// Enough workgroups of 64 lanes for `n` elements.
fn elements(n: usize) -> [u32; 3] {
    grid(n.div_ceil(64))
}

impl Device for Gpu {
    type Tensor = Tensor;
    type Weight = Weight;
    type Staged = Staged;

    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn kernels(&self) -> Vec<String> {
        let mine = kernels::ALL.iter().filter(|kernel| self.family.has(kernel) && self.tuning.has(kernel));
        mine.map(|kernel| kernel.name.to_string()).collect()
    }

    fn kernels_run(&self) -> BTreeSet<&'static str> {
        self.recording.kernels_run()
    }

    fn limits(&self) -> Limits {
        let whole = self.max_binding.min(self.max_buffer) as usize / 4;
        Limits { whole, in_parts: self.max_buffer as usize / 4 }
    }

    fn load(&self, weight: &StoredWeight) -> Result<Weight, DeviceError> {
        Weight::new(weight, self.max_binding, &self.bind_groups)
    }

    fn shape(&self, x: &Tensor) -> [usize; 2] {
        [x.rows, x.cols]
    }

    fn empty(&self, rows: usize, cols: usize) -> Tensor {
        Tensor::new(&self.tensors, rows, cols)
    }

    fn embed(&self, table: &Weight, ids: &[u32]) -> Tensor {
        let y = self.empty(ids.len(), table.cols);
        let ids_buffer = self.uploaded("ids", ids);
        let placed = self.place(table, Layout::Rows);
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
            self.recording.dispatch(variant, &params, &bindings, grid(ids.len()));
        }
        y
    }

    fn layer_norm(&self, x: &Tensor, gain: &Weight, bias: &Weight, eps: f64) -> Tensor {
        assert!(gain.cols == x.cols && bias.cols == x.cols);
        let y = self.empty(x.rows, x.cols);
        let params = kernels::LayerNorm { rows: x.rows as u32, cols: x.cols as u32, eps: eps as f32 };
        let bindings = [all(x), self.vector(gain), self.vector(bias), all(&y)];
        let variant = self.either(&kernels::LAYER_NORM, &kernels::LAYER_NORM_BROADCAST);
        self.recording.dispatch(variant, &params, &bindings, grid(x.rows));
        y
    }

    fn layer_norm_scale(&self, x: &Tensor, eps: f64) -> Tensor {
        let scale = self.empty(x.rows, 1);
        let params = kernels::LayerNorm { rows: x.rows as u32, cols: x.cols as u32, eps: eps as f32 };
        let variant = self.either(&kernels::LAYER_NORM_SCALE, &kernels::LAYER_NORM_SCALE_BROADCAST);
        self.recording.dispatch(variant, &params, &[all(x), all(&scale)], grid(x.rows));
        scale
    }

    fn layer_norm_normalize(&self, x: &Tensor, scale: &Tensor) -> Tensor {
        assert_eq!([scale.rows, scale.cols], [x.rows, 1]);
        let y = self.empty(x.rows, x.cols);
        let params = kernels::LayerNormNormalize { rows: x.rows as u32, cols: x.cols as u32 };
        let bindings = [all(x), all(scale), all(&y)];
        let variant = self.either(&kernels::LAYER_NORM_NORMALIZE, &kernels::LAYER_NORM_NORMALIZE_BROADCAST);
        self.recording.dispatch(variant, &params, &bindings, grid(x.rows));
        y
    }

    fn gain_bias(&self, x: &Tensor, gain: &Weight, bias: &Weight) -> Tensor {
        assert!(gain.cols == x.cols && bias.cols == x.cols);
        let y = self.empty(x.rows, x.cols);
        let params = kernels::GainBias { n: x.len() as u32, cols: x.cols as u32 };
        let bindings = [all(x), self.vector(gain), self.vector(bias), all(&y)];
        self.recording.dispatch((&kernels::GAIN_BIAS).into(), &params, &bindings, elements(x.len()));
        y
    }

    fn linear(&self, x: &Tensor, w: &Weight, bias: &Weight) -> Tensor {
        self.product(x, w, bias, None, Epilogue::None)
    }

    fn linear_activation(&self, x: &Tensor, w: &Weight, bias: &Weight, f: Activation) -> Tensor {
        self.product(x, w, bias, None, Epilogue::Activation(f))
    }

    fn linear_add(&self, a: &Tensor, x: &Tensor, w: &Weight, bias: &Weight) -> Tensor {
        assert_eq!([a.rows, a.cols], [x.rows, w.cols]);
        self.product(x, w, bias, Some(a), Epilogue::Add)
    }

    fn linear_by_head(&self, z: &Tensor, w: &Weight, n_head: usize) -> Tensor {
        self.product_by_head(z, w, n_head)
    }

    fn sum_heads(&self, parts: &Tensor, bias: &Weight, n_head: usize) -> Tensor {
        assert_eq!(parts.cols, n_head * bias.cols);
        let y = self.empty(parts.rows, bias.cols);
        let params = kernels::SumHeads { n: y.len() as u32, cols: y.cols as u32, n_head: n_head as u32 };
        let bindings = [all(parts), self.vector(bias), all(&y)];
        self.recording.dispatch((&kernels::SUM_HEADS).into(), &params, &bindings, elements(y.len()));
        y
    }

    fn attention(&self, qkv: &Tensor, texts: &[Range<usize>], heads: Heads) -> Tensor {
        let z = self.empty(qkv.rows, qkv.cols / 3);
        let rows: Vec<TextRows> = texts.iter().map(whole_text).collect();
        self.attend(Qkv::of(qkv), &rows, head_shape(z.cols, heads), &z);
        z
    }

    fn attention_scores(&self, qkv: &Tensor, text: Range<usize>, heads: Heads) -> Tensor {
        self.scores(Qkv::of(qkv), whole_text(&text), head_shape(qkv.cols / 3, heads))
    }

    fn attention_pattern(&self, scores: &Tensor) -> Tensor {
        let pattern = self.empty(scores.rows, scores.cols);
        let params = kernels::AttentionPattern { rows: scores.rows as u32, cols: scores.cols as u32 };
        let bindings = [all(scores), all(&pattern)];
        let variant = self.either(&kernels::ATTENTION_PATTERN, &kernels::ATTENTION_PATTERN_BROADCAST);
        self.recording.dispatch(variant, &params, &bindings, grid(scores.rows));
        pattern
    }

    fn attention_mix(&self, pattern: &Tensor, qkv: &Tensor, text: Range<usize>, heads: Heads, z: &mut Tensor) {
        let heads = head_shape(z.cols, heads);
        self.mix(pattern, qkv, 2 * z.cols, whole_text(&text), heads, z);
    }

    fn activation(&self, x: &Tensor, f: Activation) -> Tensor {
        let y = self.empty(x.rows, x.cols);
        let variant = Variant::new(&kernels::ACTIVATION, &[kernels::function_override(f)]);
        let params = kernels::Activation { n: x.len() as u32 };
        self.recording.dispatch(variant, &params, &[all(x), all(&y)], elements(x.len()));
        y
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Tensor {
        assert_eq!([a.rows, a.cols], [b.rows, b.cols]);
        let y = self.empty(a.rows, a.cols);
        let params = kernels::Add { n: a.len() as u32 };
        self.recording.dispatch((&kernels::ADD).into(), &params, &[all(a), all(b), all(&y)], elements(a.len()));
        y
    }

    fn unembed(&self, x: &Tensor, rows: Range<usize>, table: &Weight) -> Tensor {
        assert_eq!(x.cols, table.cols);
        let y = self.empty(rows.len(), table.rows);
        for part in self.bindable(0..rows.len(), table.rows) {
            self.unembed_part(x, rows.start + part.start..rows.start + part.end, table, &y, part.clone());
        }
        y
    }

    fn edit(&self, x: &mut Tensor, window: &Window, edit: &Edit) {
        window.assert_within([x.rows, x.cols]);
        let (kind, factor, values): (u32, f32, &[f32]) = match edit {
            Edit::Zero => (0, 0.0, &[0.0]),
            Edit::Scale(factor) => (1, *factor, &[0.0]),
            Edit::Add(values) => (2, 0.0, values),
            Edit::Replace(values) => (3, 0.0, values),
        };
        let values_buffer = self.uploaded("edit values", values);
        let mut first_value = 0;
        for rows in window.rows.iter().flat_map(|rows| self.bindable(rows.clone(), x.cols)) {
            let (target, before) = self.some_rows(x, &rows);
            let n = rows.len() * window.cols.len();
            let params = kernels::Edit {
                n: n as u32,
                first_col: before + window.cols.start as u32,
                cols: window.cols.len() as u32,
                x_stride: x.cols as u32,
                kind,
                factor,
                n_values: values.len() as u32,
                first_value,
            };
            self.recording.dispatch((&kernels::EDIT).into(), &params, &[once(&values_buffer), target], elements(n));
            first_value += n as u32;
        }
    }

    fn copy_out(&self, x: &Tensor, window: &Window) -> Staged {
        window.assert_within([x.rows, x.cols]);
        let bytes = 4 * window.len() as u64;
        let (staging, mut at) = self.recording.staging(bytes, || Staging::new(&self.staging, bytes));
        let staged = Staged { staging: staging.clone(), at, len: window.len() };
        for rows in &window.rows {
            if window.cols == (0..x.cols) {
                // Whole rows lie together: no kernel is needed.
                let part = 4 * (rows.len() * x.cols) as u64;
                self.recording.stage(x.buffer(), 4 * (rows.start * x.cols) as u64, part, &staging, at);
                at += part;
                continue;
            }
            for rows in self.bindable(rows.clone(), x.cols) {
                let (source, before) = self.some_rows(x, &rows);
                let gathered = self.empty(rows.len(), window.cols.len());
                let params = kernels::CopyOut {
                    n: gathered.len() as u32,
                    first_col: before + window.cols.start as u32,
                    cols: window.cols.len() as u32,
                    x_stride: x.cols as u32,
                };
                let bindings = [source, all(&gathered)];
                self.recording.dispatch((&kernels::COPY_OUT).into(), &params, &bindings, elements(gathered.len()));
                let part = 4 * gathered.len() as u64;
                self.recording.stage(gathered.buffer(), 0, part, &staging, at);
                at += part;
            }
        }
        staged
    }

    fn submit(&self) {
        self.recording.submit();
    }

    async fn settle(&self, running: usize) -> Result<(), DeviceError> {
        self.outcome(self.recording.settle(running).await)
    }

    async fn read(&self, staged: Staged) -> Result<Vec<f32>, DeviceError> {
        self.outcome(staged.staging.read(&self.device, staged.at, staged.len).await)
    }
}

/// A text whose queries see its own keys alone.
fn whole_text(text: &Range<usize>) -> TextRows {
    let (row, n) = (text.start as u32, text.len() as u32);
    TextRows { q_row: row, n_query: n, position: 0, k_row: row, n_key: n }
}

fn head_shape(n_embd: usize, heads: Heads) -> HeadShape {
    HeadShape { n_head: heads.n_head, head_dim: n_embd / heads.n_head, scale: heads.scale as f32 }
}
