//! Packs values for the page: rows of f16, rows of 8-bit values, integers. Each part is deflated.
//! Owns the byte layouts; uses no model. Read next: `page/data.js`, which unpacks them.

use crate::analysis::top::largest;
use flate2::{Compression, write::DeflateEncoder};
use half::f16;
use std::io::Write;

/// The number of neighbouring 8-bit values that share a scale.
pub(crate) const BLOCK: usize = 64;

/// The 8-bit code of NaN and infinities.
const NOT_A_NUMBER: i8 = i8::MIN;

/// Rows of values as f16. Every row is first multiplied by a power of two that brings its largest value just below the
/// largest f16, so that rows of 1e-7 and of 1e7 have all 11 significant bits. If plain f16 has the range, the values
/// equal plain f16's.
///
/// Bytes: one exponent (i8) per row, the upper bytes of all values, the lower bytes of all values. A value is
/// f16 * 2^exponent. Upper bytes are similar and deflate well, lower bytes do not.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    exponents: Vec<u8>,
    upper: Vec<u8>,
    lower: Vec<u8>,
}

impl Rows {
    /// Adds a row.
    pub(crate) fn push(&mut self, row: &[f32]) {
        let largest = row.iter().filter(|v| v.is_finite()).fold(0.0f32, |most, v| most.max(v.abs()));
        // The largest value ends up in 2^14..2^15; f16 ends at 2^16.
        let exponent = if largest == 0.0 { 0 } else { (largest.log2().floor() as i32 - 14).clamp(-126, 126) };
        self.exponents.push(exponent as i8 as u8);
        let up = 2f32.powi(-exponent);
        for v in row {
            let [lower, upper] = f16::from_f32(v * up).to_le_bytes();
            self.upper.push(upper);
            self.lower.push(lower);
        }
    }

    /// The last `n` values of the last row, as the page will unpack them.
    fn last(&self, n: usize) -> impl Iterator<Item = f32> {
        let down = 2f32.powi(self.exponents.last().map_or(0, |exponent| i32::from(*exponent as i8)));
        let from = self.upper.len() - n;
        let bytes = self.upper[from..].iter().zip(&self.lower[from..]);
        bytes.map(move |(upper, lower)| f16::from_le_bytes([*lower, *upper]).to_f32() * down)
    }

    /// The bytes of all rows.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        [self.exponents, self.upper, self.lower].concat()
    }

    /// The bytes of `rows` rows with `numbers` values in total.
    pub(crate) fn bytes(rows: usize, numbers: usize) -> usize {
        rows + 2 * numbers
    }
}

/// Rows of values in 8 bits. Every [`BLOCK`] neighbours share a scale, which is their largest magnitude divided by 127,
/// so the error of a value is at most half a scale.
#[derive(Debug, Default)]
pub(crate) struct Coarse {
    /// One i8 per value: value = code * scale.
    pub codes: Vec<u8>,
    /// The scales of a row as a row.
    pub scales: Rows,
}

impl Coarse {
    /// Adds a row.
    pub(crate) fn push(&mut self, row: &[f32]) {
        let largest = |block: &[f32]| block.iter().filter(|v| v.is_finite()).fold(0.0f32, |most, v| most.max(v.abs()));
        let wanted: Vec<f32> = row.chunks(BLOCK).map(|block| largest(block) / 127.0).collect();
        self.scales.push(&wanted);
        // Divide by the scale as stored (rounded to f16), not by the exact one.
        for (block, scale) in row.chunks(BLOCK).zip(self.scales.last(wanted.len())) {
            let code = |v: &f32| match (v.is_finite(), scale == 0.0) {
                (false, _) => NOT_A_NUMBER,
                (true, true) => 0,
                (true, false) => (v / scale).round().clamp(-127.0, 127.0) as i8,
            };
            self.codes.extend(block.iter().map(|v| code(v) as u8));
        }
    }

    /// The bytes of `rows` rows of `width` values.
    pub(crate) fn bytes(rows: usize, width: usize) -> usize {
        rows * width + Rows::bytes(rows, rows * width.div_ceil(BLOCK))
    }
}

/// Integers: first the lowest bytes of all of them, then the next bytes, up to the fourth. The upper bytes are mostly
/// zero and deflate to almost nothing.
pub(crate) fn whole(numbers: &[u32]) -> Vec<u8> {
    (0..4).flat_map(|byte| numbers.iter().map(move |n| n.to_le_bytes()[byte])).collect()
}

