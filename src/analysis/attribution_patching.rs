//! Attribution patching: what a sweep would find, estimated from one gradient. The metric of a changed run is taken to be that
//! of the unchanged run plus the change of the values times the gradient there. Owns `Session::patch_fast`. The sweep itself,
//! which runs every cell, is in `sweep.rs`; the gradients are those of `gradients.rs`.

use crate::analysis::edits::Kept;
use crate::analysis::gradients::{Target, Way};
use crate::analysis::metric::{Metric, Reading};
use crate::analysis::sweep::{Both, Case, Change, Sweep, SweepAxis, SweepError, Swept, Texts, aligned, batches};
use crate::config::Config;
use crate::hooks::capture::Sink;
use crate::hooks::layout::edits_of_text;
use crate::hooks::request::Hooks;
use crate::hooks::site::{Axis as SiteAxis, Site};
use crate::session::{Error, Progress, Session};
use ndarray::{ArrayViewD, Axis, Slice};
use std::cell::RefCell;
use std::collections::BTreeSet;

impl Sweep {
    /// Checks everything about a fast sweep that needs no run.
    ///
    /// # Errors
    /// As [`Sweep::check`]; [`SweepError::Fast`] for what has no gradient to estimate from.
    pub fn check_fast(&self, config: &Config, cases: &[Case]) -> Result<(), Error> {
        self.check(config, cases)?;
        let fail = |what: &str| Err(SweepError::Fast { what: what.into() }.into());
        if !matches!(self.change, Change::Patch) || cases.iter().any(|case| case.source.is_none()) {
            return fail("it estimates what values of another text change, and there is no other text");
        }
        if self.metric == Metric::Kl && cases.iter().any(|case| !case.from_source) {
            return fail("the divergence from the unchanged run has gradient 0 there");
        }
        Ok(())
    }
}

impl Session {
    /// Estimates [`Session::sweep_async`] of [`Change::Patch`], with one run there and back for each case. A cell's value is the
    /// unchanged run's metric plus (source value - own value) times the gradient, summed over all that the cell changes. Where a
    /// cell changes several layers, each is estimated with the others as they are.
    ///
    /// # Errors
    /// As [`Sweep::check_fast`] and [`Session::gradients_async`].
    pub async fn patch_fast_async(
        &self,
        sweep: &Sweep,
        cases: &[Case],
        edits: &Hooks,
        source_edits: &Hooks,
        progress: Option<Progress<'_>>,
    ) -> Result<Swept, Error> {
        let config = self.model().config();
        sweep.check_fast(config, cases)?;
        let (runs, sources) = batches(cases, config)?;
        let shape = sweep.shape(config, aligned(cases))?;
        let texts = Texts { runs: &runs, sources: &sources, edits, source_edits, n: 0 };
        self.each_case(cases, &texts, shape, progress, async |case, texts, swept, told| {
            self.fast_case(sweep, case, texts, swept, told).await
        })
        .await
    }

    /// [`Session::patch_fast_async`] without edits, waiting.
    ///
    /// # Errors
    /// As [`Session::patch_fast_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn patch_fast(&self, sweep: &Sweep, cases: &[Case]) -> Result<Swept, Error> {
        let none = self.model().hooks();
        pollster::block_on(self.patch_fast_async(sweep, cases, &none, &none, None))
    }

    async fn fast_case(
        &self,
        sweep: &Sweep,
        case: &Case,
        texts: &Texts<'_>,
        swept: &mut Swept,
        told: Progress<'_>,
    ) -> Result<(), Error> {
        let config = self.model().config();
        let sites: BTreeSet<Site> = sweep.sites.iter().flat_map(|site| site.of_layer.iter().copied()).collect();
        let (ids, question) = case.source.as_ref().expect("checked above");
        let reading = Reading::new(sweep.metric, question, ids);
        let mut source = Both { kept: Kept::new(sites.clone(), BTreeSet::new()), reading };
        self.run_once(ids, &edits_of_text(texts.source_edits, texts.sources, texts.n, 1), &mut source).await?;
        let Both { kept: source, reading } = source;
        swept.source.push(reading.values[0]);

        let question = vec![case.question.clone()];
        let target = match sweep.metric {
            Metric::Kl => Target::Divergence(question, vec![reading.log_probabilities]),
            metric => Target::Metric(metric, question),
        };
        let batch = self.model().batch(&[&case.ids])?;
        let mut hooks = Hooks::whole(config, &sites.iter().copied().collect::<Vec<_>>());
        for (site, select, edit) in edits_of_text(texts.edits, texts.runs, texts.n, 1) {
            hooks.edit_at(site, select, edit)?;
        }
        let n_cells = swept.shape.iter().product();
        // A value comes before its gradient.
        let own = RefCell::new(Kept::new(sites, BTreeSet::new()));
        let mut values = Values(&own);
        let mut estimates =
            Estimates { sweep, case, source: &source, own: &own, shape: &swept.shape, changes: vec![0.0; n_cells] };
        let unchanged = self
            .gradients_into_async(&batch, &hooks, &target, Way::default(), &mut values, &mut estimates, Some(told))
            .await?[0];
        swept.values.push(estimates.changes.iter().map(|change| unchanged + change).collect());
        swept.unchanged.push(unchanged);
        Ok(())
    }
}

