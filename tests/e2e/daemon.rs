//! The daemon may die, is one, and is nobody else's.

use std::io::Read;
use std::process::{Command, Stdio};

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
    site.locald("ls").run().ok().says("shop").says("0/2 ready").says("no daemon runs");
    assert!(site.daemons().is_empty(), "looking started a daemon");
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

#[test]
fn daemon_stop_leaves_services_running_and_says_so() {
    let site = Site::new(TWO);
    site.up();
    let web = site.leader("web");
    site.locald("daemon stop").run().ok().says("2 services run on");
    assert!(site.daemons().is_empty() && web.is_alive());
    site.up();
    assert_eq!(site.leader("web"), web);
}

// It used to answer before anything had ended, and then to wait in vain for its own client to leave.
#[test]
fn daemon_stop_all_ends_every_service_first_and_counts_them() {
    let site = Site::new(TWO);
    let other = site.another("other", "[services.web]\ncommand = \"sleep 600\"\n");
    site.up();
    site.locald("up").dir(&other).run().ok();
    let ran = site.locald("daemon stop --all").run().ok();
    site.assert_no_service_is_left();
    assert!(site.daemons().is_empty());
    ran.says("3 services stopped, 3 processes ended, 0 left").says("the daemon has ended");
    site.locald("daemon status").run().code(3);
}

#[test]
fn a_dead_daemons_socket_and_lock_are_no_obstacle() {
    let site = Site::new(TWO);
    site.locald("daemon start").run().ok();
    let first = site.daemon();
    send(first, Signal::SIGKILL);
    site.await_end(first);
    let run = site.home().join("run");
    assert!(run.join("daemon.sock").exists() && run.join("daemon.lock").exists());
    // Nobody trusts the number in it: this one is alive and no daemon.
    std::fs::write(run.join("daemon.lock"), "1\n").expect("writes");
    site.up();
    assert_eq!(site.daemons().len(), 1);
}

#[test]
fn ten_ups_over_a_dead_daemons_socket_are_one_daemon() {
    let site = Site::new(TWO);
    site.up();
    let (first, web) = (site.daemon(), site.leader("web"));
    send(first, Signal::SIGKILL);
    site.await_end(first);
    let ups: Vec<_> = (0..10).map(|_| site.locald("up").start()).collect();
    for up in ups {
        up.finish().ok();
    }
    assert_eq!((site.daemons().len(), site.leader("web")), (1, web));
    assert_eq!(site.service_processes().len(), 2);
}

// A second daemon beside it would start every service twice.
#[test]
fn a_daemon_whose_files_are_deleted_is_still_the_only_one() {
    let site = Site::new(TWO);
    site.up();
    let (daemon, web) = (site.daemon(), site.leader("web"));
    for name in ["daemon.sock", "daemon.lock"] {
        std::fs::remove_file(site.home().join("run").join(name)).expect("removes");
    }
    site.locald("up").run().code(1);
    // The one that `up` has started in vain may still be on its way out.
    site.eventually("the other daemon to leave", || {
        let daemons: Vec<_> = site.daemons().iter().map(|seen| seen.process).collect();
        (daemons == [daemon]).then_some(())
    });
    assert!(web.is_alive() && site.service_processes().len() == 2);
    send(daemon, Signal::SIGTERM);
    site.await_end(daemon);
    site.up().says("2 services already running");
    assert_eq!((site.daemons().len(), site.leader("web")), (1, web));
}

#[test]
fn ten_daemons_started_at_once_are_one() {
    let site = Site::new(TWO);
    let starts: Vec<_> = (0..10).map(|_| site.locald("daemon start --json").start()).collect();
    let mut pids: Vec<_> =
        starts.into_iter().map(|start| start.finish().ok().json()["daemon"]["pid"].clone()).collect();
    pids.dedup();
    assert_eq!(pids.len(), 1, "{pids:?}");
    assert_eq!(site.daemons().len(), 1);
}

/// How many races are run: five, or as many as `LOCALD_RACES` says.
fn races() -> usize {
    let races = std::env::var("LOCALD_RACES");
    races.map_or(5, |races| races.parse().expect("LOCALD_RACES is a number"))
}

