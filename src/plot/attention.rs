//! Attention as square heat maps: rows are queries, columns are keys. One large head, or a grid with one row per layer
//! and one column per head. Draws `hook_pattern` and `hook_attn_scores`. Read next: `scene.rs`.

use super::colour::{Rgb, Scale};
use super::scene::{Anchor, BAR_ROOM, Scene, TEXT};
use super::terminal::{self, Terminal};
use super::{
    BLACK, HEADING, Heading, Picture, Shows, draw_heading, every, font, label, print_heading, shared, strongest,
};
use ndarray::{Array2, Axis};
use std::io::Write;

/// One head.
#[derive(Clone, Debug)]
pub struct Head {
    /// Its block.
    pub layer: usize,
    /// Its number within the block.
    pub head: usize,
    /// True for a head of an edited run that is shown beside the unedited one.
    pub edited: bool,
    /// [query, key]; -inf for keys after the query.
    pub values: Array2<f32>,
}

/// The picture.
#[derive(Clone, Debug)]
pub struct Attention {
    /// The heading. Its text has one token for every query and key.
    pub heading: Heading,
    /// What the colours show: `Attention` or `Score`.
    pub name: &'static str,
    /// At least one head, layer by layer, each layer with the same heads.
    pub heads: Vec<Head>,
    /// The colour scale of all heads.
    pub scale: Scale,
}

/// The largest side of a head in pixels: alone, and in a grid.
const LARGE: usize = 1100;
/// The width in pixels that the heads of a grid share.
const ACROSS: usize = 1400;
/// The smallest and the largest side of a head in a grid, in pixels.
const SIDE: (usize, usize) = (110, 300);
/// The smallest side of a head in pixels: the length of `layer 10`.
const NAME: usize = 54;
const GAP: f32 = 14.0;

impl Attention {
    /// The number of heads in a row of the grid.
    fn per_layer(&self) -> usize {
        self.heads.iter().take_while(|head| head.layer == self.heads[0].layer).count()
    }

    /// Pixels of a cell, and cells of a head's side. If there are more cells than pixels, neighbours are joined.
    fn cells(&self) -> (f32, usize) {
        let n = self.heading.text.len();
        let (side, largest) = match self.heads.len() {
            1 => (LARGE, 44),
            _ => ((ACROSS / self.per_layer()).clamp(SIDE.0, SIDE.1), 30.max(NAME.div_ceil(n))),
        };
        ((side / n).clamp(1, largest) as f32, super::cells(n, side))
    }
}

fn colour(value: f32, scale: &Scale) -> Rgb {
    if value == f32::NEG_INFINITY { Rgb::EMPTY } else { scale.colour(value) }
}

impl Picture for Attention {
    fn scene(&self, shows: Shows) -> Scene {
        let tokens = &self.heading.text;
        let (cell, n_cells) = self.cells();
        let side = cell * n_cells as f32;
        let across = self.per_layer();
        let down = self.heads.len() / across;
        let alone = self.heads.len() == 1;
        let labels: Vec<String> = tokens.iter().enumerate().map(|(i, token)| label(i, token, shows)).collect();
        let step = side / tokens.len() as f32;
        let every = every(12.0, step);
        let shown = labels.iter().step_by(every);
        let label_room = shown.map(|l| font::width(l, TEXT)).fold(20.0, f32::max).ceil() + 10.0;
        // Left: the layer's name, the axis' name, the labels. Below: the labels, the axis' name.
        let left = label_room + if alone { 30.0 } else { 52.0 };
        let top = HEADING + if alone { 8.0 } else { 24.0 };
        let grid_width = across as f32 * (side + GAP) - GAP;
        let grid_height = down as f32 * (side + GAP) - GAP;
        let width = (left + grid_width + 24.0 + BAR_ROOM).max(420.0);
        let bar = BAR.min(grid_height.max(140.0)).floor();
        let height = (top + grid_height + label_room + 30.0).max(top + bar + 60.0);
        let cells = self.heads.len() * n_cells * n_cells;
        let mut scene = Scene::new(width, height, cells, &self.heading.title());
        let n = tokens.len();
        draw_heading(&mut scene, &self.heading, &shared((n, n), (n_cells, n_cells)), width, shows);
        for (i, head) in self.heads.iter().enumerate() {
            let (row, col) = (i / across, i % across);
            let (x, y) = (left + col as f32 * (side + GAP), top + row as f32 * (side + GAP));
            let values = strongest(head.values.view(), (n_cells, n_cells));
            let colours = values.map(|value| colour(*value, &self.scale));
            let joined = n_cells < n;
            scene.grid((x, y), (cell, cell), &colours, |query, key| {
                if joined || key > query {
                    String::new()
                } else {
                    let Head { layer, head, edited, values } = head;
                    let edited = if *edited { ", edited" } else { "" };
                    let (from, to) = (&labels[query], &labels[key]);
                    format!("layer {layer}, head {head}{edited}, {from} looks at {to}: {}", values[[query, key]])
                }
            });
            scene.frame(x, y, side, side, 0.8);
            if !alone && row == 0 {
                let edited = if head.edited { ", edited" } else { "" };
                let name = format!("head {}{edited}", head.head);
                scene.text(x + side / 2.0, y - 7.0, TEXT, Anchor::Middle, BLACK, &font::fit(&name, TEXT, side + GAP));
            }
            if !alone && col == 0 {
                scene.text_upwards(38.0, y + side / 2.0, TEXT, Anchor::Middle, &format!("layer {}", head.layer));
            }
            for (p, label) in labels.iter().enumerate().step_by(every) {
                let at = (p as f32 + 0.5) * step;
                if col == 0 {
                    scene.line((x - 3.0, y + at), (x, y + at));
                    scene.text(x - 6.0, y + at + 4.0, TEXT, Anchor::End, BLACK, label);
                }
                if row + 1 == down {
                    scene.line((x + at, y + side), (x + at, y + side + 3.0));
                    scene.text_upwards(x + at + 4.0, y + side + 6.0, TEXT, Anchor::End, label);
                }
            }
        }
        scene.text_upwards(18.0, top + grid_height / 2.0, TEXT, Anchor::Middle, "Query: the token that looks");
        let below = top + grid_height + label_room + 14.0;
        scene.text(left + grid_width / 2.0, below, TEXT, Anchor::Middle, BLACK, "Key: the token looked at");
        scene.colour_bar((left + grid_width + 24.0, top), bar, &self.scale, self.name);
        scene
    }

