//! `actscope explore`: serves the explorer to browsers on this machine, and runs the page's requests. Owns the list of
//! the page's files, the addresses, and the format of answers. Read next: `../explore/mod.rs`, which computes answers;
//! `loopback.rs`, which reads and writes HTTP; `../explore/page/engine.js`, which sends requests.

use super::loopback::{Chunks, Connection, End, Request, TEXT};
use super::run::RunArgs;
use super::{Failure, ModelArgs, interrupt};
use crate::explore::{self, Answer};
use crate::session::{Error, Session};
use crate::text::hex;
use clap::Args;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Arguments of `actscope explore`.
#[derive(Args)]
pub(crate) struct Explore {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    run: RunArgs,
    /// The port on 127.0.0.1 [default: any free port]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    port: u16,
    /// Print the address, and do not open a browser
    #[arg(long)]
    no_open: bool,
}

/// The page's files except `index.html`. `worker.js` is not among them, because this program runs what it would run.
const FILES: &[(&str, &str)] = &[
    ("app.js", include_str!("../explore/page/app.js")),
    ("dialogs.js", include_str!("../explore/page/dialogs.js")),
    ("draw.js", concat!(include_str!("../report/page/draw.js"), include_str!("../explore/draw_exports.js"))),
    ("edits.js", include_str!("../explore/page/edits.js")),
    ("engine.js", include_str!("../explore/page/engine.js")),
    ("export.js", include_str!("../explore/page/export.js")),
    ("grid.js", include_str!("../explore/page/grid.js")),
    ("hooks.js", include_str!("../explore/page/hooks.js")),
    ("main.js", include_str!("../explore/page/main.js")),
    ("models.js", include_str!("../explore/page/models.js")),
    ("next.js", include_str!("../explore/page/next.js")),
    ("numbers.js", include_str!("../explore/page/numbers.js")),
    ("state.js", include_str!("../explore/page/state.js")),
    ("style.css", include_str!("../explore/page/style.css")),
    ("text.js", include_str!("../explore/page/text.js")),
    ("what.js", include_str!("../explore/page/what.js")),
    ("where.js", include_str!("../explore/page/where.js")),
];
const INDEX: &str = include_str!("../explore/page/index.html");
/// The tag in `index.html` that says what runs the page's requests: as stored, and as served.
const ENGINE: [&str; 2] = [r#"<meta name="engine" content="worker">"#, r#"<meta name="engine" content="server">"#];

/// The most connections at a time. Browsers open fewer.
const CONNECTIONS: usize = 64;
/// How often a run reports its progress to the page, and checks whether the page still waits.
const PULSE: Duration = Duration::from_millis(50);

/// The state that all connections share.
struct Server {
    session: Session,
    /// The first part of every path. It is secret, so that other users and pages cannot send requests.
    secret: String,
    /// The description of model and device for the page.
    served: Value,
    /// True once the program ends. Runs stop at their next step.
    ends: AtomicBool,
}

impl Explore {
    pub(super) fn run(self) -> Result<(), Failure> {
        // The port is opened first, so that an error is reported before a model is loaded, which may take minutes.
        let (listener, address) = self.listener()?;
        let secret = secret()?;
        let session = self.run.session(self.model.open()?, &self.model)?;
        let device = session.device();
        let mut arguments = vec!["-m".to_string(), self.model.model.clone()];
        arguments.extend(self.run.of_device());
        arguments.extend(self.run.of_weights());
        let served = json!({
            "model": self.model.model, "device": device.to_string(), "kind": device.kind, "arguments": arguments,
        });
        let page = format!("http://{address}/{secret}/");
        let server = Arc::new(Server { session, secret, served: served.clone(), ends: AtomicBool::new(false) });
        interrupt::listen();
        let of_listener = Arc::downgrade(&server);
        std::thread::spawn(move || accept(&listener, address, &of_listener));

        let mut out = std::io::stdout().lock();
        if self.model.json {
            writeln!(out, "{}", json!({"address": page, "served": served}))?;
        } else {
            writeln!(out, "{page}")?;
        }
        out.flush()?;
        drop(out);
        if !self.no_open
            && let Err(e) = open::that_detached(&page)
        {
            self.model.say(format_args!("note: no browser could be opened ({e}); open the address above in a browser"));
        }
        self.model.say(format_args!("the explorer is served to this machine until Ctrl-C"));
        while !interrupt::happened() {
            std::thread::sleep(PULSE);
        }
        server.ends.store(true, Ordering::Relaxed);
        finish(server);
        interrupt::follow();
        Ok(())
    }

    fn listener(&self) -> Result<(TcpListener, SocketAddr), Failure> {
        let listening = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port));
        let opened = listening.and_then(|listener| listener.local_addr().map(|address| (listener, address)));
        opened.map_err(|e| {
            let next = if self.port == 0 {
                "allow this program to listen on 127.0.0.1"
            } else {
                "choose another port with --port, or leave --port out"
            };
            let port = if self.port == 0 { "a free port".into() } else { format!("port {}", self.port) };
            Failure::Run(format!("{port} of 127.0.0.1 cannot be served: {e}; {next}"))
        })
    }
}

