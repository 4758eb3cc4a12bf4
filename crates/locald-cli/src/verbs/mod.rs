//! One file for each verb: what it asks for, what it shows, which exit code it ends with.
//!
//! This file sends each verb to its own, and holds what several of them do.

pub(crate) mod attach;
mod check;
mod completions;
mod config;
mod daemon;
mod doctor;
mod down;
mod dry_run;
mod follow;
pub(crate) mod logs;
mod ls;
mod ports;
mod restart;
mod run;
mod start;
mod status;
mod stop;
#[cfg(test)]
mod tests;
mod up;
mod wait;
mod watch;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use locald_utils::name::{ProfileName, ServiceName};
use locald_utils::process::user_name;
use locald_utils::protocol::{
    Action, Failure, FailureCode, Outcome, OutcomeResult, Owner, Reply, Request, ServiceOutcome,
};
use locald_utils::spec::ProjectSpec;
use locald_utils::time::UnixMillis;

use crate::args::{DryRun, Limit, Profiles, Services, Verb};
use crate::client::{self, Client, News};
use crate::context::Context;
use crate::daemon as starter;
use crate::diagnosis::shell::quoted;
use crate::failure::{self, Problem};
use crate::interrupt::Interrupts;
use crate::progress::Goal;
use crate::render::live::Reporter;
use crate::render::{human, json};
use crate::screen::Screen;
use crate::{names, output, preview, view};

/// 10 s on top of the limit that the daemon keeps itself; after that it is the daemon that does not answer.
const SLACK: Duration = Duration::from_secs(10);

/// What someone may do who has no time for a grace period.
const KILL_ADVICE: &str = "the same command with --now kills what is left at once";

/// Carries out one verb. Returns the exit code of the process.
///
/// # Errors
/// Why it could not do its work.
pub(crate) fn run(verb: &Verb, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    match verb {
        Verb::Up(args) => up::run(args, context, screen),
        Verb::Down(args) => down::run(args, context, screen),
        Verb::Start(args) => start::run(args, context, screen),
        Verb::Stop(args) => stop::run(args, context, screen),
        Verb::Restart(args) => restart::run(args, context, screen),
        Verb::Run(args) => run::run(args, context, screen),
        Verb::Status(args) => status::run(args, context, screen),
        Verb::Logs(args) => logs::verb(args, context, screen),
        Verb::Attach(args) => attach::run(args, context, screen),
        Verb::Screen(args) => attach::screen(args, context, screen),
        Verb::Ls => ls::run(context, screen),
        Verb::Ports => ports::run(context, screen),
        Verb::Check => check::run(context, screen),
        Verb::Config(args) => config::run(args, context, screen),
        Verb::Wait(args) => wait::run(args, context, screen),
        Verb::Daemon(args) => daemon::run(&args.verb, context, screen),
        Verb::Doctor => Ok(doctor::run(context, screen)),
        Verb::Completions(args) => Ok(completions::run(args, screen)),
    }
}

/// What a verb waits for, and what it says if the person does not.
struct Wait<'a> {
    goal: Goal,
    /// The longest of the names, for the column.
    width: usize,
    /// After this the daemon counts as hanging. `None` where the daemon's own limits depend on each service.
    limit: Option<Duration>,
    /// What goes on although the person interrupted.
    interrupted: &'a str,
    /// What an interrupted person may do then.
    advice: &'a str,
}

/// Sends a request and shows its progress until its outcome is there.
fn carry_out(client: &mut Client, request: Request, wait: &Wait<'_>, screen: &mut Screen) -> Result<Outcome, Failure> {
    let interrupts = Interrupts::catch().map_err(|error| failure::io("watch for interrupts", &error))?;
    client.send(request)?;
    let mut reporter = Reporter::new(screen, wait.goal, wait.width);
    let result = attend(client, &mut reporter, wait.limit, &[interrupts.as_fd()]);
    reporter.finish();
    result?.ok_or_else(|| Failure::new(FailureCode::Interrupted, wait.interrupted).hint(wait.advice))
}

