//! What every service of a project is told about the ports of all of them: `LOCALD_PORT_DB=5432` and
//! `LOCALD_URL_DB=http://localhost:5432`.
//!
//! Pure: from specs and assigned ports to variables. What a service gets besides is put together where its run begins.

use crate::health::Probe;
use crate::spec::{Environment, Ports, ServiceSpec};

/// What the name of a variable with a port begins with.
pub const PORT_PREFIX: &str = "LOCALD_PORT_";
/// What the name of a variable with a URL begins with.
pub const URL_PREFIX: &str = "LOCALD_URL_";

/// Whether a variable is one of these, of whatever project.
#[must_use]
pub fn is_export(variable: &str) -> bool {
    variable.starts_with(PORT_PREFIX) || variable.starts_with(URL_PREFIX)
}

/// What stands for a service in the name of a variable: upper case, and `_` for whatever variables cannot have.
///
/// Different services may become the same; a project file in which two of them have ports is refused.
#[must_use]
pub fn suffix(service: &str) -> String {
    service.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// The variables for the services of a project that have a port.
#[must_use]
pub fn variables<'a>(services: impl IntoIterator<Item = &'a ServiceSpec>, ports: &Ports) -> Environment {
    let with_port = services.into_iter().filter_map(|spec| Some((spec, *ports.get(&spec.name)?)));
    let both = with_port.flat_map(|(spec, port)| {
        let name = suffix(spec.name.as_str());
        let url = format!("{}://localhost:{port}", scheme(spec, port));
        [(format!("{PORT_PREFIX}{name}"), port.to_string().into()), (format!("{URL_PREFIX}{name}"), url.into())]
    });
    both.collect()
}

/// How a service is spoken to, as far as its file tells: over TLS if that is how its own port is checked.
fn scheme(spec: &ServiceSpec, port: u16) -> &'static str {
    let is_tls = spec.health.iter().any(|check| match &check.probe {
        Probe::Http(http) => http.tls && check.probe.port(Some(port)) == Some(port),
        Probe::Listen | Probe::Tcp { .. } | Probe::Command { .. } | Probe::Log { .. } | Probe::Notify { .. } => false,
    });
    if is_tls { "https" } else { "http" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{HealthCheck, HttpProbe};

    fn service(name: &str) -> ServiceSpec {
        ServiceSpec::unknown(name.parse().expect("valid"))
    }

    fn over_tls(port: Option<u16>) -> HealthCheck {
        let (status, headers) = (Vec::new(), std::collections::BTreeMap::new());
        let http = HttpProbe { path: "/".into(), port, status, headers, tls: true, insecure: false };
        HealthCheck::of(Probe::Http(http))
    }

    #[test]
    fn every_service_with_a_port_has_two_variables() {
        let services = [service("db"), service("web-1.api_x"), service("worker")];
        let ports: Ports = services.iter().take(2).map(|spec| spec.name.clone()).zip([5432, 3000]).collect();
        let expected = [
            ("LOCALD_PORT_DB", "5432"),
            ("LOCALD_PORT_WEB_1_API_X", "3000"),
            ("LOCALD_URL_DB", "http://localhost:5432"),
            ("LOCALD_URL_WEB_1_API_X", "http://localhost:3000"),
        ];
        let found = variables(&services, &ports);
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.into())).into());
        assert!(found.keys().all(|name| is_export(name)));
    }

    #[test]
    fn a_port_that_is_checked_over_tls_has_a_url_that_says_so() {
        let url = |checks: Vec<HealthCheck>| {
            let web = ServiceSpec { health: checks, ..service("web") };
            let ports = Ports::from([(web.name.clone(), 3000)]);
            variables([&web], &ports)["LOCALD_URL_WEB"].as_os_str().to_owned()
        };
        assert_eq!(url(vec![over_tls(None)]), "https://localhost:3000");
        assert_eq!(url(vec![HealthCheck::of(Probe::Listen), over_tls(Some(3000))]), "https://localhost:3000");
        assert_eq!(url(vec![over_tls(Some(3001))]), "http://localhost:3000", "another port of it");
    }
}
