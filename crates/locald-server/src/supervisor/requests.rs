//! What clients ask, and how each is served.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use locald_utils::name::{ProfileName, ProjectId, RunNumber, ServiceKey, ServiceName};
use locald_utils::protocol::{
    Action, Before, ClientMessage, Desired, Event, Failure, FailureCode, Preview, ProjectStatus, Reply, Request,
    ServerMessage, ServiceStatus, Step, WaitFor,
};
use locald_utils::spec::{Environment, Ports, ProjectSpec, ServiceSpec};
use locald_utils::{digest, environment, exports, selection};
use tokio::time::Instant;

use super::outcomes::Pending;
use super::{Message, Supervisor};
use crate::core::fleet::{Ending, How, Meant};
use crate::core::goal::Goal;
use crate::ledger::{BaseEnvironment, Known, LedgerError};
use crate::session::Client;

/// 500 ms: how long a `status` waits for what the ledger adds to it, which takes less than one.
const ORIGINS_LIMIT: Duration = Duration::from_millis(500);

impl Supervisor {
    pub(super) async fn handle(&mut self, message: Message) {
        match message {
            Message::Connected => self.clients += 1,
            Message::Disconnected(number) => {
                self.clients -= 1;
                self.pending.retain(|pending| pending.client.number != number);
            }
            Message::Request { client, message } => {
                let id = message.id;
                if let Err(failure) = self.serve(&client, *message).await {
                    client.send(ServerMessage::Failure { id, failure });
                }
            }
            Message::Terminate => {
                tracing::info!(runs = self.fleet.runs(), "told to end; services run on");
                self.is_ending = true;
            }
        }
    }

    async fn serve(&mut self, client: &Client, message: ClientMessage) -> Result<(), Failure> {
        let ClientMessage { id, request, resumes } = message;
        match request {
            Request::Apply { project, environment, services, profiles, action, force, owner, timeout } => {
                let project_id = project.id.clone();
                let by_name = !services.is_empty();
                let services = self.meant(&project, &services, &profiles)?;
                let known = self.context.ledger.known(&project).await.map_err(|error| self.unusable(&error))?;
                let (resumes, done, owner) = (resumes.as_ref(), &known.done, owner.as_ref());
                let (ports, meant) = (&known.ports, Meant::Themselves);
                let how = How { action, force, resumes, done, owner, ports, by_name, meant };
                let goals = self.apply((client, id), *project, environment, &services, how, &known)?;
                self.await_outcome(client, id, project_id, goals, Some(timeout));
            }
            Request::Preview { project, environment, services, profiles, action, force } => {
                let by_name = !services.is_empty();
                let done = self.context.ledger.done(&project.id).await.map_err(|error| self.unusable(&error))?;
                let (owner, meant) = (None, Meant::Themselves);
                let ports = &self.ports_to_be(&project);
                let how = How { action, force, resumes: None, done: &done, owner, ports, by_name, meant };
                let services = self.meant(&project, &services, &profiles)?;
                let previews = self.fleet.preview(self.now(), &project, &services, how)?;
                self.compare(client.clone(), id, &project, &environment, previews);
            }
            Request::Prepare { project, environment, service, dependencies, timeout } => {
                let project_id = project.id.clone();
                let has_some = |spec: &ServiceSpec| spec.name == service && !spec.depends_on.is_empty();
                let known = self.context.ledger.known(&project).await.map_err(|error| self.unusable(&error))?;
                let goals = if dependencies && project.services.iter().any(has_some) {
                    let (resumes, done) = (resumes.as_ref(), &known.done);
                    let (action, owner, meant) = (Action::Up, None, Meant::Dependencies);
                    let ports = &known.ports;
                    let how = How { action, force: false, resumes, done, owner, ports, by_name: true, meant };
                    self.apply((client, id), *project, environment, &[service], how, &known)?
                } else {
                    Vec::new()
                };
                self.await_outcome(client, id, project_id, goals, Some(timeout));
            }
            Request::Stop { project, services, now, owner } => {
                let mut effects = Vec::new();
                let resumes = resumes.as_ref();
                let how = Ending { at_once: now, owner: owner.as_ref(), resumes };
                let goals = self.fleet.stop(self.now(), &project, services.as_deref(), how, &mut effects)?;
                accept(client, id, &goals);
                let desired = goals.iter().map(|goal| (goal.service.clone(), Desired::Down)).collect();
                self.context.ledger.save_desired(project.clone(), desired);
                self.asked(client, &project, &goals, "stop");
                self.enlist(client, id, project, goals, None);
                self.note_ends(resumes);
                self.carry_out(effects);
                self.judge_all();
            }
            Request::Wait { project, services, until, timeout } => {
                let services = if services.is_empty() { self.awaited(&project, until) } else { services };
                let goals = self.fleet.wait(&project, &services, until)?;
                self.await_outcome(client, id, project, goals, Some(timeout));
            }
            Request::Status { project } => {
                // What is remembered for those who wait for its end is over all the same.
                let known = self.fleet.projects().iter().filter(|(_, known)| !known.is_over()).map(|(id, _)| id);
                let ids = known.filter(|id| project.as_ref().is_none_or(|wanted| wanted == *id));
                let projects = ids.filter_map(|id| self.project_status(id)).collect();
                self.report(client.clone(), id, projects);
            }
            Request::Ports => {
                let assigned = self.context.ledger.assigned_ports().await.map_err(|error| self.unusable(&error))?;
                client.send(ServerMessage::Reply { id, reply: Box::new(Reply::Ports { assigned }) });
            }
            Request::Daemon => {
                let reply = Box::new(Reply::Daemon(self.daemon_status()));
                client.send(ServerMessage::Reply { id, reply });
            }
            Request::Shutdown { all } => self.shut_down(client, id, all, resumes.as_ref()),
        }
        Ok(())
    }

