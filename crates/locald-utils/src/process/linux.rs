//! How Linux is asked about processes: `/proc`, pidfds, the subreaper attribute.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::{Listener, Listening, Process, ProcessId, ProcessState, SignalError, Socket, sent, sys};

/// The id of this boot (random(4), `/proc/sys/kernel/random/boot_id`).
///
/// # Errors
/// When it cannot be read.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Makes orphans of this process's descendants its children (prctl(2), PR_SET_CHILD_SUBREAPER).
///
/// # Errors
/// When the kernel refuses.
pub fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// A path that names the running image of this process, whatever has become of its file.
///
/// # Errors
/// Never on Linux.
pub fn own_executable() -> io::Result<PathBuf> {
    Ok(PathBuf::from("/proc/self/exe"))
}

/// Looks at one process. `None` when there is none, or it vanished while being looked at.
#[must_use]
pub fn look(pid: i32) -> Option<Process> {
    let mut file = fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    let uid = file.metadata().ok()?.uid();
    // One read: the kernel makes the line in one piece, and a line has fewer than 1024 bytes.
    let mut buffer = [0; 1024];
    let count = file.read(&mut buffer).ok()?;
    parse_stat(&buffer[..count], uid)
}

/// Reads a line of `/proc/PID/stat` (proc_pid_stat(5)).
fn parse_stat(line: &[u8], uid: u32) -> Option<Process> {
    // The name stands in parentheses and may hold any byte, parentheses and line ends included: take the last one.
    let open = line.iter().position(|&byte| byte == b'(')?;
    let close = line.iter().rposition(|&byte| byte == b')')?;
    let pid = std::str::from_utf8(&line[..open]).ok()?.trim().parse().ok()?;
    let name = String::from_utf8_lossy(line.get(open + 1..close)?).into_owned();
    let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // `fields[0]` is field 3 of the manual.
    let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
    let state = match *fields.first()? {
        // A process goes on when its first thread has left (pthread_exit(3)), and shows that one as a zombie.
        "Z" if number(20)? > 1 => ProcessState::Live,
        "Z" | "X" | "x" => ProcessState::Zombie,
        "T" | "t" => ProcessState::Stopped,
        "D" => ProcessState::Uninterruptible,
        _ => ProcessState::Live,
    };
    Some(Process {
        id: ProcessId { pid, start: fields.get(22 - 3)?.parse().ok()? },
        parent: number(4)?.try_into().ok()?,
        group: number(5)?.try_into().ok()?,
        session: number(6)?.try_into().ok()?,
        terminal: number(7)?.cast_unsigned(),
        uid,
        state,
        name,
        lineage: None,
    })
}

/// Looks at every process.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn all() -> io::Result<Vec<Process>> {
    Ok(pids()?.filter_map(look).collect())
}

pub(super) fn pids() -> io::Result<impl Iterator<Item = i32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// The session and the process group of a process, zombies included: what its number is enough to ask for (getsid(2),
/// getpgid(2)).
pub(super) fn affiliation(pid: i32) -> Option<(i32, i32)> {
    let pid = Some(Pid::from_raw(pid));
    Some((nix::unistd::getsid(pid).ok()?.as_raw(), nix::unistd::getpgid(pid).ok()?.as_raw()))
}

/// The number that was given out last (proc_loadavg(5), the last field).
pub(super) fn newest() -> Option<i32> {
    fs::read_to_string("/proc/loadavg").ok()?.split_ascii_whitespace().last()?.parse().ok()
}

/// Whether no process can be looked at, because this one or the system has as many files open as it may.
pub(super) fn is_blind() -> bool {
    let error = fs::File::open("/proc/self/stat").err().and_then(|error| error.raw_os_error());
    error.map(Errno::from_raw).is_some_and(|errno| matches!(errno, Errno::EMFILE | Errno::ENFILE))
}

/// Whether a number is that of a process, and not of another thread of one: `/proc` shows those as well to whoever asks by number.
pub(super) fn is_process(pid: i32) -> bool {
    let leader = |status: &str| status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
    fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| leader(&status) == Some(pid))
}

