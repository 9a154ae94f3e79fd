//! Downloads a model from the hub into the cache: which files, in which order, each complete or not at all. Owns the
//! meaning of the hub's answers; `http.rs` sends requests, `cache.rs` owns paths.
//!
//! One request fetches the list of files. config.json is fetched and checked before anything large. A blob is written
//! to a partial file under a lock, and resumed from an earlier run's partial file. It gets its final name only when its
//! size and hash are correct. Read next: `http.rs`.

use super::cache::{Lock, Repo};
use super::check::Check;
use super::http::{Client, Meta, Refusal, TRIES, host, pause};
use super::{Event, Hub, HubError, Name, known};
use crate::config::Config;
use crate::model::model_dir::{self, COMPANIONS, Instead, file as name_of};
use crate::model::shard_index::shards;
use serde_json::Value;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use name_of::{CONFIG, INDEX, WEIGHTS};

/// Downloads a model into the cache and returns its snapshot's folder.
pub(super) fn download(name: &Name, hub: &Hub, tell: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, HubError> {
    let client = Client::new(hub, tell)?;
    let cache = hub.cache();
    let repo = Repo::new(&cache, &name.repo);
    let symlinks = !hub.is_true("HF_HUB_DISABLE_SYMLINKS");
    let mut job = Job { client, name, cache, repo, symlinks, commit: String::new(), started: false, done: 0 };
    job.run()
}

struct Job<'a> {
    client: Client<'a>,
    name: &'a Name,
    cache: PathBuf,
    repo: Repo,
    /// Whether snapshots may have links.
    symlinks: bool,
    commit: String,
    /// Whether the download of large files has begun. `done` counts their bytes.
    started: bool,
    done: u64,
}

