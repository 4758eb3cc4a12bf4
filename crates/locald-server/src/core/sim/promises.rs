//! What must hold after every step, and in the end, by the world's own books.

use std::collections::BTreeMap;

use locald_utils::name::{RunNumber, ServiceName};
use locald_utils::protocol::{Action, OutcomeResult};
use locald_utils::record::ExitStatus;
use locald_utils::spec::{Condition, Dependency, Kind, RestartWhen};

use super::{Run, World, fleet_state};
use crate::core::fleet::{Ending, How, Meant};
use crate::core::goal::{Want, judge};
use crate::core::lifecycle::Actual;

impl World {
    /// Whoever runs, or has come to rest, has seen the files as they are.
    pub(super) fn check_files(&self) {
        for spec in &self.specs {
            let Some(service) = self.fleet.service(&self.key(&spec.name)) else { continue };
            let Some(run) = self.runs.get(&(spec.name.clone(), service.life.newest)) else { continue };
            let counts = match service.life.actual {
                Actual::Starting { .. } | Actual::Ready { .. } | Actual::Unready => !service.life.is_leaving(),
                Actual::Completed | Actual::Failed(_) => service.life.newest >= service.life.at_least,
                _ => false,
            };
            let is_watched = service.is_watching() && service.watching.problem().is_none();
            // What has never run its first instruction tells no time with which a file could be compared.
            let first = self.lookouts.get(&spec.name).map_or(0, |lookout| lookout.first);
            let is_told = run.has_started || run.version >= first;
            if counts && is_watched && is_told && run.version != self.version(&spec.name) {
                let (seen, is) = (run.version, self.version(&spec.name));
                self.fail(&format!("{} has seen version {seen} of its files, which are at {is}", spec.name));
            }
        }
    }

    /// From the world's books: the dependency's newest run has been told ready and nothing since, or told completed.
    /// A port is not given to a service as long as another is about to give it back.
    pub(super) fn check_port(&self, name: &ServiceName) {
        let Some(port) = self.ports.get(name) else { return };
        for ((other, number), run) in &self.runs {
            let Some(service) = self.fleet.service(&self.key(other)) else { continue };
            let leaves = service.life.is_leaving() && !matches!(service.life.actual, Actual::Stuck { .. });
            let is_current = service.life.newest == *number && !run.is_over && !run.is_abandoned;
            if other != name && run.port == Some(*port) && is_current && leaves {
                self.fail(&format!("{name} is started although {other} leaves port {port}"));
            }
        }
    }

    pub(super) fn check_dependency(&self, name: &ServiceName, dependency: &Dependency) {
        let number = self.newest(&dependency.service);
        let Some(run) = self.runs.get(&(dependency.service.clone(), number)) else {
            self.fail(&format!("{name} was started before {} ever was", dependency.service));
        };
        let runs = !run.is_over && !run.is_known_to_stop;
        let is_healthy = run.spec.checks().is_empty() || run.is_known_healthy;
        let has_completed = run.is_over && run.end == Some(ExitStatus::Code(0));
        // Without checks, the end of the launcher makes it ready.
        let is_healthy =
            is_healthy && (run.spec.kind != Kind::Forking || !run.spec.checks().is_empty() || run.is_known_to_fork);
        let holds = match (dependency.condition, run.spec.kind) {
            (Condition::Ready, Kind::Service | Kind::Forking) => runs && is_healthy,
            (Condition::Started, Kind::Service | Kind::Forking) => runs,
            (Condition::Ready | Condition::Completed, _) => has_completed,
            (Condition::Started, Kind::Job) => runs || has_completed,
        };
        if !holds {
            self.fail(&format!("{name} was started although {} is not {:?}", dependency.service, dependency.condition));
        }
    }

    /// A run that is not healthy is ended, if it is late or its policy says so, as soon as nobody who leaves needs it.
    pub(super) fn check_verdict(&self, key: &(ServiceName, RunNumber), is_late: bool) {
        let run = &self.runs[key];
        let is_to_end = is_late || run.spec.restart.when != RestartWhen::No;
        let is_needed = self.specs.iter().any(|other| {
            let depends = other.depends_on.iter().any(|dependency| dependency.service == key.0);
            depends && self.fleet.service(&self.key(&other.name)).is_some_and(|service| service.life.has_left())
        });
        let is_unknown = matches!(fleet_state(&self.fleet, &self.id, &key.0), Some(Actual::Unknown | Actual::Spawning));
        if is_to_end && !run.is_stopping && !is_needed && !is_unknown && !run.is_abandoned {
            self.fail(&format!("{}{} is not healthy and goes on", key.0, key.1));
        }
    }

