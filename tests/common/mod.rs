//! What the tests share: the three devices, fixtures, and the two measures of closeness.
#![allow(dead_code)] // each test binary uses its part

pub mod checkpoint;

use actscope::device::Choice;
use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The devices that every test body runs on.
pub const DEVICES: [Choice; 3] = [Choice::Reference, Choice::Cpu, Choice::Gpu];

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
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
        let errors: serde_json::Value = serde_json::from_str(&self.metadata["torch_f32_error"]).unwrap();
        errors[hook].as_f64().unwrap_or_else(|| panic!("the golden has no torch_f32_error for {hook}"))
    }
}

/// Worst relative error over tokens: max ||got - want|| / ||want||, norms over all that the hook holds at that token (for
/// scores and patterns: over its query row in every head). Infinite where a NaN appears, a -inf is misplaced, or a padded
/// slot is not zero. The same measure as tools/goldens/compare.py.
pub fn worst_token_error(hook: &str, got: ArrayViewD<'_, f32>, want: &ArrayD<f64>) -> f64 {
    assert_eq!(got.shape(), want.shape(), "{hook}");
    let token_axis = if hook.ends_with("attn_scores") || hook.ends_with("pattern") { 2 } else { 1 };
    let mut worst = 0.0f64;
    for (got, want) in got.axis_iter(Axis(0)).zip(want.axis_iter(Axis(0))) {
        for (got, want) in got.axis_iter(Axis(token_axis - 1)).zip(want.axis_iter(Axis(token_axis - 1))) {
            let (mut apart, mut size) = (0.0, 0.0);
            for (g, w) in got.iter().zip(&want) {
                let g = f64::from(*g);
                if *w == f64::NEG_INFINITY && g == f64::NEG_INFINITY {
                    continue;
                }
                apart += (g - w) * (g - w);
                size += w * w;
            }
            // A NaN or an infinity on either side makes `apart` one of them, and then the error infinite.
            let error = if apart.is_finite() {
                apart.sqrt() / if size == 0.0 { 1.0 } else { size.sqrt() }
            } else {
                f64::INFINITY
            };
            worst = worst.max(error);
        }
    }
    worst
}

/// NaN and infinity fail first, then `|a - b| <= atol + rtol |b|`.
pub fn assert_close(what: &str, got: &[f32], want: &[f32], atol: f64, rtol: f64) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let (mut worst, mut at, mut total) = (0.0, 0, 0.0);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(!g.is_nan() && g.is_infinite() == w.is_infinite(), "{what}: {g} at {i}, expected {w}");
        if g.is_infinite() {
            assert_eq!(g, w, "{what} at {i}");
            continue;
        }
        let off = (f64::from(*g) - f64::from(*w)).abs();
        total += off;
        let share = off / (atol + rtol * f64::from(*w).abs());
        if share > worst {
            (worst, at) = (share, i);
        }
    }
    assert!(
        worst <= 1.0,
        "{what}: {} at {at}, expected {}: {worst:.3} times the tolerance ({atol:e} + {rtol:e} |x|), mean error {:e}",
        got[at],
        want[at],
        total / got.len() as f64
    );
}

/// A Python with the package `module`: independent readers for what we write. Made by tools/check.sh; ACTSCOPE_PYTHON names
/// another.
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
