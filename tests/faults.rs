//! Failures of the environment during a run: the run ends soon, with an error that says what failed and why, and leaves
//! no unfinished file. `bad_input.rs` has wrong input and the full disk.

#[path = "common/binary.rs"]
mod binary;
mod common;

use actscope::batch::Batch;
use actscope::device::{self, AnyDevice, Choice};
use actscope::hooks::capture::Sink;
use actscope::hooks::layout::Layout;
use actscope::model::checkpoint::Checkpoint;
use actscope::model::forward::{self, Run};
use actscope::model::params::Params;
use actscope::{Hooks, Site};
use binary::*;
use ndarray::ArrayViewD;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Destroys the GPU device when a site's values arrive, or before anything is sent to it.
struct Losing<'a>(&'a device::gpu::Gpu, Option<Site>);

impl Sink for Losing<'_> {
    fn put(&mut self, site: Site, _: usize, _: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        if self.1 == Some(site) {
            self.0.destroy();
        }
        Ok(())
    }
}

#[test]
fn a_lost_device_ends_the_run() {
    for at in [None, Some(Site::Embed), Some(Site::Pattern(0)), Some(Site::ResidPost(2))] {
        let AnyDevice::Gpu(gpu) = pollster::block_on(device::open(Choice::Gpu)).unwrap() else { panic!("not the GPU") };
        let checkpoint = Arc::new(Checkpoint::open(Path::new(CLASSIC)).unwrap());
        let batch = Batch::new(&[vec![1u32, 2, 3], vec![4, 5, 6, 7]], checkpoint.config()).unwrap();
        let mut hooks = Hooks::new(checkpoint.config());
        // Every block is read as soon as possible.
        hooks.tap("*").unwrap().staging_budget = 0;
        let params = Params::new(checkpoint, None);
        if at.is_none() {
            gpu.destroy();
        }
        let mut sink = Losing(&gpu, at);
        let layout = Layout::new(&hooks, &batch).unwrap();
        let run = forward::forward(&gpu, &params, Run::new(&layout, 0..2), &mut sink, None);
        // Without the check for a lost device, the message was that some buffer is invalid.
        let error = pollster::block_on(run).unwrap_err().to_string();
        assert!(error.contains("the device was lost"), "{at:?}: {error}");
        assert!(!error.contains('\n'), "{error:?}");
    }
}

/// A checkpoint of 1.5 GB in a process that is limited to 3.3 GB. The map leaves the driver too little address space
/// for the weights. (The program and llvmpipe take 0.8 GB of addresses.)
#[cfg(target_os = "linux")]
#[test]
fn a_gpu_without_memory_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let config = common::checkpoint::config(1024, 8, 20, &[("n_inner", 16384.into()), ("vocab_size", 2000.into())]);
    common::checkpoint::write_sparse(folder.path(), &config);
    let out = folder.path().join("x.npz");
    let mut shell = assert_cmd::Command::new("sh");
    shell.args(["-c", "ulimit -v 3300000 && exec \"$0\" \"$@\""]).arg(assert_cmd::cargo::cargo_bin("actscope"));
    shell.args(["extract", "-q", "--device", "gpu", "--ids", "1 2 3", "-l", "19", "-m"]).arg(folder.path());
    let output = shell.arg("-o").arg(&out).timeout(Duration::from_secs(120)).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{:?} {}", output.status, stderr(&output));
    assert!(stderr(&output).contains("out of memory"), "{}", stderr(&output));
    assert_eq!(names_in(folder.path()), ["config.json", "model.safetensors"]);
}

/// A run that takes a while: the demo model on the slow device, every hook, to `out`.
fn long_run(out: &Path) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("actscope"));
    let ids: Vec<String> = (0..120).map(|i| (7 * i % 4000).to_string()).collect();
    command.args(["extract", "--device", "reference", "-k", "*"]);
    for _ in 0..60 {
        command.args(["--ids", &ids.join(" ")]);
    }
    command.arg("-o").arg(out).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Waits until a condition holds; panics at the time limit.
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}: never");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The folders of unfinished runs.
fn unfinished(folder: &Path) -> Vec<PathBuf> {
    let all = names_in(folder).into_iter().filter(|name| name.starts_with(".actscope-"));
    all.map(|name| folder.join(name)).collect()
}

/// Starts a run over an old file and waits until it has begun to write.
fn begin(command: &mut Command, folder: &Path) -> Child {
    let child = command.spawn().unwrap();
    wait_for("the run writes", || {
        unfinished(folder).iter().any(|f| f.join("part").exists() || f.join("values").exists())
    });
    child
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_ends_as_the_signal_says_and_leaves_nothing() {
    use std::os::unix::process::ExitStatusExt;
    for (name, number, extension) in [("INT", 2, "safetensors"), ("TERM", 15, "npz"), ("HUP", 1, "csv")] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join(format!("x.{extension}"));
        std::fs::write(&out, "old").unwrap();
        let mut child = begin(&mut long_run(&out), folder.path());
        assert!(Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap().success());
        // A shell reports the signal plus 128: 130, 143, 129.
        assert_eq!(child.wait().unwrap().signal(), Some(number), "{name}");
        assert_eq!(names_in(folder.path()), [format!("x.{extension}")], "{name}");
        assert_eq!(std::fs::read(&out).unwrap(), b"old", "{name}");
    }
}

