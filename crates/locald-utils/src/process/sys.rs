//! System calls that neither std nor nix wraps safely, one small function each. All unsafe code of locald is here.
#![expect(unsafe_code, reason = "the one place for calls that the compiler cannot check")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag};

/// Takes over a descriptor that this process was started with, and closes it on exec from now on.
///
/// # Errors
/// EBADF when the process was not given that descriptor.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: borrowing a number is only used to ask the kernel whether it is open; nothing is closed by it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    nix::fcntl::fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: the descriptor is open, and the caller is the only one in this process who knows it: it came by exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// 512: more than one message may carry: 253 on Linux (SCM_MAX_FD in the kernel's net/scm.h), 512 on macOS, where what there is no
/// room for is installed nevertheless and would be open for ever.
const MOST_DESCRIPTORS: usize = 512;

/// Receives bytes, and takes over the descriptors that came with them (SCM_RIGHTS), even if some did not arrive.
///
/// # Errors
/// Those of recvmsg(2).
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    #[cfg(target_os = "linux")]
    let flags = libc::MSG_CMSG_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = 0;
    /// In words, and so aligned as a header must be; with room for one.
    const ROOM: usize = MOST_DESCRIPTORS * size_of::<RawFd>() / size_of::<usize>() + 8;
    let mut control = [0usize; ROOM];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: an empty header is one of zeroes; it has private padding in some libraries.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // Its type differs between libraries.
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the header points to one buffer and to room for control messages, both alive and of the lengths given.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let mut descriptors = Vec::new();
    let end = control.as_ptr().addr() + size_of_val(&control).min(message.msg_controllen as usize);
    // SAFETY: the kernel has filled `control` as far as the header says now, which CMSG_FIRSTHDR, CMSG_NXTHDR and `end` keep to; the
    // numbers behind a header of SCM_RIGHTS were made for this very call, and nobody else owns them.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while let Some(found) = header.as_ref() {
            if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                #[cfg_attr(target_os = "linux", expect(clippy::unnecessary_cast, reason = "it is narrower on macOS"))]
                let length = found.cmsg_len as usize;
                // macOS leaves the length as it was sent when it cuts the numbers off.
                let bytes = (header.addr() + length).min(end).saturating_sub(data.addr());
                for index in 0..bytes / size_of::<RawFd>() {
                    descriptors.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok((count, descriptors))
}

/// Duplicates a descriptor that some other object owns, closed on exec.
///
/// # Errors
/// Those of fcntl(2): EBADF, EMFILE.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the number is borrowed for one call, which fails with EBADF if nothing is open under it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    borrowed.try_clone_to_owned()
}

/// Duplicates a descriptor onto the lowest free number from `lowest` on, closed on exec.
///
/// # Errors
/// Those of fcntl(2), F_DUPFD_CLOEXEC: EMFILE, EINVAL.
pub fn duplicate_above(fd: impl AsFd, lowest: RawFd) -> io::Result<OwnedFd> {
    let number = nix::fcntl::fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: the kernel made this descriptor for this very call; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Learns how a child has ended without reaping it: its zombie, and with it its number, stays (waitid(2), WNOWAIT).
///
/// Returns `None` while it runs.
///
/// # Errors
/// ECHILD when it is no child of ours, or was reaped.
pub fn exited(pid: libc::pid_t) -> nix::Result<Option<crate::record::ExitStatus>> {
    use crate::record::ExitStatus;
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: siginfo_t is plain data for which zero bytes are a value; waitid overwrites it.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` outlives the call, and the other arguments are integers.
    Errno::result(unsafe { libc::waitid(libc::P_PID, pid.cast_unsigned(), &raw mut info, flags) })?;
    // SAFETY: waitid fills in the fields of a SIGCHLD, or leaves the zeros when nothing has ended.
    let (child, status) = unsafe { (info.si_pid(), info.si_status()) };
    if child == 0 {
        return Ok(None);
    }
    Ok(Some(if info.si_code == libc::CLD_EXITED { ExitStatus::Code(status) } else { ExitStatus::Signal(status) }))
}

/// The number of a child that has ended and was not reaped, which it stays (waitid(2), P_ALL and WNOWAIT). `None` when there
/// is none; the same one again until somebody reaps it.
///
/// # Errors
/// ECHILD when there are no children.
pub fn any_exited() -> nix::Result<Option<libc::pid_t>> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: siginfo_t is plain data for which zero bytes are a value; waitid overwrites it.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` outlives the call, and the other arguments are integers.
    Errno::result(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) })?;
    // SAFETY: waitid fills in the fields of a SIGCHLD, or leaves the zeros when nothing has ended.
    let child = unsafe { info.si_pid() };
    Ok((child != 0).then_some(child))
}

