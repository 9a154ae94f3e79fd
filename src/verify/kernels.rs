//! Every case of the list on one device, against the reference. Owns what came of it per kernel: where the device says which
//! kernels ran they are named, else the operation stands for them.

use super::cases::Case;
use super::measure::Off;
use super::{Stage, Tell, list};
use crate::device::{Device, DeviceError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

/// What came of the cases that ran one kernel.
#[derive(Clone, Debug)]
pub struct KernelRow {
    /// The kernel's file stem, or the operation's name on devices that do not say which kernels they choose.
    pub kernel: String,
    /// How many cases ran it.
    pub cases: usize,
    /// How many of them were off.
    pub failed: usize,
    /// The worst of them: the operation and its case in words,
    pub worst: String,
    /// and its worst element, as a share of what is allowed.
    pub off: Off,
}

impl KernelRow {
    /// True when every case came near enough, and there was one.
    pub fn ok(&self) -> bool {
        self.cases > 0 && self.failed == 0
    }
}

/// The cases, and what the reference gives for each once somebody has asked.
pub struct Suite {
    operations: Vec<Operation>,
}

struct Operation {
    name: &'static str,
    cases: fn() -> Vec<Case>,
    expected: OnceLock<Vec<Vec<f32>>>,
}

impl Suite {
    /// Every case there is.
    pub fn new() -> Suite {
        let operation = |&(name, cases)| Operation { name, cases, expected: OnceLock::new() };
        Suite { operations: list::OPERATIONS.iter().map(operation).collect() }
    }

    /// The cases of one operation.
    pub fn of(name: &str) -> Suite {
        let mut suite = Suite::new();
        suite.operations.retain(|operation| operation.name == name);
        suite
    }

    /// Runs every case on `dev`. A kernel that the device could choose and that no case ran has a row without cases, which
    /// is not in order: it has not been checked.
    ///
    /// # Errors
    /// [`DeviceError`] when the device failed.
    pub async fn check<D: Device>(&self, dev: &D, tell: Tell<'_>) -> Result<Vec<KernelRow>, DeviceError> {
        let mut order: Vec<String> = Vec::new();
        let mut rows: BTreeMap<String, KernelRow> = BTreeMap::new();
        dev.kernels_run();
        for (n, operation) in self.operations.iter().enumerate() {
            tell(Stage::Kernels, n, self.operations.len());
            let cases = (operation.cases)();
            let expected = operation.expected.get_or_init(|| cases.iter().map(Case::expected).collect());
            for (case, expected) in cases.iter().zip(expected) {
                let off = case.judge(&case.on(dev).await?, expected);
                for kernel in self.blamed(case, dev.kernels_run()) {
                    let row = rows.entry(kernel.clone()).or_insert_with(|| {
                        order.push(kernel.clone());
                        let off = Off { share: -1.0, ..off };
                        KernelRow { kernel, cases: 0, failed: 0, worst: String::new(), off }
                    });
                    row.cases += 1;
                    row.failed += usize::from(off.share > 1.0);
                    if off.share > row.off.share {
                        (row.worst, row.off) = (format!("{} {}", case.op.name(), case.what()), off);
                    }
                }
            }
        }
        tell(Stage::Kernels, self.operations.len(), self.operations.len());
        let mut rows: Vec<KernelRow> = order.into_iter().filter_map(|kernel| rows.remove(&kernel)).collect();
        let seen: BTreeSet<String> = rows.iter().map(|row| row.kernel.clone()).collect();
        let unseen = dev.kernels().into_iter().filter(|kernel| !seen.contains(kernel));
        let off = Off { share: 0.0, at: 0, got: 0.0, want: 0.0 };
        let row = |kernel| KernelRow { kernel, cases: 0, failed: 0, worst: "no case ran it".into(), off };
        rows.extend(unseen.map(row).collect::<Vec<_>>());
        Ok(rows)
    }

    /// The kernels whose result a case looked at. `edit` brings every tensor to the device and is blamed for its own cases
    /// only, `copy_out` for those that read a part of columns.
    fn blamed(&self, case: &Case, run: BTreeSet<&'static str>) -> Vec<String> {
        let name = case.op.name();
        let carries = |kernel: &&str| matches!(*kernel, "edit" | "copy_out") && name != "edit";
        let mut own: Vec<String> = run.into_iter().filter(|kernel| !carries(kernel)).map(String::from).collect();
        if case.note == "read in part" {
            own.retain(|kernel| kernel != "edit");
        }
        if own.is_empty() { vec![name.into()] } else { own }
    }
}

impl Default for Suite {
    fn default() -> Suite {
        Suite::new()
    }
}
