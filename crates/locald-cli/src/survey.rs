//! What `doctor` looks at: the machine, this home, and whatever is there of locald. Gathers facts and judges nothing;
//! what they mean is decided in `diagnosis`. Reads the clock, changes nothing, and leaves out other users' processes.
//!
//! Runs start and end while it looks. Records are therefore read after the process table, and processes are looked at
//! once more after the records: a shim takes its record away only when its run is empty, so a process that is still
//! there after its record was found missing is left over.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use locald_utils::paths::{self, HOME_VARIABLES, Home, HomeError};
use locald_utils::process::cgroup::Cgroup;
use locald_utils::process::features::{self, Machine};
use locald_utils::process::membership::Memory;
use locald_utils::process::sweep::Target;
use locald_utils::process::{self, Process, ProcessId, ProcessState, SERVICE_MARKER, mark};
use locald_utils::record::{self, PidRecord, ShimRecord};
use locald_utils::shim_protocol::ShimIdentity;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::AccessFlags;

use crate::client::Client;
use crate::context::Context;
use crate::daemon as starter;
use crate::diagnosis::{
    Condition, Daemon, DaemonFacts, Described, Directories, Directory, Facts, HomeFacts, Member, Program,
    ProgramCondition, Record, Shim, TracedHome, Traces, Variables,
};

/// The names of locald's programs. They may carry the marker of a run that they were typed in, and belong to none.
const LOCALD: &str = "locald";
const SERVER: &str = "locald-server";
const SHIM: &str = "locald-shim";

/// 2 s: for a program to say which version it is, on a machine that is busy with a build.
const VERSION_LIMIT: Duration = Duration::from_secs(2);

/// 1 s: a daemon that has taken away its socket is gone by then.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// 50 ms: between bind and listen, and between close and removal, a socket looks dead for some microseconds.
const SOCKET_PAUSE: Duration = Duration::from_millis(50);

/// Looks at everything.
pub(crate) fn take(context: &Context) -> Facts {
    let own = context.home_or_why();
    let variables = variables(|name| std::env::var_os(name));
    let home = HomeFacts {
        variables: variables.clone(),
        directories: own.map(directories).map_err(ToString::to_string),
        daemon: own.map_or(DaemonFacts::None, daemon),
        programs: programs(),
    };
    Facts {
        version: env!("CARGO_PKG_VERSION"),
        user: process::user_name(nix::unistd::getuid().as_raw()),
        machine: Machine::look(),
        home,
        traces: Survey::begin(own.ok(), variables).finish(),
    }
}

/// The variables that name a home, those that are set. A value that is no text is as good as none: nobody can type it.
fn variables(lookup: impl Fn(&str) -> Option<OsString>) -> Variables {
    let value = |name| lookup(name)?.into_string().ok().filter(|value| !value.is_empty());
    HOME_VARIABLES.into_iter().filter_map(|name| Some((name, value(name)?))).collect()
}

fn directories(home: &Home) -> Directories {
    let [state, runtime, within @ ..] = home.directories();
    let mut runtime = directory(runtime);
    if let Condition::Fine { .. } = runtime.condition {
        // The directories within it are as good a way in.
        for dir in within {
            match directory(dir).condition {
                Condition::Absent | Condition::Fine { .. } => {}
                condition => runtime.condition = condition,
            }
        }
    }
    Directories { state: directory(state), runtime }
}

fn directory(path: PathBuf) -> Directory {
    let existing = path.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/")).to_owned();
    let is_writable = || nix::unistd::access(&existing, AccessFlags::W_OK).is_ok();
    let condition = match paths::check_private(&path) {
        Ok(()) if !is_writable() => Condition::Unwritable { dir: existing.clone() },
        Ok(()) => match path.symlink_metadata() {
            Ok(meta) => Condition::Fine { mode: meta.permissions().mode() & 0o777 },
            Err(_) => Condition::Absent,
        },
        Err(HomeError::NotADirectory(_)) => match fs::read_link(&path) {
            Ok(target) => Condition::Link { target },
            Err(_) => Condition::Other,
        },
        Err(HomeError::ForeignOwner { owner, .. }) => Condition::Foreign { owner },
        Err(HomeError::OpenToOthers { mode, .. }) => Condition::Open { dir: path.clone(), mode },
        Err(error @ (HomeError::NoHome | HomeError::Io { .. } | HomeError::SocketPathTooLong { .. })) => {
            Condition::Unreadable { why: error.to_string() }
        }
    };
    Directory { file_system: features::file_system(&existing).ok(), path, condition }
}

