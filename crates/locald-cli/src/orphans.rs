//! What runs although no daemon does: read from the records of the shims, which outlive their daemon.
//!
//! A shim that accepts a connection is alive, and so is its run or what is left of it. More than that only a daemon can
//! tell, so such a service is `unknown` here and never `stopped`.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

use locald_utils::paths::{Home, service_dir};
use locald_utils::protocol::{Desired, ProjectStatus, ServiceStatus, State};
use locald_utils::record::{PidRecord, ShimRecord};
use locald_utils::spec::{ProjectSpec, ServiceSpec};
use serde::de::DeserializeOwned;

use crate::daemon;

/// What to do about a run without a daemon.
const NOTE: &str = "it runs without a daemon; `locald daemon start` takes it over";

/// Finds the declared services that run without a daemon. `None` when there are none.
pub(crate) fn find(home: &Home, spec: &ProjectSpec) -> Option<ProjectStatus> {
    if !daemon::leaves_runs(home) {
        return None;
    }
    let dir = home.project(&spec.id, &spec.name);
    let services: Vec<ServiceStatus> =
        spec.services.iter().filter_map(|service| orphan(&service_dir(&dir, &service.name), service)).collect();
    (!services.is_empty()).then(|| ProjectStatus {
        id: spec.id.clone(),
        name: spec.name.clone(),
        dir: spec.dir.clone(),
        file: spec.file.clone(),
        services,
    })
}

fn orphan(dir: &Path, service: &ServiceSpec) -> Option<ServiceStatus> {
    let shim: ShimRecord = read(&dir.join("shim"))?;
    UnixStream::connect(&shim.socket).ok()?;
    let pid: Option<PidRecord> = read(&dir.join("pid")).filter(|pid: &PidRecord| pid.run.id == shim.run.id);
    Some(ServiceStatus {
        name: service.name.clone(),
        kind: service.kind,
        desired: Desired::Up,
        state: State::Unknown,
        run: Some(shim.run.number),
        leader: pid.map(|pid| pid.leader),
        shim: Some(shim.shim),
        started_at: None,
        ready_at: None,
        restarts: 0,
        port: None,
        last: None,
        spec_digest: None,
        note: Some(NOTE.to_owned()),
    })
}

fn read<T: DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}
