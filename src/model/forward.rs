//! The forward pass. Owns the order of GPT-2's operations; every value that can be recorded or edited passes through a
//! `hooks.at(...)` here. Uses the device trait and no backend.
//! Source: Radford et al. 2019, as transformers' `modeling_gpt2.py` computes it. Read next: `../hooks/site.rs` for the
//! names, `../device/reference.rs` for what each operation does.
//!
//! `?` after `hooks.at` ends the run when no later site is requested; see [`Stop`].

use crate::batch::Batch;
use crate::config::Config;
use crate::device::{Activation, Device, DeviceError, Heads, Operations, Queries};
use crate::hooks::capture::Sink;
use crate::hooks::layout::Layout;
use crate::hooks::recorder::{Progress, Recorder, Stop, Watch};
use crate::hooks::request::{HookError, Hooks};
use crate::hooks::site::{Site, SiteError};
use crate::model::params::{Biased, Block, LoadError, Params};
use std::ops::Range;
use thiserror::Error;

/// Why a forward pass ended without a result.
#[derive(Debug, Error)]
pub enum RunError {
    /// The request does not fit the model or the batch.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A tensor is larger than this device allows.
    #[error("the {what} of {tokens} tokens take {bytes} bytes and this device holds at most {most} together")]
    TooLarge {
        /// Which tensor.
        what: String,
        /// Tokens of the longest text.
        tokens: usize,
        /// Bytes needed.
        bytes: u64,
        /// Bytes possible.
        most: u64,
    },
    /// A weight could not be loaded onto the device.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The sink failed to store what was recorded.
    #[error(transparent)]
    Sink(std::io::Error),
    /// The progress callback ended the run.
    #[error("the run was cancelled")]
    Cancelled,
}

/// The two kinds of early end of a run, in one type for `?`.
enum End {
    Done,
    Failed(RunError),
}

impl From<Stop> for End {
    fn from(stop: Stop) -> End {
        match stop {
            Stop::Done => End::Done,
            Stop::Fault(e) => End::Failed(e.into()),
            Stop::Sink(e) => End::Failed(RunError::Sink(e)),
            Stop::Hook(e) => End::Failed(e.into()),
            Stop::Cancelled => End::Failed(RunError::Cancelled),
        }
    }
}

impl From<LoadError> for End {
    fn from(e: LoadError) -> End {
        End::Failed(e.into())
    }
}

/// Where a run begins. Values are [T, n_embd], one row per token of the batch, text by text.
#[derive(Clone, Copy, Debug, Default)]
pub enum Start<'a> {
    /// At the token ids.
    #[default]
    Tokens,
    /// With these token embeddings in place of `hook_embed`; position embeddings are added.
    Embeddings(&'a [f32]),
    /// With this residual stream as the input of block `layer`.
    Stream {
        /// The first block that is run.
        layer: usize,
        /// `hook_resid_pre` of that block.
        values: &'a [f32],
    },
}

impl<'a> Start<'a> {
    /// Checks that there is one row per token, and that the block exists.
    ///
    /// # Errors
    /// [`HookError::Start`].
    pub(crate) fn check(self, batch: &Batch, config: &Config) -> Result<(), HookError> {
        let given = match self {
            Start::Tokens => return Ok(()),
            Start::Embeddings(values) => values.len(),
            Start::Stream { layer, .. } if layer >= config.n_layer => {
                return Err(SiteError::Layer { layer: layer as i64, n_layer: config.n_layer }.into());
            }
            Start::Stream { values, .. } => values.len(),
        };
        match batch.ids().len() * config.n_embd {
            expected if expected == given => Ok(()),
            expected => Err(HookError::Start { given, expected }),
        }
    }

    /// The start for some rows of the batch.
    pub(crate) fn of_rows(self, rows: Range<usize>, config: &Config) -> Start<'a> {
        let values = rows.start * config.n_embd..rows.end * config.n_embd;
        match self {
            Start::Tokens => Start::Tokens,
            Start::Embeddings(all) => Start::Embeddings(&all[values]),
            Start::Stream { layer, values: all } => Start::Stream { layer, values: &all[values] },
        }
    }

    /// The first block that is run.
    pub(crate) fn first_layer(self) -> usize {
        match self {
            Start::Stream { layer, .. } => layer,
            Start::Tokens | Start::Embeddings(_) => 0,
        }
    }

    /// The first site that has a value in a run.
    pub(crate) fn first_site(self) -> Site {
        match self {
            Start::Tokens | Start::Embeddings(_) => Site::Embed,
            Start::Stream { layer, .. } => Site::ResidPre(layer),
        }
    }
}

