//! What can keep a model from being had, each with the next step. Owns the words; knows neither files nor network.

use crate::config::ConfigError;
use std::path::PathBuf;
use thiserror::Error;

/// A name that leads nowhere, or a download that failed.
#[derive(Debug, Error)]
pub enum HubError {
    /// Neither a folder nor a name that the hub could have.
    #[error(
        "there is no model {name:?}: it is not \"demo\", not a folder, and not a hub name such as gpt2 or owner/name@revision"
    )]
    NotAName {
        /// As asked for.
        name: String,
    },
    /// A path that leads nowhere.
    #[error("there is no file or folder {path}{hint}")]
    NoSuchFolder {
        /// As asked for, with the home folder in full.
        path: String,
        /// What may be wrong with it.
        hint: String,
    },
    /// A file that no checkpoint's folder is read from.
    #[error("{path} is a file, and a model is a folder: {what}")]
    AFile {
        /// The file.
        path: String,
        /// What it is, and what to do.
        what: String,
    },
    /// An address that names no model.
    #[error("{address} is an address that cannot be used: {what}")]
    Address {
        /// As asked for.
        address: String,
        /// What is wrong with it.
        what: String,
    },
    /// Not in the cache, and nothing may or can be downloaded.
    #[error(
        "{lack} the Hugging Face cache {cache}, no such folder is here, and {why} forbids downloads; unset \
         it, or fetch the model on a machine with a network and give its folder to --model{near}"
    )]
    Offline {
        /// Which model "is not in", or "is not whole in", and which other revisions of it are there.
        lack: String,
        /// The cache's folder.
        cache: PathBuf,
        /// "; did you mean …?", or nothing.
        near: String,
        /// What forbids it.
        why: &'static str,
    },
    /// Not in the cache, and this build has no downloads.
    #[error(
        "{lack} the Hugging Face cache {cache}, and this build of actscope has no downloads (the \
         cargo feature `download`); fetch the model by other means and give its folder"
    )]
    NotBuilt {
        /// Which model "is not in", or "is not whole in", and which other revisions of it are there.
        lack: String,
        /// The cache's folder.
        cache: PathBuf,
    },
    /// HF_ENDPOINT is no address.
    #[error("HF_ENDPOINT is {endpoint:?}, which is no address; it must begin with https:// (or http://)")]
    Endpoint {
        /// As set.
        endpoint: String,
    },
    /// The hub does not know the name, or does not say that it does.
    #[error(
        "{endpoint} has no public model {repo}, and no such folder is here{near}{refused}; if it is private, log in with \
         `hf auth login` or set HF_TOKEN"
    )]
    NoSuchModel {
        /// The hub's name for it.
        repo: String,
        /// The hub's address.
        endpoint: String,
        /// "; did you mean …?", or nothing.
        near: String,
        /// " (the token from … was refused too)", or nothing.
        refused: String,
    },
    /// The model is there, the branch, tag or commit is not.
    #[error("{repo} has no revision {revision:?}; its branches are on {endpoint}/{repo}/tree/main")]
    NoSuchRevision {
        /// The hub's name for it.
        repo: String,
        /// As asked for.
        revision: String,
        /// The hub's address.
        endpoint: String,
    },
    /// The owner decides who may have it.
    #[error(
        "{repo} is gated: its owner wants to know who downloads it{refused}; ask for access on {endpoint}/{repo}, then log in \
         with `hf auth login` or set HF_TOKEN"
    )]
    Gated {
        /// The hub's name for it.
        repo: String,
        /// The hub's address.
        endpoint: String,
        /// " (the token from … has no access)", or nothing.
        refused: String,
    },
    /// 403 for another reason.
    #[error(
        "{host} refuses to hand out {repo} (403){refused}; a company's proxy or a blocked account does that: try another \
         network, or set HF_ENDPOINT to a mirror"
    )]
    Forbidden {
        /// The hub's name for it.
        repo: String,
        /// Who refuses.
        host: String,
        /// " (the token from … was refused too)", or nothing.
        refused: String,
    },
    /// The repository has weights, but as a pickle.
    #[error(
        "{repo} ({revision}) has its weights only as {file}, a pickle, which can run code, so actscope does not \
         read it; convert it once with {command}. Some such models have safetensors in a pull \
         request: see {endpoint}/{repo}/discussions, and give --model {repo}@refs/pr/NUMBER"
    )]
    Pickle {
        /// The hub's name for it.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The pickle, or the first of its parts.
        file: Box<str>,
        /// What converts it, and what to give to --model then.
        command: String,
        /// The hub's address.
        endpoint: String,
    },
    /// The repository has weights, but in a format that is not read.
    #[error("{repo} ({revision}) has no model.safetensors: {advice}")]
    OtherFormat {
        /// The hub's name for it.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// What it has, and what to do.
        advice: String,
    },
    /// A repository that is no model that actscope can run.
    #[error(
        "{repo} ({revision}) has no {file}, so it is not a checkpoint that actscope can run; `actscope models` lists some"
    )]
    NoFile {
        /// The hub's name for it.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// What is missing.
        file: &'static str,
    },
    /// Found out before the weights were fetched.
    #[error("{repo}: {source}; nothing else of it was downloaded")]
    Unusable {
        /// The hub's name for it.
        repo: String,
        /// What is wrong with its config.json.
        source: ConfigError,
    },
    /// 429.
    #[error(
        "{host} allows no more requests for now (429){wait}; run the same command again then, or log in with `hf auth login`: \
         who is logged in may ask more often"
    )]
    TooManyRequests {
        /// Who says so.
        host: String,
        /// ": it asks to wait N s", or nothing.
        wait: String,
    },
    /// 5xx, again and again.
    #[error(
        "{host} has a fault of its own (HTTP {status}) and had it {tries} times in a row; run the same command again later, \
         and it goes on where it was"
    )]
    Server {
        /// Who has it.
        host: String,
        /// The status.
        status: u16,
        /// How often it was asked.
        tries: u32,
    },
    /// Nobody there.
    #[error(
        "cannot reach {host}: {detail}; check the network, the proxy (HTTPS_PROXY, NO_PROXY) and HF_ENDPOINT, or use a model \
         that is here already: `actscope models` lists them"
    )]
    Network {
        /// Who cannot be reached.
        host: String,
        /// Why.
        detail: String,
    },
    /// A download that breaks off again and again.
    #[error(
        "the download of {file} from {host} broke off at {done} of {size} bytes and would not go on ({detail}); what is here \
         is kept: run the same command again to go on"
    )]
    Broken {
        /// The file.
        file: String,
        /// Who sent it.
        host: String,
        /// Bytes that are here.
        done: u64,
        /// Bytes that there should be, or `?`.
        size: String,
        /// What happened last.
        detail: String,
    },
    /// The bytes are not those that the hub promised.
    #[error(
        "{file} came twice with other content than {endpoint} promises ({detail}); a proxy or a mirror alters it: try another \
         network, or unset HF_ENDPOINT"
    )]
    Corrupt {
        /// The file.
        file: String,
        /// The hub's address.
        endpoint: String,
        /// What differs.
        detail: String,
    },
    /// An answer that no hub gives.
    #[error(
        "{host} answered what no Hugging Face hub answers: {detail}; is HF_ENDPOINT a hub, and is there a log-in page in between?"
    )]
    Protocol {
        /// Who answered.
        host: String,
        /// What was wrong.
        detail: String,
    },
    /// No room.
    #[error(
        "the disk of the Hugging Face cache {cache} is full, and {file} needs {missing} more bytes; make room, or set \
         HF_HUB_CACHE to a folder on another disk. What is here is kept: run the same command again to go on"
    )]
    DiskFull {
        /// The cache's folder.
        cache: PathBuf,
        /// The file.
        file: String,
        /// Bytes that are still to come.
        missing: u64,
    },
    /// The cache cannot be written.
    #[error(
        "cannot write to the Hugging Face cache {cache}: {source}; set HF_HUB_CACHE to a folder that you can write to"
    )]
    Cache {
        /// The cache's folder.
        cache: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}
