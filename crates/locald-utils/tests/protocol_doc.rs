//! `docs/protocol.md` against the types: every example is read into the type that its block names and written out again.
//!
//! A field that was renamed, removed or added shows as a difference; a message without an example is missed by name.

use std::collections::BTreeSet;

use locald_utils::protocol::{ClientMessage, DaemonStart, Event, Hello, Reply, Request, ServerMessage, State};
use locald_utils::record::{PidRecord, ShimRecord, StopRecord};
use locald_utils::shim_protocol::{FromShim, ShimIdentity, StandbyIdentity, ToShim};
use locald_utils::{protocol, shim_protocol};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const PAGE: &str = include_str!("../../../docs/protocol.md");

/// The JSON blocks of the page: the type each names, the line it begins at, its text.
fn blocks() -> Vec<(&'static str, usize, String)> {
    let mut blocks = Vec::new();
    let mut lines = PAGE.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let Some(info) = line.strip_prefix("```json") else { continue };
        let text: Vec<&str> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
        blocks.push((info.trim(), at + 1, text.join("\n")));
    }
    blocks
}

/// Reads an example as a `T` and checks that writing it gives the same again.
fn read<T: Serialize + DeserializeOwned>(line: usize, text: &str) -> T {
    let shown: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("protocol.md:{line}: {error}"));
    let read: T = serde_json::from_str(text).unwrap_or_else(|error| panic!("protocol.md:{line}: {error}"));
    let written = serde_json::to_value(&read).expect("can be JSON");
    assert_eq!(written, shown, "protocol.md:{line}: what is written (left) is not what is shown (right)");
    read
}

fn request_name(request: &Request) -> &'static str {
    match request {
        Request::Apply { .. } => "apply",
        Request::Preview { .. } => "preview",
        Request::Prepare { .. } => "prepare",
        Request::Stop { .. } => "stop",
        Request::Wait { .. } => "wait",
        Request::Status { .. } => "status",
        Request::Ports => "ports",
        Request::Daemon => "daemon",
        Request::Shutdown { .. } => "shutdown",
    }
}

fn answer_name(message: &ServerMessage) -> &'static str {
    match message {
        ServerMessage::Event { event: Event::Accepted { .. }, .. } => "accepted",
        ServerMessage::Event { event: Event::Service(_), .. } => "event",
        ServerMessage::Reply { reply, .. } => match **reply {
            Reply::Outcome(_) => "outcome",
            Reply::Status { .. } => "status",
            Reply::Preview { .. } => "preview",
            Reply::Ports { .. } => "ports",
            Reply::Daemon(_) => "daemon",
        },
        ServerMessage::Failure { .. } => "failure",
    }
}

fn state_name(state: &State) -> &'static str {
    match state {
        State::Stopped => "stopped",
        State::Waiting { .. } => "waiting",
        State::Spawning => "spawning",
        State::Starting => "starting",
        State::Ready => "ready",
        State::Unready => "unready",
        State::Stopping { .. } => "stopping",
        State::Backoff { .. } => "backoff",
        State::Completed => "completed",
        State::Failed { .. } => "failed",
        State::Unknown => "unknown",
    }
}

fn start_name(start: &DaemonStart) -> &'static str {
    match start {
        DaemonStart::Ready { .. } => "ready",
        DaemonStart::AlreadyRunning { .. } => "already running",
        DaemonStart::Failed { .. } => "failed",
    }
}

fn to_shim_name(message: &ToShim) -> &'static str {
    match message {
        ToShim::Hello { .. } => "hello",
        ToShim::Start(_) => "start",
        ToShim::Status => "status",
        ToShim::Stop { .. } => "stop",
        ToShim::Signal { .. } => "signal",
        ToShim::Ack => "ack",
        ToShim::Attach { .. } => "attach",
        ToShim::Probe { .. } => "probe",
        ToShim::Judged { .. } => "judged",
    }
}

