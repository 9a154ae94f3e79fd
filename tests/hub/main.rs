//! A model by name, from a hub on loopback: downloads, the cache, tokens, and the failures of all of these. Each test
//! starts the real program with a cache of its own; nothing leaves 127.0.0.1.

#[path = "../common/binary.rs"]
mod binary;
#[path = "../common/mod.rs"]
mod common;
mod download;
mod refusals;
mod server;

use server::Hub;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A value that must never appear in any output.
const TOKEN: &str = "hf_SECRETsecretSECRET";

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A hub that serves the demo model as gpt2, and a machine with an empty cache.
struct World {
    hub: Hub,
    home: tempfile::TempDir,
}

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl World {
    fn new() -> World {
        World::of("openai-community/gpt2", &demo())
    }

    fn of(repo: &str, folder: &Path) -> World {
        World { hub: Hub::new(repo, folder), home: tempfile::tempdir().unwrap() }
    }

    /// The program on this machine.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_actscope"));
        for (name, _) in std::env::vars() {
            let name_lower = name.to_lowercase();
            if name.starts_with("HF_") || name.starts_with("HUGGING") || name_lower.ends_with("_proxy") {
                command.env_remove(name);
            }
        }
        command.env_remove("TRANSFORMERS_OFFLINE").env("HF_HOME", self.home.path()).env("HF_ENDPOINT", &self.hub.url);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str], variables: &[(&str, &str)]) -> Ran {
        let mut command = self.command(args);
        command.envs(variables.iter().copied());
        finish(command.output().unwrap())
    }

    /// Tokens of a text from a model: this needs the files and no device.
    fn tokens(&self, model: &str, variables: &[(&str, &str)]) -> Ran {
        self.run(&["tokens", "--model", model, "The cat sat."], variables)
    }

    fn repo(&self) -> PathBuf {
        self.cache().join(format!("models--{}", self.hub.set().repo.replace('/', "--")))
    }

    fn cache(&self) -> PathBuf {
        self.home.path().join("hub")
    }

    /// Every blob with its final name is whole, and no part of one is left if `whole`.
    fn check_blobs(&self, whole: bool) {
        let files = self.hub.set().files.clone();
        let mut found = 0;
        for blob in std::fs::read_dir(self.repo().join("blobs")).into_iter().flatten() {
            let path = blob.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.ends_with(".incomplete") {
                assert!(!whole, "{name} is left over");
                continue;
            }
            let same = |(file, bytes): (&String, &Vec<u8>)| server::etag(file, bytes) == name;
            let bytes = files.iter().find(|(file, bytes)| same((file, bytes))).unwrap_or_else(|| panic!("{name}?")).1;
            assert!(std::fs::read(&path).unwrap() == *bytes, "{name} is not whole");
            found += 1;
        }
        assert!(!whole || found >= 3, "{found} blobs");
    }
}

fn finish(output: Output) -> Ran {
    let ran = Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(!ran.stdout.contains("SECRET") && !ran.stderr.contains("SECRET"), "a token is shown: {}", ran.stderr);
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
    ran
}

impl Ran {
    #[track_caller]
    fn ok(self) -> Ran {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }

    /// Failed with exit code 1, and the message has all of `words`.
    #[track_caller]
    fn failed(self, words: &[&str]) -> Ran {
        assert_eq!(self.code, Some(1), "{}{}", self.stdout, self.stderr);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in: {}", self.stderr);
        }
        assert_eq!(self.stdout, "");
        self
    }
}
