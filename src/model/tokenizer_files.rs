//! Reads a tokenizer from a checkpoint's folder as transformers 5 does. Owns the rules: which class it is, which files
//! are used, which tokens are added with which flags, and which tokens surround a text. The `tokenizers` crate does the
//! tokenizing. `tests/tokenizer.rs` compares the ids with those of transformers. Read next: `tokenizer.rs`.
//!
//! The rules depend on the class (`tokenizer_class` of tokenizer_config.json, else of config.json, else
//! `GPT2Tokenizer`):
//!
//! - `GPT2Tokenizer` and `BertTokenizer` take vocabulary and merges from tokenizer.json, else from vocab.json with
//!   merges.txt or from vocab.txt. They build everything else from tokenizer_config.json.
//! - Every other class uses tokenizer.json unchanged.
//!
//! Tokens are then added: those of `added_tokens_decoder`, or without it those of added_tokens.json and tokenizer.json
//! in the order of their ids; then the named ones (`pad_token` and so on) and the extra ones, if they are new.

use crate::model::model_dir::{ModelDir, file};
use crate::model::tokenizer_error::{TokenizerError, guarded};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, AddedVocabulary, NormalizedString, Normalizer, Tokenizer};

/// A tokenizer, and remarks for the user about how it was read.
pub(super) struct Read {
    pub tokenizer: Tokenizer,
    pub notes: Vec<String>,
}

/// The named special tokens, in the order in which they are added.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// How a class of transformers treats the files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Byte-level BPE.
    Gpt2,
    /// WordPiece, with `[CLS]` before every text and `[SEP]` after it.
    Bert,
    /// tokenizer.json, unchanged.
    AsItStands,
}

impl Class {
    fn of(name: &str) -> Class {
        match name.strip_suffix("Fast").unwrap_or(name) {
            "GPT2Tokenizer" => Class::Gpt2,
            "BertTokenizer" => Class::Bert,
            _ => Class::AsItStands,
        }
    }

    /// The default of a named token, for when tokenizer_config.json does not define it.
    fn default_of(self, name: &str) -> Option<&'static str> {
        match (self, name) {
            (Class::Gpt2, "bos_token" | "eos_token" | "unk_token") => Some("<|endoftext|>"),
            (Class::Bert, "unk_token") => Some("[UNK]"),
            (Class::Bert, "sep_token") => Some("[SEP]"),
            (Class::Bert, "pad_token") => Some("[PAD]"),
            (Class::Bert, "cls_token") => Some("[CLS]"),
            (Class::Bert, "mask_token") => Some("[MASK]"),
            _ => None,
        }
    }
}

