//! The log store as a whole: what a writer wrote, readers and followers find, whatever happened to the files. What is about more
//! than one segment is in `rotation`.
//!
//! No test waits for a clock: the time is an argument. The disk that refuses bytes is a real one, with a limit.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::record::RECORD_BYTES;
use super::*;
use crate::name::RunNumber;
use crate::spec::LogPolicy;
use crate::time::UnixMillis;

mod rotation;
mod streams;

fn scratch() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn at(ms: u64) -> UnixMillis {
    UnixMillis(1_700_000_000_000 + ms)
}

fn open(dir: &Path, run: u32, now: UnixMillis) -> LogWriter {
    open_with(dir, run, &LogPolicy::default(), now)
}

fn open_with(dir: &Path, run: u32, policy: &LogPolicy, now: UnixMillis) -> LogWriter {
    LogWriter::open(dir, RunNumber(run), policy, now).expect("the log opens")
}

/// A log of so many bytes, in eighths.
fn sized(max_size: u64) -> LogPolicy {
    LogPolicy { max_size, ..LogPolicy::default() }
}

/// The bytes of all segments, as `cat log.0*` shows them.
fn plain_bytes(dir: &Path) -> Vec<u8> {
    let numbers = segments::list(dir).expect("the directory can be read").data;
    numbers.into_iter().flat_map(|number| fs::read(data_path(dir, number)).expect("a segment")).collect()
}

fn reader(dir: &Path) -> LogReader {
    LogReader::open(dir).expect("the log can be read").expect("there is a log")
}

/// Writes one run of lines that came 20 ms apart, from `now` on.
fn write_run(dir: &Path, run: u32, now: u64, lines: &[&str]) {
    let mut writer = open(dir, run, at(now));
    for (n, line) in lines.iter().enumerate() {
        writer.write(line.as_bytes(), at(now + 20 * n as u64));
    }
    writer.end(at(now + 20 * lines.len() as u64));
}

/// An entry with bytes of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Started(u32),
    Continued(u32, UnixMillis),
    Ended(u32),
    Gap(u32, u64),
    Restarted,
    Line { run: Option<u32>, time: Option<UnixMillis>, offset: u64, bytes: Vec<u8>, end: LineEnd },
}

impl From<Entry<'_>> for Seen {
    fn from(entry: Entry<'_>) -> Self {
        match entry {
            Entry::Started { run, .. } => Self::Started(run.0),
            Entry::Continued { run, started_at, .. } => Self::Continued(run.0, started_at),
            Entry::Ended { run, .. } => Self::Ended(run.0),
            Entry::Gap { run, lost, .. } => Self::Gap(run.0, lost),
            Entry::Restarted => Self::Restarted,
            Entry::Line(Line { run, time, offset, bytes, end, .. }) => {
                Self::Line { run: run.map(|run| run.0), time, offset, bytes: bytes.to_vec(), end }
            }
        }
    }
}

fn drain(mut cursor: Cursor) -> Vec<Seen> {
    let mut seen = Vec::new();
    while cursor.advance().expect("the log can be read") {
        seen.push(cursor.entry().expect("an entry").into());
    }
    assert_eq!(cursor.entry(), None);
    seen
}

fn news(follower: &mut Follower) -> Vec<Seen> {
    let mut seen = Vec::new();
    while follower.advance().expect("the log can be read") {
        seen.push(follower.entry().expect("an entry").into());
    }
    seen
}

fn bytes_of(seen: &[Seen]) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in seen {
        if let Seen::Line { bytes, .. } = entry {
            all.extend_from_slice(bytes);
        }
    }
    all
}

/// A whole line: run, time, offset, bytes.
type Whole = (Option<u32>, Option<UnixMillis>, u64, Vec<u8>);

/// Puts lines together from their pieces.
fn lines_of(seen: &[Seen]) -> Vec<Whole> {
    let mut lines = Vec::new();
    let mut is_open = false;
    for entry in seen {
        let Seen::Line { run, time, offset, bytes, end } = entry else {
            assert!(!is_open, "{entry:?} within a line");
            continue;
        };
        if is_open {
            let (last_run, last_time, last_offset, line): &mut Whole = lines.last_mut().expect("a line has begun");
            assert_eq!((run, time, offset), (&*last_run, &*last_time, &*last_offset));
            line.extend_from_slice(bytes);
        } else {
            lines.push((*run, *time, *offset, bytes.clone()));
        }
        is_open = *end == LineEnd::Continues;
    }
    assert!(!is_open, "the last line is open");
    lines
}

