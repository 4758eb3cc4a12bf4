//! A run whose shim is gone, or does not answer: what it recorded is believed, what still runs is looked after.
//!
//! If the shim left an exit record, that is how the run ended. Otherwise the leader may well be alive: it has lost
//! nothing but its shim, because the daemon holds duplicates of its terminal, or of its pipes. Then its output is taken on from there,
//! with a mark where up to one read may be missing, and the daemon does the stop itself, with the same sweep. A shim that
//! is there and does not answer is looked below once more, and then killed: what it kept comes to the daemon.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use locald_utils::health::HealthCheck;
use locald_utils::log::{LogWriter, Stream};
use locald_utils::process::cgroup::Cgroup;
use locald_utils::process::ladder::{Action, ROUND, View};
use locald_utils::process::membership::{self, Memory};
use locald_utils::process::sweep::{Account, Sweep, Target};
use locald_utils::process::watch::{ExitStatusWatch, exit_status_watch};
use locald_utils::process::{self, ProcessId, mark};
use locald_utils::record::{self, Ended, ExitStatus, PidRecord, StartFailure, StartStage, StopRecord};
use locald_utils::shim_protocol::{ProbeOutcome, ShimIdentity};
use locald_utils::spec::{Kind, ServiceSpec};
use locald_utils::time::UnixMillis;
use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::actor::{Context, Order, Reporter, conclude};
use crate::adoption;
use crate::checkup::{self, Checkup, Turn};
use crate::core::lifecycle::{News, StartedOn};
use crate::probe::Subject;
use crate::reaper::Held;
use crate::shim_link::Output;

/// 4096 bytes: what a shim reads at a time, and so the most that is lost with it.
const MOST_LOST: u64 = 4096;

/// 1 s: how long a shim that closed its connections, or was killed, may take to be gone.
const SHIM_LIMIT: Duration = Duration::from_secs(1);

/// 1 s: until a record that could not be read is tried again.
const RECORD_PAUSE: Duration = Duration::from_secs(1);

/// 1 s: how often what could not be ended is looked at.
const STUCK_ROUND: Duration = Duration::from_secs(1);

/// 1 s: reading what is left in a terminal, or in pipes, takes milliseconds.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// A run without a shim.
pub(crate) struct Orphan {
    pub(crate) context: Rc<Context>,
    pub(crate) reporter: Reporter,
    pub(crate) identity: ShimIdentity,
    /// Where its records are.
    pub(crate) record_dir: PathBuf,
    pub(crate) spec: Arc<ServiceSpec>,
    pub(crate) port: Option<u16>,
    pub(crate) started_on: StartedOn,
    /// Whether it is ready, or is not any more, as far as it is known.
    pub(crate) readiness: Option<bool>,
    pub(crate) orders: mpsc::UnboundedReceiver<Order>,
    /// The stop that its shim was told of and has not carried out.
    pub(crate) stop: Option<Order>,
    pub(crate) output: Option<Output>,
    pub(crate) shim: ProcessId,
}

/// What is known of the processes of a run, from its record and from what has been seen.
struct Members {
    record: PidRecord,
    cgroup: Option<Cgroup>,
    /// Where orphans of the run may be: with the shim's ancestors, and with this daemon.
    reapers: Vec<ProcessId>,
    /// The leader, if it has become a child of the daemon.
    held: Option<Held>,
    /// The terminal and its number, which is given to nobody else while it is held open here.
    terminal: Option<(OwnedFd, u64)>,
    memory: Memory,
    /// What a launcher has left behind, once it has exited with code 0.
    forked: Option<Forked>,
}

/// What a launcher has left behind.
struct Forked {
    /// Who stands for it, and that process if it has become a child of the daemon.
    main: ProcessId,
    held: Option<Held>,
    /// How the first of those ended that did not end with exit code 0, or else the last.
    exit: Option<ExitStatus>,
}

