//! A checkpoint's tensors. Reads the headers of its files, finds tensors by name, and checks every name and shape against
//! `config.json` before anything is computed. Owns the file formats (one safetensors file, or shards with an index) and
//! the fingerprint. A tensor is read when it is asked for; of a mapped file nothing is copied, except f64 weights, which
//! are converted to f32. Read next: `params.rs`, which loads tensors onto a device block by block.
//!
//! Names are Hugging Face's without the optional prefix `transformer.`. Conv1D weights are [in, out] and stay so.

use crate::config::Config;
use crate::device::{Blob, Bytes, Dtype, Part, StoredWeight};
use crate::file_kind::Kind;
use crate::model::byte_source::{ByteSource, at_once};
use crate::model::model_dir::{ModelDir, file};
use crate::model::process::{self, Process, RawWeights};
pub use crate::model::weights_error::WeightsError;
use crate::text::hex;
use safetensors::tensor::Metadata;
use safetensors::{SafeTensorError, SafeTensors};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// A file with weights.
#[derive(Clone)]
struct File {
    /// Its path or name.
    name: String,
    source: Arc<dyn ByteSource>,
    /// The length of the header, and the header.
    header: Blob,
}

impl File {
    /// Reads the header of a file. For what is no safetensors file, it is as much as shows that.
    async fn open(name: String, source: Arc<dyn ByteSource>) -> Result<File, WeightsError> {
        let read = async |range| read_range(&name, &*source, range).await;
        let length = read(0..source.size().min(8)).await?;
        let header = match length.bytes().first_chunk::<8>().map(|n| u64::from_le_bytes(*n)) {
            Some(n) if n <= MOST_HEADER => read(0..source.size().min(8 + n)).await?,
            _ => length,
        };
        Ok(File { header, name, source })
    }
}

/// The most bytes of a header, as in safetensors itself.
const MOST_HEADER: u64 = 100_000_000;

/// Bytes that are read at a time where all of a file or a tensor is needed only once, such as for its hash.
const PIECE: u64 = 8 << 20;

/// Reads a range of a file, and checks that the source returned all of it.
async fn read_range(file: &str, source: &dyn ByteSource, range: Range<u64>) -> Result<Blob, WeightsError> {
    let (start, expected) = (range.start, range.end - range.start);
    let fail = |source| WeightsError::Io { path: file.into(), source };
    let blob = source.read(range).await.map_err(fail)?;
    if blob.size() as u64 != expected {
        let what = format!("at byte {start} it gave {} bytes in place of {expected}", blob.size());
        return Err(fail(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, what)));
    }
    Ok(blob)
}

/// Reads a file whole.
pub(crate) async fn read_whole(file: &str, source: &dyn ByteSource) -> Result<Vec<u8>, WeightsError> {
    Ok(read_range(file, source, 0..source.size()).await?.bytes().to_vec())
}

/// One tensor: its shape, and where its elements are.
#[derive(Clone)]
struct Tensor {
    rows: usize,
    cols: usize,
    /// The type of its elements when they have been read.
    dtype: Dtype,
    place: Place,
}

/// Where the elements of a tensor are.
#[derive(Clone)]
enum Place {
    /// At these bytes of a file.
    File {
        /// The index of the file.
        file: usize,
        bytes: Range<u64>,
        /// True for f64 elements, which are converted to f32 when they are read.
        doubles: bool,
    },
    /// Computed from the weights of another checkpoint when they are first needed, and kept.
    Processed(OnceLock<Blob>),
}