fn texts(dir: &Path, selection: &Selection) -> Vec<String> {
    let seen = drain(reader(dir).entries(selection));
    lines_of(&seen).into_iter().map(|line| String::from_utf8(line.3).expect("UTF-8")).collect()
}

// What a service may do, and what may be done to it.

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<u8>),
    Wait(u64),
    Restart,
    /// The shim dies, and somebody else goes on with the same run.
    TakeOver,
    Read,
}

fn output() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![b'a', b'b', b'\n', b'\r', b'\n', 0xc3, 0xa9, 0xff]), 0..20)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => output().prop_map(Step::Write),
        3 => (0u64..25).prop_map(Step::Wait),
        1 => Just(Step::Restart),
        1 => Just(Step::TakeOver),
        2 => Just(Step::Read),
    ];
    prop::collection::vec(step, 0..40)
}

/// What must be found afterwards.
#[derive(Default)]
struct Expected {
    /// Every byte with its run and its time.
    bytes: Vec<(u8, u32, UnixMillis)>,
    runs: u32,
}

impl Expected {
    fn all(&self) -> Vec<u8> {
        self.bytes.iter().map(|byte| byte.0).collect()
    }

    /// The lines: run, time of the first byte, offset, bytes.
    fn lines(&self) -> Vec<(u32, UnixMillis, u64, Vec<u8>)> {
        let mut lines: Vec<(u32, UnixMillis, u64, Vec<u8>)> = Vec::new();
        for (offset, (byte, run, time)) in self.bytes.iter().enumerate() {
            match lines.last_mut() {
                Some(line) if line.0 == *run && !line.3.ends_with(b"\n") => line.3.push(*byte),
                Some(_) | None => lines.push((*run, *time, offset as u64, vec![*byte])),
            }
        }
        lines
    }
}

/// Anything from a log in one segment to one in several, all of which are kept.
fn policies() -> impl Strategy<Value = LogPolicy> {
    prop_oneof![Just(LogPolicy::default()), (3000u64..10_000).prop_map(sized)]
}

fn play(dir: &Path, policy: &LogPolicy, steps: &[Step], mut read: impl FnMut()) -> Expected {
    let mut expected = Expected { runs: 1, ..Expected::default() };
    let mut now = at(0);
    let mut writer = open_with(dir, 1, policy, now);
    for step in steps {
        match step {
            Step::Write(bytes) => {
                writer.write(bytes, now);
                expected.bytes.extend(bytes.iter().map(|byte| (*byte, expected.runs, now)));
            }
            Step::Wait(ms) => now = UnixMillis(now.0 + ms),
            Step::Restart => {
                writer.end(now);
                expected.runs += 1;
                writer = open_with(dir, expected.runs, policy, now);
            }
            Step::TakeOver => writer = open_with(dir, expected.runs, policy, now),
            Step::Read => read(),
        }
    }
    writer.end(now);
    assert_eq!(writer.lost(), 0);
    read();
    expected
}

