//! Children of the daemon: who they are waited for by, and that none stays a zombie but those that are held.
//!
//! All of the daemon's children are reaped here, on SIGCHLD: shims, `git`, and processes that came to the daemon because
//! their shim died (it is a subreaper). Whoever started a child asks for its exit before anything else is awaited, so no
//! exit can come first. An orphan may have ended before anybody knew that it was coming; the last of those are remembered.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use locald_utils::process::{self, ProcessId, sys};
use locald_utils::record::ExitStatus;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// 256: so many orphans may end between the death of their shim and the moment somebody asks for one of them.
const MOST_REMEMBERED: usize = 256;

/// Tells how children ended.
#[derive(Clone, Default)]
pub(crate) struct Reaper {
    children: Rc<RefCell<Children>>,
}

#[derive(Default)]
struct Children {
    /// Children that are reaped when they end, by number.
    waiting: HashMap<i32, oneshot::Sender<ExitStatus>>,
    /// Children whose zombies stay; `None` once their end has been told.
    held: HashMap<i32, Option<oneshot::Sender<ExitStatus>>>,
    /// How those ended that nobody had asked for, the newest last.
    remembered: VecDeque<(ProcessId, ExitStatus)>,
}

/// A child that has been an orphan, and will not be reaped before this is dropped: its number is its own until then.
pub(crate) struct Held {
    reaper: Reaper,
    pid: i32,
    /// How it ends.
    pub(crate) exit: oneshot::Receiver<ExitStatus>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.reaper.children.borrow_mut().held.remove(&self.pid);
        self.reaper.reap();
    }
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
        let mut children = self.children.borrow_mut();
        while let Ok(Some(pid)) = sys::any_exited() {
            if children.held.contains_key(&pid) {
                // It would be named first for ever. Rare enough to ask for every child by itself.
                for pid in process::children(std::process::id().cast_signed()).unwrap_or_default() {
                    children.look(pid);
                }
                return;
            }
            children.look(pid);
        }
    }

    /// The exit of a child that was just started.
    pub(crate) fn exit_of(&self, pid: i32) -> oneshot::Receiver<ExitStatus> {
        let (sender, receiver) = oneshot::channel();
        self.children.borrow_mut().waiting.insert(pid, sender);
        receiver
    }

    /// Holds on to a process that has become a child because its parent died. `None` when it is no child.
    pub(crate) fn hold(&self, process: ProcessId) -> Option<Held> {
        let own = std::process::id().cast_signed();
        if !process::look(process.pid).is_some_and(|seen| seen.id == process && seen.parent == own) {
            return None;
        }
        let (sender, exit) = oneshot::channel();
        let mut children = self.children.borrow_mut();
        children.held.insert(process.pid, Some(sender));
        // It may have ended already.
        children.look(process.pid);
        drop(children);
        Some(Held { reaper: self.clone(), pid: process.pid, exit })
    }

    /// How an orphan ended that has been reaped already.
    pub(crate) fn remembers(&self, process: ProcessId) -> Option<ExitStatus> {
        let children = self.children.borrow();
        children.remembered.iter().rev().find(|(who, _)| *who == process).map(|(_, status)| *status)
    }
}

impl Children {
    /// Takes notice of one child, if it has ended.
    fn look(&mut self, pid: i32) {
        if let Some(sender) = self.held.get_mut(&pid) {
            if let Ok(Some(status)) = sys::exited(pid)
                && let Some(sender) = sender.take()
            {
                // Whoever asked may have lost interest.
                let _ = sender.send(status);
            }
            return;
        }
        // As long as it is a zombie, it can be told who it was.
        let process = if self.waiting.contains_key(&pid) { None } else { ProcessId::of(pid) };
        let status = match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => ExitStatus::Code(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => ExitStatus::Signal(signal as i32),
            Ok(_) | Err(_) => return,
        };
        if let Some(waiting) = self.waiting.remove(&pid) {
            // As above.
            let _ = waiting.send(status);
        } else if let Some(process) = process {
            self.remembered.push_back((process, status));
            if self.remembered.len() > MOST_REMEMBERED {
                self.remembered.pop_front();
            }
        }
    }
}