/// A checkpoint, opened and checked. Tensors are read when they are asked for.
pub struct Checkpoint {
    config: Config,
    tensors: HashMap<String, Tensor>,
    notes: Vec<String>,
    /// For processed weights, the steps and the checkpoint with the weights as they are stored.
    processed: Option<(Process, Arc<Checkpoint>)>,
    /// Whether `lm_head.weight` differs from `wte.weight`. It is found out when it is first needed.
    untied: OnceLock<bool>,
    config_json: String,
    files: Vec<File>,
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
        at_once(Checkpoint::of_dir(&ModelDir::new(folder)))
    }

    /// [`Checkpoint::open`] for a folder on the disk or elsewhere. It waits only for files that are read by ranges.
    pub(crate) async fn of_dir(dir: &ModelDir) -> Result<Checkpoint, WeightsError> {
        let folder = dir.folder();
        if !dir.has(file::CONFIG) {
            return Err(WeightsError::NoConfig { folder: folder.into(), hint: dir.hint() });
        }
        let config_json = dir.read_text(file::CONFIG)?;
        // Read config.json first: for another architecture, that error is more helpful than one about missing weights.
        let config = parse(folder, &config_json)?;
        let names = dir.weights()?;
        let files = names
            .into_iter()
            .map(|name| {
                let path = dir.path(&name);
                let source = dir.source(&name).map_err(|source| WeightsError::Io { path: path.clone(), source })?;
                Ok((path.display().to_string(), source))
            })
            .collect::<Result<_, WeightsError>>()?;
        let mut checkpoint = Checkpoint::of_sources(config, config_json, files).await?;
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
        let source: Arc<dyn ByteSource> = Arc::new(safetensors);
        at_once(Checkpoint::of_sources(config, config_json.into(), vec![(file, source)]))
    }

    async fn of_sources(
        config: Config,
        config_json: String,
        sources: Vec<(String, Arc<dyn ByteSource>)>,
    ) -> Result<Checkpoint, WeightsError> {
        let mut tensors = Vec::new();
        let mut shared = Vec::new();
        let mut files = Vec::new();
        for (name, source) in sources {
            let file = File::open(name, source).await?;
            headers(&file, files.len(), &mut tensors, &mut shared).await?;
            files.push(file);
        }
        let mut notes = Vec::new();
        let found = by_name(&config, tensors, &shared, &files, &mut notes)?;
        let tensors = check(&config, found, &files, &mut notes)?;
        Ok(Checkpoint { config, tensors, notes, processed: None, untied: OnceLock::new(), config_json, files })
    }

    /// The checkpoint with its weights processed. They are computed when they are first read, and kept as f32 beside the
    /// file's own.
    ///
    /// # Errors
    /// [`WeightsError::Missing`] for a checkpoint that lacks a weight.
    pub fn processed(self: &Arc<Checkpoint>, steps: Process) -> Result<Checkpoint, WeightsError> {
        let mut tensors = self.tensors.clone();
        for name in process::changed(&self.config, steps) {
            let [rows, cols] = match name.as_str() {
                process::HEAD => [self.config.vocab_size, self.config.n_embd],
                process::HEAD_BIAS => [1, self.config.vocab_size],
                name => self.shape(name)?,
            };
            tensors.insert(name, Tensor { rows, cols, dtype: Dtype::F32, place: Place::Processed(OnceLock::new()) });
        }
        let (config, notes, config_json) = (self.config.clone(), self.notes.clone(), self.config_json.clone());
        let (processed, untied, files) = (Some((steps, self.clone())), OnceLock::new(), self.files.clone());
        Ok(Checkpoint { config, tensors, notes, processed, untied, config_json, files })
    }

    /// How the weights were processed after they were read.
    pub fn process(&self) -> Process {
        self.processed.as_ref().map_or(Process::NONE, |(steps, _)| *steps)
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
        self.files.iter().map(|file| file.source.size()).sum()
    }

    /// The number of parameters, as the files have them. A tensor under two names counts once.
    pub fn parameters(&self) -> usize {
        if let Some((_, raw)) = &self.processed {
            return raw.parameters();
        }
        let twice = self.tensors.get(HEAD).filter(|_| self.head_is_wte()).map_or(0, |head| head.rows * head.cols);
        self.tensors.values().map(|tensor| tensor.rows * tensor.cols).sum::<usize>() - twice
    }

    /// Whether `lm_head.weight` and the token embedding are the same bytes of the same file.
    fn head_is_wte(&self) -> bool {
        match [HEAD, WTE].map(|name| self.tensors.get(name).map(|tensor| &tensor.place)) {
            [Some(Place::File { file: a, bytes: x, .. }), Some(Place::File { file: b, bytes: y, .. })] => {
                (a, x) == (b, y)
            }
            _ => false,
        }
    }

    /// The weight files, as paths or names.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| file.name.as_str())
    }

    /// The data type of the token embedding, reported as the checkpoint's.
    pub fn dtype(&self) -> Dtype {
        self.tensors.get(WTE).map_or(Dtype::F32, |tensor| tensor.dtype)
    }

    fn find(&self, name: &str) -> Result<&Tensor, WeightsError> {
        self.tensors.get(name).ok_or_else(|| WeightsError::Missing { name: name.into() })
    }

    /// The shape [rows, cols] of a tensor.
    pub(crate) fn shape(&self, name: &str) -> Result<[usize; 2], WeightsError> {
        self.find(name).map(|tensor| [tensor.rows, tensor.cols])
    }

    /// Reads a tensor, under Hugging Face's name without `transformer.`. Of a file that is mapped, nothing is copied.
    ///
    /// # Errors
    /// [`WeightsError::Missing`] for a name that this GPT-2 does not have, [`WeightsError::Io`] if its bytes cannot be read.
    pub async fn tensor_async(&self, name: &str) -> Result<StoredWeight, WeightsError> {
        self.rows_async(name, 0..self.find(name)?.rows).await
    }

    /// Blocking form of [`Checkpoint::tensor_async`].
    ///
    /// # Errors
    /// As [`Checkpoint::tensor_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn tensor(&self, name: &str) -> Result<StoredWeight, WeightsError> {
        pollster::block_on(self.tensor_async(name))
    }

    /// Reads some rows of a tensor.
    pub(crate) async fn rows_async(&self, name: &str, rows: Range<usize>) -> Result<StoredWeight, WeightsError> {
        let tensor = self.find(name)?;
        let blob = match &tensor.place {
            Place::File { file, bytes, doubles } => {
                let file = &self.files[*file];
                let row = (bytes.end - bytes.start) / (tensor.rows as u64).max(1);
                let part = bytes.start + row * rows.start as u64..bytes.start + row * rows.end as u64;
                let stored = read_range(&file.name, &*file.source, part).await?;
                if *doubles { narrowed(&stored) } else { stored }
            }
            Place::Processed(values) => {
                let whole = match (values.get(), &self.processed) {
                    (None, Some((steps, raw))) => {
                        let computed = Box::pin(process::weight(&**raw, *steps, name)).await?;
                        values.get_or_init(|| computed)
                    }
                    (Some(whole), _) => whole,
                    (None, None) => return Err(WeightsError::Missing { name: name.into() }),
                };
                let row = tensor.cols * tensor.dtype.size();
                whole.part(rows.start * row..rows.end * row)
            }
        };
        let (dtype, cols) = (tensor.dtype, tensor.cols);
        Ok(StoredWeight { name: name.into(), part: Part::default(), dtype, rows: rows.len(), cols, blob })
    }

    /// Whether the unembedding differs from the token embedding. Many files have a copy of the token embedding as
    /// `lm_head.weight`, so the first time this may read both.
    pub(crate) async fn is_untied_async(&self) -> Result<bool, WeightsError> {
        let (Some(head), Some(wte)) = (self.tensors.get(HEAD), self.tensors.get(WTE)) else { return Ok(false) };
        if let Some(untied) = self.untied.get() {
            return Ok(*untied);
        }
        let same_place = self.head_is_wte();
        let mut untied = !same_place && head.dtype != wte.dtype;
        if !same_place && !untied {
            let rows_at_once = (PIECE as usize / (wte.cols * wte.dtype.size()).max(1)).max(1);
            for first in (0..wte.rows).step_by(rows_at_once) {
                let rows = first..wte.rows.min(first + rows_at_once);
                let (a, b) = (self.rows_async(HEAD, rows.clone()).await?, self.rows_async(WTE, rows).await?);
                untied = a.blob.bytes() != b.blob.bytes();
                if untied {
                    break;
                }
            }
        }
        Ok(*self.untied.get_or_init(|| untied))
    }

    /// The name of the unembedding, stored as [V, D], which maps the final LayerNorm's output to logits: `lm_head.weight`, or
    /// `wte.weight` where the two are the same.
    pub(crate) async fn unembedding_name_async(&self) -> Result<&'static str, WeightsError> {
        Ok(if self.is_untied_async().await? { HEAD } else { WTE })
    }

    /// Reads the unembedding as stored [V, D]: the head of its own, or the token embedding.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor_async`].
    pub async fn unembedding_async(&self) -> Result<StoredWeight, WeightsError> {
        self.tensor_async(self.unembedding_name_async().await?).await
    }

    /// Blocking form of [`Checkpoint::unembedding_async`].
    ///
    /// # Errors
    /// As [`Checkpoint::tensor_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn unembedding(&self) -> Result<StoredWeight, WeightsError> {
        pollster::block_on(self.unembedding_async())
    }

    /// Whether the unembedding differs from the token embedding.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn is_untied(&self) -> Result<bool, WeightsError> {
        pollster::block_on(self.is_untied_async())
    }

    /// Whether the unembedding has a bias, which only processed weights have.
    pub(crate) fn has_unembedding_bias(&self) -> bool {
        self.tensors.contains_key(process::HEAD_BIAS)
    }

    /// The unembedding's bias [1, V], which only processed weights have.
    pub(crate) async fn unembedding_bias_async(&self) -> Result<Option<StoredWeight>, WeightsError> {
        if self.has_unembedding_bias() { self.tensor_async(process::HEAD_BIAS).await.map(Some) } else { Ok(None) }
    }

    /// Fails when a weight file was changed since it was opened, as far as its source can tell.
    ///
    /// # Errors
    /// [`WeightsError::Changed`] names the file.
    pub fn check_unchanged(&self) -> Result<(), WeightsError> {
        match self.files.iter().find(|file| !file.source.unchanged()) {
            Some(file) => Err(WeightsError::Changed { file: file.name.clone() }),
            None => Ok(()),
        }
    }

    /// The sha256, in hex, of config.json and of each file's name, size and header. It reads no weight.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(self.config_json.as_bytes());
        for file in &self.files {
            file.hash(&mut hash);
            hash.update(file.header.bytes());
        }
        hex(&hash.finalize())
    }

    /// The sha256, in hex, of config.json and of each file's name, size and bytes. It reads all weights.
    ///
    /// # Errors
    /// [`WeightsError::Io`] if a file cannot be read.
    pub async fn fingerprint_of_every_byte_async(&self) -> Result<String, WeightsError> {
        let mut hash = Sha256::new();
        hash.update(self.config_json.as_bytes());
        for file in &self.files {
            file.hash(&mut hash);
            let size = file.source.size();
            for start in (0..size).step_by(PIECE as usize) {
                let piece = read_range(&file.name, &*file.source, start..size.min(start + PIECE)).await?;
                hash.update(piece.bytes());
            }
        }
        Ok(hex(&hash.finalize()))
    }

    /// Blocking form of [`Checkpoint::fingerprint_of_every_byte_async`].
    ///
    /// # Errors
    /// As [`Checkpoint::fingerprint_of_every_byte_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn fingerprint_of_every_byte(&self) -> Result<String, WeightsError> {
        pollster::block_on(self.fingerprint_of_every_byte_async())
    }
}

