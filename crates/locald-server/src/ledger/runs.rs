//! Runs and events: what is written of them as they come and go, and how long it is kept.

use std::collections::BTreeMap;
use std::sync::Arc;

use locald_utils::name::{ProjectId, RunNumber, ServiceKey, ServiceName};
use locald_utils::record::{Ended, Executable, ExitStatus, Origin, RunRef, StartFailure};
use locald_utils::time::UnixMillis;
use rusqlite::{OptionalExtension, Transaction, params};

use super::{Ledger, LedgerError, millis};

/// How much is kept. What is older goes as the new comes, so that a daemon that lives for months stays bounded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    events: i64,
    runs_of_a_service: u32,
}

impl Default for Limits {
    /// 200,000 events: years of a busy project, some 20 MB. 1,000 runs of each service: one that restarts every minute has
    /// its last day on record.
    fn default() -> Self {
        Self { events: 200_000, runs_of_a_service: 1_000 }
    }
}

/// 100: events go by the hundred, which takes a millisecond.
const EVENTS_AT_ONCE: i64 = 100;

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

impl Ledger {
    /// Writes that a run is about to be started. When this returns it is on record.
    pub(crate) async fn intend(&self, intent: Intent) -> Result<(), LedgerError> {
        let oldest = intent.run.number.0.saturating_sub(self.limits.runs_of_a_service);
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
            // The newest number is never among them: a service's numbers only grow.
            transaction
                .prepare_cached(
                    "DELETE FROM runs WHERE project = ?1 AND service = ?2 AND number <= ?3 AND ended_at IS NOT NULL",
                )?
                .execute(params![intent.run.project.as_str(), intent.run.service.as_str(), oldest])?;
            Ok(())
        })
        .await
    }

    /// What runs were made of.
    pub(crate) async fn origins(
        &self,
        runs: Vec<(ServiceKey, RunNumber)>,
    ) -> Result<BTreeMap<ServiceKey, Origin>, LedgerError> {
        self.run(move |transaction| {
            let mut find = transaction.prepare_cached(
                "SELECT executable, executable_mtime, executable_size, git_commit FROM runs
                 WHERE project = ?1 AND service = ?2 AND number = ?3",
            )?;
            let mut found = BTreeMap::new();
            for (key, run) in runs {
                let origin = find.query_row(params![key.project.as_str(), key.service.as_str(), run.0], |row| {
                    let (path, mtime, size): (Option<String>, Option<i64>, Option<i64>) =
                        (row.get(0)?, row.get(1)?, row.get(2)?);
                    let executable = path.zip(mtime).zip(size).map(|((path, mtime), size)| Executable {
                        path,
                        mtime,
                        size: u64::try_from(size).unwrap_or(0),
                    });
                    Ok(Origin { executable, commit: row.get(3)? })
                });
                if let Some(origin) = origin.optional()? {
                    found.insert(key, origin);
                }
            }
            Ok(found)
        })
        .await
    }

    /// The environments of runs: names, and digests of values as [`locald_utils::digest::of_value`] makes them.
    pub(crate) async fn environments(
        &self,
        runs: Vec<(ServiceKey, RunNumber)>,
    ) -> Result<BTreeMap<ServiceKey, BTreeMap<String, String>>, LedgerError> {
        self.run(move |transaction| {
            let mut find = transaction
                .prepare_cached("SELECT environment FROM runs WHERE project = ?1 AND service = ?2 AND number = ?3")?;
            let mut found = BTreeMap::new();
            for (key, run) in runs {
                let of_run = params![key.project.as_str(), key.service.as_str(), run.0];
                let text: Option<String> = find.query_row(of_run, |row| row.get(0)).optional()?;
                // One that was found without a record has none.
                if let Some(environment) = text.and_then(|text| serde_json::from_str(&text).ok()) {
                    found.insert(key, environment);
                }
            }
            Ok(found)
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
    ///
    /// A run that was started before this ledger was made gets what is known of it, so that its number is not given again.
    pub(crate) async fn ended(&self, ended: Arc<Ended>) -> Result<(), LedgerError> {
        self.run(move |transaction| {
            transaction
                .prepare_cached(
                    "INSERT OR IGNORE INTO runs (id, project, project_name, service, number, asked_by, asked_at, boot, argv, workdir,
                     environment, spec_digest) VALUES (?1, ?2, ?3, ?4, ?5, 'unknown', ?6, 'unknown', '[]', '', '{}', '')",
                )?
                .execute(params![
                    ended.run.id.as_str(),
                    ended.run.project.as_str(),
                    ended.run.project_name.as_str(),
                    ended.run.service.as_str(),
                    ended.run.number.0,
                    millis(ended.started_at.unwrap_or(ended.exited_at)),
                ])?;
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
        let (at, most) = (UnixMillis::now(), self.limits.events);
        self.note("an event", move |transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO events (at, project, service, run, kind, data) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute(params![millis(at), project, service, run.map(|run| run.0), kind, data])?;
            let newest = transaction.last_insert_rowid();
            if newest % EVENTS_AT_ONCE == 0 {
                transaction.prepare_cached("DELETE FROM events WHERE seq <= ?1")?.execute([newest - most])?;
            }
            Ok(())
        });
    }
}

pub(super) fn newest(
    transaction: &Transaction<'_>,
    id: &ProjectId,
) -> Result<BTreeMap<ServiceName, RunNumber>, LedgerError> {
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

#[cfg(test)]
mod tests {
    use super::super::tests::{block_on, intent, open, project};
    use super::*;
    use crate::core::lifecycle::tests::ended;

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
    fn the_end_of_a_run_that_a_new_ledger_never_heard_of_is_recorded() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let run = intent(7).run;
        let over = Ended { run: run.clone(), ..ended(RunNumber(7), ExitStatus::Code(3)).as_ref().clone() };
        let known = block_on(async {
            ledger.ended(Arc::new(over)).await.expect("recorded");
            ledger.known(&project()).await
        });
        assert_eq!(known.expect("known").newest, BTreeMap::from([(run.service, RunNumber(7))]));
    }

    // Old runs and events used to go only when a daemon started.
    #[test]
    fn old_runs_and_events_go_while_the_daemon_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut ledger, _) = open(&dir);
        ledger.limits = Limits { events: 50, runs_of_a_service: 3 };
        let (open_run, key) = (intent(1), intent(1).run.key());
        let (numbers, events, newest) = block_on(async {
            ledger.intend(open_run).await.expect("recorded");
            for number in 2..=20 {
                let run = intent(number);
                let over =
                    Ended { run: run.run.clone(), ..ended(RunNumber(number), ExitStatus::Code(0)).as_ref().clone() };
                ledger.intend(run).await.expect("recorded");
                ledger.ended(Arc::new(over)).await.expect("recorded");
            }
            for _ in 0..1000 {
                ledger.event(&key, None, "ready", None);
            }
            let read = ledger.run(|transaction| {
                let mut statement = transaction.prepare("SELECT number FROM runs ORDER BY number")?;
                let numbers = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<u32>, _>>()?;
                let counted = "SELECT count(*), max(seq) FROM events";
                let (events, newest) = transaction.query_row(counted, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok((numbers, events, newest))
            });
            read.await.expect("readable")
        });
        // One that has not ended stays, however old it is.
        assert_eq!(numbers, [1, 18, 19, 20]);
        assert_eq!((events, newest), (50, 1000));
    }
}
