//! `actscope report`: one text's activations as an interactive HTML file. Owns the command lines that the page shows.
//! Read next: `../report/mod.rs`.

use super::run::{EditedRunArgs, NanArgs, RunArgs};
use super::texts::TextArgs;
use super::{Failure, ModelArgs, size};
use crate::hooks::non_number::NonNumber;
use crate::output::{self, OutputError, Place, Provenance};
use crate::report::{self, About};
use crate::session::Model;
use clap::Args;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Arguments of `actscope report`.
#[derive(Args)]
#[command(mut_args(super::texts::one_text))]
pub(crate) struct Report {
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Output file: an .html page that needs no other file and no network
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    edited: EditedRunArgs,
    #[command(flatten)]
    nan: NanArgs,
}

impl Report {
    pub(super) fn run(self) -> Result<(), Failure> {
        let input = self.texts.read(&self.model)?;
        let several = input.len();
        if several > 1 {
            return Err(Failure::Usage(format!(
                "a report shows one text and {several} were given; give one (in quotes, if it is several words)"
            )));
        }
        if !["html", "htm"].contains(&output::extension(&self.out).as_str()) {
            return Err(OutputError::Format { path: self.out, known: ".html" }.into());
        }
        let place = Place::create(&self.out)?;
        let files = self.model.open()?;
        self.texts.refuse_to_overwrite(place.path(), &files, &self.edited.edits)?;
        let batch = self.texts.batch(&input, &files, &self.model)?;
        let tokens = files.tokens(&batch).swap_remove(0);
        let arguments = self.arguments(input.texts().first(), batch.ids(), &files)?;

        let plan = self.edited.edits.plan(&self.texts, &files, &batch, &self.model)?;
        let session = self.edited.run.session(files, &self.model)?;
        let mut hooks = session.model().hooks();
        let edits = self.model.edit(&plan, &session, &batch, &mut hooks)?;
        let page = self.model.with_progress("steps", async |told| {
            report::gather(&session, &batch, &hooks, report::LARGEST, Some(told)).await
        })?;
        self.nan.judge(page.non_number.as_ref(), NonNumber::slot)?;
        let provenance = Provenance::new(&session, edits);
        let about = About {
            files: session.model(),
            tokens: &tokens,
            arguments: arguments.as_deref(),
            provenance: &provenance,
            prompt_tokens: None,
        };
        let path = place.path().display().to_string();
        let bytes = place.fill(|part| output::buffered(part, |out| page.write(&about, out)))?;
        self.model.say(format_args!("wrote {path}: {} tokens, {}", tokens.len(), size(bytes)));
        page.coarsened().iter().for_each(|what| self.model.say(format_args!("note: {what}")));
        if self.model.json {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{}", json!({"file": path, "bytes": bytes, "kept": page.kept}))?;
        }
        Ok(())
    }

    /// The arguments that name this model and this text in any command. A text is given as token ids if it has control
    /// or invisible characters, which a terminal could interpret, or is too long for a command line. `None` if no command can name
    /// them.
    fn arguments(&self, text: Option<&String>, ids: &[u32], files: &Model) -> Result<Option<String>, Failure> {
        const LONGEST: usize = 50_000;
        let visible = |c: char| c == '\n' || c == '\'' || c == '"' || c == '\\' || c.escape_debug().len() == 1;
        let Some(text) = text.filter(|text| text.len() <= LONGEST && text.chars().all(visible)) else {
            let edits = self.edited.edits.arguments_beside_ids(&self.texts, files, &self.model)?;
            return Ok(edits.map(|edits| arguments(&self.model, &self.edited.run, &edits, ids)));
        };
        let edits: Vec<[String; 2]> = self.edited.edits.arguments().collect();
        let mut words = vec![named(&self.model, &self.edited.run, &edits)];
        let TextArgs { prepend_bos, no_special, truncate, .. } = self.texts;
        let flags = [(prepend_bos, "--prepend-bos"), (no_special, "--no-special"), (truncate, "--truncate")];
        words.extend(flags.iter().filter(|(is, _)| *is).map(|(_, flag)| flag.to_string()));
        // A text that begins with `-` looks like an option.
        words.extend(text.starts_with('-').then(|| "--".to_string()));
        words.push(quote(text));
        Ok(Some(words.join(" ")))
    }
}

/// The arguments that name a model and token ids in any command, quoted for a POSIX shell.
pub(super) fn arguments(model: &ModelArgs, run: &RunArgs, edits: &[[String; 2]], ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    format!("{} --ids {}", named(model, run, edits), quote(&ids.join(" ")))
}

/// The arguments that name a model, its weights and edits.
fn named(model: &ModelArgs, run: &RunArgs, edits: &[[String; 2]]) -> String {
    let mut words = vec!["--model".to_string(), quote(&model.model)];
    words.extend(run.of_weights());
    for [option, value] in edits {
        words.extend([option.clone(), quote(value)]);
    }
    words.join(" ")
}

/// A word for a POSIX shell. Quoting fails only for a NUL, which an argument cannot contain.
pub(super) fn quote(word: &str) -> String {
    shlex::try_quote(word).map_or_else(|_| String::new(), |quoted| quoted.into_owned())
}
