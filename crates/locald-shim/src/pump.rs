//! The shim's one loop: waits on everything at once, keeps the output flowing, and tells the daemon what happens.
//!
//! The clock is read here and nowhere else in the shim. Each turn waits, hears what is new, and lets the run take a
//! step; no turn waits for anything but `poll`. Output has priority: it is read in every phase, because a service that
//! cannot write does not end.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use locald_utils::fail;
use locald_utils::log::LogWriter;
use locald_utils::process::cgroup::Cgroup;
use locald_utils::process::mark::SUPERVISOR_MARKER;
use locald_utils::process::membership::Memory;
use locald_utils::process::sweep::{Account, Sweep};
use locald_utils::process::watch::MemberWatch;
use locald_utils::process::{self, ProcessId, sys};
use locald_utils::record::{self, Ended, ExitStatus, PidRecord, StartFailure, StartStage};
use locald_utils::shim_protocol::{FromShim, PROTOCOL, Phase, ShimIdentity, Snapshot, StartOrder, ToShim};
use locald_utils::spec::Environment;
use locald_utils::time::UnixMillis;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::link::{Incoming, Link, Viewer};
use crate::output::Output;
use crate::probe::Probe;
use crate::signs::{Ear, Notification, Signs};
use crate::spawn::{Helper, Plan, Progress, Spare, failure};

/// 10 s: how long a shim waits to be told what to run, and how long to be told that its last word was heard.
const PATIENCE: Duration = Duration::from_secs(10);

/// Signals of this process, as something to poll.
pub(crate) struct SignalPipe(SignalDelivery<UnixStream, SignalOnly>);

impl SignalPipe {
    /// Catches SIGCHLD, and the signals that are passed on to the service.
    pub(crate) fn install() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let caught = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];
        let numbers = caught.map(|signal| signal as i32);
        Ok(Self(SignalDelivery::with_pipe(read, write, SignalOnly, numbers)?))
    }
}

