//! Ready means ready: health checks of every kind, what follows when they fail, and that none of them outlives its run.

use std::net::TcpListener;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Running, Seen, Site, free_port, identity, send};

/// A service that answers requests with the status in the file `status`.
fn http(port: u16, check: &str, more: &str) -> Site {
    let site = Site::new(&format!(
        "[services.web]\ncommand = 'exec \"$ZOO\" http $PORT .'\nport = {port}\nhealth_check = {check}\n{more}"
    ));
    site.write("status", "503");
    site
}

/// The only check of a service.
fn check(service: &Value) -> Value {
    assert_eq!(service["health"].as_array().map(Vec::len), Some(1), "{service}");
    service["health"][0].clone()
}

/// Begins `up`, and waits until a service is starting and has been asked in vain.
fn begin(site: &Site, name: &str) -> (Running, Value) {
    let up = site.locald("up").start();
    let service = site.eventually("an answer that is no good one", || {
        let status = site.locald("status --json").run().ok().json();
        let service = status["services"].as_array()?.iter().find(|service| service["name"] == name)?.clone();
        let is_asked = service["state"] == "starting" && service["health"][0]["answer"].is_string();
        is_asked.then_some(service)
    });
    (up, service)
}

#[test]
fn a_service_is_ready_when_it_answers_with_a_good_status() {
    let port = free_port();
    let site = http(port, "{ type = 'http', path = '/healthz?a=b', headers = { X-Probe = 1 } }", "");
    let (up, _) = begin(&site, "web");
    let web = site.eventually("an answer", || {
        let web = site.service("web");
        (web["health"][0]["answer"] == "answered 503 Service Unavailable, not one of 200 to 399").then_some(web)
    });
    assert_eq!(check(&web)["probe"], format!("GET http://localhost:{port}/healthz?a=b"));
    assert!(check(&web)["tries"].as_u64() > Some(0) && check(&web)["passes"] == false, "{web}");
    assert!(web["notes"].to_string().contains("answered 503"), "{web}");
    site.locald("status").run().ok().says("starting").says("answered 503 Service Unavailable");
    site.write("status", "204");
    up.finish().ok().says("ready");
    let web = site.service("web");
    assert_eq!(
        (&web["state"], &check(&web)["passes"], &check(&web)["answer"]),
        (&"ready".into(), &true.into(), &Value::Null)
    );
    let asked = std::fs::read_to_string(site.project().join("asked")).expect("requests").to_ascii_lowercase();
    assert!(asked.starts_with("get /healthz?a=b http/1.1\r\n"), "{asked}");
    assert!(asked.contains(&format!("host: localhost:{port}\r\n")) && asked.contains("x-probe: 1\r\n"), "{asked}");
    site.down();
}

#[test]
fn only_the_statuses_that_are_named_are_good() {
    let site = http(free_port(), "{ type = 'http', status = [401, 503] }", "");
    site.up();
    site.down();
}

#[test]
fn up_that_times_out_says_what_was_tried_and_answered() {
    let site = http(free_port(), "{ type = 'http' }", "");
    let up = site.locald("up --timeout 500ms").run().code(124);
    up.says("web is not ready in time: starting: GET http://localhost:")
        .says("answered 503 Service Unavailable, not one of 200 to 399 (");
    site.down();
}

