//! `logs`: shows what services have written, and with `-f` what they write.
//!
//! Reads the log stores and nothing else, so it works with no daemon. [`run`] tells the story: select a part of each
//! log, say what is left out, show the parts merged by time, and follow if asked. `when` understands times, `show`
//! writes, `watch` waits.
//!
//! SIGINT keeps its default action, also with `-f`: the signal ends the process, and the shell sees 130, "interrupted".
//! It is how people leave a follow, but the answer was cut short, and a script that runs `logs -f` must end by the same
//! Ctrl-C instead of going on with its next command. What came before has been written by then. A reader that goes away
//! (`logs -f | head`) has what it wants: that is 0.

mod show;
mod when;

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Zoned;
use locald_utils::log::{Cursor, Entry, Escapes, Follower, LineEnd, LogReader, RunChoice, Selection, Stream};
use locald_utils::name::{RunNumber, ServiceName};
use locald_utils::protocol::{Failure, FailureCode};
use locald_utils::time::UnixMillis;
use regex::bytes::Regex;

use super::watch::{Wake, Watch};
use crate::context::Context;
use crate::failure::Problem;
use crate::screen::Screen;
use show::{Form, Printer, Style, grouped};

/// 1,000 lines: some screens full, and nothing that a terminal or a reader chokes on.
const DEFAULT_LINES: usize = 1000;

/// 200 ms after a line was begun: whoever prints a prompt is waiting by then, and whoever prints a line in parts is done.
const QUIET: Duration = Duration::from_millis(200);

/// Options of `locald logs`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// Services to show; all if none is named
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
    /// Go on with what is written from now on, over restarts, until Ctrl-C
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Show the last N lines of each service, or all [default: 1000 of the newest run]
    #[arg(short = 'n', long, value_name = "N|all", value_parser = parse_lines)]
    pub(crate) lines: Option<LineCount>,
    /// Show lines from this time on, of all runs: 15m (ago), 10:30 (today), 2026-01-02, RFC 3339
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Show lines up to this time, of all runs
    #[arg(long, value_name = "TIME", conflicts_with = "follow")]
    pub(crate) until: Option<String>,
    /// Show lines that match; the first 64 KiB of a line count
    #[arg(long, value_name = "REGEX")]
    pub(crate) grep: Option<Regex>,
    /// Show what came by one stream, of services with `tty = false`
    #[arg(long, value_name = "stdout|stderr", value_parser = parse_stream)]
    pub(crate) stream: Option<Stream>,
    /// Show one run instead of the newest
    #[arg(long, value_name = "N|current|previous", value_parser = parse_run)]
    pub(crate) run: Option<RunChoice>,
    /// Show when each line came
    #[arg(short, long, conflicts_with = "json")]
    pub(crate) timestamps: bool,
    /// Show lines without the name of their service
    #[arg(long)]
    pub(crate) no_prefix: bool,
    /// Names of services, although there may be one alone.
    #[arg(skip)]
    pub(crate) with_prefix: bool,
    /// Show the bytes as they came: no prefix, no boundaries, escape sequences included
    #[arg(long, conflicts_with_all = ["json", "timestamps"])]
    pub(crate) raw: bool,
    /// Show one JSON object per line: the `--json` of every verb
    #[arg(skip)]
    pub(crate) json: bool,
}

impl LogsArgs {
    /// The arguments of `logs -f`.
    pub(super) fn following(with_prefix: bool) -> Self {
        Self {
            with_prefix,
            services: Vec::new(),
            follow: true,
            lines: None,
            since: None,
            until: None,
            grep: None,
            stream: None,
            run: None,
            timestamps: false,
            no_prefix: false,
            raw: false,
            json: false,
        }
    }
}

/// What `-n` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineCount {
    /// Every line.
    All,
    /// So many lines, the last ones.
    Last(usize),
}

/// A service whose log is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Its name.
    pub(crate) name: ServiceName,
    /// Its directory, which holds the log. It does not have to exist.
    pub(crate) dir: PathBuf,
}

