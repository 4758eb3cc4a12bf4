//! From the file as written to the project as resolved.
//!
//! Fills in defaults, makes paths absolute, reads env files, and checks what concerns more than one key: names, ports,
//! dependencies and references. Looks at the file system, changes nothing, and knows no daemon: which number an
//! `"auto"` port becomes is not decided here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::diagnostic::Mistake;
use super::origin::{At, Found};
use super::value::{Command, Needed, OneOrMany, Text};
use super::written::{File, Key, Named, NamedEntry, Restart, RestartTable, Service, Watched};
use super::{decode, dotenv, form, read_bytes, reason, template};
use crate::exports;
use crate::name::{ProfileName, ProjectId, ProjectName, ServiceName, nearest};
use crate::spec::{
    CommandSpec, Condition, Dependency, Kind, LogPolicy, PortSpec, ProjectSpec, RestartPolicy, RestartWhen,
    ServiceSpec, StopPolicy, Template,
};

/// What a project file is resolved against.
pub(super) struct Surroundings<'a> {
    /// The project file, canonical.
    pub(super) file: &'a Path,
    /// Its directory, canonical.
    pub(super) dir: &'a Path,
    /// Answers references in env files that the files do not answer themselves.
    pub(super) lookup: &'a dyn Fn(&str) -> Option<String>,
}

/// The services that a file declares, right or wrong.
pub(super) struct Declared<'a>(BTreeMap<&'a str, &'a NamedEntry<Service>>);

impl<'a> Declared<'a> {
    /// Their names, sorted.
    pub(super) fn names(&self) -> impl Iterator<Item = &'a str> {
        self.0.keys().copied()
    }

    /// Their names for a message.
    pub(super) fn list(&self) -> String {
        self.names().map(|name| format!("`{}`", name.escape_debug())).collect::<Vec<_>>().join(", ")
    }

    /// Tells whether a service has a port, if there is such a service. A service that could not be read may have one.
    pub(super) fn has_port(&self, name: &str) -> Option<bool> {
        let entry = self.0.get(name)?;
        Some(entry.value.as_ref().is_none_or(|service| service.port.is_some()))
    }

    /// The number of a service's port, if the file has it.
    pub(super) fn fixed_port(&self, name: &str) -> Option<u16> {
        match value(&self.0.get(name)?.value.as_ref()?.port)?.0 {
            PortSpec::Fixed(port) => Some(port),
            PortSpec::Auto => None,
        }
    }

    fn kind(&self, name: &str) -> Option<Kind> {
        let service = self.0.get(name)?.value.as_ref()?;
        Some(value(&service.r#type).map_or_else(Kind::default, |kind| kind.0))
    }
}

/// Makes the spec of a project; without a value if something that it needs is missing, which is then noted.
pub(super) fn resolve(
    file: &File,
    source: &str,
    around: &Surroundings<'_>,
    found: &mut Vec<Found>,
    mistakes: &mut Vec<Mistake>,
) -> Option<ProjectSpec> {
    let name = project_name(file, around.dir, mistakes);
    let entries = services(file, mistakes);
    let declared = Declared(entries.iter().map(|entry| (entry.name.as_str(), entry)).collect());
    let mut resolver = Resolver { source, around, declared: &declared, found, mistakes };
    let specs: Vec<Option<ServiceSpec>> = entries.iter().map(|entry| resolver.service(entry)).collect();
    check_case(entries, mistakes);
    check_ports(entries, mistakes);
    check_exports(entries, mistakes);
    check_cycles(entries, mistakes);
    Some(ProjectSpec {
        id: ProjectId::of_directory(around.dir),
        name: name?,
        dir: around.dir.to_owned(),
        file: around.file.to_owned(),
        services: specs.into_iter().collect::<Option<_>>()?,
    })
}

fn project_name(file: &File, dir: &Path, mistakes: &mut Vec<Mistake>) -> Option<ProjectName> {
    let Some(name) = value(&file.project).and_then(|project| project.name.as_ref()) else {
        return Some(ProjectName::from_directory(dir));
    };
    let text = name.value.as_ref()?;
    let parsed = text.text.parse::<ProjectName>();
    parsed.map_err(|error| mistakes.push(invalid_name(text.span.clone(), "project", &text.text, &error))).ok()
}

/// Says what is wrong with a name, and proposes the nearest valid one.
fn invalid_name(span: Range<usize>, what: &str, name: &str, error: &crate::name::NameError) -> Mistake {
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.') { c } else { '-' })
        .take(63)
        .collect();
    let plain = plain.trim_start_matches(['-', '_', '.']).trim_end_matches('-');
    let help = match plain {
        "" => "names are made of letters, digits, `-`, `_` and `.`, such as `web-1`".to_owned(),
        plain => format!("`{plain}` would do"),
    };
    Mistake::at(span, format!("invalid {what} name: {error}")).help(help)
}

fn services<'a>(file: &'a File, mistakes: &mut Vec<Mistake>) -> &'a [NamedEntry<Service>] {
    let span = match &file.services {
        Some(Key { value: Some(Named(entries)), .. }) if !entries.is_empty() => return entries,
        Some(Key { value: Some(_), span }) => span.clone(),
        Some(Key { value: None, .. }) => return &[],
        None if file.guessed.contains(&"services") => return &[],
        None => 0..0,
    };
    let help = "declare one: `[services.web]`, and below it `command = \"npm run dev\"`";
    mistakes.push(Mistake::at(span, "the project has no services").help(help).absence());
    &[]
}

