//! The ledger: every run and event, and what an interrupted daemon has to know again, in one SQLite database.
//!
//! One thread owns the connection. It takes whatever is waiting, writes it in one transaction, and then answers, so a
//! hundred starts at once cost one commit. Nothing here decides; the callers say what happened. Commits are not synced:
//! they outlive every process, and a machine that crashes takes the runs with it (WAL, synchronous = NORMAL).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

use crate::core::fleet::Remembered;
use crate::core::lifecycle::Resting;
use locald_utils::name::{ProjectId, RunNumber, ServiceKey, ServiceName};
use locald_utils::protocol::Desired;
use locald_utils::record::{Ended, ExitStatus, RunRef, StartFailure};
use locald_utils::spec::{Environment, PortSpec, Ports, ProjectSpec};
use locald_utils::time::UnixMillis;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use tokio::sync::oneshot;

/// The layout of the database. A later build migrates from it; an earlier one refuses a newer one.
const SCHEMA_VERSION: i64 = 1;

/// 200,000 events: years of a busy project, some 20 MB.
const MOST_EVENTS: i64 = 200_000;

/// 1,000 runs of each service. A service that restarts every minute has its last day on record.
const MOST_RUNS: i64 = 1_000;

const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE projects (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, dir TEXT NOT NULL, spec TEXT NOT NULL, changed_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE services (
    project TEXT NOT NULL, service TEXT NOT NULL, desired TEXT NOT NULL, environment TEXT, resting TEXT,
    PRIMARY KEY (project, service)
) WITHOUT ROWID;
CREATE TABLE environments (digest TEXT PRIMARY KEY, variables TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE ports (
    project TEXT NOT NULL, service TEXT NOT NULL, port INTEGER NOT NULL UNIQUE, PRIMARY KEY (project, service)
) WITHOUT ROWID;
CREATE TABLE runs (
    id TEXT PRIMARY KEY, project TEXT NOT NULL, project_name TEXT NOT NULL, service TEXT NOT NULL, number INTEGER NOT NULL,
    asked_by TEXT NOT NULL, asked_at INTEGER NOT NULL, boot TEXT NOT NULL,
    argv TEXT NOT NULL, workdir TEXT NOT NULL, executable TEXT, executable_mtime INTEGER, executable_size INTEGER,
    environment TEXT NOT NULL, spec_digest TEXT NOT NULL, port INTEGER, git_commit TEXT, git_dirty INTEGER,
    pid INTEGER, started_at INTEGER, exited_at INTEGER, ended_at INTEGER, outcome TEXT, exit_code INTEGER, exit_signal INTEGER,
    stopped INTEGER, forced INTEGER, processes INTEGER, killed INTEGER, ended TEXT, failure TEXT,
    UNIQUE (project, service, number)
);
CREATE INDEX open_runs ON runs (project, service) WHERE ended_at IS NULL;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, project TEXT NOT NULL, service TEXT, run INTEGER,
    kind TEXT NOT NULL, data TEXT
);
CREATE INDEX events_of_service ON events (project, service, seq);
";

/// Says why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    /// SQLite refused.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A newer locald made this database.
    #[error("it was made by a newer locald (layout {found}, this one knows {SCHEMA_VERSION})")]
    Newer {
        /// The layout found.
        found: i64,
    },
    /// A value cannot be written or read as JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Its file cannot be made.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Every port of the range for `port = "auto"` is taken.
    #[error("no port between {} and {} is free", AUTO_PORTS.start(), AUTO_PORTS.end())]
    NoPort,
    /// The thread that owns the database is gone.
    #[error("the ledger has been closed")]
    Closed,
}

/// Where `port = "auto"` looks: below the ephemeral ports of Linux (32768) and macOS (49152), above what people choose.
const AUTO_PORTS: std::ops::RangeInclusive<u16> = 20_000..=32_000;

