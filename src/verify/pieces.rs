//! Compares runs in pieces with whole runs of the same device. A run in pieces computes a few positions of a text at a
//! time and reads the keys and values of earlier positions from a cache. Owns how texts are split. Faults of the whole
//! run are found by `hooks.rs`; read it next.

use super::hooks::{HookRow, ROUNDING, both_ways, run};
use super::measure::{self, TokenError};
use super::{Stage, Tell};
use crate::batch::Batch;
use crate::device::Device;
use crate::hooks::capture::Capture;
use crate::hooks::layout::Layout;
use crate::hooks::request::Hooks;
use crate::hooks::site::Site;
use crate::hooks::step::{Piece, Pieces, mask_later_keys};
use crate::model::forward::{self, KvCache, Run, RunError};
use crate::model::params::Params;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The comparison of one hook in the two runs.
#[derive(Clone, Copy, Debug)]
pub struct PieceRow {
    /// The hook.
    pub site: Site,
    /// The largest difference.
    pub worst: TokenError,
    /// The batch that `worst` counts its texts in.
    pub batch: usize,
    /// The largest allowed error.
    pub allowed: f64,
}

impl PieceRow {
    /// True when the error is within the bound.
    pub fn ok(&self) -> bool {
        self.worst.error <= self.allowed
    }
}

/// The result of the comparison.
#[derive(Clone, Debug, Default)]
pub struct InPieces {
    /// The number of runs of pieces.
    pub runs: usize,
    /// One row per hook, in run order.
    pub rows: Vec<PieceRow>,
}

impl InPieces {
    /// True when all hooks are within their bounds.
    pub fn ok(&self) -> bool {
        self.rows.iter().all(PieceRow::ok)
    }

    /// The hook with the largest error relative to its bound.
    pub fn worst(&self) -> Option<&PieceRow> {
        let share = |row: &PieceRow| row.worst.error / row.allowed;
        self.rows.iter().reduce(|a, b| if share(b) > share(a) { b } else { a })
    }
}

/// The positions of a text of `n` tokens in each run: first a part of the text, then two single tokens, three tokens,
/// and the rest. Texts are split at different positions, and short ones end before the others.
fn cuts(text: usize, n: usize) -> Vec<Range<usize>> {
    let first = (n / 2 + text % 2).clamp(1, n);
    let mut ends: Vec<usize> = [first, first + 1, first + 2, first + 5, n].into_iter().map(|end| end.min(n)).collect();
    ends.dedup();
    let starts = std::iter::once(0).chain(ends.clone());
    starts.zip(ends).map(|(start, end)| start..end).collect()
}

/// Runs every batch whole and in pieces, with all hooks tapped and with those that split no fused kernel. `hooks` has
/// the bound of each hook. Two runs within that bound of the expected values differ by at most twice the bound.
///
/// # Errors
/// [`RunError`] when the device fails.
pub async fn check<D: Device>(
    dev: &D,
    params: &Params<D>,
    batches: &[Batch],
    hooks: &[HookRow],
    tell: Tell<'_>,
) -> Result<InPieces, RunError> {
    let mut answer = InPieces::default();
    for (n, batch) in batches.iter().enumerate() {
        for (way, request) in both_ways(params.config()).iter().enumerate() {
            tell(Stage::Pieces, 2 * n + way, 2 * batches.len());
            let whole = run(dev, params, batch, request).await?;
            let (pieces, runs) = run_in_pieces(dev, params, batch, request).await?;
            answer.runs += runs;
            for (site, expected) in whole.iter() {
                let Some(got) = pieces.get(site) else { continue };
                let worst = measure::tokens(site, got, expected.view());
                match answer.rows.iter_mut().find(|row| row.site == site) {
                    Some(row) if worst.error > row.worst.error => (row.worst, row.batch) = (worst, n),
                    Some(_) => {}
                    None => {
                        let allowed = hooks.iter().find(|row| row.site == site).map_or(ROUNDING, |row| row.allowed);
                        answer.rows.push(PieceRow { site, worst, batch: n, allowed: 2.0 * allowed });
                    }
                }
            }
        }
    }
    tell(Stage::Pieces, 2 * batches.len(), 2 * batches.len());
    Ok(answer)
}

async fn run_in_pieces<D: Device>(
    dev: &D,
    params: &Params<D>,
    batch: &Batch,
    hooks: &Hooks,
) -> Result<(Capture, usize), RunError> {
    let config = params.config();
    let lengths: Vec<usize> = batch.texts().iter().map(|text| text.len()).collect();
    let cuts: Vec<Vec<Range<usize>>> = lengths.iter().enumerate().map(|(text, n)| cuts(text, *n)).collect();
    let whole = Layout::new(hooks, batch)?;
    let mut capture = Capture::unchecked(hooks, batch, Arc::downgrade(dev.host_memory()))?;
    let mut cache = KvCache::new(dev, config, &lengths);
    let runs = cuts.iter().map(Vec::len).max().unwrap_or(0);
    for step in 0..runs {
        let of_text = |(text, cuts): (usize, &Vec<Range<usize>>)| {
            cuts.get(step).map(|positions| Piece { text, positions: positions.clone(), is_read: false })
        };
        let pieces: Vec<Piece> = cuts.iter().enumerate().filter_map(of_text).collect();
        let ids: Vec<&[u32]> = pieces.iter().map(|piece| &batch.ids_of(piece.text)[piece.positions.clone()]).collect();
        let first: Vec<usize> = pieces.iter().map(|piece| piece.positions.start).collect();
        let part = Batch::continued(&ids, &first, config).expect("a part of a checked batch");
        let request = whole.of_pieces(&pieces, &[]);
        let layout = Layout::new(&request, &part)?;
        let in_cache: Vec<usize> = pieces.iter().map(|piece| piece.text).collect();
        let mut sink = Pieces {
            hooks,
            pieces: &pieces,
            read: &[],
            last: BTreeMap::new(),
            argmax: BTreeMap::new(),
            to: &mut capture,
        };
        let all = 0..pieces.len();
        let run = Run { cache: Some(&mut cache), texts_in_cache: Some(&in_cache), ..Run::new(&layout, all) };
        forward::forward(dev, params, run, &mut sink, None).await?;
    }
    for (text, length) in lengths.iter().enumerate() {
        mask_later_keys(hooks, text, *length, &mut capture).map_err(RunError::Sink)?;
    }
    Ok((capture, runs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_is_run_once() {
        for n in 1..40 {
            for text in 0..2 {
                let all: Vec<usize> = cuts(text, n).into_iter().flatten().collect();
                assert_eq!(all, (0..n).collect::<Vec<_>>(), "{n} tokens");
            }
        }
        assert_eq!(cuts(1, 20), [0..11, 11..12, 12..13, 13..16, 16..20]);
    }
}
