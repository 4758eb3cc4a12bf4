//! What an earlier daemon left behind: which runs there are, from the records on disk.
//!
//! The records are the truth about runs; the ledger is the truth about what is wanted. A record of another boot is
//! cleared, because its numbers mean nothing any more. A record that cannot be read stays where it is and is logged.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use locald_utils::paths::Home;
use locald_utils::process::cgroup::{Cgroup, Hierarchy};
use locald_utils::process::ladder::ROUND;
use locald_utils::record::{self, Ended, RunRef, ShimRecord};

use crate::ledger::{Ledger, LedgerError, Left};

/// What there is to take over.
pub(crate) struct Inheritance {
    /// Projects and what is wanted of them.
    pub(crate) left: Vec<Left>,
    /// Runs that have a shim, or had one until it died, the newest first, and where their records are.
    pub(crate) shims: Vec<(PathBuf, ShimRecord)>,
    /// Runs that ended while no daemon was there, already on record, the oldest first.
    pub(crate) ended: Vec<Arc<Ended>>,
}

/// Looks through the records of a home.
///
/// # Errors
/// When the ledger cannot be read.
pub(crate) async fn look(home: &Home, ledger: &Ledger, boot: &str) -> Result<Inheritance, LedgerError> {
    let (mut shims, mut ended) = (Vec::new(), Vec::new());
    let mut alive: Vec<RunRef> = Vec::new();
    for dir in home.record_dirs() {
        let shim = shim_record(&dir, boot);
        for name in record::exits(&dir) {
            // Where there is a shim, its run's actor hears or reads how it ended.
            let has_shim = shim.as_ref().is_some_and(|shim| record::exit(&shim.run.id) == name);
            if !has_shim && let Some(record) = exit_record(&dir, &name) {
                let record = Arc::new(record);
                ledger.ended(record.clone()).await?;
                cleared(&dir, record::remove(&dir, &name));
                ended.push(record);
            }
        }
        cleared(&dir, record::leave(&dir));
        alive.extend(shim.as_ref().map(|shim| shim.run.clone()));
        shims.extend(shim.map(|shim| (dir, shim)));
    }
    ended.sort_by_key(|ended: &Arc<Ended>| ended.run.number);
    // What was given up for a newer run is taken over after it.
    shims.sort_by_key(|(_, shim): &(PathBuf, ShimRecord)| std::cmp::Reverse(shim.run.number));
    let lost = ledger.close_lost_runs(alive, boot.to_owned()).await?;
    if lost > 0 {
        tracing::info!(lost, "runs without a record were closed in the ledger");
    }
    Ok(Inheritance { left: ledger.left().await?, shims, ended })
}

/// 1 s: for an exec helper to be gone that was killed, or whose shim was. It takes a millisecond.
const HELPER_LIMIT: Duration = Duration::from_secs(1);

/// Takes away the cgroup of a run that came to nothing, with the exec helper that may still be in it.
pub(crate) async fn clear_leaf(leaf: &Cgroup) {
    // A kernel that cannot leaves it to the helper, which goes when its shim is gone.
    let _ = leaf.kill();
    let until = Instant::now() + HELPER_LIMIT;
    while !leaf.processes().is_empty() && Instant::now() < until {
        tokio::time::sleep(ROUND).await;
    }
    leaf.remove();
}

/// Takes away the cgroups of runs that are nobody's any more: those that have no record, and no process.
///
/// A shim makes its own before it records itself. One that is not recorded yet was asked for by a daemon that is gone, so
/// nothing comes of its run.
pub(crate) fn clear_leaves(cgroups: &Hierarchy, shims: &[(PathBuf, ShimRecord)]) {
    let leaves = cgroups.leaves();
    let orphaned = leaves.iter().filter(|(run, _)| !shims.iter().any(|(_, shim)| shim.run.id.as_str() == run));
    // One that has a process stays by itself.
    orphaned.for_each(|(_, leaf)| leaf.remove());
}

fn shim_record(dir: &Path, boot: &str) -> Option<ShimRecord> {
    match record::load::<ShimRecord>(dir, record::SHIM) {
        Ok(Some(shim)) if shim.boot != boot => {
            tracing::info!(service = %shim.run.service, run = shim.run.number.0, "ended by a restart of the machine");
            for name in [record::PID, record::STOP, record::SHIM] {
                cleared(dir, record::remove(dir, name));
            }
            None
        }
        Ok(found) => found,
        Err(error) => {
            tracing::error!(%error, dir = %dir.display(), "the record of a shim cannot be read");
            None
        }
    }
}

fn exit_record(dir: &Path, name: &str) -> Option<Ended> {
    record::load::<Ended>(dir, name).unwrap_or_else(|error| {
        tracing::error!(%error, file = %dir.join(name).display(), "an exit record cannot be read");
        None
    })
}

fn cleared(dir: &Path, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, dir = %dir.display(), "could not remove a record");
    }
}

/// 3 s: how long requests wait for runs to be heard of. A shim answers within milliseconds; one that does not is shown as
/// unknown, and never started twice.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use locald_utils::name::RunNumber;
    use locald_utils::paths;
    use locald_utils::record::ExitStatus;
    use rusqlite::{Connection, TransactionBehavior};

    use super::*;
    use crate::core::lifecycle::tests::ended;

    #[test]
    fn an_exit_record_stays_until_the_ledger_has_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::under(dir.path());
        home.prepare().expect("prepares");
        let over = ended(RunNumber(1), ExitStatus::Code(3));
        let service = paths::service_dir(&home.project(&over.run.project, &over.run.project_name), &over.run.service);
        std::fs::create_dir_all(&service).expect("a directory");
        let exit = record::exit(&over.run.id);
        record::store(&service, &exit, &*over).expect("stores");
        let (ledger, _) = Ledger::open(&home.ledger(), 0).expect("opens");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");

        let mut other = Connection::open(home.ledger()).expect("opens");
        let lock = other.transaction_with_behavior(TransactionBehavior::Immediate).expect("locks");
        assert!(runtime.block_on(look(&home, &ledger, "boot")).is_err());
        assert!(service.join(&exit).exists());
        drop(lock);
        let found = runtime.block_on(look(&home, &ledger, "boot")).expect("readable");
        assert_eq!(found.ended, [over]);
        assert!(!service.join(&exit).exists());
    }
}