proptest! {
    #[test]
    fn readers_return_exactly_what_was_written(steps in steps(), policy in policies(), max_piece in 4usize..40) {
        let dir = scratch();
        let expected = play(dir.path(), &policy, &steps, || ());
        let reader = reader(dir.path());
        let all = reader.all();
        let seen = drain(reader.entries(&all).with_max_piece(max_piece));

        prop_assert_eq!(plain_bytes(dir.path()), expected.all());
        prop_assert_eq!(bytes_of(&seen), expected.all());
        let lines = lines_of(&seen);
        prop_assert_eq!(lines.len(), expected.lines().len());
        for ((run, time, offset, bytes), (want_run, came, want_offset, want)) in lines.iter().zip(expected.lines()) {
            prop_assert_eq!((run, offset, bytes), (&Some(want_run), &want_offset, &want));
            let time = time.expect("a time");
            prop_assert!(time <= came && came.since(time).as_millis() < 10, "{:?} came at {:?}", time, came);
        }
        let boundaries: Vec<Seen> =
            seen.into_iter().filter(|seen| matches!(seen, Seen::Started(_) | Seen::Ended(_))).collect();
        let want: Vec<Seen> = (1..=expected.runs).flat_map(|run| [Seen::Started(run), Seen::Ended(run)]).collect();
        prop_assert_eq!(boundaries, want);
    }

    #[test]
    fn runs_hold_what_they_wrote(steps in steps(), policy in policies()) {
        let dir = scratch();
        let expected = play(dir.path(), &policy, &steps, || ());
        let reader = reader(dir.path());
        let runs = reader.runs();
        prop_assert_eq!(runs.len(), expected.runs as usize);
        for (span, number) in runs.iter().zip(1..) {
            let wrote: Vec<u8> = expected.bytes.iter().filter(|byte| byte.1 == number).map(|byte| byte.0).collect();
            let seen = drain(reader.entries(&span.selection));
            prop_assert_eq!(bytes_of(&seen), wrote);
            prop_assert_eq!(seen.first(), Some(&Seen::Started(number)));
            prop_assert_eq!(seen.last(), Some(&Seen::Ended(number)));
            prop_assert!(span.started_at.is_some() && span.ended_at.is_some());
            prop_assert_eq!(reader.run(RunChoice::Number(RunNumber(number))), Some(span.clone()));
        }
        prop_assert_eq!(reader.run(RunChoice::Current), runs.last().cloned());
        prop_assert_eq!(reader.run(RunChoice::Previous), runs.iter().rev().nth(1).cloned());
        prop_assert_eq!(reader.run(RunChoice::Number(RunNumber(expected.runs + 1))), None);
    }

    #[test]
    fn last_lines_are_the_last_lines(steps in steps(), policy in policies(), count in 0usize..30) {
        let dir = scratch();
        play(dir.path(), &policy, &steps, || ());
        let reader = reader(dir.path());
        for span in reader.runs().into_iter().map(|run| run.selection).chain([reader.all()]) {
            let whole = lines_of(&drain(reader.entries(&span)));
            let narrowed = reader.last_lines(&span, count).expect("the log can be read");
            let last = lines_of(&drain(reader.entries(&narrowed)));
            prop_assert_eq!(&last[..], &whole[whole.len().saturating_sub(count)..]);
        }
    }

    #[test]
    fn since_and_until_split_a_log_by_time(steps in steps(), policy in policies(), ms in 0u64..400) {
        let dir = scratch();
        play(dir.path(), &policy, &steps, || ());
        let reader = reader(dir.path());
        let whole = lines_of(&drain(reader.entries(&reader.all())));
        let since = reader.since(&reader.all(), at(ms)).expect("the log can be read");
        let until = reader.until(&reader.all(), at(ms)).expect("the log can be read");
        let later: Vec<_> = whole.iter().filter(|line| line.1 >= Some(at(ms))).cloned().collect();
        let earlier: Vec<_> = whole.iter().filter(|line| line.1 <= Some(at(ms))).cloned().collect();
        prop_assert_eq!(lines_of(&drain(reader.entries(&since))), later);
        prop_assert_eq!(lines_of(&drain(reader.entries(&until))), earlier);
    }

    #[test]
    fn a_follower_sees_what_a_reader_sees(steps in steps(), policy in policies()) {
        let dir = scratch();
        let mut follower = Follower::new(dir.path());
        let mut seen = Vec::new();
        let expected = play(dir.path(), &policy, &steps, || seen.extend(news(&mut follower)));
        prop_assert_eq!(bytes_of(&seen), expected.all());
        let at_once = reader(dir.path());
        prop_assert_eq!(seen, drain(at_once.entries(&at_once.all())));
    }

    #[test]
    fn a_damaged_index_loses_no_byte(
        steps in steps(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        is_cut in any::<bool>(),
    ) {
        let dir = scratch();
        let expected = play(dir.path(), &LogPolicy::default(), &steps, || ());
        let path = index_path(dir.path(), 1);
        let mut index = fs::read(&path).expect("the index");
        for (place, byte) in &damage {
            let place = place.index(index.len());
            index[place] = *byte;
            if is_cut {
                index.truncate(place.max(1));
            }
        }
        fs::write(&path, index).expect("the index is damaged");
        no_byte_is_lost(dir.path(), &expected.all());
    }

    #[test]
    fn whatever_is_deleted_is_made_again(
        steps in prop::collection::vec((output(), 0u64..25, 0u8..12), 1..30),
    ) {
        let base = scratch();
        let dir = base.path().join("service");
        let mut now = at(0);
        let mut writer = open(&dir, 1, now);
        let mut follower = Follower::new(&dir);
        let mut seen = Vec::new();
        let mut written = Vec::new();
        for (bytes, wait, deed) in &steps {
            seen.extend(news(&mut follower));
            match deed {
                0 => fs::remove_file(data_path(&dir, 1)).expect("it was there"),
                1 => drop(fs::remove_file(index_path(&dir, 1))),
                2 => fs::remove_dir_all(&dir).expect("it was there"),
                _ => {}
            }
            writer.write(bytes, now);
            written.extend_from_slice(bytes);
            now = UnixMillis(now.0 + wait);
            if *deed <= 2 {
                // The next write finds out.
                now = UnixMillis(now.0 + MARK_INTERVAL_MS);
                writer.write(b"!", now);
                written.push(b'!');
                prop_assert!(fs::read(data_path(&dir, 1)).expect("a log").ends_with(b"!"));
                prop_assert!(index_path(&dir, 1).exists());
            }
        }
        writer.end(now);
        seen.extend(news(&mut follower));
        // Everything was written to a file that the follower had open.
        prop_assert_eq!(bytes_of(&seen), written);
        let reader = reader(&dir);
        let runs = reader.runs();
        prop_assert_eq!(runs.last().and_then(|run| run.run), Some(RunNumber(1)));
        prop_assert_eq!(runs.last().and_then(|run| run.started_at), Some(at(0)));
    }
}

fn no_byte_is_lost(dir: &Path, all: &[u8]) {
    let reader = reader(dir);
    assert_eq!(bytes_of(&drain(reader.entries(&reader.all()))), all);
    let mut place = 0;
    for run in reader.runs() {
        assert_eq!(run.selection.bytes.start, place, "{run:?}");
        place = run.selection.bytes.end;
    }
    assert_eq!(place, all.len() as u64);
    let mut follower = Follower::new(dir);
    let mut followed = bytes_of(&news(&mut follower));
    followed.extend_from_slice(follower.held());
    assert_eq!(followed, all);
}

#[test]
fn an_index_torn_at_any_length_loses_no_byte() {
    let dir = scratch();
    write_run(dir.path(), 1, 0, &["one\n", "two\n", "three"]);
    write_run(dir.path(), 2, 100, &["four\n", "five"]);
    let all = fs::read(data_path(dir.path(), 1)).expect("the log");
    let index = fs::read(index_path(dir.path(), 1)).expect("the index");
    for length in 0..=index.len() {
        fs::write(data_path(dir.path(), 1), &all).expect("the log is put back");
        fs::write(index_path(dir.path(), 1), &index[..length]).expect("the index is torn");
        no_byte_is_lost(dir.path(), &all);
        write_run(dir.path(), 3, 200, &["six\n"]);
        let mut all = all.clone();
        all.extend_from_slice(b"six\n");
        no_byte_is_lost(dir.path(), &all);
        let newest = reader(dir.path()).run(RunChoice::Current).expect("a run");
        assert_eq!((newest.run, newest.started_at), (Some(RunNumber(3)), Some(at(200))), "torn at {length}");
        assert_eq!(texts(dir.path(), &newest.selection), ["six\n"]);
    }
    fs::write(data_path(dir.path(), 1), &all).expect("the log is put back");
    fs::remove_file(index_path(dir.path(), 1)).expect("the index is deleted");
    no_byte_is_lost(dir.path(), &all);
    let runs = reader(dir.path()).runs();
    assert_eq!(runs.len(), 1);
    assert_eq!((runs[0].run, runs[0].started_at), (None, None));
}

#[test]
fn files_are_private_and_the_directory_is_made() {
    let base = scratch();
    let dir = base.path().join("a/b");
    open(&dir, 1, at(0));
    let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&data_path(&dir, 1)), 0o600);
    assert_eq!(mode(&index_path(&dir, 1)), 0o600);
}

