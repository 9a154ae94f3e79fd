//! Attention of the `cpu` device. One tile of queries at a time, it computes the scores with all keys up to the last
//! query, their softmax, and the weighted sum of the values. Gradients are scores and weighted sums of other rows. Owns the packed
//! layout of keys and values, and [`Cache`], which stores them in that layout.
//!
//! Fused or split into operations, with a cache or without, every value is the result of the same arithmetic in the
//! same order. So capturing scores or patterns changes no bit, and neither does running a text in pieces.
//! Read next: `microkernel.rs` for the tile, `products.rs` for the matrix products.

use super::buffers::{Aligned, RowsView, Shared, Tensor};
use super::microkernel::{KC, STRIDE, Sum, TileOperands, columns, most_rows, prefetch_to_write, tile};
use super::products::{READING, copy_left, tile_rows, tile_shape};
use super::row_wise::{Softmax, TimesFactor};
use super::simd_loops::{in_place, map};
use crate::device::workers::Workers;
use crate::device::{Dtype, Heads, MASKED, Queries};
use pulp::{Arch, Simd, WithSimd};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// With fewer multiply-adds than this, one thread finishes before a second one would have woken up.
const WORTH_SHARING: usize = 1 << 17;

/// The same limit for keys that are appended to a cache: each element goes to a cache line of its own.
const WORTH_SHARING_AN_APPEND: usize = 1 << 11;

/// Tasks per thread. With several, a delayed thread does not delay all the others.
const TASKS: usize = 4;

/// The keys and values of one layer, packed as attention reads them. For each text and head, the keys lie in panels
/// `[capacity / width][head_dim][width]` and the values in panels `[head_dim / width][capacity][width]`.
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
    /// Positions appended so far.
    len: usize,
    keys: Aligned,
    values: Aligned,
}

impl Cache {
    /// An empty cache with room for `capacities[i]` positions of text i.
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

    /// Appends the keys and values of the rows `queries.rows` of qkv [T, 3D], at the positions of the queries, for each of `texts`.
    pub(crate) fn append(&mut self, workers: &Workers, qkv: &Tensor, texts: &[Queries]) {
        let Cache { n_head, head_dim, width, texts: ref mut cached } = *self;
        let n_embd = n_head * head_dim;
        let mut of_text: Vec<_> = cached.iter_mut().map(Some).collect();
        let mut of_heads = Vec::with_capacity(n_head * texts.len());
        for queries in texts {
            let text = of_text[queries.text].take().expect("a text is listed once");
            assert!(queries.n_keys <= text.capacity, "a cache has room for every position");
            assert!(queries.first_position() <= text.len, "positions are appended in order");
            text.len = queries.n_keys;
            let (keys, values, capacity) =
                (text.keys_of(0, head_dim, width).len(), text.values_of(0, head_dim, width).len(), text.capacity);
            let heads = text.keys.chunks_exact_mut(keys).zip(text.values.chunks_exact_mut(values)).take(n_head);
            of_heads.extend(heads.enumerate().map(|(head, parts)| (queries, head, capacity, Mutex::new(parts))));
        }
        // Each is locked once, by the one call that has its number.
        let append = |i: usize| {
            let (queries, head, capacity, parts) = &of_heads[i];
            let (keys, values) = &mut *parts.lock().unwrap_or_else(PoisonError::into_inner);
            for (position, row) in (queries.first_position()..).zip(queries.rows.clone()) {
                let row = &qkv.row(row)[n_embd + head * head_dim..];
                let (key, value) = (&row[..head_dim], &row[n_embd..][..head_dim]);
                let panel = &mut keys[position / width * width * head_dim..][..width * head_dim];
                panel.chunks_exact_mut(width).zip(key).for_each(|(out, x)| out[position % width] = *x);
                for (panel, part) in values.chunks_exact_mut(width * capacity).zip(value.chunks(width)) {
                    panel[position * width..][..part.len()].copy_from_slice(part);
                }
            }
        };
        let rows: usize = texts.iter().map(|queries| queries.rows.len()).sum();
        if rows * n_embd < WORTH_SHARING_AN_APPEND {
            (0..of_heads.len()).for_each(append);
        } else {
            workers.each(of_heads.len(), append);
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

/// Rows of a text, one per position: queries, keys or values of all heads.
#[derive(Clone, Copy)]
struct Rows<'a> {
    of: RowsView<'a>,
    /// The text's first row.
    first: usize,
    /// The column of head 0.
    col: usize,
}

/// Columns to write, which belong to rows of a text, one per position.
#[derive(Clone, Copy)]
struct Out<'a> {
    of: Shared<'a>,
    /// The text's first row.
    first: usize,
    /// The column of head 0.
    col: usize,
}

/// `out[i * stride + j] = row(j)[i]` for every row j < n and all its elements: four rows at a time, because four neighbouring elements are
/// stored at once.
#[inline(always)]
fn transpose<'a>(out: &mut [f32], stride: usize, n: usize, row: impl Fn(usize) -> &'a [f32]) {
    let mut j = 0;
    while j + 4 <= n {
        let four = row(j).iter().zip(row(j + 1)).zip(row(j + 2).iter().zip(row(j + 3)));
        for (out, ((a, b), (c, d))) in out.chunks_mut(stride).zip(four) {
            out[j..j + 4].copy_from_slice(&[*a, *b, *c, *d]);
        }
        j += 4;
    }
    for j in j..n {
        out.chunks_mut(stride).zip(row(j)).for_each(|(out, x)| out[j] = *x);
    }
}

