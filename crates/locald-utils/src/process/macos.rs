//! How macOS is asked about processes: sysctl(3) and libproc. What it answers is read in [`darwin`](super::darwin).
//!
//! Nothing in here has run on a Mac; it is type-checked and linked for one. What rests on reading the kernel's sources
//! alone is listed in `docs/platforms.md`.

use std::ffi::OsStr;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getsid};

use super::darwin::{self, Arguments, ListeningSocket, UniqueId};
use super::{Listener, Listening, Process, ProcessId, SignalError, Socket, sent, sys};

/// `PROC_PIDFDSOCKETINFO` (sys/proc_info.h), which libc does not name.
const PROC_PIDFDSOCKETINFO: libc::c_int = 3;
/// `PROC_PIDUNIQIDENTIFIERINFO` (sys/proc_info_private.h), which no public header names.
const PROC_PIDUNIQIDENTIFIERINFO: libc::c_int = 17;

const _: () = assert!(size_of::<libc::proc_vnodepathinfo>() == darwin::VNODE_PATH_INFO_SIZE);
const _: () = assert!(size_of::<libc::vnode_info_path>() * 2 == darwin::VNODE_PATH_INFO_SIZE);
const _: () = assert!(offset_of!(libc::vnode_info_path, vip_path) == darwin::DIRECTORY);
const _: () = assert!(size_of::<libc::proc_fdinfo>() == darwin::FD_INFO_SIZE);

/// The id of this boot (`kern.bootsessionuuid`). The time of the boot is none: it moves when the clock is set.
///
/// # Errors
/// When the kernel does not tell.
pub fn boot_id() -> io::Result<String> {
    // A UUID has 36 characters and a NUL.
    let mut buffer = [0; 64];
    let count = sys::sysctl_by_name(c"kern.bootsessionuuid", &mut buffer)?;
    let text = String::from_utf8_lossy(darwin::until_nul(&buffer[..count])).into_owned();
    if text.is_empty() { Err(io::Error::other("kern.bootsessionuuid is empty")) } else { Ok(text) }
}

/// Does nothing: macOS has no subreapers. An orphan goes to launchd, so emptiness of a run is never proven by having no
/// children; the process table is.
///
/// # Errors
/// Never on macOS.
pub fn become_subreaper() -> io::Result<()> {
    Ok(())
}

/// The path that this process was started from. Unlike on Linux, another file may have that name by now.
///
/// # Errors
/// When it cannot be found out.
pub fn own_executable() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// Looks at one process. `None` when there is none.
#[must_use]
pub fn look(pid: i32) -> Option<Process> {
    let mut found = glance(pid);
    darwin::fill_sessions(&mut found, session);
    let unique = [unique_id(pid)];
    darwin::fill_lineages(&mut found, &unique, &glance(pid));
    found.pop()
}

