//! The harness of the end-to-end tests: a place of its own for every test, and the proof that nothing is left of it.
//!
//! A [`Site`] has a home, a project and the programs; [`Site::locald`] runs them as a person would. Whatever a test awaits
//! it awaits with [`Site::eventually`], which gives up after [`DEADLINE`]. A site that is dropped ends what it started
//! and looks through the process table: a process that is left fails the test, by name. When a test fails, the daemon's
//! log, the logs of the services and the processes are shown.

mod call;
#[cfg(target_os = "linux")]
mod frozen;
mod table;
mod terminal;

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use locald_utils::process::cgroup::Hierarchy;
use locald_utils::process::{self, ProcessId};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) use call::{Call, Ran, Running};
#[cfg(target_os = "linux")]
pub(crate) use frozen::Frozen;
pub(crate) use table::Seen;
pub(crate) use terminal::Terminal;

/// 40 s: what takes milliseconds on a quiet machine has been seen to take seconds on a loaded one.
pub(crate) const DEADLINE: Duration = Duration::from_secs(40);

/// 10 ms: how often a condition without an event is looked at.
const PAUSE: Duration = Duration::from_millis(10);

/// A home and a project of a test's own.
pub(crate) struct Site {
    root: TempDir,
    /// Processes of the site that the table cannot tell by their environment, directory or command line.
    known: RefCell<Vec<ProcessId>>,
    /// What runs locald's programs here: words before a command, such as those that make somebody else of them.
    by: Vec<OsString>,
    /// The command line's program.
    program: PathBuf,
}

impl Site {
    /// A site whose project has this `locald.toml`.
    ///
    /// The name of a test's directory is short, because a socket's path is.
    pub(crate) fn new(toml: &str) -> Self {
        let root = tempfile::Builder::new().prefix("lt-").tempdir_in("/tmp").expect("a directory");
        let program = env!("CARGO_BIN_EXE_locald").into();
        let site = Self { root, known: RefCell::default(), by: Vec::new(), program };
        fs::create_dir_all(site.project()).expect("a project directory");
        fs::write(site.events(), "").expect("a file for events");
        site.write("locald.toml", toml);
        site
    }

    /// Has locald be run by another program from now on: `by` are the words before its own.
    pub(crate) fn run_by(&mut self, by: impl IntoIterator<Item = impl Into<OsString>>) {
        self.by = by.into_iter().map(Into::into).collect();
    }

    /// Installs locald of another version in a directory of the site: the same programs, in which the version's bytes are others.
    /// It must be as long, and end the same. Returns the directory.
    #[cfg(target_os = "linux")]
    pub(crate) fn install(&self, version: &str) -> PathBuf {
        // The compiler may have made a number of the first four bytes, and another of what follows.
        let (own, end) = env!("CARGO_PKG_VERSION").as_bytes().split_at(4);
        let other =
            version.as_bytes().strip_suffix(end).filter(|other| other.len() == own.len()).expect("such a version");
        let dir = self.root().join(format!("locald-{version}"));
        fs::create_dir_all(&dir).expect("a directory");
        for program in
            [env!("CARGO_BIN_EXE_locald"), env!("CARGO_BIN_EXE_locald-server"), env!("CARGO_BIN_EXE_locald-shim")]
        {
            let mut bytes = fs::read(program).expect("a program");
            let mut at = 0;
            while let Some(found) = memchr::memmem::find(&bytes[at..], own) {
                at += found;
                bytes[at..at + own.len()].copy_from_slice(other);
            }
            let path = dir.join(Path::new(program).file_name().expect("a name"));
            fs::write(&path, bytes).expect("a program");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("an executable");
        }
        dir
    }

    /// Has this `locald` be run from now on; `None` for the one that was built.
    #[cfg(target_os = "linux")]
    pub(crate) fn run_from(&mut self, dir: Option<&Path>) {
        self.program = dir.map_or_else(|| env!("CARGO_BIN_EXE_locald").into(), |dir| dir.join("locald"));
    }

