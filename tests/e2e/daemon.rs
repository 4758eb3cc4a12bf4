//! The daemon may die, is one, and is nobody else's.

use nix::sys::signal::Signal;

use crate::support::{Site, send};

const TWO: &str = "[services.db]\ncommand = \"sleep 600\"\n[services.web]\ncommand = \"sleep 600\"\n";

/// Ends the daemon with a signal while services run, and looks whether anything but the daemon has changed.
fn is_taken_over_after(signal: Signal) {
    let site = Site::new(TWO);
    site.up();
    let (db, web) = (site.leader("db"), site.leader("web"));
    let first = site.daemon();
    send(first, signal);
    site.await_end(first);
    assert!(db.is_alive() && web.is_alive());

    site.locald("status").run().ok().says("runs without a daemon");
    assert!(site.daemons().is_empty(), "status started a daemon");
    site.up().says("2 services already running");
    assert_eq!((site.leader("db"), site.leader("web")), (db, web));
    assert_eq!((&site.service("db")["run"], &site.service("db")["restarts"]), (&1.into(), &0.into()));
    assert_ne!(site.daemon(), first);
    let down = site.down();
    assert_eq!(down["totals"]["services"], 2);
    assert!(!db.is_alive() && !web.is_alive());
}

#[test]
fn services_outlive_a_killed_daemon_and_the_next_one_takes_them_over() {
    is_taken_over_after(Signal::SIGKILL);
}

#[test]
fn services_outlive_a_terminated_daemon_and_the_next_one_takes_them_over() {
    is_taken_over_after(Signal::SIGTERM);
}
