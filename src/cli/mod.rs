//! The command line. Owns what all commands share: the arguments that name a model, messages on stderr, and exit codes
//! (0 done, 1 the run failed, 2 wrong usage). Each command has its own file in this folder.

mod attention;
mod attribute;
mod bench;
mod check;
mod circuits;
mod comparison;
mod completions;
mod devices;
mod edges;
mod edits;
mod environment;
mod experiment;
mod explore;
mod extract;
mod fetch;
mod generate;
mod gradient;
mod heads;
mod heatmap;
mod hints;
mod hooks;
mod interrupt;
mod lens;
mod lists;
mod loopback;
mod man;
mod models;
mod pairs;
mod picture;
mod question;
mod report;
mod run;
mod score;
mod sweep;
mod swept;
mod target;
mod texts;
mod tips;
mod tokens;
mod verify;
mod weights;

use crate::device::{Choice, Dtype};
use crate::hooks::request::HookError;
use crate::model::token;
use crate::model::token_select::SelectError;
use crate::model::tokenizer::{self, TokenizerError};
use crate::output::OutputError;
use crate::session::{Error, Model};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use hints::with_hint;
use std::io::Write;
use std::process::ExitCode;

/// See inside GPT-2: every activation by name, by token, on your own GPU or CPU.
#[derive(Parser)]
#[command(
    name = "actscope",
    version,
    max_term_width = 110,
    after_help = "Exit codes: 0 done, 1 the run failed (a file, a model, a device, a text), 2 wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Activations of one or more texts, as a file or a readable summary
    Extract(extract::Extract),
    /// Picture: tokens by hidden dimensions, for one layer or several
    Heatmap(heatmap::HeatmapCommand),
    /// Picture: which token attends to which, head by head
    Attention(attention::AttentionCommand),
    /// Picture: the logit lens, the token that the model would predict after each layer
    Lens(lens::LensCommand),
    /// Activation patching: copies activations of one text's run into another's, one place at a time
    Patch(Box<sweep::Patch>),
    /// Ablation: replaces the activations at one place at a time, and measures the metric
    Ablate(Box<sweep::Ablate>),
    /// Where a logit comes from: components, layers, heads, neurons or positions, as an exact sum or by gradients
    Attribute(Box<attribute::AttributeCommand>),
    /// Which heads are previous-token, duplicate-token and induction heads
    Heads(heads::HeadsCommand),
    /// Edge attribution patching: how much each connection between heads and MLPs matters
    Edges(Box<edges::EdgesCommand>),
    /// What a head's weights do, independent of any text: its OV and QK circuits
    Circuits(circuits::CircuitsCommand),
    /// Generate text, and record activations during the run
    Generate(generate::Generate),
    /// How likely texts are: log-probability of every token, perplexity
    Score(score::ScoreCommand),
    /// One text as an interactive HTML page: residual stream, neurons, attention, logit lens
    Report(report::Report),
    /// Opens the explorer in your browser: every activation of a text, changed and compared
    Explore(explore::Explore),
    /// The tokens of a text
    Tokens(tokens::Tokens),
    /// All hooks: name, shape, formula, bytes
    Hooks(hooks::HooksCommand),
    /// Weights under TransformerLens's names and in its shapes
    Weights(weights::Weights),
    /// Run a file of steps, or repeat it and compare; `--record FILE` on any command appends that command to the file
    Run(experiment::RunCommand),
    /// GPU adapters, their limits, and which one `auto` picks
    Devices(devices::Devices),
    /// Local models and models to download: sizes, shapes, and why a model cannot be used
    Models(models::Models),
    /// Checks this machine's values: compares every kernel, hook and operation with plain loops in f64
    Verify(verify::Verify),
    /// Measures the speed of this machine: operations and whole runs, beside the device's limits; takes under a minute
    Bench(bench::Bench),
    /// A script that completes commands and options in a shell
    Completions(completions::Completions),
    /// The manual page, in roff
    Man(man::Man),
}

