//! Whether a run is ready, by what its checks answer: when to ask, what follows from an answer, and what to tell about it.
//!
//! One [`Health`] per run, and only while it runs: readiness is never handed on to the next. The actor asks ([`Health::due`]),
//! brings the answers, and takes the [`Verdict`]s to the core of the fleet, which decides what becomes of the run.

use std::time::Duration;

use locald_utils::health::{HealthCheck, Probe};
use locald_utils::protocol::CheckStatus;
use locald_utils::time::UnixMillis;

use super::Time;

/// 1 s: the longest pause between two probes of what is not ready. Who has waited that long does not notice.
const LONGEST: Duration = Duration::from_secs(1);

/// What a probe has found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It passes.
    Good,
    /// It does not: why.
    Bad(String),
    /// It could not be asked, which says nothing about the service: why.
    Unasked(String),
}

/// What follows from the answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All checks pass.
    Ready,
    /// It was ready, and a check has failed too often.
    Unready(String),
    /// A check has not passed in its start period.
    Late(String),
}

/// The health of one run.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    checks: Vec<Check>,
    is_ready: bool,
    /// Since when it has not been ready.
    unready_since: Time,
    is_late: bool,
}

#[derive(Clone, Debug)]
struct Check {
    check: HealthCheck,
    /// What is asked, in words.
    what: String,
    /// When to ask; never while it is asked, or when all has been said.
    next: Option<Time>,
    /// When its start period is over, as long as it has not passed.
    late_at: Option<Time>,
    passes: bool,
    /// Since when it has passed, or has not.
    since: Time,
    tries: u32,
    /// Failures in a row.
    failures: u32,
    /// The last answer that was no good one.
    answer: Option<String>,
}

impl Health {
    /// Begins to ask a run whose port is `port` and that has run for `ran_for`. `readiness` is what whoever asked before has found:
    /// that it is ready, that it is not any more, or nothing yet. Then, if a start period is over, it is given the time of one probe.
    pub(crate) fn begin(
        checks: &[HealthCheck],
        port: Option<u16>,
        now: Time,
        ran_for: Duration,
        readiness: Option<bool>,
    ) -> Self {
        let is_ready = readiness == Some(true);
        let late_at = |check: &HealthCheck| {
            let period = check.start_period.filter(|_| readiness.is_none())?;
            Some(now + period.saturating_sub(ran_for).max(if ran_for.is_zero() { period } else { check.timeout }))
        };
        let begin = |check: &HealthCheck| Check {
            what: check.probe.describe(port),
            next: (!(is_ready && check.probe.is_lasting())).then_some(now),
            late_at: late_at(check),
            passes: is_ready,
            since: now,
            tries: 0,
            failures: 0,
            answer: initial(&check.probe).filter(|_| !is_ready).map(str::to_owned),
            check: check.clone(),
        };
        Self { checks: checks.iter().map(begin).collect(), is_ready, unready_since: now, is_late: false }
    }

    /// The checks to ask now. Each is asked once, until its answer comes.
    pub(crate) fn due(&mut self, now: Time) -> Vec<usize> {
        let is_due = |check: &mut Check| check.next.take_if(|next| *next <= now).is_some();
        (0..self.checks.len()).filter(|&index| is_due(&mut self.checks[index])).collect()
    }