/// The numbers of the calling thread's children, zombies included.
///
/// In a process of one thread these are all its children, and the list is exact: only its own wait takes a child off,
/// and the kernel puts adopted orphans at the end.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn own_children() -> io::Result<Vec<i32>> {
    match fs::read_to_string("/proc/thread-self/children") {
        Ok(list) => Ok(numbers(&list).collect()),
        // A kernel without CONFIG_PROC_CHILDREN.
        Err(_) => children(std::process::id().cast_signed()),
    }
}

fn numbers(list: &str) -> impl Iterator<Item = i32> {
    list.split_ascii_whitespace().filter_map(|number| number.parse().ok())
}

/// The numbers of the children of `pid`, zombies included; a moment's picture.
///
/// # Errors
/// When `pid` is gone.
pub fn children(pid: i32) -> io::Result<Vec<i32>> {
    // The list belongs to the thread that forked (or whose process adopted), so every thread is asked.
    let mut found = Vec::new();
    let mut tasks = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(tasks) => tasks,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    let listed = tasks.try_for_each(|task| match fs::read_to_string(task?.path().join("children")) {
        Ok(list) => {
            found.extend(numbers(&list));
            Ok(())
        }
        // A thread that ended meanwhile left its children to the others.
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32) => Ok(()),
        Err(error) => Err(error),
    });
    match listed {
        Ok(()) => Ok(found),
        // A kernel without CONFIG_PROC_CHILDREN, or a thread gone between list and look: ask the whole table.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(all()?.into_iter().filter(|process| process.parent == pid).map(|process| process.id.pid).collect())
        }
        Err(error) => Err(error),
    }
}

/// Every process below `pid`, zombies included, parents before their children; a moment's picture.
///
/// # Errors
/// When the table cannot be read.
pub fn descendants(pid: i32) -> io::Result<Vec<Process>> {
    let mut found: Vec<Process> = Vec::new();
    let mut next = children(pid)?;
    let mut seen = std::collections::BTreeSet::from([pid]);
    while let Some(child) = next.pop() {
        if !seen.insert(child) {
            continue;
        }
        if let Some(process) = look(child) {
            if process.state != ProcessState::Zombie {
                next.extend(children(child)?);
            }
            found.push(process);
        }
    }
    Ok(found)
}

/// The command line of a process, arguments joined by spaces. `None` when it is gone, a zombie, or a kernel thread.
#[must_use]
pub fn command(pid: i32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text: Vec<_> = bytes.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
    let text = text.join(" ").trim_end().to_owned();
    if text.is_empty() { None } else { Some(text) }
}

/// Has the system show other arguments for this process from the second on, as `ps` and [`command`] see them. They take the place
/// of those that it was started with; what is left of that place is filled with spaces.
///
/// # Errors
/// `InvalidInput` when they do not fit; those of reading `/proc/self/stat` and of writing `/proc/self/mem` (proc_pid_mem(5)).
pub fn show_arguments(arguments: &[&str]) -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // proc_pid_stat(5), fields 48 and 49. The second field ends with the last parenthesis.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().skip(45);
    let mut field = || fields.next().and_then(|field| field.parse::<u64>().ok()).filter(|&address| address > 0);
    let unknown = || io::Error::other("the kernel does not tell where the arguments are");
    let (start, end) = (field().ok_or_else(unknown)?, field().ok_or_else(unknown)?);
    let name = std::env::args_os().next().map_or(0, |name| name.len() as u64 + 1);
    let room = end.saturating_sub(start + name);
    let mut text = arguments.join("\0").into_bytes();
    let room = usize::try_from(room).unwrap_or_default().checked_sub(1).filter(|&room| room >= text.len());
    let room = room.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the arguments have no room"))?;
    text.resize(room, b' ');
    fs::File::options().write(true).open("/proc/self/mem")?.write_all_at(&text, start + name)
}

