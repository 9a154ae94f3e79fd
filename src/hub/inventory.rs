//! Lists the models on this machine, in the Hugging Face cache and in folders. Each is opened as in a run, so the list
//! shows what really works. Reads headers only; changes nothing. Read next: `cache.rs`.

use super::Hub;
use super::cache::Repo;
use crate::config::Config;
use crate::model::checkpoint::Checkpoint;
use crate::model::model_dir::{ModelDir, file};
use std::path::{Path, PathBuf};

/// A model on this machine.
#[derive(Debug)]
pub struct Entry {
    /// The name to open it with.
    pub name: String,
    /// Where it lies.
    pub folder: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes of interrupted downloads that will be resumed.
    pub unfinished: u64,
    /// Whether there is a tokenizer.
    pub tokenizer: bool,
    /// Its sizes, or why it cannot be used.
    pub state: Result<Config, String>,
}

/// The models in the cache of `hub` and in `folders` (each a checkpoint, or a folder of checkpoints). Also returns the cache's
/// folder.
pub fn inventory(hub: &Hub, folders: &[PathBuf]) -> (PathBuf, Vec<Entry>) {
    let root = hub.cache();
    let mut entries = Vec::new();
    for repo in Repo::all(&root) {
        let unfinished = repo.unfinished();
        let commits = repo.commits();
        for (i, (commit, revisions)) in commits.iter().enumerate() {
            let name = match revisions.iter().find(|r| *r == "main").or(revisions.first()) {
                Some(main) if main == "main" => repo.name.clone(),
                Some(revision) => format!("{}@{revision}", repo.name),
                // A branch gets its entry when all of its files are there.
                None if unfinished > 0 => repo.name.clone(),
                None => format!("{}@{commit}", repo.name),
            };
            // Counted once, arbitrarily with the newest snapshot.
            let unfinished = if i == 0 { unfinished } else { 0 };
            entries.push(entry(name, repo.snapshot_folder(commit), unfinished));
        }
        if commits.is_empty() && unfinished > 0 {
            entries.push(entry(repo.name.clone(), repo.snapshot_folder(""), unfinished));
        }
    }
    for folder in folders {
        let inner: Vec<PathBuf> = if folder.join(file::CONFIG).exists() {
            Vec::new()
        } else {
            let inner = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            let mut inner: Vec<PathBuf> = inner.filter(|path| path.join(file::CONFIG).exists()).collect();
            inner.sort();
            inner
        };
        let found = if inner.is_empty() { vec![folder.clone()] } else { inner };
        entries.extend(found.into_iter().map(|path| entry(path.display().to_string(), path, 0)));
    }
    (root, entries)
}

fn entry(name: String, folder: PathBuf, unfinished: u64) -> Entry {
    let dir = ModelDir::new(&folder);
    let tokenizer = dir.has_tokenizer();
    let state = match (unfinished > 0, dir.has_weights()) {
        (true, false) => Err(format!("its download was interrupted; opening {name} resumes it")),
        _ => Checkpoint::open(&folder).map(|checkpoint| checkpoint.config().clone()).map_err(|e| e.to_string()),
    };
    Entry { bytes: bytes(&folder), name, folder, unfinished, tokenizer, state }
}

/// Bytes of the files in a folder; links are followed.
fn bytes(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| std::fs::metadata(file.path()).ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}
