//! HTTP/1.1 for a browser on this machine: reads requests with small bodies from a connection, and writes answers whole
//! or as a stream. Owns the limits of requests, and the check that a request is meant for this server and comes from
//! its page. Read next: `explore.rs`, which decides what is served.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// The limits of a request: bytes of its head, bytes of its body, and headers. The page's requests are texts and edits.
const HEAD: usize = 16 << 10;
const BODY: usize = 8 << 20;
const HEADERS: usize = 64;
pub(super) const TEXT: &str = "text/plain; charset=utf-8";
/// How long the rest of a refused request is read.
const LINGER: Duration = Duration::from_secs(2);
/// How long a connection may be silent.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A request whose head has passed the checks.
#[derive(Debug)]
pub(super) struct Request {
    pub method: String,
    /// The path without its query.
    pub path: String,
    pub body: Vec<u8>,
}

/// A connection from a browser.
pub(super) struct Connection {
    stream: TcpStream,
    /// Bytes that were read after the end of the last request.
    read: Vec<u8>,
    /// The accepted values of the header `Host`. A page of another site whose name resolves to this machine (DNS
    /// rebinding) sends another value.
    hosts: [String; 2],
}

/// Why a connection ends.
pub(super) enum End {
    /// The browser closed it, or sent nothing for too long.
    Closed,
    /// The request is refused: the HTTP status, and the reason.
    Refused(u16, &'static str),
}

impl From<Error> for End {
    fn from(_: Error) -> End {
        End::Closed
    }
}

impl Connection {
    /// A connection that a server at `address` accepted.
    pub(super) fn new(stream: TcpStream, address: SocketAddr) -> std::io::Result<Connection> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let port = address.port();
        let hosts = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
        Ok(Connection { stream, read: Vec::new(), hosts })
    }

    /// Reads the next request.
    ///
    /// # Errors
    /// [`End`], after which the connection is of no use.
    pub(super) fn next(&mut self) -> Result<Request, End> {
        let (mut request, head, length) = loop {
            if let Some(found) = self.head()? {
                break found;
            }
            if self.read.len() > HEAD {
                return Err(End::Refused(431, "the head of the request is too long"));
            }
            self.more()?;
        };
        if length > BODY {
            return Err(End::Refused(413, "the request is too long"));
        }
        while self.read.len() < head + length {
            self.more()?;
        }
        request.body = self.read[head..head + length].to_vec();
        self.read.drain(..head + length);
        Ok(request)
    }

    fn more(&mut self) -> Result<(), End> {
        let mut piece = [0; 16 << 10];
        match self.stream.read(&mut piece)? {
            0 => Err(End::Closed),
            n => {
                self.read.extend_from_slice(&piece[..n]);
                Ok(())
            }
        }
    }

    /// The request without its body, the length of its head, and the length of its body, in bytes; `None` until the
    /// head is complete.
    fn head(&self) -> Result<Option<(Request, usize, usize)>, End> {
        const BAD: End = End::Refused(400, "this is not an HTTP request that a browser sends");
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        let Ok(status) = parsed.parse(&self.read) else { return Err(BAD) };
        let httparse::Status::Complete(head) = status else { return Ok(None) };
        let all = |name: &str| -> Vec<&[u8]> {
            let named = parsed.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
            named.map(|header| header.value).collect()
        };
        let [host] = all("host")[..] else { return Err(BAD) };
        if !self.hosts.iter().any(|own| host.eq_ignore_ascii_case(own.as_bytes())) {
            return Err(End::Refused(403, "the header Host names another server"));
        }
        // A browser names the origin of the page that sends a request. The explorer's page comes from this server.
        let own = |origin: &&[u8]| origin.strip_prefix(b"http://").is_some_and(|from| from.eq_ignore_ascii_case(host));
        if !all("origin").iter().all(own) {
            return Err(End::Refused(403, "the request comes from another page"));
        }
        if !all("transfer-encoding").is_empty() {
            return Err(End::Refused(411, "a request must have a Content-Length"));
        }
        let length = match all("content-length")[..] {
            [] => 0,
            [length] => std::str::from_utf8(length).ok().and_then(|length| length.parse().ok()).ok_or(BAD)?,
            _ => return Err(BAD),
        };
        let (Some(method), Some(target)) = (parsed.method, parsed.path) else { return Err(BAD) };
        let path = target.split('?').next().unwrap_or(target);
        let request = Request { method: method.into(), path: path.into(), body: Vec::new() };
        Ok(Some((request, head, length)))
    }

    /// Sends an answer of type `kind`. `with_body` is false for HEAD, whose answer has the length but not the bytes.
    pub(super) fn send(&mut self, status: u16, kind: &str, body: &[u8], with_body: bool) -> std::io::Result<()> {
        let head = format!("{}Content-Length: {}\r\n\r\n", head(status, kind), body.len());
        let mut all = head.into_bytes();
        if with_body {
            all.extend_from_slice(body);
        }
        self.stream.write_all(&all)
    }

    /// Sends the reason why a request is refused, and closes the connection. Reads the rest of the request before it
    /// closes, because a browser whose request was not read discards the answer.
    pub(super) fn refuse(mut self, status: u16, why: &str) -> std::io::Result<()> {
        self.send(status, TEXT, why.as_bytes(), true)?;
        self.stream.shutdown(Shutdown::Write)?;
        self.stream.set_read_timeout(Some(LINGER))?;
        let start = Instant::now();
        let mut piece = [0; 16 << 10];
        while start.elapsed() < LINGER && self.stream.read(&mut piece)? > 0 {}
        Ok(())
    }

    /// Starts an answer whose length is not known yet.
    pub(super) fn begin(&mut self, kind: &str) -> std::io::Result<Chunks<'_>> {
        let head = format!("{}Transfer-Encoding: chunked\r\n\r\n", head(200, kind));
        self.stream.write_all(head.as_bytes())?;
        Ok(Chunks(&mut self.stream))
    }
}

fn head(status: u16, kind: &str) -> String {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        _ => "Error",
    };
    // The page may load only its own files and answers. No other page may load them, or show this page in a frame.
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
         Referrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: same-origin\r\n\
         Cross-Origin-Opener-Policy: same-origin\r\n\
         Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n"
    )
}

/// An answer in chunks.
pub(super) struct Chunks<'a>(&'a mut TcpStream);

impl Chunks<'_> {
    pub(super) fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        // An empty chunk would end the answer.
        if bytes.is_empty() {
            return Ok(());
        }
        let mut piece = format!("{:x}\r\n", bytes.len()).into_bytes();
        piece.extend_from_slice(bytes);
        piece.extend_from_slice(b"\r\n");
        self.0.write_all(&piece)
    }

    /// Ends the answer. Without this call, the browser sees that the answer is incomplete.
    pub(super) fn end(self) -> std::io::Result<()> {
        self.0.write_all(b"0\r\n\r\n")
    }

    /// True once the browser has closed the connection, which is how it cancels a request.
    pub(super) fn is_closed(&self) -> bool {
        let looked = self.0.set_nonblocking(true).and_then(|()| self.0.peek(&mut [0]));
        let restored = self.0.set_nonblocking(false);
        restored.is_err()
            || !matches!(looked, Ok(1..)) && !matches!(looked, Err(e) if e.kind() == ErrorKind::WouldBlock)
    }
}
