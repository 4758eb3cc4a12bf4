//! Which services somebody means who starts a project: those that are named, those of a profile, or what belongs to it without
//! being asked for.
//!
//! Pure, and the only place where this is decided. What the services that are meant depend on is started as well, whatever
//! its profiles; that is the daemon's to find.

use std::collections::BTreeSet;

use crate::name::{ProfileName, ServiceName};
use crate::spec::{ProjectSpec, ServiceSpec};

/// Finds the services that are meant, in the order of the file.
///
/// Without names those are all that have no profile, those with one of `profiles`, and those that somebody wants already: a
/// service that was asked for once belongs to the project until it is stopped. With names they are those that are named
/// and those with one of `profiles`.
#[must_use]
pub fn meant(
    project: &ProjectSpec,
    named: &[ServiceName],
    profiles: &[ProfileName],
    is_wanted: impl Fn(&ServiceName) -> bool,
) -> Vec<ServiceName> {
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
    meant
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::ProjectId;

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
        let names = meant(&shop(), &named, &profiles, |name| wanted.contains(&name.as_str()));
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
}
