//! How runs start and end, as facts: the values that records on disk, both protocols and the ledger share.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::fail;
use crate::name::{ProjectId, ProjectName, RunId, RunNumber, ServiceKey, ServiceName};
use crate::process::ProcessId;
use crate::time::{UnixMillis, uptime};

/// The record of the shim that carries a service's run: a [`ShimRecord`].
pub const SHIM: &str = "shim";
/// The record of the run's processes: a [`PidRecord`].
pub const PID: &str = "pid";
/// The record of a stop under way: a [`StopRecord`].
pub const STOP: &str = "stop";

/// The record of a run that has ended, until the daemon has acknowledged it: an [`Ended`]. Each has a name of its own, because
/// the next run may begin before that.
#[must_use]
pub fn exit(run: &RunId) -> String {
    format!("{EXIT}{run}")
}

/// What the record of an exit is called, before the run's id.
const EXIT: &str = "exit.";

/// Writes a record so that a reader finds all of it or none of it.
///
/// It is not synced: a record has to outlive processes, which the page cache does; after a crash of the machine the boot
/// id tells that it means nothing any more.
///
/// # Errors
/// When the file cannot be written or put in its place.
pub fn store<T: Serialize>(dir: &Path, name: &str, record: &T) -> io::Result<()> {
    let (new, spare) = (dir.join(format!(".{name}.new")), spare(dir, name));
    if new != spare {
        // Others take it as well.
        let _ = std::fs::rename(&spare, &new);
    }
    fail::point("a record is to be stored");
    write(&new, record)?;
    fail::point("a record is written beside its place");
    std::fs::rename(&new, dir.join(name))?;
    fail::point("a record is in its place");
    Ok(())
}

fn write<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut bytes = serde_json::to_vec_pretty(record)?;
    bytes.push(b'\n');
    // Shortened after it is written and not emptied before: ext4 takes a file that was emptied for one to be synced.
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    io::Write::write_all(&mut file, &bytes)?;
    file.set_len(bytes.len() as u64)
}

/// Where the file of a record that is removed waits for the next one of its kind.
///
/// A file that is used again spares the file system from looking for a free one: ext4 passes over those that were deleted in
/// the last minute, one by one, which costs more than all else when hundreds of services were stopped and start again.
fn spare(dir: &Path, name: &str) -> PathBuf {
    let kind = name.split_once('.').map_or(name, |(kind, _)| kind);
    dir.join(format!(".{kind}.new"))
}

