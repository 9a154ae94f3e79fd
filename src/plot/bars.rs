//! Named numbers as horizontal bars on both sides of zero, for attributions. Owns the layout; the caller computes the values.
//! Read next: `scene.rs`.

use super::colour::{Scale, number};
use super::scene::{Anchor, Scene, TEXT};
use super::terminal::{self, Colours, Terminal};
use super::{BLACK, HEADING, Heading, Picture, Shows, draw_heading, font, print_heading};
use ndarray::Array2;
use std::io::Write;

/// The picture.
#[derive(Clone, Debug)]
pub struct Bars {
    /// The heading.
    pub heading: Heading,
    /// Names and values, from top to bottom.
    pub bars: Vec<(String, f64)>,
    /// Lines of text below the bars.
    pub notes: Vec<String>,
}

/// Pixels: the height of a row, the height of its bar, and the width of the bars of both sides together.
const ROW: f32 = 18.0;
const BAR: f32 = 13.0;
const ACROSS: f32 = 520.0;
/// Pixels for a number.
const NUMBER: f32 = 76.0;
/// Characters of a name that are shown.
const LONGEST_NAME: usize = 48;

impl Bars {
    /// The pixels that bars need to the left and to the right of zero.
    fn ends(&self) -> (f64, f64) {
        let finite = || self.bars.iter().map(|(_, value)| *value).filter(|value| value.is_finite());
        (finite().fold(0.0, f64::min), finite().fold(0.0, f64::max))
    }

    fn scale(&self) -> Scale {
        Scale::linear(self.bars.iter().map(|(_, value)| *value as f32))
    }
}

impl Picture for Bars {
    fn scene(&self, shows: Shows) -> Scene {
        let names: Vec<String> = self.bars.iter().map(|(name, _)| font::cut(name, LONGEST_NAME)).collect();
        let left = names.iter().map(|name| font::width(name, TEXT)).fold(60.0, f32::max).ceil() + 22.0;
        let (low, high) = self.ends();
        let per_unit = f64::from(ACROSS) / (high - low).max(f64::MIN_POSITIVE);
        let zero = left + NUMBER + (-low * per_unit) as f32;
        let width = left + ACROSS + 2.0 * NUMBER + 16.0;
        let rows = self.bars.len() as f32 * ROW;
        let height = HEADING + rows + 20.0 + 16.0 * self.notes.len() as f32 + 8.0;
        let mut scene = Scene::new(width, height, self.bars.len(), &self.heading.title());
        draw_heading(&mut scene, &self.heading, "", width, shows);
        let scale = self.scale();
        for (row, ((_, value), name)) in self.bars.iter().zip(&names).enumerate() {
            let top = HEADING + row as f32 * ROW;
            let baseline = top + ROW / 2.0 + 4.0;
            scene.text(left - 8.0, baseline, TEXT, Anchor::End, BLACK, name);
            let long = if value.is_finite() { (value.abs() * per_unit) as f32 } else { 0.0 };
            let (from, at, anchor) = if *value < 0.0 {
                (zero - long, zero - long - 5.0, Anchor::End)
            } else {
                (zero, zero + long + 5.0, Anchor::Start)
            };
            let colour = Array2::from_elem((1, 1), scale.colour(*value as f32));
            scene.grid((from, top + (ROW - BAR) / 2.0), (long, BAR), &colour, |_, _| format!("{name}: {value}"));
            scene.text(at, baseline, TEXT, anchor, BLACK, &number(*value as f32));
        }
        scene.line((zero, HEADING), (zero, HEADING + rows));
        for (i, note) in self.notes.iter().enumerate() {
            scene.text(16.0, HEADING + rows + 20.0 + 16.0 * i as f32, TEXT, Anchor::Start, BLACK, note);
        }
        scene
    }

    fn print(&self, terminal: &Terminal, out: &mut dyn Write) -> std::io::Result<()> {
        print_heading(&self.heading, terminal, out)?;
        let names: Vec<String> = self.bars.iter().map(|(name, _)| font::cut(name, LONGEST_NAME)).collect();
        let wide = terminal::widest(&names).min(terminal.width / 2);
        let (low, high) = self.ends();
        let room = terminal.width.saturating_sub(wide + 14).max(8);
        let per_unit = room as f64 / (high - low).max(f64::MIN_POSITIVE);
        let before = (-low * per_unit).round() as usize;
        let scale = self.scale();
        for ((_, value), name) in self.bars.iter().zip(&names) {
            let long = if value.is_finite() { (value.abs() * per_unit).round() as usize } else { 0 };
            let bar = match terminal.colours {
                Colours::None => (if *value < 0.0 { "-" } else { "+" }).repeat(long),
                _ if long == 0 => String::new(),
                _ => terminal.on(scale.colour(*value as f32), &" ".repeat(long)),
            };
            let blank = if *value < 0.0 { before.saturating_sub(long) } else { before };
            let line = format!("{} {value:>+12.6} {}{bar}", terminal::column(name, wide), " ".repeat(blank));
            writeln!(out, "{}", line.trim_end())?;
        }
        self.notes.iter().try_for_each(|note| writeln!(out, "{note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen red with negative bars to the right of zero.
    #[test]
    fn bars_to_both_sides() {
        let heading = Heading { text: Vec::new(), what: "x".into() };
        let bars = vec![("a".to_string(), 2.0), ("b".to_string(), -1.0), ("c".to_string(), 0.0)];
        let picture = Bars { heading, bars, notes: vec!["note".into()] };
        let mut out = Vec::new();
        picture.print(&Terminal { width: 45, colours: Colours::None }, &mut out).unwrap();
        let lines: Vec<String> = String::from_utf8(out).unwrap().lines().map(String::from).collect();
        let plus = format!("a    +2.000000 {}{}", " ".repeat(10), "+".repeat(20));
        assert_eq!(
            lines[2..],
            [plus, format!("b    -1.000000 {}", "-".repeat(10)), "c    +0.000000".into(), "note".into()]
        );
        let svg = picture.scene(|_| true).svg().unwrap();
        assert!(svg.contains("<title>a: 2</title>") && svg.contains("<title>b: -1</title>"), "{svg}");
    }
}
