//! `actscope lens`: the logit lens, layer by layer. Read next: `../analysis/lens.rs`, which computes it.

use super::Failure;
use super::picture::PictureArgs;
use super::target::model_provenance;
use crate::analysis::grammar::ValueSpec;
use crate::analysis::lens::{self, LensRow, Prediction};
use crate::batch::Batch;
use crate::hooks::capture::Capture;
use crate::hooks::request::Hooks;
use crate::hooks::site::Site;
use crate::output::{arrays, number};
use crate::plot::lens::{Cell, LensTable};
use crate::session::{Progress, Session};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// Arguments of `actscope lens`.
#[derive(Args)]
pub(crate) struct LensCommand {
    #[command(flatten)]
    picture: PictureArgs,
    /// What each row decodes
    #[arg(long, value_enum, default_value_t = Of::Accumulated)]
    of: Of,
    /// Show every row before and after the edits
    #[arg(long, requires = "edit")]
    compare: bool,
    /// Decode directions instead of a text: [F*]FILE[#ARRAY] with [n_embd] or [n, n_embd] numbers, through the
    /// unembedding
    #[arg(long, value_name = "FILE#ARRAY", conflicts_with_all = ["texts", "file", "document", "ids", "out", "edit", "of"])]
    vector: Option<String>,
    /// Apply the final LayerNorm to each direction first
    #[arg(long, requires = "vector")]
    ln: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Of {
    /// The residual stream after each block: the sum of all that the embeddings and blocks have added so far
    Accumulated,
    /// What the embeddings and each block's attention and MLP add, each separately
    Component,
}

/// The number of most likely tokens in the output of --json.
pub(super) const TOP: usize = 5;

/// The values of the picture, for --json.
#[derive(Serialize)]
struct Numbers {
    /// In run order; the last is the model's output.
    lens: Vec<Row>,
    /// The rows of the run without edits; only with --compare.
    #[serde(skip_serializing_if = "Option::is_none")]
    unedited: Option<Vec<Row>>,
}

#[derive(Serialize)]
pub(super) struct Row {
    hook: String,
    positions: Vec<Position>,
}

#[derive(Serialize)]
struct Position {
    /// The most likely tokens, most likely first.
    top: Vec<Guess>,
    /// Entropy of the whole distribution, in nats.
    #[serde(serialize_with = "number")]
    entropy: f32,
    /// The text's actual next token; null at the last position.
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
    /// The rank of the token; 1 if no token is more likely.
    rank: usize,
}

impl LensCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        if let Some(vector) = &self.vector {
            return self.read_vectors(vector);
        }
        let (files, mut canvas) = self.picture.open()?;
        let session = self.picture.session(files)?;
        let mut hooks = session.model().hooks();
        self.picture.edit(&mut canvas, &session, &mut hooks)?;
        let (rows, capture) = self.read(&session, &canvas.batch, &hooks)?;
        self.picture.nan.judge_capture(&capture, None)?;

        if let Some((row, position)) = broken(&rows)
            && !self.picture.nan.allow_nan
        {
            return Err(Failure::Run(format!(
                "the logits of {} at position {position} are NaN or infinite; nothing was written; use --allow-nan to continue anyway",
                row.site
            )));
        }
        let n_layer = session.model().config().n_layer;
        let unedited = if self.compare {
            let plain = session.model().hooks();
            let (rows, capture) = self.read(&session, &canvas.batch, &plain)?;
            self.picture.nan.judge_capture(&capture, None)?;
            Some(rows)
        } else {
            None
        };
        let mut shown = Vec::new();
        for (n, row) in rows.iter().enumerate() {
            let after = if self.compare { ", edited" } else { "" };
            // The picture has its first row at the bottom, so the unedited row is above the edited one.
            shown.push((name(row.site, n_layer) + after, cells(&session, &row.texts[0])));
            shown.extend(unedited.as_ref().map(|rows| (name(row.site, n_layer), cells(&session, &rows[n].texts[0]))));
        }
        let picture = LensTable {
            heading: canvas.heading(format!("{} of {}", self.title(), session.model().name())),
            rows: shown,
        };
        let all =
            |rows: &[LensRow]| rows.iter().map(|row| numbers(&session, row.site, &row.texts[0])).collect::<Vec<Row>>();
        let numbers = Numbers { lens: all(&rows), unedited: unedited.as_deref().map(all) };
        self.picture.show(canvas, &session, &picture, &numbers)
    }
}

/// Tokens shown at each end of a direction.
const ENDS: usize = 10;

