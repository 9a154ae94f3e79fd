//! Edits whose values come from files, or from other runs (mean, patch, freeze). Owns [`EditPlan`], a list of edits that were
//! checked against a model and a batch before anything runs, and `Session::edit`, which runs the other runs once and adds the edits
//! to a request. `grammar.rs` owns the text form of edits, `places.rs` what it means in a model. Read next: `sweep.rs`.

pub use crate::analysis::edit_error::EditError;
use crate::analysis::grammar::{EditSpec, OpSpec, ValueSpec};
use crate::analysis::places::Where;
use crate::batch::Batch;
use crate::config::Config;
use crate::hooks::capture::Sink;
use crate::hooks::layout::{cut, shape_of};
use crate::hooks::request::{Edit, EditRecord, Hooks, Select, hash};
use crate::hooks::site::Site;
use crate::model::tokenizer::Token;
use crate::model::windows::{DocumentWindow, Windows};
use crate::session::{Error, Model, Progress, Session};
use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn, Slice};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// The texts of other runs from which edits take values.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The sources of `patch`: one text for all texts of the batch, or one for each.
    pub patch: Option<Batch>,
    /// The texts of `mean`; `None` if the mean is over the batch itself.
    pub mean: Option<Batch>,
}

/// Reads the array of a [`ValueSpec::File`]: the file, the array's name where one was given, and the site it is for.
pub type ReadValues<'a> = &'a mut dyn FnMut(&str, Option<&str>, Site) -> Result<ArrayD<f32>, String>;

/// A list of edits that were checked against a model and a batch.
#[derive(Clone, Debug, Default)]
pub struct EditPlan {
    edits: Vec<Planned>,
    sources: Sources,
    /// The rows of each text that the mean is over; `None` for all.
    mean_rows: Option<Vec<Vec<usize>>>,
}

#[derive(Clone, Debug)]
struct Planned {
    site: Site,
    select: Select,
    /// The edit as recorded in provenance.
    written: String,
    values: Values,
}

#[derive(Clone, Debug)]
enum Values {
    Known(Edit),
    Mean,
    Patch,
    Freeze,
}

impl EditPlan {
    /// Checks edits against a model and a batch, and reads their files. Nothing is run.
    ///
    /// # Errors
    /// [`enum@Error`] for a site or a selection that matches nothing, values of another shape, and a source that is missing
    /// or does not fit.
    pub fn new(
        specs: &[EditSpec],
        model: &Model,
        batch: &Batch,
        sources: Sources,
        read: ReadValues<'_>,
    ) -> Result<EditPlan, Error> {
        let lengths: Vec<usize> = batch.texts().iter().map(|text| text.len()).collect();
        EditPlan::checked(specs, model, (batch, &lengths), sources, read)
    }

    /// [`EditPlan::new`] for generated texts: the first `prompts[i]` tokens of text i are its prompt, and negative positions count
    /// from the prompt's end.
    fn checked(
        specs: &[EditSpec],
        model: &Model,
        (batch, prompts): (&Batch, &[usize]),
        sources: Sources,
        read: ReadValues<'_>,
    ) -> Result<EditPlan, Error> {
        let (config, tokens) = (model.config(), model.tokens(batch));
        let mut plan = EditPlan { edits: Vec::new(), sources, mean_rows: None };
        for spec in specs {
            for Where { site, select } in spec.places_of_growing(config, &tokens, prompts)? {
                let planned = plan.planned(spec, site, select, config, batch, read)?;
                plan.edits.push(planned);
            }
        }
        plan.check(model, batch)?;
        Ok(plan)
    }

