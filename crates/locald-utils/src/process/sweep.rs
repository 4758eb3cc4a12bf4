//! Ending a run: finds its members, carries out what the stop ladder orders, and counts what it sees.
//!
//! The [`ladder`](super::ladder) decides when, [`membership`] decides who; this asks the kernel, sends the
//! signals, and keeps the account that becomes the report. The shim sweeps its own run, the daemon a run whose shim is dead or
//! does not answer; [`Target`] says what they know of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::cgroup::Cgroup;
use super::ladder::{Action, Ladder, ROUND, View};
use super::mark::{self, Marks};
use super::membership::{self, Clues, Evidence, Memory};
use super::vicinity::Vicinity;
#[cfg(target_os = "linux")]
use super::vicinity::{Glance, Table};
use super::{ORPHANS_COME_TO_THE_SHIM, Process, ProcessId, ProcessState, SignalError, Socket};
use crate::name::RunId;
use crate::record::{PidRecord, Stray, Survivor};

/// 500 ms: how long a socket may stay open behind the last process that had it. The kernel closes most at once, those of
/// asynchronous input and output (io_uring) a little later.
const PORT_LIMIT: Duration = Duration::from_millis(500);

/// How often a round of killing looks again, as long as it finds somebody new.
const HUNT: usize = 32;

/// 100 ms: how long what a look has found out may serve the next one, at most.
const STALE: Duration = Duration::from_millis(100);

/// 250 in a millisecond: how fast the numbers of processes go round at most. A core starts some ten in that time.
const NUMBERS_PER_MS: u64 = 250;

/// What is known of a run whose processes are to be found.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The run.
    pub run: &'a RunId,
    /// Its leader.
    pub leader: ProcessId,
    /// Whether the leader is a child of the caller that nobody has reaped: then its number, and its group's, are its own.
    pub is_pinned: bool,
    /// The shim, while it is there: on Linux whatever hangs below it is of the run.
    pub keeper: Option<i32>,
    /// Who may be the parent of an orphan of the run.
    pub reapers: &'a [ProcessId],
    /// The run's terminal, while the caller holds it open.
    pub terminal: Option<u64>,
    /// The session that has this terminal (tcgetsid(3)), where the caller can ask.
    pub terminal_session: Option<i32>,
    /// The run's cgroup, where it has one.
    pub cgroup: Option<&'a Cgroup>,
    /// The home whose daemon and shims are no members.
    pub home: Option<&'a OsStr>,
    /// The signal that asks for the end.
    pub signal: Signal,
    /// The stop command, while it runs. It and what it has started have a time of their own.
    pub command: Option<ProcessId>,
    /// The leaders of probes that are being ended. What is in their sessions is none of the service's.
    pub probes: &'a [ProcessId],
}

impl<'a> Target<'a> {
    /// What its record tells of a run to whoever holds nothing of it, neither child nor terminal.
    #[must_use]
    pub fn recorded(record: &'a PidRecord, cgroup: Option<&'a Cgroup>, home: Option<&'a OsStr>) -> Self {
        Self {
            run: &record.run.id,
            leader: record.leader,
            is_pinned: false,
            keeper: None,
            reapers: &record.reapers,
            terminal: None,
            terminal_session: None,
            cgroup,
            home,
            signal: Signal::SIGTERM,
            command: None,
            probes: &[],
        }
    }
}

/// The processes of a run that have lost their parents, and whatever hangs below them: Linux gives them to the shim. Empty on
/// macOS, where launchd has them, and the shim alone knows which.
#[must_use]
pub fn strays_of(shim: i32, leader: ProcessId, home: &OsStr) -> Vec<Stray> {
    if !ORPHANS_COME_TO_THE_SHIM {
        return Vec::new();
    }
    // Nobody but the leader is there as a rule, which one look tells.
    let is_orphan = |&pid: &i32| pid != leader.pid;
    if !super::children(shim).is_ok_and(|children| children.iter().any(is_orphan)) {
        return Vec::new();
    }
    let mut below_leader = BTreeSet::from([leader.pid]);
    let mut strays = Vec::new();
    // Parents come before their children.
    for process in super::descendants(shim).unwrap_or_default() {
        if below_leader.contains(&process.parent) || process.id.pid == leader.pid {
            below_leader.insert(process.id.pid);
        } else if process.state != ProcessState::Zombie
            && !mark::is_supervisor(&process, home)
            && super::marker(process.id.pid, super::PROBE_MARKER).is_none()
        {
            strays.push(Stray { process: process.id, command: super::shown_command(&process) });
        }
    }
    strays
}

