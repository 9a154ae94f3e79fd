//! Attention of the `cpu` device, one tile of queries at a time: its scores with all keys up to the last query, their
//! softmax, the mix of values. Owns the packing of keys and values. In one go or in steps, every value is made by the same
//! operations in the same order, so looking at scores or patterns changes no bit.

use super::buffers::{Aligned, Shared, Tensor};
use super::microkernel::{KC, Operands, STRIDE, Sum, columns, most_rows, tile};
use super::products::{RowsView, copy_left, tile_rows};
use super::row_wise;
use super::workers::Workers;
use crate::device::{Heads, MASKED};
use pulp::{Simd, WithSimd};
use std::cell::RefCell;
use std::ops::Range;

/// Below this many multiply-adds a second thread would come too late.
const WORTH_SHARING: usize = 1 << 17;

/// Tasks for each thread, so that a thread that was held up does not hold up all.
const TASKS: usize = 4;

/// One head of one text: where its queries, keys and values lie in qkv [T, 3D].
#[derive(Clone)]
struct Head<'a> {
    qkv: RowsView<'a>,
    text: Range<usize>,
    n_embd: usize,
    head: usize,
    head_dim: usize,
    scale: f32,
}

/// q, k and v lie one after the other in a row of qkv.
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;

impl<'a> Head<'a> {
    fn new(qkv: RowsView<'a>, text: &Range<usize>, heads: Heads, head: usize) -> Head<'a> {
        let n_embd = qkv.stride / 3;
        assert!(text.end <= qkv.n && n_embd.is_multiple_of(heads.n_head));
        Head { qkv, text: text.clone(), n_embd, head, head_dim: n_embd / heads.n_head, scale: heads.scale as f32 }
    }

    fn part(&self, which: usize, position: usize) -> &'a [f32] {
        &self.qkv.row(self.text.start + position)[which * self.n_embd + self.head * self.head_dim..][..self.head_dim]
    }

    /// The first `n` keys in panels [n / width][head_dim][width].
    fn pack_keys<'b>(&self, n: usize, width: usize, to: &'b mut Aligned) -> &'b [f32] {
        let panels = to.at_least(n.next_multiple_of(width) * self.head_dim);
        for (i, panel) in panels.chunks_exact_mut(width * self.head_dim).enumerate() {
            for j in 0..width {
                // Columns after the last key repeat it; what comes of them is masked.
                let key = self.part(K, (i * width + j).min(n - 1));
                panel.chunks_exact_mut(width).zip(key).for_each(|(out, x)| out[j] = *x);
            }
        }
        panels
    }

    /// The first `n` values in panels [head_dim / width][n][width].
    fn pack_values<'b>(&self, n: usize, width: usize, to: &'b mut Aligned) -> &'b [f32] {
        let panels = to.at_least(self.head_dim.next_multiple_of(width) * n);
        for (i, panel) in panels.chunks_exact_mut(width * n).enumerate() {
            let dims = i * width..((i + 1) * width).min(self.head_dim);
            for (position, out) in panel.chunks_exact_mut(width).enumerate() {
                out[..dims.len()].copy_from_slice(&self.part(V, position)[dims.clone()]);
                out[dims.len()..].fill(0.0);
            }
        }
        panels
    }

    /// `scale q . k`, as (scale q) . k, masked, of some queries that make one tile, with all keys up to the last of them, into
    /// rows of `stride` filled up to whole panels.
    #[inline(always)]
    fn scores<S: Simd>(
        &self,
        simd: S,
        queries: Range<usize>,
        keys: &[f32],
        left: &mut [f32],
        out: &mut [f32],
        stride: usize,
    ) {
        let width = columns::<S>();
        let n_keys = queries.end;
        for d0 in (0..self.head_dim).step_by(KC) {
            let dims = d0..(d0 + KC).min(self.head_dim);
            for (left, query) in left.chunks_mut(STRIDE).zip(queries.clone()) {
                let query = &self.part(Q, query)[dims.clone()];
                left.iter_mut().zip(query).for_each(|(left, q)| *left = q * self.scale);
            }
            for (i, panel) in keys.chunks_exact(width * self.head_dim).take(n_keys.div_ceil(width)).enumerate() {
                let b = &panel[dims.start * width..dims.end * width];
                let c = &mut out[i * width..];
                assert!(c.len() >= (queries.len() - 1) * stride + width);
                let operands = Operands {
                    a: left.as_ptr(),
                    b: b.as_ptr(),
                    b_stride: width,
                    k: dims.len(),
                    sum: if d0 == 0 { Sum::First } else { Sum::Further },
                    next: b.as_ptr().wrapping_add(b.len()),
                    next_stride: width,
                };
                // SAFETY: `left` holds the queries, `b` all steps, and c a tile, as the assertion says.
                unsafe { tile(simd, queries.len(), operands, c.as_mut_ptr(), stride) };
            }
        }
        for (query, row) in queries.zip(out.chunks_mut(stride)) {
            row[query + 1..n_keys.next_multiple_of(width)].fill(MASKED);
        }
    }

    /// `pattern . v` of one tile of queries, into z.
    #[inline(always)]
    fn mix<S: Simd>(
        &self,
        simd: S,
        pattern: Pattern<'_>,
        values: &[f32],
        left: &mut [f32],
        z: Shared<'_>,
        queries: Range<usize>,
    ) {
        let width = columns::<S>();
        let n_values = values.len() / self.head_dim.next_multiple_of(width);
        for k0 in (0..pattern.n_keys).step_by(KC) {
            let keys = k0..(k0 + KC).min(pattern.n_keys);
            copy_left(left, pattern.rows, 0..queries.len(), keys.clone());
            for (i, panel) in values.chunks_exact(width * n_values).enumerate() {
                let dims = i * width..((i + 1) * width).min(self.head_dim);
                let cols = self.head * self.head_dim + dims.start..self.head * self.head_dim + dims.end;
                let b = &panel[keys.start * width..keys.end * width];
                let operands = Operands {
                    a: left.as_ptr(),
                    b: b.as_ptr(),
                    b_stride: width,
                    k: keys.len(),
                    sum: if k0 == 0 { Sum::First } else { Sum::Further },
                    next: b.as_ptr().wrapping_add(b.len()),
                    next_stride: width,
                };
                let rows = self.text.start + queries.start..self.text.start + queries.end;
                // SAFETY: z has rows for all texts and columns for all heads, and these are this task's; `left` holds the
                // pattern's rows and `b` all steps.
                unsafe { z.tile(simd, rows, cols, operands) };
            }
        }
    }
}

