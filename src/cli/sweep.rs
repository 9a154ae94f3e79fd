//! `actscope patch` and `actscope ablate`: which places matter for what the model says, one changed run for each.

use super::edits::{EditArgs, mark};
use super::pairs::{self, PairArgs, hide_texts};
use super::question::{QuestionArgs, metric};
use super::report::arguments;
use super::run::{RunArgs, refuse_to_overwrite};
use super::target::{self, Findings, Target, deliver, nested, number};
use super::texts::TextArgs;
use super::{Failure, ModelArgs};
use crate::analysis::edits::EditPlan;
use crate::analysis::grammar::ValueSpec;
use crate::analysis::metric::{Metric, Question};
use crate::analysis::path::PathSweep;
use crate::analysis::statistics;
use crate::analysis::sweep::{Case, Change, Sweep, SweepAxis, SweepSite, Swept};
use crate::batch::Batch;
use crate::config::Config;
use crate::hooks::request::{EditRecord, Hooks};
use crate::hooks::site::Site;
use crate::model::tokenizer::Token;
use crate::output::Provenance;
use crate::output::arrays::{self, Named};
use crate::plot::Picture;
use crate::plot::sweep::SweepPicture;
use crate::report::{CellRun, SweepPage};
use crate::session::{Error, Model, Progress, Session};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What both sweeps share.
#[derive(Args)]
struct SweepArgs {
    /// Where: a site without its layer, such as resid_pre, z, pattern, mlp_post; `every` for resid_pre, attn_out and mlp_out, or,
    /// with head in --by, for z, q, k, v and pattern. Repeatable [default: resid_pre]
    #[arg(long, value_name = "SITE")]
    at: Vec<String>,
    /// Axes of the sweep, one changed run for each combination; any of layer,pos,head,dim,key [default: layer,head for sites
    /// with heads, layer,pos for the rest]
    #[arg(long, value_name = "AXES", value_delimiter = ',')]
    by: Vec<String>,
    /// logit-diff (the default with --wrong), logit, logprob, prob, loss or kl
    #[arg(long, value_name = "METRIC")]
    metric: Option<String>,
    #[command(flatten)]
    question: QuestionArgs,
    /// Where to write: .json, .csv, .npz, .safetensors, a picture as .png or .svg, or a page as .html. Without it, on the terminal
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    edits: EditArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// How two texts of different length line up.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Align {
    /// By position: texts of different length are refused
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
    /// The other way round: values of the corrupt run are put into the clean one
    #[arg(long)]
    noise: bool,
    /// How texts of different length line up
    #[arg(long, value_enum, default_value_t = Align::Start)]
    align: Align,
    /// Attribution patching: estimate every cell from one gradient of the metric, instead of running it
    #[arg(long, conflicts_with = "path")]
    fast: bool,
    /// Also run every cell, and show the exact values beside the estimates, and their correlation
    #[arg(long, requires = "fast")]
    compare: bool,
    /// Patch one path only, FROM...TO, such as head.0.2...q.3.4: only TO reads the clean run's value of FROM. FROM is
    /// head.LAYER.HEAD or mlp.LAYER, and numbers that are left out become axes; TO is q.LAYER.HEAD, k.LAYER.HEAD, v.LAYER.HEAD or
    /// mlp.LAYER, several joined by +, or logits
    #[arg(long, value_name = "FROM...TO", conflicts_with = "at")]
    path: Option<String>,
    /// On the way from FROM to TO every other head keeps the value that it had, as in Wang et al. 2022; MLPs follow
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
    /// What each place is changed to: zero, mean (over all positions of all texts), or [F*]FILE[#ARRAY] with values of other
    /// texts
    #[arg(long, value_name = "WITH", default_value = "zero")]
    with: String,
    #[command(flatten)]
    sweep: SweepArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// What is swept: places, or the senders of a path.
#[derive(Clone, Copy)]
enum Over<'a> {
    Places(&'a Sweep),
    /// Places, estimated from gradients.
    Fast(&'a Sweep),
    Paths(&'a PathSweep),
}

impl Over<'_> {
    fn check(self, config: &Config, cases: &[Case]) -> Result<(), Error> {
        match self {
            Over::Places(sweep) => sweep.check(config, cases),
            Over::Fast(sweep) => sweep.check_fast(config, cases),
            Over::Paths(sweep) => sweep.check(config, cases),
        }
    }

    /// The sites without their layers, or the path.
    fn at(&self) -> Vec<&str> {
        match self {
            Over::Places(sweep) | Over::Fast(sweep) => sweep.sites.iter().map(|site| site.name.as_str()).collect(),
            Over::Paths(sweep) => vec![sweep.written()],
        }
    }

    fn axes(&self) -> &[SweepAxis] {
        match self {
            Over::Places(sweep) | Over::Fast(sweep) => &sweep.axes,
            Over::Paths(sweep) => sweep.axes(),
        }
    }

    fn metric(self) -> Metric {
        match self {
            Over::Places(sweep) | Over::Fast(sweep) => sweep.metric,
            Over::Paths(sweep) => sweep.metric(),
        }
    }

    async fn run(
        self,
        session: &Session,
        cases: &[Case],
        (edits, source_edits): (&Hooks, &Hooks),
        told: Progress<'_>,
    ) -> Result<Swept, Error> {
        match self {
            Over::Places(sweep) => session.sweep_async(sweep, cases, edits, source_edits, Some(told)).await,
            Over::Fast(sweep) => session.patch_fast_async(sweep, cases, edits, source_edits, Some(told)).await,
            Over::Paths(sweep) => session.path_sweep_async(sweep, cases, edits, source_edits, Some(told)).await,
        }
    }
}

/// What was swept, and all that is said of it.
struct Found<'a> {
    command: &'static str,
    over: Over<'a>,
    swept: Swept,
    /// The same by running every cell, beside estimates.
    exact: Option<Swept>,
    noise: bool,
    /// The tokens of every position, where there is one case.
    tokens: Option<(Vec<Token>, Vec<Token>)>,
    aligned: usize,
    edits: Vec<EditRecord>,
    with: Option<String>,
}

impl SweepArgs {
    /// The axes that --by names.
    fn axes(&self) -> Result<Vec<SweepAxis>, Failure> {
        let axes = self.by.iter().map(|axis| axis.trim().parse::<SweepAxis>()).collect::<Result<Vec<_>, _>>();
        let axes = axes.map_err(|e| Failure::Usage(format!("--by: {e}")))?;
        match axes.iter().enumerate().find(|(i, axis)| axes[..*i].contains(axis)) {
            Some(twice) => Err(Failure::Usage(format!("--by names {} twice", twice.1.name()))),
            None => Ok(axes),
        }
    }

