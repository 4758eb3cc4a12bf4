//! Ctrl-C while waiting: a descriptor that becomes readable, so that one poll watches both the daemon and the person.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::SigId;
use signal_hook::consts::SIGINT;
use signal_hook::low_level;

/// SIGINT as bytes to read, for as long as it lives. SIGTERM and SIGHUP keep ending the process: the daemon does not
/// mind, and nothing of the terminal was changed.
#[derive(Debug)]
pub(crate) struct Interrupts {
    receiver: UnixStream,
    /// `None` in tests, which write to the descriptor themselves.
    registration: Option<SigId>,
}

impl Interrupts {
    /// Begins to catch SIGINT.
    pub(crate) fn catch() -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        let registration = low_level::pipe::register(SIGINT, sender)?;
        Ok(Self { receiver, registration: Some(registration) })
    }

    /// Interrupts that a test writes to the other end.
    #[cfg(test)]
    pub(crate) fn from_stream(receiver: UnixStream) -> Self {
        Self { receiver, registration: None }
    }
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        if let Some(registration) = self.registration.take() {
            low_level::unregister(registration);
        }
    }
}
