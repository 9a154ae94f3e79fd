//! A head's circuits, from its weights alone and for any text (Elhage et al. 2021, "A Mathematical Framework for Transformer
//! Circuits"). The OV circuit says which tokens a head makes likelier when it attends to a token, the QK circuit which tokens attend
//! to which. Owns [`circuit`] and its results: the largest entries between tokens, singular directions read as tokens, eigenvalues,
//! and the composition with other heads.
//!
//! A circuit is a product of two factors, [n, d] and [d, n], and is never multiplied out: norms, singular values and eigenvalues come
//! from matrices [d, d], and the [V, V] entries between tokens are computed a few rows at a time. Sums are f64. Biases are left out,
//! and so is LayerNorm unless it is folded into the weights.

use crate::analysis::lens::{TokenLogits, ends};
use crate::analysis::top::largest;
use crate::analysis::weights;
use crate::model::checkpoint::{Checkpoint, WeightsError};
use crate::session::{AnalysisError, Error};
use crate::text::named;
use ndarray::{Array2, ArrayView2, Axis, Ix3};
use rayon::prelude::*;
use thiserror::Error as ThisError;

/// A circuit that cannot be computed.
#[derive(Debug, ThisError)]
pub enum CircuitError {
    /// The head does not exist.
    #[error("head {layer}.{head} does not exist: the model has layers 0 to {} with heads 0 to {}", n_layer - 1, n_head - 1)]
    Head {
        /// The layer as given.
        layer: usize,
        /// The head as given.
        head: usize,
        /// Blocks of the model.
        n_layer: usize,
        /// Heads of a block.
        n_head: usize,
    },
    /// Weights are NaN or infinite, or too large for their products.
    #[error(
        "the {what} of head {layer}.{head} have no {of}: the weights hold a NaN or an infinity, or values too large for f64"
    )]
    Decomposition {
        /// Which factors.
        what: &'static str,
        /// What was to be computed.
        of: &'static str,
        /// The layer.
        layer: usize,
        /// The head.
        head: usize,
    },
}

impl AnalysisError for CircuitError {
    fn is_request(&self) -> bool {
        matches!(self, CircuitError::Head { .. })
    }
}

/// Which circuit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CircuitKind {
    /// `W_V W_O`, between embedding and unembedding: from the attended token to the tokens that it makes likelier.
    #[default]
    Ov,
    /// `W_Q W_K^T`, between embeddings: from the query's token to the attended token.
    Qk,
}

named!(CircuitKind: "ov" Ov, "qk" Qk);

/// An entry of a circuit between tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The attended token (OV), or the query's token (QK).
    pub from: u32,
    /// The token that becomes likelier (OV), or the attended token (QK).
    pub to: u32,
    /// The entry.
    pub value: f64,
}

/// A singular direction of a circuit within the residual stream. The common sign of both sides is arbitrary.
#[derive(Clone, Debug)]
pub struct SingularDirection {
    /// The singular value.
    pub value: f64,
    /// The direction that is read, `[n_embd]`, of length 1.
    pub left: Vec<f64>,
    /// The direction that is written (OV), or read from the attended token (QK), `[n_embd]`, of length 1.
    pub right: Vec<f64>,
    /// The tokens whose embeddings have the largest and the smallest products with the left side.
    pub left_tokens: (TokenLogits, TokenLogits),
    /// The same for the right side; for OV with the unembedding.
    pub right_tokens: (TokenLogits, TokenLogits),
}

/// The composition of two heads: how strongly the later one reads the output of the earlier one, as the norm of the product of both
/// circuits divided by the product of their norms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Composition {
    /// The other head's layer.
    pub layer: usize,
    /// The other head's number in its layer.
    pub head: usize,
    /// Composition through the later head's queries.
    pub q: f64,
    /// Composition through the later head's keys.
    pub k: f64,
    /// Composition through the later head's values.
    pub v: f64,
}

/// The results for one circuit of a head.
#[derive(Clone, Debug)]
pub struct Circuit {
    /// The largest entries between tokens, largest first.
    pub pairs: Vec<Pair>,
    /// All singular directions, largest first; only the first few have tokens.
    pub directions: Vec<SingularDirection>,
    /// The eigenvalues of the circuit between tokens that can differ from 0: real and imaginary parts, largest first.
    pub eigenvalues: Vec<[f64; 2]>,
    /// The sum of the eigenvalues divided by the sum of their magnitudes: near 1 for heads that copy tokens.
    pub score: f64,
    /// The composition with earlier heads, whose output this head reads.
    pub reads: Vec<Composition>,
    /// The composition with later heads, which read this head's output.
    pub writes: Vec<Composition>,
}

