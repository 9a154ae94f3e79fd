//! Records dispatches and copies in order, and submits them. Owns the command encoding, the buffer of all parameters,
//! the counters, and the pipelines, which are compiled at their first use. Knows no operation of GPT-2.
//!
//! A copy between two dispatches ends a compute pass, which costs several command buffers on Metal and a wait elsewhere.
//! So copies to staging buffers run after all dispatches of their submit ([`Encoder::copy_out`]).
//!
//! Parameters lie in 256-byte slots of one uniform buffer, which is bound with a dynamic offset and written once per
//! submit. (If two dispatches of a submit shared one slot, both would read the value written last. Immediates do not
//! exist in browsers.)
//! Read next: `kernels.rs` for the kernels, `bind_groups.rs` and `pipeline_cache.rs` for the caches.

use super::bind_groups::{BindGroups, Binding, LastUse, MOST_SETTINGS, PipelineKey};
use super::buffers::{Pool, Staging, Tensor};
use super::kernels::{Access, Kernel, Params};
use super::pipeline_cache::PipelineCache;
use super::timestamps::Timestamps;
use crate::device::Counters;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of a slot of parameters.
const SLOT: usize = 256;

/// Slots of the buffer of parameters: the most dispatches of one submit.
const SLOTS: usize = 1024;

/// Bytes of tensors that wait for their copy at the end of a submit. Beyond this they are copied at once, so that
/// their memory can be used again.
const MOST_WAITING: u64 = 128 << 20;

/// Bytes of a staging buffer for several tensors. A buffer is mapped and copied to the host as a whole, so larger ones would
/// keep the host waiting.
const MOST_AT_ONCE: u64 = 32 << 20;

/// A kernel with the constants it is compiled for.
#[derive(Clone, Copy)]
pub(super) struct Variant {
    kernel: &'static Kernel,
    /// The values of its overrides, then those of its generated constants, in the order of its table entry.
    settings: [u32; MOST_SETTINGS],
}

impl Variant {
    /// `settings` as the kernel's table entry names them: overrides first, then constants.
    pub(super) fn new(kernel: &'static Kernel, settings: &[u32]) -> Variant {
        assert_eq!(kernel.overrides.len() + kernel.consts.len(), settings.len(), "{}", kernel.name);
        let mut all = [0; MOST_SETTINGS];
        all[..settings.len()].copy_from_slice(settings);
        Variant { kernel, settings: all }
    }

    fn key(self) -> PipelineKey {
        (self.kernel.name, self.settings)
    }
}

impl From<&'static Kernel> for Variant {
    fn from(kernel: &'static Kernel) -> Variant {
        Variant::new(kernel, &[])
    }
}

#[derive(Debug)]
pub(super) struct Pipeline {
    /// The kernel's name.
    name: &'static str,
    layout: wgpu::BindGroupLayout,
    pipeline: wgpu::ComputePipeline,
    /// True if it was recorded since the last call of [`Encoder::take_kernels_run`].
    run: AtomicBool,
}

#[derive(Debug)]
enum Command {
    Dispatch { pipeline: Arc<Pipeline>, bindings: wgpu::BindGroup, slot: u32, groups: [u32; 3] },
    Copy { from: wgpu::Buffer, start: u64, to: wgpu::Buffer, at: u64, bytes: u64 },
    Clear { buffer: wgpu::Buffer, bytes: u64 },
}

/// Records work and submits it.
#[derive(Debug)]
pub(super) struct Encoder {
    device: wgpu::Device,
    queue: wgpu::Queue,
    /// The parameters of all dispatches of a submit.
    params: wgpu::Buffer,
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    /// Pipelines that earlier processes compiled, if the device was opened with a cache and the backend supports it.
    pub(super) pipeline_cache: Option<PipelineCache>,
    bind_groups: BindGroups<PipelineKey>,
    recorded: Mutex<Recorded>,
    /// Submits that have not been awaited yet, in order.
    running: Mutex<VecDeque<Submitted>>,
    counters: Mutex<Counters>,
}

