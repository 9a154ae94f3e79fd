//! `actscope run` and `--record`: a file of steps that can be run again, and beside it a lock file with the hashes of their
//! outputs. A step is a command of actscope.
//!
//! ```toml
//! [[step]]
//! name = "heads"
//! args = ["ablate", "--file", "texts.txt", "--at", "z", "-o", "heads.json"]
//! ```

use super::{Failure, environment};
use crate::output::{self, Place, arrays};
use crate::session::Model;
use crate::text::hex;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Arguments of `actscope run`.
#[derive(Args)]
pub(crate) struct RunCommand {
    /// The file with the steps (.toml); paths in it are taken from its folder
    file: PathBuf,
    /// Repeat the steps and compare every output with FILE.lock.json; overwrite nothing
    #[arg(long)]
    check: bool,
    /// Print nothing on stderr except errors
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Experiment {
    step: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    name: String,
    args: Vec<String>,
}

/// A step in the lock file: what it was, and what it wrote.
#[derive(Serialize, Deserialize)]
struct Locked {
    name: String,
    args: Vec<String>,
    model: String,
    model_fingerprint: String,
    device: Option<String>,
    outputs: Vec<Output>,
}

#[derive(Serialize, Deserialize)]
struct Output {
    /// The file, or `stdout`.
    file: String,
    sha256: String,
}

#[derive(Serialize, Deserialize)]
struct Lock {
    actscope_version: String,
    steps: Vec<Locked>,
}

/// How much numbers of two runs may differ, as a share of the largest number of their array. It allows for the rounding of
/// another device, which sums in another order.
const POLICY: f64 = 2e-5;

const STDOUT: &str = "stdout";

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Finds an option in arguments: the index of the argument that holds its value, and the value.
fn option<'a>(args: &'a [String], short: &str, long: &str) -> Option<(usize, &'a str)> {
    args.iter().enumerate().find_map(|(i, arg)| match arg.as_str() {
        name if name == short || name == long => args.get(i + 1).map(|value| (i + 1, value.as_str())),
        name => name.strip_prefix(long).and_then(|rest| rest.strip_prefix('=')).map(|value| (i, value)),
    })
}

