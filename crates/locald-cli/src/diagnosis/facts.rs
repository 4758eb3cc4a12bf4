//! What `doctor` has found, before anybody says what it means.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use locald_utils::paths::Home;
use locald_utils::process::features::{FileSystem, Machine};
use locald_utils::process::{ProcessId, ProcessState};
use locald_utils::record::RunRef;

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
