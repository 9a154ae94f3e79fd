//! The requests of the explorer, and what each is answered with.

use super::{Answer, Array, Tell};
use crate::analysis::attribute::By;
use crate::analysis::attribute_gradient::Along;
use crate::analysis::cases::{Case, Cases};
use crate::analysis::edits::{EditError, EditPlan, GrowingPlan, Sources};
use crate::analysis::generate::{self, Generation};
use crate::analysis::grammar::EditSpec;
use crate::analysis::lens;
use crate::analysis::metric::{Metric, Question};
use crate::analysis::sampling::log_sum_exp;
use crate::analysis::sweep::{Replacement, Sweep, SweepAxis, SweepSite};
use crate::batch::Batch;
use crate::hooks::capture::Capture;
use crate::hooks::request::{EditRecord, HookError, Hooks, Select};
use crate::hooks::site::{self, Axis as SiteAxis, Site};
use crate::model::tokenizer::Token;
use crate::session::{AnalysisError, Error, Model, Session};
use crate::verify::Stage;
use ndarray::{ArrayD, Axis, Ix2};
use serde::Deserialize;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use thiserror::Error as ThisError;

/// A request that cannot be answered.
#[derive(Debug, ThisError)]
pub(super) enum ExploreError {
    /// A part of the request that means nothing.
    #[error("{what}")]
    Request {
        /// What is wrong.
        what: String,
    },
}

impl AnalysisError for ExploreError {
    fn is_request(&self) -> bool {
        true
    }
}

fn refused(what: String) -> Error {
    Error::Analysis(Box::new(ExploreError::Request { what }))
}

/// A text, or its token ids.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Text {
    /// Ids.
    Ids(Vec<u32>),
    /// A text for the model's tokenizer.
    Text(String),
}

/// The texts of a run, and what is changed in it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The texts of the batch.
    pub texts: Vec<Text>,
    /// Edits in the command line's grammar, in order.
    #[serde(default)]
    pub edits: Vec<String>,
    /// The text that `patch` takes values from.
    #[serde(default)]
    pub source: Option<Text>,
}

/// What is recorded at hooks: the chosen part in every text.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Tap {
    /// A name, a glob, or another tool's name.
    pub hook: String,
    /// Token positions; of scores and patterns the query's.
    #[serde(default)]
    pub pos: Option<Vec<usize>>,
    /// Heads.
    #[serde(default)]
    pub head: Option<Vec<usize>>,
    /// Entries of the last axis.
    #[serde(default)]
    pub dim: Option<Vec<usize>>,
    /// Keys of scores and patterns.
    #[serde(default)]
    pub key: Option<Vec<usize>>,
}

/// How the share of a part in a logit is found.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// What it adds, with the final LayerNorm's scale as it was.
    Direct,
    /// Its value times the logit's gradient.
    Gradient,
    /// The mean of that on the line from zeros to the text's token embeddings, at this many points.
    Integrated(usize),
}

