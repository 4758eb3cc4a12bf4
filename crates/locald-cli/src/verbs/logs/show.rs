//! Shows the entries of logs: as text for people, as the bytes that came, or as JSON for programs.
//!
//! A line of one service may come in pieces, and another service may have a line in between: then the piece is ended,
//! and the rest of the line gets a prefix of its own.

use std::borrow::Cow;
use std::io::{self, Write};

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use locald_utils::log::{Entry, Escapes, Line, LineEnd, LineText, Stream, plain};
use locald_utils::name::{RunNumber, ServiceName};
use locald_utils::time::UnixMillis;
use regex::bytes::Regex;
use serde::Serialize;

/// The version of the JSON records. They only grow; a program that knows 1 can read whatever says 1.
const SCHEMA: u32 = 1;

/// 20 characters: longer names are shortened in prefixes, so that the text still has room.
const MAX_PREFIX: usize = 20;

/// 64 KiB: what is collected before it is written.
const BUFFER_BYTES: usize = 64 * 1024;

/// Colours of prefixes: the 16 that every terminal has in legible shades, without red and yellow, which mean trouble, and
/// without the dim ones.
const PALETTE: [&str; 8] = ["36", "32", "35", "34", "96", "92", "95", "94"];

/// How entries are shown.
#[derive(Clone, Debug)]
pub(super) struct Style {
    /// The form.
    pub(super) form: Form,
    /// Only lines that match.
    pub(super) grep: Option<Regex>,
    /// Only lines of this stream.
    pub(super) stream: Option<Stream>,
}

/// The form in which entries are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Lines for people.
    Text {
        /// Whether each has the name of its service.
        has_prefix: bool,
        /// Whether each has the time it came.
        has_time: bool,
        /// Whether prefixes are coloured.
        has_color: bool,
        /// Whether lines of stderr are marked as such.
        has_streams: bool,
        /// Which escape sequences of the service stay.
        escapes: Escapes,
    },
    /// The bytes as they came.
    Raw,
    /// One JSON object for each entry.
    Json,
}

/// Writes entries.
pub(super) struct Printer<'a> {
    out: &'a mut dyn Write,
    style: Style,
    services: Vec<Shown>,
    /// The service whose line is written in part, and the stream.
    open: Option<(usize, Option<Stream>)>,
    buffer: Vec<u8>,
    clock: Clock,
}

/// What is known of a service while its log is shown.
struct Shown {
    name: ServiceName,
    /// What lines begin with, and those of stderr.
    prefix: String,
    stderr_prefix: String,
    /// Whether something has been shown, so that the next run is a restart.
    is_begun: bool,
    last_run: Option<RunNumber>,
    last_end: Option<UnixMillis>,
    /// A boundary that is shown only if a line of the run is.
    boundary: Option<String>,
    /// The line of each stream.
    lines: [LineInProgress; Stream::PLACES],
}

struct LineInProgress {
    text: LineText,
    state: LineState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineState {
    /// The next piece begins a line.
    Between,
    /// Pieces of a line that is shown have come.
    Within,
    /// Pieces of a line that is not shown have come.
    Hidden,
}

impl<'a> Printer<'a> {
    /// Shows the logs of `names`, at `now`, on `out`.
    pub(super) fn new(out: &'a mut dyn Write, style: Style, names: &[&ServiceName], now: &Zoned) -> Self {
        let width = names.iter().map(|name| name.as_str().len()).max().unwrap_or(0).min(MAX_PREFIX);
        let escapes = match style.form {
            Form::Text { escapes, .. } => escapes,
            Form::Raw | Form::Json => Escapes::Strip,
        };
        let services = names
            .iter()
            .map(|name| Shown {
                name: (*name).clone(),
                prefix: prefix(name, width, style.form, "|"),
                stderr_prefix: stderr_prefix(name, width, style.form),
                is_begun: false,
                last_run: None,
                last_end: None,
                boundary: None,
                lines: std::array::from_fn(|_| LineInProgress {
                    text: LineText::new(escapes),
                    state: LineState::Between,
                }),
            })
            .collect();
        Self { out, style, services, open: None, buffer: Vec::new(), clock: Clock::new(now) }
    }

