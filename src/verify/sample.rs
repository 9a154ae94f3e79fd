//! Compares a sample of a run's values with the reference. The cost is bounded, however long the texts are. Owns the
//! choice of the sample. Attention is causal, so the first tokens of a text have the same activations without the later
//! tokens: running a prefix checks the prefix.
//!
//! The sample covers up to three texts (the first, the middle one, the last). The reference runs one prefix of each to
//! the deepest requested block and a longer one to the shallowest, each as long as its share of the work allows. Every
//! requested hook within reach is compared at every requested position. If no requested position lies in a prefix, the
//! device runs the prefix too. Edits are made in the reference as well, with the values that they have in the run: means and
//! values of other runs are not computed again. Read next: `measure.rs`.

use super::hooks::{ROUNDING, TIMES_ROUNDED, run, runs};
use super::measure::{self, TokenError};
use crate::batch::Batch;
use crate::config::Config;
use crate::device::Device;
use crate::device::reference::Reference;
use crate::device::rounded_reference::RoundedReference;
use crate::hooks::layout::Layout;
use crate::hooks::request::Hooks;
use crate::hooks::site::{Axis, Site};
use crate::model::forward::RunError;
use crate::model::params::Params;
use ndarray::{ArrayD, ArrayViewD, Axis as NdAxis, Slice};
use std::collections::HashMap;

/// The most multiply-adds of the reference in one check.
const WORK: usize = 4_000_000_000;

/// A prefix of a text, and the hooks that are compared on it.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The text.
    pub text: usize,
    /// The number of tokens of the prefix.
    pub tokens: usize,
    /// The requested hooks that are compared.
    pub sites: Vec<Site>,
    /// How many positions are compared.
    pub positions: usize,
    /// True when no requested position lies in the prefix, so that the device ran the prefix separately.
    pub apart: bool,
}

/// The largest error of one hook on one probe.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// The hook.
    pub site: Site,
    /// The largest relative error over the compared tokens, with its text and position.
    pub worst: TokenError,
    /// The largest allowed error.
    pub allowed: f64,
}

/// What was compared, and the results.
#[derive(Clone, Debug)]
pub struct Checked {
    /// The sample.
    pub probes: Vec<Probe>,
    /// Every hook of every probe, in order.
    pub found: Vec<Found>,
}

impl Checked {
    /// The hooks whose error is larger than allowed.
    pub fn mismatches(&self) -> impl Iterator<Item = &Found> {
        self.found.iter().filter(|found| found.worst.error > found.allowed)
    }
}

/// The values of one run that will be compared, collected during the run.
#[derive(Debug)]
pub struct Sample {
    probes: Vec<Probe>,
    kept: HashMap<(Site, usize), ArrayD<f32>>,
}

impl Sample {
    /// Chooses what to compare of a run of `hooks` on `batch`.
    pub fn new(config: &Config, batch: &Batch, hooks: &Hooks) -> Sample {
        Sample { probes: probes(config, batch, hooks), kept: HashMap::new() }
    }

    /// Receives one text's values at one site, without the batch axis and without padding, and copies the sampled ones.
    pub fn see(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) {
        let tokens = self.probes.iter().filter(|p| p.text == text && p.sites.contains(&site)).map(|p| p.tokens).max();
        if let Some(tokens) = tokens {
            // Positions ascend, so those in the prefix come first.
            let kept = cut(site, values, |_, n| n.min(tokens)).to_owned();
            self.kept.insert((site, text), kept);
        }
    }

