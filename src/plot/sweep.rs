//! A sweep as heat maps: the last two axes are rows and columns, the axes before them small multiples. Positions at
//! which the clean and the corrupt text differ are marked. With several pairs of texts, each panel has a second one
//! with the standard errors. Owns the layout; the caller computes the values. Read next: `scene.rs`.

use super::colour::{Rgb, Scale, number};
use super::scene::{Anchor, BAR_ROOM, Scene, TEXT};
use super::terminal::{self, Terminal};
use super::{BLACK, HEADING, LONGEST_LABEL, Picture, Shows, every, font, strongest};
use crate::model::tokenizer::Token;
use ndarray::{Array2, ArrayView2};
use serde_json::Value;
use std::io::Write;

/// The labels of one axis.
#[derive(Clone, Debug)]
struct AxisLabels {
    name: String,
    labels: Vec<Label>,
}

#[derive(Clone, Debug)]
enum Label {
    /// A number or a name.
    Plain(String),
    /// A position, and its token in the clean and in the corrupt text.
    Token(usize, Token, Token),
}

impl Label {
    fn text(&self, shows: Shows) -> String {
        match self {
            Label::Plain(text) => font::cut(text, LONGEST_LABEL),
            Label::Token(position, clean, corrupt) if clean.id == corrupt.id => {
                format!("{position} {}", font::cut(&clean.mark(shows), LONGEST_LABEL))
            }
            Label::Token(position, clean, corrupt) => {
                let half = LONGEST_LABEL / 2;
                let (clean, corrupt) = (font::cut(&clean.mark(shows), half), font::cut(&corrupt.mark(shows), half));
                format!("*{position} {clean}/{corrupt}")
            }
        }
    }
}

/// The picture.
#[derive(Clone, Debug)]
pub struct SweepPicture {
    what: String,
    text: Option<(Vec<Token>, Vec<Token>)>,
    /// What the colours show.
    name: String,
    axes: Vec<AxisLabels>,
    /// In row-major order.
    shown: Vec<f64>,
    /// A description of each number shown, if that is not the metric itself.
    values: Option<Vec<f64>>,
    errors: Option<Vec<f64>>,
    p: Option<Vec<f64>>,
    /// Lines below the panels.
    notes: Vec<String>,
}

/// One heat map.
struct Panel<'a> {
    title: String,
    values: Array2<f32>,
    scale: &'a Scale,
    /// The number of its first cell; `None` for standard errors.
    first: Option<usize>,
}

/// The largest size in pixels of a cell, and of a panel.
const CELL: (f32, f32) = (44.0, 22.0);
const PANEL: (f32, f32) = (900.0, 900.0);
const MOST_CELLS: (usize, usize) = (900, 900);
const GAP: f32 = 30.0;
/// The size of the heading, of numbers in cells, and the heights of lines of the heading and of other text.
const HEAD: f32 = 15.0;
const IN_CELL: f32 = 9.0;
const LINE_OF_HEAD: f32 = 19.0;
const LINE: f32 = 16.0;
/// The most lines of the heading, and of what the picture shows.
const MOST_LINES: usize = 4;
const TITLE: f32 = 22.0;

