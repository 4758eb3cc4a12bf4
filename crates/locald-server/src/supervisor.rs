//! The one task that owns the fleet: reads the clock, feeds the core, carries its effects out, answers clients.
//!
//! Whatever happens reaches it as a [`Message`]; each is handled to its end before the next. The core decides; this
//! starts actors, writes to the ledger, and judges open requests whenever a service of theirs has changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use locald_utils::name::{ProfileName, ProjectId, RunNumber, ServiceKey, ServiceName};
use locald_utils::protocol::{
    Action, Before, ClientMessage, DaemonStatus, Desired, Event, Failure, FailureCode, Outcome, OutcomeResult,
    PROTOCOL, Preview, ProjectStatus, Reply, Request, ServerMessage, ServiceOutcome, ServiceStatus, Step, WaitFor,
};
use locald_utils::record::Ended;
use locald_utils::spec::{Environment, Ports, ProjectSpec, RestartPolicy, ServiceSpec};
use locald_utils::time::UnixMillis;
use locald_utils::{digest, environment, exports, selection};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::actor::{self, Assignment, Context, Order, Report};
use crate::adoption::{Inheritance, PATIENCE};
use crate::core::Time;
use crate::core::attempts::Tally;
use crate::core::fleet::{Effect, Ending, Fleet, Found, How, Meant};
use crate::core::goal::Goal;
use crate::core::lifecycle::{Actual, News};
use crate::core::ownership::Kept;
use crate::ledger::{BaseEnvironment, Known, LedgerError, Left};
use crate::lookout::{Lookout, Seen};
use crate::session::Client;
use crate::view::{self, Now};

/// 1 s: whoever waited for an answer of the daemon before asks within milliseconds.
const RECALL: Duration = Duration::from_secs(1);

/// 500 ms: how long a `status` waits for what the ledger adds to it, which takes less than one.
const ORIGINS_LIMIT: Duration = Duration::from_millis(500);

/// 5 min: a daemon with nothing to do stays this long for the next command.
const IDLE_LIMIT: Duration = Duration::from_secs(300);

/// 10 ms: so much the times of files may be behind the clock (ktime_get_coarse_real_ts64).
const TICK: Duration = Duration::from_millis(10);

/// 60 s: the core's clock is as far ahead of the daemon's, so that it can tell what was shortly before it started.
const HEAD_START: Duration = RestartPolicy::CRASH_LOOP_WINDOW;

/// Everything that can happen to the daemon.
pub(crate) enum Message {
    /// A client has said hello.
    Connected,
    /// A client asks something.
    Request { client: Client, message: Box<ClientMessage> },
    /// A client has left.
    Disconnected(u64),
    /// The daemon was told to end by a signal.
    Terminate,
}

/// A request whose outcome is awaited.
struct Pending {
    client: Client,
    id: u64,
    /// What has to come about, and in which project; only `daemon stop --all` is about more than one.
    goals: Vec<(ProjectId, Goal)>,
    began: Instant,
    until: Option<Instant>,
    /// Runs that were seen to end while the request was open.
    ended: BTreeMap<ServiceKey, Arc<Ended>>,
    /// What became of services whose project has been forgotten since.
    settled: Vec<ServiceOutcome>,
    /// Whether the daemon goes when all of it has come about.
    ends_daemon: bool,
}

impl Pending {
    fn is_about(&self, key: &ServiceKey) -> bool {
        self.goals.iter().any(|(project, goal)| *project == key.project && goal.service == key.service)
    }
}

