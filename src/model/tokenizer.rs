//! Text and tokens: the checkpoint's own tokenizer (the `tokenizers` crate), and readable forms of tokens. Uses no
//! model and no device. Read next: `tokenizer_files.rs` for the files, `token_select.rs` for finding tokens in a text.

#[cfg(feature = "tokenizer")]
use crate::model::model_dir::ModelDir;
#[cfg(feature = "tokenizer")]
use crate::model::tokenizer_files;
use std::cell::Cell;
#[cfg(feature = "tokenizer")]
use std::collections::HashMap;
#[cfg(feature = "tokenizer")]
use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "tokenizer")]
use std::path::Path;
#[cfg(feature = "tokenizer")]
use std::sync::OnceLock;
use thiserror::Error;

#[cfg(not(feature = "tokenizer"))]
pub use super::no_tokenizer::Tokenizer;
#[cfg(feature = "tokenizer")]
use tokenizers::AddedToken;
#[cfg(feature = "tokenizer")]
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
#[cfg(feature = "tokenizer")]
use tokenizers::processors::PostProcessorWrapper;

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

/// One token: its id and the bytes that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Row of the embedding.
    pub id: u32,
    /// Its bytes; `None` without a tokenizer.
    pub bytes: Option<Vec<u8>>,
}

impl Token {
    /// The token's text. Bytes that are not a complete UTF-8 character are written as `\xE2`, a token without bytes as
    /// `#464`.
    pub fn text(&self) -> String {
        let Some(bytes) = &self.bytes else { return format!("#{}", self.id) };
        let part = |chunk: std::str::Utf8Chunk<'_>| {
            let broken: String = chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")).collect();
            chunk.valid().to_string() + &broken
        };
        bytes.utf8_chunks().map(part).collect()
    }

    /// The token on one line, for use between quotes. Invisible and ambiguous characters are escaped as in Rust (`\n`,
    /// `\u{a0}`, `\\`), and bytes that are not a complete character are written as `\xE2`. Different tokens of a
    /// vocabulary have different labels.
    pub fn label(&self) -> String {
        self.shown(&|c| Some(c).filter(|c| seen_as_it_is(*c)))
    }

    /// Several tokens as one text, in the form of [`Token::label`]. Characters for which `has` returns false are
    /// escaped too.
    pub fn label_of(tokens: &[Token], has: impl Fn(char) -> bool) -> String {
        let Some(bytes) = tokens.iter().map(|token| token.bytes.as_deref()).collect::<Option<Vec<_>>>() else {
            return tokens.iter().map(Token::text).collect::<Vec<_>>().join(" ");
        };
        // Join the bytes first, so that characters split across tokens are complete.
        let whole = Token { id: 0, bytes: Some(bytes.concat()) };
        whole.shown(&|c| Some(c).filter(|c| *c == ' ' || has(*c) && seen_as_it_is(*c)))
    }

    /// [`Token::label`] for use without quotes, such as in pictures: a space is `␣`. Characters for which `has` returns
    /// false (a font lacks them, for example) are escaped too.
    pub fn mark(&self, has: impl Fn(char) -> bool) -> String {
        self.shown(&|c| match c {
            ' ' => Some('␣'),
            '␣' => None,
            _ => Some(c).filter(|c| has(*c) && seen_as_it_is(*c)),
        })
    }

    /// The token with each character mapped by `plain`, or escaped when `plain` returns `None`.
    fn shown(&self, plain: &dyn Fn(char) -> Option<char>) -> String {
        let Some(bytes) = &self.bytes else { return format!("#{}", self.id) };
        let mut shown = String::new();
        for chunk in bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                match plain(c) {
                    Some(c) => shown.push(c),
                    None if c.is_ascii() || c.escape_debug().len() > 1 => shown.extend(c.escape_debug()),
                    None => shown.extend(c.escape_unicode()),
                }
            }
            chunk.invalid().iter().for_each(|byte| shown.push_str(&format!("\\x{byte:02X}")));
        }
        shown
    }
}

/// True for control characters, line ends, and the controls of bidirectional text (Unicode UAX #9), which change the
/// display order of letters.
#[cfg_attr(not(feature = "plot"), allow(dead_code, reason = "only pictures use it"))]
pub(crate) fn is_control(c: char) -> bool {
    const BIDI: [char; 3] = ['\u{61c}', '\u{200e}', '\u{200f}'];
    c.is_control() || BIDI.contains(&c) || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// False for combining and invisible characters, all spaces except U+0020, and the backslash, which begins escapes.
fn seen_as_it_is(c: char) -> bool {
    matches!(c, '\'' | '"') || c.escape_debug().len() == 1
}

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
        without.map_err(TokenizerError::Encode)?;
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
    /// [`TokenizerError::Encode`] when the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        if self.byte_level {
            let bytes: Vec<u8> = ids.iter().flat_map(|id| self.token(*id).bytes.unwrap_or_default()).collect();
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        guarded(|| self.tokenizer.decode(ids, false)).map_err(TokenizerError::Encode)
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
        Err(_) => Err("it says something that the tokenizers library cannot do".into()),
    }
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

    #[test]
    fn no_two_tokens_look_alike() {
        let alike: [&[u8]; 16] = [
            b" ",
            b"  ",
            "\u{a0}".as_bytes(),
            "␣".as_bytes(),
            b"\t",
            b"\n",
            b"\\n",
            b"\xe2",
            b"\\xE2",
            "\u{200b}".as_bytes(),
            "\u{202e}".as_bytes(),
            b"",
            "e\u{301}".as_bytes(),
            "é".as_bytes(),
            "❤".as_bytes(),
            "❤\u{fe0f}".as_bytes(),
        ];
        let tokens = alike.map(|bytes| Token { id: 1, bytes: Some(bytes.to_vec()) });
        let labels: Vec<String> = tokens.iter().map(Token::label).collect();
        let marks: Vec<String> = tokens.iter().map(|token| token.mark(|_| true)).collect();
        for shown in [&labels, &marks] {
            let different: std::collections::BTreeSet<&String> = shown.iter().collect();
            assert_eq!(different.len(), tokens.len(), "{shown:?}");
        }
        let of = |text: &str| Token { id: 1, bytes: Some(text.into()) };
        assert_eq!((of(" it's\n").label(), of(" it's\n").mark(|_| true)), (" it's\\n".into(), "␣it's\\n".into()));
        assert_eq!(of(" 你é").mark(|c| c.is_ascii()), "␣\\u{4f60}\\u{e9}");
        assert_eq!(of("שלום").label(), "שלום");
    }
}
