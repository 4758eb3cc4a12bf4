//! What people and programs ask for, by whom, and what has to hold after that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use locald_utils::name::{OwnerName, RunNumber, ServiceKey, ServiceName};
use locald_utils::protocol::{Action, Before, Desired, Owner};
use locald_utils::spec::Template;

use super::chance::{some_dependencies, some_health, some_policy, some_watch};
use super::{World, fleet_state};
use crate::core::fleet::{Effect, Ending, How, Meant};
use crate::core::goal::Goal;
use crate::core::lifecycle::Actual;

/// A request, and what it began with.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) what: What,
    pub(super) before: Before,
}

#[derive(Clone)]
pub(super) enum What {
    Start { services: Vec<ServiceName>, action: Action, force: bool, owner: Option<Owner>, meant: Meant },
    Stop { services: Option<Vec<ServiceName>>, at_once: bool, owner: Option<OwnerName> },
}

impl Asked {
    pub(super) fn new(what: What, goals: &[Goal]) -> Self {
        let changing = goals.iter().filter(|goal| !goal.unchanged);
        Self { what, before: changing.map(|goal| (goal.service.clone(), goal.run_before)).collect() }
    }
}

impl World {
    pub(super) fn some_services(&mut self) -> Vec<ServiceName> {
        let names: Vec<ServiceName> = self.specs.iter().map(|spec| spec.name.clone()).collect();
        names.into_iter().filter(|_| self.dice.one_in(2)).collect()
    }

    pub(super) fn apply(&mut self) {
        if self.dice.one_in(5) {
            self.edit_project();
        }
        let action = [Action::Up, Action::Start, Action::Restart][usize::try_from(self.dice.roll(3)).expect("small")];
        let services = self.some_services();
        let meant = match services.is_empty() || !self.dice.one_in(4) {
            true => Meant::Themselves,
            false => Meant::Dependencies,
        };
        let force = meant == Meant::Themselves && self.dice.one_in(3);
        let owner = self.dice.one_in(3).then(|| Owner {
            name: self.some_owner(),
            lease: self.dice.one_in(2).then(|| Duration::from_millis(1 + self.dice.roll(400))),
        });
        let who = owner.as_ref().map_or_else(String::new, |owner| format!(" for {} {:?}", owner.name, owner.lease));
        self.tell(format!("{action:?} {meant:?} {services:?}{}{who}", if force { " by force" } else { "" }));
        let done = BTreeMap::new();
        let (ports, by_name) = (self.ports.clone(), !services.is_empty());
        let how =
            How { action, force, resumes: None, done: &done, owner: owner.as_ref(), ports: &ports, by_name, meant };
        let goals = self.apply_to(&services, how);
        if meant == Meant::Dependencies && goals.iter().any(|goal| services.contains(&goal.service)) {
            self.fail("what was only to be prepared for is to be started");
        }
        self.asked = Some(Asked::new(What::Start { services, action, force, owner, meant }, &goals));
    }

    /// Somebody writes another project file, which is applied next.
    pub(super) fn edit_project(&mut self) {
        let index = usize::try_from(self.dice.roll(self.specs.len() as u64)).expect("small");
        let (earlier, rest) = self.specs.split_at_mut(index);
        let Some(edited) = rest.first_mut() else { return };
        let dice = &mut self.dice;
        match dice.roll(6) {
            5 => return self.deal_ports(),
            0 => edited.depends_on = some_dependencies(dice, earlier),
            1 => edited.health = some_health(dice, edited.kind),
            2 => edited.restart.when = some_policy(dice),
            3 => edited.watch = some_watch(dice),
            _ => drop(edited.env.insert("X".into(), Template::text(dice.roll(3).to_string()))),
        }
        let line = format!("{} is written anew", edited.name);
        self.tell(line);
    }

    /// Somebody gives the services other ports: each of them one of as many as there are services.
    pub(super) fn deal_ports(&mut self) {
        let mut numbers: Vec<u16> = (1..).take(self.specs.len()).collect();
        self.ports.clear();
        for spec in self.specs.iter().filter(|spec| spec.port.is_some()) {
            let index = usize::try_from(self.dice.roll(numbers.len() as u64)).expect("small");
            self.ports.insert(spec.name.clone(), numbers.swap_remove(index));
        }
        let line = format!("the ports are {:?}", self.ports);
        self.tell(line);
    }

    pub(super) fn some_owner(&mut self) -> OwnerName {
        ["ci", "agent"][usize::from(self.dice.one_in(2))].parse().expect("valid")
    }

