//! The ledger: every run and event, and what an interrupted daemon has to know again, in one SQLite database.
//!
//! One thread owns the connection. It takes whatever is waiting, writes it in one transaction, and then answers, so a
//! hundred starts at once cost one commit. Nothing here decides; the callers say what happened. Commits are not synced:
//! they outlive every process, and a machine that crashes takes the runs with it (WAL, synchronous = NORMAL).
//!
//! Here are the database and its thread; what is written and read is in `projects`, `runs`, `ports` and `memory`, and `checkpoints`
//! keeps the log of writes short.

use std::iter;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use locald_utils::fail;
use locald_utils::time::UnixMillis;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior};
use tokio::sync::oneshot;

use checkpoints::Checkpoints;
use ports::AUTO_PORTS;
pub(crate) use projects::{BaseEnvironment, Known, Left};
pub(crate) use runs::Intent;
use runs::Limits;

mod checkpoints;
mod memory;
mod ports;
mod projects;
mod runs;

/// The layout of the database. A later build migrates from it; an earlier one refuses a newer one.
const SCHEMA_VERSION: i64 = 1;

/// 2 s: how long somebody else may hold the database. Nobody but a person who looks into it does.
const BUSY_LIMIT: Duration = Duration::from_secs(2);

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
    /// Its file or its threads cannot be made.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Every port of the range for `port = "auto"` is taken.
    #[error("no port between {} and {} is free", AUTO_PORTS.start(), AUTO_PORTS.end())]
    NoPort,
    /// The transaction came to nothing: the database is locked or cannot be written, or the disk is full.
    #[error("{0}")]
    Uncommitted(#[from] Uncommitted),
    /// The thread that owns the database is gone.
    #[error("the ledger has been closed")]
    Closed,
}

impl LedgerError {
    /// What to do about it, for a ledger at this path. `None` where it says enough.
    pub(crate) fn hint(&self, path: &Path) -> Option<String> {
        let error = match self {
            Self::Sqlite(error) => error,
            Self::Uncommitted(error) => error,
            Self::Io(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOSPC as i32) => {
                return Some(full(path));
            }
            Self::Newer { .. } | Self::Json(_) | Self::Io(_) | Self::NoPort | Self::Closed => return None,
        };
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Some(full(path)),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Some(format!("another program has it open; `fuser {}` shows which", path.display()))
            }
            Some(_) | None => None,
        }
    }
}

fn full(path: &Path) -> String {
    let dir = path.parent().unwrap_or(path).display();
    format!("the disk of {dir} is full: make room there, and try again")
}

/// Why nothing of a transaction has been written; told to everybody who had a part in it.
type Uncommitted = Arc<rusqlite::Error>;

