//! Splits documents longer than the context into overlapping windows. Owns the positions of the windows and which
//! tokens' values are taken from which window. A window is one text of a batch. Read next: `../output/rows.rs`, which
//! joins the values recorded for the windows.

use std::ops::Range;
use std::str::FromStr;

/// How documents are split into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// The most tokens of a window.
    pub size: usize,
    /// Tokens from the beginning of one window to the beginning of the next.
    pub stride: usize,
}

impl FromStr for Windows {
    type Err = String;

    /// Parses `N` or `N:STRIDE`. Without a stride, it is half the window.
    fn from_str(written: &str) -> Result<Windows, String> {
        let number = |text: &str| text.parse().ok().filter(|n| *n > 0);
        let (size, stride) = match written.split_once(':') {
            Some((size, stride)) => (number(size), number(stride)),
            None => (number(written), number(written).map(|size: usize| size.div_ceil(2))),
        };
        let (Some(size), Some(stride)) = (size, stride) else {
            return Err(format!("{written:?} is neither N nor N:STRIDE, such as 1024:512"));
        };
        if stride > size {
            return Err(format!(
                "a stride of {stride} leaves tokens out between windows of {size}; {size} is the most"
            ));
        }
        Ok(Windows { size, stride })
    }
}

impl std::fmt::Display for Windows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.size, self.stride)
    }
}

/// One window of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentWindow {
    /// Index of the document.
    pub document: usize,
    /// The range of the document's tokens.
    pub tokens: Range<usize>,
    /// The document's positions whose values are taken from this window: ascending, at least one.
    pub kept: Vec<usize>,
    /// How many positions of the document are taken from earlier windows.
    pub first_row: usize,
}

impl Windows {
    /// The windows of one document of `n` tokens, each with the tokens whose values are taken from it. These are the
    /// tokens that no earlier window contains, so each token has the most context.
    pub fn of(self, n: usize) -> Vec<(Range<usize>, Range<usize>)> {
        let (mut windows, mut start, mut done) = (Vec::new(), 0, 0);
        while done < n {
            let end = n.min(start + self.size);
            windows.push((start..end, done..end));
            (done, start) = (end, start + self.stride);
        }
        windows
    }

    /// The windows that must run to obtain the positions in `kept` (all positions if `None`) of documents of these
    /// lengths.
    pub fn plan(self, lengths: &[usize], kept: Option<&[Vec<usize>]>) -> Vec<DocumentWindow> {
        let mut pieces = Vec::new();
        for (document, n) in lengths.iter().enumerate() {
            let mut first_row = 0;
            for (tokens, own) in self.of(*n) {
                let kept: Vec<usize> = match kept {
                    None => own.collect(),
                    Some(kept) => {
                        let kept = &kept[document];
                        let at = |position| kept.partition_point(|p| *p < position);
                        kept[at(own.start)..at(own.end)].to_vec()
                    }
                };
                let rows = kept.len();
                if rows > 0 {
                    pieces.push(DocumentWindow { document, tokens, kept, first_row });
                }
                first_row += rows;
            }
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_written() {
        let of = |text: &str| text.parse::<Windows>().map(|w| (w.size, w.stride));
        assert_eq!(of("1024:512"), Ok((1024, 512)));
        assert_eq!(of("7"), Ok((7, 4)));
        assert_eq!(of("1"), Ok((1, 1)));
        assert_eq!(of("8:8"), Ok((8, 8)));
        for wrong in ["", "0", "8:0", "8:9", "8:", ":4", "a", "-8", "8:4:2"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }

    /// Every token occurs once, in the window that begins furthest before it.
    #[test]
    fn every_token_has_the_most_context_there_is() {
        for n in 1..40 {
            for size in 1..12 {
                for stride in 1..=size {
                    let windows = Windows { size, stride }.of(n);
                    let all: Vec<usize> = windows.iter().flat_map(|(_, own)| own.clone()).collect();
                    assert_eq!(all, (0..n).collect::<Vec<_>>(), "{n} {size}:{stride}");
                    for (window, own) in &windows {
                        assert!(window.len() <= size && window.end == own.end);
                        for token in own.clone() {
                            let most = (0..=token).step_by(stride).find(|start| token < start + size).unwrap();
                            assert_eq!(window.start, most, "token {token} of {n}, {size}:{stride}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn windows_without_a_kept_token_are_not_run() {
        let windows = Windows { size: 4, stride: 2 };
        let pieces = windows.plan(&[9, 3], Some(&[vec![0, 7, 8], vec![2]]));
        let of = |document, tokens, kept: &[usize], first_row| DocumentWindow {
            document,
            tokens,
            kept: kept.to_vec(),
            first_row,
        };
        assert_eq!(pieces, [of(0, 0..4, &[0], 0), of(0, 4..8, &[7], 1), of(0, 6..9, &[8], 2), of(1, 0..3, &[2], 0)]);
    }
}
