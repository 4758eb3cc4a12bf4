//! What it costs to find a run's members on a busy machine: `cargo bench -p locald-utils --bench sweep [PROCESSES]`.
//!
//! Starts 2,000 sleepers (or as many as named) that are younger than a run, and looks for the run's one member among them, as
//! the daemon does when the shim is gone: a glance at everybody's session, group and limit, no help by a cgroup. Ends what it started.

use std::io::Write;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use locald_utils::name::RunId;
use locald_utils::process::membership::Memory;
use locald_utils::process::sweep::Target;
use locald_utils::process::{self, ProcessId};
use nix::sys::signal::Signal;

fn main() {
    let count = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(2000);
    let mut sleepers: Vec<Child> = Vec::new();
    let mut leader = Command::new("sleep").arg("600").spawn().expect("sleep");
    sleepers.extend((0..count).map(|_| Command::new("sleep").arg("600").spawn().expect("sleep")));
    let run = RunId::random().expect("random");
    let leader_id = ProcessId::of(leader.id().cast_signed()).expect("alive");
    let target = Target {
        run: &run,
        leader: leader_id,
        is_pinned: false,
        keeper: None,
        reapers: &[],
        terminal: None,
        terminal_session: None,
        cgroup: None,
        home: None,
        signal: Signal::SIGTERM,
        command: None,
        probes: &[],
    };
    let memory = Memory::default();
    let mut times: Vec<Duration> = (0..50)
        .map(|_| {
            let began = Instant::now();
            let found = target.members(&memory).expect("readable");
            assert!(found.iter().any(|process| process.id == leader_id), "the member is found");
            began.elapsed()
        })
        .collect();
    times.sort();
    let all = process::all().expect("readable").len();
    let mut out = std::io::stdout();
    writeln!(out, "{all} processes: median {:?}, worst {:?}", times[times.len() / 2], times[times.len() - 1])
        .expect("told");
    for child in sleepers.iter_mut().chain([&mut leader]) {
        child.kill().expect("a child of its own");
        child.wait().expect("reaped");
    }
}
