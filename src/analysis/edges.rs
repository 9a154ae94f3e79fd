//! Edges: the effect on the metric of one part's output through one later part that reads it. A score is the change of the
//! writer's output, from the corrupt run to the clean one, times the gradient of the metric with respect to the reader's input,
//! before its LayerNorm (edge attribution patching). Owns the writers and readers ([`Writer`], [`Receiver`]), `Session::edges`,
//! and `Session::edge_circuit`, which runs the model with some edges only. Sums are f64. Read next: `gradients.rs`, `path.rs`.

use crate::analysis::cases::{BlockInput, Both, Case};
use crate::analysis::edits::Kept;
use crate::analysis::gradients::{Target, between};
use crate::analysis::metric::{Metric, MetricReader, Question};
use crate::analysis::path::Receiver;
use crate::analysis::sweep::SweepError;
use crate::batch::Batch;
use crate::config::Config;
use crate::device::StoredWeight;
use crate::hooks::capture::Sink;
use crate::hooks::request::{Edit, Hooks, Select};
use crate::hooks::site::Site;
use crate::model::forward::{RunError, Start};
use crate::session::{Error, Progress, Session};
use ndarray::{Array1, Array2, ArrayD, ArrayViewD, Axis, Ix2, Ix3, s};
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{ControlFlow, Range};

/// A part that writes to the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Writer {
    /// The token embedding.
    Embed,
    /// A head.
    Head {
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
}

/// The name as in a path, `head.2.3` or `mlp.0`, or `embed`.
impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Writer::Embed => write!(f, "embed"),
            Writer::Head { layer, head } => write!(f, "head.{layer}.{head}"),
            Writer::Mlp { layer } => write!(f, "mlp.{layer}"),
        }
    }
}

impl Writer {
    /// All writers of a model, in run order.
    pub fn all(config: &Config) -> Vec<Writer> {
        let n_head = config.n_head;
        let heads = move |layer| (0..n_head).map(move |head| Writer::Head { layer, head });
        let of_block = |layer| heads(layer).chain([Writer::Mlp { layer }]);
        [Writer::Embed].into_iter().chain((0..config.n_layer).flat_map(of_block)).collect()
    }

    /// True if the stream that the reader reads contains this writer's output.
    pub fn reaches(self, reader: Receiver, config: &Config) -> bool {
        let written = match self {
            Writer::Embed => return true,
            Writer::Head { layer, .. } => Site::AttnOut(layer),
            Writer::Mlp { layer } => Site::MlpOut(layer),
        };
        written < reader.stream(config)
    }

    /// The site where its output is recorded, and the number of its head.
    fn site(self) -> (Site, Option<usize>) {
        match self {
            Writer::Embed => (Site::Embed, None),
            Writer::Head { layer, head } => (Site::Result(layer), Some(head)),
            Writer::Mlp { layer } => (Site::MlpOut(layer), None),
        }
    }
}

/// Makes the reader of a head from its layer and number.
type OfHead = fn(usize, usize) -> Receiver;

/// All readers of a model, in run order.
pub fn readers(config: &Config) -> Vec<Receiver> {
    let of_block = |layer| {
        let letters = [
            |layer, head| Receiver::Query { layer, head },
            |layer, head| Receiver::Key { layer, head },
            |layer, head| Receiver::Value { layer, head },
        ];
        let heads = (0..config.n_head).flat_map(move |head| letters.map(|letter| letter(layer, head)));
        heads.chain([Receiver::Mlp { layer }])
    };
    (0..config.n_layer).flat_map(of_block).chain([Receiver::Logits]).collect()
}

/// One edge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edge {
    /// The writer.
    pub from: Writer,
    /// The reader.
    pub to: Receiver,
    /// (clean - corrupt output of `from`) times the gradient with respect to the input of `to`, summed over positions; the mean
    /// over pairs.
    /// Above 0 where the edge carries what makes the clean run's metric larger.
    pub score: f64,
}

