//! Never the wrong process: where process numbers are reused all the time, no signal reaches whoever has one now.
//!
//! Whoever else is there is a canary (`tests/fixtures/canary.rs`). The numbers are those of a pid namespace with few of
//! them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use locald_utils::process::{self, ProcessId};
use nix::sys::signal::Signal;

use crate::namespace::Namespace;
use crate::support::{Seen, Site, zoo};

/// 800: of these the kernel gives out those above 300 once it has passed through all (RESERVED_PIDS in kernel/pid.c).
const NUMBERS: u32 = 800;

/// Canaries inside a namespace, and whoever keeps them.
struct Canaries {
    keeper: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Canaries {
    fn keep(site: &Site, namespace: &Namespace, words: &[String]) -> Self {
        let [stdout, stderr] = ["canaries.out", "canaries.err"].map(|name| site.root().join(name));
        let mut keeper = namespace.command(zoo());
        keeper.args(words).stdin(Stdio::piped());
        keeper.stdout(File::create(&stdout).expect("a file")).stderr(File::create(&stderr).expect("a file"));
        Self { keeper: keeper.spawn().expect("nsenter"), stdout, stderr }
    }

    /// The numbers that canaries have had so far.
    fn numbers(&self) -> Vec<i64> {
        let text = fs::read_to_string(&self.stdout).expect("numbers");
        text.lines().map(|line| line.parse().expect("a number")).collect()
    }

    /// Retires them all, who must have been left alone.
    fn retire(mut self) {
        drop(self.keeper.stdin.take());
        let status = self.keeper.wait().expect("waits");
        assert!(status.success(), "{status}\n{}", fs::read_to_string(&self.stderr).expect("a text"));
    }
}

/// A place with few numbers, and a site in it.
fn place(toml: &str) -> Option<(Namespace, Site)> {
    let namespace = Namespace::new(true)?;
    if !namespace.limit_numbers(NUMBERS) {
        return None;
    }
    let mut site = Site::new(toml);
    site.run_by(namespace.enter());
    Some((namespace, site))
}

#[test]
fn nobody_else_is_signalled_while_numbers_are_reused_all_the_time() {
    let stops = std::env::var("LOCALD_WRAP_STOPS");
    let stops = stops.map_or(120, |stops| stops.parse::<usize>().expect("LOCALD_WRAP_STOPS is a number"));
    // Some obey, some have to be killed, some have left their group or session, and some end by themselves and leave others.
    let kinds = [
        "command = 'exec sleep 600'",
        "command = 'exec \"$ZOO\" deaf sleep 600'\nstop_grace = \"20ms\"",
        "command = '\"$ZOO\" setsid sleep 600 & \"$ZOO\" setpgid sleep 600'",
        "command = '\"$ZOO\" deaf \"$ZOO\" daemonize sleep 600; sleep 0.05'\nstop_grace = \"20ms\"\ntype = \"job\"",
    ];
    let service = |number: usize| format!("[services.s{number}]\n{}\n", kinds[number % kinds.len()]);
    let count = 12;
    let Some((namespace, site)) = place(&(0..count).map(service).collect::<String>()) else { return };
    let canaries = Canaries::keep(&site, &namespace, &["aviary".to_owned(), "100".to_owned()]);
    let mut ours = BTreeSet::new();
    let mut stopped = 0;
    // On a machine that is busy with something else a few stops are too few for a number to come back.
    let shared = loop {
        if stopped >= stops {
            let shared = canaries.numbers().into_iter().filter(|number| ours.contains(number)).count();
            if shared > 0 {
                break shared;
            }
        }
        assert!(stopped < stops + 2000, "no canary ever had the number of a leader");
        site.up();
        let status = site.locald("status --json").run().ok().json();
        let services = status["services"].as_array().expect("services");
        ours.extend(services.iter().filter_map(|service| service["pid"].as_i64()));
        site.down();
        stopped += count;
    };
    let theirs = canaries.numbers();
    canaries.retire();
    let _ = writeln!(
        std::io::stderr(),
        "numbers: {stopped} stops, {} canaries, {shared} of them on the number of a leader, 0 signalled",
        theirs.len()
    );
}

/// Has canaries sit on the numbers of a daemon, a shim and a leader, of which `dies` are killed and the others follow; then
/// a new daemon finds the records.
fn canaries_are_left_alone_when(dies: fn(&Seen) -> bool) {
    let Some((namespace, site)) = place("[services.web]\ncommand = 'exec sleep 600'\n") else { return };
    site.up();
    let daemon = site.locald("daemon status --json").run().ok().json()["daemon"]["pid"].as_i64().expect("a pid");
    let (leader, shim) = (site.recorded("web", "pid", "leader"), site.recorded("web", "shim", "shim"));
    let seen = site.processes();
    for one in seen.iter().filter(|seen| dies(seen)) {
        // A shim whose leader and daemon were killed may have left before its turn.
        process::signal(one.process, Signal::SIGKILL).expect("permitted");
    }
    for one in &seen {
        site.eventually("the end of everybody", || ProcessId::of(one.process.pid).is_none().then_some(()));
    }
    let numbers = [daemon, leader.pid.into(), shim.pid.into()];
    let words: Vec<String> = ["perch".to_owned()].into_iter().chain(numbers.iter().map(i64::to_string)).collect();
    let canaries = Canaries::keep(&site, &namespace, &words);
    site.eventually("a canary on each number", || (canaries.numbers() == numbers).then_some(()));

    site.locald("daemon start").run().ok();
    let web = site.service("web");
    assert!(web["state"] != "ready" && web["state"] != "unknown", "{web}");
    site.locald("down").run().ok();
    site.up();
    site.down();
    canaries.retire();
}

#[test]
fn whoever_has_the_numbers_of_a_run_that_was_killed_with_its_daemon_is_left_alone() {
    canaries_are_left_alone_when(|_| true);
}

#[test]
fn whoever_has_the_numbers_of_a_run_that_ended_without_a_daemon_is_left_alone() {
    canaries_are_left_alone_when(|seen| !seen.is_shim());
}
