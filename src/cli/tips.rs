//! Messages about an option that a command does not have. They name the commands that have it, or the option with the
//! nearest name. Clap's own tip, to pass it as a value after `--`, rarely helps. Read next: `hints.rs`.

use crate::text::nearest;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// The message for an unknown option or argument of the command in `args`; `None` for other errors, whose message by
/// clap is good.
pub(super) fn unknown_option(error: &clap::Error, cli: &clap::Command, args: &[String]) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else { return None };
    let command = args.iter().find_map(|arg| cli.find_subcommand(arg))?;
    let here = command.get_name();
    let see = format!("`actscope {here} --help` lists its options");
    if !option.starts_with('-') {
        return Some(format!(
            "{here} takes no more arguments, and \"{option}\" is one more (a text of several words needs quotes); {see}"
        ));
    }
    let has = |command: &clap::Command| {
        let long = option.strip_prefix("--");
        let short = option.strip_prefix('-').and_then(|rest| rest.chars().next()).filter(|_| long.is_none());
        command.get_arguments().any(|arg| {
            long.is_some_and(|long| arg.get_long() == Some(long)) || short.is_some() && arg.get_short() == short
        })
    };
    let others: Vec<&str> = cli.get_subcommands().filter(|other| has(other)).map(clap::Command::get_name).collect();
    let after = "put a text that begins with `-` after `--`";
    if !others.is_empty() {
        return Some(format!("{here} has no option {option}, which is an option of {}; {see}", listed(&others)));
    }
    let longs = command.get_arguments().filter_map(|arg| arg.get_long()).map(|long| format!("--{long}"));
    match nearest(option, longs).into_iter().next().filter(|(score, _)| *score >= 0.6) {
        Some((_, near)) => Some(format!("{here} has no option {option}; nearest: {near}; {see}")),
        None => Some(format!("{here} has no option {option}; {see}, and {after}")),
    }
}

fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => one.to_string(),
        [several @ .., last] => format!("{} and {last}", several.join(", ")),
    }
}
