//! The exec helper: the fresh, single-threaded image between spawn and exec, where anything may be allocated or asked.
//!
//! It leads a session already (posix_spawn made it). It waits for a plan and the descriptors that come with it, takes the
//! terminal, enters the run's cgroup, changes directory, finds the program, reports ready, waits at the gate, and becomes the
//! program. Any step that fails is reported as (stage, errno, path) with an explanation; the exit code of a service is never
//! one that a helper made up.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use locald_utils::process::cgroup::Cgroup;
use locald_utils::process::{self, descriptors, explain, mark, sys};
use locald_utils::record::{StartFailure, StartStage};
use locald_utils::{exports, frame};
use nix::errno::Errno;

use crate::spawn::{FromHelper, HELPER_FD, Order, Plan};

/// Above every number that can be asked for.
const ABOVE: i32 = 16;

/// Runs the helper. Returns only when the program could not be run.
pub(crate) fn main() -> ExitCode {
    let Ok(mut stream) = sys::inherited(HELPER_FD).map(UnixStream::from) else {
        crate::say("locald-shim exec is started by a shim; there is nothing to do with it by hand");
        return ExitCode::from(2);
    };
    let mut decoder = frame::Decoder::default();
    // A run may come to nothing before there is a plan: then its shim hangs up.
    let Ok((1, descriptors)) = descriptors::receive(&stream, &mut [0]) else { return ExitCode::FAILURE };
    let Ok(Some(Order { plan, enter, anew })) = frame::read_message(&mut stream, &mut decoder) else {
        return ExitCode::FAILURE;
    };
    if let Some(cgroup) = enter {
        // One that cannot be entered is one kind of evidence less; `locald doctor` tells.
        let _ = Cgroup::at(cgroup).enter();
    }
    // Held until the program is executed.
    let mut _held = None;
    if anew {
        match go_on_anew() {
            Ok(Anew::Child(held)) => _held = Some(held),
            Ok(Anew::Parent(mut end)) => {
                drop((stream, descriptors));
                let _ = end.read(&mut [0]);
                return ExitCode::SUCCESS;
            }
            Err(error) => {
                let failure = explain::step(StartStage::Helper, &error, "could not start a process for it");
                let _ = frame::write_message(&mut stream, &FromHelper::Failed(failure));
                return ExitCode::from(127);
            }
        }
    }
    let failure = match become_program(&plan, descriptors, &mut stream) {
        Ok(never) => match never {},
        Err(Some(failure)) => failure,
        // The shim closed the gate: nobody waits for an answer.
        Err(None) => return ExitCode::FAILURE,
    };
    // A shim that is gone cannot be told; the helper's exit is all that is left to say.
    let _ = frame::write_message(&mut stream, &FromHelper::Failed(failure));
    ExitCode::from(127)
}

/// Who somebody is after [`go_on_anew`].
enum Anew {
    /// The one that goes on; what it has is to be held until the program is executed.
    Child(OwnedFd),
    /// The one that was there before; what it has ends when nobody holds the other end any more.
    Parent(PipeReader),
}

/// Goes on as a new process that leads a session: what shows when a process was started (`ps`) tells of the run then, and not of how
/// long this has stood by. The old one stays until that has become the program, so that its end tells the shim nothing new.
fn go_on_anew() -> io::Result<Anew> {
    let (end, held) = io::pipe()?;
    if !sys::fork()? {
        return Ok(Anew::Parent(end));
    }
    nix::unistd::setsid()?;
    Ok(Anew::Child(sys::duplicate_above(&held, ABOVE)?))
}

/// Takes descriptors 0, 1 and 2. Returns what the program is to say that it is ready on, and the number where it shall be;
/// everything of ours is moved away from there.
fn take_descriptors(
    plan: &Plan,
    descriptors: Vec<OwnedFd>,
    stream: &mut UnixStream,
) -> io::Result<Option<(OwnedFd, i32)>> {
    // One that is at its limit gets fewer than were sent (unix(7), MSG_CTRUNC).
    if descriptors.len() != 3 + usize::from(plan.notification.is_some()) {
        return Err(Errno::EMFILE.into());
    }
    for (descriptor, number) in descriptors.iter().zip(0..3) {
        sys::place(descriptor.as_fd(), number)?;
    }
    let Some(number) = plan.notification else { return Ok(None) };
    let notification = sys::duplicate_above(&descriptors[3], ABOVE)?;
    *stream = sys::duplicate_above(&*stream, ABOVE)?.into();
    Ok(Some((notification, number)))
}

