//! From the protocol's values to words and rows. Pure: no clock, no terminal, no socket.
//!
//! `render` draws what this file decides. Read [`word`] first; it is the vocabulary of `status`.

use std::collections::BTreeSet;
use std::time::Duration;

use locald_utils::name::{OwnerName, ProfileName, ServiceName};
use locald_utils::protocol::{
    Desired, FailedReason, Outcome, OutcomeResult, OwnerStatus, ProjectStatus, ServiceOutcome, ServiceStatus, State,
};
use locald_utils::record::{Ended, ExitStatus, Stray, Survivor};
use locald_utils::spec::{Kind, ProjectSpec};
use locald_utils::time::{UnixMillis, human};

use crate::drift::Drift;
use crate::sample::Usage;
use crate::screen::Tone;

/// A word about a service, and what kind of news it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    /// The word.
    pub(crate) text: String,
    /// Its colour.
    pub(crate) tone: Tone,
}

fn said(tone: Tone, text: impl Into<String>) -> Word {
    Word { text: text.into(), tone }
}

/// Says what a service does, as `status` shows it.
pub(crate) fn word(service: &ServiceStatus, now: UnixMillis) -> Word {
    match &service.state {
        State::Stopped => said(Tone::Faint, "stopped"),
        State::Waiting { on } if on.is_empty() => said(Tone::Busy, "waiting"),
        State::Waiting { on } => {
            let names: Vec<&str> = on.iter().map(|dependency| dependency.service.as_str()).collect();
            said(Tone::Busy, format!("waiting for {}", names.join(", ")))
        }
        State::Spawning => said(Tone::Busy, "starting"),
        State::Starting => match service.kind {
            Kind::Service | Kind::Forking => said(Tone::Busy, "starting"),
            Kind::Job => said(Tone::Busy, "running"),
        },
        State::Ready => said(Tone::Good, "ready"),
        State::Unready => said(Tone::Bad, "unready"),
        State::Stopping { kill_at: None } => said(Tone::Busy, "stopping"),
        State::Stopping { kill_at: Some(at) } => said(Tone::Busy, format!("stopping, kill in {}", countdown(*at, now))),
        State::Backoff { attempt, limit, until, .. } => {
            said(Tone::Bad, format!("backoff {attempt}/{limit}, next in {}", countdown(*until, now)))
        }
        State::Completed => said(Tone::Faint, "exited 0"),
        State::Failed { reason } => said(Tone::Bad, failed_word(reason, service.last.as_ref(), now)),
        State::Unknown => said(Tone::Bad, "unknown"),
    }
}

fn failed_word(reason: &FailedReason, last: Option<&Ended>, now: UnixMillis) -> String {
    match (reason, last) {
        (FailedReason::Exited, Some(ended)) => {
            let ago = human_ago(now.since(ended.exited_at));
            format!("{}, {ago}", exit_words(ended))
        }
        (FailedReason::Exited, None) => "failed".to_owned(),
        (FailedReason::CrashLoop { starts, within_ms, .. }, _) => {
            let starts = count(usize::try_from(*starts).unwrap_or(usize::MAX), "start");
            format!("failed: crash loop, {starts} in {}", human(Duration::from_millis(*within_ms)))
        }
        (FailedReason::Start(_), _) => "failed to start".to_owned(),
        (FailedReason::Dependency { chain, .. }, _) => match chain.first() {
            Some(name) => format!("blocked by {name}"),
            None => "blocked".to_owned(),
        },
        (FailedReason::Survivors { survivors }, _) => format!("failed: {} left", count(survivors.len(), "process")),
        (FailedReason::Unhealthy { .. }, Some(ended)) => {
            format!("failed: not healthy, {}", human_ago(now.since(ended.exited_at)))
        }
        (FailedReason::Unhealthy { .. }, None) => "failed: not healthy".to_owned(),
    }
}

