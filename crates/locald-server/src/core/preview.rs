//! What a start would do. It is done to a copy of the fleet, so it cannot be another than what is done.

use std::collections::BTreeMap;

use locald_utils::name::{ServiceKey, ServiceName};
use locald_utils::protocol::{Action, Because, Desired, Failure, Preview, Step};
use locald_utils::spec::ProjectSpec;

use super::Time;
use super::fleet::{Fleet, How};
use super::lifecycle::Actual;
use super::project::Service;

impl Fleet {
    /// Says what [`Fleet::apply`] would do to each service of the project, those included that the file has no longer.
    ///
    /// # Errors
    /// As [`Fleet::apply`].
    pub(crate) fn preview(
        &self,
        now: Time,
        spec: &ProjectSpec,
        named: &[ServiceName],
        how: How<'_>,
    ) -> Result<Vec<Preview>, Failure> {
        let mut after = self.clone();
        // Which number a first run would have makes no difference to what follows.
        let goals = after.apply(now, spec.clone(), &BTreeMap::new(), named, how, &mut Vec::new())?;
        let Some(project) = after.projects().get(&spec.id) else { return Ok(Vec::new()) };
        let key = |name: &ServiceName| ServiceKey { project: spec.id.clone(), service: name.clone() };
        let steps: BTreeMap<&ServiceName, Step> = project
            .services
            .iter()
            .map(|(name, service)| {
                let is_about = goals.iter().any(|goal| goal.service == *name);
                (name, step(self.service(&key(name)), service, is_about))
            })
            .collect();
        let preview = |name: &ServiceName| {
            let (before, service, step) = (self.service(&key(name)), &project.services[name], steps[name]);
            let run = before.filter(|before| has_run(before));
            let is_new = matches!(step, Step::Start | Step::Restart);
            let mut because = Vec::new();
            if run.is_some() && is_new {
                let is_meant = named.is_empty() || named.contains(name);
                let has_completed = run.is_some_and(|run| run.life.actual == Actual::Completed);
                let asked = match how.action {
                    Action::Up => false,
                    Action::Start => is_meant && how.by_name && has_completed,
                    Action::Restart => is_meant && (how.by_name || !has_completed),
                };
                let is_changed = run.is_some_and(|run| is_changed(run, service));
                let has_other_inputs = !is_changed && run.is_some_and(|run| has_other_inputs(run, service));
                because.extend(is_changed.then_some(Because::Changed));
                let has_other_ports =
                    !is_changed && run.is_some_and(|run| run.life.has_other_ports(&service.spec, how.ports));
                because.extend(has_other_ports.then_some(Because::Ports));
                because.extend(has_other_inputs.then_some(Because::Inputs));
                because.extend(asked.then_some(Because::Asked));
                let followed = service.spec.depends_on.iter().filter(|dependency| dependency.restart);
                let followed = followed
                    .filter(|dependency| matches!(steps.get(&dependency.service), Some(Step::Start | Step::Restart)));
                because.extend(followed.map(|dependency| Because::Follows(dependency.service.clone())));
            }
            Preview {
                service: name.clone(),
                step,
                because,
                waits_for: if is_new { after.waiting_on(&key(name)) } else { Vec::new() },
                running: run.and_then(|run| run.life.running.clone()).map(|spec| Box::new(spec.as_ref().clone())),
                environment: Vec::new(),
            }
        };
        Ok(project.order.iter().map(preview).collect())
    }
}

/// Whether a run of it is, or was all that is needed of it.
fn has_run(service: &Service) -> bool {
    service.life.is_occupied() || service.life.actual == Actual::Completed
}

/// Whether a new run takes the place of one, and not of what is left of one, or of what has completed.
fn is_replaced(service: &Service) -> bool {
    service.life.is_occupied() && !matches!(service.life.actual, Actual::Stuck { .. })
}

/// Whether it is a job whose last run has worked on other inputs than there are now.
fn has_other_inputs(run: &Service, written: &Service) -> bool {
    let running = run.life.running.as_ref().and_then(|running| running.work());
    written.spec.work().is_some_and(|work| running.as_ref() != Some(&work))
}

/// Whether it is written otherwise than it runs.
fn is_changed(run: &Service, written: &Service) -> bool {
    run.life.running.as_ref().is_some_and(|running| running.digest() != written.spec.digest())
}

