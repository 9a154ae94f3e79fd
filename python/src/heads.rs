//! Kinds of head, and circuits of heads, for Python. Owns how both are given back as plain lists.

use crate::error;
use crate::session::{EditArg, Failed, RecordOut, Session, SourcesArg, records, records_out};
use actscope::analysis::circuits::{self, CircuitKind, Composition, Depth, SingularDirection};
use actscope::analysis::heads::{self, Detection, Measure};
use actscope::analysis::lens::TokenLogits;
use ndarray::{Array1, Array2};
use numpy::IntoPyArray;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Scores [kind][layer][head], kinds being previous, duplicate and induction; and the edits with their hashes.
type HeadsOut = (Vec<Vec<Vec<f64>>>, Vec<RecordOut>);

/// Texts of random tokens, each `length` of them twice, after the token that begins texts where there is one.
#[pyfunction]
pub fn random_repeats(session: &Session, texts: usize, length: usize, seed: u64) -> Vec<Vec<u32>> {
    let model = session.inner().model();
    heads::random_repeats(model.config(), model.bos(), texts, length, seed)
}

/// How much each head is of each kind. `excluded` leaves out the attention to the first position, and that of tokens to themselves.
#[pyfunction]
pub fn head_kinds(
    py: Python<'_>,
    session: &Session,
    ids: Vec<Vec<u32>>,
    measure: &str,
    excluded: (bool, bool),
    edits: Vec<EditArg<'_>>,
    sources: SourcesArg,
    progress: Option<Py<PyAny>>,
) -> PyResult<HeadsOut> {
    let measure: Measure = measure.parse().map_err(|e: String| error::of_kind(py, "hook", format!("measure {e}")))?;
    let (exclude_bos, exclude_current) = excluded;
    let detection = Detection { measure, exclude_bos, exclude_current };
    let batch = session.batch(py, &ids)?;
    let failed = Failed::default();
    let changes = session.changes(py, edits, sources, true, &failed)?;
    let (found, edits) = session.without_gil(py, progress, &failed, |session, hear| {
        let mut hooks = session.model().hooks();
        let written = changes.add_to(session, &batch, &mut hooks, hear)?;
        let found = pollster::block_on(session.detect_heads_async(&batch, detection, &hooks, Some(hear)))?;
        Ok((found, records(hooks.edit_records(), written)))
    })?;
    if found.scores.iter().flatten().flatten().any(|score| !score.is_finite()) {
        let message = "a head has no score: its attention holds a NaN, or the exclusions leave none of a text; give longer texts or \
                       leave the exclusions out";
        return Err(error::of_kind(py, "run", message));
    }
    Ok((found.scores, records_out(edits)))
}

/// A circuit of a head, `ov` or `qk`. Gives a dict: `pairs` of tokens with their entries; `singular_values`, `left` and `right`
/// [d_head, n_embd]; `tokens`, for each of the first `top` directions the highest and lowest tokens of both sides; `eigenvalues`
/// [d_head, 2] and `score`; `reads` and `writes`, other heads with what goes through queries, keys and values.
#[pyfunction]
pub fn circuit<'py>(
    py: Python<'py>,
    session: &Session,
    head: (usize, usize),
    kind: &str,
    top: usize,
) -> PyResult<Bound<'py, PyDict>> {
    let kind: CircuitKind = kind.parse().map_err(|e: String| error::of_kind(py, "hook", format!("kind {e}")))?;
    let checkpoint = session.inner().model().checkpoint();
    let depth = Depth { pairs: top, directions: top, tokens: 5 };
    let found = py.detach(|| circuits::circuit(checkpoint, head, kind, depth)).map_err(|e| error::of(py, &e))?;
    let side = |of: fn(&SingularDirection) -> &Vec<f64>| {
        let rows = found.directions.iter().flat_map(of).copied().collect();
        let shape = (found.directions.len(), checkpoint.config().n_embd);
        Array2::from_shape_vec(shape, rows).expect("a side has n_embd numbers").into_pyarray(py)
    };
    let ends = |of: &(TokenLogits, TokenLogits)| (of.0.clone(), of.1.clone());
    let tokens = found.directions.iter().take(top).map(|one| (ends(&one.left_tokens), ends(&one.right_tokens)));
    let others = |list: &[Composition]| list.iter().map(|c| (c.layer, c.head, c.q, c.k, c.v)).collect::<Vec<_>>();
    let dict = PyDict::new(py);
    dict.set_item("pairs", found.pairs.iter().map(|pair| (pair.from, pair.to, pair.value)).collect::<Vec<_>>())?;
    let singular: Array1<f64> = found.directions.iter().map(|one| one.value).collect();
    dict.set_item("singular_values", singular.into_pyarray(py))?;
    dict.set_item("left", side(|one| &one.left))?;
    dict.set_item("right", side(|one| &one.right))?;
    dict.set_item("tokens", tokens.collect::<Vec<_>>())?;
    dict.set_item("eigenvalues", found.eigenvalues.iter().map(|[re, im]| (*re, *im)).collect::<Vec<_>>())?;
    dict.set_item("score", found.score)?;
    dict.set_item("reads", others(&found.reads))?;
    dict.set_item("writes", others(&found.writes))?;
    Ok(dict)
}
