//! `up -f`: brings services up, then shows what they write until they have ended or somebody wants something else.
//!
//! [`run`] tells the story. One poll watches the daemon, the signals and the keys; the log is shown by a thread of its own,
//! which is told when no more is wanted and shows what is there by then. Once a Ctrl-C has asked for the end, the first
//! request to stop stays the one whose outcome is awaited, so that the numbers are those of the whole stop; the second
//! Ctrl-C only has the daemon hurry.

use std::io::{self, IsTerminal, PipeWriter};
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use locald_utils::config;
use locald_utils::name::{OwnerName, ServiceName};
use locald_utils::protocol::{Failure, FailureCode, Outcome, Request, ServiceStatus, State, WaitFor};
use locald_utils::selection;
use locald_utils::spec::ProjectSpec;
use locald_utils::time::UnixMillis;

use super::down::{retain_own, show_left_by, wanted};
use super::logs::{self, LogsArgs, Output, Source};
use super::{Limit, Start, attend, show_stop, width, with_daemon};
use crate::client::Client;
use crate::context::{Context, Place};
use crate::edits::Edits;
use crate::failure::{self, Problem};
use crate::person::{Person, Wish};
use crate::progress::Goal;
use crate::render::live::Reporter;
use crate::screen::{Screen, Tone};
use crate::view;

/// A year: there is no limit, and a number that every clock can add.
const NO_LIMIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const INTERRUPTED: u8 = 130;

/// Brings up what `start` is about, and follows it; with `applies_edits` what the project file says whenever it is saved.
pub(super) fn run(
    start: &Start<'_>,
    applies_edits: bool,
    context: &Context,
    screen: &mut Screen,
) -> Result<u8, Problem> {
    let place = context.place()?;
    let mut person = Person::attend().map_err(|error| failure::io("watch for interrupts", &error))?;
    if applies_edits {
        watch_edits(&mut person, &place)?;
    }
    let project = place.load()?;
    screen.mention(&format!("project file: {}", project.file.display()));
    let About { named, about, request, .. } = About::of(start, &project, context)?;
    let (client, up) = with_daemon(context, screen, |client, screen| {
        client.send(request.clone())?;
        let mut reporter = Reporter::new(screen, Goal::Up, width(&about));
        let up = until_wished(client, &mut reporter, Some(start.limit), &mut person);
        reporter.finish();
        up
    })?;
    let owner = start.owner.map(|owner| owner.name.clone());
    let color = screen.stdout_paint().is_on();
    let mut following = Following {
        client,
        person,
        project,
        named,
        owner,
        about,
        applies_edits,
        color,
        shown: Vec::new(),
        logs: Vec::new(),
        is_mistaken: false,
    };
    let mut wish = match up {
        Ok(outcome) => {
            start.show(&following.project, &outcome, context, screen)?;
            let code = view::outcome_code(&outcome);
            let is_over = outcome.services.iter().all(|service| is_over(&service.service.state));
            // Its last lines have been shown, and no more will come.
            if code != 0 && is_over && !applies_edits {
                return Ok(code);
            }
            None
        }
        Err(Wish::Edited) => Some(Wish::Edited),
        Err(wish) => return following.obey(wish, screen),
    };
    if !screen.quiet() {
        let keys = if following.person.has_keys() { "; d leaves them running" } else { "" };
        screen.say(&format!("following; Ctrl-C stops the services{keys}"));
    }
    let about = following.about.clone();
    following.show_log(&about, &place, context)?;
    loop {
        let next = match wish.take() {
            Some(wish) => wish,
            None => match following.until_over(applies_edits, screen)? {
                Ok(services) => return following.ended(&services, screen),
                Err(wish) => wish,
            },
        };
        match next {
            Wish::Edited => wish = following.apply_edit(start, &place, context, screen)?,
            Wish::Stop | Wish::Leave | Wish::LogEnded => return following.obey(next, screen),
        }
    }
}

