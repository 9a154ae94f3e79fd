//! `actscope explore`: what it serves and to whom, answers that are the library's, and how it ends. The page itself is in
//! tests/explorer.rs.

#[path = "common/binary.rs"]
mod binary;
#[path = "common/served.rs"]
mod served;

use actscope::explore::{Answer, Array, Request};
use actscope::{Choice, Model, Session};
use binary::{run, stderr};
use serde_json::{Value, json};
use served::Served;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

const CAT: &str = "The cat sat on the mat.";

/// An answer of the server.
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

fn connect(served: &Served) -> TcpStream {
    let stream = TcpStream::connect(served.host()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// Sends these bytes and reads one answer.
fn exchange(served: &Served, bytes: &[u8]) -> Reply {
    let mut stream = connect(served);
    stream.write_all(bytes).unwrap();
    reply(&mut BufReader::new(stream), !bytes.starts_with(b"HEAD"))
}

fn reply(reader: &mut impl BufRead, with_body: bool) -> Reply {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "the connection ended in the head: {head:?}");
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let of = |name: &str| {
        let line = head.lines().find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)));
        line.map(|(_, value)| value.to_string())
    };
    let mut body = Vec::new();
    if !with_body {
    } else if let Some(length) = of("content-length") {
        body.resize(length.parse().unwrap(), 0);
        reader.read_exact(&mut body).unwrap();
    } else {
        assert_eq!(of("transfer-encoding").as_deref(), Some("chunked"));
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut piece = vec![0; size + 2];
            reader.read_exact(&mut piece).unwrap();
            assert_eq!(&piece[size..], b"\r\n");
            if size == 0 {
                break;
            }
            body.extend_from_slice(&piece[..size]);
        }
    }
    Reply { status, head, body }
}

/// A request as a browser sends it.
fn request(served: &Served, method: &str, path: &str, more: &str, body: &str) -> Reply {
    let host = served.host();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}Content-Length: {}\r\n\r\n", body.len());
    exchange(served, [head.as_bytes(), body.as_bytes()].concat().as_slice())
}

fn get(served: &Served, name: &str) -> Reply {
    request(served, "GET", &served.path(name), "", "")
}

/// Asks for an answer; what the server says of progress is left out.
fn ask(served: &Served, asked: &Value) -> Result<Answer, String> {
    let reply = request(served, "POST", &served.path("ask"), "", &asked.to_string());
    assert_eq!(reply.status, 200, "{}", reply.text());
    read(&reply.body)
}

fn read(mut bytes: &[u8]) -> Result<Answer, String> {
    loop {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        let line: Value = serde_json::from_slice(&bytes[..end]).unwrap();
        bytes = &bytes[end + 1..];
        if let Some(error) = line["error"].as_str() {
            assert!(bytes.is_empty());
            return Err(error.into());
        }
        if line.get("progress").is_some() {
            continue;
        }
        let mut values = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let list: Vec<(String, Vec<usize>)> = serde_json::from_value(line["arrays"].clone()).unwrap();
        let arrays: Vec<Array> = list
            .into_iter()
            .map(|(name, shape)| {
                let n = shape.iter().product();
                Array { name, shape, values: values.by_ref().take(n).collect() }
            })
            .collect();
        assert_eq!(arrays.iter().map(|array| array.values.len() * 4).sum::<usize>(), bytes.len());
        return Ok(Answer { json: line["answer"].clone(), arrays });
    }
}

fn natively(session: &Session, asked: &Value) -> Answer {
    let asked: Request = serde_json::from_value(asked.clone()).unwrap();
    pollster::block_on(session.explore_async(&asked, &|_, _, _| ControlFlow::Continue(()))).unwrap()
}

