//! What the keys of a health check take.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{Item, Text, Written, count};
use crate::config::diagnostic::Mistake;
use crate::name::nearest;

/// How a health check asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum ProbeType {
    Http,
    Tcp,
    Command,
    Log,
    Notify,
}

schema_of!(ProbeType, {
    "oneOf": [
        { "const": "http", "description": "It answers a GET." },
        { "const": "tcp", "description": "It takes a connection." },
        { "const": "command", "description": "A command ends with exit code 0." },
        { "const": "log", "description": "A line of its output matches a pattern." },
        { "const": "notify", "description": "It says so: READY=1 to `$NOTIFY_SOCKET`, or a newline on a descriptor." }
    ]
});

impl ProbeType {
    pub(in crate::config) const WORDS: &[(&str, Self)] = &[
        ("http", Self::Http),
        ("tcp", Self::Tcp),
        ("command", Self::Command),
        ("log", Self::Log),
        ("notify", Self::Notify),
    ];

    /// As it is written.
    pub(in crate::config) fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, meaning)| *meaning == self).map_or("", |(word, _)| *word)
    }
}

impl Written for ProbeType {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let written = item.string();
        if let Some((_, meaning)) = Self::WORDS.iter().find(|(word, _)| Some(*word) == written) {
            return Some(*meaning);
        }
        let all: Vec<String> = Self::WORDS.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let mistake = item.wrong_type(&all.join(" or "));
        let near = written.and_then(|written| nearest(written, Self::WORDS.iter().map(|(word, _)| *word)));
        mistakes.push(match near {
            Some(near) => mistake.help(format!("did you mean \"{near}\"?")),
            None => mistake.help("a command needs no type: `health_check = \"./bin/healthy\"`"),
        });
        None
    }
}

/// A port number.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct PortNumber(pub(in crate::config) u16);

schema_of!(PortNumber, { "type": "integer", "minimum": 1, "maximum": 65535 });

impl Written for PortNumber {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let port = item.integer().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        if port.is_none() {
            let help = "without `port` it is the port of the service";
            mistakes.push(item.wrong_type("a number from 1 to 65535").help(help));
        }
        port.map(Self)
    }
}

/// A status of HTTP, or several.
#[derive(Clone, Debug)]
pub(in crate::config) struct Statuses(pub(in crate::config) Vec<u16>);

schema_of!(Statuses, {
    "oneOf": [
        { "type": "integer", "minimum": 100, "maximum": 599 },
        { "type": "array", "items": { "type": "integer", "minimum": 100, "maximum": 599 }, "minItems": 1 }
    ]
});

impl Written for Statuses {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        const HELP: &str = "write `status = 200` or `status = [200, 401]`; without it 200 to 399 are good";
        let status = |item: &Item<'_>, mistakes: &mut Vec<Mistake>| {
            let status = item.integer().and_then(|status| u16::try_from(status).ok());
            let status = status.filter(|status| (100..600).contains(status));
            if status.is_none() {
                mistakes.push(item.wrong_type("a number from 100 to 599").help(HELP));
            }
            status
        };
        let Some(array) = item.array() else { return status(item, mistakes).map(|status| Self(vec![status])) };
        if array.is_empty() {
            mistakes.push(item.wrong_value("is empty").help(HELP));
            return None;
        }
        let all: Vec<Option<u16>> =
            array.iter().enumerate().map(|(index, value)| status(&item.element(index, value), mistakes)).collect();
        all.into_iter().collect::<Option<_>>().map(Self)
    }
}

/// The number of a descriptor that a service is given.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct Descriptor(pub(in crate::config) i32);

schema_of!(Descriptor, { "type": "integer", "minimum": 3, "maximum": 9 });

impl Written for Descriptor {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let fd = item.integer().and_then(|fd| i32::try_from(fd).ok()).filter(|fd| (3..=9).contains(fd));
        if fd.is_none() {
            let help = "0 to 2 are its terminal; the usual number is 3";
            mistakes.push(item.wrong_type("a number from 3 to 9").help(help));
        }
        fd.map(Self)
    }
}

/// A regular expression.
#[derive(Clone, Debug)]
pub(in crate::config) struct Pattern(pub(in crate::config) String);

schema_of!(Pattern, { "type": "string", "format": "regex" });

impl Written for Pattern {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let text = Text::read(item, mistakes)?.text;
        match crate::health::pattern(&text) {
            Ok(_) => Some(Self(text)),
            Err(error) => {
                let reason = error.to_string();
                // The last line says what is wrong, those before it where.
                let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                let help = "the syntax is that of https://docs.rs/regex-lite; single quotes keep backslashes";
                mistakes.push(item.wrong_value(&format!("is no regular expression: {reason}")).help(help));
                None
            }
        }
    }
}

/// A number of failures.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct Failures(pub(in crate::config) u32);

schema_of!(Failures, { "type": "integer", "minimum": 1, "maximum": 4_294_967_295_u32 });

impl Written for Failures {
    fn read(item: &Item<'_>, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        count(item, "with 1, the first failure counts", mistakes).map(Self)
    }
}
