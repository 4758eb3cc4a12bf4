//! Where runs listen, beside where they shall: asked of the system when asked for, in one pass for all of them.
//!
//! [`note`] compares, and is pure; [`of_runs`] and [`Holders`] ask. A port that cannot be seen is never called closed: what runs
//! as another user hides where it listens, and then nothing is said.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use locald_utils::process::{self, Listening, ORPHANS_COME_TO_THE_SHIM, ProcessState, darwin};
use locald_utils::protocol::{ServiceStatus, State};

use crate::view::clean;

/// Who listens on a port besides the service that shall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Nobody.
    Nobody,
    /// Somebody who is not shown to us.
    Hidden,
    /// This process, which is none of the service's.
    Stranger {
        /// Its number.
        pid: i32,
        /// Its command line.
        command: String,
    },
}

/// Whether a service listens on its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// It does, where `localhost` is looked for.
    Fine,
    /// It does, and not where all who look for `localhost` find it.
    Only(Vec<IpAddr>),
    /// It does not; it listens on these ports.
    Elsewhere(Vec<u16>),
}

/// Looks for a port among the places where a service listens.
pub(crate) fn reach(port: u16, places: &[Listening]) -> Reach {
    let addresses: BTreeSet<IpAddr> =
        places.iter().filter(|place| place.port == port).map(|place| place.address.to_canonical()).collect();
    // The address of all hosts of IPv6 takes connections of IPv4, unless that was forbidden, which is seldom and not shown.
    let is_found = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_unspecified() || *address == std::net::Ipv4Addr::LOCALHOST,
        IpAddr::V6(address) => address.is_unspecified(),
    };
    if addresses.is_empty() {
        let ports: BTreeSet<u16> = places.iter().map(|place| place.port).collect();
        Reach::Elsewhere(ports.into_iter().collect())
    } else if addresses.iter().any(is_found) {
        Reach::Fine
    } else {
        Reach::Only(addresses.into_iter().collect())
    }
}

/// Says how the port that a service has differs from where it listens. `None` where it does not, or where nobody can tell.
///
/// `is_settled` says that the service counts as up: one that is starting will listen yet.
pub(crate) fn note(port: u16, is_settled: bool, reach: &Reach, holder: &Holder) -> Option<String> {
    match (reach, holder) {
        (Reach::Fine, _) => None,
        (Reach::Only(addresses), _) => Some(format!("listens on {} only", list(addresses))),
        (Reach::Elsewhere(_), Holder::Hidden) => None,
        (Reach::Elsewhere(ports), Holder::Nobody) if ports.is_empty() => {
            is_settled.then(|| format!("nothing listens on TCP port {port}"))
        }
        (Reach::Elsewhere(ports), Holder::Nobody) => Some(format!("listens on {}, not on {port}", list(ports))),
        (Reach::Elsewhere(ports), Holder::Stranger { pid, command }) => {
            let who = format!("pid {pid} ({})", clean(command));
            Some(match ports.as_slice() {
                [] => format!("{who} listens on {port}, not this service"),
                ports => format!("listens on {}, not on {port}, where {who} does", list(ports)),
            })
        }
    }
}

/// Ports that are named; more are counted. A debugger and hot reloading make two of one.
const NAMED: usize = 3;

