//! Running `locald` as a person would, and what it answered.
//!
//! Output goes to files: nothing blocks on a pipe, and a process that keeps one open delays nobody.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use locald_utils::process::{self, ProcessId};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use super::{DEADLINE, Site, identity, zoo};

/// 120 s: longer than any limit of locald's own that a test does not set.
const LIMIT: Duration = Duration::from_secs(120);

/// A command that has not been started.
pub(crate) struct Call<'a> {
    site: &'a Site,
    command: Command,
    stdout: Option<Stdio>,
    shown: String,
}

impl<'a> Call<'a> {
    pub(super) fn new(site: &'a Site, words: &str) -> Self {
        let mut command = Command::new(&site.program);
        command.args(words.split_whitespace()).current_dir(site.project());
        command.env_clear().envs(environment(site));
        Self { site, command, stdout: None, shown: format!("locald {words}") }
    }

    /// Adds one word as it is.
    pub(crate) fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.command.arg(word);
        self
    }

    /// Sets a variable of the caller.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it somewhere else.
    pub(crate) fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Has it write its answer somewhere else.
    pub(crate) fn stdout_to(mut self, to: impl Into<Stdio>) -> Self {
        self.stdout = Some(to.into());
        self
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Ran {
        self.start().finish()
    }

    /// Runs it to its end, or kills it after `limit`.
    pub(crate) fn run_within(self, limit: Duration) -> Result<Ran, String> {
        self.start().finish_within(limit)
    }

    /// Starts it.
    pub(crate) fn start(mut self) -> Running {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        self.command = self.site.by(self.command);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let [stdout, stderr] = ["out", "err"].map(|name| self.site.root().join(format!("{number}.{name}")));
        self.command.stdin(Stdio::null());
        let out = Stdio::from(File::create(&stdout).expect("a file"));
        self.command.stdout(self.stdout.unwrap_or(out)).stderr(File::create(&stderr).expect("a file"));
        // Before it, because this thread may go on only after it has done much.
        let began = Instant::now();
        let child = self.command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.shown));
        // What it was given is closed here, so that nobody but the child keeps it open.
        drop(self.command);
        let process = identity(child.id().cast_signed());
        Running { child, process, shown: self.shown, stdout, stderr, began }
    }
}

/// The environment of a person who has little: what every test starts from.
pub(super) fn environment(site: &Site) -> Vec<(&'static str, PathBuf)> {
    vec![
        ("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into()),
        ("HOME", site.root()),
        ("LANG", "C".into()),
        ("LOCALD_HOME", site.home()),
        ("EVENTS", site.events()),
        ("ZOO", zoo().to_owned()),
    ]
}

/// A command that runs.
pub(crate) struct Running {
    child: Child,
    process: ProcessId,
    shown: String,
    stdout: PathBuf,
    stderr: PathBuf,
    began: Instant,
}

impl Running {
    /// Its process.
    pub(crate) fn process(&self) -> ProcessId {
        self.process
    }

    /// What it has written to stderr so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.stderr).expect("stderr")).into_owned()
    }

    /// Waits for its end.
    pub(crate) fn finish(self) -> Ran {
        self.finish_within(LIMIT).unwrap_or_else(|error| panic!("{error}"))
    }

    fn finish_within(mut self, limit: Duration) -> Result<Ran, String> {
        if !ends_within(self.process, limit) {
            self.child.kill().expect("kills its own child");
            let _ = self.child.wait();
            return Err(format!("{} did not end within {limit:?}\n{}", self.shown, self.stderr()));
        }
        let status = self.child.wait().expect("waits");
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).expect("output")).into_owned();
        let (stdout, stderr) = (read(&self.stdout), read(&self.stderr));
        Ok(Ran { shown: self.shown, status, stdout, stderr, took: self.began.elapsed() })
    }
}

/// Waits until a process has ended, reaped or not. Returns whether it has.
pub(super) fn ends_within(process: ProcessId, limit: Duration) -> bool {
    let Some(watch) = process::exit_watch(process).expect("a watch") else { return true };
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis()).expect("a limit of minutes");
        match poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(count) => return count > 0,
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => panic!("poll: {errno}"),
        }
    }
}

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    shown: String,
    status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// From its start to its end.
    pub(crate) took: Duration,
}

impl Ran {
    /// Demands success.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.code(0)
    }

    /// Demands an exit code.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "exit code of {self}");
        self
    }

    /// The exit code, if it was no signal.
    pub(crate) fn exit(&self) -> Option<i32> {
        self.status.code()
    }

    /// Demands that a text is in stdout or stderr.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.stdout.contains(text) || self.stderr.contains(text), "{text:?} is missing in {self}");
        self
    }

    /// Demands that a text is in neither stdout nor stderr.
    #[track_caller]
    pub(crate) fn says_nothing_of(self, text: &str) -> Self {
        assert!(!self.stdout.contains(text) && !self.stderr.contains(text), "{text:?} is in {self}");
        self
    }

    /// Its answer as the one object that `--json` promises, with nothing beside it.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        assert_eq!(self.stderr, "", "stderr of {}", self.shown);
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self}"))
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit {code}"),
            (None, signal) => format!("signal {signal:?}"),
        };
        write!(f, "`{}`: {status} after {:?}\n{}{}", self.shown, self.took, self.stdout, self.stderr)
    }
}

/// Waits for the end of a process that is no child, with the usual deadline.
pub(crate) fn has_ended(process: ProcessId) -> bool {
    ends_within(process, DEADLINE)
}