/// Says which check of a service that is not ready does not pass: what was tried, how often, the last answer; and of others, how many.
/// `None` where none is waited for.
pub(crate) fn health_note(service: &ServiceStatus, now: UnixMillis) -> Option<String> {
    match service.state {
        State::Starting | State::Unready => {}
        State::Stopped
        | State::Waiting { .. }
        | State::Spawning
        | State::Ready
        | State::Stopping { .. }
        | State::Backoff { .. }
        | State::Completed
        | State::Failed { .. }
        | State::Unknown => return None,
    }
    let mut failing = service.health.iter().filter(|check| !check.passes);
    let check = failing.next()?;
    let tries = match (check.tries, &check.answer) {
        // One that is asked and has not answered yet.
        (0, None) => String::new(),
        // The service is to say something by itself, and nobody asks.
        (0, Some(_)) => format!(" (for {})", human(now.since(check.since))),
        (1, _) => " (asked once)".to_owned(),
        (tries, _) => format!(" (asked {tries} times in {})", human(now.since(check.since))),
    };
    let others = match failing.count() {
        0 => String::new(),
        1 => "; 1 more check does not pass".to_owned(),
        more => format!("; {more} more checks do not pass"),
    };
    let answer = check.answer.as_deref().unwrap_or("no answer yet");
    Some(clean(&format!("{}: {answer}{tries}{others}", check.probe)))
}

/// Says how a run ended, and whose signal it was: `failed: exit 1`, `killed by SIGKILL`, `stopped by SIGTERM`.
pub(crate) fn exit_words(ended: &Ended) -> String {
    match (ended.status, ended.stopped) {
        (ExitStatus::Code(0), _) => "exited 0".to_owned(),
        (status @ (ExitStatus::Code(_) | ExitStatus::Unknown), _) => format!("failed: {status}"),
        (status @ ExitStatus::Signal(_), false) => format!("killed by {status}"),
        (status @ ExitStatus::Signal(_), true) => format!("stopped by {status}"),
    }
}

/// Says what word and note say, in one sentence: `blocked by api: migrate exited 1`, `blocked by db, which is stopped`.
pub(crate) fn with_failure_note(word: &str, service: &ServiceStatus) -> String {
    if let State::Failed { reason: FailedReason::Dependency { chain, cause } } = &service.state
        && chain.len() == 1
    {
        return format!("{word}, which {}", clean(cause));
    }
    match failure_note(service) {
        Some(note) => format!("{word}: {note}"),
        None => word.to_owned(),
    }
}

/// Says more about a failure than fits a word. `None` where the word says all.
pub(crate) fn failure_note(service: &ServiceStatus) -> Option<String> {
    let reason = match &service.state {
        State::Failed { reason } => reason,
        State::Backoff { why, .. } => return why.as_deref().map(clean),
        _ => return None,
    };
    match reason {
        FailedReason::Exited => None,
        FailedReason::CrashLoop { why: Some(why), .. } => Some(why.clone()),
        FailedReason::CrashLoop { why: None, .. } => {
            service.last.as_ref().map(|ended| format!("last: {}", exit_words(ended)))
        }
        FailedReason::Start(failure) => Some(match &failure.hint {
            Some(hint) => format!("{}; {hint}", failure.message),
            None => failure.message.clone(),
        }),
        FailedReason::Unhealthy { why } => Some(why.clone()),
        FailedReason::Dependency { chain, cause } => chain.last().map(|name| format!("{name} {cause}")),
        FailedReason::Survivors { survivors } => {
            let one = survivors.first()?;
            let more = survivors.len() - 1;
            let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
            Some(format!("pid {} ({}): {}{rest}", one.process.pid, clean(&one.command), one.reason))
        }
    }
    .map(|note| clean(&note))
}

/// A service as `status` shows it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// The service.
    pub(crate) status: ServiceStatus,
    /// Whether the project file declares it.
    pub(crate) is_configured: bool,
    /// Whether it runs with another spec than the file has now.
    pub(crate) is_changed: bool,
    /// Processes of its run that have lost their parents.
    pub(crate) strays: Vec<Stray>,
    /// How where it listens differs from its port, when that was looked at.
    pub(crate) listening: Option<String>,
    /// How its run differs from what is on disk now, as far as that was looked at.
    pub(crate) drift: Drift,
    /// What its run uses, when that was asked for.
    pub(crate) usage: Option<Usage>,
}

