//! The examples of `examples/`, each run as a person would run it: `up`, use it, `down`.
//!
//! Every test has a copy of its example and a `LOCALD_HOME` of its own, so nothing is written into the repository and
//! tests do not see each other. Each ends with the proof that no process of it is left.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use locald_utils::process::{self, ProcessId};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Long enough for a machine that is busy with something else.
const LIMIT: Duration = Duration::from_secs(60);

/// An example in a directory and a home of its own.
struct Example {
    dir: TempDir,
    home: TempDir,
    /// Words before each command, for what root may not do.
    by: &'static [&'static str],
}

impl Example {
    fn copy(name: &str) -> Self {
        // In /tmp, because socket paths are short; macOS has its temporary directories far down.
        let dir = tempfile::Builder::new().prefix("locald-example-").tempdir_in("/tmp").expect("a directory");
        let home = tempfile::Builder::new().prefix("locald-home-").tempdir_in("/tmp").expect("a directory");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        for entry in fs::read_dir(&source).expect("the example").map(|entry| entry.expect("an entry")) {
            // Its directories hold what an earlier run has left; the example itself is flat.
            if entry.file_type().expect("a type").is_file() {
                fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copies");
            }
        }
        Self { dir, home, by: &[] }
    }

    /// Lets somebody who is not root run it.
    fn run_by_nobody(mut self) -> Self {
        if nix::unistd::geteuid().is_root() {
            let nobody = Some(65534);
            for path in [self.dir.path(), self.home.path()] {
                std::os::unix::fs::chown(path, nobody, nobody).expect("given away");
                for entry in fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry")) {
                    std::os::unix::fs::chown(entry.path(), nobody, nobody).expect("given away");
                }
            }
            self.by = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        }
        self
    }

    fn locald(&self, args: &[&str]) -> Command {
        let mut words = self.by.iter().chain(&[env!("CARGO_BIN_EXE_locald")]);
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .args(args)
            .current_dir(self.dir.path())
            .env("LOCALD_HOME", self.home.path())
            .stdin(Stdio::null());
        command.env_remove("LOCALD_FILE");
        command
    }

    /// Runs a verb that shall succeed, and returns what it prints.
    fn run(&self, args: &[&str]) -> String {
        let output = self.locald(args).output().expect("runs");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "locald {args:?}: {}\n{stdout}\n{stderr}\n--- the daemon's log\n{}",
            output.status,
            fs::read_to_string(self.home.path().join("daemon.log")).unwrap_or_default()
        );
        stdout
    }

    /// Runs a verb that shall succeed, with `--json`.
    fn json(&self, args: &[&str]) -> Value {
        let text = self.run(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("locald {args:?}: {error} in {text}"))
    }

    /// A service as `status --wide` shows it.
    fn service(&self, name: &str) -> Value {
        let status = self.json(&["status", "--wide"]);
        let services = status["services"].as_array().expect("services");
        services.iter().find(|service| service["name"] == name).unwrap_or_else(|| panic!("no {name}: {status}")).clone()
    }

    /// Every process that hangs below the daemon: the shims and all their services.
    fn below_daemon(&self) -> BTreeSet<ProcessId> {
        let daemon = self.json(&["daemon", "status"])["daemon"]["pid"].as_i64().expect("a daemon");
        let daemon = i32::try_from(daemon).expect("a pid");
        process::descendants(daemon).expect("the process table").iter().map(|process| process.id).collect()
    }

    /// Ends the daemon and says which processes still bear this home in their environment.
    fn leftovers(&self) -> Vec<String> {
        self.run(&["daemon", "stop"]);
        let home = self.home.path().to_str().expect("UTF-8");
        let ours =
            |id: &ProcessId| process::marker(id.pid, "LOCALD_HOME").is_some_and(|value| value == home) && id.is_alive();
        let table = process::all().expect("the process table");
        let left = table.iter().map(|process| process.id).filter(ours);
        left.map(|id| format!("{} {}", id.pid, process::command(id.pid).unwrap_or_default())).collect()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // Only a test that failed has anything left to end.
        let _ = self.locald(&["daemon", "stop", "--all"]).output();
    }
}

/// Waits until `look` finds something.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends an HTTP request and returns the status code and the JSON of the answer.
fn http(port: u16, method: &str, path: &str, body: &str) -> (u16, Value) {
    let (status, text) = ask(port, method, path, body);
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{status}, and {error}: {text}")))
}

/// Sends an HTTP request and returns the status code and the answer. By version 1.0, in which answers come in one piece.
fn ask(port: u16, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer of HTTP: {answer}"));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.unwrap_or_else(|| panic!("no status: {head}")), body.to_owned())
}

