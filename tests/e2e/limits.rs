//! When something has run out: descriptors, processes, memory, or the right to write the ledger. Services go on, what can be
//! done is done, and what cannot says why.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::Instant;

use locald_utils::frame::{self, Decoder};
use locald_utils::process::open_files;
use locald_utils::protocol::Hello;
use locald_utils::record::{self, ShimRecord};
use locald_utils::shim_protocol::{FromShim, PROTOCOL};
use nix::sys::signal::Signal;

use crate::support::{Site, send};

/// Has locald be run with as many descriptors as that.
fn with_descriptors(site: &mut Site, limit: &str) {
    site.run_by(["sh", "-c", &format!("ulimit {limit}; exec \"$@\""), "sh"]);
}

#[test]
fn more_services_than_there_are_descriptors_for_are_refused_with_the_reason_and_all_else_goes_on() {
    let services = (0..40).map(|number| format!("[services.s{number}]\ncommand = 'exec sleep 600'\n"));
    let mut site = Site::new(&services.collect::<String>());
    with_descriptors(&mut site, "-n 128");
    site.locald("up").run().code(1).says("no descriptors are left for another service").says("stop other services");
    let daemon = site.daemon();
    let status = site.locald("status --json").run().ok().json();
    let services = status["services"].as_array().expect("services");
    let are = |state: &str| services.iter().filter(|service| service["state"] == state).count();
    assert!(are("ready") > 5 && are("ready") + are("failed") == 40, "{status}");
    // More who ask than there is room for: those that leave make room for the others.
    let clients: Vec<_> = (0..100).map(|_| UnixStream::connect(site.home().join("run/daemon.sock"))).collect();
    drop(clients);
    site.locald("status").run().ok();
    assert_eq!(site.daemon(), daemon);
    // There is room again for whoever needs it.
    let named = |state: &'static str| {
        let named = services.iter().filter(move |service| service["state"] == state);
        named.map(|service| service["name"].as_str().expect("a name"))
    };
    let half: Vec<&str> = named("ready").take(are("ready") / 2).collect();
    site.locald(&format!("stop {}", half.join(" "))).run().ok();
    site.locald(&format!("start {}", named("failed").next().expect("one"))).run().ok();
    site.down();
    assert_eq!(site.daemon(), daemon);
}

#[test]
fn services_have_the_limit_of_whoever_started_them_and_the_daemon_has_what_it_needs() {
    let mut site = Site::new("[services.web]\ncommand = 'ulimit -Sn; exec sleep 600'\n");
    with_descriptors(&mut site, "-Sn 200");
    site.up();
    site.eventually("the limit", || site.log("web").starts_with(b"200").then_some(()));
    #[cfg(target_os = "linux")]
    {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", site.daemon().pid)).expect("limits");
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("such a limit");
        let soft: u64 = line.split_whitespace().nth(3).expect("a soft limit").parse().expect("a number");
        assert!(soft > 200, "{line}");
    }
    site.locald("doctor").run().says("200, may be raised");
    site.down();
    // Started in the foreground it raises its own limit and no service's, too.
    site.locald("daemon stop").run().ok();
    let daemon = site.locald("daemon run").start();
    site.eventually("a daemon", || (site.locald("daemon status").run().exit() == Some(0)).then_some(()));
    site.up();
    let is_twice = |log: &[u8]| String::from_utf8_lossy(log).lines().filter(|line| line.trim() == "200").count() == 2;
    site.eventually("the limit", || is_twice(&site.log("web")).then_some(()));
    site.locald("daemon stop --all").run().ok();
    daemon.finish();
}

/// A client of the daemon that has said hello.
fn client(site: &Site) -> UnixStream {
    let mut stream = UnixStream::connect(site.home().join("run/daemon.sock")).expect("connects");
    stream.write_all(&frame::encode(&Hello::new()).expect("JSON")).expect("writes");
    frame::read_message::<Hello>(&mut stream, &mut Decoder::default()).expect("an answer").expect("a hello");
    stream
}

#[test]
fn a_thousand_idle_clients_are_in_nobodys_way_and_leave_nothing_behind() {
    open_files::raise();
    let site = Site::new("[services.web]\ncommand = 'exec sleep 600'\n");
    site.up();
    #[cfg(target_os = "linux")]
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", site.daemon().pid)).expect("descriptors").count();
    #[cfg(target_os = "linux")]
    let before = descriptors();
    // Fewer only where a process may not have that many descriptors; a quarter of them is for clients.
    let count = (open_files::limit() / 4).saturating_sub(10).min(1000);
    let idle: Vec<UnixStream> = (0..count).map(|_| client(&site)).collect();
    site.locald("status").run().ok().says("ready");
    site.locald("restart web").run().ok();
    drop(idle);
    #[cfg(target_os = "linux")]
    site.eventually("as few descriptors as before", || (descriptors() <= before).then_some(()));
    site.down();
}