/// What a start is about, and how the daemon is asked for it.
struct About {
    named: Vec<ServiceName>,
    about: Vec<ServiceName>,
    /// Those that are to be started, and what they depend on.
    started: Vec<ServiceName>,
    request: Request,
}

impl About {
    fn of(start: &Start<'_>, project: &ProjectSpec, context: &Context) -> Result<Self, Failure> {
        let known: Vec<_> = project.services.iter().map(|service| service.name.clone()).collect();
        let (services, profiles) = start.asked(project, context)?;
        // Who names some is about those, and about no other that somebody wants already.
        let meant = selection::meant(project, &services, &profiles, |_| false)?;
        let named = if services.is_empty() { Vec::new() } else { meant.clone() };
        let about = if named.is_empty() { known } else { named.clone() };
        let started = if meant.is_empty() {
            Vec::new()
        } else {
            selection::with_dependencies(project, &meant)?.into_iter().collect()
        };
        Ok(Self { named, about, started, request: start.request(project, services, profiles, context) })
    }
}

/// Watches what the project is read from. It is read after that, so that no save is missed.
fn watch_edits(person: &mut Person, place: &Place) -> Result<(), Failure> {
    // Without a project file reading it fails, and says so.
    let Some(file) = place.file() else { return Ok(()) };
    let edits = Edits::watch(&config::files(file)).map_err(|error| failure::io("watch the project file", &error))?;
    person.watch_edits(edits);
    Ok(())
}

/// What is followed.
struct Following {
    client: Client,
    person: Person,
    project: ProjectSpec,
    /// The services that were named; none means the whole project.
    named: Vec<ServiceName>,
    /// As whom they were started.
    owner: Option<OwnerName>,
    /// The services it is about: those, or all that the file declares.
    about: Vec<ServiceName>,
    /// Whether what the project file says is applied when it is saved.
    applies_edits: bool,
    /// Whether the log is shown with colours.
    color: bool,
    /// The services whose log is shown.
    shown: Vec<ServiceName>,
    /// Whether the last save had a mistake.
    is_mistaken: bool,
    logs: Vec<Log>,
}

/// The thread that shows the log.
struct Log {
    /// Dropped when no more is wanted.
    until: PipeWriter,
    thread: JoinHandle<Result<u8, Failure>>,
}

impl Following {
    /// Begins to show the log of some services as `logs -f` does.
    fn show_log(&mut self, services: &[ServiceName], place: &Place, context: &Context) -> Result<(), Problem> {
        let patterns: Vec<String> = services.iter().map(ToString::to_string).collect();
        let found = place.logs(context.home()?, &patterns)?;
        let sources: Vec<Source> = found.into_iter().map(|(name, dir)| Source { name, dir }).collect();
        let color = self.color;
        // There may be others beside it, now or after an edit.
        let with_prefix = self.applies_edits || self.shown.len() + services.len() > 1;
        let pipes = io::pipe().and_then(|until| Ok((until, io::pipe()?)));
        let ((until, hold), (over, showing)) = pipes.map_err(|error| failure::io("make a pipe", &error))?;
        let thread = thread::spawn(move || {
            // Closed with the end of this thread, however that comes.
            let _showing = showing;
            let output = Output {
                stdout: &mut io::stdout(),
                stderr: &mut io::stderr(),
                is_terminal: io::stdout().is_terminal(),
                color,
                hangup: io::stdout().as_fd().try_clone_to_owned().ok(),
                until: Some(until.into()),
            };
            logs::run(&LogsArgs::following(with_prefix), &sources, output)
        });
        self.person.watch_log(over);
        self.shown.extend_from_slice(services);
        self.logs.push(Log { until: hold, thread });
        Ok(())
    }

    /// Does what somebody wants, and ends.
    fn obey(mut self, wish: Wish, screen: &mut Screen) -> Result<u8, Problem> {
        match wish {
            Wish::Stop => self.stop(screen),
            Wish::Leave | Wish::Edited => self.leave(screen),
            // Whoever looked at it looks no more, and has not asked for the services to end.
            Wish::LogEnded => Ok(self.end_log(screen)?.unwrap_or(0)),
        }
    }

