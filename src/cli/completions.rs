//! `actscope completions`: what a shell needs to complete commands and options. clap_complete has the words.

use super::{Cli, Failure};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::io::Write;

/// Arguments of `actscope completions`.
#[derive(Args)]
#[command(after_help = "\
bash: actscope completions bash > ~/.local/share/bash-completion/completions/actscope
zsh:  actscope completions zsh > _actscope, in a folder of $fpath
fish: actscope completions fish > ~/.config/fish/completions/actscope.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<(), Failure> {
        // Into memory first: the crate panics where stdout is closed.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "actscope", &mut script);
        Ok(std::io::stdout().lock().write_all(&script)?)
    }
}
