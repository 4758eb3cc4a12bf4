//! The shim's connections: the one it was born with, those of daemons that adopt it, and those of whoever is in front of its
//! terminal.
//!
//! Frames go in and out here and descriptors are passed; what a message means is decided in `pump`. A connection that
//! misbehaves, or belongs to another user, is dropped and nobody else notices. The highest epoch seen is in charge.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use locald_utils::fail;
use locald_utils::frame::{self, Decoder};
use locald_utils::process::descriptors;
use locald_utils::shim_protocol::{FromShim, ToShim};
use nix::poll::PollFlags;

/// 12: more people in front of one terminal than there will be.
const MOST_VIEWERS: usize = 12;

/// 16: those, a daemon that died and was not noticed yet, its successor, and somebody who has not said anything yet.
const MOST_CONNECTIONS: usize = MOST_VIEWERS + 4;

/// 64 messages: who leaves more of them unread does not read.
const MOST_UNREAD: usize = 64;

/// 4 KiB: what somebody may say before it is known to be a daemon.
const MOST_UNKNOWN: usize = 4096;

/// A frame on its way out, and the descriptors that travel with its first byte.
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<Rc<OwnedFd>>,
}

struct Connection {
    stream: UnixStream,
    decoder: Decoder,
    outgoing: VecDeque<Outgoing>,
    /// The epoch its daemon announced. Before that, to attach is all that may be said.
    epoch: Option<u64>,
    /// Who is in front of the terminal at the other end.
    viewer: Option<Viewer>,
    is_ended: bool,
}

/// Somebody in front of the terminal.
#[derive(Clone, Copy)]
pub(crate) struct Viewer {
    pub(crate) pid: i32,
    pub(crate) is_writer: bool,
}

/// What became of a message.
pub(crate) enum Incoming {
    /// A daemon in charge said hello over connection `0`.
    Hello(usize),
    /// A daemon in charge said this over connection `0`.
    Message(usize, ToShim),
    /// Somebody wants to be in front of the terminal.
    Attach(usize, Viewer),
}

/// All connections of a shim.
pub(crate) struct Link {
    listener: UnixListener,
    socket: PathBuf,
    connections: Vec<Connection>,
    epoch: u64,
}

