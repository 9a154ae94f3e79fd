//! A web server on the loopback for the tests of the explorer: the built page, files of the repository, a hub, and a place
//! to which pages send what they computed.
#![allow(unreachable_pub, reason = "a module of tests has no public surface")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A server, until the process ends.
pub struct Loopback {
    pub address: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    folders: Vec<(String, PathBuf)>,
    /// Every request: method, path with its query, and the range that was asked for.
    requests: Mutex<Vec<String>>,
    posted: Mutex<HashMap<String, Vec<u8>>>,
    /// Answers of other paths, whole.
    answers: Mutex<HashMap<String, Vec<u8>>>,
    /// How many more pieces of files are sent before the server refuses.
    pieces_left: Mutex<Option<usize>>,
}

impl Loopback {
    /// Serves each folder below its path.
    pub fn start(folders: &[(&str, &Path)]) -> Loopback {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let folders = folders.iter().map(|(path, folder)| (path.to_string(), folder.to_path_buf())).collect();
        let shared = Arc::new(Shared { folders, ..Shared::default() });
        let of_server = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = of_server.clone();
                std::thread::spawn(move || while answer(&stream, &shared).is_some() {});
            }
        });
        Loopback { address, shared }
    }

    /// What a page sent to a path.
    pub fn posted(&self, path: &str) -> Vec<u8> {
        self.shared.posted.lock().unwrap().remove(path).unwrap_or_else(|| panic!("nothing was sent to {path}"))
    }

    /// Answers a path with these bytes.
    pub fn answer(&self, path: &str, bytes: &[u8]) {
        self.shared.answers.lock().unwrap().insert(path.into(), bytes.to_vec());
    }

    /// Every request so far; forgets them.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.requests.lock().unwrap())
    }

    /// Sends this many more pieces of files, and refuses all after.
    pub fn break_after(&self, pieces: Option<usize>) {
        *self.shared.pieces_left.lock().unwrap() = pieces;
    }
}

fn kind(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript",
        Some("css") => "text/css",
        Some("wasm") => "application/wasm",
        Some("json") => "application/json",
        _ => "application/octet-stream",
    }
}

/// Answers one request of a connection; `None` when it is over.
fn answer(mut stream: &TcpStream, shared: &Shared) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|n| *n > 0)?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_string(), words.next()?.to_string());
    let (mut length, mut range) = (0, None);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "range" => range = value.strip_prefix("bytes=").map(String::from),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let shown = range.as_ref().map_or(String::new(), |range| format!(" {range}"));
    shared.requests.lock().unwrap().push(format!("{method} {target}{shown}"));
    let path = target.split('?').next()?.to_string();
    let mut send = |status: &str, kind: &str, more: &str, bytes: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n{more}\r\n",
            bytes.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(bytes)).ok()
    };
    if method == "POST" {
        shared.posted.lock().unwrap().insert(path, body);
        return send("204 No Content", "text/plain", "", &[]);
    }
    if let Some(bytes) = shared.answers.lock().unwrap().get(&target) {
        return send("200 OK", "application/json", "", bytes);
    }
    let file = shared.folders.iter().find_map(|(start, folder)| {
        let rest = path.strip_prefix(start.as_str())?;
        assert!(!rest.contains(".."), "{path}");
        let file =
            folder.join(if rest.is_empty() || rest.ends_with('/') { format!("{rest}index.html") } else { rest.into() });
        std::fs::read(file).ok()
    });
    let Some(bytes) = file else { return send("404 Not Found", "text/plain", "", &[]) };
    let Some((from, to)) = range.as_deref().and_then(|range| range.split_once('-')) else {
        return send("200 OK", kind(&if path.ends_with('/') { "x.html".into() } else { path }), "", &bytes);
    };
    let left = &mut *shared.pieces_left.lock().unwrap();
    if *left == Some(0) {
        return send("503 Service Unavailable", "text/plain", "", &[]);
    }
    *left = left.map(|left| left - 1);
    let (from, to): (usize, usize) = (from.parse().ok()?, to.parse::<usize>().ok()?.min(bytes.len() - 1));
    let more = format!("Content-Range: bytes {from}-{to}/{}\r\n", bytes.len());
    send("206 Partial Content", "application/octet-stream", &more, &bytes[from..=to])
}