/// Something to be done within a transaction, if there is one.
type Work = Box<dyn FnOnce(Result<&Transaction<'_>, Uncommitted>) -> Answer + Send>;

/// Tells whoever asked for some work what has come of it, once it is known whether the transaction was committed.
type Answer = Box<dyn FnOnce(Result<(), Uncommitted>) + Send>;

/// A handle to the ledger's thread.
#[derive(Clone)]
pub(crate) struct Ledger {
    work: mpsc::Sender<Work>,
    limits: Limits,
}

impl Ledger {
    /// Opens or makes the database, and starts its threads. Returns the epoch of this daemon as well: it is higher than
    /// that of the last one, of which the caller knows `last_epoch` from elsewhere.
    ///
    /// # Errors
    /// When it cannot be opened, is no database, or is from the future.
    pub(crate) fn open(path: &Path, last_epoch: u64) -> Result<(Self, u64), LedgerError> {
        let (connection, epoch) = connect(path, last_epoch)?;
        Ok((Self::start(connection, Checkpoints::start(path)?)?, epoch))
    }

    /// Looks whether a ledger can be opened and written to, and leaves what it says as it is. One that is not there can be made.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub(crate) fn check(path: &Path) -> Result<(), LedgerError> {
        if !path.exists() {
            return Ok(());
        }
        let mut connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.busy_timeout(BUSY_LIMIT)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if version(&transaction)? != 0 {
            // A full disk is found out about by who writes.
            transaction.execute("UPDATE meta SET value = value WHERE key = 'epoch'", [])?;
        }
        Ok(transaction.commit()?)
    }

    /// Starts the thread that owns the connection. It ends with the last handle.
    fn start(connection: Connection, checkpoints: Checkpoints) -> Result<Self, LedgerError> {
        let (work, inbox) = mpsc::channel::<Work>();
        start_thread("ledger", move || serve(connection, &inbox, checkpoints))?;
        Ok(Self { work, limits: Limits::default() })
    }

    /// Has `work` done within the next transaction, and returns its result when that is committed.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let (answer, result) = oneshot::channel();
        let work: Work = Box::new(move |transaction| {
            let done = transaction.map_err(LedgerError::from).and_then(work);
            Box::new(move |committed| {
                // A caller that no longer waits has no use for the answer.
                let _ = answer.send(done.and_then(|done| committed.map(|()| done).map_err(LedgerError::from)));
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
            let done = transaction.map_err(LedgerError::from).and_then(work);
            Box::new(move |committed| {
                if let Err(error) = done.and_then(|()| committed.map_err(LedgerError::from)) {
                    tracing::error!(%error, what, "could not write to the ledger");
                }
            })
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
}

/// Opens or makes the database. Returns the epoch of this daemon as well.
fn connect(path: &Path, last_epoch: u64) -> Result<(Connection, u64), LedgerError> {
    make_private(path)?;
    let mut connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.busy_timeout(BUSY_LIMIT)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    // Half a megabyte of pages is plenty for a few tables, and the daemon promises to stay small.
    connection.pragma_update(None, "cache_size", -512)?;
    let epoch = migrate(&mut connection, last_epoch)?;
    Ok((connection, epoch))
}

fn millis(at: UnixMillis) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

/// Makes the database's file, for us alone: it holds environments. SQLite gives the files beside it the same mode.
fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map(drop)
}

/// The version of the schema; 0 when there is none.
fn version(connection: &Connection) -> Result<i64, LedgerError> {
    match connection.pragma_query_value(None, "user_version", |row| row.get(0))? {
        known @ (0 | SCHEMA_VERSION) => Ok(known),
        found => Err(LedgerError::Newer { found }),
    }
}

fn migrate(connection: &mut Connection, last_epoch: u64) -> Result<u64, LedgerError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if version(&transaction)? == 0 {
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    }
    transaction.execute_batch(memory::SCHEMA)?;
    let before: Option<i64> =
        transaction.query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |row| row.get(0)).optional()?;
    let before = before.unwrap_or(0).max(i64::try_from(last_epoch).unwrap_or(0));
    let epoch = before.saturating_add(1);
    transaction.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?1)", [epoch])?;
    transaction.commit()?;
    Ok(epoch.cast_unsigned())
}

/// The thread: one transaction for all that is waiting, then the answers.
fn serve(mut connection: Connection, inbox: &mpsc::Receiver<Work>, mut checkpoints: Checkpoints) {
    while let Ok(first) = inbox.recv() {
        let mut answers = Vec::new();
        // Immediate, so that a locked database is waited for once, and not by each of the statements.
        let committed = match connection.transaction_with_behavior(TransactionBehavior::Immediate) {
            Ok(transaction) => {
                answers.push(first(Ok(&transaction)));
                // A full disk may end the transaction at any statement; what waits then is for the next one.
                while !transaction.is_autocommit()
                    && let Ok(work) = inbox.try_recv()
                {
                    answers.push(work(Ok(&transaction)));
                }
                fail::point("a transaction is to be committed");
                let committed = transaction.commit().map_err(Uncommitted::from);
                fail::point("a transaction is committed");
                committed
            }
            Err(error) => {
                let error = Uncommitted::from(error);
                answers.extend(iter::once(first).chain(inbox.try_iter()).map(|work| work(Err(error.clone()))));
                Err(error)
            }
        };
        for answer in answers {
            answer(committed.clone());
        }
        checkpoints.after_transaction(&connection);
    }
}

