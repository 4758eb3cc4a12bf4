//! Children of the daemon: who they are waited for by, and that none stays a zombie.
//!
//! All of the daemon's children are reaped here, on SIGCHLD: shims, `git`, and processes that came to the daemon because
//! their shim died (it is a subreaper). Whoever started a child asks for its exit before anything else is awaited, so no
//! exit can come first.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use locald_utils::record::ExitStatus;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Tells how children ended.
#[derive(Clone, Default)]
pub(crate) struct Reaper {
    waiting: Rc<RefCell<HashMap<i32, oneshot::Sender<ExitStatus>>>>,
}

impl Reaper {
    /// Starts taking notice of children.
    ///
    /// # Errors
    /// When SIGCHLD cannot be caught.
    pub(crate) fn start() -> std::io::Result<Self> {
        let reaper = Self::default();
        let mut signals = signal(SignalKind::child())?;
        let task = reaper.clone();
        tokio::task::spawn_local(async move {
            while signals.recv().await.is_some() {
                task.reap();
            }
        });
        Ok(reaper)
    }

    fn reap(&self) {
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, ExitStatus::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, ExitStatus::Signal(signal as i32)),
                Ok(_) | Err(_) => return,
            };
            if let Some(waiting) = self.waiting.borrow_mut().remove(&pid.as_raw()) {
                // Whoever asked may have lost interest.
                let _ = waiting.send(status);
            }
        }
    }

    /// The exit of a child that was just started, or that has just been found to be one.
    pub(crate) fn exit_of(&self, pid: i32) -> oneshot::Receiver<ExitStatus> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(pid, sender);
        receiver
    }
}
