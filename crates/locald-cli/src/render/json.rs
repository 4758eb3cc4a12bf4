//! JSON for programs: one object on stdout for each command, with the fields listed here and no others.
//!
//! Every object has `schema` (1; it changes only if a field changes its meaning or goes, so that readers can rely on
//! fields being added only) and `verb`. A command that could not do its work has `error` with `code`, `message` and, where
//! there is one, `hint`; exit codes are the same as without `--json`. Instants end in `_at` and count milliseconds since
//! 1970, durations end in `_ms`. A field without a value is null, or absent where its note says so.
//!
//! These types are apart from the protocol's on purpose: what crosses the socket may change with a release, this not.

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::Path;

use locald_utils::config::origin::Source;
use locald_utils::config::{ConfigErrors, Diagnostic};
use locald_utils::name::{RunNumber, ServiceName};
use locald_utils::protocol::{
    Because, DaemonStatus, Failure, FailureCode, Outcome, OutcomeResult, ProjectStatus, Step,
};
use locald_utils::spec::ProjectSpec;
use locald_utils::time::UnixMillis;
use serde::Serialize;

use crate::configuration::{Configured, Origin};
use crate::ports::{Listener, Owner, PortRow};
use crate::preview::{Change, Planned};
use crate::view::{self, Row, StopTotals};

mod doctor;
mod service;

pub(crate) use doctor::doctor;
use service::{End, Service, WaitingFor, state_name};

/// Grows only if a field changes its meaning or goes.
const SCHEMA: u32 = 1;

/// `error` of every verb.
pub(crate) fn failure(verb: Option<&str>, failure: &Failure) -> String {
    #[derive(Serialize)]
    struct Failed<'a> {
        schema: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        verb: Option<&'a str>,
        error: Error<'a>,
    }
    line(&Failed { schema: SCHEMA, verb, error: Error::of(failure) })
}

/// `error` of a project file with mistakes, and all of them in `errors`: each with `file`, `line`, `column`, `message` and,
/// where there is one, `help`. `line` and `column` are absent when the file could not be read.
pub(crate) fn config_errors(verb: &str, errors: &ConfigErrors) -> String {
    #[derive(Serialize)]
    struct Failed<'a> {
        schema: u32,
        verb: &'a str,
        error: Error<'a>,
        errors: &'a [Diagnostic],
    }
    let errors = errors.diagnostics();
    let message = format!("{} in the project file", view::count(errors.len(), "mistake"));
    let error = Error { code: FailureCode::Usage, message: &message, hint: None };
    line(&Failed { schema: SCHEMA, verb, error, errors: &errors })
}

/// `status`: `project`, `health` (fine, wrong, settling, idle), `ready`, `total`, `services`.
pub(crate) fn status(project: &Project<'_>, rows: &[Row], now: UnixMillis) -> String {
    #[derive(Serialize)]
    struct Status<'a> {
        schema: u32,
        verb: &'static str,
        project: &'a Project<'a>,
        health: &'static str,
        ready: usize,
        total: usize,
        services: Vec<Service<'a>>,
    }
    let services = || rows.iter().map(|row| &row.status);
    line(&Status {
        schema: SCHEMA,
        verb: "status",
        project,
        health: health(view::health(services())),
        ready: view::ready_count(services()),
        total: view::total(services()),
        services: rows.iter().map(|row| Service::of_row(row, now)).collect(),
    })
}

/// `screen`: `service`, `run`, `rows`, `columns`, `cursor` (`row` and `column` from 0; absent while it is hidden),
/// `alternate` (the service has taken over the whole screen), `lines`.
pub(crate) fn screen(
    service: &ServiceName,
    run: RunNumber,
    (rows, columns): (u16, u16),
    cursor: Option<(u16, u16)>,
    alternate: bool,
    lines: &[String],
) -> String {
    #[derive(Serialize)]
    struct Cursor {
        row: u16,
        column: u16,
    }
    #[derive(Serialize)]
    struct Screen<'a> {
        schema: u32,
        verb: &'static str,
        service: &'a ServiceName,
        run: RunNumber,
        rows: u16,
        columns: u16,
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<Cursor>,
        alternate: bool,
        lines: &'a [String],
    }
    let cursor = cursor.map(|(row, column)| Cursor { row, column });
    line(&Screen { schema: SCHEMA, verb: "screen", service, run, rows, columns, cursor, alternate, lines })
}

