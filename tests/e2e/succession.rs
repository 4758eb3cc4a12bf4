//! One daemon after the other: whoever waits for an answer gets it, from whichever daemon is there by then.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Site, send, service_of};

/// Takes its time to be ready, and to end.
pub(crate) const SLOW: &str = "[services.web]\ncommand = '''\ntrap 'echo asked >> $EVENTS; sleep 0.4; exit 0' TERM\n\
                    while :; do sleep 0.02; done'''\nstop_grace = \"60s\"\n\
                    [services.seed]\ntype = \"job\"\ncommand = 'echo seed >> $EVENTS; while [ ! -e go ]; do sleep 0.02; done'\n\
                    [services.late]\ncommand = 'sleep 600'\ndepends_on = [\"seed\"]\n";

/// Ends the daemon as if it had crashed.
fn crash(site: &Site) {
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
}

#[test]
fn an_up_survives_the_daemon_it_was_put_to() {
    let site = Site::new(SLOW);
    let up = site.locald("up --json").start();
    site.await_event("seed");
    crash(&site);
    site.eventually("the next daemon", || (!site.daemons().is_empty()).then_some(()));
    site.write("go", "");
    let up = up.finish().ok().json();
    for (service, state) in [("web", "ready"), ("seed", "completed"), ("late", "ready")] {
        let shown = service_of(&up, service);
        assert_eq!((&shown["state"], &shown["run"]), (&state.into(), &1.into()), "{up}");
    }
    assert_eq!(site.said(), ["seed"], "it ran once");
    site.down();
}

#[test]
fn a_down_survives_the_daemon_it_was_put_to_and_tells_how_it_ended() {
    let site = Site::new(
        "[services.web]\ncommand = '''\ntrap 'echo asked >> $EVENTS; sleep 0.4; exit 0' TERM\n\
                          while :; do sleep 0.02; done'''\nstop_grace = \"60s\"\n[services.db]\ncommand = 'sleep 600'\n",
    );
    site.up();
    let down = site.locald("down --json").start();
    site.await_event("asked");
    crash(&site);
    let down = down.finish().ok().json();
    // Its grace period was not cut short by asking again.
    assert_eq!(service_of(&down, "web")["ended"]["exit_code"], 0, "{down}");
    assert_eq!(site.said(), ["asked"]);
    site.assert_no_service_is_left();
}

/// Has a command carry on only when everything that it was about is over.
fn resume_when_over(site: &Site, command: &crate::support::Running, service: &str, then: impl FnOnce()) {
    send(command.process(), Signal::SIGSTOP);
    let (leader, shim) = (site.recorded(service, "pid", "leader"), site.recorded(service, "shim", "shim"));
    crash(site);
    then();
    site.await_end(leader);
    site.await_end(shim);
    send(command.process(), Signal::SIGCONT);
}

#[test]
fn a_down_is_told_how_it_ended_although_everything_had_before_the_next_daemon_began() {
    let site = Site::new(
        "[services.web]\ncommand = '''\ntrap 'echo asked >> $EVENTS; sleep 0.4; exit 3' TERM\n\
         while :; do sleep 0.02; done'''\nstop_grace = \"60s\"\n",
    );
    site.up();
    let down = site.locald("down --json").start();
    site.await_event("asked");
    resume_when_over(&site, &down, "web", || {});
    let down = down.finish().ok().json();
    assert_eq!(service_of(&down, "web")["ended"]["exit_code"], 3, "{down}");
    site.eventually("the project to be forgotten", || {
        site.locald("ls --json").run().ok().json()["projects"].as_array().expect("a list").is_empty().then_some(())
    });
}

// It was shown for the seconds that its end is remembered, with the port that it had.
#[test]
fn what_was_ended_after_a_succession_is_over_at_once() {
    let site = Site::new("[services.web]\ncommand = 'exec sleep 600'\nport = \"auto\"\nhealth_check = \"true\"\n");
    site.up();
    crash(&site);
    site.down();
    site.locald("ls").run().ok().says_nothing_of("shop");
    let status = site.locald("status --json").run().ok().json();
    assert_eq!((&status["services"][0]["state"], &status["services"][0]["port"]), (&"stopped".into(), &Value::Null));
}

#[test]
fn what_has_run_and_failed_meanwhile_is_not_run_again() {
    let site = Site::new(
        "[services.seed]\ntype = 'job'\ncommand = 'echo ran >> $EVENTS; while [ ! -e go ]; do sleep 0.02; done; exit 4'\n",
    );
    let up = site.locald("up").start();
    site.await_event("ran");
    resume_when_over(&site, &up, "seed", || drop(site.write("go", "")));
    up.finish().code(1).says("exit 4");
    assert_eq!((site.said(), &site.service("seed")["run"]), (vec!["ran".to_owned()], &1.into()));
}

#[test]
fn a_restart_survives_the_daemon_it_was_put_to_and_makes_one_new_run() {
    let site = Site::new(SLOW);
    site.write("go", "");
    site.up();
    let restart = site.locald("restart web").start();
    site.await_event("asked");
    crash(&site);
    restart.finish().ok();
    assert_eq!(site.service("web")["run"], 2);
    site.down();
}

#[test]
fn whoever_follows_is_told_of_the_end_by_the_next_daemon() {
    let site = Site::new("[services.job]\ntype = 'job'\ncommand = 'while [ ! -e go ]; do sleep 0.02; done; exit 3'\n");
    let up = site.locald("up -f").start();
    site.await_state("job", "starting");
    crash(&site);
    site.eventually("the next daemon", || (!site.daemons().is_empty()).then_some(()));
    site.write("go", "");
    up.finish().code(1).says("exit 3");
    site.assert_no_service_is_left();
}

#[test]
fn a_daemon_killed_at_any_moment_fails_no_command() {
    let site = Site::new(
        "[services.web]\ncommand = 'echo web >> $EVENTS; exec sleep 600'\n[services.db]\ncommand = 'sleep 600'\n",
    );
    for round in 0..24 {
        site.up();
        site.eventually("its first instruction", || (!site.said().is_empty()).then_some(()));
        let before = site.said().len();
        // (A run that was never told to start has a number, and has not begun.)
        let (verb, most) = [("restart web", 1), ("down", 0), ("up", 0), ("stop web", 0)][round % 4];
        let daemon = site.daemon();
        let ran = site.locald(verb).start();
        // The moment is what differs from round to round.
        std::thread::sleep(Duration::from_micros(700 * round as u64));
        send(daemon, Signal::SIGKILL);
        ran.finish().ok();
        let begun = site.said().len() - before;
        assert_eq!(begun, most, "runs begun by `{verb}`");
    }
    site.down();
}
