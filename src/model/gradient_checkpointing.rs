//! Gradient checkpointing: only the streams between blocks are stored, and the backward pass runs each block again, so that the tape
//! holds one block at a time. Owns the division of a run into blocks, and the gradients that are passed from block to block. Each
//! block is differentiated separately; its objective is the sum of its output times the gradient of the next block's input.
//! Read next: `backward.rs`, which differentiates a block.

use crate::device::Device;
use crate::hooks::capture::Sink;
use crate::hooks::layout::{Layout, cut};
use crate::hooks::request::{Hooks, Select};
use crate::hooks::site::Site;
use crate::model::backward::{self, GradientRun, Objective};
use crate::model::forward::{self, Run, RunError, Start};
use crate::model::params::Params;
use ndarray::{ArrayD, ArrayViewD};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// [`backward::gradients`], block by block. Values come last block first. The progress callback receives the number of finished
/// blocks: of the first run, of the blocks that are run again, and of the backward pass.
///
/// # Errors
/// As [`backward::gradients`].
pub(crate) async fn gradients<D: Device>(dev: &D, params: &Params<D>, run: GradientRun<'_>) -> Result<(), RunError> {
    let GradientRun { layout, texts, start, objective, values, gradients, progress } = run;
    let config = params.config();
    let (hooks, batch) = (layout.hooks(), layout.batch());
    let first = start.first_layer();
    // The block whose values the objective is computed from; the last block for sites after all blocks.
    let last = match objective.site() {
        site if site <= Site::ResidPre(first) => first,
        Site::ResidPre(layer) => layer - 1,
        site => site.layer().unwrap_or(config.n_layer - 1),
    };
    let inner: Vec<Site> = (first + 1..=last).map(Site::ResidPre).collect();
    let mut streams = Streams::default();
    let mut plain = hooks.part(|_| false, |site| inner.last().is_some_and(|last| site <= *last));
    for site in &inner {
        plain.tap_at(*site, Select::all())?;
    }
    if !inner.is_empty() {
        let plain = Layout::new(&plain, batch)?;
        let run = Run { start, ..Run::new(&plain, texts.clone()) };
        forward::forward(dev, params, run, &mut streams, progress).await?;
    }

    let mut seeds: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
    for layer in (first..=last).rev() {
        let done = (last + 1 - first) + 2 * (last - layer);
        let told =
            |blocks: usize| progress.map_or(ControlFlow::Continue(()), |progress| progress(done + blocks.min(2)));
        let begin = Site::ResidPre(layer);
        // A block has the edits after the stream that it starts from, up to the stream that the next one starts from.
        let is_first = layer == first;
        let end = (layer < last).then_some(Site::ResidPre(layer + 1));
        let within = |site: Site| (is_first || site > begin) && end.is_none_or(|end| site <= end);
        let mut own = hooks.part(|site| within(site) && Some(site) != end, within);
        if !is_first {
            own.tap_at(begin, Select::all())?;
        }
        let own = Layout::new(&own, batch)?;
        let own = match layout.more_logits().filter(|_| end.is_none()) {
            Some(positions) => own.with_logits(positions.to_vec()),
            None => own,
        };
        let stream = (!is_first).then(|| streams.take(begin));
        let start = match &stream {
            Some(values) => Start::Stream { layer, values },
            None => start,
        };
        let mut found = BTreeMap::new();
        let begins = (!is_first).then_some(begin);
        let mut values = Begun { to: values, hooks, begins, kept: None };
        let mut gradients = Begun { to: gradients, hooks, begins, kept: Some(&mut found) };
        let mut seeded = Seeded { site: end.unwrap_or(begin), select: Select::all(), seeds: &seeds };
        let run = GradientRun {
            layout: &own,
            texts: texts.clone(),
            start,
            objective: if end.is_some() { &mut seeded } else { &mut *objective },
            values: &mut values,
            gradients: &mut gradients,
            progress: Some(&told),
        };
        backward::gradients(dev, params, run).await?;
        seeds = found;
        if told(2).is_break() {
            return Err(RunError::Cancelled);
        }
    }
    Ok(())
}

/// The streams between blocks, text by text.
#[derive(Default)]
struct Streams(BTreeMap<Site, Vec<f32>>);

impl Streams {
    /// Removes a stream and returns it, for all texts.
    fn take(&mut self, site: Site) -> Vec<f32> {
        self.0.remove(&site).unwrap_or_default()
    }
}

impl Sink for Streams {
    fn put(&mut self, site: Site, _: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.0.entry(site).or_default().extend(values.iter());
        Ok(())
    }
}

/// Passes on the values that the request asks for. The stream that a block starts from is recorded whole, even if the request asks
/// for a part of it or for none.
struct Begun<'a, 'b> {
    to: &'a mut dyn Sink,
    hooks: &'a Hooks,
    begins: Option<Site>,
    /// The gradient with respect to that stream.
    kept: Option<&'b mut BTreeMap<usize, Vec<f32>>>,
}

impl Sink for Begun<'_, '_> {
    fn wants(&self, site: Site) -> bool {
        self.to.wants(site) || (Some(site) == self.begins && self.kept.is_some())
    }

    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        if Some(site) != self.begins {
            return self.to.put(site, text, values);
        }
        if let Some(kept) = &mut self.kept {
            kept.insert(text, values.iter().copied().collect());
        }
        let Some(select) = self.hooks.tapped(site).filter(|_| self.to.wants(site)) else { return Ok(()) };
        let part: ArrayD<f32> = cut(site, select, text, values);
        if part.is_empty() { Ok(()) } else { self.to.put(site, text, part.view()) }
    }
}

/// The objective of a block: the sum of its output times the gradient of the next block's input.
struct Seeded<'a> {
    site: Site,
    select: Select,
    seeds: &'a BTreeMap<usize, Vec<f32>>,
}

impl Objective for Seeded<'_> {
    fn site(&self) -> Site {
        self.site
    }

    fn select(&self) -> &Select {
        &self.select
    }

    fn gradient(&mut self, text: usize, values: ArrayViewD<'_, f32>) -> Vec<f32> {
        self.seeds.get(&text).cloned().unwrap_or_else(|| vec![0.0; values.len()])
    }
}