    /// Gives the whole site to a user, and has locald run as that one from now on. For root.
    pub(crate) fn belong_to(&mut self, uid: u32) {
        for path in [self.root(), self.project(), self.project().join("locald.toml"), self.events()] {
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).expect("root");
        }
        self.run_by([zoo().as_os_str(), "as".as_ref(), uid.to_string().as_ref(), uid.to_string().as_ref()]);
    }

    /// A command as it is run here.
    fn by(&self, command: Command) -> Command {
        let Some((program, args)) = self.by.split_first() else { return command };
        let mut outer = Command::new(program);
        outer.args(args).env_clear();
        // The directory is entered last: who enters a namespace is at its root.
        outer.args(["env", "-C"]).arg(command.get_current_dir().unwrap_or(&self.project()));
        outer.arg(command.get_program()).args(command.get_args());
        outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        outer
    }

    /// The directory of everything, without symbolic links.
    pub(crate) fn root(&self) -> PathBuf {
        self.root.path().canonicalize().unwrap_or_else(|_| self.root.path().to_owned())
    }

    /// `LOCALD_HOME`.
    pub(crate) fn home(&self) -> PathBuf {
        self.root().join("h")
    }

    /// The project's directory.
    pub(crate) fn project(&self) -> PathBuf {
        self.root().join("shop")
    }

    /// The file that services append to, as `$EVENTS`.
    pub(crate) fn events(&self) -> PathBuf {
        self.root().join("events")
    }

    /// The lines that services have appended to `$EVENTS`.
    pub(crate) fn said(&self) -> Vec<String> {
        let text = fs::read_to_string(self.events()).expect("events");
        text.lines().map(str::to_owned).collect()
    }

    /// Writes a file of the project.
    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.project().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(&path, text).expect("a file");
        path
    }

    /// Writes an executable file of the project.
    pub(crate) fn script(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.write(name, text);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("an executable");
        path
    }

    /// Makes another project beside the first. Returns its directory.
    pub(crate) fn another(&self, name: &str, toml: &str) -> PathBuf {
        let dir = self.root().join(name);
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(dir.join("locald.toml"), toml).expect("a file");
        dir
    }

    /// Prepares `locald` with these words, in the project, with an environment of the test's own.
    pub(crate) fn locald(&self, words: &str) -> Call<'_> {
        Call::new(self, words)
    }

    /// Runs `locald up`, which must succeed.
    pub(crate) fn up(&self) -> Ran {
        self.locald("up").run().ok()
    }

    /// Runs `locald down --json`, which must succeed and leave nothing. Returns the object.
    pub(crate) fn down(&self) -> Value {
        let value = self.locald("down --json").run().ok().json();
        assert_eq!(value["totals"]["left"], 0, "{value}");
        self.assert_no_service_is_left();
        value
    }

    /// A service as `status --json` shows it.
    pub(crate) fn service(&self, name: &str) -> Value {
        let status = self.locald("status --json").run().ok().json();
        service_of(&status, name)
    }

    /// The leader of a service's run.
    pub(crate) fn leader(&self, name: &str) -> ProcessId {
        let service = self.service(name);
        let pid = service["pid"].as_i64().unwrap_or_else(|| panic!("{name} has no pid: {service}"));
        identity(i32::try_from(pid).expect("a pid"))
    }

    /// The directory of a service's records and log.
    pub(crate) fn service_dir(&self, name: &str) -> PathBuf {
        let projects = fs::read_dir(self.home().join("projects")).expect("projects");
        let mut dirs = projects.map(|entry| entry.expect("an entry").path().join("services").join(name));
        dirs.find(|dir| dir.is_dir()).unwrap_or_else(|| panic!("no directory of {name}"))
    }

    /// The process that a record of a service names: the shim's own record, or the leader's.
    pub(crate) fn recorded(&self, service: &str, record: &str, who: &str) -> ProcessId {
        let bytes = fs::read(self.service_dir(service).join(record)).expect("a record");
        let value: Value = serde_json::from_slice(&bytes).expect("a record");
        serde_json::from_value(value[who].clone()).expect("a process")
    }

    /// The daemon, which must run.
    pub(crate) fn daemon(&self) -> ProcessId {
        let about = self.locald("daemon status --json").run().ok().json();
        identity(i32::try_from(about["daemon"]["pid"].as_i64().expect("a pid")).expect("a pid"))
    }

    /// The files with a service's output, the oldest first.
    pub(crate) fn log_files(&self, service: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.service_dir(service)).expect("the directory of the service");
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log.")));
        files.sort();
        files
    }

    /// The bytes of a service's log.
    pub(crate) fn log(&self, service: &str) -> Vec<u8> {
        let files = self.log_files(service);
        assert!(!files.is_empty(), "{service} has a log");
        files.iter().flat_map(|file| fs::read(file).expect("a log")).collect()
    }

    /// Waits until `condition` has something to give; `what` says what was awaited when it never has.
    pub(crate) fn eventually<T>(&self, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(value) = condition() {
                return value;
            }
            assert!(Instant::now() < until, "waited {DEADLINE:?} in vain for {what}");
            thread::sleep(PAUSE);
        }
    }

    /// Waits until a service has appended a line to `$EVENTS`.
    pub(crate) fn await_event(&self, line: &str) {
        self.await_events(line, 1);
    }

    /// Waits until services have appended a line to `$EVENTS` so many times.
    pub(crate) fn await_events(&self, line: &str, times: usize) {
        self.eventually(&format!("{times} times the event {line:?}"), || {
            (self.said().iter().filter(|said| *said == line).count() >= times).then_some(())
        });
    }

    /// Waits until a service is in a state, as `status --json` calls it. Returns the service.
    pub(crate) fn await_state(&self, name: &str, state: &str) -> Value {
        self.eventually(&format!("{name} to be {state}"), || {
            Some(self.service(name)).filter(|service| service["state"] == state)
        })
    }

    /// Waits until the process has ended.
    pub(crate) fn await_end(&self, process: ProcessId) {
        self.eventually(&format!("the end of pid {}", process.pid), || (!process.is_alive()).then_some(()));
    }

    /// Waits for a number that a service writes to a file of the project: a pid.
    pub(crate) fn await_pid(&self, file: &str) -> ProcessId {
        let path = self.project().join(file);
        let pid = self.eventually(&format!("a pid in {file}"), || {
            let text = fs::read_to_string(&path).ok()?;
            // A number without the end of its line may not be all of it.
            text.strip_suffix('\n')?.trim().parse().ok()
        });
        let process = identity(pid);
        self.known.borrow_mut().push(process);
        process
    }

    /// The processes of this site, zombies apart: what carries a home of it in the environment, works below its directory
    /// or names it on the command line.
    pub(crate) fn processes(&self) -> Vec<Seen> {
        let mut seen = table::of(&self.root());
        for process in self.known.borrow().iter().filter(|process| process.is_alive()) {
            if !seen.iter().any(|one| one.process == *process) {
                seen.push(Seen::look(*process));
            }
        }
        seen
    }

    /// The processes of this site that are none of locald's programs.
    pub(crate) fn service_processes(&self) -> Vec<Seen> {
        let mut seen = self.processes();
        seen.retain(|process| !process.is_locald());
        seen
    }

    /// The daemons of this site.
    pub(crate) fn daemons(&self) -> Vec<Seen> {
        let mut seen = self.processes();
        seen.retain(Seen::is_daemon);
        // What a daemon starts looks like itself until it is executed.
        let pids: Vec<i32> = seen.iter().map(|seen| seen.process.pid).collect();
        seen.retain(|seen| !pids.contains(&seen.parent));
        seen
    }

    /// Looks through the process table at this moment.
    pub(crate) fn assert_no_service_is_left(&self) {
        self.assert_nobody_is_left("these processes are left", |seen| !seen.is_locald());
    }

    /// Looks through the process table at this moment for processes that should not be there.
    ///
    /// It looks three times: the table is no picture of one moment, and whoever is just becoming another program has no
    /// command line.
    #[track_caller]
    pub(crate) fn assert_nobody_is_left(&self, what: &str, is_meant: impl Fn(&Seen) -> bool) {
        for _ in 0..3 {
            let left: Vec<Seen> = self.processes().into_iter().filter(&is_meant).collect();
            assert!(left.is_empty(), "{what}:\n{}", table::show(&left));
        }
    }

    /// Ends what the test has left running, as a person would.
    fn end(&self) {
        self.locald("daemon stop --all").run().ok();
        self.assert_no_service_is_left();
        let until = Instant::now() + DEADLINE;
        loop {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < until, "programs of locald are left:\n{}", table::show(&left));
            thread::sleep(PAUSE);
        }
        let leaves = Hierarchy::of_home(&self.home()).map(|place| place.leaves()).unwrap_or_default();
        assert!(leaves.is_empty(), "cgroups of runs that are over are left: {leaves:?}");
    }

    /// Shows what may explain a failure.
    fn explain(&self) {
        eprintln!("---- processes of {}\n{}", self.root().display(), table::show(&self.processes()));
        let mut logs = vec![self.home().join("daemon.log")];
        for project in fs::read_dir(self.home().join("projects")).into_iter().flatten().flatten() {
            let services = fs::read_dir(project.path().join("services")).into_iter().flatten().flatten();
            logs.extend(services.map(|service| service.path().join("log")));
        }
        logs.push(self.events());
        for log in logs {
            let text = fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text[text.len().saturating_sub(8000)..]).into_owned();
            eprintln!("---- {}\n{text}", log.display());
        }
    }

    /// Kills what is left, each by its identity, in rounds until nobody is. What is quicker ends when the site is deleted.
    fn kill(&self) {
        for _ in 0..1000 {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for seen in left {
                let _ = process::signal(seen.process, Signal::SIGKILL);
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if thread::panicking() {
            self.explain();
            // Services first, so that a daemon and shims may clean up after them; then whoever is left.
            let _ = self.locald("daemon stop --all").run_within(Duration::from_secs(10));
            self.kill();
            return;
        }
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.end()));
        if let Err(panic) = ended {
            self.explain();
            self.kill();
            std::panic::resume_unwind(panic);
        }
    }
}