/// How many results are computed.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// Entries between tokens.
    pub pairs: usize,
    /// Singular directions that are read as tokens.
    pub directions: usize,
    /// Tokens of each end of a direction.
    pub tokens: usize,
}

/// A product of two factors, [D, d] and [D, d] transposed.
#[derive(Clone)]
struct Factors {
    a: Array2<f64>,
    b: Array2<f64>,
}

impl Factors {
    /// The squared norm of the product.
    fn squared(&self) -> f64 {
        (self.a.t().dot(&self.a) * self.b.t().dot(&self.b)).sum()
    }

    /// The transposed product.
    fn transposed(&self) -> Factors {
        Factors { a: self.b.clone(), b: self.a.clone() }
    }

    /// The norm of this product times another, divided by the product of their norms; 0 if either is 0.
    fn composed(&self, other: &Factors) -> f64 {
        let middle = self.b.t().dot(&other.a);
        let joined = Factors { a: self.a.clone(), b: other.b.dot(&middle.t()) };
        let norms = self.squared() * other.squared();
        // Rounding may make a squared norm of 0 slightly negative.
        if norms > 0.0 { (joined.squared().max(0.0) / norms).sqrt() } else { 0.0 }
    }
}

/// The factors of the heads of one layer.
struct Layer {
    ov: Vec<Factors>,
    qk: Vec<Factors>,
}

impl Layer {
    async fn read(checkpoint: &Checkpoint, layer: usize) -> Result<Layer, WeightsError> {
        let config = checkpoint.config();
        let read = async |letter: &str| -> Result<Vec<Array2<f64>>, WeightsError> {
            let found = weights::find(&format!("blocks.{layer}.attn.W_{letter}"), config);
            let weight = found.first().expect("every layer has these");
            let values = weight.values_async(checkpoint).await?.mapv(f64::from);
            let heads = values.into_dimensionality::<Ix3>().expect("by head, [H, n, m]");
            Ok(heads.axis_iter(Axis(0)).map(|head| head.to_owned()).collect())
        };
        let pair = |(a, b): (Array2<f64>, Array2<f64>)| Factors { a, b };
        let output = read("O").await?.into_iter().map(|head| head.reversed_axes());
        let ov = read("V").await?.into_iter().zip(output).map(pair).collect();
        let qk = read("Q").await?.into_iter().zip(read("K").await?).map(pair).collect();
        Ok(Layer { ov, qk })
    }

    /// The composition of head `head` of this layer with `writer`, an earlier head.
    fn reads(&self, head: usize, writer: &Factors) -> [f64; 3] {
        let qk = &self.qk[head];
        [writer.composed(qk), writer.composed(&qk.transposed()), writer.composed(&self.ov[head])]
    }
}

/// A token table [V, D].
fn table(weight: crate::device::StoredWeight) -> Array2<f64> {
    Array2::from_shape_vec((weight.rows, weight.cols), weight.to_f64()).expect("a weight has rows times columns values")
}

