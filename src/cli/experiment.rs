//! `actscope run` and `--record`: files of steps, which can be run again. Owns their format, and the lock file beside each
//! with the hashes of the outputs. A step is a command of actscope. Read next: `comparison.rs`, which compares two outputs.
//!
//! ```toml
//! [[step]]
//! name = "heads"
//! args = ["ablate", "--file", "texts.txt", "--at", "z", "-o", "heads.json"]
//! ```

use super::comparison::compare;
use super::{Failure, environment};
use crate::bench::random;
use crate::output::Place;
use crate::session::Model;
use crate::text::hex;
use clap::{Args, CommandFactory};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Arguments of `actscope run`.
#[derive(Args)]
pub(crate) struct RunCommand {
    /// The file with the steps (.toml); paths in it are relative to its folder
    file: PathBuf,
    /// Repeat the steps, compare every output with the lock file (.lock.json in place of .toml), and overwrite nothing
    #[arg(long)]
    check: bool,
    /// Print nothing on stderr except errors
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Experiment {
    #[serde(default)]
    step: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    name: String,
    args: Vec<String>,
}

/// A step in the lock file: its command, its model and device, and its outputs.
#[derive(Serialize, Deserialize)]
struct Locked {
    name: String,
    args: Vec<String>,
    /// `None` for a command without a model.
    model: Option<String>,
    /// `None` without a model, and for one that is made in memory.
    model_fingerprint: Option<String>,
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

const STDOUT: &str = "stdout";

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Where the value of an option stands: the index of an argument, and the byte at which the value begins in it.
#[derive(Clone, Copy)]
struct Value {
    arg: usize,
    begin: usize,
}

impl Value {
    /// Finds an option before `--`: `--out VALUE`, `--out=VALUE`, `-o VALUE`, `-oVALUE` or `-o=VALUE`.
    fn of(args: &[String], short: Option<&str>, long: &str) -> Option<Value> {
        for (arg, written) in args.iter().enumerate().take_while(|(_, written)| *written != "--") {
            if written == long || Some(written.as_str()) == short {
                return (arg + 1 < args.len()).then_some(Value { arg: arg + 1, begin: 0 });
            }
            if written.strip_prefix(long).is_some_and(|rest| rest.starts_with('=')) {
                return Some(Value { arg, begin: long.len() + 1 });
            }
            if let Some((short, rest)) = short.and_then(|short| Some((short, written.strip_prefix(short)?))) {
                return Some(Value { arg, begin: short.len() + usize::from(rest.starts_with('=')) });
            }
        }
        None
    }

