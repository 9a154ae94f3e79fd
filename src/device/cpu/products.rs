//! Products of tensors with weights on the `cpu` device. Owns packed weights ([`Panels`]), the loops around the tile of
//! `microkernel.rs`, and how the work is split among threads.
//!
//! A weight is packed once, into panels as wide as a tile, in the order in which tiles read them. Its first product
//! with few rows reads the weight where the checkpoint has it, so a program that runs once does not pay for packing.
//! Read next: `microkernel.rs`.

use super::buffers::{Aligned, RowsView, Shared, Tensor};
use super::cache_size;
use super::microkernel::{
    KC, LARGEST, STRIDE, Sum, TileOperands, VECTORS, columns, most_rows, prefetch_to_write, tile, unroll,
};
use super::row_wise::ActivatedSum;
use super::simd_loops::{Plus, PlusPlus, map};
use super::widen::{Bf16, Element, F16, F32};
use super::{row_wise, simd_loops};
use crate::device::workers::Workers;
use crate::device::{Dtype, Epilogue, StoredWeight};
use pulp::{Arch, Simd, WithSimd};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// With fewer multiply-adds than this, one thread finishes before a second one would have woken up.
const WORTH_SHARING: usize = 1 << 17;

/// Up to this many rows, a weight's first product is faster from the checkpoint's memory than with packing.
pub(crate) const MOST_FROM_CHECKPOINT: usize = 256;

/// The most row tiles in a group, whose left side is packed once and reused for many panels. In WebAssembly tiles have few rows.
const GROUP: usize = if cfg!(target_arch = "wasm32") { 128 } else { 20 };

/// The fewest row tiles in a group, if there are as many. Every group reads all panels, so smaller groups would read them more often.
const LEAST_GROUP: usize = 4;

/// The fewest panels in a piece whose left side is packed part by part, and so again for every piece.
const LEAST_PANELS: usize = 8;

/// Pieces per thread. With many, threads end at about the same time even if one of them was delayed.
const PIECES: usize = 16;

/// The least work of a piece, in multiply-adds.
const LEAST_PIECE: usize = 1 << 18;

/// Reading an element from memory takes as long as this many multiply-adds.
pub(crate) const READING: usize = 8;

/// Words of 32 bits from what [`dots`] reads to what it prefetches into the first-level cache: 12 KiB, which leave room there for x.
const AHEAD: usize = 3 << 10;

/// What happens to a value `x . w` before it is stored.
#[derive(Clone, Copy)]
pub(crate) struct BiasAndEpilogue<'a> {
    /// Added per column.
    pub bias: &'a [f32],
    /// Applied after the bias.
    pub epilogue: Epilogue<'a, Tensor>,
}

/// Adds the bias to rows of sums, applies the epilogue, and stores the results.
struct StoreRows<'a> {
    after: Option<BiasAndEpilogue<'a>>,
    /// The sums of the first row, those of the second row after `stride` elements, and so on.
    sums: &'a [f32],
    stride: usize,
    out: Shared<'a>,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl WithSimd for StoreRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let StoreRows { after, sums, stride, out, rows, cols } = self;
        for (row, sums) in rows.zip(sums.chunks(stride)) {
            // SAFETY: no other task uses these cells.
            let to = unsafe { out.row(row, cols.clone()) };
            let Some(BiasAndEpilogue { bias, epilogue }) = after else {
                to.copy_from_slice(&sums[..to.len()]);
                continue;
            };
            let bias = &bias[cols.clone()];
            match epilogue {
                Epilogue::None => map(simd, Plus {}, [sums, bias], to),
                Epilogue::Activation(f) => map(simd, ActivatedSum(f), [sums, bias], to),
                Epilogue::Add(other) => {
                    map(simd, PlusPlus {}, [sums, bias, &other[row * out.stride..][cols.clone()]], to);
                }
            }
        }
    }
}

/// The right side [k, n] of products, packed into panels as wide as a tile: [n / columns][k][columns], padded with
/// zeros. Half-precision weights stay in half precision, so that a product with few rows reads half the bytes: a step of
/// a panel is a vector of words, each with an element of the left half of the columns and one of the right half. A single
/// tile widens them as it reads them; for several tiles each block is widened once, and stays in the first-level cache.
#[derive(Debug)]
pub(crate) struct Panels {
    k: usize,
    n: usize,
    columns: usize,
    dtype: Dtype,
    /// Words of 32 bits: one f32, or two half-precision elements.
    data: Aligned,
}