impl Orphan {
    /// Looks after the run until it is over.
    pub(crate) async fn look_after(mut self) {
        // Its connections close some moments before its children become ours, and only then do they tell how they end.
        let _ = tokio::time::timeout(SHIM_LIMIT, exited(self.shim)).await;
        if self.stop.is_none() && self.shim.is_alive() {
            self.wait_for_shim().await;
        }
        if let Some(ended) = self.recorded_end() {
            return self.over(ended).await;
        }
        let Some(record) = self.recorded_processes().await else {
            // No instruction of the service ever ran; whatever the shim had started ends with it.
            self.end_shim().await;
            if let Some(leaf) = self.leaf() {
                adoption::clear_leaf(&leaf).await;
            }
            let ended = self.ended(ExitStatus::Unknown, false, Account::default(), Duration::ZERO);
            return self.over(ended).await;
        };
        tracing::warn!(service = %self.reporter.key.service, run = self.reporter.run.0, shim = self.shim.pid, "its shim is gone or does not answer; the daemon takes over");
        let mut members = self.members(record);
        if self.shim.is_alive() {
            // Whatever hangs below it now is known by name when it comes to the daemon, or to the first process.
            if let Ok(below) = self.target(&members, Some(self.shim.pid)).members(&members.memory) {
                members.memory.add(&below);
            }
            self.end_shim().await;
            // It may have come back to life for long enough to see the end.
            if let Some(ended) = self.recorded_end() {
                return self.over(ended).await;
            }
        }
        let leader = members.record.leader;
        members.held = self.context.reaper.hold(leader);
        members.terminal = match &self.output {
            Some(Output::Terminal(master)) => process::look(leader.pid)
                .filter(|process| process.id == leader)
                .and_then(|process| Some((master.try_clone().ok()?, process.terminal))),
            Some(Output::Pipes { .. }) | None => None,
        };
        let pump = self.output.take().and_then(|output| self.pump(output));
        let found = self.target(&members, None).members(&members.memory);
        let is_over = !leader.is_alive() && found.as_ref().is_ok_and(Vec::is_empty);
        let roots = found.unwrap_or_default().iter().map(|process| process.id).collect();
        let (status, stop_at_once) = if is_over {
            // It ended with its shim or after it. Until that is told nobody takes it for running.
            (None, None)
        } else {
            self.report_degraded(Some(members.record.main()));
            self.wait_for_end(&mut members, roots).await
        };
        let mut ended = self.sweep(members, status, stop_at_once).await;
        if let Some(mut pump) = pump {
            ended.lost_output = MOST_LOST;
            // Nobody of the run is left to write, so the output ends; unless a stranger was given what it goes to.
            if tokio::time::timeout(DRAIN_LIMIT, &mut pump).await.is_err() {
                pump.abort();
            }
        }
        self.over(ended).await;
    }

    /// Leaves a shim alone that cannot be reached although it is there, its socket having been removed: it goes on writing the
    /// log, and records the end. Until it is gone, or the run is to be ended.
    async fn wait_for_shim(&mut self) {
        tracing::warn!(service = %self.reporter.key.service, run = self.reporter.run.0, shim = self.shim.pid, "its shim lives and cannot be reached");
        let record = record::load::<PidRecord>(&self.record_dir, record::PID);
        let record = record.ok().flatten();
        self.report_degraded(record.map(|record| record.leader));
        tokio::select! {
            () = exited(self.shim) => {}
            order = self.orders.recv() => match order {
                Some(order) => self.stop = Some(order),
                // The daemon goes down; the next one looks again.
                None => std::future::pending().await,
            },
        }
    }

    /// What the shim has recorded of the run's processes. A record that cannot be read is no record that is not there, so it
    /// is waited for: a person may have to close some files. Whoever wants the run ended gets that nevertheless, by whatever
    /// else there is to know its processes by.
    async fn recorded_processes(&mut self) -> Option<PidRecord> {
        loop {
            match record::load::<PidRecord>(&self.record_dir, record::PID) {
                Ok(record) => return record.filter(|record| record.boot == self.context.boot),
                Err(error) => {
                    tracing::error!(%error, dir = %self.record_dir.display(), service = %self.reporter.key.service, run = self.reporter.run.0, "the record of its processes cannot be read");
                }
            }
            if self.stop.is_some() {
                let run = self.identity.run.clone();
                let leaf = self.leaf().map(|leaf| leaf.dir().to_owned());
                return Some(PidRecord::unreadable(run, self.context.boot.clone(), self.shim, leaf));
            }
            self.reporter.report(News::Silent);
            tokio::select! {
                () = tokio::time::sleep(RECORD_PAUSE) => {}
                order = self.orders.recv() => match order {
                    Some(order) => self.stop = Some(order),
                    // The daemon goes down; the next one looks again.
                    None => std::future::pending().await,
                },
            }
        }
    }

    /// Where the run's cgroup is, if it has one.
    fn leaf(&self) -> Option<Cgroup> {
        self.context.cgroups.as_ref().map(|place| place.leaf(self.identity.run.id.as_str()))
    }

