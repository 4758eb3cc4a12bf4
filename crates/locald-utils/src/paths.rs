//! Where everything lies: the durable state, the runtime directory, and the names within them.
//!
//! With `LOCALD_HOME` set all of it is under that directory. A runtime directory holds sockets, and whoever can write
//! to it could pose as the daemon: it must be ours, be no symlink, and be closed to everybody else.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::name::{ProjectId, ProjectName, RunId, ServiceName};
use crate::record;

/// 103 bytes: what `sun_path` of macOS holds besides its NUL (104 bytes; Linux has 108). One limit for both.
pub const MAX_SOCKET_PATH: usize = 103;

/// The variables that say where a home is, the strongest first.
pub const HOME_VARIABLES: [&str; 4] = ["LOCALD_HOME", "XDG_STATE_HOME", "HOME", "XDG_RUNTIME_DIR"];

/// The directories of one home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    state: PathBuf,
    runtime: PathBuf,
}

/// Says why a home cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Neither `LOCALD_HOME` nor `HOME` says where to keep anything.
    #[error("neither LOCALD_HOME nor HOME is set, so there is nowhere to keep state")]
    NoHome,
    /// A directory could not be made or looked at.
    #[error("could not {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A symlink or a file lies where the directory should be.
    #[error("{0} is not a directory; a symlink is not followed here")]
    NotADirectory(PathBuf),
    /// The directory belongs to somebody else.
    #[error("{path} belongs to user {owner}, not to you")]
    ForeignOwner {
        /// The directory.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
    },
    /// Others may write to the directory.
    #[error("{path} is open to other users (mode {mode:03o}); `chmod 700 {path}` closes it", path = .path.display())]
    OpenToOthers {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Socket paths in the runtime directory would be too long for the system.
    #[error("{path} is {length} bytes long, and a socket path may have {MAX_SOCKET_PATH}; set LOCALD_HOME to a shorter directory", path = .path.display())]
    SocketPathTooLong {
        /// The longest socket path of this home.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
}

impl Home {
    /// Finds the home that the environment names, without touching the disk.
    ///
    /// # Errors
    /// [`HomeError::NoHome`] and [`HomeError::SocketPathTooLong`].
    pub fn from_env() -> Result<Self, HomeError> {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// Finds the home that an environment names, this process's or another's; `lookup` gives the value of a variable.
    /// An empty value is none.
    ///
    /// # Errors
    /// Those of [`Home::from_env`].
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, HomeError> {
        let variable = |name| lookup(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = match variable("LOCALD_HOME") {
            Some(home) => {
                let home = std::path::absolute(&home).map_err(|source| HomeError::Io {
                    action: "resolve",
                    path: home,
                    source,
                })?;
                Self { runtime: home.join("run"), state: home }
            }
            None => {
                let state = match variable("XDG_STATE_HOME").filter(|dir| dir.is_absolute()) {
                    Some(dir) => dir,
                    None => variable("HOME").ok_or(HomeError::NoHome)?.join(".local/state"),
                };
                let runtime = match variable("XDG_RUNTIME_DIR").filter(|dir| dir.is_absolute()) {
                    Some(dir) => dir.join("locald"),
                    None => PathBuf::from(format!("/tmp/locald-{}", nix::unistd::getuid())),
                };
                Self { state: state.join("locald"), runtime }
            }
        };
        let longest = home.runtime.join("s/0123456789abcdef");
        let length = longest.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(HomeError::SocketPathTooLong { path: longest, length });
        }
        Ok(home)
    }

    /// The home under `dir`, as `LOCALD_HOME=dir` gives it.
    #[must_use]
    pub fn under(dir: &Path) -> Self {
        Self { state: dir.to_owned(), runtime: dir.join("run") }
    }

    /// Makes the directories that do not exist, and checks that both are ours alone.
    ///
    /// # Errors
    /// When one cannot be made, or is a symlink, somebody else's, or open to others.
    pub fn prepare(&self) -> Result<(), HomeError> {
        make_private(&self.state)?;
        make_private(&self.runtime)?;
        make_private(&self.shim_sockets())?;
        make_private(&self.notify_sockets())?;
        self.check()
    }

    /// Checks the directories that exist.
    ///
    /// # Errors
    /// When one is a symlink, somebody else's, or open to others.
    pub fn check(&self) -> Result<(), HomeError> {
        self.directories().iter().try_for_each(|dir| check_private(dir))
    }

    /// Every directory that must be ours alone: of the state, of the sockets, of the shims' sockets.
    #[must_use]
    pub fn directories(&self) -> [PathBuf; 4] {
        [self.state.clone(), self.runtime.clone(), self.shim_sockets(), self.notify_sockets()]
    }

    /// Where durable state lies.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Where sockets lie.
    #[must_use]
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// Where the sockets of shims lie.
    #[must_use]
    pub fn shim_sockets(&self) -> PathBuf {
        self.runtime.join("s")
    }

    /// Where the sockets lie on which runs say that they are ready.
    #[must_use]
    pub fn notify_sockets(&self) -> PathBuf {
        self.runtime.join("n")
    }

    /// The daemon's socket.
    #[must_use]
    pub fn daemon_socket(&self) -> PathBuf {
        self.runtime.join("daemon.sock")
    }

    /// The file whose lock makes a daemon the only one.
    #[must_use]
    pub fn daemon_lock(&self) -> PathBuf {
        self.runtime.join("daemon.lock")
    }

    /// The file whose lock makes a daemon the only one of this state, whatever runtime directory it has.
    #[must_use]
    pub fn state_lock(&self) -> PathBuf {
        self.state.join("daemon.lock")
    }

    /// The daemon's own log.
    #[must_use]
    pub fn daemon_log(&self) -> PathBuf {
        self.state.join("daemon.log")
    }

    /// The ledger.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.state.join("ledger.db")
    }

    /// The file that tells how many daemons there have been, beside the ledger.
    #[must_use]
    pub fn epoch(&self) -> PathBuf {
        self.state.join("epoch")
    }

    /// The directory of all projects.
    #[must_use]
    pub fn projects(&self) -> PathBuf {
        self.state.join("projects")
    }

    /// The directories that may have records, of all services that have ever run here, whatever project they belong to.
    #[must_use]
    pub fn record_dirs(&self) -> Vec<PathBuf> {
        self.service_dirs().iter().flat_map(|service| record::places(service)).collect()
    }

    /// The directories of all services that have ever run here.
    #[must_use]
    pub fn service_dirs(&self) -> Vec<PathBuf> {
        let entries = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        entries(self.projects()).flat_map(|project| entries(project.join("services"))).collect()
    }

    /// The directory of one project: `<name>-<id>`.
    ///
    /// A project that was renamed keeps the directory it has, so that its logs and records stay findable.
    #[must_use]
    pub fn project(&self, id: &ProjectId, name: &ProjectName) -> PathBuf {
        let named = self.projects().join(format!("{name}-{id}"));
        if named.is_dir() {
            return named;
        }
        let suffix = format!("-{id}");
        let entries = std::fs::read_dir(self.projects()).into_iter().flatten().flatten();
        let older = entries.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with(&suffix));
        older.unwrap_or(named)
    }

    /// The socket of a run's shim.
    #[must_use]
    pub fn shim_socket(&self, run: &RunId) -> PathBuf {
        self.shim_sockets().join(run.as_str())
    }

    /// The socket on which a run says that it is ready.
    #[must_use]
    pub fn notify_socket(&self, run: &RunId) -> PathBuf {
        self.notify_sockets().join(run.as_str())
    }
}

