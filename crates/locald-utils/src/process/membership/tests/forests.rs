//! Whole machines, made at random: things happen on them, and after that all members of the run are to be found and nobody else.
//!
//! Who is a member is written down when a process is born, by what has happened: the child of a member is one, and the daemon of
//! this home is none, with all that it starts. The search is told nothing of it. It has the table, and of marks, cgroup,
//! terminal and keeper what [`Means`] lets it have.

use std::ffi::OsStr;

use proptest::prelude::*;

use super::super::super::{Lineage, mark};
use super::*;

/// What happens on a made machine. Numbers choose among the processes that are there.
#[derive(Clone, Debug)]
enum Deed {
    /// A process forks.
    Fork(usize),
    /// A process daemonizes another, which has no parent any more.
    DoubleFork(usize, Daemonized),
    /// A process leaves its session.
    Setsid(usize),
    /// A process makes a group of its own.
    Setpgid(usize),
    /// The leader of a session takes a terminal: that of the run if it is a member, after whoever has it has given it up, else a
    /// new one.
    TakeTerminal(usize),
    /// A process clears its environment, and with it the mark in it.
    ClearEnvironment(usize),
    /// A process changes the limit that is a mark.
    ClearLimit(usize),
    /// A process ends, and is reaped at once: its children get a new parent.
    Exit(usize),
    /// A process ends and stays a zombie.
    Zombie(usize),
    /// Somebody who is no member gets the environment of a member.
    Copy(usize, usize),
    /// A process starts a daemon.
    Daemon(usize, Home),
    /// A process that leads no session has the name and the environment of our daemon: what a daemon has just forked has.
    Pose(usize),
    /// A daemon starts a shim, and that one a service.
    Serve(usize),
    /// A daemon or a shim is killed.
    Kill(usize),
    /// The daemon looks at the table and remembers the members.
    Look,
    /// Numbers begin anew: those of whoever is gone are given out again.
    Wrap,
}

/// How a process is daemonized.
#[derive(Clone, Copy, Debug)]
struct Daemonized {
    /// Whether it leads its session, or whoever has started it did.
    leads: bool,
    /// Whether it has no marks any more.
    is_traceless: bool,
}

/// Whose a daemon or a shim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    Ours,
    Foreign,
}

impl Home {
    fn path(self) -> &'static str {
        match self {
            Home::Ours => "/home/ours",
            Home::Foreign => "/home/foreign",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Daemon(Home),
    Shim(Home),
    Other,
}

impl Role {
    fn home(self) -> Option<Home> {
        match self {
            Role::Daemon(home) | Role::Shim(home) => Some(home),
            Role::Other => None,
        }
    }
}

/// What there is beside marks and memory, and what a kernel does by that.
#[derive(Clone, Copy, Debug, Default)]
struct Means {
    /// The shim lives, and orphans come to it.
    keeper: bool,
    /// Nobody collects orphans, and processes have numbers that outlive them: macOS.
    lineage: bool,
    /// The run has a cgroup.
    cgroup: bool,
    /// The run's terminal is held open.
    terminal: bool,
}

/// The number of the run's terminal.
const TERMINAL: u64 = 34_816;

/// The daemon that looks after the run, and collects its orphans when there is no shim.
const DAEMON: i32 = 30;

#[derive(Clone, Debug)]
struct Made {
    process: Process,
    /// Whether it is of the run: the truth that is to be found.
    is_member: bool,
    role: Role,
    has_environment: bool,
    has_limit: bool,
    is_in_cgroup: bool,
    /// Whether it has the name and the environment of our daemon, and is none.
    poses: bool,
}

struct Machine {
    made: Vec<Made>,
    next: i32,
    clock: u64,
    births: u64,
    terminals: u64,
    means: Means,
}

impl Machine {
    /// A login shell, our daemon with the shim and the leader of the run, and another service of it; the daemon of another home
    /// with a service; a stranger that is younger than the run.
    fn new(means: Means) -> Self {
        let (next, clock) = (500, 60);
        let mut machine = Self { made: Vec::new(), next, clock, births: 0, terminals: 0, means };
        let has_shim = means.keeper || means.lineage;
        let keeper = if has_shim { SHIM } else { DAEMON };
        machine.put(1, 0, 0, Role::Other);
        machine.put(20, 5, 1, Role::Other);
        machine.put(DAEMON, 30, 1, Role::Daemon(Home::Ours));
        machine.put(40, 35, 1, Role::Daemon(Home::Foreign));
        if has_shim {
            machine.put(SHIM, 40, DAEMON, Role::Shim(Home::Ours));
        }
        machine.put(LEADER.pid, LEADER.start, keeper, Role::Other);
        let leader = machine.made.last_mut().expect("the leader");
        (leader.is_member, leader.has_environment, leader.has_limit, leader.is_in_cgroup) = (true, true, true, true);
        leader.process.terminal = TERMINAL;
        machine.put(200, 52, 20, Role::Other);
        for (daemon, shim) in [(DAEMON, 210), (40, 220)] {
            let home = machine.at(daemon).and_then(|index| machine.made[index].role.home()).expect("a daemon");
            machine.put(shim, 53, daemon, Role::Shim(home));
            machine.put(shim + 1, 54, shim, Role::Other);
            machine.made.last_mut().expect("its service").process.terminal = 300 + u64::from(shim.unsigned_abs());
        }
        machine
    }

