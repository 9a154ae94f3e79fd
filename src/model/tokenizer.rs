//! The checkpoint's own tokenizer (the `tokenizers` crate). Uses no model and no device. Read next: `token.rs` for the
//! readable forms of tokens, `tokenizer_files.rs` for the files, `token_select.rs` for finding tokens in a text.

#[cfg(feature = "tokenizer")]
use crate::model::model_dir::{ModelDir, file};
#[cfg(feature = "tokenizer")]
use crate::model::tokenizer_files;
#[cfg(feature = "tokenizer")]
use std::collections::HashMap;
#[cfg(feature = "tokenizer")]
use std::path::Path;
#[cfg(feature = "tokenizer")]
use std::sync::OnceLock;

#[cfg(not(feature = "tokenizer"))]
pub use super::no_tokenizer::Tokenizer;
pub use super::token::Token;
#[cfg(feature = "tokenizer")]
use super::tokenizer_error::guarded;
pub use super::tokenizer_error::{TokenizerError, panics_are_guarded};
#[cfg(feature = "tokenizer")]
use tokenizers::AddedToken;
#[cfg(feature = "tokenizer")]
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
#[cfg(feature = "tokenizer")]
use tokenizers::processors::PostProcessorWrapper;

/// A checkpoint's tokenizer.
#[cfg(feature = "tokenizer")]
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    /// A variant that encodes special tokens in a text as ordinary characters. Made at first use.
    plain: OnceLock<Box<tokenizers::Tokenizer>>,
    added: HashMap<u32, AddedToken>,
    /// Whether the vocabulary writes each byte as one character.
    byte_level: bool,
    /// Bytes of the longest token.
    longest: OnceLock<usize>,
    notes: Vec<String>,
}

#[cfg(feature = "tokenizer")]
impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").finish_non_exhaustive()
    }
}

#[cfg(feature = "tokenizer")]
impl Tokenizer {
    /// The tokenizer of a checkpoint's folder, with the tokens that the folder adds, as transformers reads it:
    /// `tokenizer.json`, else `vocab.json` with `merges.txt`, else `vocab.txt`, and beside it `tokenizer_config.json`,
    /// `added_tokens.json` and `special_tokens_map.json`. `None` if it has none of them.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenizer`] for invalid files, [`TokenizerError::Unsupported`] for an unsupported kind.
    pub fn from_folder(folder: &Path) -> Result<Option<Tokenizer>, TokenizerError> {
        Tokenizer::of_dir(&ModelDir::new(folder))
    }

    /// [`Tokenizer::from_folder`] for a folder on the disk or in memory.
    pub(crate) fn of_dir(dir: &ModelDir) -> Result<Option<Tokenizer>, TokenizerError> {
        let read = tokenizer_files::read(dir)?;
        read.map(|read| Tokenizer::new(read.tokenizer, read.notes)).transpose()
    }

    /// A tokenizer from the text of a `tokenizer.json` alone; `file` names it in messages.
    ///
    /// # Errors
    /// [`TokenizerError::Tokenizer`] for broken files.
    pub fn from_bytes(file: &str, bytes: &[u8]) -> Result<Tokenizer, TokenizerError> {
        let read = guarded(|| tokenizers::Tokenizer::from_bytes(bytes));
        let fail = |detail| TokenizerError::Tokenizer { file: file.into(), detail };
        Tokenizer::new(read.map_err(fail)?, Vec::new())
    }

    fn new(mut tokenizer: tokenizers::Tokenizer, notes: Vec<String>) -> Result<Tokenizer, TokenizerError> {
        // A file may ask for truncation or padding. Both would change activations silently, and transformers does
        // neither by default.
        let without = guarded(|| tokenizer.with_truncation(None).map(drop));
        without.map_err(|detail| TokenizerError::Tokenizer { file: file::TOKENIZER.into(), detail })?;
        tokenizer.with_padding(None);
        let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let added = added.iter().map(|(id, token)| (*id, token.clone())).collect();
        let written = [
            serde_json::to_string(&tokenizer.get_pre_tokenizer()),
            serde_json::to_string(&tokenizer.get_decoder()),
            serde_json::to_string(&tokenizer.get_normalizer()),
        ];
        let byte_level = written.iter().flatten().any(|part| part.contains("\"ByteLevel\""));
        let (plain, longest) = Default::default();
        Ok(Tokenizer { tokenizer, plain, added, byte_level, longest, notes })
    }