/// The number under which the process table has a terminal.
///
/// # Errors
/// Those of fstat(2).
pub fn terminal_number(terminal: impl AsFd) -> io::Result<u64> {
    let device = nix::sys::stat::fstat(terminal)?.st_rdev;
    // proc_pid_stat(5), field 7: the kernel's own 32-bit form, which differs from that of user space.
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// The working directory of a process, where we may see it.
#[must_use]
pub fn working_directory(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// The value of a variable in the environment that a process was started with, where we may see it.
#[must_use]
pub fn marker(pid: i32, name: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value =
        bytes.split(|&byte| byte == 0).find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    Some(String::from_utf8_lossy(value).into_owned())
}

/// Whether the environment of a process is as it will be: during an exec it is empty for some microseconds, and that of some
/// always is.
pub(super) fn shows_environment(pid: i32) -> bool {
    !fs::read(format!("/proc/{pid}/environ")).is_ok_and(|bytes| bytes.is_empty())
}

pub(super) fn signal(process: ProcessId, signal: Signal) -> Result<bool, SignalError> {
    match sys::pidfd_open(process.pid) {
        // The number cannot change hands while the pidfd is open, so what is looked at now is what gets the signal.
        Ok(pidfd) if ProcessId::of(process.pid) == Some(process) => {
            match sys::pidfd_send_signal(pidfd.as_fd(), signal) {
                // A filter that knows the one call and not the other: as below.
                Err(nix::errno::Errno::ENOSYS) => sent(nix::sys::signal::kill(Pid::from_raw(process.pid), signal)),
                result => sent(result),
            }
        }
        Ok(_) => Ok(false),
        Err(nix::errno::Errno::ESRCH) => Ok(false),
        // A kernel before 5.3 or a filter that refuses the call: check, then kill. The gap is a few microseconds.
        Err(_) if ProcessId::of(process.pid) == Some(process) => {
            sent(nix::sys::signal::kill(Pid::from_raw(process.pid), signal))
        }
        Err(_) => Ok(false),
    }
}

/// A descriptor that becomes readable when the process has ended (pidfd_open(2)). `None` when it has already.
///
/// # Errors
/// ENOSYS before Linux 5.3.
pub fn exit_watch(process: ProcessId) -> io::Result<Option<OwnedFd>> {
    match sys::pidfd_open(process.pid) {
        Ok(pidfd) if process.is_alive() => Ok(Some(pidfd)),
        Ok(_) | Err(nix::errno::Errno::ESRCH) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Gives back memory that this process needed to start: freed heap, and code pages; code that is used again comes back by
/// itself.
///
/// Starting up and carrying out a run take very different code. An idle process keeps what it waits with.
pub fn release_memory() {
    sys::trim_heap();
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return };
    unwritten(&maps).for_each(sys::release_code);
}

/// The ranges of memory that are as they are in their files, out of `/proc/self/maps` (proc_pid_maps(5)): code, and constants.
///
/// What lies directly before the variables of a file is left alone: it is not writable, but was relocated.
fn unwritten(maps: &str) -> impl Iterator<Item = std::ops::Range<usize>> {
    let lines: Vec<(&str, &str, &str)> = maps
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            Some((fields.next()?, fields.next()?, fields.nth(3).unwrap_or_default()))
        })
        .collect();
    let mut found = Vec::new();
    for (index, (range, rights, path)) in lines.iter().enumerate() {
        let is_code = *rights == "r-xp";
        let is_constant = *rights == "r--p"
            && lines.get(index + 1).is_some_and(|(_, rights, next)| next == path && !rights.contains('w'));
        let ends = range
            .split_once('-')
            .map(|(start, end)| (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)));
        if let Some((Ok(start), Ok(end))) = ends
            && (is_code || is_constant)
            && path.starts_with('/')
        {
            found.push(start..end);
        }
    }
    found.into_iter()
}

/// Finds the listening TCP sockets of a port. With `among`, only those processes are asked whether they hold one.
///
/// # Errors
/// When the tables cannot be read.
pub fn listeners(port: u16, among: Option<&[i32]>) -> io::Result<Vec<Listener>> {
    let mut sockets = listening()?;
    sockets.retain(|(socket, _)| socket.port == port);
    let holders = holders(&sockets.iter().map(|(socket, _)| *socket).collect::<Vec<_>>(), among)?;
    let listener = |((_, address), process): ((_, IpAddr), _)| Listener { process, v6: address.is_ipv6() };
    Ok(sockets.into_iter().zip(holders).map(listener).collect())
}

/// The listening TCP sockets of these processes.
///
/// # Errors
/// When the tables cannot be read.
pub fn sockets_of(pids: &[i32]) -> io::Result<Vec<Socket>> {
    let held: BTreeSet<u64> = pids.iter().flat_map(|&pid| socket_inodes(pid)).collect();
    // Most services that listen have few sockets, and most others none: then there is nothing to look up.
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let sockets = listening()?.into_iter().map(|(socket, _)| socket);
    Ok(sockets.filter(|socket| held.contains(&socket.number)).collect())
}