    fn sweep(&self, files: &Model, change: Change, metric: Metric) -> Result<Sweep, Failure> {
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
        if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            return Err(Failure::Usage(format!("--at names {} twice", twice.1)));
        }
        let sites = names.iter().map(|name| SweepSite::find(name, files.config())).collect::<Result<Vec<_>, _>>()?;
        if axes.is_empty() {
            let layered = sites.iter().all(|site| site.of_layer[0].layer().is_some());
            axes.extend(layered.then_some(SweepAxis::Layer));
            axes.push(if sites.iter().all(SweepSite::has_heads) { SweepAxis::Head } else { SweepAxis::Pos });
        }
        Ok(Sweep { sites, axes, change, metric })
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
            refuse_to_overwrite(target.path(), &files, self.sweep.edits.files().chain(self.pairs.file()))?;
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
                sweep = self.sweep.sweep(&files, Change::Patch, metric)?;
                if self.fast { Over::Fast(&sweep) } else { Over::Places(&sweep) }
            }
        };
        let mut cases = Vec::new();
        for (n, pair) in pairs.iter().enumerate() {
            if self.align == Align::Start {
                pair.check_lengths(
                    &files,
                    "reword one of them, or use --align end where their last tokens are meant to meet",
                )?;
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
        let plans = [&runs, &sources].map(|batch| self.sweep.edits.plan(&self.texts, &files, batch, &self.model));
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
                self.texts.files().chain(self.sweep.edits.files()).chain(value),
            )?;
        }
        let batch = self.texts.batch(&input, &files, &self.model)?;
        let question = &self.sweep.question;
        let (answer, wrong) = (question.answer(&files, &self.model)?, question.wrong(&files, &self.model)?);
        let metric = metric(self.sweep.metric.as_deref(), true, answer.is_some(), wrong.is_some())?;
        let mut sweep = self.sweep.sweep(&files, Change::Zero, metric)?;
        sweep.change = match (self.with.as_str(), &value) {
            ("mean", _) => Change::Mean,
            (_, Some(value)) => Change::Values(self.values(value, &sweep)?),
            _ => Change::Zero,
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
        let plan = self.sweep.edits.plan(&self.texts, &files, &batch, &self.model)?;
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
            ValueSpec::Number(number) => Err(Failure::Usage(format!("--with: {number} is no finite number"))),
            ValueSpec::File { factor, path, array } => {
                let values = arrays::read(Path::new(path), array.as_deref(), Some(site));
                let values = values.map_err(|e| Failure::Run(format!("--with: {e}")))?;
                Ok((site, values.mapv(|v| factor * v)))
            }
        };
        sites.map(of_site).collect()
    }
}

