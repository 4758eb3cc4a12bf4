//! What a service watches: when it is looked at, and what is made of what is seen there.
//!
//! Something stirs, again and again while a tool writes or git changes branches; when it has been quiet for a while the files are
//! looked at, once, and only if one of them is another than before that is a change. A file that came and went, or was merely
//! read, is none.

use std::time::Duration;

use locald_utils::spec::Watch;
use locald_utils::time::UnixMillis;

use super::Time;

/// 20 times the debounce: what never comes to rest is looked at all the same.
const LONGEST: u32 = 20;

/// 2 s: a change that comes sooner after a start may well be the service's own doing.
const QUICK: Duration = Duration::from_secs(2);

/// 5 s: a change that a look has seen before it stirred stirs within that time of the start that it is taken to be older than.
const SOON: Duration = Duration::from_secs(5);

/// 500 ms: what a run wrote last may stir so long after it was over. What stirs later is not its doing.
const ECHO: Duration = Duration::from_millis(500);

/// So many of those in a row are: it would be run again for ever.
const QUICK_LIMIT: u32 = 5;

/// What was seen of the files that a service watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// They were looked at for the first time: the file that was changed last, and when.
    First(Option<(UnixMillis, String)>),
    /// They are as they were.
    Same,
    /// This one is another than before, new, or gone.
    Changed(String),
}

/// How it stands with the files that a service watches.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watching {
    /// When something stirred that has not been looked at: first and last.
    stirred: Option<(Time, Time)>,
    /// When something last stirred that is being looked at.
    looking: Option<Time>,
    /// What the first look has found, until it is known when the run that may not have seen it was started.
    newest: Option<(UnixMillis, String)>,
    /// A change that was put down to a time before the newest run began. Files are looked at later than they stir, so it may have
    /// been another; that one stirs as well, and soon. With the time when that run began.
    settled: Option<(String, Option<Time>)>,
    /// Changes in a row that came too quickly after a start.
    quick: u32,
    /// New runs because of a change, since a person last asked for the service.
    pub(crate) restarts: u32,
    /// The file whose change was the last of them.
    pub(crate) changed: Option<String>,
    /// Why files, all or some, cannot be watched.
    pub(crate) blind: Option<String>,
    /// Why nothing follows from changes that come soon after a start.
    stopped: Option<String>,
}

impl Watching {
    /// Takes note that something stirs.
    pub(crate) fn stir(&mut self, now: Time) {
        let first = self.stirred.map_or(now, |(first, _)| first);
        self.stirred = Some((first, now));
    }

    /// When to look. Not while somebody does.
    pub(crate) fn deadline(&self, watch: &Watch) -> Option<Time> {
        let (first, last) = self.stirred.filter(|_| self.looking.is_none())?;
        Some((last + watch.debounce).min(first + watch.debounce * LONGEST))
    }

    /// Whether to look now; from then on somebody does.
    pub(crate) fn is_due(&mut self, now: Time, watch: &Watch) -> bool {
        if self.deadline(watch).is_none_or(|deadline| now < deadline) {
            return false;
        }
        self.looking = self.stirred.take().map(|(_, last)| last);
        true
    }

    /// Takes what was seen, by a service whose newest run was spawned and over at these times, and may not have seen what was changed
    /// after `since`. Returns the file that is a reason for another.
    pub(crate) fn see(
        &mut self,
        sight: Sight,
        (spawned, over): (Option<Time>, Option<Time>),
        since: Option<UnixMillis>,
    ) -> Option<String> {
        // A first look takes the place of one that was under way.
        let looked = self.looking.take();
        let is_older = looked.is_some_and(|looked| Some(looked) < spawned);
        match sight {
            // What was changed while nobody watched.
            Sight::First(newest) => {
                self.newest = newest;
                self.overdue(since)
            }
            // A run that began later has seen it.
            Sight::Changed(file) if is_older => {
                self.settled = Some((file, spawned));
                None
            }
            Sight::Same if is_older => None,
            Sight::Same | Sight::Changed(_) => {
                let is_soon = looked.unwrap_or_default() < spawned.unwrap_or_default() + SOON;
                let settled = self.settled.take().filter(|(_, of)| *of == spawned && is_soon);
                let file = if let Sight::Changed(file) = sight { file } else { settled?.0 };
                let is_others = looked.zip(over).is_some_and(|(looked, over)| looked > over + ECHO);
                let is_early = looked.zip(spawned).is_some_and(|(looked, spawned)| looked - spawned < QUICK);
                let is_quick = is_early && !is_others;
                self.quick = if is_quick { self.quick + 1 } else { 0 };
                if self.quick > QUICK_LIMIT {
                    self.stopped = Some(format!(
                        "{file} changed within {secs} s of a start {} times in a row, perhaps by the service itself: a change \
                         that comes so soon restarts it no more",
                        self.quick,
                        secs = QUICK.as_secs(),
                    ));
                    return None;
                }
                self.stopped = None;
                Some(file)
            }
        }
    }

