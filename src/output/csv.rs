//! `.csv`: a table for spreadsheets. One row per hook, text, position and (where the hook has heads) head; the values of
//! the last axis in columns `0`, `1`, ... as many as the widest hook has. Padding is left out.

use super::Record;
use crate::hooks::capture::Arrays;
use crate::hooks::site::Axis as SiteAxis;
use ndarray::{ArrayViewD, Axis};
use std::io::Write;

pub(super) fn write(record: &Record<'_>, arrays: &dyn Arrays, out: &mut impl Write) -> std::io::Result<()> {
    let mut table = ::csv::WriterBuilder::new().flexible(true).from_writer(out);
    let shapes = arrays.shapes();
    let widest = shapes.iter().filter_map(|(_, shape)| shape.last().copied()).max().unwrap_or(0);
    let header = ["hook", "text", "position", "token_id", "token", "head"].map(String::from).into_iter();
    table.write_record(header.chain((0..widest).map(|i| i.to_string())))?;
    for (site, _) in shapes {
        let axes = site.axes();
        let pos_axis = axes.iter().position(|a| *a == SiteAxis::Pos).unwrap_or(0);
        let head_axis = axes.iter().position(|a| *a == SiteAxis::Head);
        for (text, tokens) in record.tokens.iter().enumerate() {
            let of_text = arrays.of_text(site, text)?;
            for (slot, position) in record.kept(text).into_iter().enumerate() {
                let at = of_text.index_axis(Axis(pos_axis), slot);
                // With the position axis gone, a head axis is the first that is left.
                let heads: Vec<(String, ArrayViewD<'_, f32>)> = match head_axis {
                    Some(_) => {
                        at.axis_iter(Axis(0)).enumerate().map(|(head, values)| (head.to_string(), values)).collect()
                    }
                    None => vec![(String::new(), at.view())],
                };
                for (head, values) in heads {
                    let token = &tokens[position];
                    let lead =
                        [site.name(), text.to_string(), position.to_string(), token.id.to_string(), token.text(), head];
                    let values = if site.is_square() {
                        values.slice_axis(Axis(0), ndarray::Slice::from(..tokens.len()))
                    } else {
                        values.view()
                    };
                    table.write_record(lead.into_iter().chain(values.iter().map(|v| v.to_string())))?;
                }
            }
        }
    }
    table.flush()
}