/// The model, and what is printed.
#[derive(Args)]
struct ModelArgs {
    /// `demo`, a folder with a checkpoint, or a hub name such as gpt2 or owner/name[@revision], downloaded once
    #[arg(short, long, default_value = "demo")]
    model: String,
    /// Print nothing on stderr except errors
    #[arg(short, long)]
    quiet: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceArg {
    /// The GPU where there is a hardware adapter, else the CPU
    Auto,
    /// wgpu with our own kernels, on a software adapter if there is no other
    Gpu,
    /// All cores, f32
    Cpu,
    /// Plain loops in f64: slow and accurate
    Reference,
}

impl From<DeviceArg> for Choice {
    fn from(arg: DeviceArg) -> Choice {
        match arg {
            DeviceArg::Auto => Choice::Auto,
            DeviceArg::Gpu => Choice::Gpu,
            DeviceArg::Cpu => Choice::Cpu,
            DeviceArg::Reference => Choice::Reference,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WeightsArg {
    /// As the checkpoint stores them
    Stored,
    F32,
    F16,
    Bf16,
}

impl WeightsArg {
    fn dtype(self) -> Option<Dtype> {
        match self {
            WeightsArg::Stored => None,
            WeightsArg::F32 => Some(Dtype::F32),
            WeightsArg::F16 => Some(Dtype::F16),
            WeightsArg::Bf16 => Some(Dtype::Bf16),
        }
    }

    /// As it is written on the command line.
    fn name(self) -> &'static str {
        match self {
            WeightsArg::Stored => "stored",
            WeightsArg::F32 => "f32",
            WeightsArg::F16 => "f16",
            WeightsArg::Bf16 => "bf16",
        }
    }
}

/// Why a command ends early.
enum Failure {
    /// The request is wrong: exit code 2.
    Usage(String),
    /// The run failed: exit code 1.
    Run(String),
    /// The reader closed stdout. The exit code is 0.
    ClosedPipe,
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        match e.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
            _ => Failure::Run(format!("cannot write to stdout: {e}")),
        }
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        match e {
            Error::Hook(HookError::Memory { .. }) => Failure::Run(with_hint(&e)),
            Error::Hook(_) => Failure::Usage(with_hint(&e)),
            Error::Analysis(ref analysis) if analysis.is_request() => Failure::Usage(with_hint(&e)),
            _ => Failure::Run(with_hint(&e)),
        }
    }
}

impl From<OutputError> for Failure {
    fn from(e: OutputError) -> Failure {
        match e {
            OutputError::Format { .. } | OutputError::Feature { .. } | OutputError::Several { .. } => {
                Failure::Usage(e.to_string())
            }
            OutputError::Write { .. } => Failure::Run(e.to_string()),
        }
    }
}

impl From<HookError> for Failure {
    fn from(e: HookError) -> Failure {
        Error::from(e).into()
    }
}

impl From<SelectError> for Failure {
    fn from(e: SelectError) -> Failure {
        Failure::Usage(format!("--token {e}"))
    }
}

impl From<TokenizerError> for Failure {
    fn from(e: TokenizerError) -> Failure {
        Error::from(e).into()
    }
}

/// Runs the command that the process's arguments name, and returns its exit code.
pub fn main() -> ExitCode {
    // A panic that the tokenizer catches becomes an error, so it is not reported here.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !tokenizer::panics_are_guarded() {
            report(panic);
        }
    }));
    interrupt::end_tidily();
    let mut args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    // A file of steps is Unicode text, so arguments that are not Unicode cannot be recorded.
    let as_text = args[1..].iter().map(|arg| arg.clone().into_string().ok()).collect::<Option<Vec<String>>>();
    let mut recording = None;
    if let Some(mut as_text) = as_text
        && let Some(begun) = experiment::Recording::of(&mut as_text)
    {
        match begun {
            Ok(begun) => recording = Some(begun),
            Err(failure) => return end(Err(failure)),
        }
        args.truncate(1);
        args.extend(as_text.iter().map(std::ffi::OsString::from));
    }
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) => {
            let args: Vec<String> = args.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
            match tips::unknown_option(&e, &Cli::command(), &args) {
                Some(message) => return end(Err(Failure::Usage(message))),
                None => e.exit(),
            }
        }
    };
    let done = match cli.command {
        Command::Extract(command) => command.run(),
        Command::Heatmap(command) => command.run(),
        Command::Attention(command) => command.run(),
        Command::Lens(command) => command.run(),
        Command::Patch(command) => command.run(),
        Command::Ablate(command) => command.run(),
        Command::Attribute(command) => command.run(),
        Command::Heads(command) => command.run(),
        Command::Circuits(command) => command.run(),
        Command::Edges(command) => command.run(),
        Command::Generate(command) => command.run(),
        Command::Score(command) => command.run(),
        Command::Report(command) => command.run(),
        Command::Explore(command) => command.run(),
        Command::Tokens(command) => command.run(),
        Command::Hooks(command) => command.run(),
        Command::Weights(command) => command.run(),
        Command::Run(command) => command.run(),
        Command::Devices(command) => command.run(),
        Command::Models(command) => command.run(),
        Command::Verify(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    };
    end(done.and_then(|()| recording.map_or(Ok(()), experiment::Recording::append)))
}

/// Prints the error, if there is one, and returns the exit code.
fn end(result: Result<(), Failure>) -> ExitCode {
    let (code, message) = match result {
        Ok(()) | Err(Failure::ClosedPipe) => return ExitCode::SUCCESS,
        Err(Failure::Run(message)) => (1, message),
        Err(Failure::Usage(message)) => (2, message),
    };
    // If stderr is closed too, the message is lost.
    let _ = writeln!(std::io::stderr(), "actscope: {}", printable(&message));
    ExitCode::from(code)
}

/// A message on one line, with control characters escaped, because names in it may come from a hostile file.
fn printable(message: &str) -> String {
    const MOST: usize = 1000;
    let shown: String =
        message.chars().map(|c| if token::is_control(c) { c.escape_default().to_string() } else { c.into() }).collect();
    let n = shown.chars().count();
    if n <= MOST {
        return shown;
    }
    // The middle is left out, because the cause is at the beginning and the next step at the end.
    let (head, tail): (String, String) =
        (shown.chars().take(MOST / 2).collect(), shown.chars().skip(n - MOST / 2).collect());
    format!("{head} … {tail}")
}

impl ModelArgs {
    /// Opens the model's files, and prints on stderr where they were found.
    fn open(&self) -> Result<Model, Failure> {
        let mut talk = fetch::Talk::new(self.quiet);
        let files = Model::open_from(&self.model, &environment::read().hub, &mut |event| talk.hear(event))?;
        self.say(format_args!("model: {}, from {}", files.name(), files.source()));
        files.notes().for_each(|note| self.say(format_args!("note: {}", printable(note))));
        Ok(files)
    }

    /// Prints a line on stderr, unless --quiet is given.
    fn say(&self, line: std::fmt::Arguments<'_>) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}

/// A count of hooks with its noun.
fn n_hooks(n: usize) -> String {
    if n == 1 { "1 hook".into() } else { format!("{n} hooks") }
}

/// Bytes with three digits, in decimal units, as the hub and disk vendors count them.
fn size(bytes: u64) -> String {
    let (mut value, mut units) = (bytes as f64, ["B", "kB", "MB", "GB", "TB"].iter());
    let mut unit = units.next().unwrap_or(&"B");
    while value >= 999.5 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / 1000.0, next);
    }
    let digits = if *unit == "B" || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {unit}")
}