    /// The file that was changed while nobody watched, if the newest run is older. That is said once, when it is known.
    pub(crate) fn overdue(&mut self, since: Option<UnixMillis>) -> Option<String> {
        let since = since?;
        let (at, file) = self.newest.take()?;
        (at > since).then_some(file)
    }

    /// Why changes have no effect, or not all of them.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.stopped.as_deref().or(self.blind.as_deref())
    }

    /// Takes note that a new run was asked for because of a file.
    pub(crate) fn note(&mut self, file: String) {
        self.restarts += 1;
        self.changed = Some(file);
    }

    /// A person has asked for the service: what was before counts no more.
    pub(crate) fn forgive(&mut self) {
        self.quick = 0;
        self.stopped = None;
        self.restarts = 0;
        self.changed = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Time {
        Duration::from_millis(ms)
    }

    fn watch() -> Watch {
        Watch { paths: vec!["src".into()], debounce: ms(100) }
    }

    #[test]
    fn files_are_looked_at_when_they_have_come_to_rest_or_never_do() {
        let mut watching = Watching::default();
        assert_eq!(watching.deadline(&watch()), None);
        watching.stir(ms(1000));
        watching.stir(ms(1060));
        assert!(!watching.is_due(ms(1159), &watch()));
        assert!(watching.is_due(ms(1160), &watch()));
        assert!(!watching.is_due(ms(1160), &watch()), "once");
        // What stirs meanwhile is for another look, after this one.
        watching.stir(ms(1170));
        assert_eq!(watching.deadline(&watch()), None);
        assert_eq!(watching.see(Sight::Same, (None, None), None), None);
        assert_eq!(watching.deadline(&watch()), Some(ms(1270)));
        for at in (1170..5000).step_by(50) {
            watching.stir(ms(at));
        }
        assert_eq!(watching.deadline(&watch()), Some(ms(3170)));
    }

    #[test]
    fn a_run_that_began_after_a_change_is_none_the_wiser_for_another() {
        let mut watching = Watching::default();
        let mut look = |stirred: u64, spawned: u64| {
            watching.stir(ms(stirred));
            assert!(watching.is_due(ms(stirred + 100), &watch()));
            watching.see(Sight::Changed("a".into()), (Some(ms(spawned)), None), Some(UnixMillis(0)))
        };
        assert_eq!(look(9000, 8000), Some("a".into()));
        assert_eq!(look(19_000, 19_050), None);
    }

    #[test]
    fn what_was_changed_before_anybody_watched_counts_if_the_run_is_older() {
        let first = |at| Sight::First(Some((UnixMillis(at), "a".into())));
        let see = |sight| Watching::default().see(sight, (Some(ms(0)), None), Some(UnixMillis(500)));
        assert_eq!(see(first(499)), None);
        assert_eq!(see(first(500)), None);
        assert_eq!(see(first(501)), Some("a".into()));
        assert_eq!(see(Sight::First(None)), None);
        assert_eq!(Watching::default().see(first(501), (None, None), None), None, "it has never run");
    }

    #[test]
    fn a_service_that_writes_what_it_watches_is_not_run_again_for_ever() {
        let mut watching = Watching::default();
        let mut now = 10_000;
        let mut change_of = |watching: &mut Watching, after: u64, over: Option<u64>| {
            let spawned = now;
            let over = over.map(|over| ms(spawned + over));
            now += after;
            watching.stir(ms(now));
            assert!(watching.is_due(ms(now + 100), &watch()));
            now += 200;
            watching.see(Sight::Changed("gen.py".into()), (Some(ms(spawned)), over), None).is_some()
        };
        // One that fails at once, and is mended by and by.
        for _ in 0..3 * QUICK_LIMIT {
            assert!(change_of(&mut watching, 1000, Some(20)), "it was over long before");
        }
        for _ in 0..QUICK_LIMIT {
            assert!(change_of(&mut watching, 50, Some(40)));
        }
        assert!(!change_of(&mut watching, 50, Some(40)), "it wrote that before it failed");
        watching.forgive();
        let mut change = |watching: &mut Watching, after: u64| change_of(watching, after, None);
        for _ in 0..QUICK_LIMIT {
            assert!(change(&mut watching, 50));
        }
        assert!(change(&mut watching, 5000), "somebody saves a file");
        for _ in 0..QUICK_LIMIT {
            assert!(change(&mut watching, 50));
        }
        assert!(!change(&mut watching, 50));
        assert!(watching.problem().is_some_and(|problem| problem.contains("gen.py")));
        watching.forgive();
        assert!(change(&mut watching, 50));
        assert_eq!(watching.problem(), None);
    }
}
