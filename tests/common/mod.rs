//! What the tests share: the three devices, fixtures, and closeness.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod checkpoint;

use actscope::device::Choice;
use actscope::hooks::site;
use actscope::verify::measure;
use actscope::{Model, Session};
use ndarray::{ArrayD, ArrayViewD, IxDyn};
use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The devices that every test body runs on.
pub const DEVICES: [Choice; 3] = [Choice::Reference, Choice::Cpu, Choice::Gpu];

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A fixture's checkpoint on a device.
pub fn session(name: &str, choice: Choice) -> Session {
    Model::open(&fixtures().join(name).to_string_lossy()).unwrap().on(choice).unwrap()
}

/// A list of token ids in a golden.
pub fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A list of numbers in a golden.
pub fn floats(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// A golden file: what every hook must hold, in f64.
pub struct Golden {
    pub ids: Vec<Vec<u32>>,
    pub hooks: BTreeMap<String, ArrayD<f64>>,
    pub metadata: std::collections::HashMap<String, String>,
}

impl Golden {
    pub fn read(folder: &Path) -> Golden {
        let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let longs = |name: &str| -> Vec<i64> {
            let data = file.tensor(name).unwrap().data();
            data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
        };
        let n_pos = file.tensor("input_ids").unwrap().shape()[1];
        let (ids, mask) = (longs("input_ids"), longs("attention_mask"));
        let row = |(ids, mask): (&[i64], &[i64])| -> Vec<u32> {
            ids.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id as u32).collect()
        };
        let hooks = file.iter().filter(|(name, _)| name.contains("hook_")).map(|(name, view)| {
            assert_eq!(view.dtype(), safetensors::Dtype::F64);
            let values = view.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
            (name.to_string(), ArrayD::from_shape_vec(IxDyn(view.shape()), values).unwrap())
        });
        Golden {
            ids: ids.chunks(n_pos).zip(mask.chunks(n_pos)).map(row).collect(),
            hooks: hooks.collect(),
            metadata: header.metadata().clone().unwrap_or_default(),
        }
    }

    /// The checkpoint: the fixture's own folder, or the one that the golden names.
    pub fn model(&self, folder: &Path) -> PathBuf {
        match self.metadata.get("model") {
            Some(model) => Path::new(env!("CARGO_MANIFEST_DIR")).join(model),
            None => folder.into(),
        }
    }

    /// The error that PyTorch's own f32 CPU run has on a hook, by the same measure.
    pub fn torch_error(&self, hook: &str) -> f64 {
        let errors: Value = serde_json::from_str(&self.metadata["torch_f32_error"]).unwrap();
        errors[hook].as_f64().unwrap_or_else(|| panic!("the golden has no torch_f32_error for {hook}"))
    }
}

/// [`measure::tokens`] of a hook that is known by name.
pub fn worst_token_error(hook: &str, got: ArrayViewD<'_, f32>, want: &ArrayD<f64>) -> f64 {
    const BLOCKS: usize = 64; // more than any model has
    let site = site::resolve(hook, BLOCKS).unwrap()[0];
    measure::tokens(site, got, want.view()).error
}

/// [`measure::elements`], none of them further off than allowed.
pub fn assert_close(what: &str, got: &[f32], want: &[f32], atol: f64, rtol: f64) {
    let off = measure::elements(got, want, atol, rtol);
    assert!(off.share <= 1.0, "{what}: {off:?} times the tolerance ({atol:e} + {rtol:e} |x|)");
}

/// A Python with the package `module`: independent readers for what we write. Made by tools/check.sh; ACTSCOPE_PYTHON
/// names another.
pub fn python(module: &str) -> PathBuf {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    let python = std::env::var_os("ACTSCOPE_PYTHON").map_or(made, PathBuf::from);
    let answer = std::process::Command::new(&python).args(["-c", &format!("import {module}")]).output();
    assert!(
        answer.is_ok_and(|output| output.status.success()),
        "{} is no Python with {module}; make it with\n  \
         python3 -m venv target/venv && target/venv/bin/pip install -r tests/requirements.txt\n\
         or name another in the environment variable ACTSCOPE_PYTHON",
        python.display()
    );
    python
}
