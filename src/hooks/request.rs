//! Taps and edits for one run. Owns [`Hooks`], the request, with every check on it. Knows sites and batches; which rows and
//! columns of which tensor a request means is decided here.
//! Read next: `capture.rs` for what comes back, `recorder.rs`, which carries a request out while the forward pass runs.

use crate::device::{Edit, Window};
use crate::hooks::site::{self, Axis, Site, SiteError};
use crate::model::batch::Batch;
use crate::model::config::Config;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use thiserror::Error;

/// Which part of a site's values: all of them, unless narrowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Select {
    pub(crate) positions: Option<Vec<Vec<usize>>>,
    heads: Option<Range<usize>>,
    pub(crate) columns: Option<Range<usize>>,
}

static ALL: Select = Select { positions: None, heads: None, columns: None };

impl Select {
    /// Everything.
    pub fn all() -> Select {
        Select::default()
    }

    /// Only these token positions, one list per text; ascending, each once. On attention patterns: the query.
    pub fn positions(mut self, per_text: Vec<Vec<usize>>) -> Select {
        self.positions = Some(per_text);
        self
    }

    /// Only these heads.
    pub fn heads(mut self, heads: Range<usize>) -> Select {
        self.heads = Some(heads);
        self
    }

    /// Only these entries of the last axis.
    pub fn columns(mut self, columns: Range<usize>) -> Select {
        self.columns = Some(columns);
        self
    }

    /// Shape of `site` after this selection, for a text of `n_pos` tokens of which `kept` are selected.
    fn shape(&self, site: Site, config: &Config, n_pos: usize, kept: usize) -> Vec<usize> {
        let last = site.axes().len() - 1;
        let len = |(axis, kind): (usize, &Axis)| match (kind, &self.heads, &self.columns) {
            (_, _, Some(columns)) if axis == last => columns.len(),
            (Axis::Pos, _, _) => kept,
            (Axis::Head, Some(heads), _) => heads.len(),
            _ => kind.len(config, n_pos),
        };
        site.axes().iter().enumerate().map(len).collect()
    }

    /// How many positions of text `i`, which has `n_pos`, are selected.
    fn kept(&self, i: usize, n_pos: usize) -> usize {
        self.positions.as_ref().map_or(n_pos, |per_text| per_text[i].len())
    }

    /// The selected positions of a text of `n_pos` tokens as ranges, neighbours joined.
    fn ranges(&self, text: usize, n_pos: usize) -> Vec<Range<usize>> {
        let Some(per_text) = &self.positions else { return vec![0..n_pos] };
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for &p in &per_text[text] {
            match ranges.last_mut() {
                Some(range) if range.end == p => range.end += 1,
                _ => ranges.push(p..p + 1),
            }
        }
        ranges
    }
}

/// A request that this model or this batch cannot meet.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HookError {
    /// No such hook.
    #[error(transparent)]
    Site(#[from] SiteError),
    /// Heads, columns or positions that the site does not have.
    #[error("{site}: {what} {asked:?} do not exist; it has {has}")]
    Window {
        /// The hook's name.
        site: String,
        /// `heads`, `columns` or `positions`.
        what: &'static str,
        /// What was asked for.
        asked: Range<usize>,
        /// What there is.
        has: String,
    },
    /// The same hook asked for in two different ways.
    #[error("{site} is asked for twice with different windows; ask once for the larger one and cut it afterwards")]
    Twice {
        /// The hook's name.
        site: String,
    },
    /// An edit whose values do not fit its window.
    #[error("{site}: the edit gives {given} values; its window takes {row} (one row for all) or {all}")]
    Values {
        /// The hook's name.
        site: String,
        /// Values given.
        given: usize,
        /// Values of one row.
        row: usize,
        /// Values of the whole window.
        all: usize,
    },
    /// A request that changes activations, where only what the model itself does can be compared.
    #[error("a run with edits cannot be checked against the reference; leave the edits or the check out")]
    Edited,
    /// A request that was made for another model.
    #[error("these hooks were made for a model of another shape; make them with this model's `model().hooks()`")]
    OtherModel,
    /// An edit that would never apply.
    #[error("{site}: the edit's window holds nothing, so it would change nothing")]
    Nothing {
        /// The hook's name.
        site: String,
    },
    /// Position lists for another number of texts.
    #[error("positions are given for {given} texts and the run has {texts}")]
    Texts {
        /// Lists given.
        given: usize,
        /// Texts in the batch.
        texts: usize,
    },
    /// More than this machine can hold.
    #[error(
        "the activations asked for take {bytes} bytes, more than this machine can hold at once; write them to a file (--out), or ask for fewer hooks, layers, tokens or texts"
    )]
    Memory {
        /// Bytes asked for.
        bytes: u128,
    },
}

