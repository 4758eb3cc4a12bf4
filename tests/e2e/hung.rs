//! A process in uninterruptible sleep (state `D`) cannot be ended by anybody: it is named with that reason, stays visible,
//! nothing starts beside it, and when it has ended at last the service is stopped.
//!
//! The processes wait for a file system whose server has taken their request and does not answer, as with a network file
//! system. Only root can mount one.

use std::fs::{self, File};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use locald_utils::process::{self, ProcessId, ProcessState};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use crate::support::{Site, send, zoo};

/// A mounted file system that answers nothing, `hung` beside the project, until it is dropped.
struct HungMount<'a> {
    server: Child,
    site: &'a Site,
}

impl<'a> HungMount<'a> {
    /// Mounts it. `None` where that cannot be done.
    fn on(site: &'a Site) -> Option<Self> {
        let dir = site.root().join("hung");
        fs::create_dir_all(&dir).expect("a directory");
        // What is there when nothing is mounted: a file on which one waits as well, and can be ended.
        nix::unistd::mkfifo(&dir.join("file"), Mode::S_IRWXU).expect("a fifo");
        let [said, complaints] = ["hung.out", "hung.err"].map(|name| site.root().join(name));
        let mut server = Command::new(zoo());
        // It serves from elsewhere, and is none of the site's processes.
        server.arg("hung-mount").current_dir("/").stdin(Stdio::piped());
        server.stdout(File::create(said).expect("a file")).stderr(File::create(&complaints).expect("a file"));
        let mut mount = Self { server: server.spawn().expect("the zoo"), site };
        writeln!(mount.server.stdin.as_ref().expect("its input"), "{}", dir.display()).expect("it reads");
        let is_mounted = site.eventually("a mount", || {
            let is_over = mount.server.try_wait().expect("a child").is_some();
            (is_over || mount.said("mounted")).then_some(!is_over)
        });
        if !is_mounted {
            eprintln!("skipped: no FUSE here: {}", fs::read_to_string(complaints).expect("its reason"));
        }
        is_mounted.then_some(mount)
    }

    fn said(&self, line: &str) -> bool {
        let said = fs::read_to_string(self.site.root().join("hung.out")).expect("what it says");
        said.lines().any(|said| said == line)
    }

    /// Whether a request has been taken of anybody.
    fn has_been_asked(&self) -> bool {
        let said = fs::read_to_string(self.site.root().join("hung.out")).expect("what it says");
        said.lines().any(|said| said.ends_with(" waits"))
    }

    /// Waits until a request of this process has been taken. From then on no signal ends it.
    fn await_request_of(&self, process: ProcessId) {
        self.site.eventually("a request", || self.said(&format!("{} waits", process.pid)).then_some(()));
    }
}

impl Drop for HungMount<'_> {
    fn drop(&mut self) {
        // The end of its input: it unmounts by force, and whoever waits gets an error.
        drop(self.server.stdin.take());
        let _ = self.server.wait();
    }
}

/// Demands that a text names the process, its command, and why it is there still.
#[track_caller]
fn names(process: ProcessId, text: &str) {
    for part in [&process.pid.to_string(), "cat ../hung/file", "state D"] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
}

/// Demands that the service cannot be ended: that one process of it sleeps where no signal reaches it, and is named.
#[track_caller]
fn cannot_be_ended(site: &Site, process: ProcessId) {
    let down = site.locald("down").run().code(1).says("of user root");
    names(process, &down.to_string());
    let took = down.took.as_millis();
    assert!((2300..2800).contains(&took), "the grace period of 300 ms and two seconds, and little more: {down}");
    assert_eq!(process::look(process.pid).map(|process| process.state), Some(ProcessState::Uninterruptible));

    let web = site.service("web");
    assert_eq!((&web["state"], &web["failure"]["kind"]), (&"failed".into(), &"survivors".into()), "{web}");
    names(process, &web.to_string());
    names(process, &site.locald("status").run().ok().to_string());
    names(process, &site.locald("up").run().code(1).to_string());
    assert_eq!(site.service("web")["run"], 1);
    assert!(process.is_alive());
}

