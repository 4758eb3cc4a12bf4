//! `logs` as a whole: what is typed, and all of what is shown for it.
//!
//! The time is fixed at 2026-06-10 12:00:00 UTC. Following is tested with the real watch; each step awaits what it
//! brings about.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use clap::Parser;
use locald_utils::log::{LogWriter, data_path, index_path};
use locald_utils::spec::LogPolicy;
use tempfile::TempDir;

use super::*;
use crate::args::{Cli, Verb};

fn parse(line: &[&str]) -> Result<LogsArgs, clap::Error> {
    let cli = Cli::try_parse_from([&["locald", "logs"], line].concat())?;
    let Verb::Logs(logs) = cli.verb else { panic!("not logs: {line:?}") };
    Ok(LogsArgs { json: cli.global.json, ..logs })
}

fn args(line: &[&str]) -> LogsArgs {
    parse(line).expect("a valid command line")
}

fn now() -> Zoned {
    "2026-06-10T12:00:00Z".parse::<jiff::Timestamp>().expect("a time").to_zoned(jiff::tz::TimeZone::UTC)
}

/// `ms` after 10:00:00 today.
fn at(ms: u64) -> UnixMillis {
    UnixMillis(1_781_085_600_000 + ms)
}

fn scratch() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn source(base: &Path, name: &str) -> Source {
    Source { name: name.parse().expect("a name"), dir: base.join(name) }
}

fn writer(base: &Path, name: &str, run: u32, ms: u64) -> LogWriter {
    writer_with(base, name, run, &LogPolicy::default(), ms)
}

fn writer_with(base: &Path, name: &str, run: u32, policy: &LogPolicy, ms: u64) -> LogWriter {
    LogWriter::open(&base.join(name), RunNumber(run), policy, at(ms)).expect("the log opens")
}

/// Writes one run of pieces that came when they say.
fn write_run(base: &Path, name: &str, run: u32, start: u64, pieces: &[(u64, &str)]) {
    let mut writer = writer(base, name, run, start);
    for (ms, text) in pieces {
        writer.write(text.as_bytes(), at(*ms));
    }
    writer.end(at(pieces.last().map_or(start, |piece| piece.0) + 500));
}

struct Shown {
    stdout: String,
    stderr: String,
    failure: Option<Failure>,
}

