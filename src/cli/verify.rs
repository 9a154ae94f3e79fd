//! `actscope verify`: checks that this machine computes correct values. Owns the printed table. Read next:
//! `../verify/mod.rs`, which does the checks.

use super::run::options;
use super::{DeviceArg, Failure, ModelArgs, WeightsArg};
use crate::device::DeviceKind;
use crate::device::lockstep::LAST_BITS;
use crate::hooks::site::{Row, Site};
use crate::session::{Progress, Session};
use crate::verify::hooks::{HookRow, ROUNDING, TIMES_ROUNDED, TIMES_TORCH};
use crate::verify::{Stage, Verification};
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;

/// Arguments of `actscope verify`.
#[derive(Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    model: ModelArgs,
    /// The device to compare with the reference
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    device: DeviceArg,
    /// Precision of the weights during the runs, on both devices
    #[arg(long, value_enum, default_value_t = WeightsArg::Stored)]
    weights: WeightsArg,
}

impl Verify {
    pub(super) fn run(self) -> Result<(), Failure> {
        if matches!(self.device, DeviceArg::Reference) {
            return Err(Failure::Usage(
                "--device reference: the other devices are compared with it, and it always agrees with itself; verify gpu or cpu".into(),
            ));
        }
        let session = self.model.open()?.on(options(self.device, self.weights))?;
        self.model.say(format_args!("device: {}", session.device()));
        let verify = async |told: Progress<'_>| {
            // The approximate percentage of the time that has passed when a stage begins, and that the stage takes.
            let share = |stage: Stage| match stage {
                Stage::Kernels => (0, 60),
                Stage::Hooks => (60, 20),
                Stage::Lockstep => (80, 18),
                Stage::Pieces => (98, 2),
            };
            let percent = |stage: Stage, done: usize, of: usize| {
                let _ = told(share(stage).0 + share(stage).1 * done / of, 100);
            };
            session.verify_async(&percent).await
        };
        let report = self.model.with_progress("percent", verify)?;
        let line = bug_report_line(&session, self.weights, &report);
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.model.json {
            writeln!(out, "{}", as_json(&session, self.weights, &report, &line))?;
        } else {
            kernels(&report, &mut out)?;
            hooks(&report, &mut out)?;
            steps(&report, &mut out)?;
            pieces(&report, &mut out)?;
            writeln!(out, "\nTo paste into a bug report:\n{line}")?;
        }
        out.flush()?;
        if report.ok() {
            Ok(())
        } else {
            Err(Failure::Run(format!(
                "the values of {} are wrong: {}; until that is fixed, use {}, and please report the line above",
                report.device,
                report.first_fault().unwrap_or_default(),
                if report.device.kind == DeviceKind::Gpu {
                    "--device cpu or another driver"
                } else {
                    "--device reference"
                },
            )))
        }
    }
}

fn mark(ok: bool) -> &'static str {
    if ok { "ok" } else { "OFF" }
}

/// A magnitude in at most eight characters. An exact zero is `0`.
fn figure(x: f64) -> String {
    if x == 0.0 { "0".into() } else { format!("{x:.1e}") }
}

fn kernels(report: &Verification, out: &mut impl Write) -> std::io::Result<()> {
    let cases: usize = report.kernels.iter().map(|row| row.cases).sum();
    writeln!(
        out,
        "1. Every kernel by itself: {} kernels and operations, {cases} cases with odd shapes and extreme values, against plain loops in f64",
        report.kernels.len()
    )?;
    writeln!(out, "   {:22} {:>5}  {:>7}       worst case", "kernel", "cases", "error")?;
    for row in &report.kernels {
        let share = if row.off.share.is_finite() { format!("{:.2}", row.off.share) } else { "inf".into() };
        let worst = if row.ok() && row.off.share == 0.0 { "none, all are exact" } else { &row.worst };
        writeln!(out, "   {:22} {:>5}  {share:>7}  {:3}  {worst}", row.kernel, row.cases, mark(row.ok()))?;
    }
    writeln!(out, "   error: of the worst element, as a share of what rounding explains; up to 1 is right")
}

/// The hooks of one kind in all layers.
struct Group<'a> {
    row: &'static Row,
    hooks: Vec<&'a HookRow>,
}

impl<'a> Group<'a> {
    fn all(hooks: &'a [HookRow]) -> Vec<Group<'a>> {
        let of = |row: &'static Row| hooks.iter().filter(|h| std::ptr::eq(h.site.row(), row)).collect();
        Site::rows().map(|row| Group { row, hooks: of(row) }).collect()
    }

    /// The hook whose error is the largest share of its bound.
    fn worst(&self) -> &'a HookRow {
        let share = |hook: &HookRow| hook.worst.error / hook.allowed;
        self.hooks
            .iter()
            .copied()
            .reduce(|a, b| if share(b) > share(a) { b } else { a })
            .expect("every kind of hook is in every model")
    }
}

