//! The texts of a command: from arguments, files, documents, lists of ids and stdin. Owns how they are read, decoded
//! and encoded as token ids, with the notes about them. Read next: `../model/tokenizer.rs`.

use super::{Failure, ModelArgs};
use crate::batch::Batch;
use crate::session::Model;
use clap::Args;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// The texts of a command, and how they are encoded.
#[derive(Args)]
pub(super) struct TextArgs {
    /// Texts, which are run as one batch [default: one text per line of stdin, if stdin is not a terminal]
    #[arg(value_name = "TEXT")]
    texts: Vec<String>,
    /// A file with one text per line; `-` is stdin. Repeatable
    #[arg(long, value_name = "FILE", conflicts_with_all = ["texts", "ids", "document"])]
    file: Vec<PathBuf>,
    /// The field that holds the text, if every line is a JSON object (.jsonl)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["texts", "ids", "document"])]
    field: Option<String>,
    /// A file that is one text, with its line breaks; `-` is stdin. Repeatable
    #[arg(long, value_name = "FILE", conflicts_with_all = ["texts", "ids"])]
    document: Vec<PathBuf>,
    /// Token ids instead of text: "464 3797", "[464, 3797]", "tensor([[464, 3797]])", or @FILE with a list per line.
    /// Repeatable
    #[arg(long, value_name = "IDS", conflicts_with = "texts", allow_hyphen_values = true)]
    ids: Vec<String>,
    /// Put the beginning-of-text token before every text
    #[arg(long)]
    pub prepend_bos: bool,
    /// Encode the names of special tokens in a text, such as <|endoftext|>, as ordinary characters
    #[arg(long)]
    pub no_special: bool,
    /// Truncate texts that exceed the model's context, which are an error otherwise
    #[arg(long)]
    pub truncate: bool,
}

/// What to run, before it is encoded for a model.
pub(super) enum Input {
    /// Texts.
    Texts(Vec<String>),
    /// Token ids.
    Ids(Vec<Vec<u32>>),
}

/// How long a text may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// Up to the model's number of positions.
    Context,
    /// Any length.
    Any,
}

impl Input {
    /// The texts; empty if ids were given.
    pub(crate) fn texts(&self) -> &[String] {
        match self {
            Input::Texts(texts) => texts,
            Input::Ids(_) => &[],
        }
    }

    /// The number of texts.
    pub(crate) fn len(&self) -> usize {
        match self {
            Input::Texts(texts) => texts.len(),
            Input::Ids(ids) => ids.len(),
        }
    }
}

/// The name of stdin in messages.
const STDIN: &str = "stdin";

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn name_of(file: &Path) -> String {
    if is_stdin(file) { STDIN.into() } else { file.display().to_string() }
}

/// True while a command is recorded. A step that is run again has no stdin.
static IS_RECORDED: AtomicBool = AtomicBool::new(false);

/// From now on, reading stdin is an error.
pub(super) fn refuse_stdin() {
    IS_RECORDED.store(true, Ordering::Relaxed);
}

fn open(file: &Path) -> Result<Box<dyn Read>, Failure> {
    if is_stdin(file) {
        if IS_RECORDED.load(Ordering::Relaxed) {
            return Err(Failure::Usage(
                "--record: a recorded step cannot read stdin; save the text to a file and give it with --file".into(),
            ));
        }
        return Ok(Box::new(std::io::stdin().lock()));
    }
    let opened = std::fs::File::open(file);
    let opened = opened.map_err(|e| Failure::Run(format!("cannot read {}: {e}; check the path", name_of(file))))?;
    Ok(Box::new(opened))
}

/// The whole text of a file or of stdin.
///
/// # Errors
/// [`Failure::Run`] if it cannot be read, or is neither UTF-8 nor marked UTF-16.
pub(super) fn content(file: &Path) -> Result<String, Failure> {
    let fail = |what: String| Failure::Run(format!("cannot read {}: {what}", name_of(file)));
    let mut bytes = Vec::new();
    open(file)?.read_to_end(&mut bytes).map_err(|e| fail(e.to_string()))?;
    decoded(bytes).map_err(fail)
}

