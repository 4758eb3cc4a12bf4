//! Which way a signal goes on macOS, so that it cannot reach a stranger.
//!
//! The kernel numbers processes anew at every fork and every exec (`p_idversion`), and since macOS 14.4 it takes a signal for a
//! pid together with that version: `proc_signal_with_audittoken`, whose check and delivery nothing comes between. [`send`]
//! decides in which order to ask; [`Target`] is the asking.

use nix::errno::Errno;

use super::UniqueId;
use crate::process::{Process, ProcessId, ProcessState};

/// How often a version that is out of date by the time of the signal is read again.
///
/// Only an exec, or an end, within the few microseconds between the two makes it so.
const RETRIES: usize = 3;

/// A process number, and the kernel's calls on it.
pub trait Target {
    /// The unique id of whoever has the number.
    fn unique_id(&mut self) -> Option<UniqueId>;
    /// What the process table shows of whoever has the number.
    fn look(&mut self) -> Option<Process>;
    /// Signals whoever has the number, if it is of that version. `None` on a system without the call.
    ///
    /// # Errors
    /// ESRCH when it is of another version, gone, or a zombie.
    fn signal_version(&mut self, version: i32) -> Option<nix::Result<()>>;
    /// Signals whoever has the number (kill(2)).
    ///
    /// # Errors
    /// Those of kill(2).
    fn signal_number(&mut self) -> nix::Result<()>;
}

/// Signals `process` and nobody else, as far as the system allows.
///
/// The version is read before the table is: whoever the table then shows had the number already, or has got it since and
/// with it another version. So if the table shows `process`, the signal for that version reaches it or nobody.
///
/// Where there is no such call (before macOS 14.4), or it refuses, or the process runs one program after another faster
/// than its version can be read, the number is signalled right after the table showed `process`. In the microseconds
/// between, it would have to end, be reaped, and 99,000 others be started. Stopping it first (SIGSTOP), looking again and
/// killing it then was weighed and left: a process stops some time after the signal, so the gap would stay; its parent
/// is told of the stop and may act on it; and a stranger would be stopped, seen by its user, before it is let go.
///
/// # Errors
/// ESRCH when `process` has ended, a zombie included, or its number is another's now, which then got nothing; else what
/// kill(2) says.
pub fn send(target: &mut impl Target, process: ProcessId) -> nix::Result<()> {
    let mut unique = None;
    for _ in 0..=RETRIES {
        let Some(version) = confirm(target, process, &mut unique)? else { break };
        match target.signal_version(version) {
            Some(Ok(())) => return Ok(()),
            Some(Err(Errno::ESRCH)) => {}
            // What a sandbox refuses for this call it may still allow kill(2), whose word is the last.
            Some(Err(_)) | None => break,
        }
    }
    confirm(target, process, &mut unique)?;
    target.signal_number()
}