/// Ctrl-C at a terminal that shows a progress bar: the bar is cleared, the cursor is visible, and the shell's next
/// prompt begins at the left.
#[cfg(target_os = "linux")]
#[cfg_attr(not(feature = "external-tests"), ignore = "needs Python; tools/check.sh runs it")]
#[test]
fn an_interrupted_run_leaves_the_terminal_as_it_was() {
    const SCRIPT: &str = r#"
import os, pty, sys
child, terminal = pty.fork()
if child == 0:
    os.execv(sys.argv[1], sys.argv[1:])
seen = b""
while b"blocks" not in seen:
    seen += os.read(terminal, 4096)
os.write(terminal, b"\x03")
try:
    while part := os.read(terminal, 4096):
        seen += part
except OSError:
    pass
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
sys.stdout.write(repr(seen))
"#;
    let folder = tempfile::tempdir().unwrap();
    let run = long_run(&folder.path().join("x.npz"));
    let mut python = assert_cmd::Command::new(common::python("numpy"));
    python.args(["-c", SCRIPT]).arg(run.get_program()).args(run.get_args()).timeout(Duration::from_secs(60));
    let output = python.env("TERM", "xterm").output().unwrap();
    let (code, seen) = stdout(&output).split_once('\n').map(|(a, b)| (a.to_string(), b.to_string())).unwrap();
    assert_eq!(code, "-2", "ended by SIGINT: {seen}");
    assert!(seen.ends_with(r"\r\x1b[K'"), "the line is not cleared: {seen}");
    assert_eq!(seen.matches("?25l").count(), seen.matches("?25h").count(), "the cursor is hidden: {seen}");
    assert_eq!(names_in(folder.path()), [""; 0]);
}

#[test]
fn an_output_folder_that_goes_away_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let out = inner.join("x.npz");
    let ids = vec!["1 2 3 4 5 6 7 8"; 200].join(" ");
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("actscope"));
    command.args(["extract", "-q", "--device", "reference", "-k", "*", "--ids", &ids[..200], "-o"]).arg(&out);
    let child = begin(command.stderr(Stdio::piped()), &inner);
    std::fs::remove_dir_all(&inner).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("actscope: cannot write ") && stderr(&output).contains("inner/x.npz"));
    assert_eq!(names_in(folder.path()), [""; 0]);
}

/// 200 runs, each killed at another moment: afterwards the file is the complete old one or the complete new one, and
/// the next run deletes what the killed runs left.
#[cfg(unix)]
#[test]
fn a_run_killed_at_any_moment_leaves_the_old_file_or_the_new_one() {
    const KILLS: u32 = 200;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("x.npz");
    let command = |ids: &str| {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("actscope"));
        command.args(["extract", "-q", "--device", "cpu", "-k", "*", "--ids", ids, "-o"]).arg(&out);
        command
    };
    let write = |ids: &str| {
        assert!(command(ids).status().unwrap().success());
        std::fs::read(&out).unwrap()
    };
    let old = write("1 2 3");
    let start = Instant::now();
    let new = write("4 5 6 7 8 9 10 11 12 13 14 15 16");
    let whole_run = start.elapsed();

    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let mut state = seed;
    let (mut were_old, mut were_new) = (0, 0);
    for n in 0..KILLS {
        std::fs::write(&out, &old).unwrap();
        let mut child = command("4 5 6 7 8 9 10 11 12 13 14 15 16").spawn().unwrap();
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        std::thread::sleep(whole_run.mul_f64(1.2 * (state >> 11) as f64 / (1u64 << 53) as f64));
        child.kill().unwrap();
        child.wait().unwrap();
        match std::fs::read(&out).unwrap() {
            found if found == old => were_old += 1,
            found if found == new => were_new += 1,
            found => panic!("kill {n} of seed {seed}: {} bytes that are neither file", found.len()),
        }
        // This run may leave one folder. Those of earlier runs are deleted, except where a run was killed before it
        // took its lock.
        let left = unfinished(folder.path()).iter().filter(|f| f.join("part").exists()).count();
        assert!(left <= 1, "kill {n} of seed {seed}: {left} folders are left");
    }
    println!("seed {seed}: {were_old} times the old file, {were_new} times the new one");
    assert!(were_old > 0, "no run was killed before its end: seed {seed}");

    // A folder without a lock is deleted when it is a minute old.
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(120);
    unfinished(folder.path()).iter().for_each(|f| std::fs::File::open(f).unwrap().set_modified(long_ago).unwrap());
    write("1 2 3");
    assert_eq!(names_in(folder.path()), ["x.npz"]);
}

