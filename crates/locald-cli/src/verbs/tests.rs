//! Verbs as a whole: what they ask a daemon that follows a script, what they show, how they end.

use std::path::Path;
use std::time::Duration;

use locald_utils::name::{ProjectId, RunNumber};
use locald_utils::paths::{Home, service_dir};
use locald_utils::process::ProcessId;
use locald_utils::protocol::{
    DaemonStatus, Event, FailedReason, Outcome, OutcomeResult, Reply, Request, ServiceOutcome, ServiceStatus, State,
};
use locald_utils::record::{Ended, ExitStatus, Survivor};
use locald_utils::time::UnixMillis;

use super::*;
use crate::args::{AsOwner, DaemonArgs, DaemonVerb, DownArgs, DryRun, StatusArgs, StopArgs, Until, UpArgs, WaitArgs};
use crate::testing::{Captured, FakeDaemon, NOW, Step, ended, name, ready, service, spec};

/// A command that was carried out.
struct Ran {
    code: u8,
    stdout: String,
    stderr: String,
}

fn ran(verb: &Verb, context: &Context, json: bool) -> Ran {
    let captured = Captured::default();
    let mut screen = captured.screen_with(json, false);
    let code = run(verb, context, &mut screen).unwrap_or_else(|problem| {
        failure::report(&problem, verb.name(), &mut screen);
        problem.exit_code()
    });
    Ran { code, stdout: captured.stdout(), stderr: captured.stderr() }
}

fn with(daemon: &FakeDaemon, verb: &Verb) -> Ran {
    ran(verb, &Context::within(&daemon.home, &daemon.project), false)
}

/// A home without a daemon, and a directory for a project.
fn alone(verb: &Verb, file: Option<&str>) -> Ran {
    let dir = tempfile::tempdir().expect("a directory");
    if let Some(text) = file {
        std::fs::write(dir.path().join("locald.toml"), text).expect("writes");
    }
    ran(verb, &Context::within(&Home::under(&dir.path().join("home")), dir.path()), false)
}

fn down() -> Verb {
    Verb::Down(DownArgs { now: false, owner: None })
}

fn stop(patterns: &[&str]) -> Verb {
    let patterns = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
    Verb::Stop(StopArgs { services: Services { patterns }, now: true })
}

fn wait(until: Until) -> Verb {
    let limit = Limit { timeout: Duration::from_secs(3) };
    Verb::Wait(WaitArgs { services: Services::default(), until, limit })
}

fn daemon_verb(verb: DaemonVerb) -> Verb {
    Verb::Daemon(DaemonArgs { verb })
}

fn became(service: ServiceStatus, result: OutcomeResult) -> ServiceOutcome {
    ServiceOutcome { service, result, unchanged: false, ended: None }
}

fn stopped(service_name: &str) -> ServiceOutcome {
    let run = Ended { stopped: true, processes: 3, ..ended(service_name, ExitStatus::Signal(15)) };
    let done = became(service(service_name, State::Stopped), OutcomeResult::Done);
    ServiceOutcome { ended: Some(run), ..done }
}

fn outcome(services: Vec<ServiceOutcome>) -> Step {
    Step::Reply(Reply::Outcome(Outcome { services, took: Duration::from_millis(200) }))
}

fn event(status: ServiceStatus) -> Step {
    Step::Event(Event::Service(Box::new(status)))
}

#[test]
fn down_shows_each_service_and_ends_with_numbers() {
    let daemon = FakeDaemon::start(vec![
        Step::Request,
        Step::Project(vec![ready("db"), ready("web")]),
        Step::Request,
        event(service("web", State::Stopping { kill_at: None })),
        event(service("web", State::Stopped)),
        event(service("db", State::Stopped)),
        outcome(vec![stopped("db"), stopped("web")]),
    ]);
    let ran = with(&daemon, &down());
    assert_eq!(ran.stdout, "2 services stopped, 6 processes ended, 0 left in 200ms\n");
    assert_eq!(ran.stderr, "web  stopping\nweb  stopped\ndb   stopped\n");
    assert_eq!(ran.code, 0);
    let id = ProjectId::of_directory(&daemon.project);
    assert_eq!(daemon.requests()[1], Request::Stop { project: id, services: None, now: false, owner: None });
}

// What ends by itself between the look and the request made `down` fail.
#[test]
fn down_of_what_has_ended_meanwhile_has_nothing_left_to_do() {
    let gone = Failure::new(FailureCode::NotRunning, "nothing of this project runs");
    let daemon = FakeDaemon::start(vec![
        Step::Request,
        Step::Project(vec![service("web", State::Stopping { kill_at: None })]),
        Step::Request,
        Step::Failure(gone),
    ]);
    let ran = with(&daemon, &down());
    assert_eq!((ran.stdout.as_str(), ran.code), ("nothing was running\n", 0));
}

