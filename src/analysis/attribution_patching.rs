//! Attribution patching: what a sweep would find, estimated from one gradient. The estimate of a changed run's metric is that
//! of the unchanged run plus the change of the values times the gradient. Owns `Session::patch_fast`, and the sum of the
//! estimates by cell; several sweeps may read one gradient. The sweep itself, which runs every cell, is in `sweep.rs`; the gradients
//! are those of `gradients.rs`.

use crate::analysis::cases::{Both, Case, Cases, OneCase, aligned};
use crate::analysis::edits::Kept;
use crate::analysis::gradients::{GradientOptions, Target};
use crate::analysis::metric::{Metric, MetricReader};
use crate::analysis::sweep::{Replacement, Sweep, SweepAxis, SweepError, Swept};
use crate::config::Config;
use crate::hooks::capture::Sink;
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
        if !matches!(self.replacement, Replacement::Patch) || cases.iter().any(|case| case.source.is_none()) {
            return fail("it estimates what values of another text change, and there is no other text");
        }
        if self.metric == Metric::Kl && cases.iter().any(|case| !case.from_source) {
            return fail("the divergence from the unchanged run has gradient 0 there");
        }
        Ok(())
    }
}

impl Session {
    /// Estimates [`Session::sweep_async`] of [`Replacement::Patch`], with one forward and one backward pass for each case. A cell's value is the
    /// unchanged run's metric plus (source value - own value) times the gradient, summed over all that the cell changes. Where a
    /// cell changes several layers, each is estimated with the others as they are.
    ///
    /// # Errors
    /// As [`Sweep::check_fast`] and [`Session::gradients_async`].
    pub async fn patch_fast_async(
        &self,
        sweep: &Sweep,
        all: Cases<'_>,
        progress: Option<Progress<'_>>,
    ) -> Result<Swept, Error> {
        Ok(self.patch_fast_each_async(std::slice::from_ref(sweep), all, progress).await?.remove(0))
    }

    /// [`Session::patch_fast_async`] for several sweeps of one metric, such as heads by layer and head and MLPs by layer, from the
    /// same two passes.
    ///
    /// # Errors
    /// As [`Session::patch_fast_async`]; [`SweepError::Fast`] for sweeps of several metrics.
    pub async fn patch_fast_each_async(
        &self,
        sweeps: &[Sweep],
        all: Cases<'_>,
        progress: Option<Progress<'_>>,
    ) -> Result<Vec<Swept>, Error> {
        let config = self.model().config();
        sweeps.iter().try_for_each(|sweep| sweep.check_fast(config, all.cases))?;
        if let Some(other) = sweeps.iter().find(|sweep| sweep.metric != sweeps[0].metric) {
            let (a, b) = (sweeps[0].metric.name(), other.metric.name());
            let what = format!("sweeps from the same gradient have one metric, and these have {a} and {b}");
            return Err(SweepError::Fast { what }.into());
        }
        let of_sweep = |sweep: &Sweep| sweep.shape(config, aligned(all.cases)).map(Swept::empty);
        let swept = sweeps.iter().map(of_sweep).collect::<Result<Vec<_>, _>>()?;
        self.each_case(all, swept, progress, async |one, swept| self.fast_case(sweeps, one, swept).await).await
    }