    fn report_degraded(&self, leader: Option<ProcessId>) {
        let (spec, shim) = (self.spec.clone(), self.shim);
        let (started_at, ran_for, started_on) = (None, Duration::MAX, self.started_on.clone());
        self.reporter.report(News::Found { spec, leader, shim, started_at, ran_for, started_on });
        self.reporter.report(News::Degraded);
    }

    /// How the shim has recorded that this run ended, if it has.
    fn recorded_end(&self) -> Option<Ended> {
        let exit = record::exit(&self.identity.run.id);
        record::load::<Ended>(&self.record_dir, &exit).unwrap_or_else(|error| {
            tracing::error!(%error, service = %self.reporter.key.service, "an exit record cannot be read");
            None
        })
    }

    /// Kills a shim that does not answer.
    async fn end_shim(&self) {
        // By its identity: one that is gone, or whose number is another's, gets nothing.
        let _ = process::signal(self.shim, Signal::SIGKILL);
        let _ = tokio::time::timeout(SHIM_LIMIT, exited(self.shim)).await;
    }

    fn members(&self, record: PidRecord) -> Members {
        let mut reapers = record.reapers.clone();
        reapers.extend(ProcessId::own());
        let cgroup = record.cgroup.clone().map(Cgroup::at);
        let forked = record.main.map(|main| Forked { main, held: self.context.reaper.hold(main), exit: None });
        Members { record, cgroup, reapers, held: None, terminal: None, memory: Memory::default(), forked }
    }

    fn target<'a>(&'a self, members: &'a Members, keeper: Option<i32>) -> Target<'a> {
        let home = mark::supervisor(self.context.home.state());
        Target {
            is_pinned: members.held.is_some(),
            keeper,
            reapers: &members.reapers,
            terminal: members.terminal.as_ref().map(|(_, number)| *number),
            terminal_session: members.terminal.as_ref().and_then(|(terminal, _)| process::terminal_session(terminal)),
            signal: self.spec.stop.signal.0,
            ..Target::recorded(&members.record, members.cgroup.as_ref(), Some(home))
        }
    }

    async fn over(&self, ended: Ended) {
        for name in [record::PID, record::STOP, record::SHIM] {
            if let Err(error) = record::remove(&self.record_dir, name) {
                tracing::warn!(%error, name, "could not remove a record");
            }
        }
        // The sockets of a shim that was killed stay behind.
        for socket in [&self.identity.socket, &self.context.home.notify_socket(&self.identity.run.id)] {
            let _ = std::fs::remove_file(socket);
        }
        conclude(&self.context, &self.record_dir, &self.reporter, Arc::new(ended)).await;
    }

