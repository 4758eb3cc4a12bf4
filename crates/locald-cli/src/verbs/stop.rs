//! `stop`: ends some services, or all, and leaves the project up. Needs no readable project file.

use locald_utils::protocol::Request;

use super::{KILL_ADVICE, Wait, carry_out_stop, show_nothing_runs, show_stop, width};
use crate::args::StopArgs;
use crate::context::{Context, Project};
use crate::daemon;
use crate::failure::Problem;
use crate::progress::Goal;
use crate::render::json;
use crate::screen::Screen;

pub(super) fn run(args: &StopArgs, context: &Context, screen: &mut Screen) -> Result<u8, Problem> {
    let place = context.place()?;
    let mut client = daemon::connect_if_anything_runs(context.home()?, screen)?;
    let project = Project::find(&place, client.as_mut())?;
    let mut wanted = project.select(&args.services.patterns)?;
    let (Some(mut client), Some(known)) = (client, &project.known) else {
        show_nothing_runs("stop", screen);
        return Ok(0);
    };
    if args.services.patterns.is_empty() {
        wanted = known.services.iter().map(|service| service.name.clone()).collect();
    }
    let wait = Wait {
        goal: Goal::Down,
        width: width(&wanted),
        limit: None,
        interrupted: "interrupted; the daemon goes on ending the services",
        advice: KILL_ADVICE,
    };
    // A service that is declared and has never been up is unknown to the daemon, and stopped.
    wanted.retain(|name| known.services.iter().any(|service| service.name == *name));
    if wanted.is_empty() {
        show_nothing_runs("stop", screen);
        return Ok(0);
    }
    let request = Request::Stop { project: known.id.clone(), services: Some(wanted), now: args.now, owner: None };
    let Some(outcome) = carry_out_stop(&mut client, request, &wait, screen)? else {
        show_nothing_runs("stop", screen);
        return Ok(0);
    };
    Ok(show_stop("stop", Some(&json::Project::of_status(known)), &outcome, screen))
}