impl Target<'_> {
    /// Finds the members, zombies left out, in the order in which they are to be signalled.
    ///
    /// # Errors
    /// When the process table cannot be read. Then nobody can say who is left.
    pub fn members(&self, memory: &Memory) -> io::Result<Vec<Process>> {
        self.newcomers(memory, &mut Vicinity::default())
    }

    /// Finds the members if nothing is known of the vicinity, and else at least those that are new.
    fn newcomers(&self, memory: &Memory, vicinity: &mut Vicinity) -> io::Result<Vec<Process>> {
        match self.keeper {
            Some(keeper) if ORPHANS_COME_TO_THE_SHIM => {
                let cgroup = self.cgroup();
                let mut table = super::descendants(keeper)?;
                let below: BTreeSet<i32> = table.iter().map(|process| process.id.pid).collect();
                table.extend(cgroup.difference(&below).filter_map(|&pid| super::look(pid)));
                let found = membership::members(&table, &self.evidence(&cgroup, memory), &self.marks());
                Ok(self.without_helpers(found.into_iter().cloned()))
            }
            Some(_) | None => self.newcomers_anywhere(memory, vicinity),
        }
    }

    #[cfg(target_os = "linux")]
    fn newcomers_anywhere(&self, memory: &Memory, vicinity: &mut Vicinity) -> io::Result<Vec<Process>> {
        let mut cgroup = self.cgroup();
        for _ in 0..HUNT {
            let found = vicinity.newcomers(self, &self.evidence(&cgroup, memory), &self.marks())?;
            let before = std::mem::replace(&mut cgroup, self.cgroup());
            // Whoever came into it meanwhile may have no other evidence.
            if !found.is_empty() || cgroup.is_subset(&before) {
                return Ok(self.without_helpers(found.into_iter()));
            }
        }
        Err(io::Error::other("its cgroup changed faster than it could be read"))
    }

    /// The table of macOS comes in one piece, and costs the same whatever is wanted of it.
    #[cfg(target_os = "macos")]
    fn newcomers_anywhere(&self, memory: &Memory, _vicinity: &mut Vicinity) -> io::Result<Vec<Process>> {
        let (cgroup, table) = (self.cgroup(), super::all()?);
        let found = membership::members(&table, &self.evidence(&cgroup, memory), &self.marks());
        Ok(self.without_helpers(found.into_iter().cloned()))
    }

    fn cgroup(&self) -> BTreeSet<i32> {
        self.cgroup.map(Cgroup::processes).unwrap_or_default().into_iter().collect()
    }

    fn evidence<'e>(&'e self, cgroup: &'e BTreeSet<i32>, memory: &'e Memory) -> Evidence<'e> {
        Evidence {
            leader: self.leader,
            keeper: self.keeper,
            reapers: self.reapers,
            terminal: self.terminal,
            cgroup,
            memory,
        }
    }

    /// The stop command and what it has started have a time of their own, and a probe's end is seen by whoever has started it.
    fn without_helpers(&self, found: impl Iterator<Item = Process>) -> Vec<Process> {
        found.filter(|process| !self.is_of_helper(process)).collect()
    }

    fn marks(&self) -> Marks<'_> {
        Marks::of(self.run, self.home)
    }

    fn is_of_helper(&self, process: &Process) -> bool {
        self.command.iter().chain(self.probes).any(|leader| process.session == leader.pid)
    }

    /// Whether no process of the run is left but the leader's zombie and the stop command; for the shim, which must know by
    /// its own wait that the leader has exited.
    ///
    /// On Linux this is a proof: every member is a child of the shim, or hangs below one.
    #[must_use]
    pub fn is_empty(&self, memory: &Memory) -> bool {
        let is_known = |pid: i32| pid == self.leader.pid || self.command.is_some_and(|command| command.pid == pid);
        // Not knowing is not being empty.
        let Ok(children) = super::own_children() else { return false };
        // A supervisor that was started from within the run, and lost its parent, is no member and outlives it. A zombie is
        // reaped first, so that it is counted.
        let is_member = |pid: &i32| super::look(*pid).is_some_and(|process| !self.marks().is_supervisor(&process));
        if children.iter().filter(|&&pid| !is_known(pid)).any(is_member) {
            return false;
        }
        if ORPHANS_COME_TO_THE_SHIM && self.cgroup.is_none_or(|cgroup| cgroup.processes().is_empty()) {
            return true;
        }
        self.members(memory).is_ok_and(|members| members.iter().all(|process| process.id == self.leader))
    }
}

