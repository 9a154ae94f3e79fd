//! The summary that `extract` prints without an output file. For a few hooks: every token with its norm, range and
//! dimensions of largest magnitude (for logits, the most likely tokens). For many hooks: one line each. Read next:
//! `rows.rs`.

use super::Record;
use super::rows::RowSink;
use crate::hooks::capture::{ArrayKey, ArraySink, Sink};
use crate::hooks::site::{Axis as SiteAxis, Site};
use crate::model::tokenizer::Token;
use ndarray::{ArrayViewD, Axis};
use std::collections::BTreeMap;
use std::io::Write;

/// Up to this many hooks are shown token by token.
const IN_DETAIL: usize = 4;

/// The number of values listed per token.
const STRONGEST: usize = 3;

/// The summary, computed from the values as they arrive; they are not stored.
pub struct Summary<'a> {
    record: &'a Record<'a>,
    /// The token of an id, for logits.
    token: &'a dyn Fn(u32) -> Token,
    hooks: BTreeMap<ArrayKey, Hook>,
    in_detail: bool,
}

impl std::fmt::Debug for Summary<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Summary").field("record", &self.record).finish_non_exhaustive()
    }
}

struct Hook {
    shape: Vec<usize>,
    rows: Vec<Row>,
}

/// One token.
struct Row {
    text: usize,
    slot: usize,
    stats: Stats,
}

impl<'a> Summary<'a> {
    /// A summary for a run that records arrays of these shapes. `token` returns the token of an id.
    pub fn new(
        record: &'a Record<'a>,
        token: &'a dyn Fn(u32) -> Token,
        shapes: Vec<(impl Into<ArrayKey>, Vec<usize>)>,
    ) -> Summary<'a> {
        let in_detail = shapes.len() <= IN_DETAIL;
        let hooks =
            shapes.into_iter().map(|(array, shape): (_, _)| (array.into(), Hook { shape, rows: Vec::new() })).collect();
        Summary { record, token, hooks, in_detail }
    }

    /// Prints the summary.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        if self.in_detail {
            return self.hooks.iter().try_for_each(|(array, hook)| self.token_by_token(*array, hook, out));
        }
        let names = self.hooks.keys().map(|array| array.name().len()).max().unwrap_or(0);
        writeln!(out, "{:names$}  {:<20} {:>10} {:>11} {:>11}", "hook", "shape", "norm/token", "min", "max")?;
        for (array, Hook { shape, rows }) in &self.hooks {
            let of_tokens = || rows.iter().map(|row| &row.stats);
            let mean = of_tokens().map(|s| s.norm).sum::<f32>() / rows.len().max(1) as f32;
            let min = of_tokens().fold(f32::INFINITY, |least, s| least.min(s.min));
            let max = of_tokens().fold(f32::NEG_INFINITY, |most, s| most.max(s.max));
            writeln!(out, "{:names$}  {:<20} {mean:>10.4} {min:>11.4} {max:>11.4}", array.name(), shown(shape))?;
        }
        Ok(())
    }

    fn token_by_token(
        &self,
        array: ArrayKey,
        Hook { shape, rows }: &Hook,
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        let label = |row: &Row| format!("\"{}\"", self.record.row_label(row.text, row.slot));
        let width = rows.iter().map(|row| label(row).chars().count()).max().unwrap_or(0).clamp(5, 24);
        let column = if matches!(self.record.rows, super::Rows::Words(..)) { "word" } else { "token" };
        let last = if is_ranked(array) { "likeliest" } else { "strongest" };
        writeln!(out, "{}  {}", array.name(), shown(shape))?;
        writeln!(
            out,
            "{:>4} {:>4}  {column:width$} {:>10} {:>11} {:>11}  {last}",
            "text", "pos", "norm", "min", "max"
        )?;
        for row in rows {
            let Row { text, slot, stats: Stats { norm, min, max, strongest } } = row;
            let (position, label) = (self.record.row(*text, *slot).position, label(row));
            let strongest: Vec<String> = strongest.iter().map(|named| self.named(array.site, shape, *named)).collect();
            let strongest = strongest.join("  ");
            writeln!(out, "{text:>4} {position:>4}  {label:width$} {norm:>10.4} {min:>11.4} {max:>11.4}  {strongest}")?;
        }
        writeln!(out)
    }

    /// One value with its index within the token: `[42]`, `head 1 [7]`, `head 1 -> 3`, or the token of a logit.
    fn named(&self, site: Site, shape: &[usize], (place, value): (usize, f32)) -> String {
        let last = shape[shape.len() - 1].max(1);
        let (head, dim) = (place / last, place % last);
        match site {
            Site::Unembed => format!("\"{}\" {value:+.3}", (self.token)(dim as u32).label()),
            _ if site.is_square() => format!("head {head} -> {dim}: {value:+.3}"),
            _ if site.axes().contains(&SiteAxis::Head) => format!("head {head} [{dim}] {value:+.3}"),
            _ => format!("[{dim}] {value:+.3}"),
        }
    }
}