    /// A process that leads a session and is of no run.
    fn put(&mut self, pid: i32, start: u64, parent: i32, role: Role) {
        let mut process = process(pid, start, parent, pid, pid);
        process.lineage = self.lineage(parent);
        process.name = name(role).into();
        let [is_member, has_environment, has_limit, is_in_cgroup, poses] = [false; 5];
        self.made.push(Made { process, is_member, role, has_environment, has_limit, is_in_cgroup, poses });
    }

    fn at(&self, pid: i32) -> Option<usize> {
        self.made.iter().position(|made| made.process.id.pid == pid)
    }

    /// The numbers of a process that is started now, which nobody has had before.
    fn lineage(&mut self, parent: i32) -> Option<Lineage> {
        self.births += 1;
        let parent = self.at(parent).and_then(|index| self.made[index].process.lineage).map(|lineage| lineage.own);
        let own = 10_000 + self.births;
        self.means.lineage.then(|| Lineage { own, parent: parent.unwrap_or(1) })
    }

    /// The next number that is free: no process, session or group has it (alloc_pid in kernel/pid.c).
    fn number(&mut self) -> i32 {
        let is_taken = |number: i32| {
            self.made.iter().any(|made| {
                let process = &made.process;
                [process.id.pid, process.session, process.group].contains(&number)
            })
        };
        let free = (self.next..).find(|&number| !is_taken(number)).expect("a number");
        self.next = free + 1;
        free
    }

    /// One of those that are alive, and as they have to be.
    fn choose(&self, choice: usize, is_able: impl Fn(&Made) -> bool) -> Option<usize> {
        let is_alive = |made: &Made| made.process.state == ProcessState::Live && made.process.id.pid > 1;
        let able = (0..self.made.len()).filter(|&index| is_alive(&self.made[index]) && is_able(&self.made[index]));
        let able: Vec<usize> = able.collect();
        (!able.is_empty()).then(|| able[choice % able.len()])
    }

    /// A process that may do something and looks after nobody.
    fn chosen(&self, choice: usize) -> Option<usize> {
        self.choose(choice, |made| made.role == Role::Other)
    }

    fn fork(&mut self, parent: usize) -> usize {
        let parent = self.made[parent].clone();
        let id = ProcessId { pid: self.number(), start: self.clock };
        let mut process = Process { id, parent: parent.process.id.pid, ..parent.process };
        process.lineage = self.lineage(process.parent);
        self.made.push(Made { process, ..parent });
        self.made.len() - 1
    }

    fn setsid(&mut self, index: usize) {
        let made = &mut self.made[index];
        let process = &mut made.process;
        if process.group != process.id.pid {
            (process.group, process.session, process.terminal) = (process.id.pid, process.id.pid, 0);
            process.name = name(made.role).into();
            made.poses = false;
        }
    }

    /// Becomes a daemon or a shim as locald starts them: in a session of its own, without the marks of whoever was the starter.
    fn supervise(&mut self, index: usize, role: Role) {
        self.setsid(index);
        let made = &mut self.made[index];
        (made.role, made.has_environment, made.has_limit) = (role, false, false);
        made.process.name = name(role).into();
        // Ours is of no run, and leaves its cgroup. To us that of another home is a process as any other.
        if role.home() == Some(Home::Ours) {
            (made.is_member, made.is_in_cgroup) = (false, false);
        }
    }