/// A request, tagged by `do`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// The model, the device and the dictionary of hooks.
    About {},
    /// The readable form of every token of the vocabulary: `labels`.
    Labels {},
    /// The tokens of texts.
    Tokens {
        /// The texts.
        texts: Vec<Text>,
    },
    /// Whether the texts and the edits of a run fit the model: an error if they do not. Nothing is run. `sites`: the names of
    /// the hooks that each edit changes.
    Check {
        /// What would be run.
        run: Run,
    },
    /// The values of hooks: one array [batch, ...] a hook.
    Look {
        /// What is run.
        run: Run,
        /// What is recorded.
        taps: Vec<Tap>,
    },
    /// What happens where in the first text. Arrays [stage, pos], a stage being the input of the first block or the
    /// output of a block: `norm` of the stream; by the logit lens `entropy` in nats, and `next` and `rank`, the
    /// probability and the rank of the token that really follows (NaN after the last); `top` and `top_p`
    /// [stage, pos, n], the likeliest tokens' ids and probabilities. And `loss`, the mean over the text in nats.
    Where {
        /// What is run.
        run: Run,
        /// How many of the likeliest tokens are listed.
        top: usize,
    },
    /// The logits `[vocabulary]` of one position of the first text: `logits`.
    Next {
        /// What is run.
        run: Run,
        /// The position.
        pos: usize,
    },
    /// How much one token attends to another in every head: `pair` [layer, head].
    Pair {
        /// What is run.
        run: Run,
        /// The position that attends.
        query: usize,
        /// The position that is attended to.
        key: usize,
    },
    /// The metric of one run for every cell, in f64: `values` in row-major order, their `shape`, `unchanged`. With a source in `run`, cells are patched
    /// from it; without one they are zeroed. With `fast` the cells of a patch are estimated from one gradient, and not run.
    Sweep {
        /// What is run: the first text is changed.
        run: Run,
        /// A site without its layer.
        site: String,
        /// The axes: layer, pos, head, dim, key.
        axes: Vec<String>,
        /// The metric.
        metric: String,
        /// The position whose logits are read.
        pos: usize,
        /// The right token's id.
        #[serde(default)]
        answer: u32,
        /// The wrong token's id.
        #[serde(default)]
        wrong: u32,
        /// Whether cells are estimated.
        #[serde(default)]
        fast: bool,
    },
    /// A logit of the first text as a sum of parts, in f64: `labels` and `values`, their `total`, and the `remainder` that they
    /// lack.
    Attribute {
        /// What is run: one text.
        run: Run,
        /// The position whose logit is divided.
        pos: usize,
        /// The token of the logit.
        answer: u32,
        /// The parts: component, layer, head, neuron, position.
        by: String,
        /// How a part's share is found.
        method: Method,
    },
    /// A continuation of the first text: its tokens, `new`, and its `text`.
    Generate {
        /// What is run. `mean`, `patch` and `freeze` are for the prompt only.
        run: Run,
        /// Tokens.
        n: usize,
        /// 0 takes the likeliest token.
        temperature: f64,
        /// Where random numbers begin.
        seed: u64,
    },
    /// Whether this device computes right values.
    Verify {},
}

