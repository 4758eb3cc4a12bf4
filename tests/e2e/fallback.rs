//! Older kernels, and filters that refuse a call: the same promises without it. Each call is made to fail by strace(1), in every
//! program of locald and in what they start.

use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::{Site, send};

/// What hides, and what does not want to end, beside an ordinary service.
const HARD: &str = "[services.web]\ncommand = '''\n\
    \"$ZOO\" traceless sh -c 'echo $$ > \"$1\"; exec sleep 600' \"$PWD\" \"$PWD/hidden\"\n\
    \"$ZOO\" setsid sh -c 'trap \"\" TERM; echo $$ > stubborn; while :; do sleep 600; done' &\nwait'''\nstop_grace = \"200ms\"\n\
    [services.plain]\ncommand = 'sleep 600'\n";

/// What strace writes down: who made which call, and whether it was refused. It is in the file before the call returns.
struct Trace(PathBuf);

impl Trace {
    /// Demands that each of these programs made the call and was refused it: otherwise nothing was tried.
    #[track_caller]
    fn assert_refused_to(&self, programs: &[&str]) {
        let text = std::fs::read_to_string(&self.0).expect("what strace wrote");
        for program in programs {
            let is_of = |line: &str| line.contains(&format!("<{program}>")) && line.ends_with("(INJECTED)");
            assert!(text.lines().any(is_of), "{program} was refused nothing:\n{text}");
        }
    }
}

/// A site whose programs are refused a call; `None` where there is no strace, or it may not trace.
fn without(filter: &[&str]) -> Option<(Site, Trace)> {
    let mut site = Site::new(HARD);
    let trace = Trace(site.root().join("trace"));
    // What strace itself has to say goes nowhere; what it runs has the caller's stderr. All programs write to one file.
    let script = format!(
        "exec 3>&2; exec strace -DDD -f -Y -qqq -e signal=none -A -o {} {} sh -c 'exec \"$@\" 2>&3 3>&-' sh \"$@\" 2> /dev/null",
        trace.0.display(),
        filter.join(" ")
    );
    let words = ["sh", "-c", &script, "sh"];
    let works = Command::new(words[0]).args(&words[1..]).arg("true").status();
    if !works.is_ok_and(|status| status.success()) {
        eprintln!("skipped: strace cannot be run");
        return None;
    }
    site.run_by(words);
    Some((site, trace))
}

/// Who makes most of the calls.
const DAEMON_AND_SHIM: &[&str] = &["locald-server", "locald-shim"];

/// Refuses a call that these programs make, and demands that a service which hides and resists is ended all the same.
fn holds_what_is_promised_without(filter: &[&str], by: &[&str]) {
    let Some((site, trace)) = without(filter) else { return };
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
    trace.assert_refused_to(by);
}

#[test]
fn without_pidfd_open() {
    holds_what_is_promised_without(
        &["-e", "trace=pidfd_open", "-e", "inject=pidfd_open:error=ENOSYS"],
        DAEMON_AND_SHIM,
    );
}

#[test]
fn without_pidfd_send_signal() {
    holds_what_is_promised_without(
        &["-e", "trace=pidfd_send_signal", "-e", "inject=pidfd_send_signal:error=ENOSYS"],
        DAEMON_AND_SHIM,
    );
}

#[test]
fn without_clone3() {
    holds_what_is_promised_without(&["-e", "trace=clone3", "-e", "inject=clone3:error=ENOSYS"], DAEMON_AND_SHIM);
}

#[test]
fn without_close_range() {
    holds_what_is_promised_without(
        &["-e", "trace=close_range", "-e", "inject=close_range:error=ENOSYS"],
        DAEMON_AND_SHIM,
    );
}

#[test]
fn without_limits() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: with neither limit nor cgroup nothing ties what hides to a run whose shim is gone");
        return;
    }
    holds_what_is_promised_without(&["-e", "trace=prlimit64", "-e", "inject=prlimit64:error=EPERM"], DAEMON_AND_SHIM);
}

#[test]
fn without_lists_of_children() {
    holds_what_is_promised_without(
        &["-P", "/proc/thread-self/children", "-e", "trace=openat", "-e", "inject=openat:error=ENOENT"],
        &["locald-shim"],
    );
}

#[test]
fn without_cgroups() {
    holds_what_is_promised_without(
        &["-P", "/proc/self/cgroup", "-e", "trace=openat", "-e", "inject=openat:error=ENOENT"],
        // Where leaves can be made the daemon alone finds out.
        &["locald-server"],
    );
}