/// The page is there, says who computes, and its answers are those of a session, bit for bit. Seen red: with the values of arrays sent
/// with their most significant byte first, and without state.js.
#[test]
fn the_page_and_its_answers() {
    let served = Served::start(&["--device", "cpu"]);
    let index = get(&served, "");
    assert_eq!(index.status, 200);
    assert!(index.text().contains(r#"<meta name="engine" content="server">"#));
    assert!(index.head.contains("Content-Security-Policy: default-src 'none'; script-src 'self';"), "{}", index.head);
    assert!(!index.head.to_lowercase().contains("access-control"), "{}", index.head);
    // Every file that one of them names.
    let (mut files, mut seen) = (vec!["main.js".to_string(), "style.css".into()], 0);
    while let Some(file) = files.get(seen).cloned() {
        let reply = get(&served, &file);
        let kind = if file.ends_with(".css") { "text/css" } else { "text/javascript" };
        assert!(reply.status == 200 && reply.head.contains(kind) && reply.body.len() > 1000, "{file}: {}", reply.head);
        for named in reply.text().split('"').filter_map(|part| part.strip_prefix("./")) {
            if !files.iter().any(|file| file == named) {
                files.push(named.into());
            }
        }
        seen += 1;
    }
    assert!(seen >= 15, "{files:?}");
    assert!(get(&served, "draw.js").text().contains("\nexport { "));
    let said: Value = serde_json::from_str(&get(&served, "served.json").text()).unwrap();
    assert_eq!((&said["model"], &said["kind"]), (&json!("demo"), &json!("cpu")));
    assert_eq!(said["arguments"], json!(["-m", "demo", "--device", "cpu"]));
    let head = request(&served, "HEAD", &served.path(""), "", "");
    assert!(head.status == 200 && head.head.contains(&format!("Content-Length: {}\r\n", index.body.len())));

    let session = Model::open("demo").unwrap().on(Choice::Cpu).unwrap();
    let edits = json!(["blocks.2.attn.hook_z@head=4:zero"]);
    for asked in [
        json!({"do": "about"}),
        json!({"do": "tokens", "texts": [CAT]}),
        json!({"do": "look", "run": {"texts": [CAT, "A dog"]}, "taps": [{"hook": "*"}]}),
        json!({"do": "next", "run": {"texts": [CAT], "edits": edits}, "pos": 5}),
        json!({"do": "pair", "run": {"texts": [CAT]}, "query": 5, "key": 1}),
    ] {
        let (answer, want) = (ask(&served, &asked).unwrap(), natively(&session, &asked));
        assert_eq!(answer.json, want.json, "{asked}");
        assert_eq!(answer.arrays.len(), want.arrays.len(), "{asked}");
        for (got, want) in answer.arrays.iter().zip(&want.arrays) {
            assert_eq!((&got.name, &got.shape), (&want.name, &want.shape));
            let bits = |array: &Array| array.values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(got), bits(want), "{} of {asked}", got.name);
        }
    }
    // Head 4 of layer 2, of which docs/explorer.md speaks.
    let pair = ask(&served, &json!({"do": "pair", "run": {"texts": [CAT]}, "query": 5, "key": 1})).unwrap();
    assert_eq!(format!("{:.4}", pair.arrays[0].values[2 * 5 + 4]), "0.2846");

    let refused = ask(&served, &json!({"do": "look", "run": {"texts": [CAT]}, "taps": [{"hook": "blocks.9.hook_z"}]}));
    assert!(refused.unwrap_err().contains("blocks.9.hook_z"));
    let short = json!({"texts": [CAT], "source": "A dog"});
    let sweep = json!({"do": "sweep", "run": short, "site": "resid_pre", "axes": ["layer", "pos"], "metric": "logprob", "pos": 6});
    assert!(ask(&served, &sweep).unwrap_err().contains("the text has 7 tokens, the second text 2"));
    let check = |edits: &[&str]| ask(&served, &json!({"do": "check", "run": {"texts": [CAT], "edits": edits}}));
    assert_eq!(check(&["z.2@head=4:zero"]).unwrap().json, json!({"sites": [["blocks.2.attn.hook_z"]]}));
    for (edit, said) in [("z.2@head=99:zero", "head 99 of 5"), ("z.2@pos=7:zero", "7"), ("z.2:fly", "\"fly\"")] {
        let error = check(&["z.1:zero", edit]).unwrap_err();
        assert!(error.contains(said), "{edit}: {error}");
    }
}

/// Only who knows the secret, from a page of this server. Seen red: without the check of Host, and without that of Origin.
#[test]
fn nobody_else_is_answered() {
    let served = Served::start(&["--device", "cpu"]);
    let (host, page) = (served.host().to_string(), served.path(""));
    let secret = page.trim_matches('/');
    assert!(secret.len() == 32 && secret.bytes().all(|byte| byte.is_ascii_hexdigit()), "{secret}");
    let other: String = secret.chars().map(|c| if c == '0' { '1' } else { '0' }).collect();
    let about = r#"{"do":"about"}"#;
    for path in
        ["/".to_string(), "/ask".into(), format!("/{other}/"), format!("/{}/", &secret[1..]), format!("/{secret}0/")]
    {
        assert_eq!(request(&served, "GET", &path, "", "").status, 404, "{path}");
        assert_eq!(request(&served, "POST", &format!("{path}ask"), "", about).status, 404, "{path}");
    }
    for name in ["nothing.js", "../ask", "worker.js", "%61pp.js", "/app.js"] {
        assert_eq!(get(&served, name).status, 404, "{name}");
    }
    // A page whose name was made to lead here has that name in Host, and may not read an answer.
    let port = host.split(':').nth(1).unwrap();
    for name in ["evil.example".to_string(), format!("evil.example:{port}"), "127.0.0.1".into(), format!("{host}0")] {
        let reply = exchange(&served, format!("GET {page} HTTP/1.1\r\nHost: {name}\r\n\r\n").as_bytes());
        assert_eq!(reply.status, 403, "{name}");
    }
    let local = exchange(&served, format!("GET {page} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n").as_bytes());
    assert_eq!(local.status, 200);
    for (origin, status) in [(format!("http://{host}"), 200), ("http://evil.example".into(), 403), ("null".into(), 403)]
    {
        let reply = request(&served, "POST", &served.path("ask"), &format!("Origin: {origin}\r\n"), about);
        assert_eq!(reply.status, status, "{origin}");
    }
    // What no browser sends.
    let ask = served.path("ask");
    let hosted = format!("Host: {host}\r\n");
    let cases = [
        (format!("GET {page} HTTP/1.1\r\n\r\n"), 400),
        (format!("GET {page} HTTP/1.1\r\n{hosted}{hosted}\r\n"), 400),
        ("\x16\x03\x01 hello\r\n\r\n".to_string(), 400),
        (format!("GET {ask} HTTP/1.1\r\n{hosted}\r\n"), 405),
        (format!("DELETE {page}app.js HTTP/1.1\r\n{hosted}\r\n"), 405),
        (format!("POST {ask} HTTP/1.1\r\n{hosted}Content-Length: 3\r\n\r\n{{}}\n"), 400),
        (format!("POST {ask} HTTP/1.1\r\n{hosted}Content-Length: -1\r\n\r\n"), 400),
        (format!("POST {ask} HTTP/1.1\r\n{hosted}Content-Length: 1\r\nContent-Length: 2\r\n\r\n"), 400),
        (format!("POST {ask} HTTP/1.1\r\n{hosted}Content-Length: 99999999\r\n\r\n"), 413),
        (format!("POST {ask} HTTP/1.1\r\n{hosted}Transfer-Encoding: chunked\r\n\r\n"), 411),
        (format!("GET {page} HTTP/1.1\r\n{hosted}X: {}", "x".repeat(40_000)), 431),
    ];
    for (bytes, status) in cases {
        assert_eq!(exchange(&served, bytes.as_bytes()).status, status, "{:.100}", bytes);
    }
    // Several requests on one connection, the second sent before the first is answered.
    let mut stream = connect(&served);
    let one = format!("GET {page}app.js HTTP/1.1\r\n{hosted}\r\n");
    stream.write_all(one.repeat(2).as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let [first, second] = [reply(&mut reader, true), reply(&mut reader, true)];
    assert!(first.status == 200 && first.body == second.body);
}

/// A sweep of thousands of runs, each of a text of many tokens: on the slow device it takes many minutes.
#[cfg(unix)]
fn long(served: &Served) -> TcpStream {
    let run = json!({"texts": [" cat".repeat(250)]});
    let sweep = json!({"do": "sweep", "run": run, "site": "z", "axes": ["layer", "head", "pos"], "metric": "logprob", "pos": 249});
    let body = sweep.to_string();
    let mut stream = connect(served);
    let (ask, host) = (served.path("ask"), served.host());
    write!(stream, "POST {ask} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    stream
}

/// The time that a process has computed, in the system's ticks.
#[cfg(target_os = "linux")]
fn ticks(served: &Served) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", served.process.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    [fields[11], fields[12]].map(|field| field.parse::<u64>().unwrap()).iter().sum()
}

/// A page that leaves ends its run: the program soon computes no more, though the sweep would take many minutes. Only Linux says so easily
/// how long a process has computed. Seen red: with a connection that stays open.
#[cfg(target_os = "linux")]
#[test]
fn a_run_that_nobody_waits_for_ends() {
    let served = Served::start(&["--device", "reference"]);
    let mut reader = BufReader::new(long(&served));
    let mut line = String::new();
    while !line.contains("progress") {
        line.clear();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the run ended");
    }
    drop(reader);
    ask(&served, &json!({"do": "next", "run": {"texts": ["A"]}, "pos": 0})).unwrap();
    let start = Instant::now();
    loop {
        let before = ticks(&served);
        std::thread::sleep(Duration::from_millis(500));
        if ticks(&served) == before {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "the run goes on");
    }
}

/// The browser is opened at the printed address by the desktop's own program, which asks the variable BROWSER or the desktop; with
/// `--no-open` it is not; and where there is none, a note says so and the explorer is served all the same.
#[cfg(target_os = "linux")]
#[test]
fn the_browser_opens_by_itself() {
    use std::os::unix::fs::PermissionsExt;
    let desktop = tempfile::tempdir().unwrap();
    let (opener, asked) = (desktop.path().join("xdg-open"), desktop.path().join("asked"));
    std::fs::write(&opener, format!("#!/bin/sh\nprintf '%s\\n' \"$@\" >> '{}'\n", asked.display())).unwrap();
    std::fs::set_permissions(&opener, std::fs::Permissions::from_mode(0o755)).unwrap();
    let nothing = tempfile::tempdir().unwrap();
    for (path, no_open) in [(desktop.path(), false), (desktop.path(), true), (nothing.path(), false)] {
        let mut command = Served::command();
        command.args(["--device", "cpu"]).args(no_open.then_some("--no-open")).env("PATH", path);
        let mut served = Served::run(command);
        // It says that it serves once the browser was asked for.
        let mut said = String::new();
        let mut lines = BufReader::new(served.process.stderr.take().unwrap());
        while !said.contains("until Ctrl-C") {
            assert_ne!(lines.read_line(&mut said).unwrap(), 0, "{said}");
        }
        assert_eq!(said.contains("no browser could be opened"), path == nothing.path(), "{said}");
        if path == desktop.path() && !no_open {
            let start = Instant::now();
            let opened = loop {
                match std::fs::read_to_string(&asked) {
                    Ok(written) if written.ends_with('\n') => break written,
                    _ => assert!(start.elapsed() < Duration::from_secs(20), "no browser was opened"),
                }
                std::thread::sleep(Duration::from_millis(10));
            };
            assert_eq!(opened.trim_end(), served.page);
            std::fs::remove_file(&asked).unwrap();
        }
        assert_eq!(get(&served, "").status, 200);
        assert!(!asked.exists(), "it is opened once, and not where it was told not to");
    }
}

/// The address alone is on stdout, as JSON if asked; a port that is taken is exit code 1 with what to do; Ctrl-C ends it at once, within a
/// run too. Seen red: without `follow`, after which it ends with 0.
#[test]
fn how_it_begins_and_ends() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = run(["explore", "--no-open", "--device", "cpu", "--port", &port]);
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains(&format!("port {port} of 127.0.0.1 cannot be served")) && said.contains("--port"), "{said}");
    assert!(output.stdout.is_empty());
    drop(taken);
    assert_eq!(run(["explore", "--port", "65536"]).status.code(), Some(2));
    assert_eq!(run(["explore", "--no-open", "-m", "/no/such/folder"]).status.code(), Some(1));

    let served = Served::start(&["--device", "cpu", "--port", &port, "-q", "--json"]);
    let said: Value = serde_json::from_str(&served.page).unwrap();
    assert!(said["address"].as_str().unwrap().starts_with(&format!("http://127.0.0.1:{port}/")), "{said}");
    drop(served);

    #[cfg(unix)]
    for busy in [false, true] {
        use std::io::Read;
        use std::os::unix::process::ExitStatusExt;
        let mut served = Served::start(&["--device", if busy { "reference" } else { "cpu" }]);
        let running = busy.then(|| {
            let mut reader = BufReader::new(long(&served));
            reader.read_line(&mut String::new()).unwrap();
            reader
        });
        // An idle connection does not hold the program.
        let idle = connect(&served);
        let start = Instant::now();
        let killed = std::process::Command::new("kill").args(["-INT", &served.process.id().to_string()]).status();
        assert!(killed.unwrap().success());
        let status = served.process.wait().unwrap();
        assert_eq!(status.signal(), Some(2), "{status}");
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        let mut rest = String::new();
        served.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "stdout has the address alone");
        drop((running, idle));
    }
}