/// `3001`, `3001 and 3002`, `3001, 3002, 3003 and 4 more`.
fn list(items: &[impl ToString]) -> String {
    let mut names: Vec<String> = items.iter().take(NAMED).map(ToString::to_string).collect();
    if let Some(more) = items.len().checked_sub(NAMED).filter(|more| *more > 0) {
        names.push(format!("{more} more"));
    }
    match names.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Whether a service has a run whose processes can be asked.
pub(crate) fn is_askable(status: &ServiceStatus) -> bool {
    let is_running = match status.state {
        // Of what runs without a daemon nothing else is known.
        State::Starting | State::Ready | State::Unready | State::Unknown => true,
        State::Stopped
        | State::Waiting { .. }
        | State::Spawning
        | State::Stopping { .. }
        | State::Backoff { .. }
        | State::Completed
        | State::Failed { .. } => false,
    };
    is_running && status.shim.is_some_and(|shim| shim.is_alive())
}

/// Finds where the processes of these runs listen, in their order. `None` for what cannot be asked.
///
/// On macOS a process that left its parents is not seen here: only the shim knows that it belongs to the run.
pub(crate) fn of_runs<'a>(services: impl Iterator<Item = Option<&'a ServiceStatus>>) -> Vec<Option<Vec<Listening>>> {
    let shims: Vec<Option<i32>> = services.map(|status| status?.shim.map(|shim| shim.pid)).collect();
    // Where each question is one for the whole table, it is asked once.
    let is_needed = !ORPHANS_COME_TO_THE_SHIM && shims.iter().any(Option::is_some);
    let table = if is_needed { process::all().unwrap_or_default() } else { Vec::new() };
    let below = |shim: i32| {
        if ORPHANS_COME_TO_THE_SHIM { process::descendants(shim).ok() } else { Some(darwin::descendants(&table, shim)) }
    };
    let members: Vec<Option<Vec<i32>>> = shims
        .into_iter()
        .map(|shim| {
            let live = below(shim?)?.into_iter().filter(|process| process.state != ProcessState::Zombie);
            Some(live.map(|process| process.id.pid).collect())
        })
        .collect();
    let all: Vec<i32> = members.iter().flatten().flatten().copied().collect();
    let Ok(places) = process::listening_by(&all) else { return members.iter().map(|_| None).collect() };
    let of = |members: Vec<i32>| {
        let members: BTreeSet<i32> = members.into_iter().collect();
        places.iter().filter(|place| members.contains(&place.pid)).copied().collect()
    };
    members.into_iter().map(|members| members.map(of)).collect()
}

/// Who listens on ports, looked up when asked for; which ports are open at all is asked once.
#[derive(Debug, Default)]
pub(crate) struct Holders(OnceCell<Option<BTreeSet<u16>>>);

impl Holders {
    /// Finds out who else listens on the port of a service, `project:service`, none of whose known processes does.
    pub(crate) fn of(&self, port: u16, service: &str) -> Holder {
        match self.0.get_or_init(|| process::open_ports().ok()) {
            Some(open) if !open.contains(&port) => Holder::Nobody,
            Some(_) | None => holder(port, service),
        }
    }
}

fn holder(port: u16, service: &str) -> Holder {
    let Ok(holders) = process::port_holders(port) else { return Holder::Hidden };
    let mut found = Holder::Nobody;
    for holder in holders {
        match holder {
            // A process of the run that has left its parents, or somebody whom the kernel does not show.
            None => return Holder::Hidden,
            Some(holder) if holder.service.as_deref() == Some(service) => return Holder::Hidden,
            Some(holder) => found = Holder::Stranger { pid: holder.process.id.pid, command: holder.command },
        }
    }
    found
}

/// What there is to say of where services listen that shall listen somewhere, in their order; `project` is the name of theirs.
pub(crate) fn notes<'a>(project: &str, services: impl Iterator<Item = &'a ServiceStatus>) -> Vec<Option<String>> {
    let services: Vec<&ServiceStatus> = services.collect();
    let has_port = |status: &ServiceStatus| status.port.is_some() && is_askable(status);
    let leaders: Vec<Option<i32>> =
        services.iter().map(|status| status.leader.filter(|_| has_port(status)).map(|leader| leader.pid)).collect();
    // Most leaders listen themselves. Then there is no need to look for other processes.
    let of_leaders = process::listening_by(&leaders.iter().flatten().copied().collect::<Vec<_>>()).unwrap_or_default();
    let is_fine = |status: &ServiceStatus, leader: i32| {
        let places: Vec<Listening> = of_leaders.iter().filter(|place| place.pid == leader).copied().collect();
        status.port.is_some_and(|port| reach(port, &places) == Reach::Fine)
    };
    let open = services.iter().zip(leaders).map(|(status, leader)| {
        let is_open = leader.is_some_and(|leader| !is_fine(status, leader));
        is_open.then_some(*status)
    });
    let places = of_runs(open);
    let holders = Holders::default();
    services.iter().zip(places).map(|(status, places)| note_of(project, status, &places?, &holders)).collect()
}

