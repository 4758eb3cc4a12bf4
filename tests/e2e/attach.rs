//! A service's terminal in a person's: what it shows, who types, how one leaves, and that nobody is harmed by it.

use nix::sys::signal::Signal;
use nix::sys::termios::LocalFlags;
use serde_json::json;

use crate::support::{Site, Terminal, send};

/// Ctrl-Space Ctrl-Q.
const DETACH: &str = "\x00\x11";

/// A service that says what it was told.
const ECHOES: &str = "[services.web]\ncommand = '''\necho hello\nwhile read line; do echo \"got $line\"; echo \"got $line\" >> $EVENTS; done'''\n";

fn is_cooked(terminal: &Terminal) -> bool {
    terminal.mode().local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
}

/// Attaches, and waits until that is shown.
fn attach(site: &Site, words: &str) -> Terminal {
    let terminal = Terminal::locald(site, words);
    await_shown(site, &terminal, "Ctrl-Space Ctrl-Q");
    terminal
}

fn await_shown(site: &Site, terminal: &Terminal, text: &str) {
    site.eventually(&format!("{text:?} in the terminal, which shows {:?}", terminal.shown()), || {
        terminal.shown().contains(text).then_some(())
    });
}

#[test]
fn whoever_attaches_sees_what_was_written_types_and_leaves_with_their_terminal_as_it_was() {
    let site = Site::new(ECHOES);
    site.locald("up").run().ok();
    let web = site.leader("web");
    let mut terminal = attach(&site, "attach web");
    await_shown(&site, &terminal, "hello");
    assert!(!is_cooked(&terminal));
    terminal.types("ping\r");
    site.await_event("got ping");
    await_shown(&site, &terminal, "got ping");
    terminal.types(DETACH);
    assert_eq!(terminal.finish(), Some(0), "{}", terminal.shown());
    assert!(terminal.shown().contains("detached; web#1 runs on"), "{}", terminal.shown());
    assert!(is_cooked(&terminal));
    assert_eq!(site.leader("web"), web);
    site.down();
}

#[test]
fn a_run_that_ends_gives_whoever_is_attached_its_exit_code() {
    for (end, code, words) in [("exit 7", 7, "exit 7"), ("kill -KILL $$", 137, "killed by SIGKILL")] {
        let site = Site::new(&format!("[services.web]\ncommand = '''\nread line\necho bye\n{end}'''\n"));
        site.locald("up").run().ok();
        let mut terminal = attach(&site, "attach web");
        let mut looker = attach(&site, "attach web --read-only");
        terminal.types("\r");
        for terminal in [&mut terminal, &mut looker] {
            assert_eq!(terminal.finish(), Some(code), "{}", terminal.shown());
            assert!(terminal.shown().contains("bye") && terminal.shown().contains(words), "{}", terminal.shown());
            assert!(is_cooked(terminal));
        }
        site.down();
    }
}

#[test]
fn one_types_and_any_number_look_on() {
    let site = Site::new(ECHOES);
    site.locald("up").run().ok();
    let mut first = attach(&site, "attach web");
    let mut lookers = [(); 4].map(|()| attach(&site, "attach web --read-only"));
    let mut second = Terminal::locald(&site, "attach web");
    assert_eq!(second.finish(), Some(1), "{}", second.shown());
    let refused = format!("somebody else writes to the terminal of web: pid {}", first.process.pid);
    assert!(second.shown().contains(&refused) && second.shown().contains("--read-only"), "{}", second.shown());
    lookers[0].types("from a looker\r");
    first.types("from the first\r");
    site.await_event("got from the first");
    for looker in &mut lookers {
        await_shown(&site, looker, "got from the first");
        looker.types("\x03");
        assert_eq!(looker.finish(), Some(0), "{}", looker.shown());
    }
    // However the first goes, the place is free.
    send(first.process, Signal::SIGKILL);
    first.finish();
    let mut third = attach(&site, "attach web");
    third.types("from the third\r");
    site.await_event("got from the third");
    assert_eq!(site.said(), ["got from the first", "got from the third"]);
    third.types(DETACH);
    assert_eq!(third.finish(), Some(0));
    site.down();
}

#[test]
fn the_size_follows_whoever_types() {
    let site = Site::new(
        "[services.web]\ncommand = '''\ntrap 'stty size >> $EVENTS' WINCH\necho up >> $EVENTS\nwhile :; do sleep 0.02; done'''\n",
    );
    site.locald("up").run().ok();
    site.await_event("up");
    let mut looker = attach(&site, "attach web --read-only");
    let mut terminal = attach(&site, "attach web");
    site.await_event("24 100");
    terminal.resize(30, 90);
    site.await_event("30 90");
    looker.resize(10, 10);
    for terminal in [&mut looker, &mut terminal] {
        terminal.types(DETACH);
        assert_eq!(terminal.finish(), Some(0), "{}", terminal.shown());
    }
    assert_eq!(site.said(), ["up", "24 100", "30 90"]);
    let screen = site.locald("screen web --json").run().ok().json();
    assert_eq!((&screen["rows"], &screen["columns"]), (&json!(30), &json!(90)));
    site.down();
}

#[test]
fn a_terminal_survives_the_daemon() {
    let site = Site::new(ECHOES);
    site.locald("up").run().ok();
    let mut terminal = attach(&site, "attach web");
    send(site.daemon(), Signal::SIGKILL);
    terminal.types("without a daemon\r");
    site.await_event("got without a daemon");
    terminal.types(DETACH);
    assert_eq!(terminal.finish(), Some(0), "{}", terminal.shown());
    let mut terminal = attach(&site, "attach web");
    await_shown(&site, &terminal, "got without a daemon");
    terminal.types(DETACH);
    assert_eq!(terminal.finish(), Some(0), "{}", terminal.shown());
    site.down();
}

