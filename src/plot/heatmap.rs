//! A heat map of one hook: one row per token, one column per dimension, colours from blue (negative) over white to red
//! (positive). Several layers are small multiples. Owns the choice of dimensions; draws hooks of shape [P, n].
//! Read next: `scene.rs`.

use super::colour::{Rgb, Scale};
use super::scene::{Anchor, BAR_ROOM, Scene, TEXT};
use super::terminal::{self, Terminal};
use super::{
    BLACK, HEADING, Heading, Picture, Shows, draw_heading, every, font, label, print_heading, shared, strongest,
};
use crate::analysis::top::largest;
use crate::model::tokenizer::Token;
use ndarray::{Array2, ArrayView2, Axis};
use std::io::Write;
use std::str::FromStr;

/// Which dimensions to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dims {
    /// Every one.
    All,
    /// This many, evenly spaced from the first to the last.
    Sampled(usize),
    /// A list, in its order.
    List(Vec<usize>),
    /// `a..b` without `b`; either end may be left out.
    Span(Option<usize>, Option<usize>),
    /// This many with the largest magnitudes over all shown tokens and panels, largest first.
    Top(usize),
}

impl FromStr for Dims {
    type Err = String;

    fn from_str(written: &str) -> Result<Dims, String> {
        let wrong = || format!("{written:?} is none of: all, a number of them, a list such as 5,6,7, a..b, top:N");
        let count = |text: &str| text.parse().ok().filter(|n| *n > 0).ok_or_else(wrong);
        if written == "all" {
            return Ok(Dims::All);
        }
        if let Some(n) = written.strip_prefix("top:") {
            return count(n).map(Dims::Top);
        }
        if let Some((from, to)) = written.split_once("..") {
            let end = |text: &str| if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| wrong()) };
            return Ok(Dims::Span(end(from)?, end(to)?));
        }
        if written.contains(',') {
            let dims = written.split(',').map(|dim| dim.trim().parse().map_err(|_| wrong()));
            return dims.collect::<Result<_, _>>().map(Dims::List);
        }
        count(written).map(Dims::Sampled)
    }
}

impl Dims {
    /// The dimensions of tables that are all `n` wide.
    ///
    /// # Errors
    /// A sentence that names dimensions that do not exist.
    pub fn of(&self, tables: &[ArrayView2<'_, f32>], n: usize) -> Result<Vec<usize>, String> {
        match self {
            Dims::All => Ok((0..n).collect()),
            Dims::Sampled(count) if *count >= n => Ok((0..n).collect()),
            // numpy's linspace(0, n - 1, count, dtype=int), with its roundings.
            Dims::Sampled(1) => Ok(vec![0]),
            Dims::Sampled(count) => {
                let step = (n - 1) as f64 / (count - 1) as f64;
                Ok((0..*count).map(|i| if i + 1 == *count { n - 1 } else { (i as f64 * step) as usize }).collect())
            }
            Dims::List(dims) => match dims.iter().find(|dim| **dim >= n) {
                Some(dim) => Err(format!("dimension {dim} does not exist; there are 0..{n}")),
                None => Ok(dims.clone()),
            },
            Dims::Span(from, to) => {
                let (from, to) = (from.unwrap_or(0), to.unwrap_or(n));
                if from < to && to <= n {
                    Ok((from..to).collect())
                } else {
                    Err(format!("dimensions {from}..{to} do not exist; there are 0..{n}"))
                }
            }
            Dims::Top(count) => {
                let size = |dim: usize| {
                    let of_all = tables.iter().flat_map(|table| table.column(dim).to_vec());
                    of_all
                        .map(f32::abs)
                        .fold(0.0, |a: f32, b: f32| if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) })
                };
                let sizes: Vec<f32> = (0..n).map(size).collect();
                Ok(largest(n, *count, |dim| sizes[dim]).into_iter().map(|dim| dim as usize).collect())
            }
        }
    }

    /// Describes the choice.
    pub fn words(&self, shown: usize, of: usize) -> String {
        match self {
            _ if shown == of => format!("all {of}"),
            Dims::Sampled(_) | Dims::All => format!("{shown} of {of}, evenly spaced"),
            Dims::Span(..) | Dims::List(_) => format!("{shown} of {of}"),
            Dims::Top(_) => format!("the {shown} strongest of {of}, strongest first"),
        }
    }
}

