//! Dependencies gate starts and stops; what is independent goes side by side.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::{Site, free_port, send, service_of};

#[test]
fn up_follows_dependencies_and_down_goes_in_reverse() {
    let port = free_port();
    let site = Site::new(&format!(
        "[services.api]\ncommand = '''\necho api up >> $EVENTS\ntrap 'sleep 0.2; echo api down >> $EVENTS; exit 0' TERM\n\
         while :; do sleep 0.02; done'''\ndepends_on = [\"db\"]\nstop_grace = \"30s\"\n\
         [services.db]\ncommand = '''\necho db up >> $EVENTS\ntrap 'echo db down >> $EVENTS; exit 0' TERM\nsleep 0.3\n\
         echo db listens >> $EVENTS\n\"$ZOO\" listen $PORT &\nwait'''\nport = {port}\nstop_grace = \"30s\"\n",
    ));
    site.up();
    assert_eq!(site.said(), ["db up", "db listens", "api up"]);
    // From another directory, too.
    site.locald("down -C").arg(site.project()).dir("/").run().ok();
    assert_eq!(site.said()[3..], ["api down", "db down"]);
}

#[test]
fn a_service_named_on_the_command_line_brings_its_dependencies() {
    let site = Site::new(
        "[services.web]\ncommand = \"sleep 600\"\ndepends_on = [\"db\"]\n[services.db]\ncommand = \"sleep 600\"\n\
         [services.other]\ncommand = \"sleep 600\"\n",
    );
    site.locald("up web").run().ok();
    assert_eq!((&site.service("db")["state"], &site.service("other")["state"]), (&"ready".into(), &"stopped".into()));
}

#[test]
fn independent_services_start_and_stop_side_by_side() {
    // Each waits for the other's word before it goes on; one after the other would wait for ever.
    let one = |name: &str, other: &str, port: u16| {
        format!(
            "[services.{name}]\ncommand = '''\nawait() {{ while ! grep -q \"^$1\\$\" $EVENTS; do sleep 0.02; done; }}\n\
             trap 'echo {name} stops >> $EVENTS; await \"{other} stops\"; exit 0' TERM\n\
             echo {name} starts >> $EVENTS; await '{other} starts'\n\"$ZOO\" listen $PORT &\nwait'''\n\
             port = {port}\nstop_grace = \"60s\"\n"
        )
    };
    let site = Site::new(&format!("{}{}", one("a", "b", free_port()), one("b", "a", free_port())));
    site.up();
    let down = site.down();
    assert_eq!(down["totals"]["killed"], 0, "{down}");
}

#[test]
fn a_dependent_that_wants_no_more_than_a_start_does_not_wait_for_more() {
    let site = Site::new(
        "[services.seed]\ntype = \"job\"\ncommand = 'until grep -q web $EVENTS; do sleep 0.02; done; echo seed >> $EVENTS'\n\
         [services.web]\ncommand = 'echo web >> $EVENTS; exec sleep 600'\ndepends_on = { seed = \"started\" }\n\
         [services.late]\ncommand = 'echo late >> $EVENTS; exec sleep 600'\n\
         depends_on = { seed = \"completed\", web = \"ready\" }\n",
    );
    site.up();
    assert_eq!(site.said(), ["web", "seed", "late"]);
    // A job that has completed was started; nobody has to do it again.
    site.locald("restart web").run().ok();
    assert_eq!(site.said(), ["web", "seed", "late", "web"]);
}

#[test]
fn a_job_completes_before_its_dependents_start_and_is_not_repeated() {
    let site = Site::new(
        "[services.migrate]\ntype = \"job\"\ncommand = 'sleep 0.3; echo migrated >> $EVENTS'\n\
         [services.web]\ncommand = 'echo web >> $EVENTS; sleep 600'\ndepends_on = [\"migrate\"]\n",
    );
    site.up().says("1 completed");
    assert_eq!(site.said(), ["migrated", "web"]);
    assert_eq!(site.service("migrate")["text"], "exited 0");
    site.up();
    assert_eq!(site.said(), ["migrated", "web"]);
    site.locald("wait migrate --for completed").run().ok();
}