/// Where the answer goes.
pub(crate) struct Output<'a> {
    /// The log.
    pub(crate) stdout: &'a mut dyn Write,
    /// What is to be said about it.
    pub(crate) stderr: &'a mut dyn Write,
    /// Whether stdout is a terminal: then the colours of a service stay, and nothing else of its escape sequences.
    pub(crate) is_terminal: bool,
    /// Whether our own words are coloured. Asked for explicitly, the colours of a service stay in a pipe as well.
    pub(crate) color: bool,
    /// A duplicate of stdout's descriptor, to learn at once that nobody reads it any more.
    pub(crate) hangup: Option<OwnedFd>,
    /// Following ends, with what is there by then, when the other end of this is closed.
    pub(crate) until: Option<OwnedFd>,
}

/// Shows the logs of the project at hand.
pub(super) fn verb(args: &LogsArgs, context: &Context, screen: &Screen) -> Result<u8, Problem> {
    let args = LogsArgs { json: screen.json(), ..args.clone() };
    let found = context.place()?.logs(context.home()?, &args.services)?;
    let sources: Vec<Source> = found.into_iter().map(|(name, dir)| Source { name, dir }).collect();
    let output = Output {
        stdout: &mut io::stdout().lock(),
        stderr: &mut io::stderr().lock(),
        is_terminal: io::stdout().is_terminal(),
        color: screen.stdout_paint().is_on(),
        hangup: io::stdout().as_fd().try_clone_to_owned().ok(),
        until: None,
    };
    Ok(run(&args, &sources, output)?)
}

/// Why showing ends early.
#[derive(Debug)]
enum Stop {
    /// Nobody reads the output any more.
    HungUp,
    Failed(Failure),
}

/// Shows the logs of `sources`, and returns the exit code.
///
/// # Errors
/// [`FailureCode::Usage`] for a time that is none, [`FailureCode::NotFound`] for a run that no log has, and
/// [`FailureCode::Failed`] when a log cannot be read or the answer not written.
pub(crate) fn run(args: &LogsArgs, sources: &[Source], output: Output<'_>) -> Result<u8, Failure> {
    // Everything is seen from this moment. Besides this, only `follow` looks at a clock.
    let now = Zoned::now();
    match show_logs(args, sources, output, &now) {
        Ok(()) | Err(Stop::HungUp) => Ok(0),
        Err(Stop::Failed(failure)) => Err(failure),
    }
}

fn show_logs(args: &LogsArgs, sources: &[Source], output: Output<'_>, now: &Zoned) -> Result<(), Stop> {
    let Output { stdout, stderr, is_terminal, color, hangup, until } = output;
    let form = form(args, sources.len(), is_terminal, color);
    let style = Style { form, grep: args.grep.clone(), stream: args.stream };
    let wanted = Wanted::new(args, &style, now)?;
    let mut parts = Vec::new();
    for source in sources {
        parts.push(Part::select(source, &wanted).map_err(|error| unreadable(source, &error))?);
    }
    require_a_run(&wanted, sources, &parts)?;
    for (source, part) in sources.iter().zip(&parts) {
        if let Some(note) = part.note(source, &wanted) {
            writeln!(stderr, "{note}").map_err(unwritable)?;
        }
    }

    let names: Vec<&ServiceName> = sources.iter().map(|source| &source.name).collect();
    let mut printer = Printer::new(stdout, style.clone(), &names, now);
    let mut feeds = Vec::new();
    for (source, part) in sources.iter().zip(&parts) {
        feeds.push(part.feed(source, args.follow).map_err(|error| unreadable(source, &error))?);
    }
    // Files that are removed while they are followed take room as long as anybody has them open.
    drop(parts);
    show_available(&mut feeds, sources, &mut printer)?;
    if args.follow { follow(&mut feeds, sources, &mut printer, args, (hangup, until)) } else { Ok(()) }
}

