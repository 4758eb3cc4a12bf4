//! The shim passes on what it is told, and its death is no disaster.

use locald_utils::process::ORPHANS_COME_TO_THE_SHIM;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Site, send};

#[test]
fn signals_for_the_shim_are_passed_on_to_its_service() {
    let site = Site::new(
        "[services.web]\ncommand = '''\nfor s in TERM INT HUP QUIT; do trap \"echo $s >> $EVENTS\" $s; done\n\
         while :; do sleep 0.02; done'''\nstop_grace = \"100ms\"\n",
    );
    site.up();
    let (shim, web) = (site.recorded("web", "shim", "shim"), site.leader("web"));
    for (signal, name) in
        [(Signal::SIGTERM, "TERM"), (Signal::SIGINT, "INT"), (Signal::SIGHUP, "HUP"), (Signal::SIGQUIT, "QUIT")]
    {
        send(shim, signal);
        site.await_event(name);
    }
    assert!(shim.is_alive() && web.is_alive());
    assert_eq!(site.service("web")["state"], "ready");
    site.down();
    assert!(!web.is_alive());
}

#[test]
fn a_service_outlives_its_shim_and_stops_as_ever() {
    let site = Site::new(
        "[services.web]\ncommand = '''\n\"$ZOO\" daemonize sh -c 'echo $$ > child; exec sleep 600'\n\
         while :; do echo tick; sleep 0.02; done'''\n",
    );
    site.up();
    let child = site.await_pid("child");
    let (shim, web) = (site.recorded("web", "shim", "shim"), site.leader("web"));
    send(shim, Signal::SIGKILL);
    site.await_end(shim);
    site.eventually("a note that its shim is gone", || {
        site.service("web")["notes"].to_string().contains("degraded").then_some(())
    });
    assert!(web.is_alive() && child.is_alive());
    assert_eq!(site.service("web")["state"], "ready");
    let before = site.log("web").len();
    site.eventually("output after the death of the shim", || (site.log("web").len() > before + 100).then_some(()));

    let down = site.down();
    assert!(!web.is_alive() && !child.is_alive());
    let signal = if ORPHANS_COME_TO_THE_SHIM { "SIGTERM".into() } else { Value::Null };
    assert_eq!(down["services"][0]["ended"]["signal"], signal, "{down}");
}

#[test]
fn a_service_that_ignores_sigterm_is_killed_without_its_shim_too() {
    let site = Site::new(
        "[services.web]\ncommand = '''\ntrap 'echo asked >> $EVENTS' TERM\nwhile :; do sleep 600 & wait; done'''\nstop_grace = \"1s\"\n",
    );
    site.up();
    let shim = site.recorded("web", "shim", "shim");
    send(shim, Signal::SIGKILL);
    site.await_end(shim);
    let down = site.down();
    let ended = &down["services"][0]["ended"];
    assert_eq!((&ended["forced"], site.said()), (&true.into(), vec!["asked".to_owned()]), "{down}");
    assert!(ended["stop_ms"].as_u64() >= Some(1000), "killed before its time: {ended}");
}

#[test]
fn the_exit_of_a_service_without_a_shim_is_seen() {
    let site = Site::new("[services.web]\ncommand = 'while [ ! -e go ]; do sleep 0.02; done; exit 7'\n");
    site.up();
    let shim = site.recorded("web", "shim", "shim");
    send(shim, Signal::SIGKILL);
    site.await_end(shim);
    site.write("go", "");
    let web = site.await_state("web", "failed");
    // Where orphans come to the daemon it learns their status; elsewhere that is unknown, and never taken for 0.
    let code = if ORPHANS_COME_TO_THE_SHIM { 7.into() } else { Value::Null };
    assert_eq!(web["last"]["exit_code"], code, "{web}");
}

