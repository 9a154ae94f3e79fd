//! `.csv`: a table for spreadsheets. One line per [`Row`], with the values in columns `0`, `1`, ...; there are as many
//! columns as the widest hook has values. Read next: `table.rs`.

use super::Record;
use super::store::Store;
use super::table::{Row, each_row};
use crate::hooks::capture::Arrays;
use std::io::Write;

pub(super) fn write(record: &Record<'_>, store: &Store, out: &mut impl Write) -> std::io::Result<()> {
    let mut table = ::csv::WriterBuilder::new().flexible(true).from_writer(out);
    let widest = store.shapes().iter().filter_map(|(_, shape)| shape.last().copied()).max().unwrap_or(0);
    let header = ["hook", "text", "position", "token_id", "token", "head"].map(String::from).into_iter();
    table.write_record(header.chain((0..widest).map(|i| i.to_string())))?;
    each_row(record, store, |Row { hook, text, label, head, values }| {
        let id = label.id.map_or(String::new(), |id| id.to_string());
        let head = head.map_or(String::new(), |head| head.to_string());
        let lead = [hook.to_string(), text.to_string(), label.position.to_string(), id, label.text.clone(), head];
        Ok(table.write_record(lead.into_iter().chain(values.iter().map(|v| v.to_string())))?)
    })?;
    table.flush()
}
