//! Metrics: one number that summarises a run's prediction, such as a logit, the difference of two logits, a probability, the loss,
//! or the divergence from another run. Computed in f64 on the host. Owns which values a metric needs, and the sink that computes it.
//! Read next: `sweep.rs`, which measures with it.

use crate::analysis::sampling::log_sum_exp;
use crate::batch::Batch;
use crate::config::Config;
use crate::hooks::capture::Sink;
use crate::hooks::request::{HookError, Hooks, Select};
use crate::hooks::site::Site;
use crate::model::params::Direction;
use crate::text::named;
use ndarray::{ArrayViewD, Axis};

/// Which number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// The answer's logit less the wrong answer's.
    LogitDiff,
    /// The answer's logit.
    Logit,
    /// The answer's log-probability, in nats.
    Logprob,
    /// The answer's probability.
    Prob,
    /// The mean over the text of each next token's negative log-probability, in nats.
    Loss,
    /// KL(unchanged || this run), in nats.
    Kl,
}

named!(Metric: "logit-diff" LogitDiff, "logit" Logit, "logprob" Logprob, "prob" Prob, "loss" Loss, "kl" Kl);

impl Metric {
    /// True if the metric needs an answer token.
    pub fn needs_answer(self) -> bool {
        !matches!(self, Metric::Loss | Metric::Kl)
    }

    /// True if the logits of one or two tokens are enough.
    fn few(self) -> bool {
        matches!(self, Metric::LogitDiff | Metric::Logit)
    }
}

/// The question about one text: which prediction the metric reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The position whose logits are read.
    pub position: usize,
    /// The right token. Ignored by metrics that need none.
    pub answer: u32,
    /// The wrong one, for [`Metric::LogitDiff`].
    pub wrong: u32,
}

impl Question {
    /// Checks that a text of `n_tokens` tokens and the vocabulary have what a metric needs. The error says what is missing.
    pub(super) fn check(&self, metric: Metric, n_tokens: usize, config: &Config) -> Result<(), String> {
        if metric == Metric::Loss && n_tokens < 2 {
            return Err("it has one token, and the loss is about the tokens after the first".into());
        }
        if metric != Metric::Loss && self.position >= n_tokens {
            return Err(format!("the position {} is not one of its {n_tokens}", self.position));
        }
        let asked = [(metric.needs_answer(), self.answer), (metric == Metric::LogitDiff, self.wrong)];
        match asked.into_iter().find(|(needed, id)| *needed && *id as usize >= config.vocab_size) {
            Some((_, id)) => {
                Err(format!("the token id {id} is not one of the {} of the vocabulary", config.vocab_size))
            }
            None => Ok(()),
        }
    }
}

/// Log-probabilities of a row of logits.
pub(super) fn log_softmax<'a>(logits: impl Iterator<Item = &'a f32> + Clone) -> Vec<f64> {
    let z = log_sum_exp(logits.clone());
    logits.map(|x| f64::from(*x) - z).collect()
}

/// KL(p || q) of log-probabilities, in nats.
pub(super) fn divergence(p: &[f64], q: &[f64]) -> f64 {
    p.iter().zip(q).filter(|(p, _)| **p > f64::NEG_INFINITY).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// Reads the metric of every text of a run.
pub(super) struct MetricReader<'a> {
    pub metric: Metric,
    pub question: &'a Question,
    /// The unembedding's directions of the answer and the wrong answer, if the logits are computed here.
    pub directions: Option<&'a [Direction; 2]>,
    /// The tokens of the text, for the loss.
    pub ids: &'a [u32],
    /// Log-probabilities of the unchanged run, for the divergence. Without them, this run's are stored.
    pub unchanged: Option<&'a [f64]>,
    /// The metric of each text.
    pub values: Vec<f64>,
    /// The log-probabilities of the last text that was read, if `unchanged` is `None`.
    pub log_probabilities: Vec<f64>,
}

impl<'a> MetricReader<'a> {
    /// A reading of a text from its logits. For a divergence it stores the log-probabilities.
    pub(super) fn new(metric: Metric, question: &'a Question, ids: &'a [u32]) -> MetricReader<'a> {
        let (values, log_probabilities) = Default::default();
        MetricReader { metric, question, directions: None, ids, unchanged: None, values, log_probabilities }
    }
}