/// Asks who the daemon is. A home that is not ours alone is not asked; that it is not is told elsewhere.
fn daemon(home: &Home) -> DaemonFacts {
    if home.check().is_err() {
        return DaemonFacts::None;
    }
    match Client::connect(home) {
        Ok(Some(client)) => {
            let hello = client.daemon();
            DaemonFacts::Runs { pid: hello.pid, version: hello.version.clone() }
        }
        Ok(None) => DaemonFacts::None,
        Err(failure) => DaemonFacts::Trouble { why: failure.message },
    }
}

fn programs() -> Vec<Program> {
    let server = starter::program().unwrap_or_else(|_| {
        let own = std::env::current_exe().unwrap_or_default();
        own.canonicalize().unwrap_or(own).with_file_name(SERVER)
    });
    let shim = server.with_file_name(SHIM);
    [(SERVER, server), (SHIM, shim)].map(|(name, path)| Program { name, condition: program(name, &path), path }).into()
}

fn program(name: &str, path: &Path) -> ProgramCondition {
    if !path.is_file() {
        return ProgramCondition::Missing;
    }
    if nix::unistd::access(path, AccessFlags::X_OK).is_err() {
        return ProgramCondition::NotExecutable;
    }
    match first_line(path) {
        Ok(line) => match line.strip_prefix(name) {
            Some(version) => ProgramCondition::Version(version.trim().to_owned()),
            None => ProgramCondition::Mute { why: format!("it answers {line:?}") },
        },
        Err(error) => ProgramCondition::Mute { why: error.to_string() },
    }
}

/// What a program says to `--version`.
fn first_line(path: &Path) -> io::Result<String> {
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let has_ended = match ProcessId::of(child.id().cast_signed()) {
        Some(process) => process::await_exit(process, VERSION_LIMIT)?,
        None => true,
    };
    if !has_ended {
        child.kill()?;
    }
    child.wait()?;
    if !has_ended {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "it did not answer within 2s"));
    }
    // A shim tells on stderr, where its daemon has its log. A line is less than a pipe holds.
    let mut text = String::new();
    for pipe in [child.stdout.take().map(io::read_to_string), child.stderr.take().map(io::read_to_string)] {
        text.push_str(&pipe.transpose()?.unwrap_or_default());
    }
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// The search for everything that is there of locald.
struct Survey {
    traces: Traces,
    /// The living processes of this user.
    table: Vec<Process>,
}

impl Survey {
    fn begin(own: Option<&Home>, variables: Variables) -> Self {
        let mut survey = Self { traces: Traces::default(), table: Vec::new() };
        if let Some(own) = own {
            survey.meet(own.clone(), variables);
        }
        survey
    }

    fn finish(mut self) -> Traces {
        let uid = nix::unistd::getuid().as_raw();
        // A table that cannot be read is told as a feature that is missing.
        self.table = process::all().unwrap_or_default();
        self.table.retain(|process| process.uid == uid && process.state != ProcessState::Zombie);
        let mut shims = Vec::new();
        for process in self.table.clone() {
            match process.name.as_str() {
                LOCALD => {}
                SERVER => self.see_daemon(&process),
                SHIM => shims.extend(identity(process.id).map(|identity| (process, identity))),
                _ => self.see_member(&process),
            }
        }
        self.read_records(&shims);
        self.see_shims(shims);
        self.look_again();
        self.see_sockets();
        self.traces
    }

    /// Notes a home, if it is a new one. Returns its place.
    fn meet(&mut self, home: Home, variables: Variables) -> usize {
        if let Some(known) = self.traces.homes.iter().position(|known| known.home == home) {
            return known;
        }
        let exists = home.state().exists();
        self.traces.homes.push(TracedHome { home, variables, exists, has_daemon: false, dead_sockets: Vec::new() });
        self.traces.homes.len() - 1
    }

    /// Notes the home that the environment of a process names.
    fn home_of(&mut self, process: ProcessId) -> Option<usize> {
        // A value with the mark of bytes that are no text is not the path it looks like, and a relative one meant
        // something only where the process was started.
        let value = |name: &str| process::marker(process.pid, name).filter(|value| !value.contains('\u{fffd}'));
        let variables = variables(|name| value(name).map(OsString::from));
        if variables.get("LOCALD_HOME").is_some_and(|home| !home.starts_with('/')) {
            return None;
        }
        let home = Home::from_lookup(|name| variables.get(name).map(OsString::from)).ok()?;
        Some(self.meet(home, variables))
    }

    fn see_daemon(&mut self, process: &Process) {
        let home = self.home_of(process.id);
        let socket = home.map(|home| self.traces.homes[home].home.daemon_socket());
        let has_socket = socket.is_some_and(|socket| socket.exists());
        self.traces.daemons.push(Daemon { process: describe(process), home, has_socket });
    }

