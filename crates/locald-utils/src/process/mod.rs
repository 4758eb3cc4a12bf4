//! Processes: who they are, what belongs to a run, how to signal without ever hitting a stranger.
//!
//! Callers see no difference between systems: [`linux`](self) and `macos` are twins with the same functions, and only
//! they know how a kernel is asked. What the kernel of macOS answers is read by the pure [`darwin`], which is compiled
//! and tested everywhere. Who belongs to a run is decided by one pure function in [`membership`], when to signal whom by
//! the pure [`ladder`]; [`sweep`] carries both out. Unsafe calls live in `sys`, one small function each.

use std::ffi::OsStr;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

pub mod cgroup;
pub mod darwin;
pub mod descriptors;
#[cfg(target_os = "linux")]
mod diag;
pub mod explain;
pub mod features;
pub mod ladder;
pub mod mark;
pub mod membership;
pub mod open_files;
mod spawn;
pub mod sweep;
pub mod sys;
pub mod vicinity;
pub mod watch;

#[cfg(target_os = "linux")]
#[path = "linux.rs"]
mod os;
#[cfg(target_os = "macos")]
#[path = "macos.rs"]
mod os;

pub use os::{
    all, become_subreaper, boot_id, children, command, descendants, exit_watch, listeners, listening_by, look, marker,
    open_ports, own_children, own_executable, release_memory, show_arguments, sockets_of, still_open, terminal_number,
    working_directory,
};
pub use spawn::Spawn;

/// The variable in which every process of a run carries the run's id.
pub const RUN_MARKER: &str = "LOCALD_RUN";

/// The variable by which the processes of a health check's command are known.
pub const PROBE_MARKER: &str = "LOCALD_PROBE";
/// The variable in which every process of a run carries `project:service`.
pub const SERVICE_MARKER: &str = "LOCALD_SERVICE";

/// Whether orphans of a run come to its shim (PR_SET_CHILD_SUBREAPER), so that no children left means nothing left.
///
/// macOS has no such thing: there the process table is searched, and emptiness is the best that can be seen.
pub const ORPHANS_COME_TO_THE_SHIM: bool = cfg!(target_os = "linux");

/// Identifies a process within one boot: its number and when it started.
///
/// A number alone is reused; no signal goes to a number alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process number.
    pub pid: i32,
    /// When it started: clock ticks since boot on Linux (proc_pid_stat(5), field 22), microseconds since 1970 on macOS.
    pub start: u64,
}

impl ProcessId {
    /// The identity of the process that now has the number `pid`. A zombie counts, a reaped process does not.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        look(pid).map(|process| process.id)
    }

    /// The identity of the calling process.
    ///
    /// # Errors
    /// When the system does not show us ourselves (no `/proc`).
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id().cast_signed())
            .ok_or_else(|| io::Error::other("the process table does not show this process; is /proc mounted?"))
    }

    /// Whether this very process still exists and is more than a zombie. Who cannot look, for want of a descriptor, takes it for
    /// alive.
    #[must_use]
    pub fn is_alive(self) -> bool {
        match look(self.pid) {
            Some(process) => process.id == self && process.state != ProcessState::Zombie,
            // That nobody is shown is nobody's death.
            None => os::is_blind(),
        }
    }
}

/// What the kernel tells about one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Who it is.
    pub id: ProcessId,
    /// Its parent's number.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Its session; 0 for a zombie of macOS of which nothing tells it.
    pub session: i32,
    /// Its controlling terminal as a device number, 0 for none.
    pub terminal: u64,
    /// The real user it runs as.
    pub uid: u32,
    /// What it does.
    pub state: ProcessState,
    /// The kernel's short name for it, at most 15 bytes on Linux.
    pub name: String,
    /// Who started it, in numbers that no kernel gives out twice; macOS has them, Linux does not.
    pub lineage: Option<Lineage>,
}

/// Numbers of processes that are unique within a boot: unlike a pid and a parent they outlive whoever they name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// Its own.
    pub own: u64,
    /// That of the process that started it, even when that one is gone and launchd is its parent.
    pub parent: u64,
}

/// What a process does, as far as it matters for ending it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// Runs or sleeps; takes signals.
    Live,
    /// Is stopped (SIGSTOP, SIGTSTP, a debugger): takes nothing but SIGKILL and SIGCONT.
    Stopped,
    /// Sleeps where no signal reaches it. macOS does not tell: there it counts as live.
    Uninterruptible,
    /// Has ended and waits for its parent.
    Zombie,
}

/// A listening TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The process that holds it, where the kernel lets us see that.
    pub process: Option<Process>,
    /// Whether it listens on IPv6.
    pub v6: bool,
}

