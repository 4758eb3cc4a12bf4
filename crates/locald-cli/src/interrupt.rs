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
    registration: SigId,
}

impl Interrupts {
    /// Begins to catch SIGINT.
    pub(crate) fn catch() -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        let registration = low_level::pipe::register(SIGINT, sender)?;
        Ok(Self { receiver, registration })
    }
}

impl AsFd for Interrupts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        low_level::unregister(self.registration);
    }
}
