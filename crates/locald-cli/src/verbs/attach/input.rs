//! Keys, signals and the end of the run: what happens in front of a service's terminal while its log is shown.

use std::collections::VecDeque;
use std::io::{self, PipeWriter};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use locald_utils::process::sys;
use locald_utils::record::Ended;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{read, write};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::chord::{Chord, Typed};
use crate::shim::{End, Seat};

/// 64 KiB: what is kept of what is typed, or pasted, for a service that does not read. The rest is lost, as in a terminal.
const MOST_UNREAD: usize = 64 * 1024;

/// Ctrl-C as a byte.
const INTERRUPT: u8 = 3;

/// How it ended.
#[derive(Debug)]
pub(super) enum Way {
    /// The person left, or their terminal has gone.
    Left,
    /// The run ended.
    Ended(Box<Ended>),
    /// The shim of the run is gone.
    ShimLost,
    /// A signal asked us to end.
    Signal,
}

/// The person's terminal as it passes every key on and shows none, until this is dropped. A panic puts it back as well.
pub(super) struct Raw(Termios);

impl Raw {
    pub(super) fn enter() -> io::Result<Self> {
        let found = tcgetattr(io::stdin())?;
        set_raw(&found)?;
        let (before, hook) = (Mutex::new(found.clone()), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            restore(&before.lock().unwrap_or_else(PoisonError::into_inner));
            hook(panic);
        }));
        Ok(Self(found))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore(&self.0);
    }
}

fn set_raw(found: &Termios) -> nix::Result<()> {
    let mut mode = found.clone();
    cfmakeraw(&mut mode);
    tcsetattr(io::stdin(), SetArg::TCSANOW, &mode)
}

fn restore(found: &Termios) {
    // A terminal that is gone needs no mode.
    let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, found);
}

/// The size of the person's terminal, if it has one: rows and columns.
pub(super) fn own_size() -> Option<(u16, u16)> {
    sys::window_size(io::stdout()).ok().filter(|(rows, columns)| *rows > 0 && *columns > 0)
}

/// Gives the service's terminal the size of the person's, for whoever types.
fn pass_size_on(seat: &Seat) {
    if let (Some(master), Some(size)) = (&seat.master, own_size()) {
        // A terminal that is gone has no size.
        let _ = sys::set_window_size(master, size);
    }
}

/// Everything to wait for beside the log.
pub(super) struct Input {
    seat: Seat,
    chord: Chord,
    signals: SignalDelivery<UnixStream, SignalOnly>,
    /// Closed with this, however that ends, which ends the showing of the log as well.
    _hold: PipeWriter,
    /// What was typed and the service has not taken yet.
    unread: VecDeque<u8>,
}

/// The thread that waits.
pub(super) struct Serving(JoinHandle<Way>);

impl Serving {
    /// How it ended, once it has.
    pub(super) fn way(self) -> Way {
        match self.0.join() {
            Ok(way) => way,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Input {
    pub(super) fn new(seat: Seat, chord: Chord, hold: PipeWriter) -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        let caught = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH];
        let signals = SignalDelivery::with_pipe(receiver, sender, SignalOnly, caught)?;
        // After that no change of the size is missed.
        pass_size_on(&seat);
        Ok(Self { seat, chord, signals, _hold: hold, unread: VecDeque::new() })
    }

    /// Waits on a thread of its own.
    pub(super) fn serve(mut self) -> Serving {
        Serving(thread::spawn(move || {
            let chord = self.chord.clone();
            self.until_over(&mut Typed::new(&chord))
        }))
    }

    fn until_over(&mut self, typed: &mut Typed<'_>) -> Way {
        loop {
            let stdin = io::stdin();
            let mut fds = vec![
                PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.seat.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.signals.get_read().as_fd(), PollFlags::POLLIN),
            ];
            if let Some(master) = self.seat.master.as_ref().filter(|_| !self.unread.is_empty()) {
                fds.push(PollFd::new(master.as_fd(), PollFlags::POLLOUT));
            }
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return Way::Left,
            }
            let is_ready = |at: usize| fds.get(at).and_then(PollFd::revents).is_some_and(|seen| !seen.is_empty());
            let (has_keys, has_word, has_signal, has_room) = (is_ready(0), is_ready(1), is_ready(2), is_ready(3));
            if has_signal {
                if self.signals.pending().any(|signal| signal != SIGWINCH) {
                    return Way::Signal;
                }
                pass_size_on(&self.seat);
            }
            if has_word {
                match self.seat.end() {
                    Some(End::Ended(ended)) => return Way::Ended(ended),
                    Some(End::ShimLost) => return Way::ShimLost,
                    None => {}
                }
            }
            if has_room {
                self.pass_on();
            }
            if has_keys && self.take_keys(typed) {
                return Way::Left;
            }
        }
    }

    /// Takes what was typed. Says whether the person leaves.
    fn take_keys(&mut self, typed: &mut Typed<'_>) -> bool {
        let mut buffer = [0; 4096];
        let keys = match read(io::stdin(), &mut buffer) {
            Ok(count) if count > 0 => &buffer[..count],
            Err(Errno::EINTR | Errno::EAGAIN) => return false,
            // The terminal is gone.
            Ok(_) | Err(_) => return true,
        };
        let mut through = Vec::new();
        let leaves = typed.take(keys, &mut through);
        match self.seat.master {
            Some(_) => {
                let room = MOST_UNREAD.saturating_sub(self.unread.len());
                self.unread.extend(through.into_iter().take(room));
                self.pass_on();
                leaves
            }
            None => leaves || through.contains(&INTERRUPT),
        }
    }

    /// Has the service take what was typed, as much as it does.
    fn pass_on(&mut self) {
        let Some(master) = &self.seat.master else { return };
        while !self.unread.is_empty() {
            match write(master, self.unread.as_slices().0) {
                Ok(count) => drop(self.unread.drain(..count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                // The terminal is gone; so will the run be.
                Err(_) => self.unread.clear(),
            }
        }
    }
}
