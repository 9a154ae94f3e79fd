//! `actscope heads`: which heads attend to the previous token, to an earlier copy of the token, or to the token after
//! that copy. Read next: `../analysis/heads.rs`, which computes their scores.

use super::edits::mark;
use super::run::EditedRunArgs;
use super::target::{Findings, Target, deliver, nested, number, provenance};
use super::texts::TextArgs;
use super::{Failure, ModelArgs};
use crate::analysis::heads::{Detection, HeadKind, HeadScores, Measure, random_repeats};
use crate::model::tokenizer::Token;
use crate::output::arrays::Named;
use crate::plot::Picture;
use crate::plot::sweep::SweepPicture;
use crate::session::Progress;
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `actscope heads`.
#[derive(Args)]
#[command(mut_args(texts_or_repeats))]
pub(super) struct HeadsCommand {
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// mul: the share of a head's attention that goes to the positions of its kind. abs: 1 minus the absolute
    /// difference between the attention and 1 at these positions and 0 elsewhere, summed over keys and averaged over
    /// queries; may be negative
    #[arg(long, value_name = "MEASURE", default_value = "mul")]
    measure: Measure,
    /// Leave out attention to the first position, which inactive heads attend to
    #[arg(long)]
    exclude_bos: bool,
    /// Leave out attention from tokens to themselves
    #[arg(long)]
    exclude_current: bool,
    /// Number of random texts, if no text is given
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Number of random tokens that each random text repeats
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    length: u32,
    /// Seed of the random texts
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Output file: .json, .csv, .npz, .safetensors, or a picture as .png or .svg [default: the terminal]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    edited: EditedRunArgs,
}

fn texts_or_repeats(arg: clap::Arg) -> clap::Arg {
    match arg.get_id().as_str() {
        "texts" => arg.help("The texts [default: random tokens, repeated once, after the beginning-of-text token]"),
        _ => arg,
    }
}

impl HeadsCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        let given = self.texts.given();
        let input = if given { Some(self.texts.read(&self.model)?) } else { None };
        let target = self.out.as_deref().map(Target::create).transpose()?;
        let files = self.model.open()?;
        if let Some(target) = &target {
            self.texts.refuse_to_overwrite(target.path(), &files, &self.edited.edits)?;
        }
        let batch = match input {
            Some(input) => self.texts.batch(&input, &files, &self.model)?,
            None => {
                let (bos, length, most) = (files.bos(), self.length as usize, files.config().n_positions);
                let needed = 2 * length + usize::from(bos.is_some());
                if needed > most {
                    return Err(Failure::Usage(format!(
                        "--length {length} makes texts of {needed} tokens, and this model has {most} positions; {} is the most",
                        (most - usize::from(bos.is_some())) / 2
                    )));
                }
                files.batch(&random_repeats(files.config(), bos, self.repeats as usize, length, self.seed))?
            }
        };
        if let Some(text) = batch.texts().iter().position(|text| text.len() < 2) {
            return Err(Failure::Usage(format!(
                "text {text} has one token, which can only attend to itself; give texts of two tokens or more"
            )));
        }
        let plan = self.edited.edits.plan(&self.texts, &files, &batch, &self.model)?;
        let session = self.edited.run.session(files, &self.model)?;
        let mut hooks = session.model().hooks();
        let edits = self.model.edit(&plan, &session, &batch, &mut hooks)?;
        let (measure, exclude_bos, exclude_current) = (self.measure, self.exclude_bos, self.exclude_current);
        let detection = Detection { measure, exclude_bos, exclude_current };
        let found = self.model.with_progress("blocks", async |told: Progress<'_>| {
            session.detect_heads_async(&batch, detection, &hooks, Some(told)).await
        })?;
        if found.scores.iter().flatten().flatten().any(|score| !score.is_finite()) {
            return Err(Failure::Run(
                "a head has no score: its attention holds a NaN, or the exclusions leave none of a text; give longer texts or leave \
                 the exclusions out"
                    .into(),
            ));
        }
        let config = session.model().config();
        let shape = [config.n_layer, config.n_head];
        let mut json = Map::new();
        let mut put = |key: &str, value: Value| json.insert(key.into(), value);
        put("command", json!("heads"));
        put("measure", json!(measure.name()));
        put("exclude_bos", json!(exclude_bos));
        put("exclude_current", json!(exclude_current));
        put("n", json!(batch.texts().len()));
        if given {
            put("texts", json!("given"))
        } else {
            put("texts", json!({"repeated": self.length, "seed": self.seed, "begins_with": session.model().bos()}))
        };
        put("shape", json!(shape));
        for ((name, _), scores) in HeadKind::ALL.iter().zip(&found.scores) {
            let values: Vec<Value> = scores.iter().flatten().copied().map(number).collect();
            put(name, nested(&values, &shape));
        }
        provenance(&session, &edits).into_iter().for_each(|(key, value)| drop(put(&key, value)));
        let texts = match given {
            true if batch.texts().len() == 1 => "1 text".into(),
            true => format!("{} texts", batch.texts().len()),
            false => format!("{} texts of {} random tokens twice, seed {}", self.repeats, self.length, self.seed),
        };
        let excluded = [(exclude_bos, ", first position left out"), (exclude_current, ", the token itself left out")];
        let excluded: String = excluded.iter().filter(|(is, _)| *is).map(|(_, words)| *words).collect();
        let what = format!(
            "kinds of head of {}, {texts}, measure {}{excluded}{}",
            session.model().name(),
            measure.name(),
            mark(&edits)
        );
        let text = (batch.texts().len() == 1).then(|| session.model().tokens(&batch).swap_remove(0));
        deliver(&Whole { found: &found, shape, what, text, json }, target, &self.model)
    }
}

