//! Who belongs to a run, and in which order to signal: one pure decision over a process table.
//!
//! Evidence of several kinds is taken together, because each alone misses something. *Descent* is proof while every parent is
//! there, or while a keeper collects the orphans; *lineage* is descent by numbers that outlive the parent (macOS). A *session*
//! or *process group* is left by setsid, a *terminal* with it. A *cgroup* is left by nobody, but not always to be had. A *mark*
//! in a limit is inherited and nothing else, one in the environment is cleared or hidden by some. And *memory*: who was a
//! member once stays one.
//!
//! A stranger must never be a member: every signal of a sweep rests on this. So what can be copied proves little: the
//! environment counts for an orphan alone, because whoever has another parent than the reapers of the run has an ancestor to be
//! judged by. (An editor hands the environment of whoever called it to a terminal of its own.)

use std::collections::{BTreeMap, BTreeSet};

use super::{Process, ProcessId, ProcessState};

/// What is known of a run.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// The run's leader.
    pub leader: ProcessId,
    /// Who collects the orphans of this run and of no other: the shim, while it is there and the system has subreapers.
    pub keeper: Option<i32>,
    /// Who else may have become the parent of an orphan: the ancestors of the shim. The first process always may.
    pub reapers: &'a [ProcessId],
    /// The run's terminal, as long as somebody of ours keeps its number from being given out again.
    pub terminal: Option<u64>,
    /// The processes in the run's cgroup.
    pub cgroup: &'a BTreeSet<i32>,
    /// Who has been a member.
    pub memory: &'a Memory,
}

/// Who has been seen to be a member of a run, for as long as the run lives.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    known: BTreeSet<ProcessId>,
    /// The lineage numbers of all of them, dead ones included: their children are members, whoever is their parent now.
    lineages: BTreeSet<u64>,
}

impl Memory {
    /// Remembers members. Returns those that are new.
    pub fn add<'p>(&mut self, members: impl IntoIterator<Item = &'p Process>) -> Vec<&'p Process> {
        let mut new = Vec::new();
        for process in members {
            self.lineages.extend(process.lineage.map(|lineage| lineage.own));
            if self.known.insert(process.id) {
                new.push(process);
            }
        }
        new
    }

    /// Whether a process has been a member.
    pub(super) fn has(&self, process: ProcessId) -> bool {
        self.known.contains(&process)
    }

    /// All members so far.
    pub(super) fn ids(&self) -> impl Iterator<Item = ProcessId> {
        self.known.iter().copied()
    }

    /// How many members there have been.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether no member has been seen yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

/// What a look at one process tells, which costs a question to the kernel and is asked of few.
pub trait Clues {
    /// Whether it carries a mark of this run that only a member can have given it, by starting it.
    fn inherits_mark(&self, process: &Process) -> bool;

    /// Whether it carries a mark of this run that it may have from elsewhere. `None` when that cannot be told at this moment:
    /// during an exec a process has no environment.
    fn carries_mark(&self, process: &Process) -> Option<bool>;

    /// Whether it looks after runs of this home: its daemon, or a shim. It is no member, and what hangs below it is not for
    /// that reason.
    fn is_supervisor(&self, process: &Process) -> bool;
}

/// Finds the members of a run in `table`, zombies left out, parents before their children.
///
/// In that order they are to be signalled: a parent that restarts its children goes before them.
pub fn members<'t>(table: &'t [Process], evidence: &Evidence<'_>, clues: &impl Clues) -> Vec<&'t Process> {
    living(members_and_zombies(table, evidence, clues)).collect()
}

/// The oldest of `members` that has no parent among them: of what a launcher has left, the one that stands for it.
#[must_use]
pub fn oldest_root(members: &[Process]) -> Option<ProcessId> {
    let is_member = |pid: i32| members.iter().any(|process| process.id.pid == pid);
    let roots = members.iter().filter(|process| !is_member(process.parent)).map(|process| process.id);
    roots.min_by_key(|id| (id.start, id.pid))
}

/// Those of `members` that have not ended.
pub(super) fn living(members: Vec<&Process>) -> impl Iterator<Item = &Process> {
    members.into_iter().filter(|process| process.state != ProcessState::Zombie)
}

/// As [`members`], and zombies: they say whose a session or a group is.
pub(super) fn members_and_zombies<'t>(
    table: &'t [Process],
    evidence: &Evidence<'_>,
    clues: &impl Clues,
) -> Vec<&'t Process> {
    let mut search = Search::new(table, evidence, clues);
    search.seeds();
    search.grow();
    search.marked();
    search.grow();
    search.in_order()
}

/// What is older than the run cannot be of it. Start times are as fine as the clock: the same is not older.
pub(super) fn is_older(process: &Process, evidence: &Evidence<'_>) -> bool {
    process.id.start < evidence.leader.start
}

/// Whether a session or group with this number can be of the run: its leader is younger than the run, or gone. (0 is no
/// number: macOS tells none for some zombies.)
pub(super) fn began_within(number: i32, leader: Option<&Process>, evidence: &Evidence<'_>) -> bool {
    number > 1 && leader.is_none_or(|leader| !is_older(leader, evidence))
}

