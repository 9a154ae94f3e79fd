//! A sweep as a page: an interactive heat map. Owns the data that the page receives; the caller runs the sweep. Read next:
//! `page/sweep.js`, the page's script.

use super::{fill, pack};
use crate::model::tokenizer::Token;
use crate::output::{HOOK_DEFINITIONS, Provenance};
use serde_json::{Value, json};
use std::io::Write;

pub(super) const HTML: &str = include_str!("page/sweep.html");
pub(super) const JS: &str =
    concat!(include_str!("page/unpack.js"), include_str!("page/draw.js"), include_str!("page/sweep.js"));

/// A sweep's numbers, with everything that the page shows about them.
#[derive(Debug)]
pub struct SweepPage<'a> {
    /// `patch` or `ablate`.
    pub command: &'a str,
    /// The sites without their layers, or the path.
    pub at: Vec<&'a str>,
    /// A description of the change that was made at each place.
    pub how: String,
    /// The names of the axes.
    pub axes: &'a [&'a str],
    /// For every axis, the labels of the places along it.
    pub labels: &'a [Vec<Value>],
    /// The metric's name.
    pub metric: &'a str,
    /// The metric of the runs without a change: of `patch` the clean and the corrupt one, of `ablate` the third.
    pub own: [Option<f64>; 3],
    /// Whether values of the corrupt run were put into the clean one.
    pub noise: bool,
    /// The number of pairs, or of texts.
    pub n: usize,
    /// For a single pair or text: the tokens that line up, with names.
    pub texts: Option<Vec<(&'a str, &'a [Token])>>,
    /// `values` and `effect`, and what else there is of `normalized`, `effect_standard_error`, `p`, `exact` and `ci` (two numbers a cell), in
    /// row-major order.
    pub arrays: Vec<(&'a str, Vec<f64>)>,
    /// The command that runs a single cell; `None` if one edit cannot do that.
    pub cell: Option<CellRun>,
    /// The provenance of the values.
    pub provenance: &'a Provenance,
}

/// The parts of the commands that run single cells.
#[derive(Debug)]
pub struct CellRun {
    /// The sites' hooks with `{i}` for the layer.
    pub sites: Vec<String>,
    /// The operation (OP) of the edit.
    pub op: String,
    /// The arguments that name model, text and source, quoted for a POSIX shell.
    pub arguments: String,
}

impl SweepPage<'_> {
    /// Writes the file. The same sweep gives the same bytes.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let shape: Vec<usize> = self.labels.iter().map(Vec::len).collect();
        let tokens = |tokens: &[Token]| -> Value {
            tokens.iter().map(|token| json!({"id": token.id, "label": token.label()})).collect()
        };
        let texts = self.texts.as_ref().map(|texts| {
            texts.iter().map(|(name, of_text)| json!({"name": name, "tokens": tokens(of_text)})).collect::<Value>()
        });
        let cell =
            self.cell.as_ref().map(|cell| json!({"sites": cell.sites, "op": cell.op, "arguments": cell.arguments}));
        let [clean, corrupt, base] = self.own;
        let data = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": {
                "name": self.provenance.model, "fingerprint": self.provenance.fingerprint,
                "process": self.provenance.process.to_string(),
            },
            "device": self.provenance.device,
            "edits": self.provenance.edits,
            "definitions": HOOK_DEFINITIONS,
            "tokens": [],
            "command": self.command, "at": self.at, "how": self.how, "axes": self.axes, "shape": shape, "labels": self.labels,
            "metric": self.metric, "clean": clean, "corrupt": corrupt, "base": base, "noise": self.noise, "n": self.n,
            "texts": texts, "cell": cell,
            "arrays": self.arrays.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        });
        let part = |(name, values): &(&str, Vec<f64>)| {
            (name.to_string(), pack::deflate(&pack::floats(values.iter().copied())))
        };
        let parts: Vec<(String, Vec<u8>)> = self.arrays.iter().map(part).collect();
        let edited = if self.provenance.edits.is_empty() { "" } else { " (edited)" };
        let by = if self.axes.is_empty() { String::new() } else { format!(" by {}", self.axes.join(", ")) };
        let title = format!("{} {}{by}{edited}", self.command, self.at.join(", "));
        fill((HTML, JS), &title, &data, &parts, out)
    }
}
