//! Direct attribution of a logit. With its scale fixed, the final LayerNorm is linear, so a logit, or the difference of two, is a
//! sum over everything that was added to the residual stream at one position. Owns the parts ([`By`]), their labels, and
//! `Session::attribute_direct`. Gain, bias and scale are the run's own; nothing is folded. Values are f32 from the device; sums
//! are f64. Read next: `attribute_gradient.rs`.

use crate::analysis::metric::{Metric, Question};
use crate::analysis::top::largest;
use crate::batch::Batch;
use crate::hooks::capture::Capture;
use crate::hooks::request::{Hooks, Select};
use crate::hooks::site::Site;
use crate::model::forward::RunError;
use crate::model::params::Direction;
use crate::session::{AnalysisError, Error, Progress, Session};
use crate::text::named;
use ndarray::{ArrayViewD, Axis};
use thiserror::Error;

/// Why an attribution cannot be computed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AttributionError {
    /// The question is about a position or a token that does not exist.
    #[error("the text to attribute: {what}")]
    Question {
        /// What does not exist.
        what: String,
    },
    /// The line of token embeddings for integrated gradients does not exist.
    #[error("integrated gradients: {what}")]
    Line {
        /// Why not.
        what: String,
    },
}

impl AnalysisError for AttributionError {}

/// The parts that a logit is divided into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The embeddings, and each block's attention and MLP.
    Component,
    /// The embeddings, and each block.
    Layer,
    /// Each head, the bias of each attention, each MLP, and the embeddings.
    Head,
    /// Each neuron.
    Neuron,
    /// Each position that heads attend to: the sum of what all heads move from there, weighted by their patterns.
    Position,
}

named!(By: "component" Component, "layer" Layer, "head" Head, "neuron" Neuron, "position" Position);

/// A number as a sum of parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribution {
    /// The number: a logit or the difference of two, as computed by the run.
    pub total: f64,
    /// The names of the parts.
    pub labels: Vec<String>,
    /// The contribution of each part.
    pub values: Vec<f64>,
    /// `total` minus the sum of `values`: rounding, parts that were left out, and values that an edit put in.
    pub remainder: f64,
}

impl Attribution {
    pub(super) fn new(total: f64, parts: Vec<(String, f64)>) -> Attribution {
        let (labels, values): (Vec<String>, Vec<f64>) = parts.into_iter().unzip();
        let remainder = total - values.iter().sum::<f64>();
        Attribution { total, labels, values, remainder }
    }

    /// Keeps only the `n` parts of largest magnitude, largest first. The remainder takes the others.
    pub fn strongest(self, n: usize) -> Attribution {
        let kept = largest(self.values.len(), n, |i| self.values[i].abs() as f32);
        let part = |i: u32| (self.labels[i as usize].clone(), self.values[i as usize]);
        Attribution::new(self.total, kept.into_iter().map(part).collect())
    }
}

/// What is added to the residual stream, in run order: the embeddings, and each block's attention and MLP.
pub fn components(n_layer: usize) -> impl Iterator<Item = Site> {
    let of_block = |layer| [Site::AttnOut(layer), Site::MlpOut(layer)];
    [Site::Embed, Site::PosEmbed].into_iter().chain((0..n_layer).flat_map(of_block))
}

/// The label of the final LayerNorm's bias, which is the same for every text.
pub const FINAL_BIAS: &str = "ln_final.b";
/// The label of the unembedding's bias, which only processed weights have.
pub const UNEMBED_BIAS: &str = "unembed.b_U";
/// The label, in [`By::Position`], of everything that does not come from a head.
pub const OTHER: &str = "other";