/// A sweep that was checked.
struct Begun<'a> {
    command: &'static str,
    args: &'a SweepArgs,
    model: &'a ModelArgs,
    over: Over<'a>,
    /// Whether what is estimated is also run.
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
        let session = args.run.session(files, model)?;
        let mut hooks = session.model().hooks();
        let edits = model.edit(&plan, &session, runs, &mut hooks)?;
        let mut source_hooks: Hooks = session.model().hooks();
        model.edit(&source_plan, &session, sources, &mut source_hooks)?;
        let hooks = (&hooks, &source_hooks);
        let run = async |over: Over<'_>, told: Progress<'_>| over.run(&session, cases, hooks, told).await;
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
        if command == "patch" && !model.json {
            let one = |key: &str| document.json.get(key).and_then(Value::as_f64);
            let says = |what: &str| model.say(format_args!("note: {}; {what}", found.unchanged(&document)));
            match (one("clean"), one("corrupt"), over.metric()) {
                (Some(clean), Some(corrupt), _) if clean == corrupt => {
                    says("the texts do not differ in it, so nothing can be brought back")
                }
                (Some(clean), Some(corrupt), Metric::LogitDiff | Metric::Logit | Metric::Logprob | Metric::Prob)
                    if clean < corrupt =>
                {
                    says("the answer is likelier in the corrupt run, so 1 stands for the less likely answer");
                }
                _ => {}
            }
        }
        let page = || {
            let provenance = Provenance::new(&session, found.edits.clone());
            let cell = found.cell_run(args, model, cases);
            let mut page = Vec::new();
            found.page(&document, cell, &provenance).write(&mut page).map(|()| page)
        };
        deliver(&Whole { found: &found, document: &document, session: &session, page: &page }, target, model)
    }
}

/// The numbers of a sweep, cell by cell, and as JSON.
struct Document {
    values: Vec<f64>,
    /// What is shown of a value: (value - zero) / span.
    zero: f64,
    span: f64,
    normalized: Option<Vec<f64>>,
    effects: Vec<f64>,
    standard_error: Option<Vec<f64>>,
    ci: Option<Vec<[f64; 2]>>,
    p: Option<Vec<f64>>,
    /// The exact values beside estimates.
    exact: Option<Vec<f64>>,
    labels: Vec<Vec<Value>>,
    axes: Vec<&'static str>,
    json: Map<String, Value>,
}

