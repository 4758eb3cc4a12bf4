//! What the command line and the daemon say to each other: version 1.
//!
//! Both sides send [`Hello`] first. Then the client sends numbered [`Request`]s; each gets any number of [`Event`]s and
//! exactly one reply, which comes when the outcome has been observed. `docs/protocol.md` describes the same with
//! examples and changes with this file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::name::{OwnerName, ProfileName, ProjectId, ProjectName, RunNumber, ServiceName};
use crate::process::ProcessId;
use crate::record::{Ended, Origin, StartFailure, Survivor};
use crate::spec::{Environment, Kind, ProjectSpec, ServiceSpec};
use crate::time::UnixMillis;

/// The protocol this build speaks. Grows by one when a message changes in a way that an older reader would mistake.
pub const PROTOCOL: u32 = 1;

/// The first message of each side. Its form never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The highest protocol the sender speaks.
    pub protocol: u32,
    /// The sender's build, for people: "0.1.0".
    pub version: String,
    /// The sender's process.
    pub pid: u32,
}

impl Hello {
    /// The greeting of this build and process.
    #[must_use]
    pub fn new() -> Self {
        Self { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned(), pid: std::process::id() }
    }
}

impl Hello {
    /// Whether the sender is of an older version than this build. What is no version is not older.
    #[must_use]
    pub fn is_older(&self) -> bool {
        let parse = semver::Version::parse;
        matches!((parse(&self.version), parse(env!("CARGO_PKG_VERSION"))), (Ok(theirs), Ok(own)) if theirs < own)
    }
}

impl Default for Hello {
    fn default() -> Self {
        Self::new()
    }
}

/// What a client sends after its [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientMessage {
    /// Chosen by the client; the answers carry it.
    pub id: u64,
    /// What is asked.
    pub request: Request,
    /// What an earlier daemon said that it began with ([`Event::Accepted`]), when that went away before it answered. Then the
    /// request is carried on and not made anew: a stop under way is not cut short, and what was restarted is not restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumes: Option<Before>,
}

/// The newest run of each service that a request is to change, as it was before.
pub type Before = BTreeMap<ServiceName, RunNumber>;

/// What the daemon sends after its [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerMessage {
    /// News while a request is under way.
    Event {
        /// The request it belongs to.
        id: u64,
        /// The news.
        event: Event,
    },
    /// The end of a request.
    Reply {
        /// The request it belongs to.
        id: u64,
        /// How it ended.
        reply: Box<Reply>,
    },
    /// The end of a request that could not be carried out at all.
    Failure {
        /// The request it belongs to.
        id: u64,
        /// Why.
        failure: Failure,
    },
}

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Starts services and what they depend on. Answered by [`Reply::Outcome`] when each is ready, completed or failed.
    Apply {
        /// The whole project as it is written now.
        project: Box<ProjectSpec>,
        /// The caller's environment.
        environment: Environment,
        /// The services meant; empty means all that belong to the project without being asked for.
        services: Vec<ServiceName>,
        /// Services with one of these profiles are meant as well.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        profiles: Vec<ProfileName>,
        /// What to do with those that run already.
        action: Action,
        /// Whether to start also beside what is left of a run that could not be ended.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
        /// As whom: the services are ended when all of their owners have left, and nobody without a name wants them. `None` for
        /// whoever does not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<Owner>,
        /// How long the outcome is waited for.
        #[serde(rename = "timeout_ms", with = "crate::time::millis")]
        timeout: Duration,
    },
    /// Asks what an [`Request::Apply`] would do, and does nothing. Answered by [`Reply::Preview`].
    Preview {
        /// The whole project as it is written now.
        project: Box<ProjectSpec>,
        /// The caller's environment.
        environment: Environment,
        /// As in [`Request::Apply`].
        services: Vec<ServiceName>,
        /// As in [`Request::Apply`].
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        profiles: Vec<ProfileName>,
        /// As in [`Request::Apply`].
        action: Action,
        /// As in [`Request::Apply`].
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        force: bool,
    },
    /// Starts what a service depends on, and not the service: for a one-off command that needs the same. Also assigns the ports of the
    /// project. Answered by [`Reply::Outcome`] when each of its dependencies has come as far as the service needs it, or cannot.
    Prepare {
        /// The whole project as it is written now.
        project: Box<ProjectSpec>,
        /// The caller's environment, for what is started.
        environment: Environment,
        /// The service.
        service: ServiceName,
        /// Whether anything is to be started at all.
        dependencies: bool,
        /// How long the outcome is waited for.
        #[serde(rename = "timeout_ms", with = "crate::time::millis")]
        timeout: Duration,
    },
    /// Ends services. Answered by [`Reply::Outcome`] when no process of theirs is left, or it is known what is.
    Stop {
        /// The project.
        project: ProjectId,
        /// The services meant; `None` means all, and that the project is over (`down`).
        services: Option<Vec<ServiceName>>,
        /// Whether to skip what is left of the grace period.
        now: bool,
        /// Only that this owner leaves: what others want stays.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<OwnerName>,
    },
    /// Waits for a condition without changing anything.
    Wait {
        /// The project.
        project: ProjectId,
        /// The services meant; empty means all that the daemon knows, but for those that only a profile starts and that nobody
        /// wants.
        services: Vec<ServiceName>,
        /// What to wait for.
        until: WaitFor,
        /// How long.
        #[serde(rename = "timeout_ms", with = "crate::time::millis")]
        timeout: Duration,
    },
    /// Asks how things stand. Answered by [`Reply::Status`].
    Status {
        /// One project, or all when `None`.
        project: Option<ProjectId>,
    },
    /// Asks which ports are assigned, to services of whatever project that ever was up here. Answered by [`Reply::Ports`].
    Ports,
    /// Asks the daemon about itself. Answered by [`Reply::Daemon`].
    Daemon,
    /// Ends the daemon. Answered by [`Reply::Outcome`] before it goes.
    Shutdown {
        /// Whether to end all services first. Otherwise they run on and the next daemon takes them over.
        all: bool,
    },
}