/// A run does not delete the folder of another run that is in progress.
#[test]
fn runs_beside_each_other_leave_each_other_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = begin(&mut long_run(&folder.path().join("long.npz")), folder.path());
    let out = folder.path().join("short.npz").display().to_string();
    run_well(["extract", "hi", "-q", "--device", "cpu", "-o", &out]);
    assert_eq!(unfinished(folder.path()).len(), 1, "the other run's folder is still there");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(unfinished(folder.path()).len(), 1, "killed, it leaves its folder");
    run_well(["extract", "hi", "-q", "--device", "cpu", "-o", &out]);
    assert_eq!(names_in(folder.path()), ["short.npz"]);
}

#[cfg(unix)]
#[test]
fn closed_streams_are_no_surprise() {
    let shell = |script: &str| {
        let program = assert_cmd::cargo::cargo_bin("actscope");
        let output = Command::new("sh").args(["-c", script]).arg(program).output().unwrap();
        (output.status.code(), stdout(&output), stderr(&output))
    };
    let (code, out, err) = shell("\"$0\" tokens hi <&-");
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("\"h\""), "{out}");
    let (code, out, err) = shell("\"$0\" extract -q --device cpu --file - <&-");
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert!(err.contains("stdin") && err.lines().count() == 1, "{err}");
    assert_eq!(shell("\"$0\" tokens hi 2>&-").0, Some(0));
    assert_eq!(shell("\"$0\" tokens hi >&-").0, Some(0));
    assert_eq!(shell("\"$0\" tokens -m /nowhere/at/all hi 2>&-").0, Some(1));
}

/// A checkpoint that is changed after it was mapped. The run blocks at its first message on stderr, because the pipe is
/// full.
#[cfg(target_os = "linux")]
fn run_with_a_checkpoint_that_changes(change: impl FnOnce(&Path)) -> (Option<i32>, String, Vec<String>, Vec<u8>) {
    use std::io::{Read, Write};
    let (model, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // Large enough that weights that are read late lie in other pages than the header.
    let config = common::checkpoint::config(256, 4, 4, &[]);
    common::checkpoint::write(model.path(), &config, 1);
    let weights = model.path().join("model.safetensors");
    let out = folder.path().join("x.npz");
    std::fs::write(&out, "old").unwrap();
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let stderr_of_run = writer.try_clone().unwrap();
    // Writes more than the pipe can hold.
    std::thread::spawn(move || writer.write_all(&[b' '; 1 << 20]));
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("actscope"));
    command
        .args(["extract", "--device", "cpu", "--ids", "1 2 3", "-k", "*", "-m"])
        .arg(model.path())
        .arg("-o")
        .arg(&out);
    let mut child = command.stderr(stderr_of_run).spawn().unwrap();
    drop(command);
    let maps = format!("/proc/{}/maps", child.id());
    wait_for("the weights are mapped", || {
        std::fs::read_to_string(&maps).is_ok_and(|maps| maps.contains("model.safetensors"))
    });
    change(&weights);
    let mut talk = String::new();
    reader.read_to_string(&mut talk).unwrap();
    let last = talk.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().to_string();
    (child.wait().unwrap().code(), last, names_in(folder.path()), std::fs::read(&out).unwrap())
}

/// Without the signal handler this ends with "Bus error", a core file and an unfinished folder.
#[cfg(target_os = "linux")]
#[test]
fn a_checkpoint_that_is_shortened_while_mapped_ends_the_run() {
    let shorten = |weights: &Path| std::fs::File::options().write(true).open(weights).unwrap().set_len(8192).unwrap();
    let (code, last, names, old) = run_with_a_checkpoint_that_changes(shorten);
    assert_eq!(code, Some(1), "{last}");
    assert!(last.contains("actscope: a file became shorter while it was being read"), "{last}");
    assert_eq!((names, old), (vec!["x.npz".to_string()], b"old".to_vec()));
}

#[cfg(target_os = "linux")]
#[test]
fn a_checkpoint_that_is_changed_while_mapped_gives_no_numbers() {
    let change = |weights: &Path| {
        use std::os::unix::fs::FileExt;
        std::fs::File::options().write(true).open(weights).unwrap().write_all_at(&[0; 16], 1 << 20).unwrap();
    };
    let (code, last, names, old) = run_with_a_checkpoint_that_changes(change);
    assert_eq!(code, Some(1), "{last}");
    assert!(last.contains("model.safetensors was changed while it was read"), "{last}");
    assert_eq!((names, old), (vec!["x.npz".to_string()], b"old".to_vec()));

    // A replaced checkpoint does not affect the run.
    let replace = |weights: &Path| {
        let new = weights.with_extension("new");
        std::fs::write(&new, "another").unwrap();
        std::fs::rename(new, weights).unwrap();
    };
    let (code, last, ..) = run_with_a_checkpoint_that_changes(replace);
    assert_eq!(code, Some(0), "{last}");
}