/// Decodes bytes as UTF-8, or as UTF-16 if they begin with its byte order mark, and removes a byte order mark. Some
/// editors write one, and PowerShell writes UTF-16 if output is redirected.
fn decoded(bytes: Vec<u8>) -> Result<String, String> {
    const ADVICE: &str = "save it as UTF-8";
    let unit: Option<fn([u8; 2]) -> u16> = match bytes[..] {
        [0xff, 0xfe, ..] => Some(u16::from_le_bytes),
        [0xfe, 0xff, ..] => Some(u16::from_be_bytes),
        _ => None,
    };
    if let Some(unit) = unit {
        let (pairs, rest) = bytes[2..].as_chunks::<2>();
        let units: Vec<u16> = pairs.iter().map(|pair| unit(*pair)).collect();
        return match String::from_utf16(&units) {
            Ok(text) if rest.is_empty() => Ok(text),
            _ => Err(format!("its byte order mark says UTF-16, but what follows is not UTF-16; {ADVICE}")),
        };
    }
    // English text in UTF-16 is valid UTF-8 too, with a zero character beside every letter.
    let (pairs, rest) = bytes.as_chunks::<2>();
    if !pairs.is_empty() && rest.is_empty() && pairs.iter().take(64).all(|pair| (pair[0] == 0) != (pair[1] == 0)) {
        return Err(format!("it looks like UTF-16 without a byte order mark; {ADVICE}"));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
        format!("in line {line}, its bytes from {at} on are not UTF-8; {ADVICE}")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(String::from).unwrap_or(text))
}

/// The lines of a file with their numbers, from 1 on.
pub(super) fn lines(file: &Path) -> Result<Vec<(usize, String)>, Failure> {
    Ok((1..).zip(content(file)?.lines().map(String::from)).collect())
}

impl TextArgs {
    /// The input files. No output may replace them.
    pub(crate) fn files(&self) -> impl Iterator<Item = PathBuf> {
        let of_ids = self.ids.iter().filter_map(|list| list.strip_prefix('@')).map(PathBuf::from);
        self.file.iter().chain(&self.document).cloned().chain(of_ids)
    }

    /// True if an option or argument names texts.
    pub(crate) fn given(&self) -> bool {
        let lists = [self.texts.is_empty(), self.file.is_empty(), self.document.is_empty(), self.ids.is_empty()];
        lists.contains(&false) || self.field.is_some()
    }

    /// Reads the given texts or ids. Needs no model.
    pub(crate) fn read(&self, model: &ModelArgs) -> Result<Input, Failure> {
        if !self.ids.is_empty() {
            let lists = self.ids.iter().map(|list| self.ids_of(list)).collect::<Result<Vec<_>, _>>()?;
            return Ok(Input::Ids(lists.concat()));
        }
        if !self.document.is_empty() {
            return Ok(Input::Texts(self.document.iter().map(|file| document(file)).collect::<Result<_, _>>()?));
        }
        if !self.file.is_empty() {
            let files = self.file.iter().map(|file| self.lines_of(file, model)).collect::<Result<Vec<_>, _>>()?;
            return Ok(Input::Texts(files.concat()));
        }
        if !self.texts.is_empty() {
            return Ok(Input::Texts(self.texts.clone()));
        }
        let nothing = || {
            Failure::Usage("give a text, a file with --file or --document, or token ids with --ids; see --help".into())
        };
        if std::io::stdin().is_terminal() {
            return Err(nothing());
        }
        let all = lines(Path::new("-"))?;
        if all.iter().all(|(_, line)| line.trim().is_empty()) {
            return Err(nothing());
        }
        Ok(Input::Texts(self.texts_of(Path::new("-"), all, model)?))
    }

    /// The texts of a file with one text per line. Blank lines are skipped, with a note.
    pub(crate) fn lines_of(&self, file: &Path, model: &ModelArgs) -> Result<Vec<String>, Failure> {
        self.texts_of(file, lines(file)?, model)
    }

    /// The texts of a file's numbered lines.
    fn texts_of(&self, file: &Path, all: Vec<(usize, String)>, model: &ModelArgs) -> Result<Vec<String>, Failure> {
        let name = name_of(file);
        let n = all.len();
        let lines: Vec<(usize, String)> = all.into_iter().filter(|(_, line)| !line.trim().is_empty()).collect();
        if lines.is_empty() {
            return Err(Failure::Run(format!("{name} holds no text; write one text per line")));
        }
        if n > lines.len() {
            let (blank, s) = (n - lines.len(), if n - lines.len() == 1 { "" } else { "s" });
            model.say(format_args!("note: {blank} blank line{s} of {name} skipped"));
        }
        let Some(field) = &self.field else {
            let extension = crate::output::extension(file);
            if ["jsonl", "ndjson"].contains(&extension.as_str()) {
                return Err(Failure::Usage(format!(
                    "every line of {name} is a JSON object; name the field that holds the text, such as --field text"
                )));
            }
            return Ok(lines.into_iter().map(|(_, line)| line).collect());
        };
        lines.iter().map(|(i, line)| text_of_field(line, field, &format!("line {i} of {name}"))).collect()
    }

