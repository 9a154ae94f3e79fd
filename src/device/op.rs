//! An operation of the device trait as a value: what it is called, its parameters, and how any device carries it out. The
//! trait itself stays the one list of operations; this is its twin for whoever treats all of them alike: the cases of
//! `verify`, and the devices that wrap another ([`wrap_device!`]). Owns no arithmetic.
//! Read next: `lockstep.rs`, a device made of two.

use super::{Activation, Device, Edit, Heads, Window};
use std::ops::Range;

/// One operation with everything it is told besides tensors and weights.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // each is the method of `Device` that has its name
pub enum Op {
    Embed { ids: Vec<u32> },
    LayerNorm { eps: f64 },
    LayerNormScale { eps: f64 },
    LayerNormNormalize,
    GainBias,
    Linear,
    LinearActivation(Activation),
    LinearAdd,
    LinearByHead { n_head: usize },
    SumHeads { n_head: usize },
    Attention { texts: Vec<Range<usize>>, heads: Heads },
    AttentionScores { text: Range<usize>, heads: Heads },
    AttentionPattern,
    AttentionMix { text: Range<usize>, heads: Heads },
    Activation(Activation),
    Add,
    Unembed { rows: Range<usize> },
    Edit { window: Window, edit: Edit },
}

impl Op {
    /// The name of its method, which is the stem of its kernel too.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::LayerNorm { .. } => "layer_norm",
            Op::LayerNormScale { .. } => "layer_norm_scale",
            Op::LayerNormNormalize => "layer_norm_normalize",
            Op::GainBias => "gain_bias",
            Op::Linear => "linear",
            Op::LinearActivation(_) => "linear_activation",
            Op::LinearAdd => "linear_add",
            Op::LinearByHead { .. } => "linear_by_head",
            Op::SumHeads { .. } => "sum_heads",
            Op::Attention { .. } => "attention",
            Op::AttentionScores { .. } => "attention_scores",
            Op::AttentionPattern => "attention_pattern",
            Op::AttentionMix { .. } => "attention_mix",
            Op::Activation(_) => "activation",
            Op::Add => "add",
            Op::Unembed { .. } => "unembed",
            Op::Edit { .. } => "edit",
        }
    }

    /// Carries out an operation that makes a new tensor, from tensors and weights in the order of its method.
    ///
    /// # Panics
    /// For the two that change a tensor in place: those are [`Op::change`]'s.
    pub fn make<D: Device>(&self, dev: &D, x: &[&D::Tensor], w: &[&D::Weight]) -> D::Tensor {
        match self {
            Op::Embed { ids } => dev.embed(w[0], ids),
            Op::LayerNorm { eps } => dev.layer_norm(x[0], w[0], w[1], *eps),
            Op::LayerNormScale { eps } => dev.layer_norm_scale(x[0], *eps),
            Op::LayerNormNormalize => dev.layer_norm_normalize(x[0], x[1]),
            Op::GainBias => dev.gain_bias(x[0], w[0], w[1]),
            Op::Linear => dev.linear(x[0], w[0], w[1]),
            Op::LinearActivation(f) => dev.linear_activation(x[0], w[0], w[1], *f),
            Op::LinearAdd => dev.linear_add(x[0], x[1], w[0], w[1]),
            Op::LinearByHead { n_head } => dev.linear_by_head(x[0], w[0], *n_head),
            Op::SumHeads { n_head } => dev.sum_heads(x[0], w[0], *n_head),
            Op::Attention { texts, heads } => dev.attention(x[0], texts, *heads),
            Op::AttentionScores { text, heads } => dev.attention_scores(x[0], text.clone(), *heads),
            Op::AttentionPattern => dev.attention_pattern(x[0]),
            Op::Activation(f) => dev.activation(x[0], *f),
            Op::Add => dev.add(x[0], x[1]),
            Op::Unembed { rows } => dev.unembed(x[0], rows.clone(), w[0]),
            Op::AttentionMix { .. } | Op::Edit { .. } => panic!("{} changes a tensor in place", self.name()),
        }
    }

    /// Carries out an operation that changes `y` in place.
    ///
    /// # Panics
    /// For those that make a new tensor: those are [`Op::make`]'s.
    pub fn change<D: Device>(&self, dev: &D, x: &[&D::Tensor], y: &mut D::Tensor) {
        match self {
            Op::AttentionMix { text, heads } => dev.attention_mix(x[0], x[1], text.clone(), *heads, y),
            Op::Edit { window, edit } => dev.edit(y, window, edit),
            _ => panic!("{} makes a new tensor", self.name()),
        }
    }

    /// True for those that [`Op::change`] carries out.
    pub fn is_change(&self) -> bool {
        matches!(self, Op::AttentionMix { .. } | Op::Edit { .. })
    }
}