/// Answers one request.
pub(super) async fn answer(session: &Session, request: &Request, tell: Tell<'_>) -> Result<Answer, Error> {
    let model = session.model();
    match request {
        Request::About {} => Ok(only(about(session))),
        Request::Labels {} => {
            let labels = (0..model.config().vocab_size as u32).map(|id| model.token(id).label());
            Ok(only(json!({ "labels": labels.collect::<Vec<_>>() })))
        }
        Request::Tokens { texts } => {
            let batch = batch_of(model, texts)?;
            Ok(only(json!({ "texts": tokens(model, &batch) })))
        }
        Request::Check { run } => {
            planned(model, run)?;
            let sites_of = |spec: &EditSpec| -> Result<Vec<String>, Error> {
                let sites = site::resolve(spec.site(), model.config().n_layer).map_err(HookError::from)?;
                Ok(sites.into_iter().map(|site| site.name()).collect())
            };
            let sites = specs(run)?.iter().map(sites_of).collect::<Result<Vec<_>, _>>()?;
            Ok(only(json!({ "sites": sites })))
        }
        Request::Look { run, taps } => {
            let (batch, mut hooks, edits) = prepared(session, run, tell).await?;
            for tap in taps {
                add_tap(model, &mut hooks, tap, batch.texts().len())?;
            }
            let mut capture = session.run_async(&batch, &hooks, Some(&told(tell, "running"))).await?;
            let sites: Vec<Site> = capture.iter().map(|(site, _)| site).collect();
            let arrays = sites.into_iter().map(|site| array(site.name(), taken(&mut capture, site))).collect();
            Ok(Answer { json: json!({ "edits": edits, "texts": tokens(model, &batch) }), arrays })
        }
        Request::Where { run, top } => {
            let (batch, hooks, edits) = prepared(session, run, tell).await?;
            whereabouts(session, &batch, hooks, edits, *top, tell).await
        }
        Request::Next { run, pos } => {
            let (batch, mut hooks, edits) = prepared(session, run, tell).await?;
            hooks.tap_at(Site::Unembed, Select::all().positions(first_only(&batch, *pos)))?;
            let mut capture = session.run_async(&batch, &hooks, Some(&told(tell, "running"))).await?;
            let row = taken(&mut capture, Site::Unembed).index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 0);
            Ok(Answer { json: json!({ "edits": edits }), arrays: vec![array("logits".into(), row)] })
        }
        Request::Pair { run, query, key } => {
            let (batch, mut hooks, edits) = prepared(session, run, tell).await?;
            let select = Select::all().positions(first_only(&batch, *query)).keys(first_only(&batch, *key));
            let (layers, heads) = (model.config().n_layer, model.config().n_head);
            for layer in 0..layers {
                hooks.tap_at(Site::Pattern(layer), select.clone())?;
            }
            let mut capture = session.run_async(&batch, &hooks, Some(&told(tell, "running"))).await?;
            let of = |layer| taken(&mut capture, Site::Pattern(layer)).index_axis_move(Axis(0), 0).into_iter();
            let values: Vec<f32> = (0..layers).flat_map(of).collect();
            let pair = Array { name: "pair".into(), shape: vec![layers, heads], values };
            Ok(Answer { json: json!({ "edits": edits }), arrays: vec![pair] })
        }
        Request::Sweep { .. } => sweep(session, request, tell).await,
        Request::Attribute { run, pos, answer, by, method } => {
            let question = Question { position: *pos, answer: *answer, wrong: *answer };
            attributed(session, run, &question, (by, *method), tell).await
        }
        Request::Generate { run, n, temperature, seed } => {
            continued(session, run, (*n, *temperature, *seed), tell).await
        }
        Request::Verify {} => {
            let stage = |stage: Stage, done: usize, of: usize| {
                let name = match stage {
                    Stage::Kernels => "kernels",
                    Stage::Hooks => "hooks of whole runs",
                    Stage::Lockstep => "single operations of whole runs",
                    Stage::Pieces => "runs in pieces",
                };
                // A verification runs to its end.
                let _ = tell(name, done, of);
            };
            Ok(only(session.verify_async(&stage).await?.to_json()))
        }
    }
}

fn only(json: Value) -> Answer {
    Answer { json, arrays: Vec::new() }
}

fn array(name: String, values: ArrayD<f32>) -> Array {
    let shape = values.shape().to_vec();
    let (dense, first) = if values.is_standard_layout() {
        values.into_raw_vec_and_offset()
    } else {
        (values.iter().copied().collect(), None)
    };
    let n: usize = shape.iter().product();
    let values = match first.unwrap_or(0) {
        0 if dense.len() == n => dense,
        first => dense[first..first + n].to_vec(),
    };
    Array { name, shape, values }
}

fn taken(capture: &mut Capture, site: Site) -> ArrayD<f32> {
    capture.take(site).expect("a tapped site is in the capture")
}

fn told<'a>(tell: Tell<'a>, what: &'a str) -> impl Fn(usize, usize) -> ControlFlow<()> + 'a {
    move |done, of| tell(what, done, of)
}

/// One position of the first text, and none of the others.
fn first_only(batch: &Batch, position: usize) -> Vec<Vec<usize>> {
    (0..batch.texts().len()).map(|text| if text == 0 { vec![position] } else { Vec::new() }).collect()
}

fn ids_of(model: &Model, text: &Text) -> Result<Vec<u32>, Error> {
    Ok(match text {
        Text::Ids(ids) => ids.clone(),
        Text::Text(text) => model.encode(&[text.as_str()])?.ids().to_vec(),
    })
}

fn batch_of(model: &Model, texts: &[Text]) -> Result<Batch, Error> {
    let ids = texts.iter().map(|text| ids_of(model, text)).collect::<Result<Vec<_>, _>>()?;
    model.batch(&ids)
}

fn tokens(model: &Model, batch: &Batch) -> Value {
    let one = |token: &Token| {
        let breaks = token.bytes.iter().flatten().filter(|byte| **byte == b'\n').count();
        json!({ "id": token.id, "label": token.label(), "breaks": breaks })
    };
    model.tokens(batch).iter().map(|text| text.iter().map(one).collect::<Value>()).collect()
}

