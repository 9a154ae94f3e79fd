//! `actscope attribute`: the share of each part of the model in a logit, or in the difference of two logits.
//! Read next: `../analysis/attribute.rs` and `../analysis/attribute_gradient.rs`, which compute it.

use super::edits::mark;
use super::question::QuestionArgs;
use super::run::EditedRunArgs;
use super::target::{Findings, Target, check_finite, deliver, number, provenance};
use super::texts::{TextArgs, parse_ids};
use super::{Failure, ModelArgs};
use crate::analysis::attribute::{self, Attribution, By};
use crate::analysis::attribute_gradient::Along;
use crate::analysis::metric::Question;
use crate::hooks::site::Site;
use crate::model::tokenizer::Token;
use crate::output::arrays::Named;
use crate::plot::bars::Bars;
use crate::plot::sweep::SweepPicture;
use crate::plot::{Heading, Picture};
use crate::session::{Model, Progress, Session};
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;

/// Arguments of `actscope attribute`.
#[derive(Args)]
#[command(mut_args(super::texts::one_text))]
pub(super) struct AttributeCommand {
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    question: QuestionArgs,
    /// The parts: component, layer, head, neuron or position [default: component; position with --method integrated]
    #[arg(long, value_name = "PARTS")]
    by: Option<By>,
    /// How a part's share is computed. direct: what the part adds to the logit while the final LayerNorm's scale is
    /// held fixed, an exact sum. gradient: the part's value times the logit's gradient. integrated[=STEPS]: integrated
    /// gradients, with STEPS points from the baseline's token embeddings to the text's [STEPS: 50]
    #[arg(long, value_name = "METHOD", default_value = "direct")]
    method: Method,
    /// The baseline of integrated gradients: a text of the same number of tokens [default: zeros]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    baseline: Option<String>,
    /// The baseline text as token ids
    #[arg(long, value_name = "IDS", conflicts_with = "baseline")]
    baseline_ids: Option<String>,
    /// Show only the N largest parts; the remainder holds the others [default: all; 20 for neurons]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,
    /// Output file: .json, .csv, .npz, .safetensors, or a picture as .png or .svg [default: the terminal]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    edited: EditedRunArgs,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    Direct,
    Gradient,
    Integrated { steps: usize },
}

/// The number of points if STEPS is not given.
const STEPS: usize = 50;

impl FromStr for Method {
    type Err = String;

    fn from_str(written: &str) -> Result<Method, String> {
        match (written, written.strip_prefix("integrated=")) {
            ("direct", _) => Ok(Method::Direct),
            ("gradient", _) => Ok(Method::Gradient),
            ("integrated", _) => Ok(Method::Integrated { steps: STEPS }),
            (_, Some(steps)) => match steps.parse() {
                Ok(steps @ 1..) => Ok(Method::Integrated { steps }),
                _ => Err(format!("{steps:?} is not a number of steps (1 or more)")),
            },
            _ => Err(format!("{written:?} is none of direct, gradient, integrated or integrated=STEPS")),
        }
    }
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Direct => "direct",
            Method::Gradient => "gradient",
            Method::Integrated { .. } => "integrated",
        }
    }
}

/// How many neurons are shown if --top is not given.
const NEURONS: usize = 20;

