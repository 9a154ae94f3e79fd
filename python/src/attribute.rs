//! Attribution for Python: logits divided into parts, gradients by hooks, and edges. Owns how questions come in as plain tuples.

use crate::error;
use crate::picture::{Picture, TokenArg, token};
use crate::recorded::{ArraysOut, arrays_out};
use crate::session::{EditArg, Failed, RecordOut, SelectArg, Session, SourcesArg, read, records, records_out};
use crate::sweep::{CaseArg, case};
use actscope::analysis::attribute::By;
use actscope::analysis::attribute_gradient::Along;
use actscope::analysis::cases::Case;
use actscope::analysis::edges::{Edge, Edges, Writer, readers};
use actscope::analysis::gradients::{GradientOptions, Target};
use actscope::analysis::metric::{Metric, Question};
use actscope::hooks::capture::Capture;
use actscope::plot::Heading;
use actscope::plot::bars::Bars;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;

/// A metric with a position, an answer and a wrong answer for each text; or a linear function as `--grad dot:` has it, without its
/// first word.
type TargetArg = (String, Option<Vec<(usize, u32, u32)>>);

/// The total, the labels, the values, the remainder, and the edits with their hashes.
type AttributionOut = (f64, Vec<String>, Vec<f64>, f64, Vec<RecordOut>);

/// Values, gradients, the target of each text, and the edits with their hashes.
type GradOut<'py> = (ArraysOut<'py>, ArraysOut<'py>, Vec<f64>, Vec<RecordOut>);

/// Divides a logit, which `asked` names by position, answer and, for a difference of two, wrong answer. `steps` is of the line of integrated
/// gradients, 0 for gradient times value; without it the division is direct.
#[pyfunction]
pub fn attribute(
    py: Python<'_>,
    session: &Session,
    ids: Vec<u32>,
    asked: (usize, u32, Option<u32>),
    by: &str,
    steps: Option<usize>,
    baseline: Option<Vec<u32>>,
    edits: Vec<EditArg<'_>>,
    sources: SourcesArg,
    progress: Option<Py<PyAny>>,
) -> PyResult<AttributionOut> {
    let (position, answer, wrong) = asked;
    let by: By = by.parse().map_err(|e: String| error::of_kind(py, "hook", e))?;
    let batch = session.batch(py, &[ids])?;
    let failed = Failed::default();
    let changes = session.changes(py, edits, sources, true, &failed)?;
    let question = Question { position, answer, wrong: wrong.unwrap_or(answer) };
    let along = match steps {
        None => None,
        Some(0) => Some(Along::Here),
        Some(steps) => Some(Along::Line { steps, from: baseline }),
    };
    let (found, edits) = session.without_gil(py, progress, &failed, |session, hear| {
        let mut hooks = session.model().hooks();
        let written = changes.add_to(session, &batch, &mut hooks, hear)?;
        let (difference, told) = (wrong.is_some(), Some(hear));
        let found = pollster::block_on(async {
            match &along {
                None => session.attribute_direct_async(&batch, &question, difference, by, &hooks, told).await,
                Some(along) => {
                    session.attribute_gradient_async(&batch, &question, difference, by, along, &hooks, told).await
                }
            }
        })?;
        Ok((found, records(hooks.edit_records(), written)))
    })?;
    Ok((found.total, found.labels, found.values, found.remainder, records_out(edits)))
}

/// Runs texts, and differentiates a target by every value that is recorded. Without `values` there are gradients only; with
/// `checkpoint` each block is run again in the backward pass, which takes less memory.
#[pyfunction]
pub fn grad<'py>(
    py: Python<'py>,
    session: &Session,
    ids: Vec<Vec<u32>>,
    taps: Vec<(String, SelectArg)>,
    target: TargetArg,
    edits: Vec<EditArg<'py>>,
    sources: SourcesArg,
    values: bool,
    checkpoint: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<GradOut<'py>> {
    let batch = session.batch(py, &ids)?;
    let mut hooks = session.request(py, taps)?;
    let failed = Failed::default();
    let changes = session.changes(py, edits, sources, true, &failed)?;
    let (metric, questions) = target;
    let target = match questions {
        None => Target::dot(&metric, session.inner().model(), &batch, &mut read).map_err(|e| error::of(py, &e))?,
        Some(questions) => {
            let metric: Metric = metric.parse().map_err(|e: String| error::of_kind(py, "hook", e))?;
            let question = |(position, answer, wrong)| Question { position, answer, wrong };
            Target::Metric(metric, questions.into_iter().map(question).collect())
        }
    };
    let (run, written) = session.without_gil(py, progress, &failed, |session, hear| {
        let written = changes.add_to(session, &batch, &mut hooks, hear)?;
        let options = GradientOptions { gradients_only: !values, recompute: checkpoint, ..GradientOptions::default() };
        let run = session.gradients_async(&batch, &hooks, &target, options, Some(hear));
        Ok((pollster::block_on(run)?, written))
    })?;
    let out = |capture: Capture| arrays_out(py, capture, session.inner().host_memory(), |_, array| array);
    let edits = records_out(records(run.values.edits().to_vec(), written));
    Ok((out(run.values)?, out(run.gradients)?, run.target, edits))
}