/// Writes the operations of an `impl Device` that treats all of them alike: through `self.make(op, tensors, weights)`, which
/// gives a tensor, and `self.change(op, tensors, tensor)`.
#[macro_export]
macro_rules! wrap_device {
    () => {
        fn embed(&self, table: &Self::Weight, ids: &[u32]) -> Self::Tensor {
            self.make(&$crate::device::Op::Embed { ids: ids.to_vec() }, &[], &[table])
        }
        fn layer_norm(&self, x: &Self::Tensor, gain: &Self::Weight, bias: &Self::Weight, eps: f64) -> Self::Tensor {
            self.make(&$crate::device::Op::LayerNorm { eps }, &[x], &[gain, bias])
        }
        fn layer_norm_scale(&self, x: &Self::Tensor, eps: f64) -> Self::Tensor {
            self.make(&$crate::device::Op::LayerNormScale { eps }, &[x], &[])
        }
        fn layer_norm_normalize(&self, x: &Self::Tensor, scale: &Self::Tensor) -> Self::Tensor {
            self.make(&$crate::device::Op::LayerNormNormalize, &[x, scale], &[])
        }
        fn gain_bias(&self, x: &Self::Tensor, gain: &Self::Weight, bias: &Self::Weight) -> Self::Tensor {
            self.make(&$crate::device::Op::GainBias, &[x], &[gain, bias])
        }
        fn linear(&self, x: &Self::Tensor, w: &Self::Weight, bias: &Self::Weight) -> Self::Tensor {
            self.make(&$crate::device::Op::Linear, &[x], &[w, bias])
        }
        fn linear_activation(
            &self,
            x: &Self::Tensor,
            w: &Self::Weight,
            bias: &Self::Weight,
            f: $crate::device::Activation,
        ) -> Self::Tensor {
            self.make(&$crate::device::Op::LinearActivation(f), &[x], &[w, bias])
        }
        fn linear_add(
            &self,
            a: &Self::Tensor,
            x: &Self::Tensor,
            w: &Self::Weight,
            bias: &Self::Weight,
        ) -> Self::Tensor {
            self.make(&$crate::device::Op::LinearAdd, &[a, x], &[w, bias])
        }
        fn linear_by_head(&self, z: &Self::Tensor, w: &Self::Weight, n_head: usize) -> Self::Tensor {
            self.make(&$crate::device::Op::LinearByHead { n_head }, &[z], &[w])
        }
        fn sum_heads(&self, parts: &Self::Tensor, bias: &Self::Weight, n_head: usize) -> Self::Tensor {
            self.make(&$crate::device::Op::SumHeads { n_head }, &[parts], &[bias])
        }
        fn attention(
            &self,
            qkv: &Self::Tensor,
            texts: &[std::ops::Range<usize>],
            heads: $crate::device::Heads,
        ) -> Self::Tensor {
            self.make(&$crate::device::Op::Attention { texts: texts.to_vec(), heads }, &[qkv], &[])
        }
        fn attention_scores(
            &self,
            qkv: &Self::Tensor,
            text: std::ops::Range<usize>,
            heads: $crate::device::Heads,
        ) -> Self::Tensor {
            self.make(&$crate::device::Op::AttentionScores { text, heads }, &[qkv], &[])
        }
        fn attention_pattern(&self, scores: &Self::Tensor) -> Self::Tensor {
            self.make(&$crate::device::Op::AttentionPattern, &[scores], &[])
        }
        fn attention_mix(
            &self,
            pattern: &Self::Tensor,
            qkv: &Self::Tensor,
            text: std::ops::Range<usize>,
            heads: $crate::device::Heads,
            z: &mut Self::Tensor,
        ) {
            self.change(&$crate::device::Op::AttentionMix { text, heads }, &[pattern, qkv], z)
        }
        fn activation(&self, x: &Self::Tensor, f: $crate::device::Activation) -> Self::Tensor {
            self.make(&$crate::device::Op::Activation(f), &[x], &[])
        }
        fn add(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor {
            self.make(&$crate::device::Op::Add, &[a, b], &[])
        }
        fn unembed(&self, x: &Self::Tensor, rows: std::ops::Range<usize>, table: &Self::Weight) -> Self::Tensor {
            self.make(&$crate::device::Op::Unembed { rows }, &[x], &[table])
        }
        fn edit(&self, x: &mut Self::Tensor, window: &$crate::device::Window, edit: &$crate::device::Edit) {
            let op = $crate::device::Op::Edit { window: window.clone(), edit: edit.clone() };
            self.change(&op, &[], x)
        }
    };
}
