//! One task per run: carries out what the core orders, and reports what it sees.
//!
//! It has the run begun ([`crate::launch`]) or finds the shim that runs already, and then stands between the shim and the core
//! until the run is over. It decides nothing: an exit is recorded and reported, what follows from
//! it is for the core. When the shim dies, [`crate::orphan`] looks after what it left.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use locald_utils::fail;
use locald_utils::name::{ProjectName, RunNumber, ServiceKey};
use locald_utils::paths::{Home, service_dir};
use locald_utils::process::cgroup::Hierarchy;
use locald_utils::process::{self, ProcessId};
use locald_utils::record::{self, Ended, ShimRecord};
use locald_utils::shim_protocol::{FromShim, Phase, ShimIdentity, Snapshot, ToShim};
use locald_utils::spec::{Environment, Ports, ServiceSpec};
use locald_utils::time::UnixMillis;
use nix::errno::Errno;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_local;
use tokio::time::Instant;

use crate::budget::Budget;
use crate::checkout::Checkouts;
use crate::checkup::{self, Checkup, Turn};
use crate::core::lifecycle::{News, StartedOn};
use crate::launch::{set_up, shim_failure};
use crate::ledger::{BaseEnvironment, Ledger};
use crate::newborn::Standby;
use crate::orphan;
use crate::probe::Subject;
use crate::reaper::Reaper;
use crate::shim_link::{Output, ShimLink};
use crate::shim_program::ShimProgram;

/// What every actor needs.
pub(crate) struct Context {
    pub(crate) home: Home,
    pub(crate) ledger: Ledger,
    pub(crate) reaper: Reaper,
    pub(crate) checkouts: Checkouts,
    /// Where runs have cgroups of their own, if anywhere.
    pub(crate) cgroups: Option<Hierarchy>,
    pub(crate) boot: String,
    pub(crate) epoch: u64,
    pub(crate) shim_program: ShimProgram,
    pub(crate) budget: Budget,
    /// A shim for whatever runs next.
    pub(crate) standby: Standby,
    /// The daemon's log, for what a shim has to say when it cannot say it over its socket.
    pub(crate) log: OwnedFd,
    // Unbounded: a few messages per run and minute, and an actor must never wait for the core.
    pub(crate) reports: mpsc::UnboundedSender<Report>,
}

/// What an actor reports to the core.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) key: ServiceKey,
    pub(crate) run: RunNumber,
    pub(crate) news: News,
    /// Dropped when the core has heard it and what follows from it is on its way to the ledger.
    pub(crate) heard: Option<oneshot::Sender<()>>,
}

/// What the core orders of an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// End the run; without its grace period if `at_once`.
    Stop { at_once: bool },
}

/// A run to be carried out.
pub(crate) struct Assignment {
    pub(crate) key: ServiceKey,
    pub(crate) run: RunNumber,
    pub(crate) project_name: ProjectName,
    pub(crate) project_dir: PathBuf,
    pub(crate) spec: Arc<ServiceSpec>,
    pub(crate) ports: Ports,
    /// What every service of the project is told of the ports of all.
    pub(crate) exports: Environment,
    pub(crate) environment: Arc<BaseEnvironment>,
    pub(crate) asked_by: String,
    /// The runs of what it depends on.
    pub(crate) started_on: StartedOn,
}

/// Starts a run.
pub(crate) fn start(context: Rc<Context>, assignment: Assignment) -> mpsc::UnboundedSender<Order> {
    let (orders, inbox) = mpsc::unbounded_channel();
    spawn_local(async move {
        let (key, run) = (assignment.key.clone(), assignment.run);
        let reporter = Reporter { context: context.clone(), key, run };
        let share = context.budget.run();
        let started = match share {
            Ok(_) => set_up(&context, &assignment).await,
            Err(_) => Err(shim_failure("no descriptors are left for another service", &Errno::EMFILE.into())),
        };
        match started {
            Ok((link, identity)) => {
                let port = assignment.ports.get(&assignment.key.service).copied();
                let (spec, started_on) = (assignment.spec, assignment.started_on);
                let record_dir = record::place_of(&identity.service_dir, &identity.run.id);
                let (readiness, stop, output, orders) = (None, None, None, inbox);
                let actor = Actor {
                    context: context.clone(),
                    reporter,
                    identity,
                    record_dir,
                    spec,
                    port,
                    started_on,
                    readiness,
                    orders,
                    stop,
                    output,
                };
                actor.supervise(link.shim, Some(link)).await;
            }
            Err(failure) => {
                tracing::warn!(service = %reporter.key.service, run = reporter.run.0, reason = failure.message, "could not start");
                reporter.report(News::StartFailed(failure));
            }
        }
        drop(share);
        context.standby.rest(&context).await;
    });
    orders
}