impl Session {
    /// Divides a logit at `question.position`, or with `difference` the answer's minus the wrong answer's, into what was added to the
    /// residual stream there. `batch` is one text. `edits` is a request for it, whose edits are applied; a value that an edit puts
    /// into the stream itself is in the remainder.
    ///
    /// # Errors
    /// As [`Session::run_async`]; [`AttributionError`] for a question about a position or token that does not exist.
    pub async fn attribute_direct_async(
        &self,
        batch: &Batch,
        question: &Question,
        difference: bool,
        by: By,
        edits: &Hooks,
        progress: Option<Progress<'_>>,
    ) -> Result<Attribution, Error> {
        let config = self.model().config();
        let n_layer = config.n_layer;
        question
            .check(metric(difference), batch.n_pos(), config)
            .map_err(|what| AttributionError::Question { what })?;
        let edited = edits.edits().any(|(site, ..)| *site == Site::Unembed);
        let logits = if edited { Site::Unembed } else { Site::LnFinalOut };
        let mut hooks = self.model().hooks();
        for (site, select, edit) in edits.edits() {
            hooks.edit_at(*site, select.clone(), edit.clone())?;
        }
        let here = || Select::all().positions(vec![vec![question.position]]);
        let parts: Vec<Site> = match by {
            By::Component | By::Layer => components(n_layer).collect(),
            By::Neuron => (0..n_layer).map(Site::MlpPost).collect(),
            By::Head | By::Position => {
                let heads = |layer| if by == By::Head { Site::Result(layer) } else { Site::Pattern(layer) };
                let of_block = |layer| [heads(layer), Site::MlpOut(layer)];
                [Site::Embed, Site::PosEmbed].into_iter().chain((0..n_layer).flat_map(of_block)).collect()
            }
        };
        for site in parts.into_iter().chain([Site::LnFinalScale, logits]) {
            hooks.tap_at(site, here())?;
        }
        if by == By::Position {
            for layer in 0..n_layer {
                hooks.tap_at(Site::V(layer), Select::all())?;
            }
        }
        let capture = self.run_async(batch, &hooks, progress).await?;
        let params = self.params();
        let direction = async |id| params.direction(id).await.map_err(RunError::from);
        let answer = direction(question.answer).await?;
        let wrong = if difference { Some(direction(question.wrong).await?) } else { None };
        let host = async |name: &str| params.host(name).await.map_err(RunError::from);
        let through = Through::new(
            &answer,
            wrong.as_ref(),
            &host("ln_f.weight").await?,
            &host("ln_f.bias").await?,
            scalar(&capture, Site::LnFinalScale),
        );
        let total = if edited {
            let logits = capture.get(Site::Unembed).expect("tapped above");
            let logit = |id: u32| f64::from(logits[[0, 0, id as usize]]);
            logit(question.answer) - if difference { logit(question.wrong) } else { 0.0 }
        } else {
            through.total(row(&capture, Site::LnFinalOut).iter().copied())
        };
        let found = Found { session: self, capture: &capture, through: &through, n_keys: batch.n_pos() };
        let parts = match by {
            By::Component => found.components(),
            By::Layer => found.layers(),
            By::Head => found.heads().await?,
            By::Neuron => found.neurons().await?,
            By::Position => found.positions().await?,
        };
        Ok(Attribution::new(total, parts))
    }

    /// Blocking form of [`Session::attribute_direct_async`], for the unedited model.
    ///
    /// ```
    /// use actscope::analysis::attribute::By;
    /// use actscope::analysis::metric::Question;
    /// use actscope::{Choice, Model};
    ///
    /// let session = Model::open("demo")?.on(Choice::Cpu)?;
    /// let batch = session.model().encode(&["The king and the queen"])?;
    /// let question = Question { position: batch.n_pos() - 1, answer: 265, wrong: 0 };
    /// let found = session.attribute_direct(&batch, &question, false, By::Component)?;
    /// assert!((found.values.iter().sum::<f64>() + found.remainder - found.total).abs() < 1e-9);
    /// # Ok::<(), actscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Session::attribute_direct_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn attribute_direct(
        &self,
        batch: &Batch,
        question: &Question,
        difference: bool,
        by: By,
    ) -> Result<Attribution, Error> {
        let none = self.model().hooks();
        pollster::block_on(self.attribute_direct_async(batch, question, difference, by, &none, None))
    }
}

/// The metric that a direct attribution divides.
pub fn metric(difference: bool) -> Metric {
    if difference { Metric::LogitDiff } else { Metric::Logit }
}

/// The values of a site at the one position that was tapped.
fn at_position(capture: &Capture, site: Site) -> ArrayViewD<'_, f32> {
    let array = capture.get(site).expect("a site that was tapped");
    array.index_axis_move(Axis(0), 0).index_axis_move(Axis(site.pos_axis()), 0)
}

fn row(capture: &Capture, site: Site) -> Vec<f32> {
    at_position(capture, site).iter().copied().collect()
}

fn scalar(capture: &Capture, site: Site) -> f64 {
    f64::from(row(capture, site)[0])
}

/// The linear function from the stream to the number: the stream minus its mean, times `gain * u / scale`.
struct Through {
    /// The unembedding's direction: the answer's, or the difference of two.
    u: Vec<f64>,
    /// `gain * u`.
    p: Vec<f64>,
    sum: f64,
    scale: f64,
    /// The contributions of the biases of the final LayerNorm and of the unembedding.
    ln_bias: f64,
    unembed_bias: f64,
}

impl Through {
    fn new(answer: &Direction, wrong: Option<&Direction>, gain: &[f32], bias: &[f32], scale: f64) -> Through {
        let (u, unembed_bias) = answer.less(wrong);
        let dot = |by: &[f32]| u.iter().zip(by).map(|(u, b)| u * f64::from(*b)).sum::<f64>();
        let ln_bias = dot(bias);
        let p: Vec<f64> = u.iter().zip(gain).map(|(u, g)| u * f64::from(*g)).collect();
        let sum = p.iter().sum();
        Through { u, p, sum, scale, ln_bias, unembed_bias }
    }

    /// The number, computed from the final LayerNorm's output.
    fn total(&self, out: impl Iterator<Item = f32>) -> f64 {
        self.u.iter().zip(out).map(|(u, x)| u * f64::from(x)).sum::<f64>() + self.unembed_bias
    }

    /// The contribution of a value in the stream.
    fn of(&self, values: impl ExactSizeIterator<Item = f32> + Clone) -> f64 {
        let mean = values.clone().map(f64::from).sum::<f64>() / values.len() as f64;
        let dot = values.zip(&self.p).map(|(v, p)| f64::from(v) * p).sum::<f64>();
        (dot - mean * self.sum) / self.scale
    }