impl Panels {
    /// Packs `w` [k, n].
    pub(crate) fn new(workers: &Workers, w: &StoredWeight) -> Panels {
        let mut panels = Panels::empty(workers.arch, w.rows, w.cols, w.dtype);
        let (width, size) = (panels.columns, panels.size());
        workers.each_piece(&mut panels.data, size, |panel, out| {
            let cols = panel * width..((panel + 1) * width).min(w.cols);
            match w.dtype {
                Dtype::F32 => {
                    for (k, out) in out.chunks_exact_mut(width).enumerate() {
                        w.widen(k * w.cols + cols.start, &mut out[..cols.len()]);
                    }
                }
                Dtype::F16 | Dtype::Bf16 => {
                    let mut bits = vec![0; width];
                    let words: &mut [u32] = bytemuck::cast_slice_mut(out);
                    for (k, words) in words.chunks_exact_mut(width / 2).enumerate() {
                        w.half_bits(k * w.cols + cols.start, &mut bits[..cols.len()]);
                        let (lower, upper) = bits.split_at(width / 2);
                        for (word, (lower, upper)) in words.iter_mut().zip(lower.iter().zip(upper)) {
                            *word = u32::from(*lower) | u32::from(*upper) << 16;
                        }
                    }
                }
            }
        });
        panels
    }

    /// Packs the transpose of `table` [n, k].
    pub(crate) fn transposed(workers: &Workers, table: &StoredWeight) -> Panels {
        let mut panels = Panels::empty(workers.arch, table.cols, table.rows, table.dtype);
        let (width, size, dtype) = (panels.columns, panels.size(), panels.dtype);
        workers.each_piece(&mut panels.data, size, |panel, out| {
            let (mut row, mut bits) = (vec![0.0; table.cols], vec![0; table.cols]);
            for (j, token) in (panel * width..((panel + 1) * width).min(table.rows)).enumerate() {
                if dtype == Dtype::F32 {
                    table.widen(token * table.cols, &mut row);
                    out.chunks_exact_mut(width).zip(&row).for_each(|(out, x)| out[j] = *x);
                } else {
                    table.half_bits(token * table.cols, &mut bits);
                    let (word, shift) = (j % (width / 2), 16 * (j / (width / 2)));
                    let words: &mut [u32] = bytemuck::cast_slice_mut(out);
                    words
                        .chunks_exact_mut(width / 2)
                        .zip(&bits)
                        .for_each(|(out, x)| out[word] |= u32::from(*x) << shift);
                }
            }
        });
        panels
    }

    fn empty(arch: Arch, k: usize, n: usize, dtype: Dtype) -> Panels {
        let columns = tile_shape(arch).1;
        let mut panels = Panels { k, n, columns, dtype, data: Aligned::zeros(0) };
        panels.data = Aligned::in_large_pages(n.div_ceil(columns) * panels.size());
        panels
    }

    /// The length in `data` of this many elements, which must be even.
    fn place(&self, elements: usize) -> usize {
        elements * self.dtype.size() / size_of::<f32>()
    }

    /// The length in `data` of one panel.
    fn size(&self) -> usize {
        self.place(self.columns * self.k)
    }

    /// Rows `ks` of a panel, as they are stored.
    fn block(&self, panel: usize, ks: Range<usize>) -> &[f32] {
        let from = panel * self.size() + self.place(ks.start * self.columns);
        &self.data[from..][..self.place(ks.len() * self.columns)]
    }
}

/// Widens a block of half-precision elements into f32 columns.
struct WidenBlock<'a, E> {
    words: &'a [f32],
    out: &'a mut [f32],
    of: PhantomData<E>,
}

impl<E: Element> WithSimd for WidenBlock<'_, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (words, out) = (S::as_simd_u32s(bytemuck::cast_slice(self.words)).0, S::as_mut_simd_f32s(self.out).0);
        for (words, out) in words.chunks_exact(VECTORS / 2).zip(out.chunks_exact_mut(VECTORS)) {
            let (lower, upper) = out.split_at_mut(VECTORS / 2);
            for ((words, lower), upper) in words.iter().zip(lower).zip(upper) {
                [*lower, *upper] = E::widen(simd, *words);
            }
        }
    }
}