/// Whoever has services started, and says who it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its name.
    pub name: OwnerName,
    /// How long it wants them, from now; `None` until it leaves. Asking again begins another lease.
    #[serde(
        default,
        rename = "lease_ms",
        with = "crate::time::optional_millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub lease: Option<Duration>,
}

/// An owner of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerStatus {
    /// Its name.
    pub name: OwnerName,
    /// When its lease ends, if it has one.
    pub until: Option<UnixMillis>,
}

/// What [`Request::Apply`] does with services that run already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// `up`: leave them alone, unless their spec changed.
    Up,
    /// `start`: leave them alone.
    Start,
    /// `restart`: give the named ones a new run.
    Restart,
}

/// What [`Request::Wait`] waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// Services are ready; jobs have completed.
    Ready,
    /// Jobs have ended with exit code 0. Can never hold for a service.
    Completed,
    /// Nothing of it is left.
    Stopped,
}

/// News while a request is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// An `apply` or a `stop` has begun; the first event of its request.
    Accepted {
        /// What it began with.
        before: Before,
    },
    /// A service that the request is about has changed; all of it as it stands now.
    Service(Box<ServiceStatus>),
}

/// The end of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// What became of each service that the request was about.
    Outcome(Outcome),
    /// How things stand.
    Status {
        /// The projects asked about that the daemon knows.
        projects: Vec<ProjectStatus>,
    },
    /// What would happen.
    Preview {
        /// To each service of the project, in the order of the file.
        services: Vec<Preview>,
    },
    /// Every port that was assigned.
    Ports {
        /// In the order of their numbers.
        assigned: Vec<AssignedPort>,
    },
    /// The daemon about itself.
    Daemon(DaemonStatus),
}

/// What would happen to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// The service.
    pub service: ServiceName,
    /// What would be done.
    pub step: Step,
    /// Why a new run would take the place of one: none, one or several reasons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<Because>,
    /// What it would wait for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits_for: Vec<WaitingOn>,
    /// The spec of its run, where it has one; of a job that has completed, that of its last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Box<ServiceSpec>>,
    /// The variables that its run has otherwise than a new one would, where that is known; those that locald gives to a run alone
    /// left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub environment: Vec<String>,
}

/// What would be done to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// It gets a run; it has none.
    Start,
    /// Its run is ended, and it gets a new one.
    Restart,
    /// It is as it should be, or on its way there.
    Leave,
    /// Nothing: it is not asked for.
    Skip,
    /// Nothing: what is left of its last run could not be ended.
    Refuse,
}