/// Says hello as the shim of a run, and hangs up.
fn hang_up(mut stream: UnixStream, record: &ShimRecord) {
    let hello = FromShim::Hello {
        protocol: PROTOCOL,
        version: record.version.clone(),
        run: record.run.clone(),
        shim: record.shim,
    };
    let mut buffer = [0; 4096];
    // Whoever connected has said something by then, or gone.
    if stream.read(&mut buffer).is_ok_and(|count| count > 0) {
        let _ = stream.write_all(&frame::encode(&hello).expect("JSON"));
    }
}

#[test]
fn a_shim_that_hangs_up_again_and_again_is_asked_ever_more_seldom_and_costs_the_daemon_nothing() {
    let site = Site::new("[services.web]\ncommand = 'exec sleep 600'\n[services.db]\ncommand = 'exec sleep 600'\n");
    site.up();
    let web = site.leader("web");
    let record: ShimRecord = record::load(&site.service_dir("web"), record::SHIM).expect("a record").expect("a run");
    let daemon = site.daemon();
    send(daemon, Signal::SIGKILL);
    site.await_end(daemon);
    let aside = record.socket.with_extension("aside");
    std::fs::rename(&record.socket, &aside).expect("moves");
    let listener = UnixListener::bind(&record.socket).expect("listens");
    let (told, connections) = mpsc::channel();
    let (socket, began) = (record.socket.clone(), Instant::now());
    let impostor = std::thread::spawn(move || {
        for number in 1..=6 {
            let (stream, _) = listener.accept().expect("a connection");
            // Before the daemon begins to wait.
            told.send((number, began.elapsed())).expect("somebody listens");
            hang_up(stream, &record);
        }
        std::fs::rename(aside, socket).expect("moves");
    });
    site.locald("daemon start").run().ok();
    let daemon = site.daemon();
    site.await_state("db", "ready");
    let (_, first) = connections.recv().expect("a connection");
    let (number, last) = connections.iter().last().expect("more of them");
    // 50, 100, 200, 400 and 800 ms.
    assert!(number == 6 && (last - first).as_millis() >= 1550, "{number} connections within {:?}", last - first);
    impostor.join().expect("no panic");
    site.await_state("web", "ready");
    assert_eq!((site.daemon(), site.leader("web")), (daemon, web));
    site.down();
}

#[cfg(target_os = "linux")]
mod on_linux {
    use std::process::Command;

    use locald_utils::process::{self, ProcessId};
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;

    use super::*;
    use crate::support::zoo;

    /// As `site`, run by somebody of whom processes are counted: not root.
    fn of_a_user(toml: &str, user: u32) -> Site {
        let mut site = Site::new(toml);
        if nix::unistd::geteuid().is_root() {
            site.belong_to(user);
        }
        site
    }

    /// Lowers a limit of a process, as its own user: not every root may do that to others.
    fn limit(process: ProcessId, limit: &str) {
        let uid = process::look(process.pid).expect("it runs").uid.to_string();
        let mut command = Command::new("prlimit");
        if nix::unistd::geteuid().is_root() && uid != "0" {
            command = Command::new(zoo());
            command.args(["as", &uid, &uid, "prlimit"]);
        }
        let status = command.arg("--pid").arg(process.pid.to_string()).arg(limit).status();
        assert!(status.expect("prlimit(1)").success());
    }

    #[test]
    fn a_stop_needs_no_process_and_a_start_says_that_there_is_none() {
        let toml = "[services.web]\ncommand = 'exec sleep 600'\nstop_command = 'true'\n\
                    [services.db]\ncommand = 'exec sleep 600'\n[services.late]\ncommand = 'exec sleep 600'\n";
        let site = of_a_user(toml, 61_011);
        site.locald("up web db").run().ok();
        let daemon = site.daemon();
        for process in [daemon, site.recorded("web", "shim", "shim"), site.recorded("db", "shim", "shim")] {
            limit(process, "--nproc=1:1");
        }
        let late = site.locald("start late").run().code(1).says("Resource temporarily unavailable");
        late.says("you may not have more processes (`ulimit -u`)");
        let web = site.leader("web");
        site.locald("stop web").run().ok().says("web  stopped");
        assert!(!web.is_alive());
        assert!(String::from_utf8_lossy(&site.log("web")).contains("stop_command could not be started"));
        assert_eq!(site.daemon(), daemon);
        site.down();
    }