/// `out[t][i][..n] = after(x[t][ks_i] . w[ks_i])` for every range ks_i of `parts`. One range of all k makes a plain
/// product; one range per head makes the product of each head, which has no bias.
pub(crate) fn product(
    workers: &Workers,
    x: RowsView<'_>,
    w: &Panels,
    parts: &[Range<usize>],
    after: Option<BiasAndEpilogue<'_>>,
    out: &mut [f32],
) {
    assert!(parts.iter().all(|ks| ks.end <= w.k) && x.reach(w.k) <= x.data.len());
    assert!(parts.len() == 1 || after.is_none());
    let arch = workers.arch;
    let stride = parts.len() * w.n;
    let (n_rows, out) = (x.n, Shared::new(out, stride, x.n, stride));
    let longest = parts.iter().map(|ks| ks.len().div_ceil(KC)).max().unwrap_or(0);
    let (most_rows, n_panels) = (tile_shape(arch).0, w.n.div_ceil(w.columns));
    let n_tiles = n_rows.div_ceil(most_rows);
    // As many tiles as keep their whole left side in the second-level cache.
    let in_cache = left_elements() / (longest * STRIDE * most_rows);
    let group = in_cache.clamp(LEAST_GROUP, GROUP);
    let groups = n_tiles.div_ceil(group);
    let least = if in_cache < LEAST_GROUP.min(n_tiles) { LEAST_PANELS } else { 1 };
    let weight = w.n * parts.iter().map(|ks| ks.len()).sum::<usize>();
    // Numbers of products, so that a thread knows whose left side it has packed last.
    static PRODUCTS: AtomicU64 = AtomicU64::new(1);
    let number = PRODUCTS.fetch_add(1, Ordering::Relaxed);
    let split = Split { work: x.n * weight, weight, pieces: PIECES, least };
    share(workers, split, n_panels, groups * parts.len(), |panels, task| {
        let (part, rows) = (task / groups, tile_rows(task % groups, groups, n_rows));
        let ks = parts[part].clone();
        arch.dispatch(Packed { x, rows, of: (number, task), w, ks, after, out, to: part * w.n, panels });
    });
}

/// The most elements of the left side that are reused for every panel.
fn left_elements() -> usize {
    cache_size::second_level() / size_of::<f32>() / 8 * 7
}

/// Copies rows of columns `ks` of x into the layout that tiles read: [ks / KC][rows][STRIDE].
fn pack_left(left: &mut [f32], x: RowsView<'_>, rows: Range<usize>, ks: Range<usize>) {
    for (left, k0) in left.chunks_exact_mut(rows.len() * STRIDE).zip(ks.clone().step_by(KC)) {
        copy_left(left, x, rows.clone(), k0..(k0 + KC).min(ks.end));
    }
}

/// [`product`] with a weight where the checkpoint has it, row-major [k, n]. It takes the same sums in the same order.
/// For many rows it is half as fast, but it needs no memory for panels.
pub(crate) fn product_from_checkpoint(
    workers: &Workers,
    x: RowsView<'_>,
    w: &[f32],
    n: usize,
    after: BiasAndEpilogue<'_>,
    out: &mut [f32],
) {
    let k = w.len() / n;
    assert!(x.reach(k) <= x.data.len());
    let arch = workers.arch;
    let (out, width) = (Shared::new(out, n, x.n, n), tile_shape(arch).1);
    // Few pieces, because each reads a part of every row of the weight.
    let split = Split { work: x.n * k * n, weight: k * n, pieces: 2, least: 1 };
    share(workers, split, n.div_ceil(width), 1, |tiles, _| {
        arch.dispatch(FromCheckpoint {
            x,
            w: RowsView { data: w, n: k, stride: n },
            after,
            out,
            cols: tiles.start * width..(tiles.end * width).min(n),
        });
    });
}

/// `x . tableᵀ` for a few rows. It reads the table once, from front to back. Its sums run in SIMD lanes, not in tiles,
/// so they differ from those of [`product`] in the last bits. Only the number of rows decides which of the two runs.
/// With `n_head` heads, each head's rows of the table are multiplied with columns of x of their own.
pub(crate) fn dots(workers: &Workers, x: RowsView<'_>, table: &StoredWeight, n_head: usize, out: &mut [f32]) {
    let (n, k) = (table.rows, table.cols);
    assert!(x.reach(n_head * k) <= x.data.len());
    let mut own = Vec::new();
    let x = if table.dtype == Dtype::F32 { x } else { row_wise::lower_and_upper(x, k, n_head * k, &mut own) };
    let (arch, out, per_head) = (workers.arch, Shared::new(out, n, x.n, n), n / n_head);
    let split = Split { work: x.n * n * k, weight: n * k, pieces: PIECES, least: 1 };
    share(workers, split, n, 1, |tokens, _| arch.dispatch(DotsTask { x, table, out, tokens, per_head }));
}