    pub(super) fn apply_to(&mut self, services: &[ServiceName], how: How<'_>) -> Vec<Goal> {
        for name in self.specs.iter().map(|spec| spec.name.clone()).collect::<Vec<_>>() {
            let is_stuck = matches!(fleet_state(&self.fleet, &self.id, &name), Some(Actual::Stuck { .. }));
            if how.force && is_stuck && (services.is_empty() || services.contains(&name)) {
                let newest = self.newest(&name);
                if let Some(run) = self.runs.get_mut(&(name, newest)) {
                    run.is_abandoned = true;
                }
            }
        }
        let newest: BTreeMap<_, _> =
            self.specs.iter().map(|spec| (spec.name.clone(), self.newest(&spec.name))).collect();
        let goal_newest = newest.clone();
        let is_stuck =
            |name: &&ServiceName| matches!(fleet_state(&self.fleet, &self.id, name), Some(Actual::Stuck { .. }));
        let is_forced = |name: &ServiceName| how.force && (services.is_empty() || services.contains(name));
        let stuck: Vec<ServiceName> = newest.keys().filter(is_stuck).filter(|name| !is_forced(name)).cloned().collect();
        let loses = |name: &&ServiceName| {
            let begun = how.resumes.is_some_and(|before| before.contains_key(*name));
            begun && self.fleet.service(&self.key(name)).is_some_and(|service| service.owners.is_empty())
        };
        let is_lost: BTreeSet<ServiceName> = newest.keys().filter(loses).cloned().collect();
        self.kept_before = (self.now, self.kept.clone());
        let mut effects = Vec::new();
        let goals = match self.fleet.apply(self.now, self.project(), &newest, services, how, &mut effects) {
            Ok(goals) => goals,
            Err(failure) => self.fail(&failure.message),
        };
        self.saved = Some(self.project());
        for goal in &goals {
            let was_wanted = self.desired.get(&goal.service) == Some(&Desired::Up);
            // What has had its new run, or cannot have one, is not asked for.
            let has_begun = how
                .resumes
                .and_then(|before| before.get(&goal.service))
                .is_some_and(|run| *run < goal_newest[&goal.service]);
            let is_lost = is_lost.contains(&goal.service);
            let keeps = how.meant == Meant::Themselves || !was_wanted || is_lost;
            if keeps && (was_wanted || (!has_begun && !stuck.contains(&goal.service))) {
                let wanted_by = self.wanted_by.entry(goal.service.clone()).or_default();
                if !was_wanted {
                    wanted_by.clear();
                    self.left_by.remove(&goal.service);
                    self.dismissed.remove(&goal.service);
                }
                let (name, until) = how.owner.map_or((String::new(), None), |owner| {
                    (owner.name.to_string(), owner.lease.map(|lease| self.now + lease))
                });
                wanted_by.insert(name, until);
            }
            let desired = self.fleet.service(&self.key(&goal.service)).map(|service| service.life.desired);
            self.desired.insert(goal.service.clone(), desired.unwrap_or(Desired::Up));
        }
        for spec in &self.specs {
            self.desired.entry(spec.name.clone()).or_insert(Desired::Down);
        }
        if let Some(owner) = how.owner {
            self.lengthen(&owner.name);
        }
        self.obey(effects);
        goals
    }

    /// An owner wants what its services depend on for as long as these, if it wants that at all.
    fn lengthen(&mut self, owner: &OwnerName) {
        let now = self.now;
        let lease = |world: &Self, name: &ServiceName| {
            let until = *world.wanted_by.get(name)?.get(owner.as_str())?;
            until.is_none_or(|until| until > now).then_some(until.unwrap_or(Duration::MAX))
        };
        for _ in 0..self.specs.len() {
            for spec in self.specs.clone() {
                let Some(wanted) = lease(self, &spec.name) else { continue };
                for dependency in spec.depends_on {
                    let is_shorter = lease(self, &dependency.service).is_some_and(|until| until < wanted);
                    if let Some(by) = self.wanted_by.get_mut(&dependency.service).filter(|_| is_shorter) {
                        by.insert(owner.to_string(), (wanted != Duration::MAX).then_some(wanted));
                    }
                }
            }
        }
    }

    pub(super) fn ask_down(&mut self) {
        let services = if self.dice.one_in(2) { None } else { Some(self.some_services()) };
        let at_once = self.dice.one_in(4);
        let owner = self.dice.one_in(3).then(|| self.some_owner());
        let who = owner.as_ref().map_or_else(String::new, |owner| format!(" for {owner}"));
        self.tell(format!("down {services:?}{}{who}", if at_once { " at once" } else { "" }));
        let goals = self.stop_services(services.as_deref(), at_once, owner.as_ref(), None);
        self.asked = Some(Asked::new(What::Stop { services, at_once, owner }, &goals));
    }

