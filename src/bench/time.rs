//! Times one row of a benchmark: a warm-up, then several batches that are each long enough for the clock, and their
//! median. Owns the time budget that the rows share.
//! Read next: `operations.rs` and `forward.rs`, which use it.

use super::LeftOut;
use std::time::Instant;

/// The target time of one batch, in seconds.
const BATCH: f64 = 0.03;

/// Batches of work that takes less than [`BATCH`].
const BATCHES: usize = 5;

/// Batches of work that takes longer than [`BATCH`].
const FEW_BATCHES: usize = 3;

/// The most runs in one batch. It limits the length of the device's queue.
const MOST_RUNS: usize = 200;

/// The time of one row.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Seconds of one run: the median over the batches.
    pub seconds: f64,
    /// The number of batches.
    pub batches: usize,
    /// The number of runs in each batch.
    pub runs: usize,
}

/// The time that several rows share.
#[derive(Debug)]
pub struct Budget<'a> {
    /// Seconds that are left for the rows.
    left: f64,
    /// The most seconds that one run may take.
    longest: f64,
    left_out: &'a mut Vec<LeftOut>,
}

impl<'a> Budget<'a> {
    /// A budget of `seconds` for all rows and of `longest` seconds for one run. Rows that do not fit are added to
    /// `left_out`.
    pub fn new(seconds: f64, longest: f64, left_out: &'a mut Vec<LeftOut>) -> Budget<'a> {
        Budget { left: seconds, longest, left_out }
    }

    /// Records that a row was not measured.
    pub fn leave_out(&mut self, row: &str, why: String) {
        self.left_out.push(LeftOut { row: row.into(), why });
    }

    /// Times a row. `batch` does a number of runs and returns the seconds that they took. `expected` is an estimate of
    /// the seconds of one run, or 0 if there is none. If the row does not fit the budget, the inner result is an error
    /// with the seconds of one run, measured or expected.
    ///
    /// # Errors
    /// The outer result has the errors of `batch`.
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
        // The first run is the warm-up: it compiles kernels and allocates memory.
        batch(1).await?;
        let once = batch(1).await?;
        // A batch may do more than it times, so this measures the whole call.
        let so_far = begin.elapsed().as_secs_f64();
        let more = so_far / 2.0 * (FEW_BATCHES - 1) as f64;
        if once > self.longest || once > BATCH && so_far + more > self.left {
            self.left -= so_far;
            self.leave_out(row, too_long(once, ""));
            return Ok(Err(once));
        }
        let runs = (BATCH / once).clamp(1.0, MOST_RUNS as f64) as usize;
        // The run that was just timed counts as a batch if it was long enough.
        let (batches, mut each) = if once > BATCH { (FEW_BATCHES, vec![once]) } else { (BATCHES, Vec::new()) };
        while each.len() < batches {
            each.push(batch(runs).await? / runs as f64);
        }
        self.left -= begin.elapsed().as_secs_f64();
        Ok(Ok(Timing { seconds: median(&mut each), batches, runs }))
    }
}

/// The median of an odd number of values; of an even number, the upper of the middle two. 0 if there are no values.
pub fn median(of: &mut [f64]) -> f64 {
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(0.0)
}
