//! What the shim knows of the run that it carries.

use std::collections::VecDeque;
use std::time::Duration;

use locald_utils::process::cgroup::Cgroup;
use locald_utils::process::membership::Memory;
use locald_utils::process::sweep::Sweep;
use locald_utils::process::watch::MemberWatch;
use locald_utils::process::{self, ProcessId};
use locald_utils::record::{self, ExitStatus, PidRecord, StartFailure};
use locald_utils::shim_protocol::{ShimIdentity, StartOrder};
use locald_utils::time::UnixMillis;

use crate::probe::Probe;
use crate::spawn::Helper;

/// The run from the helper's start to the last process.
pub(crate) struct Live {
    pub(crate) order: StartOrder,
    pub(crate) leader: ProcessId,
    /// The number of its terminal in the process table, if it has one.
    pub(crate) terminal: Option<u64>,
    /// Its cgroup, where one could be made.
    pub(crate) cgroup: Option<Cgroup>,
    /// The helper until it has become the leader, and whether its gate is open.
    pub(crate) helper: Option<(Helper, bool)>,
    pub(crate) failed: Option<StartFailure>,
    pub(crate) started_at: Option<UnixMillis>,
    /// How and when the leader exited. Its zombie stays until the run is over.
    pub(crate) exit: Option<(ExitStatus, UnixMillis)>,
    /// What a launcher has left behind, once it has exited with code 0.
    pub(crate) forked: Option<Forked>,
    /// Whether somebody has ended since it was last looked whether anybody is left.
    pub(crate) has_ends: bool,
    /// When to look although nothing has happened: an end may be told a little before it shows (macOS).
    pub(crate) look_at: Option<Duration>,
    /// Who has been seen of the run before its stop began.
    pub(crate) memory: Memory,
    /// Tells when members fork or end, on systems where their orphans do not come to the shim.
    pub(crate) watch: MemberWatch,
    pub(crate) stop: Option<Sweep>,
    pub(crate) command: Option<Helper>,
    pub(crate) probes: Vec<Probe>,
    /// How many there have been.
    pub(crate) probe_count: u64,
    /// The cgroups of those that have ended, which are to be removed. What is left of them goes with the run's.
    pub(crate) probe_cgroups: Vec<Cgroup>,
    /// The leaders of those probes.
    pub(crate) probe_leaders: Vec<ProcessId>,
    /// The sessions of the last probes, whose processes are none of the service's. Only for the count.
    pub(crate) probe_sessions: VecDeque<i32>,
    pub(crate) survivors: Vec<record::Survivor>,
}

/// What a launcher has left behind.
#[derive(Default)]
pub(crate) struct Forked {
    /// Who stands for it: the oldest of those whose parents are gone. `None` when that one has ended, until there is another.
    pub(crate) main: Option<ProcessId>,
    /// How the first of those ended that did not end with exit code 0, or else the last.
    pub(crate) exit: Option<(ExitStatus, UnixMillis)>,
}

impl Forked {
    /// Takes note of an end. Whoever ends while nobody stands for it has been about to.
    pub(crate) fn ended(&mut self, pid: i32, status: ExitStatus) {
        if self.main.is_some_and(|main| main.pid != pid) {
            return;
        }
        self.main = None;
        if self.exit.is_none_or(|(before, _)| before.is_success()) {
            self.exit = Some((status, UnixMillis::now()));
        }
    }
}

impl Live {
    /// Whether the service runs, and is not being ended: its leader does, or what a launcher has left.
    pub(crate) fn is_running(&self) -> bool {
        self.helper.is_none() && self.stop.is_none() && (self.exit.is_none() || self.forked.is_some())
    }

    /// The record of its processes.
    pub(crate) fn record(&self, identity: &ShimIdentity, boot: &str, shim: ProcessId) -> PidRecord {
        PidRecord {
            run: identity.run.clone(),
            boot: boot.to_owned(),
            leader: self.leader,
            pgid: self.leader.pid,
            sid: self.leader.pid,
            shim,
            reapers: process::reapers(),
            cgroup: self.cgroup.as_ref().map(|cgroup| cgroup.dir().to_owned()),
            main: self.forked.as_ref().and_then(|forked| forked.main),
        }
    }
}
