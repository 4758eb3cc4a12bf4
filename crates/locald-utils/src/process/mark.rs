//! The marks of a run, which all its processes inherit: one in the environment, and on Linux one in a limit.
//!
//! A process that is started with a clean environment loses the first. The second is the soft limit on real-time computing
//! (RLIMIT_RTTIME, setrlimit(2)), in microseconds: unlimited as a rule, it becomes a number of more than 100,000 years that
//! holds the run's id. It means nothing to a program, is inherited over fork, exec, setsid and a change of user, and anybody
//! may read it. Whoever wants a limit of their own sets it, and is found by other evidence.
//!
//! What looks after runs carries a mark as well, so that a daemon or shim is never taken for what it looks after.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::membership::Clues;
use super::os::shows_environment;
use super::{Process, RUN_MARKER, marker};
use crate::name::RunId;

/// The variable that the daemon and the shims of a home carry: the directory of its state.
pub const SUPERVISOR_MARKER: &str = "LOCALD_SUPERVISOR";

/// What the names of our supervisors begin with, as the kernel knows them.
const PROGRAMS: &str = "locald-s";

/// The looks at a process that tell whether it is of a run or looks after runs.
#[derive(Clone, Copy, Debug)]
pub struct Marks<'a> {
    /// The run whose marks count.
    pub run: &'a RunId,
    /// The state directory of the home whose supervisors are no members.
    pub home: Option<&'a OsStr>,
}

impl<'a> Marks<'a> {
    /// The marks of a run, and of the supervisors that carry the same as this process.
    #[must_use]
    pub fn of(run: &'a RunId, home: Option<&'a OsStr>) -> Self {
        Self { run, home }
    }
}

#[cfg(target_os = "linux")]
impl Marks<'_> {
    /// Whether the process with this number may carry the mark that is inherited: it does, or runs as somebody whose limits
    /// take longer to read.
    pub(super) fn may_be_inherited_by(&self, pid: i32) -> bool {
        limit::value(self.run).is_some_and(|mark| limit::is_perhaps(pid, mark))
    }
}

impl Clues for Marks<'_> {
    fn inherits_mark(&self, process: &Process) -> bool {
        limit::value(self.run).is_some_and(|mark| limit::of(process.id.pid) == Some(mark))
    }

    fn carries_mark(&self, process: &Process) -> Option<bool> {
        let pid = process.id.pid;
        match marker(pid, RUN_MARKER) {
            Some(run) => Some(run == self.run.as_str()),
            None => shows_environment(pid).then_some(false),
        }
    }

    fn is_supervisor(&self, process: &Process) -> bool {
        self.home.is_some_and(|home| is_supervisor(process, home))
    }
}

/// Whether a process is the daemon or a shim of the home with this mark.
#[must_use]
pub fn is_supervisor(process: &Process, home: &OsStr) -> bool {
    looks_after(process, home, || marker(process.id.pid, SUPERVISOR_MARKER))
}

/// As [`is_supervisor`]; `marked` tells the home that a process is marked with.
pub(super) fn looks_after(process: &Process, home: &OsStr, marked: impl FnOnce() -> Option<String>) -> bool {
    // The name is at hand, and spares nearly everybody the look. Both lead a session of their own.
    process.name.starts_with(PROGRAMS)
        && process.session == process.id.pid
        && marked().is_some_and(|marked| marked.as_bytes() == home.as_bytes())
}

/// The run whose marks a process carries, in its environment or, where that was cleared, in its limit.
#[must_use]
pub fn run_of(pid: i32) -> Option<RunId> {
    let marked = marker(pid, RUN_MARKER).and_then(|run| RunId::parse(&run));
    marked.or_else(|| limit::run(limit::of(pid)?))
}

/// Marks the calling process, and with it everything that it will ever start, by the limit. Where that limit is in use, or
/// there is none, nothing changes.
pub fn put_on(run: &RunId) {
    limit::set(limit::value(run));
}

/// Takes the limit's mark off the calling process: a daemon that was started from within a run is none of it.
pub fn take_off() {
    limit::set(None);
}

/// The value of [`SUPERVISOR_MARKER`] for the home with this state directory.
#[must_use]
pub fn supervisor(state: &Path) -> &OsStr {
    state.as_os_str()
}

#[cfg(target_os = "linux")]
mod limit {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

    use crate::name::RunId;
    use crate::process::sys;

    /// 2^62 us, 146,000 years: a value from here on is a mark, and below infinity.
    const FIRST: u64 = 1 << 62;

    /// The limit that marks a run: its id has no more than 62 bits.
    pub(super) fn value(run: &RunId) -> Option<u64> {
        u64::from_str_radix(run.as_str(), 16).ok().map(|id| FIRST | (id & (FIRST - 1)))
    }

    /// The run that a limit marks; `None` for one that is no mark.
    pub(super) fn run(limit: u64) -> Option<RunId> {
        let is_mark = (FIRST..FIRST << 1).contains(&limit);
        is_mark.then(|| RunId::parse(&format!("{:016x}", limit - FIRST))).flatten()
    }