/// Why a service would get a new run although it has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Because {
    /// It is written otherwise than it runs.
    Changed,
    /// Its port, or one that it mentions, is another now.
    Ports,
    /// It is a job, and its inputs are others than those of its last run.
    Inputs,
    /// That was asked for.
    Asked,
    /// A service that it follows (`restart = true` in `depends_on`) gets one.
    Follows(ServiceName),
}

/// A port that was assigned to a service, and is kept for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedPort {
    /// The port.
    pub port: u16,
    /// The instance of the project.
    pub project: ProjectId,
    /// Its name when a service of it last ran, if one ever did.
    pub project_name: Option<ProjectName>,
    /// The service.
    pub service: ServiceName,
}

/// What became of each service that a request was about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// In the order of the project file.
    pub services: Vec<ServiceOutcome>,
    /// From the request to this outcome.
    #[serde(rename = "took_ms", with = "crate::time::millis")]
    pub took: Duration,
}

/// What became of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceOutcome {
    /// The service as it stands now.
    pub service: ServiceStatus,
    /// Whether what was asked has come about.
    pub result: OutcomeResult,
    /// Whether it was so before anybody asked.
    pub unchanged: bool,
    /// How the run that this request ended has ended.
    pub ended: Option<Ended>,
}

/// Whether what was asked has come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeResult {
    /// It has been seen to hold.
    Done,
    /// It cannot come about any more.
    Failed,
    /// Someone else asked for the opposite meanwhile.
    Superseded,
    /// The time ran out first.
    TimedOut,
}

/// A project as the daemon knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectStatus {
    /// The instance.
    pub id: ProjectId,
    /// Its name.
    pub name: ProjectName,
    /// Its directory.
    pub dir: PathBuf,
    /// Its file.
    pub file: PathBuf,
    /// Its services, in the order of the file.
    pub services: Vec<ServiceStatus>,
    /// What those that run were made of, as far as the ledger has it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub origins: BTreeMap<ServiceName, Origin>,
}

/// A service as the daemon knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: ServiceName,
    /// Whether it is meant to stay or to finish.
    pub kind: Kind,
    /// What a person wants of it.
    pub desired: Desired,
    /// What it does.
    #[serde(flatten)]
    pub state: State,
    /// The newest run, running or over.
    pub run: Option<RunNumber>,
    /// The leader, while there is one.
    pub leader: Option<ProcessId>,
    /// The shim that carries the run, while there is one.
    pub shim: Option<ProcessId>,
    /// When the newest run's first instruction ran.
    pub started_at: Option<UnixMillis>,
    /// When it became ready.
    pub ready_at: Option<UnixMillis>,
    /// Restarts after it ended by itself, since a person last started it.
    pub restarts: u32,
    /// The port it was given.
    pub port: Option<u16>,
    /// What its checks have come to, where it has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<CheckStatus>,
    /// How the run before, or the newest one if it is over, ended.
    pub last: Option<Ended>,
    /// A digest of the spec of the newest run; differs from the file's when the file changed since.
    pub spec_digest: Option<String>,
    /// Something a person should know that is no state: "degraded: its shim died".
    pub note: Option<String>,
    /// What is left of runs that could not be ended, and beside which a new one was started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<Survivor>,
    /// The profiles without which it is not started unless it is named or needed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<ProfileName>,
    /// Who wants it by name. It is ended when all of them have left, unless somebody without a name wants it as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<OwnerStatus>,
    /// Those whose leaving, or the end of whose lease, has ended it or is about to: nobody else wants it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forsaken_by: Vec<OwnerName>,
    /// Whether its run is to be ended, or replaced, whatever state it is in now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_leaving: bool,
}

/// What a check of a run has come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// What is asked: "GET http://localhost:8080/healthz".
    pub probe: String,
    /// Whether it passes.
    pub passes: bool,
    /// How often it was asked.
    pub tries: u32,
    /// The last answer, where it was no good one.
    pub answer: Option<String>,
    /// Since when it has passed, or has not.
    pub since: UnixMillis,
}

/// What a person wants of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// It shall run; a job shall complete.
    Up,
    /// It shall not.
    Down,
}

