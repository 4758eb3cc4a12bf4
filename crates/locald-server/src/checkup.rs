//! The checks of one run while it runs: asks when the core says so, and brings it the answers.
//!
//! [`Checkup::turn`] waits for the next thing to tell or to have the shim do; [`core::health`](crate::core::health) decides what
//! that is. Dropped, it stops asking.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use locald_utils::health::{HealthCheck, Probe};
use locald_utils::protocol::CheckStatus;
use locald_utils::record::{ExitStatus, StartStage};
use locald_utils::shim_protocol::ProbeOutcome;
use locald_utils::time::{UnixMillis, human};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::core::health::{Answer, Health, Verdict};
use crate::core::lifecycle::News;
use crate::probe::{self, Subject};

/// 2 s: how much longer than its limit the shim may take to tell what became of a command. A kill takes milliseconds.
const GRACE: Duration = Duration::from_secs(2);

/// 1 s: how often it is told that a check still does not pass.
const PATIENCE: Duration = Duration::from_secs(1);

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
    /// Checks whose commands the shim has not told the end of in time.
    silent: BTreeSet<usize>,
    /// What is still to be told.
    news: Vec<News>,
    /// What was told last, and when.
    told: (Vec<CheckStatus>, Instant),
}

impl Checkup {
    /// Begins to check a run that has run for `ran_for`, and was found ready, or not ready any more, by whoever checked before.
    /// `None` when it has no checks.
    pub(crate) fn begin(
        subject: Subject,
        checks: Vec<HealthCheck>,
        ran_for: Duration,
        readiness: Option<bool>,
    ) -> Option<Self> {
        if checks.is_empty() {
            return None;
        }
        let health = Health::begin(&checks, subject.port, Duration::ZERO, ran_for, readiness);
        // What is waited for, before there is any answer.
        let report = health.report(Duration::ZERO, UnixMillis::now());
        let mut news = vec![News::Checked(Arc::new(report.clone()))];
        news.extend((readiness == Some(true)).then_some(News::Ready));
        Some(Self {
            subject,
            health,
            checks,
            origin: Instant::now(),
            asked: JoinSet::new(),
            due: Vec::new(),
            running: Vec::new(),
            news,
            told: (report, Instant::now()),
            silent: BTreeSet::new(),
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
            // Answers that are there count before it is late.
            while let Some(answer) = self.asked.try_join_next() {
                self.take_own(answer);
            }
            if let Some(verdict) = self.health.tick(now) {
                self.judge(verdict);
            }
            let is_silent = |(_, until): &(usize, Instant)| *until <= Instant::now();
            if let Some(at) = self.running.iter().position(is_silent) {
                let (index, _) = self.running.remove(at);
                self.silent.insert(index);
                self.take(index, Answer::Unasked("its shim does not say what became of it".to_owned()));
            }
            if !self.news.is_empty() {
                return Turn::Tell(std::mem::take(&mut self.news));
            }
            let deadline = self.health.deadline().map(|deadline| self.origin + deadline);
            let deadline = self.running.iter().map(|(_, until)| *until).chain(deadline).min();
            tokio::select! {
                Some(answer) = self.asked.join_next() => self.take_own(answer),
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
                // One that has not answered yet need not be asked again, and does not read what it is told.
                return (!self.silent.contains(&index)).then_some(check.timeout);
            }
            // The shim says when there is something.
            Probe::Log { .. } | Probe::Notify { .. } => {}
            Probe::Listen | Probe::Http(_) | Probe::Tcp { .. } => {
                let subject = self.subject.clone();
                self.asked.spawn_local(async move { (index, probe::ask(subject, check).await) });
            }
        }
        None
    }

    /// Takes a sign that the shim has seen.
    pub(crate) fn take_sign(&mut self, check: u32) {
        let Ok(index) = usize::try_from(check) else { return };
        let waits = |check: &HealthCheck| matches!(check.probe, Probe::Log { .. } | Probe::Notify { .. });
        if self.checks.get(index).is_some_and(waits) {
            self.take(index, Answer::Good);
        }
    }

    /// Nobody hears any more what the run says of itself, and this is why.
    pub(crate) fn hear_no_more(&mut self, why: &str) {
        let is_heard = |check: &HealthCheck| matches!(check.probe, Probe::Log { .. } | Probe::Notify { .. });
        let heard: Vec<usize> = (0..self.checks.len()).filter(|&index| is_heard(&self.checks[index])).collect();
        for index in heard {
            self.take(index, Answer::Unasked(why.to_owned()));
        }
    }

    /// Takes what became of a command.
    pub(crate) fn take_outcome(&mut self, check: u32, outcome: ProbeOutcome) {
        self.silent.retain(|index| u32::try_from(*index) != Ok(check));
        let Some(at) = self.running.iter().position(|(index, _)| u32::try_from(*index) == Ok(check)) else { return };
        let (index, _) = self.running.remove(at);
        self.take(index, answer(outcome));
    }

    fn take_own(&mut self, answer: Result<(usize, Answer), JoinError>) {
        // One that was broken off has nothing to say.
        if let Ok((index, answer)) = answer {
            self.take(index, answer);
        }
    }

    fn take(&mut self, index: usize, answer: Answer) {
        let verdict = self.health.answer(self.origin.elapsed(), index, answer);
        let report = self.health.report(self.origin.elapsed(), UnixMillis::now());
        if is_news(&self.told.0, &report, self.told.1.elapsed()) {
            self.told = (report.clone(), Instant::now());
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

/// Whether what the checks have come to is to be told, when that was told so long ago: where an answer is another. That all goes on
/// well is no news; that nothing changes is news once in a while, and before that when it has been asked twice as often.
fn is_news(told: &[CheckStatus], report: &[CheckStatus], ago: Duration) -> bool {
    let says = |report: &[CheckStatus]| {
        let said = report.iter().map(|check| (check.passes, check.answer.clone()));
        said.collect::<Vec<_>>()
    };
    let is_fine = report.iter().all(|check| check.answer.is_none());
    let is_asked_again = report.iter().zip(told).any(|(now, told)| now.tries / 2 >= told.tries.max(1));
    says(report) != says(told) || (!is_fine && (is_asked_again || ago >= PATIENCE))
}

/// What the checks of a run, if it has any, need next.
pub(crate) async fn next_turn(checkup: &mut Option<Checkup>) -> Turn {
    match checkup {
        Some(checkup) => checkup.turn().await,
        None => std::future::pending().await,
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
        // That its shim could not start it says nothing about the service.
        ProbeOutcome::Failed(failure) if failure.stage == StartStage::Helper => Answer::Unasked(failure.message),
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

    // For a second it said "asked once" of what had been asked twenty times.
    #[test]
    fn how_often_it_was_asked_is_told_soon_and_that_all_is_well_is_not() {
        let checks = |tries, answer: Option<&str>| {
            let (probe, answer, since) = ("`true`".to_owned(), answer.map(str::to_owned), UnixMillis(0));
            [CheckStatus { probe, passes: answer.is_none(), tries, answer, since }]
        };
        let soon = Duration::from_millis(10);
        let refused = |tries| checks(tries, Some("refused"));
        let mut told = checks(0, None);
        let mut news = Vec::new();
        for tries in 1..100 {
            if is_news(&told, &refused(tries), soon) {
                told = refused(tries);
                news.push(tries);
            }
        }
        assert_eq!(news, [1, 2, 4, 8, 16, 32, 64]);
        assert!(is_news(&told, &refused(65), PATIENCE));
        assert!(is_news(&told, &checks(100, Some("closed")), soon) && is_news(&told, &checks(100, None), soon));
        assert!(!is_news(&checks(1, None), &checks(100, None), PATIENCE), "all is well");
    }

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