    pub(super) fn stop_services(
        &mut self,
        services: Option<&[ServiceName]>,
        at_once: bool,
        owner: Option<&OwnerName>,
        resumes: Option<&Before>,
    ) -> Vec<Goal> {
        let stuck: Vec<ServiceKey> = self.fleet.projects().get(&self.id).map_or_else(Vec::new, |project| {
            let is_stuck =
                |name: &&ServiceName| matches!(fleet_state(&self.fleet, &self.id, name), Some(Actual::Stuck { .. }));
            project.order.iter().filter(is_stuck).map(|name| self.key(name)).collect()
        });
        let mut effects = Vec::new();
        // Refused when nothing of the project is known, which is right.
        let how = Ending { at_once, owner, resumes };
        let goals = self.fleet.stop(self.now, &self.id.clone(), services, how, &mut effects);
        let is_refused = goals.is_err();
        let goals = goals.unwrap_or_default();
        for effect in &effects {
            let has_wanted = |owner: &OwnerName, name| {
                self.wanted_by.get(name).is_some_and(|by| by.contains_key(owner.as_str()))
                    || self.left_by.get(name).is_some_and(|by| by.contains(owner.as_str()))
            };
            if let (Effect::Stop(key, _, true), Some(owner), None) = (effect, owner, resumes)
                && !has_wanted(owner, &key.service)
            {
                self.fail(&format!("{owner} hurries {}, and has never wanted it", key.service));
            }
            let is_first = owner.is_none() && resumes.is_none() && !at_once;
            if let Effect::Stop(key, run, true) = effect
                && is_first
                && !stuck.contains(key)
                && !self.dismissed.contains(&key.service)
                && self.fleet.service(key).is_some_and(|service| {
                    let life = &service.life;
                    life.newest == *run && !life.is_urgent && !life.abandoned.contains_key(run)
                })
            {
                self.fail(&format!("the first stop of {} cuts it short", key.service));
            }
            if let Effect::Stop(key, run, true) = effect
                && resumes.is_some()
                && !at_once
                && !stuck.contains(key)
                && self.fleet.service(key).is_some_and(|service| service.life.newest == *run && !service.life.is_urgent)
            {
                self.fail(&format!("a stop of {} that is carried on was cut short", key.service));
            }
        }
        let about = services.map_or_else(|| self.specs.iter().map(|spec| spec.name.clone()).collect(), <[_]>::to_vec);
        for name in about.iter().filter(|_| !is_refused) {
            if owner.is_none() {
                self.dismissed.insert(name.clone());
            }
            let Some(wanted_by) = self.wanted_by.get_mut(name) else { continue };
            match owner {
                None => self.left_by.entry(name.clone()).or_default().extend(std::mem::take(wanted_by).into_keys()),
                Some(owner) => {
                    if wanted_by.remove(owner.as_str()).is_some() {
                        self.left_by.entry(name.clone()).or_default().insert(owner.to_string());
                    }
                }
            }
        }
        for goal in &goals {
            self.desired.insert(goal.service.clone(), Desired::Down);
        }
        self.obey(effects);
        goals
    }

    /// A service is wanted as long as somebody wants it, and no longer.
    pub(super) fn check_owners(&self) {
        for (name, wanted_by) in &self.wanted_by {
            let is_wanted = wanted_by.values().any(|until| until.is_none_or(|until| self.now < until));
            let desired = self.fleet.service(&self.key(name)).map(|service| service.life.desired);
            let desired = desired.unwrap_or(Desired::Down);
            if is_wanted != (desired == Desired::Up) {
                self.fail(&format!("{name} is wanted by {wanted_by:?}, and {desired:?}"));
            }
        }
    }

    /// Whoever waits has the next daemon carry on with what was asked.
    pub(super) fn ask_again(&mut self) {
        let Some(Asked { what, before }) = self.asked.clone() else { return };
        self.tell(format!("carry on, from {before:?}"));
        match what {
            What::Stop { services, at_once, owner } => {
                drop(self.stop_services(services.as_deref(), at_once, owner.as_ref(), Some(&before)));
            }
            What::Start { services, action, force, owner, meant } => {
                let stands = |world: &Self, name: &ServiceName| {
                    let life = &world.fleet.service(&world.key(name))?.life;
                    Some((life.desired, life.is_leaving(), matches!(life.actual, Actual::Failed(_))))
                };
                // What has had its new run is left as it is, whatever came of that.
                let is_begun = |(name, run): &(&ServiceName, &RunNumber)| {
                    self.fleet.service(&self.key(name)).is_some_and(|service| service.life.newest > **run)
                };
                let begun: Vec<ServiceName> = before.iter().filter(is_begun).map(|(name, _)| name.clone()).collect();
                let stood: Vec<_> = begun.iter().map(|name| stands(self, name)).collect();
                let (done, owner) = (BTreeMap::new(), owner.as_ref());
                let ports = self.ports.clone();
                let by_name = !services.is_empty();
                let how =
                    How { action, force, resumes: Some(&before), done: &done, owner, ports: &ports, by_name, meant };
                self.apply_to(&services, how);
                for (name, stood) in begun.iter().zip(stood) {
                    if stands(self, name) != stood && !self.has_to_follow(name) {
                        self.fail(&format!("{name} has had its new run, and is asked for another"));
                    }
                }
            }
        }
    }

    /// Whether something that a service follows has been run again since, or is about to be.
    pub(super) fn has_to_follow(&self, name: &ServiceName) -> bool {
        let Some(run) = self.runs.get(&(name.clone(), self.newest(name))) else { return false };
        run.spec.depends_on.iter().filter(|dependency| dependency.restart).any(|dependency| {
            let other = self.fleet.service(&self.key(&dependency.service));
            let is_replaced = other.is_some_and(|other| other.life.newest < other.life.at_least);
            is_replaced || self.newest(&dependency.service) > run.started_on[&dependency.service]
        })
    }
}
