//! Commands that a health check asks with: each runs beside the leader, in a session of its own, for a limited time.
//!
//! Whatever a probe has started ends with it: what is below it, in its session, or carries its mark is killed when it has ended, or
//! when its time is over. Whoever gets away even so is a member of the run, like anybody below the shim, and ends with the run.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use locald_utils::name::RunId;
use locald_utils::process::cgroup::Cgroup;
use locald_utils::process::{self, PROBE_MARKER, ProcessId, ProcessState, sys};
use locald_utils::record::StartFailure;
use locald_utils::shim_protocol::{FromShim, ProbeOutcome};
use locald_utils::spec::OsText;
use nix::sys::signal::Signal;

use crate::live::Live;
use crate::pump::{Pump, State};
use crate::set_nonblocking;
use crate::signs::READS_PER_TURN;
use crate::spawn::{self, Helper, Plan, Progress, failure};

/// 32: how often a probe's processes are looked for. Whoever hands on for longer ends with the run.
const ROUNDS: usize = 32;

/// 16: so many probes may have ended, one after the other, before the last of what they have started is reaped.
const MOST_SESSIONS: usize = 16;

/// 512 bytes: what is kept of what a probe says, its end.
const TAIL: usize = 512;

/// A probe that has not been reaped yet.
pub(crate) struct Probe {
    check: u32,
    pub(crate) helper: Helper,
    until: Duration,
    limit: Duration,
    /// Its own, where the run has one.
    cgroup: Option<Cgroup>,
    output: Option<OwnedFd>,
    tail: Vec<u8>,
    failure: Option<StartFailure>,
    /// Whether it was killed because its time was over.
    is_late: bool,
}

impl Probe {
    /// What to poll for what it says.
    pub(crate) fn output(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().map(AsFd::as_fd)
    }

    /// When its time is over.
    pub(crate) fn until(&self) -> Option<Duration> {
        (!self.is_late).then_some(self.until)
    }

    fn hear_output(&mut self) {
        let Some(output) = &self.output else { return };
        let mut buffer = [0; 4096];
        // Not for ever: whoever writes without end is read a part of in each turn.
        for _ in 0..READS_PER_TURN {
            match nix::unistd::read(output, &mut buffer) {
                Ok(count @ 1..) => {
                    self.tail.extend(&buffer[..count]);
                    let surplus = self.tail.len().saturating_sub(TAIL);
                    self.tail.drain(..surplus);
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => return,
                Ok(_) | Err(_) => {
                    self.output = None;
                    return;
                }
            }
        }
    }

    /// The last line that it has said.
    fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.tail);
        text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
    }
}

impl Pump {
    /// Starts a probe. What hinders it is its outcome.
    pub(crate) fn probe(&mut self, check: u32, limit: Duration) {
        let until = self.now() + limit;
        let State::Live(live) = &mut self.state else { return };
        // A stop leaves no time for questions, and before its start there is nobody to ask.
        if !live.is_running() {
            return;
        }
        // A daemon that has come since asks what the last one has asked already.
        if live.probes.iter().any(|probe| probe.check == check) {
            return;
        }
        match start(live, &self.identity.run.id, check) {
            Ok((helper, output, cgroup)) => {
                live.probe_leaders.push(helper.process);
                live.probe_sessions.push_back(helper.process.pid);
                live.probe_sessions.drain(..live.probe_sessions.len().saturating_sub(MOST_SESSIONS));
                live.probes.push(Probe {
                    check,
                    helper,
                    cgroup,
                    until,
                    limit,
                    output: Some(output),
                    tail: Vec::new(),
                    failure: None,
                    is_late: false,
                });
            }
            Err(error) => {
                let stage = locald_utils::record::StartStage::Helper;
                let outcome = ProbeOutcome::Failed(failure(stage, &error, "it could not be run"));
                self.link.tell(&FromShim::Probed { check, outcome }, &[]);
            }
        }
    }

    /// Hears how far a probe has come.
    pub(crate) fn hear_probe(&mut self, index: usize) {
        let State::Live(live) = &mut self.state else { return };
        let Some(probe) = live.probes.get_mut(index) else { return };
        match probe.helper.progress() {
            Progress::Waiting | Progress::Running => {}
            // A gate that does not open is a probe that is gone; its exit follows.
            Progress::Ready(_) => drop(probe.helper.open_gate()),
            Progress::Failed(failure) => probe.failure = Some(failure),
        }
    }

    /// Reads what a probe says.
    pub(crate) fn hear_probe_output(&mut self, index: usize) {
        let State::Live(live) = &mut self.state else { return };
        if let Some(probe) = live.probes.get_mut(index) {
            probe.hear_output();
        }
    }

    /// Ends the probes whose time is over.
    pub(crate) fn end_late_probes(&mut self) {
        let now = self.now();
        let State::Live(live) = &mut self.state else { return };
        let late = live.probes.iter_mut().filter(|probe| !probe.is_late && probe.until <= now);
        let late: Vec<(u32, ProcessId)> = late
            .map(|probe| {
                probe.is_late = true;
                (probe.check, probe.helper.process)
            })
            .collect();
        for (check, leader) in late {
            self.end_probe(check, leader);
        }
    }

    /// Ends all probes: the run is being ended.
    pub(crate) fn end_probes(&mut self) {
        let State::Live(live) = &self.state else { return };
        let all: Vec<(u32, ProcessId)> = live.probes.iter().map(|probe| (probe.check, probe.helper.process)).collect();
        for (check, leader) in all {
            self.end_probe(check, leader);
        }
    }

