//! The logit lens as a table: rows are layers, the model's output on top as in the original figure (nostalgebraist
//! 2020), columns are positions. Each cell has the layer's most likely token, coloured by its probability, and framed
//! if it is the text's actual next token. Long texts are split into bands, one below the other. Read next: `scene.rs`.

use super::colour::{Rgb, Scale};
use super::scene::{Anchor, BAR_ROOM, Scene, TEXT};
use super::terminal::{self, Colours, Terminal};
use super::{BLACK, HEADING, Heading, Picture, Shows, draw_heading, font, print_heading};
use crate::model::tokenizer::Token;
use ndarray::Array2;
use std::io::Write;
use std::ops::Range;

/// One reading.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The most likely token.
    pub token: Token,
    /// Its probability.
    pub probability: f32,
    /// True if it is the text's actual next token.
    pub hit: bool,
}

/// The picture.
#[derive(Clone, Debug)]
pub struct LensTable {
    /// The heading. Its text has one token for every position.
    pub heading: Heading,
    /// Layers in run order with their names, and a cell for every position.
    pub rows: Vec<(String, Vec<Cell>)>,
}

/// The most positions in a band.
const BAND: usize = 16;
/// Pixels of a cell.
const CELL: (f32, f32) = (84.0, 22.0);
/// Columns of a cell on a terminal, including the gap to the next.
const COLUMNS: usize = 11;

impl LensTable {
    fn bands(&self, width: usize) -> impl Iterator<Item = Range<usize>> {
        let n = self.heading.text.len();
        (0..n).step_by(width).map(move |start| start..n.min(start + width))
    }
}

impl Picture for LensTable {
    fn scene(&self, shows: Shows) -> Scene {
        let tokens = &self.heading.text;
        let scale = Scale::share();
        let n_rows = self.rows.len();
        let names = self.rows.iter().map(|(name, _)| font::width(name, TEXT)).fold(70.0, f32::max);
        let left = names.ceil() + 22.0;
        let across = tokens.len().min(BAND) as f32 * CELL.0;
        // A band: the actual next tokens, the layers, the input tokens.
        let band_height = (n_rows + 2) as f32 * CELL.1 + 24.0;
        let width = (left + across + 24.0 + BAR_ROOM).max(420.0);
        let height = HEADING + (self.bands(BAND).count() as f32 * band_height).max(220.0);
        let mut scene = Scene::new(width, height, n_rows * tokens.len(), &self.heading.title());
        draw_heading(&mut scene, &self.heading, "", width, shows);
        let mark = |token: &Token| font::fit(&token.mark(shows), TEXT, CELL.0 - 6.0);
        for (n, band) in self.bands(BAND).enumerate() {
            let top = HEADING + n as f32 * band_height;
            let y_of = |row: usize| top + (row + 1) as f32 * CELL.1;
            let baseline = |row: usize| top + row as f32 * CELL.1 + 15.0;
            let x_of = |column: usize| left + column as f32 * CELL.0;
            scene.text(left - 8.0, baseline(0), TEXT, Anchor::End, BLACK, "next token");
            scene.text(left - 8.0, baseline(n_rows + 1), TEXT, Anchor::End, BLACK, "token");
            for (column, position) in band.clone().enumerate() {
                let middle = x_of(column) + CELL.0 / 2.0;
                let next = tokens.get(position + 1).map_or("".into(), mark);
                scene.text(middle, baseline(0), TEXT, Anchor::Middle, BLACK, &next);
                scene.text(middle, baseline(n_rows + 1), TEXT, Anchor::Middle, BLACK, &mark(&tokens[position]));
                scene.text(middle, baseline(n_rows + 2) - 2.0, 9.0, Anchor::Middle, BLACK, &position.to_string());
            }
            let layers: Vec<&(String, Vec<Cell>)> = self.rows.iter().rev().collect();
            let at = |row: usize, column: usize| &layers[row].1[band.start + column];
            let colours: Array2<Rgb> =
                Array2::from_shape_fn((n_rows, band.len()), |(row, column)| scale.colour(at(row, column).probability));
            scene.grid((left, y_of(0)), CELL, &colours, |row, column| {
                let Cell { token, probability, .. } = at(row, column);
                format!("{}, position {}: {} {probability}", layers[row].0, band.start + column, token.mark(shows))
            });
            for (row, (name, _)) in layers.iter().enumerate() {
                scene.text(left - 8.0, y_of(row) + 15.0, TEXT, Anchor::End, BLACK, name);
                for column in 0..band.len() {
                    let Cell { token, hit, .. } = at(row, column);
                    let ink = colours[[row, column]].ink();
                    scene.text(x_of(column) + CELL.0 / 2.0, y_of(row) + 15.0, TEXT, Anchor::Middle, ink, &mark(token));
                    if *hit {
                        scene.frame(x_of(column) + 1.0, y_of(row) + 1.0, CELL.0 - 2.0, CELL.1 - 2.0, 2.0);
                    }
                }
            }
        }
        let bar = (n_rows as f32 * CELL.1).clamp(110.0, 300.0).floor();
        scene.colour_bar((left + across + 24.0, HEADING + CELL.1), bar, &scale, "Probability");
        for (i, note) in ["framed: the token", "that comes next"].into_iter().enumerate() {
            let at = HEADING + CELL.1 + bar + 24.0 + 14.0 * i as f32;
            scene.text(left + across + 24.0, at, 10.0, Anchor::Start, BLACK, note);
        }
        scene
    }

    fn print(&self, terminal: &Terminal, out: &mut dyn Write) -> std::io::Result<()> {
        print_heading(&self.heading, terminal, out)?;
        let scale = Scale::share();
        let wide = self.rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max("next token".len());
        let beside = ((terminal.width - wide - 1) / COLUMNS).max(1);
        let name = |name: &str| format!("{name:>wide$} ");
        let tokens = &self.heading.text;
        // One column of the cell is the gap to the next.
        let fixed = |text: &str| terminal::column(text, COLUMNS - 1) + " ";
        for band in self.bands(beside) {
            let nexts =
                band.clone().map(|p| tokens.get(p + 1).map_or(fixed(""), |token| fixed(&terminal::label(token))));
            writeln!(out, "{}", (name("next token") + &nexts.collect::<String>()).trim_end())?;
            for (layer, cells) in self.rows.iter().rev() {
                let shown = cells[band.clone()].iter().map(|Cell { token, probability, hit }| {
                    let mark = if *hit { "=" } else { " " };
                    match terminal.colours {
                        // The colour shows the probability; without colours, a number in hundredths does.
                        Colours::None => {
                            let share = format!("{:>3}", (probability * 100.0).round());
                            format!("{mark}{}{share} ", terminal::column(&terminal::label(token), COLUMNS - 5))
                        }
                        _ => {
                            let text = format!("{mark}{}", terminal::column(&terminal::label(token), COLUMNS - 2));
                            terminal.on(scale.colour(*probability), &text) + " "
                        }
                    }
                });
                writeln!(out, "{}", (name(layer) + &shown.collect::<String>()).trim_end())?;
            }
            let read = band.clone().map(|p| fixed(&format!("{p} {}", terminal::label(&tokens[p]))));
            writeln!(out, "{}\n", (name("token") + &read.collect::<String>()).trim_end())?;
        }
        match terminal.colours {
            Colours::None => writeln!(out, "numbers: probability in hundredths; `=`: it is the token that comes next"),
            _ => writeln!(out, "{}; `=`: it is the token that comes next", terminal.legend(&scale, "probability")),
        }
    }
}
