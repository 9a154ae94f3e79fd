//! A checkpoint's tensors. Maps the files into memory, finds tensors by name, and checks every name and shape against
//! `config.json` before anything is computed. Owns the file formats (one safetensors file, or shards with an index) and
//! the fingerprint. Weights are not copied, except f64 weights, which are converted to f32 at first use. Read next:
//! `params.rs`, which loads tensors onto a device block by block.
//!
//! Names are Hugging Face's without the optional prefix `transformer.`. Conv1D weights are [in, out] and stay so.

use crate::config::{Config, ConfigError};
use crate::device::{Blob, Bytes, Dtype, Part, StoredWeight};
use crate::file_kind::Kind;
use crate::model::model_dir::{ModelDir, be_a_file, file};
use crate::model::process::{self, Process};
use crate::text::hex;
use memmap2::Mmap;
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use thiserror::Error;

/// Why a checkpoint cannot be used.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// config.json is invalid.
    #[error("{folder}: {source}")]
    Config {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
    /// The folder has no weights in a supported format.
    #[error("{folder} has no model.safetensors and no model.safetensors.index.json; {hint}")]
    NoWeights {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// What to do.
        hint: String,
    },
    /// The folder has no config.json.
    #[error("{folder} has no config.json; {hint}")]
    NoConfig {
        /// The folder.
        folder: PathBuf,
        /// What the folder seems to be, and what to do.
        hint: String,
    },
    /// A file whose content is of another kind than its name says.
    #[error("{file} is not what its name says: it is {kind}")]
    Kind {
        /// The file.
        file: String,
        /// What it is, and what to do.
        kind: String,
    },
    /// Not a safetensors file, or a damaged one.
    #[error("{file} is not a whole safetensors file: {detail}; fetch it again")]
    Format {
        /// The file.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// The index of a sharded checkpoint is invalid.
    #[error("{file}: {detail}; fetch the checkpoint again")]
    Index {
        /// The index file.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// A required tensor is missing.
    #[error("the checkpoint lacks the tensor {name:?}, which config.json calls for")]
    Missing {
        /// The tensor's name.
        name: String,
    },
    /// A tensor that this GPT-2 does not have.
    #[error(
        "the tensor {name:?} in {file} is not part of the GPT-2 that config.json describes; is it the config.json of another checkpoint?"
    )]
    Unexpected {
        /// The tensor's name.
        name: String,
        /// The file it is in.
        file: String,
    },
    /// An adapter's tensor beside those of its model.
    #[error(
        "the tensor {name:?} in {file} belongs to a LoRA adapter that was not merged into its model; merge it with peft's \
         merge_and_unload(), and save what that returns"
    )]
    Adapter {
        /// The tensor's name.
        name: String,
        /// The file it is in.
        file: String,
    },
    /// A tensor's shape differs from the one that follows from config.json.
    #[error("the tensor {name:?} has shape {found:?} and config.json calls for {expected:?}")]
    Shape {
        /// The tensor's name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that follows from config.json.
        expected: Vec<usize>,
    },
    /// A tensor is stored in an unsupported data type.
    #[error("the tensor {name:?} is stored as {found}; actscope reads F64, F32, F16 and BF16")]
    Dtype {
        /// The tensor's name.
        name: String,
        /// The file's name of the data type.
        found: String,
    },
    /// The file was changed after it was opened.
    #[error(
        "{file} was changed while it was read, so what was computed from it means nothing; run again, and replace a checkpoint in use by renaming a new one over it"
    )]
    Changed {
        /// The file.
        file: String,
    },
}

/// A memory-mapped file. The map is read-only, but another process can change the file while it is mapped:
///
/// - If the file is *replaced* (a new one is renamed over it, as downloads do), the map still shows the old contents.
/// - If the file is *changed* in place, or truncated and filled again, [`Checkpoint::check_unchanged`] detects it at
///   the end of the run by size and modification time, and the run fails.
/// - If the file is *truncated*, reads beyond its new end fail. On Unix they raise the signal SIGBUS, which a `Result`
///   cannot carry. The binary catches it, prints the cause, deletes unfinished output files and exits with code 1. A
///   program that uses the library receives the signal.
///
/// A stronger guarantee needs a full copy in memory, which the map avoids.
struct Mapped {
    map: Mmap,
    file: std::fs::File,
    /// Size and modification time when the file was opened.
    opened: (u64, Option<std::time::SystemTime>),
}

