//! Elements as weights store them, as vectors of f32: f32 itself, and the two half-precision types. Owns their widening, which is
//! exact. It uses integer operations that every processor has, and for f16 with AVX-512 the processor's conversion. Two
//! half-precision elements make a word of 32 bits, and a vector of words gives two vectors: one of the lower elements and one of
//! the upper ones.
//! Read next: `microkernel.rs`, which reads panels of such words.

use pulp::Simd;
#[cfg(target_arch = "x86_64")]
use pulp::x86::V4;
#[cfg(target_arch = "x86_64")]
use std::any::TypeId;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256i, __m512, __m512i};

/// A type of stored elements.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    /// Elements in a word of 32 bits.
    const PER_WORD: usize;

    /// The lower element of every word, and the upper one. An f32 is the lower element of its word, and the upper one is 0.
    fn widen<S: Simd>(simd: S, words: S::u32s) -> [S::f32s; 2];

    /// Element `i` of stored ones, which have the processor's byte order.
    fn at(stored: &[u8], i: usize) -> f32;
}

/// Element `i` of `N` bytes.
#[inline(always)]
fn bytes_at<const N: usize>(stored: &[u8], i: usize) -> [u8; N] {
    stored.as_chunks::<N>().0[i]
}

#[derive(Clone, Copy)]
pub(crate) struct F32;

impl Element for F32 {
    const PER_WORD: usize = 1;

    #[inline(always)]
    fn widen<S: Simd>(simd: S, words: S::u32s) -> [S::f32s; 2] {
        [simd.transmute_f32s_u32s(words), simd.splat_f32s(0.0)]
    }

    #[inline(always)]
    fn at(stored: &[u8], i: usize) -> f32 {
        f32::from_ne_bytes(bytes_at(stored, i))
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Bf16;

impl Element for Bf16 {
    const PER_WORD: usize = 2;

    #[inline(always)]
    fn widen<S: Simd>(simd: S, words: S::u32s) -> [S::f32s; 2] {
        let lower = simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16));
        let upper = simd.and_u32s(words, simd.splat_u32s(0xffff_0000));
        [simd.transmute_f32s_u32s(lower), simd.transmute_f32s_u32s(upper)]
    }

    #[inline(always)]
    fn at(stored: &[u8], i: usize) -> f32 {
        f32::from_bits(u32::from(u16::from_ne_bytes(bytes_at(stored, i))) << 16)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct F16;

/// Exponent and fraction of an f16 where those of an f32 are.
const F16_MAGNITUDE: u32 = 0x7fff << 13;

impl F16 {
    /// The value whose magnitude has these bits and whose sign is the uppermost bit of `sign`.
    #[inline(always)]
    fn value<S: Simd>(simd: S, magnitude: S::u32s, sign: S::u32s) -> S::f32s {
        // As an f32 the magnitude is too small by 2^112, because the exponents have other biases. That holds for subnormal numbers
        // too. What is infinite or NaN becomes 2^16 or more, which no finite f16 is.
        let scale = simd.splat_f32s(f32::from_bits((127 + 112) << 23));
        let finite = simd.mul_f32s(simd.transmute_f32s_u32s(magnitude), scale);
        let special = simd.transmute_f32s_u32s(simd.or_u32s(magnitude, simd.splat_u32s(f32::INFINITY.to_bits())));
        let is_special = simd.greater_than_or_equal_f32s(finite, simd.splat_f32s(65_536.0));
        let magnitude = simd.select_f32s(is_special, special, finite);
        let sign = simd.and_u32s(sign, simd.splat_u32s(1 << 31));
        simd.transmute_f32s_u32s(simd.or_u32s(simd.transmute_u32s_f32s(magnitude), sign))
    }

    /// With the processor's own conversion this takes a third of the instructions. It takes 16 elements that lie side by side.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn widen_by_avx512(simd: V4, words: __m512i) -> [__m512; 2] {
        const LOWER_THEN_UPPER: [u16; 32] = {
            let mut order = [0; 32];
            let mut i = 0;
            while i < 32 {
                order[i] = (2 * i % 32 + i / 16) as u16;
                i += 1;
            }
            order
        };
        let elements = simd.avx512bw._mm512_permutexvar_epi16(pulp::cast(LOWER_THEN_UPPER), words);
        let [lower, upper]: [__m256i; 2] = pulp::cast(elements);
        [simd.avx512f._mm512_cvtph_ps(lower), simd.avx512f._mm512_cvtph_ps(upper)]
    }
}

/// AVX-512, if it is what S stands for.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn avx512<S: Simd>() -> Option<V4> {
    // SAFETY: there is a value of S only where the processor has the instructions.
    (TypeId::of::<S>() == TypeId::of::<V4>()).then(|| unsafe { V4::new_unchecked() })
}

impl Element for F16 {
    const PER_WORD: usize = 2;

    #[inline(always)]
    fn widen<S: Simd>(simd: S, words: S::u32s) -> [S::f32s; 2] {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx512) = avx512::<S>() {
            // Not `map`: optimized for size, that is a loop through memory.
            let [lower, upper] = F16::widen_by_avx512(avx512, bytemuck::cast(words));
            return [bytemuck::cast(lower), bytemuck::cast(upper)];
        }
        let mask = simd.splat_u32s(F16_MAGNITUDE);
        let lower = simd.and_u32s(simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(13)), mask);
        let upper = simd.and_u32s(simd.wrapping_dyn_shr_u32s(words, simd.splat_u32s(3)), mask);
        let sign_of_lower = simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16));
        [F16::value(simd, lower, sign_of_lower), F16::value(simd, upper, words)]
    }

    #[inline(always)]
    fn at(stored: &[u8], i: usize) -> f32 {
        half::f16::from_ne_bytes(bytes_at(stored, i)).to_f32()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;
    use pulp::WithSimd;

    /// Both elements of every word.
    struct Widen<'a, E> {
        words: &'a [u32],
        lower: &'a mut [f32],
        upper: &'a mut [f32],
        of: E,
    }

    impl<E: Element> WithSimd for Widen<'_, E> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let _ = self.of;
            let (words, rest) = S::as_simd_u32s(self.words);
            assert!(rest.is_empty());
            let (lower, upper) = (S::as_mut_simd_f32s(self.lower).0, S::as_mut_simd_f32s(self.upper).0);
            for ((words, lower), upper) in words.iter().zip(lower).zip(upper) {
                [*lower, *upper] = E::widen(simd, *words);
            }
        }
    }

    /// Every number of 16 bits, as the lower and as the upper element.
    #[test]
    fn every_half_is_widened_exactly() {
        let words: Vec<u32> = (0..=u16::MAX).map(|bits| u32::from(bits) | u32::from(!bits) << 16).collect();
        fn check<E: Element>(words: &[u32], of: E, expected: impl Fn(u16) -> f32) {
            for cpu in Cpu::all() {
                let (mut lower, mut upper) = (vec![0.0f32; words.len()], vec![0.0f32; words.len()]);
                cpu.workers.arch.dispatch(Widen { words, lower: &mut lower, upper: &mut upper, of });
                for ((word, lower), upper) in words.iter().zip(lower).zip(upper) {
                    for (bits, got) in [(*word as u16, lower), ((*word >> 16) as u16, upper)] {
                        let expected = expected(bits);
                        let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
                        assert!(same, "{bits:#06x}: {got}, expected {expected}");
                    }
                }
            }
        }
        check(&words, F16, |bits| half::f16::from_bits(bits).to_f32());
        check(&words, Bf16, |bits| half::bf16::from_bits(bits).to_f32());
    }
}
