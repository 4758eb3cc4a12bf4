//! What the macOS kernel writes about processes, as bytes: the layouts and their parsers, without a system call.
//!
//! `macos` asks the kernel and hands its answers to the functions here. They take any bytes, never panic, and are
//! compiled and tested on every system, because nobody runs the tests on a Mac. Offsets are those of XNU for 64-bit
//! processes (xnu-11417, macOS 15.4), where both architectures are little endian; the tests state the C declarations
//! again and hold the offsets against them.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use super::{Process, ProcessId, ProcessState};

/// The size of a `struct kinfo_proc` (sys/sysctl.h).
pub const KINFO_PROC_SIZE: usize = 648;
/// The size of a `struct proc_vnodepathinfo` (sys/proc_info.h).
pub const VNODE_PATH_INFO_SIZE: usize = 2352;
/// The size of a `struct proc_fdinfo` (sys/proc_info.h).
pub const FD_INFO_SIZE: usize = 8;
/// The size of a `struct socket_fdinfo` (sys/proc_info.h).
pub const SOCKET_FD_INFO_SIZE: usize = 792;
/// The size of a `struct proc_uniqidentifierinfo` (sys/proc_info_private.h).
pub const UNIQUE_ID_INFO_SIZE: usize = 56;
/// The largest buffer that the kernel takes for `KERN_PROCARGS2`: `ARG_MAX` (sys/syslimits.h) and the count before it.
/// Only the largest will do: in one that is too small it puts the end of the strings instead of their beginning, with
/// success.
pub const ARGUMENTS_SIZE: usize = 4 + 1024 * 1024;

/// The session of a process that neither the kernel nor its neighbours tell. No session has this number.
pub const UNKNOWN_SESSION: i32 = 0;

/// Where the fields of a `struct kinfo_proc` lie: first `struct extern_proc` (sys/proc.h), at 296 `struct eproc`.
mod kinfo {
    pub(super) const START_SECONDS: usize = 0;
    pub(super) const START_MICROSECONDS: usize = 8;
    pub(super) const STATE: usize = 36;
    pub(super) const PID: usize = 40;
    pub(super) const NAME: usize = 243;
    pub(super) const NAME_SIZE: usize = 17;
    pub(super) const REAL_UID: usize = 392;
    pub(super) const PARENT: usize = 560;
    pub(super) const GROUP: usize = 564;
    pub(super) const TERMINAL: usize = 572;
    pub(super) const FLAGS: usize = 612;
    /// `SSTOP` (sys/proc.h).
    pub(super) const STOPPED: u8 = 4;
    /// `SZOMB` (sys/proc.h).
    pub(super) const ZOMBIE: u8 = 5;
    /// `EPROC_SLEADER` (sys/sysctl.h).
    pub(super) const LEADS_SESSION: i32 = 0x02;
    /// `NODEV`: no controlling terminal.
    pub(super) const NO_DEVICE: i32 = -1;
}

/// Where the path lies in a `struct proc_vnodepathinfo`: behind a `struct vnode_info`, `MAXPATHLEN` bytes.
pub(super) const DIRECTORY: usize = 152;
const DIRECTORY_SIZE: usize = 1024;

/// Where the fields of a `struct socket_fdinfo` lie (sys/proc_info.h).
mod socket {
    pub(super) const HANDLE: usize = 160;
    pub(super) const FAMILY: usize = 184;
    pub(super) const KIND: usize = 256;
    pub(super) const LOCAL_PORT: usize = 268;
    pub(super) const TCP_STATE: usize = 344;
    /// `AF_INET` (sys/socket.h).
    pub(super) const INET: i32 = 2;
    /// `AF_INET6` (sys/socket.h); 10 on Linux.
    pub(super) const INET6: i32 = 30;
    /// `SOCKINFO_TCP`.
    pub(super) const TCP: i32 = 2;
    /// `TSI_S_LISTEN`.
    pub(super) const LISTEN: i32 = 1;
}

/// `PROX_FDTYPE_SOCKET` (sys/proc_info.h).
const SOCKET_DESCRIPTOR: i32 = 2;

