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
    /// A line below the panels.
    note: Option<String>,
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
const TITLE: f32 = 22.0;

impl SweepPicture {
    /// A picture of the values `shown` (row-major over `axes`), with the metric's values, where they are others, and the
    /// statistics over several pairs. `text` has the tokens of the clean and the corrupt text if there is only one pair.
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
            note: None,
        }
    }

    /// The same picture with a line of text below the panels.
    pub fn with_note(self, note: String) -> SweepPicture {
        SweepPicture { note: Some(note), ..self }
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

    /// The note below the panels: what the marks mean.
    fn notes(&self) -> Vec<String> {
        let differ = self.text.as_ref().is_some_and(|(a, b)| a.iter().zip(b).any(|(a, b)| a.id != b.id));
        let marks = differ.then(|| "* clean / corrupt token where the texts differ".to_string());
        self.note.iter().cloned().chain(marks).collect()
    }

    /// The description of a cell.
    fn cell(&self, at: usize) -> String {
        let shown = number(self.shown[at] as f32);
        let Some(values) = &self.values else { return shown };
        let error = self.errors.as_ref().map_or(String::new(), |errors| format!(" ± {}", number(errors[at] as f32)));
        let p = self.p.as_ref().map_or(String::new(), |p| format!(", p = {}", number(p[at] as f32)));
        format!("{shown} (metric {}{error}{p})", number(values[at] as f32))
    }

    fn row_axis(&self) -> Option<&AxisLabels> {
        self.axes.len().checked_sub(2).map(|n| &self.axes[n])
    }
}

/// A cell's place, followed by its number. A path without axes has no place.
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
        let notes = self.notes();
        let bar = height.clamp(110.0, 300.0).floor();
        // Below the bar there is room for its notes.
        let inside = (down as f32 * step_y).max(TITLE + bar + 56.0);
        let total_height = HEADING + inside + 16.0 * notes.len() as f32 + 10.0;
        let cells = panels.len() * shown_rows * shown_cols;
        let mut scene =
            Scene::new(total_width, total_height, cells, &format!("{}: {}", self.what, self.headline(|_| true)));
        let head = font::fit(&self.headline(shows), 15.0, total_width - 50.0);
        scene.text(16.0, 24.0, 15.0, Anchor::Start, BLACK, &head);
        scene.text(16.0, 42.0, TEXT, Anchor::Start, BLACK, &font::fit(&self.what, TEXT, total_width - 32.0));
        for (n, (panel, table)) in panels.iter().zip(&tables).enumerate() {
            let x = left + (n % across) as f32 * step_x;
            let y = HEADING + (n / across) as f32 * step_y + TITLE;
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
        scene.colour_bar((inner, HEADING + TITLE), bar, &scale, &self.name);
        if let Some(scale) = &of_errors {
            scene.colour_bar((inner + BAR_ROOM, HEADING + TITLE), bar, scale, "Standard error");
        }
        for (i, note) in notes.iter().enumerate() {
            let at = total_height - 8.0 - 16.0 * (notes.len() - 1 - i) as f32;
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
