//! Whether a service's port is listened on by one of its own processes.
//!
//! No kernel tells when a process begins to listen, so this looks: every 5 ms at first, then less often. It runs only
//! while a service is starting, and not at all once it is ready.

use std::time::Duration;

use locald_utils::process::{self, ProcessId};
use tokio::time::Instant;

/// 5 ms: a dependent starts soon after, and a look costs a fraction of a millisecond.
const FIRST: Duration = Duration::from_millis(5);
/// 1 s, after twenty: who has waited that long does not notice, and a port that is never opened costs next to nothing.
const LONGEST: Duration = Duration::from_secs(1);

/// A port that is about to be listened on.
pub(crate) struct PortProbe {
    shim: ProcessId,
    port: u16,
    began: Instant,
}

impl PortProbe {
    /// Looks for a listener among what hangs below `shim`.
    pub(crate) fn new(shim: ProcessId, port: u16) -> Self {
        Self { shim, port, began: Instant::now() }
    }

    /// The wait before the next look: a twentieth of the time that has passed, within bounds.
    fn interval(&self) -> Duration {
        (self.began.elapsed() / 20).clamp(FIRST, LONGEST)
    }

    fn is_open(&self) -> bool {
        // What cannot be looked at is not open yet.
        let members: Vec<i32> =
            process::descendants(self.shim.pid).unwrap_or_default().iter().map(|process| process.id.pid).collect();
        process::listens_on(&members, self.port).unwrap_or(false)
    }
}

/// Waits until the port is open; without a probe, for ever. May be dropped and called again.
pub(crate) async fn opened(probe: Option<&mut PortProbe>) {
    let Some(probe) = probe else { return std::future::pending().await };
    while !probe.is_open() {
        tokio::time::sleep(probe.interval()).await;
    }
}
