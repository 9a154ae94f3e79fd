//! The gradient of a metric, or of a linear function of a tap, by every activation that a request taps. Owns `Session::gradients`,
//! what can be differentiated, and its gradient with respect to the values that it is computed from, in f64 on the host. Read next:
//! `../model/backward.rs`, the backward pass.

use crate::analysis::edits::{EditError, EditPlan, ReadValues, Sources};
use crate::analysis::grammar::EditSpec;
use crate::analysis::metric::{Asked, Metric, Question, derivative, from_final_norm, log_softmax, positions};
use crate::batch::Batch;
use crate::config::Config;
use crate::device::MASKED;
use crate::hooks::capture::{Capture, Sink};
use crate::hooks::layout::Layout;
use crate::hooks::request::{Edit, Hooks, Select};
use crate::hooks::site::Site;
use crate::model::backward::{self, GradientRun, Objective};
use crate::model::forward::{self, RunError, Start};
use crate::model::gradient_checkpointing;
use crate::session::{AnalysisError, Error, MAX_BYTES_AT_ONCE, MAX_TOKENS, Model, Progress, Session};
use ndarray::ArrayViewD;
use std::ops::{ControlFlow, Range};
use thiserror::Error;

/// What is differentiated: one number for each text of a batch. The texts do not mix, so this is also the gradient of their sum.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A metric, with a question for each text.
    Metric(Metric, Vec<Question>),
    /// The divergence of each text's distribution from a given one, KL(given || this run): a question for each text, and the
    /// log-probabilities `[vocab_size]` that are given.
    Divergence(Vec<Question>, Vec<Vec<f64>>),
    /// The sum of some values of a site, each times a number: one number for every value, text by text, in the order of the
    /// site's axes.
    Dot {
        /// The site.
        site: Site,
        /// Which of its values.
        select: Select,
        /// The numbers.
        by: Vec<f32>,
    },
}

/// How a run that is differentiated begins, and what it keeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct GradientOptions<'a> {
    /// Where it begins; with [`Start::Embeddings`], the gradient with respect to `hook_embed` is the one with respect to these
    /// embeddings.
    pub start: Start<'a>,
    /// Gradient checkpointing: the backward pass runs each block again, from the stream that entered it. It takes memory for one block
    /// at a time, and half as much time again. Values then come last block first.
    pub recompute: bool,
    /// Leaves [`Gradients::values`] empty, which saves bringing them to the host. A run into sinks of the caller's has no use for it:
    /// there `()` is the sink that wants no values.
    pub gradients_only: bool,
}

impl<'a> From<Start<'a>> for GradientOptions<'a> {
    fn from(start: Start<'a>) -> GradientOptions<'a> {
        GradientOptions { start, ..GradientOptions::default() }
    }
}

/// The point of a line from some values to others that has gone a share of the way.
pub(super) fn between<'a>(ends: impl Iterator<Item = (&'a f32, &'a f32)>, share: f64) -> impl Iterator<Item = f32> {
    ends.map(move |(from, to)| (f64::from(*from) + share * (f64::from(*to) - f64::from(*from))) as f32)
}

/// What one run gave, and its gradients. Both captures have the same arrays, unless values were left out ([`GradientOptions`]).
#[derive(Clone, Debug)]
pub struct Gradients {
    /// The values.
    pub values: Capture,
    /// The derivative of the target by each value as it flows on, after edits, with everything downstream following. Entries
    /// of scores and patterns that a query cannot see are 0.
    pub gradients: Capture,
    /// The target of each text.
    pub target: Vec<f64>,
}