/// Asks again with a larger buffer until the answer leaves room in it, for questions whose answer may grow meanwhile.
///
/// `ask` returns how many bytes it wrote. A full buffer and ENOMEM both mean that there may be more: sysctl says ENOMEM,
/// libproc cuts the answer off silently.
///
/// # Errors
/// Those of `ask`; ENOMEM when 128 MiB are not enough, which hold more processes than there are numbers for.
pub fn read_growing(first: usize, mut ask: impl FnMut(&mut [u8]) -> nix::Result<usize>) -> nix::Result<Vec<u8>> {
    const MOST: usize = 128 * 1024 * 1024;
    let mut size = first.max(1);
    while size <= MOST {
        let mut buffer = vec![0; size];
        match ask(&mut buffer) {
            Ok(count) if count < size => {
                buffer.truncate(count);
                return Ok(buffer);
            }
            Ok(_) | Err(Errno::ENOMEM) => size *= 2,
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::ENOMEM)
}

/// Reads a list of `struct kinfo_proc`, as `KERN_PROC` answers. The kernel's own entry, number 0, is left out.
///
/// The kernel tells no session but whether a process leads one; [`fill_sessions`] adds the others. It does not tell who
/// sleeps uninterruptibly either, so no process is ever [`ProcessState::Uninterruptible`].
#[must_use]
pub fn processes(bytes: &[u8]) -> Vec<Process> {
    bytes.chunks_exact(KINFO_PROC_SIZE).filter_map(process).collect()
}

fn process(record: &[u8]) -> Option<Process> {
    let pid = i32_at(record, kinfo::PID).filter(|&pid| pid > 0)?;
    let seconds = u64::from_le_bytes(bytes_at(record, kinfo::START_SECONDS)?);
    let microseconds = u32::from_le_bytes(bytes_at(record, kinfo::START_MICROSECONDS)?);
    let start = seconds.checked_mul(1_000_000)?.checked_add(microseconds.into())?;
    let terminal = match i32_at(record, kinfo::TERMINAL)? {
        kinfo::NO_DEVICE => 0,
        device => device.cast_unsigned().into(),
    };
    let state = match *record.get(kinfo::STATE)? {
        kinfo::ZOMBIE => ProcessState::Zombie,
        kinfo::STOPPED => ProcessState::Stopped,
        _ => ProcessState::Live,
    };
    let leads_session = i32_at(record, kinfo::FLAGS)? & kinfo::LEADS_SESSION != 0;
    Some(Process {
        id: ProcessId { pid, start },
        parent: i32_at(record, kinfo::PARENT)?,
        group: i32_at(record, kinfo::GROUP)?,
        session: if leads_session { pid } else { UNKNOWN_SESSION },
        terminal,
        uid: u32::from_le_bytes(bytes_at(record, kinfo::REAL_UID)?),
        state,
        name: String::from_utf8_lossy(until_nul(record.get(kinfo::NAME..)?.get(..kinfo::NAME_SIZE)?)).into_owned(),
        lineage: None,
    })
}

/// Fills in the sessions that a process list lacks. `session_of` is getsid(2).
///
/// It has no answer for a zombie, whose session the others may tell: a session whose number is a zombie's was made by
/// that zombie, since no number is given out anew while it is in use, and a leader cannot leave its session; and all of
/// a group are in one session (POSIX setpgid). What still is not known stays [`UNKNOWN_SESSION`]; then nobody in the
/// list shares that session.
pub fn fill_sessions(table: &mut [Process], session_of: impl Fn(i32) -> Option<i32>) {
    for process in table.iter_mut().filter(|process| process.session == UNKNOWN_SESSION) {
        process.session = session_of(process.id.pid).unwrap_or(UNKNOWN_SESSION);
    }
    let known = || table.iter().filter(|process| process.session != UNKNOWN_SESSION);
    let sessions: BTreeSet<i32> = known().map(|process| process.session).collect();
    let by_group: BTreeMap<i32, i32> = known().map(|process| (process.group, process.session)).collect();
    for process in table.iter_mut().filter(|process| process.session == UNKNOWN_SESSION) {
        if sessions.contains(&process.id.pid) {
            process.session = process.id.pid;
        } else if let Some(&session) = by_group.get(&process.group) {
            process.session = session;
        }
    }
}

/// Finds every process below `pid` in a process list, parents before their children.
#[must_use]
pub fn descendants(table: &[Process], pid: i32) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<&Process>> = BTreeMap::new();
    for process in table {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut next = vec![pid];
    while let Some(parent) = next.pop() {
        // Taking the entry out ends the walk even if the list contradicts itself and goes in a circle.
        for child in children.remove(&parent).unwrap_or_default() {
            if child.id.pid != pid {
                found.push(child.clone());
                next.push(child.id.pid);
            }
        }
    }
    found
}

/// What a process was started with, as `KERN_PROCARGS2` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments<'a> {
    /// The path that was executed, as it was given to exec.
    pub executable: &'a [u8],
    /// Its arguments, the name it was called by included.
    pub argv: Vec<&'a [u8]>,
    /// Its environment at exec.
    pub environment: Environment<'a>,
}

/// The environment that a process was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Environment<'a> {
    /// The kernel does not show it: the program is restricted by its code signature, as Apple's own are.
    Withheld,
    /// The entries, `NAME=value` as a rule.
    Shown(Vec<&'a [u8]>),
}

impl<'a> Arguments<'a> {
    /// Reads an answer of `KERN_PROCARGS2`. `None` when it is cut off or not laid out as the kernel does.
    ///
    /// The layout: the number of arguments, the executed path, NULs to a multiple of eight, the arguments, the
    /// environment, NULs to a multiple of eight (none, if it ends on one), strings of the kernel. The kernel reads them
    /// from the stack of the process, which may have written over them: what is told here is no proof.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let count = usize::try_from(i32_at(bytes, 0)?).ok()?;
        let strings = bytes.get(4..)?;
        let (executable, end) = string_at(strings, 0)?;
        // What macOS 26 answers for a process that no one may look into: the path stands for the arguments, unpadded.
        if let Some(b"\0") = strings.get(end..).and_then(|rest| rest.strip_prefix(b"\0")?.strip_prefix(executable))
            && count == 1
        {
            return Some(Self { executable, argv: vec![executable], environment: Environment::Withheld });
        }
        let mut at = end.next_multiple_of(ALIGNMENT);
        // No byte of the padding may be missing or mean something. Skipping NULs instead would lose an empty argument.
        if strings.get(end..at)?.iter().any(|&byte| byte != 0) {
            return None;
        }
        // The count is the kernel's, but what it counts is not: every argument must be there, and room is made as it is.
        let mut argv = Vec::new();
        for _ in 0..count {
            let (argument, next) = string_at(strings, at)?;
            argv.push(argument);
            at = next;
        }
        Some(Self { executable, argv, environment: Environment::parse(strings, at) })
    }

    /// The value of an environment variable, where the environment is shown and has it.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&'a [u8]> {
        match &self.environment {
            Environment::Withheld => None,
            Environment::Shown(entries) => {
                entries.iter().find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            }
        }
    }
}