/// Something that poll reported.
enum Source {
    Signals,
    Listener,
    Connection(usize),
    /// A channel of the output.
    Output(usize),
    Helper,
    Command,
    Members,
    Sign(Ear),
    Probe(usize),
    ProbeOutput(usize),
}

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
    failed: Option<StartFailure>,
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
    fn record(&self, identity: &ShimIdentity, boot: &str, shim: ProcessId) -> PidRecord {
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

/// How far the shim is.
pub(crate) enum State {
    /// Waits for Start, with the helper that will be the leader.
    Idle(Spare),
    /// Carries the run.
    Live(Box<Live>),
    /// Has told how it ended and waits for the acknowledgement.
    Told(Box<FromShim>, Duration),
    /// May go.
    Over,
}

/// The shim of one run.
pub(crate) struct Pump {
    pub(crate) identity: ShimIdentity,
    /// Where the run's records are.
    pub(crate) record_dir: PathBuf,
    boot: String,
    pub(crate) shim: ProcessId,
    /// The mark of the home that this shim and its daemon carry.
    pub(crate) home: Option<OsString>,
    pub(crate) link: Link,
    signals: SignalPipe,
    origin: Instant,
    pub(crate) state: State,
    /// From the start until all of it has been read.
    pub(crate) output: Option<Output>,
    signs: Signs,
    /// What a daemon has found last: that the run is ready, or is not any more.
    ready: Option<bool>,
    lost_output: u64,
    /// Whether nothing on disk speaks of this shim any more.
    is_forgotten: bool,
    /// Whether the program runs since this turn, and all that starting it took can be given back.
    is_settled: bool,
}

impl Pump {
    /// A shim that waits to be told what to run.
    pub(crate) fn new(
        identity: ShimIdentity,
        record_dir: PathBuf,
        boot: String,
        shim: ProcessId,
        link: Link,
        signals: SignalPipe,
        spare: Spare,
    ) -> Self {
        Self {
            identity,
            record_dir,
            boot,
            shim,
            home: std::env::var_os(SUPERVISOR_MARKER),
            link,
            signals,
            origin: Instant::now(),
            state: State::Idle(spare),
            output: None,
            signs: Signs::default(),
            ready: None,
            lost_output: 0,
            is_forgotten: false,
            is_settled: false,
        }
    }

    /// Runs until the shim may go.
    pub(crate) fn run(mut self) {
        while !matches!(self.state, State::Over) {
            let just_settled = std::mem::take(&mut self.is_settled);
            for (source, events) in self.wait(just_settled) {
                self.handle(&source, events);
            }
            self.step();
        }
        self.leave();
    }

    pub(crate) fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// When something is due even if nothing happens.
    fn deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Idle(_) => Some(PATIENCE),
            State::Live(live) => {
                let stop = live.stop.as_ref().and_then(|stop| stop.deadline(self.now()));
                live.probes.iter().filter_map(Probe::until).chain(stop).chain(live.look_at).min()
            }
            State::Told(_, until) => Some(*until),
            State::Over => Some(Duration::ZERO),
        }
    }

    /// Sleeps until something happens; with `release`, holding no more memory than the sleep needs.
    fn wait(&self, release: bool) -> Vec<(Source, PollFlags)> {
        let mut sources = vec![Source::Signals];
        let mut fds = vec![PollFd::new(self.signals.0.get_read().as_fd(), PollFlags::POLLIN)];
        for (index, (fd, interest)) in self.link.interests().enumerate() {
            sources.push(if index == 0 { Source::Listener } else { Source::Connection(index - 1) });
            fds.push(PollFd::new(fd, interest));
        }
        for (index, fd) in self.output.iter().flat_map(Output::channels).enumerate() {
            sources.push(Source::Output(index));
            fds.push(PollFd::new(fd, PollFlags::POLLIN));
        }
        if let State::Live(live) = &self.state {
            let helpers = [
                (Source::Helper, live.helper.as_ref().map(|(helper, _)| helper)),
                (Source::Command, live.command.as_ref()),
            ];
            if let Some(fd) = live.watch.as_fd() {
                sources.push(Source::Members);
                fds.push(PollFd::new(fd, PollFlags::POLLIN));
            }
            let helpers = helpers.into_iter().filter_map(|(source, helper)| Some((source, helper?.listening()?)));
            let signs = self.signs.ears().map(|(ear, fd)| (Source::Sign(ear), fd));
            let probes = live.probes.iter().enumerate().flat_map(|(index, probe)| {
                let helper = probe.helper.listening().map(|fd| (Source::Probe(index), fd));
                helper.into_iter().chain(probe.output().map(|fd| (Source::ProbeOutput(index), fd)))
            });
            for (source, fd) in helpers.chain(signs).chain(probes) {
                sources.push(source);
                fds.push(PollFd::new(fd, PollFlags::POLLIN));
            }
        }
        let timeout = match self.deadline() {
            // Rounded up: waking a fraction of a millisecond early would only mean waking twice.
            Some(deadline) => {
                let ms = deadline.saturating_sub(self.now()).as_micros().div_ceil(1000);
                PollTimeout::from(u16::try_from(ms).unwrap_or(u16::MAX))
            }
            None => PollTimeout::NONE,
        };
        // As late as this, because whatever runs afterwards brings its pages back.
        if release {
            process::release_memory();
        }
        // Interrupted by a signal: the signal's own descriptor tells the next turn. Out of memory: try again.
        if poll(&mut fds, timeout).is_err() {
            return Vec::new();
        }
        let events: Vec<PollFlags> = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        sources.into_iter().zip(events).filter(|(_, events)| !events.is_empty()).collect()
    }

    fn handle(&mut self, source: &Source, events: PollFlags) {
        match source {
            Source::Signals => self.take_signals(),
            Source::Listener => self.link.accept(),
            Source::Connection(index) => self.hear(*index, events),
            Source::Output(index) => self.read_output(*index),
            Source::Helper => self.hear_helper(),
            Source::Command => self.hear_command(),
            Source::Members => self.hear_members(),
            Source::Sign(ear) => {
                let check = self.signs.hear(*ear);
                self.tell_signs(check);
            }
            Source::Probe(index) => self.hear_probe(*index),
            Source::ProbeOutput(index) => self.hear_probe_output(*index),
        }
    }

    /// Lets the run take a step after whatever happened in this turn.
    fn step(&mut self) {
        self.drop_ended_connections();
        match &self.state {
            State::Idle(_) => {
                if !self.link.has_connection() || self.now() >= PATIENCE {
                    self.give_up();
                }
            }
            State::Live(_) => {
                self.end_late_probes();
                self.step_run();
            }
            State::Told(_, until) => {
                if !self.link.has_daemon() || self.now() >= *until {
                    self.state = State::Over;
                }
            }
            State::Over => {}
        }
    }

    // ---- connections

    fn hear(&mut self, index: usize, events: PollFlags) {
        if events.contains(PollFlags::POLLOUT) {
            self.link.flush(index);
        }
        if !events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return;
        }
        let mut incoming = Vec::new();
        if !self.link.receive(index, &mut incoming) {
            self.link.end(index);
        }
        for message in incoming {
            match message {
                Incoming::Hello(index) => self.greet(index),
                Incoming::Message(index, message) => self.obey(index, message),
                Incoming::Attach(index, viewer) => self.attach(index, viewer),
            }
        }
    }

    fn drop_ended_connections(&mut self) {
        self.link.drop_ended();
    }

    fn greet(&mut self, index: usize) {
        let hello = FromShim::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            run: self.identity.run.clone(),
            shim: self.shim,
        };
        self.link.send(index, &hello, &[]);
        if let State::Told(last, _) = &self.state {
            let last = last.clone();
            self.link.send(index, &last, &[]);
        }
    }

    fn obey(&mut self, index: usize, message: ToShim) {
        match message {
            // Answered by the link, or not for a daemon.
            ToShim::Hello { .. } | ToShim::Attach { .. } => {}
            ToShim::Start(order) => self.start(*order),
            ToShim::Status => self.snapshot(index),
            ToShim::Stop { grace } => self.stop(grace),
            ToShim::Judged { ready } => self.ready = Some(ready),
            ToShim::Probe { check, limit } => self.probe(check, limit),
            ToShim::Signal { signal } => self.pass_on(signal.0),
            ToShim::Ack => {
                if matches!(self.state, State::Told(..)) {
                    self.state = State::Over;
                }
            }
        }
    }

    fn snapshot(&mut self, index: usize) {
        let (phase, live) = match &self.state {
            State::Idle(_) => (Phase::Idle, None),
            State::Live(live) => (self.phase(live), Some(live)),
            State::Told(..) | State::Over => (Phase::Ended, None),
        };
        let snapshot = Snapshot {
            run: self.identity.run.clone(),
            kept: live.map(|live| live.order.keep.clone()),
            phase,
            leader: live.map(|live| live.leader),
            main: live.and_then(|live| live.forked.as_ref()?.main),
            started_at: live.and_then(|live| live.started_at),
            signs: self.signs.seen().to_vec(),
            ready: self.ready,
        };
        let descriptors = self.output.as_ref().map(Output::descriptors).unwrap_or_default();
        self.link.send(index, &FromShim::Snapshot(Box::new(snapshot)), &descriptors);
    }

    /// Gives somebody a place in front of the terminal, if there is one and nobody else writes to it.
    fn attach(&mut self, index: usize, viewer: Viewer) {
        let is_running = matches!(&self.state, State::Live(live) if live.started_at.is_some() && live.helper.is_none());
        if self.output.as_ref().is_some_and(|output| output.terminal_number().is_none()) {
            return self.link.send(index, &FromShim::NoTerminal, &[]);
        }
        let master = self.output.as_ref().and_then(Output::master).filter(|_| is_running).cloned();
        let size = master.as_ref().and_then(|master| sys::window_size(master).ok());
        let (Some(master), Some((rows, columns))) = (master, size) else {
            return self.link.send(index, &FromShim::Unsupported, &[]);
        };
        if self.link.is_crowded() {
            return self.link.send(index, &FromShim::Unsupported, &[]);
        }
        if let Some(Viewer { pid, .. }) = self.link.writer().filter(|_| viewer.is_writer) {
            return self.link.send(index, &FromShim::Occupied { pid }, &[]);
        }
        self.link.attach(index, viewer);
        let attached = FromShim::Attached { run: self.identity.run.clone(), rows, columns };
        let descriptors = if viewer.is_writer { vec![master] } else { Vec::new() };
        self.link.send(index, &attached, &descriptors);
    }

    fn phase(&self, live: &Live) -> Phase {
        match &live.stop {
            None => Phase::Running,
            Some(_) if !live.survivors.is_empty() => Phase::Stuck { survivors: live.survivors.clone() },
            Some(stop) => Phase::Stopping { kill_at: self.wall(stop.kill_at()) },
        }
    }

    /// The wall-clock time of a deadline; now, when it has passed.
    pub(crate) fn wall(&self, at: Option<Duration>) -> UnixMillis {
        let ahead = at.unwrap_or_default().saturating_sub(self.now());
        UnixMillis(UnixMillis::now().0 + u64::try_from(ahead.as_millis()).unwrap_or(u64::MAX / 2))
    }

    // ---- start

    fn start(&mut self, order: StartOrder) {
        let spare = match std::mem::replace(&mut self.state, State::Over) {
            State::Idle(spare) => spare,
            other => return self.state = other,
        };
        match self.prepare(order, spare) {
            Ok(live) => self.state = State::Live(Box::new(live)),
            Err(failure) => self.tell_failure(failure),
        }
    }

    fn prepare(&mut self, order: StartOrder, spare: Spare) -> Result<Live, StartFailure> {
        let (output, watch, notification) = match self.outfit(&order) {
            Ok(outfit) => outfit,
            Err(failure) => {
                spare.dismiss();
                return Err(failure);
            }
        };
        let plan = Plan {
            command: order.command.clone(),
            workdir: order.workdir.clone(),
            environment: order.environment.clone(),
            takes_terminal: order.tty,
            run: self.identity.run.id.clone(),
            notification: notification.as_ref().map(|notification| notification.number),
        };
        let writer = notification.as_ref().map(|notification| notification.writer.as_fd());
        let (helper, cgroup) = spare
            .take(plan, output.stdio(), writer)
            .map_err(|error| failure(StartStage::Helper, &error, "could not start the exec helper"))?;
        fail::point("the helper is started");
        let terminal = output.terminal_number();
        self.output = Some(output);
        Ok(Live {
            order,
            leader: helper.process,
            terminal,
            cgroup,
            helper: Some((helper, false)),
            failed: None,
            started_at: None,
            exit: None,
            forked: None,
            has_ends: false,
            look_at: None,
            memory: Memory::default(),
            watch,
            stop: None,
            command: None,
            probes: Vec::new(),
            probe_leaders: Vec::new(),
            probe_sessions: VecDeque::new(),
            survivors: Vec::new(),
        })
    }

    /// What a run needs beside its processes: the log and what leads to it, the watch over its members, and the ears for its signs.
    fn outfit(&mut self, order: &StartOrder) -> Result<(Output, MemberWatch, Option<Notification>), StartFailure> {
        let log = LogWriter::open(&self.identity.service_dir, self.identity.run.number, &order.log, UnixMillis::now())
            .map_err(|error| failure(StartStage::Log, &error, "could not open its log"))?;
        let output = if order.tty {
            Output::terminal(log).map_err(|error| failure(StartStage::Terminal, &error, "could not open a terminal"))?
        } else {
            // A run that could not be ended and was given up, and the one that began beside it, have records in two places.
            let is_alone = record::places(&self.identity.service_dir) == [self.record_dir.as_path()];
            Output::pipes(log, is_alone)
                .map_err(|error| failure(StartStage::Terminal, &error, "could not open pipes for its output"))?
        };
        let watch = MemberWatch::new()
            .map_err(|error| failure(StartStage::Helper, &error, "could not watch for its processes"))?;
        let (signs, notification) = Signs::open(&order.signs)
            .map_err(|error| failure(StartStage::Helper, &error, "could not listen for its readiness"))?;
        // From here on it is to be closed.
        self.signs = signs;
        Ok((output, watch, notification))
    }

    pub(crate) fn hear_helper(&mut self) {
        let State::Live(live) = &mut self.state else { return };
        let Some((helper, gate_open)) = &mut live.helper else { return };
        match helper.progress() {
            Progress::Waiting => {}
            Progress::Ready => self.open_gate(),
            Progress::Running if *gate_open => {
                live.helper = None;
                let started = FromShim::Started { leader: live.leader, at: live.started_at.unwrap_or_default() };
                let descriptors = self.output.as_ref().map(Output::descriptors).unwrap_or_default();
                self.link.tell(&started, &descriptors);
                for &check in self.signs.seen() {
                    self.link.tell(&FromShim::Sign { check }, &[]);
                }
                // From here on it mostly waits. Only a stop command, or probes, will need the environment once more.
                if live.order.stop.command.is_none() && live.order.probes.is_empty() {
                    live.order.environment = Environment::new();
                }
                self.is_settled = true;
            }
            Progress::Running => {
                live.failed = Some(StartFailure {
                    stage: StartStage::Helper,
                    errno: 0,
                    path: None,
                    message: "its exec helper was ended before it could run anything".to_owned(),
                    hint: None,
                    permanent: false,
                });
                live.helper = None;
            }
            Progress::Failed(failure) => {
                live.failed = Some(failure);
                live.helper = None;
            }
        }
    }

    /// Writes down who the processes of the run are, and lets the helper become the program.
    fn open_gate(&mut self) {
        let State::Live(live) = &mut self.state else { return };
        let record = live.record(&self.identity, &self.boot, self.shim);
        let Some((helper, gate_open)) = &mut live.helper else { return };
        let gate = record::store(&self.record_dir, record::PID, &record)
            .map_err(|error| failure(StartStage::Record, &error, "could not write the record of the run"))
            .and_then(|()| {
                live.started_at = Some(UnixMillis::now());
                helper.open_gate().map_err(|error| failure(StartStage::Helper, &error, "could not open the gate"))
            });
        match gate {
            Ok(()) => {
                fail::point("the gate is open");
                *gate_open = true;
                self.see_members();
            }
            // Dropping the helper closes the gate for good: it exits.
            Err(failure) => {
                live.failed = Some(failure);
                live.helper = None;
            }
        }
    }

    // ---- output

    fn read_output(&mut self, channel: usize) {
        let is_ending = matches!(&self.state, State::Live(live) if live.stop.is_some());
        let Some(output) = &mut self.output else { return };
        let found = output.read(channel, &mut self.signs, is_ending);
        self.tell_signs(found);
    }

    /// Tells of signs. Those that come before it is known that the program runs are told after that.
    fn tell_signs(&mut self, checks: impl IntoIterator<Item = u32>) {
        if matches!(&self.state, State::Live(live) if live.helper.is_none()) {
            for check in checks {
                self.link.tell(&FromShim::Sign { check }, &[]);
            }
        }
    }

    // ---- signals and children

    fn take_signals(&mut self) {
        let numbers: Vec<i32> = self.signals.0.pending().collect();
        for number in numbers {
            match Signal::try_from(number) {
                Ok(Signal::SIGCHLD) => self.reap(),
                Ok(signal) => self.pass_on(signal),
                Err(_) => {}
            }
        }
    }

    /// Gives a signal that was meant for the service, or sent to the shim, to the service.
    fn pass_on(&self, signal: Signal) {
        let State::Live(live) = &self.state else { return };
        if live.exit.is_none() {
            // An empty group is on its way to the exit that will be reported.
            let _ = process::signal_group(live.leader.pid, signal);
        } else if live.forked.is_some() {
            self.signal_members(live, signal);
        }
    }

    /// Takes notice of every child that has ended. The leader's zombie stays.
    fn reap(&mut self) {
        let now = self.origin.elapsed();
        for pid in process::own_children().unwrap_or_default() {
            self.reap_probe(pid);
            let State::Live(live) = &mut self.state else { return };
            let is_of_probe = |session| live.probe_sessions.contains(&session);
            let is_of_probe = process::look(pid).is_some_and(|process| is_of_probe(process.session));
            if pid == live.leader.pid {
                if live.exit.is_none()
                    && let Ok(Some(status)) = sys::exited(pid)
                {
                    fail::point("the leader has exited");
                    live.exit = Some((status, UnixMillis::now()));
                    live.has_ends = true;
                }
                continue;
            }
            let status = match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => continue,
                Ok(WaitStatus::Exited(_, code)) => ExitStatus::Code(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => ExitStatus::Signal(signal as i32),
                Ok(_) => ExitStatus::Unknown,
            };
            live.has_ends = true;
            let is_of_command = live.command.as_ref().is_some_and(|command| command.process.pid == pid);
            if let Some(forked) = live.forked.as_mut().filter(|_| !is_of_command && !is_of_probe) {
                forked.ended(pid, status);
            }
            if live.command.as_ref().is_some_and(|command| command.process.pid == pid) {
                live.command = None;
            } else if let Some(stop) = live.stop.as_mut().filter(|_| !is_of_probe) {
                stop.reaped(pid);
                stop.ladder().hurry(now);
            }
        }
    }

    // ---- the end

    /// Writes a line of locald's own to the log, behind what the service has written so far.
    pub(crate) fn note(&mut self, text: &str) {
        let Some(output) = &mut self.output else { return };
        let found = output.note(text, &mut self.signs);
        self.tell_signs(found);
    }

    /// Writes down anew who the processes of the run are.
    pub(crate) fn store_record(&self) {
        let State::Live(live) = &self.state else { return };
        // The one before is true as well, and says less.
        let _ = record::store(&self.record_dir, record::PID, &live.record(&self.identity, &self.boot, self.shim));
    }

    pub(crate) fn finish(&mut self) {
        fail::point("nobody is left");
        self.lost_output = self.output.take().map_or(0, Output::drain);
        fail::point("the output is drained");
        let now = self.now();
        let State::Live(live) = std::mem::replace(&mut self.state, State::Over) else { return };
        let Live { leader, cgroup, failed, started_at, exit, forked, stop, .. } = *live;
        // Nothing else bears the leader's number any more: its zombie may go.
        let _ = waitpid(Pid::from_raw(leader.pid), None);
        fail::point("the leader is reaped");
        if let Some(cgroup) = cgroup {
            cgroup.remove();
        }
        if let Some(failure) = failed {
            return self.tell_failure(failure);
        }
        let has_forked = forked.is_some();
        let exit = forked.map_or(exit, |forked| forked.exit);
        let (status, exited_at) = exit.unwrap_or((ExitStatus::Unknown, UnixMillis::now()));
        let (began, requested) = stop.as_ref().map_or((now, false), |stop| (stop.began, stop.requested));
        let Account { processes, killed, strays, holders } = stop.map_or_else(Account::default, |mut stop| {
            // A launcher has ended long since.
            if !has_forked {
                stop.reaped(leader.pid);
            }
            stop.account()
        });
        // Who is left by a launcher is the service, and has not strayed from it.
        let strays = if has_forked && requested { Vec::new() } else { strays };
        let ended = Ended {
            run: self.identity.run.clone(),
            status,
            forked: has_forked,
            started_at,
            exited_at,
            ended_at: UnixMillis::now(),
            stopped: requested,
            forced: killed > 0,
            processes: processes.max(1),
            killed,
            strays,
            survivors: holders,
            stop_took: now.saturating_sub(began),
            lost_output: self.lost_output,
        };
        // Without this record only a connected daemon will know; it is told all the same.
        if let Err(error) = record::store(&self.record_dir, &record::exit(&ended.run.id), &ended) {
            crate::say(&format!("locald-shim: could not record how {} ended: {error}", self.identity.run.service));
        }
        self.forget_records();
        fail::point("the records of the run are gone");
        self.tell_last(FromShim::Ended(Box::new(ended)));
        fail::point("the end is told");
    }

    fn tell_failure(&mut self, failure: StartFailure) {
        self.forget_records();
        self.tell_last(FromShim::StartFailed(failure));
    }

    fn tell_last(&mut self, message: FromShim) {
        self.link.tell_viewers(&message);
        let is_heard = self.link.tell(&message, &[]);
        self.state = if is_heard { State::Told(Box::new(message), self.now() + PATIENCE) } else { State::Over };
    }

    /// Takes away the records that say a run is on, and the socket. Once: after that they may be the next run's.
    fn forget_records(&mut self) {
        if std::mem::replace(&mut self.is_forgotten, true) {
            return;
        }
        for name in [record::PID, record::STOP, record::SHIM] {
            // A record that stays is cleared by the next daemon: its processes are gone.
            let _ = record::remove(&self.record_dir, name);
        }
        // As above.
        let _ = record::leave(&self.record_dir);
        self.signs.close();
        self.link.close();
    }

    /// Nobody says what to run, or nobody wants it any more.
    fn give_up(&mut self) {
        if let State::Idle(spare) = std::mem::replace(&mut self.state, State::Over) {
            spare.dismiss();
        }
    }

    fn leave(mut self) {
        self.forget_records();
    }
}