fn log(service: &Service) -> LogPolicy {
    let default = LogPolicy::default();
    value(&service.log).map_or(default, |log| LogPolicy {
        max_size: value(&log.max_size).map_or(default.max_size, |size| size.0),
        max_age: value(&log.max_age).map_or(default.max_age, |time| time.0),
    })
}

/// The env files that a project file in `dir` names.
pub(super) fn env_files(file: &File, dir: &Path) -> Vec<PathBuf> {
    let services = value(&file.services).map_or(&[] as &[NamedEntry<Service>], |services| &services.0);
    let services = services.iter().filter_map(|entry| entry.value.as_ref());
    let files = services.filter_map(|service| value(&service.env_file)).flat_map(|files| &files.0);
    let paths: BTreeSet<PathBuf> = files.map(|file| absolute(dir, &file.text)).collect();
    paths.into_iter().collect()
}

/// The value of a key that is there and could be read.
pub(super) fn value<T>(key: &Option<Key<T>>) -> Option<&T> {
    key.as_ref().and_then(|key| key.value.as_ref())
}

/// Resolves one service after another.
pub(super) struct Resolver<'a> {
    source: &'a str,
    pub(super) around: &'a Surroundings<'a>,
    declared: &'a Declared<'a>,
    /// Where values are written.
    found: &'a mut Vec<Found>,
    pub(super) mistakes: &'a mut Vec<Mistake>,
}

/// The variables of some env files, in order, read as for the caller, and so as to see what of the caller's they take.
#[derive(Default)]
struct FromFiles {
    values: BTreeMap<String, String>,
    /// With the name of each of the caller's variables in the place of its value.
    with_names: BTreeMap<String, String>,
    /// As for a caller who has none.
    with_nothing: BTreeMap<String, String>,
}

impl FromFiles {
    /// What stands in the files for those values that are made of the caller's.
    fn borrowed(&self) -> BTreeMap<String, String> {
        let both = self.with_names.iter().filter_map(|(name, with)| Some((name, with, self.with_nothing.get(name)?)));
        both.filter(|(_, with, without)| with != without)
            .map(|(name, with, without)| (name.clone(), format!("{with}\n{without}")))
            .collect()
    }
}

