//! Finds tokens in a text: by the selectors of `--token`, by byte and character offsets, and by words.
//! `tokenizer.rs` makes the tokens. Read next: `windows.rs`.

use crate::indices::Item;
use crate::model::tokenizer::{Token, bytes_of};
use std::ops::Range;
use thiserror::Error;
use unicode_segmentation::UnicodeSegmentation;

/// A selector matches no token of a text.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{selector:?} matches no token of text {text}; {hint}")]
pub struct SelectError {
    /// The selector as given.
    pub selector: String,
    /// Index of the text.
    pub text: usize,
    /// What the text has instead.
    pub hint: String,
}

/// Which tokens of a phrase are selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhrasePart {
    /// Every token.
    All,
    /// The first token of each occurrence.
    First,
    /// The last token of each occurrence.
    Last,
}

/// One selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// A position or several.
    Item(Item),
    /// Every occurrence of a text of one or more tokens.
    Text(String, PhrasePart),
}

/// The tokens that were selected in one text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Ascending, without duplicates.
    pub positions: Vec<usize>,
    /// One sentence for each ambiguous selector. It says which interpretation was used.
    pub notes: Vec<String>,
}

impl Selector {
    /// Parses `3`, `-1`, `2..5`, `..-1`, or a text. The prefixes `first:` and `last:` of a text select one token of
    /// each occurrence. A text in double quotes is taken literally: it is never a number (`"3"`) and never has a
    /// prefix.
    pub fn parse(argument: &str) -> Selector {
        // A number with a space before it is the text of a token.
        if let Some(item) = Item::parse(argument).filter(|_| !argument.contains(char::is_whitespace)) {
            return Selector::Item(item);
        }
        let (text, part) = if let Some(rest) = argument.strip_prefix("first:") {
            (rest, PhrasePart::First)
        } else if let Some(rest) = argument.strip_prefix("last:") {
            (rest, PhrasePart::Last)
        } else {
            (argument, PhrasePart::All)
        };
        match text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
            Some(quoted) if !quoted.is_empty() => Selector::Text(quoted.into(), part),
            _ => Selector::Text(text.into(), part),
        }
    }

    /// The positions that this selects among `tokens`, and a sentence about an interpretation that was not used.
    fn find(&self, written: &str, tokens: &[Token]) -> (Vec<usize>, Option<String>) {
        match self {
            Selector::Item(item) => {
                let taken = if matches!(item, Item::Index(_)) { "the position" } else { "a range of positions" };
                (item.existing(tokens.len()).collect(), as_text(written, taken, tokens))
            }
            Selector::Text(text, part) => {
                let (runs, note) = occurrences(text, tokens);
                let found = runs.into_iter().flat_map(|run| match part {
                    PhrasePart::All => run,
                    PhrasePart::First => run.start..run.start + 1,
                    PhrasePart::Last => run.end - 1..run.end,
                });
                (found.collect(), note)
            }
        }
    }
}

/// A sentence for a number that is also the text of a token.
fn as_text(written: &str, taken: &str, tokens: &[Token]) -> Option<String> {
    let position = occurrences(written, tokens).0.first()?.start;
    Some(format!(
        "{written} is {taken}; token {position} is {:?}, and '\"{written}\"' selects it",
        tokens[position].text()
    ))
}

/// Every run of tokens that spells `text`. It tries these interpretations in order and uses the first that occurs: the
/// text itself, the text with escapes decoded (`\n`, `\xF0`, `␣` for a space), the text in byte-level form (`Ġcat`),
/// and each of these with a leading space. The second value is a remark about other runs that differ only by a leading
/// space.
fn occurrences(text: &str, tokens: &[Token]) -> (Vec<Range<usize>>, Option<String>) {
    let mut readings = vec![text.as_bytes().to_vec()];
    for other in [unescaped(text), bytes_of(text)] {
        if !readings.contains(&other) {
            readings.push(other);
        }
    }
    let spaced = |bytes: &Vec<u8>| [b" ", &bytes[..]].concat();
    for bytes in &readings {
        let mut runs = spelled(bytes, tokens);
        // Tokens without bytes, and bytes that are no character, are matched by their displayed form.
        let shown = (0..tokens.len()).filter(|p| tokens[*p].text() == text).map(|p| p..p + 1);
        runs.extend(shown.filter(|_| bytes == text.as_bytes()));
        runs.sort_by_key(|run| (run.start, run.end));
        runs.dedup();
        if !runs.is_empty() {
            let also = if bytes.first() == Some(&b' ') { Vec::new() } else { spelled(&spaced(bytes), tokens) };
            let note = also.first().map(|run| {
                format!("{text:?} is taken without a leading space; with one it also stands at {}", shown_run(run))
            });
            return (runs, note);
        }
    }
    let with_space = readings.iter().filter(|bytes| !bytes.is_empty()).map(|bytes| spelled(&spaced(bytes), tokens));
    (with_space.into_iter().find(|runs| !runs.is_empty()).unwrap_or_default(), None)
}

