//! Which adapters this machine has, which one is taken, and the family of kernels that suits it. Owns the wgpu instance.

use super::kernels::Family;
use crate::device::{DeviceError, DeviceInfo};

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
        kind: "gpu",
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

/// The first adapter, and a device on it. With `hardware_only`, none that is a program on the CPU.
pub(super) async fn open(hardware_only: bool) -> Result<(wgpu::Adapter, wgpu::Device, wgpu::Queue), DeviceError> {
    let found = adapters().await;
    let adapter = found
        .into_iter()
        .find(|a| !hardware_only || a.get_info().device_type != wgpu::DeviceType::Cpu)
        .ok_or_else(|| DeviceError::NoAdapter { detail: "no Vulkan, Metal or DirectX 12 driver answered".into() })?;
    // WebGPU's defaults, so that what runs here runs in a browser too, but buffers as large as the adapter has them.
    let limits = wgpu::Limits {
        max_buffer_size: adapter.limits().max_buffer_size,
        max_storage_buffer_binding_size: adapter.limits().max_storage_buffer_binding_size,
        ..wgpu::Limits::default()
    };
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("actscope"),
        // Timestamps cost nothing until somebody starts the clock, a pipeline cache until somebody makes one.
        required_features: adapter.features() & (wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::PIPELINE_CACHE)
            | match family(&adapter) {
                Family::Broadcast => wgpu::Features::SUBGROUP,
                Family::Tiles => wgpu::Features::empty(),
            },
        required_limits: limits.or_worse_values_from(&adapter.limits()),
        ..Default::default()
    };
    let (device, queue) = adapter
        .request_device(&descriptor)
        .await
        .map_err(|e| DeviceError::Request { adapter: adapter.get_info().name, detail: e.to_string() })?;
    Ok((adapter, device, queue))
}
