//! Services with profiles are started when they are asked for, and not otherwise.

use serde_json::Value;

use crate::support::Site;

/// Two services of every day, and three that are not; `mail` needs one of those.
fn shop() -> Site {
    let service = |name: &str, more: &str| format!("[services.{name}]\ncommand = 'exec sleep 600'\n{more}\n");
    Site::new(
        &[
            service("web", ""),
            service("store", "profiles = \"mail\""),
            service("mail", "profiles = [\"full\"]\ndepends_on = [\"store\"]"),
            service("trace", "profiles = [\"full\", \"debug\"]"),
        ]
        .concat(),
    )
}

/// The services that run.
fn running(site: &Site) -> String {
    let status = site.locald("status --json").run().ok().json();
    let services = status["services"].as_array().expect("a list").iter().filter(|service| service["state"] == "ready");
    services.filter_map(|service| service["name"].as_str()).collect::<Vec<_>>().join(" ")
}

fn of<'a>(status: &'a Value, name: &str) -> &'a Value {
    let services = status["services"].as_array().expect("a list");
    services.iter().find(|service| service["name"] == name).expect("declared")
}

#[test]
fn up_starts_what_has_no_profile_and_status_shows_the_rest_as_stopped() {
    let site = shop();
    site.up().says("shop: 1 service ready");
    assert_eq!(running(&site), "web");
    let status = site.locald("status --json").run().ok().json();
    assert_eq!((&status["health"], &status["ready"], &status["total"]), (&"fine".into(), &1.into(), &1.into()));
    let trace = of(&status, "trace");
    assert_eq!((&trace["state"], &trace["desired"]), (&"stopped".into(), &"down".into()));
    assert_eq!(trace["profiles"], serde_json::json!(["full", "debug"]));
    site.locald("status").run().ok().says("only with profile full or debug");
    site.locald("status --short").run().ok().says("1/1 ready");
    site.locald("ls").run().ok().says("1/1 ready");
    site.locald("status --exit-code").run().ok();
    // What nobody wants is not waited for.
    site.locald("wait").run().ok();
    site.locald("up").run().ok().says("1 service already running");
}

#[test]
fn a_profile_starts_its_services_and_what_they_depend_on() {
    let site = shop();
    site.locald("up --profile full").run().ok();
    assert_eq!(running(&site), "web store mail trace");
    assert_eq!(site.down()["totals"]["services"], 4);
    site.locald("up --profile debug --profile mail").run().ok();
    assert_eq!(running(&site), "web store trace");
    site.down();
    // Globs, names beside it, and what is usually wanted.
    site.locald("up web --profile de*").run().ok();
    assert_eq!(running(&site), "web trace");
    site.down();
    site.locald("up").env("LOCALD_PROFILES", "other,debug").run().ok();
    assert_eq!(running(&site), "web trace");
    site.down();
    site.locald("up web").env("LOCALD_PROFILES", "debug").run().ok();
    assert_eq!(running(&site), "web");
    site.locald("up --profile mail").env("LOCALD_PROFILES", "debug").run().ok();
    assert_eq!(running(&site), "web store");
}

#[test]
fn a_name_or_a_glob_starts_a_service_whatever_its_profiles() {
    let site = shop();
    site.locald("up mail").run().ok();
    assert_eq!(running(&site), "store mail");
    site.locald("start t*").run().ok();
    assert_eq!(running(&site), "store mail trace");
    site.locald("stop mail").run().ok();
    assert_eq!(running(&site), "store trace");
}

#[test]
fn what_was_asked_for_once_belongs_to_the_project_until_it_is_stopped() {
    let site = shop();
    site.locald("up --profile debug").run().ok();
    let run = |service: &str| site.service(service)["run"].clone();
    site.locald("restart").run().ok();
    assert_eq!((run("web"), run("trace"), run("mail")), (2.into(), 2.into(), Value::Null));
    // The next daemon knows that it is wanted.
    site.locald("daemon stop").run().ok();
    let text = std::fs::read_to_string(site.project().join("locald.toml")).expect("the file");
    site.write("locald.toml", text.replace("sleep 600", "sleep 601"));
    site.up();
    assert_eq!((run("web"), run("trace"), run("mail")), (3.into(), 3.into(), Value::Null));
    site.locald("stop trace").run().ok();
    site.locald("restart").run().ok();
    site.up();
    assert_eq!(running(&site), "web");
    assert_eq!((run("web"), run("trace")), (4.into(), 3.into()));
}

#[test]
fn an_unknown_profile_and_none_at_all_are_told() {
    let site = shop();
    let up = site.locald("up --profile debgu").run().code(4);
    up.says("no service of shop has the profile `debgu`").says("did you mean `debug`?");
    assert!(site.processes().is_empty());
    site.write("locald.toml", "[services.trace]\ncommand = 'exec sleep 600'\nprofiles = [\"debug\"]\n");
    site.locald("up").run().code(2).says("every service of shop has profiles").says("--profile");
    assert_eq!(running(&site), "");
    site.locald("up --profile *").run().ok();
    assert_eq!(running(&site), "trace");
}

#[test]
fn profiles_that_change_restart_nothing() {
    let site = Site::new("[services.web]\ncommand = 'exec sleep 600'\n");
    site.up();
    let web = site.leader("web");
    site.write("locald.toml", "[services.web]\ncommand = 'exec sleep 600'\nprofiles = [\"full\"]\n");
    assert_eq!(site.service("web")["changed"], false);
    site.up();
    assert_eq!(site.leader("web"), web);
}