/// A target that does not fit.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GradientError {
    /// The divergence of an unedited run from itself.
    #[error(
        "the divergence from the unedited run is 0 without edits, and so is its gradient; give an edit, or another metric"
    )]
    Unedited,
    /// Another number of questions than of texts.
    #[error("{given} questions are given for {texts} texts; a metric takes one for each")]
    Questions {
        /// Questions given.
        given: usize,
        /// Texts in the batch.
        texts: usize,
    },
    /// Another number of distributions than of texts, or of another vocabulary.
    #[error("{given} distributions over the vocabulary are given for {texts} texts; a divergence takes one for each")]
    Distributions {
        /// Distributions given that have a number for every token.
        given: usize,
        /// Texts in the batch.
        texts: usize,
    },
    /// A question about a position or a token that does not exist.
    #[error("text {text}: {what}")]
    Question {
        /// The text.
        text: usize,
        /// What does not exist.
        what: String,
    },
    /// A linear function that is not written as one.
    #[error(
        "{written:?} is not a linear function of a hook; write SITE@SELECT=FILE, such as resid_post.3@pos=-1=direction.npy"
    )]
    Written {
        /// What was given.
        written: String,
    },
    /// A linear function of several hooks.
    #[error("{written:?} names several hooks, and a gradient is of a function of one; name one")]
    Several {
        /// What was given.
        written: String,
    },
    /// A function that edits, in a run that would call it twice.
    #[error(
        "an edit that is a function is called once, and gradient checkpointing runs blocks again and would call it twice; leave out checkpoint"
    )]
    Checkpoint,
    /// The numbers of [`Target::Dot`] do not fit its values.
    #[error("{site}: {given} numbers are given for {expected} values")]
    Dot {
        /// The site.
        site: String,
        /// Numbers given.
        given: usize,
        /// Values selected.
        expected: usize,
    },
}

impl AnalysisError for GradientError {}

impl Target {
    /// The linear function that is written `SITE[@SELECT]=V`, as an edit's SITE, SELECT and V are written: one number for all
    /// values, one row of numbers for each of their rows, or one for each value. `read` reads the file that V names.
    ///
    /// # Errors
    /// As [`EditPlan::new`]; [`GradientError::Several`] where SITE names several hooks.
    pub fn dot(written: &str, model: &Model, batch: &Batch, read: ReadValues<'_>) -> Result<Target, Error> {
        let Some((place, values)) = written.rsplit_once('=') else {
            return Err(GradientError::Written { written: written.into() }.into());
        };
        let spec: EditSpec = format!("{place}:set={values}").parse().map_err(EditError::from)?;
        let plan = EditPlan::new(&[spec], model, batch, Sources::default(), read)?;
        let Some((site, select, Edit::Replace(given))) = plan.only() else {
            return Err(GradientError::Several { written: written.into() }.into());
        };
        let mut one = Hooks::new(model.config());
        one.tap_at(site, select.clone())?;
        let n = (0..batch.texts().len()).map(|text| one.shape_of_text(site, batch, text).iter().product::<usize>());
        // One number and one row stand for all rows.
        let by = given.iter().copied().cycle().take(n.sum()).collect();
        Ok(Target::Dot { site, select: select.clone(), by })
    }

    /// The metric and its questions, where it is one.
    fn metric(&self) -> Option<(Metric, &[Question])> {
        match self {
            Target::Metric(metric, questions) => Some((*metric, questions)),
            Target::Divergence(questions, _) => Some((Metric::Kl, questions)),
            Target::Dot { .. } => None,
        }
    }

    /// The site whose values it is computed from in a run with these taps and edits, and which of them.
    fn reads(&self, hooks: &Hooks, batch: &Batch) -> (Site, Select) {
        if let Target::Dot { site, select, .. } = self {
            return (*site, select.clone());
        }
        let (metric, questions) = self.metric().expect("a target that is not linear is a metric");
        let of_text = |(text, question): (usize, &Question)| positions(metric, question, batch.texts()[text].len());
        let select = Select::all().positions(questions.iter().enumerate().map(of_text).collect());
        let from_norm = from_final_norm(metric, hooks.touched().into_iter());
        (if from_norm { Site::LnFinalOut } else { Site::Unembed }, select)
    }

