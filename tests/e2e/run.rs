//! `locald run`: a one-off command has a service's environment, directory and dependencies, and the caller's terminal and fate.

use std::fs;

use nix::sys::signal::Signal;

use crate::support::{Site, Terminal, free_port, send, shown};

/// A database, a service that needs it, and another that nobody needs.
fn shop() -> Site {
    let port = free_port();
    let site = Site::new(&format!(
        "[services.db]\ncommand = 'echo $PORT up >> \"$EVENTS\"; exec \"$ZOO\" listen $PORT'\nport = {port}\n\
         [services.web]\ncommand = 'exec \"$ZOO\" listen $PORT'\nport = \"auto\"\nworkdir = \"sub\"\n\
         depends_on = [\"db\"]\nenv_file = \".env\"\nenv = {{ DB = \"db:${{services.db.port}}\", A = \"env\" }}\n\
         [services.other]\ncommand = 'exec sleep 600'\n"
    ));
    site.write(".env", "A=file\nB=file\n");
    site.write("sub/here", "");
    site
}

fn state(site: &Site, name: &str) -> String {
    site.service(name)["state"].as_str().expect("a state").to_owned()
}

#[test]
fn a_command_has_the_environment_the_directory_and_the_dependencies_of_the_service() {
    let site = shop();
    let script = "pwd; ls; echo $A $B $C $DB $PORT $LOCALD_PORT_WEB $LOCALD_URL_DB; cat \"$EVENTS\"";
    let run = site.locald("run web -- sh -c").arg(script).env("A", "caller").env("B", "caller").env("C", "caller");
    let run = run.run().ok();
    let db = site.service("db")["port"].clone();
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines[..2], [site.project().join("sub").to_str().expect("text"), "here"], "{run}");
    assert_eq!(lines[3], format!("{db} up"), "{run}");
    let words: Vec<&str> = lines[2].split(' ').collect();
    let (port, url) = (words[4], format!("http://localhost:{db}"));
    assert_eq!(words, ["env", "file", "caller", &format!("db:{db}"), port, port, &url], "{run}");
    // What it does not depend on was not started, nor the service itself; that has the same port when it is.
    assert_eq!(
        (state(&site, "db"), state(&site, "web"), state(&site, "other")),
        ("ready".into(), "stopped".into(), "stopped".into())
    );
    site.up();
    assert_eq!(site.service("web")["port"].to_string(), port);
    // Both run already.
    let again = site.locald("run web sh -c").arg("echo $PORT").run().ok();
    assert_eq!(again.stdout, format!("{port}\n"));
    assert_eq!((site.service("db")["run"].clone(), site.service("web")["run"].clone()), (1.into(), 1.into()));
}

#[test]
fn the_exit_code_and_the_signal_of_the_command_are_those_of_the_call() {
    let site = Site::new("[services.web]\ncommand = 'exec sleep 600'\n");
    site.locald("run web -- sh -c").arg("exit 7").run().code(7);
    assert_eq!(site.locald("run web -- sh -c").arg("kill -TERM $$").run().exit(), None);
    // It is the very process that was started, and a signal that was sent to it reaches the command.
    let running =
        site.locald("run web -- sh -c").arg("trap 'echo got; exit 3' USR1; echo $$ > pid; while :; do sleep 0.1; done");
    let running = running.start();
    let command = site.await_pid("pid");
    assert_eq!(running.process(), command);
    send(command, Signal::SIGUSR1);
    let ran = running.finish().code(3);
    assert_eq!(ran.stdout, "got\n");
    // Nothing but the command was there: no daemon was needed.
    assert!(site.processes().is_empty());
}

#[test]
fn a_command_has_the_callers_terminal() {
    let site = Site::new("[services.web]\ncommand = 'exec sleep 600'\n");
    site.script("look", "#!/bin/sh\nstty size\necho TERM $TERM\nread line\necho \"read $line\"\nexit 5\n");
    let mut terminal = Terminal::locald(&site, "run web -- ./look");
    site.eventually("its question", || terminal.shown().contains("TERM xterm\r\n").then_some(()));
    assert!(terminal.shown().contains("24 100"), "{}", terminal.shown());
    terminal.types("hello\n");
    assert_eq!(terminal.finish(), Some(5));
    site.eventually("its answer", || terminal.shown().contains("read hello").then_some(()));
    // Ctrl-C is the command's own.
    site.script("wait", "#!/bin/sh\ntrap 'echo interrupted; exit 6' INT\necho waiting\nwhile :; do sleep 0.1; done\n");
    let mut terminal = Terminal::locald(&site, "run web ./wait");
    site.eventually("its word", || terminal.shown().contains("waiting").then_some(()));
    terminal.types("\x03");
    assert_eq!(terminal.finish(), Some(6));
}

