//! The terminal from which somebody calls is theirs: what happens to it happens to the client alone.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::{Site, Terminal, free_port, identity, send};

/// A service that is never ready and says which signals it gets.
fn never_ready() -> String {
    format!(
        "[services.web]\ncommand = '''\nfor s in HUP INT QUIT; do trap \"echo $s >> $EVENTS\" $s; done\necho up >> $EVENTS\n\
         while :; do sleep 0.02; done'''\nport = {}\n",
        free_port()
    )
}

#[test]
fn an_interrupt_ends_the_client_that_started_the_daemon_and_nothing_else() {
    let site = Site::new(&never_ready());
    let mut terminal = Terminal::locald(&site, "up");
    site.await_event("up");
    let (daemon, web) = (site.daemon(), site.leader("web"));
    terminal.types("\x03");
    assert_eq!(terminal.finish(), Some(130), "{}", terminal.shown());
    assert_eq!((site.daemon(), site.leader("web")), (daemon, web));
    assert_eq!(site.service("web")["state"], "starting");
    assert_eq!(site.said(), ["up"]);
    site.down();
}

#[test]
fn closing_the_terminal_ends_the_client_that_started_the_daemon_and_nothing_else() {
    let site = Site::new(&never_ready());
    let terminal = Terminal::locald(&site, "up");
    site.await_event("up");
    let (daemon, web) = (site.daemon(), site.leader("web"));
    terminal.close();
    assert_eq!((site.daemon(), site.leader("web")), (daemon, web));
    assert_eq!(site.said(), ["up"]);
    site.down();
}

#[test]
fn a_shell_that_is_left_takes_nothing_along() {
    let site = Site::new("[services.web]\ncommand = 'sleep 600'\n");
    let shell = format!("{} up; echo code $?; read line", env!("CARGO_BIN_EXE_locald"));
    let terminal = Terminal::open(&site, "/bin/sh", &["-c", &shell]);
    site.eventually("the end of up", || terminal.shown().contains("code 0").then_some(()));
    let (daemon, web) = (site.daemon(), site.leader("web"));
    terminal.close();
    assert_eq!((site.daemon(), site.leader("web")), (daemon, web));
    site.down();
}

#[test]
fn the_daemon_and_the_shims_have_no_terminal() {
    let site = Site::new("[services.web]\ncommand = 'sleep 600'\n");
    let mut terminal = Terminal::locald(&site, "up");
    assert_eq!(terminal.finish(), Some(0));
    let look = |pid| locald_utils::process::look(pid).expect("a process");
    for seen in site.processes().iter().filter(|seen| seen.is_locald()) {
        let process = look(seen.process.pid);
        assert_eq!((process.terminal, process.session), (0, process.id.pid), "{seen:?}");
    }
    let web = look(site.leader("web").pid);
    assert_ne!(web.terminal, 0);
    assert_eq!((web.session, web.group), (web.id.pid, web.id.pid));
    assert_eq!(identity(web.id.pid), web.id);
}

/// A service that says goodbye when it is asked to end.
const POLITE: &str = "[services.web]\ncommand = '''\necho hello\ntrap 'echo goodbye; exit 0' TERM\n\
                      while :; do sleep 0.02; done'''\n[services.idle]\ncommand = 'sleep 600'\n";

/// A service that does not end when it is asked to.
const IGNORER: &str = "[services.web]\ncommand = '''\ntrap 'echo asked >> $EVENTS' TERM\necho hello\n\
                       while :; do sleep 600 & wait; done'''\nstop_grace = \"1h\"\n";

fn await_shown(site: &Site, terminal: &Terminal, text: &str) {
    site.eventually(&format!("{text:?} in the terminal"), || terminal.shown().contains(text).then_some(()));
}

#[test]
fn an_interrupt_while_following_stops_the_services_gracefully() {
    let site = Site::new(POLITE);
    let mut terminal = Terminal::locald(&site, "up -f");
    await_shown(&site, &terminal, "hello");
    terminal.types("\x03");
    assert_eq!(terminal.finish(), Some(0), "{}", terminal.shown());
    site.assert_no_service_is_left();
    for text in ["stopping 2 services; press Ctrl-C again to kill them", "goodbye", "2 services stopped", "0 left in"] {
        await_shown(&site, &terminal, text);
    }
}