impl LensCommand {
    fn title(&self) -> &'static str {
        match self.of {
            Of::Accumulated => "logit lens",
            Of::Component => "logit lens of each component",
        }
    }

    /// Runs the lens that --of names.
    fn read(&self, session: &Session, batch: &Batch, hooks: &Hooks) -> Result<(Vec<LensRow>, Capture), Failure> {
        let run = async |told: Progress<'_>| match self.of {
            Of::Accumulated => session.lens_async(batch, hooks, TOP, Some(told)).await,
            Of::Component => session.lens_of_components_async(batch, hooks, TOP, Some(told)).await,
        };
        Ok(self.picture.model.with_progress("layers", run)?)
    }

    /// Prints, for each direction of a file, the tokens whose logits it raises and lowers most.
    ///
    /// # Errors
    /// [`Failure::Usage`] for values that are not directions of this model, [`Failure::Run`] for a file that cannot be
    /// read.
    fn read_vectors(&self, written: &str) -> Result<(), Failure> {
        let usage = |e: String| Failure::Usage(format!("--vector: {e}"));
        let ValueSpec::File { factor, path, array } = written.parse().map_err(usage)? else {
            return Err(usage(format!("{written:?} is a number; give [F*]FILE[#ARRAY]")));
        };
        let files = self.picture.processed(self.picture.model.open()?)?;
        let width = files.config().n_embd;
        let values = arrays::read(Path::new(&path), array.as_deref(), None)
            .map_err(|e| Failure::Run(format!("--vector: {e}")))?
            .mapv(|v| factor * v);
        if values.shape().last() != Some(&width) {
            return Err(usage(format!(
                "{path} is {:?}, and a direction of this model has {width} numbers",
                values.shape()
            )));
        }
        let values = values.to_shape((values.len() / width, width)).map_err(|e| usage(e.to_string()))?.into_owned();
        let vectors =
            lens::directions(files.checkpoint(), values.view(), self.ln).map_err(crate::session::Error::from)?;
        let guess = |(id, logit): &(u32, f64)| json!({"id": id, "token": files.token(*id).text(), "logit": logit});
        let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
        let ends: Vec<(lens::TokenLogits, lens::TokenLogits)> =
            vectors.iter().map(|logits| lens::ends(logits, ENDS)).collect();
        if self.picture.model.json {
            let both = ends.iter().map(|(top, bottom)| {
                json!({"top": top.iter().map(guess).collect::<Vec<_>>(), "bottom": bottom.iter().map(guess).collect::<Vec<_>>()})
            });
            let mut document = model_provenance(&files);
            document.extend([
                ("vector".to_string(), json!(written)),
                ("ln".to_string(), json!(self.ln)),
                ("vectors".to_string(), both.collect()),
            ]);
            writeln!(stdout, "{}", Value::Object(document))?;
            return Ok(stdout.flush()?);
        }
        for (n, (top, bottom)) in ends.iter().enumerate() {
            for (name, end) in [("raises", top), ("lowers", bottom)] {
                let shown = end.iter().map(|(id, logit)| format!("\"{}\" {logit:+.3}", files.token(*id).label()));
                writeln!(stdout, "{n} {name}: {}", shown.collect::<Vec<_>>().join("  "))?;
            }
        }
        Ok(stdout.flush()?)
    }
}

/// The first row and position whose logits are NaN or infinite.
fn broken(rows: &[LensRow]) -> Option<(&LensRow, usize)> {
    rows.iter().find_map(|row| Some((row, row.texts[0].iter().position(|prediction| !prediction.entropy.is_finite())?)))
}

/// The label of a row of the table.
pub(super) fn name(site: Site, n_layer: usize) -> String {
    match site {
        Site::ResidPost(layer) if layer + 1 == n_layer => format!("layer {layer}: output"),
        Site::ResidPost(layer) => format!("layer {layer}"),
        Site::ResidPre(0) => "input".into(),
        Site::AttnOut(layer) => format!("attn {layer}"),
        Site::MlpOut(layer) => format!("mlp {layer}"),
        Site::Embed => "embed".into(),
        Site::PosEmbed => "pos_embed".into(),
        other => other.name(),
    }
}

/// The cells of one row of the table.
pub(super) fn cells(session: &Session, predictions: &[Prediction]) -> Vec<Cell> {
    let cell = |Prediction { top, next, .. }: &Prediction| {
        let (id, probability) = top[0];
        Cell { token: session.model().token(id), probability, hit: next.is_some_and(|next| next.id == id) }
    };
    predictions.iter().map(cell).collect()
}

/// The values of one row of the table.
pub(super) fn numbers(session: &Session, site: Site, predictions: &[Prediction]) -> Row {
    let guess = |id: u32, probability: f32| Guess { id, token: session.model().token(id).text(), probability };
    let position = |Prediction { top, entropy, next }: &Prediction| Position {
        top: top.iter().map(|(id, probability)| guess(*id, *probability)).collect(),
        entropy: *entropy,
        next: next.map(|next| Next { guess: guess(next.id, next.probability), rank: next.rank }),
    };
    Row { hook: site.name(), positions: predictions.iter().map(position).collect() }
}
