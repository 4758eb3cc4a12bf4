//! What `doctor` makes of what it found. Pure: facts go in, a report comes out; `survey` gathers, `render` shows.
//!
//! [`diagnose`] tells the story: containment, limits, the home, leftovers. Only what keeps locald from doing what it
//! promises, or what nobody would ever clean up, is a problem, and each problem has one command that ends it. A feature
//! that is missing is none as long as there is a way round. A run that its shim or a daemon looks after is never one,
//! whosever home it belongs to.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use locald_utils::paths::{HOME_VARIABLES, Home};
use locald_utils::process::features::{Feature, FileSystem, Limit, Limits, Logout, Machine, Medium, Presence, Unit};
use locald_utils::process::{ProcessId, ProcessState};
use locald_utils::record::RunRef;
use locald_utils::time::human;

use crate::view::{bytes, count};

/// 100 MB: a busy service writes its whole log of some ten megabytes several times before anybody looks.
const LOW_DISK: u64 = 100 << 20;

/// 256: what macOS gives a login. A daemon holds some four descriptors for each run.
const LOW_OPEN_FILES: u64 = 256;

/// 256: an editor, a browser and a desktop have that many, threads included.
const LOW_PROCESSES: u64 = 256;

/// A limit that is enough for a machine full of services, where one has to be raised.
const ENOUGH: u64 = 4096;

/// 16 and 1024: an editor and a file manager use more than half of either.
const LOW_INOTIFY: (u64, u64) = (16, 1024);

/// 1 s: a daemon makes its home as the first thing it does.
const HOME_LIMIT: Duration = Duration::from_secs(1);

/// 10 s: how long whoever starts a daemon waits until it listens.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);

/// The variables that name a home, those that are set.
pub(crate) type Variables = BTreeMap<&'static str, String>;

/// Everything that was found.
#[derive(Debug)]
pub(crate) struct Facts {
    /// The version of this program.
    pub(crate) version: &'static str,
    /// This user's name.
    pub(crate) user: String,
    pub(crate) machine: Machine,
    pub(crate) home: HomeFacts,
    pub(crate) traces: Traces,
}

/// What was found of this home.
#[derive(Debug)]
pub(crate) struct HomeFacts {
    /// What names it.
    pub(crate) variables: Variables,
    /// Its directories, or why it has none.
    pub(crate) directories: Result<Directories, String>,
    pub(crate) daemon: DaemonFacts,
    /// The daemon's program and the shim's.
    pub(crate) programs: Vec<Program>,
}

/// The directories of a home.
#[derive(Debug)]
pub(crate) struct Directories {
    pub(crate) state: Directory,
    pub(crate) runtime: Directory,
}

/// One directory of a home.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    pub(crate) condition: Condition,
    /// What it is on, or will be; `None` where the system does not say.
    pub(crate) file_system: Option<FileSystem>,
}

/// What is the matter with a directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It will be made when it is needed.
    Absent,
    /// It is ours alone.
    Fine {
        mode: u32,
    },
    /// Nothing can be written below `dir`, which is it or the nearest that exists above it.
    Unwritable {
        dir: PathBuf,
    },
    /// It is a symlink.
    Link {
        target: PathBuf,
    },
    /// It is something else than a directory.
    Other,
    /// It belongs to another user.
    Foreign {
        owner: u32,
    },
    /// Others may write to it; `dir` is it or one below it.
    Open {
        dir: PathBuf,
        mode: u32,
    },
    Unreadable {
        why: String,
    },
}

/// What was found of this home's daemon.
#[derive(Debug)]
pub(crate) enum DaemonFacts {
    /// None runs, or the home is in no state to ask one.
    None,
    Runs {
        pid: u32,
        version: String,
    },
    /// Somebody listens, and does not answer as a daemon should.
    Trouble {
        why: String,
    },
}

/// A program that belongs to this one.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) condition: ProgramCondition,
}

/// Whether a program can be used.
#[derive(Debug)]
pub(crate) enum ProgramCondition {
    Version(String),
    Missing,
    NotExecutable,
    /// It does not say which version it is.
    Mute {
        why: String,
    },
}