/// What is written before a run is started.
#[derive(Clone, Debug)]
pub(crate) struct Intent {
    pub(crate) run: RunRef,
    pub(crate) asked_by: String,
    pub(crate) asked_at: UnixMillis,
    pub(crate) boot: String,
    pub(crate) argv: Vec<String>,
    pub(crate) workdir: String,
    pub(crate) executable: Option<Executable>,
    /// Names of the variables and digests of their values.
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) spec_digest: String,
    pub(crate) port: Option<u16>,
}

/// The program that a run is going to execute, as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Executable {
    pub(crate) path: String,
    pub(crate) mtime: i64,
    pub(crate) size: u64,
}

/// What the ledger knows of a project that the daemon is about to supervise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// The last run number of each service that ever ran.
    pub(crate) newest: BTreeMap<ServiceName, RunNumber>,
    /// The port of each service that has one.
    pub(crate) ports: Ports,
}

/// A project as an earlier daemon left it.
#[derive(Clone, Debug)]
pub(crate) struct Left {
    pub(crate) spec: ProjectSpec,
    pub(crate) services: Vec<(Remembered, Arc<BaseEnvironment>)>,
    pub(crate) ports: Ports,
}

/// A caller's environment, and the digest under which the ledger has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BaseEnvironment {
    pub(crate) digest: String,
    pub(crate) variables: Environment,
}

impl BaseEnvironment {
    /// Takes a caller's environment.
    pub(crate) fn new(variables: Environment) -> Self {
        let json = serde_json::to_vec(&variables).unwrap_or_default();
        Self { digest: locald_utils::digest::hex(&json), variables }
    }
}

