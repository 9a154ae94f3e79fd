//! Finds the adapters of this machine, chooses one, and opens a device on it. Owns the wgpu instance and the rule that
//! says which family of kernels suits an adapter. Read next: `mod.rs`, which uses the device.

use super::kernels::Family;
use crate::device::{AdapterFilter, DeviceError, DeviceInfo, DeviceKind};

/// An adapter as `actscope devices` shows it.
#[derive(Clone, Debug)]
pub struct AdapterInfo {
    /// Name and driver.
    pub info: DeviceInfo,
    /// `Vulkan`, `Metal`, `Dx12`, ...
    pub backend: String,
    /// `DiscreteGpu`, `IntegratedGpu`, `Cpu`, ...
    pub device_type: String,
    /// The largest size of a storage binding, in bytes.
    pub max_binding: u64,
    /// The largest size of a buffer, in bytes.
    pub max_buffer: u64,
}

/// The adapters that count, the best one first.
async fn adapters(among: &AdapterFilter) -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    if let Some(backends) = &among.backends {
        descriptor.backends = wgpu::Backends::from_comma_list(backends);
    }
    let mut adapters = wgpu::Instance::new(descriptor).enumerate_adapters(wgpu::Backends::all()).await;
    if let Some(wanted) = &among.name {
        adapters.retain(|a| a.get_info().name.to_lowercase().contains(&wanted.to_lowercase()));
    }
    adapters.sort_by_key(|adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    adapters
}

pub(super) fn describe(adapter: &wgpu::Adapter) -> DeviceInfo {
    let info = adapter.get_info();
    DeviceInfo {
        kind: DeviceKind::Gpu,
        // Browsers keep the name to themselves, so that pages cannot recognise a machine by it.
        name: if info.name.is_empty() { "the browser's GPU".into() } else { info.name.clone() },
        detail: [format!("{:?}", info.backend), info.driver, info.driver_info].join(" ").trim().to_string(),
        software: info.device_type == wgpu::DeviceType::Cpu,
    }
}

/// The adapters that count. The first one is the best, which [`Gpu::open`](super::Gpu::open) takes.
pub async fn list(among: &AdapterFilter) -> Vec<AdapterInfo> {
    let describe_one = |adapter: &wgpu::Adapter| AdapterInfo {
        info: describe(adapter),
        backend: format!("{:?}", adapter.get_info().backend),
        device_type: format!("{:?}", adapter.get_info().device_type),
        max_binding: adapter.limits().max_storage_buffer_binding_size,
        max_buffer: adapter.limits().max_buffer_size,
    };
    adapters(among).await.iter().map(describe_one).collect()
}

/// The error when no adapter counts.
pub fn no_adapter(among: &AdapterFilter) -> DeviceError {
    if *among == AdapterFilter::default() {
        return DeviceError::NoAdapter { detail: "no Vulkan, Metal or DirectX 12 driver answered".into() };
    }
    let name = among.name.iter().map(|name| format!("the name {name:?}"));
    let backends = among.backends.iter().map(|backends| format!("the backends {backends:?}"));
    DeviceError::NoMatch { filter: name.chain(backends).collect::<Vec<_>>().join(" and ") }
}

/// The family of kernels that suits an adapter. The broadcast kernels need a workgroup of 8 invocations to be one
/// subgroup, and are faster only on software adapters, where a subgroup is a SIMD vector of the CPU. The name of the
/// driver does not matter.
pub(super) fn family(adapter: &wgpu::Adapter) -> Family {
    let info = adapter.get_info();
    let of_eight = info.subgroup_min_size == 8 && info.subgroup_max_size == 8;
    let has_subgroups = adapter.features().contains(wgpu::Features::SUBGROUP);
    if info.device_type == wgpu::DeviceType::Cpu && of_eight && has_subgroups {
        Family::Broadcast
    } else {
        Family::Tiles
    }
}

