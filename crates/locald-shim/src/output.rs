//! The output of a run: what the run writes to, a terminal or two pipes, and the way from there to its log.
//!
//! What comes is in the log at once, in the order in which it was read, and nothing is kept back. Bytes of a pipe that nobody here has
//! to see are moved by the kernel (splice(2)); those of a terminal, and those in which a line is waited for, are read and written.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use locald_utils::log::{LogWriter, Stream};
use locald_utils::time::UnixMillis;
use nix::errno::Errno;

use crate::set_nonblocking;
use crate::signs::Signs;
use crate::spawn::Terminal;

/// What a killed shim may cost: one read that was not yet written.
const READ_SIZE: usize = 4096;

/// So many reads in a row before anything else gets a turn, and no more than 256 KiB of output.
const READS_PER_TURN: usize = 64;
const TURN: usize = READS_PER_TURN * READ_SIZE;

/// 256 KiB: what a service may have written before anybody has read it, four times what a pipe has by itself, which makes it half as fast
/// again. Not more, because the kernel gives each user 64 MiB for pipes that are larger than usual, and makes all others small then.
const PIPE_SIZE: usize = 256 * 1024;

/// What a run writes to, and its log.
pub(crate) struct Output {
    /// Where it comes out, as long as it may.
    channels: Vec<Channel>,
    /// Where it goes in. Held until all is read: macOS throws away what is unread when the last one closes a terminal, and a pipe
    /// that everybody has closed is readable for ever.
    ends: Ends,
    log: LogWriter,
    /// Whether no other run writes to the log.
    is_alone: bool,
}

/// One way on which output comes: the master of a terminal, or a pipe.
struct Channel {
    stream: Option<Stream>,
    reader: Rc<OwnedFd>,
}

/// What is given to whoever writes.
enum Ends {
    Terminal {
        slave: OwnedFd,
        /// Its number in the process table.
        number: u64,
    },
    Pipes {
        stdout: OwnedFd,
        stderr: OwnedFd,
        /// What there is to read: nothing.
        null: File,
    },
}

impl Output {
    /// Opens a terminal to be written to.
    pub(crate) fn terminal(log: LogWriter) -> io::Result<Self> {
        let Terminal { master, slave, number } = Terminal::open()?;
        let channels = vec![Channel { stream: None, reader: Rc::new(master) }];
        Ok(Self { channels, ends: Ends::Terminal { slave, number }, log, is_alone: false })
    }

    /// Opens two pipes to be written to. `is_alone` says whether no other run writes to the log.
    pub(crate) fn pipes(log: LogWriter, is_alone: bool) -> io::Result<Self> {
        let null = File::open("/dev/null")?;
        let ((stdout, out), (stderr, err)) = (pipe()?, pipe()?);
        let channels = [(Stream::Stdout, stdout), (Stream::Stderr, stderr)]
            .map(|(stream, reader)| Channel { stream: Some(stream), reader: Rc::new(reader) });
        Ok(Self { channels: channels.into(), ends: Ends::Pipes { stdout: out, stderr: err, null }, log, is_alone })
    }

    /// The number of the terminal in the process table, if it is one.
    pub(crate) fn terminal_number(&self) -> Option<u64> {
        match &self.ends {
            Ends::Terminal { number, .. } => Some(*number),
            Ends::Pipes { .. } => None,
        }
    }

    /// The master of the terminal, if it is one and still there.
    pub(crate) fn master(&self) -> Option<&Rc<OwnedFd>> {
        match &self.ends {
            Ends::Terminal { .. } => self.channels.first().map(|channel| &channel.reader),
            Ends::Pipes { .. } => None,
        }
    }

    /// The descriptors of which the daemon has duplicates: the master of the terminal, or stdout and stderr.
    pub(crate) fn descriptors(&self) -> Vec<Rc<OwnedFd>> {
        self.channels.iter().map(|channel| channel.reader.clone()).collect()
    }

