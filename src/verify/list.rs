//! The list of cases: every operation of the device trait on awkward shapes and hostile values. Tests and `verify`
//! share this list. A new kernel variant that only some shapes select needs a case of such a shape here.
//!
//! Tolerances: inputs are of order 1 and weights of order 1/sqrt(k), so results are of order 1. The mean error of a
//! product with k = 768 is then 3.4e-7 in f32, and the largest of 10^5 errors is about six times that; ten times is
//! allowed. Where e^x follows, the error of a score of size 10 counts ten times. Each case was seen to fail on an
//! injected fault; comments give some of the errors. Read next: `cases.rs`.

use super::cases::{Case, Host, Numbers, Tested};
use crate::device::{Activation, Change, Dtype, Heads, MASKED, Op, OpKind, Queries, Window};
use std::ops::Range;

const ROWS: [usize; 7] = [1, 2, 8, 9, 63, 65, 257];
const COLS: [usize; 6] = [1, 11, 32, 33, 96, 768];
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

/// More rows than one dimension of a dispatch has workgroups.
const MANY_ROWS: usize = 65_537;

/// More elements than one dimension of a dispatch has invocations, as rows of 1,024.
const MANY: usize = 4_097;

/// A function that makes the cases of one operation.
pub type MakeCases = fn() -> Vec<Case>;

/// The cases of every operation. They are made on demand, because together they take several hundred megabytes. Upload
/// and readback come first: all other cases depend on them.
pub static OPERATIONS: &[(OpKind, MakeCases)] = &[
    (OpKind::Edit, edit),
    (OpKind::Embed, embed),
    (OpKind::LayerNorm, layer_norm),
    (OpKind::LayerNormScale, layer_norm_scale),
    (OpKind::LayerNormNormalize, layer_norm_normalize),
    (OpKind::GainBias, gain_bias),
    (OpKind::Linear, linear),
    (OpKind::LinearByHead, linear_by_head),
    (OpKind::SumHeads, sum_heads),
    (OpKind::Attention, attention),
    (OpKind::AttentionScores, attention_scores),
    (OpKind::AttentionPattern, attention_pattern),
    (OpKind::AttentionMix, attention_mix),
    (OpKind::Activation, activation),
    (OpKind::Add, add),
    (OpKind::Unembed, unembed),
    (OpKind::LinearActivation, linear_activation),
    (OpKind::LinearAdd, linear_add),
    (OpKind::GatherRows, gather_rows),
    (OpKind::LinearOfNorm, linear_of_norm),
    (OpKind::Argmax, argmax),
    (OpKind::LayerNormGradient, layer_norm_gradient),
    (OpKind::LayerNormScaleGradient, layer_norm_scale_gradient),
    (OpKind::LayerNormNormalizeScaleGradient, layer_norm_normalize_scale_gradient),
    (OpKind::GainBiasGradient, gain_bias_gradient),
    (OpKind::LinearByHeadGradient, linear_by_head_gradient),
    (OpKind::SumHeadsGradient, sum_heads_gradient),
    (OpKind::ActivationGradient, activation_gradient),
    (OpKind::AttentionPatternGradient, attention_pattern_gradient),
    (OpKind::AttentionMixGradient, attention_mix_gradient),
    (OpKind::AttentionMixValuesGradient, attention_mix_values_gradient),
    (OpKind::AttentionScoresGradient, attention_scores_gradient),
];

/// Random values. The shape is part of the seed, so that values of an earlier case left in memory cannot match by
/// chance.
fn random(rows: usize, cols: usize, scale: f32, seed: u64) -> Host {
    Host::random(rows, cols, scale, seed ^ ((rows as u64) << 40) ^ ((cols as u64) << 16))
}

fn f32(host: Host) -> (Host, Dtype) {
    (host, Dtype::F32)
}

/// A sample of `n` rows: both ends, both sides of powers of two, and an even spread.
fn some_of(n: usize) -> Vec<usize> {
    let near_powers = (4..usize::BITS).map(|bit| 1usize << bit).flat_map(|p| [p - 1, p]);
    let mut rows: Vec<usize> = near_powers.chain((0..=8).map(|i| i * (n - 1) / 8)).filter(|r| *r < n).collect();
    rows.sort_unstable();
    rows.dedup();
    rows
}

