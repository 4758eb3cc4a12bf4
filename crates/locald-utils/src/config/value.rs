//! Single values of a project file: text, numbers, durations, commands and the like, each with its place.
//!
//! A type here knows how to read itself from TOML, what to say if the value is something else, and its JSON Schema.
//! Which key takes which value is told in `written`; what a value means beside others is for `resolve`.

use std::borrow::Cow;
use std::ops::Range;

use nix::sys::signal::Signal;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Mistake;
use super::written::Edge;
use crate::name::nearest;
use crate::spec::{Condition, Kind, PortSpec, RestartWhen, StopSignal};

/// A type that a value of the project file can be read into.
pub(super) trait Written: Sized + JsonSchema {
    /// Reads the value. What does not fit is noted and gives `None`, or is left out.
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self>;
}

/// A value as it stands in the file, and what to call it.
pub(super) struct Item<'a> {
    /// What messages call it: `` `port` ``.
    pub(super) name: String,
    pub(super) value: &'a DeValue<'a>,
    pub(super) span: Range<usize>,
}

impl<'a> Item<'a> {
    /// Takes the value of a key.
    pub(super) fn of_key(key: &str, value: &'a Spanned<DeValue<'a>>) -> Self {
        Self { name: format!("`{}`", key.escape_debug()), value: value.get_ref(), span: value.span() }
    }

    /// Takes the value of a key in this table.
    pub(super) fn entry(&self, key: &str, value: &'a Spanned<DeValue<'a>>) -> Self {
        Self::of_key(&format!("{}.{key}", self.name.trim_matches('`')), value)
    }

    pub(super) fn element(&self, index: usize, value: &'a Spanned<DeValue<'a>>) -> Self {
        Self { name: format!("element {} of {}", index + 1, self.name), value: value.get_ref(), span: value.span() }
    }

    /// Says that the value is of a type that the key does not take.
    pub(super) fn wrong_type(&self, expected: &str) -> Mistake {
        let message = format!("{} must be {expected}, not {}", self.name, describe(self.value));
        Mistake::at(self.span.clone(), message).label(format!("expected {expected}"))
    }

    /// Says that the value should have been a string.
    fn not_a_string(&self, expected: &str) -> Mistake {
        let help = match self.value {
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => "put it in quotes",
            DeValue::String(_) | DeValue::Array(_) | DeValue::Table(_) => "write one text, in quotes",
        };
        self.wrong_type(expected).help(help)
    }

    /// Says that the value is of the right type and yet not possible.
    pub(super) fn wrong_value(&self, what_is_wrong: &str) -> Mistake {
        Mistake::at(self.span.clone(), format!("{} {what_is_wrong}", self.name))
    }

    /// Takes the entries of a table in the order of the file.
    pub(super) fn table(&self, mistakes: &mut Vec<Mistake>) -> Option<Vec<Entry<'a>>> {
        match self.value {
            DeValue::Table(table) => Some(in_order(table)),
            DeValue::Array(_) => {
                let help = "a table is written `[name]`, with single brackets, or `{ key = value }`";
                mistakes.push(self.wrong_type("a table").help(help));
                None
            }
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => {
                mistakes.push(self.wrong_type("a table").help("a table is written `[name]` or `{ key = value }`"));
                None
            }
        }
    }

    fn string(&self) -> Option<&'a str> {
        match self.value {
            DeValue::String(text) => Some(text.as_ref()),
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => None,
        }
    }

    fn array(&self) -> Option<&'a [Spanned<DeValue<'a>>]> {
        match self.value {
            DeValue::Array(array) => Some(array.as_ref()),
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Table(_) => None,
        }
    }

    fn integer(&self) -> Option<i128> {
        match self.value {
            DeValue::Integer(integer) => i128::from_str_radix(integer.as_str(), integer.radix()).ok(),
            DeValue::String(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => None,
        }
    }
}

/// A key and its value.
pub(super) type Entry<'a> = (&'a Spanned<Cow<'a, str>>, &'a Spanned<DeValue<'a>>);

