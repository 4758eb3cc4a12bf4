//! When a request has come about: predicates over lifecycles, evaluated again whenever something changed.
//!
//! A predicate looks at how things are, not at what happened in between, so nothing can be missed and a dip does no
//! harm. Each service of a request is judged alone.

use locald_utils::name::{RunNumber, ServiceName};
use locald_utils::protocol::{Desired, OutcomeResult, WaitFor};
use locald_utils::spec::{Condition, Kind, ServiceSpec};

use super::lifecycle::{Actual, Lifecycle};

/// What a request wants of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// It is ready, or completed if it is a job, in a run that the person's wish allows.
    Up,
    /// Nothing of it is left.
    Down,
    /// As [`Want::Up`], [`Want::Down`], or the job's completion, without having asked for it.
    Wait(WaitFor),
}

/// One service of a request.
#[derive(Clone, Debug)]
pub(crate) struct Goal {
    /// Which service.
    pub(crate) service: ServiceName,
    /// What is wanted.
    pub(crate) want: Want,
    /// The run it had when the request came.
    pub(crate) run_before: RunNumber,
    /// Whether it held when the request came.
    pub(crate) unchanged: bool,
    /// As far as this will do, for [`Want::Up`]: more than that is not waited for.
    pub(crate) enough: Option<Condition>,
}

/// Judges a goal. `None` while it is open.
pub(crate) fn judge(want: Want, spec: &ServiceSpec, life: &Lifecycle) -> Option<OutcomeResult> {
    match want {
        Want::Up if matches!(life.actual, Actual::Stuck { .. }) => Some(OutcomeResult::Failed),
        Want::Up if life.desired == Desired::Down => Some(OutcomeResult::Superseded),
        Want::Up => up(spec, life),
        Want::Down if life.desired == Desired::Up => Some(OutcomeResult::Superseded),
        Want::Down => down(life),
        Want::Wait(WaitFor::Ready) => up(spec, life).or_else(|| never_up(life)),
        Want::Wait(WaitFor::Completed) => match spec.kind {
            Kind::Service | Kind::Forking => Some(OutcomeResult::Failed),
            Kind::Job => up(spec, life).or_else(|| never_up(life)),
        },
        Want::Wait(WaitFor::Stopped) => (!life.is_occupied()).then_some(OutcomeResult::Done),
    }
}

/// Without anybody wanting it up, a service at rest never will be.
fn never_up(life: &Lifecycle) -> Option<OutcomeResult> {
    (life.desired == Desired::Down && !life.is_occupied()).then_some(OutcomeResult::Failed)
}

fn up(spec: &ServiceSpec, life: &Lifecycle) -> Option<OutcomeResult> {
    match life.actual {
        Actual::Ready { .. } => life.is_ready().then_some(OutcomeResult::Done),
        Actual::Completed if !life.is_completed() => None,
        Actual::Completed => Some(match spec.kind {
            Kind::Job => OutcomeResult::Done,
            // It ended before anyone could use it. That is what `type = "job"` is for.
            Kind::Service | Kind::Forking => OutcomeResult::Failed,
        }),
        // As things stand, no wish will make it run.
        Actual::Blocked { .. } | Actual::Stuck { .. } => Some(OutcomeResult::Failed),
        // A failure that a newer wish is about to replace is none yet.
        Actual::Failed(_) => (life.newest >= life.at_least).then_some(OutcomeResult::Failed),
        Actual::Stopped
        | Actual::Waiting
        | Actual::Spawning
        | Actual::Starting { .. }
        | Actual::Unready
        | Actual::Stopping { .. }
        | Actual::Backoff { .. }
        | Actual::Unknown => None,
    }
}

fn down(life: &Lifecycle) -> Option<OutcomeResult> {
    match life.actual {
        // Of one that was taken over it is not known yet what is left.
        _ if life.abandoned.values().any(Vec::is_empty) => None,
        _ if !life.is_occupied() && !life.abandoned.is_empty() => Some(OutcomeResult::Failed),
        Actual::Stuck { .. } => Some(OutcomeResult::Failed),
        Actual::Stopped
        | Actual::Waiting
        | Actual::Blocked { .. }
        | Actual::Backoff { .. }
        | Actual::Completed
        | Actual::Failed(_) => Some(OutcomeResult::Done),
        Actual::Spawning
        | Actual::Starting { .. }
        | Actual::Ready { .. }
        | Actual::Unready
        | Actual::Stopping { .. }
        | Actual::Unknown => None,
    }
}