/// One task of [`dots`]: some tokens.
struct DotsTask<'a> {
    x: RowsView<'a>,
    table: &'a StoredWeight,
    out: Shared<'a>,
    tokens: Range<usize>,
    /// Rows of the table that are multiplied with the same columns of x.
    per_head: usize,
}

/// Rows of x from which on [`DotsTask`] takes 8 of them with 2 tokens at a time, so that it widens the table once for all of them. It
/// takes fewer rows with 4 tokens at a time.
const MANY_ROWS: usize = 8;

impl WithSimd for DotsTask<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.table.dtype {
            Dtype::F32 => self.of::<S, F32>(simd),
            Dtype::F16 => self.of::<S, F16>(simd),
            Dtype::Bf16 => self.of::<S, Bf16>(simd),
        }
    }
}

impl DotsTask<'_> {
    #[inline(always)]
    fn of<S: Simd, E: Element>(&self, simd: S) {
        let mut token = self.tokens.start;
        while token < self.tokens.end {
            let left = (self.tokens.end - token).min(self.per_head - token % self.per_head);
            // If one sum needs several vectors, the sums of one token fill the registers, so tokens are processed one at a time.
            token += match (simd_loops::LANES / S::F32_LANES, left) {
                (1, 2..) if self.x.n >= MANY_ROWS => self.tokens::<S, E, 2, 1>(simd, token),
                (1, 4..) => self.tokens::<S, E, 4, 1>(simd, token),
                (1, _) => self.tokens::<S, E, 1, 1>(simd, token),
                (2, _) => self.tokens::<S, E, 1, 2>(simd, token),
                (4, _) => self.tokens::<S, E, 1, 4>(simd, token),
                _ => self.tokens::<S, E, 1, { simd_loops::LANES }>(simd, token),
            };
        }
    }

    /// Multiplies `M` tokens with all rows of x. A sum takes `V` vectors. Returns `M`.
    #[inline(always)]
    fn tokens<S: Simd, E: Element, const M: usize, const V: usize>(&self, simd: S, token: usize) -> usize {
        let (k, n) = (self.table.cols, self.x.n);
        let bytes = k * self.table.dtype.size();
        let all = self.table.blob.bytes();
        // Where the elements are not in the processor's byte order, this copies them.
        let mut swapped: Vec<u8> = Vec::new();
        let stored = &all[token * bytes..(token + M) * bytes];
        let of_tokens = if cfg!(target_endian = "little") {
            stored
        } else {
            swapped.extend(stored.chunks(self.table.dtype.size()).flat_map(|b| b.iter().rev()));
            &swapped
        };
        let mut first = 0;
        while first < n {
            match n - first {
                1 => first += self.some::<S, E, 1, M, V>(simd, of_tokens, token, first),
                2 | 3 => first += self.some::<S, E, 2, M, V>(simd, of_tokens, token, first),
                MANY_ROWS.. if M == 2 => first += self.some::<S, E, MANY_ROWS, M, V>(simd, of_tokens, token, first),
                _ => first += self.some::<S, E, 4, M, V>(simd, of_tokens, token, first),
            }
        }
        M
    }

    /// Multiplies rows of the table with `N` rows of x, from `first` on. Returns `N`.
    #[inline(always)]
    fn some<S: Simd, E: Element, const N: usize, const M: usize, const V: usize>(
        &self,
        simd: S,
        rows: &[u8],
        token: usize,
        first: usize,
    ) -> usize {
        let k = self.table.cols;
        let x = &self.x.row(first)[token / self.per_head * k..];
        // Only the pass over the first rows of x prefetches the table's rows of the next tokens.
        let ahead = if first == 0 { AHEAD } else { 0 };
        let dots = simd.vectorize(row_wise::Dots::<E, N, M, V> {
            rows,
            x,
            x_stride: self.x.stride,
            k,
            ahead,
            of: PhantomData,
        });
        unroll!(j of 0 1 2 3 < M, {
            unroll!(i of 0 1 2 3 4 5 6 7 < N, {
                // SAFETY: every row has a column for each token, and no other task has these tokens.
                unsafe { self.out.row(first + i, token + j..token + j + 1)[0] = dots[j][i] };
            });
        });
        N
    }
}