type Work = Box<dyn FnOnce(&Transaction<'_>) -> Box<dyn FnOnce(bool) + Send> + Send>;

/// A handle to the ledger's thread.
#[derive(Clone)]
pub(crate) struct Ledger {
    work: mpsc::Sender<Work>,
}

impl Ledger {
    /// Opens or makes the database, and starts its thread. Returns the epoch of this daemon as well.
    ///
    /// # Errors
    /// When it cannot be opened, is no database, or is from the future.
    pub(crate) fn open(path: &Path) -> Result<(Self, u64), LedgerError> {
        make_private(path)?;
        let mut connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "busy_timeout", 2000)?;
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        // A megabyte of pages is plenty for a few tables, and the daemon promises to stay small.
        connection.pragma_update(None, "cache_size", -512)?;
        let epoch = migrate(&mut connection)?;
        let (work, inbox) = mpsc::channel::<Work>();
        std::thread::Builder::new()
            .name("ledger".into())
            .stack_size(256 * 1024)
            .spawn(move || serve(&mut connection, &inbox))
            .map_err(|_| LedgerError::Closed)?;
        Ok((Self { work }, epoch))
    }

    /// Has `work` done within the next transaction, and returns its result when that is committed.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let (answer, result) = oneshot::channel();
        let work: Work = Box::new(move |transaction| {
            let done = work(transaction);
            Box::new(move |is_committed| {
                // A caller that no longer waits has no use for the answer.
                let _ = answer.send(if is_committed { done } else { Err(LedgerError::Closed) });
            })
        });
        self.work.send(work).map_err(|_| LedgerError::Closed)?;
        result.await.map_err(|_| LedgerError::Closed)?
    }

    /// As [`Ledger::run`], for what nobody waits for: a failure is logged.
    fn note(
        &self,
        what: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> Result<(), LedgerError> + Send + 'static,
    ) {
        let work: Work = Box::new(move |transaction| {
            if let Err(error) = work(transaction) {
                tracing::error!(%error, what, "could not write to the ledger");
            }
            Box::new(|_| {})
        });
        if self.work.send(work).is_err() {
            tracing::error!(what, "the ledger's thread is gone");
        }
    }

    /// Waits until everything asked for so far is committed.
    pub(crate) async fn flush(&self) {
        // Only fails when the thread is gone, and then there is nothing to wait for.
        let _ = self.run(|_| Ok(())).await;
    }

    // ---- what a daemon has to know again

    /// Says what is known of a project's services, and assigns the ports that are still open.
    pub(crate) async fn known(&self, spec: &ProjectSpec) -> Result<Known, LedgerError> {
        let id = spec.id.clone();
        let wanted: Vec<_> =
            spec.services.iter().filter_map(|service| Some((service.name.clone(), service.port?))).collect();
        self.run(move |transaction| {
            Ok(Known { newest: newest(transaction, &id)?, ports: ports(transaction, &id, wanted)? })
        })
        .await
    }

    /// Keeps a project and what is wanted of its services, for the daemon after this one.
    pub(crate) fn save_project(
        &self,
        spec: ProjectSpec,
        services: Vec<(ServiceName, Desired)>,
        environment: Option<Arc<BaseEnvironment>>,
    ) {
        self.note("the project", move |transaction| {
            let text = serde_json::to_string(&spec)?;
            let dir = spec.dir.to_string_lossy().into_owned();
            transaction.prepare_cached("INSERT OR REPLACE INTO projects VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
                spec.id.as_str(),
                spec.name.as_str(),
                dir,
                text,
                millis(UnixMillis::now())
            ])?;
            if let Some(environment) = &environment {
                let variables = serde_json::to_string(&environment.variables)?;
                transaction
                    .prepare_cached("INSERT OR IGNORE INTO environments VALUES (?1, ?2)")?
                    .execute(params![environment.digest, variables])?;
            }
            let mut insert = transaction.prepare_cached(
                "INSERT INTO services (project, service, desired, environment) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET desired = excluded.desired, environment = coalesce(excluded.environment, environment)",
            )?;
            for (service, desired) in services {
                let digest = environment.as_ref().map(|environment| environment.digest.as_str());
                insert.execute(params![spec.id.as_str(), service.as_str(), desired_text(desired), digest])?;
            }
            Ok(())
        });
    }

    /// Keeps what is wanted of services.
    pub(crate) fn save_desired(&self, project: ProjectId, services: Vec<(ServiceName, Desired)>) {
        self.note("what is wanted", move |transaction| {
            let mut update =
                transaction.prepare_cached("UPDATE services SET desired = ?3 WHERE project = ?1 AND service = ?2")?;
            for (service, desired) in services {
                update.execute(params![project.as_str(), service.as_str(), desired_text(desired)])?;
            }
            Ok(())
        });
    }

    /// Keeps how a service has come to rest, or that it has not.
    pub(crate) fn save_resting(&self, key: &ServiceKey, resting: Option<Resting>) {
        let (project, service) = (key.project.as_str().to_owned(), key.service.as_str().to_owned());
        self.note("how a service rests", move |transaction| {
            let resting = resting.map(|resting| serde_json::to_string(&resting)).transpose()?;
            transaction
                .prepare_cached(
                    "UPDATE services SET resting = ?3 WHERE project = ?1 AND service = ?2 AND resting IS NOT ?3",
                )?
                .execute(params![project, service, resting])?;
            Ok(())
        });
    }

    /// Forgets a project that is over: nothing of it is wanted any more. Its runs and ports stay on record.
    pub(crate) fn forget_project(&self, project: ProjectId) {
        self.note("the end of a project", move |transaction| {
            transaction.execute("DELETE FROM projects WHERE id = ?1", [project.as_str()])?;
            transaction.execute("DELETE FROM services WHERE project = ?1", [project.as_str()])?;
            transaction.execute(
                "DELETE FROM environments WHERE digest NOT IN (SELECT environment FROM services WHERE environment IS NOT NULL)",
                [],
            )?;
            Ok(())
        });
    }

    /// Everything that an earlier daemon was looking after. A project that cannot be read is logged and left out.
    pub(crate) async fn left(&self) -> Result<Vec<Left>, LedgerError> {
        self.run(|transaction| {
            let mut left = Vec::new();
            let mut statement = transaction.prepare("SELECT id, spec FROM projects")?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
            for row in rows {
                let (id, text) = row?;
                match serde_json::from_str::<ProjectSpec>(&text) {
                    Ok(spec) => left.push(left_project(transaction, spec)?),
                    Err(error) => tracing::error!(%error, project = id, "a project in the ledger cannot be read"),
                }
            }
            Ok(left)
        })
        .await
    }

    // ---- runs and events

    /// Writes that a run is about to be started. When this returns it is on record.
    pub(crate) async fn intend(&self, intent: Intent) -> Result<(), LedgerError> {
        self.run(move |transaction| {
            let executable = intent.executable.as_ref();
            transaction
                .prepare_cached(
                    "INSERT INTO runs (id, project, project_name, service, number, asked_by, asked_at, boot, argv, workdir,
                     executable, executable_mtime, executable_size, environment, spec_digest, port)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
                )?
                .execute(params![
                    intent.run.id.as_str(),
                    intent.run.project.as_str(),
                    intent.run.project_name.as_str(),
                    intent.run.service.as_str(),
                    intent.run.number.0,
                    intent.asked_by,
                    millis(intent.asked_at),
                    intent.boot,
                    serde_json::to_string(&intent.argv)?,
                    intent.workdir,
                    executable.map(|executable| &executable.path),
                    executable.map(|executable| executable.mtime),
                    executable.map(|executable| i64::try_from(executable.size).unwrap_or(i64::MAX)),
                    serde_json::to_string(&intent.environment)?,
                    intent.spec_digest,
                    intent.port,
                ])?;
            Ok(())
        })
        .await
    }

    /// Writes that a run's first instruction has run.
    pub(crate) fn started(&self, run: &RunRef, pid: i32, at: UnixMillis) {
        let id = run.id.as_str().to_owned();
        self.note("a start", move |transaction| {
            transaction.prepare_cached("UPDATE runs SET pid = ?2, started_at = ?3 WHERE id = ?1")?.execute(params![
                id,
                pid,
                millis(at)
            ])?;
            Ok(())
        });
    }

    /// Writes that a run could not be started.
    pub(crate) fn not_started(&self, run: &RunRef, failure: &StartFailure) {
        let (id, failure) = (run.id.as_str().to_owned(), serde_json::to_string(failure));
        self.note("a failed start", move |transaction| {
            transaction
                .prepare_cached("UPDATE runs SET ended_at = ?2, outcome = 'not started', failure = ?3 WHERE id = ?1")?
                .execute(params![id, millis(UnixMillis::now()), failure?])?;
            Ok(())
        });
    }

    /// Writes how a run ended. When this returns it is on record; told twice, it is recorded once.
    pub(crate) async fn ended(&self, ended: Arc<Ended>) -> Result<(), LedgerError> {
        self.run(move |transaction| {
            let (outcome, code, signal) = match ended.status {
                ExitStatus::Code(code) => ("exited", Some(code), None),
                ExitStatus::Signal(signal) => ("signalled", None, Some(signal)),
                ExitStatus::Unknown => ("unknown", None, None),
            };
            transaction
                .prepare_cached(
                    "UPDATE runs SET started_at = coalesce(started_at, ?2), exited_at = ?3, ended_at = ?4, outcome = ?5, exit_code = ?6,
                     exit_signal = ?7, stopped = ?8, forced = ?9, processes = ?10, killed = ?11, ended = ?12
                     WHERE id = ?1 AND ended_at IS NULL",
                )?
                .execute(params![
                    ended.run.id.as_str(),
                    ended.started_at.map(millis),
                    millis(ended.exited_at),
                    millis(ended.ended_at),
                    outcome,
                    code,
                    signal,
                    ended.stopped,
                    ended.forced,
                    ended.processes,
                    ended.killed,
                    serde_json::to_string(&*ended)?,
                ])?;
            Ok(())
        })
        .await
    }

    /// Writes from which commit a run was started, and whether the checkout had changes.
    pub(crate) fn checkout(&self, run: &RunRef, commit: Option<String>, is_dirty: bool) {
        let id = run.id.as_str().to_owned();
        self.note("a checkout", move |transaction| {
            transaction
                .prepare_cached("UPDATE runs SET git_commit = ?2, git_dirty = ?3 WHERE id = ?1")?
                .execute(params![id, commit, is_dirty])?;
            Ok(())
        });
    }

    /// Closes the books on runs that no record or shim speaks for: the machine was restarted, or they never came to be.
    pub(crate) async fn close_lost_runs(&self, alive: Vec<RunRef>, boot: String) -> Result<usize, LedgerError> {
        self.run(move |transaction| {
            let mut statement = transaction.prepare("SELECT id, boot FROM runs WHERE ended_at IS NULL")?;
            let open: Vec<(String, String)> =
                statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
            let lost: Vec<_> =
                open.into_iter().filter(|(id, _)| !alive.iter().any(|run| run.id.as_str() == id)).collect();
            for (id, run_boot) in &lost {
                let outcome = if *run_boot == boot { "interrupted" } else { "ended by reboot" };
                transaction
                    .prepare_cached("UPDATE runs SET ended_at = ?2, outcome = ?3 WHERE id = ?1")?
                    .execute(params![id, millis(UnixMillis::now()), outcome])?;
            }
            Ok(lost.len())
        })
        .await
    }

    /// Writes that something happened.
    pub(crate) fn event(&self, key: &ServiceKey, run: Option<RunNumber>, kind: &'static str, data: Option<String>) {
        let (project, service) = (key.project.as_str().to_owned(), key.service.as_str().to_owned());
        let at = UnixMillis::now();
        self.note("an event", move |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO events (at, project, service, run, kind, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![millis(at), project, service, run.map(|run| run.0), kind, data])?;
            Ok(())
        });
    }
}

