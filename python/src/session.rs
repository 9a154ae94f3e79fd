//! A model on a device, for Python. Owns how requests come in (token ids, selections, edits as plain tuples, which
//! `py_src/actscope` makes) and how arrays go out: without a copy.

use crate::error;
use crate::interrupt::{Watch, apart};
use crate::picture::Picture;
use crate::recorded::{arrays_out, to_numpy};
use actscope::analysis::edits::{EditError, EditPlan, GrowingPlan, Sources};
use actscope::analysis::grammar::{EditSpec, GrammarError, OpSpec};
use actscope::analysis::weights::{self, NamedWeight};
use actscope::batch::Batch;
use actscope::cache::CacheFolder;
use actscope::device::{Dtype, StoredWeight};
use actscope::hooks::capture::{ArrayKey, ArraySink};
use actscope::hooks::non_number::NonNumber;
use actscope::hooks::request::{EditRecord, HookError};
use actscope::hooks::site::{self, Axis, Site};
use actscope::hub::{Event, Hub};
use actscope::model::checkpoint::WeightsError;
use actscope::model::forward::Start;
use actscope::model::process::Process;
use actscope::model::tokenizer::Token;
use actscope::output::{Output, Provenance, Record, Rows, arrays};
use actscope::plot::Heading;
use actscope::plot::lens::{Cell as LensCell, LensTable};
use actscope::report::{self, About};
use actscope::session::Progress;
use actscope::verify::{Stage, Verification};
use actscope::{Choice, Edit, Hooks, Model, Options, Select};
use ndarray::{Array1, Array2, ArrayD, Axis as ArrayAxis, IxDyn, Slice};
use numpy::{IntoPyArray, PyArray2, PyArrayDyn, PyReadonlyArray1, PyReadonlyArrayDyn};
use pyo3::exceptions::{PyRuntimeWarning, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use serde_json::Value;
use std::cell::Cell;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Positions, heads, dims and keys of a selection; positions and keys are one list per text.
pub type SelectArg = (Option<Vec<Vec<usize>>>, Option<Vec<usize>>, Option<Vec<usize>>, Option<Vec<Vec<usize>>>);

/// Hook, selection, operation (`zero`, `scale`, `add`, `set`, `with`), its value, and a name for functions. With `written` the hook is
/// an edit as `analysis/grammar.rs` reads it, and the rest is not looked at.
pub type EditArg<'py> = (String, SelectArg, String, Bound<'py, PyAny>, String);

/// Token ids of the runs that `patch` and `mean` take values from.
pub type SourcesArg = (Option<Vec<Vec<u32>>>, Option<Vec<Vec<u32>>>);

/// An edit and a hash of its values.
pub type RecordOut = (String, Option<String>);

/// One position's prediction: likeliest tokens with probabilities, entropy, and the next token with its probability and rank.
pub type PredictionOut = (Vec<(u32, f32)>, f32, Option<(u32, f32, usize)>);

