//! Statistics over several pairs or texts: the standard error of a mean, its bootstrap interval, the p value of a mean effect by
//! flipping signs, and the correlation of two lists. The seeds are fixed, so results are reproducible.

use rayon::prelude::*;

/// Resamples of the bootstrap.
const RESAMPLES: usize = 1000;
/// Up to this many effects, every pattern of signs is tried; for more, [`RESAMPLES`] random ones.
const ALL_SIGNS: usize = 12;

/// A generator of random numbers (splitmix64) with a fixed seed: the same samples give the same interval.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// The mean.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Pearson's correlation of two lists of one length. NaN where one of them is constant.
pub fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let (of_a, of_b) = (mean(a), mean(b));
    let sum = |of: &dyn Fn(f64, f64) -> f64| a.iter().zip(b).map(|(a, b)| of(a - of_a, b - of_b)).sum::<f64>();
    sum(&|a, b| a * b) / (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt()
}

/// The standard error of the mean, from the unbiased variance. NaN for one value.
pub fn standard_error(values: &[f64]) -> f64 {
    let (n, mean) = (values.len() as f64, mean(values));
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt()
}

/// For every list of `n` values: the 95 % interval of its mean, by the percentiles of 1,000 resamples with seed 0. All lists are
/// resampled alike.
pub fn intervals(lists: &[Vec<f64>], n: usize) -> Vec<[f64; 2]> {
    let mut random = Random(0);
    let picks: Vec<Vec<usize>> = (0..RESAMPLES).map(|_| (0..n).map(|_| random.below(n)).collect()).collect();
    let of_list = |values: &Vec<f64>| {
        let mut means: Vec<f64> =
            picks.iter().map(|pick| pick.iter().map(|i| values[*i]).sum::<f64>() / n as f64).collect();
        means.sort_unstable_by(f64::total_cmp);
        [0.025, 0.975].map(|share| {
            let at = share * (RESAMPLES - 1) as f64;
            let below = at.floor() as usize;
            let next = means[(below + 1).min(RESAMPLES - 1)];
            means[below] + (at - below as f64) * (next - means[below])
        })
    };
    lists.par_iter().map(of_list).collect()
}

/// For every list of `n` effects the p value of its mean: the share of all patterns of signs whose mean is at least as far from
/// zero. All patterns of signs up to 12 effects, else 1,000 random ones.
pub fn p_values(lists: &[Vec<f64>], n: usize) -> Vec<f64> {
    let mut random = Random(0);
    let exact = n <= ALL_SIGNS;
    let signs: Vec<Vec<bool>> = if exact {
        (0..1usize << n).map(|pattern| (0..n).map(|i| pattern >> i & 1 == 1).collect()).collect()
    } else {
        (0..RESAMPLES).map(|_| (0..n).map(|_| random.next() & 1 == 1).collect()).collect()
    };
    let of_list = |effects: &Vec<f64>| {
        let seen = effects.iter().sum::<f64>().abs();
        if !seen.is_finite() {
            return f64::NAN;
        }
        // Sums of the same numbers in another order differ in their last bits.
        let least = seen - 1e-12 * effects.iter().map(|e| e.abs()).sum::<f64>();
        let flipped = |signs: &Vec<bool>| {
            effects.iter().zip(signs).map(|(e, minus)| if *minus { -e } else { *e }).sum::<f64>().abs()
        };
        let hits = signs.iter().filter(|signs| flipped(signs) >= least).count() as f64;
        if exact { hits / signs.len() as f64 } else { (hits + 1.0) / (signs.len() + 1) as f64 }
    };
    lists.par_iter().map(of_list).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_numbers() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
        // Variance 7, so sqrt(7/3).
        assert!((standard_error(&[1.0, 2.0, 6.0]) - (7.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((correlation(&[1.0, 2.0, 3.0], &[-2.0, -4.0, -6.0]) + 1.0).abs() < 1e-12);
        // By hand: deviations (-1, 0, 1) and (-1, 1, 0), whose products sum to 1, and whose squares to 2 each.
        assert!((correlation(&[1.0, 2.0, 3.0], &[0.0, 2.0, 1.0]) - 0.5).abs() < 1e-12);
        assert!(correlation(&[1.0, 1.0], &[0.0, 2.0]).is_nan());
        // All of one sign: only all flips or none are as far from zero.
        assert_eq!(p_values(&[vec![1.0, 2.0, 3.0], vec![1.0, -1.0, 0.0], vec![0.0; 3]], 3), [0.25, 1.0, 1.0]);
        let many = p_values(&[vec![1.0; 40]], 40);
        assert_eq!(many, [1.0 / 1001.0]);
    }

    #[test]
    fn intervals_hold_the_mean_and_shrink() {
        let values: Vec<f64> = (0..200).map(|i| f64::from(i % 10)).collect();
        let [low, high] = intervals(std::slice::from_ref(&values), 200)[0];
        let error = standard_error(&values);
        // The normal approximation: 1.96 standard errors to each side, less than a sixth off.
        assert!((4.5 - low - 1.96 * error).abs() < 0.3 * error && (high - 4.5 - 1.96 * error).abs() < 0.3 * error);
        assert_eq!(intervals(&[vec![2.0, 2.0]], 2), [[2.0, 2.0]]);
        assert_eq!(intervals(std::slice::from_ref(&values), 200), intervals(&[values], 200));
    }
}
