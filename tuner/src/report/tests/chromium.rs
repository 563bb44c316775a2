//! A headless Chromium, driven by the DevTools protocol over two pipes: JSON, a message ends in a zero byte.
//! <https://chromedevtools.github.io/devtools-protocol/>

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Nothing takes longer, not on a busy machine either.
const PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page. What is asked of it and fails panics: these are tests.
pub(super) struct Browser {
    child: Child,
    input: ChildStdin,
    messages: Receiver<Value>,
    last: u64,
    session: Option<String>,
    /// What happened unasked, since it was last cleared.
    pub(super) events: Vec<Value>,
    folder: tempfile::TempDir,
}

/// The browser that the environment names, or one in the path.
fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("OPTPIPE_CHROMIUM").filter(|named| !named.is_empty()) {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];
    std::env::split_paths(&path).flat_map(|folder| names.map(|name| folder.join(name))).find(|path| path.is_file())
}

impl Browser {
    /// Starts a browser with a new profile; `None` where there is no browser and the environment does not insist on one.
    pub(super) fn start() -> Option<Browser> {
        let Some(program) = program() else {
            let required = std::env::var("OPTPIPE_REQUIRE_CHROMIUM").is_ok_and(|value| value == "1");
            assert!(!required, "OPTPIPE_REQUIRE_CHROMIUM is 1, and there is no Chromium: .ci/chromium installs it");
            eprintln!("SKIPPED: there is no Chromium to try the page in; .ci/chromium installs it");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        // The protocol's pipes are the file descriptors 3 and 4.
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null", "sh"])
            .arg(program)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (sender, messages) = channel();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut message = Vec::new();
            while output.read_until(0, &mut message).is_ok_and(|read| read > 0) {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else { break };
                if sender.send(value).is_err() {
                    break;
                }
                message.clear();
            }
        });
        let input = child.stdin.take().unwrap();
        let mut browser = Browser { child, input, messages, last: 0, session: None, events: Vec::new(), folder };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Calls a method and gives its result.
    pub(super) fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.input.write_all(format!("{message}\0").as_bytes()).unwrap();
        self.input.flush().unwrap();
        let begun = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            let message = self.messages.recv_timeout(left).unwrap_or_else(|e| panic!("{method}: {e}"));
            if message["id"] == json!(self.last) {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    /// The value of a JavaScript expression, awaited.
    pub(super) fn js(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {}", answer["exceptionDetails"]);
        answer["result"]["value"].clone()
    }

    /// Waits for the next frame to be drawn.
    pub(super) fn frame(&mut self) {
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))");
    }

    /// Shows a page at a window's size, and waits for it.
    pub(super) fn open(&mut self, page: &str, width: u32, height: u32) {
        let path = self.folder.path().join("report.html");
        std::fs::write(&path, page).unwrap();
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", size);
        self.events.clear();
        self.call("Page.navigate", json!({"url": format!("file://{}", path.display())}));
        let begun = Instant::now();
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            assert!(begun.elapsed() < PATIENCE, "the page never loads");
            self.js("document.readyState");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The mouse does something at a place of the window. Modifiers: 2 is Ctrl, 8 is Shift.
    pub(super) fn mouse(&mut self, kind: &str, at: (f64, f64), more: Value) {
        let mut event = json!({"type": kind, "x": at.0, "y": at.1, "button": "none"});
        if let (Some(event), Some(more)) = (event.as_object_mut(), more.as_object()) {
            event.extend(more.clone());
        }
        self.call("Input.dispatchMouseEvent", event);
    }

    /// Presses and releases a key.
    pub(super) fn key(&mut self, key: &str) {
        let mut event = json!({"type": "keyDown", "key": key});
        if key.len() == 1 {
            event["text"] = json!(key);
        }
        self.call("Input.dispatchKeyEvent", event);
        self.call("Input.dispatchKeyEvent", json!({"type": "keyUp", "key": key}));
    }

    /// What went wrong in the page since it was opened, and what it loaded besides itself.
    pub(super) fn complaints(&self) -> Vec<String> {
        let wrong = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown" | "Log.entryAdded" | "Runtime.consoleAPICalled") => true,
            Some("Network.requestWillBeSent") => {
                !event["params"]["request"]["url"].as_str().is_some_and(|url| url.starts_with("file://"))
            }
            _ => false,
        };
        self.events.iter().filter(wrong).map(Value::to_string).collect()
    }

    /// Keeps a picture of the window in the folder that OPTPIPE_SCREENSHOTS names, if any: to be looked at.
    pub(super) fn picture(&mut self, name: &str) {
        use base64::Engine as _;
        let Some(folder) = std::env::var_os("OPTPIPE_SCREENSHOTS") else { return };
        let picture = self.call("Page.captureScreenshot", json!({"format": "png"}))["data"].clone();
        let bytes = base64::engine::general_purpose::STANDARD.decode(picture.as_str().unwrap()).unwrap();
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends its own processes; killed, it would leave them to find out. A failed test may have broken the pipe.
        let _ = self.input.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
