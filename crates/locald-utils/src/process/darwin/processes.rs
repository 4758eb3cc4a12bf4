//! Processes as the kernel lists them: `struct kinfo_proc`, unique ids, working directories.

use std::collections::{BTreeMap, BTreeSet};

use super::{bytes_at, i32_at, string_at, until_nul};
use crate::process::{Lineage, Process, ProcessId, ProcessState};

/// The size of a `struct kinfo_proc` (sys/sysctl.h).
pub const KINFO_PROC_SIZE: usize = 648;
/// The size of a `struct proc_vnodepathinfo` (sys/proc_info.h).
pub const VNODE_PATH_INFO_SIZE: usize = 2352;
/// The size of a `struct proc_uniqidentifierinfo` (sys/proc_info_private.h).
pub const UNIQUE_ID_INFO_SIZE: usize = 56;

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
pub(in crate::process) const DIRECTORY: usize = 152;
const DIRECTORY_SIZE: usize = 1024;

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
    // The console has the device number 0 and counts as no terminal; a service has a pseudo terminal or none.
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

/// Fills in who started whom. `unique` holds what the kernel said of each number of `table`, in the same order, and
/// `later` is a list that was taken after that.
///
/// A process that both lists show had its number all the while, so what was said of the number is said of it. Of any
/// other nothing is taken: the number may have been a stranger's already, whose children would then pass for ours.
pub fn fill_lineages(table: &mut [Process], unique: &[Option<UniqueId>], later: &[Process]) {
    let still: BTreeSet<ProcessId> = later.iter().map(|process| process.id).collect();
    for (process, unique) in table.iter_mut().zip(unique) {
        process.lineage = unique
            .filter(|_| still.contains(&process.id))
            .map(|unique| Lineage { own: unique.process, parent: unique.parent });
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

/// Reads the working directory out of a `struct proc_vnodepathinfo`.
#[must_use]
pub fn working_directory(bytes: &[u8]) -> Option<&[u8]> {
    let (path, _) = string_at(bytes.get(DIRECTORY..)?.get(..DIRECTORY_SIZE)?, 0)?;
    if path.is_empty() { None } else { Some(path) }
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

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::super::record::{Record, VinfoStat};
    use super::*;

    /// The declarations of XNU's headers, said again for their layout. A pointer is a `u64`, `char` a `u8`; of a union
    /// the member that is read.
    mod layout {
        use super::VinfoStat;

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
        assert!(size_of::<ProcUniqidentifierinfo>() == UNIQUE_ID_INFO_SIZE);
    };

    /// `pid` in the group and session `group`, started 1.000002 s after 1970.
    pub(super) fn kinfo_record(pid: i32, parent: i32, group: i32) -> Record {
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
    fn an_orphan_still_tells_who_started_it() {
        let unique = |process, parent| Some(UniqueId { process, parent, version: 1 });
        let mut table = [one(800, 1, 800), one(812, 1, 812), one(813, 1, 813)];
        let later = table.clone();
        fill_lineages(&mut table, &[unique(70, 3), unique(71, 70), None], &later);
        let lineages = table.map(|process| process.lineage);
        assert_eq!(lineages, [Some(Lineage { own: 70, parent: 3 }), Some(Lineage { own: 71, parent: 70 }), None]);
    }

    #[test]
    fn a_number_that_changed_hands_gives_no_lineage() {
        let said = [Some(UniqueId { process: 90, parent: 1, version: 1 }); 2];
        let mut table = [one(800, 1, 800), one(812, 1, 812)];
        // 800 is gone; 812 is another process now, and it is that one of which the kernel spoke.
        let mut stranger = one(812, 1, 812);
        stranger.id.start += 1;
        fill_lineages(&mut table, &said, &[stranger]);
        assert_eq!(table.map(|process| process.lineage), [None, None]);
    }

    #[test]
    fn a_terminal_is_a_device_and_none_is_none() {
        let terminal = |device: i32| {
            let record = kinfo_record(812, 1, 800).with(offset_of!(KinfoProc, kp_eproc.e_tdev), device.to_le_bytes());
            processes(&record.0).remove(0).terminal
        };
        // NODEV; the fourth pseudo terminal; a major number so large that the device is negative.
        assert_eq!([-1, 0x1000_0003, -2].map(terminal), [0, 0x1000_0003, 0xffff_fffe]);
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
}

/// Valid answers, for tests that spoil them.
#[cfg(test)]
pub(super) mod fixtures {
    use super::super::record::Record;
    use super::*;

    pub(in super::super) fn list() -> Vec<u8> {
        [tests::kinfo_record(812, 1, 800).0, tests::kinfo_record(813, 812, 800).0].concat()
    }

    pub(in super::super) fn unique_id() -> Vec<u8> {
        Record::new(UNIQUE_ID_INFO_SIZE).with(16, 70_u64.to_le_bytes()).with(24, 69_u64.to_le_bytes()).0
    }

    pub(in super::super) fn working_directory() -> Vec<u8> {
        Record::new(VNODE_PATH_INFO_SIZE).with(DIRECTORY, *b"/tmp/a b\0").0
    }
}
