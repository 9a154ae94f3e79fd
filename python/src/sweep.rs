//! Sweeps for Python: patching and ablation. Owns how cases come in as plain tuples, and the numbers of many cases.

use crate::error;
use crate::picture::{Picture, TokenArg, token};
use crate::session::{Changes, EditArg, Failed, RecordOut, Session, SourcesArg, read, records, records_out};
use actscope::analysis::cases::{Case, Cases};
use actscope::analysis::grammar::ValueSpec;
use actscope::analysis::metric::{Metric, Question};
use actscope::analysis::path::PathSweep;
use actscope::analysis::statistics;
use actscope::analysis::sweep::{Replacement, Sweep, SweepAxis, SweepSite, Swept};
use actscope::hooks::request::HookError;
use actscope::hooks::site::Site;
use actscope::plot::sweep::SweepPicture;
use actscope::session::Progress;
use ndarray::ArrayD;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::Value;
use std::collections::BTreeMap;

/// A text's ids with the position that is read; the same of its source run; the answer and the wrong answer.
pub type CaseArg = ((Vec<u32>, usize), Option<(Vec<u32>, usize)>, u32, u32);

/// A case for the library.
pub fn case(((ids, position), source, answer, wrong): CaseArg, from_source: bool) -> Case {
    let question = |position| Question { position, answer, wrong };
    let aligned = source.as_ref().map_or(ids.len(), |(other, _)| ids.len().min(other.len()));
    let source = source.map(|(ids, position)| (ids, question(position)));
    Case { ids, question: question(position), source, aligned, from_source }
}

/// Cases; the edits of all runs of their texts, and those of their source runs; and what these edits take values from.
type AskedArg<'py> = (Vec<CaseArg>, Vec<EditArg<'py>>, Vec<EditArg<'py>>, SourcesArg);

/// What a sweep is over.
struct Asked {
    cases: Vec<Case>,
    edits: Changes,
    source_edits: Changes,
    failed: Failed,
}

impl Asked {
    fn new(
        py: Python<'_>,
        session: &Session,
        (cases, edits, source_edits, sources): AskedArg<'_>,
        from_source: bool,
    ) -> PyResult<Asked> {
        let failed = Failed::default();
        Ok(Asked {
            cases: cases.into_iter().map(|of| case(of, from_source)).collect(),
            edits: session.changes(py, edits, sources.clone(), true, &failed)?,
            source_edits: session.changes(py, source_edits, sources, true, &failed)?,
            failed,
        })
    }

    /// Calls `run` with the cases and with the edits of their texts and of their sources. Gives its result, and the records of the
    /// first edits.
    fn run<T: Send>(
        self,
        py: Python<'_>,
        session: &Session,
        progress: Option<Py<PyAny>>,
        run: impl FnOnce(&actscope::Session, Cases<'_>, Progress<'_>) -> Result<T, actscope::Error> + Send,
    ) -> PyResult<(T, Vec<RecordOut>)> {
        let Asked { cases, edits, source_edits, failed } = self;
        session.without_gil(py, progress, &failed, |session, hear| {
            let model = session.model();
            let (mut of_runs, mut of_sources) = (model.hooks(), model.hooks());
            let runs = model.batch(&cases.iter().map(|case| &case.ids).collect::<Vec<_>>())?;
            let written = edits.add_to(session, &runs, &mut of_runs, hear)?;
            let sources: Option<Vec<&Vec<u32>>> = cases.iter().map(|case| Some(&case.source.as_ref()?.0)).collect();
            if let Some(sources) = sources {
                source_edits.add_to(session, &model.batch(&sources)?, &mut of_sources, hear)?;
            }
            let given = run(session, Cases { cases: &cases, edits: &of_runs, source_edits: &of_sources }, hear)?;
            Ok((given, records_out(records(of_runs.edit_records(), written))))
        })
    }
}

