//! A service's terminal in a person's: what it shows, who types, how one leaves, and that nobody is harmed by it.

use std::io::Write;
use std::os::unix::net::UnixStream;

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

/// Waits until the terminal shows that: it shows what a program wrote some time after the program has ended.
fn await_shown(site: &Site, terminal: &Terminal, text: &str) {
    site.eventually(&format!("{text:?} in the terminal, which shows {:?}", terminal.shown()), || {
        terminal.shown().contains(text).then_some(())
    });
}

/// Leaves.
fn detach(terminal: &mut Terminal) {
    terminal.types(DETACH);
    assert_eq!(terminal.finish(), Some(0), "{}", terminal.shown());
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
    detach(&mut terminal);
    await_shown(&site, &terminal, "detached; web#1 runs on");
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
            await_shown(&site, terminal, "bye");
            await_shown(&site, terminal, words);
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
    await_shown(&site, &second, &refused);
    await_shown(&site, &second, "--read-only");
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
    detach(&mut third);
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
        detach(terminal);
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
    detach(&mut terminal);
    let mut terminal = attach(&site, "attach web");
    await_shown(&site, &terminal, "got without a daemon");
    detach(&mut terminal);
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
    await_shown(&site, &terminal, &format!("{:099}", 99_999));
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
    detach(&mut terminal);
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
    await_shown(&site, &terminal, "the shim of web#1 is gone");
    assert!(is_cooked(&terminal));
    assert_eq!(site.leader("web"), web);
    site.locald("attach web").run().code(2);
    site.locald("screen web").run().code(3);
    site.down();
}

#[test]
fn a_service_that_writes_faster_than_anybody_looks_can_be_looked_at_and_left() {
    let site = Site::new("[services.web]\ncommand = 'yes \"$PWD\"'\nlog = { max_size = \"2MB\" }\n");
    site.locald("up").run().ok();
    let mut terminal = attach(&site, "attach web");
    await_shown(&site, &terminal, "/shop");
    let screen = site.locald("screen web").run().ok();
    assert!(screen.stdout.lines().count() > 20, "{screen}");
    terminal.types(DETACH);
    assert_eq!(terminal.finish(), Some(0), "{} bytes were shown", terminal.shown().len());
    site.down();
}

/// Connects to the shim of `web`.
fn knock(site: &Site) -> UnixStream {
    let record = std::fs::read(site.service_dir("web").join("shim")).expect("a record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("a record");
    UnixStream::connect(record["socket"].as_str().expect("a path")).expect("the shim listens")
}

#[test]
fn whoever_says_much_or_nothing_to_a_shim_is_in_nobodys_way() {
    let site = Site::new(ECHOES);
    site.locald("up").run().ok();
    let frame = |message: &serde_json::Value| locald_utils::frame::encode(message).expect("a frame");
    let attach_frame = frame(&json!({ "attach": { "pid": 1, "read_only": true } }));
    let unknown = frame(&json!({ "dance": {} }));
    // Some say the same again and again and never read an answer, some have closed their ears, some send half of a large
    // frame, and many say nothing.
    let mut kept = Vec::new();
    for bytes in [&attach_frame, &unknown] {
        let stream = knock(&site);
        stream.set_nonblocking(true).expect("a socket");
        // Until it is full, or closed at the other end.
        while (&stream).write(&bytes.repeat(100)).is_ok() {}
        kept.push(stream);
    }
    for bytes in [&attach_frame[..], &unknown[..], &[0, 64, 0, 0, 0][..], b"\xff\xff\xff\xff\x00"] {
        let mut stream = knock(&site);
        stream.shutdown(std::net::Shutdown::Read).expect("a socket");
        stream.write_all(bytes).expect("sent");
        stream.write_all(&[b' '; 5000]).ok();
        kept.push(stream);
    }
    kept.extend((0..60).map(|_| knock(&site)));
    send(site.daemon(), Signal::SIGKILL);
    assert_eq!(site.locald("up --json").run().ok().json()["ok"], true);
    assert_eq!(site.service("web")["state"], "ready");
    // Nothing that was said keeps the shim busy.
    let shim = site.recorded("web", "shim", "shim");
    let before = processor_time(shim.pid);
    let mut terminal = attach(&site, "attach web");
    terminal.types("still there\r");
    site.await_event("got still there");
    detach(&mut terminal);
    let spent = processor_time(shim.pid) - before;
    assert!(spent < 20, "the shim has spent {spent} ticks of the processor meanwhile");
    drop(kept);
    site.down();
}

/// In ticks of 10 ms.
#[cfg(target_os = "linux")]
fn processor_time(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let after_name = stat.rsplit(')').next().expect("a name");
    after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

/// Nobody tells without asking a framework.
#[cfg(not(target_os = "linux"))]
fn processor_time(_: i32) -> u64 {
    0
}