/// Ignores a signal from now on; programs started by [`super::Spawn`] have the default again.
///
/// # Errors
/// EINVAL for a signal that cannot be ignored.
pub fn ignore(signal: nix::sys::signal::Signal) -> nix::Result<()> {
    // SAFETY: SIG_IGN runs no code of ours, so nothing can be reentered.
    unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigIgn) }.map(drop)
}

/// Takes the pages of a range of file-backed memory that was never written to out of this process (madvise(2), MADV_DONTNEED).
#[cfg(target_os = "linux")]
pub fn release_code(range: std::ops::Range<usize>) {
    let start = std::ptr::with_exposed_provenance_mut(range.start);
    // SAFETY: the caller read the range from /proc/self/maps as not writable, and left out what was relocated. Such pages
    // are as they are in the file, from where the kernel brings back every one that is touched again, this function's included.
    unsafe { libc::madvise(start, range.len(), libc::MADV_DONTNEED) };
}

/// Goes on in a child that leads a session of its own, and ends the process that was started. So whoever started it is no
/// ancestor, and is not taken for one who collects orphans (fork(2), `PR_SET_CHILD_SUBREAPER` in prctl(2)).
///
/// To be called before any thread is started.
///
/// # Errors
/// EAGAIN at the process limit, ENOMEM.
#[cfg(target_os = "linux")]
pub fn leave_parent() -> nix::Result<()> {
    // SAFETY: there is no other thread, so the child has everything that this process has, and no lock is held by nobody.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => nix::unistd::setsid().map(drop),
        // SAFETY: takes an integer and does not return; nothing is flushed or dropped that the child goes on with.
        nix::unistd::ForkResult::Parent { .. } => unsafe { libc::_exit(0) },
    }
}

/// Gives free pages of the heap back to the kernel, those below the top as well (malloc_trim(3); glibc only).
pub fn trim_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes an integer, touches no memory that is in use, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has all threads of this process take memory from one heap (mallopt(3), M_ARENA_MAX; glibc only). Otherwise each new thread may
/// reserve 64 MB of addresses for one of its own, which stays when it has ended.
pub fn share_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes two integers, touches no memory that is in use, and may be called at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Makes `tty` the controlling terminal of the calling process, which must lead a session that has none.
///
/// # Errors
/// EPERM when it does not lead a session, has a terminal, or the terminal belongs to another session (tty_ioctl(4)).
pub fn take_controlling_terminal(tty: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer, no pointer; 0 asks not to steal the terminal from another session.
    // The cast: the request is a `c_uint` on macOS where ioctl takes a `c_ulong`, and a `c_ulong` already on Linux.
    let result = unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSCTTY as libc::c_ulong, 0) };
    Errno::result(result)?;
    Ok(())
}

