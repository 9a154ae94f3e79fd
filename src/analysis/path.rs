//! Path patching: the effect of one part of the model through one path only. The sender's value comes from the source run, and only
//! the receiver reads it. Owns [`PathSweep`], the text form of a path, and `Session::path_sweep`. docs/patching.md has the
//! definitions with formulas. Read next: `sweep.rs`, which has the types of cases and results.

use crate::analysis::cases::{BlockInput, Case, Cases, OneCase, OwnRuns, TOKENS_AT_ONCE, aligned, batches};
use crate::analysis::edits::Kept;
use crate::analysis::metric::Metric;
use crate::analysis::sweep::{SweepAxis, Swept, no_name_twice};
use crate::batch::Batch;
use crate::config::Config;
use crate::hooks::capture::Sink;
use crate::hooks::request::{Edit, Hooks, Select};
use crate::hooks::site::Site;
use crate::model::forward;
use crate::session::{AnalysisError, Error, Progress, Session};
use ndarray::{Array2, ArrayD, Axis, Ix2};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use thiserror::Error as ThisError;

/// Why a path, or a sweep along it, is invalid.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum PathError {
    /// The text form of the path is invalid.
    #[error("the path {written:?}: {what}")]
    Written {
        /// As given.
        written: String,
        /// What is wrong with it.
        what: String,
    },
    /// The axes do not fit the path.
    #[error("{what}")]
    Axes {
        /// What is wrong with them.
        what: String,
    },
    /// A text, its source or its question does not fit the path.
    #[error("{what}")]
    Case {
        /// Which, and why.
        what: String,
    },
}

impl AnalysisError for PathError {}

/// The part whose value comes from the source run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sender {
    Head,
    Mlp,
}

/// A part that reads the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Receiver {
    /// A head's queries.
    Query {
        /// Its block.
        layer: usize,
        /// Its number.
        head: usize,
    },
    /// A head's keys.
    Key {
        /// Its block.
        layer: usize,
        /// Its number.
        head: usize,
    },
    /// A head's values.
    Value {
        /// Its block.
        layer: usize,
        /// Its number.
        head: usize,
    },
    /// An MLP.
    Mlp {
        /// Its block.
        layer: usize,
    },
    /// The final LayerNorm, which feeds the logits.
    Logits,
}

/// The form in a path: `q.3.1`, `mlp.2`, `logits`.
impl fmt::Display for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Receiver::Query { layer, head } => write!(f, "q.{layer}.{head}"),
            Receiver::Key { layer, head } => write!(f, "k.{layer}.{head}"),
            Receiver::Value { layer, head } => write!(f, "v.{layer}.{head}"),
            Receiver::Mlp { layer } => write!(f, "mlp.{layer}"),
            Receiver::Logits => write!(f, "logits"),
        }
    }
}

impl Receiver {
    /// The site where its value is recorded and replaced. For the logits, the site where the sender's change is added to the stream.
    pub(super) fn site(self, config: &Config) -> Site {
        match self {
            Receiver::Query { layer, .. } => Site::Q(layer),
            Receiver::Key { layer, .. } => Site::K(layer),
            Receiver::Value { layer, .. } => Site::V(layer),
            Receiver::Mlp { layer } => Site::MlpOut(layer),
            Receiver::Logits => Site::ResidPost(config.n_layer - 1),
        }
    }

    /// The stream that it reads.
    pub(super) fn stream(self, config: &Config) -> Site {
        match self {
            Receiver::Query { layer, .. } | Receiver::Key { layer, .. } | Receiver::Value { layer, .. } => {
                Site::ResidPre(layer)
            }
            Receiver::Mlp { layer } => Site::ResidMid(layer),
            Receiver::Logits => Site::ResidPost(config.n_layer - 1),
        }
    }

    fn head(self) -> Option<usize> {
        match self {
            Receiver::Query { head, .. } | Receiver::Key { head, .. } | Receiver::Value { head, .. } => Some(head),
            Receiver::Mlp { .. } | Receiver::Logits => None,
        }
    }
}

