//! A run whose shim is gone: what it recorded is believed, what still runs is looked after.
//!
//! If the shim left an exit record, that is how the run ended. Otherwise the leader may well be alive: it has lost
//! nothing but its shim, because the daemon holds a duplicate of its terminal. Then its output is taken on from there,
//! with a mark where up to one read may be missing, and the daemon does the stop itself, with the same ladder.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use locald_utils::log::LogWriter;
use locald_utils::process::ladder::{Action, Ladder, ROUND, View};
use locald_utils::process::membership::{self, Evidence};
use locald_utils::process::{self, Process, ProcessId};
use locald_utils::record::{self, Ended, ExitStatus, PidRecord, Stray, Survivor};
use locald_utils::shim_protocol::ShimIdentity;
use locald_utils::spec::ServiceSpec;
use locald_utils::time::UnixMillis;
use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::actor::{Context, Order, Reporter, conclude};
use crate::core::lifecycle::News;

/// 4096 bytes: what a shim reads at a time, and so the most that is lost with it.
const MOST_LOST: u64 = 4096;

/// 1 s: how long a shim that closed its connections may take to be gone.
const SHIM_LIMIT: Duration = Duration::from_secs(1);

/// 1 s: reading what is left in a terminal takes milliseconds.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// A run without a shim.
pub(crate) struct Orphan {
    pub(crate) context: Rc<Context>,
    pub(crate) reporter: Reporter,
    pub(crate) identity: ShimIdentity,
    pub(crate) spec: Arc<ServiceSpec>,
    pub(crate) orders: mpsc::UnboundedReceiver<Order>,
    /// The stop that its shim was told of and has not carried out.
    pub(crate) stop: Option<Order>,
    pub(crate) master: Option<OwnedFd>,
    pub(crate) shim: ProcessId,
}

/// What the sweep of a run has done so far.
struct Sweep {
    ladder: Ladder,
    requested: bool,
    known: BTreeSet<ProcessId>,
    killed: BTreeSet<ProcessId>,
    strays: Vec<Stray>,
}

impl Orphan {
    /// Looks after the run until it is over.
    pub(crate) async fn look_after(mut self) {
        // Its connections close some moments before its children become ours, and only then do they tell how they end.
        // A shim that lives on although its socket is gone does not keep its service from being ended.
        let _ = tokio::time::timeout(SHIM_LIMIT, exited(self.shim, None)).await;
        let dir = self.identity.service_dir.clone();
        let recorded = record::load::<Ended>(&dir, record::EXIT).unwrap_or_else(|error| {
            tracing::error!(%error, service = %self.reporter.key.service, "an exit record cannot be read");
            None
        });
        if let Some(ended) = recorded.filter(|ended| ended.run.id == self.identity.run.id) {
            return self.over(ended).await;
        }
        let record = record::load::<PidRecord>(&dir, record::PID).ok().flatten();
        let Some(record) =
            record.filter(|record| record.run.id == self.identity.run.id && record.boot == self.context.boot)
        else {
            // No instruction of the service ever ran; whatever the shim had started ended with it.
            let ended = self.ended(ExitStatus::Unknown, None, Duration::ZERO, None);
            return self.over(ended).await;
        };
        tracing::warn!(service = %self.reporter.key.service, run = self.reporter.run.0, shim = self.shim.pid, "its shim is gone; the daemon takes over");
        let (spec, leader) = (self.spec.clone(), Some(record.leader));
        self.reporter.report(News::Found { spec, leader, shim: self.shim, started_at: None, ran_for: Duration::MAX });
        self.reporter.report(News::Degraded);
        let pump = self.master.take().and_then(|master| self.pump(master));
        let (status, stop_at_once) = self.wait_for_leader(record.leader).await;
        let mut ended = self.sweep(record.leader, status, stop_at_once).await;
        if let Some(pump) = pump {
            ended.lost_output = MOST_LOST;
            // Nobody of the run is left to write, so the terminal ends; unless a stranger was given it.
            let _ = tokio::time::timeout(DRAIN_LIMIT, pump).await;
        }
        self.over(ended).await;
    }