/// A token as a file describes it.
#[derive(Clone, Deserialize, PartialEq)]
struct Added {
    content: String,
    /// The file gives only its text. transformers treats that as a different token from one with the same text and
    /// flags.
    #[serde(skip)]
    bare: bool,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    /// Derived from `special` when the file does not state it.
    #[serde(default)]
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl Added {
    fn special(content: &str) -> Added {
        Added {
            content: content.into(),
            bare: true,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: None,
            special: true,
        }
    }

    fn token(&self) -> AddedToken {
        AddedToken::from(self.content.as_str(), self.special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized.unwrap_or(!self.special))
    }
}

/// The fields of tokenizer.json that this file reads in addition to the `tokenizers` crate.
#[derive(Deserialize)]
struct Beside {
    #[serde(default)]
    added_tokens: Vec<WithId>,
    #[serde(default)]
    padding: Option<Value>,
}

#[derive(Deserialize)]
struct WithId {
    id: u32,
    #[serde(flatten)]
    token: Added,
}

/// The tokenizer of a folder; `None` if it has none.
pub(super) fn read(dir: &ModelDir) -> Result<Option<Read>, TokenizerError> {
    let settings = Settings::read(dir)?;
    let class = Class::of(settings.class.as_deref().unwrap_or("GPT2Tokenizer"));
    let files = [file::TOKENIZER, file::VOCAB, file::MERGES, file::VOCAB_TXT].map(|name| dir.has(name));
    let (read, beside) = match (class, files) {
        (_, [true, ..]) => {
            let (read, beside) = from_json(dir, class, &settings)?;
            (read, Some(beside))
        }
        (Class::Gpt2, [_, true, true, _]) => (from_vocab_and_merges(dir, &settings)?, None),
        (Class::Bert, [.., true]) => (from_vocab_txt(dir, &settings)?, None),
        // Older folders with a WordPiece vocabulary do not name their class.
        (Class::Gpt2, [_, false, _, true]) if settings.class.is_none() => {
            return from_vocab_txt(dir, &settings)
                .and_then(|read| finish(dir, Class::Bert, settings, read, None))
                .map(Some);
        }
        _ => return nothing_to_read(dir, &settings),
    };
    finish(dir, class, settings, read, beside).map(Some)
}

/// The result when the folder has no file that its class can be read from.
fn nothing_to_read(dir: &ModelDir, settings: &Settings) -> Result<Option<Read>, TokenizerError> {
    let command = format!(
        "write a tokenizer.json with python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('{0}')\
         .save_pretrained('{0}')\"",
        dir.folder().display()
    );
    for name in [file::SPIECE, file::SENTENCEPIECE] {
        if dir.has(name) {
            let what = "it is a SentencePiece model, which actscope does not read".into();
            return Err(unsupported(&dir.path(name), what, &command));
        }
    }
    let Some(class) = &settings.class else { return Ok(None) };
    let any = [file::VOCAB, file::VOCAB_TXT].into_iter().find(|name| dir.has(name));
    match any {
        Some(any) if Class::of(class) == Class::AsItStands => {
            let what = format!("the tokenizer's class is {class}, and actscope reads it from a tokenizer.json only");
            Err(unsupported(&dir.path(any), what, &command))
        }
        _ => Ok(None),
    }
}

/// tokenizer_config.json, with special_tokens_map.json in old folders, where transformers still reads it.
struct Settings {
    class: Option<String>,
    fields: Map<String, Value>,
    /// Named tokens specific to this tokenizer, as far as the settings alone show them.
    own: Vec<(String, Value)>,
    notes: Vec<String>,
}

/// The key of special tokens without a name, and its name before transformers 5.
const EXTRA: &str = "extra_special_tokens";
const EXTRA_BEFORE: &str = "additional_special_tokens";

impl Settings {
    fn read(dir: &ModelDir) -> Result<Settings, TokenizerError> {
        let path = dir.path(file::TOKENIZER_CONFIG);
        let mut fields = object(dir, file::TOKENIZER_CONFIG)?.unwrap_or_default();
        let mut notes = Vec::new();
        let of_config = || object(dir, file::CONFIG).ok().flatten()?.get("tokenizer_class").cloned();
        let class = fields.shift_remove("tokenizer_class").filter(|class| !class.is_null()).or_else(of_config);
        let class = class.and_then(|class| class.as_str().map(str::to_string));
        if fields.contains_key("fast_tokenizer_files") {
            let what = "it names several tokenizer files by the version of transformers (fast_tokenizer_files)".into();
            return Err(unsupported(&path, what, "keep the one to be used as tokenizer.json, and take the field out"));
        }
        if fields.get("init_inputs").and_then(Value::as_array).is_some_and(|inputs| !inputs.is_empty()) {
            let what = "it has arguments without names for the tokenizer's class (init_inputs)".into();
            return Err(unsupported(&path, what, "take the field out if the class needs none"));
        }
        if fields.contains_key("auto_map") {
            notes.push(format!(
                "{} names a tokenizer in Python code of its own (auto_map), which is not run: its tokens may differ",
                path.display()
            ));
        }
        let is_empty = |value: &Value| match value {
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            value => value.is_null(),
        };
        if fields.get(EXTRA).is_none_or(is_empty)
            && let Some(before) = fields.shift_remove(EXTRA_BEFORE)
        {
            fields.insert(EXTRA.into(), before);
        }
        let mut own: Vec<(String, Value)> = Vec::new();
        let is_own = |(name, value): &(&String, &Value)| {
            value.is_string() && name.ends_with("_token") && !NAMED.contains(&name.as_str())
        };
        own.extend(fields.iter().filter(is_own).map(|(name, value)| (name.clone(), value.clone())));
        own.iter().for_each(|(name, _)| drop(fields.shift_remove(name)));
        if let Some(Value::Object(named)) = fields.get(EXTRA) {
            own.extend(named.clone());
            fields.shift_remove(EXTRA);
        }
        // Only folders from before transformers 4.34 have no added_tokens_decoder and need the map.
        if !fields.contains_key("added_tokens_decoder") {
            let map = object(dir, file::SPECIAL_TOKENS_MAP)?.unwrap_or_default();
            for (name, mut value) in map {
                match (&mut value, fields.get_mut(&name)) {
                    (Value::Array(new), Some(Value::Array(list))) if name == EXTRA => {
                        new.retain(|token| !list.contains(token));
                        list.append(new);
                        continue;
                    }
                    (Value::Object(named), _) if name == EXTRA => {
                        own.extend(named.clone());
                        continue;
                    }
                    (Value::Object(token), _) => drop(token.insert("special".into(), true.into())),
                    _ => {}
                }
                fields.insert(name, value);
            }
        }
        Ok(Settings { class, fields, own, notes })
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.fields.get(name).and_then(Value::as_bool)
    }

