//! TOML with mistakes: from text to a table, and every syntax error on the way.
//!
//! The parser recovers from errors; here its complaints are put in order. One mistake is reported once: an unclosed
//! bracket, which swallows the lines after it, at the bracket; a table declared twice, without its keys. What is left of
//! a torn line is not to be trusted, and [`Syntax::trusts`] says which later findings are. What the keys mean is none of
//! this module's business.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Mistake;
use super::value::in_order;

/// 20: so many unclosed brackets or repeated keys are looked into; files that are not TOML at all stay quick to read.
const MAX_LOOKED_INTO: usize = 20;

/// What is wrong with a text as TOML.
#[derive(Debug, Default)]
pub(super) struct Syntax {
    pub(super) mistakes: Vec<Mistake>,
    /// Where syntax errors are: whole lines, in bytes, from start to end.
    torn: BTreeMap<usize, usize>,
}

impl Syntax {
    /// Tells whether a mistake found in the table is one of the text, rather than a consequence of a syntax error.
    pub(super) fn trusts(&self, mistake: &Mistake) -> bool {
        !self.is_torn(mistake.span.start) && (self.torn.is_empty() || !mistake.is_absence)
    }

    fn is_torn(&self, offset: usize) -> bool {
        self.torn.range(..=offset).next_back().is_some_and(|(_, end)| offset < *end)
    }

    /// Notes a syntax error and the lines it spoils, unless these are spoilt already.
    fn note(&mut self, lines: &Range<usize>, mistake: Mistake) {
        if !self.is_torn(lines.start) {
            self.torn.insert(lines.start, lines.end);
            self.mistakes.push(mistake);
        }
    }
}

/// Blanks out what keeps the parser from reading on, noting each: brackets and quotes that are never closed, which
/// swallow the lines after them, and keys without a value, which make it drop the rest of their table.
///
/// No offset changes.
pub(super) fn repaired(source: &str, syntax: &mut Syntax) -> String {
    let mut text = source.to_owned();
    for _ in 0..MAX_LOOKED_INTO {
        let (_, errors) = DeTable::parse_recoverable(&text);
        let is_unclosed = errors.iter().any(|error| {
            let starts = ["unclosed array", "unclosed inline table", "invalid multi-line"];
            starts.iter().any(|start| error.message().starts_with(start))
        });
        if let Some(bracket) = first_unclosed(&text).filter(|_| is_unclosed) {
            let lines = swallowed_lines(&text, bracket.start);
            let shown = &source[bracket.clone()];
            let mistake = Mistake::at(bracket, format!("this `{shown}` is never closed"));
            syntax.note(&lines, mistake.help(format!("add `{}`", closing(shown))));
            blank(&mut text, lines);
            continue;
        }
        let keys: Vec<Range<usize>> = errors
            .iter()
            .filter(|error| error.message().starts_with("key with no value"))
            .filter_map(toml::de::Error::span)
            .collect();
        if keys.is_empty() {
            break;
        }
        for key in keys {
            let line = line_of(&text, key.start);
            syntax.note(&line, syntax_mistake(&text, key, "key with no value"));
            blank(&mut text, line);
        }
    }
    text
}

/// Parses a text as far as it can be understood.
pub(super) fn table<'a>(text: &'a str, syntax: &mut Syntax) -> DeTable<'a> {
    let (table, errors) = DeTable::parse_recoverable(text);
    note_errors(text, &errors, syntax);
    table.into_inner()
}

/// Notes the errors of the parser: the first of each line, repeated keys apart.
fn note_errors(text: &str, errors: &[toml::de::Error], syntax: &mut Syntax) {
    let mut errors: Vec<(Range<usize>, &str)> =
        errors.iter().map(|error| (error.span().unwrap_or(0..0), error.message())).collect();
    errors.sort_by_key(|(span, _)| span.start);
    let (duplicates, others): (Vec<_>, Vec<_>) =
        errors.into_iter().partition(|(_, message)| *message == "duplicate key");
    for (span, message) in others {
        let line = line_of(text, span.start);
        syntax.note(&line, syntax_mistake(text, span, message));
    }
    let mut repeated_headers = Vec::new();
    for (span, _) in duplicates.into_iter().take(MAX_LOOKED_INTO) {
        // A name that a torn line lacks is the empty one, and easily comes twice.
        if !syntax.is_torn(span.start) {
            syntax.mistakes.extend(duplicate(text, span, &mut repeated_headers));
        }
    }
}