/// Shows what comes, until nobody reads it any more or no more is wanted.
fn follow(
    feeds: &mut [Feed],
    sources: &[Source],
    printer: &mut Printer<'_>,
    args: &LogsArgs,
    (hangup, until): (Option<OwnedFd>, Option<OwnedFd>),
) -> Result<(), Stop> {
    printer.expect_news();
    let dirs = sources.iter().map(|source| source.dir.clone()).collect();
    let mut watch = Watch::new(dirs, hangup, until).map_err(Stop::Failed)?;
    let mut show_beginnings_at = None;
    loop {
        // Watched first, read second: what comes in between is reported.
        watch.renew().map_err(Stop::Failed)?;
        show_available(feeds, sources, printer)?;
        if args.raw {
            show_beginnings(feeds, sources, printer)?;
        }
        // A line is matched when it is complete.
        if args.grep.is_none() && feeds.iter().any(Feed::has_beginning) {
            show_beginnings_at.get_or_insert_with(|| Instant::now() + QUIET);
        } else {
            show_beginnings_at = None;
        }
        match watch.wait(show_beginnings_at.map(|at| at.saturating_duration_since(Instant::now()))) {
            Wake::Changed => {}
            Wake::Quiet => {
                show_beginnings(feeds, sources, printer)?;
                show_beginnings_at = None;
            }
            Wake::HungUp => return Err(Stop::HungUp),
            Wake::Ended => {
                show_available(feeds, sources, printer)?;
                return show_beginnings(feeds, sources, printer);
            }
        }
    }
}

/// Shows what the feeds have, merged by time: of those that have something, the one whose entry is oldest comes next.
/// The pieces of a line have one time, so they stay together.
fn show_available(feeds: &mut [Feed], sources: &[Source], printer: &mut Printer<'_>) -> Result<(), Stop> {
    loop {
        for (feed, source) in feeds.iter_mut().zip(sources) {
            feed.load().map_err(|error| unreadable(source, &error))?;
        }
        let loaded = (0..feeds.len()).filter(|at| feeds[*at].is_loaded);
        let Some(next) = loaded.min_by_key(|at| feeds[*at].time) else { break };
        if let Some(entry) = feeds[next].reading.entry() {
            printer.show(next, &entry).map_err(unwritable)?;
        }
        feeds[next].is_loaded = false;
    }
    printer.flush().map_err(unwritable)
}

/// Shows the beginnings of lines that still have no newline.
fn show_beginnings(feeds: &mut [Feed], sources: &[Source], printer: &mut Printer<'_>) -> Result<(), Stop> {
    for (at, (feed, source)) in feeds.iter_mut().zip(sources).enumerate() {
        if feed.reading.release().map_err(|error| unreadable(source, &error))?
            && let Some(entry) = feed.reading.entry()
        {
            printer.show(at, &entry).map_err(unwritable)?;
        }
    }
    printer.flush().map_err(unwritable)
}

/// What is asked of each log.
struct Wanted<'a> {
    run: Option<RunChoice>,
    since: Option<UnixMillis>,
    until: Option<UnixMillis>,
    lines: LineCount,
    style: &'a Style,
}

impl<'a> Wanted<'a> {
    fn new(args: &LogsArgs, style: &'a Style, now: &Zoned) -> Result<Self, Stop> {
        let time = |option, text: &Option<String>| match text {
            Some(text) => when::parse(option, text, now).map(Some).map_err(Stop::Failed),
            None => Ok(None),
        };
        let since = time("--since", &args.since)?;
        let until = time("--until", &args.until)?;
        // Whoever says what they look for gets all of it.
        let is_limited = since.is_none() && until.is_none() && !style.chooses();
        let default = if is_limited { LineCount::Last(DEFAULT_LINES) } else { LineCount::All };
        let lines = args.lines.unwrap_or(default);
        Ok(Self { run: args.run, since, until, lines, style })
    }
}

/// What is shown of one log.
enum Part {
    /// There is no log.
    NoLog,
    /// There is a log, and it does not have the run that was asked for.
    NoRun { runs: Vec<RunNumber> },
    Found {
        reader: LogReader,
        /// The run, if it is one.
        run: Option<RunNumber>,
        is_empty: bool,
        selection: Selection,
        is_shortened: bool,
    },
}

