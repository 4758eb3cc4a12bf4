//! Forests made by hand, and who of them belongs to the run; those that are made at random are in `forests`.

use super::super::{Lineage, vicinity};
use super::*;

mod forests;

const LEADER: ProcessId = ProcessId { pid: 100, start: 50 };
const SHIM: i32 = 99;

fn process(pid: i32, start: u64, parent: i32, group: i32, session: i32) -> Process {
    Process {
        id: ProcessId { pid, start },
        parent,
        group,
        session,
        terminal: 0,
        uid: 1000,
        state: ProcessState::Live,
        name: "x".into(),
        lineage: None,
    }
}

/// Marks and supervisors by number.
#[derive(Default)]
struct Told {
    inheriting: BTreeSet<i32>,
    marked: BTreeSet<i32>,
    supervisors: BTreeSet<i32>,
}

impl Clues for Told {
    fn inherits_mark(&self, process: &Process) -> bool {
        self.inheriting.contains(&process.id.pid)
    }

    fn carries_mark(&self, process: &Process) -> Option<bool> {
        Some(self.marked.contains(&process.id.pid))
    }

    fn is_supervisor(&self, process: &Process) -> bool {
        self.supervisors.contains(&process.id.pid)
    }
}

fn pids<'p>(processes: impl IntoIterator<Item = &'p Process>) -> Vec<i32> {
    processes.into_iter().map(|process| process.id.pid).collect()
}

/// Of a run of which nothing is known but its leader.
fn nothing_known() -> Evidence<'static> {
    static NOBODY: BTreeSet<i32> = BTreeSet::new();
    static NOTHING: Memory = Memory { known: BTreeSet::new(), lineages: BTreeSet::new() };
    Evidence { leader: LEADER, keeper: None, reapers: &[], terminal: None, cgroup: &NOBODY, memory: &NOTHING }
}

/// A made table that is asked in part.
struct Part<'a> {
    table: &'a [Process],
    evidence: &'a Evidence<'a>,
    told: &'a Told,
}

impl vicinity::Table for Part<'_> {
    fn numbers(&self) -> std::io::Result<impl Iterator<Item = i32>> {
        Ok(self.table.iter().map(|process| process.id.pid))
    }

    fn newest(&self) -> Option<i32> {
        None
    }

    fn glance(&self, pid: i32) -> Option<vicinity::Glance> {
        let process = self.look(pid)?;
        let is_suspect = self.told.inheriting.contains(&pid)
            || (self.evidence.terminal == Some(process.terminal) && process.terminal != 0)
            || self.evidence.keeper == Some(process.parent);
        Some(vicinity::Glance { session: process.session, group: process.group, is_suspect })
    }

    fn is_process(&self, _pid: i32) -> bool {
        true
    }

    fn look(&self, pid: i32) -> Option<Process> {
        self.table.iter().find(|process| process.id.pid == pid).cloned()
    }

    fn children(&self, pid: i32) -> std::io::Result<Vec<i32>> {
        Ok(self.table.iter().filter(|process| process.parent == pid).map(|process| process.id.pid).collect())
    }
}

/// What one kind of evidence has to say, and nothing else.
#[derive(Default)]
struct Case {
    keeper: Option<i32>,
    reapers: Vec<ProcessId>,
    terminal: Option<u64>,
    cgroup: BTreeSet<i32>,
    memory: Memory,
    told: Told,
}

impl Case {
    fn find(&self, table: &[Process]) -> Vec<i32> {
        let evidence = Evidence {
            leader: LEADER,
            keeper: self.keeper,
            reapers: &self.reapers,
            terminal: self.terminal,
            cgroup: &self.cgroup,
            memory: &self.memory,
        };
        let found = pids(members(table, &evidence, &self.told));
        // Without lineages, a search in the vicinity finds the same.
        if table.iter().all(|process| process.lineage.is_none()) {
            let part = Part { table, evidence: &evidence, told: &self.told };
            let near = vicinity::members(&part, &evidence, &self.told).expect("a table");
            let order = |mut pids: Vec<i32>| {
                pids.sort_unstable();
                pids
            };
            assert_eq!(order(pids(&near)), order(found.clone()));
        }
        found
    }