/// Takes over a run that an earlier daemon started. What its shim says of spec and port is what counts, as long as there is one.
pub(crate) fn adopt(
    context: Rc<Context>,
    record_dir: PathBuf,
    record: ShimRecord,
    spec: Arc<ServiceSpec>,
    port: Option<u16>,
) -> mpsc::UnboundedSender<Order> {
    let (orders, inbox) = mpsc::unbounded_channel();
    spawn_local(async move {
        // What runs is taken over however many there are.
        let share = context.budget.run();
        let reporter = Reporter { context: context.clone(), key: record.run.key(), run: record.run.number };
        let project_dir = context.home.project(&record.run.project, &record.run.project_name);
        let identity = ShimIdentity {
            service_dir: service_dir(&project_dir, &record.run.service),
            project_dir: record.project_dir,
            socket: record.socket,
            run: record.run,
            open_files: None,
            cgroup: None,
        };
        let (started_on, readiness) = (StartedOn::new(), None);
        let (stop, output, orders) = (None, None, inbox);
        let actor = Actor {
            context: context.clone(),
            reporter,
            identity,
            record_dir,
            spec,
            port,
            started_on,
            readiness,
            orders,
            stop,
            output,
        };
        actor.supervise(record.shim, None).await;
        drop(share);
        context.standby.rest(&context).await;
    });
    orders
}

/// Tells the core.
#[derive(Clone)]
pub(crate) struct Reporter {
    context: Rc<Context>,
    pub(crate) key: ServiceKey,
    pub(crate) run: RunNumber,
}

impl Reporter {
    pub(crate) fn report(&self, news: News) {
        // The core goes last; when it has gone, nobody is left to be told.
        let _ = self.context.reports.send(Report { key: self.key.clone(), run: self.run, news, heard: None });
    }

    /// Tells the core, and waits until what follows from it is in the ledger.
    async fn report_for_good(&self, news: News) {
        let (sender, heard) = oneshot::channel();
        let report = Report { key: self.key.clone(), run: self.run, news, heard: Some(sender) };
        if self.context.reports.send(report).is_ok() {
            // Never sent, only dropped.
            let _ = heard.await;
            self.context.ledger.flush().await;
        }
    }
}

/// The task of one run.
struct Actor {
    context: Rc<Context>,
    reporter: Reporter,
    identity: ShimIdentity,
    /// Where its records are.
    record_dir: PathBuf,
    spec: Arc<ServiceSpec>,
    port: Option<u16>,
    /// The runs of what it depends on.
    started_on: StartedOn,
    /// Whether it is ready, or is not any more; `None` before it ever was.
    readiness: Option<bool>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// The stop that was ordered. A shim that dies may not have heard of it, so whoever comes after it is told again.
    stop: Option<Order>,
    /// The duplicates of what its output is read from.
    output: Option<Output>,
}

/// How a time with a shim came to its end.
enum Parting {
    /// The run is over, or another daemon has it.
    Over,
    /// The connection is gone.
    Lost,
    /// The shim does not carry out what it was told.
    Silent,
}

/// 2 s: how long a shim may take to begin a stop. It takes less than a millisecond; one that is stopped, or sleeps on a disk
/// that does not answer, never does it.
const SILENCE_LIMIT: Duration = Duration::from_secs(2);

/// 5 s: the longest time for which a shim that breaks off, or does not answer, is left alone.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// 1 s: how long a shim that was told to go on (SIGCONT) is given.
const WAKE_LIMIT: Duration = Duration::from_secs(1);

/// A shim's answer that is waited for, and not for ever.
#[derive(Default)]
struct Silence {
    until: Option<Instant>,
    is_woken: bool,
}

impl Silence {
    /// Begins to wait for an answer.
    fn begin(&mut self) {
        self.until.get_or_insert(Instant::now() + SILENCE_LIMIT);
    }

