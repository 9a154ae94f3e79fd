//! Compares every hook of every fixture on every device with f64 goldens from transformers and TransformerLens
//! (tools/goldens). Each folder in tests/fixtures is one test on each device, and a new folder is found automatically.
//! An incomplete folder, without a golden file or without its model, fails.
//!
//! The bound: no worse than 4 times PyTorch's own f32 error against f64 on the same hook, or 4e-6 where that is less
//! (rounding in another order). Seen red: tools/goldens/README.md lists the injected faults, and the error of the
//! smallest (erf for tanh) is 2e-4. An empty folder, one without weights, and a golden with one changed value each
//! failed under their own name.

mod common;

use actscope::device::Choice;
use actscope::session::Model;
use actscope::verify::hooks::{ROUNDING, TIMES_TORCH};
use actscope::verify::measure;
use common::{DEVICES, Golden, fixtures};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn check(folder: &Path, choice: Choice) -> Result<(), Failed> {
    if !folder.join("golden.safetensors").is_file() {
        return Err("it has no golden.safetensors; tools/goldens makes fixtures, whole".into());
    }
    let golden = Golden::read(folder);
    let session = Model::open(&golden.model(folder).to_string_lossy())?.on(choice)?;
    let batch = session.model().batch(&golden.ids)?;
    let mut hooks = session.model().hooks();
    hooks.tap("*")?;
    let capture = session.run(&batch, &hooks)?;

    let mut off = Vec::new();
    if capture.iter().count() != golden.hooks.len() {
        off.push(format!("{} hooks, and the golden has {}", capture.iter().count(), golden.hooks.len()));
    }
    for (site, array) in capture.iter() {
        let hook = site.name();
        let allowed = (TIMES_TORCH * golden.torch_error(&hook)).max(ROUNDING);
        let Some(want) = golden.hooks.get(&hook) else {
            off.push(format!("{hook}: the golden lacks it"));
            continue;
        };
        let worst = measure::tokens(site, array.view(), want.view());
        if worst.error > allowed {
            off.push(format!(
                "{hook}: {:.2e} at text {}, token {}, allowed {allowed:.2e}",
                worst.error, worst.text, worst.position
            ));
        }
    }
    if off.is_empty() { Ok(()) } else { Err(format!("{} hooks are off:\n{}", off.len(), off.join("\n")).into()) }
}

fn main() -> ExitCode {
    // ACTSCOPE_FIXTURES names another folder of fixtures, for checkpoints that are not in this repository.
    let folder = std::env::var_os("ACTSCOPE_FIXTURES").map_or(fixtures(), PathBuf::from);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut cases: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "no fixtures in {}", folder.display());
    let trials = cases.into_iter().flat_map(|case| {
        DEVICES.map(|choice| {
            let (case, name) = (case.clone(), case.file_name().unwrap_or_default().to_string_lossy().into_owned());
            Trial::test(format!("{name}::{}", format!("{choice:?}").to_lowercase()), move || check(&case, choice))
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
