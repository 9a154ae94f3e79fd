//! The innermost loop of every matrix product on the `cpu` device: up to 14 rows times two vectors of columns, held in
//! registers while k runs. Owns the order in which a sum is taken, which is the same everywhere: k in blocks of [`KC`], one
//! multiply-add after the other within a block, the blocks' sums one after the other. So a value does not depend on how
//! many rows were computed with it, in which order tiles were visited, or by how many threads.

use pulp::{Simd, WithSimd};

/// Steps of k whose sum is taken by itself: the rounding error grows with KC + k / KC, not with k, and a block of a panel
/// stays in the first-level cache.
pub const KC: usize = 256;

/// Numbers from one row of a tile's left side to the next. A constant, so that rows are offsets in an instruction; not a
/// power of two, so that they do not fall into the same cache sets.
pub const STRIDE: usize = KC + 16;

/// Numbers of the largest tile on any processor.
pub const LARGEST: usize = 14 * 32;

/// RowsView that a tile may have: two accumulators each, and four registers for the rest.
pub const fn most_rows<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 14 } else { 6 }
}

/// Columns of a tile.
pub const fn columns<S: Simd>() -> usize {
    2 * S::F32_LANES
}

/// What a tile does with its sums.
#[derive(Clone, Copy, PartialEq)]
pub enum Sum {
    /// Store them.
    First,
    /// Add them to what is stored, a block's sum to that of the blocks before it.
    Further,
    /// Go on from what is stored, in the middle of a block.
    Within,
}

/// What goes into one tile. The pointers are what [`tile`] states.
#[derive(Clone, Copy)]
pub struct Operands {
    pub a: *const f32,
    pub b: *const f32,
    /// Numbers from one step of k to the next in b.
    pub b_stride: usize,
    /// Steps.
    pub k: usize,
    pub sum: Sum,
    /// What will be wanted next: two cache lines a step of k are asked for from here on, or one for tall tiles.
    pub next: *const f32,
    /// Numbers that `next` moves each step.
    pub next_stride: usize,
}

/// `c[r][j] = sum_k a[r][k] b[k][j]` for `rows` rows and [`columns`] columns.
///
/// # Safety
/// For every r < rows, i < k, j < columns: `a[r STRIDE + i]` and `b[i b_stride + j]` may be read, `c[r c_stride + j]` may be
/// written, and read unless `sum` is [`Sum::First`]. `next` may point anywhere. `rows` is from 1 to [`most_rows`].
#[inline(always)]
pub unsafe fn tile<S: Simd>(simd: S, rows: usize, operands: Operands, c: *mut f32, c_stride: usize) {
    macro_rules! of_rows {
        ($($rows:literal)*) => {
            match rows {
                // A call for each tile, not one copy of its loop for each place that wants one.
                $($rows if $rows <= most_rows::<S>() => simd.vectorize(Tile::<$rows> { operands, c, c_stride }),)*
                _ => unreachable!("a tile has 1 to {} rows, not {rows}", most_rows::<S>()),
            }
        };
    }
    of_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14)
}

/// One call of [`tile`], whose caller promised what it asks.
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
        // SAFETY: all reads and writes are within the ranges that the caller of `tile` promised; vectors need no alignment.
        unsafe {
            let at = |r: usize, half: usize| c.add(r * c_stride + half * lanes).cast::<S::f32s>();
            let mut sums = [[simd.splat_f32s(0.0); 2]; ROWS];
            if o.sum == Sum::Within {
                for (r, row) in sums.iter_mut().enumerate() {
                    *row = [at(r, 0).read_unaligned(), at(r, 1).read_unaligned()];
                }
            }
            let (mut a, mut b, mut next) = (o.a, o.b, o.next);
            for _ in 0..o.k {
                prefetch(next);
                if ROWS <= 8 {
                    prefetch(next.wrapping_add(16));
                }
                next = next.wrapping_add(o.next_stride);
                let left = b.cast::<S::f32s>().read_unaligned();
                let right = b.add(lanes).cast::<S::f32s>().read_unaligned();
                for (r, [sum_left, sum_right]) in sums.iter_mut().enumerate() {
                    let x = simd.splat_f32s(*a.add(r * STRIDE));
                    *sum_left = simd.mul_add_e_f32s(x, left, *sum_left);
                    *sum_right = simd.mul_add_e_f32s(x, right, *sum_right);
                }
                (a, b) = (a.add(1), b.wrapping_add(o.b_stride));
            }
            for (r, row) in sums.into_iter().enumerate() {
                for (half, sum) in row.into_iter().enumerate() {
                    let stored = at(r, half);
                    stored.write_unaligned(match o.sum {
                        Sum::Further => simd.add_f32s(stored.read_unaligned(), sum),
                        Sum::First | Sum::Within => sum,
                    });
                }
            }
        }
    }
}

/// Asks for the cache line at `p`; does nothing where there is no such instruction.
#[inline(always)]
fn prefetch(p: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is allowed; it never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}
