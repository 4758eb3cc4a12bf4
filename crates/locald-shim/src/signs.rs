//! What a run says of itself: lines of its output that are waited for, and notifications.
//!
//! Each sign belongs to a health check and is seen once: what a run has said it has said for good. The shim looks, because it is
//! there when no daemon is; what follows from a sign is for the daemon.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use locald_utils::health;
use locald_utils::log::{Escapes, LineText, Stream};
use locald_utils::shim_protocol::Sign;
use regex_lite::Regex;

use crate::set_nonblocking;

/// 8 KiB: where a longer line is cut for being matched.
const LONGEST_LINE: usize = 8192;

/// 16: whoever writes without end is read a part of in each turn.
pub(crate) const READS_PER_TURN: usize = 16;

/// The signs of one run.
#[derive(Default)]
pub(crate) struct Signs {
    lines: Option<Lines>,
    socket: Option<Socket>,
    pipe: Option<Pipe>,
    /// The checks whose signs have been seen.
    seen: Vec<u32>,
}

/// Lines that are waited for.
struct Lines {
    waited_for: Vec<(u32, Regex)>,
    /// The line that each stream has begun.
    begun: [Line; Stream::PLACES],
}

/// A line that has been begun.
struct Line {
    text: LineText,
    line: Vec<u8>,
}

/// A socket as sd_notify(3) wants it.
struct Socket {
    check: u32,
    socket: UnixDatagram,
    path: PathBuf,
}

/// A pipe whose other end the run has as a descriptor.
struct Pipe {
    check: u32,
    reader: OwnedFd,
}

/// The end of a pipe that the run gets, and its number there.
pub(crate) struct Notification {
    pub(crate) writer: OwnedFd,
    pub(crate) number: i32,
}

/// What to poll for signs.
#[derive(Clone, Copy)]
pub(crate) enum Ear {
    Socket,
    Pipe,
}

impl Signs {
    /// Begins to look for signs.
    ///
    /// # Errors
    /// When a socket or pipe cannot be made, or a pattern is none for this build.
    pub(crate) fn open(wanted: &[Sign]) -> io::Result<(Self, Option<Notification>)> {
        let (mut signs, mut notification) = (Self::default(), None);
        for sign in wanted {
            match sign {
                Sign::Line { check, pattern } => {
                    let pattern = health::pattern(pattern).map_err(io::Error::other)?;
                    let lines = signs.lines.get_or_insert_with(|| Lines {
                        waited_for: Vec::new(),
                        begun: std::array::from_fn(|_| Line { text: LineText::new(Escapes::Strip), line: Vec::new() }),
                    });
                    lines.waited_for.push((*check, pattern));
                }
                Sign::Socket { check, path } => {
                    // The name is the run's own: whatever has it is a leftover.
                    let _ = std::fs::remove_file(path);
                    let socket = UnixDatagram::bind(path)?;
                    socket.set_nonblocking(true)?;
                    signs.socket = Some(Socket { check: *check, socket, path: path.clone() });
                }
                Sign::Descriptor { check, number } => {
                    let (reader, writer) = nix::unistd::pipe()?;
                    set_nonblocking(&reader)?;
                    signs.pipe = Some(Pipe { check: *check, reader });
                    notification = Some(Notification { writer, number: *number });
                }
            }
        }
        Ok((signs, notification))
    }

    /// The checks whose signs have been seen.
    pub(crate) fn seen(&self) -> &[u32] {
        &self.seen
    }

    /// What to poll.
    pub(crate) fn ears(&self) -> impl Iterator<Item = (Ear, BorrowedFd<'_>)> {
        let socket = self.socket.as_ref().map(|socket| (Ear::Socket, socket.socket.as_fd()));
        let pipe = self.pipe.as_ref().map(|pipe| (Ear::Pipe, pipe.reader.as_fd()));
        socket.into_iter().chain(pipe)
    }

    /// Whether lines are waited for.
    pub(crate) fn hears_output(&self) -> bool {
        self.lines.is_some()
    }

    /// Looks through output of a stream. Returns the checks whose signs are in it.
    pub(crate) fn hear_output(&mut self, stream: Option<Stream>, bytes: &[u8]) -> Vec<u32> {
        let Some(lines) = &mut self.lines else { return Vec::new() };
        let found = lines.push(stream, bytes);
        if lines.waited_for.is_empty() {
            self.lines = None;
        }
        self.seen.extend(&found);
        found
    }

    /// Hears a notification. Returns the check that it is the sign of.
    pub(crate) fn hear(&mut self, ear: Ear) -> Option<u32> {
        let check = match ear {
            Ear::Socket => self.socket.as_ref().filter(|socket| socket.says_ready()).map(|socket| socket.check),
            Ear::Pipe => match self.pipe.as_ref()?.says_ready() {
                Some(true) => self.pipe.take().map(|pipe| pipe.check),
                Some(false) => None,
                // Everybody has closed it: nothing will be said there any more.
                None => {
                    self.pipe = None;
                    None
                }
            },
        };
        // The socket stays: a program may say more, and must not get an error for it.
        let is_new = |check: &u32| !self.seen.contains(check);
        let check = check.filter(is_new)?;
        self.seen.push(check);
        Some(check)
    }

    /// Takes away what is on disk.
    pub(crate) fn close(&mut self) {
        if let Some(socket) = self.socket.take() {
            // One that somebody else removed is gone, which is all that is wanted.
            let _ = std::fs::remove_file(socket.path);
        }
    }
}