/// The size of a terminal, asked at either end: rows and columns (TIOCGWINSZ, tty_ioctl(4)). Both are 0 where nobody has set it.
///
/// # Errors
/// ENOTTY when it is no terminal.
pub fn window_size(tty: impl AsFd) -> nix::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one `winsize`, which outlives the call.
    Errno::result(unsafe { libc::ioctl(tty.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok((size.ws_row, size.ws_col))
}

/// Sets the size of a terminal at either end. Its foreground group gets SIGWINCH if it is another than before (TIOCSWINSZ,
/// tty_ioctl(4)).
///
/// # Errors
/// ENOTTY when it is no terminal.
pub fn set_window_size(tty: impl AsFd, (rows, columns): (u16, u16)) -> nix::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads one `winsize`, which outlives the call.
    Errno::result(unsafe { libc::ioctl(tty.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

/// Duplicates `from` onto the number `to`, which stays open across exec. Whatever had that number is closed.
///
/// # Errors
/// Those of dup2(2).
pub fn place(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    // SAFETY: dup2 takes two integers; callers place only at numbers that no owned descriptor of theirs has.
    let result = unsafe { libc::dup2(from.as_raw_fd(), to) };
    Errno::result(result)?;
    Ok(())
}

/// Has every descriptor from `first` up closed by the next exec, whoever opened it and whatever it was inherited from.
///
/// # Errors
/// Those of reading `/dev/fd`, whose descriptors are marked one by one where the call fails: close_range(2) is there
/// since Linux 5.9, its flag since 5.11, and not on macOS.
pub fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: close_range takes three integers; with CLOEXEC nothing is closed now, so no owner loses anything.
        let result =
            unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        if result == 0 {
            return Ok(());
        }
    }
    for entry in std::fs::read_dir("/dev/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        if fd >= first {
            // SAFETY: F_SETFD takes an integer; a number that is not open is answered by EBADF, which does not matter.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Goes on in a new process as well (fork(2)). Returns `true` there. Only for a process of one thread, in which the child may do whatever
/// its parent may.
///
/// # Errors
/// EAGAIN and ENOMEM.
pub fn fork() -> nix::Result<bool> {
    // SAFETY: no other thread can have held a lock that nobody gives back in the child.
    Ok(unsafe { nix::unistd::fork() }?.is_child())
}

/// What a new process is to become. Everything is made beforehand, because between fork and exec nothing may be.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub struct Image<'a> {
    /// The program's path.
    pub program: &'a std::ffi::CStr,
    /// Its arguments, the name first.
    pub args: &'a [std::ffi::CString],
    /// Its environment.
    pub env: &'a [std::ffi::CString],
    /// Which descriptor it gets under which number. The former lie above all of the latter.
    pub descriptors: &'a [(RawFd, RawFd)],
}

/// Starts a program in a cgroup, as the leader of a session, with signals at their defaults (clone3(2), CLONE_INTO_CGROUP).
///
/// A process that is born in its cgroup costs nothing; one that is moved there waits for the whole machine, 10 ms as a rule.
/// As with vfork(2), the caller sleeps until the child has executed the program or could not, and copies no memory for it.
///
/// # Errors
/// ENOSYS before Linux 5.7, on processors that nobody wrote this for, and where a filter refuses the call; EACCES, EOPNOTSUPP
/// and EBUSY where the cgroup takes no process; those of execve(2). Nothing is left of the child then.
#[cfg(target_os = "linux")]
pub fn start_in_cgroup(cgroup: BorrowedFd<'_>, image: &Image<'_>) -> nix::Result<libc::pid_t> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    let pointers = |texts: &[std::ffi::CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(image.args), pointers(image.env));
    let mut child = Child { image, args: args.as_ptr(), env: env.as_ptr(), errno: 0 };
    // SAFETY: clone_args is plain data for which zero bytes mean that nothing is asked for.
    let mut clone: libc::clone_args = unsafe { std::mem::zeroed() };
    let shared = libc::CLONE_VM | libc::CLONE_VFORK;
    clone.flags = 0x2_0000_0000 | u64::from(shared.unsigned_abs()); // CLONE_INTO_CGROUP (linux/sched.h), wider than libc's constants.
    clone.exit_signal = libc::SIGCHLD as u64;
    clone.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    // No handler of the caller's may run in the child, which shares its memory.
    let mut before = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    // SAFETY: `clone` asks for a child that shares memory while the caller sleeps, and `child` lives until it has woken.
    let started = unsafe { clone_and_run(&clone, &raw mut child) };
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    let pid = started?;
    if child.errno != 0 {
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
        return Err(Errno::from_raw(child.errno));
    }
    Ok(pid)
}

/// What a child is to execute, and why it could not.
#[cfg(target_os = "linux")]
struct Child<'a> {
    image: &'a Image<'a>,
    args: *const *const libc::c_char,
    env: *const *const libc::c_char,
    errno: libc::c_int,
}

/// What a child does between clone and exec, on memory that its sleeping parent lends it.
///
/// # Safety
/// `child` must be valid, all signals must be blocked, and the thread whose stack this is must sleep.
#[cfg(target_os = "linux")]
unsafe extern "C" fn run_child(child: *mut Child<'_>) -> ! {
    // SAFETY: the caller vouches for `child`. Nothing but calls that are safe after vfork(2) follows, and nothing returns.
    unsafe {
        for signal in 1..=64 {
            // Those that cannot be changed refuse, which is right.
            libc::signal(signal, libc::SIG_DFL);
        }
        libc::setsid();
        for &(from, to) in (*child).image.descriptors {
            libc::dup2(from, to);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::execve((*child).image.program.as_ptr(), (*child).args, (*child).env);
        (*child).errno = Errno::last_raw();
        libc::_exit(127);
    }
}

/// Clones this process and has the clone run [`run_child`]. Returns its number.
///
/// Both go on from the same instruction with the same stack, so no compiled code may lie between the clone's first step and
/// its own function: it could overwrite what its parent has yet to read there.
///
/// # Safety
/// `clone` must ask for CLONE_VM and CLONE_VFORK and for no stack, all signals must be blocked, and `child` must be valid.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone_and_run(clone: &libc::clone_args, child: *mut Child<'_>) -> nix::Result<libc::pid_t> {
    let result: isize;
    // SAFETY: the parent's registers are as before but for the result and what the instruction spoils. What the clone does
    // it does below the parent's stack pointer, on stack that is in nobody's use, and it never comes back.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, {child}",
            "call {run}",
            "2:",
            child = in(reg) child,
            run = sym run_child,
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") clone,
            in("rsi") size_of::<libc::clone_args>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x0, {child}",
            "bl {run}",
            "2:",
            child = in(reg) child,
            run = sym run_child,
            in("x8") libc::SYS_clone3 as isize,
            inlateout("x0") std::ptr::from_ref(clone) => result,
            in("x1") size_of::<libc::clone_args>(),
            out("x30") _,
        );
    }
    match i32::try_from(result) {
        Ok(pid) if pid > 0 => Ok(pid),
        Ok(error) => Err(Errno::from_raw(-error)),
        Err(_) => Err(Errno::EINVAL),
    }
}