    /// The lists of one value of `--ids`.
    fn ids_of(&self, list: &str) -> Result<Vec<Vec<u32>>, Failure> {
        let Some(file) = list.strip_prefix('@') else {
            return parse_ids(list).map_err(|e| Failure::Usage(format!("--ids: {e}")));
        };
        let (file, mut all) = (Path::new(file), Vec::new());
        for (i, line) in lines(file)?.into_iter().filter(|(_, line)| !line.trim().is_empty()) {
            let fail = |e| Failure::Run(format!("line {i} of {}: {e}", name_of(file)));
            all.extend(parse_ids(&line).map_err(fail)?);
        }
        if all.is_empty() {
            return Err(Failure::Run(format!(
                "{} holds no token ids; write those of one text per line",
                name_of(file)
            )));
        }
        Ok(all)
    }

    /// The token ids of every text, with the beginning-of-text token and truncated if requested.
    ///
    /// # Errors
    /// The model has no tokenizer for texts, or a text has more tokens than `length` allows.
    pub(crate) fn ids(
        &self,
        input: &Input,
        files: &Model,
        length: Length,
        model: &ModelArgs,
    ) -> Result<Vec<Vec<u32>>, Failure> {
        match input {
            Input::Ids(ids) => self.begun_and_cut(ids.clone(), files, model),
            Input::Texts(texts) => self.encoded_up_to(texts, files, length, model),
        }
    }

    /// Encodes other texts of the same command by the same rules.
    pub(crate) fn encoded(&self, texts: &[String], files: &Model, model: &ModelArgs) -> Result<Vec<Vec<u32>>, Failure> {
        self.encoded_up_to(texts, files, Length::Context, model)
    }

    /// [`TextArgs::encoded`] for texts of at most `length`.
    pub(crate) fn encoded_up_to(
        &self,
        texts: &[String],
        files: &Model,
        length: Length,
        model: &ModelArgs,
    ) -> Result<Vec<Vec<u32>>, Failure> {
        let (tokenizer, most) = (files.tokenizer()?, files.config().n_positions);
        if length == Length::Context && !self.truncate {
            texts.iter().enumerate().try_for_each(|(i, text)| tokenizer.check_length(i, text, most))?;
        }
        if self.no_special {
            let ids = texts.iter().map(|text| tokenizer.encode_plain(text)).collect::<Result<Vec<_>, _>>()?;
            return self.begun_texts(ids, files, model);
        }
        let ids = texts.iter().map(|text| tokenizer.encode_in_pieces(text)).collect::<Result<Vec<_>, _>>()?;
        say_specials(&ids, files, model);
        self.begun_texts(ids, files, model)
    }

    /// [`TextArgs::begun_and_cut`] for texts that the tokenizer encoded. Some tokenizers add the beginning-of-text token
    /// themselves.
    fn begun_texts(&self, ids: Vec<Vec<u32>>, files: &Model, model: &ModelArgs) -> Result<Vec<Vec<u32>>, Failure> {
        if self.prepend_bos && files.adds_bos() {
            let token = files.bos().map(|bos| files.token(bos).label()).unwrap_or_default();
            model.say(format_args!(
                "note: this tokenizer itself puts {token} in front of every text, so --prepend-bos adds no second one"
            ));
            return Ok(self.cut(ids, files, model));
        }
        self.begun_and_cut(ids, files, model)
    }

    /// Token ids with the beginning-of-text token and truncated, if requested.
    pub(crate) fn begun_and_cut(
        &self,
        mut ids: Vec<Vec<u32>>,
        files: &Model,
        model: &ModelArgs,
    ) -> Result<Vec<Vec<u32>>, Failure> {
        if self.prepend_bos {
            let bos = files.bos().ok_or_else(|| {
                Failure::Run("this model names no beginning-of-text token; leave --prepend-bos out".into())
            })?;
            ids.iter_mut().for_each(|list| list.insert(0, bos));
        }
        Ok(self.cut(ids, files, model))
    }

