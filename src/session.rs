//! The front door: open a model on a device, run texts or ids with hooks, get arrays back. Owns how the parts meet; the
//! command line and every later binding use only this. Async underneath; the functions without `_async` in their names
//! wait, and exist on native targets only.
//! Read next: `model.rs`.

use crate::analysis::lens::{self, LensRow};
use crate::device::{AnyDevice, Choice, DeviceError, DeviceInfo, Dtype};
use crate::hooks::capture::{Capture, Sink};
use crate::hooks::request::{HookError, Hooks, Select};
use crate::hooks::site::Site;
use crate::hub::{self, HubError, Source};
use crate::model::batch::{Batch, BatchError};
use crate::model::checkpoint::{Checkpoint, WeightsError};
use crate::model::config::Config;
use crate::model::forward::{self, RunError};
use crate::model::model_dir::ModelDir;
use crate::model::params::{LoadError, Params};
use crate::model::tokenizer::{Token, Tokenizer, TokenizerError};
use crate::verify;
use ndarray::{Array2, Axis, Ix3};
use std::path::PathBuf;
use std::rc::Rc;
use thiserror::Error;

/// Everything that can go wrong, by where it did.
#[derive(Debug, Error)]
pub enum Error {
    /// The model's name leads nowhere.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The checkpoint is broken or of another kind.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Text and tokens.
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
}

impl From<RunError> for Error {
    fn from(e: RunError) -> Error {
        match e {
            RunError::Hook(e) => Error::Hook(e),
            RunError::Device(e) => Error::Device(e),
            RunError::Load(LoadError::Weights(e)) => Error::Weights(e),
            RunError::Load(LoadError::Device(e)) => Error::Device(e),
            e @ (RunError::TooLarge { .. } | RunError::Load(LoadError::Overflow { .. }) | RunError::Sink(_)) => {
                Error::Run(e)
            }
        }
    }
}

/// A model's files, opened and checked, on no device yet.
pub struct Model {
    name: String,
    source: Source,
    checkpoint: Rc<Checkpoint>,
    /// Kept as an error until somebody wants to read text: ids need no tokenizer.
    text: Result<Tokenizer, TokenizerError>,
}

impl Model {
    /// Finds a model by name (`demo`, a folder, a hub name) and opens its files. What the hub cache lacks is downloaded.
    ///
    /// # Errors
    /// [`Error::Hub`] or [`Error::Weights`] name the file at fault. A broken tokenizer is an error once text is to be read.
    pub fn open(name: &str) -> Result<Model, Error> {
        Model::open_telling(name, &mut |_| {})
    }

