//! Requests whose outcome is awaited: what has to come about, who waits for it, and what they are told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use locald_utils::name::{ProjectId, RunNumber, ServiceKey};
use locald_utils::protocol::{Before, Event, Outcome, OutcomeResult, Reply, ServerMessage, ServiceOutcome};
use locald_utils::record::Ended;
use tokio::time::Instant;

use super::Supervisor;
use crate::core::goal::Goal;
use crate::session::Client;

/// A request whose outcome is awaited.
pub(super) struct Pending {
    pub(super) client: Client,
    pub(super) id: u64,
    /// What has to come about, and in which project; only `daemon stop --all` is about more than one.
    pub(super) goals: Vec<(ProjectId, Goal)>,
    began: Instant,
    pub(super) until: Option<Instant>,
    /// Runs that were seen to end while the request was open.
    ended: BTreeMap<ServiceKey, Arc<Ended>>,
    /// What became of services whose project has been forgotten since.
    pub(super) settled: Vec<ServiceOutcome>,
    /// Whether the daemon goes when all of it has come about.
    pub(super) ends_daemon: bool,
}

impl Pending {
    pub(super) fn new(client: &Client, id: u64, goals: Vec<(ProjectId, Goal)>, timeout: Option<Duration>) -> Self {
        let began = Instant::now();
        Self {
            client: client.clone(),
            id,
            goals,
            began,
            until: timeout.map(|timeout| began + timeout),
            ended: BTreeMap::new(),
            settled: Vec::new(),
            ends_daemon: false,
        }
    }

    pub(super) fn is_about(&self, key: &ServiceKey) -> bool {
        self.goals.iter().any(|(project, goal)| *project == key.project && goal.service == key.service)
    }
}

impl Supervisor {
    /// Keeps how a run ended for the requests that have seen it.
    pub(super) fn note_end(&mut self, key: &ServiceKey, run: RunNumber, ended: &Arc<Ended>) {
        tracing::info!(service = %key.service, run = run.0, status = %ended.status, killed = ended.killed, "ended");
        for pending in &mut self.pending {
            let is_about = |(project, goal): &(ProjectId, Goal)| {
                *project == key.project && goal.service == key.service && run >= goal.run_before
            };
            if pending.goals.iter().any(is_about) {
                pending.ended.insert(key.clone(), ended.clone());
            }
        }
    }

    pub(super) fn enlist(
        &mut self,
        client: &Client,
        id: u64,
        project: ProjectId,
        goals: Vec<Goal>,
        timeout: Option<Duration>,
    ) {
        let goals = goals.into_iter().map(|goal| (project.clone(), goal)).collect();
        self.pending.push(Pending::new(client, id, goals, timeout));
    }

    /// Takes the ends that came while no daemon was there for those of the request that is carried on, the last one.
    pub(super) fn note_ends(&mut self, resumes: Option<&Before>) {
        let (Some(before), Some(pending)) = (resumes, self.pending.last_mut()) else { return };
        for (project, goal) in &pending.goals {
            let key = ServiceKey { project: project.clone(), service: goal.service.clone() };
            let last = self.fleet.service(&key).and_then(|service| service.life.last.clone());
            let is_its = |ended: &Arc<Ended>| before.get(&goal.service).is_some_and(|&run| ended.run.number >= run);
            if let Some(ended) = last.filter(is_its) {
                pending.ended.insert(key, ended);
            }
        }
    }

    pub(super) fn await_outcome(
        &mut self,
        client: &Client,
        id: u64,
        project: ProjectId,
        goals: Vec<Goal>,
        timeout: Option<Duration>,
    ) {
        // How things stand at first, so that a client can show what it waits for.
        for goal in goals.iter().filter(|goal| !goal.unchanged) {
            let key = ServiceKey { project: project.clone(), service: goal.service.clone() };
            if let Some(status) = self.service_status(&key) {
                client.send(ServerMessage::Event { id, event: Event::Service(Box::new(status)) });
            }
        }
        self.enlist(client, id, project, goals, timeout);
        self.judge_all();
    }

    /// Answers every request that has come about or cannot any more.
    pub(super) fn judge_all(&mut self) {
        let (done, open): (Vec<Pending>, Vec<Pending>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| pending.goals.iter().all(|(id, goal)| self.fleet.judge(id, goal).is_some()));
        self.pending = open;
        for pending in done {
            self.answer(pending);
        }
    }

    pub(super) fn answer(&mut self, pending: Pending) {
        let open = pending.goals.iter().filter_map(|(project, goal)| self.outcome_of(&pending, project, goal));
        let services: Vec<ServiceOutcome> = pending.settled.iter().cloned().chain(open).collect();
        if pending.ends_daemon {
            // A process that could not be ended is watched on, and somebody has to.
            self.is_ending |= services.iter().all(|service| service.result == OutcomeResult::Done);
        }
        let outcome = Outcome { services, took: pending.began.elapsed() };
        pending.client.send(ServerMessage::Reply { id: pending.id, reply: Box::new(Reply::Outcome(outcome)) });
        if pending.ends_daemon {
            self.leavers.push(pending.client);
        }
    }

    /// What has become of one service; `None` when its project is forgotten.
    pub(super) fn outcome_of(&self, pending: &Pending, project: &ProjectId, goal: &Goal) -> Option<ServiceOutcome> {
        let key = ServiceKey { project: project.clone(), service: goal.service.clone() };
        Some(ServiceOutcome {
            service: self.service_status(&key)?,
            result: self.fleet.judge(project, goal).unwrap_or(OutcomeResult::TimedOut),
            unchanged: goal.unchanged,
            ended: pending.ended.get(&key).map(|ended| ended.as_ref().clone()),
        })
    }
}
