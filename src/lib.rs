//! See inside GPT-2: every activation by name, by token, on your own GPU, with numbers you can trust.
//!
//! ```
//! use actscope::{Session, Site};
//!
//! // A name (`demo`, `gpt2`, `owner/name@revision`) or a checkpoint's folder, on the default device.
//! let session = Session::open("demo")?;
//! let batch = session.model().encode(&["The cat sat on the mat.", "A shorter one"])?;
//!
//! let mut hooks = session.model().hooks();
//! hooks.tap("blocks.*.hook_resid_post")?.tap("pattern.0")?;
//! let capture = session.run(&batch, &hooks)?;
//!
//! let pattern = capture.get(Site::Pattern(0)).unwrap(); // [batch, head, query, key]
//! let row: f32 = pattern.slice(ndarray::s![0, 0, 3, ..]).sum();
//! assert!((row - 1.0).abs() < 1e-5);
//! # Ok::<(), actscope::Error>(())
//! ```
//!
//! To read the code, begin with [`session`] (the main interface), then [`model::forward`] (the forward pass),
//! [`hooks::site`] (the list of hooks) and [`device`] (the operations that a device implements). ARCHITECTURE.md
//! describes all modules. Modules that are public only for this package's own binary, tests and benches are hidden in this
//! documentation. They may change in any release.

pub mod analysis;
pub mod batch;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod bench;
#[cfg(not(target_arch = "wasm32"))]
pub mod cache;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod config;
pub mod device;
pub mod explore;
pub(crate) mod file_kind;
pub mod hooks;
pub mod hub;
pub(crate) mod indices;
pub mod model;
pub mod options;
#[cfg(feature = "output")]
pub mod output;
#[cfg(feature = "plot")]
pub mod plot;
#[cfg(feature = "report")]
pub mod report;
pub mod session;
pub(crate) mod text;
pub mod verify;

pub use device::Choice;
pub use hooks::capture::Capture;
pub use hooks::request::{Edit, Hooks, Select};
pub use hooks::site::Site;
pub use hub::Hub;
pub use options::Options;
pub use session::{Error, Model, Session};

/// The programs in README and docs are doctests.
#[cfg(all(doctest, feature = "demo", feature = "tokenizer"))]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/hooks.md")]
    struct HooksDocument;
}
