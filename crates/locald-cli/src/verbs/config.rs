//! `config`: what the project file comes to, with every default filled in, and where each value is from. Needs no daemon; from one that
//! runs it learns the ports that were assigned.

use locald_utils::spec::{PortSpec, Ports, ProjectSpec};

use crate::args::ConfigArgs;
use crate::client::Client;
use crate::configuration::{self, Configured, Known};
use crate::context::Context;
use crate::failure::Problem;
use crate::names;
use crate::ports;
use crate::render::{human, json};
use crate::screen::Screen;

pub(super) fn run(args: &ConfigArgs, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let (project, origins) = context.place()?.load_with_origins()?;
    let names: Vec<_> = project.services.iter().map(|service| service.name.clone()).collect();
    let meant = names::select(&args.services.patterns, &names, project.name.as_str())?;
    let (ports, caller, removed) = (ports(&project, context), context.environment(), context.removed());
    let known = Known {
        project: &project,
        origins: &origins,
        ports: &ports,
        caller: &caller,
        removed: &removed,
        reveal: args.reveal,
    };
    let is_meant = |name| meant.is_empty() || meant.contains(name);
    let services = project.services.iter().filter(|service| is_meant(&service.name));
    let services: Vec<Configured> = services.map(|service| configuration::of_service(known, service)).collect();
    if screen.json() {
        screen.answer(&json::config(&json::Project::of_spec(&project), &services));
    } else if screen.quiet() {
        screen.answer(&services.iter().map(|service| format!("{}\n", service.name)).collect::<String>());
    } else {
        screen.answer(&human::config(&project, &services, args.origin));
    }
    Ok(0)
}

/// The ports, as far as they are written or a daemon knows them. That it cannot be asked is no reason to say nothing else.
fn ports(project: &ProjectSpec, context: &Context) -> Ports {
    let has_open = project.services.iter().any(|service| service.port == Some(PortSpec::Auto));
    let client = context.home().ok().filter(|_| has_open).and_then(|home| Client::connect(home).ok().flatten());
    let assigned = client.and_then(|mut client| client.ports().ok()).unwrap_or_default();
    ports::of_project(project, &assigned)
}