fn shown_run(run: &Range<usize>) -> String {
    match run.len() {
        1 => format!("token {}", run.start),
        _ => format!("tokens {} to {}", run.start, run.end - 1),
    }
}

/// Every run of whole tokens whose bytes are `wanted`.
fn spelled(wanted: &[u8], tokens: &[Token]) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    for start in 0..tokens.len() {
        let mut rest = wanted;
        for (end, token) in tokens.iter().enumerate().skip(start) {
            let Some(bytes) = &token.bytes else { break };
            // A token of no bytes is selected only by the empty text.
            let Some(left) = rest.strip_prefix(bytes.as_slice()).filter(|_| !bytes.is_empty() || wanted.is_empty())
            else {
                break;
            };
            if left.is_empty() {
                runs.push(start..end + 1);
                break;
            }
            rest = left;
        }
    }
    runs
}

/// Decodes the escapes that [`Token::label`] writes, and `␣` to a space. Everything else is unchanged.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        let mut push = |c: char| bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        if c == '␣' {
            push(' ');
            continue;
        }
        if c != '\\' {
            push(c);
            continue;
        }
        let simple = rest.chars().next().and_then(|kind| match kind {
            'n' => Some('\n'),
            't' => Some('\t'),
            'r' => Some('\r'),
            '0' => Some('\0'),
            '\\' | '\'' | '"' => Some(kind),
            _ => None,
        });
        let hex = rest.strip_prefix('x').and_then(|rest| rest.get(..2)).and_then(|n| u8::from_str_radix(n, 16).ok());
        let unicode = rest.strip_prefix("u{").and_then(|rest| rest.split_once('}'));
        let unicode = unicode.and_then(|(n, _)| Some((n.len(), char::from_u32(u32::from_str_radix(n, 16).ok()?)?)));
        if let Some(meant) = simple {
            push(meant);
            rest = &rest[1..];
        } else if let Some(byte) = hex {
            bytes.push(byte);
            rest = &rest[3..];
        } else if let Some((digits, meant)) = unicode {
            push(meant);
            rest = &rest[digits + 3..];
        } else {
            push('\\');
        }
    }
    bytes
}

/// The positions that `selectors` choose in one text. `text` counts from 0, for messages.
///
/// # Errors
/// [`SelectError`] for a selector that matches nothing.
pub fn select(selectors: &[String], tokens: &[Token], text: usize) -> Result<Selection, SelectError> {
    let mut all = Selection::default();
    for written in selectors {
        let selector = Selector::parse(written);
        let (found, note) = selector.find(written, tokens);
        if found.is_empty() {
            let hint = note.unwrap_or_else(|| no_match_hint(&selector, tokens));
            return Err(SelectError { selector: written.clone(), text, hint });
        }
        all.positions.extend(found);
        all.notes.extend(note);
    }
    all.positions.sort_unstable();
    all.positions.dedup();
    Ok(all)
}

fn no_match_hint(selector: &Selector, tokens: &[Token]) -> String {
    let Selector::Text(wanted, _) = selector else {
        return format!("it has {} tokens, 0 to {}", tokens.len(), tokens.len().saturating_sub(1));
    };
    let near = tokens.iter().position(|token| !wanted.trim().is_empty() && token.text().trim() == wanted.trim());
    if let Some(position) = near {
        return format!("token {position} is {:?}", tokens[position].text());
    }
    if let Some(run) = covering(wanted.as_bytes(), tokens) {
        let parts: Vec<String> = tokens[run.clone()].iter().map(|token| format!("{:?}", token.text())).collect();
        return format!(
            "it is a part of {}: {}; {}..{} selects them",
            shown_run(&run),
            parts.join(" "),
            run.start,
            run.end
        );
    }
    let shown: Vec<String> = tokens.iter().take(12).map(|token| format!("{:?}", token.text())).collect();
    format!("its tokens are {}{}", shown.join(" "), if tokens.len() > 12 { " …" } else { "" })
}

