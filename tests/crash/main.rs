//! The daemon and the shim die at every place they pass, one after the other, and nobody notices what must not be noticed.
//!
//! A day in the life of a project is lived once for each place (`locald_utils::fail`), until nobody dies any more. After each the
//! same is asked: no twin ran, no byte is missing or there twice that its own shim could write, and nobody is left.
//!
//! Failpoints are in debug builds alone, and flock(1) is not on macOS.
#![cfg(all(debug_assertions, target_os = "linux"))]

#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the harness is that of the end-to-end tests; this needs a part of it")]
mod support;

use serde_json::Value;

use support::{Ran, Site};

/// A service that says so if another run of it is alive, a job whose output is in several segments, and a service that
/// waits for both.
const PROJECT: &str = r#"
[services.web]
command = '''
exec 9>> lock
flock -n 9 || echo TWIN >> $EVENTS
trap 'exit 0' TERM
echo web >> $EVENTS
while :; do sleep 0.02; done'''
stop_grace = "20s"
[services.job]
type = "job"
command = '"$ZOO" numbers 20000'
log = { max_size = "1MB" }
depends_on = ["web"]
[services.last]
command = 'sleep 600'
depends_on = ["job"]
stop_grace = "20s"
"#;

/// What a person does in a day. Returns what they were told.
fn live(site: &Site, plan: &str) -> Vec<Ran> {
    let say = |words: &str| site.locald(words).env("LOCALD_FAIL", plan).run();
    vec![say("up"), say("restart web"), say("status --json"), say("stop last"), say("up"), say("down --json")]
}

/// Lives with the death of `program` at its `number`th place. Says at which, or `None` when it has none so late.
fn die(program: &str, number: u32) -> Option<String> {
    let site = Site::new(PROJECT);
    let file = site.root().join("death");
    let told = live(&site, &format!("{program}:{number}:{}", file.display()));
    let place = std::fs::read_to_string(&file).ok().map(|place| place.trim().to_owned());
    let context = || {
        let place = place.as_deref().unwrap_or("no place");
        let told: Vec<String> = told.iter().map(ToString::to_string).collect();
        format!("{program} died at place {number}, {place}\n{}", told.join("\n"))
    };
    let last = told.last().expect("a word");
    assert_eq!(last.exit(), Some(0), "{}", context());
    let down: Value = serde_json::from_str(&last.stdout).unwrap_or_else(|error| panic!("{error}: {}", context()));
    assert_eq!(down["totals"]["left"], 0, "{}", context());
    site.assert_no_service_is_left();
    assert!(!site.said().contains(&"TWIN".to_owned()), "two runs at once: {}", context());
    // With the daemon gone and back, nobody's command fails. With a shim gone, a start may.
    if program == "server" {
        for ran in &told {
            assert_eq!(ran.exit(), Some(0), "{}", context());
        }
        assert_eq!(site.said().iter().filter(|said| *said == "web").count(), 2, "{}", context());
    }
    check_output(&site, program, &context);
    place
}

/// The output of the job: whole where its own shim lived. Where it died, at most one read is missing at a place, and the job may
/// have run again.
fn check_output(site: &Site, program: &str, context: &dyn Fn() -> String) {
    const DIGITS: usize = 99;
    /// One read of 4096 bytes, and the lines that it begins and ends within.
    const MOST_MISSING: u64 = 4096 / (DIGITS as u64 + 1) + 2;
    let log = String::from_utf8(site.log("job")).expect("numbers");
    let whole = log.lines().filter(|line| line.len() == DIGITS);
    let lines: Vec<u64> =
        whole.map(|line| line.parse().unwrap_or_else(|error| panic!("{line:?}: {error}: {}", context()))).collect();
    let first = lines.first().copied().unwrap_or_default();
    if program == "shim-job" {
        for two in lines.windows(2) {
            let is_in_order = (two[0] + 1..=two[0] + MOST_MISSING).contains(&two[1]);
            assert!(is_in_order || two[1] <= MOST_MISSING, "{two:?}: {}", context());
        }
    } else {
        let is_all = lines.iter().copied().eq(first..20_000);
        assert!(is_all, "{} lines from {first} on: {}", lines.len(), context());
    }
}