    /// The layout of a run that computes the logits which it is computed from.
    fn layout<'a>(&self, layout: Layout<'a>, hooks: &Hooks, batch: &Batch) -> Layout<'a> {
        match self.reads(hooks, batch) {
            (Site::Unembed, select) => {
                let all = || batch.texts().iter().map(|text| (0..text.len()).collect()).collect();
                layout.with_logits(select.positions.unwrap_or_else(all))
            }
            _ => layout,
        }
    }

    /// Checks the target against a model and a batch, in a run that is edited or not.
    ///
    /// # Errors
    /// [`GradientError`] for a target that does not fit.
    pub fn check(&self, config: &Config, batch: &Batch, edited: bool) -> Result<(), Error> {
        let n = batch.texts().len();
        if let Target::Dot { site, select, by } = self {
            let mut one = Hooks::new(config);
            one.tap_at(*site, select.clone())?.check_batch(batch)?;
            let expected = (0..n).map(|text| one.shape_of_text(*site, batch, text).iter().product::<usize>()).sum();
            return if by.len() == expected {
                Ok(())
            } else {
                Err(GradientError::Dot { site: site.name(), given: by.len(), expected }.into())
            };
        }
        let (metric, questions) = self.metric().expect("a target that is not linear is a metric");
        if matches!(self, Target::Metric(Metric::Kl, _)) && !edited {
            return Err(GradientError::Unedited.into());
        }
        if questions.len() != n {
            return Err(GradientError::Questions { given: questions.len(), texts: n }.into());
        }
        if let Target::Divergence(_, from) = self {
            let fits = from.iter().filter(|from| from.len() == config.vocab_size).count();
            if fits != n || from.len() != n {
                return Err(GradientError::Distributions { given: fits, texts: n }.into());
            }
        }
        for (text, question) in questions.iter().enumerate() {
            let checked = question.check(metric, batch.texts()[text].len(), config);
            checked.map_err(|what| GradientError::Question { text, what })?;
        }
        Ok(())
    }
}

/// Computes the target of each text and its gradient as the values arrive.
struct TargetReader<'a> {
    target: &'a Target,
    batch: &'a Batch,
    site: Site,
    select: Select,
    /// For each text the direction that the final LayerNorm's output is multiplied with, and what is added, where no logits are
    /// needed.
    directions: Option<Vec<(Vec<f64>, f64)>>,
    /// For each text the log-probabilities of the unedited run, for the divergence.
    unchanged: Vec<Vec<f64>>,
    /// For each text, how many numbers of [`Target::Dot`] come before its own.
    before: Vec<usize>,
    values: Vec<f64>,
}

impl Objective for TargetReader<'_> {
    fn site(&self) -> Site {
        self.site
    }

    fn select(&self) -> &Select {
        &self.select
    }

    fn gradient(&mut self, text: usize, values: ArrayViewD<'_, f32>) -> Vec<f32> {
        let seen = |v: f32| if v == MASKED { 0.0 } else { f64::from(v) };
        let dot = |by: &[f64]| values.iter().zip(by).map(|(v, by)| seen(*v) * by).sum::<f64>();
        let (value, by_values) = match (self.target, &self.directions) {
            (Target::Dot { by, .. }, _) => {
                let by: Vec<f64> = by[self.before[text]..][..values.len()].iter().copied().map(f64::from).collect();
                (dot(&by), by)
            }
            (_, Some(directions)) => {
                let (direction, bias) = &directions[text];
                (dot(direction) + bias, direction.clone())
            }
            (target, None) => {
                let (metric, questions) = target.metric().expect("a target that is not linear is a metric");
                let of_text = match target {
                    Target::Divergence(_, from) => from.get(text),
                    _ => self.unchanged.get(text),
                };
                let unchanged = of_text.map_or(&[][..], Vec::as_slice);
                let (question, ids) = (&questions[text], self.batch.ids_of(text));
                derivative(&Asked { metric, question, ids, unchanged }, &values)
            }
        };
        self.values[text] = value;
        by_values.into_iter().map(|v| v as f32).collect()
    }
}

/// The most bytes that a tape may hold, unless a single text needs more.
const MAX_TAPE_BYTES: usize = 1 << 30;

/// The texts that run together: as many as the limit of the tape, the device and the recorder allow.
fn groups(
    batch: &Batch,
    config: &Config,
    layout: &Layout<'_>,
    most: usize,
    options: GradientOptions<'_>,
) -> Vec<Range<usize>> {
    let cost = |text: usize| {
        let n = batch.texts()[text].len();
        let tape = backward::tape_bytes(config, layout.hooks(), n, layout.n_logits_of(text), options.recompute);
        let tokens = n.saturating_mul(MAX_TAPE_BYTES.div_ceil(most.min(MAX_TOKENS)));
        let recorded = layout.bytes_at_once(text).saturating_mul(MAX_TAPE_BYTES / MAX_BYTES_AT_ONCE);
        tape.max(tokens).max(recorded)
    };
    batch.groups(MAX_TAPE_BYTES, cost)
}