    /// Goes on writing the log where the shim left off.
    fn pump(&self, output: Output) -> Option<JoinHandle<()>> {
        let log =
            LogWriter::take_over(&self.identity.service_dir, self.reporter.run, &self.spec.log, UnixMillis::now());
        let channels = match output {
            Output::Terminal(master) => readable(master).map(|master| (master, None)),
            Output::Pipes { stdout, stderr } => {
                readable(stdout).and_then(|stdout| Ok((stdout, Some(readable(stderr)?))))
            }
        };
        match (log, channels) {
            (Ok(mut log), Ok((first, second))) => {
                log.lose(MOST_LOST);
                Some(tokio::task::spawn_local(async move {
                    let log = RefCell::new(log);
                    match second {
                        None => drain(&first, None, &log).await,
                        Some(second) => {
                            let stdout = drain(&first, Some(Stream::Stdout), &log);
                            tokio::join!(stdout, drain(&second, Some(Stream::Stderr), &log));
                        }
                    }
                    log.into_inner().end(UnixMillis::now());
                }))
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, service = %self.reporter.key.service, "its output cannot be taken over");
                None
            }
        }
    }

    /// Waits until the run is at its end, or is to be ended. `Some(at_once)` when it is to be ended.
    ///
    /// It is at its end when the leader has exited; if that was a launcher with exit code 0, when nobody is left.
    async fn wait_for_end(
        &mut self,
        members: &mut Members,
        roots: Rc<[ProcessId]>,
    ) -> (Option<ExitStatus>, Option<bool>) {
        if members.record.main.is_none() {
            let (status, stop) = self.wait_for_leader(members, roots).await;
            let has_launched = self.spec.kind == Kind::Forking && status.is_some_and(ExitStatus::is_success);
            if stop.is_some() || !has_launched {
                return (status, stop);
            }
            if self.target(members, None).members(&members.memory).is_ok_and(|left| left.is_empty()) {
                return (status, stop);
            }
        } else if let Some(Order::Stop { at_once }) = self.stop {
            return (None, Some(at_once));
        }
        while let Some(roots) = self.choose_main(members).await {
            let Some(forked) = &mut members.forked else { break };
            let main = forked.main;
            self.reporter.report(News::Forked { main });
            let (status, stop) =
                self.wait_for(main, forked.held.as_mut().map(|held| &mut held.exit), roots, false).await;
            if let Some(status) = status
                && forked.exit.is_none_or(ExitStatus::is_success)
            {
                forked.exit = Some(status);
            }
            if stop.is_some() {
                return (None, stop);
            }
        }
        (members.forked.as_ref().map(|forked| forked.exit.unwrap_or(ExitStatus::Unknown)), None)
    }

    /// Finds who stands for what a launcher has left. Returns all that are left; `None` when nobody is.
    async fn choose_main(&self, members: &mut Members) -> Option<Rc<[ProcessId]>> {
        let left = loop {
            match self.target(members, None).members(&members.memory) {
                Ok(left) => break left,
                // Not knowing is not being over.
                Err(_) => tokio::time::sleep(RECORD_PAUSE).await,
            }
        };
        members.memory.add(&left);
        let main = membership::oldest_root(&left)?;
        // Let go of first: it may be the same one that is held again.
        let exit = members.forked.take().and_then(|forked| forked.exit);
        members.forked = Some(Forked { main, held: self.context.reaper.hold(main), exit });
        Some(left.iter().map(|process| process.id).collect())
    }

    /// Waits until the leader has exited, or the run is to be ended. `Some(at_once)` when it is to be ended.
    ///
    /// Meanwhile its health is checked by what can be asked from outside: `roots` are its processes.
    async fn wait_for_leader(
        &mut self,
        members: &mut Members,
        roots: Rc<[ProcessId]>,
    ) -> (Option<ExitStatus>, Option<bool>) {
        if let Some(Order::Stop { at_once }) = self.stop {
            return (None, Some(at_once));
        }
        let (leader, is_launching) = (members.record.leader, self.spec.kind == Kind::Forking);
        self.wait_for(leader, members.held.as_mut().map(|held| &mut held.exit), roots, is_launching).await
    }

    /// Waits until a process has exited, or the run is to be ended; `held` tells how if it is a child. Meanwhile the health of the run
    /// is checked. Without checks it is ready, but for one that `is_launching`.
    async fn wait_for(
        &mut self,
        process: ProcessId,
        held: Option<&mut oneshot::Receiver<ExitStatus>>,
        roots: Rc<[ProcessId]>,
        is_launching: bool,
    ) -> (Option<ExitStatus>, Option<bool>) {
        let (context, reporter) = (self.context.clone(), self.reporter.clone());
        let is_the_end = self.spec.kind != Kind::Forking;
        let exit = async {
            match held {
                Some(exit) => exit.await.unwrap_or(ExitStatus::Unknown),
                None => {
                    exited(process).await;
                    if is_the_end {
                        // Nobody takes it for ready while its parent is given time to tell how it ended.
                        reporter.report(News::LeaderExited(ExitStatus::Unknown));
                    }
                    let status = exit_status(process).await;
                    context.reaper.remembers(process).unwrap_or(status)
                }
            }
        };
        tokio::pin!(exit);
        let subject = Subject { roots, port: self.port };
        let mut checkup = Checkup::begin(subject, self.checks(), Duration::MAX, self.readiness);
        if let Some(checkup) = checkup.as_mut().filter(|_| self.readiness != Some(true)) {
            checkup.hear_no_more("its shim, which would see that, is gone: restart the service");
        }
        if checkup.is_none() && self.readiness.is_none() && self.spec.kind != Kind::Job && !is_launching {
            // It runs, and nobody is left who could say more.
            self.reporter.report(News::Ready);
        }
        loop {
            tokio::select! {
                status = &mut exit => return (Some(status), None),
                order = self.orders.recv() => match order {
                    Some(Order::Stop { at_once }) => return (None, Some(at_once)),
                    // The daemon goes down; the next one looks again.
                    None => std::future::pending().await,
                },
                turn = checkup::next_turn(&mut checkup) => match turn {
                    Turn::Tell(news) => {
                        let before = self.readiness;
                        self.readiness = news.iter().filter_map(News::readiness).next_back().or(before);
                        news.into_iter().for_each(|news| self.reporter.report(news));
                    }
                    Turn::Run(check, _) => {
                        if let Some(checkup) = &mut checkup {
                            checkup.take_outcome(check, ProbeOutcome::Failed(no_shim()));
                        }
                    }
                },
            }
        }
    }

    /// The checks of a run without its shim. Those that it would ask or hear can pass no more, and do not fail either: what was ready
    /// stays so, and what was not is not called ready. And nobody knows how long it may still take.
    fn checks(&self) -> Vec<HealthCheck> {
        self.spec.checks().into_iter().map(|check| HealthCheck { start_period: None, ..check }).collect()
    }

    async fn sweep(&mut self, mut members: Members, status: Option<ExitStatus>, stop_at_once: Option<bool>) -> Ended {
        let began = Instant::now();
        let mut actions = Vec::new();
        let grace = if stop_at_once == Some(true) { Duration::ZERO } else { self.grace(stop_at_once.is_some()) };
        let memory = std::mem::take(&mut members.memory);
        let mut sweep = Sweep::begin(Duration::ZERO, grace, false, stop_at_once.is_some(), memory, &mut actions);
        let (mut is_told, mut is_unreadable, mut was_quick) = (false, false, false);
        loop {
            let target = self.target(&members, None);
            // Looking takes milliseconds, which those who have had their time are not given.
            let is_due = sweep.kill_at().is_some_and(|kill_at| kill_at <= began.elapsed());
            let empty = match (!is_due).then(|| sweep.look(&target)) {
                None => false,
                Some(Ok(left)) => left.is_empty() && sweep.are_ports_free(began.elapsed()),
                Some(Err(error)) => {
                    // Not knowing is not being empty.
                    if !std::mem::replace(&mut is_unreadable, true) {
                        tracing::warn!(%error, service = %self.reporter.key.service, "who is left cannot be told");
                    }
                    false
                }
            };
            sweep.step(began.elapsed(), View { empty, command_over: true }, &mut actions);
            if sweep.ladder().is_done() {
                break;
            }
            if !std::mem::replace(&mut is_told, true) {
                let kill_at = UnixMillis::now().0 + u64::try_from(grace.as_millis()).unwrap_or(0);
                self.reporter.report(News::Stopping { kill_at: UnixMillis(kill_at) });
            }
            let has_killed = actions.contains(&Action::Kill);
            for action in actions.drain(..) {
                if let Some(survivors) = sweep.carry_out(action, &target) {
                    self.reporter.report(News::Survivors(survivors));
                }
            }
            let living = sweep.living();
            // When all who were killed have ended already, one look tells whether that is all; but not look after look.
            let is_quick = has_killed && living.is_empty() && !was_quick;
            was_quick = is_quick;
            if is_quick {
                tokio::task::yield_now().await;
                continue;
            }
            // How long to wait at least, and at most. When all who are known have ended, others may have taken their place; in
            // their grace period those that hand on as fast as they can are not followed as fast.
            let (least, most) = match sweep.kill_at() {
                Some(kill_at) => (ROUND, kill_at.saturating_sub(began.elapsed())),
                None if sweep.ladder().is_stuck() => (STUCK_ROUND, STUCK_ROUND),
                None if living.is_empty() => (ROUND, ROUND),
                None => (Duration::ZERO, ROUND),
            };
            let all_exited = async {
                tokio::time::sleep(least).await;
                all_exited(&living).await;
            };
            tokio::select! {
                () = tokio::time::sleep(most) => {}
                () = all_exited => {}
                Some(Order::Stop { at_once: true }) = self.orders.recv() => {
                    sweep.ladder().shorten(began.elapsed(), Duration::ZERO, &mut actions);
                }
            }
        }
        let leader = members.record.leader;
        let has_forked = members.forked.is_some();
        // Who stands for the service tells how it ended, and its leader does otherwise.
        let (ended, before, mut held) = match members.forked.take() {
            Some(Forked { main, held, exit }) => (main, exit, held),
            None => (leader, None, members.held.take()),
        };
        let status = match (status.or(before.filter(|status| !status.is_success())), &mut held) {
            (Some(status), _) => status,
            // It is a zombie by now; that the daemon hears of it may take another moment.
            (None, Some(held)) => {
                let exit = tokio::time::timeout(SHIM_LIMIT, &mut held.exit).await;
                exit.ok().and_then(Result::ok).unwrap_or(ExitStatus::Unknown)
            }
            (None, None) => self.context.reaper.remembers(ended).unwrap_or(ExitStatus::Unknown),
        };
        if let Some(cgroup) = &members.cgroup {
            cgroup.remove();
        }
        sweep.reaped(leader.pid);
        let requested = sweep.requested;
        let ended = self.ended(status, requested, sweep.account(), began.elapsed());
        Ended { forked: has_forked, ..ended }
    }

    /// How long the stop that begins may take: what is left of one that was begun before. Writes down when it will be over.
    fn grace(&self, is_asked: bool) -> Duration {
        let whole = self.spec.stop.grace;
        let begun = record::load::<StopRecord>(&self.record_dir, record::STOP).ok().flatten();
        if let Some(record) = begun.filter(|record| record.run.id == self.identity.run.id) {
            return record.grace().min(whole);
        }
        if is_asked {
            let record = StopRecord::begin(self.identity.run.clone(), whole);
            // As the shim: a stop does not wait for a full disk.
            let _ = record::store(&self.record_dir, record::STOP, &record);
        }
        whole
    }

    fn ended(&self, status: ExitStatus, stopped: bool, account: Account, took: Duration) -> Ended {
        let now = UnixMillis::now();
        let Account { processes, killed, strays, holders } = account;
        Ended {
            run: self.identity.run.clone(),
            status,
            forked: false,
            started_at: None,
            exited_at: now,
            ended_at: now,
            stopped,
            forced: killed > 0,
            processes,
            killed,
            strays,
            survivors: holders,
            stop_took: took,
            lost_output: 0,
        }
    }
}

