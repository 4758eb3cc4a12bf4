//! The values of a service, and what may be shown of them: what [`locald_utils::redaction`] hides is not. Pure.

use locald_utils::config::form::{self, Key};
use locald_utils::health::{HealthCheck, HttpProbe, Probe};
use locald_utils::redaction::{arguments, line, sent, shown};
use locald_utils::spec::{CommandSpec, ServiceSpec, StopPolicy, Template};

/// A value of a service, in TOML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    /// All of it.
    pub(crate) whole: String,
    /// What may be shown of it.
    pub(crate) shown: String,
}

impl Value {
    /// What is printed: all of it for who asks for that.
    pub(crate) fn printed(&self, reveal: bool) -> &str {
        if reveal { &self.whole } else { &self.shown }
    }

    /// Whether something of it is not shown.
    pub(crate) fn is_redacted(&self) -> bool {
        self.shown != self.whole
    }
}

/// The keys of a service and their values, variables last.
pub(crate) fn of_service(spec: &ServiceSpec) -> Vec<(Key, Value)> {
    let template = |template: &Template| Template::text(line(&template.to_string()));
    let command = |command: &CommandSpec| match command {
        CommandSpec::Shell(line) => CommandSpec::Shell(template(line)),
        CommandSpec::Argv(argv) => {
            let argv: Vec<String> = argv.iter().map(Template::to_string).collect();
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            CommandSpec::Argv(arguments(&argv).into_iter().map(Template::text).collect())
        }
    };
    let probe = |probe: &Probe| match probe {
        Probe::Http(http) => {
            let sent = |(name, value): (&String, &String)| (name.clone(), sent(name, value).into_owned());
            let headers = http.headers.iter().map(sent).collect();
            Probe::Http(HttpProbe { path: line(&http.path).into_owned(), headers, ..http.clone() })
        }
        Probe::Command { command: line } => Probe::Command { command: command(line) },
        Probe::Log { pattern } => Probe::Log { pattern: line(pattern).into_owned() },
        Probe::Listen | Probe::Tcp { .. } | Probe::Notify { .. } => probe.clone(),
    };
    let variable =
        |(name, value): (&String, &Template)| (name.clone(), Template::text(shown(name, &value.to_string())));
    let open = ServiceSpec {
        command: command(&spec.command),
        health: spec.health.iter().map(|check| HealthCheck { probe: probe(&check.probe), ..check.clone() }).collect(),
        stop: StopPolicy { command: spec.stop.command.as_ref().map(command), ..spec.stop.clone() },
        env: spec.env.iter().map(variable).collect(),
        ..spec.clone()
    };
    // Only texts are others, so the keys are the same.
    let pairs = form::of_service(spec).into_iter().zip(form::of_service(&open));
    pairs.map(|((key, whole), (_, shown))| (key, Value { whole, shown })).collect()
}