/// A sweep over the senders of a path.
#[derive(Clone, Debug)]
pub struct PathSweep {
    written: String,
    sender: Sender,
    layer: Option<usize>,
    head: Option<usize>,
    receivers: BTreeSet<Receiver>,
    axes: Vec<SweepAxis>,
    frozen: bool,
    metric: Metric,
    n_layers: usize,
}

impl PathSweep {
    /// Reads `FROM...TO`. FROM is `head.LAYER.HEAD` or `mlp.LAYER`; omitted numbers become axes. TO is `q.LAYER.HEAD`,
    /// `k.LAYER.HEAD`, `v.LAYER.HEAD` or `mlp.LAYER`, several joined by `+`, or `logits`. `axes` are in the order of the result:
    /// those that FROM leaves open (the default), and optionally `pos`, the sender's positions; without `pos` all of them are
    /// changed together. `frozen` keeps every other head at its unchanged value, as in Wang et al. 2022.
    ///
    /// # Errors
    /// [`PathError`].
    pub fn new(
        written: &str,
        axes: &[SweepAxis],
        frozen: bool,
        metric: Metric,
        config: &Config,
    ) -> Result<PathSweep, PathError> {
        let fail = |what: String| PathError::Written { written: written.into(), what };
        let (from, to) = written.split_once("...").ok_or_else(|| {
            fail("it is written FROM...TO, such as head.2.3...q.3.1, head...logits or mlp.0...mlp.2".into())
        })?;
        let numbers = |words: &str| -> Result<Vec<usize>, PathError> {
            let number =
                |word: &str| word.parse().map_err(|_| fail(format!("{word:?} is not the number of a layer or head")));
            words.split('.').skip(1).map(number).collect()
        };
        let within = |layer: Option<usize>, head: Option<usize>| -> Result<(), PathError> {
            for (what, number, n) in [("layer", layer, config.n_layer), ("head", head, config.n_head)] {
                if let Some(number) = number.filter(|number| *number >= n) {
                    return Err(fail(format!("{what} {number} does not exist; there are 0 to {}", n - 1)));
                }
            }
            Ok(())
        };
        let given = numbers(from)?;
        let (sender, most) = match from.split('.').next() {
            Some("head") => (Sender::Head, 2),
            Some("mlp") => (Sender::Mlp, 1),
            _ => return Err(fail(format!("{from:?} sends nothing: FROM is head.LAYER.HEAD or mlp.LAYER"))),
        };
        if given.len() > most {
            return Err(fail(format!("{from:?} has more numbers than head.LAYER.HEAD or mlp.LAYER")));
        }
        let (layer, head) = (given.first().copied(), given.get(1).copied());
        within(layer, head)?;
        let mut receivers = BTreeSet::new();
        for one in to.split('+') {
            let given = numbers(one)?;
            let receiver = match (one.split('.').next(), given.as_slice()) {
                (Some("q"), [layer, head]) => Receiver::Query { layer: *layer, head: *head },
                (Some("k"), [layer, head]) => Receiver::Key { layer: *layer, head: *head },
                (Some("v"), [layer, head]) => Receiver::Value { layer: *layer, head: *head },
                (Some("mlp"), [layer]) => Receiver::Mlp { layer: *layer },
                (Some("logits"), []) => Receiver::Logits,
                _ => {
                    return Err(fail(format!(
                        "{one:?} receives nothing: TO is q.LAYER.HEAD, k.LAYER.HEAD, v.LAYER.HEAD or mlp.LAYER, several joined by \
                         +, or logits"
                    )));
                }
            };
            within(given.first().copied(), given.get(1).copied())?;
            if !receivers.insert(receiver) {
                return Err(fail(format!("{one:?} is given twice")));
            }
        }
        if receivers.contains(&Receiver::Logits) && receivers.len() > 1 {
            return Err(fail("what reaches the logits is all of the answer, so logits stands alone".into()));
        }

        let reach =
            |receiver: &Receiver| (0..config.n_layer).filter(|l| reaches(sender, *l, *receiver, config)).count();
        let n_layers = receivers.iter().map(reach).max().unwrap_or(0);
        let Some(last) = n_layers.checked_sub(1) else {
            return Err(fail("no layer comes before what receives".into()));
        };
        if let Some(layer) = layer.filter(|layer| *layer > last) {
            return Err(fail(format!("layer {layer} does not come before what receives; layers 0 to {last} do")));
        }
        let mut open = Vec::new();
        open.extend(layer.is_none().then_some(SweepAxis::Layer));
        open.extend((sender == Sender::Head && head.is_none()).then_some(SweepAxis::Head));
        let axes = if axes.is_empty() { open.clone() } else { axes.to_vec() };
        let names = |axes: &[SweepAxis]| axes.iter().map(|axis| axis.name()).collect::<Vec<_>>().join(", ");
        if let Some(axis) = axes.iter().find(|axis| **axis != SweepAxis::Pos && !open.contains(axis)) {
            let left = if open.is_empty() { "nothing".into() } else { names(&open) };
            let what = format!(
                "{} is not an axis of the path {written:?}: it leaves {left} open, and pos can be added",
                axis.name()
            );
            return Err(PathError::Axes { what });
        }
        if let Some(axis) = open.iter().find(|axis| !axes.contains(axis)) {
            let what = format!("the path {written:?} leaves {} open, which must be an axis", axis.name());
            return Err(PathError::Axes { what });
        }
        no_name_twice(axes.iter().map(|axis| axis.name())).map_err(|e| PathError::Axes { what: e.to_string() })?;
        Ok(PathSweep { written: written.into(), sender, layer, head, receivers, axes, frozen, metric, n_layers })
    }