impl Resolver<'_> {
    /// Makes the spec of a service, looking at every key even if one before it is wrong.
    fn service(&mut self, entry: &NamedEntry<Service>) -> Option<ServiceSpec> {
        let name = entry.name.parse::<ServiceName>();
        let name = name
            .map_err(|error| {
                self.mistakes.push(invalid_name(entry.name_span.clone(), "service", &entry.name, &error));
            })
            .ok();
        let service = entry.value.as_ref()?;
        self.note_places(&entry.name, service);
        let command = self.command(&entry.name, &entry.name_span, service);
        let workdir = self.workdir(service);
        let (env, borrowed) = self.env(&entry.name, service);
        let depends_on = self.depends_on(&entry.name, service);
        let restart = self.restart(service);
        let health = self.health(service);
        let stop = self.stop(service);
        let log = log(service);
        let profiles = self.profiles(service);
        let watch = self.watch(service);
        let inputs = self.inputs(service);
        let kind = value(&service.r#type).map_or_else(Kind::default, |kind| kind.0);
        Some(ServiceSpec {
            name: name?,
            kind,
            command: command?,
            workdir: workdir?,
            env,
            borrowed,
            tty: value(&service.tty).map_or(kind != Kind::Forking, |tty| tty.0),
            port: value(&service.port).map(|port| port.0),
            depends_on,
            health,
            restart,
            stop,
            log,
            profiles,
            watch,
            inputs,
        })
    }

    /// Notes where the keys of a service are written, those of its environment apart.
    fn note_places(&mut self, name: &str, service: &Service) {
        fn span<T>(key: &Option<Key<T>>) -> Option<&Range<usize>> {
            key.as_ref().map(|key| &key.span)
        }
        let mut places = vec![
            ("type", span(&service.r#type)),
            ("command", span(&service.command)),
            ("workdir", span(&service.workdir)),
            ("port", span(&service.port)),
            ("depends_on", span(&service.depends_on)),
            ("health_check", span(&service.health_check)),
            ("stop_signal", span(&service.stop_signal)),
            ("stop_grace", span(&service.stop_grace)),
            ("stop_command", span(&service.stop_command)),
            ("profiles", span(&service.profiles)),
            ("inputs", span(&service.inputs)),
        ];
        match value(&service.restart) {
            Some(Restart::Table(table)) => places.extend([
                ("restart.policy", span(&table.policy)),
                ("restart.backoff", span(&table.backoff)),
                ("restart.max_backoff", span(&table.max_backoff)),
                ("restart.limit", span(&table.limit)),
                ("restart.reset_after", span(&table.reset_after)),
            ]),
            Some(Restart::Policy(_)) | None => places.push(("restart.policy", span(&service.restart))),
        }
        match value(&service.watch) {
            Some(Watched::Table(table)) => {
                places.extend([("watch.paths", span(&table.paths)), ("watch.debounce", span(&table.debounce))]);
            }
            Some(Watched::Paths(_)) | None => places.push(("watch.paths", span(&service.watch))),
        }
        if let Some(log) = value(&service.log) {
            places.extend([("log.max_size", span(&log.max_size)), ("log.max_age", span(&log.max_age))]);
        }
        let found = places.into_iter().filter_map(|(key, span)| Some((key, At::Offset(span?.start))));
        let found = found.map(|(key, at)| Found { service: name.to_owned(), key: form::Key::Plain(key), at });
        self.found.extend(found);
    }

    fn command(&mut self, name: &str, span: &Range<usize>, service: &Service) -> Option<CommandSpec> {
        if service.command.is_none() && !service.guessed.contains(&"command") {
            let message = format!("service `{}` has no command", name.escape_debug());
            let help = "say what to run: `command = \"npm run dev\"`";
            self.mistakes.push(Mistake::at(span.clone(), message).help(help).absence());
        }
        value(&service.command).map(|command| self.command_spec(command))
    }

    pub(super) fn command_spec(&mut self, command: &Command) -> CommandSpec {
        match command {
            Command::Line(line) => CommandSpec::Shell(self.template(line)),
            Command::Argv(argv) => CommandSpec::Argv(argv.iter().map(|argument| self.template(argument)).collect()),
        }
    }

    fn template(&mut self, text: &Text) -> Template {
        template::template(text, self.source, self.declared, self.mistakes)
    }

    fn workdir(&mut self, service: &Service) -> Option<PathBuf> {
        let Some(workdir) = &service.workdir else { return Some(self.around.dir.to_owned()) };
        let text = workdir.value.as_ref()?;
        let path = absolute(self.around.dir, &text.text);
        let shown = text.text.escape_debug();
        let (message, help) = match fs::metadata(&path) {
            _ if text.text.is_empty() => ("`workdir` is empty".to_owned(), "leave it out, or write \".\"".to_owned()),
            Ok(metadata) if metadata.is_dir() => return Some(path),
            Ok(_) => (format!("workdir `{shown}` is not a directory"), relative_to(self.around.dir, text)),
            Err(error) => (format!("workdir `{shown}`: {}", reason(&error)), relative_to(self.around.dir, text)),
        };
        self.mistakes.push(Mistake::at(text.span.clone(), message).help(help));
        None
    }

    /// Merges the env files, in order, and `env` over them. Returns as well what stands in the files for those values that are made of
    /// the caller's environment.
    fn env(&mut self, service_name: &str, service: &Service) -> (BTreeMap<String, Template>, BTreeMap<String, String>) {
        let mut from_files = FromFiles::default();
        if let Some(OneOrMany(files)) = value(&service.env_file) {
            for file in files {
                self.env_file(service_name, file, &mut from_files);
            }
        }
        let mut env: BTreeMap<String, Template> =
            from_files.values.iter().map(|(name, value)| (name.clone(), Template::text(value.clone()))).collect();
        let mut borrowed = from_files.borrowed();
        if let Some(Named(entries)) = value(&service.env) {
            for entry in entries {
                let problem = match entry.name.as_str() {
                    "" => Some("the name of an environment variable cannot be empty"),
                    name if name.contains('=') => Some("the name of an environment variable cannot contain `=`"),
                    name if name.contains('\0') => Some("the name of an environment variable cannot contain NUL"),
                    _ => None,
                };
                if let Some(problem) = problem {
                    let help = "names are made of letters, digits and `_`, such as `DATABASE_URL`";
                    self.mistakes.push(Mistake::at(entry.name_span.clone(), problem).help(help));
                }
                if let Some(value) = &entry.value {
                    self.found.push(Found {
                        service: service_name.to_owned(),
                        key: form::Key::Variable(entry.name.clone()),
                        at: At::Offset(entry.name_span.start),
                    });
                    let template = self.template(&value.0);
                    env.insert(entry.name.clone(), template);
                    borrowed.remove(&entry.name);
                }
            }
        }
        (env, borrowed)
    }

    fn env_file(&mut self, service: &str, file: &Text, from_files: &mut FromFiles) {
        let shown = file.text.escape_debug();
        if file.text.is_empty() {
            let help = "leave it out, or name a file such as \".env\"";
            self.mistakes.push(Mistake::at(file.span.clone(), "the name of an env file is empty").help(help));
            return;
        }
        let text = read_bytes(&absolute(self.around.dir, &file.text))
            .and_then(|bytes| decode(bytes).map_err(|_| "it is not valid UTF-8".to_owned()));
        let text = match text {
            Ok(text) => text,
            Err(reason) => {
                let mistake = Mistake::at(file.span.clone(), format!("env file `{shown}`: {reason}"));
                self.mistakes.push(mistake.help(relative_to(self.around.dir, file)));
                return;
            }
        };
        // The line itself is not shown: env files hold secrets, and this goes to terminals and logs.
        let seen = |name: &str, line| {
            let key = form::Key::Variable(name.to_owned());
            self.found.push(Found { service: service.to_owned(), key, at: At::Line(file.text.clone(), line) });
        };
        dotenv::read(&text, &mut from_files.with_names, &|name| Some(format!("${{{name}}}")), |_, _| {});
        dotenv::read(&text, &mut from_files.with_nothing, &|_| None, |_, _| {});
        for fault in dotenv::read(&text, &mut from_files.values, self.around.lookup, seen) {
            let message = format!("{shown}:{}:{}: {}", fault.line, fault.column, fault.message);
            let help = "an env file has lines `NAME=value`; put values with special characters in single quotes";
            self.mistakes.push(Mistake::at(file.span.clone(), message).help(help));
        }
    }

    fn depends_on(&mut self, name: &str, service: &Service) -> Vec<Dependency> {
        let needed = value(&service.depends_on).map_or(&[] as &[Needed], |dependencies| &dependencies.0);
        let mut dependencies: Vec<Dependency> = Vec::new();
        let mut seen: BTreeMap<&str, Range<usize>> = BTreeMap::new();
        for Needed { name: Text { text, span }, condition, restart } in needed {
            let shown = text.escape_debug();
            if let Some(first) = seen.get(text.as_str()) {
                let mistake = Mistake::at(span.clone(), format!("`{shown}` is named twice in `depends_on`"));
                self.mistakes.push(mistake.also(first.clone(), "first here").help("once is enough"));
                continue;
            }
            seen.insert(text, span.clone());
            if text == name {
                let mistake = Mistake::at(span.clone(), format!("service `{shown}` depends on itself"));
                self.mistakes.push(mistake.help("take it out of `depends_on`"));
                continue;
            }
            let Some(kind) = self.declared.kind(text).or(self.declared.has_port(text).map(|_| Kind::Service)) else {
                let help = match nearest(text, self.declared.names().filter(|declared| *declared != name)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("the services are {}", self.declared.list()),
                };
                let mistake = Mistake::at(span.clone(), format!("there is no service `{shown}`"));
                self.mistakes.push(mistake.help(help).absence());
                continue;
            };
            let condition = match (condition, kind) {
                (None, Kind::Service | Kind::Forking) => Condition::Ready,
                (None, Kind::Job) => Condition::Completed,
                (Some((Condition::Ready, span)), Kind::Job) => {
                    let mistake = Mistake::at(span.clone(), format!("`{shown}` is a job, which is never ready"));
                    self.mistakes.push(mistake.help("a job is waited for with \"completed\", or \"started\""));
                    continue;
                }
                (Some((Condition::Completed, span)), Kind::Service | Kind::Forking) => {
                    let mistake = Mistake::at(span.clone(), format!("`{shown}` is a service, which never completes"));
                    let help =
                        "a service is waited for with \"ready\" or \"started\"; what is to end has `type = \"job\"`";
                    self.mistakes.push(mistake.help(help));
                    continue;
                }
                (Some((condition, _)), Kind::Service | Kind::Job | Kind::Forking) => *condition,
            };
            // A name that is declared and yet not valid is noted where it is declared.
            if let Ok(service) = text.parse() {
                dependencies.push(Dependency { service, condition, restart: *restart });
            }
        }
        dependencies
    }

    fn profiles(&mut self, service: &Service) -> Vec<ProfileName> {
        let written = value(&service.profiles).map_or(&[] as &[Text], |profiles| &profiles.0);
        let mut profiles: Vec<ProfileName> = Vec::new();
        let mut seen: BTreeMap<&str, Range<usize>> = BTreeMap::new();
        for Text { text, span } in written {
            if let Some(first) = seen.insert(text, span.clone()) {
                let message = format!("`{}` is named twice in `profiles`", text.escape_debug());
                let mistake = Mistake::at(span.clone(), message).also(first, "first here");
                self.mistakes.push(mistake.help("once is enough"));
                continue;
            }
            match text.parse() {
                Ok(profile) => profiles.push(profile),
                Err(error) => self.mistakes.push(invalid_name(span.clone(), "profile", text, &error)),
            }
        }
        profiles
    }

    fn restart(&mut self, service: &Service) -> RestartPolicy {
        let default = RestartPolicy::default();
        match value(&service.restart) {
            None => default,
            Some(Restart::Policy(policy)) => RestartPolicy { when: policy.0, ..default },
            Some(Restart::Table(table)) => {
                let span = service.restart.as_ref().map_or(0..0, |key| key.span.clone());
                self.restart_table(table, span)
            }
        }
    }

    fn restart_table(&mut self, table: &RestartTable, span: Range<usize>) -> RestartPolicy {
        let default = RestartPolicy::default();
        if table.policy.is_none() && !table.guessed.contains(&"policy") {
            let help = "add `policy = \"on-failure\"` or `policy = \"always\"`";
            self.mistakes.push(Mistake::at(span, "`restart` does not say when").help(help).absence());
        }
        let policy = RestartPolicy {
            when: value(&table.policy).map_or(RestartWhen::No, |policy| policy.0),
            backoff: value(&table.backoff).map_or(default.backoff, |time| time.0),
            max_backoff: value(&table.max_backoff).map_or(default.max_backoff, |time| time.0),
            limit: value(&table.limit).map_or(default.limit, |count| count.0),
            reset_after: value(&table.reset_after).map_or(default.reset_after, |time| time.0),
        };
        let is_known = |key: &Option<Key<_>>| key.as_ref().is_none_or(|key| key.value.is_some());
        if policy.backoff > policy.max_backoff && is_known(&table.backoff) && is_known(&table.max_backoff) {
            let maximum = crate::time::human(policy.max_backoff);
            let (span, message, help) = match (&table.backoff, &table.max_backoff) {
                (Some(backoff), None) => {
                    let message = format!("`backoff` is longer than `max_backoff`, which is {maximum} by default");
                    (backoff.span.clone(), message, "give a longer `max_backoff`, too")
                }
                (Some(Key { span, .. }), Some(_)) => {
                    let message = "`backoff` is longer than `max_backoff`".to_owned();
                    (span.clone(), message, "`max_backoff` is the longest of the waits that begin with `backoff`")
                }
                (None, key) => {
                    let span = key.as_ref().map_or(0..0, |key| key.span.clone());
                    let backoff = crate::time::human(policy.backoff);
                    let message = format!("`max_backoff` is shorter than `backoff`, which is {backoff} by default");
                    (span, message, "give a shorter `backoff`, too")
                }
            };
            self.mistakes.push(Mistake::at(span, message).help(help));
        }
        policy
    }

    fn stop(&mut self, service: &Service) -> StopPolicy {
        let default = StopPolicy::default();
        StopPolicy {
            signal: value(&service.stop_signal).map_or(default.signal, |name| name.0),
            grace: value(&service.stop_grace).map_or(default.grace, |time| time.0),
            command: value(&service.stop_command).map(|command| self.command_spec(command)),
        }
    }
}

/// Puts a path as written after the directory of the project file; an absolute path stays.
///
/// `.` and doubled slashes disappear. `..` and symbolic links stay as they are, for what they mean may change.
fn absolute(dir: &Path, written: &str) -> PathBuf {
    dir.join(written).components().collect()
}

fn relative_to(dir: &Path, path: &Text) -> String {
    if path.text.starts_with('~') {
        return "`~` is not expanded; write the path in full".to_owned();
    }
    if Path::new(&path.text).is_absolute() {
        return "create it, or correct the path".to_owned();
    }
    format!("paths are relative to {}", dir.display())
}

/// Notes services whose names differ by case alone: they would share a directory where file names ignore case.
fn check_case(entries: &[NamedEntry<Service>], mistakes: &mut Vec<Mistake>) {
    let mut first: BTreeMap<String, &NamedEntry<Service>> = BTreeMap::new();
    for entry in entries {
        if let Some(earlier) = first.get(&entry.name.to_ascii_lowercase()) {
            let (earlier_name, name) = (earlier.name.escape_debug(), entry.name.escape_debug());
            let message = format!("services `{earlier_name}` and `{name}` differ by case alone");
            let mistake = Mistake::at(entry.name_span.clone(), message).also(earlier.name_span.clone(), "first here");
            mistakes.push(mistake.help("file systems that ignore case would mix them up; rename one"));
        } else {
            first.insert(entry.name.to_ascii_lowercase(), entry);
        }
    }
}

/// Notes services that declare the same fixed port.
fn check_ports(entries: &[NamedEntry<Service>], mistakes: &mut Vec<Mistake>) {
    let mut first: BTreeMap<u16, (&str, Range<usize>)> = BTreeMap::new();
    for entry in entries {
        let Some(Key { span, value: Some(port) }) = entry.value.as_ref().and_then(|service| service.port.as_ref())
        else {
            continue;
        };
        let PortSpec::Fixed(port) = port.0 else { continue };
        if let Some((name, place)) = first.get(&port) {
            let message =
                format!("services `{}` and `{}` both have port {port}", name.escape_debug(), entry.name.escape_debug());
            let mistake = Mistake::at(span.clone(), message).also(place.clone(), "first here");
            mistakes.push(mistake.help("change one, or write `port = \"auto\"`"));
        } else {
            first.insert(port, (&entry.name, span.clone()));
        }
    }
}

/// Notes services with ports for which the same variables would stand: other services would see the port of one of them.
fn check_exports(entries: &[NamedEntry<Service>], mistakes: &mut Vec<Mistake>) {
    let mut first: BTreeMap<String, &NamedEntry<Service>> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.value.as_ref().is_some_and(|service| service.port.is_some())) {
        let suffix = exports::suffix(&entry.name);
        match first.get(&suffix) {
            // Names that differ by case alone are noted already.
            Some(earlier) if earlier.name.eq_ignore_ascii_case(&entry.name) => {}
            Some(earlier) => {
                let (earlier_name, name) = (earlier.name.escape_debug(), entry.name.escape_debug());
                let message = format!("services `{earlier_name}` and `{name}` would share a variable for their ports");
                let mistake =
                    Mistake::at(entry.name_span.clone(), message).also(earlier.name_span.clone(), "first here");
                let both = format!("both ports would be `{}{suffix}`; rename one", exports::PORT_PREFIX);
                mistakes.push(mistake.help(both));
            }
            None => {
                first.insert(suffix, entry);
            }
        }
    }
}

/// Notes dependency cycles. Cycles that share a service are noted one at a time.
fn check_cycles(entries: &[NamedEntry<Service>], mistakes: &mut Vec<Mistake>) {
    let index: BTreeMap<&str, usize> = entries.iter().enumerate().map(|(i, entry)| (entry.name.as_str(), i)).collect();
    let edges: Vec<Vec<(usize, Range<usize>)>> = entries
        .iter()
        .enumerate()
        .map(|(from, entry)| {
            let names = entry.value.as_ref().and_then(|service| value(&service.depends_on));
            let names = names.map_or(&[] as &[Needed], |dependencies| &dependencies.0);
            let names = names.iter().map(|needed| &needed.name);
            let known = names.filter_map(|name| Some((*index.get(name.text.as_str())?, name.span.clone())));
            // A service that depends on itself is noted already.
            known.filter(|(to, _)| *to != from).collect()
        })
        .collect();
    let mut is_open = vec![true; entries.len()];
    loop {
        // Take away what can be started, until nothing more can; what stays waits for a cycle.
        while let Some(free) = (0..entries.len()).find(|i| is_open[*i] && !edges[*i].iter().any(|(to, _)| is_open[*to]))
        {
            is_open[free] = false;
        }
        let Some(start) = is_open.iter().position(|open| *open) else { return };
        let cycle = cycle_from(start, &edges, &is_open);
        mistakes.push(describe_cycle(&cycle, entries));
        for (node, _) in cycle {
            is_open[node] = false;
        }
    }
}

/// Follows open dependencies from a service until one comes again: the services of the cycle, the first in the file
/// first, each with the place where it names the next.
fn cycle_from(start: usize, edges: &[Vec<(usize, Range<usize>)>], is_open: &[bool]) -> Vec<(usize, Range<usize>)> {
    let mut path: Vec<(usize, Range<usize>)> = Vec::new();
    let mut node = start;
    loop {
        if let Some(position) = path.iter().position(|(seen, _)| *seen == node) {
            let mut cycle = path.split_off(position);
            let first = cycle.iter().enumerate().min_by_key(|(_, (node, _))| *node).map_or(0, |(position, _)| position);
            cycle.rotate_left(first);
            return cycle;
        }
        let Some((next, span)) = edges[node].iter().find(|(to, _)| is_open[*to]) else { return path };
        path.push((node, span.clone()));
        node = *next;
    }
}

fn describe_cycle(cycle: &[(usize, Range<usize>)], entries: &[NamedEntry<Service>]) -> Mistake {
    let name = |position: usize| entries[cycle[position % cycle.len()].0].name.escape_debug();
    let names: Vec<String> = (0..=cycle.len()).map(|position| name(position).to_string()).collect();
    let label = |position: usize| format!("`{}` waits for `{}`", name(position), name(position + 1));
    let message = format!("services wait for each other: {}", names.join(" -> "));
    let mistake = Mistake::at(cycle[0].1.clone(), message).label(label(0)).help("take one of these dependencies out");
    cycle
        .iter()
        .enumerate()
        .skip(1)
        .fold(mistake, |mistake, (position, (_, span))| mistake.also(span.clone(), label(position)))
}
