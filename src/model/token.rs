//! A token and its readable forms. Owns [`Token`]. Read next: `tokenizer.rs`, which makes tokens of text.

/// One token: its id and the bytes that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Row of the embedding.
    pub id: u32,
    /// Its bytes; `None` without a tokenizer.
    pub bytes: Option<Vec<u8>>,
}

impl Token {
    /// The token's text. Bytes that are not a complete UTF-8 character are written as `\xE2`, a token without bytes as
    /// `#464`.
    pub fn text(&self) -> String {
        let Some(bytes) = &self.bytes else { return format!("#{}", self.id) };
        let part = |chunk: std::str::Utf8Chunk<'_>| {
            let broken: String = chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")).collect();
            chunk.valid().to_string() + &broken
        };
        bytes.utf8_chunks().map(part).collect()
    }

    /// The token on one line, for use between quotes. Invisible and ambiguous characters are escaped as in Rust (`\n`,
    /// `\u{a0}`, `\\`), and bytes that are not a complete character are written as `\xE2`. Different tokens of a
    /// vocabulary have different labels.
    pub fn label(&self) -> String {
        self.shown(&|c| Some(c).filter(|c| seen_as_it_is(*c)))
    }

    /// Several tokens as one text, in the form of [`Token::label`]. Characters for which `has` returns false are
    /// escaped too.
    pub fn label_of(tokens: &[Token], has: impl Fn(char) -> bool) -> String {
        let Some(bytes) = tokens.iter().map(|token| token.bytes.as_deref()).collect::<Option<Vec<_>>>() else {
            return tokens.iter().map(Token::text).collect::<Vec<_>>().join(" ");
        };
        // Join the bytes first, so that characters split across tokens are complete.
        let whole = Token { id: 0, bytes: Some(bytes.concat()) };
        whole.shown(&|c| Some(c).filter(|c| *c == ' ' || has(*c) && seen_as_it_is(*c)))
    }

    /// [`Token::label`] for use without quotes, such as in pictures: a space is `␣`. Characters for which `has` returns
    /// false (a font lacks them, for example) are escaped too.
    pub fn mark(&self, has: impl Fn(char) -> bool) -> String {
        self.shown(&|c| match c {
            ' ' => Some('␣'),
            '␣' => None,
            _ => Some(c).filter(|c| has(*c) && seen_as_it_is(*c)),
        })
    }

    /// The token with each character mapped by `plain`, or escaped when `plain` returns `None`.
    fn shown(&self, plain: &dyn Fn(char) -> Option<char>) -> String {
        let Some(bytes) = &self.bytes else { return format!("#{}", self.id) };
        let mut shown = String::new();
        for chunk in bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                match plain(c) {
                    Some(c) => shown.push(c),
                    None if c.is_ascii() || c.escape_debug().len() > 1 => shown.extend(c.escape_debug()),
                    None => shown.extend(c.escape_unicode()),
                }
            }
            chunk.invalid().iter().for_each(|byte| shown.push_str(&format!("\\x{byte:02X}")));
        }
        shown
    }
}

/// True for control characters, line ends, and the controls of bidirectional text (Unicode UAX #9), which change the
/// display order of letters.
#[cfg_attr(not(feature = "plot"), allow(dead_code, reason = "only pictures use it"))]
pub(crate) fn is_control(c: char) -> bool {
    const BIDI: [char; 3] = ['\u{61c}', '\u{200e}', '\u{200f}'];
    c.is_control() || BIDI.contains(&c) || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// False for combining and invisible characters, all spaces except U+0020, and the backslash, which begins escapes.
fn seen_as_it_is(c: char) -> bool {
    matches!(c, '\'' | '"') || c.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tokens_look_alike() {
        let alike: [&[u8]; 16] = [
            b" ",
            b"  ",
            "\u{a0}".as_bytes(),
            "␣".as_bytes(),
            b"\t",
            b"\n",
            b"\\n",
            b"\xe2",
            b"\\xE2",
            "\u{200b}".as_bytes(),
            "\u{202e}".as_bytes(),
            b"",
            "e\u{301}".as_bytes(),
            "é".as_bytes(),
            "❤".as_bytes(),
            "❤\u{fe0f}".as_bytes(),
        ];
        let tokens = alike.map(|bytes| Token { id: 1, bytes: Some(bytes.to_vec()) });
        let labels: Vec<String> = tokens.iter().map(Token::label).collect();
        let marks: Vec<String> = tokens.iter().map(|token| token.mark(|_| true)).collect();
        for shown in [&labels, &marks] {
            let different: std::collections::BTreeSet<&String> = shown.iter().collect();
            assert_eq!(different.len(), tokens.len(), "{shown:?}");
        }
        let of = |text: &str| Token { id: 1, bytes: Some(text.into()) };
        assert_eq!((of(" it's\n").label(), of(" it's\n").mark(|_| true)), (" it's\\n".into(), "␣it's\\n".into()));
        assert_eq!(of(" 你é").mark(|c| c.is_ascii()), "␣\\u{4f60}\\u{e9}");
        assert_eq!(of("שלום").label(), "שלום");
    }
}
