//! Maps a request to tensors: which rows and columns of which tensor a selection covers, and the shape of the result.
//! Owns
//! [`Layout`], a request checked against a batch. Only this file knows how texts, heads, and q, k and v are arranged in
//! tensors. `request.rs` defines the request.
//! Read next: `recorder.rs`.

use super::request::{Edit, HookError, Hooks, Select, is_list};
use super::site::{Axis, Site};
use crate::batch::Batch;
use crate::config::Config;
use crate::device::{Change, MASKED, Window};
use ndarray::{ArrayD, ArrayViewD};
use std::collections::BTreeMap;
use std::ops::Range;

/// A request that was checked against a batch.
#[derive(Debug)]
pub struct Layout<'a> {
    hooks: &'a Hooks,
    batch: &'a Batch,
    /// For each edit, how many values of its selection come before each text.
    values_before: Vec<Vec<usize>>,
    /// For each edit, how many values its selection has.
    n_values: Vec<usize>,
    /// Positions of each text whose logits are computed beside the tapped ones.
    more_logits: Option<Vec<Vec<usize>>>,
}

impl<'a> Layout<'a> {
    /// Checks that every position exists and that every edit's values fit.
    ///
    /// # Errors
    /// [`HookError::Texts`], [`HookError::Window`], [`HookError::Nothing`] or [`HookError::Values`].
    pub fn new(hooks: &'a Hooks, batch: &'a Batch) -> Result<Layout<'a>, HookError> {
        let edits = hooks.edits.iter().map(|(site, select, _)| (site, select));
        for (site, select) in hooks.taps.iter().chain(edits) {
            check_lists(*site, "positions", select.positions.as_ref(), batch, |text| batch.texts()[text].len())?;
            check_lists(*site, "keys", select.keys.as_ref(), batch, |text| batch.n_keys(text))?;
        }
        let (values_before, n_values, more_logits) = Default::default();
        let mut layout = Layout { hooks, batch, values_before, n_values, more_logits };
        for (site, select, edit) in &hooks.edits {
            let (mut before, mut total, mut widths) = (Vec::new(), 0, Vec::new());
            for text in 0..batch.texts().len() {
                before.push(total);
                for (_, window) in layout.windows(*site, select, text..text + 1) {
                    total += window.len();
                    widths.extend((!window.is_empty()).then(|| window.n_cols()));
                }
            }
            if total == 0 {
                return Err(HookError::Nothing { site: site.name() });
            }
            // One row can be used for all rows only if all are equally long. A pattern's rows are as long as its text.
            widths.dedup();
            let row = if widths.len() == 1 { widths[0] } else { total };
            if let Some(given) = edit.values().map(<[f32]>::len)
                && ![1, row, total].contains(&given)
            {
                return Err(HookError::Values { site: site.name(), given, row, all: total });
            }
            layout.values_before.push(before);
            layout.n_values.push(total);
        }
        Ok(layout)
    }

    /// The request.
    pub fn hooks(&self) -> &'a Hooks {
        self.hooks
    }

    /// The batch.
    pub fn batch(&self) -> &'a Batch {
        self.batch
    }

    /// How many values of edit `n`'s selection come before a text.
    pub(super) fn values_before(&self, n: usize, text: usize) -> usize {
        self.values_before[n][text]
    }

    /// How many values edit `n`'s selection has.
    pub(super) fn n_values(&self, n: usize) -> usize {
        self.n_values[n]
    }

    /// The edits of a site, by their index.
    pub(super) fn edits(&self, site: Site) -> impl Iterator<Item = (usize, &'a Select, &'a Edit)> + use<'a> {
        let all = self.hooks.edits.iter().enumerate();
        all.filter(move |(_, (at, ..))| *at == site).map(|(n, (_, select, edit))| (n, select, edit))
    }

    /// True when `site` has a tap or an edit.
    pub(super) fn wants(&self, site: Site) -> bool {
        self.hooks.tapped(site).is_some() || self.edits(site).next().is_some()
    }

    /// The same layout, in a run that also needs the logits at these positions, one list per text.
    pub(crate) fn with_logits(self, positions: Vec<Vec<usize>>) -> Layout<'a> {
        Layout { more_logits: Some(positions), ..self }
    }

    /// The positions that [`Layout::with_logits`] was given.
    pub(crate) fn more_logits(&self) -> Option<&[Vec<usize>]> {
        self.more_logits.as_deref()
    }

    /// The positions of a text whose logits are computed, or `None` for all. Nothing reads the logits later in the run,
    /// so those that are not recorded are not computed.
    pub(super) fn logits_of(&self, text: usize) -> Option<Vec<Range<usize>>> {
        if self.hooks.argmax {
            let n = self.batch.texts()[text].len();
            return Some(vec![n - 1..n]);
        }
        if self.edits(Site::Unembed).next().is_some() {
            return None;
        }
        let more = self.more_logits.as_ref().map(|positions| &positions[text]);
        let list = match (self.hooks.tapped(Site::Unembed), more) {
            (Some(select), more) => {
                let mut list = select.positions.as_ref()?[text].clone();
                list.extend(more.into_iter().flatten());
                list.sort_unstable();
                list.dedup();
                list
            }
            (None, more) => more?.clone(),
        };
        Some(runs(&list))
    }

    /// The number of positions of a text whose logits are computed.
    pub(crate) fn n_logits_of(&self, text: usize) -> usize {
        if self.more_logits.is_none() && !self.wants(Site::Unembed) {
            return 0;
        }
        let some = self.logits_of(text).map(|rows| rows.iter().map(Range::len).sum());
        some.unwrap_or(self.batch.texts()[text].len())
    }

    /// The most bytes that one block's taps of one text take, or the taps after the last block.
    pub fn bytes_at_once(&self, text: usize) -> usize {
        let mut of_stage: BTreeMap<Option<usize>, usize> = BTreeMap::new();
        for site in self.hooks.sites() {
            let elements: usize = self.hooks.shape_of_text(site, self.batch, text).iter().product();
            *of_stage.entry(site.layer()).or_default() += size_of::<f32>() * elements;
        }
        of_stage.into_values().max().unwrap_or(0)
    }

    /// Where a selection lies in the tensor or tensors that carry `site` when `texts` of the batch are run together:
    /// one window over all of them, or one per text for the sites that are computed text by text (scores, pattern,
    /// logits), with that text's index.
    pub(crate) fn windows(&self, site: Site, select: &Select, texts: Range<usize>) -> Vec<(Option<usize>, Window)> {
        let (batch, config) = (self.batch, &self.hooks.config);
        if !by_text(site) {
            let first = batch.texts().get(texts.start).map_or(0, |text| text.start);
            let rows = texts.flat_map(|i| {
                let text = &batch.texts()[i];
                let start = text.start - first;
                ranges(select.positions.as_ref(), i, text.len())
                    .into_iter()
                    .map(move |r| start + r.start..start + r.end)
            });
            return vec![(None, Window { rows: join(rows), cols: columns(site, select, config) })];
        }
        let one = |i: usize| {
            let n_pos = batch.texts()[i].len();
            let within = ranges(select.positions.as_ref(), i, n_pos);
            let window = if site.is_square() {
                let heads = select.heads.clone().unwrap_or_else(|| (0..config.n_head).collect());
                let rows = heads.into_iter().flat_map(|head| {
                    within.iter().map(move |r| head * n_pos + r.start..head * n_pos + r.end).collect::<Vec<_>>()
                });
                Window { rows: join(rows), cols: ranges(select.keys.as_ref(), i, batch.n_keys(i)) }
            } else if let Some(computed) = self.logits_of(i) {
                // Only these rows were computed, one after the other.
                let computed: Vec<usize> = computed.into_iter().flatten().collect();
                let rows = within.into_iter().flatten().filter_map(|row| computed.binary_search(&row).ok());
                Window { rows: join(rows.map(|row| row..row + 1)), cols: columns(site, select, config) }
            } else {
                Window { rows: within, cols: columns(site, select, config) }
            };
            (Some(i), window)
        };
        texts.map(one).collect()
    }

    /// Shape of what a selection holds of one text.
    pub(crate) fn shape_of_selection(&self, site: Site, select: &Select, text: usize) -> Vec<usize> {
        shape_of(&self.hooks.config, site, select, self.batch, text)
    }

    /// The change that edit `n` makes in a window of `text`, or of all texts from `text` on. `None` for a function, which the
    /// host calls.
    pub(super) fn change(&self, n: usize, site: Site, edit: &Edit, text: usize, window: &Window) -> Option<Change> {
        let width = window.n_cols();
        let cut = |values: &[f32]| match values {
            [one] => vec![*one; width],
            row if row.len() == width => row.to_vec(),
            all => all[self.values_before[n][text]..][..window.len()].to_vec(),
        };
        let change = match edit {
            Edit::Zero => Change::Zero,
            Edit::Scale(factor) => Change::Scale(*factor),
            Edit::Add(values) => Change::Add(cut(values)),
            Edit::Replace(values) => Change::Replace(cut(values)),
            Edit::With(_) => return None,
        };
        Some(if site.is_square() { self.seen_only(site, change, text, window) } else { change })
    }

    /// A change of scores or patterns that does not modify masked entries.
    fn seen_only(&self, site: Site, change: Change, text: usize, window: &Window) -> Change {
        let unseen = if matches!(site, Site::AttnScores(_)) { MASKED } else { 0.0 };
        let full = |values: &[f32], unseen: f32| {
            let entries = window.each_row().flat_map(|row| window.each_col().map(move |key| (row, key)));
            let value = |(i, (row, key)): (usize, (usize, usize))| {
                if self.sees(text, row, key) { values[i % values.len()].max(MASKED) } else { unseen }
            };
            entries.enumerate().map(value).collect::<Vec<f32>>()
        };
        match change {
            // Unseen entries of a pattern are 0.
            Change::Zero if unseen == 0.0 => change,
            // Neither 0 nor a masked score changes.
            Change::Scale(_) => change,
            Change::Zero => Change::Replace(full(&[0.0], unseen)),
            Change::Add(values) => Change::Add(full(&values, 0.0)),
            Change::Replace(values) => Change::Replace(full(&values, unseen)),
        }
    }

    /// True when the query of a row of scores or of a pattern [H Q, K] attends to a key, that is, the entry is not
    /// masked.
    pub(crate) fn sees(&self, text: usize, row: usize, key: usize) -> bool {
        key <= self.batch.first_position(text) + row % self.batch.texts()[text].len()
    }
}