/// What processes and files of locald were found, in this home or any other.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    /// Every home that was met; this one is the first, if it is one.
    pub(crate) homes: Vec<TracedHome>,
    /// Living processes of this user that belong to a run.
    pub(crate) members: Vec<Member>,
    /// Living shims of this user.
    pub(crate) shims: Vec<Shim>,
    /// Living daemons of this user.
    pub(crate) daemons: Vec<Daemon>,
    /// The records of shims in all homes.
    pub(crate) records: Vec<Record>,
}

/// A home that somebody named.
#[derive(Debug)]
pub(crate) struct TracedHome {
    pub(crate) home: Home,
    pub(crate) variables: Variables,
    pub(crate) exists: bool,
    /// Whether somebody listens at its daemon's socket.
    pub(crate) has_daemon: bool,
    /// Sockets at which nobody listens.
    pub(crate) dead_sockets: Vec<PathBuf>,
}

/// A process as it is described to a person.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    pub(crate) id: ProcessId,
    pub(crate) state: ProcessState,
    pub(crate) command: String,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) age: Option<Duration>,
}

/// A process of a run.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) process: Described,
    /// The run's id.
    pub(crate) run: String,
    /// `project:service`, where it says so.
    pub(crate) service: Option<String>,
    /// Its place in [`Traces::homes`], where its environment names one.
    pub(crate) home: Option<usize>,
}

/// A shim.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) process: Described,
    pub(crate) run: RunRef,
    pub(crate) service_dir: PathBuf,
    /// Whether a record leads to it.
    pub(crate) is_recorded: bool,
    /// Whether anything of its run lives. Without, it is about to start or about to leave.
    pub(crate) has_children: bool,
}

/// A daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) process: Described,
    /// Its place in [`Traces::homes`].
    pub(crate) home: Option<usize>,
    pub(crate) has_socket: bool,
}

/// The record of a shim.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) run: RunRef,
    pub(crate) file: PathBuf,
    /// Its place in [`Traces::homes`]; `None` for one that only its shim led to.
    pub(crate) home: Option<usize>,
    /// Whether its numbers mean anything.
    pub(crate) is_of_this_boot: bool,
    pub(crate) has_shim: bool,
}

/// What there is to say.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) containment: Vec<Offer>,
    pub(crate) limits: Vec<Line>,
    pub(crate) home: Vec<Line>,
    pub(crate) supervised: Supervised,
    pub(crate) leftovers: Vec<Leftover>,
    /// All of them, those of the leftovers too.
    pub(crate) problems: Vec<Problem>,
}

/// What the machine offers, or does not.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) name: &'static str,
    pub(crate) presence: Presence,
    pub(crate) gives: &'static str,
    pub(crate) without: &'static str,
}

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ok,
    Note,
    Problem,
}

/// One thing that was looked at.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) verdict: Verdict,
    pub(crate) name: &'static str,
    pub(crate) text: String,
}

/// Runs that somebody looks after, in all homes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Supervised {
    pub(crate) runs: usize,
    /// Of these, the runs that have a shim and no daemon: the next one takes them over.
    pub(crate) without_daemon: usize,
}

/// Something that nobody looks after.
#[derive(Debug)]
pub(crate) struct Leftover {
    pub(crate) kind: LeftoverKind,
    /// `project:service`.
    pub(crate) service: Option<String>,
    pub(crate) run: Option<String>,
    /// The state directory of the home it belongs to.
    pub(crate) home: Option<PathBuf>,
    pub(crate) processes: Vec<Described>,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) problem: Problem,
}

/// What kind of thing nobody looks after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeftoverKind {
    /// A run that no record of its home leads to.
    RunWithoutRecord,
    /// A run whose home does not exist any more.
    RunWithoutHome,
    /// A run whose shim is gone, and there is no daemon.
    RunWithoutShim,
    /// A shim that no record leads to.
    Shim,
    /// A daemon that nobody can reach.
    Daemon,
    /// Records of runs that are over.
    Records,
    /// Sockets at which nobody listens.
    Sockets,
}

/// Something that is wrong, and the one command that ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) what: String,
    pub(crate) why: String,
    pub(crate) fix: String,
}

impl Problem {
    fn new(what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into(), fix: fix.into() }
    }
}