    fn see_member(&mut self, process: &Process) {
        let Some(run) = mark::run_of(process.id.pid) else { return };
        let service = process::marker(process.id.pid, SERVICE_MARKER);
        let home = self.home_of(process.id);
        self.traces.members.push(Member { process: describe(process), run: run.to_string(), service, home });
    }

    /// Reads the records of every home, and those that shims say are theirs.
    fn read_records(&mut self, shims: &[(Process, ShimIdentity)]) {
        let boot = process::boot_id().ok();
        let mut dirs: Vec<(PathBuf, Option<usize>)> = Vec::new();
        let mut seen = BTreeSet::new();
        for (index, home) in self.traces.homes.iter().enumerate() {
            dirs.extend(home.home.record_dirs().into_iter().map(|dir| (dir, Some(index))));
        }
        let places = shims.iter().flat_map(|(_, identity)| record::places(&identity.service_dir));
        dirs.extend(places.map(|place| (place, None)));
        for (dir, home) in dirs {
            if !seen.insert(dir.clone()) {
                continue;
            }
            self.read_records_of(&dir, home, boot.as_deref());
        }
    }

    fn read_records_of(&mut self, dir: &Path, home: Option<usize>, boot: Option<&str>) {
        // One that cannot be read is the daemon's to complain about.
        let Ok(Some(found)) = record::load::<ShimRecord>(dir, record::SHIM) else { return };
        let is_of_this_boot = boot == Some(found.boot.as_str());
        let has_shim = is_of_this_boot && found.shim.is_alive();
        let processes = || {
            record::load::<PidRecord>(dir, record::PID).unwrap_or_else(|_| {
                Some(PidRecord::unreadable(found.run.clone(), found.boot.clone(), found.shim, None))
            })
        };
        if is_of_this_boot
            && !has_shim
            && let Some(pid) = processes()
        {
            self.see_left(&pid, &found, home);
        }
        // A run that ended meanwhile has taken its record away.
        let file = dir.join(record::SHIM);
        if has_shim || file.exists() {
            self.traces.records.push(Record { run: found.run, file, home, is_of_this_boot, has_shim });
        }
    }

    /// Notes what is left of a run without its shim, whatever their environments tell.
    fn see_left(&mut self, pid: &PidRecord, shim: &ShimRecord, home: Option<usize>) {
        let cgroup = pid.cgroup.clone().map(Cgroup::at);
        let supervisor = home.map(|home| mark::supervisor(self.traces.homes[home].home.state()).to_owned());
        let target = Target::recorded(pid, cgroup.as_ref(), supervisor.as_deref());
        let service = format!("{}:{}", shim.run.project_name, shim.run.service);
        for process in target.members(&Memory::default()).unwrap_or_default() {
            if !self.traces.members.iter().any(|member| member.process.id == process.id) {
                let (process, run) = (describe(&process), shim.run.id.to_string());
                self.traces.members.push(Member { process, run, service: Some(service.clone()), home });
            }
        }
    }

    fn see_shims(&mut self, shims: Vec<(Process, ShimIdentity)>) {
        for (process, identity) in shims {
            let is_recorded = self.traces.records.iter().any(|record| record.run.id == identity.run.id);
            let mut children = self.table.iter().filter(|child| child.parent == process.id.pid);
            let has_children = children.any(|child| child.id.is_alive());
            self.traces.shims.push(Shim {
                process: describe(&process),
                run: identity.run,
                service_dir: identity.service_dir,
                is_recorded,
                has_children,
            });
        }
    }

    /// Finds out which homes have a daemon, and in those that have none the sockets that nobody listens at.
    fn see_sockets(&mut self) {
        for home in &mut self.traces.homes {
            home.has_daemon = listens(&home.home.daemon_socket());
            if home.has_daemon {
                continue;
            }
            let entries = fs::read_dir(home.home.shim_sockets()).into_iter().flatten().flatten();
            // The name is the run's id. A shim that was seen is not disturbed.
            let shims = &self.traces.shims;
            let is_known = |entry: &fs::DirEntry| shims.iter().any(|shim| entry.file_name() == shim.run.id.as_str());
            home.dead_sockets = entries.filter(|entry| !is_known(entry)).map(|entry| entry.path()).collect();
            home.dead_sockets.push(home.home.daemon_socket());
            home.dead_sockets.retain(|socket| is_dead(socket));
            home.dead_sockets.sort();
        }
        if self.traces.homes.iter().any(|home| !home.dead_sockets.is_empty()) {
            std::thread::sleep(SOCKET_PAUSE);
        }
        for home in &mut self.traces.homes {
            home.dead_sockets.retain(|socket| is_dead(socket));
        }
    }

