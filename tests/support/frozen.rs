//! A process that runs no further whatever it is sent, but for SIGKILL: as one that sleeps on a disk.

use locald_utils::process::ProcessId;
use nix::sys::ptrace;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// Holds a process by tracing it (ptrace(2)): what is stopped for its tracer does not go on by SIGCONT. Only the thread that
/// made it may drop it.
pub(crate) struct Frozen(Pid);

impl Frozen {
    /// Freezes a process. `None` where the system lets us trace children only (Yama, ptrace_scope).
    pub(crate) fn hold(process: ProcessId) -> Option<Self> {
        let pid = Pid::from_raw(process.pid);
        ptrace::attach(pid).ok()?;
        waitpid(pid, None).expect("it stops");
        Some(Self(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // One that was killed meanwhile cannot be let go. It is a zombie until its tracer has seen that, and then its parent's.
        if ptrace::detach(self.0, None).is_err() {
            let _ = waitpid(self.0, None);
        }
    }
}
