//! Pictures on a terminal: coloured blocks that fit the window, in the colours that the terminal supports. For pipes
//! and with NO_COLOR, plain characters show sign and size. Uses no activations. Read next: `colour.rs`.

use super::colour::{Rgb, Scale};
use super::strongest_of;
use crate::model::tokenizer::Token;
use std::io::IsTerminal;
use unicode_width::UnicodeWidthStr;

/// Which colours the terminal supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// Characters only.
    None,
    /// xterm's 256 colours.
    Ansi256,
    /// 24-bit colours.
    True,
}

/// Where a picture is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Columns.
    pub width: usize,
    /// Colours.
    pub colours: Colours,
}

/// The width without a window.
const NO_WINDOW: usize = 100;
/// The smallest width of a layout.
const NARROW: usize = 40;

impl Terminal {
    /// Describes stdout. Plain if it is not a terminal with colours, or with NO_COLOR; CLICOLOR_FORCE colours pipes
    /// too.
    pub fn of_stdout() -> Terminal {
        let stdout = std::io::stdout();
        let window = terminal_size::terminal_size_of(&stdout).map(|(width, _)| usize::from(width.0));
        let wanted = anstyle_query::clicolor_force() || stdout.is_terminal() && anstyle_query::term_supports_color();
        let understood = anstyle_query::windows::enable_ansi_colors().unwrap_or(true);
        let colours = match () {
            () if anstyle_query::no_color() || !wanted || !understood => Colours::None,
            () if anstyle_query::truecolor() || cfg!(windows) => Colours::True,
            () => Colours::Ansi256,
        };
        Terminal { width: window.unwrap_or(NO_WINDOW).max(NARROW), colours }
    }

    /// Text on a background; plain text without colours.
    pub fn on(&self, background: Rgb, text: &str) -> String {
        let mut line = Line::new(self.colours);
        line.put(Some(background.ink()), Some(background), text);
        line.end()
    }

    /// The number of cells of a row of `n` values.
    pub fn cells(&self, n: usize, scale: &Scale, room: usize) -> usize {
        let most = match (self.colours, scale.signed()) {
            (Colours::None, true) => room / 2,
            (Colours::None, false) => room,
            _ => 2 * room,
        };
        super::cells(n, most)
    }

    /// One row of values in at most `room` columns: several columns per value, or two values per column. If that is too
    /// wide, neighbours share a cell, which shows the value with the largest magnitude. -inf means no value.
    pub fn row(&self, values: &[f32], scale: &Scale, room: usize) -> String {
        let cells = pooled(values, self.cells(values.len(), scale, room));
        match self.colours {
            Colours::None => cells.iter().map(|value| plain(*value, scale)).collect(),
            _ if values.len() <= room => {
                let mut line = Line::new(self.colours);
                let wide = " ".repeat((room / values.len().max(1)).min(WIDEST_CELL));
                values.iter().for_each(|value| line.put(None, shade(*value, scale), &wide));
                line.end()
            }
            _ => {
                let mut line = Line::new(self.colours);
                for pair in cells.chunks(2) {
                    line.halves(shade(pair[0], scale), pair.get(1).and_then(|value| shade(*value, scale)), "▌");
                }
                line.end()
            }
        }
    }

    /// Two rows of values as one line with one column per value: the upper half of a column shows the first row, the
    /// lower half the second. Cells are nearly square. Without colours, the two rows are two lines.
    pub fn two_rows(&self, upper: &[f32], lower: Option<&[f32]>, scale: &Scale) -> Vec<String> {
        if self.colours == Colours::None {
            let plain_row = |row: &[f32]| row.iter().map(|value| plain(*value, scale)).collect();
            return std::iter::once(upper).chain(lower).map(plain_row).collect();
        }
        let mut line = Line::new(self.colours);
        for (i, value) in upper.iter().enumerate() {
            line.halves(shade(*value, scale), lower.and_then(|row| shade(row[i], scale)), "▀");
        }
        vec![line.end()]
    }