impl SweepPicture {
    /// A picture of the values `shown` (row-major over `axes`), with the metric's values, where they are others, and of several
    /// pairs the standard errors of what is shown, and the p values. `text` has the tokens of the clean and the corrupt text if there is only one pair.
    #[allow(clippy::too_many_arguments, reason = "a picture has as many parts")]
    pub fn new(
        what: String,
        name: String,
        axes: &[&str],
        labels: Vec<Vec<Value>>,
        text: Option<(Vec<Token>, Vec<Token>)>,
        shown: &[f64],
        values: Option<&[f64]>,
        errors: Option<&[f64]>,
        p: Option<&[f64]>,
    ) -> SweepPicture {
        let label = |axis: &str, i: usize, label: Value| match (&text, axis) {
            (Some((clean, corrupt)), "pos" | "key") => Label::Token(i, clean[i].clone(), corrupt[i].clone()),
            _ => Label::Plain(label.as_str().map_or_else(|| label.to_string(), String::from)),
        };
        let of_axis = |(name, labels): (&&str, Vec<Value>)| AxisLabels {
            name: name.to_string(),
            labels: labels.into_iter().enumerate().map(|(i, text)| label(name, i, text)).collect(),
        };
        SweepPicture {
            what,
            name,
            axes: axes.iter().zip(labels).map(of_axis).collect(),
            text,
            shown: shown.to_vec(),
            values: values.map(<[f64]>::to_vec),
            errors: errors.map(<[f64]>::to_vec),
            p: p.map(<[f64]>::to_vec),
            notes: Vec::new(),
        }
    }

    /// With lines below the panels.
    pub fn with_notes(self, notes: Vec<String>) -> SweepPicture {
        SweepPicture { notes, ..self }
    }

    /// Rows and columns of a panel.
    fn table(&self) -> (usize, usize) {
        let mut lens = self.axes.iter().rev().map(|axis| axis.labels.len());
        let cols = lens.next().unwrap_or(1);
        (lens.next().unwrap_or(1), cols)
    }

    fn scales(&self) -> (Scale, Option<Scale>) {
        let narrow = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<f32>>().into_iter();
        (Scale::linear(narrow(&self.shown)), self.errors.as_ref().map(|errors| Scale::linear(narrow(errors))))
    }

    fn panels<'a>(&self, scale: &'a Scale, of_errors: Option<&'a Scale>) -> Vec<Panel<'a>> {
        let (rows, cols) = self.table();
        let leading = &self.axes[..self.axes.len().saturating_sub(2)];
        let cut = |values: &[f64], first: usize| {
            let part = values[first..first + rows * cols].iter().map(|v| *v as f32).collect();
            Array2::from_shape_vec((rows, cols), part).expect("as many as the shape has")
        };
        let mut panels = Vec::new();
        for n in 0..self.shown.len() / (rows * cols).max(1) {
            let mut rest = n;
            let mut names: Vec<String> = leading
                .iter()
                .rev()
                .map(|axis| {
                    let label = axis.labels[rest % axis.labels.len()].text(|_| true);
                    rest /= axis.labels.len();
                    if ["site", "kind"].contains(&axis.name.as_str()) {
                        label
                    } else {
                        format!("{} {label}", axis.name)
                    }
                })
                .collect();
            names.reverse();
            let (title, first) = (names.join(", "), n * rows * cols);
            panels.push(Panel { title: title.clone(), values: cut(&self.shown, first), scale, first: Some(first) });
            if let (Some(errors), Some(scale)) = (&self.errors, of_errors) {
                let title = if title.is_empty() { "standard error".into() } else { format!("{title}: standard error") };
                panels.push(Panel { title, values: cut(errors, first), scale, first: None });
            }
        }
        panels
    }

    fn headline(&self, shows: Shows) -> String {
        match &self.text {
            Some((clean, corrupt)) => {
                let differ = clean.iter().zip(corrupt).any(|(a, b)| a.id != b.id);
                let clean = format!("\"{}\"", Token::label_of(clean, shows));
                if differ { format!("{clean} / \"{}\"", Token::label_of(corrupt, shows)) } else { clean }
            }
            None => "several texts".into(),
        }
    }

    /// The lines below the panels, and what the marks mean.
    fn notes(&self) -> Vec<String> {
        let is_mark = |label: &Label| matches!(label, Label::Token(_, clean, corrupt) if clean.id != corrupt.id);
        let marked = self.axes.iter().flat_map(|axis| &axis.labels).any(is_mark);
        let marks = marked.then(|| "* clean / corrupt token where the texts differ".to_string());
        self.notes.iter().cloned().chain(marks).collect()
    }