/// About how many bytes a run for gradients keeps on the device, beside the weights and what it records. `recompute` is as in [`GradientOptions`].
///
/// # Errors
/// [`enum@Error`] for taps that do not fit the batch.
pub fn tape_bytes(
    config: &Config,
    batch: &Batch,
    hooks: &Hooks,
    target: &Target,
    recompute: bool,
) -> Result<u64, Error> {
    let layout = target.layout(Layout::new(hooks, batch)?, hooks, batch);
    let of_text = |text: usize| {
        let (n_pos, n_logits) = (batch.texts()[text].len(), layout.n_logits_of(text));
        backward::tape_bytes(config, hooks, n_pos, n_logits, recompute)
    };
    let groups = batch.groups(MAX_TAPE_BYTES, of_text);
    Ok(groups.into_iter().map(|texts| texts.map(of_text).sum::<usize>()).max().unwrap_or(0) as u64)
}

impl Session {
    /// Runs a batch, and differentiates `target` by every value that `hooks` taps. Edits are differentiated through: `add` passes
    /// the gradient on, `scale` multiplies it, and the others stop it where they put values in place. Texts may have different
    /// lengths; every text's gradients are those of a run of it alone.
    ///
    /// # Errors
    /// As [`Session::run_from_async`]; [`GradientError`] for a target that does not fit.
    pub async fn gradients_async(
        &self,
        batch: &Batch,
        hooks: &Hooks,
        target: &Target,
        options: GradientOptions<'_>,
        progress: Option<Progress<'_>>,
    ) -> Result<Gradients, Error> {
        hooks.check_batch(batch)?;
        let mut values = if options.gradients_only { Capture::of_edits(hooks) } else { self.capture(hooks, batch)? };
        let mut gradients = self.capture(hooks, batch)?;
        let target =
            self.gradients_into_async(batch, hooks, target, options, &mut values, &mut gradients, progress).await?;
        Ok(Gradients { values, gradients, target })
    }