/// Says what the facts mean.
pub(crate) fn diagnose(facts: &Facts) -> Report {
    let mut problems = Vec::new();
    let containment = containment(&facts.machine, &mut problems);
    let limits = limits(facts, &mut problems);
    let home = home(facts, &mut problems);
    let (supervised, leftovers) = leftovers(&facts.traces, &facts.home.variables);
    problems.extend(leftovers.iter().map(|leftover| leftover.problem.clone()));
    Report { containment, limits, home, supervised, leftovers, problems }
}

fn containment(machine: &Machine, problems: &mut Vec<Problem>) -> Vec<Offer> {
    let offer = |(feature, presence): &(Feature, Presence)| {
        let (name, gives, without) = meaning(*feature);
        if let (Feature::ProcessTable, Err(why)) = (feature, presence) {
            problems.push(Problem::new("the process table cannot be read", why, "sudo mount -t proc proc /proc"));
        }
        Offer { name, presence: presence.clone(), gives, without }
    };
    machine.features.iter().map(offer).collect()
}

/// The name of a feature, what it gives, and how locald does without it.
fn meaning(feature: Feature) -> (&'static str, &'static str, &'static str) {
    match feature {
        Feature::ProcessTable => {
            ("process table", "shows who runs and whose child it is", "no run can be looked after")
        }
        Feature::OtherUsers => (
            "other users",
            "members that changed their user are seen, and who holds a port",
            "a member that changes its user is not seen, and a port's holder has no name",
        ),
        Feature::ChildrenList => {
            ("children", "the children of a process are listed", "children are looked up in the whole table")
        }
        Feature::Subreaper => (
            "subreaper",
            "orphans of a run come to its shim, so no children left means nobody left",
            "orphans are found by group, session and marker",
        ),
        Feature::UniqueIds => {
            ("unique ids", "descent is known although parents have gone", "descent is known as long as parents live")
        }
        Feature::Pidfd => (
            "pidfd",
            "a signal reaches the process that is meant and no other, and its end is an event",
            "start times are checked right before each signal",
        ),
        Feature::PidfdGroup => (
            "pidfd of groups",
            "the same for a process group",
            "a group is signalled by its number, which its leader keeps from being reused",
        ),
        Feature::ExitEvent => (
            "exit events",
            "the end of a process that is no child is an event",
            "such a process is looked at once a second",
        ),
        Feature::CgroupLeaf => (
            "cgroup",
            "a run can have a cgroup of its own, which no process of it leaves",
            "members are found by descent, group, session and marker",
        ),
        Feature::CgroupKill => (
            "cgroup.kill",
            "a cgroup is killed at once, however fast it forks",
            "members are killed in rounds, until a round finds none",
        ),
        Feature::LimitMarker => (
            "limit as a marker",
            "a process that clears its environment can still be told by a limit it inherits",
            "a process that clears its environment is found by descent, group and session",
        ),
        Feature::CloseRange => {
            ("close_range", "a new program's descriptors are closed in one call", "descriptors are closed one by one")
        }
    }
}

fn limits(facts: &Facts, problems: &mut Vec<Problem>) -> Vec<Line> {
    let Limits { pid_max, open_files, processes, inotify } = facts.machine.limits;
    let is_linux = facts.machine.kernel.starts_with("Linux");
    let mut lines = Vec::new();
    if let Some(max) = pid_max {
        lines.push(Line::ok("process numbers", format!("below {max}")));
    }
    if let Some(limit) = open_files {
        let problem = too_low(limit, LOW_OPEN_FILES).map(|soft| {
            let fix = raised(limit, "-n", "nofile", is_linux);
            let why = "a daemon needs some four for each run, and services inherit it; raised here, it holds for the daemon \
                       that this shell starts next";
            Problem::new(format!("a process may open only {soft} files"), why, fix)
        });
        lines.push(Line::of("open files", shown(limit), problem, problems));
    }
    if let Some(limit) = processes {
        // Nothing is counted against the superuser (getrlimit(2)).
        let problem = too_low(limit, LOW_PROCESSES).filter(|_| facts.user != "root").map(|soft| {
            let fix = raised(limit, "-u", "nproc", is_linux);
            Problem::new(format!("you may have only {soft} processes"), "threads of all programs count", fix)
        });
        lines.push(Line::of("processes", shown(limit), problem, problems));
    }
    if let Some(inotify) = inotify {
        let text = format!("{} instances, {} watches", inotify.instances, inotify.watches);
        let is_low = inotify.instances < LOW_INOTIFY.0 || inotify.watches < LOW_INOTIFY.1;
        let problem = is_low.then(|| {
            let fix = "sudo sysctl -w fs.inotify.max_user_instances=128 fs.inotify.max_user_watches=65536";
            Problem::new("few files can be watched", format!("{text}; `locald logs -f` and editors share them"), fix)
        });
        lines.push(Line::of("inotify", text, problem, problems));
    }
    if let Some(logout) = &facts.machine.logout {
        lines.push(at_logout(logout, &facts.user, problems));
    }
    lines
}

