//! Compares an output of a command with that of an earlier run, for `actscope run --check`. Owns which numbers share a scale, and how
//! much they may differ. In JSON and CSV words and whole numbers must be equal, and other numbers may differ by a share of the largest of
//! their array. Of files of arrays, those of floating-point numbers are compared in this way. Read next: `experiment.rs`, which runs
//! the commands.

use crate::output::{self, arrays};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// How much the numbers of two runs may differ, as a share of the largest number of their array. Devices sum in
/// different orders, so they round differently.
const POLICY: f64 = 2e-5;

/// Keys of JSON objects that describe the run, and may differ.
const ABOUT: [&str; 2] = ["device", "actscope_version"];

/// Compares two output files. Returns how near their numbers are.
///
/// # Errors
/// A sentence that says how they differ, or why they cannot be compared.
pub(super) fn compare(before: &Path, now: &Path) -> Result<String, String> {
    let mut pairs = Pairs::default();
    let read = |file: &Path| std::fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()));
    match output::extension(before).as_str() {
        "npz" | "safetensors" | "npy" => pairs.arrays(before, now)?,
        "json" => pairs.json(&read(before)?, &read(now)?)?,
        "jsonl" => pairs.json(&list(&read(before)?), &list(&read(now)?))?,
        "csv" => pairs.csv(&read(before)?, &read(now)?)?,
        _ => return Err("its bytes differ; the same device and version write the same picture or page".into()),
    }
    pairs.judge()
}

/// The lines of a JSONL file as one JSON list.
fn list(lines: &str) -> String {
    format!("[{}]", lines.lines().collect::<Vec<_>>().join(","))
}

/// Numbers of the earlier and of the later output, by the array that they are in.
#[derive(Default)]
struct Pairs(BTreeMap<String, Vec<(f64, f64)>>);

impl Pairs {
    fn arrays(&mut self, before: &Path, now: &Path) -> Result<(), String> {
        let (a, b) = (arrays::read_all(before)?, arrays::read_all(now)?);
        let shapes = |arrays: &[(String, ndarray::ArrayD<f32>)]| -> Vec<(String, Vec<usize>)> {
            arrays.iter().map(|(name, array)| (name.clone(), array.shape().to_vec())).collect()
        };
        if shapes(&a) != shapes(&b) {
            return Err("its arrays have other names or shapes".into());
        }
        for ((name, a), (_, b)) in a.into_iter().zip(&b) {
            let pairs = a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
            self.0.insert(name, pairs.collect());
        }
        Ok(())
    }

    fn json(&mut self, before: &str, now: &str) -> Result<(), String> {
        let of = |text: &str| serde_json::from_str(text).map_err(|e| format!("it is not valid JSON: {e}"));
        self.values(&Place::default(), &of(before)?, &of(now)?)
    }

    fn values(&mut self, place: &Place, before: &Value, now: &Value) -> Result<(), String> {
        match (before, now) {
            (Value::Object(a), Value::Object(b)) => {
                if a.keys().ne(b.keys()) {
                    return Err(format!("{place} has other names"));
                }
                let mut both = a.iter().zip(b.values());
                both.try_for_each(|((name, a), b)| match (a, b) {
                    (Value::String(_), Value::String(_)) if ABOUT.contains(&name.as_str()) => Ok(()),
                    _ => self.values(&place.member(name), a, b),
                })
            }
            (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
                a.iter().zip(b).enumerate().try_for_each(|(i, (a, b))| self.values(&place.element(i), a, b))
            }
            (Value::Array(a), Value::Array(b)) => Err(format!("{place} had {} entries and has {}", a.len(), b.len())),
            (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
                let number = |n: &serde_json::Number| n.as_f64().unwrap_or(f64::NAN);
                self.0.entry(place.array.clone()).or_default().push((number(a), number(b)));
                Ok(())
            }
            (a, b) if a == b => Ok(()),
            (a, b) => Err(format!("{place} was {a} and is {b}")),
        }
    }

