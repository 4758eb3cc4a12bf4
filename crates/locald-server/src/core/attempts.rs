//! How often a service was started of late, and how soon it is tried again.

use std::collections::VecDeque;
use std::time::Duration;

use locald_utils::name::{RunNumber, ServiceName};
use locald_utils::spec::RestartPolicy;
use locald_utils::time::UnixMillis;
use serde::{Deserialize, Serialize};

use super::Time;

/// The attempts to keep one service running, since a person last asked for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempts {
    /// Restarts after it ended by itself.
    pub(crate) restarts: u32,
    /// Failures in a row, which double the backoff.
    failures: u32,
    /// When it was started lately, for telling a crash loop.
    starts: VecDeque<Time>,
}

/// The same, as the ledger keeps it: a new daemon counts on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    restarts: u32,
    failures: u32,
    starts: Vec<UnixMillis>,
}

/// When a service that has ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// At once: it had been ready for a while.
    Now,
    /// After the backoff; how often it was started of late.
    At { starts: u32, until: Time },
    /// It was started too often.
    Never { starts: u32, within: Duration },
}

impl Attempts {
    /// Takes note of a start.
    pub(crate) fn begin(&mut self, now: Time) {
        self.forget_old(now);
        self.starts.push_back(now);
    }

    /// Decides what follows when run number `run` of a service has ended, after it had been ready for so long.
    pub(crate) fn next(
        &mut self,
        now: Time,
        policy: &RestartPolicy,
        ready_for: Duration,
        service: &ServiceName,
        run: RunNumber,
    ) -> Attempt {
        self.forget_old(now);
        let starts = self.starts();
        if starts >= policy.limit {
            let within = self.starts.front().map_or(Duration::ZERO, |&first| now.saturating_sub(first));
            return Attempt::Never { starts, within };
        }
        self.restarts += 1;
        if ready_for >= policy.reset_after {
            self.failures = 0;
        }
        if ready_for >= RestartPolicy::STABLE {
            return Attempt::Now;
        }
        self.failures += 1;
        Attempt::At { starts, until: now + backoff(policy, self.failures, service, run) }
    }

    /// How often it was started of late: within a minute, when that was last looked at.
    pub(crate) fn starts(&self) -> u32 {
        u32::try_from(self.starts.len()).unwrap_or(u32::MAX)
    }

    /// For the ledger; `wall` tells when a moment is.
    pub(crate) fn tally(&self, wall: impl Fn(Time) -> UnixMillis) -> Tally {
        let starts = self.starts.iter().map(|&start| wall(start)).collect();
        Tally { restarts: self.restarts, failures: self.failures, starts }
    }

    /// From the ledger; `time` tells which moment that is.
    pub(crate) fn restore(tally: &Tally, time: impl Fn(UnixMillis) -> Time) -> Self {
        let starts = tally.starts.iter().map(|&start| time(start)).collect();
        Self { restarts: tally.restarts, failures: tally.failures, starts }
    }

    /// Forgets the starts that are too long ago to count.
    fn forget_old(&mut self, now: Time) {
        while self.starts.front().is_some_and(|&start| now.saturating_sub(start) > RestartPolicy::CRASH_LOOP_WINDOW) {
            self.starts.pop_front();
        }
    }
}

/// The wait before attempt number `attempt`, from 1: doubled each time, up to the policy's maximum, give or take a fifth.
///
/// The jitter keeps services that failed together from coming back together. It is drawn from the service's name and the run's
/// number, so that the same history gives the same wait.
fn backoff(policy: &RestartPolicy, attempt: u32, service: &ServiceName, run: RunNumber) -> Duration {
    let doubled = policy.backoff.saturating_mul(1 << (attempt - 1).min(20));
    let wait = doubled.min(policy.max_backoff);
    // A multiplicative hash (Knuth, TAOCP 6.4) spreads neighbouring numbers over 0..40: 80 % to 120 %.
    let spread = |seed: u32| seed.wrapping_mul(2_654_435_761);
    let name = service.as_str().bytes().fold(0, |seed, byte| spread(seed ^ u32::from(byte)));
    let percent = 80 + (spread(name ^ run.0) >> 16) % 41;
    (wait * percent / 100).min(policy.max_backoff)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn ms(ms: u64) -> Time {
        Duration::from_millis(ms)
    }

    fn web() -> ServiceName {
        "web".parse().expect("valid")
    }

    // It was the same for all that failed as often.
    #[test]
    fn services_that_fail_together_do_not_come_back_together() {
        let policy = RestartPolicy::default();
        let wait = |name: &str| backoff(&policy, 1, &name.parse().expect("valid"), RunNumber(1));
        let waits: BTreeSet<Duration> = ["a", "b", "c", "d", "e", "f"].into_iter().map(wait).collect();
        assert!(waits.len() >= 5, "{waits:?}");
    }

    #[test]
    fn the_backoff_doubles_up_to_its_limit_and_health_begins_it_anew() {
        let policy = RestartPolicy { limit: 100, ..RestartPolicy::default() };
        let mut attempts = Attempts::default();
        for (failure, nominal) in (1..).zip([250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]) {
            let next = attempts.next(ms(0), &policy, Duration::ZERO, &web(), RunNumber(failure));
            let Attempt::At { until, .. } = next else { panic!("{next:?}") };
            assert!(
                (ms(nominal * 8 / 10)..=ms((nominal * 12 / 10).min(30_000))).contains(&until),
                "{failure}: {until:?}"
            );
        }
        let nearly = policy.reset_after - ms(1);
        assert_eq!(attempts.next(ms(0), &policy, nearly, &web(), RunNumber(10)), Attempt::Now);
        let next = attempts.next(ms(0), &policy, Duration::ZERO, &web(), RunNumber(11));
        assert!(matches!(next, Attempt::At { until, .. } if until > ms(20_000)), "{next:?}");
        assert_eq!(attempts.next(ms(0), &policy, policy.reset_after, &web(), RunNumber(12)), Attempt::Now);
        let next = attempts.next(ms(0), &policy, Duration::ZERO, &web(), RunNumber(13));
        assert!(matches!(next, Attempt::At { until, .. } if until < ms(400)), "{next:?}");
    }

    #[test]
    fn only_starts_of_the_last_minute_are_a_crash_loop() {
        let policy = RestartPolicy::default();
        let mut attempts = Attempts::default();
        let gap = RestartPolicy::CRASH_LOOP_WINDOW / (policy.limit - 1);
        let mut now = ms(0);
        // One less than the limit fit into the window.
        for run in 0..3 * policy.limit {
            now += gap + ms(1);
            attempts.begin(now);
            let next = attempts.next(now, &policy, Duration::ZERO, &web(), RunNumber(run));
            assert!(matches!(next, Attempt::At { .. }), "{run}: {next:?}");
        }
        attempts.begin(now);
        let next = attempts.next(now, &policy, Duration::ZERO, &web(), RunNumber(0));
        assert!(
            matches!(next, Attempt::Never { starts, within } if starts == policy.limit && within <= RestartPolicy::CRASH_LOOP_WINDOW),
            "{next:?}"
        );
    }
}
