//! How a run begins: the port is free, the run is on record, and a shim has been told what to run.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::Duration;

use locald_utils::health::{HealthCheck, Probe};
use locald_utils::name::RunId;
use locald_utils::paths::service_dir;
use locald_utils::process;
use locald_utils::record::{Executable, RunRef, StartFailure, StartStage};
use locald_utils::shim_protocol::{Kept, ShimIdentity, Sign, StartOrder, StopOrder};
use locald_utils::spec::{Invocation, Kind, OsText, PortSpec, Ports, ServiceSpec, UnknownPort};
use locald_utils::time::UnixMillis;
use locald_utils::{digest, environment};
use nix::errno::Errno;
use tokio::sync::oneshot;

use crate::actor::{Assignment, Context};
use crate::ledger::Intent;
use crate::newborn::{self, Newborn};
use crate::shim_link::ShimLink;

/// Puts a run on record and has a shim begin it.
///
/// # Errors
/// Why it cannot be started. Nothing of it is left then.
pub(crate) async fn set_up(
    context: &Context,
    assignment: &Assignment,
) -> Result<(ShimLink, ShimIdentity), StartFailure> {
    let Assignment { key, run, project_name, spec, ports, .. } = assignment;
    let port = ports.get(&key.service).copied();
    if let Some(port) = port {
        check_port(port, spec.port)?;
    }
    let run_of = |id: RunId| RunRef {
        project: key.project.clone(),
        project_name: project_name.clone(),
        service: key.service.clone(),
        number: *run,
        id,
    };
    let run = run_of(RunId::random().map_err(|error| shim_failure("could not draw a run id", &error))?);
    let waiting = context.standby.take(&identity(context, &run, &assignment.project_dir));
    let run = waiting.as_ref().map_or(run, |waiting| run_of(waiting.run.clone()));
    let order = start_order(assignment, &run, port, &context.home.notify_socket(&run.id))?;
    let record = async {
        let executable = executable(&order).await;
        context.ledger.intend(intent(context, assignment, &run, &order, port, executable)).await
    };
    let identity = identity(context, &run, &assignment.project_dir);
    // A shim takes a while to come up, which is why it is the first; it begins nothing before it is told what.
    let (born, recorded) = tokio::join!(biased; Newborn::bring_up(context, waiting, identity), record);
    if let Err(error) = recorded {
        if let Ok((newborn, _)) = born {
            newborn.end(context).await;
        }
        return Err(StartFailure {
            stage: StartStage::Ledger,
            errno: 0,
            path: Some(context.home.ledger()),
            message: format!("the run could not be put on record in {}: {error}", context.home.ledger().display()),
            hint: error.hint(&context.home.ledger()).or_else(|| Some("no run is started without a record".to_owned())),
            permanent: false,
        });
    }
    let result = match born {
        Ok((newborn, link)) => newborn.order(context, link, order).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = &result {
        context.ledger.not_started(&run, failure);
        context.checkouts.record(&assignment.project_dir, run);
    }
    let (link, identity) = result?;
    debug_assert!(spec.name == identity.run.service, "a run is of its service");
    Ok((link, identity))
}

/// What the shim of a run is to know.
fn identity(context: &Context, run: &RunRef, project_dir: &Path) -> ShimIdentity {
    let standby = newborn::standby_identity(context, &run.id);
    ShimIdentity {
        run: run.clone(),
        project_dir: project_dir.to_owned(),
        service_dir: service_dir(&context.home.project(&run.project, &run.project_name), &run.service),
        socket: context.home.shim_socket(&run.id),
        open_files: standby.open_files,
        cgroup: standby.cgroup,
    }
}

/// Why there is no shim for a run.
pub(crate) fn shim_failure(what: &str, error: &io::Error) -> StartFailure {
    let errno = error.raw_os_error().map(Errno::from_raw);
    let hint = match errno {
        Some(Errno::EMFILE) => {
            Some("the daemon has as many files open as it may (`ulimit -Hn` where it was started); stop other services")
        }
        Some(Errno::ENFILE) => Some("the system has as many files open as it may; end other programs"),
        Some(Errno::EAGAIN) => Some("you may not have more processes (`ulimit -u`); end some"),
        Some(Errno::ENOMEM) => Some("the system has no memory left; end other programs"),
        _ => None,
    };
    StartFailure {
        stage: StartStage::Shim,
        errno: error.raw_os_error().unwrap_or(0),
        path: None,
        message: format!("{what}: {error}"),
        hint: hint.map(str::to_owned),
        permanent: false,
    }
}

/// Refuses a port that somebody listens on, and says who.
fn check_port(port: u16, declared: Option<PortSpec>) -> Result<(), StartFailure> {
    // A number that locald has chosen stands nowhere to be changed.
    let change = match declared {
        Some(PortSpec::Auto) => "give it a number as its `port`",
        Some(PortSpec::Fixed(_)) | None => "change `port`",
    };
    // Tables that cannot be read prove nothing; the service will find out by itself.
    let holders = process::port_holders(port).unwrap_or_default();
    let Some(first) = holders.into_iter().max_by_key(Option::is_some) else { return Ok(()) };
    let (message, hint) = match first {
        None => (format!("port {port} is held by a process of another user"), Some(format!("stop it, or {change}"))),
        Some(holder) => {
            let pid = holder.process.id.pid;
            let age = holder.age.map(|age| format!(", started {} ago", roughly(age))).unwrap_or_default();
            let place = holder.directory.map(|dir| format!(" in {}", dir.display())).unwrap_or_default() + &age;
            let ours = holder.service.as_ref().and_then(|service| service.split_once(':'));
            match ours {
                Some((project, service)) => (
                    format!(
                        "port {port} is held by pid {pid} ({}){place}, which is service {service} of project {project}",
                        holder.command
                    ),
                    Some(format!("stop it with `locald stop {service}` there, or {change}")),
                ),
                None => (
                    format!("port {port} is held by pid {pid} ({}){place}", holder.command),
                    Some(format!("stop pid {pid}, or {change}")),
                ),
            }
        }
    };
    Err(StartFailure {
        stage: StartStage::Port,
        errno: Errno::EADDRINUSE as i32,
        path: None,
        message,
        hint,
        permanent: false,
    })
}

/// A duration as people say it: "3 days", "2 h", "5 min", "12 s".
fn roughly(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn start_order(
    assignment: &Assignment,
    run: &RunRef,
    port: Option<u16>,
    notify_socket: &Path,
) -> Result<StartOrder, StartFailure> {
    let Assignment { spec, ports, .. } = assignment;
    let unknown = |error: UnknownPort| StartFailure {
        stage: StartStage::Port,
        errno: 0,
        path: None,
        message: format!("its command or environment mentions the port of a service, but {error}"),
        hint: Some("give that service a `port`".to_owned()),
        permanent: true,
    };
    let (caller, exports) = (assignment.environment.variables.clone(), assignment.exports.clone());
    let mut environment = environment::of_service(caller, spec, exports, ports).map_err(unknown)?;
    environment
        .insert(process::SERVICE_MARKER.to_owned(), OsText::from(format!("{}:{}", run.project_name, run.service)));
    environment.insert(process::RUN_MARKER.to_owned(), run.id.as_str().into());
    let checks = spec.checks();
    let signs = signs(&checks, notify_socket);
    for sign in &signs {
        if let Sign::Socket { path, .. } = sign {
            environment.insert("NOTIFY_SOCKET".to_owned(), OsText(path.clone().into_os_string()));
        }
    }
    Ok(StartOrder {
        command: spec.command.invocation(ports).map_err(unknown)?,
        workdir: spec.workdir.clone(),
        environment,
        tty: spec.tty,
        forking: spec.kind == Kind::Forking,
        stop: StopOrder {
            signal: spec.stop.signal,
            grace: spec.stop.grace,
            command: spec
                .stop
                .command
                .as_ref()
                .map(|command| command.invocation(ports))
                .transpose()
                .map_err(unknown)?,
        },
        log: spec.log,
        signs,
        probes: probes(&checks, ports).map_err(unknown)?,
        keep: Kept {
            spec: ServiceSpec::clone(spec),
            port,
            environment: assignment.environment.digest.clone(),
            started_on: assignment.started_on.clone(),
        },
    })
}

/// What the shim is to look for; `socket` is where a service may say that it is ready.
fn signs(checks: &[HealthCheck], socket: &Path) -> Vec<Sign> {
    let sign = |(check, of): (u32, &HealthCheck)| match &of.probe {
        Probe::Log { pattern } => Some(Sign::Line { check, pattern: pattern.clone() }),
        Probe::Notify { fd: Some(number) } => Some(Sign::Descriptor { check, number: *number }),
        Probe::Notify { fd: None } => Some(Sign::Socket { check, path: socket.to_owned() }),
        Probe::Listen | Probe::Http(_) | Probe::Tcp { .. } | Probe::Command { .. } => None,
    };
    (0..).zip(checks).filter_map(sign).collect()
}

/// The commands that the shim is to run for checks.
fn probes(checks: &[HealthCheck], ports: &Ports) -> Result<BTreeMap<u32, Invocation>, UnknownPort> {
    let command = |(check, of): (u32, &HealthCheck)| match &of.probe {
        Probe::Command { command } => Some(command.invocation(ports).map(|command| (check, command))),
        Probe::Listen | Probe::Http(_) | Probe::Tcp { .. } | Probe::Log { .. } | Probe::Notify { .. } => None,
    };
    (0..).zip(checks).filter_map(command).collect()
}

fn intent(
    context: &Context,
    assignment: &Assignment,
    run: &RunRef,
    order: &StartOrder,
    port: Option<u16>,
    executable: Option<Executable>,
) -> Intent {
    let environment: BTreeMap<String, String> =
        order.environment.iter().map(|(name, value)| (name.clone(), digest::of_value(value))).collect();
    Intent {
        run: run.clone(),
        asked_by: assignment.asked_by.clone(),
        asked_at: UnixMillis::now(),
        boot: context.boot.clone(),
        executable,
        argv: order.command.argv.clone(),
        workdir: order.workdir.to_string_lossy().into_owned(),
        environment,
        spec_digest: assignment.spec.digest(),
        port,
    }
}

/// 1 s: how long a look at a program may take. On a disk it takes microseconds; a network file system that needs longer is not
/// answering.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// The program as it lies on disk now. One that cannot be found will be explained by the exec helper.
///
/// A file system that hangs answers nobody, and holds whoever asks where no signal ends it. That is a thread of its own and not
/// the daemon's only one; the record then lacks the program. (Known gap: a daemon that is to end meanwhile does so only when the
/// file system answers or is unmounted.)
async fn executable(order: &StartOrder) -> Option<Executable> {
    let name = order.command.program.as_ref().unwrap_or(&order.command.argv[0]).clone();
    let path = order.environment.get("PATH").cloned();
    let workdir = order.workdir.clone();
    let (tell, told) = oneshot::channel();
    // Nobody may be waiting for the answer any more.
    let look = move || drop(tell.send(look(&name, path.as_ref().map(OsText::as_os_str), &workdir)));
    // Where no thread can be had the shim cannot be started either, which says so.
    std::thread::Builder::new().name("look".to_owned()).spawn(look).ok()?;
    tokio::time::timeout(LOOK_LIMIT, told).await.ok()?.ok()?
}

fn look(name: &str, path: Option<&OsStr>, workdir: &Path) -> Option<Executable> {
    use std::os::unix::fs::MetadataExt;
    let path = workdir.join(process::find_program(name, path).ok()?);
    let meta = path.metadata().ok()?;
    Some(Executable { path: path.to_string_lossy().into_owned(), mtime: meta.mtime(), size: meta.size() })
}
