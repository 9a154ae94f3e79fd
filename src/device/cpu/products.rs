//! Products of tensors with weights on the `cpu` device. Owns packed weights ([`Panels`]), the loops around the tile of
//! `microkernel.rs`, and how the work is split among threads.
//!
//! A weight is packed once, into panels as wide as a tile, in the order in which tiles read them. Its first product
//! with few rows reads the weight where the checkpoint has it, so a program that runs once does not pay for packing.
//! Read next: `microkernel.rs`.

use super::buffers::{Aligned, Shared, Tensor};
use super::microkernel::{KC, LARGEST, Operands, STRIDE, Sum, columns, most_rows, prefetch, tile};
use super::row_wise;
use super::workers::Workers;
use crate::device::{Dtype, Epilogue, StoredWeight};
use half::slice::HalfFloatSliceExt;
use pulp::{Arch, Simd, WithSimd};
use std::cell::RefCell;
use std::ops::Range;

/// With fewer multiply-adds than this, one thread finishes before a second one would have woken up.
const WORTH_SHARING: usize = 1 << 17;

/// Up to this many rows, a weight's first product is faster from the checkpoint's memory than with packing.
pub(crate) const MOST_IN_PLACE: usize = 256;

/// The most row tiles in one task. Every task reads its panels once, so smaller groups would read them more often. In
/// WebAssembly tiles have few rows.
const GROUP: usize = if cfg!(target_arch = "wasm32") { 128 } else { 20 };

/// The most elements of the left side that are reused for every panel: 1 MiB, so that they stay in the second-level
/// cache.
const LEFT_AT_ONCE: usize = 256 << 10;

/// Rows of the left side that one task copies. Up to four times as many are copied by one thread, which is faster than
/// waking a second one.
const PACKED_AT_ONCE: usize = 64;

/// Tasks per thread. With several, a delayed thread does not delay all the others.
const TASKS: usize = 2;

/// A view of the rows of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct RowsView<'a> {
    pub data: &'a [f32],
    pub n: usize,
    /// Elements from the start of one row to the start of the next.
    pub stride: usize,
}

impl<'a> RowsView<'a> {
    pub(crate) fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..]
    }

    /// All rows of a tensor.
    pub(crate) fn of(x: &'a Tensor) -> RowsView<'a> {
        RowsView { data: x, n: x.rows, stride: x.cols }
    }

    /// The number of elements of `data` that rows of `cols` columns need.
    fn reach(&self, cols: usize) -> usize {
        (self.n - 1) * self.stride + cols
    }
}

/// What happens to a value `x . w` before it is stored.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    /// Added per column.
    pub bias: Option<&'a [f32]>,
    /// Applied after the bias.
    pub epilogue: Epilogue<'a, Tensor>,
}

/// Adds the bias and applies the epilogue to a tile, in place.
struct FinishTile<'a> {
    finish: Finish<'a>,
    out: Shared<'a>,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl WithSimd for FinishTile<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let FinishTile { finish, out, rows, cols } = self;
        for row in rows {
            // SAFETY: this task has just written these cells, and no other task uses them.
            let values = unsafe { out.row(row, cols.clone()) };
            if let Some(bias) = finish.bias {
                row_wise::add(simd, values, &bias[cols.clone()]);
            }
            match finish.epilogue {
                Epilogue::None => {}
                Epilogue::Activation(f) => row_wise::activation(simd, f, values),
                Epilogue::Add(other) => row_wise::add(simd, values, &other[row * out.stride + cols.start..]),
            }
        }
    }
}

