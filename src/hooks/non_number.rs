//! Finds the first NaN, or the first infinity that is not a masked score. Read next: `capture.rs`.

use crate::hooks::capture::Capture;
use crate::hooks::site::{Axis, Site};
use ndarray::{ArrayViewD, Axis as ArrayAxis};

/// One value that is NaN or infinite.
#[derive(Clone, Debug, PartialEq)]
pub struct NonNumber {
    /// The site.
    pub site: Site,
    /// Index of the text.
    pub text: usize,
    /// Its index in what was recorded of that text, one per axis of the site.
    pub index: Vec<usize>,
    /// NaN or an infinity.
    pub value: f32,
}

impl NonNumber {
    /// The first one in one text's values at `site` (the site's axes without the batch axis).
    pub fn find(site: Site, text: usize, values: &ArrayViewD<'_, f32>) -> Option<NonNumber> {
        if values.as_slice().is_some_and(all_finite) {
            return None;
        }
        let masked = |v: f32| v == f32::NEG_INFINITY && matches!(site, Site::AttnScores(_));
        let found = values.indexed_iter().find(|(_, v)| !v.is_finite() && !masked(**v));
        found.map(|(index, v)| NonNumber { site, text, index: ndarray::Dimension::slice(&index).to_vec(), value: *v })
    }

    /// The first one in run order, in the first text that has one.
    pub fn find_in(capture: &Capture) -> Option<NonNumber> {
        capture.iter().find_map(|(site, array)| {
            (0..).zip(array.axis_iter(ArrayAxis(0))).find_map(|(text, values)| NonNumber::find(site, text, &values))
        })
    }

    /// The index of its token among the recorded positions of the text.
    pub fn slot(&self) -> usize {
        self.index[self.site.pos_axis()]
    }

    /// The value and its place within the token, in words: `NaN in dimension 17`, `an infinity in head 3, key 2`.
    pub fn what(&self) -> String {
        let of_axis = |(axis, index): (&Axis, &usize)| match axis {
            Axis::Pos | Axis::One => None,
            Axis::Key => Some(format!("key {index}")),
            Axis::Head => Some(format!("head {index}")),
            Axis::HeadDim | Axis::Embd => Some(format!("dimension {index}")),
            Axis::Inner => Some(format!("neuron {index}")),
            Axis::Vocab => Some(format!("logit {index}")),
        };
        let places: Vec<String> = self.site.axes().iter().zip(&self.index).filter_map(of_axis).collect();
        let value = if self.value.is_nan() { "NaN" } else { "an infinity" };
        if places.is_empty() { value.into() } else { format!("{value} in {}", places.join(", ")) }
    }
}

/// True when every value is finite. It checks 256 values at a time, without a branch per value, for speed.
fn all_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    values.chunks(256).all(|part| {
        let broken = part.iter().fold(0, |broken, v| broken | u32::from(v.to_bits() & EXPONENT == EXPONENT));
        broken == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::ArrayD;

    #[test]
    fn the_first_and_its_place() {
        let mut values = ArrayD::<f32>::zeros(vec![3, 400]);
        assert_eq!(NonNumber::find(Site::ResidMid(0), 1, &values.view()), None);
        values[[2, 301]] = f32::INFINITY;
        values[[1, 399]] = f32::NAN;
        let found = NonNumber::find(Site::ResidMid(0), 1, &values.view()).unwrap();
        assert_eq!((found.text, found.index.as_slice(), found.slot()), (1, &[1, 399][..], 1));
        assert_eq!(found.what(), "NaN in dimension 399");
        let scores = ArrayD::from_elem(vec![1, 2, 2], f32::NEG_INFINITY);
        assert_eq!(NonNumber::find(Site::AttnScores(0), 0, &scores.view()), None, "masked scores");
        let found = NonNumber::find(Site::Pattern(0), 0, &scores.view()).unwrap();
        assert_eq!(found.what(), "an infinity in head 0, key 0");
    }
}