/// `ls`: `projects`, each with `name`, `id`, `dir`, `file`, `health`, `ready`, `total`.
pub(crate) fn projects(projects: &[ProjectStatus]) -> String {
    #[derive(Serialize)]
    struct Known<'a> {
        #[serde(flatten)]
        project: Project<'a>,
        health: &'static str,
        ready: usize,
        total: usize,
    }
    #[derive(Serialize)]
    struct Projects<'a> {
        schema: u32,
        verb: &'static str,
        projects: Vec<Known<'a>>,
    }
    let known = projects.iter().map(|status| Known {
        project: Project::of_status(status),
        health: health(view::health(status.services.iter())),
        ready: view::ready_count(status.services.iter()),
        total: view::total(status.services.iter()),
    });
    line(&Projects { schema: SCHEMA, verb: "ls", projects: known.collect() })
}

/// `ports`: `ports`, each with `port`, `project` (`name`, `id`, `dir`; name and dir null where unknown), `service`, `state`, `text`,
/// `declared` (false: it listens there besides its port), `own` (whether the listeners are its processes), `listeners` (`pid`,
/// `command`, `addresses`), `notes`.
pub(crate) fn ports(rows: &[PortRow], now: UnixMillis) -> String {
    #[derive(Serialize)]
    struct Project<'a> {
        name: Option<&'a str>,
        id: &'a str,
        dir: Option<Cow<'a, str>>,
    }
    #[derive(Serialize)]
    struct Listens<'a> {
        pid: i32,
        command: &'a str,
        addresses: &'a [IpAddr],
    }
    impl<'a> Listens<'a> {
        fn of(listener: &'a Listener) -> Self {
            Self { pid: listener.pid, command: &listener.command, addresses: &listener.addresses }
        }
    }
    #[derive(Serialize)]
    struct Listed<'a> {
        port: u16,
        project: Project<'a>,
        service: &'a str,
        state: &'static str,
        text: String,
        declared: bool,
        own: bool,
        listeners: Vec<Listens<'a>>,
        notes: Vec<&'a str>,
    }
    impl<'a> Listed<'a> {
        fn of(row: &'a PortRow, now: UnixMillis) -> Self {
            let Owner { id, name, dir } = &row.project;
            Self {
                port: row.port,
                project: Project {
                    name: name.as_deref(),
                    id: id.as_str(),
                    dir: dir.as_ref().map(|dir| dir.to_string_lossy()),
                },
                service: row.service.name.as_str(),
                state: state_name(&row.service.state),
                text: view::word(&row.service, now).text,
                declared: row.is_declared,
                own: row.is_own,
                listeners: row.listeners.iter().map(Listens::of).collect(),
                notes: row.note.as_deref().into_iter().collect(),
            }
        }
    }
    #[derive(Serialize)]
    struct Ports<'a> {
        schema: u32,
        verb: &'static str,
        ports: Vec<Listed<'a>>,
    }
    line(&Ports { schema: SCHEMA, verb: "ports", ports: rows.iter().map(|row| Listed::of(row, now)).collect() })
}

/// A verb that starts, stops or waits: `ok`, `project` (absent for `daemon stop`), `took_ms`, `totals` of what was
/// ended, `services`.
///
/// `outputs` are the last lines of services that failed, by the place of the service in the outcome.
pub(crate) fn outcome(
    verb: &str,
    project: Option<&Project<'_>>,
    outcome: &Outcome,
    outputs: &[Vec<String>],
    now: UnixMillis,
) -> String {
    #[derive(Serialize)]
    struct Done<'a> {
        schema: u32,
        verb: &'a str,
        ok: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        project: Option<&'a Project<'a>>,
        took_ms: u64,
        totals: Totals,
        services: Vec<ServiceResult<'a>>,
    }
    #[derive(Serialize)]
    struct ServiceResult<'a> {
        /// `done`, `failed`, `superseded` or `timed_out`.
        result: OutcomeResult,
        /// Whether it was so before anybody asked.
        unchanged: bool,
        #[serde(flatten)]
        service: Service<'a>,
        /// The run that this command ended.
        ended: Option<End<'a>>,
        /// The last lines it wrote; absent unless it failed.
        #[serde(skip_serializing_if = "Option::is_none")]
        output: Option<&'a [String]>,
    }
    let services = outcome.services.iter().enumerate().map(|(index, became)| ServiceResult {
        result: became.result,
        unchanged: became.unchanged,
        service: Service::of(&became.service, now),
        ended: became.ended.as_ref().map(End::of),
        output: outputs.get(index).map(Vec::as_slice).filter(|lines| !lines.is_empty()),
    });
    line(&Done {
        schema: SCHEMA,
        verb,
        ok: view::outcome_code(outcome) == 0,
        project,
        took_ms: u64::try_from(outcome.took.as_millis()).unwrap_or(u64::MAX),
        totals: Totals::of(view::stop_totals(outcome)),
        services: services.collect(),
    })
}