/// The scores of all edges.
#[derive(Clone, Debug, PartialEq)]
pub struct Edges {
    /// Every edge, by writer, then by reader.
    pub edges: Vec<Edge>,
    /// The metric of each pair's clean run.
    pub clean: Vec<f64>,
    /// The metric of each pair's corrupt run.
    pub corrupt: Vec<f64>,
}

impl Edges {
    /// The `n` edges of largest magnitude, largest first.
    pub fn strongest(&self, n: usize) -> Vec<Edge> {
        let mut edges = self.edges.clone();
        edges.sort_by(|a, b| b.score.abs().total_cmp(&a.score.abs()));
        edges.truncate(n);
        edges
    }
}

/// The most bytes for the outputs of all writers and the gradients of all readers. If they need more, positions are processed in
/// parts.
const MAX_BYTES: usize = 512 << 20;

/// Checks pairs of texts: each `case` is the corrupt text, and its source the clean one of as many tokens.
///
/// # Errors
/// [`SweepError`]; [`Error::Batch`] for no pair, and for texts that the model cannot take.
pub fn check(cases: &[Case], metric: Metric, config: &Config) -> Result<(), Error> {
    Batch::new(&cases.iter().map(|case| &case.ids).collect::<Vec<_>>(), config)?;
    for (n, case) in cases.iter().enumerate() {
        let clean = case.source.as_ref().map(|(ids, _)| ids.len());
        if clean != Some(case.ids.len()) {
            let what = match clean {
                Some(clean) => format!(
                    "edges need texts of one length; pair {n} has {clean} clean and {} corrupt tokens",
                    case.ids.len()
                ),
                None => format!("edges need a clean and a corrupt text, and pair {n} has only one"),
            };
            return Err(SweepError::Lengths { what }.into());
        }
        case.check(metric, config).map_err(|what| SweepError::Metric { what: format!("pair {n}: {what}") })?;
    }
    Ok(())
}

impl Session {
    /// Scores every edge of pairs of texts. A case is the corrupt text, its source the clean one. The gradient is the mean over
    /// `steps` points of the line from the corrupt text's embeddings to the clean one's, k / `steps` for k = 0 ... `steps` - 1:
    /// with one step it is that of the corrupt run (EAP), with more it is EAP-IG. The sum of a writer's scores over its readers is
    /// what attribution patching gives for the writer.
    ///
    /// # Errors
    /// As [`Session::gradients_async`]; [`SweepError`] for texts that do not fit.
    pub async fn edges_async(
        &self,
        cases: &[Case],
        metric: Metric,
        steps: usize,
        progress: Option<Progress<'_>>,
    ) -> Result<Edges, Error> {
        let config = self.model().config();
        check(cases, metric, config)?;
        let (writers, readers) = (Writer::all(config), readers(config));
        let mut scores = Array2::zeros((writers.len(), readers.len()));
        let mut edges = Edges { edges: Vec::new(), clean: Vec::new(), corrupt: Vec::new() };
        let at_once = (MAX_BYTES / (8 * (writers.len() + readers.len()) * config.n_embd)).max(1);
        for (n, case) in cases.iter().enumerate() {
            let n_pos = case.ids.len();
            let parts = n_pos.div_ceil(at_once);
            for part in 0..parts {
                let told = |done: usize, all: usize| match progress {
                    Some(progress) => progress((n * parts + part) * all + done, cases.len() * parts * all),
                    None => ControlFlow::Continue(()),
                };
                let positions = part * at_once..n_pos.min((part + 1) * at_once);
                let asked = Asked { session: self, case, metric, steps: steps.max(1), positions };
                let [clean, corrupt] = asked.add(&writers, &readers, &mut scores, Some(&told)).await?;
                if part == 0 {
                    edges.clean.push(clean);
                    edges.corrupt.push(corrupt);
                }
            }
        }
        for ((w, r), sum) in scores.indexed_iter() {
            if writers[w].reaches(readers[r], config) {
                edges.edges.push(Edge { from: writers[w], to: readers[r], score: sum / cases.len() as f64 });
            }
        }
        Ok(edges)
    }

