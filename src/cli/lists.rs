//! Parses lists of layers and heads: `3`, `-1`, `1,3`, `1..3`, `all`. Owns how indices are written in all commands:
//! negative numbers count from the end. Read next: `run.rs`.

use super::Failure;
use std::ops::Range;

/// One part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// `all`.
    All,
    /// One index; a negative one counts from the end.
    One(i64),
    /// `a..b`, which does not contain `b`. Either end may be absent or negative.
    Span(Option<i64>, Option<i64>),
}

/// The parts of an option's values. `option` is its name without dashes.
///
/// # Errors
/// [`Failure::Usage`] for a part that is neither a number, a range nor `all`.
pub(super) fn parts(option: &str, written: &[String]) -> Result<Vec<Part>, Failure> {
    let part = |part: &str| {
        let wrong =
            || Failure::Usage(format!("--{option}: {part:?} is neither a whole number, a range a..b, nor `all`"));
        if part == "all" {
            return Ok(Part::All);
        }
        let number = |text: &str| text.parse().map_err(|_| wrong());
        match part.split_once("..") {
            None => Ok(Part::One(number(part)?)),
            Some((from, to)) => {
                let end = |text: &str| if text.is_empty() { Ok(None) } else { number(text).map(Some) };
                Ok(Part::Span(end(from)?, end(to)?))
            }
        }
    };
    written.iter().flat_map(|list| list.split(',')).map(|text| part(text.trim())).collect()
}

/// The indices of a span within `0..n`.
///
/// # Errors
/// [`Failure::Usage`] if the span is empty or not within `0..n`.
pub(super) fn span(option: &str, from: Option<i64>, to: Option<i64>, n: usize) -> Result<Range<usize>, Failure> {
    let of_end = |end: i64| if end < 0 { end.saturating_add(n as i64) } else { end };
    let (start, end) = (of_end(from.unwrap_or(0)), of_end(to.unwrap_or(n as i64)));
    if start < 0 || start >= end || end > n as i64 {
        let shown = |end: Option<i64>| end.map_or(String::new(), |end| end.to_string());
        return Err(Failure::Usage(format!(
            "--{option}: the range {}..{} is empty or exceeds this model's {option}s, 0 to {}; a..b ends before b",
            shown(from),
            shown(to),
            n - 1
        )));
    }
    Ok(start as usize..end as usize)
}

/// The chosen indices within `0..n`, ascending, without duplicates; all indices if `written` is empty. `option` is the
/// option's name without dashes, for messages.
///
/// # Errors
/// [`Failure::Usage`] as [`parts`] and [`span`], and for an index that does not exist.
pub(super) fn chosen(option: &str, written: &[String], n: usize) -> Result<Vec<usize>, Failure> {
    let mut chosen = Vec::new();
    for part in parts(option, written)? {
        match part {
            Part::All => chosen.extend(0..n),
            Part::Span(from, to) => chosen.extend(span(option, from, to, n)?),
            Part::One(number) => {
                let index = if number < 0 { number.saturating_add(n as i64) } else { number };
                let index = usize::try_from(index).ok().filter(|index| *index < n).ok_or_else(|| {
                    Failure::Usage(format!(
                        "{option} {number} does not exist: this model has {option}s 0 to {}, and -1 is the last",
                        n - 1
                    ))
                })?;
                chosen.push(index);
            }
        }
    }
    if written.is_empty() {
        chosen.extend(0..n);
    }
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let of = |written: &[&str]| {
            let written: Vec<String> = written.iter().map(|text| text.to_string()).collect();
            chosen("layer", &written, 6).ok()
        };
        assert_eq!(of(&[]), Some(vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(of(&["1,3"]), Some(vec![1, 3]));
        assert_eq!(of(&["1..3"]), Some(vec![1, 2]));
        assert_eq!(of(&["3, 1", "-1"]), Some(vec![1, 3, 5]));
        assert_eq!(of(&["..2,-2.."]), Some(vec![0, 1, 4, 5]));
        assert_eq!(of(&["all"]), of(&[]));
        for wrong in ["6", "-7", "4..9", "3..3", "4..2", "-9..2", "", "1,", "a", "1..b", "1-3", "9223372036854775808"] {
            assert_eq!(of(&[wrong]), None, "{wrong}");
        }
    }
}