    /// What the leader has as its descriptors 0, 1 and 2.
    pub(crate) fn stdio(&self) -> [BorrowedFd<'_>; 3] {
        match &self.ends {
            Ends::Terminal { slave, .. } => [slave.as_fd(); 3],
            Ends::Pipes { stdout, stderr, null } => [null.as_fd(), stdout.as_fd(), stderr.as_fd()],
        }
    }

    /// What to poll for output, in the order of the numbers that [`Self::read`] takes.
    pub(crate) fn channels(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.channels.iter().map(|channel| channel.reader.as_fd())
    }

    /// Brings what has come on a channel to the log, up to a turn. Returns the checks whose signs are in it.
    ///
    /// While the run is being ended another one may begin to write to the log.
    pub(crate) fn read(&mut self, channel: usize, signs: &mut Signs, is_ending: bool) -> Vec<u32> {
        let Some(Channel { stream, reader }) = self.channels.get(channel) else { return Vec::new() };
        let (stream, reader) = (*stream, reader.clone());
        let may_splice = stream.is_some() && self.is_alone && !is_ending;
        let (mut left, mut buffer, mut found) = (TURN, [0; READ_SIZE], Vec::new());
        self.log.switch(stream, UnixMillis::now());
        for _ in 0..READS_PER_TURN {
            if left == 0 {
                break;
            }
            if may_splice && !signs.hears_output() {
                match self.log.splice(reader.as_fd(), left, UnixMillis::now()) {
                    Ok(Some(count)) => {
                        left = left.saturating_sub(count);
                        continue;
                    }
                    Ok(None) => {}
                    Err(_) => break,
                }
            }
            match nix::unistd::read(&reader, &mut buffer) {
                Ok(0) | Err(Errno::EIO) => {
                    // The terminal is gone for good: macOS revokes it when the leader exits.
                    self.channels.remove(channel);
                    break;
                }
                Ok(count) => {
                    self.log.write(&buffer[..count], UnixMillis::now());
                    found.extend(signs.hear_output(stream, &buffer[..count]));
                    left = left.saturating_sub(count);
                }
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        found
    }

    /// Writes a line of locald's own to the log, behind what the service has written so far. Returns the checks whose signs are in that.
    pub(crate) fn note(&mut self, text: &str, signs: &mut Signs) -> Vec<u32> {
        let found = (0..self.channels.len()).flat_map(|channel| self.read(channel, signs, true)).collect();
        self.log.switch(None, UnixMillis::now());
        self.log.write(format!("locald: {text}\n").as_bytes(), UnixMillis::now());
        found
    }

    /// Reads all that is left, when nobody is left to write more. Returns how many bytes could not be written, of all.
    pub(crate) fn drain(mut self) -> u64 {
        let mut buffer = [0; READ_SIZE];
        // Where the terminal went with the leader, all there was has been read.
        for Channel { stream, reader } in std::mem::take(&mut self.channels) {
            self.log.switch(stream, UnixMillis::now());
            // Who is not of the run may have the pipe, and write for ever. What the run has left fits into it.
            let mut left = if stream.is_some() { PIPE_SIZE } else { usize::MAX };
            while left > 0 {
                match nix::unistd::read(&reader, &mut buffer) {
                    // EAGAIN is the end: the kernel brings what is under way in a terminal before it answers so (n_tty_read).
                    Ok(0) => break,
                    Ok(count) => {
                        self.log.write(&buffer[..count], UnixMillis::now());
                        left = left.saturating_sub(count);
                    }
                    Err(Errno::EINTR) => {}
                    Err(_) => break,
                }
            }
        }
        self.log.end(UnixMillis::now());
        self.log.lost()
    }
}

/// A pipe whose reader does not wait.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    set_nonblocking(&reader)?;
    #[cfg(target_os = "linux")]
    {
        let size = nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_SIZE.try_into().unwrap_or(i32::MAX));
        // One of the usual size does as well (EPERM: the user has too many larger ones).
        let _ = nix::fcntl::fcntl(&reader, size);
    }
    Ok((reader.into(), writer.into()))
}
