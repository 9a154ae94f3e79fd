//! The results of `patch` and `ablate`, in every form of output: JSON, arrays, a table, a picture, a page. Owns their
//! statistics and notes. Read next: `sweep.rs`, which runs the sweeps; `target.rs`, which writes files.

use super::edits::mark;
use super::target::{self, Findings, nested, number};
use crate::analysis::cases::{Case, Cases};
use crate::analysis::metric::Metric;
use crate::analysis::path::PathSweep;
use crate::analysis::statistics;
use crate::analysis::sweep::{Sweep, SweepAxis, Swept};
use crate::config::Config;
use crate::hooks::request::EditRecord;
use crate::model::tokenizer::Token;
use crate::output::Provenance;
use crate::output::arrays::Named;
use crate::plot::Picture;
use crate::plot::sweep::SweepPicture;
use crate::report::{CellRun, SweepPage};
use crate::session::{Error, Progress, Session};
use serde_json::{Map, Value, json};
use std::io::Write;

/// What is swept: places, or the senders of a path.
#[derive(Clone, Copy)]
pub(super) enum Over<'a> {
    Places(&'a Sweep),
    /// Places, estimated from gradients.
    Fast(&'a Sweep),
    Paths(&'a PathSweep),
}

impl Over<'_> {
    pub(super) fn check(self, config: &Config, cases: &[Case]) -> Result<(), Error> {
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

    pub(super) async fn run(self, session: &Session, all: Cases<'_>, told: Progress<'_>) -> Result<Swept, Error> {
        match self {
            Over::Places(sweep) => session.sweep_async(sweep, all, Some(told)).await,
            Over::Fast(sweep) => session.patch_fast_async(sweep, all, Some(told)).await,
            Over::Paths(sweep) => session.path_sweep_async(sweep, all, Some(told)).await,
        }
    }
}

/// A finished sweep, and what its outputs need besides.
pub(super) struct Found<'a> {
    pub(super) command: &'static str,
    pub(super) over: Over<'a>,
    pub(super) swept: Swept,
    /// The exact values of an estimated sweep, from a run of every cell; `None` unless requested.
    pub(super) exact: Option<Swept>,
    pub(super) noise: bool,
    /// The tokens of the clean and of the corrupt text, if there is one case; for an ablation, twice those of its text.
    pub(super) tokens: Option<(Vec<Token>, Vec<Token>)>,
    /// How many tokens, counted from the end of each text, are swept.
    pub(super) aligned: usize,
    pub(super) edits: Vec<EditRecord>,
    /// The replacement of an ablation; `None` for a patch.
    pub(super) with: Option<String>,
}

/// The numbers of a sweep, one per cell in row-major order, and their JSON.
pub(super) struct Document {
    values: Vec<f64>,
    /// The metric of the clean and the corrupt run of a patch, and of the unchanged run of an ablation.
    own: [Option<f64>; 3],
    /// Pictures show (value - zero) / span.
    zero: f64,
    span: f64,
    normalized: Option<Vec<f64>>,
    effects: Vec<f64>,
    statistics: Option<Statistics>,
    /// The exact values of an estimated sweep.
    exact: Option<Exact>,
    labels: Vec<Vec<Value>>,
    axes: Vec<&'static str>,
    /// Notes about the clean and the corrupt run.
    pub(super) notes: Vec<String>,
    json: Map<String, Value>,
}

/// Statistics of each cell over several pairs or texts.
struct Statistics {
    /// The standard error of the mean value.
    standard_error: Vec<f64>,
    /// The standard error of the mean effect. A pair's effect is its value minus the metric of its own unchanged run.
    effect_standard_error: Vec<f64>,
    /// The 95 % interval of the mean value.
    ci: Vec<[f64; 2]>,
    /// The two-sided p value of the mean effect.
    p: Vec<f64>,
}

/// The exact values of an estimated sweep, and their correlation with the estimates: over all cells, and per site.
struct Exact {
    values: Vec<f64>,
    correlation: f64,
    of_sites: Vec<f64>,
}

/// The results, for every form of output.
pub(super) struct Whole<'a> {
    pub(super) found: &'a Found<'a>,
    pub(super) document: &'a Document,
    pub(super) session: &'a Session,
    /// The command that runs one cell alone, for the page.
    pub(super) cell: &'a dyn Fn() -> Option<CellRun>,
}

