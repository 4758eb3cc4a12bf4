//! Finding a run's members without reading the whole process table.
//!
//! A full look at a process costs about 13 us, twenty times what it costs to ask for its session, group and limit by its
//! number. So every process is glanced at, and only those are looked at that may matter: whoever a glance makes suspect, the
//! children of those who collect orphans, and around each member found its children, its session and its group, until nobody
//! new is found. [`membership`] decides as ever; what it finds here is what it would find in the whole table.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::membership::{self, Clues, Evidence};
use super::{Process, ProcessId, ProcessState};

/// How many passes are made over the table at most. The first takes milliseconds, the others look at who is new.
const PASSES: usize = 32;

/// 256: the most numbers that are asked for one by one. Reading all of a table takes longer the longer it is.
const FEW: i32 = 256;

/// What is told of a process by its number.
#[derive(Clone, Copy, Debug)]
pub struct Glance {
    /// Its session.
    pub session: i32,
    /// Its process group.
    pub group: i32,
    /// Whether it may be a member, whatever it is next to: it carries the mark in its limit, or does not let us see.
    pub is_suspect: bool,
}

/// A process table that can be asked in part.
pub trait Table {
    /// The numbers of all processes, zombies included, the lowest first.
    ///
    /// # Errors
    /// When they cannot be read.
    fn numbers(&self) -> io::Result<impl Iterator<Item = i32>>;

    /// The number that was given out last, where it is told.
    fn newest(&self) -> Option<i32>;

    /// Glances at a process; `None` when it is gone.
    fn glance(&self, pid: i32) -> Option<Glance>;

    /// Whether a number that is glanced at is that of a process. Threads are numbered with them.
    fn is_process(&self, pid: i32) -> bool;

    /// Looks at a process; `None` when it is gone.
    fn look(&self, pid: i32) -> Option<Process>;

    /// The children of a process; none when it is gone.
    ///
    /// # Errors
    /// When they cannot be read.
    fn children(&self, pid: i32) -> io::Result<Vec<i32>>;
}

/// Finds the members of a run, in the order of [`membership::members`].
///
/// Evidence of a terminal and of a keeper is not searched for: who is in the session that has the terminal must be suspect.
///
/// That nobody is left is said only when it is certain. A member may start another and end before it is looked at, so whenever
/// somebody was gone before that, or numbers began anew, those who came meanwhile are looked at as well. (A new process has a
/// higher number than those before it, so a pass over the table that misses nobody meets it, or whoever has started it.) Who was
/// in a session that a stranger leads was a stranger, because a session is inherited or new: such come and go as they like.
///
/// # Errors
/// When the table cannot be read, or changes faster than that.
pub fn members(table: &impl Table, evidence: &Evidence<'_>, clues: &impl Clues) -> io::Result<Vec<Process>> {
    Vicinity::default().newcomers(table, evidence, clues)
}

/// The part of a process table that matters for a run, as far as it is known.
///
/// It is true for a moment only: what is kept of a process may be another's after the numbers have gone round once.
#[derive(Debug, Default)]
pub struct Vicinity {
    /// The number that had been given out last when the last pass was over.
    newest: Option<i32>,
    /// The number up to which all are listed who were there and may be members.
    asked_up_to: Option<i32>,
    /// Who was there, and in which session if that could be asked.
    listed: BTreeMap<i32, Option<i32>>,
    /// Who was gone before it could be looked at, or asked about, since this pass began.
    missed: BTreeSet<i32>,
    sessions: BTreeMap<i32, Vec<i32>>,
    groups: BTreeMap<i32, Vec<i32>>,
    /// Who is to be looked at.
    open: BTreeSet<i32>,
    /// Who was looked at; `None` when it was gone.
    looked_at: BTreeMap<i32, Option<Process>>,
    /// Whose neighbours are to be looked at, or were.
    surrounded: BTreeSet<i32>,
    /// The sessions and groups of members.
    within: BTreeSet<i32>,
    /// Who was there after it had been asked whether they are members.
    confirmed: BTreeSet<i32>,
    /// Which members the caller has been told of: all that have been found.
    told: BTreeSet<ProcessId>,
    answers: Answers,
    /// Whether somebody may have escaped since this pass began.
    is_uncertain: bool,
}