#[cfg(target_os = "linux")]
impl Table for Target<'_> {
    fn numbers(&self) -> io::Result<impl Iterator<Item = i32>> {
        super::os::pids()
    }

    fn newest(&self) -> Option<i32> {
        super::os::newest()
    }

    fn glance(&self, pid: i32) -> Option<Glance> {
        // In this order: whoever is there for the second question was there for the first.
        let may_be_marked = self.marks().may_be_inherited_by(pid);
        let (session, group) = super::os::affiliation(pid)?;
        // Session 0 is that of kernel threads, and of whoever has come from outside of this namespace of numbers.
        let is_suspect = session != 0 && (may_be_marked || Some(session) == self.terminal_session);
        Some(Glance { session, group, is_suspect })
    }

    fn is_process(&self, pid: i32) -> bool {
        super::os::is_process(pid)
    }

    fn look(&self, pid: i32) -> Option<Process> {
        super::look(pid)
    }

    fn children(&self, pid: i32) -> io::Result<Vec<i32>> {
        super::children(pid)
    }
}

/// What the end of a run is reported by.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// How many processes were seen to end.
    pub processes: u32,
    /// How many of them had to be killed.
    pub killed: u32,
    /// Which had left the leader's group or outlived the leader.
    pub strays: Vec<Stray>,
    /// Who has ports of the run now that it is over.
    pub holders: Vec<Survivor>,
}

/// A stop under way.
#[derive(Debug)]
pub struct Sweep {
    ladder: Ladder,
    /// When it began.
    pub began: Duration,
    /// Whether somebody asked for it, rather than the leader having exited by itself.
    pub requested: bool,
    memory: Memory,
    /// What has been found out so far, and when the last look began.
    vicinity: Option<(Instant, Vicinity)>,
    /// How long that may serve: numbers that have gone round once are other processes'.
    stale: Duration,
    /// Numbers of processes seen since it began.
    seen: BTreeSet<i32>,
    killed: BTreeSet<ProcessId>,
    strays: BTreeMap<ProcessId, Stray>,
    /// The sockets on which members listened when the stop began.
    sockets: Option<Vec<Socket>>,
    /// Until when a socket that is still open is waited for, and when to look at it next.
    ports: Option<(Duration, Duration)>,
    holders: Vec<Survivor>,
}

impl Sweep {
    /// Begins a stop that may take `grace`; what to do first is added to `actions`. `memory` has the members seen so far.
    pub fn begin(
        now: Duration,
        grace: Duration,
        has_command: bool,
        requested: bool,
        memory: Memory,
        actions: &mut Vec<Action>,
    ) -> Self {
        Self {
            ladder: Ladder::begin(now, grace, has_command, actions),
            began: now,
            requested,
            memory,
            vicinity: None,
            stale: stale(super::features::pid_max()),
            seen: BTreeSet::new(),
            killed: BTreeSet::new(),
            strays: BTreeMap::new(),
            sockets: None,
            ports: None,
            holders: Vec::new(),
        }
    }

    /// The ladder, to be told of time and requests.
    pub fn ladder(&mut self) -> &mut Ladder {
        &mut self.ladder
    }

    /// When what is left will be killed; `None` once that has begun.
    #[must_use]
    pub fn kill_at(&self) -> Option<Duration> {
        self.ladder.kill_at()
    }

    /// Who has been a member.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Takes the next step, knowing what is left.
    pub fn step(&mut self, now: Duration, view: View, actions: &mut Vec<Action>) {
        self.ladder.step(now, view, actions);
    }

    /// When to look again, even if nothing happens.
    #[must_use]
    pub fn deadline(&self, now: Duration) -> Option<Duration> {
        let deadline = [self.ladder.deadline(), self.ports.map(|(_, next)| next)].into_iter().flatten().min();
        if ORPHANS_COME_TO_THE_SHIM || self.ladder.is_stuck() {
            return deadline;
        }
        // Members that are no children end without telling; while a stop is under way they are looked at every 10 ms.
        Some(deadline.unwrap_or(Duration::MAX).min(now + ROUND))
    }

