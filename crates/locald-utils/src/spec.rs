//! A service as resolved: what the CLI makes of the project file and the daemon acts on.
//!
//! Everything relative has become absolute, every default is filled in. Only port numbers are still open, because the
//! daemon assigns those of `port = "auto"`: texts that mention them are [`Template`]s until a run starts.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest;
use crate::fileset::{FileSet, FilesError};
use crate::health::{HealthCheck, Probe};
use crate::name::{ProfileName, ProjectId, ProjectName, ServiceName};

/// A project instance and all services its file declares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectSpec {
    /// The instance; follows from `dir`.
    pub id: ProjectId,
    /// The name shown to people.
    pub name: ProjectName,
    /// The directory of the project file, canonical.
    pub dir: PathBuf,
    /// The project file, canonical.
    pub file: PathBuf,
    /// Every declared service, in the order of the file.
    pub services: Vec<ServiceSpec>,
}

impl ProjectSpec {
    /// Looks at the inputs of all jobs that have some.
    ///
    /// # Errors
    /// When those of a job cannot be read; which, and why.
    pub fn look_at_inputs(&mut self) -> Result<(), (ServiceName, FilesError)> {
        for service in &mut self.services {
            let Some(inputs) = &mut service.inputs else { continue };
            // What is no pattern is none of this version, and has no files.
            let Ok(files) = FileSet::new(&self.dir, inputs.paths.iter().map(String::as_str)) else { continue };
            inputs.digest = Some(files.digest().map_err(|error| (service.name.clone(), error))?);
        }
        Ok(())
    }
}

/// One service, ready to be run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Its name, unique in the project.
    pub name: ServiceName,
    /// Whether it is meant to stay or to finish.
    pub kind: Kind,
    /// What to run.
    pub command: CommandSpec,
    /// Where to run it; absolute.
    pub workdir: PathBuf,
    /// What the project file adds to the caller's environment: `env_file` first, `env` over it.
    #[serde(default)]
    pub env: BTreeMap<String, Template>,
    /// What stands in the env files for those of `env` whose values are made of the caller's environment too. Another caller makes
    /// other values of it, and nothing is written otherwise.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub borrowed: BTreeMap<String, String>,
    /// Whether it has a terminal. Otherwise stdout and stderr are told apart.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub tty: bool,
    /// The port it listens on.
    #[serde(default)]
    pub port: Option<PortSpec>,
    /// What must hold before it starts.
    #[serde(default)]
    pub depends_on: Vec<Dependency>,
    /// How to tell whether it is ready. Empty for the default: see [`crate::health`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<HealthCheck>,
    /// What to do when it ends by itself.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How to end it.
    #[serde(default)]
    pub stop: StopPolicy,
    /// How much of its output is kept.
    #[serde(default)]
    pub log: LogPolicy,
    /// With any, it is started only when one of them is asked for, it is named, or another that starts needs it; see
    /// [`crate::selection`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profiles: Vec<ProfileName>,
    /// Files whose changes make it run again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<Watch>,
    /// For a job: the files that it makes something of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Inputs>,
}

/// Files whose changes make a service run again, as they are written: see [`crate::fileset`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// The patterns, relative to the directory of the project.
    pub paths: Vec<String>,
    /// How long nothing may have changed before it is run again: while a tool writes many files, or git changes branches, some
    /// are new and some are not.
    #[serde(rename = "debounce_ms", with = "crate::time::millis")]
    pub debounce: Duration,
}

impl Watch {
    /// 100 ms: longer than an editor or a tool pauses between two files, and hardly noticed.
    pub const DEBOUNCE: Duration = Duration::from_millis(100);
}

/// Files of which a job makes something: see [`crate::fileset`]. As long as they are the same, its success counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// The patterns, relative to the directory of the project.
    pub paths: Vec<String>,
    /// A digest of the files as they were when somebody asked for the job; `None` where nobody has yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

impl ServiceSpec {
    /// A service of which only the name is known: a run of it was found, and the file does not have it any more.
    #[must_use]
    pub fn unknown(name: ServiceName) -> Self {
        Self {
            name,
            kind: Kind::Service,
            command: CommandSpec::Argv(Vec::new()),
            workdir: PathBuf::new(),
            env: BTreeMap::new(),
            borrowed: BTreeMap::new(),
            tty: true,
            port: None,
            depends_on: Vec::new(),
            health: Vec::new(),
            restart: RestartPolicy::default(),
            stop: StopPolicy::default(),
            log: LogPolicy::default(),
            profiles: Vec::new(),
            watch: None,
            inputs: None,
        }
    }

