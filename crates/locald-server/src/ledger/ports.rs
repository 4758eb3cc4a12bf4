//! Ports for `port = "auto"`: assigned once per directory and service, and kept.
//!
//! Nobody else is given one: no other service of the home, and it is none that a project file known here has as a number. It
//! is free when it is chosen. From then on nothing of locald's takes it, and nothing else does by chance, because the
//! range is below what a kernel hands out. It is not held by a socket: its service could not listen on it then.

use std::collections::BTreeSet;

use locald_utils::name::{ProjectId, ServiceName};
use locald_utils::protocol::AssignedPort;
use locald_utils::spec::{PortSpec, Ports, ProjectSpec};
use rusqlite::{OptionalExtension, Transaction, params};

use super::{Ledger, LedgerError};

/// Where `port = "auto"` looks: below the ephemeral ports of Linux (32768) and macOS (49152), above what people choose.
pub(super) const AUTO_PORTS: std::ops::RangeInclusive<u16> = 20_000..=32_000;

impl Ledger {
    /// Every port that was ever assigned, in the order of their numbers.
    pub(crate) async fn assigned_ports(&self) -> Result<Vec<AssignedPort>, LedgerError> {
        self.run(|transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT port, project, service, (
                     SELECT project_name FROM runs WHERE runs.project = ports.project ORDER BY asked_at DESC LIMIT 1
                 ) FROM ports ORDER BY port",
            )?;
            let rows = statement.query_map([], |row| {
                Ok((row.get(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?, row.get::<_, Option<String>>(3)?))
            })?;
            let mut assigned = Vec::new();
            for row in rows {
                let (port, project, service, name) = row?;
                // What is no name was none of a service.
                let Ok(service) = service.parse() else { continue };
                let project_name = name.and_then(|name| name.parse().ok());
                assigned.push(AssignedPort {
                    port,
                    project: ProjectId::from_recorded(&project),
                    project_name,
                    service,
                });
            }
            Ok(assigned)
        })
        .await
    }
}

pub(super) fn ports(
    transaction: &Transaction<'_>,
    id: &ProjectId,
    wanted: Vec<(ServiceName, PortSpec)>,
) -> Result<Ports, LedgerError> {
    let fixed: BTreeSet<u16> = wanted.iter().filter_map(|(_, spec)| spec.number()).collect();
    let mut ports = Ports::new();
    for (service, spec) in &wanted {
        let port = match spec.number() {
            Some(port) => port,
            None => auto_port(transaction, id, service, &fixed)?,
        };
        ports.insert(service.clone(), port);
    }
    Ok(ports)
}

/// The port assigned to a service: once per directory, kept, and never given to another. `fixed` are the numbers in its own
/// project's file: where a person has written down that very number since, both cannot have it, and this one gets another.
fn auto_port(
    transaction: &Transaction<'_>,
    id: &ProjectId,
    service: &ServiceName,
    fixed: &BTreeSet<u16>,
) -> Result<u16, LedgerError> {
    let mut find = transaction.prepare_cached("SELECT port FROM ports WHERE project = ?1 AND service = ?2")?;
    let kept: Option<u16> = find.query_row([id.as_str(), service.as_str()], |row| row.get(0)).optional()?;
    if let Some(port) = kept.filter(|port| !fixed.contains(port)) {
        return Ok(port);
    }
    let taken = taken(transaction)?;
    // The search begins where the names' digest points, so that the same project gets the same port on another machine,
    // most of the time.
    let digest = locald_utils::digest::hex(format!("{id}:{service}").as_bytes());
    let seed = usize::from_str_radix(&digest[..8], 16).unwrap_or(0);
    let count = AUTO_PORTS.len();
    for offset in 0..count {
        let Some(port) = AUTO_PORTS.clone().nth((seed + offset) % count) else { continue };
        if !fixed.contains(&port) && !taken.contains(&port) && is_free(port) {
            transaction.execute(
                "INSERT OR REPLACE INTO ports VALUES (?1, ?2, ?3)",
                params![id.as_str(), service.as_str(), port],
            )?;
            return Ok(port);
        }
    }
    Err(LedgerError::NoPort)
}

/// Every port of this home that is assigned, that a project which is up has in its file, or that a run was given.
///
/// (Known gap: a number in the file of a project that was never up here. Whoever starts second is told who holds it.)
fn taken(transaction: &Transaction<'_>) -> Result<BTreeSet<u16>, LedgerError> {
    let mut assigned =
        transaction.prepare_cached("SELECT port FROM ports UNION SELECT port FROM runs WHERE port IS NOT NULL")?;
    let mut taken = assigned.query_map([], |row| row.get(0))?.collect::<Result<BTreeSet<u16>, _>>()?;
    let mut specs = transaction.prepare_cached("SELECT spec FROM projects")?;
    for text in specs.query_map([], |row| row.get::<_, String>(0))? {
        // One that cannot be read is told of when its project is taken over.
        let Ok(spec) = serde_json::from_str::<ProjectSpec>(&text?) else { continue };
        taken.extend(spec.services.iter().filter_map(|service| service.port?.number()));
    }
    Ok(taken)
}