    /// Blocking form of [`Session::edges_async`].
    ///
    /// # Errors
    /// As [`Session::edges_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn edges(&self, cases: &[Case], metric: Metric, steps: usize) -> Result<Edges, Error> {
        pollster::block_on(self.edges_async(cases, metric, steps, None))
    }
}

/// One pair, and the positions that are added up.
struct Asked<'a> {
    session: &'a Session,
    case: &'a Case,
    metric: Metric,
    steps: usize,
    positions: Range<usize>,
}

impl Asked<'_> {
    /// A request for some sites at these positions, in every text of a batch.
    fn hooks(&self, sites: impl Iterator<Item = Site>, copies: usize) -> Result<Hooks, Error> {
        let mut hooks = self.session.model().hooks();
        for site in sites {
            let select = Select::all().positions(vec![self.positions.clone().collect(); copies]);
            hooks.tap_at(site, select)?;
        }
        Ok(hooks)
    }

    /// Runs one text. Returns the output of every writer, the metric, and the log-probabilities for a divergence.
    async fn run(
        &self,
        ids: &[u32],
        question: &Question,
        unchanged: Option<&[f64]>,
    ) -> Result<(Kept, f64, Vec<f64>), Error> {
        let model = self.session.model();
        let sites: BTreeSet<Site> = Writer::all(model.config()).into_iter().map(|writer| writer.site().0).collect();
        let reading = MetricReader { unchanged, ..MetricReader::new(self.metric, question, ids) };
        let batch = model.batch(&[ids])?;
        // Embeddings are needed at all positions, for the line.
        let mut hooks = self.hooks(sites.iter().copied().filter(|site| *site != Site::Embed), 1)?;
        hooks.tap_at(Site::Embed, Select::all())?;
        reading.ask(&mut hooks, &batch)?;
        let mut both = Both { kept: Kept::new(sites, BTreeSet::new()), reading };
        self.session.run_into_async(&batch, &hooks, &mut both, None).await?;
        let Both { kept, reading: MetricReader { values, log_probabilities, .. } } = both;
        Ok((kept, values[0], log_probabilities))
    }

    /// Adds the pair's scores. Returns its clean and its corrupt metric.
    async fn add(
        &self,
        writers: &[Writer],
        readers: &[Receiver],
        scores: &mut Array2<f64>,
        progress: Option<Progress<'_>>,
    ) -> Result<[f64; 2], Error> {
        let (session, config) = (self.session, self.session.model().config());
        let (clean_ids, clean_question) = self.case.source.as_ref().expect("every pair was checked");
        let (clean, clean_value, unchanged) = self.run(clean_ids, clean_question, None).await?;
        let (corrupt, corrupt_value, _) = self.run(&self.case.ids, &self.case.question, Some(&unchanged)).await?;

        // The clean run's output of every writer minus the corrupt run's, one row each: [writers, positions n_embd].
        let n = self.positions.len() * config.n_embd;
        let mut written = Array2::zeros((writers.len(), n));
        for (writer, mut row) in writers.iter().zip(written.rows_mut()) {
            let (site, head) = writer.site();
            let of = |kept: &Kept| {
                let values = kept.of_text(site, 0).mapv(f64::from);
                match head {
                    Some(head) => values.index_axis(Axis(1), head).to_owned(),
                    None if site == Site::Embed => values.slice_axis(Axis(0), self.positions.clone().into()).to_owned(),
                    None => values,
                }
            };
            let difference = of(&clean) - of(&corrupt);
            row.assign(&difference.to_shape(n).expect("as many as there are positions"));
        }

        let steps = self.steps;
        let question = vec![self.case.question.clone(); steps];
        let target = match self.metric {
            Metric::Kl => Target::Divergence(question, vec![unchanged; steps]),
            metric => Target::Metric(metric, question),
        };
        let batch = session.model().batch(&vec![self.case.ids.as_slice(); steps])?;
        let (from, to) = (corrupt.of_text(Site::Embed, 0), clean.of_text(Site::Embed, 0));
        let point = |k: usize| between(from.iter().zip(&to), k as f64 / steps as f64);
        let embeddings: Vec<f32> = (0..steps).flat_map(point).collect();
        let last = config.n_layer - 1;
        let of_block = |l| {
            [
                Site::Ln1Scale(l),
                Site::Ln1Normalized(l),
                Site::Q(l),
                Site::K(l),
                Site::V(l),
                Site::Ln2Scale(l),
                Site::Ln2Normalized(l),
            ]
        };
        let hooks = self.hooks((0..config.n_layer).flat_map(of_block).chain([Site::ResidPost(last)]), steps)?;
        let norms = RefCell::new(BTreeMap::new());
        let read = Array2::zeros((readers.len(), n));
        // A sink cannot await weights, so they are read before the run.
        let mut stored = Vec::with_capacity(session.model().config().n_layer);
        for layer in 0..session.model().config().n_layer {
            let of_layer = async |name: &str| {
                session.params().stored(&format!("h.{layer}.{name}.weight")).await.map_err(RunError::from)
            };
            stored.push([of_layer("ln_1").await?, of_layer("attn.c_attn").await?]);
        }
        let (used, weights) = (BTreeMap::new(), BTreeMap::new());
        let mut sums = ByStreams { session, readers, norms: &norms, used, stored, weights, read };
        let start = Start::Embeddings(&embeddings);
        let mut values = Norms(&norms);
        session.gradients_into_async(&batch, &hooks, &target, start.into(), &mut values, &mut sums, progress).await?;
        scores.scaled_add(1.0 / steps as f64, &written.dot(&sums.read.t()));
        Ok([clean_value, corrupt_value])
    }
}

