//! How runs start and end, as facts: the values that records on disk, both protocols and the ledger share.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::name::{ProjectId, ProjectName, RunId, RunNumber, ServiceKey, ServiceName};
use crate::process::ProcessId;
use crate::time::UnixMillis;

/// The record of the shim that carries a service's run: a [`ShimRecord`].
pub const SHIM: &str = "shim";
/// The record of the run's processes: a [`PidRecord`].
pub const PID: &str = "pid";
/// The record of a stop under way: a [`StopRecord`].
pub const STOP: &str = "stop";
/// The record of a run that has ended, until the daemon has acknowledged it: an [`Ended`].
pub const EXIT: &str = "exit";

/// Writes a record so that a reader finds all of it or none of it.
///
/// It is not synced: a record has to outlive processes, which the page cache does; after a crash of the machine the boot
/// id tells that it means nothing any more.
///
/// # Errors
/// When the file cannot be written or put in its place.
pub fn store<T: Serialize>(dir: &Path, name: &str, record: &T) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let spare = spare(dir, name);
    let mut bytes = serde_json::to_vec_pretty(record)?;
    bytes.push(b'\n');
    // Shortened after it is written and not emptied before: ext4 takes a file that was emptied for one to be synced.
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&spare)?;
    io::Write::write_all(&mut file, &bytes)?;
    file.set_len(bytes.len() as u64)?;
    std::fs::rename(&spare, dir.join(name))
}

