//! `actscope bench`: measures the speed of a device. Owns the arguments, the table and the JSON; `src/bench/` measures.
//! Read next: `src/bench/mod.rs`.

use super::run::options;
use super::{DeviceArg, Failure, ModelArgs, WeightsArg, size};
use crate::bench::{self, Report, random};
use crate::device::probe::Measured;
use crate::device::{self, AnyDevice, Counters, Device, DeviceInfo};
use crate::model::checkpoint::Checkpoint;
use crate::session::{Error, Progress};
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::Arc;

/// Arguments of `actscope bench`.
#[derive(Args)]
#[command(mut_arg("model", model_or_random))]
pub(crate) struct Bench {
    #[command(flatten)]
    model: ModelArgs,
    /// The device to measure
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    device: DeviceArg,
    /// Precision of the weights in the whole runs and in generation
    #[arg(long, value_enum, default_value_t = WeightsArg::Stored)]
    weights: WeightsArg,
}

fn model_or_random(arg: clap::Arg) -> clap::Arg {
    arg.default_value(random::NAME).help(
        "The model of the whole runs: `random` (gpt2-small's shape with random weights, made in memory), `demo`, a folder with a checkpoint, or a hub name",
    )
}

/// A report, with the device, the model and the settings that it was measured with.
struct Measurement {
    report: Report,
    device: DeviceInfo,
    clock: &'static str,
    settings: String,
    model: String,
    weights: &'static str,
}

impl Bench {
    pub(super) fn run(self) -> Result<(), Failure> {
        if matches!(self.device, DeviceArg::Reference) {
            return Err(Failure::Usage(
                "--device reference: this device is made for accuracy, not for speed; measure gpu or cpu".into(),
            ));
        }
        let checkpoint = match self.model.model.as_str() {
            random::NAME => Arc::new(random::gpt2_small().map_err(Error::from)?),
            _ => self.model.open()?.checkpoint().clone(),
        };
        // The device is opened as a session opens it, so that the benchmark measures what users run.
        let options = options(self.device, self.weights);
        let opened = pollster::block_on(device::open_among(options.device, &options.adapters));
        let device = match opened.map_err(Error::from)? {
            AnyDevice::Gpu(dev) => AnyDevice::Gpu(pollster::block_on(crate::session::as_asked(dev, &options))?),
            other => other,
        };
        let measurement = self.measure(&device, checkpoint)?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.model.json {
            writeln!(out, "{}", measurement.as_json())?;
        } else {
            measurement.write(&mut out)?;
        }
        Ok(out.flush()?)
    }

    fn measure(&self, dev: &AnyDevice, checkpoint: Arc<Checkpoint>) -> Result<Measurement, Failure> {
        self.model.say(format_args!("device: {}", dev.info()));
        let measure = async |progress: Progress<'_>| {
            let step_done = |done: usize, of: usize| {
                let _ = progress(done, of);
            };
            bench::bench(dev, checkpoint, self.weights.dtype(), &step_done).await
        };
        let report = self.model.with_progress("figures", measure).map_err(Error::from)?;
        Ok(Measurement {
            report,
            device: dev.info(),
            clock: dev.clock(),
            settings: dev.settings(),
            model: self.model.model.clone(),
            weights: self.weights.name(),
        })
    }
}

/// A rate per second in units of 10^9, with three digits.
fn giga(rate: f64) -> String {
    digits(1e-9 * rate)
}

/// A number with three digits, or with all digits before the point if there are more.
fn digits(x: f64) -> String {
    let decimals = if x < 9.995 { 2 } else { usize::from(x < 99.95) };
    format!("{x:.decimals$}")
}