impl RunCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let named = self.file.display();
        let text = super::texts::content(&self.file)?;
        let experiment: Experiment = toml::from_str(&text).map_err(|e| {
            Failure::Run(format!("{named} is not a file of steps: {}", e.to_string().replace('\n', " ")))
        })?;
        if let Some(step) = experiment.step.iter().find(|step| step.args.first().is_none_or(|command| command == "run"))
        {
            return Err(Failure::Run(format!("step {:?} of {named} is not a command that a step can have", step.name)));
        }
        let file = self.file.canonicalize().map_err(|e| Failure::Run(format!("cannot read {named}: {e}")))?;
        let lock_file = file.with_extension("lock.json");
        let before: Option<Lock> = match (self.check, std::fs::read(&lock_file)) {
            (true, Ok(bytes)) => Some(serde_json::from_slice(&bytes).map_err(|e| {
                Failure::Run(format!("cannot read {}: {e}; run without --check to write it again", lock_file.display()))
            })?),
            (true, Err(e)) => {
                let lock = lock_file.display();
                return Err(Failure::Run(format!(
                    "cannot read {lock}: {e}; run once without --check, which writes it"
                )));
            }
            (false, _) => None,
        };
        let folder = file.parent().unwrap_or(Path::new("."));
        std::env::set_current_dir(folder)
            .map_err(|e| Failure::Run(format!("cannot enter {}: {e}", folder.display())))?;
        match before {
            None => {
                let steps = experiment.step.iter().map(|step| self.step(step, None).map(|(locked, _)| locked));
                let lock = Lock {
                    actscope_version: env!("CARGO_PKG_VERSION").into(),
                    steps: steps.collect::<Result<_, _>>()?,
                };
                let text = serde_json::to_string_pretty(&lock).map_err(std::io::Error::from)? + "\n";
                Place::create(&lock_file)?.fill(|part| std::fs::write(part, text))?;
                self.say(&format!("wrote {}: {} steps", lock_file.display(), lock.steps.len()));
                Ok(())
            }
            Some(lock) => self.check_against(&experiment, &lock),
        }
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// Runs a step. With `elsewhere`, its output goes into that folder. Returns the entry for the lock file, and stdout.
    fn step(&self, step: &Step, elsewhere: Option<&Path>) -> Result<(Locked, Vec<u8>), Failure> {
        self.say(&format!("step {}: actscope {}", step.name, step.args.join(" ")));
        let out = option(&step.args, "-o", "--out").map(|(at, file)| (at, file.to_string()));
        let mut args = step.args.clone();
        let mut written = out.as_ref().map(|(_, file)| PathBuf::from(file));
        if let (Some(folder), Some((at, file))) = (elsewhere, &out) {
            let name = Path::new(file).file_name().map(PathBuf::from).unwrap_or_default();
            let place = folder.join(name);
            let prefix = if args[*at].starts_with("--out=") { "--out=" } else { "" };
            args[*at] = format!("{prefix}{}", place.display());
            written = Some(place);
        }
        let failed = |e: std::io::Error| Failure::Run(format!("step {}: {e}", step.name));
        let program = std::env::current_exe().map_err(failed)?;
        let mut child = Command::new(program)
            .args(&args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let printed = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout.map(|mut stdout| stdout.read_to_end(&mut bytes)).transpose().map(|_| bytes)
        });
        let (mut device, mut last) = (None, String::new());
        for line in stderr.into_iter().flat_map(|stderr| BufReader::new(stderr).lines()) {
            let line = line.map_err(failed)?;
            device = line.strip_prefix("device: ").map(String::from).or(device);
            self.say(&format!("  {line}"));
            last = line;
        }
        let status = child.wait().map_err(failed)?;
        let printed = printed.join().map_err(|_| Failure::Run(format!("step {}: its stdout was lost", step.name)))?;
        let printed = printed.map_err(failed)?;
        if !status.success() {
            return Err(Failure::Run(format!("step {} failed: {last}", step.name)));
        }
        let mut outputs = Vec::new();
        if let (Some(written), Some((_, file))) = (&written, &out) {
            let bytes = std::fs::read(written).map_err(failed)?;
            outputs.push(Output { file: file.clone(), sha256: sha256(&bytes) });
        }
        if !printed.is_empty() {
            outputs.push(Output { file: STDOUT.into(), sha256: sha256(&printed) });
            if elsewhere.is_none() {
                std::io::stdout().write_all(&printed)?;
            }
        }
        let model = option(&step.args, "-m", "--model").map_or("demo", |(_, model)| model).to_string();
        let model_fingerprint =
            Model::open_from(&model, &environment::read().hub, &mut |_| {})?.checkpoint().fingerprint();
        let (name, args) = (step.name.clone(), step.args.clone());
        Ok((Locked { name, args, model, model_fingerprint, device, outputs }, printed))
    }

    /// Runs every step again, and compares its outputs with those of the lock file.
    fn check_against(&self, experiment: &Experiment, lock: &Lock) -> Result<(), Failure> {
        let steps = &experiment.step;
        let same = |(step, locked): (&Step, &Locked)| step.name == locked.name && step.args == locked.args;
        if steps.len() != lock.steps.len() || !steps.iter().zip(&lock.steps).all(same) {
            return Err(Failure::Run(
                "the steps are not those of the lock file; run without --check to write it again".into(),
            ));
        }
        if lock.actscope_version != env!("CARGO_PKG_VERSION") {
            self.say(&format!("note: the lock file was written by actscope {}", lock.actscope_version));
        }
        let mut mismatches = Vec::new();
        for (step, locked) in steps.iter().zip(&lock.steps) {
            let folder =
                tempfile::tempdir().map_err(|e| Failure::Run(format!("no folder for temporary files: {e}")))?;
            let (found, printed) = self.step(step, Some(folder.path()))?;
            if found.model_fingerprint != locked.model_fingerprint {
                mismatches.push(format!("{}: the model {} has other weights now", step.name, locked.model));
            }
            for Output { file, sha256: before } in &locked.outputs {
                let now = found.outputs.iter().find(|output| output.file == *file);
                let verdict = match now {
                    None => Err("it is no longer written".to_string()),
                    Some(now) if now.sha256 == *before => Ok("the same bytes".to_string()),
                    Some(_) if file == STDOUT => compare_text(None, &printed),
                    Some(_) => {
                        let name = Path::new(file).file_name().map(PathBuf::from).unwrap_or_default();
                        check_kept(Path::new(file), before)
                            .and_then(|()| compare(Path::new(file), &folder.path().join(name)))
                    }
                };
                match verdict {
                    Ok(how) => self.say(&format!("  {file}: {how}")),
                    Err(what) => mismatches.push(format!("{}: {file}: {what}", step.name)),
                }
            }
        }
        if mismatches.is_empty() { Ok(()) } else { Err(Failure::Run(mismatches.join("; "))) }
    }
}

/// Checks that an output file is still the one that the lock file describes; only then its numbers can be compared.
fn check_kept(file: &Path, sha: &str) -> Result<(), String> {
    let bytes = std::fs::read(file)
        .map_err(|e| format!("it differs from the lock file, and the earlier output cannot be read: {e}"))?;
    if sha256(&bytes) == sha {
        Ok(())
    } else {
        Err("it differs from the lock file, and the earlier output was changed since".into())
    }
}

