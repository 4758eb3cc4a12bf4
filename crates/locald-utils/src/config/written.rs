//! The project file as written: every key, in the types a person fills in.
//!
//! `table!` makes three things of one list of keys: the struct, its reader, and (by deriving [`JsonSchema`]) its
//! schema; so none of them can know a key that another does not. Reading notes every mistake and goes on: a key whose
//! value could not be read is there without a value, so that nothing later reports it as missing. To add a key, add
//! a line below, give its type in `value`, and say in `resolve` what it means.

use std::borrow::Cow;
use std::ops::Range;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Mistake;
use super::value::{
    Age, Command, Count, Dependencies, Descriptor, EnvValue, Failures, Flag, Item, Needs, OneOrMany, Pattern, Policy,
    Port, PortNumber, ProbeType, SignalName, Size, Statuses, Text, Time, Type, Written,
};
use crate::name::nearest;

/// Reads the root table of a project file.
pub(super) fn read(root: &DeTable<'_>, mistakes: &mut Vec<Mistake>) -> File {
    File::read_entries(super::value::in_order(root), mistakes)
}

/// A key that is there.
#[derive(Clone, Debug)]
pub(super) struct Key<T> {
    /// Where its value is.
    pub(super) span: Range<usize>,
    /// What it says, unless that was a mistake and is noted.
    pub(super) value: Option<T>,
}