/// Makes sure that the number belongs to `process`, and that it has not ended. Returns its version, where the kernel tells it.
///
/// `unique` is what the kernel told before, if it did. It then has to tell the same: two processes may have started with
/// the same number in the same microsecond, if a clock was set, but no unique id is given out twice.
fn confirm(target: &mut impl Target, process: ProcessId, unique: &mut Option<u64>) -> nix::Result<Option<i32>> {
    let said = target.unique_id();
    let is_shown = target.look().is_some_and(|seen| seen.id == process && seen.state != ProcessState::Zombie);
    let is_same = unique.is_none_or(|unique| said.is_some_and(|said| said.process == unique));
    if !is_shown || !is_same {
        return Err(Errno::ESRCH);
    }
    *unique = said.map(|said| said.process);
    Ok(said.map(|said| said.version))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: ProcessId = ProcessId { pid: 812, start: 50 };

    /// What becomes of a number between two calls on it.
    #[derive(Clone, Copy, Debug)]
    enum Turn {
        Nothing,
        Exec,
        Exit,
        Reaped,
        /// Reaped, and the number given to another that, clocks being what they are, may have the same start time.
        Recycled {
            same_start: bool,
        },
    }

    /// A kernel with one number, on which something happens before each call.
    struct Kernel {
        turns: std::vec::IntoIter<Turn>,
        /// Start, unique id, version, whether it is a zombie.
        now: Option<(u64, u64, i32, bool)>,
        next: u64,
        has_call: bool,
        tells_ids: bool,
        refusal: Option<Errno>,
        calls: String,
        /// The unique id that the first question for one was answered with.
        first_told: Option<u64>,
        /// The unique id of whoever got the signal.
        hit: Option<u64>,
    }

    impl Kernel {
        fn new(turns: &[Turn]) -> Self {
            let turns = Vec::from(turns).into_iter();
            let now = Some((OURS.start, 1, 1, false));
            Self {
                turns,
                now,
                next: 2,
                has_call: true,
                tells_ids: true,
                refusal: None,
                calls: String::new(),
                first_told: None,
                hit: None,
            }
        }

        fn call(&mut self, name: char) {
            self.calls.push(name);
            self.now = match (self.turns.next().unwrap_or(Turn::Nothing), self.now) {
                (Turn::Exec, Some((start, unique, version, false))) => Some((start, unique, version + 100, false)),
                (Turn::Exit, Some((start, unique, version, _))) => Some((start, unique, version, true)),
                (Turn::Reaped, _) => None,
                (Turn::Recycled { same_start }, _) => {
                    let start = if same_start { OURS.start } else { OURS.start + self.next };
                    self.next += 1;
                    Some((start, self.next, i32::try_from(self.next).expect("few"), false))
                }
                (Turn::Nothing | Turn::Exec | Turn::Exit, now) => now,
            };
        }
    }

    impl Target for Kernel {
        fn unique_id(&mut self) -> Option<UniqueId> {
            self.call('u');
            let (_, process, version, _) = self.now.filter(|_| self.tells_ids)?;
            if self.calls == "u" {
                self.first_told = Some(process);
            }
            Some(UniqueId { process, parent: 0, version })
        }

        fn look(&mut self) -> Option<Process> {
            self.call('l');
            let (start, _, _, zombie) = self.now?;
            let own = crate::process::look(std::process::id().cast_signed()).expect("shown");
            let state = if zombie { ProcessState::Zombie } else { ProcessState::Live };
            Some(Process { id: ProcessId { pid: OURS.pid, start }, state, ..own })
        }

        fn signal_version(&mut self, version: i32) -> Option<nix::Result<()>> {
            if !self.has_call {
                return None;
            }
            self.call('v');
            if let Some(errno) = self.refusal {
                return Some(Err(errno));
            }
            let Some((_, unique, _, _)) = self.now.filter(|now| now.2 == version && !now.3) else {
                return Some(Err(Errno::ESRCH));
            };
            self.hit = Some(unique);
            Some(Ok(()))
        }

        fn signal_number(&mut self) -> nix::Result<()> {
            self.call('k');
            let (_, unique, _, _) = self.now.ok_or(Errno::ESRCH)?;
            self.hit = Some(unique);
            Ok(())
        }
    }

    fn sent(mut kernel: Kernel) -> (nix::Result<()>, String, Option<u64>) {
        let result = send(&mut kernel, OURS);
        (result, kernel.calls, kernel.hit)
    }

    #[test]
    fn a_process_gets_its_signal_by_version() {
        assert_eq!(sent(Kernel::new(&[])), (Ok(()), "ulv".into(), Some(1)));
    }

    #[test]
    fn a_process_that_runs_another_program_meanwhile_gets_its_signal() {
        use Turn::{Exec, Nothing};
        assert_eq!(sent(Kernel::new(&[Nothing, Nothing, Exec])), (Ok(()), "ulvulv".into(), Some(1)));
        // More often than it is asked again: then by its number.
        assert_eq!(sent(Kernel::new(&[Exec; 12])), (Ok(()), "ulvulvulvulvulk".into(), Some(1)));
    }

    #[test]
    fn a_process_that_has_ended_gets_nothing() {
        use Turn::{Exit, Nothing, Reaped};
        for end in [Exit, Reaped] {
            for (before, calls) in [(0, "ul"), (1, "ul"), (2, "ulvul")] {
                let turns = [vec![Nothing; before], vec![end]].concat();
                assert_eq!(sent(Kernel::new(&turns)), (Err(Errno::ESRCH), calls.into(), None), "{turns:?}");
            }
        }
    }

    #[test]
    fn a_twin_that_took_the_number_in_between_gets_nothing() {
        // Its version was read, it was replaced by one of the same start, and at the second look nobody tells ids.
        let twin = Turn::Recycled { same_start: true };
        let turns = [Turn::Nothing, Turn::Nothing, Turn::Reaped, Turn::Nothing, twin];
        assert_eq!(sent(Kernel::new(&turns)), (Err(Errno::ESRCH), "ulvul".into(), None));
    }

    #[test]
    fn without_the_call_the_number_is_signalled_right_after_a_look() {
        let old = Kernel { has_call: false, ..Kernel::new(&[]) };
        assert_eq!(sent(old), (Ok(()), "ululk".into(), Some(1)));
        let silent = Kernel { tells_ids: false, ..Kernel::new(&[]) };
        assert_eq!(sent(silent), (Ok(()), "ululk".into(), Some(1)));
        let refusing = Kernel { refusal: Some(Errno::EPERM), ..Kernel::new(&[]) };
        assert_eq!(sent(refusing), (Ok(()), "ulvulk".into(), Some(1)));
        let recycled = [Turn::Nothing, Turn::Nothing, Turn::Nothing, Turn::Recycled { same_start: false }];
        let old = Kernel { has_call: false, ..Kernel::new(&recycled) };
        assert_eq!(sent(old), (Err(Errno::ESRCH), "ulul".into(), None));
    }

    fn turn() -> impl Strategy<Value = Turn> {
        prop_oneof![
            6 => Just(Turn::Nothing),
            3 => Just(Turn::Exec),
            1 => Just(Turn::Exit),
            1 => Just(Turn::Reaped),
            2 => any::<bool>().prop_map(|same_start| Turn::Recycled { same_start }),
        ]
    }

    proptest! {
        #[test]
        fn by_version_no_stranger_is_ever_hit(turns in proptest::collection::vec(turn(), 0..16)) {
            let mut kernel = Kernel::new(&turns);
            let result = send(&mut kernel, OURS);
            prop_assert_eq!(kernel.hit.is_some(), result.is_ok());
            let recycled = |back: usize| match kernel.calls.len().checked_sub(back).and_then(|at| turns.get(at)) {
                Some(&Turn::Recycled { same_start }) => Some(same_start),
                _ => None,
            };
            // The signal by number alone has a gap, right before it; a twin of the same start may come before the look too.
            let in_gap = kernel.calls.ends_with('k') && (recycled(1).is_some() || recycled(2) == Some(true));
            // Nobody can tell such a twin apart of which the first answer was, or that came when nobody was there to answer.
            let is_excused = in_gap || kernel.first_told != Some(1);
            prop_assert!(kernel.hit.is_none_or(|hit| hit == 1) || is_excused, "{:?} {:?}", kernel.calls, kernel.hit);
            // With another start it is told apart, whenever it came.
            let twins = turns.iter().any(|turn| matches!(turn, Turn::Recycled { same_start: true }));
            prop_assert!(kernel.hit.is_none_or(|hit| hit == 1) || in_gap || twins, "{:?} {:?}", kernel.calls, kernel.hit);
        }
    }
}