/// Reads a record; `None` when there is none.
///
/// # Errors
/// When it cannot be read, or is not what it should be.
pub fn load<T: DeserializeOwned>(dir: &Path, name: &str) -> io::Result<Option<T>> {
    match std::fs::read(dir.join(name)) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a record. One that is not there is no error.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(dir: &Path, name: &str) -> io::Result<()> {
    fail::point("a record is to be removed");
    match std::fs::rename(dir.join(name), spare(dir, name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Records the shim of a run that begins, and says where the run keeps its records: in the directory of its service or, while an
/// earlier run has its own there, in one of its own within it. So a directory has the records of one run at a time, whatever
/// ends, or comes late, when.
///
/// # Errors
/// When a directory cannot be made, or the file cannot be written or put in its place.
pub fn begin(service_dir: &Path, shim: &ShimRecord) -> io::Result<PathBuf> {
    let new = service_dir.join(format!(".{SHIM}.{}.new", shim.run.id));
    // Others take it as well.
    let _ = std::fs::rename(spare(service_dir, SHIM), &new);
    write(&new, shim)?;
    fail::point("the record of a shim is written beside its place");
    // Unlike a rename, this replaces nothing: the shim's record is the first to come and the last to go, but for how it ended.
    match std::fs::hard_link(&new, service_dir.join(SHIM)) {
        Ok(()) => {
            fail::point("the record of a shim is in its place");
            std::fs::remove_file(&new)?;
            Ok(service_dir.to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let place = aside(service_dir, &shim.run.id);
            std::fs::create_dir_all(&place)?;
            std::fs::rename(&new, place.join(SHIM))?;
            Ok(place)
        }
        // A file system without links.
        Err(_) => std::fs::rename(&new, service_dir.join(SHIM)).map(|()| service_dir.to_owned()),
    }
}

/// Where a run that has begun keeps its records.
#[must_use]
pub fn place_of(service_dir: &Path, run: &RunId) -> PathBuf {
    let aside = aside(service_dir, run);
    if aside.exists() { aside } else { service_dir.to_owned() }
}

/// Where a service may have records: in its own directory, and those of runs that began beside an earlier one.
#[must_use]
pub fn places(service_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(service_dir).into_iter().flatten().flatten().map(|entry| entry.path());
    std::iter::once(service_dir.to_owned()).chain(entries.filter(|path| is_aside(path))).collect()
}

/// The names of the records of exits.
#[must_use]
pub fn exits(place: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(EXIT)).collect()
}

/// Takes away the directory of a run that began beside an earlier one, when it has no record any more. A service's own stays.
///
/// # Errors
/// When it cannot be removed.
pub fn leave(place: &Path) -> io::Result<()> {
    let has_record = || [SHIM, PID, STOP].iter().any(|name| place.join(name).exists()) || !exits(place).is_empty();
    if !is_aside(place) || has_record() {
        return Ok(());
    }
    match std::fs::remove_dir_all(place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What the directory of a run that began beside an earlier one is called, before the run's id.
const ASIDE: &str = "run.";

fn aside(service_dir: &Path, run: &RunId) -> PathBuf {
    service_dir.join(format!("{ASIDE}{run}"))
}

fn is_aside(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(ASIDE))
}

/// The program that a run executes, as it was found before it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executable {
    /// Where it lies.
    pub path: String,
    /// When it was changed last, in seconds since 1970.
    pub mtime: i64,
    /// Its length in bytes.
    pub size: u64,
}

/// What a run was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its program, where that could be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<Executable>,
    /// The commit that was checked out, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

/// Names a run and everything needed to talk about it without asking anybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRef {
    /// The project instance.
    pub project: ProjectId,
    /// The project's name when the run started.
    pub project_name: ProjectName,
    /// The service.
    pub service: ServiceName,
    /// Which of its runs.
    pub number: RunNumber,
    /// The run's own id, the value of `LOCALD_RUN`.
    pub id: RunId,
}

impl RunRef {
    /// The service this is a run of.
    #[must_use]
    pub fn key(&self) -> ServiceKey {
        ServiceKey { project: self.project.clone(), service: self.service.clone() }
    }
}

/// How a process ended, as the kernel told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExitStatus {
    /// It called exit with this code, 0 to 255.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// Nobody was there to learn it. Never taken for 0.
    Unknown,
}

impl ExitStatus {
    /// True for exit code 0 alone.
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit {code}"),
            Self::Signal(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => write!(f, "{}", signal.as_str()),
                Err(_) => write!(f, "signal {number}"),
            },
            Self::Unknown => f.write_str("exit status unknown"),
        }
    }
}

/// A member of a run that left the leader's process group or outlived the leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stray {
    /// Which process.
    pub process: ProcessId,
    /// Its command line, or its name where that could not be read.
    pub command: String,
}

/// A process that could not be ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survivor {
    /// Which process.
    pub process: ProcessId,
    /// Its command line, or its name where that could not be read.
    pub command: String,
    /// The user it runs as.
    pub uid: u32,
    /// Why it is still there, for people.
    pub reason: String,
}

