//! `doctor` for programs.

use std::borrow::Cow;
use std::path::Path;

use locald_utils::process::features::Machine;
use serde::Serialize;

use super::{SCHEMA, line};
use crate::diagnosis::{
    DaemonFacts, Described, Facts, HomeFacts, Leftover, LeftoverKind, Offer, Problem, Program, ProgramCondition, Report,
};

/// `doctor`: `ok`, `machine`, `containment`, `home`, `supervised`, `leftovers`, `problems`.
pub(crate) fn doctor(facts: &Facts, report: &Report) -> String {
    line(&Found {
        schema: SCHEMA,
        verb: "doctor",
        ok: report.problems.is_empty(),
        version: facts.version,
        machine: About::of(&facts.machine),
        containment: report.containment.iter().map(Offered::of).collect(),
        home: AboutHome::of(&facts.home),
        supervised: Looked { runs: report.supervised.runs, without_daemon: report.supervised.without_daemon },
        leftovers: report.leftovers.iter().map(Left::of).collect(),
        problems: report.problems.iter().map(Wrong::of).collect(),
    })
}

#[derive(Serialize)]
struct Found<'a> {
    schema: u32,
    verb: &'static str,
    ok: bool,
    version: &'a str,
    machine: About<'a>,
    containment: Vec<Offered<'a>>,
    home: AboutHome<'a>,
    supervised: Looked,
    leftovers: Vec<Left<'a>>,
    /// Those of the leftovers too.
    problems: Vec<Wrong<'a>>,
}

#[derive(Serialize)]
struct About<'a> {
    kernel: &'a str,
    pid_max: Option<u64>,
    /// Null where it is unlimited.
    open_files: Option<u64>,
    processes: Option<u64>,
    /// Null where there is no inotify.
    inotify_instances: Option<u64>,
    inotify_watches: Option<u64>,
}

impl<'a> About<'a> {
    fn of(machine: &'a Machine) -> Self {
        let limits = machine.limits;
        Self {
            kernel: &machine.kernel,
            pid_max: limits.pid_max,
            open_files: limits.open_files.and_then(|limit| limit.soft),
            processes: limits.processes.and_then(|limit| limit.soft),
            inotify_instances: limits.inotify.map(|inotify| inotify.instances),
            inotify_watches: limits.inotify.map(|inotify| inotify.watches),
        }
    }
}

#[derive(Serialize)]
struct Offered<'a> {
    name: &'a str,
    there: bool,
    /// What was seen of it, or why it is not there.
    detail: &'a str,
    gives: &'a str,
    without: &'a str,
}

impl<'a> Offered<'a> {
    fn of(offer: &'a Offer) -> Self {
        let (Ok(detail) | Err(detail)) = &offer.presence;
        Self { name: offer.name, there: offer.presence.is_ok(), detail, gives: offer.gives, without: offer.without }
    }
}

#[derive(Serialize)]
struct AboutHome<'a> {
    /// Null, as are the next two, where this home cannot be used.
    state: Option<&'a Path>,
    sockets: Option<&'a Path>,
    free_bytes: Option<u64>,
    daemon: Option<AboutDaemon<'a>>,
    programs: Vec<AboutProgram<'a>>,
}

impl<'a> AboutHome<'a> {
    fn of(home: &'a HomeFacts) -> Self {
        let directories = home.directories.as_ref().ok();
        Self {
            state: directories.map(|dirs| dirs.state.path.as_path()),
            sockets: directories.map(|dirs| dirs.runtime.path.as_path()),
            free_bytes: directories.and_then(|dirs| dirs.state.file_system.as_ref()).map(|seen| seen.free_bytes),
            daemon: match &home.daemon {
                DaemonFacts::Runs { pid, version } => Some(AboutDaemon { pid: *pid, version }),
                DaemonFacts::None | DaemonFacts::Trouble { .. } => None,
            },
            programs: home.programs.iter().map(AboutProgram::of).collect(),
        }
    }
}

#[derive(Serialize)]
struct AboutDaemon<'a> {
    pid: u32,
    version: &'a str,
}

#[derive(Serialize)]
struct AboutProgram<'a> {
    path: &'a Path,
    /// Null where it does not say.
    version: Option<&'a str>,
}

impl<'a> AboutProgram<'a> {
    fn of(program: &'a Program) -> Self {
        let version = match &program.condition {
            ProgramCondition::Version(version) => Some(version.as_str()),
            ProgramCondition::Missing | ProgramCondition::NotExecutable | ProgramCondition::Mute { .. } => None,
        };
        Self { path: &program.path, version }
    }
}

#[derive(Serialize)]
struct Looked {
    runs: usize,
    without_daemon: usize,
}

// Other processes may work in a directory whose name is no text, which is no reason to say nothing at all.
#[derive(Serialize)]
struct Left<'a> {
    /// `run_without_record`, `run_without_home`, `run_without_shim`, `shim`, `daemon`, `records` or `sockets`.
    kind: &'static str,
    service: Option<&'a str>,
    run: Option<&'a str>,
    home: Option<Cow<'a, str>>,
    processes: Vec<LeftProcess<'a>>,
    files: Vec<Cow<'a, str>>,
    #[serde(flatten)]
    problem: Wrong<'a>,
}

impl<'a> Left<'a> {
    fn of(leftover: &'a Leftover) -> Self {
        Self {
            kind: match leftover.kind {
                LeftoverKind::RunWithoutRecord => "run_without_record",
                LeftoverKind::RunWithoutHome => "run_without_home",
                LeftoverKind::RunWithoutShim => "run_without_shim",
                LeftoverKind::Shim => "shim",
                LeftoverKind::Daemon => "daemon",
                LeftoverKind::Records => "records",
                LeftoverKind::Sockets => "sockets",
            },
            service: leftover.service.as_deref(),
            run: leftover.run.as_deref(),
            home: leftover.home.as_ref().map(|home| home.to_string_lossy()),
            processes: leftover.processes.iter().map(LeftProcess::of).collect(),
            files: leftover.files.iter().map(|file| file.to_string_lossy()).collect(),
            problem: Wrong::of(&leftover.problem),
        }
    }
}

#[derive(Serialize)]
struct LeftProcess<'a> {
    pid: i32,
    command: &'a str,
    dir: Option<Cow<'a, str>>,
    age_ms: Option<u64>,
}

impl<'a> LeftProcess<'a> {
    fn of(process: &'a Described) -> Self {
        Self {
            pid: process.id.pid,
            command: &process.command,
            dir: process.directory.as_ref().map(|dir| dir.to_string_lossy()),
            age_ms: process.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

#[derive(Serialize)]
struct Wrong<'a> {
    what: &'a str,
    why: &'a str,
    fix: &'a str,
}

impl<'a> Wrong<'a> {
    fn of(problem: &'a Problem) -> Self {
        Self { what: &problem.what, why: &problem.why, fix: &problem.fix }
    }
}