impl<T: JsonSchema> JsonSchema for Key<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// Declares a table of fixed keys. Each is optional for the reader; `#[schemars(required)]` is for the schema.
macro_rules! table {
    (
        $(#[doc = $doc:literal])*
        #[called($noun:literal)]
        struct $name:ident { $($(#[doc = $key_doc:literal])* $(#[schemars($($attribute:tt)*)])? $key:ident: $type:ty,)* }
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, Default, JsonSchema)]
        #[schemars(deny_unknown_fields)]
        pub(super) struct $name {
            $($(#[doc = $key_doc])* $(#[schemars($($attribute)*)])? pub(super) $key: Option<Key<$type>>,)*
            /// Known keys that an unknown one was probably meant to be; they are not missing.
            #[schemars(skip)]
            pub(super) guessed: Vec<&'static str>,
        }

        impl $name {
            fn read_entries(entries: Vec<super::value::Entry<'_>>, mistakes: &mut Vec<Mistake>) -> Self {
                let mut read = Self::default();
                for (key, value) in entries {
                    let name: &str = key.get_ref();
                    $(if name == key_name(stringify!($key)) {
                        let item = Item::of_key(name, value);
                        let value = <$type>::read(&item, mistakes);
                        read.$key = Some(Key { span: item.span, value });
                        continue;
                    })*
                    let known = [$(key_name(stringify!($key)),)*];
                    read.guessed.extend(unknown_key(key, value, $noun, &known, mistakes));
                }
                read
            }
        }

        impl Written for $name {
            fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
                item.table(mistakes).map(|entries| Self::read_entries(entries, mistakes))
            }
        }
    };
}

table! {
    /// The project file of locald: the services of a development project.
    #[called("a project file")]
    struct File {
        /// What concerns the project as a whole.
        project: Project,
        /// The services, by name. A name has letters, digits, `-`, `_` and `.`, and starts with a letter or a digit.
        #[schemars(required, extend("propertyNames" = { "pattern": NAME_PATTERN, "maxLength": 63 }, "minProperties" = 1))]
        services: Named<Service>,
    }
}

table! {
    /// What concerns the project as a whole.
    #[called("`[project]`")]
    struct Project {
        /// The name shown to people. Default: the name of the directory.
        #[schemars(extend("pattern" = NAME_PATTERN, "maxLength" = 63))]
        name: Text,
    }
}

table! {
    /// A service: one command that locald starts, watches and stops.
    #[called("a service")]
    struct Service {
        /// Whether it is meant to stay ("service", the default), to finish ("job"), or to leave behind what stays ("forking").
        r#type: Type,
        /// What to run: a line for `/bin/sh -c`, or an array of a program and its arguments, run without a shell.
        #[schemars(required)]
        command: Command,
        /// The directory to run it in, relative to the project file. Default: the directory of the project file.
        workdir: Text,
        /// Environment variables. `${services.NAME.port}` in a value stands for the port of a service.
        env: Named<EnvValue>,
        /// Files with lines `NAME=value`, relative to the project file; a later file wins, and `env` wins over all.
        env_file: OneOrMany,
        /// Whether it has a terminal. If not, it has a pipe for each of stdout and stderr, and `logs` tells them apart. Default: true,
        /// but for type "forking".
        tty: Flag,
        /// The port it listens on: a number, or "auto" for a free one that is kept. Exported as `PORT`.
        port: Port,
        /// Services that must be ready (or, for a job, completed) before this one starts.
        depends_on: Dependencies,
        /// How to tell whether it is ready: a command, a table, or several tables, which must all pass. Default: one of its
        /// processes listens on its port; without a port, it has run for 100 ms.
        health_check: HealthChecks,
        /// When to run it again after it ended by itself. Default: "no".
        restart: Restart,
        /// The signal that asks it to end. Default: "SIGTERM".
        stop_signal: SignalName,
        /// How long it may take to end before it is killed; "0s" kills at once. Default: "5s".
        stop_grace: Time,
        /// A command to run before the stop signal is sent.
        stop_command: Command,
        /// How much of its output is kept.
        log: Log,
        /// With any, it is started only when one of them is asked for (`--profile`), it is named, or another needs it.
        profiles: OneOrMany,
        /// Files whose changes make it run again: patterns such as "src/**/*.ts", relative to the project file.
        watch: Watched,
        /// job: files of which it makes something, as patterns. Its success counts until one of them changes.
        inputs: OneOrMany,
    }
}

table! {
    /// Files whose changes make a service run again, and when.
    #[called("`watch`")]
    struct WatchTable {
        /// The files, as patterns.
        #[schemars(required)]
        paths: OneOrMany,
        /// How long nothing may have changed before it is run again. Default: "100ms".
        debounce: Time,
    }
}

table! {
    /// When to run a service again, and how often.
    #[called("`restart`")]
    struct RestartTable {
        /// When to run it again after it ended by itself.
        #[schemars(required)]
        policy: Policy,
        /// The first wait; it doubles with every further failure. Default: "250ms".
        backoff: Time,
        /// The longest wait. Default: "30s".
        max_backoff: Time,
        /// So many starts within a minute are too many, and the service has failed. Default: 10.
        limit: Count,
        /// A run that was ready this long clears the count of failures. Default: "60s".
        reset_after: Time,
    }
}

table! {
    /// What a service needs of another.
    #[called("a dependency")]
    struct Edge {
        /// How far it must have come. Default: "ready"; for a job "completed".
        condition: Needs,
        /// Whether this service is run again whenever that one is. Default: false.
        restart: Flag,
    }
}

table! {
    /// How to tell whether a service is ready.
    #[called("`health_check`")]
    struct HealthTable {
        /// How it is asked.
        #[schemars(required)]
        r#type: ProbeType,
        /// http: the path. Default: "/".
        path: Text,
        /// http, tcp: the port. Default: the port of the service.
        port: PortNumber,
        /// http: the status of a good answer, or several. Default: 200 to 399.
        status: Statuses,
        /// http: what is sent in the head of the request.
        headers: Named<EnvValue>,
        /// http: whether it is asked over TLS. Default: false.
        tls: Flag,
        /// http: whether any certificate will do, a self-signed one too. Default: false.
        insecure: Flag,
        /// command: what must end with exit code 0. It has the service's environment and directory.
        command: Command,
        /// log: a regular expression; a line of the output since the run began must contain a match.
        pattern: Pattern,
        /// notify: the descriptor on which the service writes a newline. Default: it sends READY=1 to `$NOTIFY_SOCKET`.
        fd: Descriptor,
        /// The time between two probes once it is ready; before, it is asked more often. Default: "10s".
        interval: Time,
        /// How long a probe may take. Default: "5s".
        timeout: Time,
        /// How long it may take to pass for the first time; after that its run has failed. Default: as long as it takes.
        start_period: Time,
        /// So many failures in a row end its readiness; with `restart`, its run. Default: 3.
        retries: Failures,
    }
}

table! {
    /// How much of the output of a service is kept.
    #[called("`log`")]
    struct Log {
        /// What all of it may take on disk; what is oldest is removed. Default: "128MB".
        max_size: Size,
        /// What is older is removed. Default: "30d".
        max_age: Age,
    }
}

/// Letters, digits, `-`, `_` and `.`; see [`crate::name`].
const NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._-]*$";

/// `restart`: one word, or a table with the details.
#[derive(Clone, Debug)]
pub(super) enum Restart {
    Policy(Policy),
    Table(RestartTable),
}

impl JsonSchema for Restart {
    fn schema_name() -> Cow<'static, str> {
        "Restart".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let policy = generator.subschema_for::<Policy>();
        let table = generator.subschema_for::<RestartTable>();
        json_schema!({ "anyOf": [policy, table] })
    }
}

impl Written for Restart {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        match item.value {
            DeValue::Table(_) => RestartTable::read(item, mistakes).map(Self::Table),
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_) => Policy::read_or_table(item, mistakes).map(Self::Policy),
        }
    }
}

