//! THE forward pass. Owns the order of GPT-2's operations; everything that can be seen or changed inside is a
//! `hooks.at(...)` here. Knows the device trait and no backend.
//! Source: Radford et al. 2019, as transformers' `modeling_gpt2.py` computes it. Read next: `sites.rs` for the names,
//! `device/reference.rs` for what each operation does.
//!
//! `?` after `hooks.at` ends the run once nothing further was asked for; see [`Stop`].

use crate::device::{Device, DeviceError, Heads};
use crate::hooks::capture::Sink;
use crate::hooks::recorder::{Recorder, Stop};
use crate::hooks::request::{HookError, Hooks};
use crate::hooks::site::Site;
use crate::model::batch::Batch;
use crate::model::config::Config;
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
    /// A tensor that this device cannot have.
    #[error(
        "the {what} of {tokens} tokens take {bytes} bytes and this device holds at most {most} together; use shorter texts, or --device cpu"
    )]
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
    /// A weight could not be brought to the device.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The sink takes no more of what is recorded.
    #[error(transparent)]
    Sink(std::io::Error),
}

/// Either of the two ways a run ends early, so that `?` serves both.
enum End {
    Done,
    Failed(RunError),
}

impl From<Stop> for End {
    fn from(stop: Stop) -> End {
        match stop {
            Stop::Done => End::Done,
            Stop::Fault(e) => End::Failed(e.into()),
            Stop::Full(e) => End::Failed(RunError::Sink(e)),
        }
    }
}

impl From<LoadError> for End {
    fn from(e: LoadError) -> End {
        End::Failed(e.into())
    }
}

/// Runs some texts of a batch through the model, changes what `hooks` asks for, records into `sink`, which was made for the
/// same request and batch, and stops when all of it is had. `progress` is told the number of finished blocks.
///
/// # Errors
/// [`RunError`] when the request does not fit, or the device or the sink fails.
pub async fn forward<D: Device>(
    dev: &D,
    params: &Params<D>,
    batch: &Batch,
    texts: Range<usize>,
    hooks: &Hooks,
    sink: &mut dyn Sink,
    progress: Option<&dyn Fn(usize)>,
) -> Result<(), RunError> {
    let part = batch.part(texts.clone());
    check_size(dev, params.config(), &part, hooks)?;
    let mut recorder = Recorder::new(hooks, batch, texts, sink, progress);
    let ended = match run(dev, params, &part, &mut recorder).await {
        Ok(()) | Err(End::Done) => recorder.finish(dev).await.map_err(End::from),
        failed => failed,
    };
    match ended {
        Ok(()) | Err(End::Done) => Ok(()),
        Err(End::Failed(e)) => Err(e),
    }
}

/// Numbers per token of the widest tensor that kernels take whole.
fn widest(config: &Config, hooks: &Hooks) -> usize {
    let by_head = hooks.touched().iter().any(|site| matches!(site, Site::Result(_)));
    (3 * config.n_embd).max(config.n_inner).max(if by_head { config.n_head * config.n_embd } else { 0 })
}

/// How many tokens one run may have on this device. A batch with more is run group by group.
pub fn max_tokens<D: Device>(dev: &D, config: &Config, hooks: &Hooks) -> usize {
    dev.limits().whole / widest(config, hooks)
}

/// Says no before anything is computed where a tensor of this run is larger than the device can have.
///
/// # Errors
/// [`RunError::TooLarge`].
pub fn check_size<D: Device>(dev: &D, config: &Config, batch: &Batch, hooks: &Hooks) -> Result<(), RunError> {
    let (limits, n_pos) = (dev.limits(), batch.n_pos());
    let too_large = |what: &str, numbers: usize, most: usize| match numbers > most {
        true => Err(RunError::TooLarge {
            what: what.into(),
            tokens: n_pos,
            bytes: 4 * numbers as u64,
            most: 4 * most as u64,
        }),
        false => Ok(()),
    };
    too_large("activations", batch.ids().len() * widest(config, hooks), limits.whole)?;
    let touched = hooks.touched();
    if touched.iter().any(|site| site.is_square()) {
        too_large("attention scores", config.n_head * n_pos * n_pos, limits.whole)?;
    }
    if touched.contains(&Site::Unembed) {
        too_large("logits", n_pos * config.vocab_size, limits.in_parts)?;
    }
    Ok(())
}

async fn run<D: Device>(dev: &D, params: &Params<D>, batch: &Batch, hooks: &mut Recorder<'_, D>) -> Result<(), End> {
    let config = params.config();
    let tokens = hooks.at(dev, Site::Embed, dev.embed(params.wte(dev)?, batch.ids()))?;
    let positions = hooks.at(dev, Site::PosEmbed, dev.embed(params.wpe(dev)?, batch.positions()))?;
    let mut x = dev.add(&tokens, &positions);
    for layer in 0..config.n_layer {
        x = block(dev, config, layer, params.block(dev, layer)?, x, batch, hooks)?;
        hooks.boundary(dev).await?;
    }
    let sites = [Site::LnFinalScale, Site::LnFinalNormalized, Site::LnFinalOut];
    let x = norm(dev, config, params.ln_f(dev)?, &x, sites, hooks)?;
    // Text by text: the logits of a whole batch can be larger than any buffer.
    for (i, text) in batch.texts().iter().enumerate() {
        hooks.at_text(dev, Site::Unembed, i, dev.unembed(&x, text.clone(), params.unembedding(dev)?));
        hooks.boundary(dev).await?;
    }
    Ok(())
}

