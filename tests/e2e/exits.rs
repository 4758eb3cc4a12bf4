//! How a run ended is told as it was seen, and what follows from it is what the project file says.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Site, send};

#[test]
fn exit_code_and_signal_are_told_apart() {
    let site = Site::new(
        "[services.code]\ncommand = 'exit 143'\n[services.signal]\ncommand = 'kill -TERM $$'\n\
         [services.kill]\ncommand = 'kill -KILL $$'\n[services.fine]\ncommand = 'exit 0'\n",
    );
    site.locald("up").run().code(1);
    let text = |name: &str| {
        let text = site.service(name)["text"].as_str().expect("a text").to_owned();
        text.split(',').next().expect("a word").to_owned()
    };
    assert_eq!(
        [text("code"), text("signal"), text("kill"), text("fine")],
        ["failed: exit 143", "killed by SIGTERM", "killed by SIGKILL", "exited 0"]
    );
    let last = site.service("signal")["last"].clone();
    assert_eq!(
        (&last["exit_code"], &last["signal"], &last["stopped"]),
        (&Value::Null, &"SIGTERM".into(), &false.into())
    );
}

#[test]
fn a_service_that_answers_sigterm_with_exit_0_has_exited_0() {
    let site = Site::new("[services.web]\ncommand = '''\ntrap 'exit 0' TERM\nwhile :; do sleep 0.02; done'''\n");
    site.up();
    let down = site.down();
    let ended = &down["services"][0]["ended"];
    assert_eq!((&ended["exit_code"], &ended["signal"], &ended["stopped"]), (&0.into(), &Value::Null, &true.into()));
}

#[test]
fn a_service_that_says_it_is_ready_and_ends_is_not_up() {
    let site = Site::new("[services.web]\ncommand = 'echo ready; exit 1'\n[services.db]\ncommand = 'sleep 600'\n");
    let up = site.locald("up").run().code(1).says("web: failed: exit 1");
    assert!(!up.stdout.contains("2 services ready"), "{up}");
    assert_eq!((&site.service("web")["state"], &site.service("db")["state"]), (&"failed".into(), &"ready".into()));
    site.down();
}

#[test]
fn a_kill_from_outside_is_told_and_not_taken_for_ours() {
    let site = Site::new("[services.web]\ncommand = 'sleep 600'\n");
    site.up();
    send(site.leader("web"), Signal::SIGKILL);
    let web = site.await_state("web", "failed");
    assert!(web["text"].as_str().is_some_and(|text| text.starts_with("killed by SIGKILL")), "{web}");
    assert_eq!((&web["last"]["stopped"], &web["last"]["forced"]), (&false.into(), &false.into()));
    site.locald("status --exit-code").run().code(1);
}

#[test]
fn a_failed_service_is_replaced_when_the_file_says_so() {
    let site = Site::new(
        "[services.web]\ncommand = 'sleep 600'\nrestart = { policy = \"on-failure\", backoff = \"10ms\" }\n\
         [services.other]\ncommand = 'sleep 600'\n",
    );
    site.up();
    let (first, other) = (site.leader("web"), site.leader("other"));
    send(first, Signal::SIGKILL);
    let web = site.eventually("a second run", || {
        Some(site.service("web")).filter(|web| web["state"] == "ready" && web["run"] == 2)
    });
    assert_eq!((&web["restarts"], &web["last"]["signal"]), (&1.into(), &"SIGKILL".into()));
    assert!(!first.is_alive() && other.is_alive());
    assert_eq!(site.service("other")["run"], 1);
}

#[test]
fn success_is_no_failure_and_always_means_always() {
    let site = Site::new(
        "[services.done]\ncommand = 'sleep 0.3; exit 0'\nrestart = \"on-failure\"\n\
         [services.again]\ncommand = 'echo again >> $EVENTS; sleep 0.3; exit 0'\nrestart = { policy = \"always\", backoff = \"10ms\" }\n",
    );
    site.locald("up").run();
    site.await_events("again", 3);
    let done = site.await_state("done", "completed");
    assert_eq!(done["run"], 1);
    site.down();
}

