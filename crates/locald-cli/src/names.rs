//! Which services and profiles a person means: names or globs against what there is. An unmatched one is an error, with the
//! nearest.

use globset::{Glob, GlobMatcher};
use locald_utils::name::{ProfileName, ServiceName, nearest};
use locald_utils::protocol::{Failure, FailureCode};
use locald_utils::spec::ProjectSpec;

/// Finds the services that `patterns` mean, in the order of `known`, each once. No pattern means none.
///
/// # Errors
/// [`FailureCode::NotFound`] for a name or glob that matches nothing, [`FailureCode::Usage`] for a malformed glob.
pub(crate) fn select(patterns: &[String], known: &[ServiceName], project: &str) -> Result<Vec<ServiceName>, Failure> {
    let names: Vec<&str> = known.iter().map(ServiceName::as_str).collect();
    let is_meant = matching(patterns, &names, |pattern| unknown(pattern, known, project))?;
    Ok(known.iter().zip(is_meant).filter(|(_, is_meant)| *is_meant).map(|(name, _)| name.clone()).collect())
}

/// Finds the profiles that `patterns` mean, each once.
///
/// # Errors
/// As [`select`].
pub(crate) fn profiles(patterns: &[String], project: &ProjectSpec) -> Result<Vec<ProfileName>, Failure> {
    let known = known_profiles(project);
    let names: Vec<&str> = known.iter().map(|profile| profile.as_str()).collect();
    let is_meant = matching(patterns, &names, |pattern| {
        let message = format!("no service of {} has the profile `{pattern}`", project.name);
        let list =
            if names.is_empty() { "none has any".to_owned() } else { format!("its profiles: {}", names.join(", ")) };
        Failure::new(FailureCode::NotFound, message).hint(match nearest(pattern, names.iter().copied()) {
            Some(name) => format!("did you mean `{name}`? {list}"),
            None => list,
        })
    })?;
    Ok(known.into_iter().zip(is_meant).filter(|(_, is_meant)| *is_meant).map(|(name, _)| name.clone()).collect())
}

/// Those of a list, as in `LOCALD_PROFILES`, that a project has: names divided by commas. The list is for whatever project, so
/// what this one does not have is no mistake.
pub(crate) fn usual_profiles(list: &str, project: &ProjectSpec) -> Vec<ProfileName> {
    let wanted: Vec<&str> = list.split(',').map(str::trim).collect();
    known_profiles(project).into_iter().filter(|profile| wanted.contains(&profile.as_str())).cloned().collect()
}

/// The profiles of a project, each once, in the order of the file.
fn known_profiles(project: &ProjectSpec) -> Vec<&ProfileName> {
    let mut known: Vec<&ProfileName> = Vec::new();
    for profile in project.services.iter().flat_map(|service| &service.profiles) {
        if !known.contains(&profile) {
            known.push(profile);
        }
    }
    known
}

/// Tells of each name whether a pattern means it; `unknown` makes the failure of a pattern that means none.
fn matching(patterns: &[String], names: &[&str], unknown: impl Fn(&str) -> Failure) -> Result<Vec<bool>, Failure> {
    let mut is_meant = vec![false; names.len()];
    for pattern in patterns {
        // Compiled only when needed: building a matcher takes longer than the rest of `status`.
        let glob = if pattern.contains(['*', '?', '[', '{']) { Some(matcher(pattern)?) } else { None };
        let mut matched = false;
        for (name, is_meant) in names.iter().zip(&mut is_meant) {
            let matches = match &glob {
                Some(glob) => glob.is_match(name),
                None => name == pattern,
            };
            *is_meant |= matches;
            matched |= matches;
        }
        if !matched {
            return Err(unknown(pattern));
        }
    }
    Ok(is_meant)
}

fn matcher(pattern: &str) -> Result<GlobMatcher, Failure> {
    let glob = Glob::new(pattern);
    glob.map(|glob| glob.compile_matcher())
        .map_err(|error| Failure::new(FailureCode::Usage, format!("`{pattern}` is no glob: {}", error.kind())))
}

fn unknown(pattern: &str, known: &[ServiceName], project: &str) -> Failure {
    let failure = Failure::new(FailureCode::NotFound, format!("no service `{pattern}` in {project}"));
    let names: Vec<&str> = known.iter().map(ServiceName::as_str).collect();
    let list = match names.len() {
        0 => "it has no services".to_owned(),
        1..=12 => format!("its services: {}", names.join(", ")),
        count => format!("`locald status` lists its {count} services"),
    };
    failure.hint(match nearest(pattern, names.iter().copied()) {
        Some(name) => format!("did you mean `{name}`? {list}"),
        None => list,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(patterns: &[&str]) -> Result<Vec<String>, Failure> {
        let known: Vec<ServiceName> =
            ["db", "api-a", "api-b", "web"].iter().map(|name| name.parse().expect("valid")).collect();
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        let picked = select(&patterns, &known, "shop")?;
        Ok(picked.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn names_and_globs_pick_each_service_once_in_the_order_of_the_file() {
        assert_eq!(pick(&["web", "api-*", "web"]).expect("known"), ["api-a", "api-b", "web"]);
        assert_eq!(pick(&["{db,web}", "[d]b"]).expect("known"), ["db", "web"]);
        assert_eq!(pick(&[]).expect("known"), [""; 0]);
    }

    #[test]
    fn an_unknown_name_comes_with_the_nearest_one() {
        let failure = pick(&["db", "wbe"]).expect_err("unknown");
        assert_eq!(failure.code, FailureCode::NotFound);
        assert_eq!(failure.message, "no service `wbe` in shop");
        assert_eq!(failure.hint.as_deref(), Some("did you mean `web`? its services: db, api-a, api-b, web"));
    }

    #[test]
    fn profiles_are_meant_by_name_or_glob_and_a_list_for_all_projects_may_have_others() {
        let mut shop = crate::testing::spec(&["db", "mail", "trace"]);
        let profile = |name: &str| name.parse::<ProfileName>().expect("valid");
        shop.services[1].profiles = vec![profile("full")];
        shop.services[2].profiles = vec![profile("debug"), profile("full")];
        let meant = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
            profiles(&patterns, &shop)
        };
        assert_eq!(meant(&["full", "full"]).expect("known"), [profile("full")]);
        assert_eq!(meant(&["*"]).expect("known"), [profile("full"), profile("debug")]);
        let failure = meant(&["fulll"]).expect_err("unknown");
        assert_eq!(failure.code, FailureCode::NotFound);
        assert_eq!(failure.message, "no service of shop has the profile `fulll`");
        assert_eq!(failure.hint.as_deref(), Some("did you mean `full`? its profiles: full, debug"));
        assert_eq!(usual_profiles("debug, other,", &shop), [profile("debug")]);
        assert_eq!(usual_profiles("", &shop), []);
    }

    #[test]
    fn a_glob_that_matches_nothing_is_an_error_and_so_is_half_a_glob() {
        assert_eq!(pick(&["x*"]).expect_err("no match").code, FailureCode::NotFound);
        assert_eq!(pick(&["[x"]).expect_err("no glob").code, FailureCode::Usage);
    }
}
