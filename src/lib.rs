//! actscope
pub mod batch;
pub mod config;
pub mod device;
pub mod hooks;
pub mod hub;
pub mod model;
pub mod session;
pub mod sites;
pub mod text;
pub mod weights;
pub use session::{Error, Session};