    fn print(&self, terminal: &Terminal, out: &mut dyn Write) -> std::io::Result<()> {
        print_heading(&self.heading, terminal, out)?;
        match self.heads.as_slice() {
            [head] => self.print_one(head, terminal, out)?,
            _ => self.print_grid(terminal, out)?,
        }
        writeln!(out, "{}", terminal.legend(&self.scale, self.name))
    }
}

/// Height of the colour bar.
const BAR: f32 = 320.0;

impl Attention {
    fn print_one(&self, head: &Head, terminal: &Terminal, out: &mut dyn Write) -> std::io::Result<()> {
        let labels: Vec<String> = self.heading.text.iter().map(terminal::label).collect();
        let wide = terminal::widest(&labels).min(terminal.width / 4).max(5);
        let room = terminal.width - wide - 6;
        let n = labels.len();
        let sharing = shared((1, n), (1, terminal.cells(n, &self.scale, room)));
        writeln!(out, "rows look at columns, which are the same tokens in the same order{sharing}")?;
        for (query, values) in head.values.axis_iter(Axis(0)).enumerate() {
            let row = terminal.row(&values.to_vec(), &self.scale, room);
            writeln!(out, "{query:>4} {} {}", terminal::column(&labels[query], wide), row.trim_end())?;
        }
        Ok(())
    }

    /// Prints as many heads side by side as fit the window.
    fn print_grid(&self, terminal: &Terminal, out: &mut dyn Write) -> std::io::Result<()> {
        let across = self.per_layer();
        let plain = terminal.colours == terminal::Colours::None;
        let per_value = if plain && self.scale.signed() { 2 } else { 1 };
        let least = ((terminal.width + 2) / across).saturating_sub(2) / per_value;
        let n = self.heading.text.len();
        let side = super::cells(n, least.max(SMALLEST));
        let beside = ((terminal.width + 2) / (side * per_value + 2)).clamp(1, across);
        let edited = if self.heads.iter().any(|head| head.edited) { ", * edited" } else { "" };
        writeln!(out, "layer.head{edited}; rows look at columns{}", shared((n, n), (side, side)))?;
        let (high, wide) = (side, side * per_value);
        for heads in self.heads.chunks(across).flat_map(|layer| layer.chunks(beside)) {
            let names = heads.iter().map(|head| {
                format!("{:<wide$}", format!("{}.{}{}", head.layer, head.head, if head.edited { "*" } else { "" }))
            });
            writeln!(out, "{}", names.collect::<Vec<_>>().join("  ").trim_end())?;
            let tables: Vec<Array2<f32>> = heads.iter().map(|h| strongest(h.values.view(), (high, side))).collect();
            for upper in (0..high).step_by(2) {
                let row = |table: &Array2<f32>, i: usize| (i < high).then(|| table.row(i).to_vec());
                let drawn = tables.iter().map(|table| {
                    let first = row(table, upper).unwrap_or_default();
                    terminal.two_rows(&first, row(table, upper + 1).as_deref(), &self.scale)
                });
                let drawn: Vec<Vec<String>> = drawn.collect();
                for line in 0..drawn[0].len() {
                    let line: Vec<&str> = drawn.iter().map(|head| head[line].as_str()).collect();
                    writeln!(out, "{}", line.join("  ").trim_end())?;
                }
            }
        }
        Ok(())
    }
}

/// The smallest number of columns of a head.
const SMALLEST: usize = 8;