/// Nobody wrote it for this processor.
#[cfg(all(target_os = "linux", not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
unsafe fn clone_and_run(_: &libc::clone_args, _: *mut Child<'_>) -> nix::Result<libc::pid_t> {
    Err(Errno::ENOSYS)
}

/// Opens a descriptor for a process (pidfd_open(2)).
///
/// # Errors
/// ESRCH when there is no such process; ENOSYS before Linux 5.3.
#[cfg(target_os = "linux")]
pub fn pidfd_open(pid: libc::pid_t) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor, closed on exec, for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal through a pidfd (pidfd_send_signal(2)).
///
/// # Errors
/// ESRCH when the process has been reaped, EPERM when it runs as somebody else.
#[cfg(target_os = "linux")]
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: nix::sys::signal::Signal) -> nix::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed and means what kill(2) would send; the rest are integers.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as libc::c_int, no_info, 0) };
    Errno::result(result).map(drop)
}

/// Asks for the soft limit of another process on real-time computing, in microseconds (prlimit(2), RLIMIT_RTTIME).
///
/// # Errors
/// ESRCH when it is gone, EPERM when it runs as somebody else.
#[cfg(target_os = "linux")]
pub fn rttime_limit(pid: libc::pid_t) -> nix::Result<u64> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel reads nothing, because no new limit is given, and writes one rlimit64, which outlives the call.
    let result = unsafe { libc::prlimit64(pid, libc::RLIMIT_RTTIME, std::ptr::null(), &raw mut limit) };
    Errno::result(result)?;
    Ok(limit.rlim_cur)
}