fn show_on(line: &[&str], sources: &[Source], is_terminal: bool, color: bool) -> Shown {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let output = Output { stdout: &mut stdout, stderr: &mut stderr, is_terminal, color, hangup: None, until: None };
    let failure = match show_logs(&args(line), sources, output, &now()) {
        Ok(()) => None,
        Err(Stop::Failed(failure)) => Some(failure),
        Err(Stop::HungUp) => panic!("nobody hung up"),
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Shown { stdout: text(stdout), stderr: text(stderr), failure }
}

fn show(line: &[&str], sources: &[Source]) -> Shown {
    show_on(line, sources, false, false)
}

/// Two services, of which `web` has been restarted.
fn shop() -> (TempDir, Vec<Source>) {
    let base = scratch();
    let dir = base.path();
    write_run(
        dir,
        "web",
        7,
        0,
        &[(10, "listening\n"), (60_000, "\x1b[31merror\x1b[0m: one\n"), (61_000, "panic: boom")],
    );
    write_run(dir, "web", 8, 62_000, &[(62_010, "listening\n"), (64_000, "error: two\r\n"), (66_000, "GET /\n")]);
    write_run(dir, "db", 1, 0, &[(5, "starting\n"), (63_000, "checkpoint\n"), (65_000, "error: db\n")]);
    let sources = vec![source(dir, "web"), source(dir, "db")];
    (base, sources)
}

#[test]
fn one_service_shows_its_newest_run_without_prefix() {
    let (_base, sources) = shop();
    let shown = show(&["web"], &sources[..1]);
    assert_eq!((shown.stdout.as_str(), shown.stderr.as_str()), ("listening\nerror: two\nGET /\n", ""));
}

#[test]
fn several_services_are_merged_by_time_and_prefixed() {
    let (_base, sources) = shop();
    let shown = show(&[], &sources);
    let text = "\
db  | starting
web | listening
db  | checkpoint
web | error: two
db  | error: db
web | GET /
";
    assert_eq!(shown.stdout, text);
    let bare = show(&["--no-prefix"], &sources);
    assert_eq!(bare.stdout, text.replace("web | ", "").replace("db  | ", ""));
}

#[test]
fn a_restart_shows_as_a_boundary_and_glues_nothing() {
    let (_base, sources) = shop();
    let shown = show(&["--since", "10:01", "-t"], &sources[..1]);
    let text = "\
2026-06-10T10:01:00.000+00:00 error: one
2026-06-10T10:01:01.000+00:00 panic: boom
--- web#8 started 10:01:02 (previous ended 10:01:01) ---
2026-06-10T10:01:02.010+00:00 listening
2026-06-10T10:01:04.000+00:00 error: two
2026-06-10T10:01:06.000+00:00 GET /
";
    assert_eq!(shown.stdout, text);
    let shown = show(&["--since", "10:01", "--until", "10:01:04"], &sources);
    let text = "\
web | error: one
web | panic: boom
--- web#8 started 10:01:02 (previous ended 10:01:01) ---
web | listening
db  | checkpoint
web | error: two
";
    assert_eq!(shown.stdout, text);
}

#[test]
fn a_time_without_output_shows_nothing() {
    let (_base, sources) = shop();
    assert_eq!(show(&["--since", "15m"], &sources).stdout, "");
    assert_eq!(show(&["--until", "09:00"], &sources).stdout, "");
    let failure = show(&["--until", "soon"], &sources).failure.expect("no time");
    assert_eq!(failure.code, FailureCode::Usage);
}

#[test]
fn a_run_is_chosen_by_number_or_by_place() {
    let (_base, sources) = shop();
    for run in ["7", "#7", "previous"] {
        let shown = show(&["--run", run], &sources[..1]);
        assert_eq!(shown.stdout, "listening\nerror: one\npanic: boom\n", "--run {run}");
    }
    assert_eq!(show(&["--run", "current"], &sources[..1]).stdout, show(&[], &sources[..1]).stdout);
    assert_eq!(show(&["--run", "7", "--since", "10:01:01"], &sources[..1]).stdout, "panic: boom\n");

    let failure = show(&["--run", "9"], &sources[..1]).failure.expect("there is no run 9");
    assert_eq!((failure.code, failure.message.as_str()), (FailureCode::NotFound, "web: its log has no run #9"));
    assert_eq!(failure.hint.as_deref(), Some("its log has runs #7 to #8"));
    let failure = show(&["--run", "previous"], &sources[1..]).failure.expect("there is one run");
    assert_eq!(failure.hint.as_deref(), Some("its log has run #1 only"));

    // One of several has it.
    let shown = show(&["--run", "7"], &sources);
    assert_eq!(shown.stderr, "db: its log has no run #7\n");
    assert_eq!(shown.stdout, "web | listening\nweb | error: one\nweb | panic: boom\n");
}

#[test]
fn the_last_thousand_lines_are_shown_and_it_is_said() {
    let base = scratch();
    let lines: String = (1..=2500).map(|n| format!("line {n}\n")).collect();
    write_run(base.path(), "web", 3, 0, &[(0, &lines)]);
    let sources = [source(base.path(), "web")];
    let shown = show(&[], &sources);
    assert_eq!(shown.stdout.lines().count(), 1000);
    assert!(shown.stdout.starts_with("line 1501\n") && shown.stdout.ends_with("line 2500\n"));
    assert_eq!(shown.stderr, "web#3: only the last 1,000 lines; `-n all` shows all of them\n");
    let all = show(&["-n", "all"], &sources);
    assert_eq!((all.stdout, all.stderr.as_str()), (lines.clone(), ""));
    let two = show(&["-n", "2"], &sources);
    assert_eq!((two.stdout.as_str(), two.stderr.as_str()), ("line 2499\nline 2500\n", ""));
    assert_eq!(show(&["-n", "0"], &sources).stdout, "");
    let matching = show(&["--grep", "7$"], &sources);
    assert_eq!((matching.stdout.lines().count(), matching.stderr.as_str()), (250, ""));
    assert_eq!(show(&["--grep", "7$", "-n", "2"], &sources).stdout, "line 2487\nline 2497\n");
}

#[test]
fn grep_sees_the_text_and_shows_only_the_boundaries_of_runs_with_a_match() {
    let (base, sources) = shop();
    write_run(base.path(), "web", 9, 70_000, &[(70_000, "quiet\n")]);
    write_run(base.path(), "web", 10, 80_000, &[(80_000, "error: three\n")]);
    let shown = show(&["--grep", "^error:", "--since", "3h"], &sources[..1]);
    let text = "\
error: one
--- web#8 started 10:01:02 (previous ended 10:01:01) ---
error: two
--- web#10 started 10:01:20 (previous ended 10:01:10) ---
error: three
";
    assert_eq!(shown.stdout, text);
}

#[test]
fn json_has_a_record_for_each_line_and_each_boundary() {
    let base = scratch();
    let mut writer = writer(base.path(), "web", 7, 0);
    writer.write(b"tab\t\x1b[1mbold\x1b[0m \xff\n", at(0));
    writer.lose(12);
    writer.write(b"boom", at(1500));
    writer.end(at(2000));
    let text = r#"{"schema":1,"service":"web","run":7,"time":"2026-06-10T10:00:00.000Z","kind":"start"}
{"schema":1,"service":"web","run":7,"time":"2026-06-10T10:00:00.000Z","kind":"line","text":"tab\tbold �"}
{"schema":1,"service":"web","run":7,"time":"2026-06-10T10:00:01.500Z","kind":"gap","lost_bytes":12}
{"schema":1,"service":"web","run":7,"time":"2026-06-10T10:00:01.500Z","kind":"line","text":"boom","unfinished":true}
{"schema":1,"service":"web","run":7,"time":"2026-06-10T10:00:02.000Z","kind":"end"}
"#;
    let sources = [source(base.path(), "web")];
    assert_eq!(show_on(&["--json"], &sources, true, true).stdout, text);

    let gap = "--- web#7: up to 12 bytes are missing here, they could not be kept in the log ---";
    assert_eq!(show(&[], &sources).stdout, format!("tab\tbold �\n{gap}\nboom\n"));

    fs::remove_file(index_path(&base.path().join("web"), 1)).expect("the index is deleted");
    let first = r#"{"schema":1,"service":"web","run":null,"time":null,"kind":"line","text":"tab\tbold �"}"#;
    assert_eq!(show(&["--json"], &sources).stdout.lines().next(), Some(first));
}

#[test]
fn raw_shows_exactly_the_bytes() {
    let base = scratch();
    let dir = base.path();
    write_run(dir, "web", 1, 0, &[(0, "\x1b[2J\x1b[31mred\r\n"), (20, " 10%\r100%\nno newline")]);
    write_run(dir, "web", 2, 1000, &[(1000, "next\n")]);
    let bytes = fs::read_to_string(data_path(&dir.join("web"), 1)).expect("the log");
    assert_eq!(show(&["--raw", "--since", "3h"], &[source(dir, "web")]).stdout, bytes);
}

#[test]
fn what_is_no_longer_kept_is_said() {
    let base = scratch();
    let web = source(base.path(), "web");
    let policy = LogPolicy { max_size: 8 * 1000, ..LogPolicy::default() };
    let mut writer = writer_with(base.path(), "web", 3, &policy, 0);
    for second in 0..20 {
        writer.write(format!("{}\n{second}\n", "x".repeat(1000)).as_bytes(), at(1000 * second));
    }
    let shown = show(&["-n", "all"], std::slice::from_ref(&web)).stdout;
    assert!(
        shown.starts_with("--- web#3, started 10:00:00: its output before this is no longer kept ---\n"),
        "{shown}"
    );
    assert!(shown.ends_with("\n19\n"), "{shown}");
    let json = show(&["--json", "-n", "all"], std::slice::from_ref(&web)).stdout;
    let first = json.lines().next().expect("a line");
    assert!(first.contains(r#""kind":"continued","started_at":"2026-06-10T10:00:00.000Z""#), "{first}");
    // Whoever asks for the end is not told about the beginning.
    assert_eq!(show(&["-n", "1"], &[web]).stdout, "19\n");
}

#[test]
fn a_long_line_stays_one_line() {
    let base = scratch();
    let dir = base.path();
    let long = "x".repeat(200_000);
    write_run(dir, "web", 1, 0, &[(0, &long), (5_000, "\nend\n")]);
    write_run(dir, "db", 1, 0, &[(1_000, "between\n")]);
    let shown = show(&[], &[source(dir, "web"), source(dir, "db")]);
    assert_eq!(shown.stdout, format!("web | {long}\ndb  | between\nweb | end\n"));
    let matching = show(&["--grep", "^x|between"], &[source(dir, "web"), source(dir, "db")]);
    assert_eq!(matching.stdout, format!("web | {long}\ndb  | between\n"));
    assert_eq!(show(&["--grep", "^end", "-n", "1"], &[source(dir, "web")]).stdout, "end\n");
    let json = show(&["--json"], &[source(dir, "web")]).stdout;
    let partial = json.lines().filter(|line| line.contains("\"partial\":true")).count();
    assert_eq!((json.lines().count(), partial), (7, 3));
}

#[test]
fn colours_stay_on_a_terminal_and_nothing_else_does() {
    let base = scratch();
    write_run(base.path(), "web", 1, 0, &[(0, "\x1b[2J\x1b[31mred\x1b[K\n"), (0, "plain\n")]);
    let web = source(base.path(), "web");
    assert_eq!(show_on(&[], std::slice::from_ref(&web), true, false).stdout, "\x1b[31mred\x1b[0m\nplain\n");
    assert_eq!(show_on(&[], std::slice::from_ref(&web), false, false).stdout, "red\nplain\n");
    let none = source(base.path(), "none");
    let shown = show_on(&[], &[web, none], true, true).stdout;
    assert_eq!(shown.lines().nth(1), Some("\x1b[36mweb  | \x1b[0mplain"));
}

#[test]
fn names_are_padded_and_shortened_in_the_middle() {
    let base = scratch();
    let dir = base.path();
    let long = "frontend-development-server";
    write_run(dir, long, 1, 0, &[(0, "one\n")]);
    write_run(dir, "db", 1, 0, &[(10, "two\n")]);
    let shown = show(&[], &[source(dir, long), source(dir, "db")]);
    assert_eq!(shown.stdout, "frontend-…ent-server | one\ndb                   | two\n");
}

#[test]
fn no_output_yet_is_said_and_is_no_failure() {
    let base = scratch();
    let shown = show(&[], &[source(base.path(), "web")]);
    assert_eq!((shown.stdout.as_str(), shown.stderr.as_str()), ("", "web: no output yet\n"));
    assert!(shown.failure.is_none());
    write_run(base.path(), "web", 1, 0, &[(0, "one\n")]);
    writer(base.path(), "web", 2, 1000);
    let shown = show(&[], &[source(base.path(), "web")]);
    assert_eq!((shown.stdout.as_str(), shown.stderr.as_str()), ("", "web#2: no output yet\n"));
}

#[test]
fn a_log_that_cannot_be_read_is_a_failure_that_names_it() {
    let base = scratch();
    fs::create_dir_all(data_path(&base.path().join("web"), 1)).expect("a directory in place of the log");
    let failure = show(&[], &[source(base.path(), "web")]).failure.expect("it is no file");
    assert_eq!(failure.code, FailureCode::Failed);
    let start = format!("could not read the log of web in {}: ", base.path().join("web").display());
    assert!(failure.message.starts_with(&start), "{}", failure.message);
}

#[test]
fn a_reader_that_goes_away_is_success() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (_base, sources) = shop();
    for line in [&[][..], &["-f"], &["--json"], &["--raw"]] {
        let output = Output {
            stdout: &mut Closed,
            stderr: &mut io::sink(),
            is_terminal: false,
            color: false,
            hangup: None,
            until: None,
        };
        assert_eq!(run(&args(line), &sources, output), Ok(0), "{line:?}");
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    for line in [
        &["--raw", "--json"][..],
        &["--raw", "-t"],
        &["--json", "-t"],
        &["-f", "--until", "10:30"],
        &["-n", "some"],
        &["--run", "last"],
        &["--grep", "("],
    ] {
        assert!(parse(line).is_err(), "{line:?}");
    }
    assert_eq!(args(&["-n", "all", "web", "db"]).services, ["web", "db"]);
    assert_eq!(args(&["--run", "12"]).run, Some(RunChoice::Number(RunNumber(12))));
}

/// A stdout whose other end is this test.
struct Sink(Sender<Vec<u8>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A `logs -f` on a thread of its own.
struct Following {
    shown: Receiver<Vec<u8>>,
    /// As long as this is open, somebody reads.
    reader: OwnedFd,
    thread: std::thread::JoinHandle<Result<u8, Failure>>,
}

impl Following {
    fn start(line: &[&str], sources: &[Source]) -> Self {
        let (reader, hangup) = nix::unistd::pipe().expect("a pipe");
        let (sender, shown) = channel();
        let (args, sources) = (args(line), sources.to_vec());
        let thread = std::thread::spawn(move || {
            let output = Output {
                stdout: &mut Sink(sender),
                stderr: &mut io::sink(),
                is_terminal: false,
                color: false,
                hangup: Some(hangup),
                until: None,
            };
            run(&args, &sources, output)
        });
        Self { shown, reader, thread }
    }

    /// Waits until `length` bytes have been shown.
    fn read(&mut self, length: usize) -> String {
        let mut text = String::new();
        while text.len() < length {
            let more = self.shown.recv_timeout(Duration::from_secs(20));
            let more = more.unwrap_or_else(|_| panic!("shown: {text:?}, wanted: {length} bytes"));
            text.push_str(&String::from_utf8(more).expect("UTF-8"));
        }
        text
    }

    /// Waits until all of `text` has been shown, and nothing else.
    fn expect(&mut self, text: &str) {
        assert_eq!(self.read(text.len()), text);
    }

    fn stop(self) {
        drop(self.reader);
        assert_eq!(self.thread.join().expect("no panic"), Ok(0));
        assert!(self.shown.try_recv().is_err(), "nothing else is shown");
    }
}

#[test]
fn follow_goes_on_over_restarts_and_deletion_and_sees_services_that_come_later() {
    let base = scratch();
    let dir = base.path();
    write_run(dir, "web", 1, 0, &[(0, "old\n")]);
    let mut following = Following::start(&["-f", "--json", "-n", "1"], &[source(dir, "web"), source(dir, "db")]);
    let text = |service: &str, run: u32, kind: &str, ms: u64, rest: &str| {
        let time = jiff::Timestamp::from_millisecond(i64::try_from(at(ms).0).expect("a time")).expect("a time");
        let time = time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
        format!(
            "{{\"schema\":1,\"service\":\"{service}\",\"run\":{run},\"time\":\"{time}\",\"kind\":\"{kind}\"{rest}}}\n"
        )
    };
    let line =
        |service: &str, run: u32, ms: u64, line: &str| text(service, run, "line", ms, &format!(",\"text\":\"{line}\""));
    following
        .expect(&[text("web", 1, "start", 0, ""), line("web", 1, 0, "old"), text("web", 1, "end", 500, "")].concat());
    let mut web = writer(dir, "web", 2, 1000);
    following.expect(&text("web", 2, "start", 1000, ""));
    web.write(b"new\n", at(1000));
    following.expect(&line("web", 2, 1000, "new"));
    let mut db = writer(dir, "db", 1, 2000);
    following.expect(&text("db", 1, "start", 2000, ""));
    db.write(b"hello\n", at(2000));
    following.expect(&line("db", 1, 2000, "hello"));
    fs::remove_dir_all(dir.join("web")).expect("it was there");
    web.write(b"into the deleted file\n", at(2005));
    web.write(b"again\n", at(3000));
    let mut seen = Vec::new();
    loop {
        seen.extend(following.shown.recv_timeout(Duration::from_secs(20)).expect("more is shown"));
        if seen.ends_with(b"again\"}\n") {
            break;
        }
    }
    let seen = String::from_utf8(seen).expect("UTF-8");
    assert!(seen.contains("\"kind\":\"restarted\"}\n"), "{seen}");
    // Nobody looked at the deleted file before the log was there again; it was kept open for this.
    assert!(seen.contains("into the deleted file"), "{seen}");
    following.stop();
}

#[test]
fn follow_shows_boundaries_prompts_and_what_is_left_at_the_end_of_a_run() {
    let base = scratch();
    let dir = base.path();
    let mut web = writer(dir, "web", 1, 0);
    web.write(b"one\n", at(0));
    let mut db = writer(dir, "db", 4, 0);
    let mut following = Following::start(&["-f"], &[source(dir, "web"), source(dir, "db")]);
    following.expect("web | one\n");
    web.write(b"Password: ", at(100));
    following.expect("web | Password: ");
    db.write(b"two\n", at(200));
    following.expect("\ndb  | two\n");
    web.write(b"accepted\n", at(300));
    following.expect("web | accepted\n");
    web.write(b" 10%\r", at(400));
    db.write(b"three\n", at(1_400));
    following.expect("db  | three\n");
    web.write(b"100%\npanic", at(1_500));
    following.expect("web | 100%\nweb | panic");
    web.end(at(1_600));
    following.expect("\n");
    let mut web = writer(dir, "web", 2, 2_000);
    following.expect("--- web#2 started 2026-06-10 10:00:02 (previous ended 2026-06-10 10:00:01) ---\n");
    web.write(b"back\n", at(2_000));
    following.expect("web | back\n");
    fs::remove_dir_all(dir.join("web")).expect("it was there");
    web.write(b"again\n", at(3_000));
    // The run is the one that was shown before: that is no restart of the service. The 5 bytes before may be missing.
    let notice = "--- web: output is missing here, the log was deleted or emptied ---\n";
    let gap = "--- web#2: up to 5 bytes are missing here, they could not be kept in the log ---\n";
    let text = following.read(notice.len() + gap.len() + "web | again\n".len());
    let rest = text.strip_prefix(notice).expect("the notice comes first");
    assert_eq!(rest.replace(gap, ""), "web | again\n");
    following.stop();
}

#[test]
fn follow_says_when_a_service_starts_that_had_no_output() {
    let base = scratch();
    write_run(base.path(), "db", 1, 0, &[(0, "here\n")]);
    let sources = [source(base.path(), "db"), source(base.path(), "web")];
    let mut following = Following::start(&["-f", "--no-prefix"], &sources);
    // What comes after the first line has been shown comes after the logs were looked at.
    following.expect("here\n");
    writer(base.path(), "web", 1, 0);
    following.expect("--- web#1 started 2026-06-10 10:00:00 ---\n");
    following.stop();
}

#[test]
fn the_beginning_of_a_line_is_worth_showing_unless_it_is_a_progress_bar_or_half_a_character() {
    let table: [(&[u8], bool); 6] = [
        (b"", false),
        (b"Password: ", true),
        (b" 10%\r", false),
        (b"\xe2\x82", false),
        (b"a\xe2\x82", true),
        (b"\xff", true),
    ];
    for (bytes, is_worth_it) in table {
        let base = scratch();
        writer(base.path(), "web", 1, 0).write(bytes, at(0));
        let reading = Reading::Followed(Follower::new(&base.path().join("web")));
        let mut feed = Feed { reading, is_loaded: false, time: UnixMillis(0) };
        feed.load().expect("the start of the run");
        feed.is_loaded = false;
        feed.load().expect("nothing complete");
        assert!(!feed.is_loaded);
        assert_eq!(feed.has_beginning(), is_worth_it, "{}", bytes.escape_ascii());
    }
}

#[test]
fn follow_of_nothing_ends_when_its_reader_goes_away() {
    let base = scratch();
    let dir = base.path().join("not/yet/there");
    Following::start(&["-f"], &[source(&dir, "web")]).stop();
}

#[test]
fn raw_follow_shows_bytes_as_they_come() {
    let base = scratch();
    let mut web = writer(base.path(), "web", 1, 0);
    let mut following = Following::start(&["-f", "--raw"], &[source(base.path(), "web")]);
    for text in [" 10%\r", " 50%\r", "100%", "\n"] {
        web.write(text.as_bytes(), at(0));
        following.expect(text);
    }
    following.stop();
}

#[test]
fn streams_are_marked_on_a_terminal_chosen_and_named() {
    let base = scratch();
    let mut writer = writer(base.path(), "web", 1, 0);
    let (out, err) = (Some(Stream::Stdout), Some(Stream::Stderr));
    for (ms, (stream, text)) in
        (0..).zip([(out, "GET /\nGET "), (err, "a warn"), (out, "/x\n"), (err, "ing\n"), (out, "bye\n")])
    {
        writer.switch(stream, at(ms));
        writer.write(text.as_bytes(), at(ms));
    }
    writer.end(at(100));
    write_run(base.path(), "db", 1, 50, &[(50, "on a terminal\n")]);
    let sources = [source(base.path(), "web"), source(base.path(), "db")];
    let web = &sources[..1];
    let plain = "GET /\nGET /x\na warning\nbye\n";
    assert_eq!(show(&[], web).stdout, plain, "no mark in a pipe");
    assert_eq!(show_on(&[], web, true, false).stdout, "GET /\nGET /x\n! a warning\nbye\n");
    assert_eq!(show_on(&["--no-prefix"], web, true, true).stdout, "GET /\nGET /x\n\x1b[2m! \x1b[0ma warning\nbye\n");
    let both = "web | GET /\nweb | GET /x\nweb ! a warning\nweb | bye\ndb  | on a terminal\n";
    assert_eq!(show_on(&[], &sources, true, false).stdout, both);
    assert_eq!(show(&["--stream", "stderr"], &sources).stdout, "web | a warning\n");
    assert_eq!(show(&["--stream", "stdout", "-n", "2"], web).stdout, "GET /x\nbye\n");
    assert_eq!(show(&["--stream", "stdout", "--grep", "x"], web).stdout, "GET /x\n");
    assert_eq!(show(&["--raw", "--stream", "stderr"], web).stdout, "a warning\n");
    let shown = show(&["--stream", "stderr", "--json"], web).stdout;
    assert!(shown.contains("\"kind\":\"line\",\"stream\":\"stderr\",\"text\":\"a warning\""), "{shown}");
    assert!(!show(&["--json"], &sources[1..]).stdout.contains("\"stream\""), "a terminal has none");
    assert!(parse(&["--stream", "both"]).is_err());
}
