//! Runs every case of the list on one device and compares it with the reference. Owns the results per kernel. If the
//! device does not report which kernels ran, there is one result per operation. Read next: `cases.rs`.

use super::cases::{Case, Tested};
use super::measure::Off;
use super::{Stage, Tell, list};
use crate::device::{Device, DeviceError, OpKind};
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// The result of the cases that ran one kernel.
#[derive(Clone, Debug)]
pub struct KernelRow {
    /// The kernel's file stem, or the operation's name on devices that do not report their kernels.
    pub kernel: String,
    /// How many cases ran it.
    pub cases: usize,
    /// How many of them failed.
    pub failed: usize,
    /// The worst case: its operation and a description.
    pub worst: String,
    /// The worst element of that case.
    pub off: Off,
}

impl KernelRow {
    fn add(&mut self, case: &Case, off: Off) {
        if self.cases == 0 || off.share > self.off.share {
            (self.worst, self.off) = (format!("{} {}", case.op.kind().name(), case.what()), off);
        }
        self.cases += 1;
        self.failed += usize::from(off.share > 1.0);
    }

    /// True when at least one case ran and all of them passed.
    pub fn ok(&self) -> bool {
        self.cases > 0 && self.failed == 0
    }
}

/// The cases, and the reference's result of each, computed at first use.
#[derive(Debug)]
pub struct Suite {
    operations: Vec<Operation>,
}

#[derive(Debug)]
struct Operation {
    kind: OpKind,
    cases: list::MakeCases,
    expected: OnceLock<Vec<Vec<f32>>>,
}

impl Suite {
    /// All cases.
    pub fn new() -> Suite {
        let operation = |&(kind, cases)| Operation { kind, cases, expected: OnceLock::new() };
        Suite { operations: list::OPERATIONS.iter().map(operation).collect() }
    }

    /// The cases of one operation.
    pub fn of(kind: OpKind) -> Suite {
        let mut suite = Suite::new();
        suite.operations.retain(|operation| operation.kind == kind);
        suite
    }

    /// Runs every case on every variant of a device. A kernel that a variant could choose but that no case ran gets a
    /// row without cases, which counts as a failure because the kernel was not checked.
    ///
    /// # Errors
    /// [`DeviceError`] when the device fails.
    pub async fn check<D: Device>(&self, variants: &[&D], tell: Tell<'_>) -> Result<Vec<KernelRow>, DeviceError> {
        self.check_some(variants, &|_, _| true, &mut |_, _, _| {}, tell).await
    }

    /// [`Suite::check`] of the cases that `wanted` accepts, by operation and number within it. `ran` receives the kernels that
    /// each of them ran, whichever of them the result is counted for.
    ///
    /// # Errors
    /// As [`Suite::check`].
    pub async fn check_some<D: Device>(
        &self,
        variants: &[&D],
        wanted: &dyn Fn(OpKind, usize) -> bool,
        ran: &mut dyn FnMut(OpKind, usize, &BTreeSet<&'static str>),
        tell: Tell<'_>,
    ) -> Result<Vec<KernelRow>, DeviceError> {
        let mut rows: Vec<KernelRow> = Vec::new();
        variants.iter().for_each(|dev| drop(dev.take_kernels_run()));
        for (n, operation) in self.operations.iter().enumerate() {
            tell(Stage::Kernels, n, self.operations.len());
            let cases = (operation.cases)();
            let expected = operation.expected.get_or_init(|| cases.iter().map(Case::expected).collect());
            let all = cases.iter().zip(expected).enumerate();
            for (number, (case, expected)) in all.filter(|(number, _)| wanted(operation.kind, *number)) {
                for dev in variants {
                    let off = case.judge(&case.on(*dev).await?, expected);
                    let kernels = dev.take_kernels_run();
                    ran(operation.kind, number, &kernels);
                    for kernel in blamed(case, kernels) {
                        row_of(&mut rows, &kernel).add(case, off);
                    }
                }
            }
        }
        tell(Stage::Kernels, self.operations.len(), self.operations.len());
        for kernel in variants.iter().flat_map(|dev| dev.kernels()) {
            row_of(&mut rows, &kernel);
        }
        Ok(rows)
    }
}

/// The row of a kernel, added if there is none.
fn row_of<'a>(rows: &'a mut Vec<KernelRow>, kernel: &str) -> &'a mut KernelRow {
    let at = rows.iter().position(|row| row.kernel == kernel).unwrap_or_else(|| {
        let off = Off { share: 0.0, at: 0, got: 0.0, want: 0.0 };
        rows.push(KernelRow { kernel: kernel.into(), cases: 0, failed: 0, worst: "no case ran it".into(), off });
        rows.len() - 1
    });
    &mut rows[at]
}

/// The kernels that a case tests. `copy_out` is tested by the cases that read back a part of the columns.
fn blamed(case: &Case, run: BTreeSet<&'static str>) -> Vec<String> {
    let reads_back = case.of == Tested::Readback;
    let own: Vec<String> =
        run.into_iter().filter(|kernel| (*kernel == COPY_WINDOW) == reads_back).map(String::from).collect();
    // A product split along k runs two kernels, and so does attention whose keys are split, or over a cache that was filled
    // before. Either may be at fault.
    let beside = ["linear_join", "attention_join", "cache_append"];
    if own.len() == 2 && own.iter().any(|kernel| beside.contains(&kernel.as_str())) {
        return own;
    }
    // If several kernels ran in sequence, the fault cannot be attributed; each of them has cases of its own.
    if own.len() == 1 { own } else { vec![case.op.kind().name().into()] }
}

/// The kernel that gathers a part of a tensor for reading back.
const COPY_WINDOW: &str = "copy_window";

impl Default for Suite {
    fn default() -> Suite {
        Suite::new()
    }
}
