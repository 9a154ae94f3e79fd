//! Sweeps: the metric of many runs, each of which differs from an unchanged run in one place (a cell). Owns [`Sweep`], which defines
//! the cells, and `Session::sweep`, which runs them. A changed run starts at the block of its first change, from the stream that
//! the unchanged run had there, and cells run together as copies of one text. Read next: `metric.rs`, `statistics.rs`.

use crate::analysis::cases::{BlockInput, Case, Cases, OneCase, TOKENS_AT_ONCE, aligned, batches};
use crate::analysis::edits::{EditError, Kept, cut_mean, fit};
use crate::analysis::metric::Metric;
use crate::batch::Batch;
use crate::config::Config;
use crate::hooks::layout::cut;
use crate::hooks::request::{Edit, HookError, Hooks, Select};
use crate::hooks::site::{self, Axis as SiteAxis, Site, SiteError};
use crate::model::forward;
use crate::session::{AnalysisError, Error, Progress, Session};
use crate::text::named;
use ndarray::{ArrayD, IxDyn};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use thiserror::Error as ThisError;

/// Why a sweep cannot be run.
#[derive(Debug, ThisError)]
pub enum SweepError {
    /// A site does not have an axis.
    #[error("{site} is [{axes}] and has no axis {axis}")]
    Axis {
        /// The site, without its layer.
        site: String,
        /// Its axes.
        axes: String,
        /// What was asked for.
        axis: &'static str,
    },
    /// The sweep has no site.
    #[error("a sweep needs at least one site")]
    NoSites,
    /// A site or an axis is named more than once.
    #[error("{name} is named twice")]
    Twice {
        /// Its name.
        name: String,
    },
    /// Two sites have axes of different length.
    #[error("{first} and {second} have axes of different length, so they do not fit into one array; sweep them apart")]
    Sites {
        /// One site.
        first: String,
        /// The other.
        second: String,
    },
    /// Texts have different lengths where they must be equal.
    #[error("{what}")]
    Lengths {
        /// Which, and how long they are.
        what: String,
    },
    /// The sweep cannot be estimated from gradients.
    #[error("a fast sweep is estimated from gradients: {what}")]
    Fast {
        /// Why not.
        what: String,
    },
    /// A text does not have what the metric needs.
    #[error("{what}")]
    Metric {
        /// Which, and why.
        what: String,
    },
}

impl AnalysisError for SweepError {}

/// One axis of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SweepAxis {
    /// Blocks.
    Layer,
    /// Token positions; of scores and patterns the query's.
    Pos,
    /// Heads.
    Head,
    /// Entries of the last axis.
    Dim,
    /// Keys of scores and patterns.
    Key,
}

named!(SweepAxis: "layer" Layer, "pos" Pos, "head" Head, "dim" Dim, "key" Key);

/// A site without its layer: the same place in every block, or one place before or after the blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SweepSite {
    /// The name as given.
    pub name: String,
    /// The sites, one a layer.
    pub of_layer: Vec<Site>,
}

impl SweepSite {
    /// TransformerLens's set of places in a block.
    pub const EVERY_BLOCK: [&str; 3] = ["resid_pre", "attn_out", "mlp_out"];
    /// TransformerLens's set of places in a head.
    pub const EVERY_HEAD: [&str; 5] = ["z", "q", "k", "v", "pattern"];

    /// Finds a site by a name without its layer, such as `resid_pre` or `mlp_post`.
    ///
    /// # Errors
    /// [`SiteError`] with near names.
    pub fn find(name: &str, config: &Config) -> Result<SweepSite, HookError> {
        let one = |name: &str| site::resolve(name, config.n_layer).map(|sites| sites[0]);
        let unknown = |e: SiteError| match e {
            SiteError::Unknown { near, .. } => {
                // The short names, without a layer, each once.
                let short = |name: String| {
                    let site = site::resolve(&name, config.n_layer).ok().map(|sites| sites[0]);
                    let alias = site.and_then(|site| site.row().aliases.first().copied()).unwrap_or(&name);
                    alias.trim_end_matches(".{i}").to_string()
                };
                let near: BTreeSet<String> = near.into_iter().map(short).collect();
                SiteError::Unknown { pattern: name.into(), near: near.into_iter().collect() }
            }
            other => other,
        };
        if name.contains(['*', '?', '[']) {
            return Err(
                SiteError::Unknown { pattern: name.into(), near: vec!["one name, without its layer".into()] }.into()
            );
        }
        let written = [format!("{name}.0"), format!("blocks.0.{name}"), name.to_string()];
        let first = one(&written[0]).or_else(|e| one(&written[1]).or_else(|_| one(&written[2])).map_err(|_| e));
        let first = first.map_err(unknown)?;
        let of_layer = match first.layer() {
            Some(0) => {
                let same = |site: &Site| std::mem::discriminant(site) == std::mem::discriminant(&first);
                Site::all(config.n_layer).filter(same).collect()
            }
            Some(_) => {
                let row = first.row();
                let short = row.aliases.first().copied().unwrap_or(row.name).trim_end_matches(".{i}");
                let near =
                    vec![format!("{short}, which is the place in every layer; a site is named without its layer")];
                return Err(SiteError::Unknown { pattern: name.into(), near }.into());
            }
            None => vec![first],
        };
        Ok(SweepSite { name: name.into(), of_layer })
    }

