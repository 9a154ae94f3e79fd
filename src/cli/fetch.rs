//! What a download says on stderr: a bar with speed and time left on a terminal, one line elsewhere, nothing with --quiet
//! but what the user has to know.

use super::size;
use crate::hub::Event;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};

/// Hears of a download and shows it.
pub(super) struct Talk {
    quiet: bool,
    bar: Option<ProgressBar>,
}

impl Talk {
    pub fn new(quiet: bool) -> Talk {
        Talk { quiet, bar: None }
    }

    pub fn hear(&mut self, event: Event<'_>) {
        match event {
            Event::Note(line) => self.say(line),
            Event::Start { repo, from, bytes } => {
                self.say(&format!("downloading {repo} from {from}: {}", size(bytes)));
                if !self.quiet && std::io::stderr().is_terminal() {
                    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
                    let style =
                        "{bar:30} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} to go";
                    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
                    self.bar = Some(bar);
                }
            }
            Event::Bytes { done, total } => {
                if let Some(bar) = &self.bar {
                    // What an earlier run fetched says nothing of the speed of this one.
                    if bar.position() == 0 && done > 0 {
                        bar.set_position(done);
                        bar.reset_eta();
                    }
                    bar.set_length(total);
                    bar.set_position(done);
                }
            }
            Event::End => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
        }
    }

    fn say(&self, line: &str) {
        if !self.quiet {
            let print = || {
                let _ = writeln!(std::io::stderr(), "{line}");
            };
            match &self.bar {
                Some(bar) => bar.suspend(print),
                None => print(),
            }
        }
    }
}