fn hooks(report: &Verification, out: &mut impl Write) -> std::io::Result<()> {
    let rows = Group::all(&report.hooks);
    let layers = report.hooks.iter().filter_map(|row| row.site.layer()).max().map_or(0, |l| l + 1);
    writeln!(
        out,
        "\n2. Whole runs, every hook: {} texts of {:?} tokens, {layers} blocks, against the same run in f64",
        report.tokens.len(),
        report.tokens
    )?;
    let torch = if report.torch_is_of_this_model { "PyTorch" } else { "PyTorch*" };
    writeln!(out, "   {:36} {:>8} {:>8}  {:>8} {torch:>9}       worst at", "hook", "error", "allowed", "f32 alone")?;
    for group in &rows {
        let worst = group.worst();
        let name = group.row.name.replace("{i}", "*");
        let known = worst.torch.map_or("-".into(), figure);
        let place = worst.site.layer().map_or(String::new(), |layer| format!("block {layer}, "));
        let place = if worst.worst.error == 0.0 {
            String::new()
        } else {
            format!("{place}text {}, token {}", report.text_of(worst), worst.worst.position)
        };
        let ok = group.hooks.iter().all(|hook| hook.ok());
        let line = format!(
            "   {name:36} {:>8} {:>8}  {:>8} {known:>9}  {:3}  {place}",
            figure(worst.worst.error),
            figure(worst.allowed),
            figure(worst.rounded),
            mark(ok),
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    writeln!(
        out,
        "   each row is the block nearest to its bound, at its worst token; error: |device - f64| / |f64| there"
    )?;
    writeln!(
        out,
        "   f32 alone: exact operations with results rounded to f32. PyTorch: its own f32 run on a CPU, against f64"
    )?;
    if report.torch_is_of_this_model {
        writeln!(out, "   allowed: {TIMES_TORCH} times PyTorch's error on the hook, or {ROUNDING:e}")
    } else {
        writeln!(
            out,
            "   * measured on the demo model, not on this model\n   allowed: {TIMES_ROUNDED} times the error of f32 alone, or {ROUNDING:e}"
        )
    }
}

fn steps(report: &Verification, out: &mut impl Write) -> std::io::Result<()> {
    let steps = &report.steps;
    writeln!(
        out,
        "\n3. The same runs, operation by operation, both sides given the same inputs: {} compared",
        steps.compared
    )?;
    for step in &steps.mismatches {
        writeln!(
            out,
            "   OFF  {} {}: {}; off by {} in row {}, {:.1} times what is allowed",
            step.kind.name(),
            step.part,
            step.shape,
            figure(step.error),
            step.row,
            step.share
        )?;
    }
    if let (Some(worst), true) = (&steps.worst, steps.mismatches.is_empty()) {
        writeln!(
            out,
            "   ok   no operation differs; {} {} comes nearest, with {:.2} of what is allowed",
            worst.kind.name(),
            worst.part,
            worst.share
        )?;
    }
    writeln!(
        out,
        "   allowed, in the norm of a row: {LAST_BITS} times the effect of a last bit in every input, plus {ROUNDING:e} of the row"
    )
}

fn pieces(report: &Verification, out: &mut impl Write) -> std::io::Result<()> {
    let pieces = &report.pieces;
    writeln!(
        out,
        "\n4. The same texts a few tokens at a time, as when text is generated: {} runs, every hook against the run in one",
        pieces.runs
    )?;
    for row in pieces.rows.iter().filter(|row| !row.ok()) {
        writeln!(
            out,
            "   OFF  {}: differs by {} at text {}, token {}; allowed {}",
            row.site,
            figure(row.worst.error),
            report.text_of_piece(row),
            row.worst.position,
            figure(row.allowed)
        )?;
    }
    match pieces.worst() {
        Some(row) if pieces.ok() && row.worst.error == 0.0 => {
            writeln!(out, "   ok   every hook is the same to the last bit")
        }
        Some(row) if pieces.ok() => writeln!(
            out,
            "   ok   {} comes nearest: it differs by {}, and {} is allowed, twice its bound above",
            row.site,
            figure(row.worst.error),
            figure(row.allowed)
        ),
        _ => Ok(()),
    }
}

/// A description of this machine on one line, for a bug report.
fn bug_report_line(session: &Session, weights: WeightsArg, report: &Verification) -> String {
    let verdict = report.first_fault().unwrap_or_else(|| "all right".into());
    format!(
        "actscope {}; {}; {} {}; model {} {}, weights {}; {verdict}",
        env!("CARGO_PKG_VERSION"),
        report.device,
        os_info::get(),
        std::env::consts::ARCH,
        session.model().name(),
        session.model().checkpoint().fingerprint(),
        weights.name(),
    )
}

fn as_json(session: &Session, weights: WeightsArg, report: &Verification, line: &str) -> Value {
    let mut all = report.to_json();
    all["os"] = json!(os_info::get().to_string());
    all["actscope_version"] = json!(env!("CARGO_PKG_VERSION"));
    all["model"] = json!(session.model().name());
    all["model_fingerprint"] = json!(session.model().checkpoint().fingerprint());
    all["weights"] = json!(weights.name());
    all["bug_report"] = json!(line);
    all
}