/// The daemon's heart.
pub(crate) struct Supervisor {
    context: Rc<Context>,
    fleet: Fleet,
    origin: Instant,
    started_at: UnixMillis,
    actors: BTreeMap<(ServiceKey, RunNumber), mpsc::UnboundedSender<Order>>,
    environments: BTreeMap<ServiceKey, Arc<BaseEnvironment>>,
    ports: BTreeMap<ProjectId, Ports>,
    /// Who asked last for a service, for the ledger.
    askers: BTreeMap<ServiceKey, String>,
    /// The state of each service that the ledger was told last.
    states: HashMap<ServiceKey, &'static str>,
    /// How often each service was started of late, and who wants it, as the ledger was told last.
    saved: HashMap<ServiceKey, (Tally, Kept)>,
    pending: Vec<Pending>,
    /// Watches files for services.
    lookout: Lookout,
    clients: u32,
    idle_since: Instant,
    /// Until when what ended before this daemon began is remembered, so that whoever waits for it can be told how it ended.
    recall_until: Option<Instant>,
    is_ending: bool,
    /// Who asked for the end, and has to hear of it before it comes.
    leavers: Vec<Client>,
}

impl Supervisor {
    /// A supervisor with an empty fleet.
    pub(crate) fn new(context: Rc<Context>) -> Self {
        let now = Instant::now();
        Self {
            context,
            fleet: Fleet::default(),
            origin: now,
            started_at: UnixMillis::now(),
            actors: BTreeMap::new(),
            environments: BTreeMap::new(),
            ports: BTreeMap::new(),
            askers: BTreeMap::new(),
            states: HashMap::new(),
            saved: HashMap::new(),
            pending: Vec::new(),
            lookout: Lookout::new(),
            clients: 0,
            idle_since: now,
            recall_until: None,
            is_ending: false,
            leavers: Vec::new(),
        }
    }

    fn now(&self) -> Time {
        self.origin.elapsed() + HEAD_START
    }

    fn clocks(&self) -> Now {
        Now { time: self.now(), wall: UnixMillis::now() }
    }

    /// Takes over what an earlier daemon was looking after.
    pub(crate) fn take_over(&mut self, inheritance: Inheritance) {
        let Inheritance { left, shims, ended } = inheritance;
        self.recall_until = (!left.is_empty()).then(|| Instant::now() + PATIENCE + RECALL);
        for Left { spec, services, ports } in left {
            let id = spec.id.clone();
            self.ports.insert(id.clone(), ports);
            for (remembered, environment) in &services {
                let key = ServiceKey { project: id.clone(), service: remembered.name.clone() };
                self.environments.insert(key, environment.clone());
            }
            let started_at = self.started_at;
            let time = |at: UnixMillis| (HEAD_START + at.since(started_at)).saturating_sub(started_at.since(at));
            self.fleet.restore(spec, services.into_iter().map(|(remembered, _)| remembered), time);
        }
        // Ends come first: what follows from them must not be taken for what is running.
        for ended in ended {
            self.fleet.replay(self.now(), ended);
        }
        for (record_dir, record) in shims {
            let (key, run) = (record.run.key(), record.run.number);
            self.fleet.adopt(&Found {
                key: key.clone(),
                run,
                project_name: record.run.project_name.clone(),
                project_dir: record.project_dir.clone(),
            });
            let Some(service) = self.fleet.service(&key) else { continue };
            let is_given_up = service.life.abandoned.contains_key(&run);
            let orders = actor::adopt(self.context.clone(), record_dir, record, service.spec.clone());
            if is_given_up {
                // It was to end already. It gets no grace period, and says what is left.
                let _ = orders.send(Order::Stop { at_once: true });
            }
            self.actors.insert((key, run), orders);
        }
        for (id, project) in self.fleet.projects() {
            for name in project.services.keys() {
                let key = ServiceKey { project: id.clone(), service: name.clone() };
                // What has changed while there was no daemon counts.
                mind(&mut self.lookout, &self.fleet, &key, UnixMillis(0));
            }
        }
    }

    /// Whether some runs have not been heard of yet.
    pub(crate) fn is_adopting(&self) -> bool {
        self.fleet.has_unknown()
    }

