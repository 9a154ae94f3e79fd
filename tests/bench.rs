//! `actscope bench` and its measurements. No test depends on speed.

#[path = "common/binary.rs"]
mod binary;

use actscope::bench::operations::OPERATIONS;
use actscope::bench::{self, TOKENS, random};
use actscope::device::Op;
use actscope::device::cpu::Cpu;
use actscope::device::gpu::Gpu;
use actscope::device::probe::Measured;
use binary::*;
use serde_json::Value;

/// Every figure of every row: finite and above zero.
fn assert_figures(rows: &Value, fields: &[&str]) {
    for row in rows.as_array().unwrap() {
        for field in fields {
            let figure = row[field].as_f64().unwrap_or_else(|| panic!("{field} of {row}"));
            assert!(figure.is_finite() && figure > 0.0, "{field} of {row}");
        }
    }
}

/// Every row is measured, or named as skipped. Seen red (45 rows, not 47) where rows were skipped without a message.
fn check_json(device: &str) {
    let args = ["bench", "--model", "demo", "--device", device, "--json", "--quiet"];
    let output = actscope(args).timeout(std::time::Duration::from_secs(300)).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["device"]["kind"], device);
    assert_eq!(json["model"], "demo");
    for (field, whole) in [("os", &json), ("detail", &json["device"]), ("clock", &json)] {
        assert!(whole[field].as_str().is_some_and(|words| !words.is_empty()), "{field}");
    }
    assert_figures(&Value::from(vec![json["limits"].clone()]), &["gflops", "gbytes_per_second"]);
    let of_operations = ["ms", "gflops", "share_of_arithmetic", "gbytes_per_second", "share_of_reading", "batches"];
    assert_figures(&json["operations"], &of_operations);
    assert_figures(&json["runs"], &["ms", "tokens_per_second", "times_untapped", "bytes_to_host", "batches"]);
    let of_generation = ["texts", "tokens", "ms", "tokens_per_second", "gbytes_per_second", "share_of_reading"];
    assert_figures(&json["generation"], &of_generation);
    if cfg!(target_os = "linux") {
        assert_figures(&json["runs"], &["peak_bytes"]);
    }
    // The demo model has 256 positions; no row has more.
    let rows = OPERATIONS.len() * TOKENS.len() + 3 * TOKENS.iter().filter(|tokens| **tokens <= 256).count() + 5;
    let n = |field: &str| json[field].as_array().unwrap().len();
    assert_eq!(n("operations") + n("runs") + n("generation") + n("left_out"), rows, "{json}");
    for left in json["left_out"].as_array().unwrap() {
        assert!(left["row"].as_str().is_some_and(|row| row.contains("tokens")), "{left}");
        assert!(left["why"].as_str().is_some_and(|why| !why.is_empty()), "{left}");
    }
}

#[test]
fn every_row_on_the_cpu_is_measured_or_left_out() {
    check_json("cpu");
}

#[test]
fn every_row_on_the_gpu_is_measured_or_left_out() {
    check_json("gpu");
}

#[test]
fn what_cannot_be_measured_is_wrong_usage() {
    let output = run(["bench", "--device", "reference"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("gpu or cpu"), "{}", stderr(&output));
    assert_eq!(run(["bench", "text"]).status.code(), Some(2));
    let output = run(["bench", "--device", "cpu", "--model", "/no/such/folder"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "");
}

/// A row times the operation of its name, with right results. Seen red with `Op::Linear` in place of
/// `linear_activation`'s operation.
#[test]
fn what_is_timed_is_right() {
    let gpu = pollster::block_on(Gpu::open(false)).expect("a GPU adapter, llvmpipe at least");
    for operation in OPERATIONS {
        let case = operation.case(3);
        assert!(operation.name.split(' ').next() == Some(case.op.kind().name()), "{}", operation.name);
        let expected = case.expected();
        for got in [pollster::block_on(case.on(&Cpu::new())), pollster::block_on(case.on(&gpu))] {
            let off = case.judge(&got.unwrap(), &expected);
            assert!(off.share <= 1.0, "{}: {off:?}", operation.name);
        }
    }
}

/// Work and bytes follow from the shapes of a case. Seen red with `N_EMBD` for `N_INNER` in one row's flops.
#[test]
fn what_an_operation_must_do_follows_from_its_shapes() {
    for operation in OPERATIONS {
        let case = operation.case(5);
        let size = |rows: usize, cols: usize| (rows * cols) as f64;
        let tensors: f64 = case.tensors.iter().map(|x| size(x.rows, x.cols)).sum();
        let weights: f64 = case.weights.iter().map(|(w, _)| size(w.rows, w.cols)).sum();
        let result = case.expected().len() as f64;
        assert_eq!(operation.bytes(5), 4.0 * (tensors + weights + result), "{}", operation.name);
        let flops = match &case.op {
            Op::LayerNorm { .. } => 8.0 * tensors,
            // Every query with itself and those before it, twice, in every dimension of every head.
            Op::Attention { .. } => 2.0 * 2.0 * (1 + 2 + 3 + 4 + 5) as f64 * (tensors / 15.0),
            _ => 2.0 * 5.0 * size(case.weights[0].0.rows, case.weights[0].0.cols),
        };
        assert_eq!(operation.flops(5), flops, "{}", operation.name);
    }
}

#[test]
fn limits_are_finite_on_every_device() {
    fn check<D: Measured>(dev: &D) {
        let limits = pollster::block_on(bench::limits(dev)).unwrap();
        for limit in [limits.arithmetic, limits.reading] {
            assert!(limit.is_finite() && limit > 1e6, "{}: {limits:?}", dev.info());
        }
    }
    Cpu::all().iter().for_each(check);
    check(&pollster::block_on(Gpu::open(false)).expect("a GPU adapter, llvmpipe at least"));
}

#[test]
fn the_random_checkpoint_is_gpt2_smalls() {
    let checkpoint = random::gpt2_small().unwrap();
    assert_eq!(checkpoint.parameters(), 124_439_808); // as transformers counts them
    let weight = checkpoint.tensor("h.11.mlp.c_proj.weight").unwrap().to_f32();
    let n = weight.len() as f32;
    let mean = weight.iter().sum::<f32>() / n;
    let deviation = (weight.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt();
    assert!(mean.abs() < 1e-4 && (deviation - 0.02).abs() < 1e-4, "{mean} {deviation}");
}
