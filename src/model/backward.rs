//! The gradient of a number with respect to the values of a run, in three steps: the forward pass on a tape; the number's gradient
//! with respect to the values that it is computed from; the backward pass, which records gradients as the forward pass records
//! values. Owns the order of these steps. Gradients of weights are not computed. Uses the device trait and no backend.
//! Read next: `../device/tape.rs`, then `../analysis/gradients.rs`, which has the numbers.

use crate::batch::Batch;
use crate::config::Config;
use crate::device::tape::{BackwardStep, Tape, Tensor};
use crate::device::{Device, TensorLimits, Window};
use crate::hooks::capture::Sink;
use crate::hooks::layout::Layout;
use crate::hooks::recorder::{Progress, Recorder, Stop, Watch};
use crate::hooks::request::{HookError, Hooks, Select};
use crate::hooks::site::Site;
use crate::model::forward::{self, Run, RunError, Start};
use crate::model::params::Params;
use ndarray::{ArrayViewD, IxDyn};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// What is differentiated: one number for each text, a function of some values of one site.
pub trait Objective {
    /// The site.
    fn site(&self) -> Site;

    /// The selection of its values, for every text of the batch.
    fn select(&self) -> &Select;

    /// The gradient of a text's number with respect to these values, in their order. The values have the site's axes without the
    /// batch axis.
    fn gradient(&mut self, text: usize, values: ArrayViewD<'_, f32>) -> Vec<f32>;
}

/// A value whose gradient is recorded.
struct Seen {
    node: usize,
    site: Site,
    text: Option<usize>,
}

/// A copy to the host of values that the objective is computed from.
struct Needed<D: Device> {
    node: usize,
    cols: usize,
    text: Option<usize>,
    window: Window,
    staged: D::Staged,
}

/// What the backward pass needs to know about the run.
struct Watched<D: Device> {
    seen: Vec<Seen>,
    needed: Vec<Needed<D>>,
    /// The length of the tape at the end of every block.
    blocks: Vec<usize>,
}

/// Watches a run, and marks on the tape the values whose gradients are wanted.
struct Watching<'a, D: Device> {
    layout: &'a Layout<'a>,
    texts: Range<usize>,
    site: Site,
    select: &'a Select,
    state: Mutex<Watched<D>>,
}

impl<'a, D: Device> Watch<Tape<'a, D>> for Watching<'_, D> {
    fn see(&self, tape: &Tape<'a, D>, site: Site, text: Option<usize>, mut x: Tensor<D::Tensor>) -> Tensor<D::Tensor> {
        let wanted = self.layout.hooks().tapped(site).is_some();
        if !wanted && site != self.site {
            return x;
        }
        let node = tape.watch(&mut x);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted {
            state.seen.push(Seen { node, site, text });
        }
        if site == self.site {
            let texts = text.map_or(self.texts.clone(), |text| text..text + 1);
            for (text, window) in self.layout.windows(site, self.select, texts) {
                if !window.is_empty() {
                    let staged = tape.copy_out(&x, &window);
                    state.needed.push(Needed { node, cols: tape.shape(&x)[1], text, window, staged });
                }
            }
        }
        x
    }

    fn boundary(&self, tape: &Tape<'a, D>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).blocks.push(tape.len());
    }

    fn wants(&self, site: Site) -> bool {
        site == self.site
    }

    fn last(&self) -> Option<Site> {
        Some(self.site)
    }
}

/// A forward and a backward pass: what is run, what is differentiated, and where the results go.
pub struct GradientRun<'a> {
    /// The request and the batch.
    pub layout: &'a Layout<'a>,
    /// The texts of the batch that are run.
    pub texts: Range<usize>,
    /// Where they start.
    pub start: Start<'a>,
    /// The number that is differentiated with respect to every value that the request taps.
    pub objective: &'a mut dyn Objective,
    /// Receives the values. It must be made for the same request and batch.
    pub values: &'a mut dyn Sink,
    /// Receives the gradients. It must be made for the same request and batch.
    pub gradients: &'a mut dyn Sink,
    /// Receives the number of finished blocks, those of the backward pass included.
    pub progress: Option<Progress<'a>>,
}

impl fmt::Debug for GradientRun<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GradientRun")
            .field("texts", &self.texts)
            .field("site", &self.objective.site())
            .finish_non_exhaustive()
    }
}