/// The keys and values of every layer for the texts of one batch. Later tokens of a text attend to them.
pub struct KvCache<D: Device> {
    layers: Vec<D::Cache>,
}

impl<D: Device> KvCache<D> {
    /// A cache with room for `capacities[i]` positions of text `i`.
    pub fn new(dev: &D, config: &Config, capacities: &[usize]) -> KvCache<D> {
        let layer = |l: usize| dev.new_cache(capacities, config.n_embd, heads(config, l));
        KvCache { layers: (0..config.n_layer).map(layer).collect() }
    }
}

impl<D: Device> std::fmt::Debug for KvCache<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvCache").field("n_layer", &self.layers.len()).finish()
    }
}

/// One run: the request, the texts, and where it begins.
pub struct Run<'a, D: Device> {
    /// The request and its batch.
    pub layout: &'a Layout<'a>,
    /// The texts of the batch that are run.
    pub texts: Range<usize>,
    /// Where it begins.
    pub start: Start<'a>,
    /// The keys and values of earlier tokens; those of the run's own tokens are appended. With `None`, every text
    /// begins at position 0.
    pub cache: Option<&'a mut KvCache<D>>,
    /// For each text of the batch, the cache's text that it continues. With `None`, text i continues text i.
    pub texts_in_cache: Option<&'a [usize]>,
    /// Sees every value that the run computes, up to the last one that it wants.
    pub watch: Option<&'a dyn Watch<D>>,
}

impl<D: Device> std::fmt::Debug for Run<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("texts", &self.texts).field("start", &self.start).finish_non_exhaustive()
    }
}

impl<'a, D: Device> Run<'a, D> {
    /// A run over some texts of a batch that begins at the token ids, without a cache.
    pub fn new(layout: &'a Layout<'a>, texts: Range<usize>) -> Run<'a, D> {
        Run { layout, texts, start: Start::Tokens, cache: None, texts_in_cache: None, watch: None }
    }
}

/// Runs some texts of a batch through the model. Applies the request's edits, records its taps into `sink`, and stops
/// when all of them are recorded. `sink` must be made for the same request and batch. `progress` receives the number of
/// finished blocks.
///
/// # Errors
/// [`RunError`] when the request does not fit, or the device or the sink fails.
pub async fn forward<D: Device>(
    dev: &D,
    params: &Params<D>,
    run: Run<'_, D>,
    sink: &mut dyn Sink,
    progress: Option<Progress<'_>>,
) -> Result<(), RunError> {
    forward_with(dev, params, run, sink, progress).await
}

/// [`forward`] with the weights of another device, whose type of weights is the same.
pub(crate) async fn forward_with<D: Device, P: Device<Weight = D::Weight>>(
    dev: &D,
    params: &Params<P>,
    run: Run<'_, D>,
    sink: &mut dyn Sink,
    progress: Option<Progress<'_>>,
) -> Result<(), RunError> {
    let Run { layout, texts, start, cache, texts_in_cache, watch } = run;
    let part = layout.batch().part(texts.clone());
    check_size(dev, params, &part, layout.hooks())?;
    let first = start.first_site();
    if let Some(site) = layout.hooks().touched().into_iter().find(|site| *site < first) {
        return Err(HookError::BeforeStart { site: site.name() }.into());
    }
    let mut recorder = Recorder::new(layout, texts.clone(), sink, progress).watched(watch);
    let texts_in_cache = match texts_in_cache {
        Some(all) => all[texts.clone()].to_vec(),
        None => texts.clone().collect(),
    };
    let mut pass = Pass { dev, params, config: params.config(), batch: &part, texts_in_cache, cache };
    let ended = match pass.run(start, &mut recorder).await {
        Ok(()) | Err(End::Done) => recorder.finish(dev).await.map_err(End::from),
        failed => failed,
    };
    match ended {
        Ok(()) | Err(End::Done) => Ok(()),
        Err(End::Failed(e)) => Err(e),
    }
}

/// Elements per token of the widest tensor that a kernel binds as a whole.
fn widest(config: &Config, hooks: &Hooks) -> usize {
    let by_head = hooks.touched().iter().any(|site| matches!(site, Site::Result(_)));
    (3 * config.n_embd).max(config.n_inner).max(if by_head { config.n_head * config.n_embd } else { 0 })
}

