//! `${services.NAME.port}` in commands and environment values.
//!
//! Finds the references in a text, checks them against the declared services, and makes a [`Template`]. Every other use
//! of `$` is left for the shell. A number that the file has is filled in, so that another one makes another spec of whoever
//! mentions it; which number is chosen for `"auto"` is known when a run starts, not here.

use std::ops::Range;

use super::diagnostic::Mistake;
use super::resolve::Declared;
use super::value::Text;
use crate::name::{ServiceName, nearest};
use crate::spec::{Part, Template};

const OPENING: &str = "${services.";

/// Makes a template of a text as written; a reference that cannot hold is noted and left out.
pub(super) fn template(text: &Text, source: &str, declared: &Declared<'_>, mistakes: &mut Vec<Mistake>) -> Template {
    let mut parts = Vec::new();
    let mut rest = text.text.as_str();
    let mut places = places(text, source).into_iter();
    while let Some(start) = rest.find(OPENING) {
        let (before, reference) = rest.split_at(start);
        push_text(&mut parts, before);
        let length = reference.find('}').map_or(reference.len(), |brace| brace + 1);
        let (reference, after) = reference.split_at(length);
        let place = places.next().unwrap_or_else(|| text.span.clone());
        match service_of(reference, declared, place) {
            Ok(port_of) => match declared.fixed_port(port_of.as_str()) {
                Some(port) => push_text(&mut parts, &port.to_string()),
                None => parts.push(Part::Port { port_of }),
            },
            Err(mistake) => mistakes.extend(mistake),
        }
        rest = after;
    }
    if parts.is_empty() {
        parts.push(Part::Text(String::new()));
    }
    push_text(&mut parts, rest);
    Template(parts)
}

/// Adds text to the last part, if that is text as well: a template is written in one way only.
fn push_text(parts: &mut Vec<Part>, text: &str) {
    match parts.last_mut() {
        Some(Part::Text(last)) => last.push_str(text),
        Some(Part::Port { .. }) | None if text.is_empty() => {}
        Some(Part::Port { .. }) | None => parts.push(Part::Text(text.to_owned())),
    }
}

/// Checks one reference: `${services.` up to its brace, or to the end of the text.
///
/// Fails without a mistake if that is noted elsewhere.
fn service_of(reference: &str, declared: &Declared<'_>, place: Range<usize>) -> Result<ServiceName, Option<Mistake>> {
    const FORM: &str = "a reference is written `${services.NAME.port}`";
    let shown = reference.escape_debug();
    let Some(inner) = reference.strip_prefix(OPENING).and_then(|inner| inner.strip_suffix('}')) else {
        return Err(Some(Mistake::at(place, format!("`{shown}` has no closing brace")).help(FORM)));
    };
    let Some(name) = inner.strip_suffix(".port") else {
        return Err(Some(Mistake::at(place, format!("`{shown}` is not a reference")).help(FORM)));
    };
    let Some(has_port) = declared.has_port(name) else {
        let help = match nearest(name, declared.names()) {
            Some(near) => format!("did you mean `{OPENING}{near}.port}}`?"),
            None => format!("the services are {}", declared.list()),
        };
        let message = format!("there is no service `{}`", name.escape_debug());
        return Err(Some(Mistake::at(place, message).help(help).absence()));
    };
    if !has_port {
        let help = format!("give `{name}` a `port`; with \"auto\", locald chooses one");
        return Err(Some(Mistake::at(place, format!("service `{name}` has no port")).help(help).absence()));
    }
    // A name that is declared and yet not valid is noted where it is declared.
    name.parse().map_err(|_| None)
}

/// Finds the references of a text in the source.
///
/// Escapes make the text differ from the source. Where the references cannot be told apart for them, there are no places,
/// and the whole value has to do.
fn places(text: &Text, source: &str) -> Vec<Range<usize>> {
    let raw = source.get(text.span.clone()).unwrap_or_default();
    let starts: Vec<usize> = raw.match_indices(OPENING).map(|(offset, _)| offset).collect();
    if starts.len() != text.text.matches(OPENING).count() {
        return Vec::new();
    }
    let end_of = |start: usize| {
        let inner = start + OPENING.len();
        // Up to the brace, if nothing comes before it that no name has.
        let length = raw[inner..].find(|c: char| !(c.is_alphanumeric() || matches!(c, '-' | '_' | '.')));
        let end = length.map_or(raw.len(), |length| inner + length);
        if raw[end..].starts_with('}') { end + 1 } else { end }
    };
    starts.into_iter().map(|start| text.span.start + start..text.span.start + end_of(start)).collect()
}