/// Work that is recorded and not yet submitted.
#[derive(Debug, Default)]
struct Recorded {
    commands: Vec<Command>,
    slots: Vec<u8>,
    staging: Vec<Arc<Staging>>,
    timestamps: Option<Timestamps>,
    /// The copies of [`Encoder::copy_out`], each with the tensor that it reads, whose memory stays as it is until then.
    copies_out: Vec<(Command, Tensor)>,
    /// Bytes of these tensors. A tensor counts once if its copies follow one another.
    waiting: u64,
    /// The work that was recorded, as `Gpu::run` counts it.
    work: f64,
    /// How many passes have ended.
    passes: u64,
    /// Dispatches that wait for an earlier one of their pass.
    barriers: usize,
}

impl Recorded {
    /// Ends the current pass, and records the waiting copies after it.
    fn copy_now(&mut self) {
        self.waiting = 0;
        if !self.copies_out.is_empty() {
            self.passes += 1;
        }
        // The tensors are dropped here. The next owners of their memory write it in later commands.
        self.commands.extend(self.copies_out.drain(..).map(|(copy, _)| copy));
    }

    /// Counts a barrier if a dispatch with these bindings must wait for an earlier one of its pass.
    fn count_barrier(&mut self, kernel: &Kernel, bindings: &[Binding<'_>]) {
        let mut waits = false;
        for (access, part) in kernel.bindings.iter().zip(bindings) {
            let bind = |last_use: &LastUse| last_use.bind(self.passes + 1, *access == Access::Write);
            waits |= part.last_use.is_some_and(bind);
        }
        self.barriers += usize::from(waits);
    }
}

/// A submit, and the channel that says that it is done.
#[derive(Debug)]
struct Submitted {
    index: wgpu::SubmissionIndex,
    done: futures_channel::oneshot::Receiver<()>,
}

impl Encoder {
    pub(super) fn new(device: &wgpu::Device, queue: &wgpu::Queue, bind_groups: BindGroups<PipelineKey>) -> Encoder {
        let params = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("params"),
            size: (SLOT * SLOTS) as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Encoder {
            device: device.clone(),
            queue: queue.clone(),
            params,
            pipelines: Mutex::default(),
            pipeline_cache: None,
            bind_groups,
            recorded: Mutex::default(),
            running: Mutex::default(),
            counters: Mutex::default(),
        }
    }

    /// Sets the timestamps that compute passes write. Returns the previous ones.
    pub(super) fn set_timestamps(&self, timestamps: Option<Timestamps>) -> Option<Timestamps> {
        std::mem::replace(&mut self.recorded.lock().timestamps, timestamps)
    }

    /// Records one dispatch of `groups` workgroups.
    pub(super) fn dispatch<P: Params>(&self, variant: Variant, params: &P, parts: &[Binding<'_>], groups: [u32; 3]) {
        assert_eq!(variant.kernel.params, P::FIELDS, "{}: these are another kernel's parameters", variant.kernel.name);
        assert_eq!(variant.kernel.bindings.len(), parts.len(), "{}", variant.kernel.name);
        let pipeline = self.pipeline(variant);
        pipeline.run.store(true, Ordering::Relaxed);
        let bindings = self.bind_group(variant, &pipeline, parts);
        let mut recorded = self.recorded.lock();
        if recorded.slots.len() == SLOT * SLOTS {
            // The staging buffers stay open, because further copies of this run may still fill them.
            self.send(&mut recorded);
        }
        recorded.count_barrier(variant.kernel, parts);
        let slot = recorded.slots.len();
        recorded.slots.extend_from_slice(bytemuck::bytes_of(params));
        recorded.slots.resize(slot + SLOT, 0);
        recorded.commands.push(Command::Dispatch { pipeline, bindings, slot: slot as u32, groups });
    }

    /// The cached bind group of a kernel and its bindings, or a new one.
    fn bind_group(&self, variant: Variant, pipeline: &Pipeline, bindings: &[Binding<'_>]) -> wgpu::BindGroup {
        self.bind_groups.get(variant.key(), bindings, || {
            let size = 4 * variant.kernel.params.len() as u64;
            let of_params = Binding { buffer: &self.params, offset: 0, size, once: false, last_use: None };
            let resources = std::iter::once(&of_params).chain(bindings);
            let entries: Vec<_> = (0..).zip(resources).map(|(binding, part)| entry(binding, part)).collect();
            #[cfg(feature = "mutants")]
            let notes = super::bounds_check::notes();
            #[cfg(feature = "mutants")]
            let entries = {
                let number = entries.len() as u32;
                let more = notes
                    .as_ref()
                    .map(|notes| wgpu::BindGroupEntry { binding: number, resource: notes.as_entire_binding() });
                entries.into_iter().chain(more).collect::<Vec<_>>()
            };
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(variant.kernel.name),
                layout: &pipeline.layout,
                entries: &entries,
            })
        })
    }