/// One head of one text, and the rows of its queries, keys and values. Gradients use the same loops with other rows as queries,
/// keys and values. What runs among SIMD code is inlined into it: compiled by itself, it would be SSE code, which is several times
/// slower between AVX instructions.
#[derive(Clone)]
struct Head<'a> {
    queries: Rows<'a>,
    keys: Rows<'a>,
    values: Rows<'a>,
    cache: Option<&'a Cache>,
    text: &'a Queries,
    head: usize,
    head_dim: usize,
    scale: f32,
}

impl<'a> Head<'a> {
    fn new(of: Qkv<'a>, text: &'a Queries, heads: Heads, head: usize) -> Head<'a> {
        let Qkv { qkv, cache } = of;
        let n_embd = qkv.stride / 3;
        assert!(text.rows.end <= qkv.n && n_embd.is_multiple_of(heads.n_head));
        match cache {
            Some(cache) => assert!(text.n_keys <= cache.texts[text.text].len, "the keys were appended"),
            None => assert_eq!(text.n_keys, text.rows.len(), "without a cache the keys are those of the same rows"),
        }
        // A row of qkv is the query, the key and the value, one after the other.
        let [queries, keys, values] = [0, 1, 2].map(|n| Rows { of: qkv, first: text.rows.start, col: n * n_embd });
        let (head_dim, scale) = (n_embd / heads.n_head, heads.scale as f32);
        Head { queries, keys, values, cache, text, head, head_dim, scale }
    }

    /// A head that only mixes these rows: the gradients of queries, keys and values are such sums.
    fn mixing(values: Rows<'a>, text: &'a Queries, head: usize, head_dim: usize) -> Head<'a> {
        Head { queries: values, keys: values, values, cache: None, text, head, head_dim, scale: 1.0 }
    }

    #[inline(always)]
    fn part(&self, of: Rows<'a>, row: usize) -> &'a [f32] {
        &of.of.row(of.first + row)[of.col + self.head * self.head_dim..][..self.head_dim]
    }

    /// At least the first `n` keys, in panels [n / width][head_dim][width]. They come from the cache; without one they
    /// are packed into `to`.
    #[inline(always)]
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
            // The columns after the last key are left as they are: their scores are masked.
            let first = i * width;
            transpose(panel, width, width.min(n - first), |j| self.part(self.keys, first + j));
        }
        panels
    }

    /// At least the first `n` values, in panels [head_dim / width][n or more][width]. They come from the cache; without
    /// one they are packed into `to`.
    #[inline(always)]
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
                out[..dims.len()].copy_from_slice(&self.part(self.values, position)[dims.clone()]);
                out[dims.len()..].fill(0.0);
            }
        }
        panels
    }

    /// Prefetches what the head writes for these queries. The rows are far apart, so the processor does not do it by itself.
    #[inline(always)]
    fn prefetch_to_write(&self, z: Out<'_>, queries: Range<usize>) {
        for query in queries {
            let row = (z.first + query) * z.of.stride + z.col + self.head * self.head_dim;
            prefetch_to_write(z.of.data.wrapping_add(row), self.head_dim);
        }
    }

    /// The number of keys that the last of these queries attends to.
    fn n_seen(&self, queries: &Range<usize>) -> usize {
        self.text.first_position() + queries.end
    }

    /// Computes the masked scores `(scale q) . k` of one tile of queries with all keys up to the last query. Row i of
    /// the tile begins at `out[i * stride]` and is padded with [`MASKED`] to whole panels.
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
                let query = &self.part(self.queries, query)[dims.clone()];
                map(simd, TimesFactor { factor: self.scale }, [query], &mut left[..query.len()]);
            }
            for (i, panel) in keys.chunks_exact(width * self.head_dim).take(n_keys.div_ceil(width)).enumerate() {
                let b = &panel[dims.start * width..dims.end * width];
                let c = &mut out[i * width..];
                assert!(c.len() >= (queries.len() - 1) * stride + width);
                let operands = TileOperands {
                    a: left.as_ptr(),
                    b: b.as_ptr(),
                    dtype: Dtype::F32,
                    b_stride: width,
                    k: dims.len(),
                    sum: if d0 == 0 { Sum::First } else { Sum::Further },
                    next: b.as_ptr().wrapping_add(b.len()),
                    next_stride: width,
                };
                // SAFETY: `left` holds the queries, `b` has all steps, and the assertion checks that c holds a tile.
                unsafe { tile(simd, queries.len(), operands, c.as_mut_ptr(), stride) };
            }
        }
        for (query, row) in queries.zip(out.chunks_mut(stride)) {
            row[first + query + 1..n_keys.next_multiple_of(width)].fill(MASKED);
        }
    }

    /// Computes `pattern . v` of one tile of queries into z.
    #[inline(always)]
    fn mix<S: Simd>(
        &self,
        simd: S,
        pattern: Pattern<'_>,
        values: &[f32],
        left: &mut [f32],
        z: Out<'_>,
        queries: Range<usize>,
    ) {
        let width = columns::<S>();
        let n_values = values.len() / self.head_dim.next_multiple_of(width);
        for k0 in (0..pattern.n_keys).step_by(KC) {
            let keys = k0..(k0 + KC).min(pattern.n_keys);
            if pattern.transposed {
                transpose(left, STRIDE, keys.len(), |key| &pattern.rows.row(keys.start + key)[queries.clone()]);
            } else {
                copy_left(left, pattern.rows, 0..queries.len(), keys.clone())
            }
            if pattern.scale != 1.0 {
                for row in left.chunks_mut(STRIDE).take(queries.len()) {
                    in_place(simd, TimesFactor { factor: pattern.scale }, &mut row[..keys.len()]);
                }
            }
            for (i, panel) in values.chunks_exact(width * n_values).enumerate() {
                let dims = i * width..((i + 1) * width).min(self.head_dim);
                let col = z.col + self.head * self.head_dim;
                let cols = col + dims.start..col + dims.end;
                let b = &panel[keys.start * width..keys.end * width];
                let operands = TileOperands {
                    a: left.as_ptr(),
                    b: b.as_ptr(),
                    dtype: Dtype::F32,
                    b_stride: width,
                    k: keys.len(),
                    sum: if k0 == 0 { Sum::First } else { Sum::Further },
                    next: b.as_ptr().wrapping_add(b.len()),
                    next_stride: width,
                };
                let rows = z.first + queries.start..z.first + queries.end;
                // SAFETY: z has these rows and columns, and no other task writes them. `left` holds the rows of the
                // pattern, and `b` has all steps.
                unsafe { z.of.tile(simd, rows, cols, operands) };
            }
        }
    }
}

