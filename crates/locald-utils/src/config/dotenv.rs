//! The text of an `env_file`: lines `NAME=value`, as shells and most dotenv readers understand them.
//!
//! Decides what such a file means and where it is wrong; reading the file and merging several is for `resolve`. It is
//! our own reader because of three promises: every mistake has its line and column; `$NAME` takes names as shells do
//! (`$DB_HOST` is one name) and looks into the files before it looks into the environment, so that what a file sets is
//! what the file uses; and a `$` that starts no name stays.

use std::collections::BTreeMap;

/// What is wrong in an env file, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// From 1.
    pub(super) line: usize,
    /// From 1, in characters.
    pub(super) column: usize,
    pub(super) message: &'static str,
}

/// Reads the text of an env file into `variables`, over what they already hold. `seen` is told each name and the line where its
/// assignment begins.
///
/// Lines after a fault are read, too, so that every fault is found. `lookup` answers references to what neither this
/// file nor an earlier one sets.
pub(super) fn read(
    text: &str,
    variables: &mut BTreeMap<String, String>,
    lookup: &dyn Fn(&str) -> Option<String>,
    mut seen: impl FnMut(&str, usize),
) -> Vec<Fault> {
    let mut reader = Reader { rest: text, line: 1, column: 1 };
    let mut faults = Vec::new();
    while reader.peek().is_some() {
        let line = reader.line;
        match reader.assignment(variables, lookup) {
            Ok(Some((name, value))) => {
                seen(&name, line);
                variables.insert(name, value);
            }
            Ok(None) => {}
            Err(fault) => {
                faults.push(fault);
                reader.skip_line();
            }
        }
    }
    faults
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
    column: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.line += 1;
            self.column = 1;
        } else {
            self.column += 1;
        }
        Some(c)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(c) = self.peek().filter(|c| wanted(*c)) {
            taken.push(c);
            self.take();
        }
        taken
    }

    fn fault(&self, message: &'static str) -> Fault {
        Fault { line: self.line, column: self.column, message }
    }

    fn skip_blanks(&mut self) {
        self.take_while(|c| matches!(c, ' ' | '\t' | '\r'));
    }

    fn skip_line(&mut self) {
        self.take_while(|c| c != '\n');
        self.take();
    }

    /// Reads one line, or several if a quoted value spans them.
    fn assignment(
        &mut self,
        variables: &BTreeMap<String, String>,
        lookup: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<(String, String)>, Fault> {
        self.skip_blanks();
        if matches!(self.peek(), None | Some('\n' | '#')) {
            self.skip_line();
            return Ok(None);
        }
        let mut name = self.name()?;
        self.skip_blanks();
        if name == "export" && self.peek() != Some('=') {
            name = self.name()?;
            self.skip_blanks();
        }
        if self.peek() != Some('=') {
            return Err(self.fault("expected `=` after the name"));
        }
        self.take();
        let is_apart = self.peek().is_some_and(|c| matches!(c, ' ' | '\t'));
        self.skip_blanks();
        let answer = |name: &str| variables.get(name).cloned().or_else(|| lookup(name)).unwrap_or_default();
        let value = self.value(is_apart, &answer)?;
        self.skip_line();
        Ok(Some((name, value)))
    }

    fn name(&mut self) -> Result<String, Fault> {
        if !self.peek().is_some_and(|c| c.is_ascii_alphabetic() || c == '_') {
            return Err(self.fault("expected a name: letters, digits and `_`, not starting with a digit"));
        }
        Ok(self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')))
    }

    /// Reads up to the end of the line or a comment: any sequence of quoted and plain pieces.
    /// A comment has a blank before it; `is_apart` tells whether the value has.
    fn value(&mut self, is_apart: bool, answer: &dyn Fn(&str) -> String) -> Result<String, Fault> {
        let mut value = String::new();
        // Blanks count only if something follows.
        let mut blanks = String::new();
        let mut is_start = is_apart;
        while let Some(c) = self.peek().filter(|c| *c != '\n') {
            if c == '#' && (is_start || !blanks.is_empty()) {
                break;
            }
            is_start = false;
            if matches!(c, ' ' | '\t' | '\r') {
                blanks.push(c);
                self.take();
                continue;
            }
            value.push_str(&std::mem::take(&mut blanks));
            match c {
                '\0' => return Err(self.fault("a value cannot contain a NUL character")),
                '\'' => value.push_str(&self.single_quoted()?),
                '"' => value.push_str(&self.double_quoted(answer)?),
                '$' => value.push_str(&self.reference(answer)?),
                '\\' => {
                    self.take();
                    match self.peek() {
                        Some(c @ (' ' | '\t' | '\\' | '\'' | '"' | '$' | '#')) => {
                            value.push(c);
                            self.take();
                        }
                        Some(_) | None => value.push('\\'),
                    }
                }
                c => {
                    value.push(c);
                    self.take();
                }
            }
        }
        Ok(value)
    }

    fn single_quoted(&mut self) -> Result<String, Fault> {
        let unclosed = self.fault("this quote is never closed");
        self.take();
        let text = self.take_while(|c| c != '\'' && c != '\0');
        match self.take() {
            Some('\'') => Ok(text),
            Some(_) => Err(self.fault("a value cannot contain a NUL character")),
            None => Err(unclosed),
        }
    }

    fn double_quoted(&mut self, answer: &dyn Fn(&str) -> String) -> Result<String, Fault> {
        let unclosed = self.fault("this quote is never closed");
        self.take();
        let mut text = String::new();
        while let Some(c) = self.peek() {
            match c {
                '"' => {
                    self.take();
                    return Ok(text);
                }
                '$' => text.push_str(&self.reference(answer)?),
                '\0' => return Err(self.fault("a value cannot contain a NUL character")),
                '\\' => {
                    self.take();
                    match self.take() {
                        Some('n') => text.push('\n'),
                        Some('r') => text.push('\r'),
                        Some('t') => text.push('\t'),
                        Some(c @ ('\\' | '"' | '\'' | '$' | '`')) => text.push(c),
                        // As in a shell, a backslash at the end of a line joins it with the next.
                        Some('\n') => {}
                        Some('\0') => return Err(self.fault("a value cannot contain a NUL character")),
                        Some(c) => text.extend(['\\', c]),
                        None => return Err(unclosed),
                    }
                }
                c => {
                    text.push(c);
                    self.take();
                }
            }
        }
        Err(unclosed)
    }

    /// Reads what stands for a value that is empty, up to the brace.
    fn default(&mut self, answer: &dyn Fn(&str) -> String) -> Result<String, Fault> {
        let mut text = String::new();
        while let Some(c) = self.peek().filter(|c| !matches!(c, '}' | '\n' | '\0')) {
            if c == '$' {
                text.push_str(&self.reference(answer)?);
            } else {
                text.push(c);
                self.take();
            }
        }
        Ok(text)
    }

    /// Reads `$NAME`, `${NAME}` or `${NAME:-default}`; a `$` before anything else is itself.
    fn reference(&mut self, answer: &dyn Fn(&str) -> String) -> Result<String, Fault> {
        let is_start = |c: char| c.is_ascii_alphabetic() || c == '_';
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let start = self.fault("expected `${NAME}` or `${NAME:-default}`");
        self.take();
        match self.peek() {
            Some(c) if is_start(c) => Ok(answer(&self.take_while(is_name))),
            Some('{') => {
                self.take();
                let name = self.take_while(is_name);
                let default = if self.rest.starts_with(":-") {
                    self.take();
                    self.take();
                    Some(self.default(answer)?)
                } else {
                    None
                };
                if !name.starts_with(is_start) || self.peek() != Some('}') {
                    return Err(start);
                }
                self.take();
                let found = answer(&name);
                Ok(if found.is_empty() { default.unwrap_or_default() } else { found })
            }
            Some(_) | None => Ok("$".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        matches!(name, "HOME" | "HOST").then(|| format!("caller's {name}"))
    }

    fn read_all(text: &str) -> (BTreeMap<String, String>, Vec<Fault>) {
        let mut variables = BTreeMap::new();
        let faults = read(text, &mut variables, &lookup, |_, _| {});
        (variables, faults)
    }

    #[test]
    fn values_are_read_as_shells_and_dotenv_readers_do() {
        let cases = [
            ("A=1", "1"),
            ("export A=1", "1"),
            ("  A = 1  ", "1"),
            ("A=", ""),
            ("A= # note", ""),
            ("A=x#y # note", "x#y"),
            ("A=hello  big world", "hello  big world"),
            ("A=postgres://u:p@h/db?a=b&c==", "postgres://u:p@h/db?a=b&c=="),
            ("A='$HOME # \\n'", "$HOME # \\n"),
            ("A=\"a\\nb\\t\\\"\\$x\\q\"", "a\nb\t\"$x\\q"),
            ("A=\"first\nsecond\"", "first\nsecond"),
            ("A='it'\\''s'", "it's"),
            ("A=C:\\dir", "C:\\dir"),
            ("A=$HOME/x", "caller's HOME/x"),
            ("A=${NOWHERE:-fallback}/x", "fallback/x"),
            ("A=${HOME:-fallback}", "caller's HOME"),
            ("A=$NOWHERE.", "."),
            ("A=#c", "#c"),
            ("A=${NOWHERE:-${HOME}/y}", "caller's HOME/y"),
            ("A=${HOME:-${NOWHERE}}", "caller's HOME"),
            ("A=\"${NOWHERE:-${NOWHERE:-x} $HOME}\"", "x caller's HOME"),
            ("A=pa$$5$", "pa$$5$"),
            ("A=1\r\n", "1"),
            ("# note\r\n\r\nA=1", "1"),
            ("A=1\nA=2", "2"),
        ];
        for (text, value) in cases {
            let (variables, faults) = read_all(text);
            assert_eq!(faults, [], "{text:?}");
            assert_eq!(variables, BTreeMap::from([("A".to_owned(), value.to_owned())]), "{text:?}");
        }
    }

    #[test]
    fn a_reference_takes_what_the_file_sets_before_what_the_caller_has() {
        let (variables, _) = read_all("HOST=local\nDB_HOST=$HOST\nURL=http://$DB_HOST/");
        assert_eq!(variables["URL"], "http://local/");
    }

    #[test]
    fn every_fault_is_found_with_its_place() {
        let (variables, faults) = read_all("1A=x\nB\nC=${x y}\n é=1\nD=1\nE='never\nclosed\n");
        let places: Vec<_> = faults.iter().map(|fault| (fault.line, fault.column)).collect();
        assert_eq!(places, [(1, 1), (2, 2), (3, 3), (4, 2), (6, 3)]);
        assert_eq!(variables, BTreeMap::from([("D".to_owned(), "1".to_owned())]));
    }
}
