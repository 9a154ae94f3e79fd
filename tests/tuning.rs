//! What the gpu device stores about this machine: the tile configuration (autotuned once per adapter, driver and version)
//! and the pipelines that the driver compiled. Stored data is checked before use. The tests run on any adapter, and the
//! tile configurations use the kernels of real GPUs. No test depends on which configuration is the fastest.

#[path = "common/binary.rs"]
mod binary;

use actscope::cache::CacheFolder;
use actscope::device::gpu::kernels::Family;
use actscope::device::gpu::{Gpu, mutants};
use actscope::device::{Change, Device, DeviceCache, Operations, Window};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A cache in memory that counts how often it is written, and knows for what it was asked last.
#[derive(Default)]
struct Counting {
    inner: Mutex<BTreeMap<String, Vec<u8>>>,
    asked: Mutex<String>,
    writes: Mutex<usize>,
}

impl Counting {
    /// The cached entry.
    fn only(&self) -> (String, Vec<u8>) {
        let inner = self.inner.lock().unwrap();
        assert_eq!(inner.len(), 1);
        inner.iter().next().map(|(name, value)| (name.clone(), value.clone())).unwrap()
    }

    fn set(&self, name: &str, value: &[u8]) {
        self.inner.lock().unwrap().insert(name.into(), value.into());
    }

    fn asked(&self) -> String {
        self.asked.lock().unwrap().clone()
    }

    fn writes(&self) -> usize {
        *self.writes.lock().unwrap()
    }
}

impl DeviceCache for Counting {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        *self.asked.lock().unwrap() = name.into();
        self.inner.lock().unwrap().get(name).cloned()
    }

    fn put(&self, name: &str, value: &[u8]) {
        self.set(name, value);
        *self.writes.lock().unwrap() += 1;
    }
}

fn open() -> Gpu {
    pollster::block_on(Gpu::open_as(Family::Tiles)).expect("a GPU adapter, llvmpipe at least")
}

/// Long enough for a software adapter.
const PATIENT: Duration = Duration::from_secs(600);

#[test]
fn a_measurement_that_was_cut_short_is_not_stored() {
    let cache = Counting::default();
    pollster::block_on(open().with_best_tiles(Some(&cache), Duration::ZERO)).unwrap();
    assert_eq!(cache.writes(), 0);
    assert!(cache.asked().contains(&open().info().name), "{}", cache.asked());
}

/// Tiles are measured once, and those whose products are wrong are not chosen: each fault is in one of two configurations, of which one
/// is the fastest. Without a check of its results it would be cached: red with `is_right` always true. On a software adapter one
/// measurement takes a minute or more, so this test has the only complete ones.
#[test]
fn right_tiles_are_chosen_and_measured_once() {
    let stored_with = |mutant| {
        mutants::inject(Some(mutant));
        let cache = Counting::default();
        pollster::block_on(open().with_best_tiles(Some(&cache), Duration::ZERO)).unwrap();
        cache.set(&cache.asked(), b"999x1x1");
        pollster::block_on(open().with_best_tiles(Some(&cache), PATIENT)).unwrap();
        assert_eq!(cache.writes(), 1, "a stored value that is no choice is replaced");
        pollster::block_on(open().with_best_tiles(Some(&cache), PATIENT)).unwrap();
        assert_eq!(cache.writes(), 1, "a stored choice is used, not measured again");
        mutants::inject(None);
        let stored = String::from_utf8(cache.only().1).unwrap();
        let (choices, speed) = stored.split_once("; GFLOP/s: ").expect("the speed of large products");
        assert!(speed.parse::<f64>().unwrap() > 0.0, "{stored}");
        choices.to_string()
    };
    let [in_default, in_others] = &mutants::OF_TILES;
    let others = stored_with(in_default);
    assert!(!others.contains("16x16x4x1"), "{others}");
    // The configuration with matrices has its own kernel, into which no fault was injected.
    let right = stored_with(in_others);
    assert!(right.split([' ', ',']).all(|one| one.starts_with("16x16x4x1/") || one.contains('m')), "{right}");
}

/// A software adapter is not autotuned: it has other kernels.
#[test]
fn software_adapters_are_not_autotuned() {
    let gpu = pollster::block_on(open().autotuned(Some(&Counting::default()))).unwrap();
    assert_eq!(gpu.take_kernels_run().is_empty(), gpu.info().software);
}

/// wgpu returns compiled pipelines on Vulkan with every driver, and on no other backend.
fn hands_out_pipelines() -> bool {
    open().info().detail.starts_with("Vulkan")
}

/// Runs one or two operations on a device that caches its pipelines, drops the device, and returns the results.
fn with_pipelines(cache: &Arc<Counting>, twice: bool) -> Vec<f32> {
    let dev = pollster::block_on(open().with_cached_pipelines(cache.clone()));
    let x = dev.upload([3, 4], (0..12).map(|i| 0.37 * i as f32).collect());
    let x = dev.edit(&x, Window::all([3, 4]), Change::Scale(1.0));
    let y = if twice { dev.add(&x, &x) } else { x };
    let staged = dev.copy_out(&y, &Window::all([3, 4]));
    dev.submit();
    pollster::block_on(dev.read(staged)).unwrap()
}