#[test]
fn down_names_what_it_could_not_end_and_fails() {
    let process = ProcessId { pid: 812, start: 1 };
    let survivor = Survivor { process, command: "sleep 9".into(), uid: 0, reason: "not permitted".into() };
    let state = State::Failed { reason: FailedReason::Survivors { survivors: vec![survivor] } };
    let daemon = FakeDaemon::start(vec![
        Step::Request,
        Step::Project(vec![ready("web")]),
        Step::Request,
        outcome(vec![became(service("web", state), OutcomeResult::Failed)]),
    ]);
    let ran = with(&daemon, &down());
    assert_eq!(ran.stderr, "error: web: pid 812 (sleep 9) of user root is still alive: not permitted\n");
    assert_eq!(ran.stdout, "0 services stopped, 0 processes ended, 1 left in 200ms\n");
    assert_eq!(ran.code, 1);
}

#[test]
fn down_works_although_the_file_is_broken_or_gone() {
    for file in [Some("[services.web\n"), None] {
        let daemon = FakeDaemon::start(vec![
            Step::Request,
            Step::Project(vec![ready("web")]),
            Step::Request,
            outcome(vec![stopped("web")]),
        ]);
        if let Some(text) = file {
            std::fs::write(daemon.project.join("locald.toml"), text).expect("writes");
        }
        let ran = with(&daemon, &down());
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{file:?}");
    }
}

#[test]
fn down_without_anything_running_is_done_and_without_a_project_is_not() {
    let ran = alone(&down(), Some(""));
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, "nothing was running\n", ""));
    assert_eq!(alone(&down(), None).code, 4);
}

