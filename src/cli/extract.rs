//! `actscope extract`: activations of one or more texts, as a file or a readable summary.

use super::run::{RunArgs, SiteArgs, TokenArgs};
use super::{Failure, ModelArgs, TextArgs, check, size};
use crate::hooks::capture::{Capture, Sink, has_non_number};
use crate::hooks::request::Hooks;
use crate::hooks::site::Site;
use crate::model::batch::Batch;
use crate::output::summary::Summary;
use crate::output::{self, Output, Provenance, Record};
use crate::session::Session;
use crate::verify::sample::Sample;
use clap::Args;
use ndarray::{ArrayD, ArrayViewD};
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
            self.texts.refuse_to_overwrite(output.path(), &files)?;
        }
        let batch = self.texts.batch(&files, &texts, &self.model)?;
        let tokens = files.tokens(&batch);
        let mut hooks = self.sites.hooks(&files)?;
        let positions = self.token.positions(&tokens, &self.model)?;
        if let Some(positions) = &positions {
            hooks.at_positions(positions);
        }
        let shapes = hooks.shapes(&batch);
        let weight_bytes = files.checkpoint().file_bytes();
        if self.dry_run && output.is_none() {
            return self.forecast(&shapes, weight_bytes, None);
        }

        let session = self.run.session(files, &self.model)?;
        let provenance = Provenance {
            model: session.model().name().to_string(),
            fingerprint: session.model().checkpoint().fingerprint(self.hash && !self.dry_run),
            device: session.device().to_string(),
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

    /// Runs with a progress bar, says where the first value is that is no number, and with --check ends in an error where the
    /// values are not to be trusted.
    fn run_with_progress(
        &self,
        session: &Session,
        batch: &Batch,
        hooks: &Hooks,
        sink: &mut dyn Sink,
    ) -> Result<(), Failure> {
        let sample = self.check.then(|| Sample::new(session.model().config(), batch, hooks));
        let mut watched = Watched { sink, first_non_number: None, sample };
        let run =
            async |told: &dyn Fn(usize, usize)| session.run_into_async(batch, hooks, &mut watched, Some(told)).await;
        self.model.with_progress("blocks", run)?;
        self.model.warn_of_nan(watched.first_non_number);
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
        self.watch(site, text, &values);
        self.sink.put(site, text, values)
    }

    fn give(&mut self, site: Site, text: usize, values: ArrayD<f32>) -> std::io::Result<()> {
        self.watch(site, text, &values.view());
        self.sink.give(site, text, values)
    }
}

impl Watched<'_> {
    fn watch(&mut self, site: Site, text: usize, values: &ArrayViewD<'_, f32>) {
        if self.first_non_number.is_none_or(|first| site < first) && has_non_number(site, values) {
            self.first_non_number = Some(site);
        }
        if let Some(sample) = &mut self.sample {
            sample.see(site, text, values.view());
        }
    }
}
