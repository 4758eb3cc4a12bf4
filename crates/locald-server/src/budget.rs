//! Who may have how many of the daemon's descriptors, so that there is always one for whoever wants to stop something, and for
//! looking at processes.

use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// 40: its own files, and what a start or a look at the process table needs for a moment.
const OWN: u64 = 40;

/// 3: the connection to the shim, and the terminal or two pipes.
const OF_A_RUN: u64 = 3;

/// The shares of a limit on descriptors: a quarter is for clients, the rest for runs.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    shares: Rc<Shares>,
}

#[derive(Debug)]
struct Shares {
    clients: Arc<Semaphore>,
    runs: Arc<Semaphore>,
    most_runs: usize,
}

impl Budget {
    /// The shares of a limit.
    pub(crate) fn of(limit: u64) -> Self {
        let clients = (limit / 4).max(1);
        let runs = limit.saturating_sub(clients + OWN) / OF_A_RUN;
        let count = |share| usize::try_from(share).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let (clients, most_runs) = (Arc::new(Semaphore::new(count(clients))), count(runs));
        Self { shares: Rc::new(Shares { clients, runs: Arc::new(Semaphore::new(most_runs)), most_runs }) }
    }

    /// A share for a client, held for as long as it stays. Waits until there is one.
    pub(crate) async fn client(&self) -> Option<OwnedSemaphorePermit> {
        // It is never closed.
        self.shares.clients.clone().acquire_owned().await.ok()
    }

    /// Whether any run has a share.
    pub(crate) fn has_runs(&self) -> bool {
        self.shares.runs.available_permits() < self.shares.most_runs
    }

    /// A share for a run, held for as long as it is looked after.
    ///
    /// # Errors
    /// When all are taken.
    pub(crate) fn run(&self) -> Result<OwnedSemaphorePermit, TryAcquireError> {
        self.shares.runs.clone().try_acquire_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_may_have_together_is_within_the_limit() {
        for limit in [1, 30, 64, 128, 256, 1024, 10_240, u64::MAX] {
            let Shares { clients, runs, .. } = &*Budget::of(limit).shares;
            let (clients, runs) = (clients.available_permits() as u64, runs.available_permits() as u64);
            assert!(clients > 0);
            assert!(runs == 0 || clients + runs * OF_A_RUN + OWN <= limit, "{limit}");
        }
        let budget = Budget::of(OWN * 4 / 3 + 6);
        assert!(!budget.has_runs());
        let held = budget.run().expect("a share");
        assert!(budget.has_runs());
        let more: Vec<_> = std::iter::from_fn(|| budget.run().ok()).collect();
        assert!(budget.run().is_err());
        drop((held, more));
        assert!(budget.run().is_ok());
    }
}
