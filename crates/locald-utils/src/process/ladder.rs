//! When a run that is being ended gets which signal: the stop ladder, as a pure state machine.
//!
//! It has no clock and no kernel. The shim drives it for its run, the daemon for a run whose shim is gone; both tell it
//! the time and whether anything is left, and carry out the [`Action`]s it returns. Time is a [`Duration`] since any
//! fixed moment, monotonic.
//!
//! ```text
//! Command --done or limit--> Asking --grace over, or asked again--> Killing --2 s--> Stuck
//!    \___________________________\______________ empty _______________\_______________\--> Done
//! ```

use std::time::Duration;

/// 2 s: how long killing may take before what is left is reported as a survivor. A kill takes milliseconds; what is
/// left after two seconds sleeps uninterruptibly or belongs to somebody else.
pub const FORCED_LIMIT: Duration = Duration::from_secs(2);

/// 10 ms: how long after a round of kills that changed nothing the next one comes, when no event comes first.
pub const ROUND: Duration = Duration::from_millis(10);

/// What the driver of a ladder is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start the stop command.
    RunCommand,
    /// End what is left of the stop command.
    EndCommand,
    /// Send the stop signal to the group and to every member outside it, each followed by SIGCONT.
    Ask,
    /// Send SIGKILL to the group and to every member outside it.
    Kill,
    /// Report what is left as survivors, and keep watching it.
    GiveUp,
}

/// What the driver sees of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// No process of the run is left but the leader's zombie.
    pub empty: bool,
    /// No stop command is running.
    pub command_over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rung {
    Command { until: Duration, grace: Duration },
    Asking { kill_at: Duration },
    Killing { give_up_at: Duration, next_round: Duration },
    Stuck,
    Done,
}

/// The stop of one run, from the request to the last process.
#[derive(Clone, Debug)]
pub struct Ladder {
    rung: Rung,
    forced: bool,
}

impl Ladder {
    /// Begins a stop that may take `grace`; with a stop command, which may take as long again before it.
    pub fn begin(now: Duration, grace: Duration, has_command: bool, actions: &mut Vec<Action>) -> Self {
        let mut ladder = Self { rung: Rung::Done, forced: false };
        if has_command && !grace.is_zero() {
            actions.push(Action::RunCommand);
            ladder.rung = Rung::Command { until: now + grace, grace };
        } else {
            ladder.ask(now, grace, actions);
        }
        ladder
    }

    fn ask(&mut self, now: Duration, grace: Duration, actions: &mut Vec<Action>) {
        if grace.is_zero() {
            self.kill(now, actions);
        } else {
            actions.push(Action::Ask);
            self.rung = Rung::Asking { kill_at: now + grace };
        }
    }

    fn kill(&mut self, now: Duration, actions: &mut Vec<Action>) {
        self.forced = true;
        actions.push(Action::Kill);
        self.rung = Rung::Killing { give_up_at: now + FORCED_LIMIT, next_round: now + ROUND };
    }

    /// Takes a second request to stop. It may only shorten what is left; one that does not is ignored.
    pub fn shorten(&mut self, now: Duration, grace: Duration, actions: &mut Vec<Action>) {
        match self.rung {
            Rung::Command { until, grace: later } => {
                if grace.is_zero() {
                    actions.push(Action::EndCommand);
                    self.kill(now, actions);
                } else {
                    self.rung = Rung::Command { until: until.min(now + grace), grace: later.min(grace) };
                }
            }
            Rung::Asking { kill_at } => {
                if grace.is_zero() {
                    self.kill(now, actions);
                } else {
                    self.rung = Rung::Asking { kill_at: kill_at.min(now + grace) };
                }
            }
            // Asked again of what could not be ended: try once more, with the same limit.
            Rung::Stuck => self.kill(now, actions),
            Rung::Killing { .. } | Rung::Done => {}
        }
    }

    /// Looks at the run again: after every event, and when [`Ladder::deadline`] has come.
    pub fn step(&mut self, now: Duration, view: View, actions: &mut Vec<Action>) {
        if view.empty && view.command_over {
            self.rung = Rung::Done;
            return;
        }
        match self.rung {
            Rung::Command { until, grace } => {
                if view.command_over {
                    self.ask(now, grace, actions);
                } else if now >= until || view.empty {
                    // The service has gone, or the command has had its time: what is left of the command goes too.
                    actions.push(Action::EndCommand);
                    self.ask(now, grace, actions);
                }
            }
            Rung::Asking { kill_at } => {
                if now >= kill_at {
                    self.kill(now, actions);
                }
            }
            Rung::Killing { give_up_at, next_round } => {
                if now >= give_up_at {
                    actions.push(Action::GiveUp);
                    self.rung = Rung::Stuck;
                } else if now >= next_round {
                    actions.push(Action::Kill);
                    self.rung = Rung::Killing { give_up_at, next_round: now + ROUND };
                }
            }
            // Something changed: whatever it left behind is killed as well. No timer runs here.
            Rung::Stuck => actions.push(Action::Kill),
            Rung::Done => {}
        }
    }

    /// Has the next round come at once: a child has ended, and what it left behind has just become ours.
    pub fn hurry(&mut self, now: Duration) {
        if let Rung::Killing { next_round, .. } = &mut self.rung {
            *next_round = now;
        }
    }