/// Takes the entries of a table in the order of the file; the table itself sorts them by name.
pub(super) fn in_order<'a>(table: &'a DeTable<'a>) -> Vec<Entry<'a>> {
    let mut entries: Vec<Entry<'a>> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Names a value the way a person would.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.chars().count() <= 40 => format!("the string {text:?}"),
        DeValue::String(_) => "a string".to_owned(),
        DeValue::Integer(integer) => format!("the number {integer}"),
        DeValue::Float(float) => format!("the number {float}"),
        DeValue::Boolean(boolean) => format!("{boolean}"),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Gives a type the schema of the braces that follow.
macro_rules! schema_of {
    ($type:ident, $($schema:tt)+) => {
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($($schema)+)
            }
        }
    };
}

mod check;
mod quantity;

pub(super) use check::{Descriptor, Failures, Pattern, PortNumber, ProbeType, Statuses};
pub(super) use quantity::{Age, Size, Time};

/// A string that the system can take: without NUL.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) span: Range<usize>,
}

schema_of!(Text, { "type": "string" });

impl Text {
    /// Takes text, unless it holds a NUL, which ends every text that the kernel is given.
    fn new(text: &str, item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        if text.contains('\0') {
            mistakes.push(item.wrong_value("contains a NUL character").help("take out the `\\u0000`"));
            return None;
        }
        Some(Self { text: text.to_owned(), span: item.span.clone() })
    }
}

impl Written for Text {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        match item.string() {
            Some(text) => Self::new(text, item, mistakes),
            None => {
                mistakes.push(item.not_a_string("a string"));
                None
            }
        }
    }
}

/// The value of an environment variable: a string, or a number or truth value for its text.
#[derive(Clone, Debug)]
pub(super) struct EnvValue(pub(super) Text);

schema_of!(EnvValue, { "type": ["string", "integer", "boolean"] });

impl Written for EnvValue {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let text = match item.value {
            DeValue::String(text) => Cow::Borrowed(text.as_ref()),
            DeValue::Integer(integer) => Cow::Owned(integer.to_string()),
            DeValue::Boolean(boolean) => Cow::Owned(boolean.to_string()),
            DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                mistakes.push(item.not_a_string("a string, an integer or a boolean"));
                return None;
            }
        };
        Text::new(&text, item, mistakes).map(EnvValue)
    }
}

/// What to run: a line for the shell, or a program and its arguments. Never empty.
#[derive(Clone, Debug)]
pub(super) enum Command {
    Line(Text),
    Argv(Vec<Text>),
}

schema_of!(Command, {
    "oneOf": [
        { "type": "string", "minLength": 1, "description": "A line for `/bin/sh -c`." },
        {
            "type": "array",
            "items": { "type": "string" },
            "minItems": 1,
            "description": "A program and its arguments, run without a shell."
        }
    ]
});

impl Written for Command {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        const HELP: &str = "write a line for the shell, \"npm run dev\", or a program and its arguments, \
                            [\"npm\", \"run\", \"dev\"]";
        if let Some(line) = item.string() {
            if line.trim().is_empty() {
                mistakes.push(item.wrong_value("is empty").help(HELP));
                return None;
            }
            return Text::new(line, item, mistakes).map(Self::Line);
        }
        let Some(array) = item.array() else {
            mistakes.push(item.wrong_type("a string or an array of strings").help(HELP));
            return None;
        };
        let Some(first) = array.first() else {
            mistakes.push(item.wrong_value("is empty").help(HELP));
            return None;
        };
        let argv = texts(item, array, mistakes)?;
        if argv.first().is_some_and(|program| program.text.is_empty()) {
            let program = item.element(0, first);
            mistakes.push(program.wrong_value("is the program to run, and empty").help(HELP));
            return None;
        }
        Some(Self::Argv(argv))
    }
}

/// Reads an array of strings; `None` if one of them is something else, after all were looked at.
fn texts(item: &Item<'_>, array: &[Spanned<DeValue<'_>>], mistakes: &mut Vec<Mistake>) -> Option<Vec<Text>> {
    let texts: Vec<Option<Text>> =
        array.iter().enumerate().map(|(index, value)| Text::read(&item.element(index, value), mistakes)).collect();
    texts.into_iter().collect()
}

/// A string, or an array of strings.
#[derive(Clone, Debug)]
pub(super) struct OneOrMany(pub(super) Vec<Text>);

schema_of!(OneOrMany, {
    "oneOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }]
});

