//! Somebody in front of `up -f`: what they press and which signals come, as descriptors that one poll watches beside the
//! daemon.
//!
//! Where stdin is a terminal and ours to read, keys come one by one and without echo, and Ctrl-C and Ctrl-Z stay signals.
//! The mode of the terminal is put back on every way out, SIGTERM and SIGHUP included. A shell with job control puts its
//! own mode back while we are suspended, and ours when it goes on; a shell that does neither loses its echo meanwhile.

use std::io::{self, IsTerminal, PipeReader, Stdin};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, read, tcgetpgrp};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use signal_hook::low_level::emulate_default_handler;

use crate::edits::Edits;

/// What somebody wants, or what ends by itself what they look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Ctrl-C: end the services, or end them sooner.
    Stop,
    /// `d`: leave them running.
    Leave,
    /// The log is shown no further: nobody reads it any more, it failed, or it was told to end.
    LogEnded,
    /// They have saved one of the files that are watched.
    Edited,
}

/// Somebody in front of this process.
#[derive(Debug)]
pub(crate) struct Person {
    signals: SignalDelivery<UnixStream, SignalOnly>,
    keys: Keys,
    /// The other end of each is closed when a log is shown no further.
    logs: Vec<PipeReader>,
    edits: Option<Edits>,
}

impl Person {
    /// Begins to catch their signals and keys.
    pub(crate) fn attend() -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        let caught = [SIGINT, SIGTERM, SIGHUP, SIGCONT];
        let signals = SignalDelivery::with_pipe(receiver, sender, SignalOnly, caught)?;
        let mut keys = Keys { stdin: io::stdin(), saved: None, is_read: false };
        keys.begin();
        Ok(Self { signals, keys, logs: Vec::new(), edits: None })
    }

    /// Whether they can press `d`.
    pub(crate) fn has_keys(&self) -> bool {
        self.keys.is_read
    }

    /// Watches a log as well: `log` ends when it is shown no further.
    pub(crate) fn watch_log(&mut self, log: PipeReader) {
        self.logs.push(log);
    }

    /// Whether a log is watched, and is shown as far as is known.
    pub(crate) fn watches_log(&self) -> bool {
        !self.logs.is_empty()
    }

    /// Watches files that they may save, in place of others.
    pub(crate) fn watch_edits(&mut self, edits: Edits) {
        self.edits = Some(edits);
    }

    /// What to poll. When one is readable, [`Person::wish`] says what it means.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = vec![self.signals.get_read().as_fd()];
        fds.extend(self.logs.iter().map(AsFd::as_fd));
        fds.extend(self.edits.as_ref().map(Edits::fd));
        fds.extend(self.keys.is_read.then_some(self.keys.stdin.as_fd()));
        fds
    }

    /// Says what they want, if anything. Does not wait.
    ///
    /// SIGTERM and SIGHUP do what they always do, once the terminal is as it was: this process ends, and nothing else.
    pub(crate) fn wish(&mut self) -> Option<Wish> {
        let mut wish = None;
        let pending: Vec<i32> = self.signals.pending().collect();
        for signal in pending {
            match signal {
                SIGINT => wish = Some(Wish::Stop),
                SIGCONT => self.keys.begin(),
                signal => {
                    self.keys.end();
                    let _ = emulate_default_handler(signal);
                }
            }
        }
        if wish.is_none() && self.keys.take().contains(&b'd') {
            wish = Some(Wish::Leave);
        }
        if wish.is_none()
            && let Some(ended) = self.logs.iter().position(|log| is_readable(log.as_fd()))
        {
            self.logs.remove(ended);
            wish = Some(Wish::LogEnded);
        }
        if wish.is_none()
            && let Some(edits) = self.edits.as_mut().filter(|edits| is_readable(edits.fd()))
        {
            edits.take();
            wish = Some(Wish::Edited);
        }
        wish
    }

    /// Waits until they want something.
    pub(crate) fn wait(&mut self) -> io::Result<Wish> {
        loop {
            let mut fds: Vec<PollFd<'_>> =
                self.fds().into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if let Some(wish) = self.wish() {
                return Ok(wish);
            }
        }
    }
}

/// The keys of the terminal that stdin is.
#[derive(Debug)]
struct Keys {
    stdin: Stdin,
    /// The mode in which the terminal was found, once it has been changed.
    saved: Option<Termios>,
    /// Whether keys come to us.
    is_read: bool,
}

impl Keys {
    /// Has keys come one by one and unseen, if the terminal is there and ours. In the background it is another's, and
    /// touching it would suspend us.
    fn begin(&mut self) {
        self.is_read = false;
        if !is_ours() {
            return;
        }
        let Ok(found) = tcgetattr(&self.stdin) else { return };
        let mut mode = found.clone();
        mode.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        mode.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        mode.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        self.saved.get_or_insert(found);
        self.is_read = tcsetattr(&self.stdin, SetArg::TCSANOW, &mode).is_ok();
    }

    /// The keys that were pressed.
    fn take(&mut self) -> Vec<u8> {
        if !self.is_read || !is_readable(self.stdin.as_fd()) {
            return Vec::new();
        }
        // Sent to the background (`bg`), what is typed is for somebody else.
        self.is_read = is_ours();
        let mut keys = [0; 64];
        let count = if self.is_read { read(&self.stdin, &mut keys).unwrap_or(0) } else { 0 };
        // The end of a terminal stays readable.
        self.is_read = count > 0;
        keys[..count].to_vec()
    }

    /// Puts the mode of the terminal back.
    fn end(&mut self) {
        self.is_read = false;
        if let Some(saved) = self.saved.take()
            && is_ours()
        {
            let _ = tcsetattr(&self.stdin, SetArg::TCSANOW, &saved);
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether stdin is a terminal in whose foreground we are.
fn is_ours() -> bool {
    io::stdin().is_terminal() && tcgetpgrp(io::stdin()) == Ok(getpgrp())
}

/// Whether something can be read at once, an end included.
fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}
