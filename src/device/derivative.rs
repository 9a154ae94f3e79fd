//! The derivative of every operation of the forward pass: it takes the gradient with respect to the result and returns the
//! gradients with respect to the tensors. There are no gradients with respect to weights. Owns which operations compute a
//! derivative, and which operands and results of the forward pass they read. `tape.rs` keeps those and calls the derivatives.
//! Derivatives of products need no operations of their own: that of `linear` is `unembed` with the same weight, and that of
//! `unembed` is a `linear_by_head` of one head.
//! Read next: `tape.rs`.

use super::{Change, Device, Op, Operations, RowsOf};
use std::ops::Range;

/// A gradient with respect to some rows of a tensor. In the other rows it is zero.
#[derive(Clone, Debug)]
pub(crate) struct Gradient<T> {
    /// The rows, ascending and not empty.
    pub rows: Vec<Range<usize>>,
    /// One row for each of these rows.
    pub values: T,
}

impl<T: Clone> Gradient<T> {
    /// A gradient with respect to all `n_rows` rows of a tensor.
    pub(super) fn all(n_rows: usize, values: T) -> Gradient<T> {
        Gradient { rows: vec![0..n_rows], values }
    }

    fn n_rows(&self) -> usize {
        self.rows.iter().map(ExactSizeIterator::len).sum()
    }

    /// True if it is by all rows of a tensor.
    pub(super) fn is_all(&self, n_rows: usize) -> bool {
        self.rows == [0..n_rows]
    }

    /// The same gradient with respect to more rows, zero where it has none.
    pub(super) fn by<D: Device<Tensor = T>>(&self, dev: &D, rows: &[Range<usize>]) -> Gradient<T> {
        if self.rows == rows {
            return self.clone();
        }
        let missing = rows.iter().map(ExactSizeIterator::len).sum::<usize>() - self.n_rows();
        let cols = dev.shape(&self.values)[1];
        let zeros = dev.upload([missing, cols], dev.host_memory().zeros(missing * cols));
        let (mut parts, mut own, mut zero): (Vec<RowsOf>, usize, usize) = (Vec::new(), 0, 0);
        for row in rows.iter().flat_map(Range::clone) {
            let is_own = self.rows.iter().any(|rows| rows.contains(&row));
            let (of, next) = if is_own { (0, &mut own) } else { (1, &mut zero) };
            match parts.last_mut() {
                Some((last, rows)) if *last == of && rows.end == *next => rows.end += 1,
                _ => parts.push((of, *next..*next + 1)),
            }
            *next += 1;
        }
        Gradient { rows: rows.to_vec(), values: dev.gather_rows(&[&self.values, &zeros], parts) }
    }

    /// The sum of gradients with respect to the same tensor, added in the order of the list. `None` for an empty list.
    pub(super) fn sum<D: Device<Tensor = T>>(dev: &D, list: Vec<Gradient<T>>) -> Option<Gradient<T>> {
        let mut sums: Vec<Gradient<T>> = Vec::new();
        for gradient in list {
            match sums.iter_mut().find(|sum| sum.rows == gradient.rows) {
                Some(sum) => sum.values = dev.add(&sum.values, &gradient.values),
                None => sums.push(gradient),
            }
        }
        if sums.len() <= 1 {
            return sums.pop();
        }
        let mut rows: Vec<(Range<usize>, usize, usize)> = Vec::new();
        for (n, sum) in sums.iter().enumerate() {
            let mut before = 0;
            for range in &sum.rows {
                rows.push((range.clone(), n, before));
                before += range.len();
            }
        }
        rows.sort_unstable_by_key(|(range, ..)| range.start);
        let union = union(rows.iter().map(|(range, ..)| range.clone()));
        if rows.windows(2).all(|pair| pair[0].0.end <= pair[1].0.start) {
            let parts = rows.iter().map(|(range, n, before)| (*n, *before..before + range.len())).collect();
            let values: Vec<&T> = sums.iter().map(|sum| &sum.values).collect();
            return Some(Gradient { rows: union, values: dev.gather_rows(&values, parts) });
        }
        let whole = sums.iter().map(|sum| sum.by(dev, &union).values);
        let values = whole.reduce(|a, b| dev.add(&a, &b)).expect("two or more");
        Some(Gradient { rows: union, values })
    }
}