/// Carries out a stop. `None` when the last of the project has ended by itself meanwhile.
fn carry_out_stop(
    client: &mut Client,
    request: Request,
    wait: &Wait<'_>,
    screen: &mut Screen,
) -> Result<Option<Outcome>, Failure> {
    match carry_out(client, request, wait, screen) {
        Err(failure) if failure.code == FailureCode::NotRunning => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// Shows the progress of the request that was sent until its outcome is there. `None` when one of `others` is readable
/// first.
fn attend(
    client: &mut Client,
    reporter: &mut Reporter<'_>,
    limit: Option<Duration>,
    others: &[BorrowedFd<'_>],
) -> Result<Option<Outcome>, Failure> {
    let began = std::time::Instant::now();
    let until = limit.and_then(|limit| began.checked_add(limit));
    loop {
        let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(std::time::Instant::now()));
        let news = match client.next(reporter.patience().min(left), others) {
            Err(_) if client.is_forsaken() => {
                starter::go_on(client)?;
                continue;
            }
            // The next daemon has nothing left to end, and forgot what it was.
            Err(failure) if failure.code == FailureCode::NotRunning && client.goes_on_ending() => {
                return Ok(Some(Outcome { services: Vec::new(), took: began.elapsed() }));
            }
            news => news?,
        };
        match news {
            News::Service(status) => reporter.observe(&status),
            News::Reply(Reply::Outcome(outcome)) => return Ok(Some(outcome)),
            News::Reply(
                other @ (Reply::Preview { .. } | Reply::Status { .. } | Reply::Ports { .. } | Reply::Daemon(_)),
            ) => {
                return Err(client::unexpected(&other));
            }
            News::Quiet if left.is_zero() => return Err(no_outcome(client, limit.unwrap_or_default())),
            News::Quiet => {}
            News::Interrupted => return Ok(None),
        }
        reporter.tick();
    }
}

fn no_outcome(client: &Client, limit: Duration) -> Failure {
    let (pid, limit) = (client.daemon().pid, locald_utils::time::human(limit));
    let message = format!("the daemon (pid {pid}) did not say how it ended within {limit}");
    Failure::new(FailureCode::TimedOut, message).hint("`locald status` tells how things stand")
}

/// A verb that starts services: `up`, `start` or `restart`.
struct Start<'a> {
    verb: &'static str,
    action: Action,
    services: &'a Services,
    profiles: &'a Profiles,
    limit: Limit,
    /// Whether to start also beside what could not be ended.
    force: bool,
    /// As whom.
    owner: Option<&'a Owner>,
    /// Said when all went well.
    farewell: Option<&'static str>,
}

impl Start<'_> {
    /// Does it, or says only what would be done.
    fn run_or_tell(&self, dry_run: DryRun, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
        if dry_run.dry_run { dry_run::run(self, dry_run, context, screen) } else { self.run(context, screen) }
    }

    /// Starts what the person named, and waits until it is ready.
    fn run(&self, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
        let project = context.place()?.load()?;
        screen.mention(&format!("project file: {}", project.file.display()));
        let (mut client, outcome) = self.carry_out(&project, context, screen)?;
        if outcome.services.iter().any(|service| service.unchanged && service.service.leader.is_some()) {
            self.compare_environments(&project, &mut client, context, screen)?;
        }
        self.show(&project, &outcome, context, screen)?;
        Ok(view::outcome_code(&outcome))
    }

    /// Says which services that were left alone have another environment than they would be given now.
    fn compare_environments(
        &self,
        project: &ProjectSpec,
        client: &mut Client,
        context: &Context,
        screen: &mut Screen,
    ) -> Result<(), Failure> {
        if screen.json() || screen.quiet() {
            return Ok(());
        }
        let (services, profiles) = self.asked(project, context)?;
        // Whatever runs now is compared, so it is about services that are there, not about what is asked. On the side: a daemon
        // that cannot say it has done what it was asked for.
        let request = Start { action: Action::Start, ..*self }.preview(project, services, profiles, context);
        let note = client.preview(request).ok().and_then(|previews| preview::environment_note(&previews));
        if let Some(note) = note {
            screen.note(&note);
        }
        Ok(())
    }

    fn carry_out(
        &self,
        project: &ProjectSpec,
        context: &Context,
        screen: &mut Screen,
    ) -> Result<(Client, Outcome), Failure> {
        let known: Vec<_> = project.services.iter().map(|service| service.name.clone()).collect();
        let (services, profiles) = self.asked(project, context)?;
        let wait = Wait {
            goal: Goal::Up,
            width: width(&known),
            limit: self.limit.timeout.checked_add(SLACK),
            interrupted: "interrupted; the services go on starting",
            advice: "`locald status` shows them, `locald down` ends them",
        };
        let request = self.request(project, services, profiles, context);
        let attempt = |client: &mut Client, screen: &mut Screen| carry_out(client, request.clone(), &wait, screen);
        with_daemon(context, screen, attempt)
    }

    /// What is asked of the daemon to learn what it would do.
    fn preview(
        &self,
        project: &ProjectSpec,
        services: Vec<ServiceName>,
        profiles: Vec<ProfileName>,
        context: &Context,
    ) -> Request {
        Request::Preview {
            project: Box::new(project.clone()),
            environment: context.environment(),
            services,
            profiles,
            action: self.action,
            force: self.force,
        }
    }

    /// The services and the profiles that the person asks for.
    fn asked(&self, project: &ProjectSpec, context: &Context) -> Result<(Vec<ServiceName>, Vec<ProfileName>), Failure> {
        let known: Vec<_> = project.services.iter().map(|service| service.name.clone()).collect();
        let services = names::select(&self.services.patterns, &known, project.name.as_str())?;
        let profiles = names::profiles(&self.profiles.patterns, project)?;
        if services.is_empty() && profiles.is_empty() {
            let usual = context.usual_profiles();
            return Ok((services, names::usual_profiles(&usual, project)));
        }
        Ok((services, profiles))
    }

    /// What is asked of the daemon.
    fn request(
        &self,
        project: &ProjectSpec,
        services: Vec<ServiceName>,
        profiles: Vec<ProfileName>,
        context: &Context,
    ) -> Request {
        Request::Apply {
            project: Box::new(project.clone()),
            environment: context.environment(),
            services,
            profiles,
            action: self.action,
            force: self.force,
            owner: self.owner.cloned(),
            timeout: self.limit.timeout,
        }
    }

    fn show(
        &self,
        project: &ProjectSpec,
        outcome: &Outcome,
        context: &Context,
        screen: &mut Screen,
    ) -> Result<(), Failure> {
        show_started(self.verb, project, outcome, context, screen)?;
        if !screen.json() && !screen.quiet() {
            screen.answer(&human::started(project.name.as_str(), outcome));
            if let Some(farewell) = self.farewell.filter(|_| view::outcome_code(outcome) == 0) {
                screen.answer(farewell);
            }
        }
        Ok(())
    }
}

