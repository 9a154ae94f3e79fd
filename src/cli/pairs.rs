//! Pairs of a clean and a corrupt text for `patch` and `edges`, from options or from a file. Owns the format of the
//! file, and the messages about texts of different length.

use super::question::{self, QuestionArgs, token};
use super::texts::{TextArgs, lines, parse_ids};
use super::{Failure, ModelArgs};
use crate::analysis::metric::{Metric, Question};
use crate::model::tokenizer::Token;
use crate::session::Model;
use crate::text::nearest;
use clap::Args;
use serde_json::Value;
use std::path::PathBuf;

/// The pairs, by options or as a file.
#[derive(Args)]
pub(super) struct PairArgs {
    /// The clean text, in which the model shows the behaviour
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    clean: Option<String>,
    /// The clean text as token ids
    #[arg(long, value_name = "IDS", conflicts_with = "clean")]
    clean_ids: Option<String>,
    /// The corrupt text, in which the model does not show it
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    corrupt: Option<String>,
    /// The corrupt text as token ids
    #[arg(long, value_name = "IDS", conflicts_with = "corrupt")]
    corrupt_ids: Option<String>,
    /// A file of pairs: a JSON object per line with clean and corrupt (a text or a list of ids), and answer and wrong
    /// (a token's text or id)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["clean", "clean_ids", "corrupt", "corrupt_ids", "answer", "wrong"])]
    pairs: Option<PathBuf>,
}

/// Hides the arguments of [`TextArgs`] that name texts, because `patch` and `edges` have other options for their texts.
/// The arguments that say how texts are encoded stay.
pub(super) fn hide_texts(arg: clap::Arg) -> clap::Arg {
    match arg.get_id().as_str() {
        "texts" | "file" | "field" | "document" | "ids" => arg.hide(true),
        _ => arg,
    }
}

/// One pair before it is aligned.
pub(super) struct Pair {
    clean: Vec<u32>,
    corrupt: Vec<u32>,
    answer: Option<u32>,
    wrong: Option<u32>,
    /// Where the pair comes from, for messages: a line of a file, or the options.
    place: String,
    in_file: bool,
}

/// The metric that `--metric` names. Without it, the logit difference if all pairs have a wrong token, else the logit.
///
/// # Errors
/// A pair lacks a token that the metric needs, or only some pairs have a wrong token and no metric is named.
pub(super) fn metric(pairs: &[Pair], name: Option<&str>) -> Result<Metric, Failure> {
    let lacks = |token: fn(&Pair) -> Option<u32>| pairs.iter().find(|pair| token(pair).is_none());
    let (no_answer, no_wrong) = (lacks(|pair| pair.answer), lacks(|pair| pair.wrong));
    // The options --answer and --wrong cannot supply a missing token, because they conflict with --pairs.
    if let (Some(lacking), None, true) = (no_wrong, name, pairs.iter().any(|pair| pair.wrong.is_some())) {
        return Err(Failure::Run(format!(
            "{} has no \"wrong\", and other pairs have one; give it to all or to none, or name a --metric",
            lacking.place
        )));
    }
    let metric = question::metric(name, false, no_answer.is_none(), no_wrong.is_none());
    match (metric, no_answer.or(no_wrong)) {
        (Err(Failure::Usage(_)), Some(lacking)) if lacking.in_file => {
            let what = if lacking.answer.is_none() { "\"answer\"" } else { "\"wrong\"" };
            let next = "add it, or choose another metric with --metric, such as kl or loss";
            Err(Failure::Run(format!("{} has no {what}, which the metric needs; {next}", lacking.place)))
        }
        (metric, _) => metric,
    }
}

impl PairArgs {
    /// The file of pairs. No output may replace it.
    pub(super) fn file(&self) -> Option<PathBuf> {
        self.pairs.clone()
    }

    /// Reads the pairs, and the answer and wrong tokens of each.
    pub(super) fn read(
        &self,
        question: &QuestionArgs,
        texts: &TextArgs,
        files: &Model,
        model: &ModelArgs,
    ) -> Result<Vec<Pair>, Failure> {
        let Some(file) = &self.pairs else {
            let side = |text: &Option<String>, ids: &Option<String>, name: &str| match (text, ids) {
                (Some(text), _) => Ok(texts.encoded(std::slice::from_ref(text), files, model)?.remove(0)),
                (None, Some(ids)) => {
                    let lists = parse_ids(ids).map_err(|e| Failure::Usage(format!("--{name}-ids: {e}")))?;
                    Ok(texts.begun_and_cut(lists, files, model)?.concat())
                }
                (None, None) => Err(Failure::Usage(format!("give --{name}, or many pairs with --pairs FILE"))),
            };
            return Ok(vec![Pair {
                clean: side(&self.clean, &self.clean_ids, "clean")?,
                corrupt: side(&self.corrupt, &self.corrupt_ids, "corrupt")?,
                answer: question.answer(files, model)?,
                wrong: question.wrong(files, model)?,
                place: "the pair".into(),
                in_file: false,
            }]);
        };
        let lines: Vec<(usize, String)> =
            lines(file)?.into_iter().filter(|(_, line)| !line.trim().is_empty()).collect();
        if lines.is_empty() {
            return Err(Failure::Run(format!("{} holds no pair; write one JSON object per line", file.display())));
        }
        lines
            .iter()
            .map(|(i, line)| pair(line, format!("line {i} of {}", file.display()), (texts, files, model)))
            .collect()
    }
}