    /// Lets go of what has ended since the table was read.
    fn look_again(&mut self) {
        for daemon in self.traces.daemons.iter().filter(|daemon| !daemon.has_socket) {
            // One that leaves takes its socket away first. A system that cannot tell is not waited for.
            let _ = process::await_exit(daemon.process.id, LEAVE_LIMIT);
        }
        let is_alive = |process: &Described| process.id.is_alive();
        self.traces.members.retain(|member| is_alive(&member.process));
        self.traces.shims.retain(|shim| is_alive(&shim.process));
        self.traces.daemons.retain(|daemon| is_alive(&daemon.process));
    }
}

/// What a shim was told it is: its last argument.
fn identity(shim: ProcessId) -> Option<ShimIdentity> {
    let command = process::command(shim.pid)?;
    let start = command.find(" run {")? + " run ".len();
    serde_json::from_str(&command[start..]).ok()
}

fn describe(process: &Process) -> Described {
    let pid = process.id.pid;
    Described {
        id: process.id,
        state: process.state,
        command: process::shown_command(process),
        directory: process::working_directory(pid),
        age: features::age(process.id),
    }
}

/// Whether somebody listens at a socket. A shim or a daemon takes the connection for one that was closed at once.
fn listens(socket: &Path) -> bool {
    // A listener that is stopped has a queue, and the queue may be full.
    matches!(knock(socket), Ok(()) | Err(Errno::EAGAIN | Errno::EINPROGRESS))
}

/// Whether a socket is there and nobody listens at it.
fn is_dead(path: &Path) -> bool {
    let is_socket = path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
    is_socket && knock(path) == Err(Errno::ECONNREFUSED)
}

/// Connects without waiting, and closes the connection.
fn knock(path: &Path) -> nix::Result<()> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None)?;
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_condition_of_a_directory_is_seen() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().canonicalize().expect("canonical");
        let home = Home::under(&root.join("home"));
        let condition = || directories(&home).runtime.condition;
        assert_eq!(condition(), Condition::Absent);
        assert_eq!(directories(&home).state.condition, Condition::Absent);
        home.prepare().expect("prepares");
        assert_eq!(condition(), Condition::Fine { mode: 0o700 });
        for sockets in [home.shim_sockets(), home.notify_sockets()] {
            fs::set_permissions(&sockets, fs::Permissions::from_mode(0o770)).expect("chmod");
            assert_eq!(condition(), Condition::Open { dir: sockets.clone(), mode: 0o770 });
            fs::remove_dir(&sockets).expect("removes");
        }
        fs::remove_dir(home.runtime()).expect("removes");
        std::os::unix::fs::symlink("/elsewhere", home.runtime()).expect("a link");
        assert_eq!(condition(), Condition::Link { target: "/elsewhere".into() });
        fs::remove_file(home.runtime()).expect("removes");
        fs::write(home.runtime(), "").expect("writes");
        assert_eq!(condition(), Condition::Other);
    }

    #[test]
    fn a_program_is_asked_for_its_version() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(SHIM);
        let script = |text: &str, mode| {
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("writes");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
            program(SHIM, &path)
        };
        assert!(matches!(program(SHIM, &path), ProgramCondition::Missing));
        assert!(matches!(script("", 0o600), ProgramCondition::NotExecutable));
        for stream in [1, 2] {
            let said = script(&format!("echo locald-shim 1.2.3 >&{stream}"), 0o700);
            assert!(matches!(&said, ProgramCondition::Version(version) if version == "1.2.3"), "{said:?}");
        }
        assert!(matches!(script("echo hello", 0o700), ProgramCondition::Mute { .. }));
    }

    #[test]
    fn a_socket_is_dead_when_nobody_listens_at_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        assert!(!is_dead(&path));
        let listener = UnixListener::bind(&path).expect("binds");
        // Nobody accepts, so the queue is full before long. macOS then refuses, as if nobody listened (unix(4)).
        let times = if cfg!(target_os = "linux") { 5000 } else { 2 };
        for _ in 0..times {
            assert!(listens(&path) && !is_dead(&path));
        }
        drop(listener);
        assert!(!listens(&path) && is_dead(&path));
        fs::remove_file(&path).expect("removes");
        fs::write(&path, "").expect("writes");
        assert!(!is_dead(&path), "no socket at all");
    }

    #[test]
    fn a_value_that_is_empty_is_no_variable() {
        let value = |name: &str| Some(OsString::from(if name == "HOME" { "/home/ann" } else { "" }));
        assert_eq!(variables(value), Variables::from([("HOME", "/home/ann".to_owned())]));
    }
}