    fn read(self, args: &[String]) -> &str {
        &args[self.arg][self.begin..]
    }
}

/// The value of an option as clap reads it, defaults included. `None` if the command has no such option, or if the arguments
/// are wrong: then running them says so.
fn parsed(args: &[String], option: &str) -> Option<String> {
    let program = std::iter::once("actscope").chain(args.iter().map(String::as_str));
    let found = super::Cli::command().try_get_matches_from(program).ok()?;
    let (_, of_command) = found.subcommand()?;
    let value = of_command.try_get_raw(option).ok()??.next_back()?;
    value.to_str().map(String::from)
}

impl RunCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let named = self.file.display();
        let text = super::texts::content(&self.file)?;
        let experiment: Experiment = toml::from_str(&text).map_err(|e| {
            Failure::Run(format!("{named} is not a file of steps: {}", e.to_string().replace('\n', " ")))
        })?;
        if experiment.step.is_empty() {
            return Err(Failure::Run(format!(
                "{named} has no [[step]]; add one by hand, or with --record {named} on a command"
            )));
        }
        if let Some(step) = experiment.step.iter().find(|step| step.args.first().is_none_or(|command| command == "run"))
        {
            return Err(Failure::Run(format!(
                "step {:?} of {named} has no command in args, or has `run`; give another command, such as extract",
                step.name
            )));
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
                let steps = experiment.step.iter().map(|step| self.step(step, None));
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

    /// Runs a step in a process of its own. With `elsewhere`, its output file goes into that folder. Returns the entry
    /// for the lock file.
    ///
    /// # Errors
    /// [`Failure::Run`] if the step fails, with the last line of its stderr.
    fn step(&self, step: &Step, elsewhere: Option<&Path>) -> Result<Locked, Failure> {
        self.say(&format!("step {}: actscope {}", step.name, step.args.join(" ")));
        let at = Value::of(&step.args, Some("-o"), "--out");
        let out = at.map(|at| at.read(&step.args).to_string());
        // Otherwise the file would be neither hashed nor, with --check, written elsewhere.
        if let Some(file) = parsed(&step.args, "out").filter(|file| out.as_ref() != Some(file)) {
            let name = &step.name;
            return Err(Failure::Run(format!(
                "step {name}: write its output file as two arguments, \"-o\" and {file:?}"
            )));
        }
        let mut args = step.args.clone();
        let mut written = out.as_ref().map(PathBuf::from);
        if let (Some(folder), Some(at), Some(file)) = (elsewhere, at, &out) {
            let place = folder.join(Path::new(file).file_name().unwrap_or_default());
            args[at.arg].replace_range(at.begin.., &place.display().to_string());
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
        for line in stderr.into_iter().flat_map(|stderr| BufReader::new(stderr).split(b'\n')) {
            let line = line.map_err(failed)?;
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_string();
            device = line.strip_prefix("device: ").map(String::from).or(device);
            self.say(&format!("  {line}"));
            last = line;
        }
        let status = child.wait().map_err(failed)?;
        let printed =
            printed.join().map_err(|_| Failure::Run(format!("step {}: cannot read its stdout", step.name)))?;
        let printed = printed.map_err(failed)?;
        if !status.success() {
            return Err(Failure::Run(format!("step {} failed: {last}", step.name)));
        }
        let mut outputs = Vec::new();
        if let (Some(written), Some(file)) = (&written, out) {
            let bytes = std::fs::read(written).map_err(failed)?;
            outputs.push(Output { file, sha256: sha256(&bytes) });
        }
        if !printed.is_empty() {
            outputs.push(Output { file: STDOUT.into(), sha256: sha256(&printed) });
            if elsewhere.is_none() {
                std::io::stdout().write_all(&printed)?;
            }
        }
        let model = parsed(&step.args, "model");
        let model_fingerprint = match &model {
            Some(model) if model != random::NAME => {
                let files = Model::open_from(model, &environment::read().hub, &mut |_| {})?;
                Some(files.checkpoint().fingerprint())
            }
            _ => None,
        };
        let (name, args) = (step.name.clone(), step.args.clone());
        Ok(Locked { name, args, model, model_fingerprint, device, outputs })
    }

    /// Runs every step again, and compares its outputs with those of the lock file.
    ///
    /// # Errors
    /// [`Failure::Run`] with every mismatch.
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
                tempfile::tempdir().map_err(|e| Failure::Run(format!("cannot create a temporary folder: {e}")))?;
            let found = self.step(step, Some(folder.path()))?;
            if found.model_fingerprint != locked.model_fingerprint {
                let model = locked.model.as_deref().unwrap_or_default();
                mismatches.push(format!("{}: the model {model} has other weights now", step.name));
            }
            for Output { file, sha256: before } in &locked.outputs {
                let now = found.outputs.iter().find(|output| output.file == *file);
                let verdict = match now {
                    None => Err("it is no longer written".to_string()),
                    Some(now) if now.sha256 == *before => Ok("the same bytes".to_string()),
                    Some(_) if file == STDOUT => Err("its text differs, and the earlier text is not stored".into()),
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

/// Checks that an output file is unchanged since the lock file was written. Only then its numbers can be compared.
fn check_kept(file: &Path, sha: &str) -> Result<(), String> {
    let bytes = std::fs::read(file)
        .map_err(|e| format!("it differs from the lock file, and the earlier output cannot be read: {e}"))?;
    if sha256(&bytes) == sha {
        Ok(())
    } else {
        Err("it differs from the lock file, and the earlier output was changed since".into())
    }
}

/// A command that will be appended to a file of steps once it has succeeded.
pub(super) struct Recording {
    file: PathBuf,
    args: Vec<String>,
    /// The file without this step.
    before: String,
    /// The number of steps in it.
    steps: usize,
}

impl Recording {
    /// Removes `--record FILE` from a program's arguments. `None` if they have none.
    ///
    /// # Errors
    /// [`Failure`] if this command cannot be a step, or if there is a file that is not a file of steps.
    pub(super) fn of(args: &mut Vec<String>) -> Option<Result<Recording, Failure>> {
        let at = Value::of(args, None, "--record")?;
        let file = PathBuf::from(at.read(args));
        let first = if at.begin == 0 { at.arg - 1 } else { at.arg };
        args.drain(first..=at.arg);
        Some(Recording::begin(file, args.clone()))
    }

    fn begin(file: PathBuf, args: Vec<String>) -> Result<Recording, Failure> {
        let named = file.display();
        if args.first().is_some_and(|command| command == "run") {
            return Err(Failure::Usage(
                "--record records a command, and `run` runs recorded commands; leave --record out".into(),
            ));
        }
        super::texts::refuse_stdin();
        let before = std::fs::read_to_string(&file).or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Ok(String::new()),
            _ => Err(Failure::Run(format!("cannot read {named}: {e}"))),
        })?;
        let Experiment { step } = toml::from_str(&before).map_err(|e| {
            let e = e.to_string().replace('\n', " ");
            Failure::Run(format!("{named} is not a file of steps, so nothing can be appended to it: {e}"))
        })?;
        Ok(Recording { steps: step.len(), file, args, before })
    }

    /// Appends the command.
    pub(super) fn append(self) -> Result<(), Failure> {
        let Recording { file, args, mut before, steps } = self;
        if !before.is_empty() {
            before.push_str(if before.ends_with('\n') { "\n" } else { "\n\n" });
        }
        let name = format!("{} {}", steps + 1, args.first().map_or("", String::as_str));
        // JSON and TOML write strings and lists of them in the same way, but for one control character.
        let step = format!("[[step]]\nname = {}\nargs = {}\n", json!(name), json!(args)).replace('\u{7f}', "\\u007f");
        Place::create(&file)?.fill(|part| std::fs::write(part, before + &step))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_taken_out_of_the_arguments() {
        let of = |args: &[&str]| {
            let mut args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
            let file = Recording::of(&mut args).map(|recording| recording.unwrap_or_else(|_| panic!("{args:?}")).file);
            (file, args.join(" "))
        };
        assert_eq!(of(&["lens", "a", "--record", "b.toml", "-q"]), (Some("b.toml".into()), "lens a -q".into()));
        assert_eq!(of(&["lens", "--record=b.toml", "a"]), (Some("b.toml".into()), "lens a".into()));
        assert_eq!(of(&["lens", "--", "--record", "b"]), (None, "lens -- --record b".into()));
    }

    #[test]
    fn an_output_file_is_found_however_it_is_written() {
        let of = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
            let found = Value::of(&args, Some("-o"), "--out").map(|at| at.read(&args).to_string());
            (found, parsed(&args, "out"))
        };
        let file = || Some("a.json".to_string());
        for written in [&["-o", "a.json"][..], &["-oa.json"], &["-o=a.json"], &["--out", "a.json"], &["--out=a.json"]] {
            assert_eq!(of(&[&["lens", "x"], written].concat()), (file(), file()), "{written:?}");
        }
        assert_eq!(of(&["lens", "--", "-o", "a.json"]), (None, None));
        // Flags in one argument are clap's alone, and such a step is refused.
        assert_eq!(of(&["lens", "x", "-qoa.json"]), (None, file()));
        assert_eq!(parsed(&["bench".into()], "model").as_deref(), Some(random::NAME));
        assert_eq!(parsed(&["devices".into()], "model"), None);
    }
}
