//! A hub and its content store on loopback, as two servers with ports (and so origins) of their own. They implement the
//! part of the protocol that a download uses, log their requests, and misbehave as configured.
#![allow(unreachable_pub, reason = "a module of tests has no public surface")]

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub const COMMIT: &str = "607a30d783dfa663caf39e06633721c8d4cfcd7e";

/// A request, and the server that received it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub store: bool,
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

/// How the servers behave. Some fields are counters that run down; each says so.
#[derive(Default)]
pub struct Behaviour {
    pub repo: String,
    pub files: BTreeMap<String, Vec<u8>>,
    /// The branch, tag or commit that exists beside the commit itself.
    pub revision: String,
    /// The only token that is good; any other is answered with 401.
    pub good_token: Option<String>,
    /// Without the good token: 401 for everything, as for unknown names.
    pub private: bool,
    /// The list is public; files are answered with 401 or 403 and GatedRepo.
    pub gated: bool,
    /// Statuses (with Retry-After) for the next requests to the hub.
    pub statuses: VecDeque<(u16, Option<u64>)>,
    /// Where the next contents break off, counted from the file's beginning.
    pub cuts: VecDeque<u64>,
    /// This many file lists break off in the middle.
    pub cut_lists: usize,
    /// The next contents hang for ever where they break off, instead of closing the connection.
    pub hang: bool,
    /// A pause after each 16 KiB of content.
    pub pace: Option<Duration>,
    /// This many contents have a wrong byte.
    pub corrupt: usize,
    /// Contents always begin at the beginning.
    pub ignore_range: bool,
    pub log: Vec<Seen>,
    /// Bytes of content sent.
    pub sent: u64,
}

pub struct Hub {
    pub url: String,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl Hub {
    /// A hub that has one repository with the files of a folder.
    pub fn new(repo: &str, folder: &Path) -> Hub {
        let read = |entry: std::io::Result<std::fs::DirEntry>| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(&path).unwrap())
        };
        let mut files: BTreeMap<String, Vec<u8>> = std::fs::read_dir(folder).unwrap().map(read).collect();
        files.insert("README.md".into(), b"# A model".into());
        let start = Behaviour { repo: repo.into(), revision: "main".into(), files, ..Behaviour::default() };
        let behaviour = Arc::new(Mutex::new(start));
        let store = serve(behaviour.clone(), None);
        let url = serve(behaviour.clone(), Some(store));
        Hub { url, behaviour }
    }

    pub fn set(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap()
    }

    /// Returns the log so far and clears it.
    pub fn log(&self) -> Vec<Seen> {
        std::mem::take(&mut self.set().log)
    }
}

/// Starts a server and returns its address: a hub that redirects requests for large files to `store`, or the store.
fn serve(behaviour: Arc<Mutex<Behaviour>>, store: Option<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (behaviour, store) = (behaviour.clone(), store.clone());
            // Some tests disconnect the client in the middle.
            std::thread::spawn(move || {
                let _ = connection(stream?, &behaviour, store.as_deref());
                std::io::Result::Ok(())
            });
        }
    });
    url
}

fn connection(stream: TcpStream, behaviour: &Mutex<Behaviour>, store: Option<&str>) -> std::io::Result<()> {
    let mut out = stream.try_clone()?;
    let mut lines = BufReader::new(stream).lines();
    loop {
        let Some(first) = lines.next().transpose()? else { return Ok(()) };
        let mut words = first.split(' ');
        let (method, path) =
            (words.next().unwrap_or_default().to_string(), words.next().unwrap_or_default().to_string());
        let mut headers = BTreeMap::new();
        for line in lines.by_ref() {
            let line = line?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.insert(name.to_lowercase(), value.trim().to_string());
        }
        let (authorization, range) = (headers.remove("authorization"), headers.remove("range"));
        let seen = Seen { store: store.is_none(), method, path, authorization, range };
        behaviour.lock().unwrap().log.push(seen.clone());
        let go_on = match store {
            Some(store) => hub(&mut out, &seen, behaviour, store)?,
            None => content(&mut out, &seen, behaviour, seen.path.trim_start_matches('/'))?,
        };
        if !go_on {
            return Ok(());
        }
    }
}

fn answer(out: &mut TcpStream, status: u16, headers: &[(&str, String)], body: &[u8]) -> std::io::Result<bool> {
    let mut head = format!("HTTP/1.1 {status} Some words\r\ncontent-length: {}\r\n", body.len());
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    out.write_all((head + "\r\n").as_bytes())?;
    out.write_all(body)?;
    Ok(true)
}

