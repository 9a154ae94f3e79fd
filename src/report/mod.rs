//! A text's activations, or a sweep, as one HTML file that opens in any browser, offline. Owns the file: page, data, and the content
//! security policy that blocks all network requests. `gather.rs` runs the model and decides what is stored, `sweep.rs` has
//! the page of a sweep, `pack.rs` the byte layouts. The pages' source is in `page/`: read `page/frame.html` and
//! `page/page.html` first, then `page/data.js` and `page/page.js`; of a sweep `page/sweep.html` and `page/sweep.js`.

mod gather;
mod pack;
mod sweep;

pub use gather::{LARGEST, gather};
pub use sweep::{CellRun, SweepPage};

use crate::hooks::non_number::NonNumber;
use crate::model::tokenizer::Token;
use crate::output::{HOOK_DEFINITIONS, Provenance, escape_xml};
use crate::session::Model;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Write;

/// What both pages share: all around the contents of their element `main`, whose last section says what the page holds.
const FRAME: &str = include_str!("page/frame.html");
const HTML: &str = include_str!("page/page.html");
const CSS: &str = include_str!("page/page.css");
const JS: &str = concat!(
    include_str!("page/unpack.js"),
    include_str!("page/data.js"),
    include_str!("page/draw.js"),
    include_str!("page/stream.js"),
    include_str!("page/attention.js"),
    include_str!("page/page.js")
);

/// A run's values, packed.
#[derive(Debug)]
pub struct Page {
    /// What was stored and in which form: the page's metadata.
    pub kept: Value,
    /// The first value of the run that is NaN or infinite.
    pub non_number: Option<NonNumber>,
    /// Named parts, deflated.
    parts: Vec<(String, Vec<u8>)>,
}

/// What the page shows about the run besides its values.
#[derive(Debug)]
pub struct About<'a> {
    /// The model.
    pub files: &'a Model,
    /// The text's tokens.
    pub tokens: &'a [Token],
    /// The arguments that name model and text in every command, quoted for a POSIX shell. Without them the page shows no commands.
    pub arguments: Option<&'a str>,
    /// The provenance of the values.
    pub provenance: &'a Provenance,
    /// For generated text, the number of tokens of the prompt.
    pub prompt_tokens: Option<usize>,
}

impl Page {
    /// A sentence about what did not fit completely, for the user who makes the page. The page states it too.
    pub fn coarsened(&self) -> Vec<String> {
        let of = |part: &str| (self.kept[part]["as"].as_str().unwrap_or_default().to_string(), &self.kept[part]["n"]);
        let stream = match of("stream") {
            (how, _) if how == "8-bit" => Some("the residual stream is kept in 8 bits".to_string()),
            (how, n) if how == "strongest" => {
                Some(format!("the residual stream is kept in its {n} strongest dimensions"))
            }
            _ => None,
        };
        let attention = match of("attention") {
            (how, n) if how == "strongest" => {
                Some(format!("attention is kept in the {n} strongest weights of every row"))
            }
            _ => None,
        };
        let why = |what| format!("{what}, so that the page stays small; `actscope extract` writes all numbers");
        stream.into_iter().chain(attention).map(why).collect()
    }

    /// Writes the file. The same run gives the same bytes.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, about: &About<'_>, out: &mut impl Write) -> std::io::Result<()> {
        let title: String = about.tokens.iter().take(12).map(Token::label).collect();
        let more = if about.tokens.len() > 12 { " …" } else { "" };
        let edited = if about.provenance.edits.is_empty() { "" } else { " (edited)" };
        let config = about.files.config();
        // A line break in a token ends a line on the page.
        let breaks = |token: &Token| token.bytes.iter().flatten().filter(|byte| **byte == b'\n').count();
        let tokens = about.tokens.iter().map(|t| json!({"id": t.id, "label": t.label(), "breaks": breaks(t)}));
        let data = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "model": {
                "name": about.provenance.model, "fingerprint": about.provenance.fingerprint,
                "process": about.provenance.process.to_string(), "n_layer": config.n_layer,
                "n_head": config.n_head, "n_embd": config.n_embd, "n_inner": config.n_inner, "vocab_size": config.vocab_size,
            },
            "device": about.provenance.device,
            "edits": about.provenance.edits,
            "definitions": HOOK_DEFINITIONS,
            "arguments": about.arguments,
            "prompt": about.prompt_tokens,
            "tokens": tokens.collect::<Value>(),
            "kept": self.kept,
        });
        fill((HTML, JS), &format!("{title}{more}{edited}"), &data, &self.parts, out)
    }
}

/// Writes a page: the beginning of its element `main`, and the script that draws it.
fn fill(
    (main, js): (&str, &str),
    title: &str,
    data: &Value,
    parts: &[(String, Vec<u8>)],
    out: &mut impl Write,
) -> std::io::Result<()> {
    let part = |(name, bytes): &(String, Vec<u8>)| {
        format!("<script type=\"text/plain\" id=\"data-{name}\">{}</script>\n", BASE64_STANDARD.encode(bytes))
    };
    // The frame has each mark of this list once, in this order.
    let filled = [
        ("{{policy}}", policy(js)),
        ("{{title}}", escape_xml(title)),
        ("{{css}}", CSS.into()),
        ("{{main}}", main.into()),
        ("{{data}}", in_script(data)),
        ("{{parts}}", parts.iter().map(part).collect()),
        ("{{js}}", js.into()),
    ];
    let mut rest = FRAME;
    for (mark, text) in filled {
        let (before, after) = rest.split_once(mark).expect("the page has every mark");
        out.write_all(before.as_bytes())?;
        out.write_all(text.as_bytes())?;
        rest = after;
    }
    out.write_all(rest.as_bytes())
}

/// The page's Content-Security-Policy. It allows this script and this style by their hashes and nothing else, so that
/// no text and no token can run code or send data. The icon is a `data:` image.
fn policy(js: &str) -> String {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text.as_bytes()));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; base-uri 'none'; form-action 'none'",
        hash(js),
        hash(CSS)
    )
}

/// JSON that is safe within a `<script>`: it contains no `<` that could end the element or begin a comment.
fn in_script(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_text_stays_text() {
        let hostile = "</script><!-- & \"quoted\" <b>";
        assert_eq!(escape_xml(hostile), "&lt;/script&gt;&lt;!-- &amp; &quot;quoted&quot; &lt;b&gt;");
        let in_json = in_script(&json!([hostile]));
        assert!(!in_json.contains('<'));
        assert_eq!(serde_json::from_str::<Value>(&in_json).unwrap(), json!([hostile]));
    }

    #[test]
    fn the_page_asks_nothing_of_any_network() {
        for text in [FRAME, HTML, CSS, JS, sweep::HTML, sweep::JS] {
            // A namespace name, which browsers do not fetch.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for word in
                ["http:", "https:", "//cdn", "url(", "@import", "fetch(", "XMLHttpRequest", "WebSocket", "innerHTML"]
            {
                assert!(!text.contains(word), "{word}");
            }
        }
    }
}
