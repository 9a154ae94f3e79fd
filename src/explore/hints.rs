//! The next step after a library error, for users of the explorer. The library's errors say what happened and why; this file adds
//! what a user of the page can do, in a browser and where `actscope explore` serves it.

use crate::batch::BatchError;
use crate::device::DeviceError;
use crate::hooks::request::HookError;
use crate::hooks::site::SiteError;
use crate::model::forward::RunError;
use crate::model::params::LoadError;
use crate::model::tokenizer::TokenizerError;
use crate::session::Error;

/// The error's message, followed by the next step if there is one.
pub fn message(e: &Error) -> String {
    match hint(e) {
        Some(hint) => format!("{e}; {hint}"),
        None => e.to_string(),
    }
}

fn hint(e: &Error) -> Option<&'static str> {
    Some(match e {
        Error::Device(DeviceError::NoAdapter { .. } | DeviceError::Request { .. } | DeviceError::TooLarge { .. }) => {
            "use the device CPU"
        }
        Error::Device(DeviceError::Fault { .. }) => {
            "close other programs that use the GPU, shorten the text, or use the device CPU"
        }
        Error::Batch(BatchError::NoTexts | BatchError::Empty { .. }) => "type a text",
        Error::Batch(BatchError::TooLong { .. }) | Error::Tokenizer(TokenizerError::TooLong { .. }) => {
            "shorten the text"
        }
        Error::Tokenizer(TokenizerError::Missing { .. }) => "open the model with its tokenizer's files",
        Error::Tokenizer(TokenizerError::NotBuilt { .. }) => "use a build that has it",
        Error::Tokenizer(TokenizerError::Tokenizer { .. }) => "fetch the model again",
        Error::Tokenizer(TokenizerError::Encode(_)) => "change the text",
        Error::Hook(HookError::Site(SiteError::Unknown { .. })) => "search the list of hooks for its name",
        Error::Hook(HookError::Memory { .. }) => "shorten the text, or choose another view",
        Error::Run(RunError::TooLarge { .. }) => "shorten the text, or use the device CPU",
        Error::Run(RunError::Load(LoadError::Overflow { .. })) => {
            "start the explorer with weights as stored, bf16 or f32"
        }
        _ => return None,
    })
}
