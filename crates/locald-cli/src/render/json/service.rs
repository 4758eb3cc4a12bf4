//! How a service stands, for programs.

use locald_utils::name::ProfileName;
use locald_utils::protocol::{CheckStatus, Desired, FailedReason, OwnerStatus, ServiceStatus, State, WaitingOn};
use locald_utils::record::{Ended, ExitStatus, StartFailure, Stray, Survivor};
use locald_utils::spec::{Condition, Kind};
use locald_utils::time::UnixMillis;
use serde::Serialize;

use crate::view::{self, Row};

/// Two commits.
#[derive(Serialize)]
pub(super) struct Moved<'a> {
    from: &'a str,
    to: &'a str,
}

/// A service as it stands.
#[derive(Serialize)]
pub(super) struct Service<'a> {
    name: &'a str,
    /// `service` or `job`.
    kind: Kind,
    /// `up` or `down`.
    desired: Desired,
    /// `stopped`, `waiting`, `spawning`, `starting`, `ready`, `unready`, `stopping`, `backoff`, `completed`, `failed` or
    /// `unknown`.
    state: &'static str,
    /// The same as a person is shown it.
    text: String,
    run: Option<u32>,
    pid: Option<i32>,
    started_at: Option<UnixMillis>,
    ready_at: Option<UnixMillis>,
    /// Null unless it runs.
    uptime_ms: Option<u64>,
    restarts: u32,
    port: Option<u16>,
    /// Absent unless its run has checks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    health: Vec<Check<'a>>,
    /// Absent unless it waits for others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waiting_for: Vec<WaitingFor<'a>>,
    /// Absent unless the next attempt is due.
    #[serde(skip_serializing_if = "Option::is_none")]
    backoff: Option<Backoff>,
    /// Absent unless it is being ended with a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    kill_at: Option<UnixMillis>,
    /// Absent unless it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<ServiceFailure<'a>>,
    /// How the newest run that is over has ended.
    last: Option<End<'a>>,
    notes: Vec<String>,
    /// Processes of the run that have lost their parents; absent unless there are any, and outside of `status`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    strays: Vec<Process<'a>>,
    /// What is left of earlier runs that could not be ended; absent unless there is any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    left: Vec<Process<'a>>,
    /// Absent unless it has owners: `name`, and `until`, null without a lease.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    owners: &'a [OwnerStatus],
    /// Absent unless it has profiles.
    #[serde(skip_serializing_if = "<[ProfileName]>::is_empty")]
    profiles: &'a [ProfileName],
    /// Absent outside of `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    configured: Option<bool>,
    /// Absent outside of `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<bool>,
    /// Whether its program on disk is another one than it runs; in `status` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    program_changed: Option<bool>,
    /// The commit it was started from; in `status` only, and absent where that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'a str>,
    /// That commit and the one that is checked out now; in `status` only, and absent where they are the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    head_moved: Option<Moved<'a>>,
    /// Absent without `--wide`.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

impl<'a> Service<'a> {
    pub(super) fn of_row(row: &'a Row, now: UnixMillis) -> Self {
        Self {
            notes: row.notes(now),
            uptime_ms: row.uptime(now).map(|uptime| u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX)),
            configured: Some(row.is_configured),
            changed: Some(row.is_changed),
            program_changed: Some(row.drift.is_program_changed),
            commit: row.drift.commit.as_deref(),
            head_moved: row.drift.head.as_ref().map(|(from, to)| Moved { from, to }),
            strays: row.strays.iter().map(Process::of_stray).collect(),
            usage: row.usage.map(|usage| Usage {
                processes: usage.processes,
                cpu_percent: usage.cpu_percent,
                memory_bytes: usage.memory_bytes,
            }),
            ..Self::of(&row.status, now)
        }
    }

    pub(super) fn of(status: &'a ServiceStatus, now: UnixMillis) -> Self {
        let detail = Detail::of(&status.state);
        let row = Row::of(status.clone());
        let uptime_ms = row.uptime(now).map(|uptime| u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX));
        Self {
            name: status.name.as_str(),
            kind: status.kind,
            desired: status.desired,
            state: state_name(&status.state),
            text: view::word(status, now).text,
            run: status.run.map(|run| run.0),
            pid: status.leader.map(|leader| leader.pid),
            started_at: status.started_at,
            ready_at: status.ready_at,
            uptime_ms,
            restarts: status.restarts,
            port: status.port,
            health: status.health.iter().map(Check::of).collect(),
            waiting_for: detail.waiting_for,
            backoff: detail.backoff,
            kill_at: detail.kill_at,
            failure: detail.failure,
            last: status.last.as_ref().map(End::of),
            notes: row.notes(now),
            left: status.left.iter().map(Process::of_survivor).collect(),
            owners: &status.owners,
            profiles: &status.profiles,
            configured: None,
            changed: None,
            program_changed: None,
            commit: None,
            head_moved: None,
            strays: Vec::new(),
            usage: None,
        }
    }
}

/// What only some states have to say.
#[derive(Default)]
struct Detail<'a> {
    waiting_for: Vec<WaitingFor<'a>>,
    backoff: Option<Backoff>,
    kill_at: Option<UnixMillis>,
    failure: Option<ServiceFailure<'a>>,
}

impl<'a> Detail<'a> {
    pub(super) fn of(state: &'a State) -> Self {
        match state {
            State::Waiting { on } => Self { waiting_for: on.iter().map(WaitingFor::of).collect(), ..Self::default() },
            State::Backoff { attempt, limit, until, .. } => {
                let backoff = Backoff { attempt: *attempt, limit: *limit, next_at: *until };
                Self { backoff: Some(backoff), ..Self::default() }
            }
            State::Stopping { kill_at } => Self { kill_at: *kill_at, ..Self::default() },
            State::Failed { reason } => Self { failure: Some(ServiceFailure::of(reason)), ..Self::default() },
            State::Stopped
            | State::Spawning
            | State::Starting
            | State::Ready
            | State::Unready
            | State::Completed
            | State::Unknown => Self::default(),
        }
    }
}