/// What the kernel pads the strings of a 64-bit program to: the size of a pointer.
const ALIGNMENT: usize = 8;

/// The names of the strings that the kernel puts behind the environment (XNU `exec_add_apple_strings`).
///
/// The C library clears the first ones soon after the start, so any of them may be the first that is seen.
const KERNEL_STRINGS: [&[u8]; 18] = [
    b"executable_path",
    b"pfz",
    b"stack_guard",
    b"malloc_entropy",
    b"ptr_munge",
    b"main_stack",
    b"executable_file",
    b"dyld_file",
    b"executable_cdhash",
    b"executable_boothash",
    b"arm64e_abi",
    b"th_port",
    b"security_config",
    b"ptrauth_disabled",
    b"dyld_flags",
    b"subsystem_root_path",
    b"has_sec_transition",
    b"vm_force_4k_pages",
];

impl<'a> Environment<'a> {
    /// Reads the environment, which begins at `at`.
    ///
    /// Nothing marks its end. It is taken to end before the first string that has a name of the kernel's and stands
    /// where the kernel's can begin: at a multiple of eight, or behind a NUL. Other empty strings are passed over: a
    /// program that shortens its title (node's `process.title`) leaves NULs where its last arguments were. A variable
    /// of that name at such a place would hide those behind it, which is the harmless direction.
    fn parse(strings: &'a [u8], mut at: usize) -> Self {
        // Where the environment is shown, the kernel's strings are as well; so nothing at all is not an empty one.
        if strings.get(at..).is_none_or(|rest| rest.iter().all(|&byte| byte == 0)) {
            return Self::Withheld;
        }
        let mut entries = Vec::new();
        let mut behind_nul = false;
        while let Some((entry, next)) = string_at(strings, at) {
            if !entry.is_empty() {
                if (behind_nul || at.is_multiple_of(ALIGNMENT)) && is_kernel_string(entry) {
                    break;
                }
                entries.push(entry);
            }
            behind_nul = entry.is_empty();
            at = next;
        }
        Self::Shown(entries)
    }
}

fn is_kernel_string(entry: &[u8]) -> bool {
    entry.iter().position(|&byte| byte == b'=').is_some_and(|name| KERNEL_STRINGS.contains(&&entry[..name]))
}

/// Reads the working directory out of a `struct proc_vnodepathinfo`.
#[must_use]
pub fn working_directory(bytes: &[u8]) -> Option<&[u8]> {
    let (path, _) = string_at(bytes.get(DIRECTORY..)?.get(..DIRECTORY_SIZE)?, 0)?;
    if path.is_empty() { None } else { Some(path) }
}

/// Reads which descriptors are sockets out of a list of `struct proc_fdinfo`.
pub fn socket_descriptors(bytes: &[u8]) -> impl Iterator<Item = i32> {
    bytes
        .chunks_exact(FD_INFO_SIZE)
        .filter_map(|record| if i32_at(record, 4)? == SOCKET_DESCRIPTOR { i32_at(record, 0) } else { None })
}

/// A TCP socket that waits for connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListeningSocket {
    /// Tells one socket from another, whoever holds it.
    pub handle: u64,
    /// Its port.
    pub port: u16,
    /// Whether it is an IPv6 socket, which may take IPv4 connections too.
    pub v6: bool,
}

impl ListeningSocket {
    /// Reads a `struct socket_fdinfo`. `None` for any socket but a listening one of TCP.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if i32_at(bytes, socket::KIND)? != socket::TCP || i32_at(bytes, socket::TCP_STATE)? != socket::LISTEN {
            return None;
        }
        let v6 = match i32_at(bytes, socket::FAMILY)? {
            socket::INET => false,
            socket::INET6 => true,
            _ => return None,
        };
        // The field is an `int`, but its first two bytes are the port in network order.
        let port = u16::from_be_bytes(bytes_at(bytes, socket::LOCAL_PORT)?);
        Some(Self { handle: u64::from_le_bytes(bytes_at(bytes, socket::HANDLE)?), port, v6 })
    }
}

/// The identity that macOS itself gives a process: a number that is not given out again before the next boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniqueId {
    /// The process, from fork to exit.
    pub process: u64,
    /// Its parent when it was forked, whatever became of that; a later exec may replace it by the parent of then.
    pub parent: u64,
    /// Changes with every exec.
    pub version: i32,
}

impl UniqueId {
    /// Reads a `struct proc_uniqidentifierinfo`.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            process: u64::from_le_bytes(bytes_at(bytes, 16)?),
            parent: u64::from_le_bytes(bytes_at(bytes, 24)?),
            version: i32_at(bytes, 32)?,
        })
    }
}

/// The bytes before the first NUL, or all of them.
#[must_use]
pub fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The string at `at`, without its NUL, and where the next one begins. `None` when no NUL ends it.
fn string_at(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(at..)?;
    let length = rest.iter().position(|&byte| byte == 0)?;
    Some((&rest[..length], at + length + 1))
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_le_bytes(bytes_at(bytes, at)?))
}

