//! A checkpoint's tensors: mapped, found by name, every name and shape checked against `config.json` before anything is
//! computed. Owns the file formats (one safetensors file, or shards with an index) and the fingerprint; copies nothing but
//! weights in f64, which become f32 when they are first read.
//! Read next: `params.rs`, which brings tensors to a device block by block.
//!
//! Names are Hugging Face's without the optional `transformer.` in front. Conv1D weights are [in, out] and stay so.

use crate::config::{Config, ConfigError};
use crate::device::{Blob, Bytes, Dtype, Part, StoredWeight};
use crate::file_kind::Kind;
use crate::model::model_dir::{ModelDir, be_a_file, file, read_file};
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
        /// What the system said.
        source: std::io::Error,
    },
    /// Something is wrong in config.json.
    #[error("{folder}: {source}")]
    Config {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
    /// The folder has no weights that can be read.
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
        /// What it seems to be, and what to do.
        hint: String,
    },
    /// A file of another kind under a checkpoint's name.
    #[error("{file} is not what its name says: it is {kind}")]
    Kind {
        /// The file.
        file: String,
        /// What it is, and what to do.
        kind: String,
    },
    /// Not a safetensors file, or a broken one.
    #[error("{file} is not a whole safetensors file: {detail}; fetch it again")]
    Format {
        /// The file.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// The index of a sharded checkpoint is broken.
    #[error("{file}: {detail}; fetch the checkpoint again")]
    Index {
        /// The index file.
        file: String,
        /// What is wrong.
        detail: String,
    },
    /// A tensor that this GPT-2 must have is not there.
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
    /// A tensor of another shape than config.json says.
    #[error("the tensor {name:?} has shape {found:?} and config.json calls for {expected:?}")]
    Shape {
        /// The tensor's name.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that follows from config.json.
        expected: Vec<usize>,
    },
    /// Numbers stored in a way that GPT-2 checkpoints do not use.
    #[error("the tensor {name:?} is stored as {found}; actscope reads F64, F32, F16 and BF16")]
    Dtype {
        /// The tensor's name.
        name: String,
        /// The file's name for it.
        found: String,
    },
    /// The file is not the one that was opened any more.
    #[error(
        "{file} was changed while it was read, so what was computed from it means nothing; run again, and replace a checkpoint in use by renaming a new one over it"
    )]
    Changed {
        /// The file.
        file: String,
    },
}

/// A mapped file. The map is read-only and private to us in intent but not in fact. What we promise:
///
/// - A file that is *replaced* (a new one renamed over it, as downloads do) stays as it was for those who have it mapped.
/// - A file that is *changed* in place, or shortened and filled again, is found out at the end of the run by its size and
///   time of change ([`Checkpoint::check_unchanged`]), and the run fails.
/// - A file that is *shortened* makes reads beyond its new end fail as the system sees fit. On Unix that is the signal
///   SIGBUS, which no `Result` can carry: the binary catches it, says what happened, takes away what is half-written and
///   ends with exit code 1; a library's caller gets the signal.
///
/// More would take a full copy in memory, which is what the map saves.
struct Mapped {
    map: Mmap,
    file: std::fs::File,
    /// Size and time of change when it was opened.
    opened: (u64, Option<std::time::SystemTime>),
}

impl Mapped {
    fn open(path: &Path) -> std::io::Result<Mapped> {
        be_a_file(path)?;
        let file = std::fs::File::open(path)?;
        let opened = size_and_time(&file)?;
        // SAFETY: see the promises above.
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
        // SAFETY: the map is a read-only view of a file, so a dropped page holds nothing that the file does not give back.
        // Failure only means that the memory stays in use.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
    }
}