impl Findings for Whole<'_> {
    fn json(&self) -> &Map<String, Value> {
        &self.document.json
    }

    fn array_keys(&self) -> &[&str] {
        &["values", "normalized", "standard_error", "effect_standard_error", "ci", "p", "exact"]
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
        let provenance = Provenance::new(self.session, self.found.edits.clone());
        let mut page = Vec::new();
        self.found.page(self.document, (self.cell)(), &provenance).write(&mut page)?;
        Ok(page)
    }
}

impl Document {
    /// The arrays besides the values that have one number per cell. Absent arrays are left out.
    fn more(&self) -> Vec<(&'static str, &[f64])> {
        let of_all = |of: fn(&Statistics) -> &Vec<f64>| self.statistics.as_ref().map(of);
        let all = [
            ("normalized", self.normalized.as_ref()),
            ("standard_error", of_all(|all| &all.standard_error)),
            ("effect_standard_error", of_all(|all| &all.effect_standard_error)),
            ("p", of_all(|all| &all.p)),
            ("exact", self.exact.as_ref().map(|exact| &exact.values)),
        ];
        all.into_iter().filter_map(|(name, values)| Some((name, values?.as_slice()))).collect()
    }

    /// The 95 % interval of every cell.
    fn ci(&self) -> Option<&[[f64; 2]]> {
        self.statistics.as_ref().map(|all| all.ci.as_slice())
    }
}

