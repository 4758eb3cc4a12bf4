//! What runs use at the moment, for `status --wide`: processes, CPU and memory, asked of the system when asked for.
//!
//! Members are counted here by descent and session alone: good enough for a figure to look at. Who really belongs to a
//! run is the shim's to know. On macOS a process that left both is not counted.

use std::collections::{HashMap, HashSet};
use std::thread;
use std::time::Duration;

use locald_utils::protocol::ServiceStatus;
use sysinfo::{Pid, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

/// 200 ms: the shortest time over which `sysinfo` gives a CPU figure on every system.
const INTERVAL: Duration = Duration::from_millis(200);

/// What one run uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// Live processes, the leader included, the shim not.
    pub(crate) processes: usize,
    /// CPU time over the last moment, in percent of one processor.
    pub(crate) cpu_percent: f32,
    /// Resident memory of all processes; pages they share count for each.
    pub(crate) memory_bytes: u64,
}

/// Samples the runs of `services`, in their order. Takes 200 ms, whatever their number; none where nothing runs.
pub(crate) fn usage<'a>(services: impl Iterator<Item = &'a ServiceStatus>) -> Vec<Option<Usage>> {
    let roots: Vec<Option<Root>> = services.map(Root::of).collect();
    if roots.iter().all(Option::is_none) {
        return vec![None; roots.len()];
    }
    let what = ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks();
    // Fails where the system refuses the table; then there are no figures, which is no reason to show nothing.
    let Ok(mut system) = System::new() else { return vec![None; roots.len()] };
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    thread::sleep(INTERVAL);
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, what);
    let table: Vec<Process> = system
        .processes()
        .values()
        .map(|process| Process {
            pid: process.pid(),
            parent: process.parent(),
            session: process.session_id(),
            has_ended: matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead),
            cpu_percent: process.cpu_usage(),
            memory_bytes: process.memory(),
        })
        .collect();
    roots.into_iter().map(|root| root.map(|root| sum(&table, root))).collect()
}

/// Where the processes of a run come from.
#[derive(Clone, Copy)]
struct Root {
    shim: Option<Pid>,
    leader: Option<Pid>,
}

impl Root {
    fn of(service: &ServiceStatus) -> Option<Self> {
        let pid = |pid: i32| u32::try_from(pid).ok().map(Pid::from_u32);
        let shim = service.shim.and_then(|shim| pid(shim.pid));
        let leader = service.leader.and_then(|leader| pid(leader.pid));
        (shim.is_some() || leader.is_some()).then_some(Self { shim, leader })
    }
}

/// One row of the process table.
struct Process {
    pid: Pid,
    parent: Option<Pid>,
    session: Option<Pid>,
    /// Whether nobody has heard of its end yet; a launcher's is heard of when its run is over.
    has_ended: bool,
    cpu_percent: f32,
    memory_bytes: u64,
}

/// Adds up the members of one run.
fn sum(table: &[Process], root: Root) -> Usage {
    let mut children: HashMap<Pid, Vec<Pid>> = HashMap::new();
    for process in table {
        if let Some(parent) = process.parent {
            children.entry(parent).or_default().push(process.pid);
        }
    }
    let in_session = table.iter().filter(|process| root.leader.is_some() && process.session == root.leader);
    let mut next: Vec<Pid> = in_session.map(|process| process.pid).chain(root.leader).collect();
    next.extend(root.shim.and_then(|shim| children.get(&shim)).into_iter().flatten());
    let mut members = HashSet::new();
    while let Some(pid) = next.pop() {
        if members.insert(pid) {
            next.extend(children.get(&pid).into_iter().flatten());
        }
    }
    let mut usage = Usage::default();
    for process in table.iter().filter(|process| members.contains(&process.pid) && !process.has_ended) {
        usage.processes += 1;
        usage.cpu_percent += process.cpu_percent;
        usage.memory_bytes += process.memory_bytes;
    }
    usage
}

#[cfg(test)]
mod tests {
    use locald_utils::process::ProcessId;
    use locald_utils::protocol::State;

    use super::*;
    use crate::testing::service;

    fn process(pid: u32, parent: u32, session: u32) -> Process {
        let [pid, parent, session] = [pid, parent, session].map(Pid::from_u32);
        Process {
            pid,
            parent: Some(parent),
            session: Some(session),
            has_ended: false,
            cpu_percent: 1.5,
            memory_bytes: 1 << 20,
        }
    }

    #[test]
    fn descendants_and_the_session_count_once_and_the_shim_does_not() {
        let shim = 10;
        let table = [
            process(shim, 1, shim),
            process(11, shim, 11),
            process(12, 11, 11),
            // Called setsid, and its parent left: a child of the shim now.
            process(13, shim, 13),
            // Left for init, which macOS allows, and is still in the session.
            process(14, 1, 11),
            // Has ended, and counts no more; what it has left does.
            Process { has_ended: true, ..process(15, 11, 11) },
            process(16, 15, 16),
            process(99, 1, 99),
        ];
        let root = Root { shim: Some(Pid::from_u32(shim)), leader: Some(Pid::from_u32(11)) };
        assert_eq!(sum(&table, root), Usage { processes: 5, cpu_percent: 7.5, memory_bytes: 5 << 20 });
    }

    #[test]
    fn this_process_is_found_in_the_real_table() {
        let own = ProcessId { pid: i32::try_from(std::process::id()).expect("fits"), start: 0 };
        let services =
            [ServiceStatus { leader: Some(own), ..service("web", State::Ready) }, service("db", State::Stopped)];
        let usages = usage(services.iter());
        assert!(usages[0].is_some_and(|usage| usage.processes >= 1 && usage.memory_bytes > 0));
        assert_eq!(usages[1], None);
    }
}
