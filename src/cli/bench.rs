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

/// A report, and what it was measured on.
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
        // Opened as a session opens it, so that the benchmark measures what users run.
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
            weights: match self.weights {
                WeightsArg::Stored => "stored",
                WeightsArg::F32 => "f32",
                WeightsArg::F16 => "f16",
                WeightsArg::Bf16 => "bf16",
            },
        })
    }
}

/// A rate in units of 10^9 per second, with three digits.
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
        "{dispatches} dispatches ({barriers} wait), {passes} passes, {copies} copies, {submits} submits, {command_buffers} command buffers"
    )
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
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
        writeln!(
            out,
            "   {:24} {:>6} {:>10} {:>9} {:>8} {:>8} {:>8}",
            "operation", "tokens", "ms", "GFLOP/s", "of limit", "GB/s", "of limit"
        )?;
        for row in operations {
            writeln!(
                out,
                "   {:24} {:>6} {:>10.4} {:>9} {:>8} {:>8} {:>8}",
                row.name,
                row.tokens,
                1e3 * row.timing.seconds,
                giga(row.arithmetic),
                percent(row.arithmetic / limits.arithmetic),
                giga(row.moving),
                percent(row.moving / limits.reading),
            )?;
        }
        writeln!(
            out,
            "   A multiply-add is two operations. Bytes: inputs and weights read once, the result written once. Copies of the weights\n   \
             take turns, because in a run the weights come from memory. A row can exceed 100 %: its values may come from caches, or\n   \
             it may read faster than the plain loop that measures the limit."
        )?;
        let weights = if self.weights == "stored" { String::new() } else { format!(", weights {}", self.weights) };
        writeln!(out, "\n3. Whole runs of one text, model {}{weights}, by the host's clock", self.model)?;
        writeln!(
            out,
            "   {:>6} {:14} {:>10} {:>9} {:>9} {:>10} {:>10}",
            "tokens", "tapped", "ms", "tokens/s", "of none", "to host", "peak memory"
        )?;
        for row in forwards {
            writeln!(
                out,
                "   {:>6} {:14} {:>10.2} {:>9} {:>9} {:>10} {:>10}",
                row.tokens,
                row.taps.name(),
                1e3 * row.timing.seconds,
                digits(row.tokens as f64 / row.timing.seconds),
                format!("{:.2} x", row.times_untapped),
                size(row.bytes as u64),
                row.peak.map_or("-".into(), size),
            )?;
        }
        writeln!(
            out,
            "   none: only the last token's last hidden state; hidden states: the n_layer + 1 of transformers; everything: every hook, with logits\n   \
             peak memory: main memory of this process, weights included; the memory of a GPU is not reported"
        )?;
        let recorded = forwards.iter().filter(|row| row.counters != Counters::default());
        for (n, row) in recorded.enumerate() {
            if n == 0 {
                writeln!(
                    out,
                    "   What one run records: dispatches (of which wait for another), passes, copies, submits, command buffers"
                )?;
            }
            writeln!(out, "   {:>6} {:14} {}", row.tokens, row.taps.name(), counted(&row.counters))?;
        }
        for (n, row) in kernels.iter().enumerate() {
            if n == 0 {
                writeln!(out, "   Kernels of a run with the last token's logits, each dispatch in a pass of its own")?;
                writeln!(out, "   {:>6} {:24} {:>10} {:>10} {:>8}", "tokens", "kernel", "dispatches", "ms", "of run")?;
            }
            let all: f64 = kernels.iter().filter(|other| other.tokens == row.tokens).map(|other| other.seconds).sum();
            let share = percent(row.seconds / all);
            let ms = 1e3 * row.seconds;
            writeln!(out, "   {:>6} {:24} {:>10} {ms:>10.4} {share:>8}", row.tokens, row.kernel, row.dispatches)?;
        }
        writeln!(
            out,
            "\n4. Generation: the prompt in one run, then one token per run, with a cache of keys and values"
        )?;
        writeln!(
            out,
            "   {:>6} {:>6} {:>6} {:>10} {:>9} {:>8} {:>8}",
            "texts", "before", "tokens", "ms", "tokens/s", "GB/s", "of limit"
        )?;
        for row in generation {
            let reading = row.bytes as f64 / row.timing.seconds;
            writeln!(
                out,
                "   {:>6} {:>6} {:>6} {:>10.2} {:>9} {:>8} {:>8}",
                row.texts,
                row.before,
                row.tokens,
                1e3 * row.timing.seconds,
                digits((row.texts * row.tokens) as f64 / row.timing.seconds),
                giga(reading),
                percent(reading / limits.reading),
            )?;
        }
        for row in generation.iter().filter(|row| row.counters != Counters::default()) {
            let recorded = counted(&row.counters);
            writeln!(out, "   {:>6} {:>6} {:>6} records {recorded}", row.texts, row.before, row.tokens)?;
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