/// The directory of a service's records and log within a project's directory.
#[must_use]
pub fn service_dir(project_dir: &Path, service: &ServiceName) -> PathBuf {
    project_dir.join("services").join(service.as_str())
}

fn make_private(dir: &Path) -> Result<(), HomeError> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        Ok(()) => Ok(()),
        Err(_) if dir.symlink_metadata().is_ok_and(|meta| !meta.is_dir()) => {
            Err(HomeError::NotADirectory(dir.to_owned()))
        }
        Err(source) => Err(HomeError::Io { action: "make the directory", path: dir.to_owned(), source }),
    }
}

/// Checks a directory if it exists.
///
/// # Errors
/// When it is a symlink or a file, somebody else's, or open to others.
pub fn check_private(dir: &Path) -> Result<(), HomeError> {
    let meta = match dir.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(HomeError::Io { action: "look at", path: dir.to_owned(), source }),
    };
    if !meta.is_dir() {
        return Err(HomeError::NotADirectory(dir.to_owned()));
    }
    if meta.uid() != nix::unistd::getuid().as_raw() {
        return Err(HomeError::ForeignOwner { path: dir.to_owned(), owner: meta.uid() });
    }
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(HomeError::OpenToOthers { path: dir.to_owned(), mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_where_the_strongest_variable_says() {
        let home = |variables: &[(&str, &str)]| {
            let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
            Home::from_lookup(value).map(|home| (home.state, home.runtime)).ok()
        };
        let dirs = |state: &str, runtime: &str| Some((PathBuf::from(state), PathBuf::from(runtime)));
        let all = [("LOCALD_HOME", "/l"), ("XDG_STATE_HOME", "/s"), ("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r")];
        assert_eq!(all.map(|(name, _)| name), HOME_VARIABLES);
        assert_eq!(home(&all), dirs("/l", "/l/run"));
        assert_eq!(home(&all[1..]), dirs("/s/locald", "/r/locald"));
        assert_eq!(home(&all[2..]), dirs("/h/.local/state/locald", "/r/locald"));
        let empty = [("LOCALD_HOME", ""), ("XDG_STATE_HOME", "relative"), ("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r")];
        assert_eq!(home(&empty), dirs("/h/.local/state/locald", "/r/locald"));
        assert_eq!(home(&all[3..]), None);
    }

    #[test]
    fn a_home_that_others_can_write_to_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::under(dir.path());
        home.prepare().expect("prepares");
        std::fs::set_permissions(dir.path().join("run"), std::fs::Permissions::from_mode(0o777)).expect("chmod");
        assert!(matches!(home.check(), Err(HomeError::OpenToOthers { mode: 0o777, .. })));
    }

    #[test]
    fn a_symlink_in_place_of_the_runtime_directory_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let elsewhere = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("run")).expect("symlink");
        assert!(matches!(Home::under(dir.path()).prepare(), Err(HomeError::NotADirectory(_))));
    }

    #[test]
    fn a_renamed_project_keeps_its_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::under(dir.path());
        let id = ProjectId::of_directory(Path::new("/work/shop"));
        let (old, new) = ("shop".parse().expect("valid"), "store".parse().expect("valid"));
        std::fs::create_dir_all(home.project(&id, &old)).expect("mkdir");
        assert_eq!(home.project(&id, &new), home.project(&id, &old));
    }
}
