//! Services with `tty = false`: two streams that are told apart, and every promise about output as with a terminal.

use locald_utils::process::{self, ORPHANS_COME_TO_THE_SHIM};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Ran, Site, send, shown};

/// A service of this kind.
fn service(more: &str, command: &str) -> String {
    format!("[services.web]\ntty = false\n{more}\ncommand = '''\n{command}'''\n")
}

/// A job, run to its end.
fn job(command: &str) -> Site {
    let site = Site::new(&format!("[services.job]\ntty = false\ntype = \"job\"\ncommand = '''\n{command}'''\n"));
    site.locald("up --timeout 10m").run().ok();
    site
}

/// The records that `logs --json` has shown.
fn records(ran: &Ran) -> Vec<Value> {
    ran.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The lines among them, each with its stream.
fn lines(ran: &Ran) -> Vec<(String, String)> {
    let text = |record: &Value, key: &str| record[key].as_str().unwrap_or_default().to_owned();
    let lines = records(ran).into_iter().filter(|record| record["kind"] == "line");
    lines.map(|record| (text(&record, "stream"), text(&record, "text"))).collect()
}

fn pair(stream: &str, text: &str) -> (String, String) {
    (stream.to_owned(), text.to_owned())
}

#[test]
fn a_service_without_a_terminal_leads_a_session_and_has_nothing_to_read_and_two_pipes() {
    let site = Site::new(&service(
        "",
        "for i in 0 1 2; do test -t $i && echo terminal; done; cat; echo end of input; \"$ZOO\" descriptors\n\
         (: < /dev/tty) 2>/dev/null && echo a controlling terminal; echo all; exec sleep 600",
    ));
    site.up();
    site.eventually("its last line", || site.log("web").ends_with(b"all\n").then_some(()));
    assert_eq!(shown(&site.log("web")), "end of input\ndescriptors: 0 1 2\nall\n");
    let leader = site.leader("web");
    let seen = process::look(leader.pid).expect("it runs");
    assert_eq!((seen.session, seen.group, seen.terminal), (leader.pid, leader.pid, 0));
    site.locald("screen web").run().code(1).says("web has no terminal: it runs with `tty = false`");
    site.down();
}

#[test]
fn the_streams_are_told_apart_and_their_lines_are_whole() {
    let site = job("printf 'one\\ntw'; sleep 0.2; echo oops >&2; sleep 0.2; echo o; printf 'end' >&2");
    assert_eq!(shown(&site.log("job")), "one\ntwoops\no\nend", "in the order in which it came");
    let all = site.locald("logs job --json").run().ok();
    let expected = [pair("stdout", "one"), pair("stderr", "oops"), pair("stdout", "two"), pair("stderr", "end")];
    assert_eq!(lines(&all), expected, "{all}");
    let stderr = site.locald("logs job --stream stderr").run().ok();
    assert_eq!(stderr.stdout, "oops\nend\n");
    let stdout = site.locald("logs job --stream stdout -n 1 --json").run().ok();
    assert_eq!(lines(&stdout), [pair("stdout", "two")]);
    assert_eq!(site.locald("logs job").run().ok().stdout, "one\noops\ntwo\nend\n", "no mark in a pipe");
    site.locald("logs job --stream both").run().code(2).says("write `stdout` or `stderr`");
}

#[test]
fn a_follower_sees_both_streams() {
    let site =
        Site::new(&service("", "while [ ! -e go ]; do sleep 0.02; done; echo out; echo err >&2; exec sleep 600"));
    site.up();
    let shown = site.root().join("shown");
    let file = std::fs::File::create(&shown).expect("a file");
    let follower = site.locald("logs -f web --json --stream stderr").stdout_to(file).start();
    let shown = || std::fs::read_to_string(&shown).expect("what it shows");
    site.write("go", "");
    site.eventually("what it shows", || shown().contains("\"text\":\"err\"").then_some(()));
    assert!(!shown().contains("\"out\""), "{}", shown());
    // Whoever began the test may ignore SIGINT, and so would this.
    send(follower.process(), Signal::SIGTERM);
    follower.finish();
    site.down();
}

#[test]
fn what_two_streams_bring_at_full_speed_is_all_there_in_order() {
    const LINES: u64 = 100_000;
    let site = job(&format!("\"$ZOO\" numbers {LINES} & \"$ZOO\" numbers {LINES} >&2; wait"));
    let mut next = std::collections::BTreeMap::new();
    let all = site.locald("logs job -n all --json").run().ok();
    for (stream, text) in lines(&all) {
        let next: &mut u64 = next.entry(stream).or_default();
        assert_eq!(text, format!("{next:099}"));
        *next += 1;
    }
    assert_eq!(next.into_values().collect::<Vec<_>>(), [LINES, LINES]);
    assert_eq!(site.log("job").len() as u64, 2 * LINES * 100);
}

#[test]
fn output_without_a_terminal_is_bounded_too_and_what_is_left_is_the_newest() {
    const LINES: usize = 300_000;
    let site = Site::new(&format!(
        "[services.job]\ntype = \"job\"\ntty = false\ncommand = '\"$ZOO\" numbers {LINES}'\nlog = {{ max_size = \"4MB\" }}\n"
    ));
    site.locald("up --timeout 10m").run().ok();
    let log = site.log("job");
    assert!((3_000_000..8_000_000).contains(&log.len()), "{} bytes are left", log.len());
    let count = log.len() / 100;
    for (line, number) in log.chunks(100).zip(LINES - count..) {
        assert_eq!(shown(line), format!("{number:099}\n"));
    }
    let text = site.locald("logs job -n all").run().ok().stdout;
    assert_eq!(text.lines().count(), count + 1);
}

// RLIMIT_FSIZE: as a full disk, for whoever writes the log.
#[test]
fn what_cannot_be_written_is_counted_and_keeps_no_service_from_going_on() {
    let mut site = Site::new(
        "[services.job]\ntype = \"job\"\ntty = false\ncommand = '\"$ZOO\" numbers 60000; echo done >> $EVENTS'\n",
    );
    site.run_by(["sh", "-c", "ulimit -f 4096; exec \"$@\"", "sh"]);
    site.locald("up --timeout 10m").run().ok();
    assert_eq!(site.said(), ["done"]);
    let kept = site.log("job").len();
    assert!((100_000..6_000_000).contains(&kept), "{kept}");
    let all = site.locald("logs job -n 1 --json").run().ok();
    let gap = records(&all).into_iter().find(|record| record["kind"] == "gap").expect("a gap");
    assert_eq!(gap["lost_bytes"].as_u64(), Some(6_000_000 - kept as u64), "{all}");
    site.locald("status").run().ok().says("bytes of output lost");
}

#[test]
fn a_line_of_either_stream_makes_a_service_ready() {
    for (stream, other) in [("1", "2"), ("2", "1")] {
        let site = Site::new(&service(
            "health_check = { type = \"log\", pattern = '^listening on \\d+$' }",
            &format!(
                "printf 'listening ' >&{stream}; echo in between >&{other}; while [ ! -e go ]; do sleep 0.02; done\n\
                 echo 'on 80' >&{stream}; \"$ZOO\" numbers 1000; exec sleep 600"
            ),
        ));
        let up = site.locald("up").start();
        site.await_state("web", "starting");
        site.write("go", "");
        up.finish().ok();
        site.eventually("all of its output", || (site.log("web").len() > 100_000).then_some(()));
        site.down();
    }
}

#[test]
fn what_a_stop_command_says_is_in_the_log_and_what_members_say_last_too() {
    let site = Site::new(&service(
        "stop_command = 'echo asked; echo warned >&2'",
        "trap 'echo bye; exit 0' TERM\n(trap 'echo and bye >&2; exit 0' TERM; while :; do sleep 0.02; done) &\nwhile :; do sleep 0.02; done",
    ));
    site.up();
    site.down();
    let all = site.locald("logs web --json").run().ok();
    let mut lines = lines(&all);
    // Shells say so of what they have waited for.
    lines.retain(|(_, text)| text != "Terminated");
    lines.sort();
    let expected =
        [pair("stderr", "and bye"), pair("stderr", "warned"), pair("stdout", "asked"), pair("stdout", "bye")];
    assert_eq!(lines, expected, "{all}");
}

#[test]
fn a_service_without_a_terminal_outlives_its_shim_and_both_streams_go_on() {
    let site = Site::new(&service(
        "",
        "\"$ZOO\" daemonize sh -c 'echo $$ > child; exec sleep 600'\n\
         while :; do echo tick; echo tock >&2; sleep 0.02; done",
    ));
    site.up();
    let child = site.await_pid("child");
    let (shim, web) = (site.recorded("web", "shim", "shim"), site.leader("web"));
    send(shim, Signal::SIGKILL);
    site.await_end(shim);
    site.eventually("a note that its shim is gone", || {
        site.service("web")["notes"].to_string().contains("degraded").then_some(())
    });
    let before = site.log("web").len();
    site.eventually("output after the death of the shim", || (site.log("web").len() > before + 200).then_some(()));
    assert!(web.is_alive() && child.is_alive());
    let down = site.down();
    assert!(!web.is_alive() && !child.is_alive());
    let signal = if ORPHANS_COME_TO_THE_SHIM { "SIGTERM".into() } else { Value::Null };
    assert_eq!(down["services"][0]["ended"]["signal"], signal, "{down}");
    let all = site.locald("logs web -n all --json").run().ok();
    let lines = lines(&all);
    let after: Vec<_> = lines.iter().rev().take(6).collect();
    for line in [pair("stdout", "tick"), pair("stderr", "tock")] {
        assert!(after.contains(&&line), "{line:?} is not among the last lines: {after:?}");
    }
    assert!(lines.iter().all(|line| *line == pair("stdout", "tick") || *line == pair("stderr", "tock")), "{lines:?}");
}

#[test]
fn not_a_byte_is_lost_when_the_daemon_dies_while_a_service_writes_to_pipes() {
    const LINES: usize = 100_000;
    let site = Site::new(&service(
        "",
        &format!(
            "while [ ! -e go ]; do sleep 0.02; done; \"$ZOO\" numbers {LINES}; \"$ZOO\" numbers {LINES} >&2; exec sleep 600"
        ),
    ));
    site.up();
    let (daemon, web) = (site.daemon(), site.leader("web"));
    site.write("go", "");
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    site.up();
    assert_eq!(site.leader("web"), web, "`up` changes nothing");
    site.eventually("all of its output", || (site.log("web").len() == 2 * LINES * 100).then_some(()));
    // The next daemon has its pipes as well.
    let shim = site.recorded("web", "shim", "shim");
    send(shim, Signal::SIGKILL);
    site.await_end(shim);
    site.eventually("a note that its shim is gone", || {
        site.service("web")["notes"].to_string().contains("degraded").then_some(())
    });
    assert!(web.is_alive());
    site.down();
    assert!(!web.is_alive());
}

#[test]
fn daemon_and_shim_killed_together_leave_what_can_be_ended_without_a_terminal_too() {
    let site = Site::new(&service("", "\"$ZOO\" daemonize sh -c 'echo $$ > child; exec sleep 600'\nsleep 600"));
    site.up();
    let child = site.await_pid("child");
    let (daemon, shim, web) = (site.daemon(), site.recorded("web", "shim", "shim"), site.leader("web"));
    for process in [daemon, shim] {
        send(process, Signal::SIGKILL);
        site.await_end(process);
    }
    site.locald("down").run().ok();
    assert!(!web.is_alive() && !child.is_alive());
    site.assert_no_service_is_left();
}

// The test is the stranger: no process of the run, who has its stdout and writes as fast as it can.
#[test]
#[cfg(target_os = "linux")]
fn a_stranger_who_has_the_pipe_and_writes_for_ever_keeps_no_run_from_ending() {
    use std::io::Write;
    let site = Site::new(&service("", "echo up; exec sleep 600"));
    site.up();
    let (web, shim) = (site.leader("web"), site.recorded("web", "shim", "shim"));
    let path = format!("/proc/{}/fd/1", web.pid);
    let mut pipe = std::fs::File::options().write(true).open(path).expect("its stdout");
    let stranger = std::thread::spawn(move || while pipe.write_all(&[b'x'; 4096]).is_ok() {});
    // So much that the next file of the log has begun.
    site.eventually("output", || (site.log_files("web").len() > 1).then_some(()));
    site.down();
    assert!(!web.is_alive());
    site.await_end(shim);
    stranger.join().expect("it cannot write any more");
}
