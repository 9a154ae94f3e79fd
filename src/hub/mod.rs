//! Where a model comes from: the demo inside the binary, a folder, the local Hugging Face cache, or a download into it. Owns
//! names and the order in which they are looked up; `weights.rs` and `text.rs` read what is found.
//! Read next: `cache.rs` (where things lie), `download.rs` (how they get there).

#[cfg_attr(not(feature = "download"), allow(dead_code))] // what writes is for downloads
mod cache;
#[cfg(all(feature = "download", not(target_arch = "wasm32")))]
mod check;
#[cfg(all(feature = "download", not(target_arch = "wasm32")))]
mod download;
mod error;
#[cfg(all(feature = "download", not(target_arch = "wasm32")))]
mod http;
mod inventory;
#[cfg_attr(not(feature = "download"), allow(dead_code))] // the nearest name is for downloads
mod known;
#[cfg(all(feature = "download", not(target_arch = "wasm32")))]
mod token;

pub use error::HubError;
pub use inventory::{Entry, inventory};
pub use known::{KNOWN, Known};

use cache::Repo;
use std::path::{Path, PathBuf};

/// Where a model was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The trained demo model inside the binary.
    #[cfg(feature = "demo")]
    Demo,
    /// A local folder with `config.json` and safetensors.
    Folder(PathBuf),
    /// A snapshot in the Hugging Face cache, which has the same files.
    Cache(PathBuf),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            #[cfg(feature = "demo")]
            Source::Demo => f.write_str("the demo model in this binary"),
            Source::Folder(folder) => write!(f, "the folder {}", folder.display()),
            Source::Cache(folder) => write!(f, "the Hugging Face cache, {}", folder.display()),
        }
    }
}

/// What a download tells while it runs.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A line that the user should see: a token that was refused, a wait.
    Note(&'a str),
    /// The download of weights and tokenizer begins.
    Start {
        /// `owner/name`.
        repo: &'a str,
        /// The hub's address.
        from: &'a str,
        /// Bytes in all, those that are here already included.
        bytes: u64,
    },
    /// How far it is.
    Bytes {
        /// Bytes that are here.
        done: u64,
        /// Whether the last of them were here before: they say nothing of the speed.
        kept: bool,
    },
    /// It is over, well or not.
    End,
}

/// The embedded demo model's three files.
#[cfg(feature = "demo")]
pub mod demo {
    /// Sizes and switches.
    pub const CONFIG: &str = include_str!("../../models/demo/config.json");
    /// Weights.
    pub static SAFETENSORS: &[u8] = include_bytes!("../../models/demo/model.safetensors");
    /// Tokenizer.
    pub static TOKENIZER: &[u8] = include_bytes!("../../models/demo/tokenizer.json");
}

/// A name on the hub.
struct Name {
    /// As asked for.
    given: String,
    /// `owner/name`.
    repo: String,
    /// Branch, tag or commit.
    revision: String,
}

impl Name {
    fn parse(given: &str) -> Result<Name, HubError> {
        let (repo, revision) = given.split_once('@').unwrap_or((given, "main"));
        let plain = |part: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && part.chars().all(allowed) && !part.starts_with('.')
        };
        if !repo.split('/').all(plain) || repo.split('/').count() > 2 || !revision.split('/').all(plain) {
            return Err(HubError::NotAName { name: given.into() });
        }
        Ok(Name { given: repo.into(), repo: known::full_name(repo).into(), revision: revision.into() })
    }

    /// What the cache has of it: everything, or the snapshot with the most.
    fn cached(&self, cache: &Path) -> Cached {
        // Before owners existed the short names were repositories; caches of that time still hold them.
        let repos = [&self.repo, &self.given].map(|name| Repo::new(cache, name));
        let snapshots: Vec<(&Repo, PathBuf)> =
            repos.iter().filter_map(|repo| Some((repo, repo.snapshot(&self.revision)?))).collect();
        if let Some((_, whole)) = snapshots.iter().find(|(repo, snapshot)| repo.is_whole(snapshot)) {
            return Cached::Whole(whole.clone());
        }
        let find = |has: &dyn Fn(&Path) -> bool| snapshots.iter().map(|(_, s)| s).find(|s| has(s)).cloned();
        if let Some(snapshot) = find(&cache::has_weights) {
            return Cached::NoTokenizer(snapshot);
        }
        find(&|snapshot| snapshot.join("pytorch_model.bin").exists()).map_or(Cached::Nothing, Cached::Pickle)
    }
}