    /// Where the children of a process go when it ends: to the nearest of its ancestors that collects orphans, as daemons and
    /// shims do on Linux (find_new_reaper in kernel/exit.c).
    fn reaper(&self, of: usize) -> i32 {
        let mut next = self.made[of].process.parent;
        while let Some(ancestor) = self.at(next).map(|index| &self.made[index]) {
            if ancestor.role != Role::Other && !self.means.lineage {
                return next;
            }
            next = ancestor.process.parent;
        }
        1
    }

    /// Gives the children of a process that ends to whoever collects them, and takes the terminal of a session that it leads from
    /// all who are in it (disassociate_ctty in drivers/tty/tty_jobctrl.c). `false` if it cannot end because nobody could say any
    /// more who is a member.
    fn bereave(&mut self, index: usize) -> bool {
        let (pid, reaper) = (self.made[index].process.id.pid, self.reaper(index));
        let is_blurred = self.made.iter().filter(|made| made.process.parent == pid && !made.is_member).any(|child| {
            // Who carries a mark and has no ancestor left to be judged by is a member by definition.
            let is_copy = child.has_environment;
            // Whoever was looked after by a daemon and shim of ours that a member has started, and are gone, hangs below the
            // keeper as members do.
            let is_left = self.means.keeper && reaper == SHIM && child.role == Role::Other;
            is_copy || is_left
        });
        if is_blurred {
            return false;
        }
        for other in &mut self.made {
            if other.process.parent == pid {
                other.process.parent = reaper;
            }
            if other.process.session == pid {
                other.process.terminal = 0;
            }
        }
        true
    }

    /// Has it happen. Whoever is told of births by the kernel looks at the table before the new process ends.
    fn apply(&mut self, deed: &Deed, look: &mut impl FnMut(&Self)) {
        self.clock += 1;
        match *deed {
            Deed::Fork(choice) => {
                self.chosen(choice).map(|parent| self.fork(parent));
            }
            Deed::DoubleFork(choice, Daemonized { leads, is_traceless }) => {
                let Some(parent) = self.chosen(choice) else { return };
                let middle = self.fork(parent);
                self.setsid(middle);
                let last = self.fork(middle);
                if leads {
                    self.setsid(last);
                }
                let last = &mut self.made[last];
                last.has_environment &= !is_traceless;
                last.has_limit &= !is_traceless;
                look(self);
                if self.bereave(middle) {
                    self.made.remove(middle);
                }
            }
            Deed::Setsid(choice) => {
                if let Some(index) = self.chosen(choice) {
                    self.setsid(index);
                }
            }
            Deed::Setpgid(choice) => {
                let Some(index) = self.chosen(choice) else { return };
                let process = &mut self.made[index].process;
                if process.session != process.id.pid {
                    process.group = process.id.pid;
                }
            }
            Deed::TakeTerminal(choice) => {
                let leads = |made: &Made| {
                    let process = &made.process;
                    made.role == Role::Other && process.session == process.id.pid && process.terminal == 0
                };
                let Some(index) = self.choose(choice, leads) else { return };
                self.terminals += 1;
                if self.made[index].is_member {
                    let holders = self.made.iter_mut().filter(|made| made.process.terminal == TERMINAL);
                    holders.for_each(|made| made.process.terminal = 0);
                    self.made[index].process.terminal = TERMINAL;
                } else {
                    self.made[index].process.terminal = self.terminals;
                }
            }
            Deed::ClearEnvironment(choice) => {
                if let Some(index) = self.chosen(choice) {
                    self.made[index].has_environment = false;
                }
            }
            Deed::ClearLimit(choice) => {
                if let Some(index) = self.chosen(choice) {
                    self.made[index].has_limit = false;
                }
            }
            Deed::Exit(choice) | Deed::Zombie(choice) => {
                let Some(index) = self.chosen(choice) else { return };
                if !self.bereave(index) {
                    return;
                }
                // The shim reaps the leader last; without it the daemon does when it likes.
                let is_kept = self.made[index].process.id == LEADER && (self.means.keeper || self.means.lineage);
                if matches!(deed, Deed::Zombie(_)) || is_kept {
                    let process = &mut self.made[index].process;
                    (process.state, process.terminal) = (ProcessState::Zombie, 0);
                } else {
                    self.made.remove(index);
                }
            }
            Deed::Copy(from, to) => {
                let (Some(from), Some(to)) = (self.chosen(from), self.chosen(to)) else { return };
                // A stranger with a parent that lives: an editor's terminal. Orphans are told by their marks.
                let is_orphan = [1, DAEMON].contains(&self.made[to].process.parent);
                if !self.made[to].is_member && !is_orphan {
                    self.made[to].has_environment |= self.made[from].has_environment;
                }
            }
            Deed::Daemon(choice, home) => {
                let Some(starter) = self.chosen(choice) else { return };
                let daemon = self.fork(starter);
                self.supervise(daemon, Role::Daemon(home));
            }
            Deed::Pose(choice) => {
                let leads_none = |made: &Made| made.role == Role::Other && made.process.session != made.process.id.pid;
                let Some(index) = self.choose(choice, leads_none) else { return };
                self.made[index].poses = true;
                self.made[index].process.name = name(Role::Daemon(Home::Ours)).into();
            }
            Deed::Serve(choice) => {
                let Some(daemon) = self.choose(choice, |made| matches!(made.role, Role::Daemon(_))) else { return };
                let home = self.made[daemon].role.home().expect("a daemon has one");
                let shim = self.fork(daemon);
                self.supervise(shim, Role::Shim(home));
                let service = self.fork(shim);
                self.setsid(service);
                self.terminals += 1;
                let made = &mut self.made[service];
                (made.role, made.process.terminal) = (Role::Other, self.terminals);
                made.process.name = name(Role::Other).into();
            }
            Deed::Kill(choice) => {
                // What looks after the run itself lives or not, as the means say.
                let is_other = |made: &Made| made.role != Role::Other && made.process.id.pid != SHIM;
                let Some(index) = self.choose(choice, is_other) else { return };
                if self.bereave(index) {
                    self.made.remove(index);
                }
            }
            Deed::Look => {}
            Deed::Wrap => self.next = 21,
        }
    }

