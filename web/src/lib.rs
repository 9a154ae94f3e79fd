//! actscope in a browser: a thin layer that hands the explorer's requests (`src/explore/`) from JavaScript to a session and
//! the answers back, and reads a model's files where the browser has them. Owns nothing else. `src/explore/page/worker.js`
//! calls it; `web/build.sh` builds it. The crate is empty on other targets.
#![cfg(target_arch = "wasm32")]

mod kernels;

use actscope::device::{Blob, BoxFuture};
use actscope::explore::{Answer, Request, message};
use actscope::model::byte_source::ByteSource;
use actscope::{Choice, Error, Model, Options, Session};
use js_sys::{Array, Float32Array, Function, Promise, Uint8Array};
use serde_json::json;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::RefCell;
use std::io;
use std::ops::{ControlFlow, Range};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::{JsFuture, future_to_promise};

thread_local! {
    /// The message of the last panic. WebAssembly cannot go on after a panic: the worker tells the page, which starts another worker.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// An allocator that stores the size of the last failed allocation (0 if none failed). A module without memory ends with no message, so
/// [`why_it_ended`] makes one of this size.
struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// The size of the last failed allocation in bytes; 0 if none failed.
static MISSING: AtomicUsize = AtomicUsize::new(0);

/// Stores the size of an allocation that failed: its pointer is null.
fn noted(allocated: *mut u8, bytes: usize) -> *mut u8 {
    if allocated.is_null() {
        MISSING.store(bytes, Ordering::Relaxed);
    }
    allocated
}

// SAFETY: every call is the system allocator's own, with the caller's arguments.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        noted(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        noted(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        noted(unsafe { System.realloc(at, layout, size) }, size)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Called once, before anything else.
#[wasm_bindgen(start)]
pub fn start() {
    std::panic::set_hook(Box::new(|info| PANIC.with_borrow_mut(|said| *said = info.to_string())));
}

/// Why this module cannot go on: the message of the last panic, or that there was too little memory; empty if neither happened.
#[wasm_bindgen]
pub fn why_it_ended() -> String {
    let said = PANIC.with_borrow(Clone::clone);
    match MISSING.load(Ordering::Relaxed) {
        missing if said.is_empty() && missing > 0 => {
            let held = core::arch::wasm32::memory_size(0) * 65_536;
            format!(
                "there is too little memory: {} MB more are needed, and of the 4 GB that a page can have it holds {} MB; a \
                 shorter text or a smaller model needs less",
                missing.div_ceil(1_000_000),
                held / 1_000_000
            )
        }
        _ => said,
    }
}

/// The files of a checkpoint. Nothing is read before [`open`], and then only what is needed.
#[wasm_bindgen]
#[derive(Default)]
pub struct Files(Vec<(String, Arc<dyn ByteSource>)>);

#[wasm_bindgen]
impl Files {
    /// No files.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Files {
        Files::default()
    }

    /// A file.
    pub fn add(&mut self, name: String, blob: web_sys::Blob) {
        self.0.push((name, Arc::new(OfBlob(blob))));
    }
}

/// A file that the browser has: on the user's disk, in its storage, or in its memory.
struct OfBlob(web_sys::Blob);

impl ByteSource for OfBlob {
    fn size(&self) -> u64 {
        self.0.size() as u64
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, io::Result<Blob>> {
        Box::pin(async move {
            let size = range.end - range.start;
            let mut bytes: Vec<u8> = Vec::new();
            bytes.try_reserve_exact(size as usize).map_err(|_| {
                let what = format!("{size} bytes of it do not fit the memory that a page has left");
                io::Error::new(io::ErrorKind::OutOfMemory, what)
            })?;
            // A browser says why in an exception, such as that a chosen file was changed since.
            let failed = |e: JsValue| {
                let said = e.dyn_ref::<js_sys::Error>().map(|e| String::from(e.message()));
                io::Error::other(said.unwrap_or_else(|| "the browser does not say why".into()))
            };
            let part = self.0.slice_with_f64_and_f64(range.start as f64, range.end as f64).map_err(failed)?;
            let read = JsFuture::from(part.array_buffer()).await.map_err(failed)?;
            let read = Uint8Array::new(&read);
            bytes.resize(read.length() as usize, 0);
            read.copy_to(&mut bytes);
            Ok(bytes.into())
        })
    }
}

/// A model on a device.
#[wasm_bindgen]
pub struct Explorer(Rc<Session>);

/// Opens a model from its files. `device` is gpu, cpu or reference.
///
/// # Errors
/// A text that says what is wrong with the files or the device.
#[wasm_bindgen]
pub async fn open(name: String, files: Files, device: String) -> Result<Explorer, JsError> {
    let choice = match device.as_str() {
        "gpu" => Choice::Gpu,
        "cpu" => Choice::Cpu,
        "reference" => Choice::Reference,
        other => return Err(JsError::new(&format!("{other:?} is none of gpu, cpu, reference"))),
    };
    let failed = |e: Error| JsError::new(&message(&e));
    let model = Model::from_sources_async(&name, files.0).await.map_err(failed)?;
    // Autotuning would compile dozens of pipelines whenever the page is opened.
    let options = Options { autotune: false, ..Options::from(choice) };
    Ok(Explorer(Rc::new(model.on_async(options).await.map_err(failed)?)))
}

#[wasm_bindgen]
impl Explorer {
    /// Answers a request, given as JSON. `tell` is called with what is done, the number of finished steps and their
    /// total. Resolves to `[JSON, [[name, shape, Float32Array], ...]]`; is rejected with a text.
    pub fn ask(&self, request: String, tell: Function) -> Promise {
        let session = self.0.clone();
        future_to_promise(async move {
            let fail = |e: String| JsValue::from(js_sys::Error::new(&e));
            let request: Request = serde_json::from_str(&request).map_err(|e| fail(format!("not a request: {e}")))?;
            let told = |what: &str, done: usize, of: usize| {
                let _ = tell.call3(&JsValue::NULL, &what.into(), &(done as f64).into(), &(of as f64).into());
                ControlFlow::Continue(())
            };
            let answer = session.explore_async(&request, &told).await.map_err(|e| fail(message(&e)))?;
            Ok(to_js(answer))
        })
    }
}

fn to_js(answer: Answer) -> JsValue {
    let array = |array: actscope::explore::Array| {
        let shape: Array = array.shape.iter().map(|n| JsValue::from(*n as f64)).collect();
        let values = Float32Array::new_with_length(array.values.len() as u32);
        values.copy_from(&array.values);
        JsValue::from(Array::of3(&array.name.into(), &shape, &values))
    };
    let arrays: Array = answer.arrays.into_iter().map(array).collect();
    Array::of2(&json!(answer.json).to_string().into(), &arrays).into()
}
