//! Compares the picture "What may use what" in ARCHITECTURE.md with the code: a module uses its own row and the rows
//! below, and there is no cycle between modules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The rows of the picture, from top to bottom.
fn rows() -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, after) = text.split_once("What may use what").expect("the picture has its heading");
    let picture = after.split("```").nth(1).expect("the picture is a code block");
    picture.lines().filter(|line| !line.is_empty()).map(|row| row.split(' ').map(String::from).collect()).collect()
}

/// Every Rust file below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules that a line of code names as `crate::module::...`.
fn named(line: &str) -> impl Iterator<Item = &str> {
    let code = if line.trim_start().starts_with("//") { "" } else { line };
    code.split("crate::")
        .skip(1)
        .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(""))
}

/// Which module uses which, each with a file and line where it does.
fn uses() -> BTreeMap<(String, String), String> {
    let (src, mut paths) = (root().join("src"), Vec::new());
    files(&src, &mut paths);
    let mut uses = BTreeMap::new();
    for path in paths {
        let inside = path.strip_prefix(&src).unwrap();
        let module =
            inside.components().next().unwrap().as_os_str().to_string_lossy().trim_end_matches(".rs").to_string();
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (n, line) in text.lines().enumerate() {
            for other in named(line).filter(|other| *other != module) {
                let at = format!("{}:{}: {}", path.display(), n + 1, line.trim());
                uses.entry((module.clone(), other.to_string())).or_insert(at);
            }
        }
    }
    uses
}

/// Seen red: `use crate::session::Session;` in `device/mod.rs`.
#[test]
fn no_module_uses_one_above_it() {
    let rows = rows();
    let row_of = |module: &str| rows.iter().position(|row| row.iter().any(|name| name == module));
    let mut wrong = Vec::new();
    for ((module, other), at) in uses() {
        match (row_of(&module), row_of(&other)) {
            (Some(above), Some(below)) if above <= below => {}
            (Some(_), Some(_)) => wrong.push(format!("{module} uses {other}, which is above it: {at}")),
            (None, _) => wrong.push(format!("{module} is not in the picture: {at}")),
            // A name at the crate's root does not say which module defines it.
            (_, None) => wrong.push(format!("{other} is not in the picture: {at}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_modules_use_each_other_in_a_circle() {
    let uses = uses();
    let mut left: BTreeSet<&str> = uses.keys().flat_map(|(a, b)| [a.as_str(), b.as_str()]).collect();
    loop {
        let used_by_left = |module: &str| uses.keys().any(|(a, b)| a == module && left.contains(b.as_str()));
        // Modules that use none of the remaining modules are in no cycle.
        let free: Vec<&str> = left.iter().copied().filter(|module| !used_by_left(module)).collect();
        if free.is_empty() {
            break;
        }
        free.iter().for_each(|module| {
            left.remove(module);
        });
    }
    assert!(left.is_empty(), "these use each other: {left:?}");
}