    /// The description of a cell.
    fn cell(&self, at: usize) -> String {
        let shown = number(self.shown[at] as f32);
        let Some(values) = &self.values else { return shown };
        let error = self.errors.as_ref().map_or(String::new(), |errors| format!(" ± {}", number(errors[at] as f32)));
        let p = self.p.as_ref().map_or(String::new(), |p| format!(", p = {}", number(p[at] as f32)));
        format!("{shown}{error} (metric {}{p})", number(values[at] as f32))
    }

    fn row_axis(&self) -> Option<&AxisLabels> {
        self.axes.len().checked_sub(2).map(|n| &self.axes[n])
    }
}

/// A number as it stands in a cell. What rounds to zero has no sign.
fn with_decimals(value: f32, decimals: usize) -> String {
    let written = format!("{value:.decimals$}");
    match written.strip_prefix('-') {
        Some(rest) if rest.bytes().all(|b| matches!(b, b'0' | b'.')) => rest.into(),
        _ => written,
    }
}

/// The decimals of the numbers in a panel's cells of this size, which give the largest two digits or three; `None` where they do
/// not fit.
fn decimals_that_fit(table: &Array2<f32>, cell: (f32, f32)) -> Option<usize> {
    let largest = table.iter().filter(|value| value.is_finite()).fold(0.0f32, |most, value| most.max(value.abs()));
    let digits = if largest > 0.0 { largest.log10().floor() as i32 } else { 0 };
    let decimals = usize::try_from(2 - digits).unwrap_or(0).min(4);
    let fits = |value: &f32| font::width(&with_decimals(*value, decimals), IN_CELL) <= cell.0 - 4.0;
    (cell.1 >= IN_CELL + 3.0 && digits >= -3 && table.iter().all(fits)).then_some(decimals)
}

/// A cell's number behind its place; a path without axes has none.
fn placed(place: &str, cell: &str) -> String {
    if place.is_empty() { cell.into() } else { format!("{place}: {cell}") }
}

