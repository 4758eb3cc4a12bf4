//! The daemon: decides what runs, and supervises it.
//!
//! [`main`] tells its story: take the lock, read what an earlier daemon left, listen, take over what runs, serve. The
//! core (`core`) decides and is pure; `supervisor` owns it; an `actor` per run and a `session` per client do the talking.
//! It may be killed at any moment: whatever it must know again is in the ledger or in records on disk.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use locald_utils::fail;
use locald_utils::paths::Home;
use locald_utils::process::cgroup::Hierarchy;
use locald_utils::process::{self, ProcessState, mark, open_files, sys};
use locald_utils::protocol::{DaemonStart, Failure, FailureCode};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

use actor::Context;
use budget::Budget;
use ledger::Ledger;
use shim_program::ShimProgram;
use supervisor::{Message, Supervisor};

mod actor;
mod adoption;
mod budget;
mod checkout;
mod checkup;
mod core;
mod diary;
mod epoch;
mod launch;
mod ledger;
mod lookout;
mod newborn;
mod orphan;
mod probe;
mod reaper;
mod session;
mod shim_link;
mod shim_program;
mod succession;
mod supervisor;
mod view;

/// The descriptor on which whoever started the daemon waits for one [`DaemonStart`].
const READY_FD: i32 = 3;

/// Has the daemon take the place of one that is older.
const SUCCEED: &str = "--succeed";

/// Runs the daemon. Arguments: none, `--ready-fd 3` with or without `--succeed`, or `--version`.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let succeeds = args.last().is_some_and(|last| last == SUCCEED);
    let starter = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => None,
        ["--ready-fd", "3"] | ["--ready-fd", "3", SUCCEED] => {
            // Not to be its starter's descendant is no condition for anything.
            #[cfg(target_os = "linux")]
            let _ = sys::leave_parent();
            sys::inherited(READY_FD).ok().map(File::from)
        }
        ["--version"] => {
            let _ = writeln!(io::stdout(), "locald-server {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        _ => {
            let _ = writeln!(
                io::stderr(),
                "locald-server is started by `locald up`, or by `locald daemon run` in the foreground"
            );
            return ExitCode::from(2);
        }
    };
    let mut starter = Starter(starter);
    match run(&mut starter, succeeds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(start) => {
            starter.tell(&start);
            ExitCode::from(if matches!(start, DaemonStart::AlreadyRunning { .. }) { 3 } else { 1 })
        }
    }
}

/// Whoever started the daemon and waits to hear how that went.
struct Starter(Option<File>);

impl Starter {
    fn tell(&mut self, start: &DaemonStart) {
        let line = match (self.0.take(), start) {
            (Some(mut file), _) => {
                // A starter that has gone does not need to know.
                let _ = serde_json::to_writer(&mut file, start).map(|()| file.write_all(b"\n"));
                return;
            }
            (None, DaemonStart::Ready { .. }) => return,
            (None, DaemonStart::AlreadyRunning { pid: Some(pid) }) => format!("a daemon is running already: pid {pid}"),
            (None, DaemonStart::AlreadyRunning { pid: None }) => "a daemon is running already".to_owned(),
            (None, DaemonStart::Failed { failure }) => match &failure.hint {
                Some(hint) => format!("{failure}\nhint: {hint}"),
                None => failure.to_string(),
            },
        };
        let _ = writeln!(io::stderr(), "locald-server: {line}");
    }
}

fn failed(message: impl Into<String>) -> DaemonStart {
    DaemonStart::Failed { failure: Failure::new(FailureCode::Failed, message.into()) }
}