#[test]
fn a_busy_log_gets_one_mark_in_ten_milliseconds() {
    let dir = scratch();
    let mut writer = open(dir.path(), 1, at(0));
    for n in 0..1000 {
        writer.write(b"line\n", at(n / 10));
    }
    // The header, the beginning of the run, and one mark for each 10 ms after it.
    let length = fs::metadata(index_path(dir.path(), 1)).expect("the index").len();
    assert_eq!(length, (1 + 1 + 9) * RECORD_BYTES as u64);
}

#[test]
fn a_clock_that_is_set_back_makes_a_mark_due() {
    let dir = scratch();
    let mut writer = open(dir.path(), 1, at(10_000));
    writer.write(b"before\n", at(10_000));
    writer.write(b"after\n", at(5_000));
    let reader = reader(dir.path());
    let lines = lines_of(&drain(reader.entries(&reader.all())));
    assert_eq!(lines.iter().map(|line| line.1).collect::<Vec<_>>(), [Some(at(10_000)), Some(at(5_000))]);
}

#[test]
fn what_two_runs_wrote_is_not_glued_together() {
    let dir = scratch();
    write_run(dir.path(), 7, 0, &["panic: boom"]);
    write_run(dir.path(), 8, 100, &["hello\n"]);
    let reader = reader(dir.path());
    assert_eq!(texts(dir.path(), &reader.all()), ["panic: boom", "hello\n"]);
    assert_eq!(tail(dir.path(), RunNumber(7), 5).expect("readable"), ["panic: boom"]);
}