impl Lines {
    fn push(&mut self, stream: Option<Stream>, bytes: &[u8]) -> Vec<u32> {
        let Self { waited_for, begun } = self;
        let Line { text, line } = &mut begun[Stream::place(stream)];
        let mut found = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            if line.len() < LONGEST_LINE {
                text.push(&piece[..piece.len().min(LONGEST_LINE)], line);
            }
            if piece.ends_with(b"\n") {
                text.end(line);
                let whole = String::from_utf8_lossy(line);
                found
                    .extend(waited_for.extract_if(.., |(_, pattern)| pattern.is_match(&whole)).map(|(check, _)| check));
                line.clear();
            }
        }
        found
    }
}

impl Socket {
    /// Reads what was sent, a part of it in each turn. Descriptors that come along are closed by the kernel, since nobody asks for
    /// them.
    fn says_ready(&self) -> bool {
        let mut buffer = [0; 4096];
        let mut is_ready = false;
        for _ in 0..READS_PER_TURN {
            let Ok(count) = self.socket.recv(&mut buffer) else { break };
            is_ready |= buffer[..count].split(|&byte| byte == b'\n').any(|line| line == b"READY=1");
        }
        is_ready
    }
}

impl Pipe {
    /// Whether a newline has come; `None` when none will.
    fn says_ready(&self) -> Option<bool> {
        let mut buffer = [0; 4096];
        for _ in 0..READS_PER_TURN {
            match nix::unistd::read(&self.reader, &mut buffer) {
                Ok(0) => return None,
                Ok(count) if buffer[..count].contains(&b'\n') => return Some(true),
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return Some(false),
            }
        }
        Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(patterns: &[&str]) -> Signs {
        let wanted: Vec<Sign> = (0_u32..)
            .zip(patterns)
            .map(|(check, pattern)| Sign::Line { check, pattern: (*pattern).to_owned() })
            .collect();
        Signs::open(&wanted).expect("patterns").0
    }

    #[test]
    fn a_line_is_matched_when_it_is_complete_however_it_comes() {
        let mut signs = lines(&["^listening on \\d+$", "worker"]);
        assert!(signs.hear_output(None, b"listening ").is_empty());
        assert!(signs.hear_output(None, b"on 80").is_empty(), "it may go on");
        assert_eq!(signs.hear_output(None, b"80\nwor"), [0]);
        assert_eq!(signs.hear_output(None, b"ker up\nworker up\n"), [1]);
        assert!(signs.hear_output(None, b"listening on 1\n").is_empty(), "seen once");
        assert_eq!(signs.seen(), [0, 1]);
    }

    #[test]
    fn colours_and_bytes_that_are_no_text_keep_no_line_from_matching() {
        let mut signs = lines(&["^ready in \\d+ ms$"]);
        assert_eq!(signs.hear_output(None, b"\x1b[32mready\x1b[0m in 12 ms\r\n"), [0]);
        let mut signs = lines(&["up$"]);
        assert_eq!(signs.hear_output(None, b"\xff\xfe up\n"), [0]);
    }

    #[test]
    fn a_line_of_one_stream_is_not_torn_by_the_other() {
        let mut signs = lines(&["^listening on 80$"]);
        assert!(signs.hear_output(Some(Stream::Stdout), b"listening ").is_empty());
        assert!(signs.hear_output(Some(Stream::Stderr), b"a warning\n").is_empty());
        assert_eq!(signs.hear_output(Some(Stream::Stdout), b"on 80\n"), [0]);
        assert!(!signs.hears_output(), "nothing else is waited for");
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut signs = lines(&["end"]);
        for _ in 0..1000 {
            assert!(signs.hear_output(None, &[b'x'; 4096]).is_empty());
        }
        assert!(signs.lines.as_ref().is_some_and(|lines| lines.begun[0].line.len() <= 2 * LONGEST_LINE));
        assert!(signs.hear_output(None, b"end\n").is_empty(), "it is cut");
        assert_eq!(signs.hear_output(None, b"the end\n"), [0]);
    }

    #[test]
    fn ready_is_a_line_of_a_datagram_and_is_told_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("n");
        let (mut signs, _) = Signs::open(&[Sign::Socket { check: 4, path: path.clone() }]).expect("opens");
        let client = UnixDatagram::unbound().expect("a socket");
        client.send_to(b"STATUS=READY=1 soon", &path).expect("sent");
        assert_eq!(signs.hear(Ear::Socket), None);
        client.send_to(b"STATUS=up\nREADY=1", &path).expect("sent");
        assert_eq!(signs.hear(Ear::Socket), Some(4));
        client.send_to(b"READY=1", &path).expect("may be said again");
        assert_eq!(signs.hear(Ear::Socket), None);
        signs.close();
        assert!(!path.exists());
    }

    #[test]
    fn a_newline_on_the_descriptor_is_a_sign_and_its_end_is_none() {
        let (mut signs, notification) = Signs::open(&[Sign::Descriptor { check: 0, number: 3 }]).expect("opens");
        let writer = notification.expect("a pipe").writer;
        assert_eq!(signs.hear(Ear::Pipe), None);
        nix::unistd::write(&writer, b"almost").expect("writes");
        assert_eq!(signs.hear(Ear::Pipe), None);
        nix::unistd::write(&writer, b"\n").expect("writes");
        assert_eq!(signs.hear(Ear::Pipe), Some(0));

        let (mut signs, notification) = Signs::open(&[Sign::Descriptor { check: 0, number: 3 }]).expect("opens");
        drop(notification);
        assert_eq!(signs.hear(Ear::Pipe), None);
        assert_eq!(signs.ears().count(), 0, "a pipe that has ended is not polled again and again");
    }
}