/// Weights that are stored as f64, in f32: rounded when they are first read, since a file may hold more than a run needs.
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
    /// [`WeightsError`] names the file or tensor at fault. Memory use follows the sizes of files, not what they claim.
    pub fn open(folder: &Path) -> Result<Checkpoint, WeightsError> {
        let dir = ModelDir::new(folder);
        if !dir.has(file::CONFIG) {
            return Err(WeightsError::NoConfig { folder: folder.into(), hint: dir.hint() });
        }
        let config_json = read(&dir.path(file::CONFIG))?;
        // Another architecture is named before its weights are missed: that is the reason that counts.
        let config = parse(folder, &config_json)?;
        let names = dir.weights()?;
        let files = names
            .into_iter()
            .map(|name| {
                let path = dir.path(&name);
                let mapped = Mapped::open(&path).map_err(|source| WeightsError::Io { path: path.clone(), source })?;
                Ok((path.display().to_string(), Arc::new(mapped) as Arc<dyn Bytes>))
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
        Ok(Checkpoint { config, tensors, notes, config_json, files: with_headers })
    }

    /// What its user should know of how the weights were read: tensors that were left out, prefixes that were taken off,
    /// numbers that were converted. One line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Sizes and switches.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes of all weight files.
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes, _)| bytes.bytes().len() as u64).sum()
    }

    /// How many numbers the weights hold.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|w| w.rows * w.cols).sum()
    }

    /// The weight files, as paths or names.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|(file, ..)| file.as_str())
    }

    /// The dtype of the token embedding, which stands for the file's.
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

    /// The matrix that turns the final LayerNorm's output into logits, where it is another one than the token embedding.
    pub fn untied_unembedding(&self) -> Option<&StoredWeight> {
        let (head, wte) = (self.tensors.get("lm_head.weight")?, self.tensors.get("wte.weight")?);
        (head.dtype != wte.dtype || head.blob.bytes() != wte.blob.bytes()).then_some(head)
    }

    /// Says no when a weight file is not what it was when it was opened: see the promises at `Mapped`.
    ///
    /// # Errors
    /// [`WeightsError::Changed`] names the file.
    pub fn check_unchanged(&self) -> Result<(), WeightsError> {
        match self.files.iter().find(|(_, bytes, _)| !bytes.unchanged()) {
            Some((file, ..)) => Err(WeightsError::Changed { file: file.clone() }),
            None => Ok(()),
        }
    }

    /// sha256, in hex, over config.json and each file's name, size and header; with `every_byte` over the weights too
    /// (which reads them all).
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
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A tensor as a header describes it, before anything is known to be right.
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

/// A checkpoint's JSON file.
pub(crate) fn read(path: &Path) -> Result<String, WeightsError> {
    let bytes = read_file(path).map_err(|source| WeightsError::Io { path: path.into(), source })?;
    // Lossy: a stray byte then surfaces as a JSON error that names its place.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The shard files that an index (`index`, for messages; its text) names, each once, all of them beside it.
///
/// # Errors
/// [`WeightsError::Index`] for an index that is broken or leads elsewhere.
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
        // A shard is a file beside its index. Anything else would let a checkpoint make us read elsewhere.
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

/// Adds a file's tensors to `tensors` under the names they have there, and to `shared` the names that stand for another
/// tensor of the same values. Gives back the length of its header.
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
    // safetensors.torch.save_model keeps one of several names and notes here which one stands for each of the others.
    let names = metadata.metadata().iter().flatten();
    shared.extend(names.map(|(name, kept)| (name.clone(), kept.clone())));
    Ok(start)
}

/// What modules around a model put in front of every name: torch.compile, DataParallel, Lightning and trl.
const WRAPPERS: [&str; 4] = ["_orig_mod.", "module.", "model.", "pretrained_model."];

/// Heads that transformers and trl put on GPT-2's body and that actscope does not run: the classifiers of texts and of
/// tokens, multiple choice, question answering, and the values of reinforcement learning.
const HEADS: [&str; 6] = ["score.", "classifier.", "multiple_choice_head.", "qa_outputs.", "v_head.", "value_head."];

/// The tensors by the names of GPT-2's own modules, those of other heads left out.
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
    // Each turn makes the prefix longer, and no name is without end.
    while let Some(wrapper) = WRAPPERS.iter().find(|wrapper| {
        let mut rest =
            tensors.iter().map(|(name, _)| name.strip_prefix(&*prefix).unwrap_or(name)).filter(|n| !of_head(n));
        let first = rest.next();
        first.into_iter().chain(rest).all(|name| name.starts_with(**wrapper)) && first.is_some()
    }) {
        prefix += wrapper;
    }
    if !prefix.is_empty() {
        notes.push(format!("the names of all tensors begin with {prefix:?}, which is taken off"));
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

/// Names in a line, the first of them where there are many.
fn few(names: &[String]) -> String {
    const MOST: usize = 6;
    let shown = names.iter().take(MOST).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > MOST { format!("{shown} and {} more", names.len() - MOST) } else { shown }
}

/// Name and shape of every tensor that a config calls for whatever else the file has: all but `lm_head.weight`.
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

/// Holds the tensors found against those that `config` calls for. Walks them in order and ends at the first that is not
/// there, so that an absurd `n_layer` costs nothing.
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
    // Absent only where it is tied. Where it is there, it counts, whatever the config says: transformers does the same.
    if has_lm_head || !config.tie_word_embeddings {
        take("lm_head.weight".into(), &[config.vocab_size, config.n_embd])?;
    }

    // The causal mask's buffers: in many files, in no formula.
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