    fn found(&self, table: &[Process]) -> BTreeSet<i32> {
        self.find(table).into_iter().collect()
    }
}

#[test]
fn descent_group_and_session_prove_a_member() {
    let table = [
        process(1, 0, 0, 1, 1),
        process(SHIM, 40, 1, SHIM, SHIM),
        process(100, 50, SHIM, 100, 100),
        process(101, 51, 100, 101, 100), // left the group
        process(102, 52, 101, 102, 102), // left the session, still a child
        process(103, 53, 1, 102, 102),   // orphan in the session of that one
        process(106, 56, 1, 100, 100),   // orphan in the group
        process(107, 57, 1, 107, 102),   // orphan in that session, with a group of its own
        process(108, 58, 1, 100, 0),     // orphan in the group whose session nobody tells
        process(200, 57, 1, 200, 200),   // a stranger
    ];
    assert_eq!(Case::default().found(&table), [100, 101, 102, 103, 106, 107, 108].into());
}

#[test]
fn each_other_kind_of_evidence_proves_a_member_alone() {
    let stray = process(105, 55, 1, 105, 105);
    let table = [process(SHIM, 40, 1, SHIM, SHIM), process(200, 57, 1, 200, 200), stray.clone()];
    assert_eq!(Case::default().find(&table), [0; 0]);
    let cgroup = Case { cgroup: [105].into(), ..Case::default() };
    let marked = Case { told: Told { marked: [105].into(), ..Told::default() }, ..Case::default() };
    let limited = Case { told: Told { inheriting: [105].into(), ..Told::default() }, ..Case::default() };
    let mut memory = Memory::default();
    memory.add([&stray]);
    let known = Case { memory, ..Case::default() };
    for case in [cgroup, marked, limited, known] {
        assert_eq!(case.find(&table), [105]);
    }
    let below = [process(105, 55, SHIM, 105, 105)];
    assert_eq!(Case { keeper: Some(SHIM), ..Case::default() }.find(&below), [105]);
    let terminal = [Process { terminal: 34816, ..stray.clone() }, Process { terminal: 7, ..table[1].clone() }];
    assert_eq!(Case { terminal: Some(34816), ..Case::default() }.find(&terminal), [105]);
    // Its parent was a member, is gone, and launchd is what it has now. Its clock says that it is older.
    let mut memory = Memory::default();
    memory.add([&Process { lineage: Some(Lineage { own: 7000, parent: 6999 }), ..process(104, 54, 100, 100, 100) }]);
    let heir = [Process { lineage: Some(Lineage { own: 7001, parent: 7000 }), ..process(105, 49, 1, 105, 105) }];
    assert_eq!(Case { memory, ..Case::default() }.find(&heir), [105]);
}

#[test]
fn an_orphan_is_found_whoever_has_adopted_it() {
    // A session manager has it, which nobody has told us of.
    let adopted = |pid, group, session| process(pid, 60, 300, group, session);
    let manager = process(300, 10, 1, 300, 300);
    let stranger = adopted(400, 400, 400);
    let mut memory = Memory::default();
    memory.add([&adopted(105, 105, 105)]);
    let known = Case { memory, ..Case::default() };
    assert_eq!(known.find(&[manager.clone(), stranger.clone(), adopted(105, 105, 105)]), [105]);
    let cgroup = Case { cgroup: [105].into(), ..Case::default() };
    assert_eq!(cgroup.find(&[manager.clone(), stranger.clone(), adopted(105, 105, 105)]), [105]);
    // One that is known leads to the others of its session, and of its group.
    let session = [manager.clone(), stranger.clone(), adopted(105, 105, 105), adopted(106, 106, 105)];
    assert_eq!(known.found(&session), [105, 106].into());
    let group = [manager.clone(), stranger, adopted(105, 105, 105), adopted(106, 105, 0)];
    assert_eq!(known.found(&group), [105, 106].into());
    // Not when they are a stranger's, who is looked at for nothing else.
    let login = process(500, 10, 300, 500, 500);
    assert_eq!(known.find(&[manager, login, adopted(105, 500, 500), adopted(106, 500, 500)]), [105]);
}

