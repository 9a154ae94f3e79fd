//! Where a model comes from: the demo inside the binary, a folder, or the local Hugging Face cache. Owns names and places;
//! `weights.rs` and `text.rs` read what is found.

use std::path::{Path, PathBuf};
use thiserror::Error;

/// Where a model was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The trained demo model inside the binary.
    #[cfg(feature = "demo")]
    Demo,
    /// A folder with `config.json` and safetensors: a local one, or a snapshot in the hub cache.
    Folder(PathBuf),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            #[cfg(feature = "demo")]
            Source::Demo => f.write_str("the demo model in this binary"),
            Source::Folder(folder) => write!(f, "{}", folder.display()),
        }
    }
}

/// A model's name that leads nowhere.
#[derive(Debug, Error)]
pub enum HubError {
    /// Not `demo`, no folder, not in the cache.
    #[error(
        "there is no model {name:?}: it is not \"demo\", not a folder, and {repo} is not in the Hugging Face cache {cache}; \
         fetch it with `hf download {repo} config.json tokenizer.json model.safetensors`, or give the folder of a checkpoint"
    )]
    NotFound {
        /// As asked for.
        name: String,
        /// The hub's name for it.
        repo: String,
        /// The cache's folder.
        cache: PathBuf,
    },
    /// Neither a folder nor a name that the hub could have.
    #[error(
        "there is no model {name:?}: it is not \"demo\", not a folder, and not a hub name such as gpt2 or owner/name@revision"
    )]
    NotAName {
        /// As asked for.
        name: String,
    },
}

/// The embedded demo model's three files.
#[cfg(feature = "demo")]
pub mod demo {
    /// Sizes and switches.
    pub const CONFIG: &str = include_str!("../models/demo/config.json");
    /// Weights.
    pub static SAFETENSORS: &[u8] = include_bytes!("../models/demo/model.safetensors");
    /// Tokenizer.
    pub static TOKENIZER: &[u8] = include_bytes!("../models/demo/tokenizer.json");
}

/// Finds a model: `demo`, then a folder, then a hub name in the local cache.
///
/// # Errors
/// [`HubError`] says where it was looked for and how to fetch it.
pub fn resolve(name: &str) -> Result<Source, HubError> {
    #[cfg(feature = "demo")]
    if name == "demo" {
        return Ok(Source::Demo);
    }
    if Path::new(name).is_dir() {
        return Ok(Source::Folder(name.into()));
    }
    let (repo, revision) = name.split_once('@').unwrap_or((name, "main"));
    let plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && part.chars().all(allowed) && !part.starts_with('.')
    };
    if !repo.split('/').all(plain) || repo.split('/').count() > 2 || !revision.split('/').all(plain) {
        return Err(HubError::NotAName { name: name.into() });
    }
    let owner = match repo {
        "gpt2" | "gpt2-medium" | "gpt2-large" | "gpt2-xl" => Some("openai-community"),
        "distilgpt2" => Some("distilbert"),
        _ => None,
    };
    let full = owner.map_or(repo.to_string(), |owner| format!("{owner}/{repo}"));
    let cache = cache_folder();
    // Before owners existed the short names were repositories; caches of that time still hold them.
    [&full, repo]
        .iter()
        .find_map(|repo| snapshot(&cache, repo, revision))
        .map(Source::Folder)
        .ok_or(HubError::NotFound { name: name.into(), repo: full.clone(), cache })
}

/// Where Python's huggingface_hub keeps what it fetched.
fn cache_folder() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(cache) = set("HF_HUB_CACHE") {
        return cache;
    }
    if let Some(home) = set("HF_HOME") {
        return home.join("hub");
    }
    let cache = set("XDG_CACHE_HOME").or_else(|| dirs::home_dir().map(|home| home.join(".cache")));
    cache.unwrap_or_default().join("huggingface").join("hub")
}

/// The snapshot of `repo` at `revision` (a branch, a tag or a commit) that has a config.json.
fn snapshot(cache: &Path, repo: &str, revision: &str) -> Option<PathBuf> {
    let folder = cache.join(format!("models--{}", repo.replace('/', "--")));
    let commit = std::fs::read_to_string(folder.join("refs").join(revision)).unwrap_or_else(|_| revision.into());
    let snapshot = folder.join("snapshots").join(commit.trim());
    snapshot.join("config.json").exists().then_some(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_layout_of_huggingface_hub_is_read() {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--openai-community--gpt2");
        let snapshot_folder = repo.join("snapshots/abc123");
        std::fs::create_dir_all(&snapshot_folder).unwrap();
        std::fs::create_dir_all(repo.join("refs")).unwrap();
        std::fs::write(repo.join("refs/main"), "abc123\n").unwrap();
        assert_eq!(
            snapshot(cache.path(), "openai-community/gpt2", "main"),
            None,
            "a snapshot without config.json is unfinished"
        );
        std::fs::write(snapshot_folder.join("config.json"), "{}").unwrap();
        assert_eq!(snapshot(cache.path(), "openai-community/gpt2", "main"), Some(snapshot_folder.clone()));
        assert_eq!(snapshot(cache.path(), "openai-community/gpt2", "abc123"), Some(snapshot_folder));
        assert_eq!(snapshot(cache.path(), "openai-community/gpt2", "other"), None);
    }

    #[test]
    fn names_that_are_no_names_are_refused() {
        for name in ["../secret", "a/b/c", "", "owner/", "gpt2@../../x", "/no/such/folder"] {
            assert!(matches!(resolve(name), Err(HubError::NotAName { .. })), "{name}");
        }
    }
}
