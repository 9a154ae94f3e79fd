//! Detects previous-token, duplicate-token and induction heads, by the share of their attention that falls where such a head
//! looks. Owns the expected patterns of each kind, both of TransformerLens's measures (`detect_head`), random repeated texts, and
//! `Session::detect_heads`. Patterns are scored text by text as they are computed, and are not stored.

use crate::analysis::sampling::uniform;
use crate::batch::Batch;
use crate::config::Config;
use crate::hooks::capture::Sink;
use crate::hooks::request::Hooks;
use crate::hooks::site::Site;
use crate::session::{Error, Progress, Session};
use crate::text::named;
use ndarray::{ArrayView2, ArrayViewD, Axis, Ix3};

/// A kind of head, by where its queries look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// At the token before.
    Previous,
    /// At earlier tokens that are the same.
    Duplicate,
    /// At tokens that follow an earlier token that is the same.
    Induction,
}

impl HeadKind {
    /// All kinds, by name.
    pub const ALL: [(&'static str, HeadKind); 3] =
        [("previous", HeadKind::Previous), ("duplicate", HeadKind::Duplicate), ("induction", HeadKind::Induction)];

    /// Whether a head of this kind looks from `query` at `key`, a position up to the query, in a text.
    fn looks(self, ids: &[u32], query: usize, key: usize) -> bool {
        match self {
            HeadKind::Previous => key + 1 == query,
            HeadKind::Duplicate => key < query && ids[key] == ids[query],
            HeadKind::Induction => key > 0 && ids[key - 1] == ids[query],
        }
    }
}

/// How a pattern is compared with the expected one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Measure {
    /// The share of the attention that falls on the expected places.
    #[default]
    Mul,
    /// 1 minus the mean over queries of the sum of absolute differences from a pattern that is 1 at the expected places: lower if a
    /// query has several such places or none.
    Abs,
}

named!(Measure: "mul" Mul, "abs" Abs);

/// How heads are scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Detection {
    /// The measure.
    pub measure: Measure,
    /// Leave out the attention that the first position gets.
    pub exclude_bos: bool,
    /// Leave out the attention that tokens pay to themselves.
    pub exclude_current: bool,
}

impl Detection {
    /// The score of one head on one text; NaN where the exclusions leave no attention.
    fn score(self, kind: HeadKind, pattern: ArrayView2<'_, f32>, ids: &[u32]) -> f64 {
        let n = ids.len();
        let (mut there, mut all, mut apart) = (0.0, 0.0, 0.0);
        for query in 0..n {
            for key in 0..=query {
                if (self.exclude_bos && key == 0) || (self.exclude_current && key == query) {
                    continue;
                }
                let weight = f64::from(pattern[[query, key]]);
                let expected = if kind.looks(ids, query, key) { 1.0 } else { 0.0 };
                there += weight * expected;
                all += weight;
                apart += (weight - expected).abs();
            }
        }
        match self.measure {
            Measure::Mul => there / all,
            Measure::Abs => 1.0 - apart / n as f64,
        }
    }
}

/// The scores of every head, the mean over texts.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadScores {
    /// `[kind][layer][head]`, kinds in the order of [`HeadKind::ALL`].
    pub scores: Vec<Vec<Vec<f64>>>,
}

/// Texts whose second half repeats their first: `bos` if there is one, `length` random tokens, and those tokens again.
/// The same seed gives the same texts.
pub fn random_repeats(config: &Config, bos: Option<u32>, texts: usize, length: usize, seed: u64) -> Vec<Vec<u32>> {
    let token = |text: usize, place: usize| {
        let n_vocab = config.vocab_size as u32;
        // The random number is below 1, but its product may round up.
        ((uniform(seed, text, place) * f64::from(n_vocab)) as u32).min(n_vocab - 1)
    };
    let text = |text: usize| {
        let half: Vec<u32> = (0..length).map(|place| token(text, place)).collect();
        bos.into_iter().chain(half.iter().copied()).chain(half.iter().copied()).collect()
    };
    (0..texts).map(text).collect()
}