/// Values as f32, byte by byte as [`whole`] has them.
pub(crate) fn floats(values: impl IntoIterator<Item = f64>) -> Vec<u8> {
    whole(&values.into_iter().map(|v| (v as f32).to_bits()).collect::<Vec<u32>>())
}

/// The `n` values of largest magnitude (all, if there are fewer) with their indices, largest first. Of equals, the
/// first comes first. NaN counts as the largest, so that it shows.
pub(crate) fn strongest(row: &[f32], n: usize) -> Vec<(u32, f32)> {
    let places = largest(row.len(), n, |i| row[i].abs());
    places.into_iter().map(|place| (place, row[place as usize])).collect()
}

/// Deflated (RFC 1951, as `DecompressionStream("deflate-raw")` reads it).
pub(crate) fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut to = DeflateEncoder::new(Vec::new(), Compression::default());
    to.write_all(bytes).and_then(|()| to.finish()).expect("memory takes every byte")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_back(row: &[f32]) -> Vec<f32> {
        let mut rows = Rows::default();
        rows.push(row);
        rows.last(row.len()).collect()
    }

    /// 2^-11 is half a unit in f16's last place. Seen red without the exponent: 6e-31 came back as 0.
    #[test]
    fn rows_keep_f16_precision_at_any_size() {
        for size in [1e-30f32, 1e-7, 1.0, 3e3, 1e7, 3e38] {
            let row: Vec<f32> = (0..100).map(|i| size * (i as f32 * 0.7).sin()).collect();
            for (got, want) in read_back(&row).into_iter().zip(&row) {
                assert!((got - want).abs() <= want.abs() / 2048.0 + size * 1e-9, "{got} for {want}");
            }
        }
        let plain = [0.1f32, -3000.0, 42.42, 6.2e-5];
        assert_eq!(read_back(&plain), plain.map(|v| f16::from_f32(v).to_f32()));
        let odd = read_back(&[f32::NAN, f32::INFINITY, -2.0, f32::NEG_INFINITY, 0.0]);
        assert!(odd[0].is_nan());
        assert_eq!(odd[1..], [f32::INFINITY, -2.0, f32::NEG_INFINITY, 0.0]);
        assert_eq!(read_back(&[0.0, -0.0]), [0.0, 0.0]);
    }

    #[test]
    // Seen red with codes truncated instead of rounded.
    fn coarse_rows_are_off_by_half_a_scale_at_most() {
        let row: Vec<f32> = (0..200).map(|i| if i == 70 { 3000.0 } else { (i as f32).cos() }).collect();
        let mut coarse = Coarse::default();
        coarse.push(&row);
        assert_eq!(Coarse::bytes(1, 200), coarse.codes.len() + coarse.scales.upper.len() * 2 + 1);
        let scales: Vec<f32> = coarse.scales.last(4).collect();
        for (i, (code, want)) in coarse.codes.iter().zip(&row).enumerate() {
            let scale = scales[i / BLOCK];
            // Only the large value's own block is coarse; a scale is rounded to f16.
            let largest = if i / BLOCK == 1 { 3000.0 } else { 1.0 };
            assert!(scale <= largest / 127.0 * 1.0005, "{i}");
            assert!((f32::from(*code as i8) * scale - want).abs() <= 0.5001 * scale, "{i}");
        }
        coarse.push(&[f32::NAN, 1.0]);
        assert_eq!(coarse.codes[200..], [NOT_A_NUMBER as u8, 127]);
    }

    #[test]
    fn strongest_first() {
        let row = [1.0, -5.0, 3.0, 5.0, 0.0];
        assert_eq!(strongest(&row, 3), [(1, -5.0), (3, 5.0), (2, 3.0)]);
        assert_eq!(strongest(&row[..2], 3), [(1, -5.0), (0, 1.0)]);
        assert_eq!(strongest(&[1.0, f32::NAN, 2.0], 1)[0].0, 1);
    }

    #[test]
    fn whole_numbers_byte_by_byte() {
        assert_eq!(whole(&[0x0102, 0x03]), [2, 3, 1, 0, 0, 0, 0, 0]);
    }
}