/// Shows what became of a start: which services failed and why; for programs all of it.
fn show_started(
    verb: &str,
    project: &ProjectSpec,
    outcome: &Outcome,
    context: &Context,
    screen: &mut Screen,
) -> Result<(), Failure> {
    let now = UnixMillis::now();
    let home = context.home()?;
    let last_lines = |service: &ServiceOutcome| match service.service.run {
        Some(run) if has_output_to_show(service) => {
            output::last_lines(home, &project.id, &project.name, &service.service.name, run)
        }
        Some(_) | None => Vec::new(),
    };
    let outputs: Vec<Vec<String>> = outcome.services.iter().map(last_lines).collect();
    if screen.json() {
        let project = json::Project::of_spec(project);
        screen.answer(&json::outcome(verb, Some(&project), outcome, &outputs, now));
        return Ok(());
    }
    for (service, output) in outcome.services.iter().zip(&outputs) {
        match service.result {
            OutcomeResult::Failed | OutcomeResult::TimedOut => {
                screen.say(&human::why_failed(service, output, now, screen.stderr_paint()));
            }
            OutcomeResult::Done | OutcomeResult::Superseded => {}
        }
    }
    Ok(())
}

/// Asks a daemon, which is started if there is none.
fn with_daemon<T>(
    context: &Context,
    screen: &mut Screen,
    mut attempt: impl FnMut(&mut Client, &mut Screen) -> Result<T, Failure>,
) -> Result<(Client, T), Failure> {
    let mut client = starter::connect_or_start(context.home()?, screen)?;
    let answer = match attempt(&mut client, screen) {
        // It was leaving as we came. Nothing was begun, and the next one takes the request.
        Err(failure) if failure.code == FailureCode::ShuttingDown => {
            client.until_closed(SLACK);
            client = starter::connect_or_start(context.home()?, screen)?;
            attempt(&mut client, screen)
        }
        answer => answer,
    };
    Ok((client, answer?))
}