/// The right side [k, n] of products, packed into panels as wide as a tile: [n / columns][k][columns], padded with
/// zeros. Half-precision weights stay in half precision, so that a product with few rows reads half the bytes. Each
/// block is widened just before the tiles read it, and stays in the first-level cache meanwhile.
#[derive(Debug)]
pub(crate) struct Panels {
    k: usize,
    n: usize,
    columns: usize,
    dtype: Dtype,
    /// One f32 per element, or one f32 for two half-precision elements.
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
                    let bits: &mut [u16] = bytemuck::cast_slice_mut(out);
                    for (k, out) in bits.chunks_exact_mut(width).enumerate() {
                        w.half_bits(k * w.cols + cols.start, &mut out[..cols.len()]);
                    }
                }
            }
        });
        panels
    }

    /// Packs the transpose of `table` [n, k].
    pub(crate) fn transposed(workers: &Workers, table: &StoredWeight) -> Panels {
        let mut panels = Panels::empty(workers.arch, table.cols, table.rows, Dtype::F32);
        let (width, size) = (panels.columns, panels.size());
        workers.each_piece(&mut panels.data, size, |panel, out| {
            let mut row = vec![0.0; table.cols];
            for (j, token) in (panel * width..((panel + 1) * width).min(table.rows)).enumerate() {
                table.widen(token * table.cols, &mut row);
                out.chunks_exact_mut(width).zip(&row).for_each(|(out, x)| out[j] = *x);
            }
        });
        panels
    }

    fn empty(arch: Arch, k: usize, n: usize, dtype: Dtype) -> Panels {
        let columns = tile_shape(arch).1;
        let mut panels = Panels { k, n, columns, dtype, data: Aligned::zeros(0) };
        panels.data = Aligned::zeros(n.div_ceil(columns) * panels.size());
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

    /// Rows `ks` of a panel. Half-precision elements are widened into `scratch`.
    #[inline(always)]
    fn block<'a>(&'a self, panel: usize, ks: Range<usize>, scratch: &'a mut Aligned) -> &'a [f32] {
        let from = panel * self.size() + self.place(ks.start * self.columns);
        let stored = &self.data[from..][..self.place(ks.len() * self.columns)];
        if self.dtype == Dtype::F32 {
            return stored;
        }
        let bits: &[u16] = bytemuck::cast_slice(stored);
        let widened = scratch.at_least(bits.len());
        match self.dtype {
            Dtype::F16 => bytemuck::cast_slice::<u16, half::f16>(bits).convert_to_f32_slice(widened),
            _ => widened.iter_mut().zip(bits).for_each(|(y, b)| *y = f32::from_bits(u32::from(*b) << 16)),
        }
        widened
    }
}

/// `out[t][i][..n] = finish(x[t][ks_i] . w[ks_i])` for every range ks_i of `parts`. One range of all k makes a plain
/// product; one range per head makes the product of each head, which has no bias.
pub(crate) fn product(
    workers: &Workers,
    x: RowsView<'_>,
    w: &Panels,
    parts: &[Range<usize>],
    finish: Finish<'_>,
    out: &mut [f32],
) {
    assert!(parts.iter().all(|ks| ks.end <= w.k) && x.reach(w.k) <= x.data.len());
    assert!(parts.len() == 1 || finish.bias.is_none());
    let arch = workers.arch;
    let lefts: Vec<_> = parts.iter().map(|ks| pack_left(workers, x, ks)).collect();
    let lefts: Vec<&[f32]> = lefts.iter().map(|left| &**left).collect();
    let stride = parts.len() * w.n;
    let (n_rows, out) = (x.n, Shared::new(out, stride, x.n, stride));
    let (n_tiles, n_panels) = (x.n.div_ceil(tile_shape(arch).0), w.n.div_ceil(w.columns));
    let groups = n_tiles.div_ceil(GROUP);
    let work = x.n * w.n * parts.iter().map(|ks| ks.len()).sum::<usize>();
    share(workers, work, n_panels, groups * parts.len(), |panels, task| {
        let (part, tiles) = (task / groups, tile_rows(task % groups, groups, n_tiles));
        let (left, ks) = (lefts[part], parts[part].clone());
        arch.dispatch(Packed { left, n_rows, n_tiles, w, ks, finish, out, to: part * w.n, panels, tiles });
    });
}

/// Columns `ks` of x, packed as tiles read them: [ks / KC][rows][STRIDE].
fn pack_left(workers: &Workers, x: RowsView<'_>, ks: &Range<usize>) -> Tensor {
    let some = |i: usize, left: &mut [f32]| {
        for (i, left) in (i * PACKED_AT_ONCE..).zip(left.chunks_exact_mut(STRIDE)) {
            let first = ks.start + i / x.n * KC;
            let values = &x.row(i % x.n)[first..(first + KC).min(ks.end)];
            left[..values.len()].copy_from_slice(values);
        }
    };
    let each = PACKED_AT_ONCE * STRIDE;
    Tensor::filled(&workers.memory, ks.len().div_ceil(KC) * x.n, STRIDE, |left| {
        if left.len() <= 4 * each { some(0, left) } else { workers.each_piece(left, each, some) }
    })
}