/// The edits of a request that change one of its texts, adapted to a batch of `copies` copies of that text.
pub(crate) fn edits_of_text(hooks: &Hooks, batch: &Batch, text: usize, copies: usize) -> Vec<(Site, Select, Edit)> {
    let size = |site: Site, select: &Select, text: usize| -> usize {
        shape_of(&hooks.config, site, select, batch, text).iter().product()
    };
    let mut edits = Vec::new();
    for (site, select, edit) in &hooks.edits {
        let here = size(*site, select, text);
        if here == 0 {
            continue;
        }
        let sizes: Vec<usize> = (0..batch.texts().len()).map(|text| size(*site, select, text)).collect();
        let (before, all) = (sizes[..text].iter().sum::<usize>(), sizes.iter().sum::<usize>());
        let cut = |values: &Vec<f32>| {
            if values.len() == all { values[before..before + here].repeat(copies) } else { values.clone() }
        };
        let edit = match edit {
            Edit::Add(values) => Edit::Add(cut(values)),
            Edit::Replace(values) => Edit::Replace(cut(values)),
            other => other.clone(),
        };
        let copied = |lists: &Option<Vec<Vec<usize>>>| lists.as_ref().map(|lists| vec![lists[text].clone(); copies]);
        let (positions, keys) = (copied(&select.positions), copied(&select.keys));
        edits.push((*site, Select { positions, keys, ..select.clone() }, edit));
    }
    edits
}

