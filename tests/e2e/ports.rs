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

// `up` said that the port was held by the very service that it was ending.
#[test]
fn ports_that_change_hands_are_given_back_before_they_are_taken() {
    let service = |name: &str, port: u16| {
        format!(
            "[services.{name}]\ncommand = '''\ntrap 'sleep 0.3; exit 0' TERM\n\"$ZOO\" listen $PORT & wait'''\nport = {port}\n"
        )
    };
    let (first, second, third) = (free_port(), free_port(), free_port());
    let site = Site::new(&(service("a", first) + &service("b", second)));
    site.up();
    site.write("locald.toml", &(service("a", second) + &service("b", first)));
    let up = site.locald("up").run().ok();
    up.says("2 services ready");
    // Of what it waits for there is a note meanwhile.
    site.write("locald.toml", &(service("a", third) + &service("b", first) + &service("c", second)));
    let up = site.locald("up").start();
    let note = site.eventually("c to wait", || {
        let c = site.service("c");
        (c["state"] == "waiting").then(|| c["notes"].to_string())
    });
    assert!(note.contains("its port is that of a, which is about to end"), "{note}");
    up.finish().ok();
    for (name, port) in [("a", third), ("b", first), ("c", second)] {
        let service = site.service(name);
        assert_eq!((&service["state"], &service["port"]), (&"ready".into(), &port.into()), "{service}");
    }
    site.down();
}

// The one that had it went on with it, and `up` with the other failed for ever.
#[test]
fn an_assigned_port_gives_way_to_a_number_in_its_own_file_although_it_is_in_use() {
    let a = "[services.a]\ncommand = '\"$ZOO\" listen $PORT'\nport = \"auto\"\n\
             [services.c]\ncommand = 'echo c ${services.a.port} >> $EVENTS; exec sleep 600'\n";
    let site = Site::new(a);
    site.up();
    let port = site.service("a")["port"].as_u64().expect("a port");
    site.write("locald.toml", format!("{a}[services.b]\ncommand = '\"$ZOO\" listen $PORT'\nport = {port}\n"));
    let dry_run = site.locald("up --dry-run").run().ok();
    dry_run.says("its port, or one that it mentions, is another now");
    site.locald("up").run().ok().says("3 services ready");
    let other = site.service("a")["port"].as_u64().expect("a port");
    assert_ne!(other, port);
    assert_eq!(site.service("b")["port"], port);
    assert_eq!(site.said(), [format!("c {port}"), format!("c {other}")]);
    site.down();
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

/// The notes of a service, when it has some.
fn notes(site: &Site, service: &str) -> Vec<String> {
    let notes = site.service(service)["notes"].as_array().cloned().unwrap_or_default();
    notes.iter().filter_map(|note| note.as_str().map(str::to_owned)).collect()
}

#[test]
fn status_tells_where_a_service_listens_instead_of_on_its_port() {
    let [right, wrong, other, six, silent, robbed] = std::array::from_fn(|_| free_port());
    let service = |name: &str, port: u16, command: &str| {
        format!("[services.{name}]\ncommand = '{command}'\nport = {port}\nhealth_check = 'true'\n")
    };
    let site = Site::new(&format!(
        "{}{}{}{}{}[services.free]\ncommand = 'exec sleep 600'\n",
        service("right", right, "\"$ZOO\" setsid \"$ZOO\" listen $PORT & wait"),
        service("wrong", wrong, &format!("exec \"$ZOO\" listen {other}")),
        service("six", six, "exec \"$ZOO\" listen $PORT ::1"),
        service("silent", silent, "exec sleep 600"),
        service("robbed", robbed, "exec sleep 600"),
    ));
    site.locald("up right wrong silent robbed free").run().ok();
    let told = |service: &str, note: &str| {
        site.eventually(note, || (notes(&site, service) == [note]).then_some(()));
    };
    told("wrong", &format!("listens on {other}, not on {wrong}"));
    site.locald("status").run().ok().says(&format!("listens on {other}, not on {wrong}"));
    told("silent", &format!("nothing listens on TCP port {silent}"));
    let stranger = TcpListener::bind(("127.0.0.1", robbed)).expect("free");
    let robber = notes(&site, "robbed").join("\n");
    assert!(robber.starts_with(&format!("pid {} (", std::process::id())), "{robber}");
    assert!(robber.ends_with(&format!(") listens on {robbed}, not this service")), "{robber}");
    drop(stranger);
    told("robbed", &format!("nothing listens on TCP port {robbed}"));
    site.eventually("a listener", || notes(&site, "right").is_empty().then_some(()));
    assert_eq!(notes(&site, "free"), [""; 0]);
    // Where there is no IPv6 nobody listens there alone.
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        site.locald("up six").run().ok();
        told("six", "listens on ::1 only");
    }
    // What is stopped listens nowhere, which is no news.
    site.down();
    assert_eq!(notes(&site, "silent"), [""; 0]);
}