/// A listening TCP socket, as the kernel tells it from every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Socket {
    /// The port it listens on.
    pub port: u16,
    /// Its number: the inode on Linux, the address of the kernel's structure on macOS.
    pub number: u64,
}

/// Where a process waits for TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    /// The number of the process.
    pub pid: i32,
    /// The port.
    pub port: u16,
    /// The address; that of all addresses of IPv6 takes connections of IPv4 too, as a rule.
    pub address: IpAddr,
}

/// A process that holds something we want, described for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Who it is.
    pub process: Process,
    /// Its command line.
    pub command: String,
    /// Its working directory.
    pub directory: Option<PathBuf>,
    /// The run it belongs to, if it is one of ours.
    pub run: Option<String>,
    /// `project:service` of that run.
    pub service: Option<String>,
    /// How long ago it was started, where the system says so.
    pub age: Option<Duration>,
}

/// The command of a process as it may be shown: without [secrets](crate::redaction), and its name where it cannot be read.
#[must_use]
pub fn shown_command(process: &Process) -> String {
    match command(process.id.pid) {
        Some(command) => crate::redaction::line(&command).into_owned(),
        None => process.name.clone(),
    }
}

impl Holder {
    /// Looks up what there is to say about `process`.
    #[must_use]
    pub fn describe(process: Process) -> Self {
        let pid = process.id.pid;
        Self {
            command: shown_command(&process),
            directory: working_directory(pid),
            run: marker(pid, RUN_MARKER),
            service: marker(pid, SERVICE_MARKER),
            age: features::age(process.id),
            process,
        }
    }
}

/// Why a signal was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignalError {
    /// The process runs as somebody else (EPERM, kill(2)).
    #[error("not permitted")]
    NotPermitted,
    /// Another error of the kernel.
    #[error("{0}")]
    Other(Errno),
}

/// Sends `signal` to exactly this process.
///
/// Returns `Ok(false)` if it is gone or its number belongs to another process now; that one gets nothing. On Linux the
/// check and the signal go through one pidfd, so that nothing can come between them. macOS since 14.4 checks and signals
/// in one call; before, it is asked right before the signal.
///
/// # Errors
/// [`SignalError::NotPermitted`] if the process changed its user.
pub fn signal(process: ProcessId, signal: Signal) -> Result<bool, SignalError> {
    os::signal(process, signal)
}

/// The session that has a terminal, asked of its master or by a member of the session (tcgetsid(3)); `None` when no session
/// has it.
#[must_use]
pub fn terminal_session(terminal: impl AsFd) -> Option<i32> {
    nix::sys::termios::tcgetsid(terminal).ok().map(Pid::as_raw)
}

/// Sends `signal` to the process group of `leader`, the leader included.
///
/// `leader` must be a child that the caller has not reaped, or otherwise known to pin the number: a process group's
/// number is not reused while its leader is unreaped or any member lives (POSIX XBD 3.295, "process ID"). Returns
/// `Ok(false)` if the group is empty. Delivery is not proof of death, and success is not proof of life: Linux takes a
/// signal for a group of zombies, macOS answers EPERM for one.
///
/// # Errors
/// [`SignalError::NotPermitted`] if no member could be signalled because all run as somebody else.
pub fn signal_group(leader: i32, signal: Signal) -> Result<bool, SignalError> {
    if leader <= 1 || leader == nix::unistd::getpgrp().as_raw() {
        return Err(SignalError::Other(Errno::EINVAL));
    }
    sent(nix::sys::signal::killpg(Pid::from_raw(leader), signal))
}

/// Reads a signal call's result: gone is not an error.
fn sent(result: nix::Result<()>) -> Result<bool, SignalError> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(Errno::EPERM) => Err(SignalError::NotPermitted),
        Err(errno) => Err(SignalError::Other(errno)),
    }
}

/// Finds who listens on a TCP port, on any address of either family.
///
/// # Errors
/// When the kernel's tables cannot be read.
pub fn port_holders(port: u16) -> io::Result<Vec<Option<Holder>>> {
    let listeners = listeners(port, None)?;
    Ok(listeners.into_iter().map(|listener| listener.process.map(Holder::describe)).collect())
}

/// Who may become the parent of orphans of this process, when it was a subreaper and is gone: its parents, its own first, less
/// the first process of the system. None on macOS, where all orphans go to that one.
#[must_use]
pub fn reapers() -> Vec<ProcessId> {
    let mut found = Vec::new();
    let mut next = if ORPHANS_COME_TO_THE_SHIM { std::os::unix::process::parent_id().cast_signed() } else { 1 };
    // A chain that is read while it changes may lead anywhere, but not for ever.
    while next > 1 && !found.iter().any(|known: &ProcessId| known.pid == next) {
        let Some(process) = look(next) else { break };
        found.push(process.id);
        next = process.parent;
    }
    found
}

