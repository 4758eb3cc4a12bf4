//! Who wants a service: owners who said who they are, each for a while or until they leave, and whoever did not say.
//!
//! A service that nobody wants any more is ended. Who asks without a name keeps it until somebody stops it.

use std::collections::{BTreeMap, BTreeSet};

use locald_utils::name::OwnerName;
use locald_utils::time::UnixMillis;
use serde::{Deserialize, Serialize};

use super::Time;

/// Who wants a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owners {
    /// Whether somebody wants it who did not say for how long, and as whom.
    is_kept: bool,
    /// The others, each with the end of its lease, if it has one.
    leases: BTreeMap<OwnerName, Option<Time>>,
    /// Those that have left since anybody wanted it.
    left: BTreeSet<OwnerName>,
    /// Whether somebody has asked for its end, whoever owned it.
    is_dismissed: bool,
}

/// As the ledger keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    is_kept: bool,
    leases: BTreeMap<OwnerName, Option<UnixMillis>>,
    #[serde(default)]
    left: BTreeSet<OwnerName>,
    #[serde(default)]
    is_dismissed: bool,
}

impl Owners {
    /// Somebody asks for its end, whoever owns it.
    pub(crate) fn dismiss(&mut self) {
        self.is_kept = false;
        self.left.extend(std::mem::take(&mut self.leases).into_keys());
        self.is_dismissed = true;
    }

    /// Whether somebody has asked for its end.
    pub(crate) fn is_dismissed(&self) -> bool {
        self.is_dismissed
    }

    /// Somebody wants it, without a name or as `owner`, until then. `was_wanted` tells whether anybody did before.
    pub(crate) fn ask(&mut self, owner: Option<(&OwnerName, Option<Time>)>, was_wanted: bool) {
        if !was_wanted {
            *self = Self::default();
        }
        // Whoever wanted it before there were owners did not say who they are.
        self.is_kept |= was_wanted && self.is_empty();
        self.add(owner);
    }

    /// Somebody asks once more for what an earlier daemon was asked for, which may not have written down by whom.
    pub(crate) fn add(&mut self, owner: Option<(&OwnerName, Option<Time>)>) {
        if self.is_empty() {
            *self = Self::default();
        }
        match owner {
            None => self.is_kept = true,
            Some((name, until)) => {
                self.left.remove(name);
                self.leases.insert(name.clone(), until);
            }
        }
    }

    /// Lets the lease of an owner, if it has one, end no sooner than this; `None` when it leaves. Whether that is later.
    pub(crate) fn lengthen(&mut self, owner: &OwnerName, until: Option<Time>) -> bool {
        match self.leases.get_mut(owner) {
            Some(lease @ Some(_)) if until.is_none() || *lease < until => {
                *lease = until;
                true
            }
            Some(_) | None => false,
        }
    }

    /// An owner leaves. Whether it was one.
    pub(crate) fn leave(&mut self, owner: &OwnerName) -> bool {
        let was_owner = self.leases.remove(owner).is_some();
        if was_owner {
            self.left.insert(owner.clone());
        }
        was_owner
    }

    /// Ends the leases that are over. Whether there was one.
    pub(crate) fn expire(&mut self, now: Time) -> bool {
        let over = self.leases.extract_if(.., |_, until| until.is_some_and(|until| until <= now));
        let before = self.left.len();
        self.left.extend(over.map(|(name, _)| name));
        self.left.len() > before
    }

    /// Those whose leaving has ended it; empty if somebody else has.
    pub(crate) fn gone(&self) -> impl Iterator<Item = &OwnerName> {
        self.left.iter().filter(|_| self.is_empty() && !self.is_dismissed)
    }

    /// Whether this owner has wanted it, and does no more.
    pub(crate) fn has_left(&self, owner: &OwnerName) -> bool {
        self.left.contains(owner)
    }

    /// When the next lease is over.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.leases.values().flatten().min().copied()
    }

    /// Whether nobody wants it.
    pub(crate) fn is_empty(&self) -> bool {
        !self.is_kept && self.leases.is_empty()
    }

    /// The owners by name, each with the end of its lease.
    pub(crate) fn leases(&self) -> impl Iterator<Item = (&OwnerName, Option<Time>)> {
        self.leases.iter().map(|(name, until)| (name, *until))
    }

    /// For the ledger; `wall` tells when a moment is.
    pub(crate) fn kept(&self, wall: impl Fn(Time) -> UnixMillis) -> Kept {
        let leases = self.leases().map(|(name, until)| (name.clone(), until.map(&wall)));
        Kept {
            is_kept: self.is_kept,
            leases: leases.collect(),
            left: self.left.clone(),
            is_dismissed: self.is_dismissed,
        }
    }

    /// From the ledger; `time` tells which moment that is.
    pub(crate) fn restore(kept: &Kept, time: impl Fn(UnixMillis) -> Time) -> Self {
        let leases = kept.leases.iter().map(|(name, until)| (name.clone(), until.map(&time)));
        Self {
            is_kept: kept.is_kept,
            leases: leases.collect(),
            left: kept.left.clone(),
            is_dismissed: kept.is_dismissed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(name: &str) -> OwnerName {
        name.parse().expect("valid")
    }

    #[test]
    fn a_service_is_wanted_until_the_last_has_left_or_its_lease_is_over() {
        let (ci, agent) = (name("ci"), name("agent"));
        let minute = Duration::from_secs(60);
        let mut owners = Owners::default();
        owners.ask(Some((&ci, Some(minute))), false);
        owners.ask(Some((&agent, None)), true);
        assert_eq!(owners.deadline(), Some(minute));
        assert!(!owners.expire(minute - Duration::from_millis(1)));
        assert!(owners.expire(minute) && !owners.is_empty());
        assert!(!owners.leave(&ci), "it has left already");
        assert!(owners.leave(&agent) && owners.is_empty());
        assert!(owners.has_left(&ci) && owners.has_left(&agent) && !owners.has_left(&name("nobody")));
        owners.ask(Some((&ci, None)), false);
        assert!(!owners.has_left(&ci) && !owners.has_left(&agent), "it is wanted again");
    }

    #[test]
    fn who_asks_again_has_another_lease_and_who_gives_no_name_keeps_it() {
        let ci = name("ci");
        let mut owners = Owners::default();
        owners.ask(Some((&ci, Some(Duration::from_secs(1)))), false);
        owners.ask(Some((&ci, Some(Duration::from_secs(9)))), true);
        assert_eq!(owners.deadline(), Some(Duration::from_secs(9)));
        owners.ask(None, true);
        assert!(owners.leave(&ci) && !owners.is_empty());
        // It was stopped, and is somebody else's now.
        owners.ask(Some((&ci, None)), false);
        assert!(owners.leave(&ci) && owners.is_empty());
        // A daemon without owners had started it.
        let mut owners = Owners::default();
        owners.ask(Some((&ci, None)), true);
        assert!(owners.leave(&ci) && !owners.is_empty());
    }

    #[test]
    fn the_next_daemon_has_the_same_owners() {
        let mut owners = Owners::default();
        owners.ask(Some((&name("ci"), Some(Duration::from_millis(5)))), false);
        owners.ask(Some((&name("agent"), None)), true);
        let kept = owners.kept(|at| UnixMillis(1000).plus(at));
        let json = serde_json::to_string(&kept).expect("serialises");
        let kept: Kept = serde_json::from_str(&json).expect("reads");
        assert_eq!(Owners::restore(&kept, |at| at.since(UnixMillis(1000))), owners);
    }
}
