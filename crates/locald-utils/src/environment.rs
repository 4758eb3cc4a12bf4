//! What a service finds in its environment: the caller's variables, what its file adds, what locald adds; each over the one
//! before.
//!
//! Pure, and the only place where this is decided. The daemon adds what belongs to a run alone, the markers among it; a
//! one-off command gets none of that.

use std::collections::{BTreeMap, BTreeSet};

use crate::process;
use crate::spec::{Environment, Ports, ServiceSpec, UnknownPort};

/// Where the port of a service stands.
pub const PORT: &str = "PORT";

/// The environment of a service. `exports` are the ports of its project ([`crate::exports`]).
///
/// # Errors
/// When it mentions the port of a service that has none.
pub fn of_service(
    caller: Environment,
    spec: &ServiceSpec,
    exports: Environment,
    ports: &Ports,
) -> Result<Environment, UnknownPort> {
    let mut environment = caller;
    for (name, value) in &spec.env {
        environment.insert(name.clone(), value.render(ports)?.into());
    }
    environment.extend(exports);
    if let Some(port) = ports.get(&spec.name) {
        environment.insert(PORT.to_owned(), port.to_string().into());
    }
    Ok(environment)
}

/// The variables that two environments of a service have otherwise, or that only one of them has; without those that belong to a
/// run alone.
#[must_use]
pub fn differences<T: PartialEq>(one: &BTreeMap<String, T>, other: &BTreeMap<String, T>) -> Vec<String> {
    const OF_A_RUN: [&str; 3] = [process::SERVICE_MARKER, process::RUN_MARKER, "NOTIFY_SOCKET"];
    let names: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let differ = |name: &&String| !OF_A_RUN.contains(&name.as_str()) && one.get(*name) != other.get(*name);
    names.into_iter().filter(differ).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exports;
    use crate::spec::{OsText, Part, Template};

    #[test]
    fn each_layer_is_over_the_one_before() {
        let text = |text: &str| Template(vec![Part::Text(text.to_owned())]);
        let web = ServiceSpec {
            env: [("A", "file"), ("B", "file"), ("PORT", "file"), ("LOCALD_PORT_WEB", "file")]
                .map(|(name, value)| (name.to_owned(), text(value)))
                .into(),
            ..ServiceSpec::unknown("web".parse().expect("valid"))
        };
        let ports = Ports::from([(web.name.clone(), 3000)]);
        let caller: Environment = ["A", "C", "PORT"].map(|name| (name.to_owned(), OsText::from("caller"))).into();
        let found = of_service(caller, &web, exports::variables([&web], &ports), &ports).expect("no other ports");
        let expected = [
            ("A", "file"),
            ("B", "file"),
            ("C", "caller"),
            ("LOCALD_PORT_WEB", "3000"),
            ("LOCALD_URL_WEB", "http://localhost:3000"),
            ("PORT", "3000"),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), OsText::from(value))).into());
    }

    #[test]
    fn what_differs_is_named_and_what_belongs_to_a_run_is_not() {
        let of = |pairs: &[(&str, u8)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let one = of(&[("A", 1), ("B", 1), ("C", 1), ("LOCALD_RUN", 1)]);
        let other = of(&[("A", 1), ("B", 2), ("D", 1), ("LOCALD_RUN", 2), ("NOTIFY_SOCKET", 1)]);
        assert_eq!(differences(&one, &other), ["B", "C", "D"]);
    }

    #[test]
    fn a_port_that_nobody_has_is_told() {
        let db = "db".parse().expect("valid");
        let web = ServiceSpec {
            env: [("A".to_owned(), Template(vec![Part::Port { port_of: db }]))].into(),
            ..ServiceSpec::unknown("web".parse().expect("valid"))
        };
        let found = of_service(Environment::new(), &web, Environment::new(), &Ports::new());
        assert_eq!(found, Err(UnknownPort("db".parse().expect("valid"))));
    }
}