fn too_low(limit: Limit, low: u64) -> Option<u64> {
    limit.soft.filter(|soft| *soft < low)
}

fn shown(limit: Limit) -> String {
    let number = |value: Option<u64>| value.map_or("unlimited".to_owned(), |value| value.to_string());
    if limit.soft == limit.hard {
        return number(limit.soft);
    }
    format!("{}, may be raised to {}", number(limit.soft), number(limit.hard))
}

/// The command that raises a limit for a shell and what it starts.
fn raised(limit: Limit, flag: &str, name: &str, is_linux: bool) -> String {
    match limit.hard {
        Some(hard) if hard < ENOUGH && is_linux => format!("sudo prlimit --pid $$ --{name}={ENOUGH}:{ENOUGH}"),
        Some(hard) if hard < ENOUGH => format!("ulimit {flag} {hard}"),
        Some(_) | None => format!("ulimit {flag} {ENOUGH}"),
    }
}

fn at_logout(logout: &Logout, user: &str, problems: &mut Vec<Problem>) -> Line {
    const NAME: &str = "logging out";
    match (logout.unit, logout.kills, logout.lingers) {
        (Unit::Session, Some(true), _) => {
            let why =
                "KillUserProcesses is on in logind.conf, and a daemon that is started here belongs to this session";
            let dir = "/etc/systemd/logind.conf.d";
            let text = quoted(&format!("[Login]\\nKillExcludeUsers=root {user}\\n"));
            let fix = format!(
                "sudo mkdir -p {dir} && printf {text} | sudo tee {dir}/locald.conf && sudo systemctl reload systemd-logind"
            );
            let problem = Problem::new("services end when you log out", why, fix);
            Line::of(NAME, "ends services".to_owned(), Some(problem), problems)
        }
        (Unit::UserManager, _, false) => Line::note(
            NAME,
            "ends services that are started here; `loginctl enable-linger` lets them run on".to_owned(),
        ),
        (Unit::Session, Some(false) | None, _) | (Unit::UserManager, _, true) | (Unit::Neither, _, _) => {
            Line::ok(NAME, "ends no service".to_owned())
        }
    }
}

fn home(facts: &Facts, problems: &mut Vec<Problem>) -> Vec<Line> {
    let found = &facts.home;
    let mut lines = Vec::new();
    match &found.directories {
        Ok(Directories { state, runtime }) => {
            lines.push(directory("state", state, true, problems));
            lines.push(directory("sockets", runtime, false, problems));
        }
        Err(why) => {
            let problem = Problem::new("this home cannot be used", why, "export LOCALD_HOME=\"$HOME/.locald\"");
            lines.push(Line::of("directories", why.clone(), Some(problem), problems));
        }
    }
    lines.push(daemon(facts, problems));
    lines.extend(found.programs.iter().map(|found| program(found, facts.version, problems)));
    lines
}