fn run(starter: &mut Starter, succeeds: bool) -> Result<(), DaemonStart> {
    let home =
        Home::from_env().and_then(|home| home.prepare().map(|()| home)).map_err(|error| failed(error.to_string()))?;
    // No directory of anybody's is kept busy, and no relative path means anything here.
    std::env::set_current_dir("/").map_err(|error| failed(format!("could not change to /: {error}")))?;
    if succeeds {
        succession::take_over(&home)?;
    }
    open_files::raise();
    // Threads here wait for disks; they do not compete for memory.
    sys::share_heap();
    fail::arm("server");
    fail::point("the daemon is to take the lock");
    let _locks = lock(&home)?;
    fail::point("the daemon has the lock");
    diary::start(&home.daemon_log())
        .map_err(|error| failed(format!("could not open {}: {error}", home.daemon_log().display())))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(format!("could not start: {error}")))?;
    let socket = home.daemon_socket();
    let result = LocalSet::new().block_on(&runtime, serve(home, starter));
    // While the lock is held no other daemon has made a socket of this name.
    let _ = std::fs::remove_file(socket);
    result
}

/// Takes the locks that make this daemon the only one of its home; they are held until the process ends.
///
/// The runtime directory's is the one that others meet. The state has one of its own, because two runtime directories
/// may share it: a login without `XDG_RUNTIME_DIR`, or one that was wiped while a daemon ran.
fn lock(home: &Home) -> Result<[Flock<File>; 2], DaemonStart> {
    let runtime = take_lock(&home.daemon_lock())?.map_err(|pid| DaemonStart::AlreadyRunning { pid })?;
    let state = take_lock(&home.state_lock())?.map_err(|pid| {
        let who = pid.map_or_else(|| "another daemon".to_owned(), |pid| format!("another daemon (pid {pid})"));
        let (state, socket) = (home.state().display(), home.daemon_socket());
        let message = format!("{who} uses {state}, and listens somewhere else than {}", socket.display());
        let hint = "is XDG_RUNTIME_DIR the same as where that one was started? `kill` ends it, and no service";
        DaemonStart::Failed { failure: Failure::new(FailureCode::Failed, message).hint(hint) }
    })?;
    Ok([runtime, state])
}

/// Takes one lock and writes our number into its file. An inner error names the process that holds it.
fn take_lock(path: &Path) -> Result<Result<Flock<File>, Option<u32>>, DaemonStart> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(|error| failed(format!("could not open {}: {error}", path.display())))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            // For people and for the error of the next one; nobody trusts it.
            let text = format!("{}\n", std::process::id());
            let _ = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(text.as_bytes()));
            Ok(Ok(lock))
        }
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => Ok(Err(holder(file))),
        Err((_, errno)) => Err(failed(format!("could not lock {}: {errno}", path.display()))),
    }
}

/// Reads who has a lock. Between taking it and writing its number a daemon needs a moment, in which the number is missing, or that
/// of one that has ended.
fn holder(mut file: File) -> Option<u32> {
    const MOMENT: Duration = Duration::from_millis(5);
    const MOMENTS: usize = 400;
    for _ in 0..MOMENTS {
        let mut text = String::new();
        // What cannot be read is not known.
        let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
        let is_daemon = |pid: &i32| {
            let seen = process::look(*pid);
            seen.is_some_and(|seen| seen.name == "locald-server" && seen.state != ProcessState::Zombie)
        };
        let pid = text.trim().parse().ok().filter(is_daemon);
        if let Some(pid) = pid {
            return u32::try_from(pid).ok();
        }
        std::thread::sleep(MOMENT);
    }
    None
}