impl Mapped {
    fn open(path: &Path) -> std::io::Result<Mapped> {
        be_a_file(path)?;
        let file = std::fs::File::open(path)?;
        let opened = size_and_time(&file)?;
        // SAFETY: see the three cases above.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Mapped { map, file, opened })
    }
}

fn size_and_time(file: &std::fs::File) -> std::io::Result<(u64, Option<std::time::SystemTime>)> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.modified().ok()))
}

impl Bytes for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn unchanged(&self) -> bool {
        size_and_time(&self.file).is_ok_and(|now| now == self.opened)
    }

    #[cfg(unix)]
    fn release(&self, range: Range<usize>) {
        use memmap2::UncheckedAdvice;
        // SAFETY: the map is a read-only view of a file, so the system reads a dropped page from the file again. If the
        // call fails, the memory just stays in use.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
    }
}

/// Weights stored as f64, converted to f32. They are converted at first use, because a run may not need all of a file.
struct Narrowed {
    stored: Blob,
    file: Arc<dyn Bytes>,
    narrow: OnceLock<Vec<u8>>,
}

impl Bytes for Narrowed {
    fn bytes(&self) -> &[u8] {
        self.narrow.get_or_init(|| {
            let narrow = |value: &[u8; 8]| (f64::from_le_bytes(*value) as f32).to_le_bytes();
            let narrowed = self.stored.bytes().as_chunks::<8>().0.iter().flat_map(narrow).collect();
            self.stored.release();
            narrowed
        })
    }

    fn size(&self) -> usize {
        self.stored.size() / 2
    }

    fn unchanged(&self) -> bool {
        self.file.unchanged()
    }
}

/// A checkpoint, opened and checked.
pub struct Checkpoint {
    config: Config,
    tensors: HashMap<String, StoredWeight>,
    notes: Vec<String>,
    /// How the tensors were changed since they were read.
    process: Process,
    /// What the fingerprint covers: config.json, then per file its name, its bytes, and the length of its header.
    config_json: String,
    files: Vec<(String, Arc<dyn Bytes>, usize)>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Opens a folder that holds `config.json` and safetensors.
    ///
    /// # Errors
    /// [`WeightsError`] names the file or tensor at fault. Memory use is bounded by the sizes of the files, whatever
    /// sizes their headers state.
    pub fn open(folder: &Path) -> Result<Checkpoint, WeightsError> {
        Checkpoint::of_dir(&ModelDir::new(folder))
    }

    /// [`Checkpoint::open`] for a folder on the disk or in memory.
    pub(crate) fn of_dir(dir: &ModelDir) -> Result<Checkpoint, WeightsError> {
        let folder = dir.folder();
        if !dir.has(file::CONFIG) {
            return Err(WeightsError::NoConfig { folder: folder.into(), hint: dir.hint() });
        }
        let config_json = read(dir, file::CONFIG)?;
        // Read config.json first: for another architecture, that error is more helpful than one about missing weights.
        let config = parse(folder, &config_json)?;
        let names = dir.weights()?;
        let files = names
            .into_iter()
            .map(|name| {
                let path = dir.path(&name);
                let map = || Mapped::open(&path).map(|mapped| Arc::new(mapped) as Arc<dyn Bytes>);
                let bytes = dir.held(&name).unwrap_or_else(map);
                let bytes = bytes.map_err(|source| WeightsError::Io { path: path.clone(), source })?;
                Ok((path.display().to_string(), bytes))
            })
            .collect::<Result<_, WeightsError>>()?;
        let mut checkpoint = Checkpoint::from_parts(config, config_json, files)?;
        if dir.has(file::ADAPTER_CONFIG) {
            let note =
                format!("{} is not used: the weights are read as they stand", dir.path(file::ADAPTER_CONFIG).display());
            checkpoint.notes.push(note);
        }
        Ok(checkpoint)
    }

