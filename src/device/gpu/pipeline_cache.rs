//! Pipelines that the driver has compiled, kept from run to run where the backend hands them out (Vulkan). Owns the form in which
//! they are kept, whether what was kept may be believed, and when it is kept again; where it lies is the keeper's business.

use super::kernels;
use crate::device::DeviceCache;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is kept begins with it. The digit is the version of the form.
const MAGIC: [u8; 8] = *b"actpipe1";

/// No more bytes than this are kept or taken. All our kernels in all their variants are a hundred pipelines.
const MOST: usize = 64 << 20;

/// The driver's cache. What was compiled into it is kept when it is dropped.
pub(super) struct PipelineCache {
    cache: wgpu::PipelineCache,
    keep: Arc<dyn DeviceCache>,
    name: String,
    owner: String,
    /// Bytes of the driver's that were taken from `keep`.
    taken: usize,
    used: AtomicBool,
}

impl PipelineCache {
    /// The cache with what `keep` has for this adapter and driver; `None` where the backend has none.
    pub(super) async fn open(device: &wgpu::Device, keep: Arc<dyn DeviceCache>) -> Option<PipelineCache> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let adapter = device.adapter_info();
        // Without the driver's version: what a newer driver has compiled takes the place of the older one's.
        let name = format!("pipelines {} {}", wgpu::util::pipeline_cache_key(&adapter)?, adapter.driver);
        let owner = owner(&adapter);
        let kept = keep.get(&name);
        let data = kept.as_deref().and_then(|kept| unseal(&owner, kept));
        let (cache, taken) = match create(device, data).await {
            Some(cache) => (cache, data.map_or(0, <[u8]>::len)),
            None => (create(device, None).await?, 0),
        };
        Some(PipelineCache { cache, keep, name, owner, taken, used: AtomicBool::new(false) })
    }

    /// For a pipeline that is made.
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
        // Nobody says what was compiled and what was found, but every pipeline takes room. (The bytes themselves may come in
        // another order each time.)
        if let Some(data) = self.cache.get_data().filter(|data| data.len() != self.taken && data.len() <= MOST) {
            self.keep.put(&self.name, &seal(&self.owner, &data));
        }
    }
}

/// A cache with `data` in it, or `None` where wgpu refuses that.
async fn create(device: &wgpu::Device, data: Option<&[u8]>) -> Option<wgpu::PipelineCache> {
    let refused = device.push_error_scope(wgpu::ErrorFilter::Validation);
    // Where wgpu fell back on an empty cache by itself, it would not say so, and what it refused would be kept for good.
    let descriptor = wgpu::PipelineCacheDescriptor { label: Some("kept"), data, fallback: false };
    // SAFETY: `data` must have come from `get_data`. It has passed `unseal`, and only what `seal` was given in `drop`, straight
    // from `get_data`, does: the checksum is over every byte and over adapter, driver and driver's version, so that neither a
    // damaged file nor another driver's gets here but by a chance of one in 2^32. wgpu then holds backend, vendor, device,
    // driver's version and length against its own header, and Vulkan drivers their UUID against theirs. Against somebody who
    // forges checksums there is no guard; who may write to the user's cache folder can do worse.
    let cache = unsafe { device.create_pipeline_cache(&descriptor) };
    refused.pop().await.is_none().then_some(cache)
}

/// Whose pipelines these are: other kernels, or another wgpu in another version of this program, begin with an empty cache,
/// since one never shrinks.
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

/// As it is kept: [`MAGIC`], the checksum (little-endian), the driver's bytes.
fn seal(owner: &str, data: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &checksum(owner, data).to_le_bytes(), data].concat()
}

/// The driver's bytes, where they are whole and this owner's.
fn unseal<'a>(owner: &str, kept: &'a [u8]) -> Option<&'a [u8]> {
    let (sum, data) = kept.strip_prefix(&MAGIC)?.split_first_chunk()?;
    (data.len() <= MOST && u32::from_le_bytes(*sum) == checksum(owner, data)).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sealed_is_unsealed() {
        let kept = seal("owner", b"pipelines");
        assert_eq!(unseal("owner", &kept), Some(b"pipelines".as_slice()));
        assert_eq!(unseal("another", &kept), None);
        assert_eq!(unseal("owner", &[kept.as_slice(), b"s"].concat()), None);
        for at in 0..kept.len() {
            assert_eq!(unseal("owner", &kept[..at]), None, "cut at {at}");
            let mut flipped = kept.clone();
            flipped[at] ^= 1;
            assert_eq!(unseal("owner", &flipped), None, "a bit of byte {at}");
        }
    }

    /// Gives the same whatever it is asked for.
    struct Gives(Vec<u8>);

    impl DeviceCache for Gives {
        fn get(&self, _: &str) -> Option<Vec<u8>> {
            Some(self.0.clone())
        }

        fn put(&self, _: &str, _: &[u8]) {}
    }

    /// wgpu calls data of another backend an error even where it may fall back, and errors that nobody expects panic here.
    #[test]
    fn what_wgpu_refuses_is_no_error() {
        let super::super::adapter::Opened { adapter, device, .. } =
            pollster::block_on(super::super::adapter::open(false, None)).unwrap();
        let open = |data: &[u8]| {
            let keep = Arc::new(Gives(seal(&owner(&adapter.get_info()), data)));
            pollster::block_on(PipelineCache::open(&device, keep))
        };
        let Some(empty) = open(b"not even a header") else {
            assert_ne!(adapter.get_info().backend, wgpu::Backend::Vulkan, "all of Vulkan has pipeline caches");
            return;
        };
        assert_eq!(empty.taken, 0);
        let mut data = empty.cache.get_data().unwrap();
        assert_eq!(open(&data).unwrap().taken, data.len());
        let backend = 16;
        assert_eq!(data[backend], wgpu::Backend::Vulkan as u8);
        data[backend] = wgpu::Backend::Metal as u8;
        assert_eq!(open(&data).unwrap().taken, 0);
    }
}