/// One hook's table.
#[derive(Clone, Debug)]
pub struct Panel {
    /// The hook's name.
    pub hook: String,
    /// The meaning and number of its columns: `hidden dimension (all 160)`.
    pub columns: String,
    /// The dimension of every column.
    pub dims: Vec<usize>,
    /// [tokens, dims].
    pub values: Array2<f32>,
    /// Its colour scale.
    pub scale: Scale,
}

/// The picture.
#[derive(Clone, Debug)]
pub struct Heatmap {
    /// The heading.
    pub heading: Heading,
    /// The rows: position and token.
    pub rows: Vec<(usize, Token)>,
    /// At least one; all have the same scale unless `per_layer`.
    pub panels: Vec<Panel>,
    /// Whether every panel has a scale of its own.
    pub per_layer: bool,
}

/// The colour bar's name.
const VALUE: &str = "Activation Value";

/// How one panel is laid out.
struct Layout {
    /// Pixels of a cell.
    cell: (f32, f32),
    /// The values. If there are more than pixels, neighbours are joined.
    values: Array2<f32>,
}

impl Layout {
    fn of(panel: &Panel, alone: bool) -> Layout {
        let (across, down, widest, highest) = if alone { (1000, 1400, 40, 34) } else { (440, 440, 20, 18) };
        let values = strongest(panel.values.view(), if alone { MOST_CELLS } else { MOST_CELLS_EACH });
        let (rows, cols) = values.dim();
        let cell = ((across / cols).clamp(1, widest) as f32, (down / rows).clamp(1, highest) as f32);
        Layout { cell, values }
    }

    fn width(&self) -> f32 {
        self.cell.0 * self.values.ncols() as f32
    }

    /// The panel's height in pixels, with everything above and below it.
    fn room(&self, panel: &Panel, alone: bool) -> f32 {
        let name = if alone { 0.0 } else { font::width(&panel.hook, TEXT) };
        self.width().max(name).max(font::width(&panel.columns, TEXT)).ceil()
    }

    fn height(&self) -> f32 {
        self.cell.1 * self.values.nrows() as f32
    }
}

/// The largest size of a panel: alone, and for several panels.
const MOST_CELLS: (usize, usize) = (2048, 2400);
const MOST_CELLS_EACH: (usize, usize) = (512, 900);
/// Room below a panel for its dimensions, and above it for its name.
const BELOW: f32 = 56.0;
const ABOVE: f32 = 20.0;
/// The largest total width of panels side by side.
const WIDEST: f32 = 1500.0;

impl Heatmap {
    fn labels(&self, shows: Shows) -> Vec<String> {
        self.rows.iter().map(|(position, token)| label(*position, token, shows)).collect()
    }