#[test]
fn hello_runs_and_ends() {
    let example = Example::copy("hello");
    assert_eq!(example.json(&["check"])["services"], json!(["clock"]));
    let up = example.json(&["up"]);
    assert_eq!((&up["ok"], &up["services"][0]["state"]), (&json!(true), &json!("ready")), "{up}");

    let log = until("the clock's first line", || Some(example.run(&["logs"])).filter(|log| !log.is_empty()));
    assert!(log.contains("it is "), "{log}");

    // The shell and the `sleep` it waits for.
    until("two processes", || (example.service("clock")["usage"]["processes"] == 2).then_some(()));
    let before = example.below_daemon();
    let down = example.json(&["down"]);
    assert_eq!(down["ok"], true, "{down}");
    assert_eq!((&down["totals"]["services"], &down["totals"]["left"]), (&json!(1), &json!(0)), "{down}");
    assert_eq!(down["totals"]["killed"], 0, "{down}");
    assert_eq!(example.json(&["status"])["health"], "idle");
    until("the shim's end", || before.iter().all(|process| !process.is_alive()).then_some(()));
    assert_eq!(example.leftovers(), Vec::<String>::new());
}

/// Used to answer at once, with nothing, and then to wait for its own client to leave: 5 s, and exit code 124.
#[test]
fn daemon_stop_all_ends_every_service_first() {
    let example = Example::copy("hello");
    example.run(&["up"]);
    until("two processes", || (example.service("clock")["usage"]["processes"] == 2).then_some(()));
    let stop = example.json(&["daemon", "stop", "--all"]);
    assert_eq!(stop["ok"], true, "{stop}");
    assert_eq!(stop["totals"], json!({"services": 1, "processes": 2, "killed": 0, "left": 0}), "{stop}");
    assert_eq!(example.leftovers(), Vec::<String>::new());
}