#[test]
fn run_numbers_that_begin_again_cost_the_index_and_no_byte() {
    let dir = scratch();
    write_run(dir.path(), 7, 0, &["seven\n"]);
    write_run(dir.path(), 1, 100, &["one\n"]);
    no_byte_is_lost(dir.path(), b"seven\none\n");
    let runs: Vec<_> = reader(dir.path()).runs().iter().map(|run| run.run).collect();
    assert_eq!(runs, [None, Some(RunNumber(1))]);
}

#[test]
fn an_index_left_behind_by_a_deleted_log_is_not_believed() {
    let dir = scratch();
    write_run(dir.path(), 1, 0, &["one\n"]);
    fs::remove_file(data_path(dir.path(), 1)).expect("the log is deleted");
    write_run(dir.path(), 2, 100, &["two\n"]);
    let runs: Vec<_> = reader(dir.path()).runs().iter().map(|run| run.run).collect();
    assert_eq!(runs, [Some(RunNumber(2))]);
}

#[test]
fn a_run_without_output_stays_on_record() {
    let dir = scratch();
    write_run(dir.path(), 1, 0, &[]);
    write_run(dir.path(), 2, 100, &["two\n"]);
    let runs: Vec<_> = reader(dir.path()).runs().iter().map(|run| (run.run, run.selection.bytes.clone())).collect();
    assert_eq!(runs, [(Some(RunNumber(1)), 0..0), (Some(RunNumber(2)), 0..4)]);
}

#[test]
fn output_without_index_behind_a_known_run_is_a_run_of_its_own() {
    let dir = scratch();
    write_run(dir.path(), 1, 0, &["one\n"]);
    let mut log = OpenOptions::new().append(true).open(data_path(dir.path(), 1)).expect("the log");
    log.write_all(b"who?\n").expect("it is appended");
    let reader = reader(dir.path());
    let newest = reader.run(RunChoice::Current).expect("a run");
    assert_eq!((newest.run, texts(dir.path(), &newest.selection)), (None, vec!["who?\n".to_owned()]));
    let previous = reader.run(RunChoice::Previous).expect("a run");
    assert_eq!((previous.run, texts(dir.path(), &previous.selection)), (Some(RunNumber(1)), vec!["one\n".to_owned()]));
}

#[test]
fn a_log_that_is_emptied_under_the_writer_goes_on_from_its_beginning() {
    let dir = scratch();
    let mut writer = open(dir.path(), 4, at(0));
    writer.write(b"before\n", at(0));
    let mut follower = Follower::new(dir.path());
    assert_eq!(bytes_of(&news(&mut follower)), b"before\n");
    File::create(data_path(dir.path(), 1)).expect("the log is emptied");
    assert_eq!(news(&mut follower), [Seen::Restarted, Seen::Started(4)]);
    writer.write(b"after\n", at(20));
    let after =
        Seen::Line { run: Some(4), time: Some(at(20)), offset: 0, bytes: b"after\n".to_vec(), end: LineEnd::Newline };
    // The 7 bytes before may have been written after the cut, so at most they are missing.
    assert_eq!(news(&mut follower), [Seen::Gap(4, 7), after]);
    let reader = reader(dir.path());
    let run = reader.run(RunChoice::Current).expect("a run");
    assert_eq!((run.run, run.started_at, run.selection.bytes.clone()), (Some(RunNumber(4)), Some(at(0)), 0..6));
    assert_eq!(lines_of(&drain(reader.entries(&run.selection))).len(), 1);
}

#[test]
fn a_follower_reads_a_renamed_log_to_its_end() {
    let dir = scratch();
    let mut writer = open(dir.path(), 1, at(0));
    writer.write(b"one\ntw", at(0));
    let mut follower = Follower::new(dir.path());
    assert_eq!(bytes_of(&news(&mut follower)), b"one\n");
    fs::rename(data_path(dir.path(), 1), dir.path().join("log.1")).expect("the log is renamed");
    writer.write(b"o\nthree", at(5));
    write_run(dir.path(), 2, 100, &["four\n"]);
    let seen = news(&mut follower);
    assert_eq!(bytes_of(&seen), b"two\nthreefour\n");
    let restarted = seen.iter().position(|seen| *seen == Seen::Restarted).expect("the follower says so");
    assert_eq!(bytes_of(&seen[..restarted]), b"two\nthree");
}