/// Hands on from process to process, each gone before the first `hops` looks at it.
struct HotPotato {
    now: std::cell::Cell<i32>,
    until: i32,
    /// Whether it is gone before its session is asked for, or only before it is looked at.
    is_quick: bool,
    wraps: bool,
}

impl HotPotato {
    fn hop(&self) {
        self.now.set((self.now.get() + 1).min(self.until));
    }
}

impl vicinity::Table for HotPotato {
    fn numbers(&self) -> std::io::Result<impl Iterator<Item = i32>> {
        // Below where the list has come to, and so missed by it, when numbers begin anew.
        let listed = (!self.wraps || self.now.get() == self.until).then_some(self.now.get());
        Ok(listed.into_iter())
    }

    fn newest(&self) -> Option<i32> {
        let newest = if self.wraps { 1000 - self.now.get() } else { self.now.get() };
        if self.wraps {
            self.hop();
        }
        Some(newest)
    }

    fn glance(&self, pid: i32) -> Option<vicinity::Glance> {
        if self.is_quick {
            self.hop();
        }
        (pid == self.now.get()).then_some(vicinity::Glance { session: pid, group: pid, is_suspect: true })
    }

    fn is_process(&self, _pid: i32) -> bool {
        true
    }

    fn look(&self, pid: i32) -> Option<Process> {
        if pid == LEADER.pid {
            return None;
        }
        self.hop();
        (pid == self.now.get()).then(|| process(pid, 60, 300, pid, pid))
    }

    fn children(&self, _: i32) -> std::io::Result<Vec<i32>> {
        Ok(Vec::new())
    }
}

#[test]
fn a_member_that_starts_another_and_ends_before_it_is_looked_at_hides_nobody() {
    let told = Told { inheriting: (100..300).collect(), ..Told::default() };
    let evidence = nothing_known();
    for (is_quick, wraps) in [(false, false), (true, false), (false, true)] {
        let find = |until| {
            let table = HotPotato { now: 105.into(), until, is_quick, wraps };
            vicinity::members(&table, &evidence, &told).map(|found| pids(&found))
        };
        assert_eq!(find(110).expect("in time"), [110], "quick {is_quick}, wraps {wraps}");
        assert!(find(250).is_err(), "nobody knows: quick {is_quick}, wraps {wraps}");
    }
}

/// Hands on whenever the whole table is read, because that takes so long.
struct LongTable {
    now: std::cell::Cell<i32>,
}

impl vicinity::Table for LongTable {
    fn numbers(&self) -> std::io::Result<impl Iterator<Item = i32>> {
        let listed = self.now.get();
        self.now.set(listed + 2);
        Ok([1, listed].into_iter())
    }

    fn newest(&self) -> Option<i32> {
        Some(self.now.get())
    }

    fn glance(&self, pid: i32) -> Option<vicinity::Glance> {
        // Below each of them is a thread of it.
        let is_there = pid == 1 || pid == self.now.get() || pid == self.now.get() - 1;
        is_there.then_some(vicinity::Glance { session: pid, group: pid, is_suspect: pid > 1 })
    }

    fn is_process(&self, pid: i32) -> bool {
        pid == self.now.get()
    }

    fn look(&self, pid: i32) -> Option<Process> {
        (pid == self.now.get() || pid == self.now.get() - 1).then(|| process(pid, 60, 300, pid, pid))
    }

    fn children(&self, _: i32) -> std::io::Result<Vec<i32>> {
        Ok(Vec::new())
    }
}

#[test]
fn whoever_hands_on_faster_than_the_table_can_be_read_is_met_among_the_newest() {
    let told = Told { inheriting: (100..300).collect(), ..Told::default() };
    let table = LongTable { now: 105.into() };
    let mut vicinity = vicinity::Vicinity::default();
    let found = vicinity.newcomers(&table, &nothing_known(), &told).expect("somebody");
    assert_eq!(pids(&found), [table.now.get()], "whoever has it now");
}

/// Processes that come and go all the time, each gone before it is looked at.
struct Bustle {
    newest: std::cell::Cell<i32>,
    /// The session they are in, and who leads it, if anybody does.
    session: i32,
    leader: Option<Process>,
    /// Whether they are there when they are looked at, and gone when they are looked at again.
    is_slow: bool,
}

