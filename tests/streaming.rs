//! Memory does not grow with the number of texts: a run that records far more than its memory limit streams the values
//! to its file.
//!
//! Four texts of 1,024 tokens with all hooks of gpt2-small's shape are 10.7 GB; that run was made by hand, to .npz and
//! to .safetensors: 1.24 GB at most, of which 0.5 GB are the mapped weights. Here is an eighth of it.

// Memory is read from /proc, and limits are set by Linux's tools.
#![cfg(target_os = "linux")]

#[path = "common/binary.rs"]
mod binary;
mod common;

use binary::*;
use common::checkpoint;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};

/// The peak memory of a process in bytes, as the operating system counts it, and its exit status.
fn peak_of(mut command: Command) -> (u64, std::process::ExitStatus) {
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: Option<u64> = line.and_then(|line| line.trim().strip_suffix("kB")).and_then(|n| n.trim().parse().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        if let Some(ended) = child.try_wait().unwrap() {
            return (peak, ended);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
#[cfg_attr(not(feature = "external-tests"), ignore = "needs Python with numpy; tools/check.sh runs it")]
fn a_run_holds_a_part_of_what_it_records() {
    const TEXTS: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    // One block of gpt2-small, a small vocabulary, a quarter of its positions.
    let fields = [("vocab_size", json!(500)), ("n_positions", json!(256))];
    checkpoint::write(folder.path(), &checkpoint::config(768, 12, 1, &fields), 1);
    let mut random = checkpoint::Random(2);
    // The first is the longest; the others are a little shorter, so that there is padding in every one.
    let text = |n: usize| (0..256 - n % 7).map(|_| (random.next() % 500).to_string()).collect::<Vec<_>>().join(" ");
    let ids: Vec<String> = (0..TEXTS).map(text).collect();
    let request = |extra: &[&str]| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("actscope"));
        command.args(["extract", "-q", "--device", "cpu", "-k", "*", "-m"]).arg(folder.path()).args(extra);
        ids.iter().for_each(|ids| {
            command.args(["--ids", ids]);
        });
        command
    };
    let run = |out: &Path| {
        let (out, weights) = (out.to_str().unwrap(), folder.path().join("model.safetensors"));
        let dry = request(&["-o", out, "--dry-run", "--json"]).stdin(Stdio::null()).output().unwrap();
        let dry: Value = serde_json::from_slice(&dry.stdout).unwrap();
        let mut command = request(&["-o", out]);
        command.stdin(Stdio::null());
        let (peak, ended) = peak_of(command);
        assert!(ended.success());
        let (bytes, weights) = (std::fs::metadata(out).unwrap().len(), std::fs::metadata(weights).unwrap().len());
        assert_eq!(dry["file_bytes"], json!(bytes));
        println!("{out}: {bytes} bytes, peak {peak}");
        (bytes, peak - weights.min(peak))
    };
    let (bytes, peak) = run(&folder.path().join("x.npz"));
    assert!(bytes > 10_688_823_296 / 8, "{bytes} bytes are no eighth");
    // 0.4 GB seen; 1.5 GB with a sink that stores all values, 1.4 GB with groups of texts that ignore how much they
    // record.
    assert!(peak < 900 << 20, "{peak} bytes of memory beyond the weights, for a file of {bytes}");

    // The checksums in an archive cover every byte of it, and the last values belong to the last text.
    const SCRIPT: &str = "import sys, zipfile, numpy\n\
        print(zipfile.ZipFile(sys.argv[1]).testzip())\n\
        with numpy.load(sys.argv[1]) as f:\n    \
            p = f['blocks.0.attn.hook_pattern']\n    \
            n = f['attention_mask'].sum(1)\n    \
            print(p.shape, all(abs(p[i, :, n[i] - 1, :n[i]].sum(1) - 1).max() < 1e-5 and not p[i, :, :, n[i]:].any() for i in range(len(n))))";
    let npz = folder.path().join("x.npz");
    let output = Command::new(common::python("numpy")).args(["-c", SCRIPT]).arg(npz).output().unwrap();
    assert_eq!(stdout(&output), "None\n(40, 12, 256, 256) True\n", "{}", stderr(&output));
}

/// A document of many windows, of which no more than a few are in memory. (A text of 1 MB at one layer, 195 MB of
/// values, took 172 MB.)
#[test]
fn a_long_document_streams() {
    let folder = tempfile::tempdir().unwrap();
    let (text, out) = (folder.path().join("war.txt"), folder.path().join("x.npz"));
    let words = ["war", "and", "peace", "the", "prince", "said", "of", "his", "old", "general", "in", "Moscow"];
    let mut random = checkpoint::Random(3);
    let all: Vec<&str> = (0..42_000).map(|_| words[(random.next() % 12) as usize]).collect();
    std::fs::write(&text, all.join(" ")).unwrap();
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("actscope"));
    command.args([
        "extract",
        "-q",
        "--device",
        "cpu",
        "--window",
        "256:192",
        "-k",
        "blocks.0.*mlp*",
        "-k",
        "blocks.0.*ln?.*",
        "-o",
    ]);
    command.arg(&out).arg("--document").arg(&text).stdin(Stdio::null());
    let (peak, ended) = peak_of(command);
    assert!(ended.success());
    let bytes = std::fs::metadata(&out).unwrap().len();
    println!("{bytes} bytes, peak {peak}");
    assert!(bytes > 400 << 20, "{bytes} bytes are too few to tell");
    // Two groups of windows on their way take 230 MB.
    assert!(peak < 320 << 20, "{peak} bytes of memory for a file of {bytes}");
}

