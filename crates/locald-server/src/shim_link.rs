//! A connection to one shim: frames out, frames and descriptors in.
//!
//! What the messages mean is `actor`'s business. A shim is born with one end of a socket pair; a daemon that comes later
//! connects to the socket the shim listens on. Both speak the same.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use std::{io, iter};

use locald_utils::fail;
use locald_utils::frame::{self, Decoder};
use locald_utils::process::mark::{self, SUPERVISOR_MARKER};
use locald_utils::process::{ProcessId, Spawn, descriptors};
use locald_utils::record::RunRef;
use locald_utils::shim_protocol::{CONTROL_FD, FromShim, PROTOCOL, ToShim};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::shim_program::ShimProgram;

/// 5 s: how long a shim may take to say hello. It takes milliseconds; a machine that swaps takes longer.
pub(crate) const HELLO_LIMIT: Duration = Duration::from_secs(5);

/// What the output of a run is read from. Never read here while the shim lives: it keeps the other end writable when the shim dies.
pub(crate) enum Output {
    /// The master of its terminal.
    Terminal(OwnedFd),
    /// Its pipes.
    Pipes { stdout: OwnedFd, stderr: OwnedFd },
}

/// A connection over which the shim has said hello.
pub(crate) struct ShimLink {
    stream: UnixStream,
    decoder: Decoder,
    descriptors: Vec<OwnedFd>,
    /// The shim itself.
    pub(crate) shim: ProcessId,
    /// The run it carries.
    pub(crate) run: RunRef,
}

impl ShimLink {
    /// Starts a shim with these arguments. Returns its process number; the caller has its exit waited for.
    ///
    /// # Errors
    /// When no process or descriptor is to be had.
    pub(crate) fn start(
        program: &ShimProgram,
        arguments: [&str; 2],
        log: &OwnedFd,
        home: &Path,
    ) -> io::Result<(i32, std::os::unix::net::UnixStream)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
        fail::point("a shim is to be started");
        let pid = Spawn::new(program.image())
            .arg0(program.path())
            .arg(arguments[0])
            .arg(arguments[1])
            .env(iter::once((SUPERVISOR_MARKER.into(), mark::supervisor(home).to_owned())).chain(fail::inherited()))
            .descriptor(&null, 0)?
            .descriptor(&null, 1)?
            .descriptor(log, 2)?
            .descriptor(theirs, CONTROL_FD)?
            .start()?;
        fail::point("a shim is started");
        Ok((pid, ours))
    }

    /// Connects to a shim that an earlier daemon started.
    ///
    /// # Errors
    /// ENOENT and ECONNREFUSED when nobody listens there any more; anything else says nothing about the shim.
    pub(crate) async fn connect(socket: &Path, epoch: u64) -> io::Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        if descriptors::peer_uid(&stream)? != nix::unistd::getuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user listens there"));
        }
        Self::greet(stream, epoch).await
    }

    /// Exchanges hellos over the socket pair that a new shim was given.
    ///
    /// # Errors
    /// When the shim ends or does not answer in time.
    pub(crate) async fn born(stream: std::os::unix::net::UnixStream, epoch: u64) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Self::greet(UnixStream::from_std(stream)?, epoch).await
    }

    async fn greet(stream: UnixStream, epoch: u64) -> io::Result<Self> {
        let mut stream = stream;
        let (mut decoder, mut descriptors) = (Decoder::default(), Vec::new());
        let hello = ToShim::Hello { protocol: PROTOCOL, epoch, version: env!("CARGO_PKG_VERSION").to_owned() };
        send(&mut stream, &hello).await?;
        let answer = receive(&stream, &mut decoder, &mut descriptors);
        let answer = tokio::time::timeout(HELLO_LIMIT, answer).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let (shim, run) = match answer {
            Some(FromShim::Hello { shim, run, .. }) => (shim, run),
            Some(FromShim::Fenced { epoch }) => {
                return Err(io::Error::other(format!("it obeys a newer daemon (epoch {epoch})")));
            }
            Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "its first message was no hello")),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        Ok(Self { stream, decoder, descriptors, shim, run })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) async fn send(&mut self, message: &ToShim) -> io::Result<()> {
        send(&mut self.stream, message).await
    }

    /// Receives the next message. `None` at the end of the connection. May be dropped and called again.
    ///
    /// # Errors
    /// When the connection is broken, or what comes is not the protocol.
    pub(crate) async fn receive(&mut self) -> io::Result<Option<FromShim>> {
        receive(&self.stream, &mut self.decoder, &mut self.descriptors).await
    }

    /// What the output of the run is read from, which came with the last message. Another number of descriptors is closed.
    pub(crate) fn take_output(&mut self) -> Option<Output> {
        let mut descriptors = std::mem::take(&mut self.descriptors).into_iter();
        match (descriptors.next(), descriptors.next(), descriptors.next()) {
            (Some(master), None, None) => Some(Output::Terminal(master)),
            (Some(stdout), Some(stderr), None) => Some(Output::Pipes { stdout, stderr }),
            (..) => None,
        }
    }
}

async fn send(stream: &mut UnixStream, message: &ToShim) -> io::Result<()> {
    fail::point("a shim is to be told something");
    let bytes = frame::encode(message).map_err(io::Error::other)?;
    stream.write_all(&bytes).await?;
    fail::point("a shim is told something");
    Ok(())
}

async fn receive(stream: &UnixStream, decoder: &mut Decoder, fds: &mut Vec<OwnedFd>) -> io::Result<Option<FromShim>> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    loop {
        if let Some(frame) = decoder.next_frame().map_err(invalid)? {
            fail::point("a shim says something");
            return frame::decode(&frame).map(Some).map_err(invalid);
        }
        stream.readable().await?;
        let mut buffer = [0; 4096];
        match stream.try_io(Interest::READABLE, || descriptors::receive(stream, &mut buffer)) {
            Ok((0, _)) => return Ok(None),
            Ok((count, received)) => {
                decoder.push(&buffer[..count]);
                fds.extend(received);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
