//! The main interface: open a model on a device, run texts or token ids with hooks, receive arrays. Owns [`Model`] and
//! [`Session`]. The functions are async; those without `_async` in their names block, and exist on native targets only.
//! Threads may share a session: runs take turns. Read next: `options.rs`, then `model/forward.rs`.

use crate::batch::{Batch, BatchError};
use crate::config::Config;
#[cfg(feature = "gpu")]
use crate::device::gpu::Gpu;
use crate::device::host_pool::HostPool;
use crate::device::{AnyDevice, Device, DeviceError, DeviceInfo};
use crate::hooks::capture::{Capture, Sink};
use crate::hooks::layout::Layout;
use crate::hooks::request::{HookError, Hooks, Select};
use crate::hooks::site::Site;
use crate::hub::{self, Hub, HubError, ModelFiles, Source};
use crate::model::byte_source::{ByteSource, at_once};
use crate::model::checkpoint::{self, Checkpoint, WeightsError};
use crate::model::forward::{self, Run, RunError, Start};
use crate::model::model_dir::{self, Files, Held, ModelDir};
use crate::model::params::{LoadError, Params};
use crate::model::process::Process;
use crate::model::tokenizer::{Token, Tokenizer, TokenizerError};
use crate::options::Options;
use ndarray::{Array2, Axis, Ix3};
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;

/// An error of the library, grouped by the part that raised it.
#[derive(Debug, Error)]
pub enum Error {
    /// The model was not found, or could not be downloaded.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The checkpoint is damaged, or is not a GPT-2 checkpoint.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The tokenizer is missing or damaged, or the text cannot be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The ids cannot be run.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The request does not fit the model.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// No device, or the device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The run failed.
    #[error(transparent)]
    Run(RunError),
    /// An analysis failed: an edit, a sweep, generation.
    #[error("{0}")]
    Analysis(Box<dyn AnalysisError>),
    /// The progress callback ended the run.
    #[error("the run was cancelled")]
    Cancelled,
}

/// An error of an analysis. Analyses extend a session from above, so the session knows their errors by this trait only.
pub trait AnalysisError: std::error::Error + Send + Sync + 'static {
    /// True where the request is wrong, false where the run failed.
    fn is_request(&self) -> bool {
        true
    }
}

impl<E: AnalysisError> From<E> for Error {
    fn from(e: E) -> Error {
        Error::Analysis(Box::new(e))
    }
}

impl From<RunError> for Error {
    fn from(e: RunError) -> Error {
        match e {
            RunError::Hook(e) => Error::Hook(e),
            RunError::Device(e) => Error::Device(e),
            RunError::Load(LoadError::Weights(e)) => Error::Weights(e),
            RunError::Load(LoadError::Device(e)) => Error::Device(e),
            RunError::Cancelled => Error::Cancelled,
            e @ (RunError::TooLarge { .. } | RunError::Load(LoadError::Overflow { .. }) | RunError::Sink(_)) => {
                Error::Run(e)
            }
        }
    }
}

/// A model's files, opened and checked: configuration, weights, tokenizer. [`Model::on`] loads it onto a device.
#[derive(Debug)]
pub struct Model {
    name: String,
    source: Source,
    checkpoint: Arc<Checkpoint>,
    /// An error is stored and returned only when a text is encoded, because token ids need no tokenizer.
    tokenizer: Result<Tokenizer, TokenizerError>,
}

impl Model {
    /// Finds a model by name (`demo`, a folder, a hub name) and opens its files. Downloads files that the hub cache
    /// lacks.
    ///
    /// # Errors
    /// [`Error::Hub`] and [`Error::Weights`] name the file at fault. A damaged tokenizer is an error only when a text
    /// is encoded.
    pub fn open(name: &str) -> Result<Model, Error> {
        Model::open_from(name, &Hub::default(), &mut |_| {})
    }

