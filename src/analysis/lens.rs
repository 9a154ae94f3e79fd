//! The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"): the model's prediction if it stopped after
//! each block. Every residual stream goes through the final LayerNorm and the unembedding on the device. Only a few
//! values per token are stored. The model's own logits are evaluated text by text during the run; of the other layers, only a part of
//! one layer's logits is in memory at once. Owns `Session::lens` and the evaluation of logits. Read next: `top.rs`.

use crate::analysis::attribute;
use crate::analysis::top::largest;
use crate::batch::Batch;
use crate::device::{Device, Operations, Window};
use crate::hooks::capture::{Capture, Sink};
use crate::hooks::request::{Hooks, Select};
use crate::hooks::site::Site;
use crate::model::checkpoint::{Checkpoint, WeightsError};
use crate::model::forward::RunError;
use crate::model::params::Params;
use crate::session::{Error, Progress, Session};
use ndarray::{ArrayD, ArrayView2, ArrayViewD, Axis, Ix2};
use rayon::prelude::*;
use std::ops::ControlFlow;

/// The lens's result for one residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct LensRow {
    /// The stream's site, one of [`sites`].
    pub site: Site,
    /// `[text][position]`.
    pub texts: Vec<Vec<Prediction>>,
}

/// The prediction at one position for the token after it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The most likely tokens with their probabilities, most likely first. Of equal probabilities, the smaller id is
    /// first.
    pub top: Vec<(u32, f32)>,
    /// Entropy of the whole distribution in nats, from 0 (certain) to `ln(vocab_size)` (uniform).
    pub entropy: f32,
    /// The text's actual next token; `None` at its last position.
    pub next: Option<Next>,
}

/// The text's actual next token in a predicted distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Next {
    /// The token.
    pub id: u32,
    /// Its probability.
    pub probability: f32,
    /// 1 if no token is more likely, 2 if one is, and so on.
    pub rank: usize,
}

/// The streams that the lens evaluates: the input of the first block, and the output of each block. The last one gives
/// the model's own prediction.
pub fn sites(n_layer: usize) -> impl Iterator<Item = Site> {
    std::iter::once(Site::ResidPre(0)).chain((0..n_layer).map(Site::ResidPost))
}

impl Session {
    /// The logit lens: the prediction after each block, one row per site of [`sites`]; the last row is the model's own
    /// output. `hooks` may have further taps, and edits. The capture has their values and the residual streams. `top`
    /// is the number of most likely tokens to return. `progress` is as in [`Session::run_async`], with one more step
    /// per row.
    ///
    /// # Errors
    /// As [`Session::run_async`]; also if `hooks` taps only a part of a site that the lens needs whole.
    pub async fn lens_async(
        &self,
        batch: &Batch,
        hooks: &Hooks,
        top: usize,
        progress: Option<Progress<'_>>,
    ) -> Result<(Vec<LensRow>, Capture), Error> {
        let n_layer = self.model().config().n_layer;
        let mut kept = hooks.clone();
        for site in sites(n_layer) {
            kept.tap_at(site, Select::all())?;
        }
        let mut all = kept.clone();
        all.tap_at(Site::Unembed, Select::all())?;
        all.check_batch(batch)?;
        let steps_of_run = std::cell::Cell::new(0);
        let hear = |done: usize, of: usize| {
            steps_of_run.set(of);
            progress.map_or(ControlFlow::Continue(()), |progress| progress(done, of + n_layer + 1))
        };
        let mut run = OfRun { batch, top, capture: self.capture(&kept, batch)?, last: Vec::new() };
        self.run_into_async(batch, &all, &mut run, Some(&hear)).await?;
        let OfRun { capture, last, .. } = run;
        let read = |rows: usize| hear(steps_of_run.get() + rows, steps_of_run.get());
        let (dev, params, _turn) = self.engine().await;
        let rows = self::read(dev, params, batch, &capture, last, top, &read).await?;
        Ok((rows, capture))
    }

