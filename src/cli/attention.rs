//! `actscope attention`: attention patterns or scores of one head, or of a grid of heads by layers. Read next:
//! `../plot/attention.rs`, which draws them.

use super::Failure;
use super::lists;
use super::picture::PictureArgs;
use crate::hooks::capture::Capture;
use crate::hooks::request::{Hooks, Select};
use crate::hooks::site::Site;
use crate::output::number;
use crate::plot::attention::{Attention, Head};
use crate::plot::colour::Scale;
use crate::session::Progress;
use clap::{Args, ValueEnum};
use ndarray::{ArrayView1, ArrayView2, Axis, Ix2};
use serde::ser::{Serialize, SerializeSeq, Serializer};

/// Arguments of `actscope attention`.
#[derive(Args)]
pub(crate) struct AttentionCommand {
    #[command(flatten)]
    picture: PictureArgs,
    /// Layers: 0 is the first and -1 the last; also lists (1,3) and ranges (1..3, without 3). Repeatable [default: all]
    #[arg(short, long, value_name = "N", allow_hyphen_values = true)]
    layer: Vec<String>,
    /// Heads, written like layers. Repeatable [default: all]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    head: Vec<String>,
    /// Which values of a head to show
    #[arg(long, value_enum, default_value_t = Kind::Pattern)]
    kind: Kind,
    /// Show every head before and after the edits, side by side
    #[arg(long, requires = "edit")]
    compare: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// The softmax over keys: each row adds up to 1
    Pattern,
    /// The input of that softmax: query times key, scaled and masked
    Scores,
}

/// The values of the picture, for --json.
#[derive(serde::Serialize)]
struct Numbers<'a> {
    heads: Vec<HeadNumbers<'a>>,
}

#[derive(serde::Serialize)]
struct HeadNumbers<'a> {
    layer: usize,
    head: usize,
    /// The hook of the values.
    hook: String,
    /// True for a head of the edited run, if the unedited head is shown beside it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    edited: bool,
    /// [query, key]; null for keys after the query.
    values: Seen<'a>,
}

/// [query, key] as nested lists; null for masked entries.
struct Seen<'a>(ArrayView2<'a, f32>);

impl Serialize for Seen<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        struct Row<'a>(usize, ArrayView1<'a, f32>);
        struct Value(f32);
        impl Serialize for Value {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                number(&self.0, to)
            }
        }
        impl Serialize for Row<'_> {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                let seen = |(key, value): (usize, &f32)| (key <= self.0).then_some(Value(*value));
                to.collect_seq(self.1.iter().enumerate().map(seen))
            }
        }
        let mut rows = to.serialize_seq(Some(self.0.nrows()))?;
        for (query, row) in self.0.rows().into_iter().enumerate() {
            rows.serialize_element(&Row(query, row))?;
        }
        rows.end()
    }
}

impl AttentionCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (files, mut canvas) = self.picture.open()?;
        let layers = lists::chosen("layer", &self.layer, files.config().n_layer)?;
        let heads = lists::chosen("head", &self.head, files.config().n_head)?;
        // A tap takes a range of heads, so it also records those between the chosen ones.
        let range = heads[0]..heads[heads.len() - 1] + 1;
        let mut hooks = files.hooks();
        for layer in &layers {
            hooks.tap_at(self.site(*layer), Select::all().heads(range.clone()))?;
        }
        let session = self.picture.session(files)?;
        let plain = hooks.clone();
        self.picture.edit(&mut canvas, &session, &mut hooks)?;
        let captured = |hooks: &Hooks| -> Result<Capture, Failure> {
            let run = async |told: Progress<'_>| session.run_async(&canvas.batch, hooks, Some(told)).await;
            let capture = self.picture.model.with_progress("blocks", run)?;
            self.picture.nan.judge_capture(&capture, None)?;
            Ok(capture)
        };
        let mut before = if self.compare { Some(captured(&plain)?) } else { None };
        let mut capture = captured(&hooks)?;

        let mut shown = Vec::with_capacity(layers.len() * heads.len());
        for layer in &layers {
            // Remove the values from the capture layer by layer: for a long text, a second copy would take hundreds of
            // megabytes.
            let array = capture.take(self.site(*layer)).expect("a tapped site is in the capture");
            let unedited = before.as_mut().and_then(|before| before.take(self.site(*layer)));
            for head in &heads {
                for (array, edited) in unedited.iter().map(|array| (array, false)).chain([(&array, self.compare)]) {
                    let values = array.index_axis(Axis(0), 0).index_axis_move(Axis(0), head - range.start);
                    let values = values.into_dimensionality::<Ix2>().expect("attention is [batch, head, query, key]");
                    shown.push(Head { layer: *layer, head: *head, edited, values: masked(values) });
                }
            }
        }
        let scale = match self.kind {
            Kind::Pattern => Scale::share(),
            Kind::Scores => Scale::linear(shown.iter().flat_map(|head| head.values.iter().copied())),
        };
        if let Some(warning) = scale.warning() {
            self.picture.model.say(format_args!("note: {warning}"));
        }
        let (noun, name) = match self.kind {
            Kind::Pattern => ("attention pattern", "Attention"),
            Kind::Scores => ("attention scores", "Score"),
        };
        let what = match shown.as_slice() {
            [Head { layer, head, .. }] => format!("{noun} of layer {layer}, head {head}"),
            _ => format!("{noun} of {} heads", layers.len() * heads.len()),
        };
        let heading = canvas.heading(format!("{what} of {}", session.model().name()));
        let picture = Attention { heading, name, heads: shown, scale };
        let numbers = Numbers { heads: picture.heads.iter().map(|head| self.numbers(head)).collect() };
        self.picture.show(canvas, &session, &picture, &numbers)
    }

    fn site(&self, layer: usize) -> Site {
        match self.kind {
            Kind::Pattern => Site::Pattern(layer),
            Kind::Scores => Site::AttnScores(layer),
        }
    }

    fn numbers<'a>(&self, head: &'a Head) -> HeadNumbers<'a> {
        let values = Seen(head.values.view());
        HeadNumbers {
            layer: head.layer,
            head: head.head,
            hook: self.site(head.layer).name(),
            edited: head.edited,
            values,
        }
    }
}

/// A head's values [query, key], with -inf for masked entries.
fn masked(values: ArrayView2<'_, f32>) -> ndarray::Array2<f32> {
    let mut values = values.to_owned();
    for ((query, key), value) in values.indexed_iter_mut() {
        if key > query {
            *value = f32::NEG_INFINITY;
        }
    }
    values
}
