//! The progress bar: on stderr, once a second has passed.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// A bar that nobody sees when all is done within a second.
pub(super) struct Progress {
    bar: ProgressBar,
    quiet: bool,
    start: Instant,
}

impl Progress {
    /// A bar, or none for those who want quiet.
    pub(super) fn new(quiet: bool) -> Progress {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {elapsed} gone, {eta} to go");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Progress { bar, quiet, start: Instant::now() }
    }

    /// `done` of `of` are done; `what` is in words what they are.
    pub(super) fn told(&self, what: &'static str, done: usize, of: usize) {
        const PATIENCE: Duration = Duration::from_secs(1);
        if self.bar.is_hidden() && !self.quiet && self.start.elapsed() > PATIENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_message(what);
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
