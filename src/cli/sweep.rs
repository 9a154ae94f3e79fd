//! `actscope patch` and `actscope ablate`: how much the metric depends on each place, with one changed run per place.
//! Read next: `swept.rs`, which writes the results.

use super::pairs::{self, PairArgs, hide_texts};
use super::question::{QuestionArgs, metric};
use super::report::arguments;
use super::run::{EditedRunArgs, refuse_to_overwrite};
use super::swept::{Found, Over, Whole};
use super::target::{Target, deliver};
use super::texts::TextArgs;
use super::{Failure, ModelArgs};
use crate::analysis::cases::{Case, Cases};
use crate::analysis::edits::EditPlan;
use crate::analysis::grammar::ValueSpec;
use crate::analysis::metric::{Metric, Question};
use crate::analysis::path::PathSweep;
use crate::analysis::sweep::{Replacement, Sweep, SweepAxis, SweepSite};
use crate::batch::Batch;
use crate::hooks::request::Hooks;
use crate::hooks::site::Site;
use crate::model::tokenizer::Token;
use crate::output::arrays;
use crate::report::CellRun;
use crate::session::{Error, Model, Progress};
use clap::{Args, ValueEnum};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The arguments that `patch` and `ablate` share.
#[derive(Args)]
struct SweepArgs {
    /// The site to change, without its layer: resid_pre, z, pattern, mlp_post and others. `every` is resid_pre,
    /// attn_out and mlp_out; with head in --by, it is z, q, k, v and pattern. Repeatable [default: resid_pre]
    #[arg(long, value_name = "SITE")]
    at: Vec<String>,
    /// Axes of the sweep, with one changed run for each combination: any of layer,pos,head,dim,key [default: layer,head
    /// for sites with heads, layer,pos for other sites]
    #[arg(long, value_name = "AXES", value_delimiter = ',')]
    by: Vec<String>,
    /// The metric: logit-diff, logit, logprob, prob, loss or kl [default: logit-diff with --wrong, logit with --answer
    /// only, and for ablate loss without both]
    #[arg(long, value_name = "METRIC")]
    metric: Option<String>,
    #[command(flatten)]
    question: QuestionArgs,
    /// Output file: .json, .csv, .npz, .safetensors, a picture as .png or .svg, or a page as .html [default: the
    /// terminal]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    edited: EditedRunArgs,
}

/// How two texts of different length are aligned.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Align {
    /// By position; texts of different length are an error
    Start,
    /// By their last tokens
    End,
}

/// Arguments of `actscope patch`.
#[derive(Args)]
#[command(mut_args(hide_texts))]
pub(crate) struct Patch {
    #[command(flatten)]
    pairs: PairArgs,
    /// Patch in the other direction: copy values of the corrupt run into the clean run
    #[arg(long)]
    noise: bool,
    /// How texts of different length are aligned
    #[arg(long, value_enum, default_value_t = Align::Start)]
    align: Align,
    /// Attribution patching: estimate every cell from one gradient of the metric, without a changed run per cell
    #[arg(long, conflicts_with = "path")]
    fast: bool,
    /// Also run every cell, and show the exact values beside the estimates, with their correlation
    #[arg(long, requires = "fast")]
    compare: bool,
    /// Patch one path only, FROM...TO, such as head.0.2...q.3.4: only TO reads the clean run's value of FROM. FROM is
    /// head.LAYER.HEAD or mlp.LAYER; numbers that are left out become axes. TO is q.LAYER.HEAD, k.LAYER.HEAD,
    /// v.LAYER.HEAD or mlp.LAYER, several joined by +, or logits
    #[arg(long, value_name = "FROM...TO", conflicts_with = "at")]
    path: Option<String>,
    /// Hold every head except FROM at its value in the unpatched run, as in Wang et al. 2022; MLPs are recomputed
    #[arg(long, requires = "path")]
    frozen: bool,
    #[command(flatten)]
    sweep: SweepArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    texts: TextArgs,
}

