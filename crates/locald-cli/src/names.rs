//! Which services a person means: names or globs against what there is. An unmatched one is an error, with the nearest.

use globset::{Glob, GlobMatcher};
use locald_utils::name::{ServiceName, nearest};
use locald_utils::protocol::{Failure, FailureCode};

/// Finds the services that `patterns` mean, in the order of `known`, each once. No pattern means none.
///
/// # Errors
/// [`FailureCode::NotFound`] for a name or glob that matches nothing, [`FailureCode::Usage`] for a malformed glob.
pub(crate) fn select(patterns: &[String], known: &[ServiceName], project: &str) -> Result<Vec<ServiceName>, Failure> {
    let mut is_meant = vec![false; known.len()];
    for pattern in patterns {
        // Compiled only when needed: building a matcher takes longer than the rest of `status`.
        let glob = if pattern.contains(['*', '?', '[', '{']) { Some(matcher(pattern)?) } else { None };
        let mut matched = false;
        for (name, is_meant) in known.iter().zip(&mut is_meant) {
            let matches = match &glob {
                Some(glob) => glob.is_match(name.as_str()),
                None => name.as_str() == pattern,
            };
            *is_meant |= matches;
            matched |= matches;
        }
        if !matched {
            return Err(unknown(pattern, known, project));
        }
    }
    Ok(known.iter().zip(is_meant).filter(|(_, is_meant)| *is_meant).map(|(name, _)| name.clone()).collect())
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
    fn a_glob_that_matches_nothing_is_an_error_and_so_is_half_a_glob() {
        assert_eq!(pick(&["x*"]).expect_err("no match").code, FailureCode::NotFound);
        assert_eq!(pick(&["[x"]).expect_err("no glob").code, FailureCode::Usage);
    }
}
