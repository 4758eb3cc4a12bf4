//! Down means down for whatever a service does to stay, with everybody alive and with some of them dead.

use nix::sys::signal::Signal;

use crate::rounds::{self, GRACE, Load, Tally};
use crate::support::{Site, send};

/// Makes rounds in each of which `before` does something to a zoo that is complete, and then it is brought down.
fn rounds_of(what: &str, before: impl Fn(&Site)) {
    let site = Site::new(&rounds::zoo());
    let load = Load::begin();
    let mut tally = Tally::default();
    for _ in 0..rounds::count() {
        site.up();
        rounds::await_all(&site, &site.project());
        before(&site);
        tally.add(&rounds::down(&site));
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
