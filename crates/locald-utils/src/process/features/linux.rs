//! What Linux offers: system calls that are tried, `/proc`, the cgroup hierarchy as mountinfo tells it, systemd's files.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::Resource;
use nix::sys::statfs::Statfs;

use super::{Feature, Inotify, Logout, Medium, Presence, Unit};
use crate::process::{self, ProcessId, sys};

pub(super) fn features() -> Vec<(Feature, Presence)> {
    let pidfd = sys::pidfd_open(std::process::id().cast_signed());
    let group = match &pidfd {
        Ok(pidfd) => match sys::probe_pidfd_groups(pidfd.as_fd()) {
            // A process that leads no group has none to be checked, which is an answer of the kind.
            Ok(()) | Err(Errno::ESRCH | Errno::EPERM) => Ok("PIDFD_SIGNAL_PROCESS_GROUP".to_owned()),
            Err(errno) => Err(refused("PIDFD_SIGNAL_PROCESS_GROUP", errno, "6.9")),
        },
        Err(_) => Err("there are no pidfds".to_owned()),
    };
    let pidfd = match pidfd {
        Ok(_) => Ok("pidfd_open".to_owned()),
        Err(errno) => Err(refused("pidfd_open", errno, "5.3")),
    };
    let (leaf, kill) = cgroup(&format!("locald-doctor-{}", std::process::id()));
    vec![
        (Feature::ProcessTable, process_table()),
        (Feature::OtherUsers, other_users()),
        (Feature::ChildrenList, children_list()),
        (Feature::Subreaper, subreaper()),
        (Feature::Pidfd, pidfd),
        (Feature::PidfdGroup, group),
        (Feature::CgroupLeaf, leaf),
        (Feature::CgroupKill, kill),
        (Feature::LimitMarker, limit_marker()),
        (Feature::CloseRange, close_range()),
    ]
}

fn refused(what: &str, errno: Errno, since: &str) -> String {
    match errno {
        Errno::ENOSYS | Errno::EINVAL => format!("{what} is there since Linux {since}"),
        errno => format!("{what} is refused: {errno}"),
    }
}