    /// Blocking form of [`Session::lens_async`].
    ///
    /// # Errors
    /// As [`Session::lens_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn lens(&self, batch: &Batch, hooks: &Hooks, top: usize) -> Result<(Vec<LensRow>, Capture), Error> {
        pollster::block_on(self.lens_async(batch, hooks, top, None))
    }
}

/// Receives a run of the lens: evaluates the model's own logits text by text, and stores the other values in `capture`. The logits of all
/// texts would be the largest array by far; `capture` has them only if the caller tapped them.
struct OfRun<'a> {
    batch: &'a Batch,
    top: usize,
    capture: Capture,
    /// The last row of the lens: `[text][position]`.
    last: Vec<Vec<Prediction>>,
}

impl OfRun<'_> {
    fn evaluate(&mut self, site: Site, text: usize, logits: &ArrayViewD<'_, f32>) {
        if site == Site::Unembed {
            let (ids, logits) = (self.batch.ids_of(text), logits.as_standard_layout());
            let n_vocab = logits.len() / ids.len();
            self.last.push(predictions(logits.as_slice().expect("in standard layout"), 0, ids, n_vocab, self.top));
        }
    }
}

impl Sink for OfRun<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        self.evaluate(site, text, &values);
        self.capture.put(site, text, values)
    }

    fn wants(&self, site: Site) -> bool {
        site == Site::Unembed || self.capture.wants(site)
    }

    fn give(&mut self, site: Site, text: usize, values: ArrayD<f32>) -> std::io::Result<Option<ArrayD<f32>>> {
        self.evaluate(site, text, &values.view());
        self.capture.give(site, text, values)
    }

    fn edited(&mut self, n: usize, text: usize, sha256: &str) {
        self.capture.edited(n, text, sha256);
    }
}