    /// Draws the labels beside (if there are any) and below a panel whose cells begin at (x, y).
    fn draw_axes(
        &self,
        scene: &mut Scene,
        panel: &Panel,
        layout: &Layout,
        (x, y): (f32, f32),
        labels: Option<&[String]>,
    ) {
        let per_row = layout.height() / self.rows.len() as f32;
        let step = every(12.0, per_row);
        for i in (0..self.rows.len()).step_by(step) {
            let at = y + (i as f32 + 0.5) * per_row;
            scene.line((x - 3.0, at), (x, at));
            if let Some(labels) = labels {
                scene.text(x - 6.0, at + 4.0, TEXT, Anchor::End, BLACK, &labels[i]);
            }
        }
        let per_col = layout.width() / panel.dims.len() as f32;
        let digits = panel.dims.iter().max().map_or(1, |dim| dim.to_string().len()) as f32;
        let room = font::width("0", TEXT) * digits + 8.0;
        // Labels that do not fit side by side are rotated, if all of them fit then.
        let upright = per_col < room && per_col >= 9.0;
        let step = if upright { 1 } else { every(room, per_col) };
        let bottom = y + layout.height();
        for (i, dim) in panel.dims.iter().enumerate().step_by(step) {
            let at = x + (i as f32 + 0.5) * per_col;
            scene.line((at, bottom), (at, bottom + 3.0));
            if upright {
                scene.text_upwards(at + 3.5, bottom + 6.0, 9.5, Anchor::End, &dim.to_string())
            } else {
                scene.text(at, bottom + 15.0, TEXT, Anchor::Middle, BLACK, &dim.to_string())
            }
        }
        let (at, anchor) = if font::width(&panel.columns, TEXT) > layout.width() {
            (x, Anchor::Start)
        } else {
            (x + layout.width() / 2.0, Anchor::Middle)
        };
        scene.text(at, bottom + 46.0, TEXT, anchor, BLACK, &panel.columns);
    }
}

impl Picture for Heatmap {
    fn scene(&self, shows: Shows) -> Scene {
        let alone = self.panels.len() == 1;
        let layouts: Vec<Layout> = self.panels.iter().map(|panel| Layout::of(panel, alone)).collect();
        // Only the labels that are shown matter; that depends on the panels' height only.
        let every = every(12.0, layouts[0].height() / self.rows.len() as f32);
        let labels = self.labels(shows);
        let shown = labels.iter().step_by(every);
        let label_room = shown.map(|label| font::width(label, TEXT)).fold(40.0, f32::max).ceil() + 34.0;
        let bar_room = if self.per_layer { BAR_ROOM } else { 0.0 };
        let rooms = layouts.iter().zip(&self.panels).map(|(layout, panel)| layout.room(panel, alone));
        let widest = rooms.fold(0.0, f32::max) + bar_room + if alone { 0.0 } else { 24.0 };
        let highest = layouts.iter().map(Layout::height).fold(0.0, f32::max);
        // The notes are below a bar.
        let highest_with_room = (if self.per_layer { highest.max(BAR_LEAST + 20.0) } else { highest }) + ABOVE + BELOW;
        let across =
            (((WIDEST - label_room) / widest) as usize).clamp(1, layouts.len().isqrt().max(1) + 1).min(layouts.len());
        let down = layouts.len().div_ceil(across);
        let bars = if self.per_layer { 16.0 } else { BAR_ROOM + 24.0 };
        let width = (label_room + across as f32 * widest + bars).max(420.0);
        let height = HEADING + (down as f32 * highest_with_room).max(BAR_LEAST + 90.0);
        let cells = layouts.iter().map(|layout| layout.values.len()).sum();
        let mut scene = Scene::new(width, height, cells, &self.heading.title());
        let sharing = layouts.iter().zip(&self.panels).map(|(l, panel)| shared(panel.values.dim(), l.values.dim()));
        draw_heading(&mut scene, &self.heading, &sharing.max().unwrap_or_default(), width, shows);
        for (i, (panel, layout)) in self.panels.iter().zip(&layouts).enumerate() {
            let x = label_room + (i % across) as f32 * widest;
            let y = HEADING + ABOVE + (i / across) as f32 * highest_with_room;
            if !alone {
                scene.text(x, y - 6.0, TEXT, Anchor::Start, BLACK, &panel.hook);
            }
            let colours: Array2<Rgb> = layout.values.map(|value| panel.scale.colour(*value));
            let joined = layout.values.dim() != panel.values.dim();
            scene.grid((x, y), layout.cell, &colours, |row, col| {
                if joined {
                    String::new()
                } else {
                    let value = panel.values[[row, col]];
                    format!(
                        "{}, dimension {}: {value}",
                        label(self.rows[row].0, &self.rows[row].1, shows),
                        panel.dims[col]
                    )
                }
            });
            scene.frame(x, y, layout.width(), layout.height(), 0.8);
            self.draw_axes(&mut scene, panel, layout, (x, y), (i % across == 0).then_some(&labels));
            if self.per_layer {
                scene.colour_bar((x + layout.width() + 12.0, y), bar_height(layout.height()), &panel.scale, VALUE);
            }
        }
        if !self.per_layer {
            let x = label_room + across as f32 * widest + if alone { 24.0 } else { 0.0 };
            scene.colour_bar((x, HEADING + ABOVE), bar_height(highest), &self.panels[0].scale, VALUE);
        }
        scene.text_upwards(18.0, HEADING + ABOVE + highest / 2.0, TEXT, Anchor::Middle, "Token");
        scene
    }