    /// [`EditPlan::new`] for texts that are run in windows. `tokens` has the whole texts, `pieces` the windows that are run, and
    /// `batch` the windows' tokens. Positions and texts of edits are those of the whole texts, and an edit is applied in every window
    /// that contains its position. `patch` has the source texts' ids, as long as the texts. A `mean` over the texts themselves takes
    /// each position from the window where it has most context.
    ///
    /// # Errors
    /// As [`EditPlan::new`]; also for edits that need values of whole texts.
    pub fn of_windows(
        specs: &[EditSpec],
        model: &Model,
        (tokens, pieces, batch): (&[Vec<Token>], &[DocumentWindow], &Batch),
        windows: Windows,
        (patch, mean): (Option<&[Vec<u32>]>, Option<Batch>),
        read: ReadValues<'_>,
    ) -> Result<EditPlan, Error> {
        let config = model.config();
        let uses = |op: &OpSpec| specs.iter().find(|spec| spec.op() == op);
        let mut plan = EditPlan::default();
        if let (Some(spec), Some(sources)) = (uses(&OpSpec::Patch), patch) {
            plan.sources.patch = Some(sources_in_windows(spec, model, tokens, pieces, sources)?);
        }
        plan.sources.mean = mean;
        if uses(&OpSpec::Mean).is_some() && plan.sources.mean.is_none() {
            let lengths: Vec<usize> = tokens.iter().map(Vec::len).collect();
            let all = windows.plan(&lengths, None);
            let ids =
                |piece: &DocumentWindow| tokens[piece.document][piece.tokens.clone()].iter().map(|token| token.id);
            let of_pieces: Vec<Vec<u32>> = all.iter().map(|piece| ids(piece).collect()).collect();
            plan.sources.mean = Some(model.batch(&of_pieces)?);
            let rows =
                |piece: &DocumentWindow| piece.kept.iter().map(|position| position - piece.tokens.start).collect();
            plan.mean_rows = Some(all.iter().map(rows).collect());
        }
        for spec in specs {
            for Where { site, select } in spec.places(config, tokens)? {
                if spec.op() == &OpSpec::Mean && site.is_square() {
                    let what =
                        "the mean of scores and patterns is over the texts at the same query and key, which windows \
                                do not have"
                            .into();
                    return Err(EditError::Source { edit: spec.at(site), what }.into());
                }
                let within = |lists: &Vec<Vec<usize>>| {
                    let of_piece = |piece: &DocumentWindow| {
                        let here = lists[piece.document].iter().filter(|position| piece.tokens.contains(position));
                        here.map(|position| position - piece.tokens.start).collect()
                    };
                    pieces.iter().map(of_piece).collect::<Vec<Vec<usize>>>()
                };
                let (positions, keys) = (select.positions.as_ref().map(within), select.keys.as_ref().map(within));
                let planned = plan.planned(spec, site, Select { positions, keys, ..select }, config, batch, read)?;
                let row = shape_of(config, site, &planned.select, batch, 0).into_iter().skip(site.pos_axis() + 1);
                if let Values::Known(edit) = &planned.values
                    && edit.values().is_some_and(|values| values.len() > 1 && values.len() != row.product::<usize>())
                {
                    let what = "a value for each position does not fit texts in windows; give one row".into();
                    return Err(EditError::Value { edit: planned.written, what }.into());
                }
                plan.edits.push(planned);
            }
        }
        plan.check(model, batch)?;
        Ok(plan)
    }

    /// Checks the plan by adding its edits to a request, with zeros of the right size in place of values that are not computed yet.
    fn check(&self, model: &Model, batch: &Batch) -> Result<(), Error> {
        let mut hooks = model.hooks();
        for Planned { site, select, values, .. } in &self.edits {
            let edit = if let Values::Known(edit) = values { edit.clone() } else { Edit::Zero };
            hooks.edit_at(*site, select.clone(), edit)?;
        }
        Ok(hooks.check_batch(batch)?)
    }

    /// The edit of a plan with exactly one edit, if its values are known.
    pub(crate) fn only(&self) -> Option<(Site, &Select, &Edit)> {
        match self.edits.as_slice() {
            [Planned { site, select, values: Values::Known(edit), .. }] => Some((*site, select, edit)),
            _ => None,
        }
    }

