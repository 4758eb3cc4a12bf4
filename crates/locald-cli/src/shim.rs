//! The connection to a shim: a place in front of the terminal of a run.
//!
//! The command line asks the shim itself, so nobody's terminal depends on a daemon. What the service writes is read from its
//! log like everywhere else; over the connection come the terminal, for whoever writes, and word of how the run ended.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use locald_utils::frame::{self, Decoder};
use locald_utils::name::ServiceName;
use locald_utils::process::descriptors;
use locald_utils::protocol::{Failure, FailureCode};
use locald_utils::record::{self, Ended, RunRef, ShimRecord};
use locald_utils::shim_protocol::{FromShim, ToShim};
use locald_utils::time::human;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{failure, peer};

/// 2 s: a shim answers within a millisecond, unless it is stopped.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// A place in front of the terminal of a run, kept for as long as this lives.
#[derive(Debug)]
pub(crate) struct Seat {
    /// The run.
    pub(crate) run: RunRef,
    /// The size of its terminal when the place was taken: rows and columns.
    pub(crate) size: (u16, u16),
    /// The terminal, for whoever may write.
    pub(crate) master: Option<OwnedFd>,
    shim: Connection,
}

/// What became of the run.
#[derive(Debug)]
pub(crate) enum End {
    /// It ended, and no process of it is left.
    Ended(Box<Ended>),
    /// Its shim is gone; how it stands is the daemon's to say.
    ShimLost,
}

impl Seat {
    /// Takes a place in front of the terminal of a service, whose directory is `dir`.
    ///
    /// # Errors
    /// [`FailureCode::NotRunning`] when it does not run, and why its shim gives no place otherwise.
    pub(crate) fn take(service: &ServiceName, dir: &Path, read_only: bool) -> Result<Self, Failure> {
        let records = record::places(dir)
            .into_iter()
            .filter_map(|place| record::load::<ShimRecord>(&place, record::SHIM).ok()?);
        // Beside one that could not be ended there may be another; the newest is meant.
        let newest = records.max_by_key(|record| record.run.number);
        let not_running = || {
            let failure = Failure::new(FailureCode::NotRunning, format!("{service} does not run"));
            failure.hint(format!("`locald up {service}` starts it, `locald logs {service}` shows what it wrote last"))
        };
        let Some(record) = newest else { return Err(not_running()) };
        let stream = match UnixStream::connect(&record.socket) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Err(if record.shim.is_alive() { unreachable_shim(&record) } else { not_running() });
            }
            Err(error) => return Err(failure::io(format_args!("connect to {}", record.socket.display()), &error)),
        };
        let peer = peer::of(&stream).map_err(|errno| failure::io("ask who listens", &errno.into()))?;
        if peer.uid != nix::unistd::getuid().as_raw() {
            let message = format!("the socket of the shim is served by user {}, not by you", peer.uid);
            return Err(Failure::new(FailureCode::Failed, message));
        }
        let mut shim = Connection { stream, decoder: Decoder::default(), descriptors: VecDeque::new() };
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        frame::write_message(&mut shim.stream, &ToShim::Attach { pid, read_only })
            .map_err(|error| failure::io(format_args!("ask the shim of {service}"), &error))?;
        let answer = shim.next(Instant::now() + ANSWER_LIMIT);
        match answer.map_err(|error| failure::io(format_args!("ask the shim of {service}"), &error))? {
            Next::Message(FromShim::Attached { run, rows, columns }) => {
                let master = shim.descriptors.pop_front();
                if master.is_some() == read_only || !shim.descriptors.is_empty() {
                    let message = format!("the shim of {service} passed another number of descriptors than it should");
                    return Err(Failure::new(FailureCode::Protocol, message));
                }
                Ok(Self { run, size: (rows, columns), master, shim })
            }
            Next::Message(FromShim::Occupied { pid }) => {
                let message = format!("somebody else writes to the terminal of {service}: pid {pid}");
                Err(Failure::new(FailureCode::Failed, message).hint("--read-only lets you look on"))
            }
            Next::Message(FromShim::NoTerminal) => {
                let message = format!("{service} has no terminal: it runs with `tty = false`");
                Err(Failure::new(FailureCode::Failed, message)
                    .hint(format!("`locald logs -f {service}` shows what it writes")))
            }
            Next::Message(FromShim::Ended(_)) | Next::Closed => Err(not_running()),
            Next::Message(_) => {
                let message =
                    format!("{service} cannot be attached to at the moment: it is starting, or its terminal is gone");
                let hint = "a run that an older locald has started can be attached to after a restart";
                Err(Failure::new(FailureCode::Failed, message).hint(hint))
            }
            Next::Quiet => {
                let message = format!(
                    "the shim of {service} (pid {}) did not answer within {}",
                    record.shim.pid,
                    human(ANSWER_LIMIT)
                );
                Err(Failure::new(FailureCode::TimedOut, message)
                    .hint("it may be stopped; `locald status` tells how things stand"))
            }
        }
    }

    /// What becomes readable when [`Self::end`] may have an answer.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.shim.stream.as_fd()
    }

    /// Says how the run ended, if it has. Does not wait.
    pub(crate) fn end(&mut self) -> Option<End> {
        loop {
            match self.shim.next(Instant::now()) {
                Ok(Next::Message(FromShim::Ended(ended))) => return Some(End::Ended(ended)),
                // From a later version.
                Ok(Next::Message(_)) => {}
                Ok(Next::Quiet) => return None,
                Ok(Next::Closed) | Err(_) => return Some(End::ShimLost),
            }
        }
    }
}

fn unreachable_shim(record: &ShimRecord) -> Failure {
    let message =
        format!("the shim of {} (pid {}) cannot be reached: its socket is gone", record.run.service, record.shim.pid);
    Failure::new(FailureCode::Failed, message).hint(format!("`locald restart {}` heals that", record.run.service))
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    /// Those that came and belong to no message yet.
    descriptors: VecDeque<OwnedFd>,
}

enum Next {
    Message(FromShim),
    /// Nothing came in time.
    Quiet,
    Closed,
}

impl Connection {
    /// Waits for the next message, until a time.
    fn next(&mut self, until: Instant) -> io::Result<Next> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(io::Error::other)? {
                return frame::decode(&frame).map(Next::Message).map_err(io::Error::other);
            }
            let left = until.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            let timeout = PollTimeout::from(u16::try_from(left).unwrap_or(u16::MAX));
            match poll(&mut [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Ok(Next::Quiet),
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let mut buffer = [0; 4096];
            let (count, descriptors) = descriptors::receive(&self.stream, &mut buffer)?;
            if count == 0 {
                return Ok(Next::Closed);
            }
            self.decoder.push(&buffer[..count]);
            self.descriptors.extend(descriptors);
        }
    }
}