fn specs(run: &Run) -> Result<Vec<EditSpec>, Error> {
    let parse = |edit: &String| edit.parse::<EditSpec>().map_err(EditError::from);
    Ok(run.edits.iter().map(parse).collect::<Result<_, _>>()?)
}

/// Values of edits are numbers here: a page has no folder to read files from.
fn no_file(path: &str, _array: Option<&str>, _site: Site) -> Result<ArrayD<f32>, String> {
    Err(format!("the explorer reads no files of values ({path}); give a number"))
}

/// The batch of a run, and its edits, checked.
fn planned(model: &Model, run: &Run) -> Result<(Batch, EditPlan), Error> {
    let batch = batch_of(model, &run.texts)?;
    let specs = specs(run)?;
    let patch = run.source.as_ref().map(|source| batch_of(model, std::slice::from_ref(source))).transpose()?;
    let sources = Sources { patch, ..Sources::default() };
    let plan = EditPlan::new(&specs, model, &batch, sources, &mut no_file)?;
    Ok((batch, plan))
}

/// The batch of a run, and a request with its edits.
async fn prepared(session: &Session, run: &Run, tell: Tell<'_>) -> Result<(Batch, Hooks, Vec<EditRecord>), Error> {
    let model = session.model();
    let (batch, plan) = planned(model, run)?;
    let mut hooks = model.hooks();
    let records = session.edit_async(&plan, &batch, &mut hooks, Some(&told(tell, "preparing the edits"))).await?;
    Ok((batch, hooks, records))
}

fn add_tap(model: &Model, hooks: &mut Hooks, tap: &Tap, texts: usize) -> Result<(), Error> {
    let mut select = Select::all();
    if let Some(pos) = &tap.pos {
        select = select.positions(vec![pos.clone(); texts]);
    }
    if let Some(heads) = &tap.head {
        select = select.heads(heads.clone());
    }
    if let Some(dims) = &tap.dim {
        select = select.dims(dims.clone());
    }
    if let Some(keys) = &tap.key {
        select = select.keys(vec![keys.clone(); texts]);
    }
    for site in site::resolve(&tap.hook, model.config().n_layer).map_err(HookError::from)? {
        hooks.tap_at(site, select.clone())?;
    }
    Ok(())
}

fn axis_name(axis: SiteAxis) -> &'static str {
    match axis {
        SiteAxis::Pos => "pos",
        SiteAxis::Key => "key",
        SiteAxis::Head => "head",
        SiteAxis::HeadDim | SiteAxis::Embd | SiteAxis::Inner | SiteAxis::Vocab => "dim",
        SiteAxis::One => "one",
    }
}

/// The model, the device and every hook.
fn about(session: &Session) -> Value {
    let (model, device) = (session.model(), session.device());
    let config = model.config();
    let hooks = Site::all(config.n_layer).map(|site| {
        let dialects = site.dialects(config.n_layer);
        json!({
            "name": site.name(),
            "layer": site.layer(),
            "axes": site.axes().iter().map(|axis| axis_name(*axis)).collect::<Vec<_>>(),
            "shape": site.axes().iter().map(|axis| axis.letter()).collect::<Vec<_>>(),
            "sizes": site.axes().iter().map(|axis| axis.len(config, 0)).collect::<Vec<_>>(),
            "formula": site.row().formula,
            "names": dialects.iter().map(|(dialect, names)| (dialect.name().to_string(), json!(names))).collect::<serde_json::Map<_, _>>(),
        })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "model": {
            "name": model.name(),
            "fingerprint": model.checkpoint().fingerprint(),
            "parameters": model.checkpoint().parameters(),
            "weight_bytes": model.checkpoint().file_bytes(),
            "n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd, "n_inner": config.n_inner,
            "head_dim": config.head_dim(), "vocab_size": config.vocab_size, "n_positions": config.n_positions,
            "has_tokenizer": model.tokenizer().is_ok(),
            "notes": model.notes().collect::<Vec<_>>(),
        },
        "device": { "kind": device.kind, "name": device.name, "detail": device.detail, "software": device.software, "text": device.to_string() },
        "hooks": hooks.collect::<Value>(),
    })
}