/// How a run ended. Written by the shim before it tells anyone, so that it survives the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Which run.
    pub run: RunRef,
    /// The leader's exit status; if it was a launcher that left the service behind, that of who stood for it.
    pub status: ExitStatus,
    /// Whether the leader was such a launcher: it has exited with code 0, and the run has gone on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forked: bool,
    /// When the leader's first instruction ran; `None` if it never did.
    pub started_at: Option<UnixMillis>,
    /// When the leader, or who stood for the service, was seen to have exited.
    pub exited_at: UnixMillis,
    /// When the last process of the run was gone.
    pub ended_at: UnixMillis,
    /// Whether locald was asked to end it: then a signal as status is ours.
    pub stopped: bool,
    /// Whether any process had to be killed because it did not end in its grace period.
    pub forced: bool,
    /// How many processes of the run were seen to end since its stop began; for an exit by itself, since that exit.
    pub processes: u32,
    /// How many of those had to be killed.
    pub killed: u32,
    /// Members that had left the leader's group or outlived it.
    #[serde(default)]
    pub strays: Vec<Stray>,
    /// Who was given a socket of the run and keeps its port from being free: empty, as a rule.
    #[serde(default)]
    pub survivors: Vec<Survivor>,
    /// How long the stop took, from the request (or the leader's exit) to the last process.
    #[serde(rename = "stop_ms", with = "crate::time::millis")]
    pub stop_took: Duration,
    /// Bytes of output that could not be written to the log.
    #[serde(default)]
    pub lost_output: u64,
}

/// The step of a start that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartStage {
    /// Making the terminal.
    Terminal,
    /// Opening the log.
    Log,
    /// Starting the exec helper.
    Helper,
    /// Making the session and taking the terminal.
    Session,
    /// Changing to the working directory.
    Workdir,
    /// Finding the program in `PATH`.
    Lookup,
    /// Replacing the helper by the program.
    Exec,
    /// Having a launcher leave the service behind.
    Launch,
    /// Writing the record of the run.
    Record,
    /// Starting the shim or talking to it.
    Shim,
    /// The declared port is held by somebody else.
    Port,
    /// Writing the intent to the ledger.
    Ledger,
}

/// Why a run did not start, as (stage, errno, path) and as a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// Which step failed.
    pub stage: StartStage,
    /// The errno, 0 where there is none.
    pub errno: i32,
    /// What it failed on.
    pub path: Option<PathBuf>,
    /// What went wrong, without the service's name: "./server is not executable (EACCES)".
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Whether trying again cannot help until a person changes something.
    pub permanent: bool,
}

/// The record `shim`: written by a shim before it says Hello, read to find it again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// The run it carries out.
    pub run: RunRef,
    /// The project's directory.
    pub project_dir: PathBuf,
    /// The boot in which `shim` means anything.
    pub boot: String,
    /// The shim itself.
    pub shim: ProcessId,
    /// Where it listens.
    pub socket: PathBuf,
    /// The version of the shim.
    pub version: String,
}

/// The record `pid`: written by the shim before the service's first instruction can run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidRecord {
    /// The run.
    pub run: RunRef,
    /// The boot in which the processes mean anything.
    pub boot: String,
    /// The leader: `pid` and start time.
    pub leader: ProcessId,
    /// Its process group, the same number.
    pub pgid: i32,
    /// Its session, the same number.
    pub sid: i32,
    /// The shim that carries the run.
    pub shim: ProcessId,
    /// The shim's ancestors, less the first process: where orphans of the run go when the shim is gone.
    #[serde(default)]
    pub reapers: Vec<ProcessId>,
    /// The run's cgroup, where it has one.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// Who stands for what a launcher has left, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<ProcessId>,
}

impl PidRecord {
    /// Who stands for the service: its leader, or one of those that a launcher has left.
    #[must_use]
    pub fn main(&self) -> ProcessId {
        self.main.unwrap_or(self.leader)
    }

    /// What can be said of a run whose record cannot be read: that its processes are no older than its shim.
    #[must_use]
    pub fn unreadable(run: RunRef, boot: String, shim: ProcessId, cgroup: Option<PathBuf>) -> Self {
        // No process has this number.
        let leader = ProcessId { pid: 0, start: shim.start };
        Self { run, boot, leader, pgid: leader.pid, sid: leader.pid, shim, reapers: Vec::new(), cgroup, main: None }
    }
}