    /// Waits until the shim is not worth waiting for any longer; for ever when nothing was asked of it. May be dropped and
    /// called again.
    async fn is_over(&mut self, shim: ProcessId) {
        let Some(until) = self.until else { return std::future::pending().await };
        tokio::time::sleep_until(until).await;
        if !self.is_woken {
            self.is_woken = true;
            // Somebody may have stopped it. One that is gone, or whose number is another's, gets nothing.
            let _ = process::signal(shim, nix::sys::signal::Signal::SIGCONT);
            let until = until + WAKE_LIMIT;
            self.until = Some(until);
            tokio::time::sleep_until(until).await;
        }
    }
}

impl Actor {
    /// Stands between the shim and the core until the run is over: as long as there is a shim that answers, and then without.
    async fn supervise(mut self, shim: ProcessId, mut link: Option<ShimLink>) {
        Standby::prepare(&self.context);
        // A shim that breaks off again and again is no reason to do nothing else.
        let mut pause = Duration::ZERO;
        loop {
            let found = match link.take() {
                Some(link) => Some(link),
                None => self.find(shim, pause).await,
            };
            let Some(mut link) = found else { break };
            let began = Instant::now();
            match self.converse(&mut link).await {
                Parting::Over => return,
                Parting::Lost if shim.is_alive() => {}
                Parting::Lost => break,
                Parting::Silent => {
                    tracing::warn!(service = %self.reporter.key.service, shim = shim.pid, "its shim does not do what it is told");
                    break;
                }
            }
            pause = if began.elapsed() > LONGEST_PAUSE { Duration::ZERO } else { longer(pause) };
        }
        self.inherit(shim).await;
    }

    /// Looks for a shim after a pause, and as long as it takes: no answer is no death. Only a stop is not kept waiting. One that is
    /// found is asked how its run stands.
    async fn find(&mut self, shim: ProcessId, mut pause: Duration) -> Option<ShimLink> {
        let mut silence = Silence::default();
        if self.stop.is_some() {
            silence.begin();
            // It is asked at least once before it counts as silent.
            pause = pause.min(SILENCE_LIMIT / 10);
        }
        let found = loop {
            let search = knock(&self.context, &self.reporter, &self.identity, pause);
            tokio::select! {
                link = search => break link,
                Some(order) = self.orders.recv() => {
                    self.stop = Some(order);
                    silence.begin();
                    pause = Duration::ZERO;
                }
                () = silence.is_over(shim) => break None,
            }
        };
        let mut link = found?;
        // A shim that has nothing to carry, or breaks off now, is seen by what follows.
        let _ = link.send(&ToShim::Status).await;
        if let Some(order) = self.stop {
            let _ = link.send(&self.in_shims_words(order)).await;
        }
        Some(link)
    }

    async fn converse(&mut self, link: &mut ShimLink) -> Parting {
        let shim = link.shim;
        let mut checkup: Option<Checkup> = None;
        let mut silence = Silence::default();
        if self.stop.is_some() {
            silence.begin();
        }
        loop {
            tokio::select! {
                // What the shim has said comes before what the time says.
                biased;
                message = link.receive() => match message {
                    Ok(Some(message)) => {
                        if answers_a_stop(&message) {
                            silence = Silence::default();
                        }
                        if let Some(parting) = self.hear(link, message, &mut checkup).await {
                            return parting;
                        }
                    }
                    Ok(None) => return Parting::Lost,
                    Err(error) => {
                        tracing::warn!(%error, service = %self.reporter.key.service, "the connection to its shim broke");
                        return Parting::Lost;
                    }
                },
                Some(order) = self.orders.recv() => {
                    checkup = None;
                    self.stop = Some(order);
                    silence.begin();
                    if link.send(&self.in_shims_words(order)).await.is_err() {
                        return Parting::Lost;
                    }
                }
                () = silence.is_over(shim) => return Parting::Silent,
                turn = checkup::next_turn(&mut checkup) => match turn {
                    Turn::Tell(news) => {
                        let before = self.readiness;
                        self.readiness = news.iter().filter_map(News::readiness).next_back().or(before);
                        if let Some(ready) = self.readiness.filter(|_| self.readiness != before)
                            && link.send(&ToShim::Judged { ready }).await.is_err()
                        {
                            return Parting::Lost;
                        }
                        news.into_iter().for_each(|news| self.reporter.report(news));
                    }
                    Turn::Run(check, limit) => {
                        if link.send(&ToShim::Probe { check, limit }).await.is_err() {
                            return Parting::Lost;
                        }
                    }
                }
            }
        }
    }