    /// Blocking form of [`Session::gradients_async`], from the token ids.
    ///
    /// ```
    /// use actscope::analysis::gradients::Target;
    /// use actscope::analysis::metric::{Metric, Question};
    /// use actscope::{Session, Site};
    ///
    /// let session = Session::open("demo")?;
    /// let batch = session.model().encode(&["The cat sat on the"])?;
    /// let mut hooks = session.model().hooks();
    /// hooks.tap("blocks.*.hook_resid_pre")?;
    /// let question = Question { position: batch.n_pos() - 1, answer: 5, wrong: 6 };
    /// let run = session.gradients(&batch, &hooks, &Target::Metric(Metric::LogitDiff, vec![question]))?;
    /// assert_eq!(run.gradients.get(Site::ResidPre(0)).unwrap().shape(), run.values.get(Site::ResidPre(0)).unwrap().shape());
    /// # Ok::<(), actscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Session::gradients_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn gradients(&self, batch: &Batch, hooks: &Hooks, target: &Target) -> Result<Gradients, Error> {
        pollster::block_on(self.gradients_async(batch, hooks, target, GradientOptions::default(), None))
    }

    /// [`Session::gradients_async`] that passes values and gradients on as they are computed. Returns the target of each text.
    ///
    /// # Errors
    /// As [`Session::gradients_async`]; also those of the sinks.
    #[allow(clippy::too_many_arguments, reason = "a run, what is asked of it, and where it goes")]
    pub async fn gradients_into_async(
        &self,
        batch: &Batch,
        hooks: &Hooks,
        target: &Target,
        options: GradientOptions<'_>,
        values: &mut dyn Sink,
        gradients: &mut dyn Sink,
        progress: Option<Progress<'_>>,
    ) -> Result<Vec<f64>, Error> {
        let config = self.model().config();
        let layout = self.layout(batch, hooks)?;
        let GradientOptions { start, recompute, .. } = options;
        start.check(batch, config)?;
        if recompute && hooks.edits().any(|(.., edit)| matches!(edit, Edit::With(..))) {
            return Err(GradientError::Checkpoint.into());
        }
        target.check(config, batch, hooks.edits().next().is_some())?;
        let mut reading = self.reading(batch, hooks, target, start).await?;
        let layout = target.layout(layout, hooks, batch);
        let first = start.first_layer();
        let (dev, params, _turn) = self.engine().await;
        let limits = crate::device::Device::tensor_limits(dev);
        let all = groups(batch, config, &layout, forward::max_tokens(dev, config, hooks), options);
        for texts in &all {
            let part = batch.part(texts.clone());
            forward::check_size(dev, params, &part, hooks)?;
            let n_logits = texts.clone().map(|text| layout.n_logits_of(text)).max().unwrap_or(0);
            backward::check_size(limits, config, &part, n_logits)?;
        }
        let per_group = (2 + usize::from(recompute)) * config.n_layer.saturating_sub(first);
        let steps = all.len() * per_group;
        for (n, texts) in all.into_iter().enumerate() {
            let of_all = |done: usize| match progress {
                Some(progress) => progress(n * per_group + done.min(per_group), steps),
                None => ControlFlow::Continue(()),
            };
            let rows = batch.texts()[texts.start].start..batch.texts()[texts.end - 1].end;
            let run = GradientRun {
                layout: &layout,
                texts,
                start: start.of_rows(rows, config),
                objective: &mut reading,
                values: &mut *values,
                gradients: &mut *gradients,
                progress: Some(&of_all),
            };
            if recompute {
                gradient_checkpointing::gradients(dev, params, run).await?
            } else {
                backward::gradients(dev, params, run).await?
            }
        }
        self.model().checkpoint().check_unchanged()?;
        Ok(reading.values)
    }

    /// What reads the target of a run.
    async fn reading<'a>(
        &self,
        batch: &'a Batch,
        hooks: &Hooks,
        target: &'a Target,
        start: Start<'_>,
    ) -> Result<TargetReader<'a>, Error> {
        let n = batch.texts().len();
        let (site, select) = target.reads(hooks, batch);
        // The sum of no values is 0.
        let mut reading = TargetReader {
            target,
            batch,
            site,
            select,
            directions: None,
            unchanged: Vec::new(),
            before: Vec::new(),
            values: vec![0.0; n],
        };
        let Some((metric, questions)) = target.metric() else {
            let mut one = Hooks::new(hooks.config());
            one.tap_at(reading.site, reading.select.clone())?;
            let mut sum = 0;
            let before = (0..n).map(|text| {
                sum += one.shape_of_text(reading.site, batch, text).iter().product::<usize>();
                sum
            });
            reading.before = std::iter::once(0).chain(before).take(n).collect();
            return Ok(reading);
        };
        if reading.site == Site::LnFinalOut {
            let of = async |id| self.params().direction(id).await.map_err(RunError::from);
            let mut directions = Vec::with_capacity(n);
            for question in questions {
                let wrong = if metric == Metric::LogitDiff { Some(of(question.wrong).await?) } else { None };
                directions.push(of(question.answer).await?.less(wrong.as_ref()));
            }
            reading.directions = Some(directions);
            return Ok(reading);
        }
        if matches!(target, Target::Metric(Metric::Kl, _)) {
            let mut unedited = Hooks::new(hooks.config());
            unedited.tap_at(Site::Unembed, reading.select.clone())?;
            let mut sink = Unchanged(vec![Vec::new(); n]);
            let layout = self.layout(batch, &unedited)?;
            self.run_layout(&layout, start, &mut sink, None).await?;
            reading.unchanged = sink.0;
        }
        Ok(reading)
    }
}

/// Keeps the log-probabilities of every text at one position.
struct Unchanged(Vec<Vec<f64>>);

impl Sink for Unchanged {
    fn put(&mut self, _: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.0[text] = log_softmax(values.iter());
        Ok(())
    }
}
