//! The files of a checkpoint's folder: their names, and which of them hold the weights. Recognises folders and files of
//! other kinds by names and first bytes, for error messages. Reads no tensor and no tokenizer.
//! Read next: `checkpoint.rs` and `tokenizer.rs`, which read these files.

use crate::device::Bytes;
use crate::file_kind::Kind;
use crate::model::byte_source::{ByteSource, Mapped, be_a_file, read_file};
use crate::model::shard_index::shards;
use crate::model::weights_error::WeightsError;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The names of a checkpoint's files in Hugging Face's libraries.
pub(crate) mod file {
    /// Sizes and switches.
    pub(crate) const CONFIG: &str = "config.json";
    /// All weights in one file.
    pub(crate) const WEIGHTS: &str = "model.safetensors";
    /// The index of a sharded checkpoint: which tensor is in which file.
    pub(crate) const INDEX: &str = "model.safetensors.index.json";
    /// A whole tokenizer.
    pub(crate) const TOKENIZER: &str = "tokenizer.json";
    /// The tokenizer's class and settings.
    pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
    /// BPE: tokens and their ids.
    pub(crate) const VOCAB: &str = "vocab.json";
    /// BPE: the merges, in order.
    pub(crate) const MERGES: &str = "merges.txt";
    /// WordPiece: one token per line.
    pub(crate) const VOCAB_TXT: &str = "vocab.txt";
    /// Tokens that were added to a vocabulary.
    pub(crate) const ADDED_TOKENS: &str = "added_tokens.json";
    /// Which tokens are special, in older folders.
    pub(crate) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
    /// Default settings for generation.
    pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
    /// A SentencePiece model (not supported).
    #[cfg(feature = "tokenizer")]
    pub(crate) const SPIECE: &str = "spiece.model";
    /// Another name of a SentencePiece model.
    #[cfg(feature = "tokenizer")]
    pub(crate) const SENTENCEPIECE: &str = "tokenizer.model";
    /// An adapter of another model (not supported).
    pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
}

/// The files that a tokenizer can be read from. The first complete set is used.
const TOKENIZERS: [&[&str]; 3] = [&[file::TOKENIZER], &[file::VOCAB, file::MERGES], &[file::VOCAB_TXT]];

/// Optional files with more about a tokenizer.
pub(crate) const COMPANIONS: [&str; 3] = [file::TOKENIZER_CONFIG, file::SPECIAL_TOKENS_MAP, file::ADDED_TOKENS];

/// The existing files (as `has` reports) that a tokenizer is read from; empty if there is no tokenizer.
pub(crate) fn tokenizer_files(has: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let whole = TOKENIZERS.into_iter().find(|set| set.iter().all(|name| has(name)));
    whole.unwrap_or_default().to_vec()
}

/// Every file that a tokenizer may be read from.
pub(crate) fn all_tokenizer_files() -> impl Iterator<Item = &'static str> {
    TOKENIZERS.into_iter().flatten().copied()
}

/// A file of a checkpoint that is in no folder.
pub(crate) enum Held {
    /// In memory.
    Bytes(Arc<dyn Bytes>),
    /// Read range by range. Files with weights are.
    Ranges(Arc<dyn ByteSource>),
}

/// The files of a checkpoint that is in no folder, by name. A browser has no folders.
pub(crate) type Files = BTreeMap<String, Held>;

/// True for files that are read whole when a checkpoint is opened. Files with weights are read range by range, and all others
/// are not read.
pub(crate) fn is_read_whole(name: &str) -> bool {
    let others = [file::CONFIG, file::INDEX, file::GENERATION_CONFIG, file::ADAPTER_CONFIG].into_iter();
    others.chain(all_tokenizer_files()).chain(COMPANIONS).any(|known| known == name)
}

/// A checkpoint's folder, on the disk or given as files.
#[derive(Clone)]
pub(crate) struct ModelDir {
    /// For given files, the model's name, which messages show.
    folder: PathBuf,
    files: Option<Arc<Files>>,
}

impl ModelDir {
    pub(crate) fn new(folder: &Path) -> ModelDir {
        ModelDir { folder: folder.into(), files: None }
    }