/// [`product`] with a weight where the checkpoint has it, row-major [k, n]. It takes the same sums in the same order.
/// For many rows it is half as fast, but it needs no memory for panels.
pub(crate) fn product_in_place(
    workers: &Workers,
    x: RowsView<'_>,
    w: &[f32],
    n: usize,
    finish: Finish<'_>,
    out: &mut [f32],
) {
    let k = w.len() / n;
    assert!(x.reach(k) <= x.data.len());
    let arch = workers.arch;
    let (out, width) = (Shared::new(out, n, x.n, n), tile_shape(arch).1);
    share(workers, x.n * k * n, n.div_ceil(width), 1, |tiles, _| {
        arch.dispatch(InPlace {
            x,
            w: RowsView { data: w, n: k, stride: n },
            finish,
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
    let (arch, out, per_head) = (workers.arch, Shared::new(out, n, x.n, n), n / n_head);
    share(workers, x.n * n * k, n, 1, |tokens, _| arch.dispatch(Dots { x, table, out, tokens, per_head }));
}

/// One task of [`dots`]: some tokens.
struct Dots<'a> {
    x: RowsView<'a>,
    table: &'a StoredWeight,
    out: Shared<'a>,
    tokens: Range<usize>,
    /// Rows of the table that are multiplied with the same columns of x.
    per_head: usize,
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (k, n) = (self.table.cols, self.x.n);
        let in_place = self.table.in_place();
        let mut values = vec![0.0; if in_place.is_some() { 0 } else { k }];
        for token in self.tokens.clone() {
            let values = match in_place {
                Some(all) => &all[token * k..(token + 1) * k],
                None => {
                    self.table.widen(token * k, &mut values);
                    &values
                }
            };
            let mut first = 0;
            while first < n {
                match n - first {
                    1 => first += self.some::<S, 1>(simd, values, token, first),
                    2 | 3 => first += self.some::<S, 2>(simd, values, token, first),
                    _ => first += self.some::<S, 4>(simd, values, token, first),
                }
            }
        }
    }
}

impl Dots<'_> {
    /// Multiplies the values of one token with `N` rows of x, from `first` on. Returns `N`.
    #[inline(always)]
    fn some<S: Simd, const N: usize>(&self, simd: S, values: &[f32], token: usize, first: usize) -> usize {
        let at = token / self.per_head * values.len();
        let rows = std::array::from_fn(|i| &self.x.row(first + i)[at..at + values.len()]);
        for (i, dot) in row_wise::dots::<S, N>(simd, values, rows).into_iter().enumerate() {
            // SAFETY: every row has a column for each token, and no other task has these tokens.
            unsafe { self.out.row(first + i, token..token + 1)[0] = dot };
        }
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

/// Calls `task(pieces, part)` until it has covered all `n` pieces of every part. The pieces are split so that all
/// threads have work. A small product runs on the calling thread alone.
fn share(workers: &Workers, work: usize, n: usize, parts: usize, task: impl Fn(Range<usize>, usize) + Sync) {
    if workers.threads == 1 || work < WORTH_SHARING {
        return (0..parts).for_each(|part| task(0..n, part));
    }
    let chunk = n.div_ceil((TASKS * workers.threads).div_ceil(parts));
    let chunks = n.div_ceil(chunk);
    workers.each(chunks * parts, |i| task(i / parts * chunk..((i / parts + 1) * chunk).min(n), i % parts));
}

impl Shared<'_> {
    /// Computes a tile into these rows and columns. There may be fewer columns than a tile has.
    ///
    /// # Safety
    /// What [`Shared::row`] requires holds for every row, and what [`tile`] requires holds for `operands`.
    #[inline(always)]
    pub(crate) unsafe fn tile<S: Simd>(&self, simd: S, rows: Range<usize>, cols: Range<usize>, operands: Operands) {
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
pub(crate) fn copy_left(left: &mut [f32], x: RowsView<'_>, rows: Range<usize>, cols: Range<usize>) {
    for (out, row) in left.chunks_mut(STRIDE).zip(rows) {
        out[..cols.len()].copy_from_slice(&x.row(row)[cols.clone()]);
    }
}

thread_local! {
    /// For left sides or widened blocks, and for partial sums.
    static SCRATCH: RefCell<[Aligned; 2]> = RefCell::default();
}

/// One task of [`product`]: some panels and some row tiles.
struct Packed<'a> {
    left: &'a [f32],
    n_rows: usize,
    n_tiles: usize,
    w: &'a Panels,
    ks: Range<usize>,
    finish: Finish<'a>,
    out: Shared<'a>,
    /// The first column in `out`.
    to: usize,
    panels: Range<usize>,
    tiles: Range<usize>,
}

impl WithSimd for Packed<'_> {
    type Output = ();

    /// As many blocks of the left side as fit the second-level cache are multiplied with one panel after the other, so
    /// that the sums of a tile are still cached when the next block is added to them. The first tile brings a block of
    /// a panel into the cache and the other tiles reuse it; meanwhile they prefetch the next block.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        SCRATCH.with_borrow_mut(|[scratch, _]| {
            let at_once = KC * (LEFT_AT_ONCE / (self.tiles.len() * most_rows::<S>() * STRIDE)).max(1);
            for k1 in self.ks.clone().step_by(at_once) {
                let ks = k1..(k1 + at_once).min(self.ks.end);
                for panel in self.panels.clone() {
                    for k0 in ks.clone().step_by(KC) {
                        let block = k0..(k0 + KC).min(ks.end);
                        let next = if block.end < ks.end { (panel, block.end) } else { (panel + 1, ks.start) };
                        self.block(simd, panel, block, next, scratch);
                    }
                }
            }
        });
    }
}

