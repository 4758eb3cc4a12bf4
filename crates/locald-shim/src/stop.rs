//! Ending a run: carries out what the stop ladder orders, and counts what it sees.
//!
//! The ladder (`process::ladder`) decides when; this finds the members, sends the signals, and keeps the account that
//! becomes the report: how many processes ended, how many had to be killed, which had strayed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use locald_utils::process::ladder::{Action, Ladder, View};
use locald_utils::process::membership::{self, Evidence};
use locald_utils::process::{self, Process, ProcessId, ProcessState, SignalError};
use locald_utils::record::{Stray, Survivor};
use locald_utils::spec::StopSignal;
use nix::sys::signal::Signal;

/// Finds the members of the shim's run, zombies left out.
///
/// On Linux every member hangs below the shim. Elsewhere the whole table is searched, with what was seen earlier.
pub(crate) fn members(shim: ProcessId, leader: ProcessId, known: &BTreeSet<ProcessId>, run: &str) -> Vec<Process> {
    // A table that cannot be read shows nobody; the next round asks again, and the run is not over by that.
    if process::ORPHANS_COME_TO_THE_SHIM {
        let below = process::descendants(shim.pid).unwrap_or_default();
        return below.into_iter().filter(|process| process.state != ProcessState::Zombie).collect();
    }
    let table = process::all().unwrap_or_default();
    let evidence = Evidence { leader, known, excluded: &[shim.pid] };
    let marked = |process: &Process| process::marker(process.id.pid, process::RUN_MARKER).is_some_and(|id| id == run);
    membership::members(&table, &evidence, marked).into_iter().cloned().collect()
}

/// The run that is being ended, as the stop needs to know it.
pub(crate) struct Target<'a> {
    pub(crate) shim: ProcessId,
    pub(crate) leader: ProcessId,
    pub(crate) run: &'a str,
    pub(crate) signal: StopSignal,
    /// The stop command, while it runs.
    pub(crate) command: Option<ProcessId>,
}

/// A stop under way.
pub(crate) struct Stop {
    ladder: Ladder,
    /// When it began.
    pub(crate) began: Duration,
    /// Whether a daemon asked for it, rather than the leader's own exit.
    pub(crate) requested: bool,
    known: BTreeSet<ProcessId>,
    /// Numbers of processes seen since it began.
    seen: BTreeSet<i32>,
    killed: BTreeSet<ProcessId>,
    strays: BTreeMap<ProcessId, Stray>,
}

impl Stop {
    /// Begins a stop; what to do first is added to `actions`.
    pub(crate) fn begin(
        now: Duration,
        grace: Duration,
        has_command: bool,
        requested: bool,
        actions: &mut Vec<Action>,
    ) -> Self {
        Self {
            ladder: Ladder::begin(now, grace, has_command, actions),
            began: now,
            requested,
            known: BTreeSet::new(),
            seen: BTreeSet::new(),
            killed: BTreeSet::new(),
            strays: BTreeMap::new(),
        }
    }

    /// The ladder, to be told of time and requests.
    pub(crate) fn ladder(&mut self) -> &mut Ladder {
        &mut self.ladder
    }

    /// When what is left will be killed; `None` once that has begun.
    pub(crate) fn kill_at(&self) -> Option<Duration> {
        self.ladder.kill_at()
    }

    /// Looks at the run again.
    pub(crate) fn step(&mut self, now: Duration, view: View, actions: &mut Vec<Action>) {
        self.ladder.step(now, view, actions);
    }

    /// When to look again, even if nothing happens.
    pub(crate) fn deadline(&self, now: Duration) -> Option<Duration> {
        let deadline = self.ladder.deadline();
        if process::ORPHANS_COME_TO_THE_SHIM || self.ladder.is_stuck() {
            return deadline;
        }
        // Members that are no children end without telling; while a stop is under way they are looked at every 10 ms.
        Some(deadline.unwrap_or(Duration::MAX).min(now + process::ladder::ROUND))
    }

