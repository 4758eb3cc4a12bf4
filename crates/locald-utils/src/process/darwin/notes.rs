//! What kqueue(2) tells of processes that are watched, and which of them are.

use std::collections::BTreeMap;

use nix::errno::Errno;

use crate::process::ProcessId;
use crate::process::watch::{MemberEvent, ended};
use crate::record::ExitStatus;

/// `NOTE_EXIT` (sys/event.h): it ends.
pub const EXIT: u32 = 0x8000_0000;
/// `NOTE_FORK` (sys/event.h): it forked.
pub const FORK: u32 = 0x4000_0000;
/// `NOTE_EXITSTATUS` (sys/event.h): the data is its wait status.
pub const EXIT_STATUS: u32 = 0x0400_0000;
/// `NOTE_PDATAMASK` (sys/event.h): what of the data is the wait status.
const STATUS_MASK: i32 = 0xf_ffff;

/// What the kernel says of one process at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// Its number.
    pub pid: i32,
    /// Whether it forked since the last note.
    pub forked: bool,
    /// How it ended, if it did.
    pub exited: Option<ExitStatus>,
}

impl Note {
    /// Reads the `ident`, `fflags` and `data` of a `struct kevent`. `None` for no process number.
    #[must_use]
    pub fn read(ident: usize, fflags: u32, data: isize) -> Option<Self> {
        let exited = (fflags & EXIT != 0).then(|| match i32::try_from(data) {
            Ok(status) if fflags & EXIT_STATUS != 0 => ended(status & STATUS_MASK),
            Ok(_) | Err(_) => ExitStatus::Unknown,
        });
        Some(Self { pid: i32::try_from(ident).ok()?, forked: fflags & FORK != 0, exited })
    }
}

/// The kernel's queue of notes, asked by number.
pub trait Queue {
    /// Has the kernel note what the process of this number does.
    ///
    /// # Errors
    /// ESRCH when there is none, or a zombie; EACCES when it is somebody else's.
    fn add(&mut self, pid: i32) -> nix::Result<()>;
    /// Takes that back, notes that were not taken yet included.
    fn remove(&mut self, pid: i32);
    /// Takes all notes there are.
    ///
    /// # Errors
    /// Those of kevent(2).
    fn take(&mut self) -> nix::Result<Vec<Note>>;
}

/// A queue, and who is watched by it under each number.
#[derive(Debug)]
pub struct Watched<Q> {
    queue: Q,
    processes: BTreeMap<i32, ProcessId>,
}

impl<Q: Queue> Watched<Q> {
    /// Watches nobody yet.
    pub fn new(queue: Q) -> Self {
        Self { queue, processes: BTreeMap::new() }
    }

    /// The queue itself.
    pub fn queue(&self) -> &Q {
        &self.queue
    }

    /// Watches `process`, if it has its number still. Returns whether it is watched. `owner` tells who has a number now,
    /// zombies included.
    ///
    /// The kernel keeps one watch for a number until its last note is taken, and would take a watch on the number's next
    /// owner for the old one. So as long as that note is in the queue the next owner is refused.
    ///
    /// # Errors
    /// Those of [`Queue::add`] but ESRCH.
    pub fn add(&mut self, process: ProcessId, owner: impl Fn(i32) -> Option<ProcessId>) -> nix::Result<bool> {
        if let Some(&watched) = self.processes.get(&process.pid) {
            return Ok(watched == process);
        }
        match self.queue.add(process.pid) {
            Ok(()) => {}
            Err(Errno::ESRCH) => return Ok(false),
            Err(errno) => return Err(errno),
        }
        // The number may have changed hands before it was watched. If it still is `process`, it was then: one that ended
        // in between is a zombie now, and its note comes.
        if owner(process.pid) != Some(process) {
            self.queue.remove(process.pid);
            return Ok(false);
        }
        self.processes.insert(process.pid, process);
        Ok(true)
    }

