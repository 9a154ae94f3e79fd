//! `actscope extract`: activations of one or more texts, as a file or a readable summary.

use super::progress::Progress;
use super::{DeviceArg, Failure, ModelArgs, TextArgs, WeightsArg, check, size};
use crate::batch::Batch;
use crate::capture::{Capture, Sink, has_non_number};
use crate::hooks::{HookError, Hooks, Select};
use crate::output::summary::Summary;
use crate::output::{self, Output, Provenance, Record};
use crate::session::{Files, Session};
use crate::sites::Site;
use crate::text::{self, Token};
use crate::verify::sample::Sample;
use clap::Args;
use ndarray::ArrayViewD;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};

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
    /// Hold a sample of the values against the reference, and write nothing where they part
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
        let shapes = hooks.shapes(&batch);
        let weight_bytes = files.checkpoint().file_bytes();
        if self.dry_run && output.is_none() {
            return self.forecast(&shapes, weight_bytes, None);
        }

        let session = files.on(self.device.into(), self.weights.dtype())?;
        let device = session.device();
        self.model.say(format_args!("device: {device}"));
        if device.software {
            self.model.say(format_args!("note: this adapter is a program on the CPU; --device cpu is faster"));
        }
        let provenance = Provenance {
            model: session.files().name().to_string(),
            fingerprint: session.files().checkpoint().fingerprint(self.hash && !self.dry_run),
            device: device.to_string(),
        };
        let record = Record {
            batch: &batch,
            tokens: &tokens,
            texts: if self.texts.ids.is_empty() { &texts } else { &[] },
            positions: positions.as_deref(),
            provenance: &provenance,
        };

        let run = |sink: &mut dyn Sink| self.run_with_progress(&session, &batch, &hooks, sink);
        let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
        match output {
            Some(output) if self.dry_run => {
                let size = output.size(&record, shapes.clone())?;
                return self.forecast(&shapes, weight_bytes, Some((output.path(), size)));
            }
            Some(output) => {
                let path = output.path().display().to_string();
                let mut writing = output.begin(&record, shapes.clone())?;
                run(&mut writing)?;
                let bytes = writing.finish()?;
                self.model.say(format_args!("wrote {path}: {} hooks, {}", shapes.len(), size(bytes)));
                if self.model.json {
                    let named = |(site, shape): &(Site, Vec<usize>)| json!({"name": site.name(), "shape": shape});
                    let hooks: Vec<_> = shapes.iter().map(named).collect();
                    writeln!(stdout, "{}", json!({"file": path, "bytes": bytes, "hooks": hooks}))?;
                }
            }
            None if self.model.json => {
                let mut capture = Capture::empty(&hooks, &batch)?;
                run(&mut capture)?;
                output::write_json(&record, &capture, &mut stdout)?;
            }
            None => {
                let mut summary = Summary::new(&record, shapes);
                run(&mut summary)?;
                summary.write(&mut stdout)?;
            }
        }
        stdout.flush()?;
        Ok(())
    }

    /// A run must not replace what it reads.
    fn refuse_to_overwrite_inputs(&self, path: &Path, files: &Files) -> Result<(), Failure> {
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

    /// Runs with a progress bar on stderr, which appears once a second has passed, says where the first value is that is no
    /// number, and with --check ends in an error where the values are not to be trusted.
    fn run_with_progress(
        &self,
        session: &Session,
        batch: &Batch,
        hooks: &Hooks,
        sink: &mut dyn Sink,
    ) -> Result<(), Failure> {
        let bar = Progress::new(self.model.quiet);
        let told = |done: usize, of: usize| bar.told("blocks", done, of);
        let sample = self.check.then(|| Sample::new(session.files().config(), batch, hooks));
        let mut watched = Watched { sink, first_non_number: None, sample };
        let ended = pollster::block_on(session.run_into_async(batch, hooks, &mut watched, Some(&told)));
        bar.finish();
        ended?;
        if let Some(site) = watched.first_non_number {
            self.model.say(format_args!("note: {site} holds NaN or infinity, and so may everything after it"));
        }
        match watched.sample {
            Some(sample) => check::hold(sample, session, batch, hooks, &self.model),
            None => Ok(()),
        }
    }

    /// Shapes, bytes on disk, and memory, without computing anything.
    fn forecast(
        &self,
        shapes: &[(Site, Vec<usize>)],
        weight_bytes: u64,
        file: Option<(&Path, Option<u64>)>,
    ) -> Result<(), Failure> {
        let bytes = |shape: &[usize]| 4 * shape.iter().map(|&n| n as u64).product::<u64>();
        let total: u64 = shapes.iter().map(|(_, shape)| bytes(shape)).sum();
        let mut out = std::io::stdout().lock();
        if self.model.json {
            let list: Vec<_> = shapes
                .iter()
                .map(|(site, shape)| json!({"name": site.name(), "shape": shape, "bytes": bytes(shape)}))
                .collect();
            let file_bytes = file.and_then(|(_, bytes)| bytes);
            let all = json!({"hooks": list, "bytes": total, "weight_bytes": weight_bytes, "file_bytes": file_bytes});
            writeln!(out, "{all}")?;
            return Ok(());
        }
        let width = shapes.iter().map(|(site, _)| site.name().len()).max().unwrap_or(0);
        for (site, shape) in shapes {
            writeln!(out, "{:width$}  {:<22} {:>12}", site.name(), format!("{shape:?}"), size(bytes(shape)))?;
        }
        let n = shapes.len();
        writeln!(out, "{n} hooks, {} ({total} bytes) of values; weights of {}", size(total), size(weight_bytes))?;
        match file {
            Some((path, Some(bytes))) => writeln!(out, "{}: {} ({bytes} bytes)", path.display(), size(bytes))?,
            Some((path, None)) => {
                let values = "as text, so its size depends on the values; they take their own room beside it meanwhile";
                writeln!(out, "{}: {values}", path.display())?;
            }
            None => {}
        }
        Ok(())
    }
}

/// Passes values on, and remembers the first hook with a value that is no number, and the sample that --check compares.
struct Watched<'a> {
    sink: &'a mut dyn Sink,
    first_non_number: Option<Site>,
    sample: Option<Sample>,
}

impl Sink for Watched<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        if self.first_non_number.is_none_or(|first| site < first) && has_non_number(site, &values) {
            self.first_non_number = Some(site);
        }
        if let Some(sample) = &mut self.sample {
            sample.see(site, text, values.view());
        }
        self.sink.put(site, text, values)
    }
}
