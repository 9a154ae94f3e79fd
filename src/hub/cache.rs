//! The local cache, in the layout of Python's huggingface_hub, so that the two share downloads. Each repository has
//! `blobs/<etag>` (contents), `snapshots/<commit>/<file>` (relative links to blobs), `refs/<revision>` (a commit), and
//! `.no_exist/<commit>/<file>` (known to be absent). Owns paths, links and locks; uses no network. huggingface_hub's
//! file_download.py defines the behaviour. Read next: `download.rs`.

use crate::model::model_dir::{self, COMPANIONS, ModelDir, file};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// A path with `~` expanded to the home folder; a shell does not expand it within quotes.
pub(super) fn at_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), dirs::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.into(),
    }
}

/// One model's folder in the cache.
#[derive(Clone, Debug)]
pub(super) struct Repo {
    root: PathBuf,
    /// `owner/name`.
    pub name: String,
}

/// The lock held while a blob is written. It is advisory, and on the same file that huggingface_hub locks.
pub(super) enum Lock {
    Held {
        _file: File,
    },
    /// The file system does not support locks: each process must write to a file of its own.
    Unsupported,
}

impl Repo {
    pub(crate) fn new(root: &Path, name: &str) -> Repo {
        Repo { root: root.into(), name: name.into() }
    }

    /// Every model in the cache, by name.
    pub(crate) fn all(root: &Path) -> Vec<Repo> {
        let of_folder = |folder: fs::DirEntry| {
            let name = folder.file_name().to_str()?.strip_prefix("models--")?.replace("--", "/");
            Some(Repo::new(root, &name))
        };
        let mut repos: Vec<Repo> = fs::read_dir(root).into_iter().flatten().flatten().filter_map(of_folder).collect();
        repos.sort_by(|a, b| a.name.cmp(&b.name));
        repos
    }

    fn folder_name(&self) -> String {
        format!("models--{}", self.name.replace('/', "--"))
    }

    fn folder(&self) -> PathBuf {
        self.root.join(self.folder_name())
    }

    /// The snapshot at `revision` (a branch, a tag or a commit) that has a config.json.
    pub(crate) fn snapshot(&self, revision: &str) -> Option<PathBuf> {
        let commit = fs::read_to_string(self.folder().join("refs").join(revision));
        let snapshot = self.snapshot_folder(commit.as_deref().unwrap_or(revision).trim());
        snapshot.join(file::CONFIG).exists().then_some(snapshot)
    }

    pub(crate) fn snapshot_folder(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// Every commit in the cache, with the branches and tags that point to it.
    pub(crate) fn commits(&self) -> Vec<(String, Vec<String>)> {
        let names = |folder: PathBuf| -> Vec<String> {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
        };
        let mut refs = Vec::new();
        let mut folders = vec![String::new()];
        // Revisions such as refs/pr/3 are folders within refs/.
        while let Some(folder) = folders.pop() {
            for name in names(self.folder().join("refs").join(&folder)) {
                let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                match fs::read_to_string(self.folder().join("refs").join(&name)) {
                    Ok(commit) => refs.push((commit.trim().to_string(), name)),
                    Err(_) => folders.push(name),
                }
            }
        }
        let mut commits = names(self.folder().join("snapshots"));
        commits.sort();
        let revisions = |commit: &String| {
            let mut list: Vec<String> =
                refs.iter().filter(|(c, _)| c == commit).map(|(_, name)| name.clone()).collect();
            list.sort();
            list
        };
        commits.into_iter().map(|commit| (commit.clone(), revisions(&commit))).collect()
    }

    /// Bytes of interrupted downloads that the next run resumes. Those of huggingface_hub are not counted: their names
    /// differ each time, so no program resumes them.
    pub(crate) fn unfinished(&self) -> u64 {
        let blobs = fs::read_dir(self.folder().join("blobs")).into_iter().flatten().flatten();
        let ours = |name: &str| name.strip_suffix(".incomplete").is_some_and(|etag| !etag.contains('.'));
        let partial = blobs.filter(|blob| blob.file_name().to_str().is_some_and(ours));
        partial.filter_map(|blob| blob.metadata().ok()).map(|m| m.len()).sum()
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// The file of an unfinished blob. Its name is the same in every run, so that the next run resumes it.
    pub(crate) fn partial(&self, etag: &str, lock: &Lock) -> PathBuf {
        match lock {
            Lock::Held { .. } => self.blob(&format!("{etag}.incomplete")),
            Lock::Unsupported => self.blob(&format!("{etag}.{}.incomplete", std::process::id())),
        }
    }

    /// Acquires the lock of a blob. Calls `wait` once if another process holds it.
    pub(crate) fn lock(&self, etag: &str, wait: impl FnOnce()) -> io::Result<Lock> {
        let folder = self.root.join(".locks").join(self.folder_name());
        fs::create_dir_all(&folder)?;
        let file =
            File::options().create(true).truncate(false).write(true).open(folder.join(format!("{etag}.lock")))?;
        let locked = match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                wait();
                file.lock()
            }
            Err(TryLockError::Error(e)) => Err(e),
            Ok(()) => Ok(()),
        };
        Ok(if locked.is_ok() { Lock::Held { _file: file } } else { Lock::Unsupported })
    }