impl Picture for SweepPicture {
    fn scene(&self, shows: Shows) -> Scene {
        let (scale, of_errors) = self.scales();
        let panels = self.panels(&scale, of_errors.as_ref());
        let (rows, cols) = self.table();
        let tables: Vec<Array2<f32>> = panels.iter().map(|panel| strongest(panel.values.view(), MOST_CELLS)).collect();
        let (shown_rows, shown_cols) = tables.first().map_or((1, 1), Array2::dim);
        let share = |most: f32, n: usize, cell: f32| (most / n as f32).floor().clamp(1.0, cell);
        let cell = (share(PANEL.0, shown_cols, CELL.0), share(PANEL.1, shown_rows, CELL.1));
        let (width, height) = (cell.0 * shown_cols as f32, cell.1 * shown_rows as f32);
        let across = ((1500.0 / (width + GAP)) as usize).clamp(1, panels.len().max(1));
        let row_labels: Vec<String> =
            self.row_axis().map_or_else(Vec::new, |axis| axis.labels.iter().map(|l| l.text(shows)).collect());
        let col_labels: Vec<String> =
            self.axes.last().map_or_else(Vec::new, |axis| axis.labels.iter().map(|l| l.text(shows)).collect());
        let widest = |labels: &[String]| labels.iter().map(|label| font::width(label, TEXT)).fold(0.0, f32::max).ceil();
        let left = widest(&row_labels) + 44.0;
        let below = widest(&col_labels) + 34.0;
        let titles = panels.iter().map(|panel| font::width(&panel.title, TEXT)).fold(0.0, f32::max).ceil();
        let step_x = width.max(titles) + GAP;
        let step_y = TITLE + height + below;
        let down = panels.len().div_ceil(across);
        let inner = left + across as f32 * step_x;
        let total_width = (inner + BAR_ROOM * if of_errors.is_some() { 2.0 } else { 1.0 }).max(560.0);
        let notes = self.notes().into_iter();
        let notes: Vec<String> =
            notes.flat_map(|note| font::wrap(&note, TEXT, total_width - 32.0, MOST_LINES)).collect();
        let bar = height.clamp(110.0, 300.0).floor();
        // Below the bar there is room for its notes.
        let inside = (down as f32 * step_y).max(TITLE + bar + 56.0);
        let head = font::wrap(&self.headline(shows), HEAD, total_width - 32.0, MOST_LINES);
        let what = font::wrap(&self.what, TEXT, total_width - 32.0, MOST_LINES);
        let first_of_what = 24.0 + LINE_OF_HEAD * head.len().saturating_sub(1) as f32 + 18.0;
        let heading = first_of_what + LINE * what.len().saturating_sub(1) as f32 + HEADING - 42.0;
        let total_height = heading + inside + LINE * notes.len() as f32 + 10.0;
        let cells = panels.len() * shown_rows * shown_cols;
        let mut scene =
            Scene::new(total_width, total_height, cells, &format!("{}: {}", self.what, self.headline(|_| true)));
        for (i, line) in head.iter().enumerate() {
            scene.text(16.0, 24.0 + LINE_OF_HEAD * i as f32, HEAD, Anchor::Start, BLACK, line);
        }
        for (i, line) in what.iter().enumerate() {
            scene.text(16.0, first_of_what + LINE * i as f32, TEXT, Anchor::Start, BLACK, line);
        }
        for (n, (panel, table)) in panels.iter().zip(&tables).enumerate() {
            let x = left + (n % across) as f32 * step_x;
            let y = heading + (n / across) as f32 * step_y + TITLE;
            scene.text(x, y - 7.0, TEXT, Anchor::Start, BLACK, &panel.title);
            let colours: Array2<Rgb> = table.mapv(|value| panel.scale.colour(value));
            let whole = table.dim() == (rows, cols);
            scene.grid((x, y), cell, &colours, |row, col| {
                let label = |labels: &[String], i: usize| labels.get(i).cloned().unwrap_or_default();
                let Some(first) = panel.first.filter(|_| whole) else { return number(table[[row, col]]) };
                let at = first + row * cols + col;
                let place = [label(&row_labels, row), label(&col_labels, col)].join(" ");
                placed(place.trim(), &self.cell(at))
            });
            if let Some(decimals) = decimals_that_fit(table, cell) {
                for ((row, col), value) in table.indexed_iter() {
                    let at = (x + (col as f32 + 0.5) * cell.0, y + (row as f32 + 0.5) * cell.1);
                    scene.text_in_cell(at, IN_CELL, colours[[row, col]].ink(), &with_decimals(*value, decimals));
                }
            }
            scene.frame(x, y, width, height, 0.8);
            let per_row = height / rows as f32;
            if n % across == 0 {
                for (i, label) in row_labels.iter().enumerate().step_by(every(12.0, per_row)) {
                    let at = y + (i as f32 + 0.5) * per_row;
                    scene.text(x - 6.0, at + 4.0, TEXT, Anchor::End, BLACK, label);
                }
                if let Some(axis) = self.row_axis() {
                    scene.text_upwards(14.0, y + height / 2.0, TEXT, Anchor::Middle, &axis.name);
                }
            }
            let per_col = width / cols as f32;
            for (i, label) in col_labels.iter().enumerate().step_by(every(12.0, per_col)) {
                let at = x + (i as f32 + 0.5) * per_col;
                scene.text_upwards(at + 4.0, y + height + 6.0, TEXT, Anchor::End, label);
            }
            if let Some(axis) = self.axes.last() {
                scene.text(x + width / 2.0, y + height + below - 12.0, TEXT, Anchor::Middle, BLACK, &axis.name);
            }
        }
        scene.colour_bar((inner, heading + TITLE), bar, &scale, &self.name);
        if let Some(scale) = &of_errors {
            scene.colour_bar((inner + BAR_ROOM, heading + TITLE), bar, scale, "Standard error");
        }
        for (i, note) in notes.iter().enumerate() {
            let at = total_height - 8.0 - LINE * (notes.len() - 1 - i) as f32;
            scene.text(16.0, at, TEXT, Anchor::Start, BLACK, note);
        }
        scene
    }