/// Arguments of `actscope ablate`.
#[derive(Args)]
pub(crate) struct Ablate {
    #[command(flatten)]
    texts: TextArgs,
    /// The replacement: zero, mean (over all positions of all texts), or [F*]FILE[#ARRAY] with values of other texts
    #[arg(long, value_name = "WITH", default_value = "zero")]
    with: String,
    #[command(flatten)]
    sweep: SweepArgs,
    #[command(flatten)]
    model: ModelArgs,
}

impl SweepArgs {
    /// The axes that --by names; empty without --by.
    fn axes(&self) -> Result<Vec<SweepAxis>, Failure> {
        let axes = self.by.iter().map(|axis| axis.trim().parse::<SweepAxis>()).collect::<Result<Vec<_>, _>>();
        axes.map_err(|e| Failure::Usage(format!("--by: {e}")))
    }

    fn sweep(&self, files: &Model, replacement: Replacement, metric: Metric) -> Result<Sweep, Failure> {
        let mut axes = self.axes()?;
        let heads = axes.contains(&SweepAxis::Head);
        let every: &[&str] = if heads { &SweepSite::EVERY_HEAD } else { &SweepSite::EVERY_BLOCK };
        let named = self.at.iter().flat_map(|name| match name.as_str() {
            "every" => every.to_vec(),
            name => vec![name],
        });
        let mut names: Vec<&str> = named.collect();
        if names.is_empty() {
            names.push("resid_pre");
        }
        let sites = names.iter().map(|name| SweepSite::find(name, files.config())).collect::<Result<Vec<_>, _>>()?;
        if axes.is_empty() {
            let layered = sites.iter().all(|site| site.of_layer[0].layer().is_some());
            axes.extend(layered.then_some(SweepAxis::Layer));
            axes.push(if sites.iter().all(SweepSite::has_heads) { SweepAxis::Head } else { SweepAxis::Pos });
        }
        Ok(Sweep { sites, axes, replacement, metric })
    }
}

impl Patch {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.texts.given() {
            return Err(Failure::Usage("patch takes its texts as --clean and --corrupt, or as --pairs".into()));
        }
        let target = self.sweep.out.as_deref().map(Target::create_or_page).transpose()?;
        let files = self.model.open()?;
        if let Some(target) = &target {
            refuse_to_overwrite(target.path(), &files, self.sweep.edited.edits.files().chain(self.pairs.file()))?;
        }
        let pairs = self.pairs.read(&self.sweep.question, &self.texts, &files, &self.model)?;
        let metric = pairs::metric(&pairs, self.sweep.metric.as_deref())?;
        let (sweep, path);
        let over = match &self.path {
            Some(written) => {
                let axes = self.sweep.axes()?;
                path = PathSweep::new(written, &axes, self.frozen, metric, files.config()).map_err(Error::from)?;
                Over::Paths(&path)
            }
            None => {
                sweep = self.sweep.sweep(&files, Replacement::Patch, metric)?;
                if self.fast { Over::Fast(&sweep) } else { Over::Places(&sweep) }
            }
        };
        let mut cases = Vec::new();
        for (n, pair) in pairs.iter().enumerate() {
            if self.align == Align::Start {
                pair.check_lengths(&files, "reword one of them, or align their last tokens with --align end")?;
            }
            let [of_clean, of_corrupt] = pair.sides(n, &self.sweep.question, &files)?;
            let (source, (ids, question)) = if self.noise { (of_corrupt, of_clean) } else { (of_clean, of_corrupt) };
            let aligned = ids.len().min(source.0.len());
            cases.push(Case { ids, question, source: Some(source), aligned, from_source: !self.noise });
        }
        if self.align == Align::End {
            let least = cases.iter().map(|case| case.aligned).min().unwrap_or(0);
            cases.iter_mut().for_each(|case| case.aligned = least);
        }
        over.check(files.config(), &cases)?;
        let batch = |of: &dyn Fn(&Case) -> Vec<u32>| files.batch(&cases.iter().map(of).collect::<Vec<_>>());
        let runs = batch(&|case| case.ids.clone())?;
        let sources = batch(&|case| case.source.as_ref().map(|(ids, _)| ids.clone()).unwrap_or_default())?;
        let plans =
            [&runs, &sources].map(|batch| self.sweep.edited.edits.plan(&self.texts, &files, batch, &self.model));
        let [plan, source_plan] = plans;
        let single = (cases.len() == 1).then(|| pairs[0].tokens(&files)).map(|[clean, corrupt]| (clean, corrupt));
        let compare = self.compare;
        let found = Begun { command: "patch", args: &self.sweep, model: &self.model, over, compare, cases: &cases };
        let both = [(plan?, &runs), (source_plan?, &sources)];
        found.finish(files, both, target, self.noise, single, None)
    }
}