    /// [`Model::open`], with `tell` hearing of a download.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_telling(name: &str, tell: &mut dyn FnMut(hub::Event<'_>)) -> Result<Model, Error> {
        let source = hub::resolve(name, tell)?;
        let (checkpoint, text) = match &source {
            #[cfg(feature = "demo")]
            Source::Demo => {
                use hub::demo;
                let weights = std::sync::Arc::new(demo::SAFETENSORS);
                let text = Tokenizer::from_bytes("demo/tokenizer.json", demo::TOKENIZER);
                (Checkpoint::from_bytes("demo", demo::CONFIG, weights)?, text)
            }
            Source::Folder(folder) | Source::Cache(folder) => {
                let missing = || TokenizerError::Missing { model: name.into() };
                (Checkpoint::open(folder)?, Tokenizer::from_folder(folder).and_then(|text| text.ok_or_else(missing)))
            }
        };
        Ok(Model { name: name.into(), source, checkpoint: Rc::new(checkpoint), text })
    }

    /// The name under which it was asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it was found.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Every file that belongs to the model, whether it was needed or not.
    pub fn paths(&self) -> Vec<PathBuf> {
        match &self.source {
            #[cfg(feature = "demo")]
            Source::Demo => Vec::new(),
            Source::Folder(folder) | Source::Cache(folder) => {
                let beside = ModelDir::new(folder);
                beside.beside_weights().chain(self.checkpoint.files().map(PathBuf::from)).collect()
            }
        }
    }

    /// What its user should know of how the files were read, one line each: tensors that were left out, tokens that have
    /// another id than a file says, and so on.
    pub fn notes(&self) -> impl Iterator<Item = &str> {
        let of_text = self.text.iter().flat_map(Tokenizer::notes);
        self.checkpoint.notes().iter().chain(of_text).map(String::as_str)
    }

    /// Sizes and switches.
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
    pub fn checkpoint(&self) -> &Rc<Checkpoint> {
        &self.checkpoint
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`TokenizerError::Missing`] where the checkpoint has none, [`TokenizerError::Tokenizer`] where it is broken.
    pub fn text(&self) -> Result<&Tokenizer, TokenizerError> {
        self.text.as_ref().map_err(TokenizerError::clone)
    }

    /// The token with this id, with its text where there is a tokenizer.
    pub fn token(&self, id: u32) -> Token {
        self.text.as_ref().map_or(Token { id, bytes: None }, |text| text.token(id))
    }

    /// The tokens of every text of a batch.
    pub fn tokens(&self, batch: &Batch) -> Vec<Vec<Token>> {
        (0..batch.texts().len()).map(|i| batch.ids_of(i).iter().map(|id| self.token(*id)).collect()).collect()
    }

    /// The id that begins a text: config.json's `bos_token_id`, else the tokenizer's `<|endoftext|>`.
    pub fn bos(&self) -> Option<u32> {
        let of_text = self.text.as_ref().ok().and_then(Tokenizer::end_of_text);
        // A tokenizer may have more tokens than the model.
        [self.config().bos_token_id, of_text].into_iter().flatten().find(|id| (*id as usize) < self.config().vocab_size)
    }

    /// Texts as a batch.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] without a tokenizer, [`Error::Batch`] for empty or too long texts.
    pub fn encode(&self, texts: &[&str]) -> Result<Batch, Error> {
        let text = self.text()?;
        let encode =
            |(i, t): (usize, &&str)| text.check_length(i, t, self.config().n_positions).and_then(|()| text.encode(t));
        let ids = texts.iter().enumerate().map(encode).collect::<Result<Vec<_>, _>>()?;
        Ok(Batch::new(&ids, self.config())?)
    }

    /// Token ids as a batch, one list a text.
    ///
    /// # Errors
    /// [`Error::Batch`] for empty or too long texts and for ids that the vocabulary does not have.
    pub fn batch<T: AsRef<[u32]>>(&self, ids: &[T]) -> Result<Batch, Error> {
        Ok(Batch::new(ids, self.config())?)
    }

    /// An empty request to this model.
    pub fn hooks(&self) -> Hooks {
        Hooks::new(self.config())
    }

    /// Brings the model to a device. With `weights`, matrices are converted to that precision first.
    ///
    /// # Errors
    /// [`Error::Device`] when there is none.
    pub async fn on_async(self, choice: Choice, weights: Option<Dtype>) -> Result<Session, Error> {
        let engine = match crate::device::open(choice).await? {
            AnyDevice::Reference(dev) => Engine::Reference(dev, Params::new(self.checkpoint.clone(), weights)),
            AnyDevice::Cpu(dev) => Engine::Cpu(dev, Params::new(self.checkpoint.clone(), weights)),
            AnyDevice::Gpu(dev) => {
                #[cfg(not(target_arch = "wasm32"))]
                let dev = dev.tuned(Rc::new(crate::cache::CacheFolder::of_user())).await?;
                Engine::Gpu(dev, Params::new(self.checkpoint.clone(), weights))
            }
        };
        Ok(Session { files: self, engine })
    }

    /// [`Model::on_async`], waiting.
    ///
    /// # Errors
    /// As [`Model::on_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn on(self, choice: Choice, weights: Option<Dtype>) -> Result<Session, Error> {
        pollster::block_on(self.on_async(choice, weights))
    }
}

/// A model on a device.
pub struct Session {
    files: Model,
    engine: Engine,
}

#[allow(clippy::large_enum_variant)] // there is one of it
enum Engine {
    Reference(crate::device::reference::Reference, Params<crate::device::reference::Reference>),
    Cpu(crate::device::cpu::Cpu, Params<crate::device::cpu::Cpu>),
    Gpu(crate::device::gpu::Gpu, Params<crate::device::gpu::Gpu>),
}

