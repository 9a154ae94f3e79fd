//! The settings of the hub, under the names of huggingface_hub's environment variables. Owns [`Hub`] and the folders that
//! follow from it. Nothing here reads the environment: a caller passes the variables that count. Read next: `cache.rs`.

use super::cache::at_home;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

/// The hub that models come from, and the folder that keeps them: settings under the names of huggingface_hub's
/// environment variables (`HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`, ...) and those of proxies (`HTTPS_PROXY`, ...). The
/// default has none of them: the public hub, without a token or a proxy, and the cache in its usual folder.
///
/// ```
/// use actscope::Hub;
///
/// let all = Hub::new(std::env::vars_os());            // as huggingface_hub would
/// let offline = Hub::new([("HF_HUB_OFFLINE", "1")]);  // nothing of the environment counts
/// # let _ = (all, offline);
/// ```
#[derive(Clone, Default)]
pub struct Hub {
    variables: BTreeMap<OsString, OsString>,
}

/// Names only: a value may be a token or a password.
impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hub").field(&self.variables.keys()).finish()
    }
}

impl Hub {
    /// Settings by name. Names that mean nothing here are ignored.
    pub fn new<K: Into<OsString>, V: Into<OsString>>(variables: impl IntoIterator<Item = (K, V)>) -> Hub {
        let known = |name: &OsString| {
            let name = name.to_string_lossy().to_ascii_uppercase();
            ["HF_", "HUGGING", "TRANSFORMERS_", "XDG_"].iter().any(|start| name.starts_with(start))
                || name.ends_with("_PROXY")
        };
        let all = variables.into_iter().map(|(name, value)| (name.into(), value.into()));
        Hub { variables: all.filter(|(name, value): &(OsString, OsString)| known(name) && !value.is_empty()).collect() }
    }

    /// The value of a setting.
    fn value(&self, name: &str) -> Option<&OsString> {
        // Windows ignores the case of variables.
        let same = |set: &&OsString| cfg!(windows) && set.eq_ignore_ascii_case(name);
        let set = self.variables.get(Path::new(name).as_os_str());
        set.or_else(|| self.variables.get(self.variables.keys().find(same)?))
    }

    /// The value of a setting, if it is Unicode.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.value(name)?.to_str()
    }

    /// The value of a setting as a path, with `~` expanded to the home folder.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        Some(at_home(Path::new(self.value(name)?)))
    }

    /// Whether a boolean setting is true, by huggingface_hub's rules. Only downloads ask.
    #[cfg(any(test, all(feature = "download", not(target_arch = "wasm32"))))]
    pub(super) fn is_true(&self, name: &str) -> bool {
        ["1", "on", "yes", "true"].contains(&self.text(name).unwrap_or_default().to_lowercase().as_str())
    }

    /// The folder of Hugging Face's programs: it holds tokens and, by default, the cache.
    pub(super) fn home(&self) -> PathBuf {
        self.path("HF_HOME").unwrap_or_else(|| {
            let cache = self.path("XDG_CACHE_HOME").or_else(|| dirs::home_dir().map(|home| home.join(".cache")));
            cache.unwrap_or_default().join("huggingface")
        })
    }

    /// The folder with all repositories.
    pub(super) fn cache(&self) -> PathBuf {
        let set = self.path("HF_HUB_CACHE").or_else(|| self.path("HUGGINGFACE_HUB_CACHE"));
        set.unwrap_or_else(|| self.home().join("hub"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_the_names_and_rules_of_huggingface_hub() {
        let hub =
            Hub::new([("HF_HOME", "/a"), ("HF_TOKEN", "hf_secret"), ("HF_HUB_OFFLINE", "Yes"), ("HF_ENDPOINT", "")]);
        assert_eq!(hub.cache(), Path::new("/a/hub"));
        assert_eq!((hub.is_true("HF_HUB_OFFLINE"), hub.is_true("TRANSFORMERS_OFFLINE")), (true, false));
        assert_eq!(hub.text("HF_ENDPOINT"), None, "an empty variable is not set");
        assert!(!format!("{hub:?}").contains("secret"));
        let hub = Hub::new([("HF_HOME", "/a"), ("HUGGINGFACE_HUB_CACHE", "/b")]);
        assert_eq!(hub.cache(), Path::new("/b"));
    }
}