impl Found<'_> {
    pub(super) fn document(&self, session: &Session) -> Document {
        let Swept { shape, values: of_cases, unchanged, source } = &self.swept;
        let n = of_cases.len();
        let n_cells: usize = shape.iter().product();
        let by_cell = |of_cases: &[Vec<f64>]| -> Vec<Vec<f64>> {
            (0..n_cells).map(|cell| of_cases.iter().map(|values| values[cell]).collect()).collect()
        };
        let means = |by_cell: &[Vec<f64>]| by_cell.iter().map(|values| statistics::mean(values)).collect::<Vec<f64>>();
        let of_exact = self.exact.as_ref().map(|exact| means(&by_cell(&exact.values)));
        let by_cell = by_cell(of_cases);
        let values = means(&by_cell);
        let before = statistics::mean(unchanged);
        let effects: Vec<f64> = values.iter().map(|value| value - before).collect();
        let is_patch = !source.is_empty();
        let own = match (is_patch, self.noise) {
            (false, _) => [None, None, Some(before)],
            (true, false) => [Some(statistics::mean(source)), Some(before), None],
            (true, true) => [Some(before), Some(statistics::mean(source)), None],
        };
        // 0 is the run that values are copied into: the corrupt run, or with --noise the clean run.
        let zero = before;
        let difference = own[0].zip(own[1]).map(|(clean, corrupt)| clean - corrupt).filter(|span| *span != 0.0);
        let normalized = difference.map(|span| values.iter().map(|value| (value - zero) / span).collect::<Vec<f64>>());
        let span = difference.unwrap_or(1.0);
        let of_pairs = (n > 1).then(|| {
            let effects: Vec<Vec<f64>> =
                by_cell.iter().map(|values| values.iter().zip(unchanged).map(|(v, u)| v - u).collect()).collect();
            let errors = |lists: &[Vec<f64>]| lists.iter().map(|list| statistics::standard_error(list)).collect();
            Statistics {
                standard_error: errors(&by_cell),
                effect_standard_error: errors(&effects),
                ci: statistics::intervals(&by_cell, n),
                p: statistics::p_values(&effects, n),
            }
        });
        let exact = of_exact.map(|exact| {
            let of_site = n_cells / self.over.at().len();
            let sites = values.chunks(of_site.max(1)).zip(exact.chunks(of_site.max(1)));
            Exact {
                correlation: statistics::correlation(&values, &exact),
                of_sites: sites.map(|(values, exact)| statistics::correlation(values, exact)).collect(),
                values: exact,
            }
        });
        let (axes, labels) = self.labels();
        let mut document = Document {
            values,
            own,
            zero,
            span,
            normalized,
            effects,
            statistics: of_pairs,
            exact,
            labels,
            axes,
            notes: self.notes(own),
            json: Map::new(),
        };
        document.json = self.json(&document, session);
        document
    }

    /// Notes for a patch whose clean and corrupt run have the same metric, or whose corrupt run makes the answer
    /// likelier.
    fn notes(&self, own: [Option<f64>; 3]) -> Vec<String> {
        let [Some(clean), Some(corrupt), _] = own else { return Vec::new() };
        let larger_is_likelier =
            matches!(self.over.metric(), Metric::LogitDiff | Metric::Logit | Metric::Logprob | Metric::Prob);
        let what = if clean == corrupt {
            "both are the same, so there is nothing to restore; give texts that differ in the metric"
        } else if clean < corrupt && larger_is_likelier {
            "the answer is likelier in the corrupt run, so 1 stands for the less likely answer; swap the texts to avoid it"
        } else {
            return Vec::new();
        };
        vec![format!("{}; {what}", self.unchanged(own))]
    }

    fn json(&self, document: &Document, session: &Session) -> Map<String, Value> {
        let shape = &self.swept.shape;
        let array = |values: &[f64]| nested(&values.iter().map(|v| number(*v)).collect::<Vec<_>>(), shape);
        let optional = |values: Option<&Vec<f64>>| values.map_or(Value::Null, |values| array(values));
        let statistic = |of: fn(&Statistics) -> &Vec<f64>| optional(document.statistics.as_ref().map(of));
        let ci = document.ci().map_or(Value::Null, |ci| {
            nested(&ci.iter().map(|[low, high]| json!([number(*low), number(*high)])).collect::<Vec<_>>(), shape)
        });
        let [clean, corrupt, base] = document.own.map(|value| value.map_or(Value::Null, number));
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.into(), value);
        put("command", json!(self.command));
        put("at", json!(self.over.at()));
        put("by", json!(document.axes));
        put("shape", json!(shape));
        put("metric", json!(self.over.metric().name()));
        put("values", array(&document.values));
        put("clean", clean);
        put("corrupt", corrupt);
        put("base", base);
        put("normalized", optional(document.normalized.as_ref()));
        put("n", json!(self.swept.values.len()));
        put("standard_error", statistic(|all| &all.standard_error));
        put("ci", ci);
        put("p", statistic(|all| &all.p));
        put("labels", json!(document.labels));
        put("effect_standard_error", statistic(|all| &all.effect_standard_error));
        if let Some(Exact { values, correlation, of_sites }) = &document.exact {
            put("exact", array(values));
            put("correlation", number(*correlation));
            if of_sites.len() > 1 {
                let of_sites = self.over.at().into_iter().zip(of_sites);
                put("correlation_by_site", of_sites.map(|(site, r)| (site.to_string(), number(*r))).collect());
            }
        }
        if !document.notes.is_empty() {
            put("notes", json!(document.notes));
        }
        self.origin(session).into_iter().for_each(|(key, value)| drop(put(&key, value)));
        map
    }

    /// The page of the sweep. `cell` is the command that runs one cell alone.
    fn page<'a>(&'a self, document: &'a Document, cell: Option<CellRun>, provenance: &'a Provenance) -> SweepPage<'a> {
        let mut arrays = vec![("values", document.values.clone()), ("effect", document.effects.clone())];
        // The page shows effects, so it needs the standard error of effects only.
        let more = document.more().into_iter().filter(|(name, _)| *name != "standard_error");
        arrays.extend(more.map(|(name, values)| (name, values.to_vec())));
        arrays.extend(document.ci().map(|ci| ("ci", ci.concat())));
        let aligned = |tokens: &'a [Token]| &tokens[tokens.len() - self.aligned..];
        let texts = self.tokens.as_ref().map(|(clean, corrupt)| match self.with {
            Some(_) => vec![("text", aligned(clean))],
            None => vec![("clean", aligned(clean)), ("corrupt", aligned(corrupt))],
        });
        SweepPage {
            command: self.command,
            at: self.over.at(),
            how: self.how(),
            axes: &document.axes,
            labels: &document.labels,
            metric: self.over.metric().name(),
            own: document.own,
            noise: self.noise,
            n: self.swept.values.len(),
            texts,
            arrays,
            cell,
            provenance,
        }
    }

    /// The part of the JSON that says how the numbers were computed.
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

    /// The axes, and the labels of the places along each.
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
        let mut all = vec![Named::f64("values", shape, document.values.clone())];
        all.extend(document.more().into_iter().map(|(name, values)| Named::f64(name, shape, values.to_vec())));
        all.extend(document.ci().map(|ci| Named::f64("ci", &[&shape[..], &[2]].concat(), ci.concat())));
        if self.swept.values.len() > 1 {
            // The values of each case let users compute statistics of their own.
            let all_cases = [&[self.swept.values.len()][..], shape].concat();
            all.push(Named::f64("values_each", &all_cases, self.swept.values.concat()));
        }
        all
    }

    /// Writes a row for every cell: its index and label along every axis, then its numbers.
    fn table(&self, document: &Document, table: &mut csv::Writer<&mut dyn Write>) -> std::io::Result<()> {
        let shape = &self.swept.shape;
        let mut head: Vec<String> =
            document.axes.iter().flat_map(|axis| [axis.to_string(), format!("{axis}_label")]).collect();
        let more = document.more();
        let of = |name: &str, cell: usize| {
            let found = more.iter().find(|(other, _)| *other == name);
            found.map_or(String::new(), |(_, values)| values[cell].to_string())
        };
        let numbers =
            ["value", "effect", "normalized", "standard_error", "ci_low", "ci_high", "p", "effect_standard_error"];
        head.extend(numbers.map(String::from));
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
            let bound = |end: usize| document.ci().map_or(String::new(), |ci| ci[cell][end].to_string());
            row.extend([document.values[cell].to_string(), document.effects[cell].to_string()]);
            row.extend([of("normalized", cell), of("standard_error", cell), bound(0), bound(1), of("p", cell)]);
            row.push(of("effect_standard_error", cell));
            row.extend(document.exact.as_ref().map(|_| of("exact", cell)));
            table.write_record(&row)?;
        }
        Ok(())
    }

    /// The change at each place, in words.
    fn how(&self) -> String {
        let text = if self.noise { "corrupt" } else { "clean" };
        match (&self.with, self.over) {
            (Some(with), _) => format!("ablated with {with}"),
            (None, Over::Places(_)) => format!("patched with values of the {text} run"),
            (None, Over::Fast(_)) => format!("patched with values of the {text} run, estimated from one gradient"),
            (None, Over::Paths(sweep)) if sweep.frozen() => {
                format!("patched along this path with values of the {text} run, other heads frozen")
            }
            (None, Over::Paths(_)) => format!("patched along this path with values of the {text} run"),
        }
    }

    /// The metric of the unchanged runs, in words.
    fn unchanged(&self, own: [Option<f64>; 3]) -> String {
        let metric = self.over.metric().name();
        match own {
            [Some(clean), Some(corrupt), _] => format!("{metric} of clean {clean:.4}, of corrupt {corrupt:.4}"),
            [.., Some(base)] => format!("{metric} of the unchanged run {base:.4}"),
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
        // The exact values are panels of their own, on the same scale.
        let (mut shown, mut values) = (shown.clone(), document.values.clone());
        let (mut axes, mut labels) = (document.axes.clone(), document.labels.clone());
        let statistics = document.statistics.as_ref();
        let errors = statistics.map(|all| all.effect_standard_error.iter().map(|error| error / document.span.abs()));
        let (mut errors, mut p) = (errors.map(Iterator::collect::<Vec<f64>>), statistics.map(|all| all.p.as_slice()));
        let mut notes = vec![self.unchanged(document.own)];
        if let Some(exact) = &document.exact {
            shown.extend(exact.values.iter().map(|value| (value - document.zero) / document.span));
            values.extend(&exact.values);
            axes.insert(0, "kind");
            labels.insert(0, vec![json!("estimated"), json!(format!("exact (r = {:.4})", exact.correlation))]);
            if exact.of_sites.len() > 1 {
                let sites = self.over.at().into_iter().zip(&exact.of_sites).map(|(site, r)| format!("{site} {r:.4}"));
                notes.push(format!("r by site: {}", sites.collect::<Vec<_>>().join(", ")));
            }
            (errors, p) = (None, None);
        }
        let how = match (&self.with, &document.normalized) {
            (None, Some(_)) if self.noise => format!("{} (0: as clean, -1: as corrupt)", self.how()),
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
            errors.as_deref(),
            p,
        )
        .with_notes(notes)
    }
}