/// One metric of many runs that differ from an unchanged one in one place each. `replacement` is `patch`, `zero`, `mean`, or a file of
/// values, `[F*]FILE[#ARRAY]`. Gives a dict: `shape`, `sites` and `axes`; `values` [case, cell]; `unchanged` and `source`, the metric of
/// every case's own runs; `edits`; and of several cases `standard_error`, `effect_standard_error`, `ci` and `p` by cell. With `path`, a path as it is written and whether other heads are frozen, it is a sweep over the path's senders, and
/// `at` and `replacement` are not looked at. With `fast` it is estimated from gradients; with `align_end` texts line up by their last
/// tokens.
#[pyfunction]
pub fn sweep<'py>(
    py: Python<'py>,
    session: &Session,
    asked: AskedArg<'py>,
    at: Vec<String>,
    by: Vec<String>,
    metric: &str,
    replacement: &str,
    from_source: bool,
    path: Option<(String, bool)>,
    fast: bool,
    align_end: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let wrong = |e: String| error::of_kind(py, "hook", e);
    let hook = |e: HookError| error::of(py, &actscope::Error::Hook(e));
    let config = session.inner().model().config();
    let mut axes: Vec<SweepAxis> = by.iter().map(|axis| axis.parse()).collect::<Result<_, _>>().map_err(wrong)?;
    let metric: Metric = metric.parse().map_err(wrong)?;
    let mut asked = Asked::new(py, session, asked, from_source)?;
    if align_end {
        let least = asked.cases.iter().map(|case| case.aligned).min().unwrap_or(0);
        asked.cases.iter_mut().for_each(|case| case.aligned = least);
    }
    if let Some((written, frozen)) = path {
        let sweep = PathSweep::new(&written, &axes, frozen, metric, config).map_err(|e| error::of(py, &e.into()))?;
        let swept = asked.run(py, session, progress, |session, all, hear| {
            pollster::block_on(session.path_sweep_async(&sweep, all, Some(hear)))
        })?;
        return found(py, swept, vec![written], sweep.axes());
    }
    let sites: Vec<SweepSite> =
        at.iter().map(|name| SweepSite::find(name, config)).collect::<Result<_, _>>().map_err(hook)?;
    if axes.is_empty() {
        let layered = sites.iter().all(|site| site.of_layer[0].layer().is_some());
        axes.extend(layered.then_some(SweepAxis::Layer));
        axes.push(if sites.iter().all(SweepSite::has_heads) { SweepAxis::Head } else { SweepAxis::Pos });
    }
    let replacement = match replacement {
        "patch" => Replacement::Patch,
        "zero" => Replacement::Zero,
        "mean" => Replacement::Mean,
        file => Replacement::Values(values(file, &sites).map_err(wrong)?),
    };
    let sweep = Sweep { sites, axes, replacement, metric };
    let swept = asked.run(py, session, progress, |session, all, hear| {
        if fast {
            pollster::block_on(session.patch_fast_async(&sweep, all, Some(hear)))
        } else {
            pollster::block_on(session.sweep_async(&sweep, all, Some(hear)))
        }
    })?;
    let names = sweep.sites.iter().map(|site| site.name.clone()).collect();
    found(py, swept, names, &sweep.axes)
}

/// The values that `[F*]FILE[#ARRAY]` has for each site.
fn values(written: &str, sites: &[SweepSite]) -> Result<BTreeMap<Site, ArrayD<f32>>, String> {
    let ValueSpec::File { factor, path, array } = written.parse()? else {
        return Err(format!("{written:?} is none of: zero, mean, or a file of values"));
    };
    let of_site = |site: Site| -> Result<_, String> {
        Ok((site, read(&path, array.as_deref(), site)?.mapv(|value| factor * value)))
    };
    sites.iter().flat_map(|site| site.of_layer.iter().copied()).map(of_site).collect()
}

