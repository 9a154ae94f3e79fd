//! A headless Chromium for the tests of the report and of the explorer: real clicks and keys, its errors and warnings,
//! and its network requests. It uses the part of the DevTools protocol that these tests need, over one web socket.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(unreachable_pub, reason = "a module of tests has no public surface")]

use serde_json::{Value, json};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tungstenite::{Message, WebSocket};

/// How long anything may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page, closed when dropped.
pub struct Browser {
    process: Child,
    socket: WebSocket<TcpStream>,
    session: String,
    calls: u64,
    /// Every event that the browser sent.
    events: Vec<Value>,
    /// The beginning of addresses that the page may ask for.
    allowed: Option<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts one without a GPU, 1200 x 900, in light colours.
    pub fn start() -> Browser {
        Browser::start_with(&["--disable-gpu"])
    }

    /// Starts one with WebGPU on Chromium's own software adapter.
    pub fn start_with_webgpu() -> Browser {
        Browser::start_with(&[
            "--enable-unsafe-webgpu",
            "--use-webgpu-adapter=swiftshader",
            "--enable-features=Vulkan",
            "--disable-gpu-watchdog",
        ])
    }

    fn start_with(more: &[&str]) -> Browser {
        let profile = tempfile::tempdir().unwrap();
        let mut process = Command::new(chromium())
            // Without a sandbox, since root has none; it opens nothing but our own pages.
            .args(["--headless", "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-sync"])
            .args(more)
            .args(["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"])
            .args(["--remote-debugging-port=0", "--window-size=1200,900", "--force-device-scale-factor=1"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It writes its port and the path of its socket there once it listens.
        let (file, start) = (profile.path().join("DevToolsActivePort"), Instant::now());
        let (port, path) = loop {
            let written = std::fs::read_to_string(&file).unwrap_or_default();
            if let Some((port, path)) = written.split_once('\n') {
                break (port.to_string(), path.trim().to_string());
            }
            assert!(process.try_wait().unwrap().is_none(), "the browser ended at once");
            assert!(start.elapsed() < PATIENCE, "the browser does not come up");
            std::thread::sleep(Duration::from_millis(20));
        };
        let stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
        stream.set_read_timeout(Some(10 * PATIENCE)).unwrap();
        let (socket, _) = tungstenite::client(format!("ws://127.0.0.1:{port}{path}"), stream).unwrap();
        let (session, events) = (String::new(), Vec::new());
        let mut browser = Browser { process, socket, session, calls: 0, events, allowed: None, _profile: profile };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].as_str().unwrap().into();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.scheme("light");
        browser
    }

    /// Opens a report and waits until it is drawn.
    pub fn open(&mut self, page: &Path) {
        self.open_address(&format!("file://{}", page.display()));
    }

    /// Opens a page at an address and waits until it is drawn.
    pub fn open_address(&mut self, address: &str) {
        // An address that differs in its fragment alone would only tell the page that is open.
        self.call("Page.navigate", json!({"url": "about:blank"}));
        self.events.clear();
        self.call("Page.navigate", json!({"url": address}));
        self.wait_until_drawn();
    }

    /// Waits until the page says that it shows what it was asked for.
    pub fn wait_until_drawn(&mut self) {
        self.wait_for("document.documentElement?.dataset.ready === '' && document.readyState === 'complete'");
    }

    /// From now on requests for addresses that begin like this are no complaints.
    pub fn allow(&mut self, beginning: &str) {
        self.allowed = Some(beginning.into());
    }

    /// Chooses files in a file input.
    pub fn choose_files(&mut self, selector: &str, files: &[PathBuf]) {
        let root = self.call("DOM.getDocument", json!({}))["root"]["nodeId"].clone();
        let node = self.call("DOM.querySelector", json!({"nodeId": root, "selector": selector}))["nodeId"].clone();
        self.call("DOM.setFileInputFiles", json!({"nodeId": node, "files": files}));
    }

    /// The window's size in pixels.
    pub fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size);
        self.settle();
    }

    /// A picture of the window, as base64 of a PNG file.
    pub fn screenshot(&mut self) -> String {
        self.settle();
        self.call("Page.captureScreenshot", json!({"format": "png"}))["data"].as_str().unwrap().into()
    }

    /// The value of an expression in the page.
    pub fn eval(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", asked);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// The text of the first element that `selector` names.
    pub fn text(&mut self, selector: &str) -> String {
        self.eval(&format!("document.querySelector({}).textContent", json!(selector))).as_str().unwrap().into()
    }

    /// The texts of all elements that `selector` names.
    pub fn texts(&mut self, selector: &str) -> Vec<String> {
        let all = format!("[...document.querySelectorAll({})].map((e) => e.textContent)", json!(selector));
        serde_json::from_value(self.eval(&all)).unwrap()
    }

    /// Waits until an expression is true.
    pub fn wait_for(&mut self, expression: &str) {
        let start = Instant::now();
        while self.eval(&format!("Boolean({expression})")) != true {
            assert!(start.elapsed() < self.patience(), "never true: {expression}; {:?}", self.complaints());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until an expression is true, however long that takes, as long as the value of `progress` changes.
    pub fn wait_through(&mut self, expression: &str, progress: &str) {
        let (mut last, mut changed) = (self.eval(progress), Instant::now());
        while self.eval(&format!("Boolean({expression})")) != true {
            let now = self.eval(progress);
            if now != last {
                (last, changed) = (now, Instant::now());
            }
            assert!(changed.elapsed() < self.patience(), "{expression} is not true, and {progress} stays {last}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs on WebGPU in software take a while.
    fn patience(&self) -> Duration {
        if self.allowed.is_some() { 10 * PATIENCE } else { PATIENCE }
    }

    /// Presses the mouse in the middle of an element, wherever it has scrolled to.
    pub fn click(&mut self, selector: &str) {
        let (x, y) = self.place(selector, 0.5, 0.5);
        self.click_at(x, y);
    }

    /// Presses the mouse at a place in the window.
    pub fn click_at(&mut self, x: f64, y: f64) {
        self.click_with(x, y, 0);
    }

    /// [`Browser::click`] with Shift held.
    pub fn shift_click(&mut self, selector: &str) {
        let (x, y) = self.place(selector, 0.5, 0.5);
        self.click_with(x, y, 8);
    }

    fn click_with(&mut self, x: f64, y: f64, modifiers: u32) {
        self.point(x, y);
        for kind in ["mousePressed", "mouseReleased"] {
            self.call(
                "Input.dispatchMouseEvent",
                json!({"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1, "modifiers": modifiers}),
            );
        }
        self.settle();
    }

    /// A place within an element, by shares of its width and height, in the window, once it is scrolled there.
    pub fn place(&mut self, selector: &str, right: f64, down: f64) -> (f64, f64) {
        let script = format!(
            "(() => {{ const e = document.querySelector({}); e.scrollIntoView({{ block: 'center' }}); \
             const b = e.getBoundingClientRect(); return [b.left + b.width * {right}, b.top + b.height * {down}]; }})()",
            json!(selector)
        );
        serde_json::from_value(self.eval(&script)).unwrap_or_else(|_| panic!("no {selector}"))
    }

    /// Moves the mouse there.
    pub fn point(&mut self, x: f64, y: f64) {
        self.call("Input.dispatchMouseEvent", json!({"type": "mouseMoved", "x": x, "y": y}));
        self.settle();
    }

    /// Presses a key, named as DOM events name it.
    pub fn press(&mut self, key: &str) {
        let code = match key {
            "Tab" => 9,
            "Escape" => 27,
            "0" => 48,
            "Enter" => 13,
            "End" => 35,
            "Home" => 36,
            "ArrowLeft" => 37,
            "ArrowUp" => 38,
            "ArrowRight" => 39,
            "ArrowDown" => 40,
            _ => panic!("which key is {key}?"),
        };
        let mut down = json!({"type": "rawKeyDown", "key": key, "code": key, "windowsVirtualKeyCode": code});
        if key == "Enter" || key == "0" {
            let text = if key == "Enter" { "\r" } else { key };
            down = json!({"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
        }
        self.call("Input.dispatchKeyEvent", down);
        self.call(
            "Input.dispatchKeyEvent",
            json!({"type": "keyUp", "key": key, "code": key, "windowsVirtualKeyCode": code}),
        );
        self.settle();
    }

    /// Writes into the element that has the focus, in place of what is there.
    pub fn write(&mut self, text: &str) {
        self.eval("document.activeElement.select()");
        self.call("Input.insertText", json!({"text": text}));
        self.settle();
    }

    /// Takes the network away from the page, the loopback too.
    pub fn go_offline(&mut self) {
        let none = json!({"offline": true, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0});
        self.call("Network.emulateNetworkConditions", none);
    }

    /// Ends the browser's GPU process, with which every device of a page is lost.
    pub fn crash_gpu(&mut self) {
        self.call("Browser.crashGpuProcess", json!({}));
    }

    /// `light` or `dark`.
    pub fn scheme(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// Two frames, so that what was asked for is drawn.
    fn settle(&mut self) {
        self.eval("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))).then(() => null)");
    }

    /// What was complained of so far was provoked.
    pub fn forget_complaints(&mut self) {
        self.events.clear();
    }

    /// Errors, warnings and policy violations since the page was opened, and every address that it requested besides
    /// its own file.
    pub fn complaints(&mut self) -> Vec<String> {
        let complaint = |event: &Value| {
            let params = &event["params"];
            match event["method"].as_str()? {
                "Runtime.exceptionThrown" => Some(params["exceptionDetails"].to_string()),
                "Runtime.consoleAPICalled" => Some(format!("console: {}", params["args"])),
                "Log.entryAdded" => Some(params["entry"].to_string()),
                "Network.requestWillBeSent" => {
                    let url = params["request"]["url"].as_str()?;
                    let own = params["type"] == "Document" && url.starts_with("file:") || url.starts_with("data:");
                    let allowed = self.allowed.as_ref().is_some_and(|beginning| url.starts_with(beginning));
                    (!own && !allowed).then(|| format!("request: {url}"))
                }
                _ => None,
            }
        };
        self.events.iter().filter_map(complaint).collect()
    }

    /// Sends a command to the browser, and stores the events that arrive before the answer.
    fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut call = json!({"id": self.calls, "method": method, "params": params});
        if !self.session.is_empty() {
            call["sessionId"] = json!(self.session);
        }
        self.socket.send(Message::text(call.to_string())).unwrap();
        loop {
            let text = match self.socket.read() {
                Ok(Message::Text(text)) => text,
                Ok(_) => continue,
                // A signal to this process, such as one that stops it for a while.
                Err(tungstenite::Error::Io(e)) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => panic!("{method}: {e}"),
            };
            let message: Value = serde_json::from_str(&text).unwrap();
            if message["id"] == self.calls {
                assert!(message.get("error").is_none(), "{call}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Debian's Chromium or another one. tools/check.sh installs it.
fn chromium() -> PathBuf {
    if let Some(named) = std::env::var_os("ACTSCOPE_CHROMIUM") {
        return named.into();
    }
    const NAMES: [&str; 5] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let places = NAMES.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    places.chain(["/Applications/Google Chrome.app/Contents/MacOS/Google Chrome".into()]).find(|path| path.is_file()).expect(
        "there is no Chromium on the PATH; install Debian's package `chromium`, or name one in the environment variable \
         ACTSCOPE_CHROMIUM",
    )
}
