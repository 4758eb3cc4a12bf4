//! A terminal with a program in it, as a person at a window has it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use locald_utils::process::{ProcessId, Spawn, sys};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::{Site, call, identity, zoo};

/// A terminal, and the leader of the session in it.
pub(crate) struct Terminal {
    pub(crate) process: ProcessId,
    master: File,
    shown: Arc<Mutex<Vec<u8>>>,
    /// Dropped, it ends the reader.
    hold: Option<io::PipeWriter>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    /// Opens a terminal and runs a program in it, in the project, with the test's environment.
    pub(crate) fn open(site: &Site, program: &str, args: &[&str]) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).expect("a terminal");
        for end in [&pair.master, &pair.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("a flag");
        }
        let environment = call::environment(site).into_iter().chain([("TERM", "xterm".into())]);
        // In a session of its own, and with signals at their defaults even if the tests run under nohup(1).
        let command = Spawn::new(zoo())
            .env(environment.map(|(name, value)| (name.into(), value.into())))
            .arg("terminal")
            .arg(nix::unistd::ttyname(&pair.slave).expect("a name"))
            .arg(site.project())
            .arg(program);
        let command = args.iter().fold(command, |command, arg| command.arg(arg));
        let process = identity(command.start().expect("a child"));
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (stop, hold) = io::pipe().expect("a pipe");
        let (master, sink) = (File::from(pair.master), shown.clone());
        let source = master.try_clone().expect("a duplicate");
        // The slave is kept until the first program has it: a terminal without one reads as ended.
        let reader = thread::spawn(move || read(source, pair.slave, &stop, &sink));
        Self { process, master, shown, hold: Some(hold), reader: Some(reader) }
    }

    /// Opens a terminal with `locald` in it.
    pub(crate) fn locald(site: &Site, words: &str) -> Self {
        Self::open(site, env!("CARGO_BIN_EXE_locald"), &words.split_whitespace().collect::<Vec<_>>())
    }

    /// What it has shown so far.
    pub(crate) fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("no panic")).into_owned()
    }

    /// Types.
    pub(crate) fn types(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("types");
    }

    /// Its mode, which both ends share.
    pub(crate) fn mode(&self) -> Termios {
        tcgetattr(&self.master).expect("a terminal")
    }

    /// Makes the window another size: rows and columns.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        sys::set_window_size(&self.master, (rows, columns)).expect("a terminal");
    }

    /// Closes the window: the last descriptor of the master goes, and the kernel hangs up. Waits for the session leader.
    pub(crate) fn close(mut self) {
        drop(self.hold.take());
        self.reader.take().expect("closed once").join().expect("no panic");
        drop(self.master);
        assert!(call::has_ended(self.process), "pid {} has outlived its terminal", self.process.pid);
        waitpid(Pid::from_raw(self.process.pid), None).expect("waits");
    }

    /// Waits for the end of the session leader. Returns its exit code.
    pub(crate) fn finish(&mut self) -> Option<i32> {
        assert!(call::has_ended(self.process), "it did not end; the terminal shows:\n{}", self.shown());
        match waitpid(Pid::from_raw(self.process.pid), None).expect("waits") {
            WaitStatus::Exited(_, code) => Some(code),
            _ => None,
        }
    }
}

/// Takes what is written to the terminal, until the terminal or the other end of `stop` is closed.
fn read(mut master: File, slave: OwnedFd, stop: &io::PipeReader, sink: &Mutex<Vec<u8>>) {
    let mut slave = Some(slave);
    let mut buffer = [0; 4096];
    loop {
        let mut fds = [master.as_fd(), stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => panic!("poll: {errno}"),
        }
        let [terminal, stopped] = fds.map(|fd| fd.any().unwrap_or_default());
        if stopped {
            return;
        }
        if terminal {
            match master.read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(count) => sink.lock().expect("no panic").extend_from_slice(&buffer[..count]),
            }
            slave = None;
        }
        let _ = &slave;
    }
}
