//! The checks of one run while it runs: asks when the core says so, and brings it the answers.
//!
//! [`Checkup::turn`] waits for the next thing to tell or to have the shim do; [`core::health`](crate::core::health) decides what
//! that is. Dropped, it stops asking.

use std::sync::Arc;
use std::time::Duration;

use locald_utils::health::{HealthCheck, Probe};
use locald_utils::record::ExitStatus;
use locald_utils::shim_protocol::ProbeOutcome;
use locald_utils::time::{UnixMillis, human};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::core::health::{Answer, Health, Verdict};
use crate::core::lifecycle::News;
use crate::probe::{self, Subject};

/// 2 s: how much longer than its limit the shim may take to tell what became of a command. A kill takes milliseconds.
const GRACE: Duration = Duration::from_secs(2);

/// What is next.
#[derive(Debug)]
pub(crate) enum Turn {
    /// The core is to be told.
    Tell(Vec<News>),
    /// The shim is to run the command of a check, for so long.
    Run(u32, Duration),
}

/// The checks of one run.
pub(crate) struct Checkup {
    subject: Subject,
    checks: Vec<HealthCheck>,
    health: Health,
    origin: Instant,
    /// Answers that the daemon itself looks for.
    asked: JoinSet<(usize, Answer)>,
    /// Checks that are to be begun.
    due: Vec<usize>,
    /// Commands that the shim runs, and until when it must have told what became of them.
    running: Vec<(usize, Instant)>,
    /// What is still to be told.
    news: Vec<News>,
    /// Whether the last answer was a good one, and that has been told.
    has_passed: Vec<bool>,
}

impl Checkup {
    /// Begins to check a run that has run for `ran_for`; `None` when it has no checks.
    pub(crate) fn begin(subject: Subject, checks: Vec<HealthCheck>, ran_for: Duration) -> Option<Self> {
        if checks.is_empty() {
            return None;
        }
        let health = Health::begin(&checks, Duration::ZERO, ran_for);
        // What is waited for, before there is any answer.
        let report = health.report(Duration::ZERO, UnixMillis::now(), subject.port);
        Some(Self {
            subject,
            health,
            has_passed: vec![false; checks.len()],
            checks,
            origin: Instant::now(),
            asked: JoinSet::new(),
            due: Vec::new(),
            running: Vec::new(),
            news: vec![News::Checked(Arc::new(report))],
        })
    }

    /// Waits for what is next. May be dropped and called again.
    pub(crate) async fn turn(&mut self) -> Turn {
        loop {
            let now = self.origin.elapsed();
            self.due.extend(self.health.due(now));
            while let Some(index) = self.due.pop() {
                if let Some(limit) = self.ask(index) {
                    return Turn::Run(u32::try_from(index).unwrap_or(u32::MAX), limit);
                }
            }
            if let Some(verdict) = self.health.tick(now) {
                self.judge(verdict);
            }
            let silent = |(_, until): &(usize, Instant)| *until <= Instant::now();
            if let Some(at) = self.running.iter().position(silent) {
                let (index, _) = self.running.remove(at);
                self.take(index, Answer::Bad("it does not end, not even killed".to_owned()));
            }
            if !self.news.is_empty() {
                return Turn::Tell(std::mem::take(&mut self.news));
            }
            let deadline = self.health.deadline().map(|deadline| self.origin + deadline);
            let deadline = self.running.iter().map(|(_, until)| *until).chain(deadline).min();
            tokio::select! {
                Some(answer) = self.asked.join_next() => {
                    // One that was broken off has nothing to say.
                    if let Ok((index, answer)) = answer {
                        self.take(index, answer);
                    }
                }
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// Has a check asked. Returns how long the shim is to run its command, if it has one.
    fn ask(&mut self, index: usize) -> Option<Duration> {
        let check = self.checks.get(index)?.clone();
        match &check.probe {
            Probe::Command { .. } => {
                self.running.push((index, Instant::now() + check.timeout + GRACE));
                return Some(check.timeout);
            }
            // The shim says when there is something.
            Probe::Log { .. } | Probe::Notify { .. } => {}
            Probe::Listen | Probe::Http(_) | Probe::Tcp { .. } => {
                let subject = self.subject;
                self.asked.spawn_local(async move { (index, probe::ask(subject, check).await) });
            }
        }
        None
    }

    /// Takes a sign that the shim has seen.
    pub(crate) fn take_sign(&mut self, check: u32) {
        let Ok(index) = usize::try_from(check) else { return };
        let waits = |check: &HealthCheck| matches!(check.probe, Probe::Log { .. } | Probe::Notify { .. });
        if self.checks.get(index).is_some_and(waits) && !self.has_passed[index] {
            self.take(index, Answer::Good);
        }
    }

    /// Takes what became of a command.
    pub(crate) fn take_outcome(&mut self, check: u32, outcome: ProbeOutcome) {
        let Some(at) = self.running.iter().position(|(index, _)| u32::try_from(*index) == Ok(check)) else { return };
        let (index, _) = self.running.remove(at);
        self.take(index, answer(outcome));
    }

    fn take(&mut self, index: usize, answer: Answer) {
        let is_good = answer == Answer::Good;
        let verdict = self.health.answer(self.origin.elapsed(), index, answer);
        let was_good = std::mem::replace(&mut self.has_passed[index], is_good);
        // That all goes on well is no news.
        if !(is_good && was_good) {
            let report = self.health.report(self.origin.elapsed(), UnixMillis::now(), self.subject.port);
            self.news.push(News::Checked(Arc::new(report)));
        }
        if let Some(verdict) = verdict {
            self.judge(verdict);
        }
    }

    fn judge(&mut self, verdict: Verdict) {
        self.news.push(match verdict {
            Verdict::Ready => News::Ready,
            Verdict::Unready(why) => News::Unready(why),
            Verdict::Late(why) => News::Late(why),
        });
    }
}

/// What a command's end says about the service.
fn answer(outcome: ProbeOutcome) -> Answer {
    let with = |what: String, output: String| if output.is_empty() { what } else { format!("{what}: {output}") };
    match outcome {
        ProbeOutcome::Exited { status: ExitStatus::Code(0), .. } => Answer::Good,
        ProbeOutcome::Exited { status, output } => Answer::Bad(with(status.to_string(), output)),
        ProbeOutcome::TimedOut { limit, output } => {
            Answer::Bad(with(format!("did not end within {}", human(limit)), output))
        }
        ProbeOutcome::Failed(failure) => Answer::Bad(failure.message),
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_command_is_told_with_its_last_line() {
        let exited = |status, output: &str| answer(ProbeOutcome::Exited { status, output: output.into() });
        assert_eq!(exited(ExitStatus::Code(0), "fine"), Answer::Good);
        assert_eq!(exited(ExitStatus::Code(7), "refused"), Answer::Bad("exit 7: refused".into()));
        assert_eq!(exited(ExitStatus::Signal(11), ""), Answer::Bad("SIGSEGV".into()));
        let late = ProbeOutcome::TimedOut { limit: Duration::from_millis(300), output: "waiting".into() };
        assert_eq!(answer(late), Answer::Bad("did not end within 300ms: waiting".into()));
    }
}
