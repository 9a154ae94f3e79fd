//! Why an edit cannot be made. Owns [`EditError`].

use crate::analysis::grammar::GrammarError;
use crate::hooks::request::HookError;
use crate::session::AnalysisError;
use thiserror::Error;

/// An edit that cannot be made in this model and this batch.
#[derive(Debug, Error)]
pub enum EditError {
    /// The text form of an edit is invalid, or matches nothing here.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// A site, or a part of one, does not exist.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The values have another shape than the selection.
    #[error("{edit}: {what} is {given:?}, and the selection takes {takes}")]
    Shape {
        /// The edit.
        edit: String,
        /// The file and the array.
        what: String,
        /// Its shape without leading axes of length 1.
        given: Vec<usize>,
        /// The possible shapes.
        takes: String,
    },
    /// A file cannot be read, or has no such array.
    #[error("{edit}: {what}")]
    File {
        /// The edit.
        edit: String,
        /// The reader's message.
        what: String,
    },
    /// A value is not finite, or would leave a query without any key.
    #[error("{edit}: {what}")]
    Value {
        /// The edit.
        edit: String,
        /// What is wrong with it.
        what: String,
    },
    /// An edit needs another run, which is missing or does not fit.
    #[error("{edit}: {what}")]
    Source {
        /// The edit.
        edit: String,
        /// What is missing, or does not fit.
        what: String,
    },
}

impl AnalysisError for EditError {
    /// A file that cannot be read is wrong input, as it is where a text or a checkpoint is read.
    fn is_request(&self) -> bool {
        !matches!(self, EditError::File { .. })
    }
}
