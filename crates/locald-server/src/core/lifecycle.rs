//! The life of one service: what is wanted, what is, and what follows from news of its run.
//!
//! Wanted and actual are two facts. A person changes what is wanted: up or down, and the lowest run number that will
//! do, which is how a restart is asked for. News of a run change what is actual; news of any other run than the current
//! one are dropped in [`Lifecycle::hear`] and nowhere else. What to do about the difference is decided in `fleet`,
//! which also sees the neighbours.
//!
//! ```text
//! Stopped --> Waiting --> Spawning --> Starting --> Ready <--> Unready      any with a run --stop--> Stopping --> Stopped, Stuck
//!             ^     ^         \            |           |
//!             v     |          \___________|___________|  the run is over
//!          Blocked  |                       v
//!                   +--- Backoff    Completed, Failed
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use locald_utils::name::{RunNumber, ServiceName};
use locald_utils::process::ProcessId;
use locald_utils::protocol::{CheckStatus, Desired};
use locald_utils::record::{Ended, ExitStatus, StartFailure, StartStage, Survivor};
use locald_utils::spec::{Kind, Ports, RestartWhen, ServiceSpec};
use locald_utils::time::UnixMillis;
use serde::{Deserialize, Serialize};

use super::Time;
use super::attempts::{Attempt, Attempts};

/// 100 ms: a service without a port is ready when its leader has run this long. A program that fails at start, for a
/// missing library or a wrong flag, has failed by then.
pub(crate) const MOMENT: Duration = Duration::from_millis(100);

/// What a service does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Actual {
    /// Nothing of it runs.
    Stopped,
    /// It shall run, and waits for its dependencies.
    Waiting,
    /// It shall run, and a dependency can never hold as things stand: the chain down to the culprit, and what is wrong.
    Blocked { chain: Vec<ServiceName>, cause: String },
    /// The actor has been told to spawn it.
    Spawning,
    /// Its leader runs; ready at `ready_at` if nothing else decides that.
    Starting { ready_at: Option<Time> },
    /// It is ready.
    Ready { since: Time },
    /// It was ready, and is not any more.
    Unready,
    /// It is being ended: because we ordered so, or because its leader has left others behind.
    Stopping { kill_at: Option<UnixMillis> },
    /// It could not be ended: these processes are left, and watched.
    Stuck { survivors: Vec<Survivor> },
    /// It ended and waits for its next attempt; how often it was started of late.
    Backoff { starts: u32, until: Time },
    /// It ended with exit code 0 and is not to be restarted.
    Completed,
    /// It ended otherwise and is not to be restarted.
    Failed(Reason),
    /// There is a run, and its shim does not answer. Nobody can say whether it lives, so it counts as alive.
    Unknown,
}

/// A service that has come to rest by itself, as the ledger keeps it: a new daemon starts nothing that rests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Resting {
    /// It ended with exit code 0.
    Completed,
    /// It failed, and no further attempt is made.
    Failed(Reason),
}

/// What is to become of a service next, as the ledger keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ahead {
    /// The run that another is to follow.
    replaces: Option<RunNumber>,
    /// Until when it waits for its next attempt.
    until: Option<UnixMillis>,
    /// What its newest run was started on, so that it follows that still.
    #[serde(default, skip_serializing_if = "StartedOn::is_empty")]
    started_on: StartedOn,
}

/// Why a service failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reason {
    /// It exited.
    Exited,
    /// It was started too often.
    CrashLoop {
        /// So many starts.
        starts: u32,
        /// Within this time.
        within: Duration,
        /// Why the last of them came to nothing, where its exit does not tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    },
    /// It could not be started.
    Start(StartFailure),
    /// It was not healthy: which check did not pass, and its last answer.
    Unhealthy(String),
}