/// What one run is asked to record and to change.
#[derive(Clone, Debug)]
pub struct Hooks {
    config: Config,
    taps: BTreeMap<Site, Select>,
    edits: Vec<(Site, Select, Edit)>,
    /// Staged bytes after which a block boundary begins to read back: see [`crate::hooks::recorder::Recorder::boundary`].
    pub staging_budget: usize,
}

impl Hooks {
    /// An empty request to a model of this shape.
    pub fn new(config: &Config) -> Hooks {
        Hooks { config: config.clone(), taps: BTreeMap::new(), edits: Vec::new(), staging_budget: 64 << 20 }
    }

    /// Records every site that `pattern` names ([`site::resolve`]).
    ///
    /// # Errors
    /// [`SiteError::Unknown`] with near names.
    pub fn tap(&mut self, pattern: &str) -> Result<&mut Hooks, HookError> {
        for site in site::resolve(pattern, self.config.n_layer)? {
            self.tap_at(site, Select::all())?;
        }
        Ok(self)
    }

    /// Records a part of one site.
    ///
    /// # Errors
    /// [`HookError::Window`] for a part it does not have, [`HookError::Twice`] for a second, different part.
    pub fn tap_at(&mut self, site: Site, select: Select) -> Result<&mut Hooks, HookError> {
        self.check(site, &select)?;
        if self.taps.get(&site).is_some_and(|before| *before != select) {
            return Err(HookError::Twice { site: site.name() });
        }
        self.taps.insert(site, select);
        Ok(self)
    }

    /// Narrows every tap to these positions, one list per text.
    pub fn at_positions(&mut self, per_text: &[Vec<usize>]) -> &mut Hooks {
        for select in self.taps.values_mut() {
            select.positions = Some(per_text.to_vec());
        }
        self
    }

    /// Changes a part of one site, before it is recorded and before anything reads it. Edits of one site apply in the
    /// order in which they were given.
    ///
    /// # Errors
    /// [`HookError::Window`] for a part that the site does not have.
    pub fn edit_at(&mut self, site: Site, select: Select, edit: Edit) -> Result<&mut Hooks, HookError> {
        self.check(site, &select)?;
        self.edits.push((site, select, edit));
        Ok(self)
    }

    /// These sites, whole.
    ///
    /// # Panics
    /// For sites that a model of this shape does not have.
    pub(crate) fn whole(config: &Config, sites: &[Site]) -> Hooks {
        let mut hooks = Hooks::new(config);
        for site in sites {
            hooks.tap_at(*site, Select::all()).expect("sites of this model, each once and whole");
        }
        hooks
    }

    /// What is asked of some of the recorded sites, for a run of the first `tokens` of one text alone; `None` where no
    /// position of theirs is asked for.
    ///
    /// # Errors
    /// [`HookError::Edited`]: a prefix of an edited text is not the edited text's prefix.
    pub(crate) fn of_prefix(&self, sites: &[Site], text: usize, tokens: usize) -> Result<Option<Hooks>, HookError> {
        if !self.edits.is_empty() {
            return Err(HookError::Edited);
        }
        let mut part = Hooks::new(&self.config);
        for site in sites {
            let mut select = self.taps.get(site).cloned().unwrap_or_default();
            if let Some(per_text) = &mut select.positions {
                let here: Vec<usize> = per_text[text].iter().copied().filter(|p| *p < tokens).collect();
                if here.is_empty() {
                    return Ok(None);
                }
                *per_text = vec![here];
            }
            part.taps.insert(*site, select);
        }
        Ok(Some(part))
    }

    /// The position that slot `slot` of a text's recorded positions holds.
    pub(crate) fn position(&self, site: Site, text: usize, slot: usize) -> usize {
        let positions = self.taps.get(&site).and_then(|select| select.positions.as_ref());
        positions.map_or(slot, |per_text| per_text[text][slot])
    }

    /// The recorded sites in run order.
    pub fn sites(&self) -> impl Iterator<Item = Site> {
        self.taps.keys().copied()
    }

