//! The shim: carries out one run of a service, and outlives the daemon that asked for it.
//!
//! Its first argument tells its role. As the shim it holds the terminal, writes the log, reaps, stops and records: `pump` is
//! its loop. It may stand by first, until there is a run for it. As the `exec_helper` it is the fresh image that becomes the
//! service. It decides nothing about whether a service should run; the daemon does. It has one thread and no timers while nothing
//! happens.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use locald_utils::process::{self, ProcessId, open_files, sys};
use locald_utils::record::{self, ShimRecord};
use locald_utils::shim_protocol::{CONTROL_FD, SHIM_ROLE, STANDBY_ROLE, ShimIdentity, StandbyIdentity};
use locald_utils::{fail, frame};
use serde::de::DeserializeOwned;

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

/// Runs the program in the role that its arguments name.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match args.get(1).and_then(|role| role.to_str()) {
        Some(HELPER_ROLE) => exec_helper::main(),
        Some(SHIM_ROLE) => identity(&args).map_or_else(usage, |identity| run(&identity)),
        Some(STANDBY_ROLE) => identity(&args).map_or_else(usage, |identity| stand_by(&identity)),
        Some("--version") => {
            say(&format!("locald-shim {}", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
        Some(_) | None => usage(),
    }
}

/// What the second argument says.
fn identity<T: DeserializeOwned>(args: &[OsString]) -> Option<T> {
    serde_json::from_str(args.get(2)?.to_str()?).ok()
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

/// Carries out a run that is known from the start.
fn run(identity: &ShimIdentity) -> ExitCode {
    fail::arm(&format!("shim-{}", identity.run.service));
    let StandbyIdentity { open_files, cgroup } = identity.standby();
    carry_out(identity, come_up(open_files, cgroup))
}

/// Waits for a run, with the helper for it, and carries it out.
fn stand_by(identity: &StandbyIdentity) -> ExitCode {
    let mut born = match come_up(identity.open_files, identity.cgroup.clone()) {
        Ok(born) => born,
        Err(error) => {
            say(&format!("locald-shim: could not stand by: {error}"));
            return ExitCode::FAILURE;
        }
    };
    process::release_memory();
    let told = frame::read_message::<ShimIdentity>(&mut born.control, &mut frame::Decoder::default());
    let Ok(Some(identity)) = told else {
        // The daemon is gone, or nothing runs any more.
        born.spare.dismiss();
        return ExitCode::SUCCESS;
    };
    fail::arm(&format!("shim-{}", identity.run.service));
    born.spare = born.spare.aged();
    let shown = serde_json::to_string(&identity).map_err(io::Error::from);
    let shown = shown.and_then(|shown| process::show_arguments(&[SHIM_ROLE, &shown]));
    if let Err(error) = shown {
        born.spare.dismiss();
        return carry_out(&identity, Err(error));
    }
    carry_out(&identity, Ok(born))
}

fn carry_out(identity: &ShimIdentity, born: io::Result<Born>) -> ExitCode {
    match born.and_then(|born| set_up(identity, born)) {
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

/// What a shim has before it is of any run.
struct Born {
    control: UnixStream,
    spare: spawn::Spare,
}

/// Becomes a shim, with a helper beside it.
fn come_up(limit: Option<u64>, cgroup: Option<PathBuf>) -> io::Result<Born> {
    // Executed through a descriptor it would be called by a number in the process table, by `ps` and by `locald doctor`.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_name(c"locald-shim")?;
    if let Some(limit) = limit {
        open_files::set(limit);
    }
    let control = UnixStream::from(sys::inherited(CONTROL_FD)?);
    process::become_subreaper()?;
    // A log that grows over a file size limit is an error to be counted, not the end of the shim (setrlimit(2)).
    sys::ignore(nix::sys::signal::Signal::SIGXFSZ)?;
    Ok(Born { control, spare: spawn::Spare::bring_up(cgroup) })
}

/// Makes everything a daemon needs to find this shim again, before the shim says anything.
fn set_up(identity: &ShimIdentity, born: Born) -> io::Result<pump::Pump> {
    let Born { control, spare } = born;
    // From here on a signal is for the service. One that comes before ends the shim.
    let signals = pump::SignalPipe::install()?;
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
fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