/// What an actor reports of a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum News {
    /// The leader runs.
    Started { leader: ProcessId, shim: ProcessId, at: UnixMillis },
    /// All of its checks pass.
    Ready,
    /// It was ready, and a check does not pass any more: which, and its last answer.
    Unready(String),
    /// A check has not passed in its start period: which, and its last answer.
    Late(String),
    /// What its checks have come to.
    Checked(Arc<Vec<CheckStatus>>),
    /// The run could not be started; nothing of it is left.
    StartFailed(StartFailure),
    /// The leader exited by itself; what it left behind is being ended.
    LeaderExited(ExitStatus),
    /// The leader, a launcher, has exited with code 0; what it left is the service, and this process stands for it.
    Forked { main: ProcessId },
    /// The stop has begun, or its end has come nearer.
    Stopping { kill_at: UnixMillis },
    /// These processes could not be ended.
    Survivors(Vec<Survivor>),
    /// Nothing of the run is left.
    Ended(Arc<Ended>),
    /// The shim does not answer.
    Silent,
    /// The shim is gone and the daemon looks after the run itself.
    Degraded,
    /// The shim answers again, or for the first time to this daemon: the run goes on, with the spec it was started with.
    Found {
        spec: Arc<ServiceSpec>,
        leader: Option<ProcessId>,
        shim: ProcessId,
        started_at: Option<UnixMillis>,
        ran_for: Duration,
        started_on: StartedOn,
    },
}

impl News {
    /// What it says about whether the run is ready.
    pub(crate) fn readiness(&self) -> Option<bool> {
        match self {
            Self::Ready => Some(true),
            Self::Unready(_) => Some(false),
            Self::Started { .. }
            | Self::Late(_)
            | Self::Checked(_)
            | Self::StartFailed(_)
            | Self::LeaderExited(_)
            | Self::Forked { .. }
            | Self::Stopping { .. }
            | Self::Survivors(_)
            | Self::Ended(_)
            | Self::Silent
            | Self::Degraded
            | Self::Found { .. } => None,
        }
    }
}

/// The runs that the services had which a service depends on.
pub(crate) type StartedOn = BTreeMap<ServiceName, RunNumber>;

/// One service's facts.
#[derive(Clone, Debug)]
pub(crate) struct Lifecycle {
    /// What a person wants.
    pub(crate) desired: Desired,
    /// A run with a lower number does not do: it is ended and replaced.
    pub(crate) at_least: RunNumber,
    /// Whether it shall go without its grace period.
    pub(crate) is_urgent: bool,
    /// What it does.
    pub(crate) actual: Actual,
    /// The newest run, running or over; 0 before the first.
    pub(crate) newest: RunNumber,
    /// How often it was started, and failed.
    pub(crate) attempts: Attempts,
    /// The digest of the spec of the newest run, where an earlier daemon has had it.
    pub(crate) ran: Option<String>,
    /// Whether it has completed without a run: what it would have done was done before.
    pub(crate) is_recalled: bool,
    /// When the newest run was begun, if this daemon has begun it.
    pub(crate) spawned: Option<Time>,
    /// When it was over, since then.
    pub(crate) over: Option<Time>,
    /// The ports that make a difference to the newest run, as it was given them.
    pub(crate) ports: Ports,
    /// What the newest run was started on, as far as it is known.
    pub(crate) started_on: StartedOn,
    /// The spec of the current or newest run.
    pub(crate) running: Option<Arc<ServiceSpec>>,
    /// The leader of the current run.
    pub(crate) leader: Option<ProcessId>,
    /// The shim that carries it.
    pub(crate) shim: Option<ProcessId>,
    /// Whether the current run has lost its shim.
    pub(crate) is_degraded: bool,
    /// What the checks of the current or newest run have come to.
    pub(crate) health: Arc<Vec<CheckStatus>>,
    /// Why the current run is to be ended: it is not healthy.
    unhealthy: Option<String>,
    /// What there is to say of the run before besides how it ended, until this one is ready or a person asks for another: that it was
    /// not healthy, or never started.
    pub(crate) complaint: Option<String>,
    /// When the newest run's first instruction ran.
    pub(crate) started_at: Option<UnixMillis>,
    /// How long the current run has been ready when it ended or stopped being so.
    ready_for: Duration,
    /// How the run before, or the newest if it is over, ended.
    pub(crate) last: Option<Arc<Ended>>,
    /// Runs that could not be ended and were given up by a person, who wanted a new one: what is left of them.
    pub(crate) abandoned: BTreeMap<RunNumber, Vec<Survivor>>,
}

