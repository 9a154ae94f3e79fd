//! A sweep as a page: a heat map that can be asked. Owns what the page is given; the caller has swept. The page's script is
//! `page/sweep.js`.

use super::{fill, pack};
use crate::model::tokenizer::Token;
use crate::output::{HOOK_DEFINITIONS, Provenance};
use serde_json::{Value, json};
use std::io::Write;

pub(super) const HTML: &str = include_str!("page/sweep.html");
pub(super) const JS: &str =
    concat!(include_str!("page/unpack.js"), include_str!("page/draw.js"), include_str!("page/sweep.js"));

/// A sweep's numbers with what they are about.
#[derive(Debug)]
pub struct SweepPage<'a> {
    /// `patch` or `ablate`.
    pub command: &'a str,
    /// The sites without their layers, or the path.
    pub at: Vec<&'a str>,
    /// What was put in each place, in words.
    pub how: String,
    /// The axes, and a label for every place along each.
    pub axes: &'a [&'a str],
    /// As many lists as axes.
    pub labels: &'a [Vec<Value>],
    /// The metric's name.
    pub metric: &'a str,
    /// The metric of the clean and the corrupt run, of a patch; and of the unchanged run, of an ablation.
    pub own: [Option<f64>; 3],
    /// Whether values of the corrupt run were put into the clean one.
    pub noise: bool,
    /// Pairs, or texts.
    pub n: usize,
    /// Where there is one pair or text: the tokens that line up, with names.
    pub texts: Option<Vec<(&'a str, &'a [Token])>>,
    /// `values` and `effect`, and what else there is of `normalized`, `effect_standard_error`, `p`, `exact` and `ci` (two numbers a cell), in
    /// row-major order.
    pub arrays: Vec<(&'a str, Vec<f64>)>,
    /// How one cell is run alone, where one edit does that.
    pub cell: Option<CellRun>,
    /// Where the values come from.
    pub provenance: &'a Provenance,
}

/// What the commands of single cells are made of.
#[derive(Debug)]
pub struct CellRun {
    /// The sites' hooks with `{i}` for the layer.
    pub sites: Vec<String>,
    /// OP of the edit.
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
