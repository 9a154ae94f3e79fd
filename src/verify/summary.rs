//! The result of a verification in one sentence and as JSON. Owns which of several faults the sentence names.
//! Read next: `mod.rs`, which has the result.

use super::Verification;
use serde_json::{Value, json};

impl Verification {
    /// The first failed check, in an order in which causes come before effects.
    pub fn first_fault(&self) -> Option<String> {
        let kernel = self.kernels.iter().find(|row| !row.ok()).map(|row| match row.cases {
            0 => format!("kernel {} did not run", row.kernel),
            _ => format!("kernel {} is wrong at {}", row.kernel, row.worst),
        });
        let step = || {
            let step = self.steps.mismatches.first()?;
            Some(format!("{} is wrong {}, {}", step.kind.name(), step.part, step.shape))
        };
        let hook = || {
            // Every single operation is correct, but the whole run is not.
            let hook = self.hooks.iter().find(|row| !row.ok())?;
            Some(format!(
                "{} is off by {:.1e} although every single operation is correct, as if memory did not hold what was last written",
                hook.site, hook.worst.error
            ))
        };
        let piece = || {
            let row = self.pieces.worst().filter(|row| !row.ok())?;
            Some(format!(
                "{} of a text run in pieces differs by {:.1e} from the whole run, as if the cached keys or values had changed",
                row.site, row.worst.error
            ))
        };
        kernel.or_else(step).or_else(hook).or_else(piece)
    }

    /// All rows. JSON has no infinity: an infinite error is the text `infinite`.
    pub fn to_json(&self) -> Value {
        let number = |x: f64| if x.is_finite() { json!(x) } else { json!("infinite") };
        let kernels = self.kernels.iter().map(|row| {
            json!({"kernel": row.kernel, "cases": row.cases, "failed": row.failed, "worst_case": row.worst,
                   "share_of_allowed": number(row.off.share), "ok": row.ok()})
        });
        let hooks = self.hooks.iter().map(|row| {
            json!({"hook": row.site.name(), "error": number(row.worst.error), "allowed": number(row.allowed), "f32_alone": number(row.rounded),
                   "torch_f32": row.torch, "text": self.text_of(row), "position": row.worst.position, "ok": row.ok()})
        });
        let mismatches = self.steps.mismatches.iter().map(|step| {
            json!({"op": step.kind.name(), "place": step.part.to_string(), "weight": step.weight, "shape": step.shape, "row": step.row,
                   "error": number(step.error), "share_of_allowed": number(step.share)})
        });
        let pieces = self.pieces.rows.iter().map(|row| {
            json!({"hook": row.site.name(), "error": number(row.worst.error), "allowed": number(row.allowed),
                   "text": self.text_of_piece(row), "position": row.worst.position, "ok": row.ok()})
        });
        let device = &self.device;
        json!({
            "ok": self.ok(),
            "first_fault": self.first_fault(),
            "device": {"kind": device.kind, "name": device.name, "detail": device.detail, "software": device.software},
            "tokens": self.tokens,
            "kernels": kernels.collect::<Vec<_>>(),
            "hooks": hooks.collect::<Vec<_>>(),
            "torch_is_of_this_model": self.torch_is_of_this_model,
            "operations_compared": self.steps.compared,
            "operations_parted": mismatches.collect::<Vec<_>>(),
            "in_pieces": pieces.collect::<Vec<_>>(),
        })
    }
}