    /// Remarks for the user about how the files were read, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Encodes a text as token ids, as transformers' tokenizer does: special tokens in the text are recognised, and the
    /// tokens that the tokenizer adds before or after every text are included.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        encode(&self.tokenizer, text, true)
    }

    /// [`Tokenizer::encode`] without the tokens that the tokenizer adds before or after every text.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        encode(&self.tokenizer, text, false)
    }

    /// [`Tokenizer::encode`] that encodes special tokens in the text, such as `<|endoftext|>`, as ordinary characters
    /// (`split_special_tokens` of transformers).
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let plain = self.plain.get_or_init(|| {
            let mut plain = Box::new(self.tokenizer.clone());
            plain.set_encode_special_tokens(true);
            plain
        });
        encode(plain, text, true)
    }

    /// [`Tokenizer::encode`] for texts of any length. Encoding takes about a hundred times the text's size in memory. A
    /// long text is therefore encoded in pieces, split between words, if the tokenizer's kind ensures that no token
    /// changes.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn encode_in_pieces(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        const PIECE: usize = 1 << 18;
        if text.len() <= PIECE || !self.may_cut_between_words() {
            return self.encode(text);
        }
        let (mut ids, mut rest) = (Vec::new(), text);
        while !rest.is_empty() {
            // A letter, a space, a letter: the pattern of byte-level BPE begins a new part at such a space.
            let bytes = rest.as_bytes();
            let is_cut = |at: &usize| {
                bytes[*at] == b' ' && bytes[at - 1].is_ascii_lowercase() && bytes[at + 1].is_ascii_lowercase()
            };
            let end = (PIECE..bytes.len().saturating_sub(1)).find(is_cut).unwrap_or(rest.len());
            ids.extend(self.encode(&rest[..end])?);
            rest = &rest[end..];
        }
        Ok(ids)
    }

    /// True if no part of the tokenizer, except the pattern of byte-level BPE, depends on text across a space between
    /// words.
    fn may_cut_between_words(&self) -> bool {
        let byte_level = matches!(self.tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::ByteLevel(of)) if !of.add_prefix_space && of.use_regex);
        let nothing_added =
            matches!(self.tokenizer.get_post_processor(), None | Some(PostProcessorWrapper::ByteLevel(_)));
        let no_spaces = self.added.values().all(|token| !token.rstrip && !token.content.contains(char::is_whitespace));
        byte_level && nothing_added && no_spaces && self.tokenizer.get_normalizer().is_none()
    }

    /// The tokens that the tokenizer itself puts in front of every text, and how many it puts behind. Tokens of the text are not
    /// counted.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`].
    pub fn added_around(&self) -> Result<(Vec<u32>, usize), TokenizerError> {
        let (whole, text) = (self.encode("a")?, self.encode_bare("a")?);
        let front = whole.windows(text.len().max(1)).position(|ids| ids == text).unwrap_or(0);
        Ok((whole[..front].to_vec(), whole.len().saturating_sub(front + text.len())))
    }

    /// The special tokens with their written forms, by id.
    pub fn special_tokens(&self) -> HashMap<u32, String> {
        let special = self.added.iter().filter(|(_, token)| token.special);
        special.map(|(id, token)| (*id, token.content.clone())).collect()
    }

    /// Refuses a text with so many bytes that it must have more than `n_positions` tokens, because encoding it would
    /// take about a hundred times its size in memory. `index` is the text's index, for the message.
    ///
    /// # Errors
    /// [`TokenizerError::TooLong`]. Texts below a megabyte pass, and so do all texts of tokenizers that are not
    /// byte-level, whose tokens may match more bytes than they have.
    pub fn check_length(&self, index: usize, text: &str, n_positions: usize) -> Result<(), TokenizerError> {
        const SHORT: usize = 1 << 20;
        let byte_level = matches!(self.tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::ByteLevel(_)));
        // Some added tokens include all adjacent white space.
        let strips = || self.added.values().any(|token| token.lstrip || token.rstrip);
        if text.len() <= SHORT || !byte_level || self.tokenizer.get_normalizer().is_some() || strips() {
            return Ok(());
        }
        let of_vocabulary = || self.tokenizer.get_vocab(true).keys().map(|written| written.len()).max().unwrap_or(0);
        let longest = *self.longest.get_or_init(of_vocabulary);
        let most = longest.saturating_mul(n_positions);
        if text.len() > most {
            return Err(TokenizerError::TooLong { text: index, bytes: text.len(), n_positions, most });
        }
        Ok(())
    }

    /// The token with this id.
    pub fn token(&self, id: u32) -> Token {
        let written = || self.tokenizer.id_to_token(id);
        let bytes = match self.added.get(&id) {
            Some(added) => Some(added.content.as_bytes().to_vec()),
            None if self.byte_level => written().map(|written| bytes_of(&written)),
            None => written().map(String::into_bytes),
        };
        Token { id, bytes }
    }

    /// The text of some tokens. Bytes that are not a complete UTF-8 character become U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::Decode`] when the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        if self.byte_level {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| self.token(*id).bytes.unwrap_or_default()).collect();
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        guarded(|| self.tokenizer.decode(ids, false)).map_err(TokenizerError::Decode)
    }

    /// The token with this id in the vocabulary's own form, as transformers' `convert_ids_to_tokens` returns it:
    /// byte-level tokenizers write a space as `Ġ`.
    pub fn written(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// The id of `<|endoftext|>`, GPT-2's only special token, which begins and ends texts.
    pub fn end_of_text(&self) -> Option<u32> {
        self.tokenizer.token_to_id("<|endoftext|>")
    }
}

