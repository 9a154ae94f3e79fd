//! `actscope extract`: activations of one or more texts, as a file or a readable summary.

use super::run::{RunArgs, SiteArgs, TokenArgs};
use super::{Failure, ModelArgs, TextArgs, size};
use crate::batch::Batch;
use crate::hooks::Hooks;
use crate::output::{self, Output, Provenance, Record, summary};
use crate::session::Files;
use crate::sites::Site;
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `actscope extract`.
#[derive(Args)]
pub struct Extract {
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sites: SiteArgs,
    #[command(flatten)]
    token: TokenArgs,
    /// Where to write: .safetensors, .npz, .json or .csv
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
    /// Fingerprint every byte of the weights, not only their headers
    #[arg(long)]
    hash: bool,
    /// Say what would be computed and how large it is, and stop
    #[arg(long)]
    dry_run: bool,
}

impl Extract {
    /// Everything that can be wrong with the request is found before any weight is loaded.
    pub(super) fn run(self) -> Result<(), Failure> {
        let texts = self.texts.texts()?;
        let output = self.out.as_deref().map(Output::create).transpose()?;
        let files = self.model.open()?;
        if let Some(output) = &output {
            self.texts.refuse_to_overwrite(output.path(), &files)?;
        }
        let batch = self.texts.batch(&files, &texts, &self.model)?;
        let tokens = files.tokens(&batch);
        let mut hooks = self.sites.hooks(&files)?;
        let positions = self.token.positions(&tokens)?;
        if let Some(positions) = &positions {
            hooks.at_positions(positions);
        }
        if self.dry_run {
            return self.forecast(&files, &batch, &hooks);
        }

        let session = self.run.session(files, &self.model)?;
        let capture =
            self.model.with_progress("blocks", async |told| session.run_async(&batch, &hooks, Some(told)).await)?;
        self.model.warn_of_nan(&capture);
        let provenance = Provenance {
            model: session.files().name().to_string(),
            fingerprint: session.files().checkpoint().fingerprint(self.hash),
            device: session.device().to_string(),
        };
        let given: &[String] = if self.texts.ids.is_empty() { &texts } else { &[] };
        let record = Record {
            capture: &capture,
            batch: &batch,
            tokens: &tokens,
            texts: given,
            positions: positions.as_deref(),
            provenance: &provenance,
        };

        let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
        match output {
            Some(output) => {
                let path = output.path().display().to_string();
                let bytes = output.write(&record)?;
                self.model.say(format_args!("wrote {path}: {} hooks, {}", capture.iter().count(), size(bytes)));
                if self.model.json {
                    let hooks: Vec<_> = capture
                        .iter()
                        .map(|(site, array)| json!({"name": site.name(), "shape": array.shape()}))
                        .collect();
                    writeln!(stdout, "{}", json!({"file": path, "bytes": bytes, "hooks": hooks}))?;
                }
            }
            None if self.model.json => output::write_json(&record, &mut stdout)?,
            None => summary::write(&record, &mut stdout)?,
        }
        stdout.flush()?;
        Ok(())
    }

    /// Shapes, bytes on disk, and memory, without computing anything.
    fn forecast(&self, files: &Files, batch: &Batch, hooks: &Hooks) -> Result<(), Failure> {
        let of_hook = |site: Site| (site, hooks.shape(site, batch));
        let rows: Vec<(Site, Vec<usize>)> = hooks.sites().map(of_hook).collect();
        let bytes = |shape: &[usize]| 4 * shape.iter().map(|&n| n as u64).product::<u64>();
        let total: u64 = rows.iter().map(|(_, shape)| bytes(shape)).sum();
        let weights = files.checkpoint().file_bytes();
        let mut out = std::io::stdout().lock();
        if self.model.json {
            let list: Vec<_> = rows
                .iter()
                .map(|(site, shape)| json!({"name": site.name(), "shape": shape, "bytes": bytes(shape)}))
                .collect();
            writeln!(out, "{}", json!({"hooks": list, "bytes": total, "weight_bytes": weights}))?;
            return Ok(());
        }
        let width = rows.iter().map(|(site, _)| site.name().len()).max().unwrap_or(0);
        for (site, shape) in &rows {
            writeln!(out, "{:width$}  {:<22} {:>12}", site.name(), format!("{shape:?}"), size(bytes(shape)))?;
        }
        writeln!(
            out,
            "{} hooks, {} ({total} bytes) of values in memory and in .safetensors or .npz; weights of {}",
            rows.len(),
            size(total),
            size(weights)
        )?;
        Ok(())
    }
}
