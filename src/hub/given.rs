//! Interprets the name that a user gives for a model: a folder, a file in one, an address of the hub, or a hub name. It
//! looks at folders' names and files' first bytes, and uses no network. Read next: `mod.rs`.

use super::{Hub, HubError, Name, cache};
use crate::model::model_dir::{ModelDir, file, kind_of_file};
use std::path::{Path, PathBuf};

/// Where to look.
pub(super) enum Given {
    Folder(PathBuf),
    Name(Name),
}

/// Interprets a given name.
pub(super) fn read(given: &str, hub: &Hub) -> Result<Given, HubError> {
    let path = cache::at_home(Path::new(given));
    if path.is_dir() {
        return Ok(Given::Folder(path));
    }
    if path.is_file() {
        return of_file(&path).map(Given::Folder);
    }
    if let Some(address) = address(given, hub) {
        return of_address(given, address).map(Given::Name);
    }
    if let Some(hint) = path_hint(given) {
        return Err(HubError::NoSuchFolder { path: path.display().to_string(), hint });
    }
    Name::parse(given).map(Given::Name)
}

/// The folder of a file, if the file is one that a checkpoint's folder has.
fn of_file(path: &Path) -> Result<PathBuf, HubError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let refuse = |what: String| Err(HubError::AFile { path: path.display().to_string(), what });
    let dir = ModelDir::new(folder);
    let of_it = [file::CONFIG, file::INDEX, file::ADAPTER_CONFIG].contains(&&*name)
        || dir.weights().is_ok_and(|files| files.iter().any(|file| *file == name))
        || name.starts_with("adapter_model.")
        || name.starts_with("pytorch_model") && name.ends_with(".bin");
    if of_it {
        return Ok(folder.into());
    }
    if let Some(kind) = kind_of_file(path) {
        return refuse(format!("it is {kind}"));
    }
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    if ends(&[".safetensors"]) {
        let folder = folder.display();
        return refuse(if dir.has(file::WEIGHTS) || dir.has(file::INDEX) {
            format!(
                "its folder has other weights; give {folder} for those, or move this file to a folder of its own as {}, \
                 with a config.json",
                file::WEIGHTS
            )
        } else {
            format!("name this one {}, put the config.json beside it and give their folder", file::WEIGHTS)
        });
    }
    if ends(&[".onnx"]) {
        return refuse(
            "it is an ONNX graph, which actscope does not read; give the checkpoint that it was exported from".into(),
        );
    }
    if ends(&[".h5", ".msgpack"]) {
        let folder = folder.display();
        return refuse(format!(
            "it is a checkpoint of TensorFlow or Flax; give its folder, {folder}, to see what converts it"
        ));
    }
    if ends(&[".bin", ".pt", ".pth", ".ckpt"]) {
        return refuse(
            "a pickle can run code, so actscope does not read it; save the model with save_pretrained".into(),
        );
    }
    refuse("give the folder of a checkpoint: config.json and model.safetensors".into())
}

/// The part of an address after the hub's host; `None` if `given` is not an address.
fn address(given: &str, hub: &Hub) -> Option<Result<String, String>> {
    let (scheme, rest) = given.split_once("://").map_or(("", given), |(scheme, rest)| (scheme, rest));
    if scheme == "hf" {
        return Some(Ok(rest.to_string()));
    }
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.rsplit('@').next().unwrap_or_default().to_lowercase();
    let set = hub.text("HF_ENDPOINT").unwrap_or_default();
    let set = set.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
    let bare = host.strip_prefix("www.").unwrap_or(&host);
    match scheme {
        _ if ["huggingface.co", "hf.co"].contains(&bare) => Some(Ok(path.to_string())),
        "http" | "https" if !set.is_empty() && host == set => Some(Ok(path.to_string())),
        "http" | "https" => Some(Err(host)),
        _ => None,
    }
}