    /// Records a copy of bytes from one buffer to another. It ends the current pass.
    pub(super) fn copy(&self, from: &wgpu::Buffer, start: u64, bytes: u64, to: &wgpu::Buffer, at: u64) {
        let (from, to) = (from.clone(), to.clone());
        let mut recorded = self.recorded.lock();
        recorded.commands.push(Command::Copy { from, start, to, at, bytes });
        recorded.passes += 1;
    }

    /// Records a copy of bytes of a tensor to a staging buffer. It runs after the dispatches of the same submit.
    pub(super) fn copy_out(&self, x: &Tensor, start: u64, bytes: u64, to: &wgpu::Buffer, at: u64) {
        let mut recorded = self.recorded.lock();
        let copy = Command::Copy { from: x.buffer().clone(), start, to: to.clone(), at, bytes };
        // The row ranges of one window come one after another.
        if recorded.copies_out.last().is_none_or(|(_, last)| last.buffer() != x.buffer()) {
            recorded.waiting += x.buffer().size();
        }
        recorded.copies_out.push((copy, x.clone()));
        if recorded.waiting > MOST_WAITING {
            recorded.copy_now();
        }
    }

    /// Adds to the recorded work, and submits once the total is at least `most`. (The staging buffers stay
    /// open, because further copies of this run may still fill them.)
    pub(super) fn add_work(&self, work: f64, most: f64) {
        let mut recorded = self.recorded.lock();
        recorded.work += work;
        if recorded.work >= most {
            let index = self.send(&mut recorded);
            self.sent(index);
        }
    }

    /// The work that is recorded and not yet submitted.
    pub(super) fn work(&self) -> f64 {
        self.recorded.lock().work
    }

    /// What was recorded and submitted since the last call.
    pub(super) fn take_counters(&self) -> Counters {
        std::mem::take(&mut self.counters.lock())
    }

    /// Records that the first bytes of a buffer become zero. It ends the current pass.
    pub(super) fn clear(&self, buffer: &wgpu::Buffer, bytes: u64) {
        let mut recorded = self.recorded.lock();
        recorded.commands.push(Command::Clear { buffer: buffer.clone(), bytes });
        recorded.passes += 1;
    }

    /// Reserves room for `len` values in a staging buffer. Returns the buffer and their first byte. If the last buffer is
    /// full, it takes a new one from the pool, as large as all before it together, so that a submit with much to read has
    /// few buffers to map.
    pub(super) fn staging(&self, len: usize, pool: &Arc<Pool>) -> (Arc<Staging>, u64) {
        let open = &mut self.recorded.lock().staging;
        if let Some((last, at)) = open.last().and_then(|last| Some((last.clone(), last.reserve(len)?))) {
            return (last, at);
        }
        let so_far: u64 = open.iter().map(|staging| staging.buffer().size()).sum();
        let new = Staging::new(pool, so_far.min(MOST_AT_ONCE).max(4 * len as u64));
        let at = new.reserve(len).expect("a new staging buffer has the room it was made for");
        open.push(new.clone());
        (new, at)
    }