impl vicinity::Table for Bustle {
    fn numbers(&self) -> std::io::Result<impl Iterator<Item = i32>> {
        self.newest.set(self.newest.get() + 1);
        Ok([1, self.session, self.newest.get()].into_iter())
    }

    fn newest(&self) -> Option<i32> {
        Some(self.newest.get())
    }

    fn glance(&self, pid: i32) -> Option<vicinity::Glance> {
        let is_suspect = pid >= 1000;
        Some(vicinity::Glance { session: if pid == 1 { 1 } else { self.session }, group: pid, is_suspect })
    }

    fn is_process(&self, _pid: i32) -> bool {
        true
    }

    fn look(&self, pid: i32) -> Option<Process> {
        if pid == self.newest.get() && self.is_slow {
            self.newest.set(pid + 1);
            return Some(process(pid, 70, 400, pid, self.session));
        }
        self.leader.clone().filter(|leader| leader.id.pid == pid)
    }

    fn children(&self, _: i32) -> std::io::Result<Vec<i32>> {
        Ok(Vec::new())
    }
}

#[test]
fn strangers_that_come_and_go_keep_nobody_from_saying_that_nobody_is_left() {
    let evidence = nothing_known();
    let stranger = || process(400, 60, 1, 400, 400);
    for is_slow in [false, true] {
        let find = |leader: Option<Process>, told: &Told| {
            let table = Bustle { newest: 1000.into(), session: 400, leader, is_slow };
            vicinity::members(&table, &evidence, told).map(|found| pids(&found))
        };
        assert_eq!(find(Some(stranger()), &Told::default()).expect("certain"), [0; 0], "slow {is_slow}");
        // Whose session it is nobody knows, or a member may begin there: each may have started another.
        assert!(find(None, &Told::default()).is_err(), "slow {is_slow}");
        let ended = Process { state: ProcessState::Zombie, ..stranger() };
        assert!(find(Some(ended), &Told::default()).is_err(), "slow {is_slow}");
        let told = Told { supervisors: [400].into(), ..Told::default() };
        assert!(find(Some(stranger()), &told).is_err(), "slow {is_slow}");
    }
    // The leader of their session is a member: it is found, and then they are as uncertain as ever.
    let told = Told { inheriting: [400].into(), ..Told::default() };
    let table = Bustle { newest: 1000.into(), session: 400, leader: Some(stranger()), is_slow: false };
    let mut vicinity = vicinity::Vicinity::default();
    assert_eq!(pids(&vicinity.newcomers(&table, &evidence, &told).expect("found")), [400]);
    assert!(vicinity.newcomers(&table, &evidence, &told).is_err());
}

/// A member that leads a session, and another in it that ends as soon as both are known.
struct Exit {
    is_over: std::cell::Cell<bool>,
    passes: std::cell::Cell<u32>,
}

impl vicinity::Table for Exit {
    fn numbers(&self) -> std::io::Result<impl Iterator<Item = i32>> {
        self.passes.set(self.passes.get() + 1);
        Ok([1, 400, 401].into_iter())
    }

    fn newest(&self) -> Option<i32> {
        Some(500)
    }

    fn glance(&self, pid: i32) -> Option<vicinity::Glance> {
        Some(vicinity::Glance { session: if pid == 1 { 1 } else { 400 }, group: pid, is_suspect: pid > 1 })
    }

    fn is_process(&self, _pid: i32) -> bool {
        true
    }

    fn look(&self, pid: i32) -> Option<Process> {
        match pid {
            400 => Some(process(400, 60, 1, 400, 400)),
            401 if !self.is_over.get() => Some(process(401, 61, 400, 401, 400)),
            _ => None,
        }
    }

    fn children(&self, _: i32) -> std::io::Result<Vec<i32>> {
        Ok(Vec::new())
    }
}

