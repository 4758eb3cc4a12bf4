//! Names that people choose, and the keys locald makes of them.
//!
//! A name that exists is valid: parsing is the only way to make one. A [`ServiceKey`] is what the daemon, the ledger
//! and the shims call a service; a [`RunNumber`] counts its lives.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest;

/// 63 characters, as in a DNS label: names end up in file names, environment variables and host names.
const MAX_NAME: usize = 63;

/// Says why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text has no characters.
    #[error("a name needs at least one character")]
    Empty,
    /// The text is longer than 63 characters.
    #[error("`{0}` has more than {MAX_NAME} characters")]
    TooLong(String),
    /// The text holds a character that names cannot have.
    #[error("`{name}` contains {character:?}; names are made of letters, digits, `-`, `_` and `.`")]
    Character {
        /// The text as given.
        name: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// The text starts with a character that only may follow.
    #[error("`{0}` must start with a letter or a digit")]
    Start(String),
}

fn check(name: &str) -> Result<(), NameError> {
    let Some(first) = name.chars().next() else { return Err(NameError::Empty) };
    if name.len() > MAX_NAME {
        return Err(NameError::TooLong(name.to_owned()));
    }
    if let Some(character) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))) {
        return Err(NameError::Character { name: name.to_owned(), character });
    }
    if !first.is_ascii_alphanumeric() {
        return Err(NameError::Start(name.to_owned()));
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                check(name)?;
                Ok(Self(name.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                check(&name)?;
                Ok(Self(name))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// The name of a service, as written after `services.` in the project file.
    ServiceName
);
name_type!(
    /// The name of a profile: services that are started when it is asked for.
    ProfileName
);
name_type!(
    /// The name of an owner: whoever has services started, and says who it is.
    OwnerName
);
name_type!(
    /// The name of a project: `[project] name`, or the name of its directory.
    ProjectName
);

impl ProjectName {
    /// Makes the nearest valid name of a directory's name: characters that names cannot have become `-`.
    #[must_use]
    pub fn from_directory(dir: &Path) -> Self {
        let text = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut name: String = text
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
            .collect();
        name.truncate(MAX_NAME);
        let start = name.find(|c: char| c.is_ascii_alphanumeric()).unwrap_or(name.len());
        let name = &name[start..];
        Self(if name.is_empty() { "project".to_owned() } else { name.to_owned() })
    }
}

/// Identifies one instance of a project: a digest of the directory its file lies in, 12 hexadecimal digits.
///
/// Two worktrees of one repository are two instances; renaming the project in its file does not make another one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProjectId(String);

impl ProjectId {
    /// Makes the id of the instance in `dir`, which must be canonical (no symlinks, no `..`).
    #[must_use]
    pub fn of_directory(dir: &Path) -> Self {
        let mut hex = digest::hex(dir.as_os_str().as_encoded_bytes());
        hex.truncate(12);
        Self(hex)
    }

    /// Takes an id that a record or a row holds.
    #[must_use]
    pub fn from_recorded(id: &str) -> Self {
        Self(id.to_owned())
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ProjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names a service of one project instance.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ServiceKey {
    /// The instance.
    pub project: ProjectId,
    /// The service in it.
    pub service: ServiceName,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.project, self.service)
    }
}

/// Counts the runs of a service, from 1. Numbers only grow, whatever ends or restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunNumber(pub u32);

impl RunNumber {
    /// The number of the run after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for RunNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Debug for RunNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Identifies one run among all runs of all homes: the value of `LOCALD_RUN`, 62 random bits in 16 hexadecimal digits. That
/// many have room in a limit beside the bit that says that it is one ([`mark`](crate::process::mark)).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(String);

impl RunId {
    /// Draws a new id.
    ///
    /// # Errors
    /// When the system's random source cannot be read.
    pub fn random() -> std::io::Result<Self> {
        use std::io::Read;
        let mut bytes = [0u8; 8];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        bytes[0] &= 0x3f;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// Reads an id. `None` for what was never drawn as one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_id = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_id.then(|| Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Finds the candidate nearest to a mistyped `word`, if one is near enough to be meant.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Jaro-Winkler looks for letters within half a word's length, which in a word of three is nowhere: `wbe` is as far
    // from `web` to it as from `wxy`. One slip of the finger is near in any word that is long enough to be recognised.
    let likeness = |candidate: &str| {
        let is_one_slip = word.chars().count() >= 3 && strsim::osa_distance(word, candidate) == 1;
        strsim::jaro_winkler(word, candidate).max(if is_one_slip { 0.9 } else { 0.0 })
    };
    candidates
        .into_iter()
        .map(|candidate| (likeness(candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_holds_letters_digits_and_separators_only() {
        assert!("web-1.api_x".parse::<ServiceName>().is_ok());
        assert_eq!("".parse::<ServiceName>(), Err(NameError::Empty));
        assert_eq!("-web".parse::<ServiceName>(), Err(NameError::Start("-web".into())));
        assert_eq!("a/b".parse::<ServiceName>(), Err(NameError::Character { name: "a/b".into(), character: '/' }));
        assert!("x".repeat(64).parse::<ServiceName>().is_err());
        assert!(serde_json::from_str::<ServiceName>("\"../up\"").is_err());
    }

    #[test]
    fn every_directory_gives_a_valid_project_name() {
        for (dir, name) in [("/a/my shop", "my-shop"), ("/", "project"), ("/x/.hidden", "hidden"), ("/x/été", "t-")] {
            let made = ProjectName::from_directory(Path::new(dir));
            assert_eq!(made.as_str(), name);
            assert!(made.as_str().parse::<ProjectName>().is_ok());
        }
    }

    #[test]
    fn nearest_suggests_typing_mistakes_and_nothing_far() {
        let names = ["web", "worker", "database"];
        assert_eq!(nearest("wroker", names), Some("worker"));
        assert_eq!(nearest("databse", names), Some("database"));
        assert_eq!(nearest("wbe", names), Some("web"));
        assert_eq!(nearest("zzz", names), None);
        assert_eq!(nearest("a", ["b"]), None);
    }
}