struct Search<'t, 'a, C> {
    table: &'t [Process],
    evidence: &'a Evidence<'a>,
    clues: &'a C,
    by_pid: BTreeMap<i32, &'t Process>,
    children: BTreeMap<i32, Vec<&'t Process>>,
    sessions: BTreeMap<i32, Vec<&'t Process>>,
    groups: BTreeMap<i32, Vec<&'t Process>>,
    heirs: BTreeMap<u64, Vec<&'t Process>>,
    /// What has been decided: whether it is a member.
    decided: BTreeMap<i32, bool>,
    /// Members whose neighbours have not been looked at.
    open: Vec<&'t Process>,
    members: Vec<&'t Process>,
}

impl<'t, 'a, C: Clues> Search<'t, 'a, C> {
    fn new(table: &'t [Process], evidence: &'a Evidence<'a>, clues: &'a C) -> Self {
        let mut search = Self {
            table,
            evidence,
            clues,
            by_pid: table.iter().map(|process| (process.id.pid, process)).collect(),
            children: BTreeMap::new(),
            sessions: BTreeMap::new(),
            groups: BTreeMap::new(),
            heirs: BTreeMap::new(),
            decided: BTreeMap::new(),
            open: Vec::new(),
            members: Vec::new(),
        };
        for process in table {
            search.children.entry(process.parent).or_default().push(process);
            search.sessions.entry(process.session).or_default().push(process);
            search.groups.entry(process.group).or_default().push(process);
            if let Some(lineage) = process.lineage {
                search.heirs.entry(lineage.parent).or_default().push(process);
            }
        }
        search
    }

    fn is_older(&self, process: &Process) -> bool {
        is_older(process, self.evidence)
    }

    fn add(&mut self, process: &'t Process) {
        if !self.is_older(process) {
            self.admit(process);
        }
    }

    /// Adds whoever was started by a member, whatever its start time says: macOS takes that from a clock that can be set
    /// back, while lineage numbers only grow.
    fn admit(&mut self, process: &'t Process) {
        let pid = process.id.pid;
        if pid <= 1 || Some(pid) == self.evidence.keeper || self.decided.contains_key(&pid) {
            return;
        }
        let is_member = !self.clues.is_supervisor(process);
        self.decided.insert(pid, is_member);
        if is_member {
            self.members.push(process);
            self.open.push(process);
        }
    }

    /// Members that need no other member to prove it.
    fn seeds(&mut self) {
        let evidence = self.evidence;
        for process in self.table {
            let is_seed = process.id == evidence.leader
                || evidence.memory.known.contains(&process.id)
                || evidence.keeper == Some(process.parent)
                || evidence.cgroup.contains(&process.id.pid)
                || (evidence.terminal == Some(process.terminal) && process.terminal != 0);
            if is_seed {
                self.add(process);
            }
            if process.lineage.is_some_and(|lineage| evidence.memory.lineages.contains(&lineage.parent)) {
                self.admit(process);
            }
        }
    }

    /// Whoever descends from a member is one, and whoever shares its session or group: those are inherited, and only
    /// members have one that began within the run.
    fn grow(&mut self) {
        while let Some(member) = self.open.pop() {
            if let Some(heirs) = member.lineage.and_then(|lineage| self.heirs.get(&lineage.own)).cloned() {
                heirs.into_iter().for_each(|process| self.admit(process));
            }
            let mut new: Vec<&'t Process> = self.children.get(&member.id.pid).cloned().unwrap_or_default();
            if self.began_within(member.session) {
                new.extend(self.sessions.get(&member.session).into_iter().flatten());
            }
            if self.began_within(member.group) {
                new.extend(self.groups.get(&member.group).into_iter().flatten());
            }
            for process in new {
                self.add(process);
            }
        }
    }

    fn began_within(&self, number: i32) -> bool {
        began_within(number, self.by_pid.get(&number).copied(), self.evidence)
    }

    /// Whoever nothing else proves is looked at.
    fn marked(&mut self) {
        for process in self.table {
            let is_open = process.state != ProcessState::Zombie
                && !self.is_older(process)
                && !self.decided.contains_key(&process.id.pid);
            if !is_open {
                continue;
            }
            if self.clues.inherits_mark(process)
                || (self.is_orphan(process) && self.clues.carries_mark(process) == Some(true))
            {
                self.add(process);
            }
        }
    }

    /// Whether its parent is one that orphans of the run come to, and not somebody who was given such a one's number since.
    fn is_orphan(&self, process: &Process) -> bool {
        let is_parent = |reaper: &ProcessId| {
            let has_number = reaper.pid == process.parent;
            has_number && self.by_pid.get(&reaper.pid).is_none_or(|parent| parent.id == *reaper)
        };
        process.parent <= 1 || self.evidence.reapers.iter().any(is_parent)
    }

    fn in_order(self) -> Vec<&'t Process> {
        let is_member = |pid: i32| self.decided.get(&pid) == Some(&true);
        let mut ordered: Vec<&'t Process> = Vec::with_capacity(self.members.len());
        let mut roots: Vec<&'t Process> =
            self.members.iter().copied().filter(|process| !is_member(process.parent)).collect();
        roots.sort_by_key(|process| process.id);
        let mut open: Vec<&'t Process> = roots.into_iter().rev().collect();
        let mut seen = BTreeSet::new();
        while let Some(process) = open.pop() {
            if !seen.insert(process.id.pid) {
                continue;
            }
            ordered.push(process);
            let children = self.children.get(&process.id.pid).into_iter().flatten();
            open.extend(children.filter(|child| is_member(child.id.pid)));
        }
        // A table that was read while it changed may show a circle of parents; nobody is left out because of that.
        ordered.extend(self.members.iter().filter(|process| !seen.contains(&process.id.pid)));
        ordered
    }
}

#[cfg(test)]
mod tests;