/// Whether a port can be bound now, in both families, on all addresses and on that of this machine alone: macOS lets one
/// socket have all addresses while another has one of them.
fn is_free(port: u16) -> bool {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
    let addresses: [IpAddr; 4] = [
        Ipv6Addr::UNSPECIFIED.into(),
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv6Addr::LOCALHOST.into(),
        Ipv4Addr::LOCALHOST.into(),
    ];
    addresses.into_iter().all(|address| match TcpListener::bind((address, port)) {
        Ok(_) => true,
        // Without IPv6 nobody holds the port there.
        Err(error) => address.is_ipv6() && error.kind() != std::io::ErrorKind::AddrInUse,
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use locald_utils::protocol::Desired;
    use locald_utils::record::RunRef;
    use locald_utils::spec::ServiceSpec;
    use locald_utils::time::UnixMillis;

    use super::super::tests::{block_on, intent, open, project};
    use super::*;
    use crate::ledger::Intent;

    /// A project of one service that leaves its port to locald, or has this one.
    fn with_port(id: &str, port: PortSpec) -> ProjectSpec {
        let mut spec = ProjectSpec { id: ProjectId::from_recorded(id), ..project() };
        spec.services.truncate(1);
        spec.services[0].port = Some(port);
        spec
    }

    fn ports_of(ledger: &Ledger, spec: &ProjectSpec) -> Vec<u16> {
        let ports = block_on(ledger.known(spec)).expect("known").ports;
        spec.services.iter().filter_map(|service| ports.get(&service.name).copied()).collect()
    }

    /// What a project is given where nothing is taken.
    fn first_choice(id: &str) -> u16 {
        let dir = tempfile::tempdir().expect("a directory");
        ports_of(&open(&dir).0, &with_port(id, PortSpec::Auto))[0]
    }

    #[test]
    fn a_port_is_never_given_to_two() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let all: BTreeSet<u16> =
            (0..20).flat_map(|index| ports_of(&ledger, &with_port(&index.to_string(), PortSpec::Auto))).collect();
        assert_eq!(all.len(), 20);
    }

    // The numbers of other projects used to be given out while those did not run.
    #[test]
    fn a_number_in_the_file_of_a_project_that_is_up_is_given_to_nobody() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let number = first_choice("p");
        let other = with_port("q", PortSpec::Fixed(number));
        let services = vec![(other.services[0].name.clone(), Desired::Up)];
        ledger.save_project(other, services, None);
        let [port] = ports_of(&ledger, &with_port("p", PortSpec::Auto))[..] else { panic!("one port") };
        assert!(AUTO_PORTS.contains(&port) && port != number, "{port}");
    }

    #[test]
    fn a_number_that_a_run_once_had_is_given_to_nobody_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let number = first_choice("p");
        block_on(ledger.intend(Intent { port: Some(number), ..intent(1) })).expect("recorded");
        assert_ne!(ports_of(&ledger, &with_port("p", PortSpec::Auto)), [number]);
    }

    #[test]
    fn a_port_that_somebody_holds_is_passed_over_and_one_that_is_assigned_is_kept() {
        let number = first_choice("p");
        let spec = with_port("p", PortSpec::Auto);
        for address in ["127.0.0.1", "0.0.0.0", "::1"] {
            // Where there is no IPv6 nobody can hold a port there.
            let Ok(holder) = TcpListener::bind((address, number)) else { continue };
            let dir = tempfile::tempdir().expect("a directory");
            let ledger = open(&dir).0;
            let [port] = ports_of(&ledger, &spec)[..] else { panic!("one port") };
            assert_ne!(port, number, "held on {address}");
            let _held = TcpListener::bind(("127.0.0.1", port)).expect("free");
            drop(holder);
            assert_eq!(ports_of(&ledger, &spec), [port]);
        }
    }

    #[test]
    fn every_assigned_port_is_listed_with_its_owner_as_far_as_that_is_known() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let specs = ["p", "q"].map(|id| with_port(id, PortSpec::Auto));
        let mut ports = specs.each_ref().map(|spec| ports_of(&ledger, spec)[0]).to_vec();
        let earlier = Intent { asked_at: UnixMillis(0), ..intent(1) };
        let named = RunRef { project_name: "store".parse().expect("valid"), ..intent(2).run };
        for intent in [earlier, Intent { run: named, ..intent(2) }] {
            block_on(ledger.intend(intent)).expect("recorded");
        }
        let listed = block_on(ledger.assigned_ports()).expect("readable");
        let of = |port| {
            let found = listed.iter().find(|listed: &&AssignedPort| listed.port == port).expect("listed");
            (found.project.as_str(), found.project_name.as_ref().map(ToString::to_string), found.service.as_str())
        };
        assert_eq!(of(ports[0]), ("p", Some("store".to_owned()), "web"));
        assert_eq!(of(ports[1]), ("q", None, "web"));
        ports.sort_unstable();
        assert_eq!(listed.iter().map(|listed| listed.port).collect::<Vec<_>>(), ports);
    }

    // Both used to have the same port, and whichever started second never came up.
    #[test]
    fn a_number_that_is_written_down_later_makes_the_assigned_one_give_way_for_good() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let mut spec = with_port("p", PortSpec::Auto);
        let number = ports_of(&ledger, &spec)[0];
        let db = ServiceSpec { name: "db".parse().expect("valid"), ..spec.services[0].clone() };
        spec.services.push(ServiceSpec { port: Some(PortSpec::Fixed(number)), ..db });
        let [auto, fixed] = ports_of(&ledger, &spec)[..] else { panic!("two ports") };
        assert!(fixed == number && auto != number, "{auto}");
        spec.services.truncate(1);
        assert_eq!(ports_of(&ledger, &spec), [auto]);
    }
}