#[test]
fn daemon_and_shim_killed_together_leave_a_service_that_can_be_ended() {
    let site = Site::new("[services.web]\ncommand = 'sleep 600'\n");
    site.up();
    let (daemon, shim, web) = (site.daemon(), site.recorded("web", "shim", "shim"), site.leader("web"));
    send(daemon, Signal::SIGKILL);
    send(shim, Signal::SIGKILL);
    site.await_end(daemon);
    site.await_end(shim);
    site.locald("down").run().ok();
    assert!(!web.is_alive());
    site.assert_no_service_is_left();
}

// `down` used to wait for as long as somebody kept the shim from running.
#[test]
fn a_shim_that_is_stopped_keeps_no_service_from_ending() {
    let site = Site::new("[services.web]\ncommand = 'sleep 600'\n");
    site.up();
    let (shim, web) = (site.recorded("web", "shim", "shim"), site.leader("web"));
    send(shim, Signal::SIGSTOP);
    let down = site.down();
    assert!(!web.is_alive());
    assert_eq!(down["services"][0]["ended"]["signal"], "SIGTERM", "{down}");
}

// As a shim that sleeps on a disk: it cannot be told to go on.
#[test]
#[cfg(target_os = "linux")]
fn a_shim_that_never_answers_is_ended_and_its_service_with_it() {
    let site = Site::new(
        "[services.web]\ncommand = '''\n\"$ZOO\" traceless sh -c 'echo $$ > \"$1\"; exec sleep 600' \"$PWD\" \"$PWD/child\"\n\
         while :; do echo tick; sleep 0.02; done'''\n",
    );
    site.up();
    let child = site.await_pid("child");
    let (shim, web) = (site.recorded("web", "shim", "shim"), site.leader("web"));
    let Some(frozen) = crate::support::Frozen::hold(shim) else {
        eprintln!("this system lets nobody trace the shim, so it is not frozen");
        return;
    };
    let down = site.locald("down").start();
    site.await_end(web);
    site.await_end(child);
    drop(frozen);
    down.finish().ok();
    assert!(!shim.is_alive());
    site.assert_no_service_is_left();
}

// The shim lives and goes on writing the log; only nobody can talk to it.
#[test]
fn a_runtime_directory_that_is_wiped_costs_no_service() {
    let site = Site::new("[services.web]\ncommand = 'while :; do echo tick; sleep 0.02; done'\n");
    site.up();
    let (daemon, web) = (site.daemon(), site.leader("web"));
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    std::fs::remove_dir_all(site.home().join("run")).expect("removed");
    site.locald("daemon start").run().ok();
    site.eventually("a note that its shim is out of reach", || {
        site.service("web")["notes"].to_string().contains("degraded").then_some(())
    });
    assert_eq!(site.leader("web"), web);
    let before = site.log("web").len();
    site.eventually("more output", || (site.log("web").len() > before + 100).then_some(()));
    site.up();
    assert_eq!(site.leader("web"), web, "`up` changes nothing");
    site.down();
    assert!(!web.is_alive());
}

#[test]
fn what_hides_ends_with_a_run_whose_leader_exits_without_a_shim() {
    let site = Site::new(
        "[services.web]\ncommand = '''\n\"$ZOO\" traceless sh -c 'trap \"\" TERM; echo $$ > \"$1\"; exec sleep 600' \"$PWD\" \"$PWD/child\"\n\
         while [ ! -e go ]; do sleep 0.02; done; exit 7'''\nstop_grace = \"100ms\"\n",
    );
    site.up();
    let child = site.await_pid("child");
    let shim = site.recorded("web", "shim", "shim");
    send(shim, Signal::SIGKILL);
    site.await_end(shim);
    site.write("go", "");
    let web = site.await_state("web", "failed");
    assert!(!child.is_alive());
    let code = if ORPHANS_COME_TO_THE_SHIM { 7.into() } else { Value::Null };
    assert_eq!(web["last"]["exit_code"], code, "{web}");
}