enum Cached {
    Whole(PathBuf),
    /// Weights, but no tokenizer, and nobody has said that the repository has none.
    NoTokenizer(PathBuf),
    /// Weights only in a form that is not read.
    Pickle(PathBuf),
    Nothing,
}

/// Finds a model: `demo`, then a folder, then a hub name in the local cache, then on the hub. `tell` hears of a download.
///
/// # Errors
/// [`HubError`] says what was looked for and what to do.
pub fn resolve(name: &str, tell: &mut dyn FnMut(Event<'_>)) -> Result<Source, HubError> {
    #[cfg(feature = "demo")]
    if name == "demo" {
        return Ok(Source::Demo);
    }
    if Path::new(name).is_dir() {
        return Ok(Source::Folder(name.into()));
    }
    let name = Name::parse(name)?;
    let cache = cache::root();
    let cached = name.cached(&cache);
    if let Cached::Whole(snapshot) = cached {
        return Ok(Source::Cache(snapshot));
    }
    match (fetch(&name, &cache, tell), cached) {
        (Ok(snapshot), _) => Ok(Source::Cache(snapshot)),
        // Token ids can be run without a tokenizer; a pickle has a message of its own.
        (
            Err(HubError::Offline { .. } | HubError::NotBuilt { .. }),
            Cached::NoTokenizer(snapshot) | Cached::Pickle(snapshot),
        ) => Ok(Source::Cache(snapshot)),
        (Err(e), Cached::NoTokenizer(snapshot)) => {
            tell(Event::Note(&format!("note: the cache has no tokenizer of {}, and {e}", name.repo)));
            Ok(Source::Cache(snapshot))
        }
        (Err(e), _) => Err(e),
    }
}

#[cfg(all(feature = "download", not(target_arch = "wasm32")))]
fn fetch(name: &Name, cache: &Path, tell: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, HubError> {
    match ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|variable| cache::is_true(variable)) {
        Some(why) => Err(offline(name, cache, why)),
        None => download::download(name, cache, tell),
    }
}

#[cfg(not(all(feature = "download", not(target_arch = "wasm32"))))]
fn fetch(name: &Name, cache: &Path, _tell: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, HubError> {
    Err(HubError::NotBuilt { repo: name.repo.clone(), revision: name.revision.clone(), cache: cache.into() })
}

#[cfg(all(feature = "download", not(target_arch = "wasm32")))]
fn offline(name: &Name, cache: &Path, why: &'static str) -> HubError {
    HubError::Offline { repo: name.repo.clone(), revision: name.revision.clone(), cache: cache.into(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_have_owners_and_revisions_are_pinned() {
        for (given, repo, revision) in [
            ("gpt2", "openai-community/gpt2", "main"),
            ("distilgpt2@v1", "distilbert/distilgpt2", "v1"),
            ("someone/gpt2@refs/pr/3", "someone/gpt2", "refs/pr/3"),
        ] {
            let name = Name::parse(given).unwrap();
            assert_eq!((name.repo.as_str(), name.revision.as_str()), (repo, revision));
        }
    }

    #[test]
    fn names_that_are_no_names_are_refused() {
        for name in ["../secret", "a/b/c", "", "owner/", "gpt2@../../x", "/no/such/folder", "gpt2@", "a@b@c"] {
            assert!(matches!(Name::parse(name), Err(HubError::NotAName { .. })), "{name}");
        }
    }
}
