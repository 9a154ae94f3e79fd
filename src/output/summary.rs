//! What `extract` prints when no file is asked for: for a few hooks, every token with its norm, range and strongest
//! dimensions; for many, one line each.

use super::Record;
use crate::hooks::capture::Sink;
use crate::hooks::site::{Axis as SiteAxis, Site};
use crate::model::tokenizer::Token;
use ndarray::{ArrayViewD, Axis};
use std::collections::BTreeMap;
use std::io::Write;

/// Up to this many hooks are shown token by token.
const IN_DETAIL: usize = 4;

/// What is said of every token, taken from the values as they come: they are not kept.
pub struct Summary<'a> {
    record: &'a Record<'a>,
    hooks: BTreeMap<Site, Hook>,
    in_detail: bool,
}

struct Hook {
    shape: Vec<usize>,
    rows: Vec<Row>,
}

/// One token.
struct Row {
    text: usize,
    position: usize,
    stats: Stats,
    strongest: Vec<String>,
}

impl<'a> Summary<'a> {
    /// For a run that records arrays of these shapes.
    pub fn new(record: &'a Record<'a>, shapes: Vec<(Site, Vec<usize>)>) -> Summary<'a> {
        let in_detail = shapes.len() <= IN_DETAIL;
        let hooks = shapes.into_iter().map(|(site, shape)| (site, Hook { shape, rows: Vec::new() })).collect();
        Summary { record, hooks, in_detail }
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        if self.in_detail {
            return self.hooks.iter().try_for_each(|(site, hook)| self.token_by_token(*site, hook, out));
        }
        let names = self.hooks.keys().map(|site| site.name().len()).max().unwrap_or(0);
        writeln!(out, "{:names$}  {:<20} {:>10} {:>11} {:>11}", "hook", "shape", "norm/token", "min", "max")?;
        for (site, Hook { shape, rows }) in &self.hooks {
            let of_tokens = || rows.iter().map(|row| &row.stats);
            let mean = of_tokens().map(|s| s.norm).sum::<f32>() / rows.len().max(1) as f32;
            let min = of_tokens().fold(f32::INFINITY, |least, s| least.min(s.min));
            let max = of_tokens().fold(f32::NEG_INFINITY, |most, s| most.max(s.max));
            writeln!(out, "{:names$}  {:<20} {mean:>10.4} {min:>11.4} {max:>11.4}", site.name(), shown(shape))?;
        }
        Ok(())
    }

    fn token_by_token(&self, site: Site, Hook { shape, rows }: &Hook, out: &mut impl Write) -> std::io::Result<()> {
        let quoted = |token: &Token| format!("\"{}\"", token.label());
        let tokens = self.record.tokens;
        let width = tokens.iter().flatten().map(|token| quoted(token).chars().count()).max().unwrap_or(0).clamp(5, 24);
        writeln!(out, "{}  {}", site.name(), shown(shape))?;
        writeln!(
            out,
            "{:>4} {:>4}  {:width$} {:>10} {:>11} {:>11}  strongest",
            "text", "pos", "token", "norm", "min", "max"
        )?;
        for Row { text, position, stats: Stats { norm, min, max }, strongest } in rows {
            let label = quoted(&tokens[*text][*position]);
            let strongest = strongest.join("  ");
            writeln!(out, "{text:>4} {position:>4}  {label:width$} {norm:>10.4} {min:>11.4} {max:>11.4}  {strongest}")?;
        }
        writeln!(out)
    }
}

impl Sink for Summary<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        let Some(hook) = self.hooks.get_mut(&site) else { return Ok(()) };
        let pos_axis = site.axes().iter().position(|a| *a == SiteAxis::Pos).unwrap_or(0);
        for (position, of_token) in self.record.kept(text).into_iter().zip(values.axis_iter(Axis(pos_axis))) {
            let strongest = if self.in_detail { strongest(site, &of_token) } else { Vec::new() };
            hook.rows.push(Row { text, position, stats: stats(&of_token), strongest });
        }
        Ok(())
    }
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

fn shown(shape: &[usize]) -> String {
    format!("[{}]", shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
}