    /// From now on whatever begins is news: a run that starts is shown even if it is the first.
    pub(super) fn expect_news(&mut self) {
        for service in &mut self.services {
            service.is_begun = true;
        }
    }

    /// Shows what `service`, by its place, has next.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn show(&mut self, service: usize, entry: &Entry<'_>) -> io::Result<()> {
        match self.style.form {
            Form::Text { has_time, .. } => self.show_text(service, entry, has_time),
            Form::Raw => self.show_raw(service, entry),
            Form::Json => self.show_json(service, entry)?,
        }
        if self.buffer.len() >= BUFFER_BYTES { self.write() } else { Ok(()) }
    }

    /// Writes what has been collected.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.write()?;
        self.out.flush()
    }

    fn write(&mut self) -> io::Result<()> {
        self.out.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn show_text(&mut self, at: usize, entry: &Entry<'_>, has_time: bool) {
        match entry {
            Entry::Line(line) => self.show_line(at, line, has_time),
            Entry::Started { run, at: time } => {
                let is_restart = self.services[at].is_begun && self.services[at].last_run != Some(*run);
                let boundary = is_restart.then(|| self.boundary(at, *run, *time));
                let service = &mut self.services[at];
                service.last_run = Some(*run);
                service.is_begun = true;
                match boundary {
                    // Among the lines that match, runs without one are of no interest.
                    Some(boundary) if self.style.chooses() => service.boundary = Some(boundary),
                    Some(boundary) => self.show_notice(&boundary),
                    None => {}
                }
            }
            Entry::Continued { run, started_at, .. } => {
                let service = &mut self.services[at];
                service.last_run = Some(*run);
                service.is_begun = true;
                let notice = format!(
                    "{}{run}, started {}: its output before this is no longer kept",
                    service.name,
                    self.clock.time_of_day(*started_at)
                );
                self.show_notice(&notice);
            }
            Entry::Ended { at: time, .. } => self.services[at].last_end = Some(*time),
            Entry::Gap { run, lost, .. } => {
                let name = &self.services[at].name;
                let lost = grouped(*lost);
                let notice =
                    format!("{name}{run}: up to {lost} bytes are missing here, they could not be kept in the log");
                self.show_notice(&notice);
            }
            Entry::Restarted => {
                let name = &self.services[at].name;
                let notice = format!("{name}: output is missing here, the log was deleted or emptied");
                self.show_notice(&notice);
            }
        }
    }

    fn show_line(&mut self, at: usize, line: &Line<'_>, has_time: bool) {
        if !self.is_wanted(at, line) {
            return;
        }
        let open = Some((at, line.stream));
        // The end of a line whose pieces have been shown, and ended, before.
        if self.open != open && line.bytes.is_empty() {
            return;
        }
        if self.open != open {
            self.close();
            if let Some(boundary) = self.services[at].boundary.take() {
                self.show_notice(&boundary);
            }
            let service = &self.services[at];
            let prefix = if line.stream == Some(Stream::Stderr) { &service.stderr_prefix } else { &service.prefix };
            self.buffer.extend_from_slice(prefix.as_bytes());
            if has_time {
                let time = line.time.map_or("-", |time| self.clock.local(time));
                self.buffer.extend_from_slice(time.as_bytes());
                self.buffer.push(b' ');
            }
            self.open = open;
        }
        self.services[at].lines[Stream::place(line.stream)].text.push(line.bytes, &mut self.buffer);
        match line.end {
            LineEnd::Continues => {}
            LineEnd::Newline | LineEnd::Unfinished => self.close(),
        }
    }

    /// Whether the line that this is a piece of is shown. Decided by its first piece.
    fn is_wanted(&mut self, at: usize, line: &Line<'_>) -> bool {
        let service = &mut self.services[at];
        service.is_begun = true;
        service.last_run = line.run.or(service.last_run);
        let state = &mut service.lines[Stream::place(line.stream)].state;
        let is_wanted = match state {
            LineState::Between => self.style.wants(line),
            LineState::Within => true,
            LineState::Hidden => false,
        };
        *state = match line.end {
            LineEnd::Newline | LineEnd::Unfinished => LineState::Between,
            LineEnd::Continues if is_wanted => LineState::Within,
            LineEnd::Continues => LineState::Hidden,
        };
        is_wanted
    }

    /// Ends a line that is written in part.
    fn close(&mut self) {
        if let Some((open, stream)) = self.open.take() {
            self.services[open].lines[Stream::place(stream)].text.end(&mut self.buffer);
            self.buffer.push(b'\n');
        }
    }

    fn show_notice(&mut self, notice: &str) {
        self.close();
        self.buffer.extend_from_slice(b"--- ");
        self.buffer.extend_from_slice(notice.as_bytes());
        self.buffer.extend_from_slice(b" ---\n");
    }

    fn boundary(&self, at: usize, run: RunNumber, time: UnixMillis) -> String {
        let Shown { name, last_run, last_end, .. } = &self.services[at];
        let started = self.clock.time_of_day(time);
        match (last_run, last_end) {
            (None, _) => format!("{name}{run} started {started}"),
            (Some(_), Some(end)) => {
                format!("{name}{run} started {started} (previous ended {})", self.clock.time_of_day(*end))
            }
            (Some(_), None) => format!("{name}{run} started {started} (end of previous not on record)"),
        }
    }

    fn show_raw(&mut self, at: usize, entry: &Entry<'_>) {
        let Entry::Line(line) = entry else { return };
        if !self.is_wanted(at, line) {
            return;
        }
        // With one service, and one stream of it, these are exactly its bytes.
        let own = (at, line.stream);
        if self.open.take().is_some_and(|open| open != own) {
            self.buffer.push(b'\n');
        }
        self.buffer.extend_from_slice(line.bytes);
        if line.end != LineEnd::Newline {
            self.open = Some(own);
        }
    }

    fn show_json(&mut self, at: usize, entry: &Entry<'_>) -> io::Result<()> {
        if let Entry::Line(line) = entry
            && !self.is_wanted(at, line)
        {
            return Ok(());
        }
        let mut shown = Vec::new();
        let service = &mut self.services[at];
        let (kind, run) = match entry {
            Entry::Started { run, .. } => (Kind::Start, Some(*run)),
            Entry::Continued { run, started_at, .. } => {
                (Kind::Continued { started_at: self.clock.utc(*started_at).to_owned() }, Some(*run))
            }
            Entry::Ended { run, .. } => (Kind::End, Some(*run)),
            Entry::Gap { run, lost, .. } => (Kind::Gap { lost_bytes: *lost }, Some(*run)),
            Entry::Restarted => (Kind::Restarted, None),
            Entry::Line(line) => {
                let LineInProgress { text, .. } = &mut service.lines[Stream::place(line.stream)];
                text.push(line.bytes, &mut shown);
                if line.end != LineEnd::Continues {
                    text.end(&mut shown);
                }
                let text = String::from_utf8_lossy(&shown);
                let partial = line.end == LineEnd::Continues;
                let unfinished = line.end == LineEnd::Unfinished;
                (Kind::Line { stream: line.stream, text, partial, unfinished }, line.run)
            }
        };
        let time = entry.time().map(|time| self.clock.utc(time));
        let record = Record { schema: SCHEMA, service: &service.name, run, time, kind };
        serde_json::to_writer(&mut self.buffer, &record)?;
        self.buffer.push(b'\n');
        Ok(())
    }
}

