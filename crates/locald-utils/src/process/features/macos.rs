//! What macOS offers: known of the system rather than tried, except for the process table.

use std::time::Duration;

use nix::sys::statfs::Statfs;

use super::{Feature, Inotify, Limit, Logout, Medium, Presence};
use crate::process::{self, ProcessId, sys};
use crate::time::UnixMillis;

pub(super) fn features() -> Vec<(Feature, Presence)> {
    let there = |what: &str| Ok(what.to_owned());
    let missing = || Err("macOS has no such thing".to_owned());
    vec![
        (Feature::ProcessTable, process_table()),
        (Feature::OtherUsers, other_users()),
        (Feature::ChildrenList, there("KERN_PROC_ALL")),
        (Feature::Subreaper, missing()),
        (Feature::UniqueIds, there("p_uniqueid, p_puniqueid")),
        (Feature::Pidfd, missing()),
        (Feature::ExitEvent, there("NOTE_EXIT of kqueue")),
        (Feature::CgroupLeaf, missing()),
        (Feature::CgroupKill, missing()),
        (Feature::LimitMarker, missing()),
        (Feature::CloseRange, there("POSIX_SPAWN_CLOEXEC_DEFAULT")),
    ]
}

fn process_table() -> Presence {
    match ProcessId::own() {
        Ok(_) => Ok("KERN_PROC_ALL".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Looks for launchd, which is another user's for everybody who could be refused it.
fn other_users() -> Presence {
    match process::look(1) {
        Some(_) => Ok("KERN_PROC_ALL shows them".to_owned()),
        None => Err("a sandbox hides them".to_owned()),
    }
}

/// `PID_MAX` of XNU's sys/proc_internal.h.
pub(super) fn pid_max() -> Option<u64> {
    Some(99_999)
}

pub(super) fn processes() -> Option<Limit> {
    let mut bytes = [0; 4];
    let count = sys::sysctl_by_name(c"kern.maxprocperuid", &mut bytes).ok()?;
    let most = u64::from(u32::from_ne_bytes(bytes));
    (count == bytes.len()).then_some(Limit { soft: Some(most), hard: Some(most) })
}

/// Files are watched by kqueue.
pub(super) fn inotify() -> Option<Inotify> {
    None
}

pub(super) fn age(process: ProcessId) -> Option<Duration> {
    Some(UnixMillis::now().since(UnixMillis(process.start / 1000)))
}

pub(super) fn block_size(seen: &Statfs) -> u64 {
    seen.block_size().into()
}

/// Tells by the names that mount(8) shows.
pub(super) fn medium(seen: &Statfs) -> Medium {
    match seen.filesystem_type_name() {
        "nfs" | "smbfs" | "afpfs" | "webdav" | "cifs" | "ftp" => Medium::Network,
        "tmpfs" => Medium::Memory,
        _ => Medium::Local,
    }
}

/// Nothing that left its session ends with a login.
pub(super) fn logout() -> Option<Logout> {
    None
}
