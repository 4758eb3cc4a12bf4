//! Down means down: when it says so, nothing of a run is left, whatever the run has done to stay.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Site, free_port, send, service_of, zoo};

/// How a service ended, from the answer of `down`.
fn ended(down: &Value, service: &str) -> Value {
    service_of(down, service)["ended"].clone()
}

#[cfg(target_os = "linux")]
#[test]
fn a_service_that_a_debugger_holds_ends_too() {
    use nix::sys::ptrace;
    use nix::sys::wait::{WaitPidFlag, waitpid};
    use nix::unistd::Pid;
    let site = Site::new("[services.web]\ncommand = 'exec sleep 600'\nstop_grace = \"300ms\"\n");
    site.up();
    let web = site.leader("web");
    let pid = Pid::from_raw(web.pid);
    // What a debugger does: its signals wait for somebody who never lets it go on.
    if ptrace::attach(pid).is_err() {
        // Where only descendants may be traced (ptrace(2), Yama), nobody else's debugger gets in the way either.
        site.down();
        return;
    }
    waitpid(pid, Some(WaitPidFlag::__WALL)).expect("it stops");
    let down = site.locald("down --json").start();
    // Killed it is still the debugger's, who is told first.
    site.eventually("its death", || {
        let status = waitpid(pid, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)).ok()?;
        matches!(status, nix::sys::wait::WaitStatus::Signaled(..)).then_some(())
    });
    let down = down.finish().ok().json();
    let ended = &service_of(&down, "web")["ended"];
    assert_eq!((&ended["signal"], &ended["forced"]), (&"SIGKILL".into(), &true.into()), "{down}");
    assert!(!web.is_alive());
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

// It ignores SIGHUP as well: the kernel hangs up the terminal's foreground group when a session leader exits.
#[test]
fn a_member_that_ignores_sigterm_is_killed_after_its_leader_has_left() {
    let site = Site::new(
        "[services.web]\ncommand = '''\ntrap 'exit 0' TERM\n(trap '' HUP TERM; exec sleep 600) & echo $! > member\nwait'''\nstop_grace = \"1s\"\n",
    );
    site.up();
    let member = site.await_pid("member");
    let web = ended(&site.down(), "web");
    assert!(!member.is_alive());
    assert_eq!((&web["exit_code"], &web["forced"], &web["killed"]), (&0.into(), &true.into(), &1.into()));
    assert!(web["stop_ms"].as_u64() >= Some(1000), "killed before its time: {web}");
}

// The process table shows such a process as a zombie, which it is not.
#[test]
fn a_process_whose_first_thread_has_left_is_alive_until_it_is_killed() {
    const PROGRAM: &str = r#"
        #include <pthread.h>
        #include <signal.h>
        #include <stdio.h>
        #include <unistd.h>
        static void *stay(void *unused) { for (;;) pause(); return unused; }
        int main(void) {
            pthread_t thread;
            signal(SIGTERM, SIG_IGN);
            if (fork() == 0) {
                setsid();
                FILE *file = fopen("child.new", "w");
                fprintf(file, "%d\n", (int)getpid());
                fclose(file);
                rename("child.new", "child");
            }
            pthread_create(&thread, NULL, stay, NULL);
            pthread_exit(NULL);
        }"#;
    let site = Site::new("[services.web]\ncommand = \"./headless\"\nstop_grace = \"200ms\"\n");
    let source = site.write("headless.c", PROGRAM);
    let mut cc = std::process::Command::new("cc");
    let built = cc.arg(&source).arg("-pthread").arg("-o").arg(site.project().join("headless")).status();
    assert!(built.expect("a C compiler").success());

    site.up();
    let (web, child) = (site.leader("web"), site.await_pid("child"));
    assert_eq!(site.service("web")["state"], "ready");
    let ended = ended(&site.down(), "web");
    assert_eq!((&ended["processes"], &ended["killed"], &ended["signal"]), (&2.into(), &2.into(), &"SIGKILL".into()));
    assert!(!web.is_alive() && !child.is_alive());

    // So it is when the shim is gone.
    std::fs::remove_file(site.project().join("child")).expect("removed");
    site.up();
    let (web, child) = (site.leader("web"), site.await_pid("child"));
    send(site.recorded("web", "shim", "shim"), Signal::SIGKILL);
    site.down();
    assert!(!web.is_alive() && !child.is_alive());
}

#[test]
fn a_child_in_a_session_of_its_own_ends_too() {
    let site = Site::new(
        "[services.web]\ncommand = '''\n\"$ZOO\" setsid sh -c 'echo $$ > child; exec sleep 600' &\nwait'''\n",
    );
    site.up();
    let child = site.await_pid("child");
    let web = ended(&site.down(), "web");
    assert!(!child.is_alive());
    assert_eq!(web["strays"][0]["pid"], child.pid);
    assert_eq!(web["killed"], 0, "it obeys SIGTERM: {web}");
}

