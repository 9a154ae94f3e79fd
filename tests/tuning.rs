//! The cut of tiles is found out once per adapter, driver and version, and kept; what is kept is never trusted blindly.
//! Driven on whatever adapter there is, with the kernels of real GPUs: which cut wins is not asked here.

use actscope::device::Keep;
use actscope::device::gpu::kernels::Family;
use actscope::device::gpu::{Gpu, faults};
use actscope::keep::CacheFile;
use std::cell::RefCell;
use std::time::Duration;

/// Remembers, and counts how often it was told.
#[derive(Default)]
struct Counting {
    inner: RefCell<Option<(String, String)>>,
    told: RefCell<usize>,
}

impl Keep for Counting {
    fn get(&self, name: &str) -> Option<String> {
        self.inner.borrow().as_ref().filter(|(of, _)| of == name).map(|(_, value)| value.clone())
    }

    fn put(&self, name: &str, value: &str) {
        *self.inner.borrow_mut() = Some((name.into(), value.into()));
        *self.told.borrow_mut() += 1;
    }
}

fn open() -> Gpu {
    pollster::block_on(Gpu::open_as(Family::Tiles)).expect("a GPU adapter, llvmpipe at least")
}

/// Long enough for an adapter that is a program.
const PATIENT: Duration = Duration::from_secs(600);

#[test]
fn the_cut_is_found_out_once() {
    let keep = Counting::default();
    pollster::block_on(open().with_best_tile(&keep, Duration::ZERO)).unwrap();
    assert_eq!(*keep.told.borrow(), 0, "half a trial is none");
    pollster::block_on(open().with_best_tile(&keep, PATIENT)).unwrap();
    assert_eq!(*keep.told.borrow(), 1);
    let (name, first) = keep.inner.borrow().clone().unwrap();
    assert!(name.contains(&actscope::device::Device::info(&open()).name), "{name}");
    pollster::block_on(open().with_best_tile(&keep, PATIENT)).unwrap();
    assert_eq!(*keep.told.borrow(), 1, "what is kept is taken");

    *keep.inner.borrow_mut() = Some((name, "999x1x1".into()));
    pollster::block_on(open().with_best_tile(&keep, PATIENT)).unwrap();
    assert_eq!(*keep.told.borrow(), 2, "what is no cut is not taken, and {first} was");
}

/// Whatever cut is the fastest, without a look at its results one of the two would be kept: red with `is_right` always true.
#[test]
fn a_cut_whose_products_are_wrong_is_not_taken() {
    let kept = |plant| {
        faults::plant_here(Some(plant));
        let keep = Counting::default();
        pollster::block_on(open().with_best_tile(&keep, PATIENT)).unwrap();
        faults::plant_here(None);
        keep.inner.take().expect("a whole trial is kept").1
    };
    let [in_default, in_others] = &faults::OF_CUTS;
    assert_ne!(kept(in_default), "16x4x1");
    // The cut with matrices has a kernel of its own, in which nothing was planted.
    let right = kept(in_others);
    assert!(right == "16x4x1" || right.starts_with("matrices"), "{right}");
}

/// An adapter that is a program is not tried: it has other kernels.
#[test]
fn programs_are_not_tried() {
    let keep = Counting::default();
    let gpu = open();
    let software = actscope::device::Device::info(&gpu).software;
    if software {
        pollster::block_on(gpu.tuned(&keep)).unwrap();
        assert_eq!(*keep.told.borrow(), 0);
    }
}

#[test]
fn what_is_kept_lasts_and_a_broken_file_is_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deeper").join("devices.json");
    let keep = CacheFile::at(&path);
    assert_eq!(keep.get("a"), None);
    keep.put("a", "1");
    keep.put("b", "2");
    assert_eq!((CacheFile::at(&path).get("a"), keep.get("b")), (Some("1".into()), Some("2".into())));

    std::fs::write(&path, b"{\"a\": ").unwrap();
    assert_eq!(keep.get("a"), None);
    keep.put("c", "3");
    assert_eq!(keep.get("c"), Some("3".into()));

    // No folder can be made below a file.
    let nowhere = CacheFile::at(path.join("devices.json"));
    nowhere.put("a", "1");
    assert_eq!(nowhere.get("a"), None);
}