#[test]
fn a_terminal_that_is_closed_or_a_client_that_is_ended_takes_nothing_along() {
    let site = Site::new(ECHOES);
    site.locald("up").run().ok();
    let web = site.leader("web");
    attach(&site, "attach web").close();
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let mut terminal = attach(&site, "attach web");
        send(terminal.process, signal);
        assert_eq!(terminal.finish(), Some(130), "{signal}: {}", terminal.shown());
        assert!(is_cooked(&terminal), "{signal}");
    }
    assert_eq!(site.leader("web"), web);
    site.down();
}

#[test]
fn a_terminal_that_takes_nothing_stalls_nobody_else() {
    let site = Site::new(
        "[services.web]\ncommand = 'read line; \"$ZOO\" numbers 100000'\n[services.db]\ncommand = 'sleep 600'\n",
    );
    site.locald("up").run().ok();
    let mut stalled = attach(&site, "attach web --read-only");
    send(stalled.process, Signal::SIGSTOP);
    let mut terminal = attach(&site, "attach web");
    terminal.types("\r");
    assert_eq!(terminal.finish(), Some(0), "{} bytes were shown", terminal.shown().len());
    assert!(terminal.shown().contains(&format!("{:099}", 99_999)));
    assert_eq!(site.log("web").iter().filter(|byte| **byte == b'\n').count(), 100_001);
    send(stalled.process, Signal::SIGCONT);
    assert_eq!(stalled.finish(), Some(0));
    site.down();
}

#[test]
fn one_can_leave_a_service_that_does_not_read() {
    let site = Site::new("[services.web]\ncommand = 'stty raw -echo; echo ready; sleep 600'\n");
    site.locald("up").run().ok();
    let mut terminal = attach(&site, "attach web");
    await_shown(&site, &terminal, "ready");
    for _ in 0..40 {
        terminal.types(&"x".repeat(3000));
    }
    terminal.types(DETACH);
    assert_eq!(terminal.finish(), Some(0), "{}", terminal.shown());
    site.down();
}

#[test]
fn the_screen_of_a_service_is_what_a_person_would_see() {
    let site = Site::new(
        "[services.plain]\ncommand = '''\nprintf 'one\\n 10%%\\r100%%\\n\\033[31mred\\033[0m $ '\necho up >> $EVENTS\nsleep 600'''\n\
         [services.full]\ncommand = '''\nprintf 'before\\n\\033[?1049h\\033[2J\\033[3;5Hhere\\033[?25l'\necho up >> $EVENTS\nsleep 600'''\n",
    );
    site.locald("up").run().ok();
    site.await_event("up");
    let plain = site.eventually("all of the output", || {
        let screen = site.locald("screen plain").run().ok().stdout;
        screen.ends_with("$\n").then_some(screen)
    });
    assert_eq!(plain, "one\n100%\nred $\n");
    let full = site.eventually("all of the output", || {
        let screen = site.locald("screen full --json").run().ok().json();
        (screen.get("cursor").is_none()).then_some(screen)
    });
    let lines = json!(["", "", "    here"]);
    let expected = json!({
        "schema": 1, "verb": "screen", "service": "full", "run": 1, "rows": 24, "columns": 80, "alternate": true, "lines": lines,
    });
    assert_eq!(full, expected);
    site.locald("stop full").run().ok();
    site.locald("screen full").run().code(3).says("full does not run");
    site.down();
}

#[test]
fn attach_needs_a_terminal_and_one_service() {
    let site = Site::new("[services.web]\ncommand = 'sleep 600'\n[services.worker]\ncommand = 'sleep 600'\n");
    site.locald("up").run().ok();
    for (words, code, said) in [
        ("attach web", 2, "attach needs a terminal"),
        ("attach web --json", 2, "attach shows a terminal and has no --json"),
        ("attach w*", 2, "means more than one service"),
        ("attach wob", 4, "web"),
        ("attach web --detach-keys enter", 2, "is no key"),
    ] {
        site.locald(words).run().code(code).says(said);
    }
    // The keys may be set once and for all.
    let mut terminal = Terminal::open(
        &site,
        "/bin/sh",
        &["-c", &format!("LOCALD_DETACH_KEYS=ctrl-] exec {} attach web", env!("CARGO_BIN_EXE_locald"))],
    );
    await_shown(&site, &terminal, "Ctrl-] detaches");
    terminal.types("\x1d");
    assert_eq!(terminal.finish(), Some(0), "{}", terminal.shown());
    site.down();
}

#[test]
fn a_shim_that_is_killed_ends_the_attachment_and_not_the_service() {
    let site = Site::new(ECHOES);
    site.locald("up").run().ok();
    let web = site.leader("web");
    let mut terminal = attach(&site, "attach web");
    send(site.recorded("web", "shim", "shim"), Signal::SIGKILL);
    assert_eq!(terminal.finish(), Some(1), "{}", terminal.shown());
    assert!(terminal.shown().contains("the shim of web#1 is gone"), "{}", terminal.shown());
    assert!(is_cooked(&terminal));
    assert_eq!(site.leader("web"), web);
    site.locald("attach web").run().code(2);
    site.locald("screen web").run().code(3);
    site.down();
}