    #[test]
    fn a_daemon_that_gets_no_memory_ends_and_the_next_one_goes_on() {
        let site = Site::new("[services.web]\ncommand = 'exec sleep 600'\n");
        site.up();
        let (daemon, web) = (site.daemon(), site.leader("web"));
        limit(daemon, "--as=1:1");
        // The longest message that is taken needs more than it has in hand.
        let mut greedy = client(&site);
        let _ = greedy.write_all(&u32::to_be_bytes(8 << 20)).and_then(|()| greedy.write_all(&vec![0; 8 << 20]));
        site.await_end(daemon);
        site.up().says("1 service already running");
        assert!(site.daemon() != daemon);
        assert_eq!(site.leader("web"), web);
        site.down();
    }

    #[test]
    fn a_ledger_that_somebody_else_has_locked_keeps_no_service_from_ending_and_no_exit_from_being_told() {
        let site = Site::new(
            "[services.web]\ncommand = 'exec sleep 600'\n[services.db]\ncommand = 'exec sleep 600'\n\
             [services.late]\ncommand = 'exec sleep 600'\n",
        );
        site.locald("up web db").run().ok();
        // What a writer holds: byte 120 of the file beside it (WAL_WRITE_LOCK, https://sqlite.org/walformat.html).
        let shared = std::fs::File::options().read(true).write(true).open(site.home().join("ledger.db-shm"));
        let shared = shared.expect("a ledger");
        let lock = |kind: i32| libc::flock {
            l_type: i16::try_from(kind).expect("small"),
            l_whence: i16::try_from(libc::SEEK_SET).expect("small"),
            l_start: 120,
            l_len: 1,
            l_pid: 0,
        };
        fcntl(&shared, FcntlArg::F_SETLKW(&lock(libc::F_WRLCK))).expect("locks");
        site.locald("start late").run().code(1).says("ledger.db cannot be used: database is locked");
        let web = site.leader("web");
        site.locald("stop web").run().ok();
        assert!(!web.is_alive());
        let status = site.locald("status --json").run().ok().json();
        assert_eq!(crate::support::service_of(&status, "db")["state"], "ready");
        site.eventually("the ledger to be given up for this end", || {
            let log = std::fs::read_to_string(site.home().join("daemon.log")).expect("a log");
            log.contains("could not record an exit").then_some(())
        });
        fcntl(&shared, FcntlArg::F_SETLK(&lock(libc::F_UNLCK))).expect("unlocks");
        site.locald("start late").run().ok();
        site.down();
        // What could not be written when it happened is kept until it can.
        let ends = |service: &str| {
            let records = std::fs::read_dir(site.service_dir(service)).expect("a directory");
            let names = records.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
            names.filter(|name| name.starts_with("exit.")).count()
        };
        site.eventually("the end of db on record", || (ends("db") == 0).then_some(()));
        assert_eq!(ends("web"), 1);
        site.locald("daemon stop").run().ok();
        site.locald("daemon start").run().ok();
        site.eventually("the end of the run on record", || (ends("web") == 0).then_some(()));
    }

    /// A small file system at a directory. It is taken away with this.
    struct SmallDisk(std::path::PathBuf);

    impl SmallDisk {
        fn at(dir: &std::path::Path) -> Self {
            std::fs::create_dir_all(dir).expect("a directory");
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some("size=8m,mode=700")).expect("mounts");
            Self(dir.to_owned())
        }

        /// Fills it to the last byte.
        fn fill(&self) -> std::path::PathBuf {
            let path = self.0.join("fill");
            let mut file = std::fs::File::create(&path).expect("creates");
            for size in [1 << 16, 1] {
                while std::io::Write::write_all(&mut file, &vec![b'x'; size]).is_ok() {}
            }
            path
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        }
    }

    // The daemon used to end by a panic: what it could not write to its log was told on stderr, which is the same file.
    #[test]
    fn a_disk_that_is_full_ends_no_daemon_and_keeps_no_service_from_ending() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let site = Site::new("[services.web]\ncommand = 'exec sleep 600'\n[services.db]\ncommand = 'exec sleep 600'\n");
        let disk = SmallDisk::at(&site.home());
        site.up();
        let (daemon, web) = (site.daemon(), site.leader("web"));
        let fill = disk.fill();
        send(web, Signal::SIGKILL);
        site.await_state("web", "failed");
        // Until its log has no room either in what it has of the disk already.
        let told: Vec<_> = (0..30).map(|_| site.locald("start web").run().code(1).to_string()).collect();
        assert!(told.iter().any(|told| told.contains("is full: make room there")), "{told:?}");
        site.locald("stop db").run().ok();
        assert_eq!(site.daemon(), daemon);
        site.assert_no_service_is_left();
        // Nor does it keep another daemon from saying why it cannot be.
        site.locald("daemon stop").run().ok();
        site.locald("daemon start").run().code(1).says("is full: make room there").says_nothing_of("move it away");
        std::fs::remove_file(fill).expect("removes");
        site.up();
        site.down();
        site.locald("daemon stop").run().ok();
        drop(disk);
    }
}