/// Analyses one circuit of a head. The weights are used as the checkpoint has them. Processed weights ([`Checkpoint::processed`])
/// contain LayerNorm's gain.
///
/// # Errors
/// [`Error::Weights`], or [`CircuitError`] for a head that does not exist and for weights that are NaN or
/// infinite.
pub async fn circuit_async(
    checkpoint: &Checkpoint,
    (layer, head): (usize, usize),
    kind: CircuitKind,
    depth: Depth,
) -> Result<Circuit, Error> {
    let config = checkpoint.config();
    let (n_layer, n_head) = (config.n_layer, config.n_head);
    if layer >= n_layer || head >= n_head {
        return Err(CircuitError::Head { layer, head, n_layer, n_head }.into());
    }
    let own = Layer::read(checkpoint, layer).await?;
    let (factors, what) = match kind {
        CircuitKind::Ov => (&own.ov[head], "values and outputs"),
        CircuitKind::Qk => (&own.qk[head], "queries and keys"),
    };
    let embedding = table(checkpoint.tensor_async("wte.weight").await?);
    let untied = if kind == CircuitKind::Ov && checkpoint.is_untied_async().await? {
        Some(table(checkpoint.unembedding_async().await?))
    } else {
        None
    };
    let unembedding = untied.as_ref().unwrap_or(&embedding);
    let fail = |of| CircuitError::Decomposition { what, of, layer, head };
    // The circuit between tokens: from . to^T, [V, d] each.
    let (from, to) = (embedding.dot(&factors.a), unembedding.dot(&factors.b));
    if from.iter().chain(&to).any(|v| !v.is_finite()) {
        return Err(fail("values").into());
    }
    let mut eigenvalues = eigenvalues(&to.t().dot(&from)).ok_or_else(|| fail("eigenvalues"))?;
    eigenvalues.sort_by(|x, y| y[0].hypot(y[1]).total_cmp(&x[0].hypot(x[1])));
    let sizes: f64 = eigenvalues.iter().map(|[re, im]| re.hypot(*im)).sum();
    let score = if sizes > 0.0 { eigenvalues.iter().map(|[re, _]| re).sum::<f64>() / sizes } else { 0.0 };

    let mut directions = singular(factors).ok_or_else(|| fail("singular values"))?;
    for direction in directions.iter_mut().take(depth.directions) {
        let tokens =
            |table: &Array2<f64>, side: &[f64]| ends(&table.dot(&ndarray::aview1(side)).to_vec(), depth.tokens);
        direction.left_tokens = tokens(&embedding, &direction.left);
        direction.right_tokens = tokens(unembedding, &direction.right);
    }
    drop((untied, embedding));
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    for other in (0..n_layer).filter(|other| *other != layer) {
        let heads = Layer::read(checkpoint, other).await?;
        let found = (0..n_head).into_par_iter().map(|n| {
            let [q, k, v] = if other < layer { own.reads(head, &heads.ov[n]) } else { heads.reads(n, &own.ov[head]) };
            Composition { layer: other, head: n, q, k, v }
        });
        let list = if other < layer { &mut reads } else { &mut writes };
        list.par_extend(found);
    }
    let pairs = largest_pairs(&from, &to, depth.pairs);
    Ok(Circuit { pairs, directions, eigenvalues, score, reads, writes })
}

/// Blocking form of [`circuit_async`].
///
/// # Errors
/// As [`circuit_async`].
#[cfg(not(target_arch = "wasm32"))]
pub fn circuit(
    checkpoint: &Checkpoint,
    head: (usize, usize),
    kind: CircuitKind,
    depth: Depth,
) -> Result<Circuit, Error> {
    pollster::block_on(circuit_async(checkpoint, head, kind, depth))
}

/// The most iterations for each eigenvalue; a few are enough.
const ITERATIONS: usize = 200;

/// The eigenvalues of a square matrix. `None` if they are not found, or fail a check: their sum must be the trace, and the sum of
/// their squares the trace of the squared matrix.
fn eigenvalues(matrix: &Array2<f64>) -> Option<Vec<[f64; 2]>> {
    let n = matrix.nrows();
    let norm = matrix.mapv(|v| v * v).sum().sqrt();
    if norm == 0.0 {
        return Some(vec![[0.0; 2]; n]);
    }
    let scaled = nalgebra::DMatrix::from_fn(n, n, |i, j| matrix[[i, j]] / norm);
    let found = nalgebra::Schur::try_new(scaled.clone(), f64::EPSILON, ITERATIONS * n)?.complex_eigenvalues();
    let (sum, squares) = found.iter().fold((0.0, 0.0), |(sum, squares), v| (sum + v.re, squares + (v * v).re));
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-9;
    let right = near(sum, scaled.trace()) && near(squares, (&scaled * &scaled).trace());
    right.then(|| found.iter().map(|v| [v.re * norm, v.im * norm]).collect())
}

/// `U S V^T` of a matrix [m, n], m >= n: S largest first; a column of U is 0 where S is.
struct Svd {
    u: Array2<f64>,
    s: Vec<f64>,
    v: Array2<f64>,
}

