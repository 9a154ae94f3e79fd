//! `--grad`: the metric that is differentiated, and the sinks that pair values with their gradients. Read next:
//! `../analysis/gradients.rs`, which computes them.

use super::question::{QuestionArgs, needs};
use super::{Failure, ModelArgs};
use crate::analysis::gradients::Target;
use crate::analysis::grammar::ValueSpec;
use crate::analysis::metric::{Metric, Question};
use crate::batch::Batch;
use crate::hooks::capture::{ArrayKey, ArraySink, Arrays, Capture, Sink};
use crate::hooks::site::Site;
use crate::session::Model;
use clap::Args;
use ndarray::{ArrayViewD, CowArray, IxDyn};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::PathBuf;

/// The gradients to compute.
#[derive(Args)]
pub(super) struct GradientArgs {
    /// With each hook NAME also write NAME_grad, the derivative of a metric with respect to the hook. The metric is
    /// logit-diff, logit, logprob, prob, loss, kl, or dot:SITE[@SELECT]=V, the sum of a hook's values times the numbers
    /// V; SITE, SELECT and V are as in --edit
    #[arg(long, value_name = "METRIC")]
    grad: Option<String>,
    /// Gradient checkpointing: run each block again in the backward pass, from the residual stream that entered it. The
    /// run then stores the values of one block, and takes about 1.5 times as long
    #[arg(long, requires = "grad")]
    pub checkpoint: bool,
    #[command(flatten)]
    question: QuestionArgs,
}

/// A requested gradient: the metric that is differentiated, and its record for outputs.
pub(super) struct Asked {
    pub target: Target,
    pub record: Value,
}

impl GradientArgs {
    /// True if gradients are requested.
    pub(crate) fn any(&self) -> bool {
        self.grad.is_some()
    }

    /// The file with the numbers V of `dot:`, which no output may replace.
    pub(crate) fn files(&self) -> impl Iterator<Item = PathBuf> {
        let dot = self.grad.iter().filter_map(|grad| grad.strip_prefix("dot:")?.rsplit_once('='));
        dot.filter_map(|(_, values)| match values.parse() {
            Ok(ValueSpec::File { path, .. }) => Some(PathBuf::from(path)),
            _ => None,
        })
    }

    /// Checks the request completely, before any weight is loaded. `edited` is true if the run has edits. Returns
    /// `None` if no gradient is requested.
    pub(crate) fn asked(
        &self,
        files: &Model,
        batch: &Batch,
        edited: bool,
        model: &ModelArgs,
    ) -> Result<Option<Asked>, Failure> {
        let Some(grad) = &self.grad else {
            return if self.question.any() {
                Err(Failure::Usage("--answer and --metric-token belong to --grad; give --grad METRIC too".into()))
            } else {
                Ok(None)
            };
        };
        if let Some(dot) = grad.strip_prefix("dot:") {
            if self.question.any() {
                return Err(Failure::Usage(
                    "--answer, --wrong and --metric-token are about logits, and --grad dot: is not; leave them out"
                        .into(),
                ));
            }
            let target = Target::dot(dot, files, batch, &mut super::edits::read)?;
            return Ok(Some(Asked { target, record: json!({"metric": grad}) }));
        }
        let metric: Metric =
            grad.parse().map_err(|e| Failure::Usage(format!("--grad: {e}, and no dot:SITE@SELECT=FILE")))?;
        let (answer, wrong) = (self.question.answer(files, model)?, self.question.wrong(files, model)?);
        needs(metric, "--grad", answer.is_some(), wrong.is_some())?;
        if metric == Metric::Kl && !edited {
            return Err(Failure::Usage(
                "--grad kl is the divergence from the unedited run, which is 0 without --edit; give an edit, or another metric"
                    .into(),
            ));
        }
        let question = |(text, tokens): (usize, &Vec<_>)| {
            let position = self.question.position(tokens, text)?;
            Ok(Question { position, answer: answer.unwrap_or(0), wrong: wrong.unwrap_or(0) })
        };
        let questions = files.tokens(batch).iter().enumerate().map(question).collect::<Result<Vec<_>, Failure>>()?;
        let mut record = json!({"metric": metric.name()});
        if metric != Metric::Loss {
            record["position"] = questions.iter().map(|question| question.position).collect();
        }
        record.as_object_mut().into_iter().for_each(|record| {
            record.extend(answer.filter(|_| metric.needs_answer()).map(|id| ("answer".to_string(), id.into())));
            record.extend(wrong.filter(|_| metric == Metric::LogitDiff).map(|id| ("wrong".to_string(), id.into())));
        });
        let target = Target::Metric(metric, questions);
        target.check(files.config(), batch, edited)?;
        Ok(Some(Asked { target, record }))
    }
}

/// The arrays of a request with gradients, each followed by its gradient of the same shape.
pub(super) fn with_gradients(shapes: &[(Site, Vec<usize>)]) -> Vec<(ArrayKey, Vec<usize>)> {
    let both = |(site, shape): &(Site, Vec<usize>)| {
        [false, true].map(|is_gradient| (ArrayKey { site: *site, is_gradient }, shape.clone()))
    };
    shapes.iter().flat_map(both).collect()
}

/// Passes a run's values, or its gradients, to a sink that takes both.
pub(super) struct Side<'a, 'b> {
    pub to: &'a RefCell<&'b mut dyn ArraySink>,
    pub is_gradient: bool,
}

impl Sink for Side<'_, '_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.to.borrow_mut().put_array(ArrayKey { site, is_gradient: self.is_gradient }, text, values)
    }
}

/// Values and gradients in memory.
pub(super) struct Both {
    pub values: Capture,
    pub gradients: Capture,
}

impl ArraySink for Both {
    fn put_array(&mut self, array: ArrayKey, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        let to = if array.is_gradient { &mut self.gradients } else { &mut self.values };
        to.put(array.site, text, values)
    }
}

impl Arrays for Both {
    fn shapes(&self) -> Vec<(ArrayKey, Vec<usize>)> {
        let sites: Vec<_> = self.values.shapes().into_iter().map(|(array, shape)| (array.site, shape)).collect();
        with_gradients(&sites)
    }

    fn of_text(&self, array: ArrayKey, text: usize) -> std::io::Result<CowArray<'_, f32, IxDyn>> {
        let of = if array.is_gradient { &self.gradients } else { &self.values };
        of.of_text(array.site.into(), text)
    }
}
