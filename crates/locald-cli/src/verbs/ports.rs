//! `ports`: every port of every project, and who listens there. Starts no daemon; without one, what is written here and what
//! runs all the same.

use locald_utils::config;
use locald_utils::process;
use locald_utils::protocol::{AssignedPort, Failure, ProjectStatus};
use locald_utils::time::UnixMillis;

use crate::client::Client;
use crate::context::Context;
use crate::failure::Problem;
use crate::listening::{self, Holders};
use crate::orphans;
use crate::ports::{self, Known, Looks};
use crate::render::{human, json};
use crate::screen::Screen;

pub(super) fn run(context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let home = context.home()?;
    let told = match Client::connect(home)? {
        Some(mut client) => match told(&mut client) {
            // It went away before it answered, and nobody has taken its place.
            Err(_) if client.is_gone() => None,
            told => Some(told?),
        },
        None => None,
    };
    let has_daemon = told.is_some();
    let (projects, assigned) = told.unwrap_or_else(|| (orphans::all(home), Vec::new()));
    let spec = context.place()?.file().map(config::load);
    let services = projects.iter().flat_map(|project| &project.services);
    let places = listening::of_runs(services.map(|service| listening::is_askable(service).then_some(service)));
    let known = Known {
        projects: &projects,
        places: &places,
        spec: spec.as_ref().and_then(|spec| spec.as_ref().ok()),
        assigned: &assigned,
    };
    let holders = Holders::default();
    let command = |pid| process::look(pid).map(|process| process::shown_command(&process)).unwrap_or_default();
    let rows = ports::rows(known, &Looks { command: &command, holder: &|port, service| holders.of(port, service) });
    if screen.json() {
        screen.answer(&json::ports(&rows, UnixMillis::now()));
        return Ok(0);
    }
    if screen.quiet() {
        let mut numbers: Vec<u16> = rows.iter().map(|row| row.port).collect();
        numbers.dedup();
        screen.answer(&numbers.iter().map(|port| format!("{port}\n")).collect::<String>());
    } else if rows.is_empty() {
        screen.say("no project has a port");
    } else {
        screen.answer(&human::ports(&rows, UnixMillis::now(), screen.stdout_paint()));
    }
    if matches!(spec, Some(Err(_))) {
        screen.note("locald.toml here has mistakes, `locald check` shows them; its ports are not listed");
    }
    if !has_daemon {
        screen.note("no daemon runs; what it knows of other projects is not listed");
    }
    Ok(0)
}

fn told(client: &mut Client) -> Result<(Vec<ProjectStatus>, Vec<AssignedPort>), Failure> {
    Ok((client.status(None)?, client.ports()?))
}