    pub(super) fn check(&self) {
        for spec in &self.specs {
            let Some(service) = self.fleet.service(&self.key(&spec.name)) else { continue };
            let is_blocked =
                |name: &ServiceName| matches!(fleet_state(&self.fleet, &self.id, name), Some(Actual::Blocked { .. }));
            let on_blocked = service.spec.depends_on.iter().any(|dependency| is_blocked(&dependency.service));
            if service.life.actual == Actual::Waiting && on_blocked {
                self.fail(&format!("{} waits for what can never be", spec.name));
            }
            if is_blocked(&spec.name) && judge(Want::Up, &service.spec, &service.life).is_none() {
                self.fail(&format!("whoever asks for {} waits for what can never be", spec.name));
            }
        }
        for ((name, number), run) in &self.runs {
            if run.is_over {
                self.check_what_rests(name, *number, run);
                continue;
            }
            let Some(service) = self.fleet.service(&self.key(name)) else {
                self.fail(&format!("{name}{number} is alive and the daemon has forgotten it"));
            };
            if run.is_abandoned && !service.life.abandoned.contains_key(number) {
                self.fail(&format!("what is left of {name}{number} is not shown"));
            }
            // A new run of what it was started on is followed, if the file says so now.
            let is_current = !run.is_abandoned
                && matches!(service.life.actual, Actual::Starting { .. } | Actual::Ready { .. } | Actual::Unready);
            for dependency in service.spec.depends_on.iter().filter(|dependency| dependency.restart && is_current) {
                let is_newer =
                    run.started_on.get(&dependency.service).is_some_and(|run| self.newest(&dependency.service) > *run);
                if is_newer && !service.life.is_leaving() {
                    self.fail(&format!("{name}{number} stays although {} has been run again", dependency.service));
                }
            }
            if !run.is_abandoned && (service.life.newest != *number || !service.life.is_occupied()) {
                self.fail(&format!("{name}{number} is alive and counts as {:?}", service.life.actual));
            }
        }
    }

    /// What has completed or failed follows as well.
    fn check_what_rests(&self, name: &ServiceName, number: RunNumber, run: &Run) {
        let Some(service) = self.fleet.service(&self.key(name)).filter(|service| service.life.newest == number) else {
            return;
        };
        let rests = matches!(service.life.actual, Actual::Completed | Actual::Failed(_)) && service.life.may_follow();
        for dependency in service.spec.depends_on.iter().filter(|dependency| dependency.restart && rests) {
            let is_newer =
                run.started_on.get(&dependency.service).is_some_and(|run| self.newest(&dependency.service) > *run);
            if is_newer && service.life.newest >= service.life.at_least {
                self.fail(&format!("{name}{number} rests although {} has been run again", dependency.service));
            }
        }
    }

    /// Nothing fails any more: whatever is asked now must come about.
    pub(super) fn finish(mut self) {
        self.is_rough = false;
        // What has already gone wrong is told first, and what could not be ended ends after all.
        self.go_on(&[]);
        while self.runs.values().any(|run| run.is_alive && run.is_stopping) {
            self.something_happens_to_a_run();
        }
        self.go_on(&[]);
        self.check_files();
        self.tell("restart, and nothing fails".into());
        let (action, done, meant) = (Action::Restart, BTreeMap::new(), Meant::Themselves);
        let ports = self.ports.clone();
        let how =
            How { action, force: false, resumes: None, done: &done, owner: None, ports: &ports, by_name: false, meant };
        let goals = self.apply_to(&[], how);
        self.go_on(&goals);
        for goal in &goals {
            let result = self.fleet.judge(&self.id, goal);
            if result != Some(OutcomeResult::Done) {
                let state = fleet_state(&self.fleet, &self.id, &goal.service);
                self.fail(&format!("{} was asked to be up and is {result:?}: {state:?}", goal.service));
            }
        }
        self.tell("down for good".into());
        self.wanted_by.clear();
        let mut effects = Vec::new();
        let id = self.id.clone();
        let goals = self.fleet.stop(self.now, &id, None, Ending::default(), &mut effects).expect("it is known");
        self.obey(effects);
        self.go_on(&goals);
        if self.runs.values().any(|run| run.is_alive || !run.is_over) {
            self.fail("something is left after down");
        }
        if !self.fleet.is_idle()
            || goals.iter().any(|goal| self.fleet.judge(&self.id, goal) != Some(OutcomeResult::Done))
        {
            self.fail("down has not come about");
        }
    }
}
