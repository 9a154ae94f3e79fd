//! The loops over rows of the `cpu` device, in SIMD vectors. Owns what a loop computes at one place, a [`Term`], and the loops:
//! [`map`], [`update`], [`in_place`], [`sum`], [`max`]. Every function that takes `simd` must be inlined, as `row_wise.rs` says.
//! Read next: `row_wise.rs`, which has the operations.

use super::microkernel::{unroll, zeros};
use pulp::Simd;

/// Partial sums per sum, so that its rounding error grows with n / LANES. The number is the same on every processor, so
/// that all processors compute the same sums.
pub(crate) const LANES: usize = 16;

/// The first values, as many as a vector has; 0 for those that are missing.
#[inline(always)]
fn load<S: Simd>(simd: S, values: &[f32]) -> S::f32s {
    match S::as_simd_f32s(values).0 {
        [first, ..] => *first,
        [] => simd.partial_load_f32s(values),
    }
}

/// What a loop computes at one place, from the values of `N` rows there.
pub(crate) trait Term<const N: usize>: Copy {
    fn of<S: Simd>(self, simd: S, x: [S::f32s; N]) -> S::f32s;
}

/// `Name { numbers } [values] = result;` is a [`Term`]. In `result`, each number is already a vector of equal values.
macro_rules! terms {
    ($simd:ident: $($(#[$doc:meta])* $name:ident { $($number:ident),* } [$($x:ident),+] = $result:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name {
            $(pub $number: f32,)*
        }

        impl Term<{ [$(stringify!($x)),+].len() }> for $name {
            #[allow(unused_variables, reason = "a value as it is needs no instruction")]
            #[inline(always)]
            fn of<S: Simd>(self, $simd: S, [$($x),+]: [S::f32s; { [$(stringify!($x)),+].len() }]) -> S::f32s {
                $(let $number = $simd.splat_f32s(self.$number);)*
                $result
            }
        }
    )*};
}

pub(crate) use terms;

terms! { simd:
    /// `x`.
    Itself {} [x] = x;
    /// `a + b`.
    Plus {} [a, b] = simd.add_f32s(a, b);
    /// `(a + b) + c`.
    PlusPlus {} [a, b, c] = simd.add_f32s(simd.add_f32s(a, b), c);
}

/// Stores a term at every place of y. All rows are as long as y, or longer.
#[inline(always)]
pub(crate) fn map<S: Simd, T: Term<N>, const N: usize>(simd: S, term: T, x: [&[f32]; N], y: &mut [f32]) {
    let mut from = [std::ptr::null(); N];
    unroll!(j of 0 1 2 < N, {
        assert!(x[j].len() >= y.len());
        from[j] = x[j].as_ptr();
    });
    // SAFETY: the assertions check the lengths.
    unsafe { store_each(simd, term, from, y.as_mut_ptr(), y.len()) }
}

/// Stores a term of y and x in y. x is as long as y, or longer.
#[inline(always)]
pub(crate) fn update<S: Simd, T: Term<2>>(simd: S, term: T, y: &mut [f32], x: &[f32]) {
    assert!(x.len() >= y.len());
    let to = y.as_mut_ptr();
    // SAFETY: the assertion checks the lengths.
    unsafe { store_each(simd, term, [to.cast_const(), x.as_ptr()], to, y.len()) }
}

/// Stores a term of y in y.
#[inline(always)]
pub(crate) fn in_place<S: Simd, T: Term<1>>(simd: S, term: T, y: &mut [f32]) {
    let to = y.as_mut_ptr();
    // SAFETY: all is within y.
    unsafe { store_each(simd, term, [to.cast_const()], to, y.len()) }
}

/// # Safety
/// `n` values can be read at each of x and written at y. y may be one of x, and overlaps no other.
#[inline(always)]
unsafe fn store_each<S: Simd, T: Term<N>, const N: usize>(simd: S, term: T, x: [*const f32; N], y: *mut f32, n: usize) {
    let whole = n / S::F32_LANES * S::F32_LANES;
    let mut of_x: [S::f32s; N] = zeros();
    // SAFETY: all places are below n, and the reads and writes are unaligned ones.
    unsafe {
        for vector in 0..n / S::F32_LANES {
            let i = vector * S::F32_LANES;
            unroll!(j of 0 1 2 < N, { of_x[j] = x[j].add(i).cast::<S::f32s>().read_unaligned(); });
            y.add(i).cast::<S::f32s>().write_unaligned(term.of(simd, of_x));
        }
        if whole < n {
            unroll!(j of 0 1 2 < N, {
                of_x[j] = simd.partial_load_f32s(std::slice::from_raw_parts(x[j].add(whole), n - whole));
            });
            let rest = std::slice::from_raw_parts_mut(y.add(whole), n - whole);
            simd.partial_store_f32s(rest, term.of(simd, of_x));
        }
    }
}