    /// When [`Health::due`] or [`Health::tick`] will have something to say.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let late = self.checks.iter().filter_map(|check| check.late_at).filter(|_| !self.is_late);
        self.checks.iter().filter_map(|check| check.next).chain(late).min()
    }

    /// Takes note of the time.
    pub(crate) fn tick(&mut self, now: Time) -> Option<Verdict> {
        let late = self.checks.iter().find(|check| check.late_at.is_some_and(|late_at| late_at <= now))?;
        let period = late.check.start_period.map(locald_utils::time::human).unwrap_or_default();
        let verdict = Verdict::Late(format!("not within {period}: {}", late.complaint()));
        (!std::mem::replace(&mut self.is_late, true)).then_some(verdict)
    }

    /// Takes an answer. Whatever has been asked is answered once.
    pub(crate) fn answer(&mut self, now: Time, index: usize, answer: Answer) -> Option<Verdict> {
        let check = self.checks.get_mut(index)?;
        if !matches!(answer, Answer::Unasked(_)) {
            check.tries = check.tries.saturating_add(1);
        }
        match answer {
            Answer::Good => {
                if !std::mem::replace(&mut check.passes, true) {
                    check.since = now;
                }
                check.failures = 0;
                check.answer = None;
                check.late_at = None;
            }
            Answer::Bad(why) => {
                check.failures = check.failures.saturating_add(1);
                check.answer = Some(why);
                if check.passes && check.failures >= check.check.retries {
                    check.passes = false;
                    check.since = now;
                }
            }
            Answer::Unasked(why) => check.answer = Some(why),
        }
        let verdict = self.judge(now);
        let unready_for = now.saturating_sub(self.unready_since);
        let check = self.checks.get_mut(index)?;
        let pause = if !self.is_ready && !check.passes { check.eager(unready_for) } else { check.check.interval };
        check.next = (!(check.passes && check.check.probe.is_lasting())).then(|| now + pause);
        verdict
    }

    fn judge(&mut self, now: Time) -> Option<Verdict> {
        let failing = self.checks.iter().find(|check| !check.passes);
        match failing {
            None => (!std::mem::replace(&mut self.is_ready, true)).then_some(Verdict::Ready),
            Some(failing) if self.is_ready => {
                let verdict = Verdict::Unready(failing.complaint());
                self.is_ready = false;
                self.unready_since = now;
                Some(verdict)
            }
            Some(_) => None,
        }
    }

    /// What the checks have come to. `wall` is the wall clock's time at `now`.
    pub(crate) fn report(&self, now: Time, wall: UnixMillis) -> Vec<CheckStatus> {
        let ago = |at: Time| u64::try_from(now.saturating_sub(at).as_millis()).unwrap_or(u64::MAX);
        let report = |check: &Check| CheckStatus {
            probe: check.what.clone(),
            passes: check.passes,
            tries: check.tries,
            answer: check.answer.clone(),
            since: UnixMillis(wall.0.saturating_sub(ago(check.since))),
        };
        self.checks.iter().map(report).collect()
    }
}

impl Check {
    /// The pause before what is not ready is asked again: a twentieth of the time that it has not been, within bounds.
    fn eager(&self, unready_for: Duration) -> Duration {
        let longest = self.check.interval.min(LONGEST);
        (unready_for / 20).clamp(first(&self.check.probe).min(longest), longest)
    }

    fn complaint(&self) -> String {
        match &self.answer {
            Some(answer) => format!("{}: {answer}", self.what),
            None => format!("{}: no answer yet", self.what),
        }
    }
}

/// The shortest pause between two probes: a dependent starts soon after, and asking costs a fraction of that.
fn first(probe: &Probe) -> Duration {
    match probe {
        Probe::Listen | Probe::Http(_) | Probe::Tcp { .. } | Probe::Log { .. } | Probe::Notify { .. } => {
            Duration::from_millis(5)
        }
        Probe::Command { .. } => Duration::from_millis(50),
    }
}