    /// The scale in one line: its colours with their numbers, or the meaning of the characters.
    pub fn legend(&self, scale: &Scale, name: &str) -> String {
        use super::colour::number;
        let notes: String = scale.notes().iter().map(|note| format!(", {note}")).collect();
        let lowest = if scale.signed() { -scale.limit } else { 0.0 };
        let (low, high) = (number(lowest), number(scale.limit));
        if self.colours == Colours::None {
            let meaning = if scale.signed() { "`+7` is seven tenths of" } else { "`7` is seven tenths of" };
            return format!("{name}: {meaning} {high} or a little more, `.` less than one tenth{notes}");
        }
        let lowest = if scale.signed() { -1.0f32 } else { 0.0 };
        let mut line = Line::new(self.colours);
        for i in 0..24 {
            let at = |n: usize| Some(scale.colour_at(lowest + (1.0 - lowest) * n as f32 / 47.0));
            line.halves(at(2 * i), at(2 * i + 1), "▌");
        }
        format!("{low} {} {high}  {name}{notes}", line.end())
    }
}

/// The most columns per value.
const WIDEST_CELL: usize = 4;

fn pooled(values: &[f32], most: usize) -> Vec<f32> {
    let n = values.len();
    if n <= most {
        return values.to_vec();
    }
    (0..most).map(|i| strongest_of(values[i * n / most..(i + 1) * n / most].iter().copied())).collect()
}

fn shade(value: f32, scale: &Scale) -> Option<Rgb> {
    (value != f32::NEG_INFINITY).then(|| scale.colour(value))
}

/// A value in characters: `+7` is more than seven tenths of the scale's limit.
fn plain(value: f32, scale: &Scale) -> String {
    let place = scale.place(value);
    let tenths = ((place.abs() * 10.0) as usize).min(9);
    let digit = match tenths {
        _ if value == f32::NEG_INFINITY => ' ',
        _ if place.is_nan() => '?',
        0 => '.',
        _ => char::from(b'0' + tenths as u8),
    };
    let sign = match (scale.signed(), digit.is_ascii_digit()) {
        (false, _) => return digit.into(),
        (true, false) => ' ',
        (true, true) if place < 0.0 => '-',
        (true, true) => '+',
    };
    format!("{sign}{digit}")
}

/// One line of output. It emits a colour code only when the colour changes.
struct Line {
    colours: Colours,
    text: String,
    /// The current foreground and background.
    now: [Option<Rgb>; 2],
}

impl Line {
    fn new(colours: Colours) -> Line {
        Line { colours, text: String::new(), now: [None; 2] }
    }

    fn put(&mut self, fore: Option<Rgb>, back: Option<Rgb>, text: &str) {
        if self.colours != Colours::None {
            for (n, (wanted, base)) in [(fore, 38), (back, 48)].into_iter().enumerate() {
                if self.now[n] == wanted {
                    continue;
                }
                self.now[n] = wanted;
                self.text += &match (wanted, self.colours) {
                    (None, _) => format!("\x1b[{}m", base + 1),
                    (Some(Rgb(r, g, b)), Colours::True) => format!("\x1b[{base};2;{r};{g};{b}m"),
                    (Some(colour), _) => format!("\x1b[{base};5;{}m", nearest_256(colour)),
                };
            }
        }
        self.text += text;
    }

    /// A column of two colours: `block` in the first, the background in the second.
    fn halves(&mut self, first: Option<Rgb>, second: Option<Rgb>, block: &str) {
        match (first, second) {
            (None, None) => self.put(None, None, " "),
            (None, second) => self.put(second, None, if block == "▀" { "▄" } else { "▐" }),
            (first, second) => self.put(first, second, block),
        }
    }

    fn end(mut self) -> String {
        if self.now != [None; 2] {
            self.text += "\x1b[0m";
        }
        self.text
    }
}

