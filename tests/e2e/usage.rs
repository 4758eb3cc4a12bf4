//! What is typed or written wrongly is said so, with the way out, and touches nothing.

use crate::support::Site;

const WEB: &str = "[services.web]\ncommand = 'sleep 600'\n[services.worker]\ncommand = 'sleep 600'\n";

#[test]
fn an_unknown_service_is_an_error_with_the_nearest_name() {
    let site = Site::new(WEB);
    for verb in ["up", "start", "restart", "stop", "status", "wait", "logs"] {
        site.locald(&format!("{verb} wbe")).run().code(4).says("wbe").says("`web`");
    }
    assert!(site.processes().is_empty());
    site.up();
    for verb in ["stop", "restart", "status", "wait", "logs"] {
        site.locald(&format!("{verb} wbe")).run().code(4).says("`web`");
    }
    assert_eq!(site.service("web")["run"], 1);
}

#[test]
fn an_unknown_key_is_an_error_with_its_place_and_the_nearest_key() {
    let site = Site::new("[services.web]\ncommand = 'sleep 600'\nprot = 3000\n");
    for verb in ["up", "check", "start", "restart"] {
        site.locald(verb).run().code(2).says("locald.toml:3:1").says("prot = 3000").says("port");
    }
    assert!(site.processes().is_empty());
}

#[test]
fn every_mistake_is_reported_at_once() {
    let site = Site::new(
        "[services.web]\ncommand = 'x'\nstop_grace = \"5\"\nstop_signal = \"SIGTREM\"\ndepends_on = [\"dp\"]\n\
         [services.db]\ncommand = 'x'\ndepends_on = [\"api\"]\n[services.api]\ncommand = 'x'\ndepends_on = [\"db\"]\n",
    );
    let check = site.locald("check").run().code(2);
    check.says("locald.toml:3").says("SIGTERM").says("`db`").says("db").says("api");
}

#[test]
fn a_directory_without_a_project_is_told() {
    let site = Site::new(WEB);
    let empty = site.root().join("empty");
    std::fs::create_dir(&empty).expect("a directory");
    for verb in ["up", "down", "status", "stop web", "wait", "check", "logs"] {
        site.locald(verb).dir(&empty).run().code(4).says("no locald.toml in");
    }
    assert!(site.processes().is_empty());
}

#[test]
fn a_project_is_found_from_below() {
    let site = Site::new(WEB);
    site.write("src/deep/x", "");
    site.locald("up web").dir(site.project().join("src/deep")).run().ok();
    assert_eq!(site.service("web")["state"], "ready");
}

#[test]
fn names_take_globs() {
    let site = Site::new(WEB);
    site.locald("up wo*").run().ok();
    assert_eq!((&site.service("worker")["state"], &site.service("web")["state"]), (&"ready".into(), &"stopped".into()));
    site.locald("up x*").run().code(4);
}

#[test]
fn a_wrong_flag_is_a_usage_error() {
    let site = Site::new(WEB);
    site.locald("up --frobnicate").run().code(2);
    site.locald("frobnicate").run().code(2);
    site.locald("up --timeout 5").run().code(2).says("no unit");
}