impl AttributeCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let input = self.texts.read(&self.model)?;
        let target = self.out.as_deref().map(Target::create).transpose()?;
        let files = self.model.open()?;
        if let Some(target) = &target {
            self.texts.refuse_to_overwrite(target.path(), &files, &self.edited.edits)?;
        }
        let batch = self.texts.batch(&input, &files, &self.model)?;
        let several = batch.texts().len();
        if several > 1 {
            return Err(Failure::Usage(format!(
                "attribute takes one text and {several} were given; give one (in quotes, if it is several words)"
            )));
        }
        let tokens = files.tokens(&batch).remove(0);
        let Some(answer) = self.question.answer(&files, &self.model)? else {
            return Err(Failure::Usage(
                "attribute needs the token whose logit is attributed; name the token with --answer".into(),
            ));
        };
        let wrong = self.question.wrong(&files, &self.model)?;
        let question =
            Question { position: self.question.position(&tokens, 0)?, answer, wrong: wrong.unwrap_or(answer) };
        let plan = self.edited.edits.plan(&self.texts, &files, &batch, &self.model)?;
        let along = self.along(&files)?;
        along.iter().try_for_each(|along| along.check(&batch))?;

        let session = self.edited.run.session(files, &self.model)?;
        let mut hooks = session.model().hooks();
        let edits = self.model.edit(&plan, &session, &batch, &mut hooks)?;
        let (by, difference) = (self.by(), wrong.is_some());
        let found = self.model.with_progress("blocks", async |told: Progress<'_>| match &along {
            None => session.attribute_direct_async(&batch, &question, difference, by, &hooks, Some(told)).await,
            Some(along) => {
                let told = Some(told);
                session.attribute_gradient_async(&batch, &question, difference, by, along, &hooks, told).await
            }
        })?;
        check_finite("the attribution", found.values.iter().chain([&found.total]))?;
        let most = self.top.map(|n| n as usize).or((by == By::Neuron).then_some(NEURONS));
        let found = match most {
            Some(n) => found.strongest(n),
            None => found,
        };
        let name = |id: u32| session.model().token(id).label();
        let asked = match wrong {
            Some(wrong) => format!("logit of \"{}\" less that of \"{}\"", name(answer), name(wrong)),
            None => format!("logit of \"{}\"", name(answer)),
        };
        let how = match &along {
            None => String::new(),
            Some(Along::Here) => ", gradient times value".into(),
            Some(Along::Line { from: None, .. }) => ", integrated gradients from zero".into(),
            Some(Along::Line { from: Some(from), .. }) => {
                let tokens: Vec<Token> = from.iter().map(|id| session.model().token(*id)).collect();
                format!(", integrated gradients from \"{}\"", Token::label_of(&tokens, |_| true))
            }
        };
        let mut json = Map::new();
        let mut put = |key: &str, value: Value| json.insert(key.into(), value);
        put("command", json!("attribute"));
        put("method", json!(self.method.name()));
        if let Some(Along::Line { steps, from }) = &along {
            put("steps", json!(steps));
            put("baseline_ids", json!(from));
        }
        put("by", json!(by.name()));
        put("target", json!(attribute::metric(difference).name()));
        put("total", number(found.total));
        put("labels", json!(found.labels));
        put("values", found.values.iter().copied().map(number).collect());
        put("remainder", number(found.remainder));
        let token = |id: u32| json!({"id": id, "token": session.model().token(id).text()});
        put("answer", token(answer));
        put("wrong", wrong.map_or(Value::Null, token));
        put("position", json!(question.position));
        provenance(&session, &edits).into_iter().for_each(|(key, value)| drop(put(&key, value)));
        put("tokens", json!(tokens.iter().map(Token::text).collect::<Vec<_>>()));
        put("input_ids", json!(batch.ids()));
        let what = format!(
            "{asked} at position {}{how}, {}{}: {:.4}",
            question.position,
            session.model().name(),
            mark(&edits),
            found.total
        );
        let whole = Whole {
            found: &found,
            session: &session,
            by,
            along: along.as_ref(),
            heading: Heading { text: tokens, what },
            json,
        };
        deliver(&whole, target, &self.model)
    }
}

impl AttributeCommand {
    fn by(&self) -> By {
        let usual = if matches!(self.method, Method::Integrated { .. }) { By::Position } else { By::Component };
        self.by.unwrap_or(usual)
    }