/// Asks for a value of the kernel by its number (sysctl(3)). Returns how many bytes of `buffer` were written.
///
/// # Errors
/// ENOMEM when the buffer is too small, as a rule; EINVAL for `KERN_PROCARGS2` of a process that is gone, a zombie or
/// somebody else's.
#[cfg(target_os = "macos")]
pub fn sysctl(name: &[libc::c_int], buffer: &mut [u8]) -> nix::Result<usize> {
    let numbers = libc::c_uint::try_from(name.len()).map_err(|_| Errno::EINVAL)?;
    let mut count = buffer.len();
    // SAFETY: the kernel reads `numbers` integers of `name`, which it does not write to though the pointer allows it,
    // and writes at most `count` bytes of `buffer`; all outlive the call. No new value is given.
    let result = unsafe {
        let no_value = std::ptr::null_mut();
        libc::sysctl(name.as_ptr().cast_mut(), numbers, buffer.as_mut_ptr().cast(), &raw mut count, no_value, 0)
    };
    Errno::result(result)?;
    Ok(count)
}

/// Asks for a value of the kernel by its name (sysctlbyname(3)). Returns how many bytes of `buffer` were written.
///
/// # Errors
/// ENOENT when there is no such value, ENOMEM when the buffer is too small.
#[cfg(target_os = "macos")]
pub fn sysctl_by_name(name: &std::ffi::CStr, buffer: &mut [u8]) -> nix::Result<usize> {
    let mut count = buffer.len();
    // SAFETY: `name` ends with a NUL; the kernel writes at most `count` bytes of `buffer`; both outlive the call. No new
    // value is given.
    let result = unsafe {
        let no_value = std::ptr::null_mut();
        libc::sysctlbyname(name.as_ptr(), buffer.as_mut_ptr().cast(), &raw mut count, no_value, 0)
    };
    Errno::result(result)?;
    Ok(count)
}

/// Asks for information about a process (libproc.h). Returns how many bytes of `buffer` were written, never 0.
///
/// What `argument` means is up to the flavor; where it means nothing, 0 is given.
///
/// # Errors
/// ESRCH when it is gone, EPERM when it is somebody else's, ENOMEM when the buffer is too small for one record.
#[cfg(target_os = "macos")]
pub fn proc_pidinfo(pid: i32, flavor: libc::c_int, argument: u64, buffer: &mut [u8]) -> nix::Result<usize> {
    let size = libc::c_int::try_from(buffer.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel writes at most `size` bytes of `buffer`, which outlives the call; the rest are integers.
    let result = unsafe { libc::proc_pidinfo(pid, flavor, argument, buffer.as_mut_ptr().cast(), size) };
    written(result)
}

/// Asks for information about a descriptor of a process (libproc.h). Returns how many bytes of `buffer` were written,
/// never 0.
///
/// # Errors
/// EBADF when it is closed or of another kind, else as [`proc_pidinfo`].
#[cfg(target_os = "macos")]
pub fn proc_pidfdinfo(pid: i32, fd: RawFd, flavor: libc::c_int, buffer: &mut [u8]) -> nix::Result<usize> {
    let size = libc::c_int::try_from(buffer.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel writes at most `size` bytes of `buffer`, which outlives the call; the rest are integers, and
    // `fd` is a number in the other process.
    let result = unsafe { libc::proc_pidfdinfo(pid, fd, flavor, buffer.as_mut_ptr().cast(), size) };
    written(result)
}

/// Reads what libproc returns: it tells a failure by 0, not by -1.
#[cfg(target_os = "macos")]
fn written(result: libc::c_int) -> nix::Result<usize> {
    match usize::try_from(result) {
        Ok(count) if count > 0 => Ok(count),
        Ok(_) | Err(_) => Err(Errno::last()),
    }
}

/// Whether close_range(2) is there and understands CLOSE_RANGE_CLOEXEC (Linux 5.11). Asked about no descriptor at all.
///
/// # Errors
/// ENOSYS before Linux 5.9, EINVAL before 5.11.
#[cfg(target_os = "linux")]
pub fn probe_close_range() -> nix::Result<()> {
    let none = libc::c_uint::MAX;
    // SAFETY: close_range takes three integers; no descriptor has this number, so none is changed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, none, none, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}

/// Whether a pidfd can signal a process group (pidfd_send_signal(2), PIDFD_SIGNAL_PROCESS_GROUP). Sends nothing.
///
/// # Errors
/// EINVAL before Linux 6.9; ESRCH when the process leads no group.
#[cfg(target_os = "linux")]
pub fn probe_pidfd_groups(pidfd: BorrowedFd<'_>) -> nix::Result<()> {
    /// `PIDFD_SIGNAL_PROCESS_GROUP` of linux/pidfd.h.
    const PROCESS_GROUP: libc::c_uint = 1 << 2;
    let (no_signal, no_info) = (0, std::ptr::null::<libc::siginfo_t>());
    // SAFETY: signal 0 only checks (kill(2)), a null siginfo is allowed, and the rest are integers.
    let result =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), no_signal, no_info, PROCESS_GROUP) };
    Errno::result(result).map(drop)
}