impl Packed<'_> {
    /// Multiplies one block of one panel, and applies `finish` if it is the panel's last block. `next` is the panel and
    /// the k at which the block to prefetch begins.
    #[inline(always)]
    fn block<S: Simd>(&self, simd: S, panel: usize, ks: Range<usize>, next: (usize, usize), scratch: &mut Aligned) {
        let width = columns::<S>();
        let cols = self.to + panel * width..self.to + ((panel + 1) * width).min(self.w.n);
        let block = self.w.block(panel, ks.clone(), scratch);
        let (first, last) = (ks.start == self.ks.start, ks.end == self.ks.end);
        let alone = self.tiles.len() == 1;
        let next = next.0 * self.w.size() + self.w.place(next.1 * width);
        // The length in `data` of one step of k.
        let step = self.w.place(width);
        let left = &self.left[(ks.start - self.ks.start) / KC * self.n_rows * STRIDE..];
        for (nth, i) in self.tiles.clone().enumerate() {
            let rows = tile_rows(i, self.n_tiles, self.n_rows);
            // Steps of the next block that the tiles before this one have prefetched.
            let share = nth * ks.len().div_ceil(self.tiles.len());
            let left = &left[rows.start * STRIDE..rows.end * STRIDE];
            let operands = Operands {
                a: left.as_ptr(),
                b: block.as_ptr(),
                b_stride: width,
                k: ks.len(),
                sum: if first { Sum::First } else { Sum::Further },
                // A single tile prefetches the whole next block; several tiles share it.
                next: self.w.data.as_ptr().wrapping_add(if alone { next } else { next + share * step }),
                next_stride: if alone { step } else { step / 2 },
            };
            if first {
                // A result that is recorded goes to memory that no cache holds. It comes while the tile is computed.
                for row in rows.clone() {
                    let line = self.out.data.wrapping_add(row * self.out.stride + cols.start);
                    prefetch(line);
                    prefetch(line.wrapping_add(16));
                }
            }
            // SAFETY: `product` checked rows and columns against the matrix, and no other task writes these cells.
            // `left` holds the rows of the tile, and `block` the steps of k.
            unsafe {
                self.out.tile(simd, rows.clone(), cols.clone(), operands);
            }
            if last {
                simd.vectorize(FinishTile { finish: self.finish, out: self.out, rows, cols: cols.clone() });
            }
        }
    }
}

/// One task of [`product_in_place`]: some columns.
struct InPlace<'a> {
    x: RowsView<'a>,
    w: RowsView<'a>,
    finish: Finish<'a>,
    out: Shared<'a>,
    cols: Range<usize>,
}

impl WithSimd for InPlace<'_> {
    type Output = ();

    /// Takes eight rows of the weight at a time, from the first column to the last, in the order of memory. The partial
    /// sums stay in the first-level cache. The tiles after the first find the block of the weight in the second-level
    /// cache.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const STEPS: usize = 8;
        let InPlace { x, w, finish, out, cols } = self;
        let width = columns::<S>();
        let padded = cols.len().next_multiple_of(width);
        SCRATCH.with_borrow_mut(|[left, sums]| {
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
                        let operands = Operands {
                            a: left[k - k0..].as_ptr(),
                            b: b.0,
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
                for (row, sums) in rows.zip(sums.chunks_exact(padded)) {
                    // SAFETY: `product_in_place` checked rows and columns, and no other task writes these columns.
                    let stored = unsafe { out.row(row, cols.clone()) };
                    match k0 {
                        0 => stored.copy_from_slice(&sums[..cols.len()]),
                        _ => stored.iter_mut().zip(sums).for_each(|(y, sum)| *y += *sum),
                    }
                }
            }
            simd.vectorize(FinishTile { finish, out, rows: 0..x.n, cols });
        });
    }
}
