//! What `extract` prints when no file is asked for: for a few hooks, every token with its norm, range and strongest
//! dimensions; for many, one line each.

use super::Record;
use crate::sites::{Axis as SiteAxis, Site};
use crate::text::Token;
use ndarray::{ArrayViewD, Axis};
use std::io::Write;

/// Up to this many hooks are shown token by token.
const IN_DETAIL: usize = 4;

/// Writes the summary.
///
/// # Errors
/// Those of `out`.
pub fn write(record: &Record<'_>, out: &mut impl Write) -> std::io::Result<()> {
    if record.capture.iter().count() <= IN_DETAIL {
        return record.capture.iter().try_for_each(|(site, array)| token_by_token(record, site, array.view(), out));
    }
    let names = record.capture.iter().map(|(site, _)| site.name().len()).max().unwrap_or(0);
    writeln!(out, "{:names$}  {:<20} {:>10} {:>11} {:>11}", "hook", "shape", "norm/token", "min", "max")?;
    for (site, array) in record.capture.iter() {
        let of_tokens: Vec<Stats> =
            tokens_of(record, site, array.view()).map(|(_, _, values)| stats(&values)).collect();
        let mean = of_tokens.iter().map(|s| s.norm).sum::<f32>() / of_tokens.len().max(1) as f32;
        let min = of_tokens.iter().fold(f32::INFINITY, |least, s| least.min(s.min));
        let max = of_tokens.iter().fold(f32::NEG_INFINITY, |most, s| most.max(s.max));
        writeln!(out, "{:names$}  {:<20} {mean:>10.4} {min:>11.4} {max:>11.4}", site.name(), shape(array.shape()))?;
    }
    Ok(())
}

fn token_by_token(
    record: &Record<'_>,
    site: Site,
    array: ArrayViewD<'_, f32>,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let quoted = |token: &Token| format!("\"{}\"", token.label());
    let labels: Vec<String> = record.tokens.iter().flatten().map(quoted).collect();
    let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0).clamp(5, 24);
    writeln!(out, "{}  {}", site.name(), shape(array.shape()))?;
    writeln!(
        out,
        "{:>4} {:>4}  {:width$} {:>10} {:>11} {:>11}  strongest",
        "text", "pos", "token", "norm", "min", "max"
    )?;
    for (text, position, values) in tokens_of(record, site, array) {
        let Stats { norm, min, max } = stats(&values);
        let label = quoted(&record.tokens[text][position]);
        let strongest = strongest(site, &values).join("  ");
        writeln!(out, "{text:>4} {position:>4}  {label:width$} {norm:>10.4} {min:>11.4} {max:>11.4}  {strongest}")?;
    }
    writeln!(out)
}

/// Every kept token with the values that a hook holds there, padding left out.
fn tokens_of<'a>(
    record: &'a Record<'_>,
    site: Site,
    array: ArrayViewD<'a, f32>,
) -> impl Iterator<Item = (usize, usize, ArrayViewD<'a, f32>)> {
    let pos_axis = 1 + site.axes().iter().position(|a| *a == SiteAxis::Pos).unwrap_or(0);
    (0..record.tokens.len()).flat_map(move |text| {
        let n_pos = record.tokens[text].len();
        let positions = record.positions.map_or((0..n_pos).collect(), |per_text| per_text[text].clone());
        let of_text = array.clone().index_axis_move(Axis(0), text);
        positions.into_iter().enumerate().map(move |(slot, position)| {
            let mut values = of_text.clone().index_axis_move(Axis(pos_axis - 1), slot);
            if site.is_square() {
                values.slice_axis_inplace(Axis(1), ndarray::Slice::from(..n_pos));
            }
            (text, position, values)
        })
    })
}

struct Stats {
    norm: f32,
    min: f32,
    max: f32,
}

/// Over finite values: masked scores are not part of any range.
fn stats(values: &ArrayViewD<'_, f32>) -> Stats {
    let finite = || values.iter().copied().filter(|v| *v != f32::NEG_INFINITY);
    Stats {
        norm: finite().map(|v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt() as f32,
        min: finite().fold(f32::INFINITY, f32::min),
        max: finite().fold(f32::NEG_INFINITY, f32::max),
    }
}

/// The three values furthest from zero, by index: `[42]`, `[head, key]`.
fn strongest(site: Site, values: &ArrayViewD<'_, f32>) -> Vec<String> {
    let mut indexed: Vec<(Vec<usize>, f32)> = values
        .indexed_iter()
        .filter(|(_, v)| v.is_finite())
        .map(|(i, v)| (ndarray::Dimension::slice(&i).to_vec(), *v))
        .collect();
    indexed.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    let name = |index: &[usize]| match (site.is_square(), index) {
        (true, [head, key]) => format!("head {head} -> {key}:"),
        (_, [head, dim]) => format!("head {head} [{dim}]"),
        (_, [dim]) => format!("[{dim}]"),
        _ => String::new(),
    };
    indexed.iter().take(3).map(|(index, v)| format!("{} {v:+.3}", name(index))).collect()
}

fn shape(shape: &[usize]) -> String {
    format!("[{}]", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
}