fn edit() -> Vec<Case> {
    let mut list = Vec::new();
    for (rows, cols) in [(1usize, 1usize), (5, 33), (65, 768)] {
        let mid = cols / 3..cols / 3 + cols.div_ceil(3).min(cols - cols / 3);
        let some: Vec<Range<usize>> = if rows > 4 { vec![0..1, 3..rows] } else { vec![0..rows] };
        let apart = if cols > 4 { vec![0..1, mid.end..cols - 1] } else { vec![0..cols] };
        let windows = [
            Window::all([rows, cols]),
            Window { rows: some.clone(), cols: vec![mid] },
            Window { rows: some, cols: apart },
        ];
        for window in windows {
            let one_row = Numbers(20).many(window.n_cols(), 1.0);
            let every = Numbers(21).many(window.len(), 1.0);
            for change in [
                Change::Zero,
                Change::Scale(-2.5),
                Change::Add(one_row.clone()),
                Change::Replace(one_row),
                Change::Add(every.clone()),
                Change::Replace(every),
            ] {
                let op = Op::Edit { window: window.clone(), change };
                list.push(Case::new(op, vec![random(rows, cols, 1.0, 22)], vec![]).within(1e-7, 1e-7));
            }
            // Read back in part: exact.
            let nothing = Op::Edit { window: window.clone(), change: Change::Scale(1.0) };
            let part =
                Case { looked_at: Some(window), ..Case::new(nothing, vec![random(rows, cols, 1.0, 23)], vec![]) };
            list.push(Case { of: Tested::Readback, ..part });
        }
    }
    // A masked score stays masked, whatever the factor.
    let mut x = random(5, 33, 1.0, 24);
    x.values.iter_mut().step_by(3).for_each(|v| *v = MASKED);
    let op = Op::Edit { window: x.window(), change: Change::Scale(0.5) };
    list.push(Case::new(op, vec![x], vec![]).within(1e-7, 1e-7).noted("masked scores"));
    // Read back in part, more elements than one dimension of a dispatch has invocations.
    let x = random(MANY + 1, 1025, 1.0, 24);
    let nothing = Op::Edit { window: x.window(), change: Change::Scale(1.0) };
    let looked_at = Some(Window { rows: vec![0..MANY + 1], cols: vec![1..1025] });
    list.push(Case { looked_at, of: Tested::Readback, ..Case::new(nothing, vec![x], vec![]) });
    list
}

fn embed() -> Vec<Case> {
    let mut list = Vec::new();
    for (n, cols) in [(1, 1), (3, 11), (101, 33), (300, 768)] {
        for dtype in DTYPES {
            // Exact: nothing is computed. F16 values down to subnormal ones.
            let mut table = random(n, cols, 1.0, 1);
            table.values.iter_mut().enumerate().for_each(|(i, v)| *v *= [1.0, 1e-5, 3e-7][i % 3]);
            let ids = [0, n - 1, n / 2, 0, n / 3].iter().map(|id| *id as u32).collect();
            list.push(Case::new(Op::Embed { ids }, vec![], vec![(table, dtype)]));
        }
    }
    let ids = (0..MANY_ROWS as u32).map(|i| i * 7 % 11).collect();
    list.push(Case::new(Op::Embed { ids }, vec![], vec![f32(random(11, 3, 1.0, 1))]));
    list
}

fn layer_norm() -> Vec<Case> {
    let mut list = Vec::new();
    let mut one = |rows, cols, eps, scale: f32| {
        let mut x = random(rows, cols, scale, 2);
        let (gain, bias) = (random(1, cols, 1.0, 3), random(1, cols, 1.0, 4));
        // Some dimensions in the thousands, as gpt2's residual stream has.
        let offset = |i: usize| if i % cols == 7 { 3000.0 * scale } else { 10.0 * scale };
        x.values.iter_mut().enumerate().for_each(|(i, v)| *v += offset(i));
        // Seen red: eps 1e-6 for 1e-5 is 2.3 times this at scale 1e-3 (and 3.4e5 times layer_norm_scale's).
        // The mean of cols values of size 3000 / cols has a relative error of 1e-7.
        let case = Case::new(Op::LayerNorm { eps }, vec![x], vec![f32(gain), f32(bias)]);
        list.push(case.within(2e-5, 2e-5));
    };
    for rows in ROWS {
        for cols in COLS {
            for (eps, scale) in [(1e-5, 1.0), (1e-5, 1e-3), (1e-3, 3.0)] {
                one(rows, cols, eps, scale);
            }
        }
    }
    one(MANY_ROWS, 11, 1e-5, 1.0);
    // A large offset, for which a variance by E[x²] - E[x]² fails: seen red at 150 times the tolerance. A mean of 300
    // has an error of 3e-5.
    let mut x = random(65, 768, 1.0, 2);
    x.values.iter_mut().for_each(|v| *v += 300.0);
    let weights = vec![f32(random(1, 768, 1.0, 3)), f32(random(1, 768, 1.0, 4))];
    let case = Case::new(Op::LayerNorm { eps: 1e-5 }, vec![x], weights);
    list.push(case.within(2e-4, 2e-5).noted("around 300"));
    list
}

