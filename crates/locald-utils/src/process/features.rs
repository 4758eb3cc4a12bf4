//! What this machine offers for holding runs together, and the limits it sets: tried out, not derived from a version.
//!
//! [`Machine::look`] asks everything once. Its parts are facts; what they mean to a person, and which of them is worth a
//! word, is decided by whoever asks. The systems are told apart in `features/linux.rs` and `features/macos.rs`, twins
//! with the same functions. Nothing is left changed: a cgroup that is made to see whether one can be is removed again.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::ProcessId;

#[cfg(target_os = "linux")]
#[path = "features/linux.rs"]
mod os;
#[cfg(target_os = "macos")]
#[path = "features/macos.rs"]
mod os;

/// Something that a system may offer for finding, watching or ending the processes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// The process table can be read.
    ProcessTable,
    /// The processes of other users are in it.
    OtherUsers,
    /// The children of a process are listed.
    ChildrenList,
    /// Orphans come to the shim.
    Subreaper,
    /// Processes have numbers that are never given out twice, their parents' too.
    UniqueIds,
    /// A process can be held by a descriptor, signalled through it, and its end awaited.
    Pidfd,
    /// A process group can be signalled through a descriptor.
    PidfdGroup,
    /// The end of a process that is no child is an event.
    ExitEvent,
    /// A cgroup can be made for a run.
    CgroupLeaf,
    /// A cgroup can be killed as a whole.
    CgroupKill,
    /// A limit that nobody uses can mark every process of a run.
    LimitMarker,
    /// All descriptors can be closed for a new program in one call.
    CloseRange,
}

/// Whether a feature is there: what was seen of it, or why it is not.
pub type Presence = Result<String, String>;

/// A limit of the calling process; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What holds.
    pub soft: Option<u64>,
    /// How far the process itself may raise it.
    pub hard: Option<u64>,
}

/// How many watches of files this user may have (inotify(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inotify {
    /// Of all processes together.
    pub instances: u64,
    /// Files and directories watched.
    pub watches: u64,
}

/// The limits that many services may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Process numbers stay below this, and start again.
    pub pid_max: Option<u64>,
    /// Descriptors of one process (RLIMIT_NOFILE).
    pub open_files: Option<Limit>,
    /// Processes of this user (RLIMIT_NPROC; `kern.maxprocperuid` of macOS, which bounds it).
    pub processes: Option<Limit>,
    /// None where files are watched without inotify.
    pub inotify: Option<Inotify>,
}

/// Where systemd has put the calling process, and with it whatever it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Into a login's session scope.
    Session,
    /// Below the user's own manager.
    UserManager,
    /// Elsewhere, or there is no systemd.
    Neither,
}

/// What becomes of running services when their user logs out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logout {
    /// Where the calling process belongs.
    pub unit: Unit,
    /// `KillUserProcesses` of logind.conf(5), for this user; `None` where nobody has set it.
    pub kills: Option<bool>,
    /// Whether the user's manager stays (loginctl(1), `enable-linger`).
    pub lingers: bool,
}

/// What keeps files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// A disk of this machine, as far as can be told.
    Local,
    /// Memory: gone with the next restart.
    Memory,
    /// Another machine.
    Network,
}

/// The file system that a path is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// What keeps it.
    pub medium: Medium,
    /// Bytes that an ordinary user may still write.
    pub free_bytes: u64,
    /// The directory at which it begins.
    pub root: PathBuf,
}

/// What there is to know about a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The kernel and its release: `Linux 6.1.0`.
    pub kernel: String,
    /// Every feature that the system could have.
    pub features: Vec<(Feature, Presence)>,
    /// The limits.
    pub limits: Limits,
    /// `None` where logging out ends nothing.
    pub logout: Option<Logout>,
}

impl Machine {
    /// Looks at this machine.
    #[must_use]
    pub fn look() -> Self {
        let uname = nix::sys::utsname::uname();
        let kernel = uname.map_or_else(
            |_| std::env::consts::OS.to_owned(),
            |name| format!("{} {}", name.sysname().display(), name.release().display()),
        );
        let limits = Limits {
            pid_max: os::pid_max(),
            // What this program has raised for itself is nobody's choice.
            open_files: limit(Resource::RLIMIT_NOFILE)
                .map(|limit| Limit { soft: super::open_files::original().or(limit.soft), ..limit }),
            processes: os::processes(),
            inotify: os::inotify(),
        };
        Self { kernel, features: os::features(), limits, logout: os::logout() }
    }
}

/// Below which number processes are numbered, where the system says so; a namespace of them may have its own.
#[must_use]
pub fn pid_max() -> Option<u64> {
    os::pid_max()
}

/// How long ago a process was started. `None` when the system does not say.
#[must_use]
pub fn age(process: ProcessId) -> Option<Duration> {
    os::age(process)
}

/// Looks at the file system that holds `path`, which must exist.
///
/// # Errors
/// Those of statfs(2).
pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    let seen = nix::sys::statfs::statfs(path)?;
    let free_bytes = os::block_size(&seen).saturating_mul(seen.blocks_available());
    let device = path.metadata()?.dev();
    let is_of_it = |dir: &&Path| dir.metadata().is_ok_and(|meta| meta.dev() == device);
    let root = path.ancestors().take_while(is_of_it).last().unwrap_or(path).to_owned();
    Ok(FileSystem { medium: os::medium(&seen), free_bytes, root })
}

fn limit(resource: Resource) -> Option<Limit> {
    let (soft, hard) = getrlimit(resource).ok()?;
    let bound = |value| (value != RLIM_INFINITY).then_some(value);
    Some(Limit { soft: bound(soft), hard: bound(hard) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_seen() {
        let machine = Machine::look();
        let has = |wanted| machine.features.iter().any(|(feature, seen)| *feature == wanted && seen.is_ok());
        assert!(has(Feature::ProcessTable), "{:?}", machine.features);
        assert_eq!(has(Feature::Subreaper), crate::process::ORPHANS_COME_TO_THE_SHIM);
        for (index, (feature, _)) in machine.features.iter().enumerate() {
            assert!(machine.features[..index].iter().all(|(other, _)| other != feature), "{feature:?} twice");
        }
        assert!(machine.kernel.contains(' '), "{}", machine.kernel);
        assert!(machine.limits.pid_max > Some(100));
    }

    #[test]
    fn a_process_that_was_just_started_is_young_and_this_one_is_older() {
        let own = ProcessId::own().expect("shown");
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
        let young = ProcessId::of(child.id().cast_signed()).expect("alive");
        let (child_age, own_age) = (age(young).expect("told"), age(own).expect("told"));
        drop(child.stdin.take());
        child.wait().expect("reaped");
        // Ages are told in ticks of 10 ms.
        assert!(child_age <= own_age + Duration::from_millis(20), "{child_age:?} {own_age:?}");
        assert!(own_age < Duration::from_secs(86_400), "{own_age:?}");
    }

    #[test]
    fn the_temporary_directory_is_on_some_file_system_with_room() {
        let seen = file_system(&std::env::temp_dir()).expect("looked at");
        assert!(seen.free_bytes > 0, "{seen:?}");
        assert!(file_system(Path::new("/nonexistent")).is_err());
    }
}