    /// Notes that a process of the run was reaped.
    pub fn reaped(&mut self, pid: i32) {
        self.seen.insert(pid);
    }

    /// Finds the members, and writes down those not seen before.
    ///
    /// # Errors
    /// When the process table cannot be read.
    pub fn look(&mut self, target: &Target<'_>) -> io::Result<Vec<Process>> {
        let (began, mut vicinity) = (Instant::now(), Vicinity::default());
        let members = target.newcomers(&self.memory, &mut vicinity);
        self.vicinity = Some((began, vicinity));
        let members = members?;
        self.see(target.leader, &members);
        Ok(members)
    }

    /// Writes down members that were found.
    pub fn see(&mut self, leader: ProcessId, members: &[Process]) {
        self.memory.add(members);
        self.seen.extend(members.iter().map(|process| process.id.pid));
        let is_leader_gone = !members.iter().any(|process| process.id == leader);
        for process in members {
            if (is_leader_gone || process.group != leader.pid) && !self.strays.contains_key(&process.id) {
                self.strays.insert(process.id, Stray { process: process.id, command: super::shown_command(process) });
            }
        }
    }

    /// Carries out an order of the ladder. The stop command is the caller's to start and to end. A report of survivors is
    /// returned.
    pub fn carry_out(&mut self, action: Action, target: &Target<'_>) -> Option<Vec<Survivor>> {
        // A table that cannot be read shows nobody; the next round asks again, and the run is not over by that.
        match action {
            Action::Ask => {
                let members = self.look(target).unwrap_or_default();
                self.note_sockets(&members);
                for signal in [target.signal, Signal::SIGCONT] {
                    send(target, &members, signal);
                }
            }
            Action::Kill => {
                if self.sockets.is_none() {
                    let members = self.look(target).unwrap_or_default();
                    self.note_sockets(&members);
                }
                // Whoever is known is killed before others are looked for, which takes longer.
                let known = self.known(target);
                self.see(target.leader, &known);
                if let Some(cgroup) = target.cgroup {
                    // What is forked while this is written is killed as well. A kernel that cannot do it, or a leaf that is
                    // gone: what follows does the same.
                    let _ = cgroup.kill();
                }
                self.hunt(target, known);
            }
            Action::GiveUp => {
                // Whatever is left is named now.
                let target = &Target { probes: &[], ..*target };
                return Some(match self.look(target) {
                    Ok(left) => left.iter().map(survivor).collect(),
                    Err(error) => match self.known(target).as_slice() {
                        [] => vec![unreadable(&error)],
                        left => left.iter().map(survivor).collect(),
                    },
                });
            }
            Action::RunCommand | Action::EndCommand => {}
        }
        None
    }

    /// The members that need not be looked for: those that were found before and are still there, and whoever is in the
    /// run's cgroup.
    fn known(&self, target: &Target<'_>) -> Vec<Process> {
        let found_before = self.memory.ids().filter_map(|id| super::look(id.pid).filter(|process| process.id == id));
        let is_new = |process: &Process| !self.memory.has(process.id) && !target.marks().is_supervisor(process);
        let in_cgroup = target.cgroup().into_iter().filter_map(super::look).filter(is_new);
        let living = found_before.chain(in_cgroup).filter(|process| process.state != ProcessState::Zombie);
        target.without_helpers(living)
    }

    /// The members that were found and have not ended yet.
    #[must_use]
    pub fn living(&self) -> Vec<ProcessId> {
        self.memory.ids().filter(|process| process.is_alive()).collect()
    }

    /// Kills members, and at once whoever they have started meanwhile: one that hands on every few milliseconds is caught
    /// only by who looks as often.
    fn hunt(&mut self, target: &Target<'_>, mut members: Vec<Process>) {
        let fresh = self.vicinity.take().filter(|(at, _)| at.elapsed() < self.stale);
        let mut vicinity = fresh.map(|(_, vicinity)| vicinity).unwrap_or_default();
        for _ in 0..HUNT {
            send(target, &members, Signal::SIGKILL);
            self.killed.extend(members.iter().map(|process| process.id));
            let began = Instant::now();
            // A table that cannot be read shows nobody; the next round asks again, and the run is not over by that.
            let Ok(found) = target.newcomers(&self.memory, &mut vicinity) else { return };
            self.see(target.leader, &found);
            members = found;
            members.retain(|process| !self.killed.contains(&process.id));
            if members.is_empty() {
                self.vicinity = Some((began, vicinity));
                return;
            }
        }
    }

