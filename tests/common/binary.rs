//! What the tests of the binary share: running it, folders that it may write to, checkpoints to break, and files read
//! back with independent readers.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

pub const CLASSIC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/classic");

/// The binary, with a time limit, and without this machine's cache of models, the hub and colour settings.
pub fn actscope<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> assert_cmd::Command {
    let mut command = assert_cmd::Command::cargo_bin("actscope").unwrap();
    command.args(args).timeout(Duration::from_secs(60));
    command.env("ACTSCOPE_TUNING", "off");
    command.env("HF_HUB_CACHE", "/there/is/no/such/cache").env("HF_HUB_OFFLINE", "1");
    command.env_remove("CLICOLOR_FORCE").env_remove("NO_COLOR");
    command
}

/// Runs the binary on arguments alone.
pub fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    actscope(args).output().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs the binary, which must succeed; returns stdout.
pub fn run_well<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    stdout(&output)
}

/// The binary, run by a user to whom permissions apply. root may write to every folder, so as root this is the user
/// `nobody`. `folder` gets a copy of the binary, and the user `nobody` must be able to reach it.
#[cfg(unix)]
pub fn as_nobody(folder: &Path) -> std::process::Command {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    // The user `nobody` can reach this place, even if the target folder's permissions forbid it.
    let program = folder.join("actscope");
    // Another process copies the file. If this process had it open for writing while another test forks, it could not
    // be started.
    let copied = std::process::Command::new("cp").arg(assert_cmd::cargo::cargo_bin("actscope")).arg(&program).status();
    assert!(copied.unwrap().success());
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = std::process::Command::new(program);
    command.current_dir("/");
    if std::fs::metadata("/proc/self").map_or(std::fs::metadata(folder).unwrap().uid(), |m| m.uid()) == 0 {
        command.uid(65534).gid(65534);
    }
    command
}

/// Names of everything in a folder, hidden files too.
pub fn names_in(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = std::fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

/// A copy of the classic fixture's checkpoint in `folder`.
pub fn copy_of_classic(folder: &Path) {
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(CLASSIC).join(file), folder.join(file)).unwrap();
    }
}

/// The demo model's tokenizer in `folder`.
pub fn copy_of_tokenizer(folder: &Path) {
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/tokenizer.json");
    std::fs::copy(tokenizer, folder.join("tokenizer.json")).unwrap();
}

/// Changes a JSON file in place.
pub fn edit_json(file: PathBuf, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(file, value.to_string()).unwrap();
}

/// A safetensors file taken apart: its header and its data.
pub fn split_safetensors(file: &Path) -> (Value, Vec<u8>) {
    let bytes = std::fs::read(file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + header]).unwrap(), bytes[8 + header..].to_vec())
}

/// The opposite of [`split_safetensors`], with no check on what it writes.
pub fn join_safetensors(file: &Path, header: &str, data: &[u8]) {
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(file, [&length, header.as_bytes(), data].concat()).unwrap();
}
