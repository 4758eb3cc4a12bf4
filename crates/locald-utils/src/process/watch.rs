//! Watches processes that are not our children: when they fork, when they end, and how.
//!
//! On Linux orphans of a run come to its shim, which needs no other watch than SIGCHLD. On macOS they go to launchd, so the
//! shim watches every member by a kqueue. Both systems have the same [`MemberWatch`], which on Linux has nothing to
//! watch. An [`ExitStatusWatch`] is for whoever is not the parent and still wants the true exit status: a daemon that took
//! a run over.

#[cfg(target_os = "linux")]
#[path = "watch/linux.rs"]
mod os;
#[cfg(target_os = "macos")]
#[path = "watch/macos.rs"]
mod os;

pub use os::{ExitStatusWatch, MemberWatch, exit_status_watch};

use super::ProcessId;
use crate::record::ExitStatus;

/// What happened to a watched process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberEvent {
    /// It forked, once or more often. The kernel does not tell whom: look at the process table soon, as a child whose
    /// parent ends first is hard to attribute.
    Forked(ProcessId),
    /// It has ended, and this is how. It may not be a zombie yet: the event comes before that, so the table may still
    /// show it alive, and a wait that does not block may find nothing. Whoever is the parent waits for SIGCHLD, or blocks.
    Exited(ProcessId, ExitStatus),
}

/// Reads a wait status (wait(2)) of a process that has ended.
pub(super) fn ended(status: i32) -> ExitStatus {
    match status & 0x7f {
        0 => ExitStatus::Code((status >> 8) & 0xff),
        signal => ExitStatus::Signal(signal),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::fd::AsFd;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::signal::Signal;

    use super::*;

    /// A shell, and a child of it that exits with 42 at the end of the shell's input and is reaped by the shell alone.
    fn grandchild() -> (Child, ProcessId) {
        let script = "exec 3<&0; (read x <&3; exit 42) & echo $!; wait $!; read y";
        let mut command = Command::new("sh");
        let mut shell = command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sh");
        let mut line = String::new();
        BufReader::new(shell.stdout.take().expect("piped")).read_line(&mut line).expect("a number");
        (shell, ProcessId::of(line.trim().parse().expect("a number")).expect("alive"))
    }

    fn status(watch: &mut ExitStatusWatch) -> ExitStatus {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], PollTimeout::from(60_000_u16)).expect("polled");
            if let Some(status) = watch.status().expect("told") {
                return status;
            }
            // A zombie makes it readable before its status can be told.
            assert!(Instant::now() < until, "nobody told how it ended");
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_exit_code_of_a_process_that_someone_else_reaps_is_learnt() {
        let (mut shell, process) = grandchild();
        let mut watch = exit_status_watch(process).expect("watched").expect("alive");
        assert_eq!(watch.status().expect("told"), None, "it runs");
        drop(shell.stdin.take());
        let known = status(&mut watch);
        let expected = if tells_strangers() { ExitStatus::Code(42) } else { ExitStatus::Unknown };
        assert_eq!((known, watch.status().expect("told")), (expected, Some(expected)), "it stays known");
        shell.wait().expect("reaped");
        assert!(exit_status_watch(process).expect("asked").is_none(), "nobody is left to watch");
    }

    #[test]
    fn the_signal_that_ended_a_stranger_is_learnt() {
        let (mut shell, process) = grandchild();
        let mut watch = exit_status_watch(process).expect("watched").expect("alive");
        assert_eq!(super::super::signal(process, Signal::SIGKILL), Ok(true));
        let expected = if tells_strangers() { ExitStatus::Signal(9) } else { ExitStatus::Unknown };
        assert_eq!(status(&mut watch), expected);
        drop(shell.stdin.take());
        shell.wait().expect("reaped");
    }

    #[test]
    fn a_child_of_ours_tells_its_status_and_is_left_to_be_reaped() {
        let mut child = Command::new("sh").args(["-c", "read x; exit 7"]).stdin(Stdio::piped()).spawn().expect("sh");
        let process = ProcessId::of(child.id().cast_signed()).expect("alive");
        let mut watch = exit_status_watch(process).expect("watched").expect("alive");
        drop(child.stdin.take());
        assert_eq!(status(&mut watch), ExitStatus::Code(7));
        assert_eq!(child.wait().expect("not reaped yet").code(), Some(7));
    }

    #[test]
    fn a_recycled_number_is_not_watched() {
        let own = ProcessId::own().expect("shown");
        let stranger = ProcessId { start: own.start + 1, ..own };
        assert!(exit_status_watch(stranger).expect("asked").is_none());
    }

    /// Whether the system tells how a process ended to others than its parent: Linux since 6.15, macOS always.
    fn tells_strangers() -> bool {
        if cfg!(target_os = "macos") {
            return true;
        }
        let name = nix::sys::utsname::uname().expect("known");
        let release = name.release().to_string_lossy().into_owned();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u32>().ok());
        (numbers.next(), numbers.next()) >= (Some(6), Some(15))
    }

    #[test]
    fn a_wait_status_is_a_code_or_a_signal() {
        assert_eq!([0, 42 << 8, 255 << 8].map(ended), [0, 42, 255].map(ExitStatus::Code));
        // With and without a core dump.
        assert_eq!([9, 11 | 0x80].map(ended), [9, 11].map(ExitStatus::Signal));
    }

    #[test]
    fn a_member_watch_tells_of_forks_and_ends_where_orphans_do_not_come() {
        let mut members = MemberWatch::new().expect("made");
        let (mut shell, process) = grandchild();
        assert!(members.add(process).expect("added"));
        drop(shell.stdin.take());
        if super::super::ORPHANS_COME_TO_THE_SHIM {
            assert!(members.as_fd().is_none(), "nothing to poll for");
            assert_eq!(members.drain().expect("read"), []);
        } else {
            let fd = members.as_fd().expect("something to poll for");
            poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(60_000_u16)).expect("polled");
            assert_eq!(members.drain().expect("read"), [MemberEvent::Exited(process, ExitStatus::Code(42))]);
        }
        shell.wait().expect("reaped");
    }
}
