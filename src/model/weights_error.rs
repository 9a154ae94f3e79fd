//! Why a checkpoint cannot be used. Owns [`WeightsError`].

use crate::config::ConfigError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a checkpoint cannot be used.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// config.json is invalid.
    #[error("{folder}: {source}")]
    Config {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
    /// The folder has no weights in a supported format.
    #[error("{folder} has no model.safetensors and no model.safetensors.index.json; {hint}")]
    NoWeights {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// What to do.
        hint: String,
    },
    /// The folder has no config.json.
    #[error("{folder} has no config.json; {hint}")]
    NoConfig {
        /// The folder.
        folder: PathBuf,
        /// What the folder seems to be, and what to do.
        hint: String,
    },
    /// A file whose content is of another kind than its name says.
    #[error("{file} is not what its name says: it is {kind}")]
    Kind {
        /// The file.
        file: String,
        /// What it is, and what to do.
        kind: String,
    },
    /// Not a safetensors file, or a damaged one.
    #[error("{file} is not a whole safetensors file: {detail}; fetch it again")]
    Format {
        /// The file.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// The index of a sharded checkpoint is invalid.
    #[error("{file}: {detail}; fetch the checkpoint again")]
    Index {
        /// The index file.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// A required tensor is missing.
    #[error("the checkpoint lacks the tensor {name:?}, which config.json calls for")]
    Missing {
        /// The tensor's name.
        name: String,
    },
    /// A tensor that this GPT-2 does not have.
    #[error(
        "the tensor {name:?} in {file} is not part of the GPT-2 that config.json describes; is it the config.json of another checkpoint?"
    )]
    Unexpected {
        /// The tensor's name.
        name: String,
        /// The file it is in.
        file: String,
    },
    /// An adapter's tensor beside those of its model.
    #[error(
        "the tensor {name:?} in {file} belongs to a LoRA adapter that was not merged into its model; merge it with peft's \
         merge_and_unload(), and save what that returns"
    )]
    Adapter {
        /// The tensor's name.
        name: String,
        /// The file it is in.
        file: String,
    },
    /// A tensor's shape differs from the one that follows from config.json.
    #[error("the tensor {name:?} has shape {found:?} and config.json calls for {expected:?}")]
    Shape {
        /// The tensor's name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that follows from config.json.
        expected: Vec<usize>,
    },
    /// A tensor is stored in an unsupported data type.
    #[error("the tensor {name:?} is stored as {found}; actscope reads F64, F32, F16 and BF16")]
    Dtype {
        /// The tensor's name.
        name: String,
        /// The file's name of the data type.
        found: String,
    },
    /// The file was changed after it was opened.
    #[error(
        "{file} was changed while it was read, so what was computed from it means nothing; run again, and replace a checkpoint in use by renaming a new one over it"
    )]
    Changed {
        /// The file.
        file: String,
    },
}
