//! `actscope models`: lists local models and models to download, with sizes and shapes, and why a model cannot be used.
//! Read next: `../hub/inventory.rs`.

use super::{Failure, environment, size};
use crate::config::Config;
use crate::hub::{self, Entry, KNOWN, Known};
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `actscope models`.
#[derive(Args)]
pub(crate) struct Models {
    /// Folders to list besides the Hugging Face cache: each is a checkpoint, or a folder of checkpoints
    #[arg(value_name = "FOLDER")]
    folders: Vec<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Models {
    pub(super) fn run(self) -> Result<(), Failure> {
        if let Some(folder) = self.folders.iter().find(|folder| !folder.is_dir()) {
            return Err(Failure::Run(format!(
                "{} is not a folder; give the folder of a checkpoint, or no folder to see the Hugging Face cache",
                folder.display()
            )));
        }
        let (cache, entries) = hub::inventory(&environment::read().hub, &self.folders);
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.json {
            let here: Vec<Value> = demo().into_iter().chain(entries.iter().map(describe)).collect();
            let known: Vec<Value> = KNOWN.iter().map(describe_known).collect();
            writeln!(out, "{}", json!({"cache": cache, "here": here, "known": known}))?;
            out.flush()?;
            return Ok(());
        }

        writeln!(out, "local (Hugging Face cache: {})", cache.display())?;
        let usable = entries.iter().filter_map(|e| Some((e, e.state.as_ref().ok()?)));
        let mut rows: Vec<[String; 3]> = Vec::new();
        if let Some((config, bytes)) = demo_parts() {
            rows.push(["demo".into(), size(bytes), shape(&config)]);
        }
        for (entry, config) in usable {
            let without = if entry.tokenizer { "" } else { "; no tokenizer: token ids only" };
            rows.push([entry.name.clone(), size(entry.bytes), shape(config) + without]);
        }
        let known = KNOWN.iter().map(|k| k.short.unwrap_or(k.id).len()).max().unwrap_or(0);
        let width = rows.iter().map(|row| row[0].len()).chain([known]).max().unwrap_or(0);
        for [name, bytes, shape] in &rows {
            writeln!(out, "  {name:width$}  {bytes:>8}  {shape}")?;
        }

        let broken: Vec<(&Entry, &String)> =
            entries.iter().filter_map(|e| Some((e, e.state.as_ref().err()?))).collect();
        if !broken.is_empty() {
            writeln!(out, "\nlocal, but not usable")?;
        }
        for (entry, why) in broken {
            writeln!(out, "  {:width$}  {:>8}", entry.name, size(entry.bytes + entry.unfinished))?;
            writeln!(out, "    {why}")?;
        }

        writeln!(out, "\nknown GPT-2 checkpoints (--model NAME fetches one; any other GPT-2 of the hub works too)")?;
        writeln!(out, "  {:width$}  {:>8}  {:>10}  shape and remarks", "name", "download", "parameters")?;
        for k in KNOWN {
            let [n_layer, n_embd, n_head] = k.shape;
            let download = k.download.map_or("?".into(), size);
            let parameters = format!("{:.1} M", k.parameters() as f64 / 1e6);
            let name = k.short.unwrap_or(k.id);
            let remark = k.note;
            writeln!(
                out,
                "  {name:width$}  {download:>8}  {parameters:>10}  {n_layer} blocks, {n_embd} wide, {n_head} heads; {remark}"
            )?;
        }
        out.flush()?;
        Ok(())
    }
}

fn shape(c: &Config) -> String {
    format!(
        "{} blocks, {} wide, {} heads, {} positions, {} tokens",
        c.n_layer, c.n_embd, c.n_head, c.n_positions, c.vocab_size
    )
}

fn sizes(c: &Config) -> Value {
    json!({
        "n_layer": c.n_layer, "n_embd": c.n_embd, "n_head": c.n_head, "n_positions": c.n_positions, "vocab_size": c.vocab_size,
    })
}

/// The demo model's sizes and bytes; `None` if this binary does not contain it.
fn demo_parts() -> Option<(Config, u64)> {
    #[cfg(feature = "demo")]
    {
        use crate::hub::demo;
        let bytes = demo::CONFIG.len() + demo::SAFETENSORS.len() + demo::TOKENIZER.len();
        Some((Config::from_json(demo::CONFIG).ok()?, bytes as u64))
    }
    #[cfg(not(feature = "demo"))]
    None
}

fn demo() -> Option<Value> {
    let (config, bytes) = demo_parts()?;
    Some(
        json!({"name": "demo", "folder": null, "bytes": bytes, "tokenizer": true, "shape": sizes(&config), "problem": null}),
    )
}

fn describe(entry: &Entry) -> Value {
    json!({
        "name": entry.name,
        "folder": entry.folder,
        "bytes": entry.bytes,
        "unfinished_bytes": entry.unfinished,
        "tokenizer": entry.tokenizer,
        "shape": entry.state.as_ref().ok().map(sizes),
        "problem": entry.state.as_ref().err(),
    })
}

fn describe_known(k: &Known) -> Value {
    let [n_layer, n_embd, n_head] = k.shape;
    json!({
        "name": k.short.unwrap_or(k.id),
        "id": k.id,
        "parameters": k.parameters(),
        "download_bytes": k.download,
        "shape": {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head, "n_positions": 1024, "vocab_size": 50257},
        "note": k.note,
    })
}