impl Ablate {
    pub(super) fn run(self) -> Result<(), Failure> {
        let input = self.texts.read(&self.model)?;
        let target = self.sweep.out.as_deref().map(Target::create_or_page).transpose()?;
        let files = self.model.open()?;
        let value = match self.with.as_str() {
            "zero" | "mean" => None,
            file => {
                Some(file.parse::<ValueSpec>().map_err(|e| Failure::Usage(format!("--with: {e}, nor zero or mean")))?)
            }
        };
        if let Some(target) = &target {
            let value = match &value {
                Some(ValueSpec::File { path, .. }) => Some(PathBuf::from(path)),
                _ => None,
            };
            refuse_to_overwrite(
                target.path(),
                &files,
                self.texts.files().chain(self.sweep.edited.edits.files()).chain(value),
            )?;
        }
        let batch = self.texts.batch(&input, &files, &self.model)?;
        let question = &self.sweep.question;
        let (answer, wrong) = (question.answer(&files, &self.model)?, question.wrong(&files, &self.model)?);
        let metric = metric(self.sweep.metric.as_deref(), true, answer.is_some(), wrong.is_some())?;
        let mut sweep = self.sweep.sweep(&files, Replacement::Zero, metric)?;
        sweep.replacement = match (self.with.as_str(), &value) {
            ("mean", _) => Replacement::Mean,
            (_, Some(value)) => Replacement::Values(self.values(value, &sweep)?),
            _ => Replacement::Zero,
        };
        let tokens = files.tokens(&batch);
        let mut cases = Vec::new();
        for (n, tokens) in tokens.iter().enumerate() {
            let position = self.sweep.question.position(tokens, n)?;
            let question = Question { position, answer: answer.unwrap_or(0), wrong: wrong.unwrap_or(0) };
            let ids = batch.ids_of(n).to_vec();
            cases.push(Case { aligned: ids.len(), ids, question, source: None, from_source: false });
        }
        sweep.check(files.config(), &cases)?;
        let plan = self.sweep.edited.edits.plan(&self.texts, &files, &batch, &self.model)?;
        let single = (cases.len() == 1).then(|| (tokens[0].clone(), tokens[0].clone()));
        let over = Over::Places(&sweep);
        let begun =
            Begun { command: "ablate", args: &self.sweep, model: &self.model, over, compare: false, cases: &cases };
        let both = [(plan, &batch), (EditPlan::default(), &batch)];
        begun.finish(files, both, target, false, single, Some(self.with.clone()))
    }