    /// The path as given.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// Whether every other head keeps its unchanged value.
    pub fn frozen(&self) -> bool {
        self.frozen
    }

    /// The metric that is measured.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// The axes of the result.
    pub fn axes(&self) -> &[SweepAxis] {
        &self.axes
    }

    /// Checks the cases.
    ///
    /// # Errors
    /// [`PathError`] if positions are an axis and texts have different lengths, or if a case has no source; [`Error::Batch`].
    pub fn check(&self, config: &Config, cases: &[Case]) -> Result<(), Error> {
        if self.axes.contains(&SweepAxis::Pos)
            && let Some(other) = cases.iter().find(|case| case.aligned != cases[0].aligned)
        {
            let (a, b) = (cases[0].aligned, other.aligned);
            let what = format!("the axis pos needs texts of one length, and there are texts of {a} and {b} tokens");
            return Err(PathError::Axes { what }.into());
        }
        for (n, case) in cases.iter().enumerate() {
            if case.source.is_none() {
                let what = format!("case {n} has no source run, and a path takes its values from one");
                return Err(PathError::Case { what }.into());
            }
            case.check(self.metric, config).map_err(|what| PathError::Case { what: format!("text {n}: {what}") })?;
        }
        batches(cases, config).map(drop)
    }

    fn shape(&self, config: &Config, aligned: usize) -> Vec<usize> {
        let len = |axis: &SweepAxis| match axis {
            SweepAxis::Layer => self.n_layers,
            SweepAxis::Head => config.n_head,
            _ => aligned,
        };
        self.axes.iter().map(len).collect()
    }

    /// A cell of the sweep, by its number in row-major order.
    fn cell(&self, shape: &[usize], mut number: usize) -> Cell {
        let mut cell = Cell { layer: self.layer.unwrap_or(0), head: self.head.unwrap_or(0), pos: None };
        for (axis, n) in self.axes.iter().zip(shape).rev() {
            let place = number % n;
            number /= n;
            match axis {
                SweepAxis::Layer => cell.layer = place,
                SweepAxis::Head => cell.head = place,
                _ => cell.pos = Some(place),
            }
        }
        cell
    }