#[test]
fn a_job_that_fails_blocks_its_dependents_and_they_say_so() {
    let site = Site::new(
        "[services.migrate]\ntype = \"job\"\ncommand = '[ -e fixed ] || { echo no table; exit 1; }'\n\
         [services.web]\ncommand = 'sleep 600'\ndepends_on = [\"migrate\"]\n\
         [services.front]\ncommand = 'sleep 600'\ndepends_on = [\"web\"]\n",
    );
    let up = site.locald("up").run().code(1).says("migrate: failed: exit 1").says("no table");
    let up = up.says("front: blocked by web: migrate exited 1");
    assert!(up.stderr.contains("web: blocked by migrate, which exited 1\n"), "{up}");
    let front = site.service("front");
    assert_eq!(front["failure"]["chain"], serde_json::json!(["web", "migrate"]));
    site.locald("status").run().ok().says("blocked by migrate").says("migrate exited 1");
    assert!(site.service_processes().is_empty());

    site.write("fixed", "");
    site.locald("restart migrate").run().ok();
    site.locald("wait front").run().ok();
    assert_eq!((&site.service("web")["run"], &site.service("front")["run"]), (&1.into(), &1.into()));
}

#[test]
fn what_waits_for_a_dependency_stops_at_once() {
    // The port is never listened on.
    let site = Site::new(&format!(
        "[services.db]\ncommand = 'echo db >> $EVENTS; sleep 600'\nport = {}\n\
         [services.web]\ncommand = 'echo web >> $EVENTS; sleep 600'\ndepends_on = [\"db\"]\n",
        free_port()
    ));
    let up = site.locald("up").start();
    site.await_event("db");
    let web = site.await_state("web", "waiting");
    assert_eq!(web["text"], "waiting for db");
    site.locald("stop web").run().ok();
    assert_eq!(site.service("web")["state"], "stopped");
    assert_eq!(site.service("db")["state"], "starting");
    site.down();
    up.finish().code(1);
    assert_eq!(site.said(), ["db"]);
}

#[test]
fn what_waits_for_a_dependency_goes_on_waiting_when_it_is_restarted() {
    let site = Site::new(&format!(
        "[services.db]\ncommand = '''\necho db >> $EVENTS\nwhile [ ! -e go ]; do sleep 0.02; done\n\"$ZOO\" listen $PORT'''\n\
         port = {}\n[services.web]\ncommand = 'echo web >> $EVENTS; sleep 600'\ndepends_on = [\"db\"]\n",
        free_port()
    ));
    let up = site.locald("up").start();
    site.await_event("db");
    site.await_state("web", "waiting");
    let restart = site.locald("restart web").start();
    site.eventually("the restart to wait as well", || restart.stderr().contains("waiting").then_some(()));
    assert_eq!((&site.service("web")["state"], site.said()), (&"waiting".into(), vec!["db".to_owned()]));
    site.write("go", "");
    restart.finish().ok();
    up.finish().ok();
    assert_eq!((&site.service("web")["run"], &site.service("db")["run"]), (&1.into(), &1.into()));
    assert_eq!(site.said(), ["db", "web"]);
}

#[test]
fn a_dependency_is_asked_to_end_when_its_dependents_have_been_killed() {
    let ignorer = |name: &str| {
        format!(
            "[services.{name}]\ncommand = '''\ntrap 'echo {name} asked >> $EVENTS' TERM\n\
             while :; do sleep 0.02; done'''\nstop_grace = \"300ms\"\n"
        )
    };
    let site = Site::new(&format!("{}depends_on = [\"db\"]\n{}", ignorer("api"), ignorer("db")));
    site.up();
    let down = site.locald("down --json -C").arg(site.project()).dir("/").run().ok().json();
    site.assert_no_service_is_left();
    assert_eq!(site.said(), ["api asked", "db asked"]);
    let [api, db] = ["api", "db"].map(|name| service_of(&down, name)["ended"].clone());
    let number = |end: &serde_json::Value, key: &str| end[key].as_u64().expect("a number");
    assert!(api["forced"] == true && db["forced"] == true, "{down}");
    // A millisecond for the rounding of three numbers.
    assert!(number(&db, "ended_at") - number(&db, "stop_ms") + 1 >= number(&api, "ended_at"), "{down}");
}