fn hub(out: &mut TcpStream, seen: &Seen, behaviour: &Mutex<Behaviour>, store: &str) -> std::io::Result<bool> {
    let mut b = behaviour.lock().unwrap();
    let refuse =
        |out: &mut TcpStream, status: u16, code: &str| answer(out, status, &[("x-error-code", code.into())], b"");
    if let Some((status, wait)) = b.statuses.pop_front() {
        let headers: Vec<_> = wait.iter().map(|seconds| ("retry-after", seconds.to_string())).collect();
        return answer(out, status, &headers, b"<html>not JSON</html>");
    }
    let token = seen.authorization.as_deref().and_then(|value| value.strip_prefix("Bearer "));
    let good = token.is_some() && token == b.good_token.as_deref();
    if token.is_some() && !good {
        return refuse(out, 401, "");
    }
    let list = format!("/api/models/{}/revision/", b.repo);
    let resolve = format!("/{}/resolve/", b.repo);
    let file = seen.path.strip_prefix(&resolve).and_then(|rest| {
        // actscope requests a commit's files; huggingface_hub requests a branch's.
        [COMMIT, b.revision.as_str()].iter().find_map(|revision| rest.strip_prefix(revision)?.strip_prefix('/'))
    });
    let is_list = seen.path.strip_prefix(&list);
    // Without a token, the hub gives the same answer for private models as for unknown ones.
    if (b.private && !good) || (is_list.is_none() && file.is_none()) {
        return refuse(out, 401, "RepoNotFound");
    }
    if let Some(revision) = is_list {
        if ![b.revision.as_str(), COMMIT].contains(&revision) {
            return refuse(out, 404, "RevisionNotFound");
        }
        let siblings: Vec<_> = b.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let list = serde_json::json!({"id": b.repo, "sha": COMMIT, "siblings": siblings}).to_string();
        if b.cut_lists > 0 {
            b.cut_lists -= 1;
            write!(out, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", list.len(), &list[..list.len() / 2])?;
            return Ok(false);
        }
        return answer(out, 200, &[], list.as_bytes());
    }
    if b.gated && !good {
        return refuse(out, 401, "GatedRepo");
    }
    let file = file.unwrap_or_default();
    let Some(bytes) = b.files.get(file) else { return refuse(out, 404, "EntryNotFound") };
    let commit = ("x-repo-commit", COMMIT.to_string());
    if file.ends_with(".safetensors") {
        let headers = [
            commit,
            ("x-linked-etag", format!("\"{}\"", etag(file, bytes))),
            ("x-linked-size", bytes.len().to_string()),
            ("location", format!("{store}/{file}")),
        ];
        let body: &[u8] = if seen.method == "HEAD" { b"" } else { b"Found. Redirecting" };
        return answer(out, 302, &headers, body);
    }
    let headers = [commit, ("etag", format!("\"{}\"", etag(file, bytes)))];
    if seen.method == "HEAD" {
        let mut head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n", bytes.len());
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        out.write_all((head + "\r\n").as_bytes())?;
        return Ok(true);
    }
    drop(b);
    content(out, seen, behaviour, file)
}

/// The name of a blob: sha256 for large files, git's hash for small ones.
pub fn etag(file: &str, bytes: &[u8]) -> String {
    let hex = |hash: &[u8]| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if file.ends_with(".safetensors") {
        return hex(&Sha256::digest(bytes));
    }
    let mut hash = Sha1::new_with_prefix(format!("blob {}\0", bytes.len()).as_bytes());
    hash.update(bytes);
    hex(&hash.finalize())
}

/// A file's bytes, or as many as the behaviour lets through.
fn content(out: &mut TcpStream, seen: &Seen, behaviour: &Mutex<Behaviour>, file: &str) -> std::io::Result<bool> {
    let mut b = behaviour.lock().unwrap();
    let Some(mut bytes) = b.files.get(file).cloned() else { return answer(out, 404, &[], b"") };
    let asked = seen.range.as_deref().and_then(|r| r.strip_prefix("bytes=")?.trim_end_matches('-').parse().ok());
    let from: usize = if b.ignore_range { 0 } else { asked.unwrap_or(0) };
    if from >= bytes.len() {
        return answer(out, 416, &[("content-range", format!("bytes */{}", bytes.len()))], b"");
    }
    if b.corrupt > 0 && file.ends_with(".safetensors") {
        b.corrupt -= 1;
        *bytes.last_mut().unwrap() ^= 1;
    }
    let cut = if file.ends_with(".safetensors") { b.cuts.pop_front() } else { None };
    let (pace, hang) = (b.pace, b.hang);
    drop(b);
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let range = format!("content-range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
    let range = if from > 0 { range } else { String::new() };
    write!(out, "HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: \"stores-own\"\r\n{range}\r\n", bytes.len() - from)?;
    let end = cut.map_or(bytes.len(), |cut| (cut as usize).clamp(from, bytes.len()));
    for chunk in bytes[from..end].chunks(16 << 10) {
        out.write_all(chunk)?;
        behaviour.lock().unwrap().sent += chunk.len() as u64;
        pace.into_iter().for_each(std::thread::sleep);
    }
    if cut.is_some() && hang {
        std::thread::sleep(Duration::from_secs(30));
    }
    Ok(cut.is_none())
}