/// `config`: `project`, `services`, each with `name`, `keys`, `environment`, `removed`.
pub(crate) fn config(project: &Project<'_>, services: &[Configured]) -> String {
    #[derive(Serialize)]
    struct Config<'a> {
        schema: u32,
        verb: &'static str,
        project: &'a Project<'a>,
        services: Vec<Service<'a>>,
    }
    #[derive(Serialize)]
    struct Service<'a> {
        name: &'a str,
        keys: Vec<KeyLine<'a>>,
        /// In order of precedence: what comes later counts.
        environment: Vec<EnvironmentLine<'a>>,
        /// The caller's variables that it does not get.
        removed: &'a [String],
    }
    #[derive(Serialize)]
    struct KeyLine<'a> {
        key: String,
        /// In TOML.
        value: &'a str,
        redacted: bool,
        /// Where it is written, what counts most last; empty for a default.
        sources: Vec<At<'a>>,
    }
    #[derive(Serialize)]
    struct At<'a> {
        file: &'a str,
        line: usize,
    }
    #[derive(Serialize)]
    struct EnvironmentLine<'a> {
        name: &'a str,
        /// Null where it is another one for each run, or not known yet.
        value: Option<&'a str>,
        redacted: bool,
        #[serde(flatten)]
        from: From<'a>,
        /// Where it would come from otherwise, what counts most first.
        over: Vec<From<'a>>,
    }
    #[derive(Serialize)]
    struct From<'a> {
        /// `caller`, `file` or `locald`.
        origin: &'static str,
        #[serde(flatten)]
        at: Option<At<'a>>,
    }
    fn at(source: &Source) -> At<'_> {
        At { file: &source.file, line: source.line }
    }
    fn from(origin: &Origin) -> From<'_> {
        match origin {
            Origin::Caller => From { origin: "caller", at: None },
            Origin::File(source) => From { origin: "file", at: Some(at(source)) },
            Origin::Locald => From { origin: "locald", at: None },
        }
    }
    let services = services.iter().map(|service| Service {
        name: &service.name,
        keys: service
            .keys
            .iter()
            .map(|line| KeyLine {
                key: line.key.to_string(),
                value: &line.value,
                redacted: line.is_redacted,
                sources: line.sources.iter().map(at).collect(),
            })
            .collect(),
        environment: service
            .environment
            .iter()
            .map(|variable| EnvironmentLine {
                name: &variable.name,
                value: variable.value.as_deref(),
                redacted: variable.is_redacted,
                from: from(&variable.origin),
                over: variable.over.iter().map(from).collect(),
            })
            .collect(),
        removed: &service.removed,
    });
    line(&Config { schema: SCHEMA, verb: "config", project, services: services.collect() })
}

/// A verb that starts, with `--dry-run`: `dry_run` (true), `project`, `services`, each with `name`, `step` (`start`, `restart`, `leave`, `skip`,
/// `refuse`), `because`, `waiting_for`, `changes`, `environment`, `notes`.
pub(crate) fn dry_run(verb: &str, project: &Project<'_>, planned: &[Planned], reveal: bool) -> String {
    #[derive(Serialize)]
    struct Told<'a> {
        schema: u32,
        verb: &'a str,
        dry_run: bool,
        project: &'a Project<'a>,
        services: Vec<Would<'a>>,
    }
    #[derive(Serialize)]
    struct Would<'a> {
        name: &'a str,
        step: Step,
        because: Vec<Reason<'a>>,
        waiting_for: Vec<WaitingFor<'a>>,
        changes: Vec<Changed<'a>>,
        /// Names of variables that its run has otherwise than a new one would.
        environment: &'a [String],
        notes: Vec<&'a str>,
    }
    #[derive(Serialize)]
    struct Reason<'a> {
        /// `changed`, `inputs`, `asked` or `follows`.
        kind: &'static str,
        /// Whom it follows; absent otherwise.
        #[serde(skip_serializing_if = "Option::is_none")]
        service: Option<&'a str>,
    }
    #[derive(Serialize)]
    struct Changed<'a> {
        key: String,
        /// In TOML, `***` for what is not shown of it; null where there is none, or nothing of it is shown.
        from: Option<&'a str>,
        to: Option<&'a str>,
        /// Whether something of the values is not shown.
        redacted: bool,
    }
    impl<'a> Reason<'a> {
        fn of(because: &'a Because) -> Self {
            let (kind, service) = match because {
                Because::Changed => ("changed", None),
                Because::Ports => ("ports", None),
                Because::Inputs => ("inputs", None),
                Because::Asked => ("asked", None),
                Because::Follows(service) => ("follows", Some(service.as_str())),
            };
            Self { kind, service }
        }
    }
    impl<'a> Changed<'a> {
        fn of(change: &'a Change, reveal: bool) -> Self {
            let (from, to) = change.printed(reveal);
            Self { key: change.key.to_string(), from, to, redacted: change.is_private() && !reveal }
        }
    }
    let services = planned.iter().map(|one| Would {
        name: one.preview.service.as_str(),
        step: one.preview.step,
        because: one.preview.because.iter().map(Reason::of).collect(),
        waiting_for: one.preview.waits_for.iter().map(WaitingFor::of).collect(),
        changes: one.changes.iter().map(|change| Changed::of(change, reveal)).collect(),
        environment: &one.preview.environment,
        notes: one.note.as_deref().into_iter().collect(),
    });
    line(&Told { schema: SCHEMA, verb, dry_run: true, project, services: services.collect() })
}