/// Where these processes listen, each socket once for each process that holds it.
///
/// # Errors
/// When the tables cannot be read.
pub fn listening_by(pids: &[i32]) -> io::Result<Vec<Listening>> {
    let held: Vec<(i32, BTreeSet<u64>)> = pids.iter().map(|&pid| (pid, socket_inodes(pid).collect())).collect();
    if held.iter().all(|(_, inodes)| inodes.is_empty()) {
        return Ok(Vec::new());
    }
    let sockets: BTreeMap<u64, (u16, IpAddr)> =
        listening()?.into_iter().map(|(socket, address)| (socket.number, (socket.port, address))).collect();
    let of = |(pid, inodes): (i32, BTreeSet<u64>)| {
        let found: Vec<_> = inodes.iter().filter_map(|inode| sockets.get(inode)).copied().collect();
        found.into_iter().map(move |(port, address)| Listening { pid, port, address })
    };
    Ok(held.into_iter().flat_map(of).collect())
}

/// Those of `sockets` that somebody still listens on, and who, where the kernel shows it.
///
/// # Errors
/// When the tables cannot be read.
pub fn still_open(sockets: &[Socket]) -> io::Result<Vec<(Socket, Option<Process>)>> {
    let mut open: Vec<Socket> = listening()?.into_iter().map(|(socket, _)| socket).collect();
    open.retain(|socket| sockets.contains(socket));
    let holders = holders(&open, None)?;
    Ok(open.into_iter().zip(holders).collect())
}

/// The ports on which anybody listens.
///
/// # Errors
/// When the tables cannot be read.
pub fn open_ports() -> io::Result<BTreeSet<u16>> {
    Ok(listening()?.into_iter().map(|(socket, _)| socket.port).collect())
}

/// Every listening TCP socket, and its address.
fn listening() -> io::Result<Vec<(Socket, IpAddr)>> {
    super::diag::listening().or_else(|_| listed())
}

/// The same from the files that every kernel has.
fn listed() -> io::Result<Vec<(Socket, IpAddr)>> {
    let mut sockets = Vec::new();
    for (table, v6) in [("/proc/net/tcp", false), ("/proc/net/tcp6", true)] {
        match fs::read_to_string(table) {
            Ok(text) => sockets.extend(parse_listening(&text)),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && v6 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sockets)
}

/// Who holds each of these sockets, of `among` or of all processes: whoever had it first.
fn holders(sockets: &[Socket], among: Option<&[i32]>) -> io::Result<Vec<Option<Process>>> {
    let mut found = vec![None; sockets.len()];
    if sockets.is_empty() {
        return Ok(found);
    }
    let candidates = match among {
        Some(among) => among.to_vec(),
        None => pids()?.collect(),
    };
    for pid in candidates {
        for inode in socket_inodes(pid) {
            if let Some(index) = sockets.iter().position(|socket| socket.number == inode) {
                found[index] = super::first_holder(found[index].take(), look(pid));
            }
        }
    }
    Ok(found)
}

/// Reads the sockets that listen out of `/proc/net/tcp` or `tcp6` (proc_pid_net(5)).
fn parse_listening(table: &str) -> impl Iterator<Item = (Socket, IpAddr)> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let (address, port) = local.rsplit_once(':')?;
        if state != LISTEN {
            return None;
        }
        let port = u16::from_str_radix(port, 16).ok()?;
        Some((Socket { port, number: fields.nth(5)?.parse().ok()? }, parse_address(address)?))
    })
}

/// Reads an address: one or four words of 32 bits, each in network order and written as a number of this machine.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(word(0)?.into()),
        32 => {
            let bytes: [u8; 16] = [word(0)?, word(1)?, word(2)?, word(3)?].concat().try_into().ok()?;
            Some(bytes.into())
        }
        _ => None,
    }
}