#[test]
fn the_shop_takes_an_order_over_http_and_a_worker_carries_it_out() {
    let example = Example::copy("shop");
    let up = example.json(&["up", "--timeout", "60s"]);
    assert_eq!(up["ok"], true, "{up}");
    assert_eq!(example.service("seed")["state"], "completed");
    let port = |service| u16::try_from(example.service(service)["port"].as_u64().expect("a port")).expect("a port");
    let (api, redis) = (port("api"), port("redis"));

    assert_eq!(http(api, "GET", "/stock", ""), (200, json!({"apple": 10, "pear": 3, "plum": 0})));
    let order = |body| {
        let (status, made) = http(api, "POST", "/orders", body);
        assert_eq!((status, &made["state"]), (201, &json!("queued")));
        let path = format!("/orders/{}", made["id"]);
        until("the order's end", || {
            let (_, order) = http(api, "GET", &path, "");
            (order["state"] != "queued").then_some(order)
        })
    };
    let done = order(r#"{"item": "apple", "count": 2}"#);
    assert_eq!(done, json!({"item": "apple", "count": 2, "state": "done"}));
    assert_eq!(order(r#"{"item": "pear", "count": 4}"#)["state"], "refused");
    assert_eq!(http(api, "GET", "/stock", "").1, json!({"apple": 8, "pear": 3, "plum": 0}));
    assert_eq!(http(api, "GET", "/orders/99", "").0, 404);
    assert_eq!(http(api, "POST", "/orders", "an apple").0, 400);

    // A second `up` leaves everything as it is.
    let leader = example.service("redis")["pid"].clone();
    let again = example.json(&["up"]);
    let services = again["services"].as_array().expect("services");
    assert!(services.iter().all(|service| service["unchanged"] == true), "{again}");
    assert_eq!(example.service("redis")["pid"], leader);

    let before = example.below_daemon();
    let down = example.json(&["down"]);
    assert_eq!(down["ok"], true, "{down}");
    // The job had completed, so it is none of those that were stopped.
    assert_eq!(down["totals"], json!({"services": 3, "processes": 3, "killed": 0, "left": 0}), "{down}");
    let log = example.run(&["logs", "worker"]);
    assert!(log.contains("order 1: 2 apple, done") && log.contains("the worker has left"), "{log}");
    for port in [api, redis] {
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "port {port} is still open");
    }
    until("the shims' end", || before.iter().all(|process| !process.is_alive()).then_some(()));

    // The database kept its data, and the job that fills it changes nothing the second time.
    example.run(&["up"]);
    assert_eq!(port("api"), api, "an assigned port is kept");
    assert_eq!(http(api, "GET", "/stock", "").1, json!({"apple": 8, "pear": 3, "plum": 0}));
    assert_eq!(http(api, "GET", "/orders/1", "").1, done);
    example.run(&["down"]);
    assert_eq!(example.leftovers(), Vec::<String>::new());
}

#[test]
fn stubborn_services_all_end() {
    let example = Example::copy("stubborn");
    example.run(&["up"]);
    for service in ["deaf", "abandoner", "runaway", "daemonizer"] {
        until(service, || (example.service(service)["usage"]["processes"] == 2).then_some(()));
    }
    let before = example.below_daemon();
    let down = example.json(&["down"]);
    assert_eq!(down["ok"], true, "{down}");
    // Two that are deaf, and the child that was left behind.
    assert_eq!(down["totals"], json!({"services": 4, "processes": 8, "killed": 3, "left": 0}), "{down}");
    let ended = |name: &str| {
        let services = down["services"].as_array().expect("services");
        services.iter().find(|service| service["name"] == name).expect("the service")["ended"].clone()
    };
    let deaf = ended("deaf");
    assert_eq!((&deaf["signal"], &deaf["stopped"], &deaf["forced"]), (&json!("SIGKILL"), &json!(true), &json!(true)));
    assert!(deaf["stop_ms"].as_u64().expect("a number") >= 500, "killed before its grace period was over: {deaf}");
    let abandoner = ended("abandoner");
    assert_eq!((&abandoner["exit_code"], &abandoner["killed"]), (&json!(0), &json!(1)), "{abandoner}");
    for service in ["runaway", "daemonizer"] {
        let ended = ended(service);
        assert_eq!((&ended["killed"], &ended["strays"][0]["command"]), (&json!(0), &json!("sleep 600")), "{ended}");
    }
    // The grandchild of `daemonizer` bears no marker, so it is asked after by number and start time.
    until("the shims' end", || before.iter().all(|process| !process.is_alive()).then_some(()));
    assert_eq!(example.leftovers(), Vec::<String>::new());
}

/// PostgreSQL, nginx, Node and Python, each as its package is, with jobs between them.
#[test]
fn the_board_keeps_messages_over_a_killed_database_and_an_edited_server() {
    let example = Example::copy("board").run_by_nobody();
    let up = example.json(&["up", "--timeout", "120s"]);
    assert_eq!(up["ok"], true, "{up}");
    let port = |service| u16::try_from(example.service(service)["port"].as_u64().expect("a port")).expect("a port");
    let web = port("web");
    let post = |text| http(web, "POST", "/api/messages", text);
    let messages = || {
        let (status, messages) = ask(web, "GET", "/api/messages", "");
        (status == 200).then(|| serde_json::from_str::<Vec<Value>>(&messages).expect("a list").len())
    };
    assert_eq!(post("It's $x; 'quoted'"), (201, json!({"id": 1})));
    assert_eq!(http(web, "GET", "/api/messages", "").1[0]["body"], "It's $x; 'quoted'");
    assert_eq!(http(web, "GET", "/stats", ""), (200, json!({"messages": 1})));

    // The processes of PostgreSQL are many, and all of one run; killed, it is there again, with all it had.
    let db = example.service("db");
    assert!(db["usage"]["processes"].as_u64().is_some_and(|processes| processes > 3), "{db}");
    let leader = i32::try_from(db["pid"].as_i64().expect("a pid")).expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(leader), nix::sys::signal::Signal::SIGKILL).expect("killed");
    until("another run of the database", || {
        let db = example.service("db");
        (db["state"] == "ready" && db["run"] == 2).then_some(())
    });
    assert_eq!(until("the messages", messages), 1);

    // A saved file runs its server again and nothing else; those beside it find it where it was.
    fs::write(example.dir.path().join("more.js"), "// nothing yet\n").expect("written");
    until("another run of the server", || {
        let api = example.service("api");
        (api["state"] == "ready" && api["run"].as_u64() >= Some(2)).then_some(())
    });
    assert_eq!(until("the messages", messages), 1);
    assert_eq!(http(web, "GET", "/stats", "").1, json!({"messages": 1}));

    // What is made of a text is made anew when that has changed; the schema is not touched by it.
    fs::write(example.dir.path().join("page.txt"), "Another board\n\nIt says more.\n").expect("written");
    let again = example.json(&["up", "--timeout", "120s"]);
    assert_eq!(again["ok"], true, "{again}");
    assert_eq!((&example.service("page")["run"], &example.service("web")["run"]), (&json!(2), &json!(1)));

    let before = example.below_daemon();
    let down = example.json(&["down"]);
    assert_eq!(
        (&down["ok"], &down["totals"]["services"], &down["totals"]["left"]),
        (&json!(true), &json!(4), &json!(0))
    );
    until("the shims' end", || before.iter().all(|process| !process.is_alive()).then_some(()));

    // Of what was there, nothing is lost, and nothing is made again that is made already.
    assert_eq!(example.json(&["up", "--timeout", "120s"])["ok"], true);
    assert_eq!(until("the messages", messages), 1);
    example.run(&["down"]);
    assert_eq!(example.leftovers(), Vec::<String>::new());
}
