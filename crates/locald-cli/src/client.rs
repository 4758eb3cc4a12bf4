//! The connection to the daemon: who it is, what is asked, what comes back. Reads the clock.
//!
//! Every wait has a limit. Starting a daemon is in `daemon`; what the answers mean is the verbs' business.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use locald_utils::frame::{self, Decoder, Frame};
use locald_utils::name::ProjectId;
use locald_utils::paths::Home;
use locald_utils::protocol::{
    ClientMessage, DaemonStatus, Event, Failure, FailureCode, Hello, PROTOCOL, ProjectStatus, Reply, Request,
    ServerMessage,
};
use locald_utils::time::human;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;

use crate::failure;
use crate::peer;

/// 2 s: a daemon that runs greets within a millisecond; one that is stopped or hangs shall be told soon.
const GREETING_LIMIT: Duration = Duration::from_secs(2);

/// 5 s: for what the daemon answers from memory, on a machine that is busy with a build.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How often a daemon that closes the connection instead of greeting is asked again: it is leaving, and gone by then.
/// The pauses double from 5 ms, 0.3 s in all.
const GREETING_ATTEMPTS: u32 = 6;

/// A connection on which both sides have greeted.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    decoder: Decoder,
    daemon: Hello,
    last_id: u64,
    /// The request whose news [`Client::next`] tells.
    awaited_id: u64,
}

/// What comes while a request is under way.
#[derive(Debug)]
pub(crate) enum News {
    /// Something happened.
    Event(Event),
    /// The request is over.
    Reply(Reply),
    /// Nothing came in the given time.
    Quiet,
    /// One of the other descriptors has something to read: the person pressed Ctrl-C.
    Interrupted,
}

