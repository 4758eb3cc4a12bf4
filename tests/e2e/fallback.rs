//! Older kernels, and filters that refuse a call: the same promises without it. Each call is made to fail by strace(1), in every
//! program of locald and in what they start.

use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use locald_utils::process::ProcessId;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

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

/// strace that is attached to a program which runs already, and lets it go when it is dropped.
struct Attached(Child);

impl Attached {
    /// Refuses a program to open these files, as if they were not there. `None` where that cannot be had.
    fn refusing_to_open(files: &[PathBuf], site: &Site, program: ProcessId) -> Option<(Self, Trace)> {
        let trace = Trace(site.root().join("trace"));
        let said = site.root().join("strace.err");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-Y", "-e", "signal=none", "-A", "-o"]).arg(&trace.0).args(["-p", &program.pid.to_string()]);
        strace.args(files.iter().flat_map(|file| [OsStr::new("-P"), file.as_os_str()]));
        // Not every architecture has the older call.
        strace.args(["-e", "trace=?open,openat", "-e", "inject=?open,openat:error=ENOENT"]);
        let strace = strace.stdin(Stdio::null()).stderr(File::create(&said).expect("a file")).spawn();
        let mut attached = Self(strace.inspect_err(|error| eprintln!("skipped: strace: {error}")).ok()?);
        let is_there = site.eventually("strace to be attached", || {
            let said = std::fs::read_to_string(&said).expect("what strace says");
            let is_over = attached.0.try_wait().expect("a child").is_some();
            (is_over || said.lines().any(|line| line.contains(" attached"))).then_some(!is_over)
        });
        if !is_there {
            eprintln!("skipped: strace may not trace");
        }
        is_there.then_some((attached, trace))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Asked to end, it lets go of everybody first. It ends by itself when nobody is left to be traced.
        let _ = nix::sys::signal::kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// A service of which one process is hidden, and no process ends when it is asked to.
const STUBBORN: &str = "[services.web]\nstop_grace = '200ms'\ncommand = '''\ntrap \"\" TERM\n\
    \"$ZOO\" traceless \"$ZOO\" limitless sh -c 'echo $$ > \"$1\"; exec sleep 600' \"$PWD\" \"$PWD/hidden\"\n\
    while :; do sleep 600; done'''\n";

/// Ends a service whose cgroup cannot be killed as one. Without its shim, nothing but the cgroup tells that the hidden one is of it.
fn ends_a_cgroup_one_by_one(has_shim: bool) {
    let site = Site::new(STUBBORN);
    site.up();
    let (hidden, leader) = (site.await_pid("hidden"), site.leader("web"));
    let record = std::fs::read(site.service_dir("web").join("pid")).expect("a record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("a record");
    let Some(leaf) = record["cgroup"].as_str().map(PathBuf::from) else {
        eprintln!("skipped: no cgroup can be made here");
        return;
    };
    let inside = std::fs::read_to_string(leaf.join("cgroup.procs")).expect("its processes");
    for process in [hidden, leader] {
        assert!(inside.lines().any(|pid| pid == process.pid.to_string()), "pid {} is not in {inside}", process.pid);
    }
    let shim = site.recorded("web", "shim", "shim");
    if !has_shim {
        send(shim, Signal::SIGKILL);
        site.await_end(shim);
    }
    let (killer, program) = if has_shim { (shim, "locald-shim") } else { (site.daemon(), "locald-server") };
    let kill = [leaf.join("cgroup.kill")];
    let Some((_attached, trace)) = Attached::refusing_to_open(&kill, &site, killer) else { return };
    let down = site.down();
    assert!(!hidden.is_alive() && !leader.is_alive(), "{down}");
    assert!(!leaf.exists(), "{} is left", leaf.display());
    trace.assert_refused_to(&[program]);
}

#[test]
fn without_cgroup_kill_the_shim_ends_the_processes_of_the_cgroup_one_by_one() {
    ends_a_cgroup_one_by_one(true);
}

#[test]
fn without_cgroup_kill_and_shim_the_daemon_ends_the_processes_of_the_cgroup_one_by_one() {
    ends_a_cgroup_one_by_one(false);
}

#[test]
fn without_any_list_of_children_a_shim_finds_them_in_the_whole_table() {
    let site = Site::new(STUBBORN);
    site.up();
    let (hidden, leader) = (site.await_pid("hidden"), site.leader("web"));
    let shim = site.recorded("web", "shim", "shim");
    let list = |process: ProcessId| PathBuf::from(format!("/proc/{0}/task/{0}/children", process.pid));
    let lists = [list(shim), list(leader), list(hidden), "/proc/thread-self/children".into()];
    let Some((_attached, trace)) = Attached::refusing_to_open(&lists, &site, shim) else { return };
    let down = site.down();
    assert!(!hidden.is_alive() && !leader.is_alive(), "{down}");
    trace.assert_refused_to(&["locald-shim"]);
    let refused = std::fs::read_to_string(&trace.0).expect("what strace wrote");
    assert!(refused.contains(list(shim).to_str().expect("a path")), "{refused}");
}