    /// The checks by which it is ready: those that are written, or that it listens on its port. Without any it is ready when it has
    /// run for a moment, or its launcher has ended; a job never is.
    #[must_use]
    pub fn checks(&self) -> Vec<HealthCheck> {
        match (self.kind, self.port) {
            (Kind::Job, _) => Vec::new(),
            (Kind::Service | Kind::Forking, Some(_)) if self.health.is_empty() => vec![HealthCheck::of(Probe::Listen)],
            (Kind::Service | Kind::Forking, _) => self.health.clone(),
        }
    }

    /// Those of `ports` that make a difference to a run of it: its own, and those that it mentions.
    #[must_use]
    pub fn concerned(&self, ports: &Ports) -> Ports {
        let checks = self.health.iter().filter_map(|check| match &check.probe {
            Probe::Command { command } => Some(command),
            Probe::Listen | Probe::Http(_) | Probe::Tcp { .. } | Probe::Log { .. } | Probe::Notify { .. } => None,
        });
        let commands = std::iter::once(&self.command).chain(&self.stop.command).chain(checks);
        let templates = commands.flat_map(CommandSpec::templates).chain(self.env.values());
        let own = self.port.map(|_| &self.name);
        let names = templates.flat_map(Template::references).chain(own);
        names.filter_map(|name| Some((name.clone(), *ports.get(name)?))).collect()
    }

    /// Whether only the name is known.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.command == CommandSpec::Argv(Vec::new())
    }

    /// A digest of everything that makes a difference to a running service: if it changes, `up` restarts the service.
    ///
    /// Restart policy, dependencies, profiles and what is watched are left out, for they take effect without a restart, and so is
    /// how much of its output is kept, which takes effect with the next run. So are the inputs of a job, which are not written:
    /// see [`ServiceSpec::work`].
    #[must_use]
    pub fn digest(&self) -> String {
        let Self {
            name,
            kind,
            command,
            workdir,
            env,
            borrowed,
            tty,
            port,
            health,
            stop,
            depends_on: _,
            restart: _,
            log: _,
            profiles: _,
            watch: _,
            inputs: _,
        } = self;
        let written = borrowed.iter().map(|(name, text)| (name.clone(), Template::text(text.clone())));
        let env: BTreeMap<String, Template> = env.clone().into_iter().chain(written).collect();
        let mut text = serde_json::to_vec(&(name, kind, command, workdir, env, port, stop)).unwrap_or_default();
        // A service without checks has the digest that it had before there were any, and so on.
        if !health.is_empty() {
            text.extend(serde_json::to_vec(health).unwrap_or_default());
        }
        if !tty {
            text.extend(b"no tty");
        }
        let mut hex = digest::hex(&text);
        hex.truncate(16);
        hex
    }

    /// What a job with inputs does, and to which: if it has succeeded in that, it need not do it again. `None` for anything else.
    #[must_use]
    pub fn work(&self) -> Option<String> {
        let inputs = self.inputs.as_ref()?.digest.as_ref()?;
        (self.kind == Kind::Job).then(|| format!("{}-{inputs}", self.digest()))
    }
}

/// What a fact is that is not told.
pub(crate) fn yes() -> bool {
    true
}

/// Whether a service is meant to stay or to finish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Runs until it is stopped.
    #[default]
    Service,
    /// Runs to completion; exit code 0 satisfies its dependents.
    Job,
    /// Runs until it is stopped; what is started is a launcher that leaves it behind, and ends with exit code 0.
    Forking,
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CommandSpec {
    /// A line for `sh -c`.
    Shell(Template),
    /// A program and its arguments, without a shell. Never empty.
    Argv(Vec<Template>),
}

impl CommandSpec {
    fn templates(&self) -> &[Template] {
        match self {
            Self::Shell(line) => std::slice::from_ref(line),
            Self::Argv(argv) => argv,
        }
    }