fn from_shim_name(message: &FromShim) -> &'static str {
    match message {
        FromShim::Hello { .. } => "hello",
        FromShim::Started { .. } => "started",
        FromShim::StartFailed(_) => "start failed",
        FromShim::LeaderExited { .. } => "leader exited",
        FromShim::Stopping { .. } => "stopping",
        FromShim::Ended(_) => "ended",
        FromShim::Survivors { .. } => "survivors",
        FromShim::Snapshot(_) => "snapshot",
        FromShim::Fenced { .. } => "fenced",
        FromShim::Forked { .. } => "forked",
        FromShim::Attached { .. } => "attached",
        FromShim::Occupied { .. } => "occupied",
        FromShim::NoTerminal => "no terminal",
        FromShim::Probed { .. } => "probed",
        FromShim::Sign { .. } => "sign",
        FromShim::Unsupported => "unsupported",
    }
}

/// Every message that the page must show, as the functions above name them. They match exhaustively, so a new message
/// does not compile until it has a name there; give it a place here and an example on the page.
const SHOWN: &[(&str, &[&str])] = &[
    ("ClientMessage", &["apply", "daemon", "ports", "prepare", "preview", "shutdown", "status", "stop", "wait"]),
    ("DaemonStart", &["already running", "failed", "ready"]),
    (
        "FromShim",
        &[
            "attached",
            "ended",
            "fenced",
            "forked",
            "hello",
            "leader exited",
            "no terminal",
            "occupied",
            "probed",
            "sign",
            "snapshot",
            "start failed",
            "started",
            "stopping",
            "survivors",
            "unsupported",
        ],
    ),
    ("ServerMessage", &["accepted", "daemon", "event", "failure", "outcome", "ports", "preview", "status"]),
    (
        "State",
        &[
            "backoff",
            "completed",
            "failed",
            "ready",
            "spawning",
            "starting",
            "stopped",
            "stopping",
            "unknown",
            "unready",
            "waiting",
        ],
    ),
    ("ToShim", &["ack", "attach", "hello", "judged", "probe", "signal", "start", "status", "stop"]),
];

#[test]
fn every_example_is_what_the_types_read_and_write_and_every_message_has_one() {
    let mut seen: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (name, line, text) in blocks() {
        let variant = match name {
            "Hello" => no_variants(&read::<Hello>(line, &text)),
            "ClientMessage" => request_name(&read::<ClientMessage>(line, &text).request),
            "ServerMessage" => answer_name(&read::<ServerMessage>(line, &text)),
            "State" => state_name(&read::<State>(line, &text)),
            "DaemonStart" => start_name(&read::<DaemonStart>(line, &text)),
            "ShimIdentity" => no_variants(&read::<ShimIdentity>(line, &text)),
            "StandbyIdentity" => no_variants(&read::<StandbyIdentity>(line, &text)),
            "ToShim" => to_shim_name(&read::<ToShim>(line, &text)),
            "FromShim" => from_shim_name(&read::<FromShim>(line, &text)),
            "ShimRecord" => no_variants(&read::<ShimRecord>(line, &text)),
            "PidRecord" => no_variants(&read::<PidRecord>(line, &text)),
            "StopRecord" => no_variants(&read::<StopRecord>(line, &text)),
            other => panic!("protocol.md:{line}: a block names the type `{other}`, which this test does not know"),
        };
        seen.insert((name, variant));
    }
    for &(name, variants) in SHOWN {
        let shown: Vec<&str> = seen.iter().filter(|(of, _)| *of == name).map(|(_, variant)| *variant).collect();
        assert_eq!(shown, variants, "the examples of {name} in protocol.md");
    }
}

fn no_variants<T>(_: &T) -> &'static str {
    ""
}

#[test]
fn the_version_table_ends_with_the_versions_of_this_build() {
    for (who, version) in
        [("command line and daemon", protocol::PROTOCOL), ("daemon and shim", shim_protocol::PROTOCOL)]
    {
        let rows = PAGE.lines().filter_map(|line| line.strip_prefix(&format!("| {who} | ")));
        let newest = rows.filter_map(|row| row.split(' ').next()?.parse::<u32>().ok()).max();
        assert_eq!(newest, Some(version), "the row of {who} in protocol.md");
    }
}