impl Job<'_> {
    fn run(&mut self) -> Result<PathBuf, HubError> {
        let files = self.list()?;
        let has = |file: &str| files.iter().any(|f| f == file);
        if !has(CONFIG) || !has(WEIGHTS) && !has(INDEX) {
            return Err(match Instead::of(&files) {
                Some(Instead::Pickle(file)) if has(CONFIG) => self.pickle(file),
                Some(instead) if !has(WEIGHTS) => self.other_format(&instead),
                _ => self.no_file(if has(CONFIG) { WEIGHTS } else { CONFIG }),
            });
        }

        let meta = self.head(CONFIG)?;
        self.fetch(CONFIG, &meta)?;
        let folder = self.repo.snapshot_folder(&self.commit);
        Config::from_json(&self.read(&folder.join(CONFIG))?)
            .map_err(|source| HubError::Unusable { repo: self.name.repo.clone(), source })?;

        let mut wanted: Vec<String> = Vec::new();
        wanted.extend(model_dir::tokenizer_files(has).iter().map(|file| file.to_string()));
        let mut absent: Vec<&str> = COMPANIONS.into_iter().filter(|file| !has(file)).collect();
        if wanted.is_empty() {
            absent.extend(model_dir::all_tokenizer_files());
        }
        let companions = COMPANIONS.into_iter().chain([name_of::GENERATION_CONFIG]).filter(|file| has(file));
        wanted.extend(companions.map(str::to_string));
        for file in absent {
            self.repo.mark_absent(&self.commit, file).map_err(|e| self.disk(file, 0, e))?;
        }
        if has(WEIGHTS) {
            wanted.push(WEIGHTS.into());
        } else {
            let meta = self.head(INDEX)?;
            self.fetch(INDEX, &meta)?;
            let index = folder.join(INDEX);
            let shards = shards(&index, &self.read(&index)?);
            wanted.extend(shards.map_err(|e| self.protocol(e.to_string()))?);
        }

        // Files from an earlier run are not requested again.
        wanted.retain(|file| !folder.join(file).exists());
        let metas = wanted.iter().map(|file| self.head(file)).collect::<Result<Vec<_>, _>>()?;
        (self.started, self.done) = (true, 0);
        let (from, bytes) = (self.client.shown_endpoint(), metas.iter().filter_map(|meta| meta.size).sum());
        if !wanted.is_empty() {
            (self.client.tell)(Event::Start { repo: &self.name.repo, from: &from, bytes });
        }
        let fetched: Result<(), HubError> =
            wanted.iter().zip(&metas).try_for_each(|(file, meta)| self.fetch(file, meta));
        (self.client.tell)(Event::End);
        fetched?;
        self.repo.set_ref(&self.name.revision, &self.commit).map_err(|e| self.disk("refs", 0, e))?;
        Ok(folder)
    }

    /// The names of all files, and their commit.
    fn list(&mut self) -> Result<Vec<String>, HubError> {
        let revision = encode(&self.name.revision);
        let url = format!("{}/api/models/{}/revision/{revision}", self.client.endpoint, self.name.repo);
        let mut text = Vec::new();
        for tries in 1.. {
            let answer = self.client.ask("GET", &url, 0).map_err(|refusal| self.explain(refusal))?;
            text.clear();
            // Repositories with thousands of checkpoints have lists of a few megabytes.
            match answer.body.into_with_config().limit(64 << 20).reader().read_to_end(&mut text) {
                Ok(_) => break,
                Err(e) if tries == TRIES => {
                    return Err(HubError::Network { host: answer.host, detail: e.to_string() });
                }
                Err(_) => std::thread::sleep(pause(tries)),
            }
        }
        let list: Value =
            serde_json::from_slice(&text).map_err(|_| self.protocol("a file list that is not JSON".into()))?;
        let commit = list.get("sha").and_then(Value::as_str).filter(|sha| is_plain(sha));
        self.commit = commit.ok_or_else(|| self.protocol("a file list without a commit".into()))?.into();
        let files = list.get("siblings").and_then(Value::as_array);
        let files = files.ok_or_else(|| self.protocol("a file list without files".into()))?;
        Ok(files.iter().filter_map(|file| file.get("rfilename")?.as_str().map(str::to_string)).collect())
    }

    fn url(&self, file: &str) -> String {
        format!("{}/{}/resolve/{}/{}", self.client.endpoint, self.name.repo, self.commit, encode(file))
    }

    fn head(&mut self, file: &str) -> Result<Meta, HubError> {
        let url = self.url(file);
        let answer = self.client.ask("HEAD", &url, 0).map_err(|refusal| self.explain(refusal))?;
        match &answer.meta.etag {
            // The etag becomes a file name.
            Some(etag) if is_plain(etag) => Ok(answer.meta),
            _ => Err(self.protocol(format!("no usable etag for {file}"))),
        }
    }

    /// Downloads one file into the cache. Does nothing if it is already there.
    fn fetch(&mut self, file: &str, meta: &Meta) -> Result<(), HubError> {
        let etag = meta.etag.as_deref().unwrap_or_default();
        let place = self.repo.snapshot_folder(&self.commit).join(file);
        let before = self.done;
        if !place.exists() {
            let tell = &mut self.client.tell;
            let wait = || tell(Event::Note(&format!("another process is downloading {file}; waiting for it")));
            let lock = self.repo.lock(etag, wait).map_err(|e| self.disk(file, 0, e))?;
            // A blob of the wrong size was left by another program.
            let right = |blob: std::fs::Metadata| meta.size.is_none_or(|size| size == blob.len());
            let new = !self.repo.blob(etag).metadata().is_ok_and(right);
            if new {
                self.grow(file, meta, &lock)?;
            }
            self.repo.link(etag, &self.commit, file, new, self.symlinks).map_err(|e| self.disk(file, 0, e))?;
        }
        self.done = before + meta.size.unwrap_or(0);
        self.progress(true);
        Ok(())
    }

    /// Downloads a blob until it is complete and its hash is correct. Resumes from the partial file of an interrupted
    /// run.
    fn grow(&mut self, file: &str, meta: &Meta, lock: &Lock) -> Result<(), HubError> {
        let etag = meta.etag.as_deref().unwrap_or_default();
        let (blob, partial) = (self.repo.blob(etag), self.repo.partial(etag, lock));
        let missing = |have: u64| meta.size.unwrap_or(0).saturating_sub(have);
        let open = || {
            blob.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            File::options().create(true).truncate(false).read(true).write(true).open(&partial)
        };
        let mut out = open().map_err(|e| self.disk(file, missing(0), e))?;
        let before = self.done;
        let mut wrong = false;
        loop {
            let (mut check, mut have) = (Check::new(etag, meta.size), 0);
            copy(&mut out, |chunk| {
                have += chunk.len() as u64;
                check.update(chunk);
                Ok(())
            })
            .map_err(|e| self.disk(file, missing(0), e))?;
            self.complete(file, meta, &mut out, &mut check, &mut have, before)?;
            match check.verdict(have) {
                Ok(()) => break,
                // The partial file of an earlier run may be damaged (a power failure, another program): start once more
                // from the beginning.
                Err(_) if !wrong => wrong = true,
                Err(detail) => {
                    let _ = std::fs::remove_file(&partial);
                    let endpoint = self.client.shown_endpoint();
                    return Err(HubError::Corrupt { file: file.into(), endpoint, detail });
                }
            }
            restart(&mut out).map_err(|e| self.disk(file, missing(0), e))?;
        }
        // Sync to disk before the rename, so that a power failure cannot leave a name without content.
        out.sync_all().and_then(|()| std::fs::rename(&partial, &blob)).map_err(|e| self.disk(file, 0, e))
    }

    /// Appends to `out` until the file's size is reached. `out` already has `have` bytes, which `check` has received.
    /// Requests again after every interruption, and gives up after several in a row without new bytes.
    fn complete(
        &mut self,
        file: &str,
        meta: &Meta,
        out: &mut File,
        check: &mut Check,
        have: &mut u64,
        before: u64,
    ) -> Result<(), HubError> {
        let (etag, url) = (meta.etag.as_deref().unwrap_or_default(), self.url(file));
        let missing = |have: u64| meta.size.unwrap_or(0).saturating_sub(have);
        let mut fruitless = 0;
        if meta.size.is_some_and(|size| *have > size) {
            restart(out).map_err(|e| self.disk(file, missing(0), e))?;
            (*check, *have) = (Check::new(etag, meta.size), 0);
        }
        loop {
            self.done = before + *have;
            self.progress(true);
            if meta.size == Some(*have) {
                return Ok(());
            }
            let answer = self.client.ask("GET", &url, *have).map_err(|refusal| self.explain(refusal))?;
            let resumed = answer.status.as_u16() == 206 && starts_at(&answer.headers, *have);
            if *have > 0 && !resumed {
                // The server sends from the beginning, or does not have this range: start over.
                restart(out).map_err(|e| self.disk(file, missing(0), e))?;
                (*check, *have) = (Check::new(etag, meta.size), 0);
                if answer.status.as_u16() != 200 {
                    fruitless += 1;
                    if fruitless == TRIES {
                        return Err(self.protocol(format!("the wrong part of {file}")));
                    }
                    continue;
                }
            }
            let (start, from) = (*have, answer.host);
            let mut disk = None;
            let mut body = answer.body.into_reader();
            // Accept one byte more than expected, to detect a file that is too long.
            let most = meta.size.map_or(u64::MAX, |size| size + 1 - *have);
            let received = copy(&mut (&mut body).take(most), |chunk| {
                out.write_all(chunk).map_err(|e| {
                    disk = Some(e);
                    io::Error::from(ErrorKind::Other)
                })?;
                *have += chunk.len() as u64;
                check.update(chunk);
                self.done = before + *have;
                self.progress(false);
                Ok(())
            });
            if let Some(e) = disk {
                // A part of the last chunk may have been written.
                let have = out.metadata().map_or(*have, |m| m.len());
                return Err(self.disk(file, missing(have), e));
            }
            let detail = match received {
                Ok(()) if meta.size.is_none_or(|size| *have >= size) => return Ok(()),
                Ok(()) => "the connection was closed".to_string(),
                Err(e) => e.to_string(),
            };
            fruitless = if *have > start { 0 } else { fruitless + 1 };
            if fruitless == TRIES {
                let size = meta.size.map_or("?".into(), |size| size.to_string());
                return Err(HubError::Broken { file: file.into(), host: from, done: *have, size, detail });
            }
            std::thread::sleep(pause(fruitless));
        }
    }

    fn progress(&mut self, kept: bool) {
        if self.started {
            (self.client.tell)(Event::Bytes { done: self.done, kept });
        }
    }

    fn read(&self, path: &Path) -> Result<String, HubError> {
        std::fs::read_to_string(path).map_err(|e| self.disk("", 0, e))
    }

    /// The error that a refused request means for this model.
    fn explain(&self, refusal: Refusal) -> HubError {
        let (status, code, host) = match refusal {
            Refusal::Other(error) => return error,
            Refusal::Status { status, code, host } => (status.as_u16(), code, host),
        };
        let (repo, endpoint) = (self.name.repo.clone(), self.client.shown_endpoint());
        match (status, code.as_str()) {
            (_, "GatedRepo") => HubError::Gated { repo, endpoint, refused: self.client.refused("has no access") },
            (_, "RevisionNotFound") => {
                HubError::NoSuchRevision { repo, revision: self.name.revision.clone(), endpoint }
            }
            // Without authorisation, the hub does not reveal whether a name is unknown or private.
            (401, _) | (404, "RepoNotFound" | "") => {
                let near = known::did_you_mean(&self.name.given);
                HubError::NoSuchModel { repo, endpoint, near, refused: self.client.refused("was refused too") }
            }
            (403, _) => HubError::Forbidden { repo, host, refused: self.client.refused("was refused too") },
            (status, "") => HubError::Protocol { host, detail: format!("HTTP {status}") },
            (status, code) => HubError::Protocol { host, detail: format!("HTTP {status}, {code}") },
        }
    }

    fn protocol(&self, detail: String) -> HubError {
        HubError::Protocol { host: host(&self.client.endpoint), detail }
    }

    fn no_file(&self, file: &'static str) -> HubError {
        HubError::NoFile { repo: self.name.repo.clone(), revision: self.name.revision.clone(), file }
    }

    fn other_format(&self, instead: &Instead) -> HubError {
        let (repo, revision) = (self.name.repo.clone(), self.name.revision.clone());
        HubError::OtherFormat { advice: instead.advice(&repo), repo, revision }
    }

    fn pickle(&self, file: String) -> HubError {
        let (repo, revision) = (self.name.repo.clone(), self.name.revision.clone());
        let folder = repo.rsplit('/').next().unwrap_or_default().to_string();
        let of = if revision == "main" { format!("'{repo}'") } else { format!("'{repo}', revision='{revision}'") };
        let command = format!(
            "python -c \"from transformers import AutoTokenizer as T, GPT2LMHeadModel as M; \
             M.from_pretrained({of}).save_pretrained('{folder}'); T.from_pretrained({of}).save_pretrained('{folder}')\" \
             and open the folder {folder}"
        );
        let endpoint = self.client.shown_endpoint();
        HubError::Pickle { repo, revision, file: file.into(), command, endpoint }
    }

    /// The error for a failed write, with advice.
    fn disk(&self, file: &str, missing: u64, source: io::Error) -> HubError {
        let cache = self.cache.clone();
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                HubError::DiskFull { cache, file: file.into(), missing }
            }
            _ => HubError::Cache { cache, source },
        }
    }
}

/// Reads to the end, a chunk at a time.
fn copy(from: &mut impl Read, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut chunk = vec![0; 256 << 10];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => each(&chunk[..n])?,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn restart(out: &mut File) -> io::Result<()> {
    out.set_len(0)?;
    out.seek(SeekFrom::Start(0)).map(drop)
}

/// Whether a 206 response begins at the requested byte.
fn starts_at(headers: &ureq::http::HeaderMap, from: u64) -> bool {
    let range = headers.get("content-range").and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok());
    start == Some(from)
}

/// Percent-encodes a part of a URL: everything except letters, digits and `-._~`. The hub requires that a revision's
/// slashes are encoded too.
fn encode(part: &str) -> String {
    let keep = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    part.bytes().map(|byte| if keep(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Whether a text from a server is safe as a file name.
fn is_plain(word: &str) -> bool {
    (1..=128).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_server_are_no_paths() {
        assert!(is_plain("607a30d783dfa663caf39e06633721c8d4cfcd7e"));
        for word in ["", "..", "a/b", "a\\b", "a.b", "\0"] {
            assert!(!is_plain(word), "{word:?}");
        }
        assert_eq!(encode("refs/pr/3"), "refs%2Fpr%2F3");
    }
}