/// The record `stop`: written by the shim before the first signal of a stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRecord {
    /// The run that is being ended.
    pub run: RunRef,
    /// When the stop began.
    pub at: UnixMillis,
    /// When what is left is killed, for people: somebody may set the clock meanwhile.
    pub kill_at: UnixMillis,
    /// For how many milliseconds the system will have been up then ([`uptime`]).
    #[serde(default)]
    pub kill_at_uptime_ms: Option<u64>,
}

impl StopRecord {
    /// A stop that begins now and kills after `grace`.
    #[must_use]
    pub fn begin(run: RunRef, grace: Duration) -> Self {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let at = UnixMillis::now();
        let kill_at = UnixMillis(at.0.saturating_add(ms(grace)));
        Self { run, at, kill_at, kill_at_uptime_ms: Some(ms(uptime().saturating_add(grace))) }
    }

    /// How much of the grace period is left.
    #[must_use]
    pub fn grace(&self) -> Duration {
        match self.kill_at_uptime_ms {
            Some(kill_at) => Duration::from_millis(kill_at).saturating_sub(uptime()),
            // A shim of an earlier version wrote it.
            None => self.kill_at.since(UnixMillis::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_record_in_a_used_file_is_only_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        for (long, short) in [(PID, PID), ("exit.1", "exit.2")] {
            store(dir.path(), long, &"a long one, which leaves its file to the next".to_owned()).expect("stored");
            remove(dir.path(), long).expect("removed");
            assert_eq!(load::<String>(dir.path(), long).expect("readable"), None);
            store(dir.path(), short, &"short".to_owned()).expect("stored");
            assert_eq!(load::<String>(dir.path(), short).expect("readable").as_deref(), Some("short"));
            assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1);
            std::fs::remove_file(dir.path().join(short)).expect("removed");
        }
    }

    #[test]
    fn a_run_beside_another_has_a_directory_of_its_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let service = dir.path();
        let id = |number: u32| RunId::parse(&format!("{number:016x}")).expect("valid");
        let begin = |number| {
            let run = RunRef {
                project: ProjectId::from_recorded("p"),
                project_name: "shop".parse().expect("valid"),
                service: "web".parse().expect("valid"),
                number: RunNumber(number),
                id: id(number),
            };
            let (project_dir, boot, version) = ("/p".into(), "b".into(), "1".into());
            let shim = ProcessId { pid: 9, start: 1 };
            let record = ShimRecord { run, project_dir, boot, shim, socket: "/s".into(), version };
            let place = begin(service, &record).expect("stored");
            assert_eq!(load(&place, SHIM).expect("readable"), Some(record));
            assert_eq!(place_of(service, &id(number)), place);
            place
        };
        let first = begin(1);
        assert_eq!(first, service);
        let (second, third) = (begin(2), begin(3));
        let mut found = places(service);
        found.sort();
        assert_eq!(found, [first.clone(), second.clone(), third.clone()]);
        assert_eq!(load::<ShimRecord>(&first, SHIM).expect("readable").expect("there").run.number, RunNumber(1));
        remove(&first, SHIM).expect("removed");
        leave(&first).expect("stays");
        assert_eq!(begin(4), first);
        // How it ended has not been heard.
        store(&second, &exit(&id(2)), &2).expect("stored");
        remove(&second, SHIM).expect("removed");
        leave(&second).expect("has a record");
        assert_eq!((places(service).len(), exits(&second)), (3, vec![exit(&id(2))]));
        remove(&second, &exit(&id(2))).expect("removed");
        for place in [&second, &second, &third] {
            remove(place, SHIM).expect("removed");
            leave(place).expect("removed");
        }
        assert_eq!(places(service), [first]);
    }
}