    /// A folder that exists only as these files.
    pub(crate) fn of_files(name: &str, files: Arc<Files>) -> ModelDir {
        ModelDir { folder: name.into(), files: Some(files) }
    }

    /// A given file; `None` for a folder on the disk.
    ///
    /// # Errors
    /// If there is no such file among the given ones.
    fn held(&self, name: &str) -> Option<std::io::Result<&Held>> {
        let missing = || std::io::Error::new(ErrorKind::NotFound, "there is no such file");
        self.files.as_ref().map(|files| files.get(name).ok_or_else(missing))
    }

    /// Opens a file of which ranges are to be read. A file on the disk is mapped into memory.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(crate) fn source(&self, name: &str) -> std::io::Result<Arc<dyn ByteSource>> {
        let bytes: Arc<dyn Bytes> = match self.held(name) {
            Some(held) => match held? {
                Held::Ranges(source) => return Ok(source.clone()),
                Held::Bytes(bytes) => bytes.clone(),
            },
            None => Arc::new(Mapped::open(&self.path(name))?),
        };
        Ok(Arc::new(bytes))
    }

    /// Reads a file whole.
    ///
    /// # Errors
    /// As [`read_file`]; also for a given file that is read range by range.
    pub(crate) fn read(&self, name: &str) -> std::io::Result<Vec<u8>> {
        match self.held(name) {
            Some(held) => match held? {
                Held::Bytes(bytes) => Ok(bytes.bytes().to_vec()),
                Held::Ranges(_) => Err(std::io::Error::new(ErrorKind::Unsupported, "it is read range by range")),
            },
            None => read_file(&self.path(name)),
        }
    }

    /// Reads a JSON file. Invalid UTF-8 is replaced, so that it becomes a JSON error with a line and column.
    ///
    /// # Errors
    /// [`WeightsError::Io`].
    pub(crate) fn read_text(&self, name: &str) -> Result<String, WeightsError> {
        let bytes = self.read(name).map_err(|source| WeightsError::Io { path: self.path(name), source })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Whether the folder has an entry of this name, a file or anything else.
    pub(crate) fn has(&self, name: &str) -> bool {
        match &self.files {
            Some(files) => files.contains_key(name),
            None => self.path(name).exists(),
        }
    }

    /// Every name in the folder.
    pub(crate) fn names(&self) -> Vec<String> {
        if let Some(files) = &self.files {
            return files.keys().cloned().collect();
        }
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The names of the files with the weights.
    ///
    /// # Errors
    /// [`WeightsError`] describes what the folder has instead.
    pub(crate) fn weights(&self) -> Result<Vec<String>, WeightsError> {
        if self.has(file::WEIGHTS) {
            return Ok(vec![file::WEIGHTS.into()]);
        }
        if self.has(file::INDEX) {
            return shards(&self.path(file::INDEX), &self.read_text(file::INDEX)?);
        }
        Err(WeightsError::NoWeights { folder: self.folder.clone(), hint: self.hint() })
    }

    /// Whether all files with the weights exist.
    pub(crate) fn has_weights(&self) -> bool {
        self.weights().is_ok_and(|files| files.iter().all(|name| self.has(name)))
    }

    pub(crate) fn has_tokenizer(&self) -> bool {
        !tokenizer_files(|name| self.has(name)).is_empty()
    }

    /// The paths of the files other than the weights that are read if they exist.
    pub(crate) fn beside_weights(&self) -> impl Iterator<Item = PathBuf> {
        let names = [file::CONFIG, file::INDEX, file::GENERATION_CONFIG].into_iter();
        names.chain(all_tokenizer_files()).chain(COMPANIONS).map(|name| self.path(name))
    }

    /// What a folder without readable weights seems to be, and what to do.
    pub(crate) fn hint(&self) -> String {
        if let Some(newest) = self.newest_checkpoint() {
            return format!("it is a Trainer's folder, and its newest checkpoint is {}: give that", newest.display());
        }
        match Instead::of(&self.names()) {
            Some(Instead::Adapter) => self.adapter(),
            Some(instead) => instead.advice(&self.folder.display().to_string()),
            None => "is it the folder of a Hugging Face checkpoint?".into(),
        }
    }

    /// The checkpoint-N with the highest N that has a config.json, as Trainer writes them.
    fn newest_checkpoint(&self) -> Option<PathBuf> {
        let number = |name: &String| name.strip_prefix("checkpoint-")?.parse::<u64>().ok();
        let mut found: Vec<(u64, String)> =
            self.names().into_iter().filter_map(|name| Some((number(&name)?, name))).collect();
        found.sort();
        let whole = |name: &String| self.path(name).join(file::CONFIG).exists();
        found.into_iter().rev().map(|(_, name)| name).find(whole).map(|name| self.path(&name))
    }

    /// Advice for an adapter's folder.
    fn adapter(&self) -> String {
        let text = self.read_text(file::ADAPTER_CONFIG).unwrap_or_default();
        let fields: Value = serde_json::from_str(&text).unwrap_or_default();
        let field = |name: &str| fields.get(name).and_then(Value::as_str);
        let folder = self.folder.display();
        let of = field("base_model_name_or_path").map_or(String::new(), |base| format!(" of {base}"));
        match field("peft_type") {
            None | Some("LORA") => {
                let tokenizer = if self.has_tokenizer() { None } else { field("base_model_name_or_path") };
                let tokenizer = tokenizer.map_or(folder.to_string(), str::to_string);
                format!(
                    "it is a LoRA adapter{of} (adapter_config.json), not a whole model; merge it once with python -c \"from \
                     peft import AutoPeftModelForCausalLM as M; from transformers import AutoTokenizer as T; \
                     M.from_pretrained('{folder}').merge_and_unload().save_pretrained('{folder}-merged'); \
                     T.from_pretrained('{tokenizer}').save_pretrained('{folder}-merged')\" and give {folder}-merged"
                )
            }
            Some(kind) => format!(
                "it is an adapter{of} of the kind {kind} (adapter_config.json), not a whole model; give the model that it \
                 belongs to, or one that it was merged into"
            ),
        }
    }
}

/// What a folder has instead of safetensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Instead {
    /// An adapter of another model.
    Adapter,
    /// `pytorch_model.bin`, or its first shard.
    Pickle(String),
    Gguf(String),
    Onnx(String),
    TensorFlow(String),
    Flax(String),
    /// Shards without an index.
    NoIndex(String),
    /// One safetensors file of another name.
    Renamed(String),
    /// A pickle of another name.
    OtherPickle(String),
}

