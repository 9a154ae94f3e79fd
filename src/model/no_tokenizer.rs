//! Replaces the tokenizer in a build without the feature `tokenizer`: a type without values, so models run on token ids
//! only. It has the functions of `tokenizer.rs` that the rest of the library calls; read that file for what they do.

use super::token::Token;
use super::tokenizer_error::TokenizerError;
use crate::model::model_dir::ModelDir;
use std::convert::Infallible;
use std::path::Path;

/// The tokenizer, which this build does not have. No value of this type exists.
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
    pub(crate) fn of_dir(dir: &ModelDir) -> Result<Option<Tokenizer>, TokenizerError> {
        Tokenizer::from_folder(dir.folder())
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

    /// The ids of a text alone.
    ///
    /// # Errors
    /// None: there is no such tokenizer.
    pub fn encode_bare(&self, _text: &str) -> Result<Vec<u32>, TokenizerError> {
        match self.0 {}
    }

    /// The ids of a text whose special tokens are read as characters.
    ///
    /// # Errors
    /// None: there is no such tokenizer.
    pub fn encode_plain(&self, _text: &str) -> Result<Vec<u32>, TokenizerError> {
        match self.0 {}
    }

    /// The tokens that the tokenizer itself adds around every text.
    ///
    /// # Errors
    /// None: there is no such tokenizer.
    pub fn added_around(&self) -> Result<(Vec<u32>, usize), TokenizerError> {
        match self.0 {}
    }

    /// Remarks for the user about how the tokenizer was read.
    pub fn notes(&self) -> &[String] {
        match self.0 {}
    }

    /// Checks whether a text may fit.
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
