//! The ports of all projects, each with its owner and who listens there: what `ports` lists. Pure, but for what [`Looks`] asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use locald_utils::name::{ProjectId, ServiceName};
use locald_utils::process::Listening;
use locald_utils::protocol::{AssignedPort, ProjectStatus, ServiceStatus, State};
use locald_utils::spec::{PortSpec, Ports, ProjectSpec, ServiceSpec};

use crate::listening::{self, Holder};
use crate::view::never_started;

/// A port that a service has, or on which it listens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PortRow {
    /// The port.
    pub(crate) port: u16,
    /// Whose it is.
    pub(crate) project: Owner,
    /// Which service of that project; a stopped one where nothing else is known of it.
    pub(crate) service: ServiceStatus,
    /// Whether it is the service's port; otherwise its processes listen there besides.
    pub(crate) is_declared: bool,
    /// Whether those who listen are the service's own processes.
    pub(crate) is_own: bool,
    /// Who listens there.
    pub(crate) listeners: Vec<Listener>,
    /// What there is to say.
    pub(crate) note: Option<String>,
}

/// A project that has ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The instance.
    pub(crate) id: ProjectId,
    /// Its name, as far as that is known.
    pub(crate) name: Option<String>,
    /// Its directory, unless nothing but an assigned port is known of it.
    pub(crate) dir: Option<PathBuf>,
}

/// A process that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    /// Its number.
    pub(crate) pid: i32,
    /// Its command line.
    pub(crate) command: String,
    /// Where; none for a stranger, of whom only the port is of interest.
    pub(crate) addresses: Vec<IpAddr>,
}

/// What is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a> {
    /// What the daemon knows, or what runs without one.
    pub(crate) projects: &'a [ProjectStatus],
    /// Where the services of these listen, in their order; `None` for what cannot be asked.
    pub(crate) places: &'a [Option<Vec<Listening>>],
    /// The project file here.
    pub(crate) spec: Option<&'a ProjectSpec>,
    /// What was ever assigned.
    pub(crate) assigned: &'a [AssignedPort],
}

/// What is asked of the system, one by one.
pub(crate) struct Looks<'a> {
    /// The command line of a process.
    pub(crate) command: &'a dyn Fn(i32) -> String,
    /// Who listens on a port besides a service, `project:service`.
    pub(crate) holder: &'a dyn Fn(u16, &str) -> Holder,
}

/// The ports of a project, as far as they are written or have been assigned.
pub(crate) fn of_project(project: &ProjectSpec, assigned: &[AssignedPort]) -> Ports {
    let port = |service: &ServiceSpec| match service.port? {
        PortSpec::Fixed(port) => Some(port),
        PortSpec::Auto => {
            let is_its = |one: &&AssignedPort| one.project == project.id && one.service == service.name;
            assigned.iter().find(is_its).map(|assigned| assigned.port)
        }
    };
    project.services.iter().filter_map(|service| Some((service.name.clone(), port(service)?))).collect()
}

/// Lists all ports, by their numbers.
pub(crate) fn rows(known: Known<'_>, looks: &Looks<'_>) -> Vec<PortRow> {
    let mut rows = Vec::new();
    let mut seen: BTreeSet<(ProjectId, ServiceName)> = BTreeSet::new();
    let mut places = known.places.iter();
    for project in known.projects {
        let owner =
            Owner { id: project.id.clone(), name: Some(project.name.to_string()), dir: Some(project.dir.clone()) };
        let here = known.spec.filter(|spec| spec.id == project.id);
        for service in &project.services {
            let port = service.port.or_else(|| fixed_port(here?, &service.name));
            let places = places.next().and_then(Option::as_deref);
            rows.extend(rows_of(&owner, &ServiceStatus { port, ..service.clone() }, places, looks));
            if port.is_some() {
                seen.insert((project.id.clone(), service.name.clone()));
            }
        }
    }
    // What has never been up, then what is kept for services of which nothing else is known.
    for (owner, service) in written(known.spec, known.assigned).into_iter().chain(assigned(known.assigned)) {
        if seen.insert((owner.id.clone(), service.name.clone())) {
            let is_kept = owner.dir.is_none();
            rows.extend(
                rows_of(&owner, &service, None, looks)
                    .into_iter()
                    .map(|row| PortRow { note: row.note.or_else(|| is_kept.then(|| "assigned".to_owned())), ..row }),
            );
        }
    }
    rows.sort_by(|a, b| (a.port, &a.project.name, &a.service.name).cmp(&(b.port, &b.project.name, &b.service.name)));
    rows
}

