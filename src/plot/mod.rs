//! Activations as pictures: PNG, SVG and PDF files, and coloured blocks on a terminal. Owns what the pictures share;
//! each kind of picture is one file here. Uses captures and tokens, no model and no device. `scene.rs` draws,
//! `terminal.rs` prints, `colour.rs` maps values to colours, `font.rs` has the fonts. Read next: `scene.rs`, then
//! `heatmap.rs`.

pub mod attention;
pub mod bars;
pub mod colour;
pub mod font;
pub mod graph;
pub mod heatmap;
pub mod lens;
#[cfg(feature = "pdf")]
mod pdf;
pub mod scene;
pub mod sweep;
pub mod terminal;

use crate::model::token::{self, Token};
use crate::output::{OutputError, Place, extension};
use colour::Rgb;
use font::Shows;
use ndarray::{Array2, ArrayView2};
use scene::{Anchor, Scene};
use std::io::Write;
use std::path::Path;
use terminal::Terminal;

/// Anything that can be drawn and printed.
pub trait Picture {
    /// Draws it. Characters for which `shows` returns false are escaped.
    fn scene(&self, shows: Shows) -> Scene;

    /// Prints it.
    ///
    /// # Errors
    /// Those of `out`.
    fn print(&self, terminal: &Terminal, out: &mut dyn Write) -> std::io::Result<()>;
}

/// The heading of a picture.
#[derive(Clone, Debug)]
pub struct Heading {
    /// All tokens of the text.
    pub text: Vec<Token>,
    /// What is shown, and of which model.
    pub what: String,
}

impl Heading {
    /// A description for people who cannot see the picture.
    fn title(&self) -> String {
        format!("{}: \"{}\"", self.what(|_| true), Token::label_of(&self.text, |_| true))
    }

    /// [`Heading::what`] with control characters escaped, and those for which `has` returns false: a model's folder may
    /// have any name.
    fn what(&self, has: impl Fn(char) -> bool) -> String {
        let shown = |c: char| if token::is_control(c) || !has(c) { c.escape_default().to_string() } else { c.into() };
        self.what.chars().map(shown).collect()
    }
}

/// A picture's file, not yet written.
#[derive(Debug)]
pub struct File {
    format: Format,
    place: Place,
}

/// A picture's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Svg,
    Png,
    #[cfg(feature = "pdf")]
    Pdf,
}

