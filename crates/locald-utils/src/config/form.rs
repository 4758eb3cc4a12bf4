//! From a spec back to the keys of the project file, with every default filled in: for showing what is meant, and what is different.
//!
//! What this writes is read as the same spec again. The one exception is a text `${services.NAME.port}` in single quotes of an env
//! file, which means itself there and has no way to be written here.

use std::fmt;
use std::time::Duration;

use crate::health::{HealthCheck, HttpProbe, Probe};
use crate::spec::{CommandSpec, Condition, Dependency, LogPolicy, PortSpec, RestartPolicy, ServiceSpec, StopPolicy};

/// A key of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// One that stands below `[services.NAME]`, with a dot for one that stands in a table below that.
    Plain(&'static str),
    /// A variable of `env`, or of a file that `env_file` names.
    Variable(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(name) => f.write_str(name),
            Self::Variable(name) => write!(f, "env.{}", self::name(name)),
        }
    }
}

/// The keys of a service and their values in TOML, variables last.
#[must_use]
pub fn of_service(spec: &ServiceSpec) -> Vec<(Key, String)> {
    // Without `..`, so that a new key of the file has a line here.
    let ServiceSpec {
        name: _,
        kind,
        command,
        workdir,
        env,
        borrowed: _,
        tty,
        port,
        depends_on,
        health,
        restart: RestartPolicy { when, backoff, max_backoff, limit, reset_after },
        stop: StopPolicy { signal, grace, command: stop_command },
        log: LogPolicy { max_size, max_age },
        profiles,
        watch,
        inputs,
    } = spec;
    let plain = [
        ("type", Some(word(kind))),
        ("command", Some(self::command(command))),
        ("workdir", Some(string(&workdir.to_string_lossy()))),
        ("tty", Some(tty.to_string())),
        ("port", port.map(self::port)),
        ("depends_on", (!depends_on.is_empty()).then(|| table(depends_on.iter().map(dependency)))),
        ("health_check", health_check(health)),
        ("restart.policy", Some(word(when))),
        ("restart.backoff", Some(duration(*backoff))),
        ("restart.max_backoff", Some(duration(*max_backoff))),
        ("restart.limit", Some(limit.to_string())),
        ("restart.reset_after", Some(duration(*reset_after))),
        ("stop_signal", Some(string(&signal.to_string()))),
        ("stop_grace", Some(duration(*grace))),
        ("stop_command", stop_command.as_ref().map(self::command)),
        ("log.max_size", Some(size(*max_size))),
        ("log.max_age", Some(duration(*max_age))),
        ("profiles", (!profiles.is_empty()).then(|| array(profiles.iter().map(|profile| string(profile.as_str()))))),
        ("watch.paths", watch.as_ref().map(|watch| array(watch.paths.iter().map(|path| string(path))))),
        ("watch.debounce", watch.as_ref().map(|watch| duration(watch.debounce))),
        ("inputs", inputs.as_ref().map(|inputs| array(inputs.paths.iter().map(|path| string(path))))),
    ];
    let plain = plain.into_iter().filter_map(|(key, value)| Some((Key::Plain(key), value?)));
    let variables = env.iter().map(|(name, value)| (Key::Variable(name.clone()), string(&value.to_string())));
    plain.chain(variables).collect()
}

/// A name as a key of a TOML table.
#[must_use]
pub fn name(name: &str) -> String {
    let is_bare = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if is_bare { name.to_owned() } else { string(name) }
}

/// A text as a TOML string: literal where that is easier to read and can be.
#[must_use]
pub fn string(text: &str) -> String {
    let is_plain = |c: char| !c.is_control() && c != '\'';
    if text.contains(['"', '\\']) && text.chars().all(is_plain) {
        return format!("'{text}'");
    }
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn array(values: impl Iterator<Item = String>) -> String {
    format!("[{}]", values.collect::<Vec<_>>().join(", "))
}

fn table(entries: impl Iterator<Item = (String, String)>) -> String {
    let entries: Vec<String> = entries.map(|(key, value)| format!("{} = {value}", name(&key))).collect();
    format!("{{ {} }}", entries.join(", "))
}

/// A value that serialises as one word, which is what the file calls it too.
fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => string(&word),
        // All of these are words.
        Ok(other) => other.to_string(),
        Err(_) => string(""),
    }
}

fn command(command: &CommandSpec) -> String {
    match command {
        CommandSpec::Shell(line) => string(&line.to_string()),
        CommandSpec::Argv(argv) => array(argv.iter().map(|argument| string(&argument.to_string()))),
    }
}

fn port(port: PortSpec) -> String {
    match port {
        PortSpec::Fixed(number) => number.to_string(),
        PortSpec::Auto => string("auto"),
    }
}

fn dependency(dependency: &Dependency) -> (String, String) {
    let Dependency { service, condition, restart } = dependency;
    let condition = match condition {
        Condition::Ready => string("ready"),
        Condition::Completed => string("completed"),
        Condition::Started => string("started"),
    };
    let value = match restart {
        false => condition,
        true => {
            let entries = [("condition", condition), ("restart", "true".to_owned())];
            table(entries.map(|(key, value)| (key.to_owned(), value)).into_iter())
        }
    };
    (service.to_string(), value)
}