impl Written for OneOrMany {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        if item.string().is_some() {
            return Text::read(item, mistakes).map(|text| Self(vec![text]));
        }
        let Some(array) = item.array() else {
            mistakes.push(item.not_a_string("a string or an array of strings"));
            return None;
        };
        texts(item, array, mistakes).map(Self)
    }
}

/// The services that one waits for: names, or names and how far each must have come.
#[derive(Clone, Debug)]
pub(super) struct Dependencies(pub(super) Vec<Needed>);

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct Needed {
    pub(super) name: Text,
    /// How far it must have come, and where that is written. Default: what its type says.
    pub(super) condition: Option<(Condition, Range<usize>)>,
    /// Whether its restarts are followed.
    pub(super) restart: bool,
}

impl JsonSchema for Dependencies {
    fn schema_name() -> Cow<'static, str> {
        "Dependencies".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let condition = generator.subschema_for::<Needs>();
        let edge = generator.subschema_for::<Edge>();
        json_schema!({
            "anyOf": [
                { "type": "array", "items": { "type": "string" }, "uniqueItems": true },
                { "type": "object", "additionalProperties": { "anyOf": [condition, edge] } }
            ]
        })
    }
}

/// How far a service must have come for another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs(pub(super) Condition);

schema_of!(Needs, {
    "oneOf": [
        { "const": "ready", "description": "It is ready: the default for a service." },
        { "const": "completed", "description": "It has ended with exit code 0: the default for a job." },
        { "const": "started", "description": "It has been started." }
    ]
});

impl Needs {
    const WORDS: &[(&str, Condition)] =
        &[("ready", Condition::Ready), ("completed", Condition::Completed), ("started", Condition::Started)];
}

impl Written for Needs {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        word(item, Self::WORDS, "", mistakes).map(Self)
    }
}

impl Written for Dependencies {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        const EXPECTED: &str = "an array of service names or a table of conditions";
        match item.value {
            DeValue::Array(array) => {
                let names = texts(item, array, mistakes)?.into_iter();
                Some(Self(names.map(|name| Needed { name, condition: None, restart: false }).collect()))
            }
            DeValue::String(name) => {
                mistakes.push(item.wrong_type(EXPECTED).help(format!("write [{:?}]", name.as_ref())));
                None
            }
            DeValue::Table(_) => {
                let needed = item.table(mistakes)?.into_iter().filter_map(|(key, value)| {
                    let name = Text { text: key.get_ref().to_string(), span: key.span() };
                    let item = item.entry(key.get_ref(), value);
                    if let DeValue::Table(_) = item.value {
                        let Edge { condition, restart, .. } = Edge::read(&item, mistakes)?;
                        let condition = condition.and_then(|key| Some((key.value?.0, key.span)));
                        let restart = restart.and_then(|key| key.value).is_some_and(|flag| flag.0);
                        return Some(Needed { name, condition, restart });
                    }
                    let Needs(condition) = Needs::read(&item, mistakes)?;
                    Some(Needed { name, condition: Some((condition, value.span())), restart: false })
                });
                Some(Self(needed.collect()))
            }
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {
                mistakes.push(item.wrong_type(EXPECTED).help("write [\"db\"]"));
                None
            }
        }
    }
}

/// A port: a number, or `"auto"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Port(pub(super) PortSpec);

schema_of!(Port, {
    "oneOf": [{ "type": "integer", "minimum": 1, "maximum": 65535 }, { "const": "auto" }]
});

impl Written for Port {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        const EXPECTED: &str = "a number from 1 to 65535 or \"auto\"";
        if item.string() == Some("auto") {
            return Some(Self(PortSpec::Auto));
        }
        let port = item.integer().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        if let Some(port) = port {
            return Some(Self(PortSpec::Fixed(port)));
        }
        let help = match item.string().map(str::parse::<u16>) {
            Some(Ok(port)) => format!("write {port} without quotes"),
            Some(Err(_)) | None => "\"auto\" lets locald choose a free port and keep it".to_owned(),
        };
        mistakes.push(item.wrong_type(EXPECTED).help(help));
        None
    }
}

/// The signal that asks a service to end.
#[derive(Clone, Copy, Debug)]
pub(super) struct SignalName(pub(super) StopSignal);

schema_of!(SignalName, {
    "type": "string",
    "examples": ["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2"]
});