    fn in_shims_words(&self, order: Order) -> ToShim {
        let Order::Stop { at_once } = order;
        ToShim::Stop { grace: if at_once { Duration::ZERO } else { self.spec.stop.grace } }
    }

    async fn hear(&mut self, link: &mut ShimLink, message: FromShim, checkup: &mut Option<Checkup>) -> Option<Parting> {
        match message {
            // The last three are for whoever attaches.
            FromShim::Hello { .. }
            | FromShim::Unsupported
            | FromShim::Attached { .. }
            | FromShim::Occupied { .. }
            | FromShim::NoTerminal => {}
            FromShim::Started { leader, at } => {
                self.take_output(link);
                self.context.ledger.started(&self.identity.run, leader.pid, at);
                self.ask_for_commit();
                self.reporter.report(News::Started { leader, shim: link.shim, at });
                *checkup = self.checkup(link.shim, Duration::ZERO);
            }
            FromShim::Snapshot(snapshot) => {
                self.take_output(link);
                *checkup = self.take_snapshot(link.shim, *snapshot);
            }
            FromShim::StartFailed(failure) => {
                self.context.ledger.not_started(&self.identity.run, &failure);
                self.ask_for_commit();
                // It leaves by itself when it hears nothing.
                let _ = link.send(&ToShim::Ack).await;
                self.reporter.report(News::StartFailed(failure));
                return Some(Parting::Over);
            }
            FromShim::LeaderExited { status, .. } => {
                *checkup = None;
                self.reporter.report(News::LeaderExited(status));
            }
            FromShim::Forked { main } => self.reporter.report(News::Forked { main }),
            FromShim::Stopping { kill_at } => {
                *checkup = None;
                self.reporter.report(News::Stopping { kill_at });
            }
            FromShim::Sign { check } => {
                if let Some(checkup) = checkup {
                    checkup.take_sign(check);
                }
            }
            FromShim::Probed { check, outcome } => {
                if let Some(checkup) = checkup {
                    checkup.take_outcome(check, outcome);
                }
            }
            FromShim::Survivors { survivors } => self.reporter.report(News::Survivors(survivors)),
            FromShim::Ended(ended) => {
                self.conclude(Arc::from(ended)).await;
                let _ = link.send(&ToShim::Ack).await;
                return Some(Parting::Over);
            }
            FromShim::Fenced { epoch } => {
                tracing::error!(epoch, "another daemon has taken over; leaving its runs alone");
                self.reporter.report(News::Silent);
                return Some(Parting::Over);
            }
        }
        None
    }

    /// Keeps what came with a message. It may be missing where descriptors are short, or the run is over.
    fn take_output(&mut self, link: &mut ShimLink) {
        match link.take_output() {
            Some(output) => self.output = Some(output),
            None => {
                tracing::debug!(service = %self.reporter.key.service, "no terminal and no pipes came with what its shim said");
            }
        }
    }

    fn checkup(&self, shim: ProcessId, ran_for: Duration) -> Option<Checkup> {
        let port = self.spec.port.and(self.port);
        Checkup::begin(Subject { roots: [shim].into(), port }, self.spec.checks(), ran_for, self.readiness)
    }

    fn take_snapshot(&mut self, shim: ProcessId, snapshot: Snapshot) -> Option<Checkup> {
        let Snapshot { kept, phase, leader, main, started_at, signs, ready, .. } = snapshot;
        self.readiness = ready.or(self.readiness);
        if let Some(kept) = kept {
            self.port = kept.port;
            self.spec = Arc::new(kept.spec);
            self.started_on = kept.started_on;
        }
        match phase {
            Phase::Running => {
                let ran_for = started_at.map_or(Duration::ZERO, |at| UnixMillis::now().since(at));
                let (spec, started_on) = (self.spec.clone(), self.started_on.clone());
                self.reporter.report(News::Found { spec, leader, shim, started_at, ran_for, started_on });
                main.into_iter().for_each(|main| self.reporter.report(News::Forked { main }));
                let mut checkup = self.checkup(shim, ran_for)?;
                signs.into_iter().for_each(|check| checkup.take_sign(check));
                return Some(checkup);
            }
            Phase::Stopping { kill_at } => self.reporter.report(News::Stopping { kill_at }),
            Phase::Stuck { survivors } => self.reporter.report(News::Survivors(survivors)),
            // An idle shim leaves when the connection it was born with has ended; the end of an ended one follows.
            Phase::Idle | Phase::Ended => {}
        }
        None
    }

