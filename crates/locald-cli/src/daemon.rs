//! Starting the daemon when there is something for it to do, and telling whether anything may run without one.
//!
//! The daemon is started by exec, away from the terminal of whoever started it, and says over a pipe how it went. A
//! pipe that ends without a word means it crashed; then its log is shown.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use locald_utils::paths::Home;
use locald_utils::process::mark::{self, SUPERVISOR_MARKER};
use locald_utils::process::{self, ProcessId, RUN_MARKER, SERVICE_MARKER, Spawn, open_files};
use locald_utils::protocol::{DaemonStart, Failure, FailureCode, Hello};
use locald_utils::record;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::client::Client;
use crate::failure;
use crate::screen::Screen;

/// The daemon's program, installed beside this one.
const PROGRAM: &str = "locald-server";

/// Has a daemon take the place of one that is older.
const SUCCEED: &str = "--succeed";

/// The descriptor on which the daemon says how its start went.
const READY_FD: i32 = 3;

/// 10 s: a daemon starts in 30 ms; one that has to repair its ledger on a slow disk may need longer.
const START_LIMIT: Duration = Duration::from_secs(10);

/// 2 s: for another daemon, which holds the lock, to listen or to leave.
const LOCK_LIMIT: Duration = Duration::from_secs(2);

/// 20 s: for a lock that no process which runs holds. A daemon that was killed keeps it until a disk under load has answered each
/// of its threads.
const DEAD_LOCK_LIMIT: Duration = Duration::from_secs(20);

/// 1 s: a process that does nothing but fork ends within a millisecond.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// Lines of its log that are shown when a daemon did not start.
const LOG_LINES: usize = 10;

/// Connects to the daemon of `home`, and starts one if there is none.
///
/// # Errors
/// Why it cannot be started, or cannot be reached.
pub(crate) fn connect_or_start(home: &Home, screen: &mut Screen) -> Result<Client, Failure> {
    home.prepare().map_err(|error| failure::home(&error))?;
    let found = Client::connect_to_any(home)?;
    insist(home, found, screen)
}

