//! `actscope completions`: prints the script with which a shell completes commands and options. The crate clap_complete
//! generates it.

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
        // The script is generated in memory first, because clap_complete panics if stdout is closed.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "actscope", &mut script);
        Ok(std::io::stdout().lock().write_all(&script)?)
    }
}