    /// The named special tokens: those of every tokenizer, then those specific to this one. `padding` is the padding
    /// token of tokenizer.json.
    fn named(&self, class: Class, padding: Option<&str>, path: &Path) -> Result<Vec<(String, Added)>, TokenizerError> {
        let mut named = Vec::new();
        for name in NAMED {
            match self.fields.get(name) {
                // The file states that there is none.
                Some(Value::Null) => {}
                Some(value) => named.push((name.into(), token(value).ok_or_else(|| not_a_token(path, name))?)),
                None => {
                    let of_file = padding.filter(|_| name == "pad_token" && class == Class::AsItStands);
                    let default = of_file.or(class.default_of(name));
                    named.extend(default.map(|token| (name.to_string(), Added::special(token))));
                }
            }
        }
        let others = self.fields.iter().filter(|(name, _)| name.ends_with("_token") && !NAMED.contains(&name.as_str()));
        let own = self.own.iter().map(|(name, value)| (name, value));
        // Switches such as add_bos_token end the same way.
        named.extend(others.chain(own).filter_map(|(name, value)| Some((name.clone(), token(value)?))));
        Ok(named)
    }

    /// The special tokens without a name.
    fn extra(&self, path: &Path) -> Result<Vec<Added>, TokenizerError> {
        let name = if self.fields.contains_key(EXTRA) { EXTRA } else { EXTRA_BEFORE };
        let list = self.fields.get(name).and_then(Value::as_array).into_iter().flatten();
        let wrong = || not_a_token(path, "extra_special_tokens (or additional_special_tokens)");
        list.map(|value| token(value).ok_or_else(wrong)).collect()
    }
}

/// A token as text, or with its flags.
fn token(value: &Value) -> Option<Added> {
    match value {
        Value::String(content) => Some(Added::special(content)),
        Value::Object(_) => Added::deserialize(value).ok(),
        _ => None,
    }
}

fn not_a_token(path: &Path, name: &str) -> TokenizerError {
    broken(path, format!("{name} holds what is neither a text nor a token with a content"))
}

fn broken(path: &Path, detail: String) -> TokenizerError {
    TokenizerError::Tokenizer { file: path.display().to_string(), detail }
}

fn unsupported(path: &Path, what: String, remedy: &str) -> TokenizerError {
    TokenizerError::Unsupported { file: path.display().to_string(), what, remedy: remedy.into() }
}

/// The bytes of a tokenizer's file.
fn bytes(dir: &ModelDir, name: &str) -> Result<Vec<u8>, TokenizerError> {
    dir.read(name).map_err(|e| broken(&dir.path(name), e.to_string()))
}

/// What is wrong with a file: that it is another kind of file, or else the parser's message.
fn detail(bytes: &[u8], said: String) -> String {
    crate::file_kind::Kind::of(bytes).map_or(said, |kind| format!("it is {kind}"))
}

/// Reads a JSON object; `None` if the file does not exist.
fn object(dir: &ModelDir, name: &str) -> Result<Option<Map<String, Value>>, TokenizerError> {
    if !dir.has(name) {
        return Ok(None);
    }
    let bytes = bytes(dir, name)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|e| broken(&dir.path(name), detail(&bytes, e.to_string())))
}