/// The services of a project file that have a number.
fn written(spec: Option<&ProjectSpec>, assigned: &[AssignedPort]) -> Vec<(Owner, ServiceStatus)> {
    let Some(spec) = spec else { return Vec::new() };
    let owner = Owner { id: spec.id.clone(), name: Some(spec.name.to_string()), dir: Some(spec.dir.clone()) };
    let kept = |name: &ServiceName| assigned.iter().find(|kept| kept.project == spec.id && kept.service == *name);
    let services = spec.services.iter().filter_map(|service| {
        let port = match service.port? {
            PortSpec::Fixed(port) => port,
            PortSpec::Auto => kept(&service.name)?.port,
        };
        Some((owner.clone(), ServiceStatus { port: Some(port), ..never_started(service.name.clone(), service.kind) }))
    });
    services.collect()
}

/// The services that have been assigned a port.
fn assigned(assigned: &[AssignedPort]) -> impl Iterator<Item = (Owner, ServiceStatus)> {
    assigned.iter().map(|kept| {
        let name = kept.project_name.as_ref().map(ToString::to_string);
        let kind = locald_utils::spec::Kind::default();
        let service = ServiceStatus { port: Some(kept.port), ..never_started(kept.service.clone(), kind) };
        (Owner { id: kept.project.clone(), name, dir: None }, service)
    })
}

fn fixed_port(spec: &ProjectSpec, service: &ServiceName) -> Option<u16> {
    match spec.services.iter().find(|spec| spec.name == *service)?.port? {
        PortSpec::Fixed(port) => Some(port),
        PortSpec::Auto => None,
    }
}