#[test]
fn a_command_is_no_run_of_the_service() {
    let site = shop();
    site.up();
    let script = "env > vars; echo $$ > pid; exec sleep 600";
    let running =
        site.locald("run web -- sh -c").arg(script).env("LOCALD_SERVICE", "shop:web").env("LOCALD_RUN", "x").start();
    let command = site.await_pid("sub/pid");
    let variables = fs::read_to_string(site.project().join("sub/vars")).expect("variables");
    for name in ["LOCALD_SERVICE", "LOCALD_RUN", "LOCALD_SUPERVISOR", "NOTIFY_SOCKET"] {
        assert!(!variables.lines().any(|line| line.starts_with(&format!("{name}="))), "{name} in {variables}");
    }
    site.locald("restart web").run().ok();
    let down = site.locald("down --json").run().ok().json();
    assert_eq!((&down["totals"]["services"], &down["totals"]["left"]), (&3.into(), &0.into()), "{down}");
    assert!(command.is_alive(), "it was ended with the service");
    send(command, Signal::SIGKILL);
    running.finish();
}

#[test]
fn a_command_from_within_a_service_carries_no_marker_of_it() {
    let locald = env!("CARGO_BIN_EXE_locald");
    let site = Site::new(&format!(
        "[services.web]\ncommand = ''''{locald}' run web -- env > vars; exec sleep 600'''\nstop_grace = \"10s\"\n"
    ));
    site.up();
    let variables = site.eventually("variables", || {
        let text = fs::read_to_string(site.project().join("vars")).ok()?;
        text.contains("HOME=").then_some(text)
    });
    assert!(!variables.contains("LOCALD_RUN=") && !variables.contains("LOCALD_SERVICE="), "{variables}");
    site.down();
}

#[test]
fn what_cannot_be_run_is_told() {
    let site = shop();
    let unknown = site.locald("run wbe -- true").run().code(4);
    unknown.says("no service `wbe` in shop").says("did you mean `web`?");
    site.locald("run * -- true").run().code(2).says("means more than one service");
    site.locald("run web").run().code(2);
    let none = site.locald("run other -- no-such-program").run().code(1);
    none.says("could not run `no-such-program`: there is no program `no-such-program` in PATH");
    let there = format!("could not run `./nothere` in {}: ./nothere does not exist", site.project().display());
    site.locald("run other -- ./nothere").run().code(1).says(&there);
    site.write("plain", "text");
    site.locald("run other -- ./plain").run().code(1).says("is not executable").says("chmod +x");
    site.locald("run other --").arg("echo $PORT").run().code(1).says("sh -c");
    let json = site.locald("run --json other -- no-such-program").run().code(1).json();
    assert_eq!((&json["verb"], &json["error"]["code"]), (&"run".into(), &"failed".into()));
}

#[test]
fn a_dependency_that_cannot_be_there_keeps_the_command_from_running() {
    let site = Site::new(
        "[services.seed]\ntype = \"job\"\ncommand = 'echo no seeds; exit 9'\n\
         [services.db]\ncommand = 'exec sleep 600'\ndepends_on = [\"seed\"]\n\
         [services.slow]\ncommand = 'exec sleep 600'\nhealth_check = 'false'\n\
         [services.web]\ncommand = 'exec sleep 600'\ndepends_on = [\"db\"]\n\
         [services.late]\ncommand = 'exec sleep 600'\ndepends_on = [\"slow\"]\n\
         [services.early]\ncommand = 'exec sleep 600'\ndepends_on = { slow = \"started\" }\n",
    );
    let failed = site.locald("run web -- touch ran").run().code(1);
    failed.says("no seeds").says("blocked by seed").says("so nothing was run");
    site.locald("run late --timeout 300ms -- touch ran").run().code(124).says("slow is not ready in time");
    assert!(!site.project().join("ran").exists());
    site.locald("run --no-deps web -- touch ran").run().ok();
    assert!(site.project().join("ran").exists());
    // It need only have been started, and is never ready.
    site.locald("run early -- touch early").run().ok();
    assert!(site.project().join("early").exists());
    assert_eq!(state(&site, "slow"), "starting");
}

#[test]
fn ports_are_assigned_without_anything_being_started() {
    let site = shop();
    let first = site.locald("run --no-deps web -- sh -c").arg("echo $PORT").run().ok().stdout;
    let port: u16 = first.trim().parse().expect("a port");
    assert!(site.service_processes().is_empty());
    assert_eq!(site.locald("ls").run().ok().says_nothing_of("shop").stdout.matches("ready").count(), 0);
    site.locald("up web").run().ok();
    assert_eq!(site.service("web")["port"], port);
    let limits = shown(site.locald("run other -- sh -c").arg("ulimit -n").run().ok().stdout.as_bytes());
    let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("a limit");
    assert_eq!(limits.trim(), soft.to_string());
}
