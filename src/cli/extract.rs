//! `actscope extract`: activations of one or more texts, as a file or a readable summary.

use super::progress::Progress;
use super::{DeviceArg, Failure, ModelArgs, TextArgs, WeightsArg, size};
use crate::batch::Batch;
use crate::hooks::{HookError, Hooks, Select};
use crate::output::{self, Output, Provenance, Record, summary};
use crate::session::{Files, Session};
use crate::sites::Site;
use crate::text::{self, Token};
use crate::verify::sample::Found;
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
    /// Hooks by name; `*` matches anything, so '*' alone is all of them. Repeatable
    #[arg(short = 'k', long, value_name = "PATTERN")]
    hook: Vec<String>,
    /// Layers: N >= 0 is block N's output, -1 is after the final LayerNorm, -2 the last block but one; or `all`. Repeatable
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    layer: Vec<String>,
    /// Tokens to keep: an index, a negative index, a..b, or a token's text such as " cat". Repeatable
    #[arg(short, long, value_name = "TOKEN", allow_hyphen_values = true)]
    token: Vec<String>,
    /// Where to write: .safetensors, .npz, .json or .csv
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    device: DeviceArg,
    /// How to keep the weights while computing
    #[arg(long, value_enum, default_value_t = WeightsArg::Stored)]
    weights: WeightsArg,
    /// Fingerprint every byte of the weights, not only their headers
    #[arg(long)]
    hash: bool,
    /// Hold a sample of the values against the reference first, and write nothing where they part
    #[arg(long)]
    check: bool,
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
            self.refuse_to_overwrite_inputs(output.path(), &files)?;
        }
        let batch = self.texts.batch(&files, &texts, &self.model)?;
        let tokens = files.tokens(&batch);
        let mut hooks = self.hooks(&files)?;
        let positions = self.positions(&tokens)?;
        if let Some(positions) = &positions {
            hooks.at_positions(positions);
        }
        if self.dry_run {
            return self.forecast(&files, &batch, &hooks);
        }

        let session = files.on(self.device.into(), self.weights.dtype())?;
        let device = session.device();
        self.model.say(format_args!("device: {device}"));
        if device.software {
            self.model.say(format_args!("note: this adapter is a program on the CPU; --device cpu is faster"));
        }
        let capture = self.with_progress(&session, &batch, &hooks)?;
        if let Some(site) = capture.first_not_a_number() {
            self.model.say(format_args!("note: {site} holds NaN or infinity, and so may everything after it"));
        }
        if self.check {
            self.hold_against_reference(&session, &batch, &hooks, &capture)?;
        }
        let provenance = Provenance {
            model: session.files().name().to_string(),
            fingerprint: session.files().checkpoint().fingerprint(self.hash),
            device: device.to_string(),
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

    /// A run must not replace what it reads.
    fn refuse_to_overwrite_inputs(&self, path: &std::path::Path, files: &Files) -> Result<(), Failure> {
        let Ok(path) = path.canonicalize() else { return Ok(()) };
        let same = |input: &PathBuf| input.canonicalize().is_ok_and(|input| input == path);
        let read = files.paths().into_iter().chain(self.texts.file.clone());
        match read.into_iter().find(same) {
            Some(input) => Err(Failure::Usage(format!(
                "--out {} is a file that this run reads; choose another name",
                input.display()
            ))),
            None => Ok(()),
        }
    }

    /// The request: hooks and layers together; the output after the final LayerNorm where neither is given.
    fn hooks(&self, files: &Files) -> Result<Hooks, Failure> {
        let n_layer = files.config().n_layer;
        let mut hooks = files.hooks();
        for pattern in &self.hook {
            hooks.tap(pattern)?;
        }
        let mut layers: Vec<i64> = Vec::new();
        for layer in &self.layer {
            match layer.as_str() {
                "all" => layers.extend((0..n_layer as i64).chain([-1])),
                number => {
                    layers.push(number.parse().map_err(|_| {
                        Failure::Usage(format!("--layer: {number:?} is neither a whole number nor `all`"))
                    })?)
                }
            }
        }
        if self.hook.is_empty() && layers.is_empty() {
            layers.push(-1);
        }
        for layer in layers {
            hooks.tap_at(Site::from_layer(layer, n_layer).map_err(HookError::from)?, Select::all())?;
        }
        Ok(hooks)
    }

    /// The positions that --token keeps of every text; `None` without it.
    fn positions(&self, tokens: &[Vec<Token>]) -> Result<Option<Vec<Vec<usize>>>, Failure> {
        if self.token.is_empty() {
            return Ok(None);
        }
        let of_text = |(i, tokens): (usize, &Vec<Token>)| text::select(&self.token, tokens, i);
        Ok(Some(tokens.iter().enumerate().map(of_text).collect::<Result<_, _>>()?))
    }

    /// Runs with a progress bar on stderr, which appears once a second has passed.
    fn with_progress(&self, session: &Session, batch: &Batch, hooks: &Hooks) -> Result<crate::hooks::Capture, Failure> {
        let bar = Progress::new(self.model.quiet);
        let told = |done: usize, of: usize| bar.told("blocks", done, of);
        let capture = pollster::block_on(session.run_async(batch, hooks, Some(&told)));
        bar.finish();
        Ok(capture?)
    }

    /// Says what of the values was compared with the reference, and refuses to go on where they part.
    fn hold_against_reference(
        &self,
        session: &Session,
        batch: &Batch,
        hooks: &Hooks,
        capture: &crate::hooks::Capture,
    ) -> Result<(), Failure> {
        let bar = Progress::new(self.model.quiet);
        let told = |done: usize, of: usize| bar.told("parts checked", done, of);
        let checked = pollster::block_on(session.check_async(batch, hooks, capture, &told));
        bar.finish();
        let checked = checked?;
        for probe in &checked.probes {
            let first = probe.sites.first().map(Site::to_string).unwrap_or_default();
            let hooks = if probe.sites.len() == 1 { first } else { format!("{} hooks", probe.sites.len()) };
            let (of, all) = (probe.tokens, batch.texts()[probe.text].len());
            let how = if probe.apart { ", run by themselves" } else { "" };
            self.model.say(format_args!(
                "checked against f64: text {}, {} of its first {of} of {all} tokens{how}: {hooks}",
                probe.text, probe.positions
            ));
        }
        let parted: Vec<_> = checked.parted().collect();
        let Some(first) = parted.first() else {
            let share = |found: &&Found| found.worst.error / found.allowed;
            let worst = checked.found.iter().max_by(|a, b| share(a).total_cmp(&share(b)));
            if let Some(Found { site, worst, allowed }) = worst {
                self.model.say(format_args!("worst: {site} off by {:.1e} of {allowed:.1e} allowed", worst.error));
            }
            return Ok(());
        };
        Err(Failure::Run(format!(
            "{} and the reference part: {} is off by {:.1e} at text {}, token {} ({:.1e} is allowed), and so are {} other hooks of the sample; nothing was written; `actscope verify --device {}` says what is wrong, and --device cpu may be right",
            session.device(),
            first.site,
            first.worst.error,
            first.worst.text,
            first.worst.position,
            first.allowed,
            parted.len() - 1,
            session.device().kind,
        )))
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