impl Lifecycle {
    /// A service that has had `newest` runs before and does nothing.
    pub(crate) fn new(newest: RunNumber) -> Self {
        Self {
            desired: Desired::Down,
            at_least: newest,
            is_urgent: false,
            actual: Actual::Stopped,
            newest,
            attempts: Attempts::default(),
            ran: None,
            is_recalled: false,
            spawned: None,
            over: None,
            ports: Ports::new(),
            started_on: StartedOn::new(),
            running: None,
            leader: None,
            shim: None,
            is_degraded: false,
            health: Arc::default(),
            unhealthy: None,
            complaint: None,
            started_at: None,
            ready_for: Duration::ZERO,
            last: None,
            abandoned: BTreeMap::new(),
        }
    }

    /// Whether there is a run, or may be one.
    pub(crate) fn is_occupied(&self) -> bool {
        match self.actual {
            Actual::Spawning
            | Actual::Starting { .. }
            | Actual::Ready { .. }
            | Actual::Unready
            | Actual::Stopping { .. }
            | Actual::Stuck { .. }
            | Actual::Unknown => true,
            Actual::Stopped
            | Actual::Waiting
            | Actual::Blocked { .. }
            | Actual::Backoff { .. }
            | Actual::Completed
            | Actual::Failed(_) => false,
        }
    }

    /// Whether processes of any run are left, or may be.
    pub(crate) fn has_left(&self) -> bool {
        self.is_occupied() || !self.abandoned.is_empty()
    }

    /// Whether its actor is needed: the run is the current one and not over, or was given up and is not over.
    pub(crate) fn is_open(&self, run: RunNumber) -> bool {
        (run == self.newest && self.is_occupied()) || self.abandoned.contains_key(&run)
    }

    /// Whether the current run has to go: nobody wants it, a newer one is wanted, or it is not healthy.
    pub(crate) fn is_leaving(&self) -> bool {
        self.desired == Desired::Down || self.newest < self.at_least || self.unhealthy.is_some()
    }