/// `watch`: patterns, or a table with the details.
#[derive(Clone, Debug)]
pub(super) enum Watched {
    Paths(OneOrMany),
    Table(WatchTable),
}

impl JsonSchema for Watched {
    fn schema_name() -> Cow<'static, str> {
        "Watched".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let paths = generator.subschema_for::<OneOrMany>();
        let table = generator.subschema_for::<WatchTable>();
        json_schema!({ "anyOf": [paths, table] })
    }
}

impl Written for Watched {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        match item.value {
            DeValue::Table(_) => WatchTable::read(item, mistakes).map(Self::Table),
            DeValue::String(_) | DeValue::Array(_) => OneOrMany::read(item, mistakes).map(Self::Paths),
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {
                let help = "write what to watch: [\"src/**/*.ts\"], or { paths = [\"src\"], debounce = \"500ms\" }";
                mistakes.push(item.wrong_type("an array of patterns or a table").help(help));
                None
            }
        }
    }
}

/// `health_check`: a command, a table, or several tables.
#[derive(Clone, Debug)]
pub(super) enum HealthChecks {
    Command(Command),
    Tables(Vec<(HealthTable, Range<usize>)>),
}

impl JsonSchema for HealthChecks {
    fn schema_name() -> Cow<'static, str> {
        "HealthChecks".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let table = generator.subschema_for::<HealthTable>();
        json_schema!({
            "anyOf": [
                { "type": "string", "minLength": 1, "description": "A command that ends with exit code 0." },
                table,
                { "type": "array", "items": table, "minItems": 1 }
            ]
        })
    }
}

impl Written for HealthChecks {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        const HELP: &str = "write a command, \"./bin/healthy\", or a table, { type = \"http\", path = \"/healthz\" }";
        match item.value {
            DeValue::String(_) => Command::read(item, mistakes).map(Self::Command),
            DeValue::Table(_) => {
                HealthTable::read(item, mistakes).map(|table| Self::Tables(vec![(table, item.span.clone())]))
            }
            DeValue::Array(array) if array.is_empty() => {
                mistakes.push(item.wrong_value("is empty").help(HELP));
                None
            }
            DeValue::Array(array) => {
                let mut tables = Vec::new();
                for (index, value) in array.iter().enumerate() {
                    let element = item.element(index, value);
                    match element.value {
                        DeValue::Table(_) => {
                            tables.extend(
                                HealthTable::read(&element, mistakes).map(|table| (table, element.span.clone())),
                            );
                        }
                        // Several commands, or a command and its arguments? Who writes a table says which.
                        _ => {
                            let help = "a command and its arguments are { type = \"command\", command = [\"...\"] }";
                            mistakes.push(element.wrong_type("a table").help(help));
                            return None;
                        }
                    }
                }
                Some(Self::Tables(tables))
            }
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {
                mistakes.push(item.wrong_type("a string or a table").help(HELP));
                None
            }
        }
    }
}

