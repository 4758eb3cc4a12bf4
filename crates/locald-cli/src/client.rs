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
    AssignedPort, Before, ClientMessage, DaemonStatus, Event, Failure, FailureCode, Hello, PROTOCOL, Preview,
    ProjectStatus, Reply, Request, ServerMessage, ServiceStatus, WaitFor,
};
use locald_utils::time::human;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;

use crate::screen::Screen;
use crate::{daemon, failure, peer};

/// 2 s: a daemon that runs greets within a millisecond; one that is stopped or hangs shall be told soon.
const GREETING_LIMIT: Duration = Duration::from_secs(2);

/// 5 s: for what the daemon answers from memory, on a machine that is busy with a build.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How often a daemon that closes the connection instead of greeting is asked again: it is leaving, and gone by then.
/// The pauses double from 5 ms, 0.3 s in all.
const GREETING_ATTEMPTS: u32 = 6;

/// 3: so many daemons may go away under one request. What makes every daemon go away is not to be asked for ever.
const MOST_LOST: u32 = 3;

/// A connection on which both sides have greeted.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    decoder: Decoder,
    daemon: Hello,
    last_id: u64,
    home: Home,
    /// The request whose news [`Client::next`] tells.
    awaited: Option<Awaited>,
    /// Whether the daemon has closed the connection.
    is_gone: bool,
    /// Whether a daemon that goes away is to be replaced by another.
    is_needed: bool,
}

/// A request under way.
#[derive(Clone, Debug)]
struct Awaited {
    id: u64,
    request: Request,
    /// What the first daemon that took it began with.
    before: Option<Before>,
    /// How many daemons have gone away meanwhile.
    lost: u32,
    /// When it was sent first.
    began: Instant,
}

/// What comes while a request is under way.
#[derive(Debug)]
pub(crate) enum News {
    /// A service that the request is about has changed.
    Service(Box<ServiceStatus>),
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
    /// When the home is not ours alone, the listener is somebody else's, or it does not speak as a daemon of this version does.
    pub(crate) fn connect(home: &Home) -> Result<Option<Self>, Failure> {
        Self::connect_to_any(home)?.map(Self::checked).transpose()
    }

