//! What a request means beyond the services that it names: how far what they depend on must have come, and who follows them.
//!
//! Pure functions over specs. Which services are meant at all is decided in [`locald_utils::selection`].

use std::collections::{BTreeMap, BTreeSet};

use locald_utils::name::ServiceName;
use locald_utils::spec::{Condition, Dependency, ProjectSpec, ServiceSpec};

/// How far the dependencies of these services must have come before the last of those that need them can start.
pub(crate) fn needed(project: &ProjectSpec, of: &[ServiceName]) -> BTreeMap<ServiceName, Condition> {
    let mut needed = BTreeMap::new();
    let specs = project.services.iter().filter(|spec| of.contains(&spec.name));
    for Dependency { service, condition, .. } in specs.flat_map(|spec| &spec.depends_on) {
        let furthest = needed.entry(service.clone()).or_insert(*condition);
        // Of a service and of a job there is only one that asks for more than this.
        if *furthest == Condition::Started {
            *furthest = *condition;
        }
    }
    needed
}

/// Finds the services that are run again when these are: those with `restart` on a dependency, and so on.
pub(crate) fn followers(project: &ProjectSpec, of: &[ServiceName]) -> BTreeSet<ServiceName> {
    let mut followers = BTreeSet::new();
    let mut open: Vec<&ServiceName> = of.iter().collect();
    while let Some(name) = open.pop() {
        let follows = |spec: &&ServiceSpec| {
            spec.depends_on.iter().any(|dependency| dependency.restart && dependency.service == *name)
        };
        for spec in project.services.iter().filter(follows) {
            if followers.insert(spec.name.clone()) {
                open.push(&spec.name);
            }
        }
    }
    followers
}