/// The nearest of xterm's 256 colours: a cube of 6 x 6 x 6 from index 16, 24 greys from index 232.
fn nearest_256(Rgb(r, g, b): Rgb) -> u8 {
    const STEPS: [i32; 6] = [0, 95, 135, 175, 215, 255];
    let wanted = [r, g, b].map(i32::from);
    let apart = |colour: [i32; 3]| (0..3).map(|i| (colour[i] - wanted[i]).pow(2)).sum::<i32>();
    let step = |channel: i32| (0..6).min_by_key(|i| (STEPS[*i] - channel).abs()).unwrap_or(0);
    let cube = wanted.map(step);
    let mean = wanted.iter().sum::<i32>() / 3;
    let grey = ((mean - 3) / 10).clamp(0, 23);
    if apart([8 + 10 * grey; 3]) < apart(cube.map(|i| STEPS[i])) {
        232 + grey as u8
    } else {
        (16 + 36 * cube[0] + 6 * cube[1] + cube[2]) as u8
    }
}

/// A token's text for a terminal, which has its own fonts.
pub fn label(token: &Token) -> String {
    token.mark(|_| true)
}

/// Columns of the widest of some labels.
pub fn widest(labels: &[String]) -> usize {
    labels.iter().map(|label| label.width()).max().unwrap_or(0)
}

/// A text in exactly this many columns, truncated or padded. Right-to-left text is isolated (Unicode UAX #9), so that
/// terminals that reorder text do not move its neighbours.
pub fn column(text: &str, columns: usize) -> String {
    let cut = super::font::cut(text, columns);
    let fill = " ".repeat(columns.saturating_sub(cut.width()));
    let from_right = |c: char| {
        use unicode_bidi::BidiClass::{AL, R};
        matches!(unicode_bidi::bidi_class(c), R | AL)
    };
    if cut.chars().any(from_right) { format!("\u{2068}{cut}\u{2069}{fill}") } else { cut + &fill }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Terminal = Terminal { width: 80, colours: Colours::None };

    #[test]
    fn plain_rows_show_sign_and_size() {
        let scale = Scale::linear([-10.0].into_iter());
        let values = [10.0, -10.0, 3.4, -3.4, 0.4, -0.4, f32::NAN, f32::NEG_INFINITY];
        assert_eq!(PLAIN.row(&values, &scale, 80), "+9-9+3-3 . . ?  ");
        assert_eq!(PLAIN.row(&[0.0, 0.55, 1.0, 0.05], &Scale::share(), 80), ".59.");
        // Two neighbours share a cell, which shows the one with the larger magnitude.
        assert_eq!(PLAIN.row(&[1.0, -5.2, 8.0, 2.0], &scale, 4), "-5+8");
    }

    #[test]
    fn coloured_rows_say_each_colour_once() {
        let terminal = Terminal { width: 80, colours: Colours::True };
        let scale = Scale::linear([1.0].into_iter());
        assert_eq!(terminal.row(&[1.0, 1.0], &scale, 2), "\x1b[48;2;103;0;31m  \x1b[0m");
        assert_eq!(terminal.row(&[1.0, -1.0], &scale, 1), "\x1b[38;2;103;0;31m\x1b[48;2;5;48;97m▌\x1b[0m");
        assert_eq!(terminal.two_rows(&[f32::NEG_INFINITY], Some(&[1.0]), &scale), ["\x1b[38;2;103;0;31m▄\x1b[0m"]);
        let few = Terminal { width: 80, colours: Colours::Ansi256 };
        assert_eq!(few.row(&[1.0], &scale, 1), "\x1b[48;5;52m \x1b[0m");
    }

    #[test]
    fn columns_are_as_wide_as_asked() {
        assert_eq!((column("cat", 5), column("category", 5)), ("cat  ".into(), "cate…".into()));
        assert_eq!(column("שלום", 5), "\u{2068}שלום\u{2069} ");
    }
}