/// Reads tokenizer.json: all of it, or only its vocabulary, merges and post-processor.
fn from_json(dir: &ModelDir, class: Class, settings: &Settings) -> Result<(Read, Beside), TokenizerError> {
    let path = dir.path(file::TOKENIZER);
    let bytes = bytes(dir, file::TOKENIZER)?;
    let mut tokenizer = guarded(|| Tokenizer::from_bytes(&bytes)).map_err(|e| broken(&path, detail(&bytes, e)))?;
    let beside: Beside = serde_json::from_slice(&bytes).map_err(|e| broken(&path, e.to_string()))?;
    let mut notes = Vec::new();
    let built = match (class, tokenizer.get_model()) {
        (Class::Gpt2, ModelWrapper::BPE(bpe)) => {
            if bpe.continuing_subword_prefix.as_ref().is_some_and(|prefix| !prefix.is_empty()) {
                return Err(unsupported(
                    &path,
                    "its model has a continuing_subword_prefix, and the class GPT2Tokenizer has none".into(),
                    AS_IT_STANDS,
                ));
            }
            let plain = bpe.dropout.is_none()
                && bpe.unk_token.is_none()
                && bpe.end_of_word_suffix.as_ref().is_none_or(String::is_empty)
                && !(bpe.fuse_unk || bpe.byte_fallback || bpe.ignore_merges);
            let dropped = dropped(&tokenizer, settings);
            if !plain || !dropped.is_empty() {
                let model = if plain { None } else { Some("model settings") };
                let all: Vec<&str> = dropped.into_iter().chain(model).collect();
                notes.push(format!(
                    "the {} of {} {} not used, as the tokenizer's class {} does not use {1} in transformers; {AS_IT_STANDS}",
                    all.join(" and the "),
                    path.display(),
                    if all.len() == 1 && model.is_none() { "is" } else { "are" },
                    settings.class.as_deref().unwrap_or("GPT2Tokenizer (none is named)"),
                ));
            }
            (!plain).then(|| {
                let mut bpe = bpe.clone();
                (bpe.dropout, bpe.unk_token, bpe.end_of_word_suffix) = (None, None, None);
                (bpe.fuse_unk, bpe.byte_fallback, bpe.ignore_merges) = (false, false, false);
                ModelWrapper::BPE(bpe)
            })
        }
        (Class::Bert, ModelWrapper::WordPiece(pieces)) => {
            let mut pieces = pieces.clone();
            (pieces.unk_token, pieces.continuing_subword_prefix) = (unk(settings), "##".into());
            pieces.max_input_chars_per_word = 100;
            Some(ModelWrapper::WordPiece(pieces))
        }
        (Class::AsItStands, _) => {
            notes.extend(as_it_stands(&path, &tokenizer, settings)?);
            return Ok((Read { tokenizer, notes }, beside));
        }
        // The class is not named, or is wrong. Using the file unchanged is the only sensible choice.
        (Class::Gpt2 | Class::Bert, _) => {
            notes.push(format!(
                "{} is not of the kind that the tokenizer's class {} has; it is used as it stands",
                path.display(),
                settings.class.as_deref().unwrap_or("GPT2Tokenizer (none is named)"),
            ));
            return Ok((Read { tokenizer, notes }, beside));
        }
    };
    if let Some(model) = built {
        tokenizer.with_model(model);
    }
    tokenizer.with_added_vocabulary(AddedVocabulary::new());
    build(&mut tokenizer, class, settings);
    Ok((Read { tokenizer, notes }, beside))
}

const AS_IT_STANDS: &str =
    "\"tokenizer_class\": \"PreTrainedTokenizerFast\" in tokenizer_config.json takes tokenizer.json as it stands";

/// The parts of a tokenizer.json that differ from GPT-2's and that a byte-level class replaces.
fn dropped(tokenizer: &Tokenizer, settings: &Settings) -> Vec<&'static str> {
    let space = settings.flag("add_prefix_space").unwrap_or(false);
    let usual = match tokenizer.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::ByteLevel(own)) => own.use_regex && own.add_prefix_space == space,
        _ => false,
    };
    let parts = [("normalizer", tokenizer.get_normalizer().is_some()), ("pre_tokenizer", !usual)];
    parts.into_iter().filter(|(_, dropped)| *dropped).map(|(part, _)| part).collect()
}