    /// The numbers of a column are an array.
    fn csv(&mut self, before: &str, now: &str) -> Result<(), String> {
        let (before, now) = (records(before), records(now));
        if before.len() != now.len() {
            return Err(format!("it had {} rows and has {}", before.len(), now.len()));
        }
        for (n, (a, b)) in before.into_iter().zip(now).enumerate() {
            if a.len() != b.len() {
                return Err(format!("row {} has another number of fields", n + 1));
            }
            for (column, (a, b)) in a.into_iter().zip(b).enumerate() {
                let is_whole = |field: &str| field.parse::<i64>().is_ok();
                match (a.parse(), b.parse()) {
                    (Ok(x), Ok(y)) if !(is_whole(a) && is_whole(b)) => {
                        self.0.entry(format!("column {}", column + 1)).or_default().push((x, y));
                    }
                    _ if a == b => {}
                    _ => return Err(format!("row {}, field {} was {a} and is {b}", n + 1, column + 1)),
                }
            }
        }
        Ok(())
    }

    fn judge(self) -> Result<String, String> {
        let mut worst = 0.0;
        for (array, pairs) in self.0 {
            let difference = largest_difference(&pairs);
            // NaN is a difference too.
            if difference.is_nan() || difference > POLICY {
                return Err(format!(
                    "the numbers of {array} are off by {difference:.1e} of the largest, and {POLICY:.0e} is allowed"
                ));
            }
            worst = f64::max(worst, difference);
        }
        Ok(format!("the same numbers, off by at most {worst:.1e} of the largest in their array"))
    }
}

/// Where a value stands in a JSON document.
#[derive(Default)]
struct Place {
    /// With the index of every element.
    path: String,
    /// The array that a number here belongs to: the path without indices, so that the values of one name in a list of objects are an
    /// array. Numbers of an object that is in no list are one array.
    array: String,
    in_list: bool,
}

impl Place {
    fn member(&self, name: &str) -> Place {
        let dot = if self.path.is_empty() { "" } else { "." };
        let path = format!("{}{dot}{name}", self.path);
        let array = if self.in_list { format!("{}.{name}", self.array) } else { self.path.clone() };
        Place { path, array, in_list: self.in_list }
    }

    fn element(&self, i: usize) -> Place {
        let list = if self.in_list { &self.array } else { &self.path };
        Place { path: format!("{}[{i}]", self.path), array: format!("{list}[]"), in_list: true }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.path.is_empty() { "the document" } else { &self.path })
    }
}

/// The fields of every row of CSV. Commas and line ends in quotes, as in the texts of tokens, do not separate.
fn records(text: &str) -> Vec<Vec<&str>> {
    let (mut records, mut record, mut start, mut in_quotes) = (Vec::new(), Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        in_quotes ^= c == '"';
        if !in_quotes && matches!(c, ',' | '\n') {
            record.push(&text[start..at]);
            start = at + 1;
            if c == '\n' {
                records.push(std::mem::take(&mut record));
            }
        }
    }
    if start < text.len() || !record.is_empty() {
        record.push(&text[start..]);
        records.push(record);
    }
    records
}