fn process_table() -> Presence {
    match ProcessId::own() {
        Ok(_) => Ok("/proc".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Looks for pid 1, which is another user's for everybody who could be refused it (proc(5), `hidepid`).
fn other_users() -> Presence {
    match process::look(1) {
        Some(_) => Ok("/proc shows them".to_owned()),
        None => Err("/proc is mounted with hidepid".to_owned()),
    }
}

fn children_list() -> Presence {
    match fs::read("/proc/thread-self/children") {
        Ok(_) => Ok("/proc/PID/task/TID/children".to_owned()),
        Err(_) => Err("the kernel is built without CONFIG_PROC_CHILDREN".to_owned()),
    }
}

fn subreaper() -> Presence {
    match nix::sys::prctl::get_child_subreaper() {
        Ok(_) => Ok("PR_SET_CHILD_SUBREAPER".to_owned()),
        Err(errno) => Err(refused("PR_SET_CHILD_SUBREAPER", errno, "3.4")),
    }
}

fn close_range() -> Presence {
    match sys::probe_close_range() {
        Ok(()) => Ok("CLOSE_RANGE_CLOEXEC".to_owned()),
        Err(errno) => Err(refused("CLOSE_RANGE_CLOEXEC", errno, "5.11")),
    }
}

/// The limit on the time that a real-time process may compute without a pause (getrlimit(2), RLIMIT_RTTIME). Nobody
/// sets it, every child inherits it, everybody of the same user can read it: so a number in it tells whose child it is.
fn limit_marker() -> Presence {
    match super::limit(Resource::RLIMIT_RTTIME) {
        Some(super::Limit { soft: None, hard: None }) => Ok("RLIMIT_RTTIME is not in use".to_owned()),
        Some(_) => Err("RLIMIT_RTTIME is in use".to_owned()),
        None => Err("RLIMIT_RTTIME cannot be read".to_owned()),
    }
}

/// Whether a cgroup can be made below our own, and killed as a whole: tried, with one called `leaf` that is removed again.
fn cgroup(leaf: &str) -> (Presence, Presence) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(mount) = cgroup_mount(&mounts) else {
        let why = "no cgroup v2 is mounted";
        return (Err(why.to_owned()), Err(why.to_owned()));
    };
    let hybrid = if mount.is_hybrid { ", beside v1" } else { "" };
    let Some(own) = own_cgroup(&mount, &membership) else {
        let why = format!("this process's cgroup is not below {}", mount.point.display());
        return (Err(why.clone()), Err(why));
    };
    let leaf = own.join(leaf);
    match fs::create_dir(&leaf) {
        Ok(()) => {
            let kill = cgroup_kill(&leaf);
            match fs::remove_dir(&leaf) {
                Ok(()) => (Ok(format!("{}{hybrid}", own.display())), kill),
                Err(error) => (Err(format!("{} cannot be removed: {error}", leaf.display())), kill),
            }
        }
        Err(error) => {
            let why = match error.kind() {
                ErrorKind::PermissionDenied => "belongs to somebody else".to_owned(),
                ErrorKind::ReadOnlyFilesystem => "is mounted read-only".to_owned(),
                _ => format!("takes no further one: {error}"),
            };
            (Err(format!("{} {why}", own.display())), cgroup_kill(&own))
        }
    }
}

/// Whether cgroups have a `cgroup.kill` (cgroups(7)): every one but the root, which shows it in those below.
fn cgroup_kill(dir: &Path) -> Presence {
    let has = |dir: &Path, file: &str| dir.join(file).exists();
    let mut below = fs::read_dir(dir).into_iter().flatten().flatten();
    if has(dir, "cgroup.kill") || below.any(|entry| has(&entry.path(), "cgroup.kill")) {
        return Ok("cgroup.kill".to_owned());
    }
    // The root has no type either.
    let is_root = !has(dir, "cgroup.type");
    Err(if is_root { "the root cgroup does not tell" } else { "cgroup.kill is there since Linux 5.14" }.to_owned())
}

/// Where cgroup v2 is mounted.
#[derive(Debug, PartialEq, Eq)]
struct CgroupMount {
    /// The cgroup that is seen at `point`.
    root: PathBuf,
    point: PathBuf,
    /// Whether controllers are mounted as v1 beside it.
    is_hybrid: bool,
}

/// Finds the cgroup v2 hierarchy in `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn cgroup_mount(mountinfo: &str) -> Option<CgroupMount> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (ours, theirs) = line.split_once(" - ")?;
        let mut fields = ours.split(' ').skip(3);
        Some((fields.next()?, fields.next()?, theirs.split(' ').next()?))
    });
    let mounts: Vec<(&str, &str, &str)> = mounts.collect();
    let &(root, point, _) = mounts.iter().find(|(_, _, kind)| *kind == "cgroup2")?;
    let is_hybrid = mounts.iter().any(|(_, _, kind)| *kind == "cgroup");
    Some(CgroupMount { root: unescaped(root).into(), point: unescaped(point).into(), is_hybrid })
}

/// Undoes what the kernel does to spaces and their kin in mountinfo: `\040`.
fn unescaped(text: &str) -> String {
    ["\\040 ", "\\011\t", "\\012\n", "\\134\\"].iter().fold(text.to_owned(), |text, pair| {
        let (escape, character) = pair.split_at(4);
        text.replace(escape, character)
    })
}

/// The directory of our own cgroup, from `/proc/self/cgroup` (cgroups(7)).
fn own_cgroup(mount: &CgroupMount, membership: &str) -> Option<PathBuf> {
    let path = membership.lines().find_map(|line| line.strip_prefix("0::"))?;
    let below = Path::new(path).strip_prefix(&mount.root).ok()?;
    // A cgroup outside of our namespace shows as `/..`.
    let is_inside = below.components().all(|part| part != std::path::Component::ParentDir);
    // Joining nothing would end the path with a slash.
    is_inside.then(|| if below.as_os_str().is_empty() { mount.point.clone() } else { mount.point.join(below) })
}

pub(super) fn pid_max() -> Option<u64> {
    number("/proc/sys/kernel/pid_max")
}

pub(super) fn processes() -> Option<super::Limit> {
    super::limit(Resource::RLIMIT_NPROC)
}

pub(super) fn inotify() -> Option<Inotify> {
    Some(Inotify {
        instances: number("/proc/sys/fs/inotify/max_user_instances")?,
        watches: number("/proc/sys/fs/inotify/max_user_watches")?,
    })
}