    /// Blocking form of [`Session::patch_fast_async`], without edits.
    ///
    /// # Errors
    /// As [`Session::patch_fast_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn patch_fast(&self, sweep: &Sweep, cases: &[Case]) -> Result<Swept, Error> {
        let none = self.model().hooks();
        pollster::block_on(self.patch_fast_async(sweep, Cases { cases, edits: &none, source_edits: &none }, None))
    }

    async fn fast_case(&self, sweeps: &[Sweep], one: &OneCase<'_>, swept: &mut [Swept]) -> Result<(), Error> {
        let case = one.case;
        let Some(metric) = sweeps.first().map(|sweep| sweep.metric) else { return Ok(()) };
        let config = self.model().config();
        let all = sweeps.iter().flat_map(|sweep| &sweep.sites).flat_map(|site| site.of_layer.iter().copied());
        let sites: BTreeSet<Site> = all.collect();
        let (ids, question) = case.source.as_ref().expect("checked above");
        let source_edits = one.source_edits();
        let touched = sites.iter().copied().chain(source_edits.iter().map(|(site, ..)| *site));
        let directions = self.directions(metric, question, touched).await?;
        let reading = MetricReader { directions: directions.as_ref(), ..MetricReader::new(metric, question, ids) };
        let mut source = Both { kept: Kept::new(sites.clone(), BTreeSet::new()), reading };
        self.run_once(ids, &source_edits, &mut source).await?;
        let Both { kept: source, reading } = source;
        let (source_value, log_probabilities) = (reading.values[0], reading.log_probabilities);

        let question = vec![case.question.clone()];
        let target = match metric {
            Metric::Kl => Target::Divergence(question, vec![log_probabilities]),
            metric => Target::Metric(metric, question),
        };
        let batch = self.model().batch(&[&case.ids])?;
        let mut hooks = Hooks::whole(config, &sites.iter().copied().collect::<Vec<_>>());
        for (site, select, edit) in one.own_edits(1) {
            hooks.edit_at(site, select, edit)?;
        }
        // A value comes before its gradient.
        let own = RefCell::new(Kept::new(sites, BTreeSet::new()));
        let mut values = Values(&own);
        let of_sweep = |(sweep, swept): (_, &Swept)| {
            let shape = swept.shape.clone();
            Estimates { sweep, changes: vec![0.0; shape.iter().product()], shape }
        };
        let estimates = sweeps.iter().zip(swept.iter()).map(of_sweep).collect();
        let mut changes = Changes { case, source: &source, own: &own, estimates };
        let unchanged = self
            .gradients_into_async(
                &batch,
                &hooks,
                &target,
                GradientOptions::default(),
                &mut values,
                &mut changes,
                Some(one.told),
            )
            .await?[0];
        for (swept, Estimates { changes, .. }) in swept.iter_mut().zip(changes.estimates) {
            swept.values.push(changes.into_iter().map(|change| unchanged + change).collect());
            swept.unchanged.push(unchanged);
            swept.source.push(source_value);
        }
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

/// Receives the gradients of a case.
struct Changes<'a> {
    case: &'a Case,
    source: &'a Kept,
    own: &'a RefCell<Kept>,
    estimates: Vec<Estimates<'a>>,
}

/// Adds up, cell by cell of one sweep, gradients times changes of values.
struct Estimates<'a> {
    sweep: &'a Sweep,
    shape: Vec<usize>,
    changes: Vec<f64>,
}

impl Estimates<'_> {
    /// The first cell of a site, and how many cells further the next entry of each of its axes is. An axis that the sweep does
    /// not have adds to the same cell.
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

    /// Adds what a site contributes. The arrays have one shape.
    fn add(&mut self, site: Site, [gradient, own, source]: [&ArrayViewD<'_, f32>; 3]) {
        for (nth, of_sweep) in self.sweep.sites.iter().enumerate() {
            let Some(layer) = of_sweep.of_layer.iter().position(|other| *other == site) else { continue };
            let (first, strides) = self.strides(nth, layer, site);
            let (last, outer) = strides.split_last().expect("a site has axes");
            let lens = &gradient.shape()[..outer.len()];
            // The place of a row along the axes before the last one.
            let mut place = vec![0; lens.len()];
            for ((by, own), source) in gradient.rows().into_iter().zip(own.rows()).zip(source.rows()) {
                let cell = first + place.iter().zip(outer).map(|(index, stride)| index * stride).sum::<usize>();
                // Masked scores cannot be subtracted.
                let change = |by: f32, own: f32, source: f32| {
                    if by != 0.0 { f64::from(by) * (f64::from(source) - f64::from(own)) } else { 0.0 }
                };
                let of_row = by.iter().zip(own).zip(source).map(|((by, own), source)| change(*by, *own, *source));
                match last {
                    0 => self.changes[cell] += of_row.sum::<f64>(),
                    _ => of_row.enumerate().for_each(|(i, change)| self.changes[cell + i * last] += change),
                }
                for (index, len) in place.iter_mut().zip(lens).rev() {
                    *index += 1;
                    if *index < *len {
                        break;
                    }
                    *index = 0;
                }
            }
        }
    }
}

impl Sink for Changes<'_> {
    fn put(&mut self, site: Site, _: usize, gradient: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        let own = self.own.borrow();
        // Texts line up from the end.
        let axis = Axis(site.pos_axis());
        let end = |array: ArrayViewD<'_, f32>| -> Slice {
            let n = array.len_of(axis);
            Slice::from(n - self.case.aligned..n)
        };
        let (mut own, mut source, mut gradient) = (own.of_text(site, 0), self.source.of_text(site, 0), gradient);
        for array in [&mut own, &mut source, &mut gradient] {
            array.slice_axis_inplace(axis, end(array.view()));
        }
        self.estimates.iter_mut().for_each(|estimates| estimates.add(site, [&gradient, &own, &source]));
        Ok(())
    }
}
