//! What is computed from activations. Each file extends `Session` with its own methods.

pub mod attribute;
pub mod attribute_gradient;
pub mod attribution_patching;
pub mod cases;
#[cfg(feature = "linear-algebra")]
pub mod circuits;
pub mod edges;
mod edit_error;
pub mod edits;
pub mod generate;
pub mod gradients;
pub mod grammar;
pub mod heads;
pub mod lens;
pub mod metric;
pub mod path;
pub mod places;
pub mod sampling;
pub mod score;
pub mod statistics;
pub mod sweep;
pub mod top;
pub mod weights;