impl Session {
    /// The lens of each component by itself: what the embeddings and each block's attention and MLP add to the stream
    /// ([`attribute::components`]), centred, divided by the scale that the run's own final LayerNorm had there, times its
    /// gain, through the unembedding. No bias is added, so the logits of all rows and of the biases add up to the model's.
    /// Arguments and results are those of [`Session::lens_async`].
    ///
    /// # Errors
    /// As [`Session::lens_async`].
    pub async fn lens_of_components_async(
        &self,
        batch: &Batch,
        hooks: &Hooks,
        top: usize,
        progress: Option<Progress<'_>>,
    ) -> Result<(Vec<LensRow>, Capture), Error> {
        let n_layer = self.model().config().n_layer;
        let components: Vec<Site> = attribute::components(n_layer).collect();
        let mut all = hooks.clone();
        for site in components.iter().copied().chain([Site::LnFinalScale]) {
            all.tap_at(site, Select::all())?;
        }
        let steps_of_run = std::cell::Cell::new(0);
        let hear = |done: usize, of: usize| {
            steps_of_run.set(of);
            progress.map_or(ControlFlow::Continue(()), |progress| progress(done, of + components.len()))
        };
        let capture = self.run_async(batch, &all, Some(&hear)).await?;
        let (dev, params, _turn) = self.engine().await;
        let gain = params.host("ln_f.weight").await.map_err(RunError::from)?;
        let mut rows = Vec::with_capacity(components.len());
        for site in &components {
            let mut texts = Vec::with_capacity(batch.texts().len());
            for text in 0..batch.texts().len() {
                let ids = batch.ids_of(text);
                let of_text = |site: Site| {
                    let padded = capture.get(site).expect("tapped above").index_axis_move(Axis(0), text);
                    let padded =
                        padded.into_dimensionality::<Ix2>().expect("components and scales are [batch, pos, n]");
                    padded.slice_move(ndarray::s![..ids.len(), ..])
                };
                let (values, scale) = (of_text(*site), of_text(Site::LnFinalScale));
                let normed = normalized(values, scale, &gain);
                let x = dev.upload([values.nrows(), values.ncols()], normed);
                texts.push(read_rows(dev, params, &x, false, ids, top, PART).await?);
            }
            rows.push(LensRow { site: *site, texts });
            if hear(steps_of_run.get() + rows.len(), steps_of_run.get()).is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok((rows, capture))
    }
}

/// Rows [P, D], centred, divided by `scale` [P, 1], times `gain` [D].
fn normalized(rows: ArrayView2<'_, f32>, scale: ArrayView2<'_, f32>, gain: &[f32]) -> Vec<f32> {
    let of_row = |(row, scale): (ndarray::ArrayView1<'_, f32>, &f32)| {
        let mean = row.iter().copied().map(f64::from).sum::<f64>() / row.len() as f64;
        let value = |(v, g): (&f32, &f32)| ((f64::from(*v) - mean) / f64::from(*scale) * f64::from(*g)) as f32;
        row.iter().zip(gain).map(value).collect::<Vec<f32>>()
    };
    rows.rows().into_iter().zip(scale).flat_map(of_row).collect()
}

/// The logits of single directions of the residual stream [n, D]: their products with the unembedding's rows, in f64.
/// With `ln`, the final LayerNorm is applied to the directions first, and the unembedding's bias added, if it has one.
///
/// # Errors
/// [`WeightsError`] if a tensor cannot be read.
pub async fn directions_async(
    checkpoint: &Checkpoint,
    rows: ArrayView2<'_, f32>,
    ln: bool,
) -> Result<Vec<Vec<f64>>, WeightsError> {
    let config = checkpoint.config();
    let table = checkpoint.unembedding_async().await?.to_f32();
    let shift = checkpoint.unembedding_bias_async().await?.filter(|_| ln).map(|bias| bias.to_f32());
    let gain = checkpoint.tensor_async("ln_f.weight").await?.to_f32();
    let bias = checkpoint.tensor_async("ln_f.bias").await?.to_f32();
    let of_row = |row: ndarray::ArrayView1<'_, f32>| {
        let mut x: Vec<f64> = row.iter().copied().map(f64::from).collect();
        if ln {
            let n = x.len() as f64;
            let mean = x.iter().sum::<f64>() / n;
            let scale = (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n + config.layer_norm_epsilon).sqrt();
            let affine = gain.iter().zip(&bias);
            x.iter_mut().zip(affine).for_each(|(v, (g, b))| *v = (*v - mean) / scale * f64::from(*g) + f64::from(*b));
        }
        let shift = |id: usize| shift.as_ref().map_or(0.0, |shift| f64::from(shift[id]));
        let logit = |(id, u): (usize, &[f32])| x.iter().zip(u).map(|(x, u)| x * f64::from(*u)).sum::<f64>() + shift(id);
        table.par_chunks(config.n_embd).enumerate().map(logit).collect()
    };
    Ok(rows.rows().into_iter().map(of_row).collect())
}

/// Blocking form of [`directions_async`].
///
/// # Errors
/// As [`directions_async`].
#[cfg(not(target_arch = "wasm32"))]
pub fn directions(checkpoint: &Checkpoint, rows: ArrayView2<'_, f32>, ln: bool) -> Result<Vec<Vec<f64>>, WeightsError> {
    pollster::block_on(directions_async(checkpoint, rows, ln))
}

/// Tokens with their logits.
pub type TokenLogits = Vec<(u32, f64)>;

/// The `n` largest and the `n` smallest of a list of logits with their ids, most extreme first.
pub fn ends(logits: &[f64], n: usize) -> (TokenLogits, TokenLogits) {
    let of = |sign: f64| {
        let found = largest(logits.len(), n, |id| (sign * logits[id]) as f32);
        found.into_iter().map(|id| (id, logits[id as usize])).collect()
    };
    (of(1.0), of(-1.0))
}

/// The number of logits that are read back at once: 64 MB.
pub(crate) const PART: usize = 16 << 20;