impl Session {
    /// Scores every head by its patterns on the texts of a batch. `edits` is a request for that batch, whose edits are applied.
    ///
    /// # Errors
    /// As [`Session::run_async`].
    pub async fn detect_heads_async(
        &self,
        batch: &Batch,
        detection: Detection,
        edits: &Hooks,
        progress: Option<Progress<'_>>,
    ) -> Result<HeadScores, Error> {
        let config = self.model().config();
        let mut hooks = Hooks::whole(config, &(0..config.n_layer).map(Site::Pattern).collect::<Vec<_>>());
        for (site, select, edit) in edits.edits() {
            hooks.edit_at(*site, select.clone(), edit.clone())?;
        }
        let zeros = vec![vec![vec![0.0; config.n_head]; config.n_layer]; HeadKind::ALL.len()];
        let mut judge = Judge { batch, detection, sums: zeros };
        self.run_into_async(batch, &hooks, &mut judge, progress).await?;
        let mut scores = judge.sums;
        let n = batch.texts().len() as f64;
        scores.iter_mut().flatten().flatten().for_each(|score| *score /= n);
        Ok(HeadScores { scores })
    }

    /// Blocking form of [`Session::detect_heads_async`], for the unedited model.
    ///
    /// # Errors
    /// As [`Session::detect_heads_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn detect_heads(&self, batch: &Batch, detection: Detection) -> Result<HeadScores, Error> {
        pollster::block_on(self.detect_heads_async(batch, detection, &self.model().hooks(), None))
    }
}

/// Adds up scores of patterns.
struct Judge<'a> {
    batch: &'a Batch,
    detection: Detection,
    sums: Vec<Vec<Vec<f64>>>,
}

impl Sink for Judge<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        let Site::Pattern(layer) = site else { return Ok(()) };
        let patterns = values.into_dimensionality::<Ix3>().expect("patterns of a text are [head, query, key]");
        let ids = self.batch.ids_of(text);
        for (sums, (_, kind)) in self.sums.iter_mut().zip(HeadKind::ALL) {
            for (sum, pattern) in sums[layer].iter_mut().zip(patterns.axis_iter(Axis(0))) {
                *sum += self.detection.score(kind, pattern, ids);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// By hand, on the tokens 7 8 7 8 and an induction head's pattern. Seen red with the diagonal counted as a duplicate.
    #[test]
    fn scores_of_a_known_pattern() {
        let ids = [7, 8, 7, 8];
        let pattern =
            array![[1.0f32, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.0, 0.75, 0.25, 0.0], [0.0, 0.0, 1.0, 0.0]];
        let of = |kind, measure, exclude_bos, exclude_current| {
            Detection { measure, exclude_bos, exclude_current }.score(kind, pattern.view(), &ids)
        };
        // Places: (2, 1) and (3, 2).
        assert_eq!(of(HeadKind::Induction, Measure::Mul, false, false), 1.75 / 4.0);
        assert_eq!(of(HeadKind::Induction, Measure::Mul, true, false), 1.75 / 2.5);
        assert_eq!(of(HeadKind::Induction, Measure::Mul, false, true), 1.75 / 2.25);
        // Apart: 1, 1, 0.25 + 0.25, 0.
        assert_eq!(of(HeadKind::Induction, Measure::Abs, false, false), 1.0 - 2.5 / 4.0);
        assert_eq!(of(HeadKind::Induction, Measure::Abs, true, true), 1.0 - 0.25 / 4.0);
        // Places: (1, 0), (2, 1), (3, 2).
        assert_eq!(of(HeadKind::Previous, Measure::Mul, false, false), 2.25 / 4.0);
        // Places: (2, 0) and (3, 1).
        assert_eq!(of(HeadKind::Duplicate, Measure::Mul, false, false), 0.0);
        assert!(Detection::default().score(HeadKind::Previous, array![[1.0f32]].view(), &[3]) == 0.0);
    }

    #[test]
    fn repeats() {
        let config = Config::from_json(r#"{"n_embd": 4, "n_layer": 1, "n_head": 1, "vocab_size": 9}"#).unwrap();
        let texts = random_repeats(&config, Some(8), 2, 5, 3);
        assert_eq!(texts, random_repeats(&config, Some(8), 2, 5, 3));
        assert_ne!(texts, random_repeats(&config, Some(8), 2, 5, 4));
        assert!(texts.iter().all(|text| text.len() == 11 && text[0] == 8 && text[1..6] == text[6..]));
        assert_ne!(texts[0], texts[1]);
    }
}