impl Svd {
    /// One-sided Jacobi (Hestenes 1958): pairs of columns are rotated until all are orthogonal. Small singular values are as exact as
    /// large ones. `None` if values are NaN or infinite, or if it does not converge.
    fn of(matrix: Array2<f64>) -> Option<Svd> {
        const SWEEPS: usize = 60;
        let n = matrix.ncols();
        // Columns are stored as rows, so that each is contiguous.
        let (mut columns, mut v) = (matrix.reversed_axes().as_standard_layout().into_owned(), Array2::<f64>::eye(n));
        let mut turned = true;
        for _ in 0..SWEEPS {
            if !std::mem::take(&mut turned) {
                break;
            }
            for (p, q) in (0..n).flat_map(|p| (p + 1..n).map(move |q| (p, q))) {
                let (a, b) = (columns.row(p), columns.row(q));
                let (of_a, of_b, both) = (a.dot(&a), b.dot(&b), a.dot(&b));
                // Orthogonal up to rounding.
                if both.abs() <= 1e-15 * (of_a * of_b).sqrt() {
                    continue;
                }
                turned = true;
                let zeta = (of_b - of_a) / (2.0 * both);
                let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                for matrix in [&mut columns, &mut v] {
                    let (mut first, second) = matrix.multi_slice_mut((ndarray::s![p, ..], ndarray::s![q, ..]));
                    ndarray::Zip::from(&mut first).and(second).for_each(|x, y| {
                        (*x, *y) = (cosine * (*x - tangent * *y), cosine * (*y + tangent * *x));
                    });
                }
            }
        }
        let sizes: Vec<f64> = columns.rows().into_iter().map(|column| column.dot(&column).sqrt()).collect();
        if turned || sizes.iter().any(|size| !size.is_finite()) {
            return None;
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|i, j| sizes[*j].total_cmp(&sizes[*i]));
        let mut u = columns.select(Axis(0), &order).reversed_axes();
        let s: Vec<f64> = order.iter().map(|i| sizes[*i]).collect();
        for (mut column, size) in u.columns_mut().into_iter().zip(&s) {
            column.mapv_inplace(|x| if *size > 0.0 { x / size } else { 0.0 });
        }
        Some(Svd { u, s, v: v.select(Axis(0), &order).reversed_axes() })
    }
}

/// The singular directions of a product of factors `a b^T`: with `a = U_a S_a V_a^T`, and `b` alike, those of
/// `S_a V_a^T V_b S_b`, [d, d], seen through U_a and U_b.
fn singular(factors: &Factors) -> Option<Vec<SingularDirection>> {
    let (a, b) = (Svd::of(factors.a.clone())?, Svd::of(factors.b.clone())?);
    let mut middle = a.v.t().dot(&b.v);
    middle.indexed_iter_mut().for_each(|((i, j), x)| *x *= a.s[i] * b.s[j]);
    let Svd { u, s, v } = Svd::of(middle)?;
    let (left, right) = (a.u.dot(&u), b.u.dot(&v));
    let direction = |(n, value): (usize, f64)| SingularDirection {
        value,
        left: left.column(n).to_vec(),
        right: right.column(n).to_vec(),
        left_tokens: Default::default(),
        right_tokens: Default::default(),
    };
    Some(s.into_iter().enumerate().map(direction).collect())
}

/// Rows of the circuit between tokens that are computed together.
const ROWS: usize = 64;