#[test]
fn up_says_what_did_not_become_ready_in_time() {
    let site = Site::new(&format!("[services.web]\ncommand = 'sleep 600'\nport = {}\n", free_port()));
    site.locald("up --timeout 300ms").run().code(124).says("web is not ready in time");
    site.locald("wait web --timeout 100ms").run().code(124);
    site.locald("wait web --for completed").run().code(1);
}

/// A database, one that is run again with it, one that follows that, and one that does not care.
const FOLLOWERS: &str = "[services.db]\ncommand = 'echo db >> $EVENTS; exec sleep 600'\nrestart = 'on-failure'\n\
     [services.web]\ncommand = 'echo web >> $EVENTS; exec sleep 600'\ndepends_on = { db = { restart = true } }\n\
     [services.page]\ncommand = 'echo page >> $EVENTS; exec sleep 600'\ndepends_on = { web = { condition = 'ready', restart = true } }\n\
     [services.other]\ncommand = 'echo other >> $EVENTS; exec sleep 600'\ndepends_on = ['db']\n";

/// Waits until every service is ready in the run with this number; one has had none but its first.
fn await_runs(site: &Site, db: u64, followers: u64) {
    site.eventually("the new runs", || {
        let status = site.locald("status --json").run().ok().json();
        let is_there = |name: &str, run: u64| {
            let service = service_of(&status, name);
            service["run"] == run && service["state"] == "ready"
        };
        let all =
            is_there("db", db) && is_there("web", followers) && is_there("page", followers) && is_there("other", 1);
        all.then_some(())
    });
}

#[test]
fn a_restart_reaches_those_that_follow_it_and_nobody_else() {
    let site = Site::new(FOLLOWERS);
    site.up();
    let said = site.said().len();
    let restart = site.locald("restart db --json").run().ok().json();
    let about: Vec<&str> = restart["services"]
        .as_array()
        .expect("services")
        .iter()
        .map(|one| one["name"].as_str().expect("a name"))
        .collect();
    assert_eq!(about, ["db", "web", "page"], "{restart}");
    // It has come about when the command says so, and in order.
    assert_eq!(site.said()[said..], ["db", "web", "page"]);
    await_runs(&site, 2, 2);
    // That it is stopped concerns nobody; that it is started again does.
    site.locald("stop db").run().ok();
    assert_eq!(site.service("web")["state"], "ready");
    site.locald("start db").run().ok();
    await_runs(&site, 3, 3);
    assert_eq!(site.service("web")["restarts"], 0, "nothing has failed");
    site.down();
}

#[test]
fn what_has_crashed_and_is_back_is_followed() {
    let site = Site::new(FOLLOWERS);
    site.up();
    send(site.leader("db"), Signal::SIGKILL);
    await_runs(&site, 2, 2);
    site.down();
}

#[test]
fn the_next_daemon_knows_what_each_run_was_started_on() {
    let site = Site::new(FOLLOWERS);
    site.up();
    let [db, daemon] = [site.leader("db"), site.daemon()];
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    // It ends while nobody is there to follow.
    send(db, Signal::SIGKILL);
    site.await_end(db);
    site.locald("daemon start").run().ok();
    await_runs(&site, 2, 2);
    site.down();
}

/// A job between two services, which runs whenever the first of them has; `more` belongs to the job.
fn with_a_job_between(more: &str) -> String {
    format!(
        "[services.db]\ncommand = 'exec sleep 600'\nrestart = \"always\"\n\
         [services.seed]\ntype = \"job\"\ncommand = 'echo seed >> $EVENTS'\ndepends_on = {{ db = {{ restart = true }} }}\n{more}\
         [services.api]\ncommand = 'exec sleep 600'\ndepends_on = {{ seed = {{ restart = true }} }}\n"
    )
}

// Only who ran was asked what it had been started on.
#[test]
fn a_job_that_has_completed_follows_under_the_next_daemon_too() {
    let site = Site::new(&with_a_job_between(""));
    let crash = |daemon| {
        send(daemon, Signal::SIGKILL);
        site.await_end(daemon);
    };
    site.up();
    crash(site.daemon());
    site.locald("restart db").run().ok();
    site.await_events("seed", 2);
    site.eventually("api to follow", || (site.service("api")["run"] == 2).then_some(()));
    // And what it follows may end while nobody is there.
    let db = site.leader("db");
    crash(site.daemon());
    send(db, Signal::SIGKILL);
    site.await_end(db);
    site.locald("daemon start").run().ok();
    site.await_events("seed", 3);
    site.eventually("api to follow again", || (site.service("api")["run"] == 3).then_some(()));
    site.down();
}