    /// Kills a probe, and whatever it has started, until there is nobody new. Whoever was killed is reaped as any child.
    fn end_probe(&self, check: u32, leader: ProcessId) {
        let State::Live(live) = &self.state else { return };
        let probe = live.probes.iter().find(|probe| probe.check == check);
        if let Some(cgroup) = probe.and_then(|probe| probe.cgroup.as_ref()) {
            kill_all(cgroup);
        }
        // It leads a session of its own, and is unreaped: the number is its.
        let _ = process::signal_group(leader.pid, Signal::SIGKILL);
        self.end_leftovers(check, leader);
    }

    /// Kills what a probe has left behind. Whoever hands on faster than this looks ends with the run.
    fn end_leftovers(&self, check: u32, leader: ProcessId) {
        // Whoever was left behind and has no parent any more hangs below the shim itself, where that is how it is; elsewhere only
        // those are found who have one.
        let State::Live(live) = &self.state else { return };
        let known = live.probe_leaders.iter().chain(live.command.as_ref().map(|command| &command.process));
        let known: Vec<i32> = known.chain([&live.leader, &leader]).map(|process| process.pid).collect();
        let has_ended = sys::exited(leader.pid).is_ok_and(|status| status.is_some());
        let is_alone = process::own_children().is_ok_and(|children| children.iter().all(|child| known.contains(child)));
        if has_ended && is_alone {
            return;
        }
        let mark = mark(&self.identity.run.id, check);
        let mut killed = std::collections::BTreeSet::from([leader.pid]);
        for _ in 0..ROUNDS {
            let below = process::descendants(self.shim.pid).unwrap_or_default();
            let is_new = |process: &&process::Process| {
                process.state != ProcessState::Zombie
                    && !killed.contains(&process.id.pid)
                    && (process.session == leader.pid
                        || killed.contains(&process.parent)
                        || process::marker(process.id.pid, PROBE_MARKER).is_some_and(|found| found == mark))
            };
            let found: Vec<ProcessId> = below.iter().filter(is_new).map(|process| process.id).collect();
            if found.is_empty() {
                return;
            }
            for process in found {
                // Whoever is gone is gone, and whoever may not be signalled ends with the run, or is told of then.
                let _ = process::signal(process, Signal::SIGKILL);
                killed.insert(process.pid);
            }
        }
    }

    /// Takes notice that a child has ended, if it was a probe. It is still a zombie.
    pub(crate) fn reap_probe(&mut self, pid: i32) {
        let State::Live(live) = &mut self.state else { return };
        let Some(index) = live.probes.iter().position(|probe| probe.helper.process.pid == pid) else { return };
        let Ok(Some(status)) = sys::exited(pid) else { return };
        // What it had to say last is in its pipe, and why it could not be run in its socket.
        self.hear_probe(index);
        self.hear_probe_output(index);
        let State::Live(live) = &mut self.state else { return };
        let probe = live.probes.remove(index);
        live.probe_leaders.retain(|leader| leader.pid != pid);
        let is_asked = live.stop.is_none();
        if let Some(cgroup) = &probe.cgroup {
            kill_all(cgroup);
            live.probe_cgroups.push(cgroup.clone());
        }
        self.end_leftovers(probe.check, probe.helper.process);
        let output = probe.last_line();
        let outcome = match probe.failure {
            Some(failure) => ProbeOutcome::Failed(failure),
            None if probe.is_late => ProbeOutcome::TimedOut { limit: probe.limit, output },
            None => ProbeOutcome::Exited { status, output },
        };
        if is_asked {
            self.link.tell(&FromShim::Probed { check: probe.check, outcome }, &[]);
        }
    }
}

/// Kills all who are in the cgroup of a probe.
fn kill_all(cgroup: &Cgroup) {
    let processes = cgroup.processes();
    if !processes.is_empty() && cgroup.kill().is_err() {
        // Before Linux 5.14 one by one.
        for process in processes.into_iter().filter_map(ProcessId::of) {
            let _ = process::signal(process, Signal::SIGKILL);
        }
    }
}

fn mark(run: &RunId, check: u32) -> String {
    format!("{}-{check}", run.as_str())
}

fn start(live: &mut Live, run: &RunId, check: u32) -> io::Result<(Helper, OwnedFd, Option<Cgroup>)> {
    let command = live.order.probes.get(&check).cloned().ok_or_else(|| io::Error::other("there is no such check"))?;
    let (reader, writer) = nix::unistd::pipe()?;
    set_nonblocking(&reader)?;
    let mut environment = live.order.environment.clone();
    environment.insert(PROBE_MARKER.to_owned(), OsText::from(mark(run, check)));
    let plan = Plan {
        command,
        workdir: live.order.workdir.clone(),
        environment,
        takes_terminal: false,
        run: run.clone(),
        notification: None,
    };
    let null = File::open("/dev/null")?;
    // Whoever hides from descent, session and environment is still there. Each has a new one: whoever is started in one that was
    // killed before is killed as well.
    live.probe_cgroups.retain(|cgroup| {
        cgroup.remove();
        // Somebody is about to end there.
        cgroup.dir().exists()
    });
    live.probe_count += 1;
    let cgroup = live.cgroup.as_ref().map(|cgroup| cgroup.below(&format!("probe-{}", live.probe_count)));
    let cgroup = cgroup.filter(|cgroup| cgroup.make().is_ok());
    let stdio = [null.as_fd(), writer.as_fd(), writer.as_fd()];
    match Helper::start(plan, cgroup.as_ref().or(live.cgroup.as_ref()), stdio) {
        Ok(helper) => Ok((helper, reader, cgroup)),
        Err(error) => {
            spawn::remove(cgroup);
            Err(error)
        }
    }
}