/// One body for the three devices.
macro_rules! on_engine {
    ($engine:expr, ($dev:ident, $params:ident) => $body:expr) => {
        match $engine {
            Engine::Reference($dev, $params) => $body,
            Engine::Cpu($dev, $params) => $body,
            Engine::Gpu($dev, $params) => $body,
        }
    };
}

/// Tokens of a run at most, so that memory for what is computed does not grow with the number of texts.
const MAX_TOKENS: usize = 8192;

/// Bytes that one block of a run may record at most (or what one text's block does, if that is more): two blocks are on
/// their way to the host at once.
const MAX_BYTES_AT_ONCE: usize = 256 << 20;

impl Session {
    /// Opens a model by name on the device that suits this machine.
    ///
    /// # Errors
    /// As [`Model::open`] and [`Model::on`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn open(name: &str) -> Result<Session, Error> {
        Model::open(name)?.on(Choice::Auto, None)
    }

    /// The model's files.
    pub fn model(&self) -> &Model {
        &self.files
    }

    /// The device.
    pub fn device(&self) -> DeviceInfo {
        use crate::device::Device;
        on_engine!(&self.engine, (dev, _params) => dev.info())
    }

    /// Runs a batch and gives back what `hooks` asked for. `progress` is told how many of how many blocks are done.
    ///
    /// # Errors
    /// [`enum@Error`]: a request that does not fit, or a device that failed.
    pub async fn run_async(
        &self,
        batch: &Batch,
        hooks: &Hooks,
        progress: Option<&dyn Fn(usize, usize)>,
    ) -> Result<Capture, Error> {
        self.check(batch, hooks)?;
        let mut capture = Capture::empty(hooks, batch)?;
        self.run_into_async(batch, hooks, &mut capture, progress).await?;
        Ok(capture)
    }

    /// That a request and a batch are for this model, and for each other.
    fn check(&self, batch: &Batch, hooks: &Hooks) -> Result<(), Error> {
        hooks.check_model(self.files.config())?;
        batch.check(self.files.config())?;
        Ok(hooks.check_batch(batch)?)
    }

    /// Runs a batch and hands what `hooks` asked for to `sink` as it comes: memory does not grow with the number of texts.
    /// What the sink has is worth nothing unless this succeeds: only then was the checkpoint left alone meanwhile.
    /// `progress` is told how many of how many blocks are done.
    ///
    /// # Errors
    /// [`enum@Error`]: a request that does not fit, a device or a sink that failed.
    pub async fn run_into_async(
        &self,
        batch: &Batch,
        hooks: &Hooks,
        sink: &mut dyn Sink,
        progress: Option<&dyn Fn(usize, usize)>,
    ) -> Result<(), Error> {
        self.check(batch, hooks)?;
        let config = self.files.config();
        on_engine!(&self.engine, (dev, params) => {
            let max_tokens = forward::max_tokens(dev, config, hooks).min(MAX_TOKENS);
            // A text that records much counts as more tokens than it has.
            let cost = |text: usize| {
                let bytes = hooks.bytes_at_once(batch, text);
                batch.texts()[text].len().max(bytes / (MAX_BYTES_AT_ONCE / MAX_TOKENS))
            };
            let groups = batch.groups(max_tokens, cost);
            for texts in &groups {
                forward::check_size(dev, config, &batch.part(texts.clone()), hooks)?;
            }
            let per_group = hooks.blocks();
            let steps = groups.len() * per_group;
            for (n, texts) in groups.into_iter().enumerate() {
                let told = |done: usize| {
                    if let Some(progress) = progress {
                        progress(n * per_group + done.min(per_group), steps);
                    }
                };
                forward::forward(dev, params, batch, texts, hooks, sink, Some(&told)).await?;
            }
        });
        Ok(self.files.checkpoint.check_unchanged()?)
    }

    /// [`Session::run_async`], waiting.
    ///
    /// # Errors
    /// As [`Session::run_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn run(&self, batch: &Batch, hooks: &Hooks) -> Result<Capture, Error> {
        pollster::block_on(self.run_async(batch, hooks, None))
    }

    /// Are the numbers right on this machine? Puts the device on trial, with this model and in general; `tell` hears how far
    /// that is.
    ///
    /// # Errors
    /// [`enum@Error`] when the device failed. What is wrong with its numbers stands in the report.
    pub async fn verify_async(&self, tell: verify::Tell<'_>) -> Result<verify::Report, Error> {
        let [several, alone] = verify::texts(&self.files.checkpoint, self.files.text.as_ref().ok())?;
        let batches = [self.files.batch(&several)?, self.files.batch(&alone)?];
        let is_demo = self.files.is_demo();
        on_engine!(&self.engine, (dev, params) => Ok(verify::verify(dev, params, batches, is_demo, tell).await?))
    }

    /// Holds what was seen of a run of `hooks` on `batch` on this device against the reference ([`verify::sample`]). `progress`
    /// is told how many of how many parts are done.
    ///
    /// # Errors
    /// [`enum@Error`] when the device failed. What is wrong with its numbers stands in the result.
    pub async fn check_async(
        &self,
        batch: &Batch,
        hooks: &Hooks,
        sample: verify::sample::Sample,
        progress: &dyn Fn(usize, usize),
    ) -> Result<verify::sample::Checked, Error> {
        on_engine!(&self.engine, (dev, params) => Ok(sample.check(dev, params, batch, hooks, progress).await?))
    }

    /// The logit lens: what the model would say after each block, one row per site of [`lens::sites`], the last of them the
    /// model's own output. `hooks` may ask for more and change things on the way; the capture holds what they asked for
    /// and the residual streams. `top` is how many of the likeliest tokens are kept. `progress` as in
    /// [`Session::run_async`], with one step more for every row.
    ///
    /// # Errors
    /// As [`Session::run_async`]; also where `hooks` taps a part of what the lens needs whole.
    pub async fn lens_async(
        &self,
        batch: &Batch,
        hooks: &Hooks,
        top: usize,
        progress: Option<&dyn Fn(usize, usize)>,
    ) -> Result<(Vec<LensRow>, Capture), Error> {
        let n_layer = self.files.config().n_layer;
        let mut all = hooks.clone();
        for site in lens::sites(n_layer).chain([Site::Unembed]) {
            all.tap_at(site, Select::all())?;
        }
        let of_run = std::cell::Cell::new(0);
        let told = |done: usize, of: usize| {
            of_run.set(of);
            if let Some(progress) = progress {
                progress(done, of + n_layer + 1);
            }
        };
        let mut capture = self.run_async(batch, &all, Some(&told)).await?;
        let read = |rows: usize| told(of_run.get() + rows, of_run.get());
        let rows = on_engine!(&self.engine, (dev, params) => {
            lens::read(dev, params, batch, &capture, top, &read).await?
        });
        if hooks.sites().all(|site| site != Site::Unembed) {
            // The largest array by far.
            capture.take(Site::Unembed);
        }
        Ok((rows, capture))
    }

    /// The notebook's question in one call: the activations [n_pos, n_embd] of one text after block `layer`; -1 is after
    /// the final LayerNorm, -2 the last block but one, as Python's `h[-2]`.
    ///
    /// ```
    /// let session = actscope::Session::open("demo")?;
    /// let activations = session.get_activations("The cat sat on the mat.", 2)?;
    /// assert_eq!(activations.ncols(), session.model().config().n_embd);
    /// # Ok::<(), actscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`enum@Error`]: no such layer, an empty text, a device that failed.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn get_activations(&self, text: &str, layer: i64) -> Result<Array2<f32>, Error> {
        let batch = self.files.encode(&[text])?;
        let site = Site::from_layer(layer, self.files.config().n_layer).map_err(HookError::from)?;
        let mut hooks = self.files.hooks();
        hooks.tap_at(site, Select::all())?;
        let array = self.run(&batch, &hooks)?.take(site).expect("a tapped site is in the capture");
        let array = array.into_dimensionality::<Ix3>().expect("residual stream sites are [batch, pos, n_embd]");
        Ok(array.index_axis_move(Axis(0), 0))
    }
}