impl Instead {
    /// Judges by the names of a folder's files; `None` if no name is known.
    pub(crate) fn of(names: &[String]) -> Option<Instead> {
        let ends = |ends: &[&str]| names.iter().find(|name| ends.iter().any(|end| name.ends_with(end))).cloned();
        let is = |wanted: &[&str]| names.iter().find(|name| wanted.contains(&name.as_str())).cloned();
        if is(&[file::ADAPTER_CONFIG]).is_some() {
            return Some(Instead::Adapter);
        }
        let shard = names.iter().find(|n| n.starts_with("model-") && n.contains("-of-") && n.ends_with(".safetensors"));
        let pickle = names.iter().find(|name| name.starts_with("pytorch_model") && name.ends_with(".bin"));
        let mut safetensors = names.iter().filter(|name| name.ends_with(".safetensors") && *name != file::WEIGHTS);
        let only = safetensors.next().filter(|_| safetensors.next().is_none());
        // Trainer's state for resuming, which is not a model.
        let other = |name: &&String| {
            let training =
                ["optimizer.", "scheduler.", "rng_state", "scaler."].iter().any(|start| name.starts_with(start));
            !training && [".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end))
        };
        let first = [
            shard.cloned().map(Instead::NoIndex),
            only.cloned().map(Instead::Renamed),
            pickle.cloned().map(Instead::Pickle),
            ends(&[".gguf"]).map(Instead::Gguf),
            is(&["tf_model.h5"]).or(ends(&[".h5", ".ckpt.index"])).map(Instead::TensorFlow),
            ends(&[".msgpack"]).map(Instead::Flax),
            ends(&[".onnx"]).map(Instead::Onnx),
            names.iter().find(other).cloned().map(Instead::OtherPickle),
        ];
        first.into_iter().flatten().next()
    }

    /// What the file is and what to do with it. `folder` is the argument for transformers: a folder or a hub name.
    pub(crate) fn advice(&self, folder: &str) -> String {
        let convert = |arguments: &str| {
            format!(
                "python -c \"from transformers import GPT2LMHeadModel as M; \
                 M.from_pretrained('{folder}'{arguments}).save_pretrained('{folder}')\""
            )
        };
        match self {
            Instead::Adapter => {
                "it is a LoRA adapter or another one (adapter_config.json), not a whole model; merge it into its model with \
                 peft's merge_and_unload() and give the folder of that"
                    .into()
            }
            Instead::Pickle(name) => format!(
                "its {name} is a pickle, which can run code, so actscope does not read it; convert it once with {}",
                convert("")
            ),
            Instead::Gguf(name) => format!(
                "its {name} is a GGUF file, which actscope does not read; give the checkpoint that it was made of, or convert \
                 it once (what was lost by quantizing stays lost) with {}",
                convert(&format!(", gguf_file='{name}'"))
            ),
            Instead::TensorFlow(name) if name.ends_with(".index") => format!(
                "its {name} is a TensorFlow 1 checkpoint, as OpenAI published GPT-2, which actscope does not read; the same \
                 models are on the hub as gpt2, gpt2-medium, gpt2-large and gpt2-xl"
            ),
            Instead::TensorFlow(name) => format!(
                "its {name} is a TensorFlow checkpoint, which actscope does not read; convert it once, with tensorflow and a \
                 transformers below 5, with {}",
                convert(", from_tf=True")
            ),
            Instead::Flax(name) => format!(
                "its {name} is a Flax checkpoint, which actscope does not read; convert it once, with flax and a transformers \
                 below 5, with {}",
                convert(", from_flax=True")
            ),
            Instead::Onnx(name) => format!(
                "its {name} is an ONNX graph, which actscope does not read; give the checkpoint that it was exported from"
            ),
            Instead::NoIndex(name) => {
                format!("it has {name} and no {}, which says what is where; fetch it as well", file::INDEX)
            }
            Instead::Renamed(name) => format!("if {name} holds the weights, name it {}", file::WEIGHTS),
            Instead::OtherPickle(name) => format!(
                "its {name} is a pickle, which can run code, so actscope does not read it; load it in Python and save the \
                 model with save_pretrained"
            ),
        }
    }
}

/// [`Kind::of`] the beginning of a file.
pub(crate) fn kind_of_file(path: &Path) -> Option<Kind> {
    be_a_file(path).ok()?;
    let mut start = Vec::new();
    std::fs::File::open(path).ok()?.take(Kind::BYTES).read_to_end(&mut start).ok()?;
    Kind::of(&start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_first_bytes() {
        for (bytes, kind) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"[..], Some(Kind::LfsPointer)),
            (b"\n <!DOCTYPE html><html>", Some(Kind::Html)),
            (b"<HTML>", Some(Kind::Html)),
            (b"GGUF\x03\0\0\0", Some(Kind::Gguf)),
            (b"PK\x03\x04", Some(Kind::Zip)),
            (b"{\"a\": 1}", None),
            (b"", None),
        ] {
            assert_eq!(Kind::of(bytes), kind, "{bytes:?}");
        }
    }

    #[test]
    fn a_folder_is_known_by_its_names() {
        let of = |names: &[&str]| Instead::of(&names.iter().map(|name| name.to_string()).collect::<Vec<_>>());
        assert_eq!(of(&["config.json", "README.md"]), None);
        assert_eq!(of(&["adapter_config.json", "adapter_model.safetensors"]), Some(Instead::Adapter));
        let shard = "pytorch_model-00001-of-00002.bin";
        assert_eq!(of(&[shard, "pytorch_model.bin.index.json"]), Some(Instead::Pickle(shard.into())));
        assert_eq!(of(&["gpt2-q4.gguf"]), Some(Instead::Gguf("gpt2-q4.gguf".into())));
        assert_eq!(of(&["tf_model.h5", "vocab.json"]), Some(Instead::TensorFlow("tf_model.h5".into())));
        assert_eq!(of(&["weights.safetensors"]), Some(Instead::Renamed("weights.safetensors".into())));
        assert_eq!(of(&["a.safetensors", "b.safetensors"]), None);
    }
}
