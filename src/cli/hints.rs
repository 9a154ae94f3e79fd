//! The next step after a library error. The library's errors say what happened and why; this file adds what a user of
//! the command line can do. Owns every sentence that names an option in answer to such an error. Read next: `tips.rs`.

use crate::batch::BatchError;
use crate::device::DeviceError;
use crate::hooks::request::HookError;
use crate::hooks::site::SiteError;
use crate::hub::HubError;
use crate::model::forward::RunError;
use crate::model::params::LoadError;
use crate::model::tokenizer::TokenizerError;
use crate::session::Error;

/// The error's message, followed by the next step if there is one.
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
        Error::Device(DeviceError::NoMatch { .. }) => {
            "change or unset WGPU_ADAPTER_NAME and WGPU_BACKEND (`actscope devices` lists the adapters that they leave), or use --device cpu"
        }
        Error::Device(DeviceError::Request { .. } | DeviceError::TooLarge { .. }) => "try --device cpu",
        Error::Device(DeviceError::Fault { .. }) => {
            "close other programs that use the GPU, run fewer or shorter texts, or use --device cpu"
        }
        Error::Batch(BatchError::NoTexts) => "give at least one text or one list of ids",
        Error::Batch(BatchError::Empty { .. }) => "leave the text out, or add a first token with --prepend-bos",
        Error::Batch(BatchError::Id { .. }) => {
            "check that the ids are those of this model; `actscope tokens` prints the ids of a text"
        }
        Error::Batch(BatchError::TooLong { .. }) => "shorten the text, or cut it with --truncate",
        Error::Tokenizer(TokenizerError::TooLong { .. }) => "shorten the text, or cut it with --truncate",
        Error::Tokenizer(TokenizerError::Missing { .. } | TokenizerError::NotBuilt { .. }) => {
            "give token ids with --ids"
        }
        Error::Tokenizer(TokenizerError::Tokenizer { .. }) => "fetch the model again, or give token ids with --ids",
        Error::Tokenizer(TokenizerError::Unsupported { .. }) => "or give token ids with --ids",
        Error::Hub(HubError::Pickle { .. }) => "give the converted folder, or that name, to --model",
        Error::Hub(HubError::Offline { .. }) => "give that folder to --model",
        Error::Hook(HookError::Site(SiteError::Unknown { pattern, .. })) if pattern.contains('@') => {
            "give the hook's name alone; only an edit or a linear function selects with `@`"
        }
        Error::Hook(HookError::Site(SiteError::Unknown { .. })) => "`actscope hooks` lists all hooks",
        Error::Run(RunError::TooLarge { .. }) => "use shorter texts, or --device cpu",
        Error::Run(RunError::Load(LoadError::Overflow { .. })) => "use --weights stored, bf16 or f32",
        Error::Hook(HookError::Memory { .. }) => {
            "write the values to a file with --out, or request fewer hooks, layers, tokens or texts"
        }
        _ => return None,
    })
}