/// `check`: `ok`, `project`, and the names of the `services`.
pub(crate) fn checked(spec: &ProjectSpec) -> String {
    #[derive(Serialize)]
    struct Checked<'a> {
        schema: u32,
        verb: &'static str,
        ok: bool,
        project: Project<'a>,
        services: Vec<&'a str>,
    }
    let services = spec.services.iter().map(|service| service.name.as_str()).collect();
    line(&Checked { schema: SCHEMA, verb: "check", ok: true, project: Project::of_spec(spec), services })
}

/// `daemon start` and `daemon status`: `running`, and `daemon`, null when none runs.
pub(crate) fn daemon(verb: &str, daemon: Option<&DaemonStatus>) -> String {
    #[derive(Serialize)]
    struct About<'a> {
        schema: u32,
        verb: &'a str,
        running: bool,
        daemon: Option<Daemon<'a>>,
    }
    #[derive(Serialize)]
    struct Daemon<'a> {
        pid: u32,
        version: &'a str,
        protocol: u32,
        started_at: UnixMillis,
        epoch: u64,
        home: &'a Path,
        socket: &'a Path,
        log: &'a Path,
        projects: u32,
        runs: u32,
        clients: u32,
    }
    let about = daemon.map(|status| Daemon {
        pid: status.pid,
        version: &status.version,
        protocol: status.protocol,
        started_at: status.started_at,
        epoch: status.epoch,
        home: &status.home,
        socket: &status.socket,
        log: &status.log,
        projects: status.projects,
        runs: status.runs,
        clients: status.clients,
    });
    line(&About { schema: SCHEMA, verb, running: about.is_some(), daemon: about })
}

/// `completions`: `shell` and its `script`.
pub(crate) fn completions(shell: &str, script: &str) -> String {
    #[derive(Serialize)]
    struct Completions<'a> {
        schema: u32,
        verb: &'static str,
        shell: &'a str,
        script: &'a str,
    }
    line(&Completions { schema: SCHEMA, verb: "completions", shell, script })
}

/// Which project it is.
#[derive(Debug, Serialize)]
pub(crate) struct Project<'a> {
    name: &'a str,
    id: &'a str,
    dir: &'a Path,
    file: &'a Path,
}

impl<'a> Project<'a> {
    /// As the file says.
    pub(crate) fn of_spec(spec: &'a ProjectSpec) -> Self {
        Self { name: spec.name.as_str(), id: spec.id.as_str(), dir: &spec.dir, file: &spec.file }
    }

    /// As the daemon says.
    pub(crate) fn of_status(status: &'a ProjectStatus) -> Self {
        Self { name: status.name.as_str(), id: status.id.as_str(), dir: &status.dir, file: &status.file }
    }
}

#[derive(Serialize)]
struct Error<'a> {
    /// `failed`, `usage`, `not_running`, `not_found`, `timed_out`, `interrupted`, `protocol` or `shutting_down`.
    code: FailureCode,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

impl<'a> Error<'a> {
    fn of(failure: &'a Failure) -> Self {
        Self { code: failure.code, message: &failure.message, hint: failure.hint.as_deref() }
    }
}

#[derive(Serialize)]
struct Totals {
    services: usize,
    processes: usize,
    killed: usize,
    left: usize,
}

impl Totals {
    fn of(totals: StopTotals) -> Self {
        let StopTotals { services, processes, killed, left } = totals;
        Self { services, processes, killed, left }
    }
}

fn health(health: view::Health) -> &'static str {
    match health {
        view::Health::Fine => "fine",
        view::Health::Wrong => "wrong",
        view::Health::Settling => "settling",
        view::Health::Idle => "idle",
    }
}

fn line(value: &impl Serialize) -> String {
    // Every key is a string and every value is plain data, so this cannot fail; if it could, an empty object would say
    // less than the error does.
    serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"schema\":{SCHEMA},\"error\":\"{error}\"}}"))
}