/// The name in an address of the hub: `owner/name`, optionally with `tree/revision` or a file.
fn of_address(given: &str, path: Result<String, String>) -> Result<Name, HubError> {
    let refuse = |what: String| Err(HubError::Address { address: given.into(), what });
    let path = match path {
        Ok(path) => path,
        Err(host) => {
            return refuse(format!(
                "{host} is not a Hugging Face hub; download the checkpoint's files and give their folder"
            ));
        }
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    const PAGES: [&str; 4] = ["tree", "blob", "resolve", "commit"];
    let (name, rest) = match parts.as_slice() {
        [] => return refuse("it names no model; give owner/name".into()),
        ["datasets" | "spaces" | "docs" | "papers" | "collections" | "api" | "blog" | "posts", ..] => {
            return refuse("it is not the address of a model; give owner/name".into());
        }
        // The oldest models have no owner.
        [name, page, rest @ ..] if PAGES.contains(page) => (name.to_string(), (Some(page), rest)),
        [name] => (name.to_string(), (None, &[][..])),
        [owner, name, page, rest @ ..] => (format!("{owner}/{name}"), (Some(page), rest)),
        [owner, name] => (format!("{owner}/{name}"), (None, &[][..])),
    };
    // hf:// has the revision in the name.
    let revision = match rest {
        (Some(page), ["refs", "pr", number, ..]) if PAGES.contains(page) => format!("@refs/pr/{number}"),
        (Some(page), [revision, ..]) if PAGES.contains(page) => format!("@{}", revision.replace("%2F", "/")),
        _ => String::new(),
    };
    Name::parse(&format!("{name}{revision}"))
}

/// The hint for a path that does not exist; `None` if `given` may be a hub name.
fn path_hint(given: &str) -> Option<String> {
    let bytes = given.as_bytes();
    let drive =
        bytes.len() > 2 && bytes[0].is_ascii_alphabetic() && bytes[1] == b':' && matches!(bytes[2], b'\\' | b'/');
    if (drive || given.contains('\\')) && !cfg!(windows) {
        let rest = given.get(2..).unwrap_or_default().replace('\\', "/");
        let mounted = drive.then(|| format!("; under WSL it is /mnt/{}{rest}", given[..1].to_lowercase()));
        return Some(format!(
            ", which is a path of Windows, and this system is not Windows{}",
            mounted.unwrap_or_default()
        ));
    }
    let starts = ["/", "./", "../", "~", ".\\", "..\\"].iter().any(|start| given.starts_with(start));
    const FILES: [&str; 8] = [".safetensors", ".json", ".bin", ".gguf", ".onnx", ".h5", ".pt", ".ckpt"];
    let file = FILES.iter().any(|end| given.ends_with(end));
    let relative =
        given.split('/').count() > 2 && !given.contains('@') && given.split('/').all(|part| !part.is_empty());
    if !(starts || drive || file || relative || given == ".." || given == ".") {
        return None;
    }
    // The first missing part shows where the path is wrong.
    let path = cache::at_home(Path::new(given));
    let there = path.ancestors().skip(1).find(|above| above.file_name().is_some() && above.exists());
    Some(match there {
        Some(there) => format!("; {} is there", there.display()),
        _ if path.is_relative() => "; a relative path begins at the folder in which the command runs".into(),
        _ => String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(given: &str) -> Option<(String, String)> {
        match read(given, &Hub::default()) {
            Ok(Given::Name(name)) => Some((name.repo, name.revision)),
            _ => None,
        }
    }

    #[test]
    fn addresses_of_the_hub_are_names() {
        let of = |repo: &str, revision: &str| Some((repo.to_string(), revision.to_string()));
        for (given, expected) in [
            ("https://huggingface.co/openai-community/gpt2", of("openai-community/gpt2", "main")),
            ("https://huggingface.co/openai-community/gpt2/", of("openai-community/gpt2", "main")),
            ("https://www.huggingface.co/gpt2?library=transformers", of("openai-community/gpt2", "main")),
            ("huggingface.co/a/b/tree/v1", of("a/b", "v1")),
            ("https://hf.co/a/b/blob/main/config.json", of("a/b", "main")),
            ("https://huggingface.co/a/b/resolve/607a/model.safetensors?download=true", of("a/b", "607a")),
            ("https://huggingface.co/a/b/tree/refs%2Fpr%2F3", of("a/b", "refs/pr/3")),
            ("https://huggingface.co/a/b/tree/refs/pr/3/x", of("a/b", "refs/pr/3")),
            ("https://huggingface.co/gpt2/tree/main", of("openai-community/gpt2", "main")),
            ("https://huggingface.co/a/b/discussions/3", of("a/b", "main")),
            ("hf://a/b@v1", of("a/b", "v1")),
            ("https://huggingface.co/datasets/a/b", None),
            ("https://huggingface.co", None),
            ("https://example.com/a/b", None),
            ("https://huggingface.co.evil/a/b", None),
        ] {
            assert_eq!(name(given), expected, "{given}");
        }
    }
}
