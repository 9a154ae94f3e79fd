//! A download's progress on stderr: on a terminal a bar with speed and remaining time, elsewhere one line, and with
//! --quiet nothing. Read next: `../hub/mod.rs`, which reports the events.

use super::size;
use crate::hub::Event;
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Receives a download's events and shows them.
pub(super) struct Talk {
    quiet: bool,
    bar: Option<Bar>,
}

struct Bar {
    bar: ProgressBar,
    start: Instant,
    done: u64,
    /// Bytes received in this run. The speed is computed from these: bytes that an earlier run received take no time.
    came: u64,
}

impl Talk {
    pub(crate) fn new(quiet: bool) -> Talk {
        Talk { quiet, bar: None }
    }

    pub(crate) fn hear(&mut self, event: Event<'_>) {
        match event {
            Event::Note(line) => self.say(line),
            Event::Start { repo, from, bytes } => {
                self.say(&format!("downloading {repo} from {from}: {}", size(bytes)));
                if !self.quiet && std::io::stderr().is_terminal() {
                    self.bar = Some(Bar::new(bytes));
                }
            }
            Event::Bytes { done, kept } => {
                if let Some(bar) = &mut self.bar {
                    bar.step(done, kept);
                }
            }
            Event::End => {
                if let Some(bar) = self.bar.take() {
                    bar.bar.finish_and_clear();
                }
            }
        }
    }

    fn say(&self, line: &str) {
        if self.quiet {
            return;
        }
        let print = || {
            let _ = writeln!(std::io::stderr(), "{line}");
        };
        match &self.bar {
            Some(bar) => bar.bar.suspend(print),
            None => print(),
        }
    }
}

impl Bar {
    fn new(bytes: u64) -> Bar {
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{bar:30} {decimal_bytes} of {decimal_total_bytes}{msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Bar { bar, start: Instant::now(), done: 0, came: 0 }
    }

    fn step(&mut self, done: u64, kept: bool) {
        if !kept {
            self.came += done.saturating_sub(self.done);
        }
        self.done = done;
        let speed = self.came as f64 / self.start.elapsed().as_secs_f64();
        let left = self.bar.length().unwrap_or(done).saturating_sub(done) as f64 / speed;
        // The first half second gives no reliable speed.
        if self.came > 0 && self.start.elapsed() > Duration::from_millis(500) && left < 1e6 {
            let left = HumanDuration(Duration::from_secs_f64(left));
            self.bar.set_message(format!(", {}/s, {left} left", size(speed as u64)));
        }
        self.bar.set_position(done);
    }
}