    /// Has the commit written to the run's record. Only now: git takes longer than a start, and would take the processor from it.
    fn ask_for_commit(&self) {
        self.context.checkouts.record(&self.identity.project_dir, self.identity.run.clone());
    }

    /// Puts the end of the run on record, then tells the core.
    pub(crate) async fn conclude(&self, ended: Arc<Ended>) {
        conclude(&self.context, &self.record_dir, &self.reporter, ended).await;
    }

    /// The shim is gone: what it recorded, or what still runs, tells how the run stands.
    async fn inherit(self, shim: ProcessId) {
        let Self { context, reporter, identity, record_dir, spec, port, started_on, readiness, .. } = self;
        let (orders, stop, output) = (self.orders, self.stop, self.output);
        let orphan = orphan::Orphan {
            context,
            reporter,
            identity,
            record_dir,
            spec,
            port,
            started_on,
            readiness,
            orders,
            stop,
            output,
            shim,
        };
        orphan.look_after().await;
    }
}

/// Knocks at a shim until it answers, for the first time after a pause. `None` when nobody is there, or another run's shim.
async fn knock(
    context: &Context,
    reporter: &Reporter,
    identity: &ShimIdentity,
    mut pause: Duration,
) -> Option<ShimLink> {
    loop {
        tokio::time::sleep(pause).await;
        match ShimLink::connect(&identity.socket, context.epoch).await {
            Ok(link) if link.run.id == identity.run.id => return Some(link),
            Ok(_) => return None,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return None;
            }
            Err(error) => {
                tracing::warn!(%error, service = %reporter.key.service, "its shim does not answer");
                reporter.report(News::Silent);
                pause = longer(pause);
            }
        }
    }
}

/// Whether a message shows that a stop is under way. Anything else may have been on its way when the stop was ordered, and says
/// nothing of whether it was heard.
fn answers_a_stop(message: &FromShim) -> bool {
    match message {
        FromShim::Stopping { .. }
        | FromShim::Survivors { .. }
        | FromShim::Ended(_)
        | FromShim::StartFailed(_)
        | FromShim::Fenced { .. } => true,
        FromShim::Hello { .. }
        | FromShim::Started { .. }
        | FromShim::Snapshot(_)
        | FromShim::LeaderExited { .. }
        | FromShim::Forked { .. }
        | FromShim::Sign { .. }
        | FromShim::Probed { .. }
        | FromShim::Attached { .. }
        | FromShim::Occupied { .. }
        | FromShim::NoTerminal
        | FromShim::Unsupported => false,
    }
}

/// How long to leave a shim alone that has broken off, or did not answer, after such a pause: 50 ms, then twice as long each time.
fn longer(pause: Duration) -> Duration {
    (pause * 2).clamp(Duration::from_millis(50), LONGEST_PAUSE)
}

/// Puts the end of a run on record, tells the core, and takes away what recorded the end until then.
///
/// The record goes last, because a daemon that dies before finds it again, and what it tells twice is taken once. The core does
/// not wait for the ledger, which takes in what follows from an end after the end itself. That a job has completed, and need
/// not run again, is for the core to decide and the ledger to keep: it is waited for as well.
pub(crate) async fn conclude(context: &Context, record_dir: &Path, reporter: &Reporter, ended: Arc<Ended>) {
    let exit = record::exit(&ended.run.id);
    let record = async {
        let recorded = context.ledger.ended(ended.clone()).await;
        fail::point("the end of a run is in the ledger");
        recorded
    };
    // The first is begun first, so it is before the other in the ledger's queue.
    let (recorded, ()) = tokio::join!(biased; record, reporter.report_for_good(News::Ended(ended.clone())));
    fail::point("what follows from an end is in the ledger");
    match recorded {
        Ok(()) => {
            let removed = record::remove(record_dir, &exit).and_then(|()| record::leave(record_dir));
            if let Err(error) = removed {
                tracing::warn!(%error, service = %reporter.key.service, "could not remove an exit record");
            }
        }
        Err(error) => {
            tracing::error!(%error, service = %reporter.key.service, "could not record an exit; its record stays")
        }
    }
}
