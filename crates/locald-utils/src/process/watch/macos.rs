//! Forks and exits of others on macOS: EVFILT_PROC of kqueue(2). What an event means is read in `darwin`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};

use super::MemberEvent;
use crate::process::ProcessId;
use crate::process::darwin::notes::{self, Note, Queue, Watched};
use crate::record::ExitStatus;

const _: () = assert!(notes::EXIT == libc::NOTE_EXIT && notes::FORK == libc::NOTE_FORK);
const _: () = assert!(notes::EXIT_STATUS == libc::NOTE_EXITSTATUS);

/// Watches the members of a run, which need not be children, by one kqueue.
///
/// It says nothing of a process that a debugger holds. Members that were not added are not watched: a fork is told
/// without the child, which has to be found in the process table and added.
pub struct MemberWatch(Watched<Events>);

impl MemberWatch {
    /// Makes a watch without members.
    ///
    /// # Errors
    /// Those of kqueue(2): EMFILE, ENOMEM.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Watched::new(Events::new()?)))
    }

    /// Watches a process. Returns whether it is watched now; one that was already stays so.
    ///
    /// If not, it has ended, or the end of the process that had its number before is still to be [drained](Self::drain).
    ///
    /// # Errors
    /// EACCES when it runs as somebody else.
    pub fn add(&mut self, process: ProcessId) -> io::Result<bool> {
        Ok(self.0.add(process, ProcessId::of)?)
    }

    /// What to poll for: it is readable while there are events.
    #[must_use]
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.queue().0.as_fd())
    }

    /// Takes the events since the last call.
    ///
    /// # Errors
    /// Those of kevent(2): ENOMEM.
    pub fn drain(&mut self) -> io::Result<Vec<MemberEvent>> {
        Ok(self.0.drain()?)
    }
}

/// Waits for the end of one process that need not be a child, and tells its exit status.
///
/// Its descriptor becomes readable when the process ends, a little before it is a zombie, and no more once
/// [`Self::status`] has told how.
pub struct ExitStatusWatch {
    watched: Watched<Events>,
    status: Option<ExitStatus>,
}

/// Watches for the end of `process`. `None` when it has ended, also as a zombie: the kernel tells only while it ends.
///
/// # Errors
/// EACCES when it runs as somebody else.
pub fn exit_status_watch(process: ProcessId) -> io::Result<Option<ExitStatusWatch>> {
    let mut watched = Watched::new(Events::new()?);
    let is_watched = watched.add(process, ProcessId::of)?;
    Ok(is_watched.then_some(ExitStatusWatch { watched, status: None }))
}

impl AsFd for ExitStatusWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.queue().0.as_fd()
    }
}

impl ExitStatusWatch {
    /// How the process ended. `None` while it runs. Does not reap.
    ///
    /// # Errors
    /// Those of kevent(2): ENOMEM.
    pub fn status(&mut self) -> io::Result<Option<ExitStatus>> {
        for event in self.watched.drain()? {
            match event {
                MemberEvent::Exited(_, status) => self.status = Some(status),
                MemberEvent::Forked(_) => {}
            }
        }
        Ok(self.status)
    }
}

/// A kqueue of process events.
struct Events(Kqueue);

/// No time at all to wait for events.
const NOW: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 0 };

impl Events {
    fn new() -> nix::Result<Self> {
        Kqueue::new().map(Self)
    }

    fn change(&self, pid: i32, flags: EvFlags) -> nix::Result<()> {
        let change = event(pid, flags | EvFlags::EV_RECEIPT)?;
        // The receipt fills the only place there is, so that no event is taken out with it.
        let mut receipt = [change];
        self.0.kevent(&[change], &mut receipt, Some(NOW))?;
        match i32::try_from(receipt[0].data()) {
            Ok(0) => Ok(()),
            Ok(errno) => Err(Errno::from_raw(errno)),
            Err(_) => Err(Errno::EINVAL),
        }
    }
}

impl Queue for Events {
    fn add(&mut self, pid: i32) -> nix::Result<()> {
        self.change(pid, EvFlags::EV_ADD | EvFlags::EV_CLEAR)
    }

    fn remove(&mut self, pid: i32) {
        // It fails only if the process has ended meanwhile, with which the watch is gone as well.
        let _ = self.change(pid, EvFlags::EV_DELETE);
    }

    fn take(&mut self) -> nix::Result<Vec<Note>> {
        let mut notes = Vec::new();
        let mut events = [event(0, EvFlags::empty())?; 32];
        loop {
            let count = self.0.kevent(&[], &mut events, Some(NOW))?;
            let new = events.iter().take(count);
            notes.extend(new.filter_map(|event| Note::read(event.ident(), event.fflags().bits(), event.data())));
            if count < events.len() {
                return Ok(notes);
            }
        }
    }
}

/// What to watch a process for, or a place for an event.
fn event(pid: i32, flags: EvFlags) -> nix::Result<KEvent> {
    let ident = usize::try_from(pid).map_err(|_| Errno::ESRCH)?;
    let notes = FilterFlag::NOTE_FORK | FilterFlag::NOTE_EXIT | FilterFlag::NOTE_EXITSTATUS;
    Ok(KEvent::new(ident, EventFilter::EVFILT_PROC, flags, notes, 0, 0))
}