#[test]
fn a_member_that_ends_in_a_members_session_makes_another_pass() {
    let told = Told { inheriting: [400].into(), ..Told::default() };
    let table = Exit { is_over: false.into(), passes: 0.into() };
    let mut vicinity = vicinity::Vicinity::default();
    assert_eq!(pids(&vicinity.newcomers(&table, &nothing_known(), &told).expect("found")), [400, 401]);
    table.is_over.set(true);
    assert_eq!(vicinity.newcomers(&table, &nothing_known(), &told).expect("a table"), []);
    assert_eq!(table.passes.get(), 3, "it may have started another, which only a further pass meets");
}

/// A process that loses its parent while others come and go.
struct Bereavement {
    passes: std::cell::Cell<i32>,
}

impl Bereavement {
    fn parent(&self) -> i32 {
        if self.passes.get() > 1 { 1 } else { 300 }
    }
}

impl vicinity::Table for Bereavement {
    fn numbers(&self) -> std::io::Result<impl Iterator<Item = i32>> {
        self.passes.set(self.passes.get() + 1);
        // The last is gone as soon as it is listed.
        Ok([1, 301, 400 + self.passes.get().min(2)].into_iter())
    }

    fn newest(&self) -> Option<i32> {
        Some(500)
    }

    fn glance(&self, pid: i32) -> Option<vicinity::Glance> {
        (pid < 400).then_some(vicinity::Glance { session: pid, group: pid, is_suspect: pid == 301 })
    }

    fn is_process(&self, _pid: i32) -> bool {
        true
    }

    fn look(&self, pid: i32) -> Option<Process> {
        (pid == 301).then(|| process(301, 60, self.parent(), 301, 301))
    }

    fn children(&self, pid: i32) -> std::io::Result<Vec<i32>> {
        Ok((pid == self.parent()).then_some(301).into_iter().collect())
    }
}

#[test]
fn a_process_that_loses_its_parent_during_the_search_is_an_orphan() {
    let told = Told { marked: [301].into(), ..Told::default() };
    let evidence = nothing_known();
    let table = Bereavement { passes: 0.into() };
    assert_eq!(pids(&vicinity::members(&table, &evidence, &told).expect("a table")), [301]);
}

#[test]
fn whoever_a_zombie_has_started_is_a_member_although_launchd_is_its_parent_now() {
    let lineage = |own, parent| Some(Lineage { own, parent });
    let member = process(101, 51, 100, 101, 101);
    let table = [
        Process { state: ProcessState::Zombie, lineage: lineage(7000, 6999), ..member },
        process(100, 50, SHIM, 100, 100),
        Process { lineage: lineage(7001, 7000), ..process(105, 49, 1, 105, 105) },
    ];
    assert_eq!(Case::default().found(&table), [100, 105].into());
}

#[test]
fn a_mark_that_was_copied_makes_no_member_of_a_strangers_child() {
    let table = [
        process(300, 10, 1, 300, 300),   // somebody's editor, older than the run
        process(301, 60, 300, 301, 301), // its terminal, which was handed the environment of a member
        process(302, 61, 12, 302, 302),  // an orphan that came to the daemon's parent
        process(12, 5, 1, 12, 12),       // which is this one
    ];
    let told = || Told { marked: [301, 302].into(), ..Told::default() };
    assert_eq!(Case { told: told(), ..Case::default() }.find(&table), [0; 0]);
    let reaper = |start| vec![ProcessId { pid: 12, start }];
    assert_eq!(Case { told: told(), reapers: reaper(5), ..Case::default() }.find(&table), [302]);
    assert_eq!(
        Case { told: told(), reapers: reaper(4), ..Case::default() }.find(&table),
        [0; 0],
        "a number given out anew"
    );
    // What cannot be copied proves it, whoever the parent is.
    let told = Told { inheriting: [301].into(), ..Told::default() };
    assert_eq!(Case { told, ..Case::default() }.find(&table), [301]);
}

#[test]
fn the_session_of_a_stranger_is_not_the_runs_because_a_member_is_in_it() {
    let table = [
        process(300, 10, 1, 300, 300),   // a login shell, older than the run
        process(301, 60, 300, 301, 300), // its child
        process(302, 61, 1, 302, 300),   // an orphan of that session, which carries the mark
    ];
    let told = Told { marked: [302].into(), ..Told::default() };
    assert_eq!(Case { told, ..Case::default() }.find(&table), [302]);
}