async fn whereabouts(
    session: &Session,
    batch: &Batch,
    mut hooks: Hooks,
    edits: Vec<EditRecord>,
    top: usize,
    tell: Tell<'_>,
) -> Result<Answer, Error> {
    let model = session.model();
    let (config, n_pos) = (model.config(), batch.texts()[0].len());
    hooks.tap_at(Site::Unembed, Select::all())?;
    let (rows, mut capture) = session.lens_async(batch, &hooks, top, Some(&told(tell, "running"))).await?;
    let stages = rows.len();
    let listed = top.min(config.vocab_size);
    let named = |name: &str| Array { name: name.into(), shape: vec![stages, n_pos], values: Vec::new() };
    let [mut norm, mut entropy, mut next, mut rank] = ["norm", "entropy", "next", "rank"].map(named);
    let [mut ids, mut probabilities] =
        ["top", "top_p"].map(|name| Array { shape: vec![stages, n_pos, listed], ..named(name) });
    for (site, row) in lens::sites(config.n_layer).zip(&rows) {
        let stream = taken(&mut capture, site).index_axis_move(Axis(0), 0);
        let norm_of =
            |row: ndarray::ArrayViewD<'_, f32>| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt() as f32;
        norm.values.extend(stream.axis_iter(Axis(0)).take(n_pos).map(norm_of));
        for reading in &row.texts[0] {
            entropy.values.push(reading.entropy);
            next.values.push(reading.next.map_or(f32::NAN, |next| next.probability));
            rank.values.push(reading.next.map_or(f32::NAN, |next| next.rank as f32));
            ids.values.extend(reading.top.iter().map(|(id, _)| *id as f32));
            probabilities.values.extend(reading.top.iter().map(|(_, p)| *p));
        }
    }
    let logits = taken(&mut capture, Site::Unembed).index_axis_move(Axis(0), 0);
    let logits = logits.into_dimensionality::<Ix2>().expect("logits are [pos, vocabulary]");
    let of = |(row, id): (ndarray::ArrayView1<'_, f32>, &u32)| {
        let dense = row.as_slice().expect("a row of logits is dense");
        log_sum_exp(dense) - f64::from(dense[*id as usize])
    };
    let followed = logits.rows().into_iter().zip(&batch.ids_of(0)[1..]).map(of);
    let loss = if n_pos > 1 { json!(followed.sum::<f64>() / (n_pos - 1) as f64) } else { Value::Null };
    let stages: Vec<String> = rows.iter().map(|row| row.site.name()).collect();
    Ok(Answer {
        json: json!({ "edits": edits, "texts": tokens(model, batch), "stages": stages, "loss": loss }),
        arrays: vec![norm, entropy, next, rank, ids, probabilities],
    })
}

