//! `extract --check`: reports which values of a run were compared with the reference, and fails on a mismatch. Read
//! next: `../verify/sample.rs`.

use super::{Failure, ModelArgs, n_hooks};
use crate::batch::Batch;
use crate::hooks::request::Hooks;
use crate::hooks::site::Site;
use crate::session::{Progress, Session};
use crate::verify::sample::{Found, Probe, Sample};

/// Compares a sample of a run of `hooks` on `batch` with the reference. `what_is_run` names a text of the batch in
/// messages: "text" or "window".
///
/// # Errors
/// [`Failure::Run`] on a mismatch.
pub(super) fn hold(
    sample: Sample,
    session: &Session,
    batch: &Batch,
    hooks: &Hooks,
    model: &ModelArgs,
    what_is_run: &str,
) -> Result<(), Failure> {
    let check = async |told: Progress<'_>| {
        let hear = |done: usize, of: usize| {
            let _ = told(done, of);
        };
        session.check_async(batch, hooks, sample, &hear).await
    };
    let checked = model.with_progress("parts checked", check)?;
    for Probe { text, tokens, sites, positions, apart } in &checked.probes {
        let what = match sites.as_slice() {
            [one] => one.to_string(),
            [first, .., last] => format!("{} hooks from {first} to {last}", sites.len()),
            [] => String::new(),
        };
        let (all, how) = (batch.texts()[*text].len(), if *apart { ", run separately" } else { "" });
        model.say(format_args!(
            "checked against f64: {what_is_run} {text}, {positions} of the first {tokens} of its {all} tokens{how}: {what}"
        ));
    }
    let share = |found: &Found| found.worst.error / found.allowed;
    let mut mismatches = checked.mismatches();
    let Some(Found { site, worst, allowed }) = mismatches.next() else {
        if let Some(nearest) = checked.found.iter().max_by(|a, b| share(a).total_cmp(&share(b))) {
            let Found { site, worst, allowed } = nearest;
            model.say(format_args!(
                "all values are within bounds; {site} comes nearest to its bound: {:.1e} of {allowed:.1e} allowed",
                worst.error
            ));
        }
        return Ok(());
    };
    let others: Vec<Site> = mismatches.map(|found| found.site).collect();
    let others = if others.is_empty() { String::new() } else { format!(", and {} after it", n_hooks(others.len())) };
    let device = session.device();
    Err(Failure::Run(format!(
        "these values are wrong, and nothing was written: on {device}, {site} is off by {:.1e} at {what_is_run} {}, token {} ({allowed:.1e} is allowed){others}; `actscope verify --model {} --device {}` finds the cause; try --device cpu",
        worst.error,
        worst.text,
        worst.position,
        session.model().name(),
        device.kind,
    )))
}