#[test]
#[cfg(target_os = "linux")]
fn what_hides_ends_although_daemon_and_shim_were_killed_together() {
    let site = Site::new(
        "[services.web]\ncommand = '''\n\"$ZOO\" traceless sh -c 'echo $$ > \"$1\"; exec sleep 600' \"$PWD\" \"$PWD/child\"\nsleep 600'''\n",
    );
    site.up();
    let child = site.await_pid("child");
    let (daemon, shim, web) = (site.daemon(), site.recorded("web", "shim", "shim"), site.leader("web"));
    send(daemon, Signal::SIGKILL);
    send(shim, Signal::SIGKILL);
    site.await_end(daemon);
    site.await_end(shim);
    site.locald("down").run().ok();
    assert!(!web.is_alive() && !child.is_alive());
    site.assert_no_service_is_left();
}

// The order used to be lost with the shim that had not read it, and the service was `stopping` for ever.
#[test]
fn a_stop_that_its_shim_did_not_live_to_hear_is_carried_out() {
    let site = Site::new("[services.web]\ncommand = 'sleep 600'\n");
    site.up();
    let (shim, web) = (site.recorded("web", "shim", "shim"), site.leader("web"));
    send(shim, Signal::SIGSTOP);
    let stop = site.locald("stop web").start();
    site.await_state("web", "stopping");
    send(shim, Signal::SIGKILL);
    stop.finish().ok();
    assert!(!web.is_alive());
    site.assert_no_service_is_left();
}

// `up` used to be told now and then how the run before had ended, and to start nothing.
#[test]
fn up_starts_what_was_killed_together_with_its_shim_and_the_daemon() {
    let site = Site::new("[services.web]\ncommand = 'exec sleep 600'\n");
    for round in 1..=20 {
        site.up();
        assert_eq!(site.service("web")["run"], round);
        let everybody = site.processes();
        for seen in &everybody {
            send(seen.process, Signal::SIGKILL);
        }
        for seen in &everybody {
            site.await_end(seen.process);
        }
    }
}

#[test]
fn a_run_whose_record_cannot_be_read_is_unknown_until_it_is_ended() {
    let site = Site::new("[services.web]\ncommand = '''\ntrap \"\" HUP\nsleep 600 & echo $! > child\nwait'''\n");
    site.up();
    let (daemon, shim, web) = (site.daemon(), site.recorded("web", "shim", "shim"), site.leader("web"));
    let child = site.await_pid("child");
    for process in [daemon, shim] {
        send(process, Signal::SIGKILL);
        site.await_end(process);
    }
    std::fs::write(site.service_dir("web").join("pid"), "{\"run\":").expect("writes");
    assert_eq!(site.service("web")["state"], "unknown", "without a daemon");
    site.locald("daemon start").run().ok();
    assert_eq!(site.service("web")["state"], "unknown", "with a daemon");
    assert!(web.is_alive() && child.is_alive());
    site.locald("down").run().ok();
    assert!(!web.is_alive() && !child.is_alive());
    site.assert_no_service_is_left();
}

#[test]
#[cfg(target_os = "linux")]
fn whoever_started_the_daemon_is_none_who_collects_orphans() {
    let site = Site::new("[services.web]\ncommand = 'sleep 600'\n");
    site.up();
    let record = std::fs::read_to_string(site.service_dir("web").join("pid")).expect("a record");
    let record: serde_json::Value = serde_json::from_str(&record).expect("a record");
    let reapers: Vec<_> = record["reapers"].as_array().expect("a list").iter().map(|one| &one["pid"]).collect();
    assert_eq!(*reapers[0], site.daemon().pid);
    assert!(!reapers.contains(&&std::process::id().into()), "{reapers:?}");
    site.down();
}

// The next daemon used to wait for its answer before it told it to stop anything.
#[test]
fn a_shim_that_has_never_answered_this_daemon_keeps_no_service_from_ending() {
    let site = Site::new("[services.web]\ncommand = 'sleep 600'\n");
    site.up();
    let (daemon, shim, web) = (site.daemon(), site.recorded("web", "shim", "shim"), site.leader("web"));
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    send(shim, Signal::SIGSTOP);
    site.locald("daemon start").run().ok();
    assert_eq!(site.service("web")["state"], "unknown");
    site.down();
    assert!(!web.is_alive());
    site.assert_no_service_is_left();
}