/// For a class other than the generic one: refuses or notes the parts of tokenizer.json that transformers may replace.
fn as_it_stands(path: &Path, tokenizer: &Tokenizer, settings: &Settings) -> Result<Option<String>, TokenizerError> {
    const PLAIN: [&str; 3] = ["PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend"];
    /// Byte-level classes that rebuild the pre-tokenizer from tokenizer_config.json.
    const BYTE_LEVEL: [&str; 14] = [
        "BartTokenizer",
        "BlenderbotTokenizer",
        "CodeGenTokenizer",
        "DebertaTokenizer",
        "GPTNeoXTokenizer",
        "LEDTokenizer",
        "LayoutLMv3Tokenizer",
        "LongformerTokenizer",
        "LukeTokenizer",
        "MarkupLMTokenizer",
        "MvpTokenizer",
        "Qwen2Tokenizer",
        "RobertaTokenizer",
        "WhisperTokenizer",
    ];
    let class = settings.class.as_deref().unwrap_or_default();
    if PLAIN.contains(&class) {
        return Ok(None);
    }
    let said = settings.flag("add_prefix_space").unwrap_or(false);
    if let Some(PreTokenizerWrapper::ByteLevel(own)) = tokenizer.get_pre_tokenizer()
        && BYTE_LEVEL.contains(&class.strip_suffix("Fast").unwrap_or(class))
        && said != own.add_prefix_space
    {
        let what = format!(
            "it has add_prefix_space {}, and for the tokenizer's class {class} tokenizer_config.json counts, which has {said}",
            own.add_prefix_space
        );
        return Err(unsupported(path, what, "write the same in both"));
    }
    Ok(Some(format!(
        "{} is used as it stands; if transformers knows the tokenizer's class {class}, that may build parts of it anew",
        path.display()
    )))
}

fn unk(settings: &Settings) -> String {
    let set = settings.fields.get("unk_token").and_then(token);
    set.map_or_else(|| "[UNK]".into(), |token| token.content)
}

/// Builds the parts that a class does not take from the files: normalizer, pre-tokenizer, decoder and so on.
fn build(tokenizer: &mut Tokenizer, class: Class, settings: &Settings) {
    let flag = |name: &str, default: bool| settings.flag(name).unwrap_or(default);
    match class {
        Class::Gpt2 => {
            // Removing a normalizer cannot fail.
            let _ = tokenizer.with_normalizer(None::<BertNormalizer>);
            let space = flag("add_prefix_space", false);
            tokenizer.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(space)));
            tokenizer.with_decoder(Some(ByteLevel::default()));
        }
        Class::Bert => {
            let (chinese, accents) = (flag("tokenize_chinese_chars", true), settings.flag("strip_accents"));
            let normalizer = BertNormalizer::new(true, chinese, accents, flag("do_lower_case", true));
            // It could fail only on added tokens, and there are none yet.
            let _ = tokenizer.with_normalizer(Some(normalizer));
            tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
            tokenizer.with_decoder(Some(tokenizers::decoders::wordpiece::WordPiece::default()));
        }
        Class::AsItStands => {}
    }
}

fn from_vocab_and_merges(dir: &ModelDir, settings: &Settings) -> Result<Read, TokenizerError> {
    let (vocab, merges) = (dir.path(file::VOCAB), dir.path(file::MERGES));
    // The crate reads both files at once, from a disk only, and does not report which one is invalid.
    let of_vocab = bytes(dir, file::VOCAB)?;
    let ids = serde_json::from_slice::<BTreeMap<String, u32>>(&of_vocab)
        .map_err(|e| broken(&vocab, detail(&of_vocab, e.to_string())))?;
    let of_merges = bytes(dir, file::MERGES)?;
    let pairs = pairs(&of_merges).map_err(|e| broken(&merges, detail(&of_merges, e)))?;
    let ids = ids.into_iter().collect::<Vocab>();
    let built = guarded(|| BPE::builder().vocab_and_merges(ids, pairs).build());
    let mut tokenizer = Tokenizer::new(built.map_err(|e| broken(&merges, detail(&of_merges, e)))?);
    build(&mut tokenizer, Class::Gpt2, settings);
    Ok(Read { tokenizer, notes: Vec::new() })
}

/// The merges of merges.txt, read as the `tokenizers` crate reads it: two words a line, and comments with the version.
fn pairs(merges: &[u8]) -> Result<Vec<(String, String)>, String> {
    let text = std::str::from_utf8(merges).map_err(|_| "stream did not contain valid UTF-8".to_string())?;
    let lines = text.lines().filter(|line| !line.starts_with("#version"));
    let pair = |(n, line): (usize, &str)| match line.split(' ').collect::<Vec<_>>()[..] {
        [left, right] => Ok((left.to_string(), right.to_string())),
        _ => Err(format!("Merges text file invalid at line {}", n + 1)),
    };
    lines.enumerate().map(pair).collect()
}