fn layer_norm_scale() -> Vec<Case> {
    let one = |(rows, cols, eps, scale)| {
        Case::new(Op::LayerNormScale { eps }, vec![random(rows, cols, scale, 5)], vec![]).within(0.0, 2e-6)
    };
    // The variance of the last case is far below eps, so a wrong eps changes the result by nearly its full factor.
    let shapes =
        [(1, 1, 1e-5, 2.0), (2, 33, 1e12, 2.0), (65, 768, 1e-5, 2.0), (MANY_ROWS, 11, 1e-5, 2.0), (9, 96, 1e-5, 1e-3)];
    shapes.into_iter().map(one).collect()
}

fn layer_norm_normalize() -> Vec<Case> {
    let one = |(rows, cols)| {
        let mut scale = random(rows, 1, 1.0, 25);
        scale.values.iter_mut().for_each(|v| *v = 0.5 + v.abs());
        let tensors = vec![random(rows, cols, 2.0, 5), scale];
        Case::new(Op::LayerNormNormalize {}, tensors, vec![]).within(4e-6, 4e-6)
    };
    [(1, 1), (2, 33), (65, 768), (MANY_ROWS, 11)].into_iter().map(one).collect()
}

fn gain_bias() -> Vec<Case> {
    let one = |(rows, cols)| {
        let weights = vec![f32(random(1, cols, 1.0, 6)), f32(random(1, cols, 1.0, 7))];
        sampled(Case::new(Op::GainBias {}, vec![random(rows, cols, 2.0, 5)], weights).within(1e-6, 1e-6))
    };
    [(1, 1), (2, 33), (65, 768), (MANY, 1024)].into_iter().map(one).collect()
}

/// A case of many rows, some of which are compared.
fn sampled(case: Case) -> Case {
    let (rows, cols) = (case.tensors[0].rows, case.weights.first().map_or(case.tensors[0].cols, |(w, _)| w.cols));
    if rows > 1000 { case.looking_at(&some_of(rows), cols) } else { case }
}

fn linear() -> Vec<Case> {
    let mut list = Vec::new();
    let mut one = |rows, k: usize, cols, dtype| {
        let w = random(k, cols, 1.0 / (k as f32).sqrt(), 9);
        let weights = vec![(w, dtype), f32(random(1, cols, 1.0, 10))];
        // Seen red: a k loop that ends one step early is 1.4e5 times this.
        list.push(sampled(Case::new(Op::Linear {}, vec![random(rows, k, 1.0, 8)], weights).within(4e-6, 2e-6)));
    };
    for rows in ROWS {
        for (k, cols) in [(1, 1), (1, 33), (11, 3), (33, 99), (96, 65), (768, 129), (257, 768)] {
            for dtype in DTYPES {
                one(rows, k, cols, dtype);
            }
        }
    }
    // The largest of gpt2; more than 1,024 rows; more columns than one dimension of a dispatch has invocations.
    for dtype in DTYPES {
        one(8, 3072, 768, dtype);
    }
    one(1030, 768, 513, Dtype::F32);
    one(1, 1, 1024 * MANY, Dtype::F32);
    list
}

/// Rows, k and columns of products with an epilogue.
const ENDINGS: [(usize, usize, usize); 7] =
    [(1, 1, 1), (2, 33, 99), (8, 768, 129), (9, 257, 65), (65, 96, 768), (257, 33, 33), (1030, 96, 65)];

fn linear_activation() -> Vec<Case> {
    let mut list = Vec::new();
    for f in Activation::ALL {
        for (rows, k, cols) in ENDINGS {
            for dtype in DTYPES {
                // Wide enough to reach the curved part of the function; its slope is at most 1.13.
                let weights =
                    vec![(random(k, cols, 3.0 / (k as f32).sqrt(), 29), dtype), f32(random(1, cols, 1.0, 30))];
                let case = Case::new(Op::LinearActivation { f }, vec![random(rows, k, 1.0, 31)], weights);
                list.push(sampled(case.within(1.5e-5, 4e-6)));
            }
        }
    }
    list
}

fn linear_add() -> Vec<Case> {
    let one = |(rows, k, cols)| {
        DTYPES.map(|dtype| {
            let weights = vec![(random(k, cols, 1.0 / (k as f32).sqrt(), 32), dtype), f32(random(1, cols, 1.0, 33))];
            let tensors = vec![random(rows, cols, 1.0, 34), random(rows, k, 1.0, 35)];
            sampled(Case::new(Op::LinearAdd {}, tensors, weights).within(4e-6, 2e-6))
        })
    };
    ENDINGS.into_iter().flat_map(one).collect()
}