fn bytes_at<const SIZE: usize>(bytes: &[u8], at: usize) -> Option<[u8; SIZE]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use proptest::prelude::*;

    use super::*;

    /// The declarations of XNU's headers, said again for their layout. A pointer is a `u64`, `char` a `u8`; of a union
    /// the member that is read.
    mod layout {
        #[repr(C)]
        pub(super) struct Timeval {
            pub(super) tv_sec: i64,
            pub(super) tv_usec: i32,
        }

        /// sys/proc.h
        #[repr(C)]
        pub(super) struct ExternProc {
            pub(super) p_starttime: Timeval,
            p_vmspace: u64,
            p_sigacts: u64,
            p_flag: i32,
            pub(super) p_stat: u8,
            pub(super) p_pid: i32,
            p_oppid: i32,
            p_dupfd: i32,
            user_stack: u64,
            exit_thread: u64,
            p_debugger: i32,
            sigwait: i32,
            p_estcpu: u32,
            p_cpticks: i32,
            p_pctcpu: u32,
            p_wchan: u64,
            p_wmesg: u64,
            p_swtime: u32,
            p_slptime: u32,
            p_realtimer: [Timeval; 2],
            p_rtime: Timeval,
            p_ticks: [u64; 3],
            p_traceflag: i32,
            p_tracep: u64,
            p_siglist: i32,
            p_textvp: u64,
            p_holdcnt: i32,
            p_sigmask: u32,
            p_sigignore: u32,
            p_sigcatch: u32,
            p_priority: u8,
            p_usrpri: u8,
            p_nice: u8,
            pub(super) p_comm: [u8; 17],
            p_pgrp: u64,
            p_addr: u64,
            p_xstat: u16,
            p_acflag: u16,
            p_ru: u64,
        }

        /// sys/sysctl.h
        #[repr(C)]
        pub(super) struct Pcred {
            pc_lock: [u8; 72],
            pc_ucred: u64,
            pub(super) p_ruid: u32,
            p_svuid: u32,
            p_rgid: u32,
            p_svgid: u32,
            p_refcnt: i32,
        }

        /// sys/sysctl.h
        #[repr(C)]
        pub(super) struct Ucred {
            cr_ref: i32,
            pub(super) cr_uid: u32,
            cr_ngroups: i16,
            cr_groups: [u32; 16],
        }

        /// sys/vm.h
        #[repr(C)]
        pub(super) struct Vmspace {
            dummy: i32,
            dummy2: u64,
            dummy3: [i32; 5],
            dummy4: [u64; 3],
        }

        /// sys/sysctl.h
        #[repr(C)]
        pub(super) struct Eproc {
            e_paddr: u64,
            e_sess: u64,
            pub(super) e_pcred: Pcred,
            pub(super) e_ucred: Ucred,
            e_vm: Vmspace,
            pub(super) e_ppid: i32,
            pub(super) e_pgid: i32,
            e_jobc: i16,
            pub(super) e_tdev: i32,
            e_tpgid: i32,
            e_tsess: u64,
            e_wmesg: [u8; 8],
            e_xsize: i32,
            e_xrssize: i16,
            e_xccount: i16,
            e_xswrss: i16,
            pub(super) e_flag: i32,
            e_login: [u8; 12],
            e_spare: [i32; 4],
        }

        /// sys/sysctl.h
        #[repr(C)]
        pub(super) struct KinfoProc {
            pub(super) kp_proc: ExternProc,
            pub(super) kp_eproc: Eproc,
        }

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) struct VinfoStat {
            vst_dev: u32,
            vst_mode: u16,
            vst_nlink: u16,
            vst_ino: u64,
            vst_uid: u32,
            vst_gid: u32,
            vst_times: [i64; 8],
            vst_size: i64,
            vst_blocks: i64,
            vst_blksize: i32,
            vst_flags: u32,
            vst_gen: u32,
            vst_rdev: u32,
            vst_qspare: [i64; 2],
        }

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) struct VnodeInfoPath {
            vi_stat: VinfoStat,
            vi_type: i32,
            vi_pad: i32,
            vi_fsid: [i32; 2],
            pub(super) vip_path: [u8; 1024],
        }

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) struct ProcVnodepathinfo {
            pub(super) pvi_cdir: VnodeInfoPath,
            pvi_rdir: VnodeInfoPath,
        }

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) struct InSockinfo {
            insi_fport: i32,
            pub(super) insi_lport: i32,
            insi_gencnt: u64,
            insi_flags: u32,
            insi_flow: u32,
            insi_vflag: u8,
            insi_ip_ttl: u8,
            rfu_1: u32,
            insi_faddr: [u32; 4],
            insi_laddr: [u32; 4],
            in4_tos: u8,
            insi_v6: In6Sockinfo,
        }

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) struct In6Sockinfo {
            in6_hlim: u8,
            in6_cksum: i32,
            in6_ifindex: u16,
            in6_hops: i16,
        }

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) struct TcpSockinfo {
            pub(super) tcpsi_ini: InSockinfo,
            pub(super) tcpsi_state: i32,
            tcpsi_timer: [i32; 4],
            tcpsi_mss: i32,
            tcpsi_flags: u32,
            rfu_1: u32,
            tcpsi_tp: u64,
        }

        /// sys/proc_info.h; two addresses of `SOCK_MAXADDRLEN` bytes make it the largest of its union.
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub(super) struct UnSockinfo {
            unsi_conn_so: u64,
            unsi_conn_pcb: u64,
            unsi_addr: [u8; 255],
            unsi_caddr: [u8; 255],
        }

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) union SoiProto {
            pub(super) pri_tcp: std::mem::ManuallyDrop<TcpSockinfo>,
            pri_un: UnSockinfo,
        }

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) struct SocketFdinfo {
            fi_openflags: u32,
            fi_status: u32,
            fi_offset: i64,
            fi_type: i32,
            fi_guardflags: u32,
            soi_stat: VinfoStat,
            pub(super) soi_so: u64,
            soi_pcb: u64,
            soi_type: i32,
            soi_protocol: i32,
            pub(super) soi_family: i32,
            soi_shorts: [i16; 7],
            soi_error: u16,
            soi_oobmark: u32,
            soi_rcv: SockbufInfo,
            soi_snd: SockbufInfo,
            pub(super) soi_kind: i32,
            rfu_1: u32,
            pub(super) soi_proto: SoiProto,
        }

        /// sys/proc_info.h
        #[repr(C)]
        pub(super) struct SockbufInfo {
            sbi_counts: [u32; 5],
            sbi_flags: i16,
            sbi_timeo: i16,
        }

        /// sys/proc_info_private.h
        #[repr(C)]
        pub(super) struct ProcUniqidentifierinfo {
            p_uuid: [u8; 16],
            pub(super) p_uniqueid: u64,
            pub(super) p_puniqueid: u64,
            pub(super) p_idversion: i32,
            p_orig_ppidversion: i32,
            p_reserve: [u64; 2],
        }
    }
    use layout::*;

    const PROTO: usize = offset_of!(SocketFdinfo, soi_proto);
    const _: () = {
        assert!(size_of::<KinfoProc>() == KINFO_PROC_SIZE);
        assert!(offset_of!(KinfoProc, kp_proc.p_starttime.tv_sec) == kinfo::START_SECONDS);
        assert!(offset_of!(KinfoProc, kp_proc.p_starttime.tv_usec) == kinfo::START_MICROSECONDS);
        assert!(offset_of!(KinfoProc, kp_proc.p_stat) == kinfo::STATE);
        assert!(offset_of!(KinfoProc, kp_proc.p_pid) == kinfo::PID);
        assert!(offset_of!(KinfoProc, kp_proc.p_comm) == kinfo::NAME);
        assert!(offset_of!(KinfoProc, kp_eproc.e_pcred.p_ruid) == kinfo::REAL_UID);
        assert!(offset_of!(KinfoProc, kp_eproc.e_ppid) == kinfo::PARENT);
        assert!(offset_of!(KinfoProc, kp_eproc.e_pgid) == kinfo::GROUP);
        assert!(offset_of!(KinfoProc, kp_eproc.e_tdev) == kinfo::TERMINAL);
        assert!(offset_of!(KinfoProc, kp_eproc.e_flag) == kinfo::FLAGS);
        assert!(size_of::<ProcVnodepathinfo>() == VNODE_PATH_INFO_SIZE);
        assert!(offset_of!(ProcVnodepathinfo, pvi_cdir.vip_path) == DIRECTORY);
        assert!(size_of::<SocketFdinfo>() == SOCKET_FD_INFO_SIZE);
        assert!(offset_of!(SocketFdinfo, soi_so) == socket::HANDLE);
        assert!(offset_of!(SocketFdinfo, soi_family) == socket::FAMILY);
        assert!(offset_of!(SocketFdinfo, soi_kind) == socket::KIND);
        assert!(PROTO + offset_of!(TcpSockinfo, tcpsi_ini.insi_lport) == socket::LOCAL_PORT);
        assert!(PROTO + offset_of!(TcpSockinfo, tcpsi_state) == socket::TCP_STATE);
        assert!(size_of::<ProcUniqidentifierinfo>() == UNIQUE_ID_INFO_SIZE);
    };

    /// A record of the kernel's, built field by field.
    struct Record(Vec<u8>);

    impl Record {
        fn new(size: usize) -> Self {
            Self(vec![0; size])
        }

        fn with<const SIZE: usize>(mut self, at: usize, value: [u8; SIZE]) -> Self {
            self.0[at..at + SIZE].copy_from_slice(&value);
            self
        }
    }

    /// `pid` in the group and session `group`, started 1.000002 s after 1970.
    fn kinfo_record(pid: i32, parent: i32, group: i32) -> Record {
        Record::new(KINFO_PROC_SIZE)
            .with(offset_of!(KinfoProc, kp_proc.p_starttime.tv_sec), 1_i64.to_le_bytes())
            .with(offset_of!(KinfoProc, kp_proc.p_starttime.tv_usec), 2_i32.to_le_bytes())
            .with(offset_of!(KinfoProc, kp_proc.p_stat), [2])
            .with(offset_of!(KinfoProc, kp_proc.p_pid), pid.to_le_bytes())
            .with(offset_of!(KinfoProc, kp_proc.p_comm), *b"postgres")
            .with(offset_of!(KinfoProc, kp_eproc.e_pcred.p_ruid), 501_u32.to_le_bytes())
            .with(offset_of!(KinfoProc, kp_eproc.e_ucred.cr_uid), 0_u32.to_le_bytes())
            .with(offset_of!(KinfoProc, kp_eproc.e_ppid), parent.to_le_bytes())
            .with(offset_of!(KinfoProc, kp_eproc.e_pgid), group.to_le_bytes())
            .with(offset_of!(KinfoProc, kp_eproc.e_tdev), (-1_i32).to_le_bytes())
    }

    #[test]
    fn a_process_list_is_read_field_by_field() {
        let mut bytes = kinfo_record(812, 1, 800).with(offset_of!(KinfoProc, kp_proc.p_stat), [4]).0;
        let leader = kinfo_record(800, 1, 800)
            .with(offset_of!(KinfoProc, kp_eproc.e_flag), 0x02_i32.to_le_bytes())
            .with(offset_of!(KinfoProc, kp_eproc.e_tdev), 0x1000_0003_i32.to_le_bytes())
            .with(offset_of!(KinfoProc, kp_proc.p_stat), [5])
            .with(offset_of!(KinfoProc, kp_proc.p_comm), *b"sixteen bytes ha\0");
        bytes.extend(leader.0);
        let stopped = Process {
            id: ProcessId { pid: 812, start: 1_000_002 },
            parent: 1,
            group: 800,
            session: UNKNOWN_SESSION,
            terminal: 0,
            uid: 501,
            state: ProcessState::Stopped,
            name: "postgres".into(),
            lineage: None,
        };
        let zombie = Process {
            id: ProcessId { pid: 800, start: 1_000_002 },
            session: 800,
            terminal: 0x1000_0003,
            state: ProcessState::Zombie,
            name: "sixteen bytes ha".into(),
            ..stopped.clone()
        };
        assert_eq!(processes(&bytes), [stopped, zombie]);
    }

    #[test]
    fn a_cut_record_and_the_kernels_own_are_no_processes() {
        let mut bytes = kinfo_record(0, 0, 0).0;
        bytes.extend(&kinfo_record(812, 1, 800).0[..KINFO_PROC_SIZE - 1]);
        assert_eq!(processes(&bytes), []);
        // A time that no clock shows.
        let record = kinfo_record(812, 1, 800);
        let record = record.with(offset_of!(KinfoProc, kp_proc.p_starttime.tv_sec), (-1_i64).to_le_bytes());
        assert_eq!(processes(&record.0), []);
    }

    fn one(pid: i32, parent: i32, group: i32) -> Process {
        processes(&kinfo_record(pid, parent, group).0).remove(0)
    }

    fn sessions(mut table: Vec<Process>, answers: &[(i32, i32)]) -> Vec<i32> {
        fill_sessions(&mut table, |pid| answers.iter().find(|answer| answer.0 == pid).map(|answer| answer.1));
        table.iter().map(|process| process.session).collect()
    }

    #[test]
    fn a_zombie_is_in_the_session_that_its_neighbours_tell() {
        // 800 led the session of 812, which is in a group of its own; 820 is of the group of 821.
        let table = vec![one(800, 1, 800), one(812, 1, 812), one(820, 1, 821), one(821, 1, 821), one(830, 1, 830)];
        assert_eq!(sessions(table, &[(812, 800), (821, 800)]), [800, 800, 800, 800, UNKNOWN_SESSION]);
    }

    #[test]
    fn descendants_are_found_and_strangers_are_not() {
        let table = [one(13, 12, 1), one(11, 10, 1), one(12, 11, 1), one(10, 1, 1), one(20, 1, 1), one(14, 11, 1)];
        let pids = |pid| descendants(&table, pid).iter().map(|process| process.id.pid).collect::<Vec<_>>();
        assert_eq!(pids(10), [11, 12, 14, 13]);
        assert_eq!(pids(13), [0; 0]);
        let circle = [one(10, 11, 1), one(11, 10, 1)];
        assert_eq!(descendants(&circle, 10).iter().map(|process| process.id.pid).collect::<Vec<_>>(), [11]);
    }

    #[test]
    fn a_list_that_grows_while_it_is_read_is_read_again() {
        let mut answers = [Err(Errno::ENOMEM), Ok(8), Ok(15)].into_iter();
        let mut sizes = Vec::new();
        let bytes = read_growing(4, |buffer| {
            sizes.push(buffer.len());
            buffer.fill(7);
            answers.next().expect("three questions")
        });
        assert_eq!((sizes, bytes), (vec![4, 8, 16], Ok(vec![7; 15])));
        assert_eq!(read_growing(4, |_| Err(Errno::EPERM)), Err(Errno::EPERM));
        assert_eq!(read_growing(1024 * 1024, |buffer| Ok(buffer.len())), Err(Errno::ENOMEM));
    }

    /// What is behind the environment.
    enum Kernel {
        /// Nothing, as for a restricted program.
        Withheld,
        /// All strings, as right after exec.
        Intact,
        /// The first ones cleared, as a little later.
        Cleared,
    }

    /// Lays the strings out as XNU does (`exec_extract_strings`, `sysctl_procargsx`).
    fn procargs(path: &str, argv: &[&str], env: &[&str], kernel: &Kernel) -> Vec<u8> {
        let pad = |strings: &mut Vec<u8>| strings.resize(strings.len().next_multiple_of(8), 0);
        let mut strings = [path.as_bytes(), b"\0"].concat();
        pad(&mut strings);
        for argument in argv {
            strings.extend([argument.as_bytes(), b"\0"].concat());
        }
        let own: &[&[u8]] = match kernel {
            Kernel::Withheld => &[],
            Kernel::Intact => &[b"pfz=0x7ffffff\0", b"stack_guard=0x1\0", b"ptr_munge=0x2\0", b"th_port=0x103\0"],
            Kernel::Cleared => &[&[0; 14], &[0; 16], b"ptr_munge=\0\0\0\0", b"th_port=\0\0\0\0\0\0"],
        };
        if !own.is_empty() {
            for entry in env {
                strings.extend([entry.as_bytes(), b"\0"].concat());
            }
            pad(&mut strings);
        }
        let argc = i32::try_from(argv.len()).expect("few");
        [&argc.to_le_bytes()[..], &strings, &own.concat()].concat()
    }

    fn texts<'a>(entries: &[&'a str]) -> Vec<&'a [u8]> {
        entries.iter().map(|entry| entry.as_bytes()).collect()
    }

    #[test]
    fn arguments_and_environment_come_back_as_they_were_given() {
        // Paths and environments of every length modulo the padding, so none at all is among it.
        for extra in 0..=8 {
            let path = "/bin/".to_owned() + &"x".repeat(extra);
            let value = "LAST=".to_owned() + &"v".repeat(extra);
            for kernel in [Kernel::Intact, Kernel::Cleared] {
                let argv = ["server", "--port", "80 80"];
                let env = ["LOCALD_RUN=web#7", "EMPTY=", "LOCALD_RUN=later", &value];
                let bytes = procargs(&path, &argv, &env, &kernel);
                let arguments = Arguments::parse(&bytes).expect("laid out by the book");
                assert_eq!(arguments.executable, path.as_bytes());
                assert_eq!(arguments.argv, texts(&argv));
                assert_eq!(arguments.environment, Environment::Shown(texts(&env)));
                assert_eq!(arguments.variable("LOCALD_RUN"), Some(&b"web#7"[..]), "the first one counts");
                assert_eq!(arguments.variable("LOCALD"), None);
            }
        }
    }

    #[test]
    fn an_empty_argument_is_an_argument() {
        for path in ["/bin/x", "/bin/xx", "/bin/xxx"] {
            let bytes = procargs(path, &["", "", "a", ""], &["A=1"], &Kernel::Intact);
            let arguments = Arguments::parse(&bytes).expect("laid out by the book");
            assert_eq!(arguments.argv, texts(&["", "", "a", ""]));
            assert_eq!(arguments.environment, Environment::Shown(texts(&["A=1"])));
        }
        let bytes = procargs("/bin/x", &[], &["A=1"], &Kernel::Intact);
        let arguments = Arguments::parse(&bytes).expect("laid out by the book");
        assert_eq!((arguments.argv.len(), arguments.variable("A")), (0, Some(&b"1"[..])));
    }

    #[test]
    fn an_environment_that_is_withheld_is_not_an_empty_one() {
        for name in ["sh", "xsh", "xxsh", "xxxsh", "xxxxsh", "xxxxxsh", "xxxxxxsh", "xxxxxxxsh"] {
            let empty = |kernel| procargs("/bin/sh", &[name, "-c"], &[], &kernel);
            let bytes = empty(Kernel::Withheld);
            let withheld = Arguments::parse(&bytes).expect("laid out by the book");
            assert_eq!((withheld.argv, withheld.environment), (texts(&[name, "-c"]), Environment::Withheld));
            for kernel in [Kernel::Intact, Kernel::Cleared] {
                let bytes = empty(kernel);
                let arguments = Arguments::parse(&bytes).expect("laid out by the book");
                assert_eq!(arguments.environment, Environment::Shown(Vec::new()), "{name}");
            }
        }
    }

    #[test]
    fn a_program_that_changed_its_title_still_shows_its_environment() {
        // node's `process.title` writes over its arguments and fills up with NULs.
        let mut bytes =
            procargs("/bin/node", &["node", "a/long/server.js", "x"], &["LOCALD_RUN=web#7"], &Kernel::Cleared);
        let title = 4 + "/bin/node\0".len().next_multiple_of(8);
        let arguments = "node\0a/long/server.js\0x\0".len();
        bytes[title..title + arguments].fill(0);
        bytes[title..title + 4].copy_from_slice(b"next");
        let arguments = Arguments::parse(&bytes).expect("laid out by the book");
        assert_eq!(arguments.argv, texts(&["next", "", ""]));
        assert_eq!(arguments.variable("LOCALD_RUN"), Some(&b"web#7"[..]));
    }

    #[test]
    fn an_argument_that_looks_like_a_variable_is_none() {
        let bytes = procargs("/bin/grep", &["grep", "LOCALD_RUN=web#7"], &["A=1"], &Kernel::Intact);
        assert_eq!(Arguments::parse(&bytes).expect("laid out by the book").variable("LOCALD_RUN"), None);
    }

    #[test]
    fn a_process_that_nobody_may_look_into_shows_its_path_only() {
        for path in ["/a", "/ab/cdef", "/abcdef", "/abcdefg"] {
            let bytes = [&1_i32.to_le_bytes(), path.as_bytes(), b"\0\0", path.as_bytes(), b"\0"].concat();
            let argv = texts(&[path]);
            let expected = Arguments { executable: path.as_bytes(), argv, environment: Environment::Withheld };
            assert_eq!(Arguments::parse(&bytes), Some(expected));
        }
    }

    #[test]
    fn arguments_that_are_cut_off_or_miscounted_are_none() {
        let bytes = procargs("/bin/server", &["server", "-v"], &["A=1"], &Kernel::Intact);
        let end_of_arguments = 4 + "/bin/server\0".len().next_multiple_of(8) + "server\0-v\0".len();
        for cut in 0..end_of_arguments {
            assert_eq!(Arguments::parse(&bytes[..cut]), None, "cut at {cut}");
        }
        for cut in end_of_arguments..bytes.len() {
            assert!(Arguments::parse(&bytes[..cut]).is_some(), "cut at {cut}");
        }
        for argc in [-1, i32::MIN, i32::MAX, 100] {
            let bytes = [&argc.to_le_bytes(), &bytes[4..]].concat();
            assert_eq!(Arguments::parse(&bytes), None, "{argc} arguments");
        }
        // The end of the strings, which a buffer that is too small gets: the padding is none.
        let tail = [&2_i32.to_le_bytes(), &b"er\0server\0-v\0A=1\0"[..]].concat();
        assert_eq!(Arguments::parse(&tail), None);
    }

    fn socket_record(kind: i32, family: i32, state: i32, port: u16) -> Record {
        let [high, low] = port.to_be_bytes();
        Record::new(SOCKET_FD_INFO_SIZE)
            .with(offset_of!(SocketFdinfo, soi_so), 0xfeed_u64.to_le_bytes())
            .with(offset_of!(SocketFdinfo, soi_family), family.to_le_bytes())
            .with(offset_of!(SocketFdinfo, soi_kind), kind.to_le_bytes())
            .with(PROTO + offset_of!(TcpSockinfo, tcpsi_ini.insi_lport), [high, low, 0, 0])
            .with(PROTO + offset_of!(TcpSockinfo, tcpsi_state), state.to_le_bytes())
    }

    #[test]
    fn listening_sockets_of_both_families_tell_their_port() {
        let expected = ListeningSocket { handle: 0xfeed, port: 8080, v6: false };
        assert_eq!(ListeningSocket::parse(&socket_record(2, 2, 1, 8080).0), Some(expected));
        let v6 = ListeningSocket { v6: true, ..expected };
        assert_eq!(ListeningSocket::parse(&socket_record(2, 30, 1, 8080).0), Some(v6));
    }

    #[test]
    fn other_sockets_do_not_listen() {
        // Connected, closed, UDP, a Unix socket, a family that TCP does not have.
        for (kind, family, state) in [(2, 2, 4), (2, 2, 0), (1, 2, 1), (3, 1, 1), (2, 10, 1)] {
            assert_eq!(ListeningSocket::parse(&socket_record(kind, family, state, 8080).0), None);
        }
        assert_eq!(ListeningSocket::parse(&socket_record(2, 2, 1, 8080).0[..socket::TCP_STATE + 3]), None);
    }

    #[test]
    fn only_sockets_are_taken_from_a_list_of_descriptors() {
        let entries = [(0, 1), (3, 2), (4, 5), (5, 2), (6, 6)];
        let mut bytes: Vec<u8> = entries
            .iter()
            .flat_map(|&(fd, kind): &(i32, i32)| [fd.to_le_bytes(), kind.to_le_bytes()].concat())
            .collect();
        bytes.extend([7, 0, 0, 0, 2]);
        assert_eq!(socket_descriptors(&bytes).collect::<Vec<_>>(), [3, 5]);
    }

    #[test]
    fn a_working_directory_is_a_terminated_path() {
        let record = || Record::new(VNODE_PATH_INFO_SIZE);
        let path = offset_of!(ProcVnodepathinfo, pvi_cdir.vip_path);
        assert_eq!(working_directory(&record().with(path, *b"/tmp/a b\0rest").0), Some(&b"/tmp/a b"[..]));
        assert_eq!(working_directory(&record().0), None);
        assert_eq!(working_directory(&record().with(path, [b'/'; 1024]).0), None);
        assert_eq!(working_directory(&record().with(path, *b"/tmp").0[..path + 4]), None);
    }

    #[test]
    fn a_unique_id_names_process_parent_and_image() {
        let record = Record::new(UNIQUE_ID_INFO_SIZE)
            .with(offset_of!(ProcUniqidentifierinfo, p_uniqueid), 70_000_000_001_u64.to_le_bytes())
            .with(offset_of!(ProcUniqidentifierinfo, p_puniqueid), 70_000_000_000_u64.to_le_bytes())
            .with(offset_of!(ProcUniqidentifierinfo, p_idversion), 9_i32.to_le_bytes());
        let expected = UniqueId { process: 70_000_000_001, parent: 70_000_000_000, version: 9 };
        assert_eq!(UniqueId::parse(&record.0), Some(expected));
        assert_eq!(UniqueId::parse(&record.0[..35]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = (processes(&bytes), Arguments::parse(&bytes), ListeningSocket::parse(&bytes));
            let _ = (UniqueId::parse(&bytes), working_directory(&bytes), socket_descriptors(&bytes).count());
        }

        #[test]
        fn no_strings_make_the_parser_of_arguments_panic(
            argc in -2..9_i32,
            strings in proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'='), any::<u8>()], 0..200),
        ) {
            let bytes = [&argc.to_le_bytes()[..], &strings].concat();
            let Some(arguments) = Arguments::parse(&bytes) else { return Ok(()) };
            prop_assert_eq!(arguments.argv.len(), usize::try_from(argc).expect("not negative"));
        }

        #[test]
        fn whatever_a_process_was_started_with_is_read_back(
            path in "/[a-z/]{0,20}",
            argv in proptest::collection::vec("[ -~]{0,12}", 2..6),
            env in proptest::collection::vec("[A-Z]{1,8}=[ -~]{0,12}", 0..6),
            cleared in any::<bool>(),
        ) {
            let kernel = if cleared { Kernel::Cleared } else { Kernel::Intact };
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            let env: Vec<&str> = env.iter().map(String::as_str).collect();
            let bytes = procargs(&path, &argv, &env, &kernel);
            let arguments = Arguments::parse(&bytes).expect("laid out by the book");
            prop_assert_eq!(arguments.executable, path.as_bytes());
            prop_assert_eq!(arguments.argv, texts(&argv));
            prop_assert_eq!(arguments.environment, Environment::Shown(texts(&env)));
        }
    }
}