#[test]
fn pipelines_are_stored_once_and_change_no_value() {
    let cache = Arc::new(Counting::default());
    drop(pollster::block_on(open().with_cached_pipelines(cache.clone())));
    assert_eq!(cache.writes(), 0, "nothing was compiled");
    let numbers = with_pipelines(&cache, true);
    assert_eq!(cache.writes(), usize::from(hands_out_pipelines()));
    if !hands_out_pipelines() {
        return;
    }
    let (name, whole) = cache.only();
    assert_eq!(with_pipelines(&cache, true), numbers);
    assert_eq!(cache.writes(), 1, "no new pipeline, nothing to store");
    with_pipelines(&cache, false);
    assert_eq!(cache.writes(), 1, "pipelines that this run did not need stay stored");

    let middle = whole.len() / 2;
    let flipped: Vec<u8> = whole.iter().enumerate().map(|(i, byte)| byte ^ u8::from(i == middle)).collect();
    let another_sum: Vec<u8> = whole.iter().enumerate().map(|(i, byte)| byte ^ u8::from(i == 8)).collect();
    for (n, broken) in [&whole[..middle], b"", b"{}", &flipped, &another_sum].into_iter().enumerate() {
        cache.set(&name, broken);
        assert_eq!(with_pipelines(&cache, true), numbers);
        assert_eq!(cache.writes(), 2 + n, "a damaged value is replaced");
        assert_eq!(cache.only().1.len(), whole.len());
    }
}

/// A device that was lost to a driver reset caches nothing and reports no further error.
#[test]
fn a_lost_device_stores_nothing() {
    let cache = Arc::new(Counting::default());
    let dev = pollster::block_on(open().with_cached_pipelines(cache.clone()));
    let x = dev.upload([1, 1], vec![1.0]);
    dev.add(&x, &x);
    dev.submit();
    pollster::block_on(dev.settle(0)).unwrap();
    dev.destroy();
    drop(dev);
    assert_eq!(cache.writes(), 0);
}

/// What the whole program caches, and where. Only on Linux can a test set the user's cache folder.
#[cfg(target_os = "linux")]
#[test]
fn the_program_stores_pipelines_in_the_users_cache_folder() {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("actscope");
    let run = |tuning: Option<&str>| {
        let mut command = binary::actscope(["extract", "The cat sat.", "-l", "0", "--device", "gpu", "--json"]);
        command.env("XDG_CACHE_HOME", cache.path()).timeout(Duration::from_secs(600));
        match tuning {
            Some(value) => command.env("ACTSCOPE_TUNING", value),
            None => command.env_remove("ACTSCOPE_TUNING"),
        };
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", binary::stderr(&output));
        binary::stdout(&output)
    };
    let stored = || -> Vec<String> { if folder.exists() { binary::names_in(&folder) } else { Vec::new() } };
    let numbers = run(Some("off"));
    assert_eq!(stored(), Vec::<String>::new(), "with `off` nothing is stored");

    assert_eq!(run(None), numbers);
    let pipelines: Vec<_> = stored().into_iter().filter(|name| name.starts_with("pipelines")).collect();
    assert_eq!(pipelines.len(), usize::from(hands_out_pipelines()), "{pipelines:?}");
    for name in pipelines {
        let file = folder.join(name);
        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(run(None), numbers);
        // NVIDIA's driver writes other bytes, and another number of them, the second time.
        assert_ne!(std::fs::read(&file).unwrap(), whole[..whole.len() - 1], "a truncated file is replaced");
    }
}

#[test]
fn the_cache_folder_stores_values_and_ignores_failures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deeper").join("actscope");
    let cache = CacheFolder::at(&path);
    assert_eq!(cache.get("a"), None);
    cache.put("a", b"1");
    cache.put("b", b"2");
    cache.put("a/b", b"3");
    cache.put("a_b", b"4");
    cache.put(&"../".repeat(200), b"5");
    let again = CacheFolder::at(&path);
    let got = ["a", "b", "a/b", "a_b", &"../".repeat(200)].map(|name| again.get(name));
    assert_eq!(got, [b"1", b"2", b"3", b"4", b"5"].map(|value| Some(value.to_vec())));
    cache.put("a", b"6");
    assert_eq!(again.get("a"), Some(b"6".to_vec()));
    assert_eq!(binary::names_in(&path).len(), 5, "one file for each value, and no unfinished file");

    // A folder cannot be created below a file.
    let nowhere = CacheFolder::at(path.join(&binary::names_in(&path)[0]));
    nowhere.put("a", b"1");
    assert_eq!(nowhere.get("a"), None);
}
