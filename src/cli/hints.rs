//! The next step after an error. The library's errors state facts; this file adds what a user of the command line can
//! do. Owns every sentence that names an option in answer to a library error. Read next: `tips.rs`.

use crate::batch::BatchError;
use crate::device::DeviceError;
use crate::hooks::request::HookError;
use crate::hooks::site::SiteError;
use crate::hub::HubError;
use crate::model::forward::RunError;
use crate::model::params::LoadError;
use crate::model::tokenizer::TokenizerError;
use crate::session::Error;

/// The error with the next step, if there is one.
pub(super) fn with_hint(e: &Error) -> String {
    match hint(e) {
        Some(hint) => format!("{e}; {hint}"),
        None => e.to_string(),
    }
}

fn hint(e: &Error) -> Option<&'static str> {
    Some(match e {
        Error::Device(DeviceError::NoAdapter { .. }) => {
            "install a Vulkan, Metal or DirectX 12 driver (for a software one on Debian: apt install mesa-vulkan-drivers), or use --device cpu"
        }
        Error::Device(DeviceError::Request { .. } | DeviceError::TooLarge { .. }) => "try --device cpu",
        Error::Device(DeviceError::Fault { .. }) => {
            "close other programs that use it, give it fewer or shorter texts, or use --device cpu"
        }
        Error::Batch(BatchError::NoTexts) => "give at least one text or one list of ids",
        Error::Batch(BatchError::Empty { .. }) => "leave it out, or put a token in front with --prepend-bos",
        Error::Batch(BatchError::TooLong { .. }) => "shorten it, or cut it off with --truncate",
        Error::Tokenizer(TokenizerError::TooLong { .. }) => "shorten it, or cut it off with --truncate",
        Error::Tokenizer(TokenizerError::Missing { .. } | TokenizerError::NotBuilt { .. }) => {
            "give token ids with --ids"
        }
        Error::Tokenizer(TokenizerError::Tokenizer { .. }) => "fetch it again, or give token ids with --ids",
        Error::Tokenizer(TokenizerError::Unsupported { .. }) => "or give token ids with --ids",
        Error::Hub(HubError::Pickle { .. }) => "give the folder or the pull request's name to --model",
        Error::Hub(HubError::Offline { .. }) => "give the folder to --model",
        Error::Hook(HookError::Site(SiteError::Unknown { .. })) => "`actscope hooks` lists all",
        Error::Run(RunError::TooLarge { .. }) => "use shorter texts, or --device cpu",
        Error::Run(RunError::Load(LoadError::Overflow { .. })) => "keep it as stored, or use --weights bf16 or f32",
        Error::Hook(HookError::Memory { .. }) => {
            "write them to a file (--out), or ask for fewer hooks, layers, tokens or texts"
        }
        _ => return None,
    })
}