#[test]
fn a_service_that_starts_on_another_port_is_told_while_it_is_waited_for() {
    let [port, other] = std::array::from_fn(|_| free_port());
    let site = Site::new(&format!("[services.web]\ncommand = 'exec \"$ZOO\" listen {other}'\nport = {port}\n"));
    site.locald("up --timeout 1ms").run().code(124);
    site.eventually("the note", || {
        notes(&site, "web").contains(&format!("listens on {other}, not on {port}")).then_some(())
    });
    assert_eq!(site.service("web")["state"], "starting");
}

#[test]
fn ports_lists_those_of_all_projects_with_their_owners_and_who_listens() {
    let [fixed, besides, written] = std::array::from_fn(|_| free_port());
    let zoo = "'\"$ZOO\" listen $PORT & exec \"$ZOO\" listen";
    let site = Site::new(&format!(
        "[services.web]\ncommand = {zoo} {besides}'\nport = {fixed}\n[services.off]\ncommand = 'x'\nport = {written}\n"
    ));
    // Without a daemon there is the file.
    let alone = site.locald("ports").run().ok();
    alone.says(&format!("{fixed}  shop     web")).says("stopped").says("no daemon runs");
    assert!(site.processes().is_empty());

    let twin = site.another("twin", AUTO);
    site.locald("up web").run().ok();
    site.locald("up").dir(&twin).run().ok();
    let listed = |words: &str| site.locald(words).run().ok().json()["ports"].as_array().expect("a list").clone();
    let of = |ports: &[serde_json::Value], port: u64| ports.iter().find(|row| row["port"] == port).cloned();
    let ports = site.eventually("both listeners", || {
        let ports = listed("ports --json");
        of(&ports, u64::from(besides)).is_some().then_some(ports)
    });
    let numbers: Vec<u64> = ports.iter().filter_map(|row| row["port"].as_u64()).collect();
    assert!(numbers.is_sorted() && numbers.len() == 4, "{ports:?}");
    let web = of(&ports, u64::from(fixed)).expect("listed");
    assert_eq!((&web["service"], &web["state"], &web["declared"]), (&"web".into(), &"ready".into(), &true.into()));
    assert_eq!((&web["own"], &web["notes"]), (&true.into(), &serde_json::json!([])));
    assert_eq!(web["listeners"][0]["addresses"], serde_json::json!(["127.0.0.1"]));
    let second = of(&ports, u64::from(besides)).expect("listed");
    assert_eq!((&second["declared"], &second["listeners"][0]["pid"]), (&false.into(), &site.leader("web").pid.into()));
    let off = of(&ports, u64::from(written)).expect("listed");
    assert_eq!(
        (&off["state"], &off["own"], &off["listeners"]),
        (&"stopped".into(), &false.into(), &serde_json::json!([]))
    );
    let auto = ports.iter().find(|row| row["project"]["name"] == "twin").expect("listed").clone();
    assert_eq!(auto["project"]["dir"], twin.to_str().expect("text"));
    let quiet = site.locald("ports --quiet").run().ok();
    assert_eq!(quiet.stdout, numbers.iter().map(|port| format!("{port}\n")).collect::<String>());

    // A port that was assigned is listed when nothing of its project runs, and who has taken it meanwhile.
    site.locald("down").dir(&twin).run().ok();
    let port = u16::try_from(auto["port"].as_u64().expect("a port")).expect("a port");
    let stranger = TcpListener::bind(("127.0.0.1", port)).expect("free");
    let held = of(&listed("ports --json"), u64::from(port)).expect("listed");
    assert_eq!((&held["notes"][0], &held["project"]["name"]), (&"held by another process".into(), &"twin".into()));
    assert_eq!((&held["listeners"][0]["pid"], &held["own"]), (&std::process::id().into(), &false.into()));
    drop(stranger);
    site.locald("ports").run().ok().says(&format!("{port}  twin     web      stopped  -"));

    // What runs without a daemon listens all the same.
    site.locald("daemon stop").run().ok();
    let orphan = of(&listed("ports --json"), u64::from(fixed)).expect("listed");
    assert_eq!(
        (&orphan["state"], &orphan["own"], &orphan["declared"]),
        (&"unknown".into(), &true.into(), &true.into())
    );
}