fn step(before: Option<&Service>, after: &Service, is_about: bool) -> Step {
    let life = &after.life;
    if is_about && matches!(life.actual, Actual::Stuck { .. }) {
        return Step::Refuse;
    }
    let newest = before.map(|before| before.life.newest).unwrap_or_default();
    let has_run = before.is_some_and(has_run);
    let is_new = life.desired == Desired::Up && (life.newest > newest || life.newest < life.at_least);
    // Whoever waits was given up or never ran, unless it waited before anybody asked.
    let is_waiting = life.desired == Desired::Up && matches!(life.actual, Actual::Waiting | Actual::Blocked { .. });
    match (is_new || is_waiting, has_run) {
        (true, true) if before.is_some_and(is_replaced) => Step::Restart,
        (true, _) => Step::Start,
        (false, _) if is_about => Step::Leave,
        (false, _) => Step::Skip,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use locald_utils::name::{ProjectId, RunNumber};
    use locald_utils::process::ProcessId;
    use locald_utils::spec::{CommandSpec, Condition, Dependency, Kind, Ports, ServiceSpec, Template};
    use locald_utils::time::UnixMillis;

    use super::super::fleet::{Effect, Meant};
    use super::super::lifecycle::News;
    use super::super::lifecycle::tests::{ended, spec};
    use super::*;

    fn name(name: &str) -> ServiceName {
        name.parse().expect("valid")
    }

    /// `web` needs `db` and follows `job`; `other` needs nothing.
    fn shop() -> ProjectSpec {
        let on = |service: &str, condition, restart| Dependency { service: name(service), condition, restart };
        let depends_on = vec![on("db", Condition::Ready, false), on("job", Condition::Completed, true)];
        let job = ServiceSpec { kind: Kind::Job, ..spec("job") };
        ProjectSpec {
            id: ProjectId::from_recorded("p"),
            name: "shop".parse().expect("valid"),
            dir: "/".into(),
            file: "/locald.toml".into(),
            services: vec![spec("db"), job, ServiceSpec { depends_on, ..spec("web") }, spec("other")],
        }
    }

    const NOW: Time = Duration::from_secs(9);

    static NOTHING: BTreeMap<ServiceName, String> = BTreeMap::new();

    static NO_PORTS: Ports = Ports::new();

    fn how(action: Action) -> How<'static> {
        let (ports, meant) = (&NO_PORTS, Meant::Themselves);
        How { action, force: false, resumes: None, done: &NOTHING, owner: None, ports, by_name: true, meant }
    }

    fn seen(fleet: &Fleet, spec: &ProjectSpec, named: &[&str], action: Action) -> Vec<String> {
        let named: Vec<ServiceName> = named.iter().map(|named| name(named)).collect();
        let previews = fleet.preview(NOW, spec, &named, how(action)).expect("possible");
        let show = |preview: &Preview| {
            let waits: Vec<&str> = preview.waits_for.iter().map(|on| on.service.as_str()).collect();
            let because: Vec<String> = preview.because.iter().map(|because| format!("{because:?}")).collect();
            format!("{} {:?} [{}] {}", preview.service, preview.step, waits.join(" "), because.join(" "))
        };
        previews.iter().map(show).collect()
    }

    /// Does it for real, and lets every run get where it should.
    fn apply(fleet: &mut Fleet, spec: &ProjectSpec) {
        let mut effects = Vec::new();
        fleet.apply(NOW, spec.clone(), &BTreeMap::new(), &[], how(Action::Up), &mut effects).expect("possible");
        while let Some(effect) = effects.pop() {
            let Effect::Spawn(key, run) = effect else { continue };
            let (leader, shim) = (ProcessId { pid: 10, start: 1 }, ProcessId { pid: 9, start: 1 });
            fleet.hear(NOW, &key, run, News::Started { leader, shim, at: UnixMillis(0) }, &mut effects);
            let news = match key.service.as_str() {
                "job" => News::Ended(ended(run, locald_utils::record::ExitStatus::Code(0))),
                _ => News::Ready,
            };
            fleet.hear(NOW, &key, run, news, &mut effects);
        }
    }

    #[test]
    fn what_was_never_started_is_started_and_waits_for_what_it_needs() {
        let fleet = Fleet::default();
        let all = ["db Start [] ", "job Start [] ", "web Start [db job] ", "other Start [] "];
        assert_eq!(seen(&fleet, &shop(), &[], Action::Up), all);
        let one = ["db Start [] ", "job Skip [] ", "web Skip [] ", "other Skip [] "];
        assert_eq!(seen(&fleet, &shop(), &["db"], Action::Up), one);
        assert!(fleet.is_idle(), "nothing has changed");
    }

    #[test]
    fn what_runs_is_left_unless_it_changed_was_asked_for_or_follows() {
        let mut fleet = Fleet::default();
        apply(&mut fleet, &shop());
        let all = ["db Leave [] ", "job Leave [] ", "web Leave [] ", "other Leave [] "];
        assert_eq!(seen(&fleet, &shop(), &[], Action::Up), all);

        let mut written = shop();
        written.services[0].command = CommandSpec::Shell(Template::text("another"));
        written.services[1].command = CommandSpec::Shell(Template::text("another"));
        let changed =
            ["db Restart [] Changed", "job Start [] Changed", "web Restart [db job] Follows(job)", "other Leave [] "];
        assert_eq!(seen(&fleet, &written, &[], Action::Up), changed);
        let start = ["db Leave [] ", "job Start [] Changed Asked", "web Restart [job] Follows(job)", "other Leave [] "];
        assert_eq!(seen(&fleet, &written, &[], Action::Start), start);
        let restart = ["db Leave [] ", "job Leave [] ", "web Restart [] Asked", "other Skip [] "];
        assert_eq!(seen(&fleet, &shop(), &["web"], Action::Restart), restart);

        written.services.remove(3);
        assert_eq!(seen(&fleet, &written, &["web"], Action::Up)[3], "other Skip [] ", "it runs on");
        let previews = fleet.preview(NOW, &written, &[], how(Action::Up)).expect("possible");
        assert_eq!(previews[0].running.as_deref(), Some(&shop().services[0]));
    }

    #[test]
    fn what_could_not_be_ended_is_refused() {
        let mut fleet = Fleet::default();
        apply(&mut fleet, &shop());
        let key = ServiceKey { project: shop().id, service: name("other") };
        fleet.hear(NOW, &key, RunNumber(1), News::Survivors(Vec::new()), &mut Vec::new());
        assert_eq!(seen(&fleet, &shop(), &["other"], Action::Up)[3], "other Refuse [] ");
        let force = How { force: true, ..how(Action::Up) };
        let previews = fleet.preview(NOW, &shop(), &[name("other")], force).expect("possible");
        assert_eq!(previews[3].step, Step::Start);
    }
}
