//! Requests for texts that grow. A run extends some of the texts by a few positions (a piece of each). This file
//! restricts selections and edit values to the pieces of one run, so that all runs together meet the whole request, and
//! owns the sink that writes each piece's values to their place. Read next: `../analysis/generate.rs`, which makes the
//! runs.

use super::capture::{Sink, StepSink};
use super::layout::Layout;
use super::request::{Edit, Hooks, Select};
use super::site::{Axis, Site};
use crate::batch::Batch;
use ndarray::{ArrayD, ArrayViewD, Axis as ArrayAxis, Slice};
use std::collections::BTreeMap;
use std::ops::Range;

/// Some positions of one text.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    /// Which text of the whole request.
    pub text: usize,
    /// Its positions.
    pub positions: Range<usize>,
    /// Whether the caller needs the values of the last position, at the sites that it reads itself.
    pub is_read: bool,
}

/// The indices into a list (or into `0..n` without a list) whose values lie within `range`.
fn places(list: Option<&Vec<usize>>, range: &Range<usize>) -> Range<usize> {
    match list {
        Some(list) => list.partition_point(|i| *i < range.start)..list.partition_point(|i| *i < range.end),
        None => range.clone(),
    }
}

impl Select {
    /// The indices of a piece's positions among its text's selected positions.
    fn rows_of(&self, piece: &Piece) -> Range<usize> {
        places(self.positions.as_ref().map(|per_text| &per_text[piece.text]), &piece.positions)
    }

    /// The number of selected keys within a piece.
    fn n_keys(&self, piece: &Piece) -> usize {
        places(self.keys.as_ref().map(|per_text| &per_text[piece.text]), &(0..piece.positions.end)).len()
    }

    /// The selection for a run of some pieces. Positions count from each piece's first.
    fn of_pieces(&self, pieces: &[Piece]) -> Select {
        let positions = self.positions.as_ref().map(|per_text| {
            let of = |piece: &Piece| {
                let list = &per_text[piece.text][self.rows_of(piece)];
                list.iter().map(|position| position - piece.positions.start).collect()
            };
            pieces.iter().map(of).collect()
        });
        let keys = self
            .keys
            .as_ref()
            .map(|per_text| pieces.iter().map(|piece| per_text[piece.text][..self.n_keys(piece)].to_vec()).collect());
        Select { positions, heads: self.heads.clone(), dims: self.dims.clone(), keys }
    }

    /// True when a piece contains a part of the selection.
    fn is_in(&self, piece: &Piece) -> bool {
        !self.rows_of(piece).is_empty() && self.n_keys(piece) > 0
    }
}

impl Hooks {
    /// True when anything is recorded at these positions of a text.
    pub(crate) fn records(&self, text: usize, positions: Range<usize>) -> bool {
        let piece = Piece { text, positions, is_read: false };
        self.taps.values().any(|select| select.is_in(&piece))
    }
}

impl Hooks {
    /// Adds the edits of a request for prompts to a request for the same prompts followed by new tokens. An edit of all
    /// positions of a prompt does not extend to the new tokens.
    pub(crate) fn edit_prompts(&mut self, prompts: &Batch, of_prompts: Hooks) {
        let all = || prompts.texts().iter().map(|text| (0..text.len()).collect()).collect::<Vec<Vec<usize>>>();
        for (site, mut select, edit) in of_prompts.edits {
            select.positions.get_or_insert_with(all);
            if site.is_square() {
                select.keys.get_or_insert_with(all);
            }
            self.edits.push((site, select, edit));
        }
    }
}

