//! Ports for `port = "auto"`: assigned once per directory and service, and kept.

use locald_utils::name::{ProjectId, ServiceName};
use locald_utils::spec::{PortSpec, Ports};
use rusqlite::{OptionalExtension, Transaction, params};

use super::LedgerError;

/// Where `port = "auto"` looks: below the ephemeral ports of Linux (32768) and macOS (49152), above what people choose.
pub(super) const AUTO_PORTS: std::ops::RangeInclusive<u16> = 20_000..=32_000;

pub(super) fn ports(
    transaction: &Transaction<'_>,
    id: &ProjectId,
    wanted: Vec<(ServiceName, PortSpec)>,
) -> Result<Ports, LedgerError> {
    let fixed = |spec: &PortSpec| match spec {
        PortSpec::Fixed(port) => Some(*port),
        PortSpec::Auto => None,
    };
    let taken: Vec<u16> = wanted.iter().filter_map(|(_, spec)| fixed(spec)).collect();
    let mut ports = Ports::new();
    for (service, spec) in &wanted {
        let port = match fixed(spec) {
            Some(port) => port,
            None => auto_port(transaction, id, service, &taken)?,
        };
        ports.insert(service.clone(), port);
    }
    Ok(ports)
}

/// The port assigned to a service: once per directory, kept, and never given to another.
fn auto_port(
    transaction: &Transaction<'_>,
    id: &ProjectId,
    service: &ServiceName,
    taken: &[u16],
) -> Result<u16, LedgerError> {
    let mut find = transaction.prepare_cached("SELECT port FROM ports WHERE project = ?1 AND service = ?2")?;
    if let Some(port) = find.query_row([id.as_str(), service.as_str()], |row| row.get(0)).optional()? {
        return Ok(port);
    }
    let is_assigned = |port: u16| -> Result<bool, LedgerError> {
        let mut find = transaction.prepare_cached("SELECT 1 FROM ports WHERE port = ?1")?;
        Ok(find.exists([port])?)
    };
    // The search begins where the names' digest points, so that the same project gets the same port on another machine,
    // most of the time.
    let digest = locald_utils::digest::hex(format!("{id}:{service}").as_bytes());
    let seed = usize::from_str_radix(&digest[..8], 16).unwrap_or(0);
    let count = AUTO_PORTS.len();
    for offset in 0..count {
        let Some(port) = AUTO_PORTS.clone().nth((seed + offset) % count) else { continue };
        if !taken.contains(&port) && !is_assigned(port)? && is_free(port) {
            transaction
                .execute("INSERT INTO ports VALUES (?1, ?2, ?3)", params![id.as_str(), service.as_str(), port])?;
            return Ok(port);
        }
    }
    Err(LedgerError::NoPort)
}

/// Whether a port can be bound now, in both families.
fn is_free(port: u16) -> bool {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
    let v6 = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Ok(_) => true,
        // No IPv6 here: then nobody holds the port there.
        Err(error) => error.kind() != std::io::ErrorKind::AddrInUse,
    };
    v6 && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use locald_utils::spec::ProjectSpec;

    use super::super::tests::{block_on, open, project};
    use super::*;

    #[test]
    fn a_port_is_never_given_to_two() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let ports = |id: &str| {
            let project = ProjectSpec { id: ProjectId::from_recorded(id), ..project() };
            block_on(ledger.known(&project)).expect("known").ports
        };
        let all: std::collections::BTreeSet<u16> =
            (0..20).flat_map(|index| ports(&index.to_string()).into_values()).collect();
        assert_eq!(all.len(), 20);
    }
}
