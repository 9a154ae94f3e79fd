//! What a page that explores a model asks of a session: JSON in, JSON with arrays out. The page (`page/`) runs in a browser, where
//! `web/` compiles this to WebAssembly, or it asks a server (`cli/explore.rs`). Owns the requests and the answers, and no
//! state: each request names its texts and its edits, so that every answer is of one run. Read next: `requests.rs`.

mod hints;
mod requests;

pub use hints::message;
pub use requests::Request;

use crate::session::{Error, Session};
use serde_json::Value;
use std::ops::ControlFlow;

/// A named array of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// A hook's name, or one that the request documents.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values in row-major order.
    pub values: Vec<f32>,
}

/// What a request is answered with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Everything but arrays.
    pub json: Value,
    /// Values.
    pub arrays: Vec<Array>,
}

/// Hears of the progress of a request: what is done, how many steps of how many. It may end the run, which then fails with
/// [`Error::Cancelled`].
pub type Tell<'a> = &'a dyn Fn(&str, usize, usize) -> ControlFlow<()>;

impl Session {
    /// Answers a request of the explorer.
    ///
    /// # Errors
    /// As the run that it needs: see [`Session::run_async`], [`Session::edit_async`], [`Session::sweep_async`].
    pub async fn explore_async(&self, request: &Request, tell: Tell<'_>) -> Result<Answer, Error> {
        requests::answer(self, request, tell).await
    }
}
