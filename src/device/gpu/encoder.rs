//! What is to run: dispatches and copies in order, their parameters in one uniform arena, and pipelines made when they are
//! first used. Owns the encoding and the submit; knows no operation of GPT-2.
//!
//! Parameters lie in 256-byte slots of one buffer, bound with a dynamic offset and written once per submit. (One uniform
//! rewritten between two dispatches of an encoder would show both the last value; immediates do not exist in browsers.)

use super::bind_groups::{BindGroups, Binding};
use super::buffers::Staging;
use super::kernels::{Access, Kernel, Params};
use super::pipeline_cache::PipelineCache;
use super::timestamps::Clock;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU64;
use std::rc::Rc;

const SLOT: usize = 256;
const SLOTS: usize = 1024;

/// A kernel with the constants it is compiled for.
#[derive(Clone, Copy)]
pub(super) struct Variant {
    kernel: &'static Kernel,
    /// The values of its overrides, then those of its generated constants, in the order of its table entry.
    settings: [u32; MOST_SETTINGS],
}

/// The most overrides and constants that a kernel has.
const MOST_SETTINGS: usize = 8;

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

/// A [`Variant`] by name and settings.
pub(super) type PipelineKey = (&'static str, [u32; MOST_SETTINGS]);

pub(super) struct Pipeline {
    layout: wgpu::BindGroupLayout,
    pipeline: wgpu::ComputePipeline,
    /// Whether it was recorded since somebody last asked.
    run: Cell<bool>,
}

enum Command {
    Dispatch { pipeline: Rc<Pipeline>, bindings: wgpu::BindGroup, slot: u32, groups: [u32; 3] },
    Copy { from: wgpu::Buffer, start: u64, to: wgpu::Buffer, at: u64, bytes: u64 },
}

/// Work that is recorded and not yet submitted.
pub(super) struct Recording {
    device: wgpu::Device,
    queue: wgpu::Queue,
    arena: wgpu::Buffer,
    pipelines: RefCell<HashMap<PipelineKey, Rc<Pipeline>>>,
    /// Where pipelines are kept from run to run, where they are.
    pub(super) pipeline_cache: Option<PipelineCache>,
    bind_groups: BindGroups<PipelineKey>,
    commands: RefCell<Vec<Command>>,
    slots: RefCell<Vec<u8>>,
    staging: RefCell<Vec<Rc<Staging>>>,
    /// Notes when the device works, where somebody asked.
    pub(super) clock: RefCell<Option<Clock>>,
    /// Submits that nobody has waited for, in order.
    running: RefCell<VecDeque<Submitted>>,
}

/// A submit, and the word that it is done.
struct Submitted {
    index: wgpu::SubmissionIndex,
    done: futures_channel::oneshot::Receiver<()>,
}

impl Recording {
    pub(super) fn new(device: &wgpu::Device, queue: &wgpu::Queue, bind_groups: BindGroups<PipelineKey>) -> Recording {
        let arena = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("params"),
            size: (SLOT * SLOTS) as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Recording {
            device: device.clone(),
            queue: queue.clone(),
            arena,
            pipelines: RefCell::default(),
            pipeline_cache: None,
            bind_groups,
            commands: RefCell::default(),
            slots: RefCell::default(),
            staging: RefCell::default(),
            clock: RefCell::default(),
            running: RefCell::default(),
        }
    }

    /// Records one dispatch of `groups` workgroups.
    pub(super) fn dispatch<P: Params>(&self, variant: Variant, params: &P, bindings: &[Binding<'_>], groups: [u32; 3]) {
        assert_eq!(variant.kernel.params, P::FIELDS, "{}: these are another kernel's parameters", variant.kernel.name);
        assert_eq!(variant.kernel.bindings.len(), bindings.len(), "{}", variant.kernel.name);
        if self.slots.borrow().len() == SLOT * SLOTS {
            // The staging buffers stay open: what is being recorded may go on filling them.
            self.send();
        }
        let pipeline = self.pipeline(variant);
        pipeline.run.set(true);
        let bindings = self.bind_group(variant, &pipeline, bindings);
        let mut slots = self.slots.borrow_mut();
        let slot = slots.len() as u32;
        slots.extend_from_slice(bytemuck::bytes_of(params));
        slots.resize(slot as usize + SLOT, 0);
        self.commands.borrow_mut().push(Command::Dispatch { pipeline, bindings, slot, groups });
    }

    /// The kept bind group of a kernel and its bindings, or a new one.
    fn bind_group(&self, variant: Variant, pipeline: &Pipeline, bindings: &[Binding<'_>]) -> wgpu::BindGroup {
        self.bind_groups.get(variant.key(), bindings, || {
            let size = 4 * variant.kernel.params.len() as u64;
            let of_params = Binding { buffer: &self.arena, offset: 0, size, once: false };
            let resources = std::iter::once(&of_params).chain(bindings);
            let entries: Vec<_> = (0..).zip(resources).map(|(binding, part)| entry(binding, part)).collect();
            #[cfg(feature = "mutants")]
            let notes = super::audit::notes();
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

    /// Records a copy into a staging buffer; gives back where it will be.
    pub(super) fn stage(&self, from: &wgpu::Buffer, start: u64, bytes: u64, to: &Rc<Staging>, at: u64) {
        self.commands.borrow_mut().push(Command::Copy {
            from: from.clone(),
            start,
            to: to.buffer().clone(),
            at,
            bytes,
        });
    }

    /// A staging buffer with `bytes` reserved from the given offset on. `make` makes a new one where the last is full.
    pub(super) fn staging(&self, bytes: u64, make: impl FnOnce() -> Rc<Staging>) -> (Rc<Staging>, u64) {
        let mut open = self.staging.borrow_mut();
        if let Some((last, at)) = open.last().and_then(|last| Some((last.clone(), last.reserve(bytes)?))) {
            return (last, at);
        }
        let new = make();
        let at = new.reserve(bytes).expect("a new staging buffer has the room it was made for");
        open.push(new.clone());
        (new, at)
    }

    /// Sends everything recorded to the device and asks for the maps of what it will have copied.
    pub(super) fn submit(&self) {
        if self.commands.borrow().is_empty() && self.staging.borrow().is_empty() {
            return;
        }
        let index = self.send();
        for staging in self.staging.borrow_mut().drain(..) {
            staging.map(index.clone());
        }
        let (tell, done) = futures_channel::oneshot::channel();
        // Nobody listens once the run is given up.
        self.queue.on_submitted_work_done(move || {
            let _ = tell.send(());
        });
        self.running.borrow_mut().push_back(Submitted { index, done });
    }

    fn send(&self) -> wgpu::SubmissionIndex {
        let commands = std::mem::take(&mut *self.commands.borrow_mut());
        let slots = std::mem::take(&mut *self.slots.borrow_mut());
        if !slots.is_empty() {
            self.queue.write_buffer(&self.arena, 0, &slots);
        }
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let clock = self.clock.borrow();
        let mut rest = commands.as_slice();
        while let Some(first) = rest.first() {
            if let Command::Copy { from, start, to, at, bytes } = first {
                encoder.copy_buffer_to_buffer(from, *start, to, *at, *bytes);
                rest = &rest[1..];
                continue;
            }
            let timestamp_writes = clock.as_ref().and_then(Clock::pass);
            let mut pass =
                encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { timestamp_writes, ..Default::default() });
            while let Some(Command::Dispatch { pipeline, bindings, slot, groups: [x, y, z] }) = rest.first() {
                pass.set_pipeline(&pipeline.pipeline);
                pass.set_bind_group(0, bindings, &[*slot]);
                pass.dispatch_workgroups(*x, *y, *z);
                rest = &rest[1..];
            }
        }
        if let Some(clock) = &*clock {
            clock.submitted();
        }
        self.queue.submit([encoder.finish()])
    }

    /// Waits until at most `running` submits are not done.
    pub(super) async fn settle(&self, running: usize) -> Result<(), String> {
        loop {
            let earliest = {
                let mut all = self.running.borrow_mut();
                if all.len() <= running { None } else { all.pop_front() }
            };
            let Some(Submitted { index, done }) = earliest else { return Ok(()) };
            wait(&self.device, index)?;
            // Dropped unsent when the device is lost; the fault that was kept says so.
            let _ = done.await;
        }
    }

    /// The kernels that were recorded since this was last asked.
    pub(super) fn kernels_run(&self) -> BTreeSet<&'static str> {
        let pipelines = self.pipelines.borrow();
        pipelines.iter().filter(|(_, pipeline)| pipeline.run.take()).map(|((name, ..), _)| *name).collect()
    }

    pub(super) fn pipeline(&self, variant: Variant) -> Rc<Pipeline> {
        let key = variant.key();
        if let Some(pipeline) = self.pipelines.borrow().get(&key) {
            return pipeline.clone();
        }
        let pipeline = Rc::new(compile(&self.device, self.pipeline_cache.as_ref(), variant));
        self.pipelines.borrow_mut().insert(key, pipeline.clone());
        pipeline
    }
}

/// In a browser the event loop calls back when a submit is done; elsewhere somebody has to wait for the device, and it is
/// us. What the callbacks bring is awaited by the caller either way.
#[cfg_attr(target_arch = "wasm32", allow(unused_variables))]
pub(super) fn wait(device: &wgpu::Device, index: wgpu::SubmissionIndex) -> Result<(), String> {
    #[cfg(not(target_arch = "wasm32"))]
    device.poll(wgpu::PollType::Wait { submission_index: Some(index), timeout: None }).map_err(|e| e.to_string())?;
    Ok(())
}

fn entry<'a>(binding: u32, part: &Binding<'a>) -> wgpu::BindGroupEntry<'a> {
    let Binding { buffer, offset, size, .. } = *part;
    let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size: NonZeroU64::new(size) });
    wgpu::BindGroupEntry { binding, resource }
}

/// Whether a kernel is compiled with checks of its indices and bounds on its loops: only one with an injected fault, which may
/// index anything. The checks cost up to a third of a kernel's speed. In a browser they are always on.
fn checked(kernel: &Kernel) -> bool {
    #[cfg(feature = "mutants")]
    return super::mutants::is_injected(kernel.name) || super::audit::notes().is_some();
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
    let notes = super::audit::notes().map(|_| &Access::Write);
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
    let text = if super::audit::notes().is_some() { super::audit::instrumented(kernel, &text) } else { text };
    let source = wgpu::ShaderSource::Wgsl(super::unroll::unrolled(&text).into());
    let checks =
        if checked(kernel) { wgpu::ShaderRuntimeChecks::checked() } else { wgpu::ShaderRuntimeChecks::unchecked() };
    // SAFETY: what the checks would catch must not happen. Every loop of our kernels counts up to a bound, every divisor is at
    // least 1, and `tests/bounds.rs` runs every kernel on shapes of all kinds and sees that no index leaves its binding.
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
    Pipeline { layout, pipeline, run: Cell::new(false) }
}