/// Dies at each place, until there is none.
fn die_at_every_place(program: &str) {
    let mut places = Vec::new();
    for number in 1.. {
        let Some(place) = die(program, number) else { break };
        places.push(place);
    }
    eprintln!("{program} has died at each of {} places", places.len());
    assert!(places.len() > 20, "{places:?}");
    for place in expected(program) {
        assert!(places.iter().any(|seen| seen == place), "{place} is not among {places:?}");
    }
}

/// Places that a day must pass.
fn expected(program: &str) -> &'static [&'static str] {
    match program {
        "server" => &[
            "the daemon is to take the lock",
            "the epoch is written beside its place",
            "a transaction is to be committed",
            "a transaction is committed",
            "a shim is to be started",
            "a shim is started",
            "a shim is told something",
            "a shim says something",
            "a client asks something",
            "a client is to be told something",
            "the end of a run is in the ledger",
            "what follows from an end is in the ledger",
            "a record is to be removed",
        ],
        "shim-web" => &[
            "the shim listens",
            "the record of a shim is written beside its place",
            "the record of a shim is in its place",
            "the helper is started",
            "a record is in its place",
            "the gate is open",
            "the shim was told something",
            "the shim is to say something",
            "a stop begins",
            "the first step of a stop is done",
            "the leader has exited",
            "nobody is left",
            "the output is drained",
            "the leader is reaped",
            "the records of the run are gone",
            "the end is told",
        ],
        _ => &[
            "the index of a segment is made",
            "a segment is made",
            "the link leads to the segment",
            "a segment is removed, and its index is not",
            "the leader has exited",
        ],
    }
}

#[test]
fn the_daemon_may_die_at_every_place() {
    die_at_every_place("server");
}

#[test]
fn the_shim_of_a_service_may_die_at_every_place() {
    die_at_every_place("shim-web");
}

#[test]
fn the_shim_of_a_job_may_die_at_every_place() {
    die_at_every_place("shim-job");
}

/// So many kills at random moments; a thousand are made by hand: docs/benchmarks/README.md.
fn kills() -> usize {
    std::env::var("LOCALD_KILLS").map_or(15, |kills| kills.parse().expect("LOCALD_KILLS is a number"))
}

#[test]
fn kills_at_random_moments_make_no_twin_and_cost_no_byte() {
    let site = Site::new(
        r#"
[services.noisy]
command = 'i=0; while :; do echo $i; i=$((i+1)); sleep 0.005; done'
log = { max_size = "1GB" }
[services.web]
command = '''
exec 9>> lock
flock -n 9 || echo TWIN >> $EVENTS
trap 'exit 0' TERM
while :; do sleep 0.02; done'''
stop_grace = "20s"
"#,
    );
    site.up();
    let noisy = site.leader("noisy");
    // The moments differ from round to round and are the same in every run (xorshift; Marsaglia 2003).
    let mut random = 88_172_645_463_325_252_u64;
    for round in 0..kills() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let verb = ["restart web", "stop web", "up", "start web"][round % 4];
        let ran = site.locald(verb).start();
        std::thread::sleep(std::time::Duration::from_micros(random % 150_000));
        if let Some(daemon) = site.daemons().first() {
            // It may be another's turn to end by now.
            let _ = locald_utils::process::signal(daemon.process, nix::sys::signal::Signal::SIGKILL);
        }
        let ran = ran.finish();
        assert_eq!(ran.exit(), Some(0), "round {round}: {ran}");
        site.up();
        assert_eq!(site.leader("noisy"), noisy, "round {round}");
    }
    let daemon = site.daemon();
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid)).expect("a process").count();
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.pid)).expect("a process");
    assert!(descriptors < 60, "the daemon has {descriptors} descriptors");
    assert!(children.split_whitespace().count() <= 3, "the daemon has these children: {children}");
    site.down();
    assert!(site.said().is_empty(), "{:?}", site.said());
    let log = String::from_utf8(site.log("noisy")).expect("text");
    let lines = log.lines().map(|line| line.parse::<u64>().unwrap_or_else(|error| panic!("{line:?}: {error}")));
    let mut count = 0;
    for (number, line) in (0..).zip(lines) {
        assert_eq!(line, number);
        count += 1;
    }
    eprintln!("{} kills, {count} lines in order, {descriptors} descriptors", kills());
}
