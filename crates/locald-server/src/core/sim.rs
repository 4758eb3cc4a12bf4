//! The simulator: thousands of random schedules of everything that can happen, against the promises.
//!
//! A world without a kernel plays the actors and shims: it starts what the fleet orders, delivers news late and in any
//! order between runs, lets runs crash, be slow to stop, or end while no daemon is there. A daemon's death throws the
//! fleet away and builds another from what the ledger would hold. After every step the promises are checked from the
//! world's own books, not from the fleet's. A schedule is its seed: a failure names it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use locald_utils::name::{ProjectId, RunNumber, ServiceKey, ServiceName};
use locald_utils::process::ProcessId;
use locald_utils::protocol::Desired;
use locald_utils::record::{ExitStatus, StartFailure, StartStage};
use locald_utils::spec::{Kind, PortSpec, Ports, ProjectSpec, ServiceSpec};
use locald_utils::time::UnixMillis;

use super::Time;
use super::attempts::Tally;
use super::fleet::{Effect, Fleet};
use super::goal::Goal;
use super::lifecycle::tests::{ended, spec};
use super::lifecycle::{Actual, Ahead, News, Resting};
use super::ownership::Kept;
use super::watching::Sight;

mod chance;
mod promises;
mod requests;
mod succession;

use chance::{Dice, some_dependencies, some_health, some_policy, some_watch};
use requests::Asked;

/// Each schedule is short, so that a failure can be read; there are many.
const SCHEDULES: u64 = 4000;
const STEPS: usize = 80;

/// A run as the world has it.
struct Run {
    spec: Arc<ServiceSpec>,
    /// The port that it was given.
    port: Option<u16>,
    /// The newest runs of the others when it was started.
    started_on: BTreeMap<ServiceName, RunNumber>,
    /// What the daemon has not been told yet, in order. Dies with the daemon, but for the end, which is on disk.
    untold: VecDeque<News>,
    /// Started, and not ended: a process exists.
    is_alive: bool,
    is_stopping: bool,
    /// Whether the daemon knows that it is stopping.
    is_known_to_stop: bool,
    /// Whether its launcher has left it behind, and whether the daemon knows that.
    has_forked: bool,
    is_known_to_fork: bool,
    /// Whether its checks pass; `None` before they ever have.
    is_healthy: Option<bool>,
    /// Whether they do for all that the daemon knows.
    is_known_healthy: bool,
    /// How it ended, once it has.
    end: Option<ExitStatus>,
    /// Whether the daemon knows how it ended.
    is_over: bool,
    /// Whether a person has given it up, because it could not be ended, and wanted another.
    is_abandoned: bool,
    /// The version of the files that it has seen.
    version: u64,
    has_started: bool,
}

/// What watches the files of a service. Dies with the daemon.
struct Lookout {
    /// The version that it saw first, and last.
    first: u64,
    seen: u64,
    /// What it has yet to tell: of its first look, or of another.
    looks: VecDeque<IsFirst>,
}

type IsFirst = bool;

