//! What is worth saying while services come up or go down. Pure: told what happened and when, says what is new.
//!
//! A service is *settled* when nothing further is expected of it: its line is final. The others are *pending*; `render`
//! redraws them on a terminal and names them in a heartbeat elsewhere.

use std::time::Duration;

use locald_utils::protocol::{ServiceStatus, State};
use locald_utils::spec::{Condition, Kind};
use locald_utils::time::{UnixMillis, human};

use crate::screen::Tone;
use crate::view::{self, Word};

/// What the person waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Services that run.
    Up,
    /// Services that are gone.
    Down,
}

/// Something to say about one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The service's name.
    pub(crate) service: String,
    /// What it does.
    pub(crate) word: Word,
    /// Since when, for what is pending.
    pub(crate) elapsed: Option<Duration>,
}

/// The services that a request is about, as last heard of.
#[derive(Debug)]
pub(crate) struct Progress {
    goal: Goal,
    services: Vec<Seen>,
}

#[derive(Debug)]
struct Seen {
    status: ServiceStatus,
    /// When it came into this state, as far as this command saw.
    since: UnixMillis,
}

impl Progress {
    /// Nothing heard yet.
    pub(crate) fn new(goal: Goal) -> Self {
        Self { goal, services: Vec::new() }
    }

    /// Takes news of a service. Returns what to say if that is anything new.
    pub(crate) fn observe(&mut self, status: &ServiceStatus, now: UnixMillis) -> Option<Line> {
        let word = transition(status, now);
        let line = Line { service: status.name.to_string(), word, elapsed: None };
        match self.services.iter_mut().find(|seen| seen.status.name == status.name) {
            Some(seen) => {
                let before = std::mem::replace(&mut seen.status, status.clone());
                if before.state == status.state && before.run == status.run {
                    return None;
                }
                seen.since = now;
                // Being set up and starting are one thing to a person.
                (transition(&before, now) != line.word).then_some(line)
            }
            None => {
                self.services.push(Seen { status: status.clone(), since: now });
                Some(line)
            }
        }
    }

    /// Whether nothing further is expected of a service.
    pub(crate) fn is_settled(&self, status: &ServiceStatus) -> bool {
        match (&status.state, self.goal) {
            (State::Stopped | State::Completed | State::Failed { .. }, _) => true,
            (State::Ready, Goal::Up) => !status.is_leaving,
            (
                State::Ready
                | State::Waiting { .. }
                | State::Spawning
                | State::Starting
                | State::Unready
                | State::Stopping { .. }
                | State::Backoff { .. }
                | State::Unknown,
                _,
            ) => false,
        }
    }

    /// What is still expected, and since when.
    pub(crate) fn pending(&self, now: UnixMillis) -> Vec<Line> {
        let pending = self.services.iter().filter(|seen| !self.is_settled(&seen.status));
        pending
            .map(|seen| Line {
                service: seen.status.name.to_string(),
                word: waiting(&seen.status, now),
                elapsed: Some(now.since(seen.since)),
            })
            .collect()
    }

    /// Says what is still waited for, in one line.
    pub(crate) fn heartbeat(&self, now: UnixMillis) -> String {
        let pending: Vec<String> = self
            .pending(now)
            .iter()
            .map(|line| format!("{} ({}, {})", line.service, line.word.text, human(line.elapsed.unwrap_or_default())))
            .collect();
        match pending.len() {
            0 => "waiting for the daemon".to_owned(),
            1..=6 => format!("waiting for {}", pending.join(", ")),
            count => format!("waiting for {}, and {} more", pending[..5].join(", "), count - 5),
        }
    }
}

/// What to say about a service in a state that lasts.
fn waiting(status: &ServiceStatus, now: UnixMillis) -> Word {
    match &status.state {
        State::Stopping { .. } | State::Backoff { .. } => view::word(status, now),
        State::Ready => still_running(),
        State::Starting | State::Unready => {
            let word = transition(status, now);
            match view::health_note(status, now) {
                Some(note) => Word { text: format!("{}: {note}", word.text), ..word },
                None => word,
            }
        }
        State::Stopped
        | State::Waiting { .. }
        | State::Spawning
        | State::Completed
        | State::Failed { .. }
        | State::Unknown => transition(status, now),
    }
}

/// It is ready, and that is not what is waited for.
fn still_running() -> Word {
    Word { text: "still running".to_owned(), tone: Tone::Busy }
}