fn from_vocab_txt(dir: &ModelDir, settings: &Settings) -> Result<Read, TokenizerError> {
    let vocab = dir.path(file::VOCAB_TXT);
    let of_vocab = bytes(dir, file::VOCAB_TXT)?;
    let fail = |e: String| broken(&vocab, detail(&of_vocab, e));
    if let Some(kind) = crate::file_kind::Kind::of(&of_vocab) {
        return Err(broken(&vocab, format!("it is {kind}")));
    }
    let text = std::str::from_utf8(&of_vocab).map_err(|_| fail("stream did not contain valid UTF-8".into()))?;
    let ids = text.lines().zip(0..).map(|(token, id)| (token.trim_end().to_string(), id));
    let ids = ids.collect::<Vocab>();
    let built = guarded(|| WordPiece::builder().vocab(ids).unk_token(unk(settings)).build());
    let mut tokenizer = Tokenizer::new(built.map_err(fail)?);
    build(&mut tokenizer, Class::Bert, settings);
    Ok(Read { tokenizer, notes: Vec::new() })
}

/// Adds the folder's added tokens, and the tokens that its class puts around a text.
fn finish(
    dir: &ModelDir,
    class: Class,
    settings: Settings,
    mut read: Read,
    beside: Option<Beside>,
) -> Result<Read, TokenizerError> {
    let path = dir.path(file::TOKENIZER_CONFIG);
    let padding = beside.as_ref().and_then(|beside| beside.padding.as_ref()?.get("pad_token")?.as_str());
    let (mut named, extra) = (settings.named(class, padding, &path)?, settings.extra(&path)?);
    let Stated { tokens: stated, replaced } = stated(dir, &settings, beside.as_ref())?;
    // A token whose id another token took still provides the flags of its name.
    for (name, token) in named.iter_mut().filter(|(name, _)| NAMED.contains(&name.as_str())) {
        let same = replaced.iter().find(|other| other.content == token.content);
        if let Some(other) = same.filter(|_| settings.fields.contains_key(name.as_str())) {
            *token = other.clone();
        }
    }
    let is_named = |token: &Added| named.iter().any(|(_, other)| other.content == token.content);

    let mut tokens: Vec<Added> = stated.values().map(|(token, _)| token.clone()).collect();
    let before = tokens.len();
    for token in named.iter().map(|(_, token)| token).chain(&extra) {
        let there = read.tokenizer.get_added_vocabulary().get_vocab().contains_key(&token.content);
        let is_stated = tokens[..before].iter().any(|other| other.content == token.content);
        // Of two that differ only in flags, the later one is used.
        if !(there || is_stated || tokens.contains(token)) {
            tokens.push(token.clone());
        }
    }
    for token in &mut tokens {
        token.special |= is_named(token);
    }
    let added = guarded(|| read.tokenizer.add_tokens(tokens.iter().map(Added::token)));
    added.map_err(|e| broken(&path, e))?;
    for (id, (token, file)) in &stated {
        let found = read.tokenizer.token_to_id(&token.content);
        if found.is_some_and(|found| found != *id) {
            read.notes.push(format!(
                "{} gives the token {:?} the id {id}; it is {}, as in transformers, where ids follow from the order",
                dir.path(file).display(),
                token.content,
                found.unwrap_or_default()
            ));
        }
    }

    read.notes.extend(alike(&read.tokenizer));

    let id = |name: &str| {
        let token = &named.iter().find(|(other, _)| other == name)?.1;
        Some((token.content.clone(), read.tokenizer.token_to_id(&token.content)?))
    };
    let around = match class {
        // For missing tokens the class uses Python's defaults, with the ids of BERT's own vocabulary.
        Class::Bert => {
            [("cls_token", 2), ("sep_token", 3)].map(|(name, of_bert)| id(name).or(Some(("None".into(), of_bert))))
        }
        // If tokenizer.json exists, it alone decides.
        Class::Gpt2 if beside.is_none() => {
            let asked = |switch: &str, name: &str| id(name).filter(|_| settings.flag(switch) == Some(true));
            [asked("add_bos_token", "bos_token"), asked("add_eos_token", "eos_token")]
        }
        _ => [None, None],
    };
    if around.iter().any(Option::is_some) {
        let template = template(&around).map_err(|e| broken(&path, e))?;
        read.tokenizer.with_post_processor(Some(template));
    }
    read.tokenizer.set_encode_special_tokens(settings.flag("split_special_tokens").unwrap_or(false));
    read.notes.extend(settings.notes);
    Ok(read)
}