#[test]
fn a_follower_waits_for_the_rest_of_a_line_and_can_show_its_beginning() {
    let dir = scratch();
    let mut follower = Follower::new(dir.path());
    assert_eq!(news(&mut follower), []);
    let mut writer = open(dir.path(), 1, at(0));
    writer.write("Passwörd: \u{e9}".as_bytes().split_last().expect("bytes").1, at(0));
    assert_eq!(news(&mut follower), [Seen::Started(1)]);
    assert_eq!(follower.held(), b"Passw\xc3\xb6rd: \xc3");
    assert!(follower.release().expect("readable"));
    let Some(Entry::Line(line)) = follower.entry() else { panic!("a line") };
    assert_eq!((line.bytes, line.end), ("Passwörd: ".as_bytes(), LineEnd::Continues));
    assert_eq!(news(&mut follower), []);
    assert!(!follower.release().expect("readable"), "half a character stays");
    // The mark that comes with the rest does not end the line.
    writer.write(b"\xa9\n", at(30));
    let piece = |offset, time, bytes: &[u8], end| {
        let (run, time, bytes) = (Some(1), Some(at(time)), bytes.to_vec());
        Seen::Line { run, time, offset, bytes, end }
    };
    assert_eq!(news(&mut follower), [piece(0, 0, "é\n".as_bytes(), LineEnd::Newline)]);
    writer.write(b"unfinished", at(31));
    assert_eq!(news(&mut follower), []);
    assert!(follower.release().expect("readable"));
    assert_eq!(news(&mut follower), []);
    writer.write(b", or not?", at(50));
    assert_eq!(news(&mut follower), []);
    assert!(follower.release().expect("readable"));
    writer.end(at(52));
    assert_eq!(news(&mut follower), [piece(14, 30, b"", LineEnd::Unfinished), Seen::Ended(1)]);
}

#[test]
fn a_line_longer_than_a_piece_comes_in_pieces_of_whole_characters() {
    let dir = scratch();
    let mut writer = open(dir.path(), 1, at(0));
    let long = "xä€😀".repeat(40_000);
    writer.write(long.as_bytes(), at(0));
    writer.write(b"\nshort\n", at(0));
    let reader = reader(dir.path());
    let seen = drain(reader.entries(&reader.all()));
    for entry in &seen {
        if let Seen::Line { bytes, .. } = entry {
            assert!(bytes.len() <= MAX_PIECE_BYTES && std::str::from_utf8(bytes).is_ok());
        }
    }
    assert_eq!(seen.len(), 1 + long.len().div_ceil(MAX_PIECE_BYTES) + 1);
    let lines = lines_of(&seen);
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0].3, [long.as_bytes(), b"\n"].concat());
}

#[test]
fn the_tail_of_a_huge_log_reads_only_what_it_needs() {
    let dir = scratch();
    let mut writer = open_with(dir.path(), 1, &sized(u64::MAX), at(0));
    // A hole of 4 TB takes no room; reading it would take an hour.
    let hole = 4 << 40;
    OpenOptions::new()
        .write(true)
        .open(data_path(dir.path(), 1))
        .and_then(|log| log.set_len(hole))
        .expect("the file system has sparse files");
    for n in 0..5000u32 {
        writer.write(format!("\nline {n}").as_bytes(), at(20 + u64::from(n)));
    }
    assert_eq!(tail(dir.path(), RunNumber(1), 2).expect("readable"), ["line 4998", "line 4999"]);
    let reader = reader(dir.path());
    let since = reader.since(&reader.all(), at(20 + 4000)).expect("readable");
    assert_eq!(lines_of(&drain(reader.entries(&since))).len(), 1000);
    let last = reader.last_lines(&reader.all(), 5000).expect("readable");
    assert_eq!(last.bytes.start, hole + 1);
}