    /// Applies what the project file says now. A mistake in it changes nothing, and whatever cannot come about is said. Returns what
    /// somebody wanted meanwhile.
    fn apply_edit(
        &mut self,
        start: &Start<'_>,
        place: &Place,
        context: &Context,
        screen: &mut Screen,
    ) -> Result<Option<Wish>, Problem> {
        watch_edits(&mut self.person, place)?;
        let read = place.load().and_then(|project| Ok((About::of(start, &project, context)?, project)));
        let (About { named, about, started, mut request }, project) = match read {
            Ok(read) => read,
            Err(problem) => {
                failure::report(&problem, start.verb, screen);
                screen.say("nothing is changed; save it again when it is mended");
                self.is_mistaken = true;
                return Ok(None);
            }
        };
        let was_mistaken = std::mem::take(&mut self.is_mistaken);
        if project == self.project && !was_mistaken {
            return Ok(None);
        }
        screen.say(&format!("{} was saved, or an env file of it", project.file.display()));
        let is_same = |name: &ServiceName| {
            let of = |project: &ProjectSpec| project.services.iter().find(|service| service.name == *name).cloned();
            of(&self.project) == of(&project)
        };
        let changed: Vec<ServiceName> = started.into_iter().filter(|name| !is_same(name)).collect();
        if changed.is_empty() {
            screen.say("no service is another than before");
            (self.project, self.named, self.about) = (project, named, about);
            return Ok(None);
        }
        // What somebody has stopped meanwhile, or what has failed, is not started by another's edit.
        if let Request::Apply { services, profiles, .. } = &mut request {
            (*services, *profiles) = (changed, Vec::new());
        }
        let new: Vec<ServiceName> = about.iter().filter(|name| !self.shown.contains(name)).cloned().collect();
        self.client.send(request)?;
        let mut reporter = Reporter::new(screen, Goal::Up, width(&about));
        let outcome = until_wished(&mut self.client, &mut reporter, Some(start.limit), &mut self.person);
        reporter.finish();
        let outcome = match outcome {
            Ok(outcome) => outcome,
            // What was refused is not what it is about.
            Err(failure) => {
                failure::report(&failure.into(), start.verb, screen);
                return Ok(None);
            }
        };
        (self.project, self.named, self.about) = (project, named, about);
        // Not before: what a run of them wrote that is long over was seen then.
        if !new.is_empty() {
            self.show_log(&new, place, context)?;
        }
        match outcome {
            Ok(outcome) => start.show(&self.project, &outcome, context, screen)?,
            Err(wish) => return Ok(Some(wish)),
        }
        Ok(None)
    }

