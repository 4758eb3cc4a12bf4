//! A pid namespace of a test's own: a place with its own first process and its own numbers.
//!
//! What runs in it is seen from outside under other numbers, so the harness finds it as ever; only pids that locald names
//! are those of the inside. It ends, and everything in it, when it is dropped.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use locald_utils::process;

use crate::support::zoo;

/// A pid namespace with its first process.
pub(crate) struct Namespace {
    /// `unshare`, the parent of the first process. Its input ends the namespace.
    outer: Child,
    enter: Vec<OsString>,
}

impl Namespace {
    /// Makes a namespace whose first process reaps orphans, or never does. `None`, with a word about why, where the kernel
    /// refuses.
    pub(crate) fn new(reaps: bool) -> Option<Self> {
        let is_root = nix::unistd::geteuid().is_root();
        let user: &[&str] = if is_root { &[] } else { &["--user", "--map-root-user"] };
        let mut unshare = Command::new("unshare");
        unshare.args(user).args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(zoo()).arg("init");
        unshare.args(reaps.then_some("reap")).current_dir("/").env_clear().env("PATH", "/usr/bin:/bin");
        unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut outer = unshare.spawn().expect("util-linux has unshare");
        let mut said = String::new();
        BufReader::new(outer.stdout.as_mut().expect("a pipe")).read_line(&mut said).expect("reads");
        if said != "ready\n" {
            outer.wait().expect("waits");
            outer.stderr.take().expect("a pipe").read_to_string(&mut said).expect("reads");
            assert!(said.contains("unshare failed"), "{said}");
            let _ = writeln!(std::io::stderr(), "skipped: this kernel gives no pid namespace: {}", said.trim());
            return None;
        }
        let first = process::children(outer.id().cast_signed()).expect("readable")[0];
        let user: &[&str] = if is_root { &[] } else { &["--user", "--preserve-credentials"] };
        let first = first.to_string();
        let words = ["nsenter", "--target", &first].into_iter().chain(user.iter().copied()).chain(["--mount", "--pid"]);
        let enter = words.map(OsString::from).collect();
        Some(Self { outer, enter })
    }

    /// The words before a command that have it run inside.
    pub(crate) fn enter(&self) -> &[OsString] {
        &self.enter
    }

    /// Prepares a command that runs inside, with nothing on its input.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(&self.enter[0]);
        command.args(&self.enter[1..]).arg(program).current_dir("/").stdin(Stdio::null());
        command
    }

    /// Gives it numbers up to `max` only. Returns whether it could.
    ///
    /// Before Linux 6.14 there is one limit for the whole system, which a test leaves alone.
    pub(crate) fn limit_numbers(&self, max: u32) -> bool {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a kernel");
        let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
        if (numbers.next(), numbers.next()) < (Some(6), Some(14)) {
            let _ = writeln!(std::io::stderr(), "skipped: pid namespaces have no pid_max of their own in {release}");
            return false;
        }
        let script = format!("echo {max} > /proc/sys/kernel/pid_max");
        assert!(self.command("sh").args(["-c", &script]).status().expect("runs").success());
        true
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.outer.stdin.take());
        let until = Instant::now() + Duration::from_secs(20);
        while self.outer.try_wait().expect("a child").is_none() {
            if Instant::now() > until {
                // The first process is killed along with its parent, and everything else with it.
                let _ = self.outer.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
