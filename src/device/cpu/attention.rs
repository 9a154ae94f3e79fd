//! Attention of the `cpu` device, one tile of queries at a time: its scores with all keys up to the last query, their
//! softmax, the mix of values. Owns the packed form of keys and values, and [`Cache`], which keeps them in that form. In one go
//! or in steps, from a cache or not, every value is made by the same operations in the same order, so looking at scores or
//! patterns changes no bit, and neither does running a text in pieces.

use super::buffers::{Aligned, Shared, Tensor};
use super::microkernel::{KC, Operands, STRIDE, Sum, columns, most_rows, tile};
use super::products::{RowsView, copy_left, tile_rows, tile_shape};
use super::row_wise;
use super::workers::Workers;
use crate::device::{Heads, MASKED, Queries};
use pulp::{Arch, Simd, WithSimd};
use std::cell::RefCell;
use std::ops::Range;

/// Below this many multiply-adds a second thread would come too late.
const WORTH_SHARING: usize = 1 << 17;

/// Tasks for each thread, so that a thread that was held up does not hold up all.
const TASKS: usize = 4;

/// The keys and values of one layer, packed as attention reads them: per text and head, the keys in panels
/// [capacity / width][head_dim][width] and the values in panels [head_dim / width][capacity][width].
#[derive(Debug)]
pub struct Cache {
    n_head: usize,
    head_dim: usize,
    /// Columns of a panel.
    width: usize,
    texts: Vec<CachedText>,
}

#[derive(Debug)]
struct CachedText {
    capacity: usize,
    /// Positions that were appended.
    len: usize,
    keys: Aligned,
    values: Aligned,
}

impl Cache {
    /// Room for `capacities[i]` positions of text i.
    pub fn new(arch: Arch, capacities: &[usize], n_embd: usize, n_head: usize) -> Cache {
        let (width, head_dim) = (tile_shape(arch).1, n_embd / n_head);
        let text = |&capacity: &usize| CachedText {
            capacity,
            len: 0,
            keys: Aligned::zeros(n_head * capacity.next_multiple_of(width) * head_dim),
            values: Aligned::zeros(n_head * head_dim.next_multiple_of(width) * capacity),
        };
        Cache { n_head, head_dim, width, texts: capacities.iter().map(text).collect() }
    }

    /// Appends the keys and values of some rows of qkv [T, 3D] at the positions of the queries.
    pub fn append(&mut self, qkv: &Tensor, queries: &Queries) {
        let Cache { n_head, head_dim, width, ref mut texts } = *self;
        let text = &mut texts[queries.text];
        assert!(queries.n_keys <= text.capacity, "a cache has room for every position");
        assert!(queries.first_position() <= text.len, "positions are appended in order");
        text.len = queries.n_keys;
        let n_embd = n_head * head_dim;
        for (position, row) in (queries.first_position()..).zip(queries.rows.clone()) {
            let row = &qkv.row(row)[n_embd..3 * n_embd];
            let (keys, values) = row.split_at(n_embd);
            for (head, (key, value)) in keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim)).enumerate() {
                let panel = text.keys_of(head, head_dim, width);
                let panel = &mut text.keys[panel][position / width * width * head_dim..][..width * head_dim];
                panel.chunks_exact_mut(width).zip(key).for_each(|(out, x)| out[position % width] = *x);
                let panels = text.values_of(head, head_dim, width);
                let capacity = text.capacity;
                let panels = text.values[panels].chunks_exact_mut(width * capacity);
                for (panel, part) in panels.zip(value.chunks(width)) {
                    panel[position * width..][..part.len()].copy_from_slice(part);
                }
            }
        }
    }
}

impl CachedText {
    fn keys_of(&self, head: usize, head_dim: usize, width: usize) -> Range<usize> {
        let size = self.capacity.next_multiple_of(width) * head_dim;
        head * size..(head + 1) * size
    }

    fn values_of(&self, head: usize, head_dim: usize, width: usize) -> Range<usize> {
        let size = head_dim.next_multiple_of(width) * self.capacity;
        head * size..(head + 1) * size
    }
}

