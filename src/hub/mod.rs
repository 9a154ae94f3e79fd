//! Finds a model: the demo inside the binary, a folder, the local Hugging Face cache, or a download into it. Owns names
//! and the order of lookup; `../model/checkpoint.rs` and `../model/tokenizer.rs` read the files. Read next: `given.rs`
//! (what a name means), `cache.rs` (the cache's layout), `download.rs` (downloads into it).

#[cfg_attr(not(feature = "download"), allow(dead_code, reason = "only downloads write"))]
mod cache;
#[cfg(all(feature = "download", not(target_arch = "wasm32")))]
mod check;
#[cfg(all(feature = "download", not(target_arch = "wasm32")))]
mod download;
mod error;
mod given;
#[cfg(all(feature = "download", not(target_arch = "wasm32")))]
mod http;
mod inventory;
#[cfg_attr(not(feature = "download"), allow(dead_code, reason = "only downloads suggest names"))]
mod known;
mod settings;
#[cfg(all(feature = "download", not(target_arch = "wasm32")))]
mod token;

pub use error::HubError;
pub use inventory::{Entry, inventory};
pub use known::{KNOWN, Known};
pub use settings::Hub;

use crate::model::model_dir::{Files, Instead, ModelDir};
use cache::{Holds, Repo};
use given::Given;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// Files in no folder, with the names that they would have in one.
    Files(ModelFiles),
}

/// The files of [`Source::Files`].
#[derive(Clone)]
pub struct ModelFiles(pub(crate) Arc<Files>);

impl std::fmt::Debug for ModelFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ModelFiles").field(&self.0.keys()).finish()
    }
}

impl PartialEq for ModelFiles {
    /// Compares identity.
    fn eq(&self, other: &ModelFiles) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for ModelFiles {}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            #[cfg(feature = "demo")]
            Source::Demo => f.write_str("the demo model in this binary"),
            Source::Folder(folder) => write!(f, "the folder {}", folder.display()),
            Source::Cache(folder) => write!(f, "the Hugging Face cache, {}", folder.display()),
            Source::Files(_) => f.write_str("files that are in no folder"),
        }
    }
}

/// A report of a running download.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A message for the user, such as about a refused token or a wait.
    Note(&'a str),
    /// The download of weights and tokenizer begins.
    Start {
        /// `owner/name`.
        repo: &'a str,
        /// The hub's address.
        from: &'a str,
        /// Bytes in total, including those already here.
        bytes: u64,
    },
    /// Progress.
    Bytes {
        /// Bytes that are here.
        done: u64,
        /// Whether the last of them were already here, so that they do not count for the speed.
        kept: bool,
    },
    /// The download ended, successfully or not.
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
    /// The name or value as given.
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

    /// What the cache has of the model: everything, or the most complete snapshot.
    fn cached(&self, cache: &Path) -> Cached {
        // In the hub's early days repositories had no owners, and old caches still have the short names.
        let repos = [&self.repo, &self.given].map(|name| Repo::new(cache, name));
        let snapshots: Vec<(Holds, PathBuf)> = repos
            .iter()
            .filter_map(|repo| repo.snapshot(&self.revision).map(|snapshot| (repo.holds(&snapshot), snapshot)))
            .collect();
        let with = |wanted: Holds| snapshots.iter().find(|(holds, _)| *holds == wanted).map(|(_, s)| s.clone());
        if let Some(whole) = with(Holds::Everything) {
            Cached::Whole(whole)
        } else if let Some(snapshot) = with(Holds::NoCompanions) {
            Cached::Part(snapshot, "what its tokenizer_config.json says, if it has one")
        } else if let Some(snapshot) = with(Holds::NoTokenizer) {
            Cached::Part(snapshot, "a tokenizer")
        } else {
            let other = |snapshot: &PathBuf| Instead::of(&ModelDir::new(snapshot).names()).is_some();
            with(Holds::NoWeights).filter(other).map_or(Cached::Nothing, Cached::Other)
        }
    }

    /// How the cache lacks the model: it has nothing of it, a part of it, or another revision.
    fn lack(&self, cache: &Path) -> String {
        let repo = Repo::new(cache, &self.repo);
        let (model, revisions) = (format!("{} ({})", self.repo, self.revision), repo.revisions());
        if repo.unfinished() > 0 || repo.snapshot(&self.revision).is_some() {
            format!("{model} is incomplete in")
        } else if revisions.is_empty() {
            format!("{model} is not in")
        } else {
            format!("{model} (but {}) is not in", revisions.join(", "))
        }
    }
}

enum Cached {
    Whole(PathBuf),
    /// Enough to run token ids. The second field is what is missing.
    Part(PathBuf, &'static str),
    /// Weights only in an unsupported format.
    Other(PathBuf),
    Nothing,
}

/// Finds a model: `demo`, then a folder or a file in one, then a hub name or address in the local cache of `hub`, then on
/// the hub itself. Reports a download to `tell`.
///
/// # Errors
/// [`HubError`] states what was searched for and what to do.
pub fn resolve(name: &str, hub: &Hub, tell: &mut dyn FnMut(Event<'_>)) -> Result<Source, HubError> {
    #[cfg(feature = "demo")]
    if name == "demo" {
        return Ok(Source::Demo);
    }
    let name = match given::read(name, hub)? {
        Given::Folder(folder) => return Ok(Source::Folder(folder)),
        Given::Name(name) => name,
    };
    let cache = hub.cache();
    let cached = name.cached(&cache);
    if let Cached::Whole(snapshot) = cached {
        return Ok(Source::Cache(snapshot));
    }
    match (fetch(&name, hub, tell), cached) {
        (Ok(snapshot), _) => Ok(Source::Cache(snapshot)),
        // This error has its own message.
        (Err(HubError::Offline { .. } | HubError::NotBuilt { .. }), Cached::Other(snapshot)) => {
            Ok(Source::Cache(snapshot))
        }
        (Err(e), Cached::Part(snapshot, missing)) => {
            let why = match &e {
                HubError::Offline { why, .. } => format!("{why} forbids downloads"),
                HubError::NotBuilt { .. } => "this build has no downloads".into(),
                e => e.to_string(),
            };
            tell(Event::Note(&format!("note: the cache lacks {missing}, of {}, and {why}", name.repo)));
            Ok(Source::Cache(snapshot))
        }
        (Err(e), _) => Err(e),
    }
}

#[cfg(all(feature = "download", not(target_arch = "wasm32")))]
fn fetch(name: &Name, hub: &Hub, tell: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, HubError> {
    match ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().find(|variable| hub.is_true(variable)) {
        Some(why) => Err(offline(name, &hub.cache(), why)),
        None => download::download(name, hub, tell),
    }
}

#[cfg(not(all(feature = "download", not(target_arch = "wasm32"))))]
fn fetch(name: &Name, hub: &Hub, _tell: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, HubError> {
    let cache = hub.cache();
    Err(HubError::NotBuilt { lack: name.lack(&cache), cache })
}

#[cfg(all(feature = "download", not(target_arch = "wasm32")))]
fn offline(name: &Name, cache: &Path, why: &'static str) -> HubError {
    HubError::Offline { lack: name.lack(cache), cache: cache.into(), near: known::did_you_mean(&name.given), why }
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