/// The sum of a term over rows of one length, in [`LANES`] lanes.
#[inline(always)]
pub(crate) fn sum<S: Simd, T: Term<N>, const N: usize>(simd: S, term: T, x: [&[f32]; N]) -> f32 {
    match LANES / S::F32_LANES {
        1 => sum_of_vectors::<S, T, N, 1>(simd, term, x),
        2 => sum_of_vectors::<S, T, N, 2>(simd, term, x),
        4 => sum_of_vectors::<S, T, N, 4>(simd, term, x),
        _ => sum_of_vectors::<S, T, N, LANES>(simd, term, x),
    }
}

/// [`sum`], where `V` vectors have [`LANES`] lanes.
#[inline(always)]
fn sum_of_vectors<S: Simd, T: Term<N>, const N: usize, const V: usize>(simd: S, term: T, x: [&[f32]; N]) -> f32 {
    let n = x[0].len();
    assert!(V * S::F32_LANES == LANES);
    unroll!(j of 0 1 2 < N, { assert!(x[j].len() == n); });
    let whole = n / LANES * LANES;
    let (mut sums, mut of_x): ([S::f32s; V], [S::f32s; N]) = (zeros(), zeros());
    for step in 0..n / LANES {
        let i = step * LANES;
        unroll!(v of 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 < V, {
            unroll!(j of 0 1 2 < N, {
                // SAFETY: `whole` is at most the length of each row, as the assertions check, and the reads are unaligned ones.
                of_x[j] = unsafe { x[j].as_ptr().add(i + v * S::F32_LANES).cast::<S::f32s>().read_unaligned() };
            });
            sums[v] = simd.add_f32s(sums[v], term.of(simd, of_x));
        });
    }
    if whole == n {
        return add_up(simd, sums);
    }
    let mut rests = [[0.0; LANES]; N];
    rests.iter_mut().zip(x).for_each(|(rest, x)| rest[..n - whole].copy_from_slice(&x[whole..]));
    let mut terms = [0.0; LANES];
    map(simd, term, rests.each_ref().map(|rest| &rest[..n - whole]), &mut terms[..n - whole]);
    unroll!(v of 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 < V, {
        sums[v] = simd.add_f32s(sums[v], load(simd, &terms[v * S::F32_LANES..]));
    });
    add_up(simd, sums)
}

/// Adds up all lanes. Each step adds the second half of the lanes that are left to the first.
#[inline(always)]
pub(crate) fn add_up<S: Simd, const V: usize>(simd: S, mut sums: [S::f32s; V]) -> f32 {
    unroll!(step of 1 2 3 4 < 5, {
        let half = LANES >> step;
        unroll!(v of 0 1 2 3 4 5 6 7 < if half < V { half } else { 0 }, {
            if half + v < V {
                sums[v] = simd.add_f32s(sums[v], sums[v + half]);
            }
        });
    });
    simd.reduce_sum_f32s(sums[0])
}

/// `y += x`; x is at least as long as y.
#[inline(always)]
pub(crate) fn add<S: Simd>(simd: S, y: &mut [f32], x: &[f32]) {
    update(simd, Plus {}, y, x);
}

/// The largest of `least` and the values. NaN is the largest if `nan`, and otherwise counts for nothing.
#[inline(always)]
pub(crate) fn max<S: Simd>(simd: S, values: &[f32], least: f32, nan: bool) -> f32 {
    let mut most: [S::f32s; 4] = zeros();
    unroll!(v of 0 1 2 3 < 4, { most[v] = simd.splat_f32s(least); });
    let (whole, rest) = S::as_simd_f32s(values);
    let fours = whole.chunks_exact(4);
    for x in fours.remainder() {
        most[0] = larger(simd, most[0], *x, nan);
    }
    for x in fours {
        unroll!(v of 0 1 2 3 < 4, { most[v] = larger(simd, most[v], x[v], nan); });
    }
    unroll!(v of 1 2 3 < 4, { most[0] = larger(simd, most[0], most[v], nan); });
    let lanes: &[f32] = bytemuck::cast_slice(&most[..1]);
    lanes.iter().chain(rest).fold(least, |most, x| if *x > most || nan && x.is_nan() { *x } else { most })
}

/// The larger value of each lane. NaN is the largest if `nan`, and otherwise a NaN of x counts for nothing.
#[inline(always)]
fn larger<S: Simd>(simd: S, most: S::f32s, x: S::f32s, nan: bool) -> S::f32s {
    if nan {
        let larger = simd.select_f32s(simd.greater_than_f32s(most, x), most, x);
        simd.select_f32s(simd.equal_f32s(most, most), larger, most)
    } else {
        simd.select_f32s(simd.less_than_f32s(most, x), x, most)
    }
}
