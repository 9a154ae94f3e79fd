//! Lists of layers and heads: `3`, `-1`, `1,3`, `1..3`, `all`. Owns what such a list chooses, and its errors. Read next: `run.rs`.

use super::Failure;
use crate::indices::{Item, from_end};
use std::ops::Range;

/// One part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// `all`.
    All,
    /// One index or a range.
    Item(Item),
}

/// The parts of an option's values. `option` is its name without dashes.
///
/// # Errors
/// [`Failure::Usage`] for a part that is neither a number, a range nor `all`.
pub(super) fn parts(option: &str, written: &[String]) -> Result<Vec<Part>, Failure> {
    let part = |part: &str| match part {
        "all" => Ok(Part::All),
        part => Item::parse(part).map(Part::Item).ok_or_else(|| {
            Failure::Usage(format!("--{option}: {part:?} is neither a whole number, a range a..b, nor `all`"))
        }),
    };
    written.iter().flat_map(|list| list.split(',')).map(|text| part(text.trim())).collect()
}

/// The indices of an item within `0..n`. `option` is the option's name without dashes.
///
/// # Errors
/// [`Failure::Usage`] for an index that does not exist, and for a range that is empty or exceeds `0..n`.
pub(super) fn existing(option: &str, item: Item, n: usize) -> Result<Range<usize>, Failure> {
    if let Item::Index(number) = item {
        return index(option, number, n).map(|index| index..index + 1);
    }
    let Range { start, end } = item.places(n);
    if start < 0 || start >= end || end > n as i64 {
        return Err(Failure::Usage(format!(
            "--{option}: the range {item} is empty or exceeds this model's {option}s, 0 to {}; a..b ends before b",
            n - 1
        )));
    }
    Ok(start as usize..end as usize)
}

/// An index within `0..n`; a negative one counts from the end.
///
/// # Errors
/// [`Failure::Usage`] for an index that does not exist.
pub(super) fn index(option: &str, number: i64, n: usize) -> Result<usize, Failure> {
    usize::try_from(from_end(number, n)).ok().filter(|index| *index < n).ok_or_else(|| {
        Failure::Usage(format!(
            "{option} {number} does not exist: this model has {option}s 0 to {}, and -1 is the last",
            n - 1
        ))
    })
}

/// The chosen indices within `0..n`, ascending, without duplicates; all indices if `written` is empty. `option` is the
/// option's name without dashes, for messages.
///
/// # Errors
/// [`Failure::Usage`] as [`parts`] and [`existing`].
pub(super) fn chosen(option: &str, written: &[String], n: usize) -> Result<Vec<usize>, Failure> {
    let mut chosen = Vec::new();
    for part in parts(option, written)? {
        match part {
            Part::All => chosen.extend(0..n),
            Part::Item(item) => chosen.extend(existing(option, item, n)?),
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