#[test]
fn a_crash_loop_is_given_up_and_called_so() {
    let site = Site::new(
        "[services.web]\ncommand = 'echo boom; exit 1'\n\
         restart = { policy = \"on-failure\", backoff = \"10ms\", max_backoff = \"10ms\", limit = 3 }\n",
    );
    site.locald("up").run().code(1).says("crash loop, 3 starts").says("boom");
    let web = site.service("web");
    assert_eq!((&web["run"], &web["failure"]["kind"]), (&3.into(), &"crash_loop".into()));
    // A person may try again.
    site.locald("up").run().code(1);
    assert_eq!(site.service("web")["run"], 6);
}

#[test]
fn a_crash_loop_of_what_never_got_healthy_says_so_and_not_how_it_was_stopped() {
    let site = Site::new(
        "[services.web]\ncommand = 'exec sleep 600'\n\
         health_check = { type = \"command\", command = \"exit 3\", start_period = \"50ms\", interval = \"20ms\" }\n\
         restart = { policy = \"always\", backoff = \"10ms\", max_backoff = \"10ms\", limit = 2 }\n",
    );
    let why = "the last run was not healthy: not within 50ms: `exit 3`: exit 3";
    let up = site.locald("up").run().code(1).says("crash loop, 2 starts in").says(why);
    assert!(!up.stderr.contains("SIGTERM"), "{}", up.stderr);
    let is_told = || site.service("web")["notes"] == serde_json::json!([why]);
    assert!(is_told(), "{}", site.service("web"));
    // The next daemon knows as well.
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    site.locald("daemon start").run().ok();
    site.await_state("web", "failed");
    assert!(is_told(), "{}", site.service("web"));
}

#[test]
fn a_stop_while_the_next_attempt_is_due_is_immediate() {
    let site = Site::new(
        "[services.web]\ncommand = 'echo run >> $EVENTS; exit 1'\n\
         restart = { policy = \"on-failure\", backoff = \"1h\", max_backoff = \"1h\" }\n",
    );
    let up = site.locald("up").start();
    let web = site.await_state("web", "backoff");
    // The one that failed was the first attempt.
    assert_eq!((&web["backoff"]["attempt"], &web["backoff"]["limit"], &web["run"]), (&2.into(), &10.into(), &1.into()));
    site.locald("stop web").run().ok();
    assert_eq!(site.service("web")["state"], "stopped");
    up.finish().code(1);
    site.down();
    assert_eq!(site.said(), ["run"]);
}

// It was told as the exit of the run before, or not at all.
#[test]
fn a_start_that_is_refused_is_told_as_that_while_the_next_attempt_is_due() {
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = stranger.local_addr().expect("an address").port();
    let site = Site::new(&format!(
        "[services.web]\ncommand = 'exec sleep 600'\nport = {port}\n\
         restart = {{ policy = \"on-failure\", backoff = \"1h\", max_backoff = \"1h\" }}\n"
    ));
    let up = site.locald("up").start();
    let web = site.await_state("web", "backoff");
    let why = format!("the last start failed: port {port} is held by pid {}", std::process::id());
    assert!(web["notes"][0].as_str().is_some_and(|note| note.starts_with(&why)), "{web}");
    site.locald("stop web").run().ok();
    let up = up.finish().code(1);
    up.says(&why).says("attempt 2 of 10 follows");
    site.down();
}

#[test]
fn a_crash_loop_is_counted_on_by_the_next_daemon() {
    let site = Site::new(
        "[services.web]\ncommand = 'echo start >> \"$EVENTS\"; exit 1'\n\
         restart = { policy = \"always\", backoff = \"150ms\", max_backoff = \"150ms\", limit = 8 }\n",
    );
    let running = site.locald("up").start();
    site.await_events("start", 4);
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    running.finish().code(1);
    let web = site.await_state("web", "failed");
    assert_eq!((&web["run"], &web["failure"]["kind"]), (&8.into(), &"crash_loop".into()));
    assert_eq!((site.said().len(), &web["restarts"]), (8, &7.into()));
    // And what was given up stays so.
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    site.locald("daemon start").run().ok();
    assert_eq!(site.await_state("web", "failed")["run"], 8);
}
