//! What runs although no daemon does: read from the records of the shims, which outlive their daemon.
//!
//! Where the shim, the leader or anything else of it is alive, so is the run or what is left of it. More than that only a
//! daemon can tell, so such a service is `unknown` here and never `stopped`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use locald_utils::config::FILE_NAME;
use locald_utils::name::ProjectId;
use locald_utils::paths::{Home, service_dir};
use locald_utils::process::cgroup::Cgroup;
use locald_utils::process::membership::Memory;
use locald_utils::process::sweep::Target;
use locald_utils::process::{self, mark};
use locald_utils::protocol::{Desired, ProjectStatus, ServiceStatus, State};
use locald_utils::record::{self, PidRecord, ShimRecord};
use locald_utils::spec::{Kind, ProjectSpec};

use crate::daemon;
use crate::view::never_started;

/// What to do about a run without a daemon.
const NOTE: &str = "it runs without a daemon; `locald daemon start` takes it over";

/// Finds the declared services that run without a daemon. `None` when there are none.
pub(crate) fn find(home: &Home, spec: &ProjectSpec) -> Option<ProjectStatus> {
    if !daemon::leaves_runs(home) {
        return None;
    }
    let dir = home.project(&spec.id, &spec.name);
    let orphans = spec.services.iter().filter_map(|service| {
        let (_, found) = orphan(home, &service_dir(&dir, &service.name))?;
        Some(ServiceStatus { kind: service.kind, profiles: service.profiles.clone(), ..found })
    });
    let services: Vec<ServiceStatus> = orphans.collect();
    (!services.is_empty()).then(|| ProjectStatus {
        id: spec.id.clone(),
        name: spec.name.clone(),
        dir: spec.dir.clone(),
        file: spec.file.clone(),
        services,
        origins: BTreeMap::new(),
    })
}

/// Finds all that runs without a daemon, of all projects.
pub(crate) fn all(home: &Home) -> Vec<ProjectStatus> {
    let mut projects: BTreeMap<ProjectId, ProjectStatus> = BTreeMap::new();
    for (shim, service) in home.service_dirs().iter().filter_map(|dir| orphan(home, dir)) {
        let project = projects.entry(shim.run.project.clone()).or_insert_with(|| ProjectStatus {
            id: shim.run.project.clone(),
            name: shim.run.project_name.clone(),
            file: shim.project_dir.join(FILE_NAME),
            dir: shim.project_dir,
            services: Vec::new(),
            origins: BTreeMap::new(),
        });
        project.services.push(service);
    }
    projects.into_values().collect()
}

/// What runs of a service, whose directory is `dir`, and who looks after it. A record does not say whether it is a job.
fn orphan(home: &Home, dir: &Path) -> Option<(ShimRecord, ServiceStatus)> {
    let boot = process::boot_id().ok()?;
    let shim_in = |dir: PathBuf| Some((record::load::<ShimRecord>(&dir, record::SHIM).ok()??, dir));
    let mut shims: Vec<(ShimRecord, PathBuf)> = record::places(dir).into_iter().filter_map(shim_in).collect();
    shims.sort_by_key(|(shim, _)| std::cmp::Reverse(shim.run.number));
    // The newest run of which anything is left.
    let (shim, pid) = shims.into_iter().filter(|(shim, _)| shim.boot == boot).find_map(|(shim, dir)| {
        let pid: Option<PidRecord> = record::load(&dir, record::PID)
            .unwrap_or_else(|_| Some(PidRecord::unreadable(shim.run.clone(), boot.clone(), shim.shim, None)));
        let is_alive = shim.shim.is_alive() || pid.as_ref().is_some_and(|pid| has_members(home, pid));
        is_alive.then_some((shim, pid))
    })?;
    let status = ServiceStatus {
        desired: Desired::Up,
        state: State::Unknown,
        run: Some(shim.run.number),
        leader: pid.map(|pid| pid.main()).filter(|leader| leader.pid > 0),
        shim: Some(shim.shim),
        note: Some(NOTE.to_owned()),
        ..never_started(shim.run.service.clone(), Kind::Service)
    };
    Some((shim, status))
}

fn has_members(home: &Home, record: &PidRecord) -> bool {
    let cgroup = record.cgroup.clone().map(Cgroup::at);
    let target = Target::recorded(record, cgroup.as_ref(), Some(mark::supervisor(home.state())));
    // Where nobody can tell, somebody may be left.
    record.main().is_alive() || target.members(&Memory::default()).map_or(true, |members| !members.is_empty())
}
