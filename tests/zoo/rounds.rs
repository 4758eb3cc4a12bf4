//! Rounds with the whole zoo: bring it up, see that all of it is there, end it, see that nobody is left, and keep count.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use locald_utils::process::{self, ProcessState};
use serde_json::Value;

use crate::support::{Seen, Site, service_of};

/// 100 ms: long enough that all have been asked, short enough for a thousand rounds.
pub(crate) const GRACE: Duration = Duration::from_millis(100);

/// The members of the zoo by their last word, and how many there are of each. Those that hand on are seen by their lock.
const MEMBERS: &[(&str, usize)] = &[
    ("own-group", 1),
    ("own-session", 1),
    ("daemonized", 1),
    ("traceless", 1),
    ("stopped", 1),
    ("stopped-elsewhere", 1),
    ("respawned", 1),
    ("family", 7),
];

/// How many rounds each test makes.
pub(crate) fn count() -> usize {
    let rounds = std::env::var("LOCALD_ZOO_ROUNDS");
    rounds.map_or(5, |rounds| rounds.parse().expect("LOCALD_ZOO_ROUNDS is a number"))
}

/// A service whose leader is the head of the zoo, as deaf as all of it.
pub(crate) fn zoo() -> String {
    format!(
        "[services.zoo]\ncommand = 'exec \"$ZOO\" deaf \"$ZOO\" all \"$PWD\"'\nstop_grace = \"{}ms\"\n",
        GRACE.as_millis()
    )
}

/// Whether one of those that hand on is alive: they keep a file in the zoo's directory locked.
fn has_chains(dir: &Path) -> bool {
    let Ok(chains) = File::open(dir.join("chains")) else { return false };
    match chains.try_lock() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(error)) => panic!("{error}"),
    }
}

/// Looks from outside whether anybody of a zoo in `dir` is left.
#[track_caller]
pub(crate) fn assert_nobody_is_left(site: &Site, dir: &Path) {
    assert!(!has_chains(dir), "one of those that hand on is left");
    let dir = dir.to_str().expect("a name");
    site.assert_nobody_is_left("these processes of the zoo are left", |seen| {
        !seen.is_locald() && seen.command.contains(dir)
    });
}

/// Waits until every member of the zoo in `dir` is there and has done what it does to stay.
pub(crate) fn await_all(site: &Site, dir: &Path) {
    site.eventually("every member of the zoo", || {
        let seen = site.processes();
        let named = |name: &str| seen.iter().filter(|one| last_word(one) == name).collect::<Vec<&Seen>>();
        let is_there = MEMBERS.iter().all(|(name, count)| named(name).len() >= *count);
        let is_stopped = ["stopped", "stopped-elsewhere"]
            .iter()
            .flat_map(|name| named(name))
            .all(|seen| process::look(seen.process.pid).is_some_and(|process| process.state == ProcessState::Stopped));
        (is_there && is_stopped && has_chains(dir)).then_some(())
    });
}

fn last_word(seen: &Seen) -> &str {
    seen.command.trim_end().rsplit(' ').next().unwrap_or_default()
}

/// Runs `down`, which must be sure that nothing is left. Returns how the zoo ended.
pub(crate) fn down(site: &Site) -> Value {
    let down = site.down();
    assert_nobody_is_left(site, &site.project());
    service_of(&down, "zoo")["ended"].clone()
}

/// Something else that starts processes all the time: races between looking and starting show only under such a load.
pub(crate) struct Load {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn begin() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                assert!(Command::new("true").status().expect("runs").success());
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            ended.expect("a thread").expect("no panic");
        }
    }
}

/// What the rounds of a test amount to.
#[derive(Default)]
pub(crate) struct Tally {
    processes: u64,
    forced: Vec<u64>,
}

impl Tally {
    /// Adds a round after which nobody was left.
    pub(crate) fn add(&mut self, ended: &Value) {
        assert_eq!(ended["survivors"], Value::Array(Vec::new()), "{ended}");
        assert_eq!(ended["forced"], true, "who ignores SIGTERM has to be killed: {ended}");
        let took = ended["stop_ms"].as_u64().expect("a number");
        let grace = u64::try_from(GRACE.as_millis()).expect("a number");
        assert!(took >= grace, "killed before its time: {ended}");
        self.forced.push(took - grace);
        self.processes += ended["processes"].as_u64().expect("a number");
    }

    /// Says what it was, for people. The harness of `cargo test` keeps what is printed, but not what is written to stderr.
    pub(crate) fn tell(mut self, what: &str) {
        self.forced.sort_unstable();
        let rounds = self.forced.len();
        let part = |percent: usize| self.forced[(rounds * percent / 100).min(rounds - 1)];
        let _ = writeln!(
            std::io::stderr(),
            "zoo, {what}: {rounds} rounds, {} processes ended, 0 survivors; forced phase p50 {} ms, p99 {} ms, max {} ms",
            self.processes,
            part(50),
            part(99),
            part(100),
        );
    }
}
