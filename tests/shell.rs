//! `actscope completions` and `actscope man`: the completions and the manual page name every command and option.

#[path = "common/binary.rs"]
mod binary;

use binary::*;

/// The commands, as --help lists them.
fn commands() -> Vec<String> {
    let help = run_well(["--help"]);
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    // Descriptions that go on in the next line begin further to the right.
    let names =
        list.lines().filter(|line| !line.starts_with("   ")).map(|line| line.split_whitespace().next().unwrap());
    names.filter(|name| *name != "help").map(String::from).collect()
}

#[test]
fn completions_for_every_shell() {
    let commands = commands();
    assert!(commands.len() >= 13 && commands.contains(&"completions".into()), "{commands:?}");
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = run_well(["completions", shell]);
        let words = commands.iter().map(String::as_str).chain(["prepend-bos"]);
        let missing: Vec<&str> = words.filter(|word| !script.contains(word)).collect();
        assert_eq!(missing, [""; 0], "{shell}");
    }
    let unknown = run(["completions", "tcsh"]);
    assert_eq!(unknown.status.code(), Some(2));
}

/// Bash itself, with the script loaded. Seen to fail with the script for another shell.
#[cfg(unix)]
#[test]
fn bash_completes() {
    let complete = |words: &str| {
        let script = format!(
            "source /dev/stdin; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
             _actscope actscope \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD - 1]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        let mut bash = assert_cmd::Command::from_std(std::process::Command::new("bash"));
        stdout(&bash.args(["-c", &script]).write_stdin(run_well(["completions", "bash"])).output().unwrap())
    };
    assert_eq!(complete("actscope extr"), "extract\n");
    assert_eq!(complete("actscope extract --prep"), "--prepend-bos\n");
    assert_eq!(complete("actscope verify --device g"), "gpu\n");
}

/// Every command is a section, with each of its options; nothing in a page is a roff request by accident. Seen to fail
/// with one option taken out.
#[test]
fn the_manual_has_everything() {
    let page = run_well(["man"]);
    assert!(page.contains(".TH actscope 1"));
    let sections: Vec<&str> = page.split(".SH ").skip(1).collect();
    for command in commands() {
        let title = format!("\"{}\"\n", command.to_uppercase());
        let section = sections.iter().find(|s| s.starts_with(&title)).unwrap_or_else(|| panic!("{command}"));
        let help = run_well([command.as_str(), "--help"]);
        let options = help.split_whitespace().filter_map(|word| word.trim_end_matches(',').strip_prefix("--"));
        for option in options.filter(|o| o.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !o.is_empty()) {
            let written = format!("\\-\\-{}", option.replace('-', "\\-"));
            assert!(section.contains(&written), "{command} --{option}");
        }
    }
    let known = ["ie", "el", "TH", "SH", "SS", "TP", "RS", "RE", "IP", "br", "nf", "fi", "PP", "sp"];
    for line in page.lines().filter_map(|line| line.strip_prefix('.')) {
        assert!(known.contains(&line.split([' ', '\t']).next().unwrap()), "{line}");
    }
}