/// Puts an error of the parser in words.
fn syntax_mistake(text: &str, span: Range<usize>, message: &str) -> Mistake {
    let (what, expected) = match message.split_once(", expected ") {
        Some((what, expected)) => (what, expected),
        None => (message, "nothing"),
    };
    let found = text.get(span.clone()).unwrap_or_default().trim();
    if what == "string values must be quoted" {
        return if found.is_empty() {
            Mistake::at(span, "there is no value after `=`").help("add one, or take the line out")
        } else {
            Mistake::at(span, "text must be in quotes").help(format!("write {found:?}"))
        };
    }
    if what == "missing escaped value" {
        let mistake = Mistake::at(span, "unknown escape in a string");
        return mistake.help("a backslash is written `\\\\`; in single quotes it is itself");
    }
    if matches!(what, "invalid basic string" | "invalid literal string") {
        let mistake = Mistake::at(span, "this string is never closed");
        return mistake.help(format!("a string ends on its line; {expected} is missing"));
    }
    let mistake = Mistake::at(span, format!("not valid TOML: {what}"));
    match (what, expected) {
        ("key with no value", _) => mistake.help("write `key = value`, or `[key]` for a table"),
        ("unclosed table", _) => mistake.help("add `]`"),
        ("unexpected leading zero", _) => mistake.help("write the number without the zero, or in quotes"),
        (_, "nothing") => mistake.help("https://toml.io/en/v1.0.0 describes the format"),
        (_, expected) => mistake.help(format!("expected {expected}")),
    }
}

/// Finds the first bracket of a value, or triple quotes, that nothing closes.
fn first_unclosed(text: &str) -> Option<Range<usize>> {
    let mut open: Vec<usize> = Vec::new();
    let mut rest = text;
    let mut is_line_start = true;
    while let Some(c) = rest.chars().next() {
        let at = text.len() - rest.len();
        let mut length = c.len_utf8();
        match c {
            // A header, not a value.
            '[' if is_line_start && open.is_empty() => length = rest.find('\n').unwrap_or(rest.len()),
            '#' => length = rest.find('\n').unwrap_or(rest.len()),
            '"' | '\'' => match string_length(rest, c) {
                Some(closed) => length = closed,
                None => return Some(open.first().map_or(at..at + 3, |bracket| *bracket..bracket + 1)),
            },
            '[' | '{' => open.push(at),
            ']' | '}' => {
                let is_match = |at: &usize| closing(&text[*at..=*at]).starts_with(c);
                match open.last() {
                    Some(last) if is_match(last) => {
                        open.pop();
                    }
                    Some(last) if open.iter().any(is_match) => return Some(*last..last + 1),
                    Some(_) | None => {}
                }
            }
            _ => {}
        }
        is_line_start = c == '\n' || (is_line_start && c.is_whitespace());
        rest = &rest[length..];
    }
    open.first().map(|bracket| *bracket..bracket + 1)
}

/// The length of the string at the start of a text, which a line end ends as well, unless its quotes are triple.
///
/// `None` if triple quotes are never closed.
fn string_length(text: &str, quote: char) -> Option<usize> {
    let triple: String = [quote; 3].iter().collect();
    let (start, end) = if text.starts_with(&triple) { (3, triple.as_str()) } else { (1, &triple[..1]) };
    let mut is_escaped = false;
    for (offset, c) in text.char_indices().skip(start) {
        if is_escaped {
            is_escaped = false;
        } else if c == '\\' && quote == '"' {
            is_escaped = true;
        } else if text[offset..].starts_with(end) {
            return Some(offset + end.len());
        } else if c == '\n' && start == 1 {
            return Some(offset);
        }
    }
    (start == 1).then_some(text.len())
}

fn closing(opening: &str) -> &str {
    match opening {
        "[" => "]",
        "{" => "}",
        quotes => quotes,
    }
}

/// The line of an unclosed bracket and those after it, up to one that looks like a key or a header.
fn swallowed_lines(text: &str, bracket: usize) -> Range<usize> {
    let first = line_of(text, bracket);
    let mut end = first.end;
    for line in text.get(first.end..).unwrap_or_default().split_inclusive('\n') {
        let start = line.trim_start();
        let key = start.trim_start_matches(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '"' | '\''));
        let is_key = key.len() < start.len() && key.trim_start().starts_with('=');
        if start.starts_with('[') || is_key {
            break;
        }
        end += line.len();
    }
    first.start..end
}

/// Replaces lines by blanks; no other offset changes.
fn blank(text: &mut String, lines: Range<usize>) {
    let lines = lines.start..lines.end.min(text.len());
    let blanks: String = text[lines.clone()].bytes().map(|byte| if byte == b'\n' { '\n' } else { ' ' }).collect();
    text.replace_range(lines, &blanks);
}

