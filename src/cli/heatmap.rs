//! `actscope heatmap`: a heat map of tokens by hidden dimensions. Read next: `../plot/heatmap.rs`, which draws it.

use super::Failure;
use super::picture::{PictureArgs, wrong_shape};
use super::run::{SiteArgs, TokenArgs};
use crate::hooks::capture::Capture;
use crate::hooks::site::{Axis as SiteAxis, Site};
use crate::output::{Nested, number};
use crate::plot::colour::Scale;
use crate::plot::heatmap::{Dims, Heatmap, Panel};
use crate::session::Progress;
use clap::{Args, ValueEnum};
use ndarray::{Array2, ArrayView2, Axis, Ix2};
use serde::Serialize;
use std::collections::BTreeMap;

/// Arguments of `actscope heatmap`.
#[derive(Args)]
pub(crate) struct HeatmapCommand {
    #[command(flatten)]
    picture: PictureArgs,
    #[command(flatten)]
    sites: SiteArgs,
    #[command(flatten)]
    token: TokenArgs,
    /// Dimensions to show: all, a number of evenly spaced ones, a list such as 5,6,7, a range a..b, or top:N for the N
    /// strongest
    #[arg(long, value_name = "DIMS", default_value = "100")]
    dims: Dims,
    /// How values map to colours
    #[arg(long, value_enum, default_value_t = ScaleArg::Linear)]
    scale: ScaleArg,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScaleArg {
    /// Centred on zero; clipped at the 98th percentile where the largest value is more than twice that
    Linear,
    /// Linear near zero, logarithmic beyond, nothing clipped
    Symlog,
    /// Linear, with a separate scale for every layer or hook
    PerLayer,
}

/// The values of the picture, for --json.
#[derive(Serialize)]
struct Numbers<'a> {
    positions: &'a [usize],
    hooks: BTreeMap<&'a str, Table<'a>>,
}

#[derive(Serialize)]
struct Table<'a> {
    dims: &'a [usize],
    /// [positions, dims]
    values: Nested<'a>,
    /// The magnitude at which the colour scale ends.
    #[serde(serialize_with = "number")]
    limit: f32,
}

impl Table<'_> {
    fn of(panel: &Panel) -> Table<'_> {
        Table { dims: &panel.dims, values: Nested(panel.values.view().into_dyn()), limit: panel.scale.limit }
    }
}

impl HeatmapCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (files, mut canvas) = self.picture.open()?;
        let mut hooks = self.sites.hooks(&files, &self.picture.model)?;
        for site in hooks.sites() {
            if !matches!(site.axes(), [SiteAxis::Pos, _]) {
                let instead = if site.is_square() { "; `actscope attention` shows it" } else { "" };
                return Err(wrong_shape(site, &format!("hooks of [P, n]{instead}")));
            }
        }
        let positions = self.token.positions(std::slice::from_ref(&canvas.tokens), &self.picture.model)?;
        if let Some(positions) = &positions {
            hooks.at_positions(positions);
        }
        // Dimensions that do not exist are an error before anything is computed.
        for site in hooks.sites() {
            let n = hooks.shape(site, &canvas.batch)[2];
            if let Dims::Span(..) | Dims::List(_) = self.dims {
                self.dims.of(&[], n).map_err(|e| Failure::Usage(format!("--dims: {site}: {e}")))?;
            }
        }
        let session = self.picture.session(files)?;
        self.picture.edit(&mut canvas, &session, &mut hooks)?;
        let run = async |told: Progress<'_>| session.run_async(&canvas.batch, &hooks, Some(told)).await;
        let capture = self.picture.model.with_progress("blocks", run)?;
        self.picture.nan.judge_capture(&capture, positions.as_ref().map(|of_texts| of_texts[0].as_slice()))?;

        let positions = positions.map_or((0..canvas.tokens.len()).collect(), |mut of_texts| of_texts.remove(0));
        let panels = self.panels(&capture)?;
        if let Some(note) = panels.iter().find_map(|panel| panel.scale.warning()) {
            self.picture.model.say(format_args!("note: {note}; --scale symlog shows all"));
        }
        let names = match panels.as_slice() {
            [panel] => panel.hook.clone(),
            several => format!("{} hooks", several.len()),
        };
        let heatmap = Heatmap {
            heading: canvas.heading(format!("{names} of {}", session.model().name())),
            rows: positions.iter().map(|p| (*p, canvas.tokens[*p].clone())).collect(),
            panels,
            per_layer: self.scale == ScaleArg::PerLayer,
        };
        let numbers = Numbers {
            positions: &positions,
            hooks: heatmap.panels.iter().map(|panel| (panel.hook.as_str(), Table::of(panel))).collect(),
        };
        self.picture.show(canvas, &session, &heatmap, &numbers)
    }

    /// One panel per hook. Hooks of the same width show the same dimensions.
    fn panels(&self, capture: &Capture) -> Result<Vec<Panel>, Failure> {
        let tables: Vec<(Site, ArrayView2<'_, f32>)> = capture
            .iter()
            .map(|(site, array)| {
                let of_text = array.index_axis(Axis(0), 0).into_dimensionality::<Ix2>();
                (site, of_text.expect("the hooks of a heatmap are [batch, pos, n]"))
            })
            .collect();
        let mut panels = Vec::with_capacity(tables.len());
        for (site, table) in &tables {
            let n = table.ncols();
            let alike: Vec<ArrayView2<'_, f32>> =
                tables.iter().map(|(_, other)| *other).filter(|other| other.ncols() == n).collect();
            let dims = self.dims.of(&alike, n).map_err(|e| Failure::Usage(format!("--dims: {site}: {e}")))?;
            let values = Array2::from_shape_fn((table.nrows(), dims.len()), |(t, d)| table[[t, dims[d]]]);
            let of = match site.axes()[1] {
                SiteAxis::Inner => "neuron",
                SiteAxis::Vocab => "token of the vocabulary",
                _ => "hidden dimension",
            };
            let columns = match n {
                1 => "one number per token".into(),
                _ => format!("{of} ({})", self.dims.words(dims.len(), n)),
            };
            panels.push(Panel {
                hook: site.name(),
                columns,
                dims,
                scale: Scale::linear(values.iter().copied()),
                values,
            });
        }
        if self.scale != ScaleArg::PerLayer {
            let all = panels.iter().flat_map(|panel| panel.values.iter().copied());
            let scale = if self.scale == ScaleArg::Symlog { Scale::symlog(all) } else { Scale::linear(all) };
            panels.iter_mut().for_each(|panel| panel.scale = scale.clone());
        }
        Ok(panels)
    }
}
