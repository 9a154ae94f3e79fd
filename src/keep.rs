//! What devices found out about this machine, in one small file of the user's cache folder. Owns the file; what is in it is
//! the devices' own. Whatever goes wrong here costs a second of the next run, so nothing here is an error.

use crate::device::Keep;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

/// The file, where the user has a cache folder.
pub struct CacheFile(Option<PathBuf>);

impl CacheFile {
    /// `actscope/devices.json` in the user's cache folder.
    pub fn of_user() -> CacheFile {
        CacheFile(dirs::cache_dir().map(|folder| folder.join("actscope").join("devices.json")))
    }

    /// A file in a place of its own.
    pub fn at(path: impl Into<PathBuf>) -> CacheFile {
        CacheFile(Some(path.into()))
    }

    fn read(&self) -> BTreeMap<String, String> {
        let text = self.0.as_ref().and_then(|path| fs::read(path).ok());
        text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    /// Written beside and renamed, so that whoever reads meanwhile sees all of the old or all of the new.
    fn write(&self, all: &BTreeMap<String, String>) -> std::io::Result<()> {
        let Some((path, folder)) = self.0.as_ref().and_then(|path| Some((path, path.parent()?))) else { return Ok(()) };
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec_pretty(all)?)?;
        file.persist(path)?;
        Ok(())
    }
}

impl Keep for CacheFile {
    fn get(&self, name: &str) -> Option<String> {
        self.read().remove(name)
    }

    fn put(&self, name: &str, value: &str) {
        let mut all = self.read();
        all.insert(name.into(), value.into());
        // A read-only home, a full disk: the next run finds it out again.
        let _ = self.write(&all);
    }
}