impl Part {
    fn select(source: &Source, wanted: &Wanted<'_>) -> io::Result<Self> {
        let Some(reader) = LogReader::open(&source.dir)? else { return Ok(Self::NoLog) };
        let is_timed = wanted.since.is_some() || wanted.until.is_some();
        let (run, mut selection) = match wanted.run {
            None if is_timed => (None, reader.all()),
            choice => match reader.run(choice.unwrap_or(RunChoice::Current)) {
                Some(span) => (span.run, span.selection),
                // A log without any output and without index.
                None if choice.is_none() => (None, reader.all()),
                None => {
                    return Ok(Self::NoRun { runs: reader.runs().into_iter().filter_map(|span| span.run).collect() });
                }
            },
        };
        let is_empty = selection.bytes.is_empty();
        if let Some(since) = wanted.since {
            selection = reader.since(&selection, since)?;
        }
        if let Some(until) = wanted.until {
            selection = reader.until(&selection, until)?;
        }
        let start = selection.bytes.start;
        if let LineCount::Last(count) = wanted.lines {
            selection = if wanted.style.chooses() {
                last_chosen(&reader, &selection, wanted.style, count)?
            } else {
                reader.last_lines(&selection, count)?
            };
        }
        let is_shortened = selection.bytes.start > start;
        Ok(Self::Found { reader, run, is_empty, selection, is_shortened })
    }

    /// What a person should know about the part.
    fn note(&self, source: &Source, wanted: &Wanted<'_>) -> Option<String> {
        let name = &source.name;
        match self {
            Self::NoLog => Some(format!("{name}: no output yet")),
            Self::NoRun { .. } => Some(format!("{name}: {}", missing_run(wanted))),
            Self::Found { run, is_empty: true, .. } => {
                let run = run.map(|run| run.to_string()).unwrap_or_default();
                Some(format!("{name}{run}: no output yet"))
            }
            // Whoever gives a number knows that it is not all.
            Self::Found { run, is_shortened: true, .. } if wanted.lines == LineCount::Last(DEFAULT_LINES) => {
                let run = run.map(|run| run.to_string()).unwrap_or_default();
                let lines = grouped(DEFAULT_LINES as u64);
                Some(format!("{name}{run}: only the last {lines} lines; `-n all` shows all of them"))
            }
            Self::Found { .. } => None,
        }
    }

    fn feed(&self, source: &Source, is_followed: bool) -> io::Result<Feed> {
        let reading = match self {
            Self::Found { reader, selection, .. } if is_followed => Reading::Followed(reader.follow(selection)),
            Self::Found { reader, selection, .. } => Reading::Part(reader.entries(selection)),
            Self::NoLog if is_followed => Reading::Followed(Follower::new(&source.dir)),
            // The run that was asked for is none of those there are: only what comes is followed.
            Self::NoRun { .. } if is_followed => match LogReader::open(&source.dir)? {
                Some(reader) => Reading::Followed(reader.follow(&reader.last_lines(&reader.all(), 0)?)),
                None => Reading::Followed(Follower::new(&source.dir)),
            },
            Self::NoLog | Self::NoRun { .. } => Reading::Nothing,
        };
        Ok(Feed { reading, is_loaded: false, time: UnixMillis(0) })
    }
}

/// Narrows a selection to where its last `count` lines begin that are shown.
fn last_chosen(reader: &LogReader, selection: &Selection, style: &Style, count: usize) -> io::Result<Selection> {
    let mut starts = VecDeque::new();
    let mut cursor = reader.entries(selection);
    let mut is_within = [false; Stream::PLACES];
    while cursor.advance()? {
        let Some(Entry::Line(line)) = cursor.entry() else { continue };
        let is_within = &mut is_within[Stream::place(line.stream)];
        if !*is_within && style.wants(&line) {
            starts.push_back(line.offset);
            if starts.len() > count {
                starts.pop_front();
            }
        }
        *is_within = line.end == LineEnd::Continues;
    }
    // The lines of two streams come in the order of their ends.
    Ok(reader.from(selection, starts.iter().min().copied().unwrap_or(selection.bytes.end)))
}

/// A log that is being shown.
struct Feed {
    reading: Reading,
    /// Whether the reading stands at an entry that has not been shown.
    is_loaded: bool,
    /// The time of that entry, or of the one before it if it has none.
    time: UnixMillis,
}

enum Reading {
    Nothing,
    Part(Cursor),
    Followed(Follower),
}

impl Feed {
    fn load(&mut self) -> io::Result<()> {
        if !self.is_loaded {
            self.is_loaded = self.reading.advance()?;
            self.time = self.reading.entry().and_then(|entry| entry.time()).unwrap_or(self.time);
        }
        Ok(())
    }