#[test]
fn an_interrupt_while_following_stops_only_what_was_named() {
    let site = Site::new(POLITE);
    site.locald("up idle").run().ok();
    let mut terminal = Terminal::locald(&site, "up -f web");
    await_shown(&site, &terminal, "hello");
    terminal.types("\x03");
    assert_eq!(terminal.finish(), Some(0), "{}", terminal.shown());
    await_shown(&site, &terminal, "not named, and still wanted: idle; `locald down` ends all");
    await_shown(&site, &terminal, "1 service stopped");
    assert_eq!([&site.service("web")["state"], &site.service("idle")["state"]], ["stopped", "ready"]);
    site.down();
}

#[test]
fn a_second_interrupt_while_following_kills() {
    let site = Site::new(IGNORER);
    let mut terminal = Terminal::locald(&site, "up -f");
    await_shown(&site, &terminal, "hello");
    terminal.types("\x03");
    site.await_event("asked");
    terminal.types("\x03");
    assert_eq!(terminal.finish(), Some(130), "{}", terminal.shown());
    site.assert_no_service_is_left();
    await_shown(&site, &terminal, "1 service stopped");
}

#[test]
fn a_third_interrupt_while_following_leaves_the_rest_to_the_daemon() {
    let site = Site::new(IGNORER);
    let mut terminal = Terminal::locald(&site, "up -f");
    await_shown(&site, &terminal, "hello");
    terminal.types("\x03");
    site.await_event("asked");
    let daemon = site.daemon();
    send(daemon, Signal::SIGSTOP);
    terminal.types("\x03");
    await_shown(&site, &terminal, "press Ctrl-C again to leave that to the daemon");
    terminal.types("\x03");
    let code = terminal.finish();
    send(daemon, Signal::SIGCONT);
    assert_eq!(code, Some(130), "{}", terminal.shown());
    await_shown(&site, &terminal, "the daemon goes on ending the services");
    site.await_state("web", "stopped");
    site.assert_no_service_is_left();
}

#[test]
fn an_interrupt_during_down_leaves_the_rest_to_the_daemon() {
    let site = Site::new(&IGNORER.replace("1h", "1s"));
    site.up();
    let (daemon, web) = (site.daemon(), site.leader("web"));
    let began = Instant::now();
    let mut terminal = Terminal::locald(&site, "down");
    site.await_event("asked");
    terminal.types("\x03");
    assert_eq!(terminal.finish(), Some(130), "{}", terminal.shown());
    await_shown(&site, &terminal, "interrupted; the daemon goes on ending the services");
    site.await_end(web);
    assert!(began.elapsed() >= Duration::from_secs(1), "killed before its time");
    site.await_state("web", "stopped");
    site.assert_no_service_is_left();
    assert_eq!(site.daemon(), daemon);
}

#[test]
fn interrupts_while_coming_up_stop_gracefully_and_then_kill() {
    let port = free_port();
    let site = Site::new(
        &IGNORER
            .replace("echo hello", "echo up >> $EVENTS")
            .replace("stop_grace", &format!("port = {port}\nstop_grace")),
    );
    let mut terminal = Terminal::locald(&site, "up -f");
    site.await_event("up");
    terminal.types("\x03");
    site.await_event("asked");
    await_shown(&site, &terminal, "stopping 1 service;");
    terminal.types("\x03");
    assert_eq!(terminal.finish(), Some(130), "{}", terminal.shown());
    site.assert_no_service_is_left();
}

#[test]
fn a_key_leaves_what_is_followed_and_the_terminal_is_as_it_was() {
    let site = Site::new(POLITE);
    let shell = format!("stty -a > before; {} up -f; echo code $?; stty -a > after", env!("CARGO_BIN_EXE_locald"));
    let mut terminal = Terminal::open(&site, "/bin/sh", &["-c", &shell]);
    await_shown(&site, &terminal, "hello");
    terminal.types("xd");
    assert_eq!(terminal.finish(), Some(0), "{}", terminal.shown());
    for text in ["d leaves them running", "the services run on", "code 0"] {
        await_shown(&site, &terminal, text);
    }
    let [before, after] =
        ["before", "after"].map(|file| std::fs::read_to_string(site.project().join(file)).expect("a mode"));
    assert!(before.contains(" icanon") && before == after, "{before}\n{after}");
    assert_eq!(site.service("web")["state"], "ready");
    site.down();
}

