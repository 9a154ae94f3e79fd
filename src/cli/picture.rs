//! What `heatmap`, `attention` and `lens` share: their arguments, the check for a single text, and the output to a
//! file, to the terminal, or as JSON to stdout. Read next: `heatmap.rs`.

use super::edits;
use super::run::{EditedRunArgs, NanArgs};
use super::texts::TextArgs;
use super::{Failure, ModelArgs, size};
use crate::analysis::edits::EditPlan;
use crate::batch::Batch;
use crate::hooks::request::{EditRecord, Hooks};
use crate::hooks::site::Site;
use crate::model::process::Process;
use crate::model::tokenizer::Token;
use crate::plot::terminal::Terminal;
use crate::plot::{File, Heading, Picture};
use crate::session::{Model, Session};
use clap::Args;
use serde::Serialize;
use std::io::Write;
use std::path::PathBuf;

/// Arguments of every picture.
#[derive(Args)]
#[command(mut_args(super::texts::one_text))]
pub(super) struct PictureArgs {
    #[command(flatten)]
    texts: TextArgs,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Output file: .png, .svg or .pdf [default: the terminal]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    pub edited: EditedRunArgs,
    #[command(flatten)]
    pub nan: NanArgs,
}

/// A picture's text, its edits and its output file.
pub(super) struct Canvas {
    pub batch: Batch,
    pub tokens: Vec<Token>,
    plan: EditPlan,
    /// The edits of the run, once [`PictureArgs::edit`] has made them.
    pub edits: Vec<EditRecord>,
    file: Option<File>,
}

/// The fields that the JSON of every picture has, under the names that `extract` uses.
#[derive(Serialize)]
struct Document<'a, T> {
    model: &'a str,
    model_fingerprint: String,
    #[serde(skip_serializing_if = "Process::is_none")]
    process: Process,
    device: String,
    actscope_version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    edits: &'a [EditRecord],
    tokens: Vec<String>,
    input_ids: &'a [u32],
    #[serde(flatten)]
    numbers: &'a T,
}

impl PictureArgs {
    /// Opens the model's files, the text and the output, and plans the edits, so that errors are reported before
    /// weights are loaded.
    ///
    /// # Errors
    /// [`Failure::Usage`] if there are several texts.
    pub(crate) fn open(&self) -> Result<(Model, Canvas), Failure> {
        let input = self.texts.read(&self.model)?;
        let file = self.out.as_deref().map(File::create).transpose()?;
        let files = self.model.open()?;
        if let Some(file) = &file {
            self.texts.refuse_to_overwrite(file.path(), &files, &self.edited.edits)?;
        }
        let batch = self.texts.batch(&input, &files, &self.model)?;
        let several = batch.texts().len();
        if several > 1 {
            return Err(Failure::Usage(format!(
                "a picture shows one text and {several} were given; give one (in quotes, if it is several words)"
            )));
        }
        let tokens = files.tokens(&batch).remove(0);
        let plan = self.edited.edits.plan(&self.texts, &files, &batch, &self.model)?;
        Ok((files, Canvas { batch, tokens, plan, edits: Vec::new(), file }))
    }

    /// Adds the edits to a request, and records them for the picture.
    pub(crate) fn edit(&self, canvas: &mut Canvas, session: &Session, hooks: &mut Hooks) -> Result<(), Failure> {
        canvas.edits = self.model.edit(&canvas.plan, session, &canvas.batch, hooks)?;
        Ok(())
    }

    /// The model with its weights processed, for pictures that need no device.
    pub(super) fn processed(&self, files: Model) -> Result<Model, Failure> {
        self.edited.run.process.apply(files)
    }

    /// Loads the model onto the device.
    pub(crate) fn session(&self, files: Model) -> Result<Session, Failure> {
        self.edited.run.session(files, &self.model)
    }

    /// Writes the picture to its output, or its values as JSON with --json.
    pub(crate) fn show(
        &self,
        canvas: Canvas,
        session: &Session,
        picture: &dyn Picture,
        numbers: &impl Serialize,
    ) -> Result<(), Failure> {
        let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
        let path = canvas.file.as_ref().map(|file| file.path().display().to_string());
        if let Some(file) = canvas.file {
            let bytes = file.write(picture)?;
            self.model.say(format_args!("wrote {}: {}", path.as_deref().unwrap_or_default(), size(bytes)));
        } else if !self.model.json {
            picture.print(&Terminal::of_stdout(), &mut stdout)?;
        }
        if self.model.json {
            let document = Document {
                model: session.model().name(),
                model_fingerprint: session.model().checkpoint().fingerprint(),
                process: session.model().checkpoint().process(),
                device: session.device().to_string(),
                actscope_version: env!("CARGO_PKG_VERSION"),
                file: path,
                edits: &canvas.edits,
                tokens: canvas.tokens.iter().map(Token::text).collect(),
                input_ids: canvas.batch.ids(),
                numbers,
            };
            serde_json::to_writer(&mut stdout, &document).map_err(std::io::Error::from)?;
            writeln!(stdout)?;
        }
        stdout.flush()?;
        Ok(())
    }
}

impl Canvas {
    /// The heading of the picture; it names the edits too.
    pub(crate) fn heading(&self, what: String) -> Heading {
        Heading { text: self.tokens.clone(), what: what + &edits::mark(&self.edits) }
    }
}

/// The error for a hook whose shape the picture cannot show.
pub(super) fn wrong_shape(site: Site, shows: &str) -> Failure {
    let letters: Vec<&str> = site.axes().iter().map(|axis| axis.letter()).collect();
    Failure::Usage(format!("{site} is [{}], and this picture shows {shows}", letters.join(", ")))
}
