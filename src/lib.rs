//! See inside GPT-2: every activation by name, by token, on your own GPU, with numbers you can trust.
//!
//! ```
//! use actscope::{Session, Site};
//!
//! // A name (`demo`, `gpt2`, `owner/name@revision`) or a checkpoint's folder, on the device that suits this machine.
//! let session = Session::open("demo")?;
//! let batch = session.files().encode(&["The cat sat on the mat.", "A shorter one"])?;
//!
//! let mut hooks = session.files().hooks();
//! hooks.tap("blocks.*.hook_resid_post")?.tap("pattern.0")?;
//! let capture = session.run(&batch, &hooks)?;
//!
//! let pattern = capture.get(Site::Pattern(0)).unwrap(); // [batch, head, query, key]
//! let row: f32 = pattern.slice(ndarray::s![0, 0, 3, ..]).sum();
//! assert!((row - 1.0).abs() < 1e-5);
//! # Ok::<(), actscope::Error>(())
//! ```
//!
//! To read the code, begin with [`session`] (the front door), then [`model`] (the forward pass), [`sites`] (the hook
//! dictionary) and [`device`] (what the forward pass asks of a device). ARCHITECTURE.md is the map.

pub mod batch;
#[cfg(not(target_arch = "wasm32"))]
pub mod bench;
pub mod capture;
#[cfg(not(target_arch = "wasm32"))]
pub mod cli;
pub mod config;
pub mod device;
pub mod hooks;
pub mod hub;
#[cfg(not(target_arch = "wasm32"))]
pub mod keep;
pub mod lens;
pub mod model;
#[cfg(not(target_arch = "wasm32"))]
pub mod output;
pub mod params;
#[cfg(not(target_arch = "wasm32"))]
pub mod plot;
pub mod recorder;
#[cfg(not(target_arch = "wasm32"))]
pub mod report;
pub mod session;
pub mod sites;
pub mod text;
pub mod verify;
pub mod weights;

pub use capture::Capture;
pub use device::{Choice, Edit};
pub use hooks::{Hooks, Select};
pub use session::{Error, Files, Session};
pub use sites::Site;
