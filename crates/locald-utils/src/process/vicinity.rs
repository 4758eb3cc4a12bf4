//! Finding a run's members without reading the whole process table.
//!
//! A full look at a process costs about 13 us, twenty times what it costs to ask for its session, group and limit by its
//! number. So every process is glanced at, and only those are looked at that may matter: whoever a glance makes suspect, the
//! children of those who collect orphans, and around each member found its children, its session and its group, until nobody
//! new is found. [`membership`] decides as ever; what it finds here is what it would find in the whole table.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::Process;
use super::membership::{self, Clues, Evidence};

/// How often the table is asked again when nobody was found and somebody vanished meanwhile: whoever has started another and
/// ended between two looks must not make a run look empty.
const ATTEMPTS: usize = 5;

/// What is told of a process by its number.
#[derive(Clone, Copy, Debug)]
pub struct Glance {
    /// Its number.
    pub pid: i32,
    /// Its session.
    pub session: i32,
    /// Its process group.
    pub group: i32,
    /// Whether it may be a member, whatever it is next to: it carries the mark in its limit, or does not let us see.
    pub is_suspect: bool,
}

/// A process table that can be asked in part.
pub trait Table {
    /// Glances at every process, zombies included.
    ///
    /// # Errors
    /// When nobody can say which processes there are.
    fn glances(&self) -> io::Result<Vec<Glance>>;

    /// Looks at a process; `None` when it is gone.
    fn look(&self, pid: i32) -> Option<Process>;

    /// The children of a process; none when it is gone.
    fn children(&self, pid: i32) -> Vec<i32>;
}

/// Finds the members of a run, in the order of [`membership::members`].
///
/// Evidence of a terminal and of a keeper is not searched for: who is in the session that has the terminal must be suspect.
///
/// # Errors
/// When the table cannot be read.
pub fn members(table: &impl Table, evidence: &Evidence<'_>, clues: &impl Clues) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for _ in 0..ATTEMPTS {
        let mut vicinity = Vicinity::of(table)?;
        found = vicinity.search(evidence, clues);
        if !found.is_empty() || !vicinity.has_anybody_vanished {
            break;
        }
    }
    Ok(found)
}

struct Vicinity<'a, T> {
    table: &'a T,
    suspects: Vec<i32>,
    /// Who was there.
    listed: BTreeSet<i32>,
    sessions: BTreeMap<i32, Vec<i32>>,
    groups: BTreeMap<i32, Vec<i32>>,
    /// Who was looked at; `None` when it was gone.
    looked_at: BTreeMap<i32, Option<Process>>,
    has_anybody_vanished: bool,
}

impl<'a, T: Table> Vicinity<'a, T> {
    fn of(table: &'a T) -> io::Result<Self> {
        let mut vicinity = Self {
            table,
            suspects: Vec::new(),
            listed: BTreeSet::new(),
            sessions: BTreeMap::new(),
            groups: BTreeMap::new(),
            looked_at: BTreeMap::new(),
            has_anybody_vanished: false,
        };
        for Glance { pid, session, group, is_suspect } in table.glances()? {
            vicinity.listed.insert(pid);
            vicinity.sessions.entry(session).or_default().push(pid);
            vicinity.groups.entry(group).or_default().push(pid);
            if is_suspect {
                vicinity.suspects.push(pid);
            }
        }
        Ok(vicinity)
    }

    fn search(&mut self, evidence: &Evidence<'_>, clues: &impl Clues) -> Vec<Process> {
        let mut next: BTreeSet<i32> = self.suspects.iter().copied().collect();
        next.insert(evidence.leader.pid);
        next.extend(evidence.memory.pids());
        next.extend(evidence.cgroup);
        for reaper in evidence.reapers.iter().copied().chain([1]) {
            next.extend(self.children(reaper));
        }
        let mut surrounded = BTreeSet::new();
        loop {
            next.into_iter().for_each(|pid| self.look(pid));
            let known: Vec<Process> = self.looked_at.values().flatten().cloned().collect();
            let members = membership::members_and_zombies(&known, evidence, clues);
            next = BTreeSet::new();
            for member in &members {
                if surrounded.insert(member.id.pid) {
                    next.extend(self.children(member.id.pid));
                    for (all, number) in [(&self.sessions, member.session), (&self.groups, member.group)] {
                        let leader = self.looked_at.get(&number).and_then(Option::as_ref);
                        if membership::began_within(number, leader, evidence) {
                            next.extend(all.get(&number).into_iter().flatten());
                        }
                    }
                }
            }
            next.retain(|pid| !self.looked_at.contains_key(pid));
            if next.is_empty() {
                return membership::living(members).cloned().collect();
            }
        }
    }

    /// Looks at a process, and at the leaders of its session and group: those of a stranger need not be looked at.
    fn look(&mut self, pid: i32) {
        let Some(process) = self.look_once(pid) else { return };
        for leader in [process.session, process.group] {
            self.look_once(leader);
        }
    }

    fn look_once(&mut self, pid: i32) -> Option<Process> {
        if let Some(known) = self.looked_at.get(&pid) {
            return known.clone();
        }
        let process = self.table.look(pid);
        self.has_anybody_vanished |= process.is_none() && self.listed.contains(&pid);
        self.looked_at.insert(pid, process.clone());
        process
    }

    fn children(&mut self, pid: i32) -> Vec<i32> {
        let children = self.table.children(pid);
        self.listed.extend(&children);
        children
    }
}