#[test]
fn a_job_that_had_not_to_be_done_again_follows_from_then_on() {
    let site = Site::new(&with_a_job_between("inputs = [\"seed.in\"]\n"));
    site.write("seed.in", "1");
    site.up();
    site.down();
    site.up();
    assert_eq!(site.said(), ["seed"], "its inputs are the same");
    site.locald("restart db").run().ok();
    site.await_events("seed", 2);
    site.down();
}

// The restart was followed only by runs that had begun with that line in the file.
#[test]
fn an_edge_that_was_written_while_a_service_runs_counts_from_then_on() {
    let services = "[services.db]\ncommand = 'exec sleep 600'\n[services.web]\ncommand = 'exec sleep 600'\n";
    let site = Site::new(services);
    site.up();
    site.write("locald.toml", format!("{services}depends_on = {{ db = {{ restart = true }} }}\n"));
    site.locald("up").run().ok();
    assert_eq!(site.service("web")["run"], 1);
    site.locald("restart db").run().ok();
    assert_eq!((&site.service("db")["run"], &site.service("web")["run"]), (&2.into(), &2.into()));
    site.down();
}

#[test]
fn stopping_what_is_followed_takes_the_followers_first() {
    let site = Site::new(
        "[services.db]\ncommand = \"trap 'echo db down >> $EVENTS; exit 0' TERM; while :; do sleep 0.02; done\"\nstop_grace = '30s'\n\
         [services.web]\ncommand = \"trap 'sleep 0.2; echo web down >> $EVENTS; exit 0' TERM; while :; do sleep 0.02; done\"\n\
         stop_grace = '30s'\ndepends_on = { db = { restart = true } }\n",
    );
    site.up();
    site.locald("restart db").run().ok();
    assert_eq!(site.said(), ["web down", "db down"]);
    site.down();
}

// It waited for the end of its limit, and what depended on it was never told.
#[test]
fn who_asks_for_what_is_blocked_is_told_at_once_and_so_is_who_depends_on_it() {
    let site = Site::new(
        "[services.a]\ncommand = 'test ! -e bad || exit 1; exec sleep 600'\n\
         [services.b]\ncommand = 'exec sleep 600'\ndepends_on = { a = { restart = true } }\n\
         [services.c]\ncommand = 'exec sleep 600'\ndepends_on = { b = { restart = true } }\n\
         [services.d]\ncommand = 'exec sleep 600'\ndepends_on = [\"a\"]\n",
    );
    site.up();
    site.write("bad", "");
    let restart = site.locald("restart --json --timeout 10m").run().code(1).json();
    for (service, why) in [("a", "exited"), ("b", "dependency"), ("c", "dependency"), ("d", "dependency")] {
        let shown = service_of(&restart, service);
        assert_eq!((&shown["failure"]["kind"], &shown["result"]), (&why.into(), &"failed".into()), "{restart}");
    }
    site.locald("wait c --timeout 10m").run().code(1);
    site.locald("up --timeout 10m").run().code(1).says("blocked by");
    fs::remove_file(site.project().join("bad")).expect("removed");
    site.locald("up --timeout 10m").run().ok();
}

// The next daemon let what was about to be replaced end, and left it at that.
#[test]
fn the_next_daemon_goes_on_with_a_restart_that_was_under_way() {
    let site = Site::new(
        "[services.db]\ncommand = 'exec sleep 600'\nrestart = \"always\"\n\
         [services.web]\ncommand = '''\ntrap 'echo asked >> $EVENTS; while [ ! -e go ]; do sleep 0.02; done; exit 0' TERM\n\
         while :; do sleep 0.02; done'''\ndepends_on = { db = { restart = true } }\nstop_grace = \"60s\"\n",
    );
    site.up();
    send(site.leader("db"), Signal::SIGKILL);
    site.await_event("asked");
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    site.locald("daemon start").run().ok();
    site.write("go", "");
    site.eventually("another run", || (site.service("web")["run"] == 2).then_some(()));
    site.await_state("web", "ready");
}
