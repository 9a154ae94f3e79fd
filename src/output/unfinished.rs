//! The temporary folder in which a file is written until it is complete. Owns the guarantee that no unfinished file
//! remains: the folder is deleted when it is dropped and when the process receives a signal to end. If a process is
//! killed, the next run that writes beside its folder deletes it. Read next: `mod.rs`.

use super::{PART, VALUES};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const PREFIX: &str = ".actscope-";

/// A file in the folder that its process locks as long as it runs. It is empty until it is locked.
const LOCK: &str = "lock";

/// A folder whose file is still not locked after this time is abandoned: its process was killed before it could lock
/// it.
const ABANDONED: Duration = Duration::from_secs(60);

/// A temporary folder beside the path of a file.
#[derive(Debug)]
pub(super) struct Unfinished {
    /// Fields drop in order: the file is unlocked first, then the folder is deleted.
    _lock: File,
    folder: tempfile::TempDir,
}

static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

impl Unfinished {
    pub(super) fn create(beside: &Path) -> std::io::Result<Unfinished> {
        clear_away(beside);
        // Hold the list's lock until the folder is in it, so that a signal handler finds it there.
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

/// Makes a file and locks it. It stays empty until it is locked, so that an empty file tells other processes that its
/// owner may still be starting.
fn lock(path: &Path) -> std::io::Result<File> {
    let mut file = File::create_new(path)?;
    // Some file systems do not support locks. Then other processes cannot lock it either, and do not take the folder
    // for abandoned.
    let _ = file.try_lock();
    file.write_all(b"locked while its process lives\n")?;
    Ok(file)
}

/// True when the process that made a folder has ended.
fn is_dead(folder: &Path) -> bool {
    match File::open(folder.join(LOCK)) {
        Ok(file) if file.metadata().is_ok_and(|m| m.len() > 0) => file.try_lock().is_ok(),
        _ => {
            let made = std::fs::metadata(folder).and_then(|m| m.modified());
            made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > ABANDONED))
        }
    }
}

/// Deletes the folders that killed processes left in `beside`. Errors are ignored, because the new file can still be
/// written.
fn clear_away(beside: &Path) {
    let Ok(entries) = std::fs::read_dir(beside) else { return };
    let ours = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
    for folder in entries.flatten().filter(|entry| ours(&entry.file_name())).map(|entry| entry.path()) {
        if is_dead(&folder) {
            // Match by name, so that no other files are deleted.
            for name in [PART, VALUES, LOCK] {
                let _ = std::fs::remove_file(folder.join(name));
            }
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Deletes all unfinished files. Call it just before the process ends: no new file can be begun afterwards.
pub fn abandon() {
    let all = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
    for folder in all.iter() {
        #[cfg(windows)]
        empty(folder);
        // If a folder cannot be deleted, there is nothing left to try.
        let _ = std::fs::remove_dir_all(folder);
    }
    std::mem::forget(all);
}

/// Moves the files out of a folder and deletes them. The run that is being ended still has them open, and on some file
/// systems Windows deletes an open file only when it is closed. Until then its folder would have to stay.
#[cfg(windows)]
fn empty(folder: &Path) {
    for name in [PART, VALUES, LOCK] {
        let mut beside = folder.as_os_str().to_owned();
        beside.push(format!("-{name}"));
        if std::fs::rename(folder.join(name), &beside).is_ok() {
            let _ = std::fs::remove_file(&beside);
        }
    }
}