fn millis(at: UnixMillis) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

fn desired_text(desired: Desired) -> &'static str {
    match desired {
        Desired::Up => "up",
        Desired::Down => "down",
    }
}

/// Makes the database's file, for us alone: it holds environments. SQLite gives the files beside it the same mode.
fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
}

fn migrate(connection: &mut Connection) -> Result<u64, LedgerError> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    match version {
        0 => {
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        SCHEMA_VERSION => {}
        found => return Err(LedgerError::Newer { found }),
    }
    let before: Option<i64> =
        transaction.query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| row.get(0)).optional()?;
    let epoch = before.unwrap_or(0) + 1;
    transaction.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?1)", [epoch])?;
    transaction.execute("DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ?1", [MOST_EVENTS])?;
    transaction.execute(
        "DELETE FROM runs WHERE ended_at IS NOT NULL AND number <=
         (SELECT max(number) FROM runs AS newer WHERE newer.project = runs.project AND newer.service = runs.service) - ?1",
        [MOST_RUNS],
    )?;
    transaction.commit()?;
    Ok(epoch.cast_unsigned())
}

/// 200 transactions: some megabytes of write-ahead log.
const CHECKPOINT_AFTER: u32 = 200;

/// The thread: one transaction for all that is waiting, then the answers.
fn serve(connection: &mut Connection, inbox: &mpsc::Receiver<Work>) {
    let mut since_checkpoint = 0;
    loop {
        let first = match inbox.try_recv() {
            Ok(first) => first,
            Err(mpsc::TryRecvError::Empty) => {
                // A checkpoint waits for the disk. It is made while nobody waits for the ledger.
                if since_checkpoint >= CHECKPOINT_AFTER {
                    since_checkpoint = 0;
                    checkpoint(connection);
                }
                match inbox.recv() {
                    Ok(first) => first,
                    Err(mpsc::RecvError) => return,
                }
            }
            Err(mpsc::TryRecvError::Disconnected) => return,
        };
        since_checkpoint += 1;
        let mut answers = Vec::new();
        let is_committed = match connection.transaction() {
            Ok(transaction) => {
                answers.push(first(&transaction));
                answers.extend(inbox.try_iter().map(|work| work(&transaction)));
                transaction
                    .commit()
                    .inspect_err(|error| tracing::error!(%error, "could not commit to the ledger"))
                    .is_ok()
            }
            // The work is dropped, and with it the answer's sender: the caller hears that the ledger is closed.
            Err(error) => {
                tracing::error!(%error, "could not begin a transaction in the ledger");
                false
            }
        };
        for answer in answers {
            answer(is_committed);
        }
    }
}

