//! Text that a model writes, and scores, for Python. Owns how settings come in, how tokens are told as they come, and what is
//! given back.

use crate::error;
use crate::recorded::arrays_out;
use crate::session::{
    EditArg, Failed, PredictionOut, RecordOut, SelectArg, Session, SourcesArg, prediction_out, records_out,
};
use actscope::analysis::generate::{Generated, Generation, StopReason, TextSoFar, Told};
use actscope::analysis::lens;
use actscope::analysis::sampling::Sampling;
use actscope::hooks::capture::Capture;
use actscope::hooks::site::Site;
use actscope::model::windows::Windows;
use ndarray::{ArrayD, Axis, Slice};
use numpy::IntoPyArray;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

/// New tokens, samples, alternatives and the lens's tokens; temperature, top-k, top-p, min-p and repetition penalty; the seed;
/// texts that end a text.
type Settings = ((usize, usize, usize, usize), (f64, Option<usize>, Option<f64>, Option<f64>, f64), u64, Vec<String>);

/// Each text in a dict; the arrays by name and the addresses at which they left the library; the positions that were run of
/// each text; the edits; and the settings as files have them.
type GeneratedOut<'py> =
    (Bound<'py, PyList>, Bound<'py, PyDict>, Bound<'py, PyDict>, Vec<usize>, Vec<RecordOut>, String);

fn generation(session: &Session, settings: Settings) -> Generation {
    let ((new_tokens, samples, alternatives, lens), sampling, seed, stop_texts) = settings;
    let (temperature, top_k, top_p, min_p, repetition_penalty) = sampling;
    Generation {
        new_tokens,
        samples,
        sampling: Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed },
        end_of_text: session.inner().model().end_of_text(),
        stop_texts,
        alternatives,
        lens,
    }
}

/// The reason why a text ended, as files and JSON name it.
fn stop_name(stop: StopReason) -> &'static str {
    match stop {
        StopReason::Length => "length",
        StopReason::EndOfText => "end-of-text",
        StopReason::StopText => "stop-text",
        StopReason::Context => "context",
        StopReason::Interrupted => "interrupted",
    }
}

/// The lengths that texts can reach, prompt by prompt and sample by sample: what positions in requests refer to.
#[pyfunction]
pub fn longest(py: Python<'_>, session: &Session, prompts: Vec<Vec<u32>>, settings: Settings) -> PyResult<Vec<usize>> {
    let generation = generation(session, settings);
    generation.check().map_err(|e| error::of(py, &e.into()))?;
    let prompts = session.batch(py, &prompts)?;
    let whole = generation.texts(&prompts, session.inner().model()).map_err(|e| error::of(py, &e))?;
    Ok(whole.texts().iter().map(|text| text.len()).collect())
}