/// Goes on with the daemon that was found, or starts one, until there is one of this version or one that will do.
fn insist(home: &Home, mut found: Option<Client>, screen: &mut Screen) -> Result<Client, Failure> {
    let started = Instant::now();
    let mut began = started;
    let mut pause = Duration::from_millis(2);
    let mut is_settled = false;
    loop {
        if let Some(client) = found {
            let daemon = client.daemon();
            screen.mention(&format!("daemon: pid {}, locald {}", daemon.pid, daemon.version));
            if daemon.is_older() && !is_settled {
                is_settled = succeed(home, client, screen)? || started.elapsed() > LOCK_LIMIT;
                began = Instant::now();
                found = Client::connect_to_any(home)?;
                continue;
            }
            return client.checked().map(Client::needed);
        }
        let holder = match start_daemon(home, &[])? {
            DaemonStart::Ready { pid } => {
                screen.mention(&format!("started a daemon: pid {pid}"));
                Some(pid)
            }
            DaemonStart::AlreadyRunning { pid } => pid,
            DaemonStart::Failed { failure } => return Err(failure),
        };
        found = Client::connect_to_any(home)?;
        if found.is_some() {
            continue;
        }
        if began.elapsed() > if holder.is_some() { LOCK_LIMIT } else { DEAD_LOCK_LIMIT } {
            return Err(unreachable(home, holder));
        }
        // Another daemon is between taking its lock and listening, or between closing its socket and leaving. Neither
        // makes an event that a stranger could wait for.
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Has a daemon of this version take the place of an older one. If it cannot, the older one goes on, as far as it is understood.
///
/// False when somebody else has started a daemon meanwhile, which may be an older one again: whoever waited for an answer of the
/// one that has left, and is older too, is sometimes faster.
fn succeed(home: &Home, older: Client, screen: &mut Screen) -> Result<bool, Failure> {
    let Hello { version, pid: older_pid, .. } = older.daemon().clone();
    let start = start_daemon(home, &[SUCCEED]);
    let failure = match start {
        Ok(DaemonStart::Ready { pid }) => {
            let own = env!("CARGO_PKG_VERSION");
            screen.note(&format!(
                "locald {own} has taken over from locald {version} (daemon: pid {pid}); services run on"
            ));
            return Ok(true);
        }
        Ok(DaemonStart::AlreadyRunning { .. }) => return Ok(false),
        Ok(DaemonStart::Failed { failure }) | Err(failure) => failure,
    };
    older.checked().map_err(|_| failure.clone())?;
    let is_there = Client::connect_to_any(home)?.is_some_and(|client| client.daemon().pid == older_pid);
    if !is_there {
        return Err(failure);
    }
    screen.note(&format!("the daemon is still locald {version}, because this version could not take over: {failure}"));
    Ok(true)
}

/// Has another daemon go on with a request whose daemon went away. One is started if nobody else does it.
///
/// # Errors
/// Those of [`connect_or_start`].
pub(crate) fn go_on(client: &mut Client) -> Result<(), Failure> {
    let home = client.home().clone();
    let next = connect_or_start(&home, &mut Screen::silent())?;
    client.go_on_with(next)
}

/// Connects to the daemon if there is one, or if something may run that only a daemon can end or judge.
///
/// Runs survive their daemon. A `down` that took "no daemon" for "nothing runs" would leave them behind.
///
/// # Errors
/// Those of [`connect_or_start`].
pub(crate) fn connect_if_anything_runs(home: &Home, screen: &mut Screen) -> Result<Option<Client>, Failure> {
    match Client::connect_to_any(home)? {
        None if leaves_runs(home) => connect_or_start(home, screen).map(Some),
        None => Ok(None),
        found => insist(home, found, screen).map(Some),
    }
}

/// Whether a shim has left its record behind: it runs, or was killed and may have left its service running.
pub(crate) fn leaves_runs(home: &Home) -> bool {
    home.record_dirs().iter().any(|dir| dir.join(record::SHIM).exists())
}

fn unreachable(home: &Home, holder: Option<u32>) -> Failure {
    let who = holder.map_or("another daemon".to_owned(), |pid| format!("a daemon (pid {pid})"));
    let message = format!("{who} holds {} and cannot be reached", home.daemon_lock().display());
    let hint = format!("its log may say why: {}", home.daemon_log().display());
    Failure::new(FailureCode::TimedOut, message).hint(hint)
}

/// Starts a daemon and waits until it says how that went.
fn start_daemon(home: &Home, words: &[&str]) -> Result<DaemonStart, Failure> {
    let program = program()?;
    let log_before = home.daemon_log().metadata().map_or(0, |meta| meta.len());
    let mut is_first = true;
    let word = loop {
        let (ready, started) = spawn(home, &program, words).map_err(|error| {
            failure::io(format_args!("start {}", program.display()), &error)
                .hint("`locald daemon run` starts the daemon in the foreground")
        })?;
        let word = read_word(ready).map_err(|error| failure::io("learn how the daemon started", &error))?;
        forget(started);
        // One that was killed before it could say a word is no reason to give up; one that always ends so is.
        if word.is_some() || !std::mem::replace(&mut is_first, false) {
            break word;
        }
    };
    match word {
        Some(line) => serde_json::from_str(&line).map_err(|error| {
            let message = format!("{} said something that is not understood: {error}", program.display());
            Failure::new(FailureCode::Protocol, message)
        }),
        None => Err(crashed(home, log_before)),
    }
}

/// Reaps what was started, which on Linux has left the daemon to itself before that could say anything: before a service is
/// started, whoever called this program is no ancestor of it.
fn forget(started: i32) {
    if cfg!(target_os = "linux")
        && let Some(process) = ProcessId::of(started)
    {
        // One that does not end is the daemon, and goes on after this process.
        let _ = process::await_exit(process, LEAVE_LIMIT);
    }
    let _ = waitpid(Pid::from_raw(started), Some(WaitPidFlag::WNOHANG));
}

/// Spawns the daemon in a session of its own: harmless descriptors 0 and 1, its log as 2, the pipe as 3. Returns the
/// pipe's read end, and the number of what was started.
///
/// The daemon itself leaves the working directory and closes what else it may have inherited.
fn spawn(home: &Home, program: &Path, words: &[&str]) -> io::Result<(OwnedFd, i32)> {
    let (reader, writer) = io::pipe()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let log = File::options().append(true).create(true).mode(0o600).open(home.daemon_log())?;
    // A daemon that is started from within a run is none of it, and carries the mark of those who look after runs instead.
    let env = std::env::vars_os().filter(|(name, _)| name != RUN_MARKER && name != SERVICE_MARKER);
    let env = env.chain([(SUPERVISOR_MARKER.into(), mark::supervisor(home.state()).to_owned())]);
    let spawn = Spawn::new(program).arg("--ready-fd").arg(READY_FD.to_string()).env(env);
    let spawn = words.iter().fold(spawn, |spawn, word| spawn.arg(word));
    let spawn = spawn.descriptor(&null, 0)?.descriptor(&null, 1)?.descriptor(&log, 2)?.descriptor(&writer, READY_FD)?;
    // What a person has chosen is for services to inherit.
    let started = open_files::with_original(|| spawn.start())?;
    Ok((reader.into(), started))
}

/// Reads the one line a new daemon writes. `None` when it ended without one.
fn read_word(pipe: OwnedFd) -> io::Result<Option<String>> {
    let until = Instant::now() + START_LIMIT;
    let mut pipe = File::from(pipe);
    let mut line = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "it said nothing within 10 s")),
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let mut bytes = [0; 4096];
        let count = pipe.read(&mut bytes)?;
        line.extend_from_slice(&bytes[..count]);
        if count == 0 || line.contains(&b'\n') {
            break;
        }
    }
    let text = String::from_utf8_lossy(&line);
    Ok(text.lines().next().filter(|line| !line.trim().is_empty()).map(str::to_owned))
}

