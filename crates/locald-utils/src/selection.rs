//! Which services somebody means who starts a project: those that are named, those of a profile, or what belongs to it without
//! being asked for.
//!
//! Pure, and the only place where this is decided. What the services that are meant depend on is started as well, whatever
//! its profiles. Names are known to exist in the project when they come from a client that read the project file, but a
//! client can be wrong, so the daemon checks everything again and refuses it as a whole.

use std::collections::{BTreeMap, BTreeSet};

use crate::name::{ProfileName, ServiceName, nearest};
use crate::protocol::{Failure, FailureCode};
use crate::spec::{ProjectSpec, ServiceSpec};

/// Finds the services that are meant, in the order of the file.
///
/// Without names those are all that have no profile, those with one of `profiles`, and those that somebody wants already: a
/// service that was asked for once belongs to the project until it is stopped. With names they are those that are named
/// and those with one of `profiles`.
///
/// # Errors
/// [`FailureCode::Usage`] when those are none.
pub fn meant(
    project: &ProjectSpec,
    named: &[ServiceName],
    profiles: &[ProfileName],
    is_wanted: impl Fn(&ServiceName) -> bool,
) -> Result<Vec<ServiceName>, Failure> {
    let is_meant = |service: &&ServiceSpec| {
        let has_profile = service.profiles.iter().any(|profile| profiles.contains(profile));
        let by_itself = || service.profiles.is_empty() || is_wanted(&service.name);
        has_profile || if named.is_empty() { by_itself() } else { named.contains(&service.name) }
    };
    let mut meant: Vec<ServiceName> =
        project.services.iter().filter(is_meant).map(|service| service.name.clone()).collect();
    // A name that the project does not have is refused by whoever looks it up.
    let known: BTreeSet<&ServiceName> = project.services.iter().map(|service| &service.name).collect();
    meant.extend(named.iter().filter(|name| !known.contains(name)).cloned());
    if meant.is_empty() {
        let message = format!("every service of {} has profiles, and none of them was asked for", project.name);
        return Err(Failure::new(FailureCode::Usage, message).hint("name services, or a profile: `--profile NAME`"));
    }
    Ok(meant)
}

/// Finds the services that a request names, and all that they depend on, each after its dependencies.
///
/// No name means every service.
///
/// # Errors
/// [`FailureCode::NotFound`] for a name that the project does not have, [`FailureCode::Usage`] for dependencies that are
/// missing or go round in a circle.
pub fn with_dependencies(project: &ProjectSpec, named: &[ServiceName]) -> Result<Vec<ServiceName>, Failure> {
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
#[must_use]
pub fn unknown_service<'a>(project: &str, name: &ServiceName, known: impl Iterator<Item = &'a str> + Clone) -> Failure {
    let failure = Failure::new(FailureCode::NotFound, format!("project `{project}` has no service `{name}`"));
    match nearest(name.as_str(), known.clone()) {
        Some(near) => failure.hint(format!("did you mean `{near}`?")),
        None => failure.hint(format!("it has {}", known.collect::<Vec<_>>().join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ProjectId;
    use crate::spec::{Condition, Dependency};

    fn shop() -> ProjectSpec {
        let service = |(name, profiles): (&str, &[&str])| ServiceSpec {
            profiles: profiles.iter().map(|profile| profile.parse().expect("valid")).collect(),
            ..ServiceSpec::unknown(name.parse().expect("valid"))
        };
        let services: [(&str, &[&str]); 4] =
            [("db", &[]), ("web", &[]), ("mail", &["full"]), ("trace", &["full", "debug"])];
        ProjectSpec {
            id: ProjectId::from_recorded("p"),
            name: "shop".parse().expect("valid"),
            dir: "/".into(),
            file: "/locald.toml".into(),
            services: services.map(service).to_vec(),
        }
    }

    fn of(named: &[&str], profiles: &[&str], wanted: &[&str]) -> String {
        let named: Vec<ServiceName> = named.iter().map(|name| name.parse().expect("valid")).collect();
        let profiles: Vec<ProfileName> = profiles.iter().map(|name| name.parse().expect("valid")).collect();
        let names = meant(&shop(), &named, &profiles, |name| wanted.contains(&name.as_str())).expect("some");
        names.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_service_with_profiles_is_meant_when_one_of_them_is_or_it_is_named_or_wanted_already() {
        assert_eq!(of(&[], &[], &[]), "db web");
        assert_eq!(of(&[], &["debug"], &[]), "db web trace");
        assert_eq!(of(&[], &["full"], &[]), "db web mail trace");
        assert_eq!(of(&[], &["no-such"], &[]), "db web");
        assert_eq!(of(&[], &[], &["mail", "web"]), "db web mail");
    }

    #[test]
    fn who_names_some_means_those_and_the_profile_that_is_asked_for() {
        assert_eq!(of(&["mail"], &[], &["trace"]), "mail");
        assert_eq!(of(&["web"], &["debug"], &[]), "web trace");
        assert_eq!(of(&["web", "no-such"], &[], &[]), "web no-such");
    }

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
            ServiceSpec { depends_on: depends_on.collect(), ..ServiceSpec::unknown(name(service)) }
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