/// The scales and the normalized streams of LayerNorms, by text, until the backward pass has used them.
struct Norms<'a>(&'a RefCell<BTreeMap<(Site, usize), ArrayD<f32>>>);

impl Sink for Norms<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.0.borrow_mut().insert((site, text), values.to_owned());
        Ok(())
    }

    fn wants(&self, site: Site) -> bool {
        matches!(site, Site::Ln1Scale(_) | Site::Ln1Normalized(_) | Site::Ln2Scale(_) | Site::Ln2Normalized(_))
    }
}

/// Adds up, over the points of the line, the gradient with respect to each reader's input.
struct ByStreams<'a> {
    session: &'a Session,
    readers: &'a [Receiver],
    norms: &'a RefCell<BTreeMap<(Site, usize), ArrayD<f32>>>,
    /// How many of queries, keys and values have used a block's first LayerNorm of a text.
    used: BTreeMap<(usize, usize), usize>,
    /// The gain of each block's first LayerNorm, and its weight to queries, keys and values.
    stored: Vec<[StoredWeight; 2]>,
    /// Their values, [n_embd] and [n_embd, 3 n_embd], of the current block.
    weights: BTreeMap<usize, (Array1<f64>, Array2<f64>)>,
    /// A row for each reader: [readers, positions n_embd].
    read: Array2<f64>,
}