#[test]
fn a_client_that_follows_and_is_ended_restores_the_terminal_and_ends_nothing_else() {
    let site = Site::new(POLITE);
    let script = format!(
        "stty -a > before; {} up -f & echo $! > client.new; mv client.new client; fg > fg.out; stty -a > after",
        env!("CARGO_BIN_EXE_locald")
    );
    let mut terminal = Terminal::open(&site, "/bin/sh", &["-m", "-c", &script]);
    await_shown(&site, &terminal, "d leaves them running");
    let client = site.await_pid("client");
    send(client, Signal::SIGTERM);
    terminal.finish();
    let [before, after] =
        ["before", "after"].map(|file| std::fs::read_to_string(site.project().join(file)).expect("a mode"));
    assert!(before.contains(" icanon") && before == after, "{before}\n{after}");
    assert_eq!(site.service("web")["state"], "ready");
    site.down();
}

#[test]
fn closing_the_terminal_of_a_follower_ends_the_client_and_nothing_else() {
    let site = Site::new(POLITE);
    let terminal = Terminal::locald(&site, "up -f");
    await_shown(&site, &terminal, "hello");
    let (daemon, web) = (site.daemon(), site.leader("web"));
    terminal.close();
    assert_eq!((site.daemon(), site.leader("web")), (daemon, web));
    site.down();
}

#[test]
fn following_ends_when_all_services_have_ended() {
    let site = Site::new(
        "[services.seed]\ntype = \"job\"\ncommand = 'echo seeded'\n[services.web]\ncommand = '''\necho hello\n\
         while [ ! -e quit ]; do sleep 0.02; done; echo last words\nexit 3'''\n\
         restart = { policy = \"on-failure\", backoff = \"300ms\", limit = 3 }\n",
    );
    let following = site.locald("up -f").start();
    site.await_state("web", "ready");
    site.write("quit", "");
    let ran = following.finish().code(1).says("nothing runs any more");
    assert_eq!(ran.stdout.matches("last words").count(), 3, "{ran}");
    site.down();
}

#[test]
fn an_interrupt_while_following_as_an_owner_says_what_stays_and_for_whom() {
    let site = Site::new(POLITE);
    site.locald("up idle --owner ci").run().ok();
    let mut terminal = Terminal::locald(&site, "up -f --owner ada");
    await_shown(&site, &terminal, "hello");
    terminal.types("\x03");
    assert_eq!(terminal.finish(), Some(0), "{}", terminal.shown());
    for text in [
        "ada leaves; press Ctrl-C again to kill",
        "others want what stays without ada:",
        "idle: ci",
        "1 service stopped",
    ] {
        await_shown(&site, &terminal, text);
    }
    assert_eq!([&site.service("web")["state"], &site.service("idle")["state"]], ["stopped", "ready"]);
    let web = site.service("web");
    assert_eq!(web["notes"], serde_json::json!(["nobody wants it without ada, who left or whose lease is over"]));
    site.down();
}

#[test]
fn following_tells_that_a_lease_is_over() {
    let site = Site::new(POLITE);
    let following = site.locald("up -f --owner ci --lease 1500ms").run().ok();
    following.says("nothing runs any more, for nobody wants it without ci, who left or whose lease is over");
    site.assert_no_service_is_left();
}

#[test]
fn a_follower_without_a_reader_leaves() {
    let site = Site::new(POLITE);
    let script = format!("{{ {} up -f; echo code $? > code; }} | head -n 1", env!("CARGO_BIN_EXE_locald"));
    let mut terminal = Terminal::open(&site, "/bin/sh", &["-c", &script]);
    terminal.finish();
    assert_eq!(std::fs::read_to_string(site.project().join("code")).expect("a code"), "code 0\n");
    assert_eq!(site.service("web")["state"], "ready");
    site.down();
}

#[test]
fn following_what_completes_ends_with_success() {
    let site = Site::new("[services.seed]\ntype = \"job\"\ncommand = 'echo seeded'\n");
    site.locald("up -f").run().ok().says("seeded");
}