    /// Waits until nothing of what it is about runs or will run again. Returns how it stands then.
    ///
    /// [`WaitFor::Stopped`] holds between two attempts as well, so what waits for its next one is awaited again. Whoever `stays` does so
    /// when all have ended: the next edit may start them again.
    fn until_over(&mut self, stays: bool, screen: &mut Screen) -> Result<Result<Vec<ServiceStatus>, Wish>, Failure> {
        let (mut services, mut until) = (self.about.clone(), WaitFor::Stopped);
        loop {
            let project = self.project.id.clone();
            self.client.send(Request::Wait { project, services, until, timeout: NO_LIMIT })?;
            let outcome = match until_wished(&mut self.client, &mut Reporter::silent(screen), None, &mut self.person) {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(wish)) => return Ok(Err(wish)),
                // Somebody has ended the whole project.
                Err(failure) if failure.code == FailureCode::NotRunning => return Ok(Ok(Vec::new())),
                Err(failure) => return Err(failure),
            };
            let statuses: Vec<_> = outcome.services.into_iter().map(|service| service.service).collect();
            services = statuses.iter().filter(|status| !is_over(&status.state)).map(|s| s.name.clone()).collect();
            (services, until) = match until {
                WaitFor::Stopped if services.is_empty() && stays => {
                    screen.say(&format!("{}; the next save is applied", over(&statuses)));
                    let wish = self.person.wait().map_err(|error| failure::io("wait for an edit", &error))?;
                    return Ok(Err(wish));
                }
                WaitFor::Stopped if services.is_empty() => return Ok(Ok(statuses)),
                WaitFor::Stopped => (services, WaitFor::Ready),
                WaitFor::Ready | WaitFor::Completed => (self.about.clone(), WaitFor::Stopped),
            };
        }
    }

    /// Says that everything has ended by itself.
    fn ended(mut self, services: &[ServiceStatus], screen: &mut Screen) -> Result<u8, Problem> {
        if let Some(code) = self.end_log(screen)? {
            return Ok(code);
        }
        let failed = services.iter().filter(|service| matches!(service.state, State::Failed { .. }));
        let mut code = 0;
        for service in failed {
            let name = screen.stderr_paint().text(Tone::Bad, service.name.as_str());
            screen.say(&format!("{name}: {}", view::word(service, UnixMillis::now()).text));
            code = 1;
        }
        screen.say(&over(services));
        Ok(code)
    }

    /// Leaves the services running.
    fn leave(mut self, screen: &mut Screen) -> Result<u8, Problem> {
        let code = self.end_log(screen)?;
        screen.say(&format!("the services run on; {}", super::up::FAREWELL));
        Ok(code.unwrap_or(0))
    }

    /// Ends what it is about, and sooner with each Ctrl-C.
    fn stop(mut self, screen: &mut Screen) -> Result<u8, Problem> {
        let going = match &self.owner {
            Some(owner) => format!("{owner} leaves; press Ctrl-C again to kill what nobody else wants"),
            None => format!("stopping {}; press Ctrl-C again to kill them", view::count(self.running()?, "service")),
        };
        let services = (!self.named.is_empty()).then(|| self.named.clone());
        let owner = self.owner.clone();
        self.client.send(Request::Stop { project: self.project.id.clone(), services, now: false, owner })?;
        screen.say(&going);
        let mut is_hurried = false;
        let mut outcome = loop {
            // Where a log is shown, it shows the ends as well.
            let mut reporter = match self.logs.as_slice() {
                [] => Reporter::new(screen, Goal::Down, width(&self.about)),
                [..] => Reporter::silent(screen),
            };
            let news = until_wished(&mut self.client, &mut reporter, None, &mut self.person);
            reporter.finish();
            match news {
                Ok(Ok(outcome)) => break outcome,
                Ok(Err(Wish::Stop)) if !is_hurried => {
                    self.client.hurry()?;
                    screen.say("killing; press Ctrl-C again to leave that to the daemon");
                    is_hurried = true;
                }
                Ok(Err(Wish::Stop | Wish::Leave)) => return Ok(left_to_the_daemon(screen)),
                Ok(Err(Wish::LogEnded | Wish::Edited)) => {}
                Err(failure) if failure.code == FailureCode::NotRunning => {
                    break Outcome { services: Vec::new(), took: Duration::ZERO };
                }
                Err(failure) => return Err(failure.into()),
            }
        };
        if let Some(code) = self.end_log(screen)? {
            return Ok(code);
        }
        self.show_stays(&mut outcome, screen);
        let code = show_stop("up", None, &outcome, screen);
        let was_forced = outcome.services.iter().any(|service| service.ended.as_ref().is_some_and(|end| end.forced));
        Ok(stop_code(code, is_hurried, was_forced))
    }

    /// Says what stays although it has been asked to end what it is about: what others want as well, and what was not named.
    fn show_stays(&mut self, outcome: &mut Outcome, screen: &mut Screen) {
        // On the side: what was asked for is done.
        let projects = self.client.status(Some(&self.project.id)).unwrap_or_default();
        if let Some(owner) = &self.owner {
            retain_own(outcome);
            show_left_by(owner, projects.first(), screen);
            return;
        }
        let stays: Vec<&str> = wanted(projects.first()).map(|service| service.name.as_str()).collect();
        if !stays.is_empty() {
            screen.note(&format!("not named, and still wanted: {}; `locald down` ends all", stays.join(", ")));
        }
    }

    /// How many of the services it is about run, or are to.
    fn running(&mut self) -> Result<usize, Failure> {
        let projects = self.client.status(Some(&self.project.id))?;
        let services = projects.iter().flat_map(|project| &project.services);
        let meant = services.filter(|service| self.named.is_empty() || self.named.contains(&service.name));
        Ok(meant.filter(|service| !is_over(&service.state)).count())
    }

    /// Has the log shown up to what is there, and waits for that. Some exit code if somebody does not want to wait.
    fn end_log(&mut self, screen: &mut Screen) -> Result<Option<u8>, Failure> {
        let no_more = |Log { until, thread }: Log| {
            drop(until);
            thread
        };
        let threads: Vec<_> = self.logs.drain(..).map(no_more).collect();
        while self.person.watches_log() {
            match self.person.wait().map_err(|error| failure::io("wait for the log", &error))? {
                Wish::LogEnded | Wish::Edited => {}
                Wish::Stop | Wish::Leave => {
                    screen.say("interrupted; not all of the log was shown");
                    return Ok(Some(INTERRUPTED));
                }
            }
        }
        for thread in threads {
            match thread.join() {
                Ok(shown) => drop(shown?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(None)
    }
}

/// Waits for the outcome of the request that was sent, or for a wish.
fn until_wished(
    client: &mut Client,
    reporter: &mut Reporter<'_>,
    limit: Option<Limit>,
    person: &mut Person,
) -> Result<Result<Outcome, Wish>, Failure> {
    let limit = limit.and_then(|limit| limit.timeout.checked_add(super::SLACK));
    loop {
        if let Some(outcome) = attend(client, reporter, limit, &person.fds())? {
            return Ok(Ok(outcome));
        }
        if let Some(wish) = person.wish() {
            return Ok(Err(wish));
        }
    }
}

/// Says that nothing runs any more, and for want of whom, if that is why.
fn over(services: &[ServiceStatus]) -> String {
    match view::forsaken_note(services) {
        Some(note) => format!("nothing runs any more, for nobody wants it {note}"),
        None => "nothing runs any more".to_owned(),
    }
}

/// Says that the end is not waited for.
fn left_to_the_daemon(screen: &mut Screen) -> u8 {
    screen.say("interrupted; the daemon goes on ending the services");
    INTERRUPTED
}

/// Whether nothing of a service runs, and nothing will unless somebody asks for it.
fn is_over(state: &State) -> bool {
    match state {
        State::Stopped | State::Completed | State::Failed { .. } => true,
        State::Waiting { .. }
        | State::Spawning
        | State::Starting
        | State::Ready
        | State::Unready
        | State::Stopping { .. }
        | State::Backoff { .. }
        | State::Unknown => false,
    }
}

/// The exit code of a stop: `code` is that of the stop itself, which is 0 when nothing is left.
fn stop_code(code: u8, is_hurried: bool, was_forced: bool) -> u8 {
    match code {
        0 if is_hurried => INTERRUPTED,
        // It did not end when it was asked to.
        0 if was_forced => FailureCode::Failed.exit_code(),
        code => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_that_was_not_gentle_shows_in_its_code() {
        for (code, is_hurried, was_forced, expected) in
            [(0, false, false, 0), (0, false, true, 1), (0, true, true, 130), (0, true, false, 130), (1, true, true, 1)]
        {
            assert_eq!(stop_code(code, is_hurried, was_forced), expected, "{code} {is_hurried} {was_forced}");
        }
    }
}