/// The largest difference, as a share of the largest finite number before. Two NaN, or two equal infinities, do not differ. NaN if one
/// is NaN and the other is not, or if one of two different numbers is infinite.
fn largest_difference(pairs: &[(f64, f64)]) -> f64 {
    let finite = pairs.iter().map(|(a, _)| a.abs()).filter(|a| a.is_finite());
    let largest = finite.fold(f64::MIN_POSITIVE, f64::max);
    let differing = pairs.iter().filter(|(a, b)| a != b && !(a.is_nan() && b.is_nan()));
    let worse = |a: f64, b: f64| if a.is_nan() || !b.is_finite() { f64::NAN } else { a.max(b) };
    differing.map(|(a, b)| (a - b).abs() / largest).fold(0.0, worse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(before: &str, now: &str) -> Result<String, String> {
        let mut pairs = Pairs::default();
        pairs.json(before, now).and_then(|()| pairs.judge())
    }

    /// Seen red with one scale for the whole document, and with `device` compared.
    #[test]
    fn numbers_of_an_array_share_a_scale() {
        let near = r#"{"device": "a", "a": [1.0005, 200.001], "p": "NaN"}"#;
        assert!(json(r#"{"device": "b", "a": [1.0, 200.0], "p": "NaN"}"#, near).is_ok());
        assert!(json(r#"{"a": [1.0, 200.0]}"#, r#"{"a": [1.0, 200.1]}"#).is_err());
        let of =
            |value: f64, id: u32| format!(r#"{{"input_ids": [[50256, {id}]], "hooks": {{"h": [[{value}, 0.5]]}}}}"#);
        assert!(json(&of(0.25, 3), &of(0.25, 3)).is_ok());
        let e = json(&of(0.25, 3), &of(0.251, 3)).unwrap_err();
        assert!(e.contains("hooks.h[][]") && e.contains("2.0e-3"), "{e}");
        assert_eq!(json(&of(0.25, 3), &of(0.25, 4)).unwrap_err(), "input_ids[0][1] was 3 and is 4");
        // The values of one name in a list of objects share a scale; the numbers of a single object do.
        let rows = |value: f64| {
            format!(r#"{{"parts": [{{"name": "x", "logit": 9.5, "share": {value}}}], "sum": 9.5, "rest": 1e-7}}"#)
        };
        assert!(json(&rows(0.5), &rows(0.5)).is_ok());
        assert!(json(&rows(0.5), &rows(0.5001)).is_err());
        assert!(json(&rows(0.5), &rows(0.5).replace("1e-7", "3e-7")).is_ok());
    }

    #[test]
    fn words_and_shapes_must_agree() {
        assert_eq!(json(r#"{"a": [1.0]}"#, r#"{"b": [1.0]}"#).unwrap_err(), "the document has other names");
        assert_eq!(json(r#"{"a": [1.5]}"#, r#"{"a": [1.5, 2.5]}"#).unwrap_err(), "a had 1 entries and has 2");
        assert_eq!(json(r#"{"a": " cat"}"#, r#"{"a": " dog"}"#).unwrap_err(), r#"a was " cat" and is " dog""#);
        assert!(json(r#"{"a": [1.5]}"#, r#"{"a": ["NaN"]}"#).is_err());
    }

    #[test]
    fn columns_of_csv_share_a_scale() {
        let csv = |before: &str, now: &str| {
            let mut pairs = Pairs::default();
            pairs.csv(before, now).and_then(|()| pairs.judge())
        };
        let text = "id,token,value\n50256,\" a, b\",0.5\n3,c,NaN\n";
        assert!(csv(text, &text.replace("0.5", "0.500001")).is_ok());
        assert!(csv(text, &text.replace("0.5", "0.501")).unwrap_err().contains("column 3"));
        assert_eq!(csv(text, &text.replace("\n3", "\n4")).unwrap_err(), "row 3, field 1 was 3 and is 4");
        assert!(csv(text, &text.replace("NaN", "1.0")).is_err());
        assert!(csv(text, &text.replace(" b", " d")).is_err());
        // The text of a token may be the end of a line. Seen red with lines in place of rows.
        let text = "token,value\n\"\n\",0.5\n";
        assert!(csv(text, &text.replace("0.5", "0.500001")).is_ok());
        assert!(csv(text, &text.replace("0.5", "0.501")).unwrap_err().contains("column 2"));
    }

    #[test]
    fn numbers_that_are_not_finite_must_agree() {
        let (nan, infinite) = (f64::NAN, f64::INFINITY);
        assert_eq!(largest_difference(&[(nan, nan), (infinite, infinite), (2.0, 2.0)]), 0.0);
        assert!(largest_difference(&[(1.0, 1.0), (nan, 2.0)]).is_nan());
        assert!(largest_difference(&[(1.0, infinite), (1.0, 1.5)]).is_nan());
    }
}