/// The weights of a mix: a pattern [Q, K] of one head, times a number. Of its transpose, keys take the place of queries, and the sum is
/// over queries.
#[derive(Clone, Copy)]
struct Pattern<'a> {
    /// Its rows; for one tile only the rows of its queries, but of a transpose all.
    rows: RowsView<'a>,
    /// The number of keys to sum over.
    n_keys: usize,
    transposed: bool,
    /// What every weight is multiplied with.
    scale: f32,
}

impl<'a> Pattern<'a> {
    /// The rows of one head in a tensor [H Q, K].
    fn of_head(of: &'a Tensor, head: usize, n_queries: usize) -> Pattern<'a> {
        let rows = RowsView { data: of.row(head * n_queries), n: n_queries, stride: of.cols };
        Pattern { rows, n_keys: of.cols, transposed: false, scale: 1.0 }
    }
}

/// What a task computes for the queries of a head.
#[derive(Clone, Copy)]
enum Goal<'a> {
    /// z [T, D], fused.
    Z(Out<'a>),
    /// The scores, into the matrix [Q, K] of this head, and this value where the key comes after the query.
    Scores(Shared<'a>, f32),
    /// z [Q, D], from the pattern of this head.
    Mix(Pattern<'a>, Out<'a>),
    /// Zeros [Q, D].
    Zeros(Out<'a>),
}

/// The tensor that has the queries, and the cache that has the keys and values, if there is one.
#[derive(Clone, Copy)]
pub(crate) struct Qkv<'a> {
    qkv: RowsView<'a>,
    cache: Option<&'a Cache>,
}

impl<'a> Qkv<'a> {
    pub(crate) fn new(qkv: &'a Tensor, cache: Option<&'a Cache>) -> Qkv<'a> {
        Qkv { qkv: RowsView::of(qkv), cache }
    }
}

/// A range of queries of one head of one text.
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
        // Taken and set again, because what a closure of `with` computes might be compiled without the instructions of `S`.
        let mut scratch = SCRATCH.take();
        let left = scratch.left.at_least(most_rows::<S>() * STRIDE);
        // Keys after the last query are masked, so they are not read. `Mix` reads them: an edit may have unmasked
        // them.
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
                        simd.vectorize(Softmax(&mut row[..seen]));
                    }
                    let rows = RowsView { data: pattern, n: tile.len(), stride };
                    head.prefetch_to_write(z, tile.clone());
                    let pattern = Pattern { rows, n_keys, transposed: false, scale: 1.0 };
                    head.mix(simd, pattern, values, left, z, tile);
                }
            }
            Goal::Scores(out, unseen) => {
                let keys = head.keys(n_seen, width, &mut scratch.keys);
                for tile in tiles {
                    head.scores(simd, tile.clone(), keys, left, pattern, stride);
                    for (query, row) in tile.zip(pattern.chunks_exact(stride)) {
                        // SAFETY: this is a row of this head's matrix [Q, K], and no other task writes it.
                        let (seen, masked) = unsafe { out.row(query, 0..n_keys) }.split_at_mut(first + query + 1);
                        seen.copy_from_slice(&row[..=first + query]);
                        masked.fill(unseen);
                    }
                }
            }
            Goal::Mix(pattern, z) => {
                head.prefetch_to_write(z, queries.clone());
                let values = head.values(n_keys, width, &mut scratch.values);
                for tile in tiles {
                    let of_tile = RowsView { data: pattern.rows.row(tile.start), n: tile.len(), ..pattern.rows };
                    let rows = if pattern.transposed { pattern.rows } else { of_tile };
                    head.mix(simd, Pattern { rows, ..pattern }, values, left, z, tile);
                }
            }
            Goal::Zeros(z) => {
                let col = z.col + head.head * head.head_dim;
                for query in queries {
                    // SAFETY: these cells belong to this head and query, and no other task writes them.
                    unsafe { z.of.row(z.first + query, col..col + head.head_dim) }.fill(0.0);
                }
            }
        }
        SCRATCH.set(scratch);
    }
}