/// Lets the process end, after which the service is stopped without anybody asking, and can be started and ended.
fn ends_by_itself(site: &Site, mount: HungMount<'_>, process: ProcessId) {
    drop(mount);
    site.await_end(process);
    site.await_state("web", "stopped");
    site.up();
    assert_eq!(site.service("web")["run"], 2);
    site.down();
}

const MEMBER: &str =
    "[services.web]\ncommand = '''\ncat ../hung/file & echo $! > member\nexec sleep 600'''\nstop_grace = '300ms'\n";

#[test]
fn a_member_that_sleeps_uninterruptibly_is_named_and_the_service_is_stopped_when_it_has_ended() {
    let site = Site::new(MEMBER);
    let Some(mount) = HungMount::on(&site) else { return };
    site.up();
    let (member, leader) = (site.await_pid("member"), site.leader("web"));
    mount.await_request_of(member);
    cannot_be_ended(&site, member);
    assert!(!leader.is_alive());
    ends_by_itself(&site, mount, member);
}

#[test]
fn a_leader_that_sleeps_uninterruptibly_is_named_and_the_service_is_stopped_when_it_has_ended() {
    let site = Site::new("[services.web]\ncommand = ['cat', '../hung/file']\nstop_grace = '300ms'\n");
    let Some(mount) = HungMount::on(&site) else { return };
    site.up();
    let leader = site.leader("web");
    mount.await_request_of(leader);
    cannot_be_ended(&site, leader);
    ends_by_itself(&site, mount, leader);
}

#[test]
fn without_a_shim_the_daemon_names_a_member_that_sleeps_uninterruptibly() {
    let site = Site::new(MEMBER);
    let Some(mount) = HungMount::on(&site) else { return };
    site.up();
    let member = site.await_pid("member");
    mount.await_request_of(member);
    let shim = site.recorded("web", "shim", "shim");
    send(shim, Signal::SIGKILL);
    site.await_end(shim);
    cannot_be_ended(&site, member);
    ends_by_itself(&site, mount, member);
}

#[test]
fn the_next_daemon_knows_a_leader_that_sleeps_uninterruptibly_without_its_shim() {
    let site = Site::new("[services.web]\ncommand = ['cat', '../hung/file']\nstop_grace = '300ms'\n");
    let Some(mount) = HungMount::on(&site) else { return };
    site.up();
    let leader = site.leader("web");
    mount.await_request_of(leader);
    for process in [site.daemon(), site.recorded("web", "shim", "shim")] {
        send(process, Signal::SIGKILL);
        site.await_end(process);
    }
    site.locald("daemon start").run().ok();
    cannot_be_ended(&site, leader);
    ends_by_itself(&site, mount, leader);
}

#[test]
fn a_program_on_a_file_system_that_hangs_keeps_the_daemon_from_nothing_else() {
    let site = Site::new(
        "[services.web]\ncommand = ['../hung/program']\nrestart = { policy = \"always\", backoff = \"10ms\", limit = 1000 }\n\
        [services.plain]\ncommand = 'exec sleep 600'\n",
    );
    fs::create_dir(site.root().join("hung")).expect("a directory");
    site.script("../hung/program", "#!/bin/sh\nexec sleep 600\n");
    site.up();
    let first = site.leader("web");
    let Some(mount) = HungMount::on(&site) else { return };
    // It is to be started again, and its program cannot be looked at.
    send(first, Signal::SIGKILL);
    site.eventually("a request", || mount.has_been_asked().then_some(()));
    let within = Duration::from_secs(5);
    site.locald("stop plain").run_within(within).expect("the daemon answers").ok();
    site.locald("start plain").run_within(within).expect("the daemon answers").ok();
    drop(mount);
    let second = site.await_state("web", "ready");
    assert!(second["run"].as_u64() > Some(1), "{second}");
    site.down();
}