/// A tile's rows of a pattern, and how many keys it looks at.
struct Pattern<'a> {
    rows: RowsView<'a>,
    n_keys: usize,
}

/// What is wanted of the queries of a head.
#[derive(Clone, Copy)]
enum Goal<'a> {
    /// Their z [T, D].
    Z(Shared<'a>),
    /// Their scores, in a matrix [P, P] of this head.
    Scores(Shared<'a>),
    /// Their z, from rows of a pattern [P, P] of this head.
    Mix(RowsView<'a>, Shared<'a>),
}

/// Some queries of one head of one text.
struct Task<'a> {
    head: Head<'a>,
    queries: Range<usize>,
    goal: Goal<'a>,
}

#[derive(Default)]
struct Scratch {
    keys: Aligned,
    values: Aligned,
    left: Aligned,
    pattern: Aligned,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Task { head, queries, goal } = self;
        let (width, n_pos) = (columns::<S>(), head.text.len());
        let n_tiles = queries.len().div_ceil(most_rows::<S>());
        let tiles = (0..n_tiles).map(|i| tile_rows(i, n_tiles, queries.len()));
        let tiles = tiles.map(|r| queries.start + r.start..queries.start + r.end);
        SCRATCH.with_borrow_mut(|scratch| {
            let left = scratch.left.at_least(most_rows::<S>() * STRIDE);
            // Keys after the last query are never looked at, but for a pattern that was changed.
            let n_seen = queries.end;
            let stride = n_seen.next_multiple_of(width);
            let pattern = scratch.pattern.at_least(most_rows::<S>() * stride);
            match goal {
                Goal::Z(z) => {
                    let keys = head.pack_keys(n_seen, width, &mut scratch.keys);
                    let values = head.pack_values(n_seen, width, &mut scratch.values);
                    for tile in tiles {
                        head.scores(simd, tile.clone(), keys, left, pattern, stride);
                        let seen = tile.end.next_multiple_of(width);
                        for row in pattern.chunks_exact_mut(stride).take(tile.len()) {
                            simd.vectorize(row_wise::Softmax(&mut row[..seen]));
                        }
                        let pattern =
                            Pattern { rows: RowsView { data: pattern, n: tile.len(), stride }, n_keys: tile.end };
                        head.mix(simd, pattern, values, left, z, tile);
                    }
                }
                Goal::Scores(out) => {
                    let keys = head.pack_keys(n_seen, width, &mut scratch.keys);
                    for tile in tiles {
                        head.scores(simd, tile.clone(), keys, left, pattern, stride);
                        for (query, row) in tile.zip(pattern.chunks_exact(stride)) {
                            // SAFETY: a row of this head's matrix [P, P], and this task's.
                            let (seen, masked) = unsafe { out.row(query, 0..n_pos) }.split_at_mut(query + 1);
                            seen.copy_from_slice(&row[..=query]);
                            masked.fill(MASKED);
                        }
                    }
                }
                Goal::Mix(pattern, z) => {
                    let values = head.pack_values(n_pos, width, &mut scratch.values);
                    for tile in tiles {
                        let rows = RowsView { data: pattern.row(tile.start), n: tile.len(), ..pattern };
                        head.mix(simd, Pattern { rows, n_keys: n_pos }, values, left, z, tile);
                    }
                }
            }
        });
    }
}

