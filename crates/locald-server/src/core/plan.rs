//! What a request means: which services it is about, and in which order they depend on each other.
//!
//! Pure functions over specs. Names are known to exist in the project when they come from a client that read the project
//! file, but a client can be wrong, so everything is checked again and refused as a whole.

use std::collections::{BTreeMap, BTreeSet};

use locald_utils::name::ServiceName;
use locald_utils::protocol::{Failure, FailureCode};
use locald_utils::spec::{Condition, Dependency, ProjectSpec, ServiceSpec};

/// Finds the services that a request names, and all that they depend on, each after its dependencies.
///
/// No name means every service.
///
/// # Errors
/// [`FailureCode::NotFound`] for a name that the project does not have, [`FailureCode::Usage`] for dependencies that are
/// missing or go round in a circle.
pub(crate) fn with_dependencies(project: &ProjectSpec, named: &[ServiceName]) -> Result<Vec<ServiceName>, Failure> {
    let specs: BTreeMap<&ServiceName, &ServiceSpec> = project.services.iter().map(|spec| (&spec.name, spec)).collect();
    for name in named {
        if !specs.contains_key(name) {
            return Err(unknown_service(project.name.as_str(), name, specs.keys().map(|name| name.as_str())));
        }
    }
    let mut ordered = Vec::new();
    let mut path = Vec::new();
    let mut done = BTreeSet::new();
    let all: Vec<&ServiceName> = project.services.iter().map(|spec| &spec.name).collect();
    // Every service is visited, so that a circle is refused wherever it is.
    for name in all {
        visit(name, &specs, &mut path, &mut done, &mut ordered)?;
    }
    if named.is_empty() {
        return Ok(ordered);
    }
    let mut wanted: BTreeSet<&ServiceName> = named.iter().collect();
    for name in ordered.iter().rev() {
        if wanted.contains(name) {
            wanted.extend(specs[name].depends_on.iter().map(|dependency| &dependency.service));
        }
    }
    let wanted: BTreeSet<ServiceName> = wanted.into_iter().cloned().collect();
    ordered.retain(|name| wanted.contains(name));
    Ok(ordered)
}

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

fn visit(
    name: &ServiceName,
    specs: &BTreeMap<&ServiceName, &ServiceSpec>,
    path: &mut Vec<ServiceName>,
    done: &mut BTreeSet<ServiceName>,
    ordered: &mut Vec<ServiceName>,
) -> Result<(), Failure> {
    if done.contains(name) {
        return Ok(());
    }
    if let Some(start) = path.iter().position(|visited| visited == name) {
        let circle: Vec<&str> = path[start..].iter().chain([name]).map(ServiceName::as_str).collect();
        return Err(Failure::new(
            FailureCode::Usage,
            format!("services depend on each other in a circle: {}", circle.join(" -> ")),
        ));
    }
    let Some(spec) = specs.get(name) else {
        let by = path.last().map_or("", ServiceName::as_str);
        return Err(Failure::new(
            FailureCode::Usage,
            format!("service `{by}` depends on `{name}`, which the project does not have"),
        ));
    };
    path.push(name.clone());
    for dependency in &spec.depends_on {
        visit(&dependency.service, specs, path, done, ordered)?;
    }
    path.pop();
    done.insert(name.clone());
    ordered.push(name.clone());
    Ok(())
}

/// The failure for a name that a project does not have, with the nearest one that it has.
pub(crate) fn unknown_service<'a>(
    project: &str,
    name: &ServiceName,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Failure {
    let failure = Failure::new(FailureCode::NotFound, format!("project `{project}` has no service `{name}`"));
    match locald_utils::name::nearest(name.as_str(), known.clone()) {
        Some(near) => failure.hint(format!("did you mean `{near}`?")),
        None => failure.hint(format!("it has {}", known.collect::<Vec<_>>().join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::lifecycle::tests::spec;
    use super::*;
    use locald_utils::name::ProjectId;

    fn name(name: &str) -> ServiceName {
        name.parse().expect("valid")
    }

    fn project(services: &[(&str, &[&str])]) -> ProjectSpec {
        let services = services.iter().map(|(service, dependencies)| {
            let depends_on = dependencies.iter().map(|dependency| Dependency {
                service: name(dependency),
                condition: Condition::Ready,
                restart: false,
            });
            ServiceSpec { depends_on: depends_on.collect(), ..spec(service) }
        });
        ProjectSpec {
            id: ProjectId::from_recorded("p"),
            name: "shop".parse().expect("valid"),
            dir: "/".into(),
            file: "/locald.toml".into(),
            services: services.collect(),
        }
    }

    fn ordered(services: &[(&str, &[&str])], named: &[&str]) -> Result<String, String> {
        let named: Vec<ServiceName> = named.iter().map(|named| name(named)).collect();
        let names = with_dependencies(&project(services), &named)
            .map_err(|failure| format!("{failure} ({})", failure.hint.clone().unwrap_or_default()))?;
        Ok(names.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn a_request_takes_in_what_its_services_depend_on_and_nothing_else() {
        let shop: &[(&str, &[&str])] =
            &[("web", &["api"]), ("api", &["db", "cache"]), ("db", &[]), ("cache", &[]), ("mail", &[])];
        assert_eq!(ordered(shop, &[]), Ok("db cache api web mail".into()));
        assert_eq!(ordered(shop, &["api"]), Ok("db cache api".into()));
        assert_eq!(ordered(shop, &["mail", "db"]), Ok("db mail".into()));
    }

    #[test]
    fn mistakes_are_refused_as_a_whole() {
        assert_eq!(
            ordered(&[("web", &[])], &["wen"]),
            Err("project `shop` has no service `wen` (did you mean `web`?)".into())
        );
        assert_eq!(
            ordered(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])], &[]),
            Err("services depend on each other in a circle: b -> c -> b ()".into())
        );
        assert_eq!(
            ordered(&[("a", &["x"])], &[]),
            Err("service `a` depends on `x`, which the project does not have ()".into())
        );
    }
}