    fn receivers_after(&self, layer: usize, config: &Config) -> Vec<Receiver> {
        self.receivers.iter().copied().filter(|receiver| reaches(self.sender, layer, *receiver, config)).collect()
    }
}

/// Whether the stream that a receiver reads contains the sender's output.
fn reaches(sender: Sender, layer: usize, receiver: Receiver, config: &Config) -> bool {
    let writes = match sender {
        Sender::Head => Site::AttnOut(layer),
        Sender::Mlp => Site::MlpOut(layer),
    };
    writes < receiver.stream(config)
}

/// One sender, and the position at which it is changed (`None` for all).
#[derive(Clone, Copy)]
struct Cell {
    layer: usize,
    head: usize,
    pos: Option<usize>,
}

impl Session {
    /// Runs a path sweep over every case. `progress` is as in [`Session::sweep_async`].
    ///
    /// # Errors
    /// As [`PathSweep::check`] and [`Session::run_async`].
    pub async fn path_sweep_async(
        &self,
        sweep: &PathSweep,
        all: Cases<'_>,
        progress: Option<Progress<'_>>,
    ) -> Result<Swept, Error> {
        let config = self.model().config();
        sweep.check(config, all.cases)?;
        let swept = Swept::empty(sweep.shape(config, aligned(all.cases)));
        self.each_case(all, swept, progress, async |one, swept| self.path_case(sweep, one, swept).await).await
    }

    /// Blocking form of [`Session::path_sweep_async`], without edits.
    ///
    /// # Errors
    /// As [`Session::path_sweep_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn path_sweep(&self, sweep: &PathSweep, cases: &[Case]) -> Result<Swept, Error> {
        let none = self.model().hooks();
        pollster::block_on(self.path_sweep_async(sweep, Cases { cases, edits: &none, source_edits: &none }, None))
    }

    async fn path_case(&self, sweep: &PathSweep, one: &OneCase<'_>, swept: &mut Swept) -> Result<(), Error> {
        let config = self.model().config();
        let shape = swept.shape.clone();
        let n_cells: usize = shape.iter().product();
        let mut by_layer: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for number in 0..n_cells {
            by_layer.entry(sweep.cell(&shape, number).layer).or_default().push(number);
        }

        // The streams from which runs start, and the outputs of senders.
        let all = |site: fn(usize) -> Site| (0..config.n_layer).map(site);
        let senders = |site: fn(usize) -> Site| by_layer.keys().map(move |layer| site(*layer)).collect::<Vec<_>>();
        let mut here: BTreeSet<Site> = all(Site::ResidPre).collect();
        let mut there: BTreeSet<Site> = BTreeSet::new();
        match sweep.sender {
            Sender::Mlp => {
                here.extend(senders(Site::MlpOut));
                there.extend(senders(Site::MlpOut));
            }
            Sender::Head if sweep.frozen => there.extend(senders(Site::Z)),
            Sender::Head => there.extend(senders(Site::ResidPre)),
        }
        if sweep.frozen {
            here.extend(all(Site::Z));
        }
        let touched = sweep.receivers.iter().map(|receiver| receiver.site(config));
        let own = self.own_runs(sweep.metric, one, (here, there), touched).await?;
        swept.unchanged.push(own.unchanged);
        swept.source.extend(own.of_source);

        let n_pos = one.case.ids.len();
        // Streams and heads are the largest values that a block records.
        let wanted = [Site::ResidPre(0), Site::Q(0), Site::K(0), Site::V(0), Site::MlpOut(0)];
        let most = forward::max_tokens(self.any_device(), config, &Hooks::whole(config, &wanted));
        let at_once = (TOKENS_AT_ONCE.min(most) / n_pos).max(1);
        let job = Job { session: self, sweep, one, own: &own };
        let mut found = vec![f64::NAN; n_cells];
        let mut done = 0;
        for (layer, numbers) in by_layer {
            let sent = job.sent(layer).await?;
            for numbers in numbers.chunks(at_once) {
                let cells: Vec<Cell> = numbers.iter().map(|number| sweep.cell(&shape, *number)).collect();
                let values = job.cells(layer, &cells, &sent).await?;
                for (number, value) in numbers.iter().zip(values) {
                    found[*number] = value;
                }
                done += numbers.len();
                if (one.told)(done, n_cells).is_break() {
                    return Err(Error::Cancelled);
                }
            }
        }
        swept.values.push(found);
        Ok(())
    }
}