impl Link {
    /// Listens at `socket`, with `control` as the first connection.
    pub(crate) fn listen(socket: &Path, control: UnixStream) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let mut link = Self { listener, socket: socket.to_owned(), connections: Vec::new(), epoch: 0 };
        link.add(control)?;
        Ok(link)
    }

    fn add(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        self.connections.push(Connection {
            stream,
            decoder: Decoder::default(),
            outgoing: VecDeque::new(),
            epoch: None,
            viewer: None,
            is_ended: false,
        });
        Ok(())
    }

    /// What to wait for: the listener first, then each connection.
    pub(crate) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let listener = std::iter::once((self.listener.as_fd(), PollFlags::POLLIN));
        listener.chain(self.connections.iter().map(|connection| {
            let writes = if connection.outgoing.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            (connection.stream.as_fd(), PollFlags::POLLIN | writes)
        }))
    }

    /// Accepts whoever knocks.
    pub(crate) fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let own = nix::unistd::getuid().as_raw();
            if !descriptors::peer_uid(&stream).is_ok_and(|uid| uid == own) {
                continue;
            }
            if self.connections.iter().filter(|connection| !connection.is_ended).count() >= MOST_CONNECTIONS {
                // Whoever connects and says nothing keeps no daemon out.
                let is_silent = |connection: &Connection| {
                    !connection.is_ended && connection.epoch.is_none() && connection.viewer.is_none()
                };
                let Some(silent) = self.connections.iter().position(is_silent) else { continue };
                // Its number stays good for the rest of this turn.
                self.end(silent);
            }
            // A connection that cannot even be set up is closed by being dropped.
            let _ = self.add(stream);
        }
    }

    /// Reads what connection `index` has to say: once, so that nobody who says much keeps the shim from its other work. Returns
    /// `false` when it has ended or misbehaves; the caller drops it then.
    pub(crate) fn receive(&mut self, index: usize, incoming: &mut Vec<Incoming>) -> bool {
        if self.connections[index].is_ended {
            return false;
        }
        let mut buffer = [0; 4096];
        match descriptors::receive(&self.connections[index].stream, &mut buffer) {
            // Descriptors that came along are closed here: a daemon has none to give.
            Ok((0, _)) => return false,
            Ok((count, _)) => self.connections[index].decoder.push(&buffer[..count]),
            Err(error) => {
                return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            }
        }
        loop {
            match self.connections[index].decoder.next_frame() {
                Ok(Some(frame)) => match frame::decode::<ToShim>(&frame) {
                    Ok(message) => {
                        if !self.admit(index, message, incoming) {
                            return false;
                        }
                    }
                    Err(_) => self.send(index, &FromShim::Unsupported, &[]),
                },
                Ok(None) => break,
                Err(_) => return false,
            }
        }
        let Connection { decoder, epoch, is_ended, .. } = &self.connections[index];
        !is_ended && (epoch.is_some() || decoder.pending() <= MOST_UNKNOWN)
    }

    /// Lets a message through if it comes from the daemon in charge, or from somebody who wants to attach. `false` closes the
    /// connection.
    fn admit(&mut self, index: usize, message: ToShim, incoming: &mut Vec<Incoming>) -> bool {
        fail::point("the shim was told something");
        if let ToShim::Hello { epoch, .. } = message {
            if epoch < self.epoch {
                self.send(index, &FromShim::Fenced { epoch: self.epoch }, &[]);
                return false;
            }
            self.epoch = epoch;
            self.connections[index].epoch = Some(epoch);
            incoming.push(Incoming::Hello(index));
            return true;
        }
        if let ToShim::Attach { pid, read_only } = message
            && self.connections[index].epoch.is_none()
        {
            incoming.push(Incoming::Attach(index, Viewer { pid, is_writer: !read_only }));
            return true;
        }
        if self.connections[index].epoch == Some(self.epoch) {
            incoming.push(Incoming::Message(index, message));
            return true;
        }
        // It said hello before a successor took over, or never.
        self.send(index, &FromShim::Fenced { epoch: self.epoch }, &[]);
        false
    }

    /// Sends a message to one connection.
    pub(crate) fn send(&mut self, index: usize, message: &FromShim, descriptors: &[Rc<OwnedFd>]) {
        fail::point("the shim is to say something");
        let Ok(bytes) = frame::encode(message) else { return };
        if self.connections[index].outgoing.len() >= MOST_UNREAD {
            return self.end(index);
        }
        self.connections[index].outgoing.push_back(Outgoing { bytes, sent: 0, descriptors: descriptors.to_vec() });
        self.flush(index);
    }

    /// Sends a message to every daemon in charge. Returns whether there was one.
    pub(crate) fn tell(&mut self, message: &FromShim, descriptors: &[Rc<OwnedFd>]) -> bool {
        let listening: Vec<usize> = self.in_charge().collect();
        for &index in &listening {
            self.send(index, message, descriptors);
        }
        !listening.is_empty()
    }

    /// Gives somebody a place in front of the terminal.
    pub(crate) fn attach(&mut self, index: usize, viewer: Viewer) {
        self.connections[index].viewer = Some(viewer);
    }

    /// Whether nobody else has room in front of the terminal.
    pub(crate) fn is_crowded(&self) -> bool {
        self.connections.iter().filter(|connection| connection.viewer.is_some()).count() >= MOST_VIEWERS
    }

    /// Who writes to the terminal.
    pub(crate) fn writer(&self) -> Option<Viewer> {
        let viewers = self.connections.iter().filter(|connection| !connection.is_ended);
        viewers.filter_map(|connection| connection.viewer).find(|viewer| viewer.is_writer)
    }

    /// Sends a message to everybody in front of the terminal.
    pub(crate) fn tell_viewers(&mut self, message: &FromShim) {
        for index in 0..self.connections.len() {
            if self.connections[index].viewer.is_some() {
                self.send(index, message, &[]);
            }
        }
    }

    fn in_charge(&self) -> impl Iterator<Item = usize> {
        self.connections
            .iter()
            .enumerate()
            .filter(|(_, connection)| connection.epoch == Some(self.epoch))
            .map(|(index, _)| index)
    }

    /// Whether a daemon in charge is connected.
    pub(crate) fn has_daemon(&self) -> bool {
        self.in_charge().next().is_some()
    }

    /// Whether anyone is connected, introduced or not.
    pub(crate) fn has_connection(&self) -> bool {
        !self.connections.is_empty()
    }

    /// Writes what is waiting to go out, as far as the socket takes it.
    pub(crate) fn flush(&mut self, index: usize) {
        let Connection { stream, outgoing, .. } = &mut self.connections[index];
        while let Some(first) = outgoing.front_mut() {
            let with = if first.sent == 0 { &first.descriptors[..] } else { &[] };
            let with: Vec<BorrowedFd<'_>> = with.iter().map(|descriptor| descriptor.as_fd()).collect();
            match descriptors::send(&*stream, &first.bytes[first.sent..], &with) {
                Ok(count) => {
                    first.sent += count;
                    if first.sent == first.bytes.len() {
                        outgoing.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The rest goes when the socket is writable.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return self.end(index),
            }
        }
    }

    /// Notes that a connection has ended. Its number stays good until [`Link::drop_ended`].
    pub(crate) fn end(&mut self, index: usize) {
        self.connections[index].is_ended = true;
        self.connections[index].epoch = None;
    }

    /// Drops the connections that have ended.
    pub(crate) fn drop_ended(&mut self) {
        self.connections.retain(|connection| !connection.is_ended);
    }

    /// Stops listening and takes the socket away.
    pub(crate) fn close(&self) {
        // A socket that somebody else removed is gone, which is all that is wanted.
        let _ = std::fs::remove_file(&self.socket);
    }
}
