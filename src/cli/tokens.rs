//! `actscope tokens`: the tokens of a text, their offsets in the text, and the end of the model's context. Read next:
//! `../model/token_select.rs`, which computes the offsets.

use super::texts::{Input, Length, TextArgs};
use super::{Failure, ModelArgs};
use crate::batch::BatchError;
use crate::model::token_select::Offsetter;
use crate::session::{Error, Model};
use clap::Args;
use serde_json::json;
use std::io::Write;

/// Arguments of `actscope tokens`.
#[derive(Args)]
pub(crate) struct Tokens {
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
}

impl Tokens {
    pub(super) fn run(self) -> Result<(), Failure> {
        let input = self.texts.read(&self.model)?;
        let files = self.model.open()?;
        let ids = self.texts.ids(&input, &files, Length::Any, &self.model)?;
        let vocab_size = files.config().vocab_size;
        for (text, ids) in ids.iter().enumerate() {
            if ids.is_empty() {
                return Err(Error::from(BatchError::Empty { text }).into());
            }
            if let Some(&id) = ids.iter().find(|id| **id as usize >= vocab_size) {
                return Err(Error::from(BatchError::Id { text, id, vocab_size }).into());
            }
        }
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.model.json {
            as_json(&input, &ids, &files, &mut out)?;
        } else {
            as_table(&ids, &files, &mut out)?;
        }
        out.flush()?;
        let n_positions = files.config().n_positions;
        for (text, ids) in ids.iter().enumerate().filter(|(_, ids)| ids.len() > n_positions) {
            self.model.say(format_args!(
                "note: text {text} has {} tokens, {} more than the context of {n_positions}; extract runs it with --window {n_positions}",
                ids.len(),
                ids.len() - n_positions
            ));
        }
        Ok(())
    }
}

fn as_table(ids: &[Vec<u32>], files: &Model, out: &mut impl Write) -> Result<(), Failure> {
    writeln!(out, "{:>4} {:>4} {:>6}  token", "text", "pos", "id")?;
    let n_positions = files.config().n_positions;
    for (text, ids) in ids.iter().enumerate() {
        for (position, id) in ids.iter().enumerate() {
            if position == n_positions {
                writeln!(out, "     ---- the context of {n_positions} tokens ends here ----")?;
            }
            writeln!(out, "{text:>4} {position:>4} {id:>6}  \"{}\"", files.token(*id).label())?;
        }
    }
    Ok(())
}

/// Writes one list per text. A token has `bytes` and `chars`, its ranges in the text (null if the tokenizer changes the
/// text, absent if ids were given), and `beyond_context` if it is after the end of the context.
fn as_json(input: &Input, ids: &[Vec<u32>], files: &Model, out: &mut impl Write) -> Result<(), Failure> {
    write!(out, "[")?;
    for (text, ids) in ids.iter().enumerate() {
        write!(out, "{}[", if text > 0 { "," } else { "" })?;
        let mut offsets = input.texts().get(text).map(|text| Offsetter::new(text));
        for (position, id) in ids.iter().enumerate() {
            let token = files.token(*id);
            let mut entry = json!({"position": position, "id": id, "token": token.text()});
            if let Some(offsets) = &mut offsets {
                let place = offsets.next(&token);
                entry["bytes"] = json!(place.as_ref().map(|place| [place.bytes.start, place.bytes.end]));
                entry["chars"] = json!(place.as_ref().map(|place| [place.chars.start, place.chars.end]));
            }
            if position >= files.config().n_positions {
                entry["beyond_context"] = json!(true);
            }
            write!(out, "{}{entry}", if position > 0 { "," } else { "" })?;
        }
        write!(out, "]")?;
    }
    writeln!(out, "]")?;
    Ok(())
}