    /// [`Model::open`] with settings of the hub and its cache, which reports a download to `tell`.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_from(name: &str, hub: &Hub, tell: &mut dyn FnMut(hub::Event<'_>)) -> Result<Model, Error> {
        let source = hub::resolve(name, hub, tell)?;
        match &source {
            #[cfg(feature = "demo")]
            Source::Demo => {
                use hub::demo;
                let weights = Arc::new(demo::SAFETENSORS);
                let tokenizer = Tokenizer::from_bytes("demo/tokenizer.json", demo::TOKENIZER);
                let checkpoint = Arc::new(Checkpoint::from_bytes("demo", demo::CONFIG, weights)?);
                Ok(Model { name: name.into(), source, checkpoint, tokenizer })
            }
            Source::Folder(folder) | Source::Cache(folder) => {
                let dir = ModelDir::new(folder);
                at_once(Model::of_dir(name, source, &dir))
            }
            Source::Files(_) => unreachable!("a name finds a folder"),
        }
    }

    /// Opens a checkpoint whose files are read range by range: of files with weights only the headers, and each tensor when a
    /// run first needs it. For targets without folders, such as a browser. `files` has the files that a checkpoint's folder would
    /// have, with their names; others are ignored.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub async fn from_sources_async(
        name: &str,
        files: impl IntoIterator<Item = (String, Arc<dyn ByteSource>)>,
    ) -> Result<Model, Error> {
        let mut held = Files::new();
        for (file, source) in files {
            let contents = if model_dir::is_read_whole(&file) {
                Held::Bytes(Arc::new(checkpoint::read_whole(&file, &*source).await?))
            } else {
                Held::Ranges(source)
            };
            held.insert(file, contents);
        }
        Model::of_files(name, held).await
    }

    /// Blocking form of [`Model::from_sources_async`].
    ///
    /// # Errors
    /// As [`Model::from_sources_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn from_sources(
        name: &str,
        files: impl IntoIterator<Item = (String, Arc<dyn ByteSource>)>,
    ) -> Result<Model, Error> {
        pollster::block_on(Model::from_sources_async(name, files))
    }

    async fn of_files(name: &str, files: Files) -> Result<Model, Error> {
        let files = Arc::new(files);
        let dir = ModelDir::of_files(name, files.clone());
        Model::of_dir(name, Source::Files(ModelFiles(files)), &dir).await
    }

    async fn of_dir(name: &str, source: Source, dir: &ModelDir) -> Result<Model, Error> {
        let missing = || TokenizerError::Missing { model: name.into() };
        let checkpoint = Arc::new(Checkpoint::of_dir(dir).await?);
        let tokenizer = Tokenizer::of_dir(dir).and_then(|found| found.ok_or_else(missing));
        Ok(Model { name: name.into(), source, checkpoint, tokenizer })
    }

    /// The name that [`Model::open`] was called with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the model was found.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The model's files; `None` for the model inside the binary.
    pub(crate) fn dir(&self) -> Option<ModelDir> {
        match &self.source {
            #[cfg(feature = "demo")]
            Source::Demo => None,
            Source::Folder(folder) | Source::Cache(folder) => Some(ModelDir::new(folder)),
            Source::Files(files) => Some(ModelDir::of_files(&self.name, files.0.clone())),
        }
    }

    /// The path of every file that belongs to the model, including those that were not read and those that do not exist.
    pub fn paths(&self) -> Vec<PathBuf> {
        match &self.source {
            #[cfg(feature = "demo")]
            Source::Demo => Vec::new(),
            Source::Files(_) => Vec::new(),
            Source::Folder(folder) | Source::Cache(folder) => {
                let beside = ModelDir::new(folder);
                beside.beside_weights().chain(self.checkpoint.files().map(PathBuf::from)).collect()
            }
        }
    }

    /// Remarks for the user about how the files were read, one line each: ignored tensors, tokens whose id differs from
    /// the one in a file, and so on.
    pub fn notes(&self) -> impl Iterator<Item = &str> {
        let of_tokenizer = self.tokenizer.iter().flat_map(Tokenizer::notes);
        self.checkpoint.notes().iter().chain(of_tokenizer).map(String::as_str)
    }

    /// The sizes and switches of `config.json`.
    pub fn config(&self) -> &Config {
        self.checkpoint.config()
    }

    /// True for the model inside the binary.
    pub fn is_demo(&self) -> bool {
        #[cfg(feature = "demo")]
        return matches!(self.source, Source::Demo);
        #[cfg(not(feature = "demo"))]
        false
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`TokenizerError::Missing`] when the checkpoint has none, [`TokenizerError::Tokenizer`] when it is damaged.
    pub fn tokenizer(&self) -> Result<&Tokenizer, TokenizerError> {
        self.tokenizer.as_ref().map_err(TokenizerError::clone)
    }

    /// The token with this id. It has its text if there is a tokenizer.
    pub fn token(&self, id: u32) -> Token {
        self.tokenizer.as_ref().map_or(Token { id, bytes: None }, |tokenizer| tokenizer.token(id))
    }

    /// The tokens of every text of a batch.
    pub fn tokens(&self, batch: &Batch) -> Vec<Vec<Token>> {
        (0..batch.texts().len()).map(|i| batch.ids_of(i).iter().map(|id| self.token(*id)).collect()).collect()
    }

    /// The id of the token that begins a text: config.json's `bos_token_id`, else the tokenizer's `<|endoftext|>`.
    pub fn bos(&self) -> Option<u32> {
        let of_text = self.tokenizer.as_ref().ok().and_then(Tokenizer::end_of_text);
        // A tokenizer may have more tokens than the model.
        [self.config().bos_token_id, of_text].into_iter().flatten().find(|id| (*id as usize) < self.config().vocab_size)
    }

    /// True if the tokenizer itself puts [`Model::bos`] in front of every text, so that no second one is needed.
    pub fn adds_bos(&self) -> bool {
        let front = self.tokenizer.as_ref().ok().and_then(|tokenizer| tokenizer.added_around().ok());
        front.is_some_and(|(front, _)| front.first().copied() == self.bos() && !front.is_empty())
    }

    /// Encodes texts as a batch.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] without a tokenizer, [`Error::Batch`] for texts that are empty or too long.
    pub fn encode(&self, texts: &[&str]) -> Result<Batch, Error> {
        let tokenizer = self.tokenizer()?;
        let encode = |(i, t): (usize, &&str)| {
            tokenizer.check_length(i, t, self.config().n_positions).and_then(|()| tokenizer.encode(t))
        };
        let ids = texts.iter().enumerate().map(encode).collect::<Result<Vec<_>, _>>()?;
        Ok(Batch::new(&ids, self.config())?)
    }

    /// Makes a batch of token ids, one list per text.
    ///
    /// # Errors
    /// [`Error::Batch`] for texts that are empty or too long, and for ids outside the vocabulary.
    pub fn batch<T: AsRef<[u32]>>(&self, ids: &[T]) -> Result<Batch, Error> {
        Ok(Batch::new(ids, self.config())?)
    }

    /// The model with its weights processed as TransformerLens does. The processed weights are f32, whatever the checkpoint has,
    /// and take memory beside the checkpoint's.
    ///
    /// ```
    /// use actscope::{Choice, Model};
    ///
    /// let session = Model::open("demo")?.processed("tl".parse().unwrap())?.on(Choice::Cpu)?;
    /// # let _ = session;
    /// # Ok::<(), actscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Weights`] if the checkpoint lacks a weight.
    pub fn processed(self, steps: Process) -> Result<Model, Error> {
        if steps.is_none() {
            return Ok(self);
        }
        Ok(Model { checkpoint: Arc::new(self.checkpoint.processed(steps)?), ..self })
    }

    /// An empty request for this model.
    pub fn hooks(&self) -> Hooks {
        Hooks::new(self.config())
    }

    /// Loads the model onto a device. `options` is a [`crate::Choice`] of the device or a full [`Options`].
    ///
    /// # Errors
    /// [`Error::Device`] when no such device exists.
    pub async fn on_async(self, options: impl Into<Options>) -> Result<Session, Error> {
        let options = options.into();
        let device = match crate::device::open_among(options.device, &options.adapters).await? {
            #[cfg(feature = "gpu")]
            AnyDevice::Gpu(dev) => AnyDevice::Gpu(as_asked(dev, &options).await?),
            other => other,
        };
        let params = Params::new(self.checkpoint.clone(), options.weights);
        Ok(Session { model: self, device, params, turn: async_lock::Mutex::new(()) })
    }

    /// Blocking form of [`Model::on_async`].
    ///
    /// # Errors
    /// As [`Model::on_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn on(self, options: impl Into<Options>) -> Result<Session, Error> {
        pollster::block_on(self.on_async(options))
    }
}