fn linear_of_norm() -> Vec<Case> {
    let mut list = Vec::new();
    let mut one = |rows, k: usize, cols, dtype, eps, scale: f32, f| {
        let mut x = random(rows, k, scale, 42);
        // One dimension is far from the others, as in gpt2's residual stream.
        x.values.iter_mut().enumerate().for_each(|(i, v)| *v += if i % k == 7 { 50.0 * scale } else { scale });
        let (gain, shift) = (random(1, k, 1.0, 43), random(1, k, 1.0, 44));
        let weights = vec![
            f32(gain),
            f32(shift),
            (random(k, cols, 1.0 / (k as f32).sqrt(), 45), dtype),
            f32(random(1, cols, 1.0, 46)),
        ];
        // A row of which one dimension is 50 times the others loses six bits of the others.
        list.push(Case::new(Op::LinearOfNorm { eps, f }, vec![x], weights).within(3e-5, 1e-5));
    };
    for rows in [1, 2, 3, 5, 8, 9, 65] {
        for (k, cols) in [(1, 1), (11, 3), (33, 99), (96, 65), (768, 129), (1025, 33)] {
            for dtype in DTYPES {
                one(rows, k, cols, dtype, 1e-5, 1.0, None);
            }
        }
        one(rows, 96, 33, Dtype::F32, 1e-5, 1e-3, None);
        one(rows, 768, 33, Dtype::F32, 1e-3, 3.0, Some(Activation::GeluTanh));
    }
    one(MANY_ROWS, 11, 3, Dtype::F32, 1e-5, 1.0, None);
    // A NaN stays in its row.
    let mut x = random(3, 33, 1.0, 42);
    x.values[33] = f32::NAN;
    let vectors = [43, 44].map(|seed| f32(random(1, 33, 1.0, seed)));
    let product = [f32(random(33, 9, 0.2, 45)), f32(random(1, 9, 1.0, 46))];
    let weights = vectors.into_iter().chain(product).collect();
    let case = Case::new(Op::LinearOfNorm { eps: 1e-5, f: None }, vec![x], weights);
    list.push(case.within(3e-5, 1e-5).noted("NaN in the second row"));
    list
}

fn argmax() -> Vec<Case> {
    let mut list = Vec::new();
    // Columns around the length of a chunk, and gpt2's vocabulary. The tolerance is less than one column of the place.
    for (rows, cols) in [(1, 1), (3, 11), (2, 1024), (9, 1025), (2, 2050), (1, 50_257), (MANY_ROWS, 3)] {
        list.push(Case::new(Op::Argmax {}, vec![random(rows, cols, 3.0, 47)], vec![]).within(0.0, 4e-6));
    }
    let place = |values: Vec<f32>| Host { rows: 1, cols: values.len(), values };
    let mut equal = vec![-1.0; 700];
    (equal[65], equal[193], equal[66]) = (2.5, 2.5, 2.5);
    let one =
        |values: Vec<f32>, note| Case::new(Op::Argmax {}, vec![place(values)], vec![]).within(0.0, 4e-6).noted(note);
    list.push(one(equal, "equal values"));
    list.push(one(vec![f32::NEG_INFINITY, 88.0, -1e30, f32::NEG_INFINITY, 87.0], "huge and minus infinity"));
    list.push(one(vec![f32::NEG_INFINITY; 5], "minus infinity"));
    list.push(one((0..300).map(|i| if i == 201 { f32::NAN } else { i as f32 * 0.01 }).collect(), "NaN"));
    list
}

/// Rows, heads, width of a head, and columns.
const BY_HEAD: [(usize, usize, usize, usize); 10] = [
    (1, 1, 1, 1),
    (1, 3, 11, 33),
    (1, 12, 64, 768),
    (8, 1, 1, 1),
    (8, 3, 11, 33),
    (8, 12, 64, 768),
    (65, 1, 1, 1),
    (65, 3, 11, 33),
    (65, 12, 64, 768),
    (1030, 2, 16, 33),
];

