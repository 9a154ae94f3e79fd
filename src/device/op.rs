//! The operations of the forward pass and of gradients. Each is described once, in a row of the table at the end of this
//! file: its name, its parameters, its operands and the shape of its result. Macros make from the table the enum [`Op`],
//! its names and shapes, and the trait [`Operations`], whose methods the forward pass calls. Every method calls
//! [`Device::run`]. In a backend that is one `match` over [`Op`], so an operation that a backend lacks does not compile.
//! Read next: `reference.rs`, where each operation is a plain loop; `lockstep.rs`, a device made of two.

use super::{Activation, Change, Device, Heads, Window};
use std::ops::Range;

/// The operands of one operation. All of them belong to the device that runs it.
pub struct Operands<'a, D: Device + ?Sized> {
    /// The tensors, in the order of the table.
    pub tensors: &'a [&'a D::Tensor],
    /// The weights, in the order of the table.
    pub weights: &'a [&'a D::Weight],
    /// The cache that holds the keys and values of attention. `None` if they are columns of the same tensor as the queries.
    pub cache: Option<&'a D::Cache>,
}

impl<'a, D: Device + ?Sized> Operands<'a, D> {
    /// Tensors and weights, without a cache.
    pub fn new(tensors: &'a [&'a D::Tensor], weights: &'a [&'a D::Weight]) -> Operands<'a, D> {
        Operands { tensors, weights, cache: None }
    }
}

impl<D: Device + ?Sized> Clone for Operands<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device + ?Sized> Copy for Operands<'_, D> {}

impl<D: Device + ?Sized> std::fmt::Debug for Operands<'_, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operands").field("tensors", &self.tensors.len()).field("weights", &self.weights.len()).finish()
    }
}

/// What a product does with each of its sums before it stores it.
#[derive(Debug)]
pub(crate) enum Epilogue<'a, T> {
    /// Nothing.
    None,
    /// Applies an activation function.
    Activation(Activation),
    /// Adds a tensor of the same shape.
    Add(&'a T),
}

impl<T> Clone for Epilogue<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Epilogue<'_, T> {}

/// The queries of one text: the rows of the tensor that hold them, and the text of a cache that holds their keys and
/// values. The queries are the last positions of that text. With `n` keys, query `i` of `m` has position `n - m + i` and
/// sees the keys up to that position. Without a cache there are as many keys as queries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queries {
    /// Rows of the tensor [T, 3D].
    pub rows: Range<usize>,
    /// The number of the text in the cache. Ignored without a cache.
    pub text: usize,
    /// Number of keys.
    pub n_keys: usize,
}

impl Queries {
    /// The rows of a text that runs whole, so that it has as many keys as queries.
    pub fn whole(rows: Range<usize>) -> Queries {
        Queries { n_keys: rows.len(), rows, text: 0 }
    }

    /// The position of the first query.
    pub fn first_position(&self) -> usize {
        self.n_keys - self.rows.len()
    }
}

/// The number of columns of logits that [`Op::Argmax`] summarises together.
pub const LOGITS_CHUNK: usize = 1024;

/// Rows to gather: the number of the tensor, and its rows.
pub type RowsOf = (usize, Range<usize>);

/// Binds the names of the operands in a row of the table to the elements of a slice.
macro_rules! bind {
    ($name:expr, $slice:expr, [$($operand:ident),*]) => {
        let &[$($operand),*] = $slice else { panic!("{} takes {} operands, not {}", $name, (&[$(stringify!($operand)),*] as &[&str]).len(), $slice.len()) };
    };
    ($name:expr, $slice:expr, [$operands:ident ..]) => {
        let $operands = $slice;
    };
}