impl Row {
    /// A service that is as it should be, and has not been looked at.
    pub(crate) fn of(status: ServiceStatus) -> Self {
        Self {
            status,
            is_configured: true,
            is_changed: false,
            strays: Vec::new(),
            listening: None,
            drift: Drift::default(),
            usage: None,
        }
    }

    /// Whether a process of it runs, as far as anybody knows.
    pub(crate) fn is_alive(&self) -> bool {
        is_alive(&self.status.state)
    }

    /// How long the newest run is running.
    pub(crate) fn uptime(&self, now: UnixMillis) -> Option<Duration> {
        self.status.started_at.filter(|_| self.is_alive()).map(|at| now.since(at))
    }

    /// What a person should know besides.
    pub(crate) fn notes(&self, now: UnixMillis) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.is_configured {
            notes.push("not in the project file".to_owned());
        }
        if self.is_changed {
            notes.push("changed since it started".to_owned());
        }
        if self.drift.is_program_changed {
            notes.push("its program has changed since it started".to_owned());
        }
        if let Some((then, now)) = &self.drift.head {
            // As git abbreviates it.
            let short = |commit: &str| commit.chars().take(7).collect::<String>();
            notes.push(format!("HEAD has moved since it started, from {} to {}", short(then), short(now)));
        }
        if is_optional(&self.status) {
            let profiles: Vec<&str> = self.status.profiles.iter().map(ProfileName::as_str).collect();
            notes.push(format!("only with profile {}", profiles.join(" or ")));
        }
        notes.extend(owners_note(&self.status, now));
        notes.extend(forsaken_note([&self.status]).map(|note| format!("nobody wants it {note}")));
        notes.extend(failure_note(&self.status));
        notes.extend(health_note(&self.status, now));
        notes.extend(self.listening.clone());
        notes.extend(self.status.last.as_ref().filter(|_| !self.is_alive()).and_then(force_note));
        let lost = self.status.last.as_ref().map_or(0, |ended| ended.lost_output);
        if lost > 0 {
            notes.push(format!("{lost} bytes of output lost"));
        }
        notes.extend(self.status.note.as_deref().map(clean));
        if !self.strays.is_empty() {
            notes.push(format!("{}: {}", count(self.strays.len(), "stray"), names(&self.strays)));
        }
        if let Some(one) = self.status.left.first() {
            let more = self.status.left.len() - 1;
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let (pid, command) = (one.process.pid, clean(&one.command));
            notes.push(format!("pid {pid} ({command}){more} of an earlier run could not be ended"));
        }
        notes
    }
}

/// Who wants the service by name, and for how long.
fn owners_note(service: &ServiceStatus, now: UnixMillis) -> Option<String> {
    let owner = |owner: &OwnerStatus| match owner.until {
        Some(until) => format!("{} ({} left)", owner.name, human(until.since(now))),
        None => owner.name.to_string(),
    };
    let owners: Vec<String> = service.owners.iter().map(owner).collect();
    (!owners.is_empty()).then(|| format!("for {}", owners.join(", ")))
}

/// Without whom nobody wants some services, if that is why they have ended: `without ci, who left or whose lease is over`.
pub(crate) fn forsaken_note<'a>(services: impl IntoIterator<Item = &'a ServiceStatus>) -> Option<String> {
    let names: BTreeSet<&str> = services.into_iter().flat_map(|one| &one.forsaken_by).map(OwnerName::as_str).collect();
    let names: Vec<&str> = names.into_iter().collect();
    (!names.is_empty()).then(|| format!("without {}, who left or whose lease is over", names.join(", ")))
}

pub(crate) fn is_alive(state: &State) -> bool {
    match state {
        State::Starting | State::Ready | State::Unready | State::Stopping { .. } | State::Unknown => true,
        State::Stopped
        | State::Waiting { .. }
        | State::Spawning
        | State::Backoff { .. }
        | State::Completed
        | State::Failed { .. } => false,
    }
}