    fn table(&self) -> Vec<Process> {
        self.made.iter().map(|made| made.process.clone()).collect()
    }

    fn of<'m>(&'m self, is_meant: impl Fn(&Made) -> bool + 'm) -> BTreeSet<i32> {
        self.made.iter().filter(|made| is_meant(made)).map(|made| made.process.id.pid).collect()
    }

    /// What a look at the processes tells now.
    fn tell(&self, case: &mut Case) {
        let is_living = |made: &Made| made.process.state != ProcessState::Zombie;
        case.told.marked = self.of(|made| made.has_environment);
        case.told.inheriting = self.of(|made| made.has_limit);
        case.cgroup = self.of(|made| self.means.cgroup && made.is_in_cgroup && is_living(made));
        // Decided as it is on a real machine, by name, session and the home in the environment.
        let home = |made: &Made| {
            let home = made.role.home().or(made.poses.then_some(Home::Ours));
            home.map(|home| home.path().to_owned())
        };
        let ours = OsStr::new(Home::Ours.path());
        case.told.supervisors = self.of(|made| mark::looks_after(&made.process, ours, || home(made)));
    }
}

/// The name of a process, as the kernel has it.
fn name(role: Role) -> &'static str {
    match role {
        Role::Daemon(_) => "locald-server",
        Role::Shim(_) => "locald-shim",
        Role::Other => "x",
    }
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let choice = 0usize..40;
    let daemonized = any::<[bool; 2]>().prop_map(|[leads, is_traceless]| Daemonized { leads, is_traceless });
    let home = prop_oneof![Just(Home::Ours), Just(Home::Foreign)];
    let deed = prop_oneof![
        6 => choice.clone().prop_map(Deed::Fork),
        3 => (choice.clone(), daemonized).prop_map(|(parent, how)| Deed::DoubleFork(parent, how)),
        3 => choice.clone().prop_map(Deed::Setsid),
        2 => choice.clone().prop_map(Deed::Setpgid),
        4 => choice.clone().prop_map(Deed::TakeTerminal),
        2 => choice.clone().prop_map(Deed::ClearEnvironment),
        2 => choice.clone().prop_map(Deed::ClearLimit),
        4 => choice.clone().prop_map(Deed::Exit),
        1 => choice.clone().prop_map(Deed::Zombie),
        1 => (choice.clone(), choice.clone()).prop_map(|(from, to)| Deed::Copy(from, to)),
        1 => (choice.clone(), home).prop_map(|(starter, home)| Deed::Daemon(starter, home)),
        1 => choice.clone().prop_map(Deed::Pose),
        2 => choice.clone().prop_map(Deed::Serve),
        1 => choice.prop_map(Deed::Kill),
        1 => Just(Deed::Look),
        1 => Just(Deed::Wrap),
    ];
    proptest::collection::vec(deed, 0..60)
}

