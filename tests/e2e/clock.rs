//! Somebody sets the clock. What is decided by time is decided by clocks that nobody sets.

use nix::sys::signal::Signal;

use crate::support::{Call, Site, send, service_of};

const PROJECT: &str = r#"
[services.web]
command = """
trap '' HUP
trap 'echo asked >> $EVENTS; until [ -e go ]; do sleep 0.02; done; exit 0' TERM
while :; do sleep 0.02; done"""
stop_grace = "60s"
[services.db]
command = 'exec sleep 600'
restart = "on-failure"
"#;

/// By how many milliseconds the clock is set: an hour forward, an hour back.
const SET: [i64; 2] = [3_600_000, -3_600_000];

/// A site whose programs have a clock of their own.
struct Clocked(Site);

impl Clocked {
    fn locald(&self, words: &str) -> Call<'_> {
        self.0.locald(words).env("LOCALD_CLOCK", self.0.root().join("clock"))
    }

    fn set(&self, error: i64) {
        // Whole or not at all: it is read all the time.
        let file = self.0.root().join("clock");
        std::fs::write(file.with_extension("new"), error.to_string()).expect("written");
        std::fs::rename(file.with_extension("new"), file).expect("moved");
    }
}

#[test]
fn services_run_and_restart_as_ever_when_the_clock_is_set() {
    for error in SET {
        let clocked = Clocked(Site::new(PROJECT));
        let site = &clocked.0;
        clocked.locald("up").run().ok();
        let db = site.leader("db");
        clocked.set(error);
        let status = clocked.locald("status --json").run().ok().json();
        let uptime = service_of(&status, "db")["uptime_ms"].as_i64().expect("an age");
        assert!((0..3_700_000).contains(&uptime), "{status}");
        send(db, Signal::SIGKILL);
        site.eventually("another run", || {
            let db = service_of(&clocked.locald("status --json").run().ok().json(), "db");
            (db["state"] == "ready" && db["run"] == 2).then_some(())
        });
        site.write("go", "");
        let down = clocked.locald("down --json").run().ok().json();
        assert_eq!(service_of(&down, "web")["ended"]["forced"], false, "{down}");
        assert_eq!(down["totals"]["left"], 0, "{down}");
    }
}

#[test]
fn a_stop_that_another_daemon_goes_on_with_takes_its_whole_time_when_the_clock_is_set() {
    for error in SET {
        let clocked = Clocked(Site::new(PROJECT));
        let site = &clocked.0;
        clocked.locald("up").run().ok();
        let stop = clocked.locald("stop web --json").start();
        site.await_event("asked");
        clocked.set(error);
        // With nobody left who knows when the stop has begun.
        let (shim, daemon) = (site.recorded("web", "shim", "shim"), site.daemon());
        for process in [daemon, shim] {
            send(process, Signal::SIGKILL);
        }
        for process in [daemon, shim] {
            site.await_end(process);
        }
        clocked.locald("daemon start").run().ok();
        site.await_state("web", "stopping");
        site.write("go", "");
        let stop = stop.finish().ok().json();
        assert_eq!(service_of(&stop, "web")["ended"]["forced"], false, "{stop}");
        assert_eq!(service_of(&stop, "web")["ended"]["signal"], serde_json::Value::Null, "{stop}");
        clocked.locald("down").run().ok();
    }
}