fn number(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

pub(super) fn age(process: ProcessId) -> Option<Duration> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime = Duration::from_secs_f64(uptime.split_ascii_whitespace().next()?.parse().ok()?);
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let ticks = u64::try_from(ticks).ok().filter(|ticks| *ticks > 0)?;
    Some(uptime.saturating_sub(Duration::from_millis(process.start.saturating_mul(1000) / ticks)))
}

/// Its type differs between architectures and C libraries.
pub(super) fn block_size(seen: &Statfs) -> u64 {
    u64::try_from(seen.block_size()).unwrap_or(0)
}

/// Tells by the magic numbers of linux/magic.h and of the file systems that are not in there.
pub(super) fn medium(seen: &Statfs) -> Medium {
    const MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6]; // tmpfs, ramfs
    const NETWORK: [u32; 10] = [
        0x0000_6969, // NFS
        0x0000_517b, // SMB
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB2
        0x5346_414f, // AFS
        0x00c3_6400, // Ceph
        0x0102_1997, // 9P, of virtual machines too
        0x7375_7245, // Coda
        0x0bd0_0bd0, // Lustre
        0x786f_4256, // vboxsf
    ];
    // The type of the number differs between architectures and C libraries; all magic numbers have 32 bits.
    let magic = (i128::from(seen.filesystem_type().0) & 0xffff_ffff) as u32;
    if MEMORY.contains(&magic) {
        Medium::Memory
    } else if NETWORK.contains(&magic) {
        Medium::Network
    } else {
        Medium::Local
    }
}

pub(super) fn logout() -> Option<Logout> {
    if !Path::new("/run/systemd/system").exists() {
        return None;
    }
    let user = process::user_name(nix::unistd::getuid().as_raw());
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(Logout {
        unit: unit(&membership),
        kills: kills_user_processes(&logind_configuration(), &user),
        lingers: Path::new("/var/lib/systemd/linger").join(&user).exists(),
    })
}

/// Where a process of this `/proc/self/cgroup` belongs.
fn unit(membership: &str) -> Unit {
    let mut units = membership.lines().flat_map(|line| line.split('/'));
    let is_session = |unit: &str| unit.starts_with("session-") && unit.ends_with(".scope");
    let is_manager = |unit: &str| unit.starts_with("user@") && unit.ends_with(".service");
    match units.find(|unit| is_session(unit) || is_manager(unit)) {
        Some(unit) if is_session(unit) => Unit::Session,
        Some(_) => Unit::UserManager,
        None => Unit::Neither,
    }
}

/// The files of logind's configuration, the weakest first (logind.conf(5), "configuration directories and precedence").
fn logind_configuration() -> Vec<String> {
    const DIRECTORIES: [&str; 4] = ["/usr/lib/systemd", "/usr/local/lib/systemd", "/run/systemd", "/etc/systemd"];
    let main = DIRECTORIES.iter().rev().map(|dir| Path::new(dir).join("logind.conf")).find(|file| file.exists());
    // A file of a stronger directory replaces one of the same name; then they count in the order of their names.
    let mut dropins = BTreeMap::new();
    for dir in DIRECTORIES {
        for entry in fs::read_dir(Path::new(dir).join("logind.conf.d")).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "conf") {
                dropins.insert(entry.file_name(), entry.path());
            }
        }
    }
    main.into_iter().chain(dropins.into_values()).filter_map(|file| fs::read_to_string(file).ok()).collect()
}