impl Client {
    /// Connects to the daemon of `home`. `None` when there is none.
    ///
    /// # Errors
    /// When the home is not ours alone, the listener is somebody else's, or it does not greet as a daemon does.
    pub(crate) fn connect(home: &Home) -> Result<Option<Self>, Failure> {
        home.check().map_err(|error| failure::home(&error))?;
        let mut pause = Duration::from_millis(5);
        for _ in 0..GREETING_ATTEMPTS {
            let socket = home.daemon_socket();
            let stream = match UnixStream::connect(&socket) {
                Ok(stream) => stream,
                // No socket, or one that a dead daemon left behind.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                    return Ok(None);
                }
                Err(error) => return Err(failure::io(format_args!("connect to {}", socket.display()), &error)),
            };
            if let Some(client) = Self::greet(stream)? {
                return Ok(Some(client));
            }
            thread::sleep(pause);
            pause *= 2;
        }
        let failure = Failure::new(FailureCode::Failed, "the daemon closes every connection before it greets");
        Err(failure.hint(format!("its log may say why: {}", home.daemon_log().display())))
    }

    /// Checks who listens and exchanges greetings. `None` when the daemon leaves before it has greeted.
    fn greet(stream: UnixStream) -> Result<Option<Self>, Failure> {
        let peer = peer::of(&stream).map_err(|errno| failure::io("ask who listens", &errno.into()))?;
        if peer.uid != nix::unistd::getuid().as_raw() {
            let message = format!("the daemon's socket is served by user {}, not by you", peer.uid);
            return Err(Failure::new(FailureCode::Failed, message));
        }
        let own = Hello::new();
        let limit = Some(ANSWER_LIMIT);
        stream.set_write_timeout(limit).map_err(|error| failure::io("set up the connection to the daemon", &error))?;
        let mut client = Self { stream, decoder: Decoder::default(), daemon: own.clone(), last_id: 0, awaited_id: 0 };
        if frame::write_message(&mut client.stream, &own).is_err() {
            return Ok(None);
        }
        match client.receive(Some(Instant::now() + GREETING_LIMIT), &[])? {
            Received::Frame(frame) => client.daemon = decode(&frame)?,
            Received::Closed => return Ok(None),
            Received::Quiet | Received::Interrupted => {
                let who = peer.pid.map_or("the daemon".to_owned(), |pid| format!("the daemon (pid {pid})"));
                let message = format!("{who} did not answer within {}", human(GREETING_LIMIT));
                let failure = Failure::new(FailureCode::TimedOut, message);
                return Err(failure.hint("it may be stopped or overloaded; services do not depend on it to run on"));
            }
        }
        client.check_protocol(&own)?;
        Ok(Some(client))
    }

    fn check_protocol(&self, own: &Hello) -> Result<(), Failure> {
        let Hello { protocol, version, pid } = &self.daemon;
        if *protocol == PROTOCOL {
            return Ok(());
        }
        let message = format!(
            "the daemon (pid {pid}, locald {version}) speaks protocol {protocol}, this locald ({}) speaks {PROTOCOL}",
            own.version
        );
        let hint = format!("`kill {pid}` ends the daemon; services run on, and the next daemon takes them over");
        Err(Failure::new(FailureCode::Protocol, message).hint(hint))
    }

    /// The daemon as it introduced itself.
    pub(crate) fn daemon(&self) -> &Hello {
        &self.daemon
    }

    /// Sends a request; [`Client::next`] then tells what becomes of it.
    pub(crate) fn send(&mut self, request: Request) -> Result<(), Failure> {
        self.post(request)?;
        self.awaited_id = self.last_id;
        Ok(())
    }

    /// Sends a request whose answer is of no interest: [`Client::next`] goes on with the one before.
    pub(crate) fn post(&mut self, request: Request) -> Result<(), Failure> {
        self.last_id += 1;
        let message = ClientMessage { id: self.last_id, request };
        let Err(error) = frame::write_message(&mut self.stream, &message) else { return Ok(()) };
        let kind = error.kind();
        Err(if matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) {
            gone()
        } else if kind == ErrorKind::WouldBlock {
            unresponsive(ANSWER_LIMIT)
        } else {
            failure::io("send the request to the daemon", &error)
        })
    }

    /// Waits for news of the request that was sent, for at most `limit`, or until one of `others` is readable.
    ///
    /// # Errors
    /// The daemon's own failure, or why nothing more can come.
    pub(crate) fn next(&mut self, limit: Duration, others: &[BorrowedFd<'_>]) -> Result<News, Failure> {
        let until = Instant::now().checked_add(limit);
        loop {
            let message = match self.receive(until, others)? {
                Received::Frame(frame) => decode(&frame)?,
                Received::Closed => return Err(gone()),
                Received::Quiet => return Ok(News::Quiet),
                Received::Interrupted => return Ok(News::Interrupted),
            };
            match message {
                ServerMessage::Event { id, event } if id == self.awaited_id => return Ok(News::Event(event)),
                ServerMessage::Reply { id, reply } if id == self.awaited_id => return Ok(News::Reply(*reply)),
                ServerMessage::Failure { id, failure } if id == self.awaited_id => return Err(failure),
                // News of another request.
                ServerMessage::Event { .. } | ServerMessage::Reply { .. } | ServerMessage::Failure { .. } => {}
            }
        }
    }

    /// Asks something that the daemon answers from memory.
    fn ask(&mut self, request: Request) -> Result<Reply, Failure> {
        self.send(request)?;
        loop {
            match self.next(ANSWER_LIMIT, &[])? {
                News::Reply(reply) => return Ok(reply),
                News::Event(_) => {}
                News::Quiet | News::Interrupted => return Err(unresponsive(ANSWER_LIMIT)),
            }
        }
    }

    /// Asks how things stand in one project, or in all.
    pub(crate) fn status(&mut self, project: Option<&ProjectId>) -> Result<Vec<ProjectStatus>, Failure> {
        match self.ask(Request::Status { project: project.cloned() })? {
            Reply::Status { projects } => Ok(projects),
            other @ (Reply::Outcome(_) | Reply::Daemon(_)) => Err(unexpected(&other)),
        }
    }

    /// Asks the daemon about itself.
    pub(crate) fn about(&mut self) -> Result<DaemonStatus, Failure> {
        match self.ask(Request::Daemon)? {
            Reply::Daemon(status) => Ok(status),
            other @ (Reply::Outcome(_) | Reply::Status { .. }) => Err(unexpected(&other)),
        }
    }

    /// Waits until the daemon has closed the connection. False when it has not within `limit`.
    pub(crate) fn until_closed(mut self, limit: Duration) -> bool {
        let until = Instant::now().checked_add(limit);
        loop {
            match self.receive(until, &[]) {
                Ok(Received::Frame(_)) => {}
                Ok(Received::Closed) | Err(_) => return true,
                Ok(Received::Quiet | Received::Interrupted) => return false,
            }
        }
    }

    fn receive(&mut self, until: Option<Instant>, others: &[BorrowedFd<'_>]) -> Result<Received, Failure> {
        loop {
            if let Some(frame) = self.decoder.next_frame().map_err(|error| garbage(&error))? {
                return Ok(Received::Frame(frame));
            }
            match self.wait(until, others)? {
                Woken::Data => {}
                Woken::Interrupted => return Ok(Received::Interrupted),
                Woken::TimeUp => return Ok(Received::Quiet),
            }
            let mut bytes = [0; 16 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => {
                    self.decoder.finish().map_err(|error| garbage(&error))?;
                    return Ok(Received::Closed);
                }
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Received::Closed),
                Err(error) => return Err(failure::io("read from the daemon", &error)),
            }
        }
    }

    /// Waits for data, an interrupt, or the time to be up.
    fn wait(&self, until: Option<Instant>, others: &[BorrowedFd<'_>]) -> Result<Woken, Failure> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            // Rounded up, or the last fraction of a millisecond would be waited for in a busy loop.
            let timeout = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
            });
            let mut watched = vec![PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
            watched.extend(others.iter().map(|other| PollFd::new(*other, PollFlags::POLLIN)));
            match poll(&mut watched, timeout) {
                Ok(0) if left == Some(Duration::ZERO) => return Ok(Woken::TimeUp),
                // Looks at the clock again: the longest timeout of poll is shorter than that of a person.
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) if watched[1..].iter().any(|fd| fd.any() == Some(true)) => return Ok(Woken::Interrupted),
                Ok(_) => return Ok(Woken::Data),
                Err(errno) => return Err(failure::io("wait for the daemon", &errno.into())),
            }
        }
    }
}