fn directory(name: &'static str, dir: &Directory, is_state: bool, problems: &mut Vec<Problem>) -> Line {
    let path = dir.path.display().to_string();
    let elsewhere = "export LOCALD_HOME=\"/var/tmp/locald-$(id -u)\"";
    let problem = match &dir.condition {
        Condition::Absent | Condition::Fine { .. } => None,
        Condition::Unwritable { dir } => {
            Some(("nothing can be written to", format!("{} does not take it", dir.display()), elsewhere.to_owned()))
        }
        Condition::Link { target } => {
            let fix = if is_state {
                format!("export LOCALD_HOME={}", word(target))
            } else {
                format!("rm {}", word(&dir.path))
            };
            Some(("a symlink lies at", "whoever can change it could pose as the daemon".to_owned(), fix))
        }
        Condition::Other => {
            let fix = format!("mv {} {}", word(&dir.path), word(&with_suffix(&dir.path, ".old")));
            Some(("no directory is", "something else has its name".to_owned(), fix))
        }
        Condition::Foreign { owner } => {
            // What lies among the sockets is worth nothing, and may be somebody's trap.
            let fix = if is_state {
                format!("sudo chown -R \"$(id -u)\" {}", word(&dir.path))
            } else {
                format!("sudo rm -r {}", word(&dir.path))
            };
            Some(("somebody else owns", format!("it belongs to user {owner}"), fix))
        }
        Condition::Open { dir, mode } => {
            let why = format!("its mode is {mode:03o}, and whoever can write to it could pose as the daemon");
            Some(("other users can write to", why, format!("chmod 700 {}", word(dir))))
        }
        Condition::Unreadable { why } => Some(("it cannot be told what is", why.clone(), elsewhere.to_owned())),
    };
    if let Some((what, why, fix)) = problem {
        return Line::of(name, path.clone(), Some(Problem::new(format!("{what} {path}"), why, fix)), problems);
    }
    let mut text = match &dir.condition {
        Condition::Fine { mode } => format!("{path}, mode {mode:03o}"),
        _ => format!("{path}, made when it is needed"),
    };
    let Some(FileSystem { medium, free_bytes }) = dir.file_system else { return Line::ok(name, text) };
    if free_bytes < LOW_DISK {
        let why = "records and logs can soon not be written; this shows what takes the space";
        let fix = format!("sudo du -xh {} | sort -h | tail -n 20", word(mount_hint(&dir.path)));
        let what = format!("only {} are free for {path}", bytes(free_bytes));
        return Line::of(name, text, Some(Problem::new(what, why, fix)), problems);
    }
    if !is_state {
        return Line::ok(name, text);
    }
    text.push_str(&format!(", {} free", bytes(free_bytes)));
    match medium {
        Medium::Local => Line::ok(name, text),
        Medium::Memory => Line::note(name, format!("{text}, in memory: gone with the next restart of the machine")),
        Medium::Network => {
            let why = "databases and locks are not safe there, and another machine may use it at the same time";
            let problem = Problem::new(format!("{path} is on a network file system"), why, elsewhere);
            Line::of(name, text, Some(problem), problems)
        }
    }
}

