//! What nobody looks after any more, in all homes, and what ends it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use locald_utils::process::ProcessState;
use locald_utils::time::human;

use super::facts::{Daemon, Described, Member, Record, Shim, TracedHome, Traces, Variables};
use super::shell::{in_home, word};
use super::{Leftover, LeftoverKind, Problem, Supervised};
use crate::view::count;

/// 1 s: a daemon makes its home as the first thing it does.
const HOME_LIMIT: Duration = Duration::from_secs(1);

/// 10 s: how long whoever starts a daemon waits until it listens.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// Tells what is looked after from what is left over.
pub(super) fn leftovers(traces: &Traces, own: &Variables) -> (Supervised, Vec<Leftover>) {
    let has_daemon = |home: Option<usize>| home.is_some_and(|home| traces.has_daemon(home));
    let mut supervised = BTreeSet::new();
    let mut without_daemon = BTreeSet::new();
    for record in traces.records.iter().filter(|record| record.is_of_this_boot) {
        let is_alive = record.has_shim || traces.members.iter().any(|member| member.run == record.run.id.as_str());
        if is_alive && (record.has_shim || has_daemon(record.home)) {
            supervised.insert(record.run.id.as_str());
            if !has_daemon(record.home) {
                without_daemon.insert(record.run.id.as_str());
            }
        }
    }
    let mut found = Vec::new();
    let mut runs: BTreeMap<&str, Vec<&Member>> = BTreeMap::new();
    for member in &traces.members {
        runs.entry(&member.run).or_default().push(member);
    }
    for (run, members) in &runs {
        let is_of_a_shim = traces.shims.iter().any(|shim| shim.run.id.as_str() == *run);
        if !supervised.contains(run) && !is_of_a_shim {
            found.push(run_left(traces, run, members, own));
        }
    }
    found.extend(traces.shims.iter().filter(|shim| !shim.is_recorded && shim.has_children).map(shim_left));
    found.extend(traces.daemons.iter().filter_map(|daemon| daemon_left(traces, daemon)));
    for (index, home) in traces.homes.iter().enumerate().filter(|(index, _)| !traces.has_daemon(*index)) {
        let is_over = |record: &&Record| {
            let is_dead = !record.has_shim && !runs.contains_key(record.run.id.as_str());
            record.home == Some(index) && (is_dead || !record.is_of_this_boot)
        };
        found.extend(records_left(home, &traces.records.iter().filter(is_over).collect::<Vec<_>>(), own));
        found.extend(sockets_left(home, own));
    }
    (Supervised { runs: supervised.len(), without_daemon: without_daemon.len() }, found)
}

impl Traces {
    /// Whether the state of this home has a daemon, wherever that one's sockets are.
    fn has_daemon(&self, home: usize) -> bool {
        let Some(state) = self.homes.get(home).map(|home| home.home.state()) else { return false };
        self.homes.iter().any(|other| other.has_daemon && other.home.state() == state)
    }
}

fn run_left(traces: &Traces, run: &str, members: &[&Member], own: &Variables) -> Leftover {
    let record = traces.records.iter().find(|record| record.is_of_this_boot && record.run.id.as_str() == run);
    let home = record.map_or_else(|| members.iter().find_map(|member| member.home), |record| record.home);
    let home = home.and_then(|home| traces.homes.get(home));
    let service = members.iter().find_map(|member| member.service.clone());
    let name = service.as_deref().unwrap_or("a service");
    let processes: Vec<Described> = members.iter().map(|member| member.process.clone()).collect();
    let seen = processes.iter().map(describe).collect::<Vec<_>>().join("; ");
    let number = count(processes.len(), "process");
    let (kind, problem) = match (record, home) {
        (Some(_), _) => {
            let why = format!("its shim is gone, and no daemon is there to do its work: {seen}");
            let fix = in_home("locald daemon start", home.map(|home| &home.variables), own);
            (LeftoverKind::RunWithoutShim, Problem::new(format!("{name} runs without its shim"), why, fix))
        }
        (None, Some(home)) if !home.exists => {
            let why = format!("its home {} is gone: {seen}", home.home.state().display());
            let what = format!("{number} of {name} left over from a home that is gone");
            (LeftoverKind::RunWithoutHome, Problem::new(what, why, kill(&processes)))
        }
        (None, home) => {
            let who = match home {
                Some(home) => format!("{} has no record", home.home.state().display()),
                None => "no home has a record".to_owned(),
            };
            let why = format!("{who} of it, so nobody will end it: {seen}");
            let what = format!("{number} of {name} left over from a run without a record");
            (LeftoverKind::RunWithoutRecord, Problem::new(what, why, kill(&processes)))
        }
    };
    let home = home.map(|home| home.home.state().to_owned());
    Leftover { kind, service, run: Some(run.to_owned()), home, processes, files: Vec::new(), problem }
}

