//! What a client is shown of a service: the core's facts in the protocol's words.

use locald_utils::fileset::NO_FILES;
use locald_utils::name::{OwnerName, ServiceKey};
use locald_utils::protocol::{Desired, FailedReason, OwnerStatus, ServiceStatus, State};
use locald_utils::spec::Ports;
use locald_utils::time::UnixMillis;

use crate::core::Time;
use crate::core::fleet::Fleet;
use crate::core::lifecycle::{Actual, Reason};
use crate::core::project::Service;

/// The two clocks at one moment, to tell people when something on the daemon's clock will be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) time: Time,
    pub(crate) wall: UnixMillis,
}

impl Now {
    fn wall(self, at: Time) -> UnixMillis {
        self.wall.plus(at).minus(self.time)
    }
}

/// Describes a service.
pub(crate) fn service(
    now: Now,
    fleet: &Fleet,
    ports: Option<&Ports>,
    key: &ServiceKey,
    service: &Service,
) -> ServiceStatus {
    let life = &service.life;
    let ready_at = match life.actual {
        Actual::Ready { since } => Some(now.wall(since)),
        Actual::Stopped
        | Actual::Waiting
        | Actual::Blocked { .. }
        | Actual::Spawning
        | Actual::Starting { .. }
        | Actual::Unready
        | Actual::Stopping { .. }
        | Actual::Stuck { .. }
        | Actual::Backoff { .. }
        | Actual::Completed
        | Actual::Failed(_)
        | Actual::Unknown => None,
    };
    ServiceStatus {
        name: key.service.clone(),
        kind: service.spec.kind,
        desired: life.desired,
        state: state(now, fleet, key, service),
        run: (life.newest.0 > 0).then_some(life.newest),
        leader: life.leader,
        shim: life.shim,
        started_at: life.started_at,
        ready_at,
        restarts: life.attempts.restarts,
        port: ports.and_then(|ports| ports.get(&key.service).copied()),
        health: life.health.as_ref().clone(),
        last: life.last.as_ref().map(|last| last.as_ref().clone()),
        spec_digest: life.running.as_ref().map(|spec| spec.digest()),
        note: note(fleet, key, service),
        left: life.abandoned.values().flatten().cloned().collect(),
        profiles: service.spec.profiles.clone(),
        owners: owners(now, service),
        forsaken_by: forsaken_by(service),
        is_leaving: life.is_occupied() && life.is_leaving(),
    }
}

fn owners(now: Now, service: &Service) -> Vec<OwnerStatus> {
    let status = |(name, until): (&OwnerName, Option<Time>)| OwnerStatus {
        name: name.clone(),
        until: until.map(|until| now.wall(until)),
    };
    service.owners.leases().map(status).collect()
}

fn forsaken_by(service: &Service) -> Vec<OwnerName> {
    let gone = service.owners.gone().filter(|_| service.life.desired == Desired::Down);
    gone.cloned().collect()
}

fn note(fleet: &Fleet, key: &ServiceKey, service: &Service) -> Option<String> {
    let life = &service.life;
    let holder = fleet.projects().get(&key.project).filter(|_| life.actual == Actual::Waiting);
    let holder = holder.and_then(|project| project.holder_that_leaves(&key.service));
    let holder = holder.map(|holder| format!("its port is that of {holder}, which is about to end"));
    let degraded = "degraded: its shim died or cannot be reached; restart it when convenient";
    let degraded = life.is_degraded.then(|| degraded.to_owned());
    // A failure says it by itself.
    let is_told = matches!(life.actual, Actual::Failed(_) | Actual::Backoff { .. });
    let complaint = life.complaint.clone().filter(|_| !is_told);
    let watching = &service.watching;
    let renewed = watching.changed.as_ref().map(|file| match watching.restarts {
        1 => format!("run again because {file} changed"),
        times => format!("run again {times} times because files changed, the last of them {file}"),
    });
    let unwatched = watching.problem().map(|problem| format!("watch: {problem}"));
    let recalled = life.is_recalled && life.actual == Actual::Completed;
    let inputs = service.spec.inputs.as_ref().and_then(|inputs| inputs.digest.as_deref());
    let recalled = recalled.then(|| match inputs {
        Some(NO_FILES) => "not run: its inputs name no file, as when it last succeeded".to_owned(),
        Some(_) | None => "not run: its inputs are as when it last succeeded".to_owned(),
    });
    let notes: Vec<String> =
        holder.into_iter().chain(degraded).chain(complaint).chain(renewed).chain(unwatched).chain(recalled).collect();
    (!notes.is_empty()).then(|| notes.join("; "))
}

fn state(now: Now, fleet: &Fleet, key: &ServiceKey, service: &Service) -> State {
    match &service.life.actual {
        Actual::Stopped => State::Stopped,
        Actual::Waiting => State::Waiting { on: fleet.waiting_on(key) },
        Actual::Blocked { chain, cause } => {
            State::Failed { reason: FailedReason::Dependency { chain: chain.clone(), cause: cause.clone() } }
        }
        Actual::Spawning => State::Spawning,
        Actual::Starting { .. } => State::Starting,
        Actual::Ready { .. } => State::Ready,
        Actual::Unready => State::Unready,
        Actual::Stopping { kill_at } => State::Stopping { kill_at: *kill_at },
        Actual::Stuck { survivors } => {
            State::Failed { reason: FailedReason::Survivors { survivors: survivors.clone() } }
        }
        Actual::Backoff { starts, until } => {
            // The one that comes counts as well.
            let attempt = starts.saturating_add(1);
            let (limit, why) = (service.spec.restart.limit, service.life.complaint.clone());
            State::Backoff { attempt, limit, until: now.wall(*until), why }
        }
        Actual::Completed => State::Completed,
        Actual::Failed(reason) => State::Failed {
            reason: match reason {
                Reason::Exited => FailedReason::Exited,
                Reason::CrashLoop { starts, within, why } => FailedReason::CrashLoop {
                    starts: *starts,
                    within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
                    why: why.clone(),
                },
                Reason::Start(failure) => FailedReason::Start(failure.clone()),
                Reason::Unhealthy(why) => FailedReason::Unhealthy { why: why.clone() },
            },
        },
        Actual::Unknown => State::Unknown,
    }
}

/// The short name of a state, for the ledger's events.
pub(crate) fn state_name(actual: &Actual) -> &'static str {
    match actual {
        Actual::Stopped => "stopped",
        Actual::Waiting => "waiting",
        Actual::Blocked { .. } => "blocked",
        Actual::Spawning => "spawning",
        Actual::Starting { .. } => "starting",
        Actual::Ready { .. } => "ready",
        Actual::Unready => "unready",
        Actual::Stopping { .. } => "stopping",
        Actual::Stuck { .. } => "stuck",
        Actual::Backoff { .. } => "backoff",
        Actual::Completed => "completed",
        Actual::Failed(_) => "failed",
        Actual::Unknown => "unknown",
    }
}