/// Goes on with prompts. Taps and edits refer to the texts of [`longest`]; written edits select `pos=new` and count negative
/// positions from the prompt's end. `tell(text, id, piece, logprob, alternatives, stop)` hears every token, and ends the run by giving back
/// `False`.
#[pyfunction]
pub fn generate<'py>(
    py: Python<'py>,
    session: &Session,
    prompts: Vec<Vec<u32>>,
    settings: Settings,
    taps: Vec<(String, SelectArg)>,
    edits: Vec<EditArg<'py>>,
    sources: SourcesArg,
    tell: Option<Py<PyAny>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<GeneratedOut<'py>> {
    let generation = generation(session, settings);
    generation.check().map_err(|e| error::of(py, &e.into()))?;
    let prompts = session.batch(py, &prompts)?;
    let model = session.inner().model();
    let whole = generation.texts(&prompts, model).map_err(|e| error::of(py, &e))?;
    let rows: Vec<&[u32]> = (0..whole.texts().len()).map(|text| prompts.ids_of(text / generation.samples)).collect();
    let rows = model.batch(&rows).map_err(|e| error::of(py, &e))?;
    // All taps have the same positions.
    let positions = taps.first().and_then(|(_, (positions, ..))| positions.clone());
    let mut hooks = session.request(py, taps)?;
    let failed = Failed::default();
    let changes = session.changes(py, edits, sources, true, &failed)?;
    let of_tell = Arc::new(Mutex::new(None::<PyErr>));
    let of_work = of_tell.clone();
    let n_texts = whole.texts().len();
    let total: usize = whole.texts().iter().zip(rows.texts()).map(|(text, prompt)| text.len() - prompt.len()).sum();
    let found = session.without_gil(py, progress, &failed, |session_inner, hear| {
        let written = changes.add_to_growing(session_inner, (&whole, &rows), &mut hooks, hear)?;
        let mut capture = Capture::empty(&hooks, &whole)?;
        let texts = RefCell::new(vec![TextSoFar::default(); n_texts]);
        let done = Cell::new(0);
        let inside = |_: usize, _: usize| hear(done.get(), total);
        let interrupted = Cell::new(false);
        let mut told = |told: Told<'_>| {
            done.set(done.get() + 1);
            if let Some(tell) = &tell {
                let piece = piece(session_inner, &mut texts.borrow_mut()[told.text], &told);
                match session.inside(|| tell_python(tell, &told, piece)) {
                    Ok(true) => {}
                    Ok(false) => return ControlFlow::Break(()),
                    Err(e) => {
                        if let Ok(mut slot) = of_work.lock() {
                            slot.get_or_insert(e);
                        }
                        return ControlFlow::Break(());
                    }
                }
            }
            let heard = hear(done.get(), total);
            interrupted.set(heard.is_break());
            heard
        };
        let run = session_inner.generate_async(&prompts, &generation, &hooks, &mut capture, &mut told, Some(&inside));
        let generated = pollster::block_on(run)?;
        if interrupted.get() {
            return Err(actscope::Error::Cancelled);
        }
        Ok((generated, capture, written))
    });
    if let Some(e) = of_tell.lock().ok().and_then(|mut slot| slot.take()) {
        return Err(e);
    }
    let (generated, capture, written) = found?;
    let edits = crate::session::records(capture.edits().to_vec(), written);
    let (rows, keys) = reached(&generated, positions.as_deref());
    let memory = session.inner().host_memory();
    let (arrays, addresses) = arrays_out(py, capture, memory, |site, array| shortened(site, array, rows, keys))?;
    let texts = PyList::empty(py);
    for text in &generated {
        texts.append(dict_of(py, session.inner(), text)?)?;
    }
    let stops: Vec<(usize, StopReason)> = generated.iter().map(|text| (text.prompt_tokens, text.stop)).collect();
    let run = generated.iter().map(|text| text.run).collect();
    Ok((texts, arrays, addresses, run, records_out(edits), generation.settings(&stops)))
}

/// The text that a new token makes readable; nothing without a tokenizer.
fn piece(session: &actscope::Session, text: &mut TextSoFar, told: &Told<'_>) -> String {
    if told.stop != Some(StopReason::EndOfText) {
        text.push(told.token.id);
    }
    let tokenizer = session.model().tokenizer().ok();
    let decode = |ids: &[u32]| tokenizer.and_then(|tokenizer| tokenizer.decode(ids).ok()).unwrap_or_default();
    text.take(told.stop.is_some(), decode)
}

fn tell_python(tell: &Py<PyAny>, told: &Told<'_>, piece: String) -> PyResult<bool> {
    Python::attach(|py| {
        let token = told.token;
        let args = (told.text, token.id, piece, token.logprob, token.alternatives.clone(), told.stop.map(stop_name));
        let heard = tell.call1(py, args)?;
        Ok(heard.is_none(py) || heard.is_truthy(py)?)
    })
}