/// The subgroup size of the matrix kernels, where the adapter has cooperative matrices of 8 x 8 whose elements and sums
/// are f32. Other types would round the elements to fewer bits. Only the tiles family has matrix kernels.
fn matrices(adapter: &wgpu::Adapter, family: Family) -> Option<u32> {
    let info = adapter.get_info();
    let is_f32 = |of: wgpu::CooperativeScalarType| of == wgpu::CooperativeScalarType::F32;
    let offered = adapter.cooperative_matrix_properties();
    let exact =
        offered.iter().any(|m| [m.m_size, m.n_size, m.k_size] == [8; 3] && is_f32(m.ab_type) && is_f32(m.cr_type));
    let subgroup_size = match info.backend {
        // On Metal, wgpu reports a range that covers all GPUs. Those with matrices are Apple's, whose subgroups have
        // 32.
        wgpu::Backend::Metal => 32,
        _ if info.subgroup_min_size == info.subgroup_max_size => info.subgroup_min_size,
        _ => return None,
    };
    let fits = (1..=64).contains(&subgroup_size); // a workgroup is four subgroups, and WebGPU promises 256 invocations
    (family == Family::Tiles && adapter.features().contains(MATRICES) && exact && fits).then_some(subgroup_size)
}

/// The features that matrix kernels need: cooperative matrices, and the index of a subgroup.
const MATRICES: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SUBGROUP);

/// An adapter with a device on it.
pub(super) struct Opened {
    pub(super) adapter: wgpu::Adapter,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    /// The family of kernels that it is opened for.
    pub(super) family: Family,
    /// The subgroup size of the matrix kernels, where the device has them.
    pub(super) matrices: Option<u32>,
}

/// Opens a device on the best of some adapters, for the `wanted` family of kernels or the one that suits the adapter. With
/// `hardware_only`, skips software adapters.
pub(super) async fn open(
    among: &AdapterFilter,
    hardware_only: bool,
    wanted: Option<Family>,
) -> Result<Opened, DeviceError> {
    let found = adapters(among).await;
    let adapter = found
        .into_iter()
        .find(|a| !hardware_only || a.get_info().device_type != wgpu::DeviceType::Cpu)
        .ok_or_else(|| no_adapter(among))?;
    let suits = family(&adapter);
    let family = wanted.unwrap_or(suits);
    if family == Family::Broadcast && suits != family {
        return Err(DeviceError::NoAdapter { detail: format!("{} is not one for {family:?}", describe(&adapter)) });
    }
    let matrices = matrices(&adapter, family);
    // WebGPU's default limits, so that the same kernels run in a browser, but the adapter's own limits for buffers.
    let limits = wgpu::Limits {
        max_buffer_size: adapter.limits().max_buffer_size,
        max_storage_buffer_binding_size: adapter.limits().max_storage_buffer_binding_size,
        ..wgpu::Limits::default()
    };
    let request = async |matrices: Option<u32>| {
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("actscope"),
            // The features cost nothing before timestamps are started or a pipeline cache is made.
            required_features: adapter.features() & (wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::PIPELINE_CACHE)
                | match family {
                    Family::Broadcast => wgpu::Features::SUBGROUP,
                    Family::Tiles if matrices.is_some() => MATRICES,
                    Family::Tiles => wgpu::Features::empty(),
                },
            experimental_features: match matrices {
                // SAFETY: it only requires knowing that wgpu's experimental matrices may have bugs. All indices of our
                // matrix kernels are within their memory, and autotuning compares their results with the reference
                // before it chooses them (autotune.rs).
                Some(_) => unsafe { wgpu::ExperimentalFeatures::enabled() },
                None => wgpu::ExperimentalFeatures::disabled(),
            },
            required_limits: limits.clone().or_worse_values_from(&adapter.limits()),
            ..Default::default()
        };
        adapter.request_device(&descriptor).await
    };
    let (opened, matrices) = match request(matrices).await {
        // The driver offered matrices but refuses the request with them. It may accept one without.
        Err(_) if matrices.is_some() => (request(None).await, None),
        opened => (opened, matrices),
    };
    let (device, queue) =
        opened.map_err(|e| DeviceError::Request { adapter: adapter.get_info().name, detail: e.to_string() })?;
    Ok(Opened { adapter, device, queue, family, matrices })
}