fn linear_by_head() -> Vec<Case> {
    let one = |(rows, n_head, head_dim, cols)| {
        let k = n_head * head_dim;
        let (z, w) = (random(rows, k, 1.0, 11), random(k, cols, 0.1, 12));
        Case::new(Op::LinearByHead { n_head }, vec![z], vec![f32(w)]).within(4e-6, 2e-6)
    };
    let mut list: Vec<Case> = BY_HEAD.into_iter().map(one).collect();
    // One head whose weight is split between two bindings on every GPU, as gpt2's unembedding is where a binding has
    // 128 MiB. A smaller weight would not do: a row takes 32 bytes there, so these are more rows than 128 MiB hold, and
    // on GPUs with larger bindings more than the 4,194,240 rows of one part. The weights are half as large as elsewhere,
    // because sums of four million products have larger errors. Seen red: columns of z from the first part for both
    // parts; the first part alone.
    let k = (128 << 20) / 32 + 33;
    let (z, w) = (random(2, k, 1.0, 11), random(k, 3, 0.5 / (k as f32).sqrt(), 12));
    list.push(Case::new(Op::LinearByHead { n_head: 1 }, vec![z], vec![f32(w)]).within(4e-6, 2e-6));
    list
}

fn sum_heads() -> Vec<Case> {
    let one = |(rows, n_head, _, cols)| {
        let (parts, bias) = (random(rows, n_head * cols, 0.3, 26), random(1, cols, 1.0, 13));
        sampled(Case::new(Op::SumHeads { n_head }, vec![parts], vec![f32(bias)]).within(4e-6, 4e-6))
    };
    BY_HEAD.into_iter().chain([(MANY, 2, 1, 1024)]).map(one).collect()
}

/// Queries, keys and values, the texts that they belong to, and the heads.
fn attention_inputs() -> Vec<(Host, Vec<Queries>, Heads)> {
    let mut list = Vec::new();
    let mut one = |lengths: &[usize], n_head: usize, head_dim: usize| {
        let mut start = 0;
        let texts = lengths.iter().map(|len| {
            start += len;
            Queries::whole(start - len..start)
        });
        let texts: Vec<Queries> = texts.collect();
        // The large standard deviation makes some softmax rows nearly one-hot.
        let qkv = random(lengths.iter().sum(), 3 * n_head * head_dim, 1.5, 14);
        list.push((qkv, texts, Heads { n_head, scale: 1.0 / (head_dim as f64).sqrt() }));
    };
    for lengths in [&[1][..], &[2], &[16], &[17], &[63, 1, 65], &[257]] {
        for (n_head, head_dim) in [(1, 1), (3, 11), (2, 64), (1, 80), (1, 257)] {
            one(lengths, n_head, head_dim);
        }
    }
    one(&[7, 1030], 2, 16);
    list
}

fn attention() -> Vec<Case> {
    // Seen red: a mask that admits the next key is 22 times this for two tokens, and far more for longer texts.
    let one = |(qkv, texts, heads)| Case::new(Op::Attention { texts, heads }, vec![qkv], vec![]).within(1e-5, 4e-6);
    let mut list: Vec<Case> = attention_inputs().into_iter().map(one).collect();
    // The last queries of two texts, over a cache. Lengths around the keys that a kernel takes at a time.
    for ([a, b], queries, n_head, head_dim) in [
        ([1, 1], 1, 1, 1),
        ([129, 40], 1, 2, 64),
        ([300, 128], 2, 3, 11),
        ([33, 127], 4, 1, 80),
        ([260, 31], 7, 2, 64),
        ([385, 257], 1, 1, 257),
    ] {
        let whole = [Queries::whole(0..a), Queries { text: 1, ..Queries::whole(a..a + b) }];
        let last = |text: &Queries| {
            let first = text.rows.end - queries.min(text.n_keys);
            Queries { rows: first..text.rows.end, ..text.clone() }
        };
        let texts: Vec<Queries> = whole.iter().map(last).collect();
        let looked_at =
            Window { rows: texts.iter().map(|text| text.rows.clone()).collect(), cols: vec![0..n_head * head_dim] };
        let heads = Heads { n_head, scale: 1.0 / (head_dim as f64).sqrt() };
        let qkv = random(a + b, 3 * n_head * head_dim, 1.5, 48);
        let case = one((qkv, texts, heads)).noted("over a cache");
        list.push(Case { looked_at: Some(looked_at), cached: Some(whole.to_vec()), ..case });
    }
    list
}

fn attention_scores() -> Vec<Case> {
    let one = |(qkv, texts, heads): (Host, Vec<Queries>, Heads)| {
        let text = texts[texts.len() / 2].clone();
        Case::new(Op::AttentionScores { text, heads }, vec![qkv], vec![]).within(4e-6, 4e-6)
    };
    attention_inputs().into_iter().map(one).collect()
}

