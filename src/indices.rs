//! Indices and ranges as they are written everywhere: `3`, `-1`, `2..5`, `..-1`. Owns the rule that negative numbers count from the end.

use std::ops::Range;

/// One index or range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// One index; a negative one counts from the end.
    Index(i64),
    /// `a..b` without `b`; either end may be left out or negative.
    Span(Option<i64>, Option<i64>),
}

/// The place that a number means among `n`. It may lie outside `0..n`.
pub(crate) fn from_end(number: i64, n: usize) -> i64 {
    if number < 0 { number.saturating_add(n as i64) } else { number }
}

impl Item {
    /// Parses an index or a range. `None` for anything else.
    pub(crate) fn parse(written: &str) -> Option<Item> {
        let number = |text: &str| text.trim().parse::<i64>().ok();
        let end = |text: &str| if text.trim().is_empty() { Some(None) } else { number(text).map(Some) };
        match written.split_once("..") {
            Some((from, to)) => Some(Item::Span(end(from)?, end(to)?)),
            None => number(written).map(Item::Index),
        }
    }

    /// The places among `n`, with negative numbers counted from the end. They may lie outside `0..n`, and a range may be empty.
    pub(crate) fn places(self, n: usize) -> Range<i64> {
        match self {
            Item::Index(i) => from_end(i, n)..from_end(i, n).saturating_add(1),
            Item::Span(from, to) => from_end(from.unwrap_or(0), n)..to.map_or(n as i64, |to| from_end(to, n)),
        }
    }

    /// The places that exist among `n`.
    pub(crate) fn existing(self, n: usize) -> Range<usize> {
        let Range { start, end } = self.places(n);
        let within = |place: i64| place.clamp(0, n as i64) as usize;
        within(start)..within(end)
    }

    /// The item without negative numbers. Of an index before the first it is `None`.
    pub(crate) fn non_negative(self, n: usize) -> Option<Item> {
        match self {
            Item::Index(i) => Some(from_end(i, n)).filter(|i| *i >= 0).map(Item::Index),
            Item::Span(from, to) => {
                let counted = |end: Option<i64>| end.map(|end| from_end(end, n).max(0));
                Some(Item::Span(counted(from), counted(to)))
            }
        }
    }
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |end: Option<i64>| end.map_or(String::new(), |end| end.to_string());
        match *self {
            Item::Index(i) => write!(f, "{i}"),
            Item::Span(from, to) => write!(f, "{}..{}", shown(from), shown(to)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_and_what_it_means() {
        for (written, among, existing) in [
            ("3", 3..4, 3..4),
            ("-1", 5..6, 5..6),
            ("9", 9..10, 6..6),
            ("-9", -3..-2, 0..0),
            ("2..5", 2..5, 2..5),
            ("..-1", 0..5, 0..5),
            ("-2..", 4..6, 4..6),
            ("..", 0..6, 0..6),
            ("-9..9", -3..9, 0..6),
        ] {
            let item = Item::parse(written).unwrap();
            assert_eq!((item.places(6), item.existing(6)), (among, existing), "{written}");
            assert_eq!(item.to_string(), written);
        }
        for wrong in ["", "a", "1.5", "1..b", "1 2"] {
            assert_eq!(Item::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Item::Index(-7).non_negative(6), None);
        assert_eq!(Item::Span(Some(-9), Some(-1)).non_negative(6), Some(Item::Span(Some(0), Some(5))));
    }
}
