//! One project: its services, and how they gate each other.
//!
//! [`Project::settle`] is the heart: for every service it compares what is wanted with what is and takes the next step, again
//! and again until nothing moves. A service starts when everything it depends on holds; it is ended when nobody wants its
//! run, after those that depend on it and leave as well. Both are predicates over the neighbours as they are now.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use locald_utils::name::{OwnerName, ProjectId, ProjectName, ServiceKey, ServiceName};
use locald_utils::protocol::{Action, Desired, Failure, WaitingOn};
use locald_utils::record::ExitStatus;
use locald_utils::selection;
use locald_utils::spec::{Condition, Dependency, Kind, Ports, ServiceSpec};

use super::Time;
use super::fleet::Effect;
use super::lifecycle::{Actual, Lifecycle, Reason, StartedOn};
use super::ownership::Owners;
use super::watching::Watching;

/// One service: what is written, and how it stands.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// As the project file has it now; a run keeps the spec it was started with.
    pub(crate) spec: Arc<ServiceSpec>,
    /// How it stands.
    pub(crate) life: Lifecycle,
    /// How it stands with the files that it watches.
    pub(crate) watching: Watching,
    /// Who wants it.
    pub(crate) owners: Owners,
}

/// One project instance.
#[derive(Clone, Debug)]
pub(crate) struct Project {
    /// Its name.
    pub(crate) name: ProjectName,
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// Its file.
    pub(crate) file: PathBuf,
    /// The services in the order of the file; those that are no longer written come last.
    pub(crate) order: Vec<ServiceName>,
    /// The services.
    pub(crate) services: BTreeMap<ServiceName, Service>,
    /// The ports of the services that have one, as far as they are known.
    pub(crate) ports: Ports,
    /// Whether it is forgotten as soon as nothing of it is left.
    pub(crate) is_ending: bool,
}

/// The next step of one service.
#[derive(Debug, PartialEq)]
enum Step {
    /// Of all that it depends on these are the runs.
    Spawn(StartedOn),
    Stop,
    Become(Actual),
}

/// Whether a dependency's condition holds.
#[derive(Clone, Debug, PartialEq)]
enum Holds {
    Yes,
    NotYet,
    /// Not as long as things stay as they are: the chain from the dependency down to the culprit, and what is wrong.
    Never {
        chain: Vec<ServiceName>,
        cause: String,
    },
}

impl Service {
    /// Whether changes of files are to be seen.
    pub(crate) fn is_watching(&self) -> bool {
        self.spec.watch.is_some() && self.life.desired == Desired::Up
    }

    /// When to look at the files that it watches.
    pub(crate) fn look_at(&self) -> Option<Time> {
        self.watching.deadline(self.spec.watch.as_ref().filter(|_| self.is_watching())?)
    }

    /// The file that was changed while nobody watched, and that the newest run has not seen.
    pub(super) fn overdue(&mut self) -> Option<String> {
        self.watching.overdue(self.life.unseen_since())
    }

    /// Asks for a new run because of a file. Whether one will be.
    pub(super) fn renew(&mut self, file: &str) -> bool {
        let is_renewed = self.life.renew();
        if is_renewed {
            self.watching.note(file.to_owned());
        }
        is_renewed
    }

    /// Whether to look at the files that it watches now; then somebody does.
    pub(super) fn is_to_look(&mut self, now: Time) -> bool {
        let Some(watch) = self.spec.watch.as_ref().filter(|_| self.is_watching()) else { return false };
        self.watching.is_due(now, watch)
    }

    /// Lets a job that has done the same before count as done.
    pub(super) fn recall(&mut self, done: Option<&String>) {
        if done.is_some() && done == self.spec.work().as_ref() {
            self.life.recall(self.spec.clone());
        }
    }

