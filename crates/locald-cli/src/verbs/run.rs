//! `run`: a one-off command with the environment, directory and dependencies of a service.
//!
//! This process becomes the command, so terminal, signals, job control and exit code are the caller's by themselves. It is no run
//! of the service: no marker of one is in its environment, and nobody supervises it.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use locald_utils::process::{self, explain, open_files};
use locald_utils::protocol::{Failure, FailureCode, Request};
use locald_utils::record::StartFailure;
use locald_utils::spec::{Environment, PortSpec, Ports, ProjectSpec, ServiceSpec};
use locald_utils::{environment, exports};
use nix::errno::Errno;

use super::{SLACK, Wait, carry_out, show_started, width, with_daemon};
use crate::args::RunArgs;
use crate::client::Client;
use crate::context::Context;
use crate::failure::Problem;
use crate::names;
use crate::ports;
use crate::progress::Goal;
use crate::screen::Screen;
use crate::view;

pub(super) fn run(args: &RunArgs, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let project = context.place()?.load()?;
    let service = one_service(&args.service, &project)?;
    let ports = match prepare(args, &project, service, context, screen)? {
        Prepared::Ready(ports) => ports,
        Prepared::Lacking(code) => {
            let failure = format!("what {} depends on is not there, so nothing was run", service.name);
            screen.note(&format!("{failure}; --no-deps runs it all the same"));
            return Ok(code);
        }
    };
    let exports = exports::variables(&project.services, &ports);
    let environment = environment::of_service(context.one_off_environment(), service, exports, &ports)
        .map_err(|error| Failure::new(FailureCode::Failed, format!("the environment mentions a port, but {error}")))?;
    let Err(failure) = become_command(&args.command, service, &environment);
    // A path is taken from the directory of the service, which need not be where the person is.
    let program = Path::new(&args.command[0]);
    let is_from_there = program.is_relative() && program.as_os_str().as_bytes().contains(&b'/');
    let place = if is_from_there { format!(" in {}", service.workdir.display()) } else { String::new() };
    let message = format!("could not run `{}`{place}: {}", program.display(), failure.message);
    let problem = Failure::new(FailureCode::Failed, message);
    Err(match failure.hint {
        _ if args.command[0].as_bytes().contains(&b' ') => problem.hint("a line for a shell is run with `sh -c`"),
        Some(hint) => problem.hint(hint),
        None => problem,
    }
    .into())
}

fn one_service<'a>(pattern: &str, project: &'a ProjectSpec) -> Result<&'a ServiceSpec, Failure> {
    let known: Vec<_> = project.services.iter().map(|service| service.name.clone()).collect();
    let named = names::select(&[pattern.to_owned()], &known, project.name.as_str())?;
    let mut found = project.services.iter().filter(|service| named.contains(&service.name));
    match (found.next(), found.next()) {
        (Some(service), None) => Ok(service),
        (Some(_) | None, _) => {
            let failure = Failure::new(FailureCode::Usage, format!("`{pattern}` means more than one service"));
            Err(failure.hint("name one of them"))
        }
    }
}

/// What became of the preparations.
enum Prepared {
    /// Everything is there; these are the ports of the project.
    Ready(Ports),
    /// Something is not, and has been shown; the exit code that goes with it.
    Lacking(u8),
}

/// Has what the service depends on started, and the ports assigned that are open. Needs no daemon where there is nothing of either.
fn prepare(
    args: &RunArgs,
    project: &ProjectSpec,
    service: &ServiceSpec,
    context: &Context,
    screen: &mut Screen,
) -> Result<Prepared, Problem> {
    let has_open = project.services.iter().any(|service| service.port == Some(PortSpec::Auto));
    let dependencies = !args.no_deps && !service.depends_on.is_empty();
    if !has_open && !dependencies {
        return Ok(Prepared::Ready(ports::of_project(project, &[])));
    }
    let wait = Wait {
        goal: Goal::Up,
        width: width(project.services.iter().map(|service| &service.name)),
        limit: args.limit.timeout.checked_add(SLACK),
        interrupted: "interrupted; what was to be started goes on starting",
        advice: "`locald status` shows it, `locald down` ends it",
    };
    let request = Request::Prepare {
        project: Box::new(project.clone()),
        environment: context.environment(),
        service: service.name.clone(),
        dependencies,
        timeout: if dependencies { args.limit.timeout } else { Duration::ZERO },
    };
    let attempt = |client: &mut Client, screen: &mut Screen| carry_out(client, request.clone(), &wait, screen);
    let (mut client, outcome) = with_daemon(context, screen, attempt)?;
    let code = view::outcome_code(&outcome);
    if code != 0 {
        show_started("run", project, &outcome, context, screen)?;
        return Ok(Prepared::Lacking(code));
    }
    let assigned = if has_open { client.ports()? } else { Vec::new() };
    Ok(Prepared::Ready(ports::of_project(project, &assigned)))
}

/// Replaces this process by the command. Returns only when that could not be done.
fn become_command(
    argv: &[OsString],
    service: &ServiceSpec,
    environment: &Environment,
) -> Result<Infallible, StartFailure> {
    std::env::set_current_dir(&service.workdir).map_err(|error| explain::workdir(&service.workdir, &error))?;
    let path = environment.get("PATH").map(|path| path.as_os_str());
    let program = match argv[0].to_str() {
        Some(name) => process::find_program(name, path).map_err(|tried| explain::lookup(name, path, &tried))?,
        // A name that is no text is taken for a path.
        None => PathBuf::from(&argv[0]),
    };
    if let Some(original) = open_files::original() {
        open_files::set(original);
    }
    // What the signals do and which are blocked is put back by this, too.
    let mut command = Command::new(&program);
    command.arg0(&argv[0]).args(&argv[1..]).env_clear();
    command.envs(environment.iter().map(|(name, value)| (name, value.as_os_str())));
    let error = command.exec();
    let errno = error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw);
    let texts = |texts: &mut dyn Iterator<Item = &[u8]>| -> Vec<CString> {
        texts.filter_map(|text| CString::new(text).ok()).collect()
    };
    let arguments = texts(&mut argv.iter().map(|argument| argument.as_bytes()));
    let values = texts(&mut environment.values().map(|value| value.as_os_str().as_bytes()));
    Err(explain::exec(&program, errno, &arguments, &values))
}
