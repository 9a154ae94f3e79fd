//! The innermost loop of every matrix product on the `cpu` device. A tile is up to 14 rows by two SIMD vectors of
//! columns (in WebAssembly two rows by four vectors), and its sums stay in registers while k runs.
//!
//! Owns the order of summation, which is the same everywhere: k is split into blocks of [`KC`], each block is one
//! multiply-add after the other, and the sums of the blocks are added one after the other. So a value does not depend
//! on the number of rows, the order of the tiles or the number of threads. Read next: `products.rs` and `attention.rs`,
//! which call [`tile`].

use super::widen::{Bf16, Element, F16, F32};
use crate::device::Dtype;
use pulp::{Simd, WithSimd};
use std::marker::PhantomData;

/// `unroll!(i of 0 1 2 3 < N, { ... })`: the block for every listed i below N, written out. What is indexed with i stays in registers,
/// whatever the optimizer unrolls.
macro_rules! unroll {
    ($i:ident of $($number:literal)* < $n:expr, $body:block) => {
        $(
            if $number < $n {
                let $i: usize = $number;
                $body
            }
        )*
    };
}
pub(crate) use unroll;

/// Zeros, for arrays of vectors. `[[zero; 2]; 14]` is a loop, and where the optimizer leaves it, as it does when it optimizes for size, the
/// array stays in memory.
#[inline(always)]
pub(crate) fn zeros<T: bytemuck::Zeroable>() -> T {
    T::zeroed()
}

/// Steps of k in a block. Because each block has a sum of its own, the rounding error grows with KC + k / KC, not with
/// k. A block of a panel fits the first-level cache.
pub(crate) const KC: usize = 256;

/// Elements from one row of a tile's left side to the next. It is a constant, so that rows are offsets in an
/// instruction. It is not a power of two, so that the rows do not fall into the same cache sets.
pub(crate) const STRIDE: usize = KC + 16;

/// Elements of the largest tile on any processor.
pub(crate) const LARGEST: usize = 14 * 32;

/// SIMD vectors in a row of a tile.
pub(crate) const VECTORS: usize = if cfg!(target_arch = "wasm32") { 4 } else { 2 };

/// The most rows of a tile. Each row needs one register per vector for its sums, and the loop needs four more registers. A
/// WebAssembly module does not know the processor. Of the 16 registers of x86-64, a browser reserves one, and it needs one more for
/// a product before it is added. On a Zen 5 this tile reaches 31.6 billion multiply-adds a second, 4 rows x 2 vectors 24.8, 6 x 2 16.3.
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
pub(crate) struct TileOperands {
    pub a: *const f32,
    pub b: *const f32,
    /// The type of b's elements. In a step of half-precision elements, the words' lower elements are the left half of the columns, and
    /// the upper ones the right half.
    pub dtype: Dtype,
    /// Words of 32 bits from one step of k to the next in b.
    pub b_stride: usize,
    /// The number of steps.
    pub k: usize,
    pub sum: Sum,
    /// Where the prefetches begin. Each step of k prefetches one cache line, or two if a step is that long.
    pub next: *const f32,
    /// Elements by which `next` advances each step.
    pub next_stride: usize,
}