/// The results, for every form of output.
struct Whole<'a> {
    found: &'a HeadScores,
    shape: [usize; 2],
    what: String,
    /// The tokens, if there is one text.
    text: Option<Vec<Token>>,
    json: Map<String, Value>,
}

impl Findings for Whole<'_> {
    fn json(&self) -> &Map<String, Value> {
        &self.json
    }

    fn array_keys(&self) -> &[&str] {
        &["previous", "duplicate", "induction"]
    }

    fn arrays(&self) -> Vec<Named> {
        let named =
            |((name, _), scores): (&(&str, HeadKind), &Vec<Vec<f64>>)| Named::f64(name, &self.shape, scores.concat());
        HeadKind::ALL.iter().zip(&self.found.scores).map(named).collect()
    }

    fn table(&self, table: &mut csv::Writer<&mut dyn Write>) -> std::io::Result<()> {
        let names = HeadKind::ALL.iter().map(|(name, _)| *name);
        table.write_record(["layer", "head"].into_iter().chain(names))?;
        for layer in 0..self.shape[0] {
            for head in 0..self.shape[1] {
                let place = [layer.to_string(), head.to_string()];
                let scores = self.found.scores.iter().map(|scores| scores[layer][head].to_string());
                table.write_record(place.into_iter().chain(scores))?;
            }
        }
        Ok(())
    }

    fn picture(&self) -> Option<Box<dyn Picture>> {
        let kinds = HeadKind::ALL.iter().map(|(name, _)| json!(name)).collect();
        let places = self.shape.map(|n| (0..n).map(|i| json!(i)).collect());
        let labels: Vec<Vec<Value>> = [kinds].into_iter().chain(places).collect();
        let values: Vec<f64> = self.found.scores.iter().flatten().flatten().copied().collect();
        let (what, name, axes) = (self.what.clone(), "Score".to_string(), ["kind", "layer", "head"]);
        let text = self.text.clone().map(|tokens| (tokens.clone(), tokens));
        Some(Box::new(SweepPicture::new(what, name, &axes, labels, text, &values, None, None, None)))
    }
}
