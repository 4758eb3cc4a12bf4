//! The configuration of services as `config` shows it: every key with its value, and where each variable comes from. Pure.

use std::collections::BTreeMap;

use locald_utils::config::form::Key;
use locald_utils::config::origin::{Origins, Source};
use locald_utils::health::Probe;
use locald_utils::process::{RUN_MARKER, SERVICE_MARKER};
use locald_utils::spec::{Environment, Ports, ProjectSpec, ServiceSpec};
use locald_utils::{environment, exports, redaction};

use crate::environment::TERM;
use crate::secrets;

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Configured {
    /// Its name.
    pub(crate) name: String,
    /// Its keys, as the file would have them with every default filled in.
    pub(crate) keys: Vec<Line>,
    /// Everything that it finds in its environment, in order of precedence: what comes later counts.
    pub(crate) environment: Vec<Variable>,
    /// The caller's variables that it does not get.
    pub(crate) removed: Vec<String>,
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The key.
    pub(crate) key: Key,
    /// Its value in TOML, as it may be shown.
    pub(crate) value: String,
    /// Whether something of it is not shown.
    pub(crate) is_redacted: bool,
    /// Where it is written; none for a default.
    pub(crate) sources: Vec<Source>,
}

/// A variable of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable {
    /// Its name.
    pub(crate) name: String,
    /// Its value as it may be shown; `None` where it is another one for each run, or not known yet.
    pub(crate) value: Option<String>,
    /// Whether something of it is not shown.
    pub(crate) is_redacted: bool,
    /// Where it comes from.
    pub(crate) origin: Origin,
    /// Where it would come from otherwise, what counts most first.
    pub(crate) over: Vec<Origin>,
}

/// Where a variable comes from. The order is that of precedence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Whoever types `up` or `restart`.
    Caller,
    /// A file of `env_file`, or `env`.
    File(Source),
    /// locald adds it.
    Locald,
}

/// What a configuration is shown of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known<'a> {
    /// The project.
    pub(crate) project: &'a ProjectSpec,
    /// Where its values are written.
    pub(crate) origins: &'a Origins,
    /// The ports, as far as they are known.
    pub(crate) ports: &'a Ports,
    /// What services start from.
    pub(crate) caller: &'a Environment,
    /// What the caller has besides.
    pub(crate) removed: &'a [String],
    /// Whether everything may be shown.
    pub(crate) reveal: bool,
}

/// Puts the configuration of a service together.
pub(crate) fn of_service(known: Known<'_>, service: &ServiceSpec) -> Configured {
    let keys = secrets::of_service(service).into_iter().map(|(key, value)| {
        let sources = known.origins.of(&service.name, &key).to_vec();
        let is_redacted = value.is_redacted() && !known.reveal;
        Line { is_redacted, value: value.printed(known.reveal).to_owned(), key, sources }
    });
    Configured {
        name: service.name.to_string(),
        keys: keys.collect(),
        environment: variables(known, service),
        removed: known.removed.to_vec(),
    }
}

fn variables(known: Known<'_>, service: &ServiceSpec) -> Vec<Variable> {
    let Known { project, origins, ports, caller, .. } = known;
    let mut found: BTreeMap<String, (Option<String>, Vec<Origin>)> = BTreeMap::new();
    let mut add = |name: &str, value: Option<String>, origin: Origin| {
        let entry = found.entry(name.to_owned()).or_default();
        entry.0 = value;
        entry.1.push(origin);
    };
    for (name, value) in caller {
        let is_ours = name == "TERM" && value.as_os_str() == TERM;
        let origin = if is_ours { Origin::Locald } else { Origin::Caller };
        add(name, Some(value.as_os_str().to_string_lossy().into_owned()), origin);
    }
    for (name, value) in &service.env {
        // A port that is not known yet stands as it is written.
        let text = value.render(ports).unwrap_or_else(|_| value.to_string());
        for source in origins.of(&service.name, &Key::Variable(name.clone())) {
            add(name, Some(text.clone()), Origin::File(source.clone()));
        }
    }
    // Of a port that is assigned later it is known only that it will be.
    let later = project.services.iter().filter(|spec| spec.port.is_some() && !ports.contains_key(&spec.name));
    for spec in later {
        let suffix = exports::suffix(spec.name.as_str());
        for prefix in [exports::PORT_PREFIX, exports::URL_PREFIX] {
            add(&format!("{prefix}{suffix}"), None, Origin::Locald);
        }
    }
    for (name, value) in exports::variables(&project.services, ports) {
        add(&name, Some(value.as_os_str().to_string_lossy().into_owned()), Origin::Locald);
    }
    if service.port.is_some() {
        add(environment::PORT, ports.get(&service.name).map(ToString::to_string), Origin::Locald);
    }
    add(SERVICE_MARKER, Some(format!("{}:{}", project.name, service.name)), Origin::Locald);
    add(RUN_MARKER, None, Origin::Locald);
    if service.health.iter().any(|check| matches!(check.probe, Probe::Notify { fd: None })) {
        add("NOTIFY_SOCKET", None, Origin::Locald);
    }
    let mut variables: Vec<Variable> = found
        .into_iter()
        .filter_map(|(name, (value, mut origins))| {
            let origin = origins.pop()?;
            origins.reverse();
            let shown = value.as_deref().map(|value| match known.reveal {
                true => value.to_owned(),
                false => redaction::shown(&name, value).into_owned(),
            });
            Some(Variable { is_redacted: shown != value, value: shown, name, origin, over: origins })
        })
        .collect();
    variables.sort_by_key(rank);
    variables
}

