//! Starting the leader: its terminal, and the exec helper at its gate.
//!
//! The helper does everything between spawn and exec in a fresh image; this side only hands it a plan and three
//! descriptors, hears how far it came, and opens the gate.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use locald_utils::frame;
use locald_utils::name::RunId;
use locald_utils::process::{self, ProcessId, Spawn, sys};
use locald_utils::record::{StartFailure, StartStage};
use locald_utils::spec::{Environment, Invocation};
use nix::errno::Errno;
use portable_pty::{PtySize, native_pty_system};
use serde::{Deserialize, Serialize};

use crate::{HELPER_ROLE, set_nonblocking};

/// The descriptor on which the helper talks to the shim.
pub(crate) const HELPER_FD: i32 = 3;

/// The descriptor on which the helper has what the program is to say that it is ready on.
pub(crate) const NOTIFICATION_FD: i32 = 4;

/// 24 rows of 80 columns: the size every program can handle, until somebody attaches with another.
const SIZE: PtySize = PtySize { rows: 24, cols: 80, pixel_width: 0, pixel_height: 0 };

/// What a helper is to become.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// What to execute.
    pub(crate) command: Invocation,
    /// Where to run it.
    pub(crate) workdir: PathBuf,
    /// Its whole environment.
    pub(crate) environment: Environment,
    /// Whether descriptor 0 becomes its controlling terminal.
    pub(crate) takes_terminal: bool,
    /// The run whose marks it carries.
    pub(crate) run: RunId,
    /// The cgroup it has to enter, when it was not started there.
    pub(crate) cgroup: Option<PathBuf>,
    /// The number at which it keeps what it has as [`NOTIFICATION_FD`].
    pub(crate) notification: Option<i32>,
}

/// What a helper says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromHelper {
    /// Everything but the exec is done; it waits at the gate.
    Ready,
    /// A step failed; the helper is gone.
    Failed(StartFailure),
}

/// A run's terminal. The slave is held until the output is drained: macOS throws away what is unread at the last close.
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    pub(crate) slave: OwnedFd,
    /// Its number in the process table.
    pub(crate) number: u64,
}

impl Terminal {
    /// Opens a pseudo terminal whose output comes out byte for byte as it was written.
    pub(crate) fn open() -> io::Result<Self> {
        let pair = native_pty_system().openpty(SIZE).map_err(io::Error::other)?;
        let missing = || io::Error::other("the pseudo terminal has no descriptor or name");
        let master = sys::duplicate(pair.master.as_raw_fd().ok_or_else(missing)?)?;
        let name = pair.master.tty_name().ok_or_else(missing)?;
        let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NOCTTY | nix::fcntl::OFlag::O_CLOEXEC;
        let slave = nix::fcntl::open(&name, flags, nix::sys::stat::Mode::empty())?;
        let mut termios = nix::sys::termios::tcgetattr(&slave)?;
        // Without output processing "\n" stays "\n": the log holds the bytes that the service wrote.
        termios.output_flags.remove(nix::sys::termios::OutputFlags::OPOST);
        #[cfg(target_os = "linux")]
        termios.input_flags.insert(nix::sys::termios::InputFlags::IUTF8);
        nix::sys::termios::tcsetattr(&slave, nix::sys::termios::SetArg::TCSANOW, &termios)?;
        set_nonblocking(&master)?;
        let number = process::terminal_number(&slave)?;
        Ok(Self { master, slave, number })
    }
}

/// A helper on its way to becoming a program. It is a child of the shim.
pub(crate) struct Helper {
    pub(crate) process: ProcessId,
    /// Until there is nothing more to hear.
    stream: Option<UnixStream>,
    decoder: frame::Decoder,
}

/// How far a helper has come.
pub(crate) enum Progress {
    /// Nothing new.
    Waiting,
    /// It waits at the gate.
    Ready,
    /// It has become the program.
    Running,
    /// It could not.
    Failed(StartFailure),
}

impl Helper {
    /// Starts a helper with these descriptors 0, 1 and 2, and hands it the plan. `notification` goes with the number in the plan.
    pub(crate) fn start(
        plan: Plan,
        [stdin, stdout, stderr]: [BorrowedFd<'_>; 3],
        notification: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let (mut ours, theirs) = UnixStream::pair()?;
        let mut spawn = Spawn::new(process::own_executable()?)
            .cgroup(plan.cgroup.as_deref())
            .arg0("locald-exec")
            .arg(HELPER_ROLE)
            .env([])
            .descriptor(stdin, 0)?
            .descriptor(stdout, 1)?
            .descriptor(stderr, 2)?
            .descriptor(theirs, HELPER_FD)?;
        if let Some(notification) = notification {
            spawn = spawn.descriptor(notification, NOTIFICATION_FD)?;
        }
        let (pid, is_inside) = spawn.start_anywhere()?;
        let process = ProcessId::of(pid).ok_or_else(|| io::Error::other("the helper vanished"))?;
        // The helper reads at once, so a plan larger than the socket's buffer does not stall.
        frame::write_message(&mut ours, &Plan { cgroup: plan.cgroup.filter(|_| !is_inside), ..plan })?;
        ours.set_nonblocking(true)?;
        Ok(Self { process, stream: Some(ours), decoder: frame::Decoder::default() })
    }

    /// What to poll for news of it.
    pub(crate) fn listening(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    /// Lets the helper become the program.
    pub(crate) fn open_gate(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Some(stream) => io::Write::write_all(stream, b"g"),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Hears what the helper has to say.
    pub(crate) fn progress(&mut self) -> Progress {
        let Some(stream) = &mut self.stream else { return Progress::Waiting };
        let progress = match frame::read_message::<FromHelper>(stream, &mut self.decoder) {
            Ok(Some(FromHelper::Ready)) => return Progress::Ready,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::Waiting,
            Ok(Some(FromHelper::Failed(failure))) => Progress::Failed(failure),
            // The descriptor closes by a successful exec, and in no other way: a helper that fails says so first.
            // One that was killed is told apart by its exit.
            Ok(None) => Progress::Running,
            Err(error) => Progress::Failed(failure(StartStage::Helper, &error, "could not hear the exec helper")),
        };
        self.stream = None;
        progress
    }
}

/// Makes a failure of an error on the shim's side.
pub(crate) fn failure(stage: StartStage, error: &io::Error, what: &str) -> StartFailure {
    let errno = error.raw_os_error().unwrap_or(0);
    let hint = match Errno::from_raw(errno) {
        Errno::EAGAIN | Errno::ENOMEM => {
            Some("the machine is out of processes or memory; `ulimit -u` shows the limit of processes".to_owned())
        }
        Errno::EMFILE | Errno::ENFILE => Some("the limit of open files is reached; `ulimit -n` shows it".to_owned()),
        Errno::ENOSPC => Some("the disk is full; `df` shows which".to_owned()),
        _ => None,
    };
    StartFailure { stage, errno, path: None, message: format!("{what}: {error}"), hint, permanent: false }
}