/// The port of a service, and every other on which it listens.
fn rows_of(project: &Owner, service: &ServiceStatus, places: Option<&[Listening]>, looks: &Looks<'_>) -> Vec<PortRow> {
    let mut by_port: BTreeMap<u16, Vec<Listener>> = BTreeMap::new();
    for place in places.unwrap_or_default() {
        let listeners = by_port.entry(place.port).or_default();
        match listeners.iter_mut().find(|listener| listener.pid == place.pid) {
            Some(listener) => listener.addresses.push(place.address),
            None => listeners.push(Listener {
                pid: place.pid,
                command: (looks.command)(place.pid),
                addresses: vec![place.address],
            }),
        }
    }
    let row = |port, listeners: Vec<Listener>| PortRow {
        port,
        project: project.clone(),
        service: service.clone(),
        is_declared: true,
        is_own: !listeners.is_empty(),
        listeners,
        note: None,
    };
    let mut rows = Vec::new();
    if let Some(port) = service.port {
        let own = by_port.remove(&port).unwrap_or_default();
        let holder = match own.as_slice() {
            [] => (looks.holder)(port, &format!("{}:{}", project.name.as_deref().unwrap_or_default(), service.name)),
            _ => Holder::Nobody,
        };
        let note = match places {
            Some(places) => {
                let is_settled = matches!(service.state, State::Ready | State::Unready);
                listening::note(port, is_settled, &listening::reach(port, places), &holder)
            }
            None => match &holder {
                Holder::Nobody => None,
                Holder::Hidden => Some("held by a process that is not shown".to_owned()),
                Holder::Stranger { .. } => Some("held by another process".to_owned()),
            },
        };
        let stranger = match holder {
            Holder::Stranger { pid, command } => Some(Listener { pid, command, addresses: Vec::new() }),
            Holder::Nobody | Holder::Hidden => None,
        };
        let row = row(port, own);
        let listeners = row.listeners.iter().cloned().chain(stranger).collect();
        rows.push(PortRow { listeners, note, ..row });
    }
    // Of what runs without a daemon nobody knows what it has.
    let note = (service.state != State::Unknown).then(|| "not its `port`".to_owned());
    let others = by_port.into_iter().map(|(port, listeners)| row(port, listeners));
    rows.extend(others.map(|row| PortRow { is_declared: false, note: note.clone(), ..row }));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{name, project_status, ready, service, spec};

    fn place(pid: i32, port: u16) -> Listening {
        Listening { pid, port, address: "127.0.0.1".parse().expect("an address") }
    }

    /// Port, owner, state, listeners and note, as text; a stranger with pid 812 listens on 9999.
    fn shown(known: Known<'_>) -> Vec<String> {
        let command = |pid: i32| format!("command-{pid}");
        let holder = |port: u16, _: &str| match port {
            9999 => Holder::Stranger { pid: 812, command: "other".into() },
            _ => Holder::Nobody,
        };
        let rows = rows(known, &Looks { command: &command, holder: &holder });
        let row = |row: &PortRow| {
            let project = row.project.name.clone().unwrap_or_else(|| row.project.id.to_string());
            let listeners: Vec<String> =
                row.listeners.iter().map(|listener| format!("{}/{}", listener.pid, listener.addresses.len())).collect();
            let (declared, own) = (if row.is_declared { "" } else { " besides" }, if row.is_own { " own" } else { "" });
            let note = row.note.clone().unwrap_or_default();
            format!("{} {project}:{}{declared} [{}{own}] {note}", row.port, row.service.name, listeners.join(" "))
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn every_port_is_listed_by_its_number_with_who_has_it_and_who_listens() {
        let mut shop = project_status("shop", &[]);
        shop.services = vec![
            ServiceStatus { port: Some(3000), ..ready("web") },
            ServiceStatus { port: Some(9999), ..ready("api") },
            ServiceStatus { port: Some(9999), ..service("old", State::Stopped) },
            ready("worker"),
            service("idle", State::Stopped),
        ];
        let web = vec![place(7, 3000), place(8, 3000), place(7, 3000), place(7, 24678)];
        let places = [Some(web), Some(vec![place(9, 5173)]), None, Some(Vec::new()), None];
        let known = Known { projects: &[shop], places: &places, spec: None, assigned: &[] };
        let expected = [
            "3000 shop:web [7/2 8/1 own] ",
            "5173 shop:api besides [9/1 own] not its `port`",
            "9999 shop:api [812/0] listens on 5173, not on 9999, where pid 812 (other) does",
            "9999 shop:old [812/0] held by another process",
            "24678 shop:web besides [7/1 own] not its `port`",
        ];
        assert_eq!(shown(known), expected);
    }

    #[test]
    fn what_is_written_here_and_what_is_kept_for_others_is_listed_once() {
        let mut here = spec(&["db", "web", "new", "plain"]);
        for (service, port) in here.services.iter_mut().zip([PortSpec::Fixed(5432), PortSpec::Auto, PortSpec::Auto]) {
            service.port = Some(port);
        }
        let kept = |project: &ProjectId, service: &str, port, project_name: Option<&str>| AssignedPort {
            port,
            project: project.clone(),
            project_name: project_name.map(|name| name.parse().expect("valid")),
            service: name(service),
        };
        let gone = ProjectId::from_recorded("0123456789ab");
        let assigned = [
            kept(&here.id, "web", 20_001, Some("shop")),
            kept(&gone, "web", 20_002, Some("gone")),
            kept(&gone, "never", 20_003, None),
        ];
        let known = Known { projects: &[], places: &[], spec: Some(&here), assigned: &assigned };
        let rest = ["20002 gone:web [] assigned", "20003 0123456789ab:never [] assigned"];
        let expected = ["5432 shop:db [] ", "20001 shop:web [] "];
        assert_eq!(shown(known), [expected, rest].concat());
        // The daemon knows it as well.
        let mut up = project_status("shop", &[]);
        up.services = vec![ServiceStatus { port: Some(20_001), ..ready("web") }];
        let known = Known { projects: &[up], places: &[Some(vec![place(7, 20_001)])], ..known };
        assert_eq!(shown(known), [["5432 shop:db [] ", "20001 shop:web [7/1 own] "], rest].concat());
    }

    #[test]
    fn what_runs_without_a_daemon_is_compared_with_the_file_here() {
        let mut here = spec(&["web"]);
        here.services[0].port = Some(PortSpec::Fixed(3000));
        let mut orphans = project_status("shop", &[]);
        orphans.services = vec![service("web", State::Unknown)];
        let places = [Some(vec![place(7, 3000), place(7, 3001)])];
        let known = Known { projects: &[orphans], places: &places, spec: Some(&here), assigned: &[] };
        assert_eq!(shown(known), ["3000 shop:web [7/1 own] ", "3001 shop:web besides [7/1 own] "]);
        assert_eq!(
            shown(Known { spec: None, ..known }),
            ["3000 shop:web besides [7/1 own] ", "3001 shop:web besides [7/1 own] "]
        );
    }
}
