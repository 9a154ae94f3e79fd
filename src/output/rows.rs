//! Converts values recorded for windows, and for the tokens of a word, to rows of documents. It is a sink between a run
//! and a file's sink. Rows arrive and leave in the order of the document, so at most one window's values are in memory.
//! Read next: `../model/windows.rs`.

pub use crate::hooks::capture::RowSink;
use crate::hooks::capture::Sink;
use crate::hooks::site::Site;
use crate::model::token_select::Word;
use crate::model::windows::DocumentWindow;
use ndarray::{Array, ArrayD, ArrayViewD, Axis, IxDyn, Slice};
use std::collections::BTreeMap;
use std::io::Result;

/// Joins windows: writes each window's rows to their place in the document.
pub struct Joined<'a> {
    /// The texts of the batch: one per window.
    pub pieces: &'a [DocumentWindow],
    /// Tokens of each document.
    pub lengths: &'a [usize],
    /// Where the rows go.
    pub to: &'a mut dyn RowSink,
}

impl std::fmt::Debug for Joined<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joined").field("pieces", &self.pieces).finish_non_exhaustive()
    }
}

impl Sink for Joined<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> Result<()> {
        let DocumentWindow { document, tokens, first_row, .. } = &self.pieces[text];
        if !site.is_square() {
            return self.to.put_rows(site, *document, *first_row, values);
        }
        // Keys are positions of the document. A query attends to nothing outside its window.
        let unseen = if matches!(site, Site::AttnScores(_)) { f32::NEG_INFINITY } else { 0.0 };
        let mut row = ArrayD::from_elem(IxDyn(&[values.shape()[0], 1, self.lengths[*document]]), unseen);
        for (slot, of_query) in values.axis_iter(Axis(1)).enumerate() {
            let mut seen = row.slice_axis_mut(Axis(2), Slice::from(tokens.clone()));
            seen.index_axis_mut(Axis(1), 0).assign(&of_query);
            self.to.put_rows(site, *document, first_row + slot, row.view())?;
        }
        Ok(())
    }
}

/// Whole texts as rows.
pub struct Whole<'a>(pub &'a mut dyn RowSink);

impl std::fmt::Debug for Whole<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Whole").finish_non_exhaustive()
    }
}

impl Sink for Whole<'_> {
    fn put(&mut self, site: Site, text: usize, values: ArrayViewD<'_, f32>) -> Result<()> {
        self.0.put_rows(site, text, 0, values)
    }
}

/// The mean of each word's tokens, for hooks whose first axis is the position. Receives one row per token of every
/// word.
pub struct Mean<'a> {
    words: &'a [Vec<Word>],
    /// For each text, the word of every row.
    owners: Vec<Vec<usize>>,
    /// Words of which not all rows have arrived.
    open: BTreeMap<Site, (usize, ArrayD<f64>)>,
    to: &'a mut dyn RowSink,
}

impl std::fmt::Debug for Mean<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mean").field("words", &self.words).finish_non_exhaustive()
    }
}

impl<'a> Mean<'a> {
    /// For these words of each text.
    pub fn new(words: &'a [Vec<Word>], to: &'a mut dyn RowSink) -> Mean<'a> {
        let owners = |words: &Vec<Word>| {
            words.iter().enumerate().flat_map(|(n, word)| std::iter::repeat_n(n, word.tokens.len())).collect()
        };
        Mean { words, owners: words.iter().map(owners).collect(), open: BTreeMap::new(), to }
    }
}

impl RowSink for Mean<'_> {
    fn put_rows(&mut self, site: Site, text: usize, first: usize, values: ArrayViewD<'_, f32>) -> Result<()> {
        for (slot, row) in (first..).zip(values.axis_iter(Axis(0))) {
            let word = self.owners[text][slot];
            let (n, sum) = self.open.entry(site).or_insert_with(|| (0, Array::zeros(row.raw_dim())));
            *n += 1;
            sum.zip_mut_with(&row, |sum, v| *sum += f64::from(*v));
            let of = self.words[text][word].tokens.len();
            if *n == of
                && let Some((_, sum)) = self.open.remove(&site)
            {
                let mean = sum.mapv(|sum| (sum / of as f64) as f32).insert_axis(Axis(0));
                self.to.put_rows(site, text, word, mean.view())?;
            }
        }
        Ok(())
    }
}