    /// True for a site with heads.
    pub fn has_heads(&self) -> bool {
        self.of_layer[0].axes().contains(&SiteAxis::Head)
    }

    /// The length of an axis at this site, for texts of `n_pos` tokens.
    fn len(&self, axis: SweepAxis, config: &Config, n_pos: usize) -> Result<usize, SweepError> {
        let site = self.of_layer[0];
        let has = |wanted: SiteAxis| site.axes().contains(&wanted);
        let len = match axis {
            SweepAxis::Layer => site.layer().map(|_| self.of_layer.len()),
            SweepAxis::Pos => Some(n_pos),
            SweepAxis::Head => has(SiteAxis::Head).then_some(config.n_head),
            SweepAxis::Dim => (!site.is_square()).then(|| site.axes()[site.axes().len() - 1].len(config, 0)),
            SweepAxis::Key => site.is_square().then_some(n_pos),
        };
        len.ok_or_else(|| {
            let axes: Vec<&str> = site.axes().iter().map(|axis| axis.letter()).collect();
            SweepError::Axis { site: self.name.clone(), axes: axes.join(", "), axis: axis.name() }
        })
    }
}

/// The new value of a cell's place.
#[derive(Clone, Debug)]
pub enum Replacement {
    /// The value of the case's source run at the same place.
    Patch,
    /// Zero.
    Zero,
    /// The mean over all positions of all cases, per head and dimension.
    Mean,
    /// Values by site: one row, or one row for each position.
    Values(BTreeMap<Site, ArrayD<f32>>),
}

/// A sweep.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// The sites that are changed.
    pub sites: Vec<SweepSite>,
    /// One cell for every combination of these.
    pub axes: Vec<SweepAxis>,
    /// The new value of each cell's place.
    pub replacement: Replacement,
    /// The metric that is measured.
    pub metric: Metric,
}

/// The results of a sweep.
#[derive(Clone, Debug)]
pub struct Swept {
    /// Length of every axis. If there are several sites, they are the first axis.
    pub shape: Vec<usize>,
    /// The metric of every cell in row-major order, for every case.
    pub values: Vec<Vec<f64>>,
    /// The metric of every case's unchanged run.
    pub unchanged: Vec<f64>,
    /// The metric of every case's source run, if there is one.
    pub source: Vec<f64>,
}

impl Swept {
    /// Of a sweep of this shape, before its first case.
    pub(super) fn empty(shape: Vec<usize>) -> Swept {
        Swept { shape, values: Vec::new(), unchanged: Vec::new(), source: Vec::new() }
    }
}

/// One cell: its place along the axes.
#[derive(Clone, Copy, Default)]
struct Cell {
    layer: Option<usize>,
    pos: Option<usize>,
    head: Option<usize>,
    dim: Option<usize>,
    key: Option<usize>,
}

impl Sweep {
    /// Length of every axis for cases of which `aligned` tokens can be changed.
    ///
    /// # Errors
    /// [`SweepError`] for no site, for a site or an axis that is named twice, and for an axis that a site lacks, or whose length the
    /// sites do not share.
    pub fn shape(&self, config: &Config, aligned: usize) -> Result<Vec<usize>, SweepError> {
        let (site, others) = self.sites.split_first().ok_or(SweepError::NoSites)?;
        no_name_twice(self.sites.iter().map(|site| site.name.as_str()))?;
        no_name_twice(self.axes.iter().map(|axis| axis.name()))?;
        let mut shape = Vec::new();
        for axis in &self.axes {
            let first = site.len(*axis, config, aligned)?;
            for other in others {
                if other.len(*axis, config, aligned)? != first {
                    let (first, second) = (site.name.clone(), other.name.clone());
                    return Err(SweepError::Sites { first, second });
                }
            }
            shape.push(first);
        }
        if self.sites.len() > 1 {
            shape.insert(0, self.sites.len());
        }
        Ok(shape)
    }