/// Makes the method of [`Operations`] for a row of the table.
macro_rules! method {
    ($(#[$doc:meta])* $variant:ident $method:ident [$($tensor:ident),*] [$($weight:ident),*] {$($field:ident: $type:ty),*} cache) => {
        $(#[$doc])*
        fn $method(&self, $($tensor: &Self::Tensor,)* cache: Option<&Self::Cache>, $($field: $type),*) -> Self::Tensor {
            self.run(&Op::$variant { $($field),* }, Operands { tensors: &[$($tensor),*], weights: &[], cache })
        }
    };
    ($(#[$doc:meta])* $variant:ident $method:ident [$($tensor:ident),*] [$($weight:ident),*] {$($field:ident: $type:ty),*}) => {
        $(#[$doc])*
        fn $method(&self, $($tensor: &Self::Tensor,)* $($weight: &Self::Weight,)* $($field: $type),*) -> Self::Tensor {
            self.run(&Op::$variant { $($field),* }, Operands::new(&[$($tensor),*], &[$($weight),*]))
        }
    };
    ($(#[$doc:meta])* $variant:ident $method:ident [$tensors:ident ..] [] {$($field:ident: $type:ty),*}) => {
        $(#[$doc])*
        fn $method(&self, $tensors: &[&Self::Tensor], $($field: $type),*) -> Self::Tensor {
            self.run(&Op::$variant { $($field),* }, Operands::new($tensors, &[]))
        }
    };
}

macro_rules! operations {
    ($($(#[$doc:meta])* $variant:ident $method:ident $tensors:tt $weights:tt $fields:tt $($cache:ident)? => $shape:expr;)*) => {
        operations!(@enum $($(#[$doc])* $variant $fields)*);

        /// An operation without its parameters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "each is the operation of the same name")]
        pub enum OpKind { $($variant),* }

        impl OpKind {
            /// Every operation, in the order of the table.
            pub const ALL: &[OpKind] = &[$(OpKind::$variant),*];

            /// The name in messages, which is the name of the method. Kernels are named after it too.
            pub fn name(self) -> &'static str {
                match self { $(OpKind::$variant => stringify!($method)),* }
            }
        }

        impl Op {
            /// Which operation this is.
            pub fn kind(&self) -> OpKind {
                match self { $(Op::$variant { .. } => OpKind::$variant),* }
            }

            /// The shape of the result, from the shapes of the tensors and of the weights.
            ///
            /// # Panics
            /// If the number of operands is not that of the table.
            #[allow(unused_variables, reason = "most shapes need only some of the operands")]
            pub fn result_shape(&self, tensors: &[[usize; 2]], weights: &[[usize; 2]]) -> [usize; 2] {
                operations!(@shapes self, tensors, weights, $($variant $method $tensors $weights $fields => $shape;)*)
            }
        }

        /// The operations as methods. Each calls [`Device::run`] with its [`Op`].
        #[allow(clippy::too_many_arguments, reason = "one for each operand and parameter of a row")]
        pub trait Operations: Device {
            $(method! { $(#[$doc])* $variant $method $tensors $weights $fields $($cache)? })*
        }

        impl<D: Device + ?Sized> Operations for D {}
    };
    (@enum $($(#[$doc:meta])* $variant:ident {$($field:ident: $type:ty),*})*) => {
        /// One operation with its parameters, which are all its inputs except the operands.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "the operation's documentation names its parameters")]
        pub enum Op { $($(#[$doc])* $variant { $($field: $type),* }),* }
    };
    (@shapes $self:ident, $x:ident, $w:ident, $($variant:ident $method:ident $tensors:tt $weights:tt {$($field:ident: $type:ty),*} => $shape:expr;)*) => {
        match $self {
            $(Op::$variant { $($field),* } => {
                bind!(stringify!($method), $x, $tensors);
                bind!(stringify!($method), $w, $weights);
                $shape
            })*
        }
    };
}

// Each row is one operation: documentation, variant of `Op`, method, [tensors], [weights], {parameters}, the word `cache` if keys
// and values may come from one, and after `=>` the shape of the result. In that shape, the name of an operand stands for the
// operand's shape [rows, cols].
operations! {
    /// `y[t] = table[ids[t]]`: table [N, D] -> [T, D].
    Embed embed [] [table] {ids: Vec<u32>} => [ids.len(), table[1]];

    /// `(x - mean) / sqrt(var + eps) * gain + bias` per row of x [T, D], with the biased variance -> [T, D].
    LayerNorm layer_norm [x] [gain, bias] {eps: f64} => x;

    /// `sqrt(var + eps)` per row: [T, D] -> [T, 1].
    LayerNormScale layer_norm_scale [x] [] {eps: f64} => [x[0], 1];

    /// `(x - mean) / scale` per row: x [T, D], scale [T, 1] -> [T, D].
    LayerNormNormalize layer_norm_normalize [x, scale] [] {} => x;

    /// `x * gain + bias` per column: [T, D] -> [T, D].
    GainBias gain_bias [x] [gain, bias] {} => x;

    /// `x . w + bias`: x [T, K], w [K, N] as Conv1D stores it, bias [1, N] -> [T, N].
    Linear linear [x] [w, bias] {} => [x[0], w[1]];

    /// `f(x . w + bias)`: `linear` with the activation function as its epilogue.
    LinearActivation linear_activation [x] [w, bias] {f: Activation} => [x[0], w[1]];

    /// `a + x . w + bias`: `linear` with a sum as its epilogue; a [T, N].
    LinearAdd linear_add [a, x] [w, bias] {} => [x[0], w[1]];

    /// `f(layer_norm(x) . w + bias)`, with `f` only if there is one: a product with LayerNorm as its prologue. x [T, K],
    /// gain and shift [1, K] -> [T, N].
    LinearOfNorm linear_of_norm [x] [gain, shift, w, bias] {eps: f64, f: Option<Activation>} => [x[0], w[1]];

    /// Each head's own part of `z . w`: z [T, H d], w [H d, N] -> [T, H N], head by head.
    LinearByHead linear_by_head [z] [w] {n_head: usize} => [z[0], n_head * w[1]];

    /// The parts of `linear_by_head` added up, plus bias: [T, H N] -> [T, N].
    SumHeads sum_heads [parts] [bias] {n_head: usize} => [parts[0], bias[1]];

    /// Causal softmax attention of every text: qkv [T, 3D] -> z [T, D]. The pattern is never stored. Rows of z that belong to
    /// no text have arbitrary values.
    Attention attention [qkv] [] {texts: Vec<Queries>, heads: Heads} cache => [qkv[0], qkv[1] / 3];

    /// `scale * q . k` of one text of Q queries and K keys, [`super::MASKED`] where the key comes after the query:
    /// qkv [T, 3D] -> [H Q, K].
    AttentionScores attention_scores [qkv] [] {text: Queries, heads: Heads} cache => [heads.n_head * text.rows.len(), text.n_keys];

    /// Softmax of every row.
    AttentionPattern attention_pattern [scores] [] {} => scores;

    /// `pattern . v` of one text, head by head: pattern [H Q, K], qkv [T, 3D] -> [Q, D].
    AttentionMix attention_mix [pattern, qkv] [] {text: Queries, heads: Heads} cache => [text.rows.len(), qkv[1] / 3];

    /// The activation function, element by element.
    Activation activation [x] [] {f: Activation} => x;

    /// `a + b`, element by element.
    Add add [a, b] [] {} => a;

    /// `x . tableᵀ`: x [T, D], table [V, D] -> [T, V].
    Unembed unembed [x] [table] {} => [x[0], table[0]];

    /// Summarises logits [T, V] for the choice of the likeliest token. Every [`LOGITS_CHUNK`] columns become three: the
    /// largest value, its column (the first of equal ones), and the sum of `e^(value - largest)`. A value below
    /// [`super::MASKED`] counts as [`super::MASKED`]. The sum is NaN if a value is NaN or positive infinity.
    Argmax argmax [logits] [] {} => [logits[0], 3 * logits[1].div_ceil(LOGITS_CHUNK)];

    /// The listed rows of the tensors, in the order of the list. A row may be listed more than once. All tensors have the same
    /// number of columns.
    GatherRows gather_rows [x ..] [] {parts: Vec<RowsOf>} => [parts.iter().map(|(_, rows)| rows.len()).sum(), x[0][1]];

    /// A copy of x in which the values of a window are changed.
    Edit edit [x] [] {window: Window, change: Change} => x;

    // The operations of gradients. `dy` is the gradient with respect to the result of the operation whose name the row's name begins
    // with. `derivative.rs` composes the derivative of each operation from these operations and those above.

    /// The gradient of `layer_norm` with respect to x: dy [T, D] -> [T, D].
    LayerNormGradient layer_norm_gradient [x, dy] [gain] {eps: f64} => x;

    /// The gradient of `layer_norm_scale` with respect to x: `(x - mean) / (D scale) * dscale`, dscale [T, 1] -> [T, D].
    LayerNormScaleGradient layer_norm_scale_gradient [x, scale, dscale] [] {} => x;

    /// The gradient of `layer_norm_normalize` with respect to its scale: `-sum(y dy) / scale` per row, where y is its result -> [T, 1].
    /// Its gradient with respect to x needs no operation of its own: it is `layer_norm_normalize` of dy.
    LayerNormNormalizeScaleGradient layer_norm_normalize_scale_gradient [y, scale, dy] [] {} => scale;

    /// `dy * gain` per column: the gradient of `gain_bias` with respect to x.
    GainBiasGradient gain_bias_gradient [dy] [gain] {} => dy;

    /// The gradient of `linear_by_head` with respect to z: each head's columns of dy times its rows of w, transposed: dy [T, H N],
    /// w [H d, N] -> [T, H d].
    LinearByHeadGradient linear_by_head_gradient [dy] [w] {n_head: usize} => [dy[0], w[0]];

    /// Each row repeated `n_head` times, side by side, which is the gradient of `sum_heads`: [T, N] -> [T, H N].
    SumHeadsGradient sum_heads_gradient [dy] [] {n_head: usize} => [dy[0], n_head * dy[1]];

    /// `f'(x) * dy`, element by element.
    ActivationGradient activation_gradient [x, dy] [] {f: Activation} => x;

    /// The gradient of `attention_pattern` with respect to the scores, from the pattern: `p (dp - sum(p dp))` per row.
    AttentionPatternGradient attention_pattern_gradient [pattern, dy] [] {} => pattern;

    /// The gradient of `attention_mix` with respect to the pattern: `dz . v` of one text that runs whole, head by head, and 0 where
    /// the key comes after the query: dz [Q, D], qkv [T, 3D] -> [H Q, Q].
    AttentionMixGradient attention_mix_gradient [dz, qkv] [] {text: Queries, heads: Heads}
        => [heads.n_head * text.rows.len(), text.n_keys];

    /// The gradient of `attention_mix` with respect to the rows of qkv of the text: `patternᵀ . dz` in the columns of the values, 0 in
    /// the others: pattern [H Q, Q], dz [Q, D] -> [Q, 3D].
    AttentionMixValuesGradient attention_mix_values_gradient [pattern, dz] [] {text: Queries, heads: Heads} => [dz[0], 3 * dz[1]];

    /// The gradient of `attention_scores` with respect to the rows of qkv of the text: `scale * dscores . k` in the columns of the
    /// queries, `scale * dscoresᵀ . q` in those of the keys, 0 in the others: dscores [H Q, Q], qkv [T, 3D] -> [Q, 3D].
    AttentionScoresGradient attention_scores_gradient [dscores, qkv] [] {text: Queries, heads: Heads}
        => [text.rows.len(), qkv[1]];
}