/// Says what had to be killed when a run was stopped: `1 process killed after 5.0s`.
pub(crate) fn force_note(ended: &Ended) -> Option<String> {
    let killed = usize::try_from(ended.killed).unwrap_or(usize::MAX);
    (killed > 0).then(|| format!("{} killed after {}", count(killed, "process"), human(ended.stop_took)))
}

/// Strays that are named for each service; more are counted. A database has a handful that are no news to anybody.
const STRAYS_NAMED: usize = 2;

/// Names strays by their commands: `sleep 601, sleep 602, and 4 more`.
pub(crate) fn names(strays: &[Stray]) -> String {
    let mut names: Vec<String> = strays.iter().take(STRAYS_NAMED).map(|stray| clean(&stray.command)).collect();
    if let Some(more) = strays.len().checked_sub(STRAYS_NAMED).filter(|more| *more > 0) {
        names.push(format!("and {more} more"));
    }
    names.join(", ")
}

/// Puts together what the file declares and what the daemon knows, in the order of the file.
///
/// Without a file everything the daemon knows is shown; with one, what it does not declare is shown while it runs.
pub(crate) fn rows(spec: Option<&ProjectSpec>, known: Option<&ProjectStatus>) -> Vec<Row> {
    let known = known.map_or(&[][..], |known| &known.services);
    let Some(spec) = spec else {
        return known.iter().cloned().map(Row::of).collect();
    };
    let mut rows: Vec<Row> = spec
        .services
        .iter()
        .map(|declared| {
            let status = known.iter().find(|status| status.name == declared.name).cloned();
            let never = || never_started(declared.name.clone(), declared.kind);
            // What the file says now is what counts for the next start.
            let status = ServiceStatus { profiles: declared.profiles.clone(), ..status.unwrap_or_else(never) };
            let digest = status.spec_digest.as_ref().filter(|_| is_alive(&status.state));
            let is_changed = digest.is_some_and(|digest| *digest != declared.digest());
            Row { is_changed, ..Row::of(status) }
        })
        .collect();
    let is_declared = |status: &ServiceStatus| spec.services.iter().any(|declared| declared.name == status.name);
    for status in known.iter().filter(|status| !is_declared(status) && has_something_left(&status.state)) {
        rows.push(Row { is_configured: false, ..Row::of(status.clone()) });
    }
    rows
}

fn has_something_left(state: &State) -> bool {
    match state {
        State::Stopped | State::Completed => false,
        State::Failed { reason } => matches!(reason, FailedReason::Survivors { .. }),
        State::Waiting { .. }
        | State::Spawning
        | State::Starting
        | State::Ready
        | State::Unready
        | State::Stopping { .. }
        | State::Backoff { .. }
        | State::Unknown => true,
    }
}

/// A service that the daemon has never heard of.
pub(crate) fn never_started(name: ServiceName, kind: Kind) -> ServiceStatus {
    ServiceStatus {
        name,
        kind,
        desired: Desired::Down,
        state: State::Stopped,
        run: None,
        leader: None,
        shim: None,
        started_at: None,
        ready_at: None,
        restarts: 0,
        port: None,
        health: Vec::new(),
        last: None,
        spec_digest: None,
        note: None,
        left: Vec::new(),
        profiles: Vec::new(),
        owners: Vec::new(),
        forsaken_by: Vec::new(),
        is_leaving: false,
    }
}

/// How a whole project stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// What shall run is ready, what shall complete has completed.
    Fine,
    /// Something failed, is unready, or keeps ending.
    Wrong,
    /// Nothing is wrong, and something is on its way.
    Settling,
    /// Nothing runs, and nothing has run that shall be.
    Idle,
}

impl Health {
    /// The exit code of `status --exit-code`. 5 because 2 to 4 have a meaning for every verb.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Fine => 0,
            Self::Wrong => 1,
            Self::Idle => 3,
            Self::Settling => 5,
        }
    }
}