/// The most tokens that one run may have on this device. A larger batch runs group by group.
pub fn max_tokens<D: Device>(dev: &D, config: &Config, hooks: &Hooks) -> usize {
    dev.tensor_limits().whole / widest(config, hooks)
}

/// Refuses, before anything is computed, a run with a tensor that is larger than the device allows.
///
/// # Errors
/// [`RunError::TooLarge`].
pub fn check_size<D: Device, P: Device<Weight = D::Weight>>(
    dev: &D,
    params: &Params<P>,
    batch: &Batch,
    hooks: &Hooks,
) -> Result<(), RunError> {
    let (limits, config, n_pos) = (dev.tensor_limits(), params.config(), batch.n_pos());
    let check = |what: &str, elements: usize, most: usize| {
        if elements <= most {
            return Ok(());
        }
        let (what, bytes, most) = (what.into(), 4 * elements as u64, 4 * most as u64);
        Err(RunError::TooLarge { what, tokens: n_pos, bytes, most })
    };
    check("activations", batch.ids().len() * widest(config, hooks), limits.whole)?;
    let touched = hooks.touched();
    if touched.iter().any(|site| site.is_square()) {
        let n_keys = (0..batch.texts().len()).map(|text| batch.n_keys(text)).max().unwrap_or(0);
        check("attention scores", config.n_head * n_pos * n_keys, limits.whole)?;
    }
    if touched.contains(&Site::Unembed) {
        let most = if params.has_unembedding_bias() { limits.whole } else { limits.in_parts };
        check("logits", n_pos * config.vocab_size, most)?;
    }
    Ok(())
}

fn heads(config: &Config, layer: usize) -> Heads {
    Heads { n_head: config.n_head, scale: config.attn_scale(layer) }
}

/// What every step of one forward pass uses.
struct Pass<'a, D: Device, P: Device<Weight = D::Weight>> {
    dev: &'a D,
    params: &'a Params<P>,
    config: &'a Config,
    batch: &'a Batch,
    /// The cache's index of each text of the batch.
    texts_in_cache: Vec<usize>,
    cache: Option<&'a mut KvCache<D>>,
}