/// 10.7 GB in 246 arrays, of which each fits in 3 GB and all do not: the error comes before anything is computed, and
/// not from the system in the middle of the run.
#[test]
fn arrays_that_fit_only_one_by_one_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let fields = [("n_positions", json!(1024))];
    checkpoint::write_sparse(folder.path(), &checkpoint::config(768, 12, 12, &fields));
    let ids = vec!["7"; 1024].join(" ");
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -v 3145728 && exec \"$0\" \"$@\""]).arg(assert_cmd::cargo::cargo_bin("actscope"));
    shell.args(["extract", "-q", "--device", "cpu", "--json", "-k", "*", "-m"]).arg(folder.path());
    let output = shell.args(["--ids", &ids, "--ids", &ids, "--ids", &ids, "--ids", &ids]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("more than this machine can hold at once"), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
}

/// 11 TB of logits: no test machine's disk has room for them, and the error must come before the disk is full.
#[test]
fn a_disk_that_is_too_small_says_so_before_anything_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let fields = [("n_positions", json!(1024)), ("vocab_size", json!(1 << 27))];
    checkpoint::write_sparse(folder.path(), &checkpoint::config(1, 1, 1, &fields));
    let ids = vec!["7"; 1024].join(" ");
    for extension in ["safetensors", "npz", "csv"] {
        let out = folder.path().join(format!("x.{extension}"));
        let mut command = assert_cmd::Command::cargo_bin("actscope").unwrap();
        command.args(["extract", "-q", "--device", "cpu", "-k", "logits", "-m"]).arg(folder.path()).arg("-o").arg(out);
        (0..20).for_each(|_| {
            command.args(["--ids", &ids]);
        });
        let output = command.timeout(std::time::Duration::from_secs(60)).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{extension}: {:?} {}", output.status, stderr(&output));
        assert!(
            stderr(&output).contains("it takes 10995") && stderr(&output).contains("No space left"),
            "{}",
            stderr(&output)
        );
    }
    assert_eq!(names_in(folder.path()), ["config.json", "model.safetensors"]);
}

#[test]
fn a_file_that_does_not_fit_is_refused_before_anything_is_computed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.safetensors");
    std::fs::write(&out, "old").unwrap();
    let mut shell = Command::new("sh");
    // Files of at most 32 KiB.
    shell
        .args(["-c", "trap '' XFSZ; ulimit -f 64 && exec \"$0\" \"$@\""])
        .arg(assert_cmd::cargo::cargo_bin("actscope"));
    shell.args(["extract", "--device", "cpu", "-k", "*", "the cat sat on the mat"]).arg("-o").arg(&out);
    let output = shell.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.lines().last().unwrap().contains("x.safetensors: it takes "), "{said}");
    assert_eq!(names_in(folder.path()), ["x.safetensors"]);
    assert_eq!(std::fs::read(&out).unwrap(), b"old");
}
