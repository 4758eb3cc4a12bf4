//! Taking the place of an older daemon, which goes on if anything is in the way.
//!
//! What may fail is tried before the older one is asked to leave: it is asked as anybody may ask it, by a request that is of the
//! core of the protocol since its first version. From then on no daemon is there until the new one listens; whoever waits for
//! an answer finds the new one.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use locald_utils::frame::{self, Decoder, Frame};
use locald_utils::paths::Home;
use locald_utils::process::{self, ProcessId};
use locald_utils::protocol::{ClientMessage, DaemonStart, Hello, Request};
use locald_utils::record::{self, PidRecord};

use crate::ledger::Ledger;
use crate::{failed, ledger_failed, shim_program};

/// 3 s: for the older daemon to answer, and then to be gone. It takes some milliseconds; whoever waits for this one has 10 s.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);

/// Asks the daemon of this home to leave, if there is one and it is older.
///
/// # Errors
/// What keeps this one from taking its place; that it is not older is [`DaemonStart::AlreadyRunning`]. Then it has not been asked.
pub(crate) fn take_over(home: &Home) -> Result<(), DaemonStart> {
    shim_program()?;
    Ledger::check(&home.ledger()).map_err(|error| ledger_failed(home, &error))?;
    if let Some(record) = bereaved(home) {
        let message = format!(
            "{} has lost its shim, and its terminal would end with the older daemon; `locald restart {}` first",
            record.run.service, record.run.service
        );
        return Err(failed(message));
    }
    // There is none, or it has left by itself.
    let Ok(mut stream) = UnixStream::connect(home.daemon_socket()) else { return Ok(()) };
    let older = dismiss(&mut stream).map_err(|error| failed(format!("the older daemon did not leave: {error}")))?;
    match older {
        Dismissed::Not(pid) => Err(DaemonStart::AlreadyRunning { pid: Some(pid) }),
        Dismissed::Leaves(process) => {
            // It holds its locks until it is gone. A system that cannot tell is found out about by the locks.
            let has_left = process.is_none_or(|process| process::await_exit(process, LEAVE_LIMIT).unwrap_or(true));
            if has_left { Ok(()) } else { Err(failed("the older daemon agreed to leave and has not")) }
        }
    }
}

/// A run whose shim is gone and whose leader lives: its terminal is the older daemon's alone, and ends with it.
fn bereaved(home: &Home) -> Option<PidRecord> {
    let boot = process::boot_id().ok()?;
    let records = home.record_dirs().into_iter().filter_map(|dir| record::load::<PidRecord>(&dir, record::PID).ok()?);
    let mut ours = records.filter(|record| record.boot == boot);
    ours.find(|record| !record.shim.is_alive() && record.main().is_alive())
}

/// What became of the one that was to be asked.
enum Dismissed {
    /// It is as new, and stays.
    Not(u32),
    /// It has closed the connection and is about to be gone.
    Leaves(Option<ProcessId>),
}

fn dismiss(stream: &mut UnixStream) -> io::Result<Dismissed> {
    stream.set_read_timeout(Some(LEAVE_LIMIT))?;
    stream.set_write_timeout(Some(LEAVE_LIMIT))?;
    let mut decoder = Decoder::default();
    // One that leaves by itself, or was asked by somebody else, answers nothing.
    if has_gone(frame::write_message(stream, &Hello::new()))? {
        return Ok(Dismissed::Leaves(None));
    }
    let Some(greeting) = next(stream, &mut decoder)? else { return Ok(Dismissed::Leaves(None)) };
    let older: Hello = frame::decode(&greeting).map_err(io::Error::other)?;
    if !older.is_older() {
        return Ok(Dismissed::Not(older.pid));
    }
    let process = ProcessId::of(older.pid.cast_signed());
    let request = ClientMessage { id: 1, request: Request::Shutdown { all: false }, resumes: None };
    if !has_gone(frame::write_message(stream, &request))? {
        while next(stream, &mut decoder)?.is_some() {}
    }
    Ok(Dismissed::Leaves(process))
}

fn has_gone(written: io::Result<()>) -> io::Result<bool> {
    match written {
        Ok(()) => Ok(false),
        Err(error) if is_end(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// What it says next; `None` when it has closed the connection.
fn next(stream: &mut UnixStream, decoder: &mut Decoder) -> io::Result<Option<Frame>> {
    loop {
        if let Some(frame) = decoder.next_frame().map_err(io::Error::other)? {
            return Ok(Some(frame));
        }
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(None),
            Ok(count) => decoder.push(&bytes[..count]),
            Err(error) if is_end(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}
