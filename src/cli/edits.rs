//! `--edit`: the edits of a command, the texts and files that their values come from, and how titles name them.

use super::texts::{Length, TextArgs, parse_ids};
use super::{Failure, ModelArgs};
use crate::analysis::edits::{EditPlan, GrowingPlan, Sources};
use crate::analysis::grammar::{EditSpec, OpSpec, ValueSpec};
use crate::batch::{self, Batch};
use crate::hooks::request::{EditRecord, Hooks};
use crate::hooks::site::Site;
use crate::model::tokenizer::Token;
use crate::model::windows::{DocumentWindow, Windows};
use crate::output::arrays;
use crate::session::{Error, Model, Progress, Session};
use clap::Args;
use ndarray::ArrayD;
use std::path::{Path, PathBuf};

/// The edits of a run, and the texts and files that they take values from.
#[derive(Args)]
pub(super) struct EditArgs {
    /// Change activations: SITE[@SELECT]:OP, such as 'z.2@head=3:zero' or 'resid_pre.1@pos=-1:add=2*dir.npy'. SELECT is
    /// a comma-separated list of pos=, head=, dim=, key= and text=. OP is zero, scale=F, add=V, set=V, mean, patch or
    /// freeze. V is a number or [F*]FILE[#ARRAY]. Repeatable; edits are applied in order
    #[arg(long, value_name = "EDIT", allow_hyphen_values = true)]
    edit: Vec<String>,
    /// The text that the edit `patch` takes values from: one for all texts, or one for each text. Repeatable
    #[arg(long, value_name = "TEXT", requires = "edit", conflicts_with = "source_ids", allow_hyphen_values = true)]
    source: Vec<String>,
    /// The source texts as token ids. Repeatable
    #[arg(long, value_name = "IDS", requires = "edit")]
    source_ids: Vec<String>,
    /// A file with one text per line. The edit `mean` takes the mean over these texts instead of the run's own
    #[arg(long, value_name = "FILE", requires = "edit")]
    mean_from: Option<PathBuf>,
}

impl EditArgs {
    /// True if there is any edit.
    pub(crate) fn any(&self) -> bool {
        !self.edit.is_empty()
    }

    /// Parses the edits, and checks that they fit the other options. Needs no model.
    fn specs(&self) -> Result<Vec<EditSpec>, Failure> {
        let specs: Vec<EditSpec> = self
            .edit
            .iter()
            .map(|edit| edit.parse().map_err(|e| Failure::Usage(format!("--edit: {e}"))))
            .collect::<Result<_, _>>()?;
        let uses = |wanted: &OpSpec| specs.iter().any(|spec| spec.op() == wanted);
        let sources = !self.source.is_empty() || !self.source_ids.is_empty();
        match (uses(&OpSpec::Patch), sources, uses(&OpSpec::Mean), &self.mean_from) {
            (true, false, ..) => {
                Err(Failure::Usage("the edit `patch` needs a source text: give --source or --source-ids".into()))
            }
            (false, true, ..) => Err(Failure::Usage(
                "--source is for the edit `patch`, and no edit is a patch; add one, or leave --source out".into(),
            )),
            (.., false, Some(_)) => Err(Failure::Usage(
                "--mean-from is for the edit `mean`, and no edit is a mean; add one, or leave --mean-from out".into(),
            )),
            _ => Ok(specs),
        }
    }