#[test]
fn down_as_json_has_every_field() {
    let daemon = FakeDaemon::start(vec![
        Step::Request,
        Step::Project(vec![ready("web")]),
        Step::Request,
        outcome(vec![stopped("web")]),
    ]);
    let ran = ran(&down(), &Context::within(&daemon.home, &daemon.project), true);
    let dir = daemon.project.display();
    let id = ProjectId::of_directory(&daemon.project);
    assert_eq!(
        ran.stdout,
        format!(
            "{{\"schema\":1,\"verb\":\"down\",\"ok\":true,\
             \"project\":{{\"name\":\"shop\",\"id\":\"{id}\",\"dir\":\"{dir}\",\"file\":\"{dir}/locald.toml\"}},\
             \"took_ms\":200,\"totals\":{{\"services\":1,\"processes\":3,\"killed\":0,\"left\":0}},\
             \"services\":[{{\"result\":\"done\",\"unchanged\":false,\
             \"name\":\"web\",\"kind\":\"service\",\"desired\":\"up\",\"state\":\"stopped\",\"text\":\"stopped\",\
             \"run\":null,\"pid\":null,\"started_at\":null,\"ready_at\":null,\"uptime_ms\":null,\"restarts\":0,\
             \"port\":null,\"last\":null,\"notes\":[],\
             \"ended\":{{\"run\":7,\"exit_code\":null,\"signal\":\"SIGTERM\",\"stopped\":true,\"forced\":false,\
             \"started_at\":987800,\"exited_at\":988000,\"ended_at\":988000,\"processes\":3,\"killed\":0,\
             \"strays\":[],\"survivors\":[],\"stop_ms\":4,\"lost_output_bytes\":0}}}}]}}\n"
        )
    );
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[test]
fn stop_checks_the_names_before_it_touches_anything() {
    let daemon = FakeDaemon::start(vec![Step::Request, Step::Project(vec![ready("web")]), Step::Wait]);
    let ran = with(&daemon, &stop(&["wbe"]));
    assert_eq!(ran.stderr, "error: no service `wbe` in shop\nhint: did you mean `web`? its services: web\n");
    assert_eq!(ran.code, 4);
    assert_eq!(daemon.requests().len(), 1);
}

#[test]
fn stop_names_its_services_and_without_names_all_of_them() {
    for (patterns, names) in [(&["w*"][..], &["web"][..]), (&[], &["db", "web"])] {
        let daemon = FakeDaemon::start(vec![
            Step::Request,
            Step::Project(vec![ready("db"), ready("web")]),
            Step::Request,
            outcome(vec![stopped("web")]),
        ]);
        assert_eq!(with(&daemon, &stop(patterns)).code, 0);
        let project = ProjectId::of_directory(&daemon.project);
        let services = Some(names.iter().map(|each| name(each)).collect());
        assert_eq!(daemon.requests()[1], Request::Stop { project, services, now: true, owner: None });
    }
}

#[test]
fn status_shows_what_runs_although_the_file_is_broken() {
    let web = ServiceStatus { started_at: None, port: Some(3000), ..ready("web") };
    let daemon = FakeDaemon::start(vec![Step::Request, Step::Project(vec![web, service("db", State::Stopped)])]);
    std::fs::write(daemon.project.join("locald.toml"), "[services.web\n").expect("writes");
    let ran = with(&daemon, &Verb::Status(StatusArgs::default()));
    let dir = daemon.project.display();
    assert_eq!(
        ran.stdout,
        format!(
            "\
SERVICE  STATE    UPTIME  RESTARTS  PORTS  NOTE
web      ready    -       0         3000
db       stopped  -       0         -

shop in {dir}; its project file has mistakes, `locald check` shows them
"
        )
    );
    assert_eq!(ran.code, 0);
}

#[test]
fn status_in_short_and_as_exit_code() {
    let states = vec![ready("web"), service("api", State::Starting), service("db", State::Stopped)];
    let daemon = FakeDaemon::start(vec![Step::Request, Step::Project(states)]);
    let args = StatusArgs { short: true, exit_code: true, ..StatusArgs::default() };
    let ran = with(&daemon, &Verb::Status(args));
    assert_eq!((ran.stdout.as_str(), ran.code), ("1/3 ready\n", 5));
}

#[test]
fn status_of_a_broken_file_that_nobody_runs_shows_its_mistakes() {
    assert_eq!(alone(&Verb::Status(StatusArgs::default()), Some("[services.web\n")).code, 2);
}

#[test]
fn wait_tells_what_did_not_come_about() {
    let daemon = FakeDaemon::start(vec![
        Step::Request,
        Step::Project(vec![service("web", State::Starting)]),
        Step::Request,
        outcome(vec![became(service("web", State::Starting), OutcomeResult::TimedOut)]),
    ]);
    let ran = with(&daemon, &wait(Until::Ready));
    assert_eq!((ran.code, ran.stderr.as_str()), (124, "web is not ready after 3.0s: starting\n"));
}

#[test]
fn stop_of_what_was_never_started_is_done() {
    let daemon = FakeDaemon::start(vec![Step::Request, Step::Project(Vec::new())]);
    assert_eq!(with(&daemon, &stop(&[])).stdout, "nothing was running\n");
}

#[test]
fn a_daemon_that_dies_and_can_have_no_successor_is_told() {
    let daemon = FakeDaemon::start(vec![
        Step::Request,
        Step::Project(vec![ready("web")]),
        Step::Request,
        event(service("web", State::Stopping { kill_at: None })),
        Step::Close,
    ]);
    let ran = with(&daemon, &down());
    assert!(ran.stderr.starts_with("web  stopping\nerror: the daemon's program is missing: "), "{}", ran.stderr);
    assert_eq!(ran.code, 1);
}

#[test]
fn the_daemon_verbs_without_a_daemon() {
    let ran = alone(&daemon_verb(DaemonVerb::Status), None);
    assert_eq!((ran.code, ran.stdout.as_str()), (3, "no daemon runs; verbs that need one start it\n"));
    for all in [false, true] {
        let ran = alone(&daemon_verb(DaemonVerb::Stop { all }), None);
        assert_eq!((ran.code, ran.stdout.as_str()), (0, "no daemon was running\n"));
    }
    let ran = alone(&Verb::Ls, None);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""));
}

fn about(runs: u32) -> Step {
    let dir = Path::new("/home/ann/.local/state/locald");
    Step::Reply(Reply::Daemon(DaemonStatus {
        version: "0.1.0".into(),
        protocol: 1,
        pid: 812,
        started_at: NOW,
        epoch: 4,
        home: dir.into(),
        socket: "/run/user/1000/locald/daemon.sock".into(),
        log: dir.join("daemon.log"),
        projects: 1,
        runs,
        clients: 1,
    }))
}

#[test]
fn daemon_stop_says_that_services_run_on() {
    let daemon = FakeDaemon::start(vec![Step::Request, about(3), Step::Request, outcome(Vec::new()), Step::Close]);
    let ran = with(&daemon, &daemon_verb(DaemonVerb::Stop { all: false }));
    let text = "the daemon has ended; 3 services run on, and the next daemon takes over\n";
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (0, text, ""));
    assert_eq!(daemon.requests(), [Request::Daemon, Request::Shutdown { all: false }]);
}