/// Sweeps that are estimated from one gradient: each of a site, by axes of its own. Gives a dict as [`sweep`] does for each.
#[pyfunction]
pub fn sweep_fast<'py>(
    py: Python<'py>,
    session: &Session,
    asked: AskedArg<'py>,
    of: Vec<(String, Vec<String>)>,
    metric: &str,
    from_source: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let wrong = |e: String| error::of_kind(py, "hook", e);
    let config = session.inner().model().config();
    let metric: Metric = metric.parse().map_err(wrong)?;
    let asked = Asked::new(py, session, asked, from_source)?;
    let sweep = |(name, axes): &(String, Vec<String>)| -> PyResult<Sweep> {
        let site = SweepSite::find(name, config).map_err(|e| error::of(py, &actscope::Error::Hook(e)))?;
        let axes = axes.iter().map(|axis| axis.parse()).collect::<Result<_, _>>().map_err(wrong)?;
        Ok(Sweep { sites: vec![site], axes, replacement: Replacement::Patch, metric })
    };
    let sweeps = of.iter().map(sweep).collect::<PyResult<Vec<Sweep>>>()?;
    let (swept, edits) = asked.run(py, session, progress, |session, all, hear| {
        pollster::block_on(session.patch_fast_each_async(&sweeps, all, Some(hear)))
    })?;
    let each = swept.into_iter().zip(of).zip(&sweeps);
    each.map(|((swept, (name, _)), sweep)| found(py, (swept, edits.clone()), vec![name], &sweep.axes)).collect()
}

/// The numbers of a sweep, and its edits.
fn found<'py>(
    py: Python<'py>,
    (swept, edits): (Swept, Vec<RecordOut>),
    sites: Vec<String>,
    axes: &[SweepAxis],
) -> PyResult<Bound<'py, PyDict>> {
    let n = swept.values.len();
    let n_cells: usize = swept.shape.iter().product();
    let by_cell = |of: &dyn Fn(usize, usize) -> f64| -> Vec<Vec<f64>> {
        (0..n_cells).map(|cell| (0..n).map(|case| of(case, cell)).collect()).collect()
    };
    let dict = PyDict::new(py);
    dict.set_item("shape", &swept.shape)?;
    dict.set_item("sites", sites)?;
    dict.set_item("axes", axes.iter().map(|axis| axis.name()).collect::<Vec<_>>())?;
    if n > 1 {
        let values = by_cell(&|case, cell| swept.values[case][cell]);
        let effects = by_cell(&|case, cell| swept.values[case][cell] - swept.unchanged[case]);
        for (name, lists) in [("standard_error", &values), ("effect_standard_error", &effects)] {
            dict.set_item(name, lists.iter().map(|list| statistics::standard_error(list)).collect::<Vec<f64>>())?;
        }
        dict.set_item("ci", statistics::intervals(&values, n).into_iter().map(Vec::from).collect::<Vec<_>>())?;
        dict.set_item("p", statistics::p_values(&effects, n))?;
    }
    dict.set_item("values", swept.values)?;
    dict.set_item("unchanged", swept.unchanged)?;
    dict.set_item("source", swept.source)?;
    dict.set_item("edits", edits)?;
    Ok(dict)
}

/// A sweep as heat maps. Labels are by axis; `text` has the tokens of the clean and the corrupt text where there is one pair.
#[pyfunction]
pub fn sweep_picture(
    what: String,
    name: String,
    axes: Vec<String>,
    labels: Vec<Vec<String>>,
    text: Option<(Vec<TokenArg>, Vec<TokenArg>)>,
    shown: Vec<f64>,
    values: Vec<f64>,
    errors: Option<Vec<f64>>,
    p: Option<Vec<f64>>,
) -> Picture {
    let axes: Vec<&str> = axes.iter().map(String::as_str).collect();
    let labels = labels.into_iter().map(|labels| labels.into_iter().map(Value::from).collect()).collect();
    let tokens = |tokens: Vec<TokenArg>| tokens.into_iter().map(token).collect();
    let text = text.map(|(clean, corrupt)| (tokens(clean), tokens(corrupt)));
    Picture::of_sweep(SweepPicture::new(
        what,
        name,
        &axes,
        labels,
        text,
        &shown,
        Some(&values),
        errors.as_deref(),
        p.as_deref(),
    ))
}