    /// Compares the collected values of a run of `hooks` on `batch` with the reference. `progress` receives the number
    /// of finished probes and their total.
    ///
    /// # Errors
    /// [`RunError`] when the device fails.
    pub async fn check<D: Device>(
        self,
        dev: &D,
        params: &Params<D>,
        batch: &Batch,
        hooks: &Hooks,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Checked, RunError> {
        let config = params.config();
        let mut checked = Checked { probes: self.probes, found: Vec::new() };
        let mut asked = Vec::new();
        let layout = Layout::new(hooks, batch)?;
        for probe in &mut checked.probes {
            let ids = &batch.ids_of(probe.text)[..probe.tokens];
            let alone = Batch::new(&[ids], config).expect("a part of a checked batch");
            let part = hooks.of_prefix(&probe.sites, probe.text, probe.tokens);
            probe.apart = part.is_none();
            let mut request = part.unwrap_or_else(|| Hooks::whole(config, &probe.sites));
            for (site, select, edit) in layout.edits_of_prefix(probe.text, probe.tokens) {
                request.edit_at(site, select, edit)?;
            }
            asked.push((alone, request));
        }
        let n = asked.len();
        let expected = runs(&Reference::default(), params, &asked, &|done| progress(done, 2 * n)).await?;
        let floor = runs(&RoundedReference::default(), params, &asked, &|done| progress(n + done, 2 * n)).await?;
        for ((probe, (alone, request)), (expected, floor)) in
            checked.probes.iter_mut().zip(&asked).zip(expected.iter().zip(&floor))
        {
            let by_itself = if probe.apart { Some(run(dev, params, alone, request).await?) } else { None };
            for (site, want) in expected.iter() {
                let rounded = measure::tokens(site, floor.get(site).expect("the same request"), want.view()).error;
                let shape = &want.shape()[1..];
                probe.positions = shape[site.pos_axis()];
                let got = match &by_itself {
                    Some(capture) => capture.get(site).map(|got| got.index_axis_move(NdAxis(0), 0)),
                    None => {
                        self.kept.get(&(site, probe.text)).map(|kept| cut(site, kept.view(), |axis, _| shape[axis]))
                    }
                };
                // Values that were never received count as an infinite error.
                let unseen = TokenError { error: f64::INFINITY, ..TokenError::default() };
                let mut worst =
                    got.map_or(unseen, |got| measure::tokens(site, got.insert_axis(NdAxis(0)), want.view()));
                worst.text = probe.text;
                worst.position = request.position(site, 0, worst.position);
                checked.found.push(Found { site, worst, allowed: ROUNDING.max(TIMES_ROUNDED * rounded) });
            }
        }
        progress(2 * n, 2 * n);
        Ok(checked)
    }
}

/// One text's values with each position axis truncated to the length that `len` returns for it. Positions ascend, so
/// those of a prefix come first.
fn cut<'a>(site: Site, mut values: ArrayViewD<'a, f32>, len: impl Fn(usize, usize) -> usize) -> ArrayViewD<'a, f32> {
    for (axis, kind) in site.axes().iter().enumerate() {
        if matches!(kind, Axis::Pos | Axis::Key) {
            values.slice_axis_inplace(NdAxis(axis), Slice::from(..len(axis, values.shape()[axis])));
        }
    }
    values
}

/// Chooses the sample.
fn probes(config: &Config, batch: &Batch, hooks: &Hooks) -> Vec<Probe> {
    let sites: Vec<Site> = hooks.sites().collect();
    let (Some(first), Some(last)) = (sites.first(), sites.last()) else { return Vec::new() };
    let n = batch.texts().len();
    let mut texts = vec![0, n / 2, n - 1];
    texts.dedup();
    let share = WORK / (2 * texts.len());
    let mut probes = Vec::new();
    for text in texts {
        let all = batch.texts()[text].len();
        let probe = |tokens, sites| Probe { text, tokens, sites, positions: 0, apart: false };
        let deep = affordable(config, *last, all, share);
        probes.push(probe(deep, sites.clone()));
        let shallow: Vec<Site> =
            sites.iter().copied().filter(|site| depth(config, *site) == depth(config, *first)).collect();
        let long = affordable(config, *first, all, share);
        if long > deep {
            probes.push(probe(long, shallow));
        }
    }
    probes
}

/// The number of blocks that a run computes to reach a site; the logits count as one more.
fn depth(config: &Config, site: Site) -> usize {
    match site {
        Site::Embed | Site::PosEmbed => 0,
        Site::Unembed => config.n_layer + 1,
        _ => site.layer().map_or(config.n_layer, |layer| layer + 1),
    }
}

/// How many of `tokens` the reference can run up to `site` within `work` multiply-adds; at least one.
fn affordable(config: &Config, site: Site, tokens: usize, work: usize) -> usize {
    let (d, blocks) = (config.n_embd, depth(config, site).min(config.n_layer));
    let per_token =
        blocks * d * (4 * d + 2 * config.n_inner) + if site == Site::Unembed { d * config.vocab_size } else { 0 };
    let cost = |n: usize| n.saturating_mul(per_token + blocks * n * d);
    (1..=tokens).take_while(|n| *n == 1 || cost(*n) <= work).last().unwrap_or(1)
}