fn checkpoint(connection: &Connection) {
    let checkpoint = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    if let Err(error) = checkpoint {
        tracing::warn!(%error, "could not checkpoint the ledger");
    }
}

fn newest(transaction: &Transaction<'_>, id: &ProjectId) -> Result<BTreeMap<ServiceName, RunNumber>, LedgerError> {
    let mut statement =
        transaction.prepare_cached("SELECT service, max(number) FROM runs WHERE project = ?1 GROUP BY service")?;
    let rows = statement.query_map([id.as_str()], |row| Ok((row.get::<_, String>(0)?, row.get::<_, u32>(1)?)))?;
    let mut newest = BTreeMap::new();
    for row in rows {
        let (service, number) = row?;
        if let Ok(service) = service.parse() {
            newest.insert(service, RunNumber(number));
        }
    }
    Ok(newest)
}

fn ports(
    transaction: &Transaction<'_>,
    id: &ProjectId,
    wanted: Vec<(ServiceName, PortSpec)>,
) -> Result<Ports, LedgerError> {
    let fixed = |spec: &PortSpec| match spec {
        PortSpec::Fixed(port) => Some(*port),
        PortSpec::Auto => None,
    };
    let taken: Vec<u16> = wanted.iter().filter_map(|(_, spec)| fixed(spec)).collect();
    let mut ports = Ports::new();
    for (service, spec) in &wanted {
        let port = match fixed(spec) {
            Some(port) => port,
            None => auto_port(transaction, id, service, &taken)?,
        };
        ports.insert(service.clone(), port);
    }
    Ok(ports)
}

