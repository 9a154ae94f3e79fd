//! What a person may ask of a run, and how it is carried out.
//! Read in this order: `site.rs`, `request.rs`, `layout.rs`, `recorder.rs`, `capture.rs`; `step.rs`, for texts
//! that grow.

pub mod capture;
pub mod layout;
pub mod non_number;
pub mod recorder;
pub mod request;
pub mod site;
pub mod step;
