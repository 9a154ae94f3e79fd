//! What is computed from activations. Each file extends `Session` with its own methods.

pub mod edits;
pub mod generate;
pub mod lens;
pub mod sampling;
pub mod score;
pub mod top;