/// Keeps the values of the unchanged run.
struct Values<'a>(&'a RefCell<Kept>);

impl Sink for Values<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.0.borrow_mut().put(site, text, values)
    }
}

/// Adds up, cell by cell, gradients times changes of values.
struct Estimates<'a> {
    sweep: &'a Sweep,
    case: &'a Case,
    source: &'a Kept,
    own: &'a RefCell<Kept>,
    shape: &'a [usize],
    changes: Vec<f64>,
}

impl Estimates<'_> {
    /// The first cell of a site, and how many cells further the next entry of each of its axes is. An axis that is no axis of
    /// the sweep adds to the same cell.
    fn strides(&self, nth: usize, layer: usize, site: Site) -> (usize, Vec<usize>) {
        let several = usize::from(self.sweep.sites.len() > 1);
        let stride = |axis: usize| self.shape[axis + 1..].iter().product::<usize>();
        let mut first = if several == 1 { nth * stride(0) } else { 0 };
        let mut strides = vec![0; site.axes().len()];
        for (n, axis) in self.sweep.axes.iter().enumerate() {
            let stride = stride(n + several);
            let of_site = |wanted: &dyn Fn(SiteAxis) -> bool| site.axes().iter().position(|axis| wanted(*axis));
            let at = match axis {
                SweepAxis::Layer => {
                    first += layer * stride;
                    continue;
                }
                SweepAxis::Pos => of_site(&|axis| axis == SiteAxis::Pos),
                SweepAxis::Head => of_site(&|axis| axis == SiteAxis::Head),
                SweepAxis::Key => of_site(&|axis| axis == SiteAxis::Key),
                SweepAxis::Dim => Some(site.axes().len() - 1),
            };
            strides[at.expect("checked with the sweep's shape")] = stride;
        }
        (first, strides)
    }
}

impl Sink for Estimates<'_> {
    fn put(&mut self, site: Site, _: usize, gradient: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        let own = self.own.borrow();
        // Texts line up from the end.
        let end = |array: ArrayViewD<'_, f32>| {
            let axis = Axis(site.pos_axis());
            let n = array.len_of(axis);
            array.slice_axis(axis, Slice::from(n - self.case.aligned..n)).to_owned()
        };
        let (own, source) = (end(own.of_text(site, 0)), end(self.source.of_text(site, 0)));
        let gradient = end(gradient);
        for (nth, of_sweep) in self.sweep.sites.iter().enumerate() {
            let Some(layer) = of_sweep.of_layer.iter().position(|other| *other == site) else { continue };
            let (first, strides) = self.strides(nth, layer, site);
            for ((index, by), (own, source)) in gradient.indexed_iter().zip(own.iter().zip(&source)) {
                // Where a query cannot see a key, scores are no numbers to subtract.
                if *by != 0.0 {
                    let cell = first + strides.iter().enumerate().map(|(axis, n)| index[axis] * n).sum::<usize>();
                    self.changes[cell] += f64::from(*by) * (f64::from(*source) - f64::from(*own));
                }
            }
        }
        Ok(())
    }
}