    /// The services that a start is about, without what they depend on.
    fn meant(
        &self,
        project: &ProjectSpec,
        services: &[ServiceName],
        profiles: &[ProfileName],
    ) -> Result<Vec<ServiceName>, Failure> {
        let known = self.fleet.projects().get(&project.id);
        let is_wanted = |name: &ServiceName| {
            known.and_then(|known| known.services.get(name)).is_some_and(|service| service.life.desired == Desired::Up)
        };
        selection::meant(project, services, profiles, is_wanted)
    }

    /// The ports that the services would have, as far as that is known before any is assigned.
    fn ports_to_be(&self, project: &ProjectSpec) -> Ports {
        let fixed: Ports =
            project.services.iter().filter_map(|spec| Some((spec.name.clone(), spec.port?.number()?))).collect();
        let mut ports = self.ports.get(&project.id).cloned().unwrap_or_default();
        // One that somebody has written down since is not its any more.
        ports.retain(|_, port| !fixed.values().any(|number| number == port));
        ports.extend(fixed);
        ports
    }

    /// Answers with how things stand, after the ledger was asked what the runs were made of. Nobody else waits for it.
    fn report(&self, client: Client, id: u64, mut projects: Vec<ProjectStatus>) {
        let ledger = self.context.ledger.clone();
        tokio::task::spawn_local(async move {
            let key = |project: &ProjectStatus, service: &ServiceStatus| ServiceKey {
                project: project.id.clone(),
                service: service.name.clone(),
            };
            let alive = |project: &'_ ProjectStatus| -> Vec<(ServiceKey, RunNumber)> {
                let services = project.services.iter().filter(|service| service.leader.is_some());
                services.filter_map(|service| Some((key(project, service), service.run?))).collect()
            };
            let runs: Vec<(ServiceKey, RunNumber)> = projects.iter().flat_map(alive).collect();
            if !runs.is_empty() {
                // A ledger that is slow or cannot be read is no reason to say nothing.
                let origins = tokio::time::timeout(ORIGINS_LIMIT, ledger.origins(runs)).await;
                for (key, origin) in origins.ok().and_then(Result::ok).into_iter().flatten() {
                    if let Some(project) = projects.iter_mut().find(|project| project.id == key.project) {
                        project.origins.insert(key.service, origin);
                    }
                }
            }
            client.send(ServerMessage::Reply { id, reply: Box::new(Reply::Status { projects }) });
        });
    }

    /// Answers with previews, after the environments of those that would be left alone have been compared with what they would
    /// have otherwise. Nobody else waits for the ledger meanwhile.
    fn compare(
        &self,
        client: Client,
        id: u64,
        project: &ProjectSpec,
        caller: &Environment,
        mut previews: Vec<Preview>,
    ) {
        let ports = self.ports.get(&project.id).cloned().unwrap_or_default();
        let exports = exports::variables(&project.services, &ports);
        let mut runs = Vec::new();
        let mut environments: BTreeMap<ServiceKey, BTreeMap<String, String>> = BTreeMap::new();
        for preview in previews.iter().filter(|preview| preview.step == Step::Leave) {
            let key = ServiceKey { project: project.id.clone(), service: preview.service.clone() };
            let spec = project.services.iter().find(|spec| spec.name == preview.service);
            let Some(life) = self.fleet.service(&key).map(|service| &service.life) else { continue };
            let Some(spec) = spec.filter(|_| life.is_occupied()) else { continue };
            // A port that is not known yet is that of something that does not run yet.
            let Ok(next) = environment::of_service(caller.clone(), spec, exports.clone(), &ports) else { continue };
            let digests = next.iter().map(|(name, value)| (name.clone(), digest::of_value(value)));
            runs.push((key.clone(), life.newest));
            environments.insert(key, digests.collect());
        }
        let (ledger, project) = (self.context.ledger.clone(), project.id.clone());
        tokio::task::spawn_local(async move {
            let recorded = ledger.environments(runs).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the environments of runs could not be read");
                BTreeMap::new()
            });
            for preview in &mut previews {
                let key = ServiceKey { project: project.clone(), service: preview.service.clone() };
                if let (Some(recorded), Some(next)) = (recorded.get(&key), environments.get(&key)) {
                    preview.environment = environment::differences(recorded, next);
                }
            }
            client.send(ServerMessage::Reply { id, reply: Box::new(Reply::Preview { services: previews }) });
        });
    }

    /// The services that are waited for when none is named: not those that only a profile starts, and that nobody wants. Empty,
    /// which means all, when there are no others.
    fn awaited(&self, project: &ProjectId, until: WaitFor) -> Vec<ServiceName> {
        let Some(known) = self.fleet.projects().get(project).filter(|_| until != WaitFor::Stopped) else {
            return Vec::new();
        };
        let belongs = |name: &&ServiceName| {
            let service = &known.services[*name];
            service.spec.profiles.is_empty() || service.life.desired == Desired::Up
        };
        known.order.iter().filter(belongs).cloned().collect()
    }

    fn apply(
        &mut self,
        (client, request): (&Client, u64),
        project: ProjectSpec,
        environment: Environment,
        services: &[ServiceName],
        how: How<'_>,
        known: &Known,
    ) -> Result<Vec<Goal>, Failure> {
        // As long as somebody waits for the end.
        if self.is_ending || self.pending.iter().any(|pending| pending.ends_daemon) {
            return Err(
                Failure::new(FailureCode::ShuttingDown, "the daemon is going down").hint("try again in a moment")
            );
        }
        let id = project.id.clone();
        let mut effects = Vec::new();
        let began = Instant::now();
        let goals = self.fleet.apply(self.now(), project.clone(), &known.newest, services, how, &mut effects)?;
        tracing::debug!(services = goals.len(), micros = began.elapsed().as_micros(), "planned");
        let environment = Arc::new(BaseEnvironment::new(environment));
        for goal in &goals {
            self.environments
                .insert(ServiceKey { project: id.clone(), service: goal.service.clone() }, environment.clone());
        }
        self.ports.insert(id.clone(), known.ports.clone());
        // A start that was refused is none that is wanted.
        let wanted = |goal: &Goal| {
            let key = ServiceKey { project: id.clone(), service: goal.service.clone() };
            Some((goal.service.clone(), self.fleet.service(&key)?.life.desired))
        };
        let desired = goals.iter().filter_map(wanted).collect();
        self.context.ledger.save_project(project, desired, Some(environment));
        let verb = match (how.meant, how.action) {
            (Meant::Dependencies, _) => "run",
            (Meant::Themselves, Action::Up) => "up",
            (Meant::Themselves, Action::Start) => "start",
            (Meant::Themselves, Action::Restart) => "restart",
        };
        self.asked(client, &id, &goals, verb);
        // Before anything happens, so that no daemon that goes away now has begun what nobody knows of.
        accept(client, request, &goals);
        self.carry_out(effects);
        Ok(goals)
    }

    fn unusable(&self, error: &LedgerError) -> Failure {
        let path = self.context.home.ledger();
        let failure =
            Failure::new(FailureCode::Failed, format!("the ledger {} cannot be used: {error}", path.display()));
        match error.hint(&path) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }

    /// Writes down who asked for what.
    fn asked(&mut self, client: &Client, project: &ProjectId, goals: &[Goal], verb: &'static str) {
        for goal in goals.iter().filter(|goal| !goal.unchanged) {
            let key = ServiceKey { project: project.clone(), service: goal.service.clone() };
            self.context.ledger.event(&key, Some(goal.run_before), verb, Some(client.who.to_string()));
            self.askers.insert(key, format!("{verb} by {}", client.who));
        }
    }

    fn shut_down(&mut self, client: &Client, id: u64, all: bool, resumes: Option<&Before>) {
        let mut effects = Vec::new();
        let mut goals = Vec::new();
        if all {
            let ids: Vec<ProjectId> = self.fleet.projects().keys().cloned().collect();
            for project in ids {
                // A project that is known can be stopped.
                let how = Ending { resumes, ..Ending::default() };
                let asked = self.fleet.stop(self.now(), &project, None, how, &mut effects);
                let Ok(asked) = asked else { continue };
                let desired = asked.iter().map(|goal| (goal.service.clone(), Desired::Down)).collect();
                self.context.ledger.save_desired(project.clone(), desired);
                self.asked(client, &project, &asked, "stop");
                goals.extend(asked.into_iter().map(|goal| (project.clone(), goal)));
            }
        }
        let mut pending = Pending::new(client, id, goals, None);
        pending.ends_daemon = true;
        self.pending.push(pending);
        self.carry_out(effects);
        self.judge_all();
    }
}

/// Says what a request begins with.
fn accept(client: &Client, id: u64, goals: &[Goal]) {
    let changing = goals.iter().filter(|goal| !goal.unchanged);
    let before = changing.map(|goal| (goal.service.clone(), goal.run_before)).collect();
    client.send(ServerMessage::Event { id, event: Event::Accepted { before } });
}
