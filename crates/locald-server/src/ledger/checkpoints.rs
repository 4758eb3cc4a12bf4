//! When the write-ahead log goes into the database: beside the writing, and so that the log stays bounded.
//!
//! A checkpoint waits for the disk. It is made by a thread with a connection of its own, because a passive one holds up no
//! writer (sqlite.org/wal.html, "Checkpointing"). The log begins anew with a write that finds all of it copied. Under a
//! load without pauses none does, so the writer itself empties a log that has become too long.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::{BUSY_LIMIT, LedgerError, start_thread};

/// 200 transactions: some megabytes of log.
const CHECKPOINT_AFTER: u32 = 200;

/// 16 MiB: what some thousand transactions without a pause leave, and less than anybody misses.
const LONGEST_LOG: u64 = 16 << 20;

/// 1 s without a transaction: what was going on is over, and nobody waits for the disk while it is busy with a checkpoint.
const QUIET: Duration = Duration::from_secs(1);

/// 10 times that: a load that does not pause is not waited for any longer.
const PATIENCE: u32 = 10;

/// Decides after each transaction whether a checkpoint is due.
pub(super) struct Checkpoints {
    /// Orders for the thread that makes them. One may wait while another is carried out.
    orders: mpsc::SyncSender<()>,
    log: PathBuf,
    longest_log: u64,
    transactions: u32,
}

impl Checkpoints {
    /// Starts the thread for the database at `path`. It sleeps until there is an order, and ends with the value returned.
    pub(super) fn start(path: &Path) -> Result<Self, LedgerError> {
        let (orders, inbox) = mpsc::sync_channel(1);
        let database = path.to_owned();
        start_thread("checkpoints", move || {
            for () in inbox {
                await_quiet(&log_of(&database));
                if let Err(error) = checkpoint(&database) {
                    tracing::warn!(%error, "could not checkpoint the ledger");
                }
            }
        })?;
        Ok(Self::ordered_by(orders, path))
    }

    /// Leaves it to the receiver of `orders` to make the checkpoints.
    fn ordered_by(orders: mpsc::SyncSender<()>, path: &Path) -> Self {
        Self { orders, log: log_of(path), longest_log: LONGEST_LOG, transactions: 0 }
    }

    /// Takes note of a transaction of `connection`, the only one that writes.
    pub(super) fn after_transaction(&mut self, connection: &Connection) {
        self.transactions += 1;
        if self.transactions < CHECKPOINT_AFTER {
            return;
        }
        self.transactions = 0;
        // The file shrinks in `empty` alone, so its size tells how long the log has been since then.
        let length = self.log.metadata().map_or(0, |meta| meta.len());
        if length <= self.longest_log {
            // An order that still waits makes this one needless.
            let _ = self.orders.try_send(());
        } else if let Err(error) = empty(connection) {
            tracing::warn!(%error, length, "could not empty the ledger's log");
        }
    }
}

/// The write-ahead log of a database.
fn log_of(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

/// Waits until nothing has been written for a moment, but not for ever. Runs only while there is something to checkpoint.
fn await_quiet(log: &Path) {
    let written = || log.metadata().and_then(|meta| meta.modified()).ok();
    let mut last = written();
    for _ in 0..PATIENCE {
        std::thread::sleep(QUIET);
        let now = written();
        if std::mem::replace(&mut last, now) == now {
            return;
        }
    }
}

/// Copies what is in the log into the database, and begins the log anew if that was all of it: the first write of a new log
/// waits for the disk, and this one is nobody's who waits.
///
/// The connection lives no longer than that, so that between checkpoints there is nothing in memory. It makes no database
/// where there is none any more.
fn checkpoint(path: &Path) -> rusqlite::Result<()> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
    // The writer is not waited for: it begins the log itself then.
    connection.busy_timeout(Duration::ZERO)?;
    let _ = connection.execute("INSERT OR REPLACE INTO meta VALUES ('checkpoint', unixepoch())", []);
    Ok(())
}

/// Copies all of the log and cuts it off, unless somebody reads or another checkpoint is under way: they are not waited for.
fn empty(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::ZERO)?;
    let emptied = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    connection.busy_timeout(BUSY_LIMIT)?;
    emptied
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use locald_utils::name::{ProjectId, ServiceKey};

    use super::super::tests::{block_on, open};
    use super::super::{Ledger, connect};
    use super::*;

    /// Writes `count` transactions of some kilobytes, one after the other.
    fn write(ledger: &Ledger, count: u32) {
        let key = ServiceKey { project: ProjectId::from_recorded("p"), service: "web".parse().expect("valid") };
        block_on(async {
            for _ in 0..count {
                ledger.event(&key, None, "ready", Some("x".repeat(5000)));
                ledger.flush().await;
            }
        });
    }

    /// A ledger whose checkpoints are ordered from the test.
    fn ordering(path: &Path, longest_log: u64) -> (Ledger, mpsc::Receiver<()>) {
        let (orders, inbox) = mpsc::sync_channel(1);
        let checkpoints = Checkpoints { longest_log, ..Checkpoints::ordered_by(orders, path) };
        let (connection, _) = connect(path, 0).expect("opens");
        (Ledger::start(connection, checkpoints).expect("starts"), inbox)
    }

    fn log_length(path: &Path) -> u64 {
        path.with_extension("db-wal").metadata().expect("a log").len()
    }

    // The ledger's thread used to make checkpoints itself, and whoever came meanwhile waited for the disk.
    #[test]
    fn writes_go_on_while_a_checkpoint_is_held_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger.db");
        let (ledger, orders) = ordering(&path, LONGEST_LOG);
        write(&ledger, CHECKPOINT_AFTER);
        orders.recv_timeout(Duration::from_secs(30)).expect("an order");
        // It is under way for as long as this test likes.
        write(&ledger, 2 * CHECKPOINT_AFTER + 1);
        orders.recv_timeout(Duration::from_secs(30)).expect("another order, once");
        assert!(orders.try_recv().is_err());
    }

    #[test]
    fn a_checkpoint_beside_the_writer_lets_the_log_begin_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger.db");
        let (ledger, orders) = ordering(&path, u64::MAX);
        let lengths = [(); 6].map(|()| {
            write(&ledger, CHECKPOINT_AFTER);
            orders.recv_timeout(Duration::from_secs(30)).expect("an order");
            checkpoint(&path).expect("checkpoints");
            log_length(&path)
        });
        assert!(lengths[5] < 2 * lengths[0], "{lengths:?}");
    }

    #[test]
    fn a_log_that_no_checkpoint_catches_up_with_is_emptied_by_the_writer() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger.db");
        let (ledger, _orders) = ordering(&path, 1 << 20);
        // Each writes two pages at least, some 15 MB in all; and five at most, of which so many fit between two looks.
        write(&ledger, 9 * CHECKPOINT_AFTER);
        let most = (1 << 20) + u64::from(CHECKPOINT_AFTER) * 5 * 4200;
        assert!(log_length(&path) < most, "{} of {most}", log_length(&path));
    }

    #[test]
    fn an_open_ledger_is_checkpointed_by_its_own_thread() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger.db");
        let (ledger, _) = open(&dir);
        let length = || path.metadata().expect("a database").len();
        write(&ledger, CHECKPOINT_AFTER);
        let until = Instant::now() + Duration::from_secs(30);
        // What is in the log alone is not in the database's file.
        while length() < u64::from(CHECKPOINT_AFTER) * 5000 {
            assert!(Instant::now() < until, "{} bytes are all", length());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