impl Vicinity {
    /// Finds members that have not been told yet. After the first time this takes a fraction of a millisecond, because only
    /// those are looked at who came meanwhile.
    ///
    /// # Errors
    /// As [`members`].
    pub fn newcomers(
        &mut self,
        table: &impl Table,
        evidence: &Evidence<'_>,
        clues: &impl Clues,
    ) -> io::Result<Vec<Process>> {
        for _ in 0..PASSES {
            self.is_uncertain = false;
            self.missed.clear();
            // One that hands on every few milliseconds is met only by who asks at once for the newest.
            self.glance_at_newest(table);
            let found = self.search(table, evidence, clues);
            if !found.is_empty() {
                return Ok(found);
            }
            self.pass(table, evidence)?;
            let found = self.search(table, evidence, clues);
            if !found.is_empty() {
                return Ok(found);
            }
            self.confirm(table, evidence);
            if !self.is_uncertain && self.missed.iter().all(|pid| self.was_a_stranger(*pid, clues)) {
                return Ok(found);
            }
        }
        Err(io::Error::other("it changed faster than it could be read"))
    }

    /// Lists those of the newest processes who may be members. Who has ended meanwhile is not missed: the pass that follows tells
    /// whether anybody was.
    fn glance_at_newest(&mut self, table: &impl Table) {
        let (Some(before), Some(newest)) = (self.asked_up_to, table.newest()) else { return };
        if newest <= before || newest - before > FEW {
            return;
        }
        for pid in (before + 1..=newest).filter(|pid| !self.listed.contains_key(pid)).collect::<Vec<i32>>() {
            let Some(glance) = table.glance(pid).filter(|glance| self.is_of_interest(glance)) else { continue };
            if table.is_process(pid) {
                self.list(pid, &glance);
            }
        }
        self.asked_up_to = Some(newest);
    }

    fn is_of_interest(&self, glance: &Glance) -> bool {
        glance.is_suspect || self.within.contains(&glance.session) || self.within.contains(&glance.group)
    }

    fn list(&mut self, pid: i32, glance: &Glance) {
        self.listed.insert(pid, Some(glance.session));
        self.sessions.entry(glance.session).or_default().push(pid);
        self.groups.entry(glance.group).or_default().push(pid);
        if self.is_of_interest(glance) {
            self.open.insert(pid);
        }
    }

    /// Glances at everybody who has not been listed.
    fn pass(&mut self, table: &impl Table, evidence: &Evidence<'_>) -> io::Result<()> {
        let asked_up_to = table.newest();
        let before = self.newest.or(asked_up_to);
        for pid in table.numbers()? {
            if self.listed.contains_key(&pid) {
                continue;
            }
            match table.glance(pid) {
                Some(glance) => self.list(pid, &glance),
                None => {
                    self.listed.insert(pid, None);
                    self.missed.insert(pid);
                }
            }
        }
        let newest = table.newest();
        if before > newest {
            // A number that was listed may be somebody else's now.
            let told = std::mem::take(&mut self.told);
            *self = Self { is_uncertain: true, told, ..Self::default() };
        }
        self.newest = newest;
        self.asked_up_to = asked_up_to;
        self.open.insert(evidence.leader.pid);
        self.open.extend(evidence.memory.ids().map(|process| process.pid));
        self.open.extend(evidence.cgroup);
        self.add_children(table, 1);
        for reaper in evidence.reapers {
            if table.look(reaper.pid).is_some_and(|process| process.id == *reaper) {
                self.add_children(table, reaper.pid);
            }
        }
        Ok(())
    }

    /// Finds members among those who are to be looked at, and around them. Returns those that have not been told.
    fn search(&mut self, table: &impl Table, evidence: &Evidence<'_>, clues: &impl Clues) -> Vec<Process> {
        let mut found = Vec::new();
        loop {
            self.open.retain(|pid| !self.looked_at.contains_key(pid));
            if self.open.is_empty() {
                found.retain(|process: &Process| self.told.insert(process.id));
                return found;
            }
            std::mem::take(&mut self.open).into_iter().for_each(|pid| self.look(table, pid));
            let known: Vec<Process> =
                self.looked_at.values().flatten().filter(|seen| self.matters(seen, evidence)).cloned().collect();
            let answers = std::mem::take(&mut self.answers);
            let asked = Asked { clues, answers: answers.into() };
            let members = membership::members_and_zombies(&known, evidence, &asked);
            self.answers = asked.answers.into_inner();
            for member in &members {
                self.surround(table, member, evidence);
            }
            found = membership::living(members).cloned().collect();
        }
    }

    /// Whether a process has a part in what is to be decided. A zombie only says whose a session or a group is, to others that are
    /// in it; where nobody reaps there are thousands that say it to nobody.
    fn matters(&self, process: &Process, evidence: &Evidence<'_>) -> bool {
        let is_shared = |all: &BTreeMap<i32, Vec<i32>>, number| all.get(&number).is_some_and(|pids| pids.len() > 1);
        process.state != ProcessState::Zombie
            || process.id == evidence.leader
            || evidence.memory.has(process.id)
            || is_shared(&self.sessions, process.session)
            || is_shared(&self.groups, process.group)
    }