impl RawWeights for Checkpoint {
    fn config(&self) -> &Config {
        &self.config
    }

    async fn weight(&self, name: &str) -> Result<StoredWeight, WeightsError> {
        self.tensor_async(name).await
    }

    async fn unembedding(&self) -> Result<StoredWeight, WeightsError> {
        self.unembedding_async().await
    }
}

impl File {
    /// Hashes its name and size.
    fn hash(&self, hash: &mut Sha256) {
        let name = Path::new(&self.name).file_name().unwrap_or_default();
        hash.update(name.as_encoded_bytes());
        hash.update(self.source.size().to_le_bytes());
    }
}

/// The token embedding, and the unembedding where the file has one.
const WTE: &str = "wte.weight";
const HEAD: &str = process::HEAD;

/// Little-endian f64 elements, converted to f32.
fn narrowed(stored: &Blob) -> Blob {
    let narrow = |value: &[u8; 8]| (f64::from_le_bytes(*value) as f32).to_le_bytes();
    let narrowed: Vec<u8> = stored.bytes().as_chunks::<8>().0.iter().flat_map(narrow).collect();
    stored.release();
    narrowed.into()
}

/// A tensor as a header describes it, before any check.
#[derive(Clone)]
struct Found {
    /// The index of its file.
    file: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    bytes: Range<u64>,
}

