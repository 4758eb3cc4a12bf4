//! A port that somebody else holds is not taken for ours, and ours is free after the end.

use std::net::{Ipv6Addr, TcpListener};

use crate::support::{Site, free_port};

/// A service that listens.
fn listener(port: u16) -> String {
    format!("[services.web]\ncommand = ['sh', '-c', 'exec \"$ZOO\" listen $PORT']\nport = {port}\n")
}

#[test]
fn a_port_that_a_stranger_holds_is_refused_with_its_pid() {
    let port = free_port();
    let site = Site::new(&listener(port));
    let stranger = TcpListener::bind(("127.0.0.1", port)).expect("a port");
    let holder = format!("port {port} is held by pid {}", std::process::id());
    let directory = std::env::current_dir().expect("a directory");
    let up = site.locald("up").run().code(1).says(&holder).says("e2e");
    up.says(&format!(") in {}, started ", directory.display())).says(" ago");
    site.assert_no_service_is_left();
    assert_eq!(site.service("web")["failure"]["stage"], "port");
    drop(stranger);
    site.up();
}

#[test]
fn a_port_that_another_project_of_ours_holds_is_refused_with_its_name() {
    let port = free_port();
    let site = Site::new(&listener(port));
    let other = site.another("other", &listener(port));
    site.up();
    let pid = site.leader("web").pid;
    let up = site.locald("up").dir(&other).run().code(1);
    up.says(&format!("port {port} is held by pid {pid}")).says("service web of project shop");
    assert_eq!(site.service("web")["state"], "ready");
}

#[test]
fn a_port_is_free_after_down() {
    let port = free_port();
    let site = Site::new(&listener(port));
    site.up();
    assert!(TcpListener::bind(("127.0.0.1", port)).is_err());
    site.down();
    drop(TcpListener::bind(("127.0.0.1", port)).expect("the port is free"));
    site.up();
}

#[test]
fn a_port_of_either_family_that_no_file_mentions_is_free_after_down() {
    // Where there is no IPv6 there is no such port.
    let families = [Some("127.0.0.1"), TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).ok().map(|_| "::1")];
    for address in families.into_iter().flatten() {
        let port = free_port();
        let site = Site::new(&format!(
            "[services.web]\ncommand = 'exec \"$ZOO\" listen {port} {address}'\n\
             [services.late]\ncommand = 'exec \"$ZOO\" listen $PORT {address}'\nport = {port}\n"
        ));
        site.locald("up web").run().ok();
        site.eventually("a listener", || TcpListener::bind((address, port)).is_err().then_some(()));
        // Its holder is named in either family, and it is free when the service has been stopped.
        let pid = site.leader("web").pid;
        site.locald("start late").run().code(1).says(&format!("port {port} is held by pid {pid}"));
        site.locald("stop web").run().ok();
        drop(TcpListener::bind((address, port)).expect("the port is free"));
        site.locald("start late").run().ok();
        site.down();
    }
}

#[test]
fn a_child_that_listens_makes_its_service_ready() {
    let port = free_port();
    let site = Site::new(&format!(
        "[services.web]\ncommand = '\"$ZOO\" setsid \"$ZOO\" listen $PORT & wait'\nport = {port}\n"
    ));
    site.up();
    assert_eq!((&site.service("web")["state"], &site.service("web")["port"]), (&"ready".into(), &port.into()));
}

/// A service that listens where locald says.
const AUTO: &str = "[services.web]\ncommand = ['sh', '-c', 'exec \"$ZOO\" listen $PORT']\nport = \"auto\"\n";

#[test]
fn an_assigned_port_is_its_directorys_for_good_and_nobody_elses() {
    let site = Site::new(AUTO);
    let twin = site.another("twin", AUTO);
    let port = |dir: &std::path::Path| {
        let status = site.locald("status --json").dir(dir).run().ok().json();
        status["services"][0]["port"].as_u64().expect("a port")
    };
    site.up();
    let first = port(&site.project());
    site.down();
    // Nothing listens on it now, and still it is nobody else's.
    site.locald("up").dir(&twin).run().ok();
    let second = port(&twin);
    assert_ne!(first, second);
    site.locald("daemon stop").run().ok();
    site.up();
    assert_eq!((port(&site.project()), port(&twin)), (first, second));
    // The file is not what it is kept by.
    site.locald("down").run().ok();
    std::fs::remove_file(site.project().join("locald.toml")).expect("removes");
    site.locald("daemon stop").run().ok();
    site.write("locald.toml", AUTO);
    site.up();
    assert_eq!(port(&site.project()), first);
}

#[test]
fn an_assigned_port_gives_way_to_a_number_in_its_own_file() {
    let site = Site::new(AUTO);
    site.up();
    let port = site.service("web")["port"].as_u64().expect("a port");
    site.down();
    let db = AUTO.replace("services.web", "services.db").replace("\"auto\"", &port.to_string());
    site.write("locald.toml", format!("{AUTO}{db}"));
    site.up();
    assert_eq!(site.service("db")["port"], port);
    assert_ne!(site.service("web")["port"], port);
}

#[test]
fn an_assigned_port_that_a_stranger_took_is_refused_with_the_way_out() {
    let site = Site::new(AUTO);
    site.up();
    let port = site.service("web")["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
    site.down();
    let stranger = TcpListener::bind(("127.0.0.1", port)).expect("free");
    let up = site.locald("up").run().code(1);
    up.says(&format!("port {port} is held by pid {}", std::process::id())).says("or give it a number as its `port`");
    drop(stranger);
    site.up();
    assert_eq!(site.service("web")["port"], port);
}