    /// Sets or takes off the mark. A limit that somebody has set for a purpose stays.
    pub(super) fn set(mark: Option<u64>) {
        let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_RTTIME) else { return };
        if soft >= FIRST && hard == RLIM_INFINITY {
            // A run without this mark has the others.
            let _ = setrlimit(Resource::RLIMIT_RTTIME, mark.unwrap_or(RLIM_INFINITY), hard);
        }
    }

    /// Whether another process carries this mark, as far as that is quick to ask.
    pub(super) fn is_perhaps(pid: i32, mark: u64) -> bool {
        match sys::rttime_limit(pid) {
            Ok(soft) => soft == mark,
            Err(error) => error == nix::errno::Errno::EPERM,
        }
    }

    /// The mark of another process; `None` where it cannot be asked for.
    pub(super) fn of(pid: i32) -> Option<u64> {
        match sys::rttime_limit(pid) {
            Ok(soft) => Some(soft),
            // It runs as somebody else now. What it shows to everybody takes longer to read.
            Err(nix::errno::Errno::EPERM) => shown(&std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?),
            Err(_) => None,
        }
    }

    /// Reads the soft limit out of `/proc/PID/limits` (proc_pid_limits(5)).
    fn shown(text: &str) -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix("Max realtime timeout"))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_limit_is_read_as_the_kernel_shows_it() {
            let text = std::fs::read_to_string("/proc/self/limits").expect("shown");
            assert!(text.lines().any(|line| line.starts_with("Max realtime timeout")), "{text}");
            let marked = "Max realtime priority     0                    0                    \n\
                          Max realtime timeout      4611686018427387905  unlimited            us        \n";
            assert_eq!(shown(marked), Some(FIRST + 1));
            assert_eq!(shown("Max realtime timeout      unlimited            unlimited            us\n"), None);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod limit {
    use crate::name::RunId;

    // No limit of this kind, and the limits of another process are not to be seen.
    pub(super) fn value(_: &RunId) -> Option<u64> {
        None
    }

    pub(super) fn set(_: Option<u64>) {}

    pub(super) fn of(_: i32) -> Option<u64> {
        None
    }

    pub(super) fn run(_: u64) -> Option<RunId> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ProcessId, Spawn, look};
    use super::*;

    /// Starts a shell that is marked, and then has a child with an empty environment in a session of its own.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_limit_marks_what_has_cleared_its_environment() {
        use nix::sys::wait::waitpid;
        use nix::unistd::Pid;
        let run = RunId::random().expect("random");
        let (input, gate) = std::io::pipe().expect("a pipe");
        // This process may not be marked: other tests run in it. Its child is, by itself.
        let limit = limit::value(&run).expect("hexadecimal");
        let script = format!("ulimit -S -R {limit} && exec env -i setsid sh -c 'read x'");
        let pid = Spawn::new("/bin/bash").arg("-c").arg(script).descriptor(&input, 0).expect("a duplicate").start();
        let pid = pid.expect("a child");
        let process = ProcessId::of(pid).expect("alive");
        let other = RunId::random().expect("random");
        let is_marked = |run: &RunId| look(pid).is_some_and(|process| Marks::of(run, None).inherits_mark(&process));
        while !is_marked(&run) {
            assert!(process.is_alive(), "bash has ended: has it no `ulimit -R`?");
            std::thread::yield_now();
        }
        assert!(!is_marked(&other));
        assert_eq!(run_of(pid), Some(run));
        assert_eq!(marker(pid, "LOCALD_NO_SUCH_VARIABLE"), None);
        drop(gate);
        waitpid(Pid::from_raw(pid), None).expect("reaped");
    }

    #[test]
    fn the_environment_marks_whoever_has_it() {
        use nix::sys::wait::waitpid;
        use nix::unistd::Pid;
        let run = RunId::random().expect("random");
        let (input, gate) = std::io::pipe().expect("a pipe");
        let env = [(RUN_MARKER.into(), run.as_str().into())];
        let pid = Spawn::new("/bin/cat").env(env).descriptor(&input, 0).expect("a duplicate").start();
        let pid = pid.expect("a child");
        // During its exec it shows none.
        let process = ProcessId::of(pid).expect("alive");
        while marker(pid, RUN_MARKER).is_none() {
            assert!(process.is_alive());
            std::thread::yield_now();
        }
        let is_marked =
            |run: &RunId| look(pid).is_some_and(|process| Marks::of(run, None).carries_mark(&process) == Some(true));
        assert!(is_marked(&run) && !is_marked(&RunId::random().expect("random")));
        assert_eq!(run_of(pid), Some(run));
        drop(gate);
        waitpid(Pid::from_raw(pid), None).expect("reaped");
    }

    #[test]
    fn whoever_does_not_carry_the_homes_name_is_no_supervisor() {
        let run = RunId::random().expect("random");
        let own = look(std::process::id().cast_signed()).expect("shown");
        let posing = Process { name: "locald-server".into(), session: own.id.pid, ..own };
        let marks = Marks::of(&run, Some(OsStr::new("/no/such/home")));
        assert!(!marks.is_supervisor(&posing));
    }
}