    /// A checkpoint whose files are already in memory, such as the embedded one.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(name: &str, config_json: &str, safetensors: Arc<dyn Bytes>) -> Result<Checkpoint, WeightsError> {
        let file = format!("{name}/{}", file::WEIGHTS);
        let config = parse(Path::new(name), config_json)?;
        Checkpoint::from_parts(config, config_json.into(), vec![(file, safetensors)])
    }

    fn from_parts(
        config: Config,
        config_json: String,
        files: Vec<(String, Arc<dyn Bytes>)>,
    ) -> Result<Checkpoint, WeightsError> {
        let mut tensors = Vec::new();
        let mut shared = Vec::new();
        let mut with_headers = Vec::new();
        for (file, bytes) in files {
            let header = headers(&file, &bytes, &mut tensors, &mut shared)?;
            with_headers.push((file, bytes, header));
        }
        let mut notes = Vec::new();
        let found = by_name(&config, tensors, &shared, &mut notes)?;
        let tensors = check(&config, found, &mut notes)?;
        Ok(Checkpoint { config, tensors, notes, process: Process::NONE, config_json, files: with_headers })
    }

    /// The checkpoint with its weights processed. They are computed when they are first read, and kept as f32 beside the
    /// file's own.
    ///
    /// # Errors
    /// [`WeightsError::Missing`] for a checkpoint that lacks a weight.
    pub fn processed(self: &Arc<Checkpoint>, steps: Process) -> Result<Checkpoint, WeightsError> {
        let mut tensors = self.tensors.clone();
        tensors.extend(process::weights(self, steps)?.into_iter().map(|weight| (weight.name.clone(), weight)));
        let (config, notes, config_json) = (self.config.clone(), self.notes.clone(), self.config_json.clone());
        Ok(Checkpoint { config, tensors, notes, process: steps, config_json, files: self.files.clone() })
    }

    /// How the weights were processed after they were read.
    pub fn process(&self) -> Process {
        self.process
    }

    /// Remarks for the user about how the weights were read, one line each: ignored tensors, removed prefixes,
    /// converted data types.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The sizes and switches of `config.json`.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes of all weight files.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes, _)| bytes.bytes().len() as u64).sum()
    }

    /// The number of parameters.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|w| w.rows * w.cols).sum()
    }

    /// The weight files, as paths or names.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|(file, ..)| file.as_str())
    }

    /// The data type of the token embedding, reported as the checkpoint's.
    pub fn dtype(&self) -> Dtype {
        self.tensors.get("wte.weight").map_or(Dtype::F32, |w| w.dtype)
    }

    /// A tensor by Hugging Face's name, without `transformer.`.
    ///
    /// # Errors
    /// [`WeightsError::Missing`] for a name that this GPT-2 does not have.
    pub fn tensor(&self, name: &str) -> Result<&StoredWeight, WeightsError> {
        self.tensors.get(name).ok_or_else(|| WeightsError::Missing { name: name.into() })
    }

    /// The unembedding, which maps the final LayerNorm's output to logits; `None` when it is the token embedding.
    pub fn untied_unembedding(&self) -> Option<&StoredWeight> {
        let (head, wte) = (self.tensors.get("lm_head.weight")?, self.tensors.get("wte.weight")?);
        (head.dtype != wte.dtype || head.blob.bytes() != wte.blob.bytes()).then_some(head)
    }

    /// The unembedding as stored [V, D]: the head of its own, or the token embedding.
    ///
    /// # Errors
    /// [`WeightsError::Missing`] for a checkpoint without a token embedding.
    pub fn unembedding(&self) -> Result<&StoredWeight, WeightsError> {
        self.untied_unembedding().map_or_else(|| self.tensor("wte.weight"), Ok)
    }

    /// The unembedding's bias [1, V], which only processed weights have.
    pub fn unembedding_bias(&self) -> Option<&StoredWeight> {
        self.tensors.get(process::HEAD_BIAS)
    }

    /// Fails when a weight file was changed since it was opened: see `Mapped`.
    ///
    /// # Errors
    /// [`WeightsError::Changed`] names the file.
    pub fn check_unchanged(&self) -> Result<(), WeightsError> {
        match self.files.iter().find(|(_, bytes, _)| !bytes.unchanged()) {
            Some((file, ..)) => Err(WeightsError::Changed { file: file.clone() }),
            None => Ok(()),
        }
    }

    /// The sha256, in hex, of config.json and of each file's name, size and header. With `every_byte` it also covers
    /// the weights, and so reads all of them.
    pub fn fingerprint(&self, every_byte: bool) -> String {
        let mut hash = Sha256::new();
        hash.update(self.config_json.as_bytes());
        for (file, bytes, header) in &self.files {
            let bytes = bytes.bytes();
            let name = Path::new(file).file_name().unwrap_or_default();
            hash.update(name.as_encoded_bytes());
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(if every_byte { bytes } else { &bytes[..*header] });
        }
        hex(&hash.finalize())
    }
}

