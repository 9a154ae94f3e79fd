//! Several texts as one run: their tokens are the rows of one matrix, text after text, without padding. Owns the checks
//! on token ids. Only output arrays are padded (`hooks/capture.rs` lays them out as [batch, pos, ...]). Read next:
//! `model/forward.rs`.

use crate::config::Config;
use std::ops::Range;
use thiserror::Error;

/// Why a list of token ids cannot be run. Texts are counted from 0, as in arrays and tables.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BatchError {
    /// The batch has no texts.
    #[error("there is no text to run")]
    NoTexts,
    /// A text without tokens has no activations.
    #[error("text {text} has no tokens, so it has no activations")]
    Empty {
        /// Index of the text.
        text: usize,
    },
    /// A text is longer than the model's number of positions.
    #[error(
        "text {text} has {tokens} tokens, {} more than the {n_positions} positions this model knows",
        tokens - n_positions
    )]
    TooLong {
        /// Index of the text.
        text: usize,
        /// The text's number of tokens.
        tokens: usize,
        /// The model's number of positions.
        n_positions: usize,
    },
    /// A token id that the vocabulary does not have.
    #[error("text {text} holds the token id {id}, and this model's vocabulary ends at {}", vocab_size - 1)]
    Id {
        /// Index of the text.
        text: usize,
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
}

/// Checks texts of any length against a model's vocabulary.
///
/// # Errors
/// [`BatchError::Empty`] and [`BatchError::Id`].
pub fn check_ids<T: AsRef<[u32]>>(ids: &[T], config: &Config) -> Result<(), BatchError> {
    let vocab_size = config.vocab_size;
    for (text, ids) in ids.iter().map(AsRef::as_ref).enumerate() {
        if ids.is_empty() {
            return Err(BatchError::Empty { text });
        }
        if let Some(&id) = ids.iter().find(|id| **id as usize >= vocab_size) {
            return Err(BatchError::Id { text, id, vocab_size });
        }
    }
    Ok(())
}

/// Token ids of one or more texts, checked against a model.
#[derive(Clone, Debug)]
pub struct Batch {
    ids: Vec<u32>,
    positions: Vec<u32>,
    texts: Vec<Range<usize>>,
    /// The position of each text's first token: 0, unless earlier tokens of the text were already run.
    first_positions: Vec<usize>,
}

impl Batch {
    /// A batch of texts that start at position 0.
    ///
    /// # Errors
    /// [`BatchError`] names the text at fault.
    pub fn new<T: AsRef<[u32]>>(texts: &[T], config: &Config) -> Result<Batch, BatchError> {
        Batch::continued(texts, &vec![0; texts.len()], config)
    }

    /// A batch of the next tokens of texts. The first `first_positions[i]` tokens of text i were already run, and their
    /// keys and values are in a cache.
    ///
    /// # Errors
    /// [`BatchError`] names the text at fault.
    ///
    /// # Panics
    /// When the number of first positions is not the number of texts.
    pub fn continued<T: AsRef<[u32]>>(
        texts: &[T],
        first_positions: &[usize],
        config: &Config,
    ) -> Result<Batch, BatchError> {
        assert_eq!(texts.len(), first_positions.len(), "one first position for each text");
        if texts.is_empty() {
            return Err(BatchError::NoTexts);
        }
        let first_positions = first_positions.to_vec();
        let mut batch = Batch { ids: Vec::new(), positions: Vec::new(), texts: Vec::new(), first_positions };
        for (ids, &first) in texts.iter().map(AsRef::as_ref).zip(&batch.first_positions) {
            let start = batch.ids.len();
            batch.ids.extend_from_slice(ids);
            batch.positions.extend(first as u32..(first + ids.len()) as u32);
            batch.texts.push(start..batch.ids.len());
        }
        batch.check(config)?;
        Ok(batch)
    }

    /// Checks every text against a model, which may differ from the one that the batch was made for.
    ///
    /// # Errors
    /// [`BatchError`] names the text at fault.
    pub fn check(&self, config: &Config) -> Result<(), BatchError> {
        let Config { n_positions, vocab_size, .. } = *config;
        for (text, rows) in self.texts.iter().enumerate() {
            if rows.is_empty() {
                return Err(BatchError::Empty { text });
            }
            let tokens = self.n_keys(text);
            if tokens > n_positions {
                return Err(BatchError::TooLong { text, tokens, n_positions });
            }
            if let Some(&id) = self.ids_of(text).iter().find(|&&id| id as usize >= vocab_size) {
                return Err(BatchError::Id { text, id, vocab_size });
            }
        }
        Ok(())
    }

    /// The tokens of all texts, one row each.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The position of each row within its text.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// The range of rows of each text.
    pub fn texts(&self) -> &[Range<usize>] {
        &self.texts
    }

    /// The position of text `i`'s first token.
    pub fn first_position(&self, i: usize) -> usize {
        self.first_positions[i]
    }

    /// The number of keys that the last token of text `i` attends to: all tokens of the text so far.
    pub fn n_keys(&self, i: usize) -> usize {
        self.first_positions[i] + self.texts[i].len()
    }

    /// Splits the batch into groups of consecutive texts whose summed `cost` is at most `most`. A text that costs more
    /// forms a group of its own.
    pub fn groups(&self, most: usize, cost: impl Fn(usize) -> usize) -> Vec<Range<usize>> {
        let (mut groups, mut total): (Vec<Range<usize>>, usize) = (Vec::new(), 0);
        for i in 0..self.texts.len() {
            let of_text = cost(i);
            match groups.last_mut() {
                Some(group) if total.saturating_add(of_text) <= most => (group.end, total) = (i + 1, total + of_text),
                _ => (_, total) = (groups.push(i..i + 1), of_text),
            }
        }
        groups
    }

    /// A range of the texts as a separate batch.
    pub fn part(&self, texts: Range<usize>) -> Batch {
        let rows = self.texts[texts.start].start..self.texts[texts.end - 1].end;
        Batch {
            ids: self.ids[rows.clone()].to_vec(),
            positions: self.positions[rows.clone()].to_vec(),
            texts: self.texts[texts.clone()]
                .iter()
                .map(|text| text.start - rows.start..text.end - rows.start)
                .collect(),
            first_positions: self.first_positions[texts].to_vec(),
        }
    }

    /// The ids of text `i`.
    pub fn ids_of(&self, i: usize) -> &[u32] {
        &self.ids[self.texts[i].clone()]
    }

    /// The number of tokens of the longest text: the axis P of output arrays.
    pub fn n_pos(&self) -> usize {
        self.texts.iter().map(|t| t.len()).max().unwrap_or(0)
    }
}