    /// The edits as options with their values, for a command that is printed.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = [String; 2]> {
        let all = |name: &str, values: &[String]| {
            let name = name.to_string();
            values.iter().map(move |value| [name.clone(), value.clone()]).collect::<Vec<_>>()
        };
        let from: Vec<String> = self.mean_from.iter().map(|file| file.display().to_string()).collect();
        let lists = [
            all("--edit", &self.edit),
            all("--source", &self.source),
            all("--source-ids", &self.source_ids),
            all("--mean-from", &from),
        ];
        lists.into_iter().flatten()
    }

    /// [`EditArgs::arguments`] for a command that gives the run's text as token ids: sources are ids too, because they were encoded with
    /// options that would change the text's ids. `None` if such options apply to the texts of `--mean-from`, which have no other form.
    pub(crate) fn arguments_beside_ids(
        &self,
        texts: &TextArgs,
        files: &Model,
        model: &ModelArgs,
    ) -> Result<Option<Vec<[String; 2]>>, Failure> {
        if self.mean_from.is_some() && (texts.prepend_bos || texts.no_special || texts.truncate) {
            return Ok(None);
        }
        let sources = self.source_tokens(texts, files, Length::Context, model)?.unwrap_or_default();
        let written = |ids: &Vec<u32>| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let sources = sources.iter().map(|ids| ["--source-ids".to_string(), written(ids)]);
        let others = self.arguments().filter(|[name, _]| !["--source", "--source-ids"].contains(&name.as_str()));
        Ok(Some(others.chain(sources).collect()))
    }

    /// The files that the edits read. No output may replace them.
    pub(crate) fn files(&self) -> impl Iterator<Item = PathBuf> {
        let specs = self.edit.iter().filter_map(|edit| edit.parse::<EditSpec>().ok());
        let values = specs.filter_map(|spec| match spec.op() {
            OpSpec::Add(ValueSpec::File { path, .. }) | OpSpec::Set(ValueSpec::File { path, .. }) => Some(path.into()),
            _ => None,
        });
        values.chain(self.mean_from.clone())
    }

    /// Checks the edits completely. Loads no weights.
    pub(crate) fn plan(
        &self,
        texts: &TextArgs,
        files: &Model,
        batch: &Batch,
        model: &ModelArgs,
    ) -> Result<EditPlan, Failure> {
        let specs = self.specs()?;
        if specs.is_empty() {
            return Ok(EditPlan::default());
        }
        let sources = self.sources(texts, files, model)?;
        Ok(EditPlan::new(&specs, files, batch, sources, &mut read)?)
    }

    /// [`EditArgs::plan`] for texts that are generated. `both` is the texts at their greatest possible length, and the
    /// prompts.
    pub(crate) fn plan_of_growing(
        &self,
        texts: &TextArgs,
        files: &Model,
        both: (&Batch, &Batch),
        model: &ModelArgs,
    ) -> Result<GrowingPlan, Failure> {
        let specs = self.specs()?;
        if specs.is_empty() {
            return Ok(GrowingPlan::default());
        }
        let sources = self.sources(texts, files, model)?;
        Ok(GrowingPlan::new(&specs, files, both, &sources, &mut read)?)
    }

    /// [`EditArgs::plan`] for texts that are run in windows. `run` is the tokens of the texts, the windows, and the
    /// windows as a batch.
    pub(crate) fn plan_of_windows(
        &self,
        texts: &TextArgs,
        files: &Model,
        run: (&[Vec<Token>], &[DocumentWindow], &Batch),
        windows: Windows,
        model: &ModelArgs,
    ) -> Result<EditPlan, Failure> {
        let specs = self.specs()?;
        if specs.is_empty() {
            return Ok(EditPlan::default());
        }
        let patch = self.source_tokens(texts, files, Length::Any, model)?;
        if let Some(ids) = &patch {
            batch::check_ids(ids, files.config()).map_err(Error::from)?;
        }
        let mean = self.mean_texts(texts, files, model)?;
        Ok(EditPlan::of_windows(&specs, files, run, windows, (patch.as_deref(), mean), &mut read)?)
    }

    /// The texts that edits take values from.
    fn sources(&self, texts: &TextArgs, files: &Model, model: &ModelArgs) -> Result<Sources, Failure> {
        let ids = self.source_tokens(texts, files, Length::Context, model)?;
        let patch = ids.map(|ids| files.batch(&ids)).transpose()?;
        Ok(Sources { patch, mean: self.mean_texts(texts, files, model)? })
    }

    /// The tokens of the source texts, from which `patch` takes values.
    fn source_tokens(
        &self,
        texts: &TextArgs,
        files: &Model,
        length: Length,
        model: &ModelArgs,
    ) -> Result<Option<Vec<Vec<u32>>>, Failure> {
        Ok(match (self.source.is_empty(), self.source_ids.is_empty()) {
            (false, _) => Some(texts.encoded_up_to(&self.source, files, length, model)?),
            (_, false) => {
                let lists = self.source_ids.iter().map(|list| parse_ids(list));
                let lists = lists.collect::<Result<Vec<_>, _>>();
                let lists = lists.map_err(|e| Failure::Usage(format!("--source-ids: {e}")))?.concat();
                Some(texts.begun_and_cut(lists, files, model)?)
            }
            _ => None,
        })
    }

    /// The texts of `--mean-from`, over which `mean` is taken; `None` for the run's own texts.
    fn mean_texts(&self, texts: &TextArgs, files: &Model, model: &ModelArgs) -> Result<Option<Batch>, Failure> {
        Ok(match &self.mean_from {
            Some(file) => Some(files.batch(&texts.encoded(&texts.lines_of(file, model)?, files, model)?)?),
            None => None,
        })
    }
}

/// Reads the values of an edit from a file. `array` names one of the file's arrays.
pub(super) fn read(path: &str, array: Option<&str>, site: Site) -> Result<ArrayD<f32>, String> {
    arrays::read(Path::new(path), array, Some(site))
}

impl ModelArgs {
    /// Runs the texts that the edits take values from, and adds the edits to `hooks`.
    pub(super) fn edit(
        &self,
        plan: &EditPlan,
        session: &Session,
        batch: &Batch,
        hooks: &mut Hooks,
    ) -> Result<Vec<EditRecord>, Failure> {
        let run = async |told: Progress<'_>| session.edit_async(plan, batch, hooks, Some(told)).await;
        Ok(self.with_progress("blocks for edits", run)?)
    }

    /// [`ModelArgs::edit`] for texts that are generated.
    pub(super) fn edit_growing(
        &self,
        plan: &GrowingPlan,
        session: &Session,
        both: (&Batch, &Batch),
        hooks: &mut Hooks,
    ) -> Result<Vec<EditRecord>, Failure> {
        let run = async |told: Progress<'_>| session.edit_growing_async(plan, both, hooks, Some(told)).await;
        Ok(self.with_progress("blocks for edits", run)?)
    }
}

/// The part of a title that names the edits; empty if there are none.
pub(super) fn mark(edits: &[EditRecord]) -> String {
    match edits {
        [] => String::new(),
        [one] => format!(", edited: {}", one.edit),
        [first, rest @ ..] => format!(", edited: {} and {} more", first.edit, rest.len()),
    }
}
