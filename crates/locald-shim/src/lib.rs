//! The shim: carries out one run of a service, and outlives the daemon that asked for it.
//!
//! It has two roles, told apart by its first argument. As the shim it holds the terminal, writes the log, reaps, stops
//! and records: `pump` is its loop. As the `exec_helper` it is the fresh image that becomes the service. It decides
//! nothing about whether a service should run; the daemon does. It has one thread and no timers while nothing happens.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use locald_utils::fail;
use locald_utils::process::{self, ProcessId, open_files, sys};
use locald_utils::record::{self, ShimRecord};
use locald_utils::shim_protocol::{CONTROL_FD, ShimIdentity};

mod end;
mod exec_helper;
mod link;
mod live;
mod output;
mod probe;
mod pump;
mod signs;
mod spawn;
mod start;
mod stop;

/// The argument that makes an exec helper of this program.
const HELPER_ROLE: &str = "exec";
/// The argument that makes a shim of this program; its identity follows.
const SHIM_ROLE: &str = "run";

/// Runs the program in the role that its arguments name.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match args.get(1).and_then(|role| role.to_str()) {
        Some(HELPER_ROLE) => exec_helper::main(),
        Some(SHIM_ROLE) => match args.get(2).and_then(|identity| identity.to_str()).map(serde_json::from_str) {
            Some(Ok(identity)) => run(&identity),
            Some(Err(_)) | None => usage(),
        },
        Some("--version") => {
            say(&format!("locald-shim {}", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
        Some(_) | None => usage(),
    }
}

fn usage() -> ExitCode {
    say(
        "locald-shim is started by locald-server for each run of a service; there is nothing to do with it by hand. See `locald --help`.",
    );
    ExitCode::from(2)
}

/// Writes a line for whoever started the shim: the daemon's log.
fn say(line: &str) {
    use std::io::Write;
    // Nothing is left to be told when even this fails.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn run(identity: &ShimIdentity) -> ExitCode {
    fail::arm(&format!("shim-{}", identity.run.service));
    match set_up(identity) {
        Ok(pump) => {
            pump.run();
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("locald-shim: could not set up {}{}: {error}", identity.run.service, identity.run.number));
            ExitCode::FAILURE
        }
    }
}

/// Makes everything a daemon needs to find this shim again, before the shim says anything.
fn set_up(identity: &ShimIdentity) -> std::io::Result<pump::Pump> {
    // Executed through a descriptor it would be called by a number in the process table, by `ps` and by `locald doctor`.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_name(c"locald-shim")?;
    if let Some(limit) = identity.open_files {
        open_files::set(limit);
    }
    let control = UnixStream::from(sys::inherited(CONTROL_FD)?);
    process::become_subreaper()?;
    // A log that grows over a file size limit is an error to be counted, not the end of the shim (setrlimit(2)).
    sys::ignore(nix::sys::signal::Signal::SIGXFSZ)?;
    let signals = pump::SignalPipe::install()?;
    let spare = spawn::Spare::bring_up(identity.cgroup.clone());
    std::fs::create_dir_all(&identity.service_dir)?;
    let link = link::Link::listen(&identity.socket, control)?;
    fail::point("the shim listens");
    let shim = ProcessId::own()?;
    let record = ShimRecord {
        run: identity.run.clone(),
        project_dir: identity.project_dir.clone(),
        boot: process::boot_id()?,
        shim,
        socket: identity.socket.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let record_dir = record::begin(&identity.service_dir, &record)?;
    Ok(pump::Pump::new(identity.clone(), record_dir, record.boot, shim, link, signals, spare))
}

/// Sets a descriptor to return EAGAIN rather than wait.
fn set_nonblocking(fd: impl AsFd) -> std::io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