    /// Makes what is to be executed, with every port filled in.
    ///
    /// A shell line is run by `/bin/sh -c`. Where that changes nothing but the process count, `exec` is put before it
    /// (see [`exec_prefix`]), or the shell is left out because there is nothing for it to do.
    ///
    /// # Errors
    /// When a port that the command mentions is not known.
    pub fn invocation(&self, ports: &Ports) -> Result<Invocation, UnknownPort> {
        let line = match self {
            Self::Shell(line) => line.render(ports)?,
            Self::Argv(argv) => {
                let argv = argv.iter().map(|argument| argument.render(ports)).collect::<Result<_, _>>()?;
                return Ok(Invocation { argv, program: None });
            }
        };
        let shell = |line: String| vec!["/bin/sh".to_owned(), "-c".to_owned(), line];
        if !exec_prefix(&line) {
            return Ok(Invocation { argv: shell(line), program: None });
        }
        let words: Vec<String> = line.split_ascii_whitespace().map(str::to_owned).collect();
        if line.chars().all(|c| is_plain(c) || c == ' ') {
            return Ok(Invocation { argv: words, program: None });
        }
        Ok(Invocation { program: words.into_iter().next(), argv: shell(format!("exec {line}")) })
    }
}

impl fmt::Display for CommandSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shell(line) => write!(f, "{line}"),
            Self::Argv(argv) => {
                for (index, argument) in argv.iter().enumerate() {
                    write!(f, "{}{argument}", if index == 0 { "" } else { " " })?;
                }
                Ok(())
            }
        }
    }
}

/// What is to be executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invocation {
    /// The argument vector. Never empty.
    pub argv: Vec<String>,
    /// The program that a shell is going to become, where that is known: if it does not exist, the shell is not needed to
    /// find that out.
    #[serde(default)]
    pub program: Option<String>,
}

/// Whether a character means itself to a shell, wherever it stands (POSIX XCU 2.2, 2.6).
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | ',' | ':' | '@' | '%')
}

/// Tells whether `exec` may stand before a shell line, so that the shell does not stay as a needless parent.
///
/// True only for one simple command that names a program: no operator, redirection is fine, no assignment in front, no
/// shell built-in or keyword. What is uncertain stays with the shell, which is slower and never wrong.
#[must_use]
pub fn exec_prefix(line: &str) -> bool {
    /// Words that mean something else after `exec`: POSIX XCU 2.4 (reserved words), 2.14 (special built-ins), and regular
    /// built-ins, which may behave differently from the program of the same name (`echo` does).
    const NOT_PROGRAMS: &[&str] = &[
        "!", "{", "}", "(", ")", "case", "do", "done", "elif", "else", "esac", "fi", "for", "if", "in", "then",
        "until", "while", "function", "select", "time", "[[", "]]", ".", ":", "break", "continue", "eval", "exec",
        "exit", "export", "readonly", "return", "set", "shift", "times", "trap", "unset", "alias", "bg", "cd",
        "command", "fc", "fg", "getopts", "hash", "jobs", "local", "read", "source", "type", "ulimit", "umask",
        "unalias", "wait", "builtin", "shopt", "let", "declare", "typeset", "pushd", "popd", "echo", "printf", "test",
        "[", "true", "false", "kill", "pwd",
    ];
    let mut quote = None;
    let mut escaped = false;
    for (index, c) in line.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => quote = None,
            (Some('\''), _) => {}
            (_, '\\') => escaped = true,
            // A substitution may hold anything; the shell sorts it out before it runs the program.
            (_, '`') => return false,
            (_, '$') if line[index + 1..].starts_with('(') => return false,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, ';' | '&' | '|' | '(' | ')' | '\n' | '#') => return false,
            (None, _) => {}
        }
    }
    if quote.is_some() || escaped {
        return false;
    }
    let Some(first) = line.split_whitespace().next() else { return false };
    let is_assignment =
        first.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
    let is_program = first.chars().all(is_plain);
    is_program && !is_assignment && !NOT_PROGRAMS.contains(&first)
}

/// The port a service listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortSpec {
    /// The number in the project file.
    Fixed(u16),
    /// Assigned by the daemon, once per directory and service, and kept.
    Auto,
}

impl PortSpec {
    /// The number that is written, if one is.
    #[must_use]
    pub fn number(self) -> Option<u16> {
        match self {
            Self::Fixed(port) => Some(port),
            Self::Auto => None,
        }
    }
}

/// Port numbers by service, as they stand when a run starts.
pub type Ports = BTreeMap<ServiceName, u16>;

/// A port that a text mentions and nobody has assigned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("service `{0}` has no port")]
pub struct UnknownPort(pub ServiceName);

/// A text in which `${services.NAME.port}` stands for a number that is known when a run starts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Template(pub Vec<Part>);

/// A piece of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Part {
    /// Text, used as it is.
    Text(String),
    /// The port of a service.
    Port {
        /// That service.
        port_of: ServiceName,
    },
}