/// Values, tokens, ids and attention mask of one text.
type ActivationsOut<'py> =
    (Bound<'py, PyArrayDyn<f32>>, Vec<String>, Bound<'py, PyArray2<i64>>, Bound<'py, PyArray2<i64>>);

/// The logit lens: for every row its hook, and for every text and position a prediction; and a picture for every text.
type LensOut = (Vec<(String, Vec<Vec<PredictionOut>>)>, Vec<Picture>);

/// An edit of a request, or several that are written.
enum Step {
    Edit(Site, Select, Edit),
    Written(Vec<EditSpec>),
}

/// For each edit of a run its record, where it is written.
pub type Written = Vec<Option<EditRecord>>;

/// What is changed in a run.
pub struct Changes {
    steps: Vec<Step>,
    sources: Sources,
}

/// Where functions put their exceptions.
pub type Failed = Arc<Mutex<Option<PyErr>>>;

impl Changes {
    /// Adds them to a request, in order; runs what they need. Gives back the records of those that are written.
    pub fn add_to(
        self,
        session: &actscope::Session,
        batch: &Batch,
        hooks: &mut Hooks,
        progress: Progress<'_>,
    ) -> Result<Written, actscope::Error> {
        self.add_with(hooks, |specs, sources, hooks| {
            let plan = EditPlan::new(specs, session.model(), batch, sources.clone(), &mut read)?;
            pollster::block_on(session.edit_async(&plan, batch, hooks, Some(progress)))
        })
    }

    /// [`Changes::add_to`] for texts that are generated: as long as they can become, and as they begin.
    pub fn add_to_growing(
        self,
        session: &actscope::Session,
        both: (&Batch, &Batch),
        hooks: &mut Hooks,
        progress: Progress<'_>,
    ) -> Result<Written, actscope::Error> {
        self.add_with(hooks, |specs, sources, hooks| {
            let plan = GrowingPlan::new(specs, session.model(), both, sources, &mut read)?;
            pollster::block_on(session.edit_growing_async(&plan, both, hooks, Some(progress)))
        })
    }

    /// Adds the edits, those that are written by `add`.
    fn add_with(
        self,
        hooks: &mut Hooks,
        mut add: impl FnMut(&[EditSpec], &Sources, &mut Hooks) -> Result<Vec<EditRecord>, actscope::Error>,
    ) -> Result<Written, actscope::Error> {
        let mut records = Vec::new();
        for step in self.steps {
            match step {
                Step::Edit(site, select, edit) => {
                    hooks.edit_at(site, select, edit)?;
                    records.push(None);
                }
                Step::Written(specs) => records.extend(add(&specs, &self.sources, hooks)?.into_iter().map(Some)),
            }
        }
        Ok(records)
    }
}

/// The values of an edit's file.
pub fn read(path: &str, array: Option<&str>, site: Site) -> Result<ArrayD<f32>, String> {
    arrays::read(Path::new(path), array, Some(site))
}

/// The edits of a run: those that are written as they were written, the others as the run has them.
pub fn records(of_run: Vec<EditRecord>, written: Written) -> Vec<EditRecord> {
    of_run.into_iter().zip(written).map(|(of_run, written)| written.unwrap_or(of_run)).collect()
}

pub fn records_out(records: Vec<EditRecord>) -> Vec<RecordOut> {
    records.into_iter().map(|EditRecord { edit, sha256 }| (edit, sha256)).collect()
}

/// What stands behind what a picture shows.
fn mark(edits: &[EditRecord]) -> String {
    match edits {
        [] => String::new(),
        [one] => format!(", edited: {}", one.edit),
        [first, rest @ ..] => format!(", edited: {} and {} more", first.edit, rest.len()),
    }
}

/// What a run gives: the arrays by name, the addresses at which they left the library, and the edits with their hashes.
type RunOut<'py> = (Bound<'py, PyDict>, Bound<'py, PyDict>, Vec<RecordOut>);

fn select((positions, heads, dims, keys): SelectArg) -> Select {
    let mut select = Select::all();
    if let Some(positions) = positions {
        select = select.positions(positions);
    }
    if let Some(heads) = heads {
        select = select.heads(heads);
    }
    if let Some(dims) = dims {
        select = select.dims(dims);
    }
    if let Some(keys) = keys {
        select = select.keys(keys);
    }
    select
}

thread_local! {
    /// The session whose run is calling a Python function on this thread: a second run of it would wait for the first.
    static RUNNING: Cell<usize> = const { Cell::new(0) };
}

/// A model on a device. Threads may share one: runs take turns.
#[pyclass(frozen, module = "actscope._native")]
pub struct Session(Arc<actscope::Session>);

/// The device that a name means.
///
/// # Errors
/// `actscope.Error` names what there is.
fn choice(py: Python<'_>, device: &str) -> PyResult<Choice> {
    // torch's names, with or without an index.
    let name = device.split_once(':').map_or(device, |(name, _)| name);
    Ok(match name {
        "auto" => Choice::Auto,
        "gpu" | "cuda" | "mps" => Choice::Gpu,
        "cpu" => Choice::Cpu,
        "reference" => Choice::Reference,
        _ => {
            let message = format!(
                "there is no device {device:?}; there are \"auto\", \"gpu\" (\"cuda\" and \"mps\" mean the same), \"cpu\" and \"reference\"; {}",
                crate::this_machine()
            );
            return Err(error::of_kind(py, "device", message));
        }
    })
}

fn precision(py: Python<'_>, weights: Option<&str>) -> PyResult<Option<Dtype>> {
    Ok(match weights {
        None => None,
        Some("f32") => Some(Dtype::F32),
        Some("f16") => Some(Dtype::F16),
        Some("bf16") => Some(Dtype::Bf16),
        Some(other) => {
            let message = format!(
                "weights {other:?} is none of: \"f32\", \"f16\", \"bf16\", or None for what the checkpoint has"
            );
            return Err(error::of_kind(py, "weights", message));
        }
    })
}

/// How weights are processed.
fn steps(py: Python<'_>, process: Option<&str>) -> PyResult<Process> {
    let Some(written) = process else { return Ok(Process::NONE) };
    written.parse().map_err(|e| error::of_kind(py, "weights", format!("process: {e}")))
}

/// What a weight's name stands for: TransformerLens's name, or Hugging Face's for what the checkpoint has.
enum WeightOf {
    Named(NamedWeight),
    Stored(StoredWeight),
}

impl Session {
    /// The weight of a name; `transformer.` may stand before Hugging Face's.
    fn weight_of(&self, name: &str) -> Result<WeightOf, WeightsError> {
        let checkpoint = self.0.model().checkpoint();
        let named = weights::find(name, checkpoint.config());
        // A glob is no name.
        if let Some(one) = named.into_iter().find(|one| one.name == name) {
            return Ok(WeightOf::Named(one));
        }
        let stored = match name.strip_prefix("transformer.").unwrap_or(name) {
            "lm_head.weight" => checkpoint.unembedding(),
            plain => checkpoint.tensor(plain),
        };
        stored.map(WeightOf::Stored)
    }

    /// Lists of ids as a batch.
    pub fn batch(&self, py: Python<'_>, ids: &[Vec<u32>]) -> PyResult<Batch> {
        self.0.model().batch(ids).map_err(|e| error::of(py, &e))
    }

    fn site(&self, py: Python<'_>, name: &str) -> PyResult<Site> {
        let sites = site::resolve(name, self.0.model().config().n_layer).map_err(|e| hook_error(py, e))?;
        match sites.as_slice() {
            [one] => Ok(*one),
            several => {
                let message = format!("{name} names {} hooks, and one is needed here", several.len());
                Err(error::of_kind(py, "hook", message))
            }
        }
    }

    /// A request that records.
    pub fn request(&self, py: Python<'_>, taps: Vec<(String, SelectArg)>) -> PyResult<Hooks> {
        let mut hooks = self.0.model().hooks();
        for (name, selected) in taps {
            hooks.tap_at(self.site(py, &name)?, select(selected)).map_err(|e| hook_error(py, e))?;
        }
        Ok(hooks)
    }

    /// What is changed in a run that begins with token ids or not.
    pub fn changes(
        &self,
        py: Python<'_>,
        edits: Vec<EditArg<'_>>,
        (patch, mean): SourcesArg,
        from_tokens: bool,
        failed: &Failed,
    ) -> PyResult<Changes> {
        let mut steps: Vec<Step> = Vec::new();
        for (name, selected, op, value, label) in edits {
            let edit = match op.as_str() {
                "written" => {
                    let spec: EditSpec =
                        name.parse().map_err(|e: GrammarError| error::of(py, &EditError::from(e).into()))?;
                    if !from_tokens && matches!(spec.op(), OpSpec::Mean | OpSpec::Freeze) {
                        let what = format!("{name}: the unedited run begins with token ids, and this one does not");
                        return Err(error::of_kind(py, "hook", what));
                    }
                    match steps.last_mut() {
                        Some(Step::Written(specs)) => specs.push(spec),
                        _ => steps.push(Step::Written(vec![spec])),
                    }
                    continue;
                }
                "zero" => Edit::Zero,
                "scale" => Edit::Scale(value.extract()?),
                "add" => Edit::Add(value.extract::<PyReadonlyArray1<'_, f32>>()?.as_array().to_vec()),
                "set" => Edit::Replace(value.extract::<PyReadonlyArray1<'_, f32>>()?.as_array().to_vec()),
                "with" => self.edit_with(&label, value.unbind(), failed.clone()),
                _ => return Err(PyTypeError::new_err(format!("there is no edit {op:?}"))),
            };
            steps.push(Step::Edit(self.site(py, &name)?, select(selected), edit));
        }
        let batch = |ids: Option<Vec<Vec<u32>>>| ids.map(|ids| self.batch(py, &ids)).transpose();
        Ok(Changes { steps, sources: Sources { patch: batch(patch)?, mean: batch(mean)? } })
    }

    /// An edit by a Python function, which takes and gives a float32 array [1, ...]. An exception ends the run: what is
    /// returned then has a shape that no site has.
    fn edit_with(&self, name: &str, f: Py<PyAny>, failed: Failed) -> Edit {
        let session = self.number();
        Edit::with(name, move |values| {
            let before = RUNNING.replace(session);
            let changed = Python::attach(|py| -> PyResult<ArrayD<f32>> {
                let given = values.to_owned().insert_axis(ArrayAxis(0)).into_pyarray(py);
                let returned = f.bind(py).call1((given,))?;
                let returned = returned.extract::<PyReadonlyArrayDyn<'_, f32>>()?;
                Ok(returned.as_array().to_owned().index_axis_move(ArrayAxis(0), 0))
            });
            RUNNING.set(before);
            changed.unwrap_or_else(|e| {
                if let Ok(mut failed) = failed.lock() {
                    failed.get_or_insert(e);
                }
                ArrayD::zeros(IxDyn(&[]))
            })
        })
    }

    /// Tells sessions apart.
    fn number(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// Calls a Python function while this session runs: it cannot run the session a second time.
    pub fn inside<T>(&self, call: impl FnOnce() -> T) -> T {
        let before = RUNNING.replace(self.number());
        let given = call();
        RUNNING.set(before);
        given
    }

    /// # Errors
    /// `actscope.Error` inside a function that this session's own run calls.
    fn not_inside_itself(&self, py: Python<'_>) -> PyResult<()> {
        if RUNNING.get() == self.number() {
            let message = "a function that a run calls cannot run the same model; load a second one, or run before";
            return Err(error::of_kind(py, "run", message));
        }
        Ok(())
    }

    /// The library's session.
    pub fn inner(&self) -> &actscope::Session {
        &self.0
    }

    /// Calls the library without the GIL; `work` gets the function that its async functions tell their progress.
    pub fn without_gil<T: Send>(
        &self,
        py: Python<'_>,
        progress: Option<Py<PyAny>>,
        failed: &Failed,
        work: impl FnOnce(&actscope::Session, Progress<'_>) -> Result<T, actscope::Error> + Send,
    ) -> PyResult<T> {
        self.not_inside_itself(py)?;
        let session = &*self.0;
        let (result, stopped) = py.detach(move || {
            let watch = Watch::new(progress);
            let result = work(session, &|done, of| watch.hear(done, of));
            (result, watch.error())
        });
        let of_function = failed.lock().ok().and_then(|mut failed| failed.take());
        result.map_err(|e| of_function.or(stopped).unwrap_or_else(|| error::of(py, &e)))
    }
}

/// A prediction of the logit lens.
pub fn prediction_out(prediction: &actscope::analysis::lens::Prediction) -> PredictionOut {
    let next = prediction.next.map(|next| (next.id, next.probability, next.rank));
    (prediction.top.clone(), prediction.entropy, next)
}

fn hook_error(py: Python<'_>, e: impl Into<HookError>) -> PyErr {
    error::of(py, &actscope::Error::Hook(e.into()))
}

#[pymethods]
impl Session {
    /// Opens a model and brings it to a device. `tell(what, ...)` hears of a download: `note text`, `start repo bytes`,
    /// `bytes done kept`, `end`.
    #[new]
    fn new(
        py: Python<'_>,
        name: String,
        device: &str,
        weights: Option<&str>,
        process: Option<&str>,
        autotune: bool,
        tell: Py<PyAny>,
    ) -> PyResult<Session> {
        let steps = steps(py, process)?;
        let options = Options {
            device: choice(py, device)?,
            adapters: crate::allowed(),
            weights: precision(py, weights)?,
            autotune,
            cache: autotune.then(|| Arc::new(CacheFolder::of_user()) as _),
        };
        struct GivenUp(Arc<AtomicBool>);
        impl Drop for GivenUp {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let guard = GivenUp(Arc::new(AtomicBool::new(false)));
        let given_up = guard.0.clone();
        let opened = apart(py, move || {
            let mut hear = |event: Event<'_>| {
                if given_up.load(Ordering::Relaxed) {
                    return;
                }
                Python::attach(|py| {
                    let told = match event {
                        Event::Note(text) => tell.call1(py, ("note", text)),
                        Event::Start { repo, bytes, .. } => tell.call1(py, ("start", repo, bytes)),
                        Event::Bytes { done, kept } => tell.call1(py, ("bytes", done, kept)),
                        Event::End => tell.call1(py, ("end",)),
                    };
                    if let Err(e) = told {
                        e.write_unraisable(py, None);
                    }
                });
            };
            Model::open_from(&name, &Hub::new(std::env::vars_os()), &mut hear)?.processed(steps)?.on(options)
        });
        match opened? {
            Ok(session) => Ok(Session(Arc::new(session))),
            Err(e @ actscope::Error::Device(_)) => {
                let message = format!("{}; {}", error::of(py, &e).value(py), crate::this_machine());
                Err(error::of_kind(py, "device", message))
            }
            Err(e) => Err(error::of(py, &e)),
        }
    }

    /// Sizes and switches, under config.json's names.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let config = self.0.model().config();
        let dict = PyDict::new(py);
        dict.set_item("n_embd", config.n_embd)?;
        dict.set_item("n_layer", config.n_layer)?;
        dict.set_item("n_head", config.n_head)?;
        dict.set_item("n_positions", config.n_positions)?;
        dict.set_item("vocab_size", config.vocab_size)?;
        dict.set_item("n_inner", config.n_inner)?;
        dict.set_item("layer_norm_epsilon", config.layer_norm_epsilon)?;
        dict.set_item("scale_attn_weights", config.scale_attn_weights)?;
        dict.set_item("scale_attn_by_inverse_layer_idx", config.scale_attn_by_inverse_layer_idx)?;
        dict.set_item("tie_word_embeddings", config.tie_word_embeddings)?;
        dict.set_item("bos_token_id", self.0.model().bos())?;
        Ok(dict)
    }

    /// Whether the tokenizer itself puts the token that begins texts in front of every text.
    #[getter]
    fn adds_bos(&self) -> bool {
        self.0.model().adds_bos()
    }

    /// The device in words.
    #[getter]
    fn device(&self) -> String {
        self.0.device().to_string()
    }

    /// The steps of the processing that the weights went through, with commas between them; empty for weights as stored.
    #[getter]
    fn process(&self) -> String {
        self.0.model().checkpoint().process().to_string()
    }

    /// `gpu`, `cpu` or `reference`.
    #[getter]
    fn device_kind(&self) -> String {
        self.0.device().kind.to_string()
    }

    /// What there is to know of how the files were read.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.0.model().notes().map(String::from).collect()
    }

    /// Texts as token ids, each whole however long it is. Without `special` the names of special tokens are plain characters.
    #[pyo3(signature = (texts, special = true))]
    fn encode(&self, py: Python<'_>, texts: Vec<String>, special: bool) -> PyResult<Vec<Vec<u32>>> {
        let model = self.0.model();
        let encode = || {
            let tokenizer = model.tokenizer()?;
            let encode = |text: &String| if special { tokenizer.encode(text) } else { tokenizer.encode_plain(text) };
            texts.iter().map(encode).collect::<Result<_, _>>()
        };
        py.detach(encode).map_err(|e| error::of(py, &actscope::Error::Tokenizer(e)))
    }

    /// A text as token ids, without those that the tokenizer itself puts around every text.
    fn encode_bare(&self, py: Python<'_>, text: &str) -> PyResult<Vec<u32>> {
        let encoded = self.0.model().tokenizer().and_then(|tokenizer| tokenizer.encode_bare(text));
        encoded.map_err(|e| error::of(py, &actscope::Error::Tokenizer(e)))
    }

    /// The text of token ids.
    fn decode(&self, py: Python<'_>, ids: Vec<u32>) -> PyResult<String> {
        let decoded = self.0.model().tokenizer().and_then(|tokenizer| tokenizer.decode(&ids));
        decoded.map_err(|e| error::of(py, &actscope::Error::Tokenizer(e)))
    }

    /// The bytes of tokens; `None` where no tokenizer is at hand.
    fn token_bytes<'py>(&self, py: Python<'py>, ids: Vec<u32>) -> Vec<Option<Bound<'py, PyBytes>>> {
        ids.iter().map(|id| self.0.model().token(*id).bytes.map(|bytes| PyBytes::new(py, &bytes))).collect()
    }

    /// Tokens on one line each, with what cannot be seen escaped.
    fn token_labels(&self, ids: Vec<u32>) -> Vec<String> {
        ids.iter().map(|id| self.0.model().token(*id).label()).collect()
    }

    /// Tokens as the vocabulary writes them (`Ġcat`); `#464` where no tokenizer is at hand.
    fn written(&self, ids: Vec<u32>) -> Vec<String> {
        let tokenizer = self.0.model().tokenizer().ok();
        let written = |id: &u32| tokenizer.and_then(|tokenizer| tokenizer.written(*id));
        ids.iter().map(|id| written(id).unwrap_or_else(|| format!("#{id}"))).collect()
    }

    /// The hooks that a name, an alias or a glob stands for, in run order.
    fn resolve(&self, py: Python<'_>, pattern: &str) -> PyResult<Vec<String>> {
        let sites = site::resolve(pattern, self.0.model().config().n_layer).map_err(|e| hook_error(py, e))?;
        Ok(sites.into_iter().map(Site::name).collect())
    }

    /// The hook of a layer: -1 is after the final LayerNorm.
    fn layer_hook(&self, py: Python<'_>, layer: i64) -> PyResult<String> {
        let site = Site::from_layer(layer, self.0.model().config().n_layer).map_err(|e| hook_error(py, e))?;
        Ok(site.name())
    }

    /// A hook's axes after the batch axis: `pos`, `head`, `d_head`, `key`, `d_model`, `d_mlp`, `d_vocab`, `one`.
    fn axes(&self, py: Python<'_>, hook: &str) -> PyResult<Vec<&'static str>> {
        let name = |axis: &Axis| match axis {
            Axis::Pos => "pos",
            Axis::Head => "head",
            Axis::HeadDim => "d_head",
            Axis::Key => "key",
            Axis::Embd => "d_model",
            Axis::Inner => "d_mlp",
            Axis::Vocab => "d_vocab",
            Axis::One => "one",
        };
        Ok(self.site(py, hook)?.axes().iter().map(name).collect())
    }

    /// One text's values of a layer, [1, pos, n]; its tokens as the vocabulary writes them; its ids, [1, pos]; and a mask of ones.
    /// It is what `run` does, without names of hooks and lists of ids, with which a short text takes a fifth longer.
    fn activations<'py>(&self, py: Python<'py>, text: &str, layer: i64) -> PyResult<ActivationsOut<'py>> {
        let model = self.0.model();
        let site = Site::from_layer(layer, model.config().n_layer).map_err(|e| hook_error(py, e))?;
        let mut hooks = model.hooks();
        hooks.tap_at(site, Select::all()).map_err(|e| hook_error(py, e))?;
        let (mut capture, non_number, ids) = self.without_gil(py, None, &Failed::default(), |session, hear| {
            let ids = session.model().tokenizer()?.encode(text)?;
            let batch = session.model().batch(&[&ids])?;
            let capture = pollster::block_on(session.run_async(&batch, &hooks, Some(hear)))?;
            let non_number = NonNumber::find_in(&capture);
            Ok((capture, non_number, ids))
        })?;
        if let Some(found) = non_number {
            warn(py, &found, found.slot())?;
        }
        let array = capture.take(site).expect("it was tapped");
        let values = to_numpy(py, array, self.0.host_memory())?;
        let numbers: Array2<i64> =
            ids.iter().map(|id| i64::from(*id)).collect::<Array1<i64>>().insert_axis(ArrayAxis(0));
        let mask = Array2::ones(numbers.dim());
        Ok((values, self.written(ids), numbers.into_pyarray(py), mask.into_pyarray(py)))
    }

    /// Runs a batch; taps are hooks under TransformerLens's names. `start` is a kind (`embeds` or `stream`), a layer, and the values of every token, text by text.
    fn run<'py>(
        &self,
        py: Python<'py>,
        ids: Vec<Vec<u32>>,
        taps: Vec<(String, SelectArg)>,
        edits: Vec<EditArg<'py>>,
        sources: SourcesArg,
        start: Option<(String, usize, PyReadonlyArray1<'py, f32>)>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<RunOut<'py>> {
        let batch = self.batch(py, &ids)?;
        // By name: to find a site by its name takes microseconds, and a short text's run a few hundred.
        let positions: Vec<(String, Option<Vec<Vec<usize>>>)> =
            taps.iter().map(|(name, (positions, ..))| (name.clone(), positions.clone())).collect();
        let mut hooks = self.request(py, taps)?;
        let failed = Failed::default();
        let changes = self.changes(py, edits, sources, start.is_none(), &failed)?;
        let values = start.as_ref().map(|(.., values)| values.as_slice()).transpose()?;
        let start = match (&start, values) {
            (Some((kind, layer, _)), Some(values)) if kind == "stream" => Start::Stream { layer: *layer, values },
            (Some(_), Some(values)) => Start::Embeddings(values),
            _ => Start::Tokens,
        };
        let (capture, non_number, written) = self.without_gil(py, progress, &failed, |session, hear| {
            let written = changes.add_to(session, &batch, &mut hooks, hear)?;
            let capture = pollster::block_on(session.run_from_async(&batch, &hooks, start, Some(hear)))?;
            let non_number = NonNumber::find_in(&capture);
            Ok((capture, non_number, written))
        })?;
        if let Some(found) = non_number {
            let hook = found.site.name();
            let of_site = positions.iter().find(|(name, _)| *name == hook).and_then(|(_, list)| list.as_ref());
            let position = of_site.map_or(found.slot(), |per_text| per_text[found.text][found.slot()]);
            warn(py, &found, position)?;
        }
        let edits = records_out(records(capture.edits().to_vec(), written));
        let (arrays, addresses) = arrays_out(py, capture, self.0.host_memory(), |_, array| array)?;
        Ok((arrays, addresses, edits))
    }

    /// The logit lens of the streams, or `of_components` of what each component adds.
    fn lens(
        &self,
        py: Python<'_>,
        ids: Vec<Vec<u32>>,
        top: usize,
        of_components: bool,
        edits: Vec<EditArg<'_>>,
        sources: SourcesArg,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<LensOut> {
        let batch = self.batch(py, &ids)?;
        let failed = Failed::default();
        let changes = self.changes(py, edits, sources, true, &failed)?;
        let (rows, edits) = self.without_gil(py, progress, &failed, |session, hear| {
            let mut hooks = session.model().hooks();
            let written = changes.add_to(session, &batch, &mut hooks, hear)?;
            let (rows, capture) = if of_components {
                pollster::block_on(session.lens_of_components_async(&batch, &hooks, top, Some(hear)))?
            } else {
                pollster::block_on(session.lens_async(&batch, &hooks, top, Some(hear)))?
            };
            Ok((rows, records(capture.edits().to_vec(), written)))
        })?;
        let model = self.0.model();
        let n_layer = model.config().n_layer;
        let name = |site: Site| match site {
            Site::ResidPost(layer) if layer + 1 == n_layer => format!("layer {layer}: output"),
            Site::ResidPost(layer) => format!("layer {layer}"),
            Site::AttnOut(layer) => format!("attn {layer}"),
            Site::MlpOut(layer) => format!("mlp {layer}"),
            Site::Embed => "embed".into(),
            Site::PosEmbed => "pos_embed".into(),
            _ => "input".into(),
        };
        let of = if of_components { " of each component" } else { "" };
        let picture = |(text, tokens): (usize, Vec<Token>)| {
            let cell = |prediction: &actscope::analysis::lens::Prediction| {
                let (id, probability) = prediction.top[0];
                LensCell { token: model.token(id), probability, hit: prediction.next.is_some_and(|next| next.id == id) }
            };
            let heading = Heading { text: tokens, what: format!("logit lens{of} of {}{}", model.name(), mark(&edits)) };
            let rows = rows.iter().map(|row| (name(row.site), row.texts[text].iter().map(cell).collect())).collect();
            Picture::of_lens(LensTable { heading, rows })
        };
        let pictures = model.tokens(&batch).into_iter().enumerate().map(picture).collect();
        let numbers = rows.iter().map(|row| {
            let texts = row.texts.iter().map(|text| text.iter().map(prediction_out).collect()).collect();
            (row.site.name(), texts)
        });
        Ok((numbers.collect(), pictures))
    }

    /// One text's activations as an HTML page, and what was stored with less precision or left out. Without `arguments` the page has
    /// no commands.
    fn report(
        &self,
        py: Python<'_>,
        ids: Vec<u32>,
        arguments: Option<&str>,
        edits: Vec<EditArg<'_>>,
        sources: SourcesArg,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<(String, Vec<String>)> {
        let batch = self.batch(py, &[ids])?;
        let failed = Failed::default();
        let changes = self.changes(py, edits, sources, true, &failed)?;
        let (page, edits) = self.without_gil(py, progress, &failed, |session, hear| {
            let mut hooks = session.model().hooks();
            let written = changes.add_to(session, &batch, &mut hooks, hear)?;
            let page = pollster::block_on(report::gather(session, &batch, &hooks, report::LARGEST, Some(hear)))?;
            Ok((page, records(hooks.edit_records(), written)))
        })?;
        if let Some(found) = &page.non_number {
            warn(py, found, found.slot())?;
        }
        let model = self.0.model();
        let tokens = model.tokens(&batch).swap_remove(0);
        let provenance = self.provenance(edits);
        let about = About { files: model, tokens: &tokens, arguments, provenance: &provenance, prompt_tokens: None };
        let mut html = Vec::new();
        page.write(&about, &mut html)?;
        Ok((String::from_utf8_lossy(&html).into_owned(), page.coarsened()))
    }

    /// Writes arrays of a run as `actscope extract` does; gives back the file's size in bytes. `gradient` says as JSON what they are
    /// the gradients of, if they are.
    fn save(
        &self,
        py: Python<'_>,
        path: PathBuf,
        ids: Vec<Vec<u32>>,
        texts: Vec<String>,
        positions: Option<Vec<Vec<usize>>>,
        arrays: Vec<(String, PyReadonlyArrayDyn<'_, f32>)>,
        edits: Vec<RecordOut>,
        generation: Option<String>,
        gradient: Option<&str>,
    ) -> PyResult<u64> {
        let batch = self.batch(py, &ids)?;
        let tokens = self.0.model().tokens(&batch);
        let mut hooks = self.0.model().hooks();
        let mut views = Vec::with_capacity(arrays.len());
        for (name, array) in &arrays {
            let site = self.site(py, name)?;
            let selected = positions.clone().map_or(Select::all(), |positions| Select::all().positions(positions));
            hooks.tap_at(site, selected).map_err(|e| hook_error(py, e))?;
            views.push((site, array.as_array()));
        }
        views.sort_by_key(|(site, _)| *site);
        let shapes = hooks.shapes(&batch);
        for ((site, shape), (_, view)) in shapes.iter().zip(&views) {
            if view.shape() != shape {
                let message = format!("{site}: the array has the shape {:?}, and the run gave {shape:?}", view.shape());
                return Err(error::of_kind(py, "output", message));
            }
        }
        let no_json = |e: serde_json::Error| PyTypeError::new_err(format!("the record of gradients is not JSON: {e}"));
        let gradient: Option<Value> = gradient.map(serde_json::from_str).transpose().map_err(no_json)?;
        let is_gradient = gradient.is_some();
        let shapes: Vec<_> = shapes.into_iter().map(|(site, shape)| (ArrayKey { site, is_gradient }, shape)).collect();
        let rows = positions.as_deref().map_or(Rows::All, Rows::Positions);
        let edits = edits.into_iter().map(|(edit, sha256)| EditRecord { edit, sha256 }).collect();
        let provenance = self.provenance(edits);
        let record = Record {
            tokens: &tokens,
            texts: &texts,
            rows,
            windows: None,
            provenance: &provenance,
            generation,
            gradient,
            reserved: None,
        };
        let write = || {
            let output = Output::create(&path)?;
            output.check(shapes.len())?;
            let mut writing = output.begin(&record, shapes)?;
            for (site, view) in &views {
                for (text, values) in view.axis_iter(ArrayAxis(0)).enumerate() {
                    let mut values = values;
                    for (axis, n) in hooks.shape_of_text(*site, &batch, text).into_iter().enumerate() {
                        values.slice_axis_inplace(ArrayAxis(axis), Slice::from(..n));
                    }
                    let failed = |e: std::io::Error| actscope::output::OutputError::Write {
                        path: path.clone(),
                        detail: e.to_string(),
                    };
                    writing.put_array(ArrayKey { site: *site, is_gradient }, text, values).map_err(failed)?;
                }
            }
            writing.finish()
        };
        py.detach(write).map_err(|e| error::of_output(py, &e))
    }

    /// TransformerLens's names of all weights, in the order of a run.
    fn weight_names(&self) -> Vec<String> {
        weights::all(self.0.model().config()).into_iter().map(|weight| weight.name).collect()
    }

    fn has_weight(&self, name: &str) -> bool {
        self.weight_of(name).is_ok()
    }

    /// A weight by name, widened to float32: in TransformerLens's shape, or for Hugging Face's name as the checkpoint has it.
    fn weight<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        let weight = self.weight_of(name).map_err(|e| error::of(py, &e.into()))?;
        let values = py.detach(|| match weight {
            WeightOf::Named(named) => named.values(self.0.model().checkpoint()),
            WeightOf::Stored(stored) => {
                // A vector is stored as a matrix of one row.
                let is_matrix = stored.name.ends_with(".weight") && !stored.name.contains("ln_");
                let shape: &[usize] = if is_matrix { &[stored.rows, stored.cols] } else { &[stored.cols] };
                Ok(ArrayD::from_shape_vec(shape, stored.to_f32()).expect("a weight has rows times columns numbers"))
            }
        });
        Ok(values.map_err(|e| error::of(py, &e.into()))?.into_pyarray(py))
    }

    /// The unembedding's rows of some tokens, [n, n_embd].
    fn unembedding<'py>(&self, py: Python<'py>, ids: Vec<u32>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let checkpoint = self.0.model().checkpoint();
        let failed = |e| error::of(py, &actscope::Error::Weights(e));
        let weight = checkpoint.unembedding().map_err(failed)?;
        // Holds the ids against the vocabulary; each by itself, since a text may not be longer than the context.
        self.batch(py, &ids.iter().map(|id| vec![*id]).collect::<Vec<_>>())?;
        let mut rows = Array2::zeros((ids.len(), weight.cols));
        for (id, mut row) in ids.iter().zip(rows.rows_mut()) {
            weight.widen(*id as usize * weight.cols, row.as_slice_mut().expect("rows of a new array are contiguous"));
        }
        Ok(rows.into_pyarray(py))
    }

    /// Compares the device with the reference. `tell(stage, done, of)` hears how far it is.
    fn verify<'py>(&self, py: Python<'py>, tell: Option<Py<PyAny>>) -> PyResult<Bound<'py, PyDict>> {
        self.not_inside_itself(py)?;
        let session = self.0.clone();
        let verification = apart(py, move || {
            let told = |stage: Stage, done: usize, of: usize| {
                let stage = match stage {
                    Stage::Kernels => "kernels",
                    Stage::Hooks => "hooks",
                    Stage::Lockstep => "lockstep",
                    Stage::Pieces => "pieces",
                };
                if let Some(tell) = &tell {
                    Python::attach(|py| {
                        if let Err(e) = tell.call1(py, (stage, done, of)) {
                            e.write_unraisable(py, None);
                        }
                    });
                }
            };
            pollster::block_on(session.verify_async(&told))
        })?;
        verification_dict(py, &verification.map_err(|e| error::of(py, &e))?)
    }
}