fn counted(counters: &Counters) -> String {
    let Counters { submits, command_buffers, passes, dispatches, barriers, copies } = counters;
    format!(
        "{dispatches} dispatches ({barriers} waiting), {passes} passes, {copies} copies, {submits} submits, {command_buffers} command buffers"
    )
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

/// Writes a row of a table. A cell with a negative width is aligned left, another one right.
fn row<const N: usize>(out: &mut impl Write, widths: [isize; N], cells: [impl AsRef<str>; N]) -> std::io::Result<()> {
    let padded = widths.iter().zip(&cells).map(|(width, cell)| {
        let (n, cell) = (width.unsigned_abs(), cell.as_ref());
        if *width < 0 { format!("{cell:<n$}") } else { format!("{cell:>n$}") }
    });
    writeln!(out, "   {}", padded.collect::<Vec<String>>().join(" "))
}

impl Measurement {
    fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let Report { limits, operations, forwards, kernels, generation, left_out } = &self.report;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        writeln!(
            out,
            "actscope {}; {}; {} {}, {threads} threads",
            env!("CARGO_PKG_VERSION"),
            self.device,
            os_info::get(),
            std::env::consts::ARCH
        )?;
        writeln!(
            out,
            "\n1. The limits of this device, measured: {} GFLOP/s (multiply-adds in registers), {} GB/s (reading memory)",
            giga(limits.arithmetic),
            giga(limits.reading)
        )?;
        if !self.settings.is_empty() {
            writeln!(out, "   {}", self.settings)?;
        }
        writeln!(out, "\n2. Single operations, at gpt2-small's shapes, random f32, by {}", self.clock)?;
        let widths = [-24, 6, 10, 9, 8, 8, 8];
        row(out, widths, ["operation", "tokens", "ms", "GFLOP/s", "of limit", "GB/s", "of limit"])?;
        for of in operations {
            let cells = [
                of.name.to_string(),
                of.tokens.to_string(),
                format!("{:.4}", 1e3 * of.timing.seconds),
                giga(of.arithmetic),
                percent(of.arithmetic / limits.arithmetic),
                giga(of.moving),
                percent(of.moving / limits.reading),
            ];
            row(out, widths, cells)?;
        }
        writeln!(
            out,
            "   A multiply-add is two operations. Bytes: inputs and weights read once, the result written once. Copies of the weights\n   \
             take turns, because in a run the weights come from memory. A row can exceed 100 %: its values may come from caches, or\n   \
             it may read faster than the plain loop that measures the limit."
        )?;
        let weights = if self.weights == "stored" { String::new() } else { format!(", weights {}", self.weights) };
        writeln!(out, "\n3. Whole runs of one text, model {}{weights}, by the host's clock", self.model)?;
        let widths = [6, -14, 10, 9, 9, 10, 10];
        row(out, widths, ["tokens", "tapped", "ms", "tokens/s", "of none", "to host", "peak memory"])?;
        for run in forwards {
            let cells = [
                run.tokens.to_string(),
                run.taps.name().to_string(),
                format!("{:.2}", 1e3 * run.timing.seconds),
                digits(run.tokens as f64 / run.timing.seconds),
                format!("{:.2} x", run.times_untapped),
                size(run.bytes as u64),
                run.peak.map_or("-".into(), size),
            ];
            row(out, widths, cells)?;
        }
        writeln!(
            out,
            "   none: only the last token's last hidden state; hidden states: the n_layer + 1 of transformers; everything: every hook, with logits\n   \
             peak memory: main memory of this process, weights included; the memory of a GPU is not reported"
        )?;
        let recorded = forwards.iter().filter(|row| row.counters != Counters::default());
        for (n, run) in recorded.enumerate() {
            if n == 0 {
                writeln!(
                    out,
                    "   What one run records: dispatches (those that wait for another), passes, copies, submits, command buffers"
                )?;
            }
            row(out, [6, -14, 0], [run.tokens.to_string(), run.taps.name().to_string(), counted(&run.counters)])?;
        }
        let widths = [6, -24, 10, 10, 8];
        for (n, of) in kernels.iter().enumerate() {
            if n == 0 {
                writeln!(out, "   Kernels of a run with the last token's logits, each dispatch in a pass of its own")?;
                row(out, widths, ["tokens", "kernel", "dispatches", "ms", "of run"])?;
            }
            let all: f64 = kernels.iter().filter(|other| other.tokens == of.tokens).map(|other| other.seconds).sum();
            let cells = [
                of.tokens.to_string(),
                of.kernel.to_string(),
                of.dispatches.to_string(),
                format!("{:.4}", 1e3 * of.seconds),
                percent(of.seconds / all),
            ];
            row(out, widths, cells)?;
        }
        writeln!(
            out,
            "\n4. Generation: the prompt in one run, then one token per run, with a cache of keys and values"
        )?;
        let widths = [6, 6, 6, 10, 9, 8, 8];
        row(out, widths, ["texts", "before", "tokens", "ms", "tokens/s", "GB/s", "of limit"])?;
        for step in generation {
            let reading = step.bytes as f64 / step.timing.seconds;
            let cells = [
                step.texts.to_string(),
                step.before.to_string(),
                step.tokens.to_string(),
                format!("{:.2}", 1e3 * step.timing.seconds),
                digits((step.texts * step.tokens) as f64 / step.timing.seconds),
                giga(reading),
                percent(reading / limits.reading),
            ];
            row(out, widths, cells)?;
        }
        for step in generation.iter().filter(|step| step.counters != Counters::default()) {
            let recorded = format!("records {}", counted(&step.counters));
            row(
                out,
                [6, 6, 6, 0],
                [step.texts.to_string(), step.before.to_string(), step.tokens.to_string(), recorded],
            )?;
        }
        writeln!(
            out,
            "   before, tokens: positions per text that were run before, and that are run; bytes: every weight read once, whatever the number of texts"
        )?;
        writeln!(
            out,
            "\nAll times are medians over batches after a warm-up.{}",
            if left_out.is_empty() { "" } else { " Not measured:" }
        )?;
        left_out.iter().try_for_each(|left| writeln!(out, "   {}: {}", left.row, left.why))
    }

    fn as_json(&self) -> Value {
        let Report { limits, operations, forwards, kernels, generation, left_out } = &self.report;
        let operations = operations.iter().map(|row| {
            json!({"operation": row.name, "tokens": row.tokens, "ms": 1e3 * row.timing.seconds, "gflops": 1e-9 * row.arithmetic,
                   "share_of_arithmetic": row.arithmetic / limits.arithmetic, "gbytes_per_second": 1e-9 * row.moving,
                   "share_of_reading": row.moving / limits.reading, "batches": row.timing.batches, "runs_per_batch": row.timing.runs})
        });
        let forwards = forwards.iter().map(|row| {
            json!({"tokens": row.tokens, "tapped": row.taps.name(), "ms": 1e3 * row.timing.seconds,
                   "tokens_per_second": row.tokens as f64 / row.timing.seconds, "times_untapped": row.times_untapped,
                   "bytes_to_host": row.bytes, "peak_bytes": row.peak, "counters": row.counters, "batches": row.timing.batches, "runs_per_batch": row.timing.runs})
        });
        let generation = generation.iter().map(|row| {
            let (seconds, reading) = (row.timing.seconds, row.bytes as f64 / row.timing.seconds);
            json!({"texts": row.texts, "before": row.before, "tokens": row.tokens, "ms": 1e3 * seconds, "counters": row.counters,
                   "tokens_per_second": (row.texts * row.tokens) as f64 / seconds, "gbytes_per_second": 1e-9 * reading,
                   "share_of_reading": reading / limits.reading, "batches": row.timing.batches, "runs_per_batch": row.timing.runs})
        });
        let kernels = kernels.iter().map(|row| {
            json!({"tokens": row.tokens, "kernel": row.kernel, "dispatches": row.dispatches, "ms": 1e3 * row.seconds})
        });
        let device = &self.device;
        json!({
            "actscope_version": env!("CARGO_PKG_VERSION"),
            "device": {"kind": device.kind, "name": device.name, "detail": device.detail, "software": device.software},
            "os": os_info::get().to_string(),
            "arch": std::env::consts::ARCH,
            "threads": std::thread::available_parallelism().map_or(1, usize::from),
            "limits": {"gflops": 1e-9 * limits.arithmetic, "gbytes_per_second": 1e-9 * limits.reading},
            "clock": self.clock,
            "settings": self.settings,
            "operations": operations.collect::<Vec<_>>(),
            "model": self.model,
            "weights": self.weights,
            "runs": forwards.collect::<Vec<_>>(),
            "kernels": kernels.collect::<Vec<_>>(),
            "generation": generation.collect::<Vec<_>>(),
            "left_out": left_out.iter().map(|left| json!({"row": left.row, "why": left.why})).collect::<Vec<_>>(),
        })
    }
}