/// Signals a process only if its number and the version of its program are these (libproc.h,
/// `proc_signal_with_audittoken`). `None` on macOS before 14.4, which lacks the call.
///
/// # Errors
/// ESRCH when the number belongs to a process of another version, a zombie, or nobody; EPERM when it runs as somebody
/// else.
#[cfg(target_os = "macos")]
pub fn signal_version(pid: i32, version: i32, signal: nix::sys::signal::Signal) -> Option<nix::Result<()>> {
    use std::sync::OnceLock;

    /// The C declaration has no `const`, but the token is only read.
    type Call = unsafe extern "C" fn(token: *mut [u32; 8], signal: libc::c_int) -> libc::c_int;
    static CALL: OnceLock<Option<Call>> = OnceLock::new();
    let call = *CALL.get_or_init(|| {
        // SAFETY: the name ends with a NUL; looking a symbol up in the libraries that are loaded runs none of them.
        let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"proc_signal_with_audittoken".as_ptr()) };
        // SAFETY: the symbol, where there is one, is the function of libSystem that has this signature; null is `None`.
        unsafe { std::mem::transmute::<*mut libc::c_void, Option<Call>>(symbol) }
    });
    // Of the eight words of an audit token the kernel compares these two alone (XNU `proc_signal_with_audittoken`).
    let mut token = [0; 8];
    token[5] = pid.cast_unsigned();
    token[7] = version.cast_unsigned();
    // SAFETY: `token` has the size and alignment of an `audit_token_t` and outlives the call.
    let result = unsafe { call?(&raw mut token, signal as libc::c_int) };
    // It returns the number of its error, and not -1.
    Some(if result == 0 { Ok(()) } else { Err(if result > 0 { Errno::from_raw(result) } else { Errno::last() }) })
}

/// Asks a pidfd how its process ended (ioctl_pidfd(2), PIDFD_GET_INFO with PIDFD_INFO_EXIT; Linux 6.15), as a wait status.
///
/// Returns `None` while the process runs or has not been reaped.
///
/// # Errors
/// ESRCH when it has been reaped and the kernel, of 6.13 or 6.14, does not keep how it ended; ENOTTY before 6.13.
#[cfg(target_os = "linux")]
pub fn pidfd_exit_status(pidfd: BorrowedFd<'_>) -> nix::Result<Option<i32>> {
    let exit = u64::from(libc::PIDFD_INFO_EXIT);
    // SAFETY: pidfd_info is plain data for which zero bytes are a value.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = exit;
    // SAFETY: the request carries the size of `info`, of which the kernel writes no more and which outlives the call.
    Errno::result(unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::PIDFD_GET_INFO, &raw mut info) })?;
    Ok((info.mask & exit != 0).then_some(info.exit_code))
}