/// The largest entries of `from . to^T`. They are found in f32 and computed again in f64.
fn largest_pairs(from: &Array2<f64>, to: &Array2<f64>, count: usize) -> Vec<Pair> {
    if count == 0 {
        return Vec::new();
    }
    let (from32, to32) = (from.mapv(|v| v as f32), to.mapv(|v| v as f32));
    let chunks: Vec<(usize, ArrayView2<'_, f32>)> =
        from32.axis_chunks_iter(Axis(0), ROWS).enumerate().map(|(n, rows)| (n * ROWS, rows)).collect();
    let of_chunk = |(first, rows): (usize, ArrayView2<'_, f32>)| -> Vec<(f32, usize, usize)> {
        let (entries, cols) = (rows.dot(&to32.t()), to32.nrows());
        let entries = entries.as_slice().expect("a product is in standard layout");
        let best = largest(entries.len(), count, |place| entries[place]).into_iter().map(|place| place as usize);
        best.map(|place| (entries[place], first + place / cols, place % cols)).collect()
    };
    let both = |mut found: Vec<(f32, usize, usize)>, other: Vec<(f32, usize, usize)>| {
        found.extend(other);
        if found.len() > count {
            found.select_nth_unstable_by(count, |a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
            found.truncate(count);
        }
        found
    };
    let found = chunks.into_par_iter().map(of_chunk).reduce(Vec::new, both);
    let pair = |(_, from_id, to_id): (f32, usize, usize)| Pair {
        from: from_id as u32,
        to: to_id as u32,
        value: from.row(from_id).dot(&to.row(to_id)),
    };
    let mut pairs: Vec<Pair> = found.into_iter().map(pair).collect();
    pairs.sort_by(|a, b| b.value.total_cmp(&a.value).then((a.from, a.to).cmp(&(b.from, b.to))));
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix of reproducible values.
    fn made(rows: usize, cols: usize, seed: usize) -> Array2<f64> {
        Array2::from_shape_fn((rows, cols), |(i, j)| (((i * 31 + j * 17 + seed * 7) * 37 % 101) as f64 - 50.0) / 20.0)
    }

    /// The product itself, whose singular values and vectors must give it back. Seen red with the sizes of the two sides exchanged.
    #[test]
    fn singular_directions_give_the_product_back() {
        let factors = Factors { a: made(12, 5, 1), b: made(12, 5, 2) };
        let whole = factors.a.dot(&factors.b.t());
        let directions = singular(&factors).unwrap();
        let mut sum = Array2::<f64>::zeros((12, 12));
        for SingularDirection { value, left, right, .. } in &directions {
            for (i, l) in left.iter().enumerate() {
                right.iter().enumerate().for_each(|(j, r)| sum[[i, j]] += value * l * r);
            }
        }
        assert!((&sum - &whole).iter().all(|d| d.abs() < 1e-12));
        assert!(directions.is_sorted_by(|a, b| a.value >= b.value) && directions.len() == 5);
        assert!((factors.squared() - whole.mapv(|v| v * v).sum()).abs() < 1e-9);
    }

    /// All ones: a matrix on which nalgebra 0.35's singular values are wrong.
    #[test]
    fn a_matrix_of_rank_one() {
        let factors = Factors { a: Array2::ones((6, 5)), b: Array2::ones((21, 5)) };
        let directions = singular(&factors).unwrap();
        assert!((directions[0].value - 5.0 * (6.0f64 * 21.0).sqrt()).abs() < 1e-12);
        assert!(directions[1..].iter().all(|direction| direction.value.abs() < 1e-12));
    }

    /// Seen red with the wrong side of the first product.
    #[test]
    fn composition_is_that_of_the_whole_matrices() {
        let (first, second) =
            (Factors { a: made(9, 3, 3), b: made(9, 3, 4) }, Factors { a: made(9, 3, 5), b: made(9, 3, 6) });
        let whole = |f: &Factors| f.a.dot(&f.b.t());
        let norm = |m: &Array2<f64>| m.mapv(|v| v * v).sum().sqrt();
        let (a, b) = (whole(&first), whole(&second));
        assert!((first.composed(&second) - norm(&a.dot(&b)) / norm(&a) / norm(&b)).abs() < 1e-12);
        let across = a.dot(&b.t());
        assert!((first.composed(&second.transposed()) - norm(&across) / norm(&a) / norm(&b)).abs() < 1e-12);
    }

    /// A head whose weights are 0 composes with nothing. Seen red without the question whether there are norms to divide by.
    #[test]
    fn a_head_of_zeros() {
        let (none, some) = (
            Factors { a: Array2::zeros((9, 3)), b: Array2::zeros((9, 3)) },
            Factors { a: made(9, 3, 1), b: made(9, 3, 2) },
        );
        assert_eq!([none.composed(&some), some.composed(&none), none.composed(&none)], [0.0; 3]);
    }

    /// Seen red with the smallest entries in place of the largest.
    #[test]
    fn pairs_and_eigenvalues() {
        let (from, to) = (made(150, 4, 7), made(150, 4, 8));
        let whole = from.dot(&to.t());
        let mut all: Vec<(f64, usize, usize)> = whole.indexed_iter().map(|((i, j), v)| (*v, i, j)).collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        for count in [9, 1_000, 150 * 150 + 1] {
            let pairs = largest_pairs(&from, &to, count);
            assert!(pairs.iter().zip(&all).all(|(pair, (value, ..))| (pair.value - value).abs() < 1e-9), "{count}");
            assert_eq!(pairs.len(), count.min(all.len()));
        }
        // The trace is the sum of the eigenvalues.
        let values = eigenvalues(&to.t().dot(&from)).unwrap();
        let trace: f64 = whole.diag().sum();
        assert!((values.iter().map(|[re, _]| re).sum::<f64>() - trace).abs() < 1e-9 * trace.abs().max(1.0));
        assert!(values.iter().map(|[_, im]| im).sum::<f64>().abs() < 1e-9);
    }
}
