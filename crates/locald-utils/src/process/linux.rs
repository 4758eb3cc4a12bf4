//! How Linux is asked about processes: `/proc`, pidfds, the subreaper attribute.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::sys::signal::Signal;

use super::{Listener, Process, ProcessId, ProcessState, SignalError, sent, sys};

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

fn pids() -> io::Result<impl Iterator<Item = i32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
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

pub(super) fn signal(process: ProcessId, signal: Signal) -> Result<bool, SignalError> {
    match sys::pidfd_open(process.pid) {
        // The number cannot change hands while the pidfd is open, so what is looked at now is what gets the signal.
        Ok(pidfd) if ProcessId::of(process.pid) == Some(process) => sent(sys::pidfd_send_signal(pidfd.as_fd(), signal)),
        Ok(_) => Ok(false),
        Err(nix::errno::Errno::ESRCH) => Ok(false),
        // A kernel before 5.3 or a filter that refuses the call: check, then kill. The gap is a few microseconds.
        Err(_) if ProcessId::of(process.pid) == Some(process) => {
            sent(nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.pid), signal))
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
    for line in maps.lines() {
        let mut fields = line.split_ascii_whitespace();
        let (Some(range), Some("r-xp"), Some(path)) = (fields.next(), fields.next(), fields.nth(3)) else { continue };
        let ends = range
            .split_once('-')
            .map(|(start, end)| (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)));
        if let Some((Ok(start), Ok(end))) = ends
            && path.starts_with('/')
        {
            sys::release_code(start..end);
        }
    }
}

/// Finds the listening TCP sockets of a port. With `among`, only those processes are asked whether they hold one.
///
/// # Errors
/// When the tables cannot be read.
pub fn listeners(port: u16, among: Option<&[i32]>) -> io::Result<Vec<Listener>> {
    let mut sockets: Vec<(u64, bool)> = Vec::new();
    for (table, v6) in [("/proc/net/tcp", false), ("/proc/net/tcp6", true)] {
        match fs::read_to_string(table) {
            Ok(text) => sockets.extend(listening_inodes(&text, port).map(|inode| (inode, v6))),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && v6 => {}
            Err(error) => return Err(error),
        }
    }
    if sockets.is_empty() {
        return Ok(Vec::new());
    }
    let candidates = match among {
        Some(among) => among.to_vec(),
        None => pids()?.collect(),
    };
    let mut found: Vec<Listener> = sockets.iter().map(|&(_, v6)| Listener { process: None, v6 }).collect();
    for pid in candidates {
        for inode in socket_inodes(pid) {
            if let Some(index) = sockets.iter().position(|&(wanted, _)| wanted == inode) {
                found[index].process = super::first_holder(found[index].process.take(), look(pid));
            }
        }
    }
    Ok(found)
}

/// Reads the inodes of sockets that listen on `port` out of `/proc/net/tcp` or `tcp6` (proc_pid_net(5)).
fn listening_inodes(table: &str, port: u16) -> impl Iterator<Item = u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let (_, hex) = local.rsplit_once(':')?;
        if state != LISTEN || u16::from_str_radix(hex, 16).ok()? != port {
            return None;
        }
        fields.nth(5)?.parse().ok()
    })
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
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let line = b"812 (a) S 1 (b) T 1 812 811 34816 812 4194304 0 0 0 0 0 0 0 0 20 0 1 0 98765 0 0\n";
        let process = parse_stat(line, 1000).expect("parses");
        assert_eq!(process.id, ProcessId { pid: 812, start: 98765 });
        assert_eq!(process.name, "a) S 1 (b");
        assert_eq!((process.parent, process.group, process.session, process.terminal), (1, 812, 811, 34816));
        assert_eq!(process.state, ProcessState::Stopped);
    }

    #[test]
    fn a_truncated_line_is_no_process() {
        let line = b"812 (a) S 1 812 811 34816 812 4194304 0 0 0 0 0 0 0 0 20 0 1 0 98765";
        for cut in 0..line.len() - 5 {
            assert_eq!(parse_stat(&line[..cut], 0), None, "cut at {cut}");
        }
    }

    #[test]
    fn only_listening_sockets_of_the_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0\n\
            1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4343 1 0\n\
            2: 00000000:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4444 1 0\n";
        assert_eq!(listening_inodes(table, 0x1f90).collect::<Vec<_>>(), [4242]);
    }
}