impl Pair {
    /// The tokens of both texts.
    pub(super) fn tokens(&self, files: &Model) -> [Vec<Token>; 2] {
        [&self.clean, &self.corrupt].map(|ids| ids.iter().map(|id| files.token(*id)).collect())
    }

    /// Checks that both texts have the same number of tokens. `help` is the next step in the message.
    ///
    /// # Errors
    /// [`Failure::Usage`], with the tokens side by side.
    pub(super) fn check_lengths(&self, files: &Model, help: &str) -> Result<(), Failure> {
        let [clean, corrupt] = self.tokens(files);
        if clean.len() == corrupt.len() {
            return Ok(());
        }
        Err(Failure::Usage(format!(
            "{}: the clean text has {} tokens and the corrupt one {}, so they do not line up; {}; {help}",
            self.place,
            clean.len(),
            corrupt.len(),
            columns(&clean, &corrupt)
        )))
    }

    /// The clean and the corrupt text, each with its question.
    pub(super) fn sides(
        &self,
        n: usize,
        question: &QuestionArgs,
        files: &Model,
    ) -> Result<[(Vec<u32>, Question); 2], Failure> {
        let [clean, corrupt] = self.tokens(files);
        let of = |tokens: &[Token]| -> Result<Question, Failure> {
            let position = question.position(tokens, n)?;
            Ok(Question { position, answer: self.answer.unwrap_or(0), wrong: self.wrong.unwrap_or(0) })
        };
        Ok([(self.clean.clone(), of(&clean)?), (self.corrupt.clone(), of(&corrupt)?)])
    }
}

/// Parses one line of a file of pairs.
fn pair(line: &str, place: String, (texts, files, model): (&TextArgs, &Model, &ModelArgs)) -> Result<Pair, Failure> {
    const FIELDS: [&str; 4] = ["clean", "corrupt", "answer", "wrong"];
    let fail = |what: String| Failure::Run(format!("{place} {what}"));
    let value: Value = serde_json::from_str(line).map_err(|e| fail(format!("is not JSON: {e}")))?;
    let object = value.as_object().ok_or_else(|| fail("is JSON, but not an object with fields".into()))?;
    if let Some(other) = object.keys().find(|key| !FIELDS.contains(&key.as_str())) {
        let near = nearest(other, FIELDS).into_iter().next().map(|(_, name)| name);
        let near = near.filter(|near| !object.contains_key(*near)).map(|near| format!("; is {near:?} meant?"));
        return Err(fail(format!(
            "has a field {other:?}, and a pair has clean, corrupt, answer and wrong{}",
            near.unwrap_or_default()
        )));
    }
    let side = |name: &str| match object.get(name) {
        Some(Value::String(text)) => {
            let ids = texts.encoded(std::slice::from_ref(text), files, model)?.remove(0);
            if ids.is_empty() { Err(fail(format!("has no text in {name:?}"))) } else { Ok(ids) }
        }
        Some(Value::Array(ids)) => {
            let ids = ids.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
            let ids = ids.collect::<Option<Vec<u32>>>().filter(|ids| !ids.is_empty());
            let ids = ids.ok_or_else(|| fail(format!("has no list of token ids in {name:?}")))?;
            Ok(texts.begun_and_cut(vec![ids], files, model)?.remove(0))
        }
        Some(_) => Err(fail(format!("has neither a text nor a list of ids in {name:?}"))),
        None => Err(fail(format!("has no field {name:?}; a pair has clean, corrupt, answer and wrong"))),
    };
    let word = |name: &str| match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => {
            let quiet = ModelArgs { model: model.model.clone(), quiet: true, json: false };
            token(text, name, files, &quiet).map(Some).map_err(|e| match e {
                Failure::Usage(what) | Failure::Run(what) => fail(format!("has an unusable token: {what}")),
                other => other,
            })
        }
        Some(Value::Number(id)) => {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.filter(|id| (*id as usize) < files.config().vocab_size);
            id.map(Some).ok_or_else(|| fail(format!("has no token id of this model in {name:?}")))
        }
        Some(_) => Err(fail(format!("has neither a token nor an id in {name:?}"))),
    };
    Ok(Pair {
        clean: side("clean")?,
        corrupt: side("corrupt")?,
        answer: word("answer")?,
        wrong: word("wrong")?,
        place,
        in_file: true,
    })
}

/// Two texts token by token from the first difference on, for a message on one line.
fn columns(clean: &[Token], corrupt: &[Token]) -> String {
    const MOST: usize = 24;
    let n = clean.len().max(corrupt.len());
    let label =
        |tokens: &[Token], i: usize| tokens.get(i).map_or("-".to_string(), |token| format!("{:?}", token.text()));
    let first = (0..n).find(|i| label(clean, *i) != label(corrupt, *i)).unwrap_or(0);
    let shown: Vec<String> = (first..n.min(first + MOST))
        .map(|i| {
            let (a, b) = (label(clean, i), label(corrupt, i));
            if a == b { format!("{i}: {a}") } else { format!("{i}: {a} / {b}") }
        })
        .collect();
    format!(
        "clean / corrupt from token {first} on: {}{}",
        shown.join(" | "),
        if first + MOST < n { " | …" } else { "" }
    )
}