    /// Checks everything that needs no run.
    ///
    /// # Errors
    /// [`SweepError`], or [`EditError`] for values of another shape.
    pub fn check(&self, config: &Config, cases: &[Case]) -> Result<(), Error> {
        let aligned = aligned(cases);
        self.shape(config, aligned)?;
        let by_place = self.axes.iter().any(|axis| matches!(axis, SweepAxis::Pos | SweepAxis::Key));
        if by_place && let Some(other) = cases.iter().find(|case| case.aligned != cases[0].aligned) {
            let (a, b) = (cases[0].aligned, other.aligned);
            let what =
                format!("the axes pos and key need texts of one length, and there are texts of {a} and {b} tokens");
            return Err(SweepError::Lengths { what }.into());
        }
        let squares = self.sites.iter().any(|site| site.of_layer[0].is_square());
        for (n, case) in cases.iter().enumerate() {
            let whole = case.source.as_ref().is_none_or(|(ids, _)| ids.len() == case.ids.len());
            if squares && !(whole && case.aligned == case.ids.len()) {
                let what = format!("scores and patterns need texts of one length, and those of case {n} are not");
                return Err(SweepError::Lengths { what }.into());
            }
            case.check(self.metric, config).map_err(|what| SweepError::Metric { what: format!("text {n}: {what}") })?;
            Batch::new(&[&case.ids], config)?;
            if let Replacement::Values(values) = &self.replacement {
                for site in self.sites.iter().flat_map(|site| &site.of_layer) {
                    values_of(values, *site, config, &Batch::new(&[&case.ids], config)?)?;
                }
            }
        }
        if matches!(self.replacement, Replacement::Mean) {
            let all = Batch::new(&cases.iter().map(|case| case.ids.as_slice()).collect::<Vec<_>>(), config)?;
            for site in self.sites.iter().map(|site| site.of_layer[0]) {
                super::edits::check_mean(site, &all)
                    .map_err(|what| EditError::Source { edit: "mean ablation".into(), what })?;
            }
        }
        Ok(())
    }

    /// A cell of the sweep, by its number in row-major order, and the number of its site.
    fn cell(&self, shape: &[usize], mut number: usize) -> (usize, Cell) {
        let mut cell = Cell::default();
        let several = usize::from(self.sites.len() > 1);
        for (axis, n) in self.axes.iter().zip(&shape[several..]).rev() {
            let place = Some(number % n);
            number /= n;
            match axis {
                SweepAxis::Layer => cell.layer = place,
                SweepAxis::Pos => cell.pos = place,
                SweepAxis::Head => cell.head = place,
                SweepAxis::Dim => cell.dim = place,
                SweepAxis::Key => cell.key = place,
            }
        }
        (number, cell)
    }
}

/// Checks that all names differ.
///
/// # Errors
/// [`SweepError::Twice`] with the first one that does not.
pub(super) fn no_name_twice<'a>(names: impl Iterator<Item = &'a str>) -> Result<(), SweepError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(SweepError::Twice { name: name.into() });
        }
    }
    Ok(())
}

/// The values of a site, one row for every position of a text.
fn values_of(
    values: &BTreeMap<Site, ArrayD<f32>>,
    site: Site,
    config: &Config,
    batch: &Batch,
) -> Result<ArrayD<f32>, EditError> {
    let edit = format!("ablation of {site}");
    let array =
        values.get(&site).ok_or_else(|| EditError::Source { edit: edit.clone(), what: "it has no values".into() })?;
    let fitted = fit(site, &Select::all(), config, batch, array.view(), &edit, "the array".into())?;
    let shape = site.shape(config, batch.texts()[0].len());
    let n = shape.iter().product::<usize>();
    let all = fitted.iter().copied().cycle().take(n).collect();
    Ok(ArrayD::from_shape_vec(IxDyn(&shape), all).expect("rows repeat to the whole"))
}

/// Values of the cells' sites for one case.
enum Values {
    Zero,
    /// Values of whole sites.
    Whole(BTreeMap<Site, ArrayD<f32>>),
    Mean,
}

