//! How a figure is taken: warm up, then several batches that are each long enough for the clock, and of those the median. Owns
//! the budget.

use super::LeftOut;
use std::time::Instant;

/// How long one batch should take, in seconds.
const BATCH: f64 = 0.03;

/// Batches of quick work,
const BATCHES: usize = 5;

/// and of work that takes longer than a batch should.
const FEW_BATCHES: usize = 3;

/// Runs in one batch at most: a queue should not grow without end.
const MOST_RUNS: usize = 200;

/// One figure.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Of one run: the median over the batches.
    pub seconds: f64,
    /// How many batches there were,
    pub batches: usize,
    /// of so many runs each.
    pub runs: usize,
}

/// Time that some rows share.
pub struct Budget<'a> {
    /// Seconds that are left for all of them.
    left: f64,
    /// Seconds that one run of a row may take.
    longest: f64,
    left_out: &'a mut Vec<LeftOut>,
}

impl<'a> Budget<'a> {
    /// So many seconds for all, and for one run of a row. Rows that do not fit are named in `left_out`.
    pub fn new(seconds: f64, longest: f64, left_out: &'a mut Vec<LeftOut>) -> Budget<'a> {
        Budget { left: seconds, longest, left_out }
    }

    /// Names a row that is left out.
    pub fn leave_out(&mut self, row: &str, why: String) {
        self.left_out.push(LeftOut { row: row.into(), why });
    }

    /// Times a row. `batch` does a number of runs and tells how many seconds they took; `expected` is what one is thought to
    /// take, nothing where nothing is known. Gives back what one run takes as an error where the row is left out, as far as
    /// that is known then.
    ///
    /// # Errors
    /// Those of `batch`, outside.
    pub async fn time<E>(
        &mut self,
        row: &str,
        expected: f64,
        mut batch: impl AsyncFnMut(usize) -> Result<f64, E>,
    ) -> Result<Result<Timing, f64>, E> {
        let begin = Instant::now();
        let longest = self.longest;
        let too_long = |once: f64, about: &str| match once {
            0.0 => "the time for these rows was used up".into(),
            _ if once > longest => format!("one run takes {about}{once:.2} s"),
            _ => format!("one run takes {about}{once:.2} s, and the time for these rows was nearly used up"),
        };
        if expected > self.longest || expected * (1 + FEW_BATCHES) as f64 > self.left {
            self.leave_out(row, too_long(expected, "about "));
            return Ok(Err(expected));
        }
        // The first run compiles kernels and takes memory.
        batch(1).await?;
        let once = batch(1).await?;
        // A batch may do more than what it times.
        let so_far = begin.elapsed().as_secs_f64();
        let more = so_far / 2.0 * (FEW_BATCHES - 1) as f64;
        if once > self.longest || once > BATCH && so_far + more > self.left {
            self.left -= so_far;
            self.leave_out(row, too_long(once, ""));
            return Ok(Err(once));
        }
        let runs = (BATCH / once).clamp(1.0, MOST_RUNS as f64) as usize;
        // A run that is longer than a batch is one.
        let (batches, mut each) = if once > BATCH { (FEW_BATCHES, vec![once]) } else { (BATCHES, Vec::new()) };
        while each.len() < batches {
            each.push(batch(runs).await? / runs as f64);
        }
        self.left -= begin.elapsed().as_secs_f64();
        Ok(Ok(Timing { seconds: median(&mut each), batches, runs }))
    }
}

/// The one in the middle of an odd number; 0 of none.
pub fn median(of: &mut [f64]) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(0.0)
}
