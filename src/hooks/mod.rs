//! Hooks: which activations a run records or edits, and how the run does so.
//! Read in this order: `site.rs`, `request.rs`, `layout.rs`, `recorder.rs`, `capture.rs`, and `step.rs`
//! for texts that grow.

pub mod capture;
#[doc(hidden)]
pub mod layout;
pub mod non_number;
#[doc(hidden)]
pub mod recorder;
pub mod request;
pub mod site;
#[doc(hidden)]
pub mod step;