#[test]
fn a_tail_is_text_and_bounded() {
    let dir = scratch();
    write_run(
        dir.path(),
        3,
        0,
        &["first\n", "\x1b[31merror:\x1b[0m\tno\r\n", " 10%\r100%\n", &"é".repeat(100_000), "\n", "end"],
    );
    let lines = tail(dir.path(), RunNumber(3), 4).expect("readable");
    assert_eq!(lines, ["error:\tno", "100%", &format!("{}…", "é".repeat(2048)), "end"]);
    assert_eq!(tail(dir.path(), RunNumber(9), 4).expect("readable"), Vec::<String>::new());
    assert_eq!(tail(&dir.path().join("none"), RunNumber(1), 4).expect("no log is no error"), Vec::<String>::new());
    fs::remove_file(index_path(dir.path(), 1)).expect("the index is deleted");
    assert_eq!(tail(dir.path(), RunNumber(3), 1).expect("readable"), ["end"]);
}

/// A disk that refuses bytes: files of this process may have 5,000 bytes, later more. RLIMIT_FSIZE takes what fits of a
/// write and refuses the rest with EFBIG, as a full disk does with ENOSPC.
#[test]
fn a_disk_that_refuses_bytes_costs_exactly_those_and_is_marked() {
    const DIR: &str = "LOCALD_TEST_LIMITED_DIR";
    let Some(dir) = std::env::var_os(DIR) else {
        let dir = scratch();
        let test = "log::tests::a_disk_that_refuses_bytes_costs_exactly_those_and_is_marked";
        // Its output goes through pipes: the limit would hold for a file, too.
        let output = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$0\" --exact \"$1\" --nocapture"])
            .arg(std::env::current_exe().expect("this program"))
            .arg(test)
            .env(DIR, dir.path())
            .output()
            .expect("this program starts");
        assert!(output.status.success(), "{output:?}");
        assert!(dir.path().join("done").exists(), "the child ran the test");
        return;
    };
    let dir = Path::new(&dir);
    let limit = |bytes| {
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_FSIZE, bytes, nix::libc::RLIM_INFINITY)
            .expect("the soft limit can be set");
    };
    let mut follower = Follower::new(dir);
    let mut writer = open(dir, 1, at(0));
    limit(5000);
    for n in 0..100 {
        writer.write(&[b'x'; 100], at(n));
    }
    assert_eq!(writer.lost(), 5000);
    writer.write(&[b'x'; 30], at(100));
    assert_eq!(bytes_of(&news(&mut follower)), b"");
    limit(8000);
    writer.write(b"back\n", at(101));
    writer.write(b"and on\n", at(102));
    writer.write(&[b'y'; 4000], at(103));
    assert_eq!(writer.lost(), 5030 + 1012);
    writer.end(at(120));
    let reader = reader(dir);
    let seen = drain(reader.entries(&reader.all()));
    let gaps: Vec<(usize, &Seen)> = seen.iter().enumerate().filter(|(_, seen)| matches!(seen, Seen::Gap(..))).collect();
    assert_eq!(gaps.iter().map(|gap| gap.1).collect::<Vec<_>>(), [&Seen::Gap(1, 5030), &Seen::Gap(1, 1012)]);
    assert_eq!(bytes_of(&seen[..gaps[0].0]), [b'x'; 5000]);
    assert_eq!(bytes_of(&seen[gaps[0].0..gaps[1].0]), [&b"back\nand on\n"[..], &[b'y'; 2988]].concat());
    assert_eq!(&seen[gaps[1].0..], [Seen::Gap(1, 1012), Seen::Ended(1)]);
    fs::write(dir.join("done"), "").expect("the child says so");
}

/// `/dev/full` refuses every byte with ENOSPC.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_never_stops_the_writer() {
    let dir = scratch();
    std::os::unix::fs::symlink("/dev/full", data_path(dir.path(), 1)).expect("the log is /dev/full");
    let mut writer = open(dir.path(), 1, at(0));
    for n in 0..50 {
        writer.write(b"0123456789", at(n));
    }
    assert_eq!(writer.lost(), 500);
    fs::remove_file(data_path(dir.path(), 1)).expect("the disk is put right");
    writer.end(at(60));
    assert_eq!(writer.lost(), 500);
}

#[test]
fn output_lost_before_it_came_here_is_marked() {
    let dir = scratch();
    let mut writer = open(dir.path(), 1, at(0));
    writer.write(b"one\n", at(0));
    writer.lose(4096);
    writer.write(b"two\n", at(1));
    let reader = reader(dir.path());
    let seen = drain(reader.entries(&reader.all()));
    assert_eq!(seen[2], Seen::Gap(1, 4096));
    assert_eq!(bytes_of(&seen[..2]), b"one\n");
}