impl Session {
    /// Runs a sweep over every case. `progress` receives the number of finished cells of all cases.
    ///
    /// # Errors
    /// As [`Sweep::check`] and [`Session::run_async`].
    pub async fn sweep_async(
        &self,
        sweep: &Sweep,
        all: Cases<'_>,
        progress: Option<Progress<'_>>,
    ) -> Result<Swept, Error> {
        let config = self.model().config();
        sweep.check(config, all.cases)?;
        let sites: BTreeSet<Site> = sweep.sites.iter().flat_map(|site| site.of_layer.iter().copied()).collect();
        let means = match sweep.replacement {
            Replacement::Mean => {
                let mut kept = Kept::new(BTreeSet::new(), sites.clone());
                let mut hooks = kept.hooks(config);
                for (site, select, edit) in all.edits.edits() {
                    hooks.edit_at(*site, select.clone(), edit.clone())?;
                }
                self.run_into_async(&batches(all.cases, config)?.0, &hooks, &mut kept, None).await?;
                sites.iter().map(|site| (*site, kept.mean(*site))).collect()
            }
            _ => BTreeMap::new(),
        };
        let swept = Swept::empty(sweep.shape(config, aligned(all.cases))?);
        self.each_case(all, swept, progress, async |one, swept| self.sweep_case(sweep, one, &means, swept).await).await
    }

    /// Blocking form of [`Session::sweep_async`], without edits.
    ///
    /// # Errors
    /// As [`Session::sweep_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn sweep(&self, sweep: &Sweep, cases: &[Case]) -> Result<Swept, Error> {
        let none = self.model().hooks();
        pollster::block_on(self.sweep_async(sweep, Cases { cases, edits: &none, source_edits: &none }, None))
    }

    async fn sweep_case(
        &self,
        sweep: &Sweep,
        one: &OneCase<'_>,
        means: &BTreeMap<Site, ArrayD<f32>>,
        swept: &mut Swept,
    ) -> Result<(), Error> {
        let case = one.case;
        let config = self.model().config();
        let sites: BTreeSet<Site> = sweep.sites.iter().flat_map(|site| site.of_layer.iter().copied()).collect();
        let first = |site: Site| match site.layer() {
            Some(layer) => layer,
            None if site < Site::ResidPre(0) => 0,
            None => config.n_layer - 1,
        };
        // Changed runs start from the streams of the unchanged one.
        let streams: BTreeSet<Site> =
            sites.iter().filter(|site| **site >= Site::ResidPre(0)).map(|site| Site::ResidPre(first(*site))).collect();
        let wanted = if matches!(sweep.replacement, Replacement::Patch) { sites.clone() } else { BTreeSet::new() };
        let own = self.own_runs(sweep.metric, one, (streams, wanted), sites.iter().copied()).await?;
        swept.unchanged.push(own.unchanged);
        swept.source.extend(own.of_source);
        let values = match &sweep.replacement {
            Replacement::Patch => {
                let of = |site: &Site| Some((*site, own.source.as_ref()?.of_text(*site, 0).to_owned()));
                Values::Whole(sites.iter().filter_map(of).collect())
            }
            Replacement::Zero => Values::Zero,
            Replacement::Mean => Values::Mean,
            Replacement::Values(given) => {
                let batch = one.own_text();
                let of = |site: &Site| Ok((*site, values_of(given, *site, config, &batch)?));
                Values::Whole(sites.iter().map(of).collect::<Result<_, EditError>>()?)
            }
        };

        let shape = swept.shape.clone();
        let n_cells: usize = shape.iter().product();
        let n_pos = case.ids.len();
        let all = Hooks::whole(config, &sites.iter().copied().collect::<Vec<_>>());
        let most = forward::max_tokens(self.any_device(), config, &all);
        let at_once = (TOKENS_AT_ONCE.min(most) / n_pos).max(1);
        let mut found = vec![f64::NAN; n_cells];
        // Cells that start at the same block, in the order of their numbers.
        let mut groups: BTreeMap<(usize, Option<usize>), Vec<usize>> = BTreeMap::new();
        let mut done = 0;
        let mut flush = async |key: (usize, Option<usize>), cells: Vec<usize>| -> Result<(), Error> {
            let site = &sweep.sites[key.0];
            let changed: Vec<Site> = match key.1 {
                Some(layer) => vec![site.of_layer[layer]],
                None => site.of_layer.clone(),
            };
            let placed: Vec<Cell> = cells.iter().map(|number| sweep.cell(&shape, *number).1).collect();
            let copies = cells.len();
            let batch = Batch::new(&vec![case.ids.as_slice(); copies], config)?;
            let start = changed.iter().min().copied().filter(|site| *site >= Site::ResidPre(0));
            let start = start.map(first);
            let mut hooks = Hooks::new(config);
            for (site, select, edit) in one.own_edits(copies) {
                if start.is_none_or(|layer| site > Site::ResidPre(layer)) {
                    hooks.edit_at(site, select, edit)?;
                }
            }
            for site in changed {
                add_cells(&mut hooks, site, &placed, case, &values, means.get(&site))?;
            }
            let mut read = own.reading(sweep.metric, case);
            read.ask(&mut hooks, &batch)?;
            let start = start.map(|layer| BlockInput::of(&own.here, layer, copies));
            self.run_from_block(&batch, &hooks, start.as_ref(), &mut read).await?;
            for (number, value) in cells.iter().zip(&read.values) {
                found[*number] = *value;
            }
            done += copies;
            if (one.told)(done, n_cells).is_break() { Err(Error::Cancelled) } else { Ok(()) }
        };
        for number in 0..n_cells {
            let (site, cell) = sweep.cell(&shape, number);
            let key = (site, cell.layer);
            let group = groups.entry(key).or_default();
            group.push(number);
            if group.len() == at_once
                && let Some(cells) = groups.remove(&key)
            {
                flush(key, cells).await?;
            }
        }
        for (key, cells) in groups {
            flush(key, cells).await?;
        }
        swept.values.push(found);
        Ok(())
    }
}