    /// Goes on where the last daemon left off, after its runs have been heard of or given time to.
    pub(crate) fn resume(&mut self) {
        let ids: Vec<ProjectId> = self.fleet.projects().keys().cloned().collect();
        let mut effects = Vec::new();
        // Leases that are over start nothing any more.
        self.fleet.tick(self.now(), &mut effects);
        for id in ids {
            self.fleet.settle(self.now(), &id, &mut effects);
        }
        self.carry_out(effects);
        self.recall_until = self.recall_until.map(|_| Instant::now() + RECALL);
    }

    /// Runs until the daemon may go.
    pub(crate) async fn run(
        mut self,
        mut inbox: mpsc::UnboundedReceiver<Message>,
        mut reports: mpsc::UnboundedReceiver<Report>,
    ) {
        while !self.is_ending {
            let deadline = self.deadline();
            tokio::select! {
                Some(message) = inbox.recv() => self.handle(message).await,
                Some(report) = reports.recv() => self.hear(report),
                Some(seen) = self.lookout.next() => self.see(seen),
                () = sleep_until(deadline) => {}
            }
            self.tick();
        }
        for client in &self.leavers {
            client.flushed().await;
        }
        self.context.ledger.flush().await;
    }

    /// Hears one report while the fleet is being taken over.
    pub(crate) fn hear(&mut self, report: Report) {
        let mut effects = Vec::new();
        // Dropped at the end of this, and whoever waits knows.
        let Report { key, run, news, heard: _heard } = report;
        tracing::debug!(service = %key.service, run = run.0, ?news, "news");
        if let News::Ended(ended) = &news {
            self.note_end(&key, run, ended);
        }
        self.fleet.hear(self.now(), &key, run, news, &mut effects);
        self.carry_out(effects);
    }

    /// Takes what was seen of files.
    fn see(&mut self, seen: Seen) {
        match seen {
            Seen::Stir(key) => self.fleet.stir(self.now(), &key),
            Seen::Done(key, run, Some(work)) => {
                // Another run may have made something else of it by now.
                if self.fleet.service(&key).is_none_or(|service| service.life.newest == run) {
                    self.context.ledger.save_done(&key, work);
                }
            }
            Seen::Done(key, run, None) => {
                tracing::info!(service = %key.service, run = run.0, "its inputs are not those that it was asked to work on");
                self.fleet.disown(&key, run);
            }
            Seen::Sight(key, sight, problem) => {
                tracing::debug!(service = %key.service, ?sight, problem, "looked at its files");
                let mut effects = Vec::new();
                self.fleet.see(self.now(), &key, (sight, problem), &mut effects);
                self.carry_out(effects);
            }
        }
    }

