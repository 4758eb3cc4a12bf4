//! Services start, are seen to run, and end.

use crate::support::Site;

#[test]
fn up_starts_status_shows_and_down_ends() {
    let site = Site::new("[services.web]\ncommand = \"sleep 600\"\n");
    site.up().says("shop: 1 service ready in").says("locald down");
    let web = site.service("web");
    assert_eq!((&web["state"], &web["run"], &web["desired"]), (&"ready".into(), &1.into(), &"up".into()));
    let leader = site.leader("web");
    assert!(leader.is_alive());
    assert_eq!(site.recorded("web", "pid", "leader"), leader);
    site.locald("status").run().ok().says("web      ready");

    let ended = site.down();
    assert!(!leader.is_alive());
    assert_eq!(ended["totals"], serde_json::json!({ "services": 1, "processes": 1, "killed": 0, "left": 0 }));
    assert_eq!(ended["services"][0]["ended"]["signal"], "SIGTERM");
    assert_eq!(site.service("web")["state"], "stopped");
}

#[test]
fn a_second_up_changes_nothing() {
    let site = Site::new("[services.web]\ncommand = \"sleep 600\"\n");
    site.up();
    let leader = site.leader("web");
    site.up().says("1 service already running");
    assert_eq!(site.leader("web"), leader);
    assert_eq!(site.service("web")["run"], 1);
}

#[test]
fn down_of_nothing_is_fine_and_starts_no_daemon() {
    let site = Site::new("[services.web]\ncommand = \"sleep 600\"\n");
    site.locald("down").run().ok();
    assert!(site.daemons().is_empty());
}

#[test]
fn stop_start_and_restart_are_about_the_services_named() {
    let site = Site::new("[services.db]\ncommand = \"sleep 600\"\n[services.web]\ncommand = \"sleep 600\"\n");
    site.up();
    let (db, web) = (site.leader("db"), site.leader("web"));
    site.locald("stop web").run().ok().says("1 service stopped, 1 process ended, 0 left");
    assert!(!web.is_alive());
    assert_eq!(site.service("web")["state"], "stopped");

    site.locald("start web").run().ok();
    let second = site.leader("web");
    site.locald("restart web").run().ok();
    let third = site.leader("web");
    assert!(!second.is_alive() && third.is_alive());
    assert_eq!((&site.service("web")["run"], site.leader("db")), (&3.into(), db));
    site.down();
}

#[test]
fn a_changed_service_is_replaced_by_up_and_the_others_stay() {
    let site = Site::new("[services.db]\ncommand = \"sleep 600\"\n[services.web]\ncommand = \"sleep 600\"\n");
    site.up();
    let (db, web) = (site.leader("db"), site.leader("web"));
    site.write("locald.toml", "[services.db]\ncommand = \"sleep 600\"\n[services.web]\ncommand = \"sleep 601\"\n");
    site.locald("status").run().ok().says("changed since it started");
    site.up();
    assert_eq!(site.leader("db"), db);
    assert!(!web.is_alive());
    assert_ne!(site.leader("web"), web);
}

#[test]
fn a_mistake_in_the_file_leaves_alone_what_runs() {
    let site = Site::new("[services.web]\ncommand = \"sleep 600\"\n");
    site.up();
    let web = site.leader("web");
    site.write("locald.toml", "[services.web]\ncomand = \"sleep 601\"\n");
    site.locald("up").run().code(2).says("locald.toml:2:1").says("`command`");
    assert_eq!(site.leader("web"), web);
    site.down();
}