/// Runs tasks for every head of every text. The queries of a head are split into enough parts to keep all threads
/// busy. Later queries attend to more keys, so their parts are shorter, and they run first.
fn share<'a, const N: usize>(
    workers: &Workers,
    texts: &'a [Queries],
    n_head: usize,
    n_embd: usize,
    tasks: impl Fn(&'a Queries, usize, Range<usize>) -> [Task<'a>; N] + Sync,
) {
    let (arch, threads) = (workers.arch, workers.threads);
    // Loading keys and values from memory costs as much as READING more queries.
    let work: usize = texts.iter().map(|text| (text.rows.len() + READING) * text.n_keys * n_embd).sum();
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
        tasks(text, *head, queries.clone()).into_iter().for_each(|task| arch.dispatch(task));
    };
    if alone { (0..parts.len()).for_each(run) } else { workers.each(parts.len(), run) }
}

/// Fused causal attention of every text, into z [T, D]. Stores only one tile of the pattern at a time.
pub(crate) fn attention(workers: &Workers, of: Qkv<'_>, texts: &[Queries], heads: Heads, z: &mut [f32]) {
    let n_embd = of.qkv.stride / 3;
    let z = Shared::new(z, n_embd, of.qkv.n, n_embd);
    share(workers, texts, heads.n_head, n_embd, |text, head, queries| {
        let z = Out { of: z, first: text.rows.start, col: 0 };
        [Task { head: Head::new(of, text, heads, head), queries, goal: Goal::Z(z) }]
    });
}

/// All scores of one text, into `out` [H Q, K]. A score is [`MASKED`] where the key comes after the query.
pub(crate) fn scores(workers: &Workers, of: Qkv<'_>, text: &Queries, heads: Heads, out: &mut [f32]) {
    let (n_queries, n_keys) = (text.rows.len(), text.n_keys);
    assert_eq!(out.len(), heads.n_head * n_queries * n_keys);
    let of_heads: Vec<_> =
        out.chunks_exact_mut(n_queries * n_keys).map(|head| Shared::new(head, n_keys, n_queries, n_keys)).collect();
    share(workers, std::slice::from_ref(text), heads.n_head, of.qkv.stride / 3, |text, head, queries| {
        [Task { head: Head::new(of, text, heads, head), queries, goal: Goal::Scores(of_heads[head], MASKED) }]
    });
}

