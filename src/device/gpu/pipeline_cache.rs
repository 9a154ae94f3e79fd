//! Stores the driver's compiled pipelines between processes, on backends that support it (Vulkan). Owns the stored
//! format, its validation, and the decision to store again. The [`DeviceCache`] that the caller passes decides where.
//! Read next: `src/cache.rs`, the cache in a folder.

use super::kernels;
use crate::device::DeviceCache;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The first bytes of a stored cache. The digit is the version of the format.
const MAGIC: [u8; 8] = *b"actpipe1";

/// The most bytes that are stored or loaded. All variants of all kernels together are about a hundred pipelines.
const MOST: usize = 64 << 20;

/// The driver's pipeline cache. Dropping it stores it, if pipelines were added.
pub(super) struct PipelineCache {
    cache: wgpu::PipelineCache,
    store: Arc<dyn DeviceCache>,
    name: String,
    owner: String,
    /// Bytes of the driver's data that were loaded from `store`.
    loaded: usize,
    used: AtomicBool,
}

impl PipelineCache {
    /// Opens the driver's cache with the data that `store` has for this adapter and driver. `None` where the backend
    /// has no pipeline caches.
    pub(super) async fn open(device: &wgpu::Device, store: Arc<dyn DeviceCache>) -> Option<PipelineCache> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let adapter = device.adapter_info();
        // The name does not have the driver's version, so that a newer driver replaces the data of the older one.
        let name = format!("pipelines {} {}", wgpu::util::pipeline_cache_key(&adapter)?, adapter.driver);
        let owner = owner(&adapter);
        let stored = store.get(&name);
        let data = stored.as_deref().and_then(|stored| unseal(&owner, stored));
        let (cache, loaded) = match create(device, data).await {
            Some(cache) => (cache, data.map_or(0, <[u8]>::len)),
            None => (create(device, None).await?, 0),
        };
        Some(PipelineCache { cache, store, name, owner, loaded, used: AtomicBool::new(false) })
    }

    /// The wgpu cache, for compiling a pipeline.
    pub(super) fn of_driver(&self) -> &wgpu::PipelineCache {
        self.used.store(true, Ordering::Relaxed);
        &self.cache
    }
}

impl std::fmt::Debug for PipelineCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PipelineCache").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for PipelineCache {
    fn drop(&mut self) {
        if !self.used.load(Ordering::Relaxed) {
            return;
        }
        // wgpu does not say whether a pipeline was compiled or found, but every new pipeline makes the data longer. The
        // bytes cannot be compared, because their order may change.
        if let Some(data) = self.cache.get_data().filter(|data| data.len() != self.loaded && data.len() <= MOST) {
            self.store.put(&self.name, &seal(&self.owner, &data));
        }
    }
}

/// A wgpu cache with `data`, or `None` where wgpu refuses the data.
async fn create(device: &wgpu::Device, data: Option<&[u8]>) -> Option<wgpu::PipelineCache> {
    let refused = device.push_error_scope(wgpu::ErrorFilter::Validation);
    // With `fallback`, wgpu would silently start with an empty cache, and this module could not see that the data was
    // refused.
    let descriptor = wgpu::PipelineCacheDescriptor { label: Some("pipelines"), data, fallback: false };
    // SAFETY: `data` must have come from `get_data`. It has passed `unseal`, which accepts only what `drop` sealed,
    // straight from `get_data`. The checksum covers every byte and the adapter, the driver and its version, so a
    // damaged file or one of another driver passes with a chance of one in 2^32. wgpu also compares backend, vendor,
    // device, driver version and length with its own header, and Vulkan drivers compare their UUID. A forged checksum
    // is not detected. An attacker who can write to the user's cache folder can do more harm than that.
    let cache = unsafe { device.create_pipeline_cache(&descriptor) };
    refused.pop().await.is_none().then_some(cache)
}

/// What the pipelines depend on: the program's version (and with it wgpu's), the kernels, the adapter and the driver.
/// When any of it changes, the cache starts empty, because a driver's cache never shrinks.
fn owner(adapter: &wgpu::AdapterInfo) -> String {
    let wgpu::AdapterInfo { name, vendor, device, driver, driver_info, .. } = adapter;
    let mut kernels = crc32fast::Hasher::new();
    kernels::ALL.iter().for_each(|kernel| kernels.update(kernel.module(&[]).as_bytes()));
    let (version, kernels) = (env!("CARGO_PKG_VERSION"), kernels.finalize());
    format!("{version} {kernels:08x} {vendor} {device} {name:?} {driver:?} {driver_info:?}")
}

fn checksum(owner: &str, data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(owner.as_bytes());
    hasher.update(data);
    hasher.finalize()
}

/// The stored format: [`MAGIC`], the checksum (little-endian), the driver's bytes.
fn seal(owner: &str, data: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &checksum(owner, data).to_le_bytes(), data].concat()
}

/// The driver's bytes, if they are undamaged and have this owner.
fn unseal<'a>(owner: &str, stored: &'a [u8]) -> Option<&'a [u8]> {
    let (sum, data) = stored.strip_prefix(&MAGIC)?.split_first_chunk()?;
    (data.len() <= MOST && u32::from_le_bytes(*sum) == checksum(owner, data)).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sealed_is_unsealed() {
        let stored = seal("owner", b"pipelines");
        assert_eq!(unseal("owner", &stored), Some(b"pipelines".as_slice()));
        assert_eq!(unseal("another", &stored), None);
        assert_eq!(unseal("owner", &[stored.as_slice(), b"s"].concat()), None);
        for at in 0..stored.len() {
            assert_eq!(unseal("owner", &stored[..at]), None, "cut at {at}");
            let mut flipped = stored.clone();
            flipped[at] ^= 1;
            assert_eq!(unseal("owner", &flipped), None, "a bit of byte {at}");
        }
    }

    /// A cache that returns the same value for every name.
    struct SameForAll(Vec<u8>);

    impl DeviceCache for SameForAll {
        fn get(&self, _: &str) -> Option<Vec<u8>> {
            Some(self.0.clone())
        }

        fn put(&self, _: &str, _: &[u8]) {}
    }

    /// wgpu reports data of another backend as an error, even with `fallback`. An uncaptured error would panic in this
    /// test.
    #[test]
    fn what_wgpu_refuses_is_no_error() {
        let super::super::adapter::Opened { adapter, device, .. } =
            pollster::block_on(super::super::adapter::open(&Default::default(), false, None)).unwrap();
        let open = |data: &[u8]| {
            let store = Arc::new(SameForAll(seal(&owner(&adapter.get_info()), data)));
            pollster::block_on(PipelineCache::open(&device, store))
        };
        let Some(empty) = open(b"not even a header") else {
            assert_ne!(adapter.get_info().backend, wgpu::Backend::Vulkan, "all of Vulkan has pipeline caches");
            return;
        };
        assert_eq!(empty.loaded, 0);
        let mut data = empty.cache.get_data().unwrap();
        assert_eq!(open(&data).unwrap().loaded, data.len());
        let backend = 16;
        assert_eq!(data[backend], wgpu::Backend::Vulkan as u8);
        data[backend] = wgpu::Backend::Metal as u8;
        assert_eq!(open(&data).unwrap().loaded, 0);
    }
}
