//! The access token for the hub: where it is searched for, in huggingface_hub's order, and how to remove one that the
//! hub refuses. The value leaves this file only in the request header; nothing prints it. Read next: `http.rs`.

use super::Hub;
use std::path::PathBuf;

/// A token and where it was found. It has no `Debug`, so that its value cannot be printed.
pub(super) struct Token {
    value: String,
    pub origin: Origin,
}

/// Where a token was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Variable(&'static str),
    File(PathBuf),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Variable(name) => write!(f, "the environment variable {name}"),
            Origin::File(path) => write!(f, "the file {}", path.display()),
        }
    }
}

impl Origin {
    /// What removes the token.
    pub(crate) fn remedy(&self) -> String {
        match self {
            Origin::Variable(name) if cfg!(windows) => format!("`Remove-Item Env:{name}` removes it"),
            Origin::Variable(name) => format!("`unset {name}` removes it"),
            Origin::File(_) => "`hf auth logout`, or deleting the file, removes it".into(),
        }
    }
}

impl Token {
    /// `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, then the file that `hf auth login` writes.
    pub(crate) fn find(hub: &Hub) -> Option<Token> {
        if hub.is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return None;
        }
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            if let Some(value) = hub.text(name).map(String::from).and_then(clean) {
                return Some(Token { value, origin: Origin::Variable(name) });
            }
        }
        let path = hub.path("HF_TOKEN_PATH").unwrap_or_else(|| hub.home().join("token"));
        let value = std::fs::read_to_string(&path).ok().and_then(clean)?;
        Some(Token { value, origin: Origin::File(path) })
    }

    /// The header with the token; `None` if the token has characters that a header cannot contain.
    pub(crate) fn header(&self) -> Option<String> {
        self.value.bytes().all(|b| b.is_ascii_graphic()).then(|| format!("Bearer {}", self.value))
    }
}

/// Cleans a token as huggingface_hub does: removes line breaks (from a copied file) and surrounding spaces.
fn clean(value: String) -> Option<String> {
    let value = value.replace(['\r', '\n'], "");
    let value = value.trim();
    (!value.is_empty()).then(|| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_cleaned_and_never_shown() {
        assert_eq!(clean(" hf_x\r\n".into()).as_deref(), Some("hf_x"));
        assert_eq!(clean(" \n".into()), None);
        let token = Token { value: "hf secret".into(), origin: Origin::Variable("HF_TOKEN") };
        assert_eq!(token.header(), None, "a header cannot hold it as it stands");
        assert!(!format!("{} {}", token.origin, token.origin.remedy()).contains("secret"));
    }
}