    /// Submits everything recorded and requests the mapping of the staging buffers that it fills.
    pub(super) fn submit(&self) {
        let mut recorded = self.recorded.lock();
        if recorded.commands.is_empty() && recorded.staging.is_empty() {
            return; // copies that wait have a staging buffer
        }
        let index = self.send(&mut recorded);
        for staging in recorded.staging.drain(..) {
            staging.map(index.clone());
        }
        drop(recorded);
        self.sent(index);
    }

    /// Notes a submit, so that [`Encoder::settle`] can wait for it.
    fn sent(&self, index: wgpu::SubmissionIndex) {
        let (tell, done) = futures_channel::oneshot::channel();
        self.queue.on_submitted_work_done(move || {
            // There is no receiver if the run was dropped.
            let _ = tell.send(());
        });
        self.running.lock().push_back(Submitted { index, done });
    }

    fn send(&self, recorded: &mut Recorded) -> wgpu::SubmissionIndex {
        recorded.copy_now();
        recorded.work = 0.0;
        recorded.passes += 1;
        let barriers = std::mem::take(&mut recorded.barriers);
        let commands = std::mem::take(&mut recorded.commands);
        let slots = std::mem::take(&mut recorded.slots);
        if !slots.is_empty() {
            self.queue.write_buffer(&self.params, 0, &slots);
        }
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let timestamps = recorded.timestamps.as_ref();
        // Each submit has a command buffer for barriers, and one for what the queue was told to write.
        let mut counted = Counters { submits: 1, command_buffers: 2, barriers, ..Counters::default() };
        let mut rest = commands.as_slice();
        while let Some(first) = rest.first() {
            let Command::Dispatch { pipeline, .. } = first else {
                counted.command_buffers += 1;
                loop {
                    match rest.first() {
                        Some(Command::Copy { from, start, to, at, bytes }) => {
                            encoder.copy_buffer_to_buffer(from, *start, to, *at, *bytes);
                        }
                        Some(Command::Clear { buffer, bytes }) => encoder.clear_buffer(buffer, 0, Some(*bytes)),
                        Some(Command::Dispatch { .. }) | None => break,
                    }
                    counted.copies += 1;
                    rest = &rest[1..];
                }
                continue;
            };
            counted.command_buffers += 2;
            counted.passes += 1;
            let timestamp_writes = timestamps.and_then(|timestamps| timestamps.pass(pipeline.name));
            let mut pass =
                encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { timestamp_writes, ..Default::default() });
            while let Some(Command::Dispatch { pipeline, bindings, slot, groups: [x, y, z] }) = rest.first() {
                pass.set_pipeline(&pipeline.pipeline);
                pass.set_bind_group(0, bindings, &[*slot]);
                pass.dispatch_workgroups(*x, *y, *z);
                counted.dispatches += 1;
                rest = &rest[1..];
                if timestamps.is_some_and(|timestamps| timestamps.by_kernel) {
                    break;
                }
            }
        }
        if let Some(timestamps) = timestamps {
            timestamps.submitted();
        }
        self.counters.lock().add(counted);
        self.queue.submit([encoder.finish()])
    }

    /// Waits until at most `running` submits are unfinished.
    pub(super) async fn settle(&self, running: usize) -> Result<(), String> {
        loop {
            let earliest = {
                let mut all = self.running.lock();
                if all.len() <= running { None } else { all.pop_front() }
            };
            let Some(Submitted { index, done }) = earliest else { return Ok(()) };
            super::poll::wait(&self.device, index)?;
            // The sender is dropped when the device is lost. A fault is recorded then.
            let _ = done.await;
        }
    }