impl Written for SignalName {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let Some(name) = item.string() else {
            mistakes.push(item.wrong_type("the name of a signal").help("write \"SIGTERM\" or \"SIGINT\""));
            return None;
        };
        let mistake = match StopSignal::from_name(name) {
            Some(StopSignal(Signal::SIGKILL)) => item
                .wrong_value("cannot be SIGKILL, which asks for nothing")
                .help("`stop_grace = \"0s\"` kills at once"),
            Some(StopSignal(Signal::SIGSTOP)) => item
                .wrong_value("cannot be SIGSTOP, which suspends a process and never ends it")
                .help("the default is \"SIGTERM\""),
            Some(signal) => return Some(Self(signal)),
            None => {
                let upper = name.to_ascii_uppercase();
                let word = upper.strip_prefix("SIG").unwrap_or(&upper);
                let help = match nearest(word, Signal::iterator().map(|signal| &signal.as_str()[3..])) {
                    Some(near) => format!("did you mean \"SIG{near}\"?"),
                    None => "signals go by name, such as \"SIGTERM\" or \"SIGINT\"".to_owned(),
                };
                Mistake::at(item.span.clone(), format!("unknown signal `{}`", name.escape_debug())).help(help)
            }
        };
        mistakes.push(mistake);
        None
    }
}

/// Yes or no.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag(pub(super) bool);

schema_of!(Flag, { "type": "boolean" });

impl Written for Flag {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        if let DeValue::Boolean(flag) = item.value {
            return Some(Self(*flag));
        }
        mistakes.push(item.wrong_type("true or false").help("write it without quotes"));
        None
    }
}

/// Reads one of a few words, the default first.
fn word<T: Copy>(item: &Item<'_>, words: &[(&str, T)], more: &str, mistakes: &mut Vec<Mistake>) -> Option<T> {
    let written = item.string();
    if let Some((_, meaning)) = words.iter().find(|(word, _)| Some(*word) == written) {
        return Some(*meaning);
    }
    let all: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    let first = all.first().map_or("", String::as_str);
    let near = written.and_then(|written| nearest(written, words.iter().map(|(word, _)| *word)));
    let mistake = item.wrong_type(&format!("{}{more}", all.join(" or ")));
    mistakes.push(match near {
        Some(near) => mistake.help(format!("did you mean \"{near}\"?")),
        None => mistake.help(format!("the default is {first}")),
    });
    None
}

/// Whether a service is meant to stay or to finish.
#[derive(Clone, Copy, Debug)]
pub(super) struct Type(pub(super) Kind);

schema_of!(Type, {
    "oneOf": [
        { "const": "service", "description": "Runs until it is stopped." },
        { "const": "job", "description": "Runs to completion; exit code 0 satisfies its dependents." },
        { "const": "forking", "description": "Runs until it is stopped; the command is a launcher that leaves it behind and exits with 0." }
    ]
});

impl Written for Type {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let words = [("service", Kind::Service), ("job", Kind::Job), ("forking", Kind::Forking)];
        word(item, &words, "", mistakes).map(Self)
    }
}

/// When to run a service again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy(pub(super) RestartWhen);

schema_of!(Policy, {
    "oneOf": [
        { "const": "no", "description": "Never." },
        { "const": "on-failure", "description": "After anything but exit code 0." },
        { "const": "always", "description": "Whatever the exit status was." }
    ]
});

impl Policy {
    const WORDS: &[(&str, RestartWhen)] =
        &[("no", RestartWhen::No), ("on-failure", RestartWhen::OnFailure), ("always", RestartWhen::Always)];

    /// Reads the word where a table would be possible, too.
    pub(super) fn read_or_table(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        word(item, Self::WORDS, " or a table", mistakes).map(Self)
    }
}

impl Written for Policy {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        word(item, Self::WORDS, "", mistakes).map(Self)
    }
}

/// A number of attempts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count(pub(super) u32);

schema_of!(Count, { "type": "integer", "minimum": 1, "maximum": 4_294_967_295_u32 });

impl Written for Count {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        count(item, "without restarts, write `restart = \"no\"`", mistakes).map(Self)
    }
}

fn count(item: &Item<'_>, help: &str, mistakes: &mut Vec<Mistake>) -> Option<u32> {
    let count = item.integer().and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0);
    if count.is_none() {
        mistakes.push(item.wrong_type("a number from 1").help(help));
    }
    count
}
