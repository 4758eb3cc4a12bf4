//! A shim stands by for whatever is started next, and nothing depends on it. Linux only.

use locald_utils::process::{self, ProcessId};
use locald_utils::shim_protocol::ShimIdentity;
use nix::sys::signal::Signal;

use crate::support::{Site, identity, send};

/// Something that may be killed, and something that runs meanwhile.
const SHOP: &str =
    "[services.db]\ncommand = 'exec sleep 600'\n[services.web]\ncommand = 'exec sleep 600'\nrestart = \"always\"\n";

fn standing_by(site: &Site) -> Option<ProcessId> {
    let mut shims = site.processes().into_iter().filter(|seen| seen.is_shim());
    shims.find(|shim| shim.command.contains("/locald-shim standby ")).map(|shim| shim.process)
}

fn await_standby(site: &Site) -> ProcessId {
    site.eventually("a shim that stands by", || standing_by(site))
}

/// Waits for the helper beside a shim that stands by.
fn await_helper(site: &Site, shim: ProcessId) -> ProcessId {
    site.eventually("its helper", || {
        let helper = process::children(shim.pid).ok()?.into_iter().next()?;
        process::command(helper)?.starts_with("locald-exec").then(|| identity(helper))
    })
}

/// Kills the service, and waits until it runs again. Returns the shim of the new run.
fn kill_and_await(site: &Site) -> ProcessId {
    let (run, leader) = (site.service("web")["run"].clone(), site.leader("web"));
    send(leader, Signal::SIGKILL);
    site.eventually("another run", || {
        let web = site.service("web");
        (web["run"] != run && web["state"] == "ready").then_some(())
    });
    site.recorded("web", "shim", "shim")
}

#[test]
fn what_is_started_next_has_the_shim_that_stood_by() {
    let site = Site::new(SHOP);
    site.up();
    let shim = await_standby(&site);
    assert_eq!(kill_and_await(&site), shim);
    // It shows which run it carries, to `ps` and to `doctor`.
    let command = process::command(shim.pid).expect("a command");
    let (_, shown) = command.split_once("/locald-shim run ").expect("the arguments of a shim");
    let shown: ShimIdentity = serde_json::from_str(shown).expect("an identity");
    let pid = site.recorded("web", "shim", "shim");
    assert_eq!((shown.run.service.as_str(), shown.project_dir, pid), ("web", site.project(), shim));
    // The service itself has been started when it was, and is the shim's only child.
    let web = site.leader("web");
    assert!(web.start > shim.start);
    site.eventually("the helper to be gone", || (process::children(shim.pid).ok()? == [web.pid]).then_some(()));
    let seen = process::look(web.pid).expect("it runs");
    assert_eq!((seen.parent, seen.session, seen.group), (shim.pid, web.pid, web.pid));
    // The next one is there for the next time, and none when nothing runs.
    let next = await_standby(&site);
    assert_ne!(next, shim);
    site.down();
    site.await_end(next);
}

#[test]
fn a_shim_that_stood_by_and_was_killed_keeps_nothing_from_starting() {
    let site = Site::new(SHOP);
    site.up();
    let shim = await_standby(&site);
    send(shim, Signal::SIGKILL);
    site.await_end(shim);
    assert_ne!(kill_and_await(&site), shim);
}

// A helper that was stopped used to hold up the start for ever.
#[test]
fn who_stood_by_and_was_stopped_goes_on() {
    let site = Site::new(SHOP);
    site.up();
    let shim = await_standby(&site);
    let helper = await_helper(&site, shim);
    send(helper, Signal::SIGSTOP);
    send(shim, Signal::SIGSTOP);
    assert_eq!(kill_and_await(&site), shim);
}

#[test]
fn a_helper_that_stood_by_and_was_killed_is_replaced() {
    let site = Site::new(SHOP);
    site.up();
    let shim = await_standby(&site);
    let helper = await_helper(&site, shim);
    send(helper, Signal::SIGKILL);
    site.await_end(helper);
    assert_eq!(kill_and_await(&site), shim);
}

#[test]
fn what_has_no_room_in_the_arguments_of_the_shim_that_stands_by_leaves_it_where_it_is() {
    let site = Site::new(SHOP);
    site.up();
    let shim = await_standby(&site);
    let name = format!("{0}/{0}/{0}/{0}/{0}", "n".repeat(200));
    let project = site.another(&name, "[services.far]\ncommand = 'exec sleep 600'\n");
    site.locald("up").dir(&project).run().ok();
    assert_eq!(standing_by(&site), Some(shim));
    site.locald("down").dir(&project).run().ok();
}

#[test]
fn a_shim_that_stands_by_ends_with_its_daemon_and_the_next_daemon_has_its_own() {
    let site = Site::new(SHOP);
    site.up();
    let shim = await_standby(&site);
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    site.await_end(shim);
    site.locald("daemon start").run().ok();
    let next = await_standby(&site);
    assert_eq!(kill_and_await(&site), next);
    // One that ends as asked takes it along.
    let last = await_standby(&site);
    site.locald("daemon stop").run().ok();
    site.await_end(last);
}
