//! Weight products of the `cpu` device: which rows and columns are computed by whom, from where. Owns packed weights
//! ([`Panels`]) and the loops around `tile.rs`.
//!
//! A weight is packed, once, into panels as wide as a tile, in the order in which tiles read them. The first time, unless the
//! rows are many, it is multiplied from where it lies instead: a program that runs once never packs.

use super::buffers::{Aligned, Shared, Tensor};
use super::microkernel::{KC, LARGEST, Operands, STRIDE, Sum, columns, most_rows, tile};
use super::row_wise;
use super::workers::Workers;
use crate::device::{Dtype, Epilogue, StoredWeight};
use half::slice::HalfFloatSliceExt;
use pulp::{Arch, Simd, WithSimd};
use std::cell::RefCell;
use std::ops::Range;

/// Below this many multiply-adds a product is done before a second thread would have woken up.
const WORTH_SHARING: usize = 1 << 17;

/// Rows up to which a weight that is used for the first time is better left where it is.
pub const MOST_IN_PLACE: usize = 256;

/// Tiles of rows that one task takes a panel to: fewer, and the panels pass by too often.
const GROUP: usize = 20;

/// Numbers of a left side that are used again for every panel, at most: 1 MB, a second-level cache.
const LEFT_AT_ONCE: usize = 256 << 10;

/// Rows of a left side that are copied by one thread; for four times as many a second thread would come too late.
const PACKED_AT_ONCE: usize = 64;

/// Tasks for each thread, so that a thread that was held up does not hold up all.
const TASKS: usize = 2;

/// Rows of a matrix somewhere in memory.
#[derive(Clone, Copy)]
pub struct RowsView<'a> {
    pub data: &'a [f32],
    pub n: usize,
    /// Numbers from one row to the next.
    pub stride: usize,
}

impl<'a> RowsView<'a> {
    pub fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride..]
    }

    /// All rows of a tensor.
    pub fn of(x: &'a Tensor) -> RowsView<'a> {
        RowsView { data: x, n: x.rows, stride: x.cols }
    }

    /// One past the last number, where each row has `cols`.
    fn reach(&self, cols: usize) -> usize {
        (self.n - 1) * self.stride + cols
    }
}

/// What happens to a value `x . w` before it is stored.
#[derive(Clone, Copy)]
pub struct Finish<'a> {
    /// Added per column.
    pub bias: Option<&'a [f32]>,
    /// Applied after the bias.
    pub epilogue: Epilogue<'a, Tensor>,
}

/// Finishes a tile's values where they lie.
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
            // SAFETY: a tile that was just written by the same task.
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

/// The right side of products: [k, n] in panels of as many columns as a tile has, [n / columns][k][columns], filled up with
/// zeros. Half-precision weights stay as they are stored, so that few rows read half the bytes: a block is widened just before
/// tiles read it, and stays in the first-level cache meanwhile.
#[derive(Debug)]
pub struct Panels {
    k: usize,
    n: usize,
    columns: usize,
    dtype: Dtype,
    /// f32, or two half-precision numbers in the place of one.
    data: Aligned,
}

