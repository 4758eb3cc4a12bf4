//! Where each value of a project file is written: file and line, for whoever wonders which of several counts.

use std::collections::BTreeMap;

use super::form::Key;
use crate::name::ServiceName;

/// A place where a value is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file, as the project file names it.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
}

/// Where the values of a project are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<(ServiceName, Key), Vec<Source>>);

impl Origins {
    /// The places of a service's key, each over the one before: the last one counts. None for a default.
    #[must_use]
    pub fn of(&self, service: &ServiceName, key: &Key) -> &[Source] {
        self.0.get(&(service.clone(), key.clone())).map_or(&[], Vec::as_slice)
    }
}

/// What resolving comes by, in the order in which it counts.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) service: String,
    pub(super) key: Key,
    pub(super) at: At,
}

/// A place, before anybody has asked for its line.
#[derive(Clone, Debug)]
pub(super) enum At {
    /// An offset in the project file.
    Offset(usize),
    /// A line of an env file.
    Line(String, usize),
}

/// Finds the lines of a project file whose text is `source` and which is called `file`.
pub(super) fn origins(found: Vec<Found>, source: &str, file: &str) -> Origins {
    let mut origins = BTreeMap::new();
    for Found { service, key, at } in found {
        // One that is not valid is noted where it is declared.
        let Ok(service) = service.parse::<ServiceName>() else { continue };
        let source = match at {
            At::Offset(offset) => {
                let line = source.get(..offset).map_or(1, |before| before.matches('\n').count() + 1);
                Source { file: file.to_owned(), line }
            }
            At::Line(file, line) => Source { file, line },
        };
        origins.entry((service, key)).or_insert_with(Vec::new).push(source);
    }
    Origins(origins)
}
