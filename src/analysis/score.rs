//! How likely a model finds texts: the log-probability of every token after those before it, and perplexity. Owns
//! `Session::score`. Texts that are longer than the context are run in windows that overlap.

use crate::analysis::sampling::log_sum_exp;
use crate::batch;
use crate::hooks::capture::Sink;
use crate::hooks::request::Select;
use crate::hooks::site::Site;
use crate::model::windows::{DocumentWindow, Windows};
use crate::session::{Error, Progress, Session};
use ndarray::ArrayViewD;

/// One text, scored.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// For every token but the first its log-probability, in nats, given those before it. With windows, those before it that its
    /// window has.
    pub logprobs: Vec<f64>,
}

impl Score {
    /// The log-probability of all tokens but the first.
    pub fn total(&self) -> f64 {
        self.logprobs.iter().sum()
    }

    /// `exp` of the mean surprise of a token; `None` for a text of one token, which nothing comes before.
    pub fn perplexity(&self) -> Option<f64> {
        (!self.logprobs.is_empty()).then(|| (-self.total() / self.logprobs.len() as f64).exp())
    }
}

impl Session {
    /// Scores texts, given as ids. Those that are longer than `windows.size` are run in windows; each token is scored in the window
    /// where it has most context.
    ///
    /// # Errors
    /// As [`Session::run_async`].
    pub async fn score_async<T: AsRef<[u32]>>(
        &self,
        ids: &[T],
        windows: Windows,
        progress: Option<Progress<'_>>,
    ) -> Result<Vec<Score>, Error> {
        let ids: Vec<&[u32]> = ids.iter().map(AsRef::as_ref).collect();
        batch::check_ids(&ids, self.model().config())?;
        let lengths: Vec<usize> = ids.iter().map(|ids| ids.len()).collect();
        // The logits of a position score the token after it.
        let scored: Vec<Vec<usize>> = lengths.iter().map(|n| (0..n.saturating_sub(1)).collect()).collect();
        let pieces = windows.plan(&lengths, Some(&scored));
        let mut scores: Vec<Score> = ids.iter().map(|_| Score { logprobs: Vec::new() }).collect();
        if pieces.is_empty() {
            return Ok(scores);
        }
        let model = self.model();
        let texts: Vec<&[u32]> = pieces.iter().map(|piece| &ids[piece.document][piece.tokens.clone()]).collect();
        let batch = model.batch(&texts)?;
        let within = |piece: &DocumentWindow| piece.kept.iter().map(|position| position - piece.tokens.start).collect();
        let mut hooks = model.hooks();
        hooks.tap_at(Site::Unembed, Select::all().positions(pieces.iter().map(within).collect()))?;
        let mut sink = Scores { ids: &ids, pieces: &pieces, scores: &mut scores };
        self.run_into_async(&batch, &hooks, &mut sink, progress).await?;
        Ok(scores)
    }

    /// Blocking form of [`Session::score_async`].
    ///
    /// # Errors
    /// As [`Session::score_async`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn score<T: AsRef<[u32]>>(&self, ids: &[T], windows: Windows) -> Result<Vec<Score>, Error> {
        pollster::block_on(self.score_async(ids, windows, None))
    }
}

/// Makes scores of logits as they come. The windows of a text come in order.
struct Scores<'a> {
    ids: &'a [&'a [u32]],
    pieces: &'a [DocumentWindow],
    scores: &'a mut [Score],
}

impl Sink for Scores<'_> {
    fn put(&mut self, _: Site, text: usize, logits: ArrayViewD<'_, f32>) -> std::io::Result<()> {
        let DocumentWindow { document, kept, .. } = &self.pieces[text];
        for (position, row) in kept.iter().zip(logits.outer_iter()) {
            let row: Vec<f32> = row.iter().copied().collect();
            let next = self.ids[*document][position + 1];
            self.scores[*document].logprobs.push(f64::from(row[next as usize]) - log_sum_exp(&row));
        }
        Ok(())
    }
}