/// Of two processes that hold one socket, the one that had it first: it made the socket, the other inherited it, often
/// for no longer than it takes to run another program.
fn first_holder(one: Option<Process>, other: Option<Process>) -> Option<Process> {
    match (one, other) {
        (Some(one), Some(other)) => {
            let is_older = other.id.start < one.id.start || one.parent == other.id.pid;
            Some(if is_older { other } else { one })
        }
        (one, other) => one.or(other),
    }
}

/// Whether `members` listen on a TCP port: over IPv4, and over IPv6.
///
/// # Errors
/// When the kernel's tables cannot be read.
pub fn listens_on(members: &[i32], port: u16) -> io::Result<(bool, bool)> {
    let listeners = listeners(port, Some(members))?;
    let mut own = listeners.iter().filter(|listener| listener.process.is_some());
    Ok((own.clone().any(|listener| !listener.v6), own.any(|listener| listener.v6)))
}

/// Waits until a process has ended, for at most `limit`. Returns whether it has; a zombie has.
///
/// # Errors
/// When the system cannot tell (pidfd_open(2) before Linux 5.3).
pub fn await_exit(process: ProcessId, limit: Duration) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let Some(watch) = exit_watch(process)? else { return Ok(true) };
    let until = Instant::now() + limit;
    while process.is_alive() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(watch.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}

/// Finds a program as execvp(3) does: a name with a slash is a path, any other is looked for in `path`, a value of `PATH`.
///
/// # Errors
/// When there is none; with a file of that name that is not executable, if one was seen on the way.
pub fn find_program(name: &str, path: Option<&OsStr>) -> Result<PathBuf, Option<PathBuf>> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let mut not_executable = None;
    for dir in std::env::split_paths(path.unwrap_or_default()) {
        // An empty entry means the working directory (POSIX XBD 8.3).
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir.as_path() };
        let candidate = dir.join(name);
        if !candidate.is_file() {
            continue;
        }
        if nix::unistd::access(&candidate, nix::unistd::AccessFlags::X_OK).is_ok() {
            return Ok(candidate);
        }
        not_executable.get_or_insert(candidate);
    }
    Err(not_executable)
}

/// The name of a user, or its number where it has none.
#[must_use]
pub fn user_name(uid: u32) -> String {
    match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        Ok(None) | Err(_) => uid.to_string(),
    }
}