impl ByStreams<'_> {
    /// The gain of a block's first LayerNorm, and its c_attn.
    fn weights(&mut self, layer: usize) -> std::io::Result<&(Array1<f64>, Array2<f64>)> {
        if !self.weights.contains_key(&layer) {
            let [gain, c_attn] = &self.stored[layer];
            let values = |weight: &StoredWeight| -> Vec<f64> {
                self.session.params().widened(weight).into_iter().map(f64::from).collect()
            };
            let (gain, c_attn) = (Array1::from_vec(values(gain)), values(c_attn));
            let width = gain.len();
            let c_attn = Array2::from_shape_vec((width, 3 * width), c_attn).map_err(std::io::Error::other)?;
            // Gradients arrive block by block.
            self.weights = BTreeMap::from([(layer, (gain, c_attn))]);
        }
        Ok(&self.weights[&layer])
    }

    fn add(&mut self, reader: Receiver, by_stream: &Array2<f64>) {
        let row = self.readers.iter().position(|other| *other == reader).expect("one of all readers");
        let mut row = self.read.row_mut(row);
        row += &by_stream.to_shape(by_stream.len()).expect("a row for each position");
    }
}

/// The gradient with respect to a stream [pos, n_embd], from the gradient with respect to the normalized stream. `scale` [pos, 1]
/// is LayerNorm's scale.
fn through_norm(by_normalized: Array2<f64>, normalized: &ArrayD<f32>, scale: &ArrayD<f32>) -> Array2<f64> {
    let width = by_normalized.ncols() as f64;
    let mut by_stream = by_normalized;
    for ((mut row, normalized), scale) in by_stream.rows_mut().into_iter().zip(normalized.rows()).zip(scale) {
        let normalized = normalized.mapv(f64::from);
        let (mean, slope) = (row.sum() / width, row.dot(&normalized) / width);
        row.zip_mut_with(&normalized, |by, x| *by = (*by - mean - slope * x) / f64::from(*scale));
    }
    by_stream
}

impl Sink for ByStreams<'_> {
    fn put(&mut self, site: Site, text: usize, gradient: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        let two = |array: ArrayViewD<'_, f32>| {
            array.mapv(f64::from).into_dimensionality::<Ix2>().map_err(std::io::Error::other)
        };
        let (nth, layer, reader): (_, _, OfHead) = match site {
            Site::Q(layer) => (0, layer, |layer, head| Receiver::Query { layer, head }),
            Site::K(layer) => (1, layer, |layer, head| Receiver::Key { layer, head }),
            Site::V(layer) => (2, layer, |layer, head| Receiver::Value { layer, head }),
            Site::Ln2Normalized(layer) => {
                let of_text = |site| self.norms.borrow_mut().remove(&(site, text)).expect("the run has put it");
                let (normalized, scale) = (of_text(site), of_text(Site::Ln2Scale(layer)));
                let by_stream = through_norm(two(gradient)?, &normalized, &scale);
                self.add(Receiver::Mlp { layer }, &by_stream);
                return Ok(());
            }
            Site::ResidPost(_) => {
                self.add(Receiver::Logits, &two(gradient)?);
                return Ok(());
            }
            _ => return Ok(()),
        };
        let gradient = gradient.mapv(f64::from).into_dimensionality::<Ix3>().map_err(std::io::Error::other)?;
        let d_head = gradient.len_of(Axis(2));
        let norms = self.norms;
        let (gain, c_attn) = self.weights(layer)?;
        let width = gain.len();
        let norms = norms.borrow();
        let (scale, normalized) = (&norms[&(Site::Ln1Scale(layer), text)], &norms[&(Site::Ln1Normalized(layer), text)]);
        let of_head = |head: usize| {
            let first = nth * width + head * d_head;
            let columns = c_attn.slice(s![.., first..first + d_head]);
            through_norm(gradient.index_axis(Axis(1), head).dot(&columns.t()) * gain, normalized, scale)
        };
        let by_streams: Vec<Array2<f64>> = (0..gradient.len_of(Axis(1))).into_par_iter().map(of_head).collect();
        drop(norms);
        for (head, by_stream) in by_streams.iter().enumerate() {
            self.add(reader(layer, head), by_stream);
        }
        let used = self.used.entry((layer, text)).or_default();
        *used += 1;
        if *used == 3 {
            let mut norms = self.norms.borrow_mut();
            norms.retain(|(site, of), _| {
                *of != text || ![Site::Ln1Scale(layer), Site::Ln1Normalized(layer)].contains(site)
            });
        }
        Ok(())
    }
}