#[test]
fn of_two_daemons_started_at_once_one_runs_and_the_other_says_which() {
    let site = Site::new(TWO);
    site.up();
    let (daemon, web) = (site.daemon(), site.leader("web"));
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    for _ in 0..races() {
        let start = || {
            let mut daemon = Command::new(env!("CARGO_BIN_EXE_locald-server"));
            daemon.env("LOCALD_HOME", site.home()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            daemon.spawn().expect("a daemon")
        };
        let mut both = [start(), start()];
        let loser = site.eventually("the end of one", || {
            both.iter_mut().position(|daemon| daemon.try_wait().expect("a child").is_some())
        });
        let [winner, loser] = if loser == 0 { [1, 0] } else { [0, 1] };
        let mut said = String::new();
        both[loser].stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
        assert_eq!(said.trim(), format!("locald-server: a daemon is running already: pid {}", both[winner].id()));
        site.locald("daemon start").run().ok();
        assert_eq!(site.daemon().pid, both[winner].id().cast_signed());
        both[winner].kill().expect("a child");
        both[winner].wait().expect("reaped");
    }
    site.locald("daemon start").run().ok();
    site.await_state("web", "ready");
    assert_eq!((site.leader("web"), &site.service("web")["run"]), (web, &1.into()));
    site.down();
}

#[test]
fn a_file_in_the_place_of_the_daemons_socket_is_no_obstacle() {
    let site = Site::new(TWO);
    site.up();
    let (daemon, web) = (site.daemon(), site.leader("web"));
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    let socket = site.home().join("run/daemon.sock");
    for what in ["a file", "a symlink"] {
        std::fs::remove_file(&socket).expect("it was left");
        if what == "a file" {
            std::fs::write(&socket, "no socket").expect("written");
        } else {
            std::os::unix::fs::symlink("/dev/null", &socket).expect("made");
        }
        site.locald("status").run().ok().says("runs without a daemon");
        site.up().says("2 services already running");
        assert_eq!(site.leader("web"), web, "{what}");
        let daemon = site.daemon();
        send(daemon, Signal::SIGKILL);
        site.await_end(daemon);
    }
    site.down();
}

#[test]
fn ten_ups_at_once_are_one_daemon_and_one_run() {
    let site = Site::new(TWO);
    let ups: Vec<_> = (0..10).map(|_| site.locald("up").start()).collect();
    for up in ups {
        up.finish().ok();
    }
    assert_eq!(site.daemons().len(), 1);
    assert_eq!((&site.service("db")["run"], &site.service("web")["run"]), (&1.into(), &1.into()));
    assert_eq!(site.service_processes().len(), 2);
}

#[test]
fn a_runtime_directory_open_to_others_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new(TWO);
    let run = site.home().join("run");
    std::fs::create_dir_all(&run).expect("a directory");
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o777)).expect("a mode");
    site.locald("up").run().code(1).says("open to other users").says("chmod 700");
    assert!(site.processes().is_empty());
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o700)).expect("a mode");
    site.up();
}

#[test]
fn a_runtime_directory_that_is_a_symlink_is_refused() {
    let site = Site::new(TWO);
    let elsewhere = site.root().join("elsewhere");
    std::fs::create_dir_all(&elsewhere).expect("a directory");
    std::fs::create_dir_all(site.home()).expect("a directory");
    std::os::unix::fs::symlink(&elsewhere, site.home().join("run")).expect("a link");
    site.locald("up").run().code(1).says("a symlink is not followed");
    std::fs::remove_file(site.home().join("run")).expect("removes");
}

#[test]
fn an_exit_while_no_daemon_runs_is_recorded_with_its_status() {
    let site =
        Site::new("[services.web]\ncommand = 'while [ ! -e go ]; do sleep 0.02; done; echo last words; exit 7'\n");
    site.up();
    let (daemon, web) = (site.daemon(), site.leader("web"));
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    site.write("go", "");
    site.await_end(web);
    site.locald("daemon start").run().ok();
    let service = site.await_state("web", "failed");
    assert_eq!((&service["last"]["exit_code"], &service["last"]["stopped"]), (&7.into(), &false.into()));
    assert_eq!(service["run"], 1);
    assert_eq!(site.log("web"), b"last words\n");
}