/// Where a record is written, and where its file waits for the next one when it is removed.
///
/// A file that is used again spares the file system from looking for a free one: ext4 passes over those that were deleted in
/// the last minute, one by one, which costs more than all else when hundreds of services were stopped and start again.
fn spare(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!(".{name}.new"))
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
    match std::fs::rename(dir.join(name), spare(dir, name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes room for the records of `run`: those of an earlier one, which could not be ended, are put aside.
fn put_aside(dir: &Path, run: &RunRef) -> io::Result<()> {
    let whose = |name| match run_in(dir, name) {
        // One that a crash of the machine has torn names nobody, and gives way.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => Ok(None),
        found => found,
    };
    let Some(other) = whose(SHIM)?.filter(|other| other.id != run.id) else { return Ok(()) };
    // The shim's last, so that whoever is interrupted here can begin anew.
    for name in [PID, STOP, SHIM] {
        if whose(name)?.is_some_and(|found| found.id == other.id) {
            std::fs::rename(dir.join(name), dir.join(aside(name, other.number)))?;
        }
    }
    Ok(())
}

/// Records the shim of a run that begins. The records of an earlier run that could not be ended are put aside, under its number.
///
/// # Errors
/// When the records cannot be renamed or written.
pub fn begin(dir: &Path, shim: &ShimRecord) -> io::Result<()> {
    let _lock = lock(dir)?;
    put_aside(dir, &shim.run)?;
    store(dir, SHIM, shim)
}

/// Keeps records from changing hands between a look and what follows from it, until it is dropped (flock(2)).
fn lock(dir: &Path) -> io::Result<std::fs::File> {
    let dir = std::fs::File::open(dir)?;
    dir.lock()?;
    Ok(dir)
}

/// What all records have in common.
#[derive(Deserialize)]
struct OfRun {
    run: RunRef,
}

/// The name of a record that was put aside.
fn aside(name: &str, run: RunNumber) -> String {
    format!("{name}.{}", run.0)
}

/// Which run a record is about.
fn run_in(dir: &Path, name: &str) -> io::Result<Option<RunRef>> {
    Ok(load::<OfRun>(dir, name)?.map(|record| record.run))
}

/// Under which names records of a run are found. One that cannot be read is in the way only where there is no other.
fn names_of(dir: &Path, name: &str, run: &RunRef) -> io::Result<Vec<String>> {
    let (mut names, mut trouble) = (Vec::new(), None);
    for name in [name.to_owned(), aside(name, run.number)] {
        match run_in(dir, &name) {
            Ok(Some(found)) if found.id == run.id => names.push(name),
            Ok(Some(_) | None) => {}
            Err(error) => trouble = Some(error),
        }
    }
    match trouble {
        Some(error) if names.is_empty() => Err(error),
        Some(_) | None => Ok(names),
    }
}

/// Reads the record of a run, wherever it is. `None` when there is none.
///
/// # Errors
/// When it cannot be read, or is not what it should be.
pub fn load_of<T: DeserializeOwned>(dir: &Path, name: &str, run: &RunRef) -> io::Result<Option<T>> {
    names_of(dir, name, run)?.first().map_or(Ok(None), |name| load(dir, name))
}

/// Removes the record of a run, wherever it is. One that is not there is no error.
///
/// # Errors
/// When it cannot be read or removed.
pub fn remove_of(dir: &Path, name: &str, run: &RunRef) -> io::Result<()> {
    let _lock = match lock(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        lock => lock?,
    };
    for found in names_of(dir, name, run)? {
        if found == name { remove(dir, name) } else { std::fs::remove_file(dir.join(found)) }?;
    }
    Ok(())
}

/// The records of all shims of a service: of its current run, and of those that were put aside. A directory that is not there
/// has none.
#[must_use]
pub fn shims(dir: &Path) -> Vec<(PathBuf, io::Result<ShimRecord>)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let is_shim = |name: &str| name == SHIM || name.strip_prefix(SHIM).is_some_and(|rest| rest.starts_with('.'));
    let names = entries.filter_map(|name| name.into_string().ok()).filter(|name| is_shim(name));
    names.filter_map(|name| Some((dir.join(&name), load(dir, &name).transpose()?))).collect()
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
    /// The leader's exit status.
    pub status: ExitStatus,
    /// When the leader's first instruction ran; `None` if it never did.
    pub started_at: Option<UnixMillis>,
    /// When the leader was seen to have exited.
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

/// The record `services/<name>/shim`: written by a shim before it says Hello, read to find it again.
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

/// The record `services/<name>/pid`: written by the shim before the service's first instruction can run.
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
    pub reapers: Vec<i32>,
    /// The run's cgroup, where it has one.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
}

/// The record `services/<name>/stop`: written by the shim before the first signal of a stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopRecord {
    /// The run that is being ended.
    pub run: RunRef,
    /// When the stop began.
    pub at: UnixMillis,
    /// When what is left is killed.
    pub kill_at: UnixMillis,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_record_in_a_used_file_is_only_itself() {
        let dir = tempfile::tempdir().expect("a directory");
        store(dir.path(), EXIT, &"a long one, which leaves its file to the next".to_owned()).expect("stored");
        remove(dir.path(), EXIT).expect("removed");
        assert_eq!(load::<String>(dir.path(), EXIT).expect("readable"), None);
        store(dir.path(), EXIT, &"short".to_owned()).expect("stored");
        assert_eq!(load::<String>(dir.path(), EXIT).expect("readable").as_deref(), Some("short"));
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1);
    }

    fn run(number: u32) -> RunRef {
        RunRef {
            project: ProjectId::from_recorded("p"),
            project_name: "shop".parse().expect("valid"),
            service: "web".parse().expect("valid"),
            number: RunNumber(number),
            id: RunId::parse(&format!("{number:016x}")).expect("valid"),
        }
    }

    #[test]
    fn the_records_of_a_run_that_could_not_be_ended_stay_beside_those_of_the_next() {
        let dir = tempfile::tempdir().expect("a directory");
        let shim = |number| ShimRecord {
            run: run(number),
            project_dir: "/p".into(),
            boot: "b".into(),
            shim: ProcessId { pid: 9, start: 1 },
            socket: "/s".into(),
            version: "1".into(),
        };
        let stop = |number| StopRecord { run: run(number), at: UnixMillis(1), kill_at: UnixMillis(2) };
        let begin = |number| begin(dir.path(), &shim(number)).expect("stored");
        begin(1);
        store(dir.path(), STOP, &stop(1)).expect("stored");
        begin(2);
        begin(2);
        let mut found: Vec<ShimRecord> =
            shims(dir.path()).into_iter().map(|(_, shim)| shim.expect("readable")).collect();
        found.sort_by_key(|shim| shim.run.number);
        assert_eq!(found, [shim(1), shim(2)]);
        assert_eq!(load_of(dir.path(), STOP, &run(1)).expect("readable"), Some(stop(1)));
        assert_eq!(load_of::<StopRecord>(dir.path(), STOP, &run(2)).expect("readable"), None);
        for name in [SHIM, STOP] {
            remove_of(dir.path(), name, &run(1)).expect("removed");
        }
        assert_eq!(load::<ShimRecord>(dir.path(), SHIM).expect("readable"), Some(shim(2)));
        assert_eq!(shims(dir.path()).len(), 1);
        std::fs::write(dir.path().join(SHIM), "{\"run\": {\"pro").expect("torn");
        begin(3);
        assert_eq!(load(dir.path(), SHIM).expect("readable"), Some(shim(3)));
        assert_eq!(load_of::<StopRecord>(dir.path(), STOP, &run(1)).expect("readable"), None);
    }

    #[test]
    fn a_record_of_another_run_is_not_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (old, new) = (run(1), run(2));
        let record = StopRecord { run: new.clone(), at: UnixMillis(1), kill_at: UnixMillis(2) };
        store(dir.path(), STOP, &record).expect("stored");
        remove_of(dir.path(), STOP, &old).expect("left alone");
        assert_eq!(load(dir.path(), STOP).expect("readable"), Some(record));
        remove_of(dir.path(), STOP, &new).expect("removed");
        remove_of(dir.path(), STOP, &new).expect("nothing to remove");
        assert_eq!(load::<StopRecord>(dir.path(), STOP).expect("readable"), None);
    }
}