/// `c[r][j] = sum_k a[r][k] b[k][j]` for `rows` rows and [`columns`] columns.
///
/// # Safety
/// For every r < rows, i < k, j < columns: `a[r STRIDE + i]` and word `i b_stride + j` of b (of half-precision elements only j <
/// columns / 2) may be read, `c[r c_stride + j]` may be written, and read unless `sum` is [`Sum::First`]. `next` may point anywhere.
/// `rows` is from 1 to [`most_rows`].
#[inline(always)]
pub(crate) unsafe fn tile<S: Simd>(simd: S, rows: usize, operands: TileOperands, c: *mut f32, c_stride: usize) {
    macro_rules! of_rows {
        ($of:ident: $($rows:literal)*) => {
            match rows {
                // `vectorize` makes this a call. Without it, every caller would have its own copy of the loop.
                $($rows if $rows <= most_rows::<S>() => {
                    simd.vectorize(Tile::<$rows, $of> { operands, c, c_stride, of: PhantomData });
                })*
                _ => unreachable!("a tile has 1 to {} rows, not {rows}", most_rows::<S>()),
            }
        };
    }
    match operands.dtype {
        Dtype::F32 => of_rows!(F32: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        Dtype::F16 => of_rows!(F16: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        Dtype::Bf16 => of_rows!(Bf16: 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    }
}

/// One call of [`tile`]. The caller of [`tile`] has promised what its safety section requires.
struct Tile<const ROWS: usize, E> {
    operands: TileOperands,
    c: *mut f32,
    c_stride: usize,
    of: PhantomData<E>,
}

impl<const ROWS: usize, E: Element> WithSimd for Tile<ROWS, E> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Tile { operands: o, c, c_stride, .. } = self;
        let lanes = S::F32_LANES;
        // SAFETY: all reads and writes are within the ranges that the caller of `tile` promised, and they are unaligned
        // ones.
        unsafe {
            let mut sums: [[S::f32s; VECTORS]; ROWS] = zeros();
            if o.sum == Sum::Within {
                unroll!(r of 0 1 2 3 4 5 6 7 8 9 10 11 12 13 < ROWS, {
                    let at = c.add(r * c_stride).cast::<S::f32s>();
                    unroll!(v of 0 1 2 3 < VECTORS, {
                        sums[r][v] = at.add(v).read_unaligned();
                    });
                });
            }
            let (mut a, mut b, mut next) = (o.a, o.b, o.next);
            let two_lines = o.next_stride > 16;
            for _ in 0..o.k {
                prefetch(next, CacheLevel::Second);
                if two_lines {
                    prefetch(next.wrapping_add(16), CacheLevel::Second);
                }
                next = next.wrapping_add(o.next_stride);
                let mut right: [S::f32s; VECTORS] = zeros();
                if E::PER_WORD == 1 {
                    unroll!(v of 0 1 2 3 < VECTORS, {
                        right[v] = b.add(v * lanes).cast::<S::f32s>().read_unaligned();
                    });
                } else {
                    unroll!(v of 0 1 < VECTORS / 2, {
                        let words = b.add(v * lanes).cast::<S::u32s>().read_unaligned();
                        [right[v], right[VECTORS / 2 + v]] = E::widen(simd, words);
                    });
                }
                unroll!(r of 0 1 2 3 4 5 6 7 8 9 10 11 12 13 < ROWS, {
                    let x = simd.splat_f32s(*a.add(r * STRIDE));
                    unroll!(v of 0 1 2 3 < VECTORS, {
                        sums[r][v] = simd.mul_add_e_f32s(x, right[v], sums[r][v]);
                    });
                });
                (a, b) = (a.add(1), b.wrapping_add(o.b_stride));
            }
            unroll!(r of 0 1 2 3 4 5 6 7 8 9 10 11 12 13 < ROWS, {
                let at = c.add(r * c_stride).cast::<S::f32s>();
                unroll!(v of 0 1 2 3 < VECTORS, {
                    let stored = at.add(v);
                    stored.write_unaligned(match o.sum {
                        Sum::Further => simd.add_f32s(stored.read_unaligned(), sums[r][v]),
                        Sum::First | Sum::Within => sums[r][v],
                    });
                });
            });
        }
    }
}

/// Prefetches the cache lines of a row of `n` elements that will be written: other cores lose their copies of them now, not at the first
/// write, which later writes would wait for. Does nothing on other processors than x86-64.
#[inline(always)]
pub(crate) fn prefetch_to_write(row: *const f32, n: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..n).step_by(16) {
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_ET0>(row.wrapping_add(line).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (row, n);
}

/// The cache into which a line is prefetched: the first level for what is read once and soon, the second for what is read later.
#[derive(Clone, Copy)]
pub(crate) enum CacheLevel {
    First,
    Second,
}

/// Prefetches the cache line at `p`. Does nothing on other processors than x86-64.
#[inline(always)]
pub(crate) fn prefetch(p: *const f32, level: CacheLevel) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        match level {
            CacheLevel::First => _mm_prefetch::<_MM_HINT_T0>(p.cast()),
            CacheLevel::Second => _mm_prefetch::<_MM_HINT_T1>(p.cast()),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (p, level);
}