/// Waits until the current runs end and the device is dropped, because the drop writes the device's cache. Gives up
/// after five seconds.
fn finish(mut server: Arc<Server>) {
    const TIMEOUT: Duration = Duration::from_secs(5);
    let start = Instant::now();
    while start.elapsed() < TIMEOUT {
        server = match Arc::try_unwrap(server) {
            Ok(_) => return,
            Err(shared) => shared,
        };
        std::thread::sleep(PULSE);
    }
}

/// 128 random bits in hexadecimal.
fn secret() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|e| {
        Failure::Run(format!(
            "this system gives no random numbers ({e}), and without them the explorer's address is not secret"
        ))
    })?;
    Ok(hex(&bytes))
}

/// Serves each connection in a thread of its own.
fn accept(listener: &TcpListener, address: SocketAddr, server: &Weak<Server>) {
    let open = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Such as too many open files, which takes a while to pass.
            std::thread::sleep(PULSE);
            continue;
        };
        let (server, open) = (server.clone(), open.clone());
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        std::thread::spawn(move || {
            serve(stream, address, &server);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Answers the requests of one connection.
fn serve(stream: TcpStream, address: SocketAddr, server: &Weak<Server>) {
    let Ok(mut connection) = Connection::new(stream, address) else { return };
    loop {
        match connection.next() {
            Ok(request) => {
                let Some(server) = server.upgrade() else { return };
                if server.answer(&mut connection, &request).is_err() {
                    return;
                }
            }
            Err(End::Refused(status, why)) => {
                let _ = connection.refuse(status, why);
                return;
            }
            Err(End::Closed) => return,
        }
    }
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SHEET: &str = "text/css; charset=utf-8";
const JSON: &str = "application/json";
const STREAM: &str = "application/octet-stream";

impl Server {
    fn answer(&self, connection: &mut Connection, request: &Request) -> std::io::Result<()> {
        let is_get = request.method == "GET" || request.method == "HEAD";
        let mut send = |status, kind, body: &[u8]| connection.send(status, kind, body, request.method != "HEAD");
        let Some(name) = self.name(&request.path) else { return send(404, TEXT, b"there is nothing here") };
        match name {
            "ask" if request.method == "POST" => match serde_json::from_slice(&request.body) {
                Ok(asked) => self.ask(connection.begin(STREAM)?, &asked),
                Err(e) => send(400, TEXT, format!("not a request: {e}").as_bytes()),
            },
            "ask" => send(405, TEXT, b"requests are sent by POST"),
            _ if !is_get => send(405, TEXT, b"files are requested by GET"),
            "" => send(200, HTML, INDEX.replace(ENGINE[0], ENGINE[1]).as_bytes()),
            "served.json" => send(200, JSON, self.served.to_string().as_bytes()),
            _ => match FILES.iter().find(|(file, _)| *file == name) {
                Some((_, text)) if name.ends_with(".css") => send(200, SHEET, text.as_bytes()),
                Some((_, text)) => send(200, SCRIPT, text.as_bytes()),
                None => send(404, TEXT, b"there is nothing here"),
            },
        }
    }

    /// The part of a path below the secret; `None` if the secret is wrong.
    fn name<'a>(&self, path: &'a str) -> Option<&'a str> {
        let (secret, name) = path.strip_prefix('/')?.split_once('/')?;
        // The comparison takes the same time wherever the secrets differ, so its time does not reveal a correct prefix.
        let differs = |(a, b): (u8, u8)| a ^ b;
        let same = secret.len() == self.secret.len()
            && secret.bytes().zip(self.secret.bytes()).map(differs).fold(0, |all, one| all | one) == 0;
        same.then_some(name)
    }

    /// Runs a request. The answer is lines of JSON, reports of progress and then the result, followed by the values of
    /// the result's arrays as little-endian f32.
    ///
    /// # Errors
    /// The connection is closed. An error of the request itself is part of the answer.
    fn ask(&self, chunks: Chunks<'_>, request: &explore::Request) -> std::io::Result<()> {
        let (chunks, last) = (RefCell::new(chunks), Cell::new(Instant::now()));
        let tell = |what: &str, done: usize, of: usize| {
            if self.ends.load(Ordering::Relaxed) {
                return ControlFlow::Break(());
            }
            if last.get().elapsed() < PULSE {
                return ControlFlow::Continue(());
            }
            last.set(Instant::now());
            let mut chunks = chunks.borrow_mut();
            let line = format!("{}\n", json!({"progress": [what, done, of]}));
            if chunks.is_closed() || chunks.write(line.as_bytes()).is_err() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let answer = pollster::block_on(self.session.explore_async(request, &tell));
        let mut chunks = chunks.into_inner();
        match answer {
            Ok(answer) => write(&mut chunks, &answer)?,
            // The browser has closed the connection.
            Err(Error::Cancelled) => return Err(std::io::ErrorKind::Interrupted.into()),
            Err(e) => chunks.write(format!("{}\n", json!({"error": explore::message(&e)})).as_bytes())?,
        }
        chunks.end()
    }
}

fn write(chunks: &mut Chunks<'_>, answer: &Answer) -> std::io::Result<()> {
    let arrays: Value = answer.arrays.iter().map(|array| json!([array.name, array.shape])).collect();
    chunks.write(format!("{}\n", json!({"answer": answer.json, "arrays": arrays})).as_bytes())?;
    for values in answer.arrays.iter().flat_map(|array| array.values.chunks(1 << 16)) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        chunks.write(&bytes)?;
    }
    Ok(())
}
