//! What a daemon has to know again: projects, what is wanted of their services, and with which environment.

use std::collections::BTreeMap;
use std::sync::Arc;

use locald_utils::name::{ProjectId, RunNumber, ServiceKey, ServiceName};
use locald_utils::protocol::Desired;
use locald_utils::spec::{Environment, Ports, ProjectSpec, ServiceSpec};
use locald_utils::time::UnixMillis;
use rusqlite::{OptionalExtension, Transaction, params};

use super::memory::{self, AHEAD, DONE, OWNERS, TALLY, recall};
use super::ports::ports;
use super::runs::newest;
use super::{Ledger, LedgerError, millis};
use crate::core::fleet::Remembered;
use crate::core::lifecycle::Resting;

/// What the ledger knows of a project that the daemon is about to supervise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// The last run number of each service that ever ran.
    pub(crate) newest: BTreeMap<ServiceName, RunNumber>,
    /// The port of each service that has one.
    pub(crate) ports: Ports,
    /// What each job with inputs has done last.
    pub(crate) done: BTreeMap<ServiceName, String>,
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

impl Ledger {
    /// Says what is known of a project's services, and assigns the ports that are still open.
    pub(crate) async fn known(&self, spec: &ProjectSpec) -> Result<Known, LedgerError> {
        let id = spec.id.clone();
        let wanted: Vec<_> =
            spec.services.iter().filter_map(|service| Some((service.name.clone(), service.port?))).collect();
        self.run(move |transaction| {
            Ok(Known {
                newest: newest(transaction, &id)?,
                ports: ports(transaction, &id, wanted)?,
                done: recall(transaction, &id, DONE)?,
            })
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
            forget_environments(transaction)
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
            memory::forget(transaction, &project)?;
            forget_environments(transaction)
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
}

fn desired_text(desired: Desired) -> &'static str {
    match desired {
        Desired::Up => "up",
        Desired::Down => "down",
    }
}

/// Forgets the environments that no service has any more.
fn forget_environments(transaction: &Transaction<'_>) -> Result<(), LedgerError> {
    transaction
        .prepare_cached(
            "DELETE FROM environments WHERE digest NOT IN (SELECT environment FROM services WHERE environment IS NOT NULL)",
        )?
        .execute([])?;
    Ok(())
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
    let mut last = transaction.prepare_cached(
        "SELECT ended, spec_digest, port FROM runs WHERE project = ?1 AND service = ?2 AND number = ?3",
    )?;
    type Wish = (Desired, Option<String>, Option<String>, Option<String>);
    let rows = statement.query_map([spec.id.as_str()], |row| {
        let desired = if row.get::<_, String>(1)? == "up" { Desired::Up } else { Desired::Down };
        Ok((row.get::<_, String>(0)?, (desired, row.get(2)?, row.get(3)?, row.get(4)?)))
    })?;
    // What nobody has asked for since the project was forgotten last may have run before that.
    let unasked = |service: &ServiceSpec| (service.name.to_string(), (Desired::Down, None, None, None));
    let mut wishes: BTreeMap<String, Wish> = spec.services.iter().map(unasked).collect();
    for row in rows {
        let (service, wish) = row?;
        wishes.insert(service, wish);
    }
    let mut tallies = recall(transaction, &spec.id, TALLY)?;
    let mut owners = recall(transaction, &spec.id, OWNERS)?;
    let mut ahead = recall(transaction, &spec.id, AHEAD)?;
    let mut services = Vec::new();
    let mut environments: BTreeMap<String, Arc<BaseEnvironment>> = BTreeMap::new();
    for (service, (desired, digest, variables, resting)) in wishes {
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
        let run = params![spec.id.as_str(), service, newest.0];
        let run: Option<(Option<String>, String, Option<u16>)> =
            last.query_row(run, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
        let (ended, ran, port) = run.map_or((None, None, None), |(ended, digest, port)| (ended, Some(digest), port));
        let last = ended.map(|text| serde_json::from_str(&text)).transpose()?.map(Arc::new);
        let resting = resting.map(|text| serde_json::from_str(&text)).transpose()?;
        let tally = tallies.remove(&name).unwrap_or_default();
        let owners = owners.remove(&name).unwrap_or_default();
        let ahead = ahead.remove(&name).unwrap_or_default();
        services
            .push((Remembered { name, newest, desired, resting, last, ran, port, tally, ahead, owners }, environment));
    }
    Ok(Left { spec, services, ports })
}

#[cfg(test)]
mod tests {
    use locald_utils::record::{Ended, ExitStatus};

    use super::super::tests::{block_on, intent, open, project};
    use super::*;
    use crate::core::lifecycle::tests::ended;

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
        let [(_, _), (remembered, kept)] = services.as_slice() else { panic!("{services:?}") };
        assert_eq!((&remembered.name, remembered.newest, remembered.desired), (&web, RunNumber(1), Desired::Up));
        assert_eq!(remembered.resting, Some(Resting::Completed));
        assert_eq!(remembered.last.as_ref(), Some(&over));
        assert_eq!(*kept, environment);
        ledger.forget_project(key.project);
        assert!(block_on(ledger.left()).expect("readable").is_empty());
    }

    // It used to be unknown to the next daemon, which gave its numbers out a second time, and could not start it.
    #[test]
    fn a_service_that_nobody_has_asked_for_keeps_its_numbers() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        block_on(ledger.intend(intent(3))).expect("recorded");
        ledger.save_project(project(), Vec::new(), None);
        drop(ledger);
        let (ledger, _) = open(&dir);
        let left = block_on(ledger.left()).expect("readable");
        let [Left { services, .. }] = left.as_slice() else { panic!("{left:?}") };
        let [_, (web, _)] = services.as_slice() else { panic!("{services:?}") };
        assert_eq!((web.name.as_str(), web.newest, web.desired), ("web", RunNumber(3), Desired::Down));
    }

    // They used to stay until their project was over.
    #[test]
    fn an_environment_that_no_service_has_any_more_is_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = open(&dir);
        let web: ServiceName = "web".parse().expect("valid");
        for value in ["1", "2", "3"] {
            let environment = BaseEnvironment::new(Environment::from([("A".into(), value.into())]));
            ledger.save_project(project(), vec![(web.clone(), Desired::Up)], Some(Arc::new(environment)));
        }
        let kept = ledger.run(|transaction| {
            let mut statement = transaction.prepare("SELECT variables FROM environments")?;
            Ok(statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?)
        });
        assert_eq!(block_on(kept).expect("readable"), [r#"{"A":"3"}"#]);
    }
}