/// The port assigned to a service: once per directory, kept, and never given to another.
fn auto_port(
    transaction: &Transaction<'_>,
    id: &ProjectId,
    service: &ServiceName,
    taken: &[u16],
) -> Result<u16, LedgerError> {
    let mut find = transaction.prepare_cached("SELECT port FROM ports WHERE project = ?1 AND service = ?2")?;
    if let Some(port) = find.query_row([id.as_str(), service.as_str()], |row| row.get(0)).optional()? {
        return Ok(port);
    }
    let is_assigned = |port: u16| -> Result<bool, LedgerError> {
        let mut find = transaction.prepare_cached("SELECT 1 FROM ports WHERE port = ?1")?;
        Ok(find.exists([port])?)
    };
    // The search begins where the names' digest points, so that the same project gets the same port on another machine,
    // most of the time.
    let digest = locald_utils::digest::hex(format!("{id}:{service}").as_bytes());
    let seed = usize::from_str_radix(&digest[..8], 16).unwrap_or(0);
    let count = AUTO_PORTS.len();
    for offset in 0..count {
        let Some(port) = AUTO_PORTS.clone().nth((seed + offset) % count) else { continue };
        if !taken.contains(&port) && !is_assigned(port)? && is_free(port) {
            transaction
                .execute("INSERT INTO ports VALUES (?1, ?2, ?3)", params![id.as_str(), service.as_str(), port])?;
            return Ok(port);
        }
    }
    Err(LedgerError::NoPort)
}

/// Whether a port can be bound now, in both families.
fn is_free(port: u16) -> bool {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
    let v6 = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Ok(_) => true,
        // No IPv6 here: then nobody holds the port there.
        Err(error) => error.kind() != std::io::ErrorKind::AddrInUse,
    };
    v6 && TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