/// What a service does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// Nothing of it runs, and nobody wants it to.
    Stopped,
    /// It shall run, and waits for others.
    Waiting {
        /// Which, each with what it waits for: "db to be ready".
        on: Vec<WaitingOn>,
    },
    /// Its run is being set up; no instruction of it has run.
    Spawning,
    /// It runs and is not yet ready; a job runs.
    Starting,
    /// It is ready.
    Ready,
    /// It was ready and is not any more.
    Unready,
    /// It is being ended.
    Stopping {
        /// When what is left of it is killed.
        kill_at: Option<UnixMillis>,
    },
    /// It ended and waits for its next attempt.
    Backoff {
        /// Which start within a minute comes next: 2 after the first failure. Never more than the limit.
        attempt: u32,
        /// So many starts within a minute count as a crash loop.
        limit: u32,
        /// When it comes.
        until: UnixMillis,
        /// What there is to say of the attempt before, where [`ServiceStatus::last`] does not tell: it was not healthy, or never started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// A job that ended with exit code 0, or a service that ended so and is not to be restarted.
    Completed,
    /// It ended or never started, and no further attempt is made.
    Failed {
        /// Why.
        reason: FailedReason,
    },
    /// It ran, and at the moment nobody can say whether it still does.
    Unknown,
}

/// Something a service waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingOn {
    /// The dependency.
    pub service: ServiceName,
    /// What it must have reached.
    pub condition: crate::spec::Condition,
}

/// Why a service failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FailedReason {
    /// It ended; how is in [`ServiceStatus::last`].
    Exited,
    /// It ended too often in too short a time.
    CrashLoop {
        /// So many starts.
        starts: u32,
        /// Within this time.
        within_ms: u64,
        /// Why the last of them came to nothing, where [`ServiceStatus::last`] does not tell: it was not healthy, or never started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// It could not be started.
    Start(StartFailure),
    /// It was not healthy, and has been ended.
    Unhealthy {
        /// Which check did not pass, and its last answer.
        why: String,
    },
    /// What it depends on can never hold: the chain, nearest first.
    Dependency {
        /// The dependencies, from the one it names down to the one that failed.
        chain: Vec<ServiceName>,
        /// What happened to the last of them.
        cause: String,
    },
    /// Some of its processes could not be ended.
    Survivors {
        /// Those processes.
        survivors: Vec<Survivor>,
    },
}

/// The daemon about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Its build.
    pub version: String,
    /// Its protocol.
    pub protocol: u32,
    /// Its process.
    pub pid: u32,
    /// Since when it runs.
    pub started_at: UnixMillis,
    /// How many daemons this home has had.
    pub epoch: u64,
    /// The directory of its state.
    pub home: PathBuf,
    /// The socket it listens on.
    pub socket: PathBuf,
    /// Its own log.
    pub log: PathBuf,
    /// Projects it knows.
    pub projects: u32,
    /// Runs it supervises.
    pub runs: u32,
    /// Clients connected, this one included.
    pub clients: u32,
}

/// Why a request, or a whole command, could not be carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind of failure it is.
    pub code: FailureCode,
    /// What was tried, on what, and why it did not work.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    #[must_use]
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// The same failure with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Kinds of failures. Each has one exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// It was tried and did not work.
    Failed,
    /// The command line or the project file is wrong.
    Usage,
    /// No daemon answers, or nothing runs.
    NotRunning,
    /// No such service or project.
    NotFound,
    /// The time ran out.
    TimedOut,
    /// The person interrupted it.
    Interrupted,
    /// The two sides speak different protocols.
    Protocol,
    /// The daemon is going down and takes no more requests.
    ShuttingDown,
}

impl FailureCode {
    /// The exit code of the process that reports the failure.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::Protocol | Self::ShuttingDown => 1,
            Self::Usage => 2,
            Self::NotRunning => 3,
            Self::NotFound => 4,
            Self::TimedOut => 124,
            Self::Interrupted => 130,
        }
    }
}

/// The one line a new daemon writes to the descriptor its starter gave it: the starter learns at once how it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DaemonStart {
    /// It listens.
    Ready {
        /// Its process.
        pid: u32,
    },
    /// Another daemon of this home holds the lock, and is about to listen or does.
    AlreadyRunning {
        /// That daemon's process, where known.
        pid: Option<u32>,
    },
    /// It cannot start.
    Failed {
        /// Why.
        failure: Failure,
    },
}