/// Judges how a project stands.
pub(crate) fn health<'a>(services: impl Iterator<Item = &'a ServiceStatus>) -> Health {
    let (mut is_idle, mut is_settling) = (true, false);
    for service in services {
        match service.state {
            State::Failed { .. } | State::Unready | State::Backoff { .. } | State::Unknown => return Health::Wrong,
            State::Waiting { .. } | State::Spawning | State::Starting | State::Stopping { .. } => {
                (is_idle, is_settling) = (false, true);
            }
            State::Ready | State::Completed => is_idle = false,
            State::Stopped => {}
        }
    }
    if is_idle {
        Health::Idle
    } else if is_settling {
        Health::Settling
    } else {
        Health::Fine
    }
}

/// Whether a service does not run because it only does when somebody asks for it.
fn is_optional(service: &ServiceStatus) -> bool {
    let is_wanted = service.desired == Desired::Up || service.state != State::Stopped;
    !service.profiles.is_empty() && !is_wanted
}

/// How many services there are, less those that only run when somebody asks for them, and nobody has.
pub(crate) fn total<'a>(services: impl Iterator<Item = &'a ServiceStatus>) -> usize {
    services.filter(|service| !is_optional(service)).count()
}

/// How many services are ready or completed.
pub(crate) fn ready_count<'a>(services: impl Iterator<Item = &'a ServiceStatus>) -> usize {
    services.filter(|service| matches!(service.state, State::Ready | State::Completed)).count()
}

/// What a stop amounts to, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StopTotals {
    /// Services that ran and do not any more.
    pub(crate) services: usize,
    /// Processes that were seen to end.
    pub(crate) processes: usize,
    /// Those of them that had to be killed.
    pub(crate) killed: usize,
    /// Processes that are still there.
    pub(crate) left: usize,
}

/// How a service ended that somebody wanted to end. What was started, and a job that has ended by itself, were not ended by
/// anybody.
pub(crate) fn asked_end(service: &ServiceOutcome) -> Option<&Ended> {
    service.ended.as_ref().filter(|ended| ended.stopped || service.service.desired == Desired::Down)
}

/// Counts what a stop ended and what it left.
pub(crate) fn stop_totals(outcome: &Outcome) -> StopTotals {
    let number = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    let mut totals = StopTotals::default();
    for service in &outcome.services {
        let was_asked = asked_end(service).is_some() || service.service.desired == Desired::Down;
        if was_asked && service.result == OutcomeResult::Done && !service.unchanged {
            totals.services += 1;
        }
        if let Some(ended) = asked_end(service) {
            totals.processes += number(ended.processes);
            totals.killed += number(ended.killed);
        }
        totals.left += survivors(&service.service, service.ended.as_ref()).len();
    }
    totals
}

/// The processes of a service that could not be ended.
pub(crate) fn survivors<'a>(service: &'a ServiceStatus, ended: Option<&'a Ended>) -> Vec<&'a Survivor> {
    let of_run = match (&service.state, ended) {
        (State::Failed { reason: FailedReason::Survivors { survivors } }, _) => survivors.as_slice(),
        (_, Some(ended)) => &ended.survivors,
        (_, None) => &[],
    };
    of_run.iter().chain(&service.left).collect()
}

/// The exit code of a verb that was to bring something about: 0, 1, or 124 when only time was lacking.
pub(crate) fn outcome_code(outcome: &Outcome) -> u8 {
    let mut code = 0;
    for service in &outcome.services {
        match service.result {
            OutcomeResult::Done => {}
            OutcomeResult::Failed | OutcomeResult::Superseded => return 1,
            OutcomeResult::TimedOut => code = 124,
        }
    }
    code
}

/// `1 process`, `3 processes`; `1 service`, `2 services`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    let plural = if noun.ends_with('s') { "es" } else { "s" };
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}{plural}") }
}