impl<D: Device, P: Device<Weight = D::Weight>> Pass<'_, D, P> {
    async fn run(&mut self, start: Start<'_>, hooks: &mut Recorder<'_, D>) -> Result<(), End> {
        let (dev, params, config) = (self.dev, self.params, self.config);
        let uploaded = |values: &[f32]| dev.upload([values.len() / config.n_embd, config.n_embd], values.to_vec());
        let (first, mut x) = match start {
            Start::Stream { layer, values } => (layer, uploaded(values)),
            Start::Tokens => {
                (0, self.embed(dev.embed(params.wte(dev).await?, self.batch.ids().to_vec()), hooks).await?)
            }
            Start::Embeddings(values) => (0, self.embed(uploaded(values), hooks).await?),
        };
        for layer in first..config.n_layer {
            x = self.block(layer, x, hooks).await?;
            hooks.boundary(dev).await?;
        }
        let sites = [Site::LnFinalScale, Site::LnFinalNormalized, Site::LnFinalOut];
        let x = self.norm(params.ln_f(dev).await?, &x, sites, hooks).await?;
        // Some texts at a time: the logits of a whole batch can be larger than any buffer.
        for texts in self.logits_together(hooks) {
            let rows = texts.iter().flat_map(|(_, rows)| rows.iter().map(|rows| (0, rows.clone()))).collect();
            let logits = params.logits(dev, &self.gathered(&x, rows)).await?;
            hooks.argmax(dev, texts[0].0, texts.len(), &logits);
            let (mut first, is_alone, is_wanted) = (0, texts.len() == 1, hooks.wants(Site::Unembed));
            for (text, rows) in texts.into_iter().filter(|_| is_wanted) {
                let end = first + rows.iter().map(ExactSizeIterator::len).sum::<usize>();
                let of_text =
                    if is_alone { logits.clone() } else { dev.gather_rows(&[&logits], vec![(0, first..end)]) };
                hooks.at_text(dev, Site::Unembed, text, of_text).await?;
                first = end;
            }
            hooks.boundary(dev).await?;
        }
        Ok(())
    }

    /// The texts whose logits are computed, each with its rows: several together while the device reads the table once
    /// for all of their rows.
    fn logits_together(&self, hooks: &Recorder<'_, D>) -> Vec<Vec<(usize, Vec<Range<usize>>)>> {
        let (mut together, mut n_rows) = (Vec::<Vec<_>>::new(), 0);
        for (i, text) in self.batch.texts().iter().enumerate() {
            let rows = hooks.logits_of(i).unwrap_or_else(|| vec![0..text.len()]);
            let rows: Vec<_> = rows.into_iter().map(|rows| text.start + rows.start..text.start + rows.end).collect();
            let n = rows.iter().map(ExactSizeIterator::len).sum::<usize>();
            n_rows += n;
            match together.last_mut() {
                _ if n == 0 => {}
                Some(last) if n_rows <= self.dev.logit_rows_per_pass() => last.push((i, rows)),
                _ => {
                    together.push(vec![(i, rows)]);
                    n_rows = n;
                }
            }
        }
        together
    }

    /// Some rows of a tensor; the tensor itself if they are all of its rows.
    fn gathered(&self, x: &D::Tensor, rows: Vec<(usize, Range<usize>)>) -> D::Tensor {
        if rows == [(0, 0..self.dev.shape(x)[0])] { x.clone() } else { self.dev.gather_rows(&[x], rows) }
    }

    async fn embed(&self, tokens: D::Tensor, hooks: &mut Recorder<'_, D>) -> Result<D::Tensor, End> {
        let (dev, params) = (self.dev, self.params);
        let tokens = hooks.at(dev, Site::Embed, tokens).await?;
        let positions = dev.embed(params.wpe(dev).await?, self.batch.positions().to_vec());
        let positions = hooks.at(dev, Site::PosEmbed, positions).await?;
        Ok(dev.add(&tokens, &positions))
    }

    async fn block(&mut self, l: usize, x: D::Tensor, hooks: &mut Recorder<'_, D>) -> Result<D::Tensor, End> {
        let dev = self.dev;
        let w = self.params.block(dev, l).await?;
        let x = hooks.at(dev, Site::ResidPre(l), x).await?;
        let x = self.attention(l, w, &x, hooks).await?;
        let x = hooks.at(dev, Site::ResidMid(l), x).await?;
        let x = self.mlp(l, w, &x, hooks).await?;
        Ok(hooks.at(dev, Site::ResidPost(l), x).await?)
    }

    /// LayerNorm: fused in one kernel, or in several if a site in between is requested.
    async fn norm(
        &self,
        w: &Biased<D::Weight>,
        x: &D::Tensor,
        [scale_site, normalized_site, out_site]: [Site; 3],
        hooks: &mut Recorder<'_, D>,
    ) -> Result<D::Tensor, Stop> {
        let (dev, eps) = (self.dev, self.config.layer_norm_epsilon);
        let out = if hooks.wants(scale_site) || hooks.wants(normalized_site) {
            let scale = hooks.at(dev, scale_site, dev.layer_norm_scale(x, eps)).await?;
            let normalized = hooks.at(dev, normalized_site, dev.layer_norm_normalize(x, &scale)).await?;
            dev.gain_bias(&normalized, &w.weight, &w.bias)
        } else {
            dev.layer_norm(x, &w.weight, &w.bias, eps)
        };
        hooks.at(dev, out_site, out).await
    }

    /// A product with the result of LayerNorm, and the activation function if there is one: one operation, or several
    /// if a site in between is requested.
    async fn linear_of_norm(
        &self,
        (norm, w): (&Biased<D::Weight>, &Biased<D::Weight>),
        x: &D::Tensor,
        f: Option<Activation>,
        sites: [Site; 3],
        hooks: &mut Recorder<'_, D>,
    ) -> Result<D::Tensor, Stop> {
        let dev = self.dev;
        if !sites.iter().any(|site| hooks.wants(*site)) {
            let eps = self.config.layer_norm_epsilon;
            return Ok(dev.linear_of_norm(x, &norm.weight, &norm.bias, &w.weight, &w.bias, eps, f));
        }
        let normed = self.norm(norm, x, sites, hooks).await?;
        Ok(match f {
            Some(f) => dev.linear_activation(&normed, &w.weight, &w.bias, f),
            None => dev.linear(&normed, &w.weight, &w.bias),
        })
    }

    /// `x + attn(ln_1(x))`. Attention is one fused kernel that never stores the pattern. If scores or pattern are
    /// requested, it runs in steps, and the recorded pattern is the tensor that multiplies v. Likewise, the output
    /// projection runs head by head if `hook_result` is requested.
    async fn attention(
        &mut self,
        l: usize,
        w: &Block<D::Weight>,
        x: &D::Tensor,
        hooks: &mut Recorder<'_, D>,
    ) -> Result<D::Tensor, Stop> {
        let (dev, heads) = (self.dev, heads(self.config, l));
        let sites = [Site::Ln1Scale(l), Site::Ln1Normalized(l), Site::Ln1Out(l)];
        let qkv = self.linear_of_norm((&w.ln_1, &w.c_attn), x, None, sites, hooks).await?;
        let qkv = hooks.at_each(dev, [Site::Q(l), Site::K(l), Site::V(l)], qkv).await?;
        let texts = self.queries();
        let cache = self.cache.as_mut().map(|cache| &mut cache.layers[l]).map(|cache| {
            dev.append(cache, &qkv, &texts);
            &*cache
        });
        let z = if hooks.wants(Site::AttnScores(l)) || hooks.wants(Site::Pattern(l)) {
            let mut of_texts = Vec::with_capacity(texts.len());
            for (i, text) in texts.into_iter().enumerate() {
                let scores = dev.attention_scores(&qkv, cache, text.clone(), heads);
                let scores = hooks.at_text(dev, Site::AttnScores(l), i, scores).await?;
                let pattern = hooks.at_text(dev, Site::Pattern(l), i, dev.attention_pattern(&scores)).await?;
                of_texts.push(dev.attention_mix(&pattern, &qkv, cache, text, heads));
            }
            hooks.stop_after(Site::Pattern(l))?;
            match of_texts.as_slice() {
                [one] => one.clone(),
                all => {
                    let rows = |(i, z): (usize, &D::Tensor)| (i, 0..dev.shape(z)[0]);
                    dev.gather_rows(&all.iter().collect::<Vec<_>>(), all.iter().enumerate().map(rows).collect())
                }
            }
        } else {
            dev.attention(&qkv, cache, texts, heads)
        };
        let z = hooks.at(dev, Site::Z(l), z).await?;
        let w = &w.attn_c_proj;
        if hooks.wants(Site::Result(l)) {
            let n_head = heads.n_head;
            let parts = hooks.at(dev, Site::Result(l), dev.linear_by_head(&z, &w.weight, n_head)).await?;
            let out = hooks.at(dev, Site::AttnOut(l), dev.sum_heads(&parts, &w.bias, n_head)).await?;
            return Ok(dev.add(x, &out));
        }
        self.add_projection(x, &z, w, Site::AttnOut(l), hooks).await
    }

    /// The texts as ranges of queries and keys for attention.
    fn queries(&self) -> Vec<Queries> {
        let query = |(i, rows): (usize, &Range<usize>)| Queries {
            rows: rows.clone(),
            text: self.texts_in_cache[i],
            n_keys: self.batch.n_keys(i),
        };
        self.batch.texts().iter().enumerate().map(query).collect()
    }

    /// `x + mlp(ln_2(x))`.
    async fn mlp(
        &self,
        l: usize,
        w: &Block<D::Weight>,
        x: &D::Tensor,
        hooks: &mut Recorder<'_, D>,
    ) -> Result<D::Tensor, Stop> {
        let (dev, f) = (self.dev, self.config.activation);
        let sites = [Site::Ln2Scale(l), Site::Ln2Normalized(l), Site::Ln2Out(l)];
        let post = if hooks.wants(Site::MlpPre(l)) {
            let pre = self.linear_of_norm((&w.ln_2, &w.c_fc), x, None, sites, hooks).await?;
            dev.activation(&hooks.at(dev, Site::MlpPre(l), pre).await?, f)
        } else {
            self.linear_of_norm((&w.ln_2, &w.c_fc), x, Some(f), sites, hooks).await?
        };
        let post = hooks.at(dev, Site::MlpPost(l), post).await?;
        self.add_projection(x, &post, &w.mlp_c_proj, Site::MlpOut(l), hooks).await
    }

    /// `x + y . w + bias`, fused in one kernel unless the added value itself is requested.
    async fn add_projection(
        &self,
        x: &D::Tensor,
        y: &D::Tensor,
        w: &Biased<D::Weight>,
        added: Site,
        hooks: &mut Recorder<'_, D>,
    ) -> Result<D::Tensor, Stop> {
        let dev = self.dev;
        if hooks.wants(added) {
            let out = hooks.at(dev, added, dev.linear(y, &w.weight, &w.bias)).await?;
            return Ok(dev.add(x, &out));
        }
        Ok(dev.linear_add(x, y, &w.weight, &w.bias))
    }
}
