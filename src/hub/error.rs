//! The errors of finding and downloading a model. Owns the messages, each with the next step; uses no files and no
//! network. Read next: `mod.rs`.

use crate::config::ConfigError;
use std::path::PathBuf;
use thiserror::Error;

/// A model was not found, or its download failed.
#[derive(Debug, Error)]
pub enum HubError {
    /// The name is neither a folder nor a valid hub name.
    #[error(
        "there is no model \"{name}\": it is not \"demo\", not a folder, and not a hub name such as gpt2 or owner/name@revision"
    )]
    NotAName {
        /// The name or value as given.
        name: String,
    },
    /// The path does not exist.
    #[error("there is no file or folder {path}{hint}")]
    NoSuchFolder {
        /// The path as given, with the home folder expanded.
        path: String,
        /// What may be wrong with the path.
        hint: String,
    },
    /// The file is not one that identifies a checkpoint's folder.
    #[error("{path} is a file, and a model is a folder: {what}")]
    AFile {
        /// The file.
        path: String,
        /// What it is, and what to do.
        what: String,
    },
    /// The address names no model.
    #[error("{address} is an address that cannot be used: {what}")]
    Address {
        /// The name or value as given.
        address: String,
        /// What is wrong with the address.
        what: String,
    },
    /// The model is not in the cache, and downloads are disabled or impossible.
    #[error(
        "{lack} the Hugging Face cache {cache}, no such folder is here, and {why} forbids downloads; unset \
         it, or fetch the model on a machine with a network and open its folder{near}"
    )]
    Offline {
        /// Which model "is not in", or "is incomplete in", and which other revisions of it are there.
        lack: String,
        /// The cache's folder.
        cache: PathBuf,
        /// "; did you mean …?", or nothing.
        near: String,
        /// What prevents the download.
        why: &'static str,
    },
    /// The model is not in the cache, and this build has no downloads.
    #[error(
        "{lack} the Hugging Face cache {cache}, and this build of actscope has no downloads (the \
         cargo feature `download`); fetch the model by other means and give its folder"
    )]
    NotBuilt {
        /// Which model "is not in", or "is incomplete in", and which other revisions of it are there.
        lack: String,
        /// The cache's folder.
        cache: PathBuf,
    },
    /// HF_ENDPOINT is not a valid address.
    #[error("HF_ENDPOINT is {endpoint:?}, which is not an address; it must begin with https:// (or http://)")]
    Endpoint {
        /// As set.
        endpoint: String,
    },
    /// The hub does not have the model, or hides it without authorisation.
    #[error(
        "{endpoint} has no public model {repo}, and no such folder is here{near}{refused}; if it is private, log in with \
         `hf auth login` or set HF_TOKEN"
    )]
    NoSuchModel {
        /// The repository's name.
        repo: String,
        /// The hub's address.
        endpoint: String,
        /// "; did you mean …?", or nothing.
        near: String,
        /// " (the token from … was refused too)", or nothing.
        refused: String,
    },
    /// The model exists, but not this branch, tag or commit.
    #[error("{repo} has no revision {revision:?}; its branches are on {endpoint}/{repo}/tree/main")]
    NoSuchRevision {
        /// The repository's name.
        repo: String,
        /// The name or value as given.
        revision: String,
        /// The hub's address.
        endpoint: String,
    },
    /// The model is gated: its owner grants access.
    #[error(
        "{repo} is gated: its owner wants to know who downloads it{refused}; ask for access on {endpoint}/{repo}, then log in \
         with `hf auth login` or set HF_TOKEN"
    )]
    Gated {
        /// The repository's name.
        repo: String,
        /// The hub's address.
        endpoint: String,
        /// " (the token from … has no access)", or nothing.
        refused: String,
    },
    /// 403 for another reason.
    #[error(
        "{host} refuses access to {repo} (403){refused}; the cause may be a company's proxy or a blocked account: try another \
         network, or set HF_ENDPOINT to a mirror"
    )]
    Forbidden {
        /// The repository's name.
        repo: String,
        /// The host that refuses.
        host: String,
        /// " (the token from … was refused too)", or nothing.
        refused: String,
    },
    /// The repository has weights, but as a pickle.
    #[error(
        "{repo} ({revision}) has its weights only as {file}, a pickle, which can run code, so actscope does not \
         read it; convert it once with {command}. Some such models have safetensors in a pull \
         request: see {endpoint}/{repo}/discussions, and open {repo}@refs/pr/NUMBER"
    )]
    Pickle {
        /// The repository's name.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The pickle, or the first of its parts.
        file: Box<str>,
        /// What converts it, and what to open then.
        command: String,
        /// The hub's address.
        endpoint: String,
    },
    /// The repository has weights, but in an unsupported format.
    #[error("{repo} ({revision}) has no model.safetensors: {advice}")]
    OtherFormat {
        /// The repository's name.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// What it has, and what to do.
        advice: String,
    },
    /// The repository is not a model that actscope can run.
    #[error(
        "{repo} ({revision}) has no {file}, so it is not a checkpoint that actscope can run; `actscope models` lists some"
    )]
    NoFile {
        /// The repository's name.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// What is missing.
        file: &'static str,
    },
    /// The model's config.json is invalid or unsupported, found before its weights were downloaded.
    #[error("{repo}: {source}; nothing else of it was downloaded")]
    Unusable {
        /// The repository's name.
        repo: String,
        /// What is wrong with its config.json.
        source: ConfigError,
    },
    /// The host limits requests (429).
    #[error(
        "{host} allows no more requests for now (429){wait}; run the same command again then, or log in with `hf auth login`: \
         who is logged in may ask more often"
    )]
    TooManyRequests {
        /// The host.
        host: String,
        /// ": it asks to wait N s", or nothing.
        wait: String,
    },
    /// The host failed repeatedly (5xx).
    #[error(
        "{host} answered with an error of the server (HTTP {status}) {tries} times in a row; run the same command again later: \
         it resumes the download"
    )]
    Server {
        /// The host.
        host: String,
        /// The status.
        status: u16,
        /// How many times the request was sent.
        tries: u32,
    },
    /// The host cannot be reached.
    #[error(
        "cannot reach {host}: {detail}; check the network, the proxy (HTTPS_PROXY, NO_PROXY) and HF_ENDPOINT, or use a model \
         that is here already: `actscope models` lists them"
    )]
    Network {
        /// The host.
        host: String,
        /// Why.
        detail: String,
    },
    /// The download was interrupted repeatedly.
    #[error(
        "the download of {file} from {host} was interrupted at {done} of {size} bytes and could not be resumed ({detail}); these \
         bytes are kept: run the same command again to go on"
    )]
    Broken {
        /// The file.
        file: String,
        /// The host that sent it.
        host: String,
        /// Bytes received.
        done: u64,
        /// Bytes expected, or `?`.
        size: String,
        /// The last failure.
        detail: String,
    },
    /// The content does not match the hub's hash.
    #[error(
        "{file} was downloaded twice, and its content is not what {endpoint} announces ({detail}); a proxy or a mirror may change \
         it: try another \
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
    /// The answer does not follow the hub's protocol.
    #[error(
        "the answer of {host} is not that of a Hugging Face hub: {detail}; is HF_ENDPOINT a hub, or is there a log-in page in between?"
    )]
    Protocol {
        /// The host that answered.
        host: String,
        /// What was wrong.
        detail: String,
    },
    /// The disk is full.
    #[error(
        "the disk of the Hugging Face cache {cache} is full, and {file} needs {missing} more bytes; make room, or set \
         HF_HUB_CACHE to a folder on another disk. What is here is kept: run the same command again to go on"
    )]
    DiskFull {
        /// The cache's folder.
        cache: PathBuf,
        /// The file.
        file: String,
        /// Bytes still to be downloaded.
        missing: u64,
    },
    /// The cache cannot be written.
    #[error(
        "cannot write to the Hugging Face cache {cache}: {source}; set HF_HUB_CACHE to a folder that you can write to"
    )]
    Cache {
        /// The cache's folder.
        cache: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
}