/// The place of a variable in the order of precedence; those of files are further ordered by where they are written.
fn rank(variable: &Variable) -> usize {
    match &variable.origin {
        // What locald makes of `TERM` comes first, and anybody may say otherwise.
        Origin::Locald if variable.name == "TERM" => 0,
        Origin::Caller => 0,
        Origin::File(_) => 1,
        Origin::Locald => 2,
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Caller => f.write_str("caller"),
            Self::File(source) => write!(f, "{}:{}", source.file, source.line),
            Self::Locald => f.write_str("locald"),
        }
    }
}

#[cfg(test)]
mod tests {
    use locald_utils::spec::OsText;

    use super::*;

    #[test]
    fn every_variable_comes_from_somewhere_and_says_what_it_is_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("locald.toml");
        let text = "[services.web]\ncommand = \"x\"\nport = \"auto\"\nenv_file = [\".env\", \"more.env\"]\n\
                    env = { A = \"env\", PORT = 1 }\n[services.db]\ncommand = \"y\"\nport = 5432\n";
        std::fs::write(&file, text).expect("written");
        std::fs::write(dir.path().join(".env"), "# note\nA=1\nexport B=1\nTOKEN=t\n").expect("written");
        std::fs::write(dir.path().join("more.env"), "\n\nB=2\n").expect("written");
        let (project, origins) = locald_utils::config::load_with_origins(&file).expect("no mistakes");
        let caller: Environment = [("A", "caller"), ("HOME", "/h"), ("TERM", TERM)]
            .map(|(name, value)| (name.to_owned(), OsText::from(value)))
            .into();
        let ports = Ports::from([("db".parse().expect("valid"), 5432)]);
        let known =
            Known { project: &project, origins: &origins, ports: &ports, caller: &caller, removed: &[], reveal: false };
        let configured = of_service(known, &project.services[0]);
        let show = |variable: &Variable| {
            let over: Vec<String> = variable.over.iter().map(ToString::to_string).collect();
            let value = variable.value.as_deref().unwrap_or("?");
            format!("{}={value} {} [{}]", variable.name, variable.origin, over.join(" "))
        };
        assert_eq!(
            configured.environment.iter().map(show).collect::<Vec<_>>(),
            [
                "HOME=/h caller []",
                "TERM=xterm-256color locald []",
                "A=env locald.toml:5 [.env:2 caller]",
                "B=2 more.env:3 [.env:3]",
                "TOKEN=*** .env:4 []",
                "LOCALD_PORT_DB=5432 locald []",
                "LOCALD_PORT_WEB=? locald []",
                "LOCALD_RUN=? locald []",
                &format!("LOCALD_SERVICE={}:web locald []", project.name),
                "LOCALD_URL_DB=http://localhost:5432 locald []",
                "LOCALD_URL_WEB=? locald []",
                "PORT=? locald [locald.toml:5]",
            ]
        );
        let line = |key: &str| {
            let line = configured.keys.iter().find(|line| line.key.to_string() == key).expect("such a key");
            let sources: Vec<String> =
                line.sources.iter().map(|source| format!("{}:{}", source.file, source.line)).collect();
            format!("{} {}", line.value, sources.join(" "))
        };
        assert_eq!(line("command"), "\"x\" locald.toml:2");
        assert_eq!(line("stop_grace"), "\"5s\" ");
        assert_eq!(line("env.A"), "\"env\" .env:2 locald.toml:5");
        assert_eq!(line("env.TOKEN"), "\"***\" .env:4");
        let open = of_service(Known { reveal: true, ..known }, &project.services[0]);
        assert!(
            open.keys.iter().all(|line| !line.is_redacted)
                && open.environment.iter().any(|one| one.value.as_deref() == Some("t"))
        );
    }
}