/// All of it.
struct Whole<'a> {
    found: &'a Found<'a>,
    document: &'a Document,
    session: &'a Session,
    page: &'a dyn Fn() -> std::io::Result<Vec<u8>>,
}

impl Findings for Whole<'_> {
    fn json(&self) -> &Map<String, Value> {
        &self.document.json
    }

    fn array_keys(&self) -> &[&str] {
        &["values", "normalized", "standard_error", "ci", "p", "exact"]
    }

    fn arrays(&self) -> Vec<Named> {
        self.found.arrays(self.document)
    }

    fn table(&self, table: &mut csv::Writer<&mut dyn Write>) -> std::io::Result<()> {
        self.found.table(self.document, table)
    }

    fn picture(&self) -> Option<Box<dyn Picture>> {
        Some(Box::new(self.found.picture(self.session, self.document)))
    }

    fn page(&self) -> std::io::Result<Vec<u8>> {
        (self.page)()
    }
}

impl Found<'_> {
    fn document(&self, session: &Session) -> Document {
        let Swept { shape, values: of_cases, unchanged, source } = &self.swept;
        let n = of_cases.len();
        let n_cells: usize = shape.iter().product();
        let by_cell = |of_cases: &[Vec<f64>]| -> Vec<Vec<f64>> {
            (0..n_cells).map(|cell| of_cases.iter().map(|values| values[cell]).collect()).collect()
        };
        let means = |by_cell: &[Vec<f64>]| by_cell.iter().map(|values| statistics::mean(values)).collect::<Vec<f64>>();
        let exact = self.exact.as_ref().map(|exact| means(&by_cell(&exact.values)));
        let by_cell = by_cell(of_cases);
        let values = means(&by_cell);
        let before = statistics::mean(unchanged);
        let effects: Vec<f64> = values.iter().map(|value| value - before).collect();
        let is_patch = !source.is_empty();
        let (clean, corrupt) = match (is_patch, self.noise) {
            (false, _) => (None, None),
            (true, false) => (Some(statistics::mean(source)), Some(before)),
            (true, true) => (Some(before), Some(statistics::mean(source))),
        };
        // 0 is the run that values are put into: the corrupt one, with --noise the clean one.
        let zero = before;
        let difference = clean.zip(corrupt).map(|(clean, corrupt)| clean - corrupt).filter(|span| *span != 0.0);
        let normalized = difference.map(|span| values.iter().map(|value| (value - zero) / span).collect::<Vec<f64>>());
        let span = difference.unwrap_or(1.0);
        let several = n > 1;
        let standard_error = several.then(|| by_cell.iter().map(|values| statistics::standard_error(values)).collect());
        let ci = several.then(|| statistics::intervals(&by_cell, n));
        let p = several.then(|| {
            let effects: Vec<Vec<f64>> =
                by_cell.iter().map(|values| values.iter().zip(unchanged).map(|(v, u)| v - u).collect()).collect();
            statistics::p_values(&effects, n)
        });
        let (axes, labels) = self.labels();
        let mut document = Document {
            values,
            zero,
            span,
            normalized,
            effects,
            standard_error,
            ci,
            p,
            exact,
            labels,
            axes,
            json: Map::new(),
        };
        document.json = self.json(&document, session, (clean, corrupt), (!is_patch).then_some(before));
        document
    }

    fn json(
        &self,
        document: &Document,
        session: &Session,
        (clean, corrupt): (Option<f64>, Option<f64>),
        base: Option<f64>,
    ) -> Map<String, Value> {
        let shape = &self.swept.shape;
        let array = |values: &[f64]| nested(&values.iter().map(|v| number(*v)).collect::<Vec<_>>(), shape);
        let optional = |values: &Option<Vec<f64>>| values.as_ref().map_or(Value::Null, |values| array(values));
        let ci = document.ci.as_ref().map_or(Value::Null, |ci| {
            nested(&ci.iter().map(|[low, high]| json!([number(*low), number(*high)])).collect::<Vec<_>>(), shape)
        });
        let one = |value: Option<f64>| value.map_or(Value::Null, number);
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.into(), value);
        put("command", json!(self.command));
        put("at", json!(self.over.at()));
        put("by", json!(document.axes));
        put("shape", json!(shape));
        put("metric", json!(self.over.metric().name()));
        put("values", array(&document.values));
        put("clean", one(clean));
        put("corrupt", one(corrupt));
        put("base", one(base));
        put("normalized", optional(&document.normalized));
        put("n", json!(self.swept.values.len()));
        put("standard_error", optional(&document.standard_error));
        put("ci", ci);
        put("p", optional(&document.p));
        put("labels", json!(document.labels));
        if let Some(exact) = &document.exact {
            put("exact", array(exact));
            put("correlation", number(statistics::correlation(&document.values, exact)));
        }
        self.origin(session).into_iter().for_each(|(key, value)| drop(put(&key, value)));
        map
    }

    /// The page.
    fn page<'a>(&'a self, document: &'a Document, cell: Option<CellRun>, provenance: &'a Provenance) -> SweepPage<'a> {
        let mut arrays = vec![("values", document.values.clone()), ("effect", document.effects.clone())];
        let more = [
            ("normalized", document.normalized.clone()),
            ("standard_error", document.standard_error.clone()),
            ("p", document.p.clone()),
            ("exact", document.exact.clone()),
            ("ci", document.ci.as_ref().map(|ci| ci.concat())),
        ];
        arrays.extend(more.into_iter().filter_map(|(name, values)| Some((name, values?))));
        let lined_up = |tokens: &'a [Token]| &tokens[tokens.len() - self.aligned..];
        let texts = self.tokens.as_ref().map(|(clean, corrupt)| match self.with {
            Some(_) => vec![("text", lined_up(clean))],
            None => vec![("clean", lined_up(clean)), ("corrupt", lined_up(corrupt))],
        });
        let one = |key: &str| document.json.get(key).and_then(Value::as_f64);
        SweepPage {
            command: self.command,
            at: self.over.at(),
            how: self.how(),
            axes: &document.axes,
            labels: &document.labels,
            metric: self.over.metric().name(),
            own: ["clean", "corrupt", "base"].map(one),
            noise: self.noise,
            n: self.swept.values.len(),
            texts,
            arrays,
            cell,
            provenance,
        }
    }

    /// How one cell is run alone: of a single text, whose source is as long as it is, without edits of the user's.
    fn cell_run(&self, args: &SweepArgs, model: &ModelArgs, cases: &[Case]) -> Option<CellRun> {
        let (Over::Places(sweep), [case]) = (self.over, cases) else { return None };
        let aligned = case.source.as_ref().is_none_or(|(ids, _)| ids.len() == case.ids.len());
        if args.edits.any() || !aligned {
            return None;
        }
        let ids = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let source: Vec<[String; 2]> =
            case.source.iter().map(|(source, _)| ["--source-ids".to_string(), ids(source)]).collect();
        let of_run = arguments(model, &args.run, &source, &case.ids);
        // The loss is of all tokens.
        let token = match sweep.metric {
            Metric::Loss => String::new(),
            _ => format!("--token {} ", case.question.position),
        };
        let arguments = token + &of_run;
        let op = match self.with.as_deref() {
            None => "patch".into(),
            Some(word @ ("zero" | "mean")) => word.to_string(),
            Some(values) => format!("set={values}"),
        };
        let site = |site: &SweepSite| site.of_layer[0].name().replace("blocks.0.", "blocks.{i}.");
        Some(CellRun { sites: sweep.sites.iter().map(site).collect(), op, arguments })
    }

    /// What JSON says of where the numbers come from.
    fn origin(&self, session: &Session) -> Map<String, Value> {
        let mut map = target::provenance(session, &self.edits);
        let mut put = |key: &str, value: Value| map.insert(key.into(), value);
        match &self.with {
            Some(with) => put("with", json!(with)),
            None => put("noise", json!(self.noise)),
        };
        if matches!(self.over, Over::Fast(_)) {
            put("fast", json!(true));
        }
        if let Over::Paths(sweep) = self.over {
            put("path", json!(sweep.written()));
            put("frozen", json!(sweep.frozen()));
        }
        if let Some((clean, corrupt)) = &self.tokens {
            let texts = |tokens: &[Token]| tokens.iter().map(Token::text).collect::<Vec<_>>();
            match self.with {
                Some(_) => put("tokens", json!(texts(clean))),
                None => put("tokens", json!({"clean": texts(clean), "corrupt": texts(corrupt)})),
            };
        }
        map
    }

    /// The axes with a label for each place along them.
    fn labels(&self) -> (Vec<&'static str>, Vec<Vec<Value>>) {
        let (mut axes, mut labels) = (Vec::new(), Vec::new());
        let mut shape = self.swept.shape.iter();
        let at = self.over.at();
        if at.len() > 1 {
            shape.next();
            axes.push("site");
            labels.push(at.iter().map(|name| json!(name)).collect());
        }
        for (axis, n) in self.over.axes().iter().zip(shape) {
            axes.push(axis.name());
            let tokens = self.tokens.as_ref().filter(|_| matches!(axis, SweepAxis::Pos | SweepAxis::Key));
            labels.push(match tokens {
                Some((clean, _)) => {
                    clean[clean.len() - self.aligned..].iter().map(|token| json!(token.text())).collect()
                }
                None => (0..*n).map(|i| json!(i)).collect(),
            });
        }
        (axes, labels)
    }

    fn arrays(&self, document: &Document) -> Vec<Named> {
        let shape = &self.swept.shape;
        let named = Named::f64;
        let mut all = vec![named("values", shape, document.values.clone())];
        let optional = [
            ("normalized", &document.normalized),
            ("standard_error", &document.standard_error),
            ("p", &document.p),
            ("exact", &document.exact),
        ];
        for (name, values) in optional {
            all.extend(values.as_ref().map(|values| named(name, shape, values.clone())));
        }
        if let Some(ci) = &document.ci {
            all.push(named("ci", &[&shape[..], &[2]].concat(), ci.concat()));
        }
        if self.swept.values.len() > 1 {
            // Case by case, for a test of one's own.
            let all_cases = [&[self.swept.values.len()][..], shape].concat();
            all.push(named("values_each", &all_cases, self.swept.values.concat()));
        }
        all
    }

    /// A row for every cell: its place along every axis by number and label, then the numbers.
    fn table(&self, document: &Document, table: &mut csv::Writer<&mut dyn Write>) -> std::io::Result<()> {
        let shape = &self.swept.shape;
        let mut head: Vec<String> =
            document.axes.iter().flat_map(|axis| [axis.to_string(), format!("{axis}_label")]).collect();
        head.extend(["value", "effect", "normalized", "standard_error", "ci_low", "ci_high", "p"].map(String::from));
        head.extend(document.exact.as_ref().map(|_| "exact".to_string()));
        table.write_record(&head)?;
        for cell in 0..document.values.len() {
            let mut rest = cell;
            let mut places: Vec<usize> = shape.iter().rev().map(|n| (rest % n, rest /= n).0).collect();
            places.reverse();
            let label = |axis: usize, place: usize| match &document.labels[axis][place] {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let mut row: Vec<String> =
                places.iter().enumerate().flat_map(|(axis, place)| [place.to_string(), label(axis, *place)]).collect();
            let of =
                |values: &Option<Vec<f64>>| values.as_ref().map_or(String::new(), |values| values[cell].to_string());
            let bound = |end: usize| document.ci.as_ref().map_or(String::new(), |ci| ci[cell][end].to_string());
            row.extend([document.values[cell].to_string(), document.effects[cell].to_string()]);
            row.extend([of(&document.normalized), of(&document.standard_error), bound(0), bound(1), of(&document.p)]);
            row.extend(document.exact.as_ref().map(|exact| exact[cell].to_string()));
            table.write_record(&row)?;
        }
        Ok(())
    }

    /// What was done at each place, in words.
    fn how(&self) -> String {
        let text = if self.noise { "corrupt" } else { "clean" };
        match (&self.with, self.over) {
            (Some(with), _) => format!("ablated with {with}"),
            (None, Over::Places(_)) => format!("values of the {text} run put in"),
            (None, Over::Fast(_)) => format!("values of the {text} run put in, estimated from one gradient"),
            (None, Over::Paths(sweep)) if sweep.frozen() => {
                format!("values of the {text} run sent along this path, other heads frozen")
            }
            (None, Over::Paths(_)) => format!("values of the {text} run sent along this path"),
        }
    }

    /// The metric of the runs that nothing changes, in words.
    fn unchanged(&self, document: &Document) -> String {
        let metric = self.over.metric().name();
        let of = |key: &str| document.json.get(key).and_then(Value::as_f64);
        match (of("clean"), of("corrupt"), of("base")) {
            (Some(clean), Some(corrupt), _) => format!("{metric} of clean {clean:.4}, of corrupt {corrupt:.4}"),
            (.., Some(base)) => format!("{metric} of the unchanged run {base:.4}"),
            _ => String::new(),
        }
    }

    fn picture(&self, session: &Session, document: &Document) -> SweepPicture {
        let n = self.swept.values.len();
        let of = match n {
            1 => String::new(),
            _ => format!(", mean of {n} {}", if self.with.is_some() { "texts" } else { "pairs" }),
        };
        let (name, shown) = match (&self.with, &document.normalized) {
            (None, Some(normalized)) => ("Normalized".into(), normalized),
            _ => (format!("Change of {}", self.over.metric().name()), &document.effects),
        };
        // The exact values as panels of their own, on the same scale.
        let (mut shown, mut values) = (shown.clone(), document.values.clone());
        let (mut axes, mut labels) = (document.axes.clone(), document.labels.clone());
        let (mut errors, mut p) = (document.standard_error.as_deref(), document.p.as_deref());
        if let Some(exact) = &document.exact {
            shown.extend(exact.iter().map(|value| (value - document.zero) / document.span));
            values.extend(exact);
            axes.insert(0, "kind");
            let correlation = statistics::correlation(&document.values, exact);
            labels.insert(0, vec![json!("estimated"), json!(format!("exact (r = {correlation:.4})"))]);
            (errors, p) = (None, None);
        }
        let how = match (&self.with, &document.normalized) {
            (None, Some(_)) if self.noise => format!("{} (0: unharmed, -1: as corrupt)", self.how()),
            (None, Some(_)) => format!("{} (0: as corrupt, 1: as clean)", self.how()),
            _ => self.how(),
        };
        let what = format!(
            "{} of {}: {how}, {}{of}{}",
            self.over.at().join(", "),
            session.model().name(),
            self.over.metric().name(),
            mark(&self.edits)
        );
        SweepPicture::new(
            what,
            name,
            &axes,
            labels,
            self.tokens.clone().map(|(clean, corrupt)| {
                let cut = |tokens: Vec<Token>| tokens[tokens.len() - self.aligned..].to_vec();
                (cut(clean), cut(corrupt))
            }),
            &shown,
            Some(&values),
            errors,
            p,
        )
        .with_note(self.unchanged(document))
    }
}
