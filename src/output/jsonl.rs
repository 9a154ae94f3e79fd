//! `.jsonl`: the table of `.csv` with one JSON object per line, whose `values` are a list. Read next: `table.rs`.

use super::Record;
use super::json::Nested;
use super::store::Store;
use super::table::{Row, each_row};
use serde::Serialize;
use std::io::Write;

#[derive(Serialize)]
struct Line<'a> {
    hook: &'a str,
    text: usize,
    position: usize,
    token_id: Option<u32>,
    token: &'a str,
    head: Option<usize>,
    values: Nested<'a>,
}

pub(super) fn write(record: &Record<'_>, store: &Store, out: &mut impl Write) -> std::io::Result<()> {
    each_row(record, store, |Row { hook, text, label, head, values }| {
        let (position, token) = (label.position, label.text.as_str());
        let line = Line { hook, text, position, token_id: label.id, token, head, values: Nested(values) };
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")
    })
}