    /// The kernels that were recorded since the last call.
    pub(super) fn take_kernels_run(&self) -> BTreeSet<&'static str> {
        let pipelines = self.pipelines.lock();
        pipelines
            .iter()
            .filter(|(_, pipeline)| pipeline.run.swap(false, Ordering::Relaxed))
            .map(|((name, ..), _)| *name)
            .collect()
    }

    pub(super) fn pipeline(&self, variant: Variant) -> Arc<Pipeline> {
        if let Some(pipeline) = self.pipelines.lock().get(&variant.key()) {
            return pipeline.clone();
        }
        // Not under the lock, so that several threads may compile.
        let compiled = Arc::new(compile(&self.device, self.pipeline_cache.as_ref(), variant));
        self.pipelines.lock().entry(variant.key()).or_insert(compiled).clone()
    }
}

fn entry<'a>(binding: u32, part: &Binding<'a>) -> wgpu::BindGroupEntry<'a> {
    let Binding { buffer, offset, size, .. } = *part;
    let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size: NonZeroU64::new(size) });
    wgpu::BindGroupEntry { binding, resource }
}

/// True if the kernel is compiled with wgpu's checks of indices and loops: only for mutants, which may use any index, and for
/// kernels under a bounds check. The checks cost up to a third of a kernel's speed. In a browser they are always on.
fn checked(kernel: &Kernel) -> bool {
    #[cfg(feature = "mutants")]
    return super::mutants::is_injected(kernel.name) || super::bounds_check::notes().is_some();
    #[cfg(not(feature = "mutants"))]
    {
        let _ = kernel;
        false
    }
}

fn compile(device: &wgpu::Device, cache: Option<&PipelineCache>, variant: Variant) -> Pipeline {
    let kernel = variant.kernel;
    let params_size = NonZeroU64::new(4 * kernel.params.len() as u64);
    let of_params = wgpu::BindingType::Buffer {
        ty: wgpu::BufferBindingType::Uniform,
        has_dynamic_offset: true,
        min_binding_size: params_size,
    };
    #[cfg(feature = "mutants")]
    let notes = super::bounds_check::notes().map(|_| &Access::Write);
    #[cfg(not(feature = "mutants"))]
    let notes = None;
    let storage = kernel.bindings.iter().chain(notes).map(|access| wgpu::BindingType::Buffer {
        ty: wgpu::BufferBindingType::Storage { read_only: *access == Access::Read },
        has_dynamic_offset: false,
        min_binding_size: None,
    });
    let entries: Vec<_> = (0..)
        .zip(std::iter::once(of_params).chain(storage))
        .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty,
            count: None,
        })
        .collect();
    let label = Some(kernel.name);
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label,
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let mut named = kernel.overrides.iter().chain(kernel.consts).map(|(name, _)| *name).zip(variant.settings);
    let overrides: Vec<_> =
        named.by_ref().take(kernel.overrides.len()).map(|(name, value)| (name, f64::from(value))).collect();
    let consts: Vec<_> = named.collect();
    let text = kernel.module(&consts);
    #[cfg(feature = "mutants")]
    let text = super::mutants::applied(kernel.name, text);
    #[cfg(feature = "mutants")]
    let text =
        if super::bounds_check::notes().is_some() { super::bounds_check::instrumented(kernel, &text) } else { text };
    let source = wgpu::ShaderSource::Wgsl(super::unroll::unrolled(&text).into());
    let checks =
        if checked(kernel) { wgpu::ShaderRuntimeChecks::checked() } else { wgpu::ShaderRuntimeChecks::unchecked() };
    // SAFETY: the kernels do nothing that the checks would catch. Every loop counts up to a bound, every divisor is at
    // least 1, and `tests/bounds.rs` runs every kernel on shapes of all kinds and checks that no index leaves its
    // binding.
    let module = unsafe { device.create_shader_module_trusted(wgpu::ShaderModuleDescriptor { label, source }, checks) };
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label,
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some(kernel.file),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &overrides,
            // Every kernel writes its workgroup memory before it reads it.
            zero_initialize_workgroup_memory: false,
        },
        cache: cache.map(PipelineCache::of_driver),
    });
    Pipeline { name: kernel.name, layout, pipeline, run: AtomicBool::new(false) }
}
