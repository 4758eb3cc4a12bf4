//! Services that scripts and agents have started end with the last of them, and not with one that was not asked.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Site, send};

const SHOP: &str = "[services.db]\ncommand = 'exec sleep 600'\n\
    [services.web]\ncommand = 'exec sleep 600'\ndepends_on = [\"db\"]\n\
    [services.mail]\ncommand = 'exec sleep 600'\n";

fn running(site: &Site) -> String {
    let status = site.locald("status --json").run().ok().json();
    let services = status["services"].as_array().expect("a list").iter().filter(|service| service["state"] == "ready");
    services.filter_map(|service| service["name"].as_str()).collect::<Vec<_>>().join(" ")
}

fn owners(service: &Value) -> Vec<&str> {
    service["owners"]
        .as_array()
        .map_or_else(Vec::new, |owners| owners.iter().filter_map(|owner| owner["name"].as_str()).collect())
}

#[test]
fn what_nobody_else_wants_ends_when_its_owner_leaves() {
    let site = Site::new(SHOP);
    site.locald("up web --owner agent-1").run().ok();
    site.locald("up --owner agent-2").run().ok();
    assert_eq!(owners(&site.service("db")), ["agent-1", "agent-2"]);
    let status = site.locald("status").run().ok();
    let status = status.says("for agent-1, agent-2");
    assert!(status.stdout.contains("for agent-2"), "{status}");
    let down = site.locald("down --owner agent-2").run().ok();
    down.says("1 service stopped").says("others want what stays without agent-2").says("web: agent-1");
    assert_eq!(running(&site), "db web");
    // Who has left, or never was there, leaves nothing behind.
    site.locald("down --owner agent-2").run().ok();
    site.locald("down --owner nobody --json").run().ok();
    site.locald("down --owner agent-3").run().ok().says("agent-3 owns nothing here");
    assert_eq!(running(&site), "db web");
    let down = site.locald("down --owner agent-1 --json").run().ok().json();
    assert_eq!((&down["totals"]["services"], &down["totals"]["left"]), (&2.into(), &0.into()));
    site.locald("ls").run().ok().says_nothing_of("shop");
    site.assert_no_service_is_left();
}

#[test]
fn who_gives_no_name_keeps_a_service_and_stops_it_whoever_owns_it() {
    let site = Site::new(SHOP);
    site.locald("up web --owner ci").run().ok();
    site.locald("up web").run().ok().says("already running");
    site.locald("down --owner ci").run().ok().says("web: somebody who gave no name");
    assert_eq!(running(&site), "db web");
    site.locald("up --owner ci").run().ok();
    assert_eq!(site.down()["totals"]["services"], 3);
    // Not remembered from before.
    site.locald("up web --owner ci").run().ok();
    site.locald("down --owner ci").run().ok().says("2 services stopped");
    assert_eq!(running(&site), "");
}

#[test]
fn a_lease_ends_what_its_owner_wanted_and_another_one_goes_on() {
    let site = Site::new(SHOP);
    site.locald("up web --owner ci --lease 1s").run().ok();
    site.locald("up db --owner agent").run().ok();
    let until = site.service("web")["owners"][0]["until"].as_u64().expect("a time");
    site.locald("up web --owner ci --lease 2s").run().ok().says("already running");
    assert!(site.service("web")["owners"][0]["until"].as_u64().expect("a time") > until, "another lease");
    let web = site.leader("web");
    site.await_end(web);
    site.eventually("web to be stopped", || (running(&site) == "db").then_some(()));
    assert_eq!(owners(&site.service("db")), ["agent"]);
    site.locald("down --owner agent").run().ok().says("1 service stopped");
}

// The dependency ended under the feet of what its owner wanted for longer.
#[test]
fn a_lease_of_what_an_owner_needs_elsewhere_lasts_as_long() {
    let site = Site::new(SHOP);
    site.locald("up web --owner ci --lease 1h").run().ok();
    let until = |name: &str| site.service(name)["owners"][0]["until"].as_u64().expect("a time");
    site.locald("up db mail --owner ci --lease 1s").run().ok();
    assert!(until("db") + 60_000 > until("web"));
    let mail = site.leader("mail");
    site.await_end(mail);
    assert_eq!(running(&site), "db web");
    site.down();
}

#[test]
fn a_lease_is_kept_by_the_next_daemon_and_ends_a_project_that_nobody_else_wants() {
    let site = Site::new(SHOP);
    site.locald("up --owner ci --lease 3s").run().ok();
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    let leader = site.leader("web");
    site.locald("daemon start").run().ok();
    assert_eq!(owners(&site.service("web")), ["ci"]);
    site.await_end(leader);
    site.eventually("the project to be over", || {
        let list = site.locald("ls --json").run().ok().json();
        list["projects"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    site.assert_no_service_is_left();
}

#[test]
fn a_lease_without_an_owner_and_a_name_that_is_none_are_refused() {
    let site = Site::new(SHOP);
    site.locald("up --lease 1m").run().code(2).says("--owner");
    site.locald("up").arg("--owner").arg("a b").run().code(2).says("name");
    site.locald("up --owner ci --lease 0s").run().code(2).says("over at once");
    assert_eq!(running(&site), "");
}

#[test]
fn a_command_that_needs_what_somebody_owns_does_not_keep_it() {
    let site = Site::new(SHOP);
    site.locald("up web --owner ci").run().ok();
    site.locald("run web -- true").run().ok();
    site.locald("down --owner ci").run().ok().says("2 services stopped");
    site.assert_no_service_is_left();
}

// A lease that was over counted as the first request, so the first `down` of a person was the second.
#[test]
fn who_asks_for_the_end_of_what_ends_without_its_owner_cuts_nothing_short() {
    let slow = "[services.web]\ncommand = '''\ntrap 'echo asked >> $EVENTS; while [ ! -e go ]; do sleep 0.02; done; echo clean >> $EVENTS; exit 0' TERM\n\
                while :; do sleep 0.02; done'''\nstop_grace = \"60s\"\n";
    let site = Site::new(slow);
    site.locald("up --owner ci --lease 300ms").run();
    site.await_event("asked");
    let note = site.service("web")["notes"][0].to_string();
    assert!(note.contains("nobody wants it without ci"), "{note}");
    let down = site.locald("down").start();
    // Its owner may see to the end as well.
    let leave = site.locald("down --owner ci").start();
    let is_under_way = |request: &crate::support::Running| request.stderr().contains("stopping");
    site.eventually("the requests", || [&down, &leave].into_iter().all(is_under_way).then_some(()));
    site.write("go", "");
    down.finish().ok();
    leave.finish().ok().says("1 service stopped");
    assert_eq!(site.said(), ["asked", "clean"]);
}
