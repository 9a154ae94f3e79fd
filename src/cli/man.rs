//! `actscope man`: prints one manual page for all commands. The crate clap_mangen formats it.

use super::{Cli, Failure};
use clap::{Args, Command, CommandFactory};
use clap_mangen::Man as Page;
use std::io::Write;

/// Arguments of `actscope man`.
#[derive(Args)]
#[command(
    after_help = "To read it: actscope man | man -l -\nTo keep it: actscope man > ~/.local/share/man/man1/actscope.1"
)]
pub(crate) struct Man {}

impl Man {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut cli = Cli::command().disable_help_subcommand(true);
        cli.build();
        Ok(std::io::stdout().lock().write_all(&page(&cli)?)?)
    }
}

/// The program's page with a section for each command.
fn page(cli: &Command) -> std::io::Result<Vec<u8>> {
    let mut roff = Vec::new();
    let of_program = Page::new(cli.clone());
    of_program.render_title(&mut roff)?;
    of_program.render_name_section(&mut roff)?;
    of_program.render_synopsis_section(&mut roff)?;
    of_program.render_description_section(&mut roff)?;
    for command in cli.get_subcommands() {
        writeln!(roff, ".SH \"{}\"", command.get_name().to_uppercase())?;
        let of_command = Page::new(command.clone());
        for render in [Page::render_description_section, Page::render_synopsis_section, Page::render_options_section] {
            let mut section = Vec::new();
            render(&of_command, &mut section)?;
            // clap_mangen makes a page per command. Its sections become subsections of the command's section.
            roff.extend(String::from_utf8_lossy(&section).replace("\n.SH ", "\n.SS ").into_bytes());
        }
    }
    writeln!(roff, ".SH \"EXIT STATUS\"\n0 done, 1 the run failed, 2 wrong usage")?;
    Ok(roff)
}