/// A tensor as a header describes it, before any check.
#[derive(Clone)]
struct Found {
    file: String,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    owner: Arc<dyn Bytes>,
    range: Range<usize>,
}

fn parse(folder: &Path, config_json: &str) -> Result<Config, WeightsError> {
    Config::from_json(config_json).map_err(|source| WeightsError::Config { folder: folder.into(), source })
}

/// Reads a JSON file of a checkpoint.
pub(crate) fn read(dir: &ModelDir, name: &str) -> Result<String, WeightsError> {
    let bytes = dir.read(name).map_err(|source| WeightsError::Io { path: dir.path(name), source })?;
    // Lossy, so that an invalid byte becomes a JSON error with a line and column.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The shard files that an index names, without duplicates, all in the index's folder. `index` is the index's path, for
/// messages.
///
/// # Errors
/// [`WeightsError::Index`] when the index is invalid or names a file outside its folder.
pub fn shards(index: &Path, text: &str) -> Result<Vec<String>, WeightsError> {
    let fail = |detail: String| WeightsError::Index { file: index.display().to_string(), detail };
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| match Kind::of(text.as_bytes()) {
        Some(kind) => WeightsError::Kind { file: index.display().to_string(), kind: kind.to_string() },
        None => fail(format!("not JSON: {e}")),
    })?;
    let map = value.get("weight_map").and_then(|m| m.as_object()).ok_or_else(|| fail("it has no weight_map".into()))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let file = file.as_str().ok_or_else(|| fail(format!("the entry of {tensor:?} is not a file name")))?;
        // A shard must be in the index's folder. Otherwise a checkpoint could make us read any file.
        let plain = Path::new(file).file_name().is_some_and(|name| name == file) && !file.contains(['/', '\\']);
        if !plain {
            return Err(fail(format!(
                "the tensor {tensor:?} is said to be in {file:?}, which is not a file of this folder"
            )));
        }
        names.insert(file.to_string());
    }
    if names.is_empty() {
        return Err(fail("its weight_map is empty".into()));
    }
    Ok(names.into_iter().collect())
}

/// Adds a file's tensors to `tensors` under their names in the file, and to `shared` the names of tensors that share
/// another tensor's values. Returns the length of the header.
fn headers(
    file: &str,
    owner: &Arc<dyn Bytes>,
    tensors: &mut Vec<(String, Found)>,
    shared: &mut Vec<(String, String)>,
) -> Result<usize, WeightsError> {
    let fail = |detail: String| WeightsError::Format { file: file.into(), detail };
    let bytes = owner.bytes();
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| match Kind::of(bytes) {
        Some(kind) => WeightsError::Kind { file: file.into(), kind: kind.to_string() },
        None => fail(e.to_string()),
    })?;
    let start = header + 8;
    for (name, info) in metadata.tensors() {
        let (from, to) = info.data_offsets;
        let range = start + from..start + to;
        if range.start > range.end || range.end > bytes.len() {
            return Err(fail(format!("the tensor {name:?} reaches beyond the end of the file")));
        }
        let (dtype, shape) = (info.dtype, info.shape.clone());
        tensors.push((name, Found { file: file.into(), dtype, shape, owner: owner.clone(), range }));
    }
    // safetensors.torch.save_model stores shared tensors once. Its metadata maps each other name to the stored one.
    let names = metadata.metadata().iter().flatten();
    shared.extend(names.map(|(name, kept)| (name.clone(), kept.clone())));
    Ok(start)
}