    /// True if there are no edits.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    fn planned(
        &self,
        spec: &EditSpec,
        site: Site,
        mut select: Select,
        config: &Config,
        batch: &Batch,
        read: ReadValues<'_>,
    ) -> Result<Planned, Error> {
        let written = spec.at(site);
        let fail = |what: String| EditError::Source { edit: written.clone(), what };
        let n_texts = batch.texts().len();
        let mut known = |value: &ValueSpec| -> Result<Vec<f32>, EditError> {
            match value {
                ValueSpec::Number(number) => {
                    check_number(*number, matches!(spec.op(), OpSpec::Set(_)), site, &select, batch)
                        .map_err(|what| EditError::Value { edit: written.clone(), what })?;
                    Ok(vec![*number])
                }
                ValueSpec::File { factor, path, array } => {
                    let values = read(path, array.as_deref(), site)
                        .map_err(|what| EditError::File { edit: written.clone(), what })?;
                    let what = array.as_ref().map_or(path.clone(), |array| format!("{path}#{array}"));
                    fit(site, &select, config, batch, values.view(), &written, what)
                        .map(|values| values.into_iter().map(|v| factor * v).collect())
                }
            }
        };
        let values = match spec.op() {
            OpSpec::Zero => Values::Known(Edit::Zero),
            OpSpec::Scale(factor) => Values::Known(Edit::Scale(*factor)),
            OpSpec::Add(value) => Values::Known(Edit::Add(known(value)?)),
            OpSpec::Set(value) => Values::Known(Edit::Replace(known(value)?)),
            OpSpec::Freeze => Values::Freeze,
            OpSpec::Mean => {
                let of = self.sources.mean.as_ref().unwrap_or(batch);
                check_mean(site, of).map_err(fail)?;
                if site.is_square() {
                    let needed = (0..n_texts).filter_map(|i| selected(&select, batch, i).last().copied()).max();
                    let there = of.n_pos();
                    if needed.is_some_and(|position| position >= there) {
                        return Err(fail(format!(
                            "the mean has no value at position {}: its longest text has {there} tokens",
                            needed.unwrap_or_default()
                        ))
                        .into());
                    }
                }
                Values::Mean
            }
            OpSpec::Patch => {
                let source =
                    self.sources.patch.as_ref().ok_or_else(|| {
                        fail("patch takes values from a source run, and no source text was given".into())
                    })?;
                let sources = source.texts().len();
                if ![1, n_texts].contains(&sources) {
                    return Err(fail(format!(
                        "there are {sources} source texts and {n_texts} texts; give one source, or one for each text"
                    ))
                    .into());
                }
                for text in 0..n_texts {
                    let (here, there) = (batch.texts()[text].len(), source.texts()[text.min(sources - 1)].len());
                    let chosen = selected(&select, batch, text);
                    if chosen.is_empty() || here == there {
                        continue;
                    }
                    if select.positions.is_none() {
                        return Err(fail(format!(
                            "text {text} has {here} tokens and its source {there}, so they do not line up; choose \
                             positions that both have with pos="
                        ))
                        .into());
                    }
                    let keys = select.keys.as_ref().map(|keys| keys[text].clone()).unwrap_or_default();
                    if let Some(beyond) = chosen.iter().chain(&keys).find(|position| **position >= there) {
                        return Err(fail(format!(
                            "text {text}'s source has {there} tokens, and so no position {beyond}"
                        ))
                        .into());
                    }
                }
                if site.is_square() && select.keys.is_none() {
                    // A source of another length has a different number of keys, but both have the keys that the selected queries
                    // see.
                    let last = |text| selected(&select, batch, text).last().copied().unwrap_or(0);
                    let keys = (0..n_texts).map(|text| (0..=last(text)).collect()).collect();
                    select = select.keys(keys);
                }
                Values::Patch
            }
        };
        Ok(Planned { site, select, written, values })
    }
}