impl Style {
    /// Whether a line is shown whose first piece this is.
    pub(super) fn wants(&self, line: &Line<'_>) -> bool {
        let is_of_stream = self.stream.is_none_or(|stream| line.stream == Some(stream));
        is_of_stream && self.grep.as_ref().is_none_or(|grep| grep.is_match(&plain(line.bytes)))
    }

    /// Whether some lines are not shown.
    pub(super) fn chooses(&self) -> bool {
        self.grep.is_some() || self.stream.is_some()
    }
}

/// One line of `logs --json`.
#[derive(Serialize)]
struct Record<'a> {
    schema: u32,
    service: &'a ServiceName,
    run: Option<RunNumber>,
    time: Option<&'a str>,
    #[serde(flatten)]
    kind: Kind<'a>,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Kind<'a> {
    Line {
        /// By which stream it came; a terminal has but one.
        #[serde(skip_serializing_if = "Option::is_none")]
        stream: Option<Stream>,
        text: Cow<'a, str>,
        /// The next line record of this service and stream goes on with the same line.
        #[serde(skip_serializing_if = "is_false")]
        partial: bool,
        /// There was no newline.
        #[serde(skip_serializing_if = "is_false")]
        unfinished: bool,
    },
    Start,
    Continued {
        started_at: String,
    },
    End,
    Gap {
        lost_bytes: u64,
    },
    Restarted,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(fact: &bool) -> bool {
    !fact
}

/// Writes times. Lines that came together have the same, so the last one is kept.
struct Clock {
    zone: TimeZone,
    today: jiff::civil::Date,
    last: Option<UnixMillis>,
    text: String,
}

impl Clock {
    fn new(now: &Zoned) -> Self {
        Self { zone: now.time_zone().clone(), today: now.date(), last: None, text: String::new() }
    }

    /// RFC 3339 in local time, to the millisecond: what `--since` understands.
    fn local(&mut self, time: UnixMillis) -> &str {
        if self.last != Some(time) {
            self.last = Some(time);
            self.text = self.zoned(time).strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string();
        }
        &self.text
    }

    /// RFC 3339 in UTC, to the millisecond.
    fn utc(&mut self, time: UnixMillis) -> &str {
        if self.last != Some(time) {
            self.last = Some(time);
            self.text = timestamp(time).strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        }
        &self.text
    }

    /// The time of day, with the date if that is not today.
    fn time_of_day(&self, time: UnixMillis) -> String {
        let time = self.zoned(time);
        let form = if time.date() == self.today { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
        time.strftime(form).to_string()
    }

    fn zoned(&self, time: UnixMillis) -> Zoned {
        timestamp(time).to_zoned(self.zone.clone())
    }
}

fn timestamp(time: UnixMillis) -> Timestamp {
    i64::try_from(time.0).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX)
}

/// What lines of a service begin with, with `bar` between its name and the line.
fn prefix(name: &ServiceName, width: usize, form: Form, bar: &str) -> String {
    match form {
        Form::Text { has_prefix: true, has_color, .. } => {
            let short = shortened(name.as_str());
            let color = PALETTE[hash(name.as_str()) % PALETTE.len()];
            if has_color {
                format!("\x1b[{color}m{short:width$} {bar} \x1b[0m")
            } else {
                format!("{short:width$} {bar} ")
            }
        }
        Form::Text { has_prefix: false, .. } | Form::Raw | Form::Json => String::new(),
    }
}

/// The same for lines of stderr.
fn stderr_prefix(name: &ServiceName, width: usize, form: Form) -> String {
    match form {
        Form::Text { has_streams: true, has_prefix: true, .. } => prefix(name, width, form, "!"),
        // Faint: it is a mark, and no part of the line.
        Form::Text { has_streams: true, has_prefix: false, has_color: true, .. } => "\x1b[2m! \x1b[0m".to_owned(),
        Form::Text { has_streams: true, has_prefix: false, has_color: false, .. } => "! ".to_owned(),
        Form::Text { has_streams: false, .. } | Form::Raw | Form::Json => prefix(name, width, form, "|"),
    }
}

/// Leaves out the middle of a long name, because names of one project often begin or end alike. Names are ASCII.
fn shortened(name: &str) -> Cow<'_, str> {
    if name.len() <= MAX_PREFIX {
        return Cow::Borrowed(name);
    }
    let tail = MAX_PREFIX / 2;
    let head = MAX_PREFIX - tail - 1;
    Cow::Owned(format!("{}…{}", &name[..head], &name[name.len() - tail..]))
}

/// A hash that never changes, so that a service keeps its colour whatever else is shown (FNV-1a).
fn hash(name: &str) -> usize {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 16)) as usize
}

/// A number with its thousands apart: 1,234,567.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