async fn sweep(session: &Session, request: &Request, tell: Tell<'_>) -> Result<Answer, Error> {
    let Request::Sweep { run, site, axes, metric, pos, answer, wrong, fast } = request else {
        unreachable!("called for sweeps only")
    };
    let model = session.model();
    let (batch, hooks, edits) = prepared(session, run, tell).await?;
    let source = run.source.as_ref().map(|source| ids_of(model, source)).transpose()?;
    let metric = metric.parse::<Metric>().map_err(refused)?;
    let axes = axes.iter().map(|axis| axis.parse::<SweepAxis>().map_err(refused)).collect::<Result<Vec<_>, _>>()?;
    let ids = batch.ids_of(0).to_vec();
    if let Some(source) = &source
        && source.len() != ids.len()
        && axes.contains(&SweepAxis::Pos)
    {
        return Err(refused(format!(
            "positions are patched one for one, and the text has {} tokens, the second text {}; give texts of one length",
            ids.len(),
            source.len()
        )));
    }
    if *pos >= ids.len() || (*answer).max(*wrong) as usize >= model.config().vocab_size {
        return Err(refused(format!("position {pos} or token {} does not exist", (*answer).max(*wrong))));
    }
    let question = Question { position: *pos, answer: *answer, wrong: *wrong };
    let aligned = source.as_ref().map_or(ids.len(), |source| source.len().min(ids.len()));
    let case = |ids: Vec<u32>| {
        let source = source.as_ref().map(|source| {
            let position = if source.len() == ids.len() { *pos } else { source.len() - 1 };
            (source.clone(), Question { position, ..question.clone() })
        });
        Case { ids, question: question.clone(), source, aligned, from_source: false }
    };
    let sweep = Sweep {
        sites: vec![SweepSite::find(site, model.config())?],
        axes,
        replacement: if source.is_some() { Replacement::Patch } else { Replacement::Zero },
        metric,
    };
    let none = model.hooks();
    let all = Cases { cases: &[case(ids)], edits: &hooks, source_edits: &none };
    let swept = if *fast {
        session.patch_fast_async(&sweep, all, Some(&told(tell, "blocks"))).await?
    } else {
        session.sweep_async(&sweep, all, Some(&told(tell, "cells"))).await?
    };
    Ok(only(json!({
        "edits": edits, "metric": metric.name(), "shape": swept.shape, "values": swept.values.first(),
        "unchanged": swept.unchanged.first(), "source": swept.source.first(),
    })))
}

async fn attributed(
    session: &Session,
    run: &Run,
    question: &Question,
    (by, method): (&str, Method),
    tell: Tell<'_>,
) -> Result<Answer, Error> {
    if run.texts.len() != 1 {
        return Err(refused(format!("a logit of one text is divided, and {} were given", run.texts.len())));
    }
    let (batch, hooks, edits) = prepared(session, run, tell).await?;
    let by = by.parse::<By>().map_err(refused)?;
    let told = told(tell, "blocks");
    let found = match method {
        Method::Direct => session.attribute_direct_async(&batch, question, false, by, &hooks, Some(&told)).await?,
        Method::Gradient | Method::Integrated(_) => {
            let along = match method {
                Method::Integrated(steps) => Along::Line { steps, from: None },
                _ => Along::Here,
            };
            session.attribute_gradient_async(&batch, question, false, by, &along, &hooks, Some(&told)).await?
        }
    };
    Ok(only(json!({
        "edits": edits, "total": found.total, "labels": found.labels, "values": found.values, "remainder": found.remainder,
    })))
}

async fn continued(
    session: &Session,
    run: &Run,
    (n, temperature, seed): (usize, f64, u64),
    tell: Tell<'_>,
) -> Result<Answer, Error> {
    let model = session.model();
    let prompts = batch_of(model, &run.texts[..1.min(run.texts.len())])?;
    let mut generation = Generation { new_tokens: n, end_of_text: model.end_of_text(), ..Generation::default() };
    (generation.sampling.temperature, generation.sampling.seed) = (temperature, seed);
    let whole = generation.texts(&prompts, model)?;
    let specs = specs(run)?;
    let patch = run.source.as_ref().map(|source| batch_of(model, std::slice::from_ref(source))).transpose()?;
    let sources = Sources { patch, ..Sources::default() };
    let plan = GrowingPlan::new(&specs, model, (&whole, &prompts), &sources, &mut no_file)?;
    let mut hooks = model.hooks();
    let edits = session.edit_growing_async(&plan, (&whole, &prompts), &mut hooks, None).await?;
    let mut done = 0;
    let heard = &mut |_: generate::Told<'_>| {
        done += 1;
        tell("tokens", done, n)
    };
    let texts = session.generate_async(&prompts, &generation, &hooks, &mut (), heard, None).await?;
    let text = &texts[0];
    let new = text
        .new
        .iter()
        .map(|new| json!({ "id": new.id, "label": model.token(new.id).label(), "logprob": new.logprob }));
    let written = model.tokenizer().ok().and_then(|tokenizer| tokenizer.decode(text.new_ids()).ok());
    Ok(only(json!({
        "edits": edits, "new": new.collect::<Value>(), "text": written, "stop": text.stop, "ids": text.ids,
    })))
}