/// The windows of the source texts, one for each window of the texts.
fn sources_in_windows(
    spec: &EditSpec,
    model: &Model,
    tokens: &[Vec<Token>],
    pieces: &[DocumentWindow],
    sources: &[Vec<u32>],
) -> Result<Batch, Error> {
    let fail = |what: String| EditError::Source { edit: format!("{}:patch", spec.site()), what };
    if ![1, tokens.len()].contains(&sources.len()) {
        let (n, m) = (sources.len(), tokens.len());
        return Err(
            fail(format!("there are {n} source texts and {m} texts; give one source, or one for each text")).into()
        );
    }
    let source = |text: usize| &sources[text.min(sources.len() - 1)];
    if let Some((text, n)) = tokens.iter().map(Vec::len).enumerate().find(|(text, n)| source(*text).len() != *n) {
        let there = source(text).len();
        return Err(fail(format!(
            "text {text} has {n} tokens and its source {there}, and a source of a text in windows has as many"
        ))
        .into());
    }
    let of_piece = |piece: &DocumentWindow| &source(piece.document)[piece.tokens.clone()];
    model.batch(&pieces.iter().map(of_piece).collect::<Vec<_>>())
}

/// Edits of texts that are generated. Each edit is a plan of its own, so that they apply in order. `mean`, `patch` and `freeze` take
/// their values from runs of the prompts alone.
#[derive(Clone, Debug, Default)]
pub struct GrowingPlan {
    /// A plan, and whether it was made for the prompts.
    steps: Vec<(EditPlan, bool)>,
}

impl GrowingPlan {
    /// Checks edits as [`EditPlan::new`] does. `whole` has the texts at their greatest possible length, `prompts` their prompts.
    ///
    /// # Errors
    /// As [`EditPlan::new`].
    pub fn new(
        specs: &[EditSpec],
        model: &Model,
        (whole, prompts): (&Batch, &Batch),
        sources: &Sources,
        read: ReadValues<'_>,
    ) -> Result<GrowingPlan, Error> {
        let lengths: Vec<usize> = prompts.texts().iter().map(|text| text.len()).collect();
        let mut steps = Vec::new();
        for spec in specs {
            let spec = std::slice::from_ref(spec);
            let of_prompts = matches!(spec[0].op(), OpSpec::Mean | OpSpec::Patch | OpSpec::Freeze);
            let plan = if of_prompts {
                EditPlan::new(spec, model, prompts, sources.clone(), read)?
            } else {
                EditPlan::checked(spec, model, (whole, &lengths), Sources::default(), read)?
            };
            steps.push((plan, of_prompts));
        }
        Ok(GrowingPlan { steps })
    }
}

/// The chosen positions of one text.
fn selected(select: &Select, batch: &Batch, text: usize) -> Vec<usize> {
    let all = || (0..batch.texts()[text].len()).collect();
    select.positions.as_ref().map_or_else(all, |positions| positions[text].clone())
}

/// Checks a number that replaces values or is added to them: it must be finite. -inf is allowed in scores if every query keeps a
/// key.
fn check_number(number: f32, set: bool, site: Site, select: &Select, batch: &Batch) -> Result<(), String> {
    if number.is_finite() {
        return Ok(());
    }
    if !(set && number == f32::NEG_INFINITY && matches!(site, Site::AttnScores(_))) {
        return Err(format!("{number} is not a finite number"));
    }
    for text in 0..batch.texts().len() {
        for query in selected(select, batch, text) {
            let left = |key: &usize| select.keys.as_ref().is_some_and(|keys| !keys[text].contains(key));
            if !(0..=query).any(|key| left(&key)) {
                return Err(format!("it leaves position {query} of text {text} no key to look at"));
            }
        }
    }
    Ok(())
}