/// Who is a member, who was found, and of whom nothing tells.
struct Outcome {
    truth: BTreeSet<i32>,
    found: BTreeSet<i32>,
    hidden: BTreeSet<i32>,
    table: Vec<Process>,
}

impl Outcome {
    /// Whether all members are found, but for those of whom nothing tells, and nobody else.
    fn misses_only_who_is_hidden(&self) -> Result<(), TestCaseError> {
        prop_assert!(self.found.is_subset(&self.truth), "strangers: {:?}", self.found.difference(&self.truth));
        let is_missed = |process: &&Process| self.truth.difference(&self.found).any(|&pid| pid == process.id.pid);
        for missed in self.table.iter().filter(is_missed) {
            prop_assert!(self.hidden.contains(&missed.id.pid), "missed: {:?}", missed);
            // Hidden is nobody who is next to one that was found.
            let is_near = |other: &Process| {
                other.id.pid == missed.parent || other.session == missed.session || other.group == missed.group
            };
            let near = self.table.iter().find(|other| self.found.contains(&other.id.pid) && is_near(other));
            prop_assert!(near.is_none(), "missed: {:?}, next to {:?}", missed, near);
        }
        Ok(())
    }
}

/// Lives through a history.
fn live_through(deeds: &[Deed], means: Means) -> Outcome {
    let mut machine = Machine::new(means);
    let mut case = Case {
        keeper: means.keeper.then_some(SHIM),
        reapers: vec![ProcessId { pid: DAEMON, start: 30 }],
        terminal: means.terminal.then_some(TERMINAL),
        ..Case::default()
    };
    for deed in deeds {
        let mut remember = |machine: &Machine| {
            machine.tell(&mut case);
            let table = machine.table();
            let found = case.found(&table);
            case.memory.add(table.iter().filter(|process| found.contains(&process.id.pid)));
        };
        // Lineage numbers are of use as far as they are kept: a birth is told.
        machine.apply(deed, &mut |machine| {
            if means.lineage {
                remember(machine);
            }
        });
        if matches!(deed, Deed::Look) || means.lineage {
            remember(&machine);
        }
    }
    machine.tell(&mut case);
    // Nothing of its own tells of it, and it was not seen in time.
    let is_hidden = |made: &Made| {
        let is_orphan = made.process.parent == 1 || made.process.parent == DAEMON;
        let has_terminal = means.terminal && made.process.terminal == TERMINAL;
        let is_known = case.memory.has(made.process.id);
        !(made.has_limit || made.has_environment && is_orphan || has_terminal || is_known)
    };
    Outcome {
        truth: machine.of(|made| made.is_member && made.process.state != ProcessState::Zombie),
        found: case.found(&machine.table()),
        hidden: machine.of(is_hidden),
        table: machine.table(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn under_a_keeper_all_members_are_found_and_no_stranger(deeds in deeds()) {
        let outcome = live_through(&deeds, Means { keeper: true, ..Means::default() });
        prop_assert_eq!(outcome.truth, outcome.found);
    }

    #[test]
    fn under_a_keeper_with_cgroup_and_terminal_no_stranger_is_found_either(deeds in deeds()) {
        let outcome = live_through(&deeds, Means { keeper: true, cgroup: true, terminal: true, ..Means::default() });
        prop_assert_eq!(outcome.truth, outcome.found);
    }

    #[test]
    fn by_lineage_all_members_are_found_and_no_stranger(deeds in deeds()) {
        let outcome = live_through(&deeds, Means { lineage: true, ..Means::default() });
        prop_assert_eq!(outcome.truth, outcome.found);
    }

    #[test]
    fn by_their_cgroup_all_members_are_found_and_no_stranger(deeds in deeds()) {
        let outcome = live_through(&deeds, Means { cgroup: true, ..Means::default() });
        prop_assert_eq!(outcome.truth, outcome.found);
    }

    #[test]
    fn by_terminal_and_marks_no_stranger_is_found_and_only_whoever_lost_them_all_is_missed(deeds in deeds()) {
        live_through(&deeds, Means { terminal: true, ..Means::default() }).misses_only_who_is_hidden()?;
    }

    #[test]
    fn by_marks_alone_no_stranger_is_found_and_only_whoever_lost_every_mark_is_missed(deeds in deeds()) {
        live_through(&deeds, Means::default()).misses_only_who_is_hidden()?;
    }
}