    /// Takes what happened since the last call: a fork before the end, if both did.
    ///
    /// # Errors
    /// Those of [`Queue::take`].
    pub fn drain(&mut self) -> nix::Result<Vec<MemberEvent>> {
        let mut events = Vec::new();
        for note in self.queue.take()? {
            let Some(&process) = self.processes.get(&note.pid) else { continue };
            if note.forked {
                events.push(MemberEvent::Forked(process));
            }
            if let Some(status) = note.exited {
                // The kernel dropped the watch with this note.
                self.processes.remove(&note.pid);
                events.push(MemberEvent::Exited(process, status));
            }
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: ProcessId = ProcessId { pid: 812, start: 50 };
    const NEXT: ProcessId = ProcessId { pid: 812, start: 60 };

    /// A kernel with one number: who has it, and what is noted of it.
    #[derive(Default)]
    struct Kernel {
        notes: Vec<Note>,
        answer: Option<Errno>,
        calls: String,
    }

    impl Queue for Kernel {
        fn add(&mut self, _pid: i32) -> nix::Result<()> {
            self.calls.push('+');
            self.answer.map_or(Ok(()), Err)
        }

        fn remove(&mut self, _pid: i32) {
            self.calls.push('-');
        }

        fn take(&mut self) -> nix::Result<Vec<Note>> {
            Ok(std::mem::take(&mut self.notes))
        }
    }

    fn watched(answer: Option<Errno>) -> Watched<Kernel> {
        Watched::new(Kernel { answer, ..Kernel::default() })
    }

    fn owned_by(process: ProcessId) -> impl Fn(i32) -> Option<ProcessId> {
        move |_| Some(process)
    }

    #[test]
    fn a_note_tells_a_fork_an_end_and_the_status_where_it_has_one() {
        let read = |fflags, data| Note::read(812, fflags, data).map(|note| (note.forked, note.exited));
        assert_eq!(read(FORK, 0), Some((true, None)));
        assert_eq!(read(EXIT | EXIT_STATUS, 42 << 8), Some((false, Some(ExitStatus::Code(42)))));
        assert_eq!(read(FORK | EXIT | EXIT_STATUS, 9), Some((true, Some(ExitStatus::Signal(9)))));
        // Above the status other bits may stand; without the flag there is none, and nobody takes that for success.
        assert_eq!(read(EXIT | EXIT_STATUS, 0x10_0000 | 7 << 8), Some((false, Some(ExitStatus::Code(7)))));
        assert_eq!(read(EXIT, 0), Some((false, Some(ExitStatus::Unknown))));
        assert_eq!(read(EXIT | EXIT_STATUS, isize::MAX), Some((false, Some(ExitStatus::Unknown))));
        assert_eq!(Note::read(usize::MAX, EXIT, 0), None);
    }

    #[test]
    fn a_member_tells_its_fork_before_its_end_and_is_then_forgotten() {
        let mut watched = watched(None);
        assert_eq!(watched.add(OURS, owned_by(OURS)), Ok(true));
        assert_eq!(watched.add(OURS, owned_by(OURS)), Ok(true), "once is enough");
        watched.queue.notes.push(Note { pid: 812, forked: true, exited: None });
        assert_eq!(watched.drain(), Ok(vec![MemberEvent::Forked(OURS)]));
        let last = Note { pid: 812, forked: true, exited: Some(ExitStatus::Code(3)) };
        watched.queue.notes.extend([last, Note { pid: 900, ..last }]);
        let told = vec![MemberEvent::Forked(OURS), MemberEvent::Exited(OURS, ExitStatus::Code(3))];
        assert_eq!(watched.drain(), Ok(told));
        assert_eq!(watched.drain(), Ok(Vec::new()));
        assert_eq!(watched.queue.calls, "+");
    }

    #[test]
    fn who_has_ended_is_not_watched() {
        let mut gone = watched(Some(Errno::ESRCH));
        assert_eq!(gone.add(OURS, owned_by(OURS)), Ok(false));
        assert_eq!(watched(Some(Errno::EACCES)).add(OURS, owned_by(OURS)), Err(Errno::EACCES));
        // Its number is another's, or nobody's, by the time that it is watched.
        for owner in [Some(NEXT), None] {
            let mut late = watched(None);
            assert_eq!(late.add(OURS, |_| owner), Ok(false));
            assert_eq!(late.queue.calls, "+-", "the stranger is let go");
            late.queue.notes.push(Note { pid: 812, forked: true, exited: None });
            assert_eq!(late.drain(), Ok(Vec::new()));
        }
    }

    #[test]
    fn the_next_owner_of_a_number_waits_for_the_last_note_of_the_former() {
        let mut watched = watched(None);
        assert_eq!(watched.add(OURS, owned_by(OURS)), Ok(true));
        watched.queue.notes.push(Note { pid: 812, forked: false, exited: Some(ExitStatus::Signal(9)) });
        assert_eq!(watched.add(NEXT, owned_by(NEXT)), Ok(false));
        assert_eq!(watched.drain(), Ok(vec![MemberEvent::Exited(OURS, ExitStatus::Signal(9))]));
        assert_eq!(watched.add(NEXT, owned_by(NEXT)), Ok(true));
        watched.queue.notes.push(Note { pid: 812, forked: false, exited: Some(ExitStatus::Code(0)) });
        assert_eq!(watched.drain(), Ok(vec![MemberEvent::Exited(NEXT, ExitStatus::Code(0))]));
    }
}