/// The longest of some names, for their column.
fn width<'a>(names: impl IntoIterator<Item = &'a ServiceName>) -> usize {
    names.into_iter().map(|name| name.as_str().len()).max().unwrap_or(0)
}

/// Whether a service failed by something it did itself, which its output may explain.
fn has_output_to_show(service: &ServiceOutcome) -> bool {
    use locald_utils::protocol::{FailedReason, State};
    match (&service.result, &service.service.state) {
        (OutcomeResult::Done | OutcomeResult::Superseded, _) => false,
        (_, State::Failed { reason: FailedReason::Dependency { .. } | FailedReason::Start(_) }) => false,
        (OutcomeResult::Failed | OutcomeResult::TimedOut, _) => true,
    }
}

/// Shows what became of a stop, and returns the exit code.
fn show_stop(verb: &str, project: Option<&json::Project<'_>>, outcome: &Outcome, screen: &mut Screen) -> u8 {
    let now = UnixMillis::now();
    if screen.json() {
        screen.answer(&json::outcome(verb, project, outcome, &[], now));
        return view::outcome_code(outcome);
    }
    screen.say(&human::not_stopped(outcome, user_name, now, screen.stderr_paint()));
    let code = view::outcome_code(outcome);
    if !screen.quiet() {
        let was_idle = outcome.services.iter().all(|service| service.unchanged && service.ended.is_none());
        let text = match code {
            // They ended while one daemon took the place of another.
            0 if outcome.services.is_empty() => "nothing runs any more".to_owned(),
            0 if was_idle => "nothing was running".to_owned(),
            _ => human::stopped(outcome),
        };
        screen.answer(&text);
    }
    code
}

/// Says which projects run whose directories are gone. A project that was moved is known by where it was.
fn show_lost(client: &mut Client, screen: &mut Screen) -> Result<(), Failure> {
    for project in client.status(None)? {
        if project.dir.exists() || !project.services.iter().any(|service| view::is_alive(&service.state)) {
            continue;
        }
        let (name, dir) = (&project.name, project.dir.display());
        let place = quoted(&project.dir.to_string_lossy());
        screen.note(&format!("{name} runs on from {dir}, which is gone: `locald -C {place} down` ends it"));
    }
    Ok(())
}

/// Shows that there was nothing to stop.
fn show_nothing_runs(verb: &str, screen: &mut Screen) {
    let nothing = Outcome { services: Vec::new(), took: Duration::ZERO };
    if screen.json() {
        screen.answer(&json::outcome(verb, None, &nothing, &[], UnixMillis::now()));
    } else if !screen.quiet() {
        screen.answer("nothing was running");
    }
}