/// Most rows and the columns of a tile on this processor.
pub(crate) fn tile_shape(arch: Arch) -> (usize, usize) {
    struct Ask;
    impl WithSimd for Ask {
        type Output = (usize, usize);
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> (usize, usize) {
            (most_rows::<S>(), columns::<S>())
        }
    }
    arch.dispatch(Ask)
}

/// How a product is split.
struct Split {
    /// Multiply-adds.
    work: usize,
    /// Elements of the weight.
    weight: usize,
    /// The most pieces per thread.
    pieces: usize,
    /// The fewest panels in a piece.
    least: usize,
}

/// Calls `task(panels, part)` until it has covered all `n` panels of every part. The panels are split so that all
/// threads have work. A small product runs on the calling thread alone.
fn share(workers: &Workers, split: Split, n: usize, parts: usize, task: impl Fn(Range<usize>, usize) + Sync) {
    if workers.threads == 1 || split.work < WORTH_SHARING {
        return (0..parts).for_each(|part| task(0..n, part));
    }
    let worth = (split.work + READING * split.weight) / LEAST_PIECE;
    let pieces = worth.clamp(2 * workers.threads, split.pieces.max(2) * workers.threads);
    let chunk = n.div_ceil(pieces.div_ceil(parts)).max(split.least);
    let chunks = n.div_ceil(chunk);
    // The pieces of a part follow one another, so that most of them run on one thread.
    workers.each(chunks * parts, |i| task(i % chunks * chunk..((i % chunks + 1) * chunk).min(n), i / chunks));
}

impl Shared<'_> {
    /// Computes a tile into these rows and columns. There may be fewer columns than a tile has.
    ///
    /// # Safety
    /// What [`Shared::row`] requires holds for every row, and what [`tile`] requires holds for `operands`.
    #[inline(always)]
    pub(crate) unsafe fn tile<S: Simd>(&self, simd: S, rows: Range<usize>, cols: Range<usize>, operands: TileOperands) {
        let width = columns::<S>();
        // SAFETY: the caller promises it for the matrix and the operands, and `whole` holds the largest tile.
        unsafe {
            if cols.len() == width {
                let c = self.data.add(rows.start * self.stride + cols.start);
                return tile(simd, rows.len(), operands, c, self.stride);
            }
            let mut whole = [0.0; LARGEST];
            for (row, whole) in rows.clone().zip(whole.chunks_exact_mut(width)) {
                whole[..cols.len()].copy_from_slice(self.row(row, cols.clone()));
            }
            tile(simd, rows.len(), operands, whole.as_mut_ptr(), width);
            for (row, whole) in rows.zip(whole.chunks_exact(width)) {
                self.row(row, cols.clone()).copy_from_slice(&whole[..cols.len()]);
            }
        }
    }
}

/// The rows of tile i, where `rows` rows are split into `n` tiles as evenly as possible.
pub(crate) fn tile_rows(i: usize, n: usize, rows: usize) -> Range<usize> {
    i * rows / n..(i + 1) * rows / n
}

/// Copies columns `cols` of some rows of x into the layout of a tile's left side.
#[inline(always)]
pub(crate) fn copy_left(left: &mut [f32], x: RowsView<'_>, rows: Range<usize>, cols: Range<usize>) {
    for (out, row) in left.chunks_mut(STRIDE).zip(rows) {
        out[..cols.len()].copy_from_slice(&x.row(row)[cols.clone()]);
    }
}

/// Memory of a thread for products.
#[derive(Default)]
struct Scratch {
    /// The left side of a group of tiles, or of one tile.
    left: Aligned,
    /// Whose left side this is: the number of a product, its task, and the first k.
    left_of: (u64, usize, usize),
    /// A block of half-precision elements that was widened.
    other: Aligned,
    /// Sums of blocks.
    sums: Aligned,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// One task of [`product`]: some panels and a group of rows.
struct Packed<'a> {
    x: RowsView<'a>,
    rows: Range<usize>,
    /// The number of this product and the task within it.
    of: (u64, usize),
    w: &'a Panels,
    ks: Range<usize>,
    after: Option<BiasAndEpilogue<'a>>,
    out: Shared<'a>,
    /// The first column in `out`.
    to: usize,
    panels: Range<usize>,
}

