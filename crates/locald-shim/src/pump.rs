//! The shim's one loop: waits on everything at once, keeps the output flowing, and tells the daemon what happens.
//!
//! The clock is read here and nowhere else in the shim. Each turn waits, hears what is new, and lets the run take a
//! step; no turn waits for anything but `poll`. Output has priority: it is read in every phase, because a service that
//! cannot write does not end.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use locald_utils::fail;
use locald_utils::process::mark::SUPERVISOR_MARKER;
use locald_utils::process::{self, ProcessId, sys};
use locald_utils::record::ExitStatus;
use locald_utils::shim_protocol::{FromShim, PROTOCOL, Phase, ShimIdentity, Snapshot, ToShim};
use locald_utils::time::UnixMillis;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::link::{Incoming, Link, Viewer};
use crate::live::Live;
use crate::output::Output;
use crate::probe::Probe;
use crate::signs::{Ear, Signs};
use crate::spawn::Spare;

/// 10 s: how long a shim waits to be told what to run, and how long to be told that its last word was heard.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

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
    pub(crate) boot: String,
    pub(crate) shim: ProcessId,
    /// The mark of the home that this shim and its daemon carry.
    pub(crate) home: Option<OsString>,
    pub(crate) link: Link,
    signals: SignalPipe,
    origin: Instant,
    pub(crate) state: State,
    /// From the start until all of it has been read.
    pub(crate) output: Option<Output>,
    pub(crate) signs: Signs,
    /// What a daemon has found last: that the run is ready, or is not any more.
    ready: Option<bool>,
    /// Whether nothing on disk speaks of this shim any more.
    pub(crate) is_forgotten: bool,
    /// Whether the program runs since this turn, and all that starting it took can be given back.
    pub(crate) is_settled: bool,
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

    // ---- output

    fn read_output(&mut self, channel: usize) {
        let is_ending = matches!(&self.state, State::Live(live) if live.stop.is_some());
        let Some(output) = &mut self.output else { return };
        let found = output.read(channel, &mut self.signs, is_ending);
        self.tell_signs(found);
    }

    /// Tells of signs. Those that come before it is known that the program runs are told after that.
    pub(crate) fn tell_signs(&mut self, checks: impl IntoIterator<Item = u32>) {
        if matches!(&self.state, State::Live(live) if live.helper.is_none()) {
            for check in checks {
                self.link.tell(&FromShim::Sign { check }, &[]);
            }
        }
    }

    /// Writes a line of locald's own to the log, behind what the service has written so far.
    pub(crate) fn note(&mut self, text: &str) {
        let Some(output) = &mut self.output else { return };
        let found = output.note(text, &mut self.signs);
        self.tell_signs(found);
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
            let is_of_probe = |session| live.probe_sessions.contains(&session);
            let is_of_probe = process::look(pid).is_some_and(|process| is_of_probe(process.session));
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
}