/// What there is to say of a check that will be answered once.
fn initial(probe: &Probe) -> Option<&'static str> {
    match probe {
        Probe::Log { .. } => Some("no line does"),
        Probe::Notify { .. } => Some("it has not said so"),
        Probe::Listen | Probe::Http(_) | Probe::Tcp { .. } | Probe::Command { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP: Probe = Probe::Tcp { port: Some(1) };
    const NOTIFY: Probe = Probe::Notify { fd: None };

    fn ms(ms: u64) -> Time {
        Duration::from_millis(ms)
    }

    fn check(probe: Probe) -> HealthCheck {
        HealthCheck { interval: ms(1000), retries: 3, ..HealthCheck::of(probe) }
    }

    /// A run that has just begun.
    fn begin(checks: &[HealthCheck], now: Time) -> Health {
        Health::begin(checks, None, now, Duration::ZERO, None)
    }

    fn bad() -> Answer {
        Answer::Bad("refused".into())
    }

    /// Asks what is due next, and brings an answer 1 ms later. Returns when that is, and the verdict.
    fn ask(health: &mut Health, answer: Answer) -> (Time, Option<Verdict>) {
        let at = health.deadline().expect("something is to be asked");
        let due = health.due(at);
        assert_eq!(due.len(), 1, "{health:?}");
        assert!(health.due(at).is_empty(), "asked twice at once");
        (at + ms(1), health.answer(at + ms(1), due[0], answer))
    }

    #[test]
    fn a_service_is_ready_when_all_of_its_checks_pass() {
        let mut health = begin(&[check(TCP), check(NOTIFY)], ms(0));
        assert_eq!(health.due(ms(0)), [0, 1]);
        assert_eq!(health.answer(ms(1), 0, Answer::Good), None);
        assert_eq!(health.answer(ms(2), 1, Answer::Good), Some(Verdict::Ready));
        assert_eq!(health.deadline(), Some(ms(1001)), "what it has said it has said for good");
    }

    #[test]
    fn what_is_lasting_is_asked_once() {
        let mut health = begin(&[check(NOTIFY)], ms(0));
        assert_eq!(ask(&mut health, Answer::Good).1, Some(Verdict::Ready));
        assert_eq!(health.deadline(), None, "nothing is left to ask");
    }

    #[test]
    fn until_it_is_ready_it_is_asked_soon_and_then_once_in_an_interval() {
        let mut health = begin(&[check(TCP)], ms(0));
        let (first, _) = ask(&mut health, bad());
        assert_eq!(health.deadline(), Some(first + ms(5)));
        let mut last = first;
        while last < ms(60_000) {
            let (now, verdict) = ask(&mut health, bad());
            assert!(now - last <= ms(1001), "longer than an interval");
            assert_eq!(verdict, None, "what was never ready is not unready");
            last = now;
        }
        let (ready, verdict) = ask(&mut health, Answer::Good);
        assert_eq!(verdict, Some(Verdict::Ready));
        assert_eq!(health.deadline(), Some(ready + ms(1000)));
    }

    #[test]
    fn some_failures_in_a_row_end_its_readiness_and_one_success_brings_it_back() {
        let mut health = begin(&[check(TCP)], ms(0));
        ask(&mut health, Answer::Good);
        let answers = [bad(), bad(), Answer::Good, bad(), bad()];
        for answer in answers {
            assert_eq!(ask(&mut health, answer).1, None);
        }
        let (unready, verdict) = ask(&mut health, bad());
        assert_eq!(verdict, Some(Verdict::Unready("connecting to port 1: refused".into())));
        assert_eq!(ask(&mut health, bad()).1, None, "told once");
        assert!(health.deadline() < Some(unready + ms(100)), "it is asked soon again");
        assert_eq!(ask(&mut health, Answer::Good).1, Some(Verdict::Ready));
    }

    #[test]
    fn a_start_period_is_a_limit_and_is_told_once() {
        let mut late = check(TCP);
        late.start_period = Some(ms(100));
        let mut health = begin(&[late.clone(), check(NOTIFY)], ms(0));
        assert_eq!(health.due(ms(0)), [0, 1]);
        health.answer(ms(1), 0, bad());
        assert_eq!(health.tick(ms(99)), None);
        assert_eq!(health.tick(ms(100)), Some(Verdict::Late("not within 100ms: connecting to port 1: refused".into())));
        assert_eq!(health.tick(ms(101)), None);
        // One that passes in time is not late, whatever others do.
        let mut health = begin(&[late, check(NOTIFY)], ms(0));
        health.due(ms(0));
        health.answer(ms(99), 0, Answer::Good);
        assert_eq!(health.tick(ms(5000)), None);
    }

    #[test]
    fn whoever_takes_over_a_run_goes_on_with_its_start_period() {
        let mut late = check(TCP);
        late.start_period = Some(ms(10_000));
        let take_over = |ran_for| Health::begin(std::slice::from_ref(&late), None, ms(1000), ran_for, None);
        let mut health = take_over(ms(4000));
        assert_eq!(health.tick(ms(6999)), None);
        assert!(health.tick(ms(7000)).is_some());
        // Nobody was there when it was over, so it is asked once more.
        let mut health = take_over(ms(60_000));
        assert_eq!(health.tick(ms(1000) + late.timeout - ms(1)), None);
        assert!(health.tick(ms(1000) + late.timeout).is_some());
        let mut health = take_over(ms(60_000));
        assert_eq!(ask(&mut health, Answer::Good).1, Some(Verdict::Ready));
        assert_eq!(health.tick(ms(99_000)), None);
    }

    #[test]
    fn whoever_takes_over_a_run_goes_on_with_what_was_found() {
        let mut late = check(NOTIFY);
        late.start_period = Some(ms(100));
        let checks = [late, check(TCP)];
        // It was ready: what it has said it need not say again, and what is asked may fail as often as ever.
        let mut health = Health::begin(&checks, None, ms(0), ms(500), Some(true));
        assert_eq!(health.tick(ms(9000)), None, "it has been in time");
        assert_eq!(ask(&mut health, bad()).1, None);
        assert_eq!(ask(&mut health, bad()).1, None);
        let unready = Some(Verdict::Unready("connecting to port 1: refused".into()));
        assert!(matches!(ask(&mut health, bad()), (at, verdict) if at > ms(2000) && verdict == unready));
        // It was not any more: it is when all pass.
        let mut health = Health::begin(&checks, None, ms(0), ms(500), Some(false));
        assert_eq!(health.tick(ms(9000)), None, "it has been in time");
        assert_eq!(health.due(ms(0)), [0, 1]);
        assert_eq!(health.answer(ms(1), 1, Answer::Good), None);
        assert_eq!(health.answer(ms(2), 0, Answer::Good), Some(Verdict::Ready));
    }

    #[test]
    fn what_could_not_be_asked_says_nothing_about_the_service() {
        let mut health = begin(&[check(TCP)], ms(0));
        ask(&mut health, Answer::Good);
        for _ in 0..10 {
            assert_eq!(ask(&mut health, Answer::Unasked("no descriptors".into())).1, None);
        }
        let report = health.report(ms(20_000), UnixMillis(30_000));
        assert_eq!((report[0].answer.as_deref(), report[0].tries), (Some("no descriptors"), 1));
    }

    #[test]
    fn a_report_says_what_was_tried_how_often_and_since_when() {
        let checks = [check(Probe::Tcp { port: None })];
        let mut health = Health::begin(&checks, Some(8080), ms(500), Duration::ZERO, None);
        ask(&mut health, bad());
        ask(&mut health, bad());
        let expected = CheckStatus {
            probe: "connecting to port 8080".into(),
            passes: false,
            tries: 2,
            answer: Some("refused".into()),
            since: UnixMillis(99_500),
        };
        assert_eq!(health.report(ms(1000), UnixMillis(100_000)), [expected]);
    }

    proptest! {
        /// Verdicts against an oracle that looks at all answers anew: ready and unready take turns, and each comes when the
        /// answers say so.
        #[test]
        fn verdicts_follow_from_the_answers(answers in proptest::collection::vec((0_usize..2, 0_u8..3), 0..200)) {
            let checks = [check(TCP), HealthCheck { retries: 1, ..check(TCP) }];
            let mut health = begin(&checks, ms(0));
            let mut given: [Vec<u8>; 2] = Default::default();
            let mut is_ready = false;
            let mut now = ms(0);
            for (index, answer) in answers {
                // Whatever is due is asked; only the chosen one answers now.
                now = health.deadline().unwrap_or(now).max(now);
                health.due(now);
                let verdict = health.answer(now, index, match answer {
                    0 => Answer::Good,
                    1 => bad(),
                    _ => Answer::Unasked("busy".into()),
                });
                given[index].push(answer);
                let passes = |index: usize| {
                    let retries = usize::try_from(checks[index].retries).expect("small");
                    let told: Vec<u8> = given[index].iter().copied().filter(|answer| *answer < 2).collect();
                    let failures = told.iter().rev().take_while(|answer| **answer == 1).count();
                    failures < retries && told.contains(&0)
                        // Once it has failed so often, only a success helps: the last one is not older than that.
                        && told.iter().rposition(|answer| *answer == 0).is_some()
                };
                let all = passes(0) && passes(1);
                match verdict {
                    Some(Verdict::Ready) => prop_assert!(all && !is_ready),
                    Some(Verdict::Unready(_)) => prop_assert!(!all && is_ready),
                    Some(Verdict::Late(_)) => prop_assert!(false, "there is no start period"),
                    None => prop_assert_eq!(all, is_ready),
                }
                is_ready = all;
            }
        }
    }
}