/// Whether logind kills what is left in a session of `user` when it ends, as far as somebody has set it.
fn kills_user_processes(files: &[String], user: &str) -> Option<bool> {
    let setting = |key: &str| {
        let lines = files.iter().flat_map(|file| file.lines()).map(str::trim);
        let values = lines.filter_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
        values.map(str::trim).next_back()
    };
    let kills = matches!(setting("KillUserProcesses")?.to_ascii_lowercase().as_str(), "yes" | "true" | "on" | "1");
    let names = |list: &str| list.split_ascii_whitespace().any(|name| name == user);
    let is_excluded = names(setting("KillExcludeUsers").unwrap_or("root"));
    let is_meant = setting("KillOnlyUsers").is_none_or(|only| only.is_empty() || names(only));
    Some(kills && is_meant && !is_excluded)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str =
        "24 1 0:22 / /proc rw - proc proc rw\n35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_cgroup_hierarchy_is_where_it_is_mounted() {
        let at = |point: &str, is_hybrid| Some(CgroupMount { root: "/".into(), point: point.into(), is_hybrid });
        assert_eq!(cgroup_mount(V2), at("/sys/fs/cgroup", false));
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup_mount(hybrid), at("/sys/fs/cgroup/unified", true));
        assert_eq!(cgroup_mount("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
        let odd = "35 24 0:30 / /mnt/c\\040groups rw - cgroup2 none rw\n";
        assert_eq!(cgroup_mount(odd), at("/mnt/c groups", false));
    }

    #[test]
    fn the_own_cgroup_is_found_below_its_mount_and_nowhere_else() {
        let mount = |root: &str| CgroupMount { root: root.into(), point: "/cg".into(), is_hybrid: false };
        let own = |root, membership| own_cgroup(&mount(root), membership);
        assert_eq!(own("/", "1:cpu:/x\n0::/user.slice/a.scope\n"), Some("/cg/user.slice/a.scope".into()));
        assert_eq!(own("/", "0::/\n"), Some("/cg".into()));
        assert_eq!(own("/pod", "0::/pod/a\n"), Some("/cg/a".into()));
        assert_eq!(own("/pod", "0::/pods\n"), None);
        assert_eq!(own("/", "0::/../other\n"), None);
        assert_eq!(own("/", "1:cpu:/x\n"), None);
    }

    #[test]
    fn a_cgroup_that_was_made_to_see_whether_one_can_be_is_removed() {
        let leaf = format!("locald-test-{}", std::process::id());
        let (seen, _) = cgroup(&leaf);
        let mount = cgroup_mount(&fs::read_to_string("/proc/self/mountinfo").expect("mounts"));
        let membership = fs::read_to_string("/proc/self/cgroup").expect("a cgroup");
        let own = mount.and_then(|mount| own_cgroup(&mount, &membership));
        assert!(seen.is_err() || own.is_some());
        assert!(own.is_none_or(|own| !own.join(leaf).exists()));
    }

    #[test]
    fn the_root_cgroup_shows_by_those_below_whether_they_can_be_killed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (root, below) = (dir.path(), dir.path().join("a"));
        fs::create_dir(&below).expect("mkdir");
        fs::write(below.join("cgroup.type"), "domain\n").expect("writes");
        assert_eq!(cgroup_kill(root), Err("the root cgroup does not tell".to_owned()));
        assert_eq!(cgroup_kill(&below), Err("cgroup.kill is there since Linux 5.14".to_owned()));
        fs::write(below.join("cgroup.kill"), "").expect("writes");
        assert!(cgroup_kill(root).is_ok() && cgroup_kill(&below).is_ok());
    }

    #[test]
    fn what_a_login_ends_with_is_told_by_the_unit_of_the_process() {
        let session = "0::/user.slice/user-1000.slice/session-3.scope\n";
        let manager = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/terminal.scope\n";
        let v1 = "1:name=systemd:/user.slice/user-1000.slice/session-c2.scope\n0::/\n";
        assert_eq!(
            [session, manager, v1, "0::/\n"].map(unit),
            [Unit::Session, Unit::UserManager, Unit::Session, Unit::Neither]
        );
    }

    #[test]
    fn logind_is_believed_in_what_it_was_told_last_and_about_this_user() {
        let kills = |files: &[&str], user| {
            kills_user_processes(&files.iter().map(|&file| file.to_owned()).collect::<Vec<_>>(), user)
        };
        assert_eq!(kills(&["[Login]\n#KillUserProcesses=yes\n"], "ann"), None);
        assert_eq!(kills(&["[Login]\nKillUserProcesses=yes\n"], "ann"), Some(true));
        assert_eq!(kills(&["[Login]\nKillUserProcesses=yes\n"], "root"), Some(false));
        assert_eq!(kills(&["KillUserProcesses=yes", "KillUserProcesses = no"], "ann"), Some(false));
        assert_eq!(kills(&["KillUserProcesses=yes\nKillExcludeUsers=root ann"], "ann"), Some(false));
        assert_eq!(kills(&["KillUserProcesses=yes\nKillOnlyUsers=bob"], "ann"), Some(false));
    }
}