    /// The biases with their contributions.
    fn biases(&self) -> impl Iterator<Item = (String, f64)> {
        let unembed = (self.unembed_bias != 0.0).then(|| (UNEMBED_BIAS.to_string(), self.unembed_bias));
        std::iter::once((FINAL_BIAS.to_string(), self.ln_bias)).chain(unembed)
    }
}

/// A run whose parts are added up.
struct Found<'a> {
    session: &'a Session,
    capture: &'a Capture,
    through: &'a Through,
    n_keys: usize,
}

impl Found<'_> {
    fn n_layer(&self) -> usize {
        self.session.model().config().n_layer
    }

    fn of(&self, site: Site) -> f64 {
        self.through.of(row(self.capture, site).iter().copied())
    }

    fn named(&self, site: Site) -> (String, f64) {
        (site.name(), self.of(site))
    }

    /// A weight by Hugging Face's name, as the device has it.
    async fn host(&self, name: &str) -> Result<Vec<f32>, Error> {
        Ok(self.session.params().host(name).await.map_err(RunError::from)?)
    }

    fn embeddings(&self) -> impl Iterator<Item = (String, f64)> {
        [Site::Embed, Site::PosEmbed].map(|site| self.named(site)).into_iter()
    }

    fn components(&self) -> Vec<(String, f64)> {
        components(self.n_layer()).map(|site| self.named(site)).chain(self.through.biases()).collect()
    }

    fn layers(&self) -> Vec<(String, f64)> {
        let block = |l| (format!("blocks.{l}"), self.of(Site::AttnOut(l)) + self.of(Site::MlpOut(l)));
        self.embeddings().chain((0..self.n_layer()).map(block)).chain(self.through.biases()).collect()
    }

    /// The contribution of the bias of a block's attention.
    async fn output_bias(&self, layer: usize) -> Result<f64, Error> {
        let bias = self.host(&format!("h.{layer}.attn.c_proj.bias")).await?;
        Ok(self.through.of(bias.iter().copied()))
    }

    async fn heads(&self) -> Result<Vec<(String, f64)>, Error> {
        let mut parts: Vec<(String, f64)> = self.embeddings().collect();
        for layer in 0..self.n_layer() {
            let results = at_position(self.capture, Site::Result(layer));
            for (head, result) in results.axis_iter(Axis(0)).enumerate() {
                let values: Vec<f32> = result.iter().copied().collect();
                let name = format!("{}[{head}]", Site::Result(layer).name());
                parts.push((name, self.through.of(values.iter().copied())));
            }
            parts.push((format!("blocks.{layer}.attn.b_O"), self.output_bias(layer).await?));
            parts.push(self.named(Site::MlpOut(layer)));
        }
        parts.extend(self.through.biases());
        Ok(parts)
    }

    async fn neurons(&self) -> Result<Vec<(String, f64)>, Error> {
        let width = self.session.model().config().n_embd;
        let mut parts = Vec::new();
        for layer in 0..self.n_layer() {
            let weight = self.host(&format!("h.{layer}.mlp.c_proj.weight")).await?;
            let neurons = row(self.capture, Site::MlpPost(layer));
            let name = Site::MlpPost(layer).name();
            for (n, (value, out)) in neurons.iter().zip(weight.chunks(width)).enumerate() {
                parts.push((format!("{name}[{n}]"), f64::from(*value) * self.through.of(out.iter().copied())));
            }
        }
        Ok(parts)
    }

    async fn positions(&self) -> Result<Vec<(String, f64)>, Error> {
        let config = self.session.model().config();
        let (width, d_head) = (config.n_embd, config.head_dim());
        let mut of_keys = vec![0.0; self.n_keys];
        let mut other: f64 = self.embeddings().chain(self.through.biases()).map(|(_, value)| value).sum();
        for layer in 0..config.n_layer {
            // The contribution of a 1 in each entry of z, [H d].
            let weight = self.host(&format!("h.{layer}.attn.c_proj.weight")).await?;
            let of_z: Vec<f64> = weight.chunks(width).map(|row| self.through.of(row.iter().copied())).collect();
            let pattern = at_position(self.capture, Site::Pattern(layer));
            let values = self.capture.get(Site::V(layer)).expect("tapped for this");
            for (key, sum) in of_keys.iter_mut().enumerate() {
                for head in 0..config.n_head {
                    let of_z = &of_z[head * d_head..][..d_head];
                    let v = |d: usize| f64::from(values[[0, key, head, d]]);
                    let dot = of_z.iter().enumerate().map(|(d, z)| z * v(d)).sum::<f64>();
                    *sum += f64::from(pattern[[head, key]]) * dot;
                }
            }
            other += self.output_bias(layer).await? + self.of(Site::MlpOut(layer));
        }
        let named = of_keys.into_iter().enumerate().map(|(key, value)| (format!("pos.{key}"), value));
        Ok(named.chain([(OTHER.to_string(), other)]).collect())
    }
}
