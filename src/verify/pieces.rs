//! Is a run in pieces the run in one? Texts are run a few positions at a time, keys and values of earlier positions from a cache, and
//! every hook is compared with the same device's run of the whole texts. Owns how texts are cut. What is wrong with the whole
//! run is `hooks.rs`'s to find.

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

/// A hook where the two runs are apart.
#[derive(Clone, Copy, Debug)]
pub struct PieceRow {
    /// Which.
    pub site: Site,
    /// Where they are furthest apart.
    pub worst: TokenError,
    /// The batch that `worst` counts its texts in.
    pub batch: usize,
    /// How far they may be.
    pub allowed: f64,
}

impl PieceRow {
    /// True when the runs are near enough.
    pub fn ok(&self) -> bool {
        self.worst.error <= self.allowed
    }
}

/// The answer.
#[derive(Clone, Debug, Default)]
pub struct InPieces {
    /// Runs of some positions of some texts.
    pub runs: usize,
    /// Every hook, in the order of a run.
    pub rows: Vec<PieceRow>,
}

impl InPieces {
    /// True when nothing is off.
    pub fn ok(&self) -> bool {
        self.rows.iter().all(PieceRow::ok)
    }

    /// The hook that comes nearest to what is allowed, or exceeds it most.
    pub fn worst(&self) -> Option<&PieceRow> {
        let share = |row: &PieceRow| row.worst.error / row.allowed;
        self.rows.iter().reduce(|a, b| if share(b) > share(a) { b } else { a })
    }
}

/// The positions of a text of `n` tokens in each run: a part of it at once, two tokens one by one, three together, then the
/// rest. Texts are cut at different places, and short ones are done before the others.
fn cuts(text: usize, n: usize) -> Vec<Range<usize>> {
    let first = (n / 2 + text % 2).clamp(1, n);
    let mut ends: Vec<usize> = [first, first + 1, first + 2, first + 5, n].into_iter().map(|end| end.min(n)).collect();
    ends.dedup();
    let starts = std::iter::once(0).chain(ends.clone());
    starts.zip(ends).map(|(start, end)| start..end).collect()
}

/// Runs every batch in one and in pieces, with everything tapped and with what splits no kernel. `hooks` is what is allowed of
/// each hook: two runs that are that near to the truth are twice that near to each other.
///
/// # Errors
/// [`RunError`] when the device failed.
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
        let mut sink = Pieces { hooks, pieces: &pieces, read: &[], last: BTreeMap::new(), to: &mut capture };
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
