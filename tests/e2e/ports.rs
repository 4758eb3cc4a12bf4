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