/// The mean of all rows of a run, site by site, for hooks whose first axis is the position.
#[derive(Debug, Default)]
pub struct MeanRow(BTreeMap<Site, (usize, ArrayD<f64>)>);

impl Sink for MeanRow {
    fn put(&mut self, site: Site, _text: usize, values: ArrayViewD<'_, f32>) -> Result<()> {
        for row in values.axis_iter(Axis(0)) {
            let (n, sum) = self.0.entry(site).or_insert_with(|| (0, Array::zeros(row.raw_dim())));
            *n += 1;
            sum.zip_mut_with(&row, |sum, v| *sum += f64::from(*v));
        }
        Ok(())
    }
}

impl MeanRow {
    /// Passes every site's row on as row 0 of text 0.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn put(self, to: &mut dyn RowSink) -> Result<()> {
        for (site, (n, sum)) in self.0 {
            let mean = sum.mapv(|sum| (sum / n as f64) as f32).insert_axis(Axis(0));
            to.put_rows(site, 0, 0, mean.view())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen(Vec<(Site, usize, usize, ArrayD<f32>)>);

    impl RowSink for Seen {
        fn put_rows(&mut self, site: Site, text: usize, first: usize, values: ArrayViewD<'_, f32>) -> Result<()> {
            self.0.push((site, text, first, values.to_owned()));
            Ok(())
        }
    }

    #[test]
    fn keys_of_a_window_are_positions_of_the_document() {
        let pieces = [DocumentWindow { document: 1, tokens: 2..4, kept: vec![3], first_row: 5 }];
        let values = ArrayD::from_shape_vec(IxDyn(&[1, 1, 2]), vec![0.25, 0.75]).unwrap();
        for (site, unseen) in [(Site::Pattern(0), 0.0), (Site::AttnScores(0), f32::NEG_INFINITY)] {
            let mut seen = Seen::default();
            Joined { pieces: &pieces, lengths: &[9, 6], to: &mut seen }.put(site, 0, values.view()).unwrap();
            let want = vec![unseen, unseen, 0.25, 0.75, unseen, unseen];
            assert_eq!(seen.0, [(site, 1, 5, ArrayD::from_shape_vec(IxDyn(&[1, 1, 6]), want).unwrap())]);
        }
    }

    /// A word's rows may arrive in two pieces, interleaved with other sites.
    #[test]
    fn the_mean_of_words_that_are_cut() {
        let word = |tokens: std::ops::Range<usize>| Word { text: String::new(), tokens };
        let words = [vec![word(0..1), word(2..5)]];
        let mut seen = Seen::default();
        let mut mean = Mean::new(&words, &mut seen);
        let rows = |values: &[f32]| ArrayD::from_shape_vec(IxDyn(&[values.len(), 1]), values.to_vec()).unwrap();
        let (a, b) = (Site::ResidMid(0), Site::ResidPost(0));
        mean.put_rows(a, 0, 0, rows(&[1.0, 2.0]).view()).unwrap();
        mean.put_rows(b, 0, 0, rows(&[5.0, 0.0]).view()).unwrap();
        mean.put_rows(a, 0, 2, rows(&[3.0, 7.0]).view()).unwrap();
        mean.put_rows(b, 0, 2, rows(&[0.0, 3.0]).view()).unwrap();
        let got: Vec<_> = seen.0.iter().map(|(site, _, first, values)| (*site, *first, values[[0, 0]])).collect();
        assert_eq!(got, [(a, 0, 1.0), (b, 0, 5.0), (a, 1, 4.0), (b, 1, 1.0)]);
    }
}
