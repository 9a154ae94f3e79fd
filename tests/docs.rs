//! Checks README and docs/: bash runs every `sh` block, and its output must contain the lines of a `text` block after
//! it. Python runs every `python` block (feature `external-tests`). `rust` blocks are doctests of the library.
//!
//! The blocks of a file run one after the other in one folder. The cache there has the demo model under the name
//! `gpt2`, so nothing is downloaded. A block marked `by hand` is not run, and the test prints a line about it. The text
//! of a `text varies` block is not compared.

#[path = "common/mod.rs"]
mod common;

use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// A block between fences.
#[derive(Clone, Debug)]
struct Block {
    line: usize,
    /// The text after the fence: a language, and words for this test.
    info: String,
    body: String,
}

fn blocks(document: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = document.lines().enumerate();
    while let Some((i, line)) = lines.next() {
        if let Some(info) = line.strip_prefix("```") {
            let body: Vec<&str> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
            blocks.push(Block { line: i + 1, info: info.into(), body: body.join("\n") });
        }
    }
    blocks
}

/// Writes the demo model as `gpt2` in the layout of a hub cache.
fn cache(folder: &Path) {
    let repo = folder.join("models--openai-community--gpt2");
    let snapshot = repo.join("snapshots").join("0".repeat(40));
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), "0".repeat(40)).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(root().join("models/demo").join(file), snapshot.join(file)).unwrap();
    }
}

fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

fn run(command: &mut Command, folder: &Path) -> Result<String, Failed> {
    let program = Path::new(env!("CARGO_BIN_EXE_actscope")).parent().unwrap();
    let others = std::env::var_os("PATH").unwrap_or_default();
    let path = [program.to_path_buf()].into_iter().chain(std::env::split_paths(&others));
    command.current_dir(folder).env("PATH", std::env::join_paths(path)?);
    command.env("HOME", folder).env("HF_HUB_CACHE", folder.join("cache")).env("HF_HUB_OFFLINE", "1");
    let output = command.env("NO_COLOR", "1").output()?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(out.into()) } else { Err(format!("{}\n{out}{err}", output.status).into()) }
}

/// Whether two lines are equal. Numbers may differ in their last digits, because machines sum in different orders.
fn same(a: &str, b: &str) -> bool {
    let near = |a: &str, b: &str| match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => (a - b).abs() <= 1e-3 * (1.0 + a.abs()),
        _ => a == b,
    };
    let (a, b) = (a.split_whitespace().collect::<Vec<_>>(), b.split_whitespace().collect::<Vec<_>>());
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(a, b))
}

/// Runs a document's blocks in order.
fn check(document: &str) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    cache(&folder.path().join("cache"));
    let mut printed = String::new();
    for block in blocks(document) {
        let at =
            |e: Failed| Failed::from(format!("line {}: {}\n{}", block.line, e.message().unwrap_or(""), block.body));
        match block.info.as_str() {
            "sh" => {
                printed = run(Command::new("bash").args(["-euo", "pipefail", "-c", &block.body]), folder.path())
                    .map_err(at)?
            }
            "text" => {
                let missing = block.body.lines().find(|line| *line != "..." && !printed.lines().any(|l| same(line, l)));
                if let Some(line) = missing {
                    return Err(at(format!("this line is not printed: {line}\nbut\n{printed}").into()));
                }
            }
            "python" if cfg!(feature = "external-tests") => {
                let python = common::python("safetensors");
                run(Command::new(python).args(["-c", &block.body]), folder.path()).map_err(at)?;
            }
            "python" | "rust" | "sh by hand" | "text varies" => {}
            other => return Err(at(format!("a block of an unknown kind: {other:?}").into())),
        }
    }
    Ok(())
}

/// Every hook has a row in docs/hooks.md, with its shape and formula.
fn every_hook_is_described() -> Result<(), Failed> {
    let document = std::fs::read_to_string(root().join("docs/hooks.md"))?;
    let out = run(Command::new(env!("CARGO_BIN_EXE_actscope")).args(["hooks", "--json"]), &root())?;
    for row in serde_json::from_str::<Vec<serde_json::Value>>(&out)? {
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_string();
        let axes = row["shape"].as_array().ok_or("no shape")?.iter().filter_map(|axis| axis.as_str());
        let line = format!("| `{}` | {} | {} |", text("name"), axes.collect::<Vec<_>>().join(" "), text("formula"));
        if !document.contains(&line) {
            return Err(format!("docs/hooks.md lacks the line\n{line}").into());
        }
    }
    Ok(())
}

/// Links and pictures of a document lead to existing files.
fn links(file: &Path, document: &str) -> Result<(), Failed> {
    let text: String = document.split("```").step_by(2).collect();
    for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let is_elsewhere = target.starts_with("https://") || target.starts_with('#');
        if !is_elsewhere && !file.parent().ok_or("no folder")?.join(target).exists() {
            return Err(format!("a link leads nowhere: {target}").into());
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    // Bash is installed on CI's Windows runners, but not on every Windows system.
    if cfg!(windows) {
        println!("the commands of README and docs are not run on Windows");
        return ExitCode::SUCCESS;
    }
    let mut files = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    files.extend(docs.filter(|path| path.extension().is_some_and(|e| e == "md")));
    files.sort();
    let mut trials = vec![Trial::test("every_hook_is_described", every_hook_is_described)];
    for file in files {
        let name = file.strip_prefix(root()).unwrap().display().to_string();
        let document = std::fs::read_to_string(&file).unwrap();
        for block in blocks(&document) {
            let reason = match block.info.as_str() {
                "sh by hand" => "by hand",
                "python" if !cfg!(feature = "external-tests") => "needs Python; tools/check.sh runs it",
                _ => continue,
            };
            println!("not run: {name}, line {}: {reason}", block.line);
        }
        let copy = document.clone();
        trials.push(Trial::test(format!("{name}: commands"), move || check(&copy)));
        // The packed crate contains this test but lacks some of the folders.
        if !root().join("Cargo.toml.orig").exists() {
            trials.push(Trial::test(format!("{name}: links"), move || links(&file, &document)));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