    /// Adds a blob to a snapshot as a relative link. If links are not supported, it moves the file there if it is new,
    /// and copies it if another snapshot may use it. Without `symlinks` it does so in any case.
    pub(crate) fn link(&self, etag: &str, commit: &str, file: &str, new: bool, symlinks: bool) -> io::Result<()> {
        let folder = self.snapshot_folder(commit);
        fs::create_dir_all(&folder)?;
        let place = folder.join(file);
        if place.exists() {
            return Ok(());
        }
        // Remove a link to a blob that no longer exists.
        let _ = fs::remove_file(&place);
        let beside = folder.join(format!("{file}.{}.incomplete", std::process::id()));
        // Left by a killed process with the same process id.
        let _ = fs::remove_file(&beside);
        let target = Path::new("..").join("..").join("blobs").join(etag);
        if !symlinks || symlink(&target, &beside).is_err() {
            if new {
                return fs::rename(self.blob(etag), &place);
            }
            fs::copy(self.blob(etag), &beside)?;
        }
        fs::rename(&beside, &place)
    }

    /// Records that the repository has no such file, so that it is not requested again.
    pub(crate) fn mark_absent(&self, commit: &str, file: &str) -> io::Result<()> {
        let folder = self.folder().join(".no_exist").join(commit);
        fs::create_dir_all(&folder)?;
        File::create(folder.join(file)).map(drop)
    }

    /// Records the commit of a branch or tag. Call it when all files of the commit are in the cache.
    pub(crate) fn set_ref(&self, revision: &str, commit: &str) -> io::Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder().join("refs").join(revision);
        let folder = path.parent().map_or(self.folder(), Path::to_path_buf);
        fs::create_dir_all(&folder)?;
        let mut file = tempfile::NamedTempFile::new_in(&folder)?;
        io::Write::write_all(&mut file, commit.as_bytes())?;
        file.persist(&path)?;
        Ok(())
    }

    /// Whether the repository is known to have no such file, at a commit.
    fn is_absent(&self, snapshot: &Path, file: &str) -> bool {
        let commit = snapshot.file_name().unwrap_or_default();
        self.folder().join(".no_exist").join(commit).join(file).exists()
    }

    /// Which parts of a snapshot are in the cache.
    pub(crate) fn holds(&self, snapshot: &Path) -> Holds {
        let dir = ModelDir::new(snapshot);
        if !dir.has_weights() {
            return Holds::NoWeights;
        }
        let known = |file: &str| dir.has(file) || self.is_absent(snapshot, file);
        if !dir.has_tokenizer() {
            let none = model_dir::all_tokenizer_files().all(|file| !dir.has(file) && self.is_absent(snapshot, file));
            return if none { Holds::Everything } else { Holds::NoTokenizer };
        }
        // tokenizer.json contains the added tokens; without it they are in separate files.
        let companions = if dir.has(file::TOKENIZER) { &COMPANIONS[..1] } else { &COMPANIONS };
        if companions.iter().all(|file| known(file)) { Holds::Everything } else { Holds::NoCompanions }
    }

    /// The branches, tags and commits with files in the cache.
    pub(crate) fn revisions(&self) -> Vec<String> {
        let of_commit = |(commit, names): (String, Vec<String>)| if names.is_empty() { vec![commit] } else { names };
        self.commits().into_iter().flat_map(of_commit).collect()
    }
}