/// Evaluates every stream of [`sites`] from a capture that holds all of them, whole. The last row is `last`, of the model's own
/// logits, so it equals the model's output exactly. `top` is the number of most likely tokens to return; `progress` is called after
/// each row.
///
/// # Errors
/// [`RunError`] when a weight cannot be loaded or the device fails.
async fn read<D: Device>(
    dev: &D,
    params: &Params<D>,
    batch: &Batch,
    capture: &Capture,
    last: Vec<Vec<Prediction>>,
    top: usize,
    progress: &dyn Fn(usize) -> ControlFlow<()>,
) -> Result<Vec<LensRow>, RunError> {
    let n_layer = params.config().n_layer;
    let mut rows = Vec::with_capacity(n_layer + 1);
    for (n, site) in sites(n_layer).take(n_layer).enumerate() {
        let array = capture.get(site).expect("the lens' sites are tapped");
        let mut texts = Vec::with_capacity(batch.texts().len());
        for (text, padded) in array.axis_iter(Axis(0)).enumerate() {
            let ids = batch.ids_of(text);
            let padded = padded.into_dimensionality::<Ix2>().expect("streams are [batch, pos, n]");
            texts.push(decode(dev, params, padded.slice_move(ndarray::s![..ids.len(), ..]), ids, top, PART).await?);
        }
        rows.push(LensRow { site, texts });
        if progress(n + 1).is_break() {
            return Err(RunError::Cancelled);
        }
    }
    rows.push(LensRow { site: Site::ResidPost(n_layer - 1), texts: last });
    if progress(n_layer + 1).is_break() { Err(RunError::Cancelled) } else { Ok(rows) }
}

/// Applies ln_f and the unembedding to one stream [P, D] of one text, at most `part` logits at once (but at least one
/// row). While the host evaluates a part, the device computes the next.
pub(crate) async fn decode<D: Device>(
    dev: &D,
    params: &Params<D>,
    stream: ArrayView2<'_, f32>,
    ids: &[u32],
    top: usize,
    part: usize,
) -> Result<Vec<Prediction>, RunError> {
    let ln_f = params.ln_f(dev).await?;
    let x = dev.upload([stream.nrows(), stream.ncols()], stream.iter().copied().collect());
    let x = dev.layer_norm(&x, &ln_f.weight, &ln_f.bias, params.config().layer_norm_epsilon);
    read_rows(dev, params, &x, true, ids, top, part).await
}

/// Applies the unembedding to rows [P, D] of one text, with its bias if `biased`, at most `part` logits at once (but at least
/// one row). While the host evaluates a part, the device computes the next.
async fn read_rows<D: Device>(
    dev: &D,
    params: &Params<D>,
    x: &D::Tensor,
    biased: bool,
    ids: &[u32],
    top: usize,
    part: usize,
) -> Result<Vec<Prediction>, RunError> {
    let (n_pos, n_vocab) = (dev.shape(x)[0], params.config().vocab_size);
    let rows_at_once = (part.min(dev.tensor_limits().whole) / n_vocab).max(1);
    let mut read = Vec::with_capacity(n_pos);
    let mut in_flight = None;
    for start in (0..n_pos).step_by(rows_at_once) {
        let rows = start..n_pos.min(start + rows_at_once);
        let rows = dev.gather_rows(&[x], vec![(0, rows)]);
        let logits =
            if biased { params.logits(dev, &rows).await? } else { dev.unembed(&rows, params.unembedding(dev).await?) };
        let staged = dev.copy_out(&logits, &Window::all(dev.shape(&logits)));
        dev.submit();
        if let Some((start, staged)) = in_flight.replace((start, staged)) {
            read.extend(predictions(&dev.read(staged).await?, start, ids, n_vocab, top));
        }
    }
    if let Some((start, staged)) = in_flight {
        read.extend(predictions(&dev.read(staged).await?, start, ids, n_vocab, top));
    }
    Ok(read)
}

/// Evaluates rows of logits. The first row is at position `start` of a text with these ids.
pub(crate) fn predictions(logits: &[f32], start: usize, ids: &[u32], n_vocab: usize, top: usize) -> Vec<Prediction> {
    let of_row = |(i, row): (usize, &[f32])| prediction(row, ids.get(start + i + 1).copied(), top);
    logits.par_chunks(n_vocab).enumerate().map(of_row).collect()
}