/// Carries out `up` on a project of two services, whose file need not exist.
fn up(daemon: &FakeDaemon, json: bool) -> Ran {
    let args = UpArgs {
        dry_run: DryRun::default(),
        follow: false,
        force: false,
        owner: AsOwner::default(),
        watch_config: false,
        services: Services::default(),
        profiles: Profiles::default(),
        limit: Limit { timeout: Duration::from_secs(60) },
    };
    let start = Start {
        verb: "up",
        action: Action::Up,
        services: &args.services,
        profiles: &args.profiles,
        limit: args.limit,
        force: false,
        owner: None,
        farewell: Some("follow with `locald logs -f`, stop with `locald down`"),
    };
    let (captured, context) = (Captured::default(), Context::within(&daemon.home, &daemon.project));
    let mut screen = captured.screen_with(json, false);
    let project = spec(&["db", "web"]);
    let code = match start.carry_out(&project, &context, &mut screen) {
        Ok((_, outcome)) => {
            start.show(&project, &outcome, &context, &mut screen).expect("a home");
            view::outcome_code(&outcome)
        }
        Err(failure) => failure.code.exit_code(),
    };
    Ran { code, stdout: captured.stdout(), stderr: captured.stderr() }
}

#[test]
fn up_shows_every_step_and_how_to_go_on() {
    let daemon = FakeDaemon::start(vec![
        Step::Request,
        event(service("db", State::Spawning)),
        event(service("db", State::Starting)),
        event(ready("db")),
        event(ready("web")),
        outcome(vec![became(ready("db"), OutcomeResult::Done), became(ready("web"), OutcomeResult::Done)]),
    ]);
    let ran = up(&daemon, false);
    assert_eq!(ran.stderr, "db   starting\ndb   ready in 1.2s\nweb  ready in 1.2s\n");
    assert_eq!(ran.stdout, "shop: 2 services ready in 200ms\nfollow with `locald logs -f`, stop with `locald down`\n");
    assert_eq!(ran.code, 0);
    let Request::Apply { project, environment, services, profiles, action, force, owner: _, timeout } =
        &daemon.requests()[0]
    else {
        panic!("not an Apply");
    };
    assert!(!force && profiles.is_empty());
    assert_eq!(**project, spec(&["db", "web"]));
    assert_eq!((services.as_slice(), *action, *timeout), (&[][..], Action::Up, Duration::from_secs(60)));
    assert!(environment.contains_key("PATH") && !environment.contains_key("PWD"));
}

#[test]
fn up_shows_the_last_output_of_what_failed() {
    let failed = ServiceStatus {
        run: Some(RunNumber(7)),
        last: Some(Ended { exited_at: UnixMillis::now(), ..ended("web", ExitStatus::Code(7)) }),
        ..service("web", State::Failed { reason: FailedReason::Exited })
    };
    let blocked =
        State::Failed { reason: FailedReason::Dependency { chain: vec![name("web")], cause: "exited 7".into() } };
    let services = vec![became(failed, OutcomeResult::Failed), became(service("api", blocked), OutcomeResult::Failed)];
    let daemon = FakeDaemon::start(vec![Step::Request, outcome(services)]);
    let project = spec(&[]);
    let dir = service_dir(&daemon.home.project(&project.id, &project.name), &name("web"));
    std::fs::create_dir_all(&dir).expect("mkdir");
    std::fs::write(locald_utils::log::data_path(&dir, 1), "listening\npanic: boom").expect("writes");
    let ran = up(&daemon, false);
    assert_eq!(
        ran.stderr,
        "web: failed: exit 7, 0s ago\n  | listening\n  | panic: boom\nmore: locald logs web\n\
         api: blocked by web, which exited 7\n"
    );
    assert_eq!((ran.stdout.as_str(), ran.code), ("shop: 2 services failed in 200ms\n", 1));
}

#[test]
fn up_as_json_is_one_object_and_nothing_else() {
    let daemon = FakeDaemon::start(vec![
        Step::Request,
        event(ready("db")),
        outcome(vec![became(service("db", State::Completed), OutcomeResult::Done)]),
    ]);
    let ran = up(&daemon, true);
    assert_eq!(ran.stderr, "");
    let value: serde_json::Value = serde_json::from_str(&ran.stdout).expect("one object");
    assert_eq!((&value["schema"], &value["verb"], &value["ok"]), (&1.into(), &"up".into(), &true.into()));
}

#[test]
fn up_that_follows_has_no_json_and_says_so_before_it_starts_anything() {
    let daemon = FakeDaemon::start(Vec::new());
    let captured = Captured::default();
    let limit = Limit { timeout: Duration::from_secs(60) };
    let args = UpArgs {
        follow: true,
        dry_run: DryRun::default(),
        force: false,
        owner: AsOwner::default(),
        watch_config: false,
        services: Services::default(),
        profiles: Profiles::default(),
        limit,
    };
    let context = Context::within(&daemon.home, &daemon.project);
    let Err(Problem::Failure(failure)) = run(&Verb::Up(args), &context, &mut captured.json_screen()) else {
        panic!("not refused")
    };
    assert_eq!(failure.code, FailureCode::Usage);
}