fn parse(folder: &Path, config_json: &str) -> Result<Config, WeightsError> {
    Config::from_json(config_json).map_err(|source| WeightsError::Config { folder: folder.into(), source })
}

/// Adds a file's tensors to `tensors` under their names in the file, and to `shared` the names of tensors that share
/// another tensor's values. `index` is the index of the file.
async fn headers(
    file: &File,
    index: usize,
    tensors: &mut Vec<(String, Found)>,
    shared: &mut Vec<(String, String)>,
) -> Result<(), WeightsError> {
    let (name_of_file, size) = (&file.name, file.source.size());
    let fail = |detail: String| WeightsError::Format { file: name_of_file.clone(), detail };
    let header = file.header.bytes();
    let metadata: Metadata = match SafeTensors::read_metadata(header) {
        Ok((_, metadata)) => metadata,
        // The header is right, and only the data are missing, which are not read here.
        Err(SafeTensorError::MetadataIncompleteBuffer) => {
            serde_json::from_slice(&header[8..]).map_err(|e| fail(e.to_string()))?
        }
        Err(e) => {
            let start = read_range(name_of_file, &*file.source, 0..size.min(Kind::BYTES)).await?;
            return Err(match Kind::of(start.bytes()) {
                Some(kind) => WeightsError::Kind { file: name_of_file.clone(), kind: kind.to_string() },
                None => fail(e.to_string()),
            });
        }
    };
    let start = header.len() as u64;
    let end = metadata.tensors().values().map(|info| info.data_offsets.1 as u64).max().unwrap_or(0);
    if start.saturating_add(end) != size {
        return Err(fail(SafeTensorError::MetadataIncompleteBuffer.to_string()));
    }
    for (name, info) in metadata.tensors() {
        let (from, to) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let bytes = start + from..start + to;
        tensors.push((name, Found { file: index, dtype: info.dtype, shape: info.shape.clone(), bytes }));
    }
    // safetensors.torch.save_model stores shared tensors once. Its metadata maps each other name to the stored one.
    let names = metadata.metadata().iter().flatten();
    shared.extend(names.map(|(name, kept)| (name.clone(), kept.clone())));
    Ok(())
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
    files: &[File],
    notes: &mut Vec<String>,
) -> Result<HashMap<String, Found>, WeightsError> {
    let file = |tensor: &Found| files[tensor.file].name.clone();
    if let Some((name, tensor)) = tensors.iter().find(|(name, _)| name.contains(".lora_")) {
        return Err(WeightsError::Adapter { name: name.clone(), file: file(tensor) });
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
        let own_file = file(&tensor);
        if of_head(&own(&name)) {
            left_out.push(own(&name));
        } else if let Some(other) = found.insert(own(&name), tensor) {
            let detail = format!("the tensor {name:?} is also in {}", file(&other));
            return Err(WeightsError::Format { file: own_file, detail });
        }
    }
    let tied = Some((WTE.to_string(), HEAD.to_string())).filter(|_| config.tie_word_embeddings);
    for (name, kept) in shared.iter().map(|(name, kept)| (own(name), own(kept))).chain(tied) {
        if let Some(tensor) = found.get(&kept).filter(|_| !found.contains_key(&name)) {
            found.insert(name, tensor.clone());
        }
    }
    if !left_out.is_empty() {
        left_out.sort();
        let logits = if found.contains_key(HEAD) { "" } else { "; logits are those of the token embedding" };
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
    files: &[File],
    notes: &mut Vec<String>,
) -> Result<HashMap<String, Tensor>, WeightsError> {
    let has_lm_head = found.contains_key(HEAD);
    let mut doubles = 0;
    let mut tensors = HashMap::new();
    let mut take = |name: String, shape: &[usize]| -> Result<(), WeightsError> {
        let tensor = match found.remove(&name) {
            Some(tensor) => {
                doubles += usize::from(tensor.dtype == safetensors::Dtype::F64);
                checked(&name, tensor, shape)?
            }
            None => return Err(WeightsError::Missing { name }),
        };
        tensors.insert(name, tensor);
        Ok(())
    };
    for (name, shape) in names_and_shapes(config) {
        take(name, &shape)?;
    }
    // It may be absent only if it is tied. If it is present, it is used whatever the config says, as in transformers.
    if has_lm_head || !config.tie_word_embeddings {
        take(HEAD.into(), &[config.vocab_size, config.n_embd])?;
    }

    // Buffers of the causal mask, which many files contain and nothing uses.
    found.retain(|name, _| {
        !(name.starts_with("h.") && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")))
    });
    if let Some((name, tensor)) = found.into_iter().min_by(|a, b| a.0.cmp(&b.0)) {
        return Err(WeightsError::Unexpected { name, file: files[tensor.file].name.clone() });
    }
    if doubles > 0 {
        notes.push(format!("{doubles} of {} tensors are stored as F64 and are converted to F32", tensors.len()));
    }
    Ok(tensors)
}

fn checked(name: &str, found: Found, shape: &[usize]) -> Result<Tensor, WeightsError> {
    if found.shape != shape {
        return Err(WeightsError::Shape { name: name.into(), found: found.shape, expected: shape.into() });
    }
    let (dtype, doubles) = match found.dtype {
        safetensors::Dtype::F32 => (Dtype::F32, false),
        safetensors::Dtype::F16 => (Dtype::F16, false),
        safetensors::Dtype::BF16 => (Dtype::Bf16, false),
        safetensors::Dtype::F64 => (Dtype::F32, true),
        other => return Err(WeightsError::Dtype { name: name.into(), found: format!("{other:?}") }),
    };
    let (rows, cols) = match *shape {
        [rows, cols] => (rows, cols),
        [cols] => (1, cols),
        _ => return Err(WeightsError::Shape { name: name.into(), found: found.shape, expected: shape.into() }),
    };
    Ok(Tensor { rows, cols, dtype, place: Place::File { file: found.file, bytes: found.bytes, doubles } })
}
