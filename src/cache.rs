//! A folder of what devices found out about this machine, one file for each value. Owns the files; their contents are the
//! devices'. A file that cannot be read or written costs a second of the next run, so nothing here is an error.

use crate::device::DeviceCache;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The folder; none where the user has none.
#[derive(Clone, Debug)]
pub struct CacheFolder(Option<PathBuf>);

impl CacheFolder {
    /// `actscope` in the user's cache folder.
    pub fn of_user() -> CacheFolder {
        CacheFolder(dirs::cache_dir().map(|folder| folder.join("actscope")))
    }

    /// This folder, which is made when the first value is stored.
    pub fn at(path: impl Into<PathBuf>) -> CacheFolder {
        CacheFolder(Some(path.into()))
    }

    /// Written beside and renamed, so that a process that reads meanwhile sees all of the old value or all of the new.
    fn write(&self, name: &str, value: &[u8]) -> std::io::Result<()> {
        let Some(folder) = &self.0 else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(value)?;
        file.persist(path(folder, name))?;
        Ok(())
    }
}

/// Where a value is. Names hold what drivers call themselves, which no file system need allow, so a checksum tells them apart.
fn path(folder: &Path, name: &str) -> PathBuf {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' };
    let readable: String = name.chars().map(allowed).take(100).collect();
    folder.join(format!("{readable}-{:08x}", crc32fast::hash(name.as_bytes())))
}

impl DeviceCache for CacheFolder {
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(path(self.0.as_ref()?, name)).ok()
    }

    fn put(&self, name: &str, value: &[u8]) {
        // A read-only home or a full disk: the next run finds the value out again.
        let _ = self.write(name, value);
    }
}
