//! What is done with bytes from outside. Each function may take any bytes and must neither panic nor keep more memory than its
//! input explains; what it says afterwards must be consistent.
//!
//! `fuzz_targets` has libFuzzer call them with what it thinks of; `tests/fuzz.rs` calls them with the seeds and some thousand
//! changes of each, wherever the tests run.

use locald_utils::frame::{self, Decoder, MAX_PAYLOAD};
use locald_utils::log::{Follower, LogReader, LogWriter, data_path, index_path};
use locald_utils::name::RunNumber;
use locald_utils::process::darwin::{self, Arguments};
use locald_utils::protocol::{ClientMessage, DaemonStart, Hello, ServerMessage};
use locald_utils::record::{self, Ended, PidRecord, ShimRecord, StopRecord};
use locald_utils::shim_protocol::{FromShim, ShimIdentity, ToShim};
use locald_utils::spec::LogPolicy;
use locald_utils::time::UnixMillis;

/// A target, and its name.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    ("frame", frame),
    ("protocol", protocol),
    ("shim_protocol", shim_protocol),
    ("config", config),
    ("log_index", log_index),
    ("record", record),
    ("procargs2", procargs2),
];

/// A byte stream that arrives in two parts.
pub(crate) fn frame(bytes: &[u8]) {
    let mut whole = Decoder::default();
    whole.push(bytes);
    let mut halves = Decoder::default();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let mut from_halves = Vec::new();
    for part in [first, second] {
        halves.push(part);
        while let Ok(Some(frame)) = halves.next_frame() {
            from_halves.push(frame);
        }
    }
    let mut count = 0;
    while let Ok(Some(frame)) = whole.next_frame() {
        assert!(frame.payload.len() <= MAX_PAYLOAD && frame.payload.len() <= bytes.len());
        assert_eq!(from_halves.get(count), Some(&frame), "how it arrives makes no difference");
        count += 1;
    }
    assert_eq!(from_halves.len(), count);
    assert!(whole.pending() <= bytes.len());
}

/// A message that is understood is understood again when it is written.
fn message<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let frame = frame::Frame { kind: frame::FrameKind::Control, payload: bytes.to_vec() };
    let Ok(message) = frame::decode::<T>(&frame) else { return };
    let mut decoder = Decoder::default();
    decoder.push(&frame::encode(&message).expect("what was read can be written"));
    let again = decoder.next_frame().expect("a frame").expect("a whole one");
    assert_eq!(frame::decode::<T>(&again).expect("what was written can be read"), message);
}

/// What the command line and the daemon say to each other.
pub(crate) fn protocol(bytes: &[u8]) {
    message::<Hello>(bytes);
    message::<ClientMessage>(bytes);
    message::<ServerMessage>(bytes);
    message::<DaemonStart>(bytes);
}

/// What the daemon and a shim say to each other.
pub(crate) fn shim_protocol(bytes: &[u8]) {
    message::<ToShim>(bytes);
    message::<FromShim>(bytes);
    message::<ShimIdentity>(bytes);
}

/// A project file. Every mistake has a place within it.
pub(crate) fn config(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("locald.toml");
    std::fs::write(&file, bytes).expect("written");
    match locald_utils::config::load(&file) {
        Ok(project) => assert!(!project.services.is_empty()),
        Err(errors) => {
            let diagnostics = errors.diagnostics();
            assert!(!diagnostics.is_empty());
            let lines = bytes.split(|byte| *byte == b'\n').count();
            for diagnostic in diagnostics {
                assert!(!diagnostic.message.is_empty());
                assert!(diagnostic.place.is_none_or(|place| place.line >= 1 && place.line <= lines + 1));
            }
        }
    }
}

/// The index of a log of 300 bytes. Whatever it says, every byte is handed out once, in order, and a writer goes on.
pub(crate) fn log_index(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let log: Vec<u8> = (0..30).flat_map(|line| format!("line {line:04}\n").into_bytes()).collect();
    std::fs::write(data_path(dir.path(), 1), &log).expect("written");
    std::fs::write(index_path(dir.path(), 1), bytes).expect("written");
    let all = |expected: &[u8]| {
        let reader = LogReader::open(dir.path()).expect("readable").expect("there");
        let mut cursor = reader.entries(&reader.all());
        let mut read = Vec::new();
        while cursor.advance().expect("readable") {
            if let Some(locald_utils::log::Entry::Line(line)) = cursor.entry() {
                read.extend_from_slice(line.bytes);
            }
        }
        assert_eq!(read, expected);
        for span in reader.runs() {
            let _ = reader.last_lines(&span.selection, 3).expect("readable");
        }
        let mut follower = Follower::new(dir.path());
        let mut count = 0;
        while follower.advance().expect("readable") {
            count += 1;
            assert!(count < 100_000, "it comes to an end");
        }
    };
    all(&log);
    let mut writer =
        LogWriter::open(dir.path(), RunNumber(3), &LogPolicy::default(), UnixMillis(1_700_000_000_000)).expect("opens");
    writer.write(b"more\n", UnixMillis(1_700_000_000_020));
    writer.end(UnixMillis(1_700_000_000_040));
    all(&[&log[..], b"more\n"].concat());
}

/// A record of a run. What can be read can be stored and read again.
pub(crate) fn record(bytes: &[u8]) {
    fn one<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(dir: &std::path::Path) {
        let Ok(Some(found)) = record::load::<T>(dir, record::SHIM) else { return };
        record::store(dir, record::PID, &found).expect("stored");
        assert_eq!(record::load::<T>(dir, record::PID).expect("readable"), Some(found));
    }
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join(record::SHIM), bytes).expect("written");
    one::<ShimRecord>(dir.path());
    one::<PidRecord>(dir.path());
    one::<StopRecord>(dir.path());
    one::<Ended>(dir.path());
}

/// What the kernel of macOS tells about processes and sockets.
pub(crate) fn procargs2(bytes: &[u8]) {
    if let Some(arguments) = Arguments::parse(bytes) {
        let _ = arguments.variable("LOCALD_RUN");
    }
    let table = darwin::processes(bytes);
    assert!(table.len() <= bytes.len());
    let _ = darwin::working_directory(bytes);
    let _ = darwin::socket_descriptors(bytes).count();
    assert!(darwin::listening_sockets(bytes).len() <= bytes.len());
}
