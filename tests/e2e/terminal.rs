//! The terminal from which somebody calls is theirs: what happens to it happens to the client alone.

use crate::support::{Site, Terminal, free_port, identity};

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