    /// Shape of the array that `site` will come back as: [batch, ...], as long as the longest text needs.
    pub fn shape(&self, site: Site, batch: &Batch) -> Vec<usize> {
        let select = self.taps.get(&site).unwrap_or(&ALL);
        let longest = select.positions.as_ref().map_or(batch.n_pos(), |p| p.iter().map(Vec::len).max().unwrap_or(0));
        let axes = select.shape(site, &self.config, batch.n_pos(), longest);
        std::iter::once(batch.texts().len()).chain(axes).collect()
    }

    /// Every tapped site with its [`Hooks::shape`], in run order.
    pub fn shapes(&self, batch: &Batch) -> Vec<(Site, Vec<usize>)> {
        self.sites().map(|site| (site, self.shape(site, batch))).collect()
    }

    /// Shape of what one text of a batch contributes to `site`: without a batch axis and without padding.
    pub fn shape_of_text(&self, site: Site, batch: &Batch, text: usize) -> Vec<usize> {
        let (select, n_pos) = (self.taps.get(&site).unwrap_or(&ALL), batch.texts()[text].len());
        select.shape(site, &self.config, n_pos, select.kept(text, n_pos))
    }

    /// The most bytes that one block's taps of one text take, or the taps after the last block.
    pub(crate) fn bytes_at_once(&self, batch: &Batch, text: usize) -> usize {
        let mut of_stage: BTreeMap<Option<usize>, usize> = BTreeMap::new();
        for site in self.sites() {
            let numbers: usize = self.shape_of_text(site, batch, text).iter().product();
            *of_stage.entry(site.layer()).or_default() += size_of::<f32>() * numbers;
        }
        of_stage.into_values().max().unwrap_or(0)
    }

    /// What is recorded of a site.
    pub(crate) fn tapped(&self, site: Site) -> Option<&Select> {
        self.taps.get(&site)
    }

    /// What is changed at a site, in order.
    pub(crate) fn edits(&self, site: Site) -> impl Iterator<Item = (&Select, &Edit)> {
        self.edits.iter().filter(move |(at, ..)| *at == site).map(|(_, select, edit)| (select, edit))
    }

    /// Every site that anything is asked of.
    pub fn touched(&self) -> BTreeSet<Site> {
        self.sites().chain(self.edits.iter().map(|(site, ..)| *site)).collect()
    }

    /// How many blocks a run passes before its last request is met.
    pub fn blocks(&self) -> usize {
        match self.last() {
            Some(Site::Embed | Site::PosEmbed) | None => 0,
            Some(site) => site.layer().map_or(self.config.n_layer, |layer| layer + 1),
        }
    }

    /// The last site anything was asked for.
    pub(crate) fn last(&self) -> Option<Site> {
        self.taps.keys().next_back().copied().max(self.edits.iter().map(|(site, ..)| *site).max())
    }

    fn check(&self, site: Site, select: &Select) -> Result<(), HookError> {
        let fail = |what, asked: &Range<usize>, has: String| {
            Err(HookError::Window { site: site.name(), what, asked: asked.clone(), has })
        };
        if site.layer().is_some_and(|layer| layer >= self.config.n_layer) {
            let layer = site.layer().unwrap_or_default() as i64;
            return Err(SiteError::Layer { layer, n_layer: self.config.n_layer }.into());
        }
        let has_heads = site.axes().contains(&Axis::Head);
        if let Some(heads) = &select.heads {
            if !has_heads {
                return fail("heads", heads, "no head axis".into());
            }
            if heads.is_empty() || heads.end > self.config.n_head {
                return fail("heads", heads, format!("heads 0..{}", self.config.n_head));
            }
        }
        if let Some(columns) = &select.columns {
            let last = site.axes()[site.axes().len() - 1];
            let n = last.len(&self.config, self.config.n_positions);
            if columns.is_empty() || columns.end > n {
                return fail("columns", columns, format!("columns 0..{n}"));
            }
            if has_heads && !site.is_square() && select.heads.as_ref().is_none_or(|heads| heads.len() != 1) {
                return fail("columns", columns, "columns within one head: name that head".into());
            }
        }
        Ok(())
    }

    /// # Errors
    /// [`HookError::OtherModel`] when this request was not made for a model of this shape.
    pub fn check_model(&self, config: &Config) -> Result<(), HookError> {
        if self.config == *config { Ok(()) } else { Err(HookError::OtherModel) }
    }