    fn print(&self, terminal: &Terminal, out: &mut dyn Write) -> std::io::Result<()> {
        print_heading(&self.heading, terminal, out)?;
        let labels: Vec<String> = self.rows.iter().map(|(_, token)| terminal::label(token)).collect();
        let wide = terminal::widest(&labels).min(terminal.width / 4).max(5);
        let room = terminal.width - wide - 6;
        for panel in &self.panels {
            let (Some(first), Some(last)) = (panel.dims.first(), panel.dims.last()) else { continue };
            let sharing = shared((1, panel.dims.len()), (1, terminal.cells(panel.dims.len(), &panel.scale, room)));
            writeln!(out, "{}: {}, from {first} to {last}{sharing}", panel.hook, panel.columns)?;
            for (i, values) in panel.values.axis_iter(Axis(0)).enumerate() {
                let row = terminal.row(&values.to_vec(), &panel.scale, room);
                writeln!(out, "{:>4} {} {row}", self.rows[i].0, terminal::column(&labels[i], wide))?;
            }
            if self.per_layer {
                writeln!(out, "     {}", terminal.legend(&panel.scale, VALUE))?;
            }
        }
        if !self.per_layer {
            writeln!(out, "     {}", terminal.legend(&self.panels[0].scale, VALUE))?;
        }
        Ok(())
    }
}

/// The smallest height of a colour bar with readable numbers.
const BAR_LEAST: f32 = 140.0;

fn bar_height(beside: f32) -> f32 {
    beside.clamp(BAR_LEAST, 400.0).floor()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(written: &str, n: usize) -> Result<Vec<usize>, String> {
        let table = Array2::from_shape_fn((2, n), |(t, d)| if d == 7 { -9.0 } else { (d % 5) as f32 + t as f32 });
        written.parse::<Dims>()?.of(&[table.view()], n)
    }

    #[test]
    fn dimensions() {
        // numpy.linspace(0, 767, 100, dtype=int) has these; the second would be 8 if it were rounded.
        let sampled = dims("100", 768).unwrap();
        assert_eq!(
            (sampled[0], sampled[1], sampled[51], sampled[52], sampled[99], sampled.len()),
            (0, 7, 395, 402, 767, 100)
        );
        // And 496 here where exact arithmetic has 497.
        assert_eq!(dims("100", 640).unwrap()[77], 496);
        assert_eq!(dims("100", 32).unwrap(), (0..32).collect::<Vec<_>>());
        assert_eq!(dims("1", 32).unwrap(), [0]);
        assert_eq!(dims("all", 3).unwrap(), [0, 1, 2]);
        assert_eq!(
            (dims("3..5", 9).unwrap(), dims("7..", 9).unwrap(), dims("..1", 9).unwrap()),
            (vec![3, 4], vec![7, 8], vec![0])
        );
        assert_eq!(dims("top:3", 32).unwrap(), [7, 4, 9]);
        for wrong in ["", "0", "-1", "top:0", "top:", "a..b", "1..2..3", "some"] {
            assert!(dims(wrong, 9).unwrap_err().contains("is none of"), "{wrong}");
        }
        for outside in ["5..5", "5..10", "9.."] {
            assert!(dims(outside, 9).unwrap_err().contains("there are 0..9"), "{outside}");
        }
    }
}
