//! `actscope tokens`: how a text is cut.

use super::{Failure, ModelArgs, TextArgs};
use clap::Args;
use serde_json::json;
use std::io::Write;

/// Arguments of `actscope tokens`.
#[derive(Args)]
pub struct Tokens {
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
}

impl Tokens {
    pub(super) fn run(self) -> Result<(), Failure> {
        let texts = self.texts.texts()?;
        let files = self.model.open()?;
        let batch = self.texts.batch(&files, &texts, &self.model)?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let tokens = files.tokens(&batch);
        if self.model.json {
            let token = |(position, token): (usize, &crate::model::tokenizer::Token)| json!({"position": position, "id": token.id, "token": token.text()});
            let of_text =
                |tokens: &Vec<crate::model::tokenizer::Token>| tokens.iter().enumerate().map(token).collect::<Vec<_>>();
            writeln!(out, "{}", json!(tokens.iter().map(of_text).collect::<Vec<_>>()))?;
        } else {
            writeln!(out, "{:>4} {:>4} {:>6}  token", "text", "pos", "id")?;
            for (text, of_text) in tokens.iter().enumerate() {
                for (position, token) in of_text.iter().enumerate() {
                    writeln!(out, "{text:>4} {position:>4} {:>6}  \"{}\"", token.id, token.label())?;
                }
            }
        }
        out.flush()?;
        Ok(())
    }
}
