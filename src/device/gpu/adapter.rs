//! Which adapters this machine has, which one is taken, and the family of kernels that suits it. Owns the wgpu instance.

use super::kernels::Family;
use crate::device::{DeviceError, DeviceInfo, DeviceKind};

/// An adapter as `actscope devices` shows it.
#[derive(Clone, Debug)]
pub struct AdapterInfo {
    /// Name and driver.
    pub info: DeviceInfo,
    /// `Vulkan`, `Metal`, `Dx12`, ...
    pub backend: String,
    /// `DiscreteGpu`, `IntegratedGpu`, `Cpu`, ...
    pub device_type: String,
    /// Most bytes that one storage binding may have.
    pub max_binding: u64,
    /// Most bytes that one buffer may have.
    pub max_buffer: u64,
}

/// The backends come from `WGPU_BACKEND` (vulkan, metal, dx12) where it is set.
fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

/// All adapters, the one that `--device gpu` takes first. `WGPU_ADAPTER_NAME` narrows them to those whose name holds it.
async fn adapters() -> Vec<wgpu::Adapter> {
    let mut adapters = instance().enumerate_adapters(wgpu::Backends::all()).await;
    if let Ok(wanted) = std::env::var("WGPU_ADAPTER_NAME") {
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
        name: info.name.clone(),
        detail: [format!("{:?}", info.backend), info.driver, info.driver_info].join(" ").trim().to_string(),
        software: info.device_type == wgpu::DeviceType::Cpu,
    }
}

/// Every adapter there is, the one that `--device gpu` takes first.
pub async fn list() -> Vec<AdapterInfo> {
    let describe_one = |adapter: &wgpu::Adapter| AdapterInfo {
        info: describe(adapter),
        backend: format!("{:?}", adapter.get_info().backend),
        device_type: format!("{:?}", adapter.get_info().device_type),
        max_binding: adapter.limits().max_storage_buffer_binding_size,
        max_buffer: adapter.limits().max_buffer_size,
    };
    adapters().await.iter().map(describe_one).collect()
}

/// The kernels that suit an adapter: those that broadcast need a workgroup of 8 lanes to be one subgroup, and pay only where
/// lanes are the vectors of a program. A driver never gets them because of its name.
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

/// Lanes of a subgroup, where subgroups multiply matrices of 8 x 8 whose numbers and sums are f32: the sizes of the kernels
/// that do, and nothing rounded to fewer bits. Only among the kernels of tiles: no program is faster for having them.
fn matrices(adapter: &wgpu::Adapter, family: Family) -> Option<u32> {
    let info = adapter.get_info();
    let is_f32 = |of: wgpu::CooperativeScalarType| of == wgpu::CooperativeScalarType::F32;
    let offered = adapter.cooperative_matrix_properties();
    let exact =
        offered.iter().any(|m| [m.m_size, m.n_size, m.k_size] == [8; 3] && is_f32(m.ab_type) && is_f32(m.cr_type));
    let lanes = match info.backend {
        // wgpu states the sizes of all GPUs that Metal has run on; those with matrices, Apple's, have 32.
        wgpu::Backend::Metal => 32,
        _ if info.subgroup_min_size == info.subgroup_max_size => info.subgroup_min_size,
        _ => return None,
    };
    let fits = (1..=64).contains(&lanes); // four subgroups within WebGPU's 256 invocations
    (family == Family::Tiles && adapter.features().contains(MATRICES) && exact && fits).then_some(lanes)
}

/// What the kernels with matrices need: those, and a subgroup's number.
const MATRICES: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SUBGROUP);

/// An adapter with a device on it.
pub(super) struct Opened {
    pub(super) adapter: wgpu::Adapter,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    /// The kernels that it is opened for.
    pub(super) family: Family,
    /// Lanes of the subgroups that multiply matrices, where the device can.
    pub(super) matrices: Option<u32>,
}

/// Opens the first adapter, for the kernels that suit it or for those that are wanted. With `hardware_only`, none that is a
/// program on the CPU.
pub(super) async fn open(hardware_only: bool, wanted: Option<Family>) -> Result<Opened, DeviceError> {
    let found = adapters().await;
    let adapter = found
        .into_iter()
        .find(|a| !hardware_only || a.get_info().device_type != wgpu::DeviceType::Cpu)
        .ok_or_else(|| DeviceError::NoAdapter { detail: "no Vulkan, Metal or DirectX 12 driver answered".into() })?;
    let suits = family(&adapter);
    let family = wanted.unwrap_or(suits);
    if family == Family::Broadcast && suits != family {
        return Err(DeviceError::NoAdapter { detail: format!("{} is not one for {family:?}", describe(&adapter)) });
    }
    let matrices = matrices(&adapter, family);
    // WebGPU's defaults, so that what runs here runs in a browser too, but buffers as large as the adapter has them.
    let limits = wgpu::Limits {
        max_buffer_size: adapter.limits().max_buffer_size,
        max_storage_buffer_binding_size: adapter.limits().max_storage_buffer_binding_size,
        ..wgpu::Limits::default()
    };
    let request = async |matrices: Option<u32>| {
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("actscope"),
            // Timestamps cost nothing until somebody starts the clock, a pipeline cache until somebody makes one.
            required_features: adapter.features() & (wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::PIPELINE_CACHE)
                | match family {
                    Family::Broadcast => wgpu::Features::SUBGROUP,
                    Family::Tiles if matrices.is_some() => MATRICES,
                    Family::Tiles => wgpu::Features::empty(),
                },
            experimental_features: match matrices {
                // SAFETY: asks for no more than to know that wgpu's matrices may have faults. Every address that the kernels
                // compute is within their memory, and they are taken where their results were seen to be right (tile.rs).
                Some(_) => unsafe { wgpu::ExperimentalFeatures::enabled() },
                None => wgpu::ExperimentalFeatures::disabled(),
            },
            required_limits: limits.clone().or_worse_values_from(&adapter.limits()),
            ..Default::default()
        };
        adapter.request_device(&descriptor).await
    };
    let (opened, matrices) = match request(matrices).await {
        // A driver that offers them and then does not have them has everything else.
        Err(_) if matrices.is_some() => (request(None).await, None),
        opened => (opened, matrices),
    };
    let (device, queue) =
        opened.map_err(|e| DeviceError::Request { adapter: adapter.get_info().name, detail: e.to_string() })?;
    Ok(Opened { adapter, device, queue, family, matrices })
}