fn attention_mix() -> Vec<Case> {
    let one = |(qkv, texts, heads): (Host, Vec<Queries>, Heads)| {
        let text = texts[texts.len() / 2].clone();
        let n_pos = text.rows.len();
        // Every key contributes, also those after the query, because an edit may have changed the pattern.
        let pattern = random(heads.n_head * n_pos, n_pos, 1.0 / (n_pos as f32).sqrt(), 28);
        Case::new(Op::AttentionMix { text, heads }, vec![pattern, qkv], vec![]).within(1e-5, 4e-6)
    };
    attention_inputs().into_iter().map(one).collect()
}

fn attention_pattern() -> Vec<Case> {
    let one =
        |(rows, cols)| Case::new(Op::AttentionPattern {}, vec![random(rows, cols, 3.0, 27)], vec![]).within(2e-6, 1e-5);
    let shapes = [(1, 1), (4, 2), (33, 11), (48, 16), (34, 17), (129, 129), (257, 257), (2060, 1030), (MANY_ROWS, 3)];
    let mut list: Vec<Case> = shapes.into_iter().map(one).collect();
    let rows: [[f32; 5]; 5] = [
        [1e30, -1e30, 0.0, 1e30, f32::MIN],
        [0.0, 1e4, 0.0, 0.0, 0.0],
        [-3e38; 5],
        [f32::NEG_INFINITY, 88.0, 89.0, 0.0, f32::NEG_INFINITY],
        [f32::MIN, f32::MIN, f32::MIN, f32::MIN, 5.0],
    ];
    let huge = Host { rows: 5, cols: 5, values: rows.concat() };
    list.push(Case::new(Op::AttentionPattern {}, vec![huge], vec![]).within(1e-7, 1e-6).noted("huge and one-hot rows"));
    // A NaN must stay a NaN. Seen red on llvmpipe with an earlier `exp_f32`, whose clamp turned it into 1e-38.
    let nan = Host { rows: 2, cols: 3, values: vec![1.0, f32::NAN, 2.0, 0.0, 1.0, f32::MIN] };
    list.push(Case::new(Op::AttentionPattern {}, vec![nan], vec![]).within(2e-6, 1e-5).noted("NaN in a row"));
    list
}

fn activation() -> Vec<Case> {
    let mut list = Vec::new();
    for f in Activation::ALL {
        for n in [1, 2, 63, 64, 65, 70_001] {
            let mut x = random(1, n, 3.0, 15);
            // At ±150 a tanh computed from exponentials overflows on some drivers; the others are edge cases of the
            // formulas.
            let edges = [
                150.0, -150.0, 0.0, -0.0, 1e-30, -1e-30, 14.0, -14.0, 15.0, -15.0, 9.1, -5.5, 87.0, -88.5, 1e30, -1e30,
            ];
            x.values.iter_mut().zip(edges).for_each(|(slot, edge)| *slot = edge);
            // Seen red: erf for tanh is 800 times this.
            list.push(Case::new(Op::Activation { f }, vec![x], vec![]).within(5e-7, 2e-6));
        }
        let nan = Host { rows: 1, cols: 3, values: vec![1.0, f32::NAN, -2.0] };
        list.push(Case::new(Op::Activation { f }, vec![nan], vec![]).within(5e-7, 2e-6).noted("NaN"));
    }
    let case = Case::new(Op::Activation { f: Activation::GeluTanh }, vec![random(MANY, 1024, 3.0, 15)], vec![]);
    list.push(sampled(case.within(5e-7, 2e-6)));
    list
}

fn add() -> Vec<Case> {
    let one = |(rows, cols)| {
        let tensors = vec![random(rows, cols, 1.0, 16), random(rows, cols, 1.0, 17)];
        sampled(Case::new(Op::Add {}, tensors, vec![]).within(1e-7, 1e-7))
    };
    [(1, 1), (3, 33), (257, 768), (MANY, 1024)].into_iter().map(one).collect()
}

fn unembed() -> Vec<Case> {
    let mut list = Vec::new();
    let mut one = |rows, k: usize, vocab, dtype| {
        let (x, table) = (random(rows, k, 1.0, 18), random(vocab, k, 1.0 / (k as f32).sqrt(), 19));
        list.push(Case::new(Op::Unembed {}, vec![x], vec![(table, dtype)]).within(4e-6, 2e-6));
    };
    for rows in [1, 8, 9, 127] {
        for (k, vocab) in [(1, 1), (11, 3), (33, 101), (768, 1009)] {
            for dtype in DTYPES {
                one(rows, k, vocab, dtype);
            }
        }
    }
    one(529, 33, 2050, Dtype::F32);
    one(1, 1, 1_048_577, Dtype::F32);
    // A NaN stays in its row: a kernel that reads beyond a row of x multiplies it with the padding of the table.
    for rows in [2, 9] {
        let (mut x, table) = (random(rows, 11, 1.0, 18), random(3, 11, 0.3, 19));
        x.values[11] = f32::NAN;
        list.push(
            Case::new(Op::Unembed {}, vec![x], vec![f32(table)]).within(4e-6, 2e-6).noted("NaN in the second row"),
        );
    }
    // More logits than fit in one binding of 128 MiB, so they are computed some rows at a time.
    let (x, table) = (random(680, 2, 1.0, 18), random(50_257, 2, 0.7, 19));
    let case = Case::new(Op::Unembed {}, vec![x], vec![f32(table)]).within(4e-6, 2e-6);
    list.push(case.looking_at(&[0, 1, 332, 666, 667, 668, 669, 679], 50_257));
    list
}