fn health_check(checks: &[HealthCheck]) -> Option<String> {
    let mut tables: Vec<String> = checks.iter().filter_map(one_check).collect();
    match tables.len() {
        0 => None,
        1 => tables.pop(),
        _ => Some(array(tables.into_iter())),
    }
}

fn one_check(check: &HealthCheck) -> Option<String> {
    let HealthCheck { probe, interval, timeout, start_period, retries } = check;
    let port = |port: &Option<u16>| ("port", port.map(|port| port.to_string()));
    let flag = |key, is_on: bool| (key, is_on.then(|| "true".to_owned()));
    let mut entries = match probe {
        // What a service without a check has, which nobody writes.
        Probe::Listen => return None,
        Probe::Http(HttpProbe { path, port: asked, status, headers, tls, insecure }) => {
            let headers = headers.iter().map(|(name, value)| (name.clone(), string(value)));
            vec![
                ("type", Some(string("http"))),
                ("path", Some(string(path))),
                port(asked),
                ("status", (!status.is_empty()).then(|| array(status.iter().map(u16::to_string)))),
                ("headers", (headers.len() > 0).then(|| table(headers))),
                flag("tls", *tls),
                flag("insecure", *insecure),
            ]
        }
        Probe::Tcp { port: asked } => vec![("type", Some(string("tcp"))), port(asked)],
        Probe::Command { command } => {
            vec![("type", Some(string("command"))), ("command", Some(self::command(command)))]
        }
        Probe::Log { pattern } => vec![("type", Some(string("log"))), ("pattern", Some(string(pattern)))],
        Probe::Notify { fd } => vec![("type", Some(string("notify"))), ("fd", fd.map(|fd| fd.to_string()))],
    };
    entries.extend([
        ("interval", Some(duration(*interval))),
        ("timeout", Some(duration(*timeout))),
        ("start_period", start_period.map(duration)),
        ("retries", Some(retries.to_string())),
    ]);
    Some(table(entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)))))
}

/// A duration with the units of the file, nothing lost.
fn duration(duration: Duration) -> String {
    const UNITS_MS: [(&str, u128); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let mut rest = duration.as_millis();
    let mut text = String::new();
    for (unit, ms) in UNITS_MS {
        let number = rest / ms;
        rest %= ms;
        if number > 0 {
            text.push_str(&format!("{number}{unit}"));
        }
    }
    string(if text.is_empty() { "0s" } else { &text })
}

/// A size in the largest unit that loses nothing.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 6] =
        [("GB", 1_000_000_000), ("GiB", 1 << 30), ("MB", 1_000_000), ("MiB", 1 << 20), ("kB", 1000), ("KiB", 1 << 10)];
    let unit = UNITS.iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
    string(&unit.map_or_else(|| format!("{bytes}B"), |(name, unit)| format!("{}{name}", bytes / unit)))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::config::load;

    #[test]
    fn what_is_written_is_read_as_the_same_spec() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("locald.toml");
        let seed = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/config/all");
        let seed = std::fs::read_to_string(seed).expect("readable");
        for text in [
            seed.as_str(),
            "[services.a]\ncommand = \"x\"\nport = \"auto\"\nstop_grace = \"0s\"\nstop_command = ['q', '\"', \"it's\"]\n\
             [services.a.env]\n\"odd name\" = \"tab\\t\\u0007 'q' \\\"\"\nP = 'C:\\dir'\nN = 1\n\
             [services.\"b.c\"]\ntype = \"job\"\ninputs = [\"src/**\", \"!src/x\"]\ncommand = ['a b', '${services.a.port}']\nlog = { max_size = \"3MiB\", max_age = \"1h1m\" }\n\
             [services.d]\ncommand = 'x'\ntty = false\nprofiles = [\"p\", \"q\"]\nwatch = { paths = [\"a/*.ts\"], debounce = \"1s\" }\ndepends_on = { a = { restart = true }, \"b.c\" = \"started\" }\n\
             restart = { policy = \"always\", backoff = \"1ms\", limit = 3 }\nport = 1\n\
             health_check = [{ type = \"http\", status = [200, 404], headers = { X-A = \"b\" }, tls = true, insecure = true },\n\
             { type = \"tcp\", port = 2, retries = 9 }, { type = \"log\", pattern = '\\d\"', start_period = \"1m1ms\" },\n\
             { type = \"notify\", fd = 3 }, { type = \"command\", command = [\"a\"], interval = \"1s\", timeout = \"2s\" }]\n",
        ] {
            std::fs::write(&file, text).expect("written");
            let first = load(&file).unwrap_or_else(|errors| panic!("{}", errors.render(false)));
            let mut again = format!("[project]\nname = {}\n", string(first.name.as_str()));
            for service in &first.services {
                let _ = writeln!(again, "[services.{}]", name(service.name.as_str()));
                for (key, value) in of_service(service) {
                    let _ = writeln!(again, "{key} = {value}");
                }
            }
            std::fs::write(&file, &again).expect("written");
            let second = load(&file).unwrap_or_else(|errors| panic!("{}\n{again}", errors.render(false)));
            assert_eq!(second, first, "{again}");
        }
    }
}
