//! What sweeps, paths, edges and estimates share: texts to be changed with what is asked of them ([`Case`]), the unchanged runs of a
//! case, and runs of copies of a text that begin at a block. Owns no changes. Read next: `sweep.rs`, which changes one place at a time.

use crate::analysis::edits::Kept;
use crate::analysis::metric::{Metric, MetricReader, Question, divergence, from_final_norm};
use crate::batch::Batch;
use crate::config::Config;
use crate::hooks::capture::Sink;
use crate::hooks::layout::{Layout, edits_of_text};
use crate::hooks::request::{Edit, Hooks, Select};
use crate::hooks::site::Site;
use crate::model::forward::{self, Start};
use crate::model::params::Direction;
use crate::session::{Error, Progress, Session};
use ndarray::ArrayViewD;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

/// The most tokens of copies that run together: enough for products to be fast.
pub(super) const TOKENS_AT_ONCE: usize = 2048;

/// One text to be changed.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// The question about it.
    pub question: Question,
    /// The source run, from which patching takes values: its tokens, and the question about it.
    pub source: Option<(Vec<u32>, Question)>,
    /// How many tokens, counted from the end, line up with the source's. Those before are not changed.
    pub aligned: usize,
    /// Whether [`Metric::Kl`] is from the source run, and not from the unchanged run of this text.
    pub from_source: bool,
}

impl Case {
    /// Checks that its texts and the vocabulary have what a metric needs.
    pub(super) fn check(&self, metric: Metric, config: &Config) -> Result<(), String> {
        self.question.check(metric, self.ids.len(), config)?;
        let source = self.source.as_ref().map(|(ids, question)| question.check(metric, ids.len(), config));
        source.unwrap_or(Ok(())).map_err(|what| format!("its source: {what}"))
    }
}

/// The cases, and the edits in force. Both requests are for a batch of those texts, in order.
#[derive(Clone, Copy, Debug)]
pub struct Cases<'a> {
    /// The cases.
    pub cases: &'a [Case],
    /// The edits in every run of the cases' texts.
    pub edits: &'a Hooks,
    /// The edits in their source runs.
    pub source_edits: &'a Hooks,
}

/// The texts of all cases, and those of their source runs (the same texts if there are none).
pub(super) fn batches(cases: &[Case], config: &Config) -> Result<(Batch, Batch), Error> {
    let texts = |of: &dyn Fn(&Case) -> Vec<u32>| Batch::new(&cases.iter().map(of).collect::<Vec<_>>(), config);
    let runs = texts(&|case| case.ids.clone())?;
    let sources = texts(&|case| case.source.as_ref().map_or_else(|| case.ids.clone(), |(ids, _)| ids.clone()))?;
    Ok((runs, sources))
}

/// The number of last positions at which the two texts of every case line up.
pub(super) fn aligned(cases: &[Case]) -> usize {
    cases.iter().map(|case| case.aligned).min().unwrap_or(0)
}

/// One case, among the texts and edits of all.
pub(super) struct OneCase<'a> {
    pub case: &'a Case,
    /// Its number.
    n: usize,
    runs: &'a Batch,
    sources: &'a Batch,
    all: Cases<'a>,
    /// Receives the steps of this case.
    pub told: Progress<'a>,
}

impl OneCase<'_> {
    /// The case's own text as a batch.
    pub(super) fn own_text(&self) -> Batch {
        self.runs.part(self.n..self.n + 1)
    }

    /// The edits of the case's own text, for a batch of copies of it.
    pub(super) fn own_edits(&self, copies: usize) -> Vec<(Site, Select, Edit)> {
        edits_of_text(self.all.edits, self.runs, self.n, copies)
    }

    /// The edits of the source's text.
    pub(super) fn source_edits(&self) -> Vec<(Site, Select, Edit)> {
        edits_of_text(self.all.source_edits, self.sources, self.n, 1)
    }
}

/// The results of a case's unchanged runs.
pub(super) struct OwnRuns {
    /// Values of the unchanged run.
    pub here: Kept,
    /// Values of the source run, if there is one.
    pub source: Option<Kept>,
    /// The metric of the unchanged run.
    pub unchanged: f64,
    /// The metric of the source run.
    pub of_source: Option<f64>,
    directions: Option<[Direction; 2]>,
    /// The log-probabilities from which a divergence is measured.
    distribution: Vec<f64>,
}

impl OwnRuns {
    /// Reads the metric of changed runs.
    pub(crate) fn reading<'a>(&'a self, metric: Metric, case: &'a Case) -> MetricReader<'a> {
        MetricReader {
            directions: self.directions.as_ref(),
            unchanged: Some(&self.distribution),
            ..MetricReader::new(metric, &case.question, &case.ids)
        }
    }
}

/// A sink that stores values and computes the metric.
pub(super) struct Both<'a> {
    pub kept: Kept,
    pub reading: MetricReader<'a>,
}

impl Sink for Both<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.kept.put(site, text, values.view())?;
        self.reading.put(site, text, values)
    }
}

/// The residual stream that enters a block, from which runs begin.
pub(super) struct BlockInput {
    pub layer: usize,
    /// [copy, position, n_embd].
    pub values: Vec<f32>,
}

