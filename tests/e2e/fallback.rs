//! Older kernels, and filters that refuse a call: the same promises without it. Each call is made to fail by strace(1), in every
//! program of locald and in what they start.

use nix::sys::signal::Signal;

use crate::support::{Site, send};

/// What hides, and what does not want to end, beside an ordinary service.
const HARD: &str = "[services.web]\ncommand = '''\n\
    \"$ZOO\" traceless sh -c 'echo $$ > \"$1\"; exec sleep 600' \"$PWD\" \"$PWD/hidden\"\n\
    \"$ZOO\" setsid sh -c 'trap \"\" TERM; echo $$ > stubborn; while :; do sleep 600; done' &\nwait'''\nstop_grace = \"200ms\"\n\
    [services.plain]\ncommand = 'sleep 600'\n";

/// A site whose programs are refused a call; `None` where there is no strace, or it may not trace.
fn without(filter: &[&str]) -> Option<Site> {
    // What strace itself has to say goes nowhere; what it runs has the caller's stderr.
    let script = format!(
        "exec 3>&2; exec strace -DDD -f -qqq -o /dev/null {} sh -c 'exec \"$@\" 2>&3 3>&-' sh \"$@\" 2> /dev/null",
        filter.join(" ")
    );
    let words = ["sh", "-c", &script, "sh"];
    let works = std::process::Command::new(words[0]).args(&words[1..]).arg("true").status();
    if !works.is_ok_and(|status| status.success()) {
        eprintln!("skipped: strace cannot be run");
        return None;
    }
    let mut site = Site::new(HARD);
    site.run_by(words);
    Some(site)
}

fn holds_what_is_promised_without(filter: &[&str]) {
    let Some(site) = without(filter) else { return };
    site.up();
    let before = [site.await_pid("hidden"), site.await_pid("stubborn"), site.leader("web"), site.leader("plain")];
    assert!(before.iter().all(|process| process.is_alive()));
    for name in ["hidden", "stubborn"] {
        std::fs::remove_file(site.project().join(name)).expect("removes");
    }
    site.locald("restart web").run().ok();
    let after = [site.await_pid("hidden"), site.await_pid("stubborn"), site.leader("web")];
    assert!(before[..3].iter().all(|process| !process.is_alive()), "the old run is gone before the new one starts");

    // The daemon's own sweep has to do without it as well.
    let shim = site.recorded("web", "shim", "shim");
    send(shim, Signal::SIGKILL);
    site.await_end(shim);
    let down = site.down();
    assert!(after.iter().all(|process| !process.is_alive()), "{down}");
    assert!(!before[3].is_alive());
}

#[test]
fn without_pidfd_open() {
    holds_what_is_promised_without(&["-e", "trace=pidfd_open", "-e", "inject=pidfd_open:error=ENOSYS"]);
}

#[test]
fn without_pidfd_send_signal() {
    holds_what_is_promised_without(&["-e", "trace=pidfd_send_signal", "-e", "inject=pidfd_send_signal:error=ENOSYS"]);
}

#[test]
fn without_clone3() {
    holds_what_is_promised_without(&["-e", "trace=clone3", "-e", "inject=clone3:error=ENOSYS"]);
}

#[test]
fn without_close_range() {
    holds_what_is_promised_without(&["-e", "trace=close_range", "-e", "inject=close_range:error=ENOSYS"]);
}

#[test]
fn without_limits() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: with neither limit nor cgroup nothing ties what hides to a run whose shim is gone");
        return;
    }
    holds_what_is_promised_without(&["-e", "trace=prlimit64", "-e", "inject=prlimit64:error=EPERM"]);
}

#[test]
fn without_lists_of_children() {
    holds_what_is_promised_without(&[
        "-P",
        "/proc/thread-self/children",
        "-e",
        "trace=openat",
        "-e",
        "inject=openat:error=ENOENT",
    ]);
}

#[test]
fn without_cgroups() {
    holds_what_is_promised_without(&[
        "-P",
        "/proc/self/cgroup",
        "-e",
        "trace=openat",
        "-e",
        "inject=openat:error=ENOENT",
    ]);
}