    async fn over(&self, ended: Ended) {
        for name in [record::PID, record::STOP, record::SHIM] {
            if let Err(error) = record::remove(&self.identity.service_dir, name) {
                tracing::warn!(%error, name, "could not remove a record");
            }
        }
        // The socket of a shim that was killed stays behind.
        let _ = std::fs::remove_file(&self.identity.socket);
        conclude(&self.context, &self.identity.service_dir, &self.reporter, Arc::new(ended)).await;
    }

    /// Goes on writing the log where the shim left off.
    fn pump(&self, master: OwnedFd) -> Option<oneshot::Receiver<()>> {
        let log = LogWriter::open(&self.identity.service_dir, self.reporter.run, UnixMillis::now());
        let master = readable(master);
        match (log, master) {
            (Ok(mut log), Ok(master)) => {
                log.lose(MOST_LOST);
                let (done, over) = oneshot::channel();
                tokio::task::spawn_local(async move {
                    drain(&master, &mut log).await;
                    log.end(UnixMillis::now());
                    let _ = done.send(());
                });
                Some(over)
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, service = %self.reporter.key.service, "its output cannot be taken over");
                None
            }
        }
    }

    /// Waits until the leader has exited, or the run is to be ended. `Some(at_once)` when it is to be ended.
    async fn wait_for_leader(&mut self, leader: ProcessId) -> (Option<ExitStatus>, Option<bool>) {
        if let Some(Order::Stop { at_once }) = self.stop {
            return (None, Some(at_once));
        }
        let exit = self.exit_of(leader);
        tokio::select! {
            status = exited(leader, exit) => (Some(status), None),
            order = self.orders.recv() => match order {
                Some(Order::Stop { at_once }) => (None, Some(at_once)),
                // The daemon goes down; the next one looks again.
                None => std::future::pending().await,
            },
        }
    }

    /// The exit of a leader that came to this daemon as an orphan. One of an earlier daemon's only shows that it is gone.
    fn exit_of(&self, leader: ProcessId) -> Option<oneshot::Receiver<ExitStatus>> {
        let own = std::process::id().cast_signed();
        let is_child = process::look(leader.pid).is_some_and(|process| process.id == leader && process.parent == own);
        is_child.then(|| self.context.reaper.exit_of(leader.pid))
    }

    async fn sweep(&mut self, leader: ProcessId, status: Option<ExitStatus>, stop_at_once: Option<bool>) -> Ended {
        let began = Instant::now();
        let mut actions = Vec::new();
        let grace = if stop_at_once == Some(true) { Duration::ZERO } else { self.spec.stop.grace };
        let mut sweep = Sweep {
            ladder: Ladder::begin(Duration::ZERO, grace, false, &mut actions),
            requested: stop_at_once.is_some(),
            known: BTreeSet::new(),
            killed: BTreeSet::new(),
            strays: Vec::new(),
        };
        let mut exit = if status.is_none() { self.exit_of(leader) } else { None };
        let mut status = status;
        self.reporter.report(News::Stopping {
            kill_at: UnixMillis(UnixMillis::now().0 + u64::try_from(grace.as_millis()).unwrap_or(0)),
        });
        loop {
            let members = match self.members(leader, &sweep.known) {
                Ok(members) => members,
                Err(error) => {
                    // A table that cannot be read shows nobody, but the run is not over by that.
                    tracing::error!(%error, "the process table cannot be read");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            sweep.see(leader, &members);
            let view = View { empty: members.is_empty(), command_over: true };
            sweep.ladder.step(began.elapsed(), view, &mut actions);
            for action in actions.drain(..) {
                match action {
                    Action::Ask => ask(&members, self.spec.stop.signal.0),
                    Action::Kill => sweep.kill(&members),
                    Action::GiveUp => self.reporter.report(News::Survivors(members.iter().map(survivor).collect())),
                    Action::RunCommand | Action::EndCommand => {}
                }
            }
            if sweep.ladder.is_done() {
                break;
            }
            // Members that are no children end without telling, so they are looked at while the sweep lasts.
            let pause = if sweep.ladder.is_stuck() { Duration::from_secs(1) } else { ROUND };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Some(Order::Stop { at_once: true }) = self.orders.recv() => {
                    sweep.ladder.shorten(began.elapsed(), Duration::ZERO, &mut actions);
                }
            }
        }
        if let Some(exit) = &mut exit {
            status = tokio::time::timeout(ROUND, exit).await.ok().and_then(Result::ok);
        }
        self.ended(status.unwrap_or(ExitStatus::Unknown), Some(sweep), began.elapsed(), Some(leader))
    }

    fn members(&self, leader: ProcessId, known: &BTreeSet<ProcessId>) -> io::Result<Vec<Process>> {
        let table = process::all()?;
        let run = self.identity.run.id.as_str();
        let marked =
            |process: &Process| process::marker(process.id.pid, process::RUN_MARKER).is_some_and(|id| id == run);
        let evidence = Evidence { leader, known, excluded: &[std::process::id().cast_signed(), self.shim.pid] };
        Ok(membership::members(&table, &evidence, marked).into_iter().cloned().collect())
    }

    fn ended(&self, status: ExitStatus, sweep: Option<Sweep>, took: Duration, leader: Option<ProcessId>) -> Ended {
        let now = UnixMillis::now();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (requested, known, killed, strays) = match sweep {
            Some(sweep) => (sweep.requested, count(sweep.known.len()), count(sweep.killed.len()), sweep.strays),
            None => (false, 0, 0, Vec::new()),
        };
        Ended {
            run: self.identity.run.clone(),
            status,
            started_at: None,
            exited_at: now,
            ended_at: now,
            stopped: requested,
            forced: killed > 0,
            processes: known.max(u32::from(leader.is_some())),
            killed,
            strays,
            survivors: Vec::new(),
            stop_took: took,
            lost_output: 0,
        }
    }
}