/// What the table alone says of one process: a list of it, or an empty one.
fn glance(pid: i32) -> Vec<Process> {
    let mut record = [0; darwin::KINFO_PROC_SIZE];
    // No process is no error here, but an empty answer.
    match sys::sysctl(&[libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_PID, pid], &mut record) {
        Ok(count) => record.get(..count).map(darwin::processes).unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

/// The unique id of the process that has the number, everybody's and zombies too.
fn unique_id(pid: i32) -> Option<UniqueId> {
    /// Without it zombies are not found, as nearly all other flavors do not find them.
    const ZOMBIES_TOO: u64 = 1;
    let mut buffer = [0; darwin::UNIQUE_ID_INFO_SIZE];
    let count = sys::proc_pidinfo(pid, PROC_PIDUNIQIDENTIFIERINFO, ZOMBIES_TOO, &mut buffer).ok()?;
    UniqueId::parse(buffer.get(..count)?)
}

/// The session of a process; of a zombie the kernel does not tell it.
fn session(pid: i32) -> Option<i32> {
    getsid(Some(Pid::from_raw(pid))).ok().map(Pid::as_raw)
}

/// Looks at every process: two questions for the whole table, and two for each process in between.
///
/// # Errors
/// When the kernel refuses, as a sandbox may make it.
pub fn all() -> io::Result<Vec<Process>> {
    let mut table = list()?;
    darwin::fill_sessions(&mut table, session);
    let unique: Vec<Option<UniqueId>> = table.iter().map(|process| unique_id(process.id.pid)).collect();
    darwin::fill_lineages(&mut table, &unique, &list()?);
    Ok(table)
}

/// What the table alone says of every process: one question, neither sessions nor lineages.
fn list() -> io::Result<Vec<Process>> {
    // More than most Macs run, so that one question is enough.
    const FIRST: usize = 2048 * darwin::KINFO_PROC_SIZE;
    let name = [libc::CTL_KERN, libc::KERN_PROC, libc::KERN_PROC_ALL];
    Ok(darwin::processes(&darwin::read_growing(FIRST, |buffer| sys::sysctl(&name, buffer))?))
}

/// The numbers of the children of `pid`, zombies included; a moment's picture.
///
/// # Errors
/// When the table cannot be read.
pub fn children(pid: i32) -> io::Result<Vec<i32>> {
    Ok(list()?.into_iter().filter(|process| process.parent == pid).map(|process| process.id.pid).collect())
}

/// Every process below `pid`, zombies included, parents before their children; a moment's picture.
///
/// Whoever lost a parent on the way is a child of launchd and not found.
///
/// # Errors
/// When the table cannot be read.
pub fn descendants(pid: i32) -> io::Result<Vec<Process>> {
    Ok(darwin::descendants(&all()?, pid))
}

/// The bytes of `KERN_PROCARGS2`. `None` when the process is gone, a zombie, or somebody else's.
fn arguments(pid: i32) -> Option<Vec<u8>> {
    let mut buffer = vec![0; darwin::ARGUMENTS_SIZE];
    let count = sys::sysctl(&[libc::CTL_KERN, libc::KERN_PROCARGS2, pid], &mut buffer).ok()?;
    // A full buffer may hold the end of the strings, without their beginning.
    if count == buffer.len() {
        return None;
    }
    buffer.truncate(count);
    Some(buffer)
}

/// Has the system show other arguments for this process; see the same function for Linux.
///
/// # Errors
/// Always: nothing but unsafe code can write there, and no shim stands by on macOS.
pub fn show_arguments(_arguments: &[&str]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The command line of a process, arguments joined by spaces. `None` when it is gone, a zombie, or somebody else's.
#[must_use]
pub fn command(pid: i32) -> Option<String> {
    let bytes = arguments(pid)?;
    let text: Vec<_> = Arguments::parse(&bytes)?.argv.into_iter().map(String::from_utf8_lossy).collect();
    let text = text.join(" ").trim_end().to_owned();
    if text.is_empty() { None } else { Some(text) }
}

/// The working directory of a process, where we may see it: our own processes, or as root.
#[must_use]
pub fn working_directory(pid: i32) -> Option<PathBuf> {
    let mut buffer = [0; darwin::VNODE_PATH_INFO_SIZE];
    let count = sys::proc_pidinfo(pid, libc::PROC_PIDVNODEPATHINFO, 0, &mut buffer).ok()?;
    let path = darwin::working_directory(buffer.get(..count)?)?;
    Some(PathBuf::from(OsStr::from_bytes(path)))
}

/// The value of a variable in the environment that a process was started with, where we may see it.
///
/// That of Apple's own programs is hidden, `/bin/sh` among them: no value is no proof that there is no marker.
#[must_use]
pub fn marker(pid: i32, name: &str) -> Option<String> {
    let bytes = arguments(pid)?;
    let value = Arguments::parse(&bytes)?.variable(name)?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Whether the environment of a process is as it will be: it is read in one piece.
pub(super) fn shows_environment(_: i32) -> bool {
    true
}

/// Signals exactly this process, by the version of its program where the system can (macOS 14.4).
pub(super) fn signal(process: ProcessId, signal: Signal) -> Result<bool, SignalError> {
    sent(darwin::signals::send(&mut Number { pid: process.pid, signal }, process))
}

/// A process number that is to get a signal.
struct Number {
    pid: i32,
    signal: Signal,
}

impl darwin::signals::Target for Number {
    fn unique_id(&mut self) -> Option<UniqueId> {
        unique_id(self.pid)
    }

    fn look(&mut self) -> Option<Process> {
        glance(self.pid).pop()
    }

    fn signal_version(&mut self, version: i32) -> Option<nix::Result<()>> {
        sys::signal_version(self.pid, version, self.signal)
    }

    fn signal_number(&mut self) -> nix::Result<()> {
        nix::sys::signal::kill(Pid::from_raw(self.pid), self.signal)
    }
}

/// Finds the listening TCP sockets of a port. With `among`, only those processes are asked whether they hold one.
///
/// macOS shows the descriptors of our own processes only; that somebody else listens is told by the network, without
/// whoever it is. Where the network does not tell either, as in a sandbox, such a port looks free.
///
/// # Errors
/// When the process table cannot be read.
pub fn listeners(port: u16, among: Option<&[i32]>) -> io::Result<Vec<Listener>> {
    // More than most Macs have connections. The network is asked first: a socket that is made since is found below.
    const FIRST: usize = 1024 * 1024;
    let name = c"net.inet.tcp.pcblist_n";
    let everybodys = darwin::read_growing(FIRST, |buffer| sys::sysctl_by_name(name, buffer)).unwrap_or_default();
    let candidates = match among {
        Some(among) => among.to_vec(),
        None => list()?.into_iter().map(|process| process.id.pid).collect(),
    };
    let mut found: Vec<(ListeningSocket, Option<Process>)> = Vec::new();
    for pid in candidates {
        for socket in sockets(pid).into_iter().filter(|socket| socket.port == port) {
            // A socket that was inherited is one listener with the first of its holders.
            match found.iter_mut().find(|(known, _)| known.handle == socket.handle) {
                Some((_, holder)) => *holder = super::first_holder(holder.take(), look(pid)),
                None => found.push((socket, look(pid))),
            }
        }
    }
    let all = darwin::with_hidden(found, &darwin::listening_sockets(&everybodys), port);
    Ok(all.into_iter().map(|(socket, process)| Listener { process, v6: socket.v6 }).collect())
}

/// The listening TCP sockets of these processes.
///
/// # Errors
/// Never on macOS: sockets that may not be seen are left out.
pub fn sockets_of(pids: &[i32]) -> io::Result<Vec<Socket>> {
    let sockets = pids.iter().flat_map(|&pid| self::sockets(pid));
    let mut sockets: Vec<Socket> = sockets.map(|socket| Socket { port: socket.port, number: socket.handle }).collect();
    sockets.sort();
    sockets.dedup();
    Ok(sockets)
}

/// The ports on which anybody listens.
///
/// # Errors
/// When the network does not tell, as in a sandbox.
pub fn open_ports() -> io::Result<std::collections::BTreeSet<u16>> {
    const FIRST: usize = 1024 * 1024;
    let everybodys = darwin::read_growing(FIRST, |buffer| sys::sysctl_by_name(c"net.inet.tcp.pcblist_n", buffer))?;
    Ok(darwin::listening_sockets(&everybodys).into_iter().map(|socket| socket.port).collect())
}

/// Where these processes listen, each socket once for each process that holds it.
///
/// # Errors
/// Never on macOS: sockets that may not be seen are left out.
pub fn listening_by(pids: &[i32]) -> io::Result<Vec<Listening>> {
    let of = |&pid: &i32| {
        let addresses = socket_records(pid).into_iter().filter_map(|record| {
            let socket = ListeningSocket::parse(&record)?;
            Some((socket.handle, Listening { pid, port: socket.port, address: darwin::local_address(&record)? }))
        });
        // A descriptor that was duplicated is one socket.
        addresses.collect::<std::collections::BTreeMap<u64, Listening>>().into_values()
    };
    Ok(pids.iter().flat_map(of).collect())
}

/// Those of `sockets` that some process of ours still listens on, and which.
///
/// # Errors
/// When the process table cannot be read.
pub fn still_open(sockets: &[Socket]) -> io::Result<Vec<(Socket, Option<Process>)>> {
    let mut open: Vec<(Socket, Option<Process>)> = Vec::new();
    for process in all()? {
        for held in self::sockets(process.id.pid) {
            let held = Socket { port: held.port, number: held.handle };
            if sockets.contains(&held) && !open.iter().any(|(socket, _)| *socket == held) {
                open.push((held, Some(process.clone())));
            }
        }
    }
    Ok(open)
}

/// The number under which the process table has a terminal.
///
/// # Errors
/// Those of fstat(2).
pub fn terminal_number(terminal: impl AsFd) -> io::Result<u64> {
    // `e_tdev` and `st_rdev` are the same 32-bit number there.
    Ok(u64::from(nix::sys::stat::fstat(terminal)?.st_rdev.cast_unsigned()))
}

/// The listening sockets of a process; none where we may not see them.
fn sockets(pid: i32) -> Vec<ListeningSocket> {
    socket_records(pid).iter().filter_map(|record| ListeningSocket::parse(record)).collect()
}

/// What the kernel tells of the sockets of a process; nothing where we may not see them.
fn socket_records(pid: i32) -> Vec<Vec<u8>> {
    const FIRST: usize = 1024 * darwin::FD_INFO_SIZE;
    let listed = darwin::read_growing(FIRST, |buffer| sys::proc_pidinfo(pid, libc::PROC_PIDLISTFDS, 0, buffer));
    let listed = listed.unwrap_or_default();
    let sockets = darwin::socket_descriptors(&listed).filter_map(|fd| {
        let mut buffer = vec![0; darwin::SOCKET_FD_INFO_SIZE];
        let count = sys::proc_pidfdinfo(pid, fd, PROC_PIDFDSOCKETINFO, &mut buffer).ok()?;
        buffer.truncate(count);
        Some(buffer)
    });
    sockets.collect()
}

/// The numbers of the calling process's children, zombies included.
///
/// # Errors
/// When the process table cannot be read.
pub fn own_children() -> io::Result<Vec<i32>> {
    children(std::process::id().cast_signed())
}

/// Nothing to do: macOS takes away pages that are not used when memory is short.
pub fn release_memory() {}

/// Whether no process can be looked at. Looking needs no descriptor here.
pub(super) fn is_blind() -> bool {
    false
}

/// A descriptor that becomes readable when the process has ended (kqueue(2), EVFILT_PROC). `None` when it has already.
///
/// # Errors
/// EACCES when it runs as somebody else.
pub fn exit_watch(process: ProcessId) -> io::Result<Option<OwnedFd>> {
    use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
    let queue = Kqueue::new()?;
    let ident = usize::try_from(process.pid).map_err(io::Error::other)?;
    let event = KEvent::new(ident, EventFilter::EVFILT_PROC, EvFlags::EV_ADD, FilterFlag::NOTE_EXIT, 0, 0);
    match queue.kevent(&[event], &mut [], None) {
        Ok(_) => {}
        // Gone, or a zombie already: both have ended.
        Err(nix::errno::Errno::ESRCH) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    // A number that changed hands before it was watched is somebody else's.
    Ok(process.is_alive().then(|| OwnedFd::from(queue)))
}