/// Evaluates one row of logits.
fn prediction(logits: &[f32], next: Option<u32>, top: usize) -> Prediction {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Sums in f64: fifty thousand f32 terms would lose four digits. With e = exp(x - max) and z = sum e, the entropy
    // -sum p ln p is ln z - sum e (x - max) / z.
    let (mut z, mut weighted) = (0.0f64, 0.0f64);
    for &x in logits {
        let e = f64::from((x - max).exp());
        z += e;
        if e > 0.0 {
            weighted += e * f64::from(x - max);
        }
    }
    let probability = |id: u32| (f64::from((logits[id as usize] - max).exp()) / z) as f32;
    let next = next.map(|id| {
        let rank = 1 + logits.iter().filter(|x| **x > logits[id as usize]).count();
        Next { id, probability: probability(id), rank }
    });
    let top = largest(logits.len(), top, |id| logits[id]).into_iter().map(|id| (id, probability(id))).collect();
    // If z is NaN, the entropy must be NaN too; `max` would hide that.
    let entropy = (z.ln() - weighted / z) as f32;
    Prediction { top, entropy: if entropy < 0.0 { 0.0 } else { entropy }, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_of_known_logits() {
        // Probabilities 1/2, 1/4, 1/8, 1/8.
        let logits = [2.0f32, 4.0, 1.0, 1.0].map(|p| p.ln() + 100.0);
        let Prediction { top, entropy, next } = prediction(&logits, Some(3), 3);
        assert_eq!(
            top.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            [1, 0, 2],
            "the smaller id first where two are alike"
        );
        top.iter().zip([0.5, 0.25, 0.125]).for_each(|((_, got), want)| assert!((got - want).abs() < 1e-5, "{got}"));
        assert!((entropy - 1.75 * 2f32.ln()).abs() < 1e-5, "{entropy}");
        let next = next.unwrap();
        assert_eq!((next.id, next.rank), (3, 3));
        assert!((next.probability - 0.125).abs() < 1e-5);
    }

    #[test]
    fn parts_join_without_a_seam() {
        use crate::device::reference::Reference;
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/classic");
        let checkpoint = crate::model::checkpoint::Checkpoint::open(folder.as_ref()).unwrap();
        let (n_vocab, width) = (checkpoint.config().vocab_size, checkpoint.config().n_embd);
        let params = Params::<Reference>::new(std::sync::Arc::new(checkpoint), None);
        let stream = ndarray::Array2::from_shape_fn((7, width), |(p, d)| ((p * 31 + d * 17) % 23) as f32 - 11.0);
        let ids = [3, 1, 4, 1, 5, 9, 2];
        let in_parts =
            |part| pollster::block_on(decode(&Reference::default(), &params, stream.view(), &ids, 3, part)).unwrap();
        let whole = in_parts(usize::MAX);
        assert_eq!(whole.len(), 7);
        assert_eq!(
            whole.iter().map(|r| r.next.map(|n| n.id)).collect::<Vec<_>>(),
            [1, 4, 1, 5, 9, 2].map(Some).into_iter().chain([None]).collect::<Vec<_>>()
        );
        for part in [1, 2 * n_vocab, 3 * n_vocab + 1] {
            assert_eq!(in_parts(part), whole, "{part} logits at once");
        }
    }

    #[test]
    fn certainty_masked_and_broken_logits() {
        let Prediction { top, entropy, .. } = prediction(&[0.0, 1e4, f32::NEG_INFINITY], None, 9);
        assert_eq!((top[0], top.len(), entropy), ((1, 1.0), 3, 0.0));
        let Prediction { top, entropy, .. } = prediction(&[0.0, f32::NAN, 1.0], None, 1);
        assert!(top[0].1.is_nan() && entropy.is_nan(), "NaN is never a quiet zero");
    }
}