/// Runs `task` for every head of every text, its queries in as many parts as keep all threads busy; later queries have more
/// keys, so their parts are shorter, and come first.
fn share<'a>(
    workers: &Workers,
    texts: &[Range<usize>],
    n_head: usize,
    n_embd: usize,
    task: impl Fn(&Range<usize>, usize, Range<usize>) -> Task<'a> + Sync,
) {
    let (arch, threads) = (workers.arch, workers.threads);
    let work: usize = texts.iter().map(|text| text.len() * text.len() * n_embd).sum();
    let alone = threads == 1 || work < WORTH_SHARING;
    let n_parts = |text: &Range<usize>| match alone {
        true => 1,
        false => (TASKS * threads).div_ceil(n_head * texts.len()).min(text.len()),
    };
    let until = |text: &Range<usize>, part: usize| {
        (text.len() as f64 * (part as f64 / n_parts(text) as f64).sqrt()).round() as usize
    };
    let parts = texts.iter().flat_map(|text| {
        (0..n_parts(text))
            .rev()
            .flat_map(move |part| (0..n_head).map(move |head| (text, head, until(text, part)..until(text, part + 1))))
    });
    let parts: Vec<_> = parts.filter(|(_, _, queries)| !queries.is_empty()).collect();
    let run = |i: usize| {
        let (text, head, queries) = &parts[i];
        arch.dispatch(task(text, *head, queries.clone()));
    };
    match alone {
        true => (0..parts.len()).for_each(run),
        false => workers.each(parts.len(), run),
    }
}

/// Causal attention of every text in one go; no more of the pattern than a tile is ever stored.
pub fn attention(workers: &Workers, qkv: &Tensor, texts: &[Range<usize>], heads: Heads, z: &mut Tensor) {
    let (rows, cols) = (z.rows, z.cols);
    let z = Shared::new(z, cols, rows, cols);
    let qkv = RowsView::of(qkv);
    share(workers, texts, heads.n_head, cols, |text, head, queries| Task {
        head: Head::new(qkv, text, heads, head),
        queries,
        goal: Goal::Z(z),
    });
}

/// All scores of one text, [`MASKED`] where the key comes after the query, into [H P, P].
pub fn scores(workers: &Workers, qkv: &Tensor, text: Range<usize>, heads: Heads, out: &mut [f32]) {
    let n_pos = text.len();
    assert_eq!(out.len(), heads.n_head * n_pos * n_pos);
    let of_heads: Vec<_> =
        out.chunks_exact_mut(n_pos * n_pos).map(|head| Shared::new(head, n_pos, n_pos, n_pos)).collect();
    let (qkv, n_embd) = (RowsView::of(qkv), qkv.cols / 3);
    share(workers, &[text], heads.n_head, n_embd, |text, head, queries| Task {
        head: Head::new(qkv, text, heads, head),
        queries,
        goal: Goal::Scores(of_heads[head]),
    });
}

/// z of one text from a pattern [H P, P], every key counting that the pattern lets count.
pub fn mix(workers: &Workers, pattern: &Tensor, qkv: &Tensor, text: Range<usize>, heads: Heads, z: &mut Tensor) {
    let n_pos = text.len();
    let (rows, cols) = (z.rows, z.cols);
    let z = Shared::new(z, cols, rows, cols);
    let (qkv, pattern) = (RowsView::of(qkv), RowsView::of(pattern));
    share(workers, &[text], heads.n_head, cols, |text, head, queries| Task {
        head: Head::new(qkv, text, heads, head),
        queries,
        goal: Goal::Mix(RowsView { data: pattern.row(head * n_pos), n: n_pos, ..pattern }, z),
    });
}
