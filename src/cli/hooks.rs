//! `actscope hooks`: lists the hooks. Without a pattern, it prints one row per kind of hook; with a pattern, every hook
//! of the model that the pattern matches. Read next: `../hooks/site.rs`.

use super::{Failure, ModelArgs};
use crate::config::Config;
use crate::hooks::request::HookError;
use crate::hooks::site::{self, Axis, Dialect, Row, Site};
use clap::Args;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;

/// Arguments of `actscope hooks`.
#[derive(Args)]
pub(crate) struct HooksCommand {
    /// A name, a glob, or another tool's name for a hook
    pattern: Option<String>,
    #[command(flatten)]
    model: ModelArgs,
}

/// A row of the list.
struct Line {
    name: String,
    row: &'static Row,
    aliases: Vec<String>,
    /// The hook's names in other tools; empty if no pattern was given.
    dialects: BTreeMap<Dialect, Vec<String>>,
}

impl HooksCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let files = self.model.open()?;
        let config = files.config();
        let lines: Vec<Line> = match &self.pattern {
            None => Site::rows()
                .map(|row| Line {
                    name: row.name.into(),
                    row,
                    aliases: row.aliases.iter().map(|a| a.to_string()).collect(),
                    dialects: BTreeMap::new(),
                })
                .collect(),
            Some(pattern) => site::resolve(pattern, config.n_layer)
                .map_err(HookError::from)?
                .into_iter()
                .map(|site| Line {
                    name: site.name(),
                    row: site.row(),
                    aliases: site.aliases().collect(),
                    dialects: site.dialects(config.n_layer),
                })
                .collect(),
        };
        if let Some(trap) = self.pattern.as_ref().and_then(|pattern| site::trap(pattern, config.n_layer)) {
            self.model.say(format_args!("note: {trap}"));
        }
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.model.json {
            let list: Value = lines.iter().map(|line| describe(line, config)).collect();
            writeln!(out, "{list}")?;
        } else {
            self.table(&lines, config, &mut out)?;
        }
        out.flush()?;
        Ok(())
    }

    fn table(&self, lines: &[Line], config: &Config, out: &mut impl Write) -> Result<(), Failure> {
        let c = config;
        writeln!(
            out,
            "B batch, P position, D = {} n_embd, H = {} heads, d = {} head_dim, M = {} n_inner, V = {} vocabulary, {} blocks",
            c.n_embd,
            c.n_head,
            c.head_dim(),
            c.n_inner,
            c.vocab_size,
            c.n_layer
        )?;
        let width = lines.iter().map(|line| line.name.len()).max().unwrap_or(0);
        for line in lines {
            writeln!(
                out,
                "{:width$}  {:8} {:>16}  {}",
                line.name,
                letters(line.row),
                bytes(line.row, c),
                line.row.formula
            )?;
            for (dialect, names) in &line.dialects {
                writeln!(out, "  {:16} {}", format!("{}:", dialect.name()), names.join(", "))?;
            }
        }
        Ok(())
    }
}

fn letters(row: &Row) -> String {
    std::iter::once("B").chain(row.axes.iter().map(|axis| axis.letter())).collect::<Vec<_>>().join(" ")
}

/// Bytes per token, or per pair of tokens if the hook has two position axes.
fn per_token(row: &Row, config: &Config) -> usize {
    4 * row.axes.iter().map(|axis| axis.len(config, 1)).product::<usize>()
}

fn bytes(row: &Row, config: &Config) -> String {
    let unit = if row.axes.contains(&Axis::Key) { "B/token²" } else { "B/token" };
    format!("{} {unit}", per_token(row, config))
}

fn describe(line: &Line, config: &Config) -> Value {
    let square = line.row.axes.contains(&Axis::Key);
    json!({
        "name": line.name,
        "shape": letters(line.row).split(' ').collect::<Vec<_>>(),
        "formula": line.row.formula,
        "aliases": line.aliases,
        "dialects": line.dialects.iter().map(|(dialect, names)| (dialect.name().to_string(), json!(names))).collect::<Map<_, _>>(),
        if square { "bytes_per_token_pair" } else { "bytes_per_token" }: per_token(line.row, config),
    })
}