    /// Somebody wants it to run; what that means depends on how it stands, and on what is written of it now.
    /// Whoever means all has jobs that are done left alone; who names one has it done again.
    pub(super) fn ask_up(&mut self, action: Action, is_meant: bool, is_named: bool, ports: &Ports) {
        let life = &mut self.life;
        self.watching.forgive();
        let has_run = life.is_occupied() || life.actual == Actual::Completed;
        let differs = |running: &Arc<ServiceSpec>| {
            running.digest() != self.spec.digest()
                // What it runs on was looked at by whoever asks.
                || self.spec.work().is_some_and(|work| running.work().as_ref() != Some(&work))
        };
        let has_other_ports = life.has_other_ports(&self.spec, ports);
        let is_written_otherwise = || match &life.running {
            Some(running) => differs(running),
            // An earlier daemon has seen it complete. What that worked on is told by what is recalled, and nothing else.
            None => self.spec.work().is_some() || life.ran.as_ref().is_some_and(|ran| *ran != self.spec.digest()),
        };
        let is_changed = has_run && (has_other_ports || is_written_otherwise());
        match action {
            // Unlike a job, a service that ended has not done what it is for.
            _ if life.actual == Actual::Completed && self.spec.kind != Kind::Job => life.want_new_run(),
            // A run that has not executed anything yet is as new as one can be, unless it has an older spec.
            Action::Restart if life.actual == Actual::Completed && !is_named && !is_changed => life.want_up(),
            Action::Restart if is_meant && (life.actual != Actual::Spawning || is_changed) => life.want_new_run(),
            Action::Up if is_changed => life.want_new_run(),
            Action::Start if is_named && life.actual == Actual::Completed => life.want_new_run(),
            Action::Up | Action::Start | Action::Restart => life.want_up(),
        }
    }
}

impl Project {
    /// Takes every step that can be taken now.
    pub(super) fn settle(&mut self, now: Time, id: &ProjectId, effects: &mut Vec<Effect>) {
        self.note_what_is_followed();
        // Whoever leaves as well is ended before what it depends on: so it has to be known first who follows.
        self.follow(id, effects);
        // A step can only enable steps of neighbours. Those that were passed over meanwhile are seen in the next round. Ends come
        // last, for whatever starts may be followed by somebody who then has to be ended before others; they start nothing.
        let mut is_time_for_ends = false;
        loop {
            let mut moved = false;
            for index in 0..self.order.len() {
                let name = &self.order[index];
                let Some(step) = self.next_step(name) else { continue };
                if step == Step::Stop && !is_time_for_ends {
                    continue;
                }
                moved = true;
                let key = ServiceKey { project: id.clone(), service: name.clone() };
                let Some(service) = self.services.get_mut(&key.service) else { continue };
                match step {
                    Step::Spawn(started_on) => {
                        let run = service.life.spawn(now, service.spec.clone(), started_on, &self.ports);
                        effects.push(Effect::Spawn(key.clone(), run));
                    }
                    Step::Stop => {
                        service.life.actual = Actual::Stopping { kill_at: None };
                        effects.push(Effect::Stop(key.clone(), service.life.newest, service.life.is_urgent));
                    }
                    Step::Become(actual) => service.life.actual = actual,
                }
                effects.push(Effect::Changed(key));
                self.follow(id, effects);
            }
            if !moved && is_time_for_ends {
                break;
            }
            is_time_for_ends |= !moved;
        }
        if self.is_over() {
            effects.push(Effect::Over(id.clone()));
        }
    }

    /// Whether somebody has ended all of it, and nothing is left.
    pub(crate) fn is_over(&self) -> bool {
        let is_gone = |service: &Service| service.life.desired == Desired::Down && !service.life.has_left();
        self.is_ending && self.services.values().all(is_gone)
    }

    /// Has an owner want what its services depend on for as long as these: who asks for a while for what it needs elsewhere for
    /// longer does not lose it there.
    pub(super) fn keep_what_is_needed(&mut self, owner: &OwnerName) {
        loop {
            let mut longer = Vec::new();
            for service in self.services.values() {
                let Some((_, until)) = service.owners.leases().find(|(name, _)| *name == owner) else { continue };
                longer.extend(service.spec.depends_on.iter().map(|dependency| (dependency.service.clone(), until)));
            }
            let mut is_changed = false;
            for (name, until) in longer {
                if let Some(service) = self.services.get_mut(&name) {
                    is_changed |= service.owners.lengthen(owner, until);
                }
            }
            if !is_changed {
                return;
            }
        }
    }

    /// When nobody wants anything of it any more, and somebody has just left, it is over as by `down`.
    pub(super) fn end_without_owners(&mut self, has_left: bool) {
        self.is_ending |= has_left && self.services.values().all(|service| service.life.desired == Desired::Down);
    }

