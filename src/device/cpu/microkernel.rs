//! The innermost loop of every matrix product on the `cpu` device. A tile is up to 14 rows by two SIMD vectors of
//! columns (in WebAssembly two rows by four vectors), and its sums stay in registers while k runs.
//!
//! Owns the order of summation, which is the same everywhere: k is split into blocks of [`KC`], each block is one
//! multiply-add after the other, and the sums of the blocks are added one after the other. So a value does not depend
//! on the number of rows, the order of the tiles or the number of threads. Read next: `products.rs` and `attention.rs`,
//! which call [`tile`].

use pulp::{Simd, WithSimd};

/// Steps of k in a block. Because each block has a sum of its own, the rounding error grows with KC + k / KC, not with
/// k. A block of a panel fits the first-level cache.
pub(crate) const KC: usize = 256;

/// Elements from one row of a tile's left side to the next. It is a constant, so that rows are offsets in an
/// instruction. It is not a power of two, so that the rows do not fall into the same cache sets.
pub(crate) const STRIDE: usize = KC + 16;

/// Elements of the largest tile on any processor.
pub(crate) const LARGEST: usize = 14 * 32;

/// SIMD vectors in a row of a tile.
const VECTORS: usize = if cfg!(target_arch = "wasm32") { 4 } else { 2 };

/// The most rows of a tile. Each row takes a register per vector for its sums; four registers are for the rest. A module of
/// WebAssembly does not know the processor: of the 16 registers of x86-64, a browser keeps one, and needs one for each product
/// before it is added. On a Zen 5 this tile reaches 31.6 billion multiply-adds a second, 4 rows x 2 vectors 24.8, 6 x 2 16.3.
pub(crate) const fn most_rows<S: Simd>() -> usize {
    if cfg!(target_arch = "wasm32") {
        2
    } else if S::REGISTER_COUNT >= 32 {
        14
    } else {
        6
    }
}

/// Columns of a tile.
pub(crate) const fn columns<S: Simd>() -> usize {
    VECTORS * S::F32_LANES
}

/// What a tile does with its sums.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Sum {
    /// Stores them.
    First,
    /// Adds the sums of this block to the stored sums of the blocks before it.
    Further,
    /// Continues from the stored sums, in the middle of a block.
    Within,
}

/// The input of one tile. [`tile`] states what the pointers must point to.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    pub a: *const f32,
    pub b: *const f32,
    /// Elements from one step of k to the next in b.
    pub b_stride: usize,
    /// The number of steps.
    pub k: usize,
    pub sum: Sum,
    /// What to prefetch, from here on: two cache lines per step of k, or one for tiles of more than 8 rows.
    pub next: *const f32,
    /// Elements by which `next` advances each step.
    pub next_stride: usize,
}

/// `c[r][j] = sum_k a[r][k] b[k][j]` for `rows` rows and [`columns`] columns.
///
/// # Safety
/// For every r < rows, i < k, j < columns: `a[r STRIDE + i]` and `b[i b_stride + j]` may be read, `c[r c_stride + j]`
/// may be written, and read unless `sum` is [`Sum::First`]. `next` may point anywhere. `rows` is from 1 to
/// [`most_rows`].
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd>(simd: S, rows: usize, operands: Operands, c: *mut f32, c_stride: usize) {
    macro_rules! of_rows {
        ($($rows:literal)*) => {
            match rows {
                // `vectorize` makes this a call. Without it, every caller would have its own copy of the loop.
                $($rows if $rows <= most_rows::<S>() => simd.vectorize(Tile::<$rows> { operands, c, c_stride }),)*
                _ => unreachable!("a tile has 1 to {} rows, not {rows}", most_rows::<S>()),
            }
        };
    }
    of_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// One call of [`tile`]. The caller of [`tile`] has promised what its safety section requires.
struct Tile<const ROWS: usize> {
    operands: Operands,
    c: *mut f32,
    c_stride: usize,
}

impl<const ROWS: usize> WithSimd for Tile<ROWS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Tile { operands: o, c, c_stride } = self;
        let lanes = S::F32_LANES;
        // SAFETY: all reads and writes are within the ranges that the caller of `tile` promised, and they are unaligned
        // ones.
        unsafe {
            let at = |r: usize, v: usize| c.add(r * c_stride + v * lanes).cast::<S::f32s>();
            let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
            if o.sum == Sum::Within {
                for (r, row) in sums.iter_mut().enumerate() {
                    for (v, sum) in row.iter_mut().enumerate() {
                        *sum = at(r, v).read_unaligned();
                    }
                }
            }
            let (mut a, mut b, mut next) = (o.a, o.b, o.next);
            for _ in 0..o.k {
                prefetch(next);
                if ROWS <= 8 {
                    prefetch(next.wrapping_add(16));
                }
                next = next.wrapping_add(o.next_stride);
                let mut right = [simd.splat_f32s(0.0); VECTORS];
                for (v, right) in right.iter_mut().enumerate() {
                    *right = b.add(v * lanes).cast::<S::f32s>().read_unaligned();
                }
                for (r, row) in sums.iter_mut().enumerate() {
                    let x = simd.splat_f32s(*a.add(r * STRIDE));
                    for (sum, right) in row.iter_mut().zip(right) {
                        *sum = simd.mul_add_e_f32s(x, right, *sum);
                    }
                }
                (a, b) = (a.add(1), b.wrapping_add(o.b_stride));
            }
            for (r, row) in sums.into_iter().enumerate() {
                for (v, sum) in row.into_iter().enumerate() {
                    let stored = at(r, v);
                    stored.write_unaligned(match o.sum {
                        Sum::Further => simd.add_f32s(stored.read_unaligned(), sum),
                        Sum::First | Sum::Within => sum,
                    });
                }
            }
        }
    }
}

/// Prefetches the cache line at `p`. Does nothing on other processors than x86-64.
#[inline(always)]
pub(crate) fn prefetch(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}