impl Template {
    /// A template without any reference.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self(vec![Part::Text(text.into())])
    }

    /// The services whose ports the text mentions.
    pub fn references(&self) -> impl Iterator<Item = &ServiceName> {
        self.0.iter().filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Port { port_of } => Some(port_of),
        })
    }

    /// Fills in the ports.
    ///
    /// # Errors
    /// When a port that the text mentions is not in `ports`.
    pub fn render(&self, ports: &Ports) -> Result<String, UnknownPort> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(piece) => text.push_str(piece),
                Part::Port { port_of } => {
                    let port = ports.get(port_of).ok_or_else(|| UnknownPort(port_of.clone()))?;
                    text.push_str(&port.to_string());
                }
            }
        }
        Ok(text)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Text(text) => f.write_str(text),
            Part::Port { port_of } => write!(f, "${{services.{port_of}.port}}"),
        })
    }
}

/// Something that must hold before a service starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The service it waits for.
    pub service: ServiceName,
    /// What that service must have reached.
    pub condition: Condition,
    /// Whether a new run of that service asks for a new run of this one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restart: bool,
}

/// How far a dependency must have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// It is ready: the default for a service.
    Ready,
    /// It has ended with exit code 0: the default for a job.
    Completed,
    /// Its first instruction has run, and it has not ended since; a job may have completed.
    Started,
}

/// How much of a service's output is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPolicy {
    /// 128 MB: what all of it may take on disk, indexes included. What is oldest is removed.
    pub max_size: u64,
    /// 30 days: what is older is removed, with the next output or the next run.
    #[serde(rename = "max_age_ms", with = "crate::time::millis")]
    pub max_age: Duration,
}

impl Default for LogPolicy {
    fn default() -> Self {
        Self { max_size: 128_000_000, max_age: Duration::from_secs(30 * 24 * 3600) }
    }
}

/// When to run a service again after it ended by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartWhen {
    /// Never.
    #[default]
    No,
    /// After anything but exit code 0.
    OnFailure,
    /// Whatever the exit status was.
    Always,
}

/// What to do when a service ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// When to run it again.
    pub when: RestartWhen,
    /// The first wait; it doubles with every further failure.
    #[serde(rename = "backoff_ms", with = "crate::time::millis")]
    pub backoff: Duration,
    /// The longest wait.
    #[serde(rename = "max_backoff_ms", with = "crate::time::millis")]
    pub max_backoff: Duration,
    /// So many starts within [`RestartPolicy::CRASH_LOOP_WINDOW`] are a crash loop: no further attempt is made.
    pub limit: u32,
    /// A run that was ready this long clears the count of failures.
    #[serde(rename = "reset_after_ms", with = "crate::time::millis")]
    pub reset_after: Duration,
}

impl RestartPolicy {
    /// 60 s: the time in which `limit` starts are a crash loop.
    pub const CRASH_LOOP_WINDOW: Duration = Duration::from_secs(60);
    /// 1 s: a run that was ready this long is replaced at once when it fails, for it was not a failed start.
    pub const STABLE: Duration = Duration::from_secs(1);
}

impl Default for RestartPolicy {
    /// No restart; where there is one, 250 ms to 30 s between attempts, at most 10 in a minute, forgotten after 60 s.
    fn default() -> Self {
        Self {
            when: RestartWhen::No,
            backoff: Duration::from_millis(250),
            max_backoff: Duration::from_secs(30),
            limit: 10,
            reset_after: Duration::from_secs(60),
        }
    }
}

/// How to end a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopPolicy {
    /// The signal that asks it to end.
    pub signal: StopSignal,
    /// How long it may take before it is killed. Zero kills at once.
    #[serde(rename = "grace_ms", with = "crate::time::millis")]
    pub grace: Duration,
    /// Run before the signal.
    #[serde(default)]
    pub command: Option<CommandSpec>,
}

impl Default for StopPolicy {
    /// SIGTERM, and 5 s: long enough for a development database to write its pages, short enough to wait for.
    fn default() -> Self {
        Self { signal: StopSignal::default(), grace: Duration::from_secs(5), command: None }
    }
}

/// A signal that can ask a service to end, by name: numbers differ between systems.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct StopSignal(pub nix::sys::signal::Signal);

impl StopSignal {
    /// Takes a signal's name with or without `SIG`, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let full = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
        full.parse().ok().map(Self)
    }
}