/// The name that the system's own list has for a user, or its number.
///
/// Without asking other services for it: a statically linked program cannot load what they need (getpwuid(3)).
#[must_use]
pub fn local_user_name(uid: u32) -> String {
    let list = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?.to_owned();
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    };
    list.lines().find_map(name).unwrap_or_else(|| uid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_name_or_a_number() {
        assert_eq!(local_user_name(0), "root");
        assert_eq!(local_user_name(4_000_000_000), "4000000000");
    }

    #[test]
    fn a_socket_is_its_makers_and_not_that_of_a_child_with_a_lower_number() {
        let process = |pid, start, parent| Process {
            id: ProcessId { pid, start },
            parent,
            ..look(std::process::id().cast_signed()).expect("shown")
        };
        let (maker, child, twin) = (process(900, 50, 1), process(80, 60, 900), process(81, 50, 900));
        for other in [&child, &twin] {
            for (a, b) in [(&maker, other), (other, &maker)] {
                assert_eq!(first_holder(Some(a.clone()), Some(b.clone())), Some(maker.clone()));
            }
        }
        assert_eq!(first_holder(None, Some(child.clone())), Some(child));
        assert_eq!(first_holder(None, None), None);
    }

    #[test]
    fn a_recycled_number_is_not_signalled() {
        let own = ProcessId::own().expect("shown");
        let stranger = ProcessId { pid: own.pid, start: own.start + 1 };
        assert_eq!(signal(stranger, Signal::SIGKILL), Ok(false));
        assert!(!stranger.is_alive());
        assert!(own.is_alive());
    }

    #[test]
    fn the_calling_process_is_seen_as_it_is() {
        let own = std::process::id().cast_signed();
        let seen = look(own).expect("alive");
        let number = |pid: nix::Result<Pid>| pid.expect("alive").as_raw();
        assert_eq!(seen.parent, nix::unistd::getppid().as_raw());
        assert_eq!(seen.group, number(nix::unistd::getpgid(None)));
        assert_eq!(seen.session, number(nix::unistd::getsid(None)));
        assert_eq!((seen.uid, seen.state), (nix::unistd::getuid().as_raw(), ProcessState::Live));
        assert!(
            all().expect("readable").iter().any(|process| process.id == seen.id && process.session == seen.session)
        );
        assert_eq!(working_directory(own), std::env::current_dir().ok());
        assert_eq!(marker(own, "PATH"), std::env::var("PATH").ok());
        assert_eq!(marker(own, "LOCALD_NO_SUCH_VARIABLE"), None);
        let command = command(own).expect("alive");
        assert!(command.starts_with(&std::env::args().next().expect("a name")), "{command}");
        assert_eq!(boot_id().expect("known"), boot_id().expect("known"));
        assert_eq!(look(0), None);
    }

    #[test]
    fn the_own_group_is_never_signalled() {
        assert!(signal_group(nix::unistd::getpgrp().as_raw(), Signal::SIGKILL).is_err());
        for leader in [-1, 0, 1] {
            assert!(signal_group(leader, Signal::SIGKILL).is_err());
        }
    }

    #[test]
    fn the_end_of_a_process_is_waited_for_and_not_for_ever() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
        let process = ProcessId::of(child.id().cast_signed()).expect("alive");
        assert!(!await_exit(process, Duration::from_millis(1)).expect("watched"));
        drop(child.stdin.take());
        assert!(await_exit(process, Duration::from_secs(30)).expect("watched"), "a zombie has ended");
        child.wait().expect("reaped");
        assert!(await_exit(process, Duration::ZERO).expect("watched"));
    }

    #[test]
    fn children_and_descendants_are_found() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "sleep 600 & read x"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("sh");
        let pid = child.id().cast_signed();
        let own = std::process::id().cast_signed();
        // The shell starts its child some time after it was itself started.
        let grandchild = loop {
            if let Some(&grandchild) = children(pid).expect("readable").first() {
                break grandchild;
            }
            std::thread::yield_now();
        };
        assert!(children(own).expect("readable").contains(&pid));
        let below: Vec<i32> = descendants(own).expect("readable").iter().map(|process| process.id.pid).collect();
        assert!(below.contains(&pid) && below.contains(&grandchild));
        let seen = look(grandchild).expect("alive");
        assert_eq!((seen.parent, seen.uid), (pid, nix::unistd::getuid().as_raw()));
        assert_eq!(signal(seen.id, Signal::SIGKILL), Ok(true));
        drop(child.stdin.take());
        child.wait().expect("reaped");
        assert_eq!(ProcessId::of(pid), None);
    }

    #[test]
    fn a_bare_name_is_looked_for_in_the_given_path() {
        assert_eq!(find_program("./x/y", None), Ok(PathBuf::from("./x/y")));
        assert_eq!(find_program("sh", Some(OsStr::new("/nonexistent:/bin"))), Ok(PathBuf::from("/bin/sh")));
        assert_eq!(find_program("sh", Some(OsStr::new("/nonexistent"))), Err(None));
        assert_eq!(find_program("passwd", Some(OsStr::new("/etc"))), Err(Some(PathBuf::from("/etc/passwd"))));
        assert_eq!(find_program("sh", None), Err(None));
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let port = socket.local_addr().expect("bound").port();
        let own = std::process::id().cast_signed();
        assert_eq!(listens_on(&[own], port).expect("readable"), (true, false));
        assert_eq!(listens_on(&[1], port).expect("readable"), (false, false));
        let holders = port_holders(port).expect("readable");
        assert!(holders.iter().flatten().any(|holder| holder.process.id.pid == own));
        drop(socket);
        assert_eq!(listens_on(&[own], port).expect("readable"), (false, false));
    }

    #[test]
    fn where_a_process_listens_is_told_with_its_address() {
        let own = std::process::id().cast_signed();
        let addresses: [IpAddr; 4] = [
            std::net::Ipv4Addr::new(127, 0, 0, 1).into(),
            std::net::Ipv4Addr::UNSPECIFIED.into(),
            std::net::Ipv6Addr::LOCALHOST.into(),
            std::net::Ipv6Addr::UNSPECIFIED.into(),
        ];
        for address in addresses {
            // Where there is no IPv6 nobody listens there.
            let Ok(socket) = std::net::TcpListener::bind((address, 0)) else { continue };
            let port = socket.local_addr().expect("bound").port();
            let found = listening_by(&[own, 1]).expect("readable");
            let here: Vec<&Listening> = found.iter().filter(|found| found.port == port).collect();
            assert_eq!(here, [&Listening { pid: own, port, address }]);
            assert!(open_ports().expect("readable").contains(&port));
        }
        assert_eq!(listening_by(&[]).expect("readable"), []);
    }
}