/// The values of a selection in one text's array, in the order of its axes.
pub(crate) fn cut(site: Site, select: &Select, text: usize, array: ArrayViewD<'_, f32>) -> ArrayD<f32> {
    let mut array = array.to_owned();
    for (n, axis) in site.axes().iter().enumerate() {
        let list = match axis {
            Axis::Pos => select.positions.as_ref().map(|lists| &lists[text]),
            Axis::Key => select.keys.as_ref().map(|lists| &lists[text]),
            Axis::Head => select.heads.as_ref(),
            _ => select.dims.as_ref(),
        };
        if let Some(list) = list {
            array = array.select(ndarray::Axis(n), list);
        }
    }
    array
}

fn check_lists(
    site: Site,
    what: &'static str,
    per_text: Option<&Vec<Vec<usize>>>,
    batch: &Batch,
    len: impl Fn(usize) -> usize,
) -> Result<(), HookError> {
    let Some(per_text) = per_text else { return Ok(()) };
    if per_text.len() != batch.texts().len() {
        return Err(HookError::Texts { given: per_text.len(), texts: batch.texts().len() });
    }
    for (text, list) in per_text.iter().enumerate().filter(|(_, list)| !list.is_empty()) {
        if !is_list(list, len(text)) {
            let has = format!("{what} 0..{}, each once, ascending", len(text));
            return Err(HookError::Window { site: site.name(), what, asked: list.clone(), has });
        }
    }
    Ok(())
}