fn gather_rows() -> Vec<Case> {
    let mut list = Vec::new();
    for cols in COLS {
        // Exact: nothing is computed. Rows from several tensors, not adjacent, in any order, and repeated.
        let tensors = vec![random(9, cols, 1.0, 36), random(1, cols, 1.0, 37), random(65, cols, 1.0, 38)];
        let parts = vec![(2, 63..65), (0, 0..9), (1, 0..1), (2, 0..1), (0, 4..6), (2, 63..65)];
        list.push(Case::new(Op::GatherRows { parts }, tensors, vec![]));
    }
    // More than 512 rows, out of order.
    list.push(Case::new(
        Op::GatherRows { parts: vec![(0, 100..1000), (0, 0..1)] },
        vec![random(1000, 8, 1.0, 39)],
        vec![],
    ));
    list
}

/// Rows and columns of the gradients of LayerNorm.
const NORMS: [(usize, usize); 6] = [(1, 2), (2, 33), (9, 96), (65, 768), (257, 11), (MANY_ROWS, 11)];

fn layer_norm_gradient() -> Vec<Case> {
    let mut list = Vec::new();
    for (rows, cols) in NORMS {
        for (eps, scale) in [(1e-5, 1.0), (1e-3, 3.0), (1e-2, 1e-1)] {
            let mut x = random(rows, cols, scale, 40);
            // A dimension that is far from the others, as gpt2's residual stream has, and rows that are not all alike.
            x.values.iter_mut().enumerate().filter(|(i, _)| i % cols == 1).for_each(|(_, v)| *v += 30.0 * scale);
            let dy = random(rows, cols, scale, 41);
            let case = Case::new(Op::LayerNormGradient { eps }, vec![x, dy], vec![f32(random(1, cols, 1.0, 42))]);
            // Results are of order dy / scale(x), here 1. Where there are few columns, the three terms cancel.
            list.push(case.within(2e-5, 2e-5));
        }
    }
    list
}

/// Divisors between 0.5 and a few.
fn divisors(rows: usize) -> Host {
    let mut scale = random(rows, 1, 1.0, 25);
    scale.values.iter_mut().for_each(|v| *v = 0.5 + v.abs());
    scale
}

fn layer_norm_scale_gradient() -> Vec<Case> {
    let one = |(rows, cols)| {
        let tensors = vec![random(rows, cols, 2.0, 43), divisors(rows), random(rows, 1, 3.0, 44)];
        Case::new(Op::LayerNormScaleGradient {}, tensors, vec![]).within(4e-6, 4e-6)
    };
    NORMS.into_iter().map(one).collect()
}

fn layer_norm_normalize_scale_gradient() -> Vec<Case> {
    let one = |(rows, cols): (usize, usize)| {
        // Sums of `cols` products, scaled to be of order 1.
        let dy = random(rows, cols, 1.0 / (cols as f32).sqrt(), 45);
        let tensors = vec![random(rows, cols, 1.0, 46), divisors(rows), dy];
        Case::new(Op::LayerNormNormalizeScaleGradient {}, tensors, vec![]).within(1e-5, 4e-6)
    };
    NORMS.into_iter().map(one).collect()
}

fn gain_bias_gradient() -> Vec<Case> {
    let one = |(rows, cols)| {
        let case =
            Case::new(Op::GainBiasGradient {}, vec![random(rows, cols, 2.0, 47)], vec![f32(random(1, cols, 1.0, 48))]);
        sampled(case.within(1e-7, 1e-7))
    };
    [(1, 1), (2, 33), (65, 768), (MANY, 1024)].into_iter().map(one).collect()
}

fn linear_by_head_gradient() -> Vec<Case> {
    let one = |(rows, n_head, head_dim, cols): (usize, usize, usize, usize)| {
        DTYPES.map(|dtype| {
            let dy = random(rows, n_head * cols, 1.0, 49);
            let w = random(n_head * head_dim, cols, 1.0 / (cols as f32).sqrt(), 50);
            Case::new(Op::LinearByHeadGradient { n_head }, vec![dy], vec![(w, dtype)]).within(4e-6, 2e-6)
        })
    };
    BY_HEAD.into_iter().flat_map(one).collect()
}

