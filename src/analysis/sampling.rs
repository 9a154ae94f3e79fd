//! How the next token is chosen from logits: the repetition penalty, then temperature, top-k, top-p and min-p, in the order and
//! with the arithmetic of transformers' logits processors, in f64. Owns the random numbers: each belongs to a seed, a text and
//! a position, so that the same seed gives the same text whatever else is run beside it.

use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token, whatever the filters say.
    pub temperature: f64,
    /// Only the k likeliest tokens, and those as likely as the last of them.
    pub top_k: Option<usize>,
    /// Only the smallest set of likeliest tokens whose probabilities reach this sum.
    pub top_p: Option<f64>,
    /// Only tokens that are at least this many times as likely as the likeliest.
    pub min_p: Option<f64>,
    /// For tokens that already occur in the text, positive logits are divided by it and negative ones multiplied. 1 changes nothing.
    pub repetition_penalty: f64,
    /// The seed of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    /// The likeliest token.
    fn default() -> Sampling {
        Sampling { temperature: 0.0, top_k: None, top_p: None, min_p: None, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// The next token after `ids`, in text `text` of a run.
    pub fn choose(&self, logits: &[f32], ids: &[u32], text: usize) -> u32 {
        if self.temperature == 0.0 {
            return likeliest(&self.penalized(logits, ids));
        }
        let probabilities = self.probabilities(logits, ids);
        pick(&probabilities, uniform(self.seed, text, ids.len()))
    }

    /// The logits after the repetition penalty.
    fn penalized(&self, logits: &[f32], ids: &[u32]) -> Vec<f64> {
        let mut scores: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
        if self.repetition_penalty != 1.0 {
            for id in ids.iter().collect::<BTreeSet<_>>() {
                let score = &mut scores[*id as usize];
                *score = if *score < 0.0 { *score * self.repetition_penalty } else { *score / self.repetition_penalty };
            }
        }
        scores
    }

    /// The distribution that the next token after `ids` is drawn from; `temperature` must be above 0.
    pub fn probabilities(&self, logits: &[f32], ids: &[u32]) -> Vec<f64> {
        let mut scores = self.penalized(logits, ids);
        // Without the largest score, a very small temperature would make scores infinite.
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        scores.iter_mut().for_each(|score| *score = (*score - max) / self.temperature);
        if let Some(k) = self.top_k.filter(|k| *k > 0 && *k < scores.len()) {
            let mut sorted = scores.clone();
            let (_, kth, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
            let kth = *kth;
            scores.iter_mut().filter(|score| **score < kth).for_each(|score| *score = f64::NEG_INFINITY);
        }
        if let Some(p) = self.top_p.filter(|p| *p < 1.0) {
            let probabilities = softmax(&scores);
            // From the least likely on; of equals the larger id is less likely.
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_unstable_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(b.cmp(a)));
            let mut sum = 0.0;
            for id in &order[..order.len() - 1] {
                sum += probabilities[*id];
                if sum > 1.0 - p {
                    break;
                }
                scores[*id] = f64::NEG_INFINITY;
            }
        }
        if let Some(p) = self.min_p {
            let probabilities = softmax(&scores);
            let least = p * probabilities.iter().copied().fold(0.0, f64::max);
            for (score, probability) in scores.iter_mut().zip(probabilities) {
                if probability < least {
                    *score = f64::NEG_INFINITY;
                }
            }
        }
        softmax(&scores)
    }
}

/// The index of the largest number; of equals the first.
fn likeliest(scores: &[f64]) -> u32 {
    let larger = |best: usize, i: usize| if scores[i] > scores[best] { i } else { best };
    (0..scores.len()).fold(0, larger) as u32
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut e: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter_mut().for_each(|e| *e /= sum);
    e
}

/// `ln(sum(exp(logits)))`, so that a token's log-probability is its logit minus this.
pub fn log_sum_exp<'a>(logits: impl IntoIterator<Item = &'a f32, IntoIter: Clone>) -> f64 {
    let logits = logits.into_iter();
    let max = f64::from(logits.clone().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln()
}

/// The likeliest token and its log-probability, from what [`crate::device::Operations::argmax`] finds in a row of
/// logits.
///
/// # Errors
/// Finds a logit that is NaN or positive infinity.
pub fn token_of_argmax(of_chunks: &[f32]) -> Result<(u32, f64), f32> {
    let chunks: Vec<[f32; 3]> = of_chunks.as_chunks().0.to_vec();
    let larger = |best: [f32; 3], chunk: &[f32; 3]| if chunk[0] > best[0] { *chunk } else { best };
    let [largest, id, _] = chunks.iter().fold(chunks[0], larger);
    if let Some([_, _, sum]) = chunks.iter().find(|[.., sum]| !sum.is_finite()) {
        return Err(if largest == f32::INFINITY { largest } else { *sum });
    }
    // The log-probability is largest - ln(sum(e^logits)).
    let sum: f64 =
        chunks.iter().map(|[top, _, sum]| f64::from(*sum) * (f64::from(*top) - f64::from(largest)).exp()).sum();
    Ok((id as u32, -sum.ln()))
}

/// The token whose share of the interval 0 to 1 contains a number.
fn pick(probabilities: &[f64], at: f64) -> u32 {
    let mut sum = 0.0;
    let possible = || probabilities.iter().enumerate().filter(|(_, p)| **p > 0.0);
    for (id, p) in possible() {
        sum += p;
        if at < sum {
            return id as u32;
        }
    }
    // The sum may end a rounding before 1.
    possible().next_back().map_or(0, |(id, _)| id as u32)
}

/// A number from 0 to 1 that belongs to a seed, a text and a position: the first 53 bits of a hash of the three.
pub(super) fn uniform(seed: u64, text: usize, position: usize) -> f64 {
    let mut sha = Sha256::new();
    for part in [seed, text as u64, position as u64] {
        sha.update(part.to_le_bytes());
    }
    let hash = sha.finalize();
    let bits = hash.iter().take(8).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 0.4, 0.3, 0.15, 0.1, 0.05.
    fn logits() -> Vec<f32> {
        [0.4f32, 0.3, 0.15, 0.1, 0.05].map(|p| p.ln() + 3.0).to_vec()
    }

    fn sampling() -> Sampling {
        Sampling { temperature: 1.0, ..Sampling::default() }
    }

    fn assert_near(got: &[f64], expected: &[f64]) {
        assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?}, expected {expected:?}");
    }

    #[test]
    fn filters_keep_what_transformers_keeps() {
        let of = |sampling: Sampling| sampling.probabilities(&logits(), &[]);
        assert_near(&of(sampling()), &[0.4, 0.3, 0.15, 0.1, 0.05]);
        assert_near(&of(Sampling { top_k: Some(2), ..sampling() }), &[4.0 / 7.0, 3.0 / 7.0, 0.0, 0.0, 0.0]);
        assert_near(&of(Sampling { top_p: Some(0.65), ..sampling() }), &[4.0 / 7.0, 3.0 / 7.0, 0.0, 0.0, 0.0]);
        assert_near(&of(Sampling { top_p: Some(0.75), ..sampling() }), &[8.0 / 17.0, 6.0 / 17.0, 3.0 / 17.0, 0.0, 0.0]);
        assert_near(&of(Sampling { top_p: Some(0.0), ..sampling() }), &[1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_near(&of(Sampling { min_p: Some(0.5), ..sampling() }), &[4.0 / 7.0, 3.0 / 7.0, 0.0, 0.0, 0.0]);
        assert_near(&of(Sampling { min_p: Some(1.0), ..sampling() }), &[1.0, 0.0, 0.0, 0.0, 0.0]);
        // Ties with the k-th stay.
        let tied = Sampling { top_k: Some(2), ..sampling() }.probabilities(&[1.0, 0.0, 1.0, 1.0], &[]);
        assert_near(&tied, &[1.0 / 3.0, 0.0, 1.0 / 3.0, 1.0 / 3.0]);
        // Temperature comes before the filters: at 0.5 the first token alone has 0.16 / 0.285 = 0.56.
        let cool = of(Sampling { temperature: 0.5, top_p: Some(0.55), ..sampling() });
        assert_near(&cool, &[1.0, 0.0, 0.0, 0.0, 0.0]);
        // Scores divided by it would be infinite. Seen red with the largest score left in.
        assert_near(&of(Sampling { temperature: 1e-308, ..sampling() }), &[1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn the_likeliest_is_that_of_all_logits() {
        use crate::device::reference::Reference;
        use crate::device::{Device, LOGITS_CHUNK, Operations, Window};
        let found = |logits: &[f32]| {
            let dev = Reference::default();
            let found = dev.argmax(&dev.upload([1, logits.len()], logits.to_vec()));
            let shape = dev.shape(&found);
            token_of_argmax(&dev.copy_out(&found, &Window::all(shape)))
        };
        let mut logits: Vec<f32> = (0..2 * LOGITS_CHUNK + 9).map(|i| (i * 7919 % 1013) as f32 * 0.01).collect();
        for (place, value) in [(0, 20.0), (LOGITS_CHUNK, 21.0), (2 * LOGITS_CHUNK + 8, 22.0)] {
            logits[place] = value;
            let (id, logprob) = found(&logits).unwrap();
            assert_eq!(id as usize, place);
            assert_eq!(id, Sampling::default().choose(&logits, &[], 0));
            assert!((logprob - (f64::from(value) - log_sum_exp(&logits))).abs() < 1e-6, "{logprob}");
        }
        logits[LOGITS_CHUNK] = 22.0;
        assert_eq!(found(&logits).unwrap().0 as usize, LOGITS_CHUNK, "of equals the first");
        logits[3] = f32::NAN;
        assert!(found(&logits).unwrap_err().is_nan());
        logits[3] = f32::INFINITY;
        assert_eq!(found(&logits).unwrap_err(), f32::INFINITY);
    }

    #[test]
    fn a_penalty_counts_a_token_once() {
        let penalty = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(penalty.penalized(&[3.0, -3.0, 1.0], &[0, 0, 1, 1, 1]), [1.5, -6.0, 1.0]);
        assert_eq!(penalty.choose(&[3.0, -3.0, 2.0], &[0, 1], 0), 2);
        assert_eq!(Sampling::default().choose(&[1.0, 3.0, 3.0], &[], 0), 1, "of equals the first");
    }

    /// Chi-squared of many draws against the exact probabilities, for every filter by itself and for all together.
    #[test]
    fn draws_have_the_distribution() {
        const DRAWS: usize = 20_000;
        let all =
            Sampling { top_k: Some(4), top_p: Some(0.9), min_p: Some(0.1), repetition_penalty: 1.3, ..sampling() };
        for of in [
            sampling(),
            Sampling { temperature: 0.7, ..sampling() },
            Sampling { temperature: 1.9, ..sampling() },
            Sampling { top_k: Some(3), ..sampling() },
            Sampling { top_p: Some(0.8), ..sampling() },
            Sampling { min_p: Some(0.2), ..sampling() },
            Sampling { repetition_penalty: 1.5, ..sampling() },
            Sampling { temperature: 1.2, seed: 7, ..all },
        ] {
            let expected = of.probabilities(&logits(), &[1, 1]);
            let mut counts = [0usize; 5];
            for text in 0..DRAWS {
                counts[of.choose(&logits(), &[1, 1], text) as usize] += 1;
            }
            let mut chi_squared = 0.0;
            for (count, p) in counts.iter().zip(&expected) {
                assert!(*p > 0.0 || *count == 0, "{of:?}: a token that was filtered out was drawn");
                if *p > 0.0 {
                    let expected = p * DRAWS as f64;
                    chi_squared += (*count as f64 - expected).powi(2) / expected;
                }
            }
            // Four degrees of freedom at most: beyond 23.5 once in ten thousand. The draws are the same in every run.
            assert!(chi_squared < 23.5, "{of:?}: chi-squared {chi_squared}, {counts:?} of {expected:?}");
        }
    }

    #[test]
    fn numbers_belong_to_seed_text_and_position() {
        let all =
            [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)].map(|(seed, text, at)| uniform(seed, text, at).to_bits());
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 4);
        assert_eq!(uniform(3, 4, 5), uniform(3, 4, 5));
    }
}