    /// When [`Ladder::step`] must be called even if nothing happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        match self.rung {
            Rung::Command { until, .. } => Some(until),
            Rung::Asking { kill_at } => Some(kill_at),
            Rung::Killing { give_up_at, next_round } => Some(give_up_at.min(next_round)),
            Rung::Stuck | Rung::Done => None,
        }
    }

    /// When what is left will be killed; `None` once that has begun.
    #[must_use]
    pub fn kill_at(&self) -> Option<Duration> {
        match self.rung {
            Rung::Command { until, grace } => Some(until + grace),
            Rung::Asking { kill_at } => Some(kill_at),
            Rung::Killing { .. } | Rung::Stuck | Rung::Done => None,
        }
    }

    /// Whether SIGKILL had to be sent.
    #[must_use]
    pub fn forced(&self) -> bool {
        self.forced
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.rung == Rung::Done
    }

    /// Whether killing did not end everything.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        self.rung == Rung::Stuck
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEFT: View = View { empty: false, command_over: true };
    const EMPTY: View = View { empty: true, command_over: true };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn step(ladder: &mut Ladder, now: u64, view: View) -> Vec<Action> {
        let mut actions = Vec::new();
        ladder.step(ms(now), view, &mut actions);
        actions
    }

    fn begin(grace: u64, has_command: bool) -> (Ladder, Vec<Action>) {
        let mut actions = Vec::new();
        let ladder = Ladder::begin(ms(0), ms(grace), has_command, &mut actions);
        (ladder, actions)
    }

    #[test]
    fn sigkill_waits_for_the_grace_period() {
        let (mut ladder, actions) = begin(1000, false);
        assert_eq!(actions, [Action::Ask]);
        assert_eq!(step(&mut ladder, 999, LEFT), []);
        assert_eq!(ladder.deadline(), Some(ms(1000)));
        assert_eq!(step(&mut ladder, 1000, LEFT), [Action::Kill]);
        assert!(ladder.forced());
        assert_eq!(step(&mut ladder, 1001, EMPTY), []);
        assert!(ladder.is_done());
    }

    #[test]
    fn a_second_stop_may_only_shorten() {
        let (mut ladder, _) = begin(1000, false);
        let mut actions = Vec::new();
        ladder.shorten(ms(100), ms(5000), &mut actions);
        assert_eq!(ladder.kill_at(), Some(ms(1000)));
        ladder.shorten(ms(100), ms(200), &mut actions);
        assert_eq!(ladder.kill_at(), Some(ms(300)));
        assert_eq!(actions, []);
        ladder.shorten(ms(150), ms(0), &mut actions);
        assert_eq!(actions, [Action::Kill]);
    }

    #[test]
    fn no_grace_kills_at_once_and_skips_the_command() {
        let (ladder, actions) = begin(0, true);
        assert_eq!(actions, [Action::Kill]);
        assert!(ladder.forced());
    }

    #[test]
    fn a_stop_command_that_succeeds_does_not_replace_the_signal() {
        let (mut ladder, actions) = begin(1000, true);
        assert_eq!(actions, [Action::RunCommand]);
        assert_eq!(step(&mut ladder, 10, View { empty: false, command_over: false }), []);
        assert_eq!(step(&mut ladder, 20, LEFT), [Action::Ask]);
        assert_eq!(ladder.kill_at(), Some(ms(1020)));
    }

    #[test]
    fn a_stop_command_has_its_own_limit() {
        let (mut ladder, _) = begin(1000, true);
        let running = View { empty: false, command_over: false };
        assert_eq!(step(&mut ladder, 999, running), []);
        assert_eq!(step(&mut ladder, 1000, running), [Action::EndCommand, Action::Ask]);
    }

    #[test]
    fn what_cannot_be_killed_is_reported_after_two_seconds_and_no_timer_stays() {
        let (mut ladder, _) = begin(0, false);
        assert_eq!(step(&mut ladder, 10, LEFT), [Action::Kill]);
        assert_eq!(step(&mut ladder, 2000, LEFT), [Action::GiveUp]);
        assert!(ladder.is_stuck());
        assert_eq!(ladder.deadline(), None);
        step(&mut ladder, 60_000, EMPTY);
        assert!(ladder.is_done());
    }

    proptest! {
        #[test]
        fn every_stop_ends_in_time_and_kills_only_after_the_grace_period(
            grace in 0u64..3000,
            has_command in any::<bool>(),
            // When the command is over, when all is gone, and a second request: (at, grace).
            command_takes in 0u64..9000,
            gone_at in 0u64..12_000,
            second in proptest::option::of((0u64..9000, 0u64..3000)),
        ) {
            let (mut ladder, first) = begin(grace, has_command);
            let mut killed_at = first.contains(&Action::Kill).then_some(0);
            let mut command_ended = !first.contains(&Action::RunCommand);
            // A second request retries what was given up, with the same limit again.
            let limit = (2 * grace).max(second.map_or(0, |(at, _)| at)) + 2000 + 20;
            for now in 0..limit + 1 {
                let mut actions = Vec::new();
                if let Some((at, shorter)) = second && at == now {
                    ladder.shorten(ms(now), ms(shorter), &mut actions);
                }
                command_ended |= now >= command_takes;
                ladder.step(ms(now), View { empty: now >= gone_at, command_over: command_ended }, &mut actions);
                command_ended |= actions.contains(&Action::EndCommand);
                if actions.contains(&Action::Kill) && killed_at.is_none() {
                    killed_at = Some(now);
                }
                if ladder.is_done() { break; }
            }
            prop_assert!(ladder.is_done() || ladder.is_stuck());
            if let Some(at) = killed_at {
                let shortened = second.is_some_and(|(asked, shorter)| at >= asked + shorter);
                prop_assert!(at >= grace || shortened);
                prop_assert!(ladder.forced());
            } else {
                prop_assert!(!ladder.forced());
            }
        }
    }
}