/// What to say about a service that has just come into its state.
fn transition(status: &ServiceStatus, now: UnixMillis) -> Word {
    if status.state == State::Ready && status.is_leaving {
        return still_running();
    }
    let word = view::word(status, now);
    let text = match &status.state {
        State::Waiting { on } if !on.is_empty() => {
            let each = on.iter().map(|dependency| match dependency.condition {
                Condition::Ready => format!("{} to be ready", dependency.service),
                Condition::Completed => format!("{} to complete", dependency.service),
                Condition::Started => format!("{} to start", dependency.service),
            });
            format!("waiting for {}", each.collect::<Vec<_>>().join(", "))
        }
        State::Ready => match (status.started_at, status.ready_at) {
            (Some(started), Some(ready)) => format!("ready in {}", human(ready.since(started))),
            (_, _) => word.text,
        },
        State::Unready => "not ready any more".to_owned(),
        State::Stopping { .. } => "stopping".to_owned(),
        State::Completed => match (status.kind, status.last.as_ref()) {
            (Kind::Job, Some(ended)) => match ended.started_at {
                Some(started) => format!("completed in {}", human(ended.exited_at.since(started))),
                None => "completed".to_owned(),
            },
            (Kind::Job | Kind::Service | Kind::Forking, _) => word.text,
        },
        State::Backoff { attempt, limit, why, .. } => {
            let ended = || status.last.as_ref().map_or("ended".to_owned(), view::exit_words);
            let cause = why.as_deref().map_or_else(ended, view::clean);
            format!("{cause}; attempt {attempt} of {limit} follows")
        }
        State::Failed { .. } => {
            let said = match (&status.state, status.last.as_ref()) {
                (State::Failed { reason: locald_utils::protocol::FailedReason::Exited }, Some(ended)) => {
                    view::exit_words(ended)
                }
                (_, _) => word.text,
            };
            view::with_failure_note(&said, status)
        }
        State::Stopped | State::Waiting { .. } | State::Spawning | State::Starting | State::Unknown => word.text,
    };
    let tone = if status.state == State::Completed { Tone::Good } else { word.tone };
    Word { text, tone }
}

#[cfg(test)]
mod tests {
    use locald_utils::protocol::{FailedReason, WaitingOn};
    use locald_utils::record::ExitStatus;

    use super::*;
    use crate::testing::{NOW, ended, name, ready, service};

    fn later(ms: u64) -> UnixMillis {
        UnixMillis(NOW.0 + ms)
    }

    #[test]
    fn each_change_is_said_once_and_a_repetition_is_not() {
        let mut progress = Progress::new(Goal::Up);
        let on = vec![WaitingOn { service: name("db"), condition: Condition::Ready }];
        let waits = service("web", State::Waiting { on });
        let said: Vec<Option<String>> = [
            waits.clone(),
            waits,
            service("web", State::Spawning),
            service("web", State::Starting),
            ServiceStatus { note: Some("news without a change".into()), ..service("web", State::Starting) },
            ready("web"),
        ]
        .iter()
        .map(|status| progress.observe(status, NOW).map(|line| line.word.text))
        .collect();
        let said: Vec<Option<&str>> = said.iter().map(Option::as_deref).collect();
        let expected = [Some("waiting for db to be ready"), None, Some("starting"), None, None, Some("ready in 1.2s")];
        assert_eq!(said, expected);
    }

    #[test]
    fn ready_settles_an_up_and_not_a_down() {
        for (goal, is_settled) in [(Goal::Up, true), (Goal::Down, false)] {
            let mut progress = Progress::new(goal);
            progress.observe(&ready("web"), NOW);
            assert_eq!(progress.pending(NOW).is_empty(), is_settled);
        }
    }

    #[test]
    fn a_run_that_is_to_be_replaced_is_not_what_is_waited_for() {
        let mut progress = Progress::new(Goal::Up);
        let old = ServiceStatus { is_leaving: true, ..ready("db") };
        let said: Vec<Option<String>> = [old, service("db", State::Stopping { kill_at: None }), ready("db")]
            .iter()
            .map(|status| progress.observe(status, NOW).map(|line| line.word.text))
            .collect();
        assert_eq!(said, [Some("still running".into()), Some("stopping".into()), Some("ready in 1.2s".into())]);
        let mut progress = Progress::new(Goal::Up);
        progress.observe(&ServiceStatus { is_leaving: true, ..ready("db") }, NOW);
        assert_eq!(progress.pending(NOW).len(), 1);
    }

    #[test]
    fn the_heartbeat_names_what_is_waited_for_and_since_when() {
        let mut progress = Progress::new(Goal::Up);
        assert_eq!(progress.heartbeat(NOW), "waiting for the daemon");
        progress.observe(&ready("db"), NOW);
        progress.observe(&service("web", State::Starting), NOW);
        progress.observe(&service("api", State::Stopping { kill_at: Some(later(12_000)) }), later(2_000));
        assert_eq!(
            progress.heartbeat(later(10_000)),
            "waiting for web (starting, 10s), api (stopping, kill in 2s, 8.0s)"
        );
        for number in 0..10 {
            progress.observe(&service(&format!("s{number}"), State::Starting), later(10_000));
        }
        assert!(progress.heartbeat(later(10_000)).ends_with("s2 (starting, 0ms), and 7 more"));
    }

    #[test]
    fn a_failure_says_how_and_a_restart_to_come_says_why() {
        let mut failed = service("web", State::Failed { reason: FailedReason::Exited });
        failed.last = Some(ended("web", ExitStatus::Code(7)));
        assert_eq!(transition(&failed, NOW).text, "failed: exit 7");
        failed.state = State::Backoff { attempt: 2, limit: 10, until: later(500), why: None };
        assert_eq!(transition(&failed, NOW).text, "failed: exit 7; attempt 2 of 10 follows");
        let job = ServiceStatus {
            kind: Kind::Job,
            last: Some(ended("migrate", ExitStatus::Code(0))),
            ..service("migrate", State::Completed)
        };
        assert_eq!(transition(&job, NOW), Word { text: "completed in 200ms".into(), tone: Tone::Good });
    }
}