/// Ranges in ascending order, joined where they touch or overlap.
fn union(ranges: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// The pattern of the operations that only gradients use. They have no derivative.
macro_rules! of_gradients {
    () => {
        Op::LayerNormGradient { .. }
            | Op::LayerNormScaleGradient {}
            | Op::LayerNormNormalizeScaleGradient {}
            | Op::GainBiasGradient {}
            | Op::LinearByHeadGradient { .. }
            | Op::SumHeadsGradient { .. }
            | Op::ActivationGradient { .. }
            | Op::AttentionPatternGradient {}
            | Op::AttentionMixGradient { .. }
            | Op::AttentionMixValuesGradient { .. }
            | Op::AttentionScoresGradient { .. }
    };
}

/// What the derivative of an operation reads, in addition to the weights and the gradient with respect to the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reads {
    /// The indices of the tensors that it reads.
    pub(super) tensors: &'static [usize],
    /// True if it reads the operation's result.
    pub(super) result: bool,
}

/// An operation of the forward pass, with what its derivative reads.
pub(super) struct Done<'a, D: Device> {
    pub(super) op: &'a Op,
    /// The tensors of [`Reads::tensors`].
    pub(super) tensors: &'a [D::Tensor],
    pub(super) weights: &'a [D::Weight],
    /// The result, if [`Reads::result`].
    pub(super) result: Option<&'a D::Tensor>,
    /// The gradient with respect to the result.
    pub(super) dy: &'a D::Tensor,
}

impl Op {
    /// What the derivative reads.
    pub(super) fn derivative_reads(&self) -> Reads {
        let (tensors, result): (&[usize], bool) = match self {
            Op::LayerNorm { .. } | Op::Attention { .. } | Op::AttentionScores { .. } | Op::Activation { .. } => {
                (&[0], false)
            }
            Op::LayerNormScale { .. } => (&[0], true),
            Op::LayerNormNormalize {} => (&[1], true),
            Op::AttentionPattern {} => (&[], true),
            Op::AttentionMix { .. } => (&[0, 1], false),
            Op::Embed { .. }
            | Op::GainBias {}
            | Op::Linear {}
            | Op::LinearAdd {}
            | Op::LinearByHead { .. }
            | Op::SumHeads { .. }
            | Op::Add {}
            | Op::Unembed {}
            | Op::Argmax {}
            | Op::GatherRows { .. }
            | Op::Edit { .. } => (&[], false),
            // These are never on a tape: it records fused products in steps, and only forward passes.
            Op::LinearActivation { .. } | Op::LinearOfNorm { .. } => (&[], false),
            of_gradients!() => (&[], false),
        };
        Reads { tensors, result }
    }

    /// True if a row of the result depends on the same row of each tensor and on no other, so that a gradient with respect to some rows
    /// needs only these rows.
    pub(super) fn is_row_wise(&self) -> bool {
        match self {
            Op::LayerNorm { .. }
            | Op::LayerNormScale { .. }
            | Op::LayerNormNormalize {}
            | Op::GainBias {}
            | Op::Linear {}
            | Op::LinearAdd {}
            | Op::LinearByHead { .. }
            | Op::SumHeads { .. }
            | Op::AttentionPattern {}
            | Op::Activation { .. }
            | Op::Add {}
            | Op::Unembed {} => true,
            // Attention and gathering combine different rows, and the window of an edit counts all rows.
            Op::Attention { .. }
            | Op::AttentionScores { .. }
            | Op::AttentionMix { .. }
            | Op::GatherRows { .. }
            | Op::Edit { .. } => false,
            // These have no gradient, or a tape records their steps.
            Op::Embed { .. }
            | Op::LinearActivation { .. }
            | Op::LinearOfNorm { .. }
            | Op::Argmax {}
            | of_gradients!() => false,
        }
    }
}