#[cfg(feature = "tokenizer")]
fn encode(tokenizer: &tokenizers::Tokenizer, text: &str, with_added: bool) -> Result<Vec<u32>, TokenizerError> {
    let encoding = guarded(|| tokenizer.encode_fast(text, with_added)).map_err(TokenizerError::Encode)?;
    Ok(encoding.get_ids().to_vec())
}

/// The bytes that a byte-level token stands for. GPT-2 writes each byte as one printable character: printable Latin-1
/// as itself, the other 68 bytes as U+0100 and up, in order (Radford et al. 2019, `bytes_to_unicode`).
pub(super) fn bytes_of(written: &str) -> Vec<u8> {
    let as_itself = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others: Vec<u8> = (0..=255u8).filter(|b| !as_itself(u32::from(*b))).collect();
    let mut bytes = Vec::with_capacity(written.len());
    for c in written.chars() {
        let code = c as u32;
        match others.get((code as usize).wrapping_sub(0x100)) {
            Some(byte) => bytes.push(*byte),
            None if as_itself(code) => bytes.push(code as u8),
            // Not a byte-level vocabulary: the character is itself.
            None => bytes.extend(c.to_string().into_bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_behind_the_characters() {
        assert_eq!(bytes_of("Ġcat"), b" cat");
        assert_eq!(bytes_of("Ċ"), b"\n");
        assert_eq!(bytes_of("ðŁĻĤ"), "🙂".as_bytes());
        assert_eq!(Token { id: 1, bytes: Some(vec![0xf0, 0x9f]) }.text(), "\\xF0\\x9F");
        assert_eq!(Token { id: 1, bytes: Some(b"a\n\x07".to_vec()) }.label(), "a\\n\\u{7}");
        assert_eq!(Token { id: 464, bytes: None }.text(), "#464");
    }
}
