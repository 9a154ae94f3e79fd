//! A folder in which devices cache results specific to this machine, one file per value. Owns the files; the devices
//! define their contents. A file that cannot be read or written only makes the next run compute the value again, so no
//! function here returns an error. Read next: `device/gpu/autotune.rs`, which stores tile configurations here.

use crate::device::DeviceCache;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A cache folder. Without a folder (the user has no cache folder) it stores nothing.
#[derive(Clone, Debug)]
pub struct CacheFolder(Option<PathBuf>);

impl CacheFolder {
    /// `actscope` in the user's cache folder.
    pub fn of_user() -> CacheFolder {
        CacheFolder(dirs::cache_dir().map(|folder| folder.join("actscope")))
    }

    /// The folder `path`, which is created when the first value is stored.
    pub fn at(path: impl Into<PathBuf>) -> CacheFolder {
        CacheFolder(Some(path.into()))
    }

    /// Writes a temporary file and renames it, so that another process reads either the whole old value or the whole
    /// new one.
    fn write(&self, name: &str, value: &[u8]) -> std::io::Result<()> {
        let Some(folder) = &self.0 else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(value)?;
        file.persist(path(folder, name))?;
        Ok(())
    }
}

/// The path of a value. Names contain driver names, whose characters a file system may not allow. Those are replaced,
/// and a checksum of the full name keeps two names apart.
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
        // On a read-only home or a full disk, the next run computes the value again.
        let _ = self.write(name, value);
    }
}
