//! The question about a model's prediction: `--answer`, `--wrong` and `--metric-token`. Owns the ways to name a token,
//! and the default metric.

use super::{Failure, ModelArgs};
use crate::analysis::metric::Metric;
use crate::model::token_select;
use crate::model::tokenizer::Token;
use crate::session::Model;
use clap::Args;

/// The tokens whose logits are read, and the position where they are read.
#[derive(Args)]
pub(super) struct QuestionArgs {
    /// The right token: its text, or id:123
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    answer: Option<String>,
    /// The wrong token, with which the answer is compared: its text, or id:123
    #[arg(long, value_name = "TOKEN", requires = "answer", allow_hyphen_values = true)]
    wrong: Option<String>,
    /// The token of the text at which logits are read: its index or its text [default: the last token]
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    metric_token: Option<String>,
}

impl QuestionArgs {
    /// True if any of these options is given.
    pub(crate) fn any(&self) -> bool {
        self.answer.is_some() || self.metric_token.is_some()
    }

    /// The id of the right token; `None` without --answer.
    pub(super) fn answer(&self, files: &Model, model: &ModelArgs) -> Result<Option<u32>, Failure> {
        self.answer.as_ref().map(|written| token(written, "--answer", files, model)).transpose()
    }

    /// The id of the wrong token; `None` without --wrong.
    pub(super) fn wrong(&self, files: &Model, model: &ModelArgs) -> Result<Option<u32>, Failure> {
        self.wrong.as_ref().map(|written| token(written, "--wrong", files, model)).transpose()
    }

    /// The position in a text at which logits are read. `text` is the text's number, for messages.
    pub(super) fn position(&self, tokens: &[Token], text: usize) -> Result<usize, Failure> {
        let Some(written) = &self.metric_token else { return Ok(tokens.len() - 1) };
        let found = token_select::select(std::slice::from_ref(written), tokens, text);
        match found.map_err(|e| Failure::Usage(format!("--metric-token {e}")))?.positions.as_slice() {
            [one] => Ok(*one),
            several => Err(Failure::Usage(format!(
                "--metric-token {written:?} is tokens {several:?} of text {text}; choose one, by its index"
            ))),
        }
    }
}

/// The metric that `--metric` names. Without it, the logit difference if a wrong token is given, else the loss if
/// `loss` is true and no answer is given, else the logit. `answer` and `wrong` say which tokens are given.
pub(super) fn metric(name: Option<&str>, loss: bool, answer: bool, wrong: bool) -> Result<Metric, Failure> {
    let metric = match name {
        Some(name) => name.parse().map_err(|e| Failure::Usage(format!("--metric: {e}")))?,
        None if wrong => Metric::LogitDiff,
        None if loss && !answer => Metric::Loss,
        None => Metric::Logit,
    };
    needs(metric, "--metric", answer, wrong)
}

/// Checks that a metric has the tokens that it needs, and returns it. `option` is the option that names the metric.
///
/// # Errors
/// [`Failure::Usage`] if a token is missing.
pub(super) fn needs(metric: Metric, option: &str, answer: bool, wrong: bool) -> Result<Metric, Failure> {
    match metric {
        Metric::LogitDiff if !wrong => {
            Err(Failure::Usage(format!("{option} logit-diff needs a wrong token to compare with: give --wrong")))
        }
        _ if metric.needs_answer() && !answer => {
            Err(Failure::Usage(format!("{option} {} needs an answer token: give --answer", metric.name())))
        }
        _ => Ok(metric),
    }
}

/// The id of a token that is written as its text or as `id:123`. `name` is the option or field, for messages.
///
/// # Errors
/// [`Failure::Usage`] for a text of several tokens and for an id beyond the vocabulary.
pub(super) fn token(written: &str, name: &str, files: &Model, model: &ModelArgs) -> Result<u32, Failure> {
    let n_vocab = files.config().vocab_size;
    if let Some(id) = written.strip_prefix("id:").and_then(|id| id.parse::<u32>().ok()) {
        return if (id as usize) < n_vocab {
            Ok(id)
        } else {
            Err(Failure::Usage(format!(
                "{name} id:{id} is beyond the vocabulary, which ends at {}; give a smaller id, or the token's text",
                n_vocab - 1
            )))
        };
    }
    let tokenizer = files.tokenizer()?;
    let shown =
        |ids: &[u32]| ids.iter().map(|id| format!("{:?}", files.token(*id).text())).collect::<Vec<_>>().join(" ");
    match tokenizer.encode_bare(written)?.as_slice() {
        [id] if *id as usize >= n_vocab => Err(Failure::Usage(format!(
            "{name} {written:?} is token {id}, beyond the model's vocabulary, which ends at {}",
            n_vocab - 1
        ))),
        [id] => {
            let spaced = format!(" {written}");
            if !written.starts_with(' ')
                && let [other] = tokenizer.encode_bare(&spaced)?.as_slice()
            {
                model.say(format_args!(
                    "note: {name} is {written:?} without a leading space (id {id}); within a text it is mostly {spaced:?} (id {other})"
                ));
            }
            Ok(*id)
        }
        several => {
            let spaced = format!(" {written}");
            let next = match tokenizer.encode_bare(&spaced)?.as_slice() {
                [_] => format!("{spaced:?}, with a space in front, is one"),
                _ => "give one token, with a space in front where the text has one".into(),
            };
            Err(Failure::Usage(format!("{name} {written:?} is {} tokens, {}; {next}", several.len(), shown(several))))
        }
    }
}
