//! All services of all projects: what is asked of them, and what happens to them. What follows from that is for [`Project`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use locald_utils::name::{OwnerName, ProjectId, ProjectName, RunNumber, ServiceKey, ServiceName};
use locald_utils::protocol::{Action, Before, Desired, Failure, FailureCode, OutcomeResult, Owner, WaitFor, WaitingOn};
use locald_utils::record::Ended;
use locald_utils::selection;
use locald_utils::spec::{Ports, ProjectSpec, ServiceSpec};
use locald_utils::time::UnixMillis;

use super::attempts::{Attempts, Tally};
use super::goal::{Goal, Want, judge};
use super::lifecycle::{Actual, Ahead, Lifecycle, News, Resting};
use super::ownership::{Kept, Owners};
use super::project::{Project, Service};
use super::watching::{Sight, Watching};
use super::{Time, plan};

/// What the fleet orders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Start this run of the service, with the spec in [`Lifecycle::running`].
    Spawn(ServiceKey, RunNumber),
    /// End this run; `true` without its grace period.
    Stop(ServiceKey, RunNumber, bool),
    /// Look at the files that the service watches, and tell [`Fleet::see`].
    Look(ServiceKey),
    /// The service is run again because this file has changed.
    Renewed(ServiceKey, String),
    /// The last owner of the service has gone, or its lease is over, and it is to be ended.
    Unwanted(ServiceKey),
    /// Something about the service is different from before.
    Changed(ServiceKey),
    /// Nothing of the project is left, and it is to be forgotten.
    Over(ProjectId),
}

/// How services are to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct How<'a> {
    /// What becomes of those that run already.
    pub(crate) action: Action,
    /// Whether to start also beside what is left of a run that cannot be ended.
    pub(crate) force: bool,
    /// What an earlier daemon began with, when it was asked for that already.
    pub(crate) resumes: Option<&'a Before>,
    /// What each job with inputs has done last: see [`ServiceSpec::work`].
    pub(crate) done: &'a BTreeMap<ServiceName, String>,
    /// As whom.
    pub(crate) owner: Option<&'a Owner>,
    /// The ports of the services, as far as they are known.
    pub(crate) ports: &'a Ports,
    /// Whether somebody has named them, rather than meaning all, or those of a profile.
    pub(crate) by_name: bool,
    /// Whether those that are named are meant themselves, or only what they depend on.
    pub(crate) meant: Meant,
}

/// How services are to be ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ending<'a> {
    /// Without what is left of their grace period.
    pub(crate) at_once: bool,
    /// Only those that nobody but this owner wants.
    pub(crate) owner: Option<&'a OwnerName>,
    /// What an earlier daemon began with, when it was asked for that already.
    pub(crate) resumes: Option<&'a Before>,
}

/// What is to be started of the services that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meant {
    /// They, and what they depend on.
    Themselves,
    /// Only what they depend on, as far as they need it.
    Dependencies,
}

/// What an earlier daemon remembered of a service.
#[derive(Clone, Debug)]
pub(crate) struct Remembered {
    /// Which service.
    pub(crate) name: ServiceName,
    /// Its newest run.
    pub(crate) newest: RunNumber,
    /// What was wanted of it.
    pub(crate) desired: Desired,
    /// How it rested.
    pub(crate) resting: Option<Resting>,
    /// How its newest run ended.
    pub(crate) last: Option<Arc<Ended>>,
    /// The digest of the spec of that run.
    pub(crate) ran: Option<String>,
    /// The port that it was given.
    pub(crate) port: Option<u16>,
    /// How often it was started of late.
    pub(crate) tally: Tally,
    /// What was to become of it.
    pub(crate) ahead: Ahead,
    /// Who wants it.
    pub(crate) owners: Kept,
}

/// A run that has a shim, or had one until it died.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The service.
    pub(crate) key: ServiceKey,
    /// Which of its runs.
    pub(crate) run: RunNumber,
    /// The project's name when the run started.
    pub(crate) project_name: ProjectName,
    /// The project's directory.
    pub(crate) project_dir: PathBuf,
}