/// What a check of a run has come to.
#[derive(Serialize)]
pub(super) struct Check<'a> {
    /// What is asked.
    probe: &'a str,
    passes: bool,
    tries: u32,
    /// The last answer, null where it was a good one or there is none.
    answer: Option<&'a str>,
    /// Since when it has passed, or has not.
    since: UnixMillis,
}

impl<'a> Check<'a> {
    pub(super) fn of(check: &'a CheckStatus) -> Self {
        let CheckStatus { probe, passes, tries, answer, since } = check;
        Self { probe, passes: *passes, tries: *tries, answer: answer.as_deref(), since: *since }
    }
}

#[derive(Serialize)]
pub(super) struct WaitingFor<'a> {
    service: &'a str,
    /// `started`, `ready` or `completed`.
    condition: Condition,
}

impl<'a> WaitingFor<'a> {
    pub(super) fn of(on: &'a WaitingOn) -> Self {
        Self { service: on.service.as_str(), condition: on.condition }
    }
}

#[derive(Serialize)]
struct Backoff {
    attempt: u32,
    limit: u32,
    next_at: UnixMillis,
}

/// Why a service failed; `kind` says which of the fields there are.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum ServiceFailure<'a> {
    Exited,
    CrashLoop {
        starts: u32,
        within_ms: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        why: Option<&'a str>,
    },
    Start {
        #[serde(flatten)]
        failure: &'a StartFailure,
    },
    Unhealthy {
        why: &'a str,
    },
    Dependency {
        chain: Vec<&'a str>,
        cause: &'a str,
    },
    Survivors {
        survivors: Vec<Process<'a>>,
    },
}

impl<'a> ServiceFailure<'a> {
    pub(super) fn of(reason: &'a FailedReason) -> Self {
        match reason {
            FailedReason::Exited => Self::Exited,
            FailedReason::CrashLoop { starts, within_ms, why } => {
                Self::CrashLoop { starts: *starts, within_ms: *within_ms, why: why.as_deref() }
            }
            FailedReason::Start(failure) => Self::Start { failure },
            FailedReason::Unhealthy { why } => Self::Unhealthy { why },
            FailedReason::Dependency { chain, cause } => {
                Self::Dependency { chain: chain.iter().map(|name| name.as_str()).collect(), cause }
            }
            FailedReason::Survivors { survivors } => {
                Self::Survivors { survivors: survivors.iter().map(Process::of_survivor).collect() }
            }
        }
    }
}

/// How a run ended.
#[derive(Serialize)]
pub(super) struct End<'a> {
    run: u32,
    /// Null when a signal ended it, or nobody knows.
    exit_code: Option<i32>,
    /// Null when it exited by itself, or nobody knows.
    signal: Option<String>,
    /// Whether locald was asked to end it: then the signal is ours.
    stopped: bool,
    /// Whether anything had to be killed.
    forced: bool,
    started_at: Option<UnixMillis>,
    exited_at: UnixMillis,
    ended_at: UnixMillis,
    processes: u32,
    killed: u32,
    strays: Vec<Process<'a>>,
    survivors: Vec<Process<'a>>,
    stop_ms: u64,
    lost_output_bytes: u64,
}

impl<'a> End<'a> {
    pub(super) fn of(ended: &'a Ended) -> Self {
        let (exit_code, signal) = match ended.status {
            ExitStatus::Code(code) => (Some(code), None),
            ExitStatus::Signal(_) => (None, Some(ended.status.to_string())),
            ExitStatus::Unknown => (None, None),
        };
        Self {
            run: ended.run.number.0,
            exit_code,
            signal,
            stopped: ended.stopped,
            forced: ended.forced,
            started_at: ended.started_at,
            exited_at: ended.exited_at,
            ended_at: ended.ended_at,
            processes: ended.processes,
            killed: ended.killed,
            strays: ended.strays.iter().map(Process::of_stray).collect(),
            survivors: ended.survivors.iter().map(Process::of_survivor).collect(),
            stop_ms: u64::try_from(ended.stop_took.as_millis()).unwrap_or(u64::MAX),
            lost_output_bytes: ended.lost_output,
        }
    }
}

/// A process by number and command; `uid` and `reason` where it could not be ended.
#[derive(Serialize)]
pub(super) struct Process<'a> {
    pid: i32,
    command: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

impl<'a> Process<'a> {
    pub(super) fn of_stray(stray: &'a Stray) -> Self {
        Self { pid: stray.process.pid, command: &stray.command, uid: None, reason: None }
    }

    pub(super) fn of_survivor(survivor: &'a Survivor) -> Self {
        let Survivor { process, command, uid, reason } = survivor;
        Self { pid: process.pid, command, uid: Some(*uid), reason: Some(reason) }
    }
}

#[derive(Serialize)]
struct Usage {
    processes: usize,
    cpu_percent: f32,
    memory_bytes: u64,
}

pub(super) fn state_name(state: &State) -> &'static str {
    match state {
        State::Stopped => "stopped",
        State::Waiting { .. } => "waiting",
        State::Spawning => "spawning",
        State::Starting => "starting",
        State::Ready => "ready",
        State::Unready => "unready",
        State::Stopping { .. } => "stopping",
        State::Backoff { .. } => "backoff",
        State::Completed => "completed",
        State::Failed { .. } => "failed",
        State::Unknown => "unknown",
    }
}