fn socket_inodes(pid: i32) -> impl Iterator<Item = u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_one_number_for_its_device_and_for_the_process_table() {
        let pair = nix::pty::openpty(None, None).expect("a terminal");
        let name = nix::unistd::ttyname(&pair.slave).expect("a name");
        // script(1) would do the same, and is not everywhere: a session leader that opens a terminal gets it.
        let child = std::process::Command::new("setsid")
            .args(["sh", "-c", "exec 3<>\"$1\"; read x <&3", "sh"])
            .arg(&name)
            .stdin(std::process::Stdio::null())
            .spawn();
        let mut child = child.expect("setsid");
        let number = terminal_number(&pair.slave).expect("a device");
        let pid = child.id().cast_signed();
        while look(pid).is_some_and(|process| process.terminal != number && process.state != ProcessState::Zombie) {
            std::thread::yield_now();
        }
        assert_eq!(look(pid).map(|process| process.terminal), Some(number));
        child.kill().expect("a child of its own");
        child.wait().expect("reaped");
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let line = b"812 (a) S 1 (b) T 1 812 811 34816 812 4194304 0 0 0 0 0 0 0 0 20 0 1 0 98765 0 0\n";
        let process = parse_stat(line, 1000).expect("parses");
        assert_eq!(process.id, ProcessId { pid: 812, start: 98765 });
        assert_eq!(process.name, "a) S 1 (b");
        assert_eq!((process.parent, process.group, process.session, process.terminal), (1, 812, 811, 34816));
        assert_eq!(process.state, ProcessState::Stopped);
    }

    #[test]
    fn a_zombie_with_threads_is_none() {
        let line =
            |threads: u32| format!("812 (a) Z 1 812 811 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 {threads} 0 98765 0 0\n");
        let state = |threads| parse_stat(line(threads).as_bytes(), 0).expect("parses").state;
        assert_eq!((state(1), state(2)), (ProcessState::Zombie, ProcessState::Live));
    }

    #[test]
    fn a_truncated_line_is_no_process() {
        let line = b"812 (a) S 1 812 811 34816 812 4194304 0 0 0 0 0 0 0 0 20 0 1 0 98765";
        for cut in 0..line.len() - 5 {
            assert_eq!(parse_stat(&line[..cut], 0), None, "cut at {cut}");
        }
    }

    #[test]
    fn what_was_written_to_is_not_given_back() {
        let maps = "1000-2000 r--p 00000000 fe:00 1 /bin/locald-shim\n2000-5000 r-xp 00001000 fe:00 1 /bin/locald-shim\n\
            5000-6000 r--p 00004000 fe:00 1 /bin/locald-shim\n6000-7000 r--p 00005000 fe:00 1 /bin/locald-shim\n\
            7000-8000 rw-p 00006000 fe:00 1 /bin/locald-shim\n8000-9000 rw-p 00000000 00:00 0 [heap]\n\
            9000-a000 r--p 00000000 00:00 0 [vvar]\na000-b000 r-xp 00000000 00:00 0 [vdso]\n\
            b000-c000 r--p 00000000 fe:00 2 /etc/file\n";
        assert_eq!(unwritten(maps).collect::<Vec<_>>(), [0x1000..0x2000, 0x2000..0x5000, 0x5000..0x6000]);
    }

    #[test]
    fn a_message_and_the_files_tell_the_same_of_a_socket() {
        for address in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            // Where there is no IPv6 nobody listens there.
            let Ok(socket) = std::net::TcpListener::bind(address) else { continue };
            let port = socket.local_addr().expect("bound").port();
            let of = |sockets: Vec<(Socket, IpAddr)>| -> Vec<_> {
                sockets.into_iter().filter(|(socket, _)| socket.port == port).collect()
            };
            let files = of(listed().expect("readable"));
            assert_eq!(files.len(), 1);
            // A kernel that does not answer is asked by the files alone.
            if let Ok(sockets) = super::super::diag::listening() {
                assert_eq!(of(sockets), files);
            }
        }
    }

    #[test]
    fn only_sockets_that_listen_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0\n\
            1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4343 1 0\n\
            2: 00000000000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A 00000000:00000000 \
            00:00000000 00000000     0        0 4444 1 0\n";
        // Its words are written as numbers of a machine that counts from the little end.
        let [v4, v6] = if cfg!(target_endian = "little") { ["127.0.0.1", "::1"] } else { ["1.0.0.127", "::100:0"] };
        let found: Vec<(Socket, IpAddr)> = parse_listening(table).collect();
        let expected = [
            (Socket { port: 0x1f90, number: 4242 }, v4.parse().expect("an address")),
            (Socket { port: 0x1f91, number: 4444 }, v6.parse().expect("an address")),
        ];
        assert_eq!(found, expected);
        assert_eq!(parse_address("0100007"), None);
    }
}
