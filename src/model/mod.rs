//! A GPT-2 checkpoint and its forward pass. Owns everything between a model's files and a device's operations.
//! Read in this order: `config.rs`, `checkpoint.rs`, `tokenizer.rs`, `token_select.rs`, `batch.rs`, `params.rs`, `forward.rs`.

pub mod batch;
pub mod checkpoint;
pub mod config;
pub mod forward;
pub mod params;
pub mod token_select;
pub mod tokenizer;
pub mod windows;