    /// Notes on which sockets the members listen, once: what they are asked for, they close.
    fn note_sockets(&mut self, members: &[Process]) {
        if self.sockets.is_none() {
            let pids: Vec<i32> = members.iter().map(|process| process.id.pid).collect();
            self.sockets = Some(super::sockets_of(&pids).unwrap_or_default());
        }
    }

    /// Whether the ports are free on which members listened. To be asked when no member is left; `false` asks to be asked
    /// again at the next [`Sweep::deadline`], and is not said for ever: then somebody else has the socket, who is named in
    /// the account.
    pub fn are_ports_free(&mut self, now: Duration) -> bool {
        let Some(sockets) = self.sockets.as_deref().filter(|sockets| !sockets.is_empty()) else { return true };
        let open = super::still_open(sockets).unwrap_or_default();
        let (until, _) = *self.ports.get_or_insert((now + PORT_LIMIT, now));
        if open.is_empty() || now >= until {
            self.holders = open.into_iter().map(|(socket, holder)| holder_of(socket, holder)).collect();
            self.sockets = None;
            self.ports = None;
            return true;
        }
        self.ports = Some((until, now + ROUND));
        false
    }

    /// The account.
    #[must_use]
    pub fn account(self) -> Account {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Account {
            processes: count(self.seen.len()),
            killed: count(self.killed.len()),
            strays: self.strays.into_values().collect(),
            holders: self.holders,
        }
    }
}

/// How long a look may serve where numbers go up to `pid_max`: in that time none is given to two processes.
fn stale(pid_max: Option<u64>) -> Duration {
    pid_max.map_or(Duration::ZERO, |max| Duration::from_micros(max.saturating_mul(1000) / NUMBERS_PER_MS).min(STALE))
}

/// Sends a signal to the group as a whole, where its number is known to be its own, and to every member by its identity.
fn send(target: &Target<'_>, members: &[Process], signal: Signal) {
    // Whoever is gone is gone, and whoever may not be signalled shows as a survivor.
    if target.is_pinned {
        let _: Result<bool, SignalError> = super::signal_group(target.leader.pid, signal);
    }
    for process in members.iter().filter(|process| !target.is_pinned || process.group != target.leader.pid) {
        let _: Result<bool, SignalError> = super::signal(process.id, signal);
    }
}

/// Stands for those who may be left when nobody can say who is.
fn unreadable(error: &io::Error) -> Survivor {
    Survivor {
        process: ProcessId { pid: 0, start: 0 },
        command: "a process that could not be looked for".to_owned(),
        uid: 0,
        reason: format!("the process table could not be read: {error}"),
    }
}

/// Says why a process is still there.
#[must_use]
pub fn survivor(process: &Process) -> Survivor {
    let own = nix::unistd::getuid().as_raw();
    let reason = match process.state {
        ProcessState::Uninterruptible => {
            "it sleeps where no signal reaches it (state D), most likely on a disk or a network file system".to_owned()
        }
        _ if process.uid != own && own != 0 => {
            format!("it runs as {}, and you may not signal it", super::local_user_name(process.uid))
        }
        ProcessState::Live | ProcessState::Stopped => "it did not end within 2s of SIGKILL".to_owned(),
        ProcessState::Zombie => "it has ended, and its parent has not taken notice".to_owned(),
    };
    Survivor { process: process.id, command: super::shown_command(process), uid: process.uid, reason }
}

/// Says who has a socket of a run that is over.
fn holder_of(socket: Socket, holder: Option<Process>) -> Survivor {
    let reason =
        format!("it is no process of the run, and has been given its socket: port {} is not free", socket.port);
    match holder {
        Some(process) => {
            Survivor { process: process.id, command: super::shown_command(&process), uid: process.uid, reason }
        }
        None => Survivor {
            process: ProcessId { pid: 0, start: 0 },
            command: "a process that is not shown to you".to_owned(),
            uid: 0,
            reason,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_serves_no_longer_than_numbers_need_to_go_round() {
        assert_eq!(stale(Some(4_194_304)), STALE);
        assert_eq!(stale(Some(32_768)), STALE);
        assert_eq!(stale(Some(300)), Duration::from_micros(1200));
        assert_eq!(stale(None), Duration::ZERO, "who does not know looks again");
    }
}
