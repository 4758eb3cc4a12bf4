//! The one task that owns the fleet: reads the clock, feeds the core, carries its effects out, answers clients.
//!
//! Whatever happens reaches it as a [`Message`]; each is handled to its end before the next. The core decides; this
//! starts actors, writes to the ledger, and judges open requests whenever a service of theirs has changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use locald_utils::exports;
use locald_utils::name::{ProjectId, RunNumber, ServiceKey};
use locald_utils::protocol::{
    ClientMessage, DaemonStatus, Desired, Event, PROTOCOL, ProjectStatus, ServerMessage, ServiceStatus,
};
use locald_utils::spec::{Ports, RestartPolicy};
use locald_utils::time::UnixMillis;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::actor::{self, Assignment, Context, Order, Report};
use crate::adoption::{Inheritance, PATIENCE};
use crate::core::Time;
use crate::core::attempts::Tally;
use crate::core::fleet::{Effect, Fleet, Found, Remembered};
use crate::core::lifecycle::{Actual, Ahead, News};
use crate::core::ownership::Kept;
use crate::ledger::{BaseEnvironment, Left};
use crate::lookout::{Lookout, Seen};
use crate::session::Client;
use crate::view::{self, Now};

mod outcomes;
mod requests;

use outcomes::Pending;

/// 1 s: whoever waited for an answer of the daemon before asks within milliseconds.
const RECALL: Duration = Duration::from_secs(1);

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
    /// How often each service was started of late, what is to become of it, and who wants it, as the ledger was told last.
    saved: HashMap<ServiceKey, (Tally, Ahead, Kept)>,
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
                self.environments.insert(key.clone(), environment.clone());
                // As the ledger has it, so that it is told of whatever becomes otherwise.
                let Remembered { tally, ahead, owners, .. } = remembered;
                self.saved.insert(key, (tally.clone(), ahead.clone(), owners.clone()));
            }
            let started_at = self.started_at;
            let time = |at: UnixMillis| (HEAD_START + at.since(started_at)).saturating_sub(started_at.since(at));
            let ports = self.ports[&id].clone();
            self.fleet.restore(spec, &ports, services.into_iter().map(|(remembered, _)| remembered), time);
        }
        // Ends come first: what follows from them must not be taken for what is running.
        let mut effects = Vec::new();
        for ended in ended {
            self.fleet.replay(self.now(), ended, &mut effects);
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
            let port = service.life.ports.get(&key.service).copied();
            let orders = actor::adopt(self.context.clone(), record_dir, record, service.spec.clone(), port);
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
        self.carry_out(effects);
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
        self.context.standby.end(&self.context).await;
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
            Seen::Done(key, run, Some((inputs, work))) => {
                // Another run may have made something else of it by now.
                if self.fleet.service(&key).is_none_or(|service| service.life.newest == run) {
                    self.context.ledger.save_done(&key, work);
                    self.fleet.note_inputs(&key, run, inputs.digest);
                }
            }
            Seen::Done(key, run, None) => {
                tracing::info!(service = %key.service, run = run.0, "its inputs were changed while it worked");
                self.fleet.note_inputs(&key, run, None);
            }
            Seen::Sight(key, sight, problem) => {
                tracing::debug!(service = %key.service, ?sight, problem, "looked at its files");
                let mut effects = Vec::new();
                self.fleet.see(self.now(), &key, (sight, problem), &mut effects);
                self.carry_out(effects);
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
                let began = life.last_started_at().map_or(UnixMillis(0), |at| at.minus(TICK));
                running.inspect(|spec| self.lookout.verify(key, life.newest, dir, spec, began));
            }
        }
        let wall = |at: Time| self.started_at.plus(at).minus(HEAD_START);
        let now = (life.attempts.tally(wall), life.ahead(wall), service.owners.kept(wall));
        let before = self.saved.entry(key.clone()).or_default();
        if before.0 != now.0 {
            self.context.ledger.save_tally(key, &now.0);
        }
        if before.1 != now.1 {
            self.context.ledger.save_ahead(key, &now.1);
        }
        if before.2 != now.2 {
            self.context.ledger.save_owners(key, &now.2);
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