fn shim_left(shim: &Shim) -> Leftover {
    let service = format!("{}:{}", shim.run.project_name, shim.run.service);
    let dir = shim.service_dir.display();
    let what = format!("a shim of {service} that no record leads to");
    let why = format!(
        "{dir} does not name it, so no daemon can find it; it passes the signal on and leaves with its service: {}",
        describe(&shim.process)
    );
    // `STATE/projects/PROJECT/services/SERVICE`
    let home = shim.service_dir.ancestors().nth(4).map(Path::to_owned);
    Leftover {
        kind: LeftoverKind::Shim,
        service: Some(service),
        run: Some(shim.run.id.to_string()),
        home,
        processes: vec![shim.process.clone()],
        files: Vec::new(),
        problem: Problem::new(what, why, kill(std::slice::from_ref(&shim.process))),
    }
}

fn daemon_left(traces: &Traces, daemon: &Daemon) -> Option<Leftover> {
    let home = traces.homes.get(daemon.home?)?;
    let is_older = |limit| daemon.process.age.is_some_and(|age| age > limit);
    let (state, socket) = (home.home.state().display(), home.home.daemon_socket());
    let why = if !home.exists && is_older(HOME_LIMIT) {
        format!("its home {state} is gone")
    } else if home.exists && !daemon.has_socket && is_older(LISTEN_LIMIT) {
        format!("its socket {} is gone", socket.display())
    } else {
        return None;
    };
    let why = format!("{why}; services run on without it: {}", describe(&daemon.process));
    Some(Leftover {
        kind: LeftoverKind::Daemon,
        service: None,
        run: None,
        home: Some(home.home.state().to_owned()),
        processes: vec![daemon.process.clone()],
        files: Vec::new(),
        problem: Problem::new("a daemon that nobody can reach", why, kill(std::slice::from_ref(&daemon.process))),
    })
}

fn records_left(home: &TracedHome, records: &[&Record], own: &Variables) -> Option<Leftover> {
    if records.is_empty() {
        return None;
    }
    let state = home.home.state();
    let is_restart = records.iter().any(|record| !record.is_of_this_boot);
    let cause = if is_restart { "the machine was restarted" } else { "their shims were killed" };
    let what = format!("{} of runs that are over, in {}", count(records.len(), "record"), state.display());
    let why = format!("{cause}, and no daemon has been there since to say how they ended");
    let fix = in_home("locald daemon start", Some(&home.variables), own);
    Some(Leftover {
        kind: LeftoverKind::Records,
        service: None,
        run: None,
        home: Some(state.to_owned()),
        processes: Vec::new(),
        files: records.iter().map(|record| record.file.clone()).collect(),
        problem: Problem::new(what, why, fix),
    })
}

fn sockets_left(home: &TracedHome, own: &Variables) -> Option<Leftover> {
    if home.dead_sockets.is_empty() {
        return None;
    }
    let what = format!(
        "{} that nobody listens at, in {}",
        count(home.dead_sockets.len(), "socket"),
        home.home.runtime().display()
    );
    let shims: Vec<&PathBuf> =
        home.dead_sockets.iter().filter(|socket| **socket != home.home.daemon_socket()).collect();
    // The next daemon puts its own in place of the last one's; those of shims are nobody's.
    let (why, fix) = if shims.is_empty() {
        ("the daemon was killed", in_home("locald daemon start", Some(&home.variables), own))
    } else {
        (
            "those who made them were killed",
            format!("rm {}", home.dead_sockets.iter().map(word).collect::<Vec<_>>().join(" ")),
        )
    };
    Some(Leftover {
        kind: LeftoverKind::Sockets,
        service: None,
        run: None,
        home: Some(home.home.state().to_owned()),
        processes: Vec::new(),
        files: home.dead_sockets.clone(),
        problem: Problem::new(what, why, fix),
    })
}

/// `pid 812 (sleep 600), 3m 20s old, in /work/shop`.
fn describe(process: &Described) -> String {
    let age = process.age.map_or(String::new(), |age| format!(", {} old", human(age)));
    let dir = process.directory.as_ref().map_or(String::new(), |dir| format!(", in {}", dir.display()));
    format!("pid {} ({}){age}{dir}", process.id.pid, process.command)
}

/// Asks processes to end. One that is stopped would not hear it.
fn kill(processes: &[Described]) -> String {
    let is_deaf = processes.iter().any(|process| process.state == ProcessState::Stopped);
    let numbers: Vec<String> = processes.iter().map(|process| process.id.pid.to_string()).collect();
    format!("kill {}{}", if is_deaf { "-9 " } else { "" }, numbers.join(" "))
}