/// Scores every edge of pairs. Gives a dict: `writers` and `readers`, the words of both; `from` and `to`, an index of each for every
/// edge; `scores`; and `clean` and `corrupt`, the metric of every pair's runs.
#[pyfunction]
pub fn edges<'py>(
    py: Python<'py>,
    session: &Session,
    cases: Vec<CaseArg>,
    metric: &str,
    steps: usize,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let metric: Metric = metric.parse().map_err(|e: String| error::of_kind(py, "hook", e))?;
    let cases: Vec<Case> = cases.into_iter().map(|of| case(of, true)).collect();
    let Edges { edges, clean, corrupt } = session.without_gil(py, progress, &Arc::default(), |session, hear| {
        pollster::block_on(session.edges_async(&cases, metric, steps, Some(hear)))
    })?;
    let config = session.inner().model().config();
    let (writers, readers) = (Writer::all(config), readers(config));
    let dict = PyDict::new(py);
    let words = |list: &[&dyn ToString]| list.iter().map(|part| part.to_string()).collect::<Vec<_>>();
    dict.set_item("writers", words(&writers.iter().map(|part| part as _).collect::<Vec<_>>()))?;
    dict.set_item("readers", words(&readers.iter().map(|part| part as _).collect::<Vec<_>>()))?;
    let from = edges.iter().filter_map(|edge| writers.iter().position(|writer| *writer == edge.from));
    let to = edges.iter().filter_map(|edge| readers.iter().position(|reader| *reader == edge.to));
    dict.set_item("from", from.collect::<Vec<_>>())?;
    dict.set_item("to", to.collect::<Vec<_>>())?;
    dict.set_item("scores", edges.iter().map(|edge| edge.score).collect::<Vec<_>>())?;
    dict.set_item("clean", clean)?;
    dict.set_item("corrupt", corrupt)?;
    Ok(dict)
}

/// The metric of every pair in runs that have some edges only, which are indices as [`edges`] gives them.
#[pyfunction]
pub fn edge_circuit(
    py: Python<'_>,
    session: &Session,
    cases: Vec<CaseArg>,
    metric: &str,
    kept: Vec<(usize, usize)>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<f64>> {
    let metric: Metric = metric.parse().map_err(|e: String| error::of_kind(py, "hook", e))?;
    let cases: Vec<Case> = cases.into_iter().map(|of| case(of, true)).collect();
    let config = session.inner().model().config();
    let (writers, readers) = (Writer::all(config), readers(config));
    let kept: Vec<Edge> =
        kept.into_iter().map(|(from, to)| Edge { from: writers[from], to: readers[to], score: 0.0 }).collect();
    session.without_gil(py, progress, &Arc::default(), |session, hear| {
        let mut values = Vec::new();
        for (n, case) in cases.iter().enumerate() {
            values.push(pollster::block_on(session.edge_circuit_async(case, metric, &kept))?);
            if hear(n + 1, cases.len()).is_break() {
                return Err(actscope::Error::Cancelled);
            }
        }
        Ok(values)
    })
}

/// Named numbers as bars.
#[pyfunction]
pub fn bars(text: Vec<TokenArg>, what: String, bars: Vec<(String, f64)>, notes: Vec<String>) -> Picture {
    let heading = Heading { text: text.into_iter().map(token).collect(), what };
    Picture::of_bars(Bars { heading, bars, notes })
}
