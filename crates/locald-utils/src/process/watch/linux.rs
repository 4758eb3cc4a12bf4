//! Exits of others on Linux: a pidfd, which since 6.15 keeps the exit status of whoever it named.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

use super::{MemberEvent, ended};
use crate::process::{ProcessId, sys};
use crate::record::ExitStatus;

/// Has nothing to watch: orphans come to the shim, whose SIGCHLD tells of every end.
#[derive(Debug)]
pub struct MemberWatch(());

impl MemberWatch {
    /// Makes a watch without members.
    ///
    /// # Errors
    /// Never on Linux.
    pub fn new() -> io::Result<Self> {
        Ok(Self(()))
    }

    /// Watches a process, which on Linux takes nothing.
    ///
    /// # Errors
    /// Never on Linux.
    pub fn add(&mut self, _process: ProcessId) -> io::Result<bool> {
        Ok(true)
    }

    /// What to poll for; on Linux nothing.
    #[must_use]
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Takes the events since the last call; on Linux none.
    ///
    /// # Errors
    /// Never on Linux.
    pub fn drain(&mut self) -> io::Result<Vec<MemberEvent>> {
        Ok(Vec::new())
    }
}

/// Waits for the end of one process that need not be a child, and tells its exit status.
///
/// Its descriptor becomes readable when the process has ended, and hangs up when it was reaped. Only then does the kernel
/// tell others than the parent how it ended; [`Self::status`] has no answer in between.
#[derive(Debug)]
pub struct ExitStatusWatch {
    process: ProcessId,
    pidfd: OwnedFd,
}

/// Watches for the end of `process`. `None` when it has been reaped; nobody can tell its status any more.
///
/// # Errors
/// ENOSYS before Linux 5.3.
pub fn exit_status_watch(process: ProcessId) -> io::Result<Option<ExitStatusWatch>> {
    match sys::pidfd_open(process.pid) {
        // The number cannot change hands while the pidfd is open.
        Ok(pidfd) => Ok((ProcessId::of(process.pid) == Some(process)).then_some(ExitStatusWatch { process, pidfd })),
        Err(Errno::ESRCH) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

impl AsFd for ExitStatusWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl ExitStatusWatch {
    /// How the process ended. `None` while that cannot be told yet: it runs, or is a zombie whose parent is somebody else.
    ///
    /// [`ExitStatus::Unknown`] where it will never be told: a kernel before 6.15, and not our child. Does not reap.
    ///
    /// # Errors
    /// Never on Linux.
    pub fn status(&mut self) -> io::Result<Option<ExitStatus>> {
        Ok(conclude(sys::pidfd_exit_status(self.pidfd.as_fd()), || self.status_of_child(), || self.process.is_alive()))
    }

    /// How it ended, if it is a zombie and our child.
    fn status_of_child(&self) -> Option<ExitStatus> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::PIDFd(self.pidfd.as_fd()), flags).ok()? {
            WaitStatus::Exited(_, code) => Some(ExitStatus::Code(code)),
            WaitStatus::Signaled(_, signal, _) => Some(ExitStatus::Signal(signal as i32)),
            _ => None,
        }
    }
}

/// Decides what is known of an end, from what the pidfd answered and, if that is not enough, from the other two.
fn conclude(
    answer: nix::Result<Option<i32>>,
    status_of_child: impl FnOnce() -> Option<ExitStatus>,
    is_alive: impl FnOnce() -> bool,
) -> Option<ExitStatus> {
    match answer {
        Ok(Some(status)) => Some(ended(status)),
        // Not reaped: only the parent can know.
        Ok(None) => status_of_child(),
        // Reaped, on a kernel of 6.13 or 6.14, which keeps nothing.
        Err(Errno::ESRCH) => Some(ExitStatus::Unknown),
        // A kernel before 6.13, which has no such question. It will never tell, so a zombie is as good as reaped.
        Err(_) => status_of_child().or_else(|| (!is_alive()).then_some(ExitStatus::Unknown)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_kernel_makes_a_status_unknown_and_not_zero() {
        let child = Some(ExitStatus::Code(7));
        let conclude = |answer, child, is_alive| super::conclude(answer, || child, || is_alive);
        assert_eq!(conclude(Ok(Some(42 << 8)), None, false), Some(ExitStatus::Code(42)));
        assert_eq!(conclude(Ok(None), None, true), None);
        assert_eq!(conclude(Ok(None), None, false), None, "somebody else's zombie: the status is yet to come");
        assert_eq!(conclude(Ok(None), child, false), child);
        assert_eq!(conclude(Err(Errno::ESRCH), None, false), Some(ExitStatus::Unknown));
        for errno in [Errno::ENOTTY, Errno::EINVAL, Errno::EPERM] {
            assert_eq!(conclude(Err(errno), None, true), None);
            assert_eq!(conclude(Err(errno), child, false), child);
            assert_eq!(conclude(Err(errno), None, false), Some(ExitStatus::Unknown));
        }
    }
}