    /// The same services, if all of them are known.
    pub(super) fn check<'n>(&self, named: &'n [ServiceName]) -> Result<&'n [ServiceName], Failure> {
        match named.iter().find(|name| !self.services.contains_key(*name)) {
            Some(name) => {
                Err(selection::unknown_service(self.name.as_str(), name, self.order.iter().map(ServiceName::as_str)))
            }
            None => Ok(named),
        }
    }

    fn next_step(&self, name: &ServiceName) -> Option<Step> {
        let service = self.services.get(name)?;
        let life = &service.life;
        match &life.actual {
            // That nobody answers for it is no reason to keep what shall go.
            Actual::Spawning | Actual::Starting { .. } | Actual::Ready { .. } | Actual::Unready | Actual::Unknown => {
                (life.is_leaving() && !self.is_needed_by_leaving(name)).then_some(Step::Stop)
            }
            Actual::Stopping { .. } | Actual::Stuck { .. } => None,
            Actual::Stopped => (life.desired == Desired::Up).then_some(Step::Become(Actual::Waiting)),
            Actual::Completed | Actual::Failed(_) => match life.desired {
                Desired::Down => Some(Step::Become(Actual::Stopped)),
                Desired::Up => (life.newest < life.at_least).then_some(Step::Become(Actual::Waiting)),
            },
            Actual::Backoff { .. } => match life.desired {
                Desired::Down => Some(Step::Become(Actual::Stopped)),
                Desired::Up => (life.newest < life.at_least).then_some(Step::Become(Actual::Waiting)),
            },
            Actual::Waiting | Actual::Blocked { .. } if life.desired == Desired::Down => {
                Some(Step::Become(Actual::Stopped))
            }
            Actual::Waiting | Actual::Blocked { .. } => {
                let next = match self.dependencies_hold(&service.spec) {
                    Holds::Yes if self.holder_that_leaves(name).is_none() => {
                        return Some(Step::Spawn(self.newest_of(&service.spec)));
                    }
                    Holds::Yes | Holds::NotYet => Actual::Waiting,
                    Holds::Never { chain, cause } => Actual::Blocked { chain, cause },
                };
                (next != life.actual).then_some(Step::Become(next))
            }
        }
    }

    /// Who still has the port of a service, and is about to give it back.
    pub(crate) fn holder_that_leaves(&self, name: &ServiceName) -> Option<&ServiceName> {
        let port = self.ports.get(name)?;
        let leaves = |life: &Lifecycle| {
            // What cannot be ended keeps it, and whoever starts is told so.
            life.is_occupied() && life.is_leaving() && !matches!(life.actual, Actual::Stuck { .. })
        };
        let has_it = |(other, service): &(&ServiceName, &Service)| {
            *other != name && service.life.ports.get(*other) == Some(port) && leaves(&service.life)
        };
        self.services.iter().find(has_it).map(|(other, _)| other)
    }

    /// The newest runs of what a service depends on.
    fn newest_of(&self, spec: &ServiceSpec) -> StartedOn {
        let names = spec.depends_on.iter().map(|dependency| &dependency.service);
        names.filter_map(|name| Some((name.clone(), self.services.get(name)?.life.newest))).collect()
    }

    /// Asks for new runs of those services that follow others, until nobody has to any more.
    fn follow(&mut self, id: &ProjectId, effects: &mut Vec<Effect>) {
        loop {
            let following = self.services.iter().filter(|(_, service)| self.has_to_follow(service));
            let following: Vec<ServiceName> = following.map(|(name, _)| name.clone()).collect();
            if following.is_empty() {
                return;
            }
            for name in following {
                if let Some(service) = self.services.get_mut(&name) {
                    service.life.follow();
                }
                effects.push(Effect::Changed(ServiceKey { project: id.clone(), service: name }));
            }
        }
    }

    /// From now on a service follows what it was not started on: a dependency that was written since, or one of a job that did not
    /// have to be done again.
    fn note_what_is_followed(&mut self) {
        let mut found = Vec::new();
        for (name, service) in self.services.iter().filter(|(_, service)| service.life.may_follow()) {
            let new = |dependency: &&Dependency| {
                dependency.restart && !service.life.started_on.contains_key(&dependency.service)
            };
            for Dependency { service: other, condition, .. } in service.spec.depends_on.iter().filter(new) {
                // Before that it gets the run that this one would have been started on.
                if self.has_come_as_far(other, *condition) {
                    found.push((name.clone(), other.clone(), self.services[other].life.newest));
                }
            }
        }
        for (name, other, run) in found {
            if let Some(service) = self.services.get_mut(&name) {
                service.life.started_on.insert(other, run);
            }
        }
    }

    /// Whether a service is to be run again because one that it depends on was, or is about to be.
    fn has_to_follow(&self, service: &Service) -> bool {
        let life = &service.life;
        if !life.may_follow() || life.newest < life.at_least {
            return false;
        }
        service.spec.depends_on.iter().filter(|dependency| dependency.restart).any(|dependency| {
            let Some(run) = life.started_on.get(&dependency.service) else { return false };
            self.services.get(&dependency.service).is_some_and(|other| {
                // One that its health has ended may never run again.
                let is_replaced = other.life.desired == Desired::Up
                    && other.life.newest < other.life.at_least
                    && (other.life.is_occupied() || other.life.actual == Actual::Completed);
                other.life.newest > *run || is_replaced
            })
        })
    }

    /// Whether a dependent that leaves as well still has a run: it goes first.
    fn is_needed_by_leaving(&self, name: &ServiceName) -> bool {
        self.services.values().any(|other| {
            // As the file has it now: what runs may be of several versions of it, and go round in a circle together.
            let depends = other.spec.depends_on.iter().any(|dependency| dependency.service == *name);
            depends && other.life.is_occupied() && other.life.is_leaving()
        })
    }

    /// What a service that waits is waiting for.
    pub(super) fn waiting_on(&self, name: &ServiceName) -> Vec<WaitingOn> {
        let Some(service) = self.services.get(name) else { return Vec::new() };
        let depends_on = service.spec.depends_on.iter();
        let open = depends_on.filter(|dependency| !self.has_come_as_far(&dependency.service, dependency.condition));
        open.map(|dependency| WaitingOn { service: dependency.service.clone(), condition: dependency.condition })
            .collect()
    }

    /// Whether a condition holds of a service.
    pub(super) fn has_come_as_far(&self, name: &ServiceName, condition: Condition) -> bool {
        self.holds(name, condition) == Holds::Yes
    }

    fn dependencies_hold(&self, spec: &ServiceSpec) -> Holds {
        let mut all = Holds::Yes;
        for dependency in &spec.depends_on {
            match self.holds(&dependency.service, dependency.condition) {
                Holds::Yes => {}
                Holds::NotYet => all = Holds::NotYet,
                never @ Holds::Never { .. } => return never,
            }
        }
        all
    }

    fn holds(&self, name: &ServiceName, condition: Condition) -> Holds {
        let never = |cause: String| Holds::Never { chain: vec![name.clone()], cause };
        let Some(service) = self.services.get(name) else { return never("is not in the project".to_owned()) };
        let life = &service.life;
        let is_satisfied = match (condition, service.spec.kind) {
            (Condition::Ready, Kind::Service | Kind::Forking) => life.is_ready(),
            (Condition::Ready | Condition::Completed, Kind::Job) => life.is_completed(),
            (Condition::Completed, Kind::Service | Kind::Forking) => life.is_completed(),
            (Condition::Started, Kind::Service | Kind::Forking) => life.is_started(),
            (Condition::Started, Kind::Job) => life.is_started() || life.is_completed(),
        };
        if is_satisfied {
            return Holds::Yes;
        }
        if life.desired == Desired::Down {
            return never("is stopped".to_owned());
        }
        match &life.actual {
            Actual::Blocked { chain, cause } => {
                let chain = std::iter::once(name.clone()).chain(chain.iter().cloned()).collect();
                Holds::Never { chain, cause: cause.clone() }
            }
            // What it came to is not the end of it.
            _ if life.newest < life.at_least => Holds::NotYet,
            Actual::Failed(Reason::Exited) => never(match life.last.as_ref().map(|last| last.status) {
                Some(ExitStatus::Code(code)) => format!("exited {code}"),
                Some(ExitStatus::Signal(_)) => {
                    format!("was killed by {}", life.last.as_ref().map_or(ExitStatus::Unknown, |last| last.status))
                }
                Some(ExitStatus::Unknown) | None => "ended, nobody saw how".to_owned(),
            }),
            Actual::Failed(Reason::CrashLoop { starts, .. }) => never(format!("crashed {starts} times in a row")),
            Actual::Failed(Reason::Unhealthy(why)) => never(format!("was not healthy: {why}")),
            Actual::Failed(Reason::Start(failure)) => never(format!("could not be started: {}", failure.message)),
            Actual::Completed => never("exited 0, and is not to be restarted".to_owned()),
            Actual::Stuck { .. } => never("could not be ended".to_owned()),
            Actual::Stopped
            | Actual::Waiting
            | Actual::Spawning
            | Actual::Starting { .. }
            | Actual::Ready { .. }
            | Actual::Unready
            | Actual::Stopping { .. }
            | Actual::Backoff { .. }
            | Actual::Unknown => Holds::NotYet,
        }
    }
}