impl Panels {
    /// Packs `w` [k, n].
    pub fn new(workers: &Workers, w: &StoredWeight) -> Panels {
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
    pub fn transposed(workers: &Workers, table: &StoredWeight) -> Panels {
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

    /// f32s of memory that hold so many numbers, an even number.
    fn place(&self, numbers: usize) -> usize {
        numbers * self.dtype.size() / size_of::<f32>()
    }

    /// f32s of memory that a panel takes.
    fn size(&self) -> usize {
        self.place(self.columns * self.k)
    }

    /// Steps `ks` of a panel, widened into `scratch` where they are half-precision.
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

/// `out[t][i][..n] = finish(x[t][ks_i] . w[ks_i])` for every range of `parts`: one of all k for a product, the heads' for
/// their parts of it, which have no bias.
pub fn product(
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

/// Columns `ks` of x as tiles read them: [ks / KC][rows][STRIDE].
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

/// [`product`] with a weight as it lies in the checkpoint, row-major [k, n]. The same sums in the same order; half as fast for
/// many rows, but without the fresh memory that packing takes.
pub fn product_in_place(workers: &Workers, x: RowsView<'_>, w: &[f32], n: usize, finish: Finish<'_>, out: &mut [f32]) {
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

/// `x . tableᵀ` for a few rows: a token's numbers are read once, in one stream. Its sums run in lanes, not in tiles, so they
/// differ in the last bits from those of [`product`]; which of the two runs depends on the number of rows alone.
pub fn dots(workers: &Workers, x: RowsView<'_>, table: &StoredWeight, out: &mut [f32]) {
    let (n, k) = (table.rows, table.cols);
    assert!(x.reach(k) <= x.data.len());
    let (arch, out) = (workers.arch, Shared::new(out, n, x.n, n));
    share(workers, x.n * n * k, n, 1, |tokens, _| arch.dispatch(Dots { x, table, out, tokens }));
}

/// Some tokens of [`dots`].
struct Dots<'a> {
    x: RowsView<'a>,
    table: &'a StoredWeight,
    out: Shared<'a>,
    tokens: Range<usize>,
}

impl WithSimd for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (k, n) = (self.table.cols, self.x.n);
        let in_place = self.table.in_place();
        let mut numbers = vec![0.0; if in_place.is_some() { 0 } else { k }];
        for token in self.tokens.clone() {
            let numbers = match in_place {
                Some(all) => &all[token * k..(token + 1) * k],
                None => {
                    self.table.widen(token * k, &mut numbers);
                    &numbers
                }
            };
            let mut first = 0;
            while first < n {
                match n - first {
                    1 => first += self.some::<S, 1>(simd, numbers, token, first),
                    2 | 3 => first += self.some::<S, 2>(simd, numbers, token, first),
                    _ => first += self.some::<S, 4>(simd, numbers, token, first),
                }
            }
        }
    }
}

impl Dots<'_> {
    /// One token's numbers with `N` rows from `first` on; gives back how many those are.
    #[inline(always)]
    fn some<S: Simd, const N: usize>(&self, simd: S, numbers: &[f32], token: usize, first: usize) -> usize {
        let rows = std::array::from_fn(|i| &self.x.row(first + i)[..numbers.len()]);
        for (i, dot) in row_wise::dots::<S, N>(simd, numbers, rows).into_iter().enumerate() {
            // SAFETY: every row has a column for each token, and the tokens are this task's.
            unsafe { self.out.row(first + i, token..token + 1)[0] = dot };
        }
        N
    }
}

/// Most rows and the columns of a tile on this processor.
pub fn tile_shape(arch: Arch) -> (usize, usize) {
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

/// Calls `task` for every one of `parts` with all of `n` pieces, cut so that all threads have work; or does everything here
/// where it is not worth sharing.
fn share(workers: &Workers, work: usize, n: usize, parts: usize, task: impl Fn(Range<usize>, usize) + Sync) {
    if workers.threads == 1 || work < WORTH_SHARING {
        return (0..parts).for_each(|part| task(0..n, part));
    }
    let chunk = n.div_ceil((TASKS * workers.threads).div_ceil(parts));
    let chunks = n.div_ceil(chunk);
    workers.each(chunks * parts, |i| task(i / parts * chunk..((i / parts + 1) * chunk).min(n), i % parts));
}

impl Shared<'_> {
    /// A tile into these rows and columns, which may be fewer columns than a tile has.
    ///
    /// # Safety
    /// As [`Shared::row`] for all rows, and as [`tile`] for `operands`.
    #[inline(always)]
    pub unsafe fn tile<S: Simd>(&self, simd: S, rows: Range<usize>, cols: Range<usize>, operands: Operands) {
        let width = columns::<S>();
        // SAFETY: the caller's promise; a tile is no larger than the largest.
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

/// Rows of the i-th of `n` tiles over `rows` rows: as even as can be.
pub fn tile_rows(i: usize, n: usize, rows: usize) -> Range<usize> {
    i * rows / n..(i + 1) * rows / n
}

/// Copies columns `cols` of some rows to where a tile finds them.
pub fn copy_left(left: &mut [f32], x: RowsView<'_>, rows: Range<usize>, cols: Range<usize>) {
    for (out, row) in left.chunks_mut(STRIDE).zip(rows) {
        out[..cols.len()].copy_from_slice(&x.row(row)[cols.clone()]);
    }
}

thread_local! {
    /// Left sides of tiles, and sums under way.
    static SCRATCH: RefCell<[Aligned; 2]> = RefCell::default();
}

/// Some panels and some tiles of rows of a [`product`].
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

    /// As many blocks of the left side as stay in the second-level cache are multiplied with one panel after the other, so that a
    /// tile's sums are still in the caches when the next block joins them. A block of a panel comes from further away for the first
    /// tile and lies near for the others; meanwhile the next block is asked for.
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
    /// One block of one panel, finished if it is the last of the panel. `next` is where the one after it begins: panel and k.
    #[inline(always)]
    fn block<S: Simd>(&self, simd: S, panel: usize, ks: Range<usize>, next: (usize, usize), scratch: &mut Aligned) {
        let width = columns::<S>();
        let cols = self.to + panel * width..self.to + ((panel + 1) * width).min(self.w.n);
        let block = self.w.block(panel, ks.clone(), scratch);
        let (first, last) = (ks.start == self.ks.start, ks.end == self.ks.end);
        let alone = self.tiles.len() == 1;
        let next = next.0 * self.w.size() + self.w.place(next.1 * width);
        // What half-precision numbers take of the steps' memory.
        let step = self.w.place(width);
        let left = &self.left[(ks.start - self.ks.start) / KC * self.n_rows * STRIDE..];
        for (nth, i) in self.tiles.clone().enumerate() {
            let rows = tile_rows(i, self.n_tiles, self.n_rows);
            // Steps of the next block that the tiles before this one asked for.
            let share = nth * ks.len().div_ceil(self.tiles.len());
            let left = &left[rows.start * STRIDE..rows.end * STRIDE];
            let operands = Operands {
                a: left.as_ptr(),
                b: block.as_ptr(),
                b_stride: width,
                k: ks.len(),
                sum: if first { Sum::First } else { Sum::Further },
                // One row of tiles asks for all of it; several take turns.
                next: self.w.data.as_ptr().wrapping_add(if alone { next } else { next + share * step }),
                next_stride: if alone { step } else { step / 2 },
            };
            // SAFETY: `product` checked rows and columns against the matrix, and the columns are this task's; `left` holds
            // the tile's rows and `block` its steps of k.
            unsafe {
                self.out.tile(simd, rows.clone(), cols.clone(), operands);
            }
            if last {
                simd.vectorize(FinishTile { finish: self.finish, out: self.out, rows, cols: cols.clone() });
            }
        }
    }
}

/// Some columns of a [`product_in_place`].
struct InPlace<'a> {
    x: RowsView<'a>,
    w: RowsView<'a>,
    finish: Finish<'a>,
    out: Shared<'a>,
    cols: Range<usize>,
}

impl WithSimd for InPlace<'_> {
    type Output = ();

    /// Eight rows of the weight at a time, from the first column to the last, as they lie in memory; the sums under way wait
    /// in the first-level cache. Further tiles find a block of the weight in the second-level cache.
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
                            // The last columns, where a tile can read beyond them; what comes of that is not kept.
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
                        // SAFETY: `left` holds the tile's rows of x, b `steps` rows of the weight, and `sums` whole tiles.
                        unsafe { tile(simd, rows.len(), operands, sums[col - cols.start..].as_mut_ptr(), padded) };
                    }
                }
                for (row, sums) in rows.zip(sums.chunks_exact(padded)) {
                    // SAFETY: `product_in_place` checked rows and columns; the columns are this task's.
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
