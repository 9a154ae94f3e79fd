//! What stands for the tokenizer in a build without the feature `tokenizer`: a type that has no value, so that every model
//! has token ids only. Its functions are those of `tokenizer.rs` that the rest of the library calls.

use super::tokenizer::{Token, TokenizerError};
use std::convert::Infallible;
use std::path::Path;

/// A tokenizer, which this build does not have.
#[derive(Debug)]
pub struct Tokenizer(Infallible);

impl Tokenizer {
    /// No tokenizer.
    ///
    /// # Errors
    /// [`TokenizerError::NotBuilt`], always.
    pub fn from_folder(folder: &Path) -> Result<Option<Tokenizer>, TokenizerError> {
        Err(TokenizerError::NotBuilt { model: folder.display().to_string() })
    }

    /// No tokenizer.
    ///
    /// # Errors
    /// [`TokenizerError::NotBuilt`], always.
    pub fn from_bytes(file: &str, _bytes: &[u8]) -> Result<Tokenizer, TokenizerError> {
        Err(TokenizerError::NotBuilt { model: file.into() })
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// None: there is no such tokenizer.
    pub fn encode(&self, _text: &str) -> Result<Vec<u32>, TokenizerError> {
        match self.0 {}
    }

    /// The ids of a text whose special tokens are read as characters.
    ///
    /// # Errors
    /// None: there is no such tokenizer.
    pub fn encode_plain(&self, _text: &str) -> Result<Vec<u32>, TokenizerError> {
        match self.0 {}
    }

    /// What its user should know of how it was read.
    pub fn notes(&self) -> &[String] {
        match self.0 {}
    }

    /// Whether a text may fit.
    ///
    /// # Errors
    /// None: there is no such tokenizer.
    pub fn check_length(&self, _index: usize, _text: &str, _n_positions: usize) -> Result<(), TokenizerError> {
        match self.0 {}
    }

    /// The token with this id.
    pub fn token(&self, _id: u32) -> Token {
        match self.0 {}
    }

    /// The text of some tokens.
    ///
    /// # Errors
    /// None: there is no such tokenizer.
    pub fn decode(&self, _ids: &[u32]) -> Result<String, TokenizerError> {
        match self.0 {}
    }

    /// The id of GPT-2's one special token.
    pub fn end_of_text(&self) -> Option<u32> {
        match self.0 {}
    }
}
