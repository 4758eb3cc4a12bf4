//! What earlier releases said and wrote is still understood, and means the same.
//!
//! `golden/VERSION.jsonl` has what the programs of a release told each other in a day, and the records they wrote, made by
//! `scripts/record-protocol.py`. A recording is never changed after its release; the next one gets a file of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use locald_utils::protocol::{ClientMessage, Hello, ServerMessage};
use locald_utils::record::{Ended, PidRecord, ShimRecord, StopRecord};
use locald_utils::shim_protocol::{FromShim, ToShim};
use locald_utils::{protocol, shim_protocol};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Deserialize)]
struct Line {
    from: String,
    message: Value,
}

/// How a message is read, and written again.
type Reading = (&'static str, fn(&Value) -> Option<Value>);

fn again<T: Serialize + DeserializeOwned>(message: &Value) -> Option<Value> {
    let read = T::deserialize(message).ok()?;
    Some(serde_json::to_value(read).expect("can be JSON"))
}

/// What each program says to whom, and what is in which record.
fn readings(from: &str) -> &'static [Reading] {
    match from {
        "locald" => {
            &[("Hello", again::<Hello>), ("ClientMessage", again::<ClientMessage>), ("ToShim", again::<ToShim>)]
        }
        "locald-server" => {
            &[("Hello", again::<Hello>), ("ServerMessage", again::<ServerMessage>), ("ToShim", again::<ToShim>)]
        }
        "locald-shim" => &[("FromShim", again::<FromShim>)],
        "record pid" => &[("PidRecord", again::<PidRecord>)],
        "record shim" => &[("ShimRecord", again::<ShimRecord>)],
        "record stop" => &[("StopRecord", again::<StopRecord>)],
        "record exit" => &[("Ended", again::<Ended>)],
        other => panic!("nobody is called {other}"),
    }
}

/// Whether everything in `old` is in `new`. There may be more: fields are added.
fn keeps(new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            old.iter().all(|(name, old)| new.get(name).map_or_else(|| old.is_null(), |new| keeps(new, old)))
        }
        (Value::Array(new), Value::Array(old)) => {
            new.len() == old.len() && new.iter().zip(old).all(|(new, old)| keeps(new, old))
        }
        _ => new == old,
    }
}

/// The recordings: their names and lines.
fn recordings() -> BTreeMap<String, Vec<Line>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = std::fs::read_dir(dir).expect("recordings").map(|entry| entry.expect("an entry").path());
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).expect("text");
        let lines = text.lines().map(|line| serde_json::from_str(line).expect("a line of a recording"));
        (path.file_stem().expect("a name").to_string_lossy().into_owned(), lines.collect())
    };
    files.map(read).collect()
}

#[test]
fn what_every_release_said_and_wrote_is_understood_and_means_the_same() {
    for (version, lines) in recordings() {
        let mut said = BTreeSet::new();
        for (number, Line { from, message }) in lines.iter().enumerate() {
            let place = || format!("{version}.jsonl:{}: {from} said {message}", number + 1);
            let read = readings(from).iter().find_map(|(name, read)| Some((*name, read(message)?)));
            let (name, again) = read.unwrap_or_else(|| panic!("{} is no longer understood", place()));
            assert!(keeps(&again, message), "{} was read as {again}", place());
            said.insert((from.clone(), name));
        }
        // A recording in which somebody is silent would prove nothing of them.
        for from in
            ["locald", "locald-server", "locald-shim", "record pid", "record shim", "record stop", "record exit"]
        {
            for (name, _) in readings(from) {
                assert!(said.contains(&(from.to_owned(), name)), "{version}.jsonl has no {name} of {from}");
            }
        }
    }
}

#[test]
fn every_protocol_version_has_a_recording() {
    let mut recorded: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for Line { from, message } in recordings().values().flatten() {
        let versions = [("locald", &message["protocol"]), ("locald-shim", &message["hello"]["protocol"])];
        for (_, version) in versions.into_iter().filter(|(by, _)| by == from) {
            recorded.entry(if from == "locald" { "daemon" } else { "shim" }).or_default().extend(version.as_u64());
        }
    }
    for (name, newest) in [("daemon", protocol::PROTOCOL), ("shim", shim_protocol::PROTOCOL)] {
        let all: BTreeSet<u64> = (1..=u64::from(newest)).collect();
        assert_eq!(recorded[name], all, "the recorded versions of the protocol of the {name}");
    }
}

#[test]
fn a_message_of_a_later_version_that_says_more_is_understood() {
    for Line { from, message } in recordings().into_values().flatten() {
        let more = with_more(&message);
        let is_understood = readings(&from).iter().any(|(_, read)| read(&more).is_some());
        assert!(is_understood, "{from} said {more}");
    }
}

/// The same message with a field more wherever fields have fixed names. (A field alone may be the name of a variant.)
fn with_more(message: &Value) -> Value {
    const MAPS: [&str; 8] = ["env", "environment", "before", "started_on", "origins", "ports", "probes", "headers"];
    match message {
        Value::Object(fields) => {
            let more = fields.iter().map(|(name, field)| {
                let field = if MAPS.contains(&name.as_str()) { field.clone() } else { with_more(field) };
                (name.clone(), field)
            });
            let mut more: serde_json::Map<String, Value> = more.collect();
            if fields.len() > 1 {
                more.insert("since_version_9".to_owned(), Value::Null);
            }
            Value::Object(more)
        }
        Value::Array(parts) => Value::Array(parts.iter().map(with_more).collect()),
        other => other.clone(),
    }
}
