//! One run at a time, whatever is typed at once.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{Seen, Site, send};

/// A service that takes its time to end, and says when another of its runs is there at the same time.
const SLOW: &str = "[services.web]\ncommand = '''
if [ -e held ] && kill -0 $(cat held) 2> kill.err; then echo TWIN >> $EVENTS; fi
echo $$ > held
trap 'echo asked >> $EVENTS; sleep 0.5; rm held; exit 0' TERM
while :; do sleep 0.02; done'''\nstop_grace = \"60s\"\n";

#[test]
fn a_start_during_a_slow_stop_waits_for_its_end() {
    let site = Site::new(SLOW);
    site.up();
    let first = site.leader("web");
    let stop = site.locald("stop web").start();
    site.await_event("asked");
    site.locald("start web").run().ok();
    assert!(!first.is_alive());
    // Somebody wanted the opposite meanwhile, and the first one is told so.
    stop.finish().code(1).says("started again by someone else");
    assert_eq!((&site.service("web")["run"], &site.service("web")["state"]), (&2.into(), &"ready".into()));
    site.down();
    assert_eq!(site.said(), ["asked", "asked"]);
}

#[test]
fn two_restarts_at_once_make_one_new_run() {
    let site = Site::new(SLOW);
    site.up();
    let first = site.locald("restart web").start();
    site.await_event("asked");
    let second = site.locald("restart web").run();
    first.finish().ok();
    second.ok();
    assert_eq!(site.service("web")["run"], 2);
    site.down();
    assert_eq!(site.said(), ["asked", "asked"]);
}

#[test]
fn verbs_at_random_never_make_two_runs_at_once() {
    let site = Site::new(SLOW);
    site.up();
    let verbs = ["restart web", "stop web", "start web", "up", "restart", "stop", "start", "restart web"];
    let all: Vec<_> = verbs.iter().map(|verb| site.locald(verb).start()).collect();
    for one in all {
        let ran = one.finish();
        assert!(matches!(ran.exit(), Some(0 | 1)), "{ran}");
    }
    site.up();
    assert_eq!(site.service("web")["state"], "ready");
    site.down();
    assert!(!site.said().contains(&"TWIN".to_owned()));
}

/// A service that may be killed, and says when another of its runs is there at the same time.
const WATCHFUL: &str = "[services.web]\ncommand = '''
if [ -s held ] && kill -0 $(cat held) 2> kill.err; then echo TWIN >> $EVENTS; fi
echo $$ > held
while :; do sleep 0.02; done'''\nstop_grace = \"60s\"\n";

/// How many shells run the service. A shell that has forked, and not yet become `sleep`, shows as one more of the same.
fn shells(site: &Site) -> usize {
    let mut seen = site.service_processes();
    seen.retain(|seen| seen.command.contains("TWIN"));
    let pids: Vec<i32> = seen.iter().map(|seen| seen.process.pid).collect();
    seen.iter().filter(|seen| !pids.contains(&seen.parent)).count()
}

#[test]
fn a_daemon_killed_at_any_moment_leaves_one_run() {
    let site = Site::new(WATCHFUL);
    site.up();
    for round in 0..20 {
        let restart = site.locald("restart web").start();
        // From before the request arrives until after the new run is ready: there is no event for "any moment".
        std::thread::sleep(Duration::from_millis(round * 9));
        let daemon = site.daemons().first().expect("a daemon").process;
        send(daemon, Signal::SIGKILL);
        site.await_end(daemon);
        let restart = restart.finish();
        assert!(matches!(restart.exit(), Some(0 | 1)), "{restart}");
        site.up();
        assert_eq!(shells(&site), 1, "round {round}");
        assert!(!site.said().contains(&"TWIN".to_owned()), "round {round}");
    }
    site.down();
}

#[test]
fn a_shim_killed_at_any_moment_leaves_one_run() {
    let site = Site::new(WATCHFUL);
    site.up();
    for round in 0..20 {
        let restart = site.locald("restart web").start();
        // As above.
        std::thread::sleep(Duration::from_millis(round * 9));
        let shims = site.processes().into_iter().filter(Seen::is_shim);
        for shim in shims {
            // It may have ended by itself in between.
            let _ = locald_utils::process::signal(shim.process, Signal::SIGKILL).expect("a signal");
        }
        let restart = restart.finish();
        assert!(matches!(restart.exit(), Some(0 | 1)), "{restart}");
        site.up();
        assert_eq!(shells(&site), 1, "round {round}");
        assert!(!site.said().contains(&"TWIN".to_owned()), "round {round}");
    }
    site.down();
}