    /// With --truncate, cuts texts to what fits the context.
    fn cut(&self, mut ids: Vec<Vec<u32>>, files: &Model, model: &ModelArgs) -> Vec<Vec<u32>> {
        let most = files.config().n_positions;
        for (i, list) in ids.iter_mut().enumerate().filter(|(_, list)| self.truncate && list.len() > most) {
            model.say(format_args!("text {i} is cut from {} to {most} tokens", list.len()));
            list.truncate(most);
        }
        ids
    }

    /// The texts as a batch.
    pub(crate) fn batch(&self, input: &Input, files: &Model, model: &ModelArgs) -> Result<Batch, Failure> {
        Ok(files.batch(&self.ids(input, files, Length::Context, model)?)?)
    }
}

/// Prints a note if a text contains the name of a special token, which was encoded as that token.
fn say_specials(ids: &[Vec<u32>], files: &Model, model: &ModelArgs) {
    let Ok(tokenizer) = files.tokenizer() else { return };
    let special = tokenizer.special_tokens();
    // The tokens that the tokenizer itself adds are not part of the text.
    let (front, behind) = tokenizer.added_around().map_or((0, 0), |(front, behind)| (front.len(), behind));
    let of_texts: Vec<&[u32]> =
        ids.iter().map(|list| list.get(front..list.len().saturating_sub(behind)).unwrap_or_default()).collect();
    let found: BTreeSet<u32> = of_texts.concat().into_iter().filter(|id| special.contains_key(id)).collect();
    for id in found {
        let text = of_texts.iter().position(|list| list.contains(&id)).unwrap_or_default();
        model.say(format_args!(
            "note: text {text} holds {}, which was taken as one token, {id}; --no-special encodes its characters",
            special[&id]
        ));
    }
}

/// A whole file as one text.
fn document(file: &Path) -> Result<String, Failure> {
    let text = content(file)?;
    if text.is_empty() {
        return Err(Failure::Run(format!("{} holds no text; give another file", name_of(file))));
    }
    Ok(text)
}

/// The text in a field of a line with a JSON object.
fn text_of_field(line: &str, field: &str, place: &str) -> Result<String, Failure> {
    let fail = |what: String| Failure::Run(format!("{place} {what}"));
    let value: Value = serde_json::from_str(line).map_err(|e| fail(format!("is not JSON: {e}")))?;
    let Some(object) = value.as_object() else { return Err(fail("is JSON, but not an object with fields".into())) };
    match object.get(field) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(fail(format!("has no text in its field {field:?}; name another one with --field"))),
        None => {
            let fields: Vec<&str> = object.keys().map(String::as_str).collect();
            Err(fail(format!("has no field {field:?}; name one that it has with --field: {}", fields.join(", "))))
        }
    }
}

/// Parses lists of ids: numbers separated by spaces or commas, as Python prints a list, a list of lists, an array or a
/// tensor.
pub(super) fn parse_ids(written: &str) -> Result<Vec<Vec<u32>>, String> {
    let mut rest = written.trim();
    for wrapper in ["torch.tensor", "tensor", "np.array", "numpy.array", "array"] {
        if let Some(inner) = rest.strip_prefix(wrapper).and_then(|rest| rest.trim_start().strip_prefix('(')) {
            let (inner, end) = inner.rsplit_once(')').ok_or("a bracket is not closed")?;
            if !end.trim().is_empty() {
                return Err(format!("{:?} follows the list", end.trim()));
            }
            // `device='cuda:0'`, `dtype=torch.int64` and the like.
            rest = inner.rfind(']').map_or(inner, |at| &inner[..=at]);
        }
    }
    let numbers = |list: &str| -> Result<Vec<u32>, String> {
        let words = list.split([' ', ',', '\t', '\n', '\r']).filter(|word| !word.is_empty());
        words
            .map(|word| word.parse().map_err(|_| format!("{word:?} is not a token id (a whole number from 0 on)")))
            .collect()
    };
    if !rest.contains(['[', ']']) {
        return Ok(vec![numbers(rest)?]);
    }
    // Only the innermost lists hold numbers. Outside them are commas and brackets.
    let (mut lists, mut open, mut depth) = (Vec::new(), None, 0usize);
    for (at, c) in rest.char_indices() {
        match c {
            '[' => {
                if open.replace(at + 1).is_some_and(|from| !rest[from..at].trim().is_empty()) {
                    return Err("there are numbers outside the inner lists".into());
                }
                depth += 1;
            }
            ']' => {
                depth = depth.checked_sub(1).ok_or("a bracket is closed that was not opened")?;
                if let Some(from) = open.take() {
                    lists.push(numbers(&rest[from..at])?);
                }
            }
            c if open.is_none() && !c.is_whitespace() && c != ',' => {
                return Err(format!("{c:?} is outside the list"));
            }
            _ => {}
        }
    }
    if depth > 0 { Err("a bracket is not closed".into()) } else { Ok(lists) }
}