    fn print(&self, terminal: &Terminal, out: &mut dyn Write) -> std::io::Result<()> {
        let (scale, _) = self.scales();
        writeln!(out, "{}", terminal::column(&self.headline(|_| true), terminal.width).trim_end())?;
        writeln!(out, "{}", self.what)?;
        let row_labels: Vec<String> = self
            .row_axis()
            .map_or_else(|| vec![String::new()], |axis| axis.labels.iter().map(|label| label.text(|_| true)).collect());
        let row_name = self.row_axis().map_or("", |axis| axis.name.as_str());
        let wide = terminal::widest(&row_labels).max(row_name.len());
        let room = terminal.width.saturating_sub(wide + 1).max(1);
        for panel in self.panels(&scale, None) {
            if !panel.title.is_empty() {
                writeln!(out, "\n{}", panel.title)?;
            }
            let table: ArrayView2<'_, f32> = panel.values.view();
            writeln!(out, "{row_name}")?;
            for (label, row) in row_labels.iter().zip(table.rows()) {
                writeln!(out, "{} {}", terminal::column(label, wide), terminal.row(&row.to_vec(), &scale, room))?;
            }
        }
        if let Some(axis) = self.axes.last() {
            let labels: Vec<String> = axis.labels.iter().map(|label| label.text(|_| true)).collect();
            let is_plain = axis.labels.iter().all(|label| matches!(label, Label::Plain(_)));
            if is_plain {
                writeln!(out, "columns: {} 0 to {}", axis.name, labels.len().saturating_sub(1))?
            } else {
                writeln!(out, "columns: {}", labels.join(" | "))?
            }
        }
        writeln!(out, "{}", terminal.legend(&scale, &self.name))?;
        // The largest values, as numbers.
        let mut order: Vec<usize> = (0..self.shown.len()).collect();
        order.sort_by(|a, b| self.shown[*b].abs().total_cmp(&self.shown[*a].abs()));
        for at in order.into_iter().take(5) {
            let mut rest = at;
            let mut place: Vec<String> = self
                .axes
                .iter()
                .rev()
                .map(|axis| {
                    let label = axis.labels[rest % axis.labels.len()].text(|_| true);
                    rest /= axis.labels.len();
                    format!("{} {label}", axis.name)
                })
                .collect();
            place.reverse();
            writeln!(out, "{}", placed(&place.join(", "), &self.cell(at)))?;
        }
        self.notes().iter().try_for_each(|note| writeln!(out, "{note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn numbers_stand_in_cells_where_they_fit() {
        let written = |table: &Array2<f32>, cell: (f32, f32)| {
            let decimals = decimals_that_fit(table, cell)?;
            Some(table.iter().map(|value| with_decimals(*value, decimals)).collect::<Vec<_>>())
        };
        let table = array![[1.034, -0.251], [-0.001, f32::NAN]];
        assert_eq!(written(&table, CELL).unwrap(), ["1.03", "-0.25", "0.00", "NaN"]);
        assert_eq!(written(&array![[0.0123, -0.5]], CELL).unwrap(), ["0.012", "-0.500"]);
        assert_eq!(written(&array![[12345.6, -3.0]], CELL).unwrap(), ["12346", "-3"]);
        assert_eq!(written(&array![[0.0, 0.0]], CELL).unwrap(), ["0.00", "0.00"]);
        // "-0.25" takes five columns of 5.4 pixels.
        assert!(written(&table, (31.2, 12.0)).is_some() && written(&table, (31.0, 12.0)).is_none());
        assert!(written(&table, (44.0, 11.0)).is_none());
        assert!(written(&array![[1e-4, -2e-5]], CELL).is_none(), "too small for decimals");
    }
}