fn block<D: Device>(
    dev: &D,
    config: &Config,
    layer: usize,
    w: &Block<D::Weight>,
    x: D::Tensor,
    batch: &Batch,
    hooks: &mut Recorder<'_, D>,
) -> Result<D::Tensor, Stop> {
    let l = layer;
    let x = hooks.at(dev, Site::ResidPre(l), x)?;
    let x = attention(dev, config, l, w, &x, batch, hooks)?;
    let x = hooks.at(dev, Site::ResidMid(l), x)?;
    let x = mlp(dev, config, l, w, &x, hooks)?;
    hooks.at(dev, Site::ResidPost(l), x)
}

/// LayerNorm in one kernel, or in the steps that the sites in between need.
fn norm<D: Device>(
    dev: &D,
    config: &Config,
    w: &Biased<D::Weight>,
    x: &D::Tensor,
    [scale_site, normalized_site, out_site]: [Site; 3],
    hooks: &mut Recorder<'_, D>,
) -> Result<D::Tensor, Stop> {
    let eps = config.layer_norm_epsilon;
    let out = if hooks.wants(scale_site) || hooks.wants(normalized_site) {
        let scale = hooks.at(dev, scale_site, dev.layer_norm_scale(x, eps))?;
        let normalized = hooks.at(dev, normalized_site, dev.layer_norm_normalize(x, &scale))?;
        dev.gain_bias(&normalized, &w.weight, &w.bias)
    } else {
        dev.layer_norm(x, &w.weight, &w.bias, eps)
    };
    hooks.at(dev, out_site, out)
}

/// `x + attn(ln_1(x))`. Attention in one kernel that never stores the pattern, or, where scores or pattern are wanted, in
/// steps, so that the pattern really is what multiplies v. The same for the output projection and the heads' own parts of it.
fn attention<D: Device>(
    dev: &D,
    config: &Config,
    l: usize,
    w: &Block<D::Weight>,
    x: &D::Tensor,
    batch: &Batch,
    hooks: &mut Recorder<'_, D>,
) -> Result<D::Tensor, Stop> {
    let normed = norm(dev, config, &w.ln_1, x, [Site::Ln1Scale(l), Site::Ln1Normalized(l), Site::Ln1Out(l)], hooks)?;
    let heads = Heads { n_head: config.n_head, scale: config.attn_scale(l) };
    let qkv = dev.linear(&normed, &w.c_attn.weight, &w.c_attn.bias);
    let qkv = hooks.at_each(dev, [Site::Q(l), Site::K(l), Site::V(l)], qkv)?;
    let z = if hooks.wants(Site::AttnScores(l)) || hooks.wants(Site::Pattern(l)) {
        let mut z = dev.empty(batch.ids().len(), config.n_embd);
        for (i, text) in batch.texts().iter().enumerate() {
            let scores = hooks.at_text(dev, Site::AttnScores(l), i, dev.attention_scores(&qkv, text.clone(), heads));
            let pattern = hooks.at_text(dev, Site::Pattern(l), i, dev.attention_pattern(&scores));
            dev.attention_mix(&pattern, &qkv, text.clone(), heads, &mut z);
        }
        hooks.stop_after(Site::Pattern(l))?;
        z
    } else {
        dev.attention(&qkv, batch.texts(), heads)
    };
    let z = hooks.at(dev, Site::Z(l), z)?;
    let w = &w.attn_c_proj;
    if hooks.wants(Site::Result(l)) {
        let parts = hooks.at(dev, Site::Result(l), dev.linear_by_head(&z, &w.weight, config.n_head))?;
        let out = hooks.at(dev, Site::AttnOut(l), dev.sum_heads(&parts, &w.bias, config.n_head))?;
        return Ok(dev.add(x, &out));
    }
    add_projection(dev, x, &z, w, Site::AttnOut(l), hooks)
}

/// `x + mlp(ln_2(x))`.
fn mlp<D: Device>(
    dev: &D,
    config: &Config,
    l: usize,
    w: &Block<D::Weight>,
    x: &D::Tensor,
    hooks: &mut Recorder<'_, D>,
) -> Result<D::Tensor, Stop> {
    let normed = norm(dev, config, &w.ln_2, x, [Site::Ln2Scale(l), Site::Ln2Normalized(l), Site::Ln2Out(l)], hooks)?;
    let post = if hooks.wants(Site::MlpPre(l)) {
        let pre = hooks.at(dev, Site::MlpPre(l), dev.linear(&normed, &w.c_fc.weight, &w.c_fc.bias))?;
        dev.activation(&pre, config.activation)
    } else {
        dev.linear_activation(&normed, &w.c_fc.weight, &w.c_fc.bias, config.activation)
    };
    let post = hooks.at(dev, Site::MlpPost(l), post)?;
    add_projection(dev, x, &post, &w.mlp_c_proj, Site::MlpOut(l), hooks)
}

/// `x + y . w + bias`, in one kernel unless what is added is itself wanted.
fn add_projection<D: Device>(
    dev: &D,
    x: &D::Tensor,
    y: &D::Tensor,
    w: &Biased<D::Weight>,
    added: Site,
    hooks: &mut Recorder<'_, D>,
) -> Result<D::Tensor, Stop> {
    if hooks.wants(added) {
        let out = hooks.at(dev, added, dev.linear(y, &w.weight, &w.bias))?;
        return Ok(dev.add(x, &out));
    }
    Ok(dev.linear_add(x, y, &w.weight, &w.bias))
}