impl Session {
    /// The metric of a run of the corrupt text in which only `edges` carry the clean text's values. A reader's input is the corrupt
    /// run's stream plus, for each of its edges, the writer's output in this run minus that in the corrupt run. A part without an
    /// edge to it has the corrupt run's values; the token embedding is the clean text's. With all edges the result is the clean
    /// run's metric, with none the corrupt run's.
    ///
    /// # Errors
    /// As [`Session::run_async`]; [`SweepError`] for texts that do not fit.
    pub async fn edge_circuit_async(&self, case: &Case, metric: Metric, edges: &[Edge]) -> Result<f64, Error> {
        let config = self.model().config();
        check(std::slice::from_ref(case), metric, config)?;
        let mut into: BTreeMap<Receiver, Vec<Writer>> = BTreeMap::new();
        edges.iter().for_each(|edge| into.entry(edge.to).or_default().push(edge.from));
        let (clean, clean_question) = case.source.as_ref().expect("checked above");
        let mut of_clean = Both {
            kept: Kept::new(BTreeSet::from([Site::Embed]), BTreeSet::new()),
            reading: MetricReader::new(metric, clean_question, clean),
        };
        self.run_once(clean, &[], &mut of_clean).await?;
        let of_block = |l| {
            let streams = [Site::ResidPre(l), Site::ResidMid(l)];
            streams.into_iter().chain([Site::Q(l), Site::K(l), Site::V(l), Site::Result(l), Site::MlpOut(l)])
        };
        let sites = (0..config.n_layer).flat_map(of_block).chain([Site::Embed, Site::ResidPost(config.n_layer - 1)]);
        let mut corrupt = Kept::new(sites.collect(), BTreeSet::new());
        let batch = self.model().batch(&[&case.ids])?;
        self.run_into_async(&batch, &corrupt.hooks(config), &mut corrupt, None).await?;

        let embed = of_clean.kept.of_text(Site::Embed, 0).to_owned() - corrupt.of_text(Site::Embed, 0);
        let mut circuit = Circuit {
            session: self,
            ids: &case.ids,
            corrupt,
            into,
            changes: BTreeMap::from([(Writer::Embed, embed.iter().copied().collect())]),
        };
        for layer in 0..config.n_layer {
            circuit.heads(layer).await?;
            circuit.mlp(layer).await?;
        }
        let unchanged = of_clean.reading.log_probabilities;
        let mut reading =
            MetricReader { unchanged: Some(&unchanged), ..MetricReader::new(metric, &case.question, &case.ids) };
        let last = config.n_layer - 1;
        let input = match circuit.input(Receiver::Logits) {
            Some(input) => input,
            None => circuit.corrupt.of_text(Site::ResidPost(last), 0).iter().copied().collect(),
        };
        let mut hooks = Hooks::new(config);
        hooks.edit_at(Site::ResidPost(last), Select::all(), Edit::Replace(input))?;
        reading.ask(&mut hooks, &batch)?;
        circuit.run(&hooks, last, &mut reading).await?;
        Ok(reading.values[0])
    }

    /// Blocking form of [`Session::edge_circuit_async`].
    ///
    /// # Errors
    /// As [`Session::edge_circuit_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn edge_circuit(&self, case: &Case, metric: Metric, edges: &[Edge]) -> Result<f64, Error> {
        pollster::block_on(self.edge_circuit_async(case, metric, edges))
    }
}

/// A run in which only some edges carry changes, block by block.
struct Circuit<'a> {
    session: &'a Session,
    ids: &'a [u32],
    corrupt: Kept,
    into: BTreeMap<Receiver, Vec<Writer>>,
    /// The output of each changed writer minus that in the corrupt run, [pos, n_embd].
    changes: BTreeMap<Writer, Vec<f32>>,
}