/// Adds the changes of cells to a request: cell `i` in copy `i` of the case's text.
fn add_cells(
    hooks: &mut Hooks,
    site: Site,
    cells: &[Cell],
    case: &Case,
    values: &Values,
    mean: Option<&ArrayD<f32>>,
) -> Result<(), Error> {
    let n_pos = case.ids.len();
    let offset = n_pos - case.aligned;
    let mut alike: BTreeMap<(Option<usize>, Option<usize>), Vec<usize>> = BTreeMap::new();
    for (copy, cell) in cells.iter().enumerate() {
        alike.entry((cell.head, cell.dim)).or_default().push(copy);
    }
    let list = |place: Option<usize>, all: Range<usize>| match place {
        Some(place) => vec![all.start + place],
        None => all.collect::<Vec<usize>>(),
    };
    for ((head, dim), copies) in alike {
        let narrowed = |positions: Vec<Vec<usize>>, keys: Vec<Vec<usize>>| {
            let mut select = Select::all().positions(positions);
            if site.is_square() {
                select = select.keys(keys);
            }
            if let Some(head) = head {
                select = select.heads([head]);
            }
            match dim {
                Some(dim) => select.dims([dim]),
                None => select,
            }
        };
        let in_copy = |of: &dyn Fn(&Cell) -> Vec<usize>| {
            let of_copy = |copy: usize| if copies.contains(&copy) { of(&cells[copy]) } else { Vec::new() };
            (0..cells.len()).map(of_copy).collect::<Vec<_>>()
        };
        let keys = |cell: &Cell| list(cell.key, 0..n_pos);
        let select = narrowed(in_copy(&|cell| list(cell.pos, offset..n_pos)), in_copy(&keys));
        let edit = match values {
            Values::Zero => Edit::Zero,
            Values::Whole(whole) => {
                let array = whole[&site].view();
                // Positions line up from the end.
                let n_source = array.len_of(ndarray::Axis(site.pos_axis()));
                let there = |cell: &Cell| list(cell.pos, n_source - case.aligned..n_source);
                let of_copy = |copy: &usize| {
                    let cell = &cells[*copy];
                    let select = narrowed(vec![there(cell)], vec![keys(cell)]);
                    cut(site, &select, 0, array.view()).iter().copied().collect::<Vec<f32>>()
                };
                Edit::Replace(copies.iter().flat_map(of_copy).collect())
            }
            Values::Mean => {
                let mean = mean.expect("a mean of every site");
                let batch = Batch::new(&[case.ids.as_slice()], hooks.config())?;
                let of_copy = |copy: &usize| {
                    let cell = &cells[*copy];
                    let select = narrowed(vec![list(cell.pos, offset..n_pos)], vec![keys(cell)]);
                    cut_mean(site, &select, 0, &batch, mean)
                };
                Edit::Replace(if site.is_square() {
                    copies.iter().flat_map(of_copy).collect()
                } else {
                    of_copy(&copies[0])
                })
            }
        };
        hooks.edit_at(site, select, edit)?;
    }
    Ok(())
}