enum Received {
    Frame(Frame),
    Closed,
    Quiet,
    Interrupted,
}

enum Woken {
    Data,
    Interrupted,
    TimeUp,
}

fn decode<T: DeserializeOwned>(frame: &Frame) -> Result<T, Failure> {
    frame::decode(frame).map_err(|error| garbage(&error))
}

fn garbage(error: &frame::FrameError) -> Failure {
    Failure::new(FailureCode::Protocol, format!("the daemon sent something that is not understood: {error}"))
}

fn gone() -> Failure {
    Failure::new(FailureCode::Failed, "the daemon went away before it answered")
        .hint("services run on; the next `locald` command that needs a daemon starts one, and it takes them over")
}

fn unresponsive(limit: Duration) -> Failure {
    Failure::new(FailureCode::TimedOut, format!("the daemon did not answer within {}", human(limit)))
}

/// Makes the failure of a reply that belongs to another request.
pub(crate) fn unexpected(reply: &Reply) -> Failure {
    let kind = match reply {
        Reply::Outcome(_) => "an outcome",
        Reply::Status { .. } => "a status",
        Reply::Daemon(_) => "its own status",
    };
    Failure::new(FailureCode::Protocol, format!("the daemon answered with {kind}, which was not asked for"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::testing::{FakeDaemon, Step, project_status};

    #[test]
    fn no_socket_and_a_dead_socket_both_mean_no_daemon() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::under(dir.path());
        assert!(Client::connect(&home).expect("no failure").is_none());
        home.prepare().expect("prepares");
        drop(std::os::unix::net::UnixListener::bind(home.daemon_socket()).expect("binds"));
        assert!(Client::connect(&home).expect("no failure").is_none());
    }

    #[test]
    fn a_question_gets_its_own_answer_and_not_that_of_another() {
        let late = ServerMessage::Failure { id: 77, failure: Failure::new(FailureCode::Failed, "late") };
        let projects = vec![project_status("shop", &[])];
        let reply = Step::Reply(Reply::Status { projects: projects.clone() });
        let daemon = FakeDaemon::start(vec![Step::Request, Step::Message(late), reply]);
        let mut client = daemon.client();
        assert_eq!(client.status(None).expect("answers"), projects);
        assert_eq!(daemon.requests(), [Request::Status { project: None }]);
    }

    #[test]
    fn a_failure_of_the_daemon_is_passed_on() {
        let failure = Failure::new(FailureCode::NotFound, "no such project").hint("look at `locald ls`");
        let daemon = FakeDaemon::start(vec![Step::Request, Step::Failure(failure.clone())]);
        assert_eq!(daemon.client().about(), Err(failure));
    }

    #[test]
    fn an_early_end_is_told_and_so_is_half_a_frame() {
        let daemon = FakeDaemon::start(vec![Step::Request, Step::Close]);
        assert_eq!(daemon.client().about().expect_err("gone").message, "the daemon went away before it answered");

        let daemon = FakeDaemon::start(vec![Step::Request, Step::Bytes(vec![0, 0, 0, 9, 0, b'{']), Step::Close]);
        let failure = daemon.client().about().expect_err("half a frame");
        assert_eq!(failure.code, FailureCode::Protocol);
        assert!(failure.message.ends_with("the stream ended in the middle of a frame"), "{}", failure.message);
    }

    #[test]
    fn garbage_is_refused() {
        for bytes in [b"HTTP/1.1 400 Bad Request\r\n".to_vec(), vec![0, 0, 0, 3, 0, b'4', b'2']] {
            let daemon = FakeDaemon::start(vec![Step::Request, Step::Bytes(bytes)]);
            assert_eq!(daemon.client().about().expect_err("garbage").code, FailureCode::Protocol);
        }
    }

    #[test]
    fn an_answer_to_another_question_is_refused() {
        let daemon = FakeDaemon::start(vec![Step::Request, Step::Reply(Reply::Status { projects: Vec::new() })]);
        let failure = daemon.client().about().expect_err("not a daemon status");
        assert_eq!(failure.message, "the daemon answered with a status, which was not asked for");
    }

    #[test]
    fn another_protocol_is_refused_with_a_way_out() {
        let hello = Hello { protocol: PROTOCOL + 1, version: "9.9.9".into(), pid: 812 };
        let daemon = FakeDaemon::greeting(hello, Vec::new());
        let failure = Client::connect(&daemon.home).expect_err("refused");
        assert_eq!(failure.code, FailureCode::Protocol);
        assert_eq!(
            failure.hint.as_deref(),
            Some("`kill 812` ends the daemon; services run on, and the next daemon takes them over")
        );
    }

    #[test]
    fn a_daemon_that_does_not_greet_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::under(dir.path());
        home.prepare().expect("prepares");
        let _silent = std::os::unix::net::UnixListener::bind(home.daemon_socket()).expect("binds");
        let failure = Client::connect(&home).expect_err("silent");
        assert_eq!(failure.code, FailureCode::TimedOut);
        assert!(failure.message.starts_with("the daemon (pid "), "{}", failure.message);
    }

    #[test]
    fn an_interrupt_ends_the_wait() {
        let daemon = FakeDaemon::start(vec![Step::Request, Step::Wait]);
        let mut client = daemon.client();
        client.send(Request::Daemon).expect("sends");
        let (receiver, mut sender) = UnixStream::pair().expect("a pair");
        let interrupts = [receiver.as_fd()];
        assert!(matches!(client.next(Duration::from_millis(1), &interrupts), Ok(News::Quiet)));
        sender.write_all(b"x").expect("writes");
        assert!(matches!(client.next(Duration::from_secs(9), &interrupts), Ok(News::Interrupted)));
    }
}