/// The line around an offset, with its line feed; the end of the text counts as one.
fn line_of(text: &str, offset: usize) -> Range<usize> {
    let offset = text.floor_char_boundary(offset.min(text.len()));
    let start = text[..offset].rfind('\n').map_or(0, |newline| newline + 1);
    let end = text[offset..].find('\n').map_or(text.len() + 1, |newline| offset + newline + 1);
    start..end.max(start + 1)
}

/// Visits every key of a table and of the tables and arrays in it.
fn walk<'a>(table: &'a DeTable<'a>, visit: &mut dyn FnMut(Option<Range<usize>>, &'a Spanned<DeValue<'a>>)) {
    for (key, value) in in_order(table) {
        walk_value(Some(key.span()), value, visit);
    }
}

fn walk_value<'a>(
    key: Option<Range<usize>>,
    value: &'a Spanned<DeValue<'a>>,
    visit: &mut dyn FnMut(Option<Range<usize>>, &'a Spanned<DeValue<'a>>),
) {
    visit(key, value);
    match value.get_ref() {
        DeValue::Table(table) => walk(table, visit),
        DeValue::Array(array) => array.iter().for_each(|value| walk_value(None, value, visit)),
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {}
    }
}

/// Makes a mistake of a repeated key or table, with the place where it was given first.
///
/// The parser merges a table declared twice into the first and complains about each key in it again; those complaints
/// are dropped. `repeated_headers` holds where such tables begin.
fn duplicate(text: &str, span: Range<usize>, repeated_headers: &mut Vec<usize>) -> Option<Mistake> {
    let line = line_of(text, span.start);
    let before_key = text.get(line.start..span.start)?;
    let header = before_key.trim_start();
    if header.starts_with('[') {
        repeated_headers.push(span.start - header.len());
        return Some(duplicate_table(text, span, line));
    }
    let table = DeTable::parse_recoverable(text.get(..span.start)?).0;
    let header = last_header(text, table.get_ref());
    if header.is_some_and(|header| repeated_headers.contains(&header)) {
        return None;
    }
    let shown = text.get(span.clone())?;
    let is_inline = before_key.contains(['{', ',']);
    let mut first = None;
    walk(table.get_ref(), &mut |key, _| {
        let Some(key) = key.filter(|key| Some(key.start) > header && text.get(key.clone()) == Some(shown)) else {
            return;
        };
        let before = &text[line_of(text, key.start).start..key.start];
        if is_inline || before.trim() == before_key.trim() {
            first = first.max(Some(key.start));
        }
    });
    let mistake = Mistake::at(span, format!("`{}` is given twice", shown.escape_debug())).help("keep one of them");
    Some(match first {
        Some(first) => mistake.also(first..first + shown.len(), "first here"),
        None => mistake,
    })
}

fn duplicate_table(text: &str, span: Range<usize>, line: Range<usize>) -> Mistake {
    let before = DeTable::parse_recoverable(&text[..line.start]).0;
    let header = DeTable::parse_recoverable(text[line.start..].lines().next().unwrap_or_default()).0;
    // Follow the names of this header through the tables before it.
    let (mut header, mut before) = (header.get_ref(), Some(before.get_ref()));
    let (mut path, mut first) = (Vec::new(), None);
    while let Some((name, inner)) = header.iter().next() {
        path.push(name.get_ref().escape_debug().to_string());
        let earlier = before.and_then(|table| table.get_key_value(name.get_ref().as_ref()));
        first = earlier.map(|(key, _)| key.span());
        before = earlier.and_then(|(_, value)| last_table(value.get_ref()));
        match last_table(inner.get_ref()) {
            Some(inner) => header = inner,
            None => break,
        }
    }
    let message = match path.as_slice() {
        [services, name] if services == "services" => format!("service `{name}` is declared twice"),
        path => format!("table `{}` is declared twice", path.join(".")),
    };
    let mistake = Mistake::at(span, message).help("rename one, or put their keys together");
    match first {
        Some(first) => mistake.also(first, "first here"),
        None => mistake,
    }
}

/// A table, or the last one of an array of tables: what a header goes on with.
fn last_table<'a>(value: &'a DeValue<'a>) -> Option<&'a DeTable<'a>> {
    match value {
        DeValue::Table(table) => Some(table),
        DeValue::Array(array) => array.last().and_then(|value| last_table(value.get_ref())),
        DeValue::String(_) | DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => {
            None
        }
    }
}

/// Where the last header of a text begins.
fn last_header(text: &str, table: &DeTable<'_>) -> Option<usize> {
    let mut last = None;
    walk(table, &mut |_, value| {
        let start = value.span().start;
        if matches!(value.get_ref(), DeValue::Table(_)) && text[start..].starts_with('[') {
            last = last.max(Some(start));
        }
    });
    last
}