impl File {
    /// Chooses the format by the extension and makes the [`Place`], before anything is computed.
    ///
    /// # Errors
    /// [`OutputError`] for an unknown extension or a folder that cannot be written.
    pub fn create(path: &Path) -> Result<File, OutputError> {
        let format = match extension(path).as_str() {
            "svg" => Format::Svg,
            "png" => Format::Png,
            #[cfg(feature = "pdf")]
            "pdf" => Format::Pdf,
            #[cfg(not(feature = "pdf"))]
            "pdf" => return Err(OutputError::Feature { path: path.into(), feature: "pdf", instead: ".svg" }),
            _ => return Err(OutputError::Format { path: path.into(), known: ".png, .svg or .pdf" }),
        };
        Ok(File { format, place: Place::create(path)? })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// Draws into the file; returns its size in bytes.
    ///
    /// # Errors
    /// [`OutputError::Write`]; then no file remains.
    pub fn write(self, picture: &dyn Picture) -> Result<u64, OutputError> {
        let format = self.format;
        let scene = picture.scene(if format == Format::Svg { font::in_svg } else { font::in_png });
        self.place.fill(|part| {
            let bytes = match format {
                Format::Svg => scene.svg().map(String::into_bytes),
                Format::Png => scene.png(),
                #[cfg(feature = "pdf")]
                Format::Pdf => scene.pdf(),
            };
            std::fs::write(part, bytes.map_err(std::io::Error::other)?)
        })
    }
}

/// The value with the largest magnitude; NaN takes precedence. -inf means no value and is ignored; it is also the
/// result when there are no values.
fn strongest_of(values: impl Iterator<Item = f32>) -> f32 {
    let stronger = |a: f32, b: f32| match () {
        () if a.is_nan() || b == f32::NEG_INFINITY => a,
        () if b.is_nan() || a == f32::NEG_INFINITY || b.abs() > a.abs() => b,
        () => a,
    };
    values.fold(f32::NEG_INFINITY, stronger)
}

/// The number of cells for `n` values with room for `most` cells, so that all cells show about equally many values.
fn cells(n: usize, most: usize) -> usize {
    n.div_ceil(n.div_ceil(most.max(1)).max(1)).max(1)
}

/// Reduces a table to at most this many rows and columns: neighbours share a cell, which has the value with the largest
/// magnitude.
fn strongest(values: ArrayView2<'_, f32>, most: (usize, usize)) -> Array2<f32> {
    let (rows, cols) = values.dim();
    let shape = (cells(rows, most.0), cells(cols, most.1));
    if shape == (rows, cols) {
        return values.to_owned();
    }
    let part = |i: usize, of: usize, n: usize| i * n / of..(i + 1) * n / of;
    Array2::from_shape_fn(shape, |(r, c)| {
        let part = values.slice(ndarray::s![part(r, shape.0, rows), part(c, shape.1, cols)]);
        strongest_of(part.iter().copied())
    })
}

/// Every how many marks an axis has a label: 1, 2, 5, 10, 20, ... A label takes `room` pixels, a mark `step`.
fn every(room: f32, step: f32) -> usize {
    let least = room / step;
    let steps = (0..9).flat_map(|decade| [1, 2, 5].map(|n| n * 10usize.pow(decade)));
    steps.into_iter().find(|n| *n as f32 >= least).unwrap_or(usize::MAX)
}

/// A token's label in a picture: its position and its text, truncated to a number of characters.
fn label(position: usize, token: &Token, shows: Shows) -> String {
    format!("{position} {}", font::cut(&token.mark(shows), LONGEST_LABEL))
}

/// Characters of a token that a label shows.
const LONGEST_LABEL: usize = 18;

/// Room above a picture for its heading.
const HEADING: f32 = 52.0;
const BLACK: Rgb = Rgb(0, 0, 0);

/// A note that neighbours share a cell, if there are fewer cells than values; otherwise empty.
fn shared(values: (usize, usize), cells: (usize, usize)) -> String {
    let (down, across) = (values.0.div_ceil(cells.0.max(1)), values.1.div_ceil(cells.1.max(1)));
    match (down, across) {
        (1, 1) => String::new(),
        (1, n) | (n, 1) => format!("; each cell is the strongest of up to {n} values"),
        _ => format!("; each cell is the strongest of up to {down} x {across} values"),
    }
}

/// Draws the heading into a scene of this width, with a note after it.
fn draw_heading(scene: &mut Scene, heading: &Heading, note: &str, width: f32, shows: Shows) {
    let text = if heading.text.is_empty() {
        "several texts".into()
    } else {
        format!("\"{}\"", font::fit(&Token::label_of(&heading.text, shows), 15.0, width - 50.0))
    };
    scene.text(16.0, 24.0, 15.0, Anchor::Start, BLACK, &text);
    let what = heading.what(shows) + note;
    scene.text(16.0, 42.0, scene::TEXT, Anchor::Start, BLACK, &font::fit(&what, scene::TEXT, width - 32.0));
}

/// Prints the heading.
fn print_heading(heading: &Heading, terminal: &Terminal, out: &mut dyn Write) -> std::io::Result<()> {
    let text = Token::label_of(&heading.text, |_| true);
    if text.is_empty() {
        writeln!(out, "several texts")?
    } else {
        writeln!(out, "\"{}\"", terminal::column(&text, terminal.width - 2).trim_end())?
    }
    writeln!(out, "{}", heading.what(|_| true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_that_share_a_cell_show_the_strongest() {
        const NOTHING: f32 = f32::NEG_INFINITY;
        let values =
            ndarray::array![[1.0, -3.0, 0.0, 2.0], [2.0, 0.5, NOTHING, NOTHING], [0.0, f32::NAN, NOTHING, NOTHING]];
        assert_eq!(
            strongest(values.view(), (9, 2)).slice(ndarray::s![..2, ..]),
            ndarray::array![[-3.0, 2.0], [2.0, NOTHING]]
        );
        assert!(strongest(values.view(), (9, 2))[[2, 0]].is_nan());
        assert_eq!(strongest(values.view(), (2, 1)).row(0)[0], -3.0);
        assert_eq!([cells(7, 9), cells(4096, 2400), cells(1024, 116), cells(5, 0)], [7, 2048, 114, 1]);
        assert_eq!([every(12.0, 22.0), every(12.0, 7.0), every(12.0, 2.0), every(30.0, 1.0)], [1, 2, 10, 50]);
    }
}