/// Everything the daemon supervises.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fleet {
    projects: BTreeMap<ProjectId, Project>,
}

impl Fleet {
    // ---- looking

    /// The projects by id.
    pub(crate) fn projects(&self) -> &BTreeMap<ProjectId, Project> {
        &self.projects
    }

    /// A service, if it is known.
    pub(crate) fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.projects.get(&key.project)?.services.get(&key.service)
    }

    /// Whether anything runs, or shall.
    pub(crate) fn is_idle(&self) -> bool {
        self.projects.is_empty()
    }

    /// How many runs there are, or may be.
    pub(crate) fn runs(&self) -> usize {
        self.services().filter(|(_, service)| service.life.is_occupied()).count()
    }

    /// Whether some runs have not been heard of yet.
    pub(crate) fn has_unknown(&self) -> bool {
        self.services().any(|(_, service)| {
            // What was given up is given up because something is left.
            service.life.actual == Actual::Unknown || service.life.abandoned.values().any(Vec::is_empty)
        })
    }

    fn services(&self) -> impl Iterator<Item = (ServiceKey, &Service)> {
        self.projects.iter().flat_map(|(id, project)| {
            project
                .services
                .iter()
                .map(|(name, service)| (ServiceKey { project: id.clone(), service: name.clone() }, service))
        })
    }

    /// When [`Fleet::tick`] will change something.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let of = |service: &Service| [service.life.deadline(), service.look_at(), service.owners.deadline()];
        self.services().flat_map(|(_, service)| of(service)).flatten().min()
    }

    /// What a service that waits is waiting for.
    pub(crate) fn waiting_on(&self, key: &ServiceKey) -> Vec<WaitingOn> {
        self.projects.get(&key.project).map_or_else(Vec::new, |project| project.waiting_on(&key.service))
    }

    /// Judges a goal. `None` while it is open. A service that is gone has nothing left.
    pub(crate) fn judge(&self, project: &ProjectId, goal: &Goal) -> Option<OutcomeResult> {
        let known = self.projects.get(project);
        let has_come_as_far =
            |condition| known.is_some_and(|project| project.has_come_as_far(&goal.service, condition));
        if goal.enough.is_some_and(has_come_as_far) {
            return Some(OutcomeResult::Done);
        }
        match known.and_then(|project| project.services.get(&goal.service)) {
            // A run that ended while the request was open, and left a port with somebody, has not ended well.
            Some(Service { life, .. })
                if goal.want == Want::Down
                    && !goal.unchanged
                    && !life.has_left()
                    && life.newest >= goal.run_before
                    && life.last.as_ref().is_some_and(|last| !last.survivors.is_empty()) =>
            {
                Some(OutcomeResult::Failed)
            }
            Some(service) => judge(goal.want, &service.spec, &service.life),
            None => Some(match goal.want {
                Want::Down | Want::Wait(WaitFor::Stopped) => OutcomeResult::Done,
                Want::Up => OutcomeResult::Superseded,
                Want::Wait(WaitFor::Ready | WaitFor::Completed) => OutcomeResult::Failed,
            }),
        }
    }

    // ---- requests

    /// Puts a project back as an earlier daemon left it; `time` tells when something was. Runs are added by [`Fleet::adopt`].
    pub(crate) fn restore(
        &mut self,
        spec: ProjectSpec,
        ports: &Ports,
        services: impl IntoIterator<Item = Remembered>,
        time: impl Fn(UnixMillis) -> Time,
    ) {
        let id = spec.id.clone();
        self.write(spec, ports, &BTreeMap::new(), &mut Vec::new());
        let Some(project) = self.projects.get_mut(&id) else { return };
        for Remembered { name, newest, desired, resting, last, ran, port, tally, ahead, owners } in services {
            if let Some(service) = project.services.get_mut(&name) {
                service.life = Lifecycle::new(newest);
                service.life.desired = desired;
                service.life.restore(resting, last);
                service.life.ran = ran;
                service.life.ports = service.spec.concerned(ports);
                service.life.ports.extend(port.map(|port| (name.clone(), port)));
                service.life.attempts = Attempts::restore(&tally, &time);
                service.life.resume(&ahead, &time);
                service.owners = Owners::restore(&owners, &time);
            }
        }
        // `down` was under way: what is left of it goes on.
        project.is_ending = project.services.values().all(|service| service.life.desired == Desired::Down);
    }

    /// Takes over a run that an earlier daemon started. Until its shim answers it is unknown.
    ///
    /// Whatever runs is taken over: a service that is no longer written, and one of a project that nothing else is known of.
    pub(crate) fn adopt(&mut self, found: &Found) {
        let project = self.projects.entry(found.key.project.clone()).or_insert_with(|| Project {
            name: found.project_name.clone(),
            dir: found.project_dir.clone(),
            file: found.project_dir.join(locald_utils::config::FILE_NAME),
            order: Vec::new(),
            services: BTreeMap::new(),
            ports: Ports::new(),
            is_ending: false,
        });
        let name = &found.key.service;
        let service = project.services.entry(name.clone()).or_insert_with(|| {
            project.order.push(name.clone());
            let mut life = Lifecycle::new(found.run);
            life.desired = Desired::Up;
            let (watching, owners) = (Watching::default(), Owners::default());
            Service { spec: Arc::new(ServiceSpec::unknown(name.clone())), life, watching, owners }
        });
        service.life.adopt(found.run, service.spec.clone());
        project.is_ending &= service.life.desired == Desired::Down;
    }

    /// Takes note of a run that ended while no daemon was there. What follows from it waits for [`Fleet::settle`], because
    /// its neighbours may not have been taken over yet.
    pub(crate) fn replay(&mut self, now: Time, ended: Arc<Ended>, effects: &mut Vec<Effect>) {
        let (key, run) = (ended.run.key(), ended.run.number);
        let Some(project) = self.projects.get_mut(&key.project) else { return };
        let Some(service) = project.services.get_mut(&key.service) else { return };
        // A newer run, or one that is alive, has made this one history.
        if run >= service.life.newest && !service.life.is_occupied() {
            service.life.adopt(run, service.spec.clone());
            service.life.hear(now, run, News::Ended(ended));
            effects.push(Effect::Changed(key));
        }
    }

    /// Takes the project as it is written now. `newest` has the last run number of services seen for the first time.
    fn write(
        &mut self,
        spec: ProjectSpec,
        ports: &Ports,
        newest: &BTreeMap<ServiceName, RunNumber>,
        effects: &mut Vec<Effect>,
    ) {
        let ProjectSpec { id, name, dir, file, services } = spec;
        let old = self.projects.remove(&id);
        let (mut old_services, old_order) = old.map(|old| (old.services, old.order)).unwrap_or_default();
        let mut order = Vec::new();
        let mut kept = BTreeMap::new();
        for spec in services {
            let spec = Arc::new(spec);
            let name = spec.name.clone();
            let service = match old_services.remove(&name) {
                Some(service) => {
                    // What it watches is true of it at once, whether it is asked for or not.
                    if service.spec.watch != spec.watch {
                        effects.push(Effect::Changed(ServiceKey { project: id.clone(), service: name.clone() }));
                    }
                    Service { spec, ..service }
                }
                None => {
                    let life = Lifecycle::new(newest.get(&name).copied().unwrap_or_default());
                    Service { spec, life, watching: Watching::default(), owners: Owners::default() }
                }
            };
            order.push(name.clone());
            kept.insert(name, service);
        }
        // What is no longer written and still runs stays until it is ended.
        for name in old_order {
            if let Some(service) = old_services.remove(&name).filter(|service| service.life.has_left()) {
                order.push(name.clone());
                kept.insert(name, service);
            }
        }
        let ports = ports.clone();
        self.projects.insert(id, Project { name, dir, file, order, services: kept, ports, is_ending: false });
    }

    /// Starts services and what they depend on. Returns what has to come about.
    ///
    /// # Errors
    /// When a name is unknown or the dependencies are impossible; then nothing has changed.
    pub(crate) fn apply(
        &mut self,
        now: Time,
        spec: ProjectSpec,
        newest: &BTreeMap<ServiceName, RunNumber>,
        named: &[ServiceName],
        how: How<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<Vec<Goal>, Failure> {
        let id = spec.id.clone();
        let mut about = selection::with_dependencies(&spec, named)?;
        let needed = plan::needed(&spec, &about);
        match how.meant {
            Meant::Dependencies => about.retain(|name| !named.contains(name)),
            Meant::Themselves if how.action == Action::Restart => {
                // Those that follow are a part of what was asked, as far as they run.
                about.extend(plan::followers(&spec, named).into_iter().filter(|name| self.is_wanted(&id, name)));
            }
            Meant::Themselves => {}
        }
        self.write(spec, how.ports, newest, effects);
        let Some(project) = self.projects.get_mut(&id) else { return Ok(Vec::new()) };
        let mut goals = Vec::new();
        for name in project.order.clone() {
            if !about.contains(&name) {
                continue;
            }
            let Some(service) = project.services.get_mut(&name) else { continue };
            let before = how.resumes.and_then(|before| before.get(&name)).copied();
            let run_before = before.unwrap_or(service.life.newest);
            let unchanged = before.is_none()
                && service.life.desired == Desired::Up
                && judge(Want::Up, &service.spec, &service.life) == Some(OutcomeResult::Done);
            let is_meant = named.is_empty() || named.contains(&name);
            let is_named = is_meant && how.by_name;
            let enough = needed.get(&name).copied().filter(|_| how.meant == Meant::Dependencies);
            if how.force && is_meant {
                service.life.abandon();
            }
            // It has had its new run, and whatever came of that, or was wanted since, is what became of the request.
            let has_begun = before.is_some_and(|before| before < service.life.newest);
            let was_wanted = service.life.desired == Desired::Up;
            // What is left of the last run refuses the next one. That is no wish for later.
            if !has_begun && !matches!(service.life.actual, Actual::Stuck { .. }) {
                // Who starts or restarts it by name wants it done again.
                if how.action == Action::Up || !is_named {
                    service.recall(how.done.get(&name));
                }
                service.ask_up(how.action, is_meant, is_named, how.ports);
            }
            // Who only needs it for a while, and finds it running, does not keep it.
            let is_lost = before.is_some() && service.owners.is_empty();
            let keeps = how.meant == Meant::Themselves || !was_wanted || is_lost;
            if service.life.desired == Desired::Up && keeps {
                let owner = how.owner.map(|owner| (&owner.name, owner.lease.map(|lease| now + lease)));
                match before {
                    Some(_) if was_wanted => service.owners.add(owner),
                    Some(_) | None => service.owners.ask(owner, was_wanted),
                }
            }
            let unchanged = unchanged && !service.life.is_leaving();
            goals.push(Goal { service: name.clone(), want: Want::Up, run_before, unchanged, enough });
            effects.push(Effect::Changed(ServiceKey { project: id.clone(), service: name }));
        }
        if let Some(owner) = how.owner {
            project.keep_what_is_needed(&owner.name);
        }
        self.settle(now, &id, effects);
        for goal in &mut goals {
            // It was as it should be, and follows something that was not.
            let key = ServiceKey { project: id.clone(), service: goal.service.clone() };
            goal.unchanged &= !self.service(&key).is_some_and(|service| service.life.is_leaving());
        }
        Ok(goals)
    }

    /// Ends services, all of them for `None`. Returns what has to come about; for an owner that leaves nothing of what others want.
    ///
    /// # Errors
    /// [`FailureCode::NotRunning`] when the project is not known, [`FailureCode::NotFound`] when a service is not.
    pub(crate) fn stop(
        &mut self,
        now: Time,
        id: &ProjectId,
        named: Option<&[ServiceName]>,
        how: Ending<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<Vec<Goal>, Failure> {
        let Ending { at_once, owner, resumes } = how;
        let project = self.known(id)?;
        let about = match named {
            None => project.order.clone(),
            Some(named) => project.check(named)?.to_vec(),
        };
        project.is_ending |= named.is_none() && owner.is_none();
        let (mut goals, mut has_left) = (Vec::new(), false);
        for name in about {
            let Some(service) = project.services.get_mut(&name) else { continue };
            let before = resumes.and_then(|before| before.get(&name)).copied();
            let was_dismissed = service.owners.is_dismissed();
            match owner {
                None => service.owners.dismiss(),
                Some(owner) => {
                    let is_owner = service.owners.leave(owner);
                    has_left |= is_owner;
                    effects.extend(
                        is_owner.then(|| Effect::Changed(ServiceKey { project: id.clone(), service: name.clone() })),
                    );
                    // It has asked before, and sees to the end now.
                    let goes_without = service.life.desired == Desired::Down
                        && service.owners.has_left(owner)
                        && service.life.has_left();
                    if before.is_none() && !(is_owner && service.owners.is_empty()) && !goes_without {
                        continue;
                    }
                }
            }
            let life = &mut service.life;
            // A job that has completed is not stopped by this, and neither is what failed or never got to start.
            let is_over = matches!(life.actual, Actual::Completed | Actual::Failed(_) | Actual::Blocked { .. });
            let unchanged = before.is_none() && !life.has_left() && (life.desired == Desired::Down || is_over);
            let run_before = before.unwrap_or(life.newest);
            goals.push(Goal { service: name.clone(), want: Want::Down, run_before, unchanged, enough: None });
            // That an owner leaves is no request to hurry, before or after another.
            let is_asked_again = life.desired == Desired::Down && was_dismissed && owner.is_none() && resumes.is_none();
            life.want_down(at_once);
            let key = ServiceKey { project: id.clone(), service: name };
            // A stop under way is shortened when it is asked for again, one that failed is tried again.
            match life.actual {
                Actual::Stopping { .. } if at_once || is_asked_again => {
                    effects.push(Effect::Stop(key.clone(), life.newest, true));
                }
                Actual::Stuck { .. } => effects.push(Effect::Stop(key.clone(), life.newest, true)),
                Actual::Stopping { .. }
                | Actual::Stopped
                | Actual::Waiting
                | Actual::Blocked { .. }
                | Actual::Spawning
                | Actual::Starting { .. }
                | Actual::Ready { .. }
                | Actual::Unready
                | Actual::Backoff { .. }
                | Actual::Completed
                | Actual::Failed(_)
                | Actual::Unknown => {}
            }
            for &run in life.abandoned.keys() {
                effects.push(Effect::Stop(key.clone(), run, true));
            }
            effects.push(Effect::Changed(key));
        }
        project.end_without_owners(has_left);
        self.settle(now, id, effects);
        Ok(goals)
    }

    /// Forgets a project of which nothing is left.
    pub(crate) fn forget(&mut self, id: &ProjectId) {
        self.projects.remove(id);
    }

    /// Says what has to come about for a wait, which changes nothing.
    ///
    /// # Errors
    /// As [`Fleet::stop`].
    pub(crate) fn wait(&mut self, id: &ProjectId, named: &[ServiceName], until: WaitFor) -> Result<Vec<Goal>, Failure> {
        let project = self.known(id)?;
        let about = if named.is_empty() { project.order.clone() } else { project.check(named)?.to_vec() };
        let goals = about.into_iter().filter_map(|name| {
            let service = project.services.get(&name)?;
            let want = Want::Wait(until);
            let unchanged = judge(want, &service.spec, &service.life) == Some(OutcomeResult::Done);
            Some(Goal { service: name, want, run_before: service.life.newest, unchanged, enough: None })
        });
        Ok(goals.collect())
    }

    fn is_wanted(&self, id: &ProjectId, name: &ServiceName) -> bool {
        let service = self.projects.get(id).and_then(|project| project.services.get(name));
        service.is_some_and(|service| service.life.desired == Desired::Up)
    }

    fn known(&mut self, id: &ProjectId) -> Result<&mut Project, Failure> {
        self.projects.get_mut(id).ok_or_else(|| Failure::new(FailureCode::NotRunning, "nothing of this project runs"))
    }

    // ---- what happens

    /// Takes news of a run.
    pub(crate) fn hear(&mut self, now: Time, key: &ServiceKey, run: RunNumber, news: News, effects: &mut Vec<Effect>) {
        let Some(service) =
            self.projects.get_mut(&key.project).and_then(|project| project.services.get_mut(&key.service))
        else {
            return;
        };
        let found = match &news {
            News::Found { spec, .. } => Some(spec.clone()),
            News::Started { .. }
            | News::Ready
            | News::Unready(_)
            | News::Late(_)
            | News::Checked(_)
            | News::StartFailed(_)
            | News::LeaderExited(_)
            | News::Forked { .. }
            | News::Stopping { .. }
            | News::Survivors(_)
            | News::Ended(_)
            | News::Silent
            | News::Degraded => None,
        };
        if service.life.hear(now, run, news) {
            // Nothing but its run tells what a service is that is no longer written.
            if let Some(spec) = found.filter(|_| service.spec.is_unknown()) {
                service.spec = spec;
            }
            effects.push(Effect::Changed(key.clone()));
            if let Some(file) = service.overdue()
                && service.renew(&file)
            {
                effects.push(Effect::Renewed(key.clone(), file));
            }
            self.settle(now, &key.project, effects);
        }
    }

    /// Takes note that something stirs where a service has files that it watches.
    pub(crate) fn stir(&mut self, now: Time, key: &ServiceKey) {
        if let Some(service) = self.service_mut(key).filter(|service| service.is_watching()) {
            service.watching.stir(now);
        }
    }

    /// Takes what was seen of the files that a service watches, and why not all of them can be.
    pub(crate) fn see(
        &mut self,
        now: Time,
        key: &ServiceKey,
        (sight, problem): (Sight, Option<String>),
        effects: &mut Vec<Effect>,
    ) {
        let Some(service) = self.service_mut(key) else { return };
        service.watching.blind = problem;
        let changed =
            service.watching.see(sight, (service.life.spawned, service.life.over), service.life.unseen_since());
        effects.push(Effect::Changed(key.clone()));
        if let Some(file) = changed.filter(|file| service.renew(file)) {
            effects.push(Effect::Renewed(key.clone(), file));
            self.settle(now, &key.project, effects);
        }
    }

    /// Takes note of the inputs that a run of a job has worked on; `None` when nobody can say which.
    pub(crate) fn note_inputs(&mut self, key: &ServiceKey, run: RunNumber, digest: Option<String>) {
        let life = self.service_mut(key).map(|service| &mut service.life).filter(|life| life.newest == run);
        let inputs = life.and_then(|life| life.running.as_mut()).and_then(|spec| Arc::make_mut(spec).inputs.as_mut());
        if let Some(inputs) = inputs {
            inputs.digest = digest;
        }
    }

    fn service_mut(&mut self, key: &ServiceKey) -> Option<&mut Service> {
        self.projects.get_mut(&key.project)?.services.get_mut(&key.service)
    }

    /// Takes note of the time.
    pub(crate) fn tick(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let mut moved = Vec::new();
        for (id, project) in &mut self.projects {
            let mut has_left = false;
            for (name, service) in &mut project.services {
                let key = || ServiceKey { project: id.clone(), service: name.clone() };
                if service.owners.expire(now) {
                    effects.push(Effect::Changed(key()));
                    if service.owners.is_empty() && service.life.desired == Desired::Up {
                        service.life.want_down(false);
                        effects.push(Effect::Unwanted(key()));
                        has_left = true;
                        moved.push(id.clone());
                    }
                }
                if service.is_to_look(now) {
                    effects.push(Effect::Look(key()));
                }
                if service.life.tick(now) {
                    effects.push(Effect::Changed(key()));
                    moved.push(id.clone());
                }
            }
            project.end_without_owners(has_left);
        }
        moved.dedup();
        for id in moved {
            self.settle(now, &id, effects);
        }
    }

    /// Takes every step that can be taken now.
    pub(crate) fn settle(&mut self, now: Time, id: &ProjectId, effects: &mut Vec<Effect>) {
        if let Some(project) = self.projects.get_mut(id) {
            project.settle(now, id, effects);
        }
    }
}