/// Runs some texts of a batch, and differentiates the objective.
///
/// # Errors
/// As [`forward::forward`].
pub async fn gradients<D: Device>(dev: &D, params: &Params<D>, run: GradientRun<'_>) -> Result<(), RunError> {
    let GradientRun { layout, texts, start, objective, values, gradients, progress } = run;
    let (tape, select) = (Tape::new(dev), objective.select().clone());
    if objective.site() < start.first_site() {
        return Err(HookError::BeforeStart { site: objective.site().name() }.into());
    }
    let empty = Watched { seen: Vec::new(), needed: Vec::new(), blocks: Vec::new() };
    let watching =
        Watching { layout, texts: texts.clone(), site: objective.site(), select: &select, state: Mutex::new(empty) };
    let run = Run { start, watch: Some(&watching), ..Run::new(layout, texts.clone()) };
    forward::forward_with(&tape, params, run, values, progress).await?;
    let Watched { seen, needed, mut blocks } = watching.state.into_inner().unwrap_or_else(PoisonError::into_inner);

    let (mut back, site) = (tape.backward(), objective.site());
    for Needed { node, cols, text, window, staged } in needed {
        let read = dev.read(staged).await?;
        let by_values = gradient_of(layout, objective, text.map_or(texts.clone(), |text| text..text + 1), &read);
        dev.host_memory().give_back(read);
        let n_rows = window.n_rows();
        let mut rows = dev.host_memory().zeros(n_rows * cols);
        let slots = (0..n_rows).flat_map(|row| window.each_col().map(move |col| row * cols + col));
        slots.zip(by_values).for_each(|(slot, v)| rows[slot] = v);
        if let (true, Some(text)) = (site.is_square(), text) {
            // Entries that a query cannot see do not change the objective.
            for (row, values) in window.each_row().zip(rows.chunks_exact_mut(cols)) {
                let unseen = values.iter_mut().enumerate().filter(|(key, _)| !layout.sees(text, row, *key));
                unseen.for_each(|(_, v)| *v = 0.0);
            }
        }
        back.seed(node, window.rows, dev.upload([n_rows, cols], rows));
    }

    let done = blocks.len();
    let onward = |blocks: usize| progress.map_or(std::ops::ControlFlow::Continue(()), |told| told(done + blocks));
    let mut recorder = Recorder::new(layout, texts, gradients, Some(&onward));
    let mut at: BTreeMap<usize, Vec<(Site, Option<usize>)>> = BTreeMap::new();
    let mut first_text: BTreeMap<Site, usize> = BTreeMap::new();
    for Seen { node, site, text } in seen {
        at.entry(node).or_default().push((site, text));
        if let Some(text) = text {
            first_text.entry(site).or_insert(text);
        }
    }
    // For sites that are computed text by text, the backward pass reaches the last text first. Gradients are recorded in the order
    // of the texts.
    let mut held: Vec<(Site, usize, D::Tensor)> = Vec::new();
    while let Some(BackwardStep { node, shape, gradient }) = back.step() {
        if let Some(sites) = at.remove(&node) {
            let whole = back.whole(gradient, shape);
            for (site, text) in sites {
                let Some(text) = text else {
                    recorder.record(dev, site, None, &whole);
                    continue;
                };
                held.push((site, text, whole.clone()));
                if first_text[&site] == text {
                    for (site, text, whole) in
                        held.extract_if(.., |(of, ..)| *of == site).collect::<Vec<_>>().iter().rev()
                    {
                        recorder.record(dev, *site, Some(*text), whole);
                    }
                }
            }
        }
        if blocks.last().is_some_and(|last| node < *last) {
            blocks.pop();
            recorder.boundary(dev).await.map_err(failed)?;
        }
    }
    recorder.finish(dev).await.map_err(failed)
}

/// The objective's gradient with respect to the values of some texts, text by text.
fn gradient_of(layout: &Layout<'_>, objective: &mut dyn Objective, texts: Range<usize>, values: &[f32]) -> Vec<f32> {
    let (mut rest, mut all) = (values, Vec::with_capacity(values.len()));
    for text in texts {
        let shape = layout.shape_of_selection(objective.site(), objective.select(), text);
        let (of_text, later) = rest.split_at(shape.iter().product());
        rest = later;
        if !of_text.is_empty() {
            let of_text = ArrayViewD::from_shape(IxDyn(&shape), of_text).expect("it was cut to this shape");
            all.extend(objective.gradient(text, of_text));
        }
    }
    all
}

/// Converts the end of recording to an error. A recorder of gradients never returns [`Stop::Done`].
fn failed(stop: Stop) -> RunError {
    match stop {
        Stop::Fault(e) => e.into(),
        Stop::Sink(e) => RunError::Sink(e),
        Stop::Hook(e) => e.into(),
        Stop::Cancelled | Stop::Done => RunError::Cancelled,
    }
}

/// Refuses, before anything is computed, a run with a tensor that is larger than the device allows. Whatever is tapped, the backward
/// pass needs the scores of one text at a time, and the gradient with respect to at most `n_logits` rows of logits of a text.
///
/// # Errors
/// [`RunError::TooLarge`].
pub fn check_size(limits: TensorLimits, config: &Config, batch: &Batch, n_logits: usize) -> Result<(), RunError> {
    let n_pos = batch.n_pos();
    for (what, elements) in
        [("attention scores", config.n_head * n_pos * n_pos), ("gradients of logits", n_logits * config.vocab_size)]
    {
        if elements > limits.whole {
            let (bytes, most) = (4 * elements as u64, 4 * limits.whole as u64);
            return Err(RunError::TooLarge { what: what.into(), tokens: n_pos, bytes, most });
        }
    }
    Ok(())
}

/// About how many bytes the tape of one text of `n_pos` tokens takes, from the block of the earliest tapped site on, with the
/// logits of `n_logits` of them and the gradient with respect to these. With `recompute` it holds one block at a time.
pub fn tape_bytes(config: &Config, hooks: &Hooks, n_pos: usize, n_logits: usize, recompute: bool) -> usize {
    let most = if recompute { 1 } else { config.n_layer };
    let first = hooks.sites().next().and_then(Site::layer).unwrap_or(0);
    let (touched, embd, layers) =
        (hooks.touched(), config.n_embd, (config.n_layer - first.min(config.n_layer)).min(most));
    let squares = touched.iter().filter(|site| site.is_square()).filter_map(|site| site.layer());
    let squares = squares.collect::<BTreeSet<_>>().len().min(most);
    let by_head = touched.iter().filter(|site| matches!(site, Site::Result(_))).count().min(most);
    // Per block and token: the stream twice, the LayerNorms' results, q, k, v, z, and the neurons before and after the activation.
    let tokens = layers * (11 * embd + 2 * config.n_inner) + by_head * config.n_head * embd;
    4 * (n_pos * (tokens + 2 * squares * config.n_head * n_pos) + 2 * n_logits * config.vocab_size)
}