/// Starts a thread with a small stack: the daemon promises to stay small.
fn start_thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), LedgerError> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(256 * 1024).spawn(run)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::future::Future;

    use locald_utils::name::{ProjectId, RunId, RunNumber};
    use locald_utils::record::{Ended, ExitStatus, RunRef};
    use locald_utils::spec::{PortSpec, ProjectSpec};

    use super::*;
    use crate::core::lifecycle::tests::{ended, spec};

    pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), future).await.expect("in time") })
    }

    pub(super) fn open(dir: &tempfile::TempDir) -> (Ledger, u64) {
        Ledger::open(&dir.path().join("ledger.db"), 0).expect("opens")
    }

    pub(super) fn project() -> ProjectSpec {
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

    pub(super) fn intent(number: u32) -> Intent {
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
    fn a_ledger_from_the_future_and_a_file_that_is_none_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger.db");
        // Closed by the time it is dropped. The thread of a ledger closes it some time later, and writes to it then.
        drop(connect(&path, 0).expect("made"));
        Connection::open(&path).and_then(|ledger| ledger.pragma_update(None, "user_version", 99)).expect("changed");
        assert!(matches!(Ledger::open(&path, 0), Err(LedgerError::Newer { found: 99 })));
        assert!(matches!(Ledger::check(&path), Err(LedgerError::Newer { found: 99 })));
        std::fs::write(&path, "no database at all, but long enough to be looked at as one").expect("written");
        assert!(matches!(Ledger::open(&path, 0), Err(LedgerError::Sqlite(_))));
        assert!(matches!(Ledger::check(&path), Err(LedgerError::Sqlite(_))));
        std::fs::remove_file(&path).expect("removed");
        Ledger::check(&path).expect("can be made");
        assert!(!path.exists());
        drop(open(&dir));
        Ledger::check(&path).expect("usable");
    }

    fn ending(intent: &Intent) -> Arc<Ended> {
        Arc::new(Ended { run: intent.run.clone(), ..ended(intent.run.number, ExitStatus::Code(0)).as_ref().clone() })
    }

    async fn is_ended(ledger: &Ledger) -> bool {
        let ended = "SELECT ended_at IS NOT NULL FROM runs WHERE number = 1";
        ledger.run(|transaction| Ok(transaction.query_row(ended, [], |row| row.get(0))?)).await.expect("readable")
    }

    #[test]
    fn nothing_counts_as_written_when_its_transaction_is_not_committed() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let run = intent(1);
        block_on(async {
            ledger.intend(run.clone()).await.expect("recorded");
            // Holds the transaction open until the others wait for it.
            let (gate, opened) = mpsc::channel::<()>();
            ledger.note("a gate", move |transaction| {
                let _ = opened.recv();
                // Fails when it is committed, and not before.
                transaction.execute_batch(
                    "CREATE TABLE a (id INTEGER PRIMARY KEY);
                     CREATE TABLE b (a REFERENCES a DEFERRABLE INITIALLY DEFERRED);
                     INSERT INTO b VALUES (1);",
                )?;
                Ok(())
            });
            let ended = ledger.ended(ending(&run));
            let opening = async { gate.send(()).expect("a gate") };
            let (ended, ()) = tokio::join!(ended, opening);
            assert!(matches!(ended, Err(LedgerError::Uncommitted(_))), "{ended:?}");
            assert!(!is_ended(&ledger).await);
            ledger.ended(ending(&run)).await.expect("recorded");
            assert!(is_ended(&ledger).await);
        });
    }

    #[test]
    fn a_full_ledger_says_so_and_goes_on_when_there_is_room() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let pages = |most: u32| {
            // Never less than there are already.
            ledger.run(move |transaction| {
                Ok(transaction.query_row(&format!("PRAGMA max_page_count = {most}"), [], |_| Ok(()))?)
            })
        };
        block_on(async {
            ledger.intend(intent(1)).await.expect("recorded");
            pages(1).await.expect("set");
            let large = Intent { argv: vec!["x".repeat(100_000)], ..intent(2) };
            let full = ledger.intend(large.clone()).await.expect_err("full");
            assert_eq!(full.to_string(), "database or disk is full");
            assert_eq!(
                ledger.known(&project()).await.expect("readable").newest.values().collect::<Vec<_>>(),
                [&RunNumber(1)]
            );
            pages(1_000_000).await.expect("set");
            ledger.intend(large).await.expect("recorded");
        });
    }

    #[test]
    fn a_locked_ledger_says_so_and_is_written_when_it_is_free() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let run = intent(1);
        block_on(async {
            ledger.intend(run.clone()).await.expect("recorded");
            let mut other = Connection::open(dir.path().join("ledger.db")).expect("opens");
            let lock = other.transaction_with_behavior(TransactionBehavior::Immediate).expect("locks");
            let (first, second) = tokio::join!(ledger.ended(ending(&run)), ledger.intend(intent(2)));
            let said = [first.expect_err("locked"), second.expect_err("locked")].map(|error| error.to_string());
            assert_eq!(said, ["database is locked", "database is locked"]);
            drop(lock);
            ledger.ended(ending(&run)).await.expect("recorded");
        });
    }

    #[test]
    fn the_epoch_is_higher_than_any_that_is_known() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = |last| Ledger::open(&dir.path().join("ledger.db"), last).expect("opens").1;
        // A number that no daemon can have had is none.
        assert_eq!([0, 7, 3, u64::MAX].map(open), [1, 8, 9, 10]);
        let last = i64::MAX.cast_unsigned();
        assert_eq!(open(last), last);
    }
}