#[test]
fn output_that_may_have_gone_with_a_deleted_log_is_marked() {
    let dir = scratch();
    let mut writer = open(dir.path(), 1, at(0));
    writer.write(b"one\n", at(0));
    writer.write(b"two\n", at(10));
    fs::remove_file(data_path(dir.path(), 1)).expect("the log is deleted");
    writer.write(b"gone\n", at(19));
    writer.write(b"here\n", at(20));
    // "two" came after the last look at the file as well, so it counts: at most 9 bytes.
    assert_eq!(writer.lost(), 9);
    let reader = reader(dir.path());
    let seen = drain(reader.entries(&reader.all()));
    assert_eq!(seen[..2], [Seen::Started(1), Seen::Gap(1, 9)]);
    assert_eq!(bytes_of(&seen), b"here\n");
}

#[test]
fn a_new_index_knows_where_the_run_began() {
    let dir = scratch();
    write_run(dir.path(), 1, 0, &["old\n"]);
    let mut writer = open(dir.path(), 2, at(100));
    writer.write(b"one\n", at(100));
    fs::remove_file(index_path(dir.path(), 1)).expect("the index is deleted");
    writer.write(b"two\n", at(120));
    let reader = reader(dir.path());
    let run = reader.run(RunChoice::Current).expect("a run");
    assert_eq!((run.run, run.started_at), (Some(RunNumber(2)), Some(at(100))));
    assert_eq!(texts(dir.path(), &run.selection), ["one\n", "two\n"]);
}

#[test]
fn an_index_that_knows_more_than_the_log_has_is_cut_to_size() {
    let dir = scratch();
    write_run(dir.path(), 1, 0, &["one\n"]);
    write_run(dir.path(), 2, 100, &["two\n", "lost\n", "lost\n", "lost\n", "lost\n"]);
    // As after a power failure that the index survived and the end of the log did not.
    let log = OpenOptions::new().write(true).open(data_path(dir.path(), 1)).expect("the log");
    log.set_len(8).expect("it is cut");
    write_run(dir.path(), 3, 300, &["three\n"]);
    let runs: Vec<_> = reader(dir.path()).runs().iter().map(|run| (run.run, run.selection.bytes.clone())).collect();
    assert_eq!(runs, [(Some(RunNumber(1)), 0..4), (Some(RunNumber(2)), 4..8), (Some(RunNumber(3)), 8..14)]);
    let index = fs::metadata(index_path(dir.path(), 1)).expect("the index").len();
    // The header, the start and the end of run 1, the start and one mark of run 2, the start and the end of run 3.
    assert_eq!(index, 7 * RECORD_BYTES as u64);
}

#[test]
fn an_index_of_another_version_is_not_read() {
    let dir = scratch();
    write_run(dir.path(), 1, 0, &["one\n"]);
    let path = index_path(dir.path(), 1);
    let mut index = fs::read(&path).expect("the index");
    index[8] = 2;
    fs::write(&path, index).expect("the index is changed");
    assert_eq!(reader(dir.path()).runs().iter().map(|run| run.run).collect::<Vec<_>>(), [None]);
    no_byte_is_lost(dir.path(), b"one\n");
}

#[test]
fn output_without_index_between_two_runs_is_a_run_of_its_own() {
    let dir = scratch();
    write_run(dir.path(), 1, 0, &["one\n"]);
    let mut log = OpenOptions::new().append(true).open(data_path(dir.path(), 1)).expect("the log");
    log.write_all(b"who?\n").expect("it is appended");
    write_run(dir.path(), 2, 100, &["two\n"]);
    let reader = reader(dir.path());
    let runs = reader.runs();
    assert_eq!(runs.iter().map(|run| run.run.map(|run| run.0)).collect::<Vec<_>>(), [Some(1), None, Some(2)]);
    assert_eq!(reader.run(RunChoice::Previous).as_ref(), Some(&runs[1]));
    assert_eq!(texts(dir.path(), &runs[1].selection), ["who?\n"]);
}

#[test]
fn a_record_that_was_seen_half_written_is_read_again() {
    let dir = scratch();
    let mut writer = open(dir.path(), 1, at(0));
    writer.write(b"one\n", at(0));
    writer.end(at(5));
    let path = index_path(dir.path(), 1);
    let whole = fs::read(&path).expect("the index");
    let (start, end) = whole.split_at(whole.len() - RECORD_BYTES);
    fs::write(&path, [start, &[0; RECORD_BYTES]].concat()).expect("the index is torn");
    let mut follower = Follower::new(dir.path());
    assert_eq!(news(&mut follower).len(), 2);
    fs::write(&path, [start, end].concat()).expect("the index is put right");
    assert_eq!(news(&mut follower), [Seen::Ended(1)]);
}