    /// Where gradients are taken; `None` for the direct method.
    fn along(&self, files: &Model) -> Result<Option<Along>, Failure> {
        let ids = match (&self.baseline, &self.baseline_ids) {
            (Some(text), _) => Some(self.texts.encoded(std::slice::from_ref(text), files, &self.model)?),
            (None, Some(ids)) => {
                let lists = parse_ids(ids).map_err(|e| Failure::Usage(format!("--baseline-ids: {e}")))?;
                Some(self.texts.begun_and_cut(lists, files, &self.model)?)
            }
            (None, None) => None,
        };
        match self.method {
            Method::Integrated { steps } => Ok(Some(Along::Line { steps, from: ids.map(|ids| ids.concat()) })),
            _ if ids.is_some() => Err(Failure::Usage(
                "--baseline belongs to --method integrated; give that method, or leave the baseline out".into(),
            )),
            Method::Gradient => Ok(Some(Along::Here)),
            Method::Direct => Ok(None),
        }
    }
}

/// The results, for every form of output.
struct Whole<'a> {
    found: &'a Attribution,
    session: &'a Session,
    by: By,
    /// As [`AttributeCommand::along`].
    along: Option<&'a Along>,
    heading: Heading,
    json: Map<String, Value>,
}

impl Whole<'_> {
    /// The values of all heads [layer, head] in row-major order; `None` if --top left some out.
    fn heads(&self) -> Option<Vec<f64>> {
        let config = self.session.model().config();
        let value = |(layer, head): (usize, usize)| {
            let label = format!("{}[{head}]", Site::Result(layer).name());
            let at = self.found.labels.iter().position(|other| *other == label)?;
            Some(self.found.values[at])
        };
        let all = (0..config.n_layer).flat_map(|layer| (0..config.n_head).map(move |head| (layer, head)));
        if self.by == By::Head { all.map(value).collect() } else { None }
    }

    fn remainder(&self) -> String {
        let of = if matches!(self.along, Some(Along::Line { .. })) { " (minus the baseline's)" } else { "" };
        format!("total {:.6}{of}, remainder {:.2e}", self.found.total, self.found.remainder)
    }
}

impl Findings for Whole<'_> {
    fn json(&self) -> &Map<String, Value> {
        &self.json
    }

    fn array_keys(&self) -> &[&str] {
        &["values"]
    }

    fn arrays(&self) -> Vec<Named> {
        let values = self.found.values.clone();
        let config = self.session.model().config();
        let heads = self.heads().map(|values| Named::f64("heads", &[config.n_layer, config.n_head], values));
        [Named::f64("values", &[values.len()], values)].into_iter().chain(heads).collect()
    }

    /// Writes a table whose column of values adds up to the total.
    fn table(&self, table: &mut csv::Writer<&mut dyn Write>) -> std::io::Result<()> {
        table.write_record(["label", "value"])?;
        let rows = self.found.labels.iter().map(String::as_str).zip(self.found.values.iter().copied());
        for (label, value) in rows.chain([("remainder", self.found.remainder)]) {
            table.write_record([label, &value.to_string()])?;
        }
        Ok(())
    }

    fn picture(&self) -> Option<Box<dyn Picture>> {
        if let Some(heads) = self.heads() {
            let config = self.session.model().config();
            let others: f64 = self.found.values.iter().sum::<f64>() - heads.iter().sum::<f64>();
            let what =
                format!("{}; not by heads {others:+.4}, remainder {:.1e}", self.heading.what, self.found.remainder);
            let labels: Vec<Vec<Value>> =
                [config.n_layer, config.n_head].map(|n| (0..n).map(|i| json!(i)).collect()).to_vec();
            let text = Some((self.heading.text.clone(), self.heading.text.clone()));
            let name = if self.along.is_none() { "Adds to the logit" } else { "Gradient times value" }.to_string();
            return Some(Box::new(SweepPicture::new(
                what,
                name,
                &["layer", "head"],
                labels,
                text,
                &heads,
                None,
                None,
                None,
            )));
        }
        let bars = self.found.labels.iter().cloned().zip(self.found.values.iter().copied()).collect();
        Some(Box::new(Bars { heading: self.heading.clone(), bars, notes: vec![self.remainder()] }))
    }
}
