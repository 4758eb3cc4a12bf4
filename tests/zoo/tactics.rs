//! Down means down for whatever a service does to stay, with everybody alive and with some of them dead.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::rounds::{self, GRACE, Load, Tally};
use crate::support::{Seen, Site, send, service_of};

/// An ordinary user, whom nobody else is.
const USER: u32 = 61_003;

/// Makes rounds in each of which `before` does something to a zoo that is complete, and then it is brought down.
fn rounds_of(what: &str, before: impl Fn(&Site)) {
    rounds_at(&Site::new(&rounds::zoo()), what, before);
}

/// As [`rounds_of`], as a user who can make no cgroups. Whoever is not root has just done that.
fn rounds_of_a_user(what: &str, before: impl Fn(&Site)) {
    let mut site = Site::new(&rounds::zoo());
    if nix::unistd::geteuid().is_root() {
        site.belong_to(USER);
        rounds_at(&site, &format!("{what}, as a user"), before);
    }
}

fn rounds_at(site: &Site, what: &str, before: impl Fn(&Site)) {
    let load = Load::begin();
    let mut tally = Tally::default();
    for _ in 0..rounds::count() {
        site.up();
        rounds::await_all(site, &site.project());
        before(site);
        tally.add(&rounds::down(site));
    }
    drop(load);
    tally.tell(what);
}

/// Makes rounds in each of which the leader of a zoo that is complete ends, by `end`, and nobody asks for the rest.
fn rounds_without_a_leader(what: &str, toml: &str, end: impl Fn(&Site)) {
    let site = Site::new(toml);
    let load = Load::begin();
    let mut tally = Tally::default();
    for _ in 0..rounds::count() {
        site.up();
        rounds::await_all(&site, &site.project());
        end(&site);
        let zoo = site.await_state("zoo", "failed");
        site.assert_no_service_is_left();
        rounds::assert_nobody_is_left(&site, &site.project());
        assert_eq!(zoo["last"]["stopped"], false, "{zoo}");
        tally.add(&zoo["last"]);
    }
    drop(load);
    tally.tell(what);
}

/// Sends a signal to the shims, or the shims and the daemon, and waits for the end of those that it ends.
pub(crate) fn kill(site: &Site, is_meant: fn(&Seen) -> bool) {
    let meant: Vec<Seen> = site.processes().into_iter().filter(is_meant).collect();
    for seen in &meant {
        send(seen.process, Signal::SIGKILL);
    }
    for seen in &meant {
        site.await_end(seen.process);
    }
}

#[test]
fn nobody_is_left_when_the_leader_lives() {
    rounds_of("leader alive", |_| {});
}

#[test]
fn nobody_is_left_when_the_leader_has_left() {
    let toml = format!(
        "[services.zoo]\ncommand = '''\nrm -f go\n\"$ZOO\" deaf \"$ZOO\" all \"$PWD\" &\n\
         while [ ! -e go ]; do sleep 0.02; done\nexit 3'''\nstop_grace = \"{}ms\"\n",
        GRACE.as_millis()
    );
    rounds_without_a_leader("leader dead beforehand", &toml, |site| drop(site.write("go", "")));
}

#[test]
fn nobody_is_left_when_the_leader_is_killed() {
    rounds_without_a_leader("leader killed", &rounds::zoo(), |site| send(site.leader("zoo"), Signal::SIGKILL));
}

#[test]
fn nobody_is_left_when_the_shim_is_killed() {
    rounds_of("shim killed", |site| kill(site, Seen::is_shim));
}

#[test]
fn nobody_is_left_when_shim_and_daemon_are_killed() {
    rounds_of("shim and daemon killed", |site| kill(site, Seen::is_locald));
}

#[test]
fn nobody_is_left_of_a_user_when_the_leader_lives() {
    rounds_of_a_user("leader alive", |_| {});
}

#[test]
fn nobody_is_left_of_a_user_when_the_shim_is_killed() {
    rounds_of_a_user("shim killed", |site| kill(site, Seen::is_shim));
}

#[test]
fn nobody_is_left_of_a_user_when_shim_and_daemon_are_killed() {
    rounds_of_a_user("shim and daemon killed", |site| kill(site, Seen::is_locald));
}

#[test]
fn nobody_is_left_when_the_shim_is_stopped() {
    let site = Site::new(&rounds::zoo());
    let mut tally = Tally::default();
    for _ in 0..rounds::count() {
        site.up();
        rounds::await_all(&site, &site.project());
        for shim in site.processes().into_iter().filter(Seen::is_shim) {
            send(shim.process, Signal::SIGSTOP);
        }
        // Nobody takes notice of those that hand on and end; waiting longer would fill the system with them.
        let down = site.locald("down --json").run_within(Duration::from_secs(20)).expect("an end").ok().json();
        site.assert_no_service_is_left();
        rounds::assert_nobody_is_left(&site, &site.project());
        tally.add(&service_of(&down, "zoo")["ended"]);
    }
    tally.tell("shim stopped");
}