#[test]
fn a_daemonized_descendant_ends_too() {
    let site = Site::new(
        "[services.web]\ncommand = '''\n\"$ZOO\" daemonize sh -c 'echo $$ > child; exec sleep 600'\nsleep 600'''\n",
    );
    site.up();
    let child = site.await_pid("child");
    if cfg!(target_os = "linux") {
        // On macOS the shim alone knows whose it is.
        site.eventually("it to have lost its parent", || {
            let status = site.locald("status --json").run().ok().json();
            (service_of(&status, "web")["strays"][0]["pid"] == child.pid).then_some(())
        });
        site.locald("status").run().ok().says("1 stray: sleep 600");
    }
    site.locald("down").run().ok().says("web: 1 stray ended with it: sleep 600");
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

#[test]
fn services_that_ignore_sigterm_wait_for_their_grace_periods_side_by_side() {
    let one = |number| {
        format!(
            "[services.s{number}]\ncommand = '''\ntrap '' TERM\nwhile :; do sleep 600; done'''\nstop_grace = \"1s\"\n"
        )
    };
    let site = Site::new(&(0..5).map(one).collect::<String>());
    site.up();
    let down = site.down();
    let ends: Vec<Value> = (0..5).map(|number| ended(&down, &format!("s{number}"))).collect();
    let number = |end: &Value, key: &str| end[key].as_u64().expect("a number");
    // Side by side: the last stop began before the first was over.
    let last_begin = ends.iter().map(|end| number(end, "ended_at") - number(end, "stop_ms")).max();
    let first_end = ends.iter().map(|end| number(end, "ended_at")).min();
    assert!(last_begin < first_end, "{down}");
    assert!(ends.iter().all(|end| end["forced"] == true && number(end, "stop_ms") >= 1000), "{down}");
}

#[test]
fn a_slow_honest_stop_is_left_its_time() {
    let site = Site::new(
        "[services.web]\ncommand = '''\ntrap 'sleep 1; echo bye; exit 0' TERM\nwhile :; do sleep 0.05; done'''\nstop_grace = \"30s\"\n",
    );
    site.up();
    let web = ended(&site.down(), "web");
    assert_eq!((&web["exit_code"], &web["forced"], &web["killed"]), (&0.into(), &false.into(), &0.into()));
    assert!(site.log("web").ends_with(b"bye\n"));
}

#[test]
fn now_does_not_wait_for_the_grace_period() {
    let site =
        Site::new("[services.web]\ncommand = '''\ntrap '' TERM\nwhile :; do sleep 600; done'''\nstop_grace = \"1h\"\n");
    site.up();
    site.locald("down --now").run().ok().says("0 left");
    site.assert_no_service_is_left();
}

#[test]
fn a_stop_under_way_is_cut_short_by_now() {
    let site = Site::new(
        "[services.web]\ncommand = '''\ntrap 'echo asked >> $EVENTS' TERM\nwhile :; do sleep 600 & wait; done'''\nstop_grace = \"1h\"\n",
    );
    site.up();
    let slow = site.locald("down").start();
    site.await_event("asked");
    site.locald("down --now").run().ok();
    site.assert_no_service_is_left();
    slow.finish().ok();
}

// A second `down` used to wait for the same grace period.
#[test]
fn a_second_down_ends_at_once_what_the_first_one_waits_for() {
    let ignorer = |name: &str| {
        format!(
            "[services.{name}]\ncommand = '''\ntrap 'echo asked >> $EVENTS' TERM\nwhile :; do sleep 600 & wait; done'''\n\
             stop_grace = \"1h\"\n"
        )
    };
    let site = Site::new(&(ignorer("db") + &ignorer("web")));
    site.up();
    let first = site.locald("down").start();
    site.await_events("asked", 2);
    let down = site.down();
    for service in ["web", "db"] {
        let end = ended(&down, service);
        assert_eq!((&end["forced"], &end["signal"], &end["stopped"]), (&true.into(), &"SIGKILL".into(), &true.into()));
    }
    first.finish().ok().says("0 left");
    assert_eq!(site.said(), ["asked", "asked"]);
}

#[test]
fn a_stop_command_that_changes_nothing_does_not_end_the_ladder() {
    let site = Site::new(
        "[services.web]\ncommand = '''\ntrap 'echo asked >> $EVENTS' TERM\nwhile :; do sleep 600 & wait; done'''\n\
         stop_command = \"echo hook >> $EVENTS\"\nstop_grace = \"1s\"\n",
    );
    site.up();
    let web = ended(&site.down(), "web");
    assert_eq!(site.said(), ["hook", "asked"]);
    assert_eq!((&web["forced"], &web["signal"]), (&true.into(), &"SIGKILL".into()));
}

#[test]
fn a_stop_command_that_ends_the_service_is_enough() {
    // The stop signal follows when the command has ended, so the command waits for what it asked for.
    let site = Site::new(
        "[services.web]\ncommand = '''\ntouch running\ntrap 'echo asked >> $EVENTS' TERM\n\
         while [ ! -e quit ]; do sleep 0.02; done\ntrap '' TERM; rm running'''\n\
         stop_command = \"touch quit; while [ -e running ]; do sleep 0.02; done\"\nstop_grace = \"30s\"\n",
    );
    site.up();
    let web = ended(&site.down(), "web");
    assert_eq!((&web["exit_code"], &web["forced"]), (&0.into(), &false.into()));
    assert!(site.said().is_empty());
}

#[test]
fn a_stop_command_that_never_ends_is_ended_as_well() {
    let site = Site::new(
        "[services.web]\ncommand = \"sleep 600\"\nstop_command = \"echo $$ > hook; sleep 601\"\nstop_grace = \"1s\"\n",
    );
    site.up();
    let down = site.locald("down").start();
    let hook = site.await_pid("hook");
    down.finish().ok();
    assert!(!hook.is_alive());
    site.assert_no_service_is_left();
}

#[test]
fn what_keeps_forking_while_it_is_killed_ends_too() {
    let site = Site::new(
        "[services.web]\ncommand = '''\nfor i in 1 2 3 4; do \"$ZOO\" potato \"$PWD\" & done\nsleep 600'''\nstop_grace = \"100ms\"\n",
    );
    site.up();
    let web = ended(&site.down(), "web");
    assert_eq!((&web["stopped"], &web["survivors"]), (&true.into(), &Value::Array(Vec::new())));
}

// Whoever was given the socket is no process of the run and gets no signal. But the port is not free, and `down` says so.
#[test]
fn a_port_that_was_given_away_is_not_called_free() {
    let port = free_port();
    let site = Site::new(&format!(
        "[services.web]\ncommand = ['sh', '-c', 'exec \"$ZOO\" give $PORT taker']\nport = {port}\n"
    ));
    let mut taker = std::process::Command::new(zoo())
        .args(["take", "taker"])
        .current_dir(site.project())
        .spawn()
        .expect("the taker starts");
    site.eventually("the taker to listen", || site.project().join("taker").exists().then_some(()));
    site.up();
    let down = site.locald("down --json").run();
    let is_alive = taker.try_wait().expect("a child").is_none();
    taker.kill().expect("a child of its own");
    taker.wait().expect("reaped");
    let down = down.code(1);
    let down: Value = serde_json::from_str(&down.stdout).expect("an object");
    let survivor = &ended(&down, "web")["survivors"][0];
    assert_eq!(survivor["pid"], taker.id(), "{down}");
    assert!(survivor["reason"].as_str().is_some_and(|reason| reason.contains(&port.to_string())), "{down}");
    assert!(is_alive, "it is not ours to signal");
    site.locald("down").run().ok();
}

#[test]
fn what_a_crashed_leader_leaves_behind_ends_before_the_run_counts_as_over() {
    let site = Site::new(
        "[services.web]\ncommand = '''\n\"$ZOO\" setsid sh -c 'echo $$ > member; exec sleep 600' &\n\
         while [ ! -s member ]; do sleep 0.01; done\nexit 3'''\n",
    );
    site.locald("up").run();
    let web = site.await_state("web", "failed");
    let member = std::fs::read_to_string(site.project().join("member")).expect("a pid");
    site.assert_no_service_is_left();
    assert_eq!((&web["last"]["exit_code"], &web["last"]["stopped"]), (&3.into(), &false.into()));
    assert_eq!(web["last"]["strays"][0]["pid"].to_string(), member.trim());
}

#[test]
fn a_restart_after_a_crash_waits_until_what_was_left_is_gone() {
    let site = Site::new(
        "[services.web]\ncommand = '''\n\
         if [ -e member ] && kill -0 $(cat member) 2> kill.err; then echo TWIN >> $EVENTS; fi\n\
         rm -f member\n\"$ZOO\" setsid sh -c 'trap \"\" TERM; echo $$ > member.new; mv member.new member; exec sleep 600' &\n\
         while [ ! -s member ]; do sleep 0.01; done\necho run >> $EVENTS\n\
         [ $(grep -c run $EVENTS) -lt 3 ] && exit 1\nsleep 600'''\nstop_grace = \"200ms\"\n\
         restart = { policy = \"on-failure\", backoff = \"10ms\", max_backoff = \"10ms\" }\n",
    );
    site.locald("up").run();
    site.await_events("run", 3);
    assert!(!site.said().contains(&"TWIN".to_owned()), "{:?}", site.said());
    site.down();
}

// Whoever had renamed the directory was told that nothing was running, and how to end it nowhere.
#[test]
fn who_has_moved_the_project_is_told_how_to_end_what_runs() {
    let site = Site::new("[services.web]\ncommand = 'exec sleep 600'\n");
    site.up();
    let moved = site.root().join("moved");
    std::fs::rename(site.project(), &moved).expect("renamed");
    let advice = format!("`locald -C {} down` ends it", site.project().display());
    site.locald("status").dir(&moved).run().ok().says(&advice);
    site.locald("down").dir(&moved).run().ok().says("nothing was running").says(&advice);
    site.locald("down").arg("-C").arg(site.project()).dir(&moved).run().ok().says("1 service stopped");
    std::fs::rename(&moved, site.project()).expect("renamed");
    site.locald("down").run().ok().says_nothing_of("-C");
}