fn left_project(transaction: &Transaction<'_>, spec: ProjectSpec) -> Result<Left, LedgerError> {
    let newest = newest(transaction, &spec.id)?;
    let wanted: Vec<_> =
        spec.services.iter().filter_map(|service| Some((service.name.clone(), service.port?))).collect();
    let ports = ports(transaction, &spec.id, wanted)?;
    let mut statement = transaction.prepare_cached(
        "SELECT service, desired, digest, variables, resting FROM services LEFT JOIN environments ON environment = digest
         WHERE project = ?1",
    )?;
    let mut last =
        transaction.prepare_cached("SELECT ended FROM runs WHERE project = ?1 AND service = ?2 AND number = ?3")?;
    let rows = statement.query_map([spec.id.as_str()], |row| {
        let desired = if row.get::<_, String>(1)? == "up" { Desired::Up } else { Desired::Down };
        Ok((
            row.get::<_, String>(0)?,
            desired,
            row.get::<_, Option<String>>(2)?,
            row.get::<_, Option<String>>(3)?,
            row.get(4)?,
        ))
    })?;
    let mut services = Vec::new();
    let mut environments: BTreeMap<String, Arc<BaseEnvironment>> = BTreeMap::new();
    for row in rows {
        let (service, desired, digest, variables, resting): (_, _, _, _, Option<String>) = row?;
        let Ok(name) = service.parse::<ServiceName>() else { continue };
        let digest = digest.unwrap_or_default();
        let environment = match environments.get(&digest) {
            Some(environment) => environment.clone(),
            None => {
                let variables = variables.map(|text| serde_json::from_str(&text)).transpose()?.unwrap_or_default();
                let environment = Arc::new(BaseEnvironment { digest: digest.clone(), variables });
                environments.insert(digest, environment.clone());
                environment
            }
        };
        let newest = newest.get(&name).copied().unwrap_or_default();
        let ended: Option<Option<String>> =
            last.query_row(params![spec.id.as_str(), service, newest.0], |row| row.get(0)).optional()?;
        let last = ended.flatten().map(|text| serde_json::from_str(&text)).transpose()?.map(Arc::new);
        let resting = resting.map(|text| serde_json::from_str(&text)).transpose()?;
        services.push((Remembered { name, newest, desired, resting, last }, environment));
    }
    Ok(Left { spec, services, ports })
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use locald_utils::name::RunId;

    use super::*;
    use crate::core::lifecycle::tests::{ended, spec};

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
    }

    fn open(dir: &tempfile::TempDir) -> (Ledger, u64) {
        Ledger::open(&dir.path().join("ledger.db")).expect("opens")
    }

    fn project() -> ProjectSpec {
        let mut web = spec("web");
        web.port = Some(PortSpec::Auto);
        ProjectSpec {
            id: ProjectId::from_recorded("p"),
            name: "shop".parse().expect("valid"),
            dir: "/shop".into(),
            file: "/shop/locald.toml".into(),
            services: vec![web, spec("db")],
        }
    }

    fn intent(number: u32) -> Intent {
        Intent {
            run: RunRef {
                project: ProjectId::from_recorded("p"),
                project_name: "shop".parse().expect("valid"),
                service: "web".parse().expect("valid"),
                number: RunNumber(number),
                id: RunId::random().expect("random"),
            },
            asked_by: "up".into(),
            asked_at: UnixMillis(1),
            boot: "this boot".into(),
            argv: vec!["web".into()],
            workdir: "/shop".into(),
            executable: None,
            environment: BTreeMap::new(),
            spec_digest: "d".into(),
            port: None,
        }
    }

    #[test]
    fn numbers_and_ports_are_kept_over_daemons() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, first) = open(&dir);
        let port = block_on(async {
            ledger.intend(intent(1)).await.expect("recorded");
            ledger.intend(intent(2)).await.expect("recorded");
            ledger.known(&project()).await.expect("known").ports
        });
        drop(ledger);
        let (ledger, second) = open(&dir);
        assert_eq!(second, first + 1);
        let known = block_on(ledger.known(&project())).expect("known");
        assert_eq!(known.ports, port);
        assert_eq!(port.len(), 1);
        assert_eq!(known.newest.values().collect::<Vec<_>>(), [&RunNumber(2)]);
    }

    #[test]
    fn a_port_is_never_given_to_two() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let ports = |id: &str| {
            let project = ProjectSpec { id: ProjectId::from_recorded(id), ..project() };
            block_on(ledger.known(&project)).expect("known").ports
        };
        let all: std::collections::BTreeSet<u16> =
            (0..20).flat_map(|index| ports(&index.to_string()).into_values()).collect();
        assert_eq!(all.len(), 20);
    }

    #[test]
    fn what_a_daemon_was_looking_after_is_there_for_the_next() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let environment = Arc::new(BaseEnvironment::new(Environment::from([("A".into(), "1".into())])));
        let web: ServiceName = "web".parse().expect("valid");
        let key = ServiceKey { project: ProjectId::from_recorded("p"), service: web.clone() };
        ledger.save_project(project(), vec![(web.clone(), Desired::Up)], Some(environment.clone()));
        ledger.save_resting(&key, Some(Resting::Completed));
        let run = intent(1);
        let over =
            Arc::new(Ended { run: run.run.clone(), ..ended(RunNumber(1), ExitStatus::Code(3)).as_ref().clone() });
        block_on(async {
            ledger.intend(run).await.expect("recorded");
            ledger.ended(over.clone()).await.expect("recorded");
        });
        drop(ledger);
        let (ledger, _) = open(&dir);
        let left = block_on(ledger.left()).expect("readable");
        let [Left { spec, services, .. }] = left.as_slice() else { panic!("{left:?}") };
        assert_eq!(*spec, project());
        let [(remembered, kept)] = services.as_slice() else { panic!("{services:?}") };
        assert_eq!((&remembered.name, remembered.newest, remembered.desired), (&web, RunNumber(1), Desired::Up));
        assert_eq!(remembered.resting, Some(Resting::Completed));
        assert_eq!(remembered.last.as_ref(), Some(&over));
        assert_eq!(*kept, environment);
        ledger.forget_project(key.project);
        assert!(block_on(ledger.left()).expect("readable").is_empty());
    }

    #[test]
    fn an_end_is_recorded_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let run = intent(1);
        let over = |code| {
            Arc::new(Ended { run: run.run.clone(), ..ended(RunNumber(1), ExitStatus::Code(code)).as_ref().clone() })
        };
        let code = block_on(async {
            ledger.intend(run.clone()).await.expect("recorded");
            ledger.ended(over(3)).await.expect("recorded");
            ledger.ended(over(4)).await.expect("recorded");
            ledger
                .run(|transaction| {
                    Ok(transaction.query_row("SELECT exit_code FROM runs", [], |row| row.get::<_, i32>(0))?)
                })
                .await
        });
        assert_eq!(code.expect("one row"), 3);
    }

    #[test]
    fn runs_that_nobody_speaks_for_are_closed_with_the_reason() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let (alive, lost, before) = (intent(1), intent(2), Intent { boot: "another".into(), ..intent(3) });
        let runs = [alive.clone(), lost, before];
        let outcomes: Vec<Option<String>> = block_on(async {
            for run in runs {
                ledger.intend(run).await.expect("recorded");
            }
            assert_eq!(ledger.close_lost_runs(vec![alive.run], "this boot".into()).await.expect("closed"), 2);
            let read = ledger.run(|transaction| {
                let mut statement = transaction.prepare("SELECT outcome FROM runs ORDER BY number")?;
                Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
            });
            read.await.expect("readable")
        });
        assert_eq!(outcomes, [None, Some("interrupted".into()), Some("ended by reboot".into())]);
    }

    #[test]
    fn a_ledger_from_the_future_and_a_file_that_is_none_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(open(&dir));
        let path = dir.path().join("ledger.db");
        Connection::open(&path).and_then(|ledger| ledger.pragma_update(None, "user_version", 99)).expect("changed");
        assert!(matches!(Ledger::open(&path), Err(LedgerError::Newer { found: 99 })));
        std::fs::write(&path, "no database at all, but long enough to be looked at as one").expect("written");
        assert!(matches!(Ledger::open(&path), Err(LedgerError::Sqlite(_))));
    }
}