impl BlockInput {
    /// The stream of the first text of `kept`, for every copy of it.
    pub(super) fn of(kept: &Kept, layer: usize, copies: usize) -> BlockInput {
        let stream = kept.of_text(Site::ResidPre(layer), 0);
        BlockInput { layer, values: stream.as_slice().expect("a text's values are dense").repeat(copies) }
    }
}

impl Session {
    /// Calls `of_case` for every case with the place for its values. `swept` is that place.
    pub(super) async fn each_case<T>(
        &self,
        all @ Cases { cases, .. }: Cases<'_>,
        mut swept: T,
        progress: Option<Progress<'_>>,
        mut of_case: impl AsyncFnMut(&OneCase<'_>, &mut T) -> Result<(), Error>,
    ) -> Result<T, Error> {
        let (runs, sources) = batches(cases, self.model().config())?;
        for (n, case) in cases.iter().enumerate() {
            let told = |done: usize, steps: usize| match progress {
                Some(progress) => progress(n * steps + done, cases.len() * steps),
                None => ControlFlow::Continue(()),
            };
            let one = OneCase { case, n, runs: &runs, sources: &sources, all, told: &told };
            of_case(&one, &mut swept).await?;
        }
        Ok(self.model().checkpoint().check_unchanged().map(|()| swept)?)
    }

    /// Runs a batch from a block on, or from its tokens.
    pub(super) async fn run_from_block(
        &self,
        batch: &Batch,
        hooks: &Hooks,
        start: Option<&BlockInput>,
        sink: &mut dyn Sink,
    ) -> Result<(), Error> {
        let start = start.map_or(Start::Tokens, |BlockInput { layer, values }| Start::Stream { layer: *layer, values });
        self.run_layout(&Layout::new(hooks, batch)?, start, sink, None).await
    }

    /// The unchanged runs of a case. `here` and `of_source` are the sites whose values are stored of the unchanged run and of the
    /// source run; `touched` are the sites that cells change.
    pub(super) async fn own_runs(
        &self,
        metric: Metric,
        one: &OneCase<'_>,
        (here, of_source): (BTreeSet<Site>, BTreeSet<Site>),
        touched: impl Iterator<Item = Site>,
    ) -> Result<OwnRuns, Error> {
        let (case, edits, source_edits) = (one.case, one.own_edits(1), one.source_edits());
        let touched = touched.chain(edits.iter().chain(&source_edits).map(|(site, ..)| *site));
        let directions = self.directions(metric, &case.question, touched).await?;
        let reading = |ids, question| MetricReader {
            directions: directions.as_ref(),
            ..MetricReader::new(metric, question, ids)
        };
        let from_source = case.from_source && case.source.is_some();
        // Log-probabilities, which are stored only for a divergence.
        let mut of_other = Vec::new();
        let (mut source, mut source_value) = (None, None);
        if let Some((ids, question)) = &case.source {
            let mut both = Both { kept: Kept::new(of_source, BTreeSet::new()), reading: reading(ids, question) };
            self.run_once(ids, &source_edits, &mut both).await?;
            source_value = Some(both.reading.values[0]);
            of_other = both.reading.log_probabilities;
            source = Some(both.kept);
        }
        let mut both = Both { kept: Kept::new(here, BTreeSet::new()), reading: reading(&case.ids, &case.question) };
        both.reading.unchanged = Some(of_other.as_slice()).filter(|_| from_source);
        self.run_once(&case.ids, &edits, &mut both).await?;
        let unchanged = both.reading.values[0];
        let Both { kept: here, reading: MetricReader { log_probabilities, .. } } = both;
        let (distribution, of_other) =
            if from_source { (of_other, log_probabilities) } else { (log_probabilities, of_other) };
        if let (Metric::Kl, false, Some(value)) = (metric, from_source, source_value.as_mut()) {
            *value = divergence(&distribution, &of_other);
        }
        Ok(OwnRuns { here, source, unchanged, of_source: source_value, directions, distribution })
    }

    /// The directions of the answer and the wrong answer, where the metric can be read from the final LayerNorm's output in runs
    /// that touch these sites.
    pub(super) async fn directions(
        &self,
        metric: Metric,
        question: &Question,
        touched: impl Iterator<Item = Site>,
    ) -> Result<Option<[Direction; 2]>, Error> {
        if !from_final_norm(metric, touched) {
            return Ok(None);
        }
        let row = async |id| self.params().direction(id).await.map_err(forward::RunError::from);
        Ok(Some([row(question.answer).await?, row(question.wrong).await?]))
    }

    /// Runs one text with edits, for values and the metric.
    pub(super) async fn run_once(
        &self,
        ids: &[u32],
        edits: &[(Site, Select, Edit)],
        both: &mut Both<'_>,
    ) -> Result<(), Error> {
        let batch = self.model().batch(&[ids])?;
        let mut hooks = both.kept.hooks(self.model().config());
        // A site that is stored whole stays whole if the metric reads a part of it.
        if hooks.sites().all(|site| site != both.reading.site()) {
            both.reading.ask(&mut hooks, &batch)?;
        }
        for (site, select, edit) in edits {
            hooks.edit_at(*site, select.clone(), edit.clone())?;
        }
        self.run_into_async(&batch, &hooks, both, None).await
    }
}
