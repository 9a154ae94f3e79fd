//! Checkpoints whose files are read range by range, from a source that waits, counts what is read, and may fail. The values
//! must be those of the mapped files, bit for bit.

mod common;

use actscope::device::{Blob, BoxFuture};
use actscope::model::byte_source::ByteSource;
use actscope::{Capture, Choice, Error, Model, Session};
use common::{DEVICES, fixtures};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

/// What a source does from some moment on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Error,
    Short,
}

/// A file that is read, with a list of the ranges that were.
struct Counted {
    path: PathBuf,
    ranges: Mutex<Vec<Range<u64>>>,
    fault: Mutex<Fault>,
    changed: AtomicBool,
}

/// A future that is ready when it is polled for the second time, as if it had waited for something.
struct Later(bool);

impl Future for Later {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Counted {
    fn new(path: &Path) -> Arc<Counted> {
        let (ranges, fault, changed) = (Mutex::default(), Mutex::new(Fault::None), AtomicBool::new(false));
        Arc::new(Counted { path: path.into(), ranges, fault, changed })
    }

    /// The ranges that were read since the last call, sorted.
    fn take(&self) -> Vec<Range<u64>> {
        let mut ranges = std::mem::take(&mut *self.ranges.lock().unwrap());
        ranges.sort_by_key(|range| (range.start, range.end));
        ranges
    }
}

impl ByteSource for Counted {
    fn size(&self) -> u64 {
        std::fs::metadata(&self.path).unwrap().len()
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, io::Result<Blob>> {
        Box::pin(async move {
            Later(false).await;
            assert!(range.start <= range.end && range.end <= self.size(), "{range:?} is asked of {}", self.size());
            self.ranges.lock().unwrap().push(range.clone());
            let mut bytes = std::fs::read(&self.path)?[range.start as usize..range.end as usize].to_vec();
            match *self.fault.lock().unwrap() {
                Fault::None => {}
                Fault::Error => return Err(io::Error::other("the disk was pulled out")),
                Fault::Short => bytes.truncate(bytes.len() / 2),
            }
            Ok(bytes.into())
        })
    }

    fn unchanged(&self) -> bool {
        !self.changed.load(Ordering::Relaxed)
    }
}

/// Counted files by name.
type Files = BTreeMap<String, Arc<Counted>>;

/// A folder whose files are counted.
fn counted(folder: &Path) -> (Model, Files) {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files: Files = names.map(|name| (name.clone(), Counted::new(&folder.join(name)))).collect();
    let sources = files.iter().map(|(name, file)| (name.clone(), file.clone() as Arc<dyn ByteSource>));
    (Model::from_sources("counted", sources).unwrap(), files)
}

/// The ranges of tensors in a file, by name without `transformer.`, and the end of its header.
fn ranges(path: &Path) -> (BTreeMap<String, Range<u64>>, u64) {
    let bytes = std::fs::read(path).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let start = header as u64 + 8;
    let of = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let name = name.strip_prefix("transformer.").unwrap_or(&name).to_string();
        (name, start + info.data_offsets.0 as u64..start + info.data_offsets.1 as u64)
    };
    (metadata.tensors().into_iter().map(of).collect(), start)
}

fn run(session: &Session, patterns: &[&str]) -> Result<Capture, Error> {
    let batch = session.model().batch(&[[0u32, 1, 2], [2, 1, 0]]).unwrap();
    let mut hooks = session.model().hooks();
    patterns.iter().for_each(|pattern| {
        hooks.tap(pattern).unwrap();
    });
    session.run(&batch, &hooks)
}

/// Seen red: the header read with all that follows it; ranges that begin one element late; a tensor read twice.
#[test]
fn only_headers_and_needed_tensors_are_read() {
    let folder = fixtures().join("classic");
    let (tensors, header) = ranges(&folder.join("model.safetensors"));
    for choice in DEVICES {
        let (model, files) = counted(&folder);
        let weights = &files["model.safetensors"];
        assert_eq!(weights.take(), [0..8, 0..header], "opened");
        assert!(files["golden.safetensors"].take().is_empty(), "a file that is no part of a checkpoint");
        assert_eq!(files["config.json"].take(), [0..files["config.json"].size()]);

        let needed = |names: &[&str]| {
            let is_needed = |name: &str| {
                let mask = name.ends_with(".attn.bias") || name.ends_with(".masked_bias");
                !mask && names.iter().any(|start| name.starts_with(start))
            };
            let mut needed: Vec<Range<u64>> =
                tensors.iter().filter(|(name, _)| is_needed(name)).map(|(_, range)| range.clone()).collect();
            needed.sort_by_key(|range| range.start);
            needed
        };
        let session = model.on(choice).unwrap();
        assert!(weights.take().is_empty(), "{choice:?}: a device alone needs no weight");
        run(&session, &["hook_embed"]).unwrap();
        assert_eq!(weights.take(), needed(&["wte"]), "{choice:?}");
        run(&session, &["resid_post.0"]).unwrap();
        assert_eq!(weights.take(), needed(&["wpe", "h.0."]), "{choice:?}");
        run(&session, &["resid_post.1"]).unwrap();
        assert_eq!(weights.take(), needed(&["h.1."]), "{choice:?}");
        // This file has a copy of the token embedding as its unembedding, which is found out once, by comparing.
        run(&session, &["unembed"]).unwrap();
        assert_eq!(weights.take(), needed(&["h.2.", "ln_f", "lm_head", "wte"]), "{choice:?}");
        run(&session, &["*"]).unwrap();
        assert!(weights.take().is_empty(), "{choice:?}: everything is on the device");
    }
}

/// Every kind of checkpoint: shards, half precision, mixed types, f64, an unembedding of its own, processed weights. Seen red
/// with ranges that begin one element late, and with f64 elements that were not converted.
#[test]
fn values_are_those_of_the_mapped_file() {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("config.json").exists());
    assert!(folders.len() >= 8, "{folders:?}");
    let doubles = tempfile::tempdir().unwrap();
    in_doubles(&fixtures().join("untied_erf"), doubles.path());
    folders.push(doubles.path().into());
    for folder in folders {
        let mapped = || Model::open(folder.to_str().unwrap()).unwrap();
        let by_ranges = || counted(&folder).0;
        assert_eq!(mapped().notes().collect::<Vec<_>>(), by_ranges().notes().collect::<Vec<_>>());
        let (expected, got) = (mapped(), by_ranges());
        let (expected, got) = (expected.checkpoint(), got.checkpoint());
        assert_eq!(got.fingerprint(), expected.fingerprint());
        let all = [got, expected].map(|checkpoint| checkpoint.fingerprint_of_every_byte().unwrap());
        assert_eq!(all[0], all[1]);
        assert_ne!(all[0], expected.fingerprint());
        assert_eq!((got.file_bytes(), got.parameters()), (expected.file_bytes(), expected.parameters()));
        for choice in [Choice::Cpu, Choice::Gpu] {
            let expected = run(&mapped().on(choice).unwrap(), &["*"]).unwrap();
            assert_eq!(run(&by_ranges().on(choice).unwrap(), &["*"]).unwrap(), expected, "{}", folder.display());
        }
        let processed = |model: Model| model.processed("tl".parse().unwrap()).unwrap().on(Choice::Cpu).unwrap();
        let expected = run(&processed(mapped()), &["*"]).unwrap();
        assert_eq!(run(&processed(by_ranges()), &["*"]).unwrap(), expected, "{} processed", folder.display());
    }
}