/// What there is to say of a service that listens at these places.
fn note_of(project: &str, status: &ServiceStatus, places: &[Listening], holders: &Holders) -> Option<String> {
    let port = status.port?;
    let reach = reach(port, places);
    let holder = match &reach {
        Reach::Fine | Reach::Only(_) => Holder::Nobody,
        Reach::Elsewhere(_) => holders.of(port, &format!("{project}:{}", status.name)),
    };
    let is_settled = matches!(status.state, State::Ready | State::Unready);
    let note = note(port, is_settled, &reach, &holder)?;
    // One that has ended meanwhile is not what it was said to be a moment ago.
    status.leader.is_some_and(|leader| leader.is_alive()).then_some(note)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ready, service};

    fn places(at: &[(&str, u16)]) -> Vec<Listening> {
        let place = |&(address, port): &(&str, u16)| Listening {
            pid: 4711,
            port,
            address: address.parse().expect("an address"),
        };
        at.iter().map(place).collect()
    }

    /// What is said of a service with port 3000 that listens there, when nobody else listens on 3000.
    fn said(is_settled: bool, at: &[(&str, u16)], holder: &Holder) -> String {
        note(3000, is_settled, &reach(3000, &places(at)), holder).unwrap_or_default()
    }

    #[test]
    fn a_service_that_localhost_finds_on_its_port_is_no_news() {
        for address in ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1"] {
            assert_eq!(said(true, &[(address, 3000)], &Holder::Nobody), "", "{address}");
            assert_eq!(said(true, &[("::1", 3000), (address, 3000), ("127.0.0.1", 9229)], &Holder::Nobody), "");
        }
    }

    #[test]
    fn a_service_that_not_all_find_on_its_port_is_told() {
        assert_eq!(said(true, &[("::1", 3000)], &Holder::Nobody), "listens on ::1 only");
        assert_eq!(
            said(false, &[("10.0.0.5", 3000), ("::1", 3000), ("::1", 3000)], &Holder::Nobody),
            "listens on 10.0.0.5 and ::1 only"
        );
        assert_eq!(said(true, &[("127.0.0.2", 3000)], &Holder::Nobody), "listens on 127.0.0.2 only");
    }

    #[test]
    fn a_service_that_listens_elsewhere_or_nowhere_is_told() {
        assert_eq!(said(true, &[("127.0.0.1", 3001)], &Holder::Nobody), "listens on 3001, not on 3000");
        assert_eq!(
            said(false, &[("::1", 3001), ("::", 3001), ("::", 5173)], &Holder::Nobody),
            "listens on 3001 and 5173, not on 3000"
        );
        let many: Vec<(&str, u16)> = (1..6).map(|port| ("::", port)).collect();
        assert_eq!(said(true, &many, &Holder::Nobody), "listens on 1, 2, 3 and 2 more, not on 3000");
        assert_eq!(said(true, &[], &Holder::Nobody), "nothing listens on TCP port 3000");
        assert_eq!(said(false, &[], &Holder::Nobody), "", "it will yet");
    }

    #[test]
    fn who_has_its_port_instead_is_told_and_what_is_hidden_is_not_guessed() {
        let node = Holder::Stranger { pid: 812, command: "node\nx".into() };
        assert_eq!(said(false, &[], &node), "pid 812 (node x) listens on 3000, not this service");
        assert_eq!(said(true, &[("::", 3001)], &node), "listens on 3001, not on 3000, where pid 812 (node x) does");
        assert_eq!(said(true, &[("::", 3001)], &Holder::Hidden), "");
        assert_eq!(said(true, &[], &Holder::Hidden), "");
    }

    #[test]
    fn only_what_runs_is_asked() {
        let own = process::ProcessId::own().expect("shown");
        let running = ServiceStatus { shim: Some(own), ..ready("web") };
        assert!(is_askable(&running));
        assert!(!is_askable(&ServiceStatus { state: State::Stopping { kill_at: None }, ..running.clone() }));
        assert!(!is_askable(&service("web", State::Ready)), "without a shim");
        let gone = process::ProcessId { start: own.start + 1, ..own };
        assert!(!is_askable(&ServiceStatus { shim: Some(gone), ..running }), "its number is another's");
    }
}
