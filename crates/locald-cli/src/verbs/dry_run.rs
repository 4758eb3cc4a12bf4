//! `--dry-run` of the verbs that start services: what they would do, and why. Changes nothing and starts no daemon.

use locald_utils::name::ServiceName;

use super::Start;
use crate::args::DryRun;
use crate::client::Client;
use crate::context::Context;
use crate::failure::Problem;
use crate::orphans;
use crate::preview::{self, Planned};
use crate::render::{human, json};
use crate::screen::Screen;

pub(super) fn run(start: &Start<'_>, dry_run: DryRun, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let project = context.place()?.load()?;
    let (services, profiles) = start.asked(&project, context)?;
    let home = context.home()?;
    let mut known: Option<Vec<Planned>> = None;
    if let Some(mut client) = Client::connect(home)? {
        let request = start.preview(&project, services.clone(), profiles.clone(), context);
        match client.preview(request) {
            Ok(previews) => known = Some(preview::planned(previews, &project)),
            // It went away before it answered, and nobody has taken its place.
            Err(_) if client.is_gone() => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    let planned = match known {
        Some(planned) => planned,
        None => {
            let orphans = orphans::find(home, &project).map(|found| found.services).unwrap_or_default();
            let running: Vec<ServiceName> = orphans.into_iter().map(|service| service.name).collect();
            preview::without_daemon(&project, &services, &profiles, &running)?
        }
    };
    if screen.json() {
        screen.answer(&json::dry_run(start.verb, &json::Project::of_spec(&project), &planned, dry_run.reveal));
    } else if screen.quiet() {
        let is_new = |one: &&Planned| preview::is_new_run(one);
        screen
            .answer(&planned.iter().filter(is_new).map(|one| format!("{}\n", one.preview.service)).collect::<String>());
    } else {
        let table = human::dry_run(&planned, dry_run.reveal, screen.stdout_paint());
        screen.answer(&format!("{table}\n{}: nothing was changed", project.name));
    }
    Ok(0)
}