/// The identity of a process that must exist.
pub(crate) fn identity(pid: i32) -> ProcessId {
    ProcessId::of(pid).unwrap_or_else(|| panic!("there is no pid {pid}"))
}

/// Sends a signal to a process of the test's own, which must be there.
pub(crate) fn send(process: ProcessId, signal: Signal) {
    let sent = process::signal(process, signal).unwrap_or_else(|error| panic!("pid {}: {error}", process.pid));
    assert!(sent, "pid {} is gone", process.pid);
}

/// A service of a `--json` object.
pub(crate) fn service_of(object: &Value, name: &str) -> Value {
    let services = object["services"].as_array().unwrap_or_else(|| panic!("no services in {object}"));
    let found = services.iter().find(|service| service["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {object}")).clone()
}

/// A port that nobody listens on at the moment.
///
/// Tests that run at the same time are given different ones: each test process counts on from a place of its own.
pub(crate) fn free_port() -> u16 {
    use std::net::UdpSocket;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Below those that locald gives out by itself, in other runs of these tests as well.
    /// Fifty ports of this process's own: others that run these tests at the same time are kept off by a socket of another kind.
    static PLACE: OnceLock<(UdpSocket, u16)> = OnceLock::new();
    let (_, place) = PLACE.get_or_init(|| {
        let first = u16::try_from(std::process::id() % 200).expect("below 200");
        let places = (0..200).map(|next| (first + next) % 200 * 50);
        let own = |place| Some((UdpSocket::bind(("127.0.0.1", 10_000 + place)).ok()?, place));
        places.into_iter().find_map(own).expect("200 runs of these tests at once?")
    });
    loop {
        let port = 10_000 + place + NEXT.fetch_add(1, Ordering::Relaxed) % 50;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The fixture program, `tests/fixtures/zoo.rs`.
///
/// `cargo test` builds it with the other targets; `cargo test --test e2e` does not, so it is built here when it has to be.
pub(crate) fn zoo() -> &'static Path {
    static ZOO: OnceLock<PathBuf> = OnceLock::new();
    ZOO.get_or_init(|| {
        let dir = Path::new(env!("CARGO_BIN_EXE_locald")).parent().expect("a directory");
        let program = dir.join("examples/zoo");
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let changed = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
        let mut sources = fs::read_dir(manifest.join("tests/fixtures")).expect("its sources").flatten();
        if sources.any(|source| changed(&program) < changed(&source.path())) {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.args(["build", "--quiet", "--example", "zoo"]).current_dir(manifest);
            cargo.env("CARGO_TARGET_DIR", dir.parent().expect("a target directory"));
            if dir.ends_with("release") {
                cargo.arg("--release");
            }
            let built = cargo.status().expect("cargo runs");
            assert!(built.success(), "could not build {}", program.display());
        }
        program
    })
}

/// Bytes as text that shows every byte.
pub(crate) fn shown(bytes: &[u8]) -> String {
    std::ffi::OsStr::from_bytes(bytes).display().to_string()
}