#[test]
fn the_daemon_and_the_shims_of_the_home_are_never_members_and_neither_is_what_they_look_after() {
    let table = [
        process(SHIM, 40, 1, SHIM, SHIM),
        process(100, 50, SHIM, 100, 100),
        process(110, 60, 100, 110, 110),  // a daemon that was started from within the run
        process(111, 61, 110, 111, 111),  // its shim
        process(112, 62, 111, 112, 112),  // that one's leader
        process(120, 63, SHIM, 120, 120), // a shim whose daemon has died
        process(121, 64, 120, 121, 121),
    ];
    let told = Told { supervisors: [110, 111, 120].into(), ..Told::default() };
    assert_eq!(Case { keeper: Some(SHIM), told, ..Case::default() }.find(&table), [100]);
    // Those of another home end with the run.
    assert_eq!(Case { keeper: Some(SHIM), ..Case::default() }.found(&table), [100, 110, 111, 112, 120, 121].into());
}

#[test]
fn a_recycled_number_makes_no_member() {
    // The leader is gone and a stranger has its number; that of a member has been given out again too.
    let table = [process(100, 900, 1, 100, 100), process(101, 901, 100, 100, 100), process(105, 902, 1, 105, 105)];
    let mut memory = Memory::default();
    memory.add([&process(105, 55, 1, 105, 105)]);
    assert_eq!(Case { memory, ..Case::default() }.find(&table), [0; 0]);
}

#[test]
fn without_its_leader_a_group_counts_when_one_of_it_is_proven() {
    let table = [process(101, 60, 1, 100, 100), process(102, 61, 1, 100, 100)];
    assert_eq!(Case::default().find(&table), [0; 0]);
    let told = Told { marked: [102].into(), ..Told::default() };
    assert_eq!(Case { told, ..Case::default() }.found(&table), [101, 102].into());
}

#[test]
fn a_zombie_leader_proves_its_group_and_is_not_signalled() {
    let leader = Process { state: ProcessState::Zombie, ..process(100, 50, SHIM, 100, 100) };
    assert_eq!(Case::default().find(&[process(101, 60, 1, 100, 100), leader]), [101]);
}

#[test]
fn who_has_no_terminal_shares_none_with_the_run() {
    // The leader has given up its terminal, so that its number is 0 like that of most.
    let table = [process(100, 50, SHIM, 100, 100), process(300, 60, 20, 300, 300)];
    assert_eq!(Case { terminal: Some(0), ..Case::default() }.find(&table), [100]);
}

#[test]
fn what_is_older_than_the_run_is_no_member() {
    let table = [process(100, 50, SHIM, 100, 100), process(90, 49, 100, 100, 100)];
    let told = Told { marked: [90].into(), ..Told::default() };
    assert_eq!(Case { told, cgroup: [90].into(), ..Case::default() }.find(&table), [100]);
}

#[test]
fn parents_are_signalled_before_their_children() {
    let table = [
        process(104, 54, 103, 103, 103),
        process(103, 53, 100, 103, 103),
        process(101, 51, 100, 100, 100),
        process(102, 52, 101, 100, 100),
        process(100, 50, SHIM, 100, 100),
    ];
    let found = Case { keeper: Some(SHIM), ..Case::default() }.find(&table);
    let place = |pid: i32| found.iter().position(|&found| found == pid).expect("a member");
    assert_eq!(found.len(), 5);
    assert!(place(100) < place(101) && place(101) < place(102) && place(103) < place(104), "{found:?}");
}

#[test]
fn the_oldest_without_a_parent_among_them_stands_for_what_a_launcher_has_left() {
    let worker = process(120, 53, 121, 121, 121);
    let daemon = process(121, 52, SHIM, 121, 121);
    let helper = process(110, 54, SHIM, 110, 110);
    assert_eq!(oldest_root(&[worker.clone(), daemon.clone(), helper.clone()]), Some(daemon.id));
    // It has gone, and its worker is an orphan.
    assert_eq!(oldest_root(&[Process { parent: 1, ..worker.clone() }, helper]), Some(worker.id));
    assert_eq!(oldest_root(&[]), None);
}