/// The tokens that cover the first occurrence of `wanted` that does not begin and end at token boundaries.
fn covering(wanted: &[u8], tokens: &[Token]) -> Option<Range<usize>> {
    let ends: Vec<usize> = tokens
        .iter()
        .scan(0, |end, token| {
            *end += token.bytes.as_ref()?.len();
            Some(*end)
        })
        .collect();
    let all: Vec<u8> = tokens.iter().filter_map(|token| token.bytes.as_deref()).flatten().copied().collect();
    let start = all.windows(wanted.len().max(1)).position(|part| part == wanted)?;
    let holds = |byte: usize| ends.partition_point(|end| *end <= byte);
    Some(holds(start)..(holds(start + wanted.len() - 1) + 1).min(tokens.len()))
}

/// Where one token lies in its text, in bytes and in characters. A token that holds a part of a character covers the
/// whole character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// Bytes of the text.
    pub bytes: Range<usize>,
    /// Characters (Unicode scalar values) of the text, as Python counts them.
    pub chars: Range<usize>,
}

/// Finds where each token lies in the tokenized text, token by token.
#[derive(Debug)]
pub struct Offsetter<'a> {
    text: &'a [u8],
    /// Where the next token begins.
    at: usize,
    /// The number of bytes whose characters are counted so far, and the number of characters that begin in them.
    counted: (usize, usize),
    tokens: usize,
    lost: bool,
}