/// Checks that a mean can be taken over a batch.
pub(crate) fn check_mean(site: Site, of: &Batch) -> Result<(), String> {
    if site.is_square() && of.texts().len() < 2 {
        return Err(format!("the mean of {site} is over texts, and there is one; give two or more"));
    }
    if of.ids().len() < 2 {
        return Err("the mean is over all positions of all texts, and there is one token; give more".into());
    }
    Ok(())
}

/// The values for a selection from an array: one row, or the whole selection, text by text without padding.
pub(crate) fn fit(
    site: Site,
    select: &Select,
    config: &Config,
    batch: &Batch,
    array: ArrayViewD<'_, f32>,
    edit: &str,
    what: String,
) -> Result<Vec<f32>, EditError> {
    let shapes = (0..batch.texts().len()).map(|text| shape_of(config, site, select, batch, text));
    let shapes: Vec<Vec<usize>> = shapes.filter(|shape| !shape.contains(&0)).collect();
    let longest = shapes.iter().cloned().reduce(|a, b| a.into_iter().zip(b).map(|(a, b)| a.max(b)).collect());
    let longest = longest.unwrap_or_default();
    // A row has the axes after the position. For scores and patterns it has the keys, so all texts must have the same number.
    let after = site.pos_axis() + 1;
    let row = longest.get(after..).unwrap_or_default().to_vec();
    let rows_alike = shapes.iter().all(|shape| shape[after..] == row);
    let all: Vec<usize> = std::iter::once(shapes.len()).chain(longest).collect();
    let array = squeezed(array);
    if rows_alike && array.shape() == short(&row) {
        return Ok(array.iter().copied().collect());
    }
    if array.shape() != short(&all) {
        let (row, all) = (short(&row), short(&all));
        let takes = format!("one number, one row {row:?} or all of it {all:?}");
        return Err(EditError::Shape { edit: edit.into(), what, given: array.shape().to_vec(), takes });
    }
    let array = array.to_shape(IxDyn(&all)).expect("the same but for axes of length 1").into_owned();
    let mut values = Vec::new();
    for (text, shape) in shapes.iter().enumerate() {
        let mut of_text = array.index_axis(Axis(0), text);
        for (axis, n) in shape.iter().enumerate() {
            of_text.slice_axis_inplace(Axis(axis), Slice::from(..*n));
        }
        values.extend(of_text.iter().copied());
    }
    Ok(values)
}

/// A shape without its leading axes of length 1.
fn short(shape: &[usize]) -> &[usize] {
    &shape[shape.iter().take_while(|n| **n == 1).count()..]
}

fn squeezed(mut array: ArrayViewD<'_, f32>) -> ArrayViewD<'_, f32> {
    while array.shape().first() == Some(&1) {
        array = array.index_axis_move(Axis(0), 0);
    }
    array
}

/// A sink that stores some sites whole, and the sums of others.
#[derive(Default)]
pub(crate) struct Kept {
    /// The rows of each text that a mean is over; `None` for all.
    rows: Option<Vec<Vec<usize>>>,
    whole: BTreeSet<Site>,
    values: BTreeMap<(Site, usize), ArrayD<f32>>,
    means: BTreeMap<Site, Mean>,
}

/// A sum of rows. For scores and patterns, a sum over texts, with the number of texts that reach each place.
#[derive(Default)]
struct Mean {
    sum: ArrayD<f64>,
    n: ArrayD<f64>,
}

impl Kept {
    /// A sink for the values of the sites `whole` and the means of the sites `means`.
    pub(crate) fn new(whole: BTreeSet<Site>, means: BTreeSet<Site>) -> Kept {
        let means = means.into_iter().map(|site| (site, Mean::default())).collect();
        Kept { rows: None, whole, values: BTreeMap::new(), means }
    }

    /// The request that fills it.
    pub(crate) fn hooks(&self, config: &Config) -> Hooks {
        let sites: BTreeSet<Site> = self.whole.iter().chain(self.means.keys()).copied().collect();
        Hooks::whole(config, &sites.into_iter().collect::<Vec<_>>())
    }

    /// A site's values of one text, without a batch axis.
    pub(crate) fn of_text(&self, site: Site, text: usize) -> ArrayViewD<'_, f32> {
        self.values[&(site, text)].view()
    }

    /// The mean of a site: one row, or [H, P, P] for scores and patterns.
    pub(crate) fn mean(&self, site: Site) -> ArrayD<f32> {
        let Mean { sum, n } = &self.means[&site];
        (sum / n).mapv(|v| v as f32)
    }
}

