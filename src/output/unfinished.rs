//! The folder in which a file is written until it is whole. Owns the promise that nothing half-written stays: the folder
//! goes when it is dropped and when the process is told to end; one whose process was killed is found and cleared away by
//! the next run that writes beside it.

use super::{PART, VALUES};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const PREFIX: &str = ".actscope-";

/// A file in the folder that its process holds locked while it lives, and that is empty until it is.
const LOCK: &str = "lock";

/// After this long, a folder whose lock was never taken belongs to nobody: its process was killed before it came to that.
const NOBODYS: Duration = Duration::from_secs(60);

/// A folder of our own beside the place of a file.
pub(super) struct Unfinished {
    /// Unlocked first, then the folder goes.
    _lock: File,
    folder: tempfile::TempDir,
}

static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

impl Unfinished {
    pub(super) fn create(beside: &Path) -> std::io::Result<Unfinished> {
        clear_away(beside);
        // Locked until it is in the list, so that a signal finds it there.
        let mut all = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(beside)?;
        all.push(folder.path().into());
        Ok(Unfinished { _lock: lock(&folder.path().join(LOCK))?, folder })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).retain(|folder| folder != self.folder.path());
    }
}

/// Makes a file and keeps it locked. It stays empty until it is: whoever finds it empty knows nothing about its owner yet.
fn lock(path: &Path) -> std::io::Result<File> {
    let mut file = File::create_new(path)?;
    // Some file systems know no locks. Then nobody else gets one either, and the folder is never taken for a dead one's.
    let _ = file.try_lock();
    file.write_all(b"locked while its process lives\n")?;
    Ok(file)
}

/// True when the process that made a folder is gone.
fn is_dead(folder: &Path) -> bool {
    match File::open(folder.join(LOCK)) {
        Ok(file) if file.metadata().is_ok_and(|m| m.len() > 0) => file.try_lock().is_ok(),
        _ => {
            let made = std::fs::metadata(folder).and_then(|m| m.modified());
            made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > NOBODYS))
        }
    }
}

/// Takes away what processes that were killed have left in `beside`. Whatever goes wrong here is no reason not to write.
fn clear_away(beside: &Path) {
    let Ok(entries) = std::fs::read_dir(beside) else { return };
    let ours = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
    for folder in entries.flatten().filter(|entry| ours(&entry.file_name())).map(|entry| entry.path()) {
        if is_dead(&folder) {
            // By name, so that nothing goes that is not ours.
            for name in [PART, VALUES, LOCK] {
                let _ = std::fs::remove_file(folder.join(name));
            }
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Takes away what is half-written: for whoever is about to end the process. No new file can be begun afterwards.
pub fn abandon() {
    let all = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
    for folder in all.iter() {
        // Nothing can be done about a folder that will not go.
        let _ = std::fs::remove_dir_all(folder);
    }
    std::mem::forget(all);
}
