//! The library's errors as `actscope.Error`. Owns the kinds, and the next step that a Python user can take after an error: the
//! library's errors state facts only.

use actscope::batch::BatchError;
use actscope::device::DeviceError;
use actscope::hooks::request::HookError;
use actscope::hooks::site::SiteError;
use actscope::hub::HubError;
use actscope::model::forward::RunError;
use actscope::model::params::LoadError;
use actscope::model::tokenizer::TokenizerError;
use actscope::output::OutputError;
use pyo3::exceptions::{PyException, PyKeyboardInterrupt};
use pyo3::prelude::*;

pyo3::create_exception!(
    actscope,
    Error,
    PyException,
    "What went wrong, in words. Its `kind` says where: 'hub', 'weights', 'tokenizer', 'batch', 'hook', 'device', 'run' or 'output'."
);

/// `actscope.Error` with a kind.
pub fn of_kind(py: Python<'_>, kind: &str, message: impl Into<String>) -> PyErr {
    let error = Error::new_err(message.into());
    match error.value(py).setattr("kind", kind) {
        Ok(()) => error,
        Err(e) => e,
    }
}

/// A library error as `actscope.Error`, with the next step where there is one to name.
pub fn of(py: Python<'_>, e: &actscope::Error) -> PyErr {
    use actscope::Error as Lib;
    let kind = match e {
        Lib::Hub(_) => "hub",
        Lib::Weights(_) => "weights",
        Lib::Tokenizer(_) => "tokenizer",
        Lib::Batch(_) => "batch",
        Lib::Hook(_) => "hook",
        Lib::Analysis(of) if of.is_request() => "hook",
        Lib::Device(_) => "device",
        Lib::Cancelled => return PyKeyboardInterrupt::new_err(()),
        _ => "run",
    };
    match hint(e) {
        Some(hint) => of_kind(py, kind, format!("{e}; {hint}")),
        None => of_kind(py, kind, e.to_string()),
    }
}

/// An error of the files that are written.
pub fn of_output(py: Python<'_>, e: &OutputError) -> PyErr {
    of_kind(py, "output", e.to_string())
}

fn hint(e: &actscope::Error) -> Option<&'static str> {
    use actscope::Error as Lib;
    Some(match e {
        Lib::Device(DeviceError::NoAdapter { .. }) => {
            "install a Vulkan, Metal or DirectX 12 driver, or use device=\"cpu\""
        }
        Lib::Device(DeviceError::Request { .. } | DeviceError::TooLarge { .. }) => "try device=\"cpu\"",
        Lib::Device(DeviceError::Fault { .. }) => {
            "close other programs that use it, give it fewer or shorter texts, or use device=\"cpu\""
        }
        Lib::Batch(BatchError::Empty { .. }) => "leave it out, or use prepend_bos=True",
        Lib::Batch(BatchError::TooLong { .. }) => "shorten it, or cut its ids",
        Lib::Tokenizer(TokenizerError::Missing { .. } | TokenizerError::Encode(_)) => "give token ids",
        Lib::Tokenizer(TokenizerError::Tokenizer { .. }) => "fetch the model again, or give token ids",
        Lib::Tokenizer(TokenizerError::Unsupported { .. }) => "or give token ids",
        Lib::Hub(HubError::Pickle { .. }) => "give the converted folder, or that name, to `actscope.load`",
        Lib::Hub(HubError::Offline { .. }) => "give that folder to `actscope.load`",
        Lib::Hook(HookError::Site(SiteError::Unknown { pattern, .. })) if pattern.contains('@') => {
            "give the hook's name alone; only an edit or a linear function selects with `@`"
        }
        Lib::Hook(HookError::Site(SiteError::Unknown { .. })) => "`model.hooks` lists them",
        Lib::Run(RunError::TooLarge { .. }) => "use shorter texts, or device=\"cpu\"",
        Lib::Run(RunError::Load(LoadError::Overflow { .. })) => {
            "keep it as stored, or use weights=\"bf16\" or weights=\"f32\""
        }
        Lib::Hook(HookError::Memory { .. }) => "ask for fewer hooks, positions or texts at once",
        _ => return None,
    })
}
