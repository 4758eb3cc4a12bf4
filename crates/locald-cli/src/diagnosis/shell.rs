//! Commands as they have to be typed.

use std::ffi::OsStr;

use locald_utils::paths::HOME_VARIABLES;

use super::facts::Variables;

/// A command as it has to be typed to act on another home than this one.
pub(super) fn in_home(command: &str, theirs: Option<&Variables>, own: &Variables) -> String {
    let Some(theirs) = theirs else { return command.to_owned() };
    let is_set = |name: &str| theirs.contains_key(name);
    let mut words: Vec<String> = Vec::new();
    for name in HOME_VARIABLES {
        // What a stronger variable overrides does not matter.
        let matters = match name {
            "LOCALD_HOME" => true,
            "HOME" => !is_set("LOCALD_HOME") && !is_set("XDG_STATE_HOME"),
            _ => !is_set("LOCALD_HOME"),
        };
        match (theirs.get(name), own.get(name)) {
            (theirs, own) if theirs == own || !matters => {}
            (Some(value), _) => words.push(format!("{name}={}", quoted(value))),
            // Nothing counts as unset.
            (None, _) => words.push(format!("{name}=")),
        }
    }
    words.push(command.to_owned());
    words.join(" ")
}

pub(super) fn word(path: &(impl AsRef<OsStr> + ?Sized)) -> String {
    // A path that is no text cannot be typed as one; it shows with the marks of what is missing.
    quoted(&path.as_ref().to_string_lossy())
}

/// One word for a shell (POSIX XCU 2.2.2: within single quotes nothing means anything but the quote).
pub(crate) fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}