impl Sink for Kept {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        if let Some(mean) = self.means.get_mut(&site) {
            match &self.rows {
                Some(rows) => mean.add(site, &values.select(Axis(site.pos_axis()), &rows[text]).view()),
                None => mean.add(site, &values),
            }
        }
        if self.whole.contains(&site) {
            self.values.insert((site, text), values.to_owned());
        }
        Ok(())
    }
}

impl Mean {
    fn add(&mut self, site: Site, values: &ArrayViewD<'_, f32>) {
        if !site.is_square() {
            let rows = values.len_of(Axis(0)) as f64;
            let sum = values.mapv(f64::from).sum_axis(Axis(0));
            (self.sum, self.n) = if self.n.is_empty() || self.sum.shape() != sum.shape() {
                (sum.clone(), ArrayD::from_elem(sum.raw_dim(), rows))
            } else {
                (&self.sum + &sum, self.n.mapv(|n| n + rows))
            };
            return;
        }
        let (heads, n_pos) = (values.len_of(Axis(0)), values.len_of(Axis(1)));
        if self.sum.ndim() != 3 || self.sum.len_of(Axis(1)) < n_pos {
            let larger = |old: &ArrayD<f64>| {
                let mut new = ArrayD::zeros(IxDyn(&[heads, n_pos, n_pos]));
                if old.ndim() == 3 {
                    let n = old.len_of(Axis(1));
                    new.slice_mut(ndarray::s![.., ..n, ..n]).assign(old);
                }
                new
            };
            (self.sum, self.n) = (larger(&self.sum), larger(&self.n));
        }
        for ((index, value), query) in values.indexed_iter().map(|(index, value)| ((index.clone(), *value), index[1])) {
            if index[2] <= query {
                self.sum[index.clone()] += f64::from(value);
                self.n[index] += 1.0;
            }
        }
    }
}

/// [`cut`] for a mean, whose rows have no position. Scores and patterns are as large as the largest text.
pub(crate) fn cut_mean(site: Site, select: &Select, text: usize, batch: &Batch, mean: &ArrayD<f32>) -> Vec<f32> {
    if site.is_square() {
        let n = batch.texts()[text].len().min(mean.len_of(Axis(1)));
        let of_text = mean.slice(ndarray::s![.., ..n, ..n]);
        return cut(site, select, text, of_text.into_dyn()).iter().copied().collect();
    }
    let row = mean.view().insert_axis(Axis(0));
    let every = Select { positions: None, ..select.clone() };
    cut(site, &every, text, row).iter().copied().collect()
}

