//! Why a tokenizer cannot be used. Owns [`TokenizerError`], and turns panics of the `tokenizers` crate into errors.

use std::cell::Cell;
#[cfg(feature = "tokenizer")]
use std::panic::{AssertUnwindSafe, catch_unwind};
use thiserror::Error;

/// Why a text cannot be encoded, or tokens cannot be decoded.
#[derive(Clone, Debug, Error)]
pub enum TokenizerError {
    /// The tokenizer's files are invalid.
    #[error("cannot use the tokenizer {file}: {detail}")]
    Tokenizer {
        /// The file.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// The tokenizer is of an unsupported kind.
    #[error("cannot use the tokenizer {file}: {what}; {remedy}")]
    Unsupported {
        /// The file.
        file: String,
        /// What is not supported.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The model has no tokenizer.
    #[error(
        "the model {model} has no tokenizer (tokenizer.json, or vocab.json with merges.txt, or vocab.txt), so it cannot read \
         text"
    )]
    Missing {
        /// The model's name.
        model: String,
    },
    /// This build has no tokenizer.
    #[error(
        "this build of actscope reads no text (it lacks the cargo feature `tokenizer`), only token ids; the model is {model}"
    )]
    NotBuilt {
        /// The model's name.
        model: String,
    },
    /// The tokenizer refused the text.
    #[error("the tokenizer could not encode the text: {0}")]
    Encode(String),
    /// The tokenizer refused the token ids.
    #[error("the tokenizer could not decode the token ids: {0}")]
    Decode(String),
    /// The text is so long that it cannot fit.
    #[error(
        "text {text} has {bytes} bytes, and the {n_positions} tokens that this model has positions for hold {most} at most"
    )]
    TooLong {
        /// Index of the text.
        text: usize,
        /// The text's length in bytes.
        bytes: usize,
        /// The model's number of positions.
        n_positions: usize,
        /// The most bytes that this many tokens can hold.
        most: usize,
    },
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// True while a panic on this thread will be caught here and turned into an error, so that a panic hook can ignore it.
pub fn panics_are_guarded() -> bool {
    GUARDED.get()
}

/// Calls the `tokenizers` crate, which panics on some contents of `tokenizer.json`, and turns a panic into an error.
#[cfg(feature = "tokenizer")]
pub(super) fn guarded<T>(call: impl FnOnce() -> Result<T, tokenizers::Error>) -> Result<T, String> {
    GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(false);
    match result {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the tokenizers library failed".into()),
    }
}