/// What the cache has of a model's snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// Every file that the repository has.
    Everything,
    /// Weights and a tokenizer. Whether the repository has more files about the tokenizer is unknown.
    NoCompanions,
    /// Weights. Whether the repository has a tokenizer is unknown.
    NoTokenizer,
    NoWeights,
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_of_huggingface_hub_is_read() {
        let root = tempfile::tempdir().unwrap();
        let repo = Repo::new(root.path(), "openai-community/gpt2");
        let folder = root.path().join("models--openai-community--gpt2/snapshots/abc123");
        fs::create_dir_all(&folder).unwrap();
        repo.set_ref("main", "abc123").unwrap();
        repo.set_ref("refs/pr/3", "abc123").unwrap();
        assert_eq!(repo.snapshot("main"), None, "a snapshot without config.json is unfinished");
        fs::write(folder.join("config.json"), "{}").unwrap();
        for revision in ["main", "refs/pr/3", "abc123"] {
            assert_eq!(repo.snapshot(revision), Some(folder.clone()), "{revision}");
        }
        assert_eq!(repo.snapshot("other"), None);
        assert_eq!(repo.commits(), [("abc123".to_string(), vec!["main".to_string(), "refs/pr/3".into()])]);
        assert_eq!(Repo::all(root.path())[0].name, "openai-community/gpt2");
    }

    #[test]
    fn a_snapshot_is_whole_when_nothing_that_exists_is_missing() {
        let root = tempfile::tempdir().unwrap();
        let repo = Repo::new(root.path(), "a/b");
        let folder = repo.snapshot_folder("c1");
        fs::create_dir_all(&folder).unwrap();
        let put = |file: &str, text: &str| fs::write(folder.join(file), text).unwrap();
        put("model.safetensors.index.json", r#"{"weight_map": {"x": "one.safetensors", "y": "two.safetensors"}}"#);
        put("one.safetensors", "");
        assert_eq!(repo.holds(&folder), Holds::NoWeights, "a shard is missing");
        put("two.safetensors", "");
        assert_eq!(repo.holds(&folder), Holds::NoTokenizer, "it is not known that there is none");
        let absent = |files: &[&str]| files.iter().for_each(|file| repo.mark_absent("c1", file).unwrap());
        absent(&["tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"]);
        assert_eq!(repo.holds(&folder), Holds::Everything);
        put("vocab.json", "");
        put("merges.txt", "");
        put("tokenizer_config.json", "");
        assert_eq!(repo.holds(&folder), Holds::NoCompanions);
        absent(&["added_tokens.json", "special_tokens_map.json"]);
        assert_eq!(repo.holds(&folder), Holds::Everything);
    }

    #[test]
    fn a_dangling_link_is_replaced_and_two_snapshots_share_a_blob() {
        let root = tempfile::tempdir().unwrap();
        let repo = Repo::new(root.path(), "a/b");
        fs::create_dir_all(repo.blob("x").parent().unwrap()).unwrap();
        fs::write(repo.blob("x"), "content").unwrap();
        fs::create_dir_all(repo.snapshot_folder("c1")).unwrap();
        let place = repo.snapshot_folder("c1").join("config.json");
        symlink(Path::new("../../blobs/gone"), &place).unwrap();
        repo.link("x", "c1", "config.json", false, true).unwrap();
        repo.link("x", "c2", "config.json", false, true).unwrap();
        assert_eq!(fs::read_to_string(&place).unwrap(), "content");
        assert_eq!(fs::read_link(&place).unwrap(), Path::new("../../blobs/x"));
        assert_eq!(fs::read_to_string(repo.snapshot_folder("c2").join("config.json")).unwrap(), "content");
    }
}