impl Session {
    /// Runs the other runs that the edits of a plan need, each once, and adds the edits to a request for `batch`, for which the plan
    /// was made. Returns the edits as recorded in provenance.
    ///
    /// # Errors
    /// As [`Session::run_async`].
    pub async fn edit_async(
        &self,
        plan: &EditPlan,
        batch: &Batch,
        hooks: &mut Hooks,
        progress: Option<Progress<'_>>,
    ) -> Result<Vec<EditRecord>, Error> {
        let config = self.model().config();
        let of = |wanted: fn(&Values) -> bool| {
            plan.edits.iter().filter(move |edit| wanted(&edit.values)).map(|edit| edit.site).collect::<BTreeSet<Site>>()
        };
        let (frozen, means) = (of(|v| matches!(v, Values::Freeze)), of(|v| matches!(v, Values::Mean)));
        let patched = of(|v| matches!(v, Values::Patch));
        let other_mean = plan.sources.mean.is_some();
        let quiet: Progress<'_> = &|_, _| ControlFlow::Continue(());
        let progress = progress.unwrap_or(quiet);
        let run = async |mut kept: Kept, batch: &Batch| -> Result<Kept, Error> {
            let hooks = kept.hooks(config);
            if hooks.sites().next().is_some() {
                self.run_into_async(batch, &hooks, &mut kept, Some(progress)).await?;
            }
            Ok(kept)
        };
        let here = run(Kept::new(frozen, if other_mean { BTreeSet::new() } else { means.clone() }), batch).await?;
        let elsewhere = match &plan.sources.mean {
            Some(of) => {
                let kept = Kept { rows: plan.mean_rows.clone(), ..Kept::new(BTreeSet::new(), means) };
                Some(run(kept, of).await?)
            }
            None => None,
        };
        let source = match &plan.sources.patch {
            Some(of) => Some((run(Kept::new(patched, BTreeSet::new()), of).await?, of.texts().len())),
            None => None,
        };
        let n_texts = batch.texts().len();
        let mut records = Vec::new();
        for Planned { site, select, written, values } in &plan.edits {
            let each = |of_text: &dyn Fn(usize) -> Vec<f32>| {
                let chosen = (0..n_texts).filter(|text| !selected(select, batch, *text).is_empty());
                chosen.flat_map(of_text).collect::<Vec<f32>>()
            };
            let edit = match (values, &source) {
                (Values::Known(edit), _) => edit.clone(),
                (Values::Freeze, _) => Edit::Replace(each(&|text| {
                    cut(*site, select, text, here.of_text(*site, text)).iter().copied().collect()
                })),
                (Values::Mean, _) => {
                    let mean = elsewhere.as_ref().unwrap_or(&here).mean(*site);
                    Edit::Replace(if site.is_square() {
                        each(&|text| cut_mean(*site, select, text, batch, &mean))
                    } else {
                        cut_mean(*site, select, 0, batch, &mean)
                    })
                }
                (Values::Patch, Some((kept, n))) => Edit::Replace(each(&|text| {
                    cut(*site, select, text, kept.of_text(*site, text.min(n - 1))).iter().copied().collect()
                })),
                (Values::Patch, None) => unreachable!("a plan with a patch has its source"),
            };
            records.push(EditRecord { edit: written.clone(), sha256: edit.values().map(hash) });
            hooks.edit_at(*site, select.clone(), edit)?;
        }
        Ok(records)
    }

    /// [`Session::edit_async`] for texts that are generated. `whole` and `prompts` are those for which the plan was made.
    ///
    /// # Errors
    /// As [`Session::run_async`].
    pub async fn edit_growing_async(
        &self,
        plan: &GrowingPlan,
        (whole, prompts): (&Batch, &Batch),
        hooks: &mut Hooks,
        progress: Option<Progress<'_>>,
    ) -> Result<Vec<EditRecord>, Error> {
        let mut records = Vec::new();
        for (plan, of_prompts) in &plan.steps {
            if !of_prompts {
                records.extend(self.edit_async(plan, whole, hooks, progress).await?);
                continue;
            }
            let mut alone = self.model().hooks();
            records.extend(self.edit_async(plan, prompts, &mut alone, progress).await?);
            hooks.edit_prompts(prompts, alone);
        }
        Ok(records)
    }

    /// Blocking form of [`Session::edit_async`].
    ///
    /// # Errors
    /// As [`Session::edit_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn edit(&self, plan: &EditPlan, batch: &Batch, hooks: &mut Hooks) -> Result<Vec<EditRecord>, Error> {
        pollster::block_on(self.edit_async(plan, batch, hooks, None))
    }
}