impl Sweep {
    fn see(&mut self, leader: ProcessId, members: &[Process]) {
        for process in members {
            if self.known.insert(process.id) && process.id != leader && process.group != leader.pid {
                let command = process::command(process.id.pid).unwrap_or_else(|| process.name.clone());
                self.strays.push(Stray { process: process.id, command });
            }
        }
    }

    fn kill(&mut self, members: &[Process]) {
        for process in members {
            // As for asking.
            let _ = process::signal(process.id, Signal::SIGKILL);
            self.killed.insert(process.id);
        }
    }
}

/// Asks each member by its identity: without an unreaped leader of ours a group's number proves nothing.
fn ask(members: &[Process], signal: Signal) {
    for process in members {
        // Whoever is gone is gone, and whoever may not be signalled shows as a survivor.
        let _ = process::signal(process.id, signal);
        let _ = process::signal(process.id, Signal::SIGCONT);
    }
}

fn survivor(process: &Process) -> Survivor {
    Survivor {
        process: process.id,
        command: process::command(process.id.pid).unwrap_or_else(|| process.name.clone()),
        uid: process.uid,
        reason: "it did not end within 2s of SIGKILL".to_owned(),
    }
}

/// Waits for the end of a process, and for its status where it is a child.
async fn exited(leader: ProcessId, exit: Option<oneshot::Receiver<ExitStatus>>) -> ExitStatus {
    if let Some(exit) = exit {
        return exit.await.unwrap_or(ExitStatus::Unknown);
    }
    match process::exit_watch(leader).and_then(|watch| watch.map(readable).transpose()) {
        Ok(None) => {}
        Ok(Some(watch)) => {
            // An error of the watch would be one of the runtime; the sweep looks for itself whether anyone is left.
            let _ = watch.readable().await;
        }
        // A kernel that cannot tell is asked once a second.
        Err(_) => {
            while leader.is_alive() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    ExitStatus::Unknown
}

/// Has the runtime watch a descriptor for input. (A kqueue takes no other interest.)
#[expect(
    deprecated,
    reason = "its successor is unsafe for descriptors that may be closed by others; an OwnedFd may not"
)]
fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

async fn drain(master: &AsyncFd<OwnedFd>, log: &mut LogWriter) {
    let mut buffer = [0; 4096];
    loop {
        let Ok(mut ready) = master.readable().await else { return };
        match ready.try_io(|master| nix::unistd::read(master, &mut buffer).map_err(io::Error::from)) {
            // EIO is how a terminal ends whose last slave is closed (tty_ioctl(4)).
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(count)) => log.write(&buffer[..count], UnixMillis::now()),
            Err(_would_block) => {}
        }
    }
}
