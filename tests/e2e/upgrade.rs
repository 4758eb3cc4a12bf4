//! A newer version takes over. (Its programs are those that were built, with other bytes where the version is: not to be run on
//! macOS, which checks signatures.)

use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;

use crate::succession::SLOW;
use crate::support::{Site, send, service_of};

/// A version that is older than any that was built, in as many bytes.
const OLDER: &str = "0.0.0";

/// Its version, as a daemon tells it.
fn version(site: &Site) -> String {
    site.locald("daemon status --json").run().ok().json()["daemon"]["version"].as_str().expect("a version").to_owned()
}

const TWO: &str = "[services.db]\ncommand = 'sleep 600'\n\
                   [services.web]\ncommand = 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done'\n";

#[test]
fn a_newer_locald_takes_over_from_an_older_daemon_and_no_service_notices() {
    let mut site = Site::new(TWO);
    let older = site.install(OLDER);
    site.run_from(Some(&older));
    site.up();
    assert_eq!(version(&site), OLDER);
    let (old, db, web) = (site.daemon(), site.leader("db"), site.leader("web"));
    site.run_from(None);
    site.locald("status").run().ok();
    assert_eq!(site.daemon(), old, "whoever only looks changes nothing");

    site.up().says("has taken over from locald 0.0.0").says("2 services already running");
    assert_eq!(version(&site), env!("CARGO_PKG_VERSION"));
    assert!(!old.is_alive());
    assert_eq!((site.leader("db"), site.leader("web")), (db, web));
    assert_eq!((&site.service("web")["run"], &site.service("web")["restarts"]), (&1.into(), &0.into()));
    // The older command line goes on to be of use, and takes nothing back.
    site.run_from(Some(&older));
    let new = site.daemon();
    site.up().says("2 services already running").says_nothing_of("taken over");
    assert_eq!(site.daemon(), new);
    site.run_from(None);
    site.locald("restart web").run().ok();
    assert!(!web.is_alive());
    let log = String::from_utf8(site.log("web")).expect("text");
    let first: Vec<usize> = log.lines().map(|line| line.parse().expect("a number")).take_while(|&n| n != 1).collect();
    assert!(first.is_empty() || first.windows(2).all(|two| two[1] == two[0] + 1), "a line is missing");
    site.down();
}

#[test]
fn whoever_waits_while_a_newer_locald_takes_over_gets_an_answer() {
    let mut site = Site::new(SLOW);
    let older = site.install(OLDER);
    site.run_from(Some(&older));
    let up = site.locald("up --json").start();
    site.await_event("seed");
    site.run_from(None);
    let takers: Vec<_> = (0..6).map(|_| site.locald("daemon start").start()).collect();
    takers.into_iter().for_each(|taker| drop(taker.finish().ok()));
    assert_eq!(version(&site), env!("CARGO_PKG_VERSION"));
    // The older command line, which waits, may have started one that finds itself not needed.
    site.eventually("one daemon", || (site.daemons().len() == 1).then_some(()));
    site.write("go", "");
    let up = up.finish().ok().json();
    for service in ["web", "seed", "late"] {
        assert_eq!(service_of(&up, service)["run"], 1, "{up}");
    }
    assert_eq!(site.said(), ["seed"], "it ran once");
    site.down();
}

// Whoever waited for an answer of the older daemon, and is older too, starts one again as soon as it is gone.
#[test]
fn a_newer_locald_takes_over_although_an_older_daemon_comes_back_first() {
    let mut site = Site::new(TWO);
    let older = site.install(OLDER);
    let newer = site.install("0.9.0");
    site.run_from(Some(&older));
    site.up();
    let (old, web) = (site.daemon(), site.leader("web"));
    let server = newer.join("locald-server");
    let real = newer.join("the-real-one");
    std::fs::rename(&server, &real).expect("moves");
    let script = format!(
        "#!/bin/sh\n{older}/locald daemon stop >&2 && {older}/locald daemon start >&2\nmv -f {real} {server}\n\
         echo '{{\"already_running\":{{\"pid\":null}}}}' >&3\n",
        older = older.display(),
        real = real.display(),
        server = server.display()
    );
    std::fs::write(&server, script).expect("written");
    std::fs::set_permissions(&server, PermissionsExt::from_mode(0o755)).expect("may be run");

    site.run_from(Some(&newer));
    site.up().says("has taken over from locald 0.0.0").says("2 services already running");
    assert_eq!(version(&site), "0.9.0");
    assert_ne!(site.daemon(), old);
    assert_eq!(site.leader("web"), web);
    site.down();
}

#[test]
fn a_newer_locald_that_cannot_start_leaves_the_older_daemon_in_charge() {
    let mut site = Site::new(TWO);
    let older = site.install(OLDER);
    let newer = site.install("0.9.0");
    site.run_from(Some(&older));
    site.up();
    let (old, web) = (site.daemon(), site.leader("web"));
    site.run_from(Some(&newer));
    // Without its shim; as a program that crashes; as none at all; without a program to start.
    let server = newer.join("locald-server");
    std::fs::remove_file(newer.join("locald-shim")).expect("removes");
    for broken in [None, Some("#!/bin/sh\necho no such library >&2\nexit 127\n"), Some("garbage")] {
        if let Some(text) = broken {
            std::fs::write(&server, text).expect("written");
        }
        site.up().says("the daemon is still locald 0.0.0, because this version could not take over: ");
        assert_eq!((site.daemon(), site.leader("web")), (old, web));
    }
    std::fs::remove_file(&server).expect("removes");
    site.up().says("the daemon's program is missing");
    assert_eq!((site.daemon(), site.leader("web")), (old, web));
    site.down();
}

// Its terminal would end with the older daemon, which is the only one that holds it.
#[test]
fn a_service_that_has_lost_its_shim_is_not_taken_over_by_a_newer_locald() {
    let mut site = Site::new(TWO);
    let older = site.install(OLDER);
    site.run_from(Some(&older));
    site.up();
    let (old, web) = (site.daemon(), site.leader("web"));
    let shim = site.recorded("web", "shim", "shim");
    send(shim, Signal::SIGKILL);
    site.await_end(shim);
    site.run_from(None);
    site.up().says("web has lost its shim").says("the daemon is still locald 0.0.0");
    assert_eq!((site.daemon(), site.leader("web")), (old, web));
    site.locald("restart web").run().ok();
    site.up().says("has taken over");
    site.down();
}

#[test]
fn a_daemon_whose_files_are_replaced_or_deleted_goes_on_as_it_is() {
    let mut site = Site::new(&format!("{TWO}stop_command = 'echo asked >> $EVENTS'\n"));
    let own = site.install(OLDER);
    site.run_from(Some(&own));
    site.locald("up db").run().ok();
    let (daemon, db) = (site.daemon(), site.leader("db"));
    let shim = own.join("locald-shim");
    std::fs::remove_file(&shim).expect("it was there");
    site.locald("up web").run().ok();
    std::fs::write(&shim, "#!/bin/sh\nexit 1\n").expect("written");
    std::fs::remove_file(own.join("locald-server")).expect("it was there");
    site.locald("restart web").run().ok();
    assert_eq!(site.said(), ["asked"]);
    assert_eq!((site.daemon(), site.leader("db")), (daemon, db));
    site.down();
    assert_eq!(site.said(), ["asked", "asked"]);
}
