//! `actscope lens`: the logit lens, layer by layer.

use super::Failure;
use super::picture::PictureArgs;
use crate::analysis::lens::{LensRow, Reading};
use crate::hooks::site::Site;
use crate::output::number;
use crate::plot::lens::{Cell, LensTable};
use crate::session::{Progress, Session};
use clap::Args;
use serde::Serialize;

/// Arguments of `actscope lens`.
#[derive(Args)]
pub struct LensCommand {
    #[command(flatten)]
    picture: PictureArgs,
}

/// How many of the likeliest tokens --json tells.
const TOP: usize = 5;

/// The numbers behind the picture.
#[derive(Serialize)]
struct Numbers {
    /// In run order; the last is the model's output.
    lens: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    hook: String,
    positions: Vec<Position>,
}

#[derive(Serialize)]
struct Position {
    /// The likeliest tokens, likeliest first.
    top: Vec<Guess>,
    /// Of the whole distribution, in nats.
    #[serde(serialize_with = "number")]
    entropy: f32,
    /// The token that really comes next; null at the last position.
    next: Option<Next>,
}

#[derive(Serialize)]
struct Guess {
    id: u32,
    token: String,
    #[serde(serialize_with = "number")]
    probability: f32,
}

#[derive(Serialize)]
struct Next {
    #[serde(flatten)]
    guess: Guess,
    /// 1 where no token is likelier.
    rank: usize,
}

impl LensCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (files, mut canvas) = self.picture.open()?;
        let session = self.picture.session(files)?;
        let mut hooks = session.model().hooks();
        self.picture.edit(&mut canvas, &session, &mut hooks)?;
        let run = async |told: Progress<'_>| session.lens_async(&canvas.batch, &hooks, TOP, Some(told)).await;
        let (rows, capture) = self.picture.model.with_progress("layers", run)?;
        self.picture.nan.judge_capture(&capture, None)?;

        if let Some((row, position)) = broken(&rows)
            && !self.picture.nan.allow_nan
        {
            return Err(Failure::Run(format!(
                "the logits that {} gives at position {position} are no numbers; nothing was written; --allow-nan goes on all the same",
                row.site
            )));
        }
        let n_layer = session.model().config().n_layer;
        let picture = LensTable {
            heading: canvas.heading(format!("logit lens of {}", session.model().name())),
            rows: rows.iter().map(|row| (name(row.site, n_layer), cells(&session, row))).collect(),
        };
        let numbers = Numbers { lens: rows.iter().map(|row| numbers(&session, row)).collect() };
        self.picture.show(canvas, &session, &picture, &numbers)
    }
}

/// The first reading of logits that are no numbers.
fn broken(rows: &[LensRow]) -> Option<(&LensRow, usize)> {
    rows.iter().find_map(|row| Some((row, row.texts[0].iter().position(|reading| !reading.entropy.is_finite())?)))
}

fn name(site: Site, n_layer: usize) -> String {
    match site {
        Site::ResidPost(layer) if layer + 1 == n_layer => format!("layer {layer}: output"),
        Site::ResidPost(layer) => format!("layer {layer}"),
        _ => "input".into(),
    }
}

fn cells(session: &Session, row: &LensRow) -> Vec<Cell> {
    let cell = |Reading { top, next, .. }: &Reading| {
        let (id, probability) = top[0];
        Cell { token: session.model().token(id), probability, hit: next.is_some_and(|next| next.id == id) }
    };
    row.texts[0].iter().map(cell).collect()
}

fn numbers(session: &Session, row: &LensRow) -> Row {
    let guess = |id: u32, probability: f32| Guess { id, token: session.model().token(id).text(), probability };
    let position = |Reading { top, entropy, next }: &Reading| Position {
        top: top.iter().map(|(id, probability)| guess(*id, *probability)).collect(),
        entropy: *entropy,
        next: next.map(|next| Next { guess: guess(next.id, next.probability), rank: next.rank }),
    };
    Row { hook: row.site.name(), positions: row.texts[0].iter().map(position).collect() }
}