/// Makes the failure of a daemon that ended without a word, with what it wrote to its log.
fn crashed(home: &Home, log_before: u64) -> Failure {
    let log = home.daemon_log();
    let written = std::fs::read(&log).unwrap_or_default();
    let new = written.get(usize::try_from(log_before).unwrap_or(0)..).unwrap_or(&written);
    let text = String::from_utf8_lossy(new);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|line| format!("\n  | {line}"));
    let message = format!("the daemon ended before it could listen{}", tail.collect::<String>());
    Failure::new(FailureCode::Failed, message).hint(format!("its whole log: {}", log.display()))
}

/// Finds the daemon's program beside this one, whether this one was called by its name or through a symlink.
///
/// # Errors
/// [`FailureCode::Failed`] when it is in neither place.
pub(crate) fn program() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().map_err(|error| failure::io("find out where locald is installed", &error))?;
    let real = own.canonicalize().unwrap_or_else(|_| own.clone());
    let beside = [real, own].map(|path| path.with_file_name(PROGRAM));
    match beside.iter().find(|path| path.is_file()) {
        Some(program) => Ok(program.clone()),
        None => {
            let message = format!("the daemon's program is missing: {}", beside[0].display());
            Err(Failure::new(FailureCode::Failed, message).hint("install locald again; it consists of three programs"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn word(written: &[u8]) -> Option<String> {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        writer.write_all(written).expect("writes");
        drop(writer);
        read_word(reader.into()).expect("reads")
    }

    #[test]
    fn the_first_line_counts_and_an_end_without_one_is_told_apart() {
        assert_eq!(word(b"{\"ready\":{\"pid\":7}}\n"), Some("{\"ready\":{\"pid\":7}}".into()));
        assert_eq!(word(b""), None);
        assert_eq!(word(b"\n"), None);
    }

    #[test]
    fn the_line_is_read_although_the_daemon_keeps_the_pipe_open() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        writer.write_all(b"{}\n").expect("writes");
        assert_eq!(read_word(reader.into()).expect("reads"), Some("{}".into()));
    }

    #[test]
    fn a_crash_shows_what_the_daemon_wrote_this_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::under(dir.path());
        home.prepare().expect("prepares");
        std::fs::write(home.daemon_log(), "old\npanicked: no disk\n").expect("writes");
        let failure = crashed(&home, 4);
        assert_eq!(failure.message, "the daemon ended before it could listen\n  | panicked: no disk");
        assert_eq!(failure.code, FailureCode::Failed);
    }

    #[test]
    fn a_shims_record_is_a_sign_of_something_that_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::under(dir.path());
        assert!(!leaves_runs(&home));
        home.prepare().expect("prepares");
        assert!(!leaves_runs(&home));
        let service = home.projects().join("shop-0123/services/web");
        std::fs::create_dir_all(&service).expect("mkdir");
        std::fs::write(locald_utils::log::data_path(&service, 1), "over").expect("writes");
        assert!(!leaves_runs(&home));
        std::fs::write(service.join(record::SHIM), "").expect("writes");
        assert!(leaves_runs(&home));
    }
}
