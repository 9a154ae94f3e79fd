//! Compares the picture "What may use what" in ARCHITECTURE.md with the code: a module uses its own row and the rows
//! below, and there is no cycle between modules, nor between files of one module.

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

/// Those that are left when all that use none of the others are taken away, again and again: the members of cycles, and
/// what leads to one.
fn in_a_circle(uses: &BTreeSet<(String, String)>) -> BTreeSet<&str> {
    let mut left: BTreeSet<&str> = uses.iter().flat_map(|(a, b)| [a.as_str(), b.as_str()]).collect();
    loop {
        let used_by_left = |one: &str| uses.iter().any(|(a, b)| a == one && left.contains(b.as_str()));
        let free: Vec<&str> = left.iter().copied().filter(|one| !used_by_left(one)).collect();
        if free.is_empty() {
            return left;
        }
        free.iter().for_each(|one| {
            left.remove(one);
        });
    }
}

#[test]
fn no_modules_use_each_other_in_a_circle() {
    let uses = uses().into_keys().collect();
    assert_eq!(in_a_circle(&uses), BTreeSet::new(), "these use each other");
}

/// The paths in a `use` tree or an expression that begin with `crate` or `super`, each as its segments.
fn paths(code: &str) -> Vec<Vec<&str>> {
    fn tree<'a>(text: &'a str, before: &[&'a str], all: &mut Vec<Vec<&'a str>>) {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        let path: Vec<&str> =
            before.iter().copied().chain(Some(&text[..end]).filter(|part| !part.is_empty())).collect();
        match text[end..].strip_prefix("::") {
            Some(rest) if end > 0 => tree(rest, &path, all),
            _ if end == 0 && text.starts_with('{') => {
                let (mut depth, mut start) = (0, 1);
                for (i, c) in text.char_indices() {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    if (c == ',' && depth == 1) || depth == 0 {
                        tree(text[start..i].trim_start(), before, all);
                        start = i + 1;
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            _ => all.push(path),
        }
    }
    let mut all = Vec::new();
    for word in ["crate::", "super::"] {
        let starts_here = |at: &usize| !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        code.match_indices(word).map(|(at, _)| at).filter(starts_here).for_each(|at| tree(&code[at..], &[], &mut all));
    }
    all
}

/// Which file uses which, as module paths without `crate`. A `mod.rs` names its own files by relative paths, which do not
/// count: it and they are one.
fn uses_of_files() -> BTreeSet<(String, String)> {
    let (src, mut found) = (root().join("src"), Vec::new());
    files(&src, &mut found);
    let module_of = |path: &Path| {
        let inside = path.strip_prefix(&src).unwrap().with_extension("");
        let mut parts: Vec<String> = inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        parts.pop_if(|last| last == "mod");
        parts
    };
    let modules: BTreeSet<Vec<String>> = found.iter().map(|path| module_of(path)).collect();
    let mut uses = BTreeSet::new();
    for path in &found {
        let module = module_of(path);
        let text = std::fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code: String = code.lines().map(|line| line.split("//").next().unwrap_or("").to_string() + "\n").collect();
        for used in paths(&code) {
            let above = used.iter().take_while(|part| **part == "super").count();
            let from = if above > 0 { &module[..module.len() - above.min(module.len())] } else { &[] };
            let names = used.iter().skip(above.max(1)).map(|name| name.to_string());
            let mut other: Vec<String> = from.iter().cloned().chain(names).collect();
            while !other.is_empty() && !modules.contains(&other) {
                other.pop();
            }
            if !other.is_empty() && other != module {
                uses.insert((module.join("/"), other.join("/")));
            }
        }
    }
    uses
}

/// Seen red: `use crate::hooks::layout;` in `hooks/request.rs`.
#[test]
fn no_files_use_each_other_in_a_circle() {
    assert_eq!(in_a_circle(&uses_of_files()), BTreeSet::new(), "these use each other, or lead to some that do");
}
