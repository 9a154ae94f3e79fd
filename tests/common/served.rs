//! `actscope explore` as a running program, for the tests of what it serves.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

/// A program that serves the explorer, until it is dropped.
pub struct Served {
    pub process: Child,
    /// The address of the page, with its secret.
    pub page: String,
    pub stdout: BufReader<ChildStdout>,
}

impl Served {
    /// Starts one that opens no browser, and waits until it serves.
    pub fn start(args: &[&str]) -> Served {
        let mut command = Served::command();
        command.arg("--no-open").args(args);
        Served::run(command)
    }

    /// `actscope explore`, which opens a browser unless it is told not to.
    pub fn command() -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("actscope"));
        command
            .arg("explore")
            .env("ACTSCOPE_TUNING", "off")
            .env("HF_HUB_CACHE", "/there/is/no/such/cache")
            .env("HF_HUB_OFFLINE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs it, and waits until it serves.
    pub fn run(mut command: Command) -> Served {
        let mut process = command.spawn().unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut page = String::new();
        stdout.read_line(&mut page).unwrap();
        if page.is_empty() {
            let mut said = String::new();
            process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("it serves nothing: {said}");
        }
        Served { process, page: page.trim_end().into(), stdout }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> &str {
        self.page.strip_prefix("http://").unwrap().split('/').next().unwrap()
    }

    /// The path of a file of the page.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", &self.page["http://".len() + self.host().len()..])
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