/// Applies the cache and the autotuning that `options` ask for to a GPU.
///
/// # Errors
/// [`Error::Device`] when the device fails.
#[cfg(feature = "gpu")]
pub(crate) async fn as_asked(gpu: Gpu, options: &Options) -> Result<Gpu, Error> {
    let gpu = match &options.cache {
        Some(cache) => gpu.with_cached_pipelines(cache.clone()).await,
        None => gpu,
    };
    Ok(if options.autotune { gpu.autotuned(options.cache.as_deref()).await? } else { gpu })
}

/// A model on a device. Threads may share one: their runs take turns.
///
/// ```
/// use actscope::{Choice, Model};
///
/// let session = Model::open("demo")?.on(Choice::Cpu)?;
/// let batch = session.model().encode(&["The cat sat on the mat.", "A shorter one"])?;
/// let mut hooks = session.model().hooks();
/// hooks.tap("blocks.*.hook_resid_post")?;
/// let capture = session.run(&batch, &hooks)?;
/// let stream = &capture["blocks.0.hook_resid_post"]; // [batch, pos, n_embd], padded with zeros
/// assert_eq!(stream.shape()[..2], [2, batch.n_pos()]);
/// # Ok::<(), actscope::Error>(())
/// ```
#[derive(Debug)]
pub struct Session {
    model: Model,
    device: AnyDevice,
    params: Params<AnyDevice>,
    /// Locked for the duration of a run.
    turn: async_lock::Mutex<()>,
}