/// The rows and keys of arrays that are as long as the longest text became.
fn reached(generated: &[Generated], positions: Option<&[Vec<usize>]>) -> (usize, usize) {
    let longest = generated.iter().map(|text| text.run).max().unwrap_or(0);
    let rows = positions.map_or(longest, |lists| {
        let reached = |(list, text): (&Vec<usize>, &Generated)| list.partition_point(|position| *position < text.run);
        lists.iter().zip(generated).map(reached).max().unwrap_or(0)
    });
    (rows, longest)
}

/// An array without the rows and keys that no text reached.
fn shortened(site: Site, array: ArrayD<f32>, rows: usize, keys: usize) -> ArrayD<f32> {
    // Behind the batch.
    let axis = 1 + site.pos_axis();
    let mut view = array.view();
    view.slice_axis_inplace(Axis(axis), Slice::from(..rows));
    if site.is_square() {
        view.slice_axis_inplace(Axis(axis + 1), Slice::from(..keys));
    }
    if view.shape() == array.shape() { array } else { view.to_owned() }
}

fn dict_of<'py>(py: Python<'py>, session: &actscope::Session, text: &Generated) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("prompt", text.prompt)?;
    dict.set_item("sample", text.sample)?;
    dict.set_item("ids", &text.ids)?;
    dict.set_item("prompt_tokens", text.prompt_tokens)?;
    let decoded = session.model().tokenizer().ok().and_then(|tokenizer| tokenizer.decode(text.new_ids()).ok());
    dict.set_item("text", decoded)?;
    dict.set_item("stop", stop_name(text.stop))?;
    let logprobs: ndarray::Array1<f64> = text.new.iter().map(|token| token.logprob).collect();
    dict.set_item("logprobs", logprobs.into_pyarray(py))?;
    dict.set_item("alternatives", text.new.iter().map(|token| token.alternatives.clone()).collect::<Vec<_>>())?;
    let n_rows = text.new.first().map_or(0, |token| token.lens.len());
    let row =
        |row: usize| text.new.iter().map(|token| prediction_out(&token.lens[row])).collect::<Vec<PredictionOut>>();
    dict.set_item("lens", (0..n_rows).map(row).collect::<Vec<_>>())?;
    Ok(dict)
}

/// The hooks of the logit lens's rows.
#[pyfunction]
pub fn lens_hooks(session: &Session) -> Vec<String> {
    lens::sites(session.inner().model().config().n_layer).map(Site::name).collect()
}

/// For every text the log-probability of each token but the first, in nats; without a window's size, in windows as long as
/// the context.
#[pyfunction]
pub fn score<'py>(
    py: Python<'py>,
    session: &Session,
    ids: Vec<Vec<u32>>,
    window: Option<(usize, usize)>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<Bound<'py, numpy::PyArray1<f64>>>> {
    let most = session.inner().model().config().n_positions;
    let (size, stride) = window.unwrap_or((most, most.div_ceil(2)));
    if !(1..=most).contains(&size) || !(1..=size).contains(&stride) {
        let message = format!(
            "a window of {size} tokens, each {stride} after the one before, does not exist: at most {most} positions, and a stride of 1 \
             to the window's size"
        );
        return Err(error::of_kind(py, "batch", message));
    }
    let windows = Windows { size, stride };
    let scores = session.without_gil(py, progress, &Default::default(), |session, hear| {
        pollster::block_on(session.score_async(&ids, windows, Some(hear)))
    })?;
    for (text, score) in scores.iter().enumerate() {
        if let Some(place) = score.logprobs.iter().position(|p| !p.is_finite()) {
            let message = format!(
                "the log-probability of token {} of text {text} is not a number, so the text has no score; `run` warns of the first hook \
                 that holds a NaN or an infinity",
                place + 1
            );
            return Err(error::of_kind(py, "run", message));
        }
    }
    Ok(scores.into_iter().map(|score| ndarray::Array1::from(score.logprobs).into_pyarray(py)).collect())
}