/// One head of one text: where its queries, keys and values are.
#[derive(Clone)]
struct Head<'a> {
    /// [T, 3D].
    qkv: RowsView<'a>,
    cache: Option<&'a Cache>,
    text: &'a Queries,
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
    fn new(of: Attended<'a>, text: &'a Queries, heads: Heads, head: usize) -> Head<'a> {
        let Attended { qkv, cache } = of;
        let n_embd = qkv.stride / 3;
        assert!(text.rows.end <= qkv.n && n_embd.is_multiple_of(heads.n_head));
        match cache {
            Some(cache) => assert!(text.n_keys <= cache.texts[text.text].len, "the keys were appended"),
            None => assert_eq!(text.n_keys, text.rows.len(), "without a cache the keys are those of the same rows"),
        }
        Head { qkv, cache, text, n_embd, head, head_dim: n_embd / heads.n_head, scale: heads.scale as f32 }
    }

    fn part(&self, which: usize, row: usize) -> &'a [f32] {
        &self.qkv.row(self.text.rows.start + row)[which * self.n_embd + self.head * self.head_dim..][..self.head_dim]
    }

    /// The first `n` keys, at least, in panels [n / width][head_dim][width]: those of the cache, or packed into `to`.
    fn keys<'b>(&self, n: usize, width: usize, to: &'b mut Aligned) -> &'b [f32]
    where
        'a: 'b,
    {
        if let Some(cache) = self.cache {
            let text = &cache.texts[self.text.text];
            return &text.keys[text.keys_of(self.head, self.head_dim, width)];
        }
        let panels = to.at_least(n.next_multiple_of(width) * self.head_dim);
        for (i, panel) in panels.chunks_exact_mut(width * self.head_dim).enumerate() {
            for j in 0..width {
                // Columns after the last key repeat it; their scores are masked.
                let key = self.part(K, (i * width + j).min(n - 1));
                panel.chunks_exact_mut(width).zip(key).for_each(|(out, x)| out[j] = *x);
            }
        }
        panels
    }

    /// The first `n` values, at least, in panels [head_dim / width][n or more][width]: those of the cache, or packed into `to`.
    fn values<'b>(&self, n: usize, width: usize, to: &'b mut Aligned) -> &'b [f32]
    where
        'a: 'b,
    {
        if let Some(cache) = self.cache {
            let text = &cache.texts[self.text.text];
            return &text.values[text.values_of(self.head, self.head_dim, width)];
        }
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

    /// How many keys the last of some queries sees.
    fn n_seen(&self, queries: &Range<usize>) -> usize {
        self.text.first_position() + queries.end
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
        let (first, n_keys) = (self.text.first_position(), self.n_seen(&queries));
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
            row[first + query + 1..n_keys.next_multiple_of(width)].fill(MASKED);
        }
    }

    /// `pattern . v` of one tile of queries, into z, where the text's first query has row `z_first`.
    #[inline(always)]
    fn mix<S: Simd>(
        &self,
        simd: S,
        pattern: Pattern<'_>,
        values: &[f32],
        left: &mut [f32],
        (z, z_first): (Shared<'_>, usize),
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
                let rows = z_first + queries.start..z_first + queries.end;
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

/// What is computed of the queries of a head.
#[derive(Clone, Copy)]
enum Goal<'a> {
    /// Their z [T, D].
    Z(Shared<'a>),
    /// Their scores, in a matrix [Q, K] of this head.
    Scores(Shared<'a>),
    /// Their z [Q, D], from rows of a pattern [Q, K] of this head.
    Mix(RowsView<'a>, Shared<'a>),
}

/// Queries, and where their keys and values come from.
#[derive(Clone, Copy)]
pub struct Attended<'a> {
    qkv: RowsView<'a>,
    cache: Option<&'a Cache>,
}

impl<'a> Attended<'a> {
    pub fn new(qkv: &'a Tensor, cache: Option<&'a Cache>) -> Attended<'a> {
        Attended { qkv: RowsView::of(qkv), cache }
    }
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
        let (width, n_keys, first) = (columns::<S>(), head.text.n_keys, head.text.first_position());
        let n_tiles = queries.len().div_ceil(most_rows::<S>());
        let tiles = (0..n_tiles).map(|i| tile_rows(i, n_tiles, queries.len()));
        let tiles = tiles.map(|r| queries.start + r.start..queries.start + r.end);
        SCRATCH.with_borrow_mut(|scratch| {
            let left = scratch.left.at_least(most_rows::<S>() * STRIDE);
            // Keys after the last query are never looked at, but for a pattern that was changed.
            let n_seen = head.n_seen(&queries);
            let stride = n_seen.next_multiple_of(width);
            let pattern = scratch.pattern.at_least(most_rows::<S>() * stride);
            match goal {
                Goal::Z(z) => {
                    let keys = head.keys(n_seen, width, &mut scratch.keys);
                    let values = head.values(n_seen, width, &mut scratch.values);
                    for tile in tiles {
                        head.scores(simd, tile.clone(), keys, left, pattern, stride);
                        let n_keys = head.n_seen(&tile);
                        let seen = n_keys.next_multiple_of(width);
                        for row in pattern.chunks_exact_mut(stride).take(tile.len()) {
                            simd.vectorize(row_wise::Softmax(&mut row[..seen]));
                        }
                        let pattern = Pattern { rows: RowsView { data: pattern, n: tile.len(), stride }, n_keys };
                        head.mix(simd, pattern, values, left, (z, head.text.rows.start), tile);
                    }
                }
                Goal::Scores(out) => {
                    let keys = head.keys(n_seen, width, &mut scratch.keys);
                    for tile in tiles {
                        head.scores(simd, tile.clone(), keys, left, pattern, stride);
                        for (query, row) in tile.zip(pattern.chunks_exact(stride)) {
                            // SAFETY: a row of this head's matrix [Q, K], and this task's.
                            let (seen, masked) = unsafe { out.row(query, 0..n_keys) }.split_at_mut(first + query + 1);
                            seen.copy_from_slice(&row[..=first + query]);
                            masked.fill(MASKED);
                        }
                    }
                }
                Goal::Mix(pattern, z) => {
                    let values = head.values(n_keys, width, &mut scratch.values);
                    for tile in tiles {
                        let rows = RowsView { data: pattern.row(tile.start), n: tile.len(), ..pattern };
                        head.mix(simd, Pattern { rows, n_keys }, values, left, (z, 0), tile);
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
    texts: &'a [Queries],
    n_head: usize,
    n_embd: usize,
    task: impl Fn(&'a Queries, usize, Range<usize>) -> Task<'a> + Sync,
) {
    let (arch, threads) = (workers.arch, workers.threads);
    let work: usize = texts.iter().map(|text| text.rows.len() * text.n_keys * n_embd).sum();
    let alone = threads == 1 || work < WORTH_SHARING;
    let n_parts = |text: &Queries| {
        if alone { 1 } else { (TASKS * threads).div_ceil(n_head * texts.len()).min(text.rows.len()) }
    };
    let until = |text: &Queries, part: usize| {
        (text.rows.len() as f64 * (part as f64 / n_parts(text) as f64).sqrt()).round() as usize
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
    if alone { (0..parts.len()).for_each(run) } else { workers.each(parts.len(), run) }
}

/// Causal attention of every text in one go, into z [T, D]; no more of the pattern than a tile is ever stored.
pub fn attention(workers: &Workers, of: Attended<'_>, texts: &[Queries], heads: Heads, z: &mut [f32]) {
    let n_embd = of.qkv.stride / 3;
    let z = Shared::new(z, n_embd, of.qkv.n, n_embd);
    share(workers, texts, heads.n_head, n_embd, |text, head, queries| Task {
        head: Head::new(of, text, heads, head),
        queries,
        goal: Goal::Z(z),
    });
}

/// All scores of one text, [`MASKED`] where the key comes after the query, into [H Q, K].
pub fn scores(workers: &Workers, of: Attended<'_>, text: &Queries, heads: Heads, out: &mut [f32]) {
    let (n_queries, n_keys) = (text.rows.len(), text.n_keys);
    assert_eq!(out.len(), heads.n_head * n_queries * n_keys);
    let of_heads: Vec<_> =
        out.chunks_exact_mut(n_queries * n_keys).map(|head| Shared::new(head, n_keys, n_queries, n_keys)).collect();
    share(workers, std::slice::from_ref(text), heads.n_head, of.qkv.stride / 3, |text, head, queries| Task {
        head: Head::new(of, text, heads, head),
        queries,
        goal: Goal::Scores(of_heads[head]),
    });
}

/// z [Q, D] of one text from a pattern [H Q, K], every key counting that the pattern lets count.
pub fn mix(workers: &Workers, pattern: &Tensor, of: Attended<'_>, text: &Queries, heads: Heads, z: &mut [f32]) {
    let (n_queries, n_embd) = (text.rows.len(), of.qkv.stride / 3);
    let z = Shared::new(z, n_embd, n_queries, n_embd);
    let pattern = RowsView::of(pattern);
    share(workers, std::slice::from_ref(text), heads.n_head, n_embd, |text, head, queries| Task {
        head: Head::new(of, text, heads, head),
        queries,
        goal: Goal::Mix(RowsView { data: pattern.row(head * n_queries), n: n_queries, ..pattern }, z),
    });
}