impl<'a> Offsetter<'a> {
    /// At the beginning of a text.
    pub fn new(text: &'a str) -> Offsetter<'a> {
        Offsetter { text: text.as_bytes(), at: 0, counted: (0, 0), tokens: 0, lost: false }
    }

    /// Where the next token lies. A token that the tokenizer prepended has an empty range at the text's beginning. From
    /// the first token that does not match the text (the tokenizer normalizes it), all results are `None`.
    pub fn next(&mut self, token: &Token) -> Option<Offsets> {
        self.tokens += 1;
        let bytes = token.bytes.as_deref().filter(|_| !self.lost)?;
        let Some(bytes) = place(self.text, self.at, bytes) else {
            // A prepended token, such as a beginning-of-text token, which the text does not contain.
            self.lost = self.tokens > 1;
            return Some(Offsets { bytes: 0..0, chars: 0..0 }).filter(|_| !self.lost);
        };
        self.at = bytes.end;
        let first = self.chars(bytes.start) - usize::from(!self.begins(bytes.start));
        Some(Offsets { chars: first..self.chars(bytes.end), bytes })
    }

    /// True where a character begins at a byte, or the text ends.
    fn begins(&self, byte: usize) -> bool {
        self.text.get(byte).is_none_or(|b| b & 0xc0 != 0x80)
    }

    /// How many characters begin before a byte. `to` must not decrease from call to call.
    fn chars(&mut self, to: usize) -> usize {
        let (from, chars) = self.counted;
        let chars = chars + (from..to).filter(|byte| self.begins(*byte)).count();
        self.counted = (to, chars);
        chars
    }
}

/// Where a token's bytes lie: at `at`, after white space that the tokenizer dropped, or without a leading space that
/// the tokenizer added.
fn place(text: &[u8], at: usize, bytes: &[u8]) -> Option<Range<usize>> {
    let here = |at: usize, bytes: &[u8]| text[at..].starts_with(bytes).then(|| at..at + bytes.len());
    let behind = at + text[at..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let bare = bytes.strip_prefix(b" ").unwrap_or(bytes);
    here(at, bytes).or_else(|| here(behind, bytes)).or_else(|| here(at, bare))
}

/// A word: the tokens that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// The word, as the tokens spell it, without white space around it.
    pub text: String,
    /// Its tokens.
    pub tokens: Range<usize>,
}

/// The words of a text and their tokens. Words are those of Unicode (UAX #29): white space belongs to no word, a
/// punctuation mark is a word, `don't` is one word. Words that share a token are joined. Empty if the tokens have no
/// text.
pub fn words(tokens: &[Token]) -> Vec<Word> {
    let mut text = String::new();
    let mut ends = Vec::with_capacity(tokens.len());
    for token in tokens {
        let Some(bytes) = &token.bytes else { return Vec::new() };
        ends.push(ends.last().copied().unwrap_or(0) + bytes.len());
    }
    let bytes: Vec<u8> = tokens.iter().filter_map(|token| token.bytes.as_deref()).flatten().copied().collect();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        // The replacement has as many bytes as the original, so that offsets stay valid.
        chunk.invalid().iter().for_each(|_| text.push('?'));
    }
    let of_byte = |byte: usize| ends.partition_point(|end| *end <= byte);
    let mut found: Vec<(Range<usize>, Range<usize>)> = Vec::new();
    for (start, word) in text.split_word_bound_indices().filter(|(_, word)| !word.trim().is_empty()) {
        let end = start + word.len();
        let tokens = of_byte(start)..of_byte(end - 1) + 1;
        match found.last_mut() {
            Some((bytes, last)) if last.end > tokens.start => (bytes.end, last.end) = (end, tokens.end),
            _ => found.push((start..end, tokens)),
        }
    }
    found.into_iter().map(|(bytes, tokens)| Word { text: text[bytes].to_string(), tokens }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(texts: &[&str]) -> Vec<Token> {
        texts.iter().map(|t| Token { id: 0, bytes: Some(t.as_bytes().to_vec()) }).collect()
    }

    fn chosen(selectors: &[&str], texts: &[&str]) -> Vec<usize> {
        let selectors: Vec<String> = selectors.iter().map(|s| s.to_string()).collect();
        select(&selectors, &tokens(texts), 1).unwrap().positions
    }

    const CATS: &[&str] = &["The", " cat", " 3", " sat", " cat"];

    #[test]
    fn selectors() {
        assert_eq!(chosen(&["-1"], CATS), [4]);
        assert_eq!(chosen(&["1..3"], CATS), [1, 2]);
        assert_eq!(chosen(&["..-3", "-1"], CATS), [0, 1, 4]);
        assert_eq!(chosen(&["-2.."], CATS), [3, 4]);
        assert_eq!(chosen(&[" cat", "0"], CATS), [0, 1, 4]);
        assert_eq!(chosen(&["\" 3\""], CATS), [2]);
    }

    #[test]
    fn phrases_and_parts_of_them() {
        let church = &["The", " c", "athed", "ral", " and", " c", "athed", "ral"];
        assert_eq!(chosen(&[" cathedral"], church), [1, 2, 3, 5, 6, 7]);
        assert_eq!(chosen(&["cathedral"], church), [1, 2, 3, 5, 6, 7]);
        assert_eq!(chosen(&["first: cathedral"], church), [1, 5]);
        assert_eq!(chosen(&["last:cathedral"], church), [3, 7]);
        assert_eq!(chosen(&["cathedral and"], church), [1, 2, 3, 4]);
        assert_eq!(chosen(&["first:\"cathedral and\""], church), [1]);
        let inside = select(&["thed".into()], &tokens(church), 0).unwrap_err();
        assert!(inside.hint.contains("part of token 2") && inside.hint.contains("2..3"), "{inside}");
        let inside = select(&["dral and c".into()], &tokens(church), 0).unwrap_err();
        assert!(inside.hint.contains("tokens 2 to 5") && inside.hint.contains("2..6"), "{inside}");
    }

    #[test]
    fn without_the_leading_space() {
        assert_eq!(chosen(&["cat"], CATS), [1, 4]);
        // The exact text is used, and a sentence mentions the other.
        let both = select(&["cat".into()], &tokens(&["cat", " cat"]), 0).unwrap();
        assert_eq!(both.positions, [0]);
        assert!(both.notes[0].contains("token 1"), "{:?}", both.notes);
        assert!(select(&[" cat".into()], &tokens(&["cat", " cat"]), 0).unwrap().notes.is_empty());
        assert!(select(&[" The".into()], &tokens(CATS), 0).is_err(), "a space that was asked for must be there");
    }

    #[test]
    fn written_forms() {
        let mut all = tokens(&["a", "\n", " cat", "é", "\\n", "\u{a0}", "\"", "\t"]);
        all.push(Token { id: 7, bytes: Some(vec![0xf0, 0x9f]) });
        all.push(Token { id: 8, bytes: Some(vec![0x98]) });
        let of = |selector: &str| select(&[selector.to_string()], &all, 0).map(|chosen| chosen.positions);
        for (written, position) in [
            ("\n", 1),
            ("\"\n\"", 1),
            ("Ċ", 1),
            ("␣cat", 2),
            ("Ġcat", 2),
            ("\\u{20}cat", 2),
            ("é", 3),
            ("Ã©", 3),
            ("\\xc3\\xa9", 3),
            ("\\n", 4),
            ("\\\\n", 4),
            ("\\u{a0}", 5),
            ("\"", 6),
            ("\\t", 7),
            ("\\xF0\\x9F", 8),
            ("\\x98", 9),
        ] {
            assert_eq!(of(written), Ok(vec![position]), "{written}");
        }
        assert_eq!(of("\\xF0\\x9F\\x98"), Ok(vec![8, 9]));
        let escaped = select(&["\\n".into()], &tokens(&["a", "\n"]), 0).unwrap();
        assert_eq!(escaped.positions, [1]);
        for unfinished in ["\\", "\\x", "\\xé", "\\u{", "\\u{110000}", "\\u{zz}", "␣"] {
            assert!(of(unfinished).is_err(), "{unfinished}");
        }
    }

    #[test]
    fn digits_are_positions_unless_quoted() {
        let one = |selector: &str, texts| select(&[selector.to_string()], &tokens(texts), 0);
        let texts = &["1", "+", "1", " 4", ".."];
        let taken = one("1", texts).unwrap();
        assert_eq!(taken.positions, [1]);
        assert!(taken.notes[0].contains("token 0 is \"1\"") && taken.notes[0].contains("'\"1\"'"), "{:?}", taken.notes);
        assert_eq!(one("\"1\"", texts).unwrap().positions, [0, 2]);
        assert_eq!(one("\"4\"", texts).unwrap().positions, [3]);
        assert_eq!(one("\"..\"", texts).unwrap().positions, [4]);
        assert_eq!(one("..", texts).unwrap().notes.len(), 1);
        assert!(one("2", texts).unwrap().notes.is_empty());
        let beyond = one("9", &["a", " 9"]).unwrap_err();
        assert!(beyond.hint.contains("'\"9\"'"), "{beyond}");
    }

    #[test]
    fn a_selector_that_matches_nothing_is_an_error_with_a_hint() {
        let tokens = tokens(&["The", " cat"]);
        let hint = |s: &str| select(&[s.to_string()], &tokens, 1).unwrap_err().to_string();
        assert!(hint("  cat").contains("token 1 is \" cat\""), "{}", hint("  cat"));
        assert!(hint("2").contains("2 tokens, 0 to 1"));
        assert!(hint("dog").contains("\"The\" \" cat\""));
        assert!(hint("5..9").contains("2 tokens"));
    }

    #[test]
    fn tokens_without_text() {
        let tokens: Vec<Token> = [464, 5].map(|id| Token { id, bytes: None }).to_vec();
        assert_eq!(select(&["#464".into()], &tokens, 0).unwrap().positions, [0]);
        assert!(select(&["x".into()], &tokens, 0).is_err());
        assert!(words(&tokens).is_empty());
        assert_eq!(Offsetter::new("ab").next(&tokens[0]), None);
    }

    #[test]
    fn where_tokens_lie() {
        let at = |text, parts: &[&str]| -> Vec<Option<(Range<usize>, Range<usize>)>> {
            let mut offsets = Offsetter::new(text);
            tokens(parts).iter().map(|token| offsets.next(token).map(|o| (o.bytes, o.chars))).collect()
        };
        assert_eq!(at("né a", &["n", "é", " a"]), [Some((0..1, 0..1)), Some((1..3, 1..2)), Some((3..5, 2..4))]);
        assert_eq!(at("a", &["<bos>", "a"]), [Some((0..0, 0..0)), Some((0..1, 0..1))]);
        assert_eq!(at("a b", &[" a", "b"]), [Some((0..1, 0..1)), Some((2..3, 2..3))]);
        assert_eq!(at("A b", &["A", " c", " d"]), [Some((0..1, 0..1)), None, None]);
        // A character in two tokens lies in both.
        let halves = [vec![b'x', 0xc3], vec![0xa9], b"y".to_vec()].map(|bytes| Token { id: 0, bytes: Some(bytes) });
        let mut offsets = Offsetter::new("xéy");
        let places: Vec<_> = halves.iter().filter_map(|half| offsets.next(half)).map(|o| (o.bytes, o.chars)).collect();
        assert_eq!(places, [(0..2, 0..2), (2..3, 1..2), (3..4, 2..3)]);
    }

    #[test]
    fn words_of_tokens() {
        let of = |parts: &[&str]| -> Vec<(String, Range<usize>)> {
            words(&tokens(parts)).into_iter().map(|word| (word.text, word.tokens)).collect()
        };
        let word = |text: &str, tokens| (text.to_string(), tokens);
        assert_eq!(
            of(&["I", " don", "'t", "\n", "\n", " c", "athed", "ral", "."]),
            [word("I", 0..1), word("don't", 1..3), word("cathedral", 5..8), word(".", 8..9)]
        );
        // Three signs in one token, and two words in one.
        assert_eq!(
            of(&["a", "...", " b c", " d"]),
            [word("a", 0..1), word("...", 1..2), word("b c", 2..3), word("d", 3..4)]
        );
        let half = [vec![b'x', 0xc3], vec![0xa9]].map(|bytes| Token { id: 0, bytes: Some(bytes) });
        assert_eq!(words(&half), [Word { text: "xé".into(), tokens: 0..2 }]);
        assert_eq!(words(&half[..1]).len(), 1);
        assert!(of(&[" ", "\n"]).is_empty());
    }
}