/// Prefixes of names that wrapper modules add: torch.compile, DataParallel, Lightning and trl.
const WRAPPERS: [&str; 4] = ["_orig_mod.", "module.", "model.", "pretrained_model."];

/// Heads of transformers and trl that actscope does not run: text and token classification, multiple choice, question
/// answering, and the value head of reinforcement learning.
const HEADS: [&str; 6] = ["score.", "classifier.", "multiple_choice_head.", "qa_outputs.", "v_head.", "value_head."];

/// The tensors under the names of GPT-2's own modules, without those of other heads.
fn by_name(
    config: &Config,
    tensors: Vec<(String, Found)>,
    shared: &[(String, String)],
    notes: &mut Vec<String>,
) -> Result<HashMap<String, Found>, WeightsError> {
    if let Some((name, tensor)) = tensors.iter().find(|(name, _)| name.contains(".lora_")) {
        return Err(WeightsError::Adapter { name: name.clone(), file: tensor.file.clone() });
    }
    let of_head = |name: &str| HEADS.iter().any(|head| name.starts_with(head));
    let mut prefix = String::new();
    // The loop ends because each iteration makes the prefix longer.
    while let Some(wrapper) = WRAPPERS.iter().find(|wrapper| {
        let mut rest =
            tensors.iter().map(|(name, _)| name.strip_prefix(&*prefix).unwrap_or(name)).filter(|n| !of_head(n));
        let first = rest.next();
        first.into_iter().chain(rest).all(|name| name.starts_with(**wrapper)) && first.is_some()
    }) {
        prefix += wrapper;
    }
    if !prefix.is_empty() {
        notes.push(format!("the names of all tensors begin with {prefix:?}, which is removed"));
    }
    let own = |name: &str| {
        let name = name.strip_prefix(&*prefix).unwrap_or(name);
        name.strip_prefix("transformer.").unwrap_or(name).to_string()
    };
    let mut found: HashMap<String, Found> = HashMap::new();
    let mut left_out = Vec::new();
    for (name, tensor) in tensors {
        let file = tensor.file.clone();
        if of_head(&own(&name)) {
            left_out.push(own(&name));
        } else if let Some(other) = found.insert(own(&name), tensor) {
            let detail = format!("the tensor {name:?} is also in {}", other.file);
            return Err(WeightsError::Format { file, detail });
        }
    }
    let tied = Some(("wte.weight".to_string(), "lm_head.weight".to_string())).filter(|_| config.tie_word_embeddings);
    for (name, kept) in shared.iter().map(|(name, kept)| (own(name), own(kept))).chain(tied) {
        if let Some(tensor) = found.get(&kept).filter(|_| !found.contains_key(&name)) {
            found.insert(name, tensor.clone());
        }
    }
    if !left_out.is_empty() {
        left_out.sort();
        let logits =
            if found.contains_key("lm_head.weight") { "" } else { "; logits are those of the token embedding" };
        notes.push(format!("left out, being of a head that actscope does not run: {}{logits}", few(&left_out)));
    }
    Ok(found)
}

/// Names on one line; only the first ones if there are many.
fn few(names: &[String]) -> String {
    const MOST: usize = 6;
    let shown = names.iter().take(MOST).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > MOST { format!("{shown} and {} more", names.len() - MOST) } else { shown }
}

