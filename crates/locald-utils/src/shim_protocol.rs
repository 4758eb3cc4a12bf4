//! What the daemon and a shim say to each other: version 1.
//!
//! The daemon speaks first. [`ToShim::Hello`], [`ToShim::Status`], [`ToShim::Stop`], [`ToShim::Signal`],
//! [`ToShim::Ack`] and their answers are the frozen core: a shim outlives the daemon that started it, so every later
//! daemon must be understood by it and must understand it. Unknown fields are ignored; an unknown message is answered
//! by [`FromShim::Unsupported`] and changes nothing.
//!
//! Descriptors travel: with [`FromShim::Started`] and [`FromShim::Snapshot`] what the run's output is read from, which is the PTY
//! master or, of a run without a terminal, the pipes of stdout and stderr, in this order. The master goes with
//! [`FromShim::Attached`], too, to whoever is to write there.
//!
//! [`ToShim::Attach`] needs no greeting and no epoch: it is said by the command line, over a connection of its own, and changes
//! nothing about the run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::name::{RunNumber, ServiceName};
use crate::process::ProcessId;
use crate::record::{Ended, ExitStatus, RunRef, StartFailure, Survivor};
use crate::spec::{Environment, Invocation, LogPolicy, ServiceSpec, StopSignal, yes};
use crate::time::UnixMillis;

/// The protocol this build speaks.
pub const PROTOCOL: u32 = 1;

/// The descriptor on which a new shim finds its connection to the daemon.
pub const CONTROL_FD: i32 = 3;

/// The first argument of a shim; its [`ShimIdentity`] follows.
pub const SHIM_ROLE: &str = "run";

/// The first argument of a shim that stands by; its [`StandbyIdentity`] follows, and spaces until [`ROOM`].
pub const STANDBY_ROLE: &str = "standby";

/// 1,024 bytes: how much a [`ShimIdentity`] may take as the argument of a shim that has stood by. It takes some 600.
pub const ROOM: usize = 1024;

/// What a shim must know before it can say anything: its second argument, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimIdentity {
    /// The run it shall carry out.
    pub run: RunRef,
    /// The project's directory.
    pub project_dir: PathBuf,
    /// The directory of the service's log and records.
    pub service_dir: PathBuf,
    /// Where it shall listen.
    pub socket: PathBuf,
    /// How many descriptors it and its service may have (RLIMIT_NOFILE), where the daemon has raised that for itself.
    #[serde(default)]
    pub open_files: Option<u64>,
    /// The cgroup to make for the run, where one can be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
}

impl ShimIdentity {
    /// What of this a shim needs to come up.
    #[must_use]
    pub fn standby(&self) -> StandbyIdentity {
        StandbyIdentity { open_files: self.open_files, cgroup: self.cgroup.clone() }
    }
}

/// What a shim is told that stands by until there is a run for it: its second argument, as JSON. Its [`ShimIdentity`] follows as the
/// first frame on [`CONTROL_FD`], and takes the place of this among the arguments that the system shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyIdentity {
    /// As [`ShimIdentity::open_files`].
    #[serde(default)]
    pub open_files: Option<u64>,
    /// As [`ShimIdentity::cgroup`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
}

/// What the daemon says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToShim {
    /// The first message of every connection. A connection with a lower epoch than one seen before is refused.
    Hello {
        /// The highest protocol the daemon speaks.
        protocol: u32,
        /// Which of the home's daemons it is.
        epoch: u64,
        /// Its build.
        version: String,
    },
    /// Starts the run. Once, and only over the connection the shim was born with.
    Start(Box<StartOrder>),
    /// Asks for a [`FromShim::Snapshot`].
    Status,
    /// Ends the run, or shortens a stop under way. Never lengthens one.
    Stop {
        /// How long from now until what is left is killed.
        #[serde(rename = "grace_ms", with = "crate::time::millis")]
        grace: Duration,
    },
    /// Runs one of [`StartOrder::probes`] beside the leader, with the run's environment and in its directory. Answered by
    /// [`FromShim::Probed`], or not at all when the run is being ended. One that runs already answers for both.
    Probe {
        /// Which check asks.
        check: u32,
        /// How long it may take. Then it is killed, with whatever it has started.
        #[serde(rename = "limit_ms", with = "crate::time::millis")]
        limit: Duration,
    },
    /// Says what the checks of the run have come to, for the next daemon: see [`Snapshot::ready`]. Not answered.
    Judged {
        /// Whether it is ready, or is not any more.
        ready: bool,
    },
    /// Sends a signal to the leader's group.
    Signal {
        /// Which.
        signal: StopSignal,
    },
    /// The daemon has recorded the end of the run; the shim may go.
    Ack,
    /// Asks for a place in front of the run's terminal: its size and, for whoever is to write, the PTY master. Whatever
    /// the service writes is in its log. The connection stays, and [`FromShim::Ended`] comes over it. Said first or not at
    /// all; answered by [`FromShim::Attached`], [`FromShim::Occupied`], [`FromShim::NoTerminal`], or, of a run that does not run,
    /// [`FromShim::Unsupported`].
    Attach {
        /// The process that attaches, for whoever finds the place taken.
        pid: i32,
        /// Whether it will not write. Any number may look; one may write.
        read_only: bool,
    },
}

/// Everything a shim needs to carry out a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartOrder {
    /// What to execute, ports filled in.
    pub command: Invocation,
    /// The working directory.
    pub workdir: PathBuf,
    /// The whole environment, markers included.
    pub environment: Environment,
    /// Whether it gets a terminal. Otherwise it has a pipe for each of stdout and stderr, and nothing to read.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub tty: bool,
    /// Whether the leader is a launcher: when it has exited with code 0 the run goes on with what it has left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forking: bool,
    /// How to end it, for the shim.
    pub stop: StopOrder,
    /// How much of the service's output is kept. A daemon that does not say leaves it to the default.
    #[serde(default)]
    pub log: LogPolicy,
    /// What to look for in what the run says of itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signs: Vec<Sign>,
    /// The commands of checks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub probes: BTreeMap<u32, Invocation>,
    /// The spec and the base environment, kept by the shim for the daemon that adopts the run.
    pub keep: Kept,
}