/// The outputs of the senders of a layer.
enum Sent {
    /// The output in the source run minus that in the unchanged run, [position, n_embd], at the positions that line up: one matrix for
    /// an MLP, or one for each head.
    Differences(Vec<Array2<f32>>),
    /// Their values in the source run at the positions that line up: [position, head, d_head], or [position, n_embd] of an MLP.
    Values(ArrayD<f32>),
}

/// The cells of one case.
struct Job<'a> {
    session: &'a Session,
    sweep: &'a PathSweep,
    one: &'a OneCase<'a>,
    own: &'a OwnRuns,
}

impl Job<'_> {
    fn config(&self) -> &Config {
        self.session.model().config()
    }

    /// The source run's values.
    fn source(&self) -> &Kept {
        self.own.source.as_ref().expect("every case has a source, as was checked")
    }

    /// The last `aligned` positions.
    fn lined_up(&self, values: ndarray::ArrayViewD<'_, f32>) -> ArrayD<f32> {
        let n = values.len_of(Axis(0));
        values.slice_axis(Axis(0), (n - self.one.case.aligned..n).into()).to_owned()
    }

    async fn sent(&self, layer: usize) -> Result<Sent, Error> {
        let (own, source) = (self.own, self.source());
        let site = match self.sweep.sender {
            Sender::Mlp => Site::MlpOut(layer),
            Sender::Head => Site::Z(layer),
        };
        if self.sweep.frozen {
            return Ok(Sent::Values(self.lined_up(source.of_text(site, 0))));
        }
        if self.sweep.sender == Sender::Mlp {
            let difference = self.lined_up(source.of_text(site, 0)) - self.lined_up(own.here.of_text(site, 0));
            return Ok(Sent::Differences(vec![two_axes(difference)]));
        }
        let stream = Site::ResidPre(layer);
        let source_ids = self.one.case.source.as_ref().map_or(&self.one.case.ids, |(ids, _)| ids);
        let there = (source_ids, self.one.source_edits(), source.of_text(stream, 0));
        let here = (&self.one.case.ids, self.one.own_edits(1), own.here.of_text(stream, 0));
        let mut results = Vec::new();
        for (ids, edits, stream_values) in [there, here] {
            let mut kept = Kept::new(BTreeSet::from([Site::Result(layer)]), BTreeSet::new());
            let mut hooks = kept.hooks(self.config());
            for (site, select, edit) in edits.into_iter().filter(|(site, ..)| *site > stream) {
                hooks.edit_at(site, select, edit)?;
            }
            let start = BlockInput { layer, values: stream_values.iter().copied().collect() };
            let batch = Batch::new(&[ids], self.config())?;
            self.session.run_from_block(&batch, &hooks, Some(&start), &mut kept).await?;
            results.push(self.lined_up(kept.of_text(Site::Result(layer), 0)));
        }
        let difference = &results[0] - &results[1];
        let of_head = |head: ndarray::ArrayViewD<'_, f32>| two_axes(head.to_owned());
        Ok(Sent::Differences(difference.axis_iter(Axis(1)).map(of_head).collect()))
    }

    /// Runs copies of the case's text from a block on.
    async fn run(&self, layer: usize, copies: &Batch, hooks: &Hooks, sink: &mut dyn Sink) -> Result<(), Error> {
        let start = BlockInput::of(&self.own.here, layer, copies.texts().len());
        self.session.run_from_block(copies, hooks, Some(&start), sink).await
    }

    /// Copies of the case's text.
    fn copies(&self, n: usize) -> Result<Batch, Error> {
        Ok(Batch::new(&vec![self.one.case.ids.as_slice(); n], self.config())?)
    }

    /// A request with those of the caller's edits that come after a block's input stream.
    fn hooks(&self, layer: usize, copies: usize) -> Result<Hooks, Error> {
        let mut hooks = Hooks::new(self.config());
        for (site, select, edit) in self.one.own_edits(copies) {
            if site > Site::ResidPre(layer) {
                hooks.edit_at(site, select, edit)?;
            }
        }
        Ok(hooks)
    }

    /// The change of the stream by each cell's sender, [copy, position, n_embd]; 0 where texts do not line up.
    fn difference(&self, cells: &[Cell], of_sender: &[Array2<f32>]) -> Vec<f32> {
        let (n_pos, width) = (self.one.case.ids.len(), self.config().n_embd);
        let offset = n_pos - self.one.case.aligned;
        let mut all = vec![0.0; cells.len() * n_pos * width];
        for (cell, copy) in cells.iter().zip(all.chunks_mut(n_pos * width)) {
            let difference = &of_sender[if of_sender.len() == 1 { 0 } else { cell.head }];
            for (position, row) in difference.rows().into_iter().enumerate() {
                if cell.pos.is_none_or(|only| only == position) {
                    let at = (offset + position) * width;
                    copy[at..at + width].copy_from_slice(row.as_slice().expect("rows of an owned array"));
                }
            }
        }
        all
    }

    /// The metric of every cell's changed run. The senders are in one layer.
    async fn cells(&self, layer: usize, cells: &[Cell], sent: &Sent) -> Result<Vec<f64>, Error> {
        let (config, copies) = (self.config(), cells.len());
        let receivers = self.sweep.receivers_after(layer, config);
        if receivers == [Receiver::Logits] {
            return self.to_logits(layer, cells, sent).await;
        }
        // The receivers' values with the changed stream.
        let mut kept = Vec::new();
        match sent {
            Sent::Differences(of_sender) => {
                let difference = self.difference(cells, of_sender);
                let mut streams: Vec<Site> = receivers.iter().map(|receiver| receiver.stream(config)).collect();
                streams.dedup();
                for stream in streams {
                    let at: Vec<Receiver> = receivers.iter().copied().filter(|r| r.stream(config) == stream).collect();
                    let sites = at.iter().map(|receiver| receiver.site(config)).collect();
                    let mut values = Kept::new(sites, BTreeSet::new());
                    let from = stream.layer().unwrap_or(0);
                    let mut hooks = self.hooks(from, copies)?;
                    for site in values.hooks(config).sites() {
                        hooks.tap_at(site, Select::all())?;
                    }
                    hooks.edit_at(stream, Select::all(), Edit::Add(difference.clone()))?;
                    self.run(from, &self.copies(copies)?, &hooks, &mut values).await?;
                    kept.push((at, values));
                }
            }
            Sent::Values(values) => {
                let sites: BTreeSet<Site> = receivers.iter().map(|receiver| receiver.site(config)).collect();
                let last = sites.iter().max().copied().unwrap_or(Site::Unembed);
                let mut taken = Kept::new(sites, BTreeSet::new());
                let mut hooks = self.frozen(layer, cells, values, last)?;
                for site in taken.hooks(config).sites() {
                    hooks.tap_at(site, Select::all())?;
                }
                self.run(layer, &self.copies(copies)?, &hooks, &mut taken).await?;
                kept.push((receivers.clone(), taken));
            }
        }
        // The run with these values in place of the receivers' own.
        let from = receivers.iter().filter_map(|receiver| receiver.site(config).layer()).min().unwrap_or(0);
        let mut hooks = self.hooks(from, copies)?;
        for (receivers, values) in &kept {
            for receiver in receivers {
                let site = receiver.site(config);
                let mut all = Vec::new();
                for copy in 0..copies {
                    let of_copy = values.of_text(site, copy);
                    match receiver.head() {
                        Some(head) => all.extend(of_copy.index_axis(Axis(1), head).iter().copied()),
                        None => all.extend(of_copy.iter().copied()),
                    }
                }
                let select = receiver.head().map_or(Select::all(), |head| Select::all().heads([head]));
                hooks.edit_at(site, select, Edit::Replace(all))?;
            }
        }
        self.measure(hooks, copies, from).await
    }

    /// The metric for a path that ends in the logits.
    async fn to_logits(&self, layer: usize, cells: &[Cell], sent: &Sent) -> Result<Vec<f64>, Error> {
        let (config, copies) = (self.config(), cells.len());
        match sent {
            Sent::Differences(of_sender) => {
                let from = config.n_layer - 1;
                let mut hooks = self.hooks(from, copies)?;
                let difference = self.difference(cells, of_sender);
                hooks.edit_at(Site::ResidPost(from), Select::all(), Edit::Add(difference))?;
                self.measure(hooks, copies, from).await
            }
            Sent::Values(values) => {
                let hooks = self.frozen(layer, cells, values, Site::Unembed)?;
                self.measure(hooks, copies, layer).await
            }
        }
    }

    /// Reads the metric of every copy.
    async fn measure(&self, mut hooks: Hooks, copies: usize, from: usize) -> Result<Vec<f64>, Error> {
        let batch = self.copies(copies)?;
        let mut reading = self.own.reading(self.sweep.metric, self.one.case);
        reading.ask(&mut hooks, &batch)?;
        self.run(from, &batch, &hooks, &mut reading).await?;
        Ok(std::mem::take(&mut reading.values))
    }

    /// A request that replaces the senders' values by those of the source run, and keeps every other head's value up to a site.
    fn frozen(&self, layer: usize, cells: &[Cell], values: &ArrayD<f32>, last: Site) -> Result<Hooks, Error> {
        let (config, copies) = (self.config(), cells.len());
        let mut hooks = self.hooks(layer, copies)?;
        for still in (layer + 1..config.n_layer).map(Site::Z).filter(|site| *site < last) {
            let here = self.own.here.of_text(still, 0);
            let all = here.as_slice().expect("a text's values are dense").repeat(copies);
            hooks.edit_at(still, Select::all(), Edit::Replace(all))?;
        }
        let offset = self.one.case.ids.len() - self.one.case.aligned;
        let site = if self.sweep.sender == Sender::Mlp { Site::MlpOut(layer) } else { Site::Z(layer) };
        let mut by_head: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (copy, cell) in cells.iter().enumerate() {
            by_head.entry(cell.head).or_default().push(copy);
        }
        for (head, of_head) in by_head {
            let mut put = Vec::new();
            let mut positions = vec![Vec::new(); copies];
            for copy in of_head {
                let chosen = cells[copy].pos.map_or(0..self.one.case.aligned, |only| only..only + 1);
                let rows = values.slice_axis(Axis(0), chosen.clone().into());
                match self.sweep.sender {
                    Sender::Head => put.extend(rows.index_axis(Axis(1), head).iter().copied()),
                    Sender::Mlp => put.extend(rows.iter().copied()),
                }
                positions[copy] = chosen.map(|position| offset + position).collect();
            }
            let mut select = Select::all().positions(positions);
            if self.sweep.sender == Sender::Head {
                select = select.heads([head]);
            }
            hooks.edit_at(site, select, Edit::Replace(put))?;
        }
        Ok(hooks)
    }
}

/// An array of two axes.
fn two_axes(array: ArrayD<f32>) -> Array2<f32> {
    array.into_dimensionality::<Ix2>().expect("a row for each position")
}
