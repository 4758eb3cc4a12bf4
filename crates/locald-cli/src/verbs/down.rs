//! `down`: ends every service of the project and says with numbers that nothing is left. Idempotent.
//!
//! Needs no readable project file: what runs is known by its directory.

use std::path::Path;

use locald_utils::name::OwnerName;
use locald_utils::protocol::{Desired, Outcome, OutcomeResult, ProjectStatus, Request, ServiceStatus};

use super::{KILL_ADVICE, Wait, carry_out_stop, show_lost, show_nothing_runs, show_stop, width};
use crate::args::DownArgs;
use crate::context::{Context, Place};
use crate::daemon;
use crate::failure::Problem;
use crate::progress::Goal;
use crate::render::json;
use crate::screen::Screen;

pub(super) fn run(args: &DownArgs, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let place = context.place()?;
    let Some(mut client) = daemon::connect_if_anything_runs(context.home()?, screen)? else {
        return nothing_runs(&place, screen);
    };
    let Some(project) = place.known(&mut client)? else {
        let code = nothing_runs(&place, screen)?;
        show_lost(&mut client, screen)?;
        return Ok(code);
    };
    if place.is_of_another_file(&project) && !place.file().is_some_and(Path::exists) {
        return Err(place.not_found().into());
    }
    let (services, owner) = (None, args.owner.clone());
    let request = Request::Stop { project: project.id.clone(), services, now: args.now, owner };
    let wait = Wait {
        goal: Goal::Down,
        width: width(project.services.iter().map(|service| &service.name)),
        limit: None,
        interrupted: "interrupted; the daemon goes on ending the services",
        advice: KILL_ADVICE,
    };
    let Some(mut outcome) = carry_out_stop(&mut client, request, &wait, screen)? else {
        show_nothing_runs("down", screen);
        return Ok(0);
    };
    if let Some(owner) = &args.owner {
        retain_own(&mut outcome);
        let owns = |service: &ServiceStatus| service.owners.iter().any(|one| one.name == *owner);
        if outcome.services.is_empty() && !project.services.iter().any(owns) {
            screen.note(&format!("{owner} owns nothing here"));
        }
        show_left_by(owner, place.known(&mut client)?.as_ref(), screen);
        if outcome.services.is_empty() && !screen.json() {
            return Ok(0);
        }
    }
    Ok(show_stop("down", Some(&json::Project::of_status(&project)), &outcome, screen))
}

/// The services of a project that somebody wants.
pub(super) fn wanted(project: Option<&ProjectStatus>) -> impl Iterator<Item = &ServiceStatus> {
    let services = project.map_or(&[] as &[ServiceStatus], |project| &project.services);
    services.iter().filter(|service| service.desired == Desired::Up)
}

/// What somebody else wants by now is not what an owner has left behind.
pub(super) fn retain_own(outcome: &mut Outcome) {
    outcome.services.retain(|service| service.result != OutcomeResult::Superseded);
}

/// Says what stays when an owner has left, and for whom.
pub(super) fn show_left_by(owner: &OwnerName, project: Option<&ProjectStatus>, screen: &mut Screen) {
    let mut stays = wanted(project).peekable();
    if stays.peek().is_none() {
        return;
    }
    screen.note(&format!("others want what stays without {owner}:"));
    for service in stays {
        let who: Vec<&str> = service.owners.iter().map(|owner| owner.name.as_str()).collect();
        let who = if who.is_empty() { "somebody who gave no name".to_owned() } else { who.join(", ") };
        screen.note(&format!("{}: {who}", service.name));
    }
}

/// Says that nothing runs, unless there is no project here at all: then the person may be in the wrong directory.
fn nothing_runs(place: &Place, screen: &mut Screen) -> Result<u8, Problem> {
    if place.file().is_none() {
        return Err(place.not_found().into());
    }
    show_nothing_runs("down", screen);
    Ok(0)
}