/// Copies a checkpoint with its elements as f64.
fn in_doubles(from: &Path, to: &Path) {
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let wide: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|(name, view)| {
            let floats = view.data().as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b)));
            (name.to_string(), view.shape().to_vec(), floats.flat_map(f64::to_le_bytes).collect())
        })
        .collect();
    let views = wide.iter().map(|(name, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F64, shape.clone(), bytes).unwrap())
    });
    std::fs::write(to.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A source that fails, or gives too little, ends the run with an error that says so; when it is well again, the session is.
/// Seen red with a short answer that was not looked at, which ended in a panic.
#[test]
fn an_error_of_the_source_is_an_error_of_the_run() {
    for choice in DEVICES {
        for (fault, what) in [(Fault::Error, "the disk was pulled out"), (Fault::Short, "bytes in place of")] {
            let (model, files) = counted(&fixtures().join("classic"));
            let weights = &files["model.safetensors"];
            let session = model.on(choice).unwrap();
            let expected = run(&session, &["resid_post.0"]).unwrap();
            *weights.fault.lock().unwrap() = fault;
            // What was loaded before stays on the device.
            assert_eq!(run(&session, &["resid_post.0"]).unwrap(), expected);
            let failed = run(&session, &["resid_post.2"]).unwrap_err();
            assert!(matches!(failed, Error::Weights(_)), "{failed:?}");
            let said = failed.to_string();
            assert!(
                said.contains("cannot read") && said.contains("model.safetensors") && said.contains(what),
                "{said}"
            );
            *weights.fault.lock().unwrap() = Fault::None;
            let mapped = Model::open(fixtures().join("classic").to_str().unwrap()).unwrap().on(choice).unwrap();
            assert_eq!(run(&session, &["*"]).unwrap(), run(&mapped, &["*"]).unwrap(), "{choice:?} {fault:?}");
        }
    }
}

/// Seen red without the question whether files are as they were.
#[test]
fn a_source_may_say_that_its_file_was_changed() {
    let (model, files) = counted(&fixtures().join("classic"));
    let session = model.on(Choice::Cpu).unwrap();
    run(&session, &["resid_post.0"]).unwrap();
    files["model.safetensors"].changed.store(true, Ordering::Relaxed);
    let failed = run(&session, &["resid_post.0"]).unwrap_err().to_string();
    assert!(failed.contains("model.safetensors was changed"), "{failed}");
}

/// Files that cannot be opened: the error names the file, and nothing panics.
#[test]
fn what_cannot_be_opened_says_why() {
    let open = |change: &dyn Fn(&mut Files)| {
        let (_, mut files) = counted(&fixtures().join("odd_bf16_sharded"));
        change(&mut files);
        let sources = files.into_iter().map(|(name, file)| (name, file as Arc<dyn ByteSource>));
        Model::from_sources("counted", sources).unwrap_err().to_string()
    };
    let first = "model-00001-of-00002.safetensors";
    let fails = |name: &'static str| {
        move |files: &mut Files| {
            *files[name].fault.lock().unwrap() = Fault::Error;
        }
    };
    for name in ["config.json", "model.safetensors.index.json", first] {
        let said = open(&fails(name));
        assert!(said.contains(name) && said.contains("the disk was pulled out"), "{said}");
    }
    let said = open(&|files| drop(files.remove(first)));
    assert!(said.contains(first) && said.contains("there is no such file"), "{said}");
    let said = open(&|files| drop(files.remove("config.json")));
    assert!(said.contains("has no config.json"), "{said}");

    // Damaged headers: each is judged with what a source has, not with what a header claims.
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixtures().join("classic/config.json"), folder.path().join("config.json")).unwrap();
    let whole = std::fs::read(fixtures().join("classic/model.safetensors")).unwrap();
    for bytes in [
        Vec::new(),
        vec![1, 2, 3],
        u64::MAX.to_le_bytes().to_vec(),
        [&99_000_000u64.to_le_bytes(), &b"{}"[..]].concat(),
        whole[..whole.len() / 2].to_vec(),
        whole[..100].to_vec(),
    ] {
        std::fs::write(folder.path().join("model.safetensors"), &bytes).unwrap();
        let sources = ["config.json", "model.safetensors"]
            .map(|name| (name.to_string(), Counted::new(&folder.path().join(name)) as Arc<dyn ByteSource>));
        let said = Model::from_sources("counted", sources).unwrap_err().to_string();
        let mapped = Model::open(folder.path().to_str().unwrap()).unwrap_err().to_string();
        assert!(said.contains("is not a whole safetensors file"), "{said}");
        assert_eq!(said.split_once("is not a whole").unwrap().1, mapped.split_once("is not a whole").unwrap().1);
    }
}