    /// The checks that need the batch: that every position exists and every edit's values fit.
    ///
    /// # Errors
    /// [`HookError::Texts`], [`HookError::Window`], [`HookError::Nothing`] or [`HookError::Values`].
    pub fn check_batch(&self, batch: &Batch) -> Result<(), HookError> {
        let edits = self.edits.iter().map(|(site, select, _)| (site, select));
        for (site, select) in self.taps.iter().chain(edits) {
            let fail = |what, asked, has: String| Err(HookError::Window { site: site.name(), what, asked, has });
            if let Some(per_text) = &select.positions {
                if per_text.len() != batch.texts().len() {
                    return Err(HookError::Texts { given: per_text.len(), texts: batch.texts().len() });
                }
                for (positions, text) in per_text.iter().zip(batch.texts()) {
                    let ascending = positions.is_sorted_by(|a, b| a < b);
                    if let Some(&p) = positions.iter().find(|&&p| p >= text.len() || !ascending) {
                        return fail(
                            "positions",
                            p..p + 1,
                            format!("positions 0..{}, each once, ascending", text.len()),
                        );
                    }
                }
            }
            if let (true, Some(columns)) = (site.is_square(), &select.columns)
                && batch.texts().iter().any(|text| columns.end > text.len())
            {
                return fail("columns", columns.clone(), "no more keys than its shortest text has tokens".into());
            }
        }
        for (site, select, edit) in &self.edits {
            let windows = self.windows(*site, select, batch, 0..batch.texts().len());
            let all = windows.iter().map(|(_, w)| w.len()).sum();
            // One row can serve all only where all rows are equally long; those of patterns are as long as their text.
            let mut widths = windows.iter().filter(|(_, w)| !w.is_empty()).map(|(_, w)| w.cols.len());
            let row = widths.next().filter(|first| widths.all(|other| other == *first)).unwrap_or(all);
            if all == 0 {
                return Err(HookError::Nothing { site: site.name() });
            }
            let (Edit::Add(values) | Edit::Replace(values)) = edit else { continue };
            if values.len() != row && values.len() != all || values.is_empty() {
                return Err(HookError::Values { site: site.name(), given: values.len(), row, all });
            }
        }
        Ok(())
    }

    /// Where a selection lies in the tensor or tensors that carry `site` when `texts` of the batch are run together: one
    /// window over all of them, or one per text for the sites that are computed text by text (scores, pattern, logits),
    /// with that text's index.
    pub(crate) fn windows(
        &self,
        site: Site,
        select: &Select,
        batch: &Batch,
        texts: Range<usize>,
    ) -> Vec<(Option<usize>, Window)> {
        if !by_text(site) {
            let first = batch.texts().get(texts.start).map_or(0, |text| text.start);
            let rows = texts.flat_map(|i| {
                let text = &batch.texts()[i];
                let start = text.start - first;
                select.ranges(i, text.len()).into_iter().map(move |r| start + r.start..start + r.end)
            });
            return vec![(None, Window { rows: join(rows), cols: self.columns(site, select, 0) })];
        }
        let one = |i: usize| {
            let n_pos = batch.texts()[i].len();
            let within = select.ranges(i, n_pos);
            let heads = if site.is_square() { select.heads.clone().unwrap_or(0..self.config.n_head) } else { 0..1 };
            let rows = heads.flat_map(|head| {
                within.iter().map(|r| head * n_pos + r.start..head * n_pos + r.end).collect::<Vec<_>>()
            });
            (Some(i), Window { rows: join(rows), cols: self.columns(site, select, n_pos) })
        };
        texts.map(one).collect()
    }

    /// The tensor's columns that a selection takes; q, k and v lie side by side in one tensor.
    fn columns(&self, site: Site, select: &Select, n_pos: usize) -> Range<usize> {
        let base = match site {
            Site::K(_) => self.config.n_embd,
            Site::V(_) => 2 * self.config.n_embd,
            _ => 0,
        };
        let width = site.axes()[site.axes().len() - 1].len(&self.config, n_pos);
        let heads = match (site.is_square() || !site.axes().contains(&Axis::Head), &select.heads) {
            (true, _) => 0..1,
            (false, Some(heads)) => heads.clone(),
            (false, None) => 0..self.config.n_head,
        };
        match &select.columns {
            Some(columns) => base + heads.start * width + columns.start..base + heads.start * width + columns.end,
            None => base + heads.start * width..base + heads.end * width,
        }
    }
}

/// Sites whose tensors hold one text each.
fn by_text(site: Site) -> bool {
    site.is_square() || site == Site::Unembed
}

/// Joins ranges that touch.
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
