//! `actscope edges`: how much the metric depends on each connection from one part of the model to a later one. Read
//! next: `../analysis/edges.rs`, which computes it.

use super::pairs::{self, PairArgs, hide_texts};
use super::question::QuestionArgs;
use super::run::{RunArgs, refuse_to_overwrite};
use super::target::{Findings, Target, check_finite, deliver, number, provenance};
use super::texts::TextArgs;
use super::{Failure, ModelArgs};
use crate::analysis::cases::Case;
use crate::analysis::edges::{self, Edge, Edges, Writer, readers};
use crate::analysis::metric::Metric;
use crate::analysis::statistics::mean;
use crate::model::tokenizer::Token;
use crate::output::arrays::Named;
use crate::plot::graph::Graph;
use crate::plot::{Heading, Picture};
use crate::session::{Progress, Session};
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;

/// Arguments of `actscope edges`.
#[derive(Args)]
#[command(mut_args(hide_texts))]
pub(super) struct EdgesCommand {
    #[command(flatten)]
    pairs: PairArgs,
    /// Where the gradient is taken. eap: at the corrupt run. eap-ig[=STEPS]: at STEPS points from the corrupt text's
    /// embeddings to the clean text's [STEPS: 30]
    #[arg(long, value_name = "METHOD", default_value = "eap")]
    method: Method,
    /// The metric: logit-diff, logit, logprob, prob, loss or kl [default: logit; logit-diff with --wrong]
    #[arg(long, value_name = "METRIC")]
    metric: Option<String>,
    #[command(flatten)]
    question: QuestionArgs,
    /// Show the N strongest edges
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// Also run the model with only these edges clean and all others corrupt, and print the share of the metric that
    /// they restore
    #[arg(long)]
    faithfulness: bool,
    /// Output file: .json with the strongest edges; .csv, .npz or .safetensors with all edges; or a graph of the
    /// strongest as .png or .svg [default: the terminal]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    texts: TextArgs,
}

#[derive(Clone, Copy)]
enum Method {
    Eap,
    EapIg { steps: usize },
}

/// The number of points if STEPS is not given, as in Hanna et al. 2024.
const STEPS: usize = 30;

impl FromStr for Method {
    type Err = String;

    fn from_str(written: &str) -> Result<Method, String> {
        match (written, written.strip_prefix("eap-ig=")) {
            ("eap", _) => Ok(Method::Eap),
            ("eap-ig", _) => Ok(Method::EapIg { steps: STEPS }),
            (_, Some(steps)) => match steps.parse() {
                Ok(steps @ 1..) => Ok(Method::EapIg { steps }),
                _ => Err(format!("{steps:?} is not a number of steps (1 or more)")),
            },
            _ => Err(format!("{written:?} is none of eap, eap-ig or eap-ig=STEPS")),
        }
    }
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Eap => "eap",
            Method::EapIg { .. } => "eap-ig",
        }
    }

    fn steps(self) -> usize {
        match self {
            Method::Eap => 1,
            Method::EapIg { steps } => steps,
        }
    }
}

impl EdgesCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.texts.given() {
            return Err(Failure::Usage("edges takes its texts as --clean and --corrupt, or as --pairs".into()));
        }
        let target = self.out.as_deref().map(Target::create).transpose()?;
        let files = self.model.open()?;
        if let Some(target) = &target {
            refuse_to_overwrite(target.path(), &files, self.pairs.file().into_iter())?;
        }
        let pairs = self.pairs.read(&self.question, &self.texts, &files, &self.model)?;
        let metric = pairs::metric(&pairs, self.metric.as_deref())?;
        let mut cases = Vec::new();
        for (n, pair) in pairs.iter().enumerate() {
            pair.check_lengths(&files, "reword one of them")?;
            let [clean, (ids, question)] = pair.sides(n, &self.question, &files)?;
            cases.push(Case { aligned: ids.len(), ids, question, source: Some(clean), from_source: true });
        }
        edges::check(&cases, metric, files.config())?;
        let texts = (pairs.len() == 1).then(|| pairs[0].tokens(&files));

        let session = self.run.session(files, &self.model)?;
        let steps = self.method.steps();
        let found = self.model.with_progress("blocks", async |told: Progress<'_>| {
            session.edges_async(&cases, metric, steps, Some(told)).await
        })?;
        let scores = found.edges.iter().map(|edge| &edge.score);
        check_finite("the edge attribution", scores.chain(&found.clean).chain(&found.corrupt))?;
        let top = found.strongest(self.top as usize);
        let circuit = if self.faithfulness { Some(self.circuit(&session, &cases, metric, &top)?) } else { None };
        let whole = Whole::new(&self, &session, metric, found, top, circuit, texts);
        if target.is_some() {
            whole.notes.iter().for_each(|note| self.model.say(format_args!("{note}")));
        }
        deliver(&whole, target, &self.model)
    }

    /// The mean metric over all pairs of runs whose edges in `top` carry clean values, and all others corrupt ones.
    fn circuit(&self, session: &Session, cases: &[Case], metric: Metric, top: &[Edge]) -> Result<f64, Failure> {
        let run = async |told: Progress<'_>| {
            let mut values = Vec::new();
            for (n, case) in cases.iter().enumerate() {
                values.push(session.edge_circuit_async(case, metric, top).await?);
                if told(n + 1, cases.len()).is_break() {
                    return Err(crate::session::Error::Cancelled);
                }
            }
            Ok(mean(&values))
        };
        Ok(self.model.with_progress("pairs", run)?)
    }
}