/// A table whose keys the user chooses, in the order of the file.
#[derive(Clone, Debug)]
pub(super) struct Named<T>(pub(super) Vec<NamedEntry<T>>);

/// An entry of a [`Named`] table.
#[derive(Clone, Debug)]
pub(super) struct NamedEntry<T> {
    pub(super) name: String,
    pub(super) name_span: Range<usize>,
    /// What it says, unless that was a mistake and is noted.
    pub(super) value: Option<T>,
}

impl<T: JsonSchema> JsonSchema for Named<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Named{}", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<T>();
        json_schema!({ "type": "object", "additionalProperties": value })
    }
}

impl<T: Written> Written for Named<T> {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let entries = item.table(mistakes)?.into_iter().map(|(key, value)| NamedEntry {
            name: key.get_ref().to_string(),
            name_span: key.span(),
            value: T::read(&item.entry(key.get_ref(), value), mistakes),
        });
        Some(Self(entries.collect()))
    }
}

/// The key that an identifier of ours stands for: `type` for `r#type`.
fn key_name(identifier: &'static str) -> &'static str {
    identifier.trim_start_matches("r#")
}

/// What other tools call a key.
const ALIASES: &[(&str, &str)] = &[
    ("after", "depends_on"),
    ("cmd", "command"),
    ("cwd", "workdir"),
    ("dir", "workdir"),
    ("directory", "workdir"),
    ("dotenv", "env_file"),
    ("environment", "env"),
    ("exec", "command"),
    ("health", "health_check"),
    ("healthcheck", "health_check"),
    ("logging", "log"),
    ("logs", "log"),
    ("needs", "depends_on"),
    ("ports", "port"),
    ("readiness_probe", "health_check"),
    ("requires", "depends_on"),
    ("run", "command"),
    ("sources", "inputs"),
    ("stop_grace_period", "stop_grace"),
    ("stop_timeout", "stop_grace"),
    ("variables", "env"),
    ("watches", "watch"),
    ("working_dir", "workdir"),
    ("working_directory", "workdir"),
];

/// Notes an unknown key, and returns the known one it was probably meant to be.
fn unknown_key(
    key: &Spanned<Cow<'_, str>>,
    value: &Spanned<DeValue<'_>>,
    noun: &str,
    known: &[&'static str],
    mistakes: &mut Vec<Mistake>,
) -> Option<&'static str> {
    let name: &str = key.get_ref();
    let shown = name.escape_debug();
    let list: Vec<String> = known.iter().map(|known| format!("`{known}`")).collect();
    let is_table_with_command = matches!(value.get_ref(), DeValue::Table(table) if table.contains_key("command"));
    if is_table_with_command && known.contains(&"services") {
        let mistake = Mistake::at(key.span(), format!("unknown key `{shown}`"));
        mistakes.push(mistake.help(format!("a service is written `[services.{shown}]`")));
        return Some("services");
    }
    let plain = name.to_ascii_lowercase().replace('-', "_");
    let alias = ALIASES.iter().find(|(alias, _)| *alias == plain).map(|(_, key)| *key);
    let near = alias.or_else(|| nearest(&plain, known.iter().copied()));
    let guess = known.iter().copied().find(|known| Some(*known) == near);
    let help = match guess {
        Some(guess) => format!("did you mean `{guess}`?"),
        None => format!("the keys of {noun} are {}", list.join(", ")),
    };
    mistakes.push(Mistake::at(key.span(), format!("unknown key `{shown}`")).help(help));
    guess
}
