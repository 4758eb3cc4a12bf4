//! Nothing is written into the project, so nothing that happens there does harm.

use std::process::Command;

use crate::support::Site;

const WEB: &str = "[services.web]\ncommand = 'sleep 600'\n";

/// Runs git in the project.
fn git(site: &Site, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=t", "-c", "user.email=t@localhost"]).args(args).current_dir(site.project());
    let ran = command.env("HOME", site.root()).output().expect("git runs");
    assert!(ran.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("text")
}

#[test]
fn git_clean_harms_nothing_and_finds_nothing() {
    let site = Site::new(WEB);
    git(&site, &["init", "-q"]);
    git(&site, &["add", "."]);
    git(&site, &["commit", "-qm", "x"]);
    site.up();
    let web = site.leader("web");
    assert_eq!(git(&site, &["status", "--porcelain", "--ignored"]), "");
    assert_eq!(git(&site, &["clean", "-fdx"]), "");
    assert_eq!(site.leader("web"), web);
    site.up().says("already running");
    site.down();
}

#[test]
fn a_project_whose_file_is_gone_can_still_be_looked_at_and_ended() {
    let site = Site::new(WEB);
    git(&site, &["init", "-q"]);
    site.up();
    let web = site.leader("web");
    assert!(git(&site, &["clean", "-fdx"]).contains("locald.toml"));
    site.locald("status").run().ok().says("ready").says("its project file is gone");
    assert_eq!(site.leader("web"), web);
    site.down();
    assert!(!web.is_alive());
}

#[test]
fn a_project_whose_directory_is_gone_can_still_be_ended() {
    let site = Site::new(WEB);
    site.up();
    let web = site.leader("web");
    std::fs::remove_dir_all(site.project()).expect("removes");
    site.locald("down -C").arg(site.project()).dir("/").run().ok().says("0 left");
    assert!(!web.is_alive());
    std::fs::create_dir(site.project()).expect("a directory");
}