/// Changes the help texts of [`TextArgs`] for a command that takes one text.
pub(super) fn one_text(arg: clap::Arg) -> clap::Arg {
    match arg.get_id().as_str() {
        "texts" => arg.help("The text, in quotes if it has several words [default: one line of stdin]"),
        "file" => arg.help("A file with the text on one line; `-` is stdin"),
        "document" => arg.help("A file that is the text, with its line breaks; `-` is stdin"),
        "ids" => arg.help("Token ids instead of text, such as \"464 3797\" or \"[464, 3797]\", or @FILE"),
        _ => arg,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_ids() {
        for (written, lists) in [
            ("1 2", &[&[1, 2][..]][..]),
            (" 1,2\t3,\n4 ", &[&[1, 2, 3, 4]]),
            ("[1, 2]", &[&[1, 2]]),
            ("[1 2]", &[&[1, 2]]),
            ("[[1, 2]]", &[&[1, 2]]),
            ("[[1, 2], [3]]", &[&[1, 2], &[3]]),
            ("tensor([1, 2])", &[&[1, 2]]),
            ("tensor([[1, 2]])", &[&[1, 2]]),
            ("tensor([[1, 2],\n        [3, 4]], device='cuda:0')", &[&[1, 2], &[3, 4]]),
            ("array([[1, 2]], dtype=int64)", &[&[1, 2]]),
            ("", &[&[]]),
            ("[]", &[&[]]),
        ] {
            assert_eq!(parse_ids(written), Ok(lists.iter().map(|list| list.to_vec()).collect()), "{written}");
        }
        for wrong in [
            "1.5",
            "-1",
            "cat",
            "[1, 2",
            "1, 2]",
            "[1] 2",
            "1 [2]",
            "[1, [2]]",
            "tensor([1]",
            "tensor([1]) 2",
            "4294967296",
        ] {
            assert!(parse_ids(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn encodings_of_files() {
        let utf16 = |order: fn(u16) -> [u8; 2], text: &str| text.encode_utf16().flat_map(order).collect::<Vec<u8>>();
        let text = "Größe 😀\r\n";
        for bytes in [
            text.as_bytes().to_vec(),
            ["\u{feff}", text].concat().into_bytes(),
            utf16(u16::to_le_bytes, &["\u{feff}", text].concat()),
            utf16(u16::to_be_bytes, &["\u{feff}", text].concat()),
        ] {
            assert_eq!(decoded(bytes), Ok(text.to_string()));
        }
        for empty in [&b""[..], b"\xff\xfe", b"\xef\xbb\xbf"] {
            assert_eq!(decoded(empty.to_vec()), Ok(String::new()));
        }
        for (wrong, words) in [
            (utf16(u16::to_le_bytes, "cat\n"), "looks like UTF-16"),
            (utf16(u16::to_be_bytes, "cat\n"), "looks like UTF-16"),
            (b"\xff\xfea".to_vec(), "not UTF-16"),
            (b"\xff\xfe\0\xd8".to_vec(), "not UTF-16"),
            (b"one\ncaf\xe9\n".to_vec(), "in line 2, its bytes from 7 on are not UTF-8"),
        ] {
            assert!(decoded(wrong).unwrap_err().contains(words), "{words}");
        }
    }

    #[test]
    fn texts_of_json_lines() {
        let of = |line: &str| match text_of_field(line, "text", "line 1") {
            Ok(text) => text,
            Err(Failure::Run(message)) => message,
            Err(_) => unreachable!(),
        };
        assert_eq!(of(r#"{"id": 1, "text": "a\nb"}"#), "a\nb");
        assert!(of(r#"{"id": 1, "body": "a"}"#).contains("--field: id, body"));
        assert!(of(r#"{"text": 5}"#).contains("has no text in its field"));
        assert!(of("[1]").contains("not an object"));
        assert!(of("text").contains("not JSON"));
    }
}