    /// Whether it is ready, and will not leave.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.actual, Actual::Ready { .. }) && !self.is_leaving()
    }

    /// Whether its leader runs, and will not leave.
    pub(crate) fn is_started(&self) -> bool {
        matches!(self.actual, Actual::Starting { .. } | Actual::Ready { .. } | Actual::Unready) && !self.is_leaving()
    }

    /// Whether it has completed, and need not do so again.
    pub(crate) fn is_completed(&self) -> bool {
        self.actual == Actual::Completed && self.newest >= self.at_least
    }

    /// Lets what was done in an earlier run count as done, if nothing of it runs.
    pub(crate) fn recall(&mut self, spec: Arc<ServiceSpec>) {
        if !self.is_occupied() {
            self.actual = Actual::Completed;
            self.at_least = self.newest;
            self.running = Some(spec);
            self.is_recalled = true;
        }
    }

    /// Asks for it to run. An attempt that failed or was given up is made again.
    pub(crate) fn want_up(&mut self) {
        let was_down = self.desired == Desired::Down;
        self.desired = Desired::Up;
        self.is_urgent = false;
        match self.actual {
            // On its way out by a person's wish, or because its leader has left: a new run follows this one, if none is to.
            Actual::Stopping { .. } | Actual::Stuck { .. } if was_down || self.newest >= self.at_least => {
                self.want_new_run();
            }
            Actual::Failed(_) => self.want_new_run(),
            Actual::Backoff { .. } => {
                self.forget_failures();
                self.actual = Actual::Waiting;
            }
            Actual::Stopped
            | Actual::Waiting
            | Actual::Blocked { .. }
            | Actual::Spawning
            | Actual::Starting { .. }
            | Actual::Ready { .. }
            | Actual::Unready
            | Actual::Stopping { .. }
            | Actual::Stuck { .. }
            | Actual::Completed
            | Actual::Unknown => {}
        }
        if was_down {
            self.forget_failures();
        }
    }

    /// Asks for a run that starts after now.
    pub(crate) fn want_new_run(&mut self) {
        self.desired = Desired::Up;
        self.is_urgent = false;
        self.at_least = self.newest.next();
        self.forget_failures();
    }

    /// Gives up a run that cannot be ended, so that another may start beside what is left of it. Anything else is not given up.
    pub(crate) fn abandon(&mut self) {
        if let Actual::Stuck { survivors } = &mut self.actual {
            self.abandoned.insert(self.newest, std::mem::take(survivors));
            self.actual = Actual::Stopped;
            self.leader = None;
            self.shim = None;
            self.is_degraded = false;
        }
    }

    /// Asks for it not to run.
    pub(crate) fn want_down(&mut self, at_once: bool) {
        self.desired = Desired::Down;
        self.is_urgent |= at_once;
    }

    fn forget_failures(&mut self) {
        self.complaint = None;
        self.attempts = Attempts::default();
    }

    /// Asks for a new run because what it was started on has one. Nobody has asked for that, and nothing has failed: neither counts.
    pub(crate) fn follow(&mut self) {
        self.at_least = self.newest.next();
    }

    /// Whether it has a run that another takes the place of, when what it depends on is run again.
    pub(crate) fn may_follow(&self) -> bool {
        let has_run = self.is_occupied() || matches!(self.actual, Actual::Completed | Actual::Failed(_));
        self.desired == Desired::Up && has_run
    }

    /// When the first instruction of the newest run ran, if it has.
    pub(crate) fn last_started_at(&self) -> Option<UnixMillis> {
        // How the run before began says nothing of one that is about to, or never did.
        self.started_at.or_else(|| self.last.as_ref().filter(|last| last.run.number == self.newest)?.started_at)
    }

    /// Since when a change of files may not have been seen by the newest run. Of what this daemon has begun and what came to nothing
    /// that is whatever was found since somebody asked for it: another attempt does no harm, and the times of files are coarse.
    pub(crate) fn unseen_since(&self) -> Option<UnixMillis> {
        let has_failed = matches!(self.actual, Actual::Failed(_) | Actual::Backoff { .. });
        if has_failed && self.spawned.is_some() { Some(UnixMillis(0)) } else { self.last_started_at() }
    }

    /// Asks for a new run because what it is made of has changed, if one shall be and none is to come that has yet to see it.
    /// Whether that is so.
    pub(crate) fn renew(&mut self) -> bool {
        let is_renewed = self.desired == Desired::Up
            && self.newest >= self.at_least
            && match self.actual {
                Actual::Spawning
                | Actual::Starting { .. }
                | Actual::Ready { .. }
                | Actual::Unready
                | Actual::Stopping { .. }
                // When what is left of it has gone after all.
                | Actual::Stuck { .. }
                | Actual::Backoff { .. }
                | Actual::Completed
                | Actual::Failed(_)
                | Actual::Unknown => true,
                Actual::Stopped | Actual::Waiting | Actual::Blocked { .. } => false,
            };
        if is_renewed {
            self.want_new_run();
        }
        is_renewed
    }

    /// Begins the next run, with `spec`, and returns its number.
    pub(crate) fn spawn(
        &mut self,
        now: Time,
        spec: Arc<ServiceSpec>,
        started_on: StartedOn,
        ports: &Ports,
    ) -> RunNumber {
        self.newest = self.newest.next();
        self.started_on = started_on;
        self.actual = Actual::Spawning;
        self.is_urgent = false;
        self.ports = spec.concerned(ports);
        self.running = Some(spec);
        self.leader = None;
        self.shim = None;
        self.is_degraded = false;
        self.health = Arc::default();
        self.unhealthy = None;
        self.started_at = None;
        self.ready_for = Duration::ZERO;
        self.attempts.begin(now);
        self.spawned = Some(now);
        self.over = None;
        self.is_recalled = false;
        self.newest
    }

    /// Puts a service back that was at rest when an earlier daemon died, and shall not be started because of that.
    pub(crate) fn restore(&mut self, resting: Option<Resting>, last: Option<Arc<Ended>>) {
        self.last = last;
        self.actual = match (self.desired, resting) {
            (Desired::Down, _) | (Desired::Up, None) => Actual::Stopped,
            (Desired::Up, Some(Resting::Completed)) => Actual::Completed,
            (Desired::Up, Some(Resting::Failed(reason))) => Actual::Failed(reason),
        };
    }

    /// What is to become of it; `wall` tells when a moment is.
    pub(crate) fn ahead(&self, wall: impl Fn(Time) -> UnixMillis) -> Ahead {
        let until = if let Actual::Backoff { until, .. } = self.actual { Some(wall(until)) } else { None };
        let is_replaced = self.is_occupied() && self.newest < self.at_least;
        Ahead { replaces: is_replaced.then_some(self.newest), until, started_on: self.started_on.clone() }
    }

    /// Goes on with what an earlier daemon had in mind; `time` tells which moment that is.
    pub(crate) fn resume(&mut self, ahead: &Ahead, time: impl Fn(UnixMillis) -> Time) {
        self.started_on.clone_from(&ahead.started_on);
        if ahead.replaces == Some(self.newest) {
            self.at_least = self.newest.next();
        }
        if let (Some(until), Desired::Up, Actual::Stopped) = (ahead.until, self.desired, &self.actual) {
            self.actual = Actual::Backoff { starts: self.attempts.starts(), until: time(until) };
        }
    }

    /// How the service rests, if it has come to rest by itself.
    pub(crate) fn resting(&self) -> Option<Resting> {
        match &self.actual {
            Actual::Completed => Some(Resting::Completed),
            Actual::Failed(reason) => Some(Resting::Failed(reason.clone())),
            Actual::Stopped
            | Actual::Waiting
            | Actual::Blocked { .. }
            | Actual::Spawning
            | Actual::Starting { .. }
            | Actual::Ready { .. }
            | Actual::Unready
            | Actual::Stopping { .. }
            | Actual::Stuck { .. }
            | Actual::Backoff { .. }
            | Actual::Unknown => None,
        }
    }

    /// Whether a port that makes a difference to what is written is another than its run was given.
    pub(super) fn has_other_ports(&self, written: &ServiceSpec, ports: &Ports) -> bool {
        self.is_occupied() && self.ports != written.concerned(ports)
    }

    /// Takes a run over from an earlier daemon.
    pub(crate) fn adopt(&mut self, run: RunNumber, spec: Arc<ServiceSpec>) {
        if run < self.newest {
            // There was a newer one beside it. What is left of this one is yet to be heard.
            self.abandoned.insert(run, Vec::new());
            return;
        }
        // Of the run that it knew it may know that another is to follow.
        if run != self.newest {
            self.at_least = self.at_least.min(run);
        }
        self.newest = run;
        self.running = Some(spec);
        self.actual = Actual::Unknown;
    }

    /// Takes news of `run`. Returns whether it was news; late news of an old run are not.
    pub(crate) fn hear(&mut self, now: Time, run: RunNumber, news: News) -> bool {
        if let Some(left) = self.abandoned.get_mut(&run) {
            match news {
                News::Survivors(survivors) => *left = survivors,
                News::Ended(_) | News::StartFailed(_) => drop(self.abandoned.remove(&run)),
                News::Started { .. }
                | News::Ready
                | News::Unready(_)
                | News::Late(_)
                | News::Checked(_)
                | News::LeaderExited(_)
                | News::Forked { .. }
                | News::Stopping { .. }
                | News::Silent
                | News::Degraded
                | News::Found { .. } => return false,
            }
            return true;
        }
        if run != self.newest || !self.is_occupied() {
            return false;
        }
        let Some(spec) = self.running.clone() else { return false };
        match news {
            News::Started { leader, shim, at } => {
                self.leader = Some(leader);
                self.shim = Some(shim);
                self.started_at = Some(at);
                if self.actual == Actual::Spawning {
                    self.begin(now, Duration::ZERO, &spec);
                }
            }
            News::Ready if self.is_judged() => {
                self.complaint = None;
                // Whoever was asked anew, and is as ready as before, has been so since then.
                if !matches!(self.actual, Actual::Ready { .. }) {
                    self.actual = Actual::Ready { since: now };
                }
            }
            News::Unready(why) if self.is_judged() => {
                self.note_ready_time(now);
                self.actual = Actual::Unready;
                // Without a policy it stays, and may become ready again.
                self.unhealthy = (spec.restart.when != RestartWhen::No).then_some(why);
            }
            News::Late(why) if self.is_judged() => self.unhealthy = Some(why),
            News::Ready | News::Unready(_) | News::Late(_) => return false,
            News::Checked(health) => self.health = health,
            News::StartFailed(failure) => self.end(now, &spec, Ending::NotStarted(failure)),
            News::LeaderExited(_) => {
                self.note_ready_time(now);
                self.actual = Actual::Stopping { kill_at: None };
            }
            News::Forked { main } => {
                self.leader = Some(main);
                if spec.checks().is_empty() && matches!(self.actual, Actual::Starting { .. }) {
                    self.complaint = None;
                    self.actual = Actual::Ready { since: now };
                }
            }
            News::Stopping { kill_at } => {
                self.note_ready_time(now);
                self.actual = Actual::Stopping { kill_at: Some(kill_at) };
            }
            News::Survivors(survivors) => self.actual = Actual::Stuck { survivors },
            News::Ended(ended) => {
                self.note_ready_time(now);
                let ending = match left_nothing(&spec, &ended) {
                    Some(failure) => Ending::NotStarted(failure),
                    None => Ending::Exited(ended.status),
                };
                self.started_at = self.started_at.or(ended.started_at);
                self.last = Some(ended);
                self.end(now, &spec, ending);
            }
            // What was told to stop does so, by whoever comes to it.
            News::Silent if matches!(self.actual, Actual::Stopping { .. } | Actual::Stuck { .. }) => return false,
            News::Silent => self.actual = Actual::Unknown,
            News::Degraded => self.is_degraded = true,
            News::Found { spec, leader, shim, started_at, ran_for, started_on } => {
                self.started_on.extend(started_on);
                self.leader = leader;
                self.shim = Some(shim);
                self.started_at = started_at.or(self.started_at);
                self.running = Some(spec.clone());
                if self.actual == Actual::Unknown {
                    self.begin(now, ran_for, &spec);
                }
            }
        }
        true
    }

    /// Whether what its checks come to makes a difference: it runs, and is not on its way out.
    fn is_judged(&self) -> bool {
        match self.actual {
            Actual::Starting { .. } | Actual::Ready { .. } | Actual::Unready => true,
            Actual::Spawning
            | Actual::Stopping { .. }
            | Actual::Stuck { .. }
            | Actual::Unknown
            | Actual::Stopped
            | Actual::Waiting
            | Actual::Blocked { .. }
            | Actual::Backoff { .. }
            | Actual::Completed
            | Actual::Failed(_) => false,
        }
    }

    /// The leader runs: from here on time, its checks, or the end of a launcher make it ready.
    fn begin(&mut self, now: Time, ran_for: Duration, spec: &ServiceSpec) {
        let by_time = spec.kind == Kind::Service && spec.checks().is_empty();
        self.actual = Actual::Starting { ready_at: by_time.then_some(now + MOMENT.saturating_sub(ran_for)) };
        self.tick(now);
    }

    fn note_ready_time(&mut self, now: Time) {
        if let Actual::Ready { since } = self.actual {
            self.ready_for = now.saturating_sub(since);
        }
    }

    /// The run is over: decides what comes after it.
    fn end(&mut self, now: Time, spec: &ServiceSpec, ending: Ending) {
        self.over = Some(now);
        self.leader = None;
        self.shim = None;
        self.is_degraded = false;
        // How it ended when it was told to says nothing any more.
        let ending = self.unhealthy.take().map_or(ending, Ending::Unhealthy);
        self.complaint = match &ending {
            Ending::Exited(_) => None,
            Ending::Unhealthy(why) => Some(format!("the last run was not healthy: {why}")),
            Ending::NotStarted(failure) => Some(format!("the last start failed: {}", failure.message)),
        };
        if self.desired == Desired::Down {
            self.actual = Actual::Stopped;
            return;
        }
        if self.newest < self.at_least {
            // Waiting is where every new run begins, whether a person or a failure asked for it.
            self.actual = Actual::Waiting;
            return;
        }
        let policy = &spec.restart;
        let is_success = matches!(ending, Ending::Exited(status) if status.is_success());
        let again = match policy.when {
            RestartWhen::No => false,
            RestartWhen::OnFailure => !is_success,
            // A job is done when it has succeeded, whatever else is said.
            RestartWhen::Always => !(is_success && spec.kind == Kind::Job),
        };
        let is_permanent = matches!(&ending, Ending::NotStarted(failure) if failure.permanent);
        self.actual = match ending {
            Ending::Exited(_) if !again && is_success => Actual::Completed,
            Ending::Exited(_) if !again => Actual::Failed(Reason::Exited),
            Ending::NotStarted(failure) if !again || is_permanent => Actual::Failed(Reason::Start(failure)),
            Ending::Unhealthy(why) if !again => Actual::Failed(Reason::Unhealthy(why)),
            Ending::Exited(_) | Ending::NotStarted(_) | Ending::Unhealthy(_) => self.retry(now, spec),
        };
    }

    /// The next attempt, or none.
    fn retry(&mut self, now: Time, spec: &ServiceSpec) -> Actual {
        match self.attempts.next(now, &spec.restart, self.ready_for, &spec.name, self.newest) {
            Attempt::Now => Actual::Waiting,
            Attempt::At { starts, until } => Actual::Backoff { starts, until },
            Attempt::Never { starts, within } => {
                let why = self.complaint.clone();
                Actual::Failed(Reason::CrashLoop { starts, within, why })
            }
        }
    }

    /// Takes note of the time. Returns whether that changed anything.
    pub(crate) fn tick(&mut self, now: Time) -> bool {
        match self.actual {
            Actual::Starting { ready_at: Some(at) } if now >= at => {
                self.complaint = None;
                self.actual = Actual::Ready { since: now };
            }
            Actual::Backoff { until, .. } if now >= until => self.actual = Actual::Waiting,
            Actual::Starting { .. }
            | Actual::Backoff { .. }
            | Actual::Stopped
            | Actual::Waiting
            | Actual::Blocked { .. }
            | Actual::Spawning
            | Actual::Ready { .. }
            | Actual::Unready
            | Actual::Stopping { .. }
            | Actual::Stuck { .. }
            | Actual::Completed
            | Actual::Failed(_)
            | Actual::Unknown => return false,
        }
        true
    }

    /// When [`Lifecycle::tick`] will change something.
    pub(crate) fn deadline(&self) -> Option<Time> {
        match self.actual {
            Actual::Starting { ready_at } => ready_at,
            Actual::Backoff { until, .. } => Some(until),
            Actual::Stopped
            | Actual::Waiting
            | Actual::Blocked { .. }
            | Actual::Spawning
            | Actual::Ready { .. }
            | Actual::Unready
            | Actual::Stopping { .. }
            | Actual::Stuck { .. }
            | Actual::Completed
            | Actual::Failed(_)
            | Actual::Unknown => None,
        }
    }
}

/// Why a run of a launcher that has succeeded was no start: nothing was left of it.
fn left_nothing(spec: &ServiceSpec, ended: &Ended) -> Option<StartFailure> {
    let is_nothing_left = spec.kind == Kind::Forking && ended.status.is_success() && !ended.forked && !ended.stopped;
    is_nothing_left.then(|| StartFailure {
        stage: StartStage::Launch,
        errno: 0,
        path: None,
        message: "its launcher exited with code 0 and left no process behind".to_owned(),
        hint: Some("`type = \"forking\"` is for a command that does; leave it out, or write \"job\"".to_owned()),
        permanent: false,
    })
}

/// How a run came to its end.
enum Ending {
    Exited(ExitStatus),
    NotStarted(StartFailure),
    Unhealthy(String),
}

#[cfg(test)]
pub(crate) mod tests;
