//! One daemon after the other: what the next one has is what the ledger held, and what the shims tell.

use std::sync::Arc;
use std::time::Duration;

use locald_utils::name::{RunNumber, ServiceKey, ServiceName};
use locald_utils::process::ProcessId;
use locald_utils::protocol::Desired;
use locald_utils::record::{Ended, ExitStatus};
use locald_utils::time::UnixMillis;

use super::requests::What;
use super::{World, fleet_state, forked};
use crate::core::fleet::{Effect, Fleet, Found, Remembered};
use crate::core::lifecycle::tests::ended;
use crate::core::lifecycle::{Actual, News};

impl World {
    /// The daemon is killed and another one started: it knows what the ledger holds, and finds the runs.
    pub(super) fn daemon_dies(&mut self) {
        self.tell("the daemon dies".into());
        let before = std::mem::take(&mut self.fleet);
        self.lookouts.clear();
        let asks_again = self.dice.one_in(2);
        let has_started = self.asked.as_ref().is_some_and(|asked| matches!(asked.what, What::Start { .. }));
        if asks_again && has_started && self.kept_before.0 == self.now {
            // It died before it could write down by whom it was asked.
            self.kept = self.kept_before.1.clone();
        }
        let Some(saved) = self.saved.clone() else { return };
        self.fleet.restore(saved, &self.ports, self.remembered(), |at| Duration::from_millis(at.0));
        let mut effects = Vec::new();
        // The newest first, as the daemon takes them over.
        let open: Vec<_> = self.runs.iter().rev().filter(|(_, run)| !run.is_over).map(|(key, _)| key.clone()).collect();
        open.iter().for_each(|key| self.take_over(key, &mut effects));
        self.fleet.settle(self.now, &self.id.clone(), &mut effects);
        self.compare(&before, &effects);
        self.obey(effects);
        if asks_again {
            self.ask_again();
        }
    }

    /// What the ledger holds of each service.
    fn remembered(&self) -> Vec<Remembered> {
        let remembered = |(name, desired): (&ServiceName, &Desired)| Remembered {
            name: name.clone(),
            newest: self.newest(name),
            desired: *desired,
            resting: self.resting.get(name).cloned().flatten(),
            last: self.last_of(name),
            ran: None,
            port: self.runs.get(&(name.clone(), self.newest(name))).and_then(|run| run.port),
            tally: self.tallies.get(name).cloned().unwrap_or_default(),
            ahead: self.ahead.get(name).cloned().unwrap_or_default(),
            owners: self.kept.get(name).cloned().unwrap_or_default(),
        };
        self.desired.iter().map(remembered).collect()
    }

    /// A run is found by the next daemon, or how it has ended.
    fn take_over(&mut self, key: &(ServiceName, RunNumber), effects: &mut Vec<Effect>) {
        let newest = self.newest(&key.0);
        let Some(run) = self.runs.get_mut(key) else { return };
        // Given up for a newer run that was never begun: it is the current one again, and in everybody's way.
        run.is_abandoned &= key.1 < newest;
        // What was under way to the old daemon is lost; how the run stands is asked of its shim, and of its checks anew.
        run.untold.clear();
        (run.is_healthy, run.is_known_healthy, run.is_known_to_fork) = (None, false, false);
        if let Some(status) = run.end {
            run.is_over = true;
            let (version, has_forked) = (run.version, run.has_forked);
            let mut over = self.ended(key, status, version);
            Arc::make_mut(&mut over).forked = has_forked;
            return self.fleet.replay(self.now, over, effects);
        }
        let has_forked = run.has_forked && !run.is_stopping && !run.is_abandoned;
        run.untold.push_back(if run.is_abandoned {
            News::Survivors(Vec::new())
        } else if run.is_stopping {
            News::Stopping { kill_at: UnixMillis(0) }
        } else {
            News::Found {
                spec: run.spec.clone(),
                leader: None,
                shim: ProcessId { pid: 9, start: 1 },
                started_at: Some(UnixMillis(run.version)),
                ran_for: Duration::ZERO,
                started_on: run.started_on.clone(),
            }
        });
        run.untold.extend(has_forked.then(forked));
        self.fleet.adopt(&Found {
            key: ServiceKey { project: self.id.clone(), service: key.0.clone() },
            run: key.1,
            project_name: "p".parse().expect("valid"),
            project_dir: "/p".into(),
        });
    }

    /// The next daemon starts nothing that had come to rest or was to wait, and knows what was to be replaced.
    fn compare(&mut self, before: &Fleet, effects: &[Effect]) {
        for effect in effects {
            let Effect::Spawn(key, _) = effect else { continue };
            if self.resting.get(&key.service).is_some_and(Option::is_some) {
                self.fail(&format!("{} had come to rest, and the next daemon started it", key.service));
            }
            if matches!(fleet_state(before, &self.id, &key.service), Some(Actual::Backoff { until, .. }) if *until > self.now)
            {
                self.fail(&format!("{} was to wait for its next attempt, and the next daemon started it", key.service));
            }
        }
        for name in self.desired.keys() {
            let of = |fleet: &Fleet| {
                fleet.service(&self.key(name)).map(|service| {
                    let life = &service.life;
                    (life.newest, life.desired == Desired::Up && life.is_occupied() && life.newest < life.at_least)
                })
            };
            if let (Some((run, true)), Some((same, false))) = (of(before), of(&self.fleet))
                && run == same
                && !matches!(fleet_state(&self.fleet, &self.id, name), Some(Actual::Waiting | Actual::Blocked { .. }))
            {
                self.fail(&format!("{name}{run} was to be replaced, and the next daemon does not know"));
            }
        }
    }

    pub(super) fn ended(&self, key: &(ServiceName, RunNumber), status: ExitStatus, version: u64) -> Arc<Ended> {
        let mut over = ended(key.1, status);
        let made = Arc::make_mut(&mut over);
        (made.run.project, made.run.service) = (self.id.clone(), key.0.clone());
        made.started_at = Some(UnixMillis(version));
        over
    }

    /// How the newest run of a service ended, as the ledger has it.
    pub(super) fn last_of(&self, name: &ServiceName) -> Option<Arc<Ended>> {
        let key = (name.clone(), self.newest(name));
        let run = self.runs.get(&key).filter(|run| run.is_over)?;
        let mut over = self.ended(&key, run.end?, run.version);
        Arc::make_mut(&mut over).forked = run.has_forked;
        Some(over)
    }
}
