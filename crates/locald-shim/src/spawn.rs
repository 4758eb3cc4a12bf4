//! Starting the leader: its terminal, and the exec helper at its gate.
//!
//! The helper does everything between spawn and exec in a fresh image; this side only hands it a plan and three
//! descriptors, hears how far it came, and opens the gate. A fresh image takes its time, so the leader's comes up before
//! there is a plan, beside all else that a start needs.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use locald_utils::frame;
use locald_utils::name::RunId;
use locald_utils::process::cgroup::Cgroup;
use locald_utils::process::{self, PROBE_MARKER, ProcessId, Spawn, descriptors, sys};
use locald_utils::record::{StartFailure, StartStage};
use locald_utils::spec::{Environment, Invocation};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use portable_pty::{PtySize, native_pty_system};
use serde::{Deserialize, Serialize};

use crate::{HELPER_ROLE, set_nonblocking};

/// The descriptor on which the helper talks to the shim.
pub(crate) const HELPER_FD: i32 = 3;

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
    /// The number at which the program finds what it is to say that it is ready on: the fourth descriptor.
    pub(crate) notification: Option<i32>,
}

/// What a helper is told, together with its descriptors.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// What it is to become.
    pub(crate) plan: Plan,
    /// The cgroup it has to enter first.
    pub(crate) enter: Option<PathBuf>,
    /// Whether it has stood by: then a new process becomes the program, which is as old as its run.
    pub(crate) anew: bool,
}

/// What a helper says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FromHelper {
    /// Everything but the exec is done; this process waits at the gate.
    Ready(i32),
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
    /// The cgroup that it belongs to, when it could not be started there.
    enter: Option<PathBuf>,
    /// Until there is nothing more to hear.
    stream: Option<UnixStream>,
    decoder: frame::Decoder,
}

/// The leader's helper before there is a plan for it, and the cgroup of the run.
pub(crate) struct Spare {
    helper: io::Result<Helper>,
    cgroup: Option<Cgroup>,
    /// Whether it has waited for long.
    is_aged: bool,
}

impl Spare {
    /// Makes the cgroup, and starts a helper there. What keeps it from that is told by [`Spare::take`].
    pub(crate) fn bring_up(cgroup: Option<PathBuf>) -> Self {
        // Where none can be made the run has none.
        let cgroup = cgroup.map(Cgroup::at).filter(|cgroup| cgroup.make().is_ok());
        Self { helper: Helper::bring_up(cgroup.as_ref(), None), cgroup, is_aged: false }
    }

    /// The same after a long time, in which the helper may have been killed, or stopped.
    pub(crate) fn aged(self) -> Self {
        match self.helper {
            Ok(helper) if !helper.has_hung_up() => {
                let _ = process::signal(helper.process, Signal::SIGCONT);
                Self { helper: Ok(helper), is_aged: true, ..self }
            }
            gone => {
                if let Ok(helper) = gone {
                    helper.dismiss();
                }
                Self { helper: Helper::bring_up(self.cgroup.as_ref(), None), ..self }
            }
        }
    }

    /// Hands the helper its plan, and its descriptors. `notification` goes with the number in the plan.
    pub(crate) fn take(
        self,
        plan: Plan,
        stdio: [BorrowedFd<'_>; 3],
        notification: Option<BorrowedFd<'_>>,
    ) -> io::Result<(Helper, Option<Cgroup>)> {
        match self.helper.and_then(|helper| helper.take(plan, self.is_aged, stdio, notification)) {
            Ok(helper) => Ok((helper, self.cgroup)),
            Err(error) => {
                remove(self.cgroup);
                Err(error)
            }
        }
    }

    /// Nothing comes of the run: ends the helper, and takes the cgroup away.
    pub(crate) fn dismiss(self) {
        if let Ok(helper) = self.helper {
            helper.dismiss();
        }
        remove(self.cgroup);
    }
}

/// Takes a cgroup away, if there is one.
pub(crate) fn remove(cgroup: Option<Cgroup>) {
    if let Some(cgroup) = cgroup {
        cgroup.remove();
    }
}

/// How far a helper has come.
pub(crate) enum Progress {
    /// Nothing new.
    Waiting,
    /// It waits at the gate, as this process.
    Ready(i32),
    /// It has become the program.
    Running,
    /// It could not.
    Failed(StartFailure),
}

impl Helper {
    /// Starts a helper in this cgroup, and hands it the plan and its descriptors 0, 1 and 2.
    pub(crate) fn start(plan: Plan, cgroup: Option<&Cgroup>, stdio: [BorrowedFd<'_>; 3]) -> io::Result<Self> {
        let marker = plan.environment.get_key_value(PROBE_MARKER);
        let marker = marker.map(|(name, value)| (name.into(), value.as_os_str().to_owned()));
        Self::bring_up(cgroup, marker)?.take(plan, false, stdio, None)
    }

    /// Starts a helper that waits for its plan. It ends when the shim does. With the marker of a probe it is known for one from the
    /// start.
    fn bring_up(cgroup: Option<&Cgroup>, marker: Option<(OsString, OsString)>) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        // Descriptors 0 to 2 come with the plan; until then the program's runtime opens what is closed.
        let (pid, is_inside) = Spawn::new(process::own_executable()?)
            .cgroup(cgroup.map(Cgroup::dir))
            .arg0("locald-exec")
            .arg(HELPER_ROLE)
            .env(marker)
            .descriptor(theirs, HELPER_FD)?
            .start_anywhere()?;
        let process = ProcessId::of(pid).ok_or_else(|| io::Error::other("the helper vanished"))?;
        let enter = cgroup.filter(|_| !is_inside).map(|cgroup| cgroup.dir().to_owned());
        Ok(Self { process, enter, stream: Some(ours), decoder: frame::Decoder::default() })
    }

    /// Hands it the plan, and its descriptors. `notification` goes with the number in the plan.
    fn take(
        mut self,
        plan: Plan,
        anew: bool,
        stdio: [BorrowedFd<'_>; 3],
        notification: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let order = Order { plan, enter: self.enter.take(), anew };
        match self.tell(&order, stdio, notification) {
            Ok(()) => Ok(self),
            Err(error) => {
                self.dismiss();
                Err(error)
            }
        }
    }

    fn tell(
        &mut self,
        order: &Order,
        stdio: [BorrowedFd<'_>; 3],
        notification: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        let handed: Vec<_> = stdio.into_iter().chain(notification).collect();
        descriptors::send(&*stream, b"d", &handed)?;
        // The helper reads at once, so a plan larger than the socket's buffer does not stall.
        frame::write_message(stream, order)?;
        stream.set_nonblocking(true)
    }

    /// Whether the other end of its stream is closed.
    fn has_hung_up(&self) -> bool {
        let Some(stream) = &self.stream else { return true };
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    }

    /// Ends it, and waits until it has ended.
    fn dismiss(self) {
        let _ = process::signal(self.process, Signal::SIGKILL);
        let _ = waitpid(Pid::from_raw(self.process.pid), None);
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
            Ok(Some(FromHelper::Ready(pid))) => return Progress::Ready(pid),
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