struct World {
    seed: u64,
    dice: Dice,
    now: Time,
    id: ProjectId,
    specs: Vec<ServiceSpec>,
    fleet: Fleet,
    runs: BTreeMap<(ServiceName, RunNumber), Run>,
    /// What the ledger holds.
    desired: BTreeMap<ServiceName, Desired>,
    resting: BTreeMap<ServiceName, Option<Resting>>,
    tallies: BTreeMap<ServiceName, Tally>,
    ahead: BTreeMap<ServiceName, Ahead>,
    kept: BTreeMap<ServiceName, Kept>,
    /// When something was last asked for, and what the ledger held of owners until then.
    kept_before: (Time, BTreeMap<ServiceName, Kept>),
    /// Who wants each service: those with a name until then or until they leave, and "" for whoever has none.
    wanted_by: BTreeMap<ServiceName, BTreeMap<String, Option<Time>>>,
    /// Those that have left each service since.
    left_by: BTreeMap<ServiceName, BTreeSet<String>>,
    /// Those whose end somebody has asked for, whoever owned them.
    dismissed: BTreeSet<ServiceName>,
    saved: Option<ProjectSpec>,
    /// The ports of the services that have one: those of all when somebody asked last.
    ports: Ports,
    /// What somebody has asked for last, and still waits for.
    asked: Option<Asked>,
    /// The versions of the files that the services watch: each edit makes another.
    files: BTreeMap<ServiceName, u64>,
    lookouts: BTreeMap<ServiceName, Lookout>,
    /// Whether runs still fail, exit and are killed by themselves.
    is_rough: bool,
    story: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let count = 1 + dice.roll(6);
        let mut specs: Vec<ServiceSpec> = Vec::new();
        for index in 0..count {
            let mut made = spec(&format!("s{index}"));
            made.kind = match dice.roll(8) {
                0 | 1 => Kind::Job,
                2 | 3 => Kind::Forking,
                _ => Kind::Service,
            };
            made.port = (made.kind != Kind::Job && dice.one_in(2)).then_some(PortSpec::Auto);
            made.health = some_health(&mut dice, made.kind);
            made.restart.when = some_policy(&mut dice);
            made.watch = some_watch(&mut dice);
            made.depends_on = some_dependencies(&mut dice, &specs);
            specs.push(made);
        }
        Self {
            seed,
            dice,
            now: Duration::ZERO,
            id: ProjectId::from_recorded("p"),
            specs,
            fleet: Fleet::default(),
            runs: BTreeMap::new(),
            desired: BTreeMap::new(),
            resting: BTreeMap::new(),
            tallies: BTreeMap::new(),
            ahead: BTreeMap::new(),
            kept: BTreeMap::new(),
            kept_before: (Time::ZERO, BTreeMap::new()),
            wanted_by: BTreeMap::new(),
            left_by: BTreeMap::new(),
            dismissed: BTreeSet::new(),
            saved: None,
            ports: Ports::new(),
            asked: None,
            files: BTreeMap::new(),
            lookouts: BTreeMap::new(),
            is_rough: true,
            story: Vec::new(),
        }
    }

    fn key(&self, service: &ServiceName) -> ServiceKey {
        ServiceKey { project: self.id.clone(), service: service.clone() }
    }

    fn fail(&self, what: &str) -> ! {
        panic!("seed {}: {what}\n{}", self.seed, self.story.join("\n"));
    }

    fn tell(&mut self, line: String) {
        self.story.push(format!("{:>8?} {line}", self.now));
    }

    fn project(&self) -> ProjectSpec {
        ProjectSpec {
            id: self.id.clone(),
            name: "p".parse().expect("valid"),
            dir: "/p".into(),
            file: "/p/locald.toml".into(),
            services: self.specs.clone(),
        }
    }

    fn newest(&self, service: &ServiceName) -> RunNumber {
        self.runs.keys().filter(|(name, _)| name == service).map(|(_, run)| *run).max().unwrap_or_default()
    }

    // ---- effects

    fn obey(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Spawn(key, run) => self.spawn(&key.service, run),
                Effect::Stop(key, run, at_once) => self.stop(&key.service, run, at_once),
                Effect::Unwanted(key) => {
                    self.tell(format!("nobody wants {} any more", key.service));
                    self.desired.insert(key.service, Desired::Down);
                }
                Effect::Renewed(key, _) => self.tell(format!("{} is to be run again", key.service)),
                Effect::Look(key) => match self.lookouts.get_mut(&key.service) {
                    Some(lookout) => lookout.looks.push_back(false),
                    None => self.fail("a look at what nobody watches"),
                },
                Effect::Changed(key) => {
                    if let Some(service) = self.fleet.service(&key) {
                        let wall = |at: Time| UnixMillis(u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
                        self.tallies.insert(key.service.clone(), service.life.attempts.tally(wall));
                        self.ahead.insert(key.service.clone(), service.life.ahead(wall));
                        self.kept.insert(key.service.clone(), service.owners.kept(wall));
                        self.resting.insert(key.service, service.life.resting());
                    }
                }
                Effect::Over(id) => {
                    self.tell("over".into());
                    if self.runs.values().any(|run| run.is_alive && !run.is_over) {
                        self.fail("the project counts as over and a process is alive");
                    }
                    self.fleet.forget(&id);
                    self.desired.clear();
                    self.resting.clear();
                    self.tallies.clear();
                    self.ahead.clear();
                    self.dismissed.clear();
                    self.kept.clear();
                    self.wanted_by.clear();
                    self.left_by.clear();
                    self.saved = None;
                }
            }
        }
        self.watch();
        self.check();
    }

    /// Has the files watched of those services that want it, as the daemon does after each change.
    fn watch(&mut self) {
        for name in self.specs.iter().map(|spec| spec.name.clone()).collect::<Vec<_>>() {
            if !self.fleet.service(&self.key(&name)).is_some_and(|service| service.is_watching()) {
                self.lookouts.remove(&name);
            } else if !self.lookouts.contains_key(&name) {
                let seen = self.version(&name);
                self.lookouts.insert(name, Lookout { first: seen, seen, looks: VecDeque::from([true]) });
            }
        }
    }

    fn version(&self, name: &ServiceName) -> u64 {
        self.files.get(name).copied().unwrap_or_default()
    }

    /// Somebody saves a file, for one service.
    fn edit(&mut self) {
        let index = usize::try_from(self.dice.roll(self.specs.len() as u64)).expect("small");
        let name = self.specs[index].name.clone();
        *self.files.entry(name.clone()).or_default() += 1;
        self.tell(format!("edit {name}"));
        if self.lookouts.contains_key(&name) {
            self.fleet.stir(self.now, &self.key(&name));
        }
    }

    /// One lookout tells what it has seen.
    fn look(&mut self) {
        let waiting: Vec<ServiceName> = self
            .lookouts
            .iter()
            .filter(|(_, lookout)| !lookout.looks.is_empty())
            .map(|(name, _)| name.clone())
            .collect();
        if waiting.is_empty() {
            return;
        }
        let name = waiting[usize::try_from(self.dice.roll(waiting.len() as u64)).expect("small")].clone();
        let version = self.version(&name);
        let Some(lookout) = self.lookouts.get_mut(&name) else { return };
        let sight = match lookout.looks.pop_front() {
            Some(true) => Sight::First((lookout.seen > 0).then(|| (UnixMillis(lookout.seen), "a".into()))),
            _ if version == lookout.seen => Sight::Same,
            _ => Sight::Changed("a".into()),
        };
        if !matches!(sight, Sight::First(_)) {
            lookout.seen = version;
        }
        self.tell(format!("seen of {name}: {sight:?}"));
        let mut effects = Vec::new();
        self.fleet.see(self.now, &self.key(&name), (sight, None), &mut effects);
        self.obey(effects);
    }

    fn spawn(&mut self, name: &ServiceName, run: RunNumber) {
        self.tell(format!("spawn {name}{run}"));
        if self.runs.iter().any(|((other, _), run)| other == name && !run.is_over && !run.is_abandoned) {
            self.fail(&format!("two runs of {name} at a time"));
        }
        if run <= self.newest(name) {
            self.fail(&format!("{name}{run} is not a new number"));
        }
        let spec = self.fleet.service(&self.key(name)).and_then(|service| service.life.running.clone());
        let Some(spec) = spec else { self.fail("a run without a spec") };
        self.check_port(name);
        for dependency in &spec.depends_on {
            self.check_dependency(name, dependency);
        }
        let names = spec.depends_on.iter().map(|dependency| &dependency.service);
        let made = Run {
            started_on: names.map(|name| (name.clone(), self.newest(name))).collect(),
            spec,
            port: self.ports.get(name).copied(),
            untold: VecDeque::new(),
            is_alive: true,
            is_stopping: false,
            is_known_to_stop: false,
            has_forked: false,
            is_known_to_fork: false,
            is_healthy: None,
            is_known_healthy: false,
            end: None,
            is_over: false,
            is_abandoned: false,
            version: self.version(name),
            has_started: false,
        };
        self.runs.insert((name.clone(), run), made);
    }

    fn stop(&mut self, name: &ServiceName, number: RunNumber, at_once: bool) {
        self.tell(format!("stop {name}{number}"));
        for (other, run) in self.runs.iter().filter(|(_, run)| run.is_alive && !at_once && !run.is_abandoned) {
            let Some(service) = self.fleet.service(&self.key(&other.0)) else { continue };
            // As it is written now: versions of it may go round in a circle together.
            let depends = service.spec.depends_on.iter().any(|dependency| dependency.service == *name);
            if depends && service.life.is_leaving() && !run.is_over {
                self.fail(&format!("{name} is ended before {}, which depends on it and leaves too", other.0));
            }
        }
        let Some(run) = self.runs.get_mut(&(name.clone(), number)) else { self.fail("a stop of no run") };
        run.is_stopping = true;
        run.is_known_to_stop = true;
        if run.is_alive {
            run.untold.push_back(News::Stopping { kill_at: UnixMillis(0) });
        }
    }

    // ---- what happens

    fn step(&mut self) {
        match self.dice.roll(15) {
            12 => self.edit(),
            13 | 14 => self.look(),
            0 | 1 => self.apply(),
            2 => self.ask_down(),
            3..=5 => self.something_happens_to_a_run(),
            6..=8 => self.deliver_one(),
            9 | 10 => self.pass_time(),
            _ => {
                if self.dice.one_in(3) {
                    self.daemon_dies();
                }
            }
        }
    }

    fn something_happens_to_a_run(&mut self) {
        let alive: Vec<_> = self.runs.iter().filter(|(_, run)| run.is_alive).map(|(key, _)| key.clone()).collect();
        if alive.is_empty() {
            return;
        }
        let key = alive[usize::try_from(self.dice.roll(alive.len() as u64)).expect("small")].clone();
        let (fate, code) = (self.dice.roll(6), i32::try_from(self.dice.roll(2)).expect("small"));
        let (is_rough, version) = (self.is_rough, self.version(&key.0));
        let Some(run) = self.runs.get_mut(&key) else { return };
        let was_started = run.untold.iter().any(|news| matches!(news, News::Started { .. }))
            || !matches!(fleet_state(&self.fleet, &self.id, &key.0), Some(Actual::Spawning));
        let news = match fate {
            0 | 1 if run.is_stopping && is_rough => Some(News::Survivors(Vec::new())),
            _ if run.is_stopping => Some(end(run, key.1, ExitStatus::Signal(15))),
            0 | 1 if !was_started => {
                run.version = version;
                run.has_started = true;
                Some(started(version))
            }
            2 if !was_started && is_rough => {
                run.is_alive = false;
                run.end = Some(ExitStatus::Unknown);
                Some(News::StartFailed(StartFailure {
                    stage: StartStage::Exec,
                    errno: 2,
                    path: None,
                    message: "no".into(),
                    hint: None,
                    permanent: code == 1,
                }))
            }
            3 if was_started && !run.spec.checks().is_empty() => {
                let is_healthy = !is_rough || code == 0;
                match run.is_healthy.replace(is_healthy) {
                    Some(true) if !is_healthy => Some(News::Unready("x".into())),
                    None if !is_healthy => Some(News::Late("x".into())),
                    Some(false) | None if is_healthy => Some(News::Ready),
                    _ => None,
                }
            }
            2 if was_started && run.spec.kind == Kind::Forking => {
                run.has_forked = true;
                Some(forked())
            }
            4 if was_started && (is_rough || run.spec.kind == Kind::Job) => {
                let code = if is_rough { code } else { 0 };
                Some(end(run, key.1, ExitStatus::Code(code)))
            }
            5 if was_started && is_rough => {
                run.is_stopping = true;
                Some(News::LeaderExited(ExitStatus::Code(1)))
            }
            _ => None,
        };
        if let Some(news) = news {
            run.untold.push_back(news.clone());
            self.tell(format!("{}{}: {}", key.0, key.1, name_of(&news)));
        }
    }

    fn deliver_one(&mut self) {
        let waiting: Vec<_> =
            self.runs.iter().filter(|(_, run)| !run.untold.is_empty()).map(|(key, _)| key.clone()).collect();
        if !waiting.is_empty() {
            let index = usize::try_from(self.dice.roll(waiting.len() as u64)).expect("small");
            self.deliver(&waiting[index].clone());
        }
    }

    fn deliver(&mut self, key: &(ServiceName, RunNumber)) {
        let Some(run) = self.runs.get_mut(key) else { return };
        let Some(news) = run.untold.pop_front() else { return };
        match news {
            News::Ended(_) | News::StartFailed(_) => run.is_over = true,
            News::Stopping { .. } | News::LeaderExited(_) => run.is_known_to_stop = true,
            News::Forked { .. } => run.is_known_to_fork = true,
            News::Ready => run.is_known_healthy = true,
            News::Unready(_) => run.is_known_healthy = false,
            News::Started { .. }
            | News::Late(_)
            | News::Checked(_)
            | News::Survivors(_)
            | News::Silent
            | News::Degraded
            | News::Found { .. } => {}
        }
        self.tell(format!("heard of {}{}: {}", key.0, key.1, name_of(&news)));
        let mut effects = Vec::new();
        let is_verdict = matches!(news, News::Unready(_) | News::Late(_));
        let is_late = matches!(news, News::Late(_));
        self.fleet.hear(self.now, &self.key(&key.0), key.1, news, &mut effects);
        self.obey(effects);
        if is_verdict {
            self.check_verdict(key, is_late);
        }
    }

    fn pass_time(&mut self) {
        let most =
            self.fleet.deadline().map_or(Duration::from_millis(50), |deadline| deadline.saturating_sub(self.now));
        self.now += most + Duration::from_millis(self.dice.roll(20));
        let mut effects = Vec::new();
        self.fleet.tick(self.now, &mut effects);
        self.obey(effects);
        self.check_owners();
    }

    // ---- promises

    /// Lets the world go on until all goals are decided and everything has been told, for at most so many turns.
    fn go_on(&mut self, goals: &[Goal]) {
        for _ in 0..4000 {
            let waiting: Vec<_> =
                self.runs.iter().filter(|(_, run)| !run.untold.is_empty()).map(|(key, _)| key.clone()).collect();
            let is_watched = self.lookouts.iter().any(|(name, lookout)| {
                let service = self.fleet.service(&self.key(name));
                !lookout.looks.is_empty() || service.is_some_and(|service| service.look_at().is_some())
            });
            self.look();
            if waiting.is_empty() && !is_watched && goals.iter().all(|goal| self.fleet.judge(&self.id, goal).is_some())
            {
                return;
            }
            for key in waiting {
                self.deliver(&key);
            }
            self.something_happens_to_a_run();
            self.pass_time();
        }
    }
}