impl MetricReader<'_> {
    /// The site that the metric is read at.
    pub(crate) fn site(&self) -> Site {
        if self.directions.is_some() { Site::LnFinalOut } else { Site::Unembed }
    }

    /// Adds a tap of the values that it needs to a request.
    pub(crate) fn ask(&self, hooks: &mut Hooks, batch: &Batch) -> Result<(), HookError> {
        let copies = batch.texts().len();
        let positions = positions(self.metric, self.question, self.ids.len());
        hooks.tap_at(self.site(), Select::all().positions(vec![positions; copies])).map(drop)
    }

    fn of_logits(&mut self, logits: &ArrayViewD<'_, f32>) -> f64 {
        let Question { answer, wrong, position } = *self.question;
        // If all rows were recorded, the question's row is one of them.
        let first = if self.metric == Metric::Loss || logits.len_of(Axis(0)) == 1 { 0 } else { position };
        let row = |n: usize| logits.index_axis(Axis(0), first + n);
        let (answer, wrong) = (answer as usize, wrong as usize);
        match self.metric {
            Metric::LogitDiff => f64::from(row(0)[answer]) - f64::from(row(0)[wrong]),
            Metric::Logit => f64::from(row(0)[answer]),
            Metric::Logprob | Metric::Prob => {
                let z = log_sum_exp(row(0).iter());
                let log = f64::from(row(0)[answer]) - z;
                if self.metric == Metric::Prob { log.exp() } else { log }
            }
            Metric::Loss => {
                let of = |n: usize| {
                    let z = log_sum_exp(row(n).iter());
                    z - f64::from(row(n)[self.ids[n + 1] as usize])
                };
                (0..self.ids.len() - 1).map(of).sum::<f64>() / (self.ids.len() - 1) as f64
            }
            Metric::Kl => {
                let here = log_softmax(row(0).iter());
                let Some(unchanged) = self.unchanged else {
                    self.log_probabilities = here;
                    return 0.0;
                };
                divergence(unchanged, &here)
            }
        }
    }
}

impl Sink for MetricReader<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        if site != self.site() {
            return Ok(());
        }
        let value = match self.directions {
            Some([answer, wrong]) => {
                let at = if values.len_of(Axis(0)) == 1 { 0 } else { self.question.position };
                let row = values.index_axis(Axis(0), at);
                let logit = |of: &Direction| of.logit(row.iter().copied());
                if self.metric == Metric::LogitDiff { logit(answer) - logit(wrong) } else { logit(answer) }
            }
            None => self.of_logits(&values),
        };
        if self.values.len() <= text {
            self.values.resize(text + 1, f64::NAN);
        }
        self.values[text] = value;
        Ok(())
    }
}

/// A metric of one text, with what it needs, for [`derivative`].
pub(super) struct Asked<'a> {
    pub metric: Metric,
    pub question: &'a Question,
    /// The tokens of the text, for the loss.
    pub ids: &'a [u32],
    /// Log-probabilities of the unchanged run, for the divergence.
    pub unchanged: &'a [f64],
}

/// The positions whose logits a metric is read at.
pub(super) fn positions(metric: Metric, question: &Question, n_tokens: usize) -> Vec<usize> {
    match metric {
        Metric::Loss => (0..n_tokens - 1).collect(),
        _ => vec![question.position],
    }
}

/// A metric and its gradient with respect to the logits [positions, vocab_size] that it is computed from, both in f64.
pub(super) fn derivative(asked: &Asked<'_>, logits: &ArrayViewD<'_, f32>) -> (f64, Vec<f64>) {
    let (n_vocab, n_rows) = (logits.len_of(Axis(1)), logits.len_of(Axis(0)));
    let (answer, wrong) = (asked.question.answer as usize, asked.question.wrong as usize);
    let mut by_logits = vec![0.0; n_rows * n_vocab];
    let first = logits.index_axis(Axis(0), 0);
    let value = match asked.metric {
        Metric::LogitDiff | Metric::Logit => {
            by_logits[answer] += 1.0;
            let mut value = f64::from(first[answer]);
            if asked.metric == Metric::LogitDiff {
                by_logits[wrong] -= 1.0;
                value -= f64::from(first[wrong]);
            }
            value
        }
        Metric::Logprob | Metric::Prob => {
            let log = log_softmax(first.iter());
            let prob = log[answer].exp();
            let outer = if asked.metric == Metric::Prob { prob } else { 1.0 };
            by_logits.iter_mut().zip(&log).for_each(|(slot, log)| *slot = -outer * log.exp());
            // 1 - p without cancellation: the sum of the others.
            let others = |(token, log): (usize, &f64)| if token == answer { 0.0 } else { log.exp() };
            by_logits[answer] = outer * log.iter().enumerate().map(others).sum::<f64>();
            if asked.metric == Metric::Prob { prob } else { log[answer] }
        }
        Metric::Loss => {
            let mut value = 0.0;
            for (n, slots) in by_logits.chunks_exact_mut(n_vocab).enumerate() {
                let (log, next) = (log_softmax(logits.index_axis(Axis(0), n).iter()), asked.ids[n + 1] as usize);
                slots.iter_mut().zip(&log).for_each(|(slot, log)| *slot = log.exp() / n_rows as f64);
                let others = |(token, log): (usize, &f64)| if token == next { 0.0 } else { log.exp() };
                slots[next] = -log.iter().enumerate().map(others).sum::<f64>() / n_rows as f64;
                value -= log[next] / n_rows as f64;
            }
            value
        }
        Metric::Kl => {
            let here = log_softmax(first.iter());
            let both = here.iter().zip(asked.unchanged);
            by_logits.iter_mut().zip(both).for_each(|(slot, (q, p))| *slot = q.exp() - p.exp());
            divergence(asked.unchanged, &here)
        }
    };
    (value, by_logits)
}

/// Whether the logits of this metric can be computed from the final LayerNorm's output, which no edit of logits changes.
pub(super) fn from_final_norm(metric: Metric, touched: impl Iterator<Item = Site>) -> bool {
    let mut touched = touched;
    metric.few() && !touched.any(|site| site == Site::Unembed)
}
