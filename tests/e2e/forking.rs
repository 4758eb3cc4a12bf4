//! Services with `type = "forking"`: a launcher leaves a daemon behind, and that is the service.

use locald_utils::process::ORPHANS_COME_TO_THE_SHIM;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Site, free_port, send, service_of};

fn service(more: &str, command: &str) -> String {
    format!("[services.web]\ntype = \"forking\"\n{more}\ncommand = '''\n{command}'''\n")
}

/// A project with such a service and a daemon, which says `asked` when it is asked to end, and ends with the code that is in the file
/// `child.end` as soon as there is one.
fn site(more: &str, command: &str) -> Site {
    let site = Site::new(&service(more, command));
    site.script(
        "daemon",
        "#!/bin/sh\ntrap 'echo asked >> \"$EVENTS\"; exit 0' TERM\necho $$ > \"${1:-child}\"\n\
         while [ ! -s \"${1:-child}.end\" ]; do sleep 0.02; done\nexit $(cat \"${1:-child}.end\")\n",
    );
    site
}

/// Starts the daemon, and waits until it is there.
const LAUNCH: &str = "\"$ZOO\" daemonize ./daemon; while [ ! -s child ]; do sleep 0.02; done\n";

#[test]
fn what_a_launcher_leaves_behind_is_the_service_and_is_asked_to_end() {
    let site = site("", &format!("echo launching\n{LAUNCH}"));
    site.up();
    let child = site.await_pid("child");
    let web = site.service("web");
    assert_eq!(
        (&web["state"], &web["pid"], &web["kind"]),
        (&"ready".into(), &child.pid.into(), &"forking".into()),
        "{web}"
    );
    assert!(!web["notes"].to_string().contains("stray"), "{web}");
    site.up();
    assert_eq!(site.leader("web"), child, "`up` changes nothing");
    let down = site.down();
    assert!(!child.is_alive());
    assert_eq!(site.said(), ["asked"], "it was asked, although it has left group and session");
    let ended = &down["services"][0]["ended"];
    assert_eq!((&ended["exit_code"], &ended["forced"]), (&0.into(), &false.into()), "{down}");
    assert!(site.log("web").starts_with(b"launching\n"));
}

#[test]
fn what_it_writes_after_its_launcher_has_gone_is_in_the_log() {
    let site = site("", "sh -c 'while [ ! -e go ]; do sleep 0.02; done; echo late; exec sleep 600' &");
    site.up();
    site.write("go", "");
    site.eventually("its output", || site.log("web").ends_with(b"late\n").then_some(()));
    assert_eq!(site.service("web")["state"], "ready");
    site.down();
}

#[test]
fn a_launcher_that_fails_is_a_failed_start_and_nothing_of_it_stays() {
    let site = site("stop_grace = \"200ms\"", &format!("{LAUNCH}exit 3"));
    site.locald("up").run().code(1).says("failed: exit 3");
    site.assert_no_service_is_left();
}

#[test]
fn a_launcher_that_leaves_nothing_behind_is_a_failed_start() {
    let site = site("", "true");
    site.locald("up").run().code(1).says("left no process behind").says("type = \"forking\"");
    assert_eq!(site.service("web")["state"], "failed");
}

#[test]
fn its_exit_is_that_of_the_daemon_and_the_policy_is_about_that() {
    for (code, state) in [("0", "completed"), ("7", "failed")] {
        let site = site("", LAUNCH);
        site.up();
        let child = site.await_pid("child");
        site.write("child.end", code);
        let web = site.await_state("web", state);
        assert_eq!(web["last"]["exit_code"], code.parse::<i32>().expect("a number"), "{web}");
        assert!(!child.is_alive());
    }
    let site = site("restart = \"on-failure\"", &format!("rm -f child child.end\n{LAUNCH}"));
    site.up();
    let child = site.await_pid("child");
    send(child, Signal::SIGKILL);
    site.eventually("the next run", || {
        let web = site.service("web");
        (web["run"] == 2 && web["state"] == "ready").then_some(())
    });
    assert_eq!(site.service("web")["last"]["signal"], "SIGKILL");
    assert_ne!(site.leader("web"), child);
    site.down();
}

#[test]
fn the_run_goes_on_as_long_as_anybody_is_left_and_a_failure_is_not_forgotten() {
    let site =
        site("", &format!("{LAUNCH}\"$ZOO\" daemonize ./daemon second; while [ ! -s second ]; do sleep 0.02; done\n"));
    site.up();
    let (first, second) = (site.await_pid("child"), site.await_pid("second"));
    assert_eq!(site.leader("web"), first, "the oldest stands for it");
    site.write("child.end", "5");
    site.eventually("another to stand for it", || (site.service("web")["pid"] == second.pid).then_some(()));
    assert_eq!(site.service("web")["state"], "ready");
    site.write("second.end", "0");
    let web = site.await_state("web", "failed");
    assert_eq!(web["last"]["exit_code"], 5, "{web}");
}

#[test]
fn it_is_ready_when_it_listens_and_dependents_wait_for_that() {
    let port = free_port();
    let site = Site::new(&format!(
        "[services.web]\ntype = \"forking\"\nport = {port}\n\
         command = '\"$ZOO\" daemonize sh -c \"while [ ! -e go ]; do sleep 0.02; done; exec $ZOO listen {port}\"'\n\
         [services.after]\ncommand = 'exec sleep 600'\ndepends_on = [\"web\"]\n"
    ));
    let up = site.locald("up").start();
    site.await_state("web", "starting");
    assert_eq!(site.service("after")["state"], "waiting");
    site.write("go", "");
    up.finish().ok();
    assert_eq!(site.service("after")["state"], "ready");
    site.down();
}