/// The most tokens in one run. This bounds the memory for intermediate values, whatever the number of texts.
pub(crate) const MAX_TOKENS: usize = 8192;

/// The most bytes that one block of a run may record, unless a single text records more. The limit is small because two
/// blocks are in flight to the host at once.
pub(crate) const MAX_BYTES_AT_ONCE: usize = 256 << 20;

/// Splits a batch into groups of texts that run together, so that memory does not grow with the number of texts.
pub(crate) fn groups<D: Device>(dev: &D, config: &Config, layout: &Layout<'_>) -> Vec<Range<usize>> {
    let max_tokens = forward::max_tokens(dev, config, layout.hooks()).min(MAX_TOKENS);
    // A text that records many bytes counts as more tokens.
    let cost = |text: usize| {
        let bytes = layout.bytes_at_once(text);
        layout.batch().texts()[text].len().max(bytes / (MAX_BYTES_AT_ONCE / MAX_TOKENS))
    };
    layout.batch().groups(max_tokens, cost)
}

/// A progress callback. It receives the number of finished steps and the total. When it returns `Break`, the run fails
/// with [`Error::Cancelled`].
pub type Progress<'a> = &'a dyn Fn(usize, usize) -> ControlFlow<()>;

impl Session {
    /// Opens a model by name on the device that suits this machine.
    ///
    /// # Errors
    /// As [`Model::open`] and [`Model::on`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(name: &str) -> Result<Session, Error> {
        Model::open(name)?.on(Options::default())
    }

    /// The model's files.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The device.
    pub fn device(&self) -> DeviceInfo {
        self.device.info()
    }

    /// The pool of host memory for values. Public so that tests can read it.
    #[doc(hidden)]
    pub fn host_memory(&self) -> &Arc<HostPool> {
        self.device.host_memory()
    }

    /// The device, for uses that do not run the model.
    pub(crate) fn any_device(&self) -> &AnyDevice {
        &self.device
    }

    /// The model's weights, for uses that do not run the model.
    pub(crate) fn params(&self) -> &Params<AnyDevice> {
        &self.params
    }

    /// Waits until other runs are done, and returns the device with the model's weights.
    pub(crate) async fn engine(&self) -> (&AnyDevice, &Params<AnyDevice>, async_lock::MutexGuard<'_, ()>) {
        (&self.device, &self.params, self.turn.lock().await)
    }

    /// Checks a request and a batch against this model and each other.
    pub(crate) fn layout<'a>(&self, batch: &'a Batch, hooks: &'a Hooks) -> Result<Layout<'a>, Error> {
        hooks.check_model(self.model.config())?;
        batch.check(self.model.config())?;
        Ok(Layout::new(hooks, batch)?)
    }

    /// Runs a batch and returns what `hooks` asked for.
    ///
    /// # Errors
    /// [`enum@Error`] when the request does not fit the model or the batch, or the device fails.
    pub async fn run_async(
        &self,
        batch: &Batch,
        hooks: &Hooks,
        progress: Option<Progress<'_>>,
    ) -> Result<Capture, Error> {
        self.run_from_async(batch, hooks, Start::Tokens, progress).await
    }

    /// [`Session::run_async`] that starts from `start` instead of the token ids. `start` has one row per token of the
    /// batch, text by text. If it is a residual stream, the batch's ids are ignored.
    ///
    /// # Errors
    /// As [`Session::run_async`]; [`HookError::Start`] for values of the wrong size or a block that does not exist.
    pub async fn run_from_async(
        &self,
        batch: &Batch,
        hooks: &Hooks,
        start: Start<'_>,
        progress: Option<Progress<'_>>,
    ) -> Result<Capture, Error> {
        let layout = self.layout(batch, hooks)?;
        start.check(batch, self.model.config())?;
        let mut capture = self.capture(hooks, batch)?;
        self.run_layout(&layout, start, &mut capture, progress).await?;
        Ok(capture)
    }

    /// A capture for a request, with memory from the device's pool.
    pub(crate) fn capture(&self, hooks: &Hooks, batch: &Batch) -> Result<Capture, HookError> {
        Capture::unchecked(hooks, batch, Arc::downgrade(self.device.host_memory()))
    }

    /// Runs a batch and passes what `hooks` asked for to `sink` as it is computed, so memory does not grow with the
    /// number of texts. The sink's contents are valid only if this returns `Ok`: at its end it checks that the
    /// checkpoint's files did not change during the run.
    ///
    /// # Errors
    /// [`enum@Error`] when the request does not fit, or the device or the sink fails.
    pub async fn run_into_async(
        &self,
        batch: &Batch,
        hooks: &Hooks,
        sink: &mut dyn Sink,
        progress: Option<Progress<'_>>,
    ) -> Result<(), Error> {
        let layout = self.layout(batch, hooks)?;
        self.run_layout(&layout, Start::Tokens, sink, progress).await
    }

    pub(crate) async fn run_layout(
        &self,
        layout: &Layout<'_>,
        start: Start<'_>,
        sink: &mut dyn Sink,
        progress: Option<Progress<'_>>,
    ) -> Result<(), Error> {
        let (config, batch, hooks) = (self.model.config(), layout.batch(), layout.hooks());
        let (dev, params, _turn) = self.engine().await;
        let groups = groups(dev, config, layout);
        for texts in &groups {
            forward::check_size(dev, params, &batch.part(texts.clone()), hooks)?;
        }
        let per_group = hooks.blocks().saturating_sub(start.first_layer());
        let steps = groups.len() * per_group;
        for (n, texts) in groups.into_iter().enumerate() {
            let of_all = |done: usize| match progress {
                Some(progress) => progress(n * per_group + done.min(per_group), steps),
                None => ControlFlow::Continue(()),
            };
            let rows = batch.texts()[texts.start].start..batch.texts()[texts.end - 1].end;
            let run = Run { start: start.of_rows(rows, config), ..Run::new(layout, texts) };
            forward::forward(dev, params, run, sink, Some(&of_all)).await?;
        }
        Ok(self.model.checkpoint.check_unchanged()?)
    }

    /// Blocking form of [`Session::run_async`].
    ///
    /// # Errors
    /// As [`Session::run_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn run(&self, batch: &Batch, hooks: &Hooks) -> Result<Capture, Error> {
        pollster::block_on(self.run_async(batch, hooks, None))
    }

    /// Blocking form of [`Session::run_from_async`].
    ///
    /// # Errors
    /// As [`Session::run_from_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn run_from(&self, batch: &Batch, hooks: &Hooks, start: Start<'_>) -> Result<Capture, Error> {
        pollster::block_on(self.run_from_async(batch, hooks, start, None))
    }

    /// Blocking form of [`Session::run_into_async`].
    ///
    /// # Errors
    /// As [`Session::run_into_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn run_into(&self, batch: &Batch, hooks: &Hooks, sink: &mut dyn Sink) -> Result<(), Error> {
        pollster::block_on(self.run_into_async(batch, hooks, sink, None))
    }

    /// The activations [n_pos, n_embd] of one text after block `layer`. -1 is the output of the final LayerNorm, -2 the
    /// output of the last block but one, like Python's `h[-2]`.
    ///
    /// # Errors
    /// [`enum@Error`] when the layer does not exist, the text is empty, or the device fails.
    pub async fn get_activations_async(&self, text: &str, layer: i64) -> Result<Array2<f32>, Error> {
        let batch = self.model.encode(&[text])?;
        let site = Site::from_layer(layer, self.model.config().n_layer).map_err(HookError::from)?;
        let mut hooks = self.model.hooks();
        hooks.tap_at(site, Select::all())?;
        let array = self.run_async(&batch, &hooks, None).await?.take(site).expect("a tapped site is in the capture");
        let array = array.into_dimensionality::<Ix3>().expect("residual stream sites are [batch, pos, n_embd]");
        Ok(array.index_axis_move(Axis(0), 0))
    }

    /// Blocking form of [`Session::get_activations_async`].
    ///
    /// ```
    /// let session = actscope::Session::open("demo")?;
    /// let activations = session.get_activations("The cat sat on the mat.", 2)?;
    /// assert_eq!(activations.ncols(), session.model().config().n_embd);
    /// # Ok::<(), actscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Session::get_activations_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn get_activations(&self, text: &str, layer: i64) -> Result<Array2<f32>, Error> {
        pollster::block_on(self.get_activations_async(text, layer))
    }
}

#[cfg(all(test, not(feature = "tokenizer")))]
mod tests {
    use super::*;
    use crate::device::Choice;

    /// Seen red when the error reported a missing tokenizer instead.
    #[test]
    fn without_a_tokenizer_texts_are_refused_and_ids_run() {
        let classic = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/classic");
        let model = Model::open(classic).unwrap();
        let refused = model.encode(&["The cat"]);
        assert!(matches!(refused, Err(Error::Tokenizer(TokenizerError::NotBuilt { .. }))));
        let batch = model.batch(&[[1u32, 2, 3]]).unwrap();
        let mut hooks = model.hooks();
        hooks.tap("ln_final.hook_out").unwrap();
        let capture = model.on(Choice::Auto).unwrap().run(&batch, &hooks).unwrap();
        assert_eq!(capture.iter().count(), 1);
    }
}