#[test]
fn no_byte_is_lost_while_no_daemon_runs() {
    let site = Site::new("[services.web]\ncommand = 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.005; done'\n");
    site.up();
    for _ in 0..3 {
        let daemon = site.daemon();
        send(daemon, Signal::SIGKILL);
        site.await_end(daemon);
        let before = site.log("web").len();
        site.eventually("output without a daemon", || (site.log("web").len() > before + 100).then_some(()));
        site.locald("daemon start").run().ok();
    }
    site.down();
    let log = String::from_utf8(site.log("web")).expect("numbers");
    let numbers: Vec<usize> = log.lines().map(|line| line.parse().expect("a number")).collect();
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());
}

#[test]
fn a_stop_under_way_is_finished_without_the_daemon() {
    let site = Site::new(
        "[services.web]\ncommand = '''\ntrap 'echo asked >> $EVENTS' TERM\nwhile :; do sleep 600 & wait; done'''\nstop_grace = \"1s\"\n",
    );
    site.up();
    let (daemon, web) = (site.daemon(), site.leader("web"));
    let down = site.locald("down").start();
    site.await_event("asked");
    // Who waits for the answer would have another daemon go on.
    send(down.process(), Signal::SIGKILL);
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    down.finish();
    site.await_end(web);
    assert!(site.daemons().is_empty());
    site.locald("down").run().ok();
    site.assert_no_service_is_left();
    assert_eq!(site.service("web")["state"], "stopped");
}

// The next daemon used to begin with epoch 1 again. The shims obeyed a higher one, and their services stayed `unknown`.
#[test]
fn services_are_taken_over_without_the_ledger_too() {
    let site = Site::new(TWO);
    site.up();
    let (db, web) = (site.leader("db"), site.leader("web"));
    let kill = || {
        let daemon = site.daemon();
        send(daemon, Signal::SIGKILL);
        site.await_end(daemon);
    };
    kill();
    site.locald("daemon start").run().ok();
    site.await_state("web", "ready");
    kill();
    let home = site.home();
    for file in ["ledger.db", "ledger.db-wal", "ledger.db-shm"] {
        std::fs::rename(home.join(file), home.join("run").join(file)).expect("moved away");
    }

    site.up().says("2 services already running");
    assert_eq!((site.leader("db"), site.leader("web")), (db, web));
    let about = site.locald("daemon status --json").run().ok().json();
    assert_eq!(about["daemon"]["epoch"], 3, "{about}");
    let down = site.down();
    assert_eq!(down["totals"]["services"], 2);
    assert!(!db.is_alive() && !web.is_alive());
    // Its number is taken, though the ledger had never heard of the run before it ended.
    site.up();
    assert_eq!(site.service("web")["run"], 2);
}

#[test]
fn looking_starts_no_daemon() {
    let site = Site::new(TWO);
    site.locald("status").run().ok().says("stopped");
    site.locald("ls").run().ok();
    site.locald("check").run().ok();
    site.locald("doctor").run().says("none runs");
    site.locald("daemon status").run().code(3);
    site.locald("wait").run().code(3);
    site.locald("stop web").run().ok();
    assert!(site.processes().is_empty());
}

#[test]
fn a_daemon_that_is_stopped_is_told_of_and_services_go_on() {
    let site = Site::new("[services.web]\ncommand = 'while :; do echo on; sleep 0.02; done'\n");
    site.up();
    let (daemon, web) = (site.daemon(), site.leader("web"));
    send(daemon, Signal::SIGSTOP);
    for words in ["status", "up", "down"] {
        site.locald(words).run().code(124).says("did not answer within 2");
    }
    let before = site.log("web").len();
    site.eventually("more output", || (site.log("web").len() > before).then_some(()));
    send(daemon, Signal::SIGCONT);
    assert_eq!((site.daemon(), site.leader("web")), (daemon, web));
    site.down();
}

// The next daemon used to count its runs from one again, and could not put them on record.
#[test]
fn what_was_not_asked_for_since_the_last_down_can_be_started_under_the_next_daemon() {
    let site = Site::new("[services.a]\ncommand = 'exec sleep 600'\n[services.b]\ncommand = 'exec sleep 600'\n");
    site.up();
    site.down();
    site.eventually("the project to be over", || {
        let list = site.locald("ls --json").run().ok().json();
        list["projects"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    site.locald("up a").run().ok();
    site.locald("daemon stop").run().ok();
    site.up();
    assert_eq!((&site.service("a")["run"], &site.service("b")["run"]), (&2.into(), &2.into()));
}