/// Of logits, the largest values are named; of everything else those of largest magnitude.
fn is_ranked(array: ArrayKey) -> bool {
    array == Site::Unembed.into()
}

impl Summary<'_> {
    fn add(&mut self, array: ArrayKey, text: usize, first: usize, values: &ArrayViewD<'_, f32>) {
        let Some(Hook { shape, rows }) = self.hooks.get_mut(&array) else { return };
        // Indices are those of the whole array: a shorter text has fewer keys.
        let (last, width) = (values.shape()[values.ndim() - 1], shape[shape.len() - 1]);
        for (slot, of_token) in (first..).zip(values.axis_iter(Axis(array.site.pos_axis()))) {
            let mut stats = Stats::of(&of_token, if self.in_detail { STRONGEST } else { 0 }, !is_ranked(array));
            stats.strongest.iter_mut().for_each(|(place, _)| *place = *place / last * width + *place % last);
            rows.push(Row { text, slot, stats });
        }
    }
}

impl ArraySink for Summary<'_> {
    fn put_array(&mut self, array: ArrayKey, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.add(array, text, 0, &values);
        Ok(())
    }
}

impl Sink for Summary<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.put_array(site.into(), text, values)
    }
}

impl RowSink for Summary<'_> {
    fn put_rows(&mut self, site: Site, text: usize, first: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.add(site.into(), text, first, &values);
        Ok(())
    }
}

/// The summary of one token's values.
struct Stats {
    norm: f32,
    min: f32,
    max: f32,
    /// Indices in row-major order, with their values.
    strongest: Vec<(usize, f32)>,
}

impl Stats {
    /// Computes it in one pass over the values that are not masked (-inf). The `n` listed values are those of largest
    /// magnitude, or without `magnitude` the largest.
    fn of(values: &ArrayViewD<'_, f32>, n: usize, magnitude: bool) -> Stats {
        let (mut squares, mut min, mut max) = (0.0f64, f32::INFINITY, f32::NEG_INFINITY);
        let size = |v: f32| if magnitude { v.abs() } else { v };
        let mut strongest: Vec<(usize, f32)> = Vec::with_capacity(n + 1);
        let mut least = f32::NEG_INFINITY;
        for (place, &v) in values.iter().enumerate() {
            if v == f32::NEG_INFINITY {
                continue;
            }
            squares += f64::from(v) * f64::from(v);
            (min, max) = (min.min(v), max.max(v));
            if n > 0 && v.is_finite() && (strongest.len() < n || size(v) > least) {
                strongest.insert(strongest.partition_point(|(_, other)| size(*other) >= size(v)), (place, v));
                strongest.truncate(n);
                least = strongest.last().map_or(least, |(_, v)| size(*v));
            }
        }
        Stats { norm: squares.sqrt() as f32, min, max, strongest }
    }
}

fn shown(shape: &[usize]) -> String {
    format!("[{}]", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::ArrayD;

    #[test]
    fn one_pass() {
        let values =
            ArrayD::from_shape_vec(vec![7], vec![1.0, -5.0, 3.0, f32::NEG_INFINITY, 5.0, f32::NAN, 4.0]).unwrap();
        let by_size = Stats::of(&values.view(), 3, true);
        assert_eq!(by_size.strongest, [(1, -5.0), (4, 5.0), (6, 4.0)]);
        assert_eq!((by_size.min, by_size.max), (-5.0, 5.0));
        assert_eq!(Stats::of(&values.view(), 3, false).strongest, [(4, 5.0), (6, 4.0), (2, 3.0)]);
        assert!(by_size.norm.is_nan());
    }
}
