//! Pictures of arrays: the library's heatmap, attention and logit lens as SVG and PNG. Owns how Python's arrays and tokens
//! become what the library draws.

use crate::error;
use actscope::model::tokenizer::Token;
use actscope::plot::attention::{Attention, Head};
use actscope::plot::bars::Bars;
use actscope::plot::colour::Scale;
use actscope::plot::heatmap::{Dims, Heatmap, Panel};
use actscope::plot::lens::LensTable;
use actscope::plot::sweep::SweepPicture;
use actscope::plot::{self, Heading, font};
use ndarray::{Array2, ArrayView2};
use numpy::{IntoPyArray, PyArray2, PyReadonlyArray2};
use pyo3::prelude::*;
use std::path::PathBuf;

/// A token from Python: its id and its bytes, where they are known.
pub type TokenArg = (u32, Option<Vec<u8>>);

/// A token for the library.
pub fn token((id, bytes): TokenArg) -> Token {
    Token { id, bytes }
}

enum Kind {
    Heatmap(Heatmap),
    Attention(Attention),
    Bars(Bars),
    Lens(LensTable),
    Sweep(SweepPicture),
}

/// Something that can be looked at.
#[pyclass(frozen, module = "actscope._native")]
pub struct Picture(Kind);

impl Picture {
    fn picture(&self) -> &(dyn plot::Picture + Sync) {
        match &self.0 {
            Kind::Heatmap(picture) => picture,
            Kind::Attention(picture) => picture,
            Kind::Bars(picture) => picture,
            Kind::Lens(picture) => picture,
            Kind::Sweep(picture) => picture,
        }
    }

    /// Named numbers.
    pub fn of_bars(bars: Bars) -> Picture {
        Picture(Kind::Bars(bars))
    }

    /// The logit lens.
    pub fn of_lens(table: LensTable) -> Picture {
        Picture(Kind::Lens(table))
    }

    /// A sweep.
    pub fn of_sweep(picture: SweepPicture) -> Picture {
        Picture(Kind::Sweep(picture))
    }
}

#[pymethods]
impl Picture {
    /// As SVG.
    fn svg(&self, py: Python<'_>) -> PyResult<String> {
        let picture = self.picture();
        py.detach(|| picture.scene(font::in_svg).svg()).map_err(|e| error::of_kind(py, "output", e))
    }

    /// Into a .svg or .png file; gives back its size in bytes.
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<u64> {
        let picture = self.picture();
        py.detach(|| plot::File::create(&path).and_then(|file| file.write(picture)))
            .map_err(|e| error::of_output(py, &e))
    }
}

/// The numbers of a panel: its dimensions, its values [rows, dims], and where its colours end.
type Numbers<'py> = (Vec<usize>, Bound<'py, PyArray2<f32>>, f32);

/// Tables [rows, n] as one picture. A panel is a hook's name, what its columns are (`hidden dimension`), and its values; `rows`
/// are positions with tokens; `scale` is `linear`, `symlog` or `per-layer`.
#[pyfunction]
pub fn heatmap<'py>(
    py: Python<'py>,
    panels: Vec<(String, String, PyReadonlyArray2<'py, f32>)>,
    rows: Vec<(usize, TokenArg)>,
    text: Vec<TokenArg>,
    what: String,
    dims: &str,
    scale: &str,
) -> PyResult<(Picture, Vec<Numbers<'py>>)> {
    let wrong = |e: String| error::of_kind(py, "hook", e);
    let dims: Dims = dims.parse().map_err(|e: String| wrong(format!("dims: {e}")))?;
    let tables: Vec<(String, String, ArrayView2<'_, f32>)> =
        panels.iter().map(|(hook, of, values)| (hook.clone(), of.clone(), values.as_array())).collect();
    let mut drawn = Vec::with_capacity(tables.len());
    for (hook, of, table) in &tables {
        let n = table.ncols();
        // Hooks of one width show the same dimensions.
        let alike: Vec<_> = tables.iter().map(|(.., other)| *other).filter(|other| other.ncols() == n).collect();
        let chosen = dims.of(&alike, n).map_err(|e| wrong(format!("dims: {hook}: {e}")))?;
        let values = Array2::from_shape_fn((table.nrows(), chosen.len()), |(row, dim)| table[[row, chosen[dim]]]);
        let columns = match n {
            1 => "one number per token".into(),
            _ => format!("{of} ({})", dims.words(chosen.len(), n)),
        };
        let scale = Scale::linear(values.iter().copied());
        drawn.push(Panel { hook: hook.clone(), columns, dims: chosen, values, scale });
    }
    if scale != "per-layer" {
        let all = drawn.iter().flat_map(|panel| panel.values.iter().copied());
        let of_all = match scale {
            "linear" => Scale::linear(all),
            "symlog" => Scale::symlog(all),
            _ => return Err(wrong(format!("scale {scale:?} is none of: linear, symlog, per-layer"))),
        };
        drawn.iter_mut().for_each(|panel| panel.scale = of_all.clone());
    }
    let numbers =
        drawn.iter().map(|panel| (panel.dims.clone(), panel.values.clone().into_pyarray(py), panel.scale.limit));
    let numbers = numbers.collect();
    let picture = Heatmap {
        heading: Heading { text: text.into_iter().map(token).collect(), what },
        rows: rows.into_iter().map(|(position, of)| (position, token(of))).collect(),
        panels: drawn,
        per_layer: scale == "per-layer",
    };
    Ok((Picture(Kind::Heatmap(picture)), numbers))
}

/// Heads [query, key] as squares: each with its layer and its number, layer by layer, every layer with the same heads.
#[pyfunction]
pub fn attention(
    heads: Vec<(usize, usize, PyReadonlyArray2<'_, f32>)>,
    text: Vec<TokenArg>,
    what: String,
    scores: bool,
) -> Picture {
    let masked = |values: &PyReadonlyArray2<'_, f32>| {
        let mut values = values.as_array().to_owned();
        for ((query, key), value) in values.indexed_iter_mut() {
            if key > query {
                *value = f32::NEG_INFINITY;
            }
        }
        values
    };
    let heads: Vec<Head> = heads
        .iter()
        .map(|(layer, head, values)| Head { layer: *layer, head: *head, edited: false, values: masked(values) })
        .collect();
    let scale = match scores {
        true => Scale::linear(heads.iter().flat_map(|head| head.values.iter().copied())),
        false => Scale::share(),
    };
    let heading = Heading { text: text.into_iter().map(token).collect(), what };
    Picture(Kind::Attention(Attention { heading, name: if scores { "Score" } else { "Attention" }, heads, scale }))
}