/// Name and shape of every tensor that a config always requires: all but `lm_head.weight`.
pub(crate) fn names_and_shapes(config: &Config) -> impl Iterator<Item = (String, Vec<usize>)> {
    let (d, inner) = (config.n_embd, config.n_inner);
    let named = |(name, shape): (&str, Vec<usize>)| (name.to_string(), shape);
    let of_layer = move |layer: usize| {
        let parts = [
            ("ln_1.weight", vec![d]),
            ("ln_1.bias", vec![d]),
            ("attn.c_attn.weight", vec![d, 3 * d]),
            ("attn.c_attn.bias", vec![3 * d]),
            ("attn.c_proj.weight", vec![d, d]),
            ("attn.c_proj.bias", vec![d]),
            ("ln_2.weight", vec![d]),
            ("ln_2.bias", vec![d]),
            ("mlp.c_fc.weight", vec![d, inner]),
            ("mlp.c_fc.bias", vec![inner]),
            ("mlp.c_proj.weight", vec![inner, d]),
            ("mlp.c_proj.bias", vec![d]),
        ];
        parts.map(|(part, shape)| (format!("h.{layer}.{part}"), shape))
    };
    let embeddings = [("wte.weight", vec![config.vocab_size, d]), ("wpe.weight", vec![config.n_positions, d])];
    let last = [("ln_f.weight", vec![d]), ("ln_f.bias", vec![d])];
    embeddings.map(named).into_iter().chain((0..config.n_layer).flat_map(of_layer)).chain(last.map(named))
}

/// Compares the tensors found with those that `config` requires. It stops at the first missing one, so that an absurd
/// `n_layer` costs no time.
fn check(
    config: &Config,
    mut found: HashMap<String, Found>,
    notes: &mut Vec<String>,
) -> Result<HashMap<String, StoredWeight>, WeightsError> {
    let has_lm_head = found.contains_key("lm_head.weight");
    let mut doubles = 0;
    let mut tensors = HashMap::new();
    let mut take = |name: String, shape: &[usize]| -> Result<(), WeightsError> {
        let weight = match found.remove(&name) {
            Some(tensor) => {
                doubles += usize::from(tensor.dtype == safetensors::Dtype::F64);
                weight(&name, tensor, shape)?
            }
            None => return Err(WeightsError::Missing { name }),
        };
        tensors.insert(name, weight);
        Ok(())
    };
    for (name, shape) in names_and_shapes(config) {
        take(name, &shape)?;
    }
    // It may be absent only if it is tied. If it is present, it is used whatever the config says, as in transformers.
    if has_lm_head || !config.tie_word_embeddings {
        take("lm_head.weight".into(), &[config.vocab_size, config.n_embd])?;
    }

    // Buffers of the causal mask, which many files contain and nothing uses.
    found.retain(|name, _| {
        !(name.starts_with("h.") && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")))
    });
    if let Some((name, tensor)) = found.into_iter().min_by(|a, b| a.0.cmp(&b.0)) {
        return Err(WeightsError::Unexpected { name, file: tensor.file });
    }
    if doubles > 0 {
        notes.push(format!("{doubles} of {} tensors are stored as F64 and are converted to F32", tensors.len()));
    }
    Ok(tensors)
}

fn weight(name: &str, found: Found, shape: &[usize]) -> Result<StoredWeight, WeightsError> {
    if found.shape != shape {
        return Err(WeightsError::Shape { name: name.into(), found: found.shape, expected: shape.into() });
    }
    let blob = Blob::new(found.owner.clone(), found.range);
    let (dtype, blob) = match found.dtype {
        safetensors::Dtype::F32 => (Dtype::F32, blob),
        safetensors::Dtype::F16 => (Dtype::F16, blob),
        safetensors::Dtype::BF16 => (Dtype::Bf16, blob),
        safetensors::Dtype::F64 => {
            let narrowed = Narrowed { stored: blob, file: found.owner, narrow: OnceLock::new() };
            let length = narrowed.size();
            (Dtype::F32, Blob::new(Arc::new(narrowed), 0..length))
        }
        other => return Err(WeightsError::Dtype { name: name.into(), found: format!("{other:?}") }),
    };
    let (rows, cols) = match *shape {
        [rows, cols] => (rows, cols),
        [cols] => (1, cols),
        _ => return Err(WeightsError::Shape { name: name.into(), found: found.shape, expected: shape.into() }),
    };
    Ok(StoredWeight { name: name.into(), part: Part::default(), dtype, rows, cols, blob })
}