fn fleet_state<'a>(fleet: &'a Fleet, id: &ProjectId, service: &ServiceName) -> Option<&'a Actual> {
    fleet.service(&ServiceKey { project: id.clone(), service: service.clone() }).map(|service| &service.life.actual)
}

fn started(version: u64) -> News {
    let (leader, shim) = (ProcessId { pid: 10, start: 1 }, ProcessId { pid: 9, start: 1 });
    News::Started { leader, shim, at: UnixMillis(version) }
}

fn forked() -> News {
    News::Forked { main: ProcessId { pid: 11, start: 1 } }
}

fn end(run: &mut Run, number: RunNumber, status: ExitStatus) -> News {
    run.is_alive = false;
    run.end = Some(status);
    let mut over = ended(number, status);
    Arc::make_mut(&mut over).started_at = Some(UnixMillis(run.version));
    Arc::make_mut(&mut over).forked = run.has_forked;
    News::Ended(over)
}

fn name_of(news: &News) -> &'static str {
    match news {
        News::Started { .. } => "started",
        News::Ready => "ready",
        News::Unready(_) => "unready",
        News::Late(_) => "late",
        News::Checked(_) => "checked",
        News::StartFailed(_) => "start failed",
        News::LeaderExited(_) => "leader exited",
        News::Forked { .. } => "forked",
        News::Stopping { .. } => "stopping",
        News::Survivors(_) => "survivors",
        News::Ended(_) => "ended",
        News::Silent => "silent",
        News::Degraded => "degraded",
        News::Found { .. } => "found",
    }
}

#[test]
fn the_promises_hold_in_every_schedule() {
    for seed in 0..SCHEDULES {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        world.finish();
    }
}