impl Circuit<'_> {
    /// A reader's input, [pos, n_embd]; `None` if it is that of the corrupt run.
    fn input(&self, reader: Receiver) -> Option<Vec<f32>> {
        let stream = reader.stream(self.session.model().config());
        let mut input: Option<Vec<f32>> = None;
        for change in self.into.get(&reader)?.iter().filter_map(|writer| self.changes.get(writer)) {
            let input = input.get_or_insert_with(|| self.corrupt.of_text(stream, 0).iter().copied().collect());
            input.iter_mut().zip(change).for_each(|(x, change)| *x += change);
        }
        input
    }

    /// Runs the text from the corrupt run's stream that enters a block.
    async fn run(&self, hooks: &Hooks, layer: usize, sink: &mut dyn Sink) -> Result<(), Error> {
        let batch = self.session.model().batch(&[self.ids])?;
        self.session.run_from_block(&batch, hooks, Some(&BlockInput::of(&self.corrupt, layer, 1)), sink).await
    }

    /// The heads of a block: queries, keys and values from the input of each, and the heads' outputs.
    async fn heads(&mut self, layer: usize) -> Result<(), Error> {
        let config = self.session.model().config();
        let letters: [(Site, OfHead); 3] = [
            (Site::Q(layer), |layer, head| Receiver::Query { layer, head }),
            (Site::K(layer), |layer, head| Receiver::Key { layer, head }),
            (Site::V(layer), |layer, head| Receiver::Value { layer, head }),
        ];
        let mut changed: Vec<(Site, usize)> = Vec::new();
        let mut inputs = Vec::new();
        for (site, letter) in letters {
            for head in 0..config.n_head {
                if let Some(input) = self.input(letter(layer, head)) {
                    changed.push((site, head));
                    inputs.extend(input);
                }
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        let mut read = Kept::new(letters.into_iter().map(|(site, _)| site).collect(), BTreeSet::new());
        let copies = self.session.model().batch(&vec![self.ids; changed.len()])?;
        let start = BlockInput { layer, values: inputs };
        self.session.run_from_block(&copies, &read.hooks(config), Some(&start), &mut read).await?;
        let mut results = Kept::new(BTreeSet::from([Site::Result(layer)]), BTreeSet::new());
        let mut hooks = results.hooks(config);
        for (copy, (site, head)) in changed.iter().enumerate() {
            let values = read.of_text(*site, copy).index_axis(Axis(1), *head).iter().copied().collect();
            hooks.edit_at(*site, Select::all().heads([*head]), Edit::Replace(values))?;
        }
        // Heads without a changed input compute the corrupt run's values.
        self.run(&hooks, layer, &mut results).await?;
        let difference =
            results.of_text(Site::Result(layer), 0).to_owned() - self.corrupt.of_text(Site::Result(layer), 0);
        for head in changed.iter().map(|(_, head)| *head).collect::<BTreeSet<_>>() {
            let change = difference.index_axis(Axis(1), head).iter().copied().collect();
            self.changes.insert(Writer::Head { layer, head }, change);
        }
        Ok(())
    }

    /// The MLP of a block.
    async fn mlp(&mut self, layer: usize) -> Result<(), Error> {
        let Some(input) = self.input(Receiver::Mlp { layer }) else { return Ok(()) };
        let site = Site::MlpOut(layer);
        let mut written = Kept::new(BTreeSet::from([site]), BTreeSet::new());
        let mut hooks = written.hooks(self.session.model().config());
        hooks.edit_at(Site::ResidMid(layer), Select::all(), Edit::Replace(input))?;
        self.run(&hooks, layer, &mut written).await?;
        let difference = written.of_text(site, 0).to_owned() - self.corrupt.of_text(site, 0);
        self.changes.insert(Writer::Mlp { layer }, difference.iter().copied().collect());
        Ok(())
    }
}
