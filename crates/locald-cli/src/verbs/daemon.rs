//! `daemon start|stop|status|run`: the supervisor itself. Other verbs start it by themselves.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use locald_utils::process::mark::{self, SUPERVISOR_MARKER};
use locald_utils::process::{self, ProcessId, open_files};
use locald_utils::process::{RUN_MARKER, SERVICE_MARKER};
use locald_utils::protocol::{FailureCode, Outcome, Request};
use locald_utils::time::UnixMillis;

use super::{Wait, carry_out, show_stop};
use crate::args::DaemonVerb;
use crate::client::Client;
use crate::context::Context;
use crate::daemon as starter;
use crate::failure::{self, Problem};
use crate::progress::Goal;
use crate::render::{human, json};
use crate::screen::Screen;
use crate::view::count;

/// 5 s: for a daemon that has said goodbye to close its ledger.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

pub(super) fn run(verb: &DaemonVerb, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    match verb {
        DaemonVerb::Start => start(context, screen),
        DaemonVerb::Stop { all } => stop(*all, context, screen),
        DaemonVerb::Status => status(context, screen),
        DaemonVerb::Run => run_in_foreground(context),
    }
}

fn start(context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let mut client = starter::connect_or_start(context.home()?, screen)?;
    let about = client.about()?;
    if screen.json() {
        screen.answer(&json::daemon("daemon start", Some(&about)));
    } else if !screen.quiet() {
        screen.answer(&format!("the daemon runs, pid {}", about.pid));
    }
    Ok(0)
}

fn stop(all: bool, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let home = context.home()?;
    let client = if all { starter::connect_if_anything_runs(home, screen)? } else { Client::connect(home)? };
    let Some(mut client) = client else {
        if screen.json() {
            screen.answer(&json::daemon("daemon stop", None));
        } else if !screen.quiet() {
            screen.answer("no daemon was running");
        }
        return Ok(0);
    };
    let runs = client.about()?.runs;
    let pid = client.daemon().pid;
    let process = ProcessId::of(pid.cast_signed());
    let wait = Wait {
        goal: Goal::Down,
        width: 0,
        limit: None,
        interrupted: "interrupted; the daemon goes on with what was asked",
        advice: "`locald daemon status` tells whether it is done",
    };
    let outcome = match carry_out(&mut client, Request::Shutdown { all }, &wait, screen) {
        // Whatever ended it, it has ended.
        Err(_) if client.is_gone() && !all => Outcome { services: Vec::new(), took: Duration::ZERO },
        outcome => outcome?,
    };
    let code = if all {
        show_stop("daemon stop", None, &outcome, screen)
    } else if screen.json() {
        screen.answer(&json::outcome("daemon stop", None, &outcome, &[], UnixMillis::now()));
        0
    } else {
        0
    };
    if code != 0 {
        // The daemon stays, and watches what could not be ended.
        return Ok(code);
    }
    // The connection closes some moments before the process has ended. A system that cannot tell is not asked twice.
    let has_left = client.until_closed(LEAVE_LIMIT)
        && process.is_none_or(|process| process::await_exit(process, LEAVE_LIMIT).unwrap_or(true));
    if !has_left {
        let message = format!("the daemon (pid {pid}) agreed to leave and has not");
        return Err(locald_utils::protocol::Failure::new(FailureCode::TimedOut, message).into());
    }
    if !screen.json() && !screen.quiet() {
        let rest = match runs {
            0 => String::new(),
            _ if all => String::new(),
            runs => {
                let runs = count(usize::try_from(runs).unwrap_or(usize::MAX), "service");
                format!("; {runs} run on, and the next daemon takes over")
            }
        };
        screen.answer(&format!("the daemon has ended{rest}"));
    }
    Ok(code)
}

fn status(context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let about = match Client::connect(context.home()?)? {
        Some(mut client) => Some(client.about()?),
        None => None,
    };
    match &about {
        _ if screen.json() => screen.answer(&json::daemon("daemon status", about.as_ref())),
        _ if screen.quiet() => {}
        Some(about) => screen.answer(&human::daemon(about, UnixMillis::now())),
        None => screen.answer("no daemon runs; verbs that need one start it"),
    }
    Ok(if about.is_some() { 0 } else { FailureCode::NotRunning.exit_code() })
}

/// Becomes the daemon. Returns only if it cannot.
fn run_in_foreground(context: &Context) -> Result<u8, Problem> {
    let home = context.home()?;
    home.prepare().map_err(|error| failure::home(&error))?;
    let program = starter::program()?;
    let mut command = Command::new(&program);
    command.env_remove(RUN_MARKER).env_remove(SERVICE_MARKER);
    // What a person has chosen is for services to inherit.
    let error = open_files::with_original(|| command.env(SUPERVISOR_MARKER, mark::supervisor(home.state())).exec());
    Err(failure::io(format_args!("run {}", program.display()), &error).into())
}