    fn values(&self, value: &ValueSpec, sweep: &Sweep) -> Result<BTreeMap<Site, ndarray::ArrayD<f32>>, Failure> {
        let sites = sweep.sites.iter().flat_map(|site| site.of_layer.iter().copied());
        let of_site = |site: Site| match value {
            ValueSpec::Number(number) if number.is_finite() => {
                Err(Failure::Usage(format!("--with takes zero, mean or a file, not the number {number}")))
            }
            ValueSpec::Number(number) => Err(Failure::Usage(format!("--with: {number} is not a finite number"))),
            ValueSpec::File { factor, path, array } => {
                let values = arrays::read(Path::new(path), array.as_deref(), Some(site));
                let values = values.map_err(|e| Failure::Run(format!("--with: {e}")))?;
                Ok((site, values.mapv(|v| factor * v)))
            }
        };
        sites.map(of_site).collect()
    }
}

/// A sweep that has passed all checks.
struct Begun<'a> {
    command: &'static str,
    args: &'a SweepArgs,
    model: &'a ModelArgs,
    over: Over<'a>,
    /// True if estimated cells are also run.
    compare: bool,
    cases: &'a [Case],
}

impl Begun<'_> {
    fn finish(
        self,
        files: Model,
        [(plan, runs), (source_plan, sources)]: [(EditPlan, &Batch); 2],
        target: Option<Target>,
        noise: bool,
        tokens: Option<(Vec<Token>, Vec<Token>)>,
        with: Option<String>,
    ) -> Result<(), Failure> {
        let Begun { command, args, model, over, compare, cases } = self;
        let session = args.edited.run.session(files, model)?;
        let mut hooks = session.model().hooks();
        let edits = model.edit(&plan, &session, runs, &mut hooks)?;
        let mut source_hooks: Hooks = session.model().hooks();
        model.edit(&source_plan, &session, sources, &mut source_hooks)?;
        let all = Cases { cases, edits: &hooks, source_edits: &source_hooks };
        let run = async |over: Over<'_>, told: Progress<'_>| over.run(&session, all, told).await;
        let steps = if matches!(over, Over::Fast(_)) { "blocks" } else { "changed runs" };
        let swept = model.with_progress(steps, async |told| run(over, told).await)?;
        let exact = match over {
            Over::Fast(sweep) if compare => {
                Some(model.with_progress("changed runs", async |told| run(Over::Places(sweep), told).await)?)
            }
            _ => None,
        };
        let aligned = cases.iter().map(|case| case.aligned).min().unwrap_or(0);
        let found = Found { command, over, swept, exact, noise, tokens, aligned, edits, with };
        let document = found.document(&session);
        if !model.json {
            document.notes.iter().for_each(|note| model.say(format_args!("note: {note}")));
        }
        let cell = || cell_run(&found, args, model, cases);
        deliver(&Whole { found: &found, document: &document, session: &session, cell: &cell }, target, model)
    }
}

/// The command that runs one cell alone. `None` unless there is one case, its source has as many tokens as its text,
/// and the user gave no edits.
fn cell_run(found: &Found<'_>, args: &SweepArgs, model: &ModelArgs, cases: &[Case]) -> Option<CellRun> {
    let (Over::Places(sweep), [case]) = (found.over, cases) else { return None };
    let aligned = case.source.as_ref().is_none_or(|(ids, _)| ids.len() == case.ids.len());
    if args.edited.edits.any() || !aligned {
        return None;
    }
    let ids = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let source: Vec<[String; 2]> =
        case.source.iter().map(|(source, _)| ["--source-ids".to_string(), ids(source)]).collect();
    let of_run = arguments(model, &args.edited.run, &source, &case.ids);
    // The loss is over all tokens, so it needs no position.
    let token = match sweep.metric {
        Metric::Loss => String::new(),
        _ => format!("--token {} ", case.question.position),
    };
    let op = match found.with.as_deref() {
        None => "patch".into(),
        Some(word @ ("zero" | "mean")) => word.to_string(),
        Some(values) => format!("set={values}"),
    };
    let site = |site: &SweepSite| site.of_layer[0].name().replace("blocks.0.", "blocks.{i}.");
    Some(CellRun { sites: sweep.sites.iter().map(site).collect(), op, arguments: token + &of_run })
}