impl Layout<'_> {
    /// The edits for a run of the first `tokens` tokens of one text alone.
    pub(crate) fn edits_of_prefix(&self, text: usize, tokens: usize) -> Vec<(Site, Select, Edit)> {
        self.of_pieces(&[Piece { text, positions: 0..tokens, is_read: false }], &[]).edits
    }

    /// The request for a run of some pieces. The caller needs all values of the sites `read` at the last position of
    /// each piece with `is_read`.
    pub(crate) fn of_pieces(&self, pieces: &[Piece], read: &[Site]) -> Hooks {
        let whole = self.hooks();
        let mut hooks = Hooks::new(&whole.config);
        hooks.staging_budget = whole.staging_budget;
        for (site, select) in &whole.taps {
            if !read.contains(site) && pieces.iter().any(|piece| select.is_in(piece)) {
                hooks.taps.insert(*site, select.of_pieces(pieces));
            }
        }
        for site in read {
            let asked = whole.taps.get(site);
            let rows = |piece: &Piece| -> Vec<usize> {
                let last = piece.positions.len() - 1;
                let mut rows: Vec<usize> = match asked {
                    None => Vec::new(),
                    Some(Select { positions: None, .. }) => (0..=last).collect(),
                    Some(select) => {
                        select.of_pieces(std::slice::from_ref(piece)).positions.unwrap_or_default().concat()
                    }
                };
                if piece.is_read && rows.last() != Some(&last) {
                    rows.push(last);
                }
                rows
            };
            let rows: Vec<Vec<usize>> = pieces.iter().map(rows).collect();
            if rows.iter().any(|rows| !rows.is_empty()) {
                hooks.taps.insert(*site, Select::all().positions(rows));
            }
        }
        for (n, (site, select, edit)) in whole.edits.iter().enumerate() {
            if pieces.iter().any(|piece| select.is_in(piece)) {
                let edit = self.edit_of_pieces(n, *site, select, edit, pieces);
                hooks.edits.push((*site, select.of_pieces(pieces), edit));
            }
        }
        hooks
    }

    /// An edit with the values that belong to some pieces.
    fn edit_of_pieces(&self, n: usize, site: Site, select: &Select, edit: &Edit, pieces: &[Piece]) -> Edit {
        let Some(values) = edit.values() else { return edit.clone() };
        let mut cut = Vec::new();
        for piece in pieces {
            let shape = self.shape_of_selection(site, select, piece.text);
            let rows = select.rows_of(piece);
            // A row of values belongs to one position, or to one head and query. Where the rows begin, and their width:
            let (heads, n_rows, width) = match shape.as_slice() {
                [heads, queries, keys] if site.is_square() => (*heads, *queries, *keys),
                [positions, rest @ ..] => (1, *positions, rest.iter().product()),
                [] => (1, 1, 1),
            };
            let one_for_all = values.len() == 1;
            let one_row = values.len() == width && self.n_values(n) != width;
            if one_for_all || one_row && !site.is_square() {
                return edit.clone();
            }
            let kept = if site.is_square() { select.n_keys(piece) } else { width };
            for head in 0..heads {
                for row in rows.clone() {
                    let from =
                        if one_row { 0 } else { self.values_before(n, piece.text) + (head * n_rows + row) * width };
                    cut.extend_from_slice(&values[from..from + kept]);
                }
            }
        }
        match edit {
            Edit::Replace(_) => Edit::Replace(cut),
            _ => Edit::Add(cut),
        }
    }
}

/// Passes the values that a run of some pieces records to the sink of the whole request.
pub(crate) struct Pieces<'a> {
    /// The whole request.
    pub hooks: &'a Hooks,
    /// The texts of the run.
    pub pieces: &'a [Piece],
    /// Sites that the caller reads itself.
    pub read: &'a [Site],
    /// The values of `read` at the last position of the pieces with `is_read`, by site and by piece.
    pub last: BTreeMap<(Site, usize), Vec<f32>>,
    /// What a choice of the likeliest token needs, by piece.
    pub argmax: BTreeMap<usize, Vec<f32>>,
    /// The sink for the recorded values.
    pub to: &'a mut dyn StepSink,
}

impl Sink for Pieces<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        let piece = &self.pieces[text];
        if self.read.contains(&site) && piece.is_read {
            let rows = values.len_of(ArrayAxis(0));
            let last = values.index_axis(ArrayAxis(0), rows - 1).iter().copied().collect();
            self.last.insert((site, text), last);
        }
        let Some(select) = self.hooks.tapped(site) else { return Ok(()) };
        let rows = select.rows_of(piece);
        if rows.is_empty() {
            return Ok(());
        }
        if !self.read.contains(&site) {
            return self.to.put_rows(site, piece.text, rows.start, values);
        }
        // It was recorded whole, and maybe at a position more.
        let asked = values.slice_axis(ArrayAxis(0), Slice::from(..rows.len()));
        match &select.dims {
            Some(dims) => {
                let asked = asked.select(ArrayAxis(asked.ndim() - 1), dims);
                self.to.put_rows(site, piece.text, rows.start, asked.view())
            }
            None => self.to.put_rows(site, piece.text, rows.start, asked),
        }
    }

    fn give(&mut self, site: Site, text: usize, values: ArrayD<f32>) -> std::io::Result<Option<ArrayD<f32>>> {
        self.put(site, text, values.view())?;
        Ok(Some(values))
    }

    fn argmax(&mut self, text: usize, of_chunks: &[f32]) {
        self.argmax.insert(text, of_chunks.to_vec());
    }
}

/// Masks the scores of a text that ended with `length` tokens: when a query ran, the keys after it did not exist yet.
///
/// # Errors
/// Those of the sink.
pub(crate) fn mask_later_keys(hooks: &Hooks, text: usize, length: usize, to: &mut dyn StepSink) -> std::io::Result<()> {
    for (site, select) in hooks.taps.iter().filter(|(site, _)| matches!(site, Site::AttnScores(_))) {
        debug_assert_eq!(site.axes()[2], Axis::Key);
        let all = Piece { text, positions: 0..length, is_read: false };
        let keys = select.keys.as_ref().map(|per_text| &per_text[text]);
        for row in select.rows_of(&all) {
            let query = select.positions.as_ref().map_or(row, |per_text| per_text[text][row]);
            let later = places(keys, &(query + 1..length));
            if !later.is_empty() {
                to.fill_keys(*site, text, row, later, f32::NEG_INFINITY)?;
            }
        }
    }
    Ok(())
}