impl Default for StopSignal {
    fn default() -> Self {
        Self(nix::sys::signal::Signal::SIGTERM)
    }
}

impl fmt::Display for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl fmt::Debug for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl Serialize for StopSignal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

impl<'de> Deserialize<'de> for StopSignal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::from_name(&name).ok_or_else(|| serde::de::Error::custom(format!("unknown signal `{name}`")))
    }
}

/// The caller's environment: what the services of one `up` start from.
pub type Environment = BTreeMap<String, OsText>;

/// Text of the operating system: usually UTF-8, but nothing is lost when it is not.
///
/// In JSON a string, or an array of bytes where the text is not UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct OsText(pub OsString);

impl OsText {
    /// The text for the operating system.
    #[must_use]
    pub fn as_os_str(&self) -> &OsStr {
        &self.0
    }
}

impl From<&str> for OsText {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for OsText {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for OsText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for OsText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_seq(self.0.as_bytes()),
        }
    }
}

impl<'de> Deserialize<'de> for OsText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Bytes(Vec<u8>),
        }
        Ok(Self(match Form::deserialize(deserializer)? {
            Form::Text(text) => text.into(),
            Form::Bytes(bytes) => OsString::from_vec(bytes),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_goes_before_one_plain_program_only() {
        for line in [
            "node server.js",
            "./bin/web --port $PORT",
            "npm run dev > out.txt",
            "python3 -c 'a; b'",
            "redis-server \"x;y\"",
        ] {
            assert!(exec_prefix(line), "{line}");
        }
        for line in [
            "",
            "a; b",
            "a && b",
            "a | b",
            "a & b",
            "X=1 node",
            "cd web && npm start",
            "exec node",
            "(a)",
            "trap '' TERM",
            "if true; then a; fi",
            "$PROGRAM x",
            "echo $(date)",
            "echo `date`",
            "a \"$(b)\"",
            "x 'unclosed",
            "while :; do a; done",
            "a # note",
        ] {
            assert!(!exec_prefix(line), "{line}");
        }
    }

    #[test]
    fn a_shell_stands_between_only_where_it_has_something_to_do() {
        let invocation =
            |line: &str| CommandSpec::Shell(Template::text(line)).invocation(&Ports::new()).expect("no ports");
        assert_eq!(invocation("npm run dev").argv, ["npm", "run", "dev"]);
        let with_shell = invocation("web --port $PORT");
        assert_eq!(with_shell.argv, ["/bin/sh", "-c", "exec web --port $PORT"]);
        assert_eq!(with_shell.program.as_deref(), Some("web"));
        for line in [
            "cd web && npm start",
            "echo a",
            "a=b web",
            "web *.txt",
            "web ~/x",
            "web 'a b'",
            "web {a,b}",
            "web a=b",
            "web #x",
        ] {
            assert_eq!(invocation(line).argv[0], "/bin/sh", "{line}");
        }
        assert_eq!(invocation("cd web && npm start").argv[2], "cd web && npm start");
    }

    #[test]
    fn a_template_renders_ports_and_names_a_missing_one() {
        let db: ServiceName = "db".parse().expect("valid");
        let template = Template(vec![Part::Text("localhost:".into()), Part::Port { port_of: db.clone() }]);
        assert_eq!(template.to_string(), "localhost:${services.db.port}");
        assert_eq!(template.render(&Ports::from([(db.clone(), 5432)])), Ok("localhost:5432".into()));
        assert_eq!(template.render(&Ports::new()), Err(UnknownPort(db)));
        let json = serde_json::to_string(&template).expect("serialises");
        assert_eq!(json, r#"["localhost:",{"port_of":"db"}]"#);
        assert_eq!(serde_json::from_str::<Template>(&json).expect("parses"), template);
    }

    #[test]
    fn text_that_is_not_utf8_survives_json() {
        for bytes in [b"plain = value".to_vec(), vec![0xff, 0x00, b'x']] {
            let text = OsText(OsString::from_vec(bytes));
            let json = serde_json::to_string(&text).expect("serialises");
            assert_eq!(serde_json::from_str::<OsText>(&json).expect("parses"), text);
        }
    }

    #[test]
    fn signals_are_known_by_name() {
        for name in ["SIGINT", "int", "Int"] {
            assert_eq!(StopSignal::from_name(name), Some(StopSignal(nix::sys::signal::Signal::SIGINT)));
        }
        assert_eq!(StopSignal::from_name("SIGNOPE"), None);
    }
}
