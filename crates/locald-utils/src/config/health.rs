//! Health checks, from the table as written to the check as resolved.
//!
//! Which keys go together depends on the type: a key that says nothing about it is a mistake, because whoever wrote it expects
//! something of it.

use std::collections::BTreeMap;
use std::ops::Range;

use super::diagnostic::Mistake;
use super::resolve::{Resolver, value};
use super::value::{ProbeType, Text};
use super::written::{HealthChecks, HealthTable, Key, Named, Service};
use crate::health::{HealthCheck, HttpProbe, Probe};
use crate::spec::Kind;

impl Resolver<'_> {
    /// The checks of a service, looking at all of them even if one is wrong.
    pub(super) fn health(&mut self, service: &Service) -> Vec<HealthCheck> {
        let Some(Key { span, value: Some(checks) }) = &service.health_check else { return Vec::new() };
        if value(&service.r#type).is_some_and(|kind| kind.0 == Kind::Job) {
            let mistake = Mistake::at(span.clone(), "a job has no health to check: it is done when it has ended");
            self.mistakes.push(mistake.help("take out `health_check`, or `type = \"job\"`"));
        }
        match checks {
            HealthChecks::Command(command) => {
                let command = self.command_spec(command);
                vec![HealthCheck::of(Probe::Command { command })]
            }
            HealthChecks::Tables(tables) => {
                let has_port = service.port.is_some();
                self.check_notify_once(tables);
                tables.iter().filter_map(|(table, span)| self.health_check(table, span, has_port)).collect()
            }
        }
    }

    fn health_check(&mut self, table: &HealthTable, span: &Range<usize>, has_port: bool) -> Option<HealthCheck> {
        if table.r#type.is_none() && !table.guessed.contains(&"type") {
            let help = "add `type = \"http\"`, \"tcp\", \"command\", \"log\" or \"notify\"";
            self.mistakes.push(Mistake::at(span.clone(), "`health_check` does not say its type").help(help).absence());
        }
        let kind = *value(&table.r#type)?;
        self.check_keys(table, kind);
        let probe = match kind {
            ProbeType::Http => {
                self.check_port(table, span, has_port);
                Probe::Http(self.http(table))
            }
            ProbeType::Tcp => {
                self.check_port(table, span, has_port);
                Probe::Tcp { port: value(&table.port).map(|port| port.0) }
            }
            ProbeType::Command => {
                self.demand(&table.command, table, span, "command", "`command = \"./bin/healthy\"`");
                let command = self.command_spec(value(&table.command)?);
                Probe::Command { command }
            }
            ProbeType::Log => {
                self.demand(&table.pattern, table, span, "pattern", "`pattern = \"listening on\"`");
                Probe::Log { pattern: value(&table.pattern)?.0.clone() }
            }
            ProbeType::Notify => Probe::Notify { fd: value(&table.fd).map(|fd| fd.0) },
        };
        let default = HealthCheck::of(probe);
        let times = [
            (&table.interval, "interval", "without it, it is asked once in 10s"),
            (&table.timeout, "timeout", "without it, a probe may take 5s"),
            (&table.start_period, "start_period", "without it, it may take as long as it takes"),
        ];
        for (key, name, help) in times {
            if let Some(Key { span, value: Some(time) }) = key
                && time.0.is_zero()
            {
                self.mistakes.push(Mistake::at(span.clone(), format!("`{name}` is no time at all")).help(help));
            }
        }
        Some(HealthCheck {
            interval: value(&table.interval).map_or(default.interval, |time| time.0),
            timeout: value(&table.timeout).map_or(default.timeout, |time| time.0),
            start_period: value(&table.start_period).map(|time| time.0),
            retries: value(&table.retries).map_or(default.retries, |count| count.0),
            probe: default.probe,
        })
    }

    fn http(&mut self, table: &HealthTable) -> HttpProbe {
        let path = value(&table.path);
        if let Some(Text { span, .. }) = path.filter(|path| !is_path(&path.text)) {
            let mistake = Mistake::at(
                span.clone(),
                "`path` must begin with `/` and be of printable ASCII without spaces (`%20`)",
            );
            self.mistakes.push(mistake.help("write \"/healthz\"; `port` and `tls` say the rest of the address"));
        }
        let mut headers = BTreeMap::new();
        if let Some(Named(entries)) = value(&table.headers) {
            for entry in entries {
                if !is_token(&entry.name) {
                    let message = format!("`{}` is no name of a header", entry.name.escape_debug());
                    self.mistakes.push(Mistake::at(entry.name_span.clone(), message).help("write \"X-Probe\" = \"1\""));
                }
                let Some(value) = &entry.value else { continue };
                if value.0.text.contains(['\r', '\n']) {
                    let mistake = Mistake::at(value.0.span.clone(), "a header has one line");
                    self.mistakes.push(mistake.help("take out the line break"));
                }
                headers.insert(entry.name.clone(), value.0.text.clone());
            }
        }
        let tls = value(&table.tls).is_some_and(|flag| flag.0);
        let insecure = value(&table.insecure).is_some_and(|flag| flag.0);
        if let Some(Key { span, .. }) = table.insecure.as_ref().filter(|_| insecure && !tls) {
            let mistake = Mistake::at(span.clone(), "`insecure` is about certificates, and there are none without TLS");
            self.mistakes.push(mistake.help("add `tls = true`, or take it out"));
        }
        let port = value(&table.port).map(|port| port.0);
        let status = value(&table.status).map(|statuses| statuses.0.clone()).unwrap_or_default();
        let path = path.map_or_else(|| "/".to_owned(), |path| path.text.clone());
        HttpProbe { path, port, status, headers, tls, insecure }
    }

    /// Notes keys that say nothing about a check of this type.
    fn check_keys(&mut self, table: &HealthTable, kind: ProbeType) {
        use ProbeType::{Command, Http, Log, Notify, Tcp};
        let keys = [
            ("path", span_of(&table.path), &[Http][..]),
            ("port", span_of(&table.port), &[Http, Tcp]),
            ("status", span_of(&table.status), &[Http]),
            ("headers", span_of(&table.headers), &[Http]),
            ("tls", span_of(&table.tls), &[Http]),
            ("insecure", span_of(&table.insecure), &[Http]),
            ("command", span_of(&table.command), &[Command]),
            ("pattern", span_of(&table.pattern), &[Log]),
            ("fd", span_of(&table.fd), &[Notify]),
        ];
        for (name, span, kinds) in keys {
            let Some(span) = span.filter(|_| !kinds.contains(&kind)) else { continue };
            let message = format!("`{name}` says nothing about a check of type \"{}\"", kind.word());
            let kinds: Vec<String> = kinds.iter().map(|kind| format!("\"{}\"", kind.word())).collect();
            self.mistakes.push(Mistake::at(span, message).help(format!("it is for {}", kinds.join(" and "))));
        }
    }

    /// Notes that a check needs a key that is not there.
    fn demand<T>(
        &mut self,
        key: &Option<Key<T>>,
        table: &HealthTable,
        span: &Range<usize>,
        name: &'static str,
        example: &str,
    ) {
        if key.is_none() && !table.guessed.contains(&name) {
            let message = format!("a check of this type needs a `{name}`");
            self.mistakes.push(Mistake::at(span.clone(), message).help(format!("add {example}")).absence());
        }
    }

    fn check_port(&mut self, table: &HealthTable, span: &Range<usize>, has_port: bool) {
        if table.port.is_none() && !has_port {
            let mistake = Mistake::at(span.clone(), "the service has no port to ask");
            self.mistakes.push(mistake.help("give the service a `port`, or the check").absence());
        }
    }

    /// Notes a second check of type "notify": what a service says, it says once.
    fn check_notify_once(&mut self, tables: &[(HealthTable, Range<usize>)]) {
        let is_notify = |table: &HealthTable| value(&table.r#type) == Some(&ProbeType::Notify);
        let mut all = tables.iter().filter(|(table, _)| is_notify(table));
        if let (Some((_, first)), Some((_, second))) = (all.next(), all.next()) {
            let mistake = Mistake::at(second.clone(), "a service has one check of type \"notify\"");
            self.mistakes.push(mistake.also(first.clone(), "first here").help("take one of them out"));
        }
    }
}

fn span_of<T>(key: &Option<Key<T>>) -> Option<Range<usize>> {
    key.as_ref().map(|key| key.span.clone())
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.chars().all(|c| c.is_ascii_graphic())
}

/// Whether a text can be the name of a header: a token (RFC 9110 §5.6.2).
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))
}