/// Compares two output files by their numbers.
fn compare(before: &Path, now: &Path) -> Result<String, String> {
    match output::extension(before).as_str() {
        "npz" | "safetensors" | "npy" => {
            let (a, b) = (arrays::read_all(before)?, arrays::read_all(now)?);
            if a.iter()
                .map(|(name, array)| (name, array.shape()))
                .ne(b.iter().map(|(name, array)| (name, array.shape())))
            {
                return Err("it has other arrays".into());
            }
            let numbers = |array: &ndarray::ArrayD<f32>| array.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
            let worst =
                a.iter().zip(&b).map(|((_, a), (_, b))| largest_difference(&numbers(a), &numbers(b))).fold(0.0, worse);
            judge(worst)
        }
        "json" | "csv" | "jsonl" => {
            let read = |file: &Path| std::fs::read(file).map_err(|e| e.to_string());
            compare_text(Some(&read(before)?), &read(now)?)
        }
        _ => Err("it is another picture or page; the same device and version draw the same bytes".into()),
    }
}

/// Compares two texts by the numbers in them.
fn compare_text(before: Option<&[u8]>, now: &[u8]) -> Result<String, String> {
    let Some(before) = before else { return Err("it is another text, and the earlier one is not stored".into()) };
    let split = |bytes: &[u8]| -> (Vec<f64>, Vec<String>) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let words = text.split([',', '[', ']', '{', '}', ':', '\n', ' ']).filter(|word| !word.is_empty());
        let (mut numbers, mut rest) = (Vec::new(), Vec::new());
        for word in words {
            match word.parse() {
                Ok(number) => numbers.push(number),
                Err(_) => rest.push(word.to_string()),
            }
        }
        (numbers, rest)
    };
    let ((a, words), (b, others)) = (split(before), split(now));
    if words != others || a.len() != b.len() {
        return Err("it has other words or another number of numbers".into());
    }
    judge(largest_difference(&a, &b))
}

fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// The largest difference as a share of the largest number. Two NaN, or two equal infinities, do not differ.
fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    let largest = a.iter().filter(|v| v.is_finite()).fold(0.0f64, |most, v| most.max(v.abs())).max(f64::MIN_POSITIVE);
    let pairs = a.iter().zip(b).filter(|(a, b)| a != b && !(a.is_nan() && b.is_nan()));
    pairs.map(|(a, b)| (a - b).abs() / largest).fold(0.0, worse)
}

fn judge(worst: f64) -> Result<String, String> {
    if worst <= POLICY {
        Ok(format!("the same numbers, off by at most {worst:.1e} of the largest"))
    } else {
        Err(format!("its numbers are off by {worst:.1e} of the largest, and {POLICY:.0e} is allowed"))
    }
}

/// Takes `--record FILE` out of a program's arguments.
pub(super) fn recording(args: &mut Vec<String>) -> Option<PathBuf> {
    let end = args.iter().position(|arg| arg == "--").unwrap_or(args.len());
    let (at, file) = option(&args[..end], "--record", "--record")?;
    let file = PathBuf::from(file);
    let first = if args[at].starts_with("--record=") { at } else { at - 1 };
    args.drain(first..=at);
    Some(file)
}

/// Appends the step that was just done.
pub(super) fn record(file: &Path, args: &[String]) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::Run(format!("cannot write {}: {e}", file.display()));
    let before = std::fs::read_to_string(file).or_else(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Ok(String::new()),
        _ => Err(failed(e)),
    })?;
    let steps = if before.trim().is_empty() {
        0
    } else {
        toml::from_str::<Experiment>(&before).map_or(0, |experiment| experiment.step.len())
    };
    let name = format!("{} {}", steps + 1, args.first().map_or("", String::as_str));
    // A list of strings is written alike in JSON and in TOML.
    let text = format!(
        "{before}{}[[step]]\nname = {}\nargs = {}\n",
        if steps > 0 { "\n" } else { "" },
        json!(name),
        Value::from(args.to_vec())
    );
    Place::create(file)?.fill(|part| std::fs::write(part, text))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_compared_and_words_must_agree() {
        let of = |a: &str, b: &str| compare_text(Some(a.as_bytes()), b.as_bytes()).is_ok();
        assert!(of(r#"{"a": [1.0, 200.0], "p": "NaN"}"#, r#"{"a": [1.0005, 200.001], "p": "NaN"}"#));
        assert!(!of(r#"{"a": [1.0, 200.0]}"#, r#"{"a": [1.0, 200.1]}"#));
        assert!(!of(r#"{"a": [1.0]}"#, r#"{"b": [1.0]}"#));
        assert!(!of("1 2", "1 2 3"));
        assert_eq!(largest_difference(&[f64::NAN, f64::INFINITY, 2.0], &[f64::NAN, f64::INFINITY, 2.0]), 0.0);
        assert!(judge(largest_difference(&[1.0, f64::NAN], &[1.0, 2.0])).is_err());
    }

    #[test]
    fn record_is_taken_out_of_the_arguments() {
        let of = |args: &[&str]| {
            let mut args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
            (recording(&mut args), args.join(" "))
        };
        assert_eq!(of(&["lens", "a", "--record", "b.toml", "-q"]), (Some("b.toml".into()), "lens a -q".into()));
        assert_eq!(of(&["lens", "--record=b.toml", "a"]), (Some("b.toml".into()), "lens a".into()));
        assert_eq!(of(&["lens", "--", "--record", "b"]), (None, "lens -- --record b".into()));
    }
}
