//! Down means down: when it says so, nothing of a run is left, whatever the run has done to stay.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Site, send, service_of};

/// How a service ended, from the answer of `down`.
fn ended(down: &Value, service: &str) -> Value {
    service_of(down, service)["ended"].clone()
}

#[test]
fn children_end_with_their_service() {
    let site = Site::new(
        "[services.web]\ncommand = '''\nsleep 600 & echo $! > child\n(sleep 601 & echo $! > grandchild; wait) &\nwait'''\n",
    );
    site.up();
    let (child, grandchild) = (site.await_pid("child"), site.await_pid("grandchild"));
    let down = site.down();
    assert!(!child.is_alive() && !grandchild.is_alive());
    assert!(down["totals"]["processes"].as_u64() >= Some(4), "{down}");
    assert_eq!(down["totals"]["killed"], 0);
}

#[test]
fn sigkill_waits_for_the_grace_period() {
    let site = Site::new(
        "[services.web]\ncommand = '''\ntrap 'echo asked >> $EVENTS' TERM\nwhile :; do sleep 600 & wait; done'''\nstop_grace = \"1s\"\n",
    );
    site.up();
    let down = site.locald("down").run().ok().says("0 left");
    assert!(down.stdout.contains("killed"), "{down}");
    assert_eq!(site.said(), ["asked"]);
    site.assert_no_service_is_left();

    site.up();
    let web = ended(&site.down(), "web");
    assert_eq!((&web["forced"], &web["signal"], &web["stopped"]), (&true.into(), &"SIGKILL".into(), &true.into()));
    assert!(web["stop_ms"].as_u64() >= Some(1000), "killed before its time: {web}");
}

#[test]
fn a_member_that_ignores_sigterm_is_killed_after_its_leader_has_left() {
    let site = Site::new(
        "[services.web]\ncommand = '''\ntrap 'exit 0' TERM\n(trap '' TERM; exec sleep 600) & echo $! > member\nwait'''\nstop_grace = \"1s\"\n",
    );
    site.up();
    let member = site.await_pid("member");
    let web = ended(&site.down(), "web");
    assert!(!member.is_alive());
    assert_eq!((&web["exit_code"], &web["forced"], &web["killed"]), (&0.into(), &true.into(), &1.into()));
    assert!(web["stop_ms"].as_u64() >= Some(1000), "killed before its time: {web}");
}

#[test]
fn a_child_in_a_session_of_its_own_ends_too() {
    let site = Site::new("[services.web]\ncommand = '''\n\"$ZOO\" setsid sh -c 'echo $$ > child; exec sleep 600' &\nwait'''\n");
    site.up();
    let child = site.await_pid("child");
    let web = ended(&site.down(), "web");
    assert!(!child.is_alive());
    assert_eq!(web["strays"][0]["pid"], child.pid);
    assert_eq!(web["killed"], 0, "it obeys SIGTERM: {web}");
}

#[test]
fn a_daemonized_descendant_ends_too() {
    let site =
        Site::new("[services.web]\ncommand = '''\n\"$ZOO\" daemonize sh -c 'echo $$ > child; exec sleep 600'\nsleep 600'''\n");
    site.up();
    let child = site.await_pid("child");
    site.locald("down").run().ok().says("had strayed").says(&format!("pid {}", child.pid));
    assert!(!child.is_alive());
}

#[test]
fn a_descendant_without_environment_terminal_and_directory_ends_too() {
    let site = Site::new(
        "[services.web]\ncommand = '''\n\"$ZOO\" traceless sh -c 'echo $$ > \"$1\"; exec sleep 600' \"$PWD\" \"$PWD/child\"\nsleep 600'''\n",
    );
    site.up();
    let child = site.await_pid("child");
    let web = ended(&site.down(), "web");
    assert!(!child.is_alive());
    assert_eq!(web["strays"][0]["pid"], child.pid);
}

#[test]
fn a_stopped_service_ends_on_sigterm() {
    let site = Site::new("[services.web]\ncommand = \"sleep 600\"\nstop_grace = \"30s\"\n");
    site.up();
    let leader = site.leader("web");
    send(leader, Signal::SIGSTOP);
    let web = ended(&site.down(), "web");
    assert_eq!((&web["signal"], &web["forced"]), (&"SIGTERM".into(), &false.into()));
}