impl<D: Device> Done<'_, D> {
    /// The gradients with respect to the operation's tensors, each with the tensor's index. A tensor may have several; their sum is its
    /// gradient. For an operation that [`Op::is_row_wise`], `tensors`, `result` and `dy` may have only some of the rows.
    pub(super) fn gradients(&self, dev: &D) -> Vec<(usize, Gradient<D::Tensor>)> {
        let Done { op, tensors: x, weights: w, result, dy } = *self;
        let n_rows = dev.shape(dy)[0];
        let of = |operand, values| (operand, Gradient::all(n_rows, values));
        match op {
            // Token ids are no tensor, and the choice of a token has no gradient.
            Op::Embed { .. } | Op::Argmax {} => Vec::new(),
            Op::LayerNorm { eps } => vec![of(0, dev.layer_norm_gradient(&x[0], dy, &w[0], *eps))],
            Op::LayerNormScale { .. } => {
                vec![of(0, dev.layer_norm_scale_gradient(&x[0], result.expect("it reads the result"), dy))]
            }
            Op::LayerNormNormalize {} => {
                let y = result.expect("it reads the result");
                vec![
                    of(0, dev.layer_norm_normalize(dy, &x[0])),
                    of(1, dev.layer_norm_normalize_scale_gradient(y, &x[0], dy)),
                ]
            }
            Op::GainBias {} => vec![of(0, dev.gain_bias_gradient(dy, &w[0]))],
            Op::Linear {} => vec![of(0, dev.unembed(dy, &w[0]))],
            Op::LinearAdd {} => vec![of(0, dy.clone()), of(1, dev.unembed(dy, &w[0]))],
            Op::LinearByHead { n_head } => vec![of(0, dev.linear_by_head_gradient(dy, &w[0], *n_head))],
            Op::SumHeads { n_head } => vec![of(0, dev.sum_heads_gradient(dy, *n_head))],
            Op::Attention { texts, heads } => {
                let qkv = &x[0];
                let of_text = |text: &super::Queries| {
                    let scores = dev.attention_scores(qkv, None, text.clone(), *heads);
                    let pattern = dev.attention_pattern(&scores);
                    let dz = if text.rows == (0..n_rows) {
                        dy.clone()
                    } else {
                        dev.gather_rows(&[dy], vec![(0, text.rows.clone())])
                    };
                    let dpattern = dev.attention_mix_gradient(&dz, qkv, text.clone(), *heads);
                    let dscores = dev.attention_pattern_gradient(&pattern, &dpattern);
                    let by_values = dev.attention_mix_values_gradient(&pattern, &dz, text.clone(), *heads);
                    let by_scores = dev.attention_scores_gradient(&dscores, qkv, text.clone(), *heads);
                    (0, Gradient { rows: vec![text.rows.clone()], values: dev.add(&by_values, &by_scores) })
                };
                texts.iter().filter(|text| !text.rows.is_empty()).map(of_text).collect()
            }
            Op::AttentionScores { text, heads } => {
                let values = dev.attention_scores_gradient(dy, &x[0], text.clone(), *heads);
                vec![(0, Gradient { rows: vec![text.rows.clone()], values })]
            }
            Op::AttentionPattern {} => {
                vec![of(0, dev.attention_pattern_gradient(result.expect("it reads the result"), dy))]
            }
            Op::AttentionMix { text, heads } => {
                let dpattern = dev.attention_mix_gradient(dy, &x[1], text.clone(), *heads);
                let values = dev.attention_mix_values_gradient(&x[0], dy, text.clone(), *heads);
                let by_pattern = Gradient::all(dev.shape(&dpattern)[0], dpattern);
                vec![(0, by_pattern), (1, Gradient { rows: vec![text.rows.clone()], values })]
            }
            Op::Activation { f } => vec![of(0, dev.activation_gradient(&x[0], dy, *f))],
            Op::Add {} => vec![of(0, dy.clone()), of(1, dy.clone())],
            Op::Unembed {} => vec![of(0, dev.linear_by_head(dy, &w[0], 1))],
            Op::GatherRows { parts } => {
                let mut before = 0;
                let part = |(of, rows): &RowsOf| {
                    let from = before..before + rows.len();
                    before = from.end;
                    let values = if from == (0..n_rows) { dy.clone() } else { dev.gather_rows(&[dy], vec![(0, from)]) };
                    (*of, Gradient { rows: vec![rows.clone()], values })
                };
                parts.iter().filter(|(_, rows)| !rows.is_empty()).map(part).collect()
            }
            Op::Edit { window, change } => vec![match change {
                Change::Add(_) => of(0, dy.clone()),
                Change::Scale(factor) => of(0, dev.edit(dy, window.clone(), Change::Scale(*factor))),
                // The new value does not depend on the value that it replaces.
                Change::Zero | Change::Replace(_) => of(0, dev.edit(dy, window.clone(), Change::Zero)),
            }],
            Op::LinearActivation { .. } | Op::LinearOfNorm { .. } => unreachable!("a tape records its steps"),
            // A tape records forward passes only. Gradients are computed on the device that it wraps.
            of_gradients!() => unreachable!("{} is no step of a forward pass", op.kind().name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::reference::{Reference, Tensor};
    use crate::device::tape::Tape;
    use crate::device::{Activation, Heads, OpKind, Operands, Queries, Window};
    use std::collections::BTreeSet;

    /// Numbers between -1 and 1 (splitmix64).
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        }

        fn tensor(&mut self, shape: [usize; 2]) -> Tensor {
            Tensor::of(shape, (0..shape[0] * shape[1]).map(|_| self.next()).collect())
        }
    }

    type Shapes = Vec<[usize; 2]>;

    /// Every operation of a forward pass, with the shapes of its tensors and weights.
    fn operations() -> Vec<(Op, Shapes, Shapes)> {
        let heads = Heads { n_head: 2, scale: 0.6 };
        let (text, texts) = (Queries::whole(2..6), vec![Queries::whole(0..2), Queries::whole(2..6)]);
        let window = Window { rows: vec![0..1, 2..4], cols: vec![1..3] };
        let mut list = vec![
            (Op::LayerNorm { eps: 1e-2 }, vec![[3, 7]], vec![[1, 7], [1, 7]]),
            (Op::LayerNormScale { eps: 1e-2 }, vec![[3, 7]], vec![]),
            (Op::LayerNormNormalize {}, vec![[3, 7], [3, 1]], vec![]),
            (Op::GainBias {}, vec![[3, 7]], vec![[1, 7], [1, 7]]),
            (Op::Linear {}, vec![[3, 4]], vec![[4, 5], [1, 5]]),
            (Op::LinearAdd {}, vec![[3, 5], [3, 4]], vec![[4, 5], [1, 5]]),
            (Op::LinearOfNorm { eps: 1e-2, f: None }, vec![[3, 4]], vec![[1, 4], [1, 4], [4, 5], [1, 5]]),
            (Op::LinearByHead { n_head: 2 }, vec![[3, 4]], vec![[4, 5]]),
            (Op::SumHeads { n_head: 2 }, vec![[3, 10]], vec![[1, 5]]),
            (Op::Attention { texts, heads }, vec![[6, 12]], vec![]),
            (Op::AttentionScores { text: text.clone(), heads }, vec![[6, 12]], vec![]),
            (Op::AttentionPattern {}, vec![[8, 4]], vec![]),
            (Op::AttentionMix { text, heads }, vec![[8, 4], [6, 12]], vec![]),
            (Op::Add {}, vec![[3, 4], [3, 4]], vec![]),
            (Op::Unembed {}, vec![[3, 4]], vec![[5, 4]]),
            (Op::GatherRows { parts: vec![(1, 1..3), (0, 0..2), (1, 2..3)] }, vec![[2, 3], [3, 3]], vec![]),
        ];
        for f in Activation::ALL {
            list.push((Op::Activation { f }, vec![[3, 40]], vec![]));
            list.push((Op::LinearActivation { f }, vec![[3, 4]], vec![[4, 5], [1, 5]]));
            let weights = vec![[1, 4], [1, 4], [4, 5], [1, 5]];
            list.push((Op::LinearOfNorm { eps: 1e-2, f: Some(f) }, vec![[3, 4]], weights));
        }
        for change in [Change::Zero, Change::Scale(-2.5), Change::Add(vec![0.5; 6]), Change::Replace(vec![0.5; 2])] {
            list.push((Op::Edit { window: window.clone(), change }, vec![[4, 4]], vec![]));
        }
        list
    }

    /// The gradients of `sum(dy * op(x))` by every tensor, from a tape.
    fn gradients(op: &Op, x: &[Tensor], w: &[Tensor], rows: Vec<Range<usize>>, dy: Tensor) -> Vec<Vec<f64>> {
        let dev = Reference::default();
        let tape = Tape::new(&dev);
        let (mut on_tape, mut places) = (Vec::new(), Vec::new());
        for x in x {
            let mut x = tape.given(x.clone());
            places.push(tape.watch(&mut x));
            on_tape.push(x);
        }
        let mut y = tape.run(op, Operands::new(&on_tape.iter().collect::<Vec<_>>(), &w.iter().collect::<Vec<_>>()));
        let place = tape.watch(&mut y);
        let mut back = tape.backward();
        back.seed(place, rows, dy);
        let mut found = vec![Vec::new(); x.len()];
        while let Some(step) = back.step() {
            if let Some(n) = places.iter().position(|place| *place == step.node) {
                found[n] = back.whole(step.gradient, step.shape).values().to_vec();
            }
        }
        found
    }

    fn by_differences(op: &Op, x: &[Tensor], w: &[Tensor], dy: &Tensor) -> Vec<Vec<f64>> {
        const STEP: f64 = 1e-5;
        let dev = Reference::default();
        let weights: Vec<&Tensor> = w.iter().collect();
        let sum = |x: &[Tensor]| -> f64 {
            let y = dev.run(op, Operands::new(&x.iter().collect::<Vec<_>>(), &weights));
            y.values().iter().zip(dy.values()).filter(|(y, _)| **y > -1e30).map(|(y, dy)| y * dy).sum()
        };
        let moved = |which: usize, place: usize, by: f64| {
            let mut x = x.to_vec();
            let mut values = x[which].values().to_vec();
            values[place] += by;
            x[which] = Tensor::of(dev.shape(&x[which]), values);
            sum(&x)
        };
        let slope = |which, place| (moved(which, place, STEP) - moved(which, place, -STEP)) / (2.0 * STEP);
        (0..x.len()).map(|which| (0..x[which].values().len()).map(|place| slope(which, place)).collect()).collect()
    }

    /// What a central difference may be off: STEP² / 6 times the third derivative, which is some 100 for LayerNorms of rows
    /// with a small variance, so 2e-9. Rounding adds 1e-16 / STEP.
    const WITHIN: f64 = 1e-8;

    /// This test was seen to fail: with a LayerNorm whose divisor is constant (off by 0.3), and with a pattern's gradient without
    /// its mean (off by 0.2).
    #[test]
    fn derivatives_are_central_differences() {
        let mut kinds = BTreeSet::new();
        for (n, (op, tensors, weights)) in operations().into_iter().enumerate() {
            kinds.insert(op.kind());
            for round in 0..20 {
                let mut numbers = Numbers(1000 * n as u64 + round);
                let mut x: Vec<Tensor> = tensors.iter().map(|shape| numbers.tensor(*shape)).collect();
                if op == (Op::LayerNormNormalize {}) {
                    x[1] = Tensor::of([3, 1], vec![0.7, 1.3, 2.1]);
                }
                let w: Vec<Tensor> = weights.iter().map(|shape| numbers.tensor(*shape)).collect();
                let shape = op.result_shape(&tensors, &weights);
                let mut dy = numbers.tensor(shape);
                let seen = |row: usize, key: usize| key <= row % 4;
                if matches!(op, Op::AttentionScores { .. }) {
                    // Masked scores are marks, not numbers.
                    let values = dy.values().iter().enumerate();
                    let values = values.map(|(i, v)| if seen(i / 4, i % 4) { *v } else { 0.0 });
                    dy = Tensor::of(shape, values.collect());
                }
                let expected = by_differences(&op, &x, &w, &dy);
                let got = gradients(&op, &x, &w, vec![0..shape[0]], dy.clone());
                for (operand, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
                        let hidden = matches!(op, Op::AttentionMix { .. }) && operand == 0 && !seen(i / 4, i % 4);
                        let expected = if hidden { 0.0 } else { *expected };
                        assert!(
                            (got - expected).abs() <= WITHIN,
                            "{op:?}: operand {operand}, {i}: {got}, not {expected}"
                        );
                    }
                }
            }
        }
        let all = OpKind::ALL.iter().take_while(|kind| **kind != OpKind::LayerNormGradient);
        assert_eq!(
            kinds,
            all.filter(|kind| ![OpKind::Embed, OpKind::Argmax].contains(kind)).copied().collect(),
            "every operation with tensors"
        );
    }

    /// A gradient with respect to some rows is that by all rows, zero in the others.
    #[test]
    fn some_rows_are_enough() {
        for (op, tensors, weights) in operations() {
            let mut numbers = Numbers(7);
            let x: Vec<Tensor> = tensors.iter().map(|shape| numbers.tensor(*shape)).collect();
            let w: Vec<Tensor> = weights.iter().map(|shape| numbers.tensor(*shape)).collect();
            let [rows, cols] = op.result_shape(&tensors, &weights);
            let some = numbers.tensor([2, cols]);
            let (first, last) = some.values().split_at(cols);
            let whole = [first, &vec![0.0; (rows - 2) * cols], last].concat();
            let of_some = gradients(&op, &x, &w, vec![0..1, rows - 1..rows], some.clone());
            assert_eq!(of_some, gradients(&op, &x, &w, vec![0..rows], Tensor::of([rows, cols], whole)), "{op:?}");
        }
    }

    #[test]
    fn gradients_of_overlapping_rows_add_up() {
        let dev = Reference::default();
        let one = |rows: Vec<Range<usize>>, values: &[f64]| Gradient {
            rows,
            values: Tensor::of([values.len(), 1], values.to_vec()),
        };
        let sum = |list| Gradient::sum(&dev, list).map(|sum| (sum.rows, sum.values.values().to_vec()));
        let apart = sum(vec![one(vec![4..6], &[5.0, 6.0]), one(vec![0..1, 2..3], &[1.0, 3.0])]);
        assert_eq!(apart, Some((vec![0..1, 2..3, 4..6], vec![1.0, 3.0, 5.0, 6.0])));
        let over = sum(vec![one(vec![0..3], &[1.0, 2.0, 3.0]), one(vec![1..2], &[10.0]), one(vec![0..3], &[0.5; 3])]);
        assert_eq!(over, Some((vec![0..3], vec![1.5, 12.5, 3.5])));
        assert_eq!(sum(vec![]), None);
    }
}
