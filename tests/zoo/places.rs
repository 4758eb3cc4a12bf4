//! locald in strange places: inside another locald, started by a service of its own, under a first process that never
//! reaps.

use std::path::PathBuf;

use locald_utils::process::ProcessId;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::rounds::{self, GRACE, Load, Tally};
use crate::support::{Seen, Site, send, service_of};

const LOCALD: &str = env!("CARGO_BIN_EXE_locald");

/// A site one of whose services runs a locald of its own, which has another home and looks after the zoo.
struct Nested {
    site: Site,
    /// The inner locald's project and home.
    project: PathBuf,
    home: PathBuf,
    /// The programs of the outer locald and the leader of its other service.
    outer: Vec<ProcessId>,
}

impl Nested {
    fn new() -> Self {
        // A home of its own for each time, so that no record of the one before is found.
        let site = Site::new(&format!(
            "[services.inner]\ncommand = '''\nexport LOCALD_HOME=\"$PWD/../inner$(wc -l < $EVENTS | tr -d ' ')\"\n{LOCALD} up -C ../zoo && echo up >> $EVENTS\n\
             while :; do sleep 600; done'''\nstop_grace = \"{}ms\"\n[services.beside]\ncommand = 'sleep 600'\n",
            GRACE.as_millis()
        ));
        let project = site.another("zoo", &rounds::zoo());
        Self { site, project, home: PathBuf::new(), outer: Vec::new() }
    }

    /// Brings up the outer project, and with it the inner one. `round` counts from 0.
    fn up(&mut self, round: usize) {
        self.home = self.site.root().join(format!("inner{round}"));
        // The outer programs are there before the inner ones; the service that has the latter comes second.
        self.site.locald("up beside").run().ok();
        self.outer = self.site.processes().iter().map(|seen| seen.process).collect();
        self.site.up();
        self.outer.push(self.site.recorded("inner", "shim", "shim"));
        self.site.await_events("up", round + 1);
        rounds::await_all(&self.site, &self.project);
    }

    fn is_outer(&self, seen: &Seen) -> bool {
        self.outer.contains(&seen.process)
    }

    /// Runs `down` of the inner project, from outside. Returns how the zoo ended.
    fn inner_down(&self) -> Value {
        let down = self.site.locald("down --json").env("LOCALD_HOME", &self.home).dir(&self.project).run().ok().json();
        rounds::assert_nobody_is_left(&self.site, &self.project);
        service_of(&down, "zoo")["ended"].clone()
    }
}

#[test]
fn an_outer_down_leaves_nothing_of_an_inner_locald() {
    let mut nested = Nested::new();
    let load = Load::begin();
    let mut tally = Tally::default();
    for round in 0..rounds::count() {
        nested.up(round);
        let down = nested.site.locald("down --json").run().ok().json();
        nested
            .site
            .assert_nobody_is_left("these processes are left", |seen| !(seen.is_locald() && nested.is_outer(seen)));
        rounds::assert_nobody_is_left(&nested.site, &nested.project);
        tally.add(&service_of(&down, "inner")["ended"]);
    }
    drop(load);
    tally.tell("inside another locald, outer down");
}

#[test]
fn an_inner_down_ends_the_inner_services_and_nothing_of_the_outer_locald() {
    let mut nested = Nested::new();
    let load = Load::begin();
    let mut tally = Tally::default();
    nested.up(0);
    let inner = nested.site.leader("inner");
    for round in 0..rounds::count() {
        if round > 0 {
            nested.site.locald("up").env("LOCALD_HOME", &nested.home).dir(&nested.project).run().ok();
            rounds::await_all(&nested.site, &nested.project);
        }
        tally.add(&nested.inner_down());
        assert!(inner.is_alive() && nested.outer.iter().all(|process| process.is_alive()));
    }
    drop(load);
    assert_eq!(nested.site.service("inner")["state"], "ready");
    tally.tell("inside another locald, inner down");
}

#[cfg(target_os = "linux")]
#[test]
fn nobody_is_left_under_a_first_process_that_never_reaps() {
    under_a_first_process_that_never_reaps("pid 1 does not reap", |_| {});
}

#[cfg(target_os = "linux")]
fn under_a_first_process_that_never_reaps(what: &str, before: fn(&Site)) {
    let Some(namespace) = crate::namespace::Namespace::new(false) else { return };
    let mut site = Site::new(&rounds::zoo());
    site.run_by(namespace.enter());
    let load = Load::begin();
    let mut tally = Tally::default();
    for _ in 0..rounds::count() {
        site.up();
        rounds::await_all(&site, &site.project());
        before(&site);
        tally.add(&rounds::down(&site));
    }
    drop(load);
    tally.tell(what);
}

#[test]
fn an_inner_down_ends_the_inner_services_after_the_inner_daemon_and_shim_were_killed() {
    let mut nested = Nested::new();
    let load = Load::begin();
    let mut tally = Tally::default();
    for round in 0..rounds::count() {
        nested.up(round);
        let is_inner = |seen: &Seen| seen.is_locald() && !nested.is_outer(seen);
        for seen in nested.site.processes().into_iter().filter(is_inner) {
            send(seen.process, Signal::SIGKILL);
            nested.site.await_end(seen.process);
        }
        tally.add(&nested.inner_down());
        // This one was started from outside, and would wait there for the next command.
        nested.site.locald("daemon stop").env("LOCALD_HOME", &nested.home).run().ok();
        assert!(nested.outer.iter().all(|process| process.is_alive()));
        nested.site.down();
    }
    drop(load);
    tally.tell("inside another locald, inner daemon and shim killed, inner down");
}

#[cfg(target_os = "linux")]
#[test]
fn nobody_is_left_of_an_orphaned_run_under_a_first_process_that_never_reaps() {
    under_a_first_process_that_never_reaps("pid 1 does not reap, shim and daemon killed", |site| {
        crate::tactics::kill(site, Seen::is_locald);
    });
}

// The daemon is then a descendant of the first project's run, and so are its other shims.
#[test]
fn a_service_that_has_started_the_daemon_stops_without_it_and_without_other_projects() {
    let site = Site::new(&format!(
        "[services.web]\ncommand = '''\nwhile [ ! -e go ]; do sleep 0.02; done\n\
         {LOCALD} up -C ../other && echo up >> $EVENTS\nwhile :; do sleep 600; done'''\nstop_grace = \"{}ms\"\n\
         [services.beside]\ncommand = 'sleep 600'\n",
        GRACE.as_millis()
    ));
    let other = site.another("other", "[services.db]\ncommand = 'sleep 600'\n");
    site.up();
    let first = site.daemon();
    send(first, Signal::SIGKILL);
    site.await_end(first);
    site.write("go", "");
    site.await_event("up");
    let daemon = site.daemon();
    let db = || service_of(&site.locald("status --json").dir(&other).run().ok().json(), "db");
    let (web, beside, before) = (site.leader("web"), site.leader("beside"), db());
    assert_eq!(before["state"], "ready");

    site.locald("stop web").run().ok();
    assert!(!web.is_alive());
    assert_eq!((site.daemon(), site.leader("beside")), (daemon, beside));
    assert_eq!((&db()["state"], &db()["pid"], &db()["run"]), (&"ready".into(), &before["pid"], &1.into()));

    site.locald("down").run().ok();
    assert!(!beside.is_alive());
    assert_eq!((site.daemon(), &db()["pid"]), (daemon, &before["pid"]));
    site.locald("down").dir(&other).run().ok();
    site.assert_no_service_is_left();
}
