//! `down`: ends every service of the project and says with numbers that nothing is left. Idempotent.
//!
//! Needs no readable project file: what runs is known by its directory.

use locald_utils::protocol::Request;

use super::{KILL_ADVICE, Wait, carry_out, show_nothing_runs, show_stop, width};
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
        return nothing_runs(&place, screen);
    };
    let request = Request::Stop { project: project.id.clone(), services: None, now: args.now };
    let wait = Wait {
        goal: Goal::Down,
        width: width(project.services.iter().map(|service| &service.name)),
        limit: None,
        interrupted: "interrupted; the daemon goes on ending the services",
        advice: KILL_ADVICE,
    };
    let outcome = carry_out(&mut client, request, &wait, screen)?;
    Ok(show_stop("down", Some(&json::Project::of_status(&project)), &outcome, screen))
}

/// Says that nothing runs, unless there is no project here at all: then the person may be in the wrong directory.
fn nothing_runs(place: &Place, screen: &mut Screen) -> Result<u8, Problem> {
    if place.file().is_none() {
        return Err(place.not_found().into());
    }
    show_nothing_runs("down", screen);
    Ok(0)
}