/// `640 KB`, `12.3 MB`, `1.5 GB`: powers of 1024, as `ps` and `top` count.
pub(crate) fn bytes(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let value = bytes as f64;
    match bytes {
        0..1_048_576 => format!("{:.0} KB", value / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MB", value / 1_048_576.0),
        _ => format!("{:.1} GB", value / 1_073_741_824.0),
    }
}

/// The time until `at`, in whole seconds, rounded up: a countdown ends with 1s, not 0s.
fn countdown(at: UnixMillis, now: UnixMillis) -> String {
    human_seconds(at.since(now).as_millis().div_ceil(1000))
}

fn human_ago(since: Duration) -> String {
    format!("{} ago", human_seconds(since.as_millis() / 1000))
}

fn human_seconds(seconds: u128) -> String {
    let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
    // `human` gives fractions below ten seconds, which would only flicker here.
    if seconds < 10 { format!("{seconds}s") } else { human(Duration::from_secs(seconds)) }
}

/// Makes text of others harmless for a terminal: control characters become spaces.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use locald_utils::process::ProcessId;
    use locald_utils::protocol::{CheckStatus, ServiceOutcome, WaitingOn};
    use locald_utils::record::{StartFailure, StartStage};
    use locald_utils::spec::Condition;

    use super::*;
    use crate::testing::{NOW, ended, name, project_status, ready, service, spec};

    fn in_state(state: State) -> String {
        word(&service("web", state), NOW).text
    }

    fn exited(status: ExitStatus) -> ServiceStatus {
        let state = State::Failed { reason: FailedReason::Exited };
        ServiceStatus { last: Some(ended("web", status)), ..service("web", state) }
    }

    #[test]
    fn every_state_has_its_word() {
        let on = |names: &[&str]| State::Waiting {
            on: names.iter().map(|n| WaitingOn { service: name(n), condition: Condition::Ready }).collect(),
        };
        let until = UnixMillis(NOW.0 + 3_400);
        for (state, text) in [
            (State::Stopped, "stopped"),
            (on(&["db"]), "waiting for db"),
            (on(&["db", "migrate"]), "waiting for db, migrate"),
            (State::Spawning, "starting"),
            (State::Starting, "starting"),
            (State::Ready, "ready"),
            (State::Unready, "unready"),
            (State::Stopping { kill_at: None }, "stopping"),
            (State::Stopping { kill_at: Some(until) }, "stopping, kill in 4s"),
            (State::Stopping { kill_at: Some(NOW) }, "stopping, kill in 0s"),
            (State::Backoff { attempt: 3, limit: 10, until, why: None }, "backoff 3/10, next in 4s"),
            (State::Completed, "exited 0"),
            (State::Unknown, "unknown"),
        ] {
            assert_eq!(in_state(state), text);
        }
        let job = ServiceStatus { kind: Kind::Job, ..service("migrate", State::Starting) };
        assert_eq!(word(&job, NOW).text, "running");
    }

    #[test]
    fn an_exit_a_signal_and_an_unknown_end_are_told_apart() {
        for (status, text) in [
            (ExitStatus::Code(1), "failed: exit 1, 12s ago"),
            (ExitStatus::Code(143), "failed: exit 143, 12s ago"),
            (ExitStatus::Signal(9), "killed by SIGKILL, 12s ago"),
            (ExitStatus::Unknown, "failed: exit status unknown, 12s ago"),
        ] {
            assert_eq!(word(&exited(status), NOW).text, text);
        }
    }

    #[test]
    fn whose_signal_it_was_is_said() {
        let mut run = ended("web", ExitStatus::Signal(15));
        assert_eq!(exit_words(&run), "killed by SIGTERM");
        run.stopped = true;
        assert_eq!(exit_words(&run), "stopped by SIGTERM");
    }

    #[test]
    fn every_other_failure_has_its_word_and_its_note() {
        let start = StartFailure {
            stage: StartStage::Exec,
            errno: 13,
            path: None,
            message: "./server is not executable (EACCES)".into(),
            hint: Some("chmod +x ./server".into()),
            permanent: true,
        };
        let survivor = Survivor {
            process: ProcessId { pid: 812, start: 1 },
            command: "sleep\n\x1b[31m600".into(),
            uid: 0,
            reason: "it belongs to root".into(),
        };
        for (reason, text, note) in [
            (
                FailedReason::CrashLoop { starts: 10, within_ms: 12_000, why: None },
                "failed: crash loop, 10 starts in 12s",
                Some("last: failed: exit 1"),
            ),
            (
                FailedReason::Start(start),
                "failed to start",
                Some("./server is not executable (EACCES); chmod +x ./server"),
            ),
            (
                FailedReason::Dependency { chain: vec![name("api"), name("migrate")], cause: "exited 1".into() },
                "blocked by api",
                Some("migrate exited 1"),
            ),
            (
                FailedReason::Survivors { survivors: vec![survivor.clone(), survivor] },
                "failed: 2 processes left",
                Some("pid 812 (sleep  [31m600): it belongs to root, and 1 more"),
            ),
        ] {
            let status = ServiceStatus { state: State::Failed { reason }, ..exited(ExitStatus::Code(1)) };
            assert_eq!(word(&status, NOW).text, text);
            assert_eq!(failure_note(&status).as_deref(), note);
        }
    }

    #[test]
    fn who_is_to_blame_is_named_once_in_a_sentence() {
        let said = |chain: &[&str], cause: &str| {
            let chain = chain.iter().map(|one| name(one)).collect();
            let reason = FailedReason::Dependency { chain, cause: cause.into() };
            let status = service("web", State::Failed { reason });
            with_failure_note(&word(&status, NOW).text, &status)
        };
        for (cause, text) in [
            ("is stopped", "blocked by db, which is stopped"),
            ("was killed by SIGKILL", "blocked by db, which was killed by SIGKILL"),
            ("could not be started: no `x`", "blocked by db, which could not be started: no `x`"),
            ("ended, nobody saw how", "blocked by db, which ended, nobody saw how"),
        ] {
            assert_eq!(said(&["db"], cause), text);
        }
        assert_eq!(said(&["api", "db"], "exited 1"), "blocked by api: db exited 1");
    }

    #[test]
    fn what_is_waited_for_is_said_with_how_long_and_how_many_more_there_are() {
        let check = |probe: &str, passes, tries, answer: Option<&str>| CheckStatus {
            probe: probe.into(),
            passes,
            tries,
            answer: answer.map(str::to_owned),
            since: UnixMillis(NOW.0 - 12_000),
        };
        let tcp = check("connecting to port 80", false, 3, Some("refused the connection"));
        let log = check("output matching /up/", false, 0, Some("no line does"));
        let said = |health: &[CheckStatus]| {
            let status = ServiceStatus { health: health.to_vec(), ..service("web", State::Starting) };
            health_note(&status, NOW)
        };
        let asked = "connecting to port 80: refused the connection (asked 3 times in 12s)";
        assert_eq!(said(std::slice::from_ref(&tcp)).as_deref(), Some(asked));
        assert_eq!(said(std::slice::from_ref(&log)).as_deref(), Some("output matching /up/: no line does (for 12s)"));
        assert_eq!(said(&[check("`x`", false, 0, None)]).as_deref(), Some("`x`: no answer yet"));
        let passes = check("`x`", true, 1, None);
        let both = [passes.clone(), tcp.clone(), log.clone()];
        assert_eq!(said(&both), Some(format!("{asked}; 1 more check does not pass")));
        assert_eq!(said(&[tcp, log.clone(), log]), Some(format!("{asked}; 2 more checks do not pass")));
        assert_eq!(said(&[passes]), None);
    }

    #[test]
    fn everything_declared_is_shown_in_the_order_of_the_file_and_what_else_runs_after_it() {
        let spec = spec(&["db", "web"]);
        let mut known = project_status("shop", &["old"]);
        known.services.push(ready("gone"));
        known.services.push(ServiceStatus { spec_digest: Some("another".into()), ..ready("web") });
        let seen: Vec<(String, String, Vec<String>)> = rows(Some(&spec), Some(&known))
            .iter()
            .map(|row| (row.status.name.to_string(), word(&row.status, NOW).text, row.notes(NOW)))
            .collect();
        let expected = [
            ("db", "stopped", vec![]),
            ("web", "ready", vec!["changed since it started".to_owned()]),
            ("gone", "ready", vec!["not in the project file".to_owned()]),
        ];
        assert_eq!(seen, expected.map(|(name, word, notes)| (name.to_owned(), word.to_owned(), notes)));
    }

    #[test]
    fn an_unchanged_spec_and_a_stopped_service_are_not_called_changed() {
        let spec = spec(&["db", "web"]);
        let mut known = project_status("shop", &["db"]);
        known.services[0].spec_digest = Some("another".into());
        known.services.push(ServiceStatus { spec_digest: Some(spec.services[1].digest()), ..ready("web") });
        assert!(rows(Some(&spec), Some(&known)).iter().all(|row| !row.is_changed));
    }

    #[test]
    fn without_a_file_everything_known_is_shown() {
        let known = project_status("shop", &["db", "web"]);
        assert_eq!(rows(None, Some(&known)).len(), 2);
    }

    #[test]
    fn health_puts_what_is_wrong_first_and_tells_idle_from_settling() {
        let of = |states: &[State]| {
            let services: Vec<ServiceStatus> = states.iter().map(|state| service("x", state.clone())).collect();
            health(services.iter()).exit_code()
        };
        assert_eq!(of(&[]), 3);
        assert_eq!(of(&[State::Stopped]), 3);
        assert_eq!(of(&[State::Ready, State::Completed, State::Stopped]), 0);
        assert_eq!(of(&[State::Ready, State::Starting]), 5);
        assert_eq!(of(&[State::Starting, State::Failed { reason: FailedReason::Exited }]), 1);
        assert_eq!(of(&[State::Ready, State::Unready]), 1);
    }

    #[test]
    fn a_stop_is_counted_over_all_services() {
        let stopped = |processes, killed, unchanged| ServiceOutcome {
            service: ServiceStatus { desired: Desired::Down, ..service("web", State::Stopped) },
            result: OutcomeResult::Done,
            unchanged,
            ended: (!unchanged).then(|| Ended { processes, killed, ..ended("web", ExitStatus::Signal(15)) }),
        };
        let services = vec![stopped(3, 0, false), stopped(11, 2, false), stopped(0, 0, true)];
        let outcome = Outcome { services, took: Duration::from_millis(200) };
        assert_eq!(stop_totals(&outcome), StopTotals { services: 2, processes: 14, killed: 2, left: 0 });
        assert_eq!(outcome_code(&outcome), 0);
    }

    #[test]
    fn what_was_started_or_ended_by_itself_is_not_counted_as_ended() {
        let became = |service: ServiceStatus, ended: Option<Ended>| ServiceOutcome {
            service,
            result: OutcomeResult::Done,
            unchanged: false,
            ended,
        };
        let job = ended("migrate", ExitStatus::Code(0));
        let replaced = Ended { stopped: true, ..ended("web", ExitStatus::Signal(15)) };
        let services = vec![
            became(ready("db"), None),
            became(service("migrate", State::Completed), Some(job)),
            became(ready("web"), Some(replaced)),
        ];
        let outcome = Outcome { services, took: Duration::ZERO };
        assert_eq!(stop_totals(&outcome), StopTotals { services: 1, processes: 1, killed: 0, left: 0 });
    }

    #[test]
    fn a_failure_outweighs_a_lack_of_time() {
        let with = |results: &[OutcomeResult]| {
            let one = |result: &OutcomeResult| ServiceOutcome {
                service: service("web", State::Starting),
                result: *result,
                unchanged: false,
                ended: None,
            };
            outcome_code(&Outcome { services: results.iter().map(one).collect(), took: Duration::ZERO })
        };
        assert_eq!(with(&[OutcomeResult::Done]), 0);
        assert_eq!(with(&[OutcomeResult::TimedOut, OutcomeResult::Done]), 124);
        assert_eq!(with(&[OutcomeResult::TimedOut, OutcomeResult::Failed]), 1);
        assert_eq!(with(&[OutcomeResult::Superseded]), 1);
    }
}