impl WithSimd for Packed<'_> {
    type Output = ();

    /// Packs the left side, or as much of its columns as fits the second-level cache at once, and multiplies it with one
    /// panel after the other, block by block. The first tile brings a block of a panel into the first-level cache and the other tiles
    /// reuse it; meanwhile they prefetch the next block.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Taken and set again, because what a closure of `with` computes might be compiled without the instructions of `S`.
        let mut scratch = SCRATCH.take();
        let Scratch { left, left_of, other, sums } = &mut scratch;
        let at_once = KC * (left_elements() / (self.rows.len() * STRIDE)).max(1);
        // The sums of a panel are not stored in the result before they are complete: it is in no cache, and its rows are far apart.
        let size = self.rows.len() * columns::<S>();
        let kept = if at_once < self.ks.len() { self.panels.len() } else { 1 };
        let sums_of = sums.at_least(kept * size);
        for k1 in self.ks.clone().step_by(at_once) {
            let ks = k1..(k1 + at_once).min(self.ks.end);
            let left = left.at_least(ks.len().div_ceil(KC) * self.rows.len() * STRIDE);
            let of = (self.of.0, self.of.1, k1);
            if *left_of != of {
                pack_left(left, self.x, self.rows.clone(), ks.clone());
                *left_of = of;
            }
            for (panel, place) in self.panels.clone().zip((0..kept).cycle()) {
                let sums = &mut sums_of[place * size..][..size];
                for (k0, left) in ks.clone().step_by(KC).zip(left.chunks_exact(self.rows.len() * STRIDE)) {
                    let block = k0..(k0 + KC).min(ks.end);
                    let next = if block.end < ks.end { (panel, block.end) } else { (panel + 1, ks.start) };
                    self.block(simd, left, panel, block, next, sums, other);
                }
            }
        }
        SCRATCH.set(scratch);
    }
}

impl Packed<'_> {
    /// Multiplies one block of one panel, and applies `after` if it is the panel's last block. `next` is the panel and
    /// the k at which the block to prefetch begins. `sums` are those of the panel's blocks so far.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "a block, and the memory for it")]
    fn block<S: Simd>(
        &self,
        simd: S,
        left: &[f32],
        panel: usize,
        ks: Range<usize>,
        next: (usize, usize),
        sums: &mut [f32],
        scratch: &mut Aligned,
    ) {
        let width = columns::<S>();
        let cols = self.to + panel * width..self.to + ((panel + 1) * width).min(self.w.n);
        let n_tiles = self.rows.len().div_ceil(most_rows::<S>());
        let alone = n_tiles == 1;
        let next = next.0 * self.w.size() + self.w.place(next.1 * width);
        // Words from one step of k to the next.
        let step = self.w.place(width);
        let stored = self.w.block(panel, ks.clone());
        let (mut block, mut dtype, mut b_stride) = (stored, self.w.dtype, step);
        if dtype != Dtype::F32 && !alone {
            let widened = scratch.at_least(ks.len() * width);
            match dtype {
                Dtype::F16 => simd.vectorize(WidenBlock::<F16> { words: stored, out: widened, of: PhantomData }),
                _ => simd.vectorize(WidenBlock::<Bf16> { words: stored, out: widened, of: PhantomData }),
            }
            (block, dtype, b_stride) = (&*widened, Dtype::F32, width);
        }
        let (first, last) = (ks.start == self.ks.start, ks.end == self.ks.end);
        for i in 0..n_tiles {
            let rows = tile_rows(i, n_tiles, self.rows.len());
            // Each tile issues a share of the prefetches, so that they are spread over the whole multiplication. Issued faster, they
            // would occupy the core's few line-fill buffers, and the loads of the tiles would wait.
            let share = step.div_ceil(n_tiles);
            let left = &left[rows.start * STRIDE..rows.end * STRIDE];
            let operands = TileOperands {
                a: left.as_ptr(),
                b: block.as_ptr(),
                dtype,
                b_stride,
                k: ks.len(),
                sum: if first { Sum::First } else { Sum::Further },
                next: self.w.data.as_ptr().wrapping_add(next + i * ks.len() * share),
                next_stride: share,
            };
            let sums = &mut sums[rows.start * width..rows.end * width];
            let rows = self.rows.start + rows.start..self.rows.start + rows.end;
            if last {
                // The rows of the result may be in no cache, or in another core's. They are prefetched while the tile is computed.
                for row in rows.clone() {
                    prefetch_to_write(self.out.data.wrapping_add(row * self.out.stride + cols.start), cols.len());
                }
            }
            // SAFETY: `left` holds the rows of the tile, `block` the steps of k, and `sums` a whole tile.
            unsafe { tile(simd, rows.len(), operands, sums.as_mut_ptr(), width) };
            if last {
                // `product` checked rows and columns against the matrix, and no other task writes these cells.
                let (after, cols) = (self.after, cols.clone());
                simd.vectorize(StoreRows { after, sums, stride: width, out: self.out, rows, cols });
            }
        }
    }
}

