//! A GPT-2 checkpoint and its forward pass. Owns everything between a model's files and a device's operations.
//! Read in this order: `model_dir.rs`, `byte_source.rs`, `checkpoint.rs`, `process.rs`, `tokenizer.rs`
//! (with `tokenizer_files.rs`), `token_select.rs`, `windows.rs`, `params.rs`, `forward.rs`, `backward.rs`.

#[doc(hidden)]
pub mod backward;
pub mod byte_source;
pub mod checkpoint;
pub mod forward;
pub(crate) mod gradient_checkpointing;
pub(crate) mod model_dir;
#[cfg(not(feature = "tokenizer"))]
mod no_tokenizer;
#[doc(hidden)]
pub mod params;
pub mod process;
#[doc(hidden)]
pub mod shard_index;
pub(crate) mod token;
pub mod token_select;
pub mod tokenizer;
mod tokenizer_error;
#[cfg(feature = "tokenizer")]
mod tokenizer_files;
mod weights_error;
pub mod windows;