fn become_program(
    plan: &Plan,
    descriptors: Vec<OwnedFd>,
    stream: &mut UnixStream,
) -> Result<std::convert::Infallible, Option<StartFailure>> {
    let notification = take_descriptors(plan, descriptors, stream)
        .map_err(|error| explain::step(StartStage::Helper, &error, "could not take its descriptors"))?;
    if plan.takes_terminal {
        sys::take_controlling_terminal(io::stdin().as_fd())
            .map_err(|error| explain::step(StartStage::Session, &error, "could not take the terminal"))?;
    }
    mark::put_on(&plan.run);
    std::env::set_current_dir(&plan.workdir).map_err(|error| explain::workdir(&plan.workdir, &error))?;
    let path = plan.environment.get("PATH").map(|path| path.as_os_str().to_owned());
    let argv = &plan.command.argv;
    if let Some(name) = &plan.command.program {
        find(name, path.as_deref())?;
    }
    let program = find(&argv[0], path.as_deref())?;
    let argv = c_strings(argv.iter().map(OsString::from))
        .map_err(|error| explain::step(StartStage::Exec, &error, "the command"))?;
    // The markers come first, where a program that writes its title over its environment destroys them last. The ports of a
    // project are many, and mark nothing.
    let is_marker = |name: &str| name.starts_with("LOCALD_") && !exports::is_export(name);
    let (markers, others): (Vec<_>, Vec<_>) = plan.environment.iter().partition(|(name, _)| is_marker(name));
    let environment = markers.into_iter().chain(others).map(|(name, value)| {
        let mut entry = OsString::from(name);
        entry.push("=");
        entry.push(value.as_os_str());
        entry
    });
    let environment =
        c_strings(environment).map_err(|error| explain::step(StartStage::Exec, &error, "the environment"))?;
    let path = CString::new(program.as_os_str().as_bytes())
        .map_err(|error| explain::step(StartStage::Exec, &error.into(), "the program's path"))?;
    sys::close_on_exec_from(HELPER_FD)
        .map_err(|error| explain::step(StartStage::Session, &error, "could not close inherited descriptors"))?;
    if let Some((notification, number)) = notification {
        sys::place(notification.as_fd(), number)
            .map_err(|error| explain::step(StartStage::Session, &error, "could not hand over its descriptor"))?;
    }

    let pid = std::process::id().cast_signed();
    frame::write_message(stream, &FromHelper::Ready(pid)).map_err(|_| None)?;
    stream.read_exact(&mut [0]).map_err(|_| None)?;

    let mut errno = Errno::ENOEXEC;
    for attempt in 0..4 {
        match nix::unistd::execve(&path, &argv, &environment) {
            Ok(never) => return Ok(never),
            Err(error) => errno = error,
        }
        // Somebody has it open for writing, a compiler most likely: it will be done soon (execve(2), ETXTBSY).
        if errno != Errno::ETXTBSY || attempt == 3 {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(Some(explain::exec(&program, errno, &argv, &environment)))
}

/// Finds a program in the service's `PATH`, or explains why it cannot be run.
fn find(name: &str, path: Option<&OsStr>) -> Result<PathBuf, StartFailure> {
    let program = process::find_program(name, path).map_err(|tried| explain::lookup(name, path, &tried))?;
    match nix::unistd::access(&program, nix::unistd::AccessFlags::X_OK) {
        Err(errno @ (Errno::ENOENT | Errno::EACCES)) => Err(explain::exec(&program, errno, &[], &[])),
        // Whatever else there is to object, execve says it better.
        Ok(()) | Err(_) => Ok(program),
    }
}

fn c_strings(texts: impl Iterator<Item = OsString>) -> io::Result<Vec<CString>> {
    texts.map(|text| CString::new(text.into_encoded_bytes()).map_err(io::Error::from)).collect()
}