/// z [Q, D] of one text, from a pattern [H Q, K]. It sums over all keys: an edited pattern need not be causal.
pub(crate) fn mix(workers: &Workers, pattern: &Tensor, of: Qkv<'_>, text: &Queries, heads: Heads, z: &mut [f32]) {
    let (n_queries, n_embd) = (text.rows.len(), of.qkv.stride / 3);
    let z = Out { of: Shared::new(z, n_embd, n_queries, n_embd), first: 0, col: 0 };
    share(workers, std::slice::from_ref(text), heads.n_head, n_embd, |text, head, queries| {
        let goal = Goal::Mix(Pattern::of_head(pattern, head, n_queries), z);
        [Task { head: Head::new(of, text, heads, head), queries, goal }]
    });
}

/// `dz . v` of one text that is run whole, into `out` [H Q, Q]; 0 where the key comes after the query.
pub(crate) fn mix_gradient(
    workers: &Workers,
    dz: &Tensor,
    qkv: &Tensor,
    text: &Queries,
    heads: Heads,
    out: &mut [f32],
) {
    let n_pos = text.rows.len();
    let of_heads: Vec<_> =
        out.chunks_exact_mut(n_pos * n_pos).map(|head| Shared::new(head, n_pos, n_pos, n_pos)).collect();
    let of = Qkv::new(qkv, None);
    share(workers, std::slice::from_ref(text), heads.n_head, dz.cols, |text, head, queries| {
        let of_text = Head::new(of, text, heads, head);
        let dz = Rows { of: RowsView::of(dz), first: 0, col: 0 };
        let goal = Goal::Scores(of_heads[head], 0.0);
        [Task { head: Head { queries: dz, keys: of_text.values, scale: 1.0, ..of_text }, queries, goal }]
    });
}

/// `patternᵀ . dz` of one text that is run whole, into the columns of the values of `out` [Q, 3D]; 0 into the others.
pub(crate) fn values_gradient(
    workers: &Workers,
    pattern: &Tensor,
    dz: &Tensor,
    text: &Queries,
    heads: Heads,
    out: &mut [f32],
) {
    let (n_pos, n_embd) = (text.rows.len(), dz.cols);
    let [dq, dk, dv] = of_qkv(out, n_pos, n_embd);
    let dz = Rows { of: RowsView::of(dz), first: 0, col: 0 };
    share(workers, std::slice::from_ref(text), heads.n_head, n_embd, |text, head, queries| {
        let pattern = Pattern { transposed: true, ..Pattern::of_head(pattern, head, n_pos) };
        [(dz, Goal::Zeros(dq)), (dz, Goal::Zeros(dk)), (dz, Goal::Mix(pattern, dv))].map(|(rows, goal)| Task {
            head: Head::mixing(rows, text, head, n_embd / heads.n_head),
            queries: queries.clone(),
            goal,
        })
    });
}

/// `scale * dscores . k` and `scale * dscoresᵀ . q` of one text that is run whole, into the columns of the queries and of the
/// keys of `out` [Q, 3D]; 0 into those of the values.
pub(crate) fn scores_gradient(
    workers: &Workers,
    dscores: &Tensor,
    qkv: &Tensor,
    text: &Queries,
    heads: Heads,
    out: &mut [f32],
) {
    let (n_pos, n_embd, scale) = (text.rows.len(), qkv.cols / 3, heads.scale as f32);
    let [dq, dk, dv] = of_qkv(out, n_pos, n_embd);
    let [q, k] = [0, 1].map(|n| Rows { of: RowsView::of(qkv), first: text.rows.start, col: n * n_embd });
    share(workers, std::slice::from_ref(text), heads.n_head, n_embd, |text, head, queries| {
        let by_query = Pattern { scale, ..Pattern::of_head(dscores, head, n_pos) };
        let by_key = Pattern { transposed: true, ..by_query };
        [(k, Goal::Mix(by_query, dq)), (q, Goal::Mix(by_key, dk)), (k, Goal::Zeros(dv))].map(|(rows, goal)| Task {
            head: Head::mixing(rows, text, head, n_embd / heads.n_head),
            queries: queries.clone(),
            goal,
        })
    });
}

/// The columns of the queries, the keys and the values in a matrix [Q, 3D].
fn of_qkv(out: &mut [f32], n_pos: usize, n_embd: usize) -> [Out<'_>; 3] {
    let of = Shared::new(out, 3 * n_embd, n_pos, 3 * n_embd);
    [0, 1, 2].map(|n| Out { of, first: 0, col: n * n_embd })
}