    /// Notes that a process of the run was reaped.
    pub(crate) fn reaped(&mut self, pid: i32) {
        self.seen.insert(pid);
    }

    /// Whether any member but the leader is left, for systems where no wait can tell.
    pub(crate) fn is_anyone_left(&self, target: &Target<'_>) -> bool {
        members(target.shim, target.leader, &self.known, target.run).iter().any(|process| process.id != target.leader)
    }

    /// Sends the stop signal, and SIGCONT for those that are stopped: they take no SIGTERM before.
    pub(crate) fn ask(&mut self, target: &Target<'_>) {
        let members = self.look(target);
        let signal = target.signal.0;
        signal_group(target.leader, signal);
        signal_group(target.leader, Signal::SIGCONT);
        for process in members.iter().filter(|process| process.group != target.leader.pid) {
            signal_one(process.id, signal);
            signal_one(process.id, Signal::SIGCONT);
        }
    }

    /// Kills the group and every member outside it.
    pub(crate) fn kill(&mut self, target: &Target<'_>) {
        let members = self.look(target);
        signal_group(target.leader, Signal::SIGKILL);
        for process in &members {
            if process.group != target.leader.pid {
                signal_one(process.id, Signal::SIGKILL);
            }
            self.killed.insert(process.id);
        }
    }

    /// Finds the members, and writes down those not seen before.
    fn look(&mut self, target: &Target<'_>) -> Vec<Process> {
        let mut members = members(target.shim, target.leader, &self.known, target.run);
        if let Some(command) = target.command {
            // The stop command and what it started are ours to end, but only when their time is over.
            members.retain(|process| process.session != command.pid);
        }
        let leader_left = !members.iter().any(|process| process.id == target.leader);
        for process in &members {
            self.known.insert(process.id);
            self.seen.insert(process.id.pid);
            if (leader_left || process.group != target.leader.pid) && !self.strays.contains_key(&process.id) {
                let command = process::command(process.id.pid).unwrap_or_else(|| process.name.clone());
                self.strays.insert(process.id, Stray { process: process.id, command });
            }
        }
        members
    }

    /// Names what could not be ended.
    pub(crate) fn survivors(&mut self, target: &Target<'_>) -> Vec<Survivor> {
        self.look(target).iter().map(survivor).collect()
    }

    /// The account: processes ended, processes killed, strays.
    pub(crate) fn account(self) -> (u32, u32, Vec<Stray>) {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        (count(self.seen.len()), count(self.killed.len()), self.strays.into_values().collect())
    }
}

fn survivor(process: &Process) -> Survivor {
    let own = nix::unistd::getuid().as_raw();
    let reason = match process.state {
        ProcessState::Uninterruptible => {
            "it sleeps where no signal reaches it (state D), most likely on a disk or a network file system".to_owned()
        }
        _ if process.uid != own && own != 0 => {
            format!("it runs as {}, and you may not signal it", process::user_name(process.uid))
        }
        ProcessState::Live | ProcessState::Stopped => "it did not end within 2s of SIGKILL".to_owned(),
        ProcessState::Zombie => "it has ended, and its parent has not taken notice".to_owned(),
    };
    Survivor {
        process: process.id,
        command: process::command(process.id.pid).unwrap_or_else(|| process.name.clone()),
        uid: process.uid,
        reason,
    }
}

/// Signals the leader's group. The leader is unreaped as long as a shim signals it, which pins the number.
fn signal_group(leader: ProcessId, signal: Signal) {
    // An empty group is what is wanted in the end; one that may not be signalled shows as survivors.
    let _: Result<bool, SignalError> = process::signal_group(leader.pid, signal);
}

/// Signals one member that is outside the group.
fn signal_one(process: ProcessId, signal: Signal) {
    // As above: whoever is gone is gone, and whoever may not be signalled shows as a survivor.
    let _: Result<bool, SignalError> = process::signal(process, signal);
}