impl Hooks {
    /// Shape of the array of `site`: [batch, ...], as long as the longest text needs.
    pub fn shape(&self, site: Site, batch: &Batch) -> Vec<usize> {
        let shapes = (0..batch.texts().len()).map(|text| self.shape_of_text(site, batch, text));
        let longest = shapes.reduce(|a, b| a.into_iter().zip(b).map(|(a, b)| a.max(b)).collect());
        std::iter::once(batch.texts().len()).chain(longest.into_iter().flatten()).collect()
    }

    /// Every tapped site with its [`Hooks::shape`], in run order.
    pub fn shapes(&self, batch: &Batch) -> Vec<(Site, Vec<usize>)> {
        self.sites().map(|site| (site, self.shape(site, batch))).collect()
    }

    /// Shape of one text's values at `site`, without a batch axis and without padding.
    pub fn shape_of_text(&self, site: Site, batch: &Batch, text: usize) -> Vec<usize> {
        shape_of(&self.config, site, self.tapped(site).unwrap_or(&Select::all()), batch, text)
    }

    /// The checks that need the batch: that every position exists and every edit's values fit.
    ///
    /// # Errors
    /// [`HookError::Texts`], [`HookError::Window`], [`HookError::Nothing`] or [`HookError::Values`].
    pub fn check_batch(&self, batch: &Batch) -> Result<(), HookError> {
        Layout::new(self, batch).map(drop)
    }
}

/// Shape of what a selection of a site holds of one text.
pub(crate) fn shape_of(config: &Config, site: Site, select: &Select, batch: &Batch, text: usize) -> Vec<usize> {
    let of_text = |per_text: &Option<Vec<Vec<usize>>>| per_text.as_ref().map(|per_text| per_text[text].len());
    let len = |axis: &Axis| match axis {
        Axis::Pos => of_text(&select.positions).unwrap_or(batch.texts()[text].len()),
        Axis::Key => of_text(&select.keys).unwrap_or(batch.n_keys(text)),
        Axis::Head => select.heads.as_ref().map_or(config.n_head, Vec::len),
        last => select.dims.as_ref().map_or(last.len(config, 0), Vec::len),
    };
    site.axes().iter().map(len).collect()
}

/// The columns that a selection covers in its site's tensor. Heads lie side by side; q, k and v lie side by side in one
/// tensor.
fn columns(site: Site, select: &Select, config: &Config) -> Vec<Range<usize>> {
    let base = match site {
        Site::K(_) => config.n_embd,
        Site::V(_) => 2 * config.n_embd,
        _ => 0,
    };
    let width = site.axes()[site.axes().len() - 1].len(config, 0);
    let heads = match &select.heads {
        Some(heads) => heads.clone(),
        None if site.axes().contains(&Axis::Head) => (0..config.n_head).collect(),
        None => vec![0],
    };
    let dims = select.dims.as_ref().map_or_else(|| vec![0..width], |dims| runs(dims));
    join(heads.into_iter().flat_map(|head| {
        let first = base + head * width;
        dims.iter().map(move |dim| first + dim.start..first + dim.end)
    }))
}

/// A text's list as ranges, or `0..n` if there is no list.
fn ranges(per_text: Option<&Vec<Vec<usize>>>, text: usize, n: usize) -> Vec<Range<usize>> {
    match per_text {
        Some(per_text) => runs(&per_text[text]),
        None => vec![0..n],
    }
}

/// An ascending list as ranges of consecutive indices.
fn runs(list: &[usize]) -> Vec<Range<usize>> {
    join(list.iter().map(|i| *i..i + 1))
}

/// Joins adjacent ranges.
fn join(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

/// Sites whose tensors hold one text each.
fn by_text(site: Site) -> bool {
    site.is_square() || site == Site::Unembed
}
