//! Who belongs to a run: one pure decision over a process table.
//!
//! The evidence of several kinds is taken together, because each alone misses something: descent (lost when a parent
//! dies before it was seen), process group and session (left by setsid), a marker in the environment (cleared, or hidden
//! by macOS), and identities seen earlier. A stranger must never be a member: every signal of a sweep rests on this.

use std::collections::BTreeSet;

use super::{Process, ProcessId};

/// What is known of a run.
#[derive(Clone, Debug)]
pub struct Evidence<'a> {
    /// The run's leader.
    pub leader: ProcessId,
    /// Members seen earlier.
    pub known: &'a BTreeSet<ProcessId>,
    /// Processes that look after the run and are no members: shim, daemon, the caller.
    pub excluded: &'a [i32],
}

/// Finds the members of a run in `table`, zombies left out.
///
/// `is_marked` tells whether a process carries this run's marker; it is asked last, of what nothing else proves, because
/// it costs a look at the process.
///
/// A group or session that bears the leader's number counts as the run's while the leader itself is in the table, zombie
/// or not: that pins the number. When the leader is gone the number may be a stranger's, so then the group or session
/// counts only if another kind of evidence proves one of its processes.
pub fn members<'t>(
    table: &'t [Process],
    evidence: &Evidence<'_>,
    is_marked: impl Fn(&Process) -> bool,
) -> Vec<&'t Process> {
    let leader = evidence.leader;
    let candidates: Vec<&Process> = table
        .iter()
        .filter(|process| {
            process.id.pid > 1 && process.id.start >= leader.start && !evidence.excluded.contains(&process.id.pid)
        })
        .collect();
    let mut found: BTreeSet<ProcessId> = candidates
        .iter()
        .filter(|process| process.id == leader || evidence.known.contains(&process.id) || is_marked(process))
        .map(|process| process.id)
        .collect();
    // Grows until nothing new is proven: a child of a member, and whoever shares a proven group or session of the run.
    loop {
        let pids: BTreeSet<i32> = found.iter().map(|id| id.pid).collect();
        let proven = |of: fn(&Process) -> i32| {
            candidates.iter().any(|process| of(process) == leader.pid && found.contains(&process.id))
        };
        let (group, session) = (proven(|process| process.group), proven(|process| process.session));
        let new: Vec<ProcessId> = candidates
            .iter()
            .filter(|process| !found.contains(&process.id))
            .filter(|process| {
                pids.contains(&process.parent)
                    || (group && process.group == leader.pid)
                    || (session && process.session == leader.pid)
            })
            .map(|process| process.id)
            .collect();
        if new.is_empty() {
            break;
        }
        found.extend(new);
    }
    candidates
        .into_iter()
        .filter(|process| found.contains(&process.id) && process.state != super::ProcessState::Zombie)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::ProcessState;
    use super::*;

    fn process(pid: i32, start: u64, parent: i32, group: i32, session: i32) -> Process {
        Process {
            id: ProcessId { pid, start },
            parent,
            group,
            session,
            terminal: 0,
            uid: 1000,
            state: ProcessState::Live,
            name: "x".into(),
            lineage: None,
        }
    }

    fn find(table: &[Process], known: &[ProcessId], marked: &[i32]) -> Vec<i32> {
        let known = known.iter().copied().collect();
        let evidence = Evidence { leader: ProcessId { pid: 100, start: 50 }, known: &known, excluded: &[99] };
        members(table, &evidence, |process| marked.contains(&process.id.pid))
            .iter()
            .map(|process| process.id.pid)
            .collect()
    }

    #[test]
    fn group_session_descent_marker_and_memory_each_prove_a_member() {
        let table = [
            process(1, 0, 0, 1, 1),
            process(99, 40, 1, 99, 99),
            process(100, 50, 99, 100, 100),
            process(101, 51, 100, 101, 100), // left the group
            process(102, 52, 101, 102, 102), // left the session, still a child
            process(103, 53, 1, 103, 103),   // carries the marker
            process(104, 54, 103, 104, 104), // child of the marked one
            process(105, 55, 1, 105, 105),   // seen earlier
            process(106, 56, 1, 100, 100),   // orphan in the group
            process(200, 57, 1, 200, 200),   // a stranger
        ];
        assert_eq!(find(&table, &[ProcessId { pid: 105, start: 55 }], &[103]), [100, 101, 102, 103, 104, 105, 106]);
    }

    #[test]
    fn a_recycled_number_makes_no_member() {
        // The leader is gone and a stranger has its number; a known pid has been recycled too.
        let table = [process(100, 900, 1, 100, 100), process(101, 901, 100, 100, 100), process(105, 902, 1, 105, 105)];
        assert_eq!(find(&table, &[ProcessId { pid: 105, start: 55 }], &[]), [0; 0]);
    }

    #[test]
    fn without_its_leader_a_group_counts_when_one_of_it_is_proven() {
        let table = [process(101, 60, 1, 100, 100), process(102, 61, 1, 100, 100)];
        assert_eq!(find(&table, &[], &[]), [0; 0]);
        assert_eq!(find(&table, &[], &[102]), [101, 102]);
    }

    #[test]
    fn what_is_older_than_the_run_is_no_member() {
        let table = [process(100, 50, 99, 100, 100), process(90, 49, 100, 100, 100)];
        assert_eq!(find(&table, &[], &[90]), [100]);
    }
}