/// Reports added tokens that the normalizer maps to the same text. The `tokenizers` crate matches an arbitrary one of
/// them.
fn alike(tokenizer: &Tokenizer) -> Option<String> {
    let normalizer = tokenizer.get_normalizer()?;
    let mut written: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for token in tokenizer.get_added_vocabulary().get_added_tokens_decoder().values().filter(|token| token.normalized) {
        let mut text = NormalizedString::from(token.content.as_str());
        guarded(|| normalizer.normalize(&mut text)).ok()?;
        written.entry(text.get().to_string()).or_default().push(token.content.clone());
    }
    let mut same = written.into_values().find(|tokens| tokens.len() > 1)?;
    same.sort();
    Some(format!(
        "the added tokens {same:?} are the same after the tokenizer's normalizer, and either may be found in a text"
    ))
}

/// A template that puts a text between two optional tokens.
fn template(around: &[Option<(String, u32)>; 2]) -> Result<TemplateProcessing, String> {
    let piece = |token: &Option<(String, u32)>| token.as_ref().map(|(token, _)| format!("{token}:0"));
    let [front, back] = [piece(&around[0]), piece(&around[1])];
    let single: Vec<String> = front.into_iter().chain([String::from("$A:0")]).chain(back).collect();
    let special: Vec<(String, u32)> = around.iter().flatten().cloned().collect();
    let built =
        TemplateProcessing::builder().try_single(single).map_err(|e| e.to_string())?.special_tokens(special).build();
    built.map_err(|e| e.to_string())
}

/// The tokens that the files list with an id, each with its file, and those whose id another file assigns differently.
#[derive(Default)]
struct Stated {
    tokens: BTreeMap<u32, (Added, &'static str)>,
    replaced: Vec<Added>,
}

fn stated(dir: &ModelDir, settings: &Settings, beside: Option<&Beside>) -> Result<Stated, TokenizerError> {
    let mut stated = Stated::default();
    if let Some(decoder) = settings.fields.get("added_tokens_decoder") {
        let path = dir.path(file::TOKENIZER_CONFIG);
        let wrong = || broken(&path, "added_tokens_decoder is not a map from ids to tokens".into());
        for (id, value) in decoder.as_object().ok_or_else(wrong)? {
            let id = id.parse().map_err(|_| wrong())?;
            let token = Added::deserialize(value).map_err(|_| wrong())?;
            stated.tokens.insert(id, (token, file::TOKENIZER_CONFIG));
        }
        return Ok(stated);
    }
    let path = dir.path(file::ADDED_TOKENS);
    // Tokens that a file names by their text, or that special_tokens_map.json lists with flags. transformers looks at
    // no others here.
    let by_text = |value: &&Value| value.get("__type").is_none();
    let named = NAMED.iter().filter_map(|name| settings.fields.get(*name));
    let extra = settings.fields.get(EXTRA).and_then(Value::as_array).into_iter().flatten();
    let special: Vec<Added> = named.chain(extra).filter(by_text).filter_map(token).collect();
    for (content, id) in object(dir, file::ADDED_TOKENS)?.unwrap_or_default() {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| broken(&path, format!("the id of {content:?} is not a whole number from 0 on")))?;
        let special = special.iter().any(|token| token.content == content);
        let token = Added { special, normalized: Some(!special), ..Added::special(&content) };
        if let Some((other, _)) = stated.tokens.insert(id, (token, file::ADDED_TOKENS)) {
            return Err(broken(&path, format!("{:?} and {content:?} have the same id {id}", other.content)));
        }
    }
    for WithId { id, token } in beside.into_iter().flat_map(|beside| &beside.added_tokens) {
        let before = stated.tokens.insert(*id, (token.clone(), file::TOKENIZER));
        stated.replaced.extend(before.map(|(token, _)| token));
    }
    Ok(stated)
}