/// The results, for every form of output.
struct Whole {
    found: Edges,
    top: Vec<Edge>,
    writers: Vec<String>,
    readers: Vec<String>,
    heading: Heading,
    notes: Vec<String>,
    json: Map<String, Value>,
}

impl Whole {
    fn new(
        command: &EdgesCommand,
        session: &Session,
        metric: Metric,
        found: Edges,
        top: Vec<Edge>,
        circuit: Option<f64>,
        texts: Option<[Vec<Token>; 2]>,
    ) -> Whole {
        let config = session.model().config();
        let (clean, corrupt) = (mean(&found.clean), mean(&found.corrupt));
        let edge = |edge: &Edge| json!({"from": edge.from.to_string(), "to": edge.to.to_string(), "score": number(edge.score)});
        let mut json = Map::new();
        let mut put = |key: &str, value: Value| json.insert(key.into(), value);
        put("command", json!("edges"));
        put("method", json!(command.method.name()));
        if let Method::EapIg { steps } = command.method {
            put("steps", json!(steps));
        }
        put("metric", json!(metric.name()));
        put("n", json!(found.clean.len()));
        put("clean", number(clean));
        put("corrupt", number(corrupt));
        put("n_edges", json!(found.edges.len()));
        put("edges", top.iter().map(edge).collect());
        let mut notes = vec![format!(
            "{} of clean {clean:.4}, of corrupt {corrupt:.4}; {} of {} edges",
            metric.name(),
            top.len(),
            found.edges.len()
        )];
        if let Some(circuit) = circuit {
            put("circuit", number(circuit));
            if clean == corrupt {
                put("faithfulness", Value::Null);
                notes.push(format!(
                    "with these edges only: {circuit:.4}; clean and corrupt have the same {}, so faithfulness is undefined",
                    metric.name()
                ));
            } else {
                let faithfulness = (circuit - corrupt) / (clean - corrupt);
                put("faithfulness", number(faithfulness));
                notes.push(format!("with these edges only: {circuit:.4}, faithfulness {faithfulness:.4}"));
            }
        }
        provenance(session, &[]).into_iter().for_each(|(key, value)| drop(put(&key, value)));
        let (mut text, mut of) = (Vec::new(), format!("mean of {} pairs", found.clean.len()));
        if let Some([clean, corrupt]) = texts {
            let words = |tokens: &[Token]| tokens.iter().map(Token::text).collect::<Vec<_>>();
            put("tokens", json!({"clean": words(&clean), "corrupt": words(&corrupt)}));
            of = format!("corrupt \"{}\"", Token::label_of(&corrupt, |_| true));
            text = clean;
        }
        let writers: Vec<String> = Writer::all(config).iter().map(Writer::to_string).collect();
        let readers: Vec<String> = readers(config).iter().map(ToString::to_string).collect();
        put("writers", json!(writers));
        put("readers", json!(readers));
        let what = format!("{} of {}, {}, {of}", command.method.name(), session.model().name(), metric.name());
        Whole { found, top, writers, readers, heading: Heading { text, what }, notes, json }
    }
}

impl Findings for Whole {
    fn json(&self) -> &Map<String, Value> {
        &self.json
    }

    fn array_keys(&self) -> &[&str] {
        &["edges"]
    }

    /// The scores [writers, readers]; NaN where a writer and a reader have no edge.
    fn arrays(&self) -> Vec<Named> {
        let shape = [self.writers.len(), self.readers.len()];
        let mut scores = vec![f64::NAN; shape[0] * shape[1]];
        let place = |names: &[String], name: String| names.iter().position(|other| *other == name).unwrap_or(0);
        for edge in &self.found.edges {
            let (w, r) = (place(&self.writers, edge.from.to_string()), place(&self.readers, edge.to.to_string()));
            scores[w * shape[1] + r] = edge.score;
        }
        vec![Named::f64("scores", &shape, scores)]
    }

    fn table(&self, table: &mut csv::Writer<&mut dyn Write>) -> std::io::Result<()> {
        table.write_record(["from", "to", "score"])?;
        for edge in self.found.strongest(usize::MAX) {
            table.write_record([edge.from.to_string(), edge.to.to_string(), edge.score.to_string()])?;
        }
        Ok(())
    }

    fn picture(&self) -> Option<Box<dyn Picture>> {
        let (heading, edges, notes) = (self.heading.clone(), self.top.clone(), self.notes.clone());
        Some(Box::new(Graph { heading, edges, notes }))
    }
}