#[test]
fn a_command_that_checks_it_is_run_after_its_launcher_has_gone() {
    let site = site(
        "health_check = { type = \"command\", command = \"test -e good\", interval = \"20ms\", retries = 1 }",
        LAUNCH,
    );
    let up = site.locald("up").start();
    let child = site.await_pid("child");
    site.await_state("web", "starting");
    site.write("good", "");
    up.finish().ok();
    std::fs::remove_file(site.project().join("good")).expect("removed");
    site.await_state("web", "unready");
    assert!(child.is_alive());
    site.down();
}

#[test]
fn the_next_daemon_takes_it_over_and_an_exit_meanwhile_is_on_record() {
    let site = site("", LAUNCH);
    site.up();
    let (daemon, child) = (site.daemon(), site.await_pid("child"));
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    assert_eq!(site.service("web")["pid"], child.pid, "without a daemon");
    site.up();
    let web = site.service("web");
    assert_eq!((&web["state"], &web["pid"], &web["run"]), (&"ready".into(), &child.pid.into(), &1.into()), "{web}");
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    site.write("child.end", "9");
    site.await_end(child);
    site.locald("daemon start").run().ok();
    let web = site.await_state("web", "failed");
    assert_eq!(web["last"]["exit_code"], 9, "{web}");
}

#[test]
fn it_outlives_its_shim_and_its_exit_is_seen() {
    let site = site("", LAUNCH);
    site.up();
    let (shim, child) = (site.recorded("web", "shim", "shim"), site.await_pid("child"));
    send(shim, Signal::SIGKILL);
    site.await_end(shim);
    site.eventually("a note that its shim is gone", || {
        site.service("web")["notes"].to_string().contains("degraded").then_some(())
    });
    let web = site.service("web");
    assert_eq!((&web["state"], &web["pid"]), (&"ready".into(), &child.pid.into()), "{web}");
    site.write("child.end", "7");
    let web = site.await_state("web", "failed");
    let code = if ORPHANS_COME_TO_THE_SHIM { 7.into() } else { Value::Null };
    assert_eq!(web["last"]["exit_code"], code, "{web}");
}

#[test]
fn without_its_shim_it_is_asked_to_end_and_does() {
    let site = site("", LAUNCH);
    site.up();
    let (shim, child) = (site.recorded("web", "shim", "shim"), site.await_pid("child"));
    send(shim, Signal::SIGKILL);
    site.await_end(shim);
    let down = site.down();
    assert!(!child.is_alive());
    assert_eq!(site.said(), ["asked"], "{down}");
}

// All of a healthy service were called strays.
#[test]
fn what_a_launcher_has_left_has_not_strayed_from_the_service() {
    let site = site("", LAUNCH);
    site.up();
    let child = site.await_pid("child");
    let down = site.locald("down --json").run().ok().json();
    assert!(!child.is_alive());
    assert_eq!(service_of(&down, "web")["ended"]["strays"], json!([]), "{down}");
}

// It counted although it had ended long before, in `status --wide` and in the numbers of the stop.
#[test]
fn a_launcher_that_has_ended_counts_no_more() {
    let site = Site::new(&service("", "\"$ZOO\" daemonize sleep 600\n"));
    site.up();
    let wide = site.locald("status --wide --json").run().ok().json();
    assert_eq!(service_of(&wide, "web")["usage"]["processes"], 1, "{wide}");
    let down = site.locald("down --json").run().ok().json();
    assert_eq!(service_of(&down, "web")["ended"]["processes"], 1, "{down}");
}

#[test]
fn a_launcher_whose_shim_dies_leaves_the_service_behind_as_ever() {
    let site = site("", &format!("while [ ! -e go ]; do sleep 0.02; done\n{LAUNCH}"));
    let up = site.locald("up").start();
    site.await_state("web", "starting");
    let shim = site.recorded("web", "shim", "shim");
    send(shim, Signal::SIGKILL);
    site.await_end(shim);
    site.write("go", "");
    if ORPHANS_COME_TO_THE_SHIM {
        up.finish().ok();
        let child = site.await_pid("child");
        assert_eq!(site.service("web")["pid"], child.pid);
        site.down();
        assert!(!child.is_alive());
    }
}

#[test]
fn daemon_and_shim_killed_together_leave_a_daemon_that_is_found_and_taken_over() {
    let site = site(
        "",
        "\"$ZOO\" traceless sh -c 'echo $$ > \"$1\"; exec sleep 600' \"$PWD\" \"$PWD/child\"; while [ ! -s child ]; do sleep 0.02; done",
    );
    site.up();
    let child = site.await_pid("child");
    let (daemon, shim) = (site.daemon(), site.recorded("web", "shim", "shim"));
    for process in [daemon, shim] {
        send(process, Signal::SIGKILL);
        site.await_end(process);
    }
    if cfg!(target_os = "linux") {
        site.up();
        let web = site.service("web");
        assert_eq!((&web["pid"], &web["run"]), (&child.pid.into(), &1.into()), "`up` changes nothing: {web}");
    }
    site.locald("down").run().ok();
    assert!(!child.is_alive() || !cfg!(target_os = "linux"));
}

#[test]
fn signals_for_the_shim_are_passed_on_to_what_a_launcher_has_left() {
    let site = site(
        "",
        "\"$ZOO\" daemonize sh -c 'trap \"echo usr >> $EVENTS\" INT; echo $$ > child; while :; do sleep 0.02; done'\nwhile [ ! -s child ]; do sleep 0.02; done",
    );
    site.up();
    send(site.recorded("web", "shim", "shim"), Signal::SIGINT);
    site.await_event("usr");
    site.down();
}