    /// Whether the beginning of a line waits that is worth showing: not half a character, and not a progress bar, whose
    /// last state is not known before the line is complete.
    fn has_beginning(&self) -> bool {
        let held = match &self.reading {
            Reading::Followed(follower) => follower.held(),
            Reading::Part(_) | Reading::Nothing => &[],
        };
        let is_half_a_character =
            std::str::from_utf8(held).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none());
        !held.is_empty() && !is_half_a_character && !held.contains(&b'\r')
    }
}

impl Reading {
    fn advance(&mut self) -> io::Result<bool> {
        match self {
            Self::Nothing => Ok(false),
            Self::Part(cursor) => cursor.advance(),
            Self::Followed(follower) => follower.advance(),
        }
    }

    fn entry(&self) -> Option<Entry<'_>> {
        match self {
            Self::Nothing => None,
            Self::Part(cursor) => cursor.entry(),
            Self::Followed(follower) => follower.entry(),
        }
    }

    fn release(&mut self) -> io::Result<bool> {
        match self {
            Self::Nothing | Self::Part(_) => Ok(false),
            Self::Followed(follower) => follower.release(),
        }
    }
}

fn form(args: &LogsArgs, sources: usize, is_terminal: bool, color: bool) -> Form {
    if args.raw {
        Form::Raw
    } else if args.json {
        Form::Json
    } else {
        Form::Text {
            has_prefix: args.with_prefix || (sources != 1 && !args.no_prefix),
            has_time: args.timestamps,
            has_color: color,
            has_streams: is_terminal,
            escapes: if is_terminal || color { Escapes::Colors } else { Escapes::Strip },
        }
    }
}

/// Fails if a run was asked for that none of the logs has.
fn require_a_run(wanted: &Wanted<'_>, sources: &[Source], parts: &[Part]) -> Result<(), Stop> {
    let mut missing = None;
    for (source, part) in sources.iter().zip(parts) {
        match part {
            Part::Found { .. } => return Ok(()),
            Part::NoRun { runs } => missing = Some((source, runs)),
            Part::NoLog => {}
        }
    }
    let Some((Source { name, .. }, runs)) = missing else { return Ok(()) };
    let failure = Failure::new(FailureCode::NotFound, format!("{name}: {}", missing_run(wanted)));
    Err(Stop::Failed(match (runs.first(), runs.last()) {
        (Some(first), Some(last)) if first < last => failure.hint(format!("its log has runs {first} to {last}")),
        (Some(only), _) => failure.hint(format!("its log has run {only} only")),
        (None, _) => failure,
    }))
}

fn missing_run(wanted: &Wanted<'_>) -> String {
    match wanted.run {
        Some(RunChoice::Number(run)) => format!("its log has no run {run}"),
        Some(RunChoice::Previous) => "there is no run before the newest in its log".to_owned(),
        Some(RunChoice::Current) | None => "no output yet".to_owned(),
    }
}

fn parse_lines(text: &str) -> Result<LineCount, String> {
    match text {
        "all" => Ok(LineCount::All),
        count => count.parse().map(LineCount::Last).map_err(|_| "write a number of lines, or `all`".to_owned()),
    }
}

fn parse_stream(text: &str) -> Result<Stream, String> {
    match text {
        "stdout" => Ok(Stream::Stdout),
        "stderr" => Ok(Stream::Stderr),
        _ => Err("write `stdout` or `stderr`".to_owned()),
    }
}

fn parse_run(text: &str) -> Result<RunChoice, String> {
    match text {
        "current" => Ok(RunChoice::Current),
        "previous" => Ok(RunChoice::Previous),
        number => match number.trim_start_matches('#').parse() {
            Ok(number) => Ok(RunChoice::Number(RunNumber(number))),
            Err(_) => Err("write the number of a run, `current` or `previous`".to_owned()),
        },
    }
}

fn unreadable(source: &Source, error: &io::Error) -> Stop {
    let message = format!("could not read the log of {} in {}: {error}", source.name, source.dir.display());
    Stop::Failed(Failure::new(FailureCode::Failed, message))
}

fn unwritable(error: io::Error) -> Stop {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Stop::HungUp;
    }
    Stop::Failed(Failure::new(FailureCode::Failed, format!("could not write the answer: {error}")))
}

#[cfg(test)]
mod tests;