/// Why a command of a check is not run.
fn no_shim() -> StartFailure {
    StartFailure {
        stage: StartStage::Helper,
        errno: 0,
        path: None,
        message: "its shim, which would run it, is gone: restart the service".to_owned(),
        hint: None,
        permanent: false,
    }
}

/// A watch that the runtime can wait for.
struct Awaited(ExitStatusWatch);

impl AsRawFd for Awaited {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Waits for the end of a process that is no child, and for its status where the system tells that to others than parents.
async fn exit_status(process: ProcessId) -> ExitStatus {
    let watch = exit_status_watch(process).and_then(|watch| watch.map(|watch| readable(Awaited(watch))).transpose());
    let Ok(Some(mut watch)) = watch else {
        exited(process).await;
        return ExitStatus::Unknown;
    };
    // As for `exited`.
    let _ = watch.readable().await;
    // Linux tells when the parent has reaped it, which makes no event. A parent that never does keeps it to itself.
    let until = Instant::now() + SHIM_LIMIT;
    loop {
        match watch.get_mut().0.status() {
            Ok(Some(status)) => return status,
            Ok(None) if Instant::now() < until => tokio::time::sleep(ROUND).await,
            Ok(None) | Err(_) => return ExitStatus::Unknown,
        }
    }
}

/// Waits for the end of a process. A zombie has ended.
async fn exited(process: ProcessId) {
    match process::exit_watch(process).and_then(|watch| watch.map(readable).transpose()) {
        Ok(None) => {}
        Ok(Some(watch)) => {
            // An error of the watch would be one of the runtime; the sweep looks for itself whether anyone is left.
            let _ = watch.readable().await;
        }
        // A kernel that cannot tell is asked: soon at first, and once a second in the end.
        Err(_) => {
            let mut pause = ROUND;
            while process.is_alive() {
                tokio::time::sleep(pause).await;
                pause = (pause * 5 / 4).min(Duration::from_secs(1));
            }
        }
    }
}

/// Waits for the end of several processes.
async fn all_exited(processes: &[ProcessId]) {
    for process in processes {
        exited(*process).await;
    }
}

/// Has the runtime watch a descriptor for input. (A kqueue takes no other interest.)
#[expect(
    deprecated,
    reason = "its successor is unsafe for descriptors that may be closed by others; an owned one may not"
)]
fn readable<T: AsRawFd>(fd: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// Brings what comes to the log, until no more can.
async fn drain(channel: &AsyncFd<OwnedFd>, stream: Option<Stream>, log: &RefCell<LogWriter>) {
    let mut buffer = [0; 4096];
    loop {
        let Ok(mut ready) = channel.readable().await else { return };
        match ready.try_io(|channel| nix::unistd::read(channel, &mut buffer).map_err(io::Error::from)) {
            // EIO is how a terminal ends whose last slave is closed (tty_ioctl(4)).
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(count)) => {
                let mut log = log.borrow_mut();
                log.switch(stream, UnixMillis::now());
                log.write(&buffer[..count], UnixMillis::now());
            }
            Err(_would_block) => {}
        }
    }
}
