//! `status` says when what runs is not what is on disk.

use std::path::Path;
use std::process::Command;

use crate::support::Site;

fn git(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(dir).args(["-c", "user.name=a", "-c", "user.email=a@example.org"]).args(args);
    let done = command.env("GIT_CONFIG_GLOBAL", "/dev/null").output().expect("git runs");
    assert!(done.status.success(), "{done:?}");
    String::from_utf8_lossy(&done.stdout).trim().to_owned()
}

#[test]
fn a_program_that_is_built_anew_is_told_until_the_service_runs_it() {
    const NOTE: &str = "its program has changed since it started";
    let site = Site::new("[services.web]\ncommand = './server'\n[services.db]\ncommand = 'exec sleep 600'\n");
    let server = "#!/bin/sh\nexec sleep 600\n";
    site.script("server", server);
    site.up();
    assert_eq!(site.service("web")["program_changed"], false);
    site.script("server", format!("{server}# built anew\n"));
    let seen = |name: &str| site.service(name)["program_changed"].clone();
    assert_eq!((seen("web"), seen("db")), (true.into(), false.into()));
    site.locald("status web").run().ok().says(NOTE);
    site.locald("status db").run().ok().says_nothing_of(NOTE);
    // The next daemon knows it as well.
    site.locald("daemon stop").run().ok();
    site.locald("daemon start").run().ok();
    site.await_state("web", "ready");
    assert_eq!(seen("web"), true);
    site.locald("restart web").run().ok();
    assert_eq!(seen("web"), false);
    std::fs::remove_file(site.project().join("server")).expect("removed");
    assert_eq!(seen("web"), true);
    site.locald("stop web").run().ok();
    assert_eq!(seen("web"), false);
}

#[test]
fn a_head_that_has_moved_is_told_to_whoever_asks_for_more() {
    let site = Site::new("[services.web]\ncommand = 'exec sleep 600'\n");
    let commit = |message: &str| {
        git(&site.project(), &["commit", "--quiet", "--no-gpg-sign", "--allow-empty", "-m", message]);
        git(&site.project(), &["rev-parse", "HEAD"])
    };
    git(&site.project(), &["init", "--quiet"]);
    let first = commit("one");
    site.up();
    // git is asked beside the start.
    site.eventually("the commit on record", || (site.service("web")["commit"] == first).then_some(()));
    assert!(site.service("web")["head_moved"].is_null());
    let second = commit("two");
    let moved = site.service("web")["head_moved"].clone();
    assert_eq!((&moved["from"], &moved["to"]), (&first.as_str().into(), &second.as_str().into()));
    site.locald("status").run().ok().says_nothing_of("HEAD");
    let note = format!("HEAD has moved since it started, from {} to {}", &first[..7], &second[..7]);
    site.locald("status --wide").run().ok().says(&note);
}