fn sum_heads_gradient() -> Vec<Case> {
    // Exact: nothing is computed.
    let one =
        |(rows, n_head, _, cols)| Case::new(Op::SumHeadsGradient { n_head }, vec![random(rows, cols, 1.0, 51)], vec![]);
    BY_HEAD.into_iter().chain([(MANY, 2, 1, 512)]).map(one).collect()
}

fn activation_gradient() -> Vec<Case> {
    let mut list = Vec::new();
    for f in Activation::ALL {
        for n in [1, 2, 63, 64, 65, 70_001] {
            let mut x = random(1, n, 3.0, 52);
            let edges = [150.0, -150.0, 0.0, 1e-30, -1e-30, 14.0, -14.0, 15.0, -15.0, 9.1, -5.5, -88.5, 1e30, -1e30];
            x.values.iter_mut().zip(edges).for_each(|(slot, edge)| *slot = edge);
            let tensors = vec![x, random(1, n, 1.0, 53)];
            // Near -0.75 the two terms of a slope cancel.
            list.push(Case::new(Op::ActivationGradient { f }, tensors, vec![]).within(1e-6, 4e-6));
        }
    }
    let tensors = vec![random(MANY, 1024, 3.0, 52), random(MANY, 1024, 1.0, 53)];
    list.push(sampled(
        Case::new(Op::ActivationGradient { f: Activation::GeluTanh }, tensors, vec![]).within(1e-6, 4e-6),
    ));
    list
}

/// Rows that sum to 1, some of them nearly one-hot, and 0 where the key comes after the query of one of `n_head` heads.
fn patterns(n_head: usize, n_pos: usize, seed: u64) -> Host {
    let mut pattern = random(n_head * n_pos, n_pos, 2.0, seed);
    for (row, values) in pattern.values.chunks_exact_mut(n_pos).enumerate() {
        let (seen, unseen) = values.split_at_mut(row % n_pos + 1);
        seen.iter_mut().for_each(|v| *v = v.exp());
        let total: f32 = seen.iter().sum();
        seen.iter_mut().for_each(|v| *v /= total);
        unseen.fill(0.0);
    }
    pattern
}

fn attention_pattern_gradient() -> Vec<Case> {
    let one = |(n_head, n_pos)| {
        let tensors = vec![patterns(n_head, n_pos, 54), random(n_head * n_pos, n_pos, 1.0, 55)];
        Case::new(Op::AttentionPatternGradient {}, tensors, vec![]).within(1e-6, 4e-6)
    };
    [(1, 1), (2, 2), (3, 11), (2, 34), (1, 129), (2, 1030), (21_846, 3)].into_iter().map(one).collect()
}

/// Cases of the gradients of attention: the text and the heads of each, qkv, dz, and a matrix of the pattern's shape.
fn attention_gradients(make: impl Fn(Queries, Heads, Host, Host, usize) -> Case) -> Vec<Case> {
    let one = |(qkv, texts, heads): (Host, Vec<Queries>, Heads)| {
        let text = texts[texts.len() / 2].clone();
        let (n_pos, n_embd) = (text.rows.len(), qkv.cols / 3);
        let dz = random(n_pos, n_embd, 1.0 / (n_embd as f32 / heads.n_head as f32).sqrt(), 56);
        make(text, heads, qkv, dz, n_pos)
    };
    attention_inputs().into_iter().map(one).collect()
}

fn attention_mix_gradient() -> Vec<Case> {
    attention_gradients(|text, heads, qkv, dz, _| {
        Case::new(Op::AttentionMixGradient { text, heads }, vec![dz, qkv], vec![]).within(1e-5, 4e-6)
    })
}

fn attention_mix_values_gradient() -> Vec<Case> {
    attention_gradients(|text, heads, _, dz, n_pos| {
        let pattern = patterns(heads.n_head, n_pos, 57);
        Case::new(Op::AttentionMixValuesGradient { text, heads }, vec![pattern, dz], vec![]).within(1e-5, 4e-6)
    })
}

fn attention_scores_gradient() -> Vec<Case> {
    attention_gradients(|text, heads, qkv, _, n_pos| {
        // Scaled so that sums over keys and over queries are of order 1.
        let dscores = random(heads.n_head * n_pos, n_pos, 1.0 / (n_pos as f32).sqrt(), 58);
        Case::new(Op::AttentionScoresGradient { text, heads }, vec![dscores, qkv], vec![]).within(1e-5, 4e-6)
    })
}