    /// As [`Client::connect`], to one of any version: it may understand nothing but greetings.
    pub(crate) fn connect_to_any(home: &Home) -> Result<Option<Self>, Failure> {
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
            if let Some(client) = Self::greet(home, stream)? {
                return Ok(Some(client));
            }
            thread::sleep(pause);
            pause *= 2;
        }
        let failure = Failure::new(FailureCode::Failed, "the daemon closes every connection before it greets");
        Err(failure.hint(format!("its log may say why: {}", home.daemon_log().display())))
    }

    /// Checks who listens and exchanges greetings. `None` when the daemon leaves before it has greeted.
    fn greet(home: &Home, stream: UnixStream) -> Result<Option<Self>, Failure> {
        let peer = peer::of(&stream).map_err(|errno| failure::io("ask who listens", &errno.into()))?;
        if peer.uid != nix::unistd::getuid().as_raw() {
            let message = format!("the daemon's socket is served by user {}, not by you", peer.uid);
            return Err(Failure::new(FailureCode::Failed, message));
        }
        let own = Hello::new();
        let limit = Some(ANSWER_LIMIT);
        stream.set_write_timeout(limit).map_err(|error| failure::io("set up the connection to the daemon", &error))?;
        let (decoder, daemon, home) = (Decoder::default(), own.clone(), home.clone());
        let mut client =
            Self { stream, decoder, daemon, last_id: 0, home, awaited: None, is_gone: false, is_needed: false };
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
        Ok(Some(client))
    }

    /// Makes sure that the daemon speaks as this program does.
    pub(crate) fn checked(self) -> Result<Self, Failure> {
        let Hello { protocol, version, pid } = &self.daemon;
        if *protocol == PROTOCOL {
            return Ok(self);
        }
        let own = env!("CARGO_PKG_VERSION");
        let message = format!(
            "the daemon (pid {pid}, locald {version}) speaks protocol {protocol}, this locald ({own}) speaks {PROTOCOL}"
        );
        let hint = if self.daemon.is_older() {
            "`locald daemon start` has this version take over; services run on".to_owned()
        } else {
            format!("this locald is the older one: install {version} here as well")
        };
        Err(Failure::new(FailureCode::Protocol, message).hint(hint))
    }

    /// The daemon as it introduced itself.
    pub(crate) fn daemon(&self) -> &Hello {
        &self.daemon
    }

    /// Sends a request; [`Client::next`] then tells what becomes of it, also that the daemon has gone.
    pub(crate) fn send(&mut self, request: Request) -> Result<(), Failure> {
        self.begin(Awaited { id: 0, request, before: None, lost: 0, began: Instant::now() })
    }

    fn begin(&mut self, mut awaited: Awaited) -> Result<(), Failure> {
        awaited.id = self.last_id + 1;
        let resumes = (awaited.lost > 0).then(|| awaited.before.clone().unwrap_or_default());
        let mut request = awaited.request.clone();
        if awaited.lost > 0
            && let Request::Apply { timeout, .. } | Request::Prepare { timeout, .. } | Request::Wait { timeout, .. } =
                &mut request
        {
            *timeout = timeout.saturating_sub(awaited.began.elapsed());
        }
        // Kept first: one that could not be sent because the daemon has gone is sent to the next.
        self.awaited = Some(awaited);
        match self.write(request, resumes) {
            Err(_) if self.is_gone => Ok(()),
            written => written,
        }
    }

    /// Has the stop that is awaited done at once, by whichever daemon.
    pub(crate) fn hurry(&mut self) -> Result<(), Failure> {
        let Some(Awaited { request, .. }) = &mut self.awaited else { return Ok(()) };
        if let Request::Stop { now, .. } = request {
            *now = true;
        }
        // Its answer is of no interest: what is awaited is that of the first.
        let request = request.clone();
        match self.write(request, None) {
            Err(_) if self.is_gone => Ok(()),
            written => written,
        }
    }

    /// Whether the daemon went away before it answered, and another can be asked to go on.
    pub(crate) fn is_forsaken(&self) -> bool {
        let is_lasting = |request: &Request| match request {
            Request::Apply { .. }
            | Request::Prepare { .. }
            | Request::Stop { .. }
            | Request::Wait { .. }
            | Request::Shutdown { all: true } => true,
            // What they ask about, or for, went with it.
            Request::Preview { .. }
            | Request::Status { .. }
            | Request::Ports
            | Request::Daemon
            | Request::Shutdown { all: false } => false,
        };
        let can_go_on = |awaited: &Awaited| awaited.lost < MOST_LOST && is_lasting(&awaited.request);
        self.is_gone && self.awaited.as_ref().is_some_and(can_go_on)
    }

    /// Has a daemon that goes away replaced by another, which is asked the same.
    pub(crate) fn needed(mut self) -> Self {
        self.is_needed = true;
        self
    }

    /// Whether the daemon went away before it answered.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// The home whose daemon it is.
    pub(crate) fn home(&self) -> &Home {
        &self.home
    }

    /// Has the daemon behind `next` go on with the request that is awaited.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub(crate) fn go_on_with(&mut self, next: Self) -> Result<(), Failure> {
        let awaited = std::mem::replace(self, next).awaited;
        match awaited {
            Some(awaited) => self.begin(Awaited { lost: awaited.lost + 1, ..awaited }),
            None => Ok(()),
        }
    }

    /// Whether the request that is awaited was put to a daemon that has gone, and is about an end.
    pub(crate) fn goes_on_ending(&self) -> bool {
        let is_about_an_end =
            |of: &Request| matches!(of, Request::Stop { .. } | Request::Wait { until: WaitFor::Stopped, .. });
        self.awaited.as_ref().is_some_and(|awaited| awaited.lost > 0 && is_about_an_end(&awaited.request))
    }

    fn write(&mut self, request: Request, resumes: Option<Before>) -> Result<(), Failure> {
        self.last_id += 1;
        let message = ClientMessage { id: self.last_id, request, resumes };
        let Err(error) = frame::write_message(&mut self.stream, &message) else { return Ok(()) };
        let kind = error.kind();
        Err(if matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) {
            self.is_gone = true;
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
                Received::Closed => {
                    self.is_gone = true;
                    return Err(gone());
                }
                Received::Quiet => return Ok(News::Quiet),
                Received::Interrupted => return Ok(News::Interrupted),
            };
            let Some(awaited) = &mut self.awaited else { continue };
            match message {
                ServerMessage::Event { id, event: Event::Accepted { before } } if id == awaited.id => {
                    awaited.before.get_or_insert(before);
                }
                ServerMessage::Event { id, event: Event::Service(status) } if id == awaited.id => {
                    return Ok(News::Service(status));
                }
                ServerMessage::Reply { id, mut reply } if id == awaited.id => {
                    if let Reply::Outcome(outcome) = &mut *reply
                        && awaited.lost > 0
                    {
                        // The last daemon knows only of its own part.
                        outcome.took = awaited.began.elapsed();
                    }
                    return Ok(News::Reply(*reply));
                }
                ServerMessage::Failure { id, failure } if id == awaited.id => return Err(failure),
                // News of another request.
                ServerMessage::Event { .. } | ServerMessage::Reply { .. } | ServerMessage::Failure { .. } => {}
            }
        }
    }

    /// Asks something that the daemon answers from memory.
    fn ask(&mut self, request: Request) -> Result<Reply, Failure> {
        match self.ask_once(request.clone()) {
            // Another may have taken its place, and knows as much.
            Err(failure) if self.is_gone => {
                let next = match self.is_needed {
                    true => Some(daemon::connect_or_start(&self.home, &mut Screen::silent())?),
                    false => Self::connect(&self.home)?,
                };
                *self = next.ok_or(failure)?;
                self.ask_once(request)
            }
            answer => answer,
        }
    }

    fn ask_once(&mut self, request: Request) -> Result<Reply, Failure> {
        self.send(request)?;
        loop {
            match self.next(ANSWER_LIMIT, &[])? {
                News::Reply(reply) => return Ok(reply),
                News::Service(_) => {}
                News::Quiet | News::Interrupted => return Err(unresponsive(ANSWER_LIMIT)),
            }
        }
    }

    /// Asks how things stand in one project, or in all.
    pub(crate) fn status(&mut self, project: Option<&ProjectId>) -> Result<Vec<ProjectStatus>, Failure> {
        match self.ask(Request::Status { project: project.cloned() })? {
            Reply::Status { projects } => Ok(projects),
            other @ (Reply::Outcome(_) | Reply::Preview { .. } | Reply::Ports { .. } | Reply::Daemon(_)) => {
                Err(unexpected(&other))
            }
        }
    }

    /// Asks what a request to start something would do.
    pub(crate) fn preview(&mut self, request: Request) -> Result<Vec<Preview>, Failure> {
        match self.ask(request)? {
            Reply::Preview { services } => Ok(services),
            other @ (Reply::Outcome(_) | Reply::Status { .. } | Reply::Ports { .. } | Reply::Daemon(_)) => {
                Err(unexpected(&other))
            }
        }
    }

    /// Asks which ports are assigned.
    pub(crate) fn ports(&mut self) -> Result<Vec<AssignedPort>, Failure> {
        match self.ask(Request::Ports)? {
            Reply::Ports { assigned } => Ok(assigned),
            other @ (Reply::Outcome(_) | Reply::Preview { .. } | Reply::Status { .. } | Reply::Daemon(_)) => {
                Err(unexpected(&other))
            }
        }
    }

    /// Asks the daemon about itself.
    pub(crate) fn about(&mut self) -> Result<DaemonStatus, Failure> {
        match self.ask(Request::Daemon)? {
            Reply::Daemon(status) => Ok(status),
            other @ (Reply::Outcome(_) | Reply::Preview { .. } | Reply::Status { .. } | Reply::Ports { .. }) => {
                Err(unexpected(&other))
            }
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
                    self.is_gone = true;
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
        Reply::Preview { .. } => "a preview",
        Reply::Ports { .. } => "a list of ports",
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
        for (version, way_out) in [("9.9.9", "install 9.9.9 here"), ("0.0.9", "`locald daemon start` has this version")]
        {
            let hello = Hello { protocol: PROTOCOL + 1, version: version.into(), pid: 812 };
            let daemon = FakeDaemon::greeting(hello, Vec::new());
            let failure = Client::connect(&daemon.home).expect_err("refused");
            assert_eq!(failure.code, FailureCode::Protocol);
            assert!(failure.hint.as_deref().is_some_and(|hint| hint.contains(way_out)), "{failure:?}");
        }
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