#[test]
fn a_port_counts_only_when_one_of_its_own_processes_listens_on_it() {
    let port = free_port();
    let stranger = TcpListener::bind(("127.0.0.1", port)).expect("a port");
    let site = Site::new(&format!(
        "[services.web]\ncommand = 'read go < gate; until \"$ZOO\" listen {port}; do :; done'\nhealth_check = {{ type = 'tcp', port = {port} }}\n"
    ));
    nix::unistd::mkfifo(&site.project().join("gate"), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let (up, web) = begin(&site, "web");
    assert_eq!(check(&web)["answer"], format!("none of its processes listens on TCP port {port}"));
    // A process that another test is about to start may have it for a moment longer.
    drop(stranger);
    site.write("gate", "go\n");
    up.finish().ok();
    site.down();
}

#[test]
fn a_service_is_ready_when_all_of_its_checks_pass() {
    let port = free_port();
    let site =
        http(port, "[{ type = 'tcp' }, { type = 'command', command = 'test -e healthy' }, { type = 'http' }]", "");
    let up = site.locald("up").start();
    let passes = |site: &Site| {
        let web = site.service("web");
        let checks = web["health"].as_array().cloned().unwrap_or_default();
        checks.iter().map(|check| check["passes"] == true).collect::<Vec<bool>>()
    };
    site.eventually("the first to pass", || (passes(&site) == [true, false, false]).then_some(()));
    site.write("status", "200");
    site.eventually("the last to pass", || (passes(&site) == [true, false, true]).then_some(()));
    assert_eq!(site.service("web")["state"], "starting");
    site.write("healthy", "");
    up.finish().ok();
    site.down();
}

#[test]
fn a_command_has_the_services_environment_and_directory_and_says_why() {
    let site = Site::new(
        "[services.web]\ncommand = 'sleep 600'\nworkdir = 'sub'\nenv = { WORD = 'hello' }\n\
         health_check = 'echo \"$WORD $PORT from $PWD\"; test -e healthy'\nport = 'auto'\n",
    );
    std::fs::create_dir(site.project().join("sub")).expect("a directory");
    site.write("locald.toml", std::fs::read_to_string(site.project().join("locald.toml")).expect("a file"));
    let (up, web) = begin(&site, "web");
    let expected = format!("exit 1: hello {} from {}", web["port"], site.project().join("sub").display());
    assert_eq!(check(&web)["answer"], expected);
    site.write("sub/healthy", "");
    up.finish().ok();
    site.down();
}

#[test]
fn a_command_that_takes_too_long_is_killed_with_all_that_it_has_started() {
    let site = Site::new(
        "[services.web]\ncommand = 'sleep 600'\n[services.web.health_check]\ntype = 'command'\ntimeout = '300ms'\n\
         command = '''\n[ -e once ] && exit 1\n: > once\ntrap \"\" TERM HUP\n\"$ZOO\" setsid sh -c \"echo \\$\\$ > elsewhere; exec sleep 600\" &\n\
         \"$ZOO\" daemonize sh -c \"echo \\$\\$ > orphan; exec sleep 600\"\necho $$ > probe\nsleep 600'''\n",
    );
    let up = site.locald("up").start();
    let started = ["elsewhere", "orphan", "probe"].map(|file| site.await_pid(file));
    for process in started {
        site.await_end(process);
    }
    let web = site.service("web");
    assert_eq!(web["state"], "starting", "{web}");
    site.eventually("what became of it", || {
        let answer = check(&site.service("web"))["answer"].clone();
        answer
            .as_str()
            .is_some_and(|answer| answer.starts_with("did not end within 300ms") || answer == "exit 1")
            .then_some(())
    });
    site.locald("down").run().ok();
    up.finish().code(1);
}

#[test]
fn what_a_command_leaves_behind_ends_with_it() {
    let site = Site::new(
        "[services.web]\ncommand = 'sleep 600'\n\
         health_check = '\"$ZOO\" daemonize sh -c \"echo \\$\\$ >> left; exec sleep 600\"; sleep 0.05'\n",
    );
    site.up();
    let left = std::fs::read_to_string(site.project().join("left")).expect("somebody was left");
    for pid in left.split_ascii_whitespace().map(|pid| pid.parse().expect("a pid")) {
        if let Some(process) = locald_utils::process::ProcessId::of(pid) {
            site.await_end(process);
        }
    }
    assert_eq!(site.service("web")["state"], "ready");
    let down = site.down();
    assert_eq!(down["totals"]["processes"], 1, "a probe is no process of the service: {down}");
}

// Without environment, session and parent it stayed until the run ended, one with every probe.
#[test]
#[cfg(target_os = "linux")]
fn what_a_command_leaves_behind_ends_with_it_although_it_hides() {
    use locald_utils::process::cgroup::Hierarchy;
    let hides = "setsid env -i sh -c \"echo \\$\\$ >> left; exec sleep 600\" & sleep 0.05";
    let site = Site::new(&format!(
        "[services.quick]\ncommand = 'sleep 600'\nhealth_check = '{hides}'\n\
         [services.slow]\ncommand = 'sleep 600'\nhealth_check = {{ type = 'command', command = '{hides}; sleep 600', timeout = '300ms' }}\n"
    ));
    if Hierarchy::of_home(&site.home()).is_none() {
        eprintln!("no cgroup can be made here, so such a process is found when its run ends");
        return;
    }
    site.locald("up quick").run().ok();
    let up = site.locald("up --timeout 2s").start();
    let lines = || std::fs::read_to_string(site.project().join("left")).unwrap_or_default();
    site.eventually("two slow probes", || (lines().lines().count() >= 3).then_some(()));
    up.finish().code(124);
    for pid in lines().split_ascii_whitespace().rev().skip(1).map(|pid| pid.parse().expect("a pid")) {
        if let Some(process) = locald_utils::process::ProcessId::of(pid) {
            site.await_end(process);
        }
    }
    site.down();
}

#[test]
fn down_does_not_wait_for_a_probe() {
    let site = Site::new(
        "[services.web]\ncommand = 'sleep 600'\nstop_grace = '30s'\n\
         health_check = { type = 'command', command = 'trap \"\" TERM; echo $$ > probe; sleep 600', timeout = '600s' }\n",
    );
    let up = site.locald("up").start();
    let probe = site.await_pid("probe");
    let web = site.service("web");
    assert_eq!(web["strays"], Value::Null, "a probe is no stray of the service: {web}");
    let down = site.locald("down --json").run_within(Duration::from_secs(20)).expect("an end").ok().json();
    assert!(!probe.is_alive(), "{down}");
    assert_eq!(down["totals"]["processes"], 1, "a probe is no process of the service: {down}");
    up.finish().code(1);
    site.assert_no_service_is_left();
}

#[test]
fn a_line_of_output_makes_a_service_ready_and_only_one_of_its_own_run() {
    let site = Site::new(
        "[services.web]\ncommand = '''\n[ -e again ] && read go < gate\n: > again\nprintf \"\\033[32mlisten\"; printf \"ing\\033[0m on 80\\r\\n\"\n\
         sleep 600'''\nhealth_check = { type = 'log', pattern = '^listening on \\d+$' }\n",
    );
    nix::unistd::mkfifo(&site.project().join("gate"), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    site.up();
    let restart = site.locald("restart web").start();
    site.eventually("the second run", || {
        let web = site.service("web");
        (web["run"] == 2 && web["state"] == "starting").then_some(())
    });
    assert_eq!(check(&site.service("web"))["answer"], "no line does");
    site.write("gate", "go\n");
    restart.finish().ok();
    site.down();
}

#[test]
fn a_service_says_itself_that_it_is_ready() {
    let site = Site::new(
        "[services.web]\ncommand = '''\n\"$ZOO\" notify \"STATUS=READY=1 soon\"\nread go < gate\n\"$ZOO\" notify \"STATUS=up\nREADY=1\"\nsleep 600'''\n\
         health_check = { type = 'notify' }\n",
    );
    nix::unistd::mkfifo(&site.project().join("gate"), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
    let (up, web) = begin(&site, "web");
    assert_eq!(check(&web)["answer"], "it has not said so");
    site.write("gate", "go\n");
    up.finish().ok();
    site.down();
    let sockets = site.home().join("run/n");
    assert_eq!(std::fs::read_dir(&sockets).map_or(0, Iterator::count), 0, "its socket is gone");
}

#[test]
fn a_newline_on_a_descriptor_makes_a_service_ready() {
    for fd in [3, 4, 9] {
        let site = Site::new(&format!(
            "[services.web]\ncommand = '''\n\"$ZOO\" descriptors\nread go < gate\necho >&{fd}\nsleep 600'''\n\
             health_check = {{ type = 'notify', fd = {fd} }}\n"
        ));
        nix::unistd::mkfifo(&site.project().join("gate"), nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
        let (up, _) = begin(&site, "web");
        site.write("gate", "go\n");
        up.finish().ok();
        let log = String::from_utf8(site.log("web")).expect("text");
        assert!(log.contains(&format!("descriptors: 0 1 2 {fd}\n")), "it has that one and no other: {log}");
        site.down();
    }
}

#[test]
fn a_dip_does_not_last_and_nobody_is_restarted_without_a_policy() {
    let site = http(free_port(), "{ type = 'http', interval = '20ms', retries = 2 }", "");
    site.write("status", "200");
    site.up();
    let leader = site.leader("web");
    site.write("status", "500");
    let web = site.await_state("web", "unready");
    assert!(web["notes"].to_string().contains("answered 500 Internal Server Error"), "{web}");
    site.locald("status --exit-code").run().code(1);
    site.write("status", "200");
    site.await_state("web", "ready");
    assert_eq!(site.leader("web"), leader);
    site.down();
}

#[test]
fn a_service_that_is_not_healthy_any_more_is_run_again() {
    let site = http(free_port(), "{ type = 'http', interval = '20ms', retries = 2 }", "restart = 'on-failure'\n");
    site.write("status", "200");
    site.up();
    let leader = site.leader("web");
    site.write("status", "500");
    site.await_end(leader);
    site.write("status", "200");
    let web = site.eventually("the next run", || {
        let web = site.service("web");
        (web["state"] == "ready" && web["run"].as_u64() > Some(1)).then_some(web)
    });
    assert!(web["restarts"].as_u64() > Some(0), "{web}");
    assert_eq!(web["notes"].as_array().map(Vec::len), Some(0), "what is over is over: {web}");
    site.down();
}

#[test]
fn a_run_that_was_not_healthy_is_told_of_until_the_next_one_is_ready() {
    let site = http(
        free_port(),
        "{ type = 'http', interval = '20ms', retries = 1 }",
        "restart = { policy = 'on-failure', backoff = '5s', max_backoff = '5s' }\n",
    );
    site.write("status", "200");
    site.up();
    site.write("status", "500");
    let web = site.await_state("web", "backoff");
    let why = "the last run was not healthy: GET http://localhost:";
    assert!(web["notes"].to_string().contains(why) && web["notes"].to_string().contains("answered 500"), "{web}");
    site.write("status", "200");
    site.locald("restart web").run().ok().says_nothing_of(why);
    site.down();
}

#[test]
fn an_answer_of_a_stranger_at_the_same_port_is_none() {
    let port = free_port();
    let (Ok(stranger), Ok(own)) = (TcpListener::bind(("127.0.0.1", port)), TcpListener::bind(("::1", port))) else {
        eprintln!("skipped: there is no IPv6");
        return;
    };
    drop(own);
    std::thread::spawn(move || {
        for connection in stranger.incoming() {
            use std::io::Write;
            // Whoever asks hears that all is well.
            let _ = connection.and_then(|mut connection| connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n"));
        }
    });
    let site = Site::new(&format!(
        "[services.web]\ncommand = 'exec \"$ZOO\" http {port} . ::1'\nhealth_check = {{ type = 'http', port = {port} }}\n"
    ));
    site.write("status", "503");
    let up = site.locald("up").start();
    site.eventually("its own answer", || {
        let answer = site.service("web")["health"][0]["answer"].clone();
        (answer == "answered 503 Service Unavailable, not one of 200 to 399").then_some(())
    });
    assert_eq!(site.service("web")["state"], "starting");
    site.write("status", "200");
    up.finish().ok();
    site.down();
}

#[test]
fn a_service_that_floods_its_descriptor_is_ended_like_any_other() {
    let site = Site::new(
        "[services.web]\ncommand = 'echo begun; exec cat /dev/zero >&3'\nhealth_check = { type = 'notify', fd = 3 }\n",
    );
    site.locald("up --timeout 500ms").run().code(124);
    let down = site.locald("down --json").run_within(Duration::from_secs(20)).expect("an end").ok().json();
    assert_eq!(down["totals"]["killed"], 0, "{down}");
    assert!(!down.to_string().contains("degraded"), "its shim went on: {down}");
}

#[test]
fn a_service_that_is_not_ready_in_time_has_failed_and_says_why() {
    let site = http(free_port(), "{ type = 'http', start_period = '300ms' }", "");
    let up = site.locald("up").run().code(1);
    up.says("failed: not healthy").says("not within 300ms: GET").says("answered 503 Service Unavailable");
    site.assert_no_service_is_left();
    let web = site.service("web");
    assert_eq!((&web["state"], &web["failure"]["kind"]), (&"failed".into(), &"unhealthy".into()), "{web}");
    // The next daemon says the same, and starts nothing.
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    site.locald("daemon start").run().ok();
    assert_eq!(site.service("web")["failure"]["kind"], "unhealthy");
    site.write("status", "200");
    site.up();
    site.down();
}

#[test]
fn that_it_can_never_be_ready_is_told_to_those_who_wait_for_it() {
    let port = free_port();
    let site = http(
        port,
        "{ type = 'http', start_period = '200ms' }",
        "[services.worker]\ncommand = 'sleep 600'\ndepends_on = ['web']\n",
    );
    let up = site.locald("up").run().code(1);
    up.says("worker").says("was not healthy");
    assert_eq!(site.service("worker")["run"], Value::Null);
    // Fixed and run again, it releases them by itself.
    site.write("status", "200");
    site.locald("restart web").run().ok();
    site.await_state("worker", "ready");
    site.down();
}

#[test]
fn the_next_daemon_asks_anew_and_knows_what_was_said() {
    let site = Site::new(
        "[services.said]\ncommand = 'echo up; sleep 600'\nhealth_check = { type = 'log', pattern = 'up' }\n\
         [services.asked]\ncommand = 'sleep 600'\nhealth_check = { type = 'command', command = 'test -e healthy', interval = '50ms' }\n",
    );
    site.write("healthy", "");
    site.up();
    let leaders = [site.leader("said"), site.leader("asked")];
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    site.locald("daemon start").run().ok();
    for name in ["said", "asked"] {
        site.await_state(name, "ready");
    }
    assert_eq!([site.leader("said"), site.leader("asked")], leaders);
    std::fs::remove_file(site.project().join("healthy")).expect("removes");
    site.await_state("asked", "unready");
    site.down();
}

#[test]
fn what_was_ready_under_the_last_daemon_becomes_unready_under_the_next() {
    let site = Site::new(
        "[services.web]\ncommand = 'sleep 600'\n\
         health_check = { type = 'command', command = 'test -e healthy', interval = '50ms', retries = 2 }\n",
    );
    site.write("healthy", "");
    site.up();
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    std::fs::remove_file(site.project().join("healthy")).expect("removes");
    site.locald("daemon start").run().ok();
    site.await_state("web", "unready");
    site.down();
}

#[test]
fn a_start_period_that_ends_without_a_daemon_has_ended() {
    let site = Site::new(
        "[services.web]\ncommand = 'sleep 1; echo late >> $EVENTS; exec sleep 600'\n\
         health_check = { type = 'command', command = 'false', start_period = '600ms', timeout = '300ms' }\n",
    );
    let up = site.locald("up").start();
    let leader = site.eventually("a leader", || {
        let web = site.locald("status --json").run().ok().json();
        web["services"][0]["pid"].as_i64().map(|pid| identity(i32::try_from(pid).expect("a pid")))
    });
    let daemon = site.daemon();
    send(up.process(), Signal::SIGKILL);
    up.finish();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    site.await_event("late");
    assert!(leader.is_alive());
    site.locald("daemon start").run().ok();
    let web = site.await_state("web", "failed");
    assert_eq!(web["failure"]["kind"], "unhealthy", "{web}");
    assert!(
        web["failure"]["why"].as_str().is_some_and(|why| why.starts_with("not within 600ms: `false`: exit 1")),
        "{web}"
    );
    site.locald("down").run().ok();
}

#[test]
fn a_daemon_that_dies_leaves_no_probe() {
    let site = Site::new(
        "[services.web]\ncommand = 'sleep 600'\n[services.web.health_check]\ntype = 'command'\ntimeout = '400ms'\n\
         command = 'echo $$ > probe; trap \"\" TERM; sleep 600'\n",
    );
    let up = site.locald("up --timeout 20s").start();
    let probe = site.await_pid("probe");
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    // Nobody but the shim is there to end it.
    site.await_end(probe);
    site.locald("down").run().ok();
    up.finish();
    site.assert_no_service_is_left();
}

#[test]
fn a_run_that_has_lost_its_shim_is_still_asked() {
    let site = http(free_port(), "{ type = 'http', interval = '20ms', retries = 2 }", "");
    let up = site.locald("up").start();
    let shim = site.eventually("a shim", || site.processes().into_iter().find(Seen::is_shim)).process;
    site.await_state("web", "starting");
    send(shim, Signal::SIGKILL);
    site.await_end(shim);
    site.write("status", "200");
    up.finish().ok();
    site.write("status", "500");
    site.await_state("web", "unready");
    site.write("status", "200");
    let web = site.await_state("web", "ready");
    assert!(web["notes"].to_string().contains("degraded"), "{web}");
    site.down();
}

// Nobody could ask it any more, and so it counted as ready.
#[test]
fn a_run_that_loses_its_shim_before_it_is_ready_does_not_become_so_by_that() {
    let checks = ["'test -e fine'", "{ type = 'log', pattern = 'fine' }", "{ type = 'notify' }"];
    let service = |(name, check): (&str, &str)| {
        format!("[services.{name}]\ncommand = 'exec sleep 600'\nhealth_check = {check}\n")
    };
    let site = Site::new(&["a", "b", "c"].into_iter().zip(checks).map(service).collect::<String>());
    let up = site.locald("up --timeout 1m").start();
    for name in ["a", "b", "c"] {
        site.await_state(name, "starting");
    }
    for shim in site.processes().into_iter().filter(Seen::is_shim) {
        send(shim.process, Signal::SIGKILL);
        site.await_end(shim.process);
    }
    for name in ["a", "b", "c"] {
        let note = site.eventually("the reason", || {
            let service = site.service(name);
            assert_eq!(service["state"], "starting", "{service}");
            let notes = service["notes"].to_string();
            (notes.contains("is gone: restart the service") && notes.contains("degraded")).then_some(notes)
        });
        assert!(note.contains("its shim, which would"), "{note}");
    }
    site.down();
    up.finish().code(1);
}

#[test]
fn what_was_not_ready_any_more_is_not_ready_for_the_next_daemon_either() {
    let site = http(free_port(), "{ type = 'http', interval = '20ms', retries = 1 }", "");
    site.write("status", "200");
    site.up();
    site.write("status", "500");
    site.await_state("web", "unready");
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    let start = site.locald("daemon start").run().ok();
    let web = site.service("web");
    assert!(web["state"] == "starting" || web["state"] == "unready", "{start}: {web}");
    site.write("status", "200");
    site.await_state("web", "ready");
    site.down();
}

// Nobody knew its port any more, and it was never ready again.
#[test]
fn what_has_lost_its_daemon_and_its_shim_is_asked_at_its_port() {
    let site = http(free_port(), "{ type = 'http', interval = '20ms' }", "tty = false\n");
    site.write("status", "200");
    site.up();
    let (daemon, shim, web) = (site.daemon(), site.recorded("web", "shim", "shim"), site.leader("web"));
    send(daemon, Signal::SIGKILL);
    send(shim, Signal::SIGKILL);
    site.await_end(daemon);
    site.await_end(shim);
    site.up();
    assert_eq!(site.leader("web"), web);
    site.down();
}
