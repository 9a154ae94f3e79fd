//! `actscope score`: the log-probability of every token of texts, and perplexity. Read next: `../analysis/score.rs`,
//! which computes them.

use super::run::RunArgs;
use super::texts::{Length, TextArgs};
use super::{Failure, ModelArgs};
use crate::analysis::score::Score;
use crate::batch;
use crate::model::windows::Windows;
use crate::session::{Error, Progress, Session};
use clap::Args;
use serde_json::json;
use std::io::Write;

/// Arguments of `actscope score`.
#[derive(Args)]
pub(crate) struct ScoreCommand {
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Run longer texts in windows of N tokens that begin STRIDE tokens apart (N / 2 if STRIDE is not given), and score
    /// every token in the window where it has most context [default N: the model's context]
    #[arg(long, value_name = "N[:STRIDE]", conflicts_with = "truncate")]
    window: Option<Windows>,
    #[command(flatten)]
    run: RunArgs,
}

impl ScoreCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let input = self.texts.read(&self.model)?;
        let files = self.model.open()?;
        let most = files.config().n_positions;
        let windows = self.window.unwrap_or(Windows { size: most, stride: most.div_ceil(2) });
        if windows.size > most {
            return Err(Failure::Usage(format!(
                "--window {} is more than the {most} positions of this model; {most} is the most",
                windows.size
            )));
        }
        let ids = self.texts.ids(&input, &files, Length::Any, &self.model)?;
        batch::check_ids(&ids, files.config()).map_err(Error::from)?;
        let long = ids.iter().filter(|ids| ids.len() > windows.size).count();
        if long > 0 {
            let (texts, are) = if long == 1 { ("text", "is") } else { ("texts", "are") };
            self.model.say(format_args!("{long} long {texts} {are} run in windows of {windows} tokens"));
        }
        let session = self.run.session(files, &self.model)?;
        let run = async |told: Progress<'_>| session.score_async(&ids, windows, Some(told)).await;
        let scores = self.model.with_progress("blocks", run)?;
        let broken = |score: &Score| score.logprobs.iter().position(|p| !p.is_finite());
        if let Some((text, place)) = scores.iter().enumerate().find_map(|(n, score)| Some((n, broken(score)?))) {
            return Err(Failure::Run(format!(
                "the log-probability of token {} of text {text} is not a number, so the text has no score; \
                 `actscope extract -k '*'` names the first hook that holds a NaN or an infinity",
                place + 1
            )));
        }
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.model.json {
            self.as_json(&session, &ids, &scores, &mut out)?
        } else {
            print(&session, &ids, &scores, &mut out)?
        }
        out.flush()?;
        Ok(())
    }

    fn as_json(
        &self,
        session: &Session,
        ids: &[Vec<u32>],
        scores: &[Score],
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        let text = |(ids, score): (&Vec<u32>, &Score)| {
            let tokens: Vec<String> = ids.iter().map(|id| session.model().token(*id).text()).collect();
            // The first token has no score, because no token precedes it.
            let logprobs: Vec<Option<f64>> =
                std::iter::once(None).chain(score.logprobs.iter().copied().map(Some)).collect();
            json!({"ids": ids, "tokens": tokens, "logprobs": logprobs, "total": score.total(), "perplexity": score.perplexity()})
        };
        let all = all(scores);
        let texts: Vec<_> = ids.iter().zip(scores).map(text).collect();
        writeln!(out, "{}", json!({"texts": texts, "total": all.total(), "perplexity": all.perplexity()}))
    }
}

/// The score of all texts together.
fn all(scores: &[Score]) -> Score {
    Score { logprobs: scores.iter().flat_map(|score| score.logprobs.iter().copied()).collect() }
}

fn print(session: &Session, ids: &[Vec<u32>], scores: &[Score], out: &mut impl Write) -> std::io::Result<()> {
    let summary = |score: &Score| match score.perplexity() {
        Some(perplexity) => {
            format!("total {:.4} nats over {} tokens, perplexity {perplexity:.4}", score.total(), score.logprobs.len())
        }
        None => "one token, which has no log-probability because no token precedes it".into(),
    };
    for (text, (ids, score)) in ids.iter().zip(scores).enumerate() {
        if scores.len() > 1 {
            writeln!(out, "text {text}")?;
        }
        writeln!(out, "  {:>5} {:>10}  token", "place", "logprob")?;
        for (place, id) in ids.iter().enumerate() {
            let logprob = place.checked_sub(1).map_or("-".into(), |i| format!("{:.4}", score.logprobs[i]));
            writeln!(out, "  {place:>5} {logprob:>10}  \"{}\"", session.model().token(*id).label())?;
        }
        writeln!(out, "  {}", summary(score))?;
    }
    if scores.len() > 1 {
        writeln!(out, "all texts: {}", summary(&all(scores)))?;
    }
    Ok(())
}