/// One task of [`product_from_checkpoint`]: some columns.
struct FromCheckpoint<'a> {
    x: RowsView<'a>,
    w: RowsView<'a>,
    after: BiasAndEpilogue<'a>,
    out: Shared<'a>,
    cols: Range<usize>,
}

impl WithSimd for FromCheckpoint<'_> {
    type Output = ();

    /// Takes eight rows of the weight at a time, from the first column to the last, in the order of memory. The partial
    /// sums stay in the first-level cache. The tiles after the first find the block of the weight in the second-level
    /// cache.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const STEPS: usize = 8;
        let FromCheckpoint { x, w, after, out, cols } = self;
        let width = columns::<S>();
        let padded = cols.len().next_multiple_of(width);
        let mut scratch = SCRATCH.take();
        let Scratch { left, left_of, sums, .. } = &mut scratch;
        *left_of = Default::default();
        let left = left.at_least(most_rows::<S>() * STRIDE);
        let most = x.n.min(most_rows::<S>());
        let (sums, edge) = sums.at_least((most + STEPS) * padded.max(width)).split_at_mut(most * padded);
        let n_tiles = x.n.div_ceil(most_rows::<S>());
        for (k0, i) in (0..w.n).step_by(KC).flat_map(|k0| (0..n_tiles).map(move |i| (k0, i))) {
            let (ks, rows) = (k0..(k0 + KC).min(w.n), tile_rows(i, n_tiles, x.n));
            copy_left(left, x, rows.clone(), ks.clone());
            for k in ks.clone().step_by(STEPS) {
                let steps = STEPS.min(ks.end - k);
                for col in cols.clone().step_by(width) {
                    let mut b = (w.row(k)[col..].as_ptr(), w.stride);
                    if col + width > cols.end {
                        // The last columns are fewer than a tile reads, so they are copied to `edge`. Sums of the
                        // columns beyond them are dropped.
                        for (step, e) in edge.chunks_exact_mut(width).take(steps).enumerate() {
                            let row = &w.row(k + step)[col..cols.end];
                            e[..row.len()].copy_from_slice(row);
                        }
                        b = (edge.as_ptr(), width);
                    }
                    let operands = TileOperands {
                        a: left[k - k0..].as_ptr(),
                        b: b.0,
                        dtype: Dtype::F32,
                        b_stride: b.1,
                        k: steps,
                        sum: if k == k0 { Sum::First } else { Sum::Within },
                        next: b.0.wrapping_add(STEPS * b.1),
                        next_stride: b.1,
                    };
                    // SAFETY: `left` holds the tile's rows of x, b has `steps` rows, and `sums` has room for whole
                    // tiles.
                    unsafe { tile(simd, rows.len(), operands, sums[col - cols.start..].as_mut_ptr(), padded) };
                }
            }
            for (row, sums) in rows.clone().zip(sums.chunks_exact_mut(padded)) {
                // SAFETY: `product_from_checkpoint` checked rows and columns, and no other task writes these columns.
                let stored = unsafe { out.row(row, cols.clone()) };
                if k0 > 0 {
                    simd_loops::add(simd, &mut sums[..cols.len()], stored);
                }
                if ks.end < w.n {
                    stored.copy_from_slice(&sums[..cols.len()]);
                }
            }
            if ks.end == w.n {
                let after = Some(after);
                simd.vectorize(StoreRows { after, sums, stride: padded, out, rows, cols: cols.clone() });
            }
        }
        SCRATCH.set(scratch);
    }
}