    /// Keeps how a run ended for the requests that have seen it.
    fn note_end(&mut self, key: &ServiceKey, run: RunNumber, ended: &Arc<Ended>) {
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

    fn deadline(&self) -> Option<Instant> {
        let core = self.fleet.deadline().map(|at| self.origin + at.saturating_sub(HEAD_START));
        let pending = self.pending.iter().filter_map(|pending| pending.until).min();
        let recall = self.recall_until;
        let idle = self.is_idle().then(|| self.idle_since + IDLE_LIMIT);
        [core, pending, recall, idle].into_iter().flatten().min()
    }

    fn is_idle(&self) -> bool {
        self.fleet.is_idle() && self.clients == 0
    }

    fn tick(&mut self) {
        let mut effects = Vec::new();
        self.fleet.tick(self.now(), &mut effects);
        let now = Instant::now();
        if self.recall_until.is_some_and(|until| now >= until) {
            self.recall_until = None;
            for id in self.fleet.projects().keys().cloned().collect::<Vec<_>>() {
                self.fleet.settle(self.now(), &id, &mut effects);
            }
        }
        self.carry_out(effects);
        let late: Vec<usize> = (0..self.pending.len())
            .filter(|&index| self.pending[index].until.is_some_and(|until| now >= until))
            .rev()
            .collect();
        for index in late {
            let pending = self.pending.remove(index);
            self.answer(pending);
        }
        if !self.is_idle() {
            self.idle_since = now;
        }
        if self.is_idle() && now >= self.idle_since + IDLE_LIMIT {
            tracing::info!("nothing to supervise; leaving");
            self.is_ending = true;
        }
    }

    // ---- clients

    async fn handle(&mut self, message: Message) {
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
                let services = self.meant(&project, &services, &profiles)?;
                let known = self.context.ledger.known(&project).await.map_err(|error| self.unusable(&error))?;
                let (resumes, done, owner) = (resumes.as_ref(), &known.done, owner.as_ref());
                let how = How { action, force, resumes, done, owner, meant: Meant::Themselves };
                let goals = self.apply((client, id), *project, environment, &services, how, &known)?;
                self.await_outcome(client, id, project_id, goals, Some(timeout));
            }
            Request::Preview { project, environment, services, profiles, action, force } => {
                let done = self.context.ledger.done(&project.id).await.map_err(|error| self.unusable(&error))?;
                let (owner, meant) = (None, Meant::Themselves);
                let how = How { action, force, resumes: None, done: &done, owner, meant };
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
                    let how = How { action, force: false, resumes, done, owner, meant };
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
                let ids = self.fleet.projects().keys();
                let ids = ids.filter(|id| project.as_ref().is_none_or(|wanted| wanted == *id));
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
        Failure::new(FailureCode::Failed, format!("the ledger {} cannot be used: {error}", path.display()))
    }

    /// Writes down who asked for what.
    fn asked(&mut self, client: &Client, project: &ProjectId, goals: &[Goal], verb: &'static str) {
        for goal in goals.iter().filter(|goal| !goal.unchanged) {
            let key = ServiceKey { project: project.clone(), service: goal.service.clone() };
            self.context.ledger.event(&key, Some(goal.run_before), verb, Some(client.who.to_string()));
            self.askers.insert(key, format!("{verb} by {}", client.who));
        }
    }

    fn enlist(&mut self, client: &Client, id: u64, project: ProjectId, goals: Vec<Goal>, timeout: Option<Duration>) {
        let began = Instant::now();
        self.pending.push(Pending {
            client: client.clone(),
            id,
            goals: goals.into_iter().map(|goal| (project.clone(), goal)).collect(),
            began,
            until: timeout.map(|timeout| began + timeout),
            ended: BTreeMap::new(),
            settled: Vec::new(),
            ends_daemon: false,
        });
    }

    /// Takes the ends that came while no daemon was there for those of the request that is carried on, the last one.
    fn note_ends(&mut self, resumes: Option<&Before>) {
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

    fn await_outcome(
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
        self.pending.push(Pending {
            client: client.clone(),
            id,
            goals,
            began: Instant::now(),
            until: None,
            ended: BTreeMap::new(),
            settled: Vec::new(),
            ends_daemon: true,
        });
        self.carry_out(effects);
        self.judge_all();
    }

    // ---- effects

    fn carry_out(&mut self, effects: Vec<Effect>) {
        let (mut changed, mut over) = (BTreeSet::new(), Vec::new());
        for effect in effects {
            match effect {
                Effect::Spawn(key, run) => self.spawn(key, run),
                Effect::Stop(key, run, at_once) => {
                    if let Some(orders) = self.actors.get(&(key, run)) {
                        // An actor that has gone has reported the end of its run.
                        let _ = orders.send(Order::Stop { at_once });
                    }
                }
                Effect::Look(key) => self.lookout.look(key),
                Effect::Renewed(key, file) => {
                    tracing::info!(service = %key.service, file, "changed");
                    let newest = self.fleet.service(&key).map(|service| service.life.newest);
                    self.context.ledger.event(&key, newest, "changed", Some(file.clone()));
                    self.askers.insert(key, format!("a change of {file}"));
                }
                Effect::Unwanted(key) => {
                    tracing::info!(service = %key.service, "the last lease is over");
                    let desired = vec![(key.service.clone(), Desired::Down)];
                    self.context.ledger.save_desired(key.project.clone(), desired);
                    self.context.ledger.event(&key, None, "unwanted", Some("its last lease is over".to_owned()));
                }
                Effect::Changed(key) => {
                    changed.insert(key);
                }
                // It is over once more when the time has come.
                Effect::Over(_) if self.recall_until.is_some() => {}
                Effect::Over(project) => over.push(project),
            }
        }
        for key in &changed {
            mind(&mut self.lookout, &self.fleet, key, UnixMillis::now().minus(TICK));
            self.announce(key);
        }
        if !changed.is_empty() {
            self.judge_all();
        }
        // Only now, so that whoever waited has been told how each service ended.
        for project in over {
            self.forget(&project);
        }
        let fleet = &self.fleet;
        for key in changed {
            let is_closed = |run| !fleet.service(&key).is_some_and(|service| service.life.is_open(run));
            let runs = (key.clone(), RunNumber(0))..=(key.clone(), RunNumber(u32::MAX));
            self.actors.extract_if(runs, |(_, run), _| is_closed(*run)).for_each(drop);
        }
    }

    fn spawn(&mut self, key: ServiceKey, run: RunNumber) {
        let Some(project) = self.fleet.projects().get(&key.project) else { return };
        let Some(life) = self.fleet.service(&key).map(|service| &service.life) else { return };
        let (Some(spec), started_on) = (life.running.clone(), life.started_on.clone()) else { return };
        if spec.inputs.is_some() {
            // Whatever comes of this run, what the one before has made is not there any more.
            self.context.ledger.forget_done(&key);
        }
        let ports = self.ports.get(&key.project).cloned().unwrap_or_default();
        let specs = project.services.values().map(|service| service.spec.as_ref());
        let assignment = Assignment {
            key: key.clone(),
            run,
            project_name: project.name.clone(),
            project_dir: project.dir.clone(),
            spec,
            exports: exports::variables(specs, &ports),
            ports,
            environment: self.environments.get(&key).cloned().unwrap_or_default(),
            started_on,
            asked_by: self.askers.remove(&key).unwrap_or_else(|| "locald, by its restart policy".to_owned()),
        };
        self.actors.insert((key, run), actor::start(self.context.clone(), assignment));
    }

    fn forget(&mut self, project: &ProjectId) {
        let mut pending = std::mem::take(&mut self.pending);
        for one in &mut pending {
            let goals = one.goals.extract_if(.., |(of, _)| of == project).collect::<Vec<_>>();
            let outcomes = goals.iter().filter_map(|(of, goal)| self.outcome_of(one, of, goal));
            one.settled.extend(outcomes.collect::<Vec<_>>());
        }
        self.pending = pending;
        self.fleet.forget(project);
        self.lookout.forget(project);
        self.ports.remove(project);
        self.environments.retain(|key, _| key.project != *project);
        self.askers.retain(|key, _| key.project != *project);
        self.states.retain(|key, _| key.project != *project);
        self.saved.retain(|key, _| key.project != *project);
        self.context.ledger.forget_project(project.clone());
    }

    /// Tells the ledger and whoever waits that a service has changed.
    fn announce(&mut self, key: &ServiceKey) {
        let Some(service) = self.fleet.service(key) else { return };
        let life = &service.life;
        let state = view::state_name(&life.actual);
        if self.states.insert(key.clone(), state) != Some(state) {
            self.context.ledger.event(key, Some(life.newest), state, None);
            if life.actual == Actual::Completed && !life.is_recalled {
                let (dir, running) = (&self.fleet.projects()[&key.project].dir, life.running.as_deref());
                running.inspect(|spec| self.lookout.verify(key, life.newest, dir, spec));
            }
        }
        let wall = |at: Time| self.started_at.plus(at).minus(HEAD_START);
        let now = (life.attempts.tally(wall), service.owners.kept(wall));
        let before = self.saved.entry(key.clone()).or_default();
        if before.0 != now.0 {
            self.context.ledger.save_tally(key, &now.0);
        }
        if before.1 != now.1 {
            self.context.ledger.save_owners(key, &now.1);
        }
        *before = now;
        self.context.ledger.save_resting(key, life.resting());
        let Some(status) = self.service_status(key) else { return };
        for pending in self.pending.iter().filter(|pending| pending.is_about(key)) {
            pending
                .client
                .send(ServerMessage::Event { id: pending.id, event: Event::Service(Box::new(status.clone())) });
        }
    }

    /// Answers every request that has come about or cannot any more.
    fn judge_all(&mut self) {
        let (done, open): (Vec<Pending>, Vec<Pending>) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| pending.goals.iter().all(|(id, goal)| self.fleet.judge(id, goal).is_some()));
        self.pending = open;
        for pending in done {
            self.answer(pending);
        }
    }

    fn answer(&mut self, pending: Pending) {
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
    fn outcome_of(&self, pending: &Pending, project: &ProjectId, goal: &Goal) -> Option<ServiceOutcome> {
        let key = ServiceKey { project: project.clone(), service: goal.service.clone() };
        Some(ServiceOutcome {
            service: self.service_status(&key)?,
            result: self.fleet.judge(project, goal).unwrap_or(OutcomeResult::TimedOut),
            unchanged: goal.unchanged,
            ended: pending.ended.get(&key).map(|ended| ended.as_ref().clone()),
        })
    }

    // ---- what is shown

    fn service_status(&self, key: &ServiceKey) -> Option<ServiceStatus> {
        let service = self.fleet.service(key)?;
        Some(view::service(self.clocks(), &self.fleet, self.ports.get(&key.project), key, service))
    }

    fn project_status(&self, id: &ProjectId) -> Option<ProjectStatus> {
        let project = self.fleet.projects().get(id)?;
        let keys = project.order.iter().map(|service| ServiceKey { project: id.clone(), service: service.clone() });
        Some(ProjectStatus {
            id: id.clone(),
            name: project.name.clone(),
            dir: project.dir.clone(),
            file: project.file.clone(),
            services: keys.filter_map(|key| self.service_status(&key)).collect(),
            origins: BTreeMap::new(),
        })
    }

    fn daemon_status(&self) -> DaemonStatus {
        let home = &self.context.home;
        DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            pid: std::process::id(),
            started_at: self.started_at,
            epoch: self.context.epoch,
            home: home.state().to_owned(),
            socket: home.daemon_socket(),
            log: home.daemon_log(),
            projects: u32::try_from(self.fleet.projects().len()).unwrap_or(u32::MAX),
            runs: u32::try_from(self.fleet.runs()).unwrap_or(u32::MAX),
            clients: self.clients,
        }
    }
}

/// Says what a request begins with.
fn accept(client: &Client, id: u64, goals: &[Goal]) {
    let changing = goals.iter().filter(|goal| !goal.unchanged);
    let before = changing.map(|goal| (goal.service.clone(), goal.run_before)).collect();
    client.send(ServerMessage::Event { id, event: Event::Accepted { before } });
}

/// Has the files of a service watched, if it is to run again when they change. Changes from before `since` are none.
fn mind(lookout: &mut Lookout, fleet: &Fleet, key: &ServiceKey, since: UnixMillis) {
    let service = fleet.service(key).filter(|service| service.is_watching());
    let dir = fleet.projects().get(&key.project).map(|project| project.dir.as_path());
    lookout.mind(key, dir.unwrap_or("/".as_ref()), service.and_then(|service| service.spec.watch.as_ref()), since);
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
