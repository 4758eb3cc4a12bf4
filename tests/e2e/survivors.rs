//! What cannot be ended is no success: it is named with its reason, stays visible, and nothing starts beside it.

use std::os::unix::fs::PermissionsExt;

use locald_utils::process::{self, ProcessId};
use nix::sys::signal::Signal;

use crate::support::{Site, send, service_of, zoo};

/// A user who has no name anywhere, and no more rights than any other.
const USER: u32 = 61_234;

/// A site of an ordinary user, whose service has a child that belongs to root and takes no signal. Only root can make one.
fn with_a_child_of_root() -> Option<(Site, ProcessId)> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can make a program that becomes root");
        return None;
    }
    let mut site = Site::new(
        "[services.web]\ncommand = '''\n../root/zoo rooted child-of-root & echo $! > child\nsleep 600'''\nstop_grace = \"300ms\"\n",
    );
    let dir = site.root().join("root");
    std::fs::create_dir(&dir).expect("a directory");
    std::fs::copy(zoo(), dir.join("zoo")).expect("copies");
    std::fs::set_permissions(dir.join("zoo"), std::fs::Permissions::from_mode(0o4755)).expect("a mode");
    site.belong_to(USER);
    site.up();
    let child = await_child(&site);
    Some((site, child))
}

/// Waits until the child is there and is root.
fn await_child(site: &Site) -> ProcessId {
    let child = site.await_pid("child");
    site.eventually("a child that is root", || {
        let command = process::command(child.pid)?;
        (process::look(child.pid)?.uid == 0 && command.contains("rooted")).then_some(())
    });
    child
}

/// Demands that a text names the child, its command, its user, and why it is there still.
#[track_caller]
fn names(child: ProcessId, text: &str) {
    for part in [&child.pid.to_string(), "rooted child-of-root", "root", "you may not signal it"] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
}

#[test]
fn down_fails_and_names_a_process_that_it_may_not_end() {
    let Some((site, child)) = with_a_child_of_root() else { return };
    let web = site.leader("web");
    let down = site.locald("down").run().code(1);
    names(child, &down.to_string());
    assert!(down.took.as_millis() >= 2300, "it gave up before the grace period and two seconds were over: {down}");
    assert!(child.is_alive() && !web.is_alive());
    // Asked again, it says it again.
    let json = site.locald("down --json").run().code(1).json();
    assert_eq!(json["totals"]["left"], 1, "{json}");
    send(child, Signal::SIGKILL);
    site.await_state("web", "stopped");
}

#[test]
fn a_process_that_may_not_be_ended_stays_visible_until_it_has_ended() {
    let Some((site, child)) = with_a_child_of_root() else { return };
    site.locald("down").run().code(1);
    let web = site.service("web");
    assert_eq!((&web["state"], &web["failure"]["kind"]), (&"failed".into(), &"survivors".into()), "{web}");
    names(child, &web.to_string());
    names(child, &site.locald("status").run().ok().to_string());
    // Nobody asks for anything: it is watched.
    send(child, Signal::SIGKILL);
    site.await_state("web", "stopped");
}

#[test]
fn nothing_starts_beside_a_process_that_may_not_be_ended() {
    let Some((site, child)) = with_a_child_of_root() else { return };
    site.locald("down").run().code(1);
    for verb in ["up", "start web", "restart web"] {
        names(child, &site.locald(verb).run().code(1).to_string());
    }
    assert_eq!(site.service("web")["run"], 1);
    assert!(child.is_alive());

    send(child, Signal::SIGKILL);
    site.await_end(child);
    site.await_state("web", "stopped");
    std::fs::remove_file(site.project().join("child")).expect("removes");
    site.up();
    assert_eq!(site.service("web")["run"], 2);
    send(await_child(&site), Signal::SIGKILL);
}

#[test]
fn the_next_daemon_knows_a_process_that_may_not_be_ended() {
    let Some((site, child)) = with_a_child_of_root() else { return };
    site.locald("down").run().code(1);
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    site.locald("daemon start").run().ok();
    let web = site.await_state("web", "failed");
    names(child, &web.to_string());
    names(child, &site.locald("up").run().code(1).to_string());
    assert_eq!(site.service("web")["run"], 1);
    send(child, Signal::SIGKILL);
    site.await_state("web", "stopped");
}

#[test]
fn by_force_a_run_starts_beside_what_could_not_be_ended_which_stays_in_sight() {
    let Some((site, child)) = with_a_child_of_root() else { return };
    site.locald("down").run().code(1);
    std::fs::remove_file(site.project().join("child")).expect("removes");
    site.locald("up --force").run().ok();
    let other = await_child(&site);
    let web = site.service("web");
    assert_eq!((&web["state"], &web["run"], &web["left"][0]["pid"]), (&"ready".into(), &2.into(), &child.pid.into()));
    assert!(web["notes"].to_string().contains(&format!("pid {}", child.pid)), "{web}");

    // The next daemon knows both.
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.eventually("the daemon to be gone", || (!daemon.is_alive()).then_some(()));
    site.locald("daemon start").run().ok();
    site.eventually("both runs to be known", || {
        let web = site.service("web");
        let all = (&web["state"], &web["run"], &web["left"][0]["pid"]);
        (all == (&"ready".into(), &2.into(), &child.pid.into())).then_some(())
    });
    // So it does without the shim of the first.
    let shim = site.recorded("web", "shim", "shim");
    send(shim, Signal::SIGKILL);
    site.eventually("the shim to be gone", || (!shim.is_alive()).then_some(()));

    send(other, Signal::SIGKILL);
    names(child, &site.locald("down").run().code(1).to_string());
    assert_eq!(site.service("web")["left"][0]["pid"], child.pid);
    send(child, Signal::SIGKILL);
    site.eventually("the project to be over", || {
        let status = site.locald("status --json").run().ok().json();
        (service_of(&status, "web")["left"].is_null()).then_some(())
    });
    site.locald("down").run();
    site.assert_no_service_is_left();
}