/// What a run may say of itself. Each is told once, by [`FromShim::Sign`], and from then on with every [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// A line of output contains a match, escape sequences left out.
    Line {
        /// Which check waits for it.
        check: u32,
        /// A regular expression.
        pattern: String,
    },
    /// `READY=1` comes to a socket (sd_notify(3)).
    Socket {
        /// Which check waits for it.
        check: u32,
        /// Where it is to be.
        path: PathBuf,
    },
    /// A newline is written to a descriptor that the leader is given.
    Descriptor {
        /// Which check waits for it.
        check: u32,
        /// The descriptor's number.
        number: i32,
    },
}

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeOutcome {
    /// It ended by itself.
    Exited {
        /// How.
        status: ExitStatus,
        /// The last line that it has said.
        output: String,
    },
    /// Its time was over, and it was killed.
    TimedOut {
        /// How long it had.
        #[serde(rename = "limit_ms", with = "crate::time::millis")]
        limit: Duration,
        /// The last line that it has said.
        output: String,
    },
    /// It could not be run.
    Failed(StartFailure),
}

/// How a shim ends its run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopOrder {
    /// The signal that asks.
    pub signal: StopSignal,
    /// How long it may take.
    #[serde(rename = "grace_ms", with = "crate::time::millis")]
    pub grace: Duration,
    /// Run before the signal, for at most the grace period.
    pub command: Option<Invocation>,
}

/// What a shim carries for the daemon that adopts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The spec as it was when the run started.
    pub spec: ServiceSpec,
    /// The port it was given.
    pub port: Option<u16>,
    /// The digest of the caller's environment, under which the ledger has it.
    pub environment: String,
    /// The runs that the services it depends on had when it was started.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub started_on: BTreeMap<ServiceName, RunNumber>,
}

/// What a shim says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromShim {
    /// Answers [`ToShim::Hello`].
    Hello {
        /// The protocol of this connection: the lower of the two.
        protocol: u32,
        /// The shim's build.
        version: String,
        /// The run it carries.
        run: RunRef,
        /// The shim itself.
        shim: ProcessId,
    },
    /// The record is written, and the leader has become the service's program. Carries what its output is read from.
    Started {
        /// The leader.
        leader: ProcessId,
        /// When.
        at: UnixMillis,
    },
    /// The run did not start; the shim goes.
    StartFailed(StartFailure),
    /// The leader has exited by itself; what it left behind is being ended.
    LeaderExited {
        /// How.
        status: ExitStatus,
        /// When.
        at: UnixMillis,
    },
    /// The leader, a launcher, has exited with code 0, and what it has left is the service. Told again when another process stands
    /// for it.
    Forked {
        /// Who stands for it: the oldest of those whose parents are gone.
        main: ProcessId,
    },
    /// The stop has begun, or its deadline has come nearer.
    Stopping {
        /// When what is left is killed.
        kill_at: UnixMillis,
    },
    /// No process of the run is left, and the record says so. Repeated to every new connection until acknowledged.
    Ended(Box<Ended>),
    /// Some processes could not be ended. The shim stays and watches them; [`FromShim::Ended`] follows when they go.
    Survivors {
        /// Those processes.
        survivors: Vec<Survivor>,
    },
    /// Answers [`ToShim::Probe`].
    Probed {
        /// Which check asked.
        check: u32,
        /// What became of it.
        outcome: ProbeOutcome,
    },
    /// A sign that a check waits for has been seen.
    Sign {
        /// Which check.
        check: u32,
    },
    /// Answers [`ToShim::Status`]. Carries what the output is read from, while there is such.
    Snapshot(Box<Snapshot>),
    /// A daemon of a higher epoch has taken over; this connection is closed.
    Fenced {
        /// The epoch in charge.
        epoch: u64,
    },
    /// Answers [`ToShim::Attach`]. Carries the PTY master, unless it is for looking only.
    Attached {
        /// The run.
        run: RunRef,
        /// The size of its terminal.
        rows: u16,
        /// The size of its terminal.
        columns: u16,
    },
    /// Answers [`ToShim::Attach`]: somebody else writes.
    Occupied {
        /// That process.
        pid: i32,
    },
    /// Answers [`ToShim::Attach`]: the run has no terminal.
    NoTerminal,
    /// The last message was not understood.
    Unsupported,
}

/// A run as its shim knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The run.
    pub run: RunRef,
    /// What the daemon that started it left with the shim; `None` before [`ToShim::Start`].
    pub kept: Option<Kept>,
    /// How far it is.
    pub phase: Phase,
    /// The leader, once there is one.
    pub leader: Option<ProcessId>,
    /// Who stands for what a launcher has left, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<ProcessId>,
    /// When its first instruction ran.
    pub started_at: Option<UnixMillis>,
    /// The checks whose signs have been seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signs: Vec<u32>,
    /// What a daemon has found last: that it is ready, or is not any more. `None` when it never was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// No Start has come.
    Idle,
    /// It runs.
    Running,
    /// It is being ended.
    Stopping {
        /// When what is left is killed.
        kill_at: UnixMillis,
    },
    /// Some of its processes could not be ended.
    Stuck {
        /// Those processes.
        survivors: Vec<Survivor>,
    },
    /// It is over; [`FromShim::Ended`] follows.
    Ended,
}