impl Session {
    fn provenance(&self, edits: Vec<EditRecord>) -> Provenance {
        Provenance::new(&self.0, edits)
    }
}

/// Says where values stop being numbers.
fn warn(py: Python<'_>, found: &NonNumber, position: usize) -> PyResult<()> {
    let message = format!(
        "{} holds {} at text {}, position {position}, and what follows from it is not to be relied on",
        found.site,
        found.what(),
        found.text
    );
    let message = CString::new(message).unwrap_or_default();
    PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &message, 2)
}

fn verification_dict<'py>(py: Python<'py>, found: &Verification) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("ok", found.ok())?;
    dict.set_item("device", found.device.to_string())?;
    let kernels: Vec<_> = found
        .kernels
        .iter()
        .map(|row| (row.kernel.clone(), row.cases, row.failed, row.worst.clone(), row.off.share, row.ok()))
        .collect();
    dict.set_item("kernels", kernels)?;
    let hooks: Vec<_> = found
        .hooks
        .iter()
        .map(|row| (row.site.name(), row.worst.error, row.allowed, found.text_of(row), row.worst.position, row.ok()))
        .collect();
    dict.set_item("hooks", hooks)?;
    dict.set_item("compared", found.steps.compared)?;
    let mismatches: Vec<_> = found
        .steps
        .mismatches
        .iter()
        .map(|step| format!("{} {}, {}", step.kind.name(), step.part, step.shape))
        .collect();
    dict.set_item("mismatches", mismatches)?;
    dict.set_item("pieces", found.pieces.ok())?;
    Ok(dict)
}
