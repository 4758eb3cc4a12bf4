//! What is kept of a service beside its runs, each kind under a name of its own: what a job has done, how often the service was started,
//! what is to become of it, and who wants it.

use std::collections::BTreeMap;

use locald_utils::name::{ProjectId, ServiceKey, ServiceName};
use rusqlite::{Transaction, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Ledger, LedgerError};
use crate::core::attempts::Tally;
use crate::core::lifecycle::Ahead;
use crate::core::ownership::Kept;

/// Made when it is missing. A build that does not know it leaves it alone, so it is no other layout.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS memory (
    project TEXT NOT NULL, service TEXT NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (project, kind, service)
) WITHOUT ROWID;
";

/// What a job has done with which inputs: see [`locald_utils::spec::ServiceSpec::work`]. Kept when its project is over.
pub(super) const DONE: &str = "done";

/// How often a service was started of late: a [`Tally`].
pub(super) const TALLY: &str = "tally";

/// What is to become of a service: an [`Ahead`].
pub(super) const AHEAD: &str = "ahead";

/// Who wants a service: a [`Kept`].
pub(super) const OWNERS: &str = "owners";

impl Ledger {
    /// Keeps what a job has done, in place of what it had done before.
    pub(crate) fn save_done(&self, key: &ServiceKey, work: String) {
        self.remember(key, DONE, Some(work));
    }

    /// What each job of a project has done last.
    pub(crate) async fn done(&self, project: &ProjectId) -> Result<BTreeMap<ServiceName, String>, LedgerError> {
        let project = project.clone();
        self.run(move |transaction| recall(transaction, &project, DONE)).await
    }

    /// Forgets what a job has done: it is about to do something else.
    pub(crate) fn forget_done(&self, key: &ServiceKey) {
        self.remember(key, DONE, None::<String>);
    }

    /// Keeps how often a service was started of late.
    pub(crate) fn save_tally(&self, key: &ServiceKey, tally: &Tally) {
        self.remember(key, TALLY, (*tally != Tally::default()).then(|| tally.clone()));
    }

    /// Keeps what is to become of a service.
    pub(crate) fn save_ahead(&self, key: &ServiceKey, ahead: &Ahead) {
        self.remember(key, AHEAD, (*ahead != Ahead::default()).then(|| ahead.clone()));
    }

    /// Keeps who wants a service.
    pub(crate) fn save_owners(&self, key: &ServiceKey, owners: &Kept) {
        self.remember(key, OWNERS, (*owners != Kept::default()).then(|| owners.clone()));
    }

    fn remember(&self, key: &ServiceKey, kind: &'static str, data: Option<impl Serialize + Send + 'static>) {
        let key = key.clone();
        self.note("what is to be remembered of a service", move |transaction| {
            let (project, service) = (key.project.as_str(), key.service.as_str());
            let Some(data) = data else {
                let forget = "DELETE FROM memory WHERE project = ?1 AND service = ?2 AND kind = ?3";
                transaction.prepare_cached(forget)?.execute(params![project, service, kind])?;
                return Ok(());
            };
            let data = serde_json::to_string(&data)?;
            let keep = "INSERT OR REPLACE INTO memory VALUES (?1, ?2, ?3, ?4)";
            transaction.prepare_cached(keep)?.execute(params![project, service, kind, data])?;
            Ok(())
        });
    }
}

/// Everything of a kind that is kept of a project's services. What cannot be read is left out: it is from another version.
pub(super) fn recall<T: DeserializeOwned>(
    transaction: &Transaction<'_>,
    project: &ProjectId,
    kind: &str,
) -> Result<BTreeMap<ServiceName, T>, LedgerError> {
    let mut statement =
        transaction.prepare_cached("SELECT service, data FROM memory WHERE project = ?1 AND kind = ?2")?;
    let rows = statement
        .query_map(params![project.as_str(), kind], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    let mut recalled = BTreeMap::new();
    for row in rows {
        let (service, data) = row?;
        if let (Ok(service), Ok(data)) = (service.parse(), serde_json::from_str(&data)) {
            recalled.insert(service, data);
        }
    }
    Ok(recalled)
}

/// Forgets what a project that is over leaves behind, but for what its jobs have done.
pub(super) fn forget(transaction: &Transaction<'_>, project: &ProjectId) -> Result<(), LedgerError> {
    transaction.execute("DELETE FROM memory WHERE project = ?1 AND kind <> ?2", params![project.as_str(), DONE])?;
    Ok(())
}
