//! A run's values as rows of a table: one per hook, text, token (or word) and, if the hook has heads, head. Padding is
//! left out. All table formats share this order. Read next: `csv.rs`.

use super::store::{Store, bytes_of};
use super::{Record, RowLabel};
use crate::hooks::capture::Arrays;
use crate::hooks::site::{Axis as SiteAxis, Site};
use ndarray::{ArrayViewD, Axis, Slice};

/// One row.
pub(super) struct Row<'a> {
    pub(super) hook: &'a str,
    pub(super) text: usize,
    pub(super) label: &'a RowLabel,
    pub(super) head: Option<usize>,
    /// The values of the last axis; for scores and patterns, as many as the text has tokens.
    pub(super) values: ArrayViewD<'a, f32>,
}

/// Bytes of values in memory at once, for hooks whose rows are contiguous.
const AT_ONCE: u64 = 64 << 20;

/// Calls `take` with every row.
pub(super) fn each_row(
    record: &Record<'_>,
    store: &Store,
    mut take: impl FnMut(Row<'_>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    for (array, shape) in store.shapes() {
        let (hook, site) = (array.name(), array.site);
        for text in 0..record.tokens.len() {
            let n = record.n_rows(text);
            // Scores and patterns are stored head by head, so all of a text's values are read at once.
            let step = if site.is_square() { n } else { (AT_ONCE / bytes_of(&shape[2..]).max(1)).max(1) as usize };
            for first in (0..n).step_by(step.max(1)) {
                let rows = first..n.min(first + step);
                let values = if site.is_square() {
                    store.of_text(array, text)?.into_owned()
                } else {
                    store.rows(array, text, rows.clone())?
                };
                for slot in rows.clone() {
                    let label = record.row(text, slot);
                    let of_token = values.index_axis(Axis(site.pos_axis()), slot - first);
                    for (head, values) in by_head(site, of_token) {
                        let seen = if site.is_square() { record.tokens[text].len() } else { values.len() };
                        let values = values.slice_axis(Axis(0), Slice::from(..seen));
                        take(Row { hook: &hook, text, label: &label, head, values })?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Without the position axis, a head axis is the first axis.
fn by_head(site: Site, of_token: ArrayViewD<'_, f32>) -> Vec<(Option<usize>, ArrayViewD<'_, f32>)> {
    if site.axes().contains(&SiteAxis::Head) {
        let n = of_token.len_of(Axis(0));
        (0..n).map(|head| (Some(head), of_token.clone().index_axis_move(Axis(0), head))).collect()
    } else {
        vec![(None, of_token)]
    }
}