/// The directory to begin with when looking for what fills a disk: the first one below the root.
fn mount_hint(path: &Path) -> &Path {
    path.ancestors().filter(|dir| *dir != Path::new("/")).last().unwrap_or(path)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn daemon(facts: &Facts, problems: &mut Vec<Problem>) -> Line {
    const NAME: &str = "daemon";
    let traces = &facts.traces;
    match &facts.home.daemon {
        DaemonFacts::Runs { pid, version } => {
            let problem = (version != facts.version).then(|| {
                let why = format!("this program is locald {}; services run on meanwhile", facts.version);
                Problem::new(
                    format!("the daemon is locald {version}"),
                    why,
                    "locald daemon stop && locald daemon start",
                )
            });
            Line::of(NAME, format!("pid {pid}, locald {version}"), problem, problems)
        }
        DaemonFacts::Trouble { why } => {
            let process = traces.daemons.iter().find(|daemon| daemon.home == Some(0)).map(|daemon| &daemon.process);
            let fix = match process {
                Some(process) if process.state == ProcessState::Stopped => format!("kill -CONT {}", process.id.pid),
                Some(process) => format!("kill -9 {}", process.id.pid),
                // Nobody of ours, or out of sight: the next daemon finds the place free.
                None => {
                    format!("rm {}", traces.homes.first().map_or(String::new(), |own| word(&own.home.daemon_socket())))
                }
            };
            let problem = Problem::new("the daemon does not answer", format!("{why}; services run on without it"), fix);
            Line::of(NAME, why.clone(), Some(problem), problems)
        }
        DaemonFacts::None => {
            // One of the same state whose sockets lie elsewhere keeps every other from starting.
            let own = traces.homes.first();
            let twin = own.and_then(|own| {
                let mut others = traces.homes.iter().skip(1).filter(|other| other.has_daemon);
                others.find(|other| other.home.state() == own.home.state())
            });
            let Some(twin) = twin else {
                return Line::ok(NAME, "none runs; verbs that need one start it".to_owned());
            };
            let sockets = twin.home.runtime().display();
            let fix = match twin.variables.get("XDG_RUNTIME_DIR") {
                Some(dir) => format!("export XDG_RUNTIME_DIR={}", quoted(dir)),
                None => "unset XDG_RUNTIME_DIR".to_owned(),
            };
            let why = "it was started with another XDG_RUNTIME_DIR, and a state has one daemon only";
            let problem = Problem::new(format!("the daemon of this home listens elsewhere, in {sockets}"), why, fix);
            Line::of(NAME, format!("listens in {sockets}"), Some(problem), problems)
        }
    }
}

fn program(program: &Program, own: &str, problems: &mut Vec<Problem>) -> Line {
    let path = program.path.display();
    let install = "cargo install --path .";
    let why = "the programs of locald belong together; this is for its source directory";
    let (text, problem) = match &program.condition {
        ProgramCondition::Version(version) if version == own => (format!("{path}, locald {version}"), None),
        ProgramCondition::Version(version) => {
            let what = format!("{path} is of locald {version}, this program of {own}");
            (format!("{path}, locald {version}"), Some(Problem::new(what, why, install)))
        }
        ProgramCondition::Missing => {
            (format!("{path} is missing"), Some(Problem::new(format!("{path} is missing"), why, install)))
        }
        ProgramCondition::NotExecutable => {
            let what = format!("{path} is not executable");
            let fix = format!("chmod +x {}", word(&program.path));
            (what.clone(), Some(Problem::new(what, "without it nothing can be started", fix)))
        }
        ProgramCondition::Mute { why: silence } => {
            let what = format!("{path} does not say which version it is");
            (what.clone(), Some(Problem::new(what, silence, install)))
        }
    };
    Line::of(program.name, text, problem, problems)
}

impl Line {
    fn ok(name: &'static str, text: String) -> Self {
        Self { verdict: Verdict::Ok, name, text }
    }

    fn note(name: &'static str, text: String) -> Self {
        Self { verdict: Verdict::Note, name, text }
    }

    /// A line whose verdict depends on whether there is a problem, which is kept.
    fn of(name: &'static str, text: String, problem: Option<Problem>, problems: &mut Vec<Problem>) -> Self {
        let verdict = if problem.is_some() { Verdict::Problem } else { Verdict::Ok };
        problems.extend(problem);
        Self { verdict, name, text }
    }
}

/// Tells what is looked after from what is left over.
fn leftovers(traces: &Traces, own: &Variables) -> (Supervised, Vec<Leftover>) {
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

/// A command as it has to be typed to act on another home than this one.
fn in_home(command: &str, theirs: Option<&Variables>, own: &Variables) -> String {
    let Some(theirs) = theirs else { return command.to_owned() };
    let is_set = |name: &str| theirs.contains_key(name);
    let mut words: Vec<String> = Vec::new();
    for name in HOME_VARIABLES {
        // What a stronger variable overrides does not matter.
        let matters = match name {
            "LOCALD_HOME" => true,
            "HOME" => !is_set("LOCALD_HOME") && !is_set("XDG_STATE_HOME"),
            _ => !is_set("LOCALD_HOME"),
        };
        match (theirs.get(name), own.get(name)) {
            (theirs, own) if theirs == own || !matters => {}
            (Some(value), _) => words.push(format!("{name}={}", quoted(value))),
            // Nothing counts as unset.
            (None, _) => words.push(format!("{name}=")),
        }
    }
    words.push(command.to_owned());
    words.join(" ")
}

fn word(path: &(impl AsRef<OsStr> + ?Sized)) -> String {
    // A path that is no text cannot be typed as one; it shows with the marks of what is missing.
    quoted(&path.as_ref().to_string_lossy())
}

/// One word for a shell (POSIX XCU 2.2.2: within single quotes nothing means anything but the quote).
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests;