async fn serve(home: Home, starter: &mut Starter) -> Result<(), DaemonStart> {
    let boot = process::boot_id().map_err(|error| failed(format!("could not learn the boot id: {error}")))?;
    // Whoever it was that started it: a daemon is of no run, and neither is what it starts.
    mark::take_off();
    let cgroups = Hierarchy::of_home(home.state());
    if let Err(error) = process::become_subreaper() {
        tracing::warn!(%error, "orphans of a shim that dies will not come to the daemon");
    }
    let ledger_failed = |error: ledger::LedgerError| ledger_failed(&home, &error);
    let (ledger, epoch) = Ledger::open(&home.ledger(), epoch::load(&home.epoch())).map_err(ledger_failed)?;
    // Before anything is said to a shim.
    epoch::store(&home.epoch(), epoch);
    let inheritance = adoption::look(&home, &ledger, &boot).await.map_err(ledger_failed)?;
    cgroups.iter().for_each(|cgroups| adoption::clear_leaves(cgroups, &inheritance.shims));
    let listener = listen(&home)?;

    let reaper = reaper::Reaper::start().map_err(|error| failed(format!("could not catch signals: {error}")))?;
    let (messages, inbox) = mpsc::unbounded_channel();
    end_on_signals(&messages).map_err(|error| failed(format!("could not catch signals: {error}")))?;
    let (reports, mut hearing) = mpsc::unbounded_channel();
    let log = File::options()
        .append(true)
        .open(home.daemon_log())
        .map_err(|error| failed(format!("could not open the log: {error}")))?;
    let budget = Budget::of(open_files::limit());
    let context = Rc::new(Context {
        checkouts: checkout::Checkouts::new(ledger.clone(), reaper.clone()),
        shim_program: shim_program()?,
        budget: budget.clone(),
        standby: newborn::Standby::default(),
        log: OwnedFd::from(log),
        home,
        cgroups,
        ledger,
        reaper,
        boot,
        epoch,
        reports,
    });
    let mut supervisor = Supervisor::new(context);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), epoch, runs = inheritance.shims.len(), "started");
    supervisor.take_over(inheritance);
    // Clients are greeted at once; what they ask waits until it is known what runs.
    spawn_local(accept(listener, messages, budget));
    starter.tell(&DaemonStart::Ready { pid: std::process::id() });
    let patience = tokio::time::sleep(adoption::PATIENCE);
    tokio::pin!(patience);
    while supervisor.is_adopting() {
        tokio::select! {
            Some(report) = hearing.recv() => supervisor.hear(report),
            () = &mut patience => break,
        }
    }
    supervisor.resume();
    supervisor.run(inbox, hearing).await;
    Ok(())
}

fn ledger_failed(home: &Home, error: &ledger::LedgerError) -> DaemonStart {
    let message = format!("the ledger {} cannot be used: {error}", home.ledger().display());
    let hint = error
        .hint(&home.ledger())
        .unwrap_or_else(|| "move it away to start with an empty one; services that run are not touched".to_owned());
    DaemonStart::Failed { failure: Failure::new(FailureCode::Failed, message).hint(hint) }
}

/// The shim lies beside the daemon.
fn shim_program() -> Result<ShimProgram, DaemonStart> {
    ShimProgram::find().map_err(|error| failed(format!("could not find locald-shim: {error}")))
}

/// Listens at the daemon's socket, in place of one that a dead daemon left.
fn listen(home: &Home) -> Result<UnixListener, DaemonStart> {
    let path = home.daemon_socket();
    // The lock is ours, so whoever made a socket here is gone.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed(format!("could not remove the old socket {}: {error}", path.display())));
        }
        Ok(()) | Err(_) => {}
    }
    UnixListener::bind(&path).map_err(|error| failed(format!("could not listen at {}: {error}", path.display())))
}

/// SIGTERM and SIGINT end the daemon and no service; SIGHUP means nothing to a program without a terminal.
fn end_on_signals(messages: &mpsc::UnboundedSender<Message>) -> io::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let messages = messages.clone();
    spawn_local(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangups.recv() => continue,
            }
            // A supervisor that is gone is what was asked for.
            let _ = messages.send(Message::Terminate);
        }
    });
    Ok(())
}

async fn accept(listener: UnixListener, messages: mpsc::UnboundedSender<Message>, budget: Budget) {
    let mut number = 0;
    loop {
        // More clients than that wait until one leaves.
        let share = budget.client().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                number += 1;
                let session = session::serve(number, stream, messages.clone());
                spawn_local(async move {
                    session.await;
                    drop(share);
                });
            }
            Err(error) => {
                // Clients that leave give some back.
                tracing::error!(%error, "could not accept a client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
