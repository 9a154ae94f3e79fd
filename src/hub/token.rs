//! The access token for the hub: where it is looked for, in huggingface_hub's order, and how to get rid of one that the hub
//! refuses. The value never leaves this file but for the one header: nothing here prints it.

use std::path::PathBuf;

/// A token and the place it came from. No `Debug`: its value is nobody's business.
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
    pub fn remedy(&self) -> String {
        match self {
            Origin::Variable(name) if cfg!(windows) => format!("`Remove-Item Env:{name}` removes it"),
            Origin::Variable(name) => format!("`unset {name}` removes it"),
            Origin::File(_) => "`hf auth logout`, or deleting the file, removes it".into(),
        }
    }
}

impl Token {
    /// `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, then the file that `hf auth login` writes.
    pub fn find() -> Option<Token> {
        if super::cache::is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return None;
        }
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            if let Some(value) = std::env::var(name).ok().and_then(clean) {
                return Some(Token { value, origin: Origin::Variable(name) });
            }
        }
        let path = super::cache::variable("HF_TOKEN_PATH").unwrap_or_else(|| super::cache::home().join("token"));
        let value = std::fs::read_to_string(&path).ok().and_then(clean)?;
        Some(Token { value, origin: Origin::File(path) })
    }

    /// The header that carries it; `None` where the token holds what no header can.
    pub fn header(&self) -> Option<String> {
        self.value.bytes().all(|b| b.is_ascii_graphic()).then(|| format!("Bearer {}", self.value))
    }
}

/// As huggingface_hub cleans it: line breaks (from a copied file) and spaces around it are no part of a token.
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