    /// Has the neighbours of a member looked at.
    fn surround(&mut self, table: &impl Table, member: &Process, evidence: &Evidence<'_>) {
        if !self.surrounded.insert(member.id.pid) {
            return;
        }
        self.add_children(table, member.id.pid);
        for (all, number) in [(&self.sessions, member.session), (&self.groups, member.group)] {
            let leader = self.looked_at.get(&number).and_then(Option::as_ref);
            if membership::began_within(number, leader, evidence) {
                self.within.insert(number);
                self.open.extend(all.get(&number).into_iter().flatten());
            }
        }
    }

    /// Looks at a process, and at the leaders of its session and group: those of a stranger need not be looked at.
    fn look(&mut self, table: &impl Table, pid: i32) {
        let leaders = match self.look_once(table, pid) {
            Some(process) => [Some(process.session), Some(process.group)],
            None => [self.listed.get(&pid).copied().flatten(), None],
        };
        for leader in leaders.into_iter().flatten() {
            self.look_once(table, leader);
        }
    }

    fn look_once(&mut self, table: &impl Table, pid: i32) -> Option<Process> {
        if let Some(known) = self.looked_at.get(&pid) {
            return known.clone();
        }
        let process = table.look(pid);
        let has_ended = process.as_ref().is_none_or(|process| process.state == ProcessState::Zombie);
        // One that had ended before this pass began has started nobody since, and is not looked at twice.
        if has_ended && self.listed.contains_key(&pid) {
            self.missed.insert(pid);
        }
        self.looked_at.insert(pid, process.clone());
        process
    }

    fn add_children(&mut self, table: &impl Table, pid: i32) {
        let Ok(children) = table.children(pid) else {
            self.is_uncertain = true;
            return;
        };
        // One that was not listed came later, and is glanced at in the next pass.
        self.is_uncertain |= children.iter().any(|child| !self.listed.contains_key(child));
        for &child in &children {
            // Its parent may have been another when it was looked at; now it is an orphan, and its environment counts.
            if self.looked_at.get(&child).and_then(Option::as_ref).is_some_and(|known| known.parent != pid) {
                self.looked_at.remove(&child);
            }
        }
        self.open.extend(children);
    }

    /// Looks for those who ended while it was asked whether they are members: that cannot be told of them any more.
    fn confirm(&mut self, table: &impl Table, evidence: &Evidence<'_>) {
        for (&pid, process) in &self.looked_at {
            let Some(process) = process else { continue };
            let is_of_interest = process.state != ProcessState::Zombie && !membership::is_older(process, evidence);
            if !is_of_interest || !self.confirmed.insert(pid) {
                continue;
            }
            let now = table.look(pid);
            if now.is_none_or(|now| now.id != process.id || now.state == ProcessState::Zombie) {
                self.missed.insert(pid);
            }
        }
    }

    /// Whether one that was missed is known not to have been a member: somebody else leads the session that it was in. (Who looks
    /// after runs leads one in which a member may begin.)
    fn was_a_stranger(&self, missed: i32, clues: &impl Clues) -> bool {
        let Some(session) = self.listed.get(&missed).copied().flatten().filter(|session| *session != missed) else {
            return false;
        };
        let leader = self.looked_at.get(&session).and_then(Option::as_ref);
        leader.is_some_and(|leader| {
            let is_there = leader.state != ProcessState::Zombie && !self.missed.contains(&session);
            let is_member = self.told.contains(&leader.id);
            let is_leader = leader.session == session && clues.carries_mark(leader).is_some();
            is_there && is_leader && !is_member && !clues.is_supervisor(leader)
        })
    }
}

/// What was answered about processes and stays true of them.
#[derive(Debug, Default)]
struct Answers {
    inherits: BTreeMap<ProcessId, bool>,
    carries: BTreeMap<ProcessId, bool>,
    supervises: BTreeMap<ProcessId, bool>,
}

/// Clues that are asked for once.
struct Asked<'c, C> {
    clues: &'c C,
    answers: RefCell<Answers>,
}

impl<C: Clues> Clues for Asked<'_, C> {
    fn inherits_mark(&self, process: &Process) -> bool {
        let answers = &mut self.answers.borrow_mut().inherits;
        *answers.entry(process.id).or_insert_with(|| self.clues.inherits_mark(process))
    }

    fn carries_mark(&self, process: &Process) -> Option<bool> {
        let answers = &mut self.answers.borrow_mut().carries;
        if let Some(known) = answers.get(&process.id) {
            return Some(*known);
        }
        let answer = self.clues.carries_mark(process)?;
        answers.insert(process.id, answer);
        Some(answer)
    }

    fn is_supervisor(&self, process: &Process) -> bool {
        let answers = &mut self.answers.borrow_mut().supervises;
        *answers.entry(process.id).or_insert_with(|| self.clues.is_supervisor(process))
    }
}
